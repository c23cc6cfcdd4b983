// Package lane runs windows over a stream: one process.Folder for all windows of the stream.
//
// A window's key decides how. The rows of a vehicle, or of a partition key, are all in one shard: its lane sees each of them, in order,
// and alone says what the window came to. The rows of any other key (the whole fleet, a status) come from all shards: each lane
// keeps its part, and Run, of which there is one, puts the parts together once the slowest shard that is not silent has come past the
// window's end.
//
// Rows count once: those that a device sends again (the same vehicle, event time and payload) are recognised for as long as a
// row may still change a window (seen.go). Result, checkpoint and the effect that appends the result to a stream are one step, so
// a crash neither loses nor doubles a result.
//
// State of one key belongs to one lane, so a Folder needs Options.Lanes of 1; shards are what runs side by side.
package lane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/internal/nearest"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/rule"
	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// Config is what Windows use.
type Config struct {
	Stream  string // that all Windows read
	Source  stream.Log
	Store   state.Store
	Catalog *telemetry.Catalog
	Windows []*window.Def
	// Output makes the effect that appends records to a stream, in the step that it is emitted in. Required if a window has an output.
	// (process.Output.Effect.)
	Output func(stream, id string, recs []stream.Record) state.Effect
	// Admit waits until a stream that results go to has room (process.Output.Wait); nil: it always has.
	Admit   func(ctx context.Context, stream string) error
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Windows are the windows of one stream. They are safe for concurrent use.
type Windows struct {
	cfg     Config
	defs    []*bound
	local   bool // some are
	spread  bool // some are not
	dedups  bool // rows count once
	outputs []string
	unique  string // JSON paths, the same for all
	time    string
	horizon int64 // of all
	idle    int64 // of the stream, for its watermark
	metrics metrics
}

// A bound window knows where its columns come from.
type bound struct {
	*window.Def
	keys    []byte // prefixes of its records
	panes   []byte
	expiry  []byte
	filter  *rule.Filter
	key     column
	columns []column
	counts  counters
}

// A column is where a value comes from.
type column struct {
	kind columnKind
	sig  telemetry.SignalID
	name string // or path of a JSON object
}

type columnKind uint8

const (
	colSignal columnKind = iota
	colStatus
	colVehicle
	colLat
	colLon
	colPath
	colFleet
	colKey
)

type metrics struct {
	rows, duplicates, rejected, misplaced prometheus.Counter
}

type counters struct {
	late, tooLate, crowded, full, unkeyed, results, revised prometheus.Counter
}

// New checks windows against their stream.
func New(cfg Config) (*Windows, error) {
	if cfg.Source == nil || cfg.Store == nil || cfg.Catalog == nil {
		return nil, errors.New("windows need a stream, a store and a catalog")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	w := &Windows{cfg: cfg, idle: -1}
	if err := w.bindAll(); err != nil {
		return nil, err
	}
	w.dedups = cfg.Stream == window.Readings || w.unique != ""
	return w, w.register()
}

// Check tells what New would refuse of a stream's windows, without the stream.
func Check(name string, windows []*window.Def, cat *telemetry.Catalog) error {
	w := &Windows{cfg: Config{Stream: name, Windows: windows, Catalog: cat, Output: func(string, string, []stream.Record) state.Effect { return state.Effect{} }}}
	return w.bindAll()
}

func (w *Windows) bindAll() error {
	var errs []error
	for i, d := range w.cfg.Windows {
		b, err := w.bind(d, i)
		if err != nil {
			errs = append(errs, fmt.Errorf("window %s: %w", d.Spec.Name, err))
			continue
		}
		w.defs = append(w.defs, b)
		if o := d.Spec.Output; o != "" && !slices.Contains(w.outputs, o) {
			w.outputs = append(w.outputs, o)
		}
		w.local, w.spread = w.local || d.Local(), w.spread || !d.Local()
		w.horizon = max(w.horizon, d.Horizon())
		w.idle = max(w.idle, d.Idle())
	}
	return errors.Join(errs...)
}

func (w *Windows) bind(d *window.Def, index int) (*bound, error) {
	b := &bound{Def: d, keys: defPrefix(keyPrefix, d), panes: defPrefix(panePrefix, d), expiry: defPrefix(expiryPrefix, d)}
	s := &d.Spec
	if s.Stream != w.cfg.Stream {
		return nil, fmt.Errorf("it reads %s, not %s", s.Stream, w.cfg.Stream)
	}
	for _, o := range w.cfg.Windows[:index] {
		if o.Spec.Name == s.Name {
			return nil, errors.New("its name is taken: rename one")
		}
	}
	if s.Output != "" && w.cfg.Output == nil {
		return nil, fmt.Errorf("output: nothing can append to stream %s here: remove output", s.Output)
	}
	if s.Output == s.Stream {
		return nil, fmt.Errorf("output: %s is what it reads: results would be read again for ever; choose another stream", s.Output)
	}
	if s.Unique != "" {
		if w.unique != "" && w.unique != s.Unique {
			return nil, fmt.Errorf("unique: another window of %s says %s: all of a stream must agree", s.Stream, w.unique)
		}
		w.unique = s.Unique
	}
	if index > 0 && s.Time != w.time {
		return nil, fmt.Errorf("time: the first window of %s says %q: all of a stream must agree", s.Stream, w.time)
	}
	w.time = s.Time
	var err error
	if s.Where != "" {
		if s.Stream == window.Readings {
			b.filter, err = rule.CompileFilter(s.Where, w.cfg.Catalog)
		} else {
			b.filter, err = rule.CompileFieldFilter(s.Where)
		}
		if err != nil {
			return nil, err
		}
	}
	switch s.Key {
	case window.ByFleet:
		b.key = column{kind: colFleet}
	case window.ByKey:
		b.key = column{kind: colKey}
	default:
		if b.key, err = w.column(s.Key); err != nil {
			return nil, fmt.Errorf("key: %w", err)
		}
	}
	for _, name := range d.Columns {
		c, err := w.column(name)
		if err != nil {
			return nil, err
		}
		if (c.kind == colStatus || c.kind == colVehicle) && d.Numeric(name) {
			return nil, fmt.Errorf("%s is text: use count, first, last or distinct of it", name)
		}
		b.columns = append(b.columns, c)
	}
	return b, nil
}

func (w *Windows) column(name string) (column, error) {
	if w.cfg.Stream != window.Readings {
		return column{kind: colPath, name: name}, nil
	}
	switch name {
	case "status":
		return column{kind: colStatus, name: name}, nil
	case window.ByVehicle, "vehicle_id", "truck_id":
		return column{kind: colVehicle, name: name}, nil
	case "lat":
		return column{kind: colLat, name: name}, nil
	case "lon", "long":
		return column{kind: colLon, name: name}, nil
	}
	id, ok := w.cfg.Catalog.Lookup([]byte(name))
	if !ok {
		known := []string{"status", "vehicle", "lat", "lon"}
		for i := range w.cfg.Catalog.Len() {
			known = append(known, w.cfg.Catalog.Def(telemetry.SignalID(i)).Name) //nolint:gosec // bounded by MaxSignals
		}
		hint := nearest.Hint(name, known)
		if hint == "" {
			hint = "; declare it under signals"
		}
		return column{}, fmt.Errorf("no signal is called %s%s", name, hint)
	}
	return column{kind: colSignal, sig: id, name: name}, nil
}

func (w *Windows) register() error {
	var errs []error
	counter := func(name, help string, labels prometheus.Labels) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "milepost_window_" + name, Help: help, ConstLabels: labels})
		if w.cfg.Metrics != nil {
			errs = append(errs, w.cfg.Metrics.Register(c))
		}
		return c
	}
	l := prometheus.Labels{"stream": w.cfg.Stream}
	w.metrics = metrics{
		rows:       counter("rows_total", "Rows that windows looked at.", l),
		duplicates: counter("duplicates_total", "Rows that had been seen before and count nothing.", l),
		rejected:   counter("rejected_total", "Records that windows cannot read.", l),
		misplaced:  counter("misplaced_total", "Readings whose partition key lies in another shard than their vehicle: not counted by vehicle.", l),
	}
	for _, b := range w.defs {
		l := prometheus.Labels{"window": b.Spec.Name}
		b.counts = counters{
			late:    counter("late_rows_total", "Rows that came after their window had closed: it is computed again.", l),
			tooLate: counter("too_late_rows_total", "Rows that came so late that they are left out.", l),
			crowded: counter("crowded_rows_total", "Rows left out because their key holds too many sessions or rows.", l),
			full:    counter("full_rows_total", "Rows left out because max_keys keys have open windows.", l),
			unkeyed: counter("unkeyed_rows_total", "Rows left out because they do not have the key, or one over 256 bytes.", l),
			results: counter("results_total", "Results told, early and repeated ones included.", l),
			revised: counter("revised_total", "Results told again because of late rows.", l),
		}
	}
	return errors.Join(errs...)
}

var _ process.Folder = (*Windows)(nil)

// Name keys the checkpoints of the stream's windows.
func (w *Windows) Name() string { return "windows-" + w.cfg.Stream }

// Lane returns the fold of one shard.
func (w *Windows) Lane(shard stream.ShardID, _ int) process.Fold {
	l := &lane{w: w, shard: shard, decoder: telemetry.NewDecoder(w.cfg.Catalog)}
	shards, err := w.cfg.Source.Shards(context.Background())
	if err != nil {
		panic(fmt.Sprintf("list shards of %s: %v", w.cfg.Stream, err)) // the runner calls Lane again
	}
	i := slices.IndexFunc(shards, func(s stream.Shard) bool { return s.ID == shard })
	if i >= 0 {
		l.ours = shards[i]
	} else {
		l.ours = stream.Shard{ID: shard, To: stream.MaxHash}
	}
	l.reset()
	return l
}
