package packet

import "encoding/binary"

// A Connect is a client's first packet.
type Connect struct {
	Version     byte // V311 or V5; after an error what could be read of it, so that the answer has its form
	Clean       bool // clean start, or clean session
	KeepAlive   uint16
	ClientID    []byte
	HasUser     bool
	User        []byte
	HasPassword bool
	Password    []byte
	Properties  Properties
	HasWill     bool
	Will        Will
}

// A Will is the message that a server sends for a client that is lost.
type Will struct {
	QoS        byte
	Retain     bool
	Topic      []byte
	Payload    []byte
	Properties Properties
}

// Decode reads the body of a CONNECT.
func (c *Connect) Decode(flags byte, body []byte) error {
	c.Version = 0
	if err := checkFlags(CONNECT, flags); err != nil {
		return err
	}
	r := reader{b: body}
	name := r.binary("protocol name")
	version := r.byte("protocol version")
	if r.err != nil {
		return r.err
	}
	switch {
	case string(name) == "MQTT" && (version == V311 || version == V5):
		c.Version = version
	case string(name) == "MQTT" || string(name) == "MQIsdp": // MQTT-3.1.2-2
		if version&0x7f < V5 {
			c.Version = V311
		} else {
			c.Version = V5
		}
		return &Error{UnsupportedVersion, "protocol version is not supported: use MQTT 3.1.1 or 5"}
	default:
		return malformed("protocol name is not MQTT") // MQTT-3.1.2-1
	}
	bits := r.byte("connect flags")
	c.KeepAlive = r.uint16("keep alive")
	c.Clean = bits&2 != 0
	c.HasWill, c.HasPassword, c.HasUser = bits&4 != 0, bits&0x40 != 0, bits&0x80 != 0
	c.Will.QoS, c.Will.Retain = bits>>3&3, bits&0x20 != 0
	switch {
	case r.err != nil:
		return r.err
	case bits&1 != 0:
		return malformed("CONNECT with its reserved flag set") // MQTT-3.1.2-3
	case !c.HasWill && bits&0x38 != 0:
		return malformed("CONNECT with a will's QoS or retain and no will") // MQTT-3.1.2-11, -13
	case c.Will.QoS == 3:
		return malformed("will with QoS 3") // MQTT-3.1.2-12
	case version == V311 && c.HasPassword && !c.HasUser:
		return malformed("CONNECT with a password and no user name") // MQTT-3.1.2-22 of 3.1.1
	}
	c.Properties.reset()
	c.Will.Properties.reset()
	if version == V5 {
		r.properties(&c.Properties, connectMay, "CONNECT")
		if r.err == nil && c.Properties.Has.Has(AuthData) && !c.Properties.Has.Has(AuthMethod) {
			r.fail(protocolError("CONNECT with authentication data and no method"))
		}
	}
	c.ClientID = r.string("client identifier")
	c.Will.Topic, c.Will.Payload, c.User, c.Password = nil, nil, nil, nil
	if c.HasWill {
		if version == V5 {
			r.properties(&c.Will.Properties, willMay, "will")
		}
		c.Will.Topic = r.string("will topic")
		c.Will.Payload = r.binary("will payload")
		if r.err == nil {
			if len(c.Will.Topic) == 0 {
				r.fail(malformed("will without topic")) // MQTT-4.7.3-1
			} else if err := checkTopic(c.Will.Topic, version); err != nil {
				r.fail(err)
			}
		}
	}
	if c.HasUser {
		c.User = r.string("user name")
	}
	if c.HasPassword {
		c.Password = r.binary("password")
	}
	return r.end(CONNECT)
}

// Append appends the packet.
func (c *Connect) Append(dst []byte) []byte {
	start := len(dst)
	bits := byte(0)
	for _, f := range []struct {
		on  bool
		bit byte
	}{{c.Clean, 2}, {c.HasWill, 4}, {c.HasWill && c.Will.Retain, 0x20}, {c.HasPassword, 0x40}, {c.HasUser, 0x80}} {
		if f.on {
			bits |= f.bit
		}
	}
	if c.HasWill {
		bits |= c.Will.QoS << 3
	}
	dst = append(dst, 0, 4, 'M', 'Q', 'T', 'T', c.Version, bits)
	dst = binary.BigEndian.AppendUint16(dst, c.KeepAlive)
	if c.Version >= V5 {
		dst = c.Properties.appendSection(dst, connectMay)
	}
	dst = appendString(dst, c.ClientID)
	if c.HasWill {
		if c.Version >= V5 {
			dst = c.Will.Properties.appendSection(dst, willMay)
		}
		dst = appendString(appendString(dst, c.Will.Topic), c.Will.Payload)
	}
	if c.HasUser {
		dst = appendString(dst, c.User)
	}
	if c.HasPassword {
		dst = appendString(dst, c.Password)
	}
	return finish(dst, start, byte(CONNECT)<<4)
}

// A Connack answers a CONNECT.
type Connack struct {
	Present    bool
	Code       byte // of MQTT 3.1.1 or of MQTT 5
	Properties Properties
}

// Decode reads the body of a CONNACK.
func (c *Connack) Decode(flags byte, body []byte, version byte) error {
	c.Properties.reset()
	if err := checkFlags(CONNACK, flags); err != nil {
		return err
	}
	r := reader{b: body}
	bits := r.byte("acknowledge flags")
	c.Present, c.Code = bits&1 != 0, r.byte("reason code")
	if version >= V5 {
		r.properties(&c.Properties, connackMay, "CONNACK")
	}
	if err := r.end(CONNACK); err != nil {
		return err
	}
	if bits > 1 {
		return malformed("CONNACK with reserved flags set") // MQTT-3.2.2-1
	}
	if c.Present && c.Code != 0 {
		return protocolError("CONNACK with a session and a refusal") // MQTT-3.2.2-6
	}
	if !connectCode(c.Code, version) {
		return protocolError("CONNACK with reason code %#x", c.Code) // MQTT-3.2.2-8
	}
	return nil
}

func connectCode(code, version byte) bool {
	if version < V5 {
		return code <= RefusedNotAuthorized
	}
	switch code {
	case Success, TopicNameInvalid, PacketTooLarge, QuotaExceeded, PayloadFormatInvalid, RetainNotSupported, QoSNotSupported, UseAnotherServer,
		ServerMoved, ConnectionRateExceeded:
		return true
	}
	return code >= UnspecifiedError && code <= BadAuthMethod && code != ServerShuttingDown
}

// Append appends the packet.
func (c *Connack) Append(dst []byte, version byte) []byte {
	start := len(dst)
	bits := byte(0)
	if c.Present {
		bits = 1
	}
	dst = append(dst, bits, c.Code)
	if version >= V5 {
		dst = c.Properties.appendSection(dst, connackMay)
	}
	return finish(dst, start, byte(CONNACK)<<4)
}

// Refused311 returns the return code of MQTT 3.1.1 for a reason code of MQTT 5. ok is false if none says it: then there is no CONNACK
// (MQTT-3.1.4-1, -3.2.2-6 of 3.1.1).
func Refused311(code byte) (refused byte, ok bool) {
	switch code {
	case Success:
		return Accepted, true
	case UnsupportedVersion:
		return RefusedVersion, true
	case ClientIDNotValid:
		return RefusedClientID, true
	case BadUserOrPassword:
		return RefusedUser, true
	case NotAuthorized, Banned, BadAuthMethod:
		return RefusedNotAuthorized, true
	case ServerUnavailable, ServerBusy, UnspecifiedError, QuotaExceeded:
		return RefusedUnavailable, true
	}
	return 0, false
}
