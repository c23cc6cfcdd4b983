package process

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// A Start says where a function begins that has never run. Once it has run, its checkpoints say.
type Start string

// The starts. Shards that are opened by a later split or merge are read from their beginning whatever the start.
const (
	Oldest Start = "oldest"
	Latest Start = "latest"
	AtTime Start = "at-time" // Options.StartTime
)

// Options say how a function is run. The zero value works.
type Options struct {
	Start     Start     // default Oldest
	StartTime time.Time // for AtTime

	// Lanes is how many batches of one shard may be in flight, 1 to 10, default 1. Keys are hashed to lanes, so each key keeps
	// its order. Every lane reads the shard for itself and skips what is not its own: a slow lane delays no other.
	// It may change between runs; what the old lanes left undone is finished with the old number first.
	Lanes int

	// MaxAttempts is how often records are tried before they are given up: Lambda's MaximumRetryAttempts plus one. Default and
	// -1: until it works. Failed commits and a *NotRunError are nobody's fault and do not count.
	MaxAttempts int
	// MaxAge gives up records that have become older than this; default 0: none. Folders ignore it.
	MaxAge time.Duration
	// Between attempts: exponential with full jitter, default 100 ms to 1 min.
	MinBackoff, MaxBackoff time.Duration

	// Filter, if set, is asked about each record before it is put into a batch. Records for which it is false are passed over,
	// checkpointed and counted. It must depend on the record alone, and keeps nothing of it.
	Filter func(*stream.Record) bool

	// For functions and handlers.
	BatchSize   int           // records in a batch, default 1,000
	BatchBytes  int           // payload bytes of a batch (one record may exceed it), default 6 MiB
	BatchWindow time.Duration // how long to wait for a batch to fill, default 0: not at all
	Bisect      bool          // split a batch that fails and try the halves, left first, which costs no attempt
	// Payload tells how many payload bytes a record takes in a batch; default: those of its data.
	Payload func(*stream.Record) int

	// For handlers. Their batches have at most 10,000 records and wait at most 300 s.

	// OnFailure makes the one effect that tells of records given up; it is committed with the checkpoint. An error of it is
	// tried again, and holds the lane up. The Failure's records are valid until it returns. nil: a dead letter for each record.
	OnFailure func(*Failure) (state.Effect, error)
	// Tumbling is the length of tumbling windows by arrival time, whole seconds to 900 s; 0: none. It needs a single lane.
	Tumbling time.Duration
	// Output names the stream that Result.Output goes to. It needs Config.Streams or Config.Outbox.
	Output string
	// StableBatches notes on disk which records an invocation is to hold before it begins, so that after a crash the same
	// records come again under the same ID, whatever has arrived since. It costs a sync an invocation.
	StableBatches bool
	// Priority decides who goes first at Config.Gate: the higher.
	Priority int
	// Breaker stops calling a function that fails again and again.
	Breaker Breaker
	// Overflow says what becomes of a function that cannot keep up.
	Overflow Overflow

	// For folders.
	CommitInterval time.Duration // how long changes may stay in memory only, default 100 ms
	CommitRecords  int           // or how many records, default 200,000
	TickInterval   time.Duration // how often to let time pass, default 1 s
}

// A Breaker is a circuit over all shards and lanes of one handler. It opens after Failures failed invocations in a row; when
// Pause has passed, one invocation probes whether to close it again. What waits meanwhile costs no attempt, but grows older.
type Breaker struct {
	Failures int           // default 0: never opens
	Pause    time.Duration // default 30 s
}

// An OverflowPolicy says what becomes of records that a function is too slow for.
type OverflowPolicy string

// The policies.
const (
	OverflowNone   OverflowPolicy = ""       // it falls behind
	OverflowSample OverflowPolicy = "sample" // one in Overflow.OneIn is kept, the others are passed over and counted
	// OverflowSpill notes the records that it is behind with, goes on at the newest, and catches up with what was noted when the
	// shard's lanes are idle, or slowly. Each such range is processed in order, but later than what came after it.
	OverflowSpill OverflowPolicy = "spill"
	OverflowPause OverflowPolicy = "pause" // it takes nothing more until Runner.Resume
)

// An Overflow is a policy and the bound of one lane that sets it off, by age or by lag. Sampling ends at half the bound.
type Overflow struct {
	Policy    OverflowPolicy
	MaxAge    time.Duration // of the next record; 0: no bound
	MaxLag    int64         // records up to the shard's end, others' included; 0: no bound. It needs a log that is a stream.Tipper
	OneIn     int           // for sample: at least 2
	WholeKeys bool          // for sample: keep all records of one key in OneIn, instead of one record in OneIn
	Interval  time.Duration // for spill: while the lanes are busy, catch up with a batch this often; default 1 s
}

const (
	maxHandlerBatch  = 10_000
	maxHandlerWindow = 300 * time.Second
	maxTumbling      = 900 * time.Second

	maxLanes   = 10
	readMost   = 4096 // records asked of a reader at once
	idleCommit = 100 * time.Millisecond
)

