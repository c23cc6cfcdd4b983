package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestQueriesAreLookedAt: check and serve refuse a SELECT that no window could run, at its place, and take one over every table.
func TestQueriesAreLookedAt(t *testing.T) {
	if !sqlBuilt() {
		t.Skip("SQL is not in this build")
	}
	dir := t.TempDir()
	milepost := func(command, queries string) (int, string) {
		t.Helper()
		file := filepath.Join(dir, "milepost.yaml")
		config := "data: " + filepath.Join(dir, "data") + "\nhttp: {listen: \"127.0.0.1:0\"}\nmqtt: {listen: \"\"}\nsignals: {tyre: {unit: bar}}\nstreams: {out: {}}\nqueries:\n" + queries
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		code := run(t.Context(), &env{strings.NewReader(""), &out, &out}, []string{command, "--config", file})
		return code, out.String()
	}
	bad := `
  hot:
    every: 1m
    output: out
    sql: |
      SELECT vehicle_id, max(engine_tmp) AS temp FROM readings
      WHERE event_time >= $start AND event_time < $end GROUP BY ALL
  none: {every: 1m, output: out, sql: "SELECT * FROM fleets WHERE $start < $end"}
  key: {every: 1m, output: out, key: id, sql: "SELECT vehicle_id FROM vehicles WHERE event_time BETWEEN $start AND $end"}
  bars: {every: 1m, output: out, sql: "SELECT signals + 1 AS x FROM readings WHERE event_time BETWEEN $start AND $end"}
`
	for _, command := range []string{"check", "serve"} {
		code, out := milepost(command, bad)
		if code == exitOK {
			t.Errorf("%s: it is taken", command)
		}
		for _, want := range []string{
			`queries.hot.sql, line 1, column 24: Referenced column "engine_tmp" not found in FROM clause!`,
			`queries.none.sql: there is no table "fleets"; tables are alerts, daily_kpis, readings, vehicles, windows`,
			"queries.key.key: the SELECT has no column id",
			"queries.bars.sql, line 1, column 16: No function matches",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("%s does not say %q:\n%s", command, want, out)
			}
		}
	}
	code, out := milepost("check", `
  all:
    every: 1m
    output: out
    key: vehicle_id
    sql: |
      SELECT r.vehicle_id, r.date, avg(r.speed) AS speed, avg(r.signals['tyre']) AS tyre, any_value(v.severity) AS severity,
        count(DISTINCT a.id) AS alerts, any_value(d.max_speed) AS day, sum(w.figures['count']) AS windows
      FROM readings r JOIN vehicles v USING (vehicle_id) LEFT JOIN alerts a USING (vehicle_id)
        LEFT JOIN daily_kpis d USING (vehicle_id) LEFT JOIN windows w ON w.key = r.vehicle_id
      WHERE r.event_time >= $start AND r.event_time < $end GROUP BY ALL
`)
	if code != exitOK {
		t.Errorf("check: %d\n%s", code, out)
	}
}
