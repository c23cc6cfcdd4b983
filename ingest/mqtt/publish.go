package mqtt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/mqtt/broker"
	"github.com/milepost/milepost/ingest/mqtt/packet"
	"github.com/milepost/milepost/stream"
)

// maxReason is how much of a refusal's text goes into a reason string.
const maxReason = 512

// publish takes a PUBLISH: it judges the message, and gathers it and its acknowledgement until submit.
func (c *conn) publish(s *scratch, flags byte, body []byte) error {
	p := &s.pub
	p.Known = c.lastTopic
	if err := p.Decode(flags, body, c.version); err != nil {
		return err
	}
	server := c.server
	server.met.messagesIn[p.QoS].Inc()
	if p.QoS > 0 && c.sent+s.counted-c.settled.Load() >= int32(server.cfg.ReceiveMaximum) && c.version >= packet.V5 {
		return &packet.Error{Code: packet.ReceiveMaximumExceeded, Text: "more unacknowledged messages than the receive maximum"} // MQTT-3.3.4-7
	}
	topic := p.Topic
	if p.Properties.Has != 0 {
		if len(p.Properties.SubscriptionIDs) > 0 { // MQTT-3.3.4-6
			return &packet.Error{Code: packet.ProtocolError, Text: "PUBLISH from a client with a subscription identifier"}
		}
		if alias := p.Properties.TopicAlias; alias != 0 {
			var err error
			if topic, err = c.alias(alias, topic); err != nil {
				return err
			}
		}
	}
	if s.in == nil {
		s.in = server.pipe.Begin()
	}
	a := ack{id: p.ID}
	if p.QoS > 0 {
		a.kind = packet.PUBACK
		s.counted++
	}
	if p.QoS == 2 {
		if dup, ticket := c.session.Received(p.ID); dup {
			s.counted--
			s.two = append(s.two, exact{id: p.ID, dup: true, ticket: ticket})
			return nil
		}
	}
	before := s.in.Messages()
	msg, err := c.admit(s, topic, &a)
	if err != nil {
		return err
	}
	if p.QoS == 2 {
		a.kind = 0
		e := exact{id: p.ID, code: a.code, text: a.text}
		if msg {
			e.msg = s.msg
			e.msg.Properties = bytes.Clone(s.msg.Properties) // the others are views of the read buffer, which stays
		}
		if a.code >= packet.UnspecifiedError {
			c.session.Released(p.ID)
			e.msg.PacketID = 0 // what of it is good is published, and the next with this identifier is new (MQTT-4.3.3-9)
		}
		s.two = append(s.two, e)
	}
	if s.in.Messages() > before {
		s.acks = append(s.acks, a)
	}
	return nil
}

// alias resolves or sets a topic alias.
func (c *conn) alias(alias uint16, topic []byte) ([]byte, error) {
	if alias > c.server.cfg.TopicAliases { // MQTT-3.3.2-9
		return nil, &packet.Error{Code: packet.TopicAliasInvalid, Text: "topic alias is larger than the topic alias maximum"}
	}
	if c.aliases == nil {
		c.aliases = make([]string, c.server.cfg.TopicAliases)
	}
	if len(topic) > 0 {
		if c.aliases[alias-1] != string(topic) {
			c.aliases[alias-1] = string(topic)
		}
		return topic, nil
	}
	known := c.aliases[alias-1]
	if known == "" {
		return nil, &packet.Error{Code: packet.ProtocolError, Text: "topic alias was never set"}
	}
	return []byte(known), nil
}

