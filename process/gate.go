package process

import (
	"context"
	"sync"
)

// A Gate bounds how many invocations of handlers run at once, over all runners that share it. When there is a queue the highest
// Options.Priority goes first, the longest waiting among equals; but whoever has been overtaken gateOvertakes times goes next, so that
// nobody starves. The queue holds at most one invocation for each lane.
type Gate struct {
	mu    sync.Mutex // guards all below
	most  int
	in    int
	queue []*gateWaiter // in order of arrival
	waits uint64
}

type gateWaiter struct {
	priority  int
	overtaken int
	open      chan struct{} // closed when it may go
}

const gateOvertakes = 16

// NewGate returns a gate that lets most invocations run at once, at least one.
func NewGate(most int) *Gate { return &Gate{most: max(1, most)} }

// A GateStatus is the state of a Gate.
type GateStatus struct {
	Limit   int    `json:"limit"`
	Running int    `json:"running"`
	Waiting int    `json:"waiting"`
	Waits   uint64 `json:"waits"` // invocations that had to wait, since the start
}

// Status tells how busy the gate is.
func (g *Gate) Status() GateStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	return GateStatus{Limit: g.most, Running: g.in, Waiting: len(g.queue), Waits: g.waits}
}

// enter waits for a place; leave gives it back.
func (g *Gate) enter(ctx context.Context, priority int) error {
	g.mu.Lock()
	if g.in < g.most && len(g.queue) == 0 {
		g.in++
		g.mu.Unlock()
		return nil
	}
	w := &gateWaiter{priority: priority, open: make(chan struct{})}
	g.queue = append(g.queue, w)
	g.waits++
	g.mu.Unlock()
	select {
	case <-w.open:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, q := range g.queue {
		if q == w {
			g.queue = append(g.queue[:i], g.queue[i+1:]...)
			return ctx.Err()
		}
	}
	g.in-- // it was let in just now
	g.nextLocked()
	return ctx.Err()
}

func (g *Gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.in--
	g.nextLocked()
}

func (g *Gate) nextLocked() {
	for g.in < g.most && len(g.queue) > 0 {
		best := 0
		for i, w := range g.queue {
			if w.overtaken >= gateOvertakes {
				best = i
				break
			}
			if w.priority > g.queue[best].priority {
				best = i
			}
		}
		for _, w := range g.queue[:best] {
			w.overtaken++
		}
		w := g.queue[best]
		g.queue = append(g.queue[:best], g.queue[best+1:]...)
		g.in++
		close(w.open)
	}
}
