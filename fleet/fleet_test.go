package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/milepost/milepost/ingest/kinesisapi/kpl"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process/rule"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// tape is a log of one shard that a test has written in full.
type tape struct {
	stream.Log
	recs []stream.Record
}

func (t *tape) Shards(context.Context) ([]stream.Shard, error) {
	return []stream.Shard{{ID: "s", To: stream.MaxHash}}, nil
}

func (t *tape) Read(_ context.Context, _ stream.ShardID, after stream.Position) (stream.Reader, error) {
	i := sort.Search(len(t.recs), func(i int) bool { return t.recs[i].Pos > after })
	return &tapeReader{t.recs[i:]}, nil
}

type tapeReader struct{ rest []stream.Record }

func (r *tapeReader) Next(_ context.Context, n int) ([]stream.Record, error) {
	if len(r.rest) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(r.rest))
	recs := r.rest[:n]
	r.rest = r.rest[n:]
	return recs, nil
}

func (r *tapeReader) Close() error { return nil }

func (t *tape) add(arrival time.Time, vehicle, payload string) {
	t.recs = append(t.recs, stream.Record{
		Key: vehicle, Data: []byte(payload), Shard: "s", Pos: stream.Position(fmt.Sprintf("%08d", len(t.recs)+1)), Time: arrival,
	})
}

// shelf is what the archive would hold: rows by position, visible ones only.
type shelf struct {
	cat  *telemetry.Catalog
	done stream.Position
	next map[stream.Position]string
	rows map[stream.Position]string
}

func (s *shelf) Add(_ context.Context, pos stream.Position, r *telemetry.Reading) error {
	if pos > s.done {
		row := fmt.Appendf(nil, "%s@%d %s", r.Vehicle, r.Time, r.Status)
		for _, x := range r.Signals {
			row = fmt.Appendf(row, " %s=%v", s.cat.Def(x.ID).Name, x.Value)
		}
		if had, ok := s.next[pos]; ok { // several readings in one record
			row = append([]byte(had+"\n"), row...)
		}
		s.next[pos] = string(row)
	}
	return nil
}

func (s *shelf) Advance(pos stream.Position) {
	if pos <= s.done {
		return
	}
	s.done = pos
	maps.Copy(s.rows, s.next)
	clear(s.next)
}

func (s *shelf) Rewind() { clear(s.next) }

// world is a fleet with everything around it.
type world struct {
	t     *testing.T
	fs    *vfs.MemFS
	tape  *tape
	shelf *shelf
	store *local.Store
	fleet *Fleet
	lane  *lane
	at    stream.Position // checkpoint
	more  []rule.Spec     // besides the shipped rules
}

func newWorld(t *testing.T, tape *tape, more ...rule.Spec) *world {
	t.Helper()
	w := &world{t: t, more: more, fs: vfs.NewCrashable(), tape: tape, shelf: &shelf{next: map[stream.Position]string{}, rows: map[stream.Position]string{}}}
	w.open()
	return w
}

