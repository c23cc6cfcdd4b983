// Package packet reads and writes the control packets of MQTT 3.1.1 and MQTT 5.
//
// A decoder takes the body of one packet (Frame finds it) and fills a struct whose slices are views of that body: they are good as
// long as the body is, and a struct may be decoded into again. Everything that the specifications call malformed or a protocol error,
// and that one packet alone can show, is an *Error with the reason code that MQTT 5 has for it. An encoder appends to a buffer.
// Decoding allocates nothing but what grows the lists of a struct; nothing here keeps state, reads a clock or knows a connection.
//
// What needs more than one packet to see (the first packet is CONNECT, identifiers in use, receive maximum, topic aliases) is the
// server's to check.
package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// A Type is the kind of a control packet.
type Type byte

// The control packets.
const (
	CONNECT     Type = 1
	CONNACK     Type = 2
	PUBLISH     Type = 3
	PUBACK      Type = 4
	PUBREC      Type = 5
	PUBREL      Type = 6
	PUBCOMP     Type = 7
	SUBSCRIBE   Type = 8
	SUBACK      Type = 9
	UNSUBSCRIBE Type = 10
	UNSUBACK    Type = 11
	PINGREQ     Type = 12
	PINGRESP    Type = 13
	DISCONNECT  Type = 14
	AUTH        Type = 15
)

// String returns the name that the specification uses.
func (t Type) String() string {
	names := [...]string{
		"packet of type 0", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP",
		"SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH",
	}
	return names[t&15]
}

// Versions of the protocol, as CONNECT has them.
const (
	V311 = 4
	V5   = 5
)

// Reason codes of MQTT 5.
const (
	Success                = 0x00
	GrantedQoS1            = 0x01
	GrantedQoS2            = 0x02
	DisconnectWithWill     = 0x04
	NoMatchingSubscribers  = 0x10
	NoSubscriptionExisted  = 0x11
	ContinueAuthentication = 0x18
	Reauthenticate         = 0x19
	UnspecifiedError       = 0x80
	MalformedPacket        = 0x81
	ProtocolError          = 0x82
	ImplementationSpecific = 0x83
	UnsupportedVersion     = 0x84
	ClientIDNotValid       = 0x85
	BadUserOrPassword      = 0x86
	NotAuthorized          = 0x87
	ServerUnavailable      = 0x88
	ServerBusy             = 0x89
	Banned                 = 0x8A
	ServerShuttingDown     = 0x8B
	BadAuthMethod          = 0x8C
	KeepAliveTimeout       = 0x8D
	SessionTakenOver       = 0x8E
	TopicFilterInvalid     = 0x8F
	TopicNameInvalid       = 0x90
	PacketIDInUse          = 0x91
	PacketIDNotFound       = 0x92
	ReceiveMaximumExceeded = 0x93
	TopicAliasInvalid      = 0x94
	PacketTooLarge         = 0x95
	MessageRateTooHigh     = 0x96
	QuotaExceeded          = 0x97
	AdministrativeAction   = 0x98
	PayloadFormatInvalid   = 0x99
	RetainNotSupported     = 0x9A
	QoSNotSupported        = 0x9B
	UseAnotherServer       = 0x9C
	ServerMoved            = 0x9D
	SharedNotSupported     = 0x9E
	ConnectionRateExceeded = 0x9F
	MaximumConnectTime     = 0xA0
	SubscriptionIDs        = 0xA1
	WildcardNotSupported   = 0xA2
)

// Return codes of CONNACK in MQTT 3.1.1.
const (
	Accepted             = 0
	RefusedVersion       = 1
	RefusedClientID      = 2
	RefusedUnavailable   = 3
	RefusedUser          = 4
	RefusedNotAuthorized = 5
)

// An Error is what is wrong with a packet.
type Error struct {
	Code byte // of MQTT 5, for DISCONNECT or CONNACK
	Text string
}

func (e *Error) Error() string { return e.Text }

func malformed(format string, args ...any) error {
	return &Error{MalformedPacket, fmt.Sprintf(format, args...)}
}

func protocolError(format string, args ...any) error {
	return &Error{ProtocolError, fmt.Sprintf(format, args...)}
}

// MaxSize is the largest packet there can be.
const MaxSize = 268_435_455 + 5

