// Package stream is the contract of the log: named streams of shards, each an ordered sequence of records.
//
// What every engine promises, and streamtest checks: P1 a record whose Append returned nil is on disk; P2 records with equal
// keys keep their order, through resharding; positions of a shard only grow; a reader sees each durable record once, in order.
package stream

import (
	"context"
	"crypto/md5" //nolint:gosec // the hash that Kinesis defines for partition keys; nothing secret
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"time"
)

// A Position is an opaque place in one shard. Positions of one shard order as strings do; "" precedes every record.
// AWS sequence numbers do not fit 128 bits, so nobody does arithmetic on positions.
type Position string

// A ShardID names a shard inside its stream, as Kinesis does: "shardId-000000000000".
type ShardID string

// A Record is one entry of the log.
type Record struct {
	Key   string    // partition key; equal keys share a shard and keep their order
	Data  []byte    // opaque to the log
	Hash  *Hash     // routes instead of the key's hash, as Kinesis' ExplicitHashKey; not stored
	Shard ShardID   // set by the log, as are the two below
	Pos   Position  // zero: not stored
	Time  time.Time // arrival, millisecond resolution, never decreasing within a shard
}

// A Hash is a point of the 128-bit ring that shards divide.
type Hash struct{ Hi, Lo uint64 }

// MaxHash is the last point of the ring.
//
//nolint:gochecknoglobals // a constant in all but syntax
var MaxHash = Hash{^uint64(0), ^uint64(0)}

// KeyHash is the MD5 of the key as an unsigned 128-bit number, as Kinesis defines it.
func KeyHash(key string) Hash {
	s := md5.Sum([]byte(key)) //nolint:gosec // see the import
	return Hash{binary.BigEndian.Uint64(s[:8]), binary.BigEndian.Uint64(s[8:])}
}

// Less orders points of the ring.
func (h Hash) Less(o Hash) bool { return h.Hi < o.Hi || (h.Hi == o.Hi && h.Lo < o.Lo) }

// Next returns the following point; MaxHash wraps to zero.
func (h Hash) Next() Hash {
	lo, c := bits.Add64(h.Lo, 1, 0)
	return Hash{h.Hi + c, lo}
}

// Prev returns the preceding point; zero wraps to MaxHash.
func (h Hash) Prev() Hash {
	lo, b := bits.Sub64(h.Lo, 1, 0)
	return Hash{h.Hi - b, lo}
}

// A Shard is one part of a stream's hash ring.
type Shard struct {
	ID      ShardID
	Parents []ShardID // none at creation, one after a split, two after a merge
	From    Hash      // first point, inclusive
	To      Hash      // last point, inclusive
	Created time.Time
	Closed  bool     // takes no more records; its children have begun
	End     Position // the last position, once closed; "" if it never held a record
}

// Contains tells whether h lies in the shard's range.
func (s *Shard) Contains(h Hash) bool { return !h.Less(s.From) && !s.To.Less(h) }

// A Log is one named stream. It is safe for concurrent use.
type Log interface {
	// Append stores recs and returns when the stored ones are durable. It sets Shard, Pos and Time on those; the others keep
	// a zero Pos and the error is then a *PartialError. It keeps no reference to Key or Data. Records of one call with equal keys
	// are stored in the call's order. When ctx ends first the outcome of what was already handed over is unknown.
	Append(ctx context.Context, recs []Record) error
	// Shards lists every shard that still holds records or takes them, parents first.
	Shards(ctx context.Context) ([]Shard, error)
	// Read returns a reader of the records after a position; "" starts at the oldest that retention has left. A position
	// that retention has passed continues at the oldest left.
	Read(ctx context.Context, shard ShardID, after Position) (Reader, error)
	// Seek returns the position after which records with Time ≥ t begin.
	Seek(ctx context.Context, shard ShardID, t time.Time) (Position, error)
	io.Closer
}

// A Reader follows one shard. It belongs to one goroutine.
type Reader interface {
	// Next returns between 1 and max records, waiting for the first. They, their keys and their data are valid until the next
	// call. io.EOF: the shard is closed and read out. A *DamageError names bytes that cannot be read.
	Next(ctx context.Context, max int) ([]Record, error)
	io.Closer
}

// A Tip tells where a shard ends now; engines that know it implement Tipper, for lag and iterator age.
type Tip struct {
	Pos  Position  // the newest durable record; "" if none
	Time time.Time // its arrival
	Seq  uint64    // records ever stored in the shard, for lag in records
}

// A Tipper tells the tip of a shard, and how many records of the shard precede and include a position.
type Tipper interface {
	Tip(ctx context.Context, shard ShardID) (Tip, error)
	Count(shard ShardID, pos Position) uint64
}

// Errors that callers branch on.
var (
	// ErrFull: the disk has no room. Nothing of the call is stored; reads go on; appends succeed again when there is room.
	ErrFull = errors.New("log disk is full: free space or shorten the retention; publishing resumes by itself")
	// ErrFenced: a write or fsync failed, so the log's tail is unknown. Appends are refused until it is reopened.
	ErrFenced = errors.New("log is fenced after a failed write: check the disk, then restart")
	// ErrClosed: the log is closed.
	ErrClosed = errors.New("log is closed")
	// ErrNoShard: the stream has no such shard.
	ErrNoShard = errors.New("no such shard")
	// ErrNoStream: there is no such stream.
	ErrNoStream = errors.New("no such stream")
	// ErrTooLarge: a record exceeds the stream's maximum.
	ErrTooLarge = errors.New("record too large")
)

// A PartialError says which records of an Append were not stored. Those with a zero Pos failed.
type PartialError struct {
	Failed int
	Err    error // why; the first reason if they differ
}

func (e *PartialError) Error() string {
	return fmt.Sprintf("%d records not stored: %v", e.Failed, e.Err)
}
func (e *PartialError) Unwrap() error { return e.Err }

// A DamageError names bytes of the log that fail their checksum or make no sense. Nothing is deleted.
type DamageError struct {
	Path   string
	Offset int64
	Why    string
	Hint   string // how to mend it
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("%s is damaged at byte %d: %s; %s", e.Path, e.Offset, e.Why, e.Hint)
}
