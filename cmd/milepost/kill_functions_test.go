package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/stream/seglog"
)

// killedHandler is the function of TestKillFunctions. It writes what it was given to a file that outlives it, before it answers; now and
// then it fails, takes its time, or ends its own process.
const killedHandler = `
import base64, json, os, random, time

pids = os.open("../pids", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(pids, (str(os.getpid()) + "\n").encode())
done = os.open("../done", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def handler(event, context):
    out, seen = [], []
    for r in event["Records"]:
        data = json.loads(base64.b64decode(r["kinesis"]["data"]))
        seen.append(r["eventID"])
        out.append({"key": r["kinesis"]["partitionKey"], "json": {"vehicle": data["vehicle_id"], "id": r["eventID"]}})
    luck = random.random()
    if luck < 0.03:
        os._exit(3)
    if luck < 0.08:
        raise RuntimeError("no luck")
    if luck < 0.3:
        time.sleep(random.random() / 20)
    # One write of one line is whole or not there, whoever is killed.
    os.write(done, (json.dumps({"request": context.aws_request_id, "records": seen}) + "\n").encode())
    return {"output": out}
`

// TestKillFunctions kills the server at random moments while a Python function runs over what devices post. In the end the function
// has seen each record; under one request ID it was given the same records always; the output stream has each record's output once, in the
// order of its key; and no process of the function outlives its server.
func TestKillFunctions(t *testing.T) {
	if testing.Short() {
		t.Skip("kills processes for a while: run without -short, or 'make crash'")
	}
	if _, err := exec.LookPath("python3"); err != nil {
		missing(t, "python3")
	}
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d, %d rounds", seed, *rounds)
	dir := t.TempDir()
	code := filepath.Join(dir, "code")
	if err := os.Mkdir(code, 0o700); err != nil {
		t.Fatal(err)
	}
	httpAddr := freeAddr(t)
	config := filepath.Join(dir, "milepost.yaml")
	for name, text := range map[string]string{filepath.Join(code, "app.py"): killedHandler, config: fmt.Sprintf(`
data: %s
http: {listen: %s}
mqtt: {listen: ""}
kinesis: {listen: ""}
stream: {segment: 1MiB, reserve: 0, shards: 2}
limits: {rate_per_device: 0}
sql: {concurrent: 1}
streams: {seen: {shards: 2}}
functions:
  f:
    runtime: python3
    handler: app.handler
    code: code
    on: [{stream: readings, output: seen, batch_size: 20, parallelization_factor: 2}]
`, filepath.Join(dir, "data"), httpAddr)} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	base := time.Now().Add(-10 * time.Minute).UnixMilli()
	devices := make([]*truck, 8)
	for i := range devices {
		devices[i] = &truck{id: fmt.Sprintf("kill-%03d", i)}
	}
	for range *rounds {
		p := startServer(t, config, httpAddr, "")
		kill := time.After(time.Duration(150+rng.IntN(900)) * time.Millisecond) // the random moment; Python starts in the meantime
		for alive := true; alive; {
			for _, d := range devices {
				if err := d.postOnce(t.Context(), p.http, base, 1+rng.IntN(3)); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case <-kill:
				alive = false
			case <-time.After(time.Duration(rng.IntN(20)) * time.Millisecond):
			}
		}
		p.kill()
		noOrphans(t, dir)
	}
	p := startServer(t, config, httpAddr, "")
	for _, d := range devices {
		if err := d.postOnce(t.Context(), p.http, base, 3); err != nil {
			t.Fatal(err)
		}
	}
	total := 0
	for _, d := range devices {
		total += d.acked
	}
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) { // a process: there is nothing to wait on
		if n := len(written(t, dir)); n >= total {
			break
		} else if time.Now().After(end) {
			t.Errorf("the function has seen %d records after a minute, want %d", n, total)
			break
		}
	}
	p.stop()
	noOrphans(t, dir)

	store, err := seglog.Open(seglog.Config{Dir: filepath.Join(dir, "data", "log")})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	of := func(name string) []stream.Record {
		log, err := store.Stream(name)
		if err != nil {
			t.Fatal(err)
		}
		return readLog(t, log)
	}
	want, got := map[string]int{}, map[string]int{}
	for _, r := range of(readingsStream) {
		want[r.Key]++
	}
	last := map[string]string{}
	seen := written(t, dir)
	for _, r := range of("seen") {
		var x struct{ Vehicle, ID string }
		if err := json.Unmarshal(r.Data, &x); err != nil {
			t.Fatal(err)
		}
		if x.ID <= last[r.Key] { // a shard and a sequence number, both of a fixed length
			t.Errorf("output of %s after that of %s", x.ID, last[r.Key])
		}
		if !seen[x.ID] {
			t.Errorf("output of %s, which the function has not written", x.ID)
		}
		last[r.Key] = x.ID
		got[x.Vehicle]++
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("output by vehicle (-want +got):\n%s", diff)
	}
	t.Logf("%d records", total)
}

// written returns the records that the function has written, and checks that a request is the same always.
func written(t *testing.T, dir string) map[string]bool {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "done"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	requests, records := map[string]string{}, map[string]bool{}
	by := map[string]string{} // record → the request that it was done under
	for line := range bytes.Lines(b) {
		var x struct {
			Request string
			Records []string
		}
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // it is being written
		}
		if err := json.Unmarshal(line, &x); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		all := strings.Join(x.Records, " ")
		if was, ok := requests[x.Request]; ok && was != all {
			t.Errorf("request %s was given %s and then %s", x.Request, was, all)
		}
		requests[x.Request] = all
		for _, id := range x.Records {
			if was, ok := by[id]; ok && was != x.Request {
				t.Errorf("record %s was done under request %s and again under %s", id, was, x.Request)
			}
			by[id] = x.Request
			records[id] = true
		}
	}
	return records
}

// noOrphans waits until no process that the function ever ran in is left, and forgets them.
func noOrphans(t *testing.T, dir string) {
	t.Helper()
	name := filepath.Join(dir, "pids")
	b, err := os.ReadFile(name)
	if os.IsNotExist(err) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	for pid := range strings.FieldsSeq(string(b)) {
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			status, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
			cwd, _ := os.Readlink(filepath.Join("/proc", pid, "cwd")) // of another process by now, perhaps
			if err != nil || bytes.Contains(status, []byte(") Z ")) || cwd != filepath.Join(dir, "code") {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("process %s of the function outlives its server", pid)
			}
		}
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}
