package window

import (
	"cmp"
	"math"
	"slices"
)

// never is a time before all others that arithmetic does not overflow.
const never = math.MinInt64 / 4

// A Key is what is known of one key of one window. Make it with Def.NewKey or Def.DecodeKey. Its owner is one goroutine.
//
// Panes are the parts that windows are made of: whole windows (tumbling), steps of Every (hopping), sessions, or the rows of one
// millisecond (sliding by event). Those whose windows are all closed are put away into the owner's store, one by one, and
// looked at again only when a late row comes; sessions and rows stay here until they are too old for that.
type Key struct {
	max    int64 // newest event time
	heard  int64 // arrival of the last row
	closed int64 // windows that end here or before are closed
	put    int64 // closed, as of the last Flush: panes whose last window ended by then are put away
	gone   int64 // panes that begin here or before are deleted; never: none was ever put away
	open   []pane
	more   *more // nil most of the time
}

// more is what a key has between two flushes.
type more struct {
	touched []pane // put away before, and changed since
	due     []due  // results to be told at the next Flush, by start
}

type due struct {
	start int64
	how   how
}

type how uint8

const (
	onTime how = 1 << iota
	late
	early
	withdrawn
)

// An Outcome says what became of a row.
type Outcome uint8

// The outcomes.
const (
	Counted Outcome = iota
	Late            // counted, in a window that was closed: it will be told again
	TooLate         // left out
	Crowded         // counted, but the key holds more than MaxOpen panes: the oldest is no longer complete and was told and dropped
)

// Panes reads what was put away of the key in question.
type Panes interface {
	// Pane returns a pane, or nil if there is none. It is valid until the next call.
	Pane(start int64) ([]byte, error)
}

// A Sink takes what a Flush writes.
type Sink interface {
	Panes
	SetPane(start int64, data []byte) error
	// DeletePanes removes the panes with from < start ≤ to; step is the distance between two.
	DeletePanes(from, to, step int64) error
	Emit(r *Result) error
}

// NewKey returns the state of a key that was never seen.
func (d *Def) NewKey() Key { return Key{max: never, closed: never, put: never, gone: never} }

// Max is the key's newest event time.
func (k *Key) Max() int64 { return k.max }

// Heard is when the key's last row arrived, ms.
func (k *Key) Heard() int64 { return k.heard }

// Due is how many results the next Flush has to tell.
func (k *Key) Due() int {
	if k.more == nil {
		return 0
	}
	return len(k.more.due)
}

// Open tells whether a window is open: something will be told of it, if only because of silence.
func (d *Def) Open(k *Key) bool {
	n := len(k.open)
	return n > 0 && d.lastEnd(&k.open[n-1]) > k.closed
}

// lastEnd is when the last window that has the pane closes.
func (d *Def) lastEnd(p *pane) int64 {
	switch {
	case d.Spec.Type == Session:
		return p.end + d.gap
	case d.perEvent:
		return p.start + 1 // the event's own moment belongs to its window
	}
	return p.start + d.size
}

func floor(t, step int64) int64 {
	q := t / step
	if t%step < 0 {
		q--
	}
	return q * step
}

func byStart(p pane, start int64) int { return cmp.Compare(p.start, start) }

func (k *Key) extra() *more {
	if k.more == nil {
		k.more = &more{}
	}
	return k.more
}

// want notes that a window is to be told.
func (k *Key) want(start int64, h how) {
	m := k.extra()
	i, found := slices.BinarySearchFunc(m.due, start, func(d due, s int64) int { return cmp.Compare(d.start, s) })
	if found {
		m.due[i].how |= h
		return
	}
	m.due = slices.Insert(m.due, i, due{start, h})
}

// Advance moves the key's newest event time, for keys whose watermark is not their own.
func (d *Def) Advance(k *Key, newest int64) {
	if newest > k.max {
		k.max = newest
	}
	d.close(k, d.watermark(k))
}

// watermark is how far event time has come. Retention counts from it, never from what silence has closed: a device that sends its
// backlog after a silence is not late because of our guess.
func (d *Def) watermark(k *Key) int64 {
	if k.max == never {
		return never
	}
	return k.max - d.lateness
}

// Add counts a row. arrival is when it came, ms.
func (d *Def) Add(k *Key, row *Row, arrival int64, panes Panes) (Outcome, error) {
	k.heard = max(k.heard, arrival)
	k.max = max(k.max, row.Time)
	mark := d.watermark(k)
	var out Outcome
	var err error
	if d.Spec.Type == Session {
		out = d.addToSession(k, row, mark)
	} else {
		out, err = d.addToPane(k, row, mark, panes)
	}
	if err == nil {
		d.close(k, mark)
	}
	return out, err
}

func (d *Def) addToPane(k *Key, row *Row, mark int64, panes Panes) (Outcome, error) {
	p := row.Time
	if !d.perEvent {
		p = floor(row.Time, d.every)
	}
	if d.expired(p, mark) {
		return TooLate, nil
	}
	out := Counted
	n := len(k.open)
	switch {
	case n > 0 && k.open[n-1].start == p: // most rows
		d.plan.add(&k.open[n-1], row)
	case !d.perEvent && p+d.size <= k.put:
		q, err := d.touched(k, p, panes)
		if err != nil {
			return out, err
		}
		d.plan.add(q, row)
	default:
		i, found := slices.BinarySearchFunc(k.open, p, byStart)
		if !found {
			if d.perEvent && len(k.open) >= MaxOpen {
				if !d.makeRoom(k) {
					return Crowded, nil
				}
				i, _ = slices.BinarySearchFunc(k.open, p, byStart)
			}
			k.open = slices.Insert(k.open, i, d.plan.pane(p))
		}
		d.plan.add(&k.open[i], row)
	}
	if d.reopen(k, p, mark) {
		out = Late
	}
	return out, nil
}

