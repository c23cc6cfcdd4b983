package web_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/milepost/milepost/fleet"
	"github.com/milepost/milepost/web"
	"github.com/milepost/milepost/web/webtest"
)

// An answer is what came back, its body read and closed.
type answer struct {
	StatusCode      int
	Header, Trailer http.Header
	url             string
}

// call makes a request and returns the answer and its body.
func call(t *testing.T, method, url, body string, headers ...string) (answer, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	if req.Header.Get("Accept-Encoding") == "" {
		req.Header.Set("Accept-Encoding", "identity")
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: read: %v", method, url, err)
	}
	return answer{res.StatusCode, res.Header, res.Trailer, url}, string(b)
}

func decodeJSON[T any](t *testing.T, body string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatalf("not JSON: %v: %s", err, body)
	}
	return v
}

// wantProblem checks an error's form, status and type.
func wantProblem(t *testing.T, res answer, body string, status int, kind string) {
	t.Helper()
	p := decodeJSON[struct {
		Type, Title, Detail string
		Status              int
	}](t, body)
	if res.StatusCode != status || p.Status != status || p.Type != "urn:milepost:"+kind || p.Detail == "" || res.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("%s: got %d %s %+v, want %d %s", res.url, res.StatusCode, res.Header.Get("Content-Type"), p, status, kind)
	}
}

type vehicleList struct {
	Vehicles []fleet.Vehicle
	Total    int
	Next     string
}

func TestVehicles(t *testing.T) {
	s := serve(t, 250)
	seen, after := map[string]bool{}, ""
	for pages := 0; ; pages++ {
		_, body := call(t, "GET", s.url+"/v1/vehicles?limit=100&after="+url.QueryEscape(after), "")
		l := decodeJSON[vehicleList](t, body)
		if l.Total != 250 {
			t.Fatalf("total %d, want 250", l.Total)
		}
		for _, v := range l.Vehicles {
			if v.ID <= after || seen[v.ID] {
				t.Fatalf("vehicle %q after %q", v.ID, after)
			}
			seen[v.ID], after = true, v.ID
		}
		if l.Next == "" {
			break
		}
		if pages > 5 {
			t.Fatal("the pages do not end")
		}
	}
	if len(seen) != 250 {
		t.Errorf("%d vehicles on all pages, want 250", len(seen))
	}
	_, body := call(t, "GET", s.url+"/v1/vehicles?q=t01&state=offline", "")
	l := decodeJSON[vehicleList](t, body)
	if len(l.Vehicles) == 0 || l.Total != len(l.Vehicles) {
		t.Errorf("search: %d vehicles of %d", len(l.Vehicles), l.Total)
	}
	for _, v := range l.Vehicles {
		if !strings.HasPrefix(v.ID, "T01") || v.Connectivity != fleet.Offline {
			t.Errorf("search found %s %s", v.ID, v.Connectivity)
		}
	}
	res, body := call(t, "GET", s.url+"/v1/vehicles/T0137", "")
	if v := decodeJSON[fleet.Vehicle](t, body); v.ID != "T0137" || v.Signals[0].Name != "speed" || res.Header.Get("Content-Type") != "application/json" {
		t.Errorf("vehicle: %+v", v)
	}
	res, body = call(t, "GET", s.url+"/v1/vehicles/"+url.PathEscape(webtest.Hostile), "")
	if v := decodeJSON[fleet.Vehicle](t, body); v.ID != webtest.Hostile || strings.Contains(body, "<img") {
		t.Errorf("hostile vehicle: %d %s", res.StatusCode, body)
	}
	res, body = call(t, "GET", s.url+"/v1/vehicles/nobody", "")
	wantProblem(t, res, body, 404, "no-such-vehicle")
	for _, q := range []string{"limit=0", "limit=x", "limit=100000", "state=asleep"} {
		res, body = call(t, "GET", s.url+"/v1/vehicles?"+q, "")
		wantProblem(t, res, body, 400, "bad-parameter")
	}
}

