package process_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/processtest"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/stream/seglog"
)

// A bare handler notes nothing.
type bare struct {
	f func(*process.Invocation) (process.Result, error)
}

func (h *bare) Name() string { return "bench" }
func (h *bare) Handle(_ context.Context, in *process.Invocation) (process.Result, error) {
	return h.f(in)
}

// One that does nothing shows what the mapping costs; one that reads each record's value and sums it by key is what a built-in
// function does at least.
func BenchmarkHandler(b *testing.B) {
	nothing := &bare{func(*process.Invocation) (process.Result, error) { return process.Result{}, nil }}
	for _, c := range []struct {
		name string
		o    process.Options
	}{
		{"does nothing", process.Options{}},
		{"does nothing, batches of 100", process.Options{BatchSize: 100}},
		{"does nothing, filter", process.Options{Filter: func(r *stream.Record) bool { return r.Key[len(r.Key)-1] != '0' }}},
		{"does nothing, stable batches", process.Options{StableBatches: true}},
		{"does nothing, 10 lanes", process.Options{Lanes: 10}},
	} {
		b.Run(c.name, func(b *testing.B) {
			benchmark(b, processtest.NewLog(2), 1, func(r *process.Runner, _ process.Options) error { return r.AddHandler(nothing, c.o) })
		})
	}
	b.Run("sums by key", func(b *testing.B) {
		benchmark(b, processtest.NewLog(2), 1, func(r *process.Runner, o process.Options) error {
			var mu sync.Mutex
			sums := map[string]float64{}
			return r.AddHandler(&bare{func(in *process.Invocation) (process.Result, error) {
				mu.Lock()
				defer mu.Unlock()
				for i := range in.Records {
					rec := &in.Records[i]
					v, _ := strconv.ParseFloat(string(bytes.TrimRight(rec.Data[:8], "\x00")), 64)
					if _, ok := sums[rec.Key]; !ok {
						sums[string([]byte(rec.Key))] = 0
					}
					sums[rec.Key] += v
				}
				return process.Result{}, nil
			}}, o)
		})
	})
	b.Run("output of each record", func(b *testing.B) {
		const n = 100_000
		log := processtest.NewLog(2)
		recs := make([]stream.Record, n)
		for i := range recs {
			recs[i] = stream.Record{Key: fmt.Sprintf("vehicle-%05d", i%10_000), Data: make([]byte, 200)}
		}
		if err := log.Append(b.Context(), recs); err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			out := processtest.NewLog(2)
			s, err := local.Open(local.Config{Dir: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			r, err := process.New(process.Config{Log: log, Store: s, Streams: to(map[string]stream.Log{"out": out})})
			if err == nil {
				err = r.AddHandler(&bare{func(in *process.Invocation) (process.Result, error) {
					return process.Result{Output: in.Records}, nil
				}}, process.Options{Output: "out"})
			}
			if err == nil {
				err = r.Start()
			}
			if err == nil {
				err = r.WaitCaughtUp(b.Context())
			}
			if err == nil {
				err = r.Stop(b.Context())
			}
			if err == nil {
				err = s.Close()
			}
			if err != nil {
				b.Fatal(err)
			}
			if got := len(out.All()); got != n {
				b.Fatalf("%d records put out, want %d", got, n)
			}
		}
		b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "records/s")
	})
}

// How long a record that is durable waits for its invocation, at 20,000 records a second on disk.
func BenchmarkHandlerLatency(b *testing.B) {
	const rate, tick = 20_000, time.Millisecond
	logs, err := seglog.Open(seglog.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer logs.Close()
	log, err := logs.Ensure(b.Context(), "readings", seglog.StreamConfig{Shards: 2})
	if err != nil {
		b.Fatal(err)
	}
	s, err := local.Open(local.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	begin := time.Now()
	var mu sync.Mutex
	called := map[uint64]time.Duration{} // by append
	r, err := process.New(process.Config{Log: log, Store: s})
	if err == nil {
		err = r.AddHandler(&bare{func(in *process.Invocation) (process.Result, error) {
			now := time.Since(begin)
			mu.Lock()
			defer mu.Unlock()
			for i := range in.Records {
				if n := binary.BigEndian.Uint64(in.Records[i].Data); called[n] < now {
					called[n] = now // the last record of the append
				}
			}
			return process.Result{}, nil
		}}, process.Options{})
	}
	if err == nil {
		err = r.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	durable := map[uint64]time.Duration{}
	n := uint64(0)
	next := time.Now()
	for b.Loop() {
		for range 100 { // an iteration is a tenth of a second
			time.Sleep(time.Until(next))
			next = next.Add(tick)
			recs := make([]stream.Record, rate/int(time.Second/tick))
			for i := range recs {
				recs[i] = stream.Record{Key: fmt.Sprintf("vehicle-%05d", i), Data: binary.BigEndian.AppendUint64(make([]byte, 0, 200), n)[:200]}
			}
			if err := log.Append(b.Context(), recs); err != nil {
				b.Fatal(err)
			}
			durable[n] = time.Since(begin)
			n++
		}
	}
	if err := r.WaitCaughtUp(b.Context()); err != nil {
		b.Fatal(err)
	}
	if err := r.Stop(b.Context()); err != nil {
		b.Fatal(err)
	}
	var waits []time.Duration
	for i, at := range durable {
		waits = append(waits, max(0, called[i]-at)) // readers may see it before the appender is told
	}
	slices.Sort(waits)
	b.ReportMetric(float64(waits[len(waits)/2].Microseconds())/1e3, "p50-ms")
	b.ReportMetric(float64(waits[len(waits)*99/100].Microseconds())/1e3, "p99-ms")
	b.ReportMetric(float64(int(n)*rate/int(time.Second/tick))/b.Elapsed().Seconds(), "records/s")
}
