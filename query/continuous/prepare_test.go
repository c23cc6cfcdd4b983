//go:build cgo

package continuous

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/milepost/milepost/query"
	"github.com/milepost/milepost/query/duckdb"
)

// TestPrepare: what the engine says of a SELECT before it runs, at its place in the text as it was written: behind bounds, which are longer
// in the text that the engine sees, on long lines, of which it shows a part, and behind letters of two bytes.
func TestPrepare(t *testing.T) {
	e, err := duckdb.Open(duckdb.Config{}, duckdb.Sources{Tables: map[string]query.Table{"trips": trips{}}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	const between = " FROM trips WHERE event_time >= $start AND event_time < $end"
	f := func(sql, key, want string) {
		t.Helper()
		s := Spec{SQL: sql, Key: key}
		got := ""
		if err := s.Prepare(t.Context(), e); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s\ngot  %s\nwant %s", sql, got, want)
		}
	}
	f("SELECT vehicle, max(speed) AS top"+between+" GROUP BY ALL", "vehicle", "")
	f("WITH a AS (SELECT *"+between+")\nSELECT vehicle, row_number() OVER (ORDER BY speed) AS n FROM a", "", "")
	f("SELECT date_diff('second', $start, $end) AS s, time_bucket(INTERVAL 1 HOUR, event_time) AS h"+between, "", "")
	f("SELECT vehicle, spede"+between, "", `sql, line 1, column 17: Referenced column "spede" not found in FROM clause! Candidate bindings: "speed", "vehicle", "event_time"`)
	f("SELECT vehicle,\n\tavg(spede) AS s\n"+between, "", `sql, line 2, column 6: Referenced column "spede" not found in FROM clause! Candidate bindings: "speed", "vehicle", "event_time"`)
	f("SELECT vehicle"+between+" AND spede > 1", "", `sql, line 1, column 80: Referenced column "spede" not found in FROM clause! Candidate bindings: "speed", "vehicle", "event_time"`)
	f("SELECT vehicle FROM trips WHERE event_time >= $start AND\n event_time < $end AND AND speed > 1", "", `sql, line 2, column 24: syntax error at or near "AND"`)
	f("SELECT 'Größe' AS g, /* ü */\tspede"+between, "", `sql, line 1, column 33: Referenced column "spede" not found in FROM clause! Candidate bindings: "speed", "vehicle", "event_time"`)
	f("SELECT vehicle,"+between, "", "") // a comma too many is let pass
	f("SELECT "+strings.Repeat("speed + ", 40)+"spede AS x"+between, "", `sql, line 1, column 328: Referenced column "spede" not found in FROM clause! Candidate bindings: "speed", "vehicle", "event_time"`)
	f("SELECT vehicle"+strings.Replace(between, "trips", "tripz", 1), "", `sql: there is no table "tripz"; tables are trips`)
	f("SELECT nofun(speed) AS x"+between, "", `sql, line 1, column 8: Scalar Function with name nofun does not exist! Did you mean "count"?`)
	f("SELECT vehicle + 1 AS x"+between, "", `sql, line 1, column 16: No function matches the given name and argument types '+(VARCHAR, INTEGER_LITERAL)'. You might need to add explicit type casts.`)
	f("SELECT vehicle FROM trips WHERE event_time > $start AND $end < 5", "", `sql, line 1, column 62: Cannot compare values of type TIMESTAMP WITH TIME ZONE and type INTEGER_LITERAL - an explicit cast is required`)
	f("SELECT vehicle, max(speed) AS top"+between, "", `sql, line 1, column 8: column "vehicle" must appear in the GROUP BY clause or must be part of an aggregate function. Either add it to the GROUP BY list, or use "ANY_VALUE(vehicle)" if the exact value of "vehicle" is not important.`)
	f("DELETE"+between, "", "sql: only SELECT, EXPLAIN, DESCRIBE and SUMMARIZE are allowed: SQL reads, it changes nothing")
	f("SELECT vehicle"+between+"; SELECT 1", "", "sql: one statement at a time, please")
	f("SELECT vehicle, speed AS start"+between, "", "sql: two fields of a result are called start (query, start and end are there already): name one with AS")
	f("SELECT vehicle"+between, "id", "key: the SELECT has no column id")
	f("SELECT $begin", "", "sql, byte 7: there is no $begin: a window has $start and $end")
}

// A sick engine's answer is no verdict on the text.
func TestPrepareWithASickEngine(t *testing.T) {
	s := spec()
	for _, e := range []query.Engine{query.None{}, sick{}} {
		if err := s.Prepare(t.Context(), e); err == nil || !strings.HasPrefix(err.Error(), "look at sql: ") {
			t.Errorf("%T: %v", e, err)
		}
	}
}

type sick struct{ query.None }

func (sick) Query(context.Context, string, query.Format, query.Limits, io.Writer) (query.Result, error) {
	return query.Result{}, errors.New("disk")
}
