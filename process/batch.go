package process

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// A segment is a batch, or what is left of one: its records, and the position that it ends at, which is that of its last record
// or of one behind it that belongs to another lane.
type segment struct {
	recs []stream.Record
	to   stream.Position
}

// A batcher cuts a lane's records into batches.
type batcher struct {
	l        *lane
	rest     []stream.Record // of the last read, valid until the next
	restTo   stream.Position
	skipping time.Time // since when only others' records have been read; zero: not at all
	err      error     // that ended a batch early
	kept     []stream.Record
	buf      []byte

	wake  func() time.Time          // if set, when to stop waiting for the first record; zero: not at all
	until func(time.Time) time.Time // if set, when a batch that begins with a record of this arrival must end; zero: no matter
	exact stream.Position           // if set, the next batch ends with this record and nothing else cuts it
}

// runFunction runs a Function until it reaches the lane's end, which is io.EOF.
func (l *lane) runFunction() error {
	b := batcher{l: l}
	for {
		seg, err := b.next()
		if err == nil || errors.Is(err, io.EOF) {
			if len(seg.recs) > 0 {
				if err := l.process(seg); err != nil {
					return err
				}
			} else if seg.to != l.checkpoint {
				if err := l.pass(seg.to, nil); err != nil {
					return err
				}
			}
		}
		if err != nil {
			return err
		}
	}
}

// next returns the next batch. One without records is to be committed too, for the others' records that it skipped.
func (b *batcher) next() (segment, error) {
	l, o := b.l, &b.l.f.opts
	if len(b.rest) == 0 && b.err == nil {
		var wake time.Time
		if b.wake != nil {
			wake = b.wake()
		}
		b.err = b.fill(wake)
	}
	if len(b.rest) == 0 {
		err := b.err
		b.err = nil
		return segment{to: l.at}, err
	}
	if b.exact != "" {
		return b.again()
	}
	n, size := fits(b.rest, o, o.BatchSize, o.BatchBytes)
	if o.BatchWindow == 0 || n < len(b.rest) || n == o.BatchSize {
		return b.cut(n), nil
	}
	// Wait for more. The next read will take its memory back, so what there is must be copied.
	b.kept, b.buf = b.kept[:0], b.buf[:0]
	var seg segment
	end := time.Now().Add(o.BatchWindow)
	if b.until != nil {
		if at := b.until(b.rest[0].Time); !at.IsZero() && at.Before(end) {
			end = at
		}
	}
	for {
		b.keep(b.rest[:n])
		seg.to = b.cut(n).to
		if len(b.rest) > 0 || len(b.kept) >= o.BatchSize || size >= o.BatchBytes || !time.Now().Before(end) {
			break
		}
		if b.err = b.fill(end); b.err != nil {
			break
		}
		if len(b.rest) == 0 {
			seg.to = l.at // the window has ended, or others' records were skipped
			if !time.Now().Before(end) {
				break
			}
		}
		var more int
		if n, more = fits(b.rest, o, o.BatchSize-len(b.kept), o.BatchBytes-size); more > o.BatchBytes-size {
			break // a single large record: it gets a batch of its own
		}
		size += more
	}
	seg.recs = b.kept
	return seg, nil //nolint:nilerr // what was read comes first; b.err is for the next call
}

// again returns the batch that ends with the record exact: what an earlier run began with, and nothing that has come since.
func (b *batcher) again() (segment, error) {
	end := b.exact
	b.exact = ""
	b.kept, b.buf = b.kept[:0], b.buf[:0]
	var seg segment
	for {
		n := 0
		for n < len(b.rest) && b.rest[n].Pos <= end {
			n++
		}
		b.keep(b.rest[:n])
		if n > 0 {
			seg.to = b.cut(n).to
		}
		if len(b.rest) > 0 || b.l.at >= end {
			break
		}
		if b.err = b.fill(time.Time{}); b.err != nil {
			break
		}
	}
	seg.recs = b.kept
	if len(seg.recs) == 0 {
		seg.to = b.l.checkpoint // retention, or a new filter, has left nothing of it
	}
	return seg, nil
}

