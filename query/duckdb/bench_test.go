//go:build cgo

package duckdb

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/milepost/milepost/archive"
	"github.com/milepost/milepost/query"
)

// lake is about five million rows: 1,000 vehicles, two days, a reading every 34 s, each day one sorted run.
func benchLake(b *testing.B, compacted bool) *fixture {
	b.Helper()
	f := newFixture(b, func(_ *Config, a *archive.Config) {
		a.Compaction.FanIn = 64
		a.MaxTailBytes = 512 << 20
	})
	rows, err := archive.Generate(b.Context(), f.a, archive.Lake{
		From: time.UnixMilli(testDay).UTC(), Days: 2, Vehicles: 1000, Every: 34 * time.Second,
	})
	if err != nil {
		b.Fatal(err)
	}
	began, merged := time.Now(), 0
	for n := 1; compacted && n > 0; merged += n {
		if n, err = f.a.Compact(b.Context(), time.UnixMilli(testDay+30*dayMillis).Add(100_000*time.Hour)); err != nil {
			b.Fatal(err)
		}
	}
	s := f.a.Status()
	b.Logf("%d rows in %d objects of %d days, %d bytes; merged %d objects in %v", rows, s.Files, s.Days, s.Bytes, merged, time.Since(began))
	return f
}

func BenchmarkQuery(b *testing.B) {
	for _, compacted := range []bool{true, false} {
		name := "compacted"
		if !compacted {
			name = "as-flushed"
		}
		b.Run(name, func(b *testing.B) {
			f := benchLake(b, compacted)
			for _, q := range []struct{ name, sql string }{
				{"one-vehicle-one-day", "SELECT event_time, lat, lon, speed FROM readings WHERE vehicle_id = 'truck-00500' AND date = DATE '2024-10-04'"},
				{"one-vehicle-by-event-time", "SELECT event_time, lat, lon, speed FROM readings WHERE vehicle_id = 'truck-00500' AND event_time >= TIMESTAMPTZ '2024-10-05 00:00:00+00' AND event_time < TIMESTAMPTZ '2024-10-06 00:00:00+00'"},
				{"daily-kpi", "SELECT vehicle_id, date, avg(speed), max(speed), avg(fuel), count(*) FROM readings GROUP BY ALL"},
				{"count", "SELECT count(*) FROM readings"},
				{"last-per-vehicle", "SELECT vehicle_id, max(event_time) FROM readings GROUP BY ALL"},
				{"nothing-of-it", "SELECT 1"},
			} {
				b.Run(q.name, func(b *testing.B) {
					for b.Loop() {
						var w bytes.Buffer
						if _, err := f.e.Query(context.Background(), q.sql, query.JSON, query.Limits{}, &w); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		})
	}
}

// BenchmarkTail scans a live tail of 512k rows.
func BenchmarkTail(b *testing.B) {
	f := newFixture(b, func(_ *Config, a *archive.Config) { a.FlushRows = 1 << 30 })
	f.add(b, "s", 0, 512<<10)
	for _, q := range []struct{ name, sql string }{
		{"count", "SELECT count(*) FROM readings"},
		{"avg-speed-by-vehicle", "SELECT vehicle_id, avg(speed) FROM readings GROUP BY ALL"},
		{"one-vehicle", "SELECT event_time, lat, lon, speed FROM readings WHERE vehicle_id = 'truck-005' AND event_time < TIMESTAMPTZ '2024-10-04 00:10:00+00'"},
		{"all-columns", "SELECT max(struct_pack(*COLUMNS(*))) FROM readings"},
	} {
		b.Run(q.name, func(b *testing.B) {
			for b.Loop() {
				if _, err := f.e.Query(context.Background(), q.sql, query.JSON, query.Limits{}, &bytes.Buffer{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkFormats writes 100,000 rows of eight columns.
func BenchmarkFormats(b *testing.B) {
	f := newFixture(b, nil)
	f.add(b, "s", 0, 100_000)
	for _, format := range []query.Format{query.JSON, query.CSV, query.Arrow} {
		b.Run(string(format), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var w bytes.Buffer
				if _, err := f.e.Query(context.Background(), "SELECT vehicle_id, event_time, lat, lon, speed, odometer, status, flags FROM readings", format, query.Limits{}, &w); err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(w.Len()))
			}
		})
	}
}

// BenchmarkManyObjects asks a year of four objects a day for one day, one hour and everything.
func BenchmarkManyObjects(b *testing.B) {
	f := newFixture(b, nil)
	if _, err := archive.Generate(b.Context(), f.a, archive.Lake{
		From: time.UnixMilli(testDay).UTC(), Days: 365, Vehicles: 100, Every: time.Hour,
	}); err != nil {
		b.Fatal(err)
	}
	b.Logf("%+v", f.a.Status())
	for _, q := range []struct{ name, sql string }{
		{"one-day-by-date", "SELECT count(*), avg(speed) FROM readings WHERE date = DATE '2024-12-24'"},
		{"one-hour-by-event-time", "SELECT count(*), avg(speed) FROM readings WHERE event_time BETWEEN TIMESTAMPTZ '2024-12-24 10:00:00+00' AND TIMESTAMPTZ '2024-12-24 11:00:00+00'"},
		{"one-vehicle", "SELECT count(*), avg(speed) FROM readings WHERE vehicle_id = 'truck-00050'"},
		{"everything", "SELECT count(*), avg(speed) FROM readings"},
	} {
		b.Run(q.name, func(b *testing.B) {
			for b.Loop() {
				if _, err := f.e.Query(context.Background(), q.sql, query.JSON, query.Limits{}, &bytes.Buffer{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
