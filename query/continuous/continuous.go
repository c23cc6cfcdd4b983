// Package continuous runs SELECTs by themselves: one for each window of event time that has closed, over the live tail and the archive,
// its rows appended to a stream. It says what window aggregates cannot: joins, several groups, window functions.
//
// A window is told once. The end of the last one is in the state store, and moves in the same transaction as the effect
// that appends the rows; a crash before it runs the SELECT again, one after it does not. A window closes when the watermark (the
// fleet's newest event time, or the clock) is Lateness past its end: rows that come later are in SQL, and in no result of here.
//
// After downtime the windows that were missed run one after the other, CatchUp back at most; what is older is skipped and counted.
// Each query has a goroutine of its own, so a slow one delays only itself.
package continuous

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/query"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// Defaults of Spec's zero fields, and its limits.
const (
	DefaultLateness = 30 * time.Second
	DefaultCatchUp  = time.Hour
	DefaultRows     = 1_000
	DefaultAttempts = 10
	MaxRows         = 100_000
	MinEvery        = time.Second
	maxQueries      = 64
	maxBytes        = 16 << 20 // of one result
	maxSQL          = 64 << 10
)

// A Spec is a query as people write it.
type Spec struct {
	Name     string        `yaml:"name,omitempty" doc:"letters, digits, _ and -; keys how far the query has come"`
	SQL      string        `yaml:"sql" doc:"one SELECT with $start and $end, the window's bounds: WHERE event_time >= $start AND event_time < $end"`
	Every    time.Duration `yaml:"every" doc:"a window closes this often, at whole multiples in UTC"`
	Size     time.Duration `yaml:"size,omitempty" doc:"length of the window; default every, more makes windows overlap"`
	Lateness time.Duration `yaml:"lateness,omitempty" doc:"how long after its end a window waits for rows; default 30s, negative: not at all"`
	Output   string        `yaml:"output" doc:"stream that the rows are appended to"`
	Key      string        `yaml:"key,omitempty" doc:"column that becomes the records' partition key; default: the query's name"`
	CatchUp  time.Duration `yaml:"catch_up,omitempty" doc:"how far back windows run that were missed; older ones are skipped; default 1h"`
	Rows     int           `yaml:"rows,omitempty" doc:"rows of one window; more is an error; default 1000, at most 100000"`
	Timeout  time.Duration `yaml:"timeout,omitempty" doc:"of one SELECT; default that of SQL"`
	Attempts int           `yaml:"attempts,omitempty" doc:"how often a window is tried whose SELECT fails of itself before it is given up; default 10"`
}

// Config is what Queries use.
type Config struct {
	Queries []Spec
	Engine  query.Engine
	Store   state.Store
	// Output makes the effect that appends records to a stream.
	Output func(stream, id string, recs []stream.Record) state.Effect
	// Watermark is the newest event time; nil: the clock.
	Watermark func(context.Context) (time.Time, error)
	Log       *slog.Logger
	Metrics   prometheus.Registerer
}

// Queries are the continuous queries of one store. They are safe for concurrent use.
type Queries struct {
	cfg Config
	all []*running
}

type running struct {
	Spec
	q    *Queries
	text sqlText

	mu     sync.Mutex // guards status
	status Status

	windows, rows, failures, skipped, givenUp prometheus.Counter
}

// A Status says how a query is doing.
type Status struct {
	Name      string    `json:"name"`
	Last      time.Time `json:"last"` // end of the last window that ran; zero: none yet
	Windows   uint64    `json:"windows"`
	Rows      uint64    `json:"rows"`
	Failures  uint64    `json:"failures"`
	Skipped   uint64    `json:"skipped"`  // windows too old to catch up
	GivenUp   uint64    `json:"given_up"` // windows whose SELECT failed too often
	LastError string    `json:"last_error,omitempty"`
}

