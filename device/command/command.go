// Package command brings commands to vehicles: each is kept until its device has answered, its time is over, or somebody cancels it.
//
// What it promises: a command is on disk when Issue returns, and is handed to the device as soon as one is connected and subscribed to
// the vehicle's topic, whether or not it has a persistent session: the queue is here, not the broker's. It is handed out again to
// later connections until the device has acknowledged the message (PUBACK) or answered; so a crash or a lost connection at the wrong moment
// may bring a command twice, with the same id, and never loses it. The same idempotency key makes the same command.
//
// The device subscribes to fleet/<vehicle>/commands and gets {"id", "name", "payload", "issued", "expires"}. It answers on
// fleet/<vehicle>/commands/<id>/ack, or on fleet/<vehicle>/commands/ack with the id in the document:
// {"status": "accepted" | "done" | "failed", "reason": "…", "result": …}.
//
//	queued ─► sent ─► acknowledged ─► done | failed
//	   └────────┴──────────┴────────► expired | cancelled
//
// Each change is on disk before it is seen. Everything that is open is in memory; history is on disk only.
package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/state"
)

// A State is how far a command has come.
type State string

// The states. From Done on they are final.
const (
	Queued       State = "queued"       // nobody has it yet
	Sent         State = "sent"         // handed to a connection
	Acknowledged State = "acknowledged" // the device has accepted it
	Done         State = "done"
	Failed       State = "failed" // the device says so; Reason has its words
	Expired      State = "expired"
	Cancelled    State = "cancelled"
)

// Final tells that nothing more happens to it.
func (s State) Final() bool { return s != Queued && s != Sent && s != Acknowledged }

// A Command is one command and what became of it.
type Command struct {
	ID      string          `json:"id"`
	Vehicle string          `json:"vehicle"`
	Name    string          `json:"name"`
	Payload json.RawMessage `json:"payload,omitempty"`
	Key     string          `json:"key,omitempty"` // idempotency key
	By      string          `json:"by,omitempty"`  // who issued it
	State   State           `json:"state"`
	Issued  time.Time       `json:"issued"`
	Expires time.Time       `json:"expires"`
	// When it was handed to a connection, how often, when the connection had it (PUBACK), and when the device accepted and ended it.
	SentAt         *time.Time      `json:"sent_at,omitempty"`
	Sends          int             `json:"sends,omitempty"`
	DeliveredAt    *time.Time      `json:"delivered_at,omitempty"`
	AcknowledgedAt *time.Time      `json:"acknowledged_at,omitempty"`
	EndedAt        *time.Time      `json:"ended_at,omitempty"`
	Device         string          `json:"device,omitempty"` // who took or answered it
	Reason         string          `json:"reason,omitempty"`
	Result         json.RawMessage `json:"result,omitempty"`
}

// A Request is what Issue makes a command of.
type Request struct {
	Name    string
	Payload json.RawMessage // any JSON value; nil: none
	Key     string          // idempotency key; "": every Issue is a new command
	Expires time.Time       // zero: Limits.Expiry from now
	By      string
}

// A Sender hands messages to connections; the broker is one. taken is called for each connection that listens to the topic, before Send
// returns; acked when it has acknowledged the message, with its reason code. only, if not 0, is the one connection meant.
type Sender interface {
	Send(
		topic string, payload []byte, until time.Time, only uint64,
		taken func(conn uint64, device string), acked func(conn uint64, device string, reason byte),
	) error
}

// Limits bound what is kept. Zero means the default.
type Limits struct {
	Open    int           // commands of one vehicle that have not ended; one more is refused. Default 100
	Total   int           // the same of all vehicles. Default 100 000
	History int           // commands of one vehicle that have ended; the oldest is forgotten. Default 200
	Payload int           // bytes of a payload. Default 64 KiB
	Bytes   int64         // of the payloads of all commands that have not ended; they are in memory. Default 256 MiB
	Expiry  time.Duration // of a command that names none. Default 24 h
	Longest time.Duration // the longest expiry. Default 30 days
	Finish  time.Duration // how long after its expiry a command that was accepted may take. Default 24 h
}

// Config says what commands work with. Store and Send are required.
type Config struct {
	Store state.Store // keys below "command\x00" are the package's
	Send  Sender
	// Serves tells whether a device is the vehicle's or its gateway. Others may listen to commands, but do not count as having them. Nil:
	// every listener counts.
	Serves  func(device, vehicle string) bool
	Limits  Limits
	Log     *slog.Logger          // default: discards
	Metrics prometheus.Registerer // nil: no metrics
}

// Errors that callers branch on.
var (
	ErrNotFound = errors.New("no such command")
	// ErrFull: too many commands wait.
	ErrFull = errors.New("too many commands are open: wait for some to end, cancel some, or raise commands.open")
	// ErrKey: the idempotency key was used for another command.
	ErrKey = errors.New("the idempotency key belongs to another command with a different name, payload or expiry: use a new key")
	// ErrEnded: the command has ended, so it cannot be cancelled.
	ErrEnded  = errors.New("the command has ended")
	ErrClosed = errors.New("commands are closed")
)

