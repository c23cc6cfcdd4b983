package mqtt_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/mqtt"
	"github.com/milepost/milepost/stream/seglog"
	"github.com/milepost/milepost/telemetry"
)

// BenchmarkPublish is the whole door over loopback TCP into the segment log on disk: 200 connections of seed readings, one
// packet a write, with up to 20 unacknowledged each. CPU time includes the devices'.
func BenchmarkPublish(b *testing.B) {
	const connections, window = 200, 20
	for _, qos := range []byte{0, 1} {
		b.Run(fmt.Sprintf("qos=%d", qos), func(b *testing.B) {
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
			w := &world{t: b, reg: prometheus.NewRegistry()}
			admit, err := ingest.New(ingest.Config{Log: log, DeadLetters: dead, Catalog: telemetry.NewCatalog(), Metrics: w.reg})
			if err != nil {
				b.Fatal(err)
			}
			w.openBroker()
			defer w.closeBroker()
			server, err := mqtt.Open(mqtt.Config{Address: "127.0.0.1:0", Broker: w.broker}, admit)
			if err != nil {
				b.Fatal(err)
			}
			var conns []*device
			for i := range connections {
				d := dial(b, server.Addr())
				_ = d.conn.SetDeadline(time.Time{})
				if d.connect(fmt.Sprint("d", i), "", "") != 0 {
					b.Fatal("not let in")
				}
				conns = append(conns, d)
			}
			var before, after syscall.Rusage
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
			b.ReportAllocs()
			b.ResetTimer()
			var all sync.WaitGroup
			for i, d := range conns {
				n := b.N / connections
				if i < b.N%connections {
					n++
				}
				all.Go(func() { flood(d.conn, d.in, qos, n, window, fmt.Sprintf("fleet/T%d/telemetry", i)) })
			}
			all.Wait()
			if err := server.Close(b.Context()); err != nil { // QoS 0 is stored when this returns
				b.Fatal(err)
			}
			b.StopTimer()
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
			used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			dropped := w.counter("milepost_ingest_refused_total", "in_flight")
			b.ReportMetric(100*dropped/float64(b.N), "%dropped")
			b.ReportMetric((float64(b.N)-dropped)/b.Elapsed().Seconds(), "stored/s")
			b.ReportMetric(float64(used)/float64(b.N), "cpu-ns/message")
		})
	}
}

// flood sends n messages, waiting when window of them are not acknowledged, and ends with a round trip.
func flood(conn net.Conn, in *bufio.Reader, qos byte, n, window int, topic string) {
	payload := `{"ts":"2026-11-21T02:15:03.120Z","lat":40.7128,"long":-74.0060,"speed":63.2,"heading":181,"fuel":55.1,` +
		`"engine_temp":92.4,"fuel_pressure":44.0,"cargo_temp":3.8,"status":"moving"}`
	p := publishPacket(qos, 1, false, topic, payload)
	id := len(p) - len(payload) - 2
	ack := make([]byte, 4)
	waiting := 0
	for i := range n {
		if qos > 0 {
			if waiting == window {
				if _, err := io.ReadFull(in, ack); err != nil {
					panic(err)
				}
				waiting--
			}
			p[id], p[id+1] = byte((i%60000+1)>>8), byte(i%60000+1)
			waiting++
		}
		if _, err := conn.Write(p); err != nil {
			panic(err)
		}
	}
	for ; waiting > 0; waiting-- {
		if _, err := io.ReadFull(in, ack); err != nil {
			panic(err)
		}
	}
	if _, err := conn.Write([]byte{0xC0, 0}); err != nil {
		panic(err)
	}
	if _, err := io.ReadFull(in, ack[:2]); err != nil {
		panic(err)
	}
}
