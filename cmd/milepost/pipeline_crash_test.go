package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.uber.org/goleak"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/internal/conf"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

var (
	crashes   = flag.Int("crashes", 0, "how often TestPipelineCrash takes the power away; 0: 60, with -short 12")
	crashSeed = flag.Uint64("crash-seed", 0, "seed of TestPipelineCrash; 0: a new one")
)

// TestPipelineCrash takes the power away from the whole machine at random moments: log, state, archive, fleet, rules and outbox
// over one file system, which forgets what was not synced, all of it or a random part. Shards are split and merged. Vehicles meanwhile send batches with
// duplicates, readings out of order, backlogs of days ago and payloads that are none. In the end every acknowledged reading is in
// log, state, daily figures and archive exactly once, every episode is one alert that was told under one ID, and every refused
// payload is one dead letter (P1, P3, P4, P5, P7). There is no SQL and no socket in it: those hold nothing durable.
func TestPipelineCrash(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	n := *crashes
	if n == 0 {
		n = 60
		if testing.Short() {
			n = 12
		}
	}
	seed := *crashSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("%d crashes, -crash-seed %d", n, seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	c := &crashTest{t: t, rng: rng, now: time.Now(), disk: vfs.NewCrashable(), told: map[string]string{}, perhaps: map[string]bool{}, world: newCrashWorld()}
	c.heard.L = &c.mu
	for range onTheRoad {
		c.addVehicle()
	}
	for round := range n {
		c.round(round)
		if t.Failed() {
			t.Fatalf("after crash %d", round)
		}
	}
	c.finish()
}

// crashTest is what the world outside knows: what was sent, and what was answered before the power went.
type crashTest struct {
	t      *testing.T
	rng    *rand.Rand // of the test's goroutine only
	now    time.Time
	disk   *vfs.MemFS
	events int          // made so far
	full   atomic.Bool  // the disk
	fulls  atomic.Int64 // how often it was

	mu       sync.Mutex // guards what follows
	vehicles []*crashVehicle
	gone     bool              // the power is off: what is answered from now on was never said
	acted    int               // acts acknowledged in this round
	moment   chan struct{}     // closed at act number until, and then nil
	until    int               // of this round
	cloned   bool              // the power was off: what is told from now on nobody hears
	told     map[string]string // notification ID → its text
	perhaps  map[string]bool   // those told between the two: the disk may know that they were, or not even that they are due
	heard    sync.Cond         // told has grown
	world    *crashWorld
}

// machine opens every room that needs only a file system.
func (c *crashTest) machine(flushAge time.Duration) (*server, error) {
	var cfg Config
	if err := conf.Load(nil, &cfg); err != nil {
		c.t.Fatal(err)
	}
	cfg.Data = "data"
	cfg.Stream.Shards, cfg.Stream.Segment, cfg.Stream.Reserve = 3, 64<<10, 0
	cfg.Archive.FlushRows, cfg.Archive.FlushAge = 300, conf.Duration(flushAge)
	cfg.Fleet.Commit = conf.Duration(8 * time.Millisecond)
	cfg.Limits.Rate = 0
	c.functions(&cfg)
	s := newServer(&cfg, slog.New(&toldHandler{c: c}))
	return s, s.open(c.t.Context(), errorfs.Wrap(c.disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if c.full.Load() && (op.Kind == errorfs.OpFileWrite || op.Kind == errorfs.OpFileWriteAt || op.Kind == errorfs.OpCreate) {
			return syscall.ENOSPC
		}
		return nil
	})), s.rooms()...)
}

