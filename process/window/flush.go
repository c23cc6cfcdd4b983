package window

import (
	"encoding/binary"
	"math"
	"slices"
)

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
		r := newReader(data)
		if r.Byte() != stateVersion {
			r.Fail()
		}
		q := d.plan.read(&r, at)
		if r.Err == nil && q.rows > 0 {
			d.plan.merge(&sum, &q)
		}
		return r.Err
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
	if r.Byte() == 0 {
		return never
	}
	return base + r.Varint()
}

// DecodeKey reads what AppendKey wrote.
func (d *Def) DecodeKey(b []byte) (Key, error) {
	r := newReader(b)
	if r.Byte() != stateVersion {
		r.Fail()
	}
	k := d.NewKey()
	k.max = r.Varint()
	k.heard = r.Varint()
	k.closed = r.since(k.max)
	k.gone = r.since(k.max)
	k.put = k.closed
	n := r.Count(4)
	if n > MaxOpen {
		r.Fail()
	}
	for range n {
		start := k.max + r.Varint()
		length := r.Uvarint()
		flags := r.Byte()
		if r.Err != nil || length > math.MaxInt64/2 || flags > 1 || (len(k.open) > 0 && k.open[len(k.open)-1].start >= start) {
			r.Fail()
			break
		}
		p := d.plan.read(&r, start)
		p.end, p.emitted = start+int64(length), flags == 1 //nolint:gosec // checked
		k.open = append(k.open, p)
	}
	if r.Err == nil && len(r.B) > 0 {
		r.Fail()
	}
	if r.Err != nil {
		return Key{}, r.Err
	}
	return k, nil
}
