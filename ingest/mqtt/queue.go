package mqtt

import (
	"context"
	"sync"
	"time"

	"github.com/milepost/milepost/ingest"
)

const (
	// queueShare is the part of InFlightBytes that QoS 0 may take, so that messages nobody waits for cannot shut out those
	// that somebody does (P8).
	queueShare = 4
	// queueOverhead is what a queued message costs besides its payload: the packet around it and its entry.
	queueOverhead = 256
	// fullWait is how long a reader waits for room in a full queue.
	fullWait = 250 * time.Millisecond
)

// A queue holds QoS 0 messages for one writer that stores whatever has gathered in one Append. QoS 0 is not acknowledged, so
// its readers need not wait for the disk; what bounds them is bytes. When it is full its readers stop reading until the
// writer has taken what is there; if that takes longer than fullWait the log is in trouble, and until the next time that
// the writer comes messages are dropped and counted. That is what QoS 0 permits, and a reader that stood still for long
// would hold up the same device's QoS 1 and pings.
type queue struct {
	door *ingest.Door
	most int64
	wake chan struct{} // holds one when items is not empty

	mu     sync.Mutex // guards what follows; held for an append to a slice
	items  []ingest.Payload
	bytes  int64
	room   chan struct{} // closed when the writer has taken items; nil: nobody waits
	stuck  bool          // fullWait has passed since it last did
	closed bool
}

func newQueue(door *ingest.Door) *queue {
	return &queue{door: door, most: door.Limits().InFlightBytes / queueShare, wake: make(chan struct{}, 1)}
}

// put queues a message, whose data it keeps, or tells that there is no room.
func (q *queue) put(p ingest.Payload) bool {
	for {
		room, ok := q.tryPut(p)
		if room == nil {
			return ok
		}
		t := time.NewTimer(fullWait)
		select {
		case <-room:
			t.Stop()
		case <-t.C:
			q.mu.Lock()
			q.stuck = q.stuck || q.room == room
			q.mu.Unlock()
		}
	}
}

// tryPut returns what to wait for if the queue is full.
func (q *queue) tryPut(p ingest.Payload) (room <-chan struct{}, ok bool) {
	size := int64(len(p.Data)) + queueOverhead
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return nil, false
	case q.bytes+size <= q.most && q.door.TryReserve(size):
	case q.stuck || len(q.items) == 0: // others hold what is in flight: no writer of ours will free it
		return nil, false
	default:
		if q.room == nil {
			q.room = make(chan struct{})
		}
		return q.room, false
	}
	q.items = append(q.items, p)
	q.bytes += size
	if len(q.items) == 1 {
		q.signal()
	}
	return nil, true
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take returns what is queued and leaves spare in its place.
func (q *queue) take(spare []ingest.Payload) (items []ingest.Payload, bytes int64, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	items, bytes = q.items, q.bytes
	q.items, q.bytes, q.stuck = spare, 0, false
	if q.room != nil {
		close(q.room)
		q.room = nil
	}
	return items, bytes, q.closed
}

// run stores what is queued until close, and then the rest. While an Append is under way the next batch gathers.
func (q *queue) run(ctx context.Context) {
	var spare []ingest.Payload
	var receipt ingest.Receipt
	for {
		<-q.wake
		items, bytes, closed := q.take(spare)
		if len(items) > 0 {
			q.door.AdmitAll(ctx, items, &receipt)
			q.door.Unreserve(bytes)
			clear(items)
		}
		spare = items[:0]
		if closed {
			return
		}
	}
}

// close lets run store what is queued and return.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.signal()
}
