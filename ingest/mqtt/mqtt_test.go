package mqtt_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/internal/memlog"
	"github.com/milepost/milepost/ingest/mqtt"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// MQTT-4.3.2-4: the acknowledgement says that the message is the server's.
func TestPubackOnlyWhenDurable(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	d := w.device("d1")
	waiting := w.log.Hold()
	d.publish(1, 7, "fleet/v1/telemetry", `{"speed":50}`)
	<-waiting
	// The append is under way. Another device's round trip shows that the server is not merely slow to answer.
	w.device("d2").ping()
	if n := d.in.Buffered(); n > 0 {
		t.Errorf("%d bytes came before the record was durable", n)
	}
	w.log.Release()
	d.wantAck(7)
	if diff := cmp.Diff([]string{`v1 {"speed":50}`}, w.stored()); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}
}

// No PUBACK for what was not stored: the connection ends, the device connects again, sends again, and it is there once.
func TestNoPubackWhenNotStored(t *testing.T) {
	for _, fail := range []error{stream.ErrFenced, stream.ErrClosed} {
		w := newWorld(t, ingest.Limits{}, mqtt.Config{})
		w.log.Fail(fail, 0)
		d := w.device("d1")
		d.publish(1, 7, "fleet/v1/telemetry", `{"speed":50}`)
		d.wantEnd()
		w.log.Fail(nil, 0)
		d = w.device("d1")
		d.send(publishPacket(1, 7, true, "fleet/v1/telemetry", `{"speed":50}`))
		d.wantAck(7)
		if diff := cmp.Diff([]string{`v1 {"speed":50}`}, w.stored()); diff != "" {
			t.Errorf("%v: stored (-want +got):\n%s", fail, diff)
		}
	}
}

// A full disk refuses nobody: devices wait, and what they have sent is stored when there is room.
func TestFullDiskMakesDevicesWait(t *testing.T) {
	w := newWorld(t, ingest.Limits{MaxMessage: 1000, MaxBody: 1000, InFlightBytes: 100_000}, mqtt.Config{})
	w.log.Fail(stream.ErrFull, 1) // the first record of an append still fits
	d := w.device("d1")
	done := make(chan struct{})
	const n = 3000
	go func() { // waited for below
		defer close(done)
		for i := range n {
			if _, err := d.conn.Write(publishPacket(1, uint16(i+1), false, "fleet/v1/telemetry", fmt.Sprintf(`{"speed":%d,"x":"%s"}`, i%80, strings.Repeat("x", 700)))); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for w.admit.InFlight() < 40_000 {
		w.device("other").ping()
	}
	if got := w.admit.InFlight(); got > 100_000 {
		t.Errorf("%d bytes in flight, 100000 are allowed", got)
	}
	w.log.Fail(nil, 0)
	for i := range n {
		d.wantAck(uint16(i + 1))
	}
	<-done
	var speeds []string
	for i := range n {
		speeds = append(speeds, fmt.Sprintf(`v1 {"speed":%d,"x":"%s"}`, i%80, strings.Repeat("x", 700)))
	}
	if diff := cmp.Diff(speeds, w.stored()); diff != "" {
		t.Errorf("stored (-want +got):\n%.500s", diff)
	}
}

// An MQTT 3.1.1 device is acknowledged a bad message once that is durable as a dead letter, and not before.
func TestBadPayloadOnMQTT3(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	d := w.device("d1")
	waiting := w.dead.Hold()
	d.publish(1, 7, "fleet/v1/telemetry", "nonsense")
	<-waiting
	w.device("d2").ping()
	if n := d.in.Buffered(); n > 0 {
		t.Errorf("%d bytes came before the dead letter was durable", n)
	}
	w.dead.Release()
	d.wantAck(7)
	letters := w.letters()
	if len(letters) != 1 || string(letters[0].Data) != "nonsense" || letters[0].Source != "mqtt" || letters[0].Key != "v1" ||
		!strings.HasPrefix(letters[0].From, "d1 at 127.0.0.1:") || !strings.HasSuffix(letters[0].From, "topic fleet/v1/telemetry") {
		t.Errorf("dead letters %+v", letters)
	}
	// A refusal that cannot be kept is not acknowledged either.
	w.dead.Fail(stream.ErrFenced, 0)
	d.publish(1, 8, "fleet/v1/telemetry", "nonsense")
	d.wantEnd()
}

func TestTopics(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{Topics: topics("fleet/{vehicle}/telemetry", "old/+/data")})
	d := w.device("d1")
	f := func(id uint16, topic, payload string) {
		t.Helper()
		d.publish(1, id, topic, payload)
		d.wantAck(id)
	}
	f(1, "fleet/v1/telemetry", `[{"speed":1},{"truck_id":"v1"}]`)
	f(2, "old/x/data", "{\"truck_id\":\"v2\"}\n{\"truck_id\":\"v3\"}")
	f(3, "fleet/v1/telemetry", `{"truck_id":"v2"}`) // another vehicle's
	f(4, "fleet/v1/other", `{"speed":1}`)           // the broker's, as are the next two
	f(5, "fleet//telemetry", `{"truck_id":"v1"}`)
	f(6, "fleet/v1/telemetry/more", `{"speed":1}`)
	f(7, "$SYS/broker/version", "x") // the server's own
	f(8, "$aws/rules/readings/fleet/v4/telemetry", `{"speed":4}`)
	f(9, "$aws/rules/readings/elsewhere", `{"speed":4}`)
	f(10, "$aws/things/v1/shadow/update", `{}`)
	if diff := cmp.Diff([]string{`v1 {"speed":1}`, `v1 {"truck_id":"v1"}`, `v2 {"truck_id":"v2"}`, `v3 {"truck_id":"v3"}`, `v4 {"speed":4}`}, w.stored()); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}
	if n := len(w.letters()); n != 4 {
		t.Errorf("%d dead letters, want 4", n)
	}
	if got := w.counter("milepost_ingest_refused_total", "topic"); got != 3 {
		t.Errorf("refused for the topic: %v, want 3", got)
	}
}

