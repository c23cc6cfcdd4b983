package telemetry

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"
)

func TestAppendJSON(t *testing.T) {
	cat := NewCatalog()
	f := func(in, want string) {
		t.Helper()
		r := Reading{Arrival: seedArrival}
		if err := NewDecoder(cat).JSON([]byte(in), &r); err != nil {
			t.Fatal(err)
		}
		if got := string(AppendJSON(nil, cat, &r)); got != want {
			t.Errorf("%s\n got %s\nwant %s", in, got, want)
		}
	}
	f(seed, `{"vehicle_id":"T100","ts":"2026-11-21T02:15:03.120Z","lat":40.7128,"lon":-74.006,"speed":63.2,"heading":181,"fuel":55.1,"engine_temp":92.4,"fuel_pressure":44,"cargo_temp":3.8,"status":"moving"}`)
	f(`{"vehicle_id":"a","status":"\"\\\u0001é"}`, `{"vehicle_id":"a","status":"\"\\\u0001é"}`)
	f(`{"vehicle_id":"a","x\"":1e-7}`, `{"vehicle_id":"a","x\"":1e-07}`)
}

// The canonical float reads back bit for bit and is what strconv would write, give or take its exponent form.
func TestAppendFloat(t *testing.T) {
	f := func(v float64) {
		t.Helper()
		s := string(AppendFloat(nil, v))
		if got, err := strconv.ParseFloat(s, 64); err != nil || math.Float64bits(got) != math.Float64bits(v) {
			t.Errorf("%x written as %s reads as %v (%v)", v, s, got, err)
		}
		if got, next, err := scanNumber([]byte(s), 0); err != nil || next != len(s) || math.Float64bits(got) != math.Float64bits(v) {
			t.Errorf("%x written as %s scans as %v (%v)", v, s, got, err)
		}
		if !json.Valid([]byte(s)) {
			t.Errorf("%x written as %s is not JSON", v, s)
		}
		if a := math.Abs(v); a == 0 || (a >= 1e-6 && a < 1e21) {
			if want := strconv.FormatFloat(v, 'f', -1, 64); s != want {
				t.Errorf("got %s, want %s", s, want)
			}
		}
	}
	for _, v := range []float64{
		0, math.Copysign(0, -1), 1, -1, 0.1, -0.1, 1e-6, 1e-7, 0.000001234, 40.7128, -74.006, 1e15, 9007199254.740992,
		9007199254.740993, 1 << 53, 1e20, 1e21, math.MaxFloat64, math.SmallestNonzeroFloat64, math.Pi, 1.0 / 3,
	} {
		f(v)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200_000 {
		f(math.Round(rng.Float64()*1e9) / 1e6)
		f(rng.NormFloat64() * math.Pow(10, float64(rng.IntN(40)-20)))
		if v := math.Float64frombits(rng.Uint64()); !math.IsNaN(v) && !math.IsInf(v, 0) {
			f(v)
		}
	}
}

func TestTimes(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	lowest, highest := time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli(), time.Date(9999, 12, 31, 23, 59, 59, 999e6, time.UTC).UnixMilli()
	for i := range 200_000 {
		ms := lowest + rng.Int64N(highest-lowest+1)
		switch i {
		case 0:
			ms = lowest
		case 1:
			ms = highest
		case 2:
			ms = time.Date(2000, 2, 29, 23, 59, 59, 999e6, time.UTC).UnixMilli()
		}
		want := time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z")
		got := string(AppendTime(nil, ms))
		if got != want {
			t.Fatalf("%d: got %s, want %s", ms, got, want)
		}
		if back, ok := parseTime(got); !ok || back != ms {
			t.Fatalf("%s parses as %d, want %d", got, back, ms)
		}
	}
	f := func(s string) {
		t.Helper()
		got, ok := parseTime(s)
		if want, err := plainTime(s); ok != (err == nil) || (ok && got != want) {
			t.Errorf("%s: got %d %v, want %d %v", s, got, ok, want, err)
		}
	}
	for _, s := range []string{
		"2024-02-29T00:00:00Z", "2023-02-29T00:00:00Z", "2100-02-29T00:00:00Z", "2000-02-29T00:00:00z", "2024-04-31T00:00:00Z", "2024-13-01T00:00:00Z",
		"2024-00-01T00:00:00Z", "2024-01-00T00:00:00Z", "2024-01-01T24:00:00Z", "2024-01-01T23:60:00Z", "2024-01-01T23:59:60Z", "2024-01-01 23:59:59.9999Z",
		"2024-01-01T23:59:59.Z", "2024-01-01T23:59:59,5Z", "2024-01-01T23:59:59", "2024-01-01T23:59:59.5", "2024-01-01T23:59:59+0100", "2024-01-01T23:59:59+01:00",
		"2024-01-01T23:59:59-23:59", "2024-01-01T23:59:59+24:00", "2024-01-01T23:59:59+00:60", "2024-01-01T23:59:59ZZ", "2024-1-01T23:59:59Z", "+024-01-01T23:59:59Z",
		"2024-01-01T23:59:5 Z", "2024-01-01T23:59:59.12345678901234567890Z", "0000-01-01T00:00:00", "",
	} {
		f(s)
	}
}
