package process

import (
	"fmt"
	"math/rand/v2"
	"time"
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

	// MaxAttempts is how often records are tried before they are dead-lettered; default and -1: until it works. Failed commits
	// are nobody's fault and do not count.
	MaxAttempts int
	// MaxAge dead-letters records that have become older than this; default 0: none. Folders ignore it.
	MaxAge time.Duration
	// Between attempts: exponential with full jitter, default 100 ms to 1 min.
	MinBackoff, MaxBackoff time.Duration

	// For functions.
	BatchSize   int           // records in a batch, default 1,000
	BatchBytes  int           // bytes of data in a batch (one record may exceed it), default 6 MiB
	BatchWindow time.Duration // how long to wait for a batch to fill, default 0: not at all
	Bisect      bool          // split a batch that fails and try the halves, left first, which costs no attempt

	// For folders.
	CommitInterval time.Duration // how long changes may stay in memory only, default 100 ms
	CommitRecords  int           // or how many records, default 200,000
	TickInterval   time.Duration // how often to let time pass, default 1 s
}

const (
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

// laneOf hashes a key to a lane: FNV-1a, which is fixed for ever, as checkpoints of lanes depend on it.
func laneOf(key string, lanes int) int {
	h := uint64(14695981039346656037)
	for i := range len(key) {
		h = (h ^ uint64(key[i])) * 1099511628211
	}
	h ^= h >> 32 // its low bits alone are weak
	return int(h % uint64(lanes))
}
