package runtime

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// A lockedBuffer is read while the teller writes.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take returns what was written since it was last called.
func (l *lockedBuffer) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.b.String()
	l.b.Reset()
	return s
}

// plain logs messages and attributes without times.
func plain(b io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}}))
}

func counted(t *testing.T, reg prometheus.Gatherer, name string) float64 {
	t.Helper()
	got, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range got {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// TestLines: a burst goes through, then so many a second; the rest is counted and told once a second, and at the end.
func TestLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b lockedBuffer
		dropped, reg := prometheus.NewCounter(prometheus.CounterOpts{Name: "x_total", Help: "Lines."}), prometheus.NewRegistry()
		reg.MustRegister(dropped)
		l := newLines(plain(&b), "f", 10, dropped)
		story := func() []string {
			synctest.Wait() // the teller has written
			var out []string
			for line := range strings.Lines(b.take()) {
				if _, n, ok := strings.Cut(line, " lines="); ok {
					out = append(out, "dropped "+strings.TrimSpace(n))
				} else if n := len(out); n > 0 && strings.HasPrefix(out[n-1], "line") {
					out[n-1] += "+"
				} else {
					out = append(out, "line")
				}
			}
			for i, s := range out {
				if n := strings.Count(s, "+"); n > 0 {
					out[i] = fmt.Sprint("lines ", n+1)
				}
			}
			return out
		}
		write := func(n int) {
			for range n {
				l.write("id", "x")
			}
		}
		check := func(want ...string) {
			t.Helper()
			if d := cmp.Diff(want, story()); d != "" {
				t.Error(d)
			}
		}
		write(50)
		check("lines 50")
		write(7)
		check()
		time.Sleep(tellEvery + time.Millisecond)
		check("dropped 7")
		write(20) // ten more in a second
		check("lines 10")
		time.Sleep(time.Hour)
		check("dropped 10")
		write(51)
		l.close()
		check("lines 50", "dropped 1")
		if got := counted(t, reg, "x_total"); got != 18 {
			t.Errorf("%v lines are counted, want 18", got)
		}
	})
}

// TestLongLine: a long line is cut between letters, and says by how much.
func TestLongLine(t *testing.T) {
	var b bytes.Buffer
	l := newLines(plain(&b), "f", 10, prometheus.NewCounter(prometheus.CounterOpts{Name: "x_total", Help: "Lines."}))
	l.write("id", strings.Repeat("ü", loggedBytes))
	l.write("id", "a"+strings.Repeat("ü", loggedBytes))
	const head = `msg="function output" function=f request_id=id line=`
	want := head + strings.Repeat("ü", loggedBytes/2) + " cut_bytes=4096\n" + head + "a" + strings.Repeat("ü", loggedBytes/2-1) + " cut_bytes=4098\n"
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Error(d)
	}
}

// TestALoudProcess: what a process prints without end is bounded in the log, whole in Logs as far as that goes, and counted.
func TestALoudProcess(t *testing.T) {
	reg := prometheus.NewRegistry()
	m, err := NewMetrics(reg)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	c := golang("print")
	c.LogLines = 1
	inv, err := New(c, Deps{Log: slog.New(slog.NewTextHandler(&b, nil)), Metrics: m})
	if err != nil {
		t.Fatal(err)
	}
	r := invoke(t, inv, `{"lines":100}`)
	if r.FunctionError != "" {
		t.Fatalf("%s", r.Payload)
	}
	kept := 0
	for _, l := range logs(inv, 0) {
		if strings.HasPrefix(l.Text, "line ") {
			kept++
		}
	}
	shut(t, inv)
	logged := strings.Count(b.String(), `msg="function output"`)
	if got := counted(t, reg, "milepost_function_dropped_log_lines_total"); kept != 100 || logged < lineBurst || logged > 50 || int(got)+logged != 100 || !strings.Contains(b.String(), "log_lines") {
		t.Errorf("%d lines in Logs, %d in the log, %v dropped; want 100, a few, the rest\n%s", kept, logged, got, b.String())
	}
}
