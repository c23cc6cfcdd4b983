package forest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Encoded forests, version 1 (P6). Integers are uvarints unless a size is given, floats little-endian.
//
//	version byte = 1
//	dimensions, numberOfTrees, subSampleSize, shingleSize; timeDecay 8 bytes; seed
//	state of the random numbers 8 bytes; points learnt; age of weight zero 8 bytes; observations that found the store full
//	the store: slots ever used, slots in use; for each of these its number, whether it is a point, its values 4 bytes each, and if
//	it is a point the slots before it
//	the current shingle: its length and slots
//	each tree: the size of its sample; its nodes in preorder (dimension+1 and cut 4 bytes, or a leaf: 0 and slot); and for each point
//	of the sample its weight, 4 bytes, and slot. How often a leaf is in the sample, and the masses, follow from these
//
// Kept boxes are not written: they change nothing but the time that scoring takes.
const version = 1

// ErrCorrupt says that encoded bytes are no forest.
var ErrCorrupt = errors.New("forest: stored state is damaged: let the detector learn anew")

// Encode appends the forest to b.
func (f *Forest) Encode(b []byte) []byte {
	b = append(b, version)
	for _, n := range []int{f.cfg.Dimensions, f.cfg.NumberOfTrees, f.cfg.SubSampleSize, f.cfg.ShingleSize} {
		b = binary.AppendUvarint(b, uint64(n)) //nolint:gosec // positive
	}
	b = binary.LittleEndian.AppendUint64(b, math.Float64bits(f.cfg.TimeDecay))
	b = binary.AppendUvarint(b, f.cfg.Seed)
	b = binary.LittleEndian.AppendUint64(b, uint64(f.random))
	b = binary.AppendUvarint(b, f.seen)
	b = binary.LittleEndian.AppendUint64(b, math.Float64bits(f.base))
	b = binary.AppendUvarint(b, f.full)

	s := &f.store
	b = binary.AppendUvarint(b, uint64(len(s.uses)))
	b = binary.AppendUvarint(b, uint64(len(s.uses)-len(s.free))) //nolint:gosec // free are some of them
	for n := range s.uses {
		if s.uses[n] == 0 {
			continue
		}
		b = binary.AppendUvarint(b, uint64(n))
		point := byte(0)
		if s.trees[n] > 0 {
			point = 1
		}
		b = append(b, point)
		for _, x := range s.values[n*s.dims : (n+1)*s.dims] {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
		}
		if point == 1 {
			for _, e := range s.earlier(slot(n)) { //nolint:gosec // a slot
				b = binary.AppendUvarint(b, uint64(e))
			}
		}
	}
	b = binary.AppendUvarint(b, uint64(len(s.recent)))
	for _, n := range s.recent {
		b = binary.AppendUvarint(b, uint64(n))
	}
	for i := range f.trees {
		t := &f.trees[i]
		b = binary.AppendUvarint(b, uint64(len(t.slots)))
		if t.root != noRef {
			b = t.encode(b, t.root)
		}
		for j, w := range t.weights {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(w))
			b = binary.AppendUvarint(b, uint64(t.slots[j]))
		}
	}
	return b
}

func (t *tree) encode(b []byte, r ref) []byte {
	if t.isLeaf(r) {
		return binary.AppendUvarint(append(b, 0), uint64(t.leaf(r).slot))
	}
	n := t.node(r)
	b = binary.AppendUvarint(b, uint64(n.dim)+1)
	b = binary.LittleEndian.AppendUint32(b, math.Float32bits(n.cut))
	return t.encode(t.encode(b, n.left), n.right)
}

