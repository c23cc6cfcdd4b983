package alert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// A Sink tells people or programs. Send is called by one goroutine at a time, and again with the same Notification.ID after
// an error or a crash. nil: it is told. *RefusedError: it will never take this one. *BusyError: not before After. Any other
// error: try again later.
type Sink interface {
	Name() string
	Send(ctx context.Context, n Notification) error
}

// A RefusedError is a sink's final no: the notification is dead-lettered at once.
type RefusedError struct{ Err error }

func (e *RefusedError) Error() string { return e.Err.Error() }
func (e *RefusedError) Unwrap() error { return e.Err }

// A BusyError is a sink that said when to come back.
type BusyError struct {
	After time.Duration
	Err   error
}

func (e *BusyError) Error() string { return fmt.Sprintf("%v; come back in %v", e.Err, e.After) }
func (e *BusyError) Unwrap() error { return e.Err }

// A Retry says how a sink's failures are handled. The zero value works.
type Retry struct {
	Timeout     time.Duration `yaml:"timeout,omitempty" doc:"of one attempt; default 10s"`
	MinBackoff  time.Duration `yaml:"min_backoff,omitempty" doc:"before the second attempt, then doubled; default 1s"`
	MaxBackoff  time.Duration `yaml:"max_backoff,omitempty" doc:"default 5m"`
	MaxAttempts int           `yaml:"max_attempts,omitempty" doc:"in one run of the program; default 0: until max_age"`
	MaxAge      time.Duration `yaml:"max_age,omitempty" doc:"then it is dead-lettered; default 24h"`
}

func (r Retry) withDefaults() Retry {
	fill := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	fill(&r.Timeout, 10*time.Second)
	fill(&r.MinBackoff, time.Second)
	fill(&r.MaxBackoff, 5*time.Minute)
	fill(&r.MaxAge, 24*time.Hour)
	return r
}

const (
	pageSize  = 256              // notifications read at a time
	maxHeld   = 4096             // that may wait for their next attempt; then the newer ones wait for these
	maxPause  = 30 * time.Second // between attempts while a sink fails them all
	grace     = 2 * time.Second  // that an attempt under way gets when the program stops
	maxBusy   = time.Hour        // the longest Retry-After that is believed
	storeWait = time.Second      // after an error of the state store
)

// A Notifier carries out the effects that Apply asked for: at least once, with the same ID each time (P3, P4). Every sink has
// a worker of its own, so a slow one delays only itself (P8).
type Notifier struct {
	store state.Store
	sinks []Sink
	retry Retry
	dead  stream.Log
	log   *slog.Logger

	sent     *prometheus.CounterVec
	duration *prometheus.HistogramVec
	waiting  *prometheus.GaugeVec
}

// NewNotifier returns a notifier; Run starts it. dead takes what could not be delivered; if it is nil, that is logged with
// all its data. reg may be nil.
func NewNotifier(store state.Store, sinks []Sink, retry Retry, dead stream.Log, log *slog.Logger, reg prometheus.Registerer) *Notifier {
	n := &Notifier{
		store: store, sinks: sinks, retry: retry.withDefaults(), dead: dead, log: log,
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "milepost_alert_notifications_total", Help: "Attempts to notify, by sink and outcome: sent, failed, dead.",
		}, []string{"sink", "outcome"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "milepost_alert_send_seconds", Help: "Duration of an attempt to notify.", Buckets: prometheus.ExponentialBuckets(0.005, 4, 8),
		}, []string{"sink"}),
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "milepost_alert_notifications_waiting", Help: "Notifications whose last attempt failed and that will be tried again.",
		}, []string{"sink"}),
	}
	if reg != nil {
		reg.MustRegister(n.sent, n.duration, n.waiting)
	}
	return n
}

// Run notifies until ctx ends, then lets the attempts under way finish for a moment. It returns nil.
func (n *Notifier) Run(ctx context.Context) error {
	gone, err := n.removed(ctx)
	if err != nil {
		n.log.ErrorContext(ctx, "read which sinks were configured before: what waits for removed ones stays", "err", err)
	}
	var wg sync.WaitGroup
	for _, s := range slices.Concat(n.sinks, gone) {
		wg.Go(func() { // waited for below
			w := &worker{
				Notifier: n, sink: s, kind: Kind(s.Name()), tries: map[string]*try{}, duration: n.duration.WithLabelValues(s.Name()),
				sent: n.sent.WithLabelValues(s.Name(), "sent"), failed: n.sent.WithLabelValues(s.Name(), "failed"),
				gone: n.sent.WithLabelValues(s.Name(), "dead"), waiting: n.waiting.WithLabelValues(s.Name()),
			}
			w.run(ctx)
		})
	}
	wg.Wait()
	return nil
}

