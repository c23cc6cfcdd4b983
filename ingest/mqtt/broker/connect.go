package broker

import (
	"slices"
	"strings"
	"time"
)

// find returns the session of a client id, or a new one.
func (b *Broker) find(want *Connect) (c *client, fresh bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed.Load() {
		return nil, false, ErrClosed
	}
	if c = b.clients[want.ClientID]; c != nil {
		return c, false, nil
	}
	expiry := min(want.Expiry, b.limits.MaxExpiry)
	if len(b.clients) >= b.limits.Sessions || expiry > 0 && b.journal.full() {
		return nil, false, ErrBusy
	}
	c = &client{
		b: b, id: strings.Clone(want.ClientID), device: strings.Clone(want.Device), number: b.numbers.Add(1),
		persistent: expiry > 0, next: 1,
	}
	b.clients[c.id] = c
	return c, true, nil
}

// forget takes out a session that has ended. Its client id may have another one by now.
func (b *Broker) forget(c *client) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.clients[c.id] == c {
		delete(b.clients, c.id)
	}
}

// Connect begins a connection of a session: the one with this client id if there is one and want.Clean is not set (present is true
// then), or a new one. An older connection of the client id is kicked with TakenOver, and its will published or not as section 3.1.4
// says: not if its delay is not zero and the session goes on. Session.Ticket says when the session is on disk.
func (b *Broker) Connect(want Connect, conn Conn) (s *Session, present bool, err error) {
	for {
		c, fresh, err := b.find(&want)
		if err != nil {
			return nil, false, err
		}
		s, will, legacy, err := c.attach(&want, conn, fresh)
		b.passAll(legacy)
		if will != nil {
			b.publishWill(will)
		}
		switch {
		case err != nil:
			return nil, false, err
		case s != nil:
			b.resumed(s, fresh)
			return s, !fresh, nil
		}
		b.forget(c) // it has ended: the next round makes another
	}
}

// resumed tells what a session that goes on is subscribed to.
func (b *Broker) resumed(s *Session, fresh bool) {
	if fresh || b.listening == nil {
		return
	}
	s.c.mu.Lock()
	subs := slices.Clone(s.c.subs)
	s.c.mu.Unlock()
	for _, sub := range subs {
		b.listening(s.number, s.c.device, sub.filter)
	}
}

// attach gives the session to a connection. It returns no session if this one has ended.
func (c *client) attach(want *Connect, conn Conn, fresh bool) (_ *Session, will *Will, legacy []entry, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil, nil, nil, nil
	}
	if !fresh {
		if c.device != "" && c.device != want.Device {
			return nil, nil, nil, ErrOwner
		}
		over := want.Clean || !c.persistent || c.expiry == 0
		if old := c.conn; old != nil {
			c.conn = nil
			c.b.connected.Add(-1)
			c.b.metrics.takenOver.Inc()
			old.conn.Kick(TakenOver) // MQTT-3.1.4-3
			if c.will != nil && (over || c.will.Delay == 0) {
				will = c.will
			}
			if !over {
				c.unload()
			}
		} else if over {
			will = c.will
		}
		c.will = nil
		if over {
			return nil, will, c.end(), nil // MQTT-3.1.2-4
		}
		c.b.clock.clear(c)
	}
	s := &Session{
		c: c, conn: conn, number: c.b.conns.Add(1), version: want.Version, maxPacket: want.MaxPacket, hungry: true, cursor: c.base,
		window: c.b.limits.InFlight,
	}
	if want.ReceiveMaximum > 0 {
		s.window = min(s.window, int(want.ReceiveMaximum))
	}
	c.conn, c.left = s, time.Time{}
	c.b.connected.Add(1)
	c.expiry = min(want.Expiry, c.b.limits.MaxExpiry)
	if want.Will != nil {
		c.will = want.Will.clone()
	}
	if t := c.record(); c.persistent {
		s.ticket = t
	}
	return s, will, nil, nil
}

func (w *Will) clone() *Will {
	v := *w
	v.Message.From, v.Message.PacketID = nil, 0
	v.Message.Topic = slices.Clone(v.Message.Topic)
	v.Message.Payload = slices.Clone(v.Message.Payload)
	v.Message.Properties = slices.Clone(v.Message.Properties)
	return &v
}

func (b *Broker) publishWill(w *Will) {
	b.metrics.wills.Inc()
	if _, err := b.Publish(&w.Message); err != nil {
		b.log.Error("will is not published", "topic", string(w.Message.Topic), "error", err)
	}
}

func (b *Broker) disconnect(s *Session, reason byte, sendWill bool) {
	c := s.c
	c.mu.Lock()
	if c.conn != s || c.ended {
		c.mu.Unlock()
		return
	}
	b.connected.Add(-1)
	if reason == ShuttingDown && sendWill {
		// The will, and with it what is known of a session that would end now, waits for the next start.
		var legacy []entry
		if !c.persistent { // it will not be back
			legacy = c.legacy()
			c.leaveAll()
		}
		c.conn, c.left = nil, time.Now()
		c.unload()
		c.record()
		c.mu.Unlock()
		b.passAll(legacy)
		return
	}
	var will *Will
	if !sendWill {
		c.will = nil // MQTT-3.1.2-10
	}
	over := !c.persistent || c.expiry == 0
	if c.will != nil && (over || c.will.Delay == 0) {
		will, c.will = c.will, nil
	}
	if over {
		legacy := c.end()
		c.mu.Unlock()
		b.passAll(legacy)
		b.forget(c)
	} else {
		c.conn, c.left = nil, time.Now()
		c.unload()
		if c.will != nil {
			c.willAt = c.left.Add(time.Duration(c.will.Delay) * time.Second)
		}
		c.record()
		b.clock.set(c, c.due())
		c.mu.Unlock()
	}
	if will != nil {
		b.publishWill(will)
	}
}

// lapse does what is due to a session without a connection.
func (b *Broker) lapse(c *client, now time.Time) {
	c.mu.Lock()
	if c.ended || c.conn != nil {
		c.mu.Unlock()
		return
	}
	if now.Before(c.due()) {
		b.clock.set(c, c.due())
		c.mu.Unlock()
		return
	}
	will := c.will // it is due, or the session's end is, which it may not outlast (3.1.3.2.2)
	c.will = nil
	over := !c.persistent || !now.Before(c.due())
	var legacy []entry
	if over {
		legacy = c.end()
	} else {
		c.record()
		b.clock.set(c, c.due())
	}
	c.mu.Unlock()
	b.passAll(legacy)
	if over {
		b.forget(c)
	}
	if will != nil {
		b.publishWill(will)
	}
}
