package mqtt_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/mqtt"
	"github.com/milepost/milepost/ingest/mqtt/packet"
)

// A cutWorld is a server that devices reach over two paths, each of which can be cut. Nothing of it leaves its two namespaces.
type cutWorld struct {
	*world
	devices *namespace
	paths   [2]*cable
	port    int
}

func newCutWorld(t *testing.T, limits ingest.Limits, cfg mqtt.Config) *cutWorld {
	t.Helper()
	w := &cutWorld{}
	servers := newNamespace(t)
	w.devices = newNamespace(t)
	if _, err := os.Stat("/dev/net/tun"); err != nil && os.Getenv(requireNamespaces) == "" {
		t.Skipf("no TUN devices: cut networks are not tested: %v", err)
	}
	for i := range w.paths {
		at := byte(4 * i)
		w.paths[i] = newCable(t, fmt.Sprintf("path%d", i), servers, w.devices, [4]byte{10, 99, 0, at + 1}, [4]byte{10, 99, 0, at + 2})
	}
	cfg.Address, cfg.Users = "0.0.0.0:0", []mqtt.User{{Name: "fleet", Password: "secret"}} // who may do everything
	servers.do(func() { w.world = newWorld(t, limits, cfg) })
	if w.world == nil {
		t.FailNow() // in the namespace's goroutine, which cannot end this one
	}
	addr, ok := w.server.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatal("not TCP")
	}
	w.port = addr.Port
	return w
}

// over connects a client over a path.
func (w *cutWorld) over(path int, version byte, id string, change ...func(*packet.Connect)) *peer {
	w.t.Helper()
	p, a := w.tryOver(path, version, id, change...)
	if a.Code != 0 {
		w.t.Fatalf("%s: CONNACK %x", id, a.Code)
	}
	return p
}

