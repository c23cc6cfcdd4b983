package runtime

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/internal/conf"
)

// A speaker is a test that plays the process: the real one only says where its Runtime API is.
type speaker struct {
	t    *testing.T
	inv  Invoker
	api  string
	done chan result // of the invocation that start began
}

type result struct {
	*Response
	err error
}

// start begins an invocation, which starts the process.
func start(t *testing.T, change ...func(*Config)) *speaker {
	t.Helper()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "api")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	c := Config{Name: "f", Code: dir, Command: []string{"sh", "-c", `echo $AWS_LAMBDA_RUNTIME_API > api; exec sleep 600`}, Timeout: conf.Duration(5 * time.Second)}
	for _, f := range change {
		f(&c)
	}
	s := &speaker{t: t, inv: open(t, c)}
	s.invoke("one")
	b, err := os.ReadFile(fifo) // waits for the process
	if err != nil {
		t.Fatal(err)
	}
	s.api = "http://" + strings.TrimSpace(string(b))
	return s
}

func (s *speaker) pool() *pool {
	p, ok := s.inv.(*pool)
	if !ok {
		s.t.Fatalf("%T", s.inv)
	}
	return p
}

func (s *speaker) invoke(id string) {
	s.done = make(chan result, 1)
	go func() { // ends before Close does
		r, err := s.inv.Invoke(s.t.Context(), &Request{ID: id, Payload: []byte(`{"event":"ü"}`), ClientContext: "e30=", TraceID: "Root=1-2"})
		s.done <- result{r, err}
	}()
}