// admit judges a message and hands it on. It tells whether it is a message for the broker that s.msg describes and that, because its
// QoS is 2, is not published yet.
func (c *conn) admit(s *scratch, topic []byte, a *ack) (later bool, err error) {
	server, p := c.server, &s.pub
	full := topic
	if bytes.HasPrefix(topic, []byte("$")) {
		var basic bool
		if topic, basic = stripBasicIngest(topic); !basic {
			c.special(s, topic, a)
			return false, nil
		}
	}
	if !c.principal.MayPublish(topic) {
		c.refuse(s, full, "", ingest.WrongTopic, "the client may not publish to this topic", a)
		return false, nil
	}
	if !bytes.Equal(topic, c.lastTopic) {
		c.lastTopic = append(c.lastTopic[:0], topic...)
		c.lastMap, c.lastFrom, c.lastTo = server.topics.find(view(c.lastTopic))
	}
	if c.lastMap != nil {
		if !c.reading(s, topic, full, a) {
			return false, nil
		}
	} else {
		if len(full) != len(topic) {
			c.refuse(s, full, "", ingest.WrongTopic, "no mapping has the topic of this Basic Ingest message: publish to a mapped one", a)
			return false, nil
		}
		if server.cfg.Special != nil {
			server.cfg.Special(c.principal, string(topic), p.Payload)
		}
		s.in.Pass()
	}
	if len(full) != len(topic) { // Basic Ingest goes to the rules, past the broker
		return false, nil
	}
	m := &s.msg
	*m = broker.Message{Topic: topic, Payload: p.Payload, QoS: p.QoS, Retain: p.Retain, From: c.session}
	if p.Properties.Has != 0 {
		s.props = p.Properties.Append(s.props[:0], packet.Forwarded)
		m.Properties = s.props
		m.Expires, m.Expiry = p.Properties.Has.Has(packet.MessageExpiry), p.Properties.MessageExpiry
	}
	if p.QoS == 2 {
		m.PacketID = p.ID
		return true, nil
	}
	r, err := server.broker.Publish(m)
	if err != nil {
		return false, c.unavailable(err)
	}
	if p.QoS > 0 {
		s.in.Await(uint64(r.Ticket))
		if a.code == 0 {
			a.code = answerOf(&r, c.lastMap != nil)
		}
	}
	return false, nil
}

// answerOf is the reason code for what the broker did with a message.
func answerOf(r *broker.Receipt, stored bool) byte {
	switch {
	case stored:
		return packet.Success
	case r.NotRetained:
		return packet.QuotaExceeded
	case r.Matched == 0:
		return packet.NoMatchingSubscribers
	}
	return packet.Success
}

// reading gathers the readings of a message on a mapped topic, and tells whether any is stored.
func (c *conn) reading(s *scratch, topic, full []byte, a *ack) bool {
	p, m := &s.pub, c.lastMap
	vehicle := view(topic[c.lastFrom:c.lastTo])
	if c.vehicle != "" {
		if vehicle != "" && vehicle != c.vehicle {
			c.refuse(s, full, "", ingest.Mismatch, fmt.Sprintf("the client may publish for vehicle %q only", c.vehicle), a)
			return false
		}
		vehicle = c.vehicle
	}
	s.payload = ingest.Payload{Data: p.Payload, Vehicle: vehicle, From: c.from, Topic: view(full), May: c.mayReport}
	if m.convert != nil {
		out, unread, err := m.convert(s.json[:0], view(topic), vehicle, p.Payload)
		if err != nil {
			c.refuse(s, full, vehicle, ingest.NotReading, err.Error(), a)
			return false
		}
		s.json = out
		s.payload.Data, s.payload.Unread, s.payload.Body = out, unread, p.Payload
		if len(out) == 0 && len(unread) == 0 { // a message that holds no reading and is none the worse for it
			s.in.Pass()
			return true
		}
	}
	j := s.in.Add(&s.payload, p.QoS == 0)
	if m.convert != nil {
		// What is gathered points into s.json, which the next message must not overwrite.
		s.json = s.json[len(s.json):]
	}
	s.wait = max(s.wait, j.Wait)
	if j.Refused > 0 {
		c.judge(&j, a)
		c.rejected(view(full), j.First, a.text)
	}
	return !j.Dropped && j.Refused < j.Readings
}

