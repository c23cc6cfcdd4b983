package kinesisapi

import (
	"bytes"
	"encoding/base64"
	"unicode/utf8"
	"unsafe"

	"github.com/milepost/milepost/ingest/kinesisapi/wire"
	"github.com/milepost/milepost/stream"
)

// A putRequest is a PutRecord or PutRecords, decoded. It is pooled with its buffers. Keys and, in CBOR, data alias the body; the
// log copies both before Append returns.
type putRequest struct {
	name   string // the stream's name, or
	arn    string // its ARN
	recs   []stream.Record
	hashes []stream.Hash // what recs' Hash point to; its capacity is maxPutRecords, so that it never moves
	data   []byte        // decoded base64
	order  string        // SequenceNumberForOrdering
	dryRun bool
}

const (
	maxPutRecords = 500
	maxPutBytes   = 10 << 20 // data and keys of one request
	maxData       = 10 << 20 // data of one record
	maxKeyChars   = 256
	maxKeyBytes   = 4 * maxKeyChars
	maxHashDigits = 39
)

func (p *putRequest) reset() {
	clear(p.recs) // they point into a body that others will use
	if p.hashes == nil {
		p.hashes = make([]stream.Hash, 0, maxPutRecords)
		p.recs = make([]stream.Record, 0, maxPutRecords)
	}
	p.name, p.arn, p.order, p.dryRun = "", "", "", false
	p.recs, p.hashes, p.data = p.recs[:0], p.hashes[:0], p.data[:0]
}