func TestOversizePackets(t *testing.T) {
	w := newWorld(t, ingest.Limits{MaxMessage: 100_000}, mqtt.Config{})
	d := w.device("d1")
	big := `{"x":"` + strings.Repeat("x", 90_000) + `"}`
	d.publish(1, 1, "fleet/v1/telemetry", big)
	d.wantAck(1)
	// As large as a reading may not be, in a packet that is allowed: a dead letter.
	d.publish(1, 2, "fleet/v1/telemetry", `{"x":"`+strings.Repeat("x", 100_000)+`"}`)
	d.wantAck(2)
	if len(w.stored()) != 1 || len(w.letters()) != 1 {
		t.Errorf("%d stored, %d dead letters", len(w.stored()), len(w.letters()))
	}
	// Beyond the packet's limit nothing is read, let alone allocated: the header is enough.
	d.send([]byte{0x32, 0xff, 0xff, 0xff, 0x7f})
	d.wantEnd()
	d = dial(t, w.server.Addr())
	d.send(append([]byte{0x10, 0xff, 0xff, 0x07}, make([]byte, 100)...)) // a CONNECT of 128 KiB
	d.wantEnd()
	if got := w.counter("milepost_ingest_refused_total", "too_large"); got != 3 {
		t.Errorf("refused as too large: %v, want 3", got)
	}
}

