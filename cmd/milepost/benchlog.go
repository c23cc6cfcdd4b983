package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/stream/seglog"
)

// benchLog measures the log alone: 64 producers, 16 shards, records of 200 bytes, fsync before each acknowledgement.
func benchLog(ctx context.Context, b *benchRun) error {
	const producers, shards, size = 64, 16, 200
	for _, batch := range []int{500, 1} {
		store, err := seglog.Open(seglog.Config{Dir: filepath.Join(b.dir, fmt.Sprintf("log-%d", batch))})
		if err != nil {
			return err
		}
		log, err := store.Create(ctx, "bench", seglog.StreamConfig{Shards: shards})
		if err != nil {
			return err
		}
		cpu0, began := ownCPU(), time.Now()
		n, took, err := appendAll(ctx, log, producers, batch, size, b.seconds)
		elapsed, cpu := time.Since(began), ownCPU()-cpu0
		if err != nil {
			return err
		}
		goal := ""
		if batch == 500 {
			goal = "1,500,000"
		}
		b.add(fmt.Sprintf("records/s appended, batches of %d", batch), float64(n)/elapsed.Seconds(), "/s", goal)
		b.add(fmt.Sprintf("CPU per record appended, batches of %d", batch), float64(cpu.Nanoseconds())/float64(n)/1000, "µs", "")
		b.add(fmt.Sprintf("append p99, batches of %d", batch), ms(percentile(took, 0.99)), "ms", "")
		if batch == 500 {
			began = time.Now()
			read, err := readAll(ctx, log, n)
			if err != nil {
				return err
			}
			b.add("records/s read, one consumer", float64(read)/time.Since(began).Seconds(), "/s", "")
		}
		if err := store.Close(); err != nil {
			return err
		}
	}
	return nil
}

func appendAll(ctx context.Context, log stream.Log, producers, batch, size int, d time.Duration) (int, []time.Duration, error) {
	var n atomic.Int64
	var mu sync.Mutex
	var all []time.Duration
	var failed error
	var wg sync.WaitGroup
	end := time.Now().Add(d)
	for p := range producers {
		wg.Go(func() {
			recs := make([]stream.Record, batch)
			data := make([]byte, size)
			for i := range recs {
				recs[i] = stream.Record{Key: fmt.Sprintf("vehicle-%05d", p*batch+i), Data: data}
			}
			var took []time.Duration
			var err error
			for time.Now().Before(end) && err == nil {
				began := time.Now()
				err = log.Append(ctx, recs)
				took = append(took, time.Since(began))
				n.Add(int64(batch))
			}
			mu.Lock()
			defer mu.Unlock()
			all, failed = append(all, took...), errors.Join(failed, err)
		})
	}
	wg.Wait()
	return int(n.Load()), all, failed
}

func readAll(ctx context.Context, log stream.Log, want int) (int, error) {
	shards, err := log.Shards(ctx)
	if err != nil {
		return 0, err
	}
	tips, ok := log.(stream.Tipper)
	if !ok {
		return 0, errors.New("the log does not tell its tips")
	}
	n := 0
	for _, sh := range shards {
		tip, err := tips.Tip(ctx, sh.ID)
		if err != nil {
			return n, err
		}
		rd, err := log.Read(ctx, sh.ID, "")
		if err != nil {
			return n, err
		}
		for last := stream.Position(""); last < tip.Pos; {
			recs, err := rd.Next(ctx, 4096)
			if err != nil {
				return n, errors.Join(err, rd.Close())
			}
			n += len(recs)
			last = recs[len(recs)-1].Pos
		}
		if err := rd.Close(); err != nil {
			return n, err
		}
	}
	if n != want {
		return n, fmt.Errorf("read %d records, %d were acknowledged", n, want)
	}
	return n, nil
}
