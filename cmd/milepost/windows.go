package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/process/window/lane"
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
		return fmt.Errorf("%w: name it in the section streams", err)
	}
	outputs := map[string]*process.Output{}
	for _, d := range defs {
		if to := d.Spec.Output; to != "" {
			if _, err := s.logs.Stream(to); err != nil {
				return fmt.Errorf("windows.%s.output: %w: name it in the section streams", d.Spec.Name, err)
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
	r, err := process.New(s.runnerConfig(name, source))
	if err != nil {
		return err
	}
	if err := r.AddFolder(w, process.Options{MaxAttempts: 5}); err != nil {
		return err
	}
	return s.startBeside(ctx, name, r, func(ctx context.Context) {
		if err := w.Run(ctx); err != nil {
			s.log.ErrorContext(ctx, "windows over several shards", "stream", name, "error", err)
		}
	})
}

// A beside is a runner beside the fleet's.
type beside struct {
	stream string
	runner *process.Runner
	stop   context.CancelFunc // of what works with it
}

// startBeside starts a runner over the stream of that name, and what works with it if there is something; closeBeside ends both.
func (s *server) startBeside(ctx context.Context, name string, r *process.Runner, work func(context.Context)) error {
	if err := r.Start(); err != nil {
		return err
	}
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	if work != nil {
		s.workers.Go(func() { work(working) }) // closeRooms waits
	}
	s.beside = append(s.beside, beside{name, r, stop})
	s.onFailure(func() error {
		stop()
		return r.Stop(context.WithoutCancel(ctx))
	})
	return nil
}

func (s *server) closeBeside(ctx context.Context) error {
	var errs []error
	for _, b := range s.beside {
		errs = append(errs, b.runner.Stop(ctx))
		b.stop()
	}
	return errors.Join(errs...)
}
