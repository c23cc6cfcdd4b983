package kinesisapi

import (
	"encoding/binary"
	"math/bits"
	"strconv"

	"github.com/milepost/milepost/stream"
)

// A sequence is a sequence number taken apart. AWS writes it as one decimal number of these 47 hexadecimal digits:
//
//	2 | shard's creation, s: 9 | shard index mod 16: 1 | number in the shard: 16 | 00 | arrival, s: 9 | shard index: 8 | 2
//
// The number in the shard is the log's own position, so numbers grow with positions and a number leads back to its position even
// after retention has removed the record.
type sequence struct {
	created int64 // s
	number  uint64
	arrived int64 // s
	shard   uint32
}

const (
	maxSeconds = 1<<36 - 1
	// lastNumber ends a closed shard's range, as AWS has it; no shard gets that far.
	lastNumber = 1<<63 - 1
)

// words returns the 188 bits of the number, most significant first.
func (s sequence) words() (hi, mid, lo uint64) {
	created, arrived := uint64(s.created)&maxSeconds, uint64(s.arrived)&maxSeconds
	// From the top: 4 + 36 + 4 = 44 bits, 64 of number, 8 zero + 36 + 32 + 4 = 80.
	lo = 2 | uint64(s.shard)<<4 | arrived<<36  // 4 + 32 bits, and the low 28 of arrived
	rest := arrived >> 28                      // 8 bits, then 8 of zero
	mid = rest | s.number<<16                  // and the low 48 of number
	hi = s.number>>48 | uint64(s.shard&15)<<16 // 16 + 4 bits
	hi |= created<<20 | 2<<56                  // 36 bits and the 2
	return hi, mid, lo
}

const billions = 1e19 // the largest power of ten in 64 bits

// append appends the decimal form: always 56 digits, because the leading hexadecimal digit is 2 and the creation a time of ours.
func (s sequence) append(b []byte) []byte {
	hi, mid, lo := s.words()
	var parts [4]uint64
	n := 0
	for hi|mid|lo != 0 {
		var r uint64
		hi, r = hi/billions, hi%billions
		mid, r = bits.Div64(r, mid, billions)
		lo, r = bits.Div64(r, lo, billions)
		parts[n] = r
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

// append19 appends nineteen digits, zeros in front.
func append19(b []byte, v uint64) []byte {
	n := len(b)
	b = append(b, "0000000000000000000"...)
	d := b[n : n+19]
	for i := 17; i >= 1; i -= 2 {
		q := v / 100
		r := (v - q*100) * 2
		d[i], d[i+1] = twoDigits[r], twoDigits[r+1]
		v = q
	}
	d[0] = byte('0' + v)
	return b
}

func (s sequence) String() string { return string(s.append(make([]byte, 0, 57))) }

// parseSequence takes a sequence number apart.
func parseSequence(text string) (s sequence, ok bool) {
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
	s.shard = uint32(lo >> 4)
	s.arrived = int64(lo>>36 | mid&255<<28)
	s.number = mid>>16 | hi<<48
	s.created = int64(hi >> 20 & maxSeconds)
	if uint32(hi>>16&15) != s.shard&15 || s.number > lastNumber || s.shard > 1<<31-1 {
		return s, false
	}
	return s, true
}

// position returns the log's position of a number in a shard; "" for none. The log writes it as 16 hexadecimal digits.
func position(number uint64) stream.Position {
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

// numberOf is position's inverse, for positions that the log returned.
func numberOf(p stream.Position) uint64 {
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

// parseShard returns the number of a shard's name. AWS takes a bare number as well.
func parseShard(name string) (uint32, bool) {
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

func shardName(n uint32) stream.ShardID {
	b := []byte(shardPrefix + "000000000000")
	for i := len(b) - 1; n > 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
	return stream.ShardID(b)
}

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
