package mqtt

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	broker "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/stream"
)

const (
	maxTopic         = 512 // bytes of a topic: aliases are kept as long as the connection
	maxSubscriptions = 16  // of one connection
	// slowAck is from when on the time for writing an acknowledgement is counted anew: the library set it when it began to
	// wait for the packet.
	slowAck    = time.Second
	ackTimeout = 10 * time.Second
)

type user struct {
	password [sha256.Size]byte
	vehicle  string
}

// hook is where the library asks. All but OnWillSent run on the connection's reading goroutine, so while OnPublish waits for
// the disk this device is not read from: that is the back-pressure, and it is this device's alone (P8).
type hook struct {
	broker.HookBase
	door      *ingest.Door
	queue     *queue
	topics    patterns
	users     map[string]user
	anonymous bool
	server    *broker.Server
	sessions  int    // most sessions, those of devices that are away included
	keepAlive uint16 // most seconds
	maxPacket uint32
	logger    *slog.Logger
	ctx       context.Context //nolint:containedctx // the server's; ends waiting for the log
	reading   context.Context //nolint:containedctx // ends when the server stops reading; ends waiting for a device's rate
	receipts  sync.Pool       // of *ingest.Receipt
	turned    atomic.Bool     // an anonymous client from elsewhere was turned away, and that was logged
}

// ID is what the library's log calls the hook.
func (h *hook) ID() string { return "milepost" }

// Provides lists the hooks that the library is to call: it calls no others.
func (h *hook) Provides(b byte) bool {
	switch b {
	case broker.OnConnect, broker.OnConnectAuthenticate, broker.OnACLCheck, broker.OnPacketRead, broker.OnPacketEncode,
		broker.OnPublish, broker.OnWill, broker.OnWillSent:
		return true
	}
	return false
}

// OnConnect bounds what a connection keeps.
func (h *hook) OnConnect(cl *broker.Client, pk packets.Packet) error {
	c, ok := cl.Net.Conn.(*conn)
	if !ok {
		return packets.ErrServerUnavailable
	}
	c.v5 = cl.Properties.ProtocolVersion == 5
	c.from = cl.ID + " at " + cl.Net.Remote
	if c.v5 && (cl.State.Keepalive == 0 || cl.State.Keepalive > h.keepAlive) {
		cl.State.Keepalive, cl.State.ServerKeepalive = h.keepAlive, true
	}
	if _, known := h.server.Clients.Get(cl.ID); !known && h.server.Clients.Len() >= h.sessions {
		return packets.ErrServerBusy
	}
	return nil
}

// OnConnectAuthenticate lets in users with their password, clients with a certificate that TLS has verified, and, without
// users, clients of this machine.
func (h *hook) OnConnectAuthenticate(cl *broker.Client, pk packets.Packet) bool {
	c, ok := cl.Net.Conn.(*conn)
	if !ok {
		return false
	}
	if pk.Connect.UsernameFlag && len(h.users) > 0 {
		u, ok := h.users[string(pk.Connect.Username)]
		sum := sha256.Sum256(pk.Connect.Password)
		if subtle.ConstantTimeCompare(sum[:], u.password[:]) == 1 && ok {
			c.vehicle = u.vehicle
			return true
		}
	} else if h.anonymous || (len(h.users) == 0 && loopback(c.RemoteAddr())) || c.certified() {
		return true
	} else if len(h.users) == 0 && h.turned.CompareAndSwap(false, true) {
		h.logger.Warn("mqtt client from another machine turned away: list users, or allow anonymous clients",
			slog.String("remote", cl.Net.Remote))
	}
	h.door.Refuse(ingest.Unwelcome, 1)
	return false
}

func loopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// OnACLCheck decides on subscriptions. Publishing is decided in OnPublish: here the library has not looked up topic aliases.
func (h *hook) OnACLCheck(cl *broker.Client, topic string, write bool) bool {
	if write {
		return true
	}
	c, ok := cl.Net.Conn.(*conn)
	if !ok {
		return false
	}
	vehicle := c.vehicle
	if vehicle == "" {
		vehicle = cl.ID
	}
	return cl.State.Subscriptions.Len() < maxSubscriptions && h.topics.owns(topic, vehicle)
}

// OnPacketRead ends connections that the library would leave waiting for an acknowledgement that never comes, or would give
// the wrong one: it lowers QoS 2 to 1 and ignores what is published to $SYS.
func (h *hook) OnPacketRead(cl *broker.Client, pk packets.Packet) (packets.Packet, error) {
	if pk.FixedHeader.Type != packets.Publish {
		return pk, nil
	}
	switch {
	case pk.FixedHeader.Qos > 1:
		h.door.Refuse(ingest.Unsupported, 1)
		h.end(cl, packets.ErrQosNotSupported)
	case len(pk.TopicName) > maxTopic || (pk.TopicName != "" && !broker.IsValidFilter(pk.TopicName, true)):
		h.door.Refuse(ingest.WrongTopic, 1)
		h.end(cl, packets.ErrTopicNameInvalid)
	default:
		return pk, nil
	}
	return pk, packets.ErrRejectPacket
}

// OnPacketEncode tells MQTT 5 devices what they may send.
func (h *hook) OnPacketEncode(_ *broker.Client, pk packets.Packet) packets.Packet {
	if pk.FixedHeader.Type == packets.Connack {
		pk.Properties.MaximumPacketSize = h.maxPacket
		pk.Properties.TopicAliasMaximum = h.server.Options.Capabilities.TopicAliasMaximum
		pk.Properties.RetainAvailable, pk.Properties.RetainAvailableFlag = 0, true
		pk.Properties.SharedSubAvailable, pk.Properties.SharedSubAvailableFlag = 0, true
	}
	return pk
}

// end ends a connection; an MQTT 5 device is told why.
func (h *hook) end(cl *broker.Client, why packets.Code) {
	if cl.Properties.ProtocolVersion == 5 {
		_ = h.server.DisconnectClient(cl, why) // returns why
		return
	}
	cl.Stop(why)
}

// OnPublish stores a message and decides on its acknowledgement. What it returns the library takes as: CodeSuccessIgnore,
// acknowledge and forward to nobody; ErrRejectPacket, do neither; another packets.Code, acknowledge with that code on MQTT 5.
// An ordinary error would acknowledge on MQTT 3.1.1 what was not stored.
func (h *hook) OnPublish(cl *broker.Client, pk packets.Packet) (packets.Packet, error) {
	c, ok := cl.Net.Conn.(*conn)
	if !ok {
		return pk, packets.ErrRejectPacket
	}
	p := ingest.Payload{Data: pk.Payload, From: c.from, Topic: pk.TopicName}
	vehicle, mapped := h.topics.match(pk.TopicName)
	switch {
	case !mapped:
		return h.wrongTopic(cl, pk, p, "no mapping has this topic: publish to one of the mapped topics, as "+DefaultTopic)
	case c.vehicle == "":
		p.Vehicle = vehicle
	case vehicle != "" && vehicle != c.vehicle:
		return h.wrongTopic(cl, pk, p, fmt.Sprintf("user may publish for vehicle %q only", c.vehicle))
	default:
		p.Vehicle = c.vehicle
	}
	if pk.FixedHeader.Qos == 0 {
		if !h.queue.put(p) {
			h.door.Refuse(ingest.Overloaded, 1)
		}
		return pk, packets.CodeSuccessIgnore
	}
	p.Wait = h.reading
	return h.settle(cl, pk, func(r *ingest.Receipt) { h.door.Admit(h.ctx, p, r) })
}

