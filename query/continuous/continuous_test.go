package continuous

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/query"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/stream"
)

// engine answers each window with one row that names it.
type engine struct {
	query.None
	asked []string
	fail  func() error
	rows  string
}

func (e *engine) Query(_ context.Context, sql string, f query.Format, lim query.Limits, w io.Writer) (query.Result, error) {
	if f != query.JSON || lim.Rows != DefaultRows {
		return query.Result{}, fmt.Errorf("format %s, limits %+v", f, lim)
	}
	e.asked = append(e.asked, sql)
	if e.fail != nil {
		if err := e.fail(); err != nil {
			return query.Result{}, err
		}
	}
	rows := e.rows
	if rows == "" {
		rows = `[["T1",1.5],["T2",null]]`
	}
	_, err := io.WriteString(w, `{"columns":[{"name":"vehicle_id","type":"VARCHAR"},{"name":"x","type":"DOUBLE"}],"rows":`+rows+`,"truncated":false,"elapsed_ms":1}`)
	return query.Result{}, err
}

func output(name, id string, recs []stream.Record) state.Effect {
	var sb strings.Builder
	for _, r := range recs {
		fmt.Fprintf(&sb, "%s %s\n", r.Key, r.Data)
	}
	return state.Effect{ID: id, Kind: "to " + name, Data: []byte(sb.String())}
}

func spec() Spec {
	return Spec{Name: "q", SQL: "SELECT * FROM readings WHERE t >= $start AND t < $end", Every: time.Minute, Output: "out", Key: "vehicle_id"}
}

func open(t *testing.T, fs *vfs.MemFS) *local.Store {
	t.Helper()
	s, err := local.Open(local.Config{Dir: "state", FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pending(t *testing.T, s state.Store) []string {
	t.Helper()
	es, _, err := s.Pending(context.Background(), "to out", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range es {
		out = append(out, e.ID)
	}
	return out
}

func at(s string) time.Time {
	t, err := time.Parse("15:04:05", s)
	if err != nil {
		panic(err)
	}
	return time.Date(2026, 11, 21, t.Hour(), t.Minute(), t.Second(), 0, time.UTC)
}

func ended(times ...string) []string {
	var out []string
	for _, s := range times {
		out = append(out, fmt.Sprintf("continuous/q/%d", at(s).UnixMilli()))
	}
	return out
}

func TestWindows(t *testing.T) {
	e, store := &engine{}, open(t, vfs.NewCrashable())
	defer store.Close()
	q, err := New(Config{Queries: []Spec{spec()}, Engine: e, Store: store, Output: output})
	if err != nil {
		t.Fatal(err)
	}
	r := q.all[0]
	step := func(now string, wantMore bool) {
		t.Helper()
		more, err := r.step(t.Context(), at(now), false)
		if err != nil || more != wantMore {
			t.Errorf("%s: more %v, %v", now, more, err)
		}
	}
	step("10:00:45", false) // new: 10:00 has closed before, 10:01 is the first
	step("10:01:29", false)
	step("10:01:30", false) // closes 10:01
	step("10:01:31", false)
	step("10:04:40", true) // two were missed
	step("10:04:40", true)
	step("10:04:40", false)
	if diff := cmp.Diff(ended("10:01:00", "10:02:00", "10:03:00", "10:04:00"), pending(t, store)); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	want := "SELECT * FROM readings WHERE t >= (TIMESTAMPTZ '2026-11-21 10:00:00.000+00') AND t < (TIMESTAMPTZ '2026-11-21 10:01:00.000+00')"
	if len(e.asked) != 4 || e.asked[0] != want {
		t.Errorf("asked %q", e.asked)
	}
	es, _, _ := store.Pending(t.Context(), "to out", 1)
	body := fmt.Sprintf("T1 {\"query\":\"q\",\"start\":%[1]d,\"end\":%[2]d,\"vehicle_id\":\"T1\",\"x\":1.5}\nT2 {\"query\":\"q\",\"start\":%[1]d,\"end\":%[2]d,\"vehicle_id\":\"T2\",\"x\":null}\n",
		at("10:00:00").UnixMilli(), at("10:01:00").UnixMilli())
	if diff := cmp.Diff(body, string(es[0].Data)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	// Three hours off: an hour is caught up, the rest skipped.
	step("13:04:30", true)
	n := 0
	for more := true; more; n++ {
		if more, err = r.step(t.Context(), at("13:04:30"), false); err != nil {
			t.Fatal(err)
		}
	}
	if s := q.Status()[0]; n != 61 || s.Skipped != 119 || s.Last != at("13:04:00") {
		t.Errorf("%d steps, %+v", n, s)
	}
	// Nothing found: nothing told.
	e.rows = "[]"
	had := len(pending(t, store))
	step("13:05:30", false)
	if len(pending(t, store)) != had {
		t.Error("an empty window made an effect")
	}
}

func TestFailures(t *testing.T) {
	e, store := &engine{}, open(t, vfs.NewCrashable())
	defer store.Close()
	q, err := New(Config{Queries: []Spec{spec()}, Engine: e, Store: store, Output: output})
	if err != nil {
		t.Fatal(err)
	}
	r := q.all[0]
	if _, err := r.step(t.Context(), at("10:00:45"), false); err != nil {
		t.Fatal(err)
	}
	e.fail = func() error { return query.ErrBusy }
	if _, err := r.step(t.Context(), at("10:01:30"), true); !errors.Is(err, query.ErrBusy) {
		t.Errorf("busy is nobody's fault: %v", err)
	}
	e.fail = func() error { return &query.UserError{Msg: "no such table"} }
	if _, err := r.step(t.Context(), at("10:01:30"), false); err == nil {
		t.Error("no error")
	}
	if more, err := r.step(t.Context(), at("10:02:30"), true); err != nil || !more {
		t.Errorf("given up: %v %v", more, err)
	}
	e.fail = nil
	if _, err := r.step(t.Context(), at("10:02:30"), true); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(ended("10:02:00"), pending(t, store)); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	if s := q.Status()[0]; s.GivenUp != 1 || s.Windows != 1 {
		t.Errorf("%+v", s)
	}
}

// Whatever is lost, each window is told once.
func TestCrashes(t *testing.T) {
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 3))
		fs := vfs.NewCrashable()
		e := &engine{}
		told := map[string]int{}
		now := at("00:00:00")
		store := open(t, fs)
		for range 300 {
			q, err := New(Config{Queries: []Spec{spec()}, Engine: e, Store: store, Output: output})
			if err != nil {
				t.Fatal(err)
			}
			now = now.Add(time.Duration(rng.IntN(100)) * time.Second)
			e.fail = func() error {
				if rng.IntN(5) == 0 {
					return errors.New("oops")
				}
				return nil
			}
			_, _ = q.all[0].step(t.Context(), now, false)
			switch rng.IntN(6) {
			case 0: // what is pending is carried out
				for _, id := range pending(t, store) {
					told[id]++
					if err := store.Done(t.Context(), "to out", id); err != nil {
						t.Fatal(err)
					}
				}
				// Done is not synced by itself: the next step would do that. Make it so here.
				if err := store.Update(t.Context(), func(tx state.Tx) error { return tx.Set([]byte("x"), nil) }); err != nil {
					t.Fatal(err)
				}
			case 1:
				clone := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
				if err := store.Close(); err != nil {
					t.Fatal(err)
				}
				fs = clone
				store = open(t, fs)
			}
		}
		for _, id := range pending(t, store) {
			told[id]++
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		if len(told) < 50 {
			t.Errorf("seed %d: only %d windows", seed, len(told))
		}
		first, last := int64(1<<62), int64(0)
		for id, n := range told {
			var ms int64
			fmt.Sscanf(id, "continuous/q/%d", &ms)
			first, last = min(first, ms), max(last, ms)
			if n != 1 {
				t.Errorf("seed %d: %s was told %d times", seed, id, n)
			}
		}
		if want := int((last-first)/60_000) + 1; len(told) != want {
			t.Errorf("seed %d: %d windows told of %d", seed, len(told), want)
		}
	}
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memory{}
		e := &engine{}
		s := spec()
		s.Lateness = -1
		q, err := New(Config{Queries: []Spec{s}, Engine: e, Store: &store, Output: output})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- q.Run(ctx) }()
		time.Sleep(5*time.Minute + 30*time.Second)
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if len(store.effects) != 5 {
			t.Errorf("%d windows in five minutes", len(store.effects))
		}
	})
}

