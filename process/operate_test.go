package process_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/processtest"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// A stopped function goes where Reset says, with any number of lanes before and after.
func TestReset(t *testing.T) {
	for _, lanes := range [][2]int{{1, 1}, {3, 1}, {1, 3}} {
		t.Run(fmt.Sprint(lanes), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // begins at 2000-01-01 00:00 UTC
				b := newBench(t, 1)
				b.putAll("a")
				time.Sleep(time.Hour)
				mid := b.log.Put("k", "b")
				time.Sleep(time.Hour)
				b.putAll("c")
				h := &handler{name: "f", f: poisoned}
				b.handle(h, process.Options{Lanes: lanes[0], BatchSize: 1})
				check := func(to process.Target, wanted ...string) {
					t.Helper()
					if err := process.Reset(t.Context(), b.config(), "f", to); err != nil {
						t.Fatal(err)
					}
					n := len(h.made())
					b.handle(h, process.Options{Lanes: lanes[1], BatchSize: 1, Start: process.Latest})
					want(t, h.made()[n:], wanted...)
				}
				want(t, h.made(), "1: a", "1: b", "1: c")
				check(process.Target{Start: process.Oldest}, "1: a", "1: b", "1: c")
				check(process.Target{Start: process.AtTime, Time: mid.Time}, "1: b", "1: c")
				check(process.Target{Shard: mid.Shard, Pos: mid.Pos}, "1: c")
				check(process.Target{Shard: mid.Shard}, "1: a", "1: b", "1: c")
				if err := process.Reset(t.Context(), b.config(), "f", process.Target{Start: process.Oldest}); err != nil {
					t.Fatal(err)
				}
				check(process.Target{Start: process.Latest})
				time.Sleep(time.Hour)
				b.putAll("d")
				check(process.Target{Start: process.AtTime, Time: time.Now()}, "1: d")
				if err := b.store.Close(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// TestIdle: what waits for a function that does not run, before it ever has and after, with several lanes, and behind retention.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		defer b.store.Close()
		check := func(what string, o process.Options, lag, minutes int64) {
			t.Helper()
			got, err := process.Idle(t.Context(), b.config(), "f", o)
			if err != nil || len(got) != 1 || got[0].State != process.StateStopped {
				t.Fatalf("%s: %+v, %v", what, got, err)
			}
			worst := process.LaneStatus{}
			for _, l := range got[0].Lanes {
				worst.Lag, worst.IteratorAgeMS = max(worst.Lag, l.Lag), max(worst.IteratorAgeMS, l.IteratorAgeMS)
			}
			if worst.Lag != lag || worst.IteratorAgeMS/60_000 != minutes {
				t.Errorf("%s: %d records, %d ms; want %d and %d minutes", what, worst.Lag, worst.IteratorAgeMS, lag, minutes)
			}
		}
		oldest := process.Options{Start: process.Oldest}
		check("an empty stream", oldest, 0, 0)
		b.putAll("a")
		time.Sleep(time.Minute)
		mid := b.log.Put("k", "b")
		time.Sleep(2 * time.Minute)
		check("never ran, oldest", oldest, 2, 3)
		check("never ran, latest", process.Options{Start: process.Latest}, 0, 0)
		check("never ran, a time", process.Options{Start: process.AtTime, StartTime: mid.Time}, 1, 2)
		b.handle(&handler{name: "f", f: poisoned}, process.Options{Lanes: 3, BatchSize: 1, Start: process.Oldest})
		check("it has run", oldest, 0, 0)
		check("it has run, so where it would begin is no matter", process.Options{Start: process.Latest}, 0, 0)
		b.log.Put("k", "c")
		time.Sleep(time.Minute)
		b.log.Put("k", "d")
		time.Sleep(time.Minute)
		check("two came since", process.Options{Start: process.Latest}, 2, 2)
		if err := process.Reset(t.Context(), b.config(), "f", process.Target{Start: process.Oldest}); err != nil {
			t.Fatal(err)
		}
		check("from the beginning", oldest, 4, 5)
		b.log.Trim(mid.Shard, 2)
		check("from the beginning that retention has left", oldest, 2, 2)
		b.log.Trim(mid.Shard, 2)
		check("retention has left nothing", oldest, 0, 0)
	})
}

func TestResetRefuses(t *testing.T) {
	b := newBench(t, 1)
	for _, c := range []struct {
		to   process.Target
		want string
	}{
		{process.Target{}, "use oldest"},
		{process.Target{Start: process.AtTime}, "needs a time"},
		{process.Target{Shard: "shardId-000000000009"}, "no such shard"},
	} {
		if err := process.Reset(t.Context(), b.config(), "f", c.to); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Reset to %+v = %v, want %q", c.to, err, c.want)
		}
	}
}

