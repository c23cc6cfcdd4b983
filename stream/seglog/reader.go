package seglog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sort"
	"time"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
)

const (
	readWindow = 256 << 10 // neighbouring blocks are read together up to this size
	readGap    = 4 << 10   // over foreign bytes up to this many: copying them costs less than another system call
	readKeep   = 1 << 20   // a larger buffer, which one large block needed, is given up afterwards
)

// A reader follows one shard. It has its own file handle and buffer, so readers do not disturb each other or the committer.
type reader struct {
	l    *Log
	s    *shard
	next uint64 // sequence that comes next

	seg    *segment // which file and blocks are of; nil: find it
	file   vfs.File
	seed   seed
	blocks []block // of seg, as many as were known when we looked
	at     int     // the next of blocks to be read

	buf    []byte // the window
	runs   []run  // what it was read as
	window []placed
	loaded []placed // the part of window that is not in hand yet
	rest   []byte   // of the block in hand
	left   uint32   // records in rest
	begin  int64    // of the block in hand in the segment
	time   time.Time

	recs   []stream.Record
	pos    positions
	wakeup chan struct{}
	closed bool
}

// A run is neighbouring blocks that are read with one system call.
type run struct {
	off  int64
	size int
}

// placed is a block and where in the window it is.
type placed struct {
	block
	at int
}

// Read implements stream.Log. A position beyond the shard's end is an error: the log has lost what was read before, or it is
// another log.
func (l *Log) Read(ctx context.Context, shard stream.ShardID, after stream.Position) (stream.Reader, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s, err := l.shard(shard)
	if err != nil {
		return nil, err
	}
	seq, err := parsePosition(after)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	end := s.next - 1
	s.mu.Unlock()
	if seq > end {
		return nil, fmt.Errorf("position %s is beyond the end of %s %s, which is %q: the log was restored from an older copy or replaced; "+
			"reset the consumer's checkpoint", after, l.name, shard, formatPosition(end))
	}
	return &reader{l: l, s: s, next: seq + 1, wakeup: make(chan struct{}, 1)}, nil
}

// Next implements stream.Reader.
func (r *reader) Next(ctx context.Context, max int) ([]stream.Record, error) {
	if r.closed {
		return nil, stream.ErrClosed
	}
	if max < 1 {
		return nil, fmt.Errorf("read of at most %d records: ask for one or more", max)
	}
	r.scribble()
	for {
		if r.left > 0 || len(r.loaded) > 0 {
			if recs, err := r.cut(max); err != nil || len(recs) > 0 {
				return recs, err
			}
		}
		select {
		case <-r.l.stop:
			return nil, stream.ErrClosed
		default:
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if r.at < len(r.blocks) {
			if err := r.load(max); err != nil {
				return nil, err
			}
			continue
		}
		wait, err := r.more()
		if err != nil {
			return nil, err
		}
		if wait {
			if err := r.wait(ctx); err != nil {
				return nil, err
			}
		}
	}
}

// wait sleeps until the shard has grown or closed. more has put us among the waiters.
func (r *reader) wait(ctx context.Context) error {
	select {
	case <-r.wakeup:
		return nil
	case <-ctx.Done():
		r.s.forget(r.wakeup)
		return ctx.Err()
	case <-r.l.stop:
		r.s.forget(r.wakeup)
		return stream.ErrClosed
	}
}

// more looks for blocks with records from r.next on. wait: there are none yet, and we are among the waiters.
func (r *reader) more() (wait bool, err error) {
	s := r.s
	s.mu.Lock()
	switch {
	case s.seg == r.seg && len(s.blocks) > len(r.blocks):
		r.blocks = s.blocks // the active segment has grown
		s.mu.Unlock()
		return false, nil
	case r.next >= s.next && s.closed:
		s.mu.Unlock()
		return false, io.EOF
	case r.next >= s.next:
		select {
		case <-r.wakeup: // of an earlier wait that ended otherwise; we are not among the waiters, so no other can come
		default:
		}
		s.waiters = append(s.waiters, r.wakeup)
		s.mu.Unlock()
		return true, nil
	case r.next >= s.start:
		seg, blocks := s.seg, s.blocks
		s.mu.Unlock()
		err := r.turn(seg, blocks)
		if errors.Is(err, fs.ErrNotExist) && r.l.trimmed([]*segment{seg}) {
			err = nil // sealed and removed meanwhile: look again
		}
		return false, err
	}
	start := s.start
	s.mu.Unlock()
	return false, r.seek(start)
}

// seek finds the sealed segment with the first record at or after r.next, which lies before start.
func (r *reader) seek(start uint64) error {
	r.l.mu.RLock()
	segs := r.l.segments
	r.l.mu.RUnlock()
	for {
		var failed error
		i := sort.Search(len(segs), func(i int) bool {
			e, _, err := r.l.bounds(segs[i], r.s.num)
			if err != nil && failed == nil {
				failed = err
			}
			return e.next > r.next
		})
		if failed == nil && i == len(segs) {
			// Retention has passed it, or Salvage has: the next record is in the active segment. A segment that was sealed
			// since start was read is in segs, because the committer holds l.mu while it seals.
			r.next = max(r.next, start)
			return nil
		}
		var blocks []block
		if failed == nil {
			blocks, failed = r.l.blocksOf(segs[i], r.s.num)
		}
		if failed == nil && len(blocks) == 0 {
			// The records up to here were in segments that are gone.
			e, _, err := r.l.bounds(segs[i], r.s.num)
			if failed = err; failed == nil {
				r.next, segs = e.next, segs[i+1:]
				continue
			}
		}
		if failed == nil {
			failed = r.turn(segs[i], blocks)
		}
		if errors.Is(failed, fs.ErrNotExist) && r.l.trimmed(segs) {
			return nil // retention removed the segment under our hands: look again
		}
		return failed
	}
}

// trimmed tells whether retention has removed any of these segments.
func (l *Log) trimmed(segs []*segment) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return len(segs) > 0 && (len(l.segments) == 0 || l.segments[0].id > segs[0].id)
}

