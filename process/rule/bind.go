package rule

import (
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/milepost/milepost/telemetry"
)

// A Bound is a Set with the overrides of one vehicle applied. It never changes and is safe for concurrent use; vehicles to
// which the same overrides apply share one.
type Bound struct {
	set      *Set
	rules    []bound
	disabled []uint64 // mask of rules that are off
	anyOff   bool
}

type bound struct {
	when, clear program
	negate      bool // clear is when's negation
	hasSig      bool
	first       telemetry.SignalID
	maxAge      int64 // ms, as the following
	hold        int64
	clearFor    int64
	gap         int64
	reopen      int64
	silence     int64
	limits      []limit
	params      []float64
}

// A limit is a threshold of the first signal; above tells that exceeding it makes the condition true.
type limit struct {
	at    float64
	above bool
}

// An override of one rule, in the order in which they apply.
type override struct {
	rule  int
	exact bool
	*Override
}

type cache struct {
	mu sync.Mutex // guards m
	m  map[string]*Bound
}

func isGlob(s string) bool { return strings.ContainsAny(s, `*?[\`) }

func (s *Set) sortOverrides() {
	for i := range s.specs {
		for j := range s.specs[i].Overrides {
			o := &s.specs[i].Overrides[j]
			s.overrides = append(s.overrides, override{rule: i, exact: !isGlob(o.Vehicle), Override: o})
		}
	}
	slices.SortStableFunc(s.overrides, func(a, b override) int {
		switch {
		case a.exact == b.exact:
			return 0
		case b.exact:
			return -1
		}
		return 1
	})
}

// Bind resolves the overrides for a vehicle. Keep the result with the vehicle: Bind compares its ID with every override.
func (s *Set) Bind(vehicle string) *Bound {
	if len(s.overrides) == 0 {
		return s.base
	}
	var match []override
	key := make([]byte, (len(s.overrides)+7)/8)
	for i, o := range s.overrides {
		ok := o.Vehicle == vehicle
		if !ok && !o.exact {
			ok, _ = path.Match(o.Vehicle, vehicle) // Compile has checked the pattern
		}
		if ok {
			match = append(match, o)
			key[i/8] |= 1 << (i % 8)
		}
	}
	if match == nil {
		return s.base
	}
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	b := s.shared.m[string(key)]
	if b == nil {
		b = s.bind(match)
		if s.shared.m == nil {
			s.shared.m = map[string]*Bound{}
		}
		s.shared.m[string(key)] = b
	}
	return b
}

func (s *Set) bind(match []override) *Bound {
	b := &Bound{set: s, rules: make([]bound, len(s.specs)), disabled: make([]uint64, s.words)}
	for i := range s.specs {
		spec, c := &s.specs[i], &s.rules[i]
		hold, silence, off := spec.For, spec.Silence, spec.Disabled
		params := values(c.params, spec.Params, nil)
		for _, o := range match {
			if o.rule != i {
				continue
			}
			for j, p := range c.params {
				if x, ok := o.Params[p]; ok {
					params[j] = x
				}
			}
			deref(&hold, o.For)
			deref(&silence, o.Silence)
			deref(&off, o.Disabled)
		}
		if off {
			b.disabled[i/64] |= 1 << (i % 64)
			b.anyOff = true
		}
		b.rules[i] = bound{
			when: c.when.bind(params, s), clear: c.clear.bind(params, s), negate: c.clear.negate, hasSig: c.hasSig, first: c.first,
			maxAge: spec.MaxAge.Milliseconds(), hold: hold.Milliseconds(), clearFor: spec.ClearFor.Milliseconds(),
			gap: gapOf(spec, hold).Milliseconds(), reopen: reopenMillis(spec.Reopen), silence: silence.Milliseconds(),
			params: params, limits: c.when.bindLimits(params),
		}
	}
	return b
}

func gapOf(spec *Spec, hold time.Duration) time.Duration {
	if spec.Gap > 0 {
		return spec.Gap
	}
	return max(DefaultGap, hold/2)
}

func reopenMillis(d time.Duration) int64 {
	if d < 0 {
		return -1
	}
	return d.Milliseconds()
}

func deref[T any](dst *T, v *T) {
	if v != nil {
		*dst = *v
	}
}

func values(names []string, base, over map[string]float64) []float64 {
	out := make([]float64, len(names))
	for i, n := range names {
		out[i] = base[n]
		if x, ok := over[n]; ok {
			out[i] = x
		}
	}
	return out
}

func (c *condition) bind(params []float64, s *Set) program {
	if c.prog != nil {
		return program{prog: &slow{prog: c.prog, names: c.uses, params: params, faults: s.faults}}
	}
	p := program{code: make([]instr, len(c.code))}
	for i, in := range c.code {
		p.code[i] = in.instr
		if in.fold != nil {
			p.code[i].limit = in.fold.value(params)
		}
	}
	return p
}

func (c *condition) bindLimits(params []float64) []limit {
	out := make([]limit, len(c.limits))
	for i, l := range c.limits {
		out[i] = limit{at: l.fold.value(params), above: l.above}
	}
	return out
}

// excess is how far x is beyond the nearest limit that it exceeds, or how near it comes; and that limit.
func (r *bound) excess(x float64) (float64, float64) {
	if len(r.limits) == 0 {
		return x, 0 // nothing to compare with: larger is worse
	}
	best, at := 0.0, 0.0
	for i, l := range r.limits {
		e := x - l.at
		if !l.above {
			e = -e
		}
		if i == 0 || e > best {
			best, at = e, l.at
		}
	}
	return best, at
}

// Set returns the rules that b binds.
func (b *Bound) Set() *Set { return b.set }