func (h *hook) wrongTopic(cl *broker.Client, pk packets.Packet, p ingest.Payload, why string) (packets.Packet, error) {
	return h.settle(cl, pk, func(r *ingest.Receipt) { h.door.DeadLetter(h.ctx, p, ingest.WrongTopic, why, r) })
}

// settle runs f and turns its receipt into the acknowledgement.
func (h *hook) settle(cl *broker.Client, pk packets.Packet, f func(*ingest.Receipt)) (packets.Packet, error) {
	r, ok := h.receipts.Get().(*ingest.Receipt)
	if !ok {
		r = new(ingest.Receipt)
	}
	defer h.receipts.Put(r)
	start := time.Now()
	f(r)
	if time.Since(start) > slowAck {
		_ = cl.Net.Conn.SetWriteDeadline(time.Now().Add(ackTimeout))
	}
	switch {
	case pk.FixedHeader.Qos == 0:
		return pk, packets.CodeSuccessIgnore // counted
	case r.Failed > 0, r.DeadLetterErr != nil:
		// No acknowledgement, and no connection: a device sends again what was not acknowledged when it has connected again.
		h.end(cl, unavailable(r))
		return pk, packets.ErrRejectPacket
	case r.Refused > 0 && cl.Properties.ProtocolVersion == 5:
		return pk, refusal(r)
	}
	// Stored; or refused and kept as a dead letter, which MQTT 3.1.1 has no way of saying. Without the acknowledgement the
	// device would send the same bad message for ever.
	return pk, packets.CodeSuccessIgnore
}

func unavailable(r *ingest.Receipt) packets.Code {
	err := r.Err
	if err == nil {
		err = r.DeadLetterErr
	}
	switch {
	case errors.Is(err, stream.ErrFull):
		return packets.ErrQuotaExceeded
	case errors.Is(err, stream.ErrClosed), errors.Is(err, context.Canceled):
		return packets.ErrServerShuttingDown
	}
	return packets.ErrServerUnavailable
}

// refusal is the PUBACK of a message of which a part or all was refused.
func refusal(r *ingest.Receipt) packets.Code {
	code := packets.ErrPayloadFormatInvalid
	switch r.First {
	case ingest.WrongTopic, ingest.Mismatch:
		code = packets.ErrNotAuthorized
	case ingest.TooLarge:
		code = packets.ErrQuotaExceeded
	default:
	}
	if len(r.Problems) > 0 {
		code.Reason = r.Problems[0].Reason
	}
	if r.Readings > 1 {
		code.Reason = fmt.Sprintf("%d of %d readings refused, the first in line %d: %s", r.Refused, r.Readings, r.Problems[0].Line, code.Reason)
	}
	return code
}

// willPrefix moves wills to topics that nobody may subscribe to. The library sends them past OnPublish and OnACLCheck, so a
// device could otherwise speak to another, or leave it something retained.
const willPrefix = "$milepost/will/"

// OnWill is called when the library is about to send a will, or to delay it.
func (h *hook) OnWill(_ *broker.Client, will broker.Will) (broker.Will, error) {
	will.TopicName = willPrefix + will.TopicName
	will.Retain = false
	return will, nil
}

// OnWillSent takes in a will as a QoS 0 message.
func (h *hook) OnWillSent(cl *broker.Client, pk packets.Packet) {
	c, ok := cl.Net.Conn.(*conn)
	if !ok {
		return
	}
	topic := strings.TrimPrefix(pk.TopicName, willPrefix)
	vehicle, mapped := h.topics.match(topic)
	if !mapped || (c.vehicle != "" && vehicle != "" && vehicle != c.vehicle) {
		h.door.Refuse(ingest.WrongTopic, 1)
		return
	}
	if vehicle == "" {
		vehicle = c.vehicle
	}
	if !h.queue.put(ingest.Payload{Data: pk.Payload, Vehicle: vehicle, From: c.from, Topic: topic}) {
		h.door.Refuse(ingest.Overloaded, 1)
	}
}
