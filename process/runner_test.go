package process_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

func journaling(name string) function {
	return function{name, func(_ context.Context, tx state.Tx, recs []stream.Record) error { return journal(tx, recs) }}
}

func quick(o process.Options) process.Options {
	o.MinBackoff, o.MaxBackoff = time.Microsecond, time.Millisecond
	return o
}

// A rejected record is dead-lettered, what precedes it commits, what follows goes on; the attempts of the others are not touched.
func TestReject(t *testing.T) {
	b := newBench(t, 1)
	for _, d := range []string{"a", "bad1", "b", "c", "bad2", "bad3"} {
		b.log.Put("k", d)
	}
	var calls []string
	r := b.start(func(r *process.Runner) error {
		return r.Add(function{"f", func(_ context.Context, tx state.Tx, recs []stream.Record) error {
			calls = append(calls, words(recs))
			for _, rec := range slices.Backward(recs) { // the last first: earlier ones are found when it is out of the way
				if strings.HasPrefix(string(rec.Data), "bad") {
					return &process.RejectError{Pos: rec.Pos, Err: errors.New("no good")}
				}
			}
			return journal(tx, recs)
		}}, process.Options{MaxAttempts: 1})
	})
	b.caughtUp(r)
	b.stop(r)
	want(t, b.values(), "k=abc")
	letters := b.letters()
	want(t, deadData(letters), "bad1", "bad2", "bad3")
	for id, d := range letters {
		if d.Reason != "no good" || d.Source != "function f" || d.Key != "k" || d.Stream != "readings" ||
			id != fmt.Sprintf("f/%s/%s", d.Shard, d.Position) {
			t.Errorf("letter %s", show(d))
		}
	}
	if st := r.Status(t.Context())[0].Shards[0].Lanes[0]; st.DeadLetters != 3 || st.Records != 3 || st.Errors != 0 {
		t.Errorf("status %s, want 3 records and 3 letters", show(st))
	}
}

// Splitting costs no attempts, and the left half goes first.
func TestBisect(t *testing.T) {
	b := newBench(t, 1)
	for _, d := range []string{"a", "b", "X", "c"} {
		b.log.Put("k", d)
	}
	var calls []string
	r := b.start(func(r *process.Runner) error {
		return r.Add(function{"f", func(_ context.Context, tx state.Tx, recs []stream.Record) error {
			calls = append(calls, words(recs))
			if strings.Contains(words(recs), "X") {
				return errors.New("poison")
			}
			return journal(tx, recs)
		}}, quick(process.Options{Bisect: true, MaxAttempts: 2}))
	})
	b.caughtUp(r)
	b.stop(r)
	want(t, calls, "a b X c", "a b", "X c", "X", "X", "c")
	want(t, b.values(), "k=abc")
	want(t, deadData(b.letters()), "X")
	for _, d := range b.letters() {
		if want := "function f failed 2 times: poison"; d.Reason != want {
			t.Errorf("reason %q, want %q", d.Reason, want)
		}
	}
}

// Without bisecting the whole batch is given up, and the checkpoint is behind it.
func TestExhausted(t *testing.T) {
	b := newBench(t, 1)
	for _, d := range []string{"a", "X", "b"} {
		b.log.Put("k", d)
	}
	n := 0
	r := b.start(func(r *process.Runner) error {
		return r.Add(function{"f", func(_ context.Context, tx state.Tx, recs []stream.Record) error {
			n++
			if strings.Contains(words(recs), "X") {
				panic("out of cheese")
			}
			return journal(tx, recs)
		}}, quick(process.Options{MaxAttempts: 3, BatchSize: 2}))
	})
	b.caughtUp(r)
	b.stop(r)
	want(t, b.values(), "k=b")
	want(t, deadData(b.letters()), "X", "a")
	if n != 4 {
		t.Errorf("%d calls, want 3 attempts and the other batch", n)
	}
	if got := strings.Count(b.logs.String(), "stack="); got != 1 {
		t.Errorf("the stack of the panic was logged %d times, want once\n%s", got, b.logs)
	}
}

