package process_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/processtest"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/stream/seglog"
)

// A counting folder does almost nothing, so that what is measured is the runner.
type counting struct{}

func (c *counting) Name() string                          { return "count" }
func (c *counting) Lane(stream.ShardID, int) process.Fold { return &countingFold{} }

type countingFold struct{ n uint64 }

func (c *countingFold) Fold(_ context.Context, _ state.Reader, recs []stream.Record) error {
	c.n += uint64(len(recs))
	return nil
}
func (c *countingFold) Tick(context.Context, state.Reader, time.Time, time.Time) error { return nil }
func (c *countingFold) Urgent() bool                                                   { return false }
func (c *countingFold) Flush(tx state.Tx) error {
	return tx.Set([]byte("count"), fmt.Append(nil, c.n))
}
func (c *countingFold) Reset() { c.n = 0 }
func (c *countingFold) Close() {}

func benchmark(b *testing.B, log stream.Log, lanes int, add func(*process.Runner, process.Options) error) {
	const n = 1_000_000
	recs := make([]stream.Record, 10_000)
	for i := range recs {
		recs[i] = stream.Record{Key: fmt.Sprintf("vehicle-%05d", i), Data: make([]byte, 200)}
	}
	for range n / len(recs) {
		if err := log.Append(b.Context(), recs); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		s, err := local.Open(local.Config{Dir: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		r, err := process.New(process.Config{Log: log, Store: s})
		if err == nil {
			err = add(r, process.Options{Lanes: lanes})
		}
		if err == nil {
			err = r.Start()
		}
		if err == nil {
			err = r.WaitCaughtUp(b.Context())
		}
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := r.Stop(b.Context()); err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "records/s")
}

func BenchmarkFolder(b *testing.B) {
	for _, lanes := range []int{1, 4} {
		b.Run(fmt.Sprintf("lanes %d", lanes), func(b *testing.B) {
			benchmark(b, processtest.NewLog(2), lanes, func(r *process.Runner, o process.Options) error { return r.AddFolder(&counting{}, o) })
		})
	}
}

func BenchmarkFolderDisk(b *testing.B) {
	logs, err := seglog.Open(seglog.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer logs.Close()
	log, err := logs.Ensure(b.Context(), "readings", seglog.StreamConfig{Shards: 2})
	if err != nil {
		b.Fatal(err)
	}
	benchmark(b, log, 1, func(r *process.Runner, o process.Options) error { return r.AddFolder(&counting{}, o) })
}

func BenchmarkFunction(b *testing.B) {
	for _, c := range []struct {
		name string
		f    func(tx state.Tx, recs []stream.Record) error
	}{
		{"does nothing", func(state.Tx, []stream.Record) error { return nil }},
		{"a Set a record", func(tx state.Tx, recs []stream.Record) error {
			for i := range recs {
				if err := tx.Set([]byte(recs[i].Key), recs[i].Data); err != nil {
					return err
				}
			}
			return nil
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			benchmark(b, processtest.NewLog(2), 1, func(r *process.Runner, o process.Options) error {
				return r.Add(function{"f", func(_ context.Context, tx state.Tx, recs []stream.Record) error { return c.f(tx, recs) }}, o)
			})
		})
	}
}
