package broker

import (
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A client is a session: what outlives the connections of one client id. Lock order: client.mu, then the locks of trie, retained,
// clock and journal, which are leaves. No disk is read and nobody else's lock is taken under client.mu.
type client struct {
	b          *Broker
	id, device string
	number     uint64 // names it on disk; never used again
	persistent bool   // it outlives its connection, and its queue is on disk
	several    atomic.Bool

	exact  sync.Mutex // held while a message of QoS 2 of this client is published and noted; taken before mu, and before all other locks
	mu     sync.Mutex // guards all below
	ended  bool       // it is nobody's any more
	stored bool       // something of it is on disk
	expiry uint32     // seconds
	conn   *Session   // nil while not connected
	left   time.Time  // when the connection ended
	will   *Will
	willAt time.Time // when it is published, if there is no connection
	subs   []*sub

	// The queue of QoS 1 and 2. Of a persistent session each message has a sequence number and is on disk; in memory are, while
	// it is connected, those in flight and the next few: those below next. Those from next to last are only on disk.
	last, next uint64
	extra      uint64 // sequence of retained messages, whose numbers have extraBit set
	count      int    // messages that are queued or in flight, and their bytes
	bytes      int64
	mem        int64 // bytes of messages in memory
	put        Ticket
	expiring   bool // some queued message has an expiry
	shares     bool // some message came through a shared subscription
	dead       bool // it has ended, and what it had of shared subscriptions is being passed on
	purged     time.Time
	queue      deque[entry]
	backlog    deque[held] // to send before the queue

	// In flight, in the order in which they were or will be sent. Positions count from the begin of the session: the first is base.
	flight deque[entry]
	base   uint64
	live   int
	byID   map[uint16]uint64
	lastID uint16

	releases deque[release] // PUBRELs to send
	qos0     deque[entry]
	inbound  map[uint16]*Session // identifiers of QoS 2 messages received and not released; not nil: who received it, and it is not published yet
	noted    Ticket              // of what the published ones of them put into queues
}

const extraBit = 1 << 63

// A held message goes past the queue: a retained one that a new subscription gets, or a live one (Broker.Send).
type held struct {
	m    *message
	id   uint32
	qos  byte
	live *live
}

// A live message is for a connection and not for its session: it is not on disk and ends with the connection.
type live struct {
	only  uint64
	taken func(conn uint64, device string)
	acked func(conn uint64, device string, reason byte)
}

// A release is a PUBREL to be sent when its ticket is durable.
type release struct {
	t      Ticket
	id     uint16
	reason byte
}

const (
	windowCount = 256       // messages of a persistent session's queue in memory
	windowBytes = 256 << 10 // the same, unless a single one is larger
)

// Keys. FORMAT.md is the same table.
const (
	keySessions = "mqtt\x00s"
	keyRetained = "mqtt\x00r"
	keyFormat   = "mqtt\x00v"

	kindRecord  = 'a'
	kindFilter  = 'f'
	kindFlight  = 'i'
	kindInbound = 'n'
	kindQueue   = 'q'
)

const flightReleased = 1

func (c *client) key(kind byte) []byte {
	k := make([]byte, 0, len(keySessions)+8+1+8)
	k = append(k, keySessions...)
	k = binary.BigEndian.AppendUint64(k, c.number)
	return append(k, kind)
}

func (c *client) prefix() []byte {
	k := c.key(0)
	return k[:len(k)-1]
}

func (c *client) keyOf(kind byte, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(c.key(kind), seq)
}

// store writes to the session's part of the disk.
func (c *client) store(key, value []byte, lazy bool) Ticket {
	c.stored = true
	c.put = c.b.journal.set(key, value, lazy)
	return c.put
}

// record writes the session's own record, if it has to be known after a restart.
func (c *client) record() Ticket {
	if !c.persistent && c.will == nil && !c.stored {
		return 0
	}
	return c.store(c.key(kindRecord), appendRecord(nil, c), !c.persistent || c.conn == nil)
}

// A route is how one publication reaches one session.
type route struct {
	qos    byte
	retain bool
	ids    []uint32
	share  string // the shared subscription's filter; "": none
}

// A publication is a message on its way to its sessions.
type publication struct {
	*Message
	kept     *message // made for the first who needs it in memory
	deadline int64
	ticket   Ticket // of what went to disk
	live     *live  // not nil: of Send
	took     uint64 // the connection that has the live message now
	at0      bool   // with QoS 0
	scratch  *matches
}

func (p *publication) keep() *message {
	if p.kept == nil {
		p.kept = p.Message.keep(p.deadline)
	}
	return p.kept
}

// deliver queues a message. The caller does not hold c.mu.
func (c *client) deliver(p *publication, r route) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ended, p.live != nil && (c.conn == nil || p.live.only != 0 && p.live.only != c.conn.number):
		return false
	case p.live != nil && r.qos > 0 && c.backlog.len() >= c.b.limits.QueueCount:
		c.b.metrics.dropped[dropQueue].Inc()
		return false
	case r.qos == 0:
		return c.deliver0(p, r)
	}
	n := p.size()
	if !c.roomFor(n) {
		return false
	}
	if p.live != nil {
		h := held{m: p.keep(), qos: 1, live: p.live}
		if len(r.ids) > 0 {
			h.id = r.ids[0] // of the server's own messages no client needs more
		}
		c.backlog.push(h)
		p.took = c.conn.number
		c.wake()
		return true
	}
	e := entry{qos: r.qos, retain: r.retain, share: r.share, size: uint32(n)}
	c.shares = c.shares || r.share != ""
	if !c.persistent {
		e.m, e.ids = p.keep(), slices.Clone(r.ids)
		c.queue.push(e)
		c.hold(n)
	} else {
		c.last++
		e.seq = c.last
		flags := messageFlags(r.qos, r.retain, &message{qos: p.QoS, retain: p.Retain})
		sc := p.scratch
		sc.value = appendMessage(sc.value[:0], p.Topic, p.Payload, p.Properties, p.deadline, flags, r.ids, r.share)
		p.ticket = max(p.ticket, c.store(c.keyOf(kindQueue, e.seq), sc.value, false))
		c.b.queued.Add(n)
		c.expiring = c.expiring || p.deadline != 0
		if c.conn != nil && c.next == c.last && c.queue.len() < windowCount && c.b.memoryFor(n) {
			e.m, e.ids = p.keep(), slices.Clone(r.ids)
			c.next++
			c.queue.push(e)
			c.hold(n)
		}
	}
	c.count++
	c.bytes += n
	c.wake()
	return true
}

