package kinesisapi

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

const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 3 * time.Minute // the consumer library's client pings every minute
	maxHeader     = 32 << 10
	maxStreams    = 1000 // requests at once on one HTTP/2 connection
	receiveWindow = 4 << 20
)

// Beside makes h answer requests for other paths than /, which is Kinesis' only one: another AWS service at the same address. Call it
// before the first Serve.
func (d *Door) Beside(h http.Handler) { d.beside = h }

// Server returns an HTTP server for the door with its limits, for HTTP/1.1, HTTP/2 by ALPN if conf is given, and HTTP/2 in plain
// text from clients that know beforehand, as Java's asynchronous one does. The caller listens and shuts it down.
func (d *Door) Server(conf *tls.Config) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           d,
		TLSConfig:         conf,
		Protocols:         protocols,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(d.cfg.Log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerConnection: receiveWindow,
			MaxReceiveBufferPerStream:     receiveWindow / 4,
			MaxReadFrameSize:              1 << 20,
			SendPingTimeout:               30 * time.Second,
			WriteByteTimeout:              d.cfg.WriteTimeout,
		},
	}
}

// Serve serves the door on a listener until Close; with conf it speaks TLS. Without access keys it refuses to listen beyond
// loopback.
func (d *Door) Serve(ln net.Listener, conf *tls.Config) error {
	if d.verifier == nil {
		if a, ok := ln.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
			return errors.Join(fmt.Errorf("kinesis door: %s is reachable from outside and there are no access keys: listen on 127.0.0.1, or configure access keys", a), ln.Close())
		}
		d.cfg.Log.Info("kinesis door takes unsigned requests, on loopback only: configure access keys to listen elsewhere", "addr", ln.Addr().String())
	}
	srv := d.Server(conf)
	d.serving.mu.Lock()
	if d.serving.closed {
		d.serving.mu.Unlock()
		return ln.Close()
	}
	d.serving.list = append(d.serving.list, srv)
	d.serving.mu.Unlock()
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

// Close stops listening, ends subscriptions, lets other requests finish until ctx ends, and stops the keeper. The log stays open:
// it is the caller's.
func (d *Door) Close(ctx context.Context) error {
	d.serving.mu.Lock()
	d.serving.closed = true
	list := slices.Clone(d.serving.list)
	d.serving.mu.Unlock()
	d.cancel() // subscriptions first: Shutdown waits for them
	var errs []error
	for _, s := range list {
		if err := s.Shutdown(ctx); err != nil {
			errs = append(errs, err, s.Close())
		}
	}
	d.closeOnce.Do(func() {
		d.gate.Lock()
		d.running.Wait()
		if d.cfg.Metrics != nil {
			d.cfg.Metrics.Unregister(d.metrics)
		}
	})
	return errors.Join(errs...)
}