func (w *cutWorld) tryOver(path int, version byte, id string, change ...func(*packet.Connect)) (*peer, packet.Connack) {
	w.t.Helper()
	var conn net.Conn
	var err error
	w.devices.do(func() {
		conn, err = net.DialTimeout("tcp4", fmt.Sprintf("10.99.0.%d:%d", 4*path+1, w.port), patience)
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(3 * patience))
	p := &peer{device: &device{t: w.t, conn: conn, in: bufio.NewReader(conn)}, version: version}
	return p, p.hello(id, append(change, func(c *packet.Connect) {
		c.HasUser, c.User, c.HasPassword, c.Password = true, []byte("fleet"), true, []byte("secret")
	})...)
}

// ended waits until connections have ended for a reason.
func (w *cutWorld) ended(reason string, want float64) {
	w.t.Helper()
	until := time.Now().Add(patience)
	for w.counter("milepost_ingest_mqtt_disconnects_total", reason) < want {
		if time.Now().After(until) {
			w.t.Fatalf("no connection ended for %s", reason)
		}
		time.Sleep(5 * time.Millisecond) // a server that waits for silence: there is nothing to wait on
	}
}

func stay(c *packet.Connect)                     { c.Clean = false }
func keepAlive(s uint16) func(c *packet.Connect) { return func(c *packet.Connect) { c.KeepAlive = s } }

// The cable is cut and no FIN arrives: after one and a half times the keep alive the server ends the connection, sends the will, stores it
// if its topic is mapped, and has nothing left of it.
func TestCutHalfOpen(t *testing.T) {
	w := newCutWorld(t, ingest.Limits{}, mqtt.Config{})
	watch := w.over(1, packet.V5, "watch")
	watch.subscribe(1, packet.Filter{Filter: []byte("fleet/truck/telemetry"), QoS: 1})
	began := time.Now()
	truck := w.over(0, packet.V311, "truck", keepAlive(2), func(c *packet.Connect) {
		c.HasWill = true
		c.Will.Topic, c.Will.Payload, c.Will.QoS = []byte("fleet/truck/telemetry"), []byte(`{"speed":0}`), 1
	})
	truck.publish5(reading("fleet/truck/telemetry", 1, 1))
	truck.wantAnswer(packet.PUBACK, 1, 0)
	if m := watch.message(); string(m.Payload) != `{"speed":1}` {
		t.Errorf("got %s", m.Payload)
	}
	w.paths[0].cut()
	if m := watch.message(); string(m.Payload) != `{"speed":0}` {
		t.Errorf("got %s, want the will", m.Payload)
	}
	if took := time.Since(began); took < 3*time.Second-500*time.Millisecond { // the clock of the server steps by 250 ms
		t.Errorf("the will came after %s, before one and a half times the keep alive", took)
	}
	w.ended("keep_alive", 1)
	for w.connections() != 1 { // the watcher's
		time.Sleep(5 * time.Millisecond)
	}
	for len(w.stored()) != 2 { // the reading and the will
		watch.ping()
	}
	for w.admit.InFlight() != 0 { // given back right after the log has it; the watcher's deadline fails the test if it never is
		watch.ping()
	}
}

// A device that is cut off comes back over another path while the server still has its old connection: it takes its session over at once,
// gets what was on its way again, marked as such, and what came meanwhile. The old path healing disturbs nobody.
func TestCutTakeOver(t *testing.T) {
	w := newCutWorld(t, ingest.Limits{}, mqtt.Config{})
	office := w.over(1, packet.V311, "office")
	truck := w.over(0, packet.V5, "truck", stay, keepAlive(600), func(c *packet.Connect) {
		c.Properties.Has |= packet.SetOf(packet.SessionExpiry)
		c.Properties.SessionExpiry = 3600
	})
	truck.subscribe(1, packet.Filter{Filter: []byte("fleet/truck/commands"), QoS: 1})
	command := func(id uint16, name string) {
		office.publish5(packet.Publish{Topic: []byte("fleet/truck/commands"), QoS: 1, ID: id, Payload: []byte(name)})
		office.wantAnswer(packet.PUBACK, id, 0)
	}
	command(1, "lock")
	if m := truck.message(); string(m.Payload) != "lock" {
		t.Fatalf("got %s", m.Payload)
	}
	// Only what the server sends is lost at first: readings are stored and the device does not hear of it.
	w.paths[0].lose(1000, 0)
	truck.publish5(reading("fleet/truck/telemetry", 1, 7))
	for len(w.stored()) != 1 {
		office.ping()
	}
	w.paths[0].cut()
	truck.publish5(reading("fleet/truck/telemetry", 1, 8)) // into nothing
	command(2, "unlock")
	if n := w.connections(); n != 2 {
		t.Fatalf("%v connections: the server is not to know yet", n)
	}
	old := truck
	truck, a := w.tryOver(1, packet.V5, "truck", stay, func(c *packet.Connect) {
		c.Properties.Has |= packet.SetOf(packet.SessionExpiry)
		c.Properties.SessionExpiry = 3600
	})
	if a.Code != 0 || !a.Present {
		t.Fatalf("CONNACK %x, session present %v", a.Code, a.Present)
	}
	w.ended("taken_over", 1)
	for _, want := range []string{"lock", "unlock"} { // both were sent and not acknowledged
		m := truck.message()
		if string(m.Payload) != want || !m.Dup {
			t.Errorf("got %s, DUP %v; want %s with DUP", m.Payload, m.Dup, want)
		}
		truck.send((&packet.Ack{Type: packet.PUBACK, ID: m.ID}).Append(nil, packet.V5))
	}
	for id := uint16(7); id <= 8; id++ { // it sends again what was not acknowledged
		m := reading("fleet/truck/telemetry", 1, id)
		m.Dup = true
		truck.publish5(m)
		truck.wantAnswer(packet.PUBACK, id, 0)
	}
	w.paths[0].mend()
	for err := error(nil); err == nil; { // a DISCONNECT may come first
		_, _, err = old.tryRead()
		if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
			t.Error("the old connection stays open when its path heals")
		}
	}
	command(3, "honk")
	if m := truck.message(); string(m.Payload) != "honk" || m.Dup {
		t.Errorf("got %s, DUP %v", m.Payload, m.Dup)
	}
	truck.ping()
	if n := len(w.stored()); n != 3 { // one of them came twice; the fleet knows
		t.Errorf("%d stored, want 3: %v", n, w.stored())
	}
}

