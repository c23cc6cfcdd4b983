package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
)

// A listener accepts connections of one transport.
type listener struct {
	server    *Server
	inner     net.Listener
	transport int
	web       *http.Server // of WebSocket transports, until they are hijacked
}

func newListener(s *Server, inner net.Listener, transport int) *listener {
	l := &listener{server: s, inner: &acceptor{Listener: inner, server: s}, transport: transport}
	if transport == overWebSocket || transport == overWebSocketTLS {
		l.web = &http.Server{
			Handler: s.Handler(), ReadHeaderTimeout: s.cfg.ConnectTimeout, ReadTimeout: s.cfg.ConnectTimeout, IdleTimeout: s.cfg.ConnectTimeout,
			MaxHeaderBytes: 16 << 10, ErrorLog: log.New(io.Discard, "", 0), // bad handshakes are counted
		}
	}
	return l
}

// serve accepts until close.
func (l *listener) serve() {
	if l.web != nil {
		inner := l.inner
		if l.transport == overWebSocketTLS {
			conf := l.server.cfg.TLS.Clone()
			conf.NextProtos = []string{"http/1.1"}
			inner = tls.NewListener(inner, conf)
		}
		if err := l.web.Serve(inner); !errors.Is(err, http.ErrServerClosed) {
			l.server.logger.Error("mqtt over WebSocket ends", slog.Any("error", err))
		}
		return
	}
	for {
		nc, err := l.inner.Accept()
		if err != nil {
			return // it is closed
		}
		l.server.take(nc, l.transport)
	}
}

// take begins a connection, or closes it if there are too many.
func (s *Server) take(nc net.Conn, transport int) {
	c := &conn{server: s, nc: nc, transport: transport}
	c.readWhenReady = c.readNow
	c.writeWhenReady = c.writeNow
	c.expect(s.cfg.ConnectTimeout)
	if transport == overTLS {
		c.nc = tls.Server(newHelloConn(nc), s.cfg.TLS)
	}
	if !s.enter(c) {
		_ = nc.Close()
		return
	}
	if transport == overTCP {
		if t, ok := nc.(*net.TCPConn); ok {
			c.raw, _ = t.SyscallConn() // nil with an error, and then it is read like the others
		}
	}
	go c.run() // enter counted it
}

func (l *listener) close() {
	if l.web != nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = l.web.Shutdown(ctx) // handshakes under way are cut off
		_ = l.web.Close()
	}
	_ = l.inner.Close()
}