func TestAlertsAreAcknowledged(t *testing.T) {
	s := serve(t, 100)
	type list struct {
		Alerts []struct {
			ID, State string
			AckedBy   string `json:"acked_by"`
		}
		Counts struct{ Unacked int }
		Next   string
	}
	_, body := call(t, "GET", s.url+"/v1/alerts?state=firing&limit=3", "")
	l := decodeJSON[list](t, body)
	if len(l.Alerts) != 3 || l.Next != l.Alerts[2].ID {
		t.Fatalf("page: %+v", l)
	}
	_, body = call(t, "GET", s.url+"/v1/alerts?state=firing&limit=3&before="+l.Next, "")
	if next := decodeJSON[list](t, body); next.Alerts[0].ID == l.Alerts[0].ID {
		t.Errorf("the second page begins with the first's alert %s", next.Alerts[0].ID)
	}
	ack := s.url + "/v1/alerts/" + l.Alerts[0].ID + "/ack"
	res, body := call(t, "POST", ack, `{"by":"Ada"}`)
	wantProblem(t, res, body, 415, "content-type")
	res, body = call(t, "POST", ack, "by=Ada", "Content-Type", "application/x-www-form-urlencoded")
	wantProblem(t, res, body, 415, "content-type")
	res, body = call(t, "POST", ack, `{"by":"Ada"}`, "Content-Type", "application/json", "Sec-Fetch-Site", "cross-site")
	wantProblem(t, res, body, 403, "cross-origin")
	res, body = call(t, "POST", ack, `{"by":"Ada"}`, "Content-Type", "application/json", "Origin", "https://elsewhere.example")
	wantProblem(t, res, body, 403, "cross-origin")
	res, body = call(t, "POST", ack, `{"buy":"Ada"}`, "Content-Type", "application/json")
	wantProblem(t, res, body, 400, "bad-json")
	res, body = call(t, "POST", ack, `{"by":"`+strings.Repeat("x", 300)+`"}`, "Content-Type", "application/json")
	wantProblem(t, res, body, 400, "bad-parameter")
	res, body = call(t, "POST", ack, `{"by":"`+strings.Repeat("x", 9000)+`"}`, "Content-Type", "application/json")
	wantProblem(t, res, body, 413, "too-large")
	for range 2 { // the second changes nothing
		res, body = call(t, "POST", ack, `{"by":"Ada"}`, "Content-Type", "application/json; charset=utf-8", "Sec-Fetch-Site", "same-origin")
		if res.StatusCode != 200 || !strings.Contains(body, `"acked_by":"Ada"`) {
			t.Fatalf("acknowledge: %d %s", res.StatusCode, body)
		}
	}
	_, body = call(t, "GET", s.url+"/v1/alerts", "")
	if after := decodeJSON[list](t, body); after.Counts.Unacked != l.Counts.Unacked-1 {
		t.Errorf("%d not acknowledged, want %d", after.Counts.Unacked, l.Counts.Unacked-1)
	}
	res, body = call(t, "POST", s.url+"/v1/alerts/none/ack", `{}`, "Content-Type", "application/json")
	wantProblem(t, res, body, 404, "not-found")
}

