package process

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// A mapping is a handler's work on one lane: Lambda's event source mapping. Its lane's goroutine owns it.
//
// The handler runs with nothing locked. What it returns is kept while the store fails, so a failed commit costs no second call;
// only a stop or a crash between the two does.
type mapping struct {
	l *lane
	b batcher
	o *Options

	window *window         // the open one; nil: none
	noted  stream.Position // where the batch ends that is noted in the store
	ids    []byte          // scratch
	kept   []stream.Record // scratch of sampling
	over   bool            // the overflow policy is at work
	spared bool            // an operator has resumed it; until it has caught up
	spill  *spill          // nil: nothing is put off
}

// errSpilled says that what a lane had read is put off, and that it is to read on from its new checkpoint.
var errSpilled = errors.New("records are put off")

// maxState is what a window's state may take on its way to its early end: an invocation's answer has no more.
const maxState = 6 << 20

// runHandler runs a Handler until it reaches the lane's end, which is io.EOF.
func (l *lane) runHandler() error { return l.runMapping(nil) }

func (l *lane) runMapping(sp *spill) error {
	m := &mapping{l: l, o: &l.f.opts, spill: sp}
	m.newBatcher()
	if err := m.begin(); err != nil {
		return err
	}
	for {
		seg, err := m.b.next()
		ended := errors.Is(err, io.EOF)
		if err != nil && !ended {
			return err
		}
		switch {
		case len(seg.recs) > 0:
			if err := m.take(seg); errors.Is(err, errSpilled) {
				l.log.close()
				m.newBatcher()
				continue
			} else if err != nil {
				return err
			}
		case seg.to != l.checkpoint:
			if err := l.pass(seg.to, nil); err != nil {
				return err
			}
		}
		if m.window != nil && (ended || len(seg.recs) == 0 && m.window.passed(time.Now(), l.seen, l.quiet)) {
			if err := m.close(false); err != nil {
				return err
			}
		}
		if ended {
			return io.EOF
		}
	}
}

func (m *mapping) newBatcher() {
	m.b = batcher{l: m.l, wake: m.wake, until: m.until}
}

// begin reads what an earlier run left.
func (m *mapping) begin() error {
	l := m.l
	var note, win []byte
	if !l.retry("read what was noted", func() error {
		return l.r.cfg.Store.View(l.r.read, func(r state.Reader) error {
			n, err := r.Get(m.key("batch"))
			if err != nil {
				return err
			}
			w, err := r.Get(m.key("window"))
			note, win = append([]byte{}, n...), append([]byte{}, w...)
			return err
		})
	}) {
		return errStopping
	}
	if from, to, ok := strings.Cut(string(note), "\x00"); ok && m.o.StableBatches && stream.Position(from) == l.checkpoint {
		m.b.exact, m.noted = stream.Position(to), stream.Position(to)
	}
	if len(win) == 0 {
		return nil
	}
	w, err := readWindow(win)
	if err != nil {
		return fmt.Errorf("open window of %s on %s: %w", l.f.name, l.shard, err)
	}
	m.open(w)
	if w.early || m.o.Tumbling == 0 {
		return m.close(w.early)
	}
	return nil
}

func (m *mapping) key(what string) []byte {
	return m.l.f.keeper().shardKey(m.l.shard, what, m.l.slot)
}

// take processes a batch, window by window.
func (m *mapping) take(whole segment) error {
	whole, err := m.sample(whole)
	if err != nil || m.o.Tumbling == 0 {
		if err == nil && len(whole.recs) > 0 {
			err = m.process(whole)
		}
		return err
	}
	for len(whole.recs) > 0 {
		t := whole.recs[0].Time
		if m.window != nil && !t.Before(m.window.end) {
			if err := m.close(false); err != nil {
				return err
			}
		}
		if m.window == nil {
			m.open(windowOf(t, m.o.Tumbling, cloned(whole.recs[0].Pos)))
		}
		n := 1
		for n < len(whole.recs) && whole.recs[n].Time.Before(m.window.end) {
			n++
		}
		part := segment{whole.recs[:n], whole.to}
		if n < len(whole.recs) {
			part.to = whole.recs[n-1].Pos
		}
		whole.recs = whole.recs[n:]
		if err := m.process(part); err != nil {
			return err
		}
	}
	return nil
}

