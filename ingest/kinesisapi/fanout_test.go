package kinesisapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/milepost/milepost/ingest/kinesisapi/eventstream"
	"github.com/milepost/milepost/ingest/kinesisapi/wire"
	"github.com/milepost/milepost/internal/vfs"
)

// A subscriber is a SubscribeToShard call over a real connection, frame by frame.
type subscriber struct {
	t    testing.TB
	body io.ReadCloser
	buf  []byte // of nextCount
}

type event struct {
	kind                       string // initial-response, SubscribeToShardEvent, or the exception's type
	Records                    []struct{ Data []byte }
	ContinuationSequenceNumber string
	MillisBehindLatest         int64
	ChildShards                []struct{ ShardId string }
}

func (td *testDoor) register(t testing.TB, name string) (arn string) {
	t.Helper()
	var out struct{ Consumer struct{ ConsumerARN string } }
	td.must(t, "RegisterStreamConsumer", `{"StreamARN":"arn:aws:kinesis:us-east-1:000000000000:stream/s","ConsumerName":"`+name+`"}`, &out)
	return out.Consumer.ConsumerARN
}

func (td *testDoor) subscribe(t testing.TB, client *http.Client, arn, shard, position string) *subscriber {
	t.Helper()
	body := `{"ConsumerARN":"` + arn + `","ShardId":"` + shard + `","StartingPosition":` + position + `}`
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, td.url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", wire.JSON.ContentType())
	r.Header.Set("X-Amz-Target", target+"SubscribeToShard")
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		t.Fatalf("subscribe: %d %s", resp.StatusCode, b)
	}
	s := &subscriber{t: t, body: resp.Body}
	t.Cleanup(func() { _ = s.body.Close() })
	if e, ok := s.next(); !ok || e.kind != "initial-response" {
		t.Fatalf("the first event is %+v", e)
	}
	return s
}

// next returns the next event; false at the stream's end.
func (s *subscriber) next() (e event, ok bool) {
	s.t.Helper()
	var size [4]byte
	if _, err := io.ReadFull(s.body, size[:]); err != nil {
		return e, false
	}
	message := make([]byte, binary.BigEndian.Uint32(size[:]))
	copy(message, size[:])
	if _, err := io.ReadFull(s.body, message[len(size):]); err != nil {
		return e, false
	}
	headers, payload, _, err := eventstream.Decode(message)
	if err == nil {
		err = json.Unmarshal(payload, &e)
	}
	if err != nil {
		s.t.Errorf("%v in %q", err, message)
		return e, false
	}
	for _, h := range headers {
		if h.Name == ":event-type" || h.Name == ":exception-type" {
			e.kind = h.Value
		}
	}
	return e, true
}

func client(t testing.TB, h2 bool) *http.Client {
	p := new(http.Protocols)
	p.SetHTTP1(!h2)
	p.SetUnencryptedHTTP2(h2)
	tr := &http.Transport{Protocols: p}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

const trimHorizon = `{"Type":"TRIM_HORIZON"}`

func TestSubscribePushesOverBothProtocols(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2=%v", h2), func(t *testing.T) {
			d := openDoor(t, vfs.NewCrashable(), func(c *Config) { c.HeartbeatEach = 20 * time.Millisecond })
			d.listen(t)
			d.must(t, "CreateStream", `{"StreamName":"s","ShardCount":1}`, nil)
			s := d.subscribe(t, client(t, h2), d.register(t, "c"), zero, trimHorizon)
			beat, ok := s.next()
			if !ok || len(beat.Records) != 0 || beat.ContinuationSequenceNumber == "" {
				t.Errorf("heartbeat: %+v", beat)
			}
			for i := range 5 {
				seq := d.putOne(t, "s", "k", fmt.Sprint(i))
				var e event
				for len(e.Records) == 0 {
					e, _ = s.next()
				}
				if string(e.Records[0].Data) != fmt.Sprint(i) || e.ContinuationSequenceNumber != seq || e.MillisBehindLatest != 0 {
					t.Errorf("event %d: %+v", i, e)
				}
			}
		})
	}
}

