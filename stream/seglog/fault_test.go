package seglog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
)

// faults injects what it is told to.
type faults struct {
	f atomic.Pointer[func(errorfs.Op) error]
}

func (f *faults) String() string { return "faults" }

func (f *faults) MaybeError(op errorfs.Op) error {
	if f := f.f.Load(); f != nil {
		return (*f)(op)
	}
	return nil
}

func (f *faults) set(g func(errorfs.Op) error) { f.f.Store(&g) }
func (f *faults) clear()                       { f.f.Store(nil) }

// on fails an operation on files with a suffix.
func on(kind errorfs.OpKind, suffix string, err error) func(errorfs.Op) error {
	return func(op errorfs.Op) error {
		if op.Kind == kind && strings.HasSuffix(op.Path, suffix) {
			return err
		}
		return nil
	}
}

func faulty(t *testing.T, cfg Config) (*Store, *Log, *faults, Config) {
	t.Helper()
	inj := &faults{}
	cfg.Dir, cfg.FS, cfg.TrimEvery = "log", errorfs.Wrap(vfs.NewCrashable(), inj), -1
	st := mustOpen(t, cfg)
	return st, mustCreate(t, st, StreamConfig{Shards: 2}), inj, cfg
}

// TestFence: after a failed write or sync of a group, nothing more is written; what was durable can be read; a restart mends.
func TestFence(t *testing.T) {
	for name, fault := range map[string]func(errorfs.Op) error{
		"write":          on(errorfs.OpFileWriteAt, ".log", syscall.EIO),
		"sync":           on(errorfs.OpFileSyncData, ".log", syscall.EIO),
		"full disk sync": on(errorfs.OpFileSyncData, ".log", syscall.ENOSPC),
	} {
		t.Run(name, func(t *testing.T) {
			st, l, inj, cfg := faulty(t, Config{})
			want := map[stream.ShardID][]kept{}
			mustAppend(t, l, want, "k", "a", "b")
			inj.set(fault)
			recs := []stream.Record{{Key: "k", Data: []byte("lost")}}
			if err := l.Append(t.Context(), recs); !errors.Is(err, stream.ErrFenced) || recs[0].Pos != "" {
				t.Fatalf("append with a failing disk: %v, want ErrFenced", err)
			}
			inj.clear()
			for range 3 {
				if err := l.Append(t.Context(), recs); !errors.Is(err, stream.ErrFenced) {
					t.Fatalf("append to a fenced log: %v, want ErrFenced", err)
				}
			}
			if _, err := l.Split(t.Context(), shardID(0), stream.Hash{Hi: 5}); !errors.Is(err, stream.ErrFenced) {
				t.Fatalf("split of a fenced log: %v, want ErrFenced", err)
			}
			if l.Stats().Fenced == nil {
				t.Fatal("stats do not tell of the fence")
			}
			mustHold(t, l, want)
			mustClose(t, st)
			st = mustOpen(t, cfg)
			l = mustStream(t, st)
			// The group's bytes may be there or not; what was acknowledged is.
			got := contents(t, l)
			for id, w := range want {
				if len(got[id]) < len(w) || got[id][0] != w[0] || got[id][1] != w[1] {
					t.Fatalf("%s after the restart: %v, want at least %v", id, got[id], w)
				}
			}
			mustAppend(t, l, map[stream.ShardID][]kept{}, "k", "after")
			mustClose(t, st)
		})
	}
}

// TestFullDiskByWrite: the write itself finds no room. Nothing is stored and nothing is fenced.
func TestFullDiskByWrite(t *testing.T) {
	st, l, inj, cfg := faulty(t, Config{})
	want := map[stream.ShardID][]kept{}
	mustAppend(t, l, want, "k", "a")
	for _, fault := range []func(errorfs.Op) error{
		on(errorfs.OpFileWriteAt, ".log", syscall.ENOSPC),
		on(errorfs.OpFileWriteAt, ".log", fmt.Errorf("wrapped: %w", syscall.ENOSPC)),
	} {
		inj.set(fault)
		for range 2 {
			if err := l.Append(t.Context(), []stream.Record{{Key: "k"}}); !errors.Is(err, stream.ErrFull) {
				t.Fatalf("append to a full disk: %v, want ErrFull", err)
			}
		}
		if !l.Stats().Full {
			t.Error("stats do not tell that the disk is full")
		}
		mustHold(t, l, want)
		inj.clear()
		mustAppend(t, l, want, "k", "b", "c")
		if l.Stats().Full {
			t.Error("stats still tell that the disk is full")
		}
	}
	mustHold(t, l, want)
	mustClose(t, st)
	st = mustOpen(t, cfg)
	mustHold(t, mustStream(t, st), want)
	mustClose(t, st)
}

