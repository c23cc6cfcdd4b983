package anomaly

import (
	"fmt"
	"maps"
	"math"
	"math/bits"
	"slices"
	"time"

	"github.com/milepost/milepost/process/forest"
	"github.com/milepost/milepost/process/rule"
	"github.com/milepost/milepost/telemetry"
)

// shortStop is how long the gate may be closed without detectors having to settle again.
const shortStop = 3 * time.Minute

func sortedKeys(m map[string]float64) []string { return slices.Sorted(maps.Keys(m)) }

// A Finding is a step in the life of an alert: what alert.Apply wants.
type Finding struct {
	Transition rule.Transition
	Summary    string // with the explanation; empty when it ends
}

// A Score is what an rcf detector said of one bucket.
type Score struct {
	Detector  string  `json:"detector"`
	Vehicle   string  `json:"vehicle_id"`
	Time      int64   `json:"ts"` // event time, Unix ms
	Score     float64 `json:"score"`
	Threshold float64 `json:"threshold"`
	Exceeds   bool    `json:"exceeds"`
}

// A Watch watches one vehicle. It belongs to one goroutine.
type Watch struct {
	plan    *Plan
	vehicle string
	bound   *rule.Bound
	rules   []rule.State
	values  rule.Values

	last    int64 // newest reading's event time
	arrival int64 // and its arrival
	bucket  int64 // the one being filled: its number
	before  int64 // the last one that was judged
	sum     []float64
	count   []int32
	held    []float64 // the last mean of each signal, while it is young enough
	heldAt  []int64   // its bucket
	lat     float64
	lon     float64
	placed  bool

	each []memory // of each detector

	means   []float64
	scratch []float64
	changed []telemetry.Signal
	trans   []rule.Transition

	// Forests is asked whether there is memory for one more forest; nil: there is.
	Forests func() bool
	// Scored is told what rcf detectors say once they are warm; nil: nobody.
	Scored func(Score)
}

// memory is a detector's of one vehicle.
type memory struct {
	watched bool
	votes   uint8 // the last evaluations, the newest in bit 0
	opened  int64 // since when the gate has been open but for short stops, event time; 0: it is closed
	closed  int64 // since when it is closed; 0: it is open
	trend   *trend
	rcf     *rcf

	said  rising // of the bucket being judged, for the explanation
	score score
}

// NewWatch begins to watch a vehicle.
func NewWatch(p *Plan, vehicle string) *Watch {
	n := len(p.signals)
	w := &Watch{
		plan: p, vehicle: vehicle, bound: p.set.Bind(vehicle), rules: make([]rule.State, p.set.Len()),
		sum: make([]float64, n), count: make([]int32, n), held: make([]float64, n), heldAt: make([]int64, n), means: make([]float64, n),
		values: rule.Values{V: make([]float64, p.values), T: make([]int64, p.values)}, each: make([]memory, len(p.detectors)),
	}
	for i := range p.detectors {
		d, m := &p.detectors[i], &w.each[i]
		if m.watched = d.matches(vehicle); !m.watched {
			continue
		}
		if d.Kind == Trend {
			m.trend = &trend{}
			continue
		}
		m.rcf = &rcf{scale: make([]normal, len(d.inputs)), last: make([]float64, len(d.inputs))}
		for k := range m.rcf.last {
			m.rcf.last[k] = math.NaN()
		}
	}
	return w
}

// watched tells whether any detector is interested in the vehicle.
func (w *Watch) watched() bool {
	return slices.ContainsFunc(w.each, func(m memory) bool { return m.watched })
}

// forestConfig is a detector's for one vehicle: no two vehicles have the same trees.
func (d *detector) forestConfig(vehicle string) forest.Config {
	cfg := d.forest
	h := cfg.Seed ^ 14695981039346656037
	for _, b := range []byte(vehicle) {
		h = (h ^ uint64(b)) * 1099511628211
	}
	cfg.Seed = h
	return cfg
}

func newForest(d *detector, vehicle string) (*forest.Forest, error) {
	return forest.New(d.forestConfig(vehicle))
}

// Observe takes the vehicle's next reading and appends what it finds. Readings that are not newer than the last are passed over:
// fresh is false.
func (w *Watch) Observe(rd *telemetry.Reading, out []Finding) (found []Finding, fresh bool, err error) {
	if rd.Time <= w.last {
		return out, false, nil
	}
	b := rd.Time / w.plan.every
	if b != w.bucket && w.bucket != 0 {
		if out, err = w.close(out); err != nil {
			return out, false, err
		}
	}
	w.bucket, w.last, w.arrival = b, rd.Time, rd.Arrival
	if rd.HasPosition() {
		w.lat, w.lon, w.placed = rd.Lat, rd.Lon, true
	}
	for i, id := range w.plan.signals {
		if x, ok := rd.Signal(id); ok && x-x == 0 {
			w.sum[i] += x
			w.count[i]++
		}
	}
	return out, true, nil
}

