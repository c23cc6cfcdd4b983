package anomaly

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// readings are n of one truck, each second.
func readings(from, n int) *process.Invocation {
	in := &process.Invocation{ID: "i"}
	start := time.Date(2026, 6, 1, 8, 0, 0, 0, time.UTC)
	for i := from; i < from+n; i++ {
		at := start.Add(time.Duration(i) * time.Second)
		data := fmt.Sprintf(`{"vehicle_id":"t","ts":%d,"engine_temp":%g,"speed":%d}`, at.UnixMilli(), 88+float64(i%7)/10, 60+i%5)
		in.Records = append(in.Records, stream.Record{Key: "t", Data: []byte(data), Time: at})
	}
	in.Records = append(in.Records, stream.Record{Key: "t", Data: []byte(`{"ts":1780300000000,"speed":5}`), Time: start}, stream.Record{Key: "t", Data: []byte("x"), Time: start})
	return in
}

func predictions(t *testing.T, res process.Result) (out []Prediction) {
	t.Helper()
	for _, r := range res.Output {
		var p Prediction
		if err := json.Unmarshal(r.Data, &p); err != nil || r.Key != p.Vehicle {
			t.Fatalf("%s: %v", r.Data, err)
		}
		out = append(out, p)
	}
	return out
}

func TestEndpointAsksInTheSageMakerShape(t *testing.T) {
	for _, c := range []struct{ content, answers, body, answer string }{
		{"application/json", "application/json", `{"instances":[{"features":[88,60]},{"features":[88.1,61]}]}`, `{"scores":[{"score":0.5},{"score":1.5}]}`},
		{"application/json", "application/json; charset=utf-8", `{"instances":[{"features":[88,60]},{"features":[88.1,61]}]}`, `{"predictions":[0.5,[1.5,2]]}`},
		{"text/csv", "text/csv", "88,60\n88.1,61\n", "0.5\n1.5,7\n"},
	} {
		var requests []string
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			requests = append(requests, r.Method+" "+r.URL.Path+" "+r.Header.Get("Content-Type")+" "+string(b))
			w.Header().Set("Content-Type", c.answers)
			io.WriteString(w, c.answer) //nolint:errcheck // a test
		}))
		e, err := NewEndpoint(EndpointConfig{Name: "m", URL: srv.URL + "/runtime", Endpoint: "engine", Signals: []string{"engine_temp", "speed"}, Content: c.content, Batch: 2, Catalog: telemetry.NewCatalog()})
		if err != nil {
			t.Fatal(err)
		}
		res, err := e.Handle(t.Context(), readings(0, 4))
		srv.Close()
		if err != nil {
			t.Fatal(err)
		}
		ps := predictions(t, res)
		if len(ps) != 4 || *ps[1].Score != 1.5 || *ps[2].Score != 0.5 || ps[3].Source != "m" {
			t.Errorf("%s: got %+v", c.answer, ps)
		}
		if want := "POST /runtime/endpoints/engine/invocations " + c.content + " " + c.body; len(requests) != 2 || requests[0] != want {
			t.Errorf("got %q, want two requests, the first %q", requests, want)
		}
	}
}

func TestEndpointFallsBack(t *testing.T) {
	var asked atomic.Int64
	var mode atomic.Value
	mode.Store("slow")
	stop := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		switch mode.Load() {
		case "slow":
			select {
			case <-r.Context().Done():
			case <-stop:
			}
		case "short":
			io.WriteString(w, `{"scores":[1]}`) //nolint:errcheck // a test
		default:
			http.Error(w, "no such model", http.StatusNotFound)
		}
	}))
	defer srv.Close()
	defer close(stop)
	for _, c := range []struct{ fallback, source string }{{FallbackRCF, "rcf"}, {FallbackPass, "none"}, {FallbackFail, ""}} {
		for _, m := range []string{"slow", "short", "missing"} {
			mode.Store(m)
			asked.Store(0)
			e, err := NewEndpoint(EndpointConfig{Name: "m", URL: srv.URL, Signals: []string{"engine_temp", "speed"}, Fallback: c.fallback, Timeout: 20 * time.Millisecond, Failures: 2, Catalog: telemetry.NewCatalog()})
			if err != nil {
				t.Fatal(err)
			}
			for i := range 5 {
				res, err := e.Handle(t.Context(), readings(i*400, 400))
				if c.fallback == FallbackFail {
					var not *process.NotRunError
					if !errors.As(err, &not) {
						t.Errorf("%s, %s: got %v, want a NotRunError", c.fallback, m, err)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				ps := predictions(t, res)
				last := ps[len(ps)-1]
				if len(ps) != 400 || last.Source != c.source || (last.Score != nil) != (c.source == "rcf") {
					t.Errorf("%s, %s: %d predictions, the last %+v", c.fallback, m, len(ps), last)
				}
			}
			if n := asked.Load(); n > 2 { // fewer if a request timed out on its way
				t.Errorf("%s, %s: the model was asked %d times; the circuit should have opened after 2 failures", c.fallback, m, n)
			}
		}
	}
}

func TestEndpointRefuses(t *testing.T) {
	good := EndpointConfig{Name: "m", URL: "http://h", Signals: []string{"speed"}, Catalog: telemetry.NewCatalog()}
	for want, change := range map[string]func(*EndpointConfig){
		"url":          func(c *EndpointConfig) { c.URL = "ftp://h" },
		"content_type": func(c *EndpointConfig) { c.Content = "text/html" },
		"fallback":     func(c *EndpointConfig) { c.Fallback = "none" },
		"empty":        func(c *EndpointConfig) { c.Signals = nil },
		"different":    func(c *EndpointConfig) { c.Signals = []string{"speed", "speed"} },
	} {
		c := good
		change(&c)
		if _, err := NewEndpoint(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error about %s", err, want)
		}
	}
}

// FuzzScores: whatever a model answers gives finite scores or an error.
func FuzzScores(f *testing.F) {
	for _, s := range []string{`{"scores":[{"score":1}]}`, `[1,[2],null]`, `{"predictions":[]}`, "1,2\n3\n", "NaN"} {
		f.Add(true, []byte(s))
		f.Add(false, []byte(s))
	}
	f.Fuzz(func(t *testing.T, csv bool, b []byte) {
		kind := "application/json"
		if csv {
			kind = "text/csv"
		}
		scores, err := parseScores(kind, b)
		for _, x := range scores {
			if err == nil && x-x != 0 {
				t.Errorf("%q: score %v", b, x)
			}
		}
	})
}
