package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/milepost/milepost/stream/seglog"
)

var rounds = flag.Int("rounds", 3, "how often TestKill kills the server")

// TestMain lets the test binary be the program: tests that need a process of its own start themselves with MILEPOST_MAIN=1, and
// scripts call it milepost.
func TestMain(m *testing.M) {
	if os.Getenv("MILEPOST_MAIN") == "1" {
		main()
		return
	}
	testscript.Main(m, map[string]func(){"milepost": main})
}

// serverProcess is a server in a process of its own.
type serverProcess struct {
	t    *testing.T
	cmd  *exec.Cmd
	logs *bytes.Buffer
	done chan error
	http string
	mqtt string
}

// startServer runs 'milepost serve' on a configuration and waits until it is ready.
func startServer(t *testing.T, config, httpAddr, mqttAddr string) *serverProcess {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &serverProcess{t: t, logs: &bytes.Buffer{}, done: make(chan error, 1), http: "http://" + httpAddr, mqtt: mqttAddr}
	p.cmd = exec.Command(exe, "serve", "--config", config)
	p.cmd.Env = append(os.Environ(), "MILEPOST_MAIN=1")
	p.cmd.Stderr, p.cmd.Stdout = p.logs, p.logs
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.done <- p.cmd.Wait() }()
	deadline := time.Now().Add(60 * time.Second)
	for time.Now().Before(deadline) {
		select {
		case err := <-p.done:
			t.Fatalf("server ended: %v\n%s", err, p.logs)
		default:
		}
		resp, err := http.Get(p.http + "/readyz")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return p
			}
		}
		time.Sleep(5 * time.Millisecond) // a process, not a goroutine: there is nothing to wait on
	}
	_ = p.cmd.Process.Kill() // or it has ended by itself
	<-p.done
	t.Fatalf("server is not ready after a minute\n%s", p.logs)
	return nil
}

func (p *serverProcess) kill() {
	_ = p.cmd.Process.Signal(syscall.SIGKILL) // or it has ended by itself
	<-p.done
}

// stop asks the server to drain and end.
func (p *serverProcess) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Errorf("stop server: %v", err)
	}
	select {
	case err := <-p.done:
		if err != nil {
			p.t.Fatalf("server ended with %v\n%s", err, p.logs)
		}
	case <-time.After(60 * time.Second):
		_ = p.cmd.Process.Signal(syscall.SIGQUIT) // its stacks, for the message below
		<-p.done
		p.t.Fatalf("server did not drain in a minute\n%s", p.logs)
	}
}

