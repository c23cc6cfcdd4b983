package process_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// A handler made of a func, which notes its calls.
type handler struct {
	name string
	f    func(ctx context.Context, in *process.Invocation) (process.Result, error)

	mu    sync.Mutex
	calls []string // attempt and data
	ids   []string
}

func (h *handler) Name() string { return h.name }
func (h *handler) Handle(ctx context.Context, in *process.Invocation) (process.Result, error) {
	h.mu.Lock()
	h.calls = append(h.calls, fmt.Sprintf("%d: %s", in.Attempt, words(in.Records)))
	h.ids = append(h.ids, in.ID)
	h.mu.Unlock()
	return h.f(ctx, in)
}

func (h *handler) made() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string{}, h.calls...)
}

var errPoison = errors.New("poison")

// poisoned fails on batches with a record that begins with X.
func poisoned(_ context.Context, in *process.Invocation) (process.Result, error) {
	for _, r := range in.Records {
		if r.Data[0] == 'X' {
			return process.Result{}, errPoison
		}
	}
	return process.Result{}, nil
}

// partly reports the first record that begins with X as failed.
func partly(_ context.Context, in *process.Invocation) (process.Result, error) {
	for _, r := range in.Records {
		if r.Data[0] == 'X' {
			return process.Result{Failed: r.Pos}, nil
		}
	}
	return process.Result{}, nil
}

// failures collects what is given up.
type failures struct {
	mu  sync.Mutex
	all []string
	ids []string
}

func (f *failures) note(x *process.Failure) (state.Effect, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, fmt.Sprintf("%s after %d: %s", x.Condition, x.Attempts, words(x.Records)))
	f.ids = append(f.ids, x.ID)
	return state.Effect{ID: x.ID, Kind: "failure", Data: []byte(words(x.Records))}, nil
}

// handle runs a handler over what the log holds.
func (b *bench) handle(h process.Handler, o process.Options) *process.Runner {
	b.t.Helper()
	r := b.start(func(r *process.Runner) error { return r.AddHandler(h, quick(o)) })
	b.caughtUp(r)
	b.stop(r)
	return r
}

func (b *bench) putAll(data ...string) {
	for _, d := range data {
		b.log.Put("k", d)
	}
}

func pending(t *testing.T, b *bench, kind string) []string {
	t.Helper()
	es, _, err := b.store.Pending(t.Context(), kind, 1000)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, e := range es {
		out = append(out, string(e.Data))
	}
	return out
}

