package process

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

const (
	maxLetters = 1000 // that wait for a fold's next commit
	// A lane whose newest record is older than lagging is behind: as far as it knows, silent vehicles may have spoken since. It
	// has caught up when it waits for records, or they are younger than current.
	lagging = 10 * time.Second
	current = time.Second
)

// A foldRun runs a Folder's lane.
//
// Records are folded as soon as they are read. Memory is committed when it is urgent, old enough, or large enough; if a commit
// or a fold fails, memory is forgotten and the lane reads again from its checkpoint. Records that fail repeatedly are narrowed
// down: each retry folds and commits half as many at once, until one record alone is tried, retried and in the end dead-lettered.
type foldRun struct {
	l    *lane
	fold Fold
	opts *Options

	dirty    time.Time // since when memory has changes; zero: it has none
	records  int       // folded since the last commit
	letters  []state.Effect
	nextTick time.Time
	caughtUp time.Time // since when; zero: the lane is behind

	most     int             // how many records to fold at once
	narrow   stream.Position // fold few and commit each time up to here; "": no need
	attempts int             // of a single record
	failures int             // in a row, for the backoff

	// For viewing without a closure for each batch.
	batch   []stream.Record
	view    func(state.Reader) error
	viewErr error // of the store, not of the fold
}

// runFolder runs a Folder until it reaches the lane's end, which is io.EOF.
func (l *lane) runFolder() (err error) {
	f := &foldRun{l: l, opts: &l.f.opts, most: readMost}
	for n := 0; ; n++ {
		if err := l.protect(func() error { f.fold = l.f.folder.Lane(l.shard, l.n); return nil }); err == nil {
			break
		} else {
			l.failed(err)
		}
		if !l.wait(n) {
			return errStopping
		}
	}
	f.view = f.foldBatch
	now := time.Now()
	f.nextTick = now.Add(f.opts.TickInterval)
	f.caughtUp = now
	defer func() {
		_ = l.protect(func() error { f.fold.Close(); return nil }) // logged
	}()
	for {
		err := f.turn()
		if errors.Is(err, io.EOF) {
			// The checkpoint goes to the end even if the last records were another lane's.
			if err := f.commitAll(); err != nil {
				return err
			}
			return io.EOF
		}
		if errors.Is(err, errStopping) {
			f.commitLast()
			return err
		}
		if err != nil {
			return err
		}
	}
}

// errNoView stands for the error of a View that did not even call the fold.
var errNoView = errors.New("state cannot be read")

// turn reads once, folds, and commits if it is time. An error ends the lane.
func (f *foldRun) turn() error {
	l := f.l
	deadline := f.nextTick
	if !f.dirty.IsZero() {
		if d := f.dirty.Add(f.opts.CommitInterval); d.Before(deadline) {
			deadline = d
		}
	}
	recs, skipped, err := l.fetch(f.most, deadline)
	if err != nil {
		return err
	}
	now := time.Now()
	if len(recs) > 0 {
		f.look(now, recs[len(recs)-1].Time)
		begin := now
		if err := f.foldAll(recs); err != nil {
			return f.recover(recs, err)
		}
		now = time.Now()
		l.processed(recs, now.Sub(begin))
		f.records += len(recs)
		f.touch(now)
	} else if skipped == 0 && now.Before(deadline) {
		return nil // the wait ended early
	} else if skipped > 0 {
		f.touch(now)
	} else if f.caughtUp.IsZero() {
		f.caughtUp = now
	}
	if !now.Before(f.nextTick) {
		f.nextTick = now.Add(f.opts.TickInterval)
		if err := f.tick(now); err != nil {
			return f.recover(nil, err)
		}
		f.touch(now)
	}
	urgent := false
	if err := l.protect(func() error { urgent = f.fold.Urgent(); return nil }); err != nil {
		return f.recover(recs, err)
	}
	due := !f.dirty.IsZero() && now.Sub(f.dirty) >= f.opts.CommitInterval
	if urgent || due || f.narrow != "" || f.records >= f.opts.CommitRecords || len(f.letters) >= maxLetters {
		return f.commit()
	}
	return nil
}

// touch notes that memory has changed.
func (f *foldRun) touch(now time.Time) {
	if f.dirty.IsZero() {
		f.dirty = now
	}
}

// look keeps caughtUp.
func (f *foldRun) look(now, newest time.Time) {
	switch age := now.Sub(newest); {
	case age > lagging:
		f.caughtUp = time.Time{}
	case age < current && f.caughtUp.IsZero():
		f.caughtUp = now
	}
}

// foldAll folds records, leaving out those that the fold rejects.
func (f *foldRun) foldAll(recs []stream.Record) error {
	for len(recs) > 0 {
		f.batch, f.viewErr = recs, errNoView
		err := f.l.r.cfg.Store.View(f.l.r.work, f.view)
		f.batch = nil
		var reject *RejectError
		switch {
		case err == nil:
			return nil
		case f.viewErr != nil || !errors.As(err, &reject):
			return err
		}
		i := find(recs, reject.Pos)
		if i < 0 {
			return fmt.Errorf("fold rejects a record that is not in its batch: %w", err)
		}
		letter, err := f.l.letter(&recs[i], reject.Err.Error())
		if err != nil {
			return err
		}
		f.letters = append(f.letters, letter)
		recs = recs[i+1:]
	}
	return nil
}