// A fold's poison is narrowed down to one record; what surrounds it is folded once.
func TestFoldPoison(t *testing.T) {
	for _, reject := range []bool{false, true} {
		t.Run(fmt.Sprint("reject ", reject), func(t *testing.T) {
			b := newBench(t, 2)
			bad := map[string]bool{"13,": true, "14,": true, "500,": true, "999,": true}
			put(b.log, 1000, key, data)
			calls := 0
			var mu sync.Mutex
			j := &journalFolder{name: "j", before: func(recs []stream.Record) error {
				mu.Lock()
				defer mu.Unlock()
				calls++
				for _, r := range recs {
					switch {
					case !bad[string(r.Data)]:
					case reject:
						return &process.RejectError{Pos: r.Pos, Err: errors.New("bad")}
					default:
						return errors.New("bad")
					}
				}
				return nil
			}}
			r := b.start(func(r *process.Runner) error { return r.AddFolder(j, quick(process.Options{MaxAttempts: 3})) })
			b.caughtUp(r)
			b.stop(r)
			want(t, b.values(), journalOf(b.log, func(r stream.Record) bool { return bad[string(r.Data)] })...)
			want(t, deadData(b.letters()), "13,", "14,", "500,", "999,")
			if reject && calls > 20 || calls > 1200 {
				t.Errorf("%d calls of Fold", calls)
			}
		})
	}
}

