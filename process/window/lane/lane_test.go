package lane

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/processtest"
	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A yard is a log and a store over which runners with windows come and go.
type yard struct {
	t      testing.TB
	fs     *vfs.MemFS
	log    *processtest.Log
	store  *local.Store
	stream string
	lines  map[string]string
	w      *Windows
	r      *process.Runner
	out    *processtest.Log
	box    *process.Outbox
}

func newYard(t testing.TB, shards int, streamName string, lines map[string]string) *yard {
	y := &yard{t: t, fs: vfs.NewCrashable(), log: processtest.NewLog(shards), out: processtest.NewLog(2), stream: streamName, lines: lines}
	y.log.Strict = true
	return y
}

func (y *yard) defs() []*window.Def {
	y.t.Helper()
	var defs []*window.Def
	for name, line := range y.lines {
		s, err := window.ParseLine(line)
		if err != nil {
			y.t.Fatal(err)
		}
		s.Name = name
		d, err := window.Compile(s)
		if err != nil {
			y.t.Fatal(err)
		}
		defs = append(defs, d)
	}
	slices.SortFunc(defs, func(a, b *window.Def) int { return cmp.Compare(a.Spec.Name, b.Spec.Name) })
	return defs
}

func output(name, id string, recs []stream.Record) state.Effect {
	return state.Effect{ID: id, Kind: "test:" + name, Data: recs[0].Data}
}

func (y *yard) start() {
	y.t.Helper()
	var err error
	if y.store, err = local.Open(local.Config{Dir: "state", FS: y.fs, MemBytes: 1 << 20}); err != nil {
		y.t.Fatal(err)
	}
	y.box, err = process.NewOutbox(process.OutboxConfig{Store: y.store, Streams: func(string) (stream.Log, error) { return y.out, nil }})
	if err == nil {
		err = y.box.Start()
	}
	if err != nil {
		y.t.Fatal(err)
	}
	out, err := y.box.Output(y.t.Context(), "out")
	if err != nil {
		y.t.Fatal(err)
	}
	y.w, err = New(Config{
		Stream: y.stream, Source: y.log, Store: y.store, Catalog: telemetry.NewCatalog(), Windows: y.defs(),
		Output: func(_, id string, recs []stream.Record) state.Effect { return out.Effect(id, recs) },
		Admit:  func(ctx context.Context, _ string) error { return out.Wait(ctx) },
	})
	if err == nil {
		y.r, err = process.New(process.Config{Log: y.log, StreamName: y.stream, Store: y.store})
	}
	if err == nil {
		err = y.r.AddFolder(y.w, process.Options{CommitInterval: 5 * time.Millisecond, TickInterval: 10 * time.Millisecond})
	}
	if err == nil {
		err = y.r.Start()
	}
	if err != nil {
		y.t.Fatal(err)
	}
}

func (y *yard) caughtUp() {
	y.t.Helper()
	ctx, cancel := context.WithTimeout(y.t.Context(), 30*time.Second)
	defer cancel()
	if err := y.r.WaitCaughtUp(ctx); err != nil {
		y.t.Fatal(err)
	}
	if _, err := y.w.Combine(ctx); err != nil {
		y.t.Fatal(err)
	}
}

func (y *yard) stop() {
	y.t.Helper()
	if err := errors.Join(y.r.Stop(context.Background()), y.box.Stop(context.Background()), y.store.Close()); err != nil {
		y.t.Fatal(err)
	}
}

// crash takes the power away, and what was not synced with it.
func (y *yard) crash(rng *rand.Rand) {
	y.t.Helper()
	y.out.FailWith(func(string) error { return errors.New("the power is off") })
	clone := y.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
	y.stop()
	y.out.FailWith(nil)
	y.fs = clone
}

func show(s *window.Stored) string {
	var sb strings.Builder
	fmt.Fprintf(&sb, "%s %s %d-%d rows=%d", s.Window, s.Key, s.Start, s.End, s.Rows)
	for i, n := range s.Names {
		switch v := s.Values[i]; v.Kind {
		case window.Number:
			fmt.Fprintf(&sb, " %s=%v", n, v.Num)
		case window.Text:
			fmt.Fprintf(&sb, " %s=%q", n, v.Text)
		case window.None:
			fmt.Fprintf(&sb, " %s=null", n)
		}
	}
	return sb.String()
}