// judge makes an acknowledgement of a refusal.
func (c *conn) judge(j *ingest.Judgement, a *ack) {
	a.code, a.text = refusalCode(j.First), j.Text
	if j.Readings > 1 {
		a.text = fmt.Sprintf("%d of %d readings refused, the first in line %d: %s", j.Refused, j.Readings, j.Line, j.Text)
	}
}

// refusalCode is the reason code of MQTT 5 for a refusal.
func refusalCode(r ingest.Reason) byte {
	switch r {
	case ingest.WrongTopic, ingest.Mismatch:
		return packet.NotAuthorized
	case ingest.TooLarge:
		return packet.QuotaExceeded
	default:
		return packet.PayloadFormatInvalid
	}
}

// refuse makes a dead letter of a message as a whole.
func (c *conn) refuse(s *scratch, topic []byte, vehicle string, why ingest.Reason, text string, a *ack) {
	s.payload = ingest.Payload{Data: s.pub.Payload, Vehicle: vehicle, From: c.from, Topic: view(topic)}
	j := s.in.Refuse(&s.payload, why, text)
	c.judge(&j, a)
	c.rejected(view(topic), why, text)
}

// special takes a message on a topic that begins with $ and is not Basic Ingest.
func (c *conn) special(s *scratch, topic []byte, a *ack) {
	switch {
	case !c.principal.MayPublish(topic):
		c.refuse(s, topic, "", ingest.WrongTopic, "the client may not publish to this topic", a)
	case bytes.HasPrefix(topic, []byte(awsPrefix)) && c.server.cfg.Special != nil && c.server.cfg.Special(c.principal, string(topic), s.pub.Payload):
		s.in.Pass()
	default:
		c.refuse(s, topic, "", ingest.WrongTopic, "topics that begin with $ are the server's own", a)
		a.code = packet.TopicNameInvalid
	}
}

// submit hands over what was gathered. Messages of QoS 2 are then waited for: their identifier is recorded only once their
// readings are durable, or a crash between the two would lose them.
func (c *conn) submit(s *scratch) error {
	if s.in == nil {
		return nil
	}
	if c.heard != nil {
		c.heard(time.UnixMilli(c.server.clock.Load()))
	}
	in, wait := s.in, s.wait
	s.in, s.wait = nil, 0
	size := in.Size(c.held)
	c.mu.Lock()
	c.acks.push(s.acks)
	c.bytes += size
	c.mu.Unlock()
	c.sent += s.counted
	n := len(s.acks)
	c.server.met.inFlight.Add(int64(n))
	clear(s.acks)
	s.acks, s.counted = s.acks[:0], 0
	held := c.held
	c.held = 0
	if held > 0 {
		c.whole.Store(0)
	}
	if err := in.Submit(c.server.reading, c, held); err != nil {
		c.held = held
		c.mu.Lock()
		c.acks.drop(n)
		c.bytes -= size
		c.mu.Unlock()
		c.server.met.inFlight.Add(-int64(n))
		s.forget()
		return errStopped
	}
	if len(s.two) > 0 {
		if err := c.settleExact(s); err != nil {
			return err
		}
	}
	if wait > 0 {
		c.pause(wait)
	}
	return nil
}

func (s *scratch) forget() {
	clear(s.two)
	s.two = s.two[:0]
}

