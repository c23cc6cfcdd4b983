package wire

import (
	"encoding/base64"
	"encoding/binary"
	"strconv"
	"time"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// AppendString appends a string value.
func (e Encoding) AppendString(b []byte, s string) []byte {
	if e == CBOR {
		return append(appendHead(b, cborText, uint64(len(s))), s...)
	}
	b = append(b, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 { // a key that came as bytes; JSON can carry runes only
				b = append(b, s[from:i]...)
				b = append(b, "\ufffd"...)
				from = i + 1
			}
			i += n
			continue
		}
		b = append(b, s[from:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, `\n`...)
		case '\r':
			b = append(b, `\r`...)
		case '\t':
			b = append(b, `\t`...)
		default:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		from = i
	}
	b = append(b, s[from:]...)
	return append(b, '"')
}

// AppendBlob appends bytes: base64 in JSON.
func (e Encoding) AppendBlob(b, data []byte) []byte {
	if e == CBOR {
		return append(appendHead(b, cborBytes, uint64(len(data))), data...)
	}
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, data)
	return append(b, '"')
}

// AppendInt appends an integer.
func (e Encoding) AppendInt(b []byte, n int64) []byte {
	if e == CBOR {
		if n < 0 {
			return appendHead(b, cborNeg, uint64(-1-n))
		}
		return appendHead(b, cborUint, uint64(n))
	}
	return strconv.AppendInt(b, n, 10)
}

// AppendBool appends true or false.
func (e Encoding) AppendBool(b []byte, v bool) []byte {
	switch {
	case e == CBOR && v:
		return append(b, cborTrue)
	case e == CBOR:
		return append(b, cborFalse)
	}
	return strconv.AppendBool(b, v)
}

// AppendTime appends a timestamp: seconds with three decimals in JSON (never with an exponent, which Java's client misreads),
// tag 1 with integer milliseconds in CBOR.
func (e Encoding) AppendTime(b []byte, t time.Time) []byte {
	ms := t.UnixMilli()
	if e == CBOR {
		return e.AppendInt(append(b, cborTag<<5|1), ms)
	}
	if ms < 0 {
		b = append(b, '-')
		ms = -ms
	}
	b = strconv.AppendInt(b, ms/1000, 10)
	f := ms % 1000
	return append(b, '.', byte('0'+f/100), byte('0'+f/10%10), byte('0'+f%10))
}

// appendHead appends an item's first byte and its argument.
func appendHead(b []byte, major byte, n uint64) []byte {
	m := major << 5
	switch {
	case n < 24:
		return append(b, m|byte(n))
	case n <= 0xff:
		return append(b, m|24, byte(n))
	case n <= 0xffff:
		return binary.BigEndian.AppendUint16(append(b, m|25), uint16(n))
	case n <= 0xffffffff:
		return binary.BigEndian.AppendUint32(append(b, m|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, m|27), n)
}

// The following write maps and lists whose length is not known beforehand: the opening, a key before each value of a map, a
// separator before each item of a list, and the end. In JSON a separator goes before every key or item but the first.

// OpenMap begins a map.
func (e Encoding) OpenMap(b []byte) []byte {
	if e == CBOR {
		return append(b, cborMap<<5|31)
	}
	return append(b, '{')
}

// CloseMap ends a map.
func (e Encoding) CloseMap(b []byte) []byte {
	if e == CBOR {
		return append(b, cborBreak)
	}
	return append(b, '}')
}

// OpenList begins a list.
func (e Encoding) OpenList(b []byte) []byte {
	if e == CBOR {
		return append(b, cborArray<<5|31)
	}
	return append(b, '[')
}

// CloseList ends a list.
func (e Encoding) CloseList(b []byte) []byte {
	if e == CBOR {
		return append(b, cborBreak)
	}
	return append(b, ']')
}

// Separate goes before every item of a list.
func (e Encoding) Separate(b []byte) []byte {
	if e == JSON && b[len(b)-1] != '[' {
		return append(b, ',')
	}
	return b
}

// AppendKey appends a map's key and what JSON wants around it.
func (e Encoding) AppendKey(b []byte, key string) []byte {
	if e == CBOR {
		return append(appendHead(b, cborText, uint64(len(key))), key...)
	}
	if b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	b = e.AppendString(b, key)
	return append(b, ':')
}