// What a failing batch comes to: the calls, and what is given up.
func TestHandlerFailures(t *testing.T) {
	notRun := 0
	for _, c := range []struct {
		name  string
		o     process.Options
		f     func(context.Context, *process.Invocation) (process.Result, error)
		data  string
		calls []string
		given []string
	}{
		{
			"retried whole, then given up whole",
			process.Options{MaxAttempts: 3},
			poisoned, "a X b",
			[]string{"1: a X b", "2: a X b", "3: a X b"},
			[]string{"RetryAttemptsExhausted after 3: a X b"},
		},
		{
			"no retries",
			process.Options{MaxAttempts: 1, BatchSize: 2},
			poisoned, "a X b",
			[]string{"1: a X", "1: b"},
			[]string{"RetryAttemptsExhausted after 1: a X"},
		},
		{
			"bisected: a split costs no attempt, each half begins afresh, left first",
			process.Options{MaxAttempts: 2, Bisect: true},
			poisoned, "a b X c",
			[]string{"1: a b X c", "1: a b", "1: X c", "1: X", "2: X", "1: c"},
			[]string{"RetryAttemptsExhausted after 2: X"},
		},
		{
			"partly failed: what precedes is done, the rest is retried and that counts",
			process.Options{MaxAttempts: 3},
			partly, "a b X c",
			[]string{"1: a b X c", "2: X c", "3: X c"},
			[]string{"RetryAttemptsExhausted after 3: X c"},
		},
		{
			"partly failed and bisected: split at that record, the rest afresh",
			process.Options{MaxAttempts: 2, Bisect: true},
			partly, "a b X c d",
			[]string{"1: a b X c d", "1: X c d", "1: X", "2: X", "1: c d"},
			[]string{"RetryAttemptsExhausted after 2: X"},
		},
		{
			"an unknown record fails all", process.Options{MaxAttempts: 2}, func(context.Context, *process.Invocation) (process.Result, error) {
				return process.Result{Failed: "123"}, nil
			}, "a b", []string{"1: a b", "2: a b"}, []string{"RetryAttemptsExhausted after 2: a b"},
		},
		{
			"a panic is a failure", process.Options{MaxAttempts: 2}, func(context.Context, *process.Invocation) (process.Result, error) {
				panic("out of cheese")
			}, "a", []string{"1: a", "2: a"}, []string{"RetryAttemptsExhausted after 2: a"},
		},
		{
			"what did not run does not count", process.Options{MaxAttempts: 2}, func(ctx context.Context, in *process.Invocation) (process.Result, error) {
				if notRun++; notRun < 5 {
					return process.Result{}, fmt.Errorf("wrapped: %w", &process.NotRunError{Err: errors.New("throttled"), After: time.Microsecond})
				}
				return poisoned(ctx, in)
			}, "X", []string{"1: X", "1: X", "1: X", "1: X", "1: X", "2: X"}, []string{"RetryAttemptsExhausted after 2: X"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, 1)
			b.putAll(strings.Fields(c.data)...)
			h := &handler{name: "f", f: c.f}
			var gone failures
			c.o.OnFailure = gone.note
			r := b.handle(h, c.o)
			want(t, h.made(), c.calls...)
			want(t, gone.all, c.given...)
			if got := len(pending(t, b, "failure")); got != len(c.given) {
				t.Errorf("%d effects, want %d", got, len(c.given))
			}
			st := r.Status(t.Context())[0].Shards[0].Lanes[0]
			if int(st.Invocations+st.Throttles) != len(c.calls) {
				t.Errorf("%d invocations and %d throttles, want %d together", st.Invocations, st.Throttles, len(c.calls))
			}
		})
	}
}

// A poison record in a batch of 10,000 is isolated: one call for the batch, two for each of the splits that lead to it, and the
// retries of the record itself. Every other record is processed once.
func TestHandlerPoison(t *testing.T) {
	const n, attempts = 10_000, 4
	for _, at := range []int{0, 1, 4999, 5000, 7777, 9999} {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			b := newBench(t, 1)
			recs := make([]stream.Record, n)
			for i := range recs {
				recs[i] = stream.Record{Key: key(i), Data: fmt.Append(nil, i)}
				if i == at {
					recs[i].Data = []byte("X")
				}
			}
			if err := b.log.Append(t.Context(), recs); err != nil {
				t.Fatal(err)
			}
			splits := 0
			for lo, hi := 0, n; hi-lo > 1; splits++ {
				if mid := lo + (hi-lo)/2; at < mid {
					hi = mid
				} else {
					lo = mid
				}
			}
			seen := map[string]int{}
			h := &handler{name: "f", f: func(ctx context.Context, in *process.Invocation) (process.Result, error) {
				res, err := poisoned(ctx, in)
				if err == nil {
					for _, r := range in.Records {
						seen[string(r.Data)]++
					}
				}
				return res, err
			}}
			var gone failures
			b.handle(h, process.Options{BatchSize: n, Bisect: true, MaxAttempts: attempts, OnFailure: gone.note})
			if got, want := len(h.calls), 1+2*splits+attempts-1; got != want || splits < 13 || splits > 14 {
				t.Errorf("%d calls over %d splits, want %d", got, splits, want)
			}
			want(t, gone.all, fmt.Sprintf("RetryAttemptsExhausted after %d: X", attempts))
			if len(seen) != n-1 {
				t.Errorf("%d records processed, want %d", len(seen), n-1)
			}
			for d, times := range seen {
				if times != 1 {
					t.Errorf("record %s processed %d times", d, times)
				}
			}
		})
	}
}

