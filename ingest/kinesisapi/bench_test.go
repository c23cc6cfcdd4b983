package kinesisapi

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/milepost/milepost/ingest/kinesisapi/sequence"
	"github.com/milepost/milepost/ingest/kinesisapi/wire"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream/seglog"
)

// putRecordsBody is a PutRecords of n records of size bytes, spread over keys.
func putRecordsBody(n, size int) []byte {
	var b strings.Builder
	b.WriteString(`{"Records":[`)
	data := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"Data":"%s","PartitionKey":"vehicle-%04d"}`, base64.StdEncoding.EncodeToString(data), i*7919%5000)
	}
	b.WriteString(`],"StreamName":"bench"}`)
	return []byte(b.String())
}

func putRecordsCBOR(n, size int) []byte {
	e := wire.CBOR
	b := e.OpenList(e.AppendKey(e.OpenMap(nil), "Records"))
	data := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
	for i := range n {
		b = e.AppendBlob(e.AppendKey(e.OpenMap(b), "Data"), data)
		b = e.CloseMap(e.AppendString(e.AppendKey(b, "PartitionKey"), fmt.Sprintf("vehicle-%04d", i*7919%5000)))
	}
	return e.CloseMap(e.AppendString(e.AppendKey(e.CloseList(b), "StreamName"), "bench"))
}

func BenchmarkDecodePutRecords(b *testing.B) {
	run := func(name string, body []byte, decode func(*putRequest, []byte, bool) bool) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			var p putRequest
			for b.Loop() {
				p.reset()
				if !decode(&p, body, true) {
					b.Fatal("the fast path refused")
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*500), "ns/record")
		})
	}
	run("json", putRecordsBody(500, 200), (*putRequest).decodePutJSON)
	run("cbor", putRecordsCBOR(500, 200), (*putRequest).decodePutCBOR)
	b.Run("careful", func(b *testing.B) { // what the fast path saves
		b.ReportAllocs()
		body := putRecordsBody(500, 200)
		c := &call{body: body}
		var p putRequest
		for b.Loop() {
			p.reset()
			if err := p.decodeMany(c); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*500), "ns/record")
	})
}

// benchDoor is a door on a real disk with one stream of four shards.
func benchDoor(b *testing.B) *testDoor {
	b.Helper()
	store, err := seglog.Open(seglog.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	d, err := New(Config{Store: store, Dir: b.TempDir(), FS: vfs.Disk, Transition: -1})
	if err != nil {
		b.Fatal(err)
	}
	td := &testDoor{Door: d, store: store}
	b.Cleanup(td.close(b))
	td.must(b, "CreateStream", `{"StreamName":"bench","ShardCount":4}`, nil)
	return td
}

// discard is a ResponseWriter that keeps the status.
type discard struct {
	header http.Header
	code   int
	size   int
}

func (w *discard) Header() http.Header  { return w.header }
func (w *discard) WriteHeader(code int) { w.code = code }
func (w *discard) Write(b []byte) (int, error) {
	w.size += len(b)
	return len(b), nil
}

func post(op string, body []byte, cbor bool) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
	r.Header.Set("X-Amz-Target", target+op)
	r.Header.Set("Content-Type", wire.JSON.ContentType())
	if cbor {
		r.Header.Set("Content-Type", wire.CBOR.ContentType())
	}
	return r
}

// BenchmarkPutRecords is decode, append with fsync, and answer, without the network: 8 at once.
func BenchmarkPutRecords(b *testing.B) {
	run := func(name string, body []byte, cbor bool) {
		b.Run(name, func(b *testing.B) {
			d := benchDoor(b)
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			b.SetParallelism(4)
			b.RunParallel(func(pb *testing.PB) {
				r := post("PutRecords", body, cbor)
				for pb.Next() {
					r.Body = io.NopCloser(bytes.NewReader(body))
					w := &discard{header: http.Header{}}
					d.ServeHTTP(w, r)
					if w.code != http.StatusOK {
						b.Error(w.code)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N*500)/b.Elapsed().Seconds(), "records/s")
		})
	}
	run("json", putRecordsBody(500, 200), false)
	run("cbor", putRecordsCBOR(500, 200), true)
}

// BenchmarkPutRecord is single records from 64 goroutines, without the network.
func BenchmarkPutRecord(b *testing.B) {
	d := benchDoor(b)
	body := fmt.Appendf(nil, `{"StreamName":"bench","PartitionKey":"vehicle-1","Data":"%s"}`, base64.StdEncoding.EncodeToString(make([]byte, 200)))
	b.ReportAllocs()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		r := post("PutRecord", body, false)
		for pb.Next() {
			r.Body = io.NopCloser(bytes.NewReader(body))
			w := &discard{header: http.Header{}}
			d.ServeHTTP(w, r)
			if w.code != http.StatusOK {
				b.Error(w.code)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkGetRecords reads 10,000 records of 200 bytes a call, without the network.
func BenchmarkGetRecords(b *testing.B) {
	d := benchDoor(b)
	d.must(b, "CreateStream", `{"StreamName":"one","ShardCount":1}`, nil)
	body := bytes.Replace(putRecordsBody(500, 200), []byte(`"bench"`), []byte(`"one"`), 1)
	for range 20 {
		d.must(b, "PutRecords", string(body), nil)
	}
	var it struct{ ShardIterator string }
	d.must(b, "GetShardIterator", `{"StreamName":"one","ShardId":"shardId-000000000000","ShardIteratorType":"TRIM_HORIZON"}`, &it)
	get, err := json.Marshal(it)
	if err != nil {
		b.Fatal(err)
	}
	for _, cbor := range []bool{false, true} {
		ask := get
		if cbor {
			e := wire.CBOR
			ask = e.CloseMap(e.AppendString(e.AppendKey(e.OpenMap(nil), "ShardIterator"), it.ShardIterator))
		}
		b.Run(map[bool]string{false: "json", true: "cbor"}[cbor], func(b *testing.B) {
			b.ReportAllocs()
			r := post("GetRecords", ask, cbor)
			for b.Loop() {
				r.Body = io.NopCloser(bytes.NewReader(ask))
				w := &discard{header: http.Header{}}
				d.ServeHTTP(w, r)
				if w.code != http.StatusOK || w.size < 10_000*200 {
					b.Fatal(w.code, w.size)
				}
			}
			b.ReportMetric(float64(b.N)*10_000/b.Elapsed().Seconds(), "records/s")
		})
	}
}

func BenchmarkSequence(b *testing.B) {
	s := sequence.Number{Created: 1.8e9, Arrived: 1.8e9, Number: 123456, Shard: 3}
	var text [57]byte
	for b.Loop() {
		s.Number++
		s.Append(text[:0])
	}
}
