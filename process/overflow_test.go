package process_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/stream"
)

func lane0(r *process.Runner) process.LaneStatus {
	return r.Status(context.Background())[0].Shards[0].Lanes[0]
}

// Sampling begins beyond the bound, keeps one record in so many, and ends when the function has caught up. All is counted.
func TestOverflowSample(t *testing.T) {
	for _, keys := range []bool{false, true} {
		t.Run(fmt.Sprint("whole keys ", keys), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, 1)
				fleet := func(i int) string { return fmt.Sprintf("vehicle-%04d", i%400) }
				put(b.log, 4000, fleet, data)
				seen := map[string]int{}
				h := &handler{name: "f", f: func(_ context.Context, in *process.Invocation) (process.Result, error) {
					for _, r := range in.Records {
						seen[strings.Clone(r.Key)]++
					}
					return process.Result{}, nil
				}}
				o := process.Options{BatchSize: 100, Overflow: process.Overflow{Policy: process.OverflowSample, MaxLag: 1000, OneIn: 4, WholeKeys: keys}}
				r := b.start(func(r *process.Runner) error { return r.AddHandler(h, o) })
				b.caughtUp(r)
				b.stop(r)
				st := lane0(r)
				// 3,500 are sampled: it ends at half of the bound.
				if st.Sampled < 2400 || st.Sampled > 2800 || st.Records+st.Sampled != 4000 || st.Overflow != "" {
					t.Errorf("status %s", show(st))
				}
				whole := 0
				for _, n := range seen {
					if n == 10 {
						whole++
					}
				}
				if keys && (whole < 70 || whole > 130) || !keys && whole > 5 {
					t.Errorf("%d of 400 keys are whole", whole)
				}
				if !strings.Contains(b.logs.String(), "overflow policy is at work") || !strings.Contains(b.logs.String(), "overflow has ended") {
					t.Errorf("the log does not say what happens:\n%s", b.logs)
				}
				if err := b.store.Close(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// A paused function takes nothing and says so, until it is resumed; then it catches up before it can be paused again.
func TestOverflowPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		b.putAll("a", "b", "c")
		time.Sleep(2 * time.Minute)
		h := &handler{name: "f", f: poisoned}
		o := process.Options{BatchSize: 1, Overflow: process.Overflow{Policy: process.OverflowPause, MaxAge: time.Minute}}
		r := b.start(func(r *process.Runner) error { return r.AddHandler(h, o) })
		time.Sleep(time.Minute)
		if st := lane0(r); st.State != process.StatePaused || st.Overflow != "pause: the next record is 2m0s old" || st.Invocations != 0 {
			t.Errorf("status %s", show(st))
		}
		if st := stateOf(r); st != process.StatePaused {
			t.Errorf("shard is %q", st)
		}
		if err := r.Resume("g"); err == nil {
			t.Error("a function that is not there was resumed")
		}
		if err := r.Resume("f"); err != nil {
			t.Fatal(err)
		}
		b.caughtUp(r)
		b.putAll("d")
		b.caughtUp(r)
		if st := lane0(r); st.State != process.StateRunning || st.Overflow != "" || st.Invocations != 4 {
			t.Errorf("status %s", show(st))
		}
		b.stop(r)
		if err := b.store.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// The function goes on at the newest and catches up with what was put off when it is idle: each record once, a range in order.
func TestOverflowSpill(t *testing.T) {
	b := newBench(t, 1)
	var mu sync.Mutex
	order := map[string][]int{}
	var first []string
	h := &handler{name: "f", f: func(_ context.Context, in *process.Invocation) (process.Result, error) {
		mu.Lock()
		defer mu.Unlock()
		first = append(first, strings.Clone(string(in.Records[0].Data)))
		for _, r := range in.Records {
			n := 0
			if _, err := fmt.Sscanf(string(r.Data), "%d,", &n); err != nil {
				return process.Result{}, err
			}
			order[strings.Clone(r.Key)] = append(order[strings.Clone(r.Key)], n)
		}
		return process.Result{}, nil
	}}
	o := process.Options{Lanes: 2, BatchSize: 50, Overflow: process.Overflow{Policy: process.OverflowSpill, MaxLag: 500, Interval: time.Hour}}
	put(b.log, 3000, key, data)
	r := b.handle(h, o)
	st := r.Status(t.Context())[0].Shards[0]
	if st.Spill == nil || st.Spill.Ranges != 0 || st.Spill.Lane.CaughtUp == 0 {
		t.Fatalf("spill %s", show(st.Spill))
	}
	spilled := uint64(0)
	for _, l := range st.Lanes {
		spilled += l.Spilled
	}
	if spilled == 0 || spilled > 6000 || st.Lanes[0].Records+st.Lanes[1].Records+st.Spill.Lane.CaughtUp != 3000 {
		t.Errorf("status %s", show(st))
	}
	total := 0
	for k, ns := range order {
		total += len(ns)
		for i := 1; i < len(ns); i++ {
			if ns[i] <= ns[i-1] { // nothing else was under way, so the order is whole
				t.Errorf("%s: %d after %d", k, ns[i], ns[i-1])
			}
		}
	}
	if total != 3000 {
		t.Errorf("%d records processed, want each once", total)
	}
}

// A function that is stuck on poison goes on at the newest; the range with the poison is tried again beside it, and survives a
// crash and a change of lanes.
func TestOverflowSpillStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		clk := newClock()
		var mended atomic.Bool
		h := &handler{name: "f", f: func(_ context.Context, in *process.Invocation) (process.Result, error) {
			if strings.Contains(words(in.Records), "X") && !mended.Load() {
				return process.Result{}, errPoison
			}
			clk.note("%s", words(in.Records))
			return process.Result{}, nil
		}}
		o := process.Options{MinBackoff: time.Second, MaxBackoff: time.Second, BatchSize: 2, Overflow: process.Overflow{Policy: process.OverflowSpill, MaxAge: 10 * time.Second}}
		r := b.start(func(r *process.Runner) error { return r.AddHandler(h, o) })
		b.putAll("X", "a", "b", "c")
		time.Sleep(15 * time.Second)
		b.putAll("new")
		time.Sleep(5 * time.Second)
		st := r.Status(t.Context())[0].Shards[0]
		if st.Spill.Ranges != 1 || st.Spill.Records != 4 || st.Lanes[0].Spilled != 4 || st.Spill.Lane.State != process.StateRetrying || st.Spill.Lane.LastError != "poison" {
			t.Errorf("status %s", show(st))
		}
		b.crash(r)
		o.Lanes = 3
		r = b.start(func(r *process.Runner) error { return r.AddHandler(h, o) })
		time.Sleep(5 * time.Second)
		if st := r.Status(t.Context())[0].Shards[0].Spill; st.Ranges != 1 {
			t.Errorf("spill after the crash %s", show(st))
		}
		mended.Store(true)
		time.Sleep(5 * time.Second)
		b.log.Split("shardId-000000000000")
		b.caughtUp(r)
		b.stop(r)
		got := clk.all()
		// A checkpoint without effects is not synced by itself, so "new" may come twice.
		all := strings.Join(got, " ")
		if got[0] != "15s new" || strings.Count(all, "X a") != 1 || strings.Count(all, "b c") != 1 || strings.Index(all, "X a") > strings.Index(all, "b c") {
			t.Errorf("calls %q, want first what is new, then the range in order", got)
		}
		if err := b.store.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// The range that was being caught up with is gone on with after a restart, whatever else was put off meanwhile: else what it had
// done already would be done again.
func TestOverflowSpillResumes(t *testing.T) {
	b := newBench(t, 1)
	keys := laneKeys()
	var mu sync.Mutex
	done := map[string]int{}
	calls := 0 // of lane 1, which puts off first
	held, release, stopping := make(chan struct{}), make(chan struct{}), make(chan struct{})
	h := &handler{name: "f", f: func(_ context.Context, in *process.Invocation) (process.Result, error) {
		mu.Lock()
		if in.Records[0].Key == keys[1] {
			calls++
		}
		n := calls
		mu.Unlock()
		switch {
		case string(in.Records[0].Data) == "hold":
			close(held)
			<-release
		case in.Records[0].Key == keys[1] && n == 3:
			close(release)
			<-stopping
			return process.Result{}, &process.NotRunError{Err: errors.New("stopping"), After: time.Hour}
		}
		mu.Lock()
		defer mu.Unlock()
		for _, r := range in.Records {
			done[strings.Clone(string(r.Data))]++
		}
		return process.Result{}, nil
	}}
	o := process.Options{Lanes: 2, BatchSize: 2, Overflow: process.Overflow{Policy: process.OverflowSpill, MaxLag: 10, Interval: time.Millisecond}}
	r := b.start(func(r *process.Runner) error { return r.AddHandler(h, quick(o)) })
	recs := []stream.Record{{Key: keys[0], Data: []byte("hold")}}
	if err := b.log.Append(t.Context(), recs); err != nil {
		t.Fatal(err)
	}
	<-held
	recs = nil
	for i := range 60 {
		recs = append(recs, stream.Record{Key: keys[i%2], Data: fmt.Append(nil, i)})
	}
	if err := b.log.Append(t.Context(), recs); err != nil {
		t.Fatal(err)
	}
	<-release
	for {
		if st := r.Status(t.Context())[0].Shards[0]; st.Spill.Ranges == 2 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	time.AfterFunc(10*time.Millisecond, func() { close(stopping) })
	b.stop(r)
	b.handle(h, o)
	for i := range 60 {
		if n := done[fmt.Sprint(i)]; n != 1 {
			t.Errorf("record %d was processed %d times, want once", i, n)
		}
	}
}

// While lanes are busy it catches up with a batch each interval, however short that is.
func TestOverflowSpillInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		keys := laneKeys()
		var done atomic.Int32
		held, release := make(chan struct{}), make(chan struct{})
		h := &handler{name: "f", f: func(_ context.Context, in *process.Invocation) (process.Result, error) {
			if string(in.Records[0].Data) == "hold" {
				close(held)
				<-release
			} else {
				done.Add(1)
			}
			return process.Result{}, nil
		}}
		o := process.Options{Lanes: 2, BatchSize: 1, Overflow: process.Overflow{Policy: process.OverflowSpill, MaxLag: 10, Interval: 5 * time.Millisecond}}
		r := b.start(func(r *process.Runner) error { return r.AddHandler(h, o) })
		b.log.Put(keys[1], "hold")
		<-held
		var recs []stream.Record
		for i := range 30 {
			recs = append(recs, stream.Record{Key: keys[0], Data: fmt.Append(nil, i)})
		}
		if err := b.log.Append(t.Context(), recs); err != nil {
			t.Fatal(err)
		}
		time.Sleep(102 * time.Millisecond)
		if n := done.Load(); n < 19 || n > 21 {
			t.Errorf("%d batches in 100 ms, want 20", n)
		}
		close(release)
		b.caughtUp(r)
		b.stop(r)
		if n := done.Load(); n != 30 {
			t.Errorf("%d batches, want 30", n)
		}
		if err := b.store.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// laneKeys returns a key of each of two lanes.
func laneKeys() (keys [2]string) {
	for i := 0; keys[0] == "" || keys[1] == ""; i++ {
		h := fnv.New64a()
		_, _ = fmt.Fprintf(h, "key-%d", i) // never fails
		keys[h.Sum64()%2] = fmt.Sprintf("key-%d", i)
	}
	return keys
}

// What retention removes before it was caught up with is reported, and does not hold anything up.
func TestOverflowSpillLost(t *testing.T) {
	b := newBench(t, 1)
	put(b.log, 100, key, data)
	h := &handler{name: "f", f: func(_ context.Context, in *process.Invocation) (process.Result, error) {
		return process.Result{}, errors.New("down")
	}}
	o := process.Options{Overflow: process.Overflow{Policy: process.OverflowSpill, MaxLag: 10}, BatchSize: 1}
	r := b.start(func(r *process.Runner) error { return r.AddHandler(h, quick(o)) })
	for range 500 {
		st := r.Status(t.Context())[0].Shards
		if len(st) > 0 && st[0].Spill != nil && st[0].Spill.Ranges > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	b.stop(r)
	b.log.Split("shardId-000000000000")
	b.log.Drop("shardId-000000000000")
	h.f = poisoned
	b.handle(h, o)
	if !strings.Contains(b.logs.String(), "retention removed records that were put off") {
		t.Errorf("the log does not tell:\n%s", b.logs)
	}
}

func TestOverflowOptions(t *testing.T) {
	f := func(o process.Options, want string) {
		t.Helper()
		b := newBench(t, 1)
		r, err := process.New(b.config())
		if err != nil {
			t.Fatal(err)
		}
		if err := r.AddHandler(&handler{name: "f", f: poisoned}, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("AddHandler = %v, want %q", err, want)
		}
	}
	f(process.Options{BatchSize: 10_001}, "use 1 to 10000")
	f(process.Options{BatchWindow: 301 * time.Second}, "use up to 5m0s")
	f(process.Options{Tumbling: 901 * time.Second}, "whole seconds up to 15m0s")
	f(process.Options{Tumbling: time.Minute, Lanes: 2}, "use one lane")
	f(process.Options{Overflow: process.Overflow{Policy: "drop"}}, "use sample, spill, pause, or none")
	f(process.Options{Overflow: process.Overflow{Policy: process.OverflowPause}}, "needs a bound")
	f(process.Options{Overflow: process.Overflow{Policy: process.OverflowSample, MaxAge: 1}}, "use 2 or more")
	f(process.Options{Tumbling: time.Minute, Overflow: process.Overflow{Policy: process.OverflowSpill, MaxAge: 1}}, "would come too late")
	f(process.Options{Breaker: process.Breaker{Failures: -1}}, "must not be negative")
}

var _ stream.Log = (*badLog)(nil)