func TestSQL(t *testing.T) {
	s := serve(t, 20)
	post := func(path, body string, headers ...string) (answer, string) {
		return call(t, "POST", s.url+path, body, append([]string{"Content-Type", "application/json"}, headers...)...)
	}
	res, body := post("/v1/sql", `{"sql":"SELECT 1"}`)
	if r := decodeJSON[struct{ Rows [][]any }](t, body); res.StatusCode != 200 || len(r.Rows) != 20 {
		t.Errorf("JSON: %d %s", res.StatusCode, body)
	}
	res, body = post("/v1/sql?format=csv", `{"sql":"SELECT 1"}`)
	if !strings.HasPrefix(body, "vehicle_id,speed,") || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/csv") || res.Trailer.Get("Milepost-Truncated") != "false" {
		t.Errorf("CSV: %v %v %.80s", res.Header, res.Trailer, body)
	}
	res, _ = call(t, "POST", s.url+"/v1/sql", "SELECT 1", "Content-Type", "text/plain", "Accept", "text/csv")
	if !strings.HasPrefix(res.Header.Get("Content-Type"), "text/csv") {
		t.Errorf("text with Accept: %v", res.Header)
	}
	res, body = post("/v1/sql", `{"sql":"DROP TABLE readings"}`)
	wantProblem(t, res, body, 400, "bad-query")
	res, body = post("/v1/sql", `{"sql":"  "}`)
	wantProblem(t, res, body, 400, "bad-query")
	res, body = post("/v1/sql?format=xml", `{"sql":"SELECT 1"}`)
	wantProblem(t, res, body, 400, "bad-parameter")
	res, body = post("/v1/sql", `{"sql":"SELECT 1"}`, "Origin", "https://elsewhere.example")
	wantProblem(t, res, body, 403, "cross-origin")
	without := serve(t, 1, func(c *web.Config) { c.SQL = nil })
	for _, path := range []string{"/v1/vehicles/T0100/history", "/v1/vehicles/T0100/trail"} {
		res, body = call(t, "GET", without.url+path, "")
		wantProblem(t, res, body, 501, "sql-not-built")
	}
}

func TestHistoryAndTrail(t *testing.T) {
	s := serve(t, 50)
	res, body := call(t, "GET", s.url+"/v1/vehicles/T0137/history?points=100&signals=speed,fuel", "")
	h := decodeJSON[struct {
		Step    int64
		Signals []struct {
			Name, Unit string
			Points     [][5]float64
		}
	}](t, body)
	if res.StatusCode != 200 || len(h.Signals) != 2 || h.Signals[0].Unit != "km/h" || len(h.Signals[0].Points) < 50 || len(h.Signals[0].Points) > 101 {
		t.Errorf("history: %d %.300s", res.StatusCode, body)
	}
	_, body = call(t, "GET", s.url+"/v1/vehicles/T0137/trail?points=200", "")
	tr := decodeJSON[struct{ Points [][4]float64 }](t, body)
	if len(tr.Points) < 100 || len(tr.Points) > 201 {
		t.Errorf("trail: %d points", len(tr.Points))
	}
	for _, q := range []string{"from=x", "from=2026-01-01T00:00:00Z&to=2025-01-01T00:00:00Z", "points=1000000", "signals=" + strings.Repeat("x", 65), "from=1000&to=1795236529661"} {
		res, body = call(t, "GET", s.url+"/v1/vehicles/T0137/history?"+q, "")
		wantProblem(t, res, body, 400, "bad-parameter")
	}
}

func TestPipelineAndDeadLetters(t *testing.T) {
	s := serve(t, 20)
	if res, code := call(t, "GET", s.url+"/v1/qr?text=owntracks", ""); res.StatusCode != 200 || !strings.Contains(code, "<path") {
		t.Errorf("QR code: %d %s", res.StatusCode, code)
	}
	if res, _ := call(t, "GET", s.url+"/v1/qr?text="+strings.Repeat("x", 1025), ""); res.StatusCode != 400 {
		t.Errorf("QR code of too much text: %d", res.StatusCode)
	}
	_, body := call(t, "GET", s.url+"/v1/pipeline", "")
	if st := decodeJSON[web.PipelineStatus](t, body); len(st.Functions) != 3 || len(st.Streams[0].Shards) != 8 {
		t.Errorf("pipeline: %s", body)
	}
	type list struct {
		Letters []web.StoredLetter `json:"dead_letters"`
		Next    string
	}
	seen, before := 0, ""
	for range 10 {
		_, body = call(t, "GET", s.url+"/v1/deadletters?limit=7&before="+before, "")
		l := decodeJSON[list](t, body)
		seen += len(l.Letters)
		for _, d := range l.Letters {
			if len(d.Data) > 256 {
				t.Errorf("the list carries %d bytes of payload of %s", len(d.Data), d.Ref)
			}
		}
		if before = l.Next; before == "" {
			break
		}
	}
	if seen != 24 {
		t.Errorf("%d letters on all pages, want 24", seen)
	}
	_, body = call(t, "GET", s.url+"/v1/deadletters/dl-96", "")
	if d := decodeJSON[web.StoredLetter](t, body); len(d.Data) < 1000 {
		t.Errorf("the detail is cut to %d bytes", len(d.Data))
	}
	res, body := call(t, "GET", s.url+"/v1/deadletters/none", "")
	wantProblem(t, res, body, 404, "not-found")
}

