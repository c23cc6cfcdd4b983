package window

import (
	"encoding/binary"
	"math"
	"slices"
	"time"

	"github.com/milepost/milepost/internal/binenc"
)

// MovingPanes is into how many parts a Moving cuts its window: its beginning is exact to a 60th.
const MovingPanes = 60

// The bounds of a Moving's window.
const (
	MinMoving = time.Second
	MaxMoving = 24 * time.Hour
)

// A Moving aggregates the numbers of the last while, at any moment, for rules. The zero Moving is empty. Like a Key it does not depend
// on the order in which the numbers of its window came.
type Moving struct {
	panes []movingPane // by index
}

type movingPane struct {
	index    int64
	n        uint64
	sum      Sum
	min, max float64
}

// MovingFuncs are the functions that a Moving knows.
func MovingFuncs() []Func { return []Func{Avg, SumOf, Min, Max, Count} }

func movingIndex(t, size int64) int64 {
	step := max(size/MovingPanes, 1)
	return floor(t, step) / step
}

// Add counts a number of time t. One older than the window is left out.
func (m *Moving) Add(t int64, x float64, size int64) {
	if !Usable(x) {
		return
	}
	i := movingIndex(t, size)
	n := len(m.panes)
	var p *movingPane
	switch {
	case n > 0 && m.panes[n-1].index == i:
		p = &m.panes[n-1]
	case n > 0 && i <= m.panes[n-1].index-MovingPanes:
		return
	default:
		if n > 0 && i > m.panes[n-1].index {
			old := 0
			for old < n && m.panes[old].index <= i-MovingPanes {
				old++
			}
			m.panes = slices.Delete(m.panes, 0, old)
		}
		at, found := slices.BinarySearchFunc(m.panes, i, func(p movingPane, i int64) int {
			switch {
			case p.index < i:
				return -1
			case p.index > i:
				return 1
			}
			return 0
		})
		if !found {
			m.panes = slices.Insert(m.panes, at, movingPane{index: i})
		}
		p = &m.panes[at]
	}
	if p.n == 0 || x < p.min {
		p.min = x
	}
	if p.n == 0 || x > p.max {
		p.max = x
	}
	p.n++
	p.sum.Add(x)
}

// Value is what the window that ends at now came to. False: no number lies in it.
func (m *Moving) Value(f Func, now, size int64) (float64, bool) {
	to := movingIndex(now, size)
	var n uint64
	var sum Sum
	lo, hi := math.Inf(1), math.Inf(-1)
	for i := len(m.panes) - 1; i >= 0 && m.panes[i].index > to-MovingPanes; i-- {
		p := &m.panes[i]
		if p.index > to {
			continue
		}
		n += p.n
		sum.Merge(p.sum)
		lo, hi = min(lo, p.min), max(hi, p.max)
	}
	switch {
	case n == 0:
		return 0, false
	case f == Count:
		return float64(n), true
	case f == Min:
		return lo, true
	case f == Max:
		return hi, true
	case f == SumOf:
		return sum.Float(), true
	}
	return sum.Float() / float64(n), true
}

// Append encodes a Moving.
func (m *Moving) Append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(m.panes)))
	prev := int64(0)
	for i := range m.panes {
		p := &m.panes[i]
		dst = binary.AppendVarint(dst, p.index-prev)
		prev = p.index
		dst = binary.AppendUvarint(dst, p.n)
		dst = p.sum.Append(dst)
		dst = binenc.AppendFloat(binenc.AppendFloat(dst, p.min), p.max)
	}
	return dst
}

// DecodeMoving reads what Append wrote, and returns what follows it.
func DecodeMoving(b []byte) (Moving, []byte, error) {
	r := newReader(b)
	n := r.Count(19)
	if n > MovingPanes {
		r.Fail()
		n = 0
	}
	var m Moving
	prev := int64(0)
	for i := range n {
		p := movingPane{index: prev + r.Varint(), n: r.Uvarint(), sum: r.sum(), min: r.Float(), max: r.Float()}
		if r.Err != nil || p.n == 0 || (i > 0 && p.index <= prev) {
			r.Fail()
			break
		}
		prev = p.index
		m.panes = append(m.panes, p)
	}
	if r.Err != nil {
		return Moving{}, nil, r.Err
	}
	return m, r.B, nil
}
