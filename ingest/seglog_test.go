package ingest_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/stream/seglog"
	"github.com/milepost/milepost/telemetry"
)

// cpu returns the CPU time that the process has used, in nanoseconds.
func cpu(b *testing.B) int64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkAdmitDurable is admission into the segment log on disk: 64 producers, an fsync before each receipt.
func BenchmarkAdmitDurable(b *testing.B) {
	for _, batch := range []int{1, 500} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			store, err := seglog.Open(seglog.Config{Dir: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			defer store.Close()
			log, err := store.Ensure(b.Context(), "readings", seglog.StreamConfig{Shards: 16})
			if err != nil {
				b.Fatal(err)
			}
			dead, err := store.Ensure(b.Context(), "dead-letters", seglog.StreamConfig{})
			if err != nil {
				b.Fatal(err)
			}
			a, err := ingest.New(ingest.Config{Log: log, DeadLetters: dead, Catalog: telemetry.NewCatalog()})
			if err != nil {
				b.Fatal(err)
			}
			door := a.Door("bench")
			p := ingest.Payload{Data: readings(batch)}
			var bad atomic.Int64
			b.SetBytes(int64(len(p.Data)))
			b.ReportAllocs()
			before := cpu(b)
			b.SetParallelism(32)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				var r ingest.Receipt
				for pb.Next() {
					door.Admit(context.Background(), p, &r)
					bad.Add(int64(r.Readings - r.Accepted))
				}
			})
			b.StopTimer()
			if bad.Load() > 0 {
				b.Fatalf("%d readings were not stored", bad.Load())
			}
			n := float64(b.N * batch)
			b.ReportMetric(n/b.Elapsed().Seconds(), "readings/s")
			b.ReportMetric(float64(cpu(b)-before)/n, "cpu-ns/reading")
		})
	}
}
