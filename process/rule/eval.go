package rule

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"math/bits"
	"strings"
)

// IncidentID names an incident: the same cause gives the same ID in every run (P4). since is Transition.Incident.
func IncidentID(rule, vehicle string, since int64) string {
	h := sha256.New()
	var n [8]byte
	for _, s := range []string{rule, vehicle} {
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	binary.BigEndian.PutUint64(n[:], uint64(since)) //nolint:gosec // bits, not a quantity
	h.Write(n[:])
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(h.Sum(nil)[:10]))
}

// Eval judges one reading, which v already contains, and appends what changed to out. st has Set.Len elements and belongs to
// the vehicle that b was bound for. Hand in every reading that is heard, late ones and repetitions too: any data ends an
// outage, and a repetition changes nothing. A reading that came late is judged with the newest values of the signals it does not
// carry, even if those are newer than itself. It allocates nothing unless a rule needs cel-go or out must grow.
func (b *Bound) Eval(st []State, v *Values, in Input, out []Transition) []Transition {
	s := b.set
	if len(s.figures.moving) > 0 {
		s.observe(v, &in)
	}
	for w := range s.words {
		var m uint64
		for i := range in.Changed {
			if j := int(in.Changed[i].ID)*s.words + w; j < len(s.bySignal) {
				m |= s.bySignal[j]
			}
		}
		if in.Status {
			m |= s.byStatus[w]
		}
		for m &^= b.disabled[w]; m != 0; m &= m - 1 {
			i := w*64 + bits.TrailingZeros64(m)
			out = b.judge(i, &st[i], v, &in, out)
		}
	}
	for _, i := range s.offline {
		if st[i].Phase == Firing {
			out = b.heard(i, &st[i], in.Arrival, out)
		}
	}
	if b.anyOff {
		out = b.withdraw(st, in, out)
	}
	return out
}

// judge moves one rule of kind condition.
func (b *Bound) judge(i int, st *State, v *Values, in *Input, out []Transition) []Transition {
	if in.Time < st.Last {
		return out // P9: what came in between has been judged
	}
	r := &b.rules[i]
	if st.Phase == Firing {
		return b.judgeFiring(i, st, v, in, out)
	}
	t := r.when.eval(v, in.Time, r.maxAge)
	if t == unknown {
		return out // as if the reading had not come; Last stays, so that a gap is seen
	}
	last := st.Last
	st.Last = in.Time
	if t == no {
		if st.Phase == Pending {
			st.Phase = Idle
		}
		return out
	}
	switch {
	case st.Phase != Pending || in.Time-last > r.gap:
		// Nobody knows what happened in a long gap: begin anew.
		st.Phase, st.Since, st.Readings = Pending, in.Time, 1
		st.Value = r.value(v)
		st.Peak = st.Value
	default:
		if in.Time > last && st.Readings < 2 {
			st.Readings++ // a repetition is not a second reading
		}
		st.peak(r, v)
	}
	if r.hold > 0 && (st.Readings < 2 || in.Time-st.Since < r.hold) {
		return out
	}
	return b.fire(i, st, v, in, out)
}

func (b *Bound) fire(i int, st *State, v *Values, in *Input, out []Transition) []Transition {
	r := &b.rules[i]
	from := st.Phase
	st.reopen(r)
	st.Phase, st.FiredAt, st.ClearSince = Firing, in.Time, 0
	st.Value = r.value(v)
	st.Late = in.Arrival-in.Time > LateAfter.Milliseconds()
	return append(out, b.transition(i, st, from, in.Time, in.Arrival, st.Value, st.Late))
}

// reopen decides whether a new episode continues the last incident.
func (st *State) reopen(r *bound) {
	if st.ResolvedAt != 0 && st.Incident != 0 && r.reopen >= 0 && st.Since-st.ResolvedAt <= r.reopen {
		st.Reopened++
		return
	}
	st.Incident, st.Reopened = st.Since, 0
}

func (b *Bound) judgeFiring(i int, st *State, v *Values, in *Input, out []Transition) []Transition {
	r := &b.rules[i]
	var clear truth
	if r.negate {
		clear = yes - r.when.eval(v, in.Time, r.maxAge)
	} else {
		clear = r.clear.eval(v, in.Time, r.maxAge)
	}
	if clear == unknown {
		return out
	}
	st.Last = in.Time
	st.peak(r, v)
	late := in.Arrival-in.Time > LateAfter.Milliseconds()
	if clear == no {
		st.ClearSince = 0
		if st.Late && !late && (r.negate || r.when.eval(v, in.Time, r.maxAge) == yes) {
			// It began in a backlog and nobody was told, but it is true now.
			st.Late = false
			out = append(out, b.transition(i, st, Firing, in.Time, in.Arrival, r.value(v), false))
		}
		return out
	}
	// A gap does not restart clearing: a parked vehicle reports rarely, and two clear readings with silence between them are
	// the best evidence there will be.
	if st.ClearSince == 0 {
		st.ClearSince = in.Time
	}
	if in.Time-st.ClearSince < r.clearFor {
		return out
	}
	st.Phase, st.ResolvedAt, st.ClearSince = Resolved, in.Time, 0
	return append(out, b.transition(i, st, Firing, in.Time, in.Arrival, r.value(v), late))
}

