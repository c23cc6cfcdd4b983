package archive

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state/local"
)

// TestCrashAnywhere stops the machine at random writes and syncs of flushes, compactions and retention, and starts it again
// on what the disk kept.
func TestCrashAnywhere(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { crashRun(t, seed) })
	}
}

func crashRun(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	disk := vfs.NewCrashable()
	added := 0
	for range 4 {
		// The crash: after so many operations nothing reaches the disk any more.
		fs := newCutFS(disk, rng.IntN(160), rng)
		store, a, err := func() (*journal, *Archive, error) {
			if err := fs.MkdirAll("data", 0o755); err != nil {
				return nil, nil, err
			}
			store, err := openJournal(fs, "data/state")
			if err != nil {
				return nil, nil, err
			}
			cfg := quiet(fs, store)
			cfg.Compaction.FanIn = 2
			a, err := Open(t.Context(), cfg)
			return store, a, err
		}()
		if err == nil {
			run(t, a, store, rng, &added)
			a.stop()
			a.done.Wait()
		}
		disk = fs.clone(disk)
		// What is there now is right: everything before the checkpoint, once; and reading on completes it.
		b, _ := openTest(t, disk, nil)
		at, err := b.Checkpoint(t.Context(), "s")
		if err != nil {
			t.Fatal(err)
		}
		done := 0
		if at != "" {
			_, _ = fmt.Sscan(strings.TrimLeft(string(at), "0"), &done)
		}
		wantOnce(t, b, done)
		if p, err := b.Verify(t.Context()); err != nil || len(p) > 0 {
			t.Fatalf("Verify = %v, %v", p, err)
		}
		added = max(added, done)
		add(t, lane(t, b, "s"), 0, added)
		wantOnce(t, b, added)
		closeTest(t, b)
	}
}

func run(t *testing.T, a *Archive, _ *journal, rng *rand.Rand, added *int) {
	l, err := a.Lane(context.Background(), "s")
	if err != nil {
		return
	}
	add(t, l, 0, *added)
	for range 12 {
		n := 1 + rng.IntN(300)
		add(t, l, *added, *added+n)
		*added += n
		switch err := a.Flush(context.Background()); {
		case err != nil:
			return
		case rng.IntN(2) == 0:
			if _, err := a.Compact(context.Background(), time.Now().Add(time.Hour)); err != nil {
				return
			}
		case rng.IntN(2) == 0:
			if err := a.removeObsolete(context.Background()); err != nil {
				return
			}
		}
	}
}

// TestCrashWithRealState is TestCrashAnywhere over the state store that Milepost has: one crash, one moment of both.
func TestCrashWithRealState(t *testing.T) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 7))
		fs := vfs.NewCrashable()
		added := 0
		for range 4 {
			store, err := local.Open(local.Config{Dir: "data/state", FS: fs})
			if err != nil {
				t.Fatal(err)
			}
			cfg := quiet(fs, nil)
			cfg.Store = store
			cfg.Compaction.FanIn = 2
			a, err := Open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			l := lane(t, a, "s")
			done := 0
			if p := l.Done(); p != "" {
				_, _ = fmt.Sscan(strings.TrimLeft(string(p), "0"), &done)
			}
			wantOnce(t, a, done)
			add(t, l, 0, max(added, 1))
			for range 1 + rng.IntN(8) {
				n := 1 + rng.IntN(500)
				add(t, l, added, added+n)
				added += n
				if err := a.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				if rng.IntN(2) == 0 {
					if _, err := a.Compact(t.Context(), time.Now().Add(time.Hour)); err != nil {
						t.Fatal(err)
					}
				}
			}
			add(t, l, added, added+50)
			added += 50
			wantOnce(t, a, added)
			// The power goes off with 50 rows in the tail, while the keeper may be removing files.
			crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			if err := errors.Join(a.Close(context.Background()), store.Close()); err != nil {
				t.Fatal(err)
			}
			fs = crashed
		}
	}
}

// A disk that fails for a while, writes and fsyncs alike, loses nothing: the flush is tried again from the beginning.
func TestDiskFailsForAWhile(t *testing.T) {
	disk := vfs.NewCrashable()
	if err := disk.MkdirAll("data", 0o755); err != nil {
		t.Fatal(err)
	}
	store, err := openJournal(disk, "data/state")
	if err != nil {
		t.Fatal(err)
	}
	fs := newCutFS(disk, 1<<40, rand.New(rand.NewPCG(1, 1)))
	a, err := Open(t.Context(), quiet(fs, store))
	if err != nil {
		t.Fatal(err)
	}
	defer closeTest(t, a)
	l := lane(t, a, "s")
	const works = 1 << 40
	// After so many operations of a flush everything fails: creating, writing, syncing the file, syncing directories, renaming.
	for ops := range 12 {
		add(t, l, ops*100, ops*100+100)
		fs.left.Store(int64(ops) + 2)
		broke := a.Flush(t.Context()) != nil
		fs.left.Store(works)
		wantOnce(t, a, ops*100+100)
		if err := a.Flush(t.Context()); err != nil {
			t.Fatalf("after %d operations (failed %v): %v", ops, broke, err)
		}
		wantOnce(t, a, ops*100+100)
	}
	if s := a.Status(); s.TailRows != 0 || s.Rows != 1200 {
		t.Errorf("Status = %+v", s)
	}
}