// TestFullDiskAhead: too little is free, or the reservation fails. Nothing is even tried.
func TestFullDiskAhead(t *testing.T) {
	mem := vfs.NewCrashable()
	inj := &faults{}
	cfg := Config{Dir: "log", FS: errorfs.Wrap(mem, inj), SegmentBytes: 600, ReserveBytes: 1 << 20, TrimEvery: -1}
	const plenty = 1 << 40
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: plenty, TotalBytes: plenty})
	st := mustOpen(t, cfg)
	l := mustCreate(t, st, StreamConfig{})
	want := map[stream.ShardID][]kept{}
	fill := func() { // until the reserved chunk is used up, so that room is asked for again
		for range 5 {
			mustAppend(t, l, want, "k", strings.Repeat("x", 300))
		}
	}
	for i, full := range []func(){
		func() { mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1<<20 - 1, TotalBytes: plenty}) },
		func() { inj.set(on(errorfs.OpFilePreallocate, ".log", syscall.ENOSPC)) },
		func() { inj.set(on(errorfs.OpFileWriteAt, ".log", syscall.ENOSPC)) },
	} {
		fill()
		full()
		for range 3 {
			recs := []stream.Record{{Key: "k", Data: make([]byte, 300)}}
			if err := l.Append(t.Context(), recs); !errors.Is(err, stream.ErrFull) || recs[0].Pos != "" {
				t.Fatalf("append without room: %v, want ErrFull", err)
			}
		}
		mustHold(t, l, want)
		if !l.Stats().Full {
			t.Error("stats do not tell that the disk is full")
		}
		mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: plenty, TotalBytes: plenty})
		inj.clear()
		if i == 0 && l.Stats().Full {
			t.Error("there is room again, and only an append can tell")
		}
	}
	fill()
	mustHold(t, l, want)
	mustClose(t, st)
	st = mustOpen(t, cfg)
	mustHold(t, mustStream(t, st), want)
	mustClose(t, st)
}

// TestUpdateOfNothing: settings that are already so are not written, so that a start on a full disk gets as far as reading.
func TestUpdateOfNothing(t *testing.T) {
	st, l, inj, _ := faulty(t, Config{})
	was := l.Config()
	inj.set(on(errorfs.OpCreate, "STREAM.tmp", syscall.ENOSPC))
	same := func(c *StreamConfig) { c.Retention, c.RetentionBytes = was.Retention, was.RetentionBytes }
	if err := st.Update(t.Context(), l.Name(), same); err != nil {
		t.Errorf("an update that changes nothing: %v", err)
	}
	if err := st.Update(t.Context(), l.Name(), func(c *StreamConfig) { c.Retention++ }); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("an update on a full disk: %v", err)
	}
	inj.clear()
	mustClose(t, st)
}

// TestFaultsEverywhere fails each kind of operation in turn, now and then, under load: whatever happens, what was acknowledged is
// there after a restart, once and in order.
func TestFaultsEverywhere(t *testing.T) {
	kinds := []errorfs.OpKind{
		errorfs.OpCreate, errorfs.OpOpen, errorfs.OpOpenDir, errorfs.OpRemove, errorfs.OpRename, errorfs.OpStat, errorfs.OpList,
		errorfs.OpFileClose, errorfs.OpFileWrite, errorfs.OpFileWriteAt, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFilePreallocate,
	}
	for _, kind := range kinds {
		for _, cause := range []error{syscall.EIO, syscall.ENOSPC} {
			t.Run(fmt.Sprint(kind, cause), func(t *testing.T) { faultRound(t, kind, cause) })
		}
	}
}

