package process_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/processtest"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// echo puts out what it gets, with a mark.
func echo(_ context.Context, in *process.Invocation) (process.Result, error) {
	var res process.Result
	for _, r := range in.Records {
		if r.Data[0] == 'X' {
			res.Failed = r.Pos
			break
		}
		res.Output = append(res.Output, stream.Record{Key: strings.Clone(r.Key), Data: append([]byte("<"), r.Data...)})
	}
	return res, nil
}

func to(logs map[string]stream.Log) process.Streams {
	return func(name string) (stream.Log, error) {
		if l := logs[name]; l != nil {
			return l, nil
		}
		return nil, stream.ErrNoStream
	}
}

func (b *bench) output(t *testing.T, out stream.Log, h process.Handler, o process.Options) *process.Runner {
	t.Helper()
	cfg := b.config()
	cfg.Streams = to(map[string]stream.Log{"out": out})
	o.Output = "out"
	r, err := process.New(cfg)
	if err == nil {
		err = errors.Join(r.AddHandler(h, quick(o)), r.Start())
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func dataOf(log *processtest.Log) []string {
	var all []string
	for _, r := range log.All() {
		all = append(all, string(r.Data))
	}
	return all
}

// What a function puts out arrives in order: of a partly failed batch what precedes the failure, and nothing of one that processed nothing.
func TestOutput(t *testing.T) {
	b := newBench(t, 1)
	out := processtest.NewLog(1)
	b.putAll("a", "b", "X", "c")
	h := &handler{name: "f", f: echo}
	r := b.output(t, out, h, process.Options{MaxAttempts: 1, Bisect: true})
	b.caughtUp(r)
	b.stop(r)
	want(t, dataOf(out), "<a", "<b", "<c")
	want(t, deadData(b.letters()), "X")
}

// An output stream that fails, wholly or in part, gets everything once in the end.
func TestOutputFails(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		part bool
	}{
		{"full", stream.ErrFull, false},
		{"unknown outcome, not stored", errors.New("network"), false},
		{"unknown outcome, stored in part", errors.New("network"), true},
		{"stored in part, and it says so", &stream.PartialError{Failed: 1, Err: stream.ErrFull}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, 1)
			inner := processtest.NewLog(3)
			out := &badLog{Log: inner, err: c.err, part: c.part, times: 2}
			put(b.log, 300, key, data)
			r := b.output(t, out, &handler{name: "f", f: echo}, process.Options{BatchSize: 20})
			b.caughtUp(r)
			for range 200 {
				if len(inner.All()) == 300 {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			b.stop(r)
			var wanted []string
			for _, w := range journalOf(b.log, nil) {
				k, v, _ := strings.Cut(w, "=")
				wanted = append(wanted, k+"=<"+strings.TrimSuffix(strings.ReplaceAll(v, ",", ",<"), "<"))
			}
			want(t, journalOf(inner, nil), wanted...)
		})
	}
}

// What a step that was given up would have put out holds up nobody else's output.
func TestOutputOfAStepThatNeverWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		cfg := b.config()
		cfg.Streams = to(map[string]stream.Log{"out": processtest.NewLog(1)})
		cfg.Store = &flakyStore{Store: b.store, fail: func(s state.Step) error {
			if s.Func == "big" && s.To != s.From {
				return state.ErrMoved
			}
			return nil
		}}
		big := &handler{name: "big", f: func(_ context.Context, in *process.Invocation) (process.Result, error) {
			return process.Result{Output: []stream.Record{{Key: "k", Data: make([]byte, 65<<20)}}}, nil
		}}
		small := &handler{name: "small", f: echo}
		r, err := process.New(cfg)
		if err == nil {
			err = errors.Join(r.AddHandler(big, process.Options{Output: "out"}), r.AddHandler(small, process.Options{Output: "out"}), r.Start())
		}
		if err != nil {
			t.Fatal(err)
		}
		b.log.Put("k", "a")
		time.Sleep(5 * time.Second)
		if st := r.Status(t.Context())[0].Shards[0].Lanes[0]; st.State != process.StateStopped {
			t.Fatalf("big: %+v", st)
		}
		b.log.Put("k", "b")
		time.Sleep(5 * time.Second)
		if n := len(small.made()); n != 2 {
			t.Errorf("small was called %d times, want 2: it waits for room that nobody takes", n)
		}
		b.stop(r)
		if err := b.store.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// A badLog fails some appends.
type badLog struct {
	*processtest.Log
	mu    sync.Mutex
	err   error
	part  bool // store half before failing
	times int
}

func (l *badLog) Append(ctx context.Context, recs []stream.Record) error {
	l.mu.Lock()
	fail := l.times > 0
	l.times--
	l.mu.Unlock()
	if !fail {
		return l.Log.Append(ctx, recs)
	}
	if l.part {
		// Of one key nothing comes before an earlier one: the records of some keys are stored.
		var some []stream.Record
		var at []int
		for i := range recs {
			if recs[i].Key < "vehicle-08" {
				some, at = append(some, recs[i]), append(at, i)
			}
		}
		if err := l.Log.Append(ctx, some); err != nil {
			return err
		}
		if _, ok := errors.AsType[*stream.PartialError](l.err); ok {
			for i := range some {
				recs[at[i]] = some[i]
			}
		}
	}
	return l.err
}

// A record that the stream never takes becomes a dead letter, and the others arrive.
func TestOutputTooLarge(t *testing.T) {
	b := newBench(t, 1)
	out := &smallLog{processtest.NewLog(1)}
	b.putAll("a", "bbbbbbbbbbbb", "c", "dddddddddddd")
	r := b.output(t, out, &handler{name: "f", f: echo}, process.Options{})
	b.caughtUp(r)
	b.stop(r)
	b.stop(b.output(t, out, &handler{name: "f", f: echo}, process.Options{})) // the letters, if they missed the first runner's end
	want(t, dataOf(out.Log), "<a", "<c")
	want(t, deadData(b.letters()), "<bbbbbbbbbbbb", "<dddddddddddd")
}

type smallLog struct{ *processtest.Log }

func (l *smallLog) Append(ctx context.Context, recs []stream.Record) error {
	for _, r := range recs {
		if len(r.Data) > 10 {
			return fmt.Errorf("record of %d bytes: %w", len(r.Data), stream.ErrTooLarge)
		}
	}
	return l.Log.Append(ctx, recs)
}

// A function whose output stream is gone waits, and says so; others go on.
func TestOutputNeedsStream(t *testing.T) {
	b := newBench(t, 1)
	r, err := process.New(b.config())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.AddHandler(&handler{name: "f", f: echo}, process.Options{Output: "out"}); err == nil || !strings.Contains(err.Error(), "Config.Streams") {
		t.Errorf("AddHandler without streams = %v", err)
	}
}

// The machine loses power again and again, the stream that takes the output survives as any other service would: in the end it
// holds the output of each record once, whatever was under way. Equal records are among them on purpose.
func TestOutputOnce(t *testing.T) {
	seeds := 12
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(uint64(seed), 5)) //nolint:gosec // reproducible
			b := newBench(t, 2)
			inner := processtest.NewLog(2)
			out := &slowLog{Log: inner}
			h := &handler{name: "f", f: echo}
			n := 0
			for range 12 {
				r := b.output(t, out, h, process.Options{BatchSize: 1 + rng.IntN(10), Lanes: 2})
				for range rng.IntN(150) {
					b.log.Put(fmt.Sprintf("vehicle-%02d", rng.IntN(5)), fmt.Sprintf("%d,", rng.IntN(4)))
					n++
				}
				if shards, _ := inner.Shards(t.Context()); rng.IntN(3) == 0 && len(shards) < 10 {
					inner.Split(shards[len(shards)-1].ID)
				}
				if rng.IntN(3) == 0 {
					b.caughtUp(r)
				} else {
					time.Sleep(time.Duration(rng.IntN(3000)) * time.Microsecond)
				}
				// A call that goes through after the power is gone would come from a world that has ended.
				out.cut.Lock()
				//nolint:gosec // reproducible
				clone := b.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rand.New(rand.NewPCG(uint64(seed), rng.Uint64()))})
				out.dead = true
				out.cut.Unlock()
				ctx, cancel := context.WithCancel(context.Background())
				cancel()
				_ = r.Stop(ctx) // interrupted on purpose
				if err := b.store.Close(); err != nil {
					t.Fatal(err)
				}
				b.fs, out.dead = clone, false
				b.open()
			}
			r := b.output(t, out, h, process.Options{Lanes: 2})
			b.caughtUp(r)
			b.stop(r)
			var in, got []string
			for _, r := range b.log.All() {
				in = append(in, r.Key+" <"+string(r.Data))
			}
			for _, r := range inner.All() {
				got = append(got, r.Key+" "+string(r.Data))
			}
			slices.Sort(in)
			slices.Sort(got)
			if diff := cmp.Diff(in, got); diff != "" {
				t.Errorf("output of %d records (-want +got):\n%s", n, diff)
			}
		})
	}
}

// A slowLog takes a while, and nothing any more once it is dead.
type slowLog struct {
	*processtest.Log
	cut  sync.Mutex
	dead bool
}

func (l *slowLog) Append(ctx context.Context, recs []stream.Record) error {
	half := len(recs) / 2
	for _, part := range [][]stream.Record{recs[:half], recs[half:]} {
		l.cut.Lock()
		if l.dead {
			l.cut.Unlock()
			return errors.New("no power")
		}
		err := l.Log.Append(ctx, part)
		l.cut.Unlock()
		if err != nil {
			return err
		}
		time.Sleep(50 * time.Microsecond)
	}
	return nil
}
