package telemetry

import (
	"encoding/binary"
	"math/bits"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
	"unsafe"
)

// maxDepth is how deeply a payload may nest, the reading itself included.
const maxDepth = 32

// view returns b as a string without copying it: the string lives as long as b is left alone.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// skipSpace returns the index of the first byte at or after i that is not JSON white space.
func skipSpace(data []byte, i int) int {
	for i < len(data) && (data[i] == ' ' || data[i] == '\n' || data[i] == '\t' || data[i] == '\r') {
		i++
	}
	return i
}

// plainString returns the index of the quote that ends the string whose content begins at i; -1 if the string is not plain:
// it holds an escape, a control character or a byte beyond ASCII, or has no end.
//
// It looks at eight bytes at once. In each of the three tests a byte's high bit is set if the byte is wanted; a borrow may
// also set it in bytes above a wanted one, never below the first, and only the first is used. Byte by byte the whole decoder
// takes a third longer.
func plainString(data []byte, i int) int {
	const (
		low  = 0x0101010101010101
		high = 0x8080808080808080
	)
	for i+8 <= len(data) {
		w := binary.LittleEndian.Uint64(data[i:])
		quote, slash := w^(low*'"'), w^(low*'\\')
		if m := ((quote-low)&^quote | (slash-low)&^slash | (w-low*0x20)&^w | w) & high; m != 0 {
			i += bits.TrailingZeros64(m) >> 3
			if data[i] == '"' {
				return i
			}
			return -1
		}
		i += 8
	}
	for ; i < len(data); i++ {
		switch c := data[i]; {
		case c == '"':
			return i
		case c == '\\' || c < 0x20 || c >= utf8.RuneSelf:
			return -1
		}
	}
	return -1
}

// scanString reads the string whose content begins at i and returns it with the index after its closing quote. The string is
// a view of data unless it holds escapes.
func scanString(data []byte, i int) (string, int, error) {
	if end := plainString(data, i); end >= 0 {
		return view(data[i:end]), end + 1, nil
	}
	start := i
	for i < len(data) {
		switch c := data[i]; {
		case c == '"':
			s := data[start:i]
			if !utf8.Valid(s) {
				return "", 0, &DecodeError{Offset: start, Msg: "invalid UTF-8: send text as UTF-8"}
			}
			return view(s), i + 1, nil
		case c == '\\':
			return unescape(data, start, i)
		case c < 0x20:
			return "", 0, &DecodeError{Offset: i, Msg: "control character in a string: escape it as \\u00XX"}
		}
		i++
	}
	return "", 0, &DecodeError{Offset: start, Msg: "string without an end: the message is cut short or a quote is not escaped"}
}

// unescape reads the string that begins at start and whose first escape is at i.
func unescape(data []byte, start, i int) (string, int, error) {
	out := append(make([]byte, 0, 2*(i-start)+16), data[start:i]...)
	for i < len(data) {
		c := data[i]
		switch {
		case c == '"':
			if !utf8.Valid(out) {
				return "", 0, &DecodeError{Offset: start, Msg: "invalid UTF-8: send text as UTF-8"}
			}
			return view(out), i + 1, nil
		case c < 0x20:
			return "", 0, &DecodeError{Offset: i, Msg: "control character in a string: escape it as \\u00XX"}
		case c != '\\':
			out = append(out, c)
			i++
			continue
		}
		if i+1 >= len(data) {
			break
		}
		switch data[i+1] {
		case '"', '\\', '/':
			out = append(out, data[i+1])
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
			r := hex4(data, i+2)
			if utf16.IsSurrogate(r) {
				second := rune(-1)
				if i+7 < len(data) && data[i+6] == '\\' && data[i+7] == 'u' {
					second = hex4(data, i+8)
				}
				if r = utf16.DecodeRune(r, second); r == utf8.RuneError {
					return "", 0, &DecodeError{Offset: i, Msg: "half a surrogate pair: escape the character as both halves or send it as UTF-8"}
				}
				i += 6
			}
			if r < 0 {
				return "", 0, &DecodeError{Offset: i, Msg: "bad escape: \\u takes four hexadecimal digits"}
			}
			out = utf8.AppendRune(out, r)
			i += 4
		default:
			return "", 0, &DecodeError{Offset: i, Msg: "bad escape: JSON knows \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\uXXXX"}
		}
		i += 2
	}
	return "", 0, &DecodeError{Offset: start, Msg: "string without an end: the message is cut short or a quote is not escaped"}
}