// settleExact waits until all that was submitted is durable, publishes the messages of QoS 2, and sends their PUBRECs.
func (c *conn) settleExact(s *scratch) error {
	defer s.forget()
	if !c.settledAll() {
		return errEnded
	}
	var last broker.Ticket
	for i := range s.two {
		e := &s.two[i]
		switch {
		case e.dup:
			last = max(last, e.ticket)
			continue
		case e.code >= packet.UnspecifiedError && e.msg.From == nil: // refused: the identifier is free again
			continue
		case e.msg.From == nil: // its readings are in the log, and the broker has nothing to do with it
			last = max(last, c.session.Note(e.id))
			continue
		}
		r, err := c.server.broker.Publish(&e.msg)
		if err != nil {
			return c.unavailable(err)
		}
		last = max(last, r.Ticket)
		if e.code == 0 {
			e.code = answerOf(&r, false)
			if e.code == packet.NoMatchingSubscribers {
				e.code = packet.Success
			}
		}
	}
	if err := c.server.broker.Wait(c.server.ctx, last); err != nil {
		return c.unavailable(err)
	}
	c.mu.Lock()
	for i := range s.two {
		e := &s.two[i]
		c.answer(&ack{id: e.id, kind: packet.PUBREC, code: e.code, text: e.text})
		if e.code >= packet.UnspecifiedError {
			c.settled.Add(1)
		}
	}
	c.flush()
	return nil
}

// settledAll waits until all that was submitted is durable, even if the connection ends meanwhile: the messages are stored, and must be
// published and noted too, or a client that comes back and sends them again would have them stored twice. It tells whether they are.
func (c *conn) settledAll() bool {
	stored := false
	return c.awaitAnyway(c.server.ctx, func() bool {
		stored = !c.unstored
		return c.unstored || c.acks.len() == 0
	}) && stored
}

// Settled implements ingest.Owner: what was submitted is durable, or will not be.
func (c *conn) Settled(o *ingest.Settlement) {
	c.mu.Lock()
	acks := c.acks.pop(o.Messages)
	c.bytes -= o.Bytes
	c.unstored = c.unstored || o.Err != nil
	counted := int32(0)
	if o.Err == nil {
		for _, l := range o.Late {
			acks[l.Message].code, acks[l.Message].text = refusalCode(l.Reason), l.Text
		}
		for i := range acks {
			if acks[i].kind != 0 {
				counted++
				if !c.ended {
					c.answer(&acks[i])
				}
			}
		}
		c.settled.Add(counted)
	}
	clear(acks)
	c.signal()
	c.server.met.inFlight.Add(-int64(o.Messages))
	if o.Err != nil {
		c.mu.Unlock()
		// No acknowledgement, and no connection: a device sends again what was not acknowledged when it has connected again.
		c.end(codeOf(o.Err), o.Err.Error())
		return
	}
	c.flush()
}

// answer appends an acknowledgement. The caller holds mu.
func (c *conn) answer(a *ack) {
	m := c.server.met
	m.acks.Inc()
	if a.code >= packet.UnspecifiedError {
		m.refusals.WithLabelValues(fmt.Sprintf("%02x", a.code)).Inc()
		if c.version >= packet.V5 && a.text != "" && c.problems {
			p := packet.Ack{Type: a.kind, ID: a.id, Code: a.code}
			p.Properties.Has = packet.SetOf(packet.ReasonString)
			p.Properties.ReasonString = []byte(clip(a.text))
			if out := p.Append(c.out, c.version); c.fits(len(out) - len(c.out)) { // MQTT-3.4.2-2, -3.5.2-2
				c.out = out
				return
			}
		}
	}
	// MQTT 3.1.1 has no way of saying that a message was refused. It is a dead letter; without the acknowledgement the device would
	// send the same bad message for ever.
	c.out = packet.AppendAck(c.out, c.version, a.kind, a.id, a.code)
}

func clip(s string) string {
	if len(s) <= maxReason {
		return s
	}
	return string(bytes.ToValidUTF8([]byte(s[:maxReason]), nil))
}

// codeOf is the reason code for what could not be stored.
func codeOf(err error) byte {
	switch {
	case errors.Is(err, stream.ErrFull), errors.Is(err, broker.ErrBusy):
		return packet.QuotaExceeded
	case errors.Is(err, stream.ErrClosed), errors.Is(err, broker.ErrClosed), errors.Is(err, context.Canceled):
		return packet.ServerShuttingDown
	}
	return packet.ServerUnavailable
}