func TestMissingSourcesSaySo(t *testing.T) {
	s := serve(t, 1, func(c *web.Config) { *c = web.Config{} })
	for _, path := range []string{"/v1/vehicles", "/v1/vehicles/x", "/v1/alerts", "/v1/pipeline", "/v1/deadletters"} {
		res, body := call(t, "GET", s.url+path, "")
		wantProblem(t, res, body, 501, "not-available")
	}
	res, body := call(t, "GET", s.url+"/v1/nothing", "")
	wantProblem(t, res, body, 404, "no-such-route")
}

func TestPagesAndHeaders(t *testing.T) {
	s := serve(t, 1, func(c *web.Config) {
		c.Title = `Ada's <fleet>`
		c.TileURL = "https://tiles.example/{z}/{x}/{y}.png"
	})
	for _, path := range []string{"/", "/alerts", "/sql", "/pipeline", "/connect", "/vehicles/T0100", "/vehicles/a%2Fb"} {
		res, body := call(t, "GET", s.url+path, "")
		if res.StatusCode != 200 || !strings.Contains(body, "<title>Ada&#39;s &lt;fleet&gt;</title>") {
			t.Errorf("%s: %d %.200s", path, res.StatusCode, body)
		}
		csp := res.Header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self';", "worker-src 'self';", "style-src 'self';", "frame-ancestors 'none'", "connect-src 'self' https://tiles.example;"} {
			if !strings.Contains(csp, want) {
				t.Errorf("%s: policy %q lacks %q", path, csp, want)
			}
		}
		if strings.Contains(csp, "unsafe") || res.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: headers %v", path, res.Header)
		}
		for _, bad := range []string{"<script>", "onclick=", "style="} {
			if strings.Contains(body, bad) {
				t.Errorf("%s: the page holds %q", path, bad)
			}
		}
	}
	for _, path := range []string{"/nothing", "/vehicles/", "/assets/x/index.html", "/assets/x/js/none.js", "/basemap/9/0/0", "/basemap/1/2/0", "/basemap/1/-1/0", "/basemap/a/0/0"} {
		res, body := call(t, "GET", s.url+path, "")
		wantProblem(t, res, body, 404, "not-found")
	}
	res, body := call(t, "POST", s.url+"/", "")
	wantProblem(t, res, body, 405, "method")
	for _, bad := range []string{"ftp://x/{z}", "https://a b/{z}", "x/{z}/{x}/{y}", "https://evil.example;script-src */{z}"} {
		if _, err := web.New(web.Config{TileURL: bad}); err == nil {
			t.Errorf("tile URL %q was accepted", bad)
		}
	}
}

