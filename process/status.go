package process

import (
	"context"
	"time"

	"github.com/milepost/milepost/stream"
)

// A State is what a function is doing on a shard.
type State string

// The states.
const (
	StateRunning  State = "running"
	StateRetrying State = "retrying"            // something failed; it tries again
	StateWaiting  State = "waiting for parents" // the shards that this one came from are not read out yet
	StateFinished State = "finished"            // the shard is closed and read out
	StateStopped  State = "stopped"             // by Stop, or for good: another owner has the lane
	StatePaused   State = "paused by overflow"  // until Runner.Resume
)

// Counters count since the start of the process.
type Counters struct {
	Records     uint64 `json:"records"`      // processed, repetitions included
	Batches     uint64 `json:"batches"`      // for a folder: calls of Fold
	Errors      uint64 `json:"errors"`       // failed attempts and commits
	Retries     uint64 `json:"retries"`      // pauses before another attempt
	DeadLetters uint64 `json:"dead_letters"` // records given up
	Missed      uint64 `json:"missed"`       // records that retention removed before they were read
	Filtered    uint64 `json:"filtered"`     // records that Options.Filter passed over, repetitions included
	// Of handlers.
	Invocations uint64 `json:"invocations"` // calls that ran, failed ones included
	Throttles   uint64 `json:"throttles"`   // calls that did not run: a *NotRunError
	Sampled     uint64 `json:"sampled"`     // records passed over by the overflow policy
	Spilled     uint64 `json:"spilled"`     // records put off by the overflow policy, others' included if there are several lanes
	CaughtUp    uint64 `json:"caught_up"`   // records of those that were processed since
}

func (c *Counters) add(o *Counters) {
	c.Records += o.Records
	c.Batches += o.Batches
	c.Errors += o.Errors
	c.Retries += o.Retries
	c.DeadLetters += o.DeadLetters
	c.Missed += o.Missed
	c.Filtered += o.Filtered
	c.Invocations += o.Invocations
	c.Throttles += o.Throttles
	c.Sampled += o.Sampled
	c.Spilled += o.Spilled
	c.CaughtUp += o.CaughtUp
}

// A LaneStatus is the state of one lane of one shard.
type LaneStatus struct {
	Lane          int             `json:"lane"`
	State         State           `json:"state"`
	Checkpoint    stream.Position `json:"checkpoint"`
	Lag           int64           `json:"lag"`             // records behind the shard's end, others' included; -1: the log cannot tell
	IteratorAgeMS int64           `json:"iterator_age_ms"` // age of the last processed record; 0 when nothing is left to read
	Counters
	LastError      string    `json:"last_error,omitempty"`
	LastErrorTime  time.Time `json:"last_error_time,omitzero"`
	LastInvocation time.Time `json:"last_invocation,omitzero"` // of a handler: when the last one began
	Overflow       string    `json:"overflow,omitempty"`       // why the overflow policy is at work; "" if it is not
	Window         time.Time `json:"window,omitzero"`          // start of the tumbling window that is open
}

// A ShardStatus is a function's state on one shard.
type ShardStatus struct {
	Shard stream.ShardID `json:"shard"`
	State State          `json:"state"` // the worst of its lanes
	Lanes []LaneStatus   `json:"lanes,omitempty"`
	Spill *SpillStatus   `json:"spill,omitempty"` // with the overflow policy spill
	Error string         `json:"error,omitempty"` // why it cannot begin
}

// A SpillStatus is what a shard's overflow has put off.
type SpillStatus struct {
	Ranges  int        `json:"ranges"`  // not yet caught up with
	Records int64      `json:"records"` // in them, others' included; -1: the log cannot tell
	Lane    LaneStatus `json:"lane"`    // what catches up
}

// A FunctionStatus is the state of one function.
type FunctionStatus struct {
	Name   string        `json:"name"`
	Folder bool          `json:"folder"`
	Shards []ShardStatus `json:"shards"`
	Error  string        `json:"error,omitempty"` // why it cannot begin, or learn of new shards
	// Of handlers.
	Handler  bool           `json:"handler,omitempty"`
	Breaker  *BreakerStatus `json:"breaker,omitempty"`
	Overflow OverflowPolicy `json:"overflow,omitempty"`
}

// Status tells what every function is doing, in the order they were added.
func (r *Runner) Status(ctx context.Context) []FunctionStatus {
	tips := map[stream.ShardID]stream.Tip{}
	out := make([]FunctionStatus, 0, len(r.funcs))
	for _, f := range r.funcs {
		f.mu.Lock()
		fs := FunctionStatus{Name: f.name, Folder: f.folder != nil, Shards: []ShardStatus{}, Error: text(f.err)}
		if f.handler != nil {
			b := f.breaker.status()
			fs.Handler, fs.Breaker, fs.Overflow = true, &b, f.opts.Overflow.Policy
		}
		shards := append([]*shardRun{}, f.order...)
		f.mu.Unlock()
		for _, s := range shards {
			fs.Shards = append(fs.Shards, s.status(ctx, tips))
		}
		out = append(out, fs)
	}
	return out
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (s *shardRun) status(ctx context.Context, tips map[stream.ShardID]stream.Tip) ShardStatus {
	r := s.f.r
	s.mu.Lock()
	st := ShardStatus{Shard: s.info.ID, Error: text(s.err)}
	phase, lanes, spill := s.phase, s.lanes, s.spill
	s.mu.Unlock()
	if spill != nil {
		st.Spill = spill.status()
	}
	switch phase {
	case waiting:
		st.State = StateWaiting
		return st
	case begun:
		st.State = StateRunning
		if st.Error != "" {
			st.State = StateRetrying
		}
	case finished:
		st.State = StateFinished
	}
	tip, known := tips[st.Shard]
	if !known && r.tipper != nil {
		if t, err := r.tipper.Tip(ctx, st.Shard); err == nil {
			tip, known = t, true
			tips[st.Shard] = t
		}
	}
	for _, l := range lanes {
		ls := l.status()
		ls.Lag = -1
		if known {
			ls.Lag = max(0, int64(tip.Seq)-int64(r.tipper.Count(st.Shard, ls.Checkpoint)))
			if ls.Checkpoint >= tip.Pos {
				ls.IteratorAgeMS = 0
			}
		}
		if phase == begun && (ls.State == StateRetrying && st.State == StateRunning || ls.State == StateStopped || ls.State == StatePaused) {
			st.State = ls.State
		}
		st.Lanes = append(st.Lanes, ls)
	}
	return st
}

func (l *lane) status() LaneStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.stat
	if !l.idle && !l.last.IsZero() && st.State != StateFinished {
		st.IteratorAgeMS = max(0, time.Since(l.last).Milliseconds())
	}
	return st
}