// alias makes a string of bytes that outlive it.
func alias(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// decodePutJSON decodes what clients send on any ordinary day: no escapes, no unknown members, nothing out of bounds. It returns
// false for everything else, right or wrong, and the careful path has the say. Differential fuzzing keeps the two together.
func (p *putRequest) decodePutJSON(body []byte, many bool) bool {
	// Base64 shrinks to three quarters, so the buffer never grows while data points into it.
	if need := len(body)/4*3 + 3; cap(p.data) < need {
		p.data = make([]byte, 0, need)
	}
	s := scan{b: body}
	if !s.take('{') {
		return false
	}
	var key, data, explicit []byte
	var hasKey, hasData, hasExplicit, hasRecords, hasName, hasARN bool
	for first := true; ; first = false {
		if s.take('}') {
			break
		}
		if !first && !s.take(',') {
			return false
		}
		member, ok := s.text()
		if !ok || !s.take(':') {
			return false
		}
		switch {
		case string(member) == "StreamName" && !hasName:
			v, ok := s.text()
			if !ok {
				return false
			}
			p.name, hasName = alias(v), true
		case string(member) == "StreamARN" && !hasARN:
			v, ok := s.text()
			if !ok {
				return false
			}
			p.arn, hasARN = alias(v), true
		case many && string(member) == "Records" && !hasRecords:
			if !p.recordsJSON(&s) {
				return false
			}
			hasRecords = true
		case !many && string(member) == "Data" && !hasData:
			if data, hasData = s.blob(p); !hasData {
				return false
			}
		case !many && string(member) == "PartitionKey" && !hasKey:
			if key, hasKey = s.text(); !hasKey {
				return false
			}
		case !many && string(member) == "ExplicitHashKey" && !hasExplicit:
			if explicit, hasExplicit = s.text(); !hasExplicit {
				return false
			}
		default:
			return false
		}
	}
	if s.space(); s.i != len(s.b) || (!hasName && !hasARN) {
		return false
	}
	if many {
		return hasRecords
	}
	return hasKey && hasData && p.add(key, data, explicit)
}

func (p *putRequest) recordsJSON(s *scan) bool {
	if !s.take('[') {
		return false
	}
	for n := 0; ; n++ {
		if s.take(']') {
			return n > 0
		}
		if n == maxPutRecords || (n > 0 && !s.take(',')) || !s.take('{') {
			return false
		}
		var key, data, explicit []byte
		var hasKey, hasData, ok bool
		for first := true; !s.take('}'); first = false {
			if !first && !s.take(',') {
				return false
			}
			member, found := s.text()
			if !found || !s.take(':') {
				return false
			}
			switch string(member) {
			case "Data":
				data, ok = s.blob(p)
				ok, hasData = ok && !hasData, true
			case "PartitionKey":
				key, ok = s.text()
				ok, hasKey = ok && !hasKey, true
			case "ExplicitHashKey":
				ok = explicit == nil
				if ok {
					explicit, ok = s.text()
				}
			default:
				return false
			}
			if !ok {
				return false
			}
		}
		if !hasKey || !hasData || !p.add(key, data, explicit) {
			return false
		}
	}
}

// add appends a record if it is within bounds.
func (p *putRequest) add(key, data, explicit []byte) bool {
	if len(key) == 0 || (len(key) > maxKeyChars && utf8.RuneCount(key) > maxKeyChars) || len(data) > maxData {
		return false
	}
	r := stream.Record{Key: alias(key), Data: data}
	if explicit != nil {
		if len(explicit) > 1 && explicit[0] == '0' {
			return false
		}
		h, ok := parseHash(alias(explicit))
		if !ok {
			return false
		}
		p.hashes = append(p.hashes, h)
		r.Hash = &p.hashes[len(p.hashes)-1]
	}
	p.recs = append(p.recs, r)
	return true
}

// scan walks over JSON of the simplest shape.
type scan struct {
	b []byte
	i int
}

func (s *scan) space() {
	for s.i < len(s.b) && (s.b[s.i] == ' ' || s.b[s.i] == '\n' || s.b[s.i] == '\t' || s.b[s.i] == '\r') {
		s.i++
	}
}

// take passes c, and space before it.
func (s *scan) take(c byte) bool {
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	s.space()
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	return false
}

// text passes a short string without escapes.
func (s *scan) text() ([]byte, bool) {
	if !s.take('"') {
		return nil, false
	}
	high := byte(0)
	for i := s.i; i < len(s.b); i++ {
		c := s.b[i]
		if c == '"' {
			t := s.b[s.i:i:i]
			s.i = i + 1
			return t, high < utf8.RuneSelf || utf8.Valid(t)
		}
		if c < ' ' || c == '\\' {
			return nil, false
		}
		high |= c
	}
	return nil, false
}

// blob passes a base64 string and decodes it into p.data.
func (s *scan) blob(p *putRequest) ([]byte, bool) {
	if !s.take('"') {
		return nil, false
	}
	n := bytes.IndexByte(s.b[s.i:], '"')
	if n < 0 || n%4 != 0 {
		return nil, false
	}
	text := s.b[s.i : s.i+n]
	s.i += n + 1
	at := len(p.data)
	var ok bool
	if p.data, ok = appendBase64(p.data, text); !ok {
		return nil, false
	}
	return p.data[at:len(p.data):len(p.data)], true
}

// base64Table gives the six bits of a character in each of the four places of a group; bad has a bit that none of them has.
type base64Table [4][256]uint32

const badBase64 = 1 << 24

//nolint:gochecknoglobals // a table
var decodeTable = func() (t base64Table) {
	for place := range t {
		for c := range t[place] {
			t[place][c] = badBase64
		}
		for v, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") {
			t[place][c] = uint32(v) << (18 - 6*place)
		}
	}
	return t
}()

