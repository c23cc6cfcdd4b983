package history

import (
	"context"
	"database/sql"
	"io"
	"strings"
	"testing"
	"time"

	_ "github.com/duckdb/duckdb-go/v2" // the engine whose SQL this package writes
	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/query"
	"github.com/milepost/milepost/telemetry"
)

// engine is the smallest query.Engine over DuckDB.
type engine struct{ db *sql.DB }

func (e engine) Close() error { return e.db.Close() }
func (e engine) Query(context.Context, string, query.Format, query.Limits, io.Writer) (query.Result, error) {
	return query.Result{}, query.ErrNotBuilt
}

func (e engine) Rows(ctx context.Context, lim query.Limits, each func([]any) error, q string, args ...any) error {
	rows, err := e.db.QueryContext(ctx, q, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	cols, err := rows.Columns()
	if err != nil {
		return err
	}
	for n := 0; rows.Next() && n < lim.Rows; n++ {
		vals, ptrs := make([]any, len(cols)), make([]any, len(cols))
		for i := range vals {
			ptrs[i] = &vals[i]
		}
		if err := rows.Scan(ptrs...); err != nil {
			return err
		}
		if err := each(vals); err != nil {
			return err
		}
	}
	return rows.Err()
}

// open makes a readings table with a time column of the given type: views over Parquet may have either.
func open(t *testing.T, timeType string) engine {
	t.Helper()
	db, err := sql.Open("duckdb", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	for _, q := range []string{
		`CREATE TABLE readings (vehicle_id VARCHAR, event_time ` + timeType + `, lat DOUBLE, lon DOUBLE, speed DOUBLE,
			engine_temp DOUBLE, flags UINTEGER, signals MAP(VARCHAR, DOUBLE))`,
		`INSERT INTO readings VALUES
			('T''1', '2026-11-21T10:00:01Z', 40.0, -74.0, 50, 90, 0, MAP{'tyre "1"': 3.0}),
			('T''1', '2026-11-21T10:00:02Z', 40.1, -74.1, 60, 9999, 16, MAP{'tyre "1"': 5.0}),
			('T''1', '2026-11-21T10:00:03Z', 0, 0, 70, NULL, 2, NULL),
			('T''1', '2026-11-21T10:30:00Z', 40.5, -74.5, NULL, 92, 0, NULL),
			('T2', '2026-11-21T10:00:01Z', 1, 1, 1, 1, 0, NULL)`,
	} {
		if _, err := db.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	return engine{db}
}

func span() Span {
	from := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	return Span{Vehicle: "T'1", From: from, To: from.Add(time.Hour), Points: 61}
}

func TestSeriesOverDuckDB(t *testing.T) {
	for _, typ := range []string{"TIMESTAMP", "TIMESTAMPTZ", "TIMESTAMP_MS"} {
		t.Run(typ, func(t *testing.T) {
			got, err := ReadSeries(t.Context(), open(t, typ), query.Limits{}, telemetry.NewCatalog(), span(),
				[]string{"speed", "engine_temp", `tyre "1"`, "absent"})
			if err != nil {
				t.Fatal(err)
			}
			want := []Signal{
				{"speed", "km/h", []Bucket{{0, 50, 60, 70, 3}}},
				{"engine_temp", "°C", []Bucket{{0, 90, 90, 90, 1}, {30, 92, 92, 92, 1}}}, // 9999 °C is nobody's engine
				{`tyre "1"`, "", []Bucket{{0, 3, 4, 5, 2}}},
				{"absent", "", []Bucket{}},
			}
			if d := cmp.Diff(want, got.Signals); d != "" {
				t.Errorf("signals (-want +got):\n%s", d)
			}
			if got.Step != 60_000 || got.Start != span().From.UnixMilli() {
				t.Errorf("step %d from %d, want 60000 from %d", got.Step, got.Start, span().From.UnixMilli())
			}
		})
	}
}

func TestTrailOverDuckDB(t *testing.T) {
	for _, typ := range []string{"TIMESTAMP", "TIMESTAMPTZ"} {
		got, err := ReadTrail(t.Context(), open(t, typ), query.Limits{}, span())
		if err != nil {
			t.Fatal(err)
		}
		from := float64(span().From.UnixMilli())
		want := []Place{{from + 1000, 40, -74, 50}, {from + 1_800_000, 40.5, -74.5, -1}} // null island is no place
		if d := cmp.Diff(want, got.Points); d != "" {
			t.Errorf("%s: trail (-want +got):\n%s", typ, d)
		}
	}
}

func TestBuckets(t *testing.T) {
	f := func(span time.Duration, points int, want time.Duration) {
		t.Helper()
		from := time.UnixMilli(1_795_219_201_234)
		s := Span{From: from, To: from.Add(span), Points: points}
		start, step := s.buckets()
		if step != want.Milliseconds() {
			t.Errorf("%v in %d points: step %v, want %v", span, points, time.Duration(step)*time.Millisecond, want)
		}
		if start > from.UnixMilli() || start%step != 0 {
			t.Errorf("%v in %d points: start %d is not aligned before %d", span, points, start, from.UnixMilli())
		}
		if n := (s.To.UnixMilli()-start)/step + 1; n > int64(points)+1 {
			t.Errorf("%v in %d points: %d buckets", span, points, n)
		}
	}
	f(time.Minute, 300, time.Second)
	f(time.Hour, 61, time.Minute)
	f(6*time.Hour, 300, 2*time.Minute)
	f(24*time.Hour, 300, 5*time.Minute)
	f(365*24*time.Hour, 100, 4*24*time.Hour)
}

// A signal's name is the device's: it reaches SQL as a parameter only.
func FuzzSeriesSQL(f *testing.F) {
	f.Add("speed")
	f.Add("x'] ; DROP TABLE readings; --")
	cat := telemetry.NewCatalog()
	f.Fuzz(func(t *testing.T, name string) {
		sql, args := seriesSQL(cat, span(), 0, 1, []string{name})
		if _, known := cat.Lookup([]byte(name)); known {
			return
		}
		plain, _ := seriesSQL(cat, span(), 0, 1, []string{"unheard of"})
		if sql != plain || args[len(args)-1] != name {
			t.Fatalf("name %q changed the query: %s", name, sql)
		}
		if strings.Count(sql, "$") < len(args) {
			t.Fatalf("query names fewer parameters than the %d it is given: %s", len(args), sql)
		}
	})
}