// A cable cut in the middle of a big packet: its reservation is given back when the connection ends, and nothing of it is stored.
func TestCutInBigPacket(t *testing.T) {
	w := newCutWorld(t, ingest.Limits{}, mqtt.Config{})
	other := w.over(1, packet.V311, "other")
	truck := w.over(0, packet.V311, "truck", keepAlive(1))
	big := packet.Publish{Topic: []byte("fleet/truck/telemetry"), QoS: 1, ID: 1, Payload: []byte(`{"x":"` + strings.Repeat("x", 100_000) + `"}`)}
	truck.send(big.Append(nil, packet.V311)[:60_000])
	for w.admit.InFlight() < 200_000 { // the packet, twice
		other.ping()
	}
	w.paths[0].cut()
	w.ended("keep_alive", 1)
	for w.admit.InFlight() != 0 {
		other.ping()
	}
	if got := w.stored(); len(got) != 0 {
		t.Errorf("stored %v", got)
	}
	w.paths[0].mend()
	truck = w.over(0, packet.V311, "truck")
	truck.publish5(big)
	truck.wantAnswer(packet.PUBACK, 1, 0)
}

// A cable cut while the server writes: the connection ends when nothing could be written for WriteTimeout, and other subscribers miss
// nothing.
func TestCutWhileWriting(t *testing.T) {
	w := newCutWorld(t, ingest.Limits{}, mqtt.Config{WriteTimeout: time.Second})
	pub, far, near := w.over(1, packet.V311, "pub"), w.over(0, packet.V311, "far", keepAlive(0)), w.over(1, packet.V311, "near")
	for _, p := range []*peer{far, near} {
		p.subscribe(1, packet.Filter{Filter: []byte("big/#"), QoS: 0})
	}
	w.paths[0].cut()
	payload := make([]byte, 100_000)
	sent := 0
	began := time.Now()
	for w.metric("milepost_ingest_mqtt_slow_readers_total") == 0 {
		if time.Since(began) > patience {
			t.Fatal("a connection that takes nothing was kept")
		}
		sent++
		payload[0] = byte(sent)
		id := uint16(sent%60000 + 1)
		pub.publish5(packet.Publish{Topic: []byte("big/x"), QoS: 1, ID: id, Payload: payload})
		pub.wantAnswer(packet.PUBACK, id, 0)
		if m := near.message(); m.Payload[0] != byte(sent) {
			t.Fatalf("the other subscriber got %d, want %d", m.Payload[0], byte(sent))
		}
	}
	w.ended("quota", 1)
	for w.connections() != 2 {
		pub.ping()
	}
}

// A bad network, a tenth of whose packets are lost in each direction, makes messages late and loses none.
func TestLossyNetwork(t *testing.T) {
	w := newCutWorld(t, ingest.Limits{}, mqtt.Config{})
	w.paths[0].lose(100, 100)
	w.paths[0].delay.Store(int64(10 * time.Millisecond))
	const devices, messages = 8, 100
	peers := make([]*peer, devices)
	for i := range peers {
		peers[i] = w.over(0, packet.V311, fmt.Sprintf("d%d", i))
	}
	var wg sync.WaitGroup
	for i, p := range peers {
		wg.Go(func() {
			for n := range messages {
				m := packet.Publish{Topic: fmt.Appendf(nil, "fleet/d%d/telemetry", i), QoS: 1, ID: uint16(n + 1), Payload: fmt.Appendf(nil, `{"speed":%d}`, n)}
				if _, err := p.conn.Write(m.Append(nil, p.version)); err != nil {
					t.Error(err)
					return
				}
			}
			for n := range messages {
				if first, body, err := p.tryRead(); err != nil || first != 0x40 || len(body) != 2 || body[1] != byte(n+1) {
					t.Errorf("d%d: want PUBACK of %d, got %x %x %v", i, n+1, first, body, err)
					return
				}
			}
		})
	}
	wg.Wait()
	stored := map[string]int{}
	for _, s := range w.stored() {
		stored[s]++
	}
	for i := range peers {
		for n := range messages {
			if key := fmt.Sprintf(`d%d {"speed":%d}`, i, n); stored[key] != 1 {
				t.Fatalf("%s is stored %d times", key, stored[key])
			}
		}
	}
}