func faultRound(t *testing.T, kind errorfs.OpKind, cause error) {
	r, when := rng(t), rng(t)
	st, l, inj, cfg := faulty(t, Config{SegmentBytes: 500})
	want := map[stream.ShardID][]kept{}
	mustAppend(t, l, want, "k", "first")
	skip := when.IntN(4)
	var mu sync.Mutex
	inj.set(func(op errorfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if op.Kind != kind {
			return nil
		}
		if skip--; skip < 0 {
			skip = when.IntN(6)
			return cause
		}
		return nil
	})
	id := ""
	for i := range 40 {
		rec := []stream.Record{{Key: "k", Data: fmt.Appendf(nil, "%d %s", i, strings.Repeat("y", r.IntN(200)))}}
		if err := l.Append(t.Context(), rec); err == nil {
			id = string(rec[0].Shard)
			want[rec[0].Shard] = append(want[rec[0].Shard], keep(&rec[0]))
		}
		if i%10 == 5 {
			shards, err := l.Shards(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s := shards[len(shards)-1]
			_, _ = l.Split(t.Context(), s.ID, stream.Hash{Hi: s.From.Hi + (s.To.Hi-s.From.Hi)/2 + 1})
		}
	}
	inj.clear()
	_ = st.Close() // may tell of faults
	st = mustOpen(t, cfg)
	defer mustClose(t, st)
	l = mustStream(t, st)
	got := contents(t, l)
	for shard, w := range want {
		// Records whose Append failed may be there too, behind those of the life before the fence.
		g := got[shard]
		if len(g) < len(w) {
			t.Fatalf("%s (%s): %s", shard, id, differ(g, w))
		}
		if differ(g[:len(w)], w) != "equal" {
			t.Fatalf("%s: %s", shard, differ(g, w))
		}
	}
	mustAppend(t, l, map[stream.ShardID][]kept{}, "k", "goes on")
}

// TestQueueIsBounded: while the disk hangs, requests wait up to a bound, and those beyond wait for room until their context ends.
func TestQueueIsBounded(t *testing.T) {
	hang := make(chan struct{})
	entered := make(chan struct{}, 1)
	reg := prometheus.NewPedanticRegistry()
	st, l, inj, _ := faulty(t, Config{QueueBytes: 1000, Metrics: reg})
	inj.set(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData {
			select {
			case entered <- struct{}{}:
			default:
			}
			<-hang
		}
		return nil
	})
	var wg sync.WaitGroup
	var stored atomic.Int64
	put := func(ctx context.Context) error {
		err := l.Append(ctx, []stream.Record{{Key: "k", Data: make([]byte, 300)}})
		if err == nil {
			stored.Add(1)
		}
		return err
	}
	wg.Go(func() { _ = put(t.Context()) })
	<-entered
	for range 20 {
		wg.Go(func() {
			if err := put(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	// One is being synced, two more fit the bound: the queue holds no more however long we look.
	for l.queue.len() < 2 {
		if err := t.Context().Err(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	refused := make(chan error, 1)
	go func() { refused <- put(ctx) }() // ends by its answer
	cancel()
	if err := <-refused; !errors.Is(err, context.Canceled) {
		t.Fatalf("append without room and with an ended context: %v", err)
	}
	if n := l.queue.waiting(); n > 1000 {
		t.Fatalf("%d bytes wait, want at most 1000", n)
	}
	close(hang)
	wg.Wait()
	if stored.Load() != 21 {
		t.Fatalf("%d records are stored, want 21", stored.Load())
	}
	if n := metric(t, reg, "milepost_stream_records_total"); n != 21 {
		t.Fatalf("milepost_stream_records_total is %v, want 21", n)
	}
	mustClose(t, st)
	if n := metric(t, reg, "milepost_stream_records_total"); n != 0 {
		t.Fatal("metrics are left after Close")
	}
}

// metric returns the sum of a counter.
func metric(t *testing.T, reg prometheus.Gatherer, name string) (sum float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// TestLock: a second process, or a second Open, is refused.
func TestLock(t *testing.T) {
	for name, cfg := range map[string]Config{"disk": {Dir: t.TempDir()}, "memory": {Dir: "log", FS: vfs.NewCrashable()}} {
		t.Run(name, func(t *testing.T) {
			st := mustOpen(t, cfg)
			if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "in use") {
				t.Fatalf("second open: %v, want one that says the directory is in use", err)
			}
			if _, err := Verify(t.Context(), cfg); err == nil {
				t.Fatal("verify of an open store succeeded")
			}
			mustClose(t, st)
			mustClose(t, mustOpen(t, cfg))
		})
	}
}

// TestReshardAbandoned: a Split or Merge whose context ends while the committer is at it says that the outcome is unknown and shares
// nothing with the committer, which the race detector sees; the reshard itself is done whole.
func TestReshardAbandoned(t *testing.T) {
	st, l, inj, _ := faulty(t, Config{})
	defer mustClose(t, st)
	abandon := func(reshard func(context.Context) (made bool, err error)) {
		t.Helper()
		before := len(openShards(t, l))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		inj.set(func(errorfs.Op) error { // the committer writes metadata: the producer leaves now
			cancel()
			return nil
		})
		made, err := reshard(ctx)
		if err != nil && (!errors.Is(err, context.Canceled) || made) {
			t.Fatalf("abandoned: %v, result %v, want Canceled and no result", err, made)
		}
		// The committer does one thing at a time, so this waits for the reshard.
		if err := l.do(t.Context(), func(*committer) error { return nil }); err != nil {
			t.Fatal(err)
		}
		inj.clear()
		if ctx.Err() == nil {
			t.Fatal("the committer wrote nothing")
		}
		if after := len(openShards(t, l)); after == before {
			t.Fatalf("%d shards are open, as before", after)
		}
	}
	for range 8 {
		abandon(func(ctx context.Context) (bool, error) {
			s := openShards(t, l)[0]
			children, err := l.Split(ctx, s.ID, s.From.Next())
			return children[0].ID != "", err
		})
		abandon(func(ctx context.Context) (bool, error) {
			open := openShards(t, l)
			slices.SortFunc(open, func(a, b stream.Shard) int {
				if a.From.Less(b.From) {
					return -1
				}
				return 1
			})
			child, err := l.Merge(ctx, open[0].ID, open[1].ID)
			return child.ID != "", err
		})
	}
}

func openShards(t *testing.T, l *Log) []stream.Shard {
	t.Helper()
	all, err := l.Shards(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(s stream.Shard) bool { return s.Closed })
}
