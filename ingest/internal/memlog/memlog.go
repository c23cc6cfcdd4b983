// Package memlog is a log in memory for the tests of ingest and its doors. It can be held and made to fail.
package memlog

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/milepost/milepost/stream"
)

// A Log keeps records in memory. The zero value is ready.
type Log struct {
	mu      sync.Mutex
	recs    []stream.Record
	appends int
	fail    error
	only    int           // with fail: this many of an append are stored; the others fail
	gate    chan struct{} // nil: open
	waiting chan struct{} // gets one for each append that waits at the gate
	Null    bool          // keeps nothing, for benchmarks
}

// Hold makes appends wait and returns a channel that gets one value for each that does. Release lets them go.
func (l *Log) Hold() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gate, l.waiting = make(chan struct{}), make(chan struct{}, 1<<16)
	return l.waiting
}

// Release ends Hold.
func (l *Log) Release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gate != nil {
		close(l.gate)
		l.gate = nil
	}
}

// Fail makes appends fail with err after storing the first n records of each; nil ends it.
func (l *Log) Fail(err error, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail, l.only = err, n
}

// Append implements stream.Log.
func (l *Log) Append(ctx context.Context, recs []stream.Record) error {
	if l.Null {
		for i := range recs {
			recs[i].Pos = "1"
		}
		return nil
	}
	l.mu.Lock()
	gate, waiting := l.gate, l.waiting
	l.mu.Unlock()
	if gate != nil {
		waiting <- struct{}{}
		select {
		case <-gate:
		case <-ctx.Done():
			return &stream.PartialError{Failed: len(recs), Err: ctx.Err()}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.appends++
	stored := len(recs)
	if l.fail != nil {
		stored = min(stored, l.only)
	}
	for i := range recs[:stored] {
		recs[i].Shard = "shardId-000000000000"
		recs[i].Pos = stream.Position(fmt.Sprintf("%020d", len(l.recs)+1))
		recs[i].Time = time.Now()
		r := recs[i]
		r.Key, r.Data = strings.Clone(r.Key), append([]byte(nil), r.Data...)
		l.recs = append(l.recs, r)
	}
	if stored < len(recs) {
		return &stream.PartialError{Failed: len(recs) - stored, Err: l.fail}
	}
	return nil
}

// Records returns what is stored.
func (l *Log) Records() []stream.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]stream.Record(nil), l.recs...)
}

// Appends returns how many calls stored something.
func (l *Log) Appends() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.appends
}

// Shards implements stream.Log.
func (l *Log) Shards(context.Context) ([]stream.Shard, error) { return nil, stream.ErrNoShard }

// Read implements stream.Log.
func (l *Log) Read(context.Context, stream.ShardID, stream.Position) (stream.Reader, error) {
	return nil, stream.ErrNoShard
}

// Seek implements stream.Log.
func (l *Log) Seek(context.Context, stream.ShardID, time.Time) (stream.Position, error) {
	return "", stream.ErrNoShard
}

// Close implements stream.Log.
func (l *Log) Close() error { return nil }