// round opens the machine, lets vehicles send, and takes the power away: at a number of acknowledgements, or after a moment, which
// may lie in the opening.
func (c *crashTest) round(n int) {
	c.t.Helper()
	moment := make(chan struct{})
	c.mu.Lock()
	c.gone, c.cloned, c.acted, c.moment, c.until = false, false, 0, moment, 1+c.rng.IntN(400)
	c.mu.Unlock()
	early := time.Duration(-1)
	if n%4 == 3 {
		early = time.Duration(c.rng.IntN(20_000)) * time.Microsecond
	}
	clones := make(chan *vfs.MemFS, 1)
	percent, seed := c.rng.IntN(101), c.rng.Uint64()
	if n%5 == 0 {
		percent = 0 // nothing unsynced survives
	}
	disk := c.disk
	powerOff := func() {
		// What was acknowledged before this line must be there; what is answered after it never was, for all the world knows.
		c.mu.Lock()
		c.gone = true
		c.mu.Unlock()
		clone := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(seed, 1))})
		c.mu.Lock()
		c.cloned = true
		c.mu.Unlock()
		clones <- clone
	}
	if early >= 0 {
		time.AfterFunc(early, powerOff) // waited for by clones
	}
	s, err := c.machine(time.Duration(1+c.rng.IntN(60)) * time.Millisecond)
	if err != nil {
		c.t.Fatalf("open on what crash %d left: %v", n, err)
	}
	ctx, stop := context.WithCancel(c.t.Context())
	var wg sync.WaitGroup
	for i, v := range c.vehicles {
		r := rand.New(rand.NewPCG(seed, uint64(i)+2))
		wg.Go(func() { c.drive(ctx, s, v, r) })
	}
	wg.Go(func() { c.compact(ctx, s) })
	if n%3 == 1 {
		r := rand.New(rand.NewPCG(seed, 2000))
		wg.Go(func() { c.fill(ctx, r) })
	}
	for i, name := range []string{readingsStream, eventsStream} {
		r := rand.New(rand.NewPCG(seed, uint64(i)+1000))
		wg.Go(func() { c.reshard(ctx, s, name, r) })
	}
	if early < 0 {
		<-moment
		powerOff()
	}
	c.disk = <-clones
	stop()
	wg.Wait()
	c.full.Store(false)
	// The old machine is gone; its goroutines must end all the same, and what they say counts no more.
	dead, cancel := context.WithCancel(context.Background())
	cancel()
	_ = s.closeRooms(dead)
	c.replaceFinished()
}

// finish lets all vehicles come to the end of their scripts and checks everything, on the running machine and after a restart.
func (c *crashTest) finish() {
	c.t.Helper()
	c.mu.Lock()
	c.gone, c.cloned, c.until = false, false, -1
	c.mu.Unlock()
	s, err := c.machine(time.Hour)
	if err != nil {
		c.t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i, v := range c.vehicles {
		r := rand.New(rand.NewPCG(uint64(i), 3))
		wg.Go(func() { c.drive(c.t.Context(), s, v, r) })
	}
	wg.Wait()
	c.t.Logf("the disk was full %d times", c.fulls.Load())
	c.check(s, "running", false)
	if err := s.closeRooms(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
	if s, err = c.machine(time.Millisecond); err != nil {
		c.t.Fatal(err)
	}
	c.check(s, "after a restart", true)
	if err := s.closeRooms(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
}

// fill lets the disk be full for a moment: whoever cannot write waits, and goes on by itself.
func (c *crashTest) fill(ctx context.Context, rng *rand.Rand) {
	pause := func() {
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(rng.IntN(40)) * time.Millisecond):
		}
	}
	pause()
	c.fulls.Add(1)
	c.full.Store(true)
	pause()
	c.full.Store(false)
}

// compact merges what there is, as if every day were over, again and again.
func (c *crashTest) compact(ctx context.Context, s *server) {
	for ctx.Err() == nil {
		n, err := s.archive.Compact(ctx, c.now.Add(48*time.Hour))
		if err != nil && ctx.Err() == nil && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, state.ErrFull) {
			c.t.Errorf("compact: %v", err)
			return
		}
		if n == 0 {
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond): // nothing tells when there is more to merge
			}
		}
	}
}

// A crashVehicle sends a script: one second of event time a reading, one overspeed and one hot engine on the way.
type crashVehicle struct {
	id     string
	base   int64 // event time of reading 0
	late   bool  // days ago: alerts tell nobody
	acts   []act
	next   int             // the first act not acknowledged
	sent   map[string]bool // payloads that may not be sent twice, because they cannot be told apart: sent
	answer map[string]bool // those: acknowledged
}

