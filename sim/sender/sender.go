// Package sender brings payloads to a door, HTTP or MQTT, as a fleet of devices does: the payloads of one vehicle in order,
// each again and again until it is acknowledged. The simulator and the replay send through it.
//
// A Sender spreads vehicles over lanes; a lane is one connection with a bounded queue. Send blocks while the queue of the
// vehicle's lane is full: whoever generates slows down to the pace at which the door acknowledges.
package sender

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// Config says where to send and how. Only Address is required.
type Config struct {
	// Address is http://host:port, https://…, mqtt://host:port or mqtts://…; an HTTP path defaults to /v1/readings.
	Address string
	// Token is sent as a bearer token over HTTP. User and Password are MQTT's.
	Token, User, Password string
	// Topic is MQTT's, with {vehicle} where the id goes; "fleet/{vehicle}/telemetry" by default.
	Topic string
	// Connections bounds the lanes: 2 by default over HTTP, where a lane sends batches, and 1000 over MQTT, where each
	// vehicle has a connection of its own as long as there are enough.
	Connections int
	// Batch is the most bytes of one HTTP request; 1 MiB by default. It is also the bound of a lane's queue.
	Batch int
	// Linger is how long a lane collects before it sends; 20 ms by default.
	Linger time.Duration
	// Window is how many payloads an MQTT lane may have unacknowledged; 64 by default.
	Window int
	// TLS is for https and mqtts; the system's roots by default.
	TLS *tls.Config
	// Refused is told of each payload that the door will never take, and why. It is called by the lanes, one call at a time;
	// the payload is valid during the call.
	Refused func(payload []byte, reason string)
	// Log gets changes of state, such as a door that does not answer. Discarded by default.
	Log *slog.Logger
}

// Stats counts payloads since the start.
type Stats struct {
	Sent    int64 // given to Send
	Acked   int64 // acknowledged: the door has them on disk
	Refused int64 // refused for good
	Resent  int64 // sent again, because no answer came or the answer was to come back later
}

// Open tells how many payloads are neither acknowledged nor refused.
func (s Stats) Open() int64 { return s.Sent - s.Acked - s.Refused }

// ErrClosed is returned by Send after Close.
var ErrClosed = errors.New("the sender is closed")

// A DoorError is an answer that no repetition changes: a wrong address or a wrong password.
type DoorError struct{ Msg string }

func (e *DoorError) Error() string { return e.Msg }

// A Sender sends. It is safe for concurrent use, though the order of a vehicle's payloads is that of the calls to Send.
type Sender struct {
	cfg    Config
	lanes  []*lane
	seed   maphash.Seed
	own    map[string]int // MQTT: the lane of each vehicle, first come, first served
	ownMu  sync.Mutex     // guards own
	run    func(*lane)    // what a lane's goroutine does
	client *http.Client
	url    string
	dial   func(ctx context.Context) (net.Conn, error)

	refusedMu sync.Mutex // serializes cfg.Refused
	sent      atomic.Int64
	acked     atomic.Int64
	refused   atomic.Int64
	resent    atomic.Int64

	ctx    context.Context //nolint:containedctx // ends the lanes' work; cancelled by Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // the lanes
}

