package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/milepost/milepost/internal/conf"
)

// benchCrowds measures what many connections cost: idle ones, and all of them coming back at once.
func benchCrowds(ctx context.Context, b *benchRun) error {
	if b.idle > 0 {
		for _, secure := range []bool{false, true} {
			if err := benchIdle(ctx, b, b.idle, secure); err != nil {
				return err
			}
		}
	}
	if b.storm > 0 {
		return benchStorm(ctx, b, b.storm)
	}
	return nil
}

// most bounds a number of connections by what the machine lets one server have, and says so.
func (b *benchRun) most(want int) int {
	n := connectionsWithin(openFiles(), want)
	if n < want {
		fmt.Fprintf(b.progress, "  %d connections instead of %d: a process may have %d files open (ulimit -Hn), and the server keeps %d for the rest\n",
			n, want, openFiles(), filesBesides)
	}
	return n
}

// A stormServer is a server that can be killed and started again at the same addresses.
type stormServer struct {
	*benchServer
	config, http, mqtt string // as startBenchServer takes them
	devices            string // address that devices connect to
	roots              string // PEM of what they trust; "": no TLS
}

// serveCrowd starts a server for many connections.
func (b *benchRun) serveCrowd(ctx context.Context, name string, n int, secure bool) (*stormServer, error) {
	s := &stormServer{}
	tlsAddr, err := freeLoopback()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // a data directory
		return nil, err
	}
	var cert, key string
	if secure {
		if cert, key, s.roots, err = benchCertificate(dir); err != nil {
			return nil, err
		}
	}
	s.config, s.http, s.mqtt, err = b.benchConfig(name, func(c *Config) {
		c.MQTT.MaxConnections = n + 100
		if secure {
			c.MQTT.TLS.Listen, c.MQTT.TLS.Cert, c.MQTT.TLS.Key = tlsAddr, cert, key
		}
		c.SQL.Timeout = conf.Duration(5 * time.Minute)
	})
	if err != nil {
		return nil, err
	}
	if s.devices = s.mqtt; secure {
		s.devices = tlsAddr
	}
	return s, s.start(ctx)
}

func (s *stormServer) start(ctx context.Context) error {
	var err error
	s.benchServer, _, err = startBenchServer(ctx, s.config, s.http, s.mqtt)
	return err
}

// benchIdle measures what the server's memory grows by with idle connections.
func benchIdle(ctx context.Context, b *benchRun, want int, secure bool) error {
	n, name := b.most(want), "TCP"
	if secure {
		name = "TLS"
	}
	s, err := b.serveCrowd(ctx, "idle-"+name, n, secure)
	if err != nil {
		return err
	}
	defer func() { s.kill() }()
	s.collectGarbage(ctx)
	before := s.memory("VmRSS:")
	c, err := gather(ctx, devicesConfig{Addr: s.devices, Roots: s.roots, Count: n})
	if err != nil {
		return err
	}
	defer c.leave()
	s.collectGarbage(ctx)
	s.collectGarbage(ctx) // stacks shrink in one cycle and are given back in the next
	b.add(fmt.Sprintf("memory per idle %s connection, %d of them", name, n), (s.memory("VmRSS:")-before)/float64(n)/1024, "KiB", "")
	b.add(name+" connections/s while connecting", float64(n)/c.took, "/s", "")
	c.leave()
	return s.stop()
}

// stormBacklog is how many messages each device has for the server when it is back, and stormMost how long all of them may take.
const (
	stormBacklog = 20
	stormMost    = 5 * time.Minute
)

// benchStorm kills a server that many devices are connected to, starts it again, and measures how they come back and send what they
// have gathered. It fails if anything that was acknowledged is not in SQL exactly once.
func benchStorm(ctx context.Context, b *benchRun, want int) error {
	n := b.most(want)
	s, err := b.serveCrowd(ctx, "storm", n, true)
	if err != nil {
		return err
	}
	defer func() { s.kill() }()
	c, err := gather(ctx, devicesConfig{
		Addr: s.devices, Roots: s.roots, Count: n, Backlog: stormBacklog, Base: dayStart(time.Now()).Add(time.Hour).UnixMilli(),
	})
	if err != nil {
		return err
	}
	defer c.leave()
	s.kill()
	began := time.Now()
	if err := s.start(ctx); err != nil {
		return err
	}
	reports, err := c.storm()
	if err != nil {
		return err
	}
	var back, done []time.Duration
	tries := 0
	first := slices.Min(reports.Back)
	for i := range reports.Back {
		back = append(back, time.Duration(reports.Back[i]-first))
		done = append(done, time.Duration(reports.Done[i]-first))
		tries += reports.Tries[i]
	}
	b.add(fmt.Sprintf("storm of %d devices over TLS: all back after", n), slices.Max(back).Seconds(), "s", "")
	b.add("first back, after the server's start", time.Unix(0, first).Sub(began).Seconds(), "s", "")
	b.add("back p50", percentile(back, 0.5).Seconds(), "s", "")
	b.add("back p99", percentile(back, 0.99).Seconds(), "s", "")
	b.add(fmt.Sprintf("%d QoS 1 messages each: all acknowledged after", stormBacklog), slices.Max(done).Seconds(), "s", "")
	b.add("acknowledged p50", percentile(done, 0.5).Seconds(), "s", "")
	b.add("acknowledged p99", percentile(done, 0.99).Seconds(), "s", "")
	b.add("attempts a device, while the server was down included", float64(tries)/float64(n), "", "")
	b.add(fmt.Sprintf("server CPU a device: its start, handshake, session, %d messages", stormBacklog), s.cpu().Seconds()*1000/float64(n), "ms", "")
	b.add("server peak memory in the storm", s.peakMemory()/(1<<20), "MiB", "1,024")
	if err := s.caughtUp(ctx, false); err != nil {
		return err
	}
	rows, _, err := s.count(ctx, "SELECT count(*) FROM readings WHERE vehicle_id LIKE 'S%'")
	if err != nil {
		return err
	}
	whole, _, err := s.count(ctx, fmt.Sprintf(
		"SELECT count(*) FROM (SELECT vehicle_id FROM readings WHERE vehicle_id LIKE 'S%%' GROUP BY 1 HAVING count(*) = %[1]d AND count(DISTINCT event_time) = %[1]d)", stormBacklog))
	if err != nil {
		return err
	}
	if int(rows) != n*stormBacklog || int(whole) != n {
		return fmt.Errorf("%d messages of %d devices were acknowledged, SQL has %d readings, and %d devices are complete", n*stormBacklog, n, int(rows), int(whole))
	}
	c.leave()
	return s.stop()
}