// hex4 reads four hexadecimal digits at i, or returns -1.
func hex4(data []byte, i int) rune {
	if i+4 > len(data) {
		return -1
	}
	var r rune
	for _, c := range data[i : i+4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

// pow10 holds the powers of ten that a float64 represents exactly.
//
//nolint:gochecknoglobals // a table
var pow10 = [...]float64{
	1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11,
	1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
}

// scanNumber reads the number at i, which is '-' or a digit, and returns it with the index after it.
//
// A mantissa below 2^53 divided by an exact power of ten is the nearest float64, as IEEE division rounds once. Everything
// else goes to strconv.
func scanNumber(data []byte, i int) (float64, int, error) {
	start := i
	if data[i] == '-' {
		i++
	}
	first := i
	var mant uint64
	for i < len(data) && data[i]-'0' <= 9 {
		mant = mant*10 + uint64(data[i]-'0')
		i++
	}
	digits := i - first
	if digits == 0 || (digits > 1 && data[first] == '0') {
		return 0, 0, badNumber(data, start)
	}
	frac := 0
	if i < len(data) && data[i] == '.' {
		i++
		point := i
		for i < len(data) && data[i]-'0' <= 9 {
			mant = mant*10 + uint64(data[i]-'0')
			i++
		}
		if frac = i - point; frac == 0 {
			return 0, 0, badNumber(data, start)
		}
	}
	if i < len(data) && data[i]|0x20 == 'e' || digits+frac > 19 || mant >= 1<<53 {
		return oddNumber(data, start, i)
	}
	v := float64(mant)
	if frac > 0 {
		v /= pow10[frac]
	}
	if first > start {
		v = -v
	}
	return v, i, nil
}

// oddNumber reads the number that begins at start and whose mantissa ends at i.
func oddNumber(data []byte, start, i int) (float64, int, error) {
	if i < len(data) && data[i]|0x20 == 'e' {
		i++
		if i < len(data) && (data[i] == '+' || data[i] == '-') {
			i++
		}
		exp := i
		for i < len(data) && data[i]-'0' <= 9 {
			i++
		}
		if i == exp {
			return 0, 0, badNumber(data, start)
		}
	}
	v, err := strconv.ParseFloat(view(data[start:i]), 64)
	if err != nil {
		return 0, 0, &DecodeError{Offset: start, Msg: "number too large: a value must fit a 64-bit float"}
	}
	return v, i, nil
}

func badNumber(data []byte, start int) error {
	if start+1 < len(data) && data[start] == '-' && data[start+1]|0x20 == 'i' {
		return badLiteral(data, start)
	}
	return &DecodeError{Offset: start, Msg: "malformed number: JSON numbers look like -12.5 or 3e8, without leading zeros"}
}

// scanLiteral returns the index after the literal at i.
func scanLiteral(data []byte, i int, word string) (int, error) {
	if end := i + len(word); end <= len(data) && string(data[i:end]) == word {
		return end, nil
	}
	return 0, badLiteral(data, i)
}

func badLiteral(data []byte, i int) error {
	if i >= len(data) {
		return &DecodeError{Offset: i, Msg: "the message is cut short: a value is missing"}
	}
	switch data[i] | 0x20 {
	case 'n', 'i', '-':
		return &DecodeError{Offset: i, Msg: "not a JSON value: for NaN and infinity leave the field out or send null"}
	}
	return &DecodeError{Offset: i, Msg: "not a JSON value: want a string, number, true, false, null, object or array"}
}

// skipValue returns the index after the value at i, which it checks as strictly as if it were used. depth is how many
// objects and arrays enclose it.
func skipValue(data []byte, i, depth int) (int, error) {
	if i >= len(data) {
		return 0, badLiteral(data, i)
	}
	switch c := data[i]; {
	case c == '"':
		_, next, err := scanString(data, i+1)
		return next, err
	case c == '-' || c-'0' <= 9:
		_, next, err := scanNumber(data, i)
		return next, err
	case c == 't':
		return scanLiteral(data, i, "true")
	case c == 'f':
		return scanLiteral(data, i, "false")
	case c == 'n':
		return scanLiteral(data, i, "null")
	case c != '{' && c != '[':
		return 0, badLiteral(data, i)
	}
	if depth++; depth > maxDepth {
		return 0, &DecodeError{Offset: i, Msg: "nested too deeply: 32 levels are the limit"}
	}
	object, closing := data[i] == '{', data[i]+2 // '{'+2 is '}', '['+2 is ']'
	i = skipSpace(data, i+1)
	if i < len(data) && data[i] == closing {
		return i + 1, nil
	}
	for {
		if object {
			if i >= len(data) || data[i] != '"' {
				return 0, &DecodeError{Offset: i, Msg: "want a field name in double quotes"}
			}
			_, next, err := scanString(data, i+1)
			if err != nil {
				return 0, err
			}
			if i = skipSpace(data, next); i >= len(data) || data[i] != ':' {
				return 0, &DecodeError{Offset: i, Msg: "want ':' after a field name"}
			}
			i = skipSpace(data, i+1)
		}
		next, err := skipValue(data, i, depth)
		if err != nil {
			return 0, err
		}
		i = skipSpace(data, next)
		switch {
		case i < len(data) && data[i] == closing:
			return i + 1, nil
		case i < len(data) && data[i] == ',':
			i = skipSpace(data, i+1)
		default:
			return 0, &DecodeError{Offset: i, Msg: "want ',' or the closing bracket: the message is cut short or malformed"}
		}
	}
}
