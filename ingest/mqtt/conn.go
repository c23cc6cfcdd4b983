package mqtt

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/milepost/milepost/ingest/mqtt/broker"
	"github.com/milepost/milepost/ingest/mqtt/packet"
)

const (
	// bigPacket is the size from which a packet reserves memory. Smaller ones are bounded by the number of connections.
	bigPacket = 16 << 10
	// packetCopies is how often a packet is held in memory: as read, and as submitted.
	packetCopies = 2
	// connectMost is the largest CONNECT: what it has is kept as long as the connection.
	connectMost = 72 << 10
	// goodbye is how long a DISCONNECT may take to be written.
	goodbye = 2 * time.Second
)

// A conn is one connection. One goroutine runs it and owns what is not guarded.
type conn struct {
	server    *Server
	nc        net.Conn
	raw       syscall.RawConn // of plain TCP: waits without a buffer
	transport int

	// The reader's.
	buf         *buffer // nil while there is nothing
	have        int     // bytes in buf
	big         bool    // reads fill their buffer
	tiny        [1]byte // what a TLS connection waits with
	held        int64   // reserved for the packet under way
	readErr     error
	sent        int32
	version     byte
	clientID    string
	from        string // for dead letters
	principal   Principal
	vehicle     string                    // the principal's
	mayReport   func(vehicle string) bool // of a gateway; nil: any vehicle
	heard       func(time.Time)           // nil: nobody asks
	session     *broker.Session
	aliases     []string
	clientMax   uint32 // the largest packet that the client takes; 0: any
	problems    bool   // the client wants reason strings
	lastTopic   []byte // published to, and good
	lastMap     *mapping
	lastFrom    int
	lastTo      int
	lastWill    *will // of a mapped topic
	keepAliveMS int64

	readWhenReady  func(uintptr) bool // readNow, bound once
	writeWhenReady func(uintptr) bool // writeNow, bound once

	// Timekeeping, for the sweep.
	since   atomic.Int64 // Unix ms since when it waits for the client's bytes; math.MaxInt64: it does not
	allowed atomic.Int64 // ms that it may wait; 0: for ever
	stalled atomic.Int64 // Unix ms since when a write waits; 0: none does
	whole   atomic.Int64 // Unix ms when CONNECT, or the big packet under way, must be there as a whole; 0: there is none
	until   atomic.Int64 // Unix ms when it must end; 0: never

	settled atomic.Int32 // messages acknowledged: of sent

	mu        sync.Mutex // guards what follows
	known     Principal  // principal, for others
	acks      ring       // of what is submitted and not settled
	bytes     int64      // submitted and not settled
	changed   chan struct{}
	out       []byte // encoded, waiting to be written
	writing   bool   // somebody owns writing
	woken     bool   // the session has something
	unstored  bool   // something of what was submitted could not be stored
	ended     bool   // no more is read or appended; what is in out is written, then the connection is closed
	closed    bool   // the net.Conn is closed
	endCode   byte
	endText   string
	endBySelf bool // by DISCONNECT or loss: not by the server
	nowBuf    []byte
	nowN      int
	nowErr    error
}

// An ack is the answer to a message that is under way.
type ack struct {
	id   uint16
	kind packet.Type // PUBACK; 0: none
	code byte
	text string
}

// who returns the principal once there is one.
func (c *conn) who() Principal {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known
}

// expect gives a connection that has not said CONNECT so much time for it, all in all: one byte now and then does not make it longer.
func (c *conn) expect(d time.Duration) {
	now := c.server.clock.Load()
	c.whole.Store(now + d.Milliseconds())
	c.allowed.Store(d.Milliseconds())
	c.since.Store(now)
}

// overdue tells whether something of the connection has taken too long.
func (c *conn) overdue(now int64) bool {
	if until := c.until.Load(); until > 0 && now >= until {
		return true
	}
	if at := c.stalled.Load(); at > 0 && now-at > c.server.cfg.WriteTimeout.Milliseconds() {
		return true
	}
	most, since := c.allowed.Load(), c.since.Load()
	if whole := c.whole.Load(); whole > 0 && now > whole && since != math.MaxInt64 {
		return true
	}
	return most > 0 && now-since > most
}

// timeout ends the connection for what is overdue.
func (c *conn) timeout(now int64) {
	if !c.overdue(now) { // any more
		return
	}
	switch until, stalled := c.until.Load(), c.stalled.Load(); {
	case until > 0 && now >= until:
		c.until.Store(0)
		c.end(packet.MaximumConnectTime, "the certificate has expired: renew it")
	case stalled > 0 && now-stalled > c.server.cfg.WriteTimeout.Milliseconds():
		c.slow("the client does not read what is sent to it")
	case c.who() == nil:
		c.server.met.refused.WithLabelValues("timeout").Inc()
		c.end(packet.UnspecifiedError, "no CONNECT in time")
	case c.whole.Load() > 0 && now > c.whole.Load():
		c.end(packet.UnspecifiedError, "a packet took too long to arrive")
	default:
		c.end(packet.KeepAliveTimeout, "nothing came for one and a half times the keep alive")
	}
}

