// Package ingest admits what senders bring: it decodes each reading once to tell whether it is one, applies the limits,
// appends the sender's own bytes to the log and says what became of each (P1: a reading reported as stored is on disk).
//
// The doors (ingest/mqtt, ingest/httpapi) speak protocols and own connections; everything they share is here. A door calls
// Admit with what one request or message carried, waits for the log's group commit, and turns the Receipt into the answer its
// protocol has. A door whose connections do not wait for each message hands what they bring to a Pipeline, which appends for
// all of them at once and answers in order.
//
// A record's Key is the vehicle id and its Data the payload as it came. A payload may leave the id to the topic or path it
// came by; the Key then is the only place that has it, and readers of the log start their Reading.Vehicle from the Key.
//
// What is not a reading is refused and kept whole in the dead-letter stream: it is durable there before it is reported (P7).
// What is over a device's rate or meets a log that cannot take it is kept nowhere: the sender still has it, and is told so.
package ingest

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// Config is what an Admitter works with. Log, DeadLetters and Catalog are required.
type Config struct {
	Log         stream.Log // where readings go
	DeadLetters stream.Log // where refused payloads go
	Catalog     *telemetry.Catalog
	Limits      Limits
	Logger      *slog.Logger          // nil: silent
	Metrics     prometheus.Registerer // nil: not registered
}

// Limits bound what senders can make the program do. Zero takes the default.
type Limits struct {
	// MaxMessage is the largest reading in bytes. Default 256 KiB, which is also what a dead letter keeps of a payload.
	MaxMessage int
	// MaxBody is the largest HTTP body in bytes, as sent and again after decompression. Default 10 MiB.
	MaxBody int
	// RatePerDevice is how many readings a second one vehicle may send for long. Default 0: no limit, because a device that
	// was out of reach sends its backlog at once and should; memory is bounded by InFlightBytes either way.
	RatePerDevice float64
	// BurstPerDevice is how many readings a vehicle may send at once after a pause. Default 60 × RatePerDevice, at least 1.
	BurstPerDevice float64
	// BytesPerDevice is how many bytes of readings a second one vehicle may send for long. Default 0: no limit, as above.
	BytesPerDevice float64
	// BytesBurstPerDevice is how many bytes a vehicle may send at once after a pause. Default 60 × BytesPerDevice, at least
	// MaxMessage.
	BytesBurstPerDevice float64
	// MaxDevices is how many vehicles the rate limit remembers. Default 200,000 (about 20 MB). A vehicle that has its whole
	// burst left need not be remembered; past the bound the ones with most left are forgotten first.
	MaxDevices int
	// InFlightBytes bounds what all doors together hold in memory: received and not yet answered. Default 64 MiB, and never
	// less than twice MaxBody. Past it HTTP answers 429, MQTT stops reading and drops QoS 0 with a count.
	InFlightBytes int64
}

// Defaults of Limits.
const (
	DefaultMaxMessage    = 256 << 10
	DefaultMaxBody       = 10 << 20
	DefaultMaxDevices    = 200_000
	DefaultInFlightBytes = 64 << 20
)

func (l Limits) withDefaults() Limits {
	if l.MaxMessage <= 0 {
		l.MaxMessage = DefaultMaxMessage
	}
	if l.MaxBody <= 0 {
		l.MaxBody = DefaultMaxBody
	}
	if l.MaxDevices <= 0 {
		l.MaxDevices = DefaultMaxDevices
	}
	if l.InFlightBytes <= 0 {
		l.InFlightBytes = DefaultInFlightBytes
	}
	if least := 2 * int64(max(l.MaxBody, l.MaxMessage)); l.InFlightBytes < least {
		l.InFlightBytes = least
	}
	if l.BytesPerDevice > 0 && l.BytesBurstPerDevice <= 0 {
		l.BytesBurstPerDevice = max(float64(l.MaxMessage), 60*l.BytesPerDevice)
	}
	if l.RatePerDevice > 0 && l.BurstPerDevice <= 0 {
		l.BurstPerDevice = max(1, 60*l.RatePerDevice)
	}
	return l
}

