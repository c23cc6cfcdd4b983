// Package local keeps state in a directory, with Pebble. One process at a time may open it.
//
// What it promises beyond the contract: steps of different lanes commit concurrently and share their syncs; a step that only
// writes is not indexed, so a write costs about a microsecond; nothing that goes wrong on the disk ends the process. A failed
// write or sync of the write-ahead log fences the store: every transaction from then on fails with state.ErrFenced, reads go
// on, and a new start recovers what was durable. What is not synced by its step is synced within a second. A full disk refuses transactions with state.ErrFull until there is room again.
//
// A commit that was under way when the disk filled up returns state.ErrFull too, and is carried out when there is room; until
// then Checkpoint of its lane returns the same error. So whoever gets an error from Advance asks Checkpoint what became of it.
//
// FORMAT.md has the bytes.
package local

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// Config says where and how. Only Dir is required.
type Config struct {
	Dir        string                // created if missing
	FS         vfs.FS                // default vfs.Disk
	Log        *slog.Logger          // default: discards
	Metrics    prometheus.Registerer // nil: no metrics
	CacheBytes int64                 // cache of blocks read from disk; default 64 MiB
	MemBytes   uint64                // writes kept in memory before they become a table, at most four times; default 32 MiB
	SyncEvery  time.Duration         // what was not synced is synced this often; default 1 s
	MinFree    uint64                // less free disk than this refuses transactions, so that the rest can finish; default 64 MiB
}

const (
	defaultCacheBytes = 64 << 20
	defaultMemBytes   = 32 << 20
	defaultMinFree    = 64 << 20
	defaultSyncEvery  = time.Second

	// pebbleFormat is Pebble's own format, which fixes how old a Milepost can still read the directory.
	pebbleFormat = pebble.FormatTableFormatV6
	// formatVersion is ours: what keys and values mean. FORMAT.md.
	formatVersion = 1

	// stuckWait is how long Close waits for work that a fence may have left stuck in Pebble.
	stuckWait = 2 * time.Second
)

// A Store implements state.Store.
type Store struct {
	db      *pebble.DB
	guard   *guard
	lock    io.Closer
	metrics *metrics
	outbox  outbox

	unsynced atomic.Bool   // something was committed since the last sync
	syncer   chan struct{} // closed when keepSynced has ended

	mu     sync.Mutex // guards the four below
	lanes  map[laneID]*lane
	ops    int // calls and commits under way
	closed bool
	idle   chan struct{} // made by Close; closed when ops reaches zero
}

// A lane is a checkpoint and the right to move it.
type lane struct {
	turn  chan struct{} // holds one token; whoever has it may read and write the fields below
	known bool
	pos   stream.Position
}

var _ state.Store = (*Store)(nil)

// Open opens the store in cfg.Dir, creating it if need be.
func Open(cfg Config) (_ *Store, err error) {
	if cfg.Dir == "" {
		return nil, errors.New("open state: no directory given")
	}
	if cfg.FS == nil {
		cfg.FS = vfs.Disk
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.CacheBytes == 0 {
		cfg.CacheBytes = defaultCacheBytes
	}
	if cfg.MemBytes == 0 {
		cfg.MemBytes = defaultMemBytes
	}
	if cfg.SyncEvery == 0 {
		cfg.SyncEvery = defaultSyncEvery
	}
	if cfg.MinFree == 0 {
		cfg.MinFree = defaultMinFree
	}
	if err := vfs.MakeDir(cfg.FS, cfg.Dir); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	lock, err := cfg.FS.Lock(cfg.FS.PathJoin(cfg.Dir, "LOCK"))
	if err != nil {
		return nil, fmt.Errorf("state directory %s is in use by another process, or cannot be locked: %w", cfg.Dir, err)
	}
	s := &Store{
		guard: newGuard(cfg.FS, cfg.Dir, cfg.MinFree, cfg.Log),
		lock:  lock,
		lanes: map[laneID]*lane{},
	}
	defer func() {
		if err != nil {
			_ = lock.Close() // the first error says more
		}
	}()
	if s.db, err = pebble.Open(cfg.Dir, s.options(cfg)); err == nil {
		err = s.guard.fenceError()
	}
	if err != nil {
		return nil, fmt.Errorf("open state in %s: %w", cfg.Dir, err)
	}
	if err := s.begin(); err != nil {
		_ = s.db.Close() // the first error says more
		return nil, fmt.Errorf("open state in %s: %w", cfg.Dir, err)
	}
	if s.metrics, err = newMetrics(s, cfg.Metrics); err != nil {
		_ = s.db.Close() // the first error says more
		return nil, err
	}
	s.syncer = make(chan struct{})
	go s.keepSynced(cfg.SyncEvery) // Close waits
	return s, nil
}

// keepSynced bounds how old a step can be that a crash takes back. Without it a quiet store might hold one in memory for longer
// than the log, which is to bring it back, keeps its records.
func (s *Store) keepSynced(every time.Duration) {
	defer close(s.syncer)
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-s.guard.closing:
			return
		case <-s.guard.fenced:
			return
		}
		if !s.unsynced.Swap(false) {
			continue
		}
		b := s.db.NewBatch()
		if err := b.LogData(nil, nil); err != nil {
			s.guard.fence(fmt.Errorf("sync: %w", err))
			return
		}
		_ = s.apply(&tx{s: s, b: b}, true) // fenced if it failed: everyone hears of it
	}
}