// close judges the bucket that is full.
func (w *Watch) close(out []Finding) ([]Finding, error) {
	p := w.plan
	for i := range w.sum {
		switch {
		case w.count[i] > 0:
			w.means[i] = w.sum[i] / float64(w.count[i])
			w.held[i], w.heldAt[i] = w.means[i], w.bucket
		case w.heldAt[i] != 0 && w.bucket-w.heldAt[i] <= 2: // sent on change, or a bucket missed
			w.means[i] = w.held[i]
		default:
			w.means[i] = math.NaN()
		}
		w.sum[i], w.count[i] = 0, 0
	}
	gap := w.before != 0 && w.bucket-w.before > 3
	w.before = w.bucket
	w.changed = w.changed[:0]
	for i := range p.detectors {
		m := &w.each[i]
		if !m.watched {
			continue
		}
		if err := w.judge(&p.detectors[i], m, gap); err != nil {
			return out, err
		}
	}
	w.trans = w.bound.Eval(w.rules, &w.values, rule.Input{Time: w.last, Arrival: w.arrival, Changed: w.changed}, w.trans[:0])
	for _, t := range w.trans {
		f := Finding{Transition: t}
		if t.To == rule.Firing {
			f.Summary = w.explain(t.Rule)
		}
		out = append(out, f)
	}
	for i := range w.each {
		if r := w.each[i].rcf; r != nil {
			r.learn()
		}
	}
	return out, nil
}

// judge lets one detector see the bucket.
func (w *Watch) judge(d *detector, m *memory, gap bool) error {
	open := true
	for _, g := range d.gate {
		open = open && w.means[g.signal] >= g.least // unknown is closed
	}
	// A delivery van stops its engine at each door. A short stop does not cool the engine and is no reason to begin anew.
	brief := false
	switch {
	case open && m.opened == 0:
		m.opened = w.last
	case !open && m.closed == 0:
		m.closed = w.last
	}
	if m.closed != 0 {
		if brief = w.last-m.closed <= shortStop.Milliseconds(); !brief {
			m.opened = 0
			if open {
				m.opened = w.last
			}
		}
		if open {
			m.closed = 0
		}
	}
	settled := m.opened != 0 && w.last-m.opened >= d.Settle.Milliseconds()
	if !settled || gap && m.rcf != nil || !open && (m.rcf != nil || !brief) {
		m.pause()
	}
	value, exceeds := 0.0, false
	if open && settled {
		if m.trend != nil {
			m.said, exceeds, w.scratch = m.trend.step(d, w.bucket, w.plan.every, w.means[d.signal], w.means[d.load], w.scratch)
			value = max(0, m.said.residual)
			if nan(value) || math.IsInf(value, 0) {
				value = 0
			}
		} else {
			if m.rcf.f == nil {
				if w.Forests != nil && !w.Forests() {
					return nil
				}
				f, err := newForest(d, w.vehicle)
				if err != nil {
					return err
				}
				m.rcf.f, m.rcf.begun = f, true
			}
			var known bool
			m.score, known, exceeds = m.rcf.step(d, w.plan.every, w.means)
			value = m.score.value
			if known && w.Scored != nil {
				w.Scored(Score{d.Name, w.vehicle, w.last, value, m.score.threshold, exceeds})
			}
		}
	}
	if !open && brief && m.trend != nil {
		return nil // nothing is known of a short stop: the votes stand
	}
	m.votes <<= 1
	if exceeds {
		m.votes |= 1
	}
	w.set(d.score, value)
	w.set(d.votes, float64(bits.OnesCount8(m.votes&(1<<d.Of-1))))
	return nil
}

func (m *memory) pause() {
	if m.trend != nil {
		m.trend.pause()
	} else {
		m.rcf.pause()
	}
}

func (w *Watch) set(id telemetry.SignalID, v float64) {
	w.values.V[id], w.values.T[id] = v, w.last
	w.changed = append(w.changed, telemetry.Signal{ID: id, Value: v})
}

// explain says why a detector fires.
func (w *Watch) explain(i int) string {
	d, m := &w.plan.detectors[i], &w.each[i]
	if d.Kind == Trend {
		return m.said.summary(w.vehicle, d, w.plan.units[d.signal])
	}
	s := fmt.Sprintf("%s: unusual", w.vehicle)
	if b := m.rcf.blame(d); b != "" {
		s += " " + b
	}
	return s + fmt.Sprintf(" (score %.2f, threshold %.2f)", m.score.value, m.score.threshold)
}