// results are the final ones; marks tells whether to show late and revision too.
func (y *yard) results(marks bool) []string {
	y.t.Helper()
	out := []string{}
	err := Each(context.Background(), y.store, "", 0, 0, func(s *window.Stored) bool {
		if !s.Final {
			return true
		}
		line := show(s)
		if marks {
			line += fmt.Sprintf(" late=%v revision=%d", s.Late, s.Revision)
		}
		out = append(out, line)
		return true
	})
	if err != nil {
		y.t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// a row of a test, as sent and as a window sees it.
type sent struct {
	vehicle, status string
	at              int64
	speed           float64
}

func (s *sent) json() string {
	return fmt.Sprintf(`{"vehicle_id":%q,"ts":%d,"speed":%v,"status":%q}`, s.vehicle, s.at, s.speed, s.status)
}

// truth is what windows come to when every row counts once, in order.
func truth(t *testing.T, defs []*window.Def, rows []sent) []string {
	t.Helper()
	rows = slices.Clone(rows)
	slices.SortStableFunc(rows, func(a, b sent) int { return cmp.Compare(a.at, b.at) })
	rows = slices.Compact(rows)
	cat := telemetry.NewCatalog()
	dec := telemetry.NewDecoder(cat)
	out := []string{}
	newest := int64(0)
	for _, r := range rows {
		newest = max(newest, r.at)
	}
	for _, d := range defs {
		keys := map[string]*window.Key{}
		for _, r := range rows {
			if strings.Contains(d.Spec.Where, "speed > 50") && r.speed <= 50 {
				continue
			}
			rd := telemetry.Reading{Arrival: r.at}
			if err := dec.JSON([]byte(r.json()), &rd); err != nil {
				t.Fatal(err)
			}
			key := map[string]string{"vehicle": r.vehicle, "fleet": "fleet", "status": r.status}[d.Spec.Key]
			if keys[key] == nil {
				k := d.NewKey()
				keys[key] = &k
			}
			row := window.Row{Time: r.at, Hash: telemetry.PayloadHash(cat, &rd)}
			for _, c := range d.Columns {
				switch c {
				case "speed":
					row.Values = append(row.Values, window.Value{Kind: window.Number, Num: r.speed})
				case "status":
					row.Values = append(row.Values, window.Value{Kind: window.Text, Text: r.status})
				case "vehicle":
					row.Values = append(row.Values, window.Value{Kind: window.Text, Text: r.vehicle})
				}
			}
			if o, err := d.Add(keys[key], &row, r.at, none{}); err != nil || o != window.Counted {
				t.Fatal(o, err)
			}
		}
		for name, k := range keys {
			if !d.Local() {
				d.Advance(k, newest)
			}
			sink := &none{name: name, out: &out}
			if err := d.Flush(k, sink); err != nil {
				t.Fatal(err)
			}
		}
	}
	slices.Sort(out)
	return out
}

type none struct {
	name string
	out  *[]string
}

func (none) Pane(int64) ([]byte, error)            { return nil, nil }
func (none) SetPane(int64, []byte) error           { return nil }
func (none) DeletePanes(int64, int64, int64) error { return nil }
func (n none) Emit(r *window.Result) error {
	r.Key = n.name
	s, err := window.DecodeStored(r.AppendStored(nil))
	s.Window, s.Key = r.Def.Spec.Name, r.Key
	*n.out = append(*n.out, show(&s))
	return err
}

func story(rng *rand.Rand, n int) []sent {
	base := time.Now().Add(-3 * time.Hour).Truncate(time.Minute).UnixMilli()
	var rows []sent
	at := base
	for range n {
		at += rng.Int64N(700)
		if rng.IntN(40) == 0 {
			at += rng.Int64N(20_000)
		}
		rows = append(rows, sent{
			vehicle: fmt.Sprintf("T%02d", rng.IntN(9)), status: []string{"moving", "idle", "stopped"}[rng.IntN(3)], at: at, speed: float64(rng.IntN(1200)) / 10,
		})
	}
	return rows
}

// closing makes every vehicle speak long after, so that everything before is closed by event time.
func closing(rows []sent) []sent {
	var out []sent
	last := rows[len(rows)-1].at
	for i := range 9 {
		for j, s := range []string{"moving", "idle", "stopped"} {
			out = append(out, sent{vehicle: fmt.Sprintf("T%02d", i), status: s, at: last + 3600_000 + int64(j), speed: 60})
		}
	}
	return out
}

func allKinds() map[string]string {
	return map[string]string{
		"a_tumbling": "count, avg(speed), max(speed), last(status) by vehicle per 10s late 6s retain 1m to out",
		"b_hopping":  "count, sum(speed), p95(speed) where speed > 50 by vehicle per 20s every 5s late 6s retain 1m",
		"c_event":    "avg(speed), first(status) by vehicle sliding 10s late 6s retain 1m",
		"d_session":  "count, min(speed) by vehicle session 4s late 6s retain 1m to out",
		"e_fleet":    "count, avg(speed), distinct(vehicle) per 10s late 6s retain 1m to out",
		"f_status":   "count, sum(speed), p50(speed) by status per 20s every 10s late 6s retain 1m",
	}
}

// The same rows, shuffled within the lateness, sent again, with crashes and with the log split on the way, give the same results, each
// told once.
func TestCrashesAndShuffles(t *testing.T) {
	seeds := 12
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(seed), 5))
			y := newYard(t, 1+seed%3, window.Readings, allKinds())
			rows := story(rng, 600)
			stream := slices.Clone(rows)
			for range 60 { // sent again
				stream = append(stream, rows[rng.IntN(len(rows))])
			}
			type keyed struct {
				at int64
				sent
			}
			var ks []keyed
			for _, r := range stream {
				ks = append(ks, keyed{r.at + rng.Int64N(6000), r})
			}
			slices.SortStableFunc(ks, func(a, b keyed) int { return cmp.Compare(a.at, b.at) })
			y.start()
			for i, k := range ks {
				y.log.Put(k.vehicle, k.json())
				switch {
				case rng.IntN(120) == 0:
					y.crash(rng)
					y.start()
				case rng.IntN(60) == 0:
					y.caughtUp()
				case i == 300 && seed%2 == 0:
					shards, _ := y.log.Shards(t.Context())
					y.log.Split(shards[0].ID)
				}
			}
			end := closing(rows)
			for _, r := range end {
				y.log.Put(r.vehicle, r.json())
			}
			y.caughtUp()
			want := truth(t, y.defs(), append(rows, end...))
			for i := range want {
				want[i] += " late=false revision=0"
			}
			if diff := gocmp.Diff(want, y.results(true)); diff != "" {
				t.Errorf("results (-truth +windows):\n%s", diff)
			}
			y.stop() // the outbox carries out what waits
			// What goes out is what SQL shows, once.
			outs := map[string]bool{}
			for _, e := range y.out.All() {
				var r struct{ ID string }
				if err := json.Unmarshal(e.Data, &r); err != nil {
					t.Fatalf("%s: %v", e.Data, err)
				}
				if outs[r.ID] {
					t.Errorf("%s went out twice", r.ID)
				}
				outs[r.ID] = true
			}
			n := 0
			for _, w := range want {
				if strings.HasPrefix(w, "a_") || strings.HasPrefix(w, "d_") || strings.HasPrefix(w, "e_") {
					n++
				}
			}
			if n != len(outs) {
				t.Errorf("%d results went out of %d", len(outs), n)
			}
		})
	}
}

