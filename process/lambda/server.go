package lambda

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// servers are what Serve started.
type servers struct {
	mu     sync.Mutex
	list   []*http.Server
	closed bool
}

// Serve serves Lambda's API on a listener until Close; with conf it speaks TLS. Without access keys it refuses to listen beyond
// loopback.
func (r *Registry) Serve(ln net.Listener, conf *tls.Config) error {
	if r.verifier == nil {
		if a, ok := ln.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
			return errors.Join(fmt.Errorf("lambda API: %s is reachable from outside and there are no access keys: listen on 127.0.0.1, or configure access keys", a), ln.Close())
		}
		r.cfg.Log.Info("lambda API takes unsigned requests, on loopback only: configure access keys to listen elsewhere", "addr", ln.Addr().String())
	}
	srv := &http.Server{
		Handler: r.API(), TLSConfig: conf, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: bodyTimeout, IdleTimeout: 3 * time.Minute,
		MaxHeaderBytes: 32 << 10, ErrorLog: slog.NewLogLogger(r.cfg.Log.Handler(), slog.LevelDebug),
	}
	r.serving.mu.Lock()
	if r.serving.closed {
		r.serving.mu.Unlock()
		return ln.Close()
	}
	r.serving.list = append(r.serving.list, srv)
	r.serving.mu.Unlock()
	var err error
	if conf != nil {
		err = srv.ServeTLS(ln, "", "")
	} else {
		err = srv.Serve(ln)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// close stops listening and lets requests finish until ctx ends.
func (s *servers) close(ctx context.Context) []error {
	s.mu.Lock()
	s.closed = true
	list := slices.Clone(s.list)
	s.mu.Unlock()
	var errs []error
	for _, srv := range list {
		if err := srv.Shutdown(ctx); err != nil {
			errs = append(errs, err, srv.Close())
		}
	}
	return errs
}
