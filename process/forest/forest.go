// Package forest is the Random Cut Forest: it learns what the points of a stream are like and scores how much the next one differs.
//
// The trees are those of Guha, Mishra, Roy and Schrijvers, "Robust Random Cut Forest Based Anomaly Detection on Streams" (ICML
// 2016). Each tree holds a sample of the stream, in which older points fade away exponentially, and is cut at random: a
// dimension in proportion to its range, a value uniform within. Inserting and deleting a point leaves a tree distributed exactly as
// one built from the changed sample. The score is the one of AWS's open implementation: about 1 for a point like the others, below
// for one in their midst, and up to log2(SubSampleSize+1) for one that the first cut sets apart.
//
// A forest is deterministic: the same seed and the same points give the same scores, in one process or with Encode and Decode in
// between. Once its sample is full and has turned over it allocates nothing. It belongs to one goroutine.
//
// Points are kept once for all trees, as 32-bit floats; a shingled point, the last ShingleSize observations in a row, shares its
// observations with its neighbours. Bounding boxes, which would need many times the memory of all else, are kept for a few heavy
// nodes of each tree and made anew from the points below for the others.
package forest

import (
	"errors"
	"fmt"
	"math"
)

// Limits of a Config.
const (
	MaxDimensions    = 256 // Dimensions × ShingleSize
	MaxTrees         = 1000
	MaxSubSampleSize = 4096
)

// Config says what a forest is like. Parameters are named as AWS names them.
type Config struct {
	Dimensions    int     // of one observation
	NumberOfTrees int     // 50 by default
	SubSampleSize int     // points in each tree; 256 by default
	TimeDecay     float64 // how fast older points fade: their weight falls by e after 1/TimeDecay points; 0.1/SubSampleSize by default
	ShingleSize   int     // observations in a row that make one point; 1 by default
	Seed          uint64
	Boxes         int // bounding boxes kept per tree: more memory, less time. 12 by default; negative: none
}

func (c *Config) defaults() error {
	if c.NumberOfTrees == 0 {
		c.NumberOfTrees = 50
	}
	if c.SubSampleSize == 0 {
		c.SubSampleSize = 256
	}
	if c.TimeDecay == 0 {
		c.TimeDecay = 0.1 / float64(c.SubSampleSize)
	}
	if c.ShingleSize == 0 {
		c.ShingleSize = 1
	}
	if c.Boxes == 0 {
		c.Boxes = 12
	}
	c.Boxes = min(max(c.Boxes, 0), c.SubSampleSize-1, 255)
	switch {
	case c.Dimensions < 1 || c.ShingleSize < 1 || c.Dimensions > MaxDimensions || c.ShingleSize > MaxDimensions || c.Dimensions*c.ShingleSize > MaxDimensions:
		return fmt.Errorf("forest: %d dimensions with shingleSize %d: their product must be 1 to %d", c.Dimensions, c.ShingleSize, MaxDimensions)
	case c.NumberOfTrees < 1 || c.NumberOfTrees > MaxTrees:
		return fmt.Errorf("forest: numberOfTrees is %d; it must be 1 to %d", c.NumberOfTrees, MaxTrees)
	case c.SubSampleSize < 2 || c.SubSampleSize > MaxSubSampleSize:
		return fmt.Errorf("forest: subSampleSize is %d; it must be 2 to %d", c.SubSampleSize, MaxSubSampleSize)
	case !(c.TimeDecay > 0 && c.TimeDecay <= 1):
		return fmt.Errorf("forest: timeDecay is %g; it must be above 0 and at most 1", c.TimeDecay)
	}
	return nil
}

// ErrValue says that an observation is not made of finite numbers.
var ErrValue = errors.New("forest: an observation must have the forest's dimensions, each a finite number")

// A Forest is a random cut forest.
type Forest struct {
	cfg    Config
	d      int // dimensions of a point
	store  store
	trees  []tree
	random random
	seen   uint64 // points learnt
	base   float64
	point  []float32 // the current one, oldest observation first
	at     slot      // of its newest observation
	full   uint64    // observations that found the store full

	lo, hi []float32 // a box being made
	path   []ref
	p, s   []float64 // scratch of Attribute
}

