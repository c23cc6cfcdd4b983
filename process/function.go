// Package process runs functions over a stream: it maps shards to lanes, batches, retries, bisects, dead-letters, and moves
// each function's checkpoint together with its state (P3).
package process

import (
	"context"
	"fmt"
	"time"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// A Function folds records into state. Everything it does goes through tx and depends only on recs and on what it reads from
// tx: no clock, no randomness, no I/O. The runner may run the same records again after a crash or a failed commit.
type Function interface {
	Name() string // keys its state and checkpoints, so it never changes
	Process(ctx context.Context, tx state.Tx, recs []stream.Record) error
}

// A Folder is a function that keeps hot state decoded in memory, one Fold per lane, and writes what changed when a step
// commits; the runner coalesces several batches into one step.
type Folder interface {
	Name() string
	// Lane returns the fold of one lane of one shard, empty: it reads what it needs through Fold's reader.
	Lane(shard stream.ShardID, lane int) Fold
}

// A Fold is owned by one goroutine.
type Fold interface {
	// Fold applies records to memory. r reads committed state; recs are valid until Fold returns. A *RejectError says that
	// exactly the records before it are applied; after any other error Reset follows.
	Fold(ctx context.Context, r state.Reader, recs []stream.Record) error
	// Tick lets time pass: now is the runner's clock, since is when this process began to listen, or has last caught up: while
	// the lane is behind, since is now, as silence means nothing then.
	Tick(ctx context.Context, r state.Reader, now, since time.Time) error
	// Urgent tells whether what is in memory should be committed without waiting for more (an alert is to be sent).
	Urgent() bool
	// Flush writes what changed since the last Flush to tx. If the commit then fails, Reset follows.
	Flush(tx state.Tx) error
	// Reset forgets everything in memory; the runner then folds again from the last checkpoint.
	Reset()
	// Close ends the lane: its shard is read out, or the runner stops. The last step is committed or reset before.
	Close()
}

// A RejectError names a record that no retry will fix: what precedes it commits, it is dead-lettered, work goes on.
type RejectError struct {
	Pos stream.Position
	Err error
}

func (e *RejectError) Error() string { return fmt.Sprintf("record %s: %v", e.Pos, e.Err) }
func (e *RejectError) Unwrap() error { return e.Err }

// DeadLetterKind is the effect that puts a record into the dead-letter stream; its data is a stream.DeadLetter in JSON.
const DeadLetterKind = "dead-letter"
