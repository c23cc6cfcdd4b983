package broker

import (
	"cmp"
	"slices"
	"time"
)

// Publish puts a message into the queue of every session that subscribes to its topic, and retains it if it says so. Messages that
// one goroutine publishes keep their order. It does not wait for the disk: Receipt.Ticket does.
//
// A session with several matching subscriptions gets one copy, with the highest QoS and all subscription identifiers (MQTT-3.3.4-2, -3,
// -4); what it gets through shared subscriptions is apart from that.
//
// The error is ErrClosed, or the store's when it is fenced; then nothing may be acknowledged.
func (b *Broker) Publish(m *Message) (Receipt, error) {
	note := m.QoS == 2 && m.PacketID != 0 && m.From != nil
	if note {
		m.From.c.exact.Lock()
		defer m.From.c.exact.Unlock()
		if !m.From.owns(m.PacketID) {
			return Receipt{}, nil // a later connection of the client has sent it again
		}
	}
	if b.trie.size.Load() == 0 && !m.Retain && !note {
		return Receipt{}, nil
	}
	if b.closed.Load() {
		return Receipt{}, ErrClosed
	}
	if err := b.journal.err(); err != nil {
		return Receipt{}, err
	}
	sc, ok := b.scratch.Get().(*matches)
	if !ok {
		sc = new(matches)
	}
	defer b.scratch.Put(sc)
	sc.reset()
	b.trie.match(m.Topic, sc)
	if len(sc.subs) == 0 && len(sc.shared) == 0 && !m.Retain && !note {
		return Receipt{}, nil
	}
	if note { // both or neither after a crash: else the message would come twice, or never
		b.journal.cut.RLock()
		defer b.journal.cut.RUnlock()
	}
	p := publication{Message: m, deadline: m.deadline(time.Now()), scratch: sc}
	var r Receipt
	if m.Retain {
		r.NotRetained = !b.retain(&p)
	}
	b.route(&p, &r)
	if note {
		p.ticket = m.From.note(m.PacketID, p.ticket)
	}
	if r.Matched > 0 {
		b.metrics.published.Inc()
		b.metrics.delivered.Add(float64(r.Matched - r.Refused))
	}
	r.Ticket = p.ticket
	return r, nil
}

func (b *Broker) retain(p *publication) bool {
	k := b.retainedKey(p.Topic)
	if len(p.Payload) == 0 { // MQTT-3.3.1-6, -7
		b.retained.remove(p.Topic, func() { p.ticket = max(p.ticket, b.journal.remove(k, p.QoS == 0)) })
		return true
	}
	m := p.keep()
	if !b.journal.full() && b.retained.put(m, b.limits.Retained, b.limits.RetainedBytes, time.Now().Unix(), func() {
		v := appendMessage(nil, m.topic, m.payload, m.properties, m.deadline, messageFlags(m.qos, true, m), nil, "")
		p.ticket = max(p.ticket, b.journal.set(k, v, m.qos == 0))
	}) {
		return true
	}
	b.metrics.dropped[dropRetained].Inc()
	return false
}

// route finds out who gets the message, and how.
func (b *Broker) route(p *publication, r *Receipt) {
	subs := p.scratch.subs
	several := 0
	for _, s := range subs {
		if s.c.several.Load() {
			several++
		}
	}
	if several > 1 { // only then can subscriptions of one session be among them twice
		slices.SortFunc(subs, func(a, b *sub) int { return cmp.Compare(a.c.number, b.c.number) })
	}
	for len(subs) > 0 {
		n := 1
		for n < len(subs) && subs[n].c == subs[0].c {
			n++
		}
		b.send(p, subs[:n], r)
		subs = subs[n:]
	}
	for _, t := range p.scratch.shared {
		b.share(p, t, r)
	}
}

// send delivers to one session. Subs are its subscriptions that match.
func (b *Broker) send(p *publication, subs []*sub, r *Receipt) {
	c := subs[0].c
	to := route{ids: p.scratch.ids[:0]}
	any := false
	for _, s := range subs {
		if s.noLocal && p.From != nil && p.From.c.id == c.id { // MQTT-3.8.3-3
			continue
		}
		any = true
		to.qos = max(to.qos, min(s.qos, p.QoS))
		to.retain = to.retain || s.asPublished && p.Retain // MQTT-3.3.1-12, -13
		if s.id != 0 {
			to.ids = append(to.ids, s.id)
		}
	}
	p.scratch.ids = to.ids[:0]
	if !any {
		return
	}
	r.Matched++
	if !c.deliver(p, to) {
		r.Refused++
	}
}

// share delivers to one member of a group: to the next that is connected and has room, else to the next that keeps a queue.
func (b *Broker) share(p *publication, t turn, r *Receipt) {
	members := p.scratch.ring[t.from:t.to]
	first := int(t.g.next.Add(1) - 1)
	r.Matched++
	for _, connected := range []bool{true, false} {
		for i := range members {
			s := members[(first+i)%len(members)]
			if s.c.online() != connected || s.c.full(p.size()) {
				continue
			}
			to := route{qos: min(s.qos, p.QoS), retain: s.asPublished && p.Retain, share: s.filter}
			if s.id != 0 {
				to.ids = append(p.scratch.ids[:0], s.id)
			}
			if s.c.deliver(p, to) {
				return
			}
		}
	}
	r.Refused++
}

// Send hands a message to the connections that listen to its topic now, with QoS 1 or what they asked for. It is not kept for
// anybody: when a connection ends before it has acknowledged, the sender sends again to the next one, which Config.Listening tells of.
// So whoever keeps a queue of his own, until somebody has acknowledged, sends nothing twice to a session that has a queue too.
//
// only, if not 0, is the number of the one connection that gets it. taken is called for each connection, before Send returns; acked, when
// it has acknowledged, with its reason code; for a subscription of QoS 0 at once.
func (b *Broker) Send(
	topic string, payload []byte, until time.Time, only uint64,
	taken func(conn uint64, device string), acked func(conn uint64, device string, reason byte),
) error {
	if err := CheckTopic([]byte(topic)); err != nil {
		return err
	}
	if b.closed.Load() {
		return ErrClosed
	}
	m := Message{Topic: []byte(topic), Payload: payload, QoS: 1}
	if !until.IsZero() {
		m.Expires = true
		m.Expiry = uint32(max(0, min(time.Until(until)/time.Second, NeverExpires-1)))
	}
	sc := new(matches)
	b.trie.match(m.Topic, sc)
	for _, t := range sc.shared { // a group is meant as one receiver; who of it is connected gets it
		for _, s := range sc.ring[t.from:t.to] {
			if s.c.online() {
				sc.subs = append(sc.subs, s)
				break
			}
		}
	}
	slices.SortFunc(sc.subs, func(a, b *sub) int { return cmp.Compare(a.c.number, b.c.number) })
	p := publication{
		Message: &m, deadline: m.deadline(time.Now()), scratch: sc, live: &live{only: only, taken: taken, acked: acked},
	}
	for subs := sc.subs; len(subs) > 0; {
		n := 1
		for n < len(subs) && subs[n].c == subs[0].c {
			n++
		}
		var r Receipt
		p.took, p.at0 = 0, false
		b.send(&p, subs[:n], &r)
		if device := subs[0].c.device; p.took != 0 {
			taken(p.took, device)
			if p.at0 {
				acked(p.took, device, Success)
			}
		}
		subs = subs[n:]
	}
	return nil
}
