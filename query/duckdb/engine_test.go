//go:build cgo

package duckdb

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/milepost/milepost/archive"
	"github.com/milepost/milepost/query"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	dayMillis = int64(24 * 60 * 60 * 1000)
	testDay   = 20_000 * dayMillis // 2024-10-04
)

// fakeVehicles has a column of every type.
type fakeVehicles struct{ n int }

func (fakeVehicles) Columns() []query.Column {
	return []query.Column{
		{Name: "vehicle_id", Type: query.Varchar},
		{Name: "event_time", Type: query.Timestamp},
		{Name: "lat", Type: query.Double},
		{Name: "readings", Type: query.BigInt},
		{Name: "n", Type: query.Integer},
		{Name: "online", Type: query.Boolean},
		{Name: "since", Type: query.Date},
		{Name: "signals", Type: query.Map},
		{Name: "firing", Type: query.List},
	}
}

func (f fakeVehicles) Scan(_ context.Context, cols []int, emit func([]query.Value) error) error {
	row := make([]query.Value, len(cols))
	for i := range f.n {
		all := []query.Value{
			query.Text(fmt.Sprint("vehicle-number-", i)), query.Int(testDay + int64(i)), query.Float(float64(i) / 2), query.Int(int64(i)),
			query.Int(int64(-i)), query.Bool(i%2 == 0), query.Int(20_000),
			query.Pairs([]string{"speed", "a rather long signal name"}, []float64{float64(i), 1}), query.Texts([]string{"overspeed"}),
		}
		if i%3 == 1 {
			for c := 1; c < len(all); c++ {
				all[c] = query.Value{}
			}
		}
		for k, c := range cols {
			row[k] = all[c]
		}
		if err := emit(row); err != nil {
			return err
		}
	}
	return nil
}

type fixture struct {
	a *archive.Archive
	e *Engine
}