func (b *Bound) transition(i int, st *State, from Phase, at, arrival int64, value float64, late bool) Transition {
	r := &b.rules[i]
	t := Transition{
		Rule: i, From: from, To: st.Phase, Incident: st.Incident, Since: st.Since, At: at, Arrival: arrival, Value: value, Peak: st.Peak,
		HasValue: r.hasSig || r.silence > 0, Late: late, Reopened: int(st.Reopened),
	}
	switch {
	case r.silence > 0:
		t.Limit, t.HasLimit = float64(r.silence)/60_000, true
	case len(r.limits) > 0:
		_, t.Limit = r.excess(st.Peak)
		t.HasLimit = true
	}
	return t
}

// value is the first signal's newest value, 0 if there is none.
func (r *bound) value(v *Values) float64 {
	if i := int(r.first); r.hasSig && i < len(v.V) && v.V[i] == v.V[i] {
		return v.V[i]
	}
	if r.hasSig && isFigure(r.first) {
		x, _ := v.figure(r.first, v.now)
		return x
	}
	return 0
}

func (st *State) peak(r *bound, v *Values) {
	if !r.hasSig {
		return
	}
	x := r.value(v)
	if x == st.Peak {
		return
	}
	now, _ := r.excess(x)
	if was, _ := r.excess(st.Peak); now > was {
		st.Peak = x
	}
}

// Tick looks for silence. lastArrival is when the vehicle was last heard, 0 if never; since is when this process began to
// listen: our own downtime is nobody's outage. A lane that has a backlog to read must not tick yet, and afterwards since is when
// it had caught up, or everyone is offline who is only waiting in the log. The outcome depends on now only in whether it is time, so an alert has the
// same ID and the same times whenever the clock ticks.
func (b *Bound) Tick(st []State, lastArrival, now, since int64, out []Transition) []Transition {
	if lastArrival == 0 {
		return out
	}
	for _, i := range b.set.offline {
		r, s := &b.rules[i], &st[i]
		if s.Phase == Firing || b.disabled[i/64]&(1<<(i%64)) != 0 {
			continue
		}
		at := max(lastArrival, since) + r.silence
		if now < at {
			continue
		}
		from := s.Phase
		s.Since, s.Last = lastArrival, lastArrival
		s.reopen(r)
		s.Phase, s.FiredAt = Firing, at
		s.Value = float64(at-lastArrival) / 60_000
		s.Peak = s.Value
		out = append(out, b.transition(i, s, from, at, now, s.Value, false))
	}
	return out
}

// heard ends an outage.
func (b *Bound) heard(i int, st *State, arrival int64, out []Transition) []Transition {
	st.Phase, st.Last = Resolved, arrival
	st.ResolvedAt = max(arrival, st.FiredAt)
	st.Peak = max(st.Peak, float64(st.ResolvedAt-st.Since)/60_000)
	return append(out, b.transition(i, st, Firing, st.ResolvedAt, arrival, st.Peak, false))
}

// withdraw ends what fired before the rule was disabled for this vehicle.
func (b *Bound) withdraw(st []State, in Input, out []Transition) []Transition {
	for w, m := range b.disabled {
		for ; m != 0; m &= m - 1 {
			i := w*64 + bits.TrailingZeros64(m)
			s := &st[i]
			if s.Phase == Idle {
				continue
			}
			firing := s.Phase == Firing
			at := max(in.Time, s.FiredAt)
			t := b.transition(i, s, Firing, at, in.Arrival, s.Value, in.Arrival-in.Time > LateAfter.Milliseconds())
			*s = State{}
			if firing {
				t.To, t.Withdrawn = Resolved, true
				out = append(out, t)
			}
		}
	}
	return out
}

// AppendFiring appends the names of the rules that fire to dst, and returns the worst of their severities, "" if none fires.
func (s *Set) AppendFiring(dst []string, st []State) ([]string, string) {
	worst := -1
	for i := range st {
		if st[i].Phase == Firing {
			dst = append(dst, s.specs[i].Name)
			worst = max(worst, Rank(s.specs[i].Severity))
		}
	}
	if worst < 0 {
		return dst, ""
	}
	return dst, severities()[worst]
}

func severities() [3]string { return [3]string{Info, Warning, Critical} }

// Rank orders severities, mildest 0; -1 for what is none.
func Rank(severity string) int {
	for i, s := range severities() {
		if s == severity {
			return i
		}
	}
	return -1
}
