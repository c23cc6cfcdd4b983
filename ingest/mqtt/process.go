package mqtt

import (
	"errors"
	"strings"
	"time"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/mqtt/broker"
	"github.com/milepost/milepost/ingest/mqtt/packet"
)

// A scratch is what a goroutine works with while it takes packets apart; no connection keeps one.
type scratch struct {
	in      *ingest.Intake // nil: nothing is gathered
	payload ingest.Payload
	pub     packet.Publish
	ack     packet.Ack
	sub     packet.Subscribe
	end     packet.End
	msg     broker.Message
	props   []byte
	json    []byte
	acks    []ack
	counted int32 // of acks, those of QoS 1 and 2
	wait    time.Duration
	two     []exact
	// PUBCOMPs that are due once what was released is forgotten on disk too: the client then uses the identifiers again.
	released  []ack
	forgotten broker.Ticket
	subs      []broker.Subscription
	filters   []string
	codes     []byte
}

// exact is a message of QoS 2 whose PUBREC is due.
type exact struct {
	id     uint16
	dup    bool // only to be acknowledged again
	code   byte
	text   string
	msg    broker.Message
	ticket broker.Ticket // of a repetition: when the first is durable
}

var errSaidGoodbye = errors.New("the client said DISCONNECT")

// submitBytes is how much is gathered before it is submitted, within one read.
const submitBytes = 64 << 10

// process takes the packets that are whole in b. It returns how many bytes they have, and how many the packet after them needs, if
// that is known.
func (c *conn) process(b []byte) (used, need int, err error) {
	s, ok := c.server.scratches.Get().(*scratch)
	if !ok {
		panic("mqtt: bug: the pool holds something else")
	}
	for used < len(b) {
		most := c.server.maxPacket
		if c.session == nil {
			most = connectMost
		}
		var head, size int
		if head, size, err = packet.Frame(b[used:], most); err != nil {
			if e, ok := errors.AsType[*packet.Error](err); ok && e.Code == packet.PacketTooLarge {
				c.server.door.Refuse(ingest.TooLarge, 1)
			}
			break
		}
		if size == 0 || size > len(b)-used {
			need = size
			break
		}
		first, body := b[used], b[used+head:used+size]
		t := packet.Type(first >> 4)
		if t == packet.PUBLISH && c.session != nil {
			err = c.publish(s, first&15, body)
		} else if err = c.submit(s); err == nil {
			err = c.control(s, t, first&15, body)
		}
		if err != nil {
			break
		}
		used += size
		if s.in != nil && s.in.Bytes() >= submitBytes {
			if err = c.submit(s); err != nil {
				break
			}
		}
	}
	// What came before a packet that is wrong is stored and acknowledged as if that had come later.
	if e := c.submit(s); err == nil {
		err = e
	}
	if len(s.released) > 0 {
		if e := c.complete(s); err == nil {
			err = e
		}
	}
	c.server.scratches.Put(s)
	return used, need, err
}

// control takes any packet but PUBLISH.
func (c *conn) control(s *scratch, t packet.Type, flags byte, body []byte) error {
	if c.session == nil {
		if t != packet.CONNECT { // MQTT-3.1.0-1
			return &packet.Error{Code: packet.ProtocolError, Text: "the first packet is " + t.String() + ": it must be CONNECT"}
		}
		return c.connect(flags, body)
	}
	switch t {
	case packet.PUBACK, packet.PUBREC, packet.PUBREL, packet.PUBCOMP:
		if err := s.ack.Decode(t, flags, body, c.version); err != nil {
			return err
		}
		c.acknowledged(s, &s.ack)
		return nil
	case packet.SUBSCRIBE:
		return c.subscribe(s, flags, body)
	case packet.UNSUBSCRIBE:
		return c.unsubscribe(s, flags, body)
	case packet.PINGREQ:
		if err := packet.CheckEmpty(t, flags, body); err != nil {
			return err
		}
		c.send(func(dst []byte) []byte { return append(dst, byte(packet.PINGRESP)<<4, 0) })
		return nil
	case packet.DISCONNECT:
		return c.disconnect(s, flags, body)
	case packet.AUTH:
		if err := s.end.Decode(t, flags, body, c.version); err != nil {
			return err
		}
		return &packet.Error{Code: packet.ProtocolError, Text: "AUTH on a connection that did not begin with an authentication method"}
	case packet.CONNECT: // MQTT-3.1.0-2
		return &packet.Error{Code: packet.ProtocolError, Text: "a second CONNECT"}
	case packet.CONNACK, packet.SUBACK, packet.UNSUBACK, packet.PINGRESP, packet.PUBLISH:
	}
	return &packet.Error{Code: packet.ProtocolError, Text: t.String() + " from a client"}
}

// acknowledged takes the acknowledgements of messages, in either direction.
func (c *conn) acknowledged(s *scratch, a *packet.Ack) {
	switch a.Type {
	case packet.PUBACK:
		c.session.Puback(a.ID, a.Code)
	case packet.PUBREC:
		c.session.Pubrec(a.ID, a.Code)
	case packet.PUBCOMP:
		c.session.Pubcomp(a.ID, a.Code)
	case packet.PUBREL:
		known, ticket := c.session.Released(a.ID)
		r := ack{id: a.ID, kind: packet.PUBCOMP, code: packet.PacketIDNotFound}
		if known {
			r.code = packet.Success
			c.settled.Add(1)
		}
		s.released, s.forgotten = append(s.released, r), max(s.forgotten, ticket)
	default:
	}
}

