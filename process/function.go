// Package process runs functions over a stream: it maps shards to lanes, batches, retries, bisects, dead-letters, and moves
// each function's checkpoint together with its state (P3).
//
// There are three kinds. A Function changes state in the store, inside the step that moves its checkpoint: each record counts
// once. A Folder does the same with state that it keeps decoded in memory. A Handler works elsewhere, in a process or behind a
// URL: it runs with nothing locked, and when it has returned one short step commits the checkpoint, its output and the state of
// its window. It may see records again after a crash, so what it does should bear repetition: the same records have the same
// Invocation.ID, and a record is named by shard and position for ever. To embed one:
//
//	r, err := process.New(process.Config{Log: log, StreamName: "readings", Store: store, DeadLetters: dead})
//	err = r.AddHandler(handler, process.Options{BatchSize: 100, MaxAttempts: 3, Bisect: true})
//	err = r.Run(ctx) // until ctx ends; everything that was begun is finished or left for the next start
//
// A handler's batches are treated as Lambda's event source mapping treats them:
//
//   - A call that fails is repeated with the same records after a pause that grows, until MaxAttempts or MaxAge. A call that did
//     not run (*NotRunError, an open breaker) counts for neither attempt nor error.
//   - With Bisect a batch that fails is split in halves instead; that costs no attempt, and each half begins afresh, the left one
//     first. A single bad record among n takes one call, two for each of the log2 n splits, and its own further attempts.
//   - Result.Failed commits what precedes that record. The rest is tried again, which counts, unless Bisect splits there: then it
//     begins afresh. If the first record failed nothing was processed, and a batch of several is halved.
//   - What is given up is told of by one effect (Options.OnFailure) in the step that moves past it. Records that are too old are
//     split off, and told of as one; younger ones go on.
//   - Tumbling windows go by arrival. Their state is committed with the checkpoint. The final call of a window has no records, and
//     holds the shard up until it succeeds.
//
// It differs where Lambda does not say or cannot: a batch is given up by retention never, as it is in memory; and StableBatches
// makes even a crash repeat the very same batch.
//
// A program with several Runners over one store, started and stopped as it runs, shares an Outbox, a Meter and a Gate between
// them. Reset and Forget work on functions that do not run.
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
