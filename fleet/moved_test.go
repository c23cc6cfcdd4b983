package fleet

import (
	"testing"
	"time"
)

// TestMovedThroughLanes: a vehicle goes on moving on the map when its shard is split or merged, also if it had just moved.
func TestMovedThroughLanes(t *testing.T) {
	now := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	tp := &tape{}
	tp.add(now, "T1", `{"vehicle_id":"T1","ts":"2026-11-21T08:00:00Z","lat":40.1,"lon":-74,"speed":50}`)
	tp.add(now.Add(time.Second), "T1", `{"vehicle_id":"T1","ts":"2026-11-21T08:00:01Z","lat":40.2,"lon":-74,"speed":50}`)
	w := newWorld(t, tp)
	moved := func(want float64) {
		t.Helper()
		ps := w.fleet.Moved(nil)
		if len(ps) != 1 || ps[0].ID != "T1" || ps[0].Lat != want {
			t.Fatalf("moved: %+v, want T1 at %v", ps, want)
		}
	}
	w.fold("", 1)
	w.commit()
	w.lane.Close()
	w.lane = w.fleet.Lane("s", 0).(*lane) //nolint:errcheck // a Fleet makes no others
	moved(40.1)
	w.fold(w.at, 1)
	moved(40.2)
	if ps := w.fleet.Moved(nil); len(ps) != 0 {
		t.Fatalf("moved again: %+v", ps)
	}
}
