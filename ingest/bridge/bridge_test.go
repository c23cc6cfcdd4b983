package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/internal/memlog"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// startMosquitto starts a broker that is not ours, on a port of its own.
func startMosquitto(t *testing.T) string {
	t.Helper()
	bin, err := exec.LookPath("mosquitto")
	if err != nil {
		bin = "/usr/sbin/mosquitto" // Debian's place, which is not in everybody's path
	}
	if _, err := os.Stat(bin); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("no mosquitto, which CI has to install before")
		}
		t.Skip("no mosquitto")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	_ = l.Close()
	cmd := exec.CommandContext(t.Context(), bin, "-p", port)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 100 {
		if c, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			_ = c.Close()
			return "127.0.0.1:" + port
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("mosquitto does not answer")
	return ""
}

func publisher(t *testing.T, addr string) *paho.Client {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c := paho.NewClient(paho.ClientConfig{Conn: conn})
	if _, err := c.Connect(t.Context(), &paho.Connect{ClientID: "devices", CleanStart: true, KeepAlive: 30}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Disconnect(&paho.Disconnect{}) })
	return c
}

func byTopic(topic string, payload []byte) (Message, bool, error) {
	parts := strings.Split(topic, "/")
	if len(parts) != 3 || parts[2] != "telemetry" {
		return Message{}, false, nil
	}
	if string(payload) == "unreadable" {
		return Message{}, true, errors.New("not in this format")
	}
	return Message{Vehicle: parts[1], Data: payload}, true, nil
}

// What a broker has is acknowledged to it when it is stored: while the log is full nothing is lost, and when it takes data again
// everything is there, in each vehicle's order; what is no reading is a dead letter.
func TestBridge(t *testing.T) {
	addr := startMosquitto(t)
	var log, dead memlog.Log
	admit, err := ingest.New(ingest.Config{Log: &log, DeadLetters: &dead, Catalog: telemetry.NewCatalog()})
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(Config{Name: "depot", URL: "mqtt://" + addr, Topics: []string{"fleet/#"}, QoS: 1, InFlight: 20, Map: byTopic, Admit: admit})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	pub := publisher(t, addr)
	send := func(topic, payload string) {
		t.Helper()
		if _, err := pub.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(payload)}); err != nil {
			t.Fatal(err)
		}
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: it did not come to that; %d stored, %d dead", what, len(log.Records()), len(dead.Records()))
			}
		}
	}
	until("first reading", func() bool {
		send("fleet/probe/telemetry", `{"speed":1}`)
		return len(log.Records()) > 0
	})
	log.Fail(stream.ErrFull, 0)
	const n = 200
	for i := range n {
		send(fmt.Sprintf("fleet/truck-%d/telemetry", i%5), fmt.Sprintf(`{"ts":%d,"speed":%d}`, 1790000000000+i, i))
	}
	send("fleet/truck-1/telemetry", "unreadable")
	send("fleet/truck-1/notes", "hello")
	time.Sleep(200 * time.Millisecond) // it tries, and is refused
	log.Fail(nil, 0)
	until("everything", func() bool {
		seen := map[string]bool{}
		for _, r := range log.Records() {
			seen[r.Key+string(r.Data)] = true
		}
		return len(seen) == n+1 && len(dead.Records()) >= 2
	})
	last := map[string]string{}
	for _, r := range log.Records() {
		if r.Key == "probe" {
			continue
		}
		if was := last[r.Key]; string(r.Data) < was {
			t.Fatalf("%s came after %s", r.Data, was)
		}
		last[r.Key] = string(r.Data)
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestNew(t *testing.T) {
	admit, err := ingest.New(ingest.Config{Log: &memlog.Log{}, DeadLetters: &memlog.Log{}, Catalog: telemetry.NewCatalog()})
	if err != nil {
		t.Fatal(err)
	}
	good := Config{Name: "x", URL: "mqtt://h:1883", Topics: []string{"a"}, Map: byTopic, Admit: admit}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"write mqtt://":      func(c *Config) { c.URL = "h:1883" },
		"no topics":          func(c *Config) { c.Topics = nil },
		"use 0 or 1":         func(c *Config) { c.QoS = 2 },
		"use a word without": func(c *Config) { c.Group = "a/b" },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