// memory is as much of a store as Run needs, without goroutines of its own.
type memory struct {
	state.Store
	kv      map[string][]byte
	effects []state.Effect
}

type memoryTx struct {
	state.Tx
	m *memory
}

func (t memoryTx) Get(k []byte) ([]byte, error) { return t.m.kv[string(k)], nil }
func (t memoryTx) Set(k, v []byte) error {
	if t.m.kv == nil {
		t.m.kv = map[string][]byte{}
	}
	t.m.kv[string(k)] = append([]byte{}, v...)
	return nil
}

func (t memoryTx) Emit(e state.Effect) error {
	t.m.effects = append(t.m.effects, e)
	return nil
}
func (m *memory) View(_ context.Context, f func(state.Reader) error) error { return f(memoryTx{m: m}) }
func (m *memory) Update(_ context.Context, f func(state.Tx) error) error   { return f(memoryTx{m: m}) }

func TestMistakes(t *testing.T) {
	f := func(change func(*Spec), want string) {
		t.Helper()
		s := spec()
		change(&s)
		_, err := New(Config{Queries: []Spec{s}, Engine: &engine{}, Store: &memory{}, Output: output})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	f(func(s *Spec) { s.Name = "a b" }, "name:")
	f(func(s *Spec) { s.SQL = "" }, "sql is missing")
	f(func(s *Spec) { s.SQL = "SELECT 1" }, "must use $start and $end")
	f(func(s *Spec) { s.SQL = "SELECT '$start', $end" }, "must use $start and $end")
	f(func(s *Spec) { s.SQL = "SELECT $start, $end, $stop" }, "byte 21: there is no $stop")
	f(func(s *Spec) { s.SQL = "SELECT $start, $end, 'a" }, "is not closed")
	f(func(s *Spec) { s.SQL = "SELECT $$a$$, $start, $end" }, "there is no $")
	f(func(s *Spec) { s.Every = time.Millisecond }, "every:")
	f(func(s *Spec) { s.Size = time.Second }, "size:")
	f(func(s *Spec) { s.Output = "" }, "output is missing")
	f(func(s *Spec) { s.Rows = 1 << 30 }, "rows:")
	_, err := New(Config{Queries: []Spec{spec(), spec()}, Engine: &engine{}, Store: &memory{}, Output: output})
	if err == nil || !strings.Contains(err.Error(), "its name is taken") {
		t.Errorf("got %v", err)
	}
}

func FuzzParseSQL(f *testing.F) {
	f.Add("SELECT a$start, \"$end\" -- $x\n /* $y */ FROM t WHERE '$z' < $start AND x < $end")
	f.Fuzz(func(t *testing.T, sql string) {
		p, err := parseSQL(sql)
		if err != nil {
			return
		}
		back := strings.Join(p.parts, "")
		if back != sql {
			t.Errorf("%q became %q", sql, back)
		}
	})
}
