package process_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/stream"
)

// A clock notes when things happen, as time since it was made.
type clock struct {
	mu    sync.Mutex
	start time.Time
	at    []time.Duration
	what  []string
}

func newClock() *clock { return &clock{start: time.Now()} }

func (c *clock) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = append(c.at, time.Since(c.start))
	c.what = append(c.what, fmt.Sprintf("%s ", time.Since(c.start))+fmt.Sprintf(format, args...))
}

func (c *clock) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string{}, c.what...)
}

func words(recs []stream.Record) string {
	var w []string
	for _, r := range recs {
		w = append(w, string(r.Data))
	}
	return strings.Join(w, " ")
}

func want(t *testing.T, got []string, want ...string) {
	t.Helper()
	if d := cmp.Diff(append([]string{}, want...), append([]string{}, got...)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// The pauses between attempts grow from the least to the most, each somewhere in its range.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		c := newClock()
		r := b.start(func(r *process.Runner) error {
			return r.Add(function{"f", func(_ context.Context, _ state.Tx, recs []stream.Record) error {
				c.note("try %s", words(recs))
				return errors.New("down")
			}}, process.Options{})
		})
		b.log.Put("a", "1")
		time.Sleep(10 * time.Minute)
		if err := r.Stop(t.Context()); err != nil { // in the middle of a pause
			t.Fatal(err)
		}
		if len(c.at) < 13 {
			t.Fatalf("%d attempts in ten minutes, want more", len(c.at))
		}
		for i := 1; i < len(c.at); i++ {
			lo, hi := 100*time.Millisecond, min(time.Minute, 100*time.Millisecond<<min(i, 20))
			if gap := c.at[i] - c.at[i-1]; gap < lo || gap > hi {
				t.Errorf("pause %d is %s, want %s to %s", i, gap, lo, hi)
			}
		}
		if err := b.store.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// A batch is what is there, up to the size; with a window it waits to fill up.
func TestBatchWindow(t *testing.T) {
	for _, c := range []struct {
		name string
		o    process.Options
		want []string
	}{
		{"none", process.Options{}, []string{"0s a", "100ms b", "200ms c", "400ms d", "10s e"}},
		{"by time", process.Options{BatchWindow: 250 * time.Millisecond}, []string{"250ms a b c", "650ms d", "10.25s e"}},
		{"by size", process.Options{BatchWindow: 250 * time.Millisecond, BatchSize: 2}, []string{"100ms a b", "400ms c d", "10.25s e"}},
		{"by bytes", process.Options{BatchWindow: 5 * time.Second, BatchBytes: 3}, []string{"200ms a b c", "5.4s d", "15s e"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, 1)
				clk := newClock()
				r := b.start(func(r *process.Runner) error {
					return r.Add(function{"f", func(_ context.Context, _ state.Tx, recs []stream.Record) error {
						clk.note("%s", words(recs))
						return nil
					}}, c.o)
				})
				for _, p := range []struct {
					pause time.Duration
					data  string
				}{{0, "a"}, {100, "b"}, {100, "c"}, {200, "d"}, {9600, "e"}} {
					time.Sleep(p.pause * time.Millisecond)
					b.log.Put("k", p.data)
					synctest.Wait()
				}
				time.Sleep(10 * time.Second)
				b.stop(r)
				want(t, clk.all(), c.want...)
				if err := b.store.Close(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// A fold sees a record at once, commits after the interval or at once if it is urgent, and hears the time every second.
func TestFoldTiming(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		clk := newClock()
		j := &journalFolder{
			name:   "j",
			before: func(recs []stream.Record) error { clk.note("fold %s", words(recs)); return nil },
			tick: func(now, since time.Time) {
				if since.After(now) || now.Sub(since) > 10*time.Second {
					t.Errorf("tick at %s since %s", now, since)
				}
			},
		}
		j.flush = func() error { clk.note("flush"); return nil }
		r := b.start(func(r *process.Runner) error { return r.AddFolder(j, process.Options{TickInterval: 10 * time.Second}) })
		time.Sleep(time.Second)
		b.log.Put("k", "a")
		time.Sleep(50 * time.Millisecond)
		b.log.Put("k", "b")
		time.Sleep(time.Second)
		b.log.Put("k", "c!")
		time.Sleep(time.Second)
		want(t, clk.all(), "1s fold a", "1.05s fold b", "1.1s flush", "2.05s fold c!", "2.05s flush")
		b.log.Put("k", "d")
		synctest.Wait()
		b.stop(r) // commits what is in memory
		want(t, clk.all()[5:], "3.05s fold d", "3.05s flush")
		want(t, b.values(), "k=abc!d")
		if j.open != 0 {
			t.Errorf("%d folds were not closed", j.open)
		}
		if err := b.store.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		clk := newClock()
		j := &journalFolder{name: "j", tick: func(now, since time.Time) {
			clk.note("since %s", since.Sub(clk.start))
		}}
		for i := range 3 {
			b.log.Put("k", fmt.Sprint(i))
		}
		time.Sleep(time.Minute) // what is in the log is old when the runner starts
		var open atomic.Bool
		j.before = func([]stream.Record) error {
			if !open.Load() {
				return errors.New("not yet")
			}
			return nil
		}
		r := b.start(func(r *process.Runner) error {
			return r.AddFolder(j, process.Options{MaxBackoff: 100 * time.Millisecond, MinBackoff: 100 * time.Millisecond})
		})
		time.Sleep(3*time.Second + 50*time.Millisecond)
		open.Store(true)
		time.Sleep(3 * time.Second)
		b.stop(r)
		// Until 1m3.1s it is behind: since is now. Then it has folded the old records, and waits for more.
		want(t, clk.all(), "1m1s since 1m1s", "1m2s since 1m2s", "1m3s since 1m3s",
			"1m4s since 1m4s", "1m5s since 1m4s", "1m6s since 1m4s")
		if err := b.store.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// Records that have become too old are split off and dead-lettered; younger ones go on being tried.
func TestMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		clk := newClock()
		b.log.Put("k", "old")
		time.Sleep(30 * time.Second)
		b.log.Put("k", "young")
		var up atomic.Bool
		r := b.start(func(r *process.Runner) error {
			return r.Add(function{"f", func(_ context.Context, tx state.Tx, recs []stream.Record) error {
				clk.note("%s", words(recs))
				if !up.Load() {
					return errors.New("down")
				}
				return journal(tx, recs)
			}}, process.Options{MaxAge: time.Minute, MinBackoff: 20 * time.Second, MaxBackoff: 20 * time.Second})
		})
		time.Sleep(55 * time.Second)
		up.Store(true)
		b.caughtUp(r)
		b.stop(r)
		want(t, clk.all(), "30s old young", "50s old young", "1m10s young", "1m30s young")
		want(t, b.values(), "k=young")
		want(t, deadData(b.letters()), "old")
		for _, d := range b.letters() {
			if !strings.Contains(d.Reason, "older than 1m0s") || !strings.Contains(d.Reason, "down") {
				t.Errorf("reason %q", d.Reason)
			}
		}
		if err := b.store.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// While the state's disk is full nothing is processed and nothing is lost; it resumes by itself.
func TestFullDisk(t *testing.T) {
	for _, folder := range []bool{false, true} {
		t.Run(fmt.Sprint("folder ", folder), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, 2)
				if err := b.store.Close(); err != nil {
					t.Fatal(err)
				}
				var full atomic.Bool
				fs := errorfs.Wrap(b.fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
					if full.Load() && (op.Kind == errorfs.OpFileWrite || op.Kind == errorfs.OpCreate) {
						return syscall.ENOSPC
					}
					return nil
				}))
				var err error
				if b.store, err = local.Open(local.Config{Dir: "state", FS: fs, MemBytes: 1 << 20}); err != nil {
					t.Fatal(err)
				}
				r := b.start(func(r *process.Runner) error {
					if folder {
						return r.AddFolder(&journalFolder{name: "j"}, process.Options{})
					}
					return r.Add(journaling("j"), process.Options{BatchSize: 7, Lanes: 2, MaxAttempts: 1})
				})
				put(b.log, 300, key, data)
				b.caughtUp(r)
				for range 3 {
					full.Store(true)
					for range 20 { // it takes a moment until unsynced steps reach the disk
						put(b.log, 15, key, data)
						time.Sleep(time.Second)
					}
					st := r.Status(t.Context())[0].Shards[0]
					if st.State != process.StateRetrying || !strings.Contains(show(st), "disk is full") {
						t.Errorf("with a full disk: %s", show(st))
					}
					full.Store(false)
					time.Sleep(2 * time.Minute) // more than the longest pause
					b.caughtUp(r)
				}
				b.stop(r)
				want(t, b.values(), journalOf(b.log, nil)...)
				want(t, deadData(b.letters()))
				if err := b.store.Close(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}
