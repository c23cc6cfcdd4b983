package packet

import (
	"encoding/binary"
	"math/bits"
)

// A Property is an identifier of MQTT 5.
type Property byte

// The properties.
const (
	PayloadFormat          Property = 0x01
	MessageExpiry          Property = 0x02
	ContentType            Property = 0x03
	ResponseTopic          Property = 0x08
	CorrelationData        Property = 0x09
	SubscriptionID         Property = 0x0B
	SessionExpiry          Property = 0x11
	AssignedClientID       Property = 0x12
	ServerKeepAlive        Property = 0x13
	AuthMethod             Property = 0x15
	AuthData               Property = 0x16
	RequestProblemInfo     Property = 0x17
	WillDelay              Property = 0x18
	RequestResponseInfo    Property = 0x19
	ResponseInfo           Property = 0x1A
	ServerReference        Property = 0x1C
	ReasonString           Property = 0x1F
	ReceiveMaximum         Property = 0x21
	TopicAliasMaximum      Property = 0x22
	TopicAlias             Property = 0x23
	MaximumQoS             Property = 0x24
	RetainAvailable        Property = 0x25
	UserProperty           Property = 0x26
	MaximumPacketSize      Property = 0x27
	WildcardAvailable      Property = 0x28
	SubscriptionIDsAllowed Property = 0x29
	SharedAvailable        Property = 0x2A
	properties             Property = 0x2B
)

// A Set is a set of properties.
type Set uint64

// SetOf returns the set of some properties.
func SetOf(ps ...Property) Set {
	var s Set
	for _, p := range ps {
		s |= 1 << p
	}
	return s
}

// Has tells whether p is in the set.
func (s Set) Has(p Property) bool { return s>>p&1 == 1 }

// Which properties a packet may have.
const (
	acksMay       Set = 1<<ReasonString | 1<<UserProperty
	connectMay    Set = 1<<SessionExpiry | 1<<AuthMethod | 1<<AuthData | 1<<RequestProblemInfo | 1<<RequestResponseInfo | 1<<ReceiveMaximum | 1<<TopicAliasMaximum | 1<<UserProperty | 1<<MaximumPacketSize
	willMay       Set = 1<<PayloadFormat | 1<<MessageExpiry | 1<<ContentType | 1<<ResponseTopic | 1<<CorrelationData | 1<<WillDelay | 1<<UserProperty
	connackMay    Set = 1<<SessionExpiry | 1<<AssignedClientID | 1<<ServerKeepAlive | 1<<AuthMethod | 1<<AuthData | 1<<ResponseInfo | 1<<ServerReference | 1<<ReasonString | 1<<ReceiveMaximum | 1<<TopicAliasMaximum | 1<<MaximumQoS | 1<<RetainAvailable | 1<<UserProperty | 1<<MaximumPacketSize | 1<<WildcardAvailable | 1<<SubscriptionIDsAllowed | 1<<SharedAvailable
	publishMay    Set = 1<<PayloadFormat | 1<<MessageExpiry | 1<<ContentType | 1<<ResponseTopic | 1<<CorrelationData | 1<<SubscriptionID | 1<<TopicAlias | 1<<UserProperty
	subscribeMay  Set = 1<<SubscriptionID | 1<<UserProperty
	unsubMay      Set = 1 << UserProperty
	disconnectMay Set = 1<<SessionExpiry | 1<<ServerReference | 1<<ReasonString | 1<<UserProperty
	authMay       Set = 1<<AuthMethod | 1<<AuthData | 1<<ReasonString | 1<<UserProperty

	// Forwarded are the properties of a PUBLISH or a will that a server passes on as they are.
	Forwarded Set = 1<<PayloadFormat | 1<<ContentType | 1<<ResponseTopic | 1<<CorrelationData | 1<<UserProperty
)

// A Pair is a user property.
type Pair struct{ Name, Value []byte }

// Properties are those of one packet. Those that are not in Has are zero.
type Properties struct {
	Has Set

	PayloadFormat          byte
	MessageExpiry          uint32 // seconds
	ContentType            []byte
	ResponseTopic          []byte
	CorrelationData        []byte
	SubscriptionIDs        []uint32
	SessionExpiry          uint32 // seconds
	AssignedClientID       []byte
	ServerKeepAlive        uint16 // seconds
	AuthMethod             []byte
	AuthData               []byte
	RequestProblemInfo     byte
	WillDelay              uint32 // seconds
	RequestResponseInfo    byte
	ResponseInfo           []byte
	ServerReference        []byte
	ReasonString           []byte
	ReceiveMaximum         uint16
	TopicAliasMaximum      uint16
	TopicAlias             uint16
	MaximumQoS             byte
	RetainAvailable        byte
	User                   []Pair
	MaximumPacketSize      uint32
	WildcardAvailable      byte
	SubscriptionIDsAllowed byte
	SharedAvailable        byte
}

