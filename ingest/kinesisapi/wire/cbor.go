package wire

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"
	"unicode/utf8"
)

// Major types of CBOR, in the upper three bits of an item's first byte.
const (
	cborUint  = 0
	cborNeg   = 1
	cborBytes = 2
	cborText  = 3
	cborArray = 4
	cborMap   = 5
	cborTag   = 6
	cborOther = 7

	cborFalse     = 0xf4
	cborTrue      = 0xf5
	cborNull      = 0xf6
	cborUndefined = 0xf7
	cborFloat16   = 0xf9
	cborFloat32   = 0xfa
	cborFloat64   = 0xfb
	cborBreak     = 0xff

	indefinite = -1
)

// A CBORReader reads a CBOR body: definite and indefinite lengths, chunked strings, and tags, of which it heeds none but
// the one of timestamps.
type CBORReader struct {
	b     []byte
	i     int
	depth int
	left  [MaxDepth]int // items to come in the container at this depth; indefinite
	inMap [MaxDepth]bool
}

func (r *CBORReader) bad(what string) error {
	return fmt.Errorf("%w: %s at byte %d", ErrSyntax, what, r.i)
}

// skipTags passes the tags before a value. Malformed ones are left for the value's reader to refuse.
func (r *CBORReader) skipTags() {
	for r.i < len(r.b) && r.b[r.i]>>5 == cborTag {
		at := r.i
		if _, _, err := r.head(); err != nil {
			r.i = at
			return
		}
	}
}

// head reads an item's first byte and its argument; indefinite for indefinite lengths.
func (r *CBORReader) head() (major byte, arg int64, err error) {
	if r.i >= len(r.b) {
		return 0, 0, r.bad("body ends early")
	}
	c := r.b[r.i]
	major, info := c>>5, c&31
	n := 0
	switch {
	case info < 24:
		r.i++
		return major, int64(info), nil
	case info <= 27:
		n = 1 << (info - 24)
	case info == 31 && major >= cborBytes && major <= cborMap:
		r.i++
		return major, indefinite, nil
	default:
		return 0, 0, r.bad("reserved length")
	}
	if len(r.b)-r.i < 1+n {
		return 0, 0, r.bad("body ends early")
	}
	p := r.b[r.i+1:]
	var v uint64
	switch n {
	case 1:
		v = uint64(p[0])
	case 2:
		v = uint64(binary.BigEndian.Uint16(p))
	case 4:
		v = uint64(binary.BigEndian.Uint32(p))
	default:
		v = binary.BigEndian.Uint64(p)
	}
	if v > math.MaxInt64 {
		return 0, 0, r.bad("number is out of range")
	}
	r.i += 1 + n
	return major, int64(v), nil
}

// Kind implements Reader.
func (r *CBORReader) Kind() Kind {
	r.skipTags()
	if r.i >= len(r.b) {
		return Invalid
	}
	switch c := r.b[r.i]; c >> 5 {
	case cborUint, cborNeg:
		return Number
	case cborBytes:
		return Bytes
	case cborText:
		return String
	case cborArray:
		return List
	case cborMap:
		return Map
	default:
		switch c {
		case cborTrue, cborFalse:
			return Bool
		case cborNull, cborUndefined:
			return Null
		case cborFloat16, cborFloat32, cborFloat64:
			return Number
		}
	}
	return Invalid
}

// Bool implements Reader.
func (r *CBORReader) Bool() (bool, error) {
	if r.Kind() != Bool {
		return false, r.bad("expected true or false")
	}
	r.i++
	return r.b[r.i-1] == cborTrue, nil
}

// number reads an integer or a float; isFloat tells which result counts.
func (r *CBORReader) number() (n int64, f float64, isFloat bool, err error) {
	r.skipTags()
	if r.i >= len(r.b) {
		return 0, 0, false, r.bad("body ends early")
	}
	if c := r.b[r.i]; c>>5 == cborOther {
		p := r.b[r.i+1:]
		switch {
		case c == cborFloat16 && len(p) >= 2:
			r.i += 3
			return 0, half(binary.BigEndian.Uint16(p)), true, nil
		case c == cborFloat32 && len(p) >= 4:
			r.i += 5
			return 0, float64(math.Float32frombits(binary.BigEndian.Uint32(p))), true, nil
		case c == cborFloat64 && len(p) >= 8:
			r.i += 9
			return 0, math.Float64frombits(binary.BigEndian.Uint64(p)), true, nil
		}
		return 0, 0, false, r.bad("expected a number")
	}
	major, arg, err := r.head()
	switch {
	case err != nil:
		return 0, 0, false, err
	case major == cborUint:
		return arg, 0, false, nil
	case major == cborNeg:
		return -1 - arg, 0, false, nil
	}
	return 0, 0, false, r.bad("expected a number")
}

