package broker

import (
	"sync/atomic"
	"time"
)

// A Session is one connection's hold on its session. When another connection takes the session over, or after Disconnect, its methods
// do nothing.
type Session struct {
	c         *client
	conn      Conn
	number    uint64 // names the connection
	version   byte
	window    int // messages of QoS 1 and 2 that may be unacknowledged
	maxPacket uint32

	waiting atomic.Bool // for the disk; Wake comes from the journal

	// The client's lock guards the rest.
	ticket      Ticket
	hungry      bool   // Pull has returned all there was
	outstanding int    // sent by this connection and not acknowledged
	cursor      uint64 // position in flight of what is to be sent next
}

// ClientID returns the client id.
func (s *Session) ClientID() string { return s.c.id }

// Expiry returns the session expiry interval that was granted, in seconds.
func (s *Session) Expiry() uint32 {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.c.expiry
}

// Ticket says when the session is on disk; CONNACK should wait for it if the session is persistent.
func (s *Session) Ticket() Ticket { return s.ticket }

// Subscribe adds or replaces subscriptions and appends a reason code for each to codes: the granted QoS, FilterInvalid or
// QuotaExceeded. SUBACK should wait for the ticket. Retained messages then come from Pull.
func (s *Session) Subscribe(subs []Subscription, codes []byte) ([]byte, Ticket) {
	n := len(codes)
	codes, t := s.subscribe(subs, codes)
	if listening := s.c.b.listening; listening != nil {
		for i, code := range codes[n:] {
			if code < Unspecified {
				listening(s.number, s.c.device, subs[i].Filter)
			}
		}
	}
	return codes, t
}

func (s *Session) subscribe(subs []Subscription, codes []byte) ([]byte, Ticket) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != s {
		for range subs {
			codes = append(codes, Unspecified)
		}
		return codes, 0
	}
	var t Ticket
	for _, want := range subs {
		group, filter, err := CheckFilter(want.Filter)
		if err != nil {
			codes = append(codes, FilterInvalid)
			continue
		}
		i, old := c.subscription(want.Filter)
		if old == nil && len(c.subs) >= c.b.limits.Subscriptions || c.b.journal.full() {
			codes = append(codes, QuotaExceeded)
			continue
		}
		now := &sub{
			c: c, filter: want.Filter, id: want.ID, qos: min(want.QoS, 2), noLocal: want.NoLocal, asPublished: want.RetainAsPublished,
		}
		c.b.trie.add(now, old)
		if old == nil {
			c.subs = append(c.subs, now)
			c.several.Store(len(c.subs) > 1)
		} else {
			c.subs[i] = now
		}
		if c.persistent {
			t = max(t, c.store(c.filterKey(want.Filter), appendSub(nil, now), false))
		}
		codes = append(codes, now.qos)
		if group == "" && (want.RetainHandling == 0 || want.RetainHandling == 1 && old == nil) { // MQTT-3.3.1-9, -10, -11
			c.b.retained.match(filter, time.Now().Unix(), func(m *message) {
				if c.backlog.len() >= c.b.limits.Retained { // a thousand filters that match everything
					c.b.metrics.dropped[dropQueue].Inc()
					return
				}
				c.backlog.push(held{m: m, id: now.id, qos: min(m.qos, now.qos)})
			})
		}
	}
	if c.backlog.len() > 0 {
		c.wake()
	}
	return codes, t
}

// Unsubscribe removes subscriptions and appends a reason code for each: Success or NoSubscription. What is queued is still delivered.
func (s *Session) Unsubscribe(filters []string, codes []byte) ([]byte, Ticket) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	var t Ticket
	for _, f := range filters {
		i, old := c.subscription(f)
		if c.conn != s || old == nil {
			codes = append(codes, NoSubscription)
			continue
		}
		c.b.trie.remove(old)
		c.subs = append(c.subs[:i], c.subs[i+1:]...)
		c.several.Store(len(c.subs) > 1)
		if c.persistent {
			t = max(t, c.b.journal.remove(c.filterKey(f), false))
		}
		codes = append(codes, Success)
	}
	return codes, t
}

