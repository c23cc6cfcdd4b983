// Package broker is the half of Milepost's MQTT server that has no network: sessions, subscriptions, queues, retained messages and
// wills. The connections of ingest/mqtt call it, and the server's own rooms publish through it.
//
// What it promises:
//
//   - A message of QoS 1 or 2 that matches a persistent session (one with a session expiry) is on disk for that session when the
//     Ticket of its Publish is durable; the front acknowledges the publisher then, and not before (P1). It stays until the session
//     acknowledges it, it expires, or the session ends. A restart or a crash changes nothing of that. QoS 0, and everything for
//     sessions that end with their connection, is kept in memory only.
//   - QoS 2 is delivered once to such a session, through crashes too: a packet identifier is on disk before its PUBLISH leaves, a
//     PUBREC before its PUBREL leaves, and an inbound identifier together with what its message put into queues. QoS 1 keeps its
//     packet identifier over reconnects and orderly restarts; after a crash a message may come under another one.
//   - A subscription of a persistent session is on disk when the Ticket of Subscribe is durable.
//   - Messages of one topic and QoS reach a session in the order they were published.
//   - A message that nobody subscribes to costs one atomic load.
//   - Everything is bounded (Limits); what a bound refuses is refused newest first, counted by reason, and never takes away what
//     was queued before.
//
// The network pulls: Publish puts a message into the queues of the sessions that match and calls Conn.Wake; the goroutine that writes
// to the connection calls Session.Pull. What a client does not read stays in its queue, on disk if its session is persistent.
//
// Every method is safe for concurrent use, but Pull of one session belongs to one goroutine at a time.
package broker

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/state"
)

// Reason codes of MQTT 5 that the broker itself uses.
const (
	Success            = 0x00
	NoSubscription     = 0x11 // of Unsubscribe
	Unspecified        = 0x80
	ShuttingDown       = 0x8B
	TakenOver          = 0x8E
	FilterInvalid      = 0x8F
	PacketIDNotFound   = 0x92
	QuotaExceeded      = 0x97
	SharedNotSupported = 0x9E
)

// Errors that callers branch on.
var (
	// ErrClosed: the broker is closed, or the session's connection was taken over.
	ErrClosed = errors.New("the broker is closed")
	// ErrBusy: the disk does not keep up, or there are as many sessions as Limits allow. CONNACK 0x89, PUBACK 0x97.
	ErrBusy = errors.New("the broker holds as much as it may: try again later, or raise mqtt.sessions")
	// ErrOwner: the client id's session belongs to another device. CONNACK 0x85.
	ErrOwner = errors.New("the client id is in use by another device: give every device its own client id")
)

// Limits bound what the broker holds. Zero means the default.
type Limits struct {
	Sessions      int   // sessions, connected or not; one more is refused with ErrBusy. Default 200 000
	Subscriptions int   // of one session; one more gets QuotaExceeded. Default 1000
	QueueCount    int   // messages of QoS 1 and 2 that wait for one session, those in flight included. Default 10 000
	QueueBytes    int64 // the same in bytes. Default 16 MiB
	TotalBytes    int64 // of all persistent sessions' queues, on disk. Default 1 GiB
	MemoryBytes   int64 // of messages held in memory for all sessions. Default 256 MiB
	QoS0Count     int   // messages of QoS 0 that wait for one connection. Default 1000
	InFlight      int   // unacknowledged messages of one connection, however large its receive maximum is. Default 1000
	Retained      int   // retained messages; one more topic is not retained. Default 200 000
	RetainedBytes int64 // the same in bytes. Default 128 MiB; they are in memory, and on disk
	JournalBytes  int64 // writes that wait for the disk; more are refused. Default 64 MiB
	// MaxExpiry is the longest a session outlives its connection, in seconds. Default 7 days.
	MaxExpiry uint32
	// RestartGrace is how long after a restart wills wait at least, for their clients to come back. Default 30 s.
	RestartGrace time.Duration
}

// Config says what a broker works with. Only Store is required.
type Config struct {
	Store   state.Store // keys below "mqtt\x00" are the broker's
	Limits  Limits
	Log     *slog.Logger          // default: discards
	Metrics prometheus.Registerer // nil: no metrics
}

