package lambda

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// States of a mapping.
const (
	stateCreating  = "Creating"
	stateEnabling  = "Enabling"
	stateEnabled   = "Enabled"
	stateDisabling = "Disabling"
	stateDisabled  = "Disabled"
	stateUpdating  = "Updating"
	stateDeleting  = "Deleting"
)

// reasonUser is the StateTransitionReason of everything that a person or the file asked for.
const reasonUser = "User action"

// A mapping is a function on a stream.
type mapping struct {
	r      *Registry
	uuid   string
	result atomic.Pointer[string] // LastProcessingResult; nil: none yet
	woken  chan struct{}          // holds one
	ended  chan struct{}          // closed when its conductor has ended

	mu      sync.Mutex // guards the rest
	def     *definition
	state   string
	problem string // why it does not run, though it should
	runner  *process.Runner
	run     *running
	resets  []*reset
}

// A reset is a request to move a mapping.
type reset struct {
	to   process.Target
	done chan error // has room for one
}

// beginLocked starts the conductor of a mapping.
func (r *Registry) beginLocked(d *definition) {
	m := &mapping{r: r, uuid: d.UUID, def: d, state: stateCreating, woken: make(chan struct{}, 1), ended: make(chan struct{})}
	if d.Deleting {
		m.state = stateDeleting
	}
	r.mappings[d.UUID] = m
	r.work.Go(m.conduct) // Close waits
}

func (m *mapping) wake() {
	select {
	case m.woken <- struct{}{}:
	default: // it will look
	}
}

// A view is a mapping at one moment.
type view struct {
	def    *definition
	state  string
	result string
	runner *process.Runner // nil: it does not run
	run    *running
}

func (m *mapping) view() view {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := view{def: m.def, state: m.state, result: resultNone, runner: m.runner, run: m.run}
	if p := m.result.Load(); p != nil {
		v.result = *p
	}
	if m.problem != "" {
		v.result = "PROBLEM: " + m.problem
	}
	return v
}

// conduct makes what runs agree with the definition, until the mapping is deleted or the registry closes.
func (m *mapping) conduct() {
	r := m.r
	defer close(m.ended)
	draining := make(chan struct{})
	var carrying sync.WaitGroup
	defer carrying.Wait()
	carrying.Go(func() { m.failures().run(r.ctx, draining) }) // the line above waits
	runs := uint64(0)                                         // version of the definition that runs
	tries := 0
	for {
		m.mu.Lock()
		d, resets := m.def, m.resets
		m.resets = nil
		running := m.runner != nil
		m.mu.Unlock()
		if running && (r.ctx.Err() != nil || d.Deleting || !d.Enabled || runs != d.Version || len(resets) > 0) {
			m.stop()
		}
		for _, q := range resets {
			if r.ctx.Err() != nil {
				q.done <- errClosed
				continue
			}
			q.done <- m.move(d, q.to)
		}
		if r.ctx.Err() != nil {
			m.refuse()
			return
		}
		var again <-chan time.Time
		switch err := m.agree(d); {
		case err != nil:
			m.mu.Lock()
			m.problem = err.Error()
			m.mu.Unlock()
			if tries == 0 {
				r.cfg.Log.Warn("mapping waits", "mapping", m.uuid, "function", d.Function, "stream", d.Stream, "error", err)
			}
			again = time.After(min(time.Minute, 100*time.Millisecond<<min(tries, 12)))
			tries++
		case d.Deleting:
			close(draining)
			carrying.Wait()
			if err := m.forget(d); err != nil {
				if r.ctx.Err() == nil {
					r.cfg.Log.Warn("delete mapping", "mapping", m.uuid, "error", err)
					sleep(r.ctx, time.Second)
				}
				if r.ctx.Err() != nil {
					m.refuse()
					return // the next start goes on
				}
				draining = make(chan struct{})
				carrying.Go(func() { m.failures().run(r.ctx, draining) })
				m.wake()
				break
			}
			m.refuse()

			return
		default:
			runs, tries = d.Version, 0
		}
		select {
		case <-m.woken:
		case <-again:
		case <-r.ctx.Done():
		}
	}
}

// refuse answers those who came too late.
func (m *mapping) refuse() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, q := range m.resets {
		q.done <- errClosed
	}
	m.resets = nil
}

var errClosed = errors.New("functions are being closed")

