package anomaly

import (
	"fmt"
	"math"
	"slices"
)

const (
	maxWindow = 128
	loadBins  = 8
	binWidth  = 15.0 // of the smoothed load: km/h for speed
	smoothing = 4.0  // minutes over which the load is smoothed: an engine's heat follows its load about so slowly
	learnt    = 90   // buckets before anything counts as normal
	forgets   = 28 * 24 * 180.0
	shortest  = 9 // buckets of the short window
)

// normal is what a signal is usually like: mean and variance, of all or of one bin of load.
type normal struct {
	n         float64
	mean, vrc float64
}

// learn moves the normal towards x: a plain average at first, later one that forgets over about four weeks of driving.
func (m *normal) learn(x float64) {
	m.n = min(m.n+1, forgets)
	d := x - m.mean
	m.mean += d / m.n
	m.vrc += (d*(x-m.mean) - m.vrc) / m.n
}

// trend is a trend detector's memory of one vehicle.
type trend struct {
	bins  [loadBins]normal
	rest  normal    // of the residual: its variance says what counts as large
	load  float64   // smoothed
	cusum float64   // of the residual, in standard deviations
	r     []float64 // residuals, the newest last
	at    []int64   // their buckets: there are pauses
	ready bool      // load is known
}

// rising is what a trend detector says when it fires.
type rising struct {
	value, residual, slope, minutes float64
}

// step takes the next bucket, with the gate open for long enough, and tells whether it exceeds.
func (t *trend) step(d *detector, bucket, every int64, value, load float64, scratch []float64) (rising, bool, []float64) {
	minutes := float64(every) / 60_000
	if nan(load) {
		load = 0
	}
	if !t.ready {
		t.load, t.ready = load, true
	}
	t.load += (load - t.load) * min(1, minutes/smoothing)
	bin := min(max(int(t.load/binWidth), 0), loadBins-1)
	m := t.expected(bin)
	known := t.rest.n >= learnt
	x := rising{value: value, residual: value - m}
	sigma := max(0.5, math.Sqrt(max(0, t.rest.vrc)))

	old := 0
	for old < len(t.at) && (t.at[old] <= bucket-d.Window.Milliseconds()/every) {
		old++
	}
	t.r, t.at = append(t.r[:0], t.r[old:]...), append(t.at[:0], t.at[old:]...)
	t.r, t.at = append(t.r, x.residual), append(t.at, bucket)
	if !known {
		t.learn(bin, value, x.residual)
		return x, false, scratch
	}
	t.cusum = min(max(0, t.cusum+x.residual/sigma-0.5), 20)
	x.slope, scratch = theilSen(t.r, t.at, minutes, scratch)
	if n := len(t.r); n > shortest {
		var s float64
		// Fast rises are seen in the short window long before they dominate the long one; noise asks for twice the slope there.
		if s, scratch = theilSen(t.r[n-shortest:], t.at[n-shortest:], minutes, scratch); s >= 2*d.Slope {
			x.slope = max(x.slope, s)
		}
	}
	x.minutes = math.Inf(1)
	if x.slope > 0 {
		x.minutes = max(0, (d.Limit-value)/x.slope)
	}
	far := x.residual >= max(2*sigma, d.Distance)
	soon := x.slope >= d.Slope && x.minutes <= d.Within.Minutes()
	shifted := t.cusum >= 5 && x.residual >= max(3*sigma, 2*d.Distance) && x.slope >= d.Slope/4
	exceeds := far && len(t.r) >= shortest && (soon || shifted)
	if x.residual < 3*sigma && !exceeds { // what is not normal is not learnt as normal
		t.learn(bin, value, x.residual)
	}
	return x, exceeds, scratch
}

// expected is what is normal in a bin, or of all bins if that one is little known.
func (t *trend) expected(bin int) float64 {
	if b := &t.bins[bin]; b.n >= learnt/3 {
		return b.mean
	}
	sum, n := 0.0, 0.0
	for i := range t.bins {
		sum, n = sum+t.bins[i].mean*t.bins[i].n, n+t.bins[i].n
	}
	if n == 0 {
		return math.Inf(1) // nothing is known: no residual is large
	}
	return sum / n
}

func (t *trend) learn(bin int, value, residual float64) {
	t.bins[bin].learn(value)
	if !math.IsInf(residual, 0) {
		t.rest.learn(residual)
	}
}

// pause forgets what must be consecutive: there was a gap, or the gate is closed.
func (t *trend) pause() { t.r, t.at, t.cusum, t.ready = t.r[:0], t.at[:0], 0, false }

// theilSen is the median of the slopes between all pairs, which outliers do not move.
func theilSen(r []float64, at []int64, minutes float64, scratch []float64) (slope float64, kept []float64) {
	s := scratch[:0]
	for i := range r {
		for j := i + 1; j < len(r); j++ {
			if x := (r[j] - r[i]) / (float64(at[j]-at[i]) * minutes); !math.IsInf(x, 0) && !nan(x) {
				s = append(s, x)
			}
		}
	}
	if len(s) == 0 {
		return 0, s
	}
	return quickSelect(s, len(s)/2), s
}

// quickSelect returns the k-th smallest and reorders s.
func quickSelect(s []float64, k int) float64 {
	for len(s) > 12 {
		a, b, c := s[0], s[len(s)/2], s[len(s)-1]
		pivot := max(min(a, b), min(max(a, b), c))
		i, j := 0, len(s)-1
		for i <= j {
			for s[i] < pivot {
				i++
			}
			for s[j] > pivot {
				j--
			}
			if i <= j {
				s[i], s[j] = s[j], s[i]
				i++
				j--
			}
		}
		switch {
		case k <= j:
			s = s[:j+1]
		case k >= i:
			s, k = s[i:], k-i
		default:
			return s[k]
		}
	}
	slices.Sort(s)
	return s[k]
}

func (x *rising) summary(vehicle string, d *detector, unit string) string {
	if unit != "" {
		unit = " " + unit
	}
	s := fmt.Sprintf("%s: %s %.1f%s is %.1f above its normal and rises %.1f a minute", vehicle, d.Signal, x.value, unit, x.residual, x.slope)
	if x.value >= d.Limit {
		return s + fmt.Sprintf("; the limit is %g%s", d.Limit, unit)
	}
	if !math.IsInf(x.minutes, 0) {
		s += fmt.Sprintf("; %g%s in about %.0f min", d.Limit, unit, math.Max(1, x.minutes))
	}
	return s
}
