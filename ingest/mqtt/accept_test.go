package mqtt_test

import (
	"bufio"
	"bytes"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/mqtt"
)

// A syncBuffer is a log that a test reads while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// Without a file descriptor to spare the door neither dies nor spins: it says so once, counts, and goes on when there is one. The
// connection that waited gets in, and those that were in notice nothing.
func TestOutOfFiles(t *testing.T) {
	for _, over := range []string{"TCP", "WebSocket"} {
		t.Run(over, func(t *testing.T) {
			var logged syncBuffer
			cfg := mqtt.Config{Logger: slog.New(slog.NewTextHandler(&logged, nil))}
			if over == "WebSocket" {
				cfg.WebSocketAddress = "127.0.0.1:0"
			}
			w := newWorld(t, ingest.Limits{}, cfg)
			before := w.device("before")
			addr := w.server.Addr()
			if over == "WebSocket" {
				addr = w.server.WebSocketAddr()
			}
			free := takeAllFiles(t)
			free(1)
			late, err := net.DialTimeout("tcp", addr.String(), patience) // takes the last one; the kernel accepts it
			if err != nil {
				t.Fatal(err)
			}
			defer late.Close()
			const attempts = 6 // with pauses of 5, 10, 20, 40 and 80 ms between
			began := time.Now()
			for w.metric("milepost_ingest_mqtt_accept_failures_total") < attempts {
				before.ping()
			}
			if took := time.Since(began); took < 50*time.Millisecond { // a lower bound: a loop without pauses takes microseconds
				t.Errorf("%d attempts in %s: the loop spins", attempts, took)
			}
			free(1 << 20)
			_ = late.SetDeadline(time.Now().Add(patience))
			if over == "WebSocket" {
				if _, err := late.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
					t.Fatal(err)
				}
				answer := make([]byte, 12)
				if _, err := late.Read(answer); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 ") {
					t.Errorf("the connection that waited got %q, %v", answer, err)
				}
			} else {
				d := &device{t: t, conn: late, in: bufio.NewReader(late)}
				if code := d.connect("late", "", ""); code != 0 {
					t.Errorf("the connection that waited was refused with %d", code)
				}
			}
			if n := strings.Count(logged.String(), "cannot accept"); n != 1 {
				t.Errorf("said %d times, want once:\n%s", n, logged.String())
			}
			if !strings.Contains(logged.String(), "accepts connections again") {
				t.Errorf("did not say that it goes on:\n%s", logged.String())
			}
		})
	}
}

// takeAllFiles leaves this process no file descriptor, and returns what gives some back.
func takeAllFiles(t *testing.T) (free func(n int)) {
	t.Helper()
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	probe, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer probe.Close()
	lower := was
	lower.Cur = uint64(probe.Fd()) + 64
	var held []*os.File
	free = func(n int) {
		for ; n > 0 && len(held) > 0; n-- {
			_ = held[len(held)-1].Close()
			held = held[:len(held)-1]
		}
	}
	t.Cleanup(func() {
		free(1 << 20)
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	})
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lower); err != nil {
		t.Fatal(err)
	}
	_ = probe.Close()
	for {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return free
		}
		held = append(held, f)
	}
}
