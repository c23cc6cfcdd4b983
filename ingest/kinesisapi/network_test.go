package kinesisapi

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	signer "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream/seglog"
)

// signedRequest is a request's bytes on the wire, good for five minutes of repeating.
func signedRequest(b *testing.B, url, op string, body []byte) []byte {
	b.Helper()
	r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	r.Header.Set("X-Amz-Target", target+op)
	sum := sha256.Sum256(body)
	key := aws.Credentials{AccessKeyID: "id", SecretAccessKey: "secret"}
	if err := signer.NewSigner().SignHTTP(b.Context(), key, r, hex.EncodeToString(sum[:]), "kinesis", "us-east-1", time.Now()); err != nil {
		b.Fatal(err)
	}
	var wire bytes.Buffer
	if err := r.Write(&wire); err != nil {
		b.Fatal(err)
	}
	return wire.Bytes()
}

// BenchmarkNetworkPut repeats signed puts over connections, generator and door on the same cores, durable.
func BenchmarkNetworkPut(b *testing.B) {
	run := func(name, op string, body []byte, records, conns int) {
		b.Run(name, func(b *testing.B) {
			store, err := seglog.Open(seglog.Config{Dir: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			d, err := New(Config{Store: store, Dir: b.TempDir(), FS: vfs.Disk, Transition: -1, AccessKeys: []AccessKey{{ID: "id", Secret: "secret"}}})
			if err != nil {
				b.Fatal(err)
			}
			td := &testDoor{Door: d, store: store}
			url := td.listen(b)
			c := sdk(b, url, "id", "secret")
			if err := createFour(b, c); err != nil {
				b.Fatal(err)
			}
			request := signedRequest(b, url, op, body)
			var mu sync.Mutex
			var took []time.Duration
			todo := make(chan struct{}, conns)
			var wait sync.WaitGroup
			for range conns {
				conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
				if err != nil {
					b.Fatal(err)
				}
				defer conn.Close()
				wait.Go(func() {
					r := bufio.NewReaderSize(conn, 64<<10)
					var mine []time.Duration
					for range todo {
						began := time.Now()
						if _, err := conn.Write(request); err != nil {
							b.Error(err)
							return
						}
						resp, err := http.ReadResponse(r, nil)
						if err != nil {
							b.Error(err)
							return
						}
						_, err = io.Copy(io.Discard, resp.Body)
						if err := errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != http.StatusOK {
							b.Error(resp.Status, err)
							return
						}
						mine = append(mine, time.Since(began))
					}
					mu.Lock()
					defer mu.Unlock()
					took = append(took, mine...)
				})
			}
			for b.Loop() {
				todo <- struct{}{}
			}
			close(todo)
			wait.Wait()
			slices.Sort(took)
			b.ReportMetric(float64(b.N*records)/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
	run("PutRecords-500x200B-8conns", "PutRecords", putRecordsBody(500, 200), 500, 8)
	run("PutRecord-200B-64conns", "PutRecord", fmt.Appendf(nil, `{"StreamName":"bench","PartitionKey":"vehicle-1","Data":"%s"}`, strings.Repeat("AAAA", 67)), 1, 64)
}

// BenchmarkNetworkFanOut has consumers that each get every record of a stream; records/s counts those delivered to all together.
func BenchmarkNetworkFanOut(b *testing.B) {
	for _, consumers := range []int{1, 8} {
		b.Run(fmt.Sprint(consumers), func(b *testing.B) {
			d := benchDoor(b)
			d.listen(b)
			d.must(b, "CreateStream", `{"StreamName":"s","ShardCount":1}`, nil)
			body := string(bytes.Replace(putRecordsBody(500, 200), []byte(`"bench"`), []byte(`"s"`), 1))
			var subs []*subscriber
			for i := range consumers {
				subs = append(subs, d.subscribe(b, client(b, false), d.register(b, fmt.Sprint(i)), zero, trimHorizon))
			}
			want := 0
			put := time.Now()
			for b.Loop() {
				d.must(b, "PutRecords", body, nil)
				want += 500
			}
			var reading sync.WaitGroup
			for _, s := range subs {
				reading.Go(func() {
					for n := 0; n < want; {
						e, ok := s.nextCount()
						if !ok {
							b.Error("a subscription ended early")
							return
						}
						n += e
					}
				})
			}
			reading.Wait()
			b.ReportMetric(float64(want*consumers)/time.Since(put).Seconds(), "delivered/s")
		})
	}
}

// BenchmarkFanOutLatency is the time from a put to its delivery to the last of 8 consumers.
func BenchmarkFanOutLatency(b *testing.B) {
	const consumers = 8
	d := benchDoor(b)
	d.listen(b)
	d.must(b, "CreateStream", `{"StreamName":"s","ShardCount":1}`, nil)
	arrived := make(chan struct{}, consumers)
	for i := range consumers {
		s := d.subscribe(b, client(b, false), d.register(b, fmt.Sprint(i)), zero, trimHorizon)
		go func() { // ends with the subscription's body, at the benchmark's end
			for {
				n, ok := s.nextCount()
				if !ok {
					return
				}
				for range n {
					arrived <- struct{}{}
				}
			}
		}()
	}
	var took []time.Duration
	for b.Loop() {
		began := time.Now()
		d.putOne(b, "s", "k", "data")
		for range consumers {
			<-arrived
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
}
