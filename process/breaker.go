package process

import (
	"errors"
	"sync"
	"time"
)

// A BreakerState is where a circuit breaker is.
type BreakerState string

// The states.
const (
	BreakerClosed   BreakerState = "closed"    // the function is called
	BreakerOpen     BreakerState = "open"      // it is not
	BreakerHalfOpen BreakerState = "half-open" // one invocation probes it
)

// A BreakerStatus is the state of a function's breaker.
type BreakerStatus struct {
	State    BreakerState `json:"state"`
	Failures int          `json:"failures"` // in a row
	Opened   uint64       `json:"opened"`   // how often
	Held     uint64       `json:"held"`     // invocations put off
	Until    time.Time    `json:"until,omitzero"`
}

var errCircuitOpen = errors.New("circuit breaker is open: the function has failed too often in a row")

// A breaker is a function's, over all its shards and lanes.
type breaker struct {
	after int // failures; 0: never opens
	pause time.Duration

	mu      sync.Mutex // guards the two below
	st      BreakerStatus
	probing bool
}

func newBreaker(o Breaker) *breaker {
	return &breaker{after: o.Failures, pause: o.Pause, st: BreakerStatus{State: BreakerClosed}}
}

// enter asks to call the function. wait > 0: not now, look again after it. Whoever may go on says what came of it by left.
func (b *breaker) enter(now time.Time) (wait time.Duration, probe bool) {
	if b.after == 0 {
		return 0, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.st.State == BreakerClosed:
		return 0, false
	case b.st.State == BreakerOpen && !now.Before(b.st.Until):
		b.st.State = BreakerHalfOpen
		b.probing = true
		return 0, true
	case b.st.State == BreakerHalfOpen && !b.probing: // the probe did not run
		b.probing = true
		return 0, true
	}
	b.st.Held++
	if b.st.State == BreakerHalfOpen {
		return max(b.pause/10, time.Millisecond), false // the probe is under way
	}
	return b.st.Until.Sub(now), false
}

type outcome int

const (
	succeeded outcome = iota
	failed
	notRun
)

// left tells what came of a call; opened, that the breaker has opened with it. A call that began before the breaker opened
// neither opens nor closes it.
func (b *breaker) left(now time.Time, o outcome, probe bool) (opened bool) {
	if b.after == 0 {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if probe {
		b.probing = false
	}
	switch {
	case o == notRun || !probe && b.st.State != BreakerClosed:
	case o == succeeded:
		b.st.State, b.st.Failures, b.st.Until = BreakerClosed, 0, time.Time{}
	default:
		if b.st.Failures++; probe || b.st.Failures >= b.after {
			b.st.State, b.st.Until = BreakerOpen, now.Add(b.pause)
			b.st.Opened++
			return true
		}
	}
	return false
}

func (b *breaker) status() BreakerStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.st
}
