package httpapi_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/httpapi"
	"github.com/milepost/milepost/stream/seglog"
	"github.com/milepost/milepost/telemetry"
)

// BenchmarkPostDurable is the whole door over loopback TCP into the segment log on disk: 32 clients posting 500 readings a
// request. CPU time includes the clients'.
func BenchmarkPostDurable(b *testing.B) {
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
	admit, err := ingest.New(ingest.Config{Log: log, DeadLetters: dead, Catalog: telemetry.NewCatalog()})
	if err != nil {
		b.Fatal(err)
	}
	h, err := httpapi.New(httpapi.Config{}, admit)
	if err != nil {
		b.Fatal(err)
	}
	server := httpapi.Server(h, httpapi.ServerConfig{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l)
	}()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	body, url := strings.Repeat(seed+"\n", 500), "http://"+l.Addr().String()+"/v1/readings"
	var before, after syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	b.SetParallelism(16)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			resp, err := client.Post(url, "application/x-ndjson", strings.NewReader(body))
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				b.Errorf("answer %d", resp.StatusCode)
			}
		}
	})
	b.StopTimer()
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(500*b.N)/b.Elapsed().Seconds(), "readings/s")
	b.ReportMetric(float64(used)/float64(500*b.N), "cpu-ns/reading")
	client.CloseIdleConnections()
	_ = server.Close()
	<-served
}
