package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/milepost/milepost/archive"
	"github.com/milepost/milepost/internal/conf"
	"github.com/milepost/milepost/state/local"
)

// benchQueries fills an archive with made-up history, compacts it as a running server would, and asks a server.
func benchQueries(ctx context.Context, b *benchRun) error {
	config, httpAddr, mqttAddr, err := b.benchConfig("queries")
	if err != nil {
		return err
	}
	const days = 5
	every := time.Duration(float64(days*b.vehicles) * float64(24*time.Hour) / float64(max(1, b.rows)))
	from := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	rows, written, err := makeLake(ctx, filepath.Join(b.dir, "queries", "data"), archive.Lake{From: from, Days: days, Vehicles: b.vehicles, Every: every})
	if err != nil {
		return err
	}
	b.add("rows in the lake", float64(rows), "", "")
	b.add("rows/s generated, flushed, compacted", float64(rows)/written.Seconds(), "/s", "")
	s, _, err := startBenchServer(ctx, config, httpAddr, mqttAddr)
	if err != nil {
		return err
	}
	defer s.kill()
	day := "event_time >= '2026-11-03' AND event_time < '2026-11-04'"
	one := "(SELECT max(vehicle_id) FROM readings WHERE event_time >= '2026-11-03' AND event_time < '2026-11-03 00:10:00')"
	for _, q := range []struct{ name, sql string }{
		{"count of all rows", "SELECT count(*) FROM readings"},
		{"daily KPI per vehicle, all days", "SELECT count(*) FROM (SELECT vehicle_id, date, avg(speed), max(speed), avg(fuel) FROM readings GROUP BY 1, 2)"},
		{"daily KPI per vehicle, one day", "SELECT count(*) FROM (SELECT vehicle_id, avg(speed), max(speed), avg(fuel) FROM readings WHERE " + day + " GROUP BY 1)"},
		{"last position per vehicle, all days", "SELECT count(*) FROM (SELECT vehicle_id, arg_max(lat, event_time), arg_max(lon, event_time) FROM readings GROUP BY 1)"},
		{"one vehicle, one day", "SELECT count(speed) FROM readings WHERE vehicle_id = " + one + " AND " + day},
		{"vehicles, from memory", "SELECT count(*) FROM vehicles"},
	} {
		var took []time.Duration
		for range 5 {
			_, d, err := s.count(ctx, q.sql)
			if err != nil {
				return fmt.Errorf("%s: %w", q.name, err)
			}
			took = append(took, d)
		}
		slices.Sort(took)
		b.add(q.name, ms(took[len(took)/2]), "ms", "5,000")
	}
	return s.stop()
}

// makeLake writes history into the data directory of a server that is not running.
func makeLake(ctx context.Context, data string, lake archive.Lake) (int64, time.Duration, error) {
	var c Config
	if err := conf.Load(nil, &c); err != nil {
		return 0, 0, err
	}
	st, err := local.Open(local.Config{Dir: filepath.Join(data, "state")})
	if err != nil {
		return 0, 0, err
	}
	defer st.Close() //nolint:errcheck // made-up data
	a, err := archive.Open(ctx, archive.Config{Dir: filepath.Join(data, "archive"), Store: st, Catalog: c.catalog()})
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	rows, err := archive.Generate(ctx, a, lake)
	if err != nil {
		return rows, 0, err
	}
	for {
		n, err := a.Compact(ctx, time.Now())
		if err != nil {
			return rows, 0, err
		}
		if n == 0 {
			break
		}
	}
	return rows, time.Since(began), a.Close(ctx)
}
