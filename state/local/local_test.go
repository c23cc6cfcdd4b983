package local_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/state/statetest"
	"github.com/milepost/milepost/stream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, cfg local.Config) *local.Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = "state"
	}
	s, err := local.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // some tests break it on purpose
	return s
}

func TestSuite(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  local.Config
	}{
		{"default", local.Config{}},
		{"small memory", local.Config{MemBytes: 64 << 10}}, // many flushes and compactions
	} {
		t.Run(c.name, func(t *testing.T) {
			statetest.Run(t, func(t *testing.T) statetest.Harness {
				fs := vfs.NewCrashable()
				cfg := c.cfg
				cfg.FS = fs
				now := open(t, cfg)
				h := statetest.Harness{Store: now}
				h.Reopen = func() state.Store {
					if err := now.Close(); err != nil {
						t.Fatal(err)
					}
					now = open(t, cfg)
					return now
				}
				seed := uint64(1)
				h.Crash = func() state.Store {
					fs = fs.CrashClone(crash(int(seed%5)*25, seed))
					seed++
					cfg.FS = fs
					now = open(t, cfg)
					return now
				}
				return h
			})
		})
	}
}

func crash(percent int, seed uint64) vfs.CrashCloneCfg {
	return vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(seed, 0))} //nolint:gosec // reproducible
}

func put(k, v string) func(state.Tx) error {
	return func(tx state.Tx) error { return tx.Set([]byte(k), []byte(v)) }
}

