package mqtt_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	paho3 "github.com/eclipse/paho.mqtt.golang"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/mqtt"
	"github.com/milepost/milepost/ingest/mqtt/packet"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/stream/seglog"
	"github.com/milepost/milepost/telemetry"
)

// A badge is a Principal that a test gives out.
type badge struct {
	device, vehicle string
	expires         time.Time
}

func (b *badge) Device() string                  { return b.device }
func (b *badge) Vehicle() string                 { return b.vehicle }
func (b *badge) Expires() time.Time              { return b.expires }
func (b *badge) MayPublish(topic []byte) bool    { return strings.Contains(string(topic), b.vehicle) }
func (b *badge) MaySubscribe(filter string) bool { return strings.Contains(filter, b.vehicle) }

// A desk lets in clients whose user name is a vehicle, and writes down what it hears.
type desk struct {
	expires time.Time
	mu      sync.Mutex // guards lines
	lines   []string
}

func (d *desk) Authenticate(_ context.Context, c *mqtt.Credentials) (mqtt.Principal, error) {
	switch c.User {
	case "":
		return nil, &mqtt.Refusal{Class: "no_certificate", Text: "bring a certificate"}
	case "revoked":
		return nil, &mqtt.Refusal{Class: "revoked", Text: "the certificate is revoked"}
	}
	return &badge{device: "device-" + c.User, vehicle: c.User, expires: d.expires}, nil
}

func (d *desk) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}
func (d *desk) Connected(c *mqtt.Credentials, p mqtt.Principal) { d.note("in %s", p.Device()) }
func (d *desk) Disconnected(p mqtt.Principal, id, why string)   { d.note("out %s %s", id, why) }
func (d *desk) Refused(c *mqtt.Credentials, r *mqtt.Refusal) {
	d.note("refused %s %s", c.ClientID, r.Class)
}

func (d *desk) Rejected(p mqtt.Principal, topic, why, _ string) {
	d.note("rejected %s %s %s", p.Device(), topic, why)
}

func as(user string) func(*packet.Connect) {
	return func(c *packet.Connect) { c.HasUser, c.User = true, []byte(user) }
}

// Who a client is decides what it may do, and the journal hears of it.
func TestPrincipals(t *testing.T) {
	d := &desk{}
	var special []string
	w := newWorld(t, ingest.Limits{}, mqtt.Config{Authenticator: d, Journal: d, Special: func(p mqtt.Principal, topic string, payload []byte) bool {
		special = append(special, p.Device()+" "+topic+" "+string(payload))
		return strings.HasSuffix(topic, "/shadow/update")
	}})
	p := w.peer(packet.V5)
	if a := p.hello("a"); a.Code != packet.NotAuthorized || string(a.Properties.ReasonString) != "bring a certificate" {
		t.Errorf("%+v", a)
	}
	p.wantEnd()
	p = w.peer(packet.V5)
	if a := p.hello("r", as("revoked")); a.Code != packet.Banned {
		t.Errorf("%+v", a)
	}
	p.wantEnd()
	p = w.joined(packet.V5, "b", as("v1"))
	f := func(id uint16, topic, payload string, code byte) {
		t.Helper()
		p.publish5(packet.Publish{Topic: []byte(topic), QoS: 1, ID: id, Payload: []byte(payload)})
		p.wantAnswer(packet.PUBACK, id, code)
	}
	f(1, "fleet/v1/telemetry", `{"speed":1}`, 0)
	f(2, "fleet/v2/telemetry", `{"speed":1}`, packet.NotAuthorized)
	f(3, "fleet/v1/telemetry", `{"truck_id":"v2"}`, packet.NotAuthorized)
	f(4, "fleet/v11/telemetry", `{"speed":1}`, packet.NotAuthorized) // the policy lets it pass, the vehicle does not
	f(5, "$aws/things/v1/shadow/update", `{}`, 0)
	f(6, "$aws/things/v1/other", `{}`, packet.TopicNameInvalid)
	f(7, "$aws/things/v2/shadow/update", `{}`, packet.NotAuthorized)
	if codes := p.subscribe(8, packet.Filter{Filter: []byte("fleet/v1/#")}, packet.Filter{Filter: []byte("#")}); codes[0] != 0 || codes[1] != packet.NotAuthorized {
		t.Errorf("SUBACK %x", codes)
	}
	p.send([]byte{0xE0, 0})
	p.wantEnd()
	w.close()
	if diff := cmp.Diff([]string{"device-v1 $aws/things/v1/shadow/update {}", "device-v1 $aws/things/v1/other {}"}, special); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{`v1 {"speed":1}`}, w.stored()); diff != "" {
		t.Error(diff)
	}
	if n := len(w.letters()); n != 5 {
		t.Errorf("%d dead letters, want 5", n)
	}
	if diff := cmp.Diff([]string{
		"refused a no_certificate", "refused r revoked", "in device-v1", "rejected device-v1 fleet/v2/telemetry topic",
		"rejected device-v1 fleet/v1/telemetry vehicle_mismatch", "rejected device-v1 fleet/v11/telemetry vehicle_mismatch",
		"rejected device-v1 $aws/things/v1/other topic", "rejected device-v1 $aws/things/v2/shadow/update topic", "rejected device-v1 # topic",
		"out b client",
	}, d.lines); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
}