// Records that have become too old are split off and given up as one; younger ones go on. What is too old before its first call
// counts as called once, as Lambda has it.
func TestHandlerAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		clk := newClock()
		b.putAll("a", "b")
		time.Sleep(2 * time.Minute)
		b.putAll("c", "d")
		time.Sleep(30 * time.Second)
		b.putAll("e")
		var gone failures
		var down atomic.Bool
		down.Store(true)
		h := &handler{name: "f", f: func(context.Context, *process.Invocation) (process.Result, error) {
			if down.Load() {
				return process.Result{}, errors.New("down")
			}
			return process.Result{}, nil
		}}
		r := b.start(func(r *process.Runner) error {
			return r.AddHandler(h, process.Options{MaxAge: time.Minute, MinBackoff: 9 * time.Second, MaxBackoff: 9 * time.Second, OnFailure: func(f *process.Failure) (state.Effect, error) {
				clk.note("gone")
				return gone.note(f)
			}})
		})
		time.Sleep(50 * time.Second)
		down.Store(false)
		b.caughtUp(r)
		b.stop(r)
		want(t, h.made(), "1: c d e", "2: c d e", "3: c d e", "4: c d e", "5: e", "6: e", "7: e")
		want(t, gone.all, "RecordAgeExceeded after 1: a b", "RecordAgeExceeded after 4: c d")
		want(t, clk.all(), "2m30s gone", "3m6s gone")
		if err := b.store.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// With all records too old before the next attempt, nobody waits for that: a minute of age ends at the minute.
func TestHandlerAgeCutsPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		clk := newClock()
		b.putAll("a")
		h := &handler{name: "f", f: func(context.Context, *process.Invocation) (process.Result, error) {
			return process.Result{}, errors.New("down")
		}}
		r := b.start(func(r *process.Runner) error {
			return r.AddHandler(h, process.Options{MaxAge: time.Minute, MinBackoff: 40 * time.Second, MaxBackoff: 40 * time.Second, OnFailure: func(f *process.Failure) (state.Effect, error) {
				clk.note("%s %d", f.Condition, f.Attempts)
				return state.Effect{ID: f.ID, Kind: "failure"}, nil
			}})
		})
		time.Sleep(2 * time.Minute)
		b.stop(r)
		want(t, clk.all(), "1m0.001s RecordAgeExceeded 2")
		if err := b.store.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// Without OnFailure each record becomes a dead letter.
func TestHandlerDeadLetters(t *testing.T) {
	b := newBench(t, 1)
	b.putAll("a", "X", "b")
	b.handle(&handler{name: "f", f: poisoned}, process.Options{MaxAttempts: 2})
	want(t, deadData(b.letters()), "X", "a", "b")
	for _, d := range b.letters() {
		if d.Reason != "function f failed 2 times: poison" {
			t.Errorf("reason %q", d.Reason)
		}
	}
}

// A failure destination that fails holds the function up, and nothing is lost.
func TestHandlerOnFailureFails(t *testing.T) {
	b := newBench(t, 1)
	b.putAll("X", "a")
	var gone failures
	n := 0
	b.handle(&handler{name: "f", f: poisoned}, process.Options{MaxAttempts: 1, BatchSize: 1, OnFailure: func(f *process.Failure) (state.Effect, error) {
		if n++; n < 4 {
			return state.Effect{}, errors.New("no room")
		}
		return gone.note(f)
	}})
	want(t, gone.all, "RetryAttemptsExhausted after 1: X")
	if n != 4 {
		t.Errorf("asked %d times, want 4", n)
	}
}

