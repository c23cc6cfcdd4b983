package seglog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
)

// rng returns a generator whose seed is logged if the test fails.
func rng(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

// TestModel does random things to a log and to a map, through restarts and crashes, and compares.
func TestModel(t *testing.T) {
	for round := range 20 {
		t.Run(fmt.Sprint(round), func(t *testing.T) { modelRound(t, rng(t)) })
	}
}

func modelRound(t *testing.T, r *rand.Rand) {
	mem := vfs.NewCrashable()
	cfg := Config{Dir: "log", FS: mem, SegmentBytes: 300 + r.Int64N(20_000), CacheBytes: 1 + r.Int64N(5000), TrimEvery: -1}
	st := mustOpen(t, cfg)
	l := mustCreate(t, st, StreamConfig{Shards: 1 + r.IntN(5)})
	want := map[stream.ShardID][]kept{}
	n := 0
	for range 150 {
		switch op := r.IntN(100); {
		case op < 70:
			data := make([]string, 1+r.IntN(20))
			for i := range data {
				data[i] = fmt.Sprintf("%d-%0*d", n, r.IntN(300), 7)
				n++
			}
			mustAppend(t, l, want, fmt.Sprint("key-", r.IntN(30)), data...)
		case op < 76:
			shards, _ := l.Shards(t.Context())
			s := shards[r.IntN(len(shards))]
			at := stream.Hash{Hi: s.From.Hi + (s.To.Hi-s.From.Hi)/2 + 1}
			if _, err := l.Split(t.Context(), s.ID, at); (err == nil) == s.Closed {
				t.Fatalf("split of %+v: %v", s, err)
			}
		case op < 80:
			shards, _ := l.Shards(t.Context())
			a, b := shards[r.IntN(len(shards))], shards[r.IntN(len(shards))]
			can := !a.Closed && !b.Closed && (a.To.Next() == b.From && b.From != stream.Hash{} || b.To.Next() == a.From && a.From != stream.Hash{})
			if _, err := l.Merge(t.Context(), a.ID, b.ID); (err == nil) != can {
				t.Fatalf("merge of %+v and %+v: %v, want possible: %v", a, b, err, can)
			}
		case op < 90:
			shards, _ := l.Shards(t.Context())
			id := shards[r.IntN(len(shards))].ID
			w := want[id]
			from := r.IntN(len(w) + 1)
			pos := stream.Position("")
			if from > 0 {
				pos = w[from-1].Pos
			}
			got, err := readShard(t.Context(), l, id, pos)
			if err != nil || !slices.Equal(got, w[from:]) {
				t.Fatalf("%s after %q: %v, %s", id, pos, err, differ(got, w[from:]))
			}
		case op < 95:
			mustClose(t, st)
			st = mustOpen(t, cfg)
			l = mustStream(t, st)
			mustHold(t, l, want)
		default:
			old := st
			mem = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(101), RNG: r})
			cfg.FS = mem
			mustClose(t, old)
			st = mustOpen(t, cfg)
			l = mustStream(t, st)
			mustHold(t, l, want)
		}
	}
	mustHold(t, l, want)
	mustClose(t, st)
	rep, err := Verify(t.Context(), cfg)
	if err != nil || rep.Damaged() || len(rep.Streams[0].Missing) > 0 || rep.Streams[0].Records != uint64(n) {
		t.Fatalf("verify: %+v, %v; want %d records and no damage", rep, err, n)
	}
}

// TestCrash takes the disk away at random moments under load. What was acknowledged before that moment must be there, in order and
// once; what is there must have been sent (P1, P2).
func TestCrash(t *testing.T) {
	for _, percent := range []int{0, 10, 50, 90, 100} {
		t.Run(fmt.Sprint("unsynced=", percent), func(t *testing.T) {
			r := rng(t)
			for range 4 {
				crashRound(t, r, percent)
			}
		})
	}
}