// New checks queries. The error lists everything that is wrong.
func New(cfg Config) (*Queries, error) {
	if cfg.Engine == nil || cfg.Store == nil || cfg.Output == nil {
		return nil, errors.New("continuous queries need an engine, a store and an output")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Queries) > maxQueries {
		return nil, fmt.Errorf("%d continuous queries: at most %d", len(cfg.Queries), maxQueries)
	}
	q := &Queries{cfg: cfg}
	var errs []error
	seen := map[string]bool{}
	for _, s := range cfg.Queries {
		r := &running{Spec: s, q: q}
		err := r.check()
		if err == nil && seen[s.Name] {
			err = errors.New("its name is taken: rename one")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("query %s: %w", s.Name, err))
			continue
		}
		seen[s.Name] = true
		r.status.Name = s.Name
		errs = append(errs, r.register(cfg.Metrics))
		q.all = append(q.all, r)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return q, nil
}

// Check tells what is wrong with a query, without a server.
func (s *Spec) Check() error { return (&running{Spec: *s}).check() }

func (r *running) check() error {
	for i := range len(r.Name) {
		c := r.Name[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return errors.New("name: use letters, digits, _ and -")
		}
	}
	if r.Name == "" || len(r.Name) > 64 {
		return errors.New("name: use 1 to 64 letters, digits, _ and -")
	}
	if r.Every < MinEvery || r.Every > 24*time.Hour || r.Every%time.Second != 0 {
		return fmt.Errorf("every: %v: use whole seconds from 1s to 24h", r.Every)
	}
	if r.Size == 0 {
		r.Size = r.Every
	}
	if r.Size < r.Every || r.Size > 31*24*time.Hour {
		return fmt.Errorf("size: %v: use at least every (%v), so that no row falls between windows, and at most 31 days", r.Size, r.Every)
	}
	if r.Lateness == 0 {
		r.Lateness = DefaultLateness
	}
	r.Lateness = max(r.Lateness, 0)
	if r.CatchUp == 0 {
		r.CatchUp = DefaultCatchUp
	}
	if r.Rows == 0 {
		r.Rows = DefaultRows
	}
	if r.Attempts == 0 {
		r.Attempts = DefaultAttempts
	}
	if r.CatchUp < r.Every || r.Attempts < 1 || r.Timeout < 0 {
		return errors.New("catch_up must be at least every, attempts and timeout positive")
	}
	if r.Rows < 1 || r.Rows > MaxRows {
		return fmt.Errorf("rows: %d: use 1 to %d", r.Rows, MaxRows)
	}
	if r.Output == "" {
		return errors.New("output is missing: name the stream that the rows go to")
	}
	var err error
	r.text, err = parseSQL(r.SQL)
	return err
}

func (r *running) register(reg prometheus.Registerer) error {
	var errs []error
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{
			Name: "milepost_query_continuous_" + name, Help: help, ConstLabels: prometheus.Labels{"query": r.Name},
		})
		if reg != nil {
			errs = append(errs, reg.Register(c))
		}
		return c
	}
	r.windows = counter("windows_total", "Windows that a continuous query has told.")
	r.rows = counter("rows_total", "Rows that a continuous query has put out.")
	r.failures = counter("failures_total", "Attempts of a continuous query that failed.")
	r.skipped = counter("skipped_windows_total", "Windows that were too old to catch up with.")
	r.givenUp = counter("given_up_windows_total", "Windows given up because their SELECT failed too often.")
	return errors.Join(errs...)
}

// Status says how every query is doing.
func (q *Queries) Status() []Status {
	out := make([]Status, len(q.all))
	for i, r := range q.all {
		r.mu.Lock()
		out[i] = r.status
		r.mu.Unlock()
	}
	return out
}

// Run runs the queries until ctx ends.
func (q *Queries) Run(ctx context.Context) error {
	var all sync.WaitGroup
	errs := make([]error, len(q.all))
	for i, r := range q.all {
		all.Go(func() { errs[i] = r.run(ctx) }) // waited for below
	}
	all.Wait()
	return errors.Join(errs...)
}

const (
	lookEvery  = time.Second
	maxBackoff = time.Minute
)

