package mqtt_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/internal/memlog"
	"github.com/milepost/milepost/ingest/mqtt"
	"github.com/milepost/milepost/ingest/mqtt/broker"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come. What must not come is looked for after a round trip, never by waiting.
const patience = 10 * time.Second

type world struct {
	t         testing.TB
	log, dead memlog.Log
	reg       *prometheus.Registry
	admit     *ingest.Admitter
	fs        *vfs.MemFS // the broker's disk
	limits    broker.Limits
	cfg       mqtt.Config
	store     *local.Store
	broker    *broker.Broker
	server    *mqtt.Server
	closeOnce sync.Once
}

func newWorld(t testing.TB, limits ingest.Limits, cfg mqtt.Config) *world {
	t.Helper()
	w := &world{t: t, reg: prometheus.NewRegistry()}
	var err error
	w.admit, err = ingest.New(ingest.Config{
		Log: &w.log, DeadLetters: &w.dead, Catalog: telemetry.NewCatalog(), Limits: limits, Metrics: w.reg,
	})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Address == "" {
		cfg.Address = "127.0.0.1:0"
	}
	cfg.Metrics = w.reg
	w.cfg = cfg
	w.open()
	t.Cleanup(func() {
		w.close()
		if n := w.admit.InFlight(); n != 0 {
			t.Errorf("%d bytes are still in flight at the end", n)
		}
	})
	return w
}

// open begins to serve.
func (w *world) open() {
	w.t.Helper()
	w.openBroker()
	var err error
	w.cfg.Broker = w.broker
	if w.server, err = mqtt.Open(w.cfg, w.admit); err != nil {
		w.t.Fatal(err)
	}
	w.closeOnce = sync.Once{}
}

// restart closes server and broker, and opens them again on the same disk.
func (w *world) restart() {
	w.t.Helper()
	w.close()
	w.cfg.Metrics = nil // the first server's are still there
	w.open()
}

// openBroker gives the world a broker on a disk in memory.
func (w *world) openBroker() {
	w.t.Helper()
	var err error
	if w.fs == nil {
		w.fs = vfs.NewCrashable()
	}
	w.store, err = local.Open(local.Config{FS: w.fs, Dir: "state", MemBytes: 1 << 20, CacheBytes: 1 << 20})
	if err != nil {
		w.t.Fatal(err)
	}
	w.broker, err = broker.Open(w.t.Context(), broker.Config{Store: w.store, Limits: w.limits})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) closeBroker() {
	if err := w.broker.Close(); err != nil {
		w.t.Error(err)
	}
	if err := w.store.Close(); err != nil {
		w.t.Error(err)
	}
}

func (w *world) close() {
	w.closeOnce.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := w.server.Close(ctx); err != nil {
			w.t.Error(err)
		}
		if ctx.Err() != nil {
			w.t.Error("the server did not drain in time")
		}
		w.closeBroker()
	})
}

func (w *world) stored() []string {
	var out []string
	for _, r := range w.log.Records() {
		out = append(out, r.Key+" "+string(r.Data))
	}
	return out
}

func (w *world) letters() []stream.DeadLetter {
	w.t.Helper()
	var out []stream.DeadLetter
	for _, r := range w.dead.Records() {
		var d stream.DeadLetter
		if err := json.Unmarshal(r.Data, &d); err != nil {
			w.t.Fatal(err)
		}
		out = append(out, d)
	}
	return out
}

func (w *world) counter(name, reason string) float64 {
	w.t.Helper()
	families, err := w.reg.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "reason" && l.GetValue() == reason {
					sum += m.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}

// A device speaks MQTT 3.1.1 byte by byte, so that a test sees each packet.
type device struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

func text(s string) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...) }

func raw(first byte, parts ...[]byte) []byte {
	var body []byte
	for _, p := range parts {
		body = append(body, p...)
	}
	out := []byte{first}
	n := len(body)
	for {
		b := byte(n & 0x7f)
		if n >>= 7; n > 0 {
			b |= 0x80
		}
		out = append(out, b)
		if n == 0 {
			return append(out, body...)
		}
	}
}

