package telemetry

import "testing"

func TestReserved(t *testing.T) {
	for name, want := range map[string]bool{"vehicle_id": true, "ts_s": true, "lng": true, "status": true, "speed": false, "tyre_fl": false, "": false} {
		if Reserved(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
}