func (f *foldRun) foldBatch(r state.Reader) error {
	t := trackedReader{Reader: r}
	err := f.l.protect(func() error { return f.fold.Fold(f.l.r.work, &t, f.batch) })
	f.viewErr = nil
	if err != nil {
		f.viewErr = t.err
	}
	return err
}

// tick lets time pass. A lane that is behind has been listening since just now.
func (f *foldRun) tick(now time.Time) error {
	since := f.caughtUp
	if since.IsZero() {
		since = now
	}
	return f.l.r.cfg.Store.View(f.l.r.work, func(r state.Reader) error {
		return f.l.protect(func() error { return f.fold.Tick(f.l.r.work, r, now, since) })
	})
}

// step commits what is in memory, with the dead letters of its records.
func (f *foldRun) step() error {
	return f.l.advance(f.l.at, func(tx state.Tx) error {
		if err := f.fold.Flush(tx); err != nil {
			return err
		}
		for _, e := range f.letters {
			if err := tx.Emit(e); err != nil {
				return err
			}
		}
		return nil
	})
}

// commit makes a step of what is in memory. An error ends the lane; a step that failed is gone back on.
func (f *foldRun) commit() error {
	err := f.step()
	if err == nil {
		f.committed()
		return nil
	}
	if final(err) {
		return err
	}
	return f.recover(nil, fmt.Errorf("commit: %w", err))
}

func (f *foldRun) committed() {
	l := f.l
	if n := len(f.letters); n > 0 {
		l.mu.Lock()
		l.stat.DeadLetters += uint64(n)
		l.mu.Unlock()
	}
	f.letters, f.records, f.dirty = f.letters[:0], 0, time.Time{}
	f.failures, f.attempts = 0, 0
	if f.narrow != "" && l.checkpoint >= f.narrow {
		f.narrow, f.most = "", readMost
	}
	l.recovered()
}

// commitAll commits what there is until it succeeds or the lane ends.
func (f *foldRun) commitAll() error {
	for f.l.checkpoint != f.l.at || !f.dirty.IsZero() {
		at := f.l.at
		if err := f.commit(); err != nil {
			return err
		}
		// A failed commit has gone back: fold again what lies between.
		for f.l.at < at {
			err := f.turn()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// commitLast tries once to commit what is in memory, as the runner stops.
func (f *foldRun) commitLast() {
	l := f.l
	if l.checkpoint == l.at && f.dirty.IsZero() {
		return
	}
	err := f.step()
	if err == nil {
		f.committed()
		return
	}
	l.failed(fmt.Errorf("last commit: %w", err))
	_ = l.protect(func() error { f.fold.Reset(); return nil }) // logged; what is lost is folded again at the next start
}

// recover goes back to the checkpoint after an error. recs are those that were being folded, if the error is about them.
func (f *foldRun) recover(recs []stream.Record, err error) error {
	l := f.l
	if final(err) {
		return err
	}
	l.failed(err)
	blame := len(recs) > 0 && f.viewErr == nil && l.r.work.Err() == nil
	var pause bool
	var bury *state.Effect
	var end stream.Position
	switch {
	case !blame:
		pause = true
	case f.records+len(recs) > 1:
		// Which record it was is not known yet. Halving costs neither time nor attempts.
		f.narrow = max(f.narrow, cloned(recs[len(recs)-1].Pos))
		f.most = max(1, min(f.most, (f.records+len(recs))/2))
	default:
		f.narrow, f.most = max(f.narrow, cloned(recs[0].Pos)), 1
		f.attempts++
		if f.opts.MaxAttempts > 0 && f.attempts >= f.opts.MaxAttempts {
			e, err2 := l.letter(&recs[0], fmt.Sprintf("function %s failed %d times: %v", l.f.name, f.attempts, err))
			if err2 != nil {
				return err2
			}
			bury, end = &e, cloned(recs[0].Pos)
		} else {
			pause = true
		}
	}
	f.reset()
	if pause {
		f.failures++
		if !l.wait(f.failures - 1) {
			return errStopping
		}
	}
	if _, err := l.settle(l.tried); err != nil {
		return err
	}
	l.at = l.checkpoint
	if bury != nil {
		// Nothing is in memory, so this step is the dead letter alone, and the lane's other keys up to it were skipped.
		if err := l.pass(end, func(tx state.Tx) error { return tx.Emit(*bury) }); err != nil {
			return err
		}
		l.at = l.checkpoint
		l.mu.Lock()
		l.stat.DeadLetters++
		l.mu.Unlock()
		f.attempts, f.failures = 0, 0
		if l.checkpoint >= f.narrow {
			f.narrow, f.most = "", readMost
		}
	}
	return nil
}

// reset forgets what is in memory, and with it what was read since the checkpoint.
func (f *foldRun) reset() {
	f.l.log.close()
	f.l.at = f.l.checkpoint
	_ = f.l.protect(func() error { f.fold.Reset(); return nil }) // logged; the next Fold shows what is wrong
	f.letters, f.records, f.dirty = f.letters[:0], 0, time.Time{}
}
