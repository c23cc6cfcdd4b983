package seglog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
)

// A Log is one stream of a Store. It is shared by all who use the stream; see Close.
type Log struct {
	store *Store
	name  string
	dir   string
	salt  uint64
	fs    vfs.FS
	log   *slog.Logger
	met   *logMetrics

	routes    atomic.Pointer[routes]
	maxRecord atomic.Int64
	room      *semaphore.Weighted // bytes that may wait in queue
	queue     queue
	ops       chan *op
	stop      chan struct{} // closed by Close
	sealed    chan struct{} // capacity 1: a segment waits for its index file
	fence     atomic.Pointer[error]
	full      atomic.Bool
	short     atomic.Bool // the last look before writing found less free than is to be kept

	// What the committer last published about the active segment, and the time of the newest record, in ms.
	activeSize, activeFirst, newest atomic.Int64

	mu       sync.RWMutex // guards the following, which the committer replaces; nothing blocks under it. Before shard.mu.
	meta     metadata
	shards   []*shard   // by number; a new slice at every change
	segments []*segment // sealed, oldest first; a new slice when the front goes
	active   *segment

	rebuildMu sync.Mutex // one index is rebuilt at a time
	removeMu  sync.Mutex // one retention removes files at a time
	running   sync.WaitGroup
	closeOnce sync.Once
	closeErr  error
	committer *committer

	need    atomic.Pointer[func(stream.ShardID) (stream.Position, error)] // set by Hold
	holding bool                                                          // the retention loop's: a segment is held
}

var (
	_ stream.Log    = (*Log)(nil)
	_ stream.Tipper = (*Log)(nil)
)

// Stats tells what a stream holds.
type Stats struct {
	Bytes    int64     // in segments, the active one included
	Segments int       // the active one included
	Records  uint64    // ever stored in the shards that are still listed
	Oldest   time.Time // arrival of the oldest record kept; zero if none
	Newest   time.Time // arrival of the newest record; zero if none
	Shards   int       // open ones
	Full     bool      // the last append was refused with stream.ErrFull, and the disk still has no room
	Fenced   error     // why appends are refused until the store is reopened; nil if they are not
}

// Name returns the stream's name.
func (l *Log) Name() string { return l.name }

// Created returns when the stream was created.
func (l *Log) Created() time.Time {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return time.UnixMilli(l.meta.Created)
}

// Config returns the stream's settings; Shards counts the open ones.
func (l *Log) Config() StreamConfig {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.config()
}

func (l *Log) config() StreamConfig {
	return StreamConfig{
		Shards: len(l.routes.Load().shards), Retention: l.meta.retention(), RetentionBytes: l.meta.RetentionBytes,
		MaxRecordBytes: l.meta.MaxRecordBytes,
	}
}

// Stats tells what the stream holds now.
func (l *Log) Stats() Stats {
	l.mu.RLock()
	segs, shards, open := l.segments, l.shards, len(l.routes.Load().shards)
	l.mu.RUnlock()
	st := Stats{Bytes: l.activeSize.Load(), Segments: len(segs) + 1, Shards: open, Full: l.isFull(), Fenced: l.fenced()}
	oldest := l.activeFirst.Load()
	for i := len(segs) - 1; i >= 0; i-- {
		st.Bytes += segs[i].size
		if segs[i].first != 0 {
			oldest = segs[i].first
		}
	}
	for _, s := range shards {
		st.Records += s.tip().Seq
	}
	if oldest != 0 {
		st.Oldest = time.UnixMilli(oldest)
	}
	if n := l.newest.Load(); n != 0 && st.Records > 0 {
		st.Newest = time.UnixMilli(n)
	}
	return st
}

// fenced returns why the log takes no more writes, or nil.
func (l *Log) fenced() error {
	if err := l.fence.Load(); err != nil {
		return *err
	}
	return nil
}

// shard finds a shard by its name.
func (l *Log) shard(id stream.ShardID) (*shard, error) {
	l.mu.RLock()
	shards := l.shards
	l.mu.RUnlock()
	if num, ok := parseShardID(id); ok {
		if i, ok := findShard(shards, num); ok {
			return shards[i], nil
		}
	}
	return nil, fmt.Errorf("%w: %s of stream %s", stream.ErrNoShard, id, l.name)
}

func findShard(shards []*shard, num uint32) (int, bool) {
	i := sort.Search(len(shards), func(i int) bool { return shards[i].num >= num })
	return i, i < len(shards) && shards[i].num == num
}

// Shards implements stream.Log. A closed shard stays listed until retention has passed its last record.
func (l *Log) Shards(ctx context.Context) ([]stream.Shard, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l.mu.RLock()
	metas := l.meta.Shards // replaced, never written to
	l.mu.RUnlock()
	shards := make([]stream.Shard, len(metas))
	for i := range metas {
		var err error
		if shards[i], err = metas[i].public(); err != nil {
			return nil, err
		}
	}
	return shards, nil
}

