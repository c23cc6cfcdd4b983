package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/milepost/milepost/internal/conf"
)

// benchKinesis measures the Kinesis door with signed requests, as its clients send them.
func benchKinesis(ctx context.Context, b *benchRun) error {
	config, httpAddr, mqttAddr, err := b.benchConfig("kinesis")
	if err != nil {
		return err
	}
	addr, err := freeLoopback()
	if err != nil {
		return err
	}
	cfg, err := loadConfig(config)
	if err != nil {
		return err
	}
	cfg.Kinesis.Listen, cfg.Kinesis.Transition = addr, 0
	cfg.Kinesis.AccessKeys = []KinesisKey{{ID: "AKIDBENCH", Secret: "bench-secret"}}
	text, err := conf.Effective(cfg)
	if err != nil {
		return err
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	s, _, err := startBenchServer(ctx, config, httpAddr, mqttAddr)
	if err != nil {
		return err
	}
	defer s.kill()
	k := newKinesisClient("http://"+addr, "AKIDBENCH", "bench-secret")
	if _, err := k.call(ctx, "CreateStream", []byte(`{"StreamName":"bench","ShardCount":4}`)); err != nil {
		return err
	}
	if err := b.kinesisPuts(ctx, s, k); err != nil {
		return err
	}
	if err := b.kinesisReads(ctx, k); err != nil {
		return err
	}
	if err := b.kinesisFanOut(ctx, k); err != nil {
		return err
	}
	b.add("server peak memory", s.peakMemory()/(1<<20), "MiB", "1,024")
	return s.stop()
}

// kinesisPuts measures PutRecords of 500 × 200 bytes and single PutRecords.
func (b *benchRun) kinesisPuts(ctx context.Context, s *benchServer, k *kinesisClient) error {
	for _, load := range []struct {
		name, op, goal  string
		conns, size     int
		body            func(conn int) []byte
		latency, figure string
	}{
		{"PutRecords", "PutRecords", "400,000; aim 1,000,000", 8, 500, putRecords500, "PutRecords p99", "records/s put, 500 × 200 B, 8 connections, signed"},
		{"PutRecord", "PutRecord", "30,000", 64, 1, putRecord1, "PutRecord p99", "records/s put one by one, 64 connections, signed"},
	} {
		var n atomic.Int64
		var mu sync.Mutex
		var all []time.Duration
		var failed error
		var wg sync.WaitGroup
		cpu0, own0, began := s.cpu(), ownCPU(), time.Now()
		end := began.Add(b.seconds)
		for c := range load.conns {
			wg.Go(func() {
				body := load.body(c)
				var took []time.Duration
				link, err := k.link(ctx)
				for time.Now().Before(end) && err == nil {
					at := time.Now()
					var answer []byte
					if answer, err = link.call(load.op, body); err == nil && load.size > 1 && !bytes.Contains(answer, []byte(`"FailedRecordCount":0`)) {
						err = fmt.Errorf("records failed: %.200s", answer)
					}
					took = append(took, time.Since(at))
					n.Add(int64(load.size))
				}
				if link != nil {
					err = errors.Join(err, link.conn.Close())
				}
				mu.Lock()
				defer mu.Unlock()
				all, failed = append(all, took...), errors.Join(failed, err)
			})
		}
		wg.Wait()
		elapsed, records := time.Since(began).Seconds(), float64(n.Load())
		if failed != nil {
			return failed
		}
		b.add(load.figure, records/elapsed, "/s", load.goal)
		b.add("server CPU per record, "+load.name, float64((s.cpu()-cpu0).Nanoseconds())/records/1000, "µs", "")
		b.add("generator CPU per record, "+load.name, float64((ownCPU()-own0).Nanoseconds())/records/1000, "µs", "")
		b.add(load.latency, ms(percentile(all, 0.99)), "ms", "")
	}
	return nil
}

func putRecords500(conn int) []byte {
	data := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{'x'}, 200))
	var recs []string
	for i := range 500 {
		recs = append(recs, fmt.Sprintf(`{"Data":"%s","PartitionKey":"vehicle-%05d"}`, data, conn*500+i))
	}
	return []byte(`{"StreamName":"bench","Records":[` + strings.Join(recs, ",") + `]}`)
}

