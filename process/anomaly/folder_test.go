package anomaly

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/alert"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/processtest"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// small detectors learn fast, so that a story fits into a test.
func small() []Detector {
	gate := map[string]float64{"engine_temp": 70}
	return []Detector{
		{Name: "hot_trend", Kind: Trend, Gate: gate, Settle: time.Minute},
		{Name: "odd", Kind: RCF, Gate: gate, Settle: time.Minute, NumberOfTrees: 10, SubSampleSize: 32, WarmUp: 64, ShingleSize: 2, TimeDecay: 0.01, Signals: []string{"engine_temp", "d(engine_temp)", "speed"}},
	}
}

func mustCompile(t testing.TB, ds []Detector, cat *telemetry.Catalog) *Plan {
	t.Helper()
	p, err := Compile(ds, 20*time.Second, cat)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// drive is n readings of some trucks, each 10 s, of which truck-1 leaks from reading 600 to 700; some come twice or late, and truck-2
// is out of reach for a while.
func drive(n int) []stream.Record {
	rng := rand.New(rand.NewPCG(1, 1))
	var recs []stream.Record
	start := time.Date(2026, 6, 1, 8, 0, 0, 0, time.UTC)
	for i := range n {
		for v := 1; v <= 3; v++ {
			if v == 2 && i > 400 && i < 430 {
				continue
			}
			at := start.Add(time.Duration(i) * 10 * time.Second)
			temp := 88 + rng.NormFloat64()*0.4
			if v == 1 && i >= 600 && i < 700 {
				temp += float64(i-600) * 0.2 // 1.2 °C a minute
			}
			data := fmt.Sprintf(`{"vehicle_id":"truck-%d","ts":%q,"lat":50.1,"lon":8.6,"engine_temp":%.1f,"speed":%.1f}`, v, at.Format(time.RFC3339), temp, 70+rng.NormFloat64())
			rec := stream.Record{Key: fmt.Sprintf("truck-%d", v), Data: []byte(data), Time: at.Add(time.Second)}
			recs = append(recs, rec)
			switch rng.IntN(40) {
			case 0:
				recs = append(recs, rec)
			case 1:
				recs = append(recs, recs[rng.IntN(len(recs))])
			case 2:
				recs = append(recs, stream.Record{Key: "x", Data: []byte("no reading"), Time: rec.Time})
			}
		}
	}
	for i := range recs {
		recs[i].Pos = stream.Position(fmt.Sprintf("%08d", i+1))
	}
	return recs
}

// A runner folds records in batches of any size and now and then fails, resets, or begins anew from the store.
type runner struct {
	t     *testing.T
	store state.Store
	plan  *Plan
	cat   *telemetry.Catalog
}

func (r *runner) lane(max int) *lane {
	f := New(Config{Plan: r.plan, Catalog: r.cat, Sinks: func(string) []string { return []string{"log"} }, MaxForests: max})
	return f.Lane("s", 0).(*lane) //nolint:errcheck // it is
}

var errCrash = errors.New("crash")

func (r *runner) run(recs []stream.Record, rng *rand.Rand, crashes bool) {
	t, ctx := r.t, r.t.Context()
	t.Helper()
	l := r.lane(100)
	at, committed := 0, 0
	from := stream.Position("")
	for committed < len(recs) {
		n := min(len(recs)-at, 1+rng.IntN(200))
		err := r.store.View(ctx, func(v state.Reader) error { return l.Fold(ctx, v, recs[at:at+n]) })
		if err != nil {
			t.Fatal(err)
		}
		at += n
		if at < len(recs) && rng.IntN(3) > 0 && !l.Urgent() {
			continue
		}
		crash := crashes && rng.IntN(4) == 0
		to := recs[at-1].Pos
		err = r.store.Advance(ctx, state.Step{Func: FuncName, Shard: "s", From: from, To: to}, func(tx state.Tx) error {
			if err := l.Flush(tx); err != nil {
				return err
			}
			if crash {
				return errCrash
			}
			return nil
		})
		switch {
		case errors.Is(err, errCrash):
			if at = committed; rng.IntN(2) == 0 {
				l.Reset()
			} else {
				l.Close()
				l = r.lane(100)
			}
		case err != nil:
			t.Fatal(err)
		default:
			committed, from = at, to
			if crashes && rng.IntN(5) == 0 {
				l.Reset()
			}
		}
	}
	l.Close()
	if n := l.f.forests.Load(); n != 0 {
		t.Errorf("%d forests counted after Close", n)
	}
}

// dump is everything in the store that people or a later run see; forests and tails are compared as what they mean, together.
func (r *runner) dump() (rows []string) {
	err := r.store.View(r.t.Context(), func(v state.Reader) error {
		return v.Scan(nil, nil, func(k, b []byte) error {
			switch {
			case strings.HasPrefix(string(k), forestPrefix), strings.HasPrefix(string(k), tailPrefix):
			default:
				rows = append(rows, fmt.Sprintf("%q = %q", k, b))
			}
			return nil
		})
	})
	if err != nil {
		r.t.Fatal(err)
	}
	es, _, err := r.store.Pending(r.t.Context(), alert.Kind("log"), 100)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range es {
		rows = append(rows, fmt.Sprintf("%s %s", e.ID, e.Data))
	}
	l := r.lane(100)
	err = r.store.View(r.t.Context(), func(v state.Reader) error {
		for _, id := range []string{"truck-1", "truck-2", "truck-3"} {
			w, err := l.watch(v, id)
			if err != nil {
				return err
			}
			// The places of points in memory may differ; what the forest says may not, in any bit.
			f, rng := w.each[1].rcf.f, rand.New(rand.NewPCG(3, 3))
			for range 60 {
				if _, err := f.Add([]float32{float32(rng.NormFloat64()), float32(rng.NormFloat64()), float32(rng.NormFloat64())}); err != nil {
					return err
				}
				rows = append(rows, fmt.Sprintf("%s learnt %d score %b", id, f.Learnt(), f.Score()))
				f.Learn()
			}
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return rows
}

func newRunner(t *testing.T) *runner {
	s, err := local.Open(local.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	cat := telemetry.NewCatalog()
	return &runner{t, s, mustCompile(t, small(), cat), cat}
}

// TestCrashesAndBatchesChangeNothing: the same records make the same alerts, the same forests to the bit, and the same state, in
// whatever batches they come and however often the lane falls back to its checkpoint.
func TestCrashesAndBatchesChangeNothing(t *testing.T) {
	recs := drive(1000)
	plain := newRunner(t)
	plain.run(recs, rand.New(rand.NewPCG(0, 0)), false)
	want := plain.dump()
	alerts := 0
	for _, row := range want {
		if strings.Contains(row, "hot_trend") && strings.Contains(row, "alert/r/") {
			alerts++
			if !strings.Contains(row, "truck-1") || !strings.Contains(row, "above its normal") || !strings.Contains(row, "resolved") {
				t.Errorf("alert: %s", row)
			}
		}
	}
	if alerts != 1 {
		t.Errorf("%d alerts of the trend detector, want 1", alerts)
	}
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := newRunner(t)
			r.run(recs, rand.New(rand.NewPCG(seed, 1)), true)
			if got := r.dump(); !slices.Equal(got, want) {
				t.Errorf("with crashes the store differs:\n%s", cmp.Diff(want, got))
			}
		})
	}
}

// TestChangedDetectorsEndTheirAlerts: alerts of detectors that are no more do not stay open for ever, and the vehicle is learnt anew.
func TestChangedDetectorsEndTheirAlerts(t *testing.T) {
	r := newRunner(t)
	recs := drive(1000)
	cut := slices.IndexFunc(recs, func(rec stream.Record) bool { return rec.Time.After(recs[0].Time.Add(680 * 10 * time.Second)) })
	r.run(recs[:cut], rand.New(rand.NewPCG(0, 0)), false)
	open := func() (names []string) {
		err := r.store.View(t.Context(), func(v state.Reader) error {
			return v.Scan([]byte("alert/o/"), state.PrefixEnd([]byte("alert/o/")), func(k, _ []byte) error {
				names = append(names, string(k[len("alert/o/")+2:]))
				return nil
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	if got := open(); !slices.Contains(got, "truck-1hot_trend") {
		t.Fatalf("open alerts: %q", got)
	}
	ds := small()
	ds[0].Name = "renamed"
	r.plan = mustCompile(t, ds, r.cat)
	l := r.lane(100)
	rest := recs[cut : cut+6]
	if err := r.store.View(t.Context(), func(v state.Reader) error { return l.Fold(t.Context(), v, rest) }); err != nil {
		t.Fatal(err)
	}
	err := r.store.Advance(t.Context(), state.Step{Func: FuncName, Shard: "s", From: recs[cut-1].Pos, To: rest[5].Pos}, l.Flush)
	if err != nil {
		t.Fatal(err)
	}
	if got := open(); len(got) != 0 {
		t.Errorf("still open: %q", got)
	}
}

func TestForestsAreBounded(t *testing.T) {
	r := newRunner(t)
	l := r.lane(2)
	recs := drive(300)
	if err := r.store.View(t.Context(), func(v state.Reader) error { return l.Fold(t.Context(), v, recs) }); err != nil {
		t.Fatal(err)
	}
	if n := l.f.forests.Load(); n != 2 || l.counts.unwatched == 0 {
		t.Errorf("%d forests, %d evaluations left out; want 2 and some", n, l.counts.unwatched)
	}
	l.Reset()
	if n := l.f.forests.Load(); n != 0 {
		t.Errorf("%d forests counted after Reset", n)
	}
}

func TestDamagedStateIsLearntAnew(t *testing.T) {
	r := newRunner(t)
	recs := drive(200)
	r.run(recs, rand.New(rand.NewPCG(0, 0)), false)
	err := r.store.Update(t.Context(), func(tx state.Tx) error {
		return tx.Set(detectorKey(tailPrefix, "truck-1", "odd"), []byte{opAdd, 1, 2})
	})
	if err != nil {
		t.Fatal(err)
	}
	l := r.lane(100)
	if err := r.store.View(t.Context(), func(v state.Reader) error { return l.Fold(t.Context(), v, recs[:3]) }); err != nil {
		t.Fatal(err)
	}
	if l.counts.relearnt != 1 {
		t.Errorf("%d vehicles learnt anew, want 1", l.counts.relearnt)
	}
}

// FuzzWatchState: damaged bytes give an error or a watch that works.
func FuzzWatchState(f *testing.F) {
	cat := telemetry.NewCatalog()
	plan := mustCompile(f, small(), cat)
	w := NewWatch(plan, "truck-1")
	d := telemetry.NewDecoder(cat)
	for i, rec := range drive(150) {
		rd := telemetry.Reading{Arrival: rec.Time.UnixMilli()}
		if rec.Key != "truck-1" || d.JSON(rec.Data, &rd) != nil {
			continue
		}
		if _, _, err := w.Observe(&rd, nil); err != nil {
			f.Fatal(err)
		}
		if i%60 == 0 {
			f.Add(w.encode(nil))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		w := NewWatch(plan, "truck-1")
		if _, _, err := w.decode(b); err != nil {
			return
		}
		rd := telemetry.Reading{Vehicle: "truck-1"}
		for i := range int64(20) {
			rd.Time, rd.Arrival = w.last+i*5000+1, w.last+i*5000+1
			rd.Signals = []telemetry.Signal{{ID: telemetry.EngineTemp, Value: 90}, {ID: telemetry.Speed, Value: 50}}
			if _, _, err := w.Observe(&rd, nil); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func BenchmarkFold(b *testing.B) {
	cat := telemetry.NewCatalog()
	recs := drive(400)
	b.ReportAllocs()
	for b.Loop() {
		f := New(Config{Plan: mustCompile(b, Shipped(), cat), Catalog: cat})
		l := f.Lane("s", 0)
		if err := l.Fold(context.Background(), empty{}, recs); err != nil {
			b.Fatal(err)
		}
		l.Close()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(recs)), "ns/reading")
}

type empty struct{}

func (empty) Get([]byte) ([]byte, error)                        { return nil, nil }
func (empty) Scan(_, _ []byte, _ func(k, v []byte) error) error { return nil }

// A reading that its partition key brought to another shard than its vehicle's is passed over: two lanes would write one vehicle.
func TestMisplaced(t *testing.T) {
	r := newRunner(t)
	log := processtest.NewLog(2)
	shards, err := log.Shards(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	own := shards[slices.IndexFunc(shards, func(sh stream.Shard) bool { return sh.Contains(stream.KeyHash("truck-1")) })]
	other := "a"
	for own.Contains(stream.KeyHash(other)) {
		other += "a"
	}
	log.Put("truck-1", `{"vehicle_id":"truck-1","ts":"2026-06-01T08:00:00Z","engine_temp":88}`)
	log.Put(other, `{"vehicle_id":"truck-1","ts":"2026-06-01T09:00:00Z","engine_temp":88}`)
	run, err := process.New(process.Config{Log: log, StreamName: "readings", Store: r.store})
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	if err := run.AddFolder(New(Config{Plan: r.plan, Source: log, Catalog: r.cat, Metrics: reg}), process.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(run.Start(), run.WaitCaughtUp(t.Context()), run.Stop(t.Context())); err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		got[f.GetName()] = f.GetMetric()[0].GetCounter().GetValue()
	}
	if got["milepost_anomaly_misplaced_total"] != 1 || got["milepost_anomaly_readings_total"] != 1 {
		t.Errorf("%v readings were judged and %v misplaced, want one of each", got["milepost_anomaly_readings_total"], got["milepost_anomaly_misplaced_total"])
	}
}