func crashRound(t *testing.T, r *rand.Rand, percent int) {
	mem := vfs.NewCrashable()
	cfg := Config{Dir: "log", FS: mem, SegmentBytes: 1 << (10 + r.IntN(8)), TrimEvery: -1}
	st := mustOpen(t, cfg)
	l := mustCreate(t, st, StreamConfig{Shards: 3})
	const producers = 6
	var mu sync.Mutex
	acked := make([]int, producers) // by key: how many of its records are acknowledged
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	moment := make(chan struct{})
	after := 5 + r.IntN(200) // calls until the crash
	calls := 0
	for p := range producers {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i += 3 {
				recs := make([]stream.Record, 3)
				for j := range recs {
					recs[j] = stream.Record{Key: fmt.Sprint(p), Data: fmt.Appendf(nil, "%d %0*d", i+j, (i*37)%3000, 0)}
				}
				if err := l.Append(ctx, recs); err != nil {
					if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
					return
				}
				mu.Lock()
				acked[p] = i + 3
				if calls++; calls == after {
					close(moment)
				}
				mu.Unlock()
			}
		})
	}
	wg.Go(func() { // resharding meanwhile
		for range 3 {
			shards, err := l.Shards(ctx)
			if err != nil {
				return
			}
			i := slices.IndexFunc(shards, func(s stream.Shard) bool { return !s.Closed })
			s := shards[i]
			if _, err := l.Split(ctx, s.ID, stream.Hash{Hi: s.From.Hi + (s.To.Hi-s.From.Hi)/2 + 1}); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	<-moment
	mu.Lock()
	before := slices.Clone(acked)
	mu.Unlock()
	disk := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: r})
	stop()
	wg.Wait()
	mustClose(t, st)

	cfg.FS = disk
	for range 2 { // the second time after a clean close
		st = mustOpen(t, cfg)
		l = mustStream(t, st)
		next := make([]int, producers)
		shards, err := l.Shards(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range shards { // parents first
			list, err := readShard(t.Context(), l, s.ID, "")
			if err != nil {
				t.Fatal(err)
			}
			for _, rec := range list {
				var p, i int
				if _, err := fmt.Sscan(rec.Key+" "+rec.Data, &p, &i); err != nil || i != next[p] {
					t.Fatalf("%s: key %s continues with %.20s, want %d", s.ID, rec.Key, rec.Data, next[p])
				}
				next[p]++
			}
		}
		for p := range next {
			if next[p] < before[p] || next[p]%3 != 0 {
				t.Fatalf("key %d has %d records; %d were acknowledged, three at a time", p, next[p], before[p])
			}
		}
		// The log goes on.
		for p := range next {
			if err := l.Append(t.Context(), []stream.Record{
				{Key: fmt.Sprint(p), Data: fmt.Append(nil, next[p])},
				{Key: fmt.Sprint(p), Data: fmt.Append(nil, next[p]+1)},
				{Key: fmt.Sprint(p), Data: fmt.Append(nil, next[p]+2)},
			}); err != nil {
				t.Fatal(err)
			}
		}
		mustClose(t, st)
	}
}

// TestCrashWhileCreating takes the disk away around Create and Delete: a stream is there whole, or not at all.
func TestCrashWhileCreating(t *testing.T) {
	r := rng(t)
	mem := vfs.NewCrashable()
	st := mustOpen(t, Config{Dir: "log", FS: mem, TrimEvery: -1})
	disks := make(chan *vfs.MemFS, 1000)
	done := make(chan struct{})
	go func() { // waited for by done
		defer close(done)
		for range 100 {
			disks <- mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(101), RNG: r})
		}
	}()
	for i := range 20 {
		name := fmt.Sprint("stream-", i)
		if _, err := st.Create(t.Context(), name, StreamConfig{}); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			if err := st.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	<-done
	disks <- mem.CrashClone(vfs.CrashCloneCfg{})
	close(disks)
	mustClose(t, st)
	last := 0
	for disk := range disks {
		st := mustOpen(t, Config{Dir: "log", FS: disk, TrimEvery: -1})
		last = len(st.Streams())
		mustClose(t, st)
	}
	if want := 13; last != want {
		t.Fatalf("%d streams are left, want %d", last, want)
	}
}

// TestClockGoesBack: times never decrease, through restarts too.
func TestClockGoesBack(t *testing.T) {
	mem := vfs.NewCrashable()
	cfg := Config{Dir: "log", FS: mem, TrimEvery: -1}
	st := mustOpen(t, cfg)
	l := mustCreate(t, st, StreamConfig{})
	future := time.Now().Add(24 * time.Hour).UnixMilli()
	if err := l.do(t.Context(), func(c *committer) error { c.last = future; return nil }); err != nil {
		t.Fatal(err)
	}
	want := map[stream.ShardID][]kept{}
	for range 3 {
		if got := mustAppend(t, l, want, "k", "x")[0].Time.UnixMilli(); got != future {
			t.Fatalf("time %d, want %d: it went back", got, future)
		}
		mustClose(t, st)
		st = mustOpen(t, cfg)
		l = mustStream(t, st)
	}
	mustHold(t, l, want)
	mustClose(t, st)
}
