package runtime

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/milepost/milepost/internal/conf"
)

const seed = `{"truck_id":"T100","ts":"2026-11-21T02:15:03.120Z","lat":40.7128,"long":-74.006,"speed":63.2,"heading":181,"fuel":55.1,"engine_temp":92.4,"fuel_pressure":44,"cargo_temp":3.8,"status":"moving"}`

// event is what Lambda would hand over for n readings.
func event(dst []byte, n int) []byte {
	dst = append(dst, `{"Records":[`...)
	for i := range n {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = fmt.Appendf(dst, `{"kinesis":{"kinesisSchemaVersion":"1.0","partitionKey":"T100","sequenceNumber":"4954511524349098501828006771497%05d","data":"`, i)
		dst = base64.StdEncoding.AppendEncode(dst, []byte(seed))
		dst = append(dst, `","approximateArrivalTimestamp":1607497475.123},"eventSource":"aws:kinesis","eventVersion":"1.0","eventID":"shardId-000000000000:49545115243490985018280067714973"`...)
		dst = append(dst, `,"eventName":"aws:kinesis:record","invokeIdentityArn":"arn:aws:iam::000000000000:role/fleet","awsRegion":"us-east-1","eventSourceARN":"arn:aws:kinesis:us-east-1:000000000000:stream/fleet"}`...)
	}
	return append(dst, "]}"...)
}

func cpu(who int) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkGo is a bootstrap built with aws-lambda-go that decodes batches of Kinesis records, two processes, each event made anew.
// json=v2 is the same program built with GOEXPERIMENT=jsonv2: nearly all that it does is decode the event.
// The figure to compare is CPU: "our" is this process with the generator, "its" the function's processes.
func BenchmarkGo(b *testing.B) {
	fast := b.TempDir()
	if err := build(fast, "GOEXPERIMENT=jsonv2"); err != nil {
		b.Fatal(err)
	}
	for _, v := range []struct {
		json string
		code string
		n    int
	}{{"v1", goBootstrap, 1}, {"v1", goBootstrap, 1000}, {"v2", fast, 1000}} {
		n := v.n
		b.Run(fmt.Sprintf("json=%s/records=%d", v.json, n), func(b *testing.B) {
			c := golang("batch")
			c.Code = v.code
			c.Timeout = conf.Duration(time.Minute)
			c.Concurrency = 2
			inv, err := New(c, Deps{})
			if err != nil {
				b.Fatal(err)
			}
			ours := cpu(syscall.RUSAGE_SELF)
			var done atomic.Int64
			b.SetParallelism(1)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				var buf []byte
				for pb.Next() {
					buf = event(buf[:0], n)
					r, err := inv.Invoke(b.Context(), &Request{Payload: buf})
					if err != nil || r.FunctionError != "" {
						b.Errorf("%v %+v", err, r)
						return
					}
					done.Add(int64(n))
				}
			})
			b.StopTimer()
			ours = cpu(syscall.RUSAGE_SELF) - ours
			before := cpu(syscall.RUSAGE_CHILDREN)
			shut(b, inv)
			its := cpu(syscall.RUSAGE_CHILDREN) - before
			records := float64(done.Load())
			b.ReportMetric(records/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(float64(ours.Microseconds())/records, "our-µs/record")
			b.ReportMetric(float64(its.Microseconds())/records, "its-µs/record")
		})
	}
}

// BenchmarkEvent is the generator of BenchmarkGo alone.
func BenchmarkEvent(b *testing.B) {
	var buf []byte
	for b.Loop() {
		buf = event(buf[:0], 1000)
	}
}

// BenchmarkInvoke is the latency of one small invocation after another.
func BenchmarkInvoke(b *testing.B) {
	f := func(name string, c Config) {
		b.Run(name, func(b *testing.B) {
			inv := open(b, c)
			payload := []byte(`{"do":"echo","value":1}`)
			if r := invoke(b, inv, string(payload)); r.FunctionError != "" {
				b.Fatalf("%s", r.Payload)
			}
			ours := cpu(syscall.RUSAGE_SELF)
			for b.Loop() {
				if _, err := inv.Invoke(b.Context(), &Request{ID: "request", Payload: payload}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpu(syscall.RUSAGE_SELF)-ours).Microseconds())/float64(b.N), "our-µs")
		})
	}
	f("go", golang("echo"))
	f("python", python(b, "app.handler"))
	f("node", node(b, "app.handler"))
}

// BenchmarkLine is what one line of output costs.
func BenchmarkLine(b *testing.B) {
	r := ring{}
	c := capture{to: newLines(quiet(), "f", 1<<30, newStats(nil, "f").cDropped), ring: &r}
	c.begin("request")
	line := append(bytes.Repeat([]byte("x"), 80), '\n')
	b.ReportAllocs()
	for b.Loop() {
		c.write(line)
	}
}
