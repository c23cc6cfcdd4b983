package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// A lane is one goroutine's work: the keys of one shard that hash to it.
type lane struct {
	f     *function
	r     *Runner
	shard stream.ShardID
	made  time.Time // when the shard was made; zero: the log does not tell
	n, of int
	slot  int             // names its checkpoint: n, or spillSlot
	spill *spill          // where it puts off what it is too slow for; nil: nowhere
	until stream.Position // where to end; "": at the shard's end

	// The lane's goroutine owns these.
	log        waitingReader
	at         stream.Position // the last record that was read, skipped or not
	checkpoint stream.Position // the last that is committed
	tried      stream.Position // where the last step meant to go
	own        []stream.Record // scratch: the lane's own records of a read
	lanesKey   []byte
	lanesValue string
	reached    bool // read once the goroutine has ended
	failures   int  // in a row
	givenUp    int  // records, of those failures
	lastPanic  string
	seen       time.Time // arrival of the last record read, skipped or not
	quiet      bool      // the last read found nothing
	seconds    prometheus.Observer
	sizes      prometheus.Observer

	mu   sync.Mutex // guards what Status and metrics read
	stat LaneStatus
	last time.Time // arrival of the last record processed
	idle bool      // there was nothing more to read
}

func newLane(s *shardRun, n, of int, at, until stream.Position) *lane {
	l := &lane{
		f: s.f, r: s.f.r, shard: s.info.ID, made: s.info.Created, n: n, slot: n, of: of, until: until, at: at, checkpoint: at,
		lanesKey: s.f.lanesKey(s.info.ID), lanesValue: strconv.Itoa(of),
		spill: s.spill, seconds: s.f.r.meter.seconds.WithLabelValues(s.f.name, string(s.info.ID)),
		sizes: s.f.r.meter.records.WithLabelValues(s.f.name, string(s.info.ID)),
	}
	l.stat = LaneStatus{Lane: n, State: StateRunning, Checkpoint: at}
	if was := s.f.totals(s.info.ID, n); was != nil {
		l.stat.Counters = *was // of the same lane before the number of lanes changed
	}
	return l
}

// run runs the lane to its end.
func (l *lane) run() {
	switch {
	case l.f.folder != nil:
		l.runWith(l.runFolder)
	case l.f.handler != nil:
		l.runWith(l.runHandler)
	default:
		l.runWith(l.runFunction)
	}
}

func (l *lane) runWith(do func() error) {
	defer l.log.close()
	err := do()
	l.mu.Lock()
	l.stat.State = StateStopped
	switch {
	case errors.Is(err, io.EOF):
		l.reached = true
		l.stat.State = StateFinished
	case errors.Is(err, errStopping):
	default:
		l.stat.LastError, l.stat.LastErrorTime = err.Error(), time.Now()
		l.r.cfg.Logger.Error("function stopped on a shard", "function", l.f.name, "shard", l.shard, "lane", l.n, "error", err)
	}
	l.mu.Unlock()
	l.r.progress()
}

// A waitingReader is a stream.Reader whose wait may have a deadline.
type waitingReader struct {
	reader   stream.Reader
	ctx      context.Context // of the wait in progress; reused until its deadline has passed
	cancel   context.CancelFunc
	deadline time.Time
}

func (w *waitingReader) close() {
	if w.cancel != nil {
		w.cancel()
		w.ctx, w.cancel = nil, nil
	}
	if w.reader != nil {
		_ = w.reader.Close() // nothing was written
		w.reader = nil
	}
}

// next is Next with a deadline (zero: none); nil and no error: it has passed.
func (w *waitingReader) next(ctx context.Context, most int, deadline time.Time) ([]stream.Record, error) {
	if deadline.IsZero() {
		return w.reader.Next(ctx, most)
	}
	// A context and its timer cost more than a read. One that ends too early is fine: the caller looks at the clock.
	if w.ctx == nil || w.ctx.Err() != nil || w.deadline.After(deadline) {
		if w.cancel != nil {
			w.cancel()
		}
		w.deadline = deadline
		w.ctx, w.cancel = context.WithDeadline(ctx, deadline)
	}
	recs, err := w.reader.Next(w.ctx, most)
	if err != nil && w.ctx.Err() != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) {
		return nil, nil
	}
	return recs, err
}

