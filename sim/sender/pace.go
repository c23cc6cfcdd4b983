package sender

import (
	"context"
	"time"
)

// Tick is how finely a Pacer waits.
const Tick = 10 * time.Millisecond

// A Pacer lets moments pass in real time. It waits for a tick at a time and then lets through all that the tick made due: a
// timer for each of thousands of readings a second would cost more than the readings. Nothing is let through early.
type Pacer struct {
	now   time.Time // when the clock was read last
	timer *time.Timer
}

// Wait returns when at has come, or ctx is done.
func (p *Pacer) Wait(ctx context.Context, at time.Time) error {
	if !at.After(p.now) {
		return ctx.Err()
	}
	for {
		p.now = time.Now()
		wait := at.Sub(p.now)
		if wait <= 0 {
			return ctx.Err()
		}
		wait = max(wait, Tick)
		if p.timer == nil {
			p.timer = time.NewTimer(wait)
		} else {
			p.timer.Reset(wait)
		}
		select {
		case <-p.timer.C:
		case <-ctx.Done():
			p.timer.Stop()
			return ctx.Err()
		}
	}
}

// Behind tells how long ago at was when Wait last looked at the clock; zero if it is to come.
func (p *Pacer) Behind(at time.Time) time.Duration { return max(0, p.now.Sub(at)) }

// Every calls f each d until ctx is done.
func Every(ctx context.Context, d time.Duration, f func()) {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			f()
		case <-ctx.Done():
			return
		}
	}
}