// An act is one thing a vehicle does and waits for.
type act struct {
	readings []int  // by number
	refused  string // a payload that no door takes
	foreign  string // a record that someone appends to the stream and that is no reading
	event    string // a record for the stream of events, which functions read
}

const (
	scriptReadings = 240
	onTheRoad      = 16 // vehicles at one time
)

// scriptAlerts are the rules that fire for a script, once each.
func scriptAlerts() []string {
	return []string{"engine_overheating", "engine_temperature", "overspeed"}
}

func (c *crashTest) addVehicle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.vehicles)
	v := &crashVehicle{id: fmt.Sprintf("crash-%03d", n), sent: map[string]bool{}, answer: map[string]bool{}}
	v.base = c.now.Add(-10 * time.Minute).UnixMilli()
	if n%3 == 2 { // over midnight, so that the archive has two days of it
		v.late, v.base = true, c.now.UTC().Truncate(24*time.Hour).AddDate(0, 0, -3).Add(-110*time.Second).UnixMilli()
	}
	for i := 0; i < scriptReadings; {
		size := min(1+c.rng.IntN(6), scriptReadings-i)
		a := act{}
		for range size {
			a.readings = append(a.readings, i)
			i++
		}
		c.rng.Shuffle(len(a.readings), func(x, y int) { a.readings[x], a.readings[y] = a.readings[y], a.readings[x] })
		for c.rng.IntN(3) == 0 {
			a.readings = append(a.readings, c.rng.IntN(i))
		}
		if c.rng.IntN(10) == 0 {
			a.refused = fmt.Sprintf(`{"vehicle_id":%q,"ts":"garbled %d"}`, v.id, i)
		}
		v.acts = append(v.acts, a)
		if c.rng.IntN(20) == 0 {
			v.acts = append(v.acts, act{foreign: fmt.Sprintf("no reading %s %d", v.id, i)})
		}
		if c.rng.IntN(5) == 0 {
			v.acts = append(v.acts, act{event: c.event(v)})
		}
	}
	c.vehicles = append(c.vehicles, v)
}

// replaceFinished lets as many vehicles drive as before.
func (c *crashTest) replaceFinished() {
	driving := 0
	for _, v := range c.vehicles {
		if v.next < len(v.acts) {
			driving++
		}
	}
	for ; driving < onTheRoad; driving++ {
		c.addVehicle()
	}
}

func (v *crashVehicle) reading(i int) string {
	speed, engine := 50+i%7, 88+i%5
	if i >= 60 && i < 120 {
		speed = 95 + i%3
	}
	if i >= 100 && i < 180 {
		engine = 120
	}
	return fmt.Sprintf(`{"vehicle_id":%q,"ts":%q,"lat":%.4f,"lon":5.2,"speed":%d,"engine_temp":%d,"fuel":%d}`,
		v.id, time.UnixMilli(v.time(i)).UTC().Format("2006-01-02T15:04:05.000Z"), 52+float64(i)/1000, speed, engine, 90-i%40)
}

func (v *crashVehicle) time(i int) int64 { return v.base + int64(i)*1000 }

// drive does what is left of a vehicle's script, again from the first act that nobody acknowledged, as devices do.
func (c *crashTest) drive(ctx context.Context, s *server, v *crashVehicle, rng *rand.Rand) {
	door := s.admit.Door("test")
	for v.next < len(v.acts) && ctx.Err() == nil {
		a := &v.acts[v.next]
		once, err := c.act(ctx, s, door, v, a)
		c.mu.Lock()
		if c.gone {
			c.mu.Unlock()
			return
		}
		if errors.Is(err, stream.ErrFull) {
			c.mu.Unlock()
			time.Sleep(time.Millisecond) // as a device does: nothing tells when there is room again
			continue
		}
		if err != nil {
			c.t.Errorf("%s: not stored: %v", v.id, err)
			c.off()
			c.mu.Unlock()
			return
		}
		v.next++
		if once != "" {
			v.answer[once] = true
		}
		c.acted++
		if c.acted == c.until || !c.left() {
			c.off()
		}
		c.mu.Unlock()
		if rng.IntN(8) == 0 {
			select { // a breath, so that lanes commit between the batches too
			case <-ctx.Done():
			case <-time.After(time.Duration(rng.IntN(3000)) * time.Microsecond):
			}
		}
	}
}