// Rows that come later than the lateness, but within retain, correct the results: the last word is the truth.
func TestLateRowsCorrect(t *testing.T) {
	for seed := range 4 {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(seed), 6))
			y := newYard(t, 2, window.Readings, allKinds())
			rows := story(rng, 400)
			ks := slices.Clone(rows)
			rank := map[sent]int64{}
			for _, r := range rows {
				rank[r] = r.at + rng.Int64N(50_000)
			}
			slices.SortStableFunc(ks, func(a, b sent) int { return cmp.Compare(rank[a], rank[b]) })
			y.start()
			for _, k := range ks {
				y.log.Put(k.vehicle, k.json())
				switch rng.IntN(100) {
				case 0:
					y.crash(rng)
					y.start()
				case 1:
					y.caughtUp()
				}
			}
			end := closing(rows)
			for _, r := range end {
				y.log.Put(r.vehicle, r.json())
			}
			y.caughtUp()
			want := truth(t, y.defs(), append(rows, end...))
			if diff := gocmp.Diff(want, y.results(false)); diff != "" {
				t.Errorf("results (-truth +windows):\n%s", diff)
			}
			late := false
			for _, r := range y.results(true) {
				late = late || strings.Contains(r, "late=true revision=")
			}
			if !late {
				t.Error("nothing was late: this test is too tame")
			}
			y.stop()
		})
	}
}

// A key that falls silent has its window closed by the clock.
func TestSilence(t *testing.T) {
	y := newYard(t, 2, window.Readings, map[string]string{
		"mine": "count by vehicle per 1s late 100ms idle 1s", "all": "count per 1s late 100ms idle 1s",
	})
	y.start()
	defer y.stop()
	base := time.Now().Add(-time.Hour).Truncate(time.Second).UnixMilli()
	for i := range 3 {
		s := sent{"T1", "moving", base + int64(i), 1}
		y.log.Put("T1", s.json())
	}
	y.caughtUp()
	deadline := time.Now().Add(20 * time.Second)
	for len(y.results(false)) < 2 && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
		y.caughtUp()
	}
	want := []string{fmt.Sprintf("all fleet %d-%d rows=3 count=3", base, base+1000), fmt.Sprintf("mine T1 %d-%d rows=3 count=3", base, base+1000)}
	if diff := gocmp.Diff(want, y.results(false)); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
}