// A revocation ends live connections at once, and a certificate that runs out ends its connection.
func TestKickAndExpiry(t *testing.T) {
	d := &desk{}
	w := newWorld(t, ingest.Limits{}, mqtt.Config{Authenticator: d})
	a, b := w.joined(packet.V5, "a", as("v1")), w.joined(packet.V5, "b", as("v2"))
	if n := w.server.Kick(func(p mqtt.Principal) bool { return p.Device() == "device-v1" }, packet.AdministrativeAction); n != 1 {
		t.Errorf("kicked %d", n)
	}
	a.wantDisconnect(packet.AdministrativeAction)
	b.ping()
	d = &desk{expires: time.Now().Add(300 * time.Millisecond)}
	w = newWorld(t, ingest.Limits{}, mqtt.Config{Authenticator: d})
	c := w.joined(packet.V5, "c", as("v1"))
	c.wantDisconnect(packet.MaximumConnectTime)
	if a := w.peer(packet.V5).hello("c", as("v1")); a.Code != packet.NotAuthorized {
		t.Errorf("with an expired certificate: %+v", a)
	}
}

// A client that does not read what it asked for is ended, counted, and holds up nobody.
func TestSlowReader(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{WriteTimeout: 500 * time.Millisecond})
	slow, pub := w.joined(packet.V5, "slow"), w.joined(packet.V5, "pub")
	_ = slow.conn.(*net.TCPConn).SetReadBuffer(4 << 10) //nolint:errcheck,forcetypeassert // it is TCP
	slow.subscribe(1, packet.Filter{Filter: []byte("big/#"), QoS: 0})
	payload := make([]byte, 100_000)
	id := uint16(0)
	for w.metric("milepost_ingest_mqtt_slow_readers_total") == 0 {
		id++
		pub.publish5(packet.Publish{Topic: []byte("big/x"), QoS: 1, ID: id, Payload: payload})
		pub.wantAnswer(packet.PUBACK, id, 0)
	}
	w.joined(packet.V5, "other").ping()
}

// A client that pings and never reads fills its bound and is ended.
func TestPingerThatNeverReads(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{OutboundBytes: 10_000, WriteTimeout: time.Hour})
	pings := []byte(strings.Repeat("\xC0\x00", 10_000))
	// The receive buffer keeps its size: with a small one Linux drops segments that carry the acknowledgement of what this side sends,
	// and both directions then wait for each other's retransmission timers, for minutes. A new connection gets out of that too.
	for tried := 0; w.metric("milepost_ingest_mqtt_slow_readers_total") == 0; tried++ {
		if tried == 5 {
			t.Fatal("five connections that do not read were kept")
		}
		p := w.joined(packet.V5, "p")
		until := time.Now().Add(30 * time.Second)
		for at := 0; w.metric("milepost_ingest_mqtt_slow_readers_total") == 0 && time.Now().Before(until); {
			_ = p.conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			n, _ := p.conn.Write(pings[at:])
			at = (at + n) % 2 // half a packet, when the deadline came in its middle: the next write goes on there
		}
	}
}

