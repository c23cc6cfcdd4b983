package window

import (
	"encoding/binary"
	"math"
	"slices"

	"github.com/DataDog/sketches-go/ddsketch/mapping"
)

// Accuracy of percentiles: relative to the value.
const Accuracy = 0.01

// maxBins bounds a sketch: 1,024 bins of 2 % each span a factor of 8e8 between the largest and the smallest magnitude.
const maxBins = 1024

func newMapping() mapping.IndexMapping {
	m, err := mapping.NewLogarithmicMapping(Accuracy)
	if err != nil {
		panic("window: bug: " + err.Error()) // Accuracy is a constant
	}
	return m
}

// A sketch is a DDSketch: counts of numbers by logarithmic bins, of the library's mapping. The library's own stores allocate a
// kilobyte or a map for the few bins that a vehicle's minute has, and their collapsed state depends on the order of
// arrival; this list of the bins that exist does neither. When there are more than maxBins the smallest are
// merged upwards, so what it holds depends on the numbers alone: percentiles near zero then lose accuracy, high ones do not.
type sketch struct {
	bins []bin // by value, ascending
}

// A bin counts numbers. key orders as the numbers do: negative for negative numbers, 0 for zero.
type bin struct {
	key   int64
	count uint64
}

// keyOf numbers a bin: the library's index moved so far that positive numbers have positive keys.
const keyOffset = 1 << 33

func keyOf(m mapping.IndexMapping, x float64) int64 {
	a := math.Abs(x)
	if a < m.MinIndexableValue() {
		return 0
	}
	k := int64(m.Index(a)) + keyOffset
	if x < 0 {
		return -k
	}
	return k
}

func valueOf(m mapping.IndexMapping, key int64) float64 {
	switch {
	case key == 0:
		return 0
	case key < 0:
		return -m.Value(int(-key - keyOffset))
	}
	return m.Value(int(key - keyOffset))
}

func (s *sketch) add(key int64, count uint64) {
	i, found := slices.BinarySearchFunc(s.bins, key, func(b bin, k int64) int {
		switch {
		case b.key < k:
			return -1
		case b.key > k:
			return 1
		}
		return 0
	})
	switch {
	case found:
		s.bins[i].count += count
	case len(s.bins) < maxBins:
		s.bins = slices.Insert(s.bins, i, bin{key, count})
	case i == 0:
		s.bins[0].count += count
	case i == 1: // the new bin is the lowest but one: it takes the lowest in
		s.bins[0] = bin{key, count + s.bins[0].count}
	default:
		s.bins[1].count += s.bins[0].count
		copy(s.bins, s.bins[1:i])
		s.bins[i-1] = bin{key, count}
	}
}

func (s *sketch) merge(o *sketch) {
	for _, b := range o.bins {
		s.add(b.key, b.count)
	}
}

// quantile returns the number below which a share q of all lies.
func (s *sketch) quantile(m mapping.IndexMapping, q float64) (float64, bool) {
	var n uint64
	for _, b := range s.bins {
		n += b.count
	}
	if n == 0 {
		return 0, false
	}
	rank := uint64(q * float64(n-1))
	for _, b := range s.bins {
		if b.count > rank {
			return valueOf(m, b.key), true
		}
		rank -= b.count
	}
	return valueOf(m, s.bins[len(s.bins)-1].key), true
}

func (s *sketch) append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s.bins)))
	prev := int64(0)
	for _, b := range s.bins {
		dst = binary.AppendVarint(dst, b.key-prev)
		dst = binary.AppendUvarint(dst, b.count)
		prev = b.key
	}
	return dst
}

func (r *reader) sketch() (s sketch) {
	n := r.Count(2)
	if n > maxBins {
		r.Fail()
		return s
	}
	prev := int64(math.MinInt64)
	at := int64(0)
	for range n {
		at += r.Varint()
		if at <= prev || at > 2*keyOffset || at < -2*keyOffset {
			r.Fail()
			return sketch{}
		}
		prev = at
		s.bins = append(s.bins, bin{at, r.Uvarint()})
	}
	return s
}

// maxDistinct is up to how many different values distinct counts exactly. Beyond, it estimates, with an error of about 3 %.
const maxDistinct = 1024

// A set counts different values by the maxDistinct smallest of their hashes. While there are fewer it is exact; beyond, the largest
// hash kept says how densely they lie. What it holds depends on the values alone.
type set struct {
	hashes []uint64 // ascending
}

func (s *set) add(h uint64) {
	n := len(s.hashes)
	if n == maxDistinct && h >= s.hashes[n-1] {
		return
	}
	i, found := slices.BinarySearch(s.hashes, h)
	if found {
		return
	}
	if n == maxDistinct {
		s.hashes = s.hashes[:n-1]
	}
	s.hashes = slices.Insert(s.hashes, i, h)
}

func (s *set) merge(o *set) {
	for _, h := range o.hashes {
		s.add(h)
	}
}

func (s *set) estimate() float64 {
	n := len(s.hashes)
	if n < maxDistinct {
		return float64(n)
	}
	return math.Round(float64(n-1) / (float64(s.hashes[n-1]) / (1 << 63) / 2))
}

func (s *set) append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s.hashes)))
	for _, h := range s.hashes {
		dst = binary.LittleEndian.AppendUint64(dst, h)
	}
	return dst
}

func (r *reader) set() (s set) {
	n := r.Count(8)
	if n > maxDistinct {
		r.Fail()
		return s
	}
	for range n {
		h := r.Fixed64()
		if k := len(s.hashes); k > 0 && s.hashes[k-1] >= h {
			r.Fail()
			return set{}
		}
		s.hashes = append(s.hashes, h)
	}
	return s
}
