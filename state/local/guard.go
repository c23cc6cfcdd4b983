package local

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state"
)

// A guard stands between Pebble and the file system, because Pebble answers a failed write of its write-ahead log with a
// panic that leaves its commit lock held, and a failed MANIFEST write with os.Exit. Neither may happen to a program that has
// more to do than state. So:
//
//   - A write-ahead log never fails for Pebble. When a write, sync or creation of it fails, the guard fences the store: from
//     then on it writes nothing more to the disk, tells Pebble that all is well, and the store refuses every transaction,
//     including those that were under way. The disk is as after a crash at that moment, which recovery knows.
//   - A full disk is not a failure. Writes to the write-ahead log wait for room; other files fail and Pebble tries again.
//     Meanwhile the store refuses new transactions with state.ErrFull. Only closing the store gives up the wait, and fences.
//   - What Pebble calls fatal fences.
type guard struct {
	pebblevfs.FS
	log     *slog.Logger
	dir     string
	minFree uint64

	fenceOnce sync.Once
	cause     atomic.Pointer[error] // why the store is fenced
	fenced    chan struct{}         // closed with it
	closing   chan struct{}         // closed by Store.Close

	mu      sync.Mutex // guards the three below; never held across I/O but the probe's
	full    chan struct{}
	isFull  atomic.Bool
	probed  time.Time
	failing atomic.Int64 // Unix ns of the last failed write of a file other than a write-ahead log
}

const (
	fullRetry  = 50 * time.Millisecond  // between attempts to write the write-ahead log of a full disk
	probeEvery = 250 * time.Millisecond // between looks at whether a full disk has room again
	probeBytes = 256 << 10
)

func newGuard(fs vfs.FS, dir string, minFree uint64, log *slog.Logger) *guard {
	return &guard{
		FS: fs, log: log, dir: dir, minFree: minFree,
		fenced: make(chan struct{}), closing: make(chan struct{}), full: make(chan struct{}),
	}
}

// fence stops all writing, for good.
func (g *guard) fence(err error) {
	g.fenceOnce.Do(func() {
		err = fmt.Errorf("%w (%w)", state.ErrFenced, err)
		g.cause.Store(&err)
		close(g.fenced)
		select {
		case <-g.closing: // a full disk at shutdown; Close reports it
		default:
			g.log.Error("state store is fenced", "dir", g.dir, "error", err)
		}
	})
}

// fenceError is nil, or why the store takes nothing more.
func (g *guard) fenceError() error {
	if p := g.cause.Load(); p != nil {
		return *p
	}
	return nil
}

// room returns nil if a transaction may begin.
func (g *guard) room() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if now.Sub(g.probed) < probeEvery {
		if g.isFull.Load() {
			return state.ErrFull
		}
		return nil
	}
	g.probed = now
	u, err := g.FS.GetDiskUsage(g.dir)
	low := err == nil && u.TotalBytes > 0 && u.AvailBytes < g.minFree
	switch {
	case low:
		g.setFullLocked()
	case g.isFull.Load() && g.probe() == nil:
		g.isFull.Store(false)
		g.full = make(chan struct{})
		g.log.Info("disk has room again", "dir", g.dir)
	}
	if g.isFull.Load() {
		return state.ErrFull
	}
	return nil
}

// probe tries to write as much as a full disk would refuse.
func (g *guard) probe() error {
	name := g.FS.PathJoin(g.dir, "probe.tmp")
	f, err := g.FS.Create(name, vfs.Category)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, probeBytes))
	if err == nil {
		err = f.Sync()
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err2 := g.FS.Remove(name); err == nil {
		err = err2
	}
	return err
}

func (g *guard) setFull() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.setFullLocked()
}

func (g *guard) setFullLocked() {
	if !g.isFull.Swap(true) {
		g.probed = time.Now()
		close(g.full)
		g.log.Warn("disk is full", "dir", g.dir)
	}
}

// whenFull returns a channel that is closed while the disk is full.
func (g *guard) whenFull() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.full
}

