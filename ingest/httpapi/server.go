package httpapi

import (
	"log/slog"
	"net/http"
	"time"
)

// ServerConfig bounds what connections may cost. Zero takes the default.
type ServerConfig struct {
	HeaderTimeout time.Duration // for a request's header to arrive. Default 10 s
	IdleTimeout   time.Duration // of a connection between requests. Default 120 s
	MaxHeader     int           // bytes. Default 16 KiB
	Logger        *slog.Logger  // what net/http has to say, at Warn. nil: silent
}

// Server returns an http.Server for handler that speaks HTTP/1.1 and HTTP/2, the latter without TLS too (h2c), and cuts off
// senders that dawdle. The body's own timeout is Config.BodyTimeout. Writing has none: answers are short, and whoever puts
// server-sent events behind the same server needs it so.
func Server(handler http.Handler, cfg ServerConfig) *http.Server {
	if cfg.HeaderTimeout <= 0 {
		cfg.HeaderTimeout = 10 * time.Second
	}
	if cfg.IdleTimeout <= 0 {
		cfg.IdleTimeout = 120 * time.Second
	}
	if cfg.MaxHeader <= 0 {
		cfg.MaxHeader = 16 << 10
	}
	logger := cfg.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: cfg.HeaderTimeout,
		IdleTimeout:       cfg.IdleTimeout,
		MaxHeaderBytes:    cfg.MaxHeader,
		Protocols:         protocols,
		// A stream of HTTP/2 holds a body's buffer as a connection of HTTP/1.1 does; a hundred of one sender are plenty.
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: 100},
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
}
