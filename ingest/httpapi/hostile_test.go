package httpapi_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/httpapi"
)

// endless is a body without an end. It notes the most that was in flight while it was read.
type endless struct {
	text  string
	admit *ingest.Admitter
	most  atomic.Int64 // the transport's goroutine reads the body
}

func (e *endless) Read(p []byte) (int, error) {
	e.most.Store(max(e.most.Load(), e.admit.InFlight()))
	n := 0
	for n+len(e.text) <= len(p) {
		n += copy(p[n:], e.text)
	}
	return n, nil
}

// A body that never ends, in one line or many, is cut off at the limit, and held no more memory than the limit allows.
func TestEndlessBody(t *testing.T) {
	for _, text := range []string{`{"x":"`, "x", seed + "\n", "[[[[", "\n"} {
		w := newWorld(t, ingest.Limits{MaxBody: 1 << 20}, httpapi.Config{})
		body := &endless{text: text, admit: w.admit}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/v1/readings", body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := w.client.Do(req)
		if err == nil { // or the connection was cut before the client has read the answer
			if resp.StatusCode != http.StatusRequestEntityTooLarge {
				t.Errorf("%.10q: %d, want 413", text, resp.StatusCode)
			}
			_ = resp.Body.Close()
		}
		if most := body.most.Load(); most > 2<<20 { // the buffer and the next one, while it grows
			t.Errorf("%.10q: %d bytes in flight", text, most)
		}
		if len(w.log.Records()) > 0 {
			t.Errorf("%.10q: %d readings of a body that was refused", text, len(w.log.Records()))
		}
	}
}

func TestBombs(t *testing.T) {
	const size = 64 << 20
	var gz bytes.Buffer
	z, _ := gzip.NewWriterLevel(&gz, gzip.BestSpeed)
	zeros := make([]byte, 1<<20)
	var zs bytes.Buffer
	y, err := zstd.NewWriter(&zs)
	if err != nil {
		t.Fatal(err)
	}
	for range size >> 20 {
		_, _ = z.Write(zeros)
		_, _ = y.Write(zeros)
	}
	_, _ = z.Close(), y.Close()
	var whole bytes.Buffer // its frame says how large it is
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	whole.Write(e.EncodeAll(make([]byte, 32<<20), nil))

	w := newWorld(t, ingest.Limits{}, httpapi.Config{})
	w.log.Hold() // nothing gets this far
	for name, body := range map[string][]byte{
		"gzip": gz.Bytes(), "zstd": zs.Bytes(), "zstd of known size": whole.Bytes(),
		"many empty gzip members": bytes.Repeat([]byte(gzipped("")), 20_000),
	} {
		encoding, _, _ := strings.Cut(name, " ")
		if encoding == "many" {
			encoding = "gzip"
		}
		a := w.post(t, "/v1/readings", string(body), "Content-Encoding", encoding)
		want := 413
		if name == "many empty gzip members" {
			want = 400
		}
		if a.status != want {
			t.Errorf("%s of %d bytes: %d %+v, want %d", name, len(body), a.status, a.doc, want)
		}
	}
}

// A zstd frame may say that it is anything.
func TestLyingFrames(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, httpapi.Config{})
	honest := []byte(zstded(t, seed, true))
	for i := range min(len(honest), 20) {
		for _, b := range []byte{0, 1, 0x7f, 0x80, 0xff} {
			lie := bytes.Clone(honest)
			lie[i] = b
			a := w.post(t, "/v1/readings", string(lie), "Content-Encoding", "zstd")
			if a.status != 200 && a.status != 400 && a.status != 413 {
				t.Errorf("byte %d as %x: %d %+v", i, b, a.status, a.doc)
			}
		}
	}
}