func (w *world) metric(name string) float64 {
	w.t.Helper()
	families, err := w.reg.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return 0
}

// Hostile bytes end their own connection and nothing else (MQTT-4.13.1-1).
func TestHostileBytes(t *testing.T) {
	w := newWorld(t, ingest.Limits{MaxMessage: 2000}, mqtt.Config{})
	good := w.joined(packet.V5, "good")
	c := packet.Connect{Version: 5, Clean: true, ClientID: []byte("h"), Properties: packet.Properties{Has: packet.SetOf(packet.UserProperty), User: []packet.Pair{{Name: []byte("a"), Value: []byte("b")}}}}
	connect := c.Append(nil)
	s := packet.Subscribe{ID: 1, Filters: []packet.Filter{{Filter: []byte("a/b")}}}
	m := reading("fleet/v1/telemetry", 1, 1)
	all := m.Append(s.Append(append([]byte(nil), connect...), packet.SUBSCRIBE, 5), 5)
	for i := range all {
		for _, lie := range []byte{0, 0x7f, 0xff} {
			b := append([]byte(nil), all...)
			b[i] = lie
			conn, err := net.Dial("tcp", w.server.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write(b)
			_ = conn.(*net.TCPConn).CloseWrite() //nolint:errcheck,forcetypeassert // it is TCP
			_ = conn.SetDeadline(time.Now().Add(patience))
			buf := make([]byte, 4096)
			for {
				if _, err := conn.Read(buf); err != nil {
					if nerr, ok := errors.AsType[net.Error](err); ok && nerr.Timeout() {
						t.Fatalf("byte %d as %x: the connection stays open", i, lie)
					}
					break
				}
			}
			_ = conn.Close()
		}
	}
	good.ping()
}

// A fleet connects at once and sends its backlog, twice, cut off in the middle the first time: nothing that was acknowledged is missing,
// everybody gets through, and memory stays within its bound.
func TestStorm(t *testing.T) {
	devices, backlog := 400, 40
	if testing.Short() {
		devices = 100
	}
	const bound = 4 << 20
	w := newWorld(t, ingest.Limits{MaxMessage: 1000, MaxBody: 1000, InFlightBytes: bound}, mqtt.Config{})
	var mu sync.Mutex
	acked := map[string]bool{}
	most := int64(0)
	run := func(i, cut int) {
		conn, err := net.DialTimeout("tcp", w.server.Addr().String(), patience)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(3 * patience))
		c := packet.Connect{Version: 4, Clean: true, ClientID: fmt.Appendf(nil, "d%d", i)}
		b := c.Append(nil)
		for n := range backlog {
			m := packet.Publish{Topic: fmt.Appendf(nil, "fleet/v%d/telemetry", i), QoS: 1, ID: uint16(n + 1), Payload: fmt.Appendf(nil, `{"speed":%d}`, n)}
			b = m.Append(b, 4)
		}
		if _, err := conn.Write(b); err != nil {
			t.Error(err)
			return
		}
		buf := make([]byte, 4+4*backlog)
		got := 0
		for got < 4+4*cut {
			n, err := conn.Read(buf[got:])
			if err != nil {
				t.Errorf("device %d after %d bytes: %v", i, got, err)
				return
			}
			got += n
		}
		mu.Lock()
		defer mu.Unlock()
		most = max(most, w.admit.InFlight())
		for n := range (got - 4) / 4 {
			acked[fmt.Sprintf(`v%d {"speed":%d}`, i, n)] = true
		}
	}
	for _, cut := range []int{backlog / 2, backlog} {
		var wg sync.WaitGroup
		for i := range devices {
			wg.Go(func() { run(i, cut) })
		}
		wg.Wait()
	}
	if len(acked) != devices*backlog {
		t.Errorf("%d acknowledged, want %d", len(acked), devices*backlog)
	}
	if most > bound {
		t.Errorf("%d bytes in flight, %d are allowed", most, bound)
	}
	stored := map[string]bool{}
	for _, s := range w.stored() {
		stored[s] = true
	}
	for a := range acked {
		if !stored[a] {
			t.Fatalf("%s was acknowledged and is not stored", a)
		}
	}
}