func TestSubscriptionEndsAfterItsTime(t *testing.T) {
	d := openDoor(t, vfs.NewCrashable(), func(c *Config) { c.SubscribeFor, c.HeartbeatEach = 60*time.Millisecond, 10*time.Millisecond })
	d.listen(t)
	d.must(t, "CreateStream", `{"StreamName":"s","ShardCount":1}`, nil)
	s := d.subscribe(t, client(t, false), d.register(t, "c"), zero, `{"Type":"LATEST"}`)
	for {
		e, ok := s.next()
		if !ok {
			return
		}
		if e.kind != "SubscribeToShardEvent" {
			t.Fatalf("got %+v", e)
		}
	}
}

func TestDeregisteringEndsSubscriptions(t *testing.T) {
	d := openDoor(t, vfs.NewCrashable(), nil)
	d.listen(t)
	d.must(t, "CreateStream", `{"StreamName":"s","ShardCount":1}`, nil)
	arn := d.register(t, "c")
	s := d.subscribe(t, client(t, false), arn, zero, trimHorizon)
	d.must(t, "DeregisterStreamConsumer", `{"ConsumerARN":"`+arn+`"}`, nil)
	if e, ok := s.next(); !ok || e.kind != typeNotFound {
		t.Errorf("got %v %+v", ok, e)
	}
	if e, ok := s.next(); ok {
		t.Errorf("after the exception: %+v", e)
	}
}

func TestSubscribeTakesOver(t *testing.T) {
	l := &live{subs: map[subKey]*subscription{}}
	key, now := subKey{"c", zero}, time.Unix(0, 0)
	ctx, end := context.WithCancelCause(t.Context())
	if _, err := l.subscribe(key, now, end); err != nil {
		t.Fatal(err)
	}
	nothing := func(error) {}
	if _, err := l.subscribe(key, now.Add(4999*time.Millisecond), nothing); asFault(err).typ != typeInUse {
		t.Errorf("within 5 s: %v", err)
	}
	if _, err := l.subscribe(subKey{"other", zero}, now, nothing); err != nil {
		t.Errorf("another consumer: %v", err)
	}
	if ctx.Err() != nil {
		t.Error("a refused call ended the subscription")
	}
	if _, err := l.subscribe(key, now.Add(5*time.Second), nothing); err != nil || asFault(context.Cause(ctx)).typ != typeInUse {
		t.Errorf("after 5 s: %v, the older one got %v", err, context.Cause(ctx))
	}
}

// TestSlowConsumerHarmsNone has one consumer that reads nothing and seven that read all of it.
func TestSlowConsumerHarmsNone(t *testing.T) {
	const records, size, consumers = 32, 512 << 10, 8 // more than sockets buffer
	d := openDoor(t, vfs.NewCrashable(), func(c *Config) { c.WriteTimeout = time.Minute })
	d.listen(t)
	d.must(t, "CreateStream", `{"StreamName":"s","ShardCount":1}`, nil)
	var subs []*subscriber
	for i := range consumers {
		subs = append(subs, d.subscribe(t, client(t, i%2 == 0), d.register(t, fmt.Sprintf("c%d", i)), zero, trimHorizon))
	}
	var reading sync.WaitGroup
	for _, s := range subs[1:] {
		reading.Go(func() {
			for n := 0; n < records; {
				e, ok := s.next()
				if !ok {
					t.Error("a subscription ended early")
					return
				}
				n += len(e.Records)
			}
		})
	}
	data := strings.Repeat("x", size)
	for range records {
		d.putOne(t, "s", "k", data)
	}
	reading.Wait()
}