func TestHostilePayloads(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, httpapi.Config{})
	for name, body := range map[string]string{
		"deep arrays":       strings.Repeat("[", 1<<20),
		"deep objects":      strings.Repeat(`{"a":`, 1<<18),
		"deep value":        `{"truck_id":"a","x":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + "}",
		"huge number":       `{"truck_id":"a","speed":1e400}`,
		"long number":       `{"truck_id":"a","speed":` + strings.Repeat("9", 10_000) + `}`,
		"long line":         `{"truck_id":"a","x":"` + strings.Repeat("x", 1<<20) + `"}`,
		"no end":            `{"truck_id":"a","x":"`,
		"control":           "{\"truck_id\":\"a\x00b\"}",
		"invalid UTF-8":     "{\"truck_id\":\"\xff\xfe\"}",
		"long id":           `{"truck_id":"` + strings.Repeat("v", 1000) + `"}`,
		"commas":            "[" + strings.Repeat(",", 100_000) + "]",
		"blanks":            strings.Repeat(" \n", 100_000),
		"quotes":            strings.Repeat(`"`, 100_001),
		"backslashes":       strings.Repeat(`\`, 100_001),
		"empty objects":     strings.Repeat("{}\n", 100_000),
		"zero bytes":        string(make([]byte, 100_000)),
		"far in the future": `{"truck_id":"a","ts":"9999-01-01T00:00:00Z"}`,
	} {
		a := w.post(t, "/v1/readings", body)
		if a.status != 400 || a.doc.Accepted != 0 || a.doc.RefusedTotal == 0 {
			t.Errorf("%s: %d %+v", name, a.status, a.doc)
		}
	}
	if len(w.log.Records()) != 0 {
		t.Errorf("%d were stored", len(w.log.Records()))
	}
	if n := len(w.dead.Records()); n > 1000 {
		t.Errorf("%d dead letters", n)
	}
}

// A body that does not come is waited for only so long.
func TestSlowBody(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, httpapi.Config{BodyTimeout: 50 * time.Millisecond})
	r, body := io.Pipe()
	defer body.Close()
	go func() { _, _ = body.Write([]byte(`{"truck_id":`)) }() // and no more
	a := w.do(t, http.MethodPost, "/v1/readings", nil, r)
	if a.status != http.StatusRequestTimeout {
		t.Errorf("%d %+v, want 408", a.status, a.doc)
	}
}

// Senders that say they will send much and send nothing hold the smallest buffer each. When InFlightBytes are taken the next
// is told to come again, and gets in when one has gone.
func TestSlowSendersAreBounded(t *testing.T) {
	const room = 8 * 128 << 10
	w := newWorld(t, ingest.Limits{MaxBody: 100_000, InFlightBytes: room}, httpapi.Config{})
	var conns []net.Conn
	each := int64(100_001)
	for i := range room / each {
		c, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := fmt.Fprint(c, "POST /v1/readings HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		for w.admit.InFlight() < (i+1)*each { // the server is reading its body
			w.do(t, http.MethodGet, "/v1/readings", nil, nil)
		}
	}
	a := w.post(t, "/v1/readings", seed)
	if a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") == "" {
		t.Errorf("with no room left: %d %+v", a.status, a.doc)
	}
	if got := w.admit.InFlight(); got > room {
		t.Errorf("%d bytes in flight, %d are allowed", got, room)
	}
	_ = conns[0].Close()
	for w.admit.InFlight() > room-each {
		w.do(t, http.MethodGet, "/v1/readings", nil, nil)
	}
	if a := w.post(t, "/v1/readings", seed); a.status != 200 {
		t.Errorf("with room again: %d %+v", a.status, a.doc)
	}
}

// What a client does that goes away in the middle of its answer is its own business: the readings are stored.
func TestSenderThatGoesAway(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, httpapi.Config{})
	waiting := w.log.Hold()
	c, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c, "POST /v1/readings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(seed), seed); err != nil {
		t.Fatal(err)
	}
	<-waiting
	_ = c.Close()
	w.do(t, http.MethodGet, "/v1/readings", nil, nil) // a round trip for the server to notice in
	w.log.Release()
	for w.admit.InFlight() > 0 {
		w.do(t, http.MethodGet, "/v1/readings", nil, nil)
	}
	if n := len(w.log.Records()); n != 1 {
		t.Errorf("%d stored, want 1", n)
	}
}
