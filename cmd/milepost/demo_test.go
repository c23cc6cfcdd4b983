package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/events"
	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/process/lambda"
)

// The demo runs its windows, its query and its function beside the fleet, and stops when it is told to.
func TestDemo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, in := io.Pipe()
	code := make(chan int, 1)
	var complaints bytes.Buffer // read when run has returned
	go func() {                 // received below
		code <- run(ctx, &env{strings.NewReader(""), in, &complaints}, []string{"demo", "--data", t.TempDir(), "--http", freeAddr(t), "--vehicles", "3"})
		in.Close() //nolint:errcheck,gosec // a pipe
	}()
	address := regexp.MustCompile(`http://[0-9.:]+`)
	said := make([]byte, 4096)
	n, err := out.Read(said)
	if err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, out) //nolint:errcheck // what it says at the end
	addr := address.FindString(string(said[:n]))
	if addr == "" {
		t.Fatalf("no address in %q", said[:n])
	}
	resp, err := http.Post(addr+"/v1/readings", "application/json", strings.NewReader(`{"vehicle_id":"fast","speed":90}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close() //nolint:errcheck,gosec // nothing of it is needed
	ask := func(path string, into any) {
		t.Helper()
		resp, err := http.Get(addr + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	var functions struct{ Functions []lambda.FunctionStatus }
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		ask("/v1/functions", &functions)
		if len(functions.Functions) == 1 && len(functions.Functions[0].Mappings) == 1 && functions.Functions[0].Mappings[0].Total.Records > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the function was not called: %+v", functions)
		}
	}
	if m := functions.Functions[0].Mappings[0]; m.Total.Errors > 0 || m.State != "Enabled" {
		t.Errorf("%+v", m)
	}
	cancel()
	if got := <-code; got != 0 {
		t.Errorf("exit code %d: %s", got, complaints.String())
	}
	if sqlBuilt() && complaints.String() != "" { // without SQL it says so
		t.Error(complaints.String())
	}
}

// The demo's function counts readings over its window and tells them at its end.
func TestSpeeding(t *testing.T) {
	event := func(state map[string]string, final bool, keys ...string) events.KinesisTimeWindowEvent {
		e := events.KinesisTimeWindowEvent{}
		e.State, e.IsFinalInvokeForWindow = state, final
		e.Window.End.Time = time.Unix(60, 0).UTC()
		for _, k := range keys {
			e.Records = append(e.Records, events.KinesisEventRecord{Kinesis: events.KinesisRecord{PartitionKey: k}})
		}
		return e
	}
	a, err := speeding(t.Context(), event(nil, false, "b", "a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"a": "1", "b": "2"}, a.State); diff != "" || a.Output != nil {
		t.Errorf("state (-want +got):\n%s%v", diff, a.Output)
	}
	if a, err = speeding(t.Context(), event(a.State, false, "b")); err != nil {
		t.Fatal(err)
	}
	if a, err = speeding(t.Context(), event(a.State, true)); err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(a)
	if want := `{"state":null,"output":[{"key":"a","json":{"vehicle_id":"a","until":"1970-01-01T00:01:00Z","readings":1}},` +
		`{"key":"b","json":{"vehicle_id":"b","until":"1970-01-01T00:01:00Z","readings":3}}]}`; err != nil || string(got) != want {
		t.Errorf("got %s %v, want %s", got, err, want)
	}
	if _, err := speeding(t.Context(), event(map[string]string{"a": "many"}, false, "a")); err == nil || !strings.Contains(fmt.Sprint(err), "state of a") {
		t.Errorf("a state that is no number: %v", err)
	}
}
