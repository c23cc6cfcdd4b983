package sim

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/milepost/milepost/sim/sender"
	"github.com/milepost/milepost/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// door counts the readings of each vehicle, in order.
type door struct {
	t     *testing.T
	mu    sync.Mutex // guards what follows
	times map[string][]int64
	total int
	every func(total int)
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dec := telemetry.NewDecoder(telemetry.NewCatalog())
	for in := bufio.NewScanner(r.Body); in.Scan(); {
		reading := telemetry.Reading{Arrival: time.Now().UnixMilli()}
		if err := dec.JSON(in.Bytes(), &reading); err != nil {
			d.t.Errorf("%s: %v", in.Bytes(), err)
		}
		id := strings.Clone(reading.Vehicle)
		d.times[id] = append(d.times[id], reading.Time)
		d.total++
	}
	if d.every != nil {
		d.every(d.total)
	}
	_, _ = w.Write([]byte(`{"accepted":1,"refused":[],"refused_total":0}`))
}

// A fleet that set off a while ago catches up as fast as the door takes it, and then stops where it was told to.
func TestRunCatchesUp(t *testing.T) {
	d := &door{t: t, times: map[string][]int64{}}
	server := httptest.NewServer(d)
	defer server.Close()
	var state []byte
	stats, err := Run(t.Context(), RunConfig{
		State:    []byte("of no fleet"),
		Save:     func(s []byte) { state = s },
		Fleet:    Config{Vehicles: 50, Start: time.Now().Add(-time.Hour)},
		Sender:   sender.Config{Address: server.URL, Linger: time.Millisecond},
		Readings: 20_000,
	})
	if err != nil {
		t.Fatal(err)
	}
	if stats.Sent != 20_000 || stats.Acked != 20_000 || stats.Open() != 0 || d.total != 20_000 || stats.Behind < 50*time.Minute {
		t.Errorf("%+v, the door got %d", stats, d.total)
	}
	if err := New(Config{Vehicles: 50}).Restore(state); err != nil {
		t.Error(err)
	}
	if len(d.times) < 48 { // some are in a dead zone
		t.Errorf("%d vehicles", len(d.times))
	}
	for v, times := range d.times {
		for i := 1; i < len(times); i++ {
			if times[i]-times[i-1] != 1000 {
				t.Fatalf("%s: %d ms between readings %d and %d", v, times[i]-times[i-1], i-1, i)
			}
		}
	}
}

// A run that is told to stop waits for its acknowledgements, and that is no error.
func TestRunStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	d := &door{t: t, times: map[string][]int64{}, every: func(total int) {
		if total > 200 {
			cancel()
		}
	}}
	server := httptest.NewServer(d)
	defer server.Close()
	progress := make(chan RunStats, 1)
	stats, err := Run(ctx, RunConfig{
		Fleet:  Config{Vehicles: 500, Interval: 100 * time.Millisecond, Calm: true},
		Sender: sender.Config{Address: server.URL, Linger: time.Millisecond},
		Every:  time.Millisecond,
		Progress: func(s RunStats) {
			select {
			case progress <- s:
			default:
			}
		},
	})
	if err != nil || stats.Open() != 0 || stats.Acked < 200 || int(stats.Acked) != d.total {
		t.Errorf("%+v, %v; the door got %d", stats, err, d.total)
	}
	if s := <-progress; s.Vehicles != 500 {
		t.Errorf("%+v", s)
	}
}

func TestRunWithoutDoor(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	if _, err := Run(t.Context(), RunConfig{Sender: sender.Config{Address: server.URL}}); err == nil {
		t.Error("a door that is not there was not noticed")
	}
	if _, err := Run(t.Context(), RunConfig{}); err == nil {
		t.Error("no address was not noticed")
	}
}

// The whole way of a reading but the door: made, written, sent over the loopback, acknowledged.
func BenchmarkRun(b *testing.B) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write([]byte(`{"accepted":1,"refused":[],"refused_total":0}`))
	}))
	defer server.Close()
	b.ReportAllocs()
	for b.Loop() {
		if s, err := Run(b.Context(), RunConfig{
			Fleet:    Config{Vehicles: 1000, Start: time.Now().Add(-time.Hour)},
			Sender:   sender.Config{Address: server.URL},
			Readings: 200_000,
		}); err != nil || s.Acked != 200_000 {
			b.Fatal(s, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/200_000, "ns/reading")
}