// off says that the moment has come to take the power away, at the latest; the caller holds mu.
func (c *crashTest) off() {
	if c.moment != nil {
		close(c.moment)
		c.moment = nil
	}
}

// left tells whether any script goes on; the caller holds mu.
func (c *crashTest) left() bool {
	for _, v := range c.vehicles {
		if v.next < len(v.acts) {
			return true
		}
	}
	return false
}

// act does one act and returns what of it cannot be sent again, if anything. An error: not all of it was acknowledged.
func (c *crashTest) act(ctx context.Context, s *server, door *ingest.Door, v *crashVehicle, a *act) (once string, err error) {
	if a.foreign != "" {
		if !c.first(v, a.foreign) {
			return "", nil
		}
		err = s.readings.Append(context.WithoutCancel(ctx), []stream.Record{{Key: v.id, Data: []byte(a.foreign)}})
		return a.foreign, err
	}
	if a.event != "" { // it may be sent again: each is an event of its own
		events, err := s.logs.Stream(eventsStream)
		if err != nil {
			return "", err
		}
		return a.event, events.Append(context.WithoutCancel(ctx), []stream.Record{{Key: v.id, Data: []byte(a.event)}})
	}
	var b bytes.Buffer
	for _, i := range a.readings {
		b.WriteString(v.reading(i))
		b.WriteByte('\n')
	}
	refused := 0
	if a.refused != "" && c.first(v, a.refused) {
		b.WriteString(a.refused)
		once, refused = a.refused, 1
	}
	var r ingest.Receipt
	door.Admit(context.WithoutCancel(ctx), ingest.Payload{Data: b.Bytes(), From: "test"}, &r)
	if r.Failed > 0 || r.DeadLetterErr != nil {
		return "", errors.Join(r.Err, r.DeadLetterErr)
	}
	if r.Accepted != len(a.readings) || r.Refused != refused {
		c.t.Errorf("%s: accepted %d and refused %d of %d and %d: %v", v.id, r.Accepted, r.Refused, len(a.readings), refused, r.Problems)
	}
	return once, nil
}

// first tells whether a payload that must not be sent twice may be sent: nobody can know whether an unanswered one arrived.
func (c *crashTest) first(v *crashVehicle, payload string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v.sent[payload] {
		return false
	}
	v.sent[payload] = true
	return true
}

// toldHandler hears what the log sink tells of alerts, and is the test's voice for everything that should not happen.
type toldHandler struct{ c *crashTest }

func (h *toldHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h *toldHandler) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h *toldHandler) WithGroup(string) slog.Handler            { return h }

func (h *toldHandler) Handle(_ context.Context, r slog.Record) error {
	c := h.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cloned {
		return nil
	}
	if r.Level >= slog.LevelError && !c.gone && !aboutFullDisk(attrsOf(r)) {
		c.t.Errorf("%s %s", r.Message, attrsOf(r))
	}
	if r.Message != "alert" {
		return nil
	}
	at := attrsOf(r)
	id := at["notification"]
	if c.gone {
		c.perhaps[id] = true
		return nil
	}
	text := fmt.Sprint(at["transition"], at["rule"], at["vehicle"], at["severity"], at["summary"])
	if before, ok := c.told[id]; ok && before != text {
		c.t.Errorf("notification %s was %q and is %q", id, before, text)
	}
	c.told[id] = text
	c.heard.Broadcast()
	return nil
}

// aboutFullDisk tells whether a line of the log says that the disk is full, which it may be.
func aboutFullDisk(attrs map[string]string) bool {
	for _, v := range attrs {
		if strings.Contains(v, syscall.ENOSPC.Error()) || strings.Contains(v, "disk is full") {
			return true
		}
	}
	return false
}

func attrsOf(r slog.Record) map[string]string {
	m := map[string]string{}
	r.Attrs(func(a slog.Attr) bool {
		m[a.Key] = a.Value.String()
		return true
	})
	return m
}
