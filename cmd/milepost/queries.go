package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/query"
	"github.com/milepost/milepost/query/continuous"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// queries returns the configured continuous queries, named.
func (c *Config) queries() ([]continuous.Spec, error) {
	var out []continuous.Spec
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(c.Queries)) {
		q := c.Queries[name]
		if q.Name != "" && q.Name != name {
			errs = append(errs, fmt.Errorf("queries.%s.name: its name is %s: remove name", name, name))
		}
		q.Name = name
		if err := q.Check(); err != nil {
			errs = append(errs, fmt.Errorf("queries.%s: %w", name, err))
		}
		out = append(out, q)
	}
	return out, errors.Join(errs...)
}

// prepareQueries tells what is wrong with the SELECTs, by the key of each. It needs no server: it asks an engine over empty tables.
func (c *Config) prepareQueries(ctx context.Context) (err error) {
	specs, err := c.queries()
	if err != nil || len(specs) == 0 {
		return err
	}
	engine, err := openEmptySQL(c.catalog())
	if errors.Is(err, query.ErrNotBuilt) {
		return fmt.Errorf("queries: %w, or remove queries", err)
	}
	if err != nil {
		return fmt.Errorf("open SQL: %w", err)
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	var errs []error
	for _, q := range specs {
		if err := q.Prepare(ctx, engine); err != nil {
			errs = append(errs, fmt.Errorf("queries.%s.%w", q.Name, err))
		}
	}
	return errors.Join(errs...)
}

// openQueries runs continuous SQL. It comes after the engine.
func (s *server) openQueries(ctx context.Context, _ vfs.FS) error {
	specs, err := s.cfg.queries()
	if err != nil || len(specs) == 0 {
		return err
	}
	if err := s.cfg.prepareQueries(ctx); err != nil {
		return err
	}
	outputs := map[string]*process.Output{}
	for _, q := range specs {
		if _, err := s.logs.Stream(q.Output); err != nil {
			return fmt.Errorf("queries.%s.output: %w: name it in the section streams", q.Name, err)
		}
		if outputs[q.Output], err = s.outbox.Output(ctx, q.Output); err != nil {
			return err
		}
	}
	queries, err := continuous.New(continuous.Config{
		Queries: specs, Engine: s.sql, Store: s.state, Log: s.log, Metrics: s.reg,
		Output: func(to, id string, recs []stream.Record) state.Effect { return outputs[to].Effect(id, recs) },
	})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- queries.Run(running) }() // closeQueries waits
	s.closeQueries = func() error {
		stop()
		return <-done
	}
	s.onFailure(s.closeQueries)
	return nil
}
