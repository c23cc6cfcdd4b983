package broker

import (
	"context"
	"errors"

	"github.com/milepost/milepost/state"
)

// loadFlight reads the messages from the cursor on that are not in memory. It lets go of the lock meanwhile. false means that there is
// nothing to send now.
func (s *Session) loadFlight() bool {
	c := s.c
	var seqs []uint64
	var sum int64
	for at := s.cursor; at < c.base+uint64(c.flight.len()) && len(seqs) < windowCount; at++ {
		if e := c.flight.at(int(at - c.base)); e.m == nil && !e.gone && !e.released {
			if sum += int64(e.size); sum > windowBytes && len(seqs) > 0 {
				break
			}
			seqs = append(seqs, e.seq)
		}
	}
	settled := c.b.journal.durable(c.put)
	found := make(map[uint64]entry, len(seqs))
	err := c.read(func(r state.Reader) error {
		for _, seq := range seqs {
			v, err := r.Get(c.keyOf(kindQueue, seq))
			if err != nil {
				return err
			}
			if v == nil {
				continue
			}
			e, err := parseMessage(v)
			if err != nil {
				c.b.log.Error("queued mqtt message cannot be read", "client", c.id, "error", err)
				continue
			}
			found[seq] = e
		}
		return nil
	})
	if c.conn != s {
		return false
	}
	if err != nil {
		c.b.log.Error("mqtt session cannot be read", "client", c.id, "error", err)
		return false
	}
	for _, seq := range seqs {
		for i := range c.flight.len() {
			e := c.flight.at(i)
			if e.seq != seq || e.gone || e.released || e.m != nil {
				continue
			}
			switch m, ok := found[seq]; {
			case ok:
				e.m, e.ids, e.retain = m.m, m.ids, m.retain
				c.hold(int64(e.size))
			case settled:
				c.b.metrics.dropped[dropDamaged].Inc()
				c.finish(e)
			}
			break
		}
	}
	return settled || len(found) > 0 || s.await(c.put)
}

// read runs f on a snapshot without the lock.
func (c *client) read(f func(state.Reader) error) error {
	c.mu.Unlock()
	defer c.mu.Lock()
	return c.b.store.View(context.Background(), f)
}

// loadQueue reads the next messages from disk, as loadFlight does.
func (s *Session) loadQueue(now int64) bool {
	c := s.c
	from := c.next
	settled := c.b.journal.durable(c.put)
	var got, expired []entry
	var sum int64
	reached := from
	err := c.read(func(r state.Reader) error {
		return r.Scan(c.keyOf(kindQueue, from), c.keyOf(kindQueue, extraBit), func(k, v []byte) error {
			seq := sequence(k)
			e, err := parseMessage(v)
			switch {
			case err != nil:
				c.b.log.Error("queued mqtt message cannot be read", "client", c.id, "error", err)
				c.b.metrics.dropped[dropDamaged].Inc()
				expired = append(expired, entry{seq: seq, size: uint32(len(v))})
			case e.m.deadline != 0 && e.m.deadline <= now:
				c.b.metrics.dropped[dropExpired].Inc()
				e.m, e.seq = nil, seq
				expired = append(expired, e)
			default:
				if sum += int64(e.size); len(got) > 0 && (sum > windowBytes || !c.b.memoryFor(sum)) {
					return state.ErrStop
				}
				e.seq = seq
				got = append(got, e)
			}
			if reached = seq + 1; len(got) >= windowCount || len(expired) >= 10*windowCount {
				return state.ErrStop
			}
			return nil
		})
	})
	if c.conn != s || c.next != from {
		return false
	}
	if err != nil && !errors.Is(err, state.ErrStop) {
		c.b.log.Error("mqtt session cannot be read", "client", c.id, "error", err)
		return false
	}
	for i := range expired {
		c.settled(&expired[i])
	}
	for _, e := range got {
		c.hold(int64(e.size))
		c.queue.push(e)
	}
	if reached > from {
		c.next = reached
		return true
	}
	if !settled {
		return s.await(c.put)
	}
	if c.next = c.last + 1; c.count > c.live { // else they had expired and were purged
		c.b.log.Error("queued mqtt messages are missing on disk", "client", c.id, "messages", c.count-c.live)
	}
	return false
}
