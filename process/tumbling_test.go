package process_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/stream"
)

// A summer appends what it sees to the window's state, and notes every call.
type summer struct {
	clk  *clock
	fail func(in *process.Invocation) error
	grow atomic.Int64 // bytes of state beyond what it has seen
}

func (s *summer) Name() string { return "sum" }
func (s *summer) Handle(_ context.Context, in *process.Invocation) (process.Result, error) {
	w := in.Window
	what := fmt.Sprintf("%s-%s %s", w.Start.Format("04:05"), w.End.Format("04:05"), words(in.Records))
	if w.Final {
		what += "final"
	}
	if w.Early {
		what += " early"
	}
	s.clk.note("%s (%s)", what, bytes.TrimRight(w.State, "."))
	if s.fail != nil {
		if err := s.fail(in); err != nil {
			return process.Result{}, err
		}
	}
	st := append(bytes.TrimRight(w.State, "."), strings.ReplaceAll(words(in.Records), " ", "")...)
	return process.Result{State: append(st, strings.Repeat(".", int(s.grow.Load()))...)}, nil
}

func tumble(t *testing.T, f func(t *testing.T, b *bench, s *summer, start func(process.Options) *process.Runner)) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		s := &summer{clk: newClock()}
		f(t, b, s, func(o process.Options) *process.Runner {
			o.Tumbling = time.Minute
			return b.start(func(r *process.Runner) error { return r.AddHandler(s, o) })
		})
		if err := b.store.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// State goes from call to call of a window, and the window ends: with a record of a later one, or in time when none comes.
func TestTumbling(t *testing.T) {
	tumble(t, func(t *testing.T, b *bench, s *summer, start func(process.Options) *process.Runner) {
		r := start(process.Options{})
		for _, p := range []struct {
			pause time.Duration
			data  string
		}{{10, "a"}, {20, "b"}, {31, "c"}, {180, "d"}} {
			time.Sleep(p.pause * time.Second)
			b.putAll(p.data)
		}
		time.Sleep(2 * time.Minute)
		b.stop(r)
		want(t, s.clk.all(),
			"10s 00:00-01:00 a ()", "30s 00:00-01:00 b (a)", "1m1s 00:00-01:00 final (ab)",
			"1m1s 01:00-02:00 c ()", "2m1s 01:00-02:00 final (c)", // a second of grace
			"4m1s 04:00-05:00 d ()", "5m1s 04:00-05:00 final (d)")
	})
}

// A batch that spans windows is cut, and a batching window ends with the tumbling one.
func TestTumblingCutsBatches(t *testing.T) {
	tumble(t, func(t *testing.T, b *bench, s *summer, start func(process.Options) *process.Runner) {
		for _, d := range []string{"a", "b", "c", "d", "e"} {
			b.putAll(d)
			time.Sleep(25 * time.Second)
		}
		time.Sleep(55 * time.Second) // 3m
		r := start(process.Options{BatchWindow: 5 * time.Minute})
		time.Sleep(5*time.Minute - time.Nanosecond)
		b.putAll("f") // just before 8m
		time.Sleep(10 * time.Minute)
		b.stop(r)
		// The windows of the first batch are long past, so it does not wait.
		want(t, s.clk.all(),
			"3m0s 00:00-01:00 a b c ()", "3m0s 00:00-01:00 final (abc)",
			"3m0s 01:00-02:00 d e ()", "3m1s 01:00-02:00 final (de)",
			"8m1s 07:00-08:00 f ()", "8m2s 07:00-08:00 final (f)")
	})
}

// State that grows beyond 1 MiB ends its window early; what comes later in the same time begins with none.
func TestTumblingEarly(t *testing.T) {
	tumble(t, func(t *testing.T, b *bench, s *summer, start func(process.Options) *process.Runner) {
		r := start(process.Options{})
		b.putAll("a")
		time.Sleep(time.Second)
		s.grow.Store(1 << 20)
		b.putAll("b")
		time.Sleep(time.Second)
		s.grow.Store(0)
		b.putAll("c")
		time.Sleep(2 * time.Minute)
		b.stop(r)
		want(t, s.clk.all(), "0s 00:00-01:00 a ()", "1s 00:00-01:00 b (a)", "1s 00:00-01:00 final early (ab)",
			"2s 00:00-01:00 c ()", "1m1s 00:00-01:00 final (c)")
	})
}

