package lambda

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/lambda/runtime"
	"github.com/milepost/milepost/stream"
)

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return t
}

func testSource() source {
	s := newSource("arn:aws:kinesis:us-east-1:123456789012:stream/lambda-stream", "us-east-1", "arn:aws:iam::123456789012:role/lambda-role")
	return s
}

func TestEventGolden(t *testing.T) {
	shard := shardName{"shardId-000000000006", 6, 1607490000}
	recs := []stream.Record{
		{Key: "1", Data: []byte("Hello, this is a test."), Pos: "0000000000000001", Time: at("2020-12-09T07:04:35.987Z")},
		{Key: "a \"b\" é\n\xff", Data: nil, Pos: "0000000000000002", Time: at("2020-12-09T07:04:36.020Z")},
	}
	record := func(key, number, data, time string) string {
		return `{"kinesis":{"kinesisSchemaVersion":"1.0","partitionKey":` + key + `,"sequenceNumber":"` + number + `","data":"` + data +
			`","approximateArrivalTimestamp":` + time + `},"eventSource":"aws:kinesis","eventVersion":"1.0","eventID":"shardId-000000000006:` + number +
			`","eventName":"aws:kinesis:record","invokeIdentityArn":"arn:aws:iam::123456789012:role/lambda-role","awsRegion":"us-east-1",` +
			`"eventSourceARN":"arn:aws:kinesis:us-east-1:123456789012:stream/lambda-stream"}`
	}
	first := record(`"1"`, "49613428906229223800958884635917909455917517387180540002", "SGVsbG8sIHRoaXMgaXMgYSB0ZXN0Lg==", "1607497475.987")
	second := record(`"a \"b\" é\n\ufffd"`, "49613428906229223800958884635919118381737132085074722914", "", "1607497476.020")
	src := testSource()
	var e event
	e.build(&src, shard, recs, nil)
	if d := cmp.Diff(`{"Records":[`+first+","+second+"]}", string(e.doc)); d != "" {
		t.Error(d)
	}
	w := &process.Window{Start: at("2020-12-09T07:04:00Z"), End: at("2020-12-09T07:06:00Z")}
	e.build(&src, shard, recs[:1], w)
	tail := `,"shardId":"shardId-000000000006","eventSourceARN":"arn:aws:kinesis:us-east-1:123456789012:stream/lambda-stream"`
	if d := cmp.Diff(`{"Records":[`+first+`],"window":{"start":"2020-12-09T07:04:00Z","end":"2020-12-09T07:06:00Z"},"state":{}`+tail+
		`,"isFinalInvokeForWindow":false,"isWindowTerminatedEarly":false}`, string(e.doc)); d != "" {
		t.Error(d)
	}
	w.State, w.Final, w.Early = []byte(`{"1":282}`), true, true
	e.build(&src, shard, nil, w)
	if d := cmp.Diff(`{"Records":[],"window":{"start":"2020-12-09T07:04:00Z","end":"2020-12-09T07:06:00Z"},"state":{"1":282}`+tail+
		`,"isFinalInvokeForWindow":true,"isWindowTerminatedEarly":true}`, string(e.doc)); d != "" {
		t.Error(d)
	}
	if !json.Valid(e.doc) {
		t.Error("not JSON")
	}
}

func TestEventFind(t *testing.T) {
	src := testSource()
	var e event
	recs := testRecords(1000, 10)
	e.build(&src, shardName{"shardId-000000000001", 1, 1.7e9}, recs, nil)
	for _, i := range []int{0, 1, 499, 999} {
		id := string(e.number(i))
		if got, ok := e.find(id); !ok || got != i {
			t.Errorf("%s is record %d %v, want %d", id, got, ok, i)
		}
		for _, bad := range []string{id[:55], id + "0", id[:55] + "x", ""} {
			if got, ok := e.find(bad); ok {
				t.Errorf("%q is record %d", bad, got)
			}
		}
	}
}

func testRecords(n, size int) []stream.Record {
	recs := make([]stream.Record, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range recs {
		data := make([]byte, size)
		for j := range data {
			data[j] = byte(r.Uint32())
		}
		recs[i] = stream.Record{Key: "vehicle-00042", Data: data, Pos: position(i + 1), Time: time.UnixMilli(1_700_000_000_000 + int64(i))}
	}
	return recs
}

func FuzzBase64(f *testing.F) {
	f.Add([]byte("seven"))
	f.Add(make([]byte, 199))
	f.Fuzz(func(t *testing.T, data []byte) {
		if got, want := string(appendBase64([]byte("x"), data)), "x"+base64.StdEncoding.EncodeToString(data); got != want {
			t.Errorf("%q became %s, want %s", data, got, want)
		}
	})
}

func FuzzQuoted(f *testing.F) {
	f.Add("a\"\\\x00\xffé\u2028")
	f.Fuzz(func(t *testing.T, s string) {
		var got string
		if err := json.Unmarshal(appendQuoted(nil, s), &got); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		want, _ := json.Marshal(s)
		var through string
		if err := json.Unmarshal(want, &through); err != nil || got != through {
			t.Errorf("%q became %q, want %q", s, got, through)
		}
	})
}

func BenchmarkEvent(b *testing.B) {
	src := testSource()
	recs := testRecords(1000, 199)
	var e event
	b.ReportAllocs()
	for b.Loop() {
		e.build(&src, shardName{"shardId-000000000001", 1, 1.7e9}, recs, nil)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/record")
}

// BenchmarkHandle is what a mapping adds to an invocation: the event, a function that does nothing, and its answer read.
func BenchmarkHandle(b *testing.B) {
	recs := testRecords(1000, 199)
	for i := range recs {
		recs[i].Shard = "shardId-000000000001"
	}
	fn := &function{name: "f", invoker: idle{}}
	h := &running{fn: fn, def: &definition{Handler: "f@s"}, src: testSource(), reading: reading{report: true}, result: &atomic.Pointer[string]{}}
	h.shards = map[stream.ShardID]shardName{recs[0].Shard: {recs[0].Shard, 1, 1.7e9}}
	h.events.New = func() any { return &event{} }
	in := &process.Invocation{ID: "f@s/shardId-000000000001/0/1-1000", Attempt: 1, Shard: recs[0].Shard, Records: recs}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.Handle(b.Context(), in); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/record")
}

// An idle function answers at once.
type idle struct{ runtime.Invoker }

func (idle) Invoke(context.Context, *runtime.Request) (*runtime.Response, error) {
	return &runtime.Response{Payload: []byte(`{"batchItemFailures":[]}`)}, nil
}
