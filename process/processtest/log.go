// Package processtest has what tests of functions need: a stream.Log in memory.
package processtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/milepost/milepost/stream"
)

// A Log is a stream.Log in memory, for tests. What it holds outlives crashes of everything else.
type Log struct {
	// Strict makes readers reuse their memory at every call, so that whoever keeps a record longer than allowed reads rubbish.
	// Set it before use.
	Strict bool

	mu     sync.Mutex // guards all below
	shards []*shard
	next   int // number of the next shard
	closed bool
	fail   func(op string) error
}

type shard struct {
	stream.Shard
	recs    []stream.Record
	trimmed int // records that retention has removed, all before recs
	grown   chan struct{}
}

var (
	_ stream.Log    = (*Log)(nil)
	_ stream.Tipper = (*Log)(nil)
)

// NewLog returns an empty log of n shards.
func NewLog(n int) *Log {
	l := &Log{}
	step := ^uint64(0)/uint64(n) + 1
	for i := range n {
		from, to := stream.Hash{Hi: uint64(i) * step}, stream.MaxHash
		if i < n-1 {
			to = stream.Hash{Hi: uint64(i+1) * step}.Prev()
		}
		l.addLocked(nil, from, to)
	}
	return l
}

func (l *Log) addLocked(parents []stream.ShardID, from, to stream.Hash) {
	s := &shard{grown: make(chan struct{})}
	s.Shard = stream.Shard{
		ID:      stream.ShardID(fmt.Sprintf("shardId-%012d", l.next)),
		Parents: parents, From: from, To: to, Created: time.Now(),
	}
	l.next++
	l.shards = append(l.shards, s)
}

// FailWith makes reads ("next", "read") and appends ("append") fail with what f returns; nil mends the log.
func (l *Log) FailWith(f func(op string) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = f
}

func (l *Log) failLocked(op string) error {
	if l.closed {
		return stream.ErrClosed
	}
	if l.fail != nil {
		return l.fail(op)
	}
	return nil
}

func pos(n int) stream.Position { return stream.Position(fmt.Sprintf("%012d", n)) }

// Append implements stream.Log.
func (l *Log) Append(_ context.Context, recs []stream.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.failLocked("append"); err != nil {
		return err
	}
	now := time.Now().Truncate(time.Millisecond)
	for i := range recs {
		r := &recs[i]
		h := stream.KeyHash(r.Key)
		if r.Hash != nil {
			h = *r.Hash
		}
		for _, s := range l.shards {
			if s.Closed || !s.Contains(h) {
				continue
			}
			r.Shard, r.Pos, r.Time = s.ID, pos(s.trimmed+len(s.recs)+1), now
			kept := *r
			kept.Key, kept.Data, kept.Hash = strings.Clone(r.Key), append([]byte{}, r.Data...), nil
			s.recs = append(s.recs, kept)
			s.wakeLocked()
		}
	}
	return nil
}

func (s *shard) wakeLocked() {
	close(s.grown)
	s.grown = make(chan struct{})
}

// Put appends one record.
func (l *Log) Put(key, data string) stream.Record {
	recs := []stream.Record{{Key: key, Data: []byte(data)}}
	if err := l.Append(context.Background(), recs); err != nil {
		panic(fmt.Sprintf("processtest: put into a log that fails: %v", err))
	}
	return recs[0]
}

// All returns copies of all records of all shards, shard by shard.
func (l *Log) All() []stream.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []stream.Record
	for _, s := range l.shards {
		out = append(out, s.recs...)
	}
	return out
}

func (l *Log) findLocked(id stream.ShardID) *shard {
	for _, s := range l.shards {
		if s.ID == id {
			return s
		}
	}
	return nil
}

func (s *shard) closeLocked() {
	s.Closed = true
	if n := s.trimmed + len(s.recs); n > 0 {
		s.End = pos(n)
	}
	s.wakeLocked()
}

// Split closes an open shard and opens two for the halves of its range.
func (l *Log) Split(id stream.ShardID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.findLocked(id)
	if s == nil || s.Closed || s.To.Hi-s.From.Hi < 2 {
		return false
	}
	mid := stream.Hash{Hi: s.From.Hi + (s.To.Hi-s.From.Hi)/2}
	l.addLocked([]stream.ShardID{id}, s.From, mid.Prev())
	l.addLocked([]stream.ShardID{id}, mid, s.To)
	s.closeLocked()
	return true
}

// Merge closes two open neighbours and opens one for both.
func (l *Log) Merge(a, b stream.ShardID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	x, y := l.findLocked(a), l.findLocked(b)
	if x == nil || y == nil || x.Closed || y.Closed || x.To.Next() != y.From || x.To == stream.MaxHash {
		return false
	}
	l.addLocked([]stream.ShardID{a, b}, x.From, y.To)
	x.closeLocked()
	y.closeLocked()
	return true
}

