package main

import (
	"context"
	"net/http"
	"path/filepath"

	"github.com/milepost/milepost/internal/bearer"
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
	keys, err := s.cfg.Kinesis.keys()
	if err != nil {
		return err
	}
	cfg := lambda.Config{
		Store: s.state, Functions: s.cfg.Functions, Stream: s.stream,
		DeadLetters: s.dead, Outbox: s.outbox, Meter: s.meter, Gate: process.NewGate(s.cfg.Lambda.Concurrency), Buckets: s.cfg.Lambda.Buckets, FS: fs,
		Region: s.cfg.Kinesis.Region, Account: s.cfg.Kinesis.Account, Log: s.log, Metrics: s.reg,
	}
	if cfg.Buckets == "" {
		cfg.Buckets = filepath.Join(s.cfg.Data, "buckets")
	}
	if s.kinesis != nil {
		cfg.Consumer = s.kinesis.Consumer
	}
	if len(keys) > 0 {
		cfg.Credentials = runtime.Credentials{AccessKeyID: keys[0].ID, SecretAccessKey: keys[0].Secret}
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

// resolve makes the directories of functions start from the configuration file's.
func (c *Config) resolve() {
	for name, f := range c.Functions {
		if f.Code != "" && !filepath.IsAbs(f.Code) {
			f.Code = filepath.Join(c.dir, f.Code)
			c.Functions[name] = f
		}
	}
}

// guarded lets everybody who reaches the dashboard look, and those change things who have the token, if there is one. Requests from other
// sites' pages change nothing.
func (s *server) guarded(next http.Handler) http.Handler {
	token := bearer.New(s.cfg.HTTP.Token)
	return http.NewCrossOriginProtection().Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead && !token.Allows(r) {
			bearer.Ask(w)
			http.Error(w, "send the token of http.token: Authorization: Bearer <token>", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	}))
}
