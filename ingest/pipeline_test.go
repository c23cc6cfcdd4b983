package ingest_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/stream"
)

// An owner notes what it hears.
type owner struct {
	mu    sync.Mutex // guards what follows
	heard []ingest.Settlement
	more  chan struct{}
}

func newOwner() *owner { return &owner{more: make(chan struct{}, 1000)} }

func (o *owner) Settled(s *ingest.Settlement) {
	o.mu.Lock()
	o.heard = append(o.heard, *s)
	o.mu.Unlock()
	o.more <- struct{}{}
}

func (o *owner) wait(n int) []ingest.Settlement {
	for range n {
		<-o.more
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]ingest.Settlement(nil), o.heard...)
}

func submit(t *testing.T, p *ingest.Pipeline, o ingest.Owner, payloads ...string) []ingest.Judgement {
	t.Helper()
	in := p.Begin()
	var js []ingest.Judgement
	for _, data := range payloads {
		js = append(js, in.Add(&ingest.Payload{Data: []byte(data), Vehicle: "v1", Topic: "t"}, false))
	}
	if err := in.Submit(t.Context(), o, 0); err != nil {
		t.Fatal(err)
	}
	return js
}

// What is submitted while an append is under way shares the next one, and is answered in order when it is durable.
func TestPipeline(t *testing.T) {
	w := newWorld(t, ingest.Limits{})
	p := w.door.NewPipeline(nil)
	defer p.Close(t.Context())
	o := newOwner()
	waiting := w.log.Hold()
	submit(t, p, o, `{"speed":0}`)
	<-waiting
	for i := 1; i < 10; i++ {
		js := submit(t, p, o, fmt.Sprintf(`{"speed":%d}`, i), "nonsense", fmt.Sprintf("{\"speed\":%d}\nx", 10*i))
		if js[0].Refused != 0 || js[1].Refused != 1 || js[2].Refused != 1 || js[2].Readings != 2 || js[2].Line != 2 {
			t.Errorf("%+v", js)
		}
	}
	select {
	case <-o.more:
		t.Fatal("answered before it was durable")
	default:
	}
	w.log.Release()
	heard := o.wait(10)
	for i, s := range heard {
		if want := min(1+2*i, 3); s.Err != nil || s.Messages != want {
			t.Errorf("%d: %+v", i, s)
		}
	}
	var want, got []string
	want = append(want, `{"speed":0}`)
	for i := 1; i < 10; i++ {
		want = append(want, fmt.Sprintf(`{"speed":%d}`, i), fmt.Sprintf(`{"speed":%d}`, 10*i))
	}
	for _, r := range w.log.Records() {
		got = append(got, string(r.Data))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}
	if n := w.log.Appends(); n != 2 {
		t.Errorf("%d appends, want 2", n)
	}
	if n := len(w.dead.Records()); n != 18 {
		t.Errorf("%d dead letters, want 18", n)
	}
}

// A log that fails fails what was submitted; a full one is tried again, and nobody is told anything meanwhile.
func TestPipelineFailures(t *testing.T) {
	w := newWorld(t, ingest.Limits{})
	p := w.door.NewPipeline(nil)
	o := newOwner()
	w.log.Fail(stream.ErrFenced, 0)
	submit(t, p, o, `{"speed":1}`)
	if s := o.wait(1); s[0].Err == nil {
		t.Error("no error from a fenced log")
	}
	w.dead.Fail(stream.ErrFenced, 0)
	w.log.Fail(nil, 0)
	submit(t, p, o, "nonsense")
	if s := o.wait(1); s[1].Err == nil {
		t.Error("no error from fenced dead letters")
	}
	w.dead.Fail(nil, 0)
	w.log.Fail(stream.ErrFull, 1)
	submit(t, p, o, `{"speed":1}`, `{"speed":2}`, `{"speed":3}`)
	if s := o.wait(1); s[2].Err != nil { // each try stores one
		t.Error(s[2].Err)
	}
	var got []string
	for _, r := range w.log.Records() {
		got = append(got, string(r.Data))
	}
	if diff := cmp.Diff([]string{`{"speed":1}`, `{"speed":2}`, `{"speed":3}`}, got); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}
	w.log.Fail(stream.ErrFull, 0)
	submit(t, p, o, `{"speed":4}`)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p.Close(ctx)
	if s := o.wait(1); s[3].Err == nil {
		t.Error("closed with a full log, and no error")
	}
	in := p.Begin()
	in.Add(&ingest.Payload{Data: []byte(`{}`), Vehicle: "v"}, false)
	if err := in.Submit(t.Context(), o, 0); err == nil {
		t.Error("submitted to what is closed")
	}
	if n := w.door.InFlight(); n != 0 {
		t.Errorf("%d bytes in flight at the end", n)
	}
}

// InFlightBytes are a bound: Submit waits, and so does Wait.
func TestPipelineIsBounded(t *testing.T) {
	w := newWorld(t, ingest.Limits{MaxMessage: 1000, MaxBody: 1000, InFlightBytes: 10_000})
	p := w.door.NewPipeline(nil)
	o := newOwner()
	waiting := w.log.Hold()
	big := `{"x":"` + strings.Repeat("x", 900) + `"}`
	submit(t, p, o, big)
	<-waiting
	n := 1
	for {
		in := p.Begin()
		in.Add(&ingest.Payload{Data: []byte(big), Vehicle: "v1"}, false)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		err := in.Submit(ctx, o, 0)
		cancel()
		if err != nil {
			break
		}
		if n++; n > 100 {
			t.Fatal("no bound")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if p.Wait(ctx) == nil {
		t.Error("room to read where there is none")
	}
	w.log.Release()
	o.wait(n)
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	p.Close(t.Context())
	if got := len(w.log.Records()); got != n {
		t.Errorf("%d stored, want %d", got, n)
	}
}

// A submission with a ticket waits for it, and fails with it.
func TestPipelineAwaits(t *testing.T) {
	w := newWorld(t, ingest.Limits{})
	asked := make(chan uint64, 10)
	answers := make(chan error)
	p := w.door.NewPipeline(func(_ context.Context, ticket uint64) error {
		asked <- ticket
		return <-answers
	})
	defer p.Close(t.Context())
	o := newOwner()
	for i, fails := range []error{nil, stream.ErrFenced} {
		in := p.Begin()
		in.Pass()
		in.Await(7)
		in.Await(5)
		if err := in.Submit(t.Context(), o, 0); err != nil {
			t.Fatal(err)
		}
		if got := <-asked; got != 7 {
			t.Errorf("waits for %d", got)
		}
		answers <- fails
		if s := o.wait(1)[i]; s.Err != fails || s.Messages != 1 { //nolint:errorlint // the same
			t.Errorf("%+v", s)
		}
	}
}

func BenchmarkPipeline(b *testing.B) {
	w := newWorld(b, ingest.Limits{})
	w.log.Null = true
	p := w.door.NewPipeline(nil)
	defer p.Close(b.Context())
	o := &counter{}
	m := ingest.Payload{Data: []byte(seed), Vehicle: "T100"}
	b.ReportAllocs()
	for b.Loop() {
		in := p.Begin()
		for range 20 {
			in.Add(&m, false)
		}
		if err := in.Submit(b.Context(), o, 0); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(20*b.N), "ns/reading")
}

type counter struct{ n int }

func (c *counter) Settled(s *ingest.Settlement) { c.n += s.Messages }