// A RequestError is what is wrong with a request.
type RequestError struct{ Text string }

func (e *RequestError) Error() string { return e.Text }

// A Desk keeps commands.
type Desk struct {
	cfg     Config
	metrics metrics
	wake    chan struct{}
	stop    chan struct{}
	ended   chan struct{} // closed when run has returned
	open    atomic.Int64
	bytes   atomic.Int64  // of the payloads of what is open
	last    atomic.Uint64 // the last id

	mu       sync.Mutex // guards vehicles and closed
	vehicles map[string]*vehicle
	closed   bool

	queues sync.Mutex          // guards those below; a leaf
	acks   []ack               // at most one for each time a command was sent
	noted  map[string]struct{} // ids of commands that were acknowledged, until that is stored
	due    dueHeap
}

// A vehicle has what is open of its commands. Its lock is held while a change goes to disk: one vehicle's commands wait for each other.
type vehicle struct {
	id string

	mu   sync.Mutex // guards all below
	open []*entry   // in the order they were issued
	gone bool       // taken out of Desk.vehicles
}

type entry struct {
	Command            // its vehicle's lock guards it
	vehicle, id string // the same as the command's, for who has only Desk.queues
	conn        uint64 // the connection that has it
	when        time.Time
	index       int // in Desk.due
}

const maxKey = 256

// Open reads what is open and begins to watch over it.
func Open(ctx context.Context, cfg Config) (*Desk, error) {
	if cfg.Store == nil || cfg.Send == nil {
		return nil, errors.New("open commands: a store and a sender are required")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Limits.defaults()
	d := &Desk{
		cfg: cfg, vehicles: map[string]*vehicle{}, noted: map[string]struct{}{},
		wake: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{}),
	}
	if err := d.restore(ctx); err != nil {
		return nil, fmt.Errorf("read commands: %w", err)
	}
	var err error
	if d.metrics, err = newMetrics(d, cfg.Metrics); err != nil {
		return nil, err
	}
	go d.run() // Close waits
	return d, nil
}

func (l *Limits) defaults() {
	if l.Bytes <= 0 {
		l.Bytes = 256 << 20
	}
	for _, v := range []struct {
		p *int
		d int
	}{{&l.Open, 100}, {&l.Total, 100_000}, {&l.History, 200}, {&l.Payload, 64 << 10}} {
		if *v.p <= 0 {
			*v.p = v.d
		}
	}
	for _, v := range []struct {
		p *time.Duration
		d time.Duration
	}{{&l.Expiry, 24 * time.Hour}, {&l.Longest, 30 * 24 * time.Hour}, {&l.Finish, 24 * time.Hour}} {
		if *v.p <= 0 {
			*v.p = v.d
		}
	}
}

// Close stops the watch over expiry. What is open stays on disk.
func (d *Desk) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	d.mu.Unlock()
	close(d.stop)
	<-d.ended
	d.metrics.unregister(d.cfg.Metrics)
	return nil
}

// vehicle returns a vehicle with its lock held.
func (d *Desk) vehicle(id string) (*vehicle, error) {
	for {
		d.mu.Lock()
		if d.closed {
			d.mu.Unlock()
			return nil, ErrClosed
		}
		v := d.vehicles[id]
		if v == nil {
			v = &vehicle{id: strings.Clone(id)}
			d.vehicles[v.id] = v
		}
		d.mu.Unlock()
		if v.mu.Lock(); !v.gone {
			return v, nil
		}
		v.mu.Unlock()
	}
}

// release gives the lock back, and the vehicle up if it has nothing open.
func (d *Desk) release(v *vehicle) {
	if len(v.open) == 0 {
		v.gone = true
		d.mu.Lock()
		delete(d.vehicles, v.id)
		d.mu.Unlock()
	}
	v.mu.Unlock()
}

func (v *vehicle) find(id string) *entry {
	for _, e := range v.open {
		if e.ID == id {
			return e
		}
	}
	return nil
}

// CheckVehicle says what is wrong with a vehicle id as a level of a topic.
func CheckVehicle(id string) error {
	if id == "" || len(id) > 128 || strings.ContainsAny(id, "/+#\x00") {
		return &RequestError{fmt.Sprintf("vehicle id %.140q: write 1 to 128 bytes without / + #", id)}
	}
	return nil
}

// Topic is where a vehicle gets its commands.
func Topic(vehicle string) string { return "fleet/" + vehicle + "/commands" }