// A function that never ran can be put in its place beforehand.
func TestResetBeforeFirstRun(t *testing.T) {
	b := newBench(t, 2)
	b.putAll("a")
	if err := process.Reset(t.Context(), b.config(), "f", process.Target{Start: process.Latest}); err != nil {
		t.Fatal(err)
	}
	b.putAll("b")
	h := &handler{name: "f", f: poisoned}
	b.handle(h, process.Options{Lanes: 2})
	want(t, h.made(), "1: b")
}

// A function that runs while it is reset stops, and does not undo it.
func TestResetFences(t *testing.T) {
	b := newBench(t, 1)
	b.putAll("a")
	entered, leave := make(chan struct{}), make(chan struct{})
	h := &handler{name: "f", f: func(context.Context, *process.Invocation) (process.Result, error) {
		entered <- struct{}{}
		<-leave
		return process.Result{}, nil
	}}
	r := b.start(func(r *process.Runner) error { return r.AddHandler(h, process.Options{}) })
	<-entered
	if err := process.Reset(t.Context(), b.config(), "f", process.Target{Start: process.Latest}); err != nil {
		t.Fatal(err)
	}
	close(leave)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := r.WaitCaughtUp(ctx); err == nil || !strings.Contains(err.Error(), "another owner") {
		t.Errorf("WaitCaughtUp of the fenced runner = %v", err)
	}
	b.stop(r)
}