func (w *world) open() {
	w.t.Helper()
	var err error
	if w.store, err = local.Open(local.Config{Dir: "state", FS: w.fs}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = w.store.Close() })
	cat := telemetry.NewCatalog()
	w.shelf.cat = cat
	rules, err := rule.Compile(append(rule.Shipped(), w.more...), cat)
	if err != nil {
		w.t.Fatal(err)
	}
	w.fleet, err = Open(w.t.Context(), Config{
		Stream: "readings", Source: w.tape, Store: w.store, Catalog: cat, Rules: rules,
		Rows: func(context.Context, stream.ShardID) (Rows, error) { return w.shelf, nil },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if w.at, err = w.store.Checkpoint(w.t.Context(), FuncName, "s", 0); err != nil {
		w.t.Fatal(err)
	}
	w.lane = w.fleet.Lane("s", 0).(*lane) //nolint:errcheck // a Fleet makes no others
}

// fold folds the next n records of the tape that follow what was folded.
func (w *world) fold(from stream.Position, n int) {
	w.t.Helper()
	rd, _ := w.tape.Read(w.t.Context(), "s", from)
	recs, err := rd.Next(w.t.Context(), n)
	if err != nil {
		w.t.Fatal(err)
	}
	err = w.store.View(w.t.Context(), func(r state.Reader) error { return w.lane.Fold(w.t.Context(), r, recs) })
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) commit() {
	w.t.Helper()
	to := w.lane.last
	if to == "" || to == w.at {
		return
	}
	if err := w.store.Advance(w.t.Context(), state.Step{Func: FuncName, Shard: "s", From: w.at, To: to}, w.lane.Flush); err != nil {
		w.t.Fatal(err)
	}
	w.at = to
}

// all folds the whole tape in steps of random size and returns what is known in the end.
func (w *world) all(rng *rand.Rand) string {
	w.t.Helper()
	for pos := w.at; pos < w.tape.recs[len(w.tape.recs)-1].Pos; pos = w.lane.last {
		w.fold(pos, 1+rng.IntN(200))
		if rng.IntN(3) == 0 {
			w.commit()
		}
	}
	w.commit()
	return w.known()
}

// known is everything that must not depend on the order of arrival: latest states, daily figures, rows.
func (w *world) known() string {
	w.t.Helper()
	var vs []Vehicle
	w.fleet.Vehicles(func(v *Vehicle) bool {
		v.ArrivalTime, v.Connectivity = 0, ""
		vs = append(vs, *v)
		return true
	})
	slices.SortFunc(vs, func(a, b Vehicle) int { return strings.Compare(a.ID, b.ID) })
	js, err := json.MarshalIndent(vs, "", " ")
	if err != nil {
		w.t.Fatal(err)
	}
	lines := []string{string(js)}
	err = w.fleet.EachDaily(w.t.Context(), -1<<31, 1<<31-1, func(d Daily) bool {
		lines = append(lines, fmt.Sprintf("%+v", d))
		return true
	})
	if err != nil {
		w.t.Fatal(err)
	}
	rows := make([]string, 0, len(w.shelf.rows))
	for _, r := range w.shelf.rows {
		rows = append(rows, strings.Split(r, "\n")...)
	}
	sort.Strings(rows)
	return strings.Join(append(lines, rows...), "\n")
}

func day(h, m, s int) time.Time { return time.Date(2026, 11, 20, h, m, s, 0, time.UTC) }

// trip writes the readings of some vehicles over some hours, a third of them twice.
func trip(rng *rand.Rand) []string {
	var out []string
	for v := range 4 {
		at := day(20, 0, 0)
		for range 600 {
			at = at.Add(time.Duration(1+rng.IntN(40)) * time.Second)
			line := fmt.Sprintf(`{"vehicle_id":"t%d","ts":%q,"lat":%.4f,"lon":%.4f,"speed":%d,"fuel":%.1f,"x_%d":%d}`, v, at.Format(time.RFC3339),
				50+rng.Float64(), 5+rng.Float64(), rng.IntN(70), 100*rng.Float64(), rng.IntN(3), rng.IntN(9))
			out = append(out, line)
			if rng.IntN(3) == 0 {
				out = append(out, line)
			}
		}
	}
	return out
}

func vehicleIn(line string) string { return line[len(`{"vehicle_id":"`):][:2] }

func TestOrderAndRepetitionChangeNothing(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	lines := trip(rng)
	var want string
	for round := range 4 {
		tp := &tape{}
		for _, l := range lines {
			tp.add(day(23, 59, 0).Add(10*time.Hour), vehicleIn(l), l)
		}
		got := newWorld(t, tp).all(rng)
		if round == 0 {
			want = got
			if n := strings.Count(got, "@"); n != 2400 {
				t.Fatalf("%d distinct readings, want 2400", n)
			}
		} else if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("round %d differs from round 0 (seed %d): %s", round, seed, d)
		}
		rng.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
		lines = append(lines, lines[:len(lines)/2]...) // and half of it once more
	}
}

