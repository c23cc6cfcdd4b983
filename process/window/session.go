package window

import "slices"

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