func dial(t testing.TB, addr net.Addr) *device {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr.String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return &device{t: t, conn: conn, in: bufio.NewReader(conn)}
}

// connect returns the CONNACK's code.
func (d *device) connect(id, user, password string) byte {
	d.t.Helper()
	flags := byte(0x02)
	parts := [][]byte{text("MQTT"), {4, 0}, {0, 60}, text(id)}
	if user != "" {
		flags |= 0xC0
		parts = append(parts, text(user), text(password))
	}
	parts[1][1] = flags
	d.send(raw(0x10, parts...))
	first, body := d.read()
	if first != 0x20 || len(body) != 2 {
		d.t.Fatalf("want CONNACK, got %x %x", first, body)
	}
	return body[1]
}

func (d *device) send(b []byte) {
	d.t.Helper()
	if _, err := d.conn.Write(b); err != nil {
		d.t.Fatal(err)
	}
}

func publishPacket(qos byte, id uint16, dup bool, topic, payload string) []byte {
	first := 0x30 | qos<<1
	if dup {
		first |= 8
	}
	parts := [][]byte{text(topic)}
	if qos > 0 {
		parts = append(parts, binary.BigEndian.AppendUint16(nil, id))
	}
	return raw(first, append(parts, []byte(payload))...)
}

func (d *device) publish(qos byte, id uint16, topic, payload string) {
	d.t.Helper()
	d.send(publishPacket(qos, id, false, topic, payload))
}

func (d *device) read() (first byte, body []byte) {
	d.t.Helper()
	first, body, err := d.tryRead()
	if err != nil {
		d.t.Fatalf("read: %v", err)
	}
	return first, body
}

func (d *device) tryRead() (first byte, body []byte, err error) {
	if first, err = d.in.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(d.in) // the same encoding
	if err != nil {
		return 0, nil, err
	}
	body = make([]byte, n)
	_, err = io.ReadFull(d.in, body)
	return first, body, err
}

func (d *device) wantAck(id uint16) {
	d.t.Helper()
	first, body := d.read()
	if first != 0x40 || len(body) != 2 || binary.BigEndian.Uint16(body) != id {
		d.t.Fatalf("want PUBACK of %d, got %x %x", id, first, body)
	}
}

// wantEnd wants the connection to end without a further packet.
func (d *device) wantEnd() {
	d.t.Helper()
	first, body, err := d.tryRead()
	if err == nil {
		d.t.Fatalf("want the end of the connection, got %x %x", first, body)
	}
	if nerr, ok := errors.AsType[net.Error](err); ok && nerr.Timeout() {
		d.t.Fatal("the connection stays open")
	}
}

// ping makes a round trip: everything sent before has been dealt with.
func (d *device) ping() {
	d.t.Helper()
	d.send([]byte{0xC0, 0})
	if first, body := d.read(); first != 0xD0 {
		d.t.Fatalf("want PINGRESP, got %x %x", first, body)
	}
}

func (w *world) device(id string) *device {
	w.t.Helper()
	d := dial(w.t, w.server.Addr())
	if code := d.connect(id, "", ""); code != 0 {
		w.t.Fatalf("CONNACK %d", code)
	}
	return d
}

func (w *world) connections() float64 {
	families, _ := w.reg.Gather()
	open := 0.0
	for _, f := range families {
		if f.GetName() == "milepost_ingest_mqtt_connections" {
			for _, m := range f.GetMetric() {
				open += m.GetGauge().GetValue()
			}
			return open
		}
	}
	w.t.Fatal("no gauge of connections")
	return 0
}

func topics(patterns ...string) []mqtt.Topic {
	var out []mqtt.Topic
	for _, p := range patterns {
		out = append(out, mqtt.Topic{Pattern: p})
	}
	return out
}