func TestCrashes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	lines := trip(rng)
	rng.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	tp := &tape{}
	for i, l := range lines {
		tp.add(day(23, 59, 0).Add(10*time.Hour), vehicleIn(l), l)
		if i%100 == 50 {
			tp.add(day(23, 59, 0).Add(10*time.Hour), "t0", `{"vehicle_id":"t0",`) // no reading: dead-lettered
		}
	}
	brisk := rule.Spec{Name: "brisk", When: `avg(speed, "24h") > 30 && count(speed, "24h") >= 3`}
	want := newWorld(t, tp, brisk).all(rng)
	if !strings.Contains(want, "brisk") {
		t.Errorf("no vehicle is brisk in the end: the windows of rules are not tested (seed %d)", seed)
	}

	w := newWorld(t, tp, brisk)
	end := tp.recs[len(tp.recs)-1].Pos
	archived := stream.Position("")
	crashes := 0
	for pos := w.at; pos < end; pos = w.lane.last {
		w.fold(pos, 1+rng.IntN(100))
		switch rng.IntN(4) {
		case 0:
			w.commit()
		case 1: // the archive writes what its tail has, and lets the positions go
			archived = w.shelf.done
			err := w.store.Update(t.Context(), func(tx state.Tx) error { return ForgetDropped(tx, "s", archived) })
			if err != nil {
				t.Fatal(err)
			}
		case 2:
			crashes++
			w.fs = w.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			// Only what the archive wrote survives of its rows; its tail is gone.
			kept := map[stream.Position]string{}
			for p, r := range w.shelf.rows {
				if p <= archived {
					kept[p] = r
				}
			}
			w.shelf = &shelf{done: archived, next: map[stream.Position]string{}, rows: kept}
			w.open()
			if _, err := w.fleet.Rebuild(t.Context(), "s", archived); err != nil {
				t.Fatalf("rebuild: %v (seed %d)", err, seed)
			}
			w.lane.last = w.at
			if w.at < end {
				w.fold(w.at, 1)
			}
		}
	}
	w.commit()
	if d := cmp.Diff(want, w.known()); d != "" {
		t.Errorf("after %d crashes (seed %d): %s", crashes, seed, d)
	}
	letters, _, err := w.store.Pending(t.Context(), "dead-letter", 1000)
	if err != nil || len(letters) != (len(lines)+49)/100 {
		t.Errorf("%d dead letters, want %d (%v)", len(letters), (len(lines)+49)/100, err)
	}
}

