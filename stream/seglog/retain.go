package seglog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/milepost/milepost/stream"
)

// retain applies retention again and again until the store closes.
func (s *Store) retain() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	tick := time.NewTicker(s.cfg.TrimEvery)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			if err := s.Trim(ctx, now); err != nil && !errors.Is(err, stream.ErrClosed) && !errors.Is(err, stream.ErrFenced) {
				s.cfg.Log.Error("retention could not be applied and is tried again", "error", err)
			}
		case <-s.stop:
			return
		}
	}
}

// Trim applies retention to every stream as of now.
func (s *Store) Trim(ctx context.Context, now time.Time) error {
	var errs []error
	for _, name := range s.Streams() {
		l, err := s.Stream(name)
		if err != nil {
			continue // deleted or closed meanwhile
		}
		if err := l.trim(ctx, now); err != nil {
			errs = append(errs, fmt.Errorf("trim stream %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// trim removes what retention has passed: whole sealed segments, oldest first. The active segment is sealed when it is old
// enough, however idle the stream, so that its records go in time too.
func (l *Log) trim(ctx context.Context, now time.Time) error {
	l.removeMu.Lock()
	defer l.removeMu.Unlock()
	gone, err := ask(ctx, l, func(c *committer) ([]*segment, error) {
		if err := l.fenced(); err != nil {
			return nil, err
		}
		var err error
		if c.first != 0 && now.UnixMilli()-c.first > l.sealAfter().Milliseconds() {
			err = c.roll()
		}
		gone, terr := c.passed(now)
		return gone, errors.Join(err, terr)
	})
	for _, seg := range gone {
		// Oldest first. A crash in between leaves files that the metadata already disowns: the next start removes them.
		err = errors.Join(err, removeFile(l.fs, seg.path), removeFile(l.fs, l.fs.PathJoin(l.dir, indexName(seg.id))))
		l.met.segments.Dec()
		l.met.stored.Sub(float64(seg.size))
	}
	if len(gone) > 0 {
		l.log.DebugContext(ctx, "retention removed segments", "stream", l.name, "count", len(gone), "first_left", gone[len(gone)-1].id+1)
		err = errors.Join(err, syncDir(l.fs, l.dir))
	}
	return err
}

// sealAfter is the age at which the active segment is sealed: records stay at most a 24th longer than retention says.
func (l *Log) sealAfter() time.Duration { return max(l.meta.retention()/24, 5*time.Minute) }

// passed takes the segments that retention has passed out of the log and returns them.
func (c *committer) passed(now time.Time) ([]*segment, error) {
	l := c.l
	total := c.off
	for _, s := range l.segments {
		total += s.size
	}
	n, before := 0, now.Add(-l.meta.retention()).UnixMilli()
	for ; n < len(l.segments); n++ {
		s := l.segments[n]
		if s.last >= before && (l.meta.RetentionBytes == 0 || total <= l.meta.RetentionBytes) {
			break
		}
		if held, err := c.needed(s); err != nil {
			return nil, err
		} else if held {
			break
		}
		total -= s.size
	}
	m := l.meta.clone()
	if n > 0 {
		m.First = l.segments[n-1].id + 1
	}
	drop, err := c.emptied(l.segments[n:], before)
	if err != nil {
		return nil, err
	}
	m.Shards = slices.DeleteFunc(m.Shards, func(s shardMeta) bool { return drop[s.Num] })
	if n == 0 && len(drop) == 0 {
		return nil, nil
	}
	if err := c.writeMeta(&m); errors.Is(err, syscall.ENOSPC) && n > 0 {
		// No room even for this small file. Removing the oldest segment makes some: a start accepts that the oldest are gone.
		n = 1
		m = l.meta.clone()
		drop = nil
		if err := removeFile(l.fs, l.segments[0].path); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	gone := l.segments[:n]
	l.mu.Lock()
	l.meta = m
	l.segments = slices.Clone(l.segments[n:])
	if len(drop) > 0 {
		l.shards = slices.DeleteFunc(slices.Clone(l.shards), func(s *shard) bool { return drop[s.num] })
	}
	l.mu.Unlock()
	return gone, nil
}

// Hold keeps retention from removing records that somebody must still read: those after the position that need returns for their
// shard. It is asked by the retention loop, before each segment goes, and must not call the log. The log may outgrow its
// retention meanwhile; the disk's reserve is what stops it then (stream.ErrFull), since a refusal is better than a loss (P7).
func (l *Log) Hold(need func(shard stream.ShardID) (stream.Position, error)) { l.need.Store(&need) }

// needed tells whether a segment has records that Hold asks for.
func (c *committer) needed(seg *segment) (bool, error) {
	need := c.l.need.Load()
	if need == nil {
		return false, nil
	}
	for i := range c.l.meta.Shards {
		m := &c.l.meta.Shards[i]
		e, ok, err := c.l.bounds(seg, m.Num)
		if err != nil {
			return false, err
		}
		if !ok || e.next == e.start {
			continue
		}
		pos, err := (*need)(shardID(m.Num))
		if err != nil {
			return false, err
		}
		seq := uint64(0)
		if pos != "" {
			if seq, err = parsePosition(pos); err != nil {
				return false, err
			}
		}
		if e.next-1 > seq {
			if !c.l.holding {
				c.l.log.Warn("retention waits for a consumer that is behind", "stream", c.l.name, "shard", string(shardID(m.Num)))
			}
			c.l.holding = true
			return true, nil
		}
	}
	c.l.holding = false
	return false, nil
}

// emptied returns the closed shards that hold nothing any more: they are no longer listed. One that never held a record stays
// until retention has passed its end, so that consumers see it.
func (c *committer) emptied(kept []*segment, before int64) (map[uint32]bool, error) {
	drop := map[uint32]bool{}
	for i := range c.l.meta.Shards {
		s := &c.l.meta.Shards[i]
		if s.ClosedMS == 0 {
			continue
		}
		if s.End == 0 {
			if s.ClosedMS < before {
				drop[s.Num] = true
			}
			continue
		}
		// Sequences before the oldest kept segment are gone.
		start := uint64(1)
		if len(kept) > 0 {
			e, ok, err := c.l.bounds(kept[0], s.Num)
			if err != nil {
				return nil, err
			}
			if ok {
				start = e.start
			}
		} else if j, ok := findShard(c.l.shards, s.Num); ok {
			start = c.l.shards[j].start
		}
		if start > s.End {
			drop[s.Num] = true
		}
	}
	return drop, nil
}
