// Package mqtt is the door for devices that speak MQTT 3.1.1 or 5.
//
// A PUBACK means that the message is on disk: every reading of it in the log, or, where it was none, in the dead-letter
// stream (P1, P7). What could not be stored gets no PUBACK and the connection ends, so that the device connects again and
// sends it again. QoS 0 promises nothing; it is queued by bytes, stored in batches and counted when dropped.
//
// This is a door and not a broker: what devices publish goes to the log and to no subscriber, nothing is retained, and a
// will is taken in like a QoS 0 message when the broker library sends it. Devices may publish to the mapped topics, and
// subscribe below their own.
package mqtt

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	broker "github.com/mochi-mqtt/server/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/ingest"
)

// DefaultTopic is the topic mapping used when there is none.
const DefaultTopic = "fleet/{vehicle}/telemetry"

// Config says where and for whom the door opens. At least one address is required.
type Config struct {
	Address    string      // host:port for plain TCP, as ":1883"; "" for none
	TLSAddress string      // host:port for TLS, as ":8883"; "" for none
	TLS        *tls.Config // required with TLSAddress; demand client certificates here if wanted
	// Topics map topics to vehicles. A level is plain text, + for any one level, or {vehicle} for the vehicle's id; without
	// {vehicle} the payload has to name it. Default: DefaultTopic.
	Topics []string
	// Users who may connect. Without any, and without Anonymous, only connections from this machine are let in, and those
	// whose client certificate TLS has verified.
	Users []User
	// Anonymous lets clients connect from anywhere without a user name.
	Anonymous bool
	// MaxConnections bounds open connections, those not yet authenticated included. Default 10,000 (about 30 KiB each).
	MaxConnections int
	// ReceiveMaximum is how many unacknowledged QoS 1 messages an MQTT 5 device is told it may have. Default 256.
	ReceiveMaximum uint16
	// MaxKeepAlive is the longest keep alive granted to MQTT 5 devices; theirs is lowered to it. Default 5 min. An MQTT 3.1.1
	// device's own is taken as it is; with none at all TCP's keep alive finds out that it is gone.
	MaxKeepAlive time.Duration
	// SessionExpiry is how long a device that is away is remembered. Default 1 h. It matters to devices that throw their
	// unacknowledged messages away when the server has no session for them.
	SessionExpiry time.Duration
	Logger        *slog.Logger          // nil: silent
	Metrics       prometheus.Registerer // nil: not registered
}

// A User may connect with its name and password.
type User struct {
	Name     string
	Password string
	Vehicle  string // the only vehicle it may publish for; "" any: a gateway
}

func (c Config) withDefaults() Config {
	if len(c.Topics) == 0 {
		c.Topics = []string{DefaultTopic}
	}
	if c.MaxConnections <= 0 {
		c.MaxConnections = 10_000
	}
	if c.ReceiveMaximum == 0 {
		c.ReceiveMaximum = 256
	}
	if c.MaxKeepAlive <= 0 {
		c.MaxKeepAlive = 5 * time.Minute
	}
	if c.SessionExpiry <= 0 {
		c.SessionExpiry = time.Hour
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// A Server is an open door.
type Server struct {
	broker    *broker.Server
	listeners []*listener
	queue     *queue
	queued    sync.WaitGroup // the queue's writer
	stop      context.CancelFunc
	logger    *slog.Logger
	closing   sync.Once
	closed    chan struct{}
}

// packetOverhead is what a PUBLISH may have besides its payload: topic, packet id, properties.
const packetOverhead = 4 << 10

// Open listens and serves until Close.
func Open(cfg Config, admit *ingest.Admitter) (*Server, error) {
	cfg = cfg.withDefaults()
	topics, err := parsePatterns(cfg.Topics)
	if err != nil {
		return nil, err
	}
	users := map[string]user{}
	for _, u := range cfg.Users {
		if u.Name == "" || u.Password == "" {
			return nil, errors.New("mqtt user without name or password: give both")
		}
		if _, twice := users[u.Name]; twice {
			return nil, fmt.Errorf("mqtt user %q is listed twice", u.Name)
		}
		users[u.Name] = user{password: sha256.Sum256([]byte(u.Password)), vehicle: u.Vehicle}
	}
	if cfg.Address == "" && cfg.TLSAddress == "" {
		return nil, errors.New("mqtt has no address to listen on")
	}
	if cfg.TLSAddress != "" && cfg.TLS == nil {
		return nil, errors.New("mqtt over TLS needs a certificate and its key")
	}
	door := admit.Door("mqtt")
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{queue: newQueue(door), stop: cancel, logger: cfg.Logger, closed: make(chan struct{})}
	open := newGate(cfg.MaxConnections, door, door.Limits().MaxMessage+packetOverhead)
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "milepost_ingest_mqtt_connections", Help: "Open MQTT connections.",
		}, func() float64 { return float64(open.count()) })); err != nil {
			cancel()
			open.end()
			return nil, fmt.Errorf("register mqtt metrics: %w", err)
		}
	}
	s.broker = newBroker(cfg)
	h := &hook{
		door: door, queue: s.queue, topics: topics, users: users, ctx: ctx, reading: open.ctx, anonymous: cfg.Anonymous,
		server: s.broker, sessions: 2 * cfg.MaxConnections, keepAlive: uint16(min(cfg.MaxKeepAlive/time.Second, 65535)), //nolint:gosec // bounded
		maxPacket: uint32(open.most), logger: cfg.Logger, //nolint:gosec // a few hundred KiB
	}
	if err := s.broker.AddHook(h, nil); err != nil {
		cancel()
		open.end()
		return nil, err
	}
	if err := s.listen(cfg, open); err != nil {
		cancel()
		open.end()
		return nil, errors.Join(err, s.closeListeners())
	}
	s.queued.Go(func() { s.queue.run(ctx) })
	if err := s.broker.Serve(); err != nil {
		return nil, errors.Join(err, s.Close(ctx))
	}
	for _, l := range s.listeners {
		cfg.Logger.Info("mqtt door is open", slog.String("address", l.Address()), slog.Bool("tls", l.tls != nil))
	}
	return s, nil
}

