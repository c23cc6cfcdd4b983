package wire

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math"
	"strconv"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// A JSONReader reads a JSON body.
type JSONReader struct {
	b     []byte
	i     int
	depth int
	first [MaxDepth]bool // nothing of the container at this depth was read yet
	inMap [MaxDepth]bool
}

func (r *JSONReader) space() {
	for r.i < len(r.b) {
		switch r.b[r.i] {
		case ' ', '\t', '\r', '\n':
			r.i++
		default:
			return
		}
	}
}

func (r *JSONReader) bad(what string) error {
	return fmt.Errorf("%w: %s at byte %d", ErrSyntax, what, r.i)
}

// Kind implements Reader.
func (r *JSONReader) Kind() Kind {
	r.space()
	if r.i >= len(r.b) {
		return Invalid
	}
	switch c := r.b[r.i]; {
	case c == '"':
		return String
	case c == '{':
		return Map
	case c == '[':
		return List
	case c == 't' || c == 'f':
		return Bool
	case c == 'n':
		return Null
	case c == '-' || (c >= '0' && c <= '9'):
		return Number
	}
	return Invalid
}

func (r *JSONReader) word(w string) bool {
	if len(r.b)-r.i >= len(w) && string(r.b[r.i:r.i+len(w)]) == w {
		r.i += len(w)
		return true
	}
	return false
}

// Bool implements Reader.
func (r *JSONReader) Bool() (bool, error) {
	r.space()
	switch {
	case r.word("true"):
		return true, nil
	case r.word("false"):
		return false, nil
	}
	return false, r.bad("expected true or false")
}

// number passes a number as RFC 8259 writes it.
func (r *JSONReader) number() ([]byte, error) {
	r.space()
	start := r.i
	digits := func() int {
		n := 0
		for r.i < len(r.b) && r.b[r.i] >= '0' && r.b[r.i] <= '9' {
			r.i++
			n++
		}
		return n
	}
	if r.i < len(r.b) && r.b[r.i] == '-' {
		r.i++
	}
	whole := r.i
	n := digits()
	if n == 0 || (n > 1 && r.b[whole] == '0') {
		return nil, r.bad("expected a number")
	}
	if r.i < len(r.b) && r.b[r.i] == '.' {
		r.i++
		if digits() == 0 {
			return nil, r.bad("expected a digit")
		}
	}
	if r.i < len(r.b) && (r.b[r.i] == 'e' || r.b[r.i] == 'E') {
		r.i++
		if r.i < len(r.b) && (r.b[r.i] == '+' || r.b[r.i] == '-') {
			r.i++
		}
		if digits() == 0 {
			return nil, r.bad("expected a digit")
		}
	}
	return r.b[start:r.i], nil
}

// Int implements Reader.
func (r *JSONReader) Int() (int64, error) {
	b, err := r.number()
	if err != nil {
		return 0, err
	}
	if n, err := strconv.ParseInt(string(b), 10, 64); err == nil {
		return n, nil
	}
	f, err := strconv.ParseFloat(string(b), 64)
	if err != nil || math.Abs(f) >= 1<<63 {
		return 0, &TypeError{"number " + clip(b) + " is out of range"}
	}
	return int64(math.Floor(f)), nil
}

// Time implements Reader: seconds of the epoch, with a fraction.
func (r *JSONReader) Time() (time.Time, error) {
	b, err := r.number()
	if err != nil {
		return time.Time{}, err
	}
	f, err := strconv.ParseFloat(string(b), 64)
	if err != nil {
		return time.Time{}, &TypeError{"number " + clip(b) + " is out of range"}
	}
	return fromSeconds(f)
}

const maxSeconds = 253402300799 // the end of the year 9999

func fromSeconds(f float64) (time.Time, error) {
	if !(math.Abs(f) <= maxSeconds) { // NaN too
		return time.Time{}, &TypeError{"timestamp is out of range"}
	}
	return time.UnixMilli(int64(math.Round(f * 1000))), nil
}

// Text implements Reader.
func (r *JSONReader) Text() ([]byte, error) {
	r.space()
	if r.i >= len(r.b) || r.b[r.i] != '"' {
		return nil, r.bad("expected a string")
	}
	r.i++
	start := r.i
	for r.i < len(r.b) {
		switch c := r.b[r.i]; {
		case c == '"':
			s := r.b[start:r.i]
			r.i++
			if !utf8.Valid(s) {
				return nil, r.bad("string is not UTF-8")
			}
			return s, nil
		case c == '\\':
			return r.escaped(start)
		case c < ' ':
			return nil, r.bad("control character in a string")
		}
		r.i++
	}
	return nil, r.bad("string has no end")
}

// escaped finishes a string in which an escape was found; what precedes it begins at start.
func (r *JSONReader) escaped(start int) ([]byte, error) {
	end := start + bytes.IndexByte(r.b[start:], '"')
	out := make([]byte, 0, max(64, 2*(end-start)))
	out = append(out, r.b[start:r.i]...)
	for r.i < len(r.b) {
		c := r.b[r.i]
		r.i++
		switch {
		case c == '"':
			if !utf8.Valid(out) {
				return nil, r.bad("string is not UTF-8")
			}
			return out, nil
		case c < ' ':
			return nil, r.bad("control character in a string")
		case c != '\\':
			out = append(out, c)
			continue
		}
		if r.i >= len(r.b) {
			break
		}
		c = r.b[r.i]
		r.i++
		switch c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			u, ok := r.hex4()
			if !ok {
				return nil, r.bad("bad escape in a string")
			}
			if utf16.IsSurrogate(u) {
				pair := rune(utf8.RuneError)
				if len(r.b)-r.i >= 6 && r.b[r.i] == '\\' && r.b[r.i+1] == 'u' {
					at := r.i
					r.i += 2
					low, ok := r.hex4()
					if !ok {
						return nil, r.bad("bad escape in a string")
					}
					if pair = utf16.DecodeRune(u, low); pair == utf8.RuneError {
						r.i = at // a lone surrogate; what follows stands for itself
					}
				}
				u = pair
			}
			out = utf8.AppendRune(out, u)
		default:
			return nil, r.bad("bad escape in a string")
		}
	}
	return nil, r.bad("string has no end")
}

