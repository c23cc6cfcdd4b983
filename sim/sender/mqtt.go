package sender

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// A minimal MQTT 3.1.1 publisher, QoS 1 only. A general client costs several goroutines and kilobytes a connection, and a
// fleet has thousands of connections.

const (
	keepAlive   = 60 * time.Second // the server closes a connection that is silent half as long again
	connTimeout = 10 * time.Second
)

// A message is one PUBLISH, as it is written.
type message struct {
	packet []byte
	id     uint16
	acked  bool
	size   int // of the payload
}

// publish builds the PUBLISH of a payload. l.mu is held.
func (s *Sender) publish(l *lane, vehicle string, payload []byte) message {
	topic := strings.Replace(s.cfg.Topic, "{vehicle}", vehicle, 1)
	if l.nextID++; l.nextID == 0 {
		l.nextID = 1
	}
	rest := 2 + len(topic) + 2 + len(payload)
	p := make([]byte, 0, 5+rest)
	p = appendLength(append(p, 0x32), rest) // PUBLISH, QoS 1
	p = appendText(p, topic)
	p = binary.BigEndian.AppendUint16(p, l.nextID)
	return message{packet: append(p, payload...), id: l.nextID, size: len(payload)}
}

func appendLength(p []byte, n int) []byte {
	for n >= 0x80 {
		p = append(p, byte(n)|0x80)
		n >>= 7
	}
	return append(p, byte(n))
}

func appendText(p []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(p, uint16(len(s))), s...) //nolint:gosec // ids and topics are short
}

// runMQTT keeps a lane connected while there is something to send.
func (s *Sender) runMQTT(l *lane) {
	var random [6]byte
	_, _ = rand.Read(random[:]) // never fails, by its documentation
	client := "milepost-" + hex.EncodeToString(random[:])
	down := false
	for attempt := 0; ; attempt++ {
		before := s.acked.Load()
		up, err := s.session(l, client)
		if s.ctx.Err() != nil {
			return
		}
		if fatal, ok := errors.AsType[*DoorError](err); ok {
			s.cfg.Log.Error("the door refuses us: nothing more is sent", "address", s.cfg.Address, "err", err)
			l.fail(fatal)
			return
		}
		if up && s.acked.Load() > before {
			attempt, down = 0, false
		}
		if !down && l.index == 0 { // one lane speaks for all
			s.cfg.Log.Warn("the connection is lost: connecting again and sending again what is not acknowledged", "address", s.cfg.Address, "err", err)
		}
		down = true
		l.mu.Lock()
		s.resent.Add(int64(l.written))
		l.written = 0
		l.mu.Unlock()
		if !s.backoff(attempt, 0) {
			return
		}
	}
}

// session connects, writes what is queued and comes in, and returns when the connection is no more. up: it was connected.
func (s *Sender) session(l *lane, client string) (up bool, err error) {
	conn, err := s.dial(s.ctx)
	if err != nil {
		return false, err
	}
	in := bufio.NewReaderSize(conn, 512)
	if err := s.connect(conn, in, client); err != nil {
		return false, errors.Join(err, conn.Close())
	}
	var readErr error
	ended := make(chan struct{}) // the reader; closing the connection ends it
	go func() {
		defer close(ended)
		readErr = s.readAcks(l, conn, in)
	}()
	err = s.write(l, conn, ended)
	closeErr := conn.Close()
	<-ended
	return true, errors.Join(err, readErr, closeErr)
}

