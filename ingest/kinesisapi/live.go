package kinesisapi

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/milepost/milepost/ingest/kinesisapi/sequence"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/stream/seglog"
)

// live is what this process keeps of a stream besides its metadata.
type live struct {
	name string
	log  *seglog.Log

	refreshMu sync.Mutex // one refresh at a time
	shards    atomic.Pointer[[]*shardState]

	mu     sync.Mutex // guards the following; nothing blocks under it
	subs   map[subKey]*subscription
	scaler scaler
	calls  map[string]*bucket // by operation, for Throttle
}

// shardState is a shard as the hot paths want it: what sequence numbers are made of, counters, and allowances. It lives as long as
// the stream is listed, so that its counters never go back.
type shardState struct {
	id      stream.ShardID
	number  uint32
	created int64 // s

	inBytes, inRecords    atomic.Uint64
	outBytes, outRecords  atomic.Uint64
	inRefused, outRefused atomic.Uint64
	iteratorAge           atomic.Int64 // ms; of the last GetRecords

	mu                   sync.Mutex // guards the following
	putBytes, putRecords bucket
	getBytes, getCalls   bucket
}

func (d *Door) newLive(name string, log *seglog.Log) *live {
	l := &live{name: name, log: log, subs: map[subKey]*subscription{}, calls: map[string]*bucket{}}
	l.shards.Store(&[]*shardState{})
	return l
}

// refresh reads the shards anew, after resharding.
func (l *live) refresh(ctx context.Context) error {
	l.refreshMu.Lock()
	defer l.refreshMu.Unlock()
	shards, err := l.log.Shards(ctx)
	if err != nil {
		return err
	}
	was := *l.shards.Load()
	var now []*shardState
	for _, s := range shards {
		n, ok := sequence.ParseShard(string(s.ID))
		if !ok {
			panic("kinesisapi: bug: the log names a shard " + string(s.ID))
		}
		now = append(now, make([]*shardState, max(0, int(n)+1-len(now)))...)
		if int(n) < len(was) && was[n] != nil {
			now[n] = was[n]
			continue
		}
		now[n] = &shardState{id: s.ID, number: n, created: s.Created.Unix()}
	}
	l.shards.Store(&now)
	return nil
}

// shard returns the state of a shard by its number; nil if the stream has none of it.
func (l *live) shard(ctx context.Context, n uint32) (*shardState, error) {
	for try := 0; ; try++ {
		shards := *l.shards.Load()
		if int64(n) < int64(len(shards)) && shards[n] != nil {
			return shards[n], nil
		}
		if try == 1 {
			return nil, nil
		}
		if err := l.refresh(ctx); err != nil {
			return nil, err
		}
	}
}

func (s *shardState) sequence(number uint64, arrived time.Time) sequence.Number {
	return sequence.Number{Created: s.created, Number: number, Arrived: max(arrived.Unix(), s.created), Shard: s.number}
}

// A bucket is a token bucket. A request larger than what it holds at most may take it below zero: a record of 10 MiB passes a
// bucket of 1 MiB when that is full and then nothing does for 10 s, as at AWS.
type bucket struct {
	tokens float64
	at     time.Time
}

// take takes n tokens from a bucket that holds at most burst and fills at rate a second. The zero bucket is full.
func (b *bucket) take(n, rate, burst float64, now time.Time) bool {
	b.fill(rate, burst, now)
	if b.tokens < min(n, burst) {
		return false
	}
	b.tokens -= n
	return true
}

func (b *bucket) fill(rate, burst float64, now time.Time) {
	if b.at.IsZero() {
		b.tokens = burst
	} else if d := now.Sub(b.at); d > 0 {
		b.tokens = min(burst, b.tokens+rate*d.Seconds())
	}
	b.at = now
}

// What a shard takes and gives at AWS.
const (
	putBytesRate   = 1 << 20
	putRecordsRate = 1000
	getBytesRate   = 2 << 20
	getCallsRate   = 5
)

// admitPut takes a record's share of the shard's throughput.
func (s *shardState) admitPut(size int, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.putRecords.take(1, putRecordsRate, putRecordsRate, now) {
		return false
	}
	if !s.putBytes.take(float64(size), putBytesRate, putBytesRate, now) {
		s.putRecords.tokens++
		return false
	}
	return true
}

// admitGet lets a GetRecords pass; spend says afterwards what it returned. After a reply of 10 MiB the calls of 5 s are refused.
func (s *shardState) admitGet(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.getBytes.fill(getBytesRate, getBytesRate, now)
	return s.getBytes.tokens >= 0 && s.getCalls.take(1, getCallsRate, getCallsRate, now)
}

func (s *shardState) spendGet(size int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.getBytes.tokens -= float64(size)
}

// list returns the shards as the API lists them: by number, which the log allots in the order of creation.
func (l *live) list(ctx context.Context) ([]stream.Shard, error) {
	shards, err := l.log.Shards(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(shards, func(a, b stream.Shard) int {
		switch {
		case a.ID < b.ID:
			return -1
		case a.ID > b.ID:
			return 1
		}
		return 0
	})
	return shards, nil
}
