package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

// A pool runs a function in processes. Invocations wait for whichever process asks for one first; those that wait are never more
// than the limit, as Invoke refuses what is above it.
type pool struct {
	cfg  Config
	arn  string
	log  *slog.Logger
	prog *program
	dir  string // LAMBDA_RUNTIME_DIR
	*stats
	ring  ring
	lines *lines
	wg    sync.WaitGroup // of process.run

	mu       sync.Mutex // guards all below, and the fields of processes and calls that say so
	inflight int        // calls of Invoke
	pending  []*call    // without a process yet, oldest first
	procs    map[*process]struct{}
	idle     []*process // that wait in /next, the one used last at the end: the others grow old and are ended
	coming   int        // processes that start, or have answered and will soon ask again: each will take a pending call
	failures int        // starts that failed, in a row
	pause    time.Time  // no start before this
	resume   *time.Timer
	reaper   *time.Timer
	closed   bool          // no new invocations
	stopped  bool          // no new processes
	drained  chan struct{} // closed with the last invocation after closed
}

// A call is one invocation. Its fields are the pool's to guard until it is taken out of the pool, by whoever ends it.
type call struct {
	req      *Request
	id       string
	deadline time.Time // zero until its time runs
	started  time.Time // when a process got it
	init     time.Duration
	retried  bool // its process took too long to start, and is started again within its time

	reading sync.WaitGroup // of those who read req.Payload; added to under the pool's lock
	done    chan struct{}
	resp    *Response
	err     error
}

func newPool(c Config, d Deps) (*pool, error) {
	prog, err := prepare(&c)
	if err != nil {
		return nil, err
	}
	dir, err := prog.runtimeDir()
	if err != nil {
		return nil, err
	}
	st := newStats(d.Metrics, c.Name)
	return &pool{
		cfg: c, arn: c.ARN(), log: d.Log, prog: prog, dir: dir, stats: st, lines: newLines(d.Log, c.Name, c.LogLines, st.cDropped),
		procs: map[*process]struct{}{}, drained: make(chan struct{}),
	}, nil
}

// Invoke runs one event through a process.
func (p *pool) Invoke(ctx context.Context, req *Request) (*Response, error) {
	id, err := req.check()
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c := &call{req: req, id: id, done: make(chan struct{})}
	p.mu.Lock()
	switch {
	case p.closed:
		p.mu.Unlock()
		return nil, ErrClosed
	case p.inflight >= p.cfg.Concurrency:
		p.mu.Unlock()
		p.throttled()
		return nil, ErrThrottled
	}
	p.inflight++
	var proc *process
	var to *waiter
	if n := len(p.idle); n > 0 {
		proc = p.idle[n-1]
		p.idle = p.idle[:n-1]
		to = proc.assign(c)
	} else {
		p.pending = append(p.pending, c)
		p.spawn()
	}
	p.mu.Unlock()
	if to != nil { // the write may block: ctx ends it through the process
		abandoned := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(abandoned)
			p.abandon(c, ctx.Err())
		})
		proc.deliver(to, c)
		if !stop() {
			<-abandoned
		}
	}

	select {
	case <-c.done:
	case <-ctx.Done():
		p.abandon(c, ctx.Err())
		<-c.done
	}
	c.reading.Wait() // the payload is borrowed
	p.mu.Lock()
	p.inflight--
	if p.closed && p.inflight == 0 {
		close(p.drained)
	}
	p.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	p.ended(c.resp)
	return c.resp, nil
}

// abandon ends a call whose caller has gone. If it has begun its process is killed, which ends it.
func (p *pool) abandon(c *call, cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.pending, c); i >= 0 {
		p.pending = slices.Delete(p.pending, i, i+1)
		c.fail(fmt.Errorf("wait for a process: %w", cause))
		return
	}
	for proc := range p.procs {
		if proc.call == c && proc.state == running {
			proc.kill(abandoned)
			proc.cause = fmt.Errorf("function was stopped, its caller has gone: %w", cause)
		}
	}
}

