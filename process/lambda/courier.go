package lambda

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// A courier carries out the effects of one kind, at least once each: a refusal, or one that has failed for too long, is given up.
// One that fails is tried again later, and delays no other.
type courier struct {
	store    state.Store
	kind     string
	parallel int
	carry    func(ctx context.Context, e *state.Effect, tries int) error // *refusal: never; *laterError: not before; else: try again
	giveUp   func(ctx context.Context, e *state.Effect, why error) error
	log      *slog.Logger
	done     func(err error) // counts

	patience   time.Duration // for one effect, in this run of the program
	minBackoff time.Duration
	maxBackoff time.Duration
}

// A laterError says when to try again.
type laterError struct {
	err   error
	after time.Duration
}

func (e *laterError) Error() string { return e.err.Error() }
func (e *laterError) Unwrap() error { return e.err }

// An attempt is one that failed, or is under way.
type attempt struct {
	n       int
	since   time.Time
	next    time.Time
	running bool
}

const (
	courierPage  = 64
	courierHeld  = 4096
	courierGrace = 2 * time.Second
)

type outcome struct {
	id       string
	finished bool
	after    time.Duration
}

// run carries until ctx ends, or until draining is closed and nothing is left: then each is tried once more and given up.
func (c *courier) run(ctx context.Context, draining <-chan struct{}) {
	// Attempts under way get a moment when the program stops.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stopped := context.AfterFunc(ctx, func() {
		t := time.NewTimer(courierGrace)
		defer t.Stop()
		select {
		case <-t.C:
		case <-work.Done():
		}
		cancel()
	})
	defer stopped()
	var wg sync.WaitGroup
	defer wg.Wait()
	tries := map[string]*attempt{}
	outcomes := make(chan outcome, c.parallel)
	busy := 0
	for ctx.Err() == nil {
		drain := false
		select {
		case <-draining:
			drain = true
		default:
		}
		effects, changed, err := c.store.Pending(ctx, c.kind, min(courierPage+len(tries), courierHeld))
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, state.ErrClosed) {
				c.log.WarnContext(ctx, "read outbox", "kind", c.kind, "error", err)
			}
			if !sleep(ctx, time.Second) {
				return
			}
			continue
		}
		if len(effects) == 0 && drain && busy == 0 {
			return
		}
		var next time.Time
		for i := range effects {
			e := effects[i]
			a := tries[e.ID]
			if a == nil {
				a = &attempt{since: time.Now()}
				tries[e.ID] = a
			}
			switch {
			case a.running:
				continue
			case busy == c.parallel:
			case drain || !a.next.After(time.Now()):
				a.running = true
				busy++
				n, since := a.n, a.since
				wg.Go(func() { outcomes <- c.attempt(work, &e, n, since, drain) }) // outcomes has room for all
				continue
			}
			if next.IsZero() || a.next.Before(next) {
				next = a.next
			}
		}
		var timer <-chan time.Time
		if !next.IsZero() && busy < c.parallel {
			timer = time.After(time.Until(next))
		}
		waitDrain := draining
		if drain {
			waitDrain = nil
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer:
		case <-waitDrain:
		case o := <-outcomes:
			busy--
			if o.finished {
				delete(tries, o.id)
				continue
			}
			a := tries[o.id]
			a.running, a.next = false, time.Now().Add(o.after)
			a.n++
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (c *courier) attempt(ctx context.Context, e *state.Effect, n int, since time.Time, last bool) outcome {
	err := c.carry(ctx, e, n)
	if err != nil && ctx.Err() != nil {
		return outcome{id: e.ID, after: time.Hour} // stopped: the next run tries again
	}
	c.done(err)
	backoff := min(c.maxBackoff, c.minBackoff<<min(n, 20))
	if err != nil {
		var no *refusal
		if !errors.As(err, &no) && !last && time.Since(since) < c.patience {
			if n == 0 {
				c.log.WarnContext(ctx, "outbox waits", "kind", c.kind, "id", e.ID, "error", err)
			}
			var later *laterError
			if errors.As(err, &later) {
				backoff = later.after
			}
			return outcome{id: e.ID, after: backoff}
		}
		c.log.ErrorContext(ctx, "given up", "kind", c.kind, "id", e.ID, "error", err)
		if err := c.giveUp(ctx, e, err); err != nil {
			c.log.WarnContext(ctx, "outbox waits", "kind", c.kind, "id", e.ID, "error", err)
			return outcome{id: e.ID, after: max(backoff, time.Second)}
		}
	}
	if err := c.store.Done(ctx, c.kind, e.ID); err != nil {
		c.log.WarnContext(ctx, "mark as carried out", "kind", c.kind, "id", e.ID, "error", err)
		return outcome{id: e.ID, after: max(backoff, time.Second)}
	}
	return outcome{id: e.ID, finished: true}
}

// bury appends what cannot be delivered to the dead letters.
func (r *Registry) bury(ctx context.Context, d stream.DeadLetter) error {
	if r.cfg.DeadLetters == nil {
		return fmt.Errorf("there is no stream for dead letters, so it stays in the outbox: %s", d.Reason)
	}
	rec, err := d.Record()
	if err != nil {
		return fmt.Errorf("write dead letter %s: %w", d.ID, err)
	}
	if err := r.cfg.DeadLetters.Append(ctx, []stream.Record{rec}); err != nil {
		return fmt.Errorf("append dead letter %s: %w", d.ID, err)
	}
	return nil
}