// appendBase64 decodes padded base64 strictly. b must have room for three bytes for each four of text, and one more: this is for a
// buffer that must not move.
func appendBase64(b, text []byte) ([]byte, bool) {
	if len(text) == 0 {
		return b, true
	}
	whole := text[:len(text)-4] // the last group may be padded
	n := len(b)
	out := b[:n+len(whole)/4*3]
	t := &decodeTable
	dst := out[n:]
	for len(whole) >= 8 && len(dst) >= 6 {
		v := t[0][whole[0]] | t[1][whole[1]] | t[2][whole[2]] | t[3][whole[3]]
		w := t[0][whole[4]] | t[1][whole[5]] | t[2][whole[6]] | t[3][whole[7]]
		if (v|w)&badBase64 != 0 {
			return b, false
		}
		dst[0], dst[1], dst[2] = byte(v>>16), byte(v>>8), byte(v)
		dst[3], dst[4], dst[5] = byte(w>>16), byte(w>>8), byte(w)
		whole, dst = whole[8:], dst[6:]
	}
	for len(whole) >= 4 && len(dst) >= 3 {
		v := t[0][whole[0]] | t[1][whole[1]] | t[2][whole[2]] | t[3][whole[3]]
		if v&badBase64 != 0 {
			return b, false
		}
		dst[0], dst[1], dst[2] = byte(v>>16), byte(v>>8), byte(v)
		whole, dst = whole[4:], dst[3:]
	}
	var last [3]byte
	k, err := base64.StdEncoding.Strict().Decode(last[:], text[len(text)-4:])
	if err != nil || bytes.ContainsAny(text[len(text)-4:], "\r\n") {
		return b, false
	}
	return append(out, last[:k]...), true
}

// decodePutCBOR is decodePutJSON for CBOR.
func (p *putRequest) decodePutCBOR(body []byte, many bool) bool {
	r := wire.NewCBORReader(body)
	if r.Kind() != wire.Map || r.Open() != nil {
		return false
	}
	var key, data, explicit []byte
	var hasKey, hasData, hasRecords bool
	for {
		more, err := r.More()
		if err != nil {
			return false
		}
		if !more {
			break
		}
		member, err := r.Key()
		if err != nil {
			return false
		}
		switch {
		case string(member) == "StreamName" && p.name == "":
			p.name, err = aliasText(r)
		case string(member) == "StreamARN" && p.arn == "":
			p.arn, err = aliasText(r)
		case many && string(member) == "Records" && !hasRecords:
			if !p.recordsCBOR(r) {
				return false
			}
			hasRecords = true
		case !many && string(member) == "Data" && !hasData:
			if r.Kind() != wire.Bytes {
				return false
			}
			data, err = r.Blob()
			hasData = true
		case !many && string(member) == "PartitionKey" && !hasKey:
			key, err = text(r)
			hasKey = true
		case !many && string(member) == "ExplicitHashKey" && explicit == nil:
			explicit, err = text(r)
		default:
			return false
		}
		if err != nil {
			return false
		}
	}
	if r.End() != nil || (p.name == "" && p.arn == "") {
		return false
	}
	if many {
		return hasRecords
	}
	return hasKey && hasData && p.add(key, data, explicit)
}

func text(r *wire.CBORReader) ([]byte, error) {
	if r.Kind() != wire.String {
		return nil, wire.ErrSyntax
	}
	return r.Text()
}

func aliasText(r *wire.CBORReader) (string, error) {
	b, err := text(r)
	if err == nil && len(b) == 0 {
		return "", wire.ErrSyntax
	}
	return alias(b), err
}

func (p *putRequest) recordsCBOR(r *wire.CBORReader) bool {
	if r.Kind() != wire.List || r.Open() != nil {
		return false
	}
	for n := 0; ; n++ {
		more, err := r.More()
		if err != nil {
			return false
		}
		if !more {
			return n > 0
		}
		if n == maxPutRecords || r.Kind() != wire.Map || r.Open() != nil {
			return false
		}
		var key, data, explicit []byte
		var hasKey, hasData bool
		for {
			more, err := r.More()
			if err != nil {
				return false
			}
			if !more {
				break
			}
			member, err := r.Key()
			if err != nil {
				return false
			}
			switch {
			case string(member) == "Data" && !hasData:
				if r.Kind() != wire.Bytes {
					return false
				}
				data, err = r.Blob()
				hasData = true
			case string(member) == "PartitionKey" && !hasKey:
				key, err = text(r)
				hasKey = true
			case string(member) == "ExplicitHashKey" && explicit == nil:
				explicit, err = text(r)
			default:
				return false
			}
			if err != nil {
				return false
			}
		}
		if !hasKey || !hasData || !p.add(key, data, explicit) {
			return false
		}
	}
}
