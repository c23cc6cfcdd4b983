package broker

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/milepost/milepost/internal/binenc"
	"github.com/milepost/milepost/state"
)

const (
	recordFormat = 1

	flagWill        = 1 << 0
	flagWillRetain  = 1 << 1
	flagWillExpires = 1 << 2
	willQoSShift    = 3
	flagDead        = 1 << 5

	flagNoLocal     = 1 << 2
	flagAsPublished = 1 << 3
)

// appendRecord writes what a session is: format, flags, client id, device, expiry, when its connection ended (0: it has one), and the will.
func appendRecord(dst []byte, c *client) []byte {
	var flags byte
	if w := c.will; w != nil {
		flags = flagWill | w.Message.QoS<<willQoSShift
		if w.Message.Retain {
			flags |= flagWillRetain
		}
		if w.Message.Expires {
			flags |= flagWillExpires
		}
	}
	if c.dead {
		flags |= flagDead
	}
	dst = append(dst, recordFormat, flags)
	dst = binenc.AppendText(dst, c.id)
	dst = binenc.AppendText(dst, c.device)
	dst = binary.AppendUvarint(dst, uint64(c.expiry))
	left := uint64(0)
	if c.conn == nil {
		left = uint64(c.left.Unix())
	}
	dst = binary.AppendUvarint(dst, left)
	if w := c.will; w != nil {
		dst = binary.AppendUvarint(dst, uint64(w.Delay))
		dst = binary.AppendUvarint(dst, uint64(w.Message.Expiry))
		dst = binenc.AppendText(dst, w.Message.Topic)
		dst = binenc.AppendText(dst, w.Message.Properties)
		dst = binenc.AppendText(dst, w.Message.Payload)
	}
	return dst
}

// parseRecord fills in c; left is zero if the session had a connection.
func parseRecord(v []byte, c *client) error {
	r := reader(bytes.Clone(v))
	format, flags := r.Byte(), r.Byte()
	if format != recordFormat {
		return fmt.Errorf("session of format %d: %w", format, errStored)
	}
	c.id, c.device = r.Text(), r.Text()
	c.expiry, c.dead = uint32(r.Uvarint()), flags&flagDead != 0
	if left := r.Uvarint(); left != 0 {
		c.left = time.Unix(int64(left), 0)
	}
	if flags&flagWill != 0 {
		c.will = &Will{Delay: uint32(r.Uvarint()), Message: Message{
			QoS: flags >> willQoSShift & 3, Retain: flags&flagWillRetain != 0,
			Expires: flags&flagWillExpires != 0, Expiry: uint32(r.Uvarint()),
			Topic: r.Bytes(), Properties: r.Bytes(), Payload: r.Bytes(),
		}}
	}
	if r.Err != nil || c.id == "" || flags>>willQoSShift&3 == 3 {
		return fmt.Errorf("session is cut short: %w", errStored)
	}
	return nil
}

func appendSub(dst []byte, s *sub) []byte {
	flags := s.qos
	if s.noLocal {
		flags |= flagNoLocal
	}
	if s.asPublished {
		flags |= flagAsPublished
	}
	return binary.AppendUvarint(append(dst, flags), uint64(s.id))
}

func parseSub(c *client, filter, v []byte) (*sub, error) {
	r := reader(bytes.Clone(v))
	flags := r.Byte()
	s := &sub{
		c: c, filter: string(filter), qos: flags & 3, noLocal: flags&flagNoLocal != 0, asPublished: flags&flagAsPublished != 0,
		id: uint32(r.Uvarint()),
	}
	if _, _, err := CheckFilter(s.filter); err != nil || r.Err != nil || s.qos == 3 {
		return nil, fmt.Errorf("subscription to %q: %w", filter, errStored)
	}
	return s, nil
}

// sequence is the number at the end of a key.
func sequence(k []byte) uint64 { return binary.BigEndian.Uint64(k[len(k)-8:]) }

// restore reads what an earlier broker has left.
func (b *Broker) restore(ctx context.Context, now time.Time) error {
	return b.store.View(ctx, func(r state.Reader) error {
		v, err := r.Get([]byte(keyFormat))
		if err != nil {
			return err
		}
		if v != nil && (len(v) != 1 || v[0] > recordFormat) {
			return fmt.Errorf("mqtt sessions have format %v: use the Milepost that wrote them, or a later one", v)
		}
		if v == nil {
			b.journal.set([]byte(keyFormat), []byte{recordFormat}, false)
		}
		var c *client
		from := []byte(keySessions)
		if err := r.Scan(from, state.PrefixEnd(from), func(k, v []byte) error {
			k = k[len(keySessions):]
			if len(k) < 9 {
				return fmt.Errorf("key %q of an mqtt session is cut short", k)
			}
			if n := binary.BigEndian.Uint64(k); c == nil || c.number != n {
				b.restored(c, now)
				c = &client{b: b, number: n, stored: true}
				b.numbers.Store(max(b.numbers.Load(), n))
			}
			if err := c.restore(k[8], k[9:], v); err != nil {
				b.log.Error("stored mqtt session is damaged in part; the rest is kept", "client", c.id, "error", err)
			}
			return nil
		}); err != nil {
			return err
		}
		b.restored(c, now)
		from = []byte(keyRetained)
		return r.Scan(from, state.PrefixEnd(from), func(k, v []byte) error {
			e, err := parseMessage(v)
			switch {
			case err != nil:
				b.log.Error("stored retained message is damaged; it is ignored", "topic", string(k[len(from):]), "error", err)
			case e.m.deadline != 0 && e.m.deadline <= now.Unix():
				b.journal.remove(k, true)
			case !b.retained.put(e.m, b.limits.Retained, b.limits.RetainedBytes, now.Unix(), func() {}):
				b.metrics.dropped[dropRetained].Inc() // the bound was lowered; it stays on disk until it is raised
			}
			return nil
		})
	})
}

