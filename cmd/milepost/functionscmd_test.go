package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process/lambda"
	"github.com/milepost/milepost/stream"
)

// TestFunctionsCommand operates a function in a process, this program as the benchmark's bootstrap, from the command line. The function
// fails on what is no reading.
func TestFunctionsCommand(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := loadConfig("")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Data, cfg.HTTP.Listen, cfg.MQTT.Listen, cfg.Kinesis.Listen = t.TempDir(), "127.0.0.1:0", "", ""
	cfg.Streams = map[string]UserStream{"trips": {Shards: 1, Retention: cfg.Stream.Retention}}
	cfg.Functions = lambda.Functions{
		"decode": {
			Command: []string{self}, Environment: map[string]string{benchHandlerVariable: benchHandlerScan, "MILEPOST_MAIN": "1"},
			Timeout: 10 * time.Second, InitTimeout: 20 * time.Second, IdleTimeout: time.Minute, Memory: 128, Concurrency: 1,
			On: []lambda.MappingConfig{{Stream: "trips", Enabled: true, BatchSize: 10, Parallel: 1, Start: "TRIM_HORIZON", MaxRetries: 0}},
		},
		"unused": {URL: "http://127.0.0.1:1/", Timeout: time.Second, Memory: 128, Concurrency: 1},
	}
	ctx := t.Context()
	s, err := openServer(ctx, cfg, vfs.Disk, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.drain(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	addr := "http://" + s.listener.Addr().String()
	command := func(code int, stdin string, args ...string) (stdout, stderr string) {
		t.Helper()
		var out, problems bytes.Buffer
		if got := run(ctx, &env{strings.NewReader(stdin), &out, &problems}, append([]string{"functions"}, append(args, "--addr", addr)...)); got != code {
			t.Fatalf("functions %q: code %d, want %d\n%s%s", args, got, code, &out, &problems)
		}
		return out.String(), problems.String()
	}
	has := func(text string, parts ...string) {
		t.Helper()
		for _, p := range parts {
			if !strings.Contains(text, p) {
				t.Errorf("no %q in\n%s", p, text)
			}
		}
	}
	// wait waits until the line of a function has fields.
	wait := func(what string, ok func(m *lambda.MappingStatus) bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			out, _ := command(exitOK, "", "list", "--json")
			var list struct{ Functions []lambda.FunctionStatus }
			if err := json.Unmarshal([]byte(out), &list); err != nil {
				t.Fatal(err)
			}
			if ok(&list.Functions[0].Mappings[0]) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("waited in vain: %s\n%s", what, out)
			}
		}
	}
	put := func(data ...string) {
		t.Helper()
		log, err := s.logs.Stream("trips")
		if err != nil {
			t.Fatal(err)
		}
		recs := make([]stream.Record, len(data))
		for i, d := range data {
			recs[i] = stream.Record{Key: "k", Data: []byte(d)}
		}
		if err := log.Append(ctx, recs); err != nil {
			t.Fatal(err)
		}
	}
	reading := fmt.Sprintf(`{"vehicle_id":"t1","ts":%d,"speed":60}`, time.Now().UnixMilli())

	put(reading, reading)
	wait("two records", func(m *lambda.MappingStatus) bool { return m.Total.Records == 2 && m.Lag == 0 })
	out, _ := command(exitOK, "")
	lines := strings.Split(out, "\n")
	if d := cmp.Diff(strings.Fields("FUNCTION STREAM STATE LAG AGE INVOKED ERRORS GIVEN UP LAST PROBLEM"), strings.Fields(lines[0])); d != "" {
		t.Error(d)
	}
	if f := strings.Fields(lines[1]); len(f) != 10 || f[0] != "decode" || f[1] != "trips" || f[2] != "Enabled" || f[3] != "0" || f[6] != "0" || f[9] != "ago" {
		t.Errorf("line %q", lines[1])
	}
	has(lines[2], "unused", "on no stream", "never")
	if out, _ := command(exitOK, "", "list", "unused"); strings.Contains(out, "decode") {
		t.Errorf("list unused: %s", out)
	}
	_, problems := command(exitFailed, "", "list", "nobody")
	has(problems, "there is no function nobody")

	// A pause keeps the place, and what comes meanwhile waits.
	out, _ = command(exitOK, "", "pause", "decode", "--on", "trips")
	has(out, "decode: 1 mapping paused")
	wait("the pause", func(m *lambda.MappingStatus) bool { return m.State == "Disabled" })
	put("no reading")
	out, _ = command(exitOK, "", "resume", "decode")
	has(out, "decode: 1 mapping resumed")
	wait("a dead letter", func(m *lambda.MappingStatus) bool { return m.Total.DeadLetters == 1 && m.Total.Records == 0 })

	// The dead letter can be invoked again, and fails again.
	shards, err := s.dead.Shards(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) { // it is on its way to its stream
		tip, err := s.dead.Tip(ctx, shards[0].ID)
		if err != nil || time.Now().After(end) {
			t.Fatalf("no dead letter: %v", err)
		}
		if tip.Pos != "" {
			break
		}
	}
	out, problems = command(exitFailed, "", "redrive", "decode")
	has(problems, "not everything succeeded")
	has(out, "decode: 1 document read, 0 records processed, 1 failed again")

	// Reset asks, and everything is processed again.
	_, problems = command(exitFailed, "decod\n", "reset", "decode", "--to", "oldest")
	has(problems, "the oldest record that is kept", "not confirmed")
	wait("nothing happens", func(m *lambda.MappingStatus) bool { return m.Total.Records == 0 })
	out, _ = command(exitOK, "decode\n", "reset", "decode", "--to", "oldest")
	has(out, "decode: 1 mapping moved to the oldest record that is kept")
	wait("everything again", func(m *lambda.MappingStatus) bool {
		return m.Total.DeadLetters+m.Total.Records == 3 && m.Lag == 0
	})
	out, _ = command(exitOK, "", "reset", "decode", "--to", "latest", "--yes")
	has(out, "moved to the newest")

	// By hand.
	event := filepath.Join(t.TempDir(), "event.json")
	doc := `{"Records":[{"kinesis":{"data":"` + base64.StdEncoding.EncodeToString([]byte(reading)) + `"}}]}`
	if err := os.WriteFile(event, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	out, problems = command(exitOK, "", "invoke", "decode", event, "--logs")
	if out != `{"batchItemFailures":[]}`+"\n" {
		t.Errorf("invoke: %s", out)
	}
	has(problems, "START RequestId: ", "REPORT RequestId: ")
	if out, _ := command(exitOK, doc, "invoke", "decode", "-"); out != `{"batchItemFailures":[]}`+"\n" {
		t.Errorf("invoke -: %s", out)
	}
	out, problems = command(exitFailed, "", "invoke", "decode")
	has(out, `"errorMessage":"the event has no records"`)
	has(problems, "the function failed (Unhandled)")
	_, problems = command(exitFailed, "", "invoke", "unused")
	has(problems, "unreachable")

	out, _ = command(exitOK, "", "logs", "decode", "-n", "7")
	if n := strings.Count(out, "\n"); n != 7 {
		t.Errorf("logs -n 7: %d lines\n%s", n, out)
	}
	has(out, "the event has no records", "REPORT RequestId: ")
	following, stop := context.WithCancel(ctx)
	followed := &signalWriter{want: "REPORT", seen: make(chan struct{})}
	ended := make(chan int, 1)
	go func() {
		ended <- run(following, &env{strings.NewReader(""), followed, &bytes.Buffer{}}, []string{"functions", "logs", "decode", "-f", "-n", "1", "--addr", addr})
	}()
	<-followed.seen
	stop()
	if code := <-ended; code != exitOK {
		t.Errorf("logs -f ended with %d", code)
	}
}

// signalWriter tells when something has been written.
type signalWriter struct {
	want string
	seen chan struct{}
	done bool
}

func (w *signalWriter) Write(p []byte) (int, error) {
	if !w.done && bytes.Contains(p, []byte(w.want)) {
		w.done = true
		close(w.seen)
	}
	return len(p), nil
}

func TestReadPlace(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 500, time.UTC)
	for _, c := range []struct {
		in, kind string
		at       time.Time
	}{
		{"oldest", "TRIM_HORIZON", time.Time{}},
		{"LATEST", "LATEST", time.Time{}},
		{"90m", "AT_TIMESTAMP", time.Date(2026, 11, 21, 10, 30, 0, 0, time.UTC)},
		{"2026-01-02T15:04:05+01:00", "AT_TIMESTAMP", time.Date(2026, 1, 2, 14, 4, 5, 0, time.UTC)},
		{"-1h", "", time.Time{}},
		{"2026-01-02", "", time.Time{}},
	} {
		kind, at, err := readPlace(c.in, now)
		if kind != c.kind || !at.Equal(c.at) || (err != nil) != (c.kind == "") {
			t.Errorf("%s: %s %s %v", c.in, kind, at, err)
		}
	}
}
