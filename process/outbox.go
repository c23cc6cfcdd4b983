package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// OutboxConfig says whose outbox it is and where what is in it goes. Store is required.
type OutboxConfig struct {
	Store       state.Store
	DeadLetters stream.Log            // nil: dead letters wait
	Streams     Streams               // nil: output waits
	Logger      *slog.Logger          // default: discards
	Metrics     prometheus.Registerer // nil: no metrics
}

// An Outbox carries out what functions ask for: it appends dead letters and output to their streams. A store has one Outbox
// at a time. It is started before the runners that share it and stopped after them, so that what they leave is still carried out.
//
// Dead letters arrive at least once. Output arrives once: see output.
type Outbox struct {
	cfg     OutboxConfig
	posted  prometheus.Counter
	sent    *prometheus.CounterVec
	backlog *prometheus.GaugeVec

	work     context.Context // ends when Stop has run out of patience
	stopWork context.CancelFunc
	posting  sync.WaitGroup
	drained  chan struct{} // closed when nothing more will be emitted

	mu      sync.Mutex // guards the three below
	running bool
	stopped bool
	outputs map[string]*output
}

// NewOutbox returns an outbox that does not run yet.
func NewOutbox(cfg OutboxConfig) (*Outbox, error) {
	if cfg.Store == nil {
		return nil, errors.New("process: an outbox needs a store")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	o := &Outbox{
		cfg: cfg, drained: make(chan struct{}), outputs: map[string]*output{},
		posted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "milepost_process_dead_letters_appended_total",
			Help: "Dead letters appended to their stream, repetitions included.",
		}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "milepost_process_output_records_total",
			Help: "Records that functions put out, appended to their stream.",
		}, []string{"stream"}),
		backlog: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "milepost_process_output_backlog_bytes",
			Help: "Output that is committed and not yet appended; at 64 MiB its functions wait.",
		}, []string{"stream"}),
	}
	return o, nil
}

// Start begins to carry out what is there and what comes.
func (o *Outbox) Start() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.running || o.stopped {
		return errors.New("process: an outbox starts once")
	}
	names, err := o.known()
	if err != nil {
		return err
	}
	if o.cfg.Metrics != nil {
		all := o.collectors()
		for i, c := range all {
			if err := o.cfg.Metrics.Register(c); err != nil {
				for _, c := range all[:i] {
					o.cfg.Metrics.Unregister(c)
				}
				return fmt.Errorf("register metrics of the outbox: %w", err)
			}
		}
	}
	o.running = true
	o.work, o.stopWork = context.WithCancel(context.Background())
	if o.cfg.DeadLetters != nil {
		o.posting.Go(func() { o.carry("dead letters", o.postLetters) }) // Stop waits
	}
	for _, name := range names { // of earlier runs
		o.beginLocked(name)
	}
	return nil
}

func (o *Outbox) collectors() []prometheus.Collector {
	return []prometheus.Collector{o.posted, o.sent, o.backlog}
}

// Stop carries out what is left and returns. When ctx ends first, or something fails, the rest waits for the next start.
func (o *Outbox) Stop(ctx context.Context) error {
	o.mu.Lock()
	running := o.running && !o.stopped
	o.stopped = true
	o.mu.Unlock()
	if !running {
		return nil
	}
	defer context.AfterFunc(ctx, o.stopWork)()
	close(o.drained)
	o.posting.Wait()
	err := o.work.Err()
	o.stopWork()
	if o.cfg.Metrics != nil {
		for _, c := range o.collectors() {
			o.cfg.Metrics.Unregister(c)
		}
	}
	if err != nil {
		return fmt.Errorf("stop of the outbox was interrupted: %w", context.Cause(ctx))
	}
	return nil
}

// Run starts the outbox, waits until ctx ends, and stops it, however long that takes.
func (o *Outbox) Run(ctx context.Context) error {
	if err := o.Start(); err != nil {
		return err
	}
	<-ctx.Done()
	return o.Stop(context.WithoutCancel(ctx))
}

// carry calls some until nothing more will come and nothing is left. some returns how many effects it is done with, and a
// channel that is closed when there are more.
func (o *Outbox) carry(what string, some func() (int, <-chan struct{}, error)) {
	log := o.cfg.Logger.With("what", what)
	lo, hi := 100*time.Millisecond, time.Minute
	failing := 0
	drained := false
	for {
		n, changed, err := some()
		switch {
		case o.work.Err() != nil:
			return
		case err != nil:
			if failing == 0 {
				log.Warn("outbox waits", "error", err)
			}
			if drained {
				log.Warn("outbox is left for the next start", "error", err)
				return
			}
			t := time.NewTimer(backoff(lo, hi, failing))
			failing++
			select {
			case <-t.C:
			case <-o.drained:
				drained = true
			}
			t.Stop()
			continue
		case n > 0:
			failing = 0
			continue
		case drained:
			return
		}
		failing = 0
		select {
		case <-changed:
		case <-o.drained:
			drained = true
		}
	}
}

const letterBatch = 100

// postLetters appends up to letterBatch letters and returns how many are done with.
func (o *Outbox) postLetters() (done int, changed <-chan struct{}, err error) {
	effects, changed, err := o.cfg.Store.Pending(o.work, DeadLetterKind, letterBatch)
	if err != nil || len(effects) == 0 {
		return 0, changed, err
	}
	recs := make([]stream.Record, len(effects))
	for i, e := range effects {
		var d stream.DeadLetter
		if err := json.Unmarshal(e.Data, &d); err != nil {
			// Not ours to judge: it goes out as it is, under its ID.
			recs[i] = stream.Record{Key: e.ID, Data: e.Data}
			continue
		}
		if d.ID == "" {
			d.ID = e.ID
		}
		if recs[i], err = d.Record(); err != nil {
			return 0, changed, fmt.Errorf("write dead letter %s: %w", e.ID, err)
		}
	}
	err = o.cfg.DeadLetters.Append(o.work, recs)
	var partial *stream.PartialError
	if err != nil && !errors.As(err, &partial) {
		return 0, changed, fmt.Errorf("append dead letters: %w", err)
	}
	var ids []string
	for i := range recs {
		if recs[i].Pos != "" {
			ids = append(ids, effects[i].ID)
		}
	}
	if len(ids) > 0 {
		if err := o.cfg.Store.Done(o.work, DeadLetterKind, ids...); err != nil {
			return 0, changed, fmt.Errorf("mark dead letters done: %w", err)
		}
		o.posted.Add(float64(len(ids)))
	}
	return len(ids), changed, err
}