// Open checks the configuration and returns a sender. Lanes connect when they have something to send.
func Open(cfg Config) (*Sender, error) {
	u, err := url.Parse(cfg.Address)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("address %q: want http://host:port or mqtt://host:port", cfg.Address)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Topic == "" {
		cfg.Topic = "fleet/{vehicle}/telemetry"
	}
	cfg.Batch = orDefault(cfg.Batch, 1<<20)
	cfg.Window = min(orDefault(cfg.Window, 64), 60_000)
	if cfg.Linger == 0 {
		cfg.Linger = 20 * time.Millisecond
	}
	s := &Sender{cfg: cfg, seed: maphash.MakeSeed()}
	lanes := 0
	switch u.Scheme {
	case "http", "https":
		lanes = orDefault(cfg.Connections, 2)
		if u.Path == "" || u.Path == "/" {
			u.Path = "/v1/readings"
		}
		s.url = u.String()
		s.client = &http.Client{Transport: &http.Transport{
			MaxIdleConnsPerHost: lanes, IdleConnTimeout: time.Minute, TLSClientConfig: cfg.TLS, ForceAttemptHTTP2: false,
		}}
		s.run = s.runHTTP
	case "mqtt", "tcp", "mqtts", "ssl":
		lanes = orDefault(cfg.Connections, 1000)
		secure := u.Scheme == "mqtts" || u.Scheme == "ssl"
		s.dial = dialer(u, secure, cfg.TLS)
		s.own = map[string]int{}
		s.run = s.runMQTT
	default:
		return nil, fmt.Errorf("address %q: scheme %q is not http, https, mqtt or mqtts", cfg.Address, u.Scheme)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.lanes = make([]*lane, lanes)
	for i := range s.lanes {
		l := &lane{index: i}
		l.room.L, l.work = &l.mu, make(chan struct{}, 1)
		s.lanes[i] = l
	}
	return s, nil
}

func orDefault(v, def int) int {
	if v <= 0 {
		return def
	}
	return v
}

func dialer(u *url.URL, secure bool, cfg *tls.Config) func(ctx context.Context) (net.Conn, error) {
	port := u.Port()
	if port == "" {
		if port = "1883"; secure {
			port = "8883"
		}
	}
	addr := net.JoinHostPort(u.Hostname(), port)
	if secure {
		d := &tls.Dialer{Config: cfg}
		return func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
	}
	d := &net.Dialer{Timeout: 10 * time.Second}
	return func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
}

// A lane is one connection's queue. Its goroutine starts with its first payload and ends with Close, which waits for it.
type lane struct {
	index int
	mu    sync.Mutex // guards what follows
	room  sync.Cond  // signalled when the queue shrinks, empties or fails
	work  chan struct{}
	alive bool
	err   error // why the lane has given up

	// HTTP: the lines to send, and how many they and those on their way are.
	lines   []byte
	ends    []int // of each line in lines
	sending int

	// MQTT: payloads not acknowledged, oldest first, and how many of them are written to the present connection.
	queue   []message
	bytes   int
	written int
	nextID  uint16
}

// open tells how many payloads a lane has not got rid of. l.mu is held.
func (l *lane) open() int { return len(l.ends) + l.sending + len(l.queue) }

// laneOf returns the vehicle's lane, the same each time.
func (s *Sender) laneOf(vehicle string) *lane {
	if s.own == nil {
		return s.lanes[maphash.String(s.seed, vehicle)%uint64(len(s.lanes))]
	}
	s.ownMu.Lock()
	defer s.ownMu.Unlock()
	i, ok := s.own[vehicle]
	if !ok {
		i = len(s.own) % len(s.lanes)
		s.own[string([]byte(vehicle))] = i
	}
	return s.lanes[i]
}

// Send queues one payload, a JSON object on one line, and copies it. It blocks while the lane's queue is full. An error means
// that the payload is not queued: ctx is done, the sender is closed, or the door refuses us altogether (*DoorError).
func (s *Sender) Send(ctx context.Context, vehicle string, payload []byte) error {
	l := s.laneOf(vehicle)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.full(s, len(payload)) {
		stop := context.AfterFunc(ctx, l.wake)
		defer stop()
		for l.full(s, len(payload)) && l.err == nil && ctx.Err() == nil && s.ctx.Err() == nil {
			l.room.Wait()
		}
	}
	switch {
	case l.err != nil:
		return l.err
	case s.ctx.Err() != nil:
		return ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	}
	if s.own == nil {
		l.lines = append(append(l.lines, payload...), '\n')
		l.ends = append(l.ends, len(l.lines))
	} else {
		l.queue = append(l.queue, s.publish(l, vehicle, payload))
		l.bytes += len(payload)
	}
	s.sent.Add(1)
	if !l.alive {
		l.alive = true
		s.wg.Go(func() { s.run(l) })
	}
	select {
	case l.work <- struct{}{}:
	default:
	}
	return nil
}

// full tells whether a payload has to wait. An empty queue takes one of any size. l.mu is held.
func (l *lane) full(s *Sender, size int) bool {
	if s.own == nil {
		return len(l.ends) > 0 && len(l.lines)+size > s.cfg.Batch
	}
	// Packet ids are 16 bits: the queue stays far below that, so an id is free again long before it is used again.
	return len(l.queue) > 0 && (l.bytes+size > s.cfg.Batch || len(l.queue) >= 16_384)
}

func (l *lane) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.room.Broadcast()
}

// fail ends the lane: what it holds will never be sent.
func (l *lane) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
	l.room.Broadcast()
}

// Flush returns when everything sent is acknowledged or refused, or with the reason why it will not be.
func (s *Sender) Flush(ctx context.Context) error {
	for _, l := range s.lanes {
		if err := s.flush(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sender) flush(ctx context.Context, l *lane) error {
	stop := context.AfterFunc(ctx, l.wake)
	defer stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.open() > 0 {
		switch {
		case l.err != nil:
			return l.err
		case s.ctx.Err() != nil:
			return ErrClosed
		case ctx.Err() != nil:
			return ctx.Err()
		}
		l.room.Wait()
	}
	return nil
}

// Stats returns the counts so far.
func (s *Sender) Stats() Stats {
	// Sent last, so that a payload sent and acknowledged in between does not make Open negative.
	st := Stats{Acked: s.acked.Load(), Refused: s.refused.Load(), Resent: s.resent.Load()}
	st.Sent = s.sent.Load()
	return st
}

// Close stops at once; what is not acknowledged stays so. Call Flush before to wait for it.
func (s *Sender) Close() error {
	s.cancel()
	for _, l := range s.lanes {
		l.wake()
	}
	s.wg.Wait()
	if s.client != nil {
		s.client.CloseIdleConnections()
	}
	return nil
}

// refuse counts a payload that the door will never take.
func (s *Sender) refuse(payload []byte, reason string) {
	s.refused.Add(1)
	if s.cfg.Refused == nil {
		return
	}
	s.refusedMu.Lock()
	defer s.refusedMu.Unlock()
	s.cfg.Refused(payload, reason)
}

// backoff waits longer each time, up to most, and at least as long as the door asked for. It is false when the sender closes.
func (s *Sender) backoff(attempt int, asked time.Duration) bool {
	const first, most = 100 * time.Millisecond, 5 * time.Second
	wait := most
	if attempt < 6 {
		wait = min(first<<attempt, most)
	}
	t := time.NewTimer(max(wait, asked))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}