// A Conn is what the broker does to a connection. Both methods must return at once and must not call the broker; the broker
// calls them from any goroutine.
type Conn interface {
	// Wake says that Pull has something.
	Wake()
	// Kick says that the connection must end: send DISCONNECT with the reason if the client speaks MQTT 5, and close. The session no
	// longer belongs to it, and its methods do nothing any more.
	Kick(reason byte)
}

// A Connect is a CONNECT that the front has accepted.
type Connect struct {
	ClientID string // not empty; the front makes one up where the specification allows it
	Device   string // whose session it is; another device may not resume it. "": anybody's
	Version  byte   // 4 or 5
	Clean    bool   // clean start, or clean session
	// Expiry is the session expiry interval in seconds. For MQTT 3.1.1: 0 with clean session, else NeverExpires, which means
	// Limits.MaxExpiry. What is granted is in Session.Expiry, for CONNACK.
	Expiry         uint32
	ReceiveMaximum uint16 // 0: 65535
	MaxPacket      uint32 // the largest packet the client takes; 0: any. Larger messages are dropped for it (MQTT-3.1.2-25)
	Will           *Will  // nil: none. The broker keeps it
}

// NeverExpires is the longest session expiry interval.
const NeverExpires = 0xFFFFFFFF

// A Will is published when the connection ends other than by DISCONNECT with reason 0.
type Will struct {
	Message Message // From is not looked at
	Delay   uint32  // seconds
}

// A Message is an application message on its way in. Publish borrows it and copies what somebody gets.
type Message struct {
	Topic   []byte // checked with CheckTopic
	Payload []byte
	// Properties are those that a server must pass on unaltered and in order (MQTT-3.3.2-4, -15, -16, -17, -18, -20): payload
	// format, response topic, correlation data, content type, user properties. Encoded as on the wire, identifiers included, without
	// their length. Topic alias, message expiry and subscription identifiers must not be among them.
	Properties []byte
	QoS        byte
	Retain     bool
	Expires    bool   // whether there is a message expiry interval:
	Expiry     uint32 // in seconds

	// From is who published, for no local and QoS 2; nil for the server itself.
	From *Session
	// PacketID is From's packet identifier of a QoS 2 message that Received said is new. Publish records it on disk together with
	// what the message puts into queues.
	PacketID uint16
}

// A Ticket says when something is durable: see Durable, Wait and After. Tickets only grow, so of several only the greatest needs to be
// kept. Zero is always durable.
type Ticket uint64

// A Receipt is what Publish has done.
type Receipt struct {
	Matched int // sessions with a matching subscription; 0: MQTT 5 answers "no matching subscribers" (0x10)
	Refused int // of them, those whose queue did not take it
	Ticket  Ticket
}

// A Subscription as SUBSCRIBE has it. The front has checked that the client may have it, and that a shared one has not set NoLocal
// (a protocol error, MQTT-3.8.3-4).
type Subscription struct {
	Filter            string // "$share/group/filter" for a shared one
	ID                uint32 // subscription identifier; 0: none
	QoS               byte   // maximum
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte // 0: send retained messages; 1: only if the subscription is new; 2: do not
}

// A Delivery is a packet to send: a PUBLISH or, if Release, a PUBREL.
type Delivery struct {
	Release  bool
	Reason   byte // of a PUBREL: Success or PacketIDNotFound
	PacketID uint16
	QoS      byte
	Dup      bool
	Retain   bool
	Expires  bool   // whether to send a message expiry interval:
	Expiry   uint32 // what remains of it, in seconds
	// The slices belong to the broker, are never written again, and may be kept.
	Topic           []byte
	Payload         []byte
	Properties      []byte // as Message.Properties; not for a client of MQTT 3.1.1
	SubscriptionIDs []uint32
}

// Open reads what the store holds of an earlier broker and returns one that is ready for connections.
func Open(ctx context.Context, cfg Config) (*Broker, error) { return nil, ErrClosed }

// A Broker routes messages to sessions.
type Broker struct{}

// Connect begins a connection of a session: the one with this client id if there is one and c.Clean is not set (present is true then),
// or a new one. An older connection of the client id is kicked with TakenOver, and its will published or not as MQTT-3.1.3.2.2 says.
// The session is on disk, if it is persistent, soon after; Session.Ticket says when.
func (b *Broker) Connect(c Connect, conn Conn) (s *Session, present bool, err error) {
	return nil, false, ErrClosed
}