// insist does what must not fail for Pebble, waiting while the disk is full. It fences and returns false if it cannot be done.
func (g *guard) insist(what string, do func() error) bool {
	for {
		if g.fenceError() != nil {
			return false
		}
		err := do()
		if err == nil {
			return true
		}
		if !pebblevfs.IsNoSpaceError(err) {
			g.fence(fmt.Errorf("%s: %w", what, err))
			return false
		}
		g.setFull()
		select {
		case <-g.closing:
			g.fence(fmt.Errorf("%s: closed while the disk was full: %w", what, err))
			return false
		case <-time.After(fullRetry):
		}
	}
}

// note looks at the error of a write that may fail, and slows Pebble's immediate retries of flushes and compactions.
func (g *guard) note(err error) error {
	if err != nil {
		g.failing.Store(time.Now().UnixNano())
		if pebblevfs.IsNoSpaceError(err) {
			g.setFull()
		}
	}
	return err
}

func isWAL(name string) bool { return strings.HasSuffix(name, ".log") }

// Create implements vfs.FS.
func (g *guard) Create(name string, c pebblevfs.DiskWriteCategory) (pebblevfs.File, error) {
	if isWAL(name) {
		return g.createWAL(name, func() (pebblevfs.File, error) { return g.FS.Create(name, c) })
	}
	if time.Since(time.Unix(0, g.failing.Load())) < time.Second {
		select {
		case <-g.closing:
		case <-time.After(2 * fullRetry):
		}
	}
	if err := g.fenceError(); err != nil {
		return nil, g.note(err)
	}
	f, err := g.FS.Create(name, c)
	if err != nil {
		return nil, g.note(err)
	}
	return &file{File: f, g: g}, nil
}

// ReuseForWrite implements vfs.FS; Pebble recycles write-ahead logs with it.
func (g *guard) ReuseForWrite(from, to string, c pebblevfs.DiskWriteCategory) (pebblevfs.File, error) {
	if isWAL(to) {
		return g.createWAL(to, func() (pebblevfs.File, error) { return g.FS.ReuseForWrite(from, to, c) })
	}
	if err := g.fenceError(); err != nil {
		return nil, err
	}
	f, err := g.FS.ReuseForWrite(from, to, c)
	if err != nil {
		return nil, g.note(err)
	}
	return &file{File: f, g: g}, nil
}

func (g *guard) createWAL(name string, create func() (pebblevfs.File, error)) (pebblevfs.File, error) {
	var f pebblevfs.File
	ok := g.insist("create "+name, func() (err error) {
		f, err = create()
		return err
	})
	if !ok {
		return &walFile{File: pebblevfs.NewMemFile(nil), g: g}, nil
	}
	return &walFile{File: f, g: g}, nil
}

// OpenReadWrite implements vfs.FS.
func (g *guard) OpenReadWrite(name string, c pebblevfs.DiskWriteCategory, opts ...pebblevfs.OpenOption) (pebblevfs.File, error) {
	if err := g.fenceError(); err != nil {
		return nil, err
	}
	f, err := g.FS.OpenReadWrite(name, c, opts...)
	if err != nil {
		return nil, g.note(err)
	}
	return &file{File: f, g: g}, nil
}

// OpenDir implements vfs.FS. A directory is only ever synced, and Pebble panics if that fails for a write-ahead log.
func (g *guard) OpenDir(name string) (pebblevfs.File, error) {
	f, err := g.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &walFile{File: f, g: g}, nil
}

func (g *guard) change(do func() error) error {
	if err := g.fenceError(); err != nil {
		return err
	}
	return g.note(do())
}

// Link implements vfs.FS.
func (g *guard) Link(from, to string) error {
	return g.change(func() error { return g.FS.Link(from, to) })
}

// Remove implements vfs.FS.
func (g *guard) Remove(name string) error { return g.change(func() error { return g.FS.Remove(name) }) }

// RemoveAll implements vfs.FS.
func (g *guard) RemoveAll(name string) error {
	return g.change(func() error { return g.FS.RemoveAll(name) })
}

// Rename implements vfs.FS.
func (g *guard) Rename(from, to string) error {
	return g.change(func() error { return g.FS.Rename(from, to) })
}