// agree starts the runner if the definition wants one, and says what state that leads to.
func (m *mapping) agree(d *definition) error {
	m.mu.Lock()
	running := m.runner != nil
	m.mu.Unlock()
	if d.Deleting {
		return nil
	}
	state := stateDisabled
	if d.Enabled {
		state = stateEnabled
		if !running {
			if err := m.start(d); err != nil {
				return err
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.problem = ""
	if m.def == d { // or else it has changed meanwhile, and the next round will say
		m.state = state
	}
	return nil
}

func (m *mapping) start(d *definition) error {
	run, err := m.r.newRunning(d, &m.result)
	if err != nil {
		return err
	}
	o, err := run.options()
	if err != nil {
		return err
	}
	runner, err := process.New(m.r.processConfig(d, run.log))
	if err != nil {
		return err
	}
	if err := runner.AddHandler(run, o); err != nil {
		return err
	}
	if err := runner.Start(); err != nil {
		return err
	}
	m.mu.Lock()
	m.runner, m.run = runner, run
	m.mu.Unlock()
	return nil
}

func (r *Registry) processConfig(d *definition, log stream.Log) process.Config {
	return process.Config{
		Log: log, StreamName: d.Stream, Store: r.cfg.Store, Outbox: r.cfg.Outbox, Meter: r.cfg.Meter, Gate: r.cfg.Gate, Logger: r.cfg.Log,
	}
}

// stop lets invocations under way finish; their functions' timeouts bound that, and the end of Close's patience.
func (m *mapping) stop() {
	m.mu.Lock()
	runner := m.runner
	m.mu.Unlock()
	if err := runner.Stop(m.r.hard); err != nil {
		m.r.cfg.Log.Warn("mapping was interrupted", "mapping", m.uuid, "error", err)
	}
	m.mu.Lock()
	m.runner, m.run = nil, nil
	m.mu.Unlock()
}

// forget removes what is known of a deleted mapping: its definition last, so that a crash in the middle is made good.
func (m *mapping) forget(d *definition) error {
	ctx := m.r.ctx
	if err := process.Forget(ctx, process.Config{Store: m.r.cfg.Store}, d.Handler); err != nil {
		return fmt.Errorf("forget the place of mapping %s: %w", d.UUID, err)
	}
	err := m.r.cfg.Store.Update(ctx, func(tx state.Tx) error { return tx.Delete([]byte(mappingPrefix + d.UUID)) })
	if err != nil {
		return fmt.Errorf("delete mapping %s: %w", d.UUID, err)
	}
	m.r.mu.Lock()
	defer m.r.mu.Unlock()
	delete(m.r.mappings, d.UUID)
	return nil
}

// change edits a copy of a mapping's definition and publishes it, once it is on disk. state is the one that leads there; f may refuse.
func (m *mapping) change(ctx context.Context, state string, f func(*definition) error) (view, error) {
	m.r.mu.Lock()
	defer m.r.mu.Unlock()
	if m.r.closed {
		return view{}, errClosed
	}
	m.mu.Lock()
	d := m.def.clone()
	m.mu.Unlock()
	was := *d
	if err := f(d); err != nil {
		return view{}, err
	}
	d.Version++
	d.Modified = time.Now().Truncate(time.Millisecond)
	if err := m.r.save(ctx, d); err != nil {
		return view{}, err
	}
	m.mu.Lock()
	m.def = d
	switch {
	case state != stateUpdating:
		m.state = state
	case was.Enabled && !d.Enabled:
		m.state = stateDisabling
	case !was.Enabled && d.Enabled:
		m.state = stateEnabling
	default:
		m.state = stateUpdating
	}
	m.mu.Unlock()
	v := m.view() // before the conductor goes on
	m.wake()
	return v, nil
}

// failures is the courier of the failure documents of the mapping.
func (m *mapping) failures() *courier {
	r := m.r
	return &courier{
		store: r.cfg.Store, kind: failureKind(m.uuid), parallel: 1, log: r.cfg.Log, done: outcomeOf(r.metrics.failures),
		patience: 24 * time.Hour, minBackoff: time.Second, maxBackoff: 5 * time.Minute,
		carry: func(ctx context.Context, e *state.Effect, _ int) error { return r.deliver(ctx, e.ID, e.Data) },
		giveUp: func(ctx context.Context, e *state.Effect, why error) error {
			m.mu.Lock()
			d := m.def
			m.mu.Unlock()
			var p parcel
			doc := e.Data
			if json.Unmarshal(e.Data, &p) == nil && len(p.Document) > 0 {
				doc = p.Document
			}
			return r.bury(ctx, stream.DeadLetter{
				ID: e.ID, Reason: "on-failure destination " + p.Target + ": " + why.Error(), Source: "function " + d.Handler,
				Stream: d.Stream, Shard: stream.ShardID(p.Key), At: time.Now().UTC(), Data: doc,
			})
		},
	}
}

// move moves a mapping that does not run.
func (m *mapping) move(d *definition, to process.Target) error {
	log, err := m.r.cfg.Stream(d.Stream)
	if err != nil {
		return fmt.Errorf("open stream %s: %w", d.Stream, err)
	}
	return process.Reset(m.r.ctx, process.Config{Log: log, Store: m.r.cfg.Store}, d.Handler, to)
}