// Filtered records take no part in batches, and the checkpoint passes them, however many there are.
func TestHandlerFilter(t *testing.T) {
	b := newBench(t, 1)
	put(b.log, 100, key, func(i int) string {
		if i%10 == 3 {
			return fmt.Sprint("keep", i)
		}
		return "drop"
	})
	h := &handler{name: "f", f: poisoned}
	keep := func(r *stream.Record) bool { return strings.HasPrefix(string(r.Data), "keep") }
	r := b.handle(h, process.Options{BatchSize: 4, Filter: keep})
	want(t, h.made(), "1: keep3 keep13 keep23 keep33", "1: keep43 keep53 keep63 keep73", "1: keep83 keep93")
	if st := r.Status(t.Context())[0].Shards[0].Lanes[0]; st.Filtered != 90 || st.Records != 10 || st.Batches != 3 {
		t.Errorf("status %s, want 90 filtered, 10 records in 3 batches", show(st))
	}
	put(b.log, 5000, key, func(int) string { return "drop" })
	b.handle(h, process.Options{Filter: keep}) // all filtered, and the checkpoint arrives
	if n := len(h.made()); n != 3 {
		t.Errorf("%d calls, want the 3 of before", n)
	}
	// A filter that panics holds the function up and does not end the process.
	b.putAll("keep")
	n := 0
	b.handle(h, process.Options{Filter: func(r *stream.Record) bool {
		if n++; n < 5 {
			panic("no pattern")
		}
		return keep(r)
	}})
	if n := len(h.made()); n != 4 {
		t.Errorf("%d calls, want one more", n)
	}
}

// A batch is bounded by payload, as Options.Payload has it.
func TestHandlerPayload(t *testing.T) {
	b := newBench(t, 1)
	b.putAll("aa", "bb", "cc", "dd", "eeeeeeeeeeeeeeeeeeee", "f")
	h := &handler{name: "f", f: poisoned}
	b.handle(h, process.Options{BatchBytes: 30, Payload: func(r *stream.Record) int { return 10 + len(r.Data) }})
	want(t, h.made(), "1: aa bb", "1: cc dd", "1: eeeeeeeeeeeeeeeeeeee", "1: f")
}

// While a handler runs nothing is locked: state changes, other functions go on, and the checkpoint moves only after it.
func TestHandlerOutsideStore(t *testing.T) {
	b := newBench(t, 1)
	b.putAll("a")
	entered, leave := make(chan struct{}), make(chan struct{})
	h := &handler{name: "slow", f: func(context.Context, *process.Invocation) (process.Result, error) {
		close(entered)
		<-leave
		return process.Result{}, nil
	}}
	r := b.start(func(r *process.Runner) error {
		return errors.Join(r.AddHandler(h, process.Options{}), r.Add(journaling("quick"), process.Options{}))
	})
	<-entered
	if err := b.store.Update(t.Context(), func(tx state.Tx) error { return tx.Set([]byte("k2"), []byte("x")) }); err != nil {
		t.Fatal(err)
	}
	at, err := b.store.Checkpoint(t.Context(), "slow", "shardId-000000000000", 0)
	if at != "" || err != nil {
		t.Errorf("checkpoint %q, %v while it runs", at, err)
	}
	close(leave)
	b.caughtUp(r)
	b.stop(r)
	want(t, b.values(), "k=a", "k2=x")
}

// A store that refuses commits costs no second call.
func TestHandlerStoreFails(t *testing.T) {
	b := newBench(t, 1)
	b.putAll("a", "b")
	n := 0
	flaky := &flakyStore{Store: b.store, fail: func(s state.Step) error {
		if n++; s.To != s.From && n%3 != 0 {
			return state.ErrFull
		}
		return nil
	}}
	h := &handler{name: "f", f: poisoned}
	cfg := b.config()
	cfg.Store = flaky
	r, err := process.New(cfg)
	if err == nil {
		err = errors.Join(r.AddHandler(h, quick(process.Options{BatchSize: 1})), r.Start())
	}
	if err != nil {
		t.Fatal(err)
	}
	b.caughtUp(r)
	b.stop(r)
	want(t, h.made(), "1: a", "1: b")
	if n < 4 {
		t.Errorf("%d steps: the store did not fail", n)
	}
}

// A store that fails steps before or after it has carried them out.
type flakyStore struct {
	state.Store
	fail  func(state.Step) error // before
	after func(state.Step) error
}