func putRecord1(conn int) []byte {
	data := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{'x'}, 200))
	return fmt.Appendf(nil, `{"StreamName":"bench","Data":"%s","PartitionKey":"vehicle-%05d"}`, data, conn)
}

// kinesisReads reads every shard from its beginning, all four at once.
func (b *benchRun) kinesisReads(ctx context.Context, k *kinesisClient) error {
	var n atomic.Int64
	var mu sync.Mutex
	var all []time.Duration
	var failed error
	var wg sync.WaitGroup
	began := time.Now()
	end := began.Add(b.seconds)
	for shard := range 4 {
		wg.Go(func() {
			var took []time.Duration
			err := func() error {
				it, err := k.iterator(ctx, shard)
				if err != nil {
					return err
				}
				for time.Now().Before(end) {
					at := time.Now()
					answer, err := k.call(ctx, "GetRecords", fmt.Appendf(nil, `{"ShardIterator":"%s","Limit":10000}`, it))
					if err != nil {
						return err
					}
					took = append(took, time.Since(at))
					got := bytes.Count(answer, []byte(`"SequenceNumber"`))
					n.Add(int64(got))
					if got == 0 { // read out: begin again
						if it, err = k.iterator(ctx, shard); err != nil {
							return err
						}
						continue
					}
					if it = after(answer, `"NextShardIterator":"`); it == "" {
						return fmt.Errorf("no next iterator in %.200s", answer)
					}
				}
				return nil
			}()
			mu.Lock()
			defer mu.Unlock()
			all, failed = append(all, took...), errors.Join(failed, err)
		})
	}
	wg.Wait()
	if failed != nil {
		return failed
	}
	b.add("records/s read by GetRecords, 4 shards", float64(n.Load())/time.Since(began).Seconds(), "/s", "1,000,000")
	b.add("GetRecords p99, up to 10,000 records", ms(percentile(all, 0.99)), "ms", "")
	return nil
}

