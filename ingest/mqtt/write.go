package mqtt

import (
	"log/slog"
	"syscall"
	"time"

	"github.com/milepost/milepost/ingest/mqtt/broker"
	"github.com/milepost/milepost/ingest/mqtt/packet"
)

const (
	pullAtOnce = 64
	pullBytes  = 64 << 10 // of deliveries encoded before they are written
)

// Wake implements broker.Conn: the session has something to send.
func (c *conn) Wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.woken = true
	if !c.writing && !c.ended {
		c.writing = true
		c.server.conns.Add(1)
		go c.pump()
	}
}

// send appends one answer and writes.
func (c *conn) send(encode func(dst []byte) []byte) {
	c.mu.Lock()
	if !c.ended {
		c.out = encode(c.out)
	}
	c.flush()
}

// fits tells whether the client takes a packet of so many bytes (MQTT-3.1.2-24).
func (c *conn) fits(n int) bool { return c.clientMax == 0 || n <= int(c.clientMax) }

// sendIfItFits is send for answers of any length: what is too large for the client is discarded (MQTT-3.1.2-25).
func (c *conn) sendIfItFits(encode func(dst []byte) []byte) {
	c.send(func(dst []byte) []byte {
		out := encode(dst)
		if !c.fits(len(out) - len(dst)) {
			c.server.logger.Info("mqtt answer is larger than its client takes", slog.String("client", c.clientID), slog.Int("bytes", len(out)-len(dst)))
			return dst
		}
		return out
	})
}

// flush writes what is in out, as far as the socket takes it; a goroutine does the rest. The caller holds mu, which is released. It
// does not block.
func (c *conn) flush() {
	if c.writing || c.closed || (len(c.out) == 0 && !c.woken) {
		over := len(c.out) > c.server.cfg.OutboundBytes && !c.ended
		c.mu.Unlock()
		if over {
			c.slow("more waits for the client than it may, because it does not read")
		}
		return
	}
	c.writing = true
	// Before mu is released: as long as the connection has not ended its reader is counted too. Afterwards the reader may have left
	// while this wrote, and Close may have stopped waiting.
	c.server.conns.Add(1)
	if c.raw != nil && !c.woken && !c.ended {
		b := c.out
		c.nowBuf, c.nowN, c.nowErr, c.out = b, 0, nil, nil
		c.mu.Unlock()
		err := c.raw.Write(c.writeWhenReady)
		c.server.met.bytesOut.Add(float64(c.nowN))
		c.mu.Lock()
		n := c.nowN
		c.nowBuf = nil
		switch {
		case err == nil && c.nowErr == nil && n == len(b) && len(c.out) == 0:
			if cap(b) <= 1<<10 && c.acks.len() > 0 { // more is about to come
				c.out = b[:0]
			}
			if !c.woken && !c.ended {
				c.writing = false
				c.mu.Unlock()
				c.server.conns.Done()
				return
			}
		case n < len(b):
			c.out = append(b[n:len(b):len(b)], c.out...) // an error shows again
		}
	}
	c.mu.Unlock()
	go c.pump()
}

// writeNow writes once, without waiting.
func (c *conn) writeNow(fd uintptr) bool {
	for {
		n, err := syscall.Write(int(fd), c.nowBuf)
		switch {
		case n > 0:
			c.nowN = n
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
		default:
			c.nowErr = err
		}
		return true
	}
}

// pump writes until there is nothing to write. It owns writing, and conns counts it.
func (c *conn) pump() {
	defer c.server.conns.Done()
	var pulled []broker.Delivery
	at := 0
	var spare []byte
	c.mu.Lock()
	for {
		if len(c.out) > 0 && !c.closed {
			b := c.out
			c.out = spare[:0]
			if c.ended {
				_ = c.nc.SetWriteDeadline(time.Now().Add(goodbye))
			} else {
				c.stalled.Store(max(1, c.server.clock.Load()))
			}
			c.mu.Unlock()
			n, err := c.nc.Write(b)
			c.server.met.bytesOut.Add(float64(n))
			spare = b
			if cap(spare) > pullBytes*2 {
				spare = nil
			}
			c.mu.Lock()
			c.stalled.Store(0)
			c.signal()
			if err != nil {
				c.out = nil
				c.broken()
			}
			continue
		}
		if c.ended || c.closed {
			if !c.closed {
				c.closed = true
				c.out = nil
				c.mu.Unlock()
				_ = c.nc.Close() // TLS says goodbye, which takes at most what SetWriteDeadline allows
				c.mu.Lock()
			}
			c.writing = false
			c.mu.Unlock()
			return
		}
		if at < len(pulled) {
			for ; at < len(pulled) && len(c.out) < pullBytes; at++ {
				c.encode(&pulled[at])
			}
			continue
		}
		clear(pulled)
		if !c.woken || c.session == nil { // CONNACK comes first, and wakes again
			c.writing = false
			c.mu.Unlock()
			return
		}
		session := c.session
		c.woken = false // what comes from here on wakes again
		c.mu.Unlock()
		pulled, at = session.Pull(pulled[:0], pullAtOnce), 0
		c.mu.Lock()
		c.woken = c.woken || len(pulled) > 0
	}
}

// broken notes that the connection cannot be written to. The caller holds mu.
func (c *conn) broken() {
	if !c.ended {
		c.ended, c.endBySelf, c.endCode = true, true, packet.UnspecifiedError
		c.signal()
		_ = c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

// encode appends a delivery. The caller holds mu.
func (c *conn) encode(d *broker.Delivery) {
	if d.Release {
		c.out = packet.AppendAck(c.out, c.version, packet.PUBREL, d.PacketID, d.Reason)
		return
	}
	flags := d.QoS << 1
	if d.Dup {
		flags |= 8
	}
	if d.Retain {
		flags |= 1
	}
	properties := d.Properties
	if c.version >= packet.V5 && (d.Expires || len(d.SubscriptionIDs) > 0) {
		p := packet.Properties{SubscriptionIDs: d.SubscriptionIDs, MessageExpiry: d.Expiry}
		if d.Expires {
			p.Has |= packet.SetOf(packet.MessageExpiry)
		}
		if len(d.SubscriptionIDs) > 0 {
			p.Has |= packet.SetOf(packet.SubscriptionID)
		}
		properties = append(p.Append(nil, p.Has), d.Properties...)
	}
	c.server.met.messagesOut[d.QoS].Inc()
	c.out = packet.AppendPublish(c.out, c.version, flags, d.Topic, d.PacketID, properties, d.Payload)
}
