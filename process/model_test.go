package process_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// P2, P3, P4. Records go in while the runner is started and stopped, killed with its store, given other lanes, and the stream is
// split and merged; functions fail at random, and for good on poison. In the end each record has had its effect exactly once, in
// order per key, and exactly the poison is dead-lettered.
func TestModel(t *testing.T) {
	seeds := 12
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		for _, folder := range []bool{false, true} {
			t.Run(fmt.Sprintf("seed %d folder %v", seed, folder), func(t *testing.T) {
				t.Parallel()
				model(t, uint64(seed), folder)
			})
		}
	}
}

// trouble decides what a call of a function comes to.
type trouble struct {
	mu  sync.Mutex
	rng *rand.Rand
	off bool
}

var errFlaky = errors.New("flaky")

func (d *trouble) strike(recs []stream.Record, reject bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range recs {
		if strings.HasPrefix(string(r.Data), "poison") {
			switch {
			case reject && len(r.Data)%3 != 0:
				return fmt.Errorf("wrapped: %w", &process.RejectError{Pos: r.Pos, Err: errors.New("poison")})
			case len(r.Data)%2 == 0:
				panic("poison " + string(r.Data))
			default:
				return errors.New("poison")
			}
		}
	}
	if !d.off && d.rng.IntN(8) == 0 {
		return errFlaky
	}
	return nil
}

func model(t *testing.T, seed uint64, folder bool) {
	rng := rand.New(rand.NewPCG(seed, 7)) //nolint:gosec // reproducible
	b := newBench(t, 1+rng.IntN(3))
	d := &trouble{rng: rand.New(rand.NewPCG(seed, 8))} //nolint:gosec // reproducible
	n := 0
	feed := func(count int) {
		for range count {
			s := fmt.Sprintf("%d,", n)
			if rng.IntN(60) == 0 {
				s = "poison" + s
			}
			if rng.IntN(50) == 0 {
				s += "!"
			}
			b.log.Put(fmt.Sprintf("vehicle-%02d", rng.IntN(25)), s)
			n++
		}
	}
	lanes := 1
	start := func() *process.Runner {
		if rng.IntN(2) == 0 {
			lanes = 1 + rng.IntN(4)
		}
		o := process.Options{
			Lanes: lanes, MaxAttempts: 25, MinBackoff: time.Microsecond, MaxBackoff: 100 * time.Microsecond,
			BatchSize: 1 + rng.IntN(40), Bisect: rng.IntN(4) > 0, CommitInterval: time.Duration(rng.IntN(5)) * time.Millisecond,
			CommitRecords: 1 + rng.IntN(300), TickInterval: 3 * time.Millisecond,
		}
		if rng.IntN(3) == 0 {
			o.BatchWindow = time.Millisecond
		}
		// Without bisecting a batch with poison in it is dead-lettered whole.
		o.Bisect = true
		return b.start(func(r *process.Runner) error {
			if folder {
				return r.AddFolder(&journalFolder{name: "journal", before: func(recs []stream.Record) error {
					return d.strike(recs, true)
				}}, o)
			}
			return r.Add(function{"journal", func(_ context.Context, tx state.Tx, recs []stream.Record) error {
				if err := d.strike(recs, true); err != nil {
					_ = journal(tx, recs) // a mess that must not be kept
					return err
				}
				return journal(tx, recs)
			}}, o)
		})
	}
	for range 10 {
		r := start()
		feed(rng.IntN(400))
		if open := openShards(t, b); rng.IntN(2) == 0 && len(open) > 0 {
			if i := rng.IntN(len(open)); rng.IntN(2) == 0 && len(open) < 6 {
				b.log.Split(open[i].ID)
			} else if i+1 < len(open) {
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
			// The power fails: what runs on after the clone happens in a world that nobody will see.
			//nolint:gosec // reproducible
			clone := b.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rand.New(rand.NewPCG(seed, rng.Uint64()))})
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_ = r.Stop(ctx) // interrupted on purpose
			if err := b.store.Close(); err != nil {
				t.Fatal(err)
			}
			b.fs = clone
			b.open()
		} else {
			b.stop(r)
		}
	}
	d.mu.Lock()
	d.off = true
	d.mu.Unlock()
	r := start()
	b.caughtUp(r)
	b.stop(r)

	poison := func(r stream.Record) bool { return strings.HasPrefix(string(r.Data), "poison") }
	if diff := cmp.Diff(journalOf(b.log, poison), b.values()); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	want := map[string]string{}
	for _, r := range b.log.All() {
		if poison(r) {
			want[fmt.Sprintf("journal/%s/%s", r.Shard, r.Pos)] = r.Key + ":" + string(r.Data)
		}
	}
	got := map[string]string{}
	for id, l := range b.letters() {
		got[id] = l.Key + ":" + string(l.Data)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
	if es, _, err := b.store.Pending(t.Context(), process.DeadLetterKind, 10); err != nil || len(es) > 0 {
		t.Errorf("%d letters left in the outbox, %v", len(es), err)
	}
	if t.Failed() {
		t.Logf("seed %d, folder %v, %d records\n%s", seed, folder, n, show(r.Status(context.Background())))
	}
}

func openShards(t *testing.T, b *bench) []stream.Shard {
	t.Helper()
	all, err := b.log.Shards(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var open []stream.Shard
	for _, s := range all {
		if !s.Closed {
			open = append(open, s)
		}
	}
	return open
}