// Frame finds the packet that b begins with: its first head bytes are the fixed header, size is all of it, which b need not
// hold. Both are 0 while the header is not whole. A packet of more than most bytes is an error, before any of its body is there.
func Frame(b []byte, most int) (head, size int, err error) {
	if len(b) < 2 {
		return 0, 0, nil
	}
	n := int(b[1])
	head = 2
	if n >= 0x80 {
		n &= 0x7f
		for shift := 7; ; shift += 7 {
			if head == len(b) {
				if head >= 5 {
					return 0, 0, malformed("remaining length of more than four bytes")
				}
				return 0, 0, nil
			}
			c := b[head]
			if head++; head > 5 {
				return 0, 0, malformed("remaining length of more than four bytes")
			}
			n |= int(c&0x7f) << shift
			if c < 0x80 {
				if c == 0 {
					return 0, 0, malformed("remaining length is not in its shortest form") // MQTT-1.5.5-1
				}
				break
			}
		}
	}
	if n+head > most {
		return 0, 0, &Error{PacketTooLarge, fmt.Sprintf("%s of %d bytes: %d are the limit", Type(b[0]>>4), n+head, most)}
	}
	return head, n + head, nil
}

// checkFlags tells whether the low bits of a packet's first byte are what they must be.
func checkFlags(t Type, flags byte) error {
	want := byte(0)
	if t == PUBREL || t == SUBSCRIBE || t == UNSUBSCRIBE {
		want = 2
	}
	if flags != want { // MQTT-2.1.3-1, -3.8.1-1, -3.10.1-1, -3.6.1-1
		return malformed("%s with flags %#x: they must be %#x", t, flags, want)
	}
	return nil
}

// CheckEmpty checks a PINGREQ or PINGRESP.
func CheckEmpty(t Type, flags byte, body []byte) error {
	if err := checkFlags(t, flags); err != nil {
		return err
	}
	if len(body) > 0 {
		return malformed("%s with %d bytes: it has none", t, len(body))
	}
	return nil
}

// appendLength appends a variable byte integer.
func appendLength(b []byte, n int) []byte {
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}

// lengthSize returns how many bytes appendLength appends.
func lengthSize(n int) int {
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

func appendString(b, s []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s))) //nolint:gosec // callers check
	return append(b, s...)
}

// finish puts the fixed header before the body that begins at dst[start:].
func finish(dst []byte, start int, first byte) []byte {
	n := len(dst) - start
	head := 1 + lengthSize(n)
	var room [5]byte
	dst = append(dst, room[:head]...)
	copy(dst[start+head:], dst[start:start+n])
	dst[start] = first
	appendLength(dst[start+1:start+1], n)
	return dst
}

// A reader takes fields off a body. After the first error the others are zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.b = nil
}

func (r *reader) short(what string) { r.fail(malformed("packet ends within the %s", what)) }

func (r *reader) byte(what string) byte {
	if len(r.b) < 1 {
		r.short(what)
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) uint16(what string) uint16 {
	if len(r.b) < 2 {
		r.short(what)
		return 0
	}
	v := binary.BigEndian.Uint16(r.b)
	r.b = r.b[2:]
	return v
}

func (r *reader) uint32(what string) uint32 {
	if len(r.b) < 4 {
		r.short(what)
		return 0
	}
	v := binary.BigEndian.Uint32(r.b)
	r.b = r.b[4:]
	return v
}

// length takes a variable byte integer.
func (r *reader) length(what string) int {
	n := 0
	for i := range 4 {
		if i >= len(r.b) {
			r.short(what)
			return 0
		}
		c := r.b[i]
		n |= int(c&0x7f) << (7 * i)
		if c < 0x80 {
			if c == 0 && i > 0 {
				r.fail(malformed("%s is not in its shortest form", what)) // MQTT-1.5.5-1
				return 0
			}
			r.b = r.b[i+1:]
			return n
		}
	}
	r.fail(malformed("%s has more than four bytes", what))
	return 0
}

func (r *reader) binary(what string) []byte {
	n := int(r.uint16(what))
	if n > len(r.b) {
		r.short(what)
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) string(what string) []byte {
	v := r.binary(what)
	if r.err == nil && !validString(v) {
		r.fail(malformed("%s is not UTF-8, or holds a zero character", what)) // MQTT-1.5.4-1, -2
		return nil
	}
	return v
}

// end checks that nothing is left.
func (r *reader) end(t Type) error {
	if r.err == nil && len(r.b) > 0 {
		r.fail(malformed("%s has %d bytes after its end", t, len(r.b)))
	}
	return r.err
}

// validString tells whether s is what MQTT calls a UTF-8 encoded string.
func validString(s []byte) bool {
	for i, c := range s {
		if c == 0 {
			return false
		}
		if c >= utf8.RuneSelf {
			return !bytes.Contains(s[i:], []byte{0}) && utf8.Valid(s[i:])
		}
	}
	return true
}
