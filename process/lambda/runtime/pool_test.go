package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/internal/conf"
)

func pidOf(t *testing.T, inv Invoker) int {
	t.Helper()
	var pid int
	if err := json.Unmarshal(invoke(t, inv, `{"do":"pid"}`).Payload, &pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

func gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ") // a zombie is waited for by whoever it belongs to now
}

func TestConcurrency(t *testing.T) {
	c := golang("stall")
	c.Concurrency = 2
	inv := open(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, err := inv.Invoke(ctx, &Request{}); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
	}
	eventually(t, "both run", func() bool { return inv.Status().Busy == 2 })
	if _, err := inv.Invoke(ctx, &Request{}); !errors.Is(err, ErrThrottled) {
		t.Errorf("the third: %v", err)
	}
	if s := inv.Status(); s.Processes != 2 || s.Limit != 2 || s.Throttles != 1 {
		t.Errorf("status: %+v", s)
	}
	cancel()
	wg.Wait()
	eventually(t, "processes of callers that have gone end", func() bool { return inv.Status().Processes == 0 })
}

// Many callers within the limit: nobody is refused, processes are used again, answers are not mixed up.
func TestManyCallers(t *testing.T) {
	c := golang("echo")
	c.Concurrency = 4
	inv := open(t, c)
	var wg sync.WaitGroup
	for caller := range 4 {
		wg.Go(func() {
			for i := range 200 {
				want := fmt.Sprintf(`"%d-%d"`, caller, i)
				r, err := inv.Invoke(t.Context(), &Request{Payload: []byte(want)})
				if err != nil || string(r.Payload) != want {
					t.Errorf("got %v %+v, want %s", err, r, want)
					return
				}
			}
		})
	}
	wg.Wait()
	if s := inv.Status(); s.ColdStarts > 4 || s.Invokes != 800 || s.Errors != 0 || s.Busy > 4 {
		t.Errorf("status: %+v", s)
	}
}

func TestKilledInMidInvocation(t *testing.T) {
	inv := open(t, python(t, "app.handler"))
	pid := pidOf(t, inv)
	done := make(chan *Response, 1)
	go func() { // ends with the process
		r, err := inv.Invoke(t.Context(), &Request{ID: "x", Payload: []byte(`{"do":"sleep"}`)})
		if err != nil {
			t.Error(err)
		}
		done <- r
	}()
	eventually(t, "it has the event", func() bool {
		l := logs(inv, 1)
		return len(l) == 1 && strings.HasPrefix(l[0].Text, "START RequestId: x ")
	})
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if r := <-done; r == nil || string(r.Payload) != `{"errorMessage":"RequestId: x Error: Runtime exited with error: signal: killed","errorType":"Runtime.ExitError"}` {
		t.Errorf("got %+v", r)
	}
	succeed(t, inv, `{"do":"echo","value":1}`, `1`)
}

// A process that dies while it has nothing to do costs no invocation.
func TestKilledWhileIdle(t *testing.T) {
	inv := open(t, python(t, "app.handler"))
	for range 5 {
		if err := syscall.Kill(pidOf(t, inv), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "its end is noticed", func() bool { return inv.Status().Processes == 0 })
	}
	if s := inv.Status(); s.Errors != 0 || s.Restarts != 5 || s.ColdStarts != 5 {
		t.Errorf("status: %+v", s)
	}
}

func TestIdle(t *testing.T) {
	c := python(t, "app.handler")
	c.IdleTimeout = conf.Duration(50 * time.Millisecond)
	inv := open(t, c)
	pid := pidOf(t, inv)
	eventually(t, "an idle process ends", func() bool { return inv.Status().Processes == 0 })
	if !gone(pid) {
		t.Error("the process is alive")
	}
	if pidOf(t, inv) == pid {
		t.Error("the same process")
	}
	if s := inv.Status(); s.Restarts != 0 {
		t.Errorf("status: %+v", s)
	}
}

// A process's children are of its group, and end with it.
func TestChildren(t *testing.T) {
	inv := open(t, python(t, "app.handler"))
	var child int
	if err := json.Unmarshal(invoke(t, inv, `{"do":"child"}`).Payload, &child); err != nil {
		t.Fatal(err)
	}
	failing(t, inv, `{"do":"exit","status":1}`, "Runtime.ExitError", "exit status 1")
	eventually(t, "its child ends", func() bool { return gone(child) })
}

func TestClose(t *testing.T) {
	// Under way and soon finished.
	inv := open(t, Config{Name: "f", Code: "testdata/python", Command: []string{"true"}})
	shut(t, inv)
	if _, err := inv.Invoke(t.Context(), &Request{}); !errors.Is(err, ErrClosed) {
		t.Errorf("after close: %v", err)
	}
	// Under way and not to be finished.
	c := golang("stall")
	c.Timeout = conf.Duration(time.Minute)
	inv, err := New(c, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { // ends with Close
		_, err := inv.Invoke(context.Background(), &Request{})
		done <- err
	}()
	eventually(t, "it runs", func() bool { return inv.Status().Busy == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := inv.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("close: %v", err)
	}
	if err := <-done; !errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), "in mid-invocation") {
		t.Errorf("invoke: %v", err)
	}
	if s := inv.Status(); s.Processes != 0 {
		t.Errorf("status: %+v", s)
	}
	if err := inv.Close(t.Context()); err != nil {
		t.Errorf("second close: %v", err)
	}
	// Under way and finished in time: Close waits.
	inv, err = New(golang("echo"), Deps{})
	if err != nil {
		t.Fatal(err)
	}
	go func() { // ends by itself
		_, err := inv.Invoke(context.Background(), &Request{Payload: []byte("1")})
		done <- err
	}()
	eventually(t, "it has a process", func() bool { return inv.Status().Processes == 1 })
	shut(t, inv)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A function that crashes at its start is started less and less often; those who wait are bounded by their context.
func TestBackoff(t *testing.T) {
	inv := open(t, Config{Name: "f", Code: t.TempDir(), Command: []string{"false"}, Timeout: conf.Duration(time.Second)})
	began := time.Now()
	for range 4 { // at once, at once, 100 ms, 200 ms
		failing(t, inv, `{}`, "Runtime.ExitError", "Runtime exited with error: exit status 1")
	}
	if d := time.Since(began); d < 300*time.Millisecond {
		t.Errorf("4 starts in %s", d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := inv.Invoke(ctx, &Request{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if s := inv.Status(); s.ColdStarts != 4 {
		t.Errorf("status: %+v", s)
	}
}

// A program that can no longer be started is the function's fault, and says what is wrong.
func TestProgramGone(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/bootstrap"
	if err := os.WriteFile(path, []byte("#!/bin/sh\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	inv := open(t, Config{Name: "f", Code: dir, Runtime: "provided"})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	failing(t, inv, `{}`, "Runtime.InvalidEntrypoint", "no such file or directory (is the program")
}

func TestRequestCheck(t *testing.T) {
	inv := open(t, golang("echo"))
	f := func(want string, r *Request) {
		t.Helper()
		if _, err := inv.Invoke(t.Context(), r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	f("request id", &Request{ID: "a/b"})
	f("request id", &Request{ID: ".."})
	f("request id", &Request{ID: "a\r\nb"})
	f("client context", &Request{ClientContext: "a\r\nb"})
	f("trace id", &Request{TraceID: "ü"})
	f("6291557 bytes", &Request{Payload: make([]byte, 6<<20+101)})
	full := append(append([]byte(`"`), strings.Repeat("x", 6<<20+98)...), '"')
	if r, err := inv.Invoke(t.Context(), &Request{ID: "shard-1:0-9~a.b", Payload: full}); err != nil || len(r.Payload) != len(full) {
		t.Errorf("6 MB and a little: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	m, err := NewMetrics(reg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewMetrics(reg); err == nil {
		t.Error("registered twice")
	}
	inv, err := New(golang("error"), Deps{Metrics: m})
	if err != nil {
		t.Fatal(err)
	}
	invoke(t, inv, `{}`)
	f := func(want float64, name string) {
		t.Helper()
		all, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, fam := range all {
			if fam.GetName() == "milepost_function_"+name {
				v := fam.GetMetric()[0]
				if got := v.GetCounter().GetValue() + v.GetGauge().GetValue() + float64(v.GetHistogram().GetSampleCount()); got != want || v.GetLabel()[0].GetValue() != "go" {
					t.Errorf("%s = %g, want %g", name, got, want)
				}
				return
			}
		}
		t.Errorf("no metric %s", name)
	}
	f(1, "invocations_total")
	f(1, "errors_total")
	f(1, "cold_starts_total")
	f(1, "processes")
	f(1, "duration_seconds")
	shut(t, inv)
	f(0, "processes")
	f(0, "restarts_total")
}

func TestRing(t *testing.T) {
	var r ring
	for i := range 10_000 {
		r.add(Line{Text: fmt.Sprint(i)})
	}
	f := func(since uint64, most, n int, first string) {
		t.Helper()
		got := r.since(since, most)
		if len(got) != n || n > 0 && got[0].Text != first {
			t.Errorf("since %d, most %d: %d lines, first %v", since, most, len(got), got[:min(1, len(got))])
		}
	}
	f(0, 0, ringLines, "8000")
	f(0, 10, 10, "9990")
	f(9_999, 10, 1, "9999")
	f(10_000, 10, 0, "")
	f(99_999, 10, 0, "")
	for range 40 {
		r.add(Line{Text: strings.Repeat("x", 100_000)})
	}
	f(0, 0, 10, strings.Repeat("x", 100_000))
}

// FuzzCapture: however a process's output is cut into writes, its lines are the same and bounded.
func FuzzCapture(f *testing.F) {
	f.Add([]byte("a\nb\r\n\nc"), 2)
	f.Add([]byte(strings.Repeat("x", 3*maxLine)+"\ny"), 5000)
	f.Fuzz(func(t *testing.T, out []byte, step int) {
		lines := func(step int) []string {
			var r ring
			c := capture{to: newLines(quiet(), "f", 100, newStats(nil, "f").cDropped), ring: &r}
			for at := 0; at < len(out); at += step {
				c.write(out[at:min(at+step, len(out))])
			}
			c.flush()
			var s []string
			for _, l := range r.since(0, 0) {
				if len(l.Text) > maxLine {
					t.Fatalf("a line of %d bytes", len(l.Text))
				}
				s = append(s, l.Text)
			}
			return s
		}
		whole, parts := lines(len(out)+1), lines(1+max(step, -step)%100)
		if strings.Join(whole, "\n") != strings.Join(parts, "\n") {
			t.Fatalf("%q and %q", whole, parts)
		}
	})
}
