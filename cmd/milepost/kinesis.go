package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/milepost/milepost/ingest/kinesisapi"
	"github.com/milepost/milepost/internal/vfs"
)

// openKinesis makes the Kinesis door over the same log as the others; listenAWS lets requests in. The built-in streams are there
// too: what is put into readings goes the way of every reading.
func (s *server) openKinesis(ctx context.Context, fs vfs.FS) error {
	c := s.cfg.Kinesis
	if c.Listen == "" && c.TLS.Cert == "" {
		return nil
	}
	keys, err := c.keys()
	if err != nil {
		return err
	}
	transition := time.Duration(c.Transition)
	if transition == 0 {
		transition = -1 // the door's zero is its own default
	}
	s.kinesis, err = kinesisapi.New(kinesisapi.Config{
		Store: s.logs, Dir: filepath.Join(s.cfg.Data, "kinesis"), FS: fs, Log: s.log, Metrics: s.reg,
		Region: c.Region, Account: c.Account, AccessKeys: keys, Reserved: append([]string{readingsStream, deadStream}, slices.Sorted(maps.Keys(s.cfg.Streams))...), // the file's are not deleted here
		Throttle: kinesisapi.Throttle(c.Throttle), Transition: transition, ConsumersPerStream: c.Consumers,
	})
	if err != nil {
		return fmt.Errorf("open Kinesis: %w", err)
	}
	s.onFailure(func() error { return s.kinesis.Close(ctx) })
	return nil
}

// listenAWS serves Kinesis, and Lambda's API at the same address.
func (s *server) listenAWS(ctx context.Context) error {
	if s.kinesis == nil {
		return nil
	}
	c := s.cfg.Kinesis
	s.kinesis.Beside(s.functions.API())
	if c.Listen != "" {
		if err := s.listenKinesis(ctx, "kinesis.listen", c.Listen, nil); err != nil {
			return err
		}
	}
	if c.TLS.Cert == "" {
		return nil
	}
	cert, err := tls.LoadX509KeyPair(c.TLS.Cert, c.TLS.Key)
	if err != nil {
		return fmt.Errorf("kinesis.tls: %w", err)
	}
	return s.listenKinesis(ctx, "kinesis.tls.listen", c.TLS.Listen, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
}

func (s *server) listenKinesis(ctx context.Context, key, addr string, conf *tls.Config) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	if host, _, err := net.SplitHostPort(l.Addr().String()); err == nil && len(s.cfg.Kinesis.AccessKeys) == 0 {
		if ip := net.ParseIP(host); ip != nil && !ip.IsLoopback() {
			_ = l.Close()
			return fmt.Errorf("%s is %s, which others can reach, and there are no kinesis.access_keys: listen on 127.0.0.1, or configure keys", key, addr)
		}
	}
	s.doors.Go(func() { // drain waits, after closing the door
		if err := s.kinesis.Serve(l, conf); err != nil {
			s.log.ErrorContext(ctx, "serve Kinesis", "address", addr, "error", err)
		}
	})
	return nil
}

// keys reads the access keys and the policy files that they name.
func (c *KinesisConfig) keys() ([]kinesisapi.AccessKey, error) {
	out := make([]kinesisapi.AccessKey, 0, len(c.AccessKeys))
	for i, k := range c.AccessKeys {
		doc := k.Policy
		if file, ok := strings.CutPrefix(doc, "@"); ok {
			b, err := os.ReadFile(file) //nolint:gosec // the operator names it
			if err != nil {
				return nil, fmt.Errorf("kinesis.access_keys[%d].policy: %w", i, err)
			}
			doc = string(b)
		}
		out = append(out, kinesisapi.AccessKey{ID: k.ID, Secret: k.Secret, Policy: doc})
	}
	return out, nil
}
