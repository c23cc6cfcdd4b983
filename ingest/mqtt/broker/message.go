package broker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/milepost/milepost/internal/binenc"
)

// A message is shared by all who get it and never changes.
type message struct {
	topic, payload, properties []byte
	deadline                   int64 // seconds since 1970; 0: never expires
	qos                        byte  // as published
	retain                     bool  // as published
}

// overhead is what a message costs besides its bytes, in every bound.
const overhead = 64

func (m *message) size() int64 { return size(len(m.topic), len(m.payload), len(m.properties)) }

func size(topic, payload, properties int) int64 {
	return int64(topic) + int64(payload) + int64(properties) + overhead
}

func (m *Message) size() int64 { return size(len(m.Topic), len(m.Payload), len(m.Properties)) }

func (m *Message) deadline(now time.Time) int64 {
	if !m.Expires {
		return 0
	}
	return now.Unix() + int64(m.Expiry)
}

// keep copies a borrowed message.
func (m *Message) keep(deadline int64) *message {
	b := make([]byte, 0, len(m.Topic)+len(m.Payload)+len(m.Properties))
	b = append(b, m.Topic...)
	b = append(b, m.Payload...)
	b = append(b, m.Properties...)
	t, p := len(m.Topic), len(m.Topic)+len(m.Payload)
	return &message{
		topic: b[:t:t], payload: b[t:p:p], properties: b[p:len(b):len(b)],
		deadline: deadline, qos: m.QoS, retain: m.Retain,
	}
}

// An entry is a message in a queue, or in flight.
type entry struct {
	m     *message // nil: not in memory
	ids   []uint32 // subscription identifiers
	live  *live    // not nil: it is not on disk
	share string   // the shared subscription that it came through; "": none
	seq   uint64   // of a persistent session; its key on disk
	t     Ticket   // of the last change to its record of flight
	size  uint32
	id    uint16
	qos   byte
	retain,
	sent, // by this connection or an earlier one
	counted, // against the receive maximum of this connection
	released, // PUBREC has come; only the identifier is left
	gone bool // acknowledged; stays until it is the first in flight
}

// A stored message, on disk: format, flags, deadline, topic, properties, subscription identifiers, if it is shared the filter of the
// shared subscription, and the payload. Numbers are uvarints and byte strings have their length before them, but for the payload, which
// is the rest.
const messageFormat = 1

const (
	flagRetain      = 1 << 2 // of the delivery
	flagPublished   = 1 << 3 // the publisher's retain flag
	publishedShift  = 4      // the publisher's QoS
	flagShared      = 1 << 6 // it came through a shared subscription
	flagsUnassigned = 0x80
)

var errStored = errors.New("stored bytes cannot be read")

func appendMessage(dst []byte, topic, payload, properties []byte, deadline int64, flags byte, ids []uint32, share string) []byte {
	if share != "" {
		flags |= flagShared
	}
	dst = append(dst, messageFormat, flags)
	dst = binary.AppendUvarint(dst, uint64(deadline))
	dst = binenc.AppendText(dst, topic)
	dst = binenc.AppendText(dst, properties)
	dst = binary.AppendUvarint(dst, uint64(len(ids)))
	for _, id := range ids {
		dst = binary.AppendUvarint(dst, uint64(id))
	}
	if share != "" {
		dst = binenc.AppendText(dst, share)
	}
	return append(dst, payload...)
}

func messageFlags(qos byte, retain bool, m *message) byte {
	f := qos | m.qos<<publishedShift
	if retain {
		f |= flagRetain
	}
	if m.retain {
		f |= flagPublished
	}
	return f
}

// parseMessage copies v.
func parseMessage(v []byte) (e entry, err error) {
	r := reader(append([]byte(nil), v...))
	format, flags := r.Byte(), r.Byte()
	if format != messageFormat || flags&flagsUnassigned != 0 || flags&3 == 3 {
		return entry{}, fmt.Errorf("message of format %d with flags %#x: %w", format, flags, errStored)
	}
	m := &message{
		deadline: int64(r.Uvarint()), topic: r.Bytes(), properties: r.Bytes(),
		qos: flags >> publishedShift & 3, retain: flags&flagPublished != 0,
	}
	n := r.Uvarint()
	if n > uint64(len(r.B)) {
		return entry{}, fmt.Errorf("message with %d subscription identifiers: %w", n, errStored)
	}
	for range n {
		e.ids = append(e.ids, uint32(r.Uvarint()))
	}
	if flags&flagShared != 0 {
		e.share = r.Text()
	}
	if r.Err != nil {
		return entry{}, fmt.Errorf("message is cut short: %w", errStored)
	}
	m.payload = r.B
	e.m, e.qos, e.retain, e.size = m, flags&3, flags&flagRetain != 0, uint32(m.size())
	return e, nil
}

// reader takes stored bytes apart. After an error everything else is empty.
func reader(b []byte) binenc.Reader { return binenc.Reader{B: b, Damaged: errStored} }

// A deque is a queue that gives its memory back.
type deque[T any] struct {
	buf  []T
	head int
}

func (d *deque[T]) len() int     { return len(d.buf) - d.head }
func (d *deque[T]) at(i int) *T  { return &d.buf[d.head+i] }
func (d *deque[T]) push(v T)     { d.buf = append(d.buf, v) }
func (d *deque[T]) front() *T    { return d.at(0) }
func (d *deque[T]) slice() []T   { return d.buf[d.head:] }
func (d *deque[T]) set(list []T) { d.buf, d.head = list, 0 }

func (d *deque[T]) pop() (v T) {
	var none T
	v, d.buf[d.head] = d.buf[d.head], none
	d.head++
	switch {
	case d.head == len(d.buf):
		if d.head = 0; cap(d.buf) > 64 {
			d.buf = nil
		} else {
			d.buf = d.buf[:0]
		}
	case d.head >= 64 && d.head*2 >= len(d.buf):
		n := copy(d.buf, d.buf[d.head:])
		clear(d.buf[n:])
		d.buf, d.head = d.buf[:n], 0
	}
	return v
}