// slow ends the connection of a client that does not read. There is no use in waiting for it to take a DISCONNECT.
func (c *conn) slow(text string) {
	c.mu.Lock()
	already := c.closed
	c.mu.Unlock()
	if already {
		return
	}
	c.server.met.slow.Inc()
	c.end(packet.QuotaExceeded, text)
	_ = c.nc.SetDeadline(time.Now().Add(100 * time.Millisecond)) // then the writer closes it
}

// Kick implements broker.Conn.
func (c *conn) Kick(reason byte) { c.end(reason, "") }

// end ends the connection: a client of MQTT 5 is told why, what waits is written for a moment, and then it is closed. The first
// reason counts.
func (c *conn) end(code byte, text string) { c.stop(code, text, true) }

// stop is end; without say no DISCONNECT is sent.
func (c *conn) stop(code byte, text string, say bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.endCode, c.endText, c.ended = code, text, true
	if say && c.version >= packet.V5 && c.known != nil && code >= packet.UnspecifiedError {
		e := packet.End{Code: code}
		if text != "" && c.problems && len(text) < 1000 {
			e.Properties.Has = packet.SetOf(packet.ReasonString)
			e.Properties.ReasonString = []byte(text)
			if !c.fits(len(e.Append(nil, packet.DISCONNECT, c.version))) { // MQTT-3.14.2-3
				e.Properties = packet.Properties{}
			}
		}
		c.out = e.Append(c.out, packet.DISCONNECT, c.version)
	}
	c.signal()
	c.since.Store(math.MaxInt64)
	c.allowed.Store(0)
	c.stalled.Store(0)
	_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // the reader sees it
	_ = c.nc.SetWriteDeadline(time.Now().Add(goodbye))
	if !c.writing {
		c.writing = true
		c.server.conns.Add(1)
		go c.pump()
	}
}

// deaf makes the reader stop, so that what is under way can be answered.
func (c *conn) deaf() { _ = c.nc.SetReadDeadline(time.Unix(1, 0)) }

// signal tells the reader, if it waits, that something has changed. The caller holds mu.
func (c *conn) signal() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// await waits until f, which is called with mu held, is true, or the connection has ended, or ctx ends.
func (c *conn) await(ctx context.Context, f func() bool) bool {
	ended := false
	return c.awaitAnyway(ctx, func() bool {
		ended = c.ended
		return ended || f()
	}) && !ended
}

