// Package mqtt is the door for devices that speak MQTT 3.1.1 or 5.
//
// A PUBACK or PUBREC means that the message is on disk: every reading of it in the log, or, where it was none, in the dead-letter
// stream (P1, P7), and in the queues of the persistent sessions that subscribe to its topic. The connection does not wait for that:
// it goes on reading, and acknowledgements follow in order, many to a write. What could not be stored gets no acknowledgement and the
// connection ends, so that the device connects again and sends it again. QoS 0 promises nothing; it is bounded and counted when dropped.
//
// A message on a mapped topic is readings, and goes to the log; subscribers of its topic get it too. Any other topic that the
// client's policy allows is a plain message of the broker (ingest/mqtt/broker), which has sessions, queues, retained messages and wills.
//
// Who owns what: each connection has one goroutine that reads. It holds a buffer only while bytes of a packet are there. Writing has
// no goroutine while there is nothing to write: whoever has something appends it to the connection's out buffer and, if nobody is
// writing, writes; what the socket does not take at once a goroutine writes that ends with it. Deadlines are no timers: one sweep
// looks at all connections twice a second.
package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/mqtt/broker"
	"github.com/milepost/milepost/ingest/mqtt/packet"
)

// DefaultTopic is the topic mapping used when there is none.
const DefaultTopic = "fleet/{vehicle}/telemetry"

// Config says where and for whom the door opens. At least one address is required, and the Broker.
type Config struct {
	Address             string      // host:port for plain TCP, as ":1883"; "" for none
	TLSAddress          string      // host:port for TLS, as ":8883"; "" for none
	WebSocketAddress    string      // host:port for WebSocket, as ":8083"; "" for none
	WebSocketTLSAddress string      // host:port for WebSocket over TLS, as ":8084"; "" for none
	TLS                 *tls.Config // required with TLS addresses; ask for client certificates here
	// Topics map topics to vehicles. Default: DefaultTopic. The first that matches counts.
	Topics []Topic
	// Broker has the sessions. The caller closes it after the door.
	Broker *broker.Broker
	// Authenticator tells who connects. nil: Users; without any, and without Anonymous, only connections from this machine are let
	// in, and those whose client certificate TLS has verified.
	Authenticator Authenticator
	// Guests lets clients in beside those of the Authenticator, on connections without TLS and without a certificate: Users, and
	// without any, clients of this machine.
	Guests bool
	Users  []User
	// Anonymous lets clients connect from anywhere without a user name.
	Anonymous bool
	// Journal hears of connections and refusals. nil: nobody does.
	Journal Journal
	// Special gets what is published to topics that begin with $aws/, but for Basic Ingest, and to topics that no mapping has, once
	// the policy allows it, before it is acknowledged. Its connection waits for it. A topic of the first kind that it does not handle
	// is refused; one of the second goes to subscribers either way.
	Special func(p Principal, topic string, payload []byte) (handled bool)
	// MaxConnections bounds open connections, those not yet authenticated included. Default 100,000.
	MaxConnections int
	// ReceiveMaximum is how many unacknowledged messages of QoS 1 and 2 a connection may have. An MQTT 5 device is told so and
	// ends if it has more; one of MQTT 3.1.1 is not read from meanwhile. Default 1024.
	ReceiveMaximum uint16
	// MaxKeepAlive is the longest keep alive granted to MQTT 5 devices; theirs is lowered to it. Default 20 min, as AWS IoT Core has
	// it. An MQTT 3.1.1 device's own is taken as it is; with none at all TCP's keep alive finds out that it is gone.
	MaxKeepAlive time.Duration
	// TopicAliases is how many topic aliases an MQTT 5 device may use. Default 16.
	TopicAliases uint16
	// ConnectTimeout is how long a connection may take to say CONNECT, TLS included. Default 10 s.
	ConnectTimeout time.Duration
	// PacketTimeout is how long a packet of more than 16 KiB may take to arrive: it holds a reservation that others wait for.
	// Default 30 s. Time that the server does not read does not count.
	PacketTimeout time.Duration
	// WriteTimeout is how long a connection may read nothing while there is something for it. Default 30 s.
	WriteTimeout time.Duration
	// OutboundBytes bounds what waits to be written to one connection, besides what its session queues. Default 256 KiB.
	OutboundBytes int
	Logger        *slog.Logger          // nil: silent
	Metrics       prometheus.Registerer // nil: not registered
}

