package forest

import "math"

// A ref is a node of a tree: an inner node, or from SubSampleSize on a leaf.
type ref uint16

const noRef = ref(1<<16 - 1)

// heavy is the number of points from which on a node's box is worth keeping.
const heavy = 16

// A node sends points with x[dim] ≤ cut to the left. Kept small: a forest has thousands.
type node struct {
	cut         float32
	left, right ref
	mass        uint16
	dim         uint8
	box         uint8 // 1 + index of its kept box; 0: none
}

// A leaf is a point of the sample, and how often it is in it.
type leaf struct {
	slot  slot
	count uint16
}

// A tree is one random cut tree and its sample.
type tree struct {
	root      ref
	nodes     []node
	leaves    []leaf
	freeNodes []ref
	freeLeaf  []ref
	boxes     []float32 // lo and hi of each kept box
	freeBoxes []uint8
	d         int

	// The sample: a heap with the largest weight, which goes next, on top.
	weights []float32
	slots   []slot
}

func newTree(cfg *Config, d int) tree {
	n := cfg.SubSampleSize
	t := tree{
		root: noRef, nodes: make([]node, n-1), leaves: make([]leaf, n), freeNodes: make([]ref, 0, n-1), freeLeaf: make([]ref, 0, n),
		boxes: make([]float32, cfg.Boxes*2*d), freeBoxes: make([]uint8, 0, cfg.Boxes), d: d, weights: make([]float32, 0, n), slots: make([]slot, 0, n),
	}
	for i := n - 1; i >= 0; i-- {
		t.freeLeaf = append(t.freeLeaf, ref(n+i)) //nolint:gosec // at most 2×MaxSubSampleSize
		if i < n-1 {
			t.freeNodes = append(t.freeNodes, ref(i)) //nolint:gosec // as above
		}
	}
	for i := cfg.Boxes; i > 0; i-- {
		t.freeBoxes = append(t.freeBoxes, uint8(i)) //nolint:gosec // at most 255
	}
	return t
}

func (t *tree) isLeaf(r ref) bool    { return int(r) >= len(t.leaves) }
func (t *tree) leaf(r ref) *leaf     { return &t.leaves[int(r)-len(t.leaves)] }
func (t *tree) node(r ref) *node     { return &t.nodes[r] }
func (t *tree) side(b int) []float32 { return t.boxes[b*t.d : (b+1)*t.d] }

func (t *tree) mass(r ref) uint16 {
	if t.isLeaf(r) {
		return t.leaf(r).count
	}
	return t.node(r).mass
}

// box returns the kept box of a node that has one.
func (t *tree) box(n *node) (lo, hi []float32) {
	return t.side(2*int(n.box) - 2), t.side(2*int(n.box) - 1)
}

func (t *tree) bytes() int {
	return 12*cap(t.nodes) + 4*cap(t.leaves) + 2*(cap(t.freeNodes)+cap(t.freeLeaf)) + 4*cap(t.boxes) + cap(t.freeBoxes) + 4*cap(t.weights) + 2*cap(t.slots)
}

// widen makes a box large enough for all points below a node.
func (f *Forest) widen(t *tree, r ref, lo, hi []float32) {
	for !t.isLeaf(r) {
		n := t.node(r)
		if n.box != 0 {
			l, h := t.box(n)
			for i, v := range l {
				lo[i], hi[i] = min(lo[i], v), max(hi[i], h[i])
			}
			return
		}
		f.widen(t, n.left, lo, hi)
		r = n.right
	}
	f.store.widen(t.leaf(r).slot, lo, hi)
}

// descend fills path with the nodes on x's way, root first, and returns the leaf where it ends.
func (f *Forest) descend(t *tree, x []float32) ref {
	f.path = f.path[:0]
	r := t.root
	for !t.isLeaf(r) {
		f.path = append(f.path, r)
		n := t.node(r)
		if x[n.dim] <= n.cut {
			r = n.left
		} else {
			r = n.right
		}
	}
	return r
}

// up moves the box of a node, of which below is a child, on from the child's box.
func (f *Forest) up(t *tree, n *node, below ref, lo, hi []float32) (l, h []float32) {
	if n.box != 0 {
		return t.box(n)
	}
	if &lo[0] != &f.lo[0] {
		copy(f.lo, lo)
		copy(f.hi, hi)
	}
	other := n.left
	if other == below {
		other = n.right
	}
	f.widen(t, other, f.lo, f.hi)
	if n.mass >= heavy && len(t.freeBoxes) > 0 {
		n.box = t.freeBoxes[len(t.freeBoxes)-1]
		t.freeBoxes = t.freeBoxes[:len(t.freeBoxes)-1]
		l, h = t.box(n)
		copy(l, f.lo)
		copy(h, f.hi)
	}
	return f.lo, f.hi
}

