// Package kpl takes apart the aggregated records of the Kinesis Producer Library:
//
//	magic     4   f3 89 9a c2
//	message       protocol buffers: AggregatedRecord
//	checksum  16  MD5 of the message
//
//	AggregatedRecord { repeated string partition_key_table = 1; repeated string explicit_hash_key_table = 2; repeated Record records = 3; }
//	Record           { uint64 partition_key_index = 1; optional uint64 explicit_hash_key_index = 2; bytes data = 3; repeated Tag tags = 4; }
//
// What begins with the magic but is damaged anywhere is a plain record, as the Kinesis Client Library has it: all sub-records
// come out, or none.
package kpl

import (
	"bytes"
	"crypto/md5" //nolint:gosec // the checksum that the format defines; nothing secret
	"encoding/binary"
)

// A Record is one of the records in an aggregate. Data and the keys alias the aggregate.
type Record struct {
	Key     string
	HashKey string // the explicit hash key, decimal; "" if it has none
	Data    []byte
}

const (
	magic  = "\xf3\x89\x9a\xc2"
	sumLen = md5.Size
)

// Aggregated tells whether data is a whole aggregate: the magic and a checksum that agrees.
func Aggregated(data []byte) bool {
	if len(data) < len(magic)+sumLen || string(data[:len(magic)]) != magic {
		return false
	}
	m := data[len(magic) : len(data)-sumLen]
	sum := md5.Sum(m) //nolint:gosec // see the import
	return bytes.Equal(sum[:], data[len(data)-sumLen:])
}

// Split appends data's sub-records to out; ok is false, and out as it was, if data is not an aggregate. The cost of what is not one
// is a comparison of four bytes.
func Split(out []Record, data []byte) (recs []Record, ok bool) {
	if !Aggregated(data) {
		return out, false
	}
	m := data[len(magic) : len(data)-sumLen]
	var keys, hashes []string
	base := len(out)
	// The tables come first from every writer, but protocol buffers let fields come in any order.
	for p := m; len(p) > 0; {
		f, rest, ok := next(p)
		if !ok {
			return out[:base], false
		}
		switch {
		case f.num == 1 && f.wire == wireBytes:
			keys = append(keys, string(f.bytes))
		case f.num == 2 && f.wire == wireBytes:
			hashes = append(hashes, string(f.bytes))
		}
		p = rest
	}
	for p := m; len(p) > 0; {
		f, rest, _ := next(p)
		if f.num == 3 && f.wire == wireBytes {
			r, ok := sub(f.bytes, keys, hashes)
			if !ok {
				return out[:base], false
			}
			out = append(out, r)
		}
		p = rest
	}
	return out, true
}

func sub(p []byte, keys, hashes []string) (Record, bool) {
	var r Record
	var hasKey, hasData bool
	for len(p) > 0 {
		f, rest, ok := next(p)
		if !ok {
			return r, false
		}
		switch {
		case f.num == 1 && f.wire == wireVarint:
			if f.n >= uint64(len(keys)) {
				return r, false
			}
			r.Key, hasKey = keys[f.n], true
		case f.num == 2 && f.wire == wireVarint:
			if f.n >= uint64(len(hashes)) {
				return r, false
			}
			r.HashKey = hashes[f.n]
		case f.num == 3 && f.wire == wireBytes:
			r.Data, hasData = f.bytes, true
		}
		p = rest
	}
	return r, hasKey && hasData
}

const (
	wireVarint = 0
	wire64     = 1
	wireBytes  = 2
	wire32     = 5
)

type protoField struct {
	num   uint64
	wire  uint64
	n     uint64
	bytes []byte
}

// next reads one field of a message.
func next(p []byte) (f protoField, rest []byte, ok bool) {
	tag, n := binary.Uvarint(p)
	if n <= 0 || tag>>3 == 0 {
		return f, nil, false
	}
	f.num, f.wire = tag>>3, tag&7
	p = p[n:]
	switch f.wire {
	case wireVarint:
		if f.n, n = binary.Uvarint(p); n <= 0 {
			return f, nil, false
		}
		return f, p[n:], true
	case wire64:
		if len(p) < 8 {
			return f, nil, false
		}
		return f, p[8:], true
	case wireBytes:
		size, n := binary.Uvarint(p)
		if n <= 0 || size > uint64(len(p)-n) {
			return f, nil, false
		}
		f.bytes = p[n : n+int(size)]
		return f, p[n+int(size):], true
	case wire32:
		if len(p) < 4 {
			return f, nil, false
		}
		return f, p[4:], true
	}
	return f, nil, false
}

// Append appends an aggregate of records to out: for tests and for tools that feed a stream as the library would.
func Append(out []byte, recs []Record) []byte {
	var m []byte
	keys, hashes := map[string]uint64{}, map[string]uint64{}
	for _, r := range recs {
		if _, ok := keys[r.Key]; !ok {
			keys[r.Key] = uint64(len(keys))
			m = appendBytes(m, 1, []byte(r.Key))
		}
		if _, ok := hashes[r.HashKey]; !ok && r.HashKey != "" {
			hashes[r.HashKey] = uint64(len(hashes))
			m = appendBytes(m, 2, []byte(r.HashKey))
		}
	}
	for _, r := range recs {
		s := binary.AppendUvarint([]byte{1 << 3}, keys[r.Key])
		if r.HashKey != "" {
			s = binary.AppendUvarint(append(s, 2<<3), hashes[r.HashKey])
		}
		m = appendBytes(m, 3, appendBytes(s, 3, r.Data))
	}
	sum := md5.Sum(m) //nolint:gosec // see the import
	out = append(append(out, magic...), m...)
	return append(out, sum[:]...)
}

func appendBytes(b []byte, num byte, v []byte) []byte {
	b = append(b, num<<3|wireBytes)
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}
