package process

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/milepost/milepost/stream"
)

// A Handler is a function that works outside the store: a user's own process, an HTTP endpoint. It may take minutes; nothing is
// locked while it runs, and the checkpoint moves once it has returned. It may see records again, under the same Invocation.ID.
type Handler interface {
	Name() string // keys its checkpoints, so it never changes
	// Handle processes the invocation's records. An error means that none of them counts as processed; a *NotRunError, that it
	// did not begin at all.
	Handle(ctx context.Context, in *Invocation) (Result, error)
}

// An Invocation is one call of a Handler.
type Invocation struct {
	ID      string          // the same records of the same shard have the same ID always (P4)
	Attempt int             // of these records, from 1
	Shard   stream.ShardID  //
	Records []stream.Record // in order, of one shard; valid until Handle returns. Empty only when Window.Final
	Window  *Window         // nil without Options.Tumbling
}

// A Window is the tumbling window, by arrival time, that an invocation belongs to.
type Window struct {
	Start, End time.Time // End is exclusive
	State      []byte    // what the last invocation of this window and shard returned; nil at its first
	Final      bool      // nothing more will come for it
	Early      bool      // it ends before its time, because its state grew too large
}

// A Result says what became of an invocation.
type Result struct {
	// Failed is the first record that was not processed: what precedes it is, it and what follows is tried again. "": all are.
	Failed stream.Position
	Reason string          // of that, for people; "": made of Failed
	State  []byte          // of the window, for its next invocation
	Output []stream.Record // Key and Data, for the stream Options.Output; dropped if nothing was processed
}

// failure is what the function said of the record Failed.
func (r *Result) failure() error {
	if r.Reason != "" {
		return errors.New(r.Reason)
	}
	return fmt.Errorf("function reports record %s as failed", r.Failed)
}

// A NotRunError says that the function did not run: throttled, no room, its circuit is open. It is tried again, after the
// pause if there is one, until the records are too old; that costs no attempt.
type NotRunError struct {
	Err   error
	After time.Duration
}

func (e *NotRunError) Error() string { return fmt.Sprintf("not run: %v", e.Err) }
func (e *NotRunError) Unwrap() error { return e.Err }

// A Condition says why records were given up, in the words of Lambda's on-failure document.
type Condition string

// The conditions.
const (
	AttemptsExhausted Condition = "RetryAttemptsExhausted"
	AgeExceeded       Condition = "RecordAgeExceeded"
)

// A Failure is a run of records of one shard that a Handler's function gave up.
type Failure struct {
	ID        string // stable (P4): function, shard, lane, first and last position
	Function  string
	Condition Condition
	Attempts  int // approximate number of invocations
	Shard     stream.ShardID
	Records   []stream.Record
	Err       error // of the last attempt; nil if there was none
	At        time.Time
}
