package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/sim"
	"github.com/milepost/milepost/sim/sender"
	"github.com/milepost/milepost/web/webtest"
)

// openTestServer opens the whole program on a temporary directory; the test's end drains it.
func openTestServer(t *testing.T, change func(*Config)) *server {
	t.Helper()
	cfg, err := loadConfig("")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Data = filepath.Join(t.TempDir(), "data")
	cfg.HTTP.Listen, cfg.MQTT.Listen, cfg.Kinesis.Listen = "127.0.0.1:0", freeAddr(t), ""
	cfg.Stream.Reserve = 0
	if change != nil {
		change(cfg)
	}
	s, err := openServer(t.Context(), cfg, vfs.Disk, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.drain(context.Background()); err != nil {
			t.Errorf("drain: %v", err)
		}
	})
	return s
}

func (s *server) url() string { return "http://" + s.listener.Addr().String() }

func postReadings(t *testing.T, s *server, body string) {
	t.Helper()
	resp, err := http.Post(s.url()+"/v1/readings", "application/x-ndjson", bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", resp.Status, b)
	}
}

// TestBrowserWholeProgram goes through the dashboard over the real engines: a simulated fleet over MQTT, a speeder over HTTP.
func TestBrowserWholeProgram(t *testing.T) {
	requireSQL(t)
	b := webtest.Open(t, 1280, 850, false)
	s := openTestServer(t, nil)
	driving, brake := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := sim.Run(driving, sim.RunConfig{
			Fleet:  sim.Config{Vehicles: 40, Seed: 7, Start: time.Now().Add(-5 * time.Minute)},
			Sender: sender.Config{Address: "mqtt://" + s.cfg.MQTT.Listen},
		})
		if err != nil {
			t.Errorf("simulate: %v", err)
		}
	})
	defer wg.Wait()
	defer brake()
	var lines strings.Builder
	for i := range 45 { // 45 s at 97 km/h, just now
		at := time.Now().Add(time.Duration(i-45) * time.Second).UnixMilli()
		fmt.Fprintf(&lines, `{"vehicle_id":"speeder<b>1","ts":%d,"lat":52.09,"lon":5.12,"speed":97,"fuel":40}`+"\n", at)
	}
	postReadings(t, s, lines.String()+"not a reading\n")

	b.Go(t, s.url()+"/")
	b.Wait(t, `milepost.fleet.ids.length === 41 && milepost.mapView.overlay.count >= 40`)
	place := webtest.Eval[float64](t, b, `milepost.fleet.lat.slice(0, 41).reduce((a, x) => a + x, 0)`)
	b.Wait(t, fmt.Sprintf(`milepost.fleet.lat.slice(0, 41).reduce((a, x) => a + x, 0) !== %v`, place)) // it moves
	b.Wait(t, `document.querySelector(".list").textContent.includes("speeder<b>1")`)

	b.Go(t, s.url()+"/vehicles/"+"speeder%3Cb%3E1")
	b.Wait(t, `document.querySelectorAll(".chart").length >= 2 && document.querySelector("#panel").innerText.includes("97")`)
	b.Wait(t, `document.querySelector("#panel").innerText.includes("overspeed")`)

	b.Go(t, s.url()+"/alerts")
	b.Wait(t, `[...document.querySelectorAll(".alert")].some((a) => a.textContent.includes("speeder<b>1"))`)
	id := webtest.Eval[string](t, b, `[...document.querySelectorAll(".alert")].find((a) => a.textContent.includes("speeder<b>1")).dataset.id`)
	b.Script(t, fmt.Sprintf(`document.querySelector('.alert[data-id=%q]').focus()`, id))
	b.Press(t, "a")
	b.Wait(t, fmt.Sprintf(`document.querySelector('.alert[data-id=%q]').textContent.includes("acknowledged by")`, id))

	b.Go(t, s.url()+"/sql")
	b.Wait(t, `document.activeElement.classList.contains("editor")`)
	b.Script(t, `document.querySelector(".editor").value = "SELECT vehicle_id, count(*) FROM readings WHERE vehicle_id LIKE 'speeder%' GROUP BY 1"`)
	b.Press(t, kb.Enter, 2) // 2: Ctrl
	b.Wait(t, `document.querySelector(".result tbody tr")?.textContent === "speeder<b>145"`)
	for _, example := range webtest.Eval[[]string](t, b, `[...document.querySelectorAll("select[aria-label=Examples] option")].map((o) => o.value).filter((v) => v !== "")`) {
		// Every example of the page runs.
		b.Script(t, fmt.Sprintf(`{ const s = document.querySelector("select[aria-label=Examples]"); s.value = %q; s.dispatchEvent(new Event("change", {bubbles: true})); document.querySelector(".sql-note").textContent = ""; document.querySelector(".sql-bar .primary").click() }`, example))
		b.Wait(t, `document.querySelector(".sql-note").textContent !== ""`)
		if bad := webtest.Eval[string](t, b, `document.querySelector(".sql-note [role=alert]")?.textContent ?? ""`); bad != "" {
			t.Errorf("example %s: %s", example, bad)
		}
	}

	b.Go(t, s.url()+"/pipeline")
	b.Wait(t, `document.querySelectorAll(".letter-row").length === 1 && document.querySelector("main, body").textContent.includes("fleet")`)
	for _, c := range b.Complaints() {
		t.Errorf("the page said: %s", c)
	}
}
