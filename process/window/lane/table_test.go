//go:build cgo

package lane

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/query"
	"github.com/milepost/milepost/query/duckdb"
)

// SQL sees results as docs/windows.md says.
func TestTable(t *testing.T) {
	y := newYard(t, 1, window.Readings, map[string]string{"w": "count, avg(speed), last(status) by vehicle per 10s late 0s"})
	y.start()
	defer y.stop()
	base := time.Now().Add(-time.Hour).Truncate(10 * time.Second)
	for i, at := range []time.Duration{0, 4 * time.Second, 12 * time.Second, 2 * time.Second} {
		s := sent{"T1", "moving", base.Add(at).UnixMilli(), float64(i)}
		y.log.Put("T1", s.json())
		y.caughtUp()
	}
	e, err := duckdb.Open(duckdb.Config{}, duckdb.Sources{Tables: map[string]query.Table{"windows": &Table{y.store}}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	var got []string
	err = e.Rows(t.Context(), query.Limits{}, func(v []any) error {
		got = append(got, fmt.Sprint(v...))
		return nil
	}, `SELECT name, key, epoch_ms("end" - start), rows, round(figures['avg_speed'], 3), figures['count'], texts, final, late, revision FROM windows WHERE name = 'w' AND final`)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{fmt.Sprint("w", "T1", int64(10_000), int64(3), 1.333, 3.0, []any{"last_status=moving"}, true, true, int64(1))}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}