// restore takes one key of the session. They come in the order of their kinds: the record first, flights before the queue.
func (c *client) restore(kind byte, k, v []byte) error {
	switch {
	case kind == kindRecord:
		if err := parseRecord(v, c); err != nil {
			return err
		}
		c.persistent = c.expiry > 0
	case c.id == "":
		return nil // without a record it is a session that ended; restored removes it
	case kind == kindFilter && c.dead:
	case kind == kindFilter:
		s, err := parseSub(c, k, v)
		if err != nil {
			return err
		}
		c.subs = append(c.subs, s)
	case kind == kindInbound && len(k) == 2:
		if c.inbound == nil {
			c.inbound = map[uint16]*Session{}
		}
		c.inbound[binary.BigEndian.Uint16(k)] = nil
	case kind == kindFlight && len(k) == 8 && len(v) == 3:
		e := entry{seq: sequence(k), id: binary.BigEndian.Uint16(v), sent: true, released: v[2] == flightReleased}
		if e.released {
			e.qos = 2
		}
		c.flight.push(e)
		c.place(e.seq)
	case kind == kindQueue && len(k) == 8:
		return c.restoreQueued(sequence(k), v)
	default:
		return fmt.Errorf("key of kind %q: %w", kind, errStored)
	}
	return nil
}

func (c *client) place(seq uint64) {
	if seq&extraBit != 0 {
		c.extra = max(c.extra, seq&^extraBit)
	} else {
		c.last = max(c.last, seq)
	}
}

func (c *client) restoreQueued(seq uint64, v []byte) error {
	e, err := parseMessage(v)
	if err != nil {
		c.b.journal.remove(c.keyOf(kindQueue, seq), true)
		c.b.metrics.dropped[dropDamaged].Inc()
		return err
	}
	i, flying := slices.BinarySearchFunc(c.flight.slice(), seq, func(e entry, seq uint64) int {
		switch {
		case e.seq < seq:
			return -1
		case e.seq > seq:
			return 1
		}
		return 0
	})
	if flying {
		if f := c.flight.at(i); !f.released {
			f.qos, f.retain, f.size = e.qos, e.retain, e.size
		}
	}
	c.place(seq)
	c.count++
	c.bytes += int64(e.size)
	c.b.queued.Add(int64(e.size))
	c.expiring = c.expiring || e.m.deadline != 0
	c.shares = c.shares || e.share != ""
	if !flying && c.next == 0 && seq&extraBit == 0 {
		c.next = seq
	}
	return nil
}

// restored takes a session that was read, and begins its time without a connection.
func (b *Broker) restored(c *client, now time.Time) {
	if c == nil {
		return
	}
	if c.dead { // what it had is passed on when all sessions are there
		c.ended, c.next = true, 0
		b.clock.inherit(c)
		return
	}
	if c.id == "" || b.clients[c.id] != nil {
		b.journal.removePrefix(c.prefix())
		return
	}
	if c.next == 0 {
		c.next = c.last + 1 // nothing but what is in flight
	}
	kept := slices.DeleteFunc(c.flight.slice(), func(e entry) bool { return e.size == 0 && !e.released })
	c.flight.set(kept)
	for i := range kept {
		if c.byID == nil {
			c.byID = map[uint16]uint64{}
		}
		c.byID[kept[i].id] = uint64(i)
		c.lastID = max(c.lastID, kept[i].id)
	}
	c.live = len(kept)
	if c.left.IsZero() {
		c.left = now
	}
	for _, s := range c.subs {
		b.trie.add(s, nil)
	}
	c.several.Store(len(c.subs) > 1)
	if c.will != nil {
		c.willAt = c.left.Add(time.Duration(min(c.will.Delay, c.expiry)) * time.Second)
		if grace := now.Add(b.limits.RestartGrace); c.willAt.Before(grace) {
			c.willAt = grace
		}
	} else if !c.persistent {
		b.journal.removePrefix(c.prefix())
		return
	}
	b.clients[c.id] = c
	b.clock.set(c, c.due())
}

// due is when something happens to a session without a connection.
func (c *client) due() time.Time {
	end := c.left.Add(time.Duration(c.expiry) * time.Second)
	if c.will != nil && (c.willAt.Before(end) || !c.persistent) {
		return c.willAt
	}
	return end
}

func (b *Broker) retainedKey(topic []byte) []byte {
	return append([]byte(keyRetained), topic...)
}

// Subscriptions returns the filters of a client id's session, for people who ask why something does not arrive.
func (b *Broker) Subscriptions(clientID string) []string {
	b.mu.Lock()
	c := b.clients[clientID]
	b.mu.Unlock()
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, s := range c.subs {
		out = append(out, strings.Clone(s.filter))
	}
	slices.Sort(out)
	return out
}
