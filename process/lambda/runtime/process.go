package runtime

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	goruntime "runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The states of a process, as the Runtime API sees them.
type processState int

const (
	starting processState = iota // until its first /next
	ready                        // in /next
	running                      // has an event
	answered                     // until its next /next; its deadline still holds
)

func (s processState) String() string { // as Lambda's messages have them
	return [...]string{"Started", "Ready", "Running", "RuntimeResponseSent"}[s]
}

// Why a process was ended by us.
type reason int

const (
	unasked   reason = iota // it was not
	tooLate                 // its deadline
	slowStart               // the time for its start
	abandoned               // the caller has gone
	unneeded                // idle for long
	closing
)

// A process is one of a pool. It is made by spawn, lives in run and is forgotten in exited.
type process struct {
	pool *pool
	gone chan struct{} // closed when it has ended

	// The pool's lock guards these.
	state     processState
	call      *call   // while running and answered
	waiter    *waiter // while ready, unless its connection was lost
	delivered bool    // call has been given to a connection: the process may have seen it
	pid       int     // 0 before its start and after its end
	over      bool    // it has ended
	reason    reason
	cause     error       // for abandoned
	timer     *time.Timer // of its start, then of each deadline
	until     time.Time   // the deadline that timer stands for; zero: none
	begun     time.Time
	init      time.Duration // to be reported with the first invocation
	initErr   []byte        // what it said to /init/error
	since     time.Time     // ready
	sampled   time.Time     // when peak was read

	out  *capture
	peak atomic.Int64 // bytes
}

// assign gives a call to a process that waits, and returns the request that waits for it: the caller delivers it. nil: it has lost its
// connection, and asks again. The pool's lock is held.
func (p *process) assign(c *call) *waiter {
	now := time.Now()
	p.state, p.call = running, c
	c.started = now
	if c.deadline.IsZero() {
		c.deadline = now.Add(time.Duration(p.pool.cfg.Timeout))
	}
	c.init, p.init = p.init, 0
	p.until = c.deadline
	p.timer.Reset(time.Until(c.deadline))
	p.delivered = false
	to := p.waiter
	if to != nil {
		c.reading.Add(1)
		p.waiter = nil
	}
	return to
}

// late is what the timer does.
func (p *process) late() {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	switch {
	case p.state == starting:
		p.kill(slowStart)
	case (p.state == running || p.state == answered) && time.Until(p.until) <= 0: // else it was late itself, and has been set anew
		p.kill(tooLate)
	}
}

// kill ends a process; the first reason counts. Those that do nothing may say good-bye. The pool's lock is held.
func (p *process) kill(why reason) {
	if p.reason != unasked {
		return
	}
	p.reason = why
	if p.pid == 0 {
		return // not started yet, and run will look; or over
	}
	if p.state == ready && (why == unneeded || why == closing) {
		signalGroup(p.pid, false)
		time.AfterFunc(500*time.Millisecond, func() {
			p.pool.mu.Lock()
			defer p.pool.mu.Unlock()
			if p.pid != 0 {
				signalGroup(p.pid, true)
			}
		})
		return
	}
	signalGroup(p.pid, true)
}

// run starts the process, waits for its end and cleans up.
func (p *process) run() {
	defer p.pool.wg.Done()
	// The kernel ends the process with the thread that started it (see own). This goroutine needs a thread to wait anyway.
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	began := time.Now()
	stream := logStream(began)
	p.out = &capture{to: p.pool.lines, ring: &p.pool.ring}
	p.exited(p.live(began, stream))
}

