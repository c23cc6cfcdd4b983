package main

import (
	"context"
	"math"
	"path/filepath"
	"strconv"
	"time"

	"github.com/milepost/milepost/alert"
	"github.com/milepost/milepost/archive"
	"github.com/milepost/milepost/fleet"
	"github.com/milepost/milepost/process/window/lane"
	"github.com/milepost/milepost/query"
	"github.com/milepost/milepost/query/duckdb"
	"github.com/milepost/milepost/telemetry"
)

// openSQL opens the SQL engine over the archive and the tables below.
func openSQL(s *server) (query.Engine, error) {
	c := s.cfg.SQL
	return duckdb.Open(duckdb.Config{
		Threads: c.Threads, MemoryLimit: strconv.FormatInt(int64(c.Memory)>>20, 10) + "MiB", TempDir: filepath.Join(s.cfg.Data, "tmp"),
		MaxConcurrent: c.Concurrent, Timeout: time.Duration(c.Timeout), Rows: c.Rows, MaxRows: max(c.Rows, 1_000_000), Log: s.log, Metrics: s.reg,
	}, duckdb.Sources{
		Archive: s.archive,
		Tables:  s.tables(),
	})
}

func (s *server) tables() map[string]query.Table {
	return map[string]query.Table{
		"vehicles":   &vehicleTable{s.fleet, s.catalog},
		"alerts":     &alertTable{s.book},
		"daily_kpis": &dailyTable{s.fleet},
		"windows":    &lane.Table{Store: s.state},
	}
}

// An emptyTable has the columns of a table and no rows.
type emptyTable []query.Column

// Columns implements query.Table.
func (t emptyTable) Columns() []query.Column { return t }

// Scan implements query.Table.
func (emptyTable) Scan(context.Context, []int, func([]query.Value) error) error { return nil }

// openEmptySQL opens an engine over the tables of openSQL without their rows, which judges SQL without a server.
func openEmptySQL(catalog *telemetry.Catalog) (query.Engine, error) {
	names, err := archive.Columns(catalog)
	if err != nil {
		return nil, err
	}
	empty := map[string]query.Table{"readings": emptyTable(duckdb.Readings(names))}
	for name, t := range (&server{catalog: catalog}).tables() {
		empty[name] = emptyTable(t.Columns())
	}
	return duckdb.Open(duckdb.Config{Threads: 1, MaxConcurrent: 1, MemoryLimit: "64MiB"}, duckdb.Sources{Tables: empty})
}

// A column is one column of a table and how to take it from a row.
type column[T any] struct {
	name, kind string
	of         func(*T) query.Value
}

func columnsOf[T any](cols []column[T]) []query.Column {
	out := make([]query.Column, len(cols))
	for i, c := range cols {
		out[i] = query.Column{Name: c.name, Type: c.kind}
	}
	return out
}

func fillRow[T any](row []query.Value, all []column[T], cols []int, v *T) {
	for i, c := range cols {
		row[i] = all[c].of(v)
	}
}

func text(s string) query.Value {
	if s == "" {
		return query.Value{}
	}
	return query.Text(s)
}

func unixMS(ms int64) query.Value {
	if ms == 0 {
		return query.Value{}
	}
	return query.Int(ms)
}

func float(f float64, ok bool) query.Value {
	if !ok || math.IsNaN(f) {
		return query.Value{}
	}
	return query.Float(f)
}

// vehicleTable is every vehicle's latest state, from memory.
type vehicleTable struct {
	fleet   *fleet.Fleet
	catalog *telemetry.Catalog
}

func (t *vehicleTable) columns() []column[fleet.Vehicle] {
	cols := []column[fleet.Vehicle]{
		{"vehicle_id", query.Varchar, func(v *fleet.Vehicle) query.Value { return query.Text(v.ID) }},
		{"connectivity", query.Varchar, func(v *fleet.Vehicle) query.Value { return query.Text(string(v.Connectivity)) }},
		{"event_time", query.Timestamp, func(v *fleet.Vehicle) query.Value { return unixMS(v.EventTime) }},
		{"arrival_time", query.Timestamp, func(v *fleet.Vehicle) query.Value { return unixMS(v.ArrivalTime) }},
		{"lat", query.Double, func(v *fleet.Vehicle) query.Value { return float(v.Lat, v.HasPlace) }},
		{"lon", query.Double, func(v *fleet.Vehicle) query.Value { return float(v.Lon, v.HasPlace) }},
		{"place_time", query.Timestamp, func(v *fleet.Vehicle) query.Value { return unixMS(v.PlaceTime) }},
		{"status", query.Varchar, func(v *fleet.Vehicle) query.Value { return text(v.Status) }},
	}
	for id := range telemetry.WellKnown {
		name := t.catalog.Def(telemetry.SignalID(id)).Name
		cols = append(cols, column[fleet.Vehicle]{name, query.Double, func(v *fleet.Vehicle) query.Value {
			for _, s := range v.Signals {
				if s.Name == name {
					return query.Float(s.Value)
				}
			}
			return query.Value{}
		}})
	}
	return append(cols,
		column[fleet.Vehicle]{"signals", query.Map, t.otherSignals},
		column[fleet.Vehicle]{"readings", query.BigInt, func(v *fleet.Vehicle) query.Value { return query.Int(int64(v.Readings)) }}, //nolint:gosec // a count
		column[fleet.Vehicle]{"severity", query.Varchar, func(v *fleet.Vehicle) query.Value { return text(v.Severity) }},
		column[fleet.Vehicle]{"firing", query.List, func(v *fleet.Vehicle) query.Value { return query.Texts(v.Firing) }},
	)
}

