package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/milepost/milepost/internal/vfs"
)

// runDemo is serve with a simulated fleet that publishes over MQTT, as devices do.
func runDemo(ctx context.Context, e *env, args []string) error {
	fs := flags(e, "demo")
	data := fs.String("data", "", "data directory (default: milepost-demo in the user's cache directory)")
	vehicles := fs.Int("vehicles", 200, "vehicles in the fleet")
	every := fs.Duration("rate", time.Second, "how often each vehicle reports")
	seed := fs.Uint64("seed", 1, "the same seed makes the same fleet")
	listen := fs.String("http", "127.0.0.1:8080", "address of the dashboard; if it is taken, a free port is used")
	if rest, err := parse(fs, args); err != nil {
		return err
	} else if len(rest) > 0 {
		return usagef("unexpected %q", rest[0])
	}
	cfg, err := demoConfig()
	if err != nil {
		return err
	}
	if *data == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return usagef("no cache directory: name one with --data (%w)", err)
		}
		*data = filepath.Join(dir, "milepost-demo")
	}
	cfg.Data = *data
	cfg.HTTP.Listen = orFree(ctx, *listen)
	cfg.MQTT.Listen = orFree(ctx, cfg.MQTT.Listen)
	cfg.Kinesis.Listen = orFree(ctx, cfg.Kinesis.Listen)
	cfg.MQTT.MaxConnections = max(1000, 2**vehicles)
	cfg.Log.Level = "warn"
	log := newLogger(e.stderr, cfg.Log)
	s, err := openServer(ctx, cfg, vfs.Disk, log)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "\n  Milepost is running with %d simulated vehicles.\n\n  Open  http://%s\n\n  MQTT on %s, Kinesis on http://%s, data in %s. Ctrl-C drains and stops; the next start goes on from here.\n\n",
		*vehicles, s.listener.Addr(), cfg.MQTT.Listen, cfg.Kinesis.Listen, cfg.Data)
	driving, brake := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { // waited for below: the fleet stops before the server drains
		if err := simulate(driving, cfg.MQTT.Listen, filepath.Join(cfg.Data, "demo-fleet"), *vehicles, *seed, *every, log); err != nil && driving.Err() == nil {
			log.ErrorContext(ctx, "simulate", "error", err)
		}
	})
	select {
	case <-ctx.Done():
		fmt.Fprintln(e.stdout, "  Draining …")
	case err := <-s.serving:
		s.serving <- err
	}
	brake()
	wg.Wait()
	if err := s.run(ctx); err != nil {
		return err
	}
	fmt.Fprintln(e.stdout, "  Stopped. Everything acknowledged is on disk.")
	return nil
}

//go:embed demo.yaml
var demoYAML []byte

// demoConfig is the defaults, with some windows, a query and a function.
func demoConfig() (*Config, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program, to run it as a function: %w", err)
	}
	quoted, err := json.Marshal(exe)
	if err != nil {
		return nil, err
	}
	cfg, err := parseConfig("demo.yaml", bytes.Replace(demoYAML, []byte("PROGRAM"), quoted, 1))
	if err != nil {
		return nil, err
	}
	if !sqlBuilt() {
		cfg.Queries = nil
	}
	return cfg, nil
}

// orFree returns addr, or the same host with any free port if somebody listens there.
func orFree(ctx context.Context, addr string) string {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return addr
		}
		if l, err = new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(host, "0")); err != nil {
			return addr
		}
	}
	defer l.Close() //nolint:errcheck // only its address was wanted
	return l.Addr().String()
}
