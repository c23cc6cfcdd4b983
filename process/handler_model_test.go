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
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/processtest"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// P2, P3, P4 for handlers. Records go in while runners are stopped and started, killed with their store, given other lanes and
// batches, while the stream is split and merged and the store fails before or after a step. The function fails whole, in part, by
// panic, after it has done some of its work, and for good on poison. In the end: each record that is no poison was processed, in
// order per key where nothing is put off; exactly the poison was given up, each once; the output stream holds the output of each
// other record once.
func TestHandlerModel(t *testing.T) {
	seeds := 10
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		for _, spill := range []bool{false, true} {
			t.Run(fmt.Sprintf("seed %d spill %v", seed, spill), func(t *testing.T) {
				t.Parallel()
				handlerModel(t, uint64(seed), spill)
			})
		}
	}
}

// A world is what the function does outside: it outlives crashes.
type world struct {
	mu    sync.Mutex
	rng   *rand.Rand
	off   bool                // nothing fails but poison
	done  map[string]bool     // records by ID: what came twice is recognised
	order map[string][]string // by key
	twice int
}

func (w *world) Name() string { return "model" }
func (w *world) Handle(_ context.Context, in *process.Invocation) (process.Result, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, poison := len(in.Records), false
	for i, r := range in.Records {
		if strings.HasPrefix(string(r.Data), "poison") {
			n, poison = i, true
			break
		}
	}
	trouble := 0
	if poison {
		trouble = 1 + w.rng.IntN(4)
	} else if !w.off && w.rng.IntN(6) == 0 {
		trouble = 1 + w.rng.IntN(5)
		n = w.rng.IntN(n + 1) // what it manages before
	}
	var out []stream.Record
	for _, r := range in.Records[:n] {
		id := fmt.Sprintf("%s:%s", r.Shard, r.Pos)
		out = append(out, stream.Record{Key: strings.Clone(r.Key), Data: append([]byte(">"), r.Data...)})
		if w.done[id] {
			w.twice++
			continue
		}
		w.done[id] = true
		w.order[strings.Clone(r.Key)] = append(w.order[strings.Clone(r.Key)], string(r.Data))
	}
	switch trouble {
	case 1, 2:
		if n < len(in.Records) {
			return process.Result{Failed: in.Records[n].Pos, Output: out}, nil
		}
		return process.Result{Failed: "nonsense"}, nil
	case 3:
		panic("out of cheese")
	case 4:
		return process.Result{}, errFlaky
	case 5:
		return process.Result{}, &process.NotRunError{Err: errFlaky, After: 50 * time.Microsecond}
	}
	return process.Result{Output: out}, nil
}

func handlerModel(t *testing.T, seed uint64, spill bool) {
	rng := rand.New(rand.NewPCG(seed, 17))                                                                   //nolint:gosec // reproducible
	w := &world{rng: rand.New(rand.NewPCG(seed, 18)), done: map[string]bool{}, order: map[string][]string{}} //nolint:gosec // reproducible
	b := newBench(t, 1+rng.IntN(3))
	inner := processtest.NewLog(2)
	out := &slowLog{Log: inner}
	n := 0
	feed := func(count int) {
		for range count {
			s := fmt.Sprintf("%d,", n)
			if rng.IntN(60) == 0 {
				s = "poison" + s
			}
			b.log.Put(fmt.Sprintf("vehicle-%02d", rng.IntN(25)), s)
			n++
		}
	}
	lanes := 1
	start := func(calm bool) *process.Runner {
		if rng.IntN(2) == 0 {
			lanes = 1 + rng.IntN(4)
		}
		o := process.Options{
			Lanes: lanes, MaxAttempts: 12, MinBackoff: time.Microsecond, MaxBackoff: 100 * time.Microsecond, BatchSize: 1 + rng.IntN(60),
			Bisect: true, StableBatches: rng.IntN(2) == 0, Output: "out",
			OnFailure: func(f *process.Failure) (state.Effect, error) {
				if !calm && rand.IntN(4) == 0 { //nolint:gosec // no secret
					return state.Effect{}, errFlaky
				}
				var who []string
				for _, r := range f.Records {
					who = append(who, fmt.Sprintf("%s:%s %s", r.Shard, r.Pos, r.Data))
				}
				return state.Effect{ID: f.ID, Kind: "failure", Data: []byte(strings.Join(who, "; "))}, nil
			},
		}
		if rng.IntN(3) == 0 {
			o.BatchWindow = time.Millisecond
		}
		if spill {
			o.Overflow = process.Overflow{Policy: process.OverflowSpill, MaxLag: int64(20 + rng.IntN(100)), Interval: time.Millisecond}
		}
		var mu sync.Mutex
		faults := rand.New(rand.NewPCG(seed, rng.Uint64())) //nolint:gosec // reproducible
		strike := func(state.Step) error {
			mu.Lock()
			defer mu.Unlock()
			if !calm && faults.IntN(25) == 0 {
				return state.ErrFull
			}
			return nil
		}
		cfg := b.config()
		cfg.Store = &flakyStore{Store: b.store, fail: strike, after: strike}
		cfg.Streams = to(map[string]stream.Log{"out": out})
		r, err := process.New(cfg)
		if err == nil {
			err = errors.Join(r.AddHandler(w, o), r.Start())
		}
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for range 10 {
		r := start(false)
		feed(rng.IntN(400))
		if open := openShards(t, b); rng.IntN(2) == 0 {
			if i := rng.IntN(len(open)); rng.IntN(2) == 0 && len(open) < 6 {
				b.log.Split(open[i].ID)
			} else {
				for _, o := range open {
					if open[i].To.Next() == o.From {
						b.log.Merge(open[i].ID, o.ID)
					}
				}
			}
		}
		feed(rng.IntN(400))
		if rng.IntN(3) == 0 {
			b.caughtUp(r)
		}
		if rng.IntN(2) == 0 {
			b.stop(r)
			continue
		}
		out.cut.Lock()
		//nolint:gosec // reproducible
		clone := b.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rand.New(rand.NewPCG(seed, rng.Uint64()))})
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
	w.mu.Lock()
	w.off = true
	w.mu.Unlock()
	r := start(true)
	b.caughtUp(r)
	b.stop(r)

	var wantDone, wantGone, wantOut, gotDone, gotGone, gotOut []string
	wantOrder := map[string][]string{}
	for _, rec := range b.log.All() { // parents come before children
		id := fmt.Sprintf("%s:%s", rec.Shard, rec.Pos)
		if strings.HasPrefix(string(rec.Data), "poison") {
			wantGone = append(wantGone, id+" "+string(rec.Data))
			continue
		}
		wantDone = append(wantDone, id)
		wantOut = append(wantOut, rec.Key+">"+string(rec.Data))
		wantOrder[rec.Key] = append(wantOrder[rec.Key], string(rec.Data))
	}
	for id := range w.done {
		gotDone = append(gotDone, id)
	}
	gotGone = pending(t, b, "failure")
	for _, rec := range inner.All() {
		gotOut = append(gotOut, rec.Key+string(rec.Data))
	}
	for _, s := range [][]string{wantDone, wantGone, wantOut, gotDone, gotGone, gotOut} {
		slices.Sort(s)
	}
	if diff := cmp.Diff(wantDone, gotDone); diff != "" {
		t.Errorf("processed (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantGone, gotGone); diff != "" {
		t.Errorf("given up (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantOut, gotOut); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantOrder, w.order); !spill && diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	if t.Failed() {
		t.Logf("seed %d, spill %v, %d records, %d repetitions\n%s", seed, spill, n, w.twice, show(r.Status(context.Background())))
	}
}
