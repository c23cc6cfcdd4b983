package broker

import (
	"container/heap"
	"sync"
	"time"
)

// A clock ends sessions whose time is over and publishes wills whose delay is. Its lock is a leaf.
type clock struct {
	b     *Broker
	wake  chan struct{}
	stop  chan struct{}
	ended chan struct{} // closed when run has returned

	mu     sync.Mutex // guards all below
	due    dueHeap
	at     map[*client]*appointment
	purges map[*client]struct{}
	heirs  map[*client]struct{} // sessions that have ended, whose shared messages are to be passed on
}

type appointment struct {
	c     *client
	when  time.Time
	index int
}

type dueHeap []*appointment

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].when.Before(h[j].when) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push is for container/heap.
func (h *dueHeap) Push(x any) {
	a, _ := x.(*appointment)
	a.index = len(*h)
	*h = append(*h, a)
}

// Pop is for container/heap.
func (h *dueHeap) Pop() any {
	old := *h
	a := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return a
}

const (
	sweepEvery = time.Minute // expired retained messages
	purgeEvery = time.Minute // one session's expired messages
)

func newClock(b *Broker) *clock {
	return &clock{
		b: b, wake: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{}),
		at: map[*client]*appointment{}, purges: map[*client]struct{}{}, heirs: map[*client]struct{}{},
	}
}

// set makes c due, instead of when it was.
func (k *clock) set(c *client, when time.Time) {
	k.mu.Lock()
	if a := k.at[c]; a != nil {
		a.when = when
		heap.Fix(&k.due, a.index)
	} else {
		a = &appointment{c: c, when: when}
		k.at[c] = a
		heap.Push(&k.due, a)
	}
	first := k.due[0].c == c
	k.mu.Unlock()
	if first {
		k.rouse()
	}
}

// clear forgets c.
func (k *clock) clear(c *client) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.purges, c)
	if a := k.at[c]; a != nil {
		heap.Remove(&k.due, a.index)
		delete(k.at, c)
	}
}

// purge asks for a look at the queue of a session that is not connected: messages that have expired there take the place of newer
// ones.
func (k *clock) purge(c *client) {
	if now := time.Now(); now.Sub(c.purged) >= purgeEvery {
		c.purged = now
		k.mu.Lock()
		k.purges[c] = struct{}{}
		k.mu.Unlock()
		k.rouse()
	}
}

// inherit asks for the next piece of what c had to be passed on.
func (k *clock) inherit(c *client) {
	k.mu.Lock()
	k.heirs[c] = struct{}{}
	k.mu.Unlock()
	k.rouse()
}

func (k *clock) rouse() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *clock) run() {
	defer close(k.ended)
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-k.stop:
			return
		case <-k.wake:
		case <-timer.C:
		case <-sweep.C:
			k.b.sweep()
		}
		next := k.serve()
		timer.Reset(next)
	}
}

// serve does what is due and returns how long nothing will be.
func (k *clock) serve() time.Duration {
	for {
		now := time.Now()
		k.mu.Lock()
		var c *client
		do := k.b.lapse
		wait := time.Hour
		for c = range k.purges {
			do = func(c *client, _ time.Time) { k.b.purge(c) }
			delete(k.purges, c)
			break
		}
		if c == nil {
			for c = range k.heirs {
				do = func(c *client, _ time.Time) { k.b.inherit(c) }
				delete(k.heirs, c)
				break
			}
		}
		if c == nil && len(k.due) > 0 {
			if wait = k.due[0].when.Sub(now); wait <= 0 {
				c = k.due[0].c
				heap.Pop(&k.due)
				delete(k.at, c)
			}
		}
		k.mu.Unlock()
		if c == nil {
			return wait
		}
		do(c, now)
	}
}

func (k *clock) close() {
	close(k.stop)
	<-k.ended
}