func (o *Options) fill() error {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	num := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	if o.Start == "" {
		o.Start = Oldest
	}
	num(&o.Lanes, 1)
	num(&o.MaxAttempts, -1)
	def(&o.MinBackoff, 100*time.Millisecond)
	def(&o.MaxBackoff, time.Minute)
	num(&o.BatchSize, 1000)
	num(&o.BatchBytes, 6<<20)
	def(&o.CommitInterval, idleCommit)
	num(&o.CommitRecords, 200_000)
	def(&o.TickInterval, time.Second)
	switch {
	case o.Start != Oldest && o.Start != Latest && o.Start != AtTime:
		return fmt.Errorf("start %q: use %s, %s or %s", o.Start, Oldest, Latest, AtTime)
	case o.Start == AtTime && o.StartTime.IsZero():
		return fmt.Errorf("start %s needs a time", AtTime)
	case o.Lanes < 1 || o.Lanes > maxLanes:
		return fmt.Errorf("lanes %d: use 1 to %d", o.Lanes, maxLanes)
	case o.MaxAttempts < -1:
		return fmt.Errorf("max attempts %d: use -1 for no limit, or a positive number", o.MaxAttempts)
	case o.BatchSize < 1 || o.BatchBytes < 1 || o.CommitRecords < 1:
		return fmt.Errorf("batch size %d, batch bytes %d, commit records %d: must be positive", o.BatchSize, o.BatchBytes, o.CommitRecords)
	case o.MaxAge < 0 || o.BatchWindow < 0 || o.CommitInterval < 0 || o.TickInterval < 0 || o.MinBackoff < 0:
		return fmt.Errorf("a duration is negative")
	case o.MaxBackoff < o.MinBackoff:
		return fmt.Errorf("backoff from %s to %s: the end is before the beginning", o.MinBackoff, o.MaxBackoff)
	}
	return nil
}

// fillHandler fills in and checks what only handlers have.
func (o *Options) fillHandler(cfg *Config) error {
	if o.Breaker.Pause == 0 {
		o.Breaker.Pause = 30 * time.Second
	}
	v := &o.Overflow
	if v.Interval == 0 {
		v.Interval = time.Second
	}
	switch {
	case o.BatchSize > maxHandlerBatch:
		return fmt.Errorf("batch size %d: use 1 to %d", o.BatchSize, maxHandlerBatch)
	case o.BatchWindow > maxHandlerWindow:
		return fmt.Errorf("batching window %s: use up to %s", o.BatchWindow, maxHandlerWindow)
	case o.Tumbling < 0 || o.Tumbling > maxTumbling || o.Tumbling%time.Second != 0:
		return fmt.Errorf("tumbling window %s: use whole seconds up to %s", o.Tumbling, maxTumbling)
	case o.Tumbling > 0 && o.Lanes != 1:
		return fmt.Errorf("tumbling windows with %d lanes: use one lane", o.Lanes)
	case o.Output != "" && cfg.Outbox == nil && cfg.Streams == nil:
		return fmt.Errorf("output to stream %s: the runner needs Config.Streams or Config.Outbox", o.Output)
	case o.Breaker.Failures < 0 || o.Breaker.Pause < 0:
		return fmt.Errorf("breaker of %d failures and %s: must not be negative", o.Breaker.Failures, o.Breaker.Pause)
	case v.MaxAge < 0 || v.MaxLag < 0 || v.Interval < 0:
		return fmt.Errorf("overflow bounds %s and %d records, interval %s: must not be negative", v.MaxAge, v.MaxLag, v.Interval)
	}
	switch v.Policy {
	case OverflowNone:
		return nil
	case OverflowSample, OverflowSpill, OverflowPause:
	default:
		return fmt.Errorf("overflow policy %q: use %s, %s, %s, or none", v.Policy, OverflowSample, OverflowSpill, OverflowPause)
	}
	_, tipper := cfg.Log.(stream.Tipper)
	switch {
	case v.MaxAge == 0 && v.MaxLag == 0:
		return fmt.Errorf("overflow policy %s needs a bound: set its age or its lag", v.Policy)
	case v.MaxLag > 0 && !tipper:
		return fmt.Errorf("overflow bound of %d records: this log cannot tell the lag, use the age", v.MaxLag)
	case v.Policy == OverflowSample && v.OneIn < 2:
		return fmt.Errorf("overflow policy sample keeps one record in %d: use 2 or more", v.OneIn)
	case v.Policy == OverflowSpill && o.Tumbling > 0:
		return fmt.Errorf("overflow policy spill with tumbling windows: their records would come too late, use sample or pause")
	}
	return nil
}

// backoff returns how long to wait after failure n, which counts from 0.
func backoff(lo, hi time.Duration, n int) time.Duration {
	top := hi
	if n < 30 && lo<<(n+1) > 0 {
		top = min(hi, lo<<(n+1))
	}
	if top <= lo {
		return lo
	}
	return lo + rand.N(top-lo) //nolint:gosec // jitter is no secret
}

// laneOf hashes a key to a lane. It is fixed for ever, as checkpoints of lanes depend on it.
func laneOf(key string, lanes int) int { return int(hashOf(key) % uint64(lanes)) }

// hashOf is FNV-1a.
func hashOf(key string) uint64 { return hashMore(14695981039346656037, key) }

func hashMore(h uint64, s string) uint64 {
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h ^ h>>32 // its low bits alone are weak
}
