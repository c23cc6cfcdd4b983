package anomaly

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/milepost/milepost/process/forest"
)

// rcf is an rcf detector's memory of one vehicle.
type rcf struct {
	f     *forest.Forest // nil: the vehicle is not watched, or not yet
	scale []normal       // of each input
	last  []float64      // values of the last bucket, for changes; NaN: unknown
	mean  float64        // of the score, smoothed over about 200 points
	vrc   float64
	v     []float32 // scratch
	// point says that the bucket being judged completed a point, which the forest learns when all is said about it.
	point  bool
	broken bool // nothing was added since the last break: another one would say nothing

	tail  []byte // what was done to the forest since it was last written
	added int    // operations in tail
	grown bool   // tail has changed since the last flush
	begun bool   // it is new: what is stored under its name is another's
	has   bool   // there is a forest, which restore is to bring back
}

// score is what an rcf detector says of a bucket.
type score struct{ value, threshold float64 }

// opBreak and opAdd are what is done to a forest, as the tail keeps it.
const (
	opBreak = 0
	opAdd   = 1 // dimensions × 4 bytes follow
)

func (r *rcf) pause() {
	for i := range r.last {
		r.last[i] = math.NaN()
	}
	if r.f != nil && !r.broken {
		r.f.Break()
		r.broken = true
		r.tail, r.grown = append(r.tail, opBreak), true
		r.added++
	}
}

// step takes the next bucket and tells whether it exceeds.
func (r *rcf) step(d *detector, every int64, means []float64) (s score, known, exceeds bool) {
	minutes := float64(every) / 60_000
	if r.v == nil {
		r.v = make([]float32, len(d.inputs))
	}
	complete := true
	for i, in := range d.inputs {
		x := means[in.signal]
		if in.change {
			was := r.last[i]
			r.last[i] = x
			x = (x - was) / minutes
		}
		if nan(x) {
			complete = false
			continue
		}
		m := &r.scale[i]
		if m.n < float64(d.WarmUp) { // the scale is learnt while warming up and then stays: points of other scales are not alike
			m.learn(x)
		}
		z := (x - m.mean) / max(math.Sqrt(max(0, m.vrc)), 1e-3*math.Abs(m.mean), 1e-6)
		r.v[i] = float32(min(max(z, -50), 50))
	}
	if !complete {
		return s, false, false
	}
	if r.scale[0].n < float64(min(d.WarmUp, 60)) {
		return s, false, false // scales of a few values are not scales yet
	}
	ready, err := r.f.Add(r.v)
	if err != nil {
		return s, false, false
	}
	r.tail = append(r.tail, opAdd)
	for _, x := range r.v {
		b := math.Float32bits(x)
		r.tail = append(r.tail, byte(b), byte(b>>8), byte(b>>16), byte(b>>24))
	}
	r.added++
	r.grown, r.broken = true, false
	if r.point = ready; !ready {
		return s, false, false
	}
	s.value = r.f.Score()
	s.threshold = max(d.MinScore, r.mean+d.Sigmas*math.Sqrt(r.vrc))
	warm := r.f.Learnt() >= uint64(d.WarmUp) //nolint:gosec // positive
	exceeds = warm && s.value >= s.threshold && (len(d.About) == 0 || r.about(d) >= d.Share)
	if r.f.Learnt() >= uint64(d.WarmUp)/2 { //nolint:gosec // positive; the first scores, of small trees, say nothing
		// Anomalies count as the threshold, or one would hide the next.
		x := s.value
		if warm {
			x = min(x, s.threshold)
		}
		if r.mean == 0 {
			r.mean = x
		}
		delta := x - r.mean
		r.mean += delta / 200
		r.vrc += (delta*delta - r.vrc) / 200
	}
	return s, warm, exceeds
}

// learn lets the forest have the point, after it was judged and explained.
func (r *rcf) learn() {
	if r.point {
		r.f.Learn()
		r.point = false
	}
}

// replay does to a forest what a tail says.
func replay(f *forest.Forest, dims int, tail []byte) (n int, err error) {
	v := make([]float32, dims)
	for len(tail) > 0 {
		op := tail[0]
		tail = tail[1:]
		n++
		switch {
		case op == opBreak:
			f.Break()
		case op == opAdd && len(tail) >= 4*dims:
			for i := range v {
				v[i] = math.Float32frombits(uint32(tail[4*i]) | uint32(tail[4*i+1])<<8 | uint32(tail[4*i+2])<<16 | uint32(tail[4*i+3])<<24)
			}
			tail = tail[4*dims:]
			ready, err := f.Add(v)
			if err != nil {
				return n, errCorrupt
			}
			if ready {
				f.Learn()
			}
		default:
			return n, errCorrupt
		}
	}
	return n, nil
}

// shares attributes the current point's score to the inputs, over all observations of its shingle. They add up to 1.
func (r *rcf) shares(d *detector) (high, low []float64) {
	n := len(d.inputs)
	h, l := make([]float64, r.f.Dimensions()), make([]float64, r.f.Dimensions())
	total := r.f.Attribute(h, l)
	high, low = make([]float64, n), make([]float64, n)
	for k := range h {
		high[k%n] += h[k] / total
		low[k%n] += l[k] / total
	}
	return high, low
}

// about is the share of the score that comes from the signals in question being high.
func (r *rcf) about(d *detector) float64 {
	high, _ := r.shares(d)
	sum := 0.0
	for i, in := range d.inputs {
		if slices.Contains(d.About, in.name) {
			sum += high[i]
		}
	}
	return sum
}

// blame names the inputs that have most to do with the current point's score.
func (r *rcf) blame(d *detector) string {
	high, low := r.shares(d)
	type part struct {
		name  string
		share float64
	}
	var parts []part
	for i, in := range d.inputs {
		parts = append(parts, part{in.name + " high", high[i]}, part{in.name + " low", low[i]})
	}
	slices.SortStableFunc(parts, func(a, b part) int { return cmp.Compare(b.share, a.share) })
	var words []string
	for _, p := range parts[:min(3, len(parts))] {
		if p.share >= 0.1 {
			words = append(words, fmt.Sprintf("%s %.0f%%", p.name, p.share*100))
		}
	}
	return strings.Join(words, ", ")
}
