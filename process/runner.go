package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// Config says what a Runner reads and where it keeps what functions know. Log and Store are required.
//
// A program with one Runner sets DeadLetters, Streams and Metrics. One with several over one store shares an Outbox, a Meter
// and a Gate between them: then what is in the outbox is carried out once, and the metrics are registered once.
type Config struct {
	Log         stream.Log            // a stream.Tipper too, if lag is to be known
	StreamName  string                // for dead letters and logs
	Store       state.Store           //
	DeadLetters stream.Log            // nil: dead letters wait in the store's outbox
	Streams     Streams               // where Options.Output goes; nil: no function has one
	Outbox      *Outbox               // shared; DeadLetters and Streams are its own then
	Logger      *slog.Logger          // default: discards
	Metrics     prometheus.Registerer // nil: no metrics
	Meter       *Meter                // shared; Metrics is its own then
	Gate        *Gate                 // shared; nil: handlers run as often at once as their shards and lanes allow
}

// Streams finds the stream of a name.
type Streams func(name string) (stream.Log, error)

// A Runner runs functions over one stream.
//
// Each function has a supervisor, which starts a shard when all its parents are read out and committed (P2); each lane of a
// shard is one goroutine that reads, runs the function and commits. The order of stopping is the order of flow: no lane reads
// any more; each finishes the attempt it is in, and folds commit; then folds are closed; then dead letters and output of all that are
// appended, unless the outbox is shared; then Stop returns. A batch that waits for its next attempt is left for the next start.
type Runner struct {
	cfg     Config
	tipper  stream.Tipper // nil if the log is none
	funcs   []*function
	meter   *Meter
	outbox  *Outbox // nil: nothing is carried out
	started time.Time

	read     context.Context // ends when the runner is to stop
	stopRead context.CancelFunc
	work     context.Context // ends when Stop has run out of patience
	stopWork context.CancelFunc
	lanes    sync.WaitGroup // supervisors, shards and lanes

	waiters atomic.Int32 // in WaitCaughtUp
	mu      sync.Mutex   // guards the three below
	running bool
	stopped bool
	moved   chan struct{} // closed and replaced when a checkpoint moves and someone waits
}

// A function is one that was added.
type function struct {
	r      *Runner
	name   string
	opts   Options
	batch  Function // one of these three
	folder Folder

	handler Handler
	breaker *breaker
	output  *output // nil: it has none. Set before its lanes start

	mu     sync.Mutex    // guards the four below
	resume chan struct{} // closed and replaced by Resume
	shards map[stream.ShardID]*shardRun
	order  []*shardRun
	err    error // why the supervisor cannot go on for now
}

// New returns a runner without functions.
func New(cfg Config) (*Runner, error) {
	if cfg.Log == nil || cfg.Store == nil {
		return nil, errors.New("process: a runner needs a log and a store")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Runner{cfg: cfg, outbox: cfg.Outbox, meter: cfg.Meter, moved: make(chan struct{})}
	r.tipper, _ = cfg.Log.(stream.Tipper)
	return r, nil
}

// Add adds a function. All are added before Start.
func (r *Runner) Add(f Function, o Options) error {
	return r.add(&function{name: f.Name(), opts: o, batch: f})
}

// AddFolder adds a folder.
func (r *Runner) AddFolder(f Folder, o Options) error {
	return r.add(&function{name: f.Name(), opts: o, folder: f})
}

// AddHandler adds a handler.
func (r *Runner) AddHandler(h Handler, o Options) error {
	return r.add(&function{name: h.Name(), opts: o, handler: h})
}

func (r *Runner) add(f *function) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.name == "" {
		return errors.New("process: a function needs a name")
	}
	if r.running {
		return fmt.Errorf("function %s: added after the start", f.name)
	}
	for _, g := range r.funcs {
		if g.name == f.name {
			return fmt.Errorf("function %s: added twice", f.name)
		}
	}
	err := f.opts.fill()
	if err == nil && f.handler != nil {
		err = f.opts.fillHandler(&r.cfg)
	}
	if err != nil {
		return fmt.Errorf("function %s: %w", f.name, err)
	}
	f.r, f.shards, f.breaker, f.resume = r, map[stream.ShardID]*shardRun{}, newBreaker(f.opts.Breaker), make(chan struct{})
	r.funcs = append(r.funcs, f)
	return nil
}

