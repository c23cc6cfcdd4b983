package feed

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/MobilityData/gtfs-realtime-bindings/golang/gtfs"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/format"
	"github.com/milepost/milepost/ingest/internal/memlog"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func positions(t *testing.T, stamp int64, vehicles ...string) []byte {
	t.Helper()
	m := &gtfs.FeedMessage{Header: &gtfs.FeedHeader{GtfsRealtimeVersion: new("2.0")}}
	for _, v := range vehicles {
		m.Entity = append(m.Entity, &gtfs.FeedEntity{Id: new("e" + v), Vehicle: &gtfs.VehiclePosition{
			Vehicle: &gtfs.VehicleDescriptor{Id: new(v)}, Timestamp: new(uint64(stamp)),
			Position: &gtfs.Position{Latitude: new(float32(30)), Longitude: new(float32(-97))},
		}})
	}
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A transport answers in memory, so that time can be the test's.
type transport struct{ h http.Handler }

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	f.h.ServeHTTP(w, r)
	return w.Result(), nil
}

func TestFeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turn atomic.Int32
		var log, dead memlog.Log
		time.Sleep(time.Until(time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC))) // a reading of the year 2000 would be refused
		stamp := time.Now().Unix()
		server := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Key") != "k" {
				t.Errorf("no key in %v", r.Header)
			}
			switch turn.Add(1) {
			case 1: // the log is full: nothing is stored, and the same snapshot must count when it comes again
				log.Fail(stream.ErrFull, 0)
				_, _ = w.Write(positions(t, stamp, "1", "2"))
			case 2:
				log.Fail(nil, 0)
				w.Header().Set("ETag", `"a"`)
				_, _ = w.Write(positions(t, stamp, "1", "2"))
			case 3:
				if r.Header.Get("If-None-Match") != `"a"` {
					t.Errorf("headers %v", r.Header)
				}
				w.WriteHeader(http.StatusNotModified)
			case 4:
				w.WriteHeader(http.StatusBadGateway)
			case 5:
				_, _ = w.Write([]byte("<html>"))
			default:
				_, _ = w.Write(positions(t, stamp+1, "1"))
			}
		})
		admit, err := ingest.New(ingest.Config{Log: &log, DeadLetters: &dead, Catalog: telemetry.NewCatalog()})
		if err != nil {
			t.Fatal(err)
		}
		reg := prometheus.NewRegistry()
		p, err := New(Config{Metrics: reg, Admit: admit, Client: &http.Client{Transport: transport{server}}, Sources: []Source{
			{Name: "bus", URL: "http://feed.example/vehicles.pb?key=1", Every: 10 * time.Second, Headers: map[string]string{"X-Key": "k"}, Format: &format.GTFSRealtime{}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		go p.Run(ctx) // ends with the test
		time.Sleep(75 * time.Second)
		synctest.Wait()
		var got []string
		for _, r := range log.Records() {
			got = append(got, r.Key)
		}
		if s := strings.Join(got, " "); s != "1 2 1" {
			t.Errorf("stored %s, want 1 2 1", s)
		}
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		fetches := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					if l.GetName() == "outcome" {
						fetches[l.GetValue()] = m.GetCounter().GetValue()
					}
				}
			}
		}
		if d := cmp.Diff(map[string]float64{"ok": 4, "unchanged": 1, "error": 3}, fetches); d != "" {
			t.Errorf("fetches (-want +got)\n%s", d)
		}
	})
}

// A feed of which something could be neither stored nor kept as a dead letter is fetched again.
func TestFeedDeadLetterNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turn atomic.Int32
		var log, dead memlog.Log
		time.Sleep(time.Until(time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)))
		stamp := time.Now().Unix()
		server := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if tag := r.Header.Get("If-None-Match"); turn.Load() < 2 && tag != "" {
				t.Errorf("turn %d: If-None-Match %s", turn.Load(), tag)
			}
			dead.Fail(nil, 0)
			if turn.Add(1) == 1 {
				dead.Fail(stream.ErrFull, 0)
			}
			w.Header().Set("ETag", `"a"`)
			_, _ = w.Write(positions(t, stamp, "1", "a\nb"))
		})
		admit, err := ingest.New(ingest.Config{Log: &log, DeadLetters: &dead, Catalog: telemetry.NewCatalog()})
		if err != nil {
			t.Fatal(err)
		}
		p, err := New(Config{Admit: admit, Client: &http.Client{Transport: transport{server}}, Sources: []Source{
			{Name: "bus", URL: "http://feed.example/", Every: 10 * time.Second, Format: &format.GTFSRealtime{}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		go p.Run(t.Context()) // ends with the test
		time.Sleep(25 * time.Second)
		synctest.Wait()
		// What was stored at the first turn is stored again at the second, and at the third all has been seen.
		if len(log.Records()) != 2 || len(dead.Records()) != 1 || turn.Load() != 3 {
			t.Errorf("%d readings, %d dead letters after %d turns: want 2, 1, 3", len(log.Records()), len(dead.Records()), turn.Load())
		}
	})
}

func TestNew(t *testing.T) {
	for want, s := range map[string]Source{
		"write http": {URL: "ftp://x", Format: format.VSS{}},
		"no format":  {URL: "http://x"},
		"too often":  {URL: "http://x", Format: format.VSS{}, Every: time.Millisecond},
	} {
		if _, err := New(Config{Sources: []Source{s}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", s, err, want)
		}
	}
}