// half widens an IEEE 754 half-precision number.
func half(h uint16) float64 {
	exp, frac := int(h>>10&31), float64(h&1023)
	var f float64
	switch exp {
	case 0:
		f = math.Ldexp(frac, -24)
	case 31:
		if f = math.Inf(1); frac != 0 {
			f = math.NaN()
		}
	default:
		f = math.Ldexp(frac+1024, exp-25)
	}
	if h>>15 == 1 {
		return -f
	}
	return f
}

// Int implements Reader.
func (r *CBORReader) Int() (int64, error) {
	n, f, isFloat, err := r.number()
	if err != nil || !isFloat {
		return n, err
	}
	if !(math.Abs(f) < 1<<63) {
		return 0, &TypeError{"number is out of range"}
	}
	return int64(math.Floor(f)), nil
}

// Time implements Reader: integers are milliseconds, as AWS has it; floats are seconds, as the RFC has it.
func (r *CBORReader) Time() (time.Time, error) {
	n, f, isFloat, err := r.number()
	if err != nil {
		return time.Time{}, err
	}
	if isFloat {
		return fromSeconds(f)
	}
	if n > maxSeconds*1000 || n < -maxSeconds*1000 {
		return time.Time{}, &TypeError{"timestamp is out of range"}
	}
	return time.UnixMilli(n), nil
}

// bytes reads a byte or text string. Chunks of an indefinite one are joined.
func (r *CBORReader) bytes(want byte) ([]byte, error) {
	r.skipTags()
	major, n, err := r.head()
	if err != nil {
		return nil, err
	}
	if major != want {
		return nil, r.bad("expected a string")
	}
	if n != indefinite {
		if int64(len(r.b)-r.i) < n {
			return nil, r.bad("string has no end")
		}
		s := r.b[r.i : r.i+int(n)]
		r.i += int(n)
		return s, nil
	}
	var out []byte
	for {
		if r.i < len(r.b) && r.b[r.i] == cborBreak {
			r.i++
			return out, nil
		}
		major, n, err := r.head()
		if err != nil {
			return nil, err
		}
		if major != want || n == indefinite || int64(len(r.b)-r.i) < n {
			return nil, r.bad("bad chunk of a string")
		}
		out = append(out, r.b[r.i:r.i+int(n)]...)
		r.i += int(n)
	}
}

// Text implements Reader. It reads byte strings as well, for Skip; a Plan asks for the Kind first.
func (r *CBORReader) Text() ([]byte, error) {
	if r.Kind() == Bytes {
		return r.bytes(cborBytes)
	}
	s, err := r.bytes(cborText)
	if err == nil && !utf8.Valid(s) {
		return nil, r.bad("string is not UTF-8")
	}
	return s, err
}

// Blob implements Reader. A text string is taken for base64, as AWS does.
func (r *CBORReader) Blob() ([]byte, error) {
	if r.Kind() == String {
		s, err := r.Text()
		if err != nil {
			return nil, err
		}
		return DecodeBase64(s)
	}
	return r.bytes(cborBytes)
}

// Open implements Reader.
func (r *CBORReader) Open() error {
	r.skipTags()
	major, n, err := r.head()
	if err != nil {
		return err
	}
	if major != cborArray && major != cborMap {
		return r.bad("expected a list or map")
	}
	if r.depth == MaxDepth {
		return ErrDeep
	}
	if n > int64(len(r.b)-r.i) { // every item takes a byte at least
		return r.bad("body ends early")
	}
	r.left[r.depth], r.inMap[r.depth] = int(n), major == cborMap
	r.depth++
	return nil
}

// More implements Reader.
func (r *CBORReader) More() (bool, error) {
	left := &r.left[r.depth-1]
	switch {
	case *left == 0:
		r.depth--
		return false, nil
	case *left > 0:
		*left--
		return true, nil
	case r.i >= len(r.b):
		return false, r.bad("body ends early")
	case r.b[r.i] == cborBreak:
		r.i++
		r.depth--
		return false, nil
	}
	return true, nil
}

// Key implements Reader.
func (r *CBORReader) Key() ([]byte, error) { return r.bytes(cborText) }

// Skip implements Reader.
func (r *CBORReader) Skip() error { return skip(r, r.depth, func() int { return r.depth }) }

// End implements Reader.
func (r *CBORReader) End() error {
	if r.i < len(r.b) {
		return r.bad("something follows the body")
	}
	return nil
}
