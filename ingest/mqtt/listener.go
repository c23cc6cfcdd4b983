package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mochi-mqtt/server/v2/listeners"

	"github.com/milepost/milepost/ingest"
)

// A gate counts the connections of all listeners and knows them, for the bound and for shutting down.
type gate struct {
	door  *ingest.Door
	ctx   context.Context //nolint:containedctx // ends when reading stops
	end   context.CancelFunc
	most  int // largest packet
	limit int
	drain atomic.Bool

	mu    sync.Mutex // guards conns
	conns map[*conn]struct{}
}

func newGate(limit int, door *ingest.Door, most int) *gate {
	g := &gate{door: door, most: most, limit: limit, conns: map[*conn]struct{}{}}
	g.ctx, g.end = context.WithCancel(context.Background())
	return g
}

func (g *gate) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.conns)
}

// enter takes a connection in, or tells that there are too many or that the door is closing.
func (g *gate) enter(nc net.Conn) (*conn, bool) {
	c := &conn{Conn: nc, door: g.door, ctx: g.ctx, most: g.most, drain: &g.drain}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.conns) >= g.limit || g.drain.Load() {
		return nil, false
	}
	g.conns[c] = struct{}{}
	return c, true
}

// leave forgets a connection whose goroutine ends.
func (g *gate) leave(c *conn) {
	c.release()
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.conns, c)
}

// stop ends all reading; what is under way is answered.
func (g *gate) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.drain.Store(true)
	g.end()
	for c := range g.conns {
		c.stop()
	}
}

// abort closes all connections, answered or not.
func (g *gate) abort() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		_ = c.Close()
	}
}

// A listener is the library's Listener with a bound on connections and goroutines that are waited for.
type listener struct {
	id     string
	inner  net.Listener
	tls    *tls.Config // nil: plain
	gate   *gate
	logger *slog.Logger
	work   sync.WaitGroup // Serve and its connections
	once   sync.Once
}

// ID tells the two listeners apart.
func (l *listener) ID() string { return l.id }

// Address is the one that was bound: the port of a configured 0 is known by then.
func (l *listener) Address() string { return l.inner.Addr().String() }

// Protocol is TCP with TLS too.
func (l *listener) Protocol() string { return "tcp" }

// Init counts Serve, which the library runs.
func (l *listener) Init(_ *slog.Logger) error {
	l.work.Add(1)
	return nil
}

// Serve accepts connections until drain.
func (l *listener) Serve(establish listeners.EstablishFn) {
	defer l.work.Done()
	pause := time.Duration(0)
	for {
		nc, err := l.inner.Accept()
		if err != nil {
			if l.gate.drain.Load() || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of file descriptors, most likely. Wait, or the loop takes a core for itself.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			l.logger.Warn("mqtt cannot accept a connection", slog.String("address", l.Address()), slog.Any("error", err))
			select {
			case <-time.After(pause):
			case <-l.gate.ctx.Done():
				return
			}
			continue
		}
		pause = 0
		_ = nc.SetDeadline(time.Now().Add(connectTimeout))
		if l.tls != nil {
			nc = tls.Server(nc, l.tls)
		}
		c, ok := l.gate.enter(nc)
		if !ok {
			l.gate.door.Refuse(ingest.Overloaded, 1)
			_ = nc.Close()
			continue
		}
		l.work.Go(func() {
			defer l.gate.leave(c)
			defer c.Close() //nolint:errcheck // the library closed it already, in most cases
			_ = establish(l.id, c)
		})
	}
}

// drain stops accepting and reading and returns when every connection has ended.
func (l *listener) drain() {
	l.once.Do(func() {
		l.gate.stop()
		_ = l.inner.Close()
	})
	l.work.Wait()
}

// Close is called by the library when it closes, after drain.
func (l *listener) Close(closeClients listeners.CloseFn) {
	closeClients(l.id)
	l.drain()
}
