package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"
)

// mqttLink is the least MQTT 3.1.1 client that can load a server: it writes whole packets from the caller's buffer and reads
// acknowledgements. The benchmark measures the server, so the client must cost next to nothing.
type mqttLink struct {
	conn net.Conn
	r    *bufio.Reader
}

// dialMQTT connects with a clean session and waits for the CONNACK.
func dialMQTT(ctx context.Context, addr, clientID string) (*mqttLink, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	l := &mqttLink{conn, bufio.NewReaderSize(conn, 4<<10)}
	if err := sayConnect(conn, l.r, clientID, true); err != nil {
		conn.Close() //nolint:errcheck,gosec // already failed
		return nil, err
	}
	return l, nil
}

// sayConnect sends CONNECT and waits for CONNACK. There is no keep alive.
func sayConnect(w io.Writer, r io.Reader, clientID string, clean bool) error {
	flags := byte(0)
	if clean {
		flags = 2
	}
	body := append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, flags, 0, 0}, binary.BigEndian.AppendUint16(nil, uint16(len(clientID)))...) //nolint:gosec // short
	body = append(body, clientID...)
	p := append([]byte{0x10}, appendRemaining(nil, len(body))...)
	if _, err := w.Write(append(p, body...)); err != nil {
		return err
	}
	var ack [4]byte
	if _, err := io.ReadFull(r, ack[:]); err != nil {
		return fmt.Errorf("connack: %w", err)
	}
	if ack[0] != 0x20 || ack[3] != 0 {
		return fmt.Errorf("connection refused with code %d", ack[3])
	}
	return nil
}

// appendPublish appends a PUBLISH packet; id 0 means QoS 0.
func appendPublish(b []byte, topic string, id uint16, payload []byte) []byte {
	n := 2 + len(topic) + len(payload)
	if id == 0 {
		b = append(b, 0x30)
	} else {
		b = append(b, 0x32)
		n += 2
	}
	b = appendRemaining(b, n)
	b = binary.BigEndian.AppendUint16(b, uint16(len(topic))) //nolint:gosec // short
	b = append(b, topic...)
	if id != 0 {
		b = binary.BigEndian.AppendUint16(b, id)
	}
	return append(b, payload...)
}

func appendRemaining(b []byte, n int) []byte {
	for n >= 128 {
		b = append(b, byte(n)|128)
		n >>= 7
	}
	return append(b, byte(n))
}

// pubacks waits for acknowledgements and returns how many of those that have come it has taken: at least one.
func (l *mqttLink) pubacks() (int, error) {
	n := 0
	for n == 0 || l.r.Buffered() >= 4 {
		head, err := l.r.ReadByte()
		if err != nil {
			return n, err
		}
		size, err := binary.ReadUvarint(l.r)
		if err != nil {
			return n, err
		}
		if _, err := l.r.Discard(int(size)); err != nil { //nolint:gosec // a packet length
			return n, err
		}
		if head>>4 == 4 {
			n++
		}
	}
	return n, nil
}

// close says goodbye, so that the server does not take it for a failure.
func (l *mqttLink) close() {
	_ = l.conn.SetDeadline(time.Now().Add(time.Second))
	_, _ = l.conn.Write([]byte{0xe0, 0})
	_ = l.conn.Close()
}
