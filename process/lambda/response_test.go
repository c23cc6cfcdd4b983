package lambda

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/stream"
)

// TestBatchItemFailures goes through everything that AWS documents and was seen to do.
func TestBatchItemFailures(t *testing.T) {
	src := testSource()
	var e event
	recs := testRecords(5, 10)
	e.build(&src, shardName{"shardId-000000000001", 1, 1.7e9}, recs, nil)
	id := func(i int) string { return string(e.number(i)) }
	const failure = -1
	for _, c := range []struct {
		name, payload string
		want          int // the first that failed; 5: none
	}{
		{"empty object", `{}`, 5},
		{"null", `null`, 5},
		{"empty string", `""`, 5},
		{"nothing", ``, 5},
		{"empty list", `{"batchItemFailures":[]}`, 5},
		{"null list", ` {"batchItemFailures":null}`, 5},
		{"another answer", `"done"`, 5},
		{"another object", `{"processed":5}`, 5},
		{"empty identifier", `{"batchItemFailures":[{"itemIdentifier":""}]}`, failure},
		{"null identifier", `{"batchItemFailures":[{"itemIdentifier":null}]}`, failure},
		{"wrong key", `{"batchItemFailures":[{"foo":"` + id(2) + `"}]}`, failure},
		{"unknown identifier", `{"batchItemFailures":[{"itemIdentifier":"123"}]}`, failure},
		{"number for an identifier", `{"batchItemFailures":[{"itemIdentifier":123}]}`, failure},
		{"one of two unknown", `{"batchItemFailures":[{"itemIdentifier":"` + id(2) + `"},{"itemIdentifier":"123"}]}`, failure},
		{"not a list", `{"batchItemFailures":"` + id(2) + `"}`, failure},
		{"list of identifiers", `{"batchItemFailures":["` + id(2) + `"]}`, failure},
		{"not JSON", `{"batchItemFailures":`, failure},
		{"one", `{"batchItemFailures":[{"itemIdentifier":"` + id(2) + `"}]}`, 2},
		{"first", `{"batchItemFailures":[{"itemIdentifier":"` + id(0) + `"}]}`, 0},
		{"last", `{"batchItemFailures":[{"itemIdentifier":"` + id(4) + `"}]}`, 4},
		{"several, lowest last", `{"batchItemFailures":[{"itemIdentifier":"` + id(4) + `"},{"itemIdentifier":"` + id(3) + `"},{"itemIdentifier":"` + id(1) + `"}]}`, 1},
	} {
		a, err := reading{report: true}.read([]byte(c.payload), &e)
		if got := a.failed; (err != nil) != (c.want == failure) || err == nil && got != c.want {
			t.Errorf("%s: %d %v, want %d", c.name, got, err, c.want)
		}
		if a, err := (reading{}).read([]byte(c.payload), &e); err != nil || a.failed != 5 {
			t.Errorf("%s without ReportBatchItemFailures: %d %v", c.name, a.failed, err)
		}
	}
	a, err := reading{report: true}.read(fmt.Appendf(nil, `{"batchItemFailures":[{"itemIdentifier":"%s"}]}`, id(3)), &e)
	if r := a.result(recs); err != nil || r.Failed != recs[3].Pos {
		t.Errorf("%+v %v", r, err)
	}
}

func TestWindowState(t *testing.T) {
	for payload, want := range map[string]string{
		`{"state":{"a":1}}`: `{"a":1}`, `{"state":null}`: `null`, `{"state":{},"batchItemFailures":[]}`: `{}`,
		`{}`: "error", ``: "error", `null`: "error", `{"stat":{}}`: "error",
	} {
		a, err := reading{window: true, report: true}.read([]byte(payload), &event{})
		if got := string(a.state); err != nil {
			if want != "error" {
				t.Errorf("%s: %v", payload, err)
			}
		} else if got != want {
			t.Errorf("%s: %s, want %s", payload, got, want)
		}
	}
}

func TestOutput(t *testing.T) {
	rd := reading{output: true}
	a, err := rd.read([]byte(`{"output":[{"key":"truck-7","data":"aGVsbG8="},{"key":"k","json":{"n": 1}},{"key":"e","data":""}]}`), &event{})
	want := []stream.Record{{Key: "truck-7", Data: []byte("hello")}, {Key: "k", Data: []byte(`{"n": 1}`)}, {Key: "e", Data: []byte{}}}
	if d := cmp.Diff(want, a.output); d != "" || err != nil {
		t.Error(err, d)
	}
	for _, none := range []string{`{}`, `null`, `{"output":null}`, `{"output":[]}`} {
		if a, err := rd.read([]byte(none), &event{}); err != nil || len(a.output) > 0 {
			t.Errorf("%s: %v %v", none, a.output, err)
		}
	}
	for bad, want := range map[string]string{
		`{"output":{}}`:                               "output is not a list",
		`{"output":[{"key":"k","data":"!"}]}`:         "output is not a list",
		`{"output":[{"data":"aGVsbG8="}]}`:            "output[0].key has 0 bytes",
		`{"output":[{"key":"k"}]}`:                    "give data (base64) or json",
		`{"output":[{"key":"k","data":"","json":1}]}`: "give data (base64) or json",
	} {
		if _, err := rd.read([]byte(bad), &event{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", bad, err, want)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	for _, s := range []string{`{"batchItemFailures":[{"itemIdentifier":"1"}],"state":{},"output":[{"key":"k","json":[]}]}`, `null`, `""`} {
		f.Add([]byte(s))
	}
	src := testSource()
	var e event
	recs := testRecords(3, 10)
	e.build(&src, shardName{"shardId-000000000001", 1, 1.7e9}, recs, nil)
	f.Fuzz(func(t *testing.T, payload []byte) {
		a, err := reading{true, true, true}.read(payload, &e)
		if err == nil && (a.failed < 0 || a.failed > 3 || len(a.state) == 0) {
			t.Errorf("%q: %+v", payload, a)
		}
	})
}