// New returns an empty forest.
func New(cfg Config) (*Forest, error) {
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	f := &Forest{cfg: cfg, d: cfg.Dimensions * cfg.ShingleSize, random: random(cfg.Seed)}
	f.store = newStore(cfg.Dimensions, cfg.ShingleSize)
	f.point = make([]float32, f.d)
	f.lo, f.hi = make([]float32, f.d), make([]float32, f.d)
	f.path = make([]ref, 0, cfg.SubSampleSize+1)
	f.trees = make([]tree, cfg.NumberOfTrees)
	for i := range f.trees {
		f.trees[i] = newTree(&f.cfg, f.d)
	}
	return f, nil
}

// Add takes the next observation, which completes the current point. ready is false as long as ShingleSize observations have not
// come.
func (f *Forest) Add(v []float32) (ready bool, err error) {
	if len(v) != f.cfg.Dimensions {
		return false, ErrValue
	}
	for _, x := range v {
		if x-x != 0 { // NaN or infinite
			return false, ErrValue
		}
	}
	s, ok := f.store.add(v)
	if !ok {
		f.full++
		f.store.restart() // which may make room for the next
		return false, nil
	}
	f.at = s
	if !f.store.complete() {
		return false, nil
	}
	f.store.read(s, f.point)
	return true, nil
}

// Break forgets the shingle: the next observation is not the successor of the last one, because there was a gap.
func (f *Forest) Break() { f.store.restart() }

// Learnt returns how many points the forest has learnt.
func (f *Forest) Learnt() uint64 { return f.seen }

// Full returns how many observations were passed over because all of the store's 65,535 places were taken.
func (f *Forest) Full() uint64 { return f.full }

// Dimensions returns the dimensions of a point: those of an observation times ShingleSize, oldest observation first.
func (f *Forest) Dimensions() int { return f.d }

// Score scores the current point against what has been learnt.
func (f *Forest) Score() float64 {
	total := 0.0
	for i := range f.trees {
		total += f.score(&f.trees[i], nil, nil)
	}
	return total / float64(len(f.trees))
}

// Attribute scores the current point and says what each dimension has to do with it: high, what it adds by being above, and low by
// being below what the forest knows. Both have Dimensions elements, and together they add up to the score.
func (f *Forest) Attribute(high, low []float64) float64 {
	if len(high) != f.d || len(low) != f.d {
		panic("forest: bug: attribution of other dimensions")
	}
	clear(high)
	clear(low)
	if f.p == nil {
		f.p, f.s = make([]float64, f.d), make([]float64, f.d)
	}
	total, n := 0.0, float64(len(f.trees))
	for i := range f.trees {
		clear(f.p)
		clear(f.s)
		total += f.score(&f.trees[i], f.p, f.s)
		for j := range high {
			high[j] += f.p[j] / n
			low[j] += f.s[j] / n
		}
	}
	return total / n
}

// Learn offers the current point to each tree's sample. Call it at most once for a point.
func (f *Forest) Learn() {
	if !f.store.complete() {
		return
	}
	age := f.cfg.TimeDecay * float64(f.seen)
	if age-f.base > 64 { // weights are 32-bit floats: keep them small
		for i := range f.trees {
			f.trees[i].rebase(float32(age - f.base))
		}
		f.base = age
	}
	f.seen++
	for i := range f.trees {
		t := &f.trees[i]
		w := float32(math.Log(-math.Log(f.random.float())) - (age - f.base))
		if len(t.weights) == f.cfg.SubSampleSize {
			if w >= t.weights[0] {
				continue
			}
			old := t.pop()
			f.store.read(old, f.lo)
			f.remove(t, f.lo)
			f.store.release(old)
		}
		s := f.insert(t, f.at)
		f.store.retain(s)
		t.push(w, s)
	}
}

// Bytes returns about how much memory the forest holds.
func (f *Forest) Bytes() int {
	n := 4*(len(f.point)+2*f.d) + 2*cap(f.path) + f.store.bytes()
	for i := range f.trees {
		n += f.trees[i].bytes()
	}
	return n
}

// random is splitmix64: one word of state, which Encode keeps.
type random uint64

func (r *random) next() uint64 {
	*r += 0x9e3779b97f4a7c15
	z := uint64(*r)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// float is in (0, 1), both ends excluded.
func (r *random) float() float64 { return (float64(r.next()>>12) + 0.5) / (1 << 52) }