// process calls the function until each record of a batch is processed or given up, and the checkpoint is behind them. It fails
// only if the lane ends or the rest is put off.
func (m *mapping) process(whole segment) error {
	stack := []segment{whole} // left halves on top
	for len(stack) > 0 {
		s := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		right, err := m.settle(s)
		if err != nil {
			return err
		}
		for i := len(right) - 1; i >= 0; i-- {
			stack = append(stack, right[i])
		}
	}
	m.l.recovered() // of the whole batch: halves of a split one that succeed are no news
	return nil
}

// settle calls the function for a segment until it is done with, or split: then it returns the parts, each of which begins afresh.
func (m *mapping) settle(s segment) (parts []segment, err error) {
	l, o := m.l, m.o
	attempts := 0
	var last error
	for n := 0; ; n++ {
		if s, err = m.expire(s, attempts, last); err != nil || len(s.recs) == 0 {
			return nil, err
		}
		if err := m.overflow(s); err != nil {
			return nil, err
		}
		res, err := m.invoke(s, attempts+1)
		var off *NotRunError
		switch {
		case errors.Is(err, errStopping), final(err):
			return nil, err
		case errors.As(err, &off):
			m.throttled(off)
			if !m.wait(s, n, off.After) {
				return nil, errStopping
			}
			continue
		case err == nil && res.Failed == "":
			if err := m.commit(s.to, s.recs, &res); err != nil {
				return nil, err
			}
			return nil, nil
		}
		attempts++
		done := 0
		if err == nil {
			if done = find(s.recs, res.Failed); done < 0 {
				done, err = 0, fmt.Errorf("function reports record %q as failed, which is not in its batch", res.Failed)
			} else {
				err = res.failure()
			}
		}
		last = err
		l.failed(err)
		if done > 0 {
			if err := m.commit(s.recs[done-1].Pos, s.recs[:done], &res); err != nil {
				return nil, err
			}
			s.recs = s.recs[done:]
		}
		switch {
		case l.r.read.Err() != nil:
			return nil, errStopping
		case o.Bisect && done > 0:
			return []segment{s}, nil
		case o.Bisect && len(s.recs) > 1:
			mid := len(s.recs) / 2
			return []segment{{s.recs[:mid], s.recs[mid-1].Pos}, {s.recs[mid:], s.to}}, nil
		case o.MaxAttempts > 0 && attempts >= o.MaxAttempts:
			return nil, m.giveUp(s.recs, s.to, AttemptsExhausted, attempts, last)
		}
		l.retrying()
		if !m.wait(s, n, 0) {
			return nil, errStopping
		}
	}
}

// wait is the pause before the next attempt, cut short when all records are too old by then; false: the runner stops.
func (m *mapping) wait(s segment, n int, d time.Duration) bool {
	if d <= 0 {
		d = backoff(m.o.MinBackoff, m.o.MaxBackoff, n)
	}
	if m.o.MaxAge > 0 {
		d = min(d, time.Until(s.recs[len(s.recs)-1].Time.Add(m.o.MaxAge))+time.Millisecond)
	}
	return m.l.r.sleep(max(d, 0))
}

// invoke calls the function once. What is not a *NotRunError, errStopping, or the store's, is the function's own failure.
func (m *mapping) invoke(s segment, attempt int) (res Result, err error) {
	l := m.l
	in := Invocation{ID: m.id(s.recs), Attempt: attempt, Shard: l.shard, Records: s.recs}
	if m.o.StableBatches && s.recs[len(s.recs)-1].Pos != m.noted {
		to := cloned(s.recs[len(s.recs)-1].Pos)
		if err := l.stay(func(tx state.Tx) error {
			tx.Sync()
			return tx.Set(m.key("batch"), []byte(string(l.checkpoint)+"\x00"+string(to)))
		}); err != nil {
			return res, err
		}
		m.noted = to
	}
	if m.window != nil {
		in.Window = &Window{Start: m.window.start, End: m.window.end, State: m.window.state}
	}
	return m.call(&in)
}