// fetch returns the lane's own records of the next read, and how many others it skipped; it moves l.at. None of either: the
// deadline has passed. io.EOF: the lane's end. Errors of the log are tried again here, so any other error ends the lane.
func (l *lane) fetch(most int, deadline time.Time) (recs []stream.Record, skipped int, err error) {
	for n := 0; ; n++ {
		if l.until != "" && l.at >= l.until {
			return nil, 0, io.EOF
		}
		raw, err := l.nextOnce(most, deadline)
		if err == nil {
			recs, skipped, err = l.mine(raw)
		}
		switch {
		case err == nil:
			if n > 0 {
				l.recovered()
			}
			if l.quiet = len(raw) == 0; !l.quiet {
				l.seen = raw[len(raw)-1].Time
			}
			l.read(raw, len(recs) == 0)
			return recs, skipped, nil
		case l.r.read.Err() != nil:
			return nil, 0, errStopping
		case errors.Is(err, io.EOF):
			if l.until != "" {
				l.at = l.until
			}
			return nil, 0, io.EOF
		case errors.Is(err, stream.ErrNoShard):
			l.r.cfg.Logger.Error("shard was removed before it was read out", "function", l.f.name, "shard", l.shard, "position", l.at)
			return nil, 0, io.EOF
		}
		l.log.close()
		l.failed(fmt.Errorf("read %s after %q: %w", l.shard, l.at, err))
		if !l.r.sleep(backoff(l.f.opts.MinBackoff, l.f.opts.MaxBackoff, n)) {
			return nil, 0, errStopping
		}
	}
}

func (l *lane) nextOnce(most int, deadline time.Time) ([]stream.Record, error) {
	opened := l.log.reader == nil
	if opened {
		r, err := l.r.cfg.Log.Read(l.r.read, l.shard, l.at)
		if err != nil {
			return nil, err
		}
		l.log.reader = r
	}
	raw, err := l.log.next(l.r.read, most, deadline)
	if err == nil && opened && len(raw) > 0 && l.at != "" && l.r.tipper != nil {
		// P7: retention that has overtaken a slow function is not silent.
		if gap := int64(l.r.tipper.Count(l.shard, raw[0].Pos)) - int64(l.r.tipper.Count(l.shard, l.at)) - 1; gap > 0 {
			l.mu.Lock()
			l.stat.Missed += uint64(gap)
			l.mu.Unlock()
			l.r.cfg.Logger.Error("retention removed records before they were processed: lengthen it, or speed the function up",
				"function", l.f.name, "shard", l.shard, "lane", l.n, "records", gap)
		}
	}
	return raw, err
}

// mine keeps what belongs to the lane and lies before its end, and moves l.at.
func (l *lane) mine(raw []stream.Record) (recs []stream.Record, skipped int, err error) {
	if l.until != "" {
		for i := range raw {
			if raw[i].Pos > l.until {
				raw = raw[:i]
				l.at = l.until
				break
			}
		}
	}
	if len(raw) == 0 {
		return nil, 0, nil
	}
	recs = raw
	if l.of > 1 || l.f.opts.Filter != nil {
		if err := l.protect(func() error { recs = l.choose(raw); return nil }); err != nil { // a filter may panic
			return nil, 0, fmt.Errorf("filter: %w", err)
		}
	}
	l.at = max(l.at, cloned(raw[len(raw)-1].Pos))
	return recs, len(raw) - len(recs), nil
}