// Connections that announce big packets hold what they announce; when that is all there is, others are not read from until
// it is given back.
func TestBigPacketsReserveMemory(t *testing.T) {
	w := newWorld(t, ingest.Limits{MaxMessage: 100_000, MaxBody: 100_000, InFlightBytes: 300_000}, mqtt.Config{})
	payload := `{"x":"` + strings.Repeat("x", 90_000) + `"}`
	whole := publishPacket(1, 1, false, "fleet/v1/telemetry", payload)
	d1, d2 := w.device("d1"), w.device("d2")
	d1.send(whole[:5000])
	for w.admit.InFlight() == 0 { // ends when d1's announcement has been read
		w.device("other").ping()
	}
	held := w.admit.InFlight()
	if held < int64(2*len(payload)) || held > 300_000 {
		t.Errorf("%d bytes in flight for a packet of %d", held, len(payload))
	}
	d2.send(whole)
	w.device("other").ping()
	if got := w.admit.InFlight(); got != held {
		t.Errorf("%d bytes in flight with a second packet waiting, want %d", got, held)
	}
	if len(w.stored()) != 0 {
		t.Error("the second packet did not wait")
	}
	d1.send(whole[5000:])
	d1.wantAck(1)
	d1.ping() // has it gone on to the next packet, and so given back
	d2.wantAck(1)
	// A connection that breaks in the middle gives back too.
	d2.ping()
	d1.send(whole[:5000])
	for w.admit.InFlight() == 0 {
		w.device("other").ping()
	}
	_ = d1.conn.Close()
	for w.admit.InFlight() != 0 {
		w.device("other").ping()
	}
}

func TestQoS0(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	d := w.device("d1")
	waiting := w.log.Hold()
	d.publish(0, 0, "fleet/v1/telemetry", `{"x":0}`)
	<-waiting
	for range 99 { // gather while the first is being stored
		d.publish(0, 0, "fleet/v1/telemetry", `{"x":1}`)
	}
	d.publish(0, 0, "fleet/v1/telemetry", `nonsense`)
	d.publish(0, 0, "elsewhere", `{"x":1}`)
	d.ping() // QoS 0 waits for no disk
	w.log.Release()
	w.close() // stores what is queued
	if n := len(w.stored()); n != 100 {
		t.Errorf("%d stored, want 100", n)
	}
	if n := w.log.Appends(); n != 2 {
		t.Errorf("in %d appends, want 2", n)
	}
	if n := len(w.letters()); n != 1 {
		t.Errorf("%d dead letters, want 1", n)
	}
}

// A flood of QoS 0 with a log that hangs holds a bounded number of bytes; the rest is dropped and counted.
func TestQoS0IsBounded(t *testing.T) {
	const most = 400_000
	w := newWorld(t, ingest.Limits{MaxMessage: 1000, MaxBody: 1000, InFlightBytes: most}, mqtt.Config{})
	w.log.Hold()
	d := w.device("d1")
	const n = 2000
	for range n {
		d.publish(0, 0, "fleet/v1/telemetry", `{"x":"`+strings.Repeat("x", 500)+`"}`)
	}
	d.ping()
	if got := w.admit.InFlight(); got > most/2 { // a batch being stored and one that gathers, a quarter each
		t.Errorf("%d bytes in flight, %d are QoS 0's", got, most/2)
	}
	dropped := w.counter("milepost_ingest_refused_total", "in_flight")
	w.log.Release()
	w.close()
	if stored := len(w.stored()); dropped == 0 || stored+int(dropped) != n {
		t.Errorf("%d stored and %v counted as dropped of %d", stored, dropped, n)
	}
}

func TestRateSlowsADeviceDown(t *testing.T) {
	w := newWorld(t, ingest.Limits{RatePerDevice: 20, BurstPerDevice: 1}, mqtt.Config{})
	d, other := w.device("d1"), w.device("d2")
	start := time.Now()
	for id := uint16(1); id <= 5; id++ {
		d.publish(1, id, "fleet/v1/telemetry", `{"speed":1}`)
	}
	other.publish(1, 1, "fleet/v2/telemetry", `{"speed":1}`)
	other.wantAck(1) // is not held up
	for id := uint16(1); id <= 5; id++ {
		d.wantAck(id)
	}
	d.publish(1, 6, "fleet/v1/telemetry", `{"speed":1}`) // pays for what came at once
	d.wantAck(6)
	if took := time.Since(start); took < 190*time.Millisecond { // a lower bound: machines are slow, never fast
		t.Errorf("6 messages at 20/s took %s", took)
	}
	if n := len(w.stored()); n != 7 {
		t.Errorf("%d stored, want 7", n)
	}
	d.publish(0, 0, "fleet/v1/telemetry", `{"speed":1}`)
	d.publish(0, 0, "fleet/v1/telemetry", `{"speed":1}`)
	d.ping()
	w.close()
	if got := w.counter("milepost_ingest_refused_total", "rate"); got+float64(len(w.stored())) != 9 {
		t.Errorf("%v dropped over the rate and %d stored of 9", got, len(w.stored()))
	}
}