func (m *mapping) call(in *Invocation) (res Result, err error) {
	l, f := m.l, m.l.f
	if m.spill != nil && !m.spill.pace() {
		return res, errStopping
	}
	if f.output != nil && f.output.admit(l.r.read) != nil || l.r.read.Err() != nil {
		return res, errStopping
	}
	wait, probe := f.breaker.enter(time.Now())
	if wait > 0 {
		return res, &NotRunError{Err: errCircuitOpen, After: wait}
	}
	if g := l.r.cfg.Gate; g != nil {
		if g.enter(l.r.read, m.o.Priority) != nil {
			f.breaker.left(time.Now(), notRun, probe)
			return res, errStopping
		}
		defer g.leave()
	}
	begin := time.Now()
	l.mu.Lock()
	l.stat.LastInvocation = begin
	if len(in.Records) > 0 {
		l.last = in.Records[0].Time // what it is stuck on, if it is, grows older
	}
	l.mu.Unlock()
	err = l.protect(func() error {
		var err error
		res, err = f.handler.Handle(l.r.work, in)
		return err
	})
	if err == nil && len(res.State) > maxState {
		err = fmt.Errorf("function returned a window state of %d bytes: the most is %d", len(res.State), maxState)
	}
	end := time.Now()
	var off *NotRunError
	ran, out := true, succeeded
	switch {
	case err != nil && l.r.work.Err() != nil:
		f.breaker.left(end, notRun, probe)
		return res, errStopping
	case errors.As(err, &off):
		ran, out = false, notRun
	case err != nil, len(in.Records) > 0 && res.Failed == in.Records[0].Pos:
		out = failed
	}
	if ran {
		l.seconds.Observe(end.Sub(begin).Seconds())
		l.mu.Lock()
		l.stat.Invocations++
		l.mu.Unlock()
	}
	if f.breaker.left(end, out, probe) {
		l.r.cfg.Logger.Warn("circuit breaker opened", "function", f.name, "shard", l.shard, "pause", m.o.Breaker.Pause, "error", err)
	}
	return res, err
}

// id names an invocation by what is in it, in the form of a UUID. The hash of all positions, not of the first and last alone: a new
// filter gives other records between the same two.
func (m *mapping) id(recs []stream.Record) string {
	m.ids = m.prefix(m.ids[:0])
	for i := range recs {
		m.ids = append(append(m.ids, recs[i].Pos...), 0)
	}
	return uuid(m.ids)
}

// prefix names the lane's shard. When the shard was made tells it from one of the same name that was there before its stream was deleted.
func (m *mapping) prefix(b []byte) []byte {
	b = append(append(b, m.l.f.name...), 0)
	b = append(append(b, m.l.shard...), 0)
	if made := m.l.made; !made.IsZero() {
		b = append(strconv.AppendInt(b, made.UnixMilli(), 10), 0)
	}
	return b
}

// uuid is a version 8 UUID of a hash.
func uuid(b []byte) string {
	h := sha256.Sum256(b)
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80
	var out [36]byte
	hex.Encode(out[:8], h[:4])
	hex.Encode(out[9:13], h[4:6])
	hex.Encode(out[14:18], h[6:8])
	hex.Encode(out[19:23], h[8:10])
	hex.Encode(out[24:], h[10:16])
	out[8], out[13], out[18], out[23] = '-', '-', '-', '-'
	return string(out[:])
}

// commit moves the checkpoint past processed records, with the window's state and the output.
func (m *mapping) commit(to stream.Position, recs []stream.Record, res *Result) error {
	l := m.l
	emit := m.emit(res.Output, func() string { return string(recs[0].Pos) + "-" + string(recs[len(recs)-1].Pos) })
	var win []byte
	if m.window != nil {
		m.window.state, m.window.stored = append([]byte(nil), res.State...), true
		m.window.early = len(res.State) > maxWindowState
		win = m.window.append(nil)
	}
	if err := l.pass(to, func(tx state.Tx) error {
		if win != nil {
			if err := tx.Set(m.key("window"), win); err != nil {
				return err
			}
		}
		return emit(tx)
	}); err != nil {
		return err
	}
	l.sizes.Observe(float64(len(recs)))
	l.mu.Lock()
	l.stat.Records += uint64(len(recs))
	l.stat.Batches++
	if l.slot == spillSlot {
		l.stat.CaughtUp += uint64(len(recs))
	}
	l.last = recs[len(recs)-1].Time
	l.mu.Unlock()
	if m.window != nil && m.window.early {
		return m.close(true)
	}
	return nil
}