func (s *Store) options(cfg Config) *pebble.Options {
	o := &pebble.Options{
		FS:                          s.guard,
		Logger:                      pebbleLog{s.guard},
		CacheSize:                   cfg.CacheBytes,
		MemTableSize:                cfg.MemBytes,
		MemTableStopWritesThreshold: 4,
		FormatMajorVersion:          pebbleFormat,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       24,
		BytesPerSync:                1 << 20,
		WALBytesPerSync:             1 << 20,
		EventListener: &pebble.EventListener{
			// Neither is fatal: flushes and compactions are tried again, and whoever reads damaged bytes gets the error.
			BackgroundError: func(err error) {
				if s.guard.isFull.Load() && errors.Is(err, syscall.ENOSPC) {
					return // said once, when the disk became full; Pebble tries nine times a second
				}
				s.guard.log.Warn("state background work failed", "dir", cfg.Dir, "error", err.Error()) // %+v is pages of stack
			},
			DataCorruption: func(i pebble.DataCorruptionInfo) {
				s.guard.log.Error("state file is damaged", "dir", cfg.Dir, "path", i.Path, "error", i.Details)
			},
		},
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10) // most first looks at a key find nothing
	}
	return o
}

// begin checks or writes the format, and finds where the outbox goes on.
func (s *Store) begin() error {
	v, err := s.get(s.db, []byte(metaFormat))
	switch {
	case err != nil:
		return err
	case v == nil:
		if err := s.mustBeEmpty(); err != nil {
			return err
		}
		if err := s.db.Set([]byte(metaFormat), []byte{formatVersion}, pebble.Sync); err != nil {
			return err
		}
		if err := s.guard.fenceError(); err != nil {
			return err
		}
	case len(v) != 1 || v[0] > formatVersion:
		return fmt.Errorf("format %v is newer than this program's (%d): use the Milepost that wrote it, or a later one", v, formatVersion)
	}
	return s.outbox.begin(s)
}

func (s *Store) mustBeEmpty() error {
	it, err := s.db.NewIter(nil)
	if err != nil {
		return err
	}
	found := it.First()
	var key string
	if found {
		key = fmt.Sprintf("%q", it.Key())
	}
	if err := it.Close(); err != nil {
		return err
	}
	if found {
		return fmt.Errorf("it holds keys (%s) but no format version: not a state directory of Milepost", key)
	}
	return nil
}

// enter counts a call in, so that Close waits for it.
func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return state.ErrClosed
	}
	s.ops++
	return nil
}

func (s *Store) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ops--
	if s.ops == 0 && s.closed {
		close(s.idle)
	}
}

// Close waits for what is under way and closes the store.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed, s.idle = true, make(chan struct{})
	if s.ops == 0 {
		close(s.idle)
	}
	s.mu.Unlock()
	close(s.guard.closing)
	s.metrics.unregister()

	if !s.await(s.idle) || !s.await(s.syncer) {
		return errors.Join(s.guard.fenceError(), s.lock.Close())
	}
	done := make(chan error, 1)
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("close pebble: %v", p)
			}
		}()
		done <- s.db.Close()
	}()
	var err error
	if s.await(settled) {
		err = <-done
	}
	return errors.Join(s.guard.fenceError(), err, s.lock.Close())
}

// await waits for ch. Only a fence, after which nothing can reach the disk any more, may leave something stuck in Pebble: then
// it gives up and returns false.
func (s *Store) await(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	case <-s.guard.fenced:
	}
	select {
	case <-ch:
		return true
	case <-time.After(stuckWait):
		return false
	}
}

