// Package sequence writes the log's positions as Kinesis' sequence numbers and reads them back. Every door that shows a record by its
// number, and every event that names one, uses it, so that the numbers agree.
package sequence

import (
	"math/bits"
	"strconv"

	"github.com/milepost/milepost/stream"
)

// A Number is a sequence number taken apart. AWS writes it as one decimal number of these 47 hexadecimal digits:
//
//	2 | shard's creation, s: 9 | shard index mod 16: 1 | number in the shard: 16 | 00 | arrival, s: 9 | shard index: 8 | 2
//
// The number in the shard is the log's own position, so numbers grow with positions and a number leads back to its position even
// after retention has removed the record.
type Number struct {
	Created int64  // of the shard, s
	Number  uint64 // of the record in the shard, from 1
	Arrived int64  // s
	Shard   uint32
}

// Bounds of a Number.
const (
	MaxSeconds = 1<<36 - 1 // of the times
	// Last ends a closed shard's range, as AWS has it; no shard gets that far.
	Last = 1<<63 - 1
)

// words returns the 188 bits of the number, most significant first.
func (s Number) words() (hi, mid, lo uint64) {
	created, arrived := uint64(s.Created)&MaxSeconds, uint64(s.Arrived)&MaxSeconds
	// From the top: 4 + 36 + 4 = 44 bits, 64 of number, 8 zero + 36 + 32 + 4 = 80.
	lo = 2 | uint64(s.Shard)<<4 | arrived<<36  // 4 + 32 bits, and the low 28 of arrived
	rest := arrived >> 28                      // 8 bits, then 8 of zero
	mid = rest | s.Number<<16                  // and the low 48 of number
	hi = s.Number>>48 | uint64(s.Shard&15)<<16 // 16 + 4 bits
	hi |= created<<20 | 2<<56                  // 36 bits and the 2
	return hi, mid, lo
}

const billions = 1e19 // the largest power of ten in 64 bits

// Append appends the decimal form: always 56 digits, because the leading hexadecimal digit is 2 and the creation a time of ours.
func (s Number) Append(b []byte) []byte {
	hi, mid, lo := s.words()
	var parts [4]uint64
	n := 0
	for hi|mid|lo != 0 {
		hi, mid, lo, parts[n] = divide(hi, mid, lo)
		n++
	}
	b = strconv.AppendUint(b, parts[n-1], 10)
	for i := n - 2; i >= 0; i-- {
		b = append19(b, parts[i])
	}
	return b
}

const twoDigits = "00010203040506070809" + "10111213141516171819" + "20212223242526272829" + "30313233343536373839" +
	"40414243444546474849" + "50515253545556575859" + "60616263646566676869" + "70717273747576777879" +
	"80818283848586878889" + "90919293949596979899"

// append19 appends nineteen digits, zeros in front. Its three parts do not wait for each other.
func append19(b []byte, v uint64) []byte {
	n := len(b)
	b = append(b, "0000000000000000000"...)
	d := (*[19]byte)(b[n:])
	top, rest := uint32(v/1e16), v%1e16
	d[0] = byte('0' + top/100)
	r := top % 100 * 2
	d[1], d[2] = twoDigits[r], twoDigits[r+1]
	put8((*[8]byte)(d[3:]), uint32(rest/1e8))
	put8((*[8]byte)(d[11:]), uint32(rest%1e8))
	return b
}

func put8(d *[8]byte, v uint32) {
	hi, lo := v/10_000, v%10_000
	p, q, r, s := hi/100*2, hi%100*2, lo/100*2, lo%100*2
	d[0], d[1], d[2], d[3] = twoDigits[p], twoDigits[p+1], twoDigits[q], twoDigits[q+1]
	d[4], d[5], d[6], d[7] = twoDigits[r], twoDigits[r+1], twoDigits[s], twoDigits[s+1]
}

// A Run writes the numbers of consecutive records of a shard, most of which it has by adding to the one before: a third of the time
// of Number.Append. The zero Run is ready.
type Run struct {
	last       Number
	p2, p1, p0 uint64 // last in base 10^19; p2 is not zero in a number that has been written
}

