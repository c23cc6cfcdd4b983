package mqtt

import (
	"crypto/sha1" //nolint:gosec // RFC 6455 asks for it; nothing secret
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// upgrade takes an HTTP request that asks for MQTT over WebSocket (RFC 6455, and section 6 of the MQTT specifications).
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Sec-WebSocket-Key")
	raw, err := base64.StdEncoding.DecodeString(key)
	switch {
	case r.Method != http.MethodGet, !hasToken(r.Header, "Connection", "upgrade"), !hasToken(r.Header, "Upgrade", "websocket"):
		w.Header().Set("Upgrade", "websocket")
		http.Error(w, "this address speaks MQTT over WebSocket", http.StatusUpgradeRequired)
	case r.Header.Get("Sec-WebSocket-Version") != "13":
		w.Header().Set("Sec-WebSocket-Version", "13")
		http.Error(w, "WebSocket version 13 is needed", http.StatusUpgradeRequired)
	case err != nil || len(raw) != 16:
		http.Error(w, "Sec-WebSocket-Key is not 16 bytes in base64", http.StatusBadRequest)
	case !hasToken(r.Header, "Sec-WebSocket-Protocol", "mqtt"): // MQTT-6.0.0-3
		http.Error(w, "ask for the WebSocket subprotocol mqtt", http.StatusBadRequest)
	default:
		s.hijack(w, r, key)
		return
	}
	s.met.handshakes.Inc()
}

// hasToken tells whether a header has a token in one of its lists.
func hasToken(h http.Header, name, token string) bool {
	return slices.ContainsFunc(h.Values(name), func(v string) bool {
		return slices.ContainsFunc(strings.Split(v, ","), func(t string) bool { return strings.EqualFold(strings.TrimSpace(t), token) })
	})
}

func (s *Server) hijack(w http.ResponseWriter, r *http.Request, key string) {
	nc, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "WebSocket needs HTTP/1.1", http.StatusHTTPVersionNotSupported)
		s.met.handshakes.Inc()
		return
	}
	_ = nc.SetDeadline(time.Now().Add(s.cfg.ConnectTimeout))
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) //nolint:gosec // see the import
	answer := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Accept: " +
		base64.StdEncoding.EncodeToString(sum[:]) + "\r\n\r\n"
	if _, err := io.WriteString(nc, answer); err != nil {
		_ = nc.Close()
		s.met.handshakes.Inc()
		return
	}
	_ = nc.SetDeadline(time.Time{})
	early, _ := rw.Reader.Peek(rw.Reader.Buffered()) // what the client has sent already
	ws := &wsConn{Conn: nc, early: append([]byte(nil), early...)}
	transport := overWebSocket
	if r.TLS != nil {
		transport = overWebSocketTLS
	}
	s.take(ws, transport)
}

// A wsConn is the MQTT bytes of a WebSocket connection. One goroutine reads, one writes; what control frames need is written by the
// reader.
type wsConn struct {
	net.Conn
	early []byte // read before Conn is

	// The reader's.
	rest uint64 // of the frame's payload
	mask [4]byte
	at   int // in mask

	writing sync.Mutex // a frame at a time
	said    bool       // a close frame has been written; guarded by writing
}

// Opcodes of frames.
const (
	wsContinuation = 0
	wsText         = 1
	wsBinary       = 2
	wsClose        = 8
	wsPing         = 9
	wsPong         = 10
)

// Close codes.
const (
	wsNormal      = 1000
	wsProtocol    = 1002
	wsUnsupported = 1003
)

var errWebSocket = errors.New("malformed WebSocket frame")

func (w *wsConn) raw(b []byte) error {
	for len(b) > 0 {
		if len(w.early) > 0 {
			n := copy(b, w.early)
			b, w.early = b[n:], w.early[n:]
			if len(w.early) == 0 {
				w.early = nil
			}
			continue
		}
		n, err := w.Conn.Read(b)
		b = b[n:]
		if err != nil && len(b) > 0 {
			return err
		}
	}
	return nil
}