// Start starts every function and returns. What goes wrong from then on is tried again, and shown by Status, metrics and log.
func (r *Runner) Start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running || r.stopped {
		return errors.New("process: a runner starts once")
	}
	if r.meter == nil {
		m, err := NewMeter(r.cfg.Metrics)
		if err != nil {
			return err
		}
		r.meter = m
	}
	if err := r.meter.attach(r); err != nil {
		return err
	}
	if r.outbox == nil && (r.cfg.DeadLetters != nil || r.cfg.Streams != nil) {
		o, err := NewOutbox(OutboxConfig{
			Store: r.cfg.Store, DeadLetters: r.cfg.DeadLetters, Streams: r.cfg.Streams, Logger: r.cfg.Logger, Metrics: r.cfg.Metrics,
		})
		if err == nil {
			err = o.Start()
		}
		if err != nil {
			r.endMeter()
			return err
		}
		r.outbox = o
	}
	r.running, r.started = true, time.Now()
	r.read, r.stopRead = context.WithCancel(context.Background())
	r.work, r.stopWork = context.WithCancel(context.Background())
	for _, f := range r.funcs {
		r.lanes.Go(f.supervise) // Stop waits
	}
	return nil
}

func (r *Runner) endMeter() {
	r.meter.detach(r)
	if r.cfg.Meter == nil {
		r.meter.Close()
	}
}

// Stop stops reading, lets every lane finish and commit, carries out what is in the outbox unless that is shared, and returns.
// When ctx ends first it interrupts what is running; what was not committed is run again at the next start.
func (r *Runner) Stop(ctx context.Context) error {
	r.mu.Lock()
	if !r.running || r.stopped {
		r.stopped = true
		r.mu.Unlock()
		return nil
	}
	r.stopped = true
	r.mu.Unlock()
	defer context.AfterFunc(ctx, r.stopWork)()
	r.stopRead()
	r.lanes.Wait()
	err := r.work.Err()
	if r.cfg.Outbox == nil && r.outbox != nil {
		err = errors.Join(err, r.outbox.Stop(ctx))
	}
	r.stopWork()
	r.endMeter()
	r.progress()
	if err != nil {
		return fmt.Errorf("stop of functions was interrupted: %w", context.Cause(ctx))
	}
	return nil
}

// Resume lets a function that its overflow policy has paused go on. It is not paused again before it has caught up.
func (r *Runner) Resume(name string) error {
	for _, f := range r.funcs {
		if f.name == name {
			f.mu.Lock()
			defer f.mu.Unlock()
			close(f.resume)
			f.resume = make(chan struct{})
			return nil
		}
	}
	return fmt.Errorf("resume function %s: it does not run here", name)
}

// Run starts the runner, waits until ctx ends, and stops it, however long that takes.
func (r *Runner) Run(ctx context.Context) error {
	if err := r.Start(); err != nil {
		return err
	}
	<-ctx.Done()
	return r.Stop(context.WithoutCancel(ctx))
}

// progress wakes WaitCaughtUp.
func (r *Runner) progress() {
	if r.waiters.Load() == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.moved)
	r.moved = make(chan struct{})
}

// WaitCaughtUp returns when every function's checkpoints have reached what the log held at the call.
func (r *Runner) WaitCaughtUp(ctx context.Context) error {
	r.waiters.Add(1)
	defer r.waiters.Add(-1)
	shards, err := r.cfg.Log.Shards(ctx)
	if err != nil {
		return fmt.Errorf("wait for functions: list shards: %w", err)
	}
	tips := map[stream.ShardID]stream.Position{}
	for _, s := range shards {
		if tips[s.ID], err = r.tip(ctx, s.ID); err != nil {
			return fmt.Errorf("wait for functions: end of %s: %w", s.ID, err)
		}
	}
	for {
		r.mu.Lock()
		moved, stopped := r.moved, r.stopped
		r.mu.Unlock()
		behind := ""
		for _, f := range r.funcs {
			b, err := f.behind(tips)
			if err != nil {
				return fmt.Errorf("wait for functions: %w", err)
			}
			if b != "" {
				behind = b
			}
		}
		if behind == "" {
			return nil
		}
		if stopped {
			return fmt.Errorf("wait for functions: runner is stopped, %s", behind)
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for functions: %s: %w", behind, ctx.Err())
		}
	}
}

// tip returns the position of a shard's newest record.
func (r *Runner) tip(ctx context.Context, id stream.ShardID) (stream.Position, error) {
	return tipOf(ctx, r.cfg.Log, id)
}

// behind says which lane has not reached its tip; "" if all have. A lane that stopped for good never will: an error.
func (f *function) behind(tips map[stream.ShardID]stream.Position) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, tip := range tips {
		s := f.shards[id]
		if s == nil {
			return fmt.Sprintf("%s has not begun with %s", f.name, id), nil
		}
		b, err := s.behind(tip)
		if b != "" || err != nil {
			return b, err
		}
	}
	return "", nil
}

// sleep waits for d, less if the runner is to stop: then it returns false.
func (r *Runner) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.read.Done():
		return false
	}
}
