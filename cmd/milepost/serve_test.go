package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/milepost/milepost/ingest"
)

// writeConfig writes a configuration for a server of a test.
func writeConfig(t *testing.T, data, httpAddr, mqttAddr string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "milepost.yaml")
	yaml := fmt.Sprintf("data: %s\nhttp:\n  listen: %s\nmqtt:\n  listen: %s\nkinesis:\n  listen: \"\"\nstream:\n  reserve: 0\nlimits:\n  rate_per_device: 0\n", data, httpAddr, mqttAddr)
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestServeGoesOn stops a server as a service manager does and starts it again: it ends with code 0 after draining, and the next one
// knows everything, from its state at once and from Parquet, and goes on from there. While one runs, no other gets its data.
func TestServeGoesOn(t *testing.T) {
	requireSQL(t)
	data := filepath.Join(t.TempDir(), "data")
	httpAddr, mqttAddr := freeAddr(t), freeAddr(t)
	config := writeConfig(t, data, httpAddr, mqttAddr)
	base := time.Now().Add(-10 * time.Minute).UnixMilli()
	d := &truck{id: "goes-on"}

	p := startServer(t, config, httpAddr, mqttAddr)
	post := func(n int) {
		t.Helper()
		if err := d.postOnce(t.Context(), p.http, base, n); err != nil {
			t.Fatal(err)
		}
	}
	post(100) // it speeds from 20 to 80, so there is an alert to keep

	t.Run("a second process on the same data is refused", func(t *testing.T) {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe, "serve", "--config", writeConfig(t, data, freeAddr(t), freeAddr(t)))
		cmd.Env = append(os.Environ(), "MILEPOST_MAIN=1")
		out, err := cmd.CombinedOutput()
		exit, ok := errors.AsType[*exec.ExitError](err)
		want := filepath.Join(data, "log") + " is in use by another process: stop that one, or choose another directory"
		if !ok || exit.ExitCode() != exitFailed || !strings.Contains(string(out), want) {
			t.Errorf("second server: %v\n%s\nwant exit code %d and %q", err, out, exitFailed, want)
		}
	})

	check := func(when string) {
		t.Helper()
		waitCaughtUp(t, p.http)
		want := fmt.Sprint(d.acked)
		for _, sql := range []string{
			"SELECT count(*) FROM readings WHERE vehicle_id = 'goes-on'",
			"SELECT readings FROM vehicles",
			"SELECT sum(readings)::BIGINT FROM daily_kpis",
		} {
			if got := fmt.Sprint(p.rows(sql)); got != "[["+want+"]]" {
				t.Errorf("%s: %s: %s, want %s", when, sql, got, want)
			}
		}
		if got := fmt.Sprint(p.rows("SELECT rule, state FROM alerts")); got != "[[overspeed resolved]]" {
			t.Errorf("%s: alerts are %s", when, got)
		}
	}
	check("before the stop")
	p.stop() // fails the test unless the exit code is 0
	if logs := p.logs.String(); !strings.Contains(logs, "draining") || !strings.Contains(logs, "msg=drained") || strings.Contains(logs, "level=ERROR") {
		t.Errorf("the log of a good stop:\n%s", logs)
	}
	if files, err := filepath.Glob(filepath.Join(data, "archive", "readings", "date=*", "[^_]*.parquet")); err != nil || len(files) == 0 {
		t.Errorf("nothing is in Parquet after draining (%v)", err)
	}

	p = startServer(t, config, httpAddr, mqttAddr)
	check("after the start")
	d.acked -= 50 // a device that does not know whether it was heard: half of this was
	post(100)
	check("after more")
	p.stop()
	if strings.Contains(p.logs.String(), "live tail rebuilt") {
		t.Errorf("a drained server left rows to rebuild:\n%s", p.logs)
	}
}

// TestDrainUnderLoad drains a server in the middle of it: whatever it has acknowledged, the next one has, once; and what it could
// not take it did not acknowledge.
func TestDrainUnderLoad(t *testing.T) {
	requireSQL(t)
	dir := t.TempDir()
	h := openHall(t, dir, 500)
	base := time.Now().Add(-10 * time.Minute).UnixMilli()
	const doors, inside = 6, 4 // devices at the HTTP door; and devices at a door that closes only with the log
	devices := make([]*truck, doors+inside)
	var posted atomic.Int64
	enough := make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	for i := range devices {
		d := &truck{id: fmt.Sprintf("drain-%d", i)}
		devices[i] = d
		wg.Go(func() {
			for n := 1; ctx.Err() == nil; n = n%7 + 1 {
				if i < doors {
					if d.postOnce(ctx, h.http, base, n) != nil {
						return
					}
				} else if d.admit(ctx, h.server, base, n) != nil {
					return
				}
				if posted.Add(1) == 400 {
					close(enough)
				}
			}
		})
	}
	<-enough
	began := time.Now()
	h.close()
	t.Logf("drained in %s", time.Since(began).Round(time.Millisecond))
	stop()
	wg.Wait()

	h = openHall(t, dir, 500)
	defer h.close()
	h.caughtUp()
	total := 0
	for _, d := range devices {
		if d.acked == 0 {
			t.Errorf("%s was never acknowledged: there was no load", d.id)
		}
		total += d.acked
		rows := h.ask(fmt.Sprintf("SELECT epoch_ms(event_time), count(*) FROM readings WHERE vehicle_id = '%s' GROUP BY 1 ORDER BY 1", d.id))
		if len(rows) < d.acked {
			t.Errorf("%s: %d readings are in SQL, %d were acknowledged", d.id, len(rows), d.acked)
		}
		for j, r := range rows {
			if h.whole(r[0]) != madeAt(j, base) || r[1] != "1" {
				t.Fatalf("%s: reading %d is %v, want %d once", d.id, j, r, madeAt(j, base))
			}
		}
		v, _ := h.fleet.Vehicle(d.id)
		if int(v.Readings) != len(rows) {
			t.Errorf("%s: state counts %d readings, SQL %d", d.id, v.Readings, len(rows))
		}
	}
	t.Logf("%d acknowledged readings", total)
}

// admit sends n readings past the doors of the network.
func (d *truck) admit(ctx context.Context, s *server, base int64, n int) error {
	var b bytes.Buffer
	for i := range n {
		b.Write(d.reading(d.acked+i, base))
		b.WriteByte('\n')
	}
	var r ingest.Receipt
	s.admit.Door("test").Admit(context.WithoutCancel(ctx), ingest.Payload{Data: b.Bytes()}, &r)
	if r.Err != nil {
		return r.Err
	}
	if r.Accepted != n {
		out, _ := json.Marshal(r.Problems)
		return fmt.Errorf("%d of %d accepted: %s", r.Accepted, n, out)
	}
	d.acked += n
	return nil
}