// newBroker returns the library's server with what this door does not do switched off.
func newBroker(cfg Config) *broker.Server {
	able := broker.NewDefaultServerCapabilities()
	able.MaximumQos = 1
	able.ReceiveMaximum = cfg.ReceiveMaximum
	able.MaximumClients = int64(cfg.MaxConnections)
	able.MaximumSessionExpiryInterval = uint32(min(cfg.SessionExpiry/time.Second, 1<<31)) //nolint:gosec // bounded
	able.MaximumClientWritesPending = 16                                                  // nothing is published to clients
	able.MaximumInflight = 16
	able.TopicAliasMaximum = 16
	able.SharedSubAvailable = 0
	able.WildcardSubAvailable = 1
	able.MinimumProtocolVersion = 4
	able.Compatibilities.NoInheritedPropertiesOnAck = true // an acknowledgement does not carry the message's user properties back
	return broker.New(&broker.Options{
		Capabilities:             able,
		ClientNetReadBufferSize:  4 << 10,
		ClientNetWriteBufferSize: 1 << 10,
		SysTopicResendInterval:   24 * 60 * 60, // $SYS is for nobody here, and each round stops the world for its memory figures
		// The library logs whole packets of misbehaving clients as errors. What is worth knowing of them is in the metrics.
		Logger: slog.New(slog.DiscardHandler),
	})
}

func (s *Server) listen(cfg Config, open *gate) error {
	add := func(id, address string, conf *tls.Config) error {
		if address == "" {
			return nil
		}
		inner, err := new(net.ListenConfig).Listen(context.Background(), "tcp", address)
		if err != nil {
			return fmt.Errorf("listen for mqtt on %s: %w", address, err)
		}
		l := &listener{id: id, inner: inner, tls: conf, gate: open, logger: cfg.Logger}
		s.listeners = append(s.listeners, l)
		return s.broker.AddListener(l)
	}
	if err := add("tcp", cfg.Address, nil); err != nil {
		return err
	}
	return add("tls", cfg.TLSAddress, cfg.TLS)
}

// Addr returns the address that plain TCP listens on, or nil.
func (s *Server) Addr() net.Addr { return s.addr(false) }

// TLSAddr returns the address that TLS listens on, or nil.
func (s *Server) TLSAddr() net.Addr { return s.addr(true) }

func (s *Server) addr(overTLS bool) net.Addr {
	for _, l := range s.listeners {
		if (l.tls != nil) == overTLS {
			return l.inner.Addr()
		}
	}
	return nil
}

// Close stops listening and reading, lets messages under way be stored and acknowledged, stores what QoS 0 has queued, and
// ends the connections. When ctx ends first, appends are no longer waited for: their devices get no acknowledgement. Close
// the logs after it.
func (s *Server) Close(ctx context.Context) error {
	s.closing.Do(func() { s.close(ctx) })
	<-s.closed
	return nil
}

func (s *Server) close(ctx context.Context) {
	defer close(s.closed)
	drained := make(chan struct{})
	go func() { // waited for below, whichever way
		defer close(drained)
		for _, l := range s.listeners {
			l.drain()
		}
		s.queue.close()
		s.queued.Wait()
	}()
	select {
	case <-drained:
	case <-ctx.Done():
		s.stop()
		for _, l := range s.listeners {
			l.gate.abort()
		}
		<-drained
	}
	s.stop()
	_ = s.broker.Close() // it has no error to tell
	s.logger.InfoContext(ctx, "mqtt door is closed")
}

func (s *Server) closeListeners() error {
	var errs []error
	for _, l := range s.listeners {
		errs = append(errs, l.inner.Close())
	}
	return errors.Join(errs...)
}
