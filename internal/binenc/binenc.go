// Package binenc reads and writes the fields that stored state is made of: varints, little-endian words, floats, and text after its length.
//
// A Reader never reads past its bytes and never asks for more memory than they could fill, whatever they say: after the first field that
// makes no sense everything reads as zero and Err is set, so a decoder checks once, at its end. Versions and the order of fields are the
// caller's.
package binenc

import (
	"encoding/binary"
	"math"
)

// A Reader takes fields from the front of B.
type Reader struct {
	B       []byte
	Damaged error // what Err becomes when the bytes make no sense
	Err     error
}

// Fail says that what was read makes no sense.
func (r *Reader) Fail() { r.B, r.Err = nil, r.Damaged }

// Byte reads one byte.
func (r *Reader) Byte() byte {
	if len(r.B) == 0 {
		r.Fail()
		return 0
	}
	c := r.B[0]
	r.B = r.B[1:]
	return c
}

// Uvarint reads what binary.AppendUvarint wrote.
func (r *Reader) Uvarint() uint64 {
	v, n := binary.Uvarint(r.B)
	if n <= 0 {
		r.Fail()
		return 0
	}
	r.B = r.B[n:]
	return v
}

// Varint reads what binary.AppendVarint wrote.
func (r *Reader) Varint() int64 {
	v, n := binary.Varint(r.B)
	if n <= 0 {
		r.Fail()
		return 0
	}
	r.B = r.B[n:]
	return v
}

// Count reads a number of things that take at least each bytes apiece.
func (r *Reader) Count(each int) int {
	n := r.Uvarint()
	if n > uint64(len(r.B)/each) { //nolint:gosec // positive
		r.Fail()
		return 0
	}
	return int(n) //nolint:gosec // bounded by the input
}

// Fixed32 reads a little-endian word.
func (r *Reader) Fixed32() uint32 {
	if len(r.B) < 4 {
		r.Fail()
		return 0
	}
	v := binary.LittleEndian.Uint32(r.B)
	r.B = r.B[4:]
	return v
}

// Fixed64 reads a little-endian double word.
func (r *Reader) Fixed64() uint64 {
	if len(r.B) < 8 {
		r.Fail()
		return 0
	}
	v := binary.LittleEndian.Uint64(r.B)
	r.B = r.B[8:]
	return v
}

// Float reads what AppendFloat wrote.
func (r *Reader) Float() float64 { return math.Float64frombits(r.Fixed64()) }

// Bytes returns a view of the next bytes after their length. What is appended to it does not touch what follows.
func (r *Reader) Bytes() []byte {
	n := r.Count(1)
	v := r.B[:n:n]
	r.B = r.B[n:]
	return v
}

// Text reads what AppendText wrote.
func (r *Reader) Text() string { return string(r.Bytes()) }

// AppendText appends a text's length and the text, which may be bytes.
func AppendText[T ~string | ~[]byte](dst []byte, s T) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// AppendFloat appends a float as a little-endian double word.
func AppendFloat(dst []byte, f float64) []byte {
	return binary.LittleEndian.AppendUint64(dst, math.Float64bits(f))
}
