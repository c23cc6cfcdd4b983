package mqtt

import (
	"context"
	"sync"

	"github.com/milepost/milepost/ingest"
)

const (
	// queueShare is the part of InFlightBytes that QoS 0 may take, so that messages nobody waits for cannot shut out those
	// that somebody does (P8).
	queueShare = 4
	// queueOverhead is what a queued message costs besides its payload: the packet around it and its entry.
	queueOverhead = 256
)

// A queue holds QoS 0 messages for one writer that stores whatever has gathered in one Append. QoS 0 is not acknowledged, so
// its readers need not wait for the disk; what bounds them is bytes. When it is full a message is dropped and counted: that
// is what QoS 0 permits, and stopping to read would hold up the same device's QoS 1.
type queue struct {
	door *ingest.Door
	most int64
	wake chan struct{} // holds one when items is not empty

	mu     sync.Mutex // guards what follows; held for an append to a slice
	items  []ingest.Payload
	bytes  int64
	closed bool
}

func newQueue(door *ingest.Door) *queue {
	return &queue{door: door, most: door.Limits().InFlightBytes / queueShare, wake: make(chan struct{}, 1)}
}

// put queues a message, whose data it keeps, or tells that there is no room.
func (q *queue) put(p ingest.Payload) bool {
	size := int64(len(p.Data)) + queueOverhead
	if !q.door.TryReserve(size) {
		return false
	}
	q.mu.Lock()
	ok := !q.closed && q.bytes+size <= q.most
	first := len(q.items) == 0
	if ok {
		q.items = append(q.items, p)
		q.bytes += size
	}
	q.mu.Unlock()
	if !ok {
		q.door.Unreserve(size)
		return false
	}
	if first {
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
	return true
}

// run stores what is queued until close, and then the rest. While an Append is under way the next batch gathers.
func (q *queue) run(ctx context.Context) {
	var spare []ingest.Payload
	var receipt ingest.Receipt
	for {
		<-q.wake
		q.mu.Lock()
		items, bytes, closed := q.items, q.bytes, q.closed
		q.items, q.bytes = spare, 0
		q.mu.Unlock()
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
	select {
	case q.wake <- struct{}{}:
	default:
	}
}
