package kinesisapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/goleak"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream/seglog"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperDir); dir != "" {
		if err := serveHelper(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// testDoor is a door with its log, on a file system in memory that outlives it.
type testDoor struct {
	*Door
	store *seglog.Store
	url   string
}

func openDoor(t testing.TB, fsys vfs.FS, edit func(*Config)) *testDoor {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	store, err := seglog.Open(seglog.Config{Dir: "log", FS: fsys, Log: log, ReserveBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Store: store, Dir: "kinesis", FS: fsys, Log: log, Metrics: prometheus.NewRegistry(), Transition: -1, ScaleEvery: -1}
	if edit != nil {
		edit(&cfg)
	}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	td := &testDoor{Door: d, store: store}
	t.Cleanup(td.close(t))
	return td
}

func (td *testDoor) close(t testing.TB) func() {
	return func() {
		if td.store == nil {
			return
		}
		if err := td.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error("close door:", err)
		}
		if err := td.store.Close(); err != nil {
			t.Error("close log:", err)
		}
		td.store = nil
	}
}

// listen serves the door on a port of its own.
func (td *testDoor) listen(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- td.Serve(ln, nil) }()
	t.Cleanup(func() {
		td.close(t)()
		if err := <-served; err != nil {
			t.Error("serve:", err)
		}
	})
	td.url = "http://" + ln.Addr().String()
	return td.url
}

func sdk(t testing.TB, url, id, secret string) *kinesis.Client {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return kinesis.New(kinesis.Options{
		Region: "us-east-1", BaseEndpoint: aws.String(url), HTTPClient: &http.Client{Transport: transport}, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(id, secret, ""),
	})
}

// ask sends one request without a network and returns the status and the body.
func (td *testDoor) ask(t testing.TB, op, body string) (int, string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	r.Header.Set("X-Amz-Target", target+op)
	w := httptest.NewRecorder()
	td.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// must asks and expects success; the answer is decoded into out unless that is nil.
func (td *testDoor) must(t testing.TB, op, body string, out any) {
	t.Helper()
	code, answer := td.ask(t, op, body)
	if code != http.StatusOK {
		t.Fatalf("%s %s: got %d %s", op, body, code, answer)
	}
	if out == nil {
		return
	}
	d := json.NewDecoder(bytes.NewReader([]byte(answer)))
	d.UseNumber()
	if err := d.Decode(out); err != nil {
		t.Fatalf("%s: %v in %s", op, err, answer)
	}
}

// refused asks and expects an error of a type, with words in its message.
func (td *testDoor) refused(t testing.TB, op, body, typ, words string) {
	t.Helper()
	code, answer := td.ask(t, op, body)
	var e struct{ Type, Message string }
	var raw map[string]string
	if err := json.Unmarshal([]byte(answer), &raw); err != nil {
		t.Fatalf("%s %s: got %d %s", op, body, code, answer)
	}
	e.Type, e.Message = raw["__type"], raw["message"]+raw["Message"]
	if code != http.StatusBadRequest || e.Type != typ || !strings.Contains(e.Message, words) {
		t.Errorf("%s %s:\n got %d %s %s\nwant 400 %s …%s…", op, body, code, e.Type, e.Message, typ, words)
	}
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// gatherer makes the door's metrics readable as text.
func gatherer(t testing.TB, c *Config) func() string {
	reg := prometheus.NewRegistry()
	c.Metrics = reg
	return func() string {
		t.Helper()
		w := httptest.NewRecorder()
		promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
		return w.Body.String()
	}
}