// A final call that fails holds everything up until it succeeds, whatever the limits on attempts.
func TestTumblingFinalBlocks(t *testing.T) {
	tumble(t, func(t *testing.T, b *bench, s *summer, start func(process.Options) *process.Runner) {
		s.fail = func(in *process.Invocation) error {
			if in.Window.Final && time.Since(s.clk.start) < 90*time.Second {
				return errors.New("not yet")
			}
			return nil
		}
		r := start(process.Options{MaxAttempts: 1, MinBackoff: 20 * time.Second, MaxBackoff: 20 * time.Second})
		b.putAll("a")
		time.Sleep(65 * time.Second)
		b.putAll("b")
		time.Sleep(2 * time.Minute)
		b.stop(r)
		want(t, s.clk.all(), "0s 00:00-01:00 a ()", "1m1s 00:00-01:00 final (a)", "1m21s 00:00-01:00 final (a)", "1m41s 00:00-01:00 final (a)",
			"1m41s 01:00-02:00 b ()", "2m1s 01:00-02:00 final (b)")
	})
}

// What is given up leaves the state as it was, halves hand it on, and a window in which nothing was processed ends without a call.
func TestTumblingFailures(t *testing.T) {
	tumble(t, func(t *testing.T, b *bench, s *summer, start func(process.Options) *process.Runner) {
		s.fail = func(in *process.Invocation) error {
			if strings.Contains(words(in.Records), "X") {
				return errPoison
			}
			return nil
		}
		b.putAll("a", "X", "b")
		r := start(process.Options{MaxAttempts: 1, Bisect: true})
		time.Sleep(70 * time.Second)
		b.putAll("X")
		time.Sleep(2 * time.Minute)
		b.stop(r)
		want(t, s.clk.all(), "0s 00:00-01:00 a X b ()", "0s 00:00-01:00 a ()", "0s 00:00-01:00 X b (a)", "0s 00:00-01:00 X (a)", "0s 00:00-01:00 b (a)",
			"1m1s 00:00-01:00 final (ab)", "1m10s 01:00-02:00 X ()")
	})
}

// State and checkpoint move together: over a stop, a crash and the end of the shard.
func TestTumblingRestart(t *testing.T) {
	tumble(t, func(t *testing.T, b *bench, s *summer, start func(process.Options) *process.Runner) {
		r := start(process.Options{BatchSize: 1})
		b.putAll("a", "b")
		synctest.Wait()
		b.stop(r)
		time.Sleep(10 * time.Second)
		r = start(process.Options{BatchSize: 1})
		b.putAll("c")
		time.Sleep(5 * time.Second) // long enough for the store to sync
		b.crash(r)
		time.Sleep(3 * time.Minute)
		b.putAll("d")
		r = start(process.Options{BatchSize: 1})
		synctest.Wait()
		b.log.Split("shardId-000000000000")
		synctest.Wait()
		b.stop(r)
		want(t, s.clk.all(), "0s 00:00-01:00 a ()", "0s 00:00-01:00 b (a)", "10s 00:00-01:00 c (ab)",
			"3m15s 00:00-01:00 final (abc)", "3m15s 03:00-04:00 d ()", "3m15s 03:00-04:00 final (d)")
	})
}

// Filtered records let time pass, and a window is not ended before its records are read.
func TestTumblingFilter(t *testing.T) {
	tumble(t, func(t *testing.T, b *bench, s *summer, start func(process.Options) *process.Runner) {
		keep := func(r *stream.Record) bool { return string(r.Data) != "-" }
		b.putAll("a")
		r := start(process.Options{Filter: keep})
		synctest.Wait()
		b.stop(r)
		put(b.log, 20_000, key, func(int) string { return "-" })
		b.putAll("b")
		time.Sleep(2 * time.Minute)
		r = start(process.Options{Filter: keep})
		time.Sleep(2 * time.Second)
		b.stop(r)
		want(t, s.clk.all(), "0s 00:00-01:00 a ()", "2m0s 00:00-01:00 b (a)", "2m1s 00:00-01:00 final (ab)")
	})
}