// live returns why the process could not start, or how it ended. Nothing of it is left then.
func (p *process) live(began time.Time, stream string) (how error, started bool) {
	pool := p.pool
	d, err := openDoor(p)
	if err != nil {
		return err, false
	}
	defer d.close()
	defer close(p.gone)

	r, w, err := outputPipe()
	if err != nil {
		return err, false
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer r.Close() //nolint:errcheck // only read

	cmd := exec.Command(pool.prog.path, pool.prog.arguments(pool.dir)...) //nolint:gosec,noctx // the user's program; kill ends it, with its group
	cmd.Dir = pool.prog.root
	cmd.Env = environment(&pool.cfg, pool.prog, pool.dir, d.ln.Addr().String(), stream)
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = own()
	pool.mu.Lock()
	p.begun = began
	pool.mu.Unlock()
	err = cmd.Start()
	_ = w.Close() // it is the child's
	if err != nil {
		return err, false
	}
	wg.Go(func() { pump(r, p.out) })
	pool.mu.Lock()
	p.pid = cmd.Process.Pid
	if p.reason != unasked {
		signalGroup(p.pid, true)
	}
	pool.mu.Unlock()

	awaitExit(cmd.Process.Pid)
	pool.mu.Lock()
	signalGroup(cmd.Process.Pid, true) // what it has left behind
	p.pid, p.over = 0, true
	pool.mu.Unlock()
	err = cmd.Wait()
	endDescendants(logStreamVariable + "=" + stream) // what has left the group too
	p.out.read()
	return err, true
}

// exitText says how a process ended, as Lambda does.
func exitText(err error) string {
	if err == nil {
		return "Runtime exited without providing a reason"
	}
	return "Runtime exited with error: " + err.Error()
}

// exited forgets a process and ends the invocation that it had.
func (p *process) exited(how error, begun bool) {
	pool := p.pool
	pool.mu.Lock()
	p.timer.Stop()
	delete(pool.procs, p)
	pool.processes.Dec()
	if i := slices.Index(pool.idle, p); i >= 0 {
		pool.idle = slices.Delete(pool.idle, i, i+1)
	}
	var c *call
	switch p.state {
	case starting:
		pool.coming--
		c = p.startFailed(begun)
	case running:
		if c = p.call; !p.delivered && p.reason == unasked && !pool.stopped {
			// It ended while it was idle, and the event has come too late for it to see.
			c.started = time.Time{}
			if !c.retried {
				c.deadline = time.Time{}
			}
			pool.pending = slices.Insert(pool.pending, 0, c)
			c = nil
		}
	case answered:
		pool.coming--
	case ready:
	}
	p.call = nil
	pool.spawn()
	why, state := p.reason, p.state
	pool.mu.Unlock()

	if why == unasked || why == tooLate || why == slowStart {
		if begun {
			pool.restarted()
		}
		pool.log.Warn("function's process ended", "function", pool.cfg.Name, "state", state.String(), "reason", exitText(how), "late", why != unasked)
	}
	if c != nil {
		p.fail(c, how, begun)
	}
}

// startFailed decides who bears a start that failed: the call that has waited longest, unless the first start merely took too
// long, which is tried again within the call's time. The pool's lock is held.
func (p *process) startFailed(begun bool) *call {
	pool := p.pool
	if p.reason == closing {
		return nil // Close has ended the calls
	}
	pool.backOff()
	if len(pool.pending) == 0 {
		return nil
	}
	c := pool.pending[0]
	if p.reason == slowStart && p.initErr == nil && !c.retried && begun {
		c.retried = true
		c.deadline = time.Now().Add(time.Duration(pool.cfg.Timeout))
		pool.pause = time.Time{}
		return nil
	}
	pool.pending = slices.Delete(pool.pending, 0, 1)
	return c
}

// fail ends a call, which is nobody else's any more, because its process has ended.
func (p *process) fail(c *call, how error, begun bool) {
	pool := p.pool
	now := time.Now()
	if c.started.IsZero() {
		c.started = now
		p.out.begin(c.id)
	}
	r := &Response{FunctionError: unhandled, Duration: now.Sub(c.started), Init: c.init}
	rep := report{duration: r.Duration, init: c.init, memory: pool.cfg.MemorySize, used: p.peak.Load(), status: "error"}
	switch {
	case p.reason == abandoned:
		c.err = p.cause
	case p.reason == closing, p.reason == unasked && p.state == running && !p.delivered:
		c.err = fmt.Errorf("%w in mid-invocation: what it did is unknown", ErrClosed)
	case p.initErr != nil && p.state == starting:
		r.Payload = p.initErr
	case p.reason == tooLate || p.reason == slowStart:
		text := timeoutText(time.Duration(pool.cfg.Timeout))
		pool.timedOut()
		r.Payload = failure(c.id, typeTimeout, text)
		rep.status = "timeout"
		rep.extra = now.UTC().Format("2006-01-02T15:04:05.000Z") + " " + c.id + " " + text
	case !begun:
		r.Payload = failure(c.id, typeEntrypoint, startText(how))
	default:
		r.Payload = failure(c.id, typeExit, exitText(how))
		rep.extra = "RequestId: " + c.id + " Error: " + exitText(how)
	}
	r.Log = p.out.end(c.id, rep)
	c.resp = r
	close(c.done)
}

// startText adds what an operator can do.
func startText(err error) string {
	if errors.Is(err, os.ErrNotExist) {
		return err.Error() + " (is the program, or the interpreter that its first line names, installed?)"
	}
	return err.Error()
}
