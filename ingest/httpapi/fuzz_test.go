package httpapi_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/httpapi"
	"github.com/milepost/milepost/ingest/internal/memlog"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// Whatever comes, every reading is accounted for once, what is stored decodes, what is refused is kept as it came, and no
// memory stays reserved.
func FuzzReadings(f *testing.F) {
	f.Add([]byte(seed), "", "", false)
	f.Add([]byte("["+seed+",x,"+seed+"]"), "", "", false)
	f.Add([]byte(seed+"\nx\n\n"+seed), "", "", false)
	f.Add([]byte(gzipped(seed)), "gzip", "", false)
	f.Add([]byte(zstded(f, seed, true)), "zstd", "", false)
	f.Add([]byte("vehicle_id,ts,speed\na,2026-11-21T02:15:03Z,1\nb,x,\"2\n"), "", "", true)
	f.Add([]byte("bus;at\r\n\r\na;1700000000\r\n"), "", "map=vehicle=bus,time=at&time=unix_s&comma=%3B", true)
	f.Fuzz(func(t *testing.T, body []byte, encoding, query string, table bool) {
		var log, dead memlog.Log
		catalog := telemetry.NewCatalog()
		admit, err := ingest.New(ingest.Config{
			Log: &log, DeadLetters: &dead, Catalog: catalog, Limits: ingest.Limits{MaxBody: 1 << 20},
		})
		if err != nil {
			t.Fatal(err)
		}
		h, err := httpapi.New(httpapi.Config{}, admit)
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/readings", bytes.NewReader(body))
		r.URL.RawQuery = query
		if encoding != "" {
			r.Header.Set("Content-Encoding", encoding)
		}
		if table {
			r.Header.Set("Content-Type", "text/csv")
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)

		var doc struct {
			Accepted     int
			Refused      []struct{ Line int }
			RefusedTotal int `json:"refused_total"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
			t.Fatalf("answer %d is no JSON: %s", w.Code, w.Body)
		}
		if doc.Accepted != len(log.Records()) || (doc.RefusedTotal > 0) != (len(dead.Records()) > 0) || len(doc.Refused) > doc.RefusedTotal {
			t.Errorf("%d: %+v, but %d stored and %d dead letters", w.Code, doc, len(log.Records()), len(dead.Records()))
		}
		if (w.Code == 200) != (doc.Accepted > 0) {
			t.Errorf("%d with %d accepted", w.Code, doc.Accepted)
		}
		last := 0
		for _, p := range doc.Refused {
			if p.Line < last || p.Line < 1 {
				t.Errorf("line %d after line %d", p.Line, last)
			}
			last = p.Line
		}
		dec := telemetry.NewDecoder(catalog)
		for _, rec := range log.Records() {
			// As readers of the log do it: the vehicle from the key.
			reading := telemetry.Reading{Vehicle: rec.Key, Arrival: rec.Time.UnixMilli()}
			if err := dec.JSON(rec.Data, &reading); err != nil || reading.Vehicle != rec.Key {
				t.Errorf("stored %q %q: %v", rec.Key, rec.Data, err)
			}
		}
		for _, rec := range dead.Records() {
			var d stream.DeadLetter
			if err := json.Unmarshal(rec.Data, &d); err != nil || d.Reason == "" {
				t.Errorf("dead letter %s: %v", rec.Data, err)
			}
			if encoding == "" && !bytes.Contains(body, d.Data) {
				t.Errorf("dead letter of %q is no part of %q", d.Data, body)
			}
		}
		if n := admit.InFlight(); n != 0 {
			t.Errorf("%d bytes stay reserved", n)
		}
	})
}