func TestUsers(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{Users: []mqtt.User{
		{Name: "truck", Password: "secret", Vehicle: "v1"}, {Name: "gateway", Password: "other"},
	}})
	f := func(user, password string, want byte) *device {
		t.Helper()
		d := dial(t, w.server.Addr())
		if got := d.connect("d-"+user, user, password); got != want {
			t.Errorf("user %q: CONNACK %d, want %d", user, got, want)
		}
		return d
	}
	f("", "", 5)
	f("truck", "wrong", 5)
	f("nobody", "secret", 5)
	d := f("gateway", "other", 0)
	d.publish(1, 1, "fleet/v7/telemetry", `{"speed":1}`)
	d.wantAck(1)
	d = f("truck", "secret", 0)
	d.publish(1, 1, "fleet/v1/telemetry", `{"speed":1}`)
	d.wantAck(1)
	d.publish(1, 2, "fleet/v2/telemetry", `{"speed":1}`)
	d.wantAck(2)
	if diff := cmp.Diff([]string{`v7 {"speed":1}`, `v1 {"speed":1}`}, w.stored()); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}
	if letters := w.letters(); len(letters) != 1 || letters[0].Key != "" {
		t.Errorf("dead letters %+v", letters)
	}
	if got := w.counter("milepost_ingest_refused_total", "auth"); got != 3 {
		t.Errorf("refused: %v, want 3", got)
	}
}

func TestSubscriptions(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{Users: []mqtt.User{{Name: "u", Password: "p", Vehicle: "v1"}}})
	d := dial(t, w.server.Addr())
	if code := d.connect("v1", "u", "p"); code != 0 {
		t.Fatalf("CONNACK %d", code)
	}
	f := func(filter string, want byte) {
		t.Helper()
		d.send(raw(0x82, []byte{0, 1}, text(filter), []byte{0}))
		first, body := d.read()
		if first != 0x90 || len(body) != 3 || body[2] != want {
			t.Errorf("SUBSCRIBE %s: %x %x, want %x", filter, first, body, want)
		}
	}
	f("fleet/v1/commands", 0)
	f("fleet/v1/#", 0)
	f("fleet/v1", 0x80)
	f("fleet/v2/#", 0x80)
	f("fleet/+/telemetry", 0x80)
	f("#", 0x80)
	f("$SYS/#", 0x80)
	d.publish(0, 0, "fleet/v1/telemetry", `{"speed":1}`)
	if first, body := d.read(); first != 0x30 || !strings.HasSuffix(string(body), `{"speed":1}`) {
		t.Errorf("want the message that the device itself has published, got %x %q", first, body)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{MaxConnections: 2})
	a := w.device("a")
	silent := dial(t, w.server.Addr()) // counts before it has said anything
	for w.connections() != 2 {
		a.ping()
	}
	dial(t, w.server.Addr()).wantEnd()
	_ = silent.conn.Close()
	for w.connections() != 1 {
		a.ping()
	}
	w.device("c").ping()
}

// Close lets what is being stored be acknowledged, and then ends the connections.
func TestCloseAnswersWhatIsUnderWay(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	d, idle := w.device("d1"), w.device("d2")
	dial(t, w.server.Addr()) // has not said CONNECT
	waiting := w.log.Hold()
	d.publish(1, 7, "fleet/v1/telemetry", `{"speed":50}`)
	<-waiting
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		w.close()
	}()
	idle.wantEnd()
	w.log.Release()
	d.wantAck(7)
	d.wantEnd()
	<-closed
}