// rows asks for SQL rows.
func (p *serverProcess) rows(sql string) [][]any {
	p.t.Helper()
	body, _ := json.Marshal(map[string]string{"sql": sql})
	resp, err := http.Post(p.http+"/v1/sql?format=json", "application/json", bytes.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		p.t.Fatalf("%s: %s %s", sql, resp.Status, b)
	}
	var res struct {
		Rows      [][]any
		Truncated bool
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&res); err != nil {
		p.t.Fatal(err)
	}
	if res.Truncated {
		p.t.Fatalf("%s: truncated", sql)
	}
	return res.Rows
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// truck is one vehicle of the kill test. It sends readings with rising event times and, as real devices do, sends again what was
// not acknowledged. Its speed is over the limit for one minute of event time, once.
type truck struct {
	id    string
	acked int
}

// madeAt is when reading i was made: one a second at first, so that the overspeed lasts, then one every two milliseconds, so that a long
// test does not run ahead of the clock.
func madeAt(i int, base int64) int64 {
	if i <= 200 {
		return base + int64(i)*1000
	}
	return base + 200_000 + int64(i-200)*2
}

func (d *truck) reading(i int, base int64) []byte {
	speed := 50
	if i >= 20 && i < 80 {
		speed = 95
	}
	ts := time.UnixMilli(madeAt(i, base)).UTC().Format("2006-01-02T15:04:05.000Z")
	return fmt.Appendf(nil, `{"vehicle_id":%q,"ts":%q,"lat":52.1,"lon":5.2,"speed":%d,"fuel":%d}`, d.id, ts, speed, 100-i%100)
}

// TestKill kills the server at random moments while devices publish through both doors. In the end every acknowledged reading must
// be in the log, in the state, in SQL and in Parquet exactly once, and every alert must have fired once.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("kills processes for a while: run without -short, or 'make crash'")
	}
	requireSQL(t)
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d, %d rounds", seed, *rounds)

	var mu sync.Mutex
	told := map[string]int{} // notification id → how often
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		told[r.Header.Get("Idempotency-Key")]++
		mu.Unlock()
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	defer hook.Close()

	dir := t.TempDir()
	httpAddr, mqttAddr := freeAddr(t), freeAddr(t)
	config := filepath.Join(dir, "milepost.yaml")
	yaml := fmt.Sprintf("data: %s\nhttp:\n  listen: %s\nmqtt:\n  listen: %s\nkinesis:\n  listen: \"\"\narchive:\n  flush_age: 1s\nstream:\n  segment: 1MiB\n  reserve: 0\nsql:\n  rows: 10000000\nlimits:\n  rate_per_device: 0\nalerts:\n  webhooks:\n  - name: test\n    url: %s\n    secret: sixteen-bytes-or-more\n",
		filepath.Join(dir, "data"), httpAddr, mqttAddr, hook.URL)
	if err := os.WriteFile(config, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	base := time.Now().Add(-10 * time.Minute).UnixMilli() // within 15 minutes, so that alerts are notified

	const perDoor = 20
	devices := make([]*truck, 2*perDoor)
	for i := range devices {
		devices[i] = &truck{id: fmt.Sprintf("kill-%03d", i)}
	}
	for round := range *rounds {
		p := startServer(t, config, httpAddr, mqttAddr)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i, d := range devices {
			wg.Go(func() {
				if i < perDoor {
					d.publishHTTP(ctx, p.http, base, rng.Uint64())
				} else {
					d.publishMQTT(ctx, p.mqtt, base)
				}
			})
		}
		time.Sleep(time.Duration(50+rng.IntN(700)) * time.Millisecond) // the random moment
		p.kill()
		cancel()
		wg.Wait()
		_ = round
	}

	p := startServer(t, config, httpAddr, mqttAddr)
	// A device that was not killed often enough to have sped goes on until it has.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, d := range devices {
		for d.acked < 120 {
			if err := d.postOnce(ctx, p.http, base, 60); err != nil {
				t.Fatal(err)
			}
		}
	}
	total := 0
	for _, d := range devices {
		total += d.acked
	}
	t.Logf("%d acknowledged readings", total)
	waitCaughtUp(t, p.http)
	checkKilled(t, p, devices, "before draining", base)
	p.stop()
	checkLog(t, filepath.Join(dir, "data"), devices, base)

	p = startServer(t, config, httpAddr, mqttAddr)
	defer p.stop()
	waitCaughtUp(t, p.http)
	checkKilled(t, p, devices, "after a restart", base)

	alerts := p.rows("SELECT vehicle_id, count(*) FROM alerts WHERE rule = 'overspeed' GROUP BY 1")
	if len(alerts) != len(devices) {
		t.Errorf("%d vehicles have an overspeed alert, want %d", len(alerts), len(devices))
	}
	for _, a := range alerts {
		if n := fmt.Sprint(a[1]); n != "1" {
			t.Errorf("%s has %s overspeed alerts, want 1", a[0], n)
		}
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		mu.Lock()
		n := len(told)
		mu.Unlock()
		if n >= 2*len(devices) || time.Now().After(deadline) {
			if n != 2*len(devices) { // firing and resolved
				t.Errorf("%d distinct notifications, want %d", n, 2*len(devices))
			}
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// sqlText and sqlNumber take cells of SQL's answer.
func sqlText(t *testing.T, cell any) string {
	t.Helper()
	s, ok := cell.(string)
	if !ok {
		t.Fatalf("cell %v is a %T, want a text", cell, cell)
	}
	return s
}

func sqlNumber(t *testing.T, cell any) int64 {
	t.Helper()
	n, ok := cell.(json.Number)
	if !ok {
		t.Fatalf("cell %v is a %T, want a number", cell, cell)
	}
	i, err := n.Int64()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func checkKilled(t *testing.T, p *serverProcess, devices []*truck, when string, base int64) {
	t.Helper()
	twice := p.rows("SELECT vehicle_id, event_time, count(*) FROM readings GROUP BY 1, 2 HAVING count(*) > 1 LIMIT 5")
	if len(twice) > 0 {
		t.Errorf("%s: SQL has readings twice: %v", when, twice)
	}
	have := map[string]map[int64]bool{}
	for _, r := range p.rows("SELECT vehicle_id, epoch_ms(event_time) FROM readings") {
		id := sqlText(t, r[0])
		if have[id] == nil {
			have[id] = map[int64]bool{}
		}
		have[id][sqlNumber(t, r[1])] = true
	}
	pings := map[string]int64{}
	for _, r := range p.rows("SELECT vehicle_id, sum(readings)::BIGINT FROM daily_kpis GROUP BY 1") {
		pings[sqlText(t, r[0])] = sqlNumber(t, r[1])
	}
	for _, d := range devices {
		for i := range d.acked {
			if !have[d.id][madeAt(i, base)] {
				t.Errorf("%s: reading %d of %s was acknowledged and is not in SQL", when, i, d.id)
				break
			}
		}
		if got, want := pings[d.id], int64(len(have[d.id])); got != want {
			t.Errorf("%s: daily figures count %d readings of %s, SQL has %d", when, got, d.id, want)
		}
		var v struct {
			EventTime int64  `json:"event_time"`
			Readings  uint64 `json:"readings"`
		}
		resp, err := http.Get(p.http + "/v1/vehicles/" + d.id)
		if err != nil {
			t.Fatal(err)
		}
		err = json.NewDecoder(resp.Body).Decode(&v)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if v.EventTime < madeAt(d.acked-1, base) || int(v.Readings) != len(have[d.id]) {
			t.Errorf("%s: state of %s is at %d with %d readings, want at least %d and %d", when, d.id, v.EventTime, v.Readings, madeAt(d.acked-1, base), len(have[d.id]))
		}
	}
}

// publishHTTP posts batches until the server dies.
func (d *truck) publishHTTP(ctx context.Context, addr string, base int64, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 2))
	for ctx.Err() == nil {
		if d.postOnce(ctx, addr, base, 1+rng.IntN(5)) != nil {
			return
		}
	}
}

func (d *truck) postOnce(ctx context.Context, addr string, base int64, n int) error {
	var b bytes.Buffer
	for i := range n {
		b.Write(d.reading(d.acked+i, base))
		b.WriteByte('\n')
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, addr+"/v1/readings", &b)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s %w", resp.Status, body, err)
	}
	var answer struct {
		Accepted int
		Refused  []any
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Accepted != n || len(answer.Refused) > 0 {
		panic(fmt.Sprintf("%d readings answered with %s", n, body))
	}
	d.acked += n
	return nil
}

// publishMQTT keeps up to eight messages in flight until the server dies.
func (d *truck) publishMQTT(ctx context.Context, addr string, base int64) {
	l, err := dialMQTT(ctx, addr, d.id)
	if err != nil {
		return
	}
	defer l.conn.Close()
	topic := "fleet/" + d.id + "/telemetry"
	w := bufio.NewWriter(l.conn)
	sent := d.acked
	for ctx.Err() == nil {
		for ; sent < d.acked+8; sent++ {
			if _, err := w.Write(appendPublish(nil, topic, uint16(sent%60000+1), d.reading(sent, base))); err != nil {
				return
			}
		}
		if w.Flush() != nil {
			return
		}
		id, err := l.puback()
		if err != nil {
			return
		}
		if want := uint16(d.acked%60000 + 1); id != want {
			panic(fmt.Sprintf("acknowledgement of %d, want %d: out of order", id, want))
		}
		d.acked++
	}
}

func requireSQL(t *testing.T) {
	t.Helper()
	if !sqlBuilt() {
		t.Skip("this build has no SQL (CGO_ENABLED=0)")
	}
}

// waitCaughtUp waits until every function has processed what the log holds.
func waitCaughtUp(t *testing.T, addr string) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		resp, err := http.Get(addr + "/readyz?caught_up=1")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode == http.StatusOK {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not caught up after a minute: %s", strings.TrimSpace(string(b)))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// checkLog reads the log of a stopped server: every acknowledged reading is in it. A device that lost an acknowledgement sends
// again, so a reading may be in the log twice; what follows the log sees it once.
func checkLog(t *testing.T, data string, devices []*truck, base int64) {
	t.Helper()
	store, err := seglog.Open(seglog.Config{Dir: filepath.Join(data, "log")})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	log, err := store.Stream(readingsStream)
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, r := range readLog(t, log) {
		have[string(r.Data)] = true
	}
	for _, d := range devices {
		for i := range d.acked {
			if !have[string(d.reading(i, base))] {
				t.Errorf("reading %d of %s was acknowledged and is not in the log", i, d.id)
				break
			}
		}
	}
}

// puback waits for the next PUBACK and returns its packet id.
func (l *mqttLink) puback() (uint16, error) {
	for {
		head, err := l.r.ReadByte()
		if err != nil {
			return 0, err
		}
		n, err := binary.ReadUvarint(l.r)
		if err != nil {
			return 0, err
		}
		if head>>4 != 4 || n < 2 {
			if _, err := l.r.Discard(int(n)); err != nil { //nolint:gosec // a packet length
				return 0, err
			}
			continue
		}
		var id [2]byte
		if _, err := io.ReadFull(l.r, id[:]); err != nil {
			return 0, err
		}
		if _, err := l.r.Discard(int(n) - 2); err != nil { //nolint:gosec // a packet length
			return 0, err
		}
		return binary.BigEndian.Uint16(id[:]), nil
	}
}
