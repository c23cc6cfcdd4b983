package telemetry

import (
	"slices"
	"testing"
)

// These values are stored in every data directory: they never change (P6).
func TestPayloadHashGolden(t *testing.T) {
	f := func(payload string, want uint64) {
		t.Helper()
		cat := NewCatalog()
		r := Reading{Arrival: seedArrival}
		if err := NewDecoder(cat).JSON([]byte(payload), &r); err != nil {
			t.Fatal(err)
		}
		if got := PayloadHash(cat, &r); got != want {
			t.Errorf("%s: got %#x, want %#x", payload, got, want)
		}
	}
	f(`{"vehicle_id":"a"}`, 0xc293683989c114bc)
	f(`{"vehicle_id":"a","lat":1,"lon":2}`, 0x43e3a931e8557c8)
	f(`{"vehicle_id":"a","speed":0}`, 0x1c2b7268af308bcd)
	f(`{"vehicle_id":"a","status":"moving"}`, 0x7ecd34ad21978b51)
	f(seed, 0xddc8d659cd7d5c25)
}

func TestPayloadHash(t *testing.T) {
	hash := func(payload string) uint64 {
		t.Helper()
		cat := NewCatalog(Def{Name: "first"}) // shifts the IDs of learnt names
		r := Reading{Arrival: seedArrival}
		if err := NewDecoder(cat).JSON([]byte(payload), &r); err != nil {
			t.Fatal(err)
		}
		return PayloadHash(cat, &r)
	}
	same := func(a, b string) {
		t.Helper()
		if hash(a) != hash(b) {
			t.Errorf("differ:\n%s\n%s", a, b)
		}
	}
	differ := func(a, b string) {
		t.Helper()
		if hash(a) == hash(b) {
			t.Errorf("equal:\n%s\n%s", a, b)
		}
	}
	same(`{"vehicle_id":"a","speed":1,"x":2,"y":3,"lat":4,"lon":5}`, `{"lon":5.0,"lat":4,"y":3,"x":2e0,"speed":1,"truck_id":"b","ts":1795227303000}`)
	differ(`{"vehicle_id":"a","x":1,"y":2}`, `{"vehicle_id":"a","x":2,"y":1}`)
	differ(`{"vehicle_id":"a","x":1}`, `{"vehicle_id":"a","x":1,"y":0}`)
	differ(`{"vehicle_id":"a","lat":1,"lon":2}`, `{"vehicle_id":"a","lat":2,"lon":1}`)
	differ(`{"vehicle_id":"a","lat":0,"lon":0}`, `{"vehicle_id":"a"}`)
	differ(`{"vehicle_id":"a","status":"x"}`, `{"vehicle_id":"a","status":"y"}`)
	differ(`{"vehicle_id":"a","speed":1}`, `{"vehicle_id":"a","rpm":1}`)
}

// Readings of a parked fleet differ in a digit or two: their hashes must not meet.
func TestPayloadHashSpreads(t *testing.T) {
	cat := NewCatalog()
	var all []uint64
	for a := range 100 {
		for b := range 100 {
			for c := range 20 {
				r := Reading{Lat: 50 + float64(a)/1e6, Lon: 10, Signals: []Signal{{Fuel, float64(b) / 10}, {EngineTemp, float64(c)}}}
				all = append(all, PayloadHash(cat, &r))
			}
		}
	}
	slices.Sort(all)
	if n := len(slices.Compact(slices.Clone(all))); n != len(all) {
		t.Errorf("%d collisions among %d", len(all)-n, len(all))
	}
	var low [256]int // the low byte, too, is spread evenly: tables index with it
	for _, h := range all {
		low[byte(h)]++
	}
	for b, n := range low {
		if want := len(all) / 256; n < want*4/5 || n > want*6/5 {
			t.Errorf("%d hashes end in %#x, want about %d", n, b, want)
		}
	}
}