// expired tells whether no window that has the pane is corrected any more.
func (d *Def) expired(p, mark int64) bool {
	return p+d.size+d.retain <= mark
}

// reopen notes the closed windows that have pane p: they are to be told again.
func (d *Def) reopen(k *Key, p, mark int64) bool {
	again := false
	if d.perEvent {
		if p >= k.closed {
			return false
		}
		i, _ := slices.BinarySearchFunc(k.open, p, byStart)
		for ; i < len(k.open) && k.open[i].start < k.closed && k.open[i].start < p+d.size; i++ {
			if k.open[i].start+d.retain >= mark {
				k.want(k.open[i].start, late)
				again = true
			}
		}
		return again
	}
	for s := p - d.size + d.every; s <= p && s+d.size <= k.closed; s += d.every {
		if s+d.size+d.retain > mark {
			k.want(s, late)
			again = true
		}
	}
	return again
}

// touched returns a pane that was put away.
func (d *Def) touched(k *Key, p int64, panes Panes) (*pane, error) {
	m := k.extra()
	i, found := slices.BinarySearchFunc(m.touched, p, byStart)
	if !found {
		q, err := d.stored(p, panes)
		if err != nil {
			return nil, err
		}
		m.touched = slices.Insert(m.touched, i, q)
	}
	return &m.touched[i], nil
}

func (d *Def) stored(p int64, panes Panes) (pane, error) {
	b, err := panes.Pane(p)
	if err != nil || b == nil {
		return d.plan.pane(p), err
	}
	r := newReader(b)
	if r.Byte() != stateVersion {
		r.Fail()
	}
	q := d.plan.read(&r, p)
	return q, r.Err
}

// makeRoom drops the sessions or rows that are too old to matter, before the Flush that would have done it. False: none is.
// Other windows need no bound of their own: they hold no more panes than rows came since the last Flush.
func (d *Def) makeRoom(k *Key) bool {
	n := 0
	for n < len(k.open) && d.expiredOpen(&k.open[n], d.watermark(k)) && !k.wanted(k.open[n].start) {
		n++
	}
	k.drop(n)
	return n > 0
}

func (k *Key) wanted(start int64) bool {
	if k.more == nil {
		return false
	}
	_, found := slices.BinarySearchFunc(k.more.due, start, func(d due, s int64) int { return cmp.Compare(d.start, s) })
	return found
}

// close notes the windows that a watermark closes.
func (d *Def) close(k *Key, mark int64) {
	if mark <= k.closed {
		return
	}
	if len(k.open) > 0 {
		d.closeTo(k, mark)
	}
	k.closed = mark
}

// closeTo notes the windows that end after k.closed and not after mark, and returns the end of the last.
func (d *Def) closeTo(k *Key, mark int64) int64 {
	last := k.closed
	switch {
	case d.Spec.Type == Session:
		for i := range k.open {
			if e := d.lastEnd(&k.open[i]); e > k.closed && e <= mark {
				k.want(k.open[i].start, onTime)
				last = max(last, e)
			}
		}
		return last
	case d.perEvent:
		i, _ := slices.BinarySearchFunc(k.open, k.closed, byStart)
		for ; i < len(k.open) && k.open[i].start < mark; i++ {
			k.want(k.open[i].start, onTime)
			last = k.open[i].start + 1
		}
		return last
	}
	next := k.open[0].start + d.every
	if k.closed > never {
		next = max(next, floor(k.closed, d.every)+d.every)
	}
	for i := range k.open {
		p := k.open[i].start
		if next > mark {
			break
		}
		for next = max(next, p+d.every); next <= mark && next <= p+d.size; next += d.every {
			k.want(next-d.size, onTime)
			last = next
		}
	}
	return last
}

// Tick lets the clock close the windows of a key that is silent: its event time is taken to go on as the clock does. now is the
// clock, since is when this process began to listen, both ms. What closes depends on the clock; what the results say does not:
// rows that come after all are late.
func (d *Def) Tick(k *Key, now, since int64) {
	if d.idle < 0 || !d.Open(k) {
		return
	}
	silence := now - max(k.heard, since)
	if silence < d.idle {
		return
	}
	// Not further than the last window that has rows: a backlog that comes later is not late because of our guess.
	if last := d.closeTo(k, k.max+silence-d.lateness); last > k.closed {
		k.closed = last
	}
}

// Early notes the open windows that have changed since they were last told.
func (d *Def) Early(k *Key) {
	for i := range k.open {
		p := &k.open[i]
		if !p.dirty {
			continue
		}
		p.dirty = false
		switch {
		case d.lastEnd(p) <= k.closed || d.perEvent:
		case d.Spec.Type == Session:
			k.want(p.start, early)
		default:
			for s := p.start; s > p.start-d.size && s+d.size > k.closed; s -= d.every {
				k.want(s, early)
			}
		}
	}
}
