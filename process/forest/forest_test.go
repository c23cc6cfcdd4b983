package forest

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// check holds a forest to its invariants: cuts, masses, kept boxes, counts of use.
func check(t *testing.T, f *Forest) {
	t.Helper()
	trees, uses := make([]int, len(f.store.uses)), make([]int, len(f.store.uses))
	for _, n := range f.store.recent {
		uses[n]++
	}
	for i := range f.trees {
		tr := &f.trees[i]
		for j, s := range tr.slots {
			trees[s]++
			if j > 0 && tr.weights[(j-1)/2] < tr.weights[j] {
				t.Fatalf("tree %d: sample is no heap at %d", i, j)
			}
		}
		if tr.root == noRef {
			continue
		}
		var walk func(r ref) (lo, hi []float32, mass int)
		walk = func(r ref) (lo, hi []float32, mass int) {
			if tr.isLeaf(r) {
				lo = make([]float32, f.d)
				f.store.read(tr.leaf(r).slot, lo)
				return lo, slices.Clone(lo), int(tr.leaf(r).count)
			}
			n := tr.node(r)
			lo, hi, mass = walk(n.left)
			rlo, rhi, m := walk(n.right)
			if hi[n.dim] > n.cut || rlo[n.dim] <= n.cut {
				t.Fatalf("tree %d: cut %g of dimension %d does not part [%g, %g] and [%g, %g]", i, n.cut, n.dim, lo[n.dim], hi[n.dim], rlo[n.dim], rhi[n.dim])
			}
			widen(lo, hi, rlo)
			widen(lo, hi, rhi)
			if n.box != 0 {
				if l, h := tr.box(n); !slices.Equal(l, lo) || !slices.Equal(h, hi) {
					t.Fatalf("tree %d: kept box is %v %v, points say %v %v", i, l, h, lo, hi)
				}
			}
			if mass += m; mass != int(n.mass) {
				t.Fatalf("tree %d: mass %d, want %d", i, n.mass, mass)
			}
			return lo, hi, mass
		}
		if _, _, mass := walk(tr.root); mass != len(tr.slots) {
			t.Fatalf("tree %d holds %d points, its sample %d", i, mass, len(tr.slots))
		}
	}
	free := 0
	for n := range trees {
		if trees[n] > 0 {
			uses[n]++
			for _, e := range f.store.earlier(slot(n)) {
				uses[e]++
			}
		}
	}
	for n := range trees {
		if trees[n] != int(f.store.trees[n]) || uses[n] != int(f.store.uses[n]) {
			t.Fatalf("slot %d: in %d trees and used %d times, the store says %d and %d", n, trees[n], uses[n], f.store.trees[n], f.store.uses[n])
		}
		if uses[n] == 0 {
			free++
		}
	}
	if free != len(f.store.free) {
		t.Fatalf("%d slots are free, the store says %d", free, len(f.store.free))
	}
}

func add(t testing.TB, f *Forest, v ...float32) bool {
	t.Helper()
	ready, err := f.Add(v)
	if err != nil {
		t.Fatal(err)
	}
	return ready
}