func (s *speaker) do(method, path, body string, change ...func(*http.Request)) (int, string, http.Header) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.api+"/2018-06-01"+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range change {
		f(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Header.Del("Date")
	http.DefaultClient.CloseIdleConnections()
	return resp.StatusCode, string(b), resp.Header
}

func (s *speaker) want(method, path, body string, status int, answer string, change ...func(*http.Request)) {
	s.t.Helper()
	code, got, h := s.do(method, path, body, change...)
	if code != status || got != answer {
		s.t.Errorf("%s %s: got %d %s, want %d %s", method, path, code, got, status, answer)
	}
	if strings.HasPrefix(answer, "{") && h.Get("Content-Type") != "application/json" {
		s.t.Errorf("%s %s: content type %s", method, path, h.Get("Content-Type"))
	}
}

func (s *speaker) ends(kind, payload string) {
	s.t.Helper()
	r := <-s.done
	if r.err != nil || r.FunctionError != kind || string(r.Payload) != payload {
		s.t.Fatalf("got %v %+v, want %q %s", r.err, r.Response, kind, payload)
	}
}

const (
	ok        = `{"status":"OK"}` + "\n"
	badID     = `{"errorMessage":"Invalid request ID","errorType":"InvalidRequestID"}` + "\n"
	tooLarge  = `{"errorMessage":"Exceeded maximum allowed payload size (6291556 bytes).","errorType":"RequestEntityTooLarge"}` + "\n"
	noStretch = `{"errorMessage":"State transition from Ready to InvocationResponse failed for runtime. Error: State transition is not allowed","errorType":"InvalidStateTransition"}` + "\n"
)

func notAllowed(from, to string) string {
	return strings.NewReplacer("Ready", from, "InvocationResponse", to).Replace(noStretch)
}

func TestProtocol(t *testing.T) {
	s := start(t)
	s.want("GET", "/ping", "", 200, "pong")
	s.want("GET", "/nowhere", "", 404, "404 page not found\n")
	s.want("GET", "/runtime/invocation/one/next", "", 404, "404 page not found\n")
	s.want("POST", "/ping", "", 405, "")
	s.want("GET", "/runtime/invocation/one/response", "", 405, "")
	s.want("POST", "/runtime/invocation/next", "", 405, "")
	s.want("GET", "/runtime/restore/next", "", 200, "")
	s.want("POST", "/runtime/invocation/one/response", "1", 403, notAllowed("Started", "InvocationResponse"))
	s.want("POST", "/runtime/invocation/one/error", "1", 403, notAllowed("Started", "InvocationErrorResponse"))

	before := time.Now()
	code, body, h := s.do("GET", "/runtime/invocation/next", "")
	if code != 200 || body != `{"event":"ü"}` {
		t.Errorf("next: %d %s", code, body)
	}
	var ms int64
	if err := json.Unmarshal([]byte(h.Get("Lambda-Runtime-Deadline-Ms")), &ms); err != nil {
		t.Error(err)
	}
	if d := time.UnixMilli(ms).Sub(before); d < 4*time.Second || d > 6*time.Second {
		t.Errorf("deadline in %s", d)
	}
	h.Del("Lambda-Runtime-Deadline-Ms")
	if d := cmp.Diff(http.Header{
		"Content-Type": {"application/json"}, "Content-Length": {"14"}, "Lambda-Runtime-Aws-Request-Id": {"one"},
		"Lambda-Runtime-Client-Context": {"e30="}, "Lambda-Runtime-Trace-Id": {"Root=1-2"},
		"Lambda-Runtime-Invoked-Function-Arn": {"arn:aws:lambda:us-east-1:000000000000:function:f"},
	}, h); d != "" {
		t.Error(d)
	}
	if _, again, _ := s.do("GET", "/runtime/invocation/next", ""); again != body {
		t.Errorf("the event again: %s", again)
	}
	s.want("POST", "/runtime/invocation/two/response", "1", 400, badID)
	s.want("POST", "/runtime/invocation/two/error", "1", 400, badID)
	s.want("POST", "/runtime/init/error", "{}", 403, notAllowed("Running", "InitError"))
	s.want("POST", "/runtime/invocation/one/response", "1", 400, `{"errorMessage":"Invalid function response mode","errorType":"InvalidFunctionResponseMode"}`+"\n",
		func(r *http.Request) { r.Header.Set("Lambda-Runtime-Function-Response-Mode", "odd") })
	s.want("POST", "/runtime/invocation/one/response", `{"a":1}`, 202, ok)
	s.ends("", `{"a":1}`)
	s.want("POST", "/runtime/invocation/one/response", `{"a":1}`, 403, notAllowed("RuntimeResponseSent", "InvocationResponse"))

	// Once more: it fails.
	f := func(id, verb, body string, status int, answer, payload string, change ...func(*http.Request)) {
		t.Helper()
		s.invoke(id)
		if _, _, h := s.do("GET", "/runtime/invocation/next", ""); h.Get("Lambda-Runtime-Aws-Request-Id") != id {
			t.Fatalf("next is %v", h)
		}
		s.want("POST", "/runtime/invocation/"+id+"/"+verb, body, status, answer, change...)
		kind := "Unhandled"
		if verb == "response" && status == 202 && len(change) < 2 {
			kind = ""
		}
		s.ends(kind, payload)
	}
	chunked := func(r *http.Request) { r.ContentLength, r.Body = -1, io.NopCloser(r.Body) }
	trailers := func(kind, body string) func(*http.Request) {
		return func(r *http.Request) {
			r.Trailer = http.Header{"Lambda-Runtime-Function-Error-Type": {kind}, "Lambda-Runtime-Function-Error-Body": {body}}
		}
	}
	f("two", "error", `{"errorMessage":"m","errorType":"T","stackTrace":[]}`, 202, ok, `{"errorMessage":"m","errorType":"T","stackTrace":[]}`)
	f("three", "error", "", 202, ok, `{"errorMessage":"the runtime gave no reason","errorType":"Odd"}`,
		func(r *http.Request) { r.Header.Set("Lambda-Runtime-Function-Error-Type", "Odd") })
	f("four", "error", `{"errorMessage":"m","errorType":"T","stackTrace":["a"],"errorCause":"{}"}`, 202, ok, `{"errorMessage":"m","errorType":"T","stackTrace":["a"]}`,
		func(r *http.Request) { r.Header.Set("Content-Type", "application/vnd.aws.lambda.error.cause+json") })
	f("five", "response", "", 202, ok, "")
	f("six", "response", `"chunks"`, 202, ok, `"chunks"`, chunked)
	f("seven", "response", `"half`, 202, ok, `{"errorMessage":"torn"}`, chunked, trailers("T", base64.StdEncoding.EncodeToString([]byte(`{"errorMessage":"torn"}`))))
	f("eight", "response", `"half`, 202, ok, `{"errorMessage":"the function failed while it wrote its response","errorType":"T"}`, chunked, trailers("T", "%"))
	full := strings.Repeat("x", 6<<20+100)
	f("nine", "response", full, 202, ok, full)
	large := `{"errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes).","errorType":"Function.ResponseSizeTooLarge"}`
	f("ten", "response", full+"x", 413, tooLarge, large)
	f("eleven", "response", full+"x", 413, tooLarge, large, chunked)

	// A body that ends before its length leaves the invocation where it was.
	s.invoke("twelve")
	s.do("GET", "/runtime/invocation/next", "")
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.api, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "POST /2018-06-01/runtime/invocation/twelve/response HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{}")
	if c, ok := conn.(*net.TCPConn); ok {
		_ = c.CloseWrite()
	}
	got, _ := io.ReadAll(conn)
	if !bytes.HasPrefix(got, []byte("HTTP/1.1 400 ")) || !bytes.Contains(got, []byte(`{"errorMessage":"HTTP request detected as truncated","errorType":"TruncatedHTTPRequest"}`)) {
		t.Errorf("truncated: %s", got)
	}
	s.want("POST", "/runtime/invocation/twelve/response", "12", 202, ok)
	s.ends("", "12")
}