// sinksKey holds the names of all sinks that ever were, as JSON. Few: a name costs a waiting worker.
const sinksKey = "alert/sinks"

// removed writes down the sinks of today and returns stand-ins for those of before: what still waits for them is dead-lettered (P7).
func (n *Notifier) removed(ctx context.Context) ([]Sink, error) {
	var names []string
	err := n.store.View(ctx, func(r state.Reader) error {
		data, err := r.Get([]byte(sinksKey))
		if err != nil || data == nil {
			return err
		}
		return json.Unmarshal(data, &names)
	})
	if err != nil {
		return nil, err
	}
	had := len(names)
	for _, s := range n.sinks {
		if !slices.Contains(names, s.Name()) {
			names = append(names, s.Name())
		}
	}
	if len(names) > had {
		data, err := json.Marshal(names)
		if err != nil {
			return nil, err
		}
		if err := n.store.Update(ctx, func(tx state.Tx) error { return tx.Set([]byte(sinksKey), data) }); err != nil {
			return nil, err
		}
	}
	var gone []Sink
	for _, name := range names[:had] {
		if !slices.ContainsFunc(n.sinks, func(s Sink) bool { return s.Name() == name }) {
			gone = append(gone, removedSink{name})
		}
	}
	return gone, nil
}

// A removedSink stands for one that the configuration no longer has.
type removedSink struct{ name string }

// Name implements Sink.
func (s removedSink) Name() string { return s.name }

// Send implements Sink.
func (s removedSink) Send(context.Context, Notification) error {
	return &RefusedError{Err: errors.New("the sink is no longer configured")}
}

// A worker serves one sink.
type worker struct {
	*Notifier
	sink Sink
	kind string

	tries map[string]*try // of notifications that failed; forgotten in a crash, which only makes the next attempt come sooner
	down  int             // failures in a row
	pause time.Time       // no attempt before: the sink fails everything

	sent, failed, gone prometheus.Counter
	waiting            prometheus.Gauge
	duration           prometheus.Observer
}

type try struct {
	n    int
	next time.Time
}

func (w *worker) run(ctx context.Context) {
	for ctx.Err() == nil {
		// Room for what waits, so that newer ones are seen beside it.
		effects, changed, err := w.store.Pending(ctx, w.kind, min(pageSize+len(w.tries), maxHeld))
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, state.ErrClosed) {
				w.log.ErrorContext(ctx, "read notifications", "sink", w.sink.Name(), "err", err)
			}
			wait(ctx, nil, storeWait)
			continue
		}
		progress, next := w.page(ctx, effects)
		w.waiting.Set(float64(len(w.tries)))
		if progress {
			continue // what was carried out made room for more
		}
		if next.IsZero() {
			wait(ctx, changed, -1)
		} else {
			wait(ctx, changed, time.Until(next))
		}
	}
}

// wait waits for changed, for d unless negative, or for the end.
func wait(ctx context.Context, changed <-chan struct{}, d time.Duration) {
	var timer <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-ctx.Done():
	case <-changed:
	case <-timer:
	}
}

// page attempts what is due. It tells whether any notification was finished, and otherwise when the next is due.
func (w *worker) page(ctx context.Context, effects []state.Effect) (progress bool, next time.Time) {
	queue := w.queue(effects)
	for _, q := range queue {
		if ctx.Err() != nil {
			return progress, next
		}
		due := w.pause
		if q.next.After(due) {
			due = q.next
		}
		if !due.After(time.Now()) {
			if w.attempt(ctx, q.effect) {
				delete(w.tries, q.effect.ID)
				progress = true
				continue
			}
			if t := w.tries[q.effect.ID]; t != nil {
				due = t.next
			}
		}
		if next.IsZero() || due.Before(next) {
			next = due
		}
	}
	return progress, next
}

type queued struct {
	effect state.Effect
	next   time.Time
}

// queue orders a page. Of one alert, only the oldest: nobody should hear of an end before its beginning. Otherwise who waits
// longest comes first, and who was never tried before all: a notification that a sink keeps failing on delays no other (P8).
func (w *worker) queue(effects []state.Effect) []queued {
	out := make([]queued, 0, len(effects))
	alerts := make(map[string]bool, len(effects))
	here := make(map[string]bool, len(w.tries))
	for _, e := range effects {
		q := queued{effect: e}
		if t := w.tries[e.ID]; t != nil {
			q.next = t.next
			here[e.ID] = true
		}
		if id, _, _ := strings.Cut(e.ID, "/"); !alerts[id] {
			alerts[id] = true
			out = append(out, q)
		}
	}
	for id := range w.tries {
		if !here[id] {
			delete(w.tries, id) // someone else finished it
		}
	}
	slices.SortStableFunc(out, func(a, b queued) int { return a.next.Compare(b.next) })
	return out
}

