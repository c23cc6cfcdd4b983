package runtime

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The Runtime API's connections. net/http parses requests; its server is left out, since a third of what an invocation cost was its
// watching of a connection while a handler runs, and waking goroutines: here whoever has an event writes it to the process itself,
// while the connection's goroutine already reads the next request. BenchmarkLink compares the two.

// A door is a process's Runtime API: a listener, and a goroutine for each connection.
type door struct {
	p  *process
	ln net.Listener

	mu     sync.Mutex // guards the two below
	conns  map[net.Conn]struct{}
	closed bool
	work   sync.WaitGroup // the goroutines
}

func openDoor(p *process) (*door, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the runtime: %w", err)
	}
	d := &door{p: p, ln: ln, conns: map[net.Conn]struct{}{}}
	d.work.Go(d.accept) // close waits
	return d, nil
}

func (d *door) accept() {
	for {
		conn, err := d.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of file descriptors, as a rule
			d.p.pool.log.Warn("accept a function's connection", "function", d.p.pool.cfg.Name, "error", err)
			select {
			case <-time.After(10 * time.Millisecond):
			case <-d.p.gone:
			}
			continue
		}
		d.mu.Lock()
		if d.closed {
			_ = conn.Close() // nobody is there any more
		} else {
			d.conns[conn] = struct{}{}
			d.work.Go(func() {
				newLink(d.p, conn).serve()
				_ = conn.Close() // whatever it was that ended it
				d.mu.Lock()
				delete(d.conns, conn)
				d.mu.Unlock()
			})
		}
		d.mu.Unlock()
	}
}

// close ends all connections. The process is no more, and p.gone is closed.
func (d *door) close() {
	_ = d.ln.Close() // it was open
	d.mu.Lock()
	d.closed = true
	for c := range d.conns {
		_ = c.Close() // that ends its goroutine
	}
	d.mu.Unlock()
	d.work.Wait()
}

const (
	maxHead     = 1 << 20   // of a request, with what is read ahead
	mostDrained = 256 << 10 // of a body that is refused; a connection with more of it is closed
)

// A link is a connection of a process. Its goroutine reads requests and answers them, but for those that wait for an event.
type link struct {
	p    *process
	conn net.Conn
	in   io.LimitedReader
	r    *bufio.Reader
	head []byte // of the answer being made
	// me waits while the process's waiter points to it. Whoever takes it from there, under the pool's lock, answers the request and
	// then puts a token into answered.
	me       waiter
	answered chan struct{} // holds one
	waits    bool          // until the token is taken
	last     bool          // the answer being made ends the connection
}

// A waiter is a request for the next event.
type waiter struct{ link *link }

func newLink(p *process, conn net.Conn) *link {
	l := &link{p: p, conn: conn, in: io.LimitedReader{R: conn, N: maxHead}, answered: make(chan struct{}, 1)}
	l.r = bufio.NewReader(&l.in)
	l.me.link = l
	return l
}

// serve answers requests, in order, until the connection ends.
func (l *link) serve() {
	for {
		l.in.N = maxHead
		if _, err := l.r.Peek(1); err != nil {
			l.p.leave(&l.me)
			return
		}
		if l.waits { // the process has its event, or has not waited for it
			select {
			case <-l.answered:
				l.waits = false
			case <-l.p.gone:
				return
			}
			if l.last {
				return
			}
		}
		req, err := http.ReadRequest(l.r)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				l.last = true
				_ = l.write(&reply{status: http.StatusBadRequest, kind: "text/plain; charset=utf-8", body: "400 Bad Request"}) // it ends anyway
			}
			return
		}
		l.in.N = math.MaxInt64
		if !l.answer(req) {
			return
		}
	}
}

// answer answers a request and reports whether the connection goes on.
func (l *link) answer(req *http.Request) bool {
	if req.Body != http.NoBody && strings.EqualFold(req.Header.Get("Expect"), "100-continue") {
		if _, err := io.WriteString(l.conn, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
			return false
		}
	}
	a := l.p.serve(req)
	l.last = req.Close || !req.ProtoAtLeast(1, 1)
	if n, err := io.CopyN(io.Discard, req.Body, mostDrained); n == mostDrained || !errors.Is(err, io.EOF) {
		l.last = true
	}
	if a == nil {
		l.next()
		return true
	}
	a.bodiless = req.Method == http.MethodHead
	return l.write(a) == nil && !l.last
}

// A reply is an answer of the API that is no event.
type reply struct {
	status   int
	kind     string // content type
	allow    string
	body     string
	bodiless bool // to HEAD
}

func (l *link) begin(status int) []byte {
	b := append(l.head[:0], "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	b = append(b, "\r\nDate: "...)
	return time.Now().UTC().AppendFormat(b, http.TimeFormat)
}

func appendHeader(b []byte, name, value string) []byte {
	b = append(b, "\r\n"...)
	b = append(b, name...)
	b = append(b, ": "...)
	return append(b, value...)
}

func (l *link) appendLength(b []byte, n int) []byte {
	if l.last {
		b = appendHeader(b, "Connection", "close")
	}
	b = append(b, "\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(n), 10)
	return append(b, "\r\n\r\n"...)
}

func (l *link) write(a *reply) error {
	b := l.begin(a.status)
	if a.kind != "" {
		b = appendHeader(b, "Content-Type", a.kind)
	}
	if a.allow != "" {
		b = appendHeader(b, "Allow", a.allow)
	}
	b = l.appendLength(b, len(a.body))
	if !a.bodiless {
		b = append(b, a.body...)
	}
	l.head = b
	_, err := l.conn.Write(b)
	return err
}

// writeEvent writes an event. A connection that is broken shows when it is read: the process asks again, or ends.
func (l *link) writeEvent(c *call) {
	b := l.begin(http.StatusOK)
	b = appendHeader(b, "Content-Type", "application/json")
	b = appendHeader(b, headerID, c.id)
	b = appendHeader(b, headerDeadline, "")
	b = strconv.AppendInt(b, c.deadline.UnixMilli(), 10)
	b = appendHeader(b, headerARN, l.p.pool.arn)
	if c.req.TraceID != "" {
		b = appendHeader(b, headerTrace, c.req.TraceID)
	}
	if c.req.ClientContext != "" {
		b = appendHeader(b, headerClientContext, c.req.ClientContext)
	}
	b = l.appendLength(b, len(c.req.Payload))
	const small = 16 << 10 // copying it costs less than a longer system call
	if len(c.req.Payload) <= small {
		b = append(b, c.req.Payload...)
		_, _ = l.conn.Write(b) // see above
	} else {
		parts := net.Buffers{b, c.req.Payload}
		_, _ = parts.WriteTo(l.conn) // see above
	}
	l.head = b
	if half, ok := l.conn.(interface{ CloseWrite() error }); ok && l.last {
		_ = half.CloseWrite() // its goroutine sees the other half end
	}
}