func TestAssetsAreCompressedAndKept(t *testing.T) {
	s := serve(t, 1)
	_, page := call(t, "GET", s.url+"/", "")
	m := regexp.MustCompile(`src="(/assets/[0-9a-f]+/js/main\.js)"`).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("no main module in %s", page)
	}
	vendor := strings.Replace(m[1], "js/main.js", "vendor/maplibre/maplibre-gl.mjs", 1)
	_, plain := call(t, "GET", s.url+vendor, "")
	unpack := map[string]func(io.Reader) (io.Reader, error){
		"gzip": func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		"zstd": func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r, zstd.WithDecoderMaxWindow(8<<20)) },
	}
	f := func(accept, want string) {
		t.Helper()
		res, body := call(t, "GET", s.url+vendor, "", "Accept-Encoding", accept)
		if got := res.Header.Get("Content-Encoding"); got != want {
			t.Fatalf("Accept-Encoding %q: %q, want %q", accept, got, want)
		}
		if !strings.Contains(res.Header.Get("Cache-Control"), "immutable") || res.Header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("headers %v", res.Header)
		}
		if want != "" {
			r, err := unpack[want](strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			whole, err := io.ReadAll(r)
			if err != nil || string(whole) != plain {
				t.Errorf("%s: %d bytes unpack to %d, want %d: %v", want, len(body), len(whole), len(plain), err)
			}
			if len(body) > len(plain)/3 {
				t.Errorf("%s: %d of %d bytes", want, len(body), len(plain))
			}
		}
		res, body = call(t, "GET", s.url+vendor, "", "Accept-Encoding", accept, "If-None-Match", res.Header.Get("ETag"))
		if res.StatusCode != 304 || body != "" {
			t.Errorf("%q again: %d with %d bytes, want 304", accept, res.StatusCode, len(body))
		}
	}
	f("identity", "")
	f("gzip, deflate, br, zstd", "zstd")
	f("gzip", "gzip")
	f("zstd;q=0, gzip;q=0.5", "gzip")
	f("br", "")
	res, _ := call(t, "GET", s.url+strings.Replace(m[1], "/assets/", "/assets/0", 1), "")
	if res.StatusCode != 200 || strings.Contains(res.Header.Get("Cache-Control"), "immutable") {
		t.Errorf("an old page's file: %d %q, want it once", res.StatusCode, res.Header.Get("Cache-Control"))
	}
}

func TestBaseMapTiles(t *testing.T) {
	s := serve(t, 1)
	_, body := call(t, "GET", s.url+"/v1/ui-config", "")
	cfg := decodeJSON[struct{ Basemap struct{ Version string } }](t, body)
	res, packed := call(t, "GET", s.url+"/basemap/4/3/6?v="+cfg.Basemap.Version, "", "Accept-Encoding", "gzip")
	if res.Header.Get("Content-Encoding") != "gzip" || !strings.Contains(res.Header.Get("Cache-Control"), "immutable") {
		t.Errorf("tile: %v", res.Header)
	}
	_, plain := call(t, "GET", s.url+"/basemap/4/3/6", "")
	r, err := gzip.NewReader(strings.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); err != nil || string(b) != plain {
		t.Errorf("a tile unpacked by the server differs: %v", err)
	}
	for _, layer := range []string{"land", "state", "city"} {
		if !strings.Contains(plain, layer) {
			t.Errorf("the tile of the Great Plains has no layer %s", layer)
		}
	}
	if res, sea := call(t, "GET", s.url+"/basemap/6/5/40", ""); res.StatusCode != 200 || sea != "" {
		t.Errorf("the open Pacific: %d with %d bytes, want an empty tile", res.StatusCode, len(sea))
	}
}

