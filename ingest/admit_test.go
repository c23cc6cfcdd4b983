package ingest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/internal/memlog"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

const seed = `{"truck_id":"T100","ts":"2026-11-21T02:15:03.120Z","lat":40.7128,"long":-74.0060,"speed":63.2,"heading":181,` +
	`"fuel":55.1,"engine_temp":92.4,"fuel_pressure":44.0,"cargo_temp":3.8,"status":"moving"}`

type world struct {
	log, dead memlog.Log
	reg       *prometheus.Registry
	door      *ingest.Door
	receipt   ingest.Receipt
}

func newWorld(t testing.TB, limits ingest.Limits) *world {
	t.Helper()
	w := &world{reg: prometheus.NewRegistry()}
	a, err := ingest.New(ingest.Config{
		Log: &w.log, DeadLetters: &w.dead, Catalog: telemetry.NewCatalog(), Limits: limits, Metrics: w.reg,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.door = a.Door("test")
	return w
}

func (w *world) admit(p ingest.Payload) *ingest.Receipt {
	w.door.Admit(context.Background(), p, &w.receipt)
	return &w.receipt
}

// stored returns "key data" of each record.
func (w *world) stored() []string {
	var out []string
	for _, r := range w.log.Records() {
		out = append(out, r.Key+" "+string(r.Data))
	}
	return out
}

func (w *world) letters(t testing.TB) []stream.DeadLetter {
	t.Helper()
	var out []stream.DeadLetter
	for _, r := range w.dead.Records() {
		var d stream.DeadLetter
		if err := json.Unmarshal(r.Data, &d); err != nil {
			t.Fatal(err)
		}
		out = append(out, d)
	}
	return out
}

// wantSum checks that the receipt accounts for every reading.
func wantSum(t testing.TB, r *ingest.Receipt) {
	t.Helper()
	if sum := r.Accepted + r.Refused + r.Throttled + r.Failed; sum != r.Readings {
		t.Errorf("receipt accounts for %d of %d readings: %+v", sum, r.Readings, r)
	}
}

func TestAdmitKeepsTheSendersBytes(t *testing.T) {
	f := func(p ingest.Payload, want ...string) {
		t.Helper()
		w := newWorld(t, ingest.Limits{})
		r := w.admit(p)
		wantSum(t, r)
		if r.Accepted != len(want) || r.Readings != len(want) {
			t.Errorf("receipt of %s: %+v", p.Data, r)
		}
		if d := cmp.Diff(want, w.stored()); d != "" {
			t.Errorf("stored of %s (-want +got):\n%s", p.Data, d)
		}
	}
	f(ingest.Payload{Data: []byte(seed)}, "T100 "+seed)
	f(ingest.Payload{Data: []byte(" [ {\"truck_id\" : \"a\"} , {\"vehicle_id\":\"b\"} ] ")}, `a {"truck_id" : "a"}`, `b {"vehicle_id":"b"}`)
	f(ingest.Payload{Data: []byte("{\"truck_id\":\"a\"}\r\n\n{\"truck_id\":\"b\"}")}, `a {"truck_id":"a"}`, `b {"truck_id":"b"}`)
	// The topic names the vehicle: the key carries what the payload leaves out.
	f(ingest.Payload{Data: []byte(`{"speed":1}`), Vehicle: "v1"}, `v1 {"speed":1}`)
	f(ingest.Payload{Data: []byte(`{"truck_id":"v1"}`), Vehicle: "v1"}, `v1 {"truck_id":"v1"}`)
	// An id with an escape is no view of the payload.
	f(ingest.Payload{Data: []byte(`[{"truck_id":"\u0061"},{"truck_id":"\u0062"}]`)}, `a {"truck_id":"\u0061"}`, `b {"truck_id":"\u0062"}`)
}

func TestRefusalsAreDeadLettered(t *testing.T) {
	f := func(p ingest.Payload, accepted int, why ingest.Reason, letters ...string) {
		t.Helper()
		w := newWorld(t, ingest.Limits{MaxMessage: 100})
		p.From, p.Topic = "device", "some/topic"
		r := w.admit(p)
		wantSum(t, r)
		if r.Accepted != accepted || r.Refused == 0 || r.First != why || r.DeadLetterErr != nil {
			t.Errorf("receipt of %q: %+v, want %d accepted, first %s", p.Data, r, accepted, why)
		}
		var got []string
		for _, l := range w.letters(t) {
			got = append(got, string(l.Data))
			if l.Source != "test" || l.From != "device topic some/topic" || l.Key != p.Vehicle || l.Reason == "" || l.At.IsZero() {
				t.Errorf("dead letter of %q: %+v", p.Data, l)
			}
		}
		if d := cmp.Diff(letters, got); d != "" {
			t.Errorf("dead letters of %q (-want +got):\n%s", p.Data, d)
		}
	}
	f(ingest.Payload{Data: []byte("hello")}, 0, ingest.NotReading, "hello")
	f(ingest.Payload{Data: []byte("")}, 0, ingest.NotReading, "")
	f(ingest.Payload{Data: []byte(" \n ")}, 0, ingest.NotReading, " \n ")
	f(ingest.Payload{Data: []byte(`{"speed":1}`)}, 0, ingest.NotReading, `{"speed":1}`)
	f(ingest.Payload{Data: []byte(`{"truck_id":"b"}`), Vehicle: "a"}, 0, ingest.Mismatch, `{"truck_id":"b"}`)
	f(ingest.Payload{Data: []byte(`{"speed":"x`), Vehicle: "a"}, 0, ingest.NotReading, `{"speed":"x`)
	f(ingest.Payload{Data: []byte(`{"truck_id":"a","x":"` + strings.Repeat("x", 100) + `"}`)}, 0, ingest.TooLarge,
		`{"truck_id":"a","x":"`+strings.Repeat("x", 100)+`"}`)
	// Bad lines that follow one another share a letter; good ones between keep them apart.
	f(ingest.Payload{Data: []byte("x\ny\n{\"truck_id\":\"a\"}\nz")}, 1, ingest.NotReading, "x\ny", "z")
	// A damaged array: what came before is taken, the rest kept as it came.
	f(ingest.Payload{Data: []byte(`[{"truck_id":"a"},{"truck_id":"b",]`)}, 1, ingest.NotReading, `,{"truck_id":"b",]`)
	f(ingest.Payload{Data: []byte(`[{"truck_id":"a"},5,6,{"truck_id":"b"}]`)}, 2, ingest.NotReading, `5,6`)
	f(ingest.Payload{Data: []byte(strings.Repeat("[", 1000))}, 0, ingest.NotReading, strings.Repeat("[", 1000))
	f(ingest.Payload{Data: []byte(`{"truck_id":"a","speed":1e999}`)}, 0, ingest.NotReading, `{"truck_id":"a","speed":1e999}`)
}

func TestReceiptNamesLines(t *testing.T) {
	w := newWorld(t, ingest.Limits{})
	r := w.admit(ingest.Payload{Data: []byte("{\"truck_id\":\"a\"}\n\nbad\n{\"truck_id\":\"a\"}\nworse"), Line: 10})
	var got []int
	for _, p := range r.Problems {
		got = append(got, p.Line)
		if p.Retryable || p.Reason == "" {
			t.Errorf("problem %+v", p)
		}
	}
	if d := cmp.Diff([]int{13, 15}, got); d != "" || r.Accepted != 2 {
		t.Errorf("accepted %d, lines (-want +got):\n%s", r.Accepted, d)
	}
}

// A refusal is reported only when its dead letter is durable.
func TestRefusalWaitsForItsDeadLetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, ingest.Limits{})
		w.dead.Hold()
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.admit(ingest.Payload{Data: []byte("bad")})
		}()
		synctest.Wait()
		select {
		case <-done:
			t.Error("reported before it was durable")
		default:
		}
		w.dead.Release()
		<-done
		if w.receipt.Refused != 1 {
			t.Errorf("receipt %+v", w.receipt)
		}
	})
}