func newFixture(t testing.TB, change func(*Config, *archive.Config)) *fixture {
	t.Helper()
	dir := t.TempDir()
	store, err := local.Open(local.Config{Dir: dir + "/state"})
	if err != nil {
		t.Fatal(err)
	}
	ac := archive.Config{
		Dir: dir + "/archive", Store: store, Catalog: telemetry.NewCatalog(), FlushAge: time.Hour,
		Compaction: archive.Compaction{Every: time.Hour, FanIn: 3, Settle: time.Nanosecond},
	}
	qc := Config{Threads: 2, TempDir: dir + "/tmp"}
	if change != nil {
		change(&qc, &ac)
	}
	a, err := archive.Open(t.Context(), ac)
	if err != nil {
		t.Fatal(err)
	}
	e, err := Open(qc, Sources{Archive: a, Tables: map[string]query.Table{"vehicles": fakeVehicles{5000}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(e.Close(), a.Close(context.Background()), store.Close()); err != nil {
			t.Error(err)
		}
	})
	return &fixture{a, e}
}

func pos(n int) stream.Position { return stream.Position(fmt.Sprintf("%010d", n)) }

func (f *fixture) add(t testing.TB, shard string, from, to int) {
	t.Helper()
	l, err := f.a.Lane(t.Context(), stream.ShardID(shard))
	if err != nil {
		t.Fatal(err)
	}
	for n := from; n < to; n++ {
		r := &telemetry.Reading{
			Vehicle: fmt.Sprintf("truck-%03d", n%20), Time: testDay + int64(n)*1000, Arrival: testDay + int64(n)*1000 + 5,
			Lat: 40, Lon: -74, Status: "moving, and longer than twelve",
			Signals: []telemetry.Signal{{ID: telemetry.Speed, Value: float64(n % 90)}, {ID: telemetry.Odometer, Value: float64(n)}},
		}
		if n%10 == 3 {
			r.Flags, r.Status = telemetry.FlagNoPosition, ""
			id, _ := f.a.Catalog().Intern("tyre_pressure")
			r.Signals = append(r.Signals, telemetry.Signal{ID: id, Value: 2.5})
		}
		if err := l.Add(t.Context(), pos(n+1), r); err != nil {
			t.Fatal(err)
		}
	}
	l.Advance(pos(to))
}

// rows runs a query and returns its rows as JSON, one a line.
func (f *fixture) rows(t testing.TB, sql string, args ...any) string {
	t.Helper()
	var b strings.Builder
	err := f.e.Rows(t.Context(), query.Limits{}, func(vals []any) error {
		j, err := json.Marshal(vals)
		b.Write(append(j, '\n'))
		return err
	}, sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func (f *fixture) want(t testing.TB, sql, want string) {
	t.Helper()
	if got := f.rows(t, sql); got != want {
		t.Errorf("%s\ngot  %s\nwant %s", sql, got, want)
	}
}

// The same rows answer in the same way whether they are in the tail, in Parquet or in both.
func TestReadingsFromTailAndParquet(t *testing.T) {
	f := newFixture(t, nil)
	check := func(where string) {
		t.Helper()
		t.Log(where)
		f.want(t, "SELECT count(*), count(lat), count(status), count(signals), count(odometer), count(fuel), sum(odometer)::BIGINT FROM readings",
			"[3000,2700,2700,300,3000,0,4498500]")
		f.want(t, "SELECT vehicle_id, event_time, arrival_time, lat, speed, status, flags, signals, date FROM readings WHERE odometer IN (3, 4) ORDER BY 2",
			`["truck-003","2024-10-04T00:00:03Z","2024-10-04T00:00:03.005Z",null,3,null,1,{"tyre_pressure":2.5},"2024-10-04T00:00:00Z"]`+"\n"+
				`["truck-004","2024-10-04T00:00:04Z","2024-10-04T00:00:04.005Z",40,4,"moving, and longer than twelve",0,null,"2024-10-04T00:00:00Z"]`)
		f.want(t, "SELECT count(*) FROM readings WHERE date = DATE '2024-10-04' AND event_time < TIMESTAMPTZ '2024-10-04 00:01:00+00' AND signals['tyre_pressure'] > 2",
			"[6]")
		f.want(t, "SELECT count(*) FROM readings a JOIN readings b USING (odometer) WHERE a.vehicle_id = 'truck-001'", "[150]")
		f.want(t, "SELECT count(*) FROM readings WHERE date = DATE '2024-10-05'", "[0]")
	}
	f.add(t, "s", 0, 3000)
	check("tail")
	if err := f.a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("Parquet")
	g := newFixture(t, nil)
	f = g
	for n := 0; n < 2500; n += 500 {
		f.add(t, "s", n, n+500)
		if err := f.a.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	f.add(t, "s", 2500, 3000)
	check("both")
	if n, err := f.a.Compact(t.Context(), time.UnixMilli(testDay+3*dayMillis)); n == 0 || err != nil {
		t.Fatal(n, err)
	}
	check("compacted and tail")
}

func TestEmptyArchive(t *testing.T) {
	f := newFixture(t, nil)
	f.want(t, "SELECT count(*) FROM readings", "[0]")
	f.want(t, "SELECT max(date) FROM readings WHERE vehicle_id = 'x'", "[null]")
}

// A signal that no object knew before is there at once, and old rows have none.
func TestNewSignal(t *testing.T) {
	f := newFixture(t, nil)
	f.add(t, "s", 0, 3)
	if err := f.a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.add(t, "s", 3, 4)
	f.want(t, "SELECT odometer, signals['tyre_pressure'] FROM readings ORDER BY 1", "[0,null]\n[1,null]\n[2,null]\n[3,2.5]")
}

func TestTables(t *testing.T) {
	f := newFixture(t, nil)
	f.want(t, "SELECT count(*), sum(readings)::BIGINT, count(online), count(signals), max(since), sum(signals['speed']) FROM vehicles",
		`[5000,8330000,3333,3333,"2024-10-04T00:00:00Z",8330000]`)
	f.want(t, "SELECT * FROM vehicles WHERE vehicle_id IN ('vehicle-number-1', 'vehicle-number-2') ORDER BY 1",
		`["vehicle-number-1",null,null,null,null,null,null,null,null]`+"\n"+
			`["vehicle-number-2","2024-10-04T00:00:00.002Z",1,2,-2,true,"2024-10-04T00:00:00Z",{"a rather long signal name":1,"speed":2},["overspeed"]]`)
	// A query that stops early leaves no goroutine (TestMain), and another can follow.
	f.want(t, "SELECT count(*) FROM (SELECT * FROM vehicles LIMIT 3)", "[3]")
	f.want(t, "SELECT count(*) FROM vehicles a, vehicles b WHERE a.vehicle_id = b.vehicle_id", "[5000]")
}

func TestParameters(t *testing.T) {
	f := newFixture(t, nil)
	got := f.rows(t, "SELECT $1::VARCHAR, $2 + 1, $3, $4, $5::TIMESTAMPTZ, $6::VARCHAR", "it's", int64(41), 1.5, true, time.UnixMilli(testDay), nil)
	if want := `["it's",42,1.5,true,"2024-10-04T00:00:00Z",null]`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestExactlyOnceWhileEverythingMoves queries while a writer adds, flushes and compacts.
func TestExactlyOnceWhileEverythingMoves(t *testing.T) {
	f := newFixture(t, func(_ *Config, a *archive.Config) { a.FlushRows = 2000 })
	var added atomic.Int64
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; n < 30_000; n += 100 {
			f.add(t, "s", n, n+100)
			added.Store(int64(n + 100))
		}
		stop.Store(true)
	})
	wg.Go(func() {
		for !stop.Load() {
			if _, err := f.a.Compact(context.Background(), time.UnixMilli(testDay+3*dayMillis)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for done := false; !done; {
		done = stop.Load()
		before := added.Load()
		var got []any
		err := f.e.Rows(t.Context(), query.Limits{}, func(v []any) error {
			got = append([]any(nil), v...)
			return nil
		}, "SELECT count(*), count(DISTINCT odometer), coalesce(max(odometer), -1)::BIGINT + 1 FROM readings")
		if err != nil {
			t.Fatal(err)
		}
		if n, _ := got[0].(int64); n < before || got[1] != got[0] || got[2] != got[0] {
			t.Fatalf("saw %v (rows, distinct, last), acknowledged before the query: %d", got, before)
		}
	}
	wg.Wait()
	f.want(t, "SELECT count(*), count(DISTINCT odometer) FROM readings", "[30000,30000]")
}

func TestFormats(t *testing.T) {
	f := newFixture(t, nil)
	const sql = `SELECT 1 AS i, 9007199254740993 AS big, 170141183460469231731687303715884105727::HUGEINT AS huge, 12.340::DECIMAL(9,3) AS dec,
		-0.05::DECIMAL(3,2) AS neg, 'nan'::DOUBLE AS nan, '-inf'::DOUBLE AS inf, 0.1 + 0.2::DOUBLE AS f, NULL AS none, '' AS empty,
		'a"b,' || chr(10) || 'é' AS txt, DATE '2026-11-21' AS d, TIMESTAMPTZ '2026-11-21 02:15:03.12+00' AS tz, TIMESTAMP '2026-11-21 02:15:03' AS ts,
		MAP {'a': 1.5, 'b': NULL} AS m, [1, NULL, 3] AS l, {'x': 1, 'y': 'z'} AS s, INTERVAL '1 month 2 days 3.5 seconds' AS iv,
		TIME '12:34:56.5' AS tm, 'b'::ENUM('a', 'b') AS en, '6b2d3e0a-0000-4000-8000-000000000001'::UUID AS id, true AS ok, [1,2]::INT[2] AS arr`
	run := func(format query.Format) []byte {
		t.Helper()
		var b bytes.Buffer
		res, err := f.e.Query(t.Context(), sql, format, query.Limits{}, &b)
		if err != nil {
			t.Fatal(err)
		}
		if res.Rows != 1 || res.Truncated || len(res.Columns) != 23 {
			t.Errorf("Result = %+v", res)
		}
		return b.Bytes()
	}
	var got struct {
		Columns   []query.Column
		Rows      [][]json.RawMessage
		Truncated *bool
		Elapsed   *float64 `json:"elapsed_ms"`
	}
	if err := json.Unmarshal(run(query.JSON), &got); err != nil {
		t.Fatal(err)
	}
	if got.Truncated == nil || got.Elapsed == nil {
		t.Error("truncated or elapsed_ms is missing")
	}
	var text, types []string
	for i, v := range got.Rows[0] {
		text = append(text, string(v))
		types = append(types, got.Columns[i].Type)
	}
	want := []string{
		"1", `"9007199254740993"`, `"170141183460469231731687303715884105727"`, "12.340", "-0.05", `"NaN"`, `"-Infinity"`,
		"0.30000000000000004", "null", `""`, `"a\"b,\u000aé"`, `"2026-11-21"`, `"2026-11-21T02:15:03.12Z"`, `"2026-11-21T02:15:03"`,
		`{"a":1.5,"b":null}`, "[1,null,3]", `{"x":1,"y":"z"}`, `"P1M2DT3.5S"`, `"12:34:56.5"`, `"b"`, `"6b2d3e0a-0000-4000-8000-000000000001"`,
		"true", "[1,2]",
	}
	if d := cmp.Diff(want, text); d != "" {
		t.Errorf("JSON (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{
		"INTEGER", "BIGINT", "HUGEINT", "DECIMAL(9,3)", "DECIMAL(3,2)", "DOUBLE", "DOUBLE", "DOUBLE", "INTEGER", "VARCHAR", "VARCHAR", "DATE",
		"TIMESTAMP WITH TIME ZONE", "TIMESTAMP", "MAP(VARCHAR, DECIMAL(2,1))", "INTEGER[]", `STRUCT("x" INTEGER, "y" VARCHAR)`, "INTERVAL", "TIME",
		"ENUM", "UUID", "BOOLEAN", "INTEGER[2]",
	}, types); d != "" {
		t.Errorf("types (-want +got):\n%s", d)
	}

	lines, err := csv.NewReader(bytes.NewReader(run(query.CSV))).ReadAll()
	if err != nil || len(lines) != 2 {
		t.Fatalf("CSV of %d lines: %v", len(lines), err)
	}
	if lines[0][0] != "i" || lines[1][1] != "9007199254740993" || lines[1][5] != "NaN" || lines[1][10] != "a\"b,\né" || lines[1][14] != `{"a":1.5,"b":null}` {
		t.Errorf("CSV = %q", lines)
	}

	r, err := ipc.NewReader(bytes.NewReader(run(query.Arrow)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	if !r.Next() {
		t.Fatalf("Arrow: no record: %v", r.Err())
	}
	rec := r.RecordBatch()
	if rec.NumRows() != 1 || rec.NumCols() != 23 {
		t.Fatalf("Arrow: %d × %d", rec.NumRows(), rec.NumCols())
	}
	for col, want := range map[int]string{
		1: "9007199254740993", 3: "12.34", 5: "NaN", 8: "(null)", 12: "2026-11-21T02:15:03.12Z", 15: "[1,null,3]", 19: "b",
	} {
		if got := rec.Column(col).ValueStr(0); got != want {
			t.Errorf("Arrow column %d = %s, want %s", col, got, want)
		}
	}
	if _, err := f.e.Query(t.Context(), "SELECT 1", "xml", query.Limits{}, &bytes.Buffer{}); !isUser(err) {
		t.Errorf("format xml: %v", err)
	}
}

func isUser(err error) bool {
	var u *query.UserError
	return errors.As(err, &u)
}

func TestTruncation(t *testing.T) {
	f := newFixture(t, nil)
	for _, format := range []query.Format{query.JSON, query.CSV, query.Arrow} {
		var b bytes.Buffer
		res, err := f.e.Query(t.Context(), "SELECT * FROM range(1000000000)", format, query.Limits{Rows: 5000}, &b)
		if err != nil || res.Rows != 5000 || !res.Truncated {
			t.Errorf("%s: %+v, %v", format, res, err)
		}
		if format == query.CSV && strings.Count(b.String(), "\n") != 5001 {
			t.Errorf("CSV has %d lines", strings.Count(b.String(), "\n"))
		}
		if format == query.JSON && (!json.Valid(b.Bytes()) || !strings.Contains(b.String(), `"truncated":true`)) {
			t.Error("JSON is not valid or does not say truncated")
		}
	}
	if res, err := f.e.Query(t.Context(), "SELECT * FROM range(5000)", query.CSV, query.Limits{Rows: 5000}, &bytes.Buffer{}); err != nil || res.Truncated {
		t.Errorf("exactly the limit: %+v, %v", res, err)
	}
	if err := f.e.Rows(t.Context(), query.Limits{Rows: 3}, func([]any) error { return nil }, "SELECT * FROM range(4)"); !isUser(err) {
		t.Errorf("Rows beyond the limit: %v", err)
	}
}

func TestTimeLimitAndCancellation(t *testing.T) {
	f := newFixture(t, nil)
	const slow = "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE (a.range * b.range) % 7 = 3"
	_, err := f.e.Query(t.Context(), slow, query.JSON, query.Limits{Timeout: 100 * time.Millisecond}, &bytes.Buffer{})
	if !isUser(err) || !strings.Contains(err.Error(), "longer than 100ms") {
		t.Errorf("time limit: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := f.e.Query(ctx, slow, query.JSON, query.Limits{}, &bytes.Buffer{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	f.want(t, "SELECT 1", "[1]")
}

func TestMemoryLimit(t *testing.T) {
	f := newFixture(t, func(c *Config, _ *archive.Config) { c.MemoryLimit, c.TempDir = "50MB", "" })
	_, err := f.e.Query(t.Context(), "SELECT count(*) FROM (SELECT DISTINCT range, md5(range::VARCHAR) FROM range(20000000))", query.JSON, query.Limits{}, &bytes.Buffer{})
	if !isUser(err) || !strings.Contains(err.Error(), "needs more memory than 50MB") {
		t.Errorf("memory: %v", err)
	}
	f.want(t, "SELECT 1", "[1]")
}

// What the memory limit does not see is refused before it runs; each of these took gigabytes.
func TestGrowing(t *testing.T) {
	f := newFixture(t, nil)
	for _, sql := range []string{
		"SELECT length(repeat('x', 1500000000))", "SELECT REPEAT('x', 2)", "SELECT 'x'.repeat(1500000000)", "SELECT len(range(200000000))",
		"SELECT len(generate_series(1, 200000000))", "SELECT unnest(range(200000000))", "SELECT * FROM unnest(range(200000000))",
		"SELECT * FROM range(len(range(200000000)))", "SELECT len(list_resize([1], 200000000))", "SELECT length(bitstring('1', 1500000000))",
		"SELECT length(lpad('x', 1500000000, 'y'))", "SELECT rpad('x', 10 * 1000000, 'y')", "SELECT printf('%1000000000d', 1)",
		"SELECT printf('%*d', 1000000000, 1)", "SELECT format('{:1000000000d}', 1)", "SELECT format('{:{}d}', 1, 1000000000)",
		"SELECT printf('%' || '1000000000d', 1)", "SELECT printf('%.1000000000f', 1.0)",
		"SELECT list_transform([1, 2], x -> [1])", "SELECT [x || x FOR x IN ['a']]", "SELECT list_reduce(['a'], (x, y) -> x || y)",
		"SELECT 1 WHERE length(repeat('x', 1500000000)) > 1", "WITH t AS (SELECT len(range(200000000)) n) SELECT n FROM t",
	} {
		if _, err := f.e.Query(t.Context(), sql, query.JSON, query.Limits{}, &bytes.Buffer{}); !isUser(err) {
			t.Errorf("%q: %v", sql, err)
		}
	}
	f.want(t, "SELECT printf('%5.1f km/h', 3.14159) a, format('{:05d}', 42) b, lpad('7', 3, '0') c, bar(3, 0, 10, 10) IS NULL d",
		`["  3.1 km/h","00042","007",false]`)
	f.want(t, "SELECT count(*)::INT FROM range(1000), generate_series(1, 5)", "[5000]")
}

// When all places are taken the next query is told so at once.
func TestBusy(t *testing.T) {
	f := newFixture(t, func(c *Config, _ *archive.Config) { c.MaxConcurrent, c.MaxWaiting = 1, 1 })
	running, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		first := true
		err := f.e.Rows(t.Context(), query.Limits{}, func([]any) error {
			if first {
				first = false
				close(running)
				<-release
			}
			return nil
		}, "SELECT 1")
		if err != nil {
			t.Error(err)
		}
	})
	<-running
	wg.Go(func() {
		if err := f.e.Rows(t.Context(), query.Limits{}, func([]any) error { return nil }, "SELECT 2"); err != nil {
			t.Error(err)
		}
	})
	for f.e.places.Load() < 2 {
		select {
		case <-t.Context().Done():
			t.Fatal("the second query never waited")
		default:
		}
	}
	if err := f.e.Rows(t.Context(), query.Limits{}, func([]any) error { return nil }, "SELECT 3"); !errors.Is(err, query.ErrBusy) {
		t.Errorf("third query: %v", err)
	}
	close(release)
	wg.Wait()
}

// TestOnlyReads tries to get out. Each of these must be refused as the user's mistake, before anything runs.
func TestOnlyReads(t *testing.T) {
	f := newFixture(t, nil)
	f.add(t, "s", 0, 10)
	if err := f.a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	object := f.a.Files()[0].Path()
	secret := t.TempDir() + "/secret.csv"
	if err := os.WriteFile(secret, []byte("password\nhunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		"", ";", "-- nothing", "SELECT 1; SELECT 2", "SELECT 1; DROP VIEW readings", "selec 1", "SELECT 1\x00; DROP VIEW readings",
		"INSERT INTO readings VALUES (1)", "UPDATE readings SET speed = 1", "DELETE FROM readings", "DROP VIEW readings",
		"CREATE TABLE t AS SELECT 1", "CREATE TEMP VIEW x AS SELECT 1", "CREATE MACRO m() AS 1", "ALTER TABLE readings ADD x INT",
		"COPY readings TO '/tmp/x.csv'", "COPY (SELECT 1) TO '/tmp/x'", "EXPORT DATABASE '/tmp/x'", "IMPORT DATABASE '/tmp/x'",
		"ATTACH '/tmp/x.db'", "DETACH memory", "USE memory", "INSTALL httpfs", "LOAD httpfs", "FORCE INSTALL json",
		"PRAGMA database_list", "PRAGMA memory_limit='100GB'", "SET threads = 64", "SET GLOBAL memory_limit = '100GB'", "RESET threads",
		"CALL duckdb_settings()", "CHECKPOINT", "VACUUM", "BEGIN", "PREPARE p AS SELECT 1", "EXECUTE p", "SET VARIABLE x = 1",
		"EXPLAIN DROP VIEW readings", "EXPLAIN ANALYZE COPY readings TO '/tmp/x'", "EXPLAIN EXPLAIN SELECT 1", "EXPLAIN SELECT 1; DROP VIEW readings",
		"SHOW TABLES", "SHOW ALL TABLES", "SHOW DATABASES", "DESCRIBE", "DESCRIBE '" + secret + "'", "SUMMARIZE '" + secret + "'",
		"SELECT * FROM '" + secret + "'", `SELECT * FROM "` + secret + `"`, "FROM '" + secret + "'", "FROM '/etc/passwd'",
		"SELECT * FROM read_csv('" + secret + "')", "SELECT * FROM read_csv_auto('" + secret + "')", "SELECT * FROM read_text('/etc/passwd')",
		"SELECT * FROM read_blob('/etc/passwd')", "SELECT * FROM read_json('/etc/passwd')", "SELECT * FROM read_parquet('" + object + "')",
		"SELECT * FROM parquet_scan('" + object + "')", "SELECT * FROM '" + object + "'", "SELECT * FROM parquet_metadata('" + object + "')",
		"SELECT * FROM glob('/*')", "SELECT * FROM sniff_csv('" + secret + "')", "SELECT * FROM system.main.read_text('/etc/passwd')",
		`SELECT * FROM "read_text"('/etc/passwd')`, "SELECT * FROM READ_TEXT('/etc/passwd')",
		"SELECT * FROM milepost_rows(1)", "SELECT * FROM query('SELECT 1')", "SELECT * FROM query_table('readings')",
		"SELECT * FROM duckdb_settings()", "SELECT * FROM duckdb_secrets()", "SELECT * FROM duckdb_functions()", "SELECT * FROM duckdb_views",
		"SELECT * FROM pragma_version()", "SELECT * FROM information_schema.tables", "SELECT * FROM sqlite_master", "SELECT * FROM pg_catalog.pg_class",
		"SELECT * FROM json_execute_serialized_sql('{}')", "SELECT * FROM seq_scan('x')", "SELECT * FROM main.readings", "SELECT * FROM temp.readings",
		"SELECT getenv('HOME')", "SELECT GETENV('HOME')", `SELECT "getenv"('HOME')`, "SELECT system.main.getenv('HOME')", "SELECT current_setting('temp_directory')",
		"SELECT getvariable('x')", "SELECT current_query()", "SELECT write_log('x')", "SELECT nextval('s')", "SELECT sleep_ms(100000)",
		"SELECT 1 WHERE getenv('HOME') LIKE '/%'", "SELECT list_transform([1], x -> getenv('HOME'))", "SELECT [getenv(x) FOR x IN ['HOME']]",
		"SELECT (SELECT getenv('HOME'))", "SELECT 1 ORDER BY getenv('HOME')", "SELECT 1 LIMIT (SELECT length(getenv('HOME')))",
		"SELECT * FROM (VALUES (getenv('HOME')))", "SELECT sum(1) FILTER (WHERE getenv('HOME') = '') FROM readings",
		"SELECT first(1) OVER (ORDER BY getenv('HOME')) FROM readings", "SELECT 'HOME'.getenv()",
		`WITH "/etc/passwd.csv" AS (SELECT 1) SELECT * FROM "/etc/passwd.csv"`,
		`SELECT * FROM (WITH "` + secret + `" AS (SELECT 1) SELECT 1), "` + secret + `"`,
		"SELECT * FROM (WITH duckdb_views AS (SELECT 1) SELECT * FROM duckdb_views), duckdb_views",
		"SELECT * FROM (WITH columns AS (SELECT 1) SELECT * FROM columns)",
		"WITH t AS (SELECT * FROM read_text('/etc/passwd')) SELECT * FROM t", "WITH RECURSIVE t AS (SELECT 1 UNION ALL SELECT * FROM glob('/*')) SELECT * FROM t",
		"SELECT * FROM readings WHERE vehicle_id IN (SELECT content FROM read_text('/etc/passwd'))",
		"SELECT * FROM readings, LATERAL (SELECT * FROM read_text(vehicle_id))", "SELECT * FROM nothing", "SELECT 1 FROM a.b.c",
		"SELECT * FROM 'https://example.com/x.parquet'", "SELECT * FROM 's3://bucket/x'", "PIVOT (FROM glob('/*')) ON file",
	} {
		var b bytes.Buffer
		_, err := f.e.Query(t.Context(), sql, query.JSON, query.Limits{}, &b)
		if !isUser(err) {
			t.Errorf("%q: %v; wrote %q", sql, err, b.String())
			continue
		}
		if b.Len() > 0 || !strings.Contains(sql, f.a.Root()) && strings.Contains(err.Error(), f.a.Root()) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: error %q, wrote %q", sql, err, b.String())
		}
	}
}

// Behind the check stands DuckDB's own configuration: what slipped through would still not get out.
func TestSecondWall(t *testing.T) {
	f := newFixture(t, nil)
	secret := t.TempDir() + "/secret.csv"
	if err := os.WriteFile(secret, []byte("password\nhunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := <-f.e.conns
	defer func() { f.e.conns <- c }()
	for _, sql := range []string{
		"SELECT * FROM read_csv('" + secret + "')", "SELECT * FROM read_text('/etc/passwd')", "SELECT * FROM glob('/etc/*')",
		"COPY (SELECT 1) TO '" + secret + "2'", "ATTACH '" + secret + ".db'", "SET enable_external_access = true", "SET threads = 64",
		"SET lock_configuration = false", "SET allowed_directories = ['/']", "INSTALL httpfs", "LOAD httpfs", "SET memory_limit = '100GB'",
		"SELECT * FROM read_csv('" + f.e.root + "/../secret.csv')",
	} {
		if err := c.exec(sql); err == nil {
			t.Errorf("%s is possible", sql)
		}
	}
}

func TestAllowed(t *testing.T) {
	f := newFixture(t, nil)
	f.add(t, "s", 0, 100)
	for _, sql := range []string{
		"SELECT 1", "SELECT * FROM readings;", "FROM readings LIMIT 3", "select * from READINGS", `SELECT * FROM "readings" r`,
		"WITH last AS (SELECT vehicle_id, max(event_time) t FROM readings GROUP BY ALL) SELECT * FROM last JOIN readings USING (vehicle_id)",
		"WITH readings AS (SELECT 1 AS x) SELECT x FROM readings",
		"WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 10) SELECT sum(n) FROM t",
		"EXPLAIN SELECT * FROM readings", "EXPLAIN ANALYZE SELECT count(*) FROM vehicles", "DESCRIBE readings", "SUMMARIZE readings", "SHOW readings",
		"DESCRIBE SELECT 1 AS x", "SELECT * FROM range(3), generate_series(1, 2), unnest([1, 2])", "SELECT unnest(map_keys(signals)) FROM readings",
		"SELECT date_trunc('hour', event_time) h, avg(speed) FROM readings WHERE event_time >= now() - INTERVAL 1 YEAR GROUP BY h ORDER BY h",
		"SELECT *, row_number() OVER (PARTITION BY vehicle_id ORDER BY event_time DESC) n FROM readings QUALIFY n = 1",
		"SELECT vehicle_id FROM readings UNION SELECT vehicle_id FROM vehicles", "SELECT * FROM (VALUES (1), (2)) t(x)",
		"SELECT event_time - lag(event_time) OVER (ORDER BY event_time) FROM readings", "SELECT typeof(signals), today(), version() FROM readings",
		"SELECT max(event_time)::DATE, strftime(max(event_time), '%H:%M'), epoch_ms(max(event_time)) FROM readings",
		"SELECT avg(speed) FILTER (speed > 3), quantile_cont(speed, 0.5), approx_count_distinct(vehicle_id) FROM readings",
	} {
		if _, err := f.e.Query(t.Context(), sql, query.JSON, query.Limits{}, &bytes.Buffer{}); err != nil {
			t.Errorf("%q: %v", sql, err)
		}
	}
}

func TestErrorsHelp(t *testing.T) {
	f := newFixture(t, nil)
	g := func(sql, want string) {
		t.Helper()
		_, err := f.e.Query(t.Context(), sql, query.JSON, query.Limits{}, &bytes.Buffer{})
		if !isUser(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", sql, err, want)
		}
	}
	g("SELECT\n  nonsense FROM", "line 2")
	g("SELECT spede FROM readings", `"speed"`)
	g("SELECT * FROM trucks", "tables are readings, vehicles")
	g("SELECT 'x'::INT", "Could not convert")
	g("DROP VIEW readings", "only SELECT")
	g("SELECT '1'::BIT", "cast it")
}

// Mixed in one number, what no format may lose.
func TestTailKeepsExactValues(t *testing.T) {
	f := newFixture(t, nil)
	l, err := f.a.Lane(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("é", 100)
	for i, v := range []string{"", "a", "twelve bytes", "thirteen bytes", long, "bad\xff"} {
		r := &telemetry.Reading{Vehicle: v, Time: testDay + int64(i), Lat: math.MaxFloat64, Lon: math.SmallestNonzeroFloat64}
		if err := l.Add(t.Context(), pos(i+1), r); err != nil {
			t.Fatal(err)
		}
	}
	l.Advance(pos(6))
	want := strings.Join([]string{`[""]`, `["a"]`, `["twelve bytes"]`, `["thirteen bytes"]`, `["` + long + `"]`, `["bad` + "\uFFFD" + `"]`}, "\n")
	f.want(t, "SELECT vehicle_id FROM readings ORDER BY event_time", want)
	if err := f.a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.want(t, "SELECT vehicle_id FROM readings ORDER BY event_time", want)
	f.want(t, "SELECT count(*) FROM readings WHERE lat = 1.7976931348623157e308 AND lon = 5e-324", "[6]")
}

// FuzzCheck: whatever the text is, checking it ends with known tables or a user's mistake.
func FuzzCheck(f *testing.F) {
	for _, sql := range []string{
		"SELECT 1", "FROM readings", "WITH x AS (SELECT 1) SELECT * FROM x", "EXPLAIN SELECT 1", "SELECT getenv('x')", "a;b", "SELECT '\xff'",
	} {
		f.Add(sql)
	}
	fix := newFixture(f, nil)
	f.Fuzz(func(t *testing.T, sql string) {
		c := <-fix.e.conns
		defer func() { fix.e.conns <- c }()
		names, err := fix.e.check(context.Background(), c, sql)
		var d *duckError
		if err != nil && !isUser(err) && !errors.As(err, &d) {
			t.Fatalf("%q: %v", sql, err)
		}
		for _, n := range names {
			if n != readings && n != "vehicles" {
				t.Fatalf("%q reads %q", sql, n)
			}
		}
	})
}