// turn makes seg the segment that is read.
func (r *reader) turn(seg *segment, blocks []block) error {
	if seg != r.seg {
		if err := r.release(); err != nil {
			return err
		}
		f, err := r.l.fs.Open(seg.path, vfs.SequentialReads)
		if err != nil {
			return fmt.Errorf("open %s: %w", seg.path, err)
		}
		r.seg, r.file, r.seed = seg, f, newSeed(r.l.salt, seg.id)
	}
	r.blocks = blocks
	r.at = sort.Search(len(blocks), func(i int) bool { return blocks[i].end() > r.next })
	return nil
}

// load reads a window of blocks from r.at on and checks them: neighbours with one system call, and further ones until there are
// enough records for the caller.
func (r *reader) load(most int) error {
	size := r.plan(most)
	if cap(r.buf) < size || (cap(r.buf) > readKeep && size <= readWindow) {
		r.buf = make([]byte, max(size, min(readWindow, 2*cap(r.buf)), 4<<10))
	}
	r.buf = r.buf[:size]
	at := 0
	for _, run := range r.runs {
		if got, err := r.file.ReadAt(r.buf[at:at+run.size], run.off); got < run.size {
			if err == nil || errors.Is(err, io.EOF) {
				return r.damage(run.off+int64(got), "the file ends before the block does")
			}
			return fmt.Errorf("read %s at %d: %w", r.seg.path, run.off, err)
		}
		at += run.size
	}
	for i := range r.loaded {
		b := &r.loaded[i]
		if r.seed.sum(int64(b.off), r.buf[b.at:][:b.size]) == b.crc {
			continue
		}
		if i > 0 {
			r.loaded = r.loaded[:i] // the next load begins with the bad one
			break
		}
		r.loaded = r.loaded[:0]
		return r.damage(int64(b.off), "the checksum of records %s to %s of %s does not match", formatPosition(b.seq),
			formatPosition(b.end()-1), r.s.id)
	}
	r.at += len(r.loaded)
	r.l.met.readBytes.Add(float64(size))
	return nil
}

// plan chooses what the window will hold: r.loaded the blocks, r.runs what to read for them. It returns the window's size.
func (r *reader) plan(most int) (size int) {
	r.window, r.runs = r.window[:0], r.runs[:0]
	records := 0
	for _, b := range r.blocks[r.at:] {
		off, n := int64(b.off), int(b.size)
		gap := int64(-1) // to the run before
		if len(r.runs) > 0 {
			last := &r.runs[len(r.runs)-1]
			gap = off - last.off - int64(last.size)
		}
		switch {
		case gap >= 0 && gap <= readGap && size+int(gap)+n <= readWindow:
			r.runs[len(r.runs)-1].size += int(gap) + n
			size += int(gap)
		case gap < 0, records < most && size+n <= readWindow:
			r.runs = append(r.runs, run{off, n})
		default:
			r.loaded = r.window
			return size
		}
		r.window = append(r.window, placed{b, size})
		size += n
		records += int(b.count)
	}
	r.loaded = r.window
	return size
}

func (r *reader) damage(off int64, format string, args ...any) error {
	r.l.met.damage.Inc()
	return damaged(r.seg.path, off, format, args...)
}

// cut returns the next records of the window.
func (r *reader) cut(most int) ([]stream.Record, error) {
	if cap(r.recs) < most {
		r.recs = make([]stream.Record, min(most, max(2*cap(r.recs), 512)))
	}
	out := r.recs[:min(most, cap(r.recs))]
	n := 0
	for n < len(out) {
		if r.left == 0 {
			if len(r.loaded) == 0 {
				break
			}
			if err := r.open(); err != nil {
				return nil, err
			}
			continue
		}
		key, data, size := cutRecord(r.rest)
		if size == 0 {
			return nil, r.damage(r.begin, "a block with a matching checksum holds no record where one should be")
		}
		rec := &out[n]
		rec.Key, rec.Data, rec.Hash = key, data, nil
		rec.Shard, rec.Pos, rec.Time = r.s.id, r.pos.next(r.next), r.time
		r.rest = r.rest[size:]
		r.left--
		r.next++
		n++
	}
	return out[:n], nil
}

// open takes the next block of the window in hand and skips what precedes r.next.
func (r *reader) open() error {
	b := &r.loaded[0]
	r.loaded = r.loaded[1:]
	r.rest, r.left, r.begin = r.buf[b.at:][:b.size], b.count, int64(b.off)
	r.time = time.UnixMilli(b.time)
	for seq := b.seq; seq < r.next && r.left > 0; seq++ {
		_, _, size := cutRecord(r.rest)
		if size == 0 {
			return r.damage(int64(b.off), "a block with a matching checksum holds no record where one should be")
		}
		r.rest = r.rest[size:]
		r.left--
	}
	r.next = max(r.next, b.seq)
	return nil
}

// scribble runs under the race detector only: it destroys what the last call returned, so that a caller who kept it notices.
func (r *reader) scribble() {
	if !raceEnabled || r.buf == nil {
		return
	}
	served := r.buf[:min(len(r.buf), cap(r.buf)-cap(r.rest))]
	for i := range served {
		served[i] = 0xdb
	}
	clear(r.recs)
}

func (r *reader) release() error {
	f := r.file
	r.seg, r.file, r.blocks, r.at = nil, nil, nil, 0
	if f == nil {
		return nil
	}
	return f.Close()
}

// Close implements stream.Reader.
func (r *reader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	return r.release()
}