func (c *call) fail(err error) {
	c.err = err
	close(c.done)
}

// spawn starts as many processes as there are calls that no process will soon ask for. The lock is held.
func (p *pool) spawn() {
	for !p.stopped && len(p.pending) > p.coming && len(p.procs) < p.cfg.Concurrency {
		if wait := time.Until(p.pause); wait > 0 {
			if p.resume == nil {
				p.resume = time.AfterFunc(wait, func() {
					p.mu.Lock()
					defer p.mu.Unlock()
					p.resume = nil
					p.spawn()
				})
			}
			return
		}
		limit := time.Duration(p.cfg.InitTimeout)
		if c := p.pending[0]; c.retried { // once more, and at its own cost
			limit = time.Until(c.deadline)
		}
		proc := &process{pool: p, gone: make(chan struct{})}
		p.procs[proc] = struct{}{}
		p.coming++
		p.cold()
		p.processes.Inc()
		proc.timer = time.AfterFunc(max(limit, time.Millisecond), proc.late)
		p.wg.Add(1)
		go proc.run() // Close waits for it
	}
}

// backOff makes the next start wait: a function that fails at its start would take the machine otherwise. The lock is held.
func (p *pool) backOff() {
	const first, most = 100 * time.Millisecond, 10 * time.Second
	p.failures++
	if p.failures > 1 {
		p.pause = time.Now().Add(min(most, first<<min(p.failures-2, 10)))
	}
}

// rest puts a process among those that wait, and sees to it that it does not wait for ever. The lock is held.
func (p *pool) rest(proc *process) {
	proc.since = time.Now()
	p.idle = append(p.idle, proc)
	if p.reaper == nil && !p.stopped {
		p.reaper = time.AfterFunc(time.Duration(p.cfg.IdleTimeout), p.reap)
	}
}

// reap ends the processes that have waited for too long: they are at the beginning.
func (p *pool) reap() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reaper = nil
	if p.stopped {
		return
	}
	idle := time.Duration(p.cfg.IdleTimeout)
	n := 0
	for ; n < len(p.idle) && time.Since(p.idle[n].since) >= idle; n++ {
		p.idle[n].kill(unneeded)
	}
	p.idle = slices.Delete(p.idle, 0, n)
	if len(p.idle) > 0 {
		p.reaper = time.AfterFunc(max(time.Millisecond, idle-time.Since(p.idle[0].since)), p.reap)
	}
}

// Status counts the processes.
func (p *pool) Status() Status {
	s := p.status()
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Processes, s.Limit = len(p.procs), p.cfg.Concurrency
	for proc := range p.procs {
		if proc.state == running || proc.state == answered {
			s.Busy++
		}
	}
	return s
}

// Logs returns what the function has written.
func (p *pool) Logs(since uint64, most int) []Line { return p.ring.since(since, most) }

// Close lets what is under way finish, then ends the processes: politely, and after half a second for good.
func (p *pool) Close(ctx context.Context) error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		if p.inflight == 0 {
			close(p.drained)
		}
	}
	p.mu.Unlock()
	var err error
	select {
	case <-p.drained:
	case <-ctx.Done():
		err = fmt.Errorf("close function %s with invocations under way: %w", p.cfg.Name, ctx.Err())
	}
	p.mu.Lock()
	p.stopped = true
	for _, t := range []*time.Timer{p.resume, p.reaper} {
		if t != nil {
			t.Stop()
		}
	}
	for _, c := range p.pending {
		c.fail(ErrClosed)
	}
	p.pending = nil
	for proc := range p.procs {
		proc.kill(closing)
	}
	p.mu.Unlock()
	p.wg.Wait()
	p.lines.close()
	<-p.drained // now that no process is left, every Invoke returns
	return errors.Join(err, os.RemoveAll(p.dir))
}