// An Admitter is the part of ingest that all doors share. It is safe for concurrent use and needs no closing: close the
// doors first, the logs after.
type Admitter struct {
	log     stream.Log
	dead    stream.Log
	catalog *telemetry.Catalog
	limits  Limits
	logger  *slog.Logger
	rates   *rates // readings; nil: no limit
	volumes *rates // bytes; nil: no limit
	room    *semaphore.Weighted
	held    atomic.Int64 // bytes taken from room, for the gauge
	metrics *metrics
	batches sync.Pool // of *batch
	refuses atomic.Bool
	deadBad atomic.Bool
}

// New returns an Admitter.
func New(cfg Config) (*Admitter, error) {
	switch {
	case cfg.Log == nil:
		return nil, errors.New("ingest: no log to append readings to")
	case cfg.DeadLetters == nil:
		return nil, errors.New("ingest: no dead-letter stream for refused payloads")
	case cfg.Catalog == nil:
		return nil, errors.New("ingest: no signal catalog")
	}
	a := &Admitter{
		log: cfg.Log, dead: cfg.DeadLetters, catalog: cfg.Catalog,
		limits: cfg.Limits.withDefaults(), logger: cfg.Logger,
	}
	if a.logger == nil {
		a.logger = slog.New(slog.DiscardHandler)
	}
	if a.limits.RatePerDevice > 0 {
		a.rates = newRates(a.limits.RatePerDevice, a.limits.BurstPerDevice, a.limits.MaxDevices)
	}
	if a.limits.BytesPerDevice > 0 {
		a.volumes = newRates(a.limits.BytesPerDevice, a.limits.BytesBurstPerDevice, a.limits.MaxDevices)
	}
	a.room = semaphore.NewWeighted(a.limits.InFlightBytes)
	a.batches.New = func() any { return newBatch(a.catalog) }
	m, err := newMetrics(cfg.Metrics, func() float64 { return float64(a.held.Load()) })
	if err != nil {
		return nil, err
	}
	a.metrics = m
	return a, nil
}

// Limits returns the limits in force, defaults filled in.
func (a *Admitter) Limits() Limits { return a.limits }

// Catalog returns the signal catalog.
func (a *Admitter) Catalog() *telemetry.Catalog { return a.catalog }

// TryReserve takes n bytes of InFlightBytes if they are free.
func (a *Admitter) TryReserve(n int64) bool {
	if !a.room.TryAcquire(n) {
		return false
	}
	a.held.Add(n)
	return true
}

// Reserve takes n bytes of InFlightBytes, waiting in line for them until ctx ends.
func (a *Admitter) Reserve(ctx context.Context, n int64) error {
	if n > a.limits.InFlightBytes {
		return errors.New("more than the in-flight limit allows: raise in_flight_bytes")
	}
	if err := a.room.Acquire(ctx, n); err != nil {
		return err
	}
	a.held.Add(n)
	return nil
}

// Unreserve gives back what Reserve or TryReserve took.
func (a *Admitter) Unreserve(n int64) {
	if n > 0 {
		a.held.Add(-n)
		a.room.Release(n)
	}
}

// InFlight returns how many bytes are reserved now.
func (a *Admitter) InFlight() int64 { return a.held.Load() }

// A Door is an Admitter as one protocol uses it, its metrics looked up once.
type Door struct {
	*Admitter
	name string
	m    doorMetrics
}

// Door returns the door of that name: "mqtt", "http". The name is the source of its dead letters and the label of its metrics.
func (a *Admitter) Door(name string) *Door {
	return &Door{Admitter: a, name: name, m: a.metrics.door(name)}
}

// Refuse counts n messages that the door turned away itself, before Admit.
func (d *Door) Refuse(why Reason, n int) { d.m.refused[why].Add(float64(n)) }

// A Reason classes refusals, for metrics and for the protocol's answer. What exactly was wrong is in the Problem's text.
type Reason uint8