// When its context ends, Close does not wait for a log that hangs.
func TestCloseGivesUp(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	d := w.device("d1")
	waiting := w.log.Hold()
	d.publish(1, 7, "fleet/v1/telemetry", `{"speed":50}`)
	d2 := w.device("d2")
	d2.publish(0, 0, "fleet/v1/telemetry", `{"speed":50}`)
	<-waiting
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.server.Close(ctx); err != nil {
		t.Error(err)
	}
	d.wantEnd()
	if len(w.stored()) != 0 {
		t.Error("stored although the log hung")
	}
}

// A will on a mapped topic is stored like a message of QoS 0, and reaches those who subscribe to it.
func TestWill(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	v1 := w.device("v1")
	v1.send(raw(0x82, []byte{0, 1}, text("fleet/v1/#"), []byte{0}))
	if first, body := v1.read(); first != 0x90 || body[2] != 0 {
		t.Fatalf("SUBACK %x %x", first, body)
	}
	d := dial(t, w.server.Addr())
	d.send(raw(0x10, text("MQTT"), []byte{4, 0x06 | 0x20, 0, 60}, text("d1"), text("fleet/v1/telemetry"), text(`{"status":"lost"}`)))
	if first, body := d.read(); first != 0x20 || body[1] != 0 {
		t.Fatalf("CONNACK %x %x", first, body)
	}
	_ = d.conn.Close()
	if first, body := v1.read(); first != 0x30 || !strings.HasSuffix(string(body), `{"status":"lost"}`) {
		t.Errorf("want the will, got %x %q", first, body)
	}
	w.close()
	if diff := cmp.Diff([]string{`v1 {"status":"lost"}`}, w.stored()); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}
}

// MQTT over TLS, a transport as MQTT-4.2.0-1 asks for.
func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	w := newWorld(t, ingest.Limits{}, mqtt.Config{
		TLSAddress: "127.0.0.1:0", TLS: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
	})
	conn, err := tls.Dial("tcp", w.server.TLSAddr().String(), &tls.Config{RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	d := &device{t: t, conn: conn, in: bufio.NewReader(conn)}
	if code := d.connect("d1", "", ""); code != 0 {
		t.Fatalf("CONNACK %d", code)
	}
	d.publish(1, 1, "fleet/v1/telemetry", `{"x":"`+strings.Repeat("x", 50_000)+`"}`)
	d.wantAck(1)
	plain := dial(t, w.server.TLSAddr())
	plain.send(raw(0x10, text("MQTT"), []byte{4, 2, 0, 60}, text("d2"))) // does not speak TLS
	for {
		if _, err := plain.in.ReadByte(); err != nil { // after an alert, which is TLS's to send
			break
		}
	}
	if len(w.stored()) != 1 {
		t.Errorf("%d stored, want 1", len(w.stored()))
	}
}

func TestConfigsThatMakeNoSense(t *testing.T) {
	admit, err := ingest.New(ingest.Config{Log: &memlog.Log{}, DeadLetters: &memlog.Log{}, Catalog: telemetry.NewCatalog()})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t}
	w.openBroker()
	defer w.closeBroker()
	for _, cfg := range []mqtt.Config{
		{},
		{TLSAddress: "127.0.0.1:0"},
		{Address: "127.0.0.1:0", Topics: topics("")},
		{Address: "127.0.0.1:0", Topics: topics("fleet/#/x")},
		{Address: "127.0.0.1:0", Topics: topics("fleet/x{vehicle}")},
		{Address: "127.0.0.1:0", Topics: topics("{vehicle}/{vehicle}")},
		{Address: "127.0.0.1:0", Topics: topics("$share/{vehicle}")},
		{Address: "127.0.0.1:0", Users: []mqtt.User{{Name: "a"}}},
		{Address: "127.0.0.1:0", Users: []mqtt.User{{Name: "a", Password: "b"}, {Name: "a", Password: "c"}}},
		{Address: "256.0.0.1:0"},
	} {
		cfg.Broker = w.broker
		if s, err := mqtt.Open(cfg, admit); err == nil {
			t.Errorf("opened with %+v", cfg)
			_ = s.Close(t.Context())
		}
	}
}
