package mqtt_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// A namespace is a network of its own: nothing that is opened in it reaches this machine's network, or any other. It has no name and
// needs no cleaning up: it is gone when its thread, and what was opened in it, are.
type namespace struct {
	calls chan func()
	ended sync.WaitGroup
}

// requireNamespaces makes a machine that gives us no networks of our own a failure instead of a skipped test.
const requireNamespaces = "MILEPOST_REQUIRE_NAMESPACES"

func newNamespace(t *testing.T) *namespace {
	t.Helper()
	ns := &namespace{calls: make(chan func())}
	made := make(chan error)
	ns.ended.Go(func() { // the cleanup waits
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := syscall.Unshare(syscall.CLONE_NEWNET)
		made <- err
		if err != nil {
			return
		}
		for call := range ns.calls {
			call()
		}
	})
	if err := <-made; err != nil {
		ns.ended.Wait()
		if os.Getenv(requireNamespaces) != "" {
			t.Fatalf("no network namespace, and %s is set: %v", requireNamespaces, err)
		}
		t.Skipf("no network namespace (root makes them): cut networks are not tested: %v", err)
	}
	t.Cleanup(func() {
		close(ns.calls)
		ns.ended.Wait()
	})
	return ns
}

// do runs f in the namespace: sockets that it opens belong to it.
func (ns *namespace) do(f func()) {
	done := make(chan struct{})
	ns.calls <- func() {
		defer close(done)
		f()
	}
	<-done
}

// A cable connects an interface in one namespace with one in another. It is made of two TUN devices, between which this process carries
// the packets: so it can lose and delay them, and be cut without either end hearing of it, and no module of the kernel is needed.
type cable struct {
	ends    [2]*os.File // server's, device's
	running sync.WaitGroup
	// What happens to packets, by the end they come from: 0 the server's.
	lost  [2]atomic.Int32 // in 1000
	delay atomic.Int64    // ns
}

// newCable lays a cable; server and device are IPv4 addresses of one /30.
func newCable(t *testing.T, name string, inServer, inDevice *namespace, server, device [4]byte) *cable {
	t.Helper()
	c := &cable{}
	for i, end := range []struct {
		in *namespace
		ip [4]byte
	}{{inServer, server}, {inDevice, device}} {
		var err error
		end.in.do(func() { c.ends[i], err = openTUN(name, end.ip) })
		if err != nil {
			t.Fatalf("cable %s: %v", name, err)
		}
	}
	for i := range c.ends {
		c.running.Go(func() { c.carry(i) })
	}
	t.Cleanup(func() {
		for _, e := range c.ends {
			_ = e.Close()
		}
		c.running.Wait()
	})
	return c
}

// cut loses everything in both directions; mend ends that.
func (c *cable) cut()  { c.lose(1000, 1000) }
func (c *cable) mend() { c.lose(0, 0) }

// lose loses so many of 1000 packets of the server, and of the device.
func (c *cable) lose(server, device int32) {
	c.lost[0].Store(server)
	c.lost[1].Store(device)
}

// carry takes packets from one end to the other. Those that are delayed wait in a queue, in order; what does not fit is lost, as on
// every network.
func (c *cable) carry(from int) {
	type late struct {
		at time.Time
		b  []byte
	}
	queue := make(chan late, 1024)
	c.running.Go(func() {
		for p := range queue {
			time.Sleep(time.Until(p.at))
			_, _ = c.ends[1-from].Write(p.b)
		}
	})
	defer close(queue)
	buf := make([]byte, 64<<10)
	for {
		n, err := c.ends[from].Read(buf)
		if err != nil {
			if errors.Is(err, os.ErrClosed) {
				return
			}
			continue // the interface goes down when its namespace ends
		}
		if rand.Int32N(1000) < c.lost[from].Load() {
			continue
		}
		select {
		case queue <- late{time.Now().Add(time.Duration(c.delay.Load())), append([]byte(nil), buf[:n]...)}:
		default:
		}
	}
}

// An ifreq is the kernel's struct of that name.
type ifreq struct {
	name [syscall.IFNAMSIZ]byte
	data [24]byte
}

func (r *ifreq) call(fd, request uintptr, what string) error {
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(unsafe.Pointer(r))); e != 0 { //nolint:gosec // an ioctl takes a pointer
		return fmt.Errorf("%s: %w", what, e)
	}
	return nil
}

// openTUN makes an interface in the namespace of the calling thread, and gives it an address of a /30.
func openTUN(name string, ip [4]byte) (*os.File, error) {
	const (
		tunSetInterface = 0x400454ca
		flagTUN         = 0x1
		flagNoPI        = 0x1000
	)
	fd, err := syscall.Open("/dev/net/tun", syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	s, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		_ = syscall.Close(fd)
		return nil, err
	}
	defer syscall.Close(s)
	request := func(data ...byte) *ifreq {
		r := &ifreq{}
		copy(r.name[:], name)
		copy(r.data[:], data)
		return r
	}
	address := func(ip [4]byte) *ifreq {
		return request(append([]byte{syscall.AF_INET, 0, 0, 0}, ip[:]...)...) // a sockaddr_in; the family is little endian here
	}
	for _, step := range []struct {
		what    string
		fd      int
		request uintptr
		r       *ifreq
	}{
		{"make interface", fd, tunSetInterface, request(flagTUN, flagNoPI>>8)},
		{"set address", s, syscall.SIOCSIFADDR, address(ip)},
		{"set mask", s, syscall.SIOCSIFNETMASK, address([4]byte{255, 255, 255, 252})},
		{"set up", s, syscall.SIOCSIFFLAGS, request(syscall.IFF_UP | syscall.IFF_RUNNING)},
	} {
		if err := step.r.call(uintptr(step.fd), step.request, step.what); err != nil {
			_ = syscall.Close(fd)
			return nil, err
		}
	}
	return os.NewFile(uintptr(fd), name), nil
}