// Pull appends up to most packets that are to be sent now, in the order they must be sent. When fewer came there are no more, or the
// client's receive maximum is used up, and Conn.Wake is called when that changes; when most came, there may be more. It may read
// the disk. At the begin of a connection it returns first what an earlier one has sent and the client has not acknowledged; the
// front calls it once after CONNACK.
func (s *Session) Pull(dst []Delivery, most int) []Delivery {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	want := len(dst) + most
	now := time.Now().Unix()
	dst = s.pull0(dst, len(dst)+most/2, now) // what waits for acknowledgements must not hold up the rest
	for c.conn == s {
		dst = s.pullReleases(dst, want)
		var missing bool
		if dst, missing = s.pullFlight(dst, want, now); missing {
			if !s.loadFlight() {
				break
			}
			continue
		}
		if len(dst) >= want {
			break
		}
		var more bool
		if dst, more = s.launch(dst, want, now); more {
			continue
		}
		if c.queue.len() > 0 || c.next > c.last || c.live >= s.window || !s.loadQueue(now) {
			break
		}
	}
	if c.conn != s {
		return dst
	}
	dst = s.pull0(dst, want, now)
	s.hungry = len(dst) < want
	return dst
}

func (s *Session) pull0(dst []Delivery, want int, now int64) []Delivery {
	c := s.c
	for len(dst) < want && c.qos0.len() > 0 {
		e := c.qos0.pop()
		if d, ok := s.delivery(&e, now); ok {
			dst = append(dst, d)
		}
		c.letGo(&e)
	}
	return dst
}

func (s *Session) pullReleases(dst []Delivery, want int) []Delivery {
	c := s.c
	for len(dst) < want && c.releases.len() > 0 {
		if !s.await(c.releases.front().t) {
			break
		}
		r := c.releases.pop()
		dst = append(dst, Delivery{Release: true, PacketID: r.id, Reason: r.reason})
	}
	return dst
}

// await tells whether t is durable; if not, Wake will come.
func (s *Session) await(t Ticket) bool {
	j := s.c.b.journal
	if t == 0 || j.durable(t) {
		return true
	}
	if s.waiting.CompareAndSwap(false, true) {
		j.after(t, func(err error) {
			s.waiting.Store(false)
			if err == nil { // else there is nothing to pull, ever
				s.conn.Wake()
			}
		})
	}
	return false
}

// pullFlight sends what has a packet identifier. missing tells that the next one must be read from disk first.
func (s *Session) pullFlight(dst []Delivery, want int, now int64) (_ []Delivery, missing bool) {
	c := s.c
	for len(dst) < want && s.cursor < c.base+uint64(c.flight.len()) {
		if s.cursor < c.base {
			s.cursor = c.base
			continue
		}
		e := c.flight.at(int(s.cursor - c.base))
		switch {
		case e.gone:
		case c.persistent && e.qos == 2 && !s.await(e.t):
			return dst, false
		case e.released:
			dst = append(dst, Delivery{Release: true, PacketID: e.id})
		case s.outstanding >= s.window:
			return dst, false
		case e.m == nil:
			return dst, true
		default:
			d, fit := s.delivery(e, now)
			if !fit {
				c.finish(e)
				continue
			}
			d.PacketID, d.Dup = e.id, e.sent
			dst = append(dst, d)
			e.sent, e.counted = true, true
			s.outstanding++
		}
		s.cursor++
	}
	return dst, false
}

