package mqtt

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"runtime"
	"syscall"
)

// When a fleet comes back at once, thousands of ClientHellos lie there, and each costs a few hundred microseconds. If all of them were
// worked on together all would be ready together, at the end, those of clients that gave up meanwhile included; and the listener, which
// waits for its turn among them, would let the kernel's queue overflow, so that the unlucky ones wait for ever longer retransmissions.
// So they take turns: first come, first served, as many at a time as keep the cores busy, and never one whose client has gone.
//
// A turn is for work, not for waiting: a client gets it when its ClientHello is there, and loses it when the server would have to wait for
// the client again. Nobody can hold one by being slow. Waiting for a turn does not count against ConnectTimeout, since it is not the
// client's fault; it lasts at most as long as the handshakes of MaxConnections take.
type turns chan struct{}

func newTurns() turns { return make(turns, 2*runtime.GOMAXPROCS(0)) }

// handshake is TLS's. It runs on a goroutine of its own, whose stack it makes large.
func (c *conn) handshake() error {
	t, ok := c.nc.(*tls.Conn)
	if !ok {
		return nil
	}
	turn, ok := t.NetConn().(*helloConn)
	if ok {
		if err := turn.take(c); err != nil {
			c.server.met.handshakes.Inc()
			return errHandshake
		}
		defer turn.giveBack()
	}
	result := make(chan error, 1)
	go func() { result <- t.HandshakeContext(c.server.reading) }() // received below
	err := <-result
	if err != nil {
		c.server.met.handshakes.Inc()
		c.refuseTLS(t, err)
		return errHandshake
	}
	return nil
}

var (
	errHandshake = errors.New("TLS handshake failed")
	errGone      = errors.New("the client has gone")
)

// refuseTLS tells the journal of a certificate that TLS itself turned away.
func (c *conn) refuseTLS(t *tls.Conn, err error) {
	if c.server.cfg.Journal == nil || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, context.Canceled) {
		return
	}
	state := t.ConnectionState()
	if j, ok := c.server.cfg.Journal.(handshakes); ok {
		j.HandshakeFailed(c.nc.RemoteAddr(), err)
		return
	}
	c.server.cfg.Journal.Refused(&Credentials{TLS: &state, Remote: c.nc.RemoteAddr()}, &Refusal{Class: "tls", Text: err.Error()})
}

// A helloConn is the TCP connection below TLS, which gives a turn back before it waits. After the handshake it is in nobody's way.
type helloConn struct {
	*net.TCPConn
	raw   syscall.RawConn
	turns turns // nil: it has no turn
}

func newHelloConn(nc net.Conn) net.Conn {
	t, ok := nc.(*net.TCPConn)
	if !ok {
		return nc
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return nc
	}
	return &helloConn{TCPConn: t, raw: raw}
}

// take waits for the client's first byte, and then for a turn.
func (h *helloConn) take(c *conn) error {
	if _, err := h.peek(true); err != nil {
		return err
	}
	c.since.Store(math.MaxInt64) // it is not the client that we wait for
	s := c.server
	s.met.handshaking.Add(1)
	defer s.met.handshaking.Add(-1)
	select {
	case s.turns <- struct{}{}:
	case <-s.reading.Done():
		return errStopped
	}
	h.turns = s.turns
	if h.gone() {
		h.giveBack()
		return errGone
	}
	c.expect(s.cfg.ConnectTimeout)
	return nil
}

func (h *helloConn) giveBack() {
	if h.turns != nil {
		<-h.turns
		h.turns = nil
	}
}

// Read implements net.Conn.
func (h *helloConn) Read(b []byte) (int, error) {
	if h.turns != nil {
		if there, err := h.peek(false); !there || err != nil {
			h.giveBack()
		}
	}
	return h.TCPConn.Read(b)
}

// peek tells whether there is something to read, after waiting for it or not. The end is an error.
func (h *helloConn) peek(wait bool) (there bool, err error) {
	var b [1]byte
	e := h.raw.Read(func(fd uintptr) bool {
		var n int
		for {
			if n, _, err = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK); err != syscall.EINTR {
				break
			}
		}
		if err == syscall.EAGAIN {
			err = nil
			return !wait
		}
		if there = n > 0; !there && err == nil {
			err = io.EOF
		}
		return true
	})
	return there, errors.Join(e, err)
}

// gone tells whether the client has closed the connection, although there is something to read. Only Linux says so.
func (h *helloConn) gone() bool {
	const closeWait, closed = 8, 7 // of tcpi_state, which is the first byte
	state := byte(0)
	err := h.raw.Control(func(fd uintptr) {
		if v, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpInfo); err == nil {
			state = binary.NativeEndian.AppendUint32(nil, uint32(v))[0] //nolint:gosec // the bytes as they came
		}
	})
	return err != nil || tcpInfo != 0 && (state == closeWait || state == closed)
}
