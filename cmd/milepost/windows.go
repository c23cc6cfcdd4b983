package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/process/window/lane"
	"github.com/milepost/milepost/query"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// windowDefs compiles the configured windows, by the stream that they read.
func (c *Config) windowDefs() (map[string][]*window.Def, error) {
	out := map[string][]*window.Def{}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(c.Windows)) {
		spec := c.Windows[name]
		if spec.Name != "" && spec.Name != name {
			errs = append(errs, fmt.Errorf("windows.%s.name: its name is %s: remove name", name, name))
			continue
		}
		spec.Name = name
		d, err := window.Compile(spec)
		if err != nil {
			errs = append(errs, fmt.Errorf("windows.%s: %w", name, err))
			continue
		}
		out[d.Spec.Stream] = append(out[d.Spec.Stream], d)
	}
	return out, errors.Join(errs...)
}

// openWindows runs the windows of each stream.
func (s *server) openWindows(ctx context.Context, _ vfs.FS) error {
	defs, err := s.cfg.windowDefs()
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(defs)) {
		if err := s.openWindowsOf(ctx, name, defs[name]); err != nil {
			return fmt.Errorf("windows of stream %s: %w", name, err)
		}
	}
	return nil
}

func (s *server) openWindowsOf(ctx context.Context, name string, defs []*window.Def) error {
	source, err := s.logs.Stream(name)
	if err != nil {
		return fmt.Errorf("%w: name it under streams:", err)
	}
	outputs := map[string]*process.Output{}
	for _, d := range defs {
		if to := d.Spec.Output; to != "" {
			if _, err := s.logs.Stream(to); err != nil {
				return fmt.Errorf("windows.%s.output: %w: name it under streams:", d.Spec.Name, err)
			}
			if outputs[to], err = s.outbox.Output(ctx, to); err != nil {
				return err
			}
		}
	}
	w, err := lane.New(lane.Config{
		Stream: name, Source: source, Store: s.state, Catalog: s.catalog, Windows: defs, Log: s.log, Metrics: s.reg,
		Output: func(to, id string, recs []stream.Record) state.Effect { return outputs[to].Effect(id, recs) },
		Admit:  func(ctx context.Context, to string) error { return outputs[to].Wait(ctx) },
	})
	if err != nil {
		return err
	}
	r, err := process.New(process.Config{Log: source, StreamName: name, Store: s.state, Outbox: s.outbox, Meter: s.meter, Logger: s.log})
	if err != nil {
		return err
	}
	if err := r.AddFolder(w, process.Options{MaxAttempts: 5}); err != nil {
		return err
	}
	if err := r.Start(); err != nil {
		return err
	}
	combining, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.workers.Go(func() { // closeWindows waits
		if err := w.Run(combining); err != nil {
			s.log.ErrorContext(combining, "windows over several shards", "stream", name, "error", err)
		}
	})
	s.windows = append(s.windows, windowing{r, stop})
	s.onFailure(func() error {
		stop()
		return r.Stop(context.WithoutCancel(ctx))
	})
	return nil
}

// A windowing is what runs the windows of one stream.
type windowing struct {
	runner *process.Runner
	stop   context.CancelFunc // of what combines shards
}

func (s *server) closeWindows(ctx context.Context) error {
	var errs []error
	for _, w := range s.windows {
		errs = append(errs, w.runner.Stop(ctx))
		w.stop()
	}
	return errors.Join(errs...)
}

// windowTable is what every window came to.
type windowTable struct{ store state.Store }

func windowColumns() []column[window.Stored] {
	type w = window.Stored
	return []column[w]{
		{"window", query.Varchar, func(x *w) query.Value { return query.Text(x.Window) }},
		{"key", query.Varchar, func(x *w) query.Value { return query.Text(x.Key) }},
		{"start_time", query.Timestamp, func(x *w) query.Value { return query.Int(x.Start) }},
		{"end_time", query.Timestamp, func(x *w) query.Value { return query.Int(x.End) }},
		{"rows", query.BigInt, func(x *w) query.Value { return query.Int(int64(x.Rows)) }}, //nolint:gosec // a count
		{"figures", query.Map, windowFigures},
		{"texts", query.Varchar, windowTexts},
		{"final", query.Boolean, func(x *w) query.Value { return query.Bool(x.Final) }},
		{"late", query.Boolean, func(x *w) query.Value { return query.Bool(x.Late) }},
		{"revision", query.Integer, func(x *w) query.Value { return query.Int(int64(x.Revision)) }},
	}
}

func windowFigures(x *window.Stored) query.Value {
	var names []string
	var values []float64
	for i, v := range x.Values {
		if v.Kind == window.Number && !math.IsNaN(v.Num) {
			names, values = append(names, x.Names[i]), append(values, v.Num)
		}
	}
	if len(names) == 0 {
		return query.Value{}
	}
	return query.Pairs(names, values)
}

func windowTexts(x *window.Stored) query.Value {
	all := map[string]string{}
	for i, v := range x.Values {
		if v.Kind == window.Text {
			all[x.Names[i]] = v.Text
		}
	}
	if len(all) == 0 {
		return query.Value{}
	}
	b, err := json.Marshal(all)
	if err != nil {
		return query.Value{}
	}
	return query.Text(string(b))
}

// Columns implements query.Table.
func (t *windowTable) Columns() []query.Column { return columnsOf(windowColumns()) }

// Scan implements query.Table.
func (t *windowTable) Scan(ctx context.Context, cols []int, emit func([]query.Value) error) error {
	all, row := windowColumns(), make([]query.Value, len(cols))
	var failed error
	err := lane.Each(ctx, t.store, "", 0, 0, func(w *window.Stored) bool {
		fillRow(row, all, cols, w)
		failed = emit(row)
		return failed == nil
	})
	return errors.Join(failed, err)
}
