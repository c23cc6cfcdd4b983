package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// An mqttLoad is how the generator publishes.
type mqttLoad struct {
	name   string // of the clients' ids: five letters with the number
	qos    int
	write  int // packets a write
	window int // unacknowledged messages of a connection
	goal   string
}

const mqttConnections = 200

// loads have windows as devices have that send a backlog: AWS IoT Core allows 100 in flight.
func mqttLoads() []mqttLoad {
	return []mqttLoad{
		{"A", 1, 1, 100, "200,000; aim 300,000"},
		{"B", 1, 20, 200, "400,000; aim 700,000"},
		{"C", 0, 1, 0, ""},
	}
}

func (l mqttLoad) String() string {
	if l.write == 1 {
		return fmt.Sprintf("QoS %d, one packet a write", l.qos)
	}
	return fmt.Sprintf("QoS %d, %d packets a write", l.qos, l.write)
}

func benchMQTT(ctx context.Context, b *benchRun) error {
	if b.idle > 0 || b.storm > 0 {
		return benchCrowds(ctx, b)
	}
	s, err := b.serve(ctx, "mqtt")
	if err != nil {
		return err
	}
	defer s.kill()
	for _, load := range mqttLoads() {
		cpu0, own0, began := s.cpu(), ownCPU(), time.Now()
		n, took, err := b.publishMQTT(ctx, s.mqtt, load)
		if err != nil {
			return err
		}
		elapsed, own := time.Since(began), ownCPU()-own0
		if err := s.caughtUp(ctx, false); err != nil {
			return err
		}
		// What counts is what arrived, which nothing but SQL can tell of QoS 0.
		rows, _, err := s.count(ctx, "SELECT count(*) FROM readings WHERE vehicle_id LIKE '"+load.name+"%'")
		if err != nil {
			return err
		}
		if load.qos == 0 {
			b.add("sent/s: "+load.String(), float64(n)/elapsed.Seconds(), "/s", "")
			n, elapsed = int(rows), time.Since(began)
		} else if int(rows) < n {
			return fmt.Errorf("%d messages were acknowledged, SQL counts %d readings", n, int(rows))
		}
		b.add("messages/s: "+load.String(), float64(n)/elapsed.Seconds(), "/s", load.goal)
		b.add("messages/s to state and SQL", float64(n)/time.Since(began).Seconds(), "/s", "")
		b.add("server CPU per message, whole pipeline", float64((s.cpu()-cpu0).Nanoseconds())/float64(max(n, 1))/1000, "µs", "")
		b.add("generator CPU per message", float64(own.Nanoseconds())/float64(max(n, 1))/1000, "µs", "")
		if load.qos == 1 {
			b.add("acknowledgement p50", ms(percentile(took, 0.5)), "ms", "")
			b.add("acknowledgement p99", ms(percentile(took, 0.99)), "ms", "")
		}
	}
	b.add("server peak memory", s.peakMemory()/(1<<20), "MiB", "1,024")
	if err := s.stop(); err != nil {
		return err
	}
	return benchMosquitto(ctx, b)
}

// publishMQTT publishes over 200 connections and returns how many messages were acknowledged, or with QoS 0 sent.
func (b *benchRun) publishMQTT(ctx context.Context, addr string, load mqttLoad) (int, []time.Duration, error) {
	var total atomic.Int64
	var mu sync.Mutex
	var all []time.Duration
	var first error
	var wg sync.WaitGroup
	end := time.Now().Add(b.seconds)
	for c := range mqttConnections {
		wg.Go(func() {
			id := fmt.Sprintf("%s%05d", load.name, c)
			n, took, err := publishLoad(ctx, addr, id, load, end)
			total.Add(int64(n))
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			if err != nil && first == nil {
				first = fmt.Errorf("%s: %w", id, err)
			}
		})
	}
	wg.Wait()
	return int(total.Load()), all, first
}

