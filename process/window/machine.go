package window

import (
	"cmp"
	"encoding/binary"
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
	r := reader{b: b}
	if r.byte() != stateVersion {
		r.fail()
	}
	q := d.plan.read(&r, p)
	return q, r.err
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

// addToSession merges a row with the sessions that it is less than a gap away from.
func (d *Def) addToSession(k *Key, row *Row, mark int64) Outcome {
	t := row.Time
	if t+d.gap+d.retain <= mark {
		// It may still belong to a session that is kept.
		if i := d.sessionAt(k, t); i < 0 || d.expiredOpen(&k.open[i], mark) {
			return TooLate
		}
	}
	i := d.sessionAt(k, t)
	if i < 0 {
		if len(k.open) >= MaxOpen && !d.makeRoom(k) {
			return Crowded
		}
		i, _ = slices.BinarySearchFunc(k.open, t, byStart)
		k.open = slices.Insert(k.open, i, d.plan.pane(t))
	}
	s := &k.open[i]
	was := *s
	d.plan.add(s, row)
	if t < s.start {
		s.start = t
		if was.emitted {
			k.want(was.start, withdrawn)
			s.emitted = false
		} else {
			k.forget(was.start)
		}
	}
	s.end = max(s.end, t)
	// It may have closed the pause to the next session. To the one before it cannot: sessionAt finds the first in reach.
	for i+1 < len(k.open) && k.open[i+1].start-k.open[i].end < d.gap {
		o := &k.open[i+1]
		if o.emitted {
			k.want(o.start, withdrawn)
		} else {
			k.forget(o.start)
		}
		d.plan.merge(&k.open[i], o)
		k.open = slices.Delete(k.open, i+1, i+2)
	}
	s = &k.open[i]
	s.dirty = true
	if s.end+d.gap <= k.closed {
		k.want(s.start, late)
		return Late
	}
	if s.emitted { // it was closed, and goes on
		k.want(s.start, late|early)
		return Late
	}
	k.forget(s.start)
	return Counted
}

// sessionAt returns the first session less than a gap away from t, or -1.
func (d *Def) sessionAt(k *Key, t int64) int {
	for i := len(k.open) - 1; i >= 0; i-- {
		s := &k.open[i]
		if t < s.end+d.gap && t > s.start-d.gap && (i == 0 || t >= k.open[i-1].end+d.gap) {
			return i
		}
	}
	return -1
}

// forget takes back that a window was to be told.
func (k *Key) forget(start int64) {
	if k.more == nil {
		return
	}
	k.more.due = slices.DeleteFunc(k.more.due, func(d due) bool { return d.start == start && d.how&withdrawn == 0 })
}

// Flush tells the results that are due and puts panes away. Afterwards the key is to be stored.
func (d *Def) Flush(k *Key, to Sink) error {
	if k.more != nil {
		for _, w := range k.more.due {
			if err := d.tell(k, w, to); err != nil {
				return err
			}
		}
		if err := d.putTouched(k, to); err != nil {
			return err
		}
		k.more = nil
	}
	return d.putAway(k, to)
}

func (d *Def) putTouched(k *Key, to Sink) error {
	var buf []byte
	for i := range k.more.touched {
		q := &k.more.touched[i]
		buf = d.plan.append(append(buf[:0], stateVersion), q)
		if err := to.SetPane(q.start, buf); err != nil {
			return err
		}
		d.keptFrom(k, q.start)
	}
	return nil
}

// keptFrom notes that a pane is in the store.
func (d *Def) keptFrom(k *Key, start int64) {
	if k.gone == never || start-d.every < k.gone {
		k.gone = start - d.every
	}
}

// putAway moves the panes that no open window has into the store, and deletes those that are too old.
func (d *Def) putAway(k *Key, to Sink) error {
	n := 0
	if d.Spec.Type == Session || d.perEvent {
		for n < len(k.open) && d.lastEnd(&k.open[n]) <= k.closed && d.expiredOpen(&k.open[n], d.watermark(k)) {
			n++
		}
		k.drop(n)
		k.put = k.closed
		return nil
	}
	var buf []byte
	for ; n < len(k.open) && k.open[n].start+d.size <= k.closed; n++ {
		q := &k.open[n]
		if d.expired(q.start, d.watermark(k)) {
			continue
		}
		buf = d.plan.append(append(buf[:0], stateVersion), q)
		if err := to.SetPane(q.start, buf); err != nil {
			return err
		}
		d.keptFrom(k, q.start)
	}
	k.drop(n)
	k.put = k.closed
	if k.gone > never {
		if limit := floor(d.watermark(k)-d.retain-d.size, d.every); limit > k.gone {
			if err := to.DeletePanes(k.gone, limit, d.every); err != nil {
				return err
			}
			k.gone = limit
		}
	}
	return nil
}

// expiredOpen tells whether a session or row that is still in memory is too old to matter.
func (d *Def) expiredOpen(p *pane, mark int64) bool {
	if d.perEvent {
		return p.start+d.size+d.retain <= mark
	}
	return p.end+d.gap+d.retain <= mark
}

// PutOpen stores the panes that changed and are still open, for keys whose rows come from several shards: whoever puts the
// parts together reads them from the store. Call it before Flush.
func (d *Def) PutOpen(k *Key, to Sink) error {
	var buf []byte
	for i := range k.open {
		q := &k.open[i]
		if !q.unsaved {
			continue
		}
		q.unsaved = false
		buf = d.plan.append(append(buf[:0], stateVersion), q)
		if err := to.SetPane(q.start, buf); err != nil {
			return err
		}
		d.keptFrom(k, q.start)
	}
	return nil
}

// Finish closes every window of a key that no more rows will come for.
func (d *Def) Finish(k *Key) {
	if len(k.open) > 0 {
		k.closed = max(k.closed, d.closeTo(k, math.MaxInt64/4))
	}
}

// Combine is the result of one window of tumbling or hopping type from the parts that shards have put away: each calls part with
// every stored pane that begins in [start, end) of the window. No rows: nil.
func (d *Def) Combine(start int64, each func(part func(start int64, data []byte) error) error) (*Result, error) {
	sum := d.plan.pane(start)
	err := each(func(at int64, data []byte) error {
		r := reader{b: data}
		if r.byte() != stateVersion {
			r.fail()
		}
		q := d.plan.read(&r, at)
		if r.err == nil && q.rows > 0 {
			d.plan.merge(&sum, &q)
		}
		return r.err
	})
	if err != nil || sum.rows == 0 {
		return nil, err
	}
	r := &Result{Def: d, Start: start, End: start + d.size, Final: true}
	r.fill(d, &sum)
	return r, nil
}

// drop forgets the oldest n panes.
func (k *Key) drop(n int) {
	if n == 0 {
		return
	}
	if n == len(k.open) && cap(k.open) > 4 {
		k.open = nil
		return
	}
	k.open = slices.Delete(k.open, 0, n) // clears what is behind, too
}

// tell makes one result.
func (d *Def) tell(k *Key, w due, to Sink) error {
	r := Result{Def: d, Start: w.start, Late: w.how&late != 0, Final: w.how&^early != 0}
	if d.Spec.Type == Session {
		return d.tellSession(k, w, &r, to)
	}
	r.End = w.start + d.size
	from, below := w.start, r.End
	if d.perEvent { // the window is what lies up to size before the event, itself included
		r.Start, r.End = w.start-d.size, w.start
		from, below = w.start-d.size+1, w.start+1
	}
	sum := d.plan.pane(from)
	if !d.perEvent {
		for p := from; p < below && p+d.size <= k.put; p += d.every {
			var q *pane
			if i, found := slices.BinarySearchFunc(k.more.touched, p, byStart); found {
				q = &k.more.touched[i]
			} else {
				s, err := d.stored(p, to)
				if err != nil {
					return err
				}
				q = &s
			}
			if q.rows > 0 {
				d.plan.merge(&sum, q)
			}
		}
	}
	i, _ := slices.BinarySearchFunc(k.open, from, byStart)
	for ; i < len(k.open) && k.open[i].start < below; i++ {
		d.plan.merge(&sum, &k.open[i])
	}
	if sum.rows == 0 {
		return nil
	}
	r.fill(d, &sum)
	return to.Emit(&r)
}

func (d *Def) tellSession(k *Key, w due, r *Result, to Sink) error {
	i, found := slices.BinarySearchFunc(k.open, w.start, byStart)
	if !found {
		if w.how&withdrawn == 0 {
			return nil
		}
		r.End, r.Withdrawn, r.Final = w.start, true, true
		return to.Emit(r)
	}
	s := &k.open[i]
	r.End = s.end + d.gap
	r.Final = r.End <= k.closed
	r.fill(d, s)
	s.emitted = true
	return to.Emit(r)
}

const stateVersion = 1

// AppendKey encodes a key after Flush:
//
//	version byte = 1
//	max, heard, max-closed, closed-gone    varints (never: the largest distance)
//	panes       uvarint
//	per pane    start-max varint, end-start uvarint, flags byte (1: emitted), and its figures
func (d *Def) AppendKey(dst []byte, k *Key) []byte {
	dst = append(dst, stateVersion)
	dst = binary.AppendVarint(dst, k.max)
	dst = binary.AppendVarint(dst, k.heard)
	dst = appendSince(dst, k.closed, k.max)
	dst = appendSince(dst, k.gone, k.max)
	dst = binary.AppendUvarint(dst, uint64(len(k.open)))
	for i := range k.open {
		p := &k.open[i]
		dst = binary.AppendVarint(dst, p.start-k.max)
		dst = binary.AppendUvarint(dst, uint64(p.end-p.start)) //nolint:gosec // positive
		flags := byte(0)
		if p.emitted {
			flags = 1
		}
		dst = append(dst, flags)
		dst = d.plan.append(dst, p)
	}
	return dst
}

// appendSince encodes a time as its distance to another, or that it is never.
func appendSince(dst []byte, t, base int64) []byte {
	if t == never {
		return append(dst, 0)
	}
	return binary.AppendVarint(append(dst, 1), t-base)
}

func (r *reader) since(base int64) int64 {
	if r.byte() == 0 {
		return never
	}
	return base + r.varint()
}

// DecodeKey reads what AppendKey wrote.
func (d *Def) DecodeKey(b []byte) (Key, error) {
	r := reader{b: b}
	if r.byte() != stateVersion {
		r.fail()
	}
	k := d.NewKey()
	k.max = r.varint()
	k.heard = r.varint()
	k.closed = r.since(k.max)
	k.gone = r.since(k.max)
	k.put = k.closed
	n := r.count(4)
	if n > MaxOpen {
		r.fail()
	}
	for range n {
		start := k.max + r.varint()
		length := r.uvarint()
		flags := r.byte()
		if r.err != nil || length > math.MaxInt64/2 || flags > 1 || (len(k.open) > 0 && k.open[len(k.open)-1].start >= start) {
			r.fail()
			break
		}
		p := d.plan.read(&r, start)
		p.end, p.emitted = start+int64(length), flags == 1 //nolint:gosec // checked
		k.open = append(k.open, p)
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail()
	}
	if r.err != nil {
		return Key{}, r.err
	}
	return k, nil
}