func TestFullDeadLetterStreamIsReported(t *testing.T) {
	w := newWorld(t, ingest.Limits{})
	w.dead.Fail(stream.ErrFull, 0)
	r := w.admit(ingest.Payload{Data: []byte("bad\n{\"truck_id\":\"a\"}")})
	wantSum(t, r)
	if r.Accepted != 1 || r.Refused != 1 || !errors.Is(r.DeadLetterErr, stream.ErrFull) {
		t.Errorf("receipt %+v", r)
	}
	if got := metric(t, w.reg, "milepost_ingest_dead_letters_lost_total"); got != 1 {
		t.Errorf("lost counter = %v, want 1", got)
	}
}

func metric(t testing.TB, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

func TestWhatTheLogDoesNotStoreIsNotAccepted(t *testing.T) {
	for _, fail := range []error{stream.ErrFull, stream.ErrFenced, stream.ErrClosed} {
		w := newWorld(t, ingest.Limits{})
		w.log.Fail(fail, 1)
		r := w.admit(ingest.Payload{Data: []byte("{\"truck_id\":\"a\"}\n{\"truck_id\":\"b\"}\nbad\n{\"truck_id\":\"c\"}")})
		wantSum(t, r)
		if r.Accepted != 1 || r.Failed != 2 || r.Refused != 1 || !errors.Is(r.Err, fail) {
			t.Errorf("%v: receipt %+v", fail, r)
		}
		want := []ingest.Problem{
			{Line: 2, Reason: "not stored: send it again", Retryable: true},
			{Line: 3, Reason: r.Problems[1].Reason},
			{Line: 4, Reason: "not stored: send it again", Retryable: true},
		}
		if d := cmp.Diff(want, r.Problems); d != "" {
			t.Errorf("%v: problems (-want +got):\n%s", fail, d)
		}
		if len(w.dead.Records()) != 1 {
			t.Errorf("%v: %d dead letters, want 1", fail, len(w.dead.Records()))
		}
		w.log.Fail(nil, 0)
		if r := w.admit(ingest.Payload{Data: []byte(seed)}); r.Accepted != 1 || r.Err != nil {
			t.Errorf("%v: after it mended: %+v", fail, r)
		}
	}
}

// A record that no log will ever take is refused, or its sender would send it for ever.
func TestTooLargeForTheLogIsRefused(t *testing.T) {
	w := newWorld(t, ingest.Limits{})
	w.log.Fail(stream.ErrTooLarge, 0)
	r := w.admit(ingest.Payload{Data: []byte(seed)})
	wantSum(t, r)
	if r.Refused != 1 || r.First != ingest.TooLarge || len(w.letters(t)) != 1 {
		t.Errorf("receipt %+v, %d letters", r, len(w.letters(t)))
	}
}

// After a failed append the rest of the body is not tried: it would overtake what the sender sends again (P2).
func TestNothingOvertakesAFailure(t *testing.T) {
	w := newWorld(t, ingest.Limits{})
	var body bytes.Buffer
	const n = 10_000
	for i := range n {
		fmt.Fprintf(&body, "{\"truck_id\":\"a\",\"x\":%d}\n", i)
	}
	w.log.Fail(stream.ErrFull, 100)
	r := w.admit(ingest.Payload{Data: body.Bytes()})
	wantSum(t, r)
	if r.Accepted != 100 || r.Failed != n-100 || w.log.Appends() != 1 || len(r.Problems) != ingest.MaxProblems {
		t.Errorf("accepted %d, failed %d in %d appends, %d problems", r.Accepted, r.Failed, w.log.Appends(), len(r.Problems))
	}
}

func TestLargeBodiesAreStoredInOrder(t *testing.T) {
	w := newWorld(t, ingest.Limits{})
	var body bytes.Buffer
	var want []string
	for i := range 10_000 {
		line := fmt.Sprintf("{\"truck_id\":\"v%d\",\"x\":%d}", i%7, i)
		body.WriteString(line + "\n")
		want = append(want, fmt.Sprintf("v%d %s", i%7, line))
	}
	if r := w.admit(ingest.Payload{Data: body.Bytes()}); r.Accepted != 10_000 {
		t.Errorf("receipt %+v", r)
	}
	if d := cmp.Diff(want, w.stored()); d != "" {
		t.Errorf("stored (-want +got):\n%s", d)
	}
}

// A body of nothing but bad lines becomes few dead letters that together hold it all.
func TestGarbageBecomesFewLetters(t *testing.T) {
	w := newWorld(t, ingest.Limits{})
	body := bytes.Repeat([]byte("garbage\n"), 200_000)
	r := w.admit(ingest.Payload{Data: body})
	if r.Refused != 200_000 || len(r.Problems) != ingest.MaxProblems {
		t.Errorf("refused %d, %d problems", r.Refused, len(r.Problems))
	}
	lines := 0
	for _, l := range w.letters(t) {
		lines += bytes.Count(l.Data, []byte("garbage"))
		if l.Cut > 0 {
			t.Errorf("letter %q was cut by %d", l.Reason, l.Cut)
		}
	}
	if n := len(w.dead.Records()); lines != 200_000 || n > 10 {
		t.Errorf("%d lines in %d letters", lines, n)
	}
}

func TestRatePerDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, ingest.Limits{RatePerDevice: 2, BurstPerDevice: 3})
		five := ingest.Payload{Data: []byte(strings.Repeat("{\"truck_id\":\"a\"}\n", 5))}
		r := w.admit(five)
		wantSum(t, r)
		if r.Accepted != 3 || r.Throttled != 2 || r.RetryAfter != 500*time.Millisecond || !r.Problems[0].Retryable {
			t.Errorf("burst: %+v", r)
		}
		if r := w.admit(ingest.Payload{Data: []byte(`{"truck_id":"b"}`)}); r.Accepted != 1 {
			t.Errorf("another vehicle: %+v", r)
		}
		time.Sleep(time.Second)
		if r := w.admit(five); r.Accepted != 2 || r.Throttled != 3 {
			t.Errorf("a second later: %+v", r)
		}
		if len(w.dead.Records()) != 0 {
			t.Error("what is throttled is the sender's still, not a dead letter")
		}
	})
}