func get(t *testing.T, s state.Store, k string) string {
	t.Helper()
	var out string
	if err := s.View(t.Context(), func(r state.Reader) error {
		v, err := r.Get([]byte(k))
		out = string(v)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestOpenTwice(t *testing.T) {
	for name, cfg := range map[string]local.Config{
		"memory": {FS: vfs.NewCrashable(), Dir: "state"},
		"disk":   {Dir: t.TempDir()},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, cfg)
			_, err := local.Open(cfg)
			if err == nil || !strings.Contains(err.Error(), "in use by another process") {
				t.Fatalf("second Open = %v, want that it is in use", err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			open(t, cfg)
		})
	}
}

func TestMetricsComeAndGo(t *testing.T) {
	reg := prometheus.NewRegistry()
	for range 2 {
		s := open(t, local.Config{FS: vfs.NewCrashable(), Metrics: reg})
		if err := s.Update(t.Context(), put("a", "1")); err != nil {
			t.Fatal(err)
		}
		fs, err := reg.Gather()
		if err != nil || len(fs) == 0 {
			t.Fatalf("gathered %d families, %v", len(fs), err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// brittle fails operations as the test wants.
func brittle(fs vfs.FS) (vfs.FS, func(func(errorfs.Op) error)) {
	var p atomic.Pointer[func(errorfs.Op) error]
	return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if f := p.Load(); f != nil {
				return (*f)(op)
			}
			return nil
		})), func(f func(errorfs.Op) error) {
			if f == nil {
				p.Store(nil)
			} else {
				p.Store(&f)
			}
		}
}

// After any failed write or sync of the log, nothing more is taken, what was acknowledged is kept, and Close ends.
func TestFenceAfterFailedWrite(t *testing.T) {
	for name, kinds := range map[string][]errorfs.OpKind{
		"sync":  {errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo},
		"write": {errorfs.OpFileWrite},
	} {
		t.Run(name, func(t *testing.T) {
			mem := vfs.NewCrashable()
			fs, fail := brittle(mem)
			var logged bytes.Buffer
			cfg := local.Config{Dir: "state", FS: fs, Log: slog.New(slog.NewTextHandler(&logged, nil))}
			s := open(t, cfg)
			if err := s.Update(t.Context(), put("a", "1")); err != nil {
				t.Fatal(err)
			}
			fail(func(op errorfs.Op) error {
				if strings.HasSuffix(op.Path, ".log") && slices.Contains(kinds, op.Kind) {
					return errors.New("i/o error")
				}
				return nil
			})
			err := s.Update(t.Context(), put("b", "1"))
			if !errors.Is(err, state.ErrFenced) {
				t.Fatalf("Update = %v, want ErrFenced", err)
			}
			fail(nil)
			if err := s.Advance(t.Context(), state.Step{Func: "f", Shard: "s", To: "1"}, put("c", "1")); !errors.Is(err, state.ErrFenced) {
				t.Fatalf("Advance on a fenced store = %v, want ErrFenced", err)
			}
			if got := get(t, s, "a"); got != "1" {
				t.Errorf("reading a fenced store: a = %q, want 1", got)
			}
			if err := s.Close(); !errors.Is(err, state.ErrFenced) {
				t.Errorf("Close = %v, want that it says the store was fenced", err)
			}
			if !strings.Contains(logged.String(), "state store is fenced") {
				t.Error("the fence was not logged")
			}
			s = open(t, cfg)
			if got := get(t, s, "a"); got != "1" {
				t.Errorf("after reopening a = %q, want 1", got)
			}
			if err := s.Update(t.Context(), put("c", "1")); err != nil {
				t.Errorf("after reopening: %v", err)
			}
		})
	}
}

// Pebble exits the process when its MANIFEST cannot be written. Not here.
func TestManifestFailureFences(t *testing.T) {
	fs, fail := brittle(vfs.NewCrashable())
	cfg := local.Config{Dir: "state", FS: fs, MemBytes: 64 << 10}
	s := open(t, cfg)
	fail(func(op errorfs.Op) error {
		if strings.Contains(op.Path, "MANIFEST") && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			return errors.New("i/o error")
		}
		return nil
	})
	var err error
	acked := 0
	for ; err == nil && acked < 100_000; acked++ {
		err = s.Advance(t.Context(), state.Step{Func: "f", Shard: "s", From: at(acked), To: at(acked + 1)}, func(tx state.Tx) error {
			if acked%7 == 0 {
				tx.Sync()
			}
			return tx.Set(fmt.Appendf(nil, "%d", acked), make([]byte, 1000))
		})
	}
	if !errors.Is(err, state.ErrFenced) {
		t.Fatalf("Advance = %v after %d steps, want ErrFenced", err, acked)
	}
	fail(nil)
	if err := s.Close(); !errors.Is(err, state.ErrFenced) {
		t.Errorf("Close = %v, want ErrFenced", err)
	}
	s = open(t, cfg)
	if p, err := s.Checkpoint(t.Context(), "f", "s", 0); err != nil || p == "" {
		t.Errorf("after reopening the checkpoint is %q, %v", p, err)
	}
}

func at(i int) stream.Position {
	if i == 0 {
		return ""
	}
	return stream.Position(fmt.Sprintf("%08d", i))
}

// A full disk refuses, and works again when there is room, without losing or repeating a step.
func TestFullDisk(t *testing.T) {
	mem := vfs.NewCrashable()
	fs, fail := brittle(mem)
	cfg := local.Config{Dir: "state", FS: fs, MemBytes: 64 << 10}
	s := open(t, cfg)
	n := 0
	stepOnce := func() error {
		err := s.Advance(t.Context(), state.Step{Func: "f", Shard: "s", From: at(n), To: at(n + 1)}, func(tx state.Tx) error {
			tx.Sync()
			v, err := tx.Get([]byte("count"))
			if err != nil {
				return err
			}
			c := uint64(0)
			if v != nil {
				c = binary.BigEndian.Uint64(v)
			}
			return errors.Join(
				tx.Set([]byte("count"), binary.BigEndian.AppendUint64(nil, c+1)),
				tx.Set([]byte("pad"), make([]byte, 2000)))
		})
		if err == nil {
			n++
		}
		return err
	}
	for round := range 3 {
		for range 100 {
			if err := stepOnce(); err != nil {
				t.Fatal(err)
			}
		}
		fail(func(op errorfs.Op) error {
			switch op.Kind {
			case errorfs.OpFileWrite, errorfs.OpFileWriteAt, errorfs.OpCreate:
				return syscall.ENOSPC
			default:
				return nil
			}
		})
		var err error
		for range 1000 {
			if err = stepOnce(); err != nil {
				break
			}
		}
		if !errors.Is(err, state.ErrFull) {
			t.Fatalf("round %d: Advance on a full disk = %v, want ErrFull", round, err)
		}
		if got := get(t, s, "pad"); len(got) != 2000 {
			t.Errorf("reads do not go on")
		}
		fail(nil)
		// What became of the step that was under way is what Checkpoint says. It waits until the step is settled.
		for {
			p, err := s.Checkpoint(t.Context(), "f", "s", 0)
			if err == nil {
				if p == at(n+1) {
					n++
				}
				if p != at(n) {
					t.Fatalf("checkpoint %q, want %q", p, at(n))
				}
				err = stepOnce()
			}
			if err == nil {
				break
			}
			if !errors.Is(err, state.ErrFull) {
				t.Fatal(err)
			}
		}
	}
	if got := binary.BigEndian.Uint64([]byte(get(t, s, "count"))); got != uint64(n) {
		t.Errorf("count = %d after %d steps", got, n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	if got := binary.BigEndian.Uint64([]byte(get(t, s, "count"))); got != uint64(n) {
		t.Errorf("after reopening count = %d after %d steps", got, n)
	}
}

// Closing must not wait for room.
func TestCloseWhileFull(t *testing.T) {
	fs, fail := brittle(vfs.NewCrashable())
	cfg := local.Config{Dir: "state", FS: fs}
	s := open(t, cfg)
	if err := s.Update(t.Context(), put("a", "1")); err != nil {
		t.Fatal(err)
	}
	fail(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileWrite {
			return syscall.ENOSPC
		}
		return nil
	})
	if err := s.Update(t.Context(), put("a", "2")); !errors.Is(err, state.ErrFull) {
		t.Fatalf("Update = %v, want ErrFull", err)
	}
	if err := s.Close(); !errors.Is(err, state.ErrFenced) {
		t.Errorf("Close = %v, want to hear that something was left unwritten", err)
	}
	fail(nil)
	s = open(t, cfg)
	if got := get(t, s, "a"); got != "1" {
		t.Errorf("a = %q, want 1", got)
	}
}

// What Pebble tries in vain on a full disk, it tries many times a second, and its errors carry stacks: the log says "disk is full" once.
func TestFullDiskIsSaidOnce(t *testing.T) {
	fs, fail := brittle(vfs.NewCrashable())
	var said lines
	s := open(t, local.Config{Dir: "state", FS: fs, MemBytes: 64 << 10, Log: slog.New(slog.NewTextHandler(&said, nil))})
	tables := make(chan struct{}, 1000)
	fail(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpCreate && strings.HasSuffix(op.Path, ".sst") {
			select {
			case tables <- struct{}{}:
			default:
			}
			return syscall.ENOSPC
		}
		return nil
	})
	for i := 0; len(tables) == 0; i++ {
		if err := s.Update(t.Context(), put("pad", strings.Repeat(strconv.Itoa(i), 4000))); err != nil && !errors.Is(err, state.ErrFull) {
			t.Fatal(err)
		}
	}
	for range 4 { // the first few attempts
		<-tables
	}
	fail(nil)
	if n := said.count("disk is full"); n != 1 {
		t.Errorf("disk is full was said %d times", n)
	}
	if n := said.count("background work") + said.count("stack trace"); n != 0 {
		t.Errorf("%d lines about what follows from it", n)
	}
}

// lines counts what a logger wrote.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), s)
}

// A step that nobody asked to sync is safe after a while all the same: the log may not keep its records for ever.
func TestUnsyncedForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewCrashable()
		s := open(t, local.Config{FS: fs})
		if err := s.Advance(t.Context(), state.Step{Func: "f", Shard: "s", To: "1"}, put("a", "1")); err != nil {
			t.Fatal(err)
		}
		before := open(t, local.Config{FS: fs.CrashClone(vfs.CrashCloneCfg{})})
		if got := get(t, before, "a"); got != "" {
			t.Errorf("an unsynced step was synced: %q", got)
		}
		time.Sleep(time.Second + time.Millisecond)
		synctest.Wait()
		after := open(t, local.Config{FS: fs.CrashClone(vfs.CrashCloneCfg{})})
		if got := get(t, after, "a"); got != "1" {
			t.Errorf("after a second a = %q, want 1", got)
		}
		for _, s := range []*local.Store{before, after, s} {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Little room is refused before the disk is full.
func TestReserve(t *testing.T) {
	mem := vfs.NewCrashable()
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 10 << 20, TotalBytes: 100 << 20})
	s := open(t, local.Config{FS: mem})
	if err := s.Update(t.Context(), put("a", "1")); !errors.Is(err, state.ErrFull) {
		t.Fatalf("Update with 10 MiB left = %v, want ErrFull", err)
	}
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 80 << 20, TotalBytes: 100 << 20})
	for {
		err := s.Update(t.Context(), put("a", "1"))
		if err == nil {
			return
		}
		if !errors.Is(err, state.ErrFull) {
			t.Fatal(err)
		}
	}
}

