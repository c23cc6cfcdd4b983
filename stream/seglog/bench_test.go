package seglog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/milepost/milepost/stream"
)

// benchRecords are n records of 200 bytes with the keys of a fleet.
func benchRecords(n, from, keys int) []stream.Record {
	recs := make([]stream.Record, n)
	for i := range recs {
		key := fmt.Sprintf("truck-%06d", (from+i)%keys)
		recs[i] = stream.Record{Key: key, Data: make([]byte, 200-len(key))}
	}
	return recs
}

// BenchmarkAppend measures durable appends to the real disk: 64 producers, 16 shards, 200-byte records, 100,000 keys.
func BenchmarkAppend(b *testing.B) {
	for _, batch := range []int{1, 20, 500} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			st, err := Open(Config{Dir: b.TempDir(), TrimEvery: -1})
			if err != nil {
				b.Fatal(err)
			}
			defer st.Close()
			l, err := st.Create(b.Context(), "bench", StreamConfig{Shards: 16, RetentionBytes: 2 << 30})
			if err != nil {
				b.Fatal(err)
			}
			const producers = 64
			var left atomic.Int64
			var wg sync.WaitGroup
			begin := make(chan struct{})
			for p := range producers {
				recs := benchRecords(batch, p*7919, 100_000)
				wg.Go(func() {
					<-begin
					for left.Add(-1) >= 0 {
						if err := l.Append(context.Background(), recs); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			b.ReportAllocs()
			b.SetBytes(int64(200 * batch))
			left.Store(int64(b.N))
			b.ResetTimer()
			close(begin)
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)*float64(batch)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

// BenchmarkRead measures one consumer of one shard and of all shards, from the page cache.
func BenchmarkRead(b *testing.B) {
	st, err := Open(Config{Dir: b.TempDir(), TrimEvery: -1})
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	for _, batch := range []int{64, 500, 16_000} {
		l, err := st.Create(b.Context(), fmt.Sprint("bench", batch), StreamConfig{Shards: 16})
		if err != nil {
			b.Fatal(err)
		}
		const total = 1_000_000
		for n := 0; n < total; n += batch {
			if err := l.Append(b.Context(), benchRecords(batch, n, 100_000)); err != nil {
				b.Fatal(err)
			}
		}
		shards, err := l.Shards(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("group=%d", batch), func(b *testing.B) {
			b.ReportAllocs()
			n, i := 0, 0
			var r stream.Reader
			left := uint64(0)
			for b.Loop() {
				if left == 0 {
					if r != nil {
						mustClose(b, r)
					}
					id := shards[i%len(shards)].ID
					i++
					if r, err = l.Read(b.Context(), id, ""); err != nil {
						b.Fatal(err)
					}
					tip, _ := l.Tip(b.Context(), id)
					left = tip.Seq
				}
				recs, err := r.Next(b.Context(), 500)
				if err != nil && !errors.Is(err, io.EOF) {
					b.Fatal(err)
				}
				n += len(recs)
				left -= uint64(len(recs))
			}
			mustClose(b, r)
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
		})
	}
}
