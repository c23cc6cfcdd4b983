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
//   - What a session had of a shared subscription and did not get is passed on to another member when the session ends, and so is QoS 1
//     that it got and did not acknowledge; QoS 2 that was sent to it goes to nobody else (section 4.8.2). See estate.go.
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
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
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
	// Listening, if not nil, is called when a connection has a subscription that it had not before: after Subscribe, and at Connect for
	// each of a session that goes on. It may call the broker. The connection's number is Send's.
	Listening func(conn uint64, device, filter string)
}

// A Conn is what the broker does to a connection. Both methods must return at once and must not call the broker; the broker
// calls them from any goroutine, and may do so before Connect has returned.
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
	// what the message puts into queues. If a later connection of the client has received it meanwhile, Publish does nothing: it is
	// that one's.
	PacketID uint16
}

// A Ticket says when something is durable: see Durable, Wait and After. Tickets only grow, so of several only the greatest needs to be
// kept. Zero is always durable.
type Ticket uint64

// A Receipt is what Publish has done.
type Receipt struct {
	Matched int // sessions with a matching subscription; 0: MQTT 5 answers "no matching subscribers" (0x10)
	Refused int // of them, those whose queue did not take it
	// NotRetained says that there was no room to retain it, or that the disk does not keep up: MQTT 5 answers QuotaExceeded.
	NotRetained bool
	Ticket      Ticket
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

// A Broker routes messages to sessions.
type Broker struct {
	store   state.Store
	limits  Limits
	log     *slog.Logger
	metrics metrics
	reg     prometheus.Registerer
	journal *journal
	clock   *clock

	trie     trie
	retained retained
	scratch  sync.Pool // of *matches

	listening func(conn uint64, device, filter string)

	closed    atomic.Bool
	conns     atomic.Uint64 // the last connection's number
	numbers   atomic.Uint64 // the last session's
	connected atomic.Int64
	queued    atomic.Int64 // bytes of messages on disk
	memory    atomic.Int64 // bytes of messages in memory

	mu      sync.Mutex // guards clients; never held together with a client's lock
	clients map[string]*client
}

func (l *Limits) defaults() {
	set := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	set64 := func(p *int64, v int64) {
		if *p <= 0 {
			*p = v
		}
	}
	set(&l.Sessions, 200_000)
	set(&l.Subscriptions, 1000)
	set(&l.QueueCount, 10_000)
	set64(&l.QueueBytes, 16<<20)
	set64(&l.TotalBytes, 1<<30)
	set64(&l.MemoryBytes, 256<<20)
	set(&l.QoS0Count, 1000)
	set(&l.InFlight, 1000)
	l.InFlight = min(l.InFlight, 65535)
	set(&l.Retained, 200_000)
	set64(&l.RetainedBytes, 128<<20)
	set64(&l.JournalBytes, 64<<20)
	if l.MaxExpiry == 0 {
		l.MaxExpiry = 7 * 24 * 3600
	}
	if l.RestartGrace == 0 {
		l.RestartGrace = 30 * time.Second
	}
}

// Open reads what the store holds of an earlier broker and returns one that is ready for connections.
func Open(ctx context.Context, cfg Config) (*Broker, error) {
	if cfg.Store == nil {
		return nil, errors.New("open mqtt broker: no state store given")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Limits.defaults()
	b := &Broker{store: cfg.Store, limits: cfg.Limits, log: cfg.Log, reg: cfg.Metrics, listening: cfg.Listening, clients: map[string]*client{}}
	var err error
	b.journal = newJournal(cfg.Store, cfg.Limits.JournalBytes, cfg.Log)
	b.clock = newClock(b)
	if b.metrics, err = newMetrics(b, cfg.Metrics); err == nil {
		if err = b.restore(ctx, time.Now()); err != nil {
			b.unregister()
			err = fmt.Errorf("read mqtt sessions: %w", err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, b.journal.close())
	}
	go b.clock.run() // Close waits
	return b, nil
}

func (b *Broker) unregister() {
	for _, c := range b.metrics.registered {
		b.reg.Unregister(c)
	}
}

func (b *Broker) memoryFor(n int64) bool { return b.memory.Load()+n <= b.limits.MemoryBytes }

func (b *Broker) sessions() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.clients)
}

// purge removes expired messages from the queue of a session without a connection.
func (b *Broker) purge(c *client) {
	now := time.Now().Unix()
	var expired []entry
	err := b.store.View(context.Background(), func(r state.Reader) error {
		return r.Scan(c.keyOf(kindQueue, 0), c.keyOf(kindQueue, extraBit), func(k, v []byte) error {
			if e, err := parseMessage(v); err == nil && e.m.deadline != 0 && e.m.deadline <= now {
				e.seq, e.m = sequence(k), nil
				expired = append(expired, e)
			}
			return nil
		})
	})
	if err != nil {
		b.log.Error("mqtt session cannot be read", "client", c.id, "error", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended || c.conn != nil {
		return // it is being read: what has expired goes on the way
	}
	for i := range expired {
		if e := &expired[i]; e.seq >= c.next {
			c.settled(e)
			b.metrics.dropped[dropExpired].Inc()
		}
	}
}

// sweep removes expired retained messages.
func (b *Broker) sweep() {
	for _, topic := range b.retained.sweep(time.Now().Unix()) {
		b.journal.remove(b.retainedKey(topic), true)
	}
}

// Durable tells whether what has the ticket is on disk.
func (b *Broker) Durable(t Ticket) bool { return b.journal.durable(t) }

// Wait waits until what has the ticket is on disk. While the disk is full it waits for room; the error is the store's when it is
// fenced, ErrClosed, or the context's.
func (b *Broker) Wait(ctx context.Context, t Ticket) error {
	if b.journal.durable(t) {
		return nil
	}
	done := make(chan error, 1)
	b.journal.after(t, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// After calls f when what has the ticket is on disk, or never will be; at once if it is. f must return soon and not call the broker.
func (b *Broker) After(t Ticket, f func(error)) { b.journal.after(t, f) }

// Kick ends the connection of a client id, if it has one, for instance because its certificate was revoked; its will is published. With
// end its session ends too. It tells whether there was a connection.
func (b *Broker) Kick(clientID string, reason byte, end bool) bool {
	b.mu.Lock()
	c := b.clients[clientID]
	b.mu.Unlock()
	if c == nil {
		return false
	}
	c.mu.Lock()
	s := c.conn
	if end {
		c.expiry = 0
	}
	c.mu.Unlock()
	if s != nil {
		s.conn.Kick(reason)
		b.disconnect(s, reason, true)
		return true
	}
	if end {
		b.lapse(c, time.Now())
	}
	return false
}

// Close stops the broker: what waits for the disk is written, wills are kept for the next start. The front has closed its
// connections before; those still there are kicked with ShuttingDown.
func (b *Broker) Close() error {
	b.mu.Lock()
	if b.closed.Swap(true) {
		b.mu.Unlock()
		return nil
	}
	var all []*client
	for _, c := range b.clients {
		all = append(all, c)
	}
	b.mu.Unlock()
	for _, c := range all {
		c.mu.Lock()
		s := c.conn
		c.mu.Unlock()
		if s != nil {
			s.conn.Kick(ShuttingDown)
			b.disconnect(s, ShuttingDown, true)
		}
	}
	b.clock.close()
	b.unregister()
	return b.journal.close()
}
