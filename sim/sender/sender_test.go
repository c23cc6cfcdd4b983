package sender

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// perVehicle checks that each vehicle's lines "v n" arrived, at least once each, in order when repetitions are left out.
func perVehicle(t *testing.T, lines []string, vehicles, each int) {
	t.Helper()
	next := map[string]int{}
	for _, line := range lines {
		var v string
		var n int
		if _, err := fmt.Sscanf(line, `{"v":%q,"n":%d}`, &v, &n); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if n > next[v] {
			t.Fatalf("%s: %d came before %d", v, n, next[v])
		}
		if n == next[v] {
			next[v]++
		}
	}
	for i := range vehicles {
		if v := fmt.Sprintf("v%d", i); next[v] != each {
			t.Errorf("%s: %d of %d arrived", v, next[v], each)
		}
	}
}

func sendAll(t *testing.T, s *Sender, vehicles, each int) {
	t.Helper()
	for n := range each {
		for v := range vehicles {
			id := fmt.Sprintf("v%d", v)
			if err := s.Send(t.Context(), id, fmt.Appendf(nil, `{"v":%q,"n":%d}`, id, n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A door that answers badly every other time, and forgets to answer at all, loses nothing and keeps each vehicle's order.
func TestHTTPResends(t *testing.T) {
	var mu sync.Mutex
	var got []string
	requests := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path != "/v1/readings" || r.Header.Get("Authorization") != "Bearer secret" {
			t.Errorf("%s %s", r.URL.Path, r.Header)
		}
		switch requests++; requests % 4 {
		case 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 2: // stored, but the answer is lost
			got = append(got, strings.Fields(string(body))...)
			conn, _, err := w.(http.Hijacker).Hijack() //nolint:errcheck // the server's own, over HTTP/1.1
			if err != nil {
				t.Error(err)
				return
			}
			_ = conn.Close()
		default:
			got = append(got, strings.Fields(string(body))...)
			_, _ = io.WriteString(w, `{"accepted":1,"refused":[],"refused_total":0}`)
		}
	}))
	defer server.Close()
	s, err := Open(Config{Address: server.URL, Token: "secret", Batch: 2000, Linger: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	sendAll(t, s, 5, 100)
	if st := s.Stats(); st.Sent != 500 || st.Acked != 500 || st.Refused != 0 || st.Open() != 0 || st.Resent == 0 {
		t.Errorf("%+v", st)
	}
	perVehicle(t, got, 5, 100)
}

// Lines that are refused are reported, lines to send again are sent again, and the rest counts as acknowledged.
func TestHTTPSettles(t *testing.T) {
	var mu sync.Mutex
	var bodies []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		bodies = append(bodies, string(body))
		if len(bodies) == 1 {
			_, _ = io.WriteString(w, `{"accepted":1,"refused":[{"line":2,"reason":"no good"},{"line":3,"reason":"later","retryable":true}],"refused_total":2}`)
			return
		}
		_, _ = io.WriteString(w, `{"accepted":1,"refused":[],"refused_total":0}`)
	}))
	defer server.Close()
	var refused []string
	s, err := Open(Config{Address: server.URL, Connections: 1, Linger: 50 * time.Millisecond, Refused: func(p []byte, reason string) {
		refused = append(refused, string(p)+" "+reason)
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, line := range []string{"one", "two", "three"} {
		if err := s.Send(t.Context(), "v", []byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := []string{"one\ntwo\nthree\n", "three\n"}; !slices.Equal(bodies, want) {
		t.Errorf("got %q, want %q", bodies, want)
	}
	if want := []string{"two no good"}; !slices.Equal(refused, want) {
		t.Errorf("refused %q, want %q", refused, want)
	}
	if st := s.Stats(); st.Acked != 2 || st.Refused != 1 || st.Open() != 0 {
		t.Errorf("%+v", st)
	}
}

func TestHTTPHalvesWhatIsTooLarge(t *testing.T) {
	var mu sync.Mutex
	var got []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		switch {
		case err != nil:
		case len(body) > 100:
			w.WriteHeader(http.StatusRequestEntityTooLarge)
		default:
			mu.Lock()
			defer mu.Unlock()
			got = append(got, strings.Fields(string(body))...)
			_, _ = io.WriteString(w, `{"accepted":1}`)
		}
	}))
	defer server.Close()
	s, err := Open(Config{Address: server.URL, Connections: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	sendAll(t, s, 1, 60)
	perVehicle(t, got, 1, 60)
	if err := s.Send(t.Context(), "v", []byte(strings.Repeat("x", 200))); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.Acked != 60 || st.Refused != 1 {
		t.Errorf("%+v", st)
	}
}

func TestDoorThatRefusesUs(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	s, err := Open(Config{Address: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Send(t.Context(), "v", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	err = s.Flush(t.Context())
	if e, ok := errors.AsType[*DoorError](err); !ok || !strings.Contains(e.Msg, "404") {
		t.Errorf("got %v", err)
	}
	if err := s.Send(t.Context(), "v", []byte("{}")); err == nil {
		t.Error("a lane that has given up takes more")
	}
}

func TestOpenChecksAddress(t *testing.T) {
	for _, address := range []string{"", "localhost:1883", "ftp://x", "mqtt://", "://"} {
		if s, err := Open(Config{Address: address}); err == nil {
			t.Errorf("%q was accepted", address)
			_ = s.Close()
		}
	}
}

// broker is a door that speaks as much MQTT as a publisher hears.
type broker struct {
	t     *testing.T
	mu    sync.Mutex // guards what follows
	lines []string
	conns map[string]int // by topic: on how many connections it came
	drop  int            // close the connection instead of the n-th acknowledgement, again and again; 0: never
	n     int
}

func (b *broker) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	topics := map[string]bool{}
	for {
		head, err := in.ReadByte()
		if err != nil {
			return
		}
		size, err := binary.ReadUvarint(in)
		if err != nil {
			return
		}
		p := make([]byte, size)
		if _, err := io.ReadFull(in, p); err != nil {
			return
		}
		switch head >> 4 {
		case 1:
			if want := "\x00\x04MQTT\x04\xc2\x00\x3c\x00\x15milepost-"; string(p[:len(want)]) != want || !strings.HasSuffix(string(p), "\x00\x01u\x00\x02pw") {
				b.t.Errorf("connect %q", p)
			}
			_, err = conn.Write([]byte{0x20, 2, 0, 0})
		case 3:
			n := int(binary.BigEndian.Uint16(p))
			topic, id, payload := string(p[2:2+n]), p[2+n:4+n], string(p[4+n:])
			b.mu.Lock()
			b.lines = append(b.lines, payload)
			if !topics[topic] {
				topics[topic] = true
				b.conns[topic]++
			}
			b.n++
			drop := b.drop > 0 && b.n%b.drop == 0
			b.mu.Unlock()
			if head&6 != 2 || !strings.HasPrefix(topic, "fleet/v") || !strings.Contains(payload, strings.Split(topic, "/")[1]) {
				b.t.Errorf("publish %x %s %s", head, topic, payload)
			}
			if drop {
				return
			}
			_, err = conn.Write([]byte{0x40, 2, id[0], id[1]})
		case 12:
			_, err = conn.Write([]byte{0xd0, 0})
		case 14:
			return
		}
		if err != nil {
			return
		}
	}
}

func startBroker(t *testing.T, b *broker) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { b.serve(conn) })
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return "mqtt://" + ln.Addr().String()
}

func TestMQTT(t *testing.T) {
	b := &broker{t: t, conns: map[string]int{}}
	s, err := Open(Config{Address: startBroker(t, b), User: "u", Password: "pw", Connections: 4, Window: 8})
	if err != nil {
		t.Fatal(err)
	}
	sendAll(t, s, 6, 300)
	if st := s.Stats(); st.Sent != 1800 || st.Acked != 1800 || st.Open() != 0 {
		t.Errorf("%+v", st)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	perVehicle(t, b.lines, 6, 300)
	if len(b.lines) != 1800 {
		t.Errorf("%d publishes for 1800 payloads", len(b.lines))
	}
	for topic, n := range b.conns {
		if n != 1 {
			t.Errorf("%s came on %d connections", topic, n)
		}
	}
}

// Connections that break between a publish and its acknowledgement lose nothing and keep the order.
func TestMQTTResends(t *testing.T) {
	b := &broker{t: t, conns: map[string]int{}, drop: 37}
	s, err := Open(Config{Address: startBroker(t, b), User: "u", Password: "pw", Connections: 2, Window: 16})
	if err != nil {
		t.Fatal(err)
	}
	sendAll(t, s, 3, 40)
	if st := s.Stats(); st.Acked != 120 || st.Open() != 0 || st.Resent == 0 {
		t.Errorf("%+v", st)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	perVehicle(t, b.lines, 3, 40)
}

// Send blocks while the queue is full, and a done context ends the wait.
func TestSendBlocks(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-release
		_, _ = io.WriteString(w, `{"accepted":1}`)
	}))
	defer server.Close()
	defer close(release)
	s, err := Open(Config{Address: server.URL, Connections: 1, Batch: 100, Linger: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	done := make(chan int64)
	stopped := t.Context()
	go func() {
		defer close(done)
		for {
			if err := s.Send(stopped, "v", []byte(strings.Repeat("x", 20))); err != nil {
				return
			}
		}
	}()
	if err := s.Close(); err != nil { // wakes whoever waits for room
		t.Fatal(err)
	}
	<-done
	if st := s.Stats(); st.Sent > 20 {
		t.Errorf("%d payloads were queued behind a door that does not answer", st.Sent)
	}
}

func BenchmarkSend(b *testing.B) {
	payload := []byte(`{"truck_id":"T100","ts":"2026-11-21T02:15:03.120Z","lat":40.7128,"long":-74.0060,"speed":63.2,"heading":181,"status":"moving"}`)
	f := func(name string, cfg Config) {
		b.Run(name, func(b *testing.B) {
			s, err := Open(cfg)
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Send(b.Context(), "T100", payload); err != nil {
					b.Fatal(err)
				}
			}
			if err := s.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
		})
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, `{"accepted":1}`)
	}))
	defer server.Close()
	f("http", Config{Address: server.URL})
	f("mqtt", Config{Address: startSink(b), Window: 1000})
}

// startSink starts a door that acknowledges whatever is published.
func startSink(b *testing.B) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { sink(conn) })
		}
	})
	b.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return "mqtt://" + ln.Addr().String()
}

func sink(conn net.Conn) {
	defer conn.Close()
	in, out := bufio.NewReader(conn), bufio.NewWriter(conn)
	var p []byte
	for {
		head, err := in.ReadByte()
		if err != nil {
			return
		}
		size, err := binary.ReadUvarint(in)
		if err != nil {
			return
		}
		p = slices.Grow(p[:0], int(size))[:size]
		if _, err := io.ReadFull(in, p); err != nil {
			return
		}
		switch head >> 4 {
		case 1:
			_, _ = out.Write([]byte{0x20, 2, 0, 0})
		case 3:
			n := binary.BigEndian.Uint16(p)
			_, _ = out.Write([]byte{0x40, 2, p[2+n], p[3+n]})
		}
		if in.Buffered() == 0 && out.Flush() != nil {
			return
		}
	}
}
