package runtime

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/milepost/milepost/alert"
	"github.com/milepost/milepost/internal/conf"
)

func TestEndpoint(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		h := r.Header
		if err := alert.Verify(h.Get("Milepost-Signature"), body, []byte("s3cret"), alert.Tolerance, time.Now()); err != nil {
			t.Error(err)
		}
		if h.Get("Idempotency-Key") != "request-1" || h.Get("Milepost-Function") != "web" || h.Get("Authorization") != "Bearer t0ken" ||
			h.Get("X-Extra") != "1" || h.Get("Content-Type") != "application/json" || r.Method != "POST" {
			t.Errorf("headers %v", h)
		}
		switch string(body) {
		case "busy":
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(429)
		case "down":
			w.WriteHeader(503)
		case "bad":
			http.Error(w, "no such truck", http.StatusUnprocessableEntity)
		case "move":
			http.Redirect(w, r, "https://elsewhere.example/", http.StatusFound)
		case "slow":
			select {
			case <-release:
			case <-r.Context().Done():
			}
		case "huge":
			_, _ = w.Write(make([]byte, 7<<20))
		case "cut":
			panic(http.ErrAbortHandler)
		default:
			_, _ = w.Write(append([]byte("got "), body...))
		}
	}))
	defer srv.Close()
	ca, secret := filepath.Join(t.TempDir(), "ca.pem"), filepath.Join(t.TempDir(), "secret")
	for file, b := range map[string][]byte{
		ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), secret: []byte("s3cret\n"),
	} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := Config{Name: "web", URL: srv.URL, SecretFile: secret, Token: "t0ken", CAFile: ca, Headers: map[string]string{"X-Extra": "1"}, Timeout: conf.Duration(2 * time.Second), Concurrency: 1}
	inv := open(t, c)
	succeed(t, inv, "hello", "got hello")
	failing(t, inv, "bad", "Endpoint.Failed", `endpoint answered 422 Unprocessable Entity: "no such truck"`)
	failing(t, inv, "move", "Endpoint.Failed", "redirects are not followed")
	failing(t, inv, "huge", "Function.ResponseSizeTooLarge", "6291556 bytes")
	failing(t, inv, "cut", "Endpoint.Failed", "EOF")
	failing(t, inv, "slow", "Sandbox.Timedout", "Task timed out after 2.00 seconds")

	_, err := inv.Invoke(t.Context(), &Request{ID: "request-1", Payload: []byte("busy")})
	var throttled *ThrottledError
	if !errors.Is(err, ErrThrottled) || !errors.As(err, &throttled) || throttled.After != 7*time.Second {
		t.Errorf("busy: %v", err)
	}
	if _, err := inv.Invoke(t.Context(), &Request{ID: "request-1", Payload: []byte("down")}); !errors.Is(err, ErrThrottled) {
		t.Errorf("down: %v", err)
	}
	c.Timeout = conf.Duration(time.Minute)
	inv = open(t, c)
	done := make(chan error, 1)
	go func() { // ends with the release
		_, err := inv.Invoke(t.Context(), &Request{ID: "request-1", Payload: []byte("slow")})
		done <- err
	}()
	eventually(t, "it runs", func() bool { return inv.Status().Busy == 1 })
	if _, err := inv.Invoke(t.Context(), &Request{ID: "request-1"}); !errors.Is(err, ErrThrottled) {
		t.Errorf("second: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := inv.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("close: %v", err)
	}
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("slow: %v", err)
	}
	close(release)
	srv.Close()
	inv = open(t, c)
	if _, err := inv.Invoke(t.Context(), &Request{}); !errors.Is(err, ErrUnreachable) {
		t.Errorf("nobody there: %v", err)
	}
}

