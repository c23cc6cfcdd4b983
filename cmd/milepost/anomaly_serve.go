package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/milepost/milepost/internal/conf"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/anomaly"
	"github.com/milepost/milepost/stream"
)

// AnomalyConfig is which detectors watch the fleet.
type AnomalyConfig struct {
	Shipped    bool                     `yaml:"shipped" default:"true" doc:"run the detectors that come with Milepost"`
	Detectors  []anomaly.Detector       `yaml:"detectors" doc:"your own detectors"`
	Every      conf.Duration            `yaml:"every" default:"20s" doc:"event time over which readings are averaged before a detector looks"`
	MaxForests int                      `yaml:"max_forests" default:"1000" doc:"vehicles with a forest at one time, about 0.6 MB each; others are watched by trend detectors only"`
	Endpoints  []anomaly.EndpointConfig `yaml:"endpoints" doc:"models elsewhere that score readings, in the shape of SageMaker's invocations"`
}

func (c *AnomalyConfig) detectors() []anomaly.Detector {
	var all []anomaly.Detector
	if c.Shipped {
		all = anomaly.Shipped()
	}
	return append(all, c.Detectors...)
}

// check tells what is wrong with detectors and endpoints.
func (c *Config) checkAnomaly() error {
	var errs []error
	if _, err := anomaly.Compile(c.Anomaly.detectors(), time.Duration(c.Anomaly.Every), c.catalog()); err != nil {
		errs = append(errs, fmt.Errorf("anomaly.detectors: %w", err))
	}
	if c.Anomaly.MaxForests < 1 {
		errs = append(errs, fmt.Errorf("anomaly.max_forests is %d: write at least 1", c.Anomaly.MaxForests))
	}
	for _, e := range c.Anomaly.Endpoints {
		e.Catalog = c.catalog()
		if _, err := anomaly.NewEndpoint(e); err != nil {
			errs = append(errs, fmt.Errorf("anomaly.endpoints: %w", err))
		}
	}
	return errors.Join(errs...)
}

// openAnomaly runs the detectors, each endpoint in a runner of its own, so that a slow model delays nobody.
func (s *server) openAnomaly(ctx context.Context, _ vfs.FS) error {
	if s.plan != nil {
		r, err := process.New(s.runnerConfig(readingsStream, s.readings))
		if err != nil {
			return err
		}
		if err := r.AddFolder(anomaly.New(anomaly.Config{
			Plan: s.plan, Source: s.readings, Catalog: s.catalog, Sinks: s.route, Alerted: s.book.Touch, Log: s.log, Metrics: s.reg, MaxForests: s.cfg.Anomaly.MaxForests,
		}), process.Options{MaxAttempts: 5}); err != nil {
			return err
		}
		if err := s.startBeside(ctx, readingsStream, r, nil); err != nil {
			return err
		}
	}
	for _, e := range s.cfg.Anomaly.Endpoints {
		e.Catalog = s.catalog
		h, err := anomaly.NewEndpoint(e)
		if err != nil {
			return fmt.Errorf("anomaly.endpoints: %w", err)
		}
		r, err := process.New(s.runnerConfig(readingsStream, s.readings))
		if err != nil {
			return err
		}
		if e.Output != "" {
			if _, err := s.logs.Stream(e.Output); err != nil {
				return fmt.Errorf("anomaly.endpoints: %s: output: %w: name it in the section streams", e.Name, err)
			}
		}
		if err := r.AddHandler(h, process.Options{BatchSize: max(500, e.Batch), MaxAttempts: 5, Output: e.Output}); err != nil {
			return err
		}
		if err := s.startBeside(ctx, readingsStream, r, nil); err != nil {
			return err
		}
	}
	return nil
}

// runnerConfig is that of a runner beside the fleet's, with what they share.
func (s *server) runnerConfig(name string, log stream.Log) process.Config {
	return process.Config{Log: log, StreamName: name, Store: s.state, Outbox: s.outbox, Meter: s.meter, Logger: s.log}
}