// choose returns the records that belong to the lane and pass the filter.
func (l *lane) choose(raw []stream.Record) []stream.Record {
	filter := l.f.opts.Filter
	l.own = l.own[:0]
	filtered := uint64(0)
	for i := range raw {
		if l.of > 1 && laneOf(raw[i].Key, l.of) != l.n {
			continue
		}
		if filter != nil && !filter(&raw[i]) {
			filtered++
			continue
		}
		l.own = append(l.own, raw[i])
	}
	if filtered > 0 {
		l.mu.Lock()
		l.stat.Filtered += filtered
		l.mu.Unlock()
	}
	return l.own
}

// A trackedReader remembers the first error of the store, so that it is not blamed on the function or its records.
type trackedReader struct {
	state.Reader
	err error
}

func (t *trackedReader) note(err error) error {
	if err != nil && t.err == nil {
		t.err = err
	}
	return err
}

// Get fails only when the store does.
func (t *trackedReader) Get(key []byte) ([]byte, error) {
	v, err := t.Reader.Get(key)
	return v, t.note(err)
}

// Scan fails when the store does or each: an error of each is not the store's.
func (t *trackedReader) Scan(from, to []byte, each func(k, v []byte) error) error {
	var own error
	err := t.Reader.Scan(from, to, func(k, v []byte) error {
		own = each(k, v)
		return own
	})
	if own == nil {
		return t.note(err)
	}
	return err
}

// A trackedTx is a trackedReader that writes.
type trackedTx struct {
	state.Tx
	reads trackedReader
}

// Get is the trackedReader's.
func (t *trackedTx) Get(key []byte) ([]byte, error) { return t.reads.Get(key) }

// Scan is the trackedReader's.
func (t *trackedTx) Scan(from, to []byte, each func(k, v []byte) error) error {
	return t.reads.Scan(from, to, each)
}

// Set fails only when the store does.
func (t *trackedTx) Set(key, value []byte) error { return t.reads.note(t.Tx.Set(key, value)) }

// Delete fails only when the store does.
func (t *trackedTx) Delete(key []byte) error { return t.reads.note(t.Tx.Delete(key)) }

// DeleteRange fails only when the store does.
func (t *trackedTx) DeleteRange(from, to []byte) error {
	return t.reads.note(t.Tx.DeleteRange(from, to))
}

// A fault is an error of the function itself, as opposed to one of the store.
type fault struct{ err error }

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

// advance commits one step. Its error is a *fault if do failed of itself; state.ErrMoved; or the store's: the step may then have
// happened or not, and settle tells.
func (l *lane) advance(to stream.Position, do func(state.Tx) error) error {
	step := state.Step{Func: l.f.name, Shard: l.shard, Lane: l.slot, From: l.checkpoint, To: to}
	l.tried = cloned(to)
	var own *fault
	err := l.r.cfg.Store.Advance(l.r.work, step, func(tx state.Tx) error {
		v, err := tx.Get(l.lanesKey)
		if err != nil {
			return err
		}
		if l.slot != spillSlot && string(v) != l.lanesValue { // a range that was put off keeps its number
			return fmt.Errorf("%w: %s lanes now, %s here", state.ErrMoved, v, l.lanesValue)
		}
		t := &trackedTx{Tx: tx, reads: trackedReader{Reader: tx}}
		err = l.protect(func() error { return do(t) })
		switch {
		case err == nil:
			return nil
		case t.reads.err != nil || l.r.work.Err() != nil:
			return err
		}
		own = &fault{err}
		return own
	})
	switch {
	case own != nil:
		return own
	case err != nil:
		return err
	}
	l.committed(to)
	return nil
}

// cloned is a position that outlives the read that it came from.
func cloned(p stream.Position) stream.Position { return stream.Position(strings.Clone(string(p))) }

func (l *lane) committed(to stream.Position) {
	if to == l.checkpoint {
		return
	}
	to = cloned(to)
	l.checkpoint = to
	l.mu.Lock()
	l.stat.Checkpoint = to
	l.mu.Unlock()
	l.r.progress()
}

