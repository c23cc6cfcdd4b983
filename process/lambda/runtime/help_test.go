package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/milepost/milepost/internal/conf"
)

var goBootstrap string // directory of testdata/gohandler, built

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "milepost-gohandler-")
	if err != nil {
		panic(err)
	}
	if err := build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goBootstrap = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// build makes dir/bootstrap as users do.
func build(dir string, env ...string) error {
	cmd := exec.Command("go", "build", "-tags", "lambda.norpc", "-o", filepath.Join(dir, "bootstrap"), "./testdata/gohandler")
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build testdata/gohandler: %w\n%s", err, out)
	}
	return nil
}

func need(t testing.TB, program string) {
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("%s is not installed", program)
	}
}

func python(t testing.TB, handler string) Config {
	need(t, "python3")
	return Config{Name: "py", Runtime: "python3", Handler: handler, Code: "testdata/python", Timeout: conf.Duration(5 * time.Second)}
}

func node(t testing.TB, handler string) Config {
	need(t, "node")
	return Config{Name: "js", Runtime: "nodejs20.x", Handler: handler, Code: "testdata/node", Timeout: conf.Duration(5 * time.Second)}
}

func golang(mode string) Config {
	return Config{Name: "go", Runtime: "provided.al2023", Code: goBootstrap, Timeout: conf.Duration(5 * time.Second), Environment: map[string]string{"MODE": mode}}
}

func open(t testing.TB, c Config) Invoker {
	t.Helper()
	inv, err := New(c, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(t, inv) })
	return inv
}

func shut(t testing.TB, inv Invoker) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := inv.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
}

func invoke(t testing.TB, inv Invoker, event string) *Response {
	t.Helper()
	r, err := inv.Invoke(t.Context(), &Request{ID: "request-1", Payload: []byte(event)})
	if err != nil {
		t.Fatalf("invoke %s: %v", event, err)
	}
	return r
}

func succeed(t testing.TB, inv Invoker, event, want string) *Response {
	t.Helper()
	r := invoke(t, inv, event)
	if r.FunctionError != "" || string(r.Payload) != want {
		t.Fatalf("%s: got %s %.300s, want %s\n%s", event, r.FunctionError, r.Payload, want, r.Log)
	}
	return r
}

// failing returns the error document.
func failing(t testing.TB, inv Invoker, event, kind, message string) (*Response, map[string]any) {
	t.Helper()
	r := invoke(t, inv, event)
	var doc map[string]any
	if r.FunctionError != "Unhandled" {
		t.Fatalf("%s: got %q %.300s, want Unhandled\n%s", event, r.FunctionError, r.Payload, r.Log)
	}
	if err := json.Unmarshal(r.Payload, &doc); err != nil {
		t.Fatalf("%s: %v: %s", event, err, r.Payload)
	}
	if doc["errorType"] != kind || !strings.Contains(fmt.Sprint(doc["errorMessage"]), message) {
		t.Fatalf("%s: got %s, want type %s and message %s\n%s", event, r.Payload, kind, message, r.Log)
	}
	return r, doc
}

func logHas(t testing.TB, r *Response, want ...string) {
	t.Helper()
	at := 0
	for _, w := range want {
		i := strings.Index(string(r.Log[at:]), w)
		if i < 0 {
			t.Fatalf("log has no %q at its place:\n%s", w, r.Log)
		}
		at += i + len(w)
	}
}

// eventually is for what other goroutines and the kernel do in their own time.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in 10 s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func logs(inv Invoker, most int) []Line {
	l, ok := inv.(Logged)
	if !ok {
		return nil
	}
	return l.Logs(0, most)
}