// kinesisFanOut registers eight consumers on a stream of one shard, puts at a fixed rate and measures how long a record takes from
// the put to each consumer. Then it lets one, and eight at once, catch up from the beginning.
func (b *benchRun) kinesisFanOut(ctx context.Context, k *kinesisClient) error {
	const consumers, rate, size = 8, 10_000, 50
	if _, err := k.call(ctx, "CreateStream", []byte(`{"StreamName":"fan","ShardCount":1}`)); err != nil {
		return err
	}
	var arns []string
	for i := range consumers {
		answer, err := k.call(ctx, "RegisterStreamConsumer", fmt.Appendf(nil, `{"StreamARN":"arn:aws:kinesis:us-east-1:000000000000:stream/fan","ConsumerName":"c%d"}`, i))
		if err != nil {
			return err
		}
		arns = append(arns, after(answer, `"ConsumerARN":"`))
	}
	follow, stop := context.WithCancel(ctx)
	defer stop()
	var mu sync.Mutex
	var took []time.Duration
	var delivered atomic.Int64
	var wg sync.WaitGroup
	ready := make(chan error, consumers)
	for _, arn := range arns {
		wg.Go(func() {
			err := k.subscribe(follow, arn, "LATEST", func() { ready <- nil }, func(data []byte) {
				delivered.Add(1)
				ns := int64(0)
				for _, c := range data[:min(19, len(data))] {
					ns = ns*10 + int64(c-'0')
				}
				d := time.Since(time.Unix(0, ns))
				mu.Lock()
				took = append(took, d)
				mu.Unlock()
			})
			if err != nil && follow.Err() == nil {
				ready <- err
			}
		})
	}
	for range consumers {
		if err := <-ready; err != nil {
			return err
		}
	}
	tick := time.NewTicker(time.Second * size / rate)
	defer tick.Stop()
	put := 0
	for end := time.Now().Add(b.seconds); time.Now().Before(end); {
		<-tick.C
		var recs []string
		now := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%019d%s", time.Now().UnixNano(), strings.Repeat("x", 181)))
		for i := range size {
			recs = append(recs, fmt.Sprintf(`{"Data":"%s","PartitionKey":"v%d"}`, now, i))
		}
		if _, err := k.call(ctx, "PutRecords", []byte(`{"StreamName":"fan","Records":[`+strings.Join(recs, ",")+`]}`)); err != nil {
			return err
		}
		put += size
	}
	for wait := time.Now(); delivered.Load() < int64(put*consumers) && time.Since(wait) < 5*time.Second; {
		time.Sleep(time.Millisecond)
	}
	stop()
	wg.Wait()
	if got := delivered.Load(); got != int64(put*consumers) {
		return fmt.Errorf("fan-out delivered %d records, want %d to each of %d consumers", got, put, consumers)
	}
	b.add(fmt.Sprintf("records/s put while %d consumers follow", consumers), float64(put)/b.seconds.Seconds(), "/s", "")
	b.add("put to delivered p50, 8 consumers", ms(percentile(took, 0.5)), "ms", "")
	b.add("put to delivered p99, 8 consumers", ms(percentile(took, 0.99)), "ms", "20")
	for _, many := range []int{1, consumers} {
		// A consumer may subscribe again five seconds after the last time.
		select {
		case <-time.After(5100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		rate, err := k.catchUp(ctx, arns[:many], put)
		if err != nil {
			return err
		}
		b.add(fmt.Sprintf("records/s to %d consumers catching up", many), rate, "/s", "")
	}
	return nil
}

// catchUp lets consumers read a stream from its beginning and returns the records a second of all together.
func (k *kinesisClient) catchUp(ctx context.Context, arns []string, records int) (float64, error) {
	var wg sync.WaitGroup
	errs := make(chan error, len(arns))
	began := time.Now()
	for _, arn := range arns {
		wg.Go(func() {
			one, done := context.WithCancel(ctx)
			defer done()
			n := 0
			err := k.subscribe(one, arn, "TRIM_HORIZON", func() {}, func([]byte) {
				if n++; n == records {
					done()
				}
			})
			if n < records {
				errs <- errors.Join(fmt.Errorf("got %d records of %d", n, records), err)
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	select {
	case err := <-errs:
		return 0, err
	default:
		return float64(records*len(arns)) / took.Seconds(), nil
	}
}

// after returns the text between the first occurrence of a marker and the next quote.
func after(b []byte, marker string) string {
	_, rest, ok := bytes.Cut(b, []byte(marker))
	if !ok {
		return ""
	}
	v, _, _ := bytes.Cut(rest, []byte(`"`))
	return string(v)
}

func (k *kinesisClient) iterator(ctx context.Context, shard int) (string, error) {
	answer, err := k.call(ctx, "GetShardIterator", fmt.Appendf(nil, `{"StreamName":"bench","ShardId":"shardId-%012d","ShardIteratorType":"TRIM_HORIZON"}`, shard))
	return after(answer, `"ShardIterator":"`), err
}

// subscribe follows a shard until ctx ends, telling when the subscription stands and every record's data.
func (k *kinesisClient) subscribe(ctx context.Context, consumer, from string, ready func(), each func(data []byte)) error {
	resp, err := k.do(ctx, "SubscribeToShard", fmt.Appendf(nil, `{"ConsumerARN":"%s","ShardId":"shardId-000000000000","StartingPosition":{"Type":"%s"}}`, consumer, from))
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end or given up
	ready()
	var head [12]byte
	var frame []byte
	for {
		if _, err := io.ReadFull(resp.Body, head[:]); err != nil {
			return err
		}
		total := int(head[0])<<24 | int(head[1])<<16 | int(head[2])<<8 | int(head[3])
		headers := int(head[4])<<24 | int(head[5])<<16 | int(head[6])<<8 | int(head[7])
		if total < 16+headers || total > 64<<20 {
			return fmt.Errorf("a frame of %d bytes", total)
		}
		if cap(frame) < total {
			frame = make([]byte, total)
		}
		frame = frame[:total-12]
		if _, err := io.ReadFull(resp.Body, frame); err != nil {
			return err
		}
		var event struct {
			Records []struct{ Data []byte }
		}
		if err := json.Unmarshal(frame[headers:len(frame)-4], &event); err != nil {
			return fmt.Errorf("read event: %w", err)
		}
		for _, r := range event.Records {
			each(r.Data)
		}
	}
}
