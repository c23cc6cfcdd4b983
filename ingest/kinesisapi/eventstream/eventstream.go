// Package eventstream frames messages as application/vnd.amazon.eventstream does:
//
//	total length  u32   of the whole message, this field and the last checksum included
//	header length u32
//	checksum      u32   CRC-32 of the eight bytes before
//	headers             each: name length u8, name, type u8 (7: string), value length u16, value
//	payload
//	checksum      u32   CRC-32 of everything before
//
// All integers are big-endian.
package eventstream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// MaxMessage is the largest message that clients take.
const MaxMessage = 16 << 20

const (
	preludeLen  = 12
	trailerLen  = 4
	typeString  = 7
	maxHeader   = 1<<16 - 1
	maxNameLen  = 255
	maxHeaders  = 128 << 10
	smallestLen = preludeLen + trailerLen
)

// A Header is a name and a string, the only type of header that Kinesis sends.
type Header struct{ Name, Value string }

// Append appends one message to b.
func Append(b []byte, headers []Header, payload []byte) []byte {
	b, start := Begin(b, headers)
	return End(append(b, payload...), start)
}

// Begin appends the start of a message up to its payload. The caller appends the payload and calls End with start.
func Begin(b []byte, headers []Header) (out []byte, start int) {
	start = len(b)
	b = append(b, make([]byte, preludeLen)...)
	for _, h := range headers {
		if len(h.Name) == 0 || len(h.Name) > maxNameLen || len(h.Value) > maxHeader {
			panic("eventstream: bug: header " + h.Name + " has a bad length")
		}
		b = append(b, byte(len(h.Name)))
		b = append(b, h.Name...)
		b = append(b, typeString)
		b = binary.BigEndian.AppendUint16(b, uint16(len(h.Value)))
		b = append(b, h.Value...)
	}
	binary.BigEndian.PutUint32(b[start+4:], uint32(len(b)-start-preludeLen))
	return b, start
}

// End completes the message that began at start.
func End(b []byte, start int) []byte {
	m := b[start:]
	binary.BigEndian.PutUint32(m, uint32(len(m)+trailerLen))
	binary.BigEndian.PutUint32(m[8:], crc32.ChecksumIEEE(m[:8]))
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(m))
}

// ErrShort says that there is no whole message yet.
var ErrShort = errors.New("event stream message is incomplete")

// Decode reads the first message of b and returns what follows it. The payload aliases b.
func Decode(b []byte) (headers []Header, payload, rest []byte, err error) {
	if len(b) < preludeLen {
		return nil, nil, b, ErrShort
	}
	total, size := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	if sum := binary.BigEndian.Uint32(b[8:]); sum != crc32.ChecksumIEEE(b[:8]) {
		return nil, nil, b, errors.New("event stream prelude has a wrong checksum")
	}
	if total < smallestLen || total > MaxMessage+smallestLen+maxHeaders || size > maxHeaders || size > total-smallestLen {
		return nil, nil, b, fmt.Errorf("event stream message has impossible lengths %d and %d", total, size)
	}
	if uint64(len(b)) < uint64(total) {
		return nil, nil, b, ErrShort
	}
	m, rest := b[:total], b[total:]
	body := m[:total-trailerLen]
	if sum := binary.BigEndian.Uint32(m[total-trailerLen:]); sum != crc32.ChecksumIEEE(body) {
		return nil, nil, b, errors.New("event stream message has a wrong checksum")
	}
	for h := body[preludeLen : preludeLen+size]; len(h) > 0; {
		n := int(h[0])
		if n == 0 || len(h) < 1+n+3 || h[1+n] != typeString {
			return nil, nil, b, errors.New("event stream header is malformed or not a string")
		}
		v := int(binary.BigEndian.Uint16(h[2+n:]))
		if len(h) < 4+n+v {
			return nil, nil, b, errors.New("event stream header has no end")
		}
		headers = append(headers, Header{string(h[1 : 1+n]), string(h[4+n : 4+n+v])})
		h = h[4+n+v:]
	}
	return headers, body[preludeLen+size:], rest, nil
}