// Read returns bytes of data frames. MQTT packets need not be aligned with frames (MQTT-6.0.0-2), so neither are reads.
func (w *wsConn) Read(b []byte) (int, error) {
	for w.rest == 0 {
		if err := w.frame(); err != nil {
			return 0, err
		}
	}
	n := len(b)
	if uint64(n) > w.rest {
		n = int(w.rest) //nolint:gosec // smaller than n
	}
	var err error
	if len(w.early) > 0 {
		n = copy(b[:n], w.early)
		w.early = w.early[n:]
	} else {
		n, err = w.Conn.Read(b[:n])
	}
	w.unmask(b[:n])
	w.rest -= uint64(n) //nolint:gosec // not negative
	return n, err
}

func (w *wsConn) unmask(b []byte) {
	i := 0
	if len(b) >= 16 {
		for w.at != 0 && i < len(b) {
			b[i] ^= w.mask[w.at]
			w.at = (w.at + 1) & 3
			i++
		}
		m := uint64(binary.LittleEndian.Uint32(w.mask[:]))
		m |= m << 32
		for ; i+8 <= len(b); i += 8 {
			binary.LittleEndian.PutUint64(b[i:], binary.LittleEndian.Uint64(b[i:])^m)
		}
	}
	for ; i < len(b); i++ {
		b[i] ^= w.mask[w.at]
		w.at = (w.at + 1) & 3
	}
}

// frame reads the next frame's header, and a control frame as a whole.
func (w *wsConn) frame() error {
	var h [14]byte
	if err := w.raw(h[:2]); err != nil {
		return err
	}
	op, n := h[0]&15, uint64(h[1]&0x7f)
	switch {
	case h[0]&0x70 != 0, h[1]&0x80 == 0: // reserved bits; a client's frames are masked
		return w.refuse(wsProtocol)
	case op >= wsClose && (n > 125 || h[0]&0x80 == 0):
		return w.refuse(wsProtocol)
	case n == 126:
		if err := w.raw(h[2:4]); err != nil {
			return err
		}
		n = uint64(binary.BigEndian.Uint16(h[2:]))
	case n == 127:
		if err := w.raw(h[2:10]); err != nil {
			return err
		}
		if n = binary.BigEndian.Uint64(h[2:]); n>>63 != 0 {
			return w.refuse(wsProtocol)
		}
	}
	if err := w.raw(w.mask[:]); err != nil {
		return err
	}
	w.at = 0
	switch op {
	case wsContinuation, wsBinary:
		w.rest = n
		return nil
	case wsText: // MQTT-6.0.0-1
		return w.refuse(wsUnsupported)
	case wsClose, wsPing, wsPong:
	default:
		return w.refuse(wsProtocol)
	}
	var buf [125]byte
	payload := buf[:n]
	if err := w.raw(payload); err != nil {
		return err
	}
	w.unmask(payload)
	switch op {
	case wsPing:
		return w.write(wsPong, payload)
	case wsClose:
		_ = w.sayClose(wsNormal)
		return io.EOF
	}
	return nil
}

func (w *wsConn) refuse(code uint16) error {
	_ = w.sayClose(code)
	return errWebSocket
}

func (w *wsConn) sayClose(code uint16) error {
	return w.write(wsClose, binary.BigEndian.AppendUint16(nil, code))
}

// Write writes b as one binary frame.
func (w *wsConn) Write(b []byte) (int, error) {
	if err := w.write(wsBinary, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (w *wsConn) write(op byte, b []byte) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	if w.said {
		return net.ErrClosed
	}
	w.said = op == wsClose
	head := make([]byte, 0, 10)
	head = append(head, 0x80|op)
	switch {
	case len(b) < 126:
		head = append(head, byte(len(b)))
	case len(b) < 1<<16:
		head = binary.BigEndian.AppendUint16(append(head, 126), uint16(len(b)))
	default:
		head = binary.BigEndian.AppendUint64(append(head, 127), uint64(len(b)))
	}
	if len(b) <= 1<<10 {
		_, err := w.Conn.Write(append(head, b...))
		return err
	}
	buffers := net.Buffers{head, b}
	_, err := buffers.WriteTo(w.Conn)
	return err
}

// Close says so first, unless the peer has.
func (w *wsConn) Close() error {
	_ = w.sayClose(wsNormal)
	return w.Conn.Close()
}