func TestSignalsHaveTheirOwnTime(t *testing.T) {
	tp := &tape{}
	at := day(12, 0, 0)
	tp.add(at, "a", `{"vehicle_id":"a","ts":"2026-11-20T11:00:00Z","speed":50,"fuel":80,"status":"moving"}`)
	tp.add(at, "a", `{"vehicle_id":"a","ts":"2026-11-20T11:05:00Z","speed":60}`)
	tp.add(at, "a", `{"vehicle_id":"a","ts":"2026-11-20T11:02:00Z","speed":10,"fuel":79,"status":"idle"}`) // late
	tp.add(at, "a", `{"vehicle_id":"a","ts":"2026-11-20T11:06:00Z","speed":900,"lat":0,"lon":0}`)          // implausible, null island
	w := newWorld(t, tp)
	w.all(rand.New(rand.NewPCG(1, 1)))
	got, ok := w.fleet.Vehicle("a")
	if !ok {
		t.Fatal("no vehicle a")
	}
	ms := func(h, m int) int64 { return day(h, m, 0).UnixMilli() }
	want := Vehicle{
		ID: "a", EventTime: ms(11, 6), ArrivalTime: at.UnixMilli(), Status: "idle", Readings: 4,
		Signals: []SignalValue{{"speed", "km/h", 60, ms(11, 5)}, {"fuel", "%", 79, ms(11, 2)}},
	}
	if d := cmp.Diff(want, got, cmpopts.IgnoreFields(Vehicle{}, "Connectivity"), cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
	if len(w.shelf.rows) != 4 {
		t.Errorf("%d rows archived, want all 4: a doubtful value is kept", len(w.shelf.rows))
	}
}

// TestAggregates: what the Kinesis Producer Library puts together is taken apart, each part by its own key, and a rebuild leaves
// out just the parts that were not accepted.
func TestAggregates(t *testing.T) {
	at := day(12, 0, 0)
	one := func(v string, s int) kpl.Record {
		return kpl.Record{Key: v, Data: fmt.Appendf(nil, `{"vehicle_id":%q,"ts":%d,"speed":%d}`, v, day(11, 0, s).UnixMilli(), s)}
	}
	tp := &tape{}
	tp.add(at, "a", string(kpl.Append(nil, []kpl.Record{one("a", 1), one("b", 1), one("a", 1), {Key: "a", Data: []byte("{")}, one("a", 2)})))
	tp.add(at, "a", string(one("a", 3).Data))
	tp.add(at, "a", string(kpl.Append(nil, []kpl.Record{one("b", 1), one("b", 2)})))
	damaged := kpl.Append(nil, []kpl.Record{one("a", 9)})
	damaged[len(damaged)-1]++
	tp.add(at, "a", string(damaged)) // a plain record, which is no reading

	w := newWorld(t, tp)
	want := w.all(rand.New(rand.NewPCG(1, 1)))
	if n := strings.Count(want, "@"); n != 5 {
		t.Fatalf("%d rows, want 5:\n%s", n, want)
	}
	letters, _, err := w.store.Pending(t.Context(), "dead-letter", 10)
	if err != nil || len(letters) != 2 || !strings.HasSuffix(letters[0].ID, "/000003") {
		t.Errorf("got %v, %v: want two dead letters, the first for the fourth part", letters, err)
	}
	w.shelf = &shelf{next: map[stream.Position]string{}, rows: map[stream.Position]string{}} // the tail is gone
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	w.open()
	if n, err := w.fleet.Rebuild(t.Context(), "s", ""); n != 5 || err != nil {
		t.Errorf("%d rows rebuilt, %v; want 5", n, err)
	}
	if d := cmp.Diff(want, w.known()); d != "" {
		t.Error(d)
	}
}

func TestForeignKeyIsRefused(t *testing.T) {
	tp := &tape{}
	tp.add(day(12, 0, 0), "someone", `{"vehicle_id":"a","ts":"2026-11-20T11:00:00Z"}`)
	w := newWorld(t, tp)
	// The lane owns half of the ring, the one without vehicle a.
	mid := stream.Hash{Hi: 1 << 63}
	w.lane.ours = stream.Shard{ID: "s", From: mid, To: stream.MaxHash}
	if !stream.KeyHash("a").Less(mid) {
		w.lane.ours = stream.Shard{ID: "s", To: mid.Prev()}
	}
	w.fold("", 1)
	w.commit()
	letters, _, err := w.store.Pending(t.Context(), "dead-letter", 10)
	if err != nil || len(letters) != 1 || !strings.Contains(string(letters[0].Data), "use the vehicle id as the partition key") {
		t.Errorf("got %v, %v: want one dead letter that says how to mend it", letters, err)
	}
}

func TestSightingsExpire(t *testing.T) {
	tp := &tape{}
	for i := range 200 {
		tp.add(day(12, 0, 0), "a", fmt.Sprintf(`{"vehicle_id":"a","ts":%d}`, day(10, 0, i).UnixMilli()))
	}
	w := newWorld(t, tp)
	w.all(rand.New(rand.NewPCG(1, 1)))
	if n, err := w.fleet.Expire(t.Context(), day(12, 0, 0).Add(6*24*time.Hour)); n != 0 || err != nil {
		t.Errorf("after 6 days: %d chunks expired, %v; want none", n, err)
	}
	if n, err := w.fleet.Expire(t.Context(), day(12, 0, 0).Add(8*24*time.Hour)); n != 3 || err != nil {
		t.Errorf("after 8 days: %d chunks expired, %v; want 3", n, err)
	}
}

// nothing takes rows and keeps none.
type nothing struct{}

func (nothing) Add(context.Context, stream.Position, *telemetry.Reading) error { return nil }
func (nothing) Advance(stream.Position)                                        {}
func (nothing) Rewind()                                                        {}

// BenchmarkFold is a reading's whole way through the lane except the archive, committing every 50,000.
func BenchmarkFold(b *testing.B) {
	store, err := local.Open(local.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	cat := telemetry.NewCatalog()
	rules, err := rule.Compile(rule.Shipped(), cat)
	if err != nil {
		b.Fatal(err)
	}
	f, err := Open(b.Context(), Config{
		Source: &tape{}, Store: store, Catalog: cat, Rules: rules,
		Rows: func(context.Context, stream.ShardID) (Rows, error) { return nothing{}, nil },
	})
	if err != nil {
		b.Fatal(err)
	}
	l := f.Lane("s", 0)
	const vehicles, size = 1000, 1000
	at := day(0, 0, 0)
	recs := make([]stream.Record, size)
	n, pos := 0, stream.Position("")
	b.ReportAllocs()
	for b.Loop() {
		if n%size == 0 {
			b.StopTimer()
			for i := range recs {
				id := fmt.Sprintf("T%05d", i%vehicles)
				recs[i] = stream.Record{Key: id, Pos: stream.Position(fmt.Sprintf("%016x", n+i+1)), Time: at, Data: fmt.Appendf(nil,
					`{"truck_id":%q,"ts":%q,"lat":40.7128,"long":-74.0060,"speed":63.2,"heading":181,"fuel":55.1,"engine_temp":92.4,"fuel_pressure":344.0,"cargo_temp":3.8,"status":"moving"}`,
					id, at.Format("2006-01-02T15:04:05.000Z"))}
			}
			at = at.Add(100 * time.Millisecond)
			b.StartTimer()
			if err := store.View(b.Context(), func(r state.Reader) error { return l.Fold(b.Context(), r, recs) }); err != nil {
				b.Fatal(err)
			}
			if n%50_000 == 0 {
				to := recs[size-1].Pos
				if err := store.Advance(b.Context(), state.Step{Func: FuncName, Shard: "s", From: pos, To: to}, l.Flush); err != nil {
					b.Fatal(err)
				}
				pos = to
			}
		}
		n++
	}
}