// What was acknowledged is in the log after a power loss (P1).
func TestAcknowledgedSurvivesACrash(t *testing.T) {
	fs := vfs.NewCrashable()
	open := func(fs vfs.FS) (*seglog.Store, *seglog.Log, *seglog.Log) {
		store, err := seglog.Open(seglog.Config{Dir: "log", FS: fs})
		if err != nil {
			t.Fatal(err)
		}
		log, err := store.Ensure(t.Context(), "readings", seglog.StreamConfig{Shards: 4})
		if err != nil {
			t.Fatal(err)
		}
		dead, err := store.Ensure(t.Context(), "dead-letters", seglog.StreamConfig{})
		if err != nil {
			t.Fatal(err)
		}
		return store, log, dead
	}
	store, log, dead := open(fs)
	defer store.Close()
	w := &world{t: t, reg: prometheus.NewRegistry()}
	w.openBroker()
	defer w.closeBroker()
	admit, err := ingest.New(ingest.Config{Log: log, DeadLetters: dead, Catalog: telemetry.NewCatalog()})
	if err != nil {
		t.Fatal(err)
	}
	server, err := mqtt.Open(mqtt.Config{Address: "127.0.0.1:0", Broker: w.broker}, admit)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close(t.Context())
	p := &peer{device: dial(t, server.Addr()), version: packet.V5}
	p.hello("d")
	var all []byte
	const n = 500
	for id := uint16(1); id <= n; id++ {
		m := packet.Publish{Topic: []byte("fleet/v1/telemetry"), QoS: byte(1 + id%2), ID: id, Payload: fmt.Appendf(nil, `{"speed":%d}`, id%90)}
		if id%10 == 0 {
			m.Payload = []byte("nonsense")
		}
		all = m.Append(all, 5)
	}
	p.send(all)
	good, bad := 0, 0
	for range n / 2 { // the rest is under way
		_, body := p.read()
		if len(body) > 2 && body[2] >= 0x80 {
			bad++
		} else {
			good++
		}
	}
	lost := fs.CrashClone(vfs.CrashCloneCfg{})
	store2, log2, dead2 := open(lost)
	defer store2.Close() //nolint:errcheck // the test is over
	count := func(log stream.Log) int {
		shards, err := log.Shards(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		total := 0
		for _, sh := range shards {
			r, err := log.Read(t.Context(), sh.ID, "")
			if err != nil {
				t.Fatal(err)
			}
			for {
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				recs, err := r.Next(ctx, 1000)
				cancel()
				if err != nil {
					break
				}
				total += len(recs)
			}
			_ = r.Close()
		}
		return total
	}
	if got := count(log2); got < good {
		t.Errorf("%d acknowledged, %d in the log after the crash", good, got)
	}
	if got := count(dead2); got < bad {
		t.Errorf("%d refused, %d dead letters after the crash", bad, got)
	}
}

// The MQTT 3.1.1 client of Eclipse, as programs use it.
func TestPahoV3(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{WebSocketAddress: "127.0.0.1:0"})
	for _, url := range []string{"tcp://" + w.server.Addr().String(), "ws://" + w.server.WebSocketAddr().String() + "/mqtt"} {
		o := paho3.NewClientOptions().AddBroker(url).SetClientID("p").SetAutoReconnect(false).SetConnectTimeout(patience)
		c := paho3.NewClient(o)
		wait := func(t3 paho3.Token) {
			t.Helper()
			if !t3.WaitTimeout(patience) || t3.Error() != nil {
				t.Fatalf("%s: %v", url, t3.Error())
			}
		}
		wait(c.Connect())
		got := make(chan string, 10)
		wait(c.Subscribe("commands/#", 2, func(_ paho3.Client, m paho3.Message) { got <- string(m.Payload()) }))
		for qos := range byte(3) {
			wait(c.Publish("fleet/v1/telemetry", qos, false, `{"speed":1}`))
			wait(c.Publish("commands/x", qos, false, fmt.Sprint("q", qos)))
			if m := <-got; m != fmt.Sprint("q", qos) {
				t.Errorf("%s: got %s", url, m)
			}
		}
		c.Disconnect(100)
	}
	w.close()
	if n := len(w.stored()); n != 6 {
		t.Errorf("%d stored, want 6", n)
	}
}