// Forget leaves nothing of a function, and nothing else is touched: one of the same name begins anew.
func TestForget(t *testing.T) {
	b := newBench(t, 2)
	put(b.log, 40, key, data)
	o := process.Options{Lanes: 3, StableBatches: true}
	h, other := &handler{name: "f", f: poisoned}, &handler{name: "f2", f: poisoned}
	b.handle(h, o)
	b.handle(other, o)
	if err := process.Forget(t.Context(), b.config(), "f"); err != nil {
		t.Fatal(err)
	}
	if err := b.store.View(t.Context(), func(r state.Reader) error {
		return r.Scan(nil, nil, func(k, _ []byte) error {
			if !strings.Contains(string(k), "f2") {
				t.Errorf("key %q is left", k)
			}
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	n := len(other.made())
	b.handle(other, o)
	if got := len(other.made()); got != n {
		t.Errorf("%d calls of the other function, want %d", got, n)
	}
	put(b.log, 1, key, func(int) string { return "new" })
	n = len(h.made())
	b.handle(h, process.Options{Start: process.Latest})
	want(t, h.made()[n:])
}

// Several runners over one store share an outbox and a meter: dead letters are appended once, and metrics are registered once.
func TestSharedOutboxAndMeter(t *testing.T) {
	b := newBench(t, 1)
	put(b.log, 300, key, func(int) string { return "X" })
	reg := prometheus.NewRegistry()
	meter, err := process.NewMeter(reg)
	if err != nil {
		t.Fatal(err)
	}
	out := processtest.NewLog(1)
	box, err := process.NewOutbox(process.OutboxConfig{
		Store: b.store, DeadLetters: b.dead, Streams: to(map[string]stream.Log{"out": out}), Metrics: reg,
	})
	if err == nil {
		err = box.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	cfg := b.config()
	cfg.DeadLetters, cfg.Outbox, cfg.Meter = nil, box, meter
	var runners []*process.Runner
	for i := range 4 {
		r, err := process.New(cfg)
		if err == nil {
			err = errors.Join(r.AddHandler(&handler{name: fmt.Sprint("f", i), f: poisoned}, quick(process.Options{MaxAttempts: 1, Output: "out"})), r.Start())
		}
		if err != nil {
			t.Fatal(err)
		}
		runners = append(runners, r)
	}
	twin, err := process.New(cfg)
	if err == nil {
		err = twin.AddHandler(&handler{name: "f2", f: poisoned}, process.Options{})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := twin.Start(); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("a second runner of a function started: %v", err)
	}
	for _, r := range runners {
		b.caughtUp(r)
	}
	if n := series(t, reg, "milepost_process_invocations_total"); n != 4 {
		t.Errorf("%d series of invocations, want 4", n)
	}
	for _, r := range runners {
		b.stop(r)
	}
	b.stop(twin)
	if n := series(t, reg, "milepost_process_invocations_total"); n != 0 {
		t.Errorf("%d series of invocations, want none after the stop", n)
	}
	if err := box.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	meter.Close()
	if n := len(b.dead.All()); n != 1200 {
		t.Errorf("%d letters appended, want 1200", n)
	}
}

// series counts the series of a metric.
func series(t *testing.T, reg *prometheus.Registry, name string) int {
	t.Helper()
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == name {
			return len(f.GetMetric())
		}
	}
	return 0
}

// A gate lets so many run at once; the higher priority goes first, and the lower gets its turn.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 4)
		put(b.log, 400, key, data)
		gate := process.NewGate(2)
		var in, most atomic.Int32
		clk := newClock()
		busy := func(name string) *handler {
			return &handler{name: name, f: func(context.Context, *process.Invocation) (process.Result, error) {
				n := in.Add(1)
				defer in.Add(-1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				clk.note("%s", name)
				time.Sleep(time.Second)
				return process.Result{}, nil
			}}
		}
		low, high := busy("low"), busy("high")
		cfg := b.config()
		cfg.Gate = gate
		r, err := process.New(cfg)
		if err == nil {
			err = errors.Join(r.AddHandler(low, process.Options{BatchSize: 5}), r.AddHandler(high, process.Options{BatchSize: 5, Priority: 5}), r.Start())
		}
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(20*time.Second + time.Millisecond)
		if st := gate.Status(); st.Limit != 2 || st.Running != 2 || st.Waiting < 4 || st.Waits == 0 {
			t.Errorf("gate %+v", st)
		}
		h, l := len(high.made()), len(low.made())
		if h < 3*l || l < 3 {
			t.Errorf("%d calls of the higher priority and %d of the lower", h, l)
		}
		b.stop(r)
		if most.Load() != 2 {
			t.Errorf("%d ran at once, want 2", most.Load())
		}
		if st := gate.Status(); st.Running != 0 || st.Waiting != 0 {
			t.Errorf("gate %+v after the stop", st)
		}
		if err := b.store.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// A breaker opens after so many failures in a row, over all lanes; while it is open nobody calls; one probe closes it.
func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 3)
		put(b.log, 60, key, data)
		clk := newClock()
		var down atomic.Bool
		down.Store(true)
		h := &handler{name: "f", f: func(context.Context, *process.Invocation) (process.Result, error) {
			clk.note("call")
			if down.Load() {
				return process.Result{}, errors.New("down")
			}
			return process.Result{}, nil
		}}
		r := b.start(func(r *process.Runner) error {
			return r.AddHandler(h, process.Options{
				Breaker: process.Breaker{Failures: 3, Pause: time.Minute}, MinBackoff: time.Second, MaxBackoff: time.Second, MaxAttempts: 4,
			})
		})
		time.Sleep(30 * time.Second)
		st := r.Status(t.Context())[0]
		if br := st.Breaker; br.State != process.BreakerOpen || br.Opened != 1 || br.Failures != 3 || br.Held == 0 || !br.Until.Equal(clk.start.Add(time.Minute)) {
			t.Errorf("breaker %s", show(br))
		}
		time.Sleep(45 * time.Second) // a probe at 1m fails
		down.Store(false)
		time.Sleep(time.Minute)
		if br := r.Status(t.Context())[0].Breaker; br.State != process.BreakerClosed || br.Opened != 2 {
			t.Errorf("breaker %s", show(br))
		}
		b.caughtUp(r)
		b.stop(r)
		want(t, clk.all()[:5], "0s call", "0s call", "0s call", "1m0s call", "2m0s call")
		want(t, deadData(b.letters()))
		if err := b.store.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