// run looks every second whether a window has closed.
func (r *running) run(ctx context.Context) error {
	pause, attempts := lookEvery, 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		more, err := r.step(ctx, time.Now(), attempts+1 >= r.Attempts)
		var own *query.UserError
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, state.ErrClosed) || errors.Is(err, query.ErrNotBuilt):
			return fmt.Errorf("query %s: %w", r.Name, err)
		case err != nil:
			if attempts == 0 || pause == lookEvery {
				r.q.cfg.Log.WarnContext(ctx, "continuous query fails", "query", r.Name, "error", err)
			}
			r.failed(err)
			if errors.As(err, &own) {
				attempts++
			}
			pause = min(2*pause, maxBackoff)
		case more:
			pause, attempts = 0, 0
		default:
			pause, attempts = lookEvery, 0
		}
		timer.Reset(pause)
		pause = max(pause, lookEvery)
	}
}

func (r *running) failed(err error) {
	r.failures.Inc()
	r.mu.Lock()
	r.status.Failures++
	r.status.LastError = err.Error()
	r.mu.Unlock()
}

// errMoved says that someone else has run the window.
var errMoved = errors.New("the window was run elsewhere: one process at a time runs continuous queries")

func (r *running) stateKey() []byte { return []byte("continuous/" + r.Name) }

// last is the end of the last window that was told; zero: the query is new.
func (r *running) last(rd state.Reader) (time.Time, error) {
	b, err := rd.Get(r.stateKey())
	if err != nil || b == nil {
		return time.Time{}, err
	}
	var s struct {
		End int64 `json:"end"`
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return time.Time{}, fmt.Errorf("stored state of the query is damaged: %w", err)
	}
	return time.UnixMilli(s.End).UTC(), nil
}

// step runs the oldest window that is due; more tells whether another may be. giveUp tells that a window whose SELECT fails of
// itself once more is passed over.
func (r *running) step(ctx context.Context, now time.Time, giveUp bool) (more bool, err error) {
	mark := now
	if r.q.cfg.Watermark != nil {
		if mark, err = r.q.cfg.Watermark(ctx); err != nil {
			return false, fmt.Errorf("watermark: %w", err)
		}
		if mark.After(now) {
			mark = now // a sender's clock that is ahead closes nothing early
		}
	}
	closed := mark.Add(-r.Lateness).UTC().Truncate(r.Every) // the newest end that is due
	var last time.Time
	err = r.q.cfg.Store.View(ctx, func(rd state.Reader) error {
		last, err = r.last(rd)
		return err
	})
	if err != nil {
		return false, err
	}
	if last.IsZero() {
		// A new query begins with the window that is open now.
		return false, r.move(ctx, last, closed, nil)
	}
	r.mu.Lock()
	r.status.Last = last
	r.mu.Unlock()
	end := last.Truncate(r.Every).Add(r.Every) // every may have changed
	if end.After(closed) {
		return false, nil
	}
	if oldest := closed.Add(-r.CatchUp).Truncate(r.Every); end.Before(oldest) {
		n := uint64(oldest.Sub(end) / r.Every) //nolint:gosec // positive
		if err := r.move(ctx, last, oldest.Add(-r.Every), nil); err != nil {
			return false, err
		}
		r.skipped.Add(float64(n))
		r.mu.Lock()
		r.status.Skipped += n
		r.mu.Unlock()
		r.q.cfg.Log.ErrorContext(ctx, "windows of a continuous query are skipped: they are older than catch_up", "query", r.Name, "windows", n)
		return true, nil
	}
	recs, err := r.ask(ctx, end)
	var own *query.UserError
	if err != nil {
		if !giveUp || !errors.As(err, &own) {
			return false, err
		}
		if err2 := r.move(ctx, last, end, nil); err2 != nil {
			return false, err2
		}
		r.failed(err)
		r.givenUp.Inc()
		r.mu.Lock()
		r.status.GivenUp++
		r.mu.Unlock()
		r.q.cfg.Log.ErrorContext(ctx, "window of a continuous query is given up", "query", r.Name, "end", end, "error", err)
		return true, nil
	}
	if err := r.move(ctx, last, end, recs); err != nil {
		return false, err
	}
	r.windows.Inc()
	r.rows.Add(float64(len(recs)))
	r.mu.Lock()
	r.status.Windows++
	r.status.Rows += uint64(len(recs))
	r.status.Last, r.status.LastError = end, ""
	r.mu.Unlock()
	return !end.Add(r.Every).After(closed), nil
}