// extent returns the sum of a box's sides and by how much x would lengthen them.
func extent(x, lo, hi []float32) (sides, more float64) {
	lo, hi = lo[:len(x)], hi[:len(x)]
	for i, v := range x {
		l, h := lo[i], hi[i]
		sides += float64(h) - float64(l)
		if v < l {
			more += float64(l) - float64(v)
		} else if v > h {
			more += float64(v) - float64(h)
		}
	}
	return sides, more
}

// score is AWS's: expected over the cut that would set the point apart, 1/(depth+1), less for a point that the tree has; times
// log2(mass+1), so that trees of any size are alike. It goes up from the leaf, and ends as soon as the point lies inside a box.
func (f *Forest) score(t *tree, high, low []float64) float64 {
	if t.root == noRef {
		return 0
	}
	x := f.point
	r := f.descend(t, x)
	depth := float64(len(f.path))
	whole := float64(t.mass(t.root))
	norm := math.Log2(whole + 1)
	lf := t.leaf(r)
	var s float64
	lo, hi := f.lo, f.hi
	f.store.read(lf.slot, lo)
	copy(hi, lo)
	if f.store.equal(lf.slot, x) {
		m := float64(lf.count)
		s = (1 - m/(2*whole)) / (depth + math.Log2(m+1))
		for i := range high { // no dimension more than another
			high[i], low[i] = s/float64(2*f.d), s/float64(2*f.d)
		}
	} else {
		s = 1 / (depth + 1)
		_, more := extent(x, lo, hi)
		blame(x, lo, hi, high, low, s/more)
	}
	for k := len(f.path) - 1; k >= 0; k-- {
		n := t.node(f.path[k])
		lo, hi = f.up(t, n, r, lo, hi)
		r = f.path[k]
		sides, more := extent(x, lo, hi)
		if more == 0 {
			break
		}
		p, here := more/(sides+more), 1/float64(k+1)
		s = p*here + (1-p)*s
		for i := range high {
			high[i] *= 1 - p
			low[i] *= 1 - p
		}
		blame(x, lo, hi, high, low, p*here/more)
	}
	for i := range high {
		high[i] *= norm
		low[i] *= norm
	}
	return s * norm
}

// blame shares a part of the score among the dimensions in which x lies outside the box.
func blame(x, lo, hi []float32, high, low []float64, share float64) {
	for i := range high {
		if x[i] > hi[i] {
			high[i] += share * (float64(x[i]) - float64(hi[i]))
		} else if x[i] < lo[i] {
			low[i] += share * (float64(lo[i]) - float64(x[i]))
		}
	}
}

// insert puts the current point into a tree and returns its slot, or that of an equal point which is there already.
//
// The paper goes down from the root and at each node draws a cut of the box widened by the point: if it sets the point apart from
// all others the point goes there, otherwise the node keeps its cut. The draws are independent, so here they are made on the way
// up, where boxes grow from their children's, and the last that sets the point apart counts. Inside a box none can: that ends it.
func (f *Forest) insert(t *tree, s slot) slot {
	x := f.point
	if t.root == noRef {
		t.root = t.take(s)
		return s
	}
	below := f.descend(t, x)
	lf := t.leaf(below)
	if f.store.equal(lf.slot, x) {
		lf.count++
		for _, r := range f.path {
			t.node(r).mass++
		}
		return lf.slot
	}
	lo, hi := f.lo, f.hi
	f.store.read(lf.slot, lo)
	copy(hi, lo)
	where, r := len(f.path), below
	dim, cut, _ := f.draw(x, lo, hi, true)
	for k := len(f.path) - 1; k >= 0; k-- {
		n := t.node(f.path[k])
		lo, hi = f.up(t, n, r, lo, hi)
		r = f.path[k]
		d, c, apart := f.draw(x, lo, hi, false)
		if d < 0 {
			break
		}
		if apart {
			dim, cut, where, below = d, c, k, r
		}
	}
	at := t.freeNodes[len(t.freeNodes)-1]
	t.freeNodes = t.freeNodes[:len(t.freeNodes)-1]
	n := t.node(at)
	*n = node{cut: cut, dim: uint8(dim), left: below, right: t.take(s), mass: t.mass(below) + 1} //nolint:gosec // below MaxDimensions
	if x[dim] <= cut {
		n.left, n.right = n.right, n.left
	}
	if where == 0 {
		t.root = at
	} else {
		t.relink(f.path[where-1], below, at)
	}
	for _, r := range f.path[:where] {
		n := t.node(r)
		n.mass++
		if n.box != 0 {
			lo, hi := t.box(n)
			widen(lo, hi, x)
		}
	}
	return s
}