// emit returns what puts records out in a step. id tells steps apart.
func (m *mapping) emit(out []stream.Record, id func() string) func(state.Tx) error {
	u := m.l.f.output
	if u == nil || len(out) == 0 {
		return func(state.Tx) error { return nil }
	}
	e := u.emit(fmt.Sprintf("%s/%s/%d/%s", m.l.f.name, m.l.shard, m.l.slot, id()), out)
	u.added(len(e.Data)) // before it can be appended
	return func(tx state.Tx) error { return tx.Emit(e) }
}

// expire gives up the records that are too old, which come first, and returns the rest.
func (m *mapping) expire(s segment, attempts int, last error) (segment, error) {
	if m.o.MaxAge == 0 {
		return s, nil
	}
	now, n := time.Now(), 0
	for n < len(s.recs) && now.Sub(s.recs[n].Time) > m.o.MaxAge {
		n++
	}
	if n == 0 {
		return s, nil
	}
	to := s.to
	if n < len(s.recs) {
		to = s.recs[n-1].Pos
	}
	// Lambda counts one invocation for records that were too old before the first.
	if err := m.giveUp(s.recs[:n], to, AgeExceeded, max(1, attempts), last); err != nil {
		return s, err
	}
	return segment{s.recs[n:], s.to}, nil
}

// giveUp moves the checkpoint past records, with the effect that tells of them.
func (m *mapping) giveUp(recs []stream.Record, to stream.Position, why Condition, attempts int, last error) error {
	l, o := m.l, m.o
	if o.OnFailure == nil {
		reason := fmt.Sprintf("function %s failed %d times: %v", l.f.name, attempts, last)
		if why == AgeExceeded {
			reason = fmt.Sprintf("record is older than %s, the function's maximum age", o.MaxAge)
			if last != nil {
				reason += "; the last attempt said: " + last.Error()
			}
		}
		return l.bury(recs, to, reason)
	}
	first, end := recs[0].Pos, recs[len(recs)-1].Pos
	fail := &Failure{
		ID:       fmt.Sprintf("%s/%s/%d/%s-%s", l.f.name, l.shard, l.slot, first, end),
		Function: l.f.name, Condition: why, Attempts: attempts, Shard: l.shard, Records: recs, Err: last, At: time.Now(),
	}
	var e state.Effect
	for n := 0; ; n++ {
		err := l.protect(func() (err error) {
			e, err = o.OnFailure(fail)
			return err
		})
		if err == nil {
			break
		}
		l.failed(fmt.Errorf("tell of records given up: %w", err))
		if !l.wait(n) {
			return errStopping
		}
	}
	if err := l.pass(to, func(tx state.Tx) error { return tx.Emit(e) }); err != nil {
		return err
	}
	l.lettered(len(recs), recs[len(recs)-1].Time)
	if l.slot == spillSlot {
		l.mu.Lock()
		l.stat.CaughtUp += uint64(len(recs))
		l.mu.Unlock()
	}
	if l.failures > 0 {
		l.givenUp += len(recs)
	}
	return nil
}

// throttled counts a call that did not run.
func (m *mapping) throttled(err *NotRunError) {
	l := m.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if !errors.Is(err.Err, errCircuitOpen) {
		l.stat.Throttles++
	}
	l.stat.Retries++
	l.stat.State = StateRetrying
	l.stat.LastError, l.stat.LastErrorTime = err.Error(), time.Now()
	if l.failures++; l.failures == 1 {
		l.r.cfg.Logger.Warn("function does not run", "function", l.f.name, "shard", l.shard, "lane", l.n, "error", err)
	}
}
