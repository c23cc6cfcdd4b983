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
type Config struct {
	Log         stream.Log            // a stream.Tipper too, if lag is to be known
	StreamName  string                // for dead letters and logs
	Store       state.Store           //
	DeadLetters stream.Log            // nil: dead letters wait in the store's outbox
	Logger      *slog.Logger          // default: discards
	Metrics     prometheus.Registerer // nil: no metrics
}

// A Runner runs functions over one stream.
//
// Each function has a supervisor, which starts a shard when all its parents are read out and committed (P2); each lane of a
// shard is one goroutine that reads, runs the function and commits. The order of stopping is the order of flow: no lane reads
// any more; each finishes the attempt it is in, and folds commit; then folds are closed; then the dead letters of all that are
// appended; then Stop returns. A batch that waits for its next attempt is left for the next start.
type Runner struct {
	cfg     Config
	tipper  stream.Tipper // nil if the log is none
	funcs   []*function
	metrics *metrics
	started time.Time

	read     context.Context // ends when the runner is to stop
	stopRead context.CancelFunc
	work     context.Context // ends when Stop has run out of patience
	stopWork context.CancelFunc
	lanes    sync.WaitGroup // supervisors, shards and lanes
	posting  sync.WaitGroup // the dispatcher of dead letters
	drained  chan struct{}  // closed when no lane will emit any more

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
	batch  Function // one of these two
	folder Folder

	mu     sync.Mutex // guards the two below
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
	r := &Runner{cfg: cfg, drained: make(chan struct{}), moved: make(chan struct{})}
	r.tipper, _ = cfg.Log.(stream.Tipper)
	return r, nil
}

// Add adds a function. All are added before Start.
func (r *Runner) Add(f Function, o Options) error { return r.add(f.Name(), f, nil, o) }

// AddFolder adds a folder.
func (r *Runner) AddFolder(f Folder, o Options) error { return r.add(f.Name(), nil, f, o) }

func (r *Runner) add(name string, b Function, f Folder, o Options) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if name == "" {
		return errors.New("process: a function needs a name")
	}
	if r.running {
		return fmt.Errorf("function %s: added after the start", name)
	}
	for _, g := range r.funcs {
		if g.name == name {
			return fmt.Errorf("function %s: added twice", name)
		}
	}
	if err := o.fill(); err != nil {
		return fmt.Errorf("function %s: %w", name, err)
	}
	r.funcs = append(r.funcs, &function{r: r, name: name, opts: o, batch: b, folder: f, shards: map[stream.ShardID]*shardRun{}})
	return nil
}

// Start starts every function and returns. What goes wrong from then on is tried again, and shown by Status, metrics and log.
func (r *Runner) Start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running || r.stopped {
		return errors.New("process: a runner starts once")
	}
	m, err := newMetrics(r, r.cfg.Metrics)
	if err != nil {
		return err
	}
	r.metrics, r.running, r.started = m, true, time.Now()
	r.read, r.stopRead = context.WithCancel(context.Background())
	r.work, r.stopWork = context.WithCancel(context.Background())
	for _, f := range r.funcs {
		r.lanes.Go(f.supervise) // Stop waits
	}
	if r.cfg.DeadLetters != nil {
		r.posting.Go(r.postDeadLetters) // Stop waits
	}
	return nil
}

// Stop stops reading, lets every lane finish and commit, appends the last dead letters and returns. When ctx ends first it
// interrupts what is running; what was not committed is run again at the next start.
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
	close(r.drained)
	r.posting.Wait()
	err := r.work.Err()
	r.stopWork()
	r.metrics.unregister()
	r.progress()
	if err != nil {
		return fmt.Errorf("stop of functions was interrupted: %w", context.Cause(ctx))
	}
	return nil
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
	if r.tipper != nil {
		t, err := r.tipper.Tip(ctx, id)
		return t.Pos, err
	}
	return r.cfg.Log.Seek(ctx, id, time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC))
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
