package seglog

import (
	"context"
	"time"

	"github.com/milepost/milepost/stream"
)

// A Log is one stream of a Store.
type Log struct{ name string }

var (
	_ stream.Log    = (*Log)(nil)
	_ stream.Tipper = (*Log)(nil)
)

// Stats tells what a stream holds.
type Stats struct {
	Bytes    int64     // in segments, the active one included
	Segments int       //
	Records  uint64    // stored since the stream was created, by shards still listed
	Oldest   time.Time // arrival of the oldest record kept; zero if none
	Newest   time.Time // arrival of the newest record; zero if none
	Shards   int       // open shards
	Full     bool      // the last append was refused with stream.ErrFull
	Fenced   error     // why appends are refused until the store is reopened; nil if they are not
}

// Name returns the stream's name.
func (l *Log) Name() string { return l.name }

// Config returns the stream's settings; Shards counts the open ones.
func (l *Log) Config() StreamConfig { return StreamConfig{} }

// Stats tells what the stream holds now.
func (l *Log) Stats() Stats { return Stats{} }

// Append implements stream.Log.
func (l *Log) Append(ctx context.Context, recs []stream.Record) error { return errUnbuilt }

// Shards implements stream.Log.
func (l *Log) Shards(ctx context.Context) ([]stream.Shard, error) { return nil, errUnbuilt }

// Read implements stream.Log.
func (l *Log) Read(ctx context.Context, shard stream.ShardID, after stream.Position) (stream.Reader, error) {
	return nil, errUnbuilt
}

// Seek implements stream.Log.
func (l *Log) Seek(ctx context.Context, shard stream.ShardID, t time.Time) (stream.Position, error) {
	return "", errUnbuilt
}

// Tip implements stream.Tipper.
func (l *Log) Tip(ctx context.Context, shard stream.ShardID) (stream.Tip, error) {
	return stream.Tip{}, errUnbuilt
}

// Count implements stream.Tipper.
func (l *Log) Count(shard stream.ShardID, pos stream.Position) uint64 { return 0 }

// Split closes a shard and opens two in its place: the second begins at at.
func (l *Log) Split(ctx context.Context, shard stream.ShardID, at stream.Hash) ([2]stream.Shard, error) {
	return [2]stream.Shard{}, errUnbuilt
}

// Merge closes two neighbouring shards and opens one in their place.
func (l *Log) Merge(ctx context.Context, a, b stream.ShardID) (stream.Shard, error) {
	return stream.Shard{}, errUnbuilt
}

// Close stores what waits and closes the stream; other streams of the store go on.
func (l *Log) Close() error { return nil }
