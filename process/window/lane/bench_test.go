package lane

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/milepost/milepost/process/processtest"
	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// emptyState is a store that has nothing.
type emptyState struct{}

func (emptyState) Get([]byte) ([]byte, error)                        { return nil, nil }
func (emptyState) Scan(_, _ []byte, _ func(_, _ []byte) error) error { return nil }

// emptyTx forgets what is written.
type emptyTx struct{ emptyState }

func (emptyTx) Set(_, _ []byte) error         { return nil }
func (emptyTx) Delete([]byte) error           { return nil }
func (emptyTx) DeleteRange(_, _ []byte) error { return nil }
func (emptyTx) Emit(state.Effect) error       { return nil }
func (emptyTx) Sync()                         {}

func benchLane(b *testing.B, lines ...string) *lane {
	var defs []*window.Def
	for i, line := range lines {
		s, err := window.ParseLine(line)
		if err != nil {
			b.Fatal(err)
		}
		s.Name = fmt.Sprint("w", i)
		d, err := window.Compile(s)
		if err != nil {
			b.Fatal(err)
		}
		defs = append(defs, d)
	}
	var store struct{ state.Store }
	w, err := New(Config{Stream: window.Readings, Source: processtest.NewLog(1), Store: store, Catalog: telemetry.NewCatalog(), Windows: defs, Output: output})
	if err != nil {
		b.Fatal(err)
	}
	return w.Lane("shardId-000000000000", 0).(*lane)
}

func seedReading(vehicle int, at int64) stream.Record {
	id := fmt.Sprintf("T%07d", vehicle)
	return stream.Record{Key: id, Pos: "1", Time: time.UnixMilli(at), Data: fmt.Appendf(nil,
		`{"truck_id":%q,"ts":%d,"lat":40.7128,"long":-74.0060,"speed":63.2,"heading":181,"fuel":55.1,"engine_temp":92.4,"fuel_pressure":44.0,"cargo_temp":3.8,"status":"moving"}`, id, at)}
}

// A reading of 1,000 vehicles in turn, decoded, deduplicated, counted and flushed every 50,000.
func benchFold(b *testing.B, lines ...string) {
	l := benchLane(b, lines...)
	const vehicles, rounds = 1000, 60
	var batches [][]stream.Record
	base := time.Now().UnixMilli()
	for r := range rounds {
		var recs []stream.Record
		for v := range vehicles {
			recs = append(recs, seedReading(v, base+int64(r)*1000))
		}
		batches = append(batches, recs)
	}
	ctx := context.Background()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		for i := range batches {
			if err := l.Fold(ctx, emptyState{}, batches[i]); err != nil {
				b.Fatal(err)
			}
			if n += vehicles; n%50_000 == 0 {
				if err := l.Flush(emptyTx{}); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.StopTimer()
		l.reset()
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/vehicles/rounds, "ns/reading")
}

func BenchmarkFoldNone(b *testing.B)  { benchFold(b) }
func BenchmarkFoldOne(b *testing.B)   { benchFold(b, "avg(engine_temp), max(speed) by vehicle per 1m") }
func BenchmarkFoldFleet(b *testing.B) { benchFold(b, "count per 1m") }
func BenchmarkFoldFour(b *testing.B) {
	benchFold(b, "avg(engine_temp) by vehicle per 1m", "p95(speed) where speed > 5 by vehicle per 5m every 1m", "count by vehicle session 10m", "count, distinct(vehicle) per 1m")
}

// What a million vehicles with an open window take in a lane: names, windows, and what was seen.
func BenchmarkMillionVehicles(b *testing.B) {
	const vehicles = 1_000_000
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		l := benchLane(b, "avg(engine_temp), max(speed) by vehicle per 1m")
		base := time.Now().Truncate(time.Minute).UnixMilli()
		for r := range 6 {
			for v := range vehicles {
				rec := seedReading(v, base+int64(r)*9000)
				if err := l.Fold(context.Background(), emptyState{}, []stream.Record{rec}); err != nil {
					b.Fatal(err)
				}
			}
			if err := l.Flush(emptyTx{}); err != nil {
				b.Fatal(err)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/vehicles, "bytes/vehicle")
		b.ReportMetric(float64(after.Sys)/(1<<20), "MiB-peak")
		runtime.KeepAlive(l)
	}
}