func (s *Sender) connect(conn net.Conn, in *bufio.Reader, client string) error {
	flags, rest := byte(2), 10+2+len(client) // a clean session: what is not acknowledged is ours to remember
	if s.cfg.User != "" {
		flags |= 0x80
		rest += 2 + len(s.cfg.User)
	}
	if s.cfg.Password != "" {
		flags |= 0x40
		rest += 2 + len(s.cfg.Password)
	}
	p := appendLength([]byte{0x10}, rest)
	p = append(appendText(p, "MQTT"), 4, flags)
	p = binary.BigEndian.AppendUint16(p, uint16(keepAlive/time.Second))
	p = appendText(p, client)
	if s.cfg.User != "" {
		p = appendText(p, s.cfg.User)
	}
	if s.cfg.Password != "" {
		p = appendText(p, s.cfg.Password)
	}
	if err := conn.SetDeadline(time.Now().Add(connTimeout)); err != nil {
		return err
	}
	if _, err := conn.Write(p); err != nil {
		return fmt.Errorf("write connect: %w", err)
	}
	var ack [4]byte
	if _, err := io.ReadFull(in, ack[:]); err != nil {
		return fmt.Errorf("read connack: %w", err)
	}
	switch {
	case ack[0] != 0x20 || ack[1] != 2:
		return &DoorError{s.cfg.Address + " does not speak MQTT 3.1.1: check the address"}
	case ack[3] == 4 || ack[3] == 5:
		return &DoorError{s.cfg.Address + " refuses user and password: check them"}
	case ack[3] != 0:
		return fmt.Errorf("connection refused with code %d", ack[3])
	}
	return conn.SetDeadline(time.Time{})
}

// write writes what is queued, as far as the window allows, and pings when there is nothing to say.
func (s *Sender) write(l *lane, conn net.Conn, ended <-chan struct{}) error {
	ping := time.NewTicker(keepAlive / 3)
	defer ping.Stop()
	var out []byte
	quiet := false
	for {
		l.mu.Lock()
		out = out[:0]
		for l.written < min(len(l.queue), s.cfg.Window) && len(out) < 64<<10 {
			out = append(out, l.queue[l.written].packet...)
			l.queue[l.written].packet[0] |= 0x08 // if it is written again, it is a duplicate
			l.written++
		}
		l.mu.Unlock()
		if len(out) > 0 {
			quiet = false
			if err := conn.SetWriteDeadline(time.Now().Add(connTimeout)); err != nil {
				return err
			}
			if _, err := conn.Write(out); err != nil {
				return fmt.Errorf("write: %w", err)
			}
			continue
		}
		select {
		case <-s.ctx.Done():
			_, _ = conn.Write([]byte{0xe0, 0}) // DISCONNECT; the connection ends either way
			return s.ctx.Err()
		case <-ended:
			return nil
		case <-l.work:
		case <-ping.C:
			if quiet {
				if _, err := conn.Write([]byte{0xc0, 0}); err != nil {
					return fmt.Errorf("write ping: %w", err)
				}
			}
			quiet = true
		}
	}
}

// readAcks takes acknowledgements off the queue until the connection ends.
func (s *Sender) readAcks(l *lane, conn net.Conn, in *bufio.Reader) error {
	for {
		// A server that is alive answers pings, which come every 20 s at least.
		if in.Buffered() == 0 {
			if err := conn.SetReadDeadline(time.Now().Add(keepAlive)); err != nil {
				return err
			}
		}
		var head [2]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if head[1] > 0x7f {
			return &DoorError{s.cfg.Address + " sends what a publisher does not expect: check the address"}
		}
		body := make([]byte, 0, 2)
		for range head[1] {
			c, err := in.ReadByte()
			if err != nil {
				return fmt.Errorf("read: %w", err)
			}
			if len(body) < cap(body) {
				body = append(body, c)
			}
		}
		if head[0]>>4 == 4 && len(body) == 2 { // PUBACK
			s.ack(l, binary.BigEndian.Uint16(body))
		}
	}
}

// ack marks a message acknowledged and forgets the acknowledged ones at the head of the queue.
func (s *Sender) ack(l *lane, id uint16) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.queue[:l.written] {
		if m := &l.queue[i]; m.id == id && !m.acked {
			m.acked = true
			s.acked.Add(1)
			break
		}
	}
	n := 0
	for n < l.written && l.queue[n].acked {
		l.bytes -= l.queue[n].size
		n++
	}
	if n == 0 {
		return
	}
	clear(l.queue[:n]) // the packets may go; append moves the rest when it runs out of room
	l.queue, l.written = l.queue[n:], l.written-n
	l.room.Broadcast()
	select {
	case l.work <- struct{}{}:
	default:
	}
}