// A record more is 2^80 more, in base 10^19.
const (
	step1 = 120_892
	step0 = 5_819_614_629_174_706_176
)

// Append appends the decimal form of a number.
func (r *Run) Append(b []byte, s Number) []byte {
	next := r.last
	next.Number++
	if next == s && r.p2 != 0 {
		carry := uint64(0)
		if r.p0 += step0; r.p0 >= billions {
			r.p0 -= billions
			carry = 1
		}
		if r.p1 += step1 + carry; r.p1 >= billions {
			r.p1 -= billions
			r.p2++
		}
	} else {
		hi, mid, lo := s.words()
		hi, mid, lo, r.p0 = divide(hi, mid, lo)
		_, mid, lo, r.p1 = divide(hi, mid, lo)
		r.p2 = lo // a number has 56 digits
		if mid != 0 {
			panic("sequence: bug: a number of more than 57 digits")
		}
	}
	r.last = s
	b = strconv.AppendUint(b, r.p2, 10)
	return append19(append19(b, r.p1), r.p0)
}

// divide divides by 10^19.
func divide(hi, mid, lo uint64) (qh, qm, ql, rest uint64) {
	qh, rest = hi/billions, hi%billions
	qm, rest = bits.Div64(rest, mid, billions)
	ql, rest = bits.Div64(rest, lo, billions)
	return qh, qm, ql, rest
}

func (s Number) String() string { return string(s.Append(make([]byte, 0, 57))) }

// Parse takes a sequence number apart.
func Parse(text string) (s Number, ok bool) {
	if len(text) == 0 || len(text) > 57 || (text[0] == '0' && len(text) > 1) {
		return s, false
	}
	var hi, mid, lo uint64
	for i := range len(text) {
		c := text[i]
		if c < '0' || c > '9' {
			return s, false
		}
		var carry, c2 uint64
		h, l := bits.Mul64(lo, 10)
		lo, c2 = bits.Add64(l, uint64(c-'0'), 0)
		carry = h + c2
		h, l = bits.Mul64(mid, 10)
		mid, c2 = bits.Add64(l, carry, 0)
		carry = h + c2
		h, l = bits.Mul64(hi, 10)
		hi, c2 = bits.Add64(l, carry, 0)
		if h+c2 != 0 {
			return s, false
		}
	}
	if hi>>56 != 2 || lo&15 != 2 || mid>>8&255 != 0 {
		return s, false
	}
	s.Shard = uint32(lo >> 4)
	s.Arrived = int64(lo>>36 | mid&255<<28)
	s.Number = mid>>16 | hi<<48
	s.Created = int64(hi >> 20 & MaxSeconds)
	if uint32(hi>>16&15) != s.Shard&15 || s.Number > Last || s.Shard > 1<<31-1 {
		return s, false
	}
	return s, true
}

// Position returns the log's position of a number in a shard; "" for none. The log writes it as 16 hexadecimal digits.
func Position(number uint64) stream.Position {
	if number == 0 {
		return ""
	}
	const digits = "0123456789abcdef"
	var b [16]byte
	for i := 15; i >= 0; i-- {
		b[i] = digits[number&15]
		number >>= 4
	}
	return stream.Position(b[:])
}

// Of is Position's inverse, for positions that the log returned.
func Of(p stream.Position) uint64 {
	var n uint64
	for i := range len(p) {
		c := p[i]
		if c >= 'a' {
			c -= 'a' - '0' - 10
		}
		n = n<<4 | uint64(c-'0')&15
	}
	return n
}

const shardPrefix = "shardId-"

// ParseShard returns the number of a shard's name. AWS takes a bare number as well.
func ParseShard(name string) (uint32, bool) {
	if len(name) > len(shardPrefix) && name[:len(shardPrefix)] == shardPrefix {
		name = name[len(shardPrefix):]
	}
	if len(name) == 0 || len(name) > 12 {
		return 0, false
	}
	var n uint64
	for i := range len(name) {
		c := name[i]
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return uint32(n), n < 1<<31
}

// ShardName is the name of a shard by its number.
func ShardName(n uint32) stream.ShardID {
	b := []byte(shardPrefix + "000000000000")
	for i := len(b) - 1; n > 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
	return stream.ShardID(b)
}
