// Devserver shows the dashboard over a made-up fleet: go run ./web/webtest/devserver
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/milepost/milepost/web"
	"github.com/milepost/milepost/web/webtest"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "devserver:", err)
		os.Exit(1)
	}
}

func run() error {
	addr := flag.String("addr", "127.0.0.1:8090", "address to serve on")
	n := flag.Int("vehicles", 5000, "how many vehicles")
	noSQL := flag.Bool("no-sql", false, "leave SQL out")
	token := flag.String("token", "", "token that administration needs")
	tiles := flag.String("tiles", "", "tile URL template")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	f := webtest.New(*n, 1, time.Now())
	cfg := f.Config()
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	cfg.TileURL = *tiles
	if *noSQL {
		cfg.SQL = nil
	}
	s, err := web.New(cfg)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "milepost-devserver-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // it is in the system's temporary directory
	ops, err := webtest.NewOperations(filepath.Join(dir, "ca"), *token, time.Now())
	if err != nil {
		return err
	}
	defer func() { _ = ops.Close() }() // in memory
	srv := &http.Server{Addr: *addr, Handler: ops.Handler(s), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- srv.ListenAndServe() }()
	cfg.Log.InfoContext(ctx, "serving", "url", "http://"+*addr+"/", "vehicles", *n)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			f.Advance(now)
		case err := <-done:
			return err
		case <-ctx.Done():
			return errors.Join(s.Close(), srv.Shutdown(context.WithoutCancel(ctx)))
		}
	}
}