// Issue makes a command and sends it if somebody listens. It is on disk when Issue returns. fresh is false if the key has made it
// before; then it is as it has become since.
func (d *Desk) Issue(ctx context.Context, vehicle string, r Request) (c Command, fresh bool, err error) {
	now := time.Now().UTC().Truncate(time.Millisecond)
	if err := d.check(vehicle, &r, now); err != nil {
		return Command{}, false, err
	}
	v, err := d.vehicle(vehicle)
	if err != nil {
		return Command{}, false, err
	}
	defer d.release(v)
	if r.Key != "" {
		old, err := d.byKey(ctx, vehicle, r.Key)
		switch {
		case err == nil && (old.Name != r.Name || string(old.Payload) != string(r.Payload)):
			return Command{}, false, ErrKey
		case err == nil:
			return old, false, nil
		case !errors.Is(err, ErrNotFound):
			return Command{}, false, err
		}
	}
	l := &d.cfg.Limits
	if len(v.open) >= l.Open || d.open.Load() >= int64(l.Total) || d.bytes.Load()+int64(len(r.Payload)) > l.Bytes {
		d.metrics.refused.Inc()
		return Command{}, false, ErrFull
	}
	if r.Expires.IsZero() {
		r.Expires = now.Add(d.cfg.Limits.Expiry)
	}
	e := &entry{vehicle: v.id, Command: Command{
		ID: d.newID(now), Vehicle: vehicle, Name: r.Name, Payload: r.Payload, Key: r.Key, By: r.By,
		State: Queued, Issued: now, Expires: r.Expires.UTC().Truncate(time.Millisecond),
	}}
	e.id = e.ID
	if err := d.save(ctx, &e.Command); err != nil {
		return Command{}, false, err
	}
	v.open = append(v.open, e)
	d.open.Add(1)
	d.bytes.Add(int64(len(e.Payload)))
	d.metrics.issued.Inc()
	d.schedule(e, e.Expires)
	d.send(v, e, 0)
	return e.Command, true, nil
}

func (d *Desk) check(vehicle string, r *Request, now time.Time) error {
	if err := CheckVehicle(vehicle); err != nil {
		return err
	}
	switch {
	case r.Name == "" || len(r.Name) > 128:
		return &RequestError{"name: write 1 to 128 bytes, for instance \"lock\""}
	case len(r.Payload) > d.cfg.Limits.Payload:
		return &RequestError{fmt.Sprintf("payload has %d bytes: at most %d", len(r.Payload), d.cfg.Limits.Payload)}
	case len(r.Payload) > 0 && !json.Valid(r.Payload):
		return &RequestError{"payload is not JSON"}
	case len(r.Key) > maxKey || strings.IndexByte(r.Key, 0) >= 0:
		return &RequestError{fmt.Sprintf("idempotency key: write at most %d bytes without a zero byte", maxKey)}
	case !r.Expires.IsZero() && !r.Expires.After(now):
		return &RequestError{"expires is not in the future"}
	case !r.Expires.IsZero() && r.Expires.Sub(now) > d.cfg.Limits.Longest:
		return &RequestError{fmt.Sprintf("expires is more than %v ahead", d.cfg.Limits.Longest)}
	}
	return nil
}

// newID makes ids that sort by time and are not used twice, not even after a restart: restore knows the last.
func (d *Desk) newID(now time.Time) string {
	for {
		last := d.last.Load()
		next := max(uint64(now.UnixMilli())<<16, last+1)
		if d.last.CompareAndSwap(last, next) {
			return fmt.Sprintf("c%016x", next)
		}
	}
}

// Cancel ends a command before the device has. The device may have it already and carry it out: Sends tells.
func (d *Desk) Cancel(ctx context.Context, vehicle, id, by string) (Command, error) {
	v, err := d.vehicle(vehicle)
	if err != nil {
		return Command{}, err
	}
	defer d.release(v)
	e := v.find(id)
	if e == nil {
		c, err := d.load(ctx, vehicle, id)
		if err == nil {
			err = ErrEnded
		}
		return c, err
	}
	reason := "cancelled"
	if by != "" {
		reason += " by " + by
	}
	return d.finish(ctx, v, e, Cancelled, func(c *Command) { c.Reason = reason })
}

// finish ends an open command.
func (d *Desk) finish(ctx context.Context, v *vehicle, e *entry, s State, change func(*Command)) (Command, error) {
	c := e.Command
	now := time.Now().UTC().Truncate(time.Millisecond)
	c.State, c.EndedAt = s, &now
	change(&c)
	if err := d.save(ctx, &c); err != nil {
		return e.Command, err
	}
	for i := range v.open {
		if v.open[i] == e {
			v.open = append(v.open[:i], v.open[i+1:]...)
			break
		}
	}
	e.Command = c
	d.unschedule(e)
	d.open.Add(-1)
	d.bytes.Add(-int64(len(c.Payload)))
	d.metrics.finished(s)
	return c, nil
}

// Command returns one command.
func (d *Desk) Command(ctx context.Context, vehicle, id string) (Command, error) {
	return d.load(ctx, vehicle, id)
}

// List returns up to most of a vehicle's commands, newest first; of one state, or of all if state is "".
func (d *Desk) List(ctx context.Context, vehicle string, s State, most int) ([]Command, error) {
	return d.list(ctx, vehicle, func(c *Command) bool { return s == "" || c.State == s }, most)
}