// launch gives packet identifiers to what comes next. more tells that something is in flight that was not.
func (s *Session) launch(dst []Delivery, want int, now int64) (_ []Delivery, more bool) {
	c := s.c
	for n := len(dst); n < want && len(dst) < want && c.live < s.window; n++ {
		if c.backlog.len() > 0 {
			h := c.backlog.pop()
			e := entry{m: h.m, qos: h.qos, retain: h.live == nil, live: h.live, size: uint32(h.m.size())}
			if h.id != 0 {
				e.ids = []uint32{h.id}
			}
			d, ok := s.delivery(&e, now)
			switch {
			case !ok:
			case h.qos == 0:
				dst = append(dst, d)
			default:
				c.adopt(e)
				more = true
			}
			continue
		}
		if c.queue.len() == 0 {
			break
		}
		e := c.queue.pop()
		if _, ok := s.delivery(&e, now); !ok {
			c.settled(&e)
			continue
		}
		c.launch(e)
		more = true
	}
	return dst, more
}

// adopt launches a held message of QoS 1 or 2. It goes past the queue, so its sequence number is from another range.
func (c *client) adopt(e entry) {
	c.count++
	c.bytes += int64(e.size)
	c.hold(int64(e.size))
	if c.persistent && e.live == nil {
		c.extra++
		e.seq = extraBit | c.extra
		m := e.m
		v := appendMessage(nil, m.topic, m.payload, m.properties, m.deadline, messageFlags(e.qos, true, m), e.ids, "")
		c.store(c.keyOf(kindQueue, e.seq), v, e.qos == 1)
		c.b.queued.Add(int64(e.size))
	}
	c.launch(e)
}

// delivery makes a PUBLISH, unless the message has expired or is too large for the client.
func (s *Session) delivery(e *entry, now int64) (d Delivery, ok bool) {
	m := e.m
	d = Delivery{
		QoS: e.qos, Retain: e.retain, Topic: m.topic, Payload: m.payload, Properties: m.properties, SubscriptionIDs: e.ids,
	}
	if m.deadline != 0 {
		if m.deadline <= now && !e.sent { // MQTT-3.3.2-5; not once its delivery has begun (MQTT-4.3.3-7)
			s.c.b.metrics.dropped[dropExpired].Inc()
			return d, false
		}
		d.Expires, d.Expiry = true, uint32(max(0, m.deadline-now)) // MQTT-3.3.2-6
	}
	if s.maxPacket != 0 && d.PacketSize(s.version) > s.maxPacket { // MQTT-3.1.2-24, -25
		s.c.b.metrics.dropped[dropTooLarge].Inc()
		return d, false
	}
	return d, true
}

// PacketSize returns how many bytes the packet has on the wire, without a topic alias.
func (d *Delivery) PacketSize(version byte) uint32 {
	n := 2 + len(d.Topic) + len(d.Payload)
	if d.QoS > 0 {
		n += 2
	}
	if version >= 5 {
		p := len(d.Properties)
		if d.Expires {
			p += 5
		}
		for _, id := range d.SubscriptionIDs {
			p += 1 + variable(id)
		}
		n += variable(uint32(p)) + p
	}
	return uint32(1 + variable(uint32(n)) + n)
}

// variable returns the length of a variable byte integer.
func variable(n uint32) int {
	switch {
	case n < 1<<7:
		return 1
	case n < 1<<14:
		return 2
	case n < 1<<21:
		return 3
	}
	return 4
}

// Puback takes a client's PUBACK. It tells whether the identifier was in use for a QoS 1 message.
func (s *Session) Puback(id uint16, reason byte) bool {
	live, ok := s.puback(id)
	if live != nil {
		live.acked(s.number, s.c.device, reason)
	}
	return ok
}

func (s *Session) puback(id uint16) (*live, bool) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.inFlight(id)
	if c.conn != s || e == nil || e.qos != 1 {
		return nil, false
	}
	c.b.metrics.acked.Inc()
	told := e.live
	c.finish(e)
	return told, true
}

// maxStrayReleases bounds answers to PUBRECs of identifiers that are not in use.
const maxStrayReleases = 1000

