package window

import (
	"fmt"
	"math"
	"runtime"
	"testing"
)

// One reading into a key that is known, in order, every half second.
func benchAdd(b *testing.B, line string) {
	x := newDesk(b, line)
	row := Row{Values: make([]Value, len(x.d.Columns))}
	for i := range row.Values {
		row.Values[i] = Value{Kind: Number, Num: 92.4}
	}
	at := int64(1_800_000_000_000)
	sink := nowhere{}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		at += 500
		row.Time, row.Hash = at, uint64(at)
		row.Values[0].Num = 80 + float64(at>>9&31)/2
		if _, err := x.d.Add(&x.k, &row, at, sink); err != nil {
			b.Fatal(err)
		}
		if n++; n%1000 == 0 {
			if err := x.d.Flush(&x.k, sink); err != nil {
				b.Fatal(err)
			}
		}
	}
}

type nowhere struct{}

func (nowhere) Pane(int64) ([]byte, error)            { return nil, nil }
func (nowhere) SetPane(int64, []byte) error           { return nil }
func (nowhere) DeletePanes(int64, int64, int64) error { return nil }
func (nowhere) Emit(*Result) error                    { return nil }

func BenchmarkAddTumbling(b *testing.B) { benchAdd(b, "avg(a), max(b) by vehicle per 5m") }
func BenchmarkAddHopping(b *testing.B)  { benchAdd(b, "avg(a), max(b) by vehicle per 5m every 1m") }
func BenchmarkAddSession(b *testing.B)  { benchAdd(b, "avg(a), max(b) by vehicle session 10m") }
func BenchmarkAddLast(b *testing.B)     { benchAdd(b, "last(a) by vehicle per 5m") }
func BenchmarkAddDistinct(b *testing.B) { benchAdd(b, "distinct(a) by vehicle per 5m") }
func BenchmarkAddP95(b *testing.B)      { benchAdd(b, "p95(a) by vehicle per 5m") }

// Keeps every row and tells a result for each: not a figure per row alone.
func BenchmarkAddSlidingByEvent(b *testing.B) {
	benchAdd(b, "avg(a), max(b) by vehicle sliding 1m late 1s retain 10s")
}

func BenchmarkSum(b *testing.B) {
	var s Sum
	for b.Loop() {
		s.Add(92.4)
	}
	if math.IsNaN(s.Float()) {
		b.Fatal()
	}
}

// What a million keys with an open window take, map and names included.
func BenchmarkMillionKeys(b *testing.B) {
	for _, line := range []string{"count by vehicle per 1m", "avg(a), max(b) by vehicle per 1m", "p95(a) by vehicle per 1m", "avg(a) by vehicle session 10m"} {
		b.Run(line, func(b *testing.B) {
			const keys = 1_000_000
			x := newDesk(b, line)
			for b.Loop() {
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				all := map[string]*Key{}
				row := Row{Values: make([]Value, len(x.d.Columns))}
				for i := range keys {
					k := x.d.NewKey()
					for j := range 6 { // a reading every ten seconds
						for c := range row.Values {
							row.Values[c] = Value{Kind: Number, Num: 85 + float64((i+j)%20)/2}
						}
						row.Time = 1_800_000_000_000 + int64(j)*9000
						if _, err := x.d.Add(&k, &row, row.Time, x); err != nil {
							b.Fatal(err)
						}
					}
					all[fmt.Sprintf("vehicle-%07d", i)] = &k
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/keys, "bytes/key")
				n := 0
				for _, k := range all {
					n += len(x.d.AppendKey(nil, k))
				}
				b.ReportMetric(float64(n)/keys, "stored-bytes/key")
				runtime.KeepAlive(all)
			}
		})
	}
}