// settle waits until the store says what became of a step that failed to commit: true, it happened after all.
func (l *lane) settle(to stream.Position) (bool, error) {
	for n := 0; ; n++ {
		at, err := l.r.cfg.Store.Checkpoint(l.r.read, l.f.name, l.shard, l.slot)
		switch {
		case l.r.read.Err() != nil:
			return false, errStopping
		case err == nil && at == to:
			l.committed(to)
			return true, nil
		case err == nil && at == l.checkpoint:
			return false, nil
		case err == nil:
			return false, fmt.Errorf("%w: it is at %q", state.ErrMoved, at)
		case errors.Is(err, state.ErrClosed):
			return false, err
		}
		l.failed(fmt.Errorf("read checkpoint: %w", err))
		if !l.r.sleep(backoff(l.f.opts.MinBackoff, l.f.opts.MaxBackoff, n)) {
			return false, errStopping
		}
	}
}

// final tells whether an error of a step ends the lane.
func final(err error) bool {
	return errors.Is(err, state.ErrMoved) || errors.Is(err, state.ErrClosed)
}

// protect runs do and turns a panic into an error. Its stack is logged once, however often it is tried again.
func (l *lane) protect(do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
			if s := err.Error(); s != l.lastPanic {
				l.lastPanic = s
				l.r.cfg.Logger.Error("function panicked", "function", l.f.name, "shard", l.shard, "lane", l.n,
					"error", err, "stack", string(debug.Stack()))
			}
		}
	}()
	return do()
}

// failed notes an error; the first in a row is logged.
func (l *lane) failed(err error) {
	l.mu.Lock()
	l.stat.Errors++
	l.stat.State = StateRetrying
	l.stat.LastError, l.stat.LastErrorTime = err.Error(), time.Now()
	l.mu.Unlock()
	if l.failures++; l.failures == 1 {
		l.r.cfg.Logger.Warn("function fails", "function", l.f.name, "shard", l.shard, "lane", l.n, "error", err)
	}
}

func (l *lane) recovered() {
	if l.failures == 0 {
		return
	}
	l.mu.Lock()
	l.stat.State = StateRunning
	l.mu.Unlock()
	l.r.cfg.Logger.Info("function works again", "function", l.f.name, "shard", l.shard, "lane", l.n, "failures", l.failures, "given_up", l.givenUp)
	l.failures, l.givenUp = 0, 0
}

// retrying counts a pause.
func (l *lane) retrying() {
	l.mu.Lock()
	l.stat.Retries++
	l.mu.Unlock()
}

// retry calls do until it succeeds; false: the runner stops.
func (l *lane) retry(what string, do func() error) bool {
	for n := 0; ; n++ {
		err := do()
		if l.r.read.Err() != nil {
			return false
		}
		if err == nil {
			return true
		}
		l.failed(fmt.Errorf("%s: %w", what, err))
		if !l.wait(n) {
			return false
		}
	}
}

// wait is the pause before attempt n+2; false: the runner stops.
func (l *lane) wait(n int) bool {
	l.retrying()
	return l.r.sleep(backoff(l.f.opts.MinBackoff, l.f.opts.MaxBackoff, n))
}

// processed counts records that went through.
func (l *lane) processed(recs []stream.Record, took time.Duration) {
	l.mu.Lock()
	l.stat.Records += uint64(len(recs))
	l.stat.Batches++
	l.last = recs[len(recs)-1].Time
	l.mu.Unlock()
	l.seconds.Observe(took.Seconds())
	l.sizes.Observe(float64(len(recs)))
}

// read notes what was read. Records that are all passed over are done with, and the iterator is as old as they are: one that waits for a
// rare record is not behind.
func (l *lane) read(raw []stream.Record, passed bool) {
	l.mu.Lock()
	l.idle = l.quiet
	if passed && len(raw) > 0 {
		l.last = raw[len(raw)-1].Time
	}
	l.mu.Unlock()
}