func (s *flakyStore) Advance(ctx context.Context, st state.Step, f func(state.Tx) error) error {
	if s.fail != nil {
		if err := s.fail(st); err != nil {
			return err
		}
	}
	err := s.Store.Advance(ctx, st, f)
	if err == nil && s.after != nil {
		err = s.after(st)
	}
	return err
}

// The same records have the same ID: when they are tried again, and after a restart.
func TestInvocationID(t *testing.T) {
	b := newBench(t, 1)
	b.putAll("a", "b", "c")
	n := 0
	h := &handler{name: "f", f: func(context.Context, *process.Invocation) (process.Result, error) {
		if n++; n < 3 {
			return process.Result{}, errors.New("down")
		}
		return process.Result{}, nil
	}}
	b.handle(h, process.Options{BatchSize: 2})
	if err := process.Reset(t.Context(), b.config(), "f", process.Target{Start: process.Oldest}); err != nil {
		t.Fatal(err)
	}
	b.handle(h, process.Options{BatchSize: 2})
	want(t, h.made(), "1: a b", "2: a b", "3: a b", "1: c", "1: a b", "1: c")
	if ids := h.ids; ids[0] != ids[1] || ids[0] != ids[2] || ids[0] != ids[4] || ids[3] != ids[5] || ids[0] == ids[3] || len(ids[0]) != 36 {
		t.Errorf("ids %q", ids)
	}
	// Other records between the same two have another ID.
	if err := process.Reset(t.Context(), b.config(), "f", process.Target{Start: process.Oldest}); err != nil {
		t.Fatal(err)
	}
	b.handle(h, process.Options{})
	if err := process.Reset(t.Context(), b.config(), "f", process.Target{Start: process.Oldest}); err != nil {
		t.Fatal(err)
	}
	b.handle(h, process.Options{Filter: func(r *stream.Record) bool { return string(r.Data) != "b" }})
	want(t, h.made()[6:], "1: a b c", "1: a c")
	if h.ids[6] == h.ids[7] {
		t.Errorf("two batches share the ID %s", h.ids[6])
	}
}

// With StableBatches a batch that was begun before a crash comes again as it was, although more has arrived.
func TestStableBatches(t *testing.T) {
	for _, stable := range []bool{false, true} {
		t.Run(fmt.Sprint(stable), func(t *testing.T) {
			b := newBench(t, 1)
			b.putAll("a", "b", "c")
			entered := make(chan struct{})
			o := process.Options{StableBatches: stable, Filter: func(r *stream.Record) bool { return string(r.Data) != "b" }}
			h := &handler{name: "f", f: func(ctx context.Context, _ *process.Invocation) (process.Result, error) {
				close(entered)
				<-ctx.Done()
				return process.Result{}, ctx.Err()
			}}
			r := b.start(func(r *process.Runner) error { return r.AddHandler(h, o) })
			<-entered
			b.crash(r)
			b.putAll("d", "e")
			h.f = poisoned
			b.handle(h, o)
			if stable {
				want(t, h.made(), "1: a c", "1: a c", "1: d e")
				if h.ids[0] != h.ids[1] {
					t.Errorf("ids %q of the same records", h.ids[:2])
				}
			} else {
				want(t, h.made(), "1: a c", "1: a c d e")
			}
		})
	}
}

// Several lanes keep the order of each key, and one that is stuck delays only its own keys.
func TestHandlerLanes(t *testing.T) {
	b := newBench(t, 1)
	put(b.log, 500, key, data)
	var mu sync.Mutex
	got := map[string]string{}
	h := &handler{name: "f", f: func(_ context.Context, in *process.Invocation) (process.Result, error) {
		mu.Lock()
		defer mu.Unlock()
		for _, r := range in.Records {
			got[strings.Clone(r.Key)] += string(r.Data)
		}
		return process.Result{}, nil
	}}
	b.handle(h, process.Options{Lanes: 10, BatchSize: 7})
	var all []string
	for k, v := range got {
		all = append(all, k+"="+v)
	}
	slices.Sort(all)
	want(t, all, journalOf(b.log, nil)...)
}