func (r *JSONReader) hex4() (rune, bool) {
	if len(r.b)-r.i < 4 {
		return 0, false
	}
	var u rune
	for _, c := range r.b[r.i : r.i+4] {
		switch {
		case c >= '0' && c <= '9':
			u = u<<4 | rune(c-'0')
		case c >= 'a' && c <= 'f':
			u = u<<4 | rune(c-'a'+10)
		case c >= 'A' && c <= 'F':
			u = u<<4 | rune(c-'A'+10)
		default:
			return 0, false
		}
	}
	r.i += 4
	return u, true
}

// Blob implements Reader.
func (r *JSONReader) Blob() ([]byte, error) {
	s, err := r.Text()
	if err != nil {
		return nil, err
	}
	return DecodeBase64(s)
}

// DecodeBase64 decodes strictly, with AWS' words for what is wrong.
func DecodeBase64(s []byte) ([]byte, error) {
	if len(s)%4 != 0 {
		return nil, &TypeError{fmt.Sprintf("'%s' can not be converted to a Blob: Base64 encoded length is expected a multiple of 4 bytes but found: %d", clip(s), len(s))}
	}
	out := make([]byte, base64.StdEncoding.DecodedLen(len(s)))
	n, err := base64.StdEncoding.Strict().Decode(out, s)
	if err != nil || bytes.ContainsAny(s, "\r\n") {
		for i, c := range s {
			pad := c == '=' && i >= len(s)-2
			if !pad && !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '+' || c == '/') {
				return nil, &TypeError{fmt.Sprintf("'%s' can not be converted to a Blob: Invalid Base64 character: '%c'", clip(s), rune(c))}
			}
		}
		return nil, &TypeError{fmt.Sprintf("'%s' can not be converted to a Blob: Invalid last non-pad Base64 character dectected", clip(s))}
	}
	return out[:n], nil
}

// clip shortens what a client sent before it goes into an error message.
func clip(b []byte) string {
	const most = 256
	if len(b) > most {
		return string(bytes.ToValidUTF8(b[:most], nil)) + "..."
	}
	return string(b)
}

// Open implements Reader.
func (r *JSONReader) Open() error {
	k := r.Kind()
	if k != List && k != Map {
		return r.bad("expected a list or map")
	}
	if r.depth == MaxDepth {
		return ErrDeep
	}
	r.first[r.depth], r.inMap[r.depth] = true, k == Map
	r.depth++
	r.i++
	return nil
}

// More implements Reader.
func (r *JSONReader) More() (bool, error) {
	d := r.depth - 1
	end := byte(']')
	if r.inMap[d] {
		end = '}'
	}
	r.space()
	if r.i >= len(r.b) {
		return false, r.bad("body ends early")
	}
	if r.b[r.i] == end {
		r.i++
		r.depth--
		return false, nil
	}
	if r.first[d] {
		r.first[d] = false
		return true, nil
	}
	if r.b[r.i] != ',' {
		return false, r.bad("expected a comma")
	}
	r.i++
	return true, nil
}

// Key implements Reader.
func (r *JSONReader) Key() ([]byte, error) {
	k, err := r.Text()
	if err != nil {
		return nil, err
	}
	r.space()
	if r.i >= len(r.b) || r.b[r.i] != ':' {
		return nil, r.bad("expected a colon")
	}
	r.i++
	return k, nil
}

// Skip implements Reader.
func (r *JSONReader) Skip() error { return skip(r, r.depth, func() int { return r.depth }) }

// skip passes one value without recursion.
func skip(r Reader, base int, depth func() int) error {
	var inMap [MaxDepth + 1]bool
	for {
		switch k := r.Kind(); k {
		case List, Map:
			if err := r.Open(); err != nil {
				return err
			}
			inMap[depth()] = k == Map
		case String, Bytes:
			if _, err := r.Text(); err != nil {
				return err
			}
		case Number:
			if err := skipNumber(r); err != nil {
				return err
			}
		case Bool, Null:
			if err := skipWord(r, k); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: expected a value", ErrSyntax)
		}
		for depth() > base {
			d := depth()
			more, err := r.More()
			if err != nil {
				return err
			}
			if more {
				if inMap[d] {
					if _, err := r.Key(); err != nil {
						return err
					}
				}
				break
			}
		}
		if depth() == base {
			return nil
		}
	}
}

func skipNumber(r Reader) error {
	if j, ok := r.(*JSONReader); ok {
		_, err := j.number()
		return err
	}
	_, err := r.Int()
	return err
}

func skipWord(r Reader, k Kind) error {
	if k == Bool {
		_, err := r.Bool()
		return err
	}
	switch r := r.(type) {
	case *JSONReader:
		if !r.word("null") {
			return r.bad("expected null")
		}
	case *CBORReader:
		r.skipTags()
		r.i++
	}
	return nil
}

// End implements Reader.
func (r *JSONReader) End() error {
	if r.space(); r.i < len(r.b) {
		return r.bad("something follows the body")
	}
	return nil
}
