//go:build cgo

package continuous

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/query"
	"github.com/milepost/milepost/query/duckdb"
)

// trips is a table of a row every ten seconds.
type trips struct{}

func (trips) Columns() []query.Column {
	return []query.Column{{Name: "event_time", Type: query.Timestamp}, {Name: "vehicle", Type: query.Varchar}, {Name: "speed", Type: query.Double}}
}

func (trips) Scan(_ context.Context, cols []int, emit func([]query.Value) error) error {
	for i := range 60 {
		all := []query.Value{query.Int(at("10:00:00").Add(time.Duration(i) * 10 * time.Second).UnixMilli()), query.Text(fmt.Sprint("T", i%2)), query.Float(float64(i))}
		row := make([]query.Value, len(cols))
		for k, c := range cols {
			row[k] = all[c]
		}
		if err := emit(row); err != nil {
			return err
		}
	}
	return nil
}

// The real engine understands the bounds, and its results become records.
func TestDuckDB(t *testing.T) {
	e, err := duckdb.Open(duckdb.Config{}, duckdb.Sources{Tables: map[string]query.Table{"trips": trips{}}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	store := open(t, vfs.NewCrashable())
	defer store.Close()
	s := spec()
	s.SQL = `SELECT vehicle AS vehicle_id, avg(speed) AS speed, max(event_time) AS last FROM trips
		WHERE event_time >= $start AND event_time < $end GROUP BY ALL ORDER BY 1`
	q, err := New(Config{Queries: []Spec{s}, Engine: e, Store: store, Output: output})
	if err != nil {
		t.Fatal(err)
	}
	for _, now := range []string{"10:01:40", "10:02:40"} {
		if _, err := q.all[0].step(t.Context(), at(now), false); err != nil {
			t.Fatal(err)
		}
	}
	es, _, err := store.Pending(t.Context(), "to out", 10)
	if err != nil || len(es) != 1 {
		t.Fatalf("%d effects, %v", len(es), err)
	}
	want := fmt.Sprintf("T0 {\"query\":\"q\",\"start\":%[1]d,\"end\":%[2]d,\"vehicle_id\":\"T0\",\"speed\":8,\"last\":\"2026-11-21T10:01:40Z\"}\nT1 {\"query\":\"q\",\"start\":%[1]d,\"end\":%[2]d,\"vehicle_id\":\"T1\",\"speed\":9,\"last\":\"2026-11-21T10:01:50Z\"}\n",
		at("10:01:00").UnixMilli(), at("10:02:00").UnixMilli())
	if diff := cmp.Diff(want, string(es[0].Data)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}