// move notes that the windows up to one end are told, with the effect that tells them.
func (r *running) move(ctx context.Context, from, to time.Time, recs []stream.Record) error {
	return r.q.cfg.Store.Update(ctx, func(tx state.Tx) error {
		at, err := r.last(tx)
		if err != nil {
			return err
		}
		if !at.Equal(from) {
			return errMoved
		}
		if err := tx.Set(r.stateKey(), fmt.Appendf(nil, `{"end":%d}`, to.UnixMilli())); err != nil {
			return err
		}
		if len(recs) == 0 {
			return nil
		}
		return tx.Emit(r.q.cfg.Output(r.Output, fmt.Sprintf("continuous/%s/%d", r.Name, to.UnixMilli()), recs))
	})
}

// ask runs the SELECT for one window.
func (r *running) ask(ctx context.Context, end time.Time) ([]stream.Record, error) {
	start := end.Add(-r.Size)
	var out bounded
	res, err := r.q.cfg.Engine.Query(ctx, r.text.fill(start, end), query.JSON, query.Limits{Timeout: r.Timeout, Rows: r.Rows}, &out)
	switch {
	case out.full:
		return nil, &query.UserError{Msg: fmt.Sprintf("the rows of a window exceed %d MiB: ask for fewer columns or rows", maxBytes>>20)}
	case err != nil:
		return nil, err
	case res.Truncated:
		return nil, &query.UserError{Msg: fmt.Sprintf("a window has more than %d rows: raise rows, or ask for fewer", r.Rows)}
	}
	return r.records(out.b, start, end)
}

// records makes a record of each row: an object of its columns, after query, start and end (Unix ms).
func (r *running) records(result []byte, start, end time.Time) ([]stream.Record, error) {
	var res struct {
		Columns []query.Column      `json:"columns"`
		Rows    [][]json.RawMessage `json:"rows"`
	}
	if err := json.Unmarshal(result, &res); err != nil {
		return nil, fmt.Errorf("read result: %w", err)
	}
	names := make([]string, len(res.Columns))
	for i, c := range res.Columns {
		names[i] = c.Name
	}
	key, err := r.columns(names)
	if err != nil {
		return nil, err
	}
	for i := range names {
		name, err := json.Marshal(names[i])
		if err != nil {
			return nil, err
		}
		names[i] = string(name)
	}
	recs := make([]stream.Record, 0, len(res.Rows))
	for _, row := range res.Rows {
		b := fmt.Appendf(nil, `{"query":%q,"start":%d,"end":%d`, r.Name, start.UnixMilli(), end.UnixMilli())
		for i, v := range row {
			b = append(append(append(append(b, ','), names[i]...), ':'), v...)
		}
		rec := stream.Record{Key: r.Name, Data: append(b, '}')}
		if key >= 0 {
			rec.Key = strings.Trim(string(row[key]), `"`)
			var text string
			if json.Unmarshal(row[key], &text) == nil && text != "" {
				rec.Key = text
			}
			if len(rec.Key) > 256 {
				rec.Key = strings.ToValidUTF8(rec.Key[:256], "")
			}
		}
		recs = append(recs, rec)
	}
	return recs, nil
}

// A bounded buffer takes so much and no more.
type bounded struct {
	b    []byte
	full bool
}

func (w *bounded) Write(p []byte) (int, error) {
	if len(w.b)+len(p) > maxBytes {
		w.full = true
		return 0, errors.New("result is too large")
	}
	w.b = append(w.b, p...)
	return len(p), nil
}
