package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/milepost/milepost/ingest/mqtt/broker"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/stream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a store without a disk, for tests that move the clock.
type memory struct {
	mu   sync.Mutex
	kv   map[string][]byte
	fail error // of Update

	forgetful bool // keeps nothing, so that it has no memory to be counted
}

func newMemory() *memory { return &memory{kv: map[string][]byte{}} }

func (m *memory) Update(_ context.Context, f func(state.Tx) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	return f(memoryTx{m})
}

func (m *memory) View(_ context.Context, f func(state.Reader) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return f(memoryTx{m})
}

func (m *memory) broken(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

func (m *memory) keys() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.kv)
}

func (m *memory) Checkpoint(context.Context, string, stream.ShardID, int) (stream.Position, error) {
	panic("not used")
}
func (m *memory) Advance(context.Context, state.Step, func(state.Tx) error) error { panic("not used") }
func (m *memory) Pending(context.Context, string, int) ([]state.Effect, <-chan struct{}, error) {
	panic("not used")
}
func (m *memory) Done(context.Context, string, ...string) error { panic("not used") }
func (m *memory) Close() error                                  { return nil }

type memoryTx struct{ m *memory }

func (t memoryTx) Get(k []byte) ([]byte, error) { return t.m.kv[string(k)], nil }
func (t memoryTx) Set(k, v []byte) error {
	if !t.m.forgetful {
		t.m.kv[string(k)] = append([]byte{}, v...)
	}
	return nil
}
func (t memoryTx) Delete(k []byte) error { delete(t.m.kv, string(k)); return nil }
func (t memoryTx) DeleteRange(from, to []byte) error {
	for k := range t.m.kv {
		if k >= string(from) && (to == nil || k < string(to)) {
			delete(t.m.kv, k)
		}
	}
	return nil
}
func (t memoryTx) Emit(state.Effect) error { panic("not used") }
func (t memoryTx) Sync()                   {}
func (t memoryTx) Scan(from, to []byte, f func(k, v []byte) error) error {
	var keys []string
	for k := range t.m.kv {
		if k >= string(from) && (to == nil || k < string(to)) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		if err := f([]byte(k), t.m.kv[k]); errors.Is(err, state.ErrStop) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// A world is a broker that can be started again, and crash.
type world struct {
	t      testing.TB
	fs     *vfs.MemFS
	memory *memory
	store  state.Store
	limits broker.Limits
	b      *broker.Broker

	registry  *prometheus.Registry
	listening func(conn uint64, device, filter string)
}

// newWorld has a disk that can crash; newTimeless has only memory and suits synctest.
func newWorld(t testing.TB, l broker.Limits) *world {
	w := &world{t: t, fs: vfs.NewCrashable(), limits: l}
	w.open()
	t.Cleanup(w.close)
	return w
}

func newTimeless(t testing.TB, l broker.Limits) *world {
	w := &world{t: t, memory: newMemory(), limits: l}
	w.open()
	return w
}

func (w *world) open() {
	w.t.Helper()
	w.store = w.memory
	if w.fs != nil {
		s, err := local.Open(local.Config{FS: w.fs, Dir: "state", MemBytes: 1 << 20, CacheBytes: 1 << 20})
		if err != nil {
			w.t.Fatal(err)
		}
		w.store = s
	}
	cfg := broker.Config{Store: w.store, Limits: w.limits, Listening: w.listening}
	if w.registry != nil {
		cfg.Metrics = w.registry
	}
	b, err := broker.Open(context.Background(), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.b = b
}

func (w *world) close() {
	if err := w.b.Close(); err != nil {
		w.t.Error(err)
	}
	if err := w.store.Close(); err != nil {
		w.t.Error(err)
	}
}

func (w *world) restart() {
	w.t.Helper()
	w.close()
	w.open()
}

// crash goes on from what a power loss would have left.
func (w *world) crash(seed uint64) {
	w.t.Helper()
	after := w.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: int(seed%5) * 25, RNG: rand.New(rand.NewPCG(seed, 0))})
	w.close()
	w.fs = after
	w.open()
}

// A peer is a client and its connection.
type peer struct {
	w     *world
	s     *broker.Session
	wakes chan struct{}
	mu    sync.Mutex
	kicks []byte
}

func (p *peer) Wake() {
	select {
	case p.wakes <- struct{}{}:
	default:
	}
}

func (p *peer) Kick(reason byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kicks = append(p.kicks, reason)
}

func (p *peer) kicked() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.kicks)
}

