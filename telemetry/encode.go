package telemetry

import (
	"math"
	"strconv"
	"unicode/utf8"
)

// AppendJSON appends r as the canonical payload: one JSON object without blanks or a line end, its fields in the order
// vehicle_id, ts, lat, lon, the signals as they stand, status. Decoding it gives the same reading again, numbers bit for
// bit; FlagSignalsDropped and FlagFieldsIgnored, which speak of an earlier payload, are not kept. ts is left out with
// FlagTimeMissing and the place with FlagNoPosition, as they were in the payload. Numbers must be finite.
func AppendJSON(dst []byte, cat *Catalog, r *Reading) []byte {
	defs := cat.cur.Load().defs
	dst = append(dst, `{"vehicle_id":`...)
	dst = appendString(dst, r.Vehicle)
	if r.Flags&FlagTimeMissing == 0 {
		dst = append(dst, `,"ts":"`...)
		dst = AppendTime(dst, r.Time)
		dst = append(dst, '"')
	}
	if r.Flags&FlagNoPosition == 0 {
		dst = append(dst, `,"lat":`...)
		dst = AppendFloat(dst, r.Lat)
		dst = append(dst, `,"lon":`...)
		dst = AppendFloat(dst, r.Lon)
	}
	for i := range r.Signals {
		dst = append(dst, ',')
		dst = appendString(dst, defs[r.Signals[i].ID].Name)
		dst = append(dst, ':')
		dst = AppendFloat(dst, r.Signals[i].Value)
	}
	if r.Status != "" {
		dst = append(dst, `,"status":`...)
		dst = appendString(dst, r.Status)
	}
	return append(dst, '}')
}

// AppendTime appends a time of the years 1 to 9999 as RFC 3339 in UTC with milliseconds.
func AppendTime(dst []byte, ms int64) []byte {
	const day = 24 * 60 * 60 * 1000
	days, rest := ms/day, ms%day
	if rest < 0 {
		days, rest = days-1, rest+day
	}
	year, month, dom := civil(int(days))
	dst = append(dst, byte('0'+year/1000), byte('0'+year/100%10), byte('0'+year/10%10), byte('0'+year%10))
	dst = appendTwo(append(dst, '-'), month)
	dst = appendTwo(append(dst, '-'), dom)
	s := int(rest / 1000)
	dst = appendTwo(append(dst, 'T'), s/3600)
	dst = appendTwo(append(dst, ':'), s/60%60)
	dst = appendTwo(append(dst, ':'), s%60)
	f := int(rest % 1000)
	dst = append(dst, '.', byte('0'+f/100))
	return append(appendTwo(dst, f%100), 'Z')
}

func appendTwo(dst []byte, n int) []byte { return append(dst, byte('0'+n/10), byte('0'+n%10)) }

// civil returns the Gregorian date of a day counted from 1970-01-01.
func civil(days int) (year, month, day int) {
	n := days + 719_162 // days since 0001-01-01
	cycle, n := n/146_097, n%146_097
	century := min(n/36_524, 3) // the last day of a cycle belongs to its fourth century
	n -= century * 36_524
	quad, n := n/1461, n%1461
	y := min(n/365, 3)
	n -= y * 365
	year = cycle*400 + century*100 + quad*4 + y + 1
	for month = 1; n >= daysIn(year, month); month++ {
		n -= daysIn(year, month)
	}
	return year, month, n + 1
}

// AppendFloat appends a finite number so that reading it gives the same bits.
//
// A number of at most six decimals is written from its scaled integer, at a fraction of strconv's price: if the nearest
// float64 to n/10^6 is v, then the decimal n/10^6 reads back as v; with at most 15 digits it is also the shortest that does.
func AppendFloat(dst []byte, v float64) []byte {
	scaled := v * 1e6
	if n := int64(scaled); math.Abs(scaled) < 1e15 && float64(n) == scaled && float64(n)/1e6 == v && (n != 0 || !math.Signbit(v)) {
		if n < 0 {
			dst = append(dst, '-')
			n = -n
		}
		dst = strconv.AppendInt(dst, n/1_000_000, 10)
		f := n % 1_000_000
		if f == 0 {
			return dst
		}
		var b [7]byte
		b[0] = '.'
		for i := 6; i > 0; i-- {
			b[i] = byte('0' + f%10)
			f /= 10
		}
		end := 7
		for b[end-1] == '0' {
			end--
		}
		return append(dst, b[:end]...)
	}
	if a := math.Abs(v); a != 0 && (a < 1e-6 || a >= 1e21) {
		return strconv.AppendFloat(dst, v, 'e', -1, 64)
	}
	return strconv.AppendFloat(dst, v, 'f', -1, 64)
}

// appendString appends s as a JSON string; bytes that are not UTF-8 become U+FFFD.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				dst = append(dst, s[start:i]...)
				dst = append(dst, "\ufffd"...)
				start = i + 1
			}
			i += n
			continue
		}
		if c < 0x20 || c == '"' || c == '\\' {
			dst = append(dst, s[start:i]...)
			if c < 0x20 {
				const digits = "0123456789abcdef"
				dst = append(dst, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
			} else {
				dst = append(dst, '\\', c)
			}
			start = i + 1
		}
		i++
	}
	return append(append(dst, s[start:]...), '"')
}
