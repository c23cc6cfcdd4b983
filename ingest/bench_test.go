package ingest_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/milepost/milepost/ingest"
)

// readings returns n seed readings of as many vehicles, one a line.
func readings(n int) []byte {
	var b bytes.Buffer
	for i := range n {
		b.WriteString(seed[:len(`{"truck_id":"T`)])
		fmt.Fprintf(&b, "%d", 100+i)
		b.WriteString(seed[len(`{"truck_id":"T100`):])
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// BenchmarkAdmit is what admission costs besides the log: find the lines, decode, judge, account.
func BenchmarkAdmit(b *testing.B) {
	for _, bench := range []struct {
		name   string
		batch  int
		limits ingest.Limits
	}{
		{"batch=1", 1, ingest.Limits{}},
		{"batch=500", 500, ingest.Limits{}},
		{"batch=500/rate", 500, ingest.Limits{RatePerDevice: 1e9, BurstPerDevice: 1e9}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			w := newWorld(b, bench.limits)
			w.log.Null = true
			p := ingest.Payload{Data: readings(bench.batch)}
			ctx := context.Background()
			b.ReportAllocs()
			b.SetBytes(int64(len(p.Data)))
			for b.Loop() {
				if w.door.Admit(ctx, p, &w.receipt); w.receipt.Accepted != bench.batch {
					b.Fatalf("receipt %+v", w.receipt)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*bench.batch), "ns/reading")
		})
	}
}