// TestHostileClients costs the door little and gets a proper answer.
func TestHostileClients(t *testing.T) {
	d := openDoor(t, vfs.NewCrashable(), func(c *Config) {
		c.BodyTimeout = 50 * time.Millisecond
		c.BodyBytes = 4 << 20
	})
	d.listen(t)
	d.must(t, "CreateStream", `{"StreamName":"s","ShardCount":1}`, nil)
	addr := strings.TrimPrefix(d.url, "http://")
	say := func(text string) string {
		t.Helper()
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, text) // the door may have had enough before the end
		b, _ := io.ReadAll(conn)
		return string(b)
	}
	head := "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-amz-json-1.1\r\nX-Amz-Target: Kinesis_20131202."
	f := func(what, text, want string) {
		t.Helper()
		if got := say(text); !strings.Contains(got, want) {
			t.Errorf("%s: got %.300q, want %q", what, got, want)
		}
	}
	f("slow body", head+"PutRecord\r\nContent-Length: 100\r\n\r\n{", "RequestTimeoutException")
	f("slow chunks", head+"PutRecord\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", "RequestTimeoutException")
	f("announced too large", head+"ListStreams\r\nContent-Length: 999999999\r\n\r\n", " 413 ")
	f("endless headers", head+"ListStreams\r\n"+strings.Repeat("X-A: "+strings.Repeat("b", 1000)+"\r\n", 100), " 431 ")
	deep := strings.Repeat("[", 1<<20-100)
	f("nesting", head+fmt.Sprintf("ListStreams\r\nContent-Length: %d\r\n\r\n", len(deep)+6)+`{"a":`+deep+`}`, "SerializationException")
	deep = strings.Repeat(`{"a":`, 1000)
	f("nesting in a put", head+fmt.Sprintf("PutRecords\r\nContent-Length: %d\r\n\r\n", len(deep))+deep, "SerializationException")
	f("no room for so much", head+fmt.Sprintf("PutRecords\r\nContent-Length: %d\r\n\r\n", 8<<20)+strings.Repeat(" ", 8<<20), "ServiceUnavailable")
	f("bad frames", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x04\x04\x00\x00\x00\x00\x00\xff\xff\xff\xff", "")
	if held := d.bodies.Load(); held != 0 {
		t.Errorf("%d bytes of bodies are still held", held)
	}
	d.putOne(t, "s", "k", "still here")
}

func TestNoKeysMeansLoopbackOnly(t *testing.T) {
	d := openDoor(t, vfs.NewCrashable(), nil)
	ln, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Serve(ln, nil); err == nil || !strings.Contains(err.Error(), "configure access keys") {
		t.Errorf("got %v", err)
	}
}

