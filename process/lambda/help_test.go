package lambda

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/lambda"
	"go.uber.org/goleak"

	"github.com/milepost/milepost/ingest/kinesisapi/sequence"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process/lambda/runtime"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/stream/seglog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func position(n int) stream.Position { return sequence.Position(uint64(n)) }

// A bench is a log, a store and functions over them, which come and go.
type bench struct {
	t     *testing.T
	fs    *vfs.MemFS
	logs  *seglog.Store
	store state.Store
	reg   *Registry
	cfg   Config
	api   *httptest.Server
}

// newBench makes the streams vehicles (of one shard), wide (of two), out and dead.
func newBench(t *testing.T, functions Functions) *bench {
	b := &bench{t: t, fs: vfs.NewCrashable()}
	var err error
	if b.logs, err = seglog.Open(seglog.Config{Dir: "log", FS: b.fs, TrimEvery: -1, ReserveBytes: -1}); err != nil {
		t.Fatal(err)
	}
	for name, shards := range map[string]int{"vehicles": 1, "wide": 2, "out": 1, "dead": 1, "failures": 1} {
		if _, err := b.logs.Ensure(t.Context(), name, seglog.StreamConfig{Shards: shards}); err != nil {
			t.Fatal(err)
		}
	}
	if b.store, err = local.Open(local.Config{Dir: "state", FS: b.fs, MemBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	var out testWriter
	b.cfg = Config{
		Store: b.store, Functions: functions, Buckets: "buckets", FS: b.fs, Account: "123456789012", DeadLetters: b.stream("dead"),
		Stream: func(name string) (stream.Log, error) {
			l, err := b.logs.Stream(name)
			if err != nil {
				return nil, err
			}
			return l, nil
		},
		Consumer: func(s, c string) (string, error) {
			arn := "arn:aws:kinesis:us-east-1:123456789012:stream/" + s + "/consumer/fast:1700000000"
			if c != "fast" && c != arn {
				return "", fmt.Errorf("there is no consumer %s", c)
			}
			return arn, nil
		},
		Log: slog.New(slog.NewTextHandler(&out, nil)),
	}
	b.open()
	t.Cleanup(func() {
		b.close()
		if err := errors.Join(b.store.Close(), b.logs.Close()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(out.String())
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return b
}

type testWriter struct {
	mu sync.Mutex
	b  strings.Builder
}

func (w *testWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *testWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

func (b *bench) open() {
	b.t.Helper()
	var err error
	if b.reg, err = Open(b.cfg); err != nil {
		b.t.Fatal(err)
	}
	b.api = httptest.NewServer(b.reg.API())
}

func (b *bench) close() {
	b.t.Helper()
	b.api.Close()
	if err := b.reg.Close(context.Background()); err != nil {
		b.t.Error(err)
	}
}

func (b *bench) stream(name string) *seglog.Log {
	l, err := b.logs.Stream(name)
	if err != nil {
		b.t.Fatal(err)
	}
	return l
}

// put appends records "KEY=DATA".
func (b *bench) put(name string, recs ...string) []stream.Record {
	b.t.Helper()
	list := make([]stream.Record, len(recs))
	for i, r := range recs {
		k, d, _ := strings.Cut(r, "=")
		list[i] = stream.Record{Key: k, Data: []byte(d)}
	}
	if err := b.stream(name).Append(b.t.Context(), list); err != nil {
		b.t.Fatal(err)
	}
	return list
}

// all returns the data of a stream of one shard.
func (b *bench) all(name string) []string {
	b.t.Helper()
	out := []string{}
	l := b.stream(name)
	tip, err := l.Tip(b.t.Context(), "shardId-000000000000")
	if err != nil {
		b.t.Fatal(err)
	}
	if tip.Pos == "" {
		return out
	}
	rd, err := l.Read(b.t.Context(), "shardId-000000000000", "")
	if err != nil {
		b.t.Fatal(err)
	}
	defer rd.Close() //nolint:errcheck // only read
	for {
		recs, err := rd.Next(b.t.Context(), 1000)
		if err != nil {
			b.t.Fatal(err)
		}
		for _, r := range recs {
			out = append(out, string(r.Data))
			if r.Pos == tip.Pos {
				return out
			}
		}
	}
}

// wait waits until ok, which it says what it waits for.
func (b *bench) wait(what string, ok func() bool) {
	b.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			s, _ := json.MarshalIndent(b.reg.List(b.t.Context()), "", " ")
			b.t.Fatalf("waited in vain: %s\n%s", what, s)
		}
	}
}

// caughtUp waits until every mapping that runs has processed everything.
func (b *bench) caughtUp() {
	b.t.Helper()
	b.wait("catch up", func() bool {
		for _, m := range b.reg.list() {
			v := m.view()
			if v.state == stateDisabled {
				continue
			}
			if v.state != stateEnabled || v.runner == nil {
				return false
			}
			if err := v.runner.WaitCaughtUp(b.t.Context()); err != nil {
				return false
			}
		}
		return true
	})
}

// client returns an SDK client of the API.
func (b *bench) client() *sdk.Client {
	return sdk.New(sdk.Options{
		Region: "us-east-1", BaseEndpoint: aws.String(b.api.URL), Credentials: credentials.NewStaticCredentialsProvider("AKID", "secret-of-sixteen", ""),
		RetryMaxAttempts: 1,
	})
}

// A handler is a function under test: it remembers what it was called with.
type handler struct {
	mu     sync.Mutex
	calls  []callSeen
	answer func(c callSeen) (string, error)
}

type callSeen struct {
	id       string
	payload  string
	data     []string // of the records
	keys     []string
	numbers  []string
	window   string
	state    string
	final    bool
	consumer string
}

func (h *handler) invoke(_ context.Context, req *runtime.Request) ([]byte, error) {
	var ev struct {
		Records []struct {
			Kinesis struct {
				Key    string `json:"partitionKey"`
				Number string `json:"sequenceNumber"`
				Data   []byte `json:"data"`
			} `json:"kinesis"`
			ARN string `json:"eventSourceARN"`
		}
		Window struct{ Start string } `json:"window"`
		State  json.RawMessage        `json:"state"`
		Final  bool                   `json:"isFinalInvokeForWindow"`
	}
	c := callSeen{id: req.ID, payload: string(req.Payload)}
	if err := json.Unmarshal(req.Payload, &ev); err != nil {
		return nil, err
	}
	for _, r := range ev.Records {
		c.data, c.keys, c.numbers = append(c.data, string(r.Kinesis.Data)), append(c.keys, r.Kinesis.Key), append(c.numbers, r.Kinesis.Number)
		c.consumer = r.ARN
	}
	c.window, c.state, c.final = ev.Window.Start, string(ev.State), ev.Final
	h.mu.Lock()
	h.calls = append(h.calls, c)
	answer := h.answer
	h.mu.Unlock()
	if answer == nil {
		return []byte(`{}`), nil
	}
	s, err := answer(c)
	return []byte(s), err
}

func (h *handler) seen() []callSeen {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.calls)
}

// data returns the data of all records of all calls.
func (h *handler) data() []string {
	out := []string{}
	for _, c := range h.seen() {
		out = append(out, c.data...)
	}
	return out
}

func (h *handler) config(on ...MappingConfig) FunctionConfig {
	return FunctionConfig{Func: h.invoke, Runtime: "", Timeout: 10 * time.Second, Memory: 128, Concurrency: 10, On: on}
}

// on is a mapping with defaults.
func on(name string, change ...func(*MappingConfig)) MappingConfig {
	m := MappingConfig{Stream: name, Enabled: true, BatchSize: 100, Parallel: 1, Start: startOldest, MaxRetries: -1}
	for _, f := range change {
		f(&m)
	}
	return m
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := "testdata/" + name
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || string(want) != got {
		t.Errorf("%s: %v\ngot  %s\nwant %s", name, err, got, want)
	}
}