// draw draws a cut of a box widened by x. dim is -1 if x lies inside; apart tells whether the cut sets x apart from the box. must
// is for a box of one point, where every cut does.
func (f *Forest) draw(x, lo, hi []float32, must bool) (dim int, cut float32, apart bool) {
	sides, more := extent(x, lo, hi)
	if more == 0 {
		return -1, 0, false
	}
	// Whether it sets apart, and if so which of the widenings is cut: one draw decides both.
	at := f.random.float() * (sides + more)
	if must {
		at = min(at, more)
	}
	if at > more {
		return 0, 0, false
	}
	dim = -1
	for i, v := range x {
		var w float64
		if v < lo[i] {
			w = float64(lo[i]) - float64(v)
		} else if v > hi[i] {
			w = float64(v) - float64(hi[i])
		} else {
			continue
		}
		dim = i
		if at <= w {
			break
		}
		at -= w
	}
	i := dim
	if x[i] < lo[i] { // x[i] ≤ cut < lo[i]
		cut = float32(float64(x[i]) + at)
		return i, max(x[i], min(cut, math.Nextafter32(lo[i], x[i]))), true
	}
	cut = float32(float64(hi[i]) + at) // hi[i] ≤ cut < x[i]
	return i, max(hi[i], min(cut, math.Nextafter32(x[i], hi[i]))), true
}

func (t *tree) take(s slot) ref {
	r := t.freeLeaf[len(t.freeLeaf)-1]
	t.freeLeaf = t.freeLeaf[:len(t.freeLeaf)-1]
	*t.leaf(r) = leaf{s, 1}
	return r
}

func (t *tree) relink(parent, from, to ref) {
	n := t.node(parent)
	if n.left == from {
		n.left = to
	} else {
		n.right = to
	}
}

// remove takes a point of the sample, which x is, out of a tree: its sibling moves up, as in the paper.
func (f *Forest) remove(t *tree, x []float32) {
	r := f.descend(t, x)
	lf := t.leaf(r)
	if lf.count--; lf.count > 0 {
		for _, p := range f.path {
			t.node(p).mass--
		}
		return
	}
	t.freeLeaf = append(t.freeLeaf, r)
	if len(f.path) == 0 {
		t.root = noRef
		return
	}
	last := len(f.path) - 1
	parent := f.path[last]
	n := t.node(parent)
	sibling := n.left
	if sibling == r {
		sibling = n.right
	}
	t.drop(n)
	t.freeNodes = append(t.freeNodes, parent)
	if last == 0 {
		t.root = sibling
	} else {
		t.relink(f.path[last-1], parent, sibling)
	}
	inside := false // once the point lay strictly inside, larger boxes stay
	for k := last - 1; k >= 0; k-- {
		n := t.node(f.path[k])
		n.mass--
		if n.box == 0 {
			continue
		}
		if n.mass < heavy/2 {
			t.drop(n)
			continue
		}
		lo, hi := t.box(n)
		if inside = inside || strictly(x, lo, hi); inside {
			continue
		}
		// x may be f.lo, so the box is made in place.
		for i := range lo {
			lo[i], hi[i] = math.MaxFloat32, -math.MaxFloat32
		}
		f.widen(t, n.left, lo, hi)
		f.widen(t, n.right, lo, hi)
	}
}

func strictly(x, lo, hi []float32) bool {
	for i, v := range x {
		if v <= lo[i] || v >= hi[i] {
			return false
		}
	}
	return true
}

// drop gives a node's kept box back.
func (t *tree) drop(n *node) {
	if n.box != 0 {
		t.freeBoxes = append(t.freeBoxes, n.box)
		n.box = 0
	}
}

func (t *tree) rebase(by float32) {
	for i := range t.weights {
		t.weights[i] += by
	}
}

func (t *tree) push(w float32, s slot) {
	t.weights, t.slots = append(t.weights, w), append(t.slots, s)
	for i := len(t.weights) - 1; i > 0; {
		up := (i - 1) / 2
		if t.weights[up] >= t.weights[i] {
			return
		}
		t.swap(i, up)
		i = up
	}
}

// pop takes the point with the largest weight out of the sample.
func (t *tree) pop() slot {
	top, n := t.slots[0], len(t.slots)-1
	t.swap(0, n)
	t.weights, t.slots = t.weights[:n], t.slots[:n]
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			return top
		}
		if c+1 < n && t.weights[c+1] > t.weights[c] {
			c++
		}
		if t.weights[i] >= t.weights[c] {
			return top
		}
		t.swap(i, c)
		i = c
	}
}

func (t *tree) swap(i, j int) {
	t.weights[i], t.weights[j] = t.weights[j], t.weights[i]
	t.slots[i], t.slots[j] = t.slots[j], t.slots[i]
}