// awaitAnyway is await even if the connection ends meanwhile.
func (c *conn) awaitAnyway(ctx context.Context, f func() bool) bool {
	for {
		c.mu.Lock()
		if f() {
			c.mu.Unlock()
			return true
		}
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// pause waits for d, or until the connection ends or the server stops reading.
func (c *conn) pause(d time.Duration) {
	ctx, cancel := context.WithTimeout(c.server.reading, d)
	defer cancel()
	c.await(ctx, func() bool { return false })
}

// run is the connection's goroutine.
func (c *conn) run() {
	defer c.server.leave(c)
	err := c.handshake()
	if err == nil {
		err = c.serve()
	}
	c.finish(err)
}

// serve reads until the connection ends.
func (c *conn) serve() error {
	s := c.server
	for {
		began := s.clock.Load()
		if c.sent-c.settled.Load() >= int32(s.cfg.ReceiveMaximum) && c.version < packet.V5 || c.behind() {
			c.since.Store(math.MaxInt64)
			if !c.await(s.reading, func() bool {
				return c.sent-c.settled.Load() < int32(s.cfg.ReceiveMaximum)/2+1 && c.bytes < s.fairBytes
			}) {
				return errStopped
			}
		}
		if err := s.pipe.Wait(s.reading); err != nil {
			return errStopped
		}
		now := s.clock.Load()
		if c.held > 0 {
			c.whole.Add(now - began) // it was not the client that took this time
		}
		c.since.Store(now)
		if err := c.fill(); err != nil {
			return err
		}
		c.since.Store(math.MaxInt64)
		used, need, err := c.process(c.buf.b[:c.have])
		if err != nil {
			return err
		}
		if err := c.keep(used, need); err != nil {
			return err
		}
	}
}

// behind tells whether so much is under way that the connection must wait.
func (c *conn) behind() bool {
	if c.sent == c.settled.Load() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes >= c.server.fairBytes
}

var (
	errStopped = errors.New("the server stops reading")
	errEnded   = errors.New("the connection was ended") // end has been called
)

// keep keeps what is left of the buffer: the begin of a packet, which needs so many bytes if that is known.
func (c *conn) keep(used, need int) error {
	s := c.server
	c.have = copy(c.buf.b, c.buf.b[used:c.have])
	if c.held > 0 && used > 0 {
		s.door.Unreserve(c.held)
		c.held = 0
		c.whole.Store(0)
	}
	if c.have == 0 {
		c.release()
		return nil
	}
	if need <= len(c.buf.b) && c.held == 0 && need <= bigPacket {
		return nil
	}
	if c.held == 0 {
		n := int64(need) * packetCopies
		if !s.door.TryReserve(n) {
			// Not with bytes of other packets in the air: two would have to wait for room while holding some, and connections that
			// do that can wait for each other for ever.
			if err := s.door.Reserve(s.reading, n); err != nil {
				return errStopped
			}
		}
		c.held = n
		if c.session != nil { // CONNECT has its own time
			c.whole.Store(s.clock.Load() + s.cfg.PacketTimeout.Milliseconds())
		}
	}
	if need > len(c.buf.b) {
		b := &buffer{b: make([]byte, need)}
		copy(b.b, c.buf.b[:c.have])
		s.buffers.put(c.buf)
		c.buf = b
	}
	return nil
}

// release gives the buffer back.
func (c *conn) release() {
	if c.buf != nil {
		c.server.buffers.put(c.buf)
		c.buf, c.have = nil, 0
	}
}

// fill reads what there is, after waiting for it.
func (c *conn) fill() error {
	before := c.have
	if c.raw != nil {
		c.readErr = nil
		if err := c.raw.Read(c.readWhenReady); err != nil {
			return err
		}
		if c.readErr != nil {
			return c.readErr
		}
	} else {
		if c.buf == nil {
			n, err := c.nc.Read(c.tiny[:])
			if n == 0 {
				return err
			}
			c.buf = c.server.buffers.get(c.big)
			c.buf.b[0], c.have = c.tiny[0], 1
		}
		n, err := c.nc.Read(c.buf.b[c.have:])
		if n == 0 && err != nil {
			return err
		}
		c.have += n
	}
	c.server.met.bytesIn.Add(float64(c.have - before))
	c.big = c.have == len(c.buf.b) || c.big && c.have > len(c.buf.b)/8
	return nil
}

// readNow reads from a file descriptor that may be ready, and tells whether there was anything.
func (c *conn) readNow(fd uintptr) bool {
	if c.buf == nil {
		c.buf = c.server.buffers.get(c.big)
	}
	for {
		n, err := syscall.Read(int(fd), c.buf.b[c.have:])
		switch {
		case n > 0:
			c.have += n
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			if c.have == 0 {
				c.release()
			}
			return false
		case err != nil:
			c.readErr = err
		default:
			c.readErr = io.EOF
		}
		return true
	}
}

// finish ends what is left of a connection whose reading has ended.
func (c *conn) finish(err error) {
	s := c.server
	c.release()
	if c.held > 0 {
		s.door.Unreserve(c.held)
		c.held = 0
	}
	c.since.Store(math.MaxInt64)
	var wrong *packet.Error
	switch {
	case errors.As(err, &wrong):
		c.end(wrong.Code, wrong.Text)
	case errors.Is(err, errStopped) || s.reading.Err() != nil:
		c.await(s.ctx, func() bool { return c.acks.len() == 0 })
		c.end(packet.ServerShuttingDown, "")
	case errors.Is(err, errSaidGoodbye):
	default:
		c.lost()
	}
	c.mu.Lock()
	code, text, session, self := c.endCode, c.endText, c.session, c.endBySelf
	c.known = nil
	c.mu.Unlock()
	if session == nil {
		return
	}
	s.met.versions[c.version-packet.V311].Add(-1)
	s.met.disconnects.WithLabelValues(reasonName(code)).Inc()
	send := !self || code != packet.Success
	session.Disconnect(code, send) // when the server shuts down, a will waits for the next start (3.1.2.5)
	if send && c.lastWill != nil && code != packet.ServerShuttingDown && code != packet.SessionTakenOver {
		c.admitWill()
	}
	if s.cfg.Journal != nil {
		why := reasonName(code)
		if text != "" {
			why += ": " + text
		}
		s.cfg.Journal.Disconnected(c.principal, c.clientID, why)
	}
	if !self && code != packet.ServerShuttingDown {
		s.logger.Info("mqtt connection ended", slog.String("device", c.principal.Device()), slog.String("client", c.clientID),
			slog.String("reason", reasonName(code)), slog.String("detail", text))
	}
}

// lost notes that the client has gone without a word.
func (c *conn) lost() {
	c.mu.Lock()
	if !c.ended {
		c.endBySelf = true
	}
	c.mu.Unlock()
	c.end(packet.UnspecifiedError, "")
}