// The feed reads like server-sent events, and ends when the server closes.
func TestLiveFeed(t *testing.T) {
	s := serve(t, 30)
	req, err := http.NewRequestWithContext(t.Context(), "GET", s.url+"/v1/live", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if ct := res.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Fatalf("Content-Type %q", ct)
	}
	events, data := map[string]int{}, map[string]string{}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 1<<20)
	name := ""
	for lines.Scan() && events["vehicles"] < 3 {
		if n, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			name = n
			events[name]++
		} else if d, ok := strings.CutPrefix(lines.Text(), "data: "); ok && data[name] == "" {
			data[name] = d
		}
	}
	if events["alerts"] == 0 || events["stats"] == 0 {
		t.Errorf("events: %v, want alerts and stats among them", events)
	}
	if first := decodeJSON[struct {
		Whole bool
		N     int
	}](t, data["vehicles"]); !first.Whole || first.N != 30 {
		t.Errorf("the first event: %+v, want all 30", first)
	}
	if st := decodeJSON[struct{ Vehicles struct{ Total, Online int } }](t, data["stats"]); st.Vehicles.Total != 30 || st.Vehicles.Online == 0 {
		t.Errorf("stats: %s", data["stats"])
	}
	if err := s.web.Close(); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() { // ends, or the test hangs
	}
	if err := lines.Err(); err != nil {
		t.Errorf("the feed ended with %v, want its end", err)
	}
}

// P8 for browsers: one that reads nothing delays only itself.
func TestSlowBrowserSlowsNothing(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := serve(t, 3000, func(c *web.Config) {
		c.LiveInterval, c.MaxClients, c.Registry = 5e6, 3, reg
	})
	open := func() (status int, header http.Header, feed io.Reader) {
		req, err := http.NewRequestWithContext(t.Context(), "GET", s.url+"/v1/live", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := new(http.Transport).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = res.Body.Close() }) // a feed that is cut off
		return res.StatusCode, res.Header, res.Body
	}
	open() // read by nobody
	open()
	_, _, fast := open()
	if status, header, _ := open(); status != http.StatusServiceUnavailable || header.Get("Retry-After") == "" {
		t.Errorf("a fourth feed: %d, want 503 with Retry-After", status)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var pushing sync.WaitGroup
	defer func() {
		cancel()
		pushing.Wait()
	}()
	pushing.Go(func() { // far more than any socket holds
		for now := s.fleet.Now(); ctx.Err() == nil; now = now.Add(1e9) {
			s.fleet.Advance(now)
		}
	})
	in := bufio.NewReader(fast)
	for bytesRead := 0; bytesRead < 20<<20; {
		line, err := in.ReadBytes('\n')
		if err != nil {
			t.Fatalf("the fast browser was cut off after %d bytes: %v", bytesRead, err)
		}
		bytesRead += len(line)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		switch f.GetName() {
		case "milepost_web_live_clients":
			if n := f.GetMetric()[0].GetGauge().GetValue(); n != 3 {
				t.Errorf("%v feeds open, want 3", n)
			}
		case "milepost_web_live_refused_total":
			if n := f.GetMetric()[0].GetCounter().GetValue(); n != 1 {
				t.Errorf("%v feeds refused, want 1", n)
			}
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	f := webtest.New(5, 1, testTime)
	for range 3 {
		s, err := web.New(f.Config())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// The vendored library is what its record says, byte for byte.
func TestVendoredFilesAreAsPublished(t *testing.T) {
	dir := "static/vendor/maplibre"
	raw, err := os.ReadFile(filepath.Join(dir, "VENDORED.json"))
	if err != nil {
		t.Fatal(err)
	}
	rec := decodeJSON[struct {
		Version, License string
		Files            map[string]struct{ SHA256 string }
	}](t, string(raw))
	for name, want := range rec.Files {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != want.SHA256 {
			t.Errorf("%s is not what was published as %s: run web/basemap/gen", name, rec.Version)
		}
	}
	if len(rec.Files) != 4 || rec.License != "BSD-3-Clause" {
		t.Errorf("record: %+v", rec)
	}
}

// Our own modules stay readable, and never turn text into markup.
func TestModules(t *testing.T) {
	err := filepath.WalkDir("static/js", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if n := bytes.Count(b, []byte("\n")); n > 500 {
			t.Errorf("%s has %d lines, want at most 500", path, n)
		}
		if m := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function\(|setAttribute\('style'`).Find(b); m != nil {
			t.Errorf("%s uses %s", path, m)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
