package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/milepost/milepost/ingest"
)

const (
	// bigPacket is the size from which a packet reserves memory. Smaller ones are bounded by the number of connections.
	bigPacket = 4 << 10
	// packetCopies is how often the broker library holds a packet while it decodes it.
	packetCopies = 2
	// packetTimeout is how long a big packet may take to arrive: it holds a reservation that others wait for.
	packetTimeout = 30 * time.Second
	// connectTimeout is how long a connection may take to say CONNECT, TLS included.
	connectTimeout = 10 * time.Second
	// connectMost is the largest CONNECT: client id, user, password and will are kept as long as the connection.
	connectMost = 8 << 10
)

var errTooLarge = errors.New("mqtt packet too large")

// A conn follows the packets of a connection as the broker library reads them. The library makes room for a whole packet as
// soon as it knows its length, so a thousand connections that announce big packets and send nothing would cost a thousand big
// packets. The conn reserves that room first, from what all doors share, and stops reading until it is there.
type conn struct {
	net.Conn
	door  *ingest.Door
	ctx   context.Context //nolint:containedctx // ends when reading stops
	most  int
	read  packetScanner
	held  int64 // reserved for the packet under way
	drain *atomic.Bool

	// Set by the hook on the reading goroutine once the client is known.
	v5      bool
	from    string // for dead letters
	vehicle string // the only vehicle the user may publish for; "" any
}

// Read is called by one goroutine, which has dealt with every packet that it was given whole before it asks for more.
func (c *conn) Read(p []byte) (int, error) {
	if c.held > 0 && c.read.between() {
		c.door.Unreserve(c.held)
		c.held = 0
	}
	if c.drain.Load() {
		return 0, os.ErrDeadlineExceeded
	}
	if c.held > 0 {
		// Not past the end of the packet that holds the reservation: two would have to wait for room while holding some, and
		// connections that do that can wait for each other for ever.
		p = p[:min(len(p), c.read.rest)]
	}
	n, err := c.Conn.Read(p)
	if n == 0 || err != nil {
		return n, err
	}
	size := c.read.scan(p[:n])
	most := c.most
	if !c.read.first {
		most = min(most, connectMost)
	}
	switch {
	case c.read.largest > most:
		c.door.Refuse(ingest.TooLarge, 1)
		if c.v5 {
			_, _ = c.Conn.Write([]byte{0xE0, 2, 0x95, 0}) // DISCONNECT, packet too large; the connection ends either way
		}
		return 0, errTooLarge
	case size > bigPacket && c.held == 0:
		if err := c.door.Reserve(c.ctx, int64(size)*packetCopies); err != nil {
			return 0, err
		}
		c.held = int64(size) * packetCopies
		_ = c.SetReadDeadline(time.Now().Add(packetTimeout))
	}
	return n, nil
}

// SetDeadline is called by the library before each packet. A shutdown is not undone by it: either the flag is seen here, or
// stop comes after and sets its own deadline last.
func (c *conn) SetDeadline(t time.Time) error {
	err := c.Conn.SetDeadline(t)
	if c.drain.Load() {
		c.stop()
	}
	return err
}

// SetReadDeadline is SetDeadline for reading.
func (c *conn) SetReadDeadline(t time.Time) error {
	err := c.Conn.SetReadDeadline(t)
	if c.drain.Load() {
		c.stop()
	}
	return err
}

// stop ends reading, once drain is set. The packet being processed is still answered.
func (c *conn) stop() { _ = c.Conn.SetReadDeadline(time.Unix(1, 0)) }

// certified tells whether the client has shown a certificate that the TLS configuration accepts.
func (c *conn) certified() bool {
	t, ok := c.Conn.(*tls.Conn)
	return ok && len(t.ConnectionState().VerifiedChains) > 0
}

// release gives back what the connection holds. Its reading goroutine calls it at its end.
func (c *conn) release() {
	c.door.Unreserve(c.held)
	c.held = 0
}

// A packetScanner finds packet boundaries in a stream of MQTT bytes.
type packetScanner struct {
	header  int  // bytes of the fixed header seen; 0: between packets or inside a body
	length  int  // remaining length as far as read
	rest    int  // bytes of the body still to come
	largest int  // of the packets that began in the last scan
	first   bool // the first packet has passed
}

// between tells whether all packets seen are whole.
func (s *packetScanner) between() bool { return s.header == 0 && s.rest == 0 }

// scan takes the next bytes and returns the size of the packet whose body they leave unfinished, 0 if none.
func (s *packetScanner) scan(b []byte) int {
	s.largest = 0
	for len(b) > 0 {
		if s.rest > 0 {
			n := min(s.rest, len(b))
			s.rest -= n
			b = b[n:]
			s.first = s.first || s.rest == 0
			continue
		}
		switch s.header {
		case 0:
			s.length = 0
		default:
			s.length |= int(b[0]&0x7f) << (7 * (s.header - 1))
		}
		s.header++
		// A fifth length byte is malformed: the library ends the connection, so what is scanned from here on is moot.
		if s.header > 1 && (b[0]&0x80 == 0 || s.header > 5) {
			s.rest, s.header = s.length, 0
			s.largest = max(s.largest, s.length)
			s.first = s.first || s.rest == 0
		}
		b = b[1:]
	}
	if s.rest > 0 {
		return s.length
	}
	return 0
}
