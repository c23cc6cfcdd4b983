package seglog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/milepost/milepost/stream"
)

// A request carries the encoded records of one Append to the committer and its answer back. It is pooled.
//
// Who owns it: the producer until push; then the committer, until it sends on done; then the producer again, who gives it
// back to the pool. A producer whose context ends meanwhile says so by state; then the committer gives it back.
type request struct {
	routes *routes
	buf    []byte  // records, those of one shard together
	pieces []piece // what buf consists of
	index  []int32 // by record: its piece; -1: not stored
	bySlot []int32 // by slot of routes: its piece + 1; all zero between uses
	count  int     // records to store
	room   int64   // acquired of Log.room; the committer releases it

	state atomic.Uint32
	done  chan struct{} // capacity 1
	time  int64         // ms; set by the committer
	err   error         // set by the committer
	pos   positions
}

// piece is the records of one request for one shard. The committer turns pieces of the same shard into one block.
type piece struct {
	slot     int32
	count    uint32
	size     int
	off, end int    // in buf
	seq      uint64 // of its first record; set by the committer
}

const (
	stateWaiting = iota
	stateAnswered
	stateAbandoned
)

const (
	maxRequest  = 4 << 20 // encoded; a larger call is stored in several steps, in order
	maxRetained = 8 << 20 // a request with a larger buffer is left to the garbage collector
)

// errReroute: the shard of a record was closed between routing and writing; route again.
var errReroute = errors.New("seglog: shard closed meanwhile")

// requestPool keeps requests and their buffers for reuse.
type requestPool struct{ pool sync.Pool }

func (p *requestPool) get() *request {
	if r, ok := p.pool.Get().(*request); ok {
		return r
	}
	return &request{done: make(chan struct{}, 1)}
}

func (p *requestPool) put(r *request) {
	if cap(r.buf) > maxRetained {
		return
	}
	r.routes, r.err, r.count, r.pieces = nil, nil, 0, r.pieces[:0]
	r.state.Store(stateWaiting)
	p.pool.Put(r)
}

// Append implements stream.Log. Records of a call share a group, so after a crash either all of them are there or none, unless
// they exceed 4 MiB together.
func (l *Log) Append(ctx context.Context, recs []stream.Record) error {
	begin := time.Now()
	for i := range recs {
		recs[i].Shard, recs[i].Pos, recs[i].Time = "", "", time.Time{}
	}
	if err := ctx.Err(); err != nil || len(recs) == 0 {
		return err
	}
	var why error // the first reason why a record is not stored
	stored := 0
	for rest := recs; len(rest) > 0; {
		n, ok, bad, err := l.appendSome(ctx, rest)
		if errors.Is(err, errReroute) {
			continue
		}
		if why == nil {
			why = bad
		}
		stored += ok
		if err != nil {
			if why == nil && stored == 0 {
				return err // nothing at all is stored
			}
			if why == nil {
				why = err
			}
			break
		}
		rest = rest[n:]
	}
	l.met.append.Observe(time.Since(begin).Seconds())
	if stored < len(recs) {
		return &stream.PartialError{Failed: len(recs) - stored, Err: why}
	}
	return nil
}

// appendSome stores the first records, as many as fit a request. n is how many it dealt with, stored how many of those are
// durable; bad says why some of the n cannot be stored, err why none of them is.
func (l *Log) appendSome(ctx context.Context, recs []stream.Record) (n, stored int, bad, err error) {
	r := l.store.requests.get()
	r.routes = l.routes.Load()
	n, size, bad := l.route(r, recs)
	if r.count == 0 {
		l.store.requests.put(r)
		return n, 0, bad, nil
	}
	r.encode(recs[:n], size)
	r.room = min(int64(size), l.store.cfg.QueueBytes)
	if err := l.room.Acquire(ctx, r.room); err != nil {
		l.store.requests.put(r)
		return n, 0, bad, err
	}
	if err := l.queue.push(r); err != nil {
		l.room.Release(r.room)
		l.store.requests.put(r)
		return n, 0, bad, err
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		if r.state.CompareAndSwap(stateWaiting, stateAbandoned) {
			return n, 0, bad, fmt.Errorf("append: outcome unknown: %w", ctx.Err())
		}
		<-r.done
	}
	if err = r.err; err == nil {
		stored = r.count
		r.answer(recs[:n])
	}
	l.store.requests.put(r)
	return n, stored, bad, err
}