func (t *vehicleTable) otherSignals(v *fleet.Vehicle) query.Value {
	var keys []string
	var vals []float64
	for _, s := range v.Signals {
		if id, ok := t.catalog.Lookup([]byte(s.Name)); !ok || int(id) >= telemetry.WellKnown {
			keys, vals = append(keys, s.Name), append(vals, s.Value)
		}
	}
	if len(keys) == 0 {
		return query.Value{}
	}
	return query.Pairs(keys, vals)
}

// Columns implements query.Table.
func (t *vehicleTable) Columns() []query.Column { return columnsOf(t.columns()) }

// Scan implements query.Table.
func (t *vehicleTable) Scan(_ context.Context, cols []int, emit func([]query.Value) error) error {
	all, row := t.columns(), make([]query.Value, len(cols))
	var err error
	t.fleet.Vehicles(func(v *fleet.Vehicle) bool {
		fillRow(row, all, cols, v)
		err = emit(row)
		return err == nil
	})
	return err
}

// alertTable is every alert ever recorded, newest first.
type alertTable struct{ book *alert.Book }

func alertColumns() []column[alert.Alert] {
	type a = alert.Alert
	return []column[a]{
		{"id", query.Varchar, func(x *a) query.Value { return query.Text(x.ID) }},
		{"rule", query.Varchar, func(x *a) query.Value { return query.Text(x.Rule) }},
		{"vehicle_id", query.Varchar, func(x *a) query.Value { return query.Text(x.Vehicle) }},
		{"severity", query.Varchar, func(x *a) query.Value { return query.Text(x.Severity) }},
		{"state", query.Varchar, func(x *a) query.Value { return query.Text(string(x.State)) }},
		{"summary", query.Varchar, func(x *a) query.Value { return text(x.Summary) }},
		{"condition", query.Varchar, func(x *a) query.Value { return text(x.Condition) }},
		{"value", query.Double, func(x *a) query.Value { return query.Float(x.Value) }},
		{"peak", query.Double, func(x *a) query.Value { return query.Float(x.Peak) }},
		{"since", query.Timestamp, func(x *a) query.Value { return unixMS(x.Since) }},
		{"fired_at", query.Timestamp, func(x *a) query.Value { return unixMS(x.FiredAt) }},
		{"resolved_at", query.Timestamp, func(x *a) query.Value { return unixMS(x.ResolvedAt) }},
		{"acked_at", query.Timestamp, func(x *a) query.Value { return unixMS(x.AckedAt) }},
		{"acked_by", query.Varchar, func(x *a) query.Value { return text(x.AckedBy) }},
		{"late", query.Boolean, func(x *a) query.Value { return query.Bool(x.Late) }},
		{"reopened", query.Integer, func(x *a) query.Value { return query.Int(int64(x.Reopened)) }},
		{"lat", query.Double, func(x *a) query.Value { return float(x.Lat, x.HasPlace) }},
		{"lon", query.Double, func(x *a) query.Value { return float(x.Lon, x.HasPlace) }},
	}
}

// Columns implements query.Table.
func (t *alertTable) Columns() []query.Column { return columnsOf(alertColumns()) }

// Scan implements query.Table.
func (t *alertTable) Scan(ctx context.Context, cols []int, emit func([]query.Value) error) error {
	all, row := alertColumns(), make([]query.Value, len(cols))
	after := ""
	for {
		page, err := t.book.List(ctx, alert.Filter{After: after, Limit: alert.MaxList})
		if err != nil || len(page) == 0 {
			return err
		}
		for i := range page {
			fillRow(row, all, cols, &page[i])
			if err := emit(row); err != nil {
				return err
			}
		}
		after = page[len(page)-1].ID
	}
}

// dailyTable is the figures of every vehicle and day.
type dailyTable struct{ fleet *fleet.Fleet }

func dailyColumns() []column[fleet.Daily] {
	type d = fleet.Daily
	return []column[d]{
		{"date", query.Date, func(x *d) query.Value { return query.Int(int64(x.Day)) }},
		{"vehicle_id", query.Varchar, func(x *d) query.Value { return query.Text(x.Vehicle) }},
		{"readings", query.BigInt, func(x *d) query.Value { return query.Int(int64(x.Readings)) }}, //nolint:gosec // a count
		{"avg_speed", query.Double, func(x *d) query.Value { return float(x.AvgSpeed, true) }},
		{"max_speed", query.Double, func(x *d) query.Value { return float(x.MaxSpeed, true) }},
		{"avg_fuel", query.Double, func(x *d) query.Value { return float(x.AvgFuel, true) }},
		{"first_time", query.Timestamp, func(x *d) query.Value { return unixMS(x.First) }},
		{"last_time", query.Timestamp, func(x *d) query.Value { return unixMS(x.Last) }},
	}
}

// Columns implements query.Table.
func (t *dailyTable) Columns() []query.Column { return columnsOf(dailyColumns()) }

// Scan implements query.Table.
func (t *dailyTable) Scan(ctx context.Context, cols []int, emit func([]query.Value) error) error {
	all, row := dailyColumns(), make([]query.Value, len(cols))
	var failed error
	err := t.fleet.EachDaily(ctx, math.MinInt32, math.MaxInt32, func(d fleet.Daily) bool {
		fillRow(row, all, cols, &d)
		failed = emit(row)
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	return err
}