func TestInitError(t *testing.T) {
	for _, path := range []string{"/runtime/init/error", "/runtime/restore/error"} {
		s := start(t)
		s.want("POST", path, `{"errorMessage":"m","errorType":"T"}`, 202, ok)
		s.ends("Unhandled", `{"errorMessage":"m","errorType":"T"}`) // although the process stays: it is ended
	}
}

// A connection that is lost while it waits for an event loses no event, and one that asks again takes the place of the first.
func TestLostConnection(t *testing.T) {
	s := start(t)
	s.do("GET", "/runtime/invocation/next", "")
	s.want("POST", "/runtime/invocation/one/response", "1", 202, ok)
	s.ends("", "1")
	ask := func() net.Conn {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.api, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	p := s.pool()
	waiting := func() *waiter {
		p.mu.Lock()
		defer p.mu.Unlock()
		for proc := range p.procs {
			return proc.waiter
		}
		return nil
	}
	first := ask()
	eventually(t, "first request waits", func() bool { return waiting() != nil })
	old := waiting()
	second := ask()
	eventually(t, "second request waits", func() bool { return waiting() != old })
	if b, _ := io.ReadAll(io.LimitReader(first, 12)); string(b) != "HTTP/1.1 403" {
		t.Errorf("the first request got %s", b)
	}
	_ = first.Close()
	_ = second.Close()
	eventually(t, "second request has gone", func() bool { return waiting() == nil })
	s.invoke("two")
	if _, _, h := s.do("GET", "/runtime/invocation/next", ""); h.Get("Lambda-Runtime-Aws-Request-Id") != "two" {
		t.Errorf("got %v", h)
	}
	s.want("POST", "/runtime/invocation/two/response", "2", 202, ok)
	s.ends("", "2")
}

// What a process does after its answer is under the deadline too; the next invocation waits, then gets a new process.
func TestWorkAfterAnswer(t *testing.T) {
	s := start(t, func(c *Config) { c.Timeout = conf.Duration(300 * time.Millisecond); c.Concurrency = 1 })
	s.do("GET", "/runtime/invocation/next", "")
	s.want("POST", "/runtime/invocation/one/response", "1", 202, ok)
	s.ends("", "1")
	s.invoke("two") // the first process never asks again
	b, err := os.ReadFile(filepath.Join(s.pool().prog.root, "api"))
	if err != nil {
		t.Fatal(err)
	}
	s.api = "http://" + strings.TrimSpace(string(b))
	s.do("GET", "/runtime/invocation/next", "")
	s.want("POST", "/runtime/invocation/two/response", "2", 202, ok)
	s.ends("", "2")
	if st := s.inv.Status(); st.ColdStarts != 2 || st.Restarts != 1 {
		t.Errorf("status: %+v", st)
	}
}
