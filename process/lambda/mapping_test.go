package lambda

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/stream"
)

func TestInOrderOnce(t *testing.T) {
	h := &handler{}
	b := newBench(t, Functions{"f": h.config(on("vehicles", func(m *MappingConfig) { m.BatchSize = 3 }))})
	want := []string{}
	for i := range 10 {
		want = append(want, fmt.Sprint(i))
		b.put("vehicles", fmt.Sprintf("k=%d", i))
	}
	b.caughtUp()
	if d := cmp.Diff(want, h.data()); d != "" {
		t.Error(d)
	}
	for _, c := range h.seen() {
		if len(c.data) > 3 || !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8`).MatchString(c.id) {
			t.Errorf("%d records, id %s", len(c.data), c.id)
		}
	}
	s := b.reg.List(t.Context())[0].Mappings[0]
	if s.State != stateEnabled || s.LastResult != resultOK || s.Lag != 0 || s.Total.Records != 10 || s.LastInvocation.IsZero() {
		t.Errorf("%+v", s)
	}
}

func TestPoisonIsolated(t *testing.T) {
	var mu sync.Mutex
	tries := map[string]int{}
	h := &handler{answer: func(c callSeen) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		tries[c.id]++
		if slices.Contains(c.data, "poison") {
			return "", errors.New("cannot read it")
		}
		return "{}", nil
	}}
	b := newBench(t, Functions{"f": h.config(on("vehicles", func(m *MappingConfig) {
		m.Bisect, m.MaxRetries, m.OnFailure, m.Enabled = true, 1, "s3://failed", false
	}))})
	var want []string
	for i := range 16 {
		d := fmt.Sprint(i)
		if i == 5 {
			d = "poison"
		} else {
			want = append(want, d)
		}
		b.put("vehicles", "k="+d)
	}
	uuid := b.reg.list()[0].uuid
	if err := b.reg.Resume(t.Context(), uuid); err != nil {
		t.Fatal(err)
	}
	b.caughtUp()
	var good []string
	for _, c := range h.seen() {
		if !slices.Contains(c.data, "poison") {
			good = append(good, c.data...)
		}
	}
	if d := cmp.Diff(want, good); d != "" {
		t.Errorf("every other record once, in order: %s", d)
	}
	objects := func() (files []string) {
		_ = walk(b.fs, "buckets/failed/aws", "aws", func(_, name string) error { files = append(files, name); return nil })
		return files
	}
	b.wait("the failure document", func() bool { return len(objects()) == 1 && !strings.HasSuffix(objects()[0], ".tmp") })
	name := objects()[0]
	if !regexp.MustCompile(`^aws/lambda/` + uuid + `/shardId-000000000000/\d{4}/\d\d/\d\d/\d{4}-\d\d-\d\dT\d\d\.\d\d\.\d\d-[0-9a-f-]{36}$`).MatchString(name) {
		t.Errorf("object %s", name)
	}
	raw, err := readFile(b.fs, "buckets/failed/"+name)
	if err != nil {
		t.Fatal(err)
	}
	var doc FailureDocument
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.RequestContext.Condition != process.AttemptsExhausted || doc.RequestContext.Invokes != 2 || doc.Batch.Records != 1 || doc.Batch.First != doc.Batch.Last {
		t.Errorf("%s", raw)
	}
	// The same record, once the function has learnt to read it.
	h.mu.Lock()
	h.answer = nil
	h.mu.Unlock()
	report, err := b.reg.Redrive(t.Context(), uuid, nil)
	if d := cmp.Diff(RedriveReport{Documents: 1, Records: 1}, report); d != "" || err != nil {
		t.Error(err, d)
	}
	calls := h.seen()
	if d := cmp.Diff([]string{"poison"}, calls[len(calls)-1].data); d != "" {
		t.Error(d)
	}
	if got := objects(); len(got) != 0 {
		t.Errorf("still there: %v", got)
	}
	if report, err = b.reg.Redrive(t.Context(), uuid, nil); err != nil || report.Documents != 0 {
		t.Errorf("redriven twice: %+v %v", report, err)
	}
}

func TestReportedItems(t *testing.T) {
	var mu sync.Mutex
	failed := map[string]int{}
	h := &handler{answer: func(c callSeen) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		for i, d := range c.data {
			if strings.HasPrefix(d, "bad") && failed[d] < 2 {
				failed[d]++
				return `{"batchItemFailures":[{"itemIdentifier":"` + c.numbers[i] + `"}]}`, nil
			}
		}
		return "", nil
	}}
	b := newBench(t, Functions{"f": h.config(on("vehicles", func(m *MappingConfig) { m.ReportFailures = true; m.Enabled = false }))})
	b.put("vehicles", "k=1", "k=2", "k=bad3", "k=4")
	if err := b.reg.Resume(t.Context(), b.reg.list()[0].uuid); err != nil {
		t.Fatal(err)
	}
	b.caughtUp()
	if d := cmp.Diff([]string{"1", "2", "bad3", "4", "bad3", "4", "bad3", "4"}, h.data()); d != "" {
		t.Error(d)
	}
}

func TestFilters(t *testing.T) {
	h := &handler{}
	b := newBench(t, Functions{"f": h.config(on("vehicles", func(m *MappingConfig) {
		m.Filters = []string{`{"data":{"type":["crash"]}}`, `{"data":["ping"],"partitionKey":[{"prefix":"truck-"}]}`}
	}))})
	b.put("vehicles", `a={"type":"crash","n":1}`, `a={"type":"idle"}`, `truck-1=ping`, `car-1=ping`, `a=not json`, `a={"type":["idle","crash"]}`)
	b.caughtUp()
	if d := cmp.Diff([]string{`{"type":"crash","n":1}`, `ping`, `{"type":["idle","crash"]}`}, h.data()); d != "" {
		t.Error(d)
	}
	if s := b.reg.List(t.Context())[0].Mappings[0]; s.Lag != 0 || s.Total.Filtered != 3 {
		t.Errorf("%+v", s.Total)
	}
}

func TestConsumerARNInEvents(t *testing.T) {
	h := &handler{}
	b := newBench(t, Functions{"f": h.config(on("vehicles", func(m *MappingConfig) { m.Consumer = "fast" }))})
	b.put("vehicles", "k=1")
	b.caughtUp()
	if c := h.seen(); len(c) != 1 || c[0].consumer != "arn:aws:kinesis:us-east-1:123456789012:stream/vehicles/consumer/fast:1700000000" {
		t.Errorf("%+v", c)
	}
}

func TestTumblingWindow(t *testing.T) {
	h := &handler{answer: func(c callSeen) (string, error) {
		var s struct{ N int }
		if err := json.Unmarshal([]byte(c.state), &s); err != nil {
			return "", err
		}
		return fmt.Sprintf(`{"state":{"N":%d}}`, s.N+len(c.data)), nil
	}}
	b := newBench(t, Functions{"f": h.config(on("vehicles", func(m *MappingConfig) { m.Tumbling = time.Second; m.BatchSize = 2 }))})
	b.put("vehicles", "k=1", "k=2", "k=3")
	b.wait("the final invocation", func() bool {
		c := h.seen()
		return len(c) > 0 && c[len(c)-1].final
	})
	n := 0
	for _, c := range h.seen() {
		if want := fmt.Sprintf(`{"N":%d}`, n); c.state != want && !(n == 0 && c.state == "{}") {
			t.Errorf("state %s, want %s", c.state, want)
		}
		n += len(c.data)
		if c.final {
			n = 0
		}
	}
}

func TestOutputStream(t *testing.T) {
	h := &handler{answer: func(c callSeen) (string, error) {
		var out []string
		for _, d := range c.data {
			out = append(out, fmt.Sprintf(`{"key":"k","json":{"seen":%q}}`, d))
		}
		return `{"output":[` + strings.Join(out, ",") + `]}`, nil
	}}
	b := newBench(t, Functions{"f": h.config(on("vehicles", func(m *MappingConfig) { m.Output = "out" }))})
	b.put("vehicles", "k=1", "k=2")
	b.caughtUp()
	b.wait("output", func() bool { return len(b.all("out")) == 2 })
	if d := cmp.Diff([]string{`{"seen":"1"}`, `{"seen":"2"}`}, b.all("out")); d != "" {
		t.Error(d)
	}
}

// TestPauseAndRestart: a pause keeps the place, through a restart too; the file's word counts again when it changes.
func TestPauseAndRestart(t *testing.T) {
	h := &handler{}
	b := newBench(t, Functions{"f": h.config(on("vehicles"))})
	b.put("vehicles", "k=1")
	b.caughtUp()
	uuid := b.reg.list()[0].uuid
	if err := b.reg.Pause(t.Context(), uuid); err != nil {
		t.Fatal(err)
	}
	b.wait("pause", func() bool { return b.reg.mapping(uuid).view().state == stateDisabled })
	behind := func() MappingStatus { return b.reg.List(t.Context())[0].Mappings[0] }
	if s := behind(); s.Lag != 0 || s.IteratorAgeMS != 0 {
		t.Errorf("paused with nothing to do: lag %d, age %d", s.Lag, s.IteratorAgeMS)
	}
	b.put("vehicles", "k=2")
	b.close()
	b.open()
	b.wait("pause after a restart", func() bool { return b.reg.mapping(uuid).view().state == stateDisabled })
	b.wait("a record that grows old", func() bool { s := behind(); return s.Lag == 1 && s.IteratorAgeMS > 0 && len(s.Shards) == 1 })
	if d := cmp.Diff([]string{"1"}, h.data()); d != "" {
		t.Error(d)
	}
	if err := b.reg.Resume(t.Context(), uuid); err != nil {
		t.Fatal(err)
	}
	b.caughtUp()
	if d := cmp.Diff([]string{"1", "2"}, h.data()); d != "" {
		t.Error(d)
	}
	b.close()
	b.cfg.Functions = Functions{"f": h.config(on("vehicles", func(m *MappingConfig) { m.Enabled = false }))}
	b.open()
	b.wait("the file's word", func() bool { return b.reg.mapping(uuid).view().state == stateDisabled })
}

func TestReset(t *testing.T) {
	h := &handler{}
	b := newBench(t, Functions{"f": h.config(on("vehicles"))})
	recs := b.put("vehicles", "k=1", "k=2", "k=3")
	b.caughtUp()
	uuid := b.reg.list()[0].uuid
	if err := b.reg.Reset(t.Context(), uuid, process.Target{Start: process.Oldest}); err != nil {
		t.Fatal(err)
	}
	b.wait("all again", func() bool { return len(h.data()) == 6 })
	if err := b.reg.Reset(t.Context(), uuid, process.Target{Shard: recs[0].Shard, Pos: recs[1].Pos}); err != nil {
		t.Fatal(err)
	}
	b.wait("the third again", func() bool { return len(h.data()) == 7 })
	if d := cmp.Diff([]string{"1", "2", "3", "1", "2", "3", "3"}, h.data()); d != "" {
		t.Error(d)
	}
}

// TestDestinations: the same failure at a stream, by HTTP and as dead letters.
func TestDestinations(t *testing.T) {
	var mu sync.Mutex
	var posted []string
	var keys []string
	answers := []int{500, 200}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		posted, keys = append(posted, string(body)), append(keys, r.Header.Get("Idempotency-Key"))
		w.WriteHeader(answers[min(len(posted)-1, 1)])
	}))
	defer srv.Close()
	h := &handler{answer: func(callSeen) (string, error) { return "", errors.New("no") }}
	with := func(to string) FunctionConfig {
		return h.config(on("vehicles", func(m *MappingConfig) { m.MaxRetries, m.OnFailure = 0, to }))
	}
	b := newBench(t, Functions{"to-stream": with("stream:failures"), "to-queue": with("arn:aws:sqs:us-east-1:123456789012:failures"), "to-url": with(srv.URL), "to-nobody": with("")})
	b.put("vehicles", "k=1")
	b.caughtUp()
	b.wait("documents", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(b.all("failures")) == 2 && len(b.all("dead")) == 1 && len(posted) == 2
	})
	if posted[0] != posted[1] || keys[0] != keys[1] || keys[0] == "" {
		t.Errorf("repetition differs: %q %q", posted, keys)
	}
	var doc FailureDocument
	if err := json.Unmarshal([]byte(posted[0]), &doc); err != nil || doc.Payload != nil || doc.Batch.Records != 1 || doc.RequestContext.Invokes != 1 {
		t.Errorf("%v %s", err, posted[0])
	}
	var letter stream.DeadLetter
	if err := json.Unmarshal([]byte(b.all("dead")[0]), &letter); err != nil || letter.Source != "function to-nobody@vehicles" || string(letter.Data) != "1" {
		t.Errorf("%v %+v", err, letter)
	}
	b.wait("nothing owed", func() bool {
		for _, f := range b.reg.List(t.Context()) {
			if f.Mappings[0].Owed > 0 {
				return false
			}
		}
		return true
	})
	// Redriven too early they fail again, and are not forgotten.
	for range 2 {
		for _, name := range []string{"to-stream", "to-nobody"} {
			uuids, err := b.reg.Find(name, "")
			if err != nil {
				t.Fatal(err)
			}
			if got, err := b.reg.Redrive(t.Context(), uuids[0], nil); err != nil || got.Documents != 1 || got.Failed != 1 || got.Records != 0 {
				t.Errorf("redrive %s too early: %+v %v", name, got, err)
			}
		}
	}
	h.mu.Lock()
	h.answer = nil
	h.mu.Unlock()
	for _, name := range []string{"to-stream", "to-nobody"} {
		uuids, err := b.reg.Find(name, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []RedriveReport{{Documents: 1, Records: 1}, {}} {
			if got, err := b.reg.Redrive(t.Context(), uuids[0], nil); err != nil || !cmp.Equal(want, got) {
				t.Errorf("redrive %s: %+v %v, want %+v", name, got, err, want)
			}
		}
	}
}

// TestRefusedDestination: what a destination will never take becomes a dead letter, whole.
func TestRefusedDestination(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	defer srv.Close()
	h := &handler{answer: func(callSeen) (string, error) { return "", errors.New("no") }}
	b := newBench(t, Functions{"f": h.config(on("vehicles", func(m *MappingConfig) { m.MaxRetries, m.OnFailure = 0, srv.URL }))})
	b.put("vehicles", "k=1")
	b.caughtUp()
	b.wait("a dead letter", func() bool { return len(b.all("dead")) == 1 })
	var letter stream.DeadLetter
	var doc FailureDocument
	if err := errors.Join(json.Unmarshal([]byte(b.all("dead")[0]), &letter), json.Unmarshal(letter.Data, &doc)); err != nil || doc.Batch.Records != 1 || !strings.Contains(letter.Reason, "403") {
		t.Errorf("%v %+v", err, letter)
	}
}

func TestParallelLanesKeepKeys(t *testing.T) {
	h := &handler{}
	b := newBench(t, Functions{"f": h.config(on("wide", func(m *MappingConfig) { m.Parallel, m.BatchSize = 4, 5 }))})
	for i := range 200 {
		b.put("wide", fmt.Sprintf("k%d=%d", i%13, i))
	}
	b.caughtUp()
	last := map[string]int{}
	n := 0
	for _, c := range h.seen() {
		for i, k := range c.keys {
			var v int
			_, _ = fmt.Sscan(c.data[i], &v)
			if was, ok := last[k]; ok && v <= was {
				t.Errorf("key %s: %d after %d", k, v, was)
			}
			last[k] = v
			n++
		}
	}
	if n != 200 {
		t.Errorf("%d records, want 200", n)
	}
}

// TestOutOfReach: a URL that nobody answers is no "No records processed", and costs no retry.
func TestOutOfReach(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	url := srv.URL
	srv.Close()
	b := newBench(t, Functions{"f": {URL: url, Timeout: time.Second, Concurrency: 1, On: []MappingConfig{on("vehicles", func(m *MappingConfig) { m.MaxRetries = 0 })}}})
	b.put("vehicles", "k=1")
	b.wait("the problem", func() bool {
		m := b.reg.List(t.Context())[0].Mappings[0]
		return m.LastResult == resultFailed && strings.Contains(m.LastError, "unreachable") && m.Total.DeadLetters == 0
	})
}