// attempt sends one notification. True: it is finished, one way or the other.
func (w *worker) attempt(ctx context.Context, e state.Effect) bool {
	var note Notification
	if err := json.Unmarshal(e.Data, &note); err != nil {
		return w.bury(ctx, e, "", fmt.Errorf("not a notification: %w", err))
	}
	err := w.send(ctx, note)
	if err == nil {
		w.sent.Inc()
		w.recovered(ctx)
		return w.done(ctx, e)
	}
	if ctx.Err() != nil {
		return false // stopped: the next run tries again
	}
	w.failed.Inc()
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		w.recovered(ctx) // it answers
		return w.bury(ctx, e, note.Alert.Vehicle, refused.Err)
	}
	t := w.tries[e.ID]
	if t == nil {
		t = &try{}
		w.tries[e.ID] = t
	}
	t.n++
	age := time.Since(time.UnixMilli(note.Asked))
	if age > w.retry.MaxAge || (w.retry.MaxAttempts > 0 && t.n >= w.retry.MaxAttempts) {
		return w.bury(ctx, e, note.Alert.Vehicle, fmt.Errorf("given up after %d attempts: %w", t.n, err))
	}
	now := time.Now()
	t.next = now.Add(w.backoff(t.n))
	w.down++
	pause := min(w.backoff(w.down), maxPause)
	if busy, ok := errors.AsType[*BusyError](err); ok {
		pause = min(max(pause, busy.After), maxBusy)
		t.next = now.Add(max(t.next.Sub(now), pause))
	}
	w.pause = now.Add(pause)
	if w.down == 1 {
		w.log.WarnContext(ctx, "sink fails, retrying", "sink", w.sink.Name(), "notification", note.ID, "err", err)
	}
	return false
}

// send runs one attempt. When the program stops it has a moment to finish, so that it need not be repeated.
func (w *worker) send(ctx context.Context, note Notification) error {
	one, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.retry.Timeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		wait(one, nil, grace)
		cancel()
	})
	defer stop()
	begin := time.Now()
	err := w.sink.Send(one, note)
	w.duration.Observe(time.Since(begin).Seconds())
	return err
}

func (w *worker) recovered(ctx context.Context) {
	if w.down > 0 {
		w.log.InfoContext(ctx, "sink works again", "sink", w.sink.Name(), "failures", w.down)
	}
	w.down, w.pause = 0, time.Time{}
}

// backoff doubles from MinBackoff to MaxBackoff; half of it is chance, so that sinks that failed together do not return together.
func (w *worker) backoff(n int) time.Duration {
	d := w.retry.MaxBackoff
	if n < 32 {
		if x := w.retry.MinBackoff << (n - 1); x > 0 {
			d = min(d, x)
		}
	}
	return d/2 + rand.N(d/2+1) //nolint:gosec // spreads load, hides nothing
}

// done forgets an effect that is carried out. If that fails it will be carried out again, with the same ID.
func (w *worker) done(ctx context.Context, e state.Effect) bool {
	if err := w.store.Done(context.WithoutCancel(ctx), w.kind, e.ID); err != nil {
		w.log.ErrorContext(ctx, "forget notification: it will be sent again", "sink", w.sink.Name(), "notification", e.ID, "err", err)
		w.later(e.ID)
		return false
	}
	return true
}

func (w *worker) later(id string) {
	t := w.tries[id]
	if t == nil {
		t = &try{}
		w.tries[id] = t
	}
	t.n++
	t.next = time.Now().Add(w.backoff(t.n))
}

// bury dead-letters an effect that cannot be carried out (P7).
func (w *worker) bury(ctx context.Context, e state.Effect, vehicle string, why error) bool {
	w.gone.Inc()
	w.log.ErrorContext(ctx, "notification not delivered", "sink", w.sink.Name(), "notification", e.ID, "vehicle", vehicle, "err", why)
	if w.dead == nil {
		w.log.ErrorContext(ctx, "notification lost: no dead-letter stream", "sink", w.sink.Name(), "notification", e.ID, "data", string(e.Data))
		return w.done(ctx, e)
	}
	letter := stream.DeadLetter{
		ID: w.kind + "/" + e.ID, Reason: why.Error(), Source: "sink " + w.sink.Name(), Key: vehicle, At: time.Now(), Data: e.Data,
	}
	rec, err := letter.Record()
	if err == nil {
		err = w.dead.Append(context.WithoutCancel(ctx), []stream.Record{rec})
	}
	if err != nil {
		w.log.ErrorContext(ctx, "dead-letter notification: keeping it", "sink", w.sink.Name(), "notification", e.ID, "err", err)
		w.later(e.ID)
		return false
	}
	return w.done(ctx, e)
}