// Publish puts a message into the queue of every session that subscribes to its topic, and retains it if it says so. Messages that
// one goroutine publishes keep their order. It does not wait for the disk: Receipt.Ticket does.
//
// The error is ErrClosed or the store's when it is fenced; then nothing may be acknowledged.
func (b *Broker) Publish(m *Message) (Receipt, error) { return Receipt{}, nil }

// Durable tells whether what has the ticket is on disk.
func (b *Broker) Durable(t Ticket) bool { return false }

// Wait waits until what has the ticket is on disk. While the disk is full it waits for room; the error is the store's when it is
// fenced, ErrClosed, or the context's.
func (b *Broker) Wait(ctx context.Context, t Ticket) error { return nil }

// After calls f when what has the ticket is on disk, or never will be; at once if it is. f must return soon and not call the broker.
func (b *Broker) After(t Ticket, f func(error)) {}

// Kick ends the connection of a client id, if it has one, for instance because its certificate was revoked. With end its session
// ends too. It tells whether there was a connection.
func (b *Broker) Kick(clientID string, reason byte, end bool) bool { return false }

// Close stops the broker: what waits for the disk is written, wills are kept for the next start. The front has closed its
// connections before; those still there are kicked with ShuttingDown.
func (b *Broker) Close() error { return nil }

// A Session is one connection's hold on its session. When another connection takes the session over, or after Disconnect, its methods
// do nothing.
type Session struct{}

// ClientID returns the client id.
func (s *Session) ClientID() string { return "" }

// Expiry returns the session expiry interval that was granted, in seconds.
func (s *Session) Expiry() uint32 { return 0 }

// Ticket says when the session and its subscriptions are on disk; CONNACK should wait for it if the session is persistent.
func (s *Session) Ticket() Ticket { return 0 }

// Subscribe adds or replaces subscriptions and appends a reason code for each to codes: the granted QoS, FilterInvalid or
// QuotaExceeded. SUBACK should wait for the ticket. Retained messages then come from Pull.
func (s *Session) Subscribe(subs []Subscription, codes []byte) ([]byte, Ticket) { return codes, 0 }

// Unsubscribe removes subscriptions and appends a reason code for each: Success or NoSubscription. What is queued is still delivered.
func (s *Session) Unsubscribe(filters []string, codes []byte) ([]byte, Ticket) { return codes, 0 }

// Pull appends up to most packets that are to be sent now, in the order they must be sent; fewer if there are no more, or if the
// client's receive maximum is used up. Conn.Wake is called after that when there is more. It may read the disk. At the begin of a
// connection it returns first what an earlier one has sent and the client has not acknowledged.
func (s *Session) Pull(dst []Delivery, most int) []Delivery { return dst }

// Puback takes a client's PUBACK. It tells whether the identifier was in use for a QoS 1 message.
func (s *Session) Puback(id uint16, reason byte) bool { return false }

// Pubrec takes a client's PUBREC. The PUBREL comes from Pull when that is on disk; with a reason of 0x80 or more there is none.
func (s *Session) Pubrec(id uint16, reason byte) {}

// Pubcomp takes a client's PUBCOMP. It tells whether the identifier was in use for a QoS 2 message.
func (s *Session) Pubcomp(id uint16, reason byte) bool { return false }

// Received notes the packet identifier of a QoS 2 message that the client has sent. dup tells that it was received before and
// not yet released: the message must be acknowledged again (PUBREC) and not published again. Otherwise the front publishes it with
// Message.From and PacketID; if it refuses the message instead (PUBREC with 0x80 or more), it calls Released.
func (s *Session) Received(id uint16) (dup bool) { return false }

// Released forgets the identifier, when PUBREL has come. It tells whether it was known; if not, PUBCOMP says PacketIDNotFound.
func (s *Session) Released(id uint16) bool { return false }

// SetExpiry changes the session expiry interval, as DISCONNECT may. The front has checked that it was not 0 before
// (MQTT-3.14.2-2).
func (s *Session) SetExpiry(seconds uint32) {}

// Disconnect ends the connection. The will is published, after its delay, if sendWill. The session goes on until its expiry; without
// one it ends now. The reason is for logs.
func (s *Session) Disconnect(reason byte, sendWill bool) {}