// With Wait a device that is over its rate is slowed down to it and loses nothing.
func TestRateThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, ingest.Limits{RatePerDevice: 2, BurstPerDevice: 1})
		start := time.Now()
		for range 4 {
			r := w.admit(ingest.Payload{Data: []byte("{\"truck_id\":\"a\"}\n{\"truck_id\":\"a\"}"), Wait: t.Context()})
			if r.Accepted != 2 {
				t.Errorf("receipt %+v", r)
			}
		}
		if took := time.Since(start); took != 3500*time.Millisecond {
			t.Errorf("8 readings at 2/s after a burst of 1 took %s, want 3.5s", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if r := w.admit(ingest.Payload{Data: []byte("{\"truck_id\":\"a\"}\n{\"truck_id\":\"a\"}"), Wait: ctx}); r.Failed != 2 {
			t.Errorf("after the wait was called off: %+v", r)
		}
	})
}

func TestReservations(t *testing.T) {
	w := newWorld(t, ingest.Limits{MaxBody: 1000, MaxMessage: 1000, InFlightBytes: 4000})
	if !w.door.TryReserve(3000) || w.door.TryReserve(1001) || !w.door.TryReserve(1000) {
		t.Error("4000 bytes were not handed out as 3000 and 1000")
	}
	if got := metric(t, w.reg, "milepost_ingest_in_flight_bytes"); got != 4000 {
		t.Errorf("gauge = %v, want 4000", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.door.Reserve(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("reserve without room: %v", err)
	}
	w.door.Unreserve(4000)
	if err := w.door.Reserve(t.Context(), 5000); err == nil {
		t.Error("more than there is was promised")
	}
	if w.door.InFlight() != 0 {
		t.Errorf("%d bytes still in flight", w.door.InFlight())
	}
}

func TestMetrics(t *testing.T) {
	w := newWorld(t, ingest.Limits{})
	w.admit(ingest.Payload{Data: []byte("{\"truck_id\":\"a\"}\nbad\n{\"truck_id\":\"a\"}")})
	w.door.Refuse(ingest.Overloaded, 2)
	for name, want := range map[string]float64{
		"milepost_ingest_messages_total": 1, "milepost_ingest_readings_total": 2, "milepost_ingest_received_bytes_total": 37,
		"milepost_ingest_refused_total": 3, "milepost_ingest_dead_letters_total": 1,
	} {
		if got := metric(t, w.reg, name); got != want {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	for _, cfg := range []ingest.Config{{}, {Log: &memlog.Log{}}, {Log: &memlog.Log{}, DeadLetters: &memlog.Log{}}} {
		if _, err := ingest.New(cfg); err == nil {
			t.Errorf("New(%+v) found nothing missing", cfg)
		}
	}
}
