package runtime

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/milepost/milepost/internal/conf"
)

// bare is a pool with a process that is not there: who connects plays it.
func bare(idle time.Duration) (*pool, *process) {
	pool := &pool{
		cfg: Config{Name: "f", Timeout: conf.Duration(time.Minute), IdleTimeout: conf.Duration(idle), Concurrency: 1}, arn: "arn", log: quiet(),
		stats: newStats(nil, "f"), procs: map[*process]struct{}{}, drained: make(chan struct{}),
	}
	p := &process{pool: pool, gone: make(chan struct{}), begun: time.Now(), timer: time.AfterFunc(time.Hour, func() {})}
	p.out = &capture{to: pool.lines, ring: &pool.ring}
	pool.procs[p], pool.coming = struct{}{}, 1
	return pool, p
}

// stop ends what bare has begun.
func stop(p *process) {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	p.timer.Stop()
	p.pool.stopped = true
	if p.pool.reaper != nil {
		p.pool.reaper.Stop()
	}
}

// A script is a connection whose other side has said everything, then has gone.
type script struct {
	net.Conn // nil
	in       bytes.Reader
	out      bytes.Buffer
}

func (s *script) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error) { return s.out.Write(p) }

// FuzzLink says anything to a process's Runtime API while the process has an invocation. Every answer is one of HTTP, and the invocation
// ends once or not at all.
func FuzzLink(f *testing.F) {
	const next = "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n"
	const post = "POST /2018-06-01/runtime/invocation/one/"
	f.Add([]byte(next + post + "response HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}" + next))
	f.Add([]byte(next + post + "response HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: Lambda-Runtime-Function-Error-Type\r\n\r\n2\r\n{}\r\n0\r\nLambda-Runtime-Function-Error-Type: T\r\n\r\n" + next + next))
	f.Add([]byte(post + "error HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}"))
	f.Add([]byte("GET /2018-06-01/runtime/invocation/next HTTP/1.0\r\n\r\n" + next))
	f.Add([]byte("HEAD /2018-06-01/ping HTTP/1.1\r\nHost: x\r\n\r\n" + next))
	f.Add([]byte("POST /2018-06-01/runtime/init/error HTTP/1.1\r\nHost: x\r\nContent-Length: 400000\r\n\r\n"))
	f.Add([]byte("nonsense\r\n\r\n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		pool, p := bare(time.Minute)
		defer stop(p)
		c := &call{req: &Request{Payload: []byte(`{"e":1}`)}, id: "one", done: make(chan struct{})}
		pool.mu.Lock()
		pool.coming--
		p.assign(c)
		pool.mu.Unlock()
		s := &script{}
		s.in.Reset(said)
		served := make(chan struct{})
		go func() { // the loop below waits
			newLink(p, s).serve()
			close(served)
		}()
		for ended := false; !ended; {
			select {
			case <-served:
				ended = true
			case <-time.After(time.Millisecond):
				pool.mu.Lock()
				if p.waiter != nil { // it waits for an event that will not come
					select {
					case <-p.gone:
					default:
						close(p.gone)
					}
				}
				pool.mu.Unlock()
			}
		}
		c.reading.Wait()
		answers := bufio.NewReader(&s.out)
		head := bytes.Contains(said, []byte("HEAD")) // then one answer has no body, and which is for ReadResponse to be told
		for !head {
			if _, err := answers.Peek(1); err != nil {
				break
			}
			resp, err := http.ReadResponse(answers, nil) //nolint:bodyclose // of a buffer
			if err != nil {
				t.Fatalf("answer: %v", err)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				t.Fatalf("body of %s: %v", resp.Status, err)
			}
		}
		select {
		case <-c.done:
			if c.resp == nil || p.state == running {
				t.Errorf("ended with %+v in state %s", c.resp, p.state)
			}
		default:
			if p.state != running {
				t.Errorf("state %s, and the invocation has not ended", p.state)
			}
		}
	})
}

// TestLastAnswer is for clients that want their connection closed, or are of HTTP/1.0: their event says that it is the last answer, and
// the connection ends with it.
func TestLastAnswer(t *testing.T) {
	for _, ask := range []string{
		"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"GET /2018-06-01/runtime/invocation/next HTTP/1.0\r\n\r\n",
	} {
		s := start(t)
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.api, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, ask); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		if err != nil || !bytes.Contains(got, []byte("\r\nConnection: close\r\n")) || !bytes.HasSuffix(got, []byte("\r\n\r\n{\"event\":\"ü\"}")) {
			t.Errorf("%q: %v %q", ask, err, got)
		}
		s.want("POST", "/runtime/invocation/one/response", "1", 202, ok)
		s.ends("", "1")
	}
}