func TestOtherStreams(t *testing.T) {
	y := newYard(t, 1, "clicks", map[string]string{
		"pages":    "count, distinct(user.id), avg(price) from clicks where type == \"click\" && price > 1 by page per 10s late 0s",
		"sessions": "count, last(page) from clicks by key session 30s late 0s",
	})
	y.start()
	defer y.stop()
	for i, s := range []string{
		`{"type":"click","page":"/a","price":2,"user":{"id":"u1"}}`, `{"type":"click","page":"/a","price":4,"user":{"id":"u2"}}`,
		`{"type":"view","page":"/a","price":4}`, `{"type":"click","page":"/b","price":0.5}`, `{"type":"click","price":5}`, `no object`, `[1]`, `null`,
		`{"type":5,"page":"/c","price":3}`,
	} {
		y.log.Put(fmt.Sprint("user ", i%2), s)
	}
	y.caughtUp()
	letters, _, err := y.store.Pending(t.Context(), process.DeadLetterKind, 10)
	if err != nil || len(letters) != 3 {
		t.Errorf("%d dead letters, want 3 (%v)", len(letters), err)
	}
	// Time is arrival here: look at what is in memory, early.
	got := 0
	err = y.store.View(t.Context(), func(r state.Reader) error {
		return r.Scan([]byte(keyPrefix), state.PrefixEnd([]byte(keyPrefix)), func(_, _ []byte) error { got++; return nil })
	})
	if err != nil || got != 3 {
		t.Errorf("%d keys, want page /a and two users (%v)", got, err)
	}
}

func TestConfigErrors(t *testing.T) {
	f := func(streamName, line, want string) {
		t.Helper()
		y := newYard(t, 1, streamName, map[string]string{"w": line})
		_, err := New(Config{Stream: streamName, Source: y.log, Store: &local.Store{}, Catalog: telemetry.NewCatalog(), Windows: y.defs()})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", line, err, want)
		}
	}
	f("readings", "avg(sped) per 1m", "no signal is called sped; did you mean speed?")
	f("readings", "avg(status) per 1m", "status is text")
	f("readings", "count where sped > 1 per 1m", "did you mean speed?")
	f("readings", "count where speed per 1m", "where:")
	f("readings", "count per 1m to out", "nothing can append")
	f("readings", "count from clicks per 1m", "it reads clicks")
	f("clicks", "count from clicks where a + 1 by key per 1m", "not true or false")
}

// Keys and sources that have been silent for longer than results are kept leave nothing behind.
func TestForgotten(t *testing.T) {
	y := newYard(t, 1, window.Readings, map[string]string{
		"mine": "count by vehicle per 10s late 0s retain 1m", "all": "count per 10s late 0s retain 1m",
	})
	y.start()
	at := time.Now().Add(-time.Hour).UnixMilli()
	for i := range 300 {
		s := sent{vehicle: fmt.Sprintf("T%03d", i%250), status: "moving", at: at + int64(i)*100_000, speed: 1}
		if i < 250 {
			s.at = at + int64(i%7)*10_000
		}
		if s.at > time.Now().UnixMilli() {
			s.at = time.Now().UnixMilli()
		}
		y.log.Put(s.vehicle, s.json())
	}
	y.caughtUp()
	if err := errors.Join(y.r.Stop(t.Context()), y.box.Stop(t.Context())); err != nil {
		t.Fatal(err)
	}
	count := func() (n int) {
		err := y.store.View(t.Context(), func(r state.Reader) error {
			return r.Scan([]byte("window/"), []byte("window0"), func(k, _ []byte) error {
				if !strings.HasPrefix(string(k), resultPrefix) && !strings.HasPrefix(string(k), markPrefix) {
					n++
				}
				return nil
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := count()
	// Eight days later, tick by tick.
	shards, _ := y.log.Shards(t.Context())
	l := y.w.Lane(shards[0].ID, 0).(*lane)
	now := time.Now().Add(8 * 24 * time.Hour)
	pos, err := y.store.Checkpoint(t.Context(), y.w.Name(), shards[0].ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 30 {
		now = now.Add(10 * time.Minute)
		if err := y.store.View(t.Context(), func(r state.Reader) error { return l.Tick(t.Context(), r, now, now.Add(-time.Hour)) }); err != nil {
			t.Fatal(err)
		}
		if err := y.store.Advance(t.Context(), state.Step{Func: y.w.Name(), Shard: shards[0].ID, From: pos, To: pos}, l.Flush); err != nil {
			t.Fatal(err)
		}
		if _, err := y.w.Combine(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := y.w.Expire(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if n := count(); before < 500 || n > 0 {
		t.Errorf("%d records before, %d are left", before, n)
	}
	if r := y.results(false); len(r) > 0 {
		t.Errorf("results are left: %q", r)
	}
	if err := y.store.Close(); err != nil {
		t.Fatal(err)
	}
}
