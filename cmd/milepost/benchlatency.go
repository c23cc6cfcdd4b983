package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// benchLatency publishes at a fixed rate and meanwhile, from a vehicle of its own, measures how long a reading takes from the
// first byte sent to being the vehicle's latest state.
func benchLatency(ctx context.Context, b *benchRun) error {
	s, err := b.serve(ctx, "latency")
	if err != nil {
		return err
	}
	defer s.kill()
	load, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var sent int
	var loadErr error
	wg.Go(func() { sent, loadErr = b.paced(load, s) }) // waited for after the probes
	cpu0, began := s.cpu(), time.Now()
	visible, acked, err := probe(ctx, s, b.seconds)
	elapsed := time.Since(began)
	cpu := s.cpu() - cpu0
	cancel()
	wg.Wait()
	if err := errors.Join(err, loadErr); err != nil {
		return err
	}
	b.add("load", float64(sent)/elapsed.Seconds(), "/s", fmt.Sprint(b.rate))
	b.add("publish to visible p50", ms(percentile(visible, 0.5)), "ms", "")
	b.add("publish to visible p99", ms(percentile(visible, 0.99)), "ms", "100")
	b.add("publish to visible max", ms(percentile(visible, 1)), "ms", "")
	b.add("publish to acknowledged p50", ms(percentile(acked, 0.5)), "ms", "")
	b.add("publish to acknowledged p99", ms(percentile(acked, 0.99)), "ms", "")
	b.add("server CPU, of two cores", cpu.Seconds()/elapsed.Seconds(), "cores", "")
	b.add("server peak memory", s.peakMemory()/(1<<20), "MiB", "1,024")
	return s.stop()
}

// paced posts batches at the given rate until ctx ends.
func (b *benchRun) paced(ctx context.Context, s *benchServer) (int, error) {
	const every = 10 * time.Millisecond
	size := max(1, b.rate/int(time.Second/every))
	m := newBatchMaker(0, b.vehicles, size, dayStart(time.Now()))
	client := &http.Client{}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(every)
	defer tick.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	bodies := make(chan []byte, 4) // a slow answer must not slow the pace: four requests may be under way
	for range cap(bodies) {
		bodies <- make([]byte, size*len(benchLine))
	}
	sent := 0
	for {
		select {
		case <-ctx.Done():
			return sent, nil
		case <-tick.C:
		}
		var body []byte
		select {
		case body = <-bodies:
		case <-ctx.Done():
			return sent, nil
		}
		copy(body, m.make())
		sent += size
		wg.Go(func() {
			_, _ = post(context.WithoutCancel(ctx), client, s.http+"/v1/readings", body) // its figures are the probes'
			bodies <- body
		})
	}
}

// probe publishes single readings of one vehicle and polls its state until each is there.
func probe(ctx context.Context, s *benchServer, d time.Duration) (visible, acked []time.Duration, err error) {
	client := &http.Client{}
	defer client.CloseIdleConnections()
	end := time.Now().Add(d)
	for i := 0; time.Now().Before(end); i++ {
		began := time.Now()
		at := began.UnixMilli()
		body := fmt.Appendf(nil, `{"vehicle_id":"probe","ts":%d,"speed":%d}`, at, i%80)
		status, err := post(ctx, client, s.http+"/v1/readings", body)
		if err != nil {
			return nil, nil, err
		}
		if status != http.StatusOK {
			return nil, nil, fmt.Errorf("probe: status %d", status)
		}
		acked = append(acked, time.Since(began))
		for {
			t, err := eventTime(ctx, client, s.http+"/v1/vehicles/probe")
			if err != nil {
				return nil, nil, err
			}
			if t >= at {
				break
			}
			if time.Since(began) > 10*time.Second {
				return nil, nil, errors.New("a reading was not visible after 10 s")
			}
		}
		visible = append(visible, time.Since(began))
		time.Sleep(5 * time.Millisecond)
	}
	return visible, acked, nil
}

func eventTime(ctx context.Context, client *http.Client, url string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	if resp.StatusCode == http.StatusNotFound {
		return 0, nil
	}
	var v struct {
		EventTime int64 `json:"event_time"`
	}
	return v.EventTime, json.NewDecoder(resp.Body).Decode(&v)
}

// benchRecovery loads a server, kills it, and times the next start: to ready, and to caught up.
func benchRecovery(ctx context.Context, b *benchRun) error {
	config, httpAddr, mqttAddr, err := b.benchConfig("recovery")
	if err != nil {
		return err
	}
	s, _, err := startBenchServer(ctx, config, httpAddr, mqttAddr)
	if err != nil {
		return err
	}
	n, _, err := b.postBatches(ctx, s, b.seconds/2, 500)
	s.kill()
	if err != nil {
		return err
	}
	began := time.Now()
	s, ready, err := startBenchServer(ctx, config, httpAddr, mqttAddr)
	if err != nil {
		return err
	}
	defer s.kill()
	if err := s.caughtUp(ctx, false); err != nil {
		return err
	}
	caught := time.Since(began)
	rows, _, err := s.count(ctx, "SELECT count(*) FROM readings")
	if err != nil {
		return err
	}
	if int(rows) < n {
		return fmt.Errorf("SQL counts %d readings, %d were acknowledged", int(rows), n)
	}
	b.add("readings acknowledged before the kill", float64(n), "", "")
	b.add("kill -9 to ready", ready.Seconds(), "s", "")
	b.add("kill -9 to caught up", caught.Seconds(), "s", "")
	return s.stop()
}
