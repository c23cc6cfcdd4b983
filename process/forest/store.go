package forest

import "slices"

// A slot is a place in the store, of an observation and of the point that it completes.
type slot uint16

const (
	noSlot   = slot(1<<16 - 1)
	maxSlots = 1<<16 - 1
)

// A store keeps observations, once for all trees. A point is its newest observation and the slots of those before it. An
// observation lives as long as a point of some tree or the current shingle needs it.
type store struct {
	dims    int
	shingle int
	values  []float32 // dims for each slot
	before  []slot    // shingle-1 for each slot, oldest first
	trees   []uint16  // how often trees refer to the point
	uses    []uint16  // how many living points, and the current shingle, contain the observation; 0: the slot is free
	free    []slot
	recent  []slot // the current shingle, oldest first
}

func newStore(dims, shingle int) store {
	return store{dims: dims, shingle: shingle, recent: make([]slot, 0, shingle)}
}

func (s *store) complete() bool { return len(s.recent) == s.shingle }

// add stores an observation as the newest of the shingle. It fails if no slot is left.
func (s *store) add(v []float32) (slot, bool) {
	if len(s.free) == 0 && !s.grow() {
		return noSlot, false
	}
	n := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	for i, x := range v {
		s.values[int(n)*s.dims+i] = x + 0 // no negative zero: it equals zero, and its bytes do not
	}
	if len(s.recent) == s.shingle {
		s.unuse(s.recent[0])
		copy(s.recent, s.recent[1:])
		s.recent = s.recent[:s.shingle-1]
	}
	s.recent = append(s.recent, n)
	s.uses[n], s.trees[n] = 1, 0
	if len(s.recent) == s.shingle {
		copy(s.before[int(n)*(s.shingle-1):], s.recent[:s.shingle-1])
	}
	return n, true
}

// grow makes the store a quarter larger.
func (s *store) grow() bool {
	have := len(s.uses)
	most := min(maxSlots, max(4*s.shingle, 64, have+have/4))
	if most == have {
		return false
	}
	s.values = slices.Grow(s.values, most*s.dims-len(s.values))[:most*s.dims]
	s.before = slices.Grow(s.before, most*(s.shingle-1)-len(s.before))[:most*(s.shingle-1)]
	s.trees = slices.Grow(s.trees, most-have)[:most]
	s.uses = slices.Grow(s.uses, most-have)[:most]
	if cap(s.free) < most {
		s.free = append(make([]slot, 0, most), s.free...)
	}
	for n := most - 1; n >= have; n-- {
		s.trees[n], s.uses[n] = 0, 0
		s.free = append(s.free, slot(n)) //nolint:gosec // below maxSlots
	}
	return true
}

func (s *store) restart() {
	for _, n := range s.recent {
		s.unuse(n)
	}
	s.recent = s.recent[:0]
}

func (s *store) earlier(n slot) []slot {
	return s.before[int(n)*(s.shingle-1) : (int(n)+1)*(s.shingle-1)]
}

// retain notes that one more tree has the point.
func (s *store) retain(n slot) {
	if s.trees[n]++; s.trees[n] > 1 {
		return
	}
	s.uses[n]++
	for _, e := range s.earlier(n) {
		s.uses[e]++
	}
}

func (s *store) release(n slot) {
	if s.trees[n]--; s.trees[n] > 0 {
		return
	}
	for _, e := range s.earlier(n) {
		s.unuse(e)
	}
	s.unuse(n)
}

func (s *store) unuse(n slot) {
	if s.uses[n]--; s.uses[n] == 0 {
		s.free = append(s.free, n)
	}
}

// read writes a point to dst.
func (s *store) read(n slot, dst []float32) {
	for i, e := range s.earlier(n) {
		copy(dst[i*s.dims:(i+1)*s.dims], s.values[int(e)*s.dims:])
	}
	copy(dst[(s.shingle-1)*s.dims:], s.values[int(n)*s.dims:(int(n)+1)*s.dims])
}

// equal tells whether a point is x.
func (s *store) equal(n slot, x []float32) bool {
	// The newest observation first: it differs most often.
	if !slices.Equal(s.values[int(n)*s.dims:(int(n)+1)*s.dims], x[(s.shingle-1)*s.dims:]) {
		return false
	}
	for i, e := range s.earlier(n) {
		if !slices.Equal(s.values[int(e)*s.dims:(int(e)+1)*s.dims], x[i*s.dims:(i+1)*s.dims]) {
			return false
		}
	}
	return true
}

// widen makes a box large enough for a point.
func (s *store) widen(n slot, lo, hi []float32) {
	for i, e := range s.earlier(n) {
		widen(lo[i*s.dims:], hi[i*s.dims:], s.values[int(e)*s.dims:(int(e)+1)*s.dims])
	}
	i := s.shingle - 1
	widen(lo[i*s.dims:], hi[i*s.dims:], s.values[int(n)*s.dims:(int(n)+1)*s.dims])
}

func widen(lo, hi, x []float32) {
	lo, hi = lo[:len(x)], hi[:len(x)]
	for i, v := range x {
		// The built-in functions have no branches to mispredict: twice as fast as comparisons here.
		lo[i] = min(lo[i], v)
		hi[i] = max(hi[i], v)
	}
}

func (s *store) bytes() int {
	return 4*cap(s.values) + 2*(cap(s.before)+cap(s.trees)+cap(s.uses)+cap(s.free)+cap(s.recent))
}