// roomFor tells whether one more message fits. If not, the newest is refused, and counted: what is queued was promised before.
func (c *client) roomFor(n int64) bool {
	l, m := &c.b.limits, &c.b.metrics
	switch {
	case c.count >= l.QueueCount || c.bytes+n > l.QueueBytes:
		m.dropped[dropQueue].Inc()
		if c.persistent && c.conn == nil && c.expiring {
			c.b.clock.purge(c)
		}
	case c.persistent && c.b.queued.Load()+n > l.TotalBytes:
		m.dropped[dropDisk].Inc()
	case c.persistent && c.b.journal.full():
		m.dropped[dropJournal].Inc()
	case !c.persistent && !c.b.memoryFor(n):
		m.dropped[dropMemory].Inc()
	default:
		return true
	}
	return false
}

func (c *client) deliver0(p *publication, r route) bool {
	n := p.size()
	m := &c.b.metrics
	switch {
	case c.conn == nil:
		m.dropped[dropOffline].Inc()
		return false
	case c.qos0.len() >= c.b.limits.QoS0Count:
		m.dropped[dropQoS0].Inc()
		return false
	case !c.b.memoryFor(n):
		m.dropped[dropMemory].Inc()
		return false
	}
	if p.live != nil {
		p.took, p.at0 = c.conn.number, true
	}
	c.qos0.push(entry{m: p.keep(), ids: slices.Clone(r.ids), retain: r.retain, size: uint32(n)})
	c.hold(n)
	c.wake()
	return true
}

// full tells a shared subscription that somebody else should have the message.
func (c *client) full(n int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := &c.b.limits
	return c.ended || c.count >= l.QueueCount || c.bytes+n > l.QueueBytes || c.qos0.len() >= l.QoS0Count
}

func (c *client) online() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn != nil
}

// hold and letGo count messages in memory.
func (c *client) hold(n int64) {
	c.mem += n
	c.b.memory.Add(n)
}

func (c *client) letGo(e *entry) {
	if e.m != nil {
		c.hold(-int64(e.size))
		e.m, e.ids = nil, nil
	}
}

// wake tells the connection that there is something to pull, unless it is pulling anyway.
func (c *client) wake() {
	if s := c.conn; s != nil && s.hungry {
		s.hungry = false
		s.conn.Wake()
	}
}

// settled takes a message out of the counts, and off the disk.
func (c *client) settled(e *entry) {
	c.letGo(e)
	c.count--
	c.bytes -= int64(e.size)
	if c.persistent && e.live == nil {
		c.b.queued.Add(-int64(e.size))
		c.b.journal.remove(c.keyOf(kindQueue, e.seq), true)
	}
}