func (w *world) connect(c broker.Connect) (*peer, bool) {
	w.t.Helper()
	p := &peer{w: w, wakes: make(chan struct{}, 1)}
	if c.Version == 0 {
		c.Version = 5
	}
	s, present, err := w.b.Connect(c, p)
	if err != nil {
		w.t.Fatal(err)
	}
	w.wait(s.Ticket())
	p.s = s
	return p, present
}

// clean and lasting connect with and without a session that outlives the connection.
func (w *world) clean(id string) *peer {
	w.t.Helper()
	p, _ := w.connect(broker.Connect{ClientID: id, Clean: true})
	return p
}

func (w *world) lasting(id string) *peer {
	w.t.Helper()
	p, _ := w.connect(broker.Connect{ClientID: id, Expiry: 3600})
	return p
}

func (w *world) wait(t broker.Ticket) {
	w.t.Helper()
	if err := w.b.Wait(context.Background(), t); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) publish(m broker.Message) broker.Receipt {
	w.t.Helper()
	r, err := w.b.Publish(&m)
	if err != nil {
		w.t.Fatal(err)
	}
	w.wait(r.Ticket)
	return r
}

// send publishes "topic qos payload", with "retain" at the end if it is to be retained.
func (w *world) send(words string) broker.Receipt {
	w.t.Helper()
	f := strings.Fields(words)
	m := broker.Message{Topic: []byte(f[0]), QoS: f[1][0] - '0'}
	if len(f) > 2 && f[2] != "-" {
		m.Payload = []byte(f[2])
	}
	m.Retain = len(f) > 3 && f[3] == "retain"
	return w.publish(m)
}

func (p *peer) subscribe(subs ...broker.Subscription) []byte {
	p.w.t.Helper()
	codes, t := p.s.Subscribe(subs, nil)
	p.w.wait(t)
	return codes
}

// sub subscribes with a QoS.
func (p *peer) sub(qos byte, filters ...string) {
	p.w.t.Helper()
	for _, f := range filters {
		if codes := p.subscribe(broker.Subscription{Filter: f, QoS: qos}); codes[0] != qos {
			p.w.t.Fatalf("subscribe %s: %#x", f, codes[0])
		}
	}
}

// pull returns what there is to send, after everything that is written is on disk.
func (p *peer) pull() []broker.Delivery {
	var out []broker.Delivery
	for {
		n := len(out)
		if out = p.s.Pull(out, 100); len(out) == n {
			// The journal may owe a wake. A synced write of another session is behind everything there is.
			r, err := p.w.b.Publish(&broker.Message{Topic: []byte("$barrier"), QoS: 1, Retain: true, Payload: []byte("x")})
			if err != nil {
				p.w.t.Fatal(err)
			}
			p.w.wait(r.Ticket)
			if out = p.s.Pull(out, 100); len(out) == n {
				return out
			}
		}
	}
}

// got describes what there is to send, and acknowledges nothing.
func (p *peer) got() string { return describe(p.pull()) }

func describe(ds []broker.Delivery) string {
	var out []string
	for _, d := range ds {
		if d.Release {
			s := fmt.Sprintf("pubrel %d", d.PacketID)
			if d.Reason != 0 {
				s += fmt.Sprintf(" reason=%#x", d.Reason)
			}
			out = append(out, s)
			continue
		}
		s := fmt.Sprintf("%s=%s q%d", d.Topic, d.Payload, d.QoS)
		if d.Dup {
			s += " dup"
		}
		if d.Retain {
			s += " retain"
		}
		if d.Expires {
			s += fmt.Sprintf(" expiry=%d", d.Expiry)
		}
		if len(d.SubscriptionIDs) > 0 {
			slices.Sort(d.SubscriptionIDs)
			s += fmt.Sprintf(" ids=%v", d.SubscriptionIDs)
		}
		if len(d.Properties) > 0 {
			s += fmt.Sprintf(" props=%x", bytes.Clone(d.Properties))
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}

// take acknowledges everything there is until there is nothing left, and describes it.
func (p *peer) take() string {
	var all []broker.Delivery
	for {
		ds := p.pull()
		if len(ds) == 0 {
			return describe(slices.DeleteFunc(all, func(d broker.Delivery) bool { return d.Release }))
		}
		all = append(all, ds...)
		p.ack(ds)
	}
}

func (p *peer) ack(ds []broker.Delivery) {
	for _, d := range ds {
		switch {
		case d.Release:
			p.s.Pubcomp(d.PacketID, 0)
		case d.QoS == 1:
			p.s.Puback(d.PacketID, 0)
		case d.QoS == 2:
			p.s.Pubrec(d.PacketID, 0)
		}
	}
}

func (p *peer) leave() { p.s.Disconnect(0, false) }

func want(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n got %s\nwant %s", what, got, want)
	}
}