// MkdirAll implements vfs.FS.
func (g *guard) MkdirAll(dir string, perm os.FileMode) error {
	return g.change(func() error { return g.FS.MkdirAll(dir, perm) })
}

// Lock implements vfs.FS. The store holds the real lock itself, so that it can let go of it even if Pebble is stuck.
func (g *guard) Lock(string) (io.Closer, error) { return io.NopCloser(nil), nil }

// Unwrap implements vfs.FS.
func (g *guard) Unwrap() pebblevfs.FS { return g.FS }

// A file is one whose failures Pebble copes with.
type file struct {
	pebblevfs.File
	g *guard
}

// Write fails once the store is fenced: nothing more reaches the disk.
func (f *file) Write(p []byte) (int, error) {
	if err := f.g.fenceError(); err != nil {
		return 0, err
	}
	n, err := f.File.Write(p)
	return n, f.g.note(err)
}

// WriteAt fails once the store is fenced, as Write does.
func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if err := f.g.fenceError(); err != nil {
		return 0, err
	}
	n, err := f.File.WriteAt(p, off)
	return n, f.g.note(err)
}

// Sync fails once the store is fenced, as Write does.
func (f *file) Sync() error { return f.g.change(f.File.Sync) }

// SyncData is like Sync.
func (f *file) SyncData() error { return f.g.change(f.File.SyncData) }

// SyncTo is like Sync.
func (f *file) SyncTo(n int64) (full bool, err error) {
	err = f.g.change(func() error {
		full, err = f.File.SyncTo(n)
		return err
	})
	return full, err
}

// A walFile is one that never fails for Pebble: a write-ahead log, or the directory's entry for it.
type walFile struct {
	pebblevfs.File
	g *guard
}

// Write waits for room on a full disk. When the store is fenced, its bytes go nowhere.
func (f *walFile) Write(p []byte) (int, error) {
	done := 0
	f.g.insist("write the write-ahead log", func() error {
		n, err := f.File.Write(p[done:])
		done += n
		return err
	})
	return len(p), nil
}

// A sync that failed is not tried again, not even on a full disk: the kernel may have dropped the pages.
func (f *walFile) sync(do func() error) {
	if f.g.fenceError() != nil {
		return
	}
	if err := do(); err != nil {
		f.g.fence(fmt.Errorf("sync the write-ahead log: %w", err))
	}
}

// Sync never fails for Pebble: the fence tells whether it did.
func (f *walFile) Sync() error {
	f.sync(f.File.Sync)
	return nil
}

// SyncData is like Sync.
func (f *walFile) SyncData() error {
	f.sync(f.File.SyncData)
	return nil
}

// SyncTo is like Sync.
func (f *walFile) SyncTo(n int64) (full bool, err error) {
	f.sync(func() error {
		full, err = f.File.SyncTo(n)
		return err
	})
	return full, nil
}

// Preallocate is a hint: a disk that is too full for it may still take the bytes.
func (f *walFile) Preallocate(offset, length int64) error {
	if f.g.fenceError() == nil {
		_ = f.File.Preallocate(offset, length)
	}
	return nil
}

// Close is like Sync: a write that the kernel put off may fail here first.
func (f *walFile) Close() error {
	if err := f.File.Close(); err != nil {
		f.g.fence(fmt.Errorf("close the write-ahead log: %w", err))
	}
	return nil
}

// A pebbleLog passes Pebble's messages on. What Pebble calls fatal returns here: the callers in its background work then
// return the error, and the guard lets nothing more reach the disk.
type pebbleLog struct{ g *guard }

// Infof drops what Pebble tells of its daily work.
func (pebbleLog) Infof(string, ...any) {}

// Errorf warns: what makes the store fail is told by the operation that fails.
func (l pebbleLog) Errorf(format string, args ...any) {
	l.g.log.Warn("pebble", "dir", l.g.dir, "error", fmt.Sprintf(format, args...))
}

// Fatalf fences instead of ending the program.
func (l pebbleLog) Fatalf(format string, args ...any) {
	l.g.fence(fmt.Errorf(format, args...)) // Pebble's own words
}

var _ pebble.Logger = pebbleLog{}
