package archive

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// seedReading is DOMAIN's seed reading: six signals and a status.
func benchFleet(n int) []madeUp {
	rng := rand.New(rand.NewPCG(1, 1))
	fleet := make([]madeUp, n)
	for i := range fleet {
		fleet[i] = newMadeUp(i, rng)
		fleet[i].drive(testDay, rng)
	}
	return fleet
}

func benchArchive(b *testing.B) *Archive {
	b.Helper()
	dir := b.TempDir()
	store, err := openJournal(vfs.Disk, dir+"/state")
	if err != nil {
		b.Fatal(err)
	}
	a, err := Open(b.Context(), Config{
		Dir: dir + "/archive", Store: store, Catalog: telemetry.NewCatalog(), FlushAge: time.Hour, FlushRows: 1 << 40,
		MaxTailBytes: 1 << 40, Compaction: Compaction{Off: true},
	})
	if err != nil {
		b.Fatal(err)
	}
	return a
}

// BenchmarkAdd adds readings of 1,250 vehicles, a shard's share of 20,000, in batches of 500. Every 256k rows the tail is
// dropped as a flush would.
func BenchmarkAdd(b *testing.B) {
	a := benchArchive(b)
	defer a.Close(context.Background())
	fleet := benchFleet(1250)
	l := lane(b, a, "s")
	b.ReportAllocs()
	n, seq := 0, int64(1<<40)
	p := stream.Position(fmt.Sprint(seq))
	ctx := b.Context()
	for b.Loop() {
		if err := l.Add(ctx, p, &fleet[n%len(fleet)].r); err != nil {
			b.Fatal(err)
		}
		if n++; n%500 == 0 {
			l.Advance(p)
			seq++
			p = stream.Position(fmt.Sprint(seq))
		}
		if n%(256<<10) == 0 {
			a.mu.Lock()
			l.drop(l.take())
			a.mu.Unlock()
		}
	}
	l.drop(l.take())
}

// BenchmarkFlush writes 256k rows of 1,250 vehicles to disk, synced.
func BenchmarkFlush(b *testing.B) {
	const rows = 256 << 10
	rng := rand.New(rand.NewPCG(1, 1))
	b.ReportAllocs()
	bytes := int64(0)
	for b.Loop() {
		b.StopTimer()
		a := benchArchive(b)
		fleet := benchFleet(1250)
		l := lane(b, a, "s")
		for n := range rows {
			r := fleet[n%len(fleet)].drive(testDay+int64(n/len(fleet))*1000, rng)
			if err := l.Add(b.Context(), "1", r); err != nil {
				b.Fatal(err)
			}
		}
		l.Advance("1")
		b.StartTimer()
		if err := a.Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		bytes += a.Status().Bytes
		_ = a.Close(b.Context())
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/rows, "ns/row")
	b.ReportMetric(float64(bytes)/float64(b.N)/rows, "B/row")
}

// BenchmarkCompact merges eight objects of 64k rows of the same vehicles.
func BenchmarkCompact(b *testing.B) {
	const files, rows = 8, 64 << 10
	rng := rand.New(rand.NewPCG(1, 1))
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		a := benchArchive(b)
		fleet := benchFleet(1250)
		l := lane(b, a, "s")
		for f := range files {
			p := pos(f + 1)
			for n := range rows {
				r := fleet[n%len(fleet)].drive(testDay+int64(f*rows+n)/int64(len(fleet))*1000, rng)
				if err := l.Add(b.Context(), p, r); err != nil {
					b.Fatal(err)
				}
			}
			l.Advance(p)
			if err := a.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
		if n, err := a.Compact(b.Context(), time.Now().Add(time.Hour)); err != nil || n != files {
			b.Fatal(n, err)
		}
		b.StopTimer()
		_ = a.Close(b.Context())
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(files*rows), "ns/row")
}