// collectGarbage makes the server collect garbage and give memory back, as it does by itself in time.
func (s *benchServer) collectGarbage(ctx context.Context) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.http+"/debug/pprof/heap?gc=1", nil)
	if err != nil {
		return
	}
	if resp, err := http.DefaultClient.Do(req); err == nil {
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
}

// devicesOfProcess is how many devices a process has at most.
const devicesOfProcess = 10_000

// A crowd is devices in processes of their own.
type crowd struct {
	processes []*devicesProcess
	took      float64 // seconds until all were connected
	left      bool
}

type devicesProcess struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *json.Decoder
	stderr bytes.Buffer
}

// gather starts the devices of cfg and waits until all are connected. The caller calls leave.
func gather(ctx context.Context, cfg devicesConfig) (*crowd, error) {
	c := &crowd{}
	all := cfg.Count
	for cfg.First < all {
		cfg.Count = min(all-cfg.First, devicesOfProcess, connectionsWithin(openFiles(), devicesOfProcess))
		p, err := startDevices(ctx, cfg)
		if err != nil {
			c.leave()
			return nil, err
		}
		c.processes = append(c.processes, p)
		cfg.First += cfg.Count
	}
	for _, p := range c.processes {
		r, err := p.report()
		if err != nil {
			c.leave()
			return nil, err
		}
		c.took = max(c.took, r.Took)
	}
	return c, nil
}

func startDevices(ctx context.Context, cfg devicesConfig) (*devicesProcess, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &devicesProcess{cmd: exec.CommandContext(ctx, exe)}
	p.cmd.Stderr = &p.stderr
	p.cmd.Env = append(os.Environ(), "MILEPOST_MAIN=1", benchDevicesVariable+"=1") // the first for the test binary
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = json.NewDecoder(out)
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	if err := json.NewEncoder(p.in).Encode(cfg); err != nil {
		p.leave()
		return nil, err
	}
	return p, nil
}

// report waits for the next report.
func (p *devicesProcess) report() (devicesReport, error) {
	var r devicesReport
	if err := p.out.Decode(&r); err != nil {
		return r, fmt.Errorf("a process of devices ended: %w\n%s", err, p.stderr.String())
	}
	if r.Error != "" {
		return r, fmt.Errorf("devices: %s", r.Error)
	}
	return r, nil
}

func (p *devicesProcess) leave() {
	_ = p.in.Close()
	_ = p.cmd.Process.Kill() // what it holds are connections
	_ = p.cmd.Wait()
}

// storm waits until every device is back and its backlog acknowledged.
func (c *crowd) storm() (all devicesReport, err error) {
	over := time.AfterFunc(stormMost, func() {
		for _, p := range c.processes {
			_, _ = io.WriteString(p.in, stormOver+"\n")
		}
	})
	defer over.Stop()
	for _, p := range c.processes {
		r, e := p.report()
		err = errors.Join(err, e)
		all.Back, all.Done, all.Tries = append(all.Back, r.Back...), append(all.Done, r.Done...), append(all.Tries, r.Tries...)
	}
	return all, err
}

// leave ends the devices.
func (c *crowd) leave() {
	if c.left {
		return
	}
	c.left = true
	for _, p := range c.processes {
		p.leave()
	}
}

// benchSelfSigned makes a key, and a certificate for it after the template, for a day.
func benchSelfSigned(template *x509.Certificate) (der []byte, key *ecdsa.PrivateKey, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(now.UnixNano()), now.Add(-time.Hour), now.Add(24*time.Hour)
	der, err = x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return der, key, err
}

// benchCertificate makes a certificate for localhost.
func benchCertificate(dir string) (cert, key, roots string, err error) {
	der, private, err := benchSelfSigned(&x509.Certificate{DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true})
	if err != nil {
		return "", "", "", err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return "", "", "", err
	}
	cert, key = filepath.Join(dir, "bench.crt"), filepath.Join(dir, "bench.key")
	roots = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return cert, key, roots, errors.Join(
		os.WriteFile(cert, []byte(roots), 0o600),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
}