func (c Config) withDefaults() Config {
	if len(c.Topics) == 0 {
		c.Topics = []Topic{{Pattern: DefaultTopic}}
	}
	if c.MaxConnections <= 0 {
		c.MaxConnections = 100_000
	}
	if c.ReceiveMaximum == 0 {
		c.ReceiveMaximum = 1024
	}
	if c.MaxKeepAlive <= 0 {
		c.MaxKeepAlive = 20 * time.Minute
	}
	if c.TopicAliases == 0 {
		c.TopicAliases = 16
	}
	if c.ConnectTimeout <= 0 {
		c.ConnectTimeout = 10 * time.Second
	}
	if c.PacketTimeout <= 0 {
		c.PacketTimeout = 30 * time.Second
	}
	if c.WriteTimeout <= 0 {
		c.WriteTimeout = 30 * time.Second
	}
	if c.OutboundBytes <= 0 {
		c.OutboundBytes = 256 << 10
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// packetOverhead is what a PUBLISH may have besides its payload: topic, packet id, properties.
const packetOverhead = 4 << 10

// A Server is an open door.
type Server struct {
	cfg       Config
	door      *ingest.Door
	pipe      *ingest.Pipeline
	broker    *broker.Broker
	auth      Authenticator
	topics    mappings
	met       *metrics
	logger    *slog.Logger
	maxPacket int
	fairBytes int64 // in flight of one connection
	buffers   bufferPool
	scratches sync.Pool
	turns     turns  // of TLS handshakes
	busy      rarely // told of clients turned away because the server is busy

	ctx     context.Context //nolint:containedctx // the server's; ends waiting for anything
	abort   context.CancelFunc
	reading context.Context //nolint:containedctx // ends when the server stops reading
	deafen  context.CancelFunc
	clock   atomic.Int64 // Unix ms, of the last sweep

	listeners []*listener
	accepting sync.WaitGroup
	conns     sync.WaitGroup // their readers and writers
	sweeping  sync.WaitGroup

	mu       sync.Mutex // guards what follows
	live     map[*conn]struct{}
	draining bool

	closing sync.Once
	closed  chan struct{}
}

// Open listens and serves until Close.
func Open(cfg Config, admit *ingest.Admitter) (*Server, error) {
	cfg = cfg.withDefaults()
	topics, err := parseMappings(cfg.Topics)
	if err != nil {
		return nil, err
	}
	local, err := newUsers(&cfg, topics)
	switch {
	case err != nil:
		return nil, err
	case cfg.Broker == nil:
		return nil, errors.New("mqtt has no broker")
	case cfg.Address == "" && cfg.TLSAddress == "" && cfg.WebSocketAddress == "" && cfg.WebSocketTLSAddress == "":
		return nil, errors.New("mqtt has no address to listen on")
	case (cfg.TLSAddress != "" || cfg.WebSocketTLSAddress != "") && cfg.TLS == nil:
		return nil, errors.New("mqtt over TLS needs a certificate and its key")
	}
	door := admit.Door("mqtt")
	s := &Server{
		cfg: cfg, door: door, broker: cfg.Broker, auth: cfg.Authenticator, topics: topics, logger: cfg.Logger,
		maxPacket: door.Limits().MaxMessage + packetOverhead, fairBytes: max(64<<10, door.Limits().InFlightBytes/16),
		live: map[*conn]struct{}{}, closed: make(chan struct{}), turns: newTurns(),
	}
	if s.auth == nil {
		s.auth = local
	} else if cfg.Guests {
		s.auth = &hospitable{members: cfg.Authenticator, guests: local}
	}
	if s.met, err = newMetrics(cfg.Metrics); err != nil {
		return nil, err
	}
	s.scratches.New = func() any { return new(scratch) }
	s.ctx, s.abort = context.WithCancel(context.Background())
	s.reading, s.deafen = context.WithCancel(s.ctx)
	s.clock.Store(time.Now().UnixMilli())
	if err := s.listen(); err != nil {
		s.abort()
		return nil, err
	}
	s.pipe = door.NewPipeline(func(ctx context.Context, ticket uint64) error { return s.broker.Wait(ctx, broker.Ticket(ticket)) })
	s.sweeping.Go(s.sweep)
	for _, l := range s.listeners {
		s.accepting.Go(l.serve)
		cfg.Logger.Info("mqtt door is open", slog.String("address", l.inner.Addr().String()), slog.String("transport", transportName(l.transport)))
	}
	return s, nil
}

// Addr returns the address that plain TCP listens on, or nil.
func (s *Server) Addr() net.Addr { return s.addr(overTCP) }

// TLSAddr returns the address that TLS listens on, or nil.
func (s *Server) TLSAddr() net.Addr { return s.addr(overTLS) }

// WebSocketAddr returns the address that WebSocket listens on, or nil.
func (s *Server) WebSocketAddr() net.Addr { return s.addr(overWebSocket) }

// WebSocketTLSAddr returns the address that WebSocket over TLS listens on, or nil.
func (s *Server) WebSocketTLSAddr() net.Addr { return s.addr(overWebSocketTLS) }

func (s *Server) addr(transport int) net.Addr {
	for _, l := range s.listeners {
		if l.transport == transport {
			return l.inner.Addr()
		}
	}
	return nil
}

// Handler serves MQTT over WebSocket on an HTTP server of the caller's, who closes that server's listeners before this Server.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.upgrade) }

// Kick ends the connections of the principals that match, for instance because their certificate was revoked, with a reason code of
// MQTT 5. It returns how many there were.
func (s *Server) Kick(match func(Principal) bool, reason byte) int {
	var found []*conn
	s.mu.Lock()
	for c := range s.live {
		if p := c.who(); p != nil && match(p) {
			found = append(found, c)
		}
	}
	s.mu.Unlock()
	for _, c := range found {
		c.end(reason, "the server's operator ended the connection")
	}
	return len(found)
}

// Connections returns how many connections are open.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live)
}

// enter takes a connection in, or tells that there are too many or that the door is closing.
func (s *Server) enter(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return false
	}
	if len(s.live) >= s.cfg.MaxConnections {
		s.met.overLimit.Inc()
		return false
	}
	s.live[c] = struct{}{}
	s.conns.Add(1)
	s.met.open[c.transport].Add(1)
	return true
}