// The reasons.
const (
	NotReading  Reason = iota // the payload is not a reading
	Mismatch                  // the payload names another vehicle than the topic or path
	TooLarge                  // larger than MaxMessage, MaxBody or the protocol's packet
	WrongTopic                // published where no mapping is, or where the user may not
	OverRate                  // the device is over its rate
	Overloaded                // InFlightBytes are taken
	Unavailable               // the log cannot take it: full, fenced, closing
	Unwelcome                 // not authenticated
	Unsupported               // what the door does not do: QoS 2
	reasons
)

// String returns the reason as the metrics' label has it.
func (r Reason) String() string {
	switch r {
	case NotReading:
		return "not_reading"
	case Mismatch:
		return "vehicle_mismatch"
	case TooLarge:
		return "too_large"
	case WrongTopic:
		return "topic"
	case OverRate:
		return "rate"
	case Overloaded:
		return "in_flight"
	case Unavailable:
		return "unavailable"
	case Unwelcome:
		return "auth"
	case Unsupported:
		return "unsupported"
	case reasons:
	}
	return "unknown"
}

// A Payload is what one request or message carried.
type Payload struct {
	Data    []byte // one JSON object, an array of them, or NDJSON; borrowed until Admit returns
	Vehicle string // the vehicle as topic or path name it; "" if only the payload says
	From    string // remote address or client id, for dead letters
	Topic   string // the topic it came by, for dead letters; "" if there is none
	// May tells whether the sender may report for a vehicle; nil: for any that Vehicle leaves open.
	May func(vehicle string) bool
	// Wait, while it lives, makes Admit wait until a device that is over its rate may send again. nil: throttle its readings.
	Wait context.Context //nolint:containedctx // of this payload, not of the call: payloads share a call
	// Line is added to line numbers: where in the sender's body this part began.
	Line int
	// Unread are parts of Body, the sender's, that the door could not turn into JSON; they are refused with the rest.
	Unread []Unread
	Body   []byte
}

// Unread is a part of a body that is not in a payload's Data because it could not be read.
type Unread struct {
	Line   int    // in the sender's body, from 1
	Data   []byte // a part of the payload's Body
	Reason string
}

// MaxProblems is how many problems a Receipt lists. It counts all of them.
const MaxProblems = 100

// A Receipt says what became of a payload's readings. Accepted, Refused, Throttled and Failed add up to Readings.
// Its owner may reuse it.
type Receipt struct {
	Readings   int           // found in the payload, good or bad
	Accepted   int           // durable in the log
	Refused    int           // not readings; durable as dead letters unless DeadLetterErr says otherwise
	Throttled  int           // over the device's rate: send again after RetryAfter
	Failed     int           // not stored, Err says why: send again
	First      Reason        // of the first refusal
	Problems   []Problem     // what was not accepted, the first MaxProblems in order
	RetryAfter time.Duration // how long a throttled device should wait
	Err        error         // why readings Failed, the first reason
	// DeadLetterErr: refused payloads that the dead-letter stream did not take. They are counted and kept nowhere.
	DeadLetterErr error
}

// A Problem is a reading that was not accepted.
type Problem struct {
	Line      int    // of NDJSON, or the element of an array, from 1
	Reason    string // what is wrong
	Retryable bool   // the same bytes may be accepted later
}

// Reset makes the receipt empty, keeping its memory.
func (r *Receipt) Reset() {
	clear(r.Problems)
	*r = Receipt{Problems: r.Problems[:0]}
}

// Add adds what another receipt says, of the next part of the same body.
func (r *Receipt) Add(o *Receipt) {
	if r.Refused == 0 {
		r.First = o.First
	}
	r.Readings += o.Readings
	r.Accepted += o.Accepted
	r.Refused += o.Refused
	r.Throttled += o.Throttled
	r.Failed += o.Failed
	r.RetryAfter = max(r.RetryAfter, o.RetryAfter)
	for _, p := range o.Problems {
		r.problem(p.Line, p.Reason, p.Retryable)
	}
	if r.Err == nil {
		r.Err = o.Err
	}
	if r.DeadLetterErr == nil {
		r.DeadLetterErr = o.DeadLetterErr
	}
}

func (r *Receipt) problem(line int, reason string, retryable bool) {
	if len(r.Problems) < MaxProblems {
		r.Problems = append(r.Problems, Problem{line, reason, retryable})
	}
}