// route finds each record's shard and sums up the sizes of the pieces. It stops before the request gets too large; n is how many
// records it has seen, size what those take that can be stored.
func (l *Log) route(r *request, recs []stream.Record) (n, size int, bad error) {
	rt := r.routes
	if len(r.bySlot) < len(rt.shards) {
		r.bySlot = make([]int32, len(rt.shards))
	}
	if cap(r.index) < len(recs) {
		r.index = make([]int32, len(recs))
	}
	r.index = r.index[:len(recs)]
	limit := int(l.maxRecord.Load())
	var lastKey string
	lastSlot := -1
	for ; n < len(recs); n++ {
		rec := &recs[n]
		if len(rec.Key) > maxKey || len(rec.Key)+len(rec.Data) > limit {
			r.index[n] = -1
			if bad == nil {
				bad = tooLarge(rec, limit)
			}
			continue
		}
		s := recordSize(rec.Key, rec.Data)
		if size > 0 && size+s > maxRequest {
			break
		}
		size += s
		slot := lastSlot
		switch {
		case rec.Hash != nil:
			slot = rt.slot(*rec.Hash)
		case lastSlot < 0 || rec.Key != lastKey:
			slot = rt.slot(l.store.keys.hash(rec.Key))
			lastKey, lastSlot = rec.Key, slot
		}
		p := r.bySlot[slot]
		if p == 0 {
			r.pieces = append(r.pieces, piece{slot: int32(slot)})
			p = int32(len(r.pieces))
			r.bySlot[slot] = p
		}
		r.index[n] = p - 1
		pc := &r.pieces[p-1]
		pc.count++
		pc.size += s
		r.count++
	}
	for i := range r.pieces {
		r.bySlot[r.pieces[i].slot] = 0
	}
	return n, size, bad
}

func tooLarge(rec *stream.Record, limit int) error {
	if len(rec.Key) > maxKey {
		return fmt.Errorf("%w: the key has %d bytes, at most %d are allowed", stream.ErrTooLarge, len(rec.Key), maxKey)
	}
	return fmt.Errorf("%w: %d bytes, the stream allows %d", stream.ErrTooLarge, len(rec.Key)+len(rec.Data), limit)
}

// encode writes the records into the buffer, piece by piece.
func (r *request) encode(recs []stream.Record, size int) {
	if cap(r.buf) < size {
		r.buf = make([]byte, size)
	}
	r.buf = r.buf[:size]
	at := 0
	for i := range r.pieces {
		p := &r.pieces[i]
		p.off, p.end = at, at
		at += p.size
	}
	for i := range recs {
		if r.index[i] < 0 {
			continue
		}
		p := &r.pieces[r.index[i]]
		p.end += putRecord(r.buf[p.end:], recs[i].Key, recs[i].Data)
	}
}

// answer tells the records where they are.
func (r *request) answer(recs []stream.Record) {
	at := time.UnixMilli(r.time)
	for i := range recs {
		if r.index[i] < 0 {
			continue
		}
		p := &r.pieces[r.index[i]]
		rec := &recs[i]
		rec.Shard, rec.Time = r.routes.shards[p.slot].id, at
		rec.Pos = r.pos.next(p.seq)
		p.seq++
	}
}

// queue is where requests wait for the committer. What waits is bounded by Log.room.
type queue struct {
	mu     sync.Mutex // guards the following
	reqs   []*request
	size   int   // bytes of reqs
	closed error // refuses further requests

	ready chan struct{} // capacity 1: something may be waiting
}

func (q *queue) push(r *request) error {
	q.mu.Lock()
	if q.closed != nil {
		defer q.mu.Unlock()
		return q.closed
	}
	q.reqs = append(q.reqs, r)
	q.size += len(r.buf)
	q.mu.Unlock()
	q.wake()
	return nil
}

func (q *queue) wake() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// take moves requests of up to max bytes together, at least one if there is any, to into. more: others are left.
func (q *queue) take(max int, into []*request) (taken []*request, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, size := 0, 0
	for ; n < len(q.reqs); n++ {
		s := len(q.reqs[n].buf)
		if n > 0 && size+s > max {
			break
		}
		size += s
	}
	q.size -= size
	into = append(into, q.reqs[:n]...)
	rest := copy(q.reqs, q.reqs[n:])
	clear(q.reqs[rest:])
	q.reqs = q.reqs[:rest]
	return into, rest > 0
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.reqs)
}

func (q *queue) waiting() (bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.size
}

// close refuses requests from now on; those that wait stay. The first reason wins.
func (q *queue) close(why error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed == nil {
		q.closed = why
	}
}