func publishLoad(ctx context.Context, addr, id string, load mqttLoad, end time.Time) (int, []time.Duration, error) {
	l, err := dialMQTT(ctx, addr, id)
	if err != nil {
		return 0, nil, err
	}
	defer l.close()
	off := benchOffsets()
	payload := []byte(benchLine[:len(benchLine)-1])
	copy(payload[off.vehicle-1:], id)
	start := dayStart(time.Now())
	copy(payload[off.time:], start.Format("2006-01-02T15:04:05.000"))
	topic := "fleet/" + id + "/telemetry"
	// The packets of a write, whose times and identifiers are changed in place.
	var packets []byte
	packet := uint16(load.qos)
	for range load.write {
		packets = appendPublish(packets, topic, packet, payload)
	}
	size := len(packets) / load.write
	timeAt := bytes.Index(packets, payload) + off.time
	idAt := bytes.Index(packets, payload) - 2
	at := start.UnixMilli()
	var took []time.Duration
	var marked time.Time // when the message numbered mark was sent
	sent, acked, mark := 0, 0, 0
	for n := 0; ctx.Err() == nil; n++ {
		if n&15 == 0 && !time.Now().Before(end) {
			break
		}
		for load.qos == 1 && sent+load.write-acked > load.window {
			k, err := l.pubacks()
			if acked += k; err != nil {
				return acked, took, err
			}
			if mark > 0 && acked >= mark {
				took = append(took, time.Since(marked))
				mark = 0
			}
		}
		for i := range load.write {
			at += 100
			p := packets[i*size:]
			putTime(p[timeAt:], at)
			if load.qos == 1 {
				sent := sent%60000 + 1
				p[idAt], p[idAt+1] = byte(sent>>8), byte(sent)
			}
			sent++
		}
		if mark == 0 && load.qos == 1 {
			mark, marked = sent, time.Now()
		}
		if _, err := l.conn.Write(packets); err != nil {
			return acked, took, err
		}
	}
	for load.qos == 1 && acked < sent {
		k, err := l.pubacks()
		if acked += k; err != nil {
			return acked, took, err
		}
	}
	if load.qos == 0 {
		return sent, nil, nil
	}
	return acked, took, nil
}

// benchMosquitto puts the same load on mosquitto, if it is installed. It writes its state every 30 minutes and acknowledges before:
// nothing of what it acknowledges here is on disk, and nobody subscribes, so all it does is read and answer.
func benchMosquitto(ctx context.Context, b *benchRun) error {
	exe, err := exec.LookPath("mosquitto")
	if err != nil {
		exe = "/usr/sbin/mosquitto"
		if _, err := os.Stat(exe); err != nil {
			fmt.Fprintln(b.progress, "  mosquitto is not installed: not measured")
			return nil
		}
	}
	addr, err := freeLoopback()
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "mosquitto")
	if err := os.MkdirAll(dir, 0o777); err != nil { //nolint:gosec // mosquitto gives up being root
		return err
	}
	conf := fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location %s/\nmax_inflight_messages 0\nmax_queued_messages 0\nlog_type none\n", port, dir)
	path := filepath.Join(dir, "mosquitto.conf")
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil { //nolint:gosec // no secret
		return err
	}
	s := &benchServer{cmd: exec.CommandContext(ctx, exe, "-c", path), ended: make(chan struct{})}
	s.cmd.Stderr = &s.stderr
	if err := s.cmd.Start(); err != nil {
		return err
	}
	go func() { // kill waits for it
		s.err = s.cmd.Wait()
		close(s.ended)
	}()
	defer s.kill()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			conn.Close() //nolint:errcheck,gosec // nothing was sent
			break
		}
		select {
		case <-s.ended:
			return fmt.Errorf("mosquitto: %w", s.failure())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	for _, load := range mqttLoads() {
		if load.qos == 0 {
			continue // what arrives cannot be told
		}
		cpu0, began := s.cpu(), time.Now()
		n, took, err := b.publishMQTT(ctx, addr, load)
		if err != nil {
			return fmt.Errorf("mosquitto: %w", err)
		}
		b.add("mosquitto (not durable) messages/s: "+load.String(), float64(n)/time.Since(began).Seconds(), "/s", "")
		b.add("mosquitto CPU per message", float64((s.cpu()-cpu0).Nanoseconds())/float64(max(n, 1))/1000, "µs", "")
		b.add("mosquitto acknowledgement p99", ms(percentile(took, 0.99)), "ms", "")
	}
	return nil
}