// A reader takes encoded bytes apart. After the first error it reads zeros.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uint(most uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > most {
		r.b, r.bad = nil, true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) fixed(n int) uint64 {
	if len(r.b) < n {
		r.b, r.bad = nil, true
		return 0
	}
	var v uint64
	for i := n - 1; i >= 0; i-- {
		v = v<<8 | uint64(r.b[i])
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) float() float32 {
	x := math.Float32frombits(uint32(r.fixed(4))) //nolint:gosec // four bytes
	r.bad = r.bad || x-x != 0
	return x
}

func (r *reader) double() float64 {
	x := math.Float64frombits(r.fixed(8))
	r.bad = r.bad || x-x != 0
	return x
}

// Decode reads what Encode wrote. cfg is the configuration that is wanted now; if the forest was made with another one it is not
// used, and changed is true: the caller makes a new one.
func Decode(cfg Config, b []byte) (f *Forest, changed bool, err error) {
	if err := cfg.defaults(); err != nil {
		return nil, false, err
	}
	if len(b) == 0 {
		return nil, false, ErrCorrupt
	}
	if b[0] != version {
		return nil, false, fmt.Errorf("forest: stored state has version %d, this program reads %d: run a newer one", b[0], version)
	}
	r := &reader{b: b[1:]}
	was := cfg
	was.Dimensions, was.NumberOfTrees = int(r.uint(MaxDimensions)), int(r.uint(MaxTrees))          //nolint:gosec // bounded
	was.SubSampleSize, was.ShingleSize = int(r.uint(MaxSubSampleSize)), int(r.uint(MaxDimensions)) //nolint:gosec // bounded
	was.TimeDecay = r.double()
	was.Seed = r.uint(math.MaxUint64)
	if r.bad {
		return nil, false, ErrCorrupt
	}
	if was != cfg {
		return nil, true, nil
	}
	if f, err = New(cfg); err != nil {
		return nil, false, err
	}
	f.random = random(r.fixed(8))
	f.seen = r.uint(math.MaxUint64)
	f.base = r.double()
	f.full = r.uint(math.MaxUint64)
	points := f.decodeStore(r)
	for i := range f.trees {
		f.decodeTree(r, &f.trees[i], points)
	}
	if r.bad || len(r.b) > 0 {
		return nil, false, ErrCorrupt
	}
	for n, is := range points {
		if is != (f.store.trees[n] > 0) {
			return nil, false, ErrCorrupt
		}
	}
	s := &f.store
	for n := len(s.uses) - 1; n >= 0; n-- {
		if s.uses[n] == 0 {
			s.free = append(s.free, slot(n)) //nolint:gosec // a slot
		}
	}
	if s.complete() {
		f.at = s.recent[len(s.recent)-1]
		s.read(f.at, f.point)
	}
	return f, false, nil
}

// decodeStore returns which slots are points.
func (f *Forest) decodeStore(r *reader) []bool {
	s := &f.store
	n := int(r.uint(maxSlots))     //nolint:gosec // bounded
	used := int(r.uint(uint64(n))) //nolint:gosec // bounded
	if n > 0 && (r.bad || used*s.dims*4 > len(r.b) || n > 64+4*s.shingle+used*65) {
		r.b, r.bad = nil, true // do not make room for what cannot be there
		return nil
	}
	s.values, s.before = make([]float32, n*s.dims), make([]slot, n*(s.shingle-1))
	s.trees, s.uses, s.free = make([]uint16, n), make([]uint16, n), make([]slot, 0, n)
	points, known := make([]bool, n), make([]bool, n)
	last := uint64(max(n, 1) - 1) //nolint:gosec // positive
	for range used {
		i := r.uint(last)
		if known[i] {
			r.bad = true
		}
		known[i], points[i] = true, r.uint(1) == 1
		for k := range s.dims {
			s.values[int(i)*s.dims+k] = r.float() //nolint:gosec // a slot
		}
		if points[i] {
			for k := range s.shingle - 1 {
				s.before[int(i)*(s.shingle-1)+k] = slot(r.uint(last)) //nolint:gosec // a slot
			}
		}
		if r.bad {
			return points
		}
	}
	for i := range points {
		if points[i] {
			for _, e := range s.earlier(slot(i)) { //nolint:gosec // a slot
				r.bad = r.bad || !known[e]
			}
		}
	}
	for range r.uint(uint64(s.shingle)) { //nolint:gosec // positive
		i := slot(r.uint(last)) //nolint:gosec // a slot
		if r.bad || n == 0 || !known[i] {
			r.bad = true
			return points
		}
		s.recent = append(s.recent, i)
		s.uses[i]++
	}
	if s.complete() {
		copy(s.before[int(s.recent[s.shingle-1])*(s.shingle-1):], s.recent[:s.shingle-1])
	}
	return points
}

func (f *Forest) decodeTree(r *reader, t *tree, points []bool) {
	n := int(r.uint(uint64(f.cfg.SubSampleSize))) //nolint:gosec // bounded
	if n == 0 || r.bad {
		return
	}
	t.root = f.decodeNode(r, t, points)
	for range n {
		w, s := r.float(), slot(r.uint(uint64(len(points)))) //nolint:gosec // bounded
		if r.bad || int(s) >= len(points) || !points[s] {
			r.bad = true
			return
		}
		if i := len(t.weights); i > 0 && t.weights[(i-1)/2] < w {
			r.bad = true // not a heap
		}
		t.weights, t.slots = append(t.weights, w), append(t.slots, s)
		f.store.retain(s)
		// Each point of the sample must be where removing it will look for it.
		f.store.read(s, f.lo)
		lf := t.leaf(f.descend(t, f.lo))
		if lf.slot != s {
			r.bad = true
			return
		}
		lf.count++
	}
	if t.count(t.root) != n {
		r.bad = true
	}
}

// decodeNode takes nodes while there are any, so that it ends whatever the bytes say.
func (f *Forest) decodeNode(r *reader, t *tree, points []bool) ref {
	dim := r.uint(uint64(f.d)) //nolint:gosec // positive
	if r.bad || len(t.freeLeaf) == 0 || dim > 0 && len(t.freeNodes) == 0 {
		r.b, r.bad = nil, true
		return ref(len(t.leaves)) //nolint:gosec // some leaf; the forest is thrown away
	}
	if dim == 0 {
		s := slot(r.uint(uint64(len(points)))) //nolint:gosec // bounded
		l := t.take(s)
		t.leaf(l).count = 0
		return l
	}
	at := t.freeNodes[len(t.freeNodes)-1]
	t.freeNodes = t.freeNodes[:len(t.freeNodes)-1]
	*t.node(at) = node{dim: uint8(dim - 1), cut: r.float()} //nolint:gosec // below MaxDimensions
	left := f.decodeNode(r, t, points)
	right := f.decodeNode(r, t, points)
	t.node(at).left, t.node(at).right = left, right
	return at
}

// count fills in the masses; -1 if a leaf is in no sample.
func (t *tree) count(r ref) int {
	if t.isLeaf(r) {
		if n := int(t.leaf(r).count); n > 0 {
			return n
		}
		return -1
	}
	n := t.node(r)
	a, b := t.count(n.left), t.count(n.right)
	if a < 0 || b < 0 {
		return -1
	}
	n.mass = uint16(a + b) //nolint:gosec // at most MaxSubSampleSize
	return a + b
}
