package broker

import (
	"context"
	"errors"
	"time"

	"github.com/milepost/milepost/state"
)

// When a session ends, what it had of shared subscriptions goes to their other members (4.8.2): messages of QoS 1 that it has not
// acknowledged, and those of either QoS that were never sent to it. A message of QoS 2 that was sent may have arrived, so nobody else
// gets it (MQTT-4.8.2-5). Its own subscriptions' messages end with it.
//
// A session without a queue on disk passes its messages on at once. One with a queue is marked as ended on disk, and the clock's
// goroutine passes on from there, a piece at a time; each piece goes over in one batch of the journal, so that a crash in the middle
// neither loses nor doubles a message, and the next start goes on with the rest.

// legacy returns what is in memory for other members. The caller holds c.mu.
func (c *client) legacy() []entry {
	if !c.shares {
		return nil
	}
	var out []entry
	for i := range c.flight.len() {
		if e := c.flight.at(i); e.share != "" && e.m != nil && !e.gone && !e.released && (e.qos == 1 || !e.sent) {
			out = append(out, *e)
		}
	}
	for _, e := range c.queue.slice() {
		if e.share != "" && e.m != nil {
			out = append(out, e)
		}
	}
	return out
}

// die marks the session on disk as one that has ended and has something to pass on. The caller holds c.mu.
func (c *client) die() {
	for i := range c.flight.len() {
		if e := c.flight.at(i); e.qos == 2 && !e.sent && !e.gone && !e.released {
			c.b.journal.remove(c.keyOf(kindFlight, e.seq), true) // its identifier was never used
		}
	}
	c.dead, c.left = true, time.Now()
	c.inheritAfter(c.store(c.key(kindRecord), appendRecord(nil, c), true))
}

// inheritAfter has the clock go on when t is durable: what it then reads from the disk is all there is.
func (c *client) inheritAfter(t Ticket) {
	c.b.journal.after(t, func(err error) {
		if err == nil { // else nothing will ever be written again
			c.b.clock.inherit(c)
		}
	})
}

// inherit passes on the next piece of what a session that has ended had on disk.
func (b *Broker) inherit(c *client) {
	c.mu.Lock()
	from, left := c.next, c.bytes
	c.mu.Unlock()
	var piece []entry
	var sum int64
	err := b.store.View(context.Background(), func(r state.Reader) error {
		return r.Scan(c.keyOf(kindQueue, from), c.keyOf(kindQueue, extraBit), func(k, v []byte) error {
			e, err := parseMessage(v)
			if err != nil {
				b.log.Error("queued mqtt message cannot be read", "client", c.id, "error", err)
				b.metrics.dropped[dropDamaged].Inc()
				return nil
			}
			e.seq = sequence(k)
			if e.qos == 2 {
				sent, err := r.Get(c.keyOf(kindFlight, e.seq))
				if err != nil {
					return err
				}
				e.sent = sent != nil
			}
			piece = append(piece, e)
			if sum += int64(e.size); len(piece) >= windowCount || sum > windowBytes {
				return state.ErrStop
			}
			return nil
		})
	})
	if err != nil && !errors.Is(err, state.ErrStop) {
		b.log.Error("mqtt session cannot be read", "client", c.id, "error", err)
		return // the next start tries again
	}
	if len(piece) == 0 {
		b.queued.Add(-left)
		b.journal.removePrefix(c.prefix())
		return
	}
	b.journal.cut.RLock()
	var t Ticket
	for i := range piece {
		e := &piece[i]
		b.queued.Add(-int64(e.size))
		if e.share != "" && !e.sent {
			b.pass(e)
		}
		t = b.journal.remove(c.keyOf(kindQueue, e.seq), true)
	}
	b.journal.cut.RUnlock()
	c.mu.Lock()
	c.next, c.bytes = piece[len(piece)-1].seq+1, left-sum
	c.mu.Unlock()
	c.inheritAfter(t)
}

// passAll passes on what was in memory. The caller holds no lock.
func (b *Broker) passAll(legacy []entry) {
	for i := range legacy {
		b.pass(&legacy[i])
	}
}

// pass gives a message to another member of the group that it was for.
func (b *Broker) pass(e *entry) {
	m := e.m
	if m.deadline != 0 && m.deadline <= time.Now().Unix() {
		b.metrics.dropped[dropExpired].Inc()
		return
	}
	sc, ok := b.scratch.Get().(*matches)
	if !ok {
		sc = new(matches)
	}
	defer b.scratch.Put(sc)
	sc.reset()
	p := publication{
		Message: &Message{Topic: m.topic, Payload: m.payload, Properties: m.properties, QoS: m.qos, Retain: m.retain},
		kept:    m, deadline: m.deadline, scratch: sc,
	}
	r := Receipt{Refused: 1}
	if b.trie.members(e.share, sc) {
		r.Refused = 0
		b.share(&p, sc.shared[0], &r)
	}
	if r.Refused > 0 { // nobody is left, or nobody has room
		b.metrics.dropped[dropShared].Inc()
	}
}
