package window

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// A Sum adds numbers exactly: the same numbers give the same sum, bit for bit, in whatever order they come and however they
// were grouped. It is a fixed-point number of 192 bits in two's complement, 128 before the point and 64 after it. Each number is rounded
// once, on its own, to a multiple of 2^-64 (5e-20); from then on everything is whole-number addition.
type Sum struct{ hi, mid, lo uint64 }

// maxMagnitude bounds what a Sum takes, so that 2^24 of the largest do not overflow it.
const maxMagnitude = 1 << 102 // 5e30

// Usable tells whether a number can be aggregated: NaN, infinities and magnitudes above 5e30 cannot.
func Usable(x float64) bool { return x > -maxMagnitude && x < maxMagnitude }

// Add adds a usable number.
func (s *Sum) Add(x float64) {
	b := math.Float64bits(x)
	e := int(b >> 52 & 0x7ff)
	m := b & (1<<52 - 1)
	if e == 0 {
		return // zero, or so small that it rounds to zero
	}
	m |= 1 << 52
	var lo, mid, hi uint64
	// x is m·2^(e-1075); in units of 2^-64 that is m·2^shift.
	switch shift := e - 1075 + 64; {
	case shift >= 128:
		hi = m << (shift - 128)
	case shift >= 64:
		mid = m << (shift - 64)
		hi = m >> (128 - shift)
	case shift >= 0:
		lo = m << shift
		mid = m >> (64 - shift)
	case shift > -54:
		lo = (m + 1<<(-shift-1)) >> -shift // half away from zero, the same for both signs
	}
	var c uint64
	if b>>63 == 0 {
		s.lo, c = bits.Add64(s.lo, lo, 0)
		s.mid, c = bits.Add64(s.mid, mid, c)
		s.hi += hi + c
		return
	}
	s.lo, c = bits.Sub64(s.lo, lo, 0)
	s.mid, c = bits.Sub64(s.mid, mid, c)
	s.hi -= hi + c
}

// Merge adds another sum.
func (s *Sum) Merge(o Sum) {
	var c uint64
	s.lo, c = bits.Add64(s.lo, o.lo, 0)
	s.mid, c = bits.Add64(s.mid, o.mid, c)
	s.hi += o.hi + c
}

// Float returns the sum rounded once, to the nearest float64.
func (s *Sum) Float() float64 {
	hi, mid, lo := s.hi, s.mid, s.lo
	neg := hi>>63 != 0
	if neg {
		var c uint64
		lo, c = bits.Sub64(0, lo, 0)
		mid, c = bits.Sub64(0, mid, c)
		hi, _ = bits.Sub64(0, hi, c)
	}
	// The top 64 bits, and one that says whether anything follows: conversion then rounds as if it saw all of them.
	exp := 64
	for ; hi == 0 && exp > -64; exp -= 64 {
		hi, mid, lo = mid, lo, 0
	}
	if hi == 0 {
		return 0
	}
	if n := bits.LeadingZeros64(hi); n > 0 {
		hi = hi<<n | mid>>(64-n)
		mid = mid<<n | lo>>(64-n)
		lo <<= n
		exp -= n
	}
	if mid|lo != 0 {
		hi |= 1
	}
	f := math.Ldexp(float64(hi), exp)
	if neg {
		return -f
	}
	return f
}

// Append encodes the sum: 1 to 3 words, as few as its sign allows from the top, with their number in front; trailing zero
// bytes of the fraction are left out.
func (s *Sum) Append(dst []byte) []byte {
	zeros := bits.TrailingZeros64(s.lo) / 8
	words := byte(2)
	switch {
	case s.hi == uint64(int64(s.mid)>>63): //nolint:gosec // sign extension
		words = 1
	}
	dst = append(dst, words<<4|byte(zeros))
	for i := zeros; i < 8; i++ {
		dst = append(dst, byte(s.lo>>(8*i)))
	}
	dst = binary.AppendVarint(dst, int64(s.mid)) //nolint:gosec // bits
	if words == 2 {
		dst = binary.LittleEndian.AppendUint64(dst, s.hi)
	}
	return dst
}

func (r *reader) sum() (s Sum) {
	h := r.Byte()
	words, zeros := h>>4, int(h&15)
	if words < 1 || words > 2 || zeros > 8 {
		r.Fail()
		return s
	}
	for i := zeros; i < 8; i++ {
		s.lo |= uint64(r.Byte()) << (8 * i)
	}
	s.mid = uint64(r.Varint())        //nolint:gosec // bits
	s.hi = uint64(int64(s.mid) >> 63) //nolint:gosec // sign extension
	if words == 2 {
		s.hi = r.Fixed64()
	}
	return s
}
