package telemetry

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// The peers: the same payload into a struct and into a map.
type seedStruct struct {
	TruckID      string  `json:"truck_id"`
	TS           string  `json:"ts"`
	Lat          float64 `json:"lat"`
	Long         float64 `json:"long"`
	Speed        float64 `json:"speed"`
	Heading      float64 `json:"heading"`
	Fuel         float64 `json:"fuel"`
	EngineTemp   float64 `json:"engine_temp"`
	FuelPressure float64 `json:"fuel_pressure"`
	CargoTemp    float64 `json:"cargo_temp"`
	Status       string  `json:"status"`
}

func BenchmarkDecodeJSON(b *testing.B) {
	data := []byte(seed)
	b.Run("decoder", func(b *testing.B) {
		d, r := NewDecoder(NewCatalog()), Reading{Arrival: seedArrival}
		b.ReportAllocs()
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			r.Vehicle = ""
			if err := d.JSON(data, &r); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decoder learnt signals", func(b *testing.B) {
		d, r := NewDecoder(NewCatalog()), Reading{Arrival: seedArrival}
		data := []byte(strings.NewReplacer("engine_temp", "coolant_temp", "fuel_pressure", "oil_pressure", "cargo_temp", "trailer_temp").Replace(seed))
		b.ReportAllocs()
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			r.Vehicle = ""
			if err := d.JSON(data, &r); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("encoding json struct", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			var s seedStruct
			if err := json.Unmarshal(data, &s); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("encoding json map", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			var m map[string]any
			if err := json.Unmarshal(data, &m); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkSplit(b *testing.B) {
	f := func(name, open, between, end string) {
		body := []byte(open + strings.Repeat(seed+between, 499) + seed + end)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			n := 0
			for b.Loop() {
				if err := Split(body, func([]byte, int) bool { n++; return true }); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/reading")
		})
	}
	f("lines", "", "\n", "\n")
	f("array", "[", ",", "]")
}

func BenchmarkAppendJSON(b *testing.B) {
	cat, r := NewCatalog(), Reading{Arrival: seedArrival}
	if err := NewDecoder(cat).JSON([]byte(seed), &r); err != nil {
		b.Fatal(err)
	}
	b.Run("AppendJSON", func(b *testing.B) {
		b.ReportAllocs()
		var buf []byte
		for b.Loop() {
			buf = AppendJSON(buf[:0], cat, &r)
		}
	})
	b.Run("encoding json", func(b *testing.B) {
		s := seedStruct{"T100", "2026-11-21T02:15:03.120Z", 40.7128, -74.006, 63.2, 181, 55.1, 92.4, 44, 3.8, "moving"}
		b.ReportAllocs()
		var buf bytes.Buffer
		enc := json.NewEncoder(&buf)
		for b.Loop() {
			buf.Reset()
			if err := enc.Encode(&s); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkPayloadHash(b *testing.B) {
	cat, r := NewCatalog(), Reading{Arrival: seedArrival}
	if err := NewDecoder(cat).JSON([]byte(seed), &r); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		PayloadHash(cat, &r)
	}
}