func TestRefusesForeignDirectories(t *testing.T) {
	fs := vfs.NewCrashable()
	s := open(t, local.Config{FS: fs})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := local.SetFormat(fs, "state", []byte{99}); err != nil {
		t.Fatal(err)
	}
	if _, err := local.Open(local.Config{FS: fs, Dir: "state"}); err == nil || !strings.Contains(err.Error(), "newer than this program") {
		t.Errorf("Open of a later format = %v", err)
	}
	if err := local.SetFormat(fs, "state", nil); err != nil {
		t.Fatal(err)
	}
	if err := local.SetUser(fs, "state", "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := local.Open(local.Config{FS: fs, Dir: "state"}); err == nil || !strings.Contains(err.Error(), "not a state directory") {
		t.Errorf("Open of something else = %v", err)
	}
}

func BenchmarkAdvance(b *testing.B) {
	for _, c := range []struct {
		name       string
		sets       int
		sync, read bool
	}{
		{"2000 sets", 2000, false, false},
		{"2000 sets, synced", 2000, true, false},
		{"2000 reads and sets", 2000, false, true},
		{"1 set", 1, false, false},
		{"nothing but the checkpoint", 0, false, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := open(b, local.Config{Dir: b.TempDir()})
			key, val := []byte("vehicle/0000000000"), make([]byte, 200)
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				err := s.Advance(context.Background(), state.Step{Func: "f", Shard: "s", From: at(n), To: at(n + 1)}, func(tx state.Tx) error {
					if c.sync {
						tx.Sync()
					}
					for i := range c.sets {
						binary.BigEndian.PutUint64(key[10:], uint64(n*c.sets+i)%100_000*2654435761)
						if c.read {
							if _, err := tx.Get(key); err != nil {
								return err
							}
						}
						if err := tx.Set(key, val); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
				n++
			}
			if c.sets > 1 {
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n*c.sets), "ns/set")
			}
		})
	}
}

func BenchmarkView(b *testing.B) {
	s := open(b, local.Config{Dir: b.TempDir()})
	if err := s.Update(b.Context(), put("a", "1")); err != nil {
		b.Fatal(err)
	}
	b.Run("no read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = s.View(context.Background(), func(state.Reader) error { return nil })
		}
	})
	key := []byte("a")
	b.Run("one read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = s.View(context.Background(), func(r state.Reader) error {
				_, err := r.Get(key)
				return err
			})
		}
	})
}