func TestMetrics(t *testing.T) {
	var gather func() string
	d := openDoor(t, vfs.NewCrashable(), func(c *Config) { gather = gatherer(t, c) })
	d.must(t, "CreateStream", `{"StreamName":"s","ShardCount":1}`, nil)
	d.putOne(t, "s", "key", "12345")
	d.get(t, d.iterator(t, "s", zero, horizon), "")
	got := gather()
	for _, want := range []string{
		`milepost_kinesis_incoming_bytes_total{shard="` + zero + `",stream="s"} 8`,
		`milepost_kinesis_incoming_records_total{shard="` + zero + `",stream="s"} 1`,
		`milepost_kinesis_outgoing_records_total{shard="` + zero + `",stream="s"} 1`,
		`milepost_kinesis_get_records_iterator_age_milliseconds{shard="` + zero + `",stream="s"} 0`,
		`milepost_kinesis_requests_total{operation="PutRecord"} 1`,
		`milepost_kinesis_open_shards{stream="s"} 1`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
}

// TestKill puts from several clients, kills the process, and reads: what was acknowledged is there, and an iterator from before works.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	cmd, url := startHelper(t, dir)
	hc := client(t, false)
	ask := func(url, op, body string) (string, error) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
		if err != nil {
			return "", err
		}
		r.Header.Set("Content-Type", wire.JSON.ContentType())
		r.Header.Set("X-Amz-Target", target+op)
		resp, err := hc.Do(r)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %d %s", op, resp.StatusCode, b)
		}
		return string(b), err
	}
	if _, err := ask(url, "CreateStream", `{"StreamName":"bench","ShardCount":1}`); err != nil {
		t.Fatal(err)
	}
	var it struct{ ShardIterator string }
	for it.ShardIterator == "" { // until it is ACTIVE
		if b, err := ask(url, "GetShardIterator", `{"StreamName":"bench","ShardId":"`+zero+`",`+horizon+`}`); err == nil {
			if err := json.Unmarshal([]byte(b), &it); err != nil {
				t.Fatal(err)
			}
		}
	}
	var mu sync.Mutex
	acked := map[string]string{} // by sequence number: the data
	var putting sync.WaitGroup
	enough := make(chan struct{})
	var once sync.Once
	for w := range 4 {
		putting.Go(func() {
			for n := 0; ; n++ {
				data := fmt.Sprintf("%d-%d", w, n)
				var records []string
				for i := range 20 {
					records = append(records, fmt.Sprintf(`{"PartitionKey":"k","Data":"%s"}`, base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%s-%d", data, i))))
				}
				b, err := ask(url, "PutRecords", `{"StreamName":"bench","Records":[`+strings.Join(records, ",")+`]}`)
				if err != nil {
					return // killed
				}
				var out struct {
					Records []struct{ SequenceNumber string }
				}
				if err := json.Unmarshal([]byte(b), &out); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for i, r := range out.Records {
					acked[r.SequenceNumber] = fmt.Sprintf("%s-%d", data, i)
				}
				if len(acked) > 5000 {
					once.Do(func() { close(enough) })
				}
				mu.Unlock()
			}
		})
	}
	<-enough
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	putting.Wait()
	_ = cmd.Wait() // it was killed
	_, url = startHelper(t, dir)
	found := 0
	for next := it.ShardIterator; ; {
		b, err := ask(url, "GetRecords", `{"ShardIterator":"`+next+`"}`)
		if err != nil {
			t.Fatal(err)
		}
		var out gotRecords
		if err := json.NewDecoder(bytes.NewReader([]byte(b))).Decode(&out); err != nil {
			t.Fatal(err)
		}
		for _, r := range out.Records {
			if want, ok := acked[r.SequenceNumber]; ok {
				if found++; want != string(r.Data) {
					t.Errorf("record %s holds %q, was put as %q", r.SequenceNumber, r.Data, want)
				}
			}
		}
		if next = out.NextShardIterator; len(out.Records) == 0 {
			break
		}
	}
	if found != len(acked) {
		t.Errorf("%d of %d acknowledged records are there", found, len(acked))
	}
}

// nextCount returns how many records the next event has, without decoding it; false at the stream's end.
func (s *subscriber) nextCount() (int, bool) {
	var size [4]byte
	if _, err := io.ReadFull(s.body, size[:]); err != nil {
		return 0, false
	}
	n := int(binary.BigEndian.Uint32(size[:]))
	if cap(s.buf) < n {
		s.buf = make([]byte, n)
	}
	if _, err := io.ReadFull(s.body, s.buf[:n-len(size)]); err != nil {
		return 0, false
	}
	return bytes.Count(s.buf[:n-len(size)], []byte(`"PartitionKey"`)), true
}

// TestTLS speaks HTTP/2 by ALPN, and HTTP/1.1 with those who know no other.
func TestTLS(t *testing.T) {
	d := openDoor(t, vfs.NewCrashable(), nil)
	conf, err := selfSigned()
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- d.Serve(ln, conf) }()
	for _, h2 := range []bool{false, true} {
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: h2}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+ln.Addr().String(), strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", wire.JSON.ContentType())
		r.Header.Set("X-Amz-Target", target+"ListStreams")
		resp, err := (&http.Client{Transport: tr}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK || (resp.ProtoMajor == 2) != h2 {
			t.Errorf("h2=%v: got %s %s", h2, resp.Proto, resp.Status)
		}
		tr.CloseIdleConnections()
	}
	d.close(t)()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