// complete sends the PUBCOMPs that are due.
func (c *conn) complete(s *scratch) error {
	released, ticket := s.released, s.forgotten
	s.released, s.forgotten = s.released[:0], 0
	if err := c.server.broker.Wait(c.server.ctx, ticket); err != nil {
		return c.unavailable(err)
	}
	c.send(func(dst []byte) []byte {
		for _, a := range released {
			dst = packet.AppendAck(dst, c.version, a.kind, a.id, a.code)
		}
		return dst
	})
	return nil
}

func (c *conn) subscribe(s *scratch, flags byte, body []byte) error {
	if err := s.sub.Decode(packet.SUBSCRIBE, flags, body, c.version); err != nil {
		return err
	}
	id := uint32(0)
	if len(s.sub.Properties.SubscriptionIDs) > 0 {
		id = s.sub.Properties.SubscriptionIDs[0]
	}
	s.subs, s.codes = s.subs[:0], s.codes[:0]
	for _, f := range s.sub.Filters {
		name := string(f.Filter)
		code := byte(packet.Success)
		if group, rest, err := broker.CheckFilter(name); err != nil { // MQTT-4.7.1-1 and its like
			code = packet.TopicFilterInvalid
		} else if group != "" && f.NoLocal { // MQTT-3.8.3-4
			return &packet.Error{Code: packet.ProtocolError, Text: "shared subscription with no local"}
		} else if !c.principal.MaySubscribe(name) || strings.HasPrefix(rest, "$SYS") {
			code = packet.NotAuthorized
			c.server.door.Refuse(ingest.WrongTopic, 1)
			c.rejected(rest, ingest.WrongTopic, "the client may not subscribe to it")
		}
		s.codes = append(s.codes, code)
		if code == packet.Success {
			s.subs = append(s.subs, broker.Subscription{
				Filter: name, ID: id, QoS: f.QoS, NoLocal: f.NoLocal, RetainAsPublished: f.RetainAsPublished, RetainHandling: f.RetainHandling,
			})
		}
	}
	if len(s.subs) > 0 {
		granted, ticket := c.session.Subscribe(s.subs, nil)
		if err := c.server.broker.Wait(c.server.ctx, ticket); err != nil {
			return c.unavailable(err)
		}
		for i := range s.codes {
			if s.codes[i] == packet.Success {
				s.codes[i], granted = granted[0], granted[1:]
				if s.codes[i] <= packet.GrantedQoS2 {
					c.server.met.subscriptions.Inc()
				}
			}
		}
		clear(s.subs)
	}
	if c.version < packet.V5 {
		for i, code := range s.codes {
			s.codes[i] = min(code, 0x80)
		}
	}
	answer := packet.Suback{ID: s.sub.ID, Codes: s.codes}
	c.sendIfItFits(func(dst []byte) []byte { return answer.Append(dst, packet.SUBACK, c.version) })
	return nil
}

func (c *conn) unsubscribe(s *scratch, flags byte, body []byte) error {
	if err := s.sub.Decode(packet.UNSUBSCRIBE, flags, body, c.version); err != nil {
		return err
	}
	s.filters = s.filters[:0]
	for _, f := range s.sub.Filters {
		s.filters = append(s.filters, string(f.Filter))
	}
	codes, ticket := c.session.Unsubscribe(s.filters, s.codes[:0])
	clear(s.filters)
	s.codes = codes
	if err := c.server.broker.Wait(c.server.ctx, ticket); err != nil {
		return c.unavailable(err)
	}
	answer := packet.Suback{ID: s.sub.ID, Codes: codes}
	c.sendIfItFits(func(dst []byte) []byte { return answer.Append(dst, packet.UNSUBACK, c.version) })
	return nil
}

func (c *conn) disconnect(s *scratch, flags byte, body []byte) error {
	if err := s.end.Decode(packet.DISCONNECT, flags, body, c.version); err != nil {
		return err
	}
	if p := &s.end.Properties; p.Has.Has(packet.SessionExpiry) {
		if c.session.Expiry() == 0 && p.SessionExpiry != 0 { // MQTT-3.14.2-2
			return &packet.Error{Code: packet.ProtocolError, Text: "DISCONNECT with a session expiry interval for a session that has none"}
		}
		c.session.SetExpiry(p.SessionExpiry)
	}
	c.mu.Lock()
	if !c.ended {
		c.endBySelf = true
	}
	c.mu.Unlock()
	// What is under way is still stored; the client has said that it does not wait for the answers.
	c.stop(s.end.Code, "", false)
	return errSaidGoodbye
}

// unavailable is the end of a connection for which something could not be stored.
func (c *conn) unavailable(err error) error {
	code := codeOf(err)
	return &packet.Error{Code: code, Text: err.Error()}
}

// rejected tells the journal of a message that was refused.
func (c *conn) rejected(topic string, why ingest.Reason, text string) {
	if j := c.server.cfg.Journal; j != nil {
		j.Rejected(c.principal, strings.Clone(topic), why.String(), text)
	}
}
