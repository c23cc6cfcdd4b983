package packet

import "encoding/binary"

// A Filter is one subscription of a SUBSCRIBE. UNSUBSCRIBE has its topic filter alone.
type Filter struct {
	Filter            []byte
	QoS               byte
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte
}

// A Subscribe is a SUBSCRIBE or an UNSUBSCRIBE.
type Subscribe struct {
	ID         uint16
	Properties Properties
	Filters    []Filter
}

// Decode reads the body of a SUBSCRIBE or UNSUBSCRIBE. Whether a filter is a good one is for the server to say, filter by filter.
func (s *Subscribe) Decode(t Type, flags byte, body []byte, version byte) error {
	s.Filters = s.Filters[:0]
	s.Properties.reset()
	if err := checkFlags(t, flags); err != nil {
		return err
	}
	r := reader{b: body}
	s.ID = r.uint16("packet identifier")
	if version >= V5 {
		may := subscribeMay
		if t == UNSUBSCRIBE {
			may = unsubMay
		}
		r.properties(&s.Properties, may, t.String())
	}
	for len(r.b) > 0 {
		f := Filter{Filter: r.string("topic filter")}
		if t == SUBSCRIBE {
			o := r.byte("subscription options")
			f.QoS, f.NoLocal, f.RetainAsPublished, f.RetainHandling = o&3, o&4 != 0, o&8 != 0, o>>4&3
			switch {
			case f.QoS == 3:
				r.fail(malformed("SUBSCRIBE with QoS 3")) // MQTT-3-8.3-4 of 3.1.1
			case o&0xc0 != 0 || (version < V5 && o > 2):
				r.fail(malformed("SUBSCRIBE with reserved bits of its options set")) // MQTT-3.8.3-5
			case f.RetainHandling == 3:
				r.fail(protocolError("SUBSCRIBE with retain handling 3"))
			}
		}
		s.Filters = append(s.Filters, f)
	}
	switch {
	case r.err != nil:
		return r.err
	case s.ID == 0:
		return protocolError("%s with packet identifier 0", t) // MQTT-2.2.1-3
	case len(s.Filters) == 0:
		return protocolError("%s without topic filter", t) // MQTT-3.8.3-2, -3.10.3-2
	}
	return nil
}

// Append appends a packet of that type.
func (s *Subscribe) Append(dst []byte, t Type, version byte) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint16(dst, s.ID)
	if version >= V5 {
		may := subscribeMay
		if t == UNSUBSCRIBE {
			may = unsubMay
		}
		dst = s.Properties.appendSection(dst, may)
	}
	for _, f := range s.Filters {
		dst = appendString(dst, f.Filter)
		if t == SUBSCRIBE {
			o := f.QoS | f.RetainHandling<<4
			if f.NoLocal {
				o |= 4
			}
			if f.RetainAsPublished {
				o |= 8
			}
			dst = append(dst, o)
		}
	}
	return finish(dst, start, byte(t)<<4|2)
}

// A Suback is a SUBACK or an UNSUBACK.
type Suback struct {
	ID         uint16
	Properties Properties
	Codes      []byte // none in an UNSUBACK of MQTT 3.1.1
}

// Decode reads the body of a SUBACK or UNSUBACK.
func (s *Suback) Decode(t Type, flags byte, body []byte, version byte) error {
	s.Properties.reset()
	if err := checkFlags(t, flags); err != nil {
		return err
	}
	r := reader{b: body}
	s.ID = r.uint16("packet identifier")
	if version >= V5 {
		r.properties(&s.Properties, acksMay, t.String())
	}
	s.Codes = r.b
	if t == UNSUBACK && version < V5 {
		return r.end(t)
	}
	if r.err == nil && len(s.Codes) == 0 {
		r.fail(malformed("%s without reason codes", t))
	}
	for _, code := range s.Codes {
		if r.err == nil && !subackCode(t, code, version) {
			r.fail(protocolError("%s with reason code %#x", t, code)) // MQTT-3.9.3-2, -3.11.3-2
		}
	}
	return r.err
}

func subackCode(t Type, code, version byte) bool {
	switch code {
	case Success:
		return true
	case GrantedQoS1, GrantedQoS2:
		return t == SUBACK
	case NoSubscriptionExisted:
		return t == UNSUBACK
	case UnspecifiedError:
		return true
	case ImplementationSpecific, NotAuthorized, TopicFilterInvalid, PacketIDInUse:
		return version >= V5
	case QuotaExceeded, SharedNotSupported, SubscriptionIDs, WildcardNotSupported:
		return version >= V5 && t == SUBACK
	}
	return false
}

// Append appends a packet of that type.
func (s *Suback) Append(dst []byte, t Type, version byte) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint16(dst, s.ID)
	if version >= V5 {
		dst = s.Properties.appendSection(dst, acksMay)
	}
	if t == SUBACK || version >= V5 {
		dst = append(dst, s.Codes...)
	}
	return finish(dst, start, byte(t)<<4)
}

// An End is a DISCONNECT or an AUTH.
type End struct {
	Code       byte
	Properties Properties
}

// Decode reads the body of a DISCONNECT or AUTH.
func (e *End) Decode(t Type, flags byte, body []byte, version byte) error {
	e.Code = 0
	e.Properties.reset()
	if err := checkFlags(t, flags); err != nil {
		return err
	}
	r := reader{b: body}
	if version < V5 {
		if t == AUTH {
			return malformed("AUTH in MQTT 3.1.1")
		}
		return r.end(t)
	}
	if len(r.b) > 0 {
		e.Code = r.byte("reason code")
		if len(r.b) > 0 {
			may := disconnectMay
			if t == AUTH {
				may = authMay
			}
			r.properties(&e.Properties, may, t.String())
		}
	}
	if err := r.end(t); err != nil {
		return err
	}
	if !endCode(t, e.Code) {
		return protocolError("%s with reason code %#x", t, e.Code) // MQTT-3.14.2-1, -3.15.2-1
	}
	return nil
}

func endCode(t Type, code byte) bool {
	if t == AUTH {
		return code == Success || code == ContinueAuthentication || code == Reauthenticate
	}
	switch code {
	case Success, DisconnectWithWill, UnspecifiedError, MalformedPacket, ProtocolError, ImplementationSpecific, NotAuthorized, ServerBusy,
		ServerShuttingDown, KeepAliveTimeout, SessionTakenOver, TopicFilterInvalid, TopicNameInvalid:
		return true
	}
	return code >= ReceiveMaximumExceeded && code <= WildcardNotSupported
}

// Append appends a packet of that type.
func (e *End) Append(dst []byte, t Type, version byte) []byte {
	if version < V5 || (e.Code == 0 && e.Properties.Has == 0) {
		return append(dst, byte(t)<<4, 0)
	}
	if e.Properties.Has == 0 {
		return append(dst, byte(t)<<4, 1, e.Code)
	}
	start := len(dst)
	may := disconnectMay
	if t == AUTH {
		may = authMay
	}
	return finish(e.Properties.appendSection(append(dst, e.Code), may), start, byte(t)<<4)
}
