// Package state is the contract of durable state: what functions know, their checkpoints, and the effects they ask for, moved
// together in one transaction (P3). statetest checks every engine against it.
package state

import (
	"context"
	"errors"
	"io"

	"github.com/milepost/milepost/stream"
)

// A Step moves one function's checkpoint on one lane of one shard.
type Step struct {
	Func  string
	Shard stream.ShardID
	Lane  int
	From  stream.Position // where the checkpoint must be now; "" before the first step
	To    stream.Position // where it will be; equal to From for a step that only reacts to time
}

// A Store holds state. It is safe for concurrent use; concurrent Advances of different lanes must touch different keys.
type Store interface {
	// Checkpoint returns where a lane is; "" if it never advanced.
	Checkpoint(ctx context.Context, fn string, shard stream.ShardID, lane int) (stream.Position, error)
	// Advance runs f and commits its writes, its effects and From→To in one transaction. ErrMoved, and nothing written, if the
	// checkpoint is no longer at From (compare-and-set: fences a second owner, makes retry idempotent). After any other error
	// that is not f's own, Checkpoint tells whether the step has happened. A step with an effect
	// or with Tx.Sync is on disk when Advance returns; another may be lost in a crash, whole, together with every later one
	// that was not synced: the log brings it back.
	Advance(ctx context.Context, s Step, f func(Tx) error) error
	// Update is a transaction without a checkpoint, for what people do (acknowledge an alert). It is on disk when it returns.
	Update(ctx context.Context, f func(Tx) error) error
	// View runs f on a snapshot. Slices that f gets are valid until it returns.
	View(ctx context.Context, f func(Reader) error) error
	// Pending returns up to max effects of a kind, oldest first. Changed is closed at the next commit that adds one.
	Pending(ctx context.Context, kind string, max int) (effects []Effect, changed <-chan struct{}, err error)
	// Done removes effects that are carried out; unknown IDs are ignored.
	Done(ctx context.Context, kind string, ids ...string) error
	io.Closer
}

// A Reader reads one consistent state.
type Reader interface {
	// Get returns the value of a key, or nil if there is none. Valid until the transaction or view ends; do not write to it.
	Get(key []byte) ([]byte, error)
	// Scan calls f for each key in [from, to) in order until f returns an error, which Scan returns (ErrStop: nil). A nil to
	// means to the last key. k and v are valid until f returns.
	Scan(from, to []byte, f func(k, v []byte) error) error
}

// A Tx reads what was committed and its own writes, and collects writes. It belongs to one goroutine and ends with f.
type Tx interface {
	Reader
	Set(key, value []byte) error // copies both
	Delete(key []byte) error
	DeleteRange(from, to []byte) error // [from, to), as Scan
	Emit(e Effect) error               // copies; a second effect with the same kind and ID replaces the first
	Sync()                             // asks that this step be on disk when it returns
}

// PrefixEnd returns the first key after all that begin with prefix: Scan(prefix, PrefixEnd(prefix), …) sees just those. nil, which
// to Scan means to the last key, if there is none.
func PrefixEnd(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// An Effect is something to be done outside, at least once, after the step that asked for it is durable. The same cause
// always has the same ID (P4), so that whoever carries it out can recognise a repetition.
type Effect struct {
	ID   string // unique within Kind
	Kind string // who carries it out: "dead-letter", "notify:webhook"
	Data []byte
}

// Errors that callers branch on.
var (
	// ErrMoved: another owner has advanced this lane.
	ErrMoved = errors.New("checkpoint moved: another owner has advanced this lane")
	// ErrStop ends a Scan early, without error.
	ErrStop = errors.New("stop")
	// ErrFull: the disk has no room. Reads go on; transactions succeed again when there is room. What Checkpoint says then
	// tells whether a step that was under way when the disk filled up has happened.
	ErrFull = errors.New("disk is full, state is not written: free space; processing resumes by itself")
	// ErrFenced: a write failed, so what is on disk is not known. Transactions are refused until the store is opened again.
	ErrFenced = errors.New("state store is fenced after a failed write: check the disk, then restart")
	// ErrClosed: the store is closed.
	ErrClosed = errors.New("state store is closed")
)