// reset makes p empty, keeping the memory of its lists.
func (p *Properties) reset() {
	if p.Has != 0 {
		*p = Properties{SubscriptionIDs: p.SubscriptionIDs[:0], User: p.User[:0]}
	}
}

// properties takes a packet's properties, of which those in may are allowed.
func (r *reader) properties(p *Properties, may Set, what string) {
	p.reset()
	n := r.length("length of the properties")
	if n > len(r.b) {
		r.short("properties")
		return
	}
	if n == 0 {
		return
	}
	in := reader{b: r.b[:n:n]}
	r.b = r.b[n:]
	for len(in.b) > 0 {
		p.take(&in, may, what)
	}
	if in.err != nil {
		r.fail(in.err)
	}
}

func (p *Properties) take(r *reader, may Set, what string) {
	id := Property(r.b[0]) // identifiers are variable byte integers, of which all that exist have one byte
	r.b = r.b[1:]
	if id >= properties || !may.Has(id) {
		r.fail(malformed("%s with property %#x: it has none such", what, byte(id))) // MQTT-2.2.2-2 and tables of 3.x.2
		return
	}
	if p.Has.Has(id) && id != UserProperty && id != SubscriptionID {
		r.fail(protocolError("%s with property %#x twice", what, byte(id)))
		return
	}
	p.Has |= 1 << id
	switch id {
	case PayloadFormat:
		p.PayloadFormat = r.flag(id)
	case MessageExpiry:
		p.MessageExpiry = r.uint32("message expiry interval")
	case ContentType:
		p.ContentType = r.string("content type")
	case ResponseTopic:
		p.ResponseTopic = r.string("response topic")
		for _, c := range p.ResponseTopic {
			if c == '+' || c == '#' { // MQTT-3.3.2-14
				r.fail(protocolError("response topic holds + or #"))
			}
		}
	case CorrelationData:
		p.CorrelationData = r.binary("correlation data")
	case SubscriptionID:
		n := r.length("subscription identifier")
		if r.err == nil && n == 0 {
			r.fail(protocolError("subscription identifier is 0"))
		}
		if len(p.SubscriptionIDs) > 0 && may == subscribeMay {
			r.fail(protocolError("%s with two subscription identifiers", what))
		}
		p.SubscriptionIDs = append(p.SubscriptionIDs, uint32(n)) //nolint:gosec // 28 bits
	case SessionExpiry:
		p.SessionExpiry = r.uint32("session expiry interval")
	case AssignedClientID:
		p.AssignedClientID = r.string("assigned client identifier")
	case ServerKeepAlive:
		p.ServerKeepAlive = r.uint16("server keep alive")
	case AuthMethod:
		p.AuthMethod = r.string("authentication method")
	case AuthData:
		p.AuthData = r.binary("authentication data")
	case RequestProblemInfo:
		p.RequestProblemInfo = r.flag(id)
	case WillDelay:
		p.WillDelay = r.uint32("will delay interval")
	case RequestResponseInfo:
		p.RequestResponseInfo = r.flag(id)
	case ResponseInfo:
		p.ResponseInfo = r.string("response information")
	case ServerReference:
		p.ServerReference = r.string("server reference")
	case ReasonString:
		p.ReasonString = r.string("reason string")
	case ReceiveMaximum:
		p.ReceiveMaximum = r.uint16("receive maximum")
		if r.err == nil && p.ReceiveMaximum == 0 {
			r.fail(protocolError("receive maximum is 0"))
		}
	case TopicAliasMaximum:
		p.TopicAliasMaximum = r.uint16("topic alias maximum")
	case TopicAlias:
		p.TopicAlias = r.uint16("topic alias")
		if r.err == nil && p.TopicAlias == 0 {
			r.fail(&Error{TopicAliasInvalid, "topic alias is 0"}) // MQTT-3.3.2-8
		}
	case MaximumQoS:
		p.MaximumQoS = r.flag(id)
	case RetainAvailable:
		p.RetainAvailable = r.flag(id)
	case UserProperty:
		name := r.string("name of a user property")
		p.User = append(p.User, Pair{name, r.string("value of a user property")})
	case MaximumPacketSize:
		p.MaximumPacketSize = r.uint32("maximum packet size")
		if r.err == nil && p.MaximumPacketSize == 0 {
			r.fail(protocolError("maximum packet size is 0"))
		}
	case WildcardAvailable:
		p.WildcardAvailable = r.flag(id)
	case SubscriptionIDsAllowed:
		p.SubscriptionIDsAllowed = r.flag(id)
	case SharedAvailable:
		p.SharedAvailable = r.flag(id)
	case properties:
	}
}