func mustNew(t testing.TB, cfg Config) *Forest {
	t.Helper()
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestInvariantsHold(t *testing.T) {
	for _, cfg := range []Config{
		{Dimensions: 1, NumberOfTrees: 5, SubSampleSize: 2, Seed: 1},
		{Dimensions: 2, NumberOfTrees: 7, SubSampleSize: 32, Seed: 2, TimeDecay: 0.05},
		{Dimensions: 3, NumberOfTrees: 5, SubSampleSize: 64, ShingleSize: 4, Seed: 3, TimeDecay: 0.01, Boxes: 4},
		{Dimensions: 2, NumberOfTrees: 5, SubSampleSize: 128, ShingleSize: 2, Seed: 4, Boxes: 100},
		{Dimensions: 2, NumberOfTrees: 5, SubSampleSize: 128, ShingleSize: 2, Seed: 4, Boxes: -1},
	} {
		f := mustNew(t, cfg)
		rng := rand.New(rand.NewPCG(cfg.Seed, 7))
		v := make([]float32, cfg.Dimensions)
		for i := range 3000 {
			for j := range v {
				v[j] = float32(rng.IntN(12)) // many equal points
				if i%3 == 0 {
					v[j] += rng.Float32()
				}
			}
			if i%500 == 499 {
				f.Break()
			}
			if add(t, f, v...) {
				if s := f.Score(); !(s >= 0 && s <= math.Log2(float64(f.cfg.SubSampleSize)+1)+1e-9) {
					t.Fatalf("score %g", s)
				}
				f.Learn()
			}
			if i%97 == 0 {
				check(t, f)
			}
		}
	}
}

// shape writes a tree over few points as text: which points each cut parts.
func (f *Forest) shape(t *tree, r ref) string {
	if t.isLeaf(r) {
		x := make([]float32, f.d)
		f.store.read(t.leaf(r).slot, x)
		return fmt.Sprint(x[0])
	}
	n := t.node(r)
	a, b := f.shape(t, n.left), f.shape(t, n.right)
	return "(" + min(a, b) + " " + max(a, b) + ")"
}

// built draws a tree by its definition: cut the box of all points, then each part.
func built(rng *rand.Rand, pts [][2]float64) string {
	if len(pts) == 1 {
		return fmt.Sprint(float32(pts[0][0]))
	}
	lo, hi := pts[0], pts[0]
	for _, p := range pts {
		for i := range p {
			lo[i], hi[i] = min(lo[i], p[i]), max(hi[i], p[i])
		}
	}
	at := rng.Float64() * (hi[0] - lo[0] + hi[1] - lo[1])
	dim := 0
	if at > hi[0]-lo[0] {
		at, dim = at-(hi[0]-lo[0]), 1
	}
	var left, right [][2]float64
	for _, p := range pts {
		if p[dim] <= lo[dim]+at {
			left = append(left, p)
		} else {
			right = append(right, p)
		}
	}
	a, b := built(rng, left), built(rng, right)
	return "(" + min(a, b) + " " + max(a, b) + ")"
}

// TestTreesAreDistributedAsBuilt is the paper's theorem: after any inserts and deletes a tree is distributed as one built from what
// is left. Boxes of two points are kept here, so that these are tested too.
func TestTreesAreDistributedAsBuilt(t *testing.T) {
	pts := [][2]float64{{0, 0}, {1, 5}, {2, 1}, {7, 2}, {8, 8}}
	others := [][2]float64{{4, 4}, {-3, 9}, {12, -2}, {7.5, 2}}
	const n = 60_000
	want := map[string]float64{}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 4 * n {
		want[built(rng, pts)]++
	}
	for name, history := range map[string]func(f *Forest, tr *tree, rng *rand.Rand){
		"inserts": func(f *Forest, tr *tree, rng *rand.Rand) {
			for _, i := range rng.Perm(len(pts)) {
				put(f, tr, pts[i])
			}
		},
		"inserts in order": func(f *Forest, tr *tree, _ *rand.Rand) {
			for _, p := range pts {
				put(f, tr, p)
			}
		},
		"inserts and deletes": func(f *Forest, tr *tree, rng *rand.Rand) {
			all := slices.Concat(pts, others)
			for _, i := range rng.Perm(len(all)) {
				put(f, tr, all[i])
			}
			for _, i := range rng.Perm(len(others)) {
				f.remove(tr, []float32{float32(others[i][0]), float32(others[i][1])})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := map[string]float64{}
			f := mustNew(t, Config{Dimensions: 2, NumberOfTrees: 1, SubSampleSize: 16, Seed: 5})
			rng := rand.New(rand.NewPCG(3, 4))
			for range n {
				f.trees[0], f.store = newTree(&f.cfg, f.d), newStore(2, 1)
				history(f, &f.trees[0], rng)
				got[f.shape(&f.trees[0], f.trees[0].root)]++
			}
			chi, df := 0.0, -1.0
			for shape, w := range want {
				if e := w / 4; e >= 20 {
					chi += (got[shape] - e) * (got[shape] - e) / (e * 1.25) // the expectation is itself a count, of four times as many
					df++
				}
			}
			// Wilson and Hilferty: chi²'s cube root is nearly normal.
			z := (math.Cbrt(chi/df) - (1 - 2/(9*df))) / math.Sqrt(2/(9*df))
			t.Logf("%.0f shapes, chi² %.1f, z %.2f", df+1, chi, z)
			if z > 4 || df < 10 {
				t.Errorf("trees are not distributed as built: chi² %.1f over %.0f degrees of freedom, z = %.2f", chi, df, z)
			}
		})
	}
}

func put(f *Forest, tr *tree, p [2]float64) {
	s, _ := f.store.add([]float32{float32(p[0]), float32(p[1])})
	f.store.read(s, f.point)
	f.store.retain(f.insert(tr, s))
}

// TestSampleFadesExponentially: the number of a tree's points of age a must be in proportion to exp(-decay × a).
func TestSampleFadesExponentially(t *testing.T) {
	const decay, n = 0.01, 4000
	f := mustNew(t, Config{Dimensions: 1, NumberOfTrees: 400, SubSampleSize: 20, TimeDecay: decay, Seed: 9})
	for i := range n {
		add(t, f, float32(i))
		f.Learn()
	}
	var by [4]float64 // by age: each 100 points old
	for i := range f.trees {
		for _, s := range f.trees[i].slots {
			if a := (n - 1 - int(f.store.values[s])) / 100; a < len(by) {
				by[a]++
			}
		}
	}
	for a := 1; a < len(by); a++ {
		// A full sample of 20 takes a little less than its share of the newest, as they cannot be in it twice.
		if got, want := by[a]/by[a-1], math.Exp(-decay*100); math.Abs(got-want) > 0.06 {
			t.Errorf("%v of age %d00 for each of age %d00, want %.3f", got, a, a-1, want)
		}
	}
}

// wave is a stream with a rhythm, two dimensions, and some noise.
func wave(i int, rng *rand.Rand) []float32 {
	return []float32{float32(math.Sin(float64(i)/10) + rng.NormFloat64()*0.1), float32(rng.NormFloat64() * 0.1)}
}

func TestAnomaliesStandOut(t *testing.T) {
	f := mustNew(t, Config{Dimensions: 2, ShingleSize: 4, Seed: 1})
	rng := rand.New(rand.NewPCG(1, 1))
	var sum, worst float64
	high, low := make([]float64, 8), make([]float64, 8)
	for i := range 3000 {
		v := wave(i, rng)
		if i == 2500 {
			v[1] -= 3
		}
		ready := add(t, f, v...)
		s := f.Score()
		switch {
		case i == 2500:
			if got := f.Attribute(high, low); math.Abs(got-s) > 1e-9 {
				t.Errorf("attribution says %g, the score is %g", got, s)
			}
			total := 0.0
			for j := range high {
				total += high[j] + low[j]
			}
			if math.Abs(total-s) > 1e-9 {
				t.Errorf("attributions add up to %g, the score is %g", total, s)
			}
			// The newest observation is the last: dimension 7 is its second value, which is too low.
			if low[7] < 0.6*s {
				t.Errorf("the blame is %v high and %v low; want most on low[7]", high, low)
			}
			if s < 2*worst {
				t.Errorf("the anomaly scores %g, normal points up to %g", s, worst)
			}
		case i > 1000 && i < 2500:
			worst, sum = max(worst, s), sum+s
		}
		if ready {
			f.Learn()
		}
	}
	t.Logf("normal points: mean %.2f, worst %.2f", sum/1499, worst)
	if mean := sum / 1499; mean < 0.3 || mean > 1.2 {
		t.Errorf("normal points score %g on average", mean)
	}
}

func TestBoxesChangeNothingButTime(t *testing.T) {
	none, some := mustNew(t, Config{Dimensions: 2, ShingleSize: 3, NumberOfTrees: 10, Seed: 4, Boxes: -1}), mustNew(t, Config{Dimensions: 2, ShingleSize: 3, NumberOfTrees: 10, Seed: 4, Boxes: 50})
	rng := rand.New(rand.NewPCG(2, 2))
	for i := range 2000 {
		v := wave(i, rng)
		add(t, none, v...)
		if !add(t, some, v...) {
			continue
		}
		if a, b := none.Score(), some.Score(); a != b {
			t.Fatalf("point %d scores %v without kept boxes and %v with", i, a, b)
		}
		none.Learn()
		some.Learn()
	}
}

func TestEncodedForestGoesOnAlike(t *testing.T) {
	cfg := Config{Dimensions: 2, ShingleSize: 4, NumberOfTrees: 10, SubSampleSize: 64, TimeDecay: 0.02, Seed: 11}
	f := mustNew(t, cfg)
	rng := rand.New(rand.NewPCG(3, 3))
	for i := range 9000 { // long enough for weights to be rebased
		if i%373 == 0 || i < 6 {
			b := f.Encode(nil)
			g, changed, err := Decode(cfg, b)
			if err != nil || changed {
				t.Fatalf("after %d points: changed %t, %v", i, changed, err)
			}
			check(t, g)
			if again := g.Encode(nil); !bytes.Equal(b, again) {
				t.Fatalf("after %d points: encoded again it differs", i)
			}
			f = compare(t, f, g, i)
		}
		if i%1000 == 999 {
			f.Break()
		}
		if add(t, f, wave(i, rng)...) {
			f.Learn()
		}
	}
	b := f.Encode(nil)
	other := cfg
	other.Seed++
	if g, changed, err := Decode(other, b); g != nil || !changed || err != nil {
		t.Errorf("another seed: got %v, changed %t, %v", g, changed, err)
	}
	for i := range b {
		if _, _, err := Decode(cfg, b[:i]); err == nil {
			if _, changed, _ := Decode(cfg, b[:i]); !changed {
				t.Fatalf("%d of %d bytes decode", i, len(b))
			}
		}
	}
	b[0] = 9
	if _, _, err := Decode(cfg, b); err == nil || errors.Is(err, ErrCorrupt) {
		t.Errorf("a later version: got %v, want an error that says so", err)
	}
}

// compare sends the same points to both and returns the second.
func compare(t *testing.T, f, g *Forest, i int) *Forest {
	t.Helper()
	rng := rand.New(rand.NewPCG(uint64(i), 8))
	for k := range 100 {
		v := wave(i+k, rng)
		a, b := add(t, f, v...), add(t, g, v...)
		if a != b || f.Score() != g.Score() {
			t.Fatalf("after %d points and %d: %t %v, decoded %t %v", i, k, a, f.Score(), b, g.Score())
		}
		f.Learn()
		g.Learn()
	}
	return g
}

func TestRefuses(t *testing.T) {
	bad := []Config{
		{},
		{Dimensions: 200, ShingleSize: 2},
		{Dimensions: 1, ShingleSize: -1},
		{Dimensions: 1, NumberOfTrees: -1},
		{Dimensions: 1, SubSampleSize: 1},
		{Dimensions: 1, SubSampleSize: 1 << 20},
		{Dimensions: 1, TimeDecay: math.NaN()},
		{Dimensions: 1, TimeDecay: -1},
	}
	for _, cfg := range bad {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v: no error", cfg)
		}
	}
	f := mustNew(t, Config{Dimensions: 2})
	for _, v := range [][]float32{{1}, {1, float32(math.NaN())}, {float32(math.Inf(-1)), 1}} {
		if _, err := f.Add(v); !errors.Is(err, ErrValue) {
			t.Errorf("%v: got %v", v, err)
		}
	}
	f.Learn() // nothing to learn yet
	if f.Learnt() != 0 || f.Score() != 0 {
		t.Errorf("an empty forest has learnt %d points and scores %g", f.Learnt(), f.Score())
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	f, rng := steady(t)
	i := 0
	if n := testing.AllocsPerRun(500, func() {
		add(t, f, six(i, rng)...)
		f.Score()
		f.Learn()
		i++
	}) - 1; n > 0 { // the observation that this test makes
		t.Errorf("%v allocations", n)
	}
	check(t, f)
}

func six(i int, rng *rand.Rand) []float32 {
	v := make([]float32, 6)
	for j := range v {
		v[j] = float32(math.Sin(float64(i+7*j)/20) + rng.NormFloat64()*0.2)
	}
	return v
}

// steady is a forest of the default size over six signals and a shingle of eight, after the sample has turned over.
func steady(t testing.TB) (*Forest, *rand.Rand) {
	f := mustNew(t, Config{Dimensions: 6, ShingleSize: 8, Seed: 1})
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 12_000 {
		add(t, f, six(i, rng)...)
		f.Learn()
	}
	return f, rng
}

func BenchmarkForest(b *testing.B) {
	f, rng := steady(b)
	vs := make([][]float32, 4096)
	for i := range vs {
		vs[i] = six(12_000+i, rng)
	}
	b.ReportMetric(0, "ns/op")
	for _, c := range []struct {
		name         string
		score, learn bool
	}{{"score", true, false}, {"learn", false, true}, {"score and learn", true, true}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				add(b, f, vs[i%len(vs)]...)
				if c.score {
					f.Score()
				}
				if c.learn {
					f.Learn()
				}
				i++
			}
			b.ReportMetric(float64(f.Bytes())/1024, "KB/forest")
			b.ReportMetric(float64(len(f.Encode(nil)))/1024, "KB/encoded")
		})
	}
}

// FuzzDecode: damaged bytes give an error or a forest that works.
func FuzzDecode(f *testing.F) {
	cfg := Config{Dimensions: 2, ShingleSize: 2, NumberOfTrees: 2, SubSampleSize: 8, Seed: 1}
	g := mustNew(f, cfg)
	for i := range 40 {
		f.Add(g.Encode(nil))
		if add(f, g, float32(i%7), float32(i%3)) {
			g.Learn()
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		g, _, err := Decode(cfg, b)
		if err != nil || g == nil {
			return
		}
		check(t, g)
		for i := range 30 {
			if add(t, g, float32(i%5), float32(i%4)) {
				g.Score()
				g.Learn()
			}
		}
		check(t, g)
	})
}