// Children wait for all parents (P2), and a new shard is noticed without waiting.
func TestParentsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2)
		put(b.log, 200, key, data)
		hold := make(chan struct{})
		r := b.start(func(r *process.Runner) error {
			return r.Add(function{"f", func(_ context.Context, tx state.Tx, recs []stream.Record) error {
				if recs[0].Shard == "shardId-000000000001" {
					<-hold
				}
				return journal(tx, recs)
			}}, process.Options{})
		})
		synctest.Wait()
		if !b.log.Merge("shardId-000000000000", "shardId-000000000001") {
			t.Fatal("no merge")
		}
		put(b.log, 50, key, data)
		synctest.Wait()
		var got []string
		for _, s := range r.Status(t.Context())[0].Shards {
			got = append(got, string(s.State))
		}
		want(t, got, "finished", "running", "waiting for parents")
		close(hold)
		synctest.Wait()
		b.caughtUp(r)
		b.stop(r)
		want(t, b.values(), journalOf(b.log, nil)...)
		if err := b.store.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestStart(t *testing.T) {
	for _, c := range []struct {
		o    process.Options
		want string
	}{
		{process.Options{}, "old mid new child"},
		{process.Options{Start: process.Latest}, "new child"},
		{process.Options{Start: process.Latest, Lanes: 3}, "new child"},
		{process.Options{Start: process.AtTime, StartTime: time.Date(2000, 1, 1, 0, 30, 0, 0, time.UTC)}, "mid new child"},
	} {
		t.Run(fmt.Sprint(c.o.Start, " lanes ", c.o.Lanes), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // begins at 2000-01-01 00:00 UTC
				b := newBench(t, 1)
				b.log.Put("k", "old ")
				time.Sleep(time.Hour)
				b.log.Put("k", "mid ")
				run := func(o process.Options) {
					r := b.start(func(r *process.Runner) error { return r.Add(journaling("f"), o) })
					b.caughtUp(r)
					b.stop(r)
				}
				run(c.o)
				b.log.Put("k", "new ")
				b.log.Split("shardId-000000000000")
				b.log.Put("k", "child")
				run(process.Options{Start: process.Latest}) // the checkpoint counts now
				want(t, b.values(), "k="+c.want)
				if err := b.store.Close(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// A second owner is fenced: one of the two stops, says so, and every record counts once.
func TestSecondOwner(t *testing.T) {
	b := newBench(t, 1)
	put(b.log, 100, key, data)
	var turn atomic.Int32
	gate := make(chan struct{})
	slow := function{"f", func(_ context.Context, tx state.Tx, recs []stream.Record) error {
		if turn.Add(1) == 1 {
			close(gate)
		}
		return journal(tx, recs)
	}}
	one := b.start(func(r *process.Runner) error { return r.Add(slow, process.Options{BatchSize: 10}) })
	<-gate
	two := b.start(func(r *process.Runner) error { return r.Add(slow, process.Options{BatchSize: 7}) })
	for i := 0; ; i++ {
		b.log.Put(key(i), data(1000+i))
		s1, s2 := stateOf(one), stateOf(two)
		if s1 == process.StateStopped || s2 == process.StateStopped {
			loser := one
			if s2 == process.StateStopped {
				loser = two
			}
			err := loser.WaitCaughtUp(t.Context())
			if err == nil || !strings.Contains(err.Error(), "another owner") {
				t.Errorf("WaitCaughtUp of the fenced runner = %v", err)
			}
			break
		}
		runtime.Gosched()
	}
	b.stop(one)
	b.stop(two)
	three := b.start(func(r *process.Runner) error { return r.Add(journaling("f"), process.Options{}) })
	b.caughtUp(three)
	b.stop(three)
	want(t, b.values(), journalOf(b.log, nil)...)
}

func stateOf(r *process.Runner) process.State {
	fs := r.Status(context.Background())
	if len(fs) == 0 || len(fs[0].Shards) == 0 {
		return ""
	}
	return fs[0].Shards[0].State
}

// Dead letters wait for their stream, and are kept over a restart.
func TestDeadLettersWait(t *testing.T) {
	b := newBench(t, 1)
	b.dead.FailWith(func(op string) error {
		if op == "append" {
			return stream.ErrFull
		}
		return nil
	})
	put(b.log, 250, key, data)
	add := func(r *process.Runner) error {
		return r.Add(function{"f", func(context.Context, state.Tx, []stream.Record) error { return errors.New("no") }},
			quick(process.Options{MaxAttempts: 1}))
	}
	r := b.start(add)
	b.caughtUp(r)
	b.stop(r)
	if n := len(b.letters()); n != 0 {
		t.Fatalf("%d letters in a log that fails", n)
	}
	b.dead.FailWith(nil)
	r = b.start(add)
	b.stop(r) // posts what is left before it returns
	if n := len(b.letters()); n != 250 {
		t.Errorf("%d letters, want 250", n)
	}
	if n := len(b.dead.All()); n != 250 {
		t.Errorf("%d appended, want 250", n)
	}
}

// A log that fails is read again.
func TestLogFails(t *testing.T) {
	for _, folder := range []bool{false, true} {
		t.Run(fmt.Sprint("folder ", folder), func(t *testing.T) {
			b := newBench(t, 1)
			var n atomic.Int32
			b.log.FailWith(func(op string) error {
				if op == "next" || op == "read" {
					if i := n.Add(1); i < 30 && i%3 != 0 {
						return errors.New("i/o error")
					}
				}
				return nil
			})
			put(b.log, 100, key, data)
			r := b.start(func(r *process.Runner) error {
				if folder {
					return r.AddFolder(&journalFolder{name: "f"}, quick(process.Options{}))
				}
				return r.Add(journaling("f"), quick(process.Options{BatchSize: 9}))
			})
			b.caughtUp(r)
			st := r.Status(t.Context())[0].Shards[0].Lanes[0]
			b.stop(r)
			want(t, b.values(), journalOf(b.log, nil)...)
			if st.Errors == 0 || st.LastError == "" || st.State != process.StateRunning {
				t.Errorf("status after trouble: %s", show(st))
			}
		})
	}
}

// P7: records that retention removed before they were read are counted and logged.
func TestMissed(t *testing.T) {
	b := newBench(t, 1)
	put(b.log, 10, key, data)
	run := func() *process.Runner {
		r := b.start(func(r *process.Runner) error { return r.Add(journaling("f"), process.Options{}) })
		b.caughtUp(r)
		b.stop(r)
		return r
	}
	run()
	put(b.log, 10, key, data)
	b.log.Trim("shardId-000000000000", 15)
	r := run()
	if st := r.Status(t.Context())[0].Shards[0].Lanes[0]; st.Missed != 5 || st.Records != 5 {
		t.Errorf("missed %d, processed %d; want 5, 5", st.Missed, st.Records)
	}
	if !strings.Contains(b.logs.String(), "retention removed records") {
		t.Error("nothing was logged")
	}
}

// Stop finishes the batch in flight; a Stop that is out of patience interrupts it, and the next start runs it again.
func TestStop(t *testing.T) {
	for _, patient := range []bool{true, false} {
		t.Run(fmt.Sprint("patient ", patient), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, 1)
				put(b.log, 30, key, data)
				begun, release := make(chan struct{}), make(chan struct{})
				var once sync.Once
				r := b.start(func(r *process.Runner) error {
					return r.Add(function{"f", func(ctx context.Context, tx state.Tx, recs []stream.Record) error {
						once.Do(func() { close(begun) })
						select {
						case <-release:
						case <-ctx.Done():
							return ctx.Err()
						}
						return journal(tx, recs)
					}}, process.Options{BatchSize: 10, MaxAttempts: 1})
				})
				<-begun
				ctx, cancel := context.WithCancel(t.Context())
				if patient {
					time.AfterFunc(time.Millisecond, func() { close(release) })
				} else {
					cancel()
				}
				err := r.Stop(ctx)
				cancel()
				if patient != (err == nil) {
					t.Errorf("Stop = %v", err)
				}
				n := 0
				for _, v := range b.values() {
					n += strings.Count(v, ",")
				}
				if patient && n != 10 && n != 20 && n != 30 || !patient && n != 0 {
					t.Errorf("%d records processed", n)
				}
				r = b.start(func(r *process.Runner) error { return r.Add(journaling("f"), process.Options{}) })
				b.caughtUp(r)
				b.stop(r)
				want(t, b.values(), journalOf(b.log, nil)...)
				want(t, deadData(b.letters()))
				if err := r.WaitCaughtUp(t.Context()); err != nil {
					t.Errorf("WaitCaughtUp of a stopped runner that was done: %v", err)
				}
				if err := b.store.Close(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestStatusAndMetrics(t *testing.T) {
	b := newBench(t, 2)
	put(b.log, 100, key, data)
	reg := prometheus.NewRegistry()
	cfg := b.config()
	cfg.Metrics = reg
	for range 2 { // metrics are unregistered at the stop
		r, err := process.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(r.Add(journaling("f"), process.Options{Lanes: 2}), r.AddFolder(&journalFolder{name: "g"}, process.Options{}), r.Start()); err != nil {
			t.Fatal(err)
		}
		b.caughtUp(r)
		st := r.Status(t.Context())
		if len(st) != 2 || st[0].Name != "f" || st[0].Folder || !st[1].Folder || len(st[0].Shards) != 2 || len(st[0].Shards[0].Lanes) != 2 {
			t.Fatalf("status %s", show(st))
		}
		for _, f := range st {
			for _, s := range f.Shards {
				for _, l := range s.Lanes {
					if s.State != process.StateRunning || l.Lag != 0 || l.IteratorAgeMS != 0 || l.Checkpoint == "" {
						t.Errorf("%s %s", f.Name, show(s))
					}
				}
			}
		}
		fams, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range fams {
			for _, m := range f.GetMetric() {
				got[f.GetName()] += m.GetCounter().GetValue()
			}
		}
		if _, ok := got["milepost_process_iterator_age_seconds"]; !ok {
			t.Error("no iterator age")
		}
		b.stop(r)
		if fams, err := reg.Gather(); err != nil || len(fams) > 0 {
			t.Errorf("%d families left after the stop, %v", len(fams), err)
		}
	}
}

func TestRun(t *testing.T) {
	b := newBench(t, 1)
	put(b.log, 10, key, data)
	r, err := process.New(b.config())
	if err == nil {
		err = r.Add(journaling("f"), process.Options{})
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	for len(r.Status(ctx)[0].Shards) == 0 { // until it has started
		runtime.Gosched()
	}
	b.caughtUp(r)
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run = %v", err)
	}
	want(t, b.values(), journalOf(b.log, nil)...)
}

func TestRefusals(t *testing.T) {
	b := newBench(t, 1)
	if _, err := process.New(process.Config{}); err == nil {
		t.Error("a runner without log and store")
	}
	r, err := process.New(b.config())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		o    process.Options
		want string
	}{
		{"", process.Options{}, "needs a name"},
		{"f", process.Options{Lanes: 11}, "use 1 to 10"},
		{"f", process.Options{Lanes: -1}, "use 1 to 10"},
		{"f", process.Options{Start: "newest"}, `start "newest"`},
		{"f", process.Options{Start: process.AtTime}, "needs a time"},
		{"f", process.Options{MaxAttempts: -2}, "max attempts"},
		{"f", process.Options{BatchSize: -1}, "must be positive"},
		{"f", process.Options{MaxAge: -1}, "negative"},
		{"f", process.Options{MaxBackoff: 1}, "before the beginning"},
	} {
		if err := r.Add(journaling(c.name), c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Add %q %+v = %v, want %q", c.name, c.o, err, c.want)
		}
	}
	if err := errors.Join(r.Add(journaling("f"), process.Options{}), r.Start()); err != nil {
		t.Fatal(err)
	}
	if r.Start() == nil || r.Add(journaling("g"), process.Options{}) == nil {
		t.Error("start twice, or add after the start")
	}
	b.stop(r)
	b.stop(r)
	never, err := process.New(b.config())
	if err != nil {
		t.Fatal(err)
	}
	b.stop(never)
}