// flag takes a byte that is 0 or 1.
func (r *reader) flag(id Property) byte {
	v := r.byte("property")
	if v > 1 {
		r.fail(protocolError("property %#x is %d: it must be 0 or 1", byte(id), v))
	}
	return v
}

// Append appends the properties that are in p.Has and in only, with their identifiers and without their length.
func (p *Properties) Append(dst []byte, only Set) []byte {
	be := binary.BigEndian
	for has := uint64(p.Has & only); has != 0; has &= has - 1 {
		id := Property(bits.TrailingZeros64(has)) //nolint:gosec // below 64
		switch id {                               // those that may come more than once
		case SubscriptionID:
			for _, n := range p.SubscriptionIDs {
				dst = appendLength(append(dst, byte(id)), int(n))
			}
			continue
		case UserProperty:
			for _, u := range p.User {
				dst = appendString(appendString(append(dst, byte(id)), u.Name), u.Value)
			}
			continue
		default:
		}
		dst = append(dst, byte(id))
		switch id {
		case PayloadFormat:
			dst = append(dst, p.PayloadFormat)
		case MessageExpiry:
			dst = be.AppendUint32(dst, p.MessageExpiry)
		case ContentType:
			dst = appendString(dst, p.ContentType)
		case ResponseTopic:
			dst = appendString(dst, p.ResponseTopic)
		case CorrelationData:
			dst = appendString(dst, p.CorrelationData)
		case SessionExpiry:
			dst = be.AppendUint32(dst, p.SessionExpiry)
		case AssignedClientID:
			dst = appendString(dst, p.AssignedClientID)
		case ServerKeepAlive:
			dst = be.AppendUint16(dst, p.ServerKeepAlive)
		case AuthMethod:
			dst = appendString(dst, p.AuthMethod)
		case AuthData:
			dst = appendString(dst, p.AuthData)
		case RequestProblemInfo:
			dst = append(dst, p.RequestProblemInfo)
		case WillDelay:
			dst = be.AppendUint32(dst, p.WillDelay)
		case RequestResponseInfo:
			dst = append(dst, p.RequestResponseInfo)
		case ResponseInfo:
			dst = appendString(dst, p.ResponseInfo)
		case ServerReference:
			dst = appendString(dst, p.ServerReference)
		case ReasonString:
			dst = appendString(dst, p.ReasonString)
		case ReceiveMaximum:
			dst = be.AppendUint16(dst, p.ReceiveMaximum)
		case TopicAliasMaximum:
			dst = be.AppendUint16(dst, p.TopicAliasMaximum)
		case TopicAlias:
			dst = be.AppendUint16(dst, p.TopicAlias)
		case MaximumQoS:
			dst = append(dst, p.MaximumQoS)
		case RetainAvailable:
			dst = append(dst, p.RetainAvailable)
		case MaximumPacketSize:
			dst = be.AppendUint32(dst, p.MaximumPacketSize)
		case WildcardAvailable:
			dst = append(dst, p.WildcardAvailable)
		case SubscriptionIDsAllowed:
			dst = append(dst, p.SubscriptionIDsAllowed)
		case SharedAvailable:
			dst = append(dst, p.SharedAvailable)
		case SubscriptionID, UserProperty, properties:
		}
	}
	return dst
}

// appendSection appends length and properties.
func (p *Properties) appendSection(dst []byte, may Set) []byte {
	start := len(dst)
	dst = p.Append(dst, may)
	n := len(dst) - start
	head := lengthSize(n)
	var room [4]byte
	dst = append(dst, room[:head]...)
	copy(dst[start+head:], dst[start:start+n])
	appendLength(dst[start:start], n)
	return dst
}