// A body that waits for permission gets it.
func TestExpect(t *testing.T) {
	s := start(t)
	s.do("GET", "/runtime/invocation/next", "")
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.api, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST /2018-06-01/runtime/invocation/one/response HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 25)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "HTTP/1.1 100 Continue\r\n\r\n" {
		t.Fatalf("%q %v", got, err)
	}
	if _, err := io.WriteString(conn, "{}"); err != nil {
		t.Fatal(err)
	}
	s.ends("", "{}")
}

// play is a process that echoes events, over one connection, as cheaply as can be.
func play(tb testing.TB, addr string) (end func()) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := bufio.NewReader(conn)
		var body, out []byte
		// exchange sends a request, and reads an answer into body.
		exchange := func(request []byte) (id string, err error) {
			if _, err = conn.Write(request); err != nil {
				return "", err
			}
			n := 0
			for {
				line, err := r.ReadSlice('\n')
				if err != nil {
					return "", err
				}
				if len(line) == 2 {
					break
				}
				name, value, _ := strings.Cut(strings.TrimSpace(string(line)), ": ")
				switch name {
				case "Content-Length":
					if _, err := fmt.Sscan(value, &n); err != nil {
						return "", err
					}
				case headerID:
					id = value
				}
			}
			body = append(body[:0], make([]byte, n)...)
			_, err = io.ReadFull(r, body)
			return id, err
		}
		for {
			id, err := exchange([]byte("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\nUser-Agent: bench\r\n\r\n"))
			if err != nil {
				return // the benchmark is over
			}
			out = fmt.Appendf(out[:0], "POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nHost: x\r\nUser-Agent: bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", id, len(body), body)
			if _, err := exchange(out); err != nil {
				return
			}
		}
	}()
	return func() {
		_ = conn.Close()
		<-done
	}
}

// BenchmarkLink compares our connections with net/http's server, both below the whole of Invoke with its log and its deadlines, and with
// the same client in the same process, which is in both figures.
func BenchmarkLink(b *testing.B) {
	payload := []byte(`{"do":"echo","value":1}`)
	measure := func(b *testing.B, pool *pool) {
		b.ReportAllocs()
		before := cpu(syscall.RUSAGE_SELF)
		for b.Loop() {
			r, err := pool.Invoke(b.Context(), &Request{ID: "one", Payload: payload})
			if err != nil || !bytes.Equal(r.Payload, payload) {
				b.Fatalf("%v %+v", err, r)
			}
		}
		b.ReportMetric(float64((cpu(syscall.RUSAGE_SELF)-before).Microseconds())/float64(b.N), "cpu-µs")
	}
	b.Run("ours", func(b *testing.B) {
		pool, p := bare(time.Hour)
		d, err := openDoor(p)
		if err != nil {
			b.Fatal(err)
		}
		end := play(b, d.ln.Addr().String())
		measure(b, pool)
		stop(p)
		close(p.gone)
		d.close()
		end()
	})
	b.Run("net/http", func(b *testing.B) {
		pool, p := bare(time.Hour)
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if a := p.serve(r); a != nil {
				w.Header()["Content-Type"] = []string{a.kind}
				w.WriteHeader(a.status)
				_, _ = io.WriteString(w, a.body)
				return
			}
			s := &script{}
			l := newLink(p, s)
			l.next()
			select {
			case <-l.answered:
			case <-r.Context().Done():
				p.leave(&l.me)
				return
			}
			_, event, _ := bytes.Cut(s.out.Bytes(), []byte("\r\n\r\n"))
			w.Header()["Content-Type"] = []string{"application/json"}
			w.Header()[headerID] = []string{"one"}
			w.Header()[headerDeadline] = []string{"1795240000000"}
			w.Header()[headerARN] = []string{pool.arn}
			_, _ = w.Write(event)
		}))
		end := play(b, srv.Listener.Addr().String())
		measure(b, pool)
		stop(p)
		end()
		srv.Close()
	})
}