// fill reads until it has records of the lane's own, others' have been skipped for long enough, or the deadline has passed.
func (b *batcher) fill(deadline time.Time) error {
	l := b.l
	for {
		by := deadline
		if !b.skipping.IsZero() {
			if d := b.skipping.Add(idleCommit); by.IsZero() || d.Before(by) {
				by = d
			}
		}
		recs, skipped, err := l.fetch(max(readMost, l.f.opts.BatchSize), by)
		if err != nil {
			return err
		}
		if len(recs) > 0 {
			b.rest, b.restTo, b.skipping = recs, l.at, time.Time{}
			return nil
		}
		b.restTo = l.at
		now := time.Now()
		if skipped > 0 && b.skipping.IsZero() {
			b.skipping = now
		}
		if !b.skipping.IsZero() && now.Sub(b.skipping) >= idleCommit {
			b.skipping = time.Time{}
			return nil
		}
		if !deadline.IsZero() && !now.Before(deadline) {
			return nil
		}
	}
}

// fits returns how many records make a batch, at least one if there is any, and their bytes.
func fits(recs []stream.Record, o *Options, most, bytes int) (n, size int) {
	for n < len(recs) && n < most {
		s := len(recs[n].Data)
		if o.Payload != nil {
			s = o.Payload(&recs[n])
		}
		if n > 0 && size+s > bytes {
			break
		}
		size += s
		n++
	}
	return n, size
}

// cut takes the first n records off the rest.
func (b *batcher) cut(n int) segment {
	s := segment{recs: b.rest[:n]}
	b.rest = b.rest[n:]
	switch {
	case len(b.rest) == 0:
		s.to = b.restTo
	case n > 0:
		s.to = cloned(s.recs[n-1].Pos)
	}
	return s
}

func (b *batcher) keep(recs []stream.Record) {
	for _, r := range recs {
		n := len(b.buf)
		b.buf = append(b.buf, r.Data...) // an older array stays alive by the records that point into it
		r.Data = b.buf[n:len(b.buf):len(b.buf)]
		r.Key, r.Pos = strings.Clone(r.Key), cloned(r.Pos)
		b.kept = append(b.kept, r)
	}
}

// process runs the function over a batch, and goes on until each of its records is either processed or dead-lettered and the
// checkpoint is behind it. It fails only if the lane ends.
func (l *lane) process(whole segment) error {
	o := &l.f.opts
	stack := []segment{whole} // left halves on top
	for len(stack) > 0 {
		s := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for attempts, n := 0, 0; len(s.recs) > 0; n++ {
			var err error
			if s, err = l.expire(s); err != nil {
				return err
			}
			if len(s.recs) == 0 {
				break
			}
			rest, err := l.attempt(s)
			if err == nil {
				l.recovered()
				if s = rest; len(s.recs) > 0 {
					attempts, n = 0, -1
				}
				continue
			}
			var own *fault
			switch {
			case final(err):
				return err
			case !errors.As(err, &own):
				l.failed(fmt.Errorf("commit: %w", err))
				happened, err := l.settle(l.tried)
				if err != nil {
					return err
				}
				if happened { // of all of the segment, or of what precedes a rejected record
					for len(s.recs) > 0 && s.recs[0].Pos <= l.checkpoint {
						s.recs = s.recs[1:]
					}
					continue
				}
			default:
				attempts++
				l.failed(own.err)
				if o.Bisect && len(s.recs) > 1 {
					mid := len(s.recs) / 2
					stack = append(stack, segment{s.recs[mid:], s.to})
					s = segment{s.recs[:mid], s.recs[mid-1].Pos}
					attempts, n = 0, -1
					if l.r.read.Err() != nil {
						return errStopping
					}
					continue
				}
				if o.MaxAttempts > 0 && attempts >= o.MaxAttempts {
					reason := fmt.Sprintf("function %s failed %d times: %v", l.f.name, attempts, own.err)
					if err := l.bury(s.recs, s.to, reason); err != nil {
						return err
					}
					s.recs = nil
					continue
				}
			}
			if !l.wait(n) {
				return errStopping
			}
		}
	}
	return nil
}