// Seek implements stream.Log.
func (l *Log) Seek(ctx context.Context, id stream.ShardID, t time.Time) (stream.Position, error) {
	s, err := l.shard(id)
	if err != nil {
		return "", err
	}
	// Times are whole milliseconds: a record of the millisecond that t lies within is before t unless t is its beginning.
	ms := t.UnixMilli()
	if t.After(time.UnixMilli(ms)) {
		ms++
	}
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		l.mu.RLock()
		segs, active := l.segments, l.active
		l.mu.RUnlock()
		i := sort.Search(len(segs), func(i int) bool { return segs[i].last >= ms })
		if i < len(segs) {
			return l.seekSealed(segs[i], s.num, ms)
		}
		s.mu.Lock()
		blocks, next, seg := s.blocks, s.next, s.seg
		s.mu.Unlock()
		if seg != active {
			continue // it was sealed meanwhile
		}
		if i := sort.Search(len(blocks), func(i int) bool { return blocks[i].time >= ms }); i < len(blocks) {
			return formatPosition(blocks[i].seq - 1), nil
		}
		return formatPosition(next - 1), nil
	}
}

func (l *Log) seekSealed(seg *segment, num uint32, ms int64) (stream.Position, error) {
	e, ok, err := l.bounds(seg, num)
	if err != nil || !ok {
		return "", err // a younger shard begins later
	}
	blocks, err := l.blocksOf(seg, num)
	if err != nil {
		return "", err
	}
	if i := sort.Search(len(blocks), func(i int) bool { return blocks[i].time >= ms }); i < len(blocks) {
		return formatPosition(blocks[i].seq - 1), nil
	}
	return formatPosition(e.next - 1), nil
}

// Tip implements stream.Tipper.
func (l *Log) Tip(_ context.Context, id stream.ShardID) (stream.Tip, error) {
	s, err := l.shard(id)
	if err != nil {
		return stream.Tip{}, err
	}
	return s.tip(), nil
}

// Oldest returns the position after which the oldest record that retention has left comes: where a read from "" begins. It equals
// the tip's if nothing is left. The lag of a consumer counts from here if its own position is older.
func (l *Log) Oldest(_ context.Context, id stream.ShardID) (stream.Position, error) {
	s, err := l.shard(id)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	start, newest := s.start, s.newest
	s.mu.Unlock()
	l.mu.RLock()
	segs := l.segments
	l.mu.RUnlock()
	if len(segs) > 0 { // a segment that was sealed since start was read is among them
		e, ok, err := l.bounds(segs[0], s.num)
		if err != nil {
			return "", err
		}
		if start = 1; ok {
			start = e.start
		}
	}
	return formatPosition(min(start-1, newest)), nil
}

// Count implements stream.Tipper. It is 0 for a position that is none.
func (l *Log) Count(_ stream.ShardID, pos stream.Position) uint64 {
	seq, err := parsePosition(pos)
	if err != nil {
		return 0
	}
	return seq
}

// start begins the work of an opened log.
func (l *Log) start(c *committer) {
	l.committer = c
	l.running.Go(c.run) // waited for by Close
	l.running.Go(l.keep)
}

// keep writes the index files of sealed segments, away from the committer's path.
func (l *Log) keep() {
	for {
		l.writeIndexes()
		select {
		case <-l.sealed:
		case <-l.stop:
			return
		}
	}
}

// writeIndexes writes the index files that are missing. What fails stays in memory and is tried again after the next seal.
func (l *Log) writeIndexes() {
	l.mu.RLock()
	segs := l.segments
	l.mu.RUnlock()
	for _, seg := range segs {
		mem := seg.mem.Load()
		if mem == nil {
			continue
		}
		if err := writeIndex(l.fs, l.dir, seg, l.salt, *mem); err != nil {
			l.log.Warn("index cannot be written and is kept in memory", "stream", l.name, "error", err)
			return
		}
		seg.mem.Store(nil)
	}
}

// Close stores what waits, ends the stream's goroutines and closes it for all who share it; other streams of the store go on.
// Its readers and later appends get stream.ErrClosed.
func (l *Log) Close() error {
	l.closeOnce.Do(func() {
		l.queue.close(stream.ErrClosed)
		close(l.stop)
		l.running.Wait()
		l.closeErr = l.finish()
	})
	return l.closeErr
}

// finish writes down where the log ends: at the next start a group that is missing before there is damage, not a torn tail.
func (l *Log) finish() error {
	l.writeIndexes()
	c := l.committer
	err := c.file.Close()
	if l.fenced() == nil {
		seg := &segment{id: c.seg.id, path: c.seg.path, size: c.off, first: c.first, last: c.last}
		mem := make(memIndex, len(l.shards))
		for _, s := range l.shards {
			mem[s.num] = shardIndex{start: s.start, next: s.next, last: s.last, blocks: s.blocks}
		}
		if ierr := writeIndex(l.fs, l.dir, seg, l.salt, mem); ierr != nil {
			l.log.Warn("the end of the log is not written down; the next start reads the last segment instead", "stream", l.name, "error", ierr)
		} else {
			err = errors.Join(err, syncDir(l.fs, l.dir))
		}
	}
	return err
}
