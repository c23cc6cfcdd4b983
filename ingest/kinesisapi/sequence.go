package kinesisapi

import (
	"encoding/binary"
	"math/bits"
	"strconv"

	"github.com/milepost/milepost/stream"
)

const billions = 1e19 // the largest power of ten in 64 bits

// parseHash reads a point of the hash ring in decimal; ok is false beyond 2^128-1.
func parseHash(text string) (h stream.Hash, ok bool) {
	if len(text) == 0 || len(text) > 39 {
		return h, false
	}
	for i := range len(text) {
		c := text[i]
		if c < '0' || c > '9' {
			return h, false
		}
		over, l := bits.Mul64(h.Lo, 10)
		lo, carry := bits.Add64(l, uint64(c-'0'), 0)
		top, l := bits.Mul64(h.Hi, 10)
		hi, c2 := bits.Add64(l, over, carry)
		if top != 0 || c2 != 0 {
			return h, false
		}
		h = stream.Hash{Hi: hi, Lo: lo}
	}
	return h, true
}

// formatHash writes a point of the ring in decimal.
func formatHash(h stream.Hash) string {
	if h.Hi == 0 {
		return strconv.FormatUint(h.Lo, 10)
	}
	q1, r := h.Hi/billions, h.Hi%billions
	q0, low := bits.Div64(r, h.Lo, billions)
	// q1·2^64+q0 < 2^65, so one division more is enough.
	high, middle := bits.Div64(q1, q0, billions)
	b := make([]byte, 0, 39)
	if high > 0 {
		b = strconv.AppendUint(b, high, 10)
		b = append19(b, middle)
	} else {
		b = strconv.AppendUint(b, middle, 10)
	}
	return string(append19(b, low))
}

// slice returns the first point of part i of n equal parts of the ring, each floor(2^128/n) wide.
func slice(i, n int) stream.Hash {
	if i == 0 {
		return stream.Hash{}
	}
	// floor(2^128/n) = floor((2^128-1)/n), unless n divides 2^128; then it is one more.
	d := uint64(n)
	hi, r := ^uint64(0)/d, ^uint64(0)%d
	lo, r := bits.Div64(r, ^uint64(0), d)
	width := stream.Hash{Hi: hi, Lo: lo}
	if r == d-1 {
		width = width.Next()
	}
	top, l := bits.Mul64(width.Lo, uint64(i))
	return stream.Hash{Hi: width.Hi*uint64(i) + top, Lo: l}
}

// appendKeyed appends numbers for tokens.
func appendUint64(b []byte, vs ...uint64) []byte {
	for _, v := range vs {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return b
}

// append19 appends nineteen digits, zeros in front.
func append19(b []byte, v uint64) []byte {
	var d [19]byte
	for i := len(d) - 1; i >= 0; i-- {
		d[i] = byte('0' + v%10)
		v /= 10
	}
	return append(b, d[:]...)
}