// attempt runs the function once and commits. If it rejects a record, what precedes that is run again alone and committed with
// the dead letter, and what follows is returned.
func (l *lane) attempt(s segment) (rest segment, err error) {
	if l.r.work.Err() != nil {
		return s, errStopping
	}
	begin := time.Now()
	err = l.advance(s.to, func(tx state.Tx) error { return l.f.batch.Process(l.r.work, tx, s.recs) })
	if err == nil {
		l.processed(s.recs, time.Since(begin))
		return segment{}, nil
	}
	var own *fault
	var reject *RejectError
	if !errors.As(err, &own) || !errors.As(own.err, &reject) {
		return s, err
	}
	i := find(s.recs, reject.Pos)
	if i < 0 {
		return s, &fault{fmt.Errorf("function rejects a record that is not in its batch: %w", own.err)}
	}
	before, to := s.recs[:i], s.recs[i].Pos
	if i == len(s.recs)-1 {
		to = s.to
	}
	letter, err := l.letter(&s.recs[i], reject.Err.Error())
	if err != nil {
		return s, &fault{err}
	}
	begin = time.Now()
	err = l.advance(to, func(tx state.Tx) error {
		if len(before) > 0 {
			if err := l.f.batch.Process(l.r.work, tx, before); err != nil {
				return err
			}
		}
		return tx.Emit(letter)
	})
	if err != nil {
		if errors.As(err, &own) && errors.As(own.err, &reject) {
			// An earlier one this time. It goes on from there.
			left, err := l.attempt(segment{before, before[len(before)-1].Pos})
			return segment{s.recs[len(before)-len(left.recs):], s.to}, err
		}
		return s, err
	}
	if len(before) > 0 {
		l.processed(before, time.Since(begin))
	}
	l.lettered(1, s.recs[i].Time)
	return segment{s.recs[i+1:], s.to}, nil
}

func find(recs []stream.Record, p stream.Position) int {
	for i := range recs {
		if recs[i].Pos == p {
			return i
		}
	}
	return -1
}

// expire dead-letters the records that are too old, which come first, and returns the rest.
func (l *lane) expire(s segment) (segment, error) {
	age := l.f.opts.MaxAge
	if age == 0 {
		return s, nil
	}
	now, n := time.Now(), 0
	for n < len(s.recs) && now.Sub(s.recs[n].Time) > age {
		n++
	}
	if n == 0 {
		return s, nil
	}
	to := s.to
	if n < len(s.recs) {
		to = s.recs[n-1].Pos
	}
	l.mu.Lock()
	why := l.stat.LastError
	retrying := l.stat.State == StateRetrying
	l.mu.Unlock()
	reason := fmt.Sprintf("record is older than %s, the function's maximum age", age)
	if retrying {
		reason += "; the last attempt said: " + why
	}
	if err := l.bury(s.recs[:n], to, reason); err != nil {
		return s, err
	}
	return segment{s.recs[n:], s.to}, nil
}

// bury moves the checkpoint past records and dead-letters them.
func (l *lane) bury(recs []stream.Record, to stream.Position, reason string) error {
	letters := make([]state.Effect, len(recs))
	for i := range recs {
		var err error
		if letters[i], err = l.letter(&recs[i], reason); err != nil {
			return err
		}
	}
	if err := l.pass(to, func(tx state.Tx) error {
		for _, e := range letters {
			if err := tx.Emit(e); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	l.lettered(len(recs), recs[len(recs)-1].Time)
	l.recovered()
	return nil
}

// pass commits a step of the runner's own that moves the checkpoint, however often it has to try.
func (l *lane) pass(to stream.Position, do func(state.Tx) error) error {
	if do == nil {
		do = func(state.Tx) error { return nil }
	}
	for n := 0; ; n++ {
		err := l.advance(to, do)
		if err == nil {
			return nil
		}
		if final(err) {
			return err
		}
		l.failed(fmt.Errorf("commit: %w", err))
		if happened, err := l.settle(to); err != nil || happened {
			return err
		}
		if !l.wait(n) {
			return errStopping
		}
	}
}

// stay is pass for a step that leaves the checkpoint where it is. Whether one that failed has happened cannot be told, so do must
// find out for itself, or bear to be repeated.
func (l *lane) stay(do func(state.Tx) error) error {
	for n := 0; ; n++ {
		err := l.advance(l.checkpoint, do)
		if err == nil || final(err) {
			return err
		}
		l.failed(fmt.Errorf("commit: %w", err))
		if !l.wait(n) {
			return errStopping
		}
	}
}
