package httpapi_test

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/httpapi"
	"github.com/milepost/milepost/stream"
)

type rawAnswer struct {
	status int
	header http.Header
	body   string
}

// raw is do for answers that are not Milepost's own.
func (w *world) raw(t testing.TB, method, path string, header http.Header, body io.Reader) rawAnswer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, w.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(req.Header, header)
	resp, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return rawAnswer{resp.StatusCode, resp.Header, string(b)}
}

const phone = `{"_type":"location","lat":38.72,"lon":-9.13,"tst":1790000000,"vel":54,"tid":"t7"}`

func TestForeignStored(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, httpapi.Config{})
	for _, c := range []struct {
		method, path, body string
		status             int
		reply, key         string
	}{
		{"POST", "/in/owntracks?u=fleet&d=t7", phone, 200, "[]", "fleet-t7"},
		{"POST", "/in/owntracks/truck-7", phone, 200, "[]", "truck-7"},
		{"GET", "/in/osmand?id=a&lat=1&lon=2&timestamp=1790000000&speed=10", "", 200, `{"accepted":1}`, "a"},
		{"POST", "/in/osmand", "id=b&lat=1&lon=2&timestamp=1790000000", 200, `{"accepted":1}`, "b"},
		{"GET", "/in/torque?id=c&time=1790000000000&k5=90", "", 200, "OK!", "c"},
		{"POST", "/in/overland", `{"locations":[{"geometry":{"type":"Point","coordinates":[1,2]},"properties":{"timestamp":"2026-09-21T12:00:00Z","device_id":"d"}}]}`, 200, `{"result":"ok"}`, "d"},
		{"POST", "/api/v2/write?bucket=b&org=o&precision=s", "gps,vehicle_id=e speed=5 1790000000", 204, "", "e"},
		{"POST", "/write?db=x&precision=s", "gps,vehicle_id=f speed=5 1790000000", 204, "", "f"},
		{"POST", "/in/traccar", `{"position":{"latitude":1,"longitude":2,"fixTime":"2026-09-21T12:00:00Z"},"device":{"uniqueId":"g"}}`, 200, `{"accepted":1}`, "g"},
		{"POST", "/in/vss/h", `{"Vehicle.Speed":50,"ts":"2026-09-21T12:00:00Z"}`, 200, `{"accepted":1}`, "h"},
	} {
		before := len(w.stored())
		a := w.raw(t, c.method, c.path, nil, strings.NewReader(c.body))
		if a.status != c.status || a.body != c.reply {
			t.Errorf("%s %s: %d %q, want %d %q", c.method, c.path, a.status, a.body, c.status, c.reply)
		}
		got := w.stored()
		if len(got) != before+1 || !strings.HasPrefix(got[before], c.key+" ") {
			t.Errorf("%s %s stored %q, want one of %s", c.method, c.path, got[before:], c.key)
		}
	}
}

// A format that is not there is named, with those that are.
func TestForeignUnknown(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, httpapi.Config{})
	for _, path := range []string{"/in/nosuch", "/in/nosuch/truck-7", "/in/sparkplug", "/in/"} {
		a := w.raw(t, "POST", path, nil, strings.NewReader("{}"))
		if a.status != 404 || !strings.Contains(a.body, "send to /in/ and one of gtfs-rt, influx, osmand") {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
}

// An app is not told of data that it can only send again; a server is.
func TestForeignRefused(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, httpapi.Config{})
	type letter struct{ Source, Data string }
	var want []letter
	for _, c := range []struct {
		path, body string
		status     int
		reply      string
		letter     string
	}{
		{"/in/owntracks", `{"_type":"location"}`, 200, "[]", `{"_type":"location"}`},
		{"/in/osmand?lat=1&token=secret", "", 200, "", "lat=1"},
		{"/in/overland", `{"locations":[5]}`, 200, `{"result":"ok"}`, "5"},
		{"/in/vss", `{"speed":1}`, 400, "not VSS", `{"speed":1}`},
		{"/write", "gps,vehicle_id=a speed=1\nnonsense", 400, `"code":"invalid"`, "nonsense"},
	} {
		a := w.raw(t, "POST", c.path, nil, strings.NewReader(c.body))
		if a.status != c.status || !strings.Contains(a.body, c.reply) {
			t.Errorf("%s: %d %q, want %d with %q", c.path, a.status, a.body, c.status, c.reply)
		}
		name := strings.TrimPrefix(strings.SplitN(c.path, "?", 2)[0], "/in/")
		if name == "/write" {
			name = "influx"
		}
		want = append(want, letter{"http-" + name, c.letter})
	}
	var got []letter
	for _, r := range w.dead.Records() {
		var d stream.DeadLetter
		if err := json.Unmarshal(r.Data, &d); err != nil {
			t.Fatal(err)
		}
		got = append(got, letter{d.Source, string(d.Data)})
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("dead letters (-want +got)\n%s", d)
	}
	if n := len(w.stored()); n != 1 { // the good line beside nonsense
		t.Errorf("%d stored, want 1", n)
	}
	if a := w.raw(t, "GET", "/in/owntracks", nil, nil); a.status != http.StatusMethodNotAllowed {
		t.Errorf("GET of owntracks: %d", a.status)
	}
	w.log.Fail(stream.ErrFull, 0)
	if a := w.raw(t, "POST", "/in/owntracks?u=a&d=b", nil, strings.NewReader(phone)); a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" {
		t.Errorf("with a full disk: %d, Retry-After %q: an app must send it again", a.status, a.header.Get("Retry-After"))
	}
}

func TestForeignToken(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, httpapi.Config{Token: "s3cret"})
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("anyone:s3cret"))
	for _, c := range []struct {
		path, auth string
		status     int
	}{
		{"/in/owntracks?u=a&d=b", "", 401},
		{"/in/owntracks?u=a&d=b", "Bearer wrong", 401},
		{"/in/owntracks?u=a&d=b&token=wrong", "", 401},
		{"/in/owntracks?u=a&d=b", "Bearer s3cret", 200},
		{"/in/owntracks?u=a&d=b", basic, 200},
		{"/in/owntracks?u=a&d=b&token=s3cret", "", 200},
		{"/write?u=x&p=s3cret", "", 400}, // let in: the body is no line protocol
		{"/api/v2/write", "Token s3cret", 400},
	} {
		h := http.Header{}
		if c.auth != "" {
			h.Set("Authorization", c.auth)
		}
		if a := w.raw(t, "POST", c.path, h, strings.NewReader(phone)); a.status != c.status {
			t.Errorf("%s with %q: %d %s, want %d", c.path, c.auth, a.status, a.body, c.status)
		}
	}
}