// Pubrec takes a client's PUBREC. The PUBREL comes from Pull when that is on disk; with a reason of 0x80 or more there is none.
func (s *Session) Pubrec(id uint16, reason byte) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != s {
		return
	}
	e := c.inFlight(id)
	switch {
	case e == nil || e.qos != 2:
		if reason < Unspecified && c.releases.len() < maxStrayReleases+c.live {
			c.releases.push(release{id: id, reason: PacketIDNotFound})
		}
	case reason >= Unspecified:
		c.finish(e) // MQTT-4.3.3-4: no PUBREL
		return
	default:
		if !e.released {
			c.settled(e)
			e.released = true
			if c.persistent {
				e.t = c.store(c.keyOf(kindFlight, e.seq), flightRecord(id, flightReleased), false)
			}
		}
		if c.byID[id] < s.cursor && c.releases.len() < maxStrayReleases+c.live {
			c.releases.push(release{id: id, t: e.t})
		}
	}
	c.wake()
}

// Pubcomp takes a client's PUBCOMP. It tells whether the identifier was in use for a QoS 2 message.
func (s *Session) Pubcomp(id uint16, _ byte) bool {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.inFlight(id)
	if c.conn != s || e == nil || !e.released {
		return false
	}
	c.b.metrics.acked.Inc()
	c.finish(e)
	return true
}

// Received notes the packet identifier of a QoS 2 message that the client has sent. dup tells that it was received before and
// not yet released: the message must be acknowledged again (PUBREC), when the ticket is durable, and not published again. Otherwise the
// front publishes it with Message.From and PacketID, or, if it is not for the broker, calls Note; if it refuses the message instead
// (PUBREC with 0x80 or more), it calls Released. A message that an earlier connection received and has not published counts as not
// received: whoever received it last publishes it.
func (s *Session) Received(id uint16) (dup bool, t Ticket) {
	c := s.c
	c.exact.Lock()
	defer c.exact.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != s {
		return false, 0
	}
	if by, known := c.inbound[id]; known && (by == nil || by == s) {
		return true, c.noted
	}
	if c.inbound == nil {
		c.inbound = map[uint16]*Session{}
	}
	c.inbound[id] = s
	return false, 0
}

// Note records a received identifier on disk whose message was not for the broker. PUBREC waits for the ticket.
func (s *Session) Note(id uint16) Ticket {
	s.c.exact.Lock()
	defer s.c.exact.Unlock()
	if !s.owns(id) {
		return 0
	}
	return s.note(id, 0)
}

// owns tells whether the message is s's to publish. The caller holds exact.
func (s *Session) owns(id uint16) bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.c.inbound[id] == s
}

// note records that the message is published, behind what it put into queues, which has the ticket. The caller holds exact.
func (s *Session) note(id uint16, t Ticket) Ticket {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return t
	}
	c.inbound[id] = nil
	if c.persistent {
		t = max(t, c.store(c.inboundKey(id), nil, false))
	}
	c.noted = max(c.noted, t)
	return t
}

// Released forgets the identifier, when PUBREL has come. known tells whether it was received; if not, PUBCOMP says PacketIDNotFound.
// PUBCOMP waits for the ticket: the client may use the identifier again then, and a crash must not make that a repetition.
func (s *Session) Released(id uint16) (known bool, t Ticket) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	_, known = c.inbound[id]
	if c.conn != s || !known {
		return false, 0
	}
	delete(c.inbound, id)
	if c.persistent {
		t = c.b.journal.remove(c.inboundKey(id), false)
	}
	return true, t
}

// SetExpiry changes the session expiry interval, as DISCONNECT may. The front has checked that it was not 0 before
// (MQTT-3.14.2-2).
func (s *Session) SetExpiry(seconds uint32) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == s && c.persistent {
		c.expiry = min(seconds, c.b.limits.MaxExpiry)
	}
}

// Disconnect ends the connection. The will is published, after its delay, if sendWill. The session goes on until its expiry; without
// one it ends now. With the reason ShuttingDown a will waits for the next start.
func (s *Session) Disconnect(reason byte, sendWill bool) {
	s.c.b.disconnect(s, reason, sendWill)
}
