package packet

import (
	"bytes"
	"encoding/binary"
)

// A Publish is an application message on its way.
type Publish struct {
	Dup, Retain bool
	QoS         byte
	Topic       []byte // empty only with a topic alias
	ID          uint16 // 0 with QoS 0
	Payload     []byte
	Properties  Properties

	// Known is a topic that need not be looked at again if it comes: it was good the last time.
	Known []byte
}

// Decode reads the body of a PUBLISH.
func (p *Publish) Decode(flags byte, body []byte, version byte) error {
	p.QoS = flags >> 1 & 3
	p.Dup, p.Retain = flags&8 != 0, flags&1 != 0
	switch {
	case p.QoS == 3:
		return malformed("PUBLISH with QoS 3") // MQTT-3.3.1-4
	case p.QoS == 0 && p.Dup:
		return malformed("PUBLISH with QoS 0 and DUP") // MQTT-3.3.1-2
	case len(body) < 2:
		return malformed("packet ends within the topic")
	}
	n := int(binary.BigEndian.Uint16(body))
	body = body[2:]
	if n > len(body) {
		return malformed("packet ends within the topic")
	}
	p.Topic, body = body[:n:n], body[n:]
	if !bytes.Equal(p.Topic, p.Known) || n == 0 {
		if err := checkTopic(p.Topic, version); err != nil {
			return err
		}
	}
	p.ID = 0
	if p.QoS > 0 {
		if len(body) < 2 {
			return malformed("packet ends within the packet identifier")
		}
		p.ID, body = binary.BigEndian.Uint16(body), body[2:]
		if p.ID == 0 {
			return protocolError("PUBLISH with packet identifier 0") // MQTT-2.2.1-3
		}
	}
	if version >= V5 {
		if len(body) > 0 && body[0] == 0 {
			p.Properties.reset()
			body = body[1:]
		} else {
			r := reader{b: body}
			r.properties(&p.Properties, publishMay, "PUBLISH")
			if r.err != nil {
				return r.err
			}
			body = r.b
		}
		if n == 0 && p.Properties.TopicAlias == 0 {
			return protocolError("PUBLISH without topic and topic alias")
		}
	} else {
		p.Properties.reset()
	}
	p.Payload = body
	return nil
}

// checkTopic tells what is wrong with a topic name.
func checkTopic(t []byte, version byte) error {
	if len(t) == 0 && version < V5 {
		return malformed("PUBLISH without topic") // MQTT-4.7.3-1
	}
	for _, c := range t {
		if c == '+' || c == '#' {
			return &Error{TopicNameInvalid, "topic name holds + or #"} // MQTT-3.3.2-2
		}
	}
	if !validString(t) {
		return malformed("topic name is not UTF-8, or holds a zero character") // MQTT-3.3.2-1
	}
	return nil
}

// Append appends the packet.
func (p *Publish) Append(dst []byte, version byte) []byte {
	first := byte(PUBLISH)<<4 | p.QoS<<1
	if p.Dup {
		first |= 8
	}
	if p.Retain {
		first |= 1
	}
	if version >= V5 && p.Properties.Has != 0 {
		start := len(dst)
		dst = appendString(dst, p.Topic)
		if p.QoS > 0 {
			dst = binary.BigEndian.AppendUint16(dst, p.ID)
		}
		dst = p.Properties.appendSection(dst, publishMay)
		return finish(append(dst, p.Payload...), start, first)
	}
	return AppendPublish(dst, version, first&15, p.Topic, p.ID, nil, p.Payload)
}

// AppendPublish appends a PUBLISH whose properties are encoded already.
func AppendPublish(dst []byte, version, flags byte, topic []byte, id uint16, properties, payload []byte) []byte {
	n := 2 + len(topic) + len(payload)
	if flags&6 != 0 {
		n += 2
	}
	if version >= V5 {
		n += lengthSize(len(properties)) + len(properties)
	}
	dst = appendLength(append(dst, byte(PUBLISH)<<4|flags), n)
	dst = appendString(dst, topic)
	if flags&6 != 0 {
		dst = binary.BigEndian.AppendUint16(dst, id)
	}
	if version >= V5 {
		dst = append(appendLength(dst, len(properties)), properties...)
	}
	return append(dst, payload...)
}

// PublishSize returns how many bytes AppendPublish appends.
func PublishSize(version, flags byte, topic, properties, payload int) int {
	n := 2 + topic + payload
	if flags&6 != 0 {
		n += 2
	}
	if version >= V5 {
		n += lengthSize(properties) + properties
	}
	return 1 + lengthSize(n) + n
}

// An Ack is a PUBACK, PUBREC, PUBREL or PUBCOMP.
type Ack struct {
	Type       Type
	ID         uint16
	Code       byte
	Properties Properties
}

// Decode reads the body of one. Type says which.
func (a *Ack) Decode(t Type, flags byte, body []byte, version byte) error {
	a.Type, a.Code = t, 0
	a.Properties.reset()
	if err := checkFlags(t, flags); err != nil {
		return err
	}
	r := reader{b: body}
	a.ID = r.uint16("packet identifier")
	if version >= V5 && len(r.b) > 0 {
		a.Code = r.byte("reason code")
		if len(r.b) > 0 {
			r.properties(&a.Properties, acksMay, t.String())
		}
	}
	if err := r.end(t); err != nil {
		return err
	}
	if a.ID == 0 {
		return protocolError("%s with packet identifier 0", t)
	}
	if !ackCode(t, a.Code) {
		return protocolError("%s with reason code %#x", t, a.Code) // MQTT-3.4.2-1 and its like
	}
	return nil
}

func ackCode(t Type, code byte) bool {
	switch code {
	case Success:
		return true
	case PacketIDNotFound:
		return t == PUBREL || t == PUBCOMP
	case NoMatchingSubscribers, UnspecifiedError, ImplementationSpecific, NotAuthorized, TopicNameInvalid, PacketIDInUse, QuotaExceeded, PayloadFormatInvalid:
		return t == PUBACK || t == PUBREC
	}
	return false
}

// Append appends the packet.
func (a *Ack) Append(dst []byte, version byte) []byte {
	first := byte(a.Type) << 4
	if a.Type == PUBREL {
		first |= 2
	}
	if version < V5 || (a.Code == 0 && a.Properties.Has == 0) {
		return append(dst, first, 2, byte(a.ID>>8), byte(a.ID))
	}
	if a.Properties.Has == 0 {
		return append(dst, first, 3, byte(a.ID>>8), byte(a.ID), a.Code)
	}
	start := len(dst)
	dst = append(dst, byte(a.ID>>8), byte(a.ID), a.Code)
	return finish(a.Properties.appendSection(dst, acksMay), start, first)
}

// AppendAck appends an acknowledgement without properties.
func AppendAck(dst []byte, version byte, t Type, id uint16, code byte) []byte {
	first := byte(t) << 4
	if t == PUBREL {
		first |= 2
	}
	if version < V5 || code == 0 {
		return append(dst, first, 2, byte(id>>8), byte(id))
	}
	return append(dst, first, 3, byte(id>>8), byte(id), code)
}
