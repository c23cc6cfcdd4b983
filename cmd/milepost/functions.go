package main

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/milepost/milepost/internal/conf"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/lambda"
	"github.com/milepost/milepost/process/lambda/runtime"
	"github.com/milepost/milepost/stream"
)

// LambdaConfig is what all functions share.
type LambdaConfig struct {
	Concurrency int    `yaml:"concurrency" default:"64" doc:"invocations of all functions together at one time; those of a higher priority go first"`
	Buckets     string `yaml:"buckets" doc:"directory whose subdirectories are the buckets of on_failure: s3://NAME; empty: buckets below data"`
}

// stream finds a stream by its name, for functions and their output.
func (s *server) stream(name string) (stream.Log, error) { return s.logs.Stream(name) }

// openFunctions opens users' functions and starts their mappings. The Kinesis door is made first, as it knows the consumers.
func (s *server) openFunctions(ctx context.Context, fs vfs.FS) error {
	if err := s.openKinesis(ctx, fs); err != nil {
		return err
	}
	metrics, err := runtime.NewMetrics(s.reg)
	if err != nil {
		return err
	}
	keys, err := s.cfg.Kinesis.keys()
	if err != nil {
		return err
	}
	cfg := lambda.Config{
		Store: s.state, Functions: s.cfg.Functions, Stream: s.stream,
		Open: func(name string, c lambda.FunctionConfig) (runtime.Invoker, error) {
			return runtime.New(s.cfg.runtime(name, c), runtime.Deps{Log: s.log, Metrics: metrics})
		},
		DeadLetters: s.dead, Outbox: s.outbox, Meter: s.meter, Gate: process.NewGate(s.cfg.Lambda.Concurrency), Buckets: s.cfg.Lambda.Buckets, FS: fs,
		Region: s.cfg.Kinesis.Region, Account: s.cfg.Kinesis.Account, Log: s.log, Metrics: s.reg,
	}
	if cfg.Buckets == "" {
		cfg.Buckets = filepath.Join(s.cfg.Data, "buckets")
	}
	if s.kinesis != nil {
		cfg.Consumer = s.kinesis.Consumer
	}
	for _, k := range keys {
		cfg.AccessKeys = append(cfg.AccessKeys, lambda.AccessKey(k))
	}
	if s.functions, err = lambda.Open(cfg); err != nil {
		return err
	}
	s.onFailure(func() error { return s.functions.Close(context.WithoutCancel(ctx)) })
	return nil
}

// runtime is what runs a function. A relative directory is relative to the configuration file.
func (c *Config) runtime(name string, f lambda.FunctionConfig) runtime.Config {
	r := runtime.Config{
		Name: name, Runtime: f.Runtime, Handler: f.Handler, Code: f.Code, Command: f.Command, URL: f.URL, Secret: f.Secret,
		Environment: f.Environment, Timeout: conf.Duration(f.Timeout), MemorySize: f.Memory, Concurrency: f.Concurrency,
		Region: c.Kinesis.Region, Account: c.Kinesis.Account,
	}
	switch r.Runtime {
	case "go":
		r.Runtime = "provided"
	case "python":
		r.Runtime = "python3"
	case "node":
		r.Runtime = "nodejs"
	case "command", "http":
		r.Runtime = ""
	}
	if r.Code != "" && !filepath.IsAbs(r.Code) {
		r.Code = filepath.Join(c.dir, r.Code)
	}
	if len(c.Kinesis.AccessKeys) > 0 {
		k := c.Kinesis.AccessKeys[0]
		r.Credentials = runtime.Credentials{AccessKeyID: k.ID, SecretAccessKey: k.Secret}
	}
	return r
}

// checkFunctions reports what is wrong with functions, by key.
func (c *Config) checkFunctions() []error {
	var errs []error
	if err := c.Functions.Validate(); err != nil {
		errs = append(errs, err)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Functions)) {
		if err := runtime.Check(c.runtime(name, c.Functions[name])); err != nil {
			errs = append(errs, fmt.Errorf("functions.%s: %w", name, err))
		}
	}
	return errs
}