func (s *Server) leave(c *conn) {
	s.met.open[c.transport].Add(-1)
	s.mu.Lock()
	delete(s.live, c)
	s.mu.Unlock()
	s.conns.Done()
}

const sweepEvery = 250 * time.Millisecond

// sweep ends connections whose time is up.
func (s *Server) sweep() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	var late []*conn
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now().UnixMilli()
		s.clock.Store(now)
		s.mu.Lock()
		for c := range s.live {
			if c.overdue(now) {
				late = append(late, c)
			}
		}
		s.mu.Unlock()
		for _, c := range late {
			c.timeout(now)
		}
		clear(late)
		late = late[:0]
	}
}

// Close stops listening and reading, lets messages under way be stored and acknowledged, and ends the connections. When ctx ends
// first, appends are no longer waited for: their devices get no acknowledgement. Close broker and logs after it.
func (s *Server) Close(ctx context.Context) error {
	s.closing.Do(func() {
		defer close(s.closed)
		s.close(ctx)
	})
	<-s.closed
	return nil
}

func (s *Server) close(ctx context.Context) {
	stop := context.AfterFunc(ctx, s.abort)
	defer stop()
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	s.closeListeners()
	s.deafen()
	s.mu.Lock()
	for c := range s.live {
		c.deaf()
	}
	s.mu.Unlock()
	// Each reader sees that, waits for what it has submitted to be answered, says DISCONNECT, and ends.
	s.accepting.Wait()
	s.conns.Wait()
	s.pipe.Close(ctx)
	s.abort()
	s.sweeping.Wait()
	s.logger.InfoContext(ctx, "mqtt door is closed")
}

func (s *Server) closeListeners() {
	for _, l := range s.listeners {
		l.close()
	}
}

func (s *Server) listen() error {
	for _, want := range []struct {
		transport int
		address   string
	}{{overTCP, s.cfg.Address}, {overTLS, s.cfg.TLSAddress}, {overWebSocket, s.cfg.WebSocketAddress}, {overWebSocketTLS, s.cfg.WebSocketTLSAddress}} {
		if want.address == "" {
			continue
		}
		inner, err := new(net.ListenConfig).Listen(context.Background(), "tcp", want.address)
		if err != nil {
			s.closeListeners()
			return fmt.Errorf("listen for mqtt on %s: %w", want.address, err)
		}
		s.listeners = append(s.listeners, newListener(s, inner, want.transport))
	}
	return nil
}

// reasonName names a reason code for metrics and logs.
func reasonName(code byte) string {
	switch code {
	case packet.Success:
		return "client"
	case packet.DisconnectWithWill:
		return "client_with_will"
	case packet.UnspecifiedError:
		return "connection_lost"
	case packet.MalformedPacket:
		return "malformed_packet"
	case packet.ProtocolError:
		return "protocol_error"
	case packet.NotAuthorized:
		return "not_authorized"
	case packet.ServerUnavailable:
		return "log_unavailable"
	case packet.ServerShuttingDown:
		return "shutting_down"
	case packet.KeepAliveTimeout:
		return "keep_alive"
	case packet.SessionTakenOver:
		return "taken_over"
	case packet.ReceiveMaximumExceeded:
		return "receive_maximum"
	case packet.TopicAliasInvalid:
		return "topic_alias"
	case packet.TopicNameInvalid:
		return "topic_name"
	case packet.PacketTooLarge:
		return "packet_too_large"
	case packet.QuotaExceeded:
		return "quota"
	case packet.AdministrativeAction:
		return "operator"
	case packet.MaximumConnectTime:
		return "expired"
	}
	return fmt.Sprintf("code_%02x", code)
}
