package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// benchLine is the 199-byte reading of DOMAIN.md with a fixed-width vehicle, time and speed, so that a generator only writes digits.
const benchLine = `{"truck_id":"T00000","ts":"2026-11-21T02:15:03.120Z","lat":40.712800,"long":-74.006000,"speed":63.2,"heading":181,"fuel":55.1,"engine_temp":92.4,"fuel_pressure":344.0,"cargo_temp":3.8,"status":"moving"}` + "\n"

// lineOffsets are the places in benchLine that change.
type lineOffsets struct{ vehicle, time, lat, speed int }

func benchOffsets() lineOffsets {
	return lineOffsets{
		vehicle: strings.Index(benchLine, "T00000") + 1, time: strings.Index(benchLine, "2026-"),
		lat: strings.Index(benchLine, "40.7128") + 3, speed: strings.Index(benchLine, "63.2"),
	}
}

func putDigits(b []byte, n, width int) {
	for i := width - 1; i >= 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
}

// putTime writes the time of day; the date is written once, since a run does not last for hours.
func putTime(b []byte, ms int64) {
	ms %= 86_400_000
	putDigits(b[11:], int(ms/3_600_000), 2)
	putDigits(b[14:], int(ms/60_000%60), 2)
	putDigits(b[17:], int(ms/1000%60), 2)
	putDigits(b[20:], int(ms%1000), 3)
}

// A batchMaker makes NDJSON bodies of one connection's vehicles, each reading 100 ms of event time after its vehicle's last.
type batchMaker struct {
	first, vehicles, size int
	at                    int64
	next                  int
	body                  []byte
	off                   lineOffsets
}

func newBatchMaker(first, vehicles, size int, at time.Time) *batchMaker {
	m := &batchMaker{first: first, vehicles: vehicles, size: size, at: at.UnixMilli(), off: benchOffsets()}
	m.body = bytes.Repeat([]byte(benchLine), size)
	for i := range size {
		copy(m.body[i*len(benchLine)+m.off.time:], at.UTC().Format("2006-01-02T15:04:05.000"))
	}
	return m
}

func (m *batchMaker) make() []byte {
	for i := range m.size {
		line := m.body[i*len(benchLine):]
		putDigits(line[m.off.vehicle:], m.first+m.next, 5)
		putTime(line[m.off.time:], m.at)
		putDigits(line[m.off.lat:], int(m.at/100)%1_000_000, 6)
		putDigits(line[m.off.speed:], 40+int(m.at/100)%30, 2)
		if m.next++; m.next == m.vehicles {
			m.next = 0
			m.at += 100
		}
	}
	return m.body
}

// postBatches posts bodies over one connection each until d has passed, and returns the number of readings acknowledged and
// how long each request took.
func (b *benchRun) postBatches(ctx context.Context, s *benchServer, d time.Duration, size int) (int, []time.Duration, error) {
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: b.conns, MaxIdleConnsPerHost: b.conns, WriteBufferSize: 128 << 10}}
	defer client.CloseIdleConnections()
	var acked, busy atomic.Int64
	var mu sync.Mutex
	var all []time.Duration
	var first error
	var wg sync.WaitGroup
	end := time.Now().Add(d)
	start := dayStart(time.Now())
	per := max(1, b.vehicles/b.conns)
	for c := range b.conns {
		wg.Go(func() {
			m := newBatchMaker(c*per, per, size, start)
			took := make([]time.Duration, 0, 4096)
			var err error
			for time.Now().Before(end) && ctx.Err() == nil && err == nil {
				body := m.make()
				for {
					began := time.Now()
					var status int
					if status, err = post(ctx, client, s.http+"/v1/readings", body); err != nil {
						break
					}
					if status == http.StatusOK {
						took = append(took, time.Since(began))
						acked.Add(int64(size))
						break
					}
					if status != http.StatusTooManyRequests {
						err = fmt.Errorf("status %d", status)
						break
					}
					busy.Add(1)
					time.Sleep(time.Millisecond)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			if err != nil && first == nil && ctx.Err() == nil {
				first = err
			}
		})
	}
	wg.Wait()
	return int(acked.Load()), all, errors.Join(first, ctx.Err())
}

// dayStart is an event time from which a run's readings stay within the UTC day and in the past.
func dayStart(now time.Time) time.Time {
	return now.UTC().Truncate(24 * time.Hour).Add(-24 * time.Hour)
}

func post(ctx context.Context, client *http.Client, url string, body []byte) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

func percentile(d []time.Duration, p float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)-1, int(float64(len(d))*p))]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func benchBatch(ctx context.Context, b *benchRun) error {
	s, err := b.serve(ctx, "batch")
	if err != nil {
		return err
	}
	defer s.kill()
	const size = 500
	cpu0, own0, began := s.cpu(), ownCPU(), time.Now()
	stages := make(chan map[string]float64, 1)
	go func() { // received below
		by, err := s.stageCPU(ctx, b.seconds-b.seconds/4)
		if err != nil {
			by = nil
		}
		stages <- by
	}()
	n, took, err := b.postBatches(ctx, s, b.seconds, size)
	if err != nil {
		return err
	}
	sent := time.Since(began)
	if err := s.caughtUp(ctx, false); err != nil {
		return err
	}
	folded := time.Since(began)
	if err := s.caughtUp(ctx, true); err != nil {
		return err
	}
	done := time.Since(began)
	cpu, own := s.cpu()-cpu0, ownCPU()-own0
	b.add("readings/s, publish to state and SQL", float64(n)/folded.Seconds(), "/s", "300,000; aim 500,000")
	b.add("readings/s, publish to Parquet", float64(n)/done.Seconds(), "/s", "")
	b.add("readings/s acknowledged", float64(n)/sent.Seconds(), "/s", "")
	b.add("server CPU per reading", float64(cpu.Nanoseconds())/float64(n)/1000, "µs", "about 2 with generator")
	b.add("generator CPU per reading", float64(own.Nanoseconds())/float64(n)/1000, "µs", "")
	b.add("acknowledgement p50, 500 readings", ms(percentile(took, 0.5)), "ms", "")
	b.add("acknowledgement p99, 500 readings", ms(percentile(took, 0.99)), "ms", "")
	b.add("server peak memory", s.peakMemory()/(1<<20), "MiB", "1,024")
	if by := <-stages; by != nil {
		perReading := float64(n) / sent.Seconds()
		for _, k := range sortedKeys(by) {
			if us := by[k] / perReading * 1e6; us >= 0.01 {
				b.add("CPU per reading: "+k, us, "µs", "")
			}
		}
	}
	rows, _, err := s.count(ctx, "SELECT count(*) FROM readings")
	if err == nil && int(rows) != n {
		return fmt.Errorf("SQL counts %d readings, %d were acknowledged", int(rows), n)
	}
	return s.stop()
}
