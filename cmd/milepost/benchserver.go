package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/pprof/profile"
)

// A benchServer is 'milepost serve' in a process of its own, so that its CPU and memory can be told from the generator's.
type benchServer struct {
	cmd    *exec.Cmd
	ended  chan struct{} // closed when the process has ended
	err    error         // how; read it after ended
	stderr bytes.Buffer
	http   string
	mqtt   string
}

func freeLoopback() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // immediate
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// startBenchServer starts a server and waits until it is ready, which it also times.
func startBenchServer(ctx context.Context, config, httpAddr, mqttAddr string) (*benchServer, time.Duration, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, 0, err
	}
	s := &benchServer{ended: make(chan struct{}), http: "http://" + httpAddr, mqtt: mqttAddr}
	s.cmd = exec.CommandContext(ctx, exe, "serve", "--config", config)
	s.cmd.Stderr = &s.stderr
	s.cmd.Env = append(os.Environ(), "MILEPOST_MAIN=1") // the test binary needs to be told
	began := time.Now()
	if err := s.cmd.Start(); err != nil {
		return nil, 0, err
	}
	go func() { // stop, kill and the loop below wait for it
		s.err = s.cmd.Wait()
		close(s.ended)
	}()
	for {
		select {
		case <-s.ended:
			return nil, 0, s.failure()
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
		if s.ready(ctx, "") == nil {
			return s, time.Since(began), nil
		}
	}
}

// serve starts a server on a new data directory of the given name.
func (b *benchRun) serve(ctx context.Context, name string, change ...func(*Config)) (*benchServer, error) {
	config, httpAddr, mqttAddr, err := b.benchConfig(name, change...)
	if err != nil {
		return nil, err
	}
	s, _, err := startBenchServer(ctx, config, httpAddr, mqttAddr)
	return s, err
}

func (s *benchServer) ready(ctx context.Context, query string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.http+"/readyz"+query, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read below
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(b))
	}
	return nil
}

// caughtUp waits until every function has processed the log's end and, with archived, until the live tail is Parquet.
func (s *benchServer) caughtUp(ctx context.Context, archived bool) error {
	query := "?caught_up=1"
	if archived {
		query = "?caught_up=1&archived=1"
	}
	for {
		err := s.ready(ctx, query)
		if err == nil {
			return nil
		}
		select {
		case <-s.ended:
			return s.failure()
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (s *benchServer) failure() error {
	return fmt.Errorf("server ended: %w\n%s", s.err, s.stderr.String())
}

// stop asks the server to drain, and waits.
func (s *benchServer) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	<-s.ended
	if s.err != nil {
		return s.failure()
	}
	return nil
}

// kill ends the server as a power cut would; one that has ended stays so.
func (s *benchServer) kill() {
	_ = s.cmd.Process.Kill()
	<-s.ended
}

// cpu returns the CPU time that the server has used.
func (s *benchServer) cpu() time.Duration {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(s.cmd.Process.Pid) + "/stat")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	var ticks int64
	for _, i := range []int{11, 12} { // utime, stime
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ
}

// peakMemory returns the server's largest resident size in bytes.
func (s *benchServer) peakMemory() float64 { return s.memory("VmHWM:") }

// memory returns a line of the process's status in bytes.
func (s *benchServer) memory(line string) float64 {
	want := line
	b, err := os.ReadFile("/proc/" + strconv.Itoa(s.cmd.Process.Pid) + "/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if kb, ok := strings.CutPrefix(line, want); ok {
			n, err := strconv.ParseFloat(strings.Fields(kb)[0], 64)
			if err != nil {
				return 0
			}
			return n * 1024
		}
	}
	return 0
}

func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// count asks SQL for one number.
func (s *benchServer) count(ctx context.Context, sql string) (float64, time.Duration, error) {
	body, err := json.Marshal(map[string]string{"sql": sql})
	if err != nil {
		return 0, 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.http+"/v1/sql?format=json", bytes.NewReader(body))
	if err != nil {
		return 0, 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	began := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	if resp.StatusCode != http.StatusOK {
		return 0, 0, problem(resp)
	}
	var res struct{ Rows [][]any }
	if err := json.NewDecoder(resp.Body).Decode(&res); err != nil {
		return 0, 0, err
	}
	took := time.Since(began)
	if len(res.Rows) == 0 || len(res.Rows[0]) == 0 {
		return 0, took, nil
	}
	n, _ := res.Rows[0][0].(float64)
	return n, took, nil
}

// stageCPU profiles the server for a while and returns the CPU seconds a second by room: a sample belongs to the innermost
// function of ours on its stack.
func (s *benchServer) stageCPU(ctx context.Context, d time.Duration) (map[string]float64, error) {
	url := fmt.Sprintf("%s/debug/pprof/profile?seconds=%d", s.http, max(1, int(d.Seconds())))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	p, err := profile.Parse(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read profile: %w", err)
	}
	by := map[string]float64{}
	for _, smp := range p.Sample {
		by[stageOf(smp)] += float64(smp.Value[len(smp.Value)-1]) / float64(p.DurationNanos)
	}
	return by, nil
}

func stageOf(s *profile.Sample) string {
	const ours = "github.com/milepost/milepost/"
	for _, loc := range s.Location {
		for _, line := range loc.Line {
			if line.Function == nil {
				continue
			}
			if rest, ok := strings.CutPrefix(line.Function.Name, ours); ok {
				if i := strings.LastIndexByte(rest, '/'); i >= 0 {
					if j := strings.IndexByte(rest[i:], '.'); j >= 0 {
						return rest[:i+j]
					}
				}
				name, _, _ := strings.Cut(rest, ".")
				return name
			}
		}
	}
	for _, loc := range s.Location {
		for _, line := range loc.Line {
			if line.Function != nil && strings.HasPrefix(line.Function.Name, "runtime.gcBgMarkWorker") {
				return "garbage collection"
			}
		}
	}
	return "runtime, net, pebble"
}

func sortedKeys(m map[string]float64) []string {
	ks := make([]string, 0, len(m))
	for k := range m {
		ks = append(ks, k)
	}
	sort.Slice(ks, func(i, j int) bool { return m[ks[i]] > m[ks[j]] })
	return ks
}