// Trim removes the first n records of a shard, as retention does.
func (l *Log) Trim(id stream.ShardID, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.findLocked(id)
	n = min(n, len(s.recs))
	s.recs = s.recs[n:]
	s.trimmed += n
}

// Drop removes a closed shard, as retention does once all of it is too old.
func (l *Log) Drop(id stream.ShardID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shards = slices.DeleteFunc(l.shards, func(s *shard) bool { return s.ID == id && s.Closed })
}

// Shards implements stream.Log.
func (l *Log) Shards(context.Context) ([]stream.Shard, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.failLocked("shards"); err != nil {
		return nil, err
	}
	out := make([]stream.Shard, 0, len(l.shards))
	for _, s := range l.shards {
		out = append(out, s.Shard)
	}
	return out, nil
}

// Seek implements stream.Log.
func (l *Log) Seek(_ context.Context, id stream.ShardID, t time.Time) (stream.Position, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.findLocked(id)
	if s == nil {
		return "", stream.ErrNoShard
	}
	n := sort.Search(len(s.recs), func(i int) bool { return !s.recs[i].Time.Before(t) })
	if s.trimmed+n == 0 {
		return "", nil
	}
	return pos(s.trimmed + n), nil
}

// Tip implements stream.Tipper.
func (l *Log) Tip(_ context.Context, id stream.ShardID) (stream.Tip, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.findLocked(id)
	if s == nil {
		return stream.Tip{}, stream.ErrNoShard
	}
	n := s.trimmed + len(s.recs)
	if n == 0 {
		return stream.Tip{}, nil
	}
	t := stream.Tip{Pos: pos(n), Seq: uint64(n)}
	if len(s.recs) > 0 {
		t.Time = s.recs[len(s.recs)-1].Time
	}
	return t, nil
}

// Count implements stream.Tipper.
func (l *Log) Count(_ stream.ShardID, p stream.Position) uint64 {
	n, _ := index(p)
	return uint64(n)
}

func index(p stream.Position) (int, error) {
	if p == "" {
		return 0, nil
	}
	n := 0
	_, err := fmt.Sscanf(string(p), "%d", &n)
	return n, err
}

// Close implements stream.Log.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, s := range l.shards {
		s.wakeLocked()
	}
	return nil
}

// Read implements stream.Log.
func (l *Log) Read(_ context.Context, id stream.ShardID, after stream.Position) (stream.Reader, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.failLocked("read"); err != nil {
		return nil, err
	}
	s := l.findLocked(id)
	if s == nil {
		return nil, stream.ErrNoShard
	}
	n, err := index(after)
	if err != nil {
		return nil, fmt.Errorf("position %q: %w", after, err)
	}
	return &reader{log: l, shard: s, at: n}, nil
}

type reader struct {
	log    *Log
	shard  *shard
	at     int // how many records of the shard, trimmed ones included, precede the next
	recs   []stream.Record
	buf    []byte
	closed bool
}

var errReaderClosed = errors.New("reader is closed")

// Next fails as FailWith says before it gives out records.
func (r *reader) Next(ctx context.Context, most int) ([]stream.Record, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r.log.mu.Lock()
		err := r.log.failLocked("next")
		s := r.shard
		r.at = max(r.at, s.trimmed)
		recs := s.recs[min(r.at-s.trimmed, len(s.recs)):]
		grown, ended := s.grown, s.Closed
		r.log.mu.Unlock()
		switch {
		case r.closed:
			return nil, errReaderClosed
		case err != nil:
			return nil, err
		case len(recs) > 0:
			recs = recs[:min(len(recs), max(most, 1))]
			r.at += len(recs)
			if r.log.Strict {
				return r.borrow(recs), nil
			}
			return recs[:len(recs):len(recs)], nil
		case ended:
			return nil, io.EOF
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// borrow copies records into the reader's own memory, which the call before this one gave out too.
func (r *reader) borrow(recs []stream.Record) []stream.Record {
	for i := range r.buf {
		r.buf[i] = '#'
	}
	clear(r.recs)
	r.buf, r.recs = r.buf[:0], r.recs[:0]
	n := 0
	for i := range recs {
		n += len(recs[i].Key) + len(recs[i].Pos) + len(recs[i].Data)
	}
	r.buf = slices.Grow(r.buf, n)
	for _, c := range recs {
		k := len(r.buf)
		r.buf = append(r.buf, c.Key...)
		p := len(r.buf)
		r.buf = append(r.buf, c.Pos...)
		d := len(r.buf)
		r.buf = append(r.buf, c.Data...)
		c.Key = unsafe.String(unsafe.SliceData(r.buf[k:p]), p-k)
		c.Pos = stream.Position(unsafe.String(unsafe.SliceData(r.buf[p:d]), d-p))
		c.Data = r.buf[d:len(r.buf):len(r.buf)]
		r.recs = append(r.recs, c)
	}
	return r.recs
}

// Close makes a later Next fail, so that a use after it shows.
func (r *reader) Close() error {
	r.closed = true
	return nil
}