// finish ends a flight.
func (c *client) finish(e *entry) {
	if !e.released {
		c.settled(e)
	}
	if c.persistent && e.live == nil {
		c.b.journal.remove(c.keyOf(kindFlight, e.seq), true)
	}
	if e.counted && c.conn != nil {
		c.conn.outstanding--
	}
	delete(c.byID, e.id)
	e.gone = true
	c.live--
	for c.flight.len() > 0 && c.flight.front().gone {
		c.flight.pop()
		c.base++
	}
	if c.flight.len() > 2*c.live+64 {
		c.compact()
	}
	if c.queue.len() > 0 || c.next <= c.last || c.backlog.len() > 0 || c.conn != nil && c.conn.cursor < c.base+uint64(c.flight.len()) {
		c.wake()
	}
}

// compact takes out what was acknowledged behind a message that is not. Without it one unacknowledged message would let the flight
// grow with each of the others.
func (c *client) compact() {
	var kept []entry
	var cursor uint64
	for i := range c.flight.len() {
		if e := c.flight.at(i); !e.gone {
			kept = append(kept, *e)
			if c.conn != nil && c.base+uint64(i) < c.conn.cursor {
				cursor++
			}
		}
	}
	c.flight.set(kept)
	for i := range kept {
		c.byID[kept[i].id] = c.base + uint64(i)
	}
	if c.conn != nil {
		c.conn.cursor = c.base + cursor
	}
}

// launch gives a message a packet identifier. What QoS 2 has sent under an identifier must have it for ever, so it is on disk before
// it is sent; QoS 1 may come again under another one after a crash.
func (c *client) launch(e entry) {
	if c.byID == nil {
		c.byID = map[uint16]uint64{}
	}
	for taken := true; taken; _, taken = c.byID[c.lastID] {
		if c.lastID++; c.lastID == 0 {
			c.lastID = 1
		}
	}
	e.id = c.lastID
	if c.persistent && e.live == nil {
		e.t = c.store(c.keyOf(kindFlight, e.seq), flightRecord(e.id, 0), e.qos == 1)
	}
	c.byID[e.id] = c.base + uint64(c.flight.len())
	c.flight.push(e)
	c.live++
}

func flightRecord(id uint16, state byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, id), state)
}

func (c *client) inFlight(id uint16) *entry {
	at, ok := c.byID[id]
	if !ok {
		return nil
	}
	return c.flight.at(int(at - c.base))
}

// unload forgets what is on disk too, when the connection has ended.
func (c *client) unload() {
	for i := 0; i < c.flight.len(); {
		n := c.flight.len()
		if e := c.flight.at(i); e.live != nil && !e.gone {
			c.finish(e)
		}
		if c.flight.len() == n { // else it was the first, or they were compacted
			i++
		} else {
			i = 0
		}
	}
	c.backlog.set(slices.DeleteFunc(c.backlog.slice(), func(h held) bool { return h.live != nil }))
	if c.queue.len() > 0 {
		c.next = c.queue.front().seq
	}
	c.queue.set(nil)
	c.qos0.set(nil)
	c.releases.set(nil)
	for i := range c.flight.len() {
		e := c.flight.at(i)
		e.m, e.ids, e.counted = nil, nil, false
	}
	c.hold(-c.mem)
	if c.live == 0 {
		c.flight.set(nil)
		c.byID = nil
	}
}

// leaveAll takes out all subscriptions.
func (c *client) leaveAll() {
	for _, s := range c.subs {
		c.b.trie.remove(s)
	}
	c.subs = nil
}

// end ends the session. The caller holds c.mu, and calls Broker.passAll with what is returned, and then Broker.forget, after it has let
// go.
func (c *client) end() (legacy []entry) {
	c.ended, c.conn = true, nil
	c.leaveAll()
	c.hold(-c.mem)
	switch {
	case c.persistent && c.shares && c.count > 0:
		c.next = 0
		c.die()
	case c.persistent:
		c.b.queued.Add(-c.bytes)
	default:
		legacy = c.legacy()
	}
	if c.stored && !c.dead {
		c.b.journal.removePrefix(c.prefix())
	}
	c.queue.set(nil)
	c.qos0.set(nil)
	c.backlog.set(nil)
	c.flight.set(nil)
	c.releases.set(nil)
	c.byID, c.inbound = nil, nil
	c.b.clock.clear(c)
	return legacy
}

// subscription returns the subscription with this filter, as the client wrote it.
func (c *client) subscription(filter string) (int, *sub) {
	for i, s := range c.subs {
		if s.filter == filter {
			return i, s
		}
	}
	return -1, nil
}

func (c *client) filterKey(filter string) []byte { return append(c.key(kindFilter), filter...) }

func (c *client) inboundKey(id uint16) []byte {
	return binary.BigEndian.AppendUint16(c.key(kindInbound), id)
}
