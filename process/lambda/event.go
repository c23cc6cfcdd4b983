package lambda

import (
	"encoding/binary"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/milepost/milepost/ingest/kinesisapi/sequence"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/stream"
)

// A source is what the events of one mapping say of every record.
type source struct {
	arn  string // of the stream, or of the consumer that the mapping reads as
	head string // from a record's beginning to its key
	tail string // from a record's second sequence number to its end
}

func newSource(arn, region, role string) source {
	tail := append([]byte{}, `","eventName":"aws:kinesis:record","invokeIdentityArn":`...)
	tail = appendQuoted(tail, role)
	tail = append(tail, `,"awsRegion":`...)
	tail = appendQuoted(tail, region)
	tail = append(tail, `,"eventSourceARN":`...)
	tail = appendQuoted(tail, arn)
	return source{arn: arn, head: `{"kinesis":{"kinesisSchemaVersion":"1.0","partitionKey":`, tail: string(append(tail, '}'))}
}

// overhead is about what a record takes in an event beside its data in base64 and its key.
func (s *source) overhead() int { return len(s.head) + len(s.tail) + 290 }

// An event is a batch as Lambda shows it to a function. It is built in memory that the next one uses again.
type event struct {
	doc     []byte
	numbers []int // where in doc the sequence number of each record begins
}

// A shardName is what sequence numbers are made of.
type shardName struct {
	id      stream.ShardID
	number  uint32
	created int64
}

func (s shardName) sequence(r *stream.Record) sequence.Number {
	return sequence.Number{Created: s.created, Number: sequence.Of(r.Pos), Arrived: max(r.Time.Unix(), s.created), Shard: s.number}
}

// build makes the document of a batch; w is its window, if there is one.
func (e *event) build(src *source, shard shardName, recs []stream.Record, w *process.Window) {
	n := 512
	for i := range recs {
		n += src.overhead() + len(recs[i].Key) + len(recs[i].Data)/3*4
	}
	b := slices.Grow(e.doc[:0], n)
	e.numbers = e.numbers[:0]
	b = append(b, `{"Records":`...)
	b, e.numbers = src.appendRecords(b, e.numbers, shard, recs)
	if w != nil {
		b = append(b, `,"window":{"start":"`...)
		b = w.Start.UTC().AppendFormat(b, time.RFC3339)
		b = append(b, `","end":"`...)
		b = w.End.UTC().AppendFormat(b, time.RFC3339)
		b = append(b, `"},"state":`...)
		if len(w.State) == 0 {
			b = append(b, "{}"...)
		} else {
			b = append(b, w.State...)
		}
		b = append(b, `,"shardId":"`...)
		b = append(b, shard.id...)
		b = append(b, `","eventSourceARN":`...)
		b = appendQuoted(b, src.arn)
		b = append(b, `,"isFinalInvokeForWindow":`...)
		b = strconv.AppendBool(b, w.Final)
		b = append(b, `,"isWindowTerminatedEarly":`...)
		b = strconv.AppendBool(b, w.Early)
	}
	e.doc = append(b, '}')
}

// appendRecords appends the list of records, and to numbers where each one's sequence number begins.
func (s *source) appendRecords(b []byte, numbers []int, shard shardName, recs []stream.Record) (doc []byte, at []int) {
	var run sequence.Run
	b = append(b, '[')
	for i := range recs {
		r := &recs[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, s.head...)
		b = appendQuoted(b, r.Key)
		b = append(b, `,"sequenceNumber":"`...)
		from := len(b)
		numbers = append(numbers, from)
		b = run.Append(b, shard.sequence(r))
		to := len(b)
		b = append(b, `","data":"`...)
		b = appendBase64(b, r.Data)
		b = append(b, `","approximateArrivalTimestamp":`...)
		b = appendSeconds(b, r.Time)
		b = append(b, `},"eventSource":"aws:kinesis","eventVersion":"1.0","eventID":"`...)
		b = append(b, shard.id...)
		b = append(b, ':')
		b = append(b, b[from:to]...)
		b = append(b, s.tail...)
	}
	return append(b, ']'), numbers
}

// number returns the sequence number of record i as it is in the document.
func (e *event) number(i int) []byte {
	from := e.numbers[i]
	to := from
	for e.doc[to] != '"' {
		to++
	}
	return e.doc[from:to]
}

// find returns which record has a sequence number. Those of one shard have the same length and grow.
func (e *event) find(number string) (int, bool) {
	return slices.BinarySearchFunc(e.numbers, number, func(from int, want string) int {
		to := min(from+len(want), len(e.doc))
		switch got := string(e.doc[from:to]); { // compared without a copy
		case got < want:
			return -1
		case got > want:
			return 1
		case to < len(e.doc) && e.doc[to] != '"':
			return 1 // want is only the beginning of it
		}
		return 0
	})
}

// appendSeconds appends a time as seconds with milliseconds behind the point.
func appendSeconds(b []byte, t time.Time) []byte {
	ms := t.UnixMilli()
	b = strconv.AppendInt(b, ms/1000, 10)
	ms %= 1000
	return append(b, '.', byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10))
}

const hexDigits = "0123456789abcdef"

// appendQuoted appends a JSON string. What is not UTF-8 becomes U+FFFD.
func appendQuoted(b []byte, s string) []byte {
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
			if r == utf8.RuneError && n == 1 {
				b = append(b, s[from:i]...)
				b = append(b, `\ufffd`...)
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
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		from = i
	}
	return append(append(b, s[from:]...), '"')
}

const base64Digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

// pairs are the two digits of every 12 bits: half as many look-ups as a digit at a time, which encoding/base64 does.
//
//nolint:gochecknoglobals // a table
var pairs = func() (t [1 << 12]uint16) {
	for i := range t {
		t[i] = uint16(base64Digits[i>>6]) | uint16(base64Digits[i&63])<<8
	}
	return t
}()

// appendBase64 appends data in base64, padded.
func appendBase64(b, data []byte) []byte {
	n := len(b)
	b = slices.Grow(b, (len(data)+2)/3*4)
	b = b[:n+(len(data)+2)/3*4]
	out := b[n:]
	i, j := 0, 0
	for i+8 <= len(data) && j+8 <= len(out) { // six at a time of the eight that are loaded
		v := binary.BigEndian.Uint64(data[i : i+8])
		binary.LittleEndian.PutUint64(out[j:j+8], uint64(pairs[v>>52])|uint64(pairs[v>>40&0xfff])<<16|
			uint64(pairs[v>>28&0xfff])<<32|uint64(pairs[v>>16&0xfff])<<48)
		i, j = i+6, j+8
	}
	data, out = data[i:], out[j:]
	for len(data) >= 3 {
		v := uint(data[0])<<16 | uint(data[1])<<8 | uint(data[2])
		binary.LittleEndian.PutUint16(out, pairs[v>>12&0xfff])
		binary.LittleEndian.PutUint16(out[2:], pairs[v&0xfff])
		data, out = data[3:], out[4:]
	}
	switch len(data) {
	case 1:
		binary.LittleEndian.PutUint16(out, pairs[uint(data[0])<<4])
		out[2], out[3] = '=', '='
	case 2:
		binary.LittleEndian.PutUint16(out, pairs[uint(data[0])<<4|uint(data[1])>>4])
		out[2], out[3] = base64Digits[data[1]&15<<2], '='
	}
	return b
}