func TestFunc(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inv, err := NewFunc(Config{Name: "f", Concurrency: 1}, func(ctx context.Context, r *Request) ([]byte, error) {
			switch string(r.Payload) {
			case "error":
				return nil, &os.PathError{Op: "open", Path: "x", Err: os.ErrNotExist}
			case "panic":
				panic("out of cheese")
			case "slow":
				<-ctx.Done()
				return nil, ctx.Err()
			case "text":
				return []byte("text"), nil
			case "nothing":
				return nil, nil
			}
			return r.Payload, nil
		}, Deps{})
		if err != nil {
			t.Fatal(err)
		}
		succeed(t, inv, `{"a":1}`, `{"a":1}`)
		succeed(t, inv, `nothing`, `null`)
		failing(t, inv, "error", "PathError", "open x: file does not exist")
		_, doc := failing(t, inv, "panic", "string", "out of cheese")
		if doc["stackTrace"] == nil {
			t.Error("no stack")
		}
		failing(t, inv, "text", "Runtime.MarshalError", "no JSON")
		r, _ := failing(t, inv, "slow", "Sandbox.Timedout", "Task timed out after 3.00 seconds")
		if r.Duration != 3*time.Second {
			t.Errorf("duration %s", r.Duration)
		}
		done := make(chan error)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { // ends with ctx
			_, err := inv.Invoke(ctx, &Request{Payload: []byte("slow")})
			done <- err
		}()
		synctest.Wait()
		if _, err := inv.Invoke(t.Context(), &Request{}); !errors.Is(err, ErrThrottled) {
			t.Errorf("second: %v", err)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("abandoned: %v", err)
		}
		if err := inv.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := inv.Invoke(t.Context(), &Request{}); !errors.Is(err, ErrClosed) {
			t.Errorf("closed: %v", err)
		}
		if s := inv.Status(); s.Invokes != 6 || s.Errors != 4 || s.Timeouts != 1 || s.Throttles != 1 || s.Busy != 0 || s.Limit != 1 {
			t.Errorf("status: %+v", s)
		}
	})
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	f := func(want string, c Config) {
		t.Helper()
		if c.Name == "" {
			c.Name = "f"
		}
		if err := Check(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v\nwant %s", err, want)
		}
		if inv, err := New(c, Deps{}); err == nil {
			shut(t, inv)
			t.Errorf("New has accepted what Check has not: %s", want)
		}
	}
	f("set one of runtime, command and url", Config{})
	f("set one of runtime, command and url", Config{URL: "https://x", Runtime: "python3"})
	f(`name "a b"`, Config{Name: "a b", URL: "https://x"})
	f("timeout 16m: use up to 15m", Config{URL: "https://x", Timeout: conf.Duration(16 * time.Minute)})
	f("concurrency 2000: use 1 to 1000", Config{URL: "https://x", Concurrency: 2000})
	f(`url "x"`, Config{URL: "x"})
	f("are for processes", Config{URL: "https://x", Handler: "a.b"})
	f("are for a url", Config{Runtime: "provided", Secret: "x"})
	f("set secret or secret_file, not both", Config{URL: "https://x", Secret: "x", SecretFile: "y"})
	f("token_file: open nowhere", Config{URL: "https://x", TokenFile: "nowhere"})
	f("environment: _HANDLER is reserved", Config{Runtime: "provided", Code: dir, Environment: map[string]string{"_HANDLER": "x"}})
	f(`"A=B" cannot be a variable`, Config{Runtime: "provided", Code: dir, Environment: map[string]string{"A=B": "x"}})
	f(`runtime "java21": use provided, python3, nodejs, or command`, Config{Runtime: "java21", Code: dir})
	f("code: set the directory", Config{Runtime: "provided"})
	f("no such file or directory", Config{Runtime: "provided", Code: dir + "/nowhere"})
	f("needs a program called bootstrap", Config{Runtime: "provided", Code: dir})
	write("bootstrap", "#!/bin/sh\n", 0o600)
	f("is not executable: chmod +x it", Config{Runtime: "provided", Code: dir})
	if err := os.Chmod(filepath.Join(dir, "bootstrap"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Check(Config{Name: "f", Runtime: "provided", Code: dir}); err != nil {
		t.Error(err)
	}
	write("bootstrap", "MZ..", 0o700)
	f("neither a Linux program nor a script", Config{Runtime: "provided", Code: dir})
	b, err := os.ReadFile(filepath.Join(goBootstrap, "bootstrap"))
	if err != nil {
		t.Fatal(err)
	}
	b[18], b[19] = 243, 0 // e_machine: RISC-V
	write("bootstrap", string(b), 0o700)
	f("is built for EM_RISCV, this machine is", Config{Runtime: "provided", Code: dir})
	f("code: "+dir+"/bootstrap is no directory", Config{Runtime: "provided", Code: dir + "/bootstrap"})
	f("command: exec: \"no-such-program\"", Config{Command: []string{"no-such-program"}})
	need(t, "python3")
	f(`handler "app": write FILE.FUNCTION`, Config{Runtime: "python3", Code: dir, Handler: "app"})
	f("looked for app.py, app/__init__.py", Config{Runtime: "python3", Code: dir, Handler: "app.handler"})
	f("python3.99 is not on the PATH", Config{Runtime: "python3.99", Code: dir, Handler: "app.handler"})
	t.Setenv("PATH", dir)
	f("python3 is not on the PATH: install it", Config{Runtime: "python3", Code: dir, Handler: "app.handler"})
	f("node is not on the PATH: install Node.js", Config{Runtime: "nodejs", Code: dir, Handler: "app.handler"})
}