// take gets the right to move a lane. Whoever took it gives it back by lane.give.
func (s *Store) take(ctx context.Context, id laneID) (*lane, error) {
	if err := id.check(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	l := s.lanes[id]
	if l == nil {
		l = &lane{turn: make(chan struct{}, 1)}
		l.turn <- struct{}{}
		s.lanes[id] = l
	}
	s.mu.Unlock()
	select {
	case <-l.turn:
	default:
		select {
		case <-l.turn:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.guard.fenced:
			return nil, s.guard.fenceError()
		case <-s.guard.whenFull():
			return nil, state.ErrFull
		}
	}
	if !l.known {
		v, err := s.get(s.db, checkpointKey(id))
		if err != nil {
			l.give()
			return nil, fmt.Errorf("read checkpoint: %w", err)
		}
		l.pos, l.known = stream.Position(v), true
	}
	return l, nil
}

func (l *lane) give() { l.turn <- struct{}{} }

// Checkpoint implements state.Store. It waits for a step of the lane that is under way.
func (s *Store) Checkpoint(ctx context.Context, fn string, shard stream.ShardID, n int) (stream.Position, error) {
	if err := s.enter(); err != nil {
		return "", err
	}
	defer s.leave()
	l, err := s.take(ctx, laneID{fn, shard, n})
	if err != nil {
		return "", err
	}
	defer l.give()
	return l.pos, nil
}

// Advance implements state.Store.
func (s *Store) Advance(ctx context.Context, st state.Step, f func(state.Tx) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	id := laneID{st.Func, st.Shard, st.Lane}
	l, err := s.take(ctx, id)
	if err != nil {
		return err
	}
	if l.pos != st.From {
		l.give()
		return state.ErrMoved
	}
	t := newTx(s)
	if err := s.collect(t, f, l.give); err != nil {
		return err
	}
	if st.To != st.From {
		if err := t.b.Set(checkpointKey(id), []byte(st.To), nil); err != nil {
			t.discard()
			l.give()
			return err
		}
	}
	return s.commit(t, t.sync || len(t.effects) > 0, func(err error) {
		if err == nil {
			l.pos = st.To
		} else {
			l.known = false // fenced: nothing will be committed any more
		}
		l.give()
	})
}

// Update implements state.Store.
func (s *Store) Update(_ context.Context, f func(state.Tx) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	t := newTx(s)
	if err := s.collect(t, f, func() {}); err != nil {
		return err
	}
	return s.commit(t, true, func(error) {})
}

// collect runs f. If it fails or panics, nothing is left of t, and undo is called.
func (s *Store) collect(t *tx, f func(state.Tx) error, undo func()) error {
	ok := false
	defer func() {
		t.ended = true
		if !ok {
			t.discard()
			undo()
		}
	}()
	if err := s.guard.fenceError(); err != nil {
		return err
	}
	if err := s.guard.room(); err != nil {
		return err
	}
	if err := f(t); err != nil {
		return err
	}
	ok = true
	return nil
}

// commit makes t durable or, without sync, visible; then it calls settle, which may be after commit has returned: a full disk
// holds Pebble up, and nobody should have to wait for it. It owns t.
func (s *Store) commit(t *tx, sync bool, settle func(error)) error {
	sent, err := s.outbox.place(s, t)
	if err != nil {
		t.discard()
		settle(err)
		return err
	}
	if t.b.Empty() {
		t.discard()
		settle(nil)
		return nil
	}
	full := s.guard.whenFull()
	done := make(chan error, 1)
	s.mu.Lock()
	s.ops++ // the goroutine's own, for it may outlive the call
	s.mu.Unlock()
	go func() {
		defer s.leave()
		begin := time.Now()
		err := s.apply(t, sync)
		s.metrics.committed(time.Since(begin), sync, err)
		s.outbox.settle(sent, err)
		settle(err)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-full:
	case <-s.guard.fenced:
	}
	select {
	case err := <-done:
		return err
	default:
	}
	if err := s.guard.fenceError(); err != nil {
		return err
	}
	return state.ErrFull
}

// apply is the only way to Pebble's commit.
func (s *Store) apply(t *tx, sync bool) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.guard.fence(fmt.Errorf("commit: %v", p))
			err = s.guard.fenceError()
		}
	}()
	o := pebble.NoSync
	if sync {
		o = pebble.Sync
	}
	if err := t.b.Commit(o); err != nil {
		// Pebble cannot say how much of it happened.
		s.guard.fence(fmt.Errorf("commit: %w", err))
	}
	// A sync that the guard swallowed looks like success.
	if err := s.guard.fenceError(); err != nil {
		return err
	}
	t.discard()
	if !sync {
		s.unsynced.Store(true)
	}
	return nil
}

// View implements state.Store.
func (s *Store) View(_ context.Context, f func(state.Reader) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	v := &view{s: s}
	defer v.close()
	return f(v)
}

// get returns a copy of a value, or nil.
func (s *Store) get(r pebble.Reader, key []byte) ([]byte, error) {
	v, c, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := append(make([]byte, 0, len(v)), v...)
	return out, c.Close()
}

// getSequence returns a stored sequence number; ok tells whether there is one.
func (s *Store) getSequence(key []byte) (seq uint64, ok bool, err error) {
	v, c, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	seq, err = parseSequence(v)
	return seq, err == nil, errors.Join(err, c.Close())
}

func sequenceValue(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }
