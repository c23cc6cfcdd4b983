package runtime

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/internal/conf"
)

const kinesisEvent = `{"Records":[{"kinesis":{"kinesisSchemaVersion":"1.0","partitionKey":"k","sequenceNumber":"1","data":"aGVsbG8=","approximateArrivalTimestamp":1607497475.123},"eventSource":"aws:kinesis","eventVersion":"1.0","eventID":"shardId-000000000000:1","eventName":"aws:kinesis:record","invokeIdentityArn":"arn:aws:iam::000000000000:role/r","awsRegion":"us-east-1","eventSourceARN":"arn:aws:kinesis:us-east-1:000000000000:stream/s"}]}`

func TestGo(t *testing.T) {
	c := golang("about")
	c.MemorySize = 512
	inv := open(t, c)
	r, err := inv.Invoke(t.Context(), &Request{ID: "a:b-1", Payload: []byte(kinesisEvent), ClientContext: `{"client":{"app_title":"t"}}`})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"records":1,"bytes":5,"request":"a:b-1","arn":"arn:aws:lambda:us-east-1:000000000000:function:go","name":"go","memory":512,"deadline":true,"app":"t"}`
	if string(r.Payload) != want {
		t.Errorf("got  %s\nwant %s", r.Payload, want)
	}
	if r.Init == 0 || r.Duration == 0 {
		t.Errorf("a cold start of %s, duration %s", r.Init, r.Duration)
	}
	if r := invoke(t, inv, kinesisEvent); r.Init != 0 {
		t.Errorf("the second invocation started the process anew: %s", r.Init)
	}

	failing(t, open(t, golang("error")), "{}", "errorString", "böse")
	inv = open(t, golang("panic"))
	r, _ = failing(t, inv, "{}", "string", "out of cheese")
	logHas(t, r, "START RequestId: request-1 Version: $LATEST\n", "out of cheese", "END RequestId: request-1\n", "REPORT RequestId: request-1\tDuration: ", "Init Duration: ", "Status: error")
	failing(t, inv, "{}", "string", "out of cheese") // in a new process
	succeed(t, open(t, golang("stream")), "{}", `"streamed"`)
	inv = open(t, golang("stream error"))
	failing(t, inv, "{}", "errorString", "torn") // as trailers
	failing(t, inv, "{}", "errorString", "torn")
	if got := inv.Status(); got.ColdStarts != 1 || got.Errors != 2 || got.LastError != "errorString: torn" {
		t.Errorf("status: %+v", got)
	}
}

func TestPython(t *testing.T) {
	inv := open(t, python(t, "app.handler"))
	root, err := filepath.Abs("testdata/python")
	if err != nil {
		t.Fatal(err)
	}
	r, err := inv.Invoke(t.Context(), &Request{ID: "r", Payload: []byte(`{"do":"context"}`), ClientContext: "eyJjdXN0b20iOnsiYSI6MX19", TraceID: "Root=1"})
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(r.Payload, &got); err != nil {
		t.Fatalf("%v: %s %s", err, r.Payload, r.Log)
	}
	want := map[string]any{
		"id": "r", "arn": "arn:aws:lambda:us-east-1:000000000000:function:py", "name": "py", "version": "$LATEST", "memory": "128",
		"group": "/aws/lambda/py", "stream": "$LATEST", "remaining": true, "custom": map[string]any{"a": 1.0}, "cwd": root, "trace": "Root=1",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	succeed(t, inv, `{"do":"echo","value":{"ü":[1,null,"🚚"]}}`, `{"ü": [1, null, "🚚"]}`)
	succeed(t, inv, `{}`, `null`)
	large := `"` + strings.Repeat("é", 1<<20) + `"`
	succeed(t, inv, `{"do":"echo","value":`+large+`}`, large)

	_, doc := failing(t, inv, `{"do":"raise"}`, "ValueError", "boom ü")
	if trace := fmt.Sprint(doc["stackTrace"]); !strings.Contains(trace, "app.py") || strings.Contains(trace, "bootstrap.py") || doc["requestId"] != "request-1" {
		t.Errorf("document %v", doc)
	}
	r = succeed(t, inv, `{"do":"print"}`, `null`)
	logHas(t, r, "START", "to stdout: grüße\n", "to stderr\n", "no newline", "[WARNING]\t", "request-1\tcareful\n", "END", "REPORT")
	if r = succeed(t, inv, `{"do":"echo","value":1}`, `1`); strings.Contains(string(r.Log), "careful") {
		t.Errorf("a log of the last invocation: %s", r.Log)
	}
	r = succeed(t, inv, `{"do":"much"}`, `null`)
	if len(r.Log) > 4<<10 || !strings.Contains(string(r.Log), "line 4999 ") {
		t.Errorf("tail of %d bytes: %s", len(r.Log), r.Log)
	}
	if lines := logs(inv, 3); len(lines) != 3 || !strings.HasPrefix(lines[1].Text, "END") || lines[2].RequestID != "request-1" {
		t.Errorf("lines %+v", lines)
	}
	failing(t, inv, `{"do":"huge"}`, "Function.ResponseSizeTooLarge", "Response payload size exceeded maximum allowed payload size (6291556 bytes).")
	failing(t, inv, `{"do":"set"}`, "Runtime.MarshalError", "set is not JSON serializable")
	failing(t, inv, `nonsense`, "Runtime.UnmarshalError", "")
	if s := inv.Status(); s.ColdStarts != 1 || s.Restarts != 0 || s.Processes != 1 {
		t.Errorf("something has ended the process: %+v", s)
	}
	failing(t, inv, `{"do":"exit","status":3}`, "Runtime.ExitError", "RequestId: request-1 Error: Runtime exited with error: exit status 3")
	failing(t, inv, `{"do":"exit","status":0}`, "Runtime.ExitError", "Runtime exited without providing a reason")
	failing(t, inv, `{"do":"kill"}`, "Runtime.ExitError", "Runtime exited with error: signal: killed")
	succeed(t, inv, `{}`, `null`)
	if s := inv.Status(); s.Restarts != 3 {
		t.Errorf("restarts: %+v", s)
	}
}

func TestPythonStart(t *testing.T) {
	f := func(handler, kind, message string) {
		t.Helper()
		inv := open(t, python(t, handler))
		failing(t, inv, `{}`, kind, message)
		failing(t, inv, `{}`, kind, message)
		if s := inv.Status(); s.ColdStarts != 2 {
			t.Errorf("%s: %d starts for two invocations", handler, s.ColdStarts)
		}
	}
	f("broken.handler", "RuntimeError", "no luck at the start")
	f("importing.handler", "Runtime.ImportModuleError", "Unable to import module 'importing': No module named 'no_such_module'")
	f("syntax.handler", "Runtime.UserCodeSyntaxError", "Syntax error in module 'syntax'")
	f("app.missing", "Runtime.HandlerNotFound", "Handler 'missing' missing on module 'app'")
	f("dies.handler", "Runtime.ExitError", "Runtime exited with error: exit status 7")
}

// A start that takes too long is repeated once, within the timeout of the invocation.
func TestSlowStart(t *testing.T) {
	c := python(t, "slow.handler")
	c.InitTimeout, c.Timeout = conf.Duration(600*time.Millisecond), conf.Duration(800*time.Millisecond)
	inv := open(t, c)
	r, _ := failing(t, inv, `{}`, "Sandbox.Timedout", "RequestId: request-1 Error: Task timed out after 0.80 seconds")
	logHas(t, r, "slow to start", "request-1 Task timed out after 0.80 seconds", "Status: timeout")
	if s := inv.Status(); s.ColdStarts != 2 || s.Timeouts != 1 {
		t.Errorf("status: %+v", s)
	}
}

func TestTimeout(t *testing.T) {
	c := python(t, "app.handler")
	c.Timeout = conf.Duration(1250 * time.Millisecond)
	inv := open(t, c)
	var pid int
	r := invoke(t, inv, `{"do":"pid"}`)
	if err := json.Unmarshal(r.Payload, &pid); err != nil {
		t.Fatal(err)
	}
	r, _ = failing(t, inv, `{"do":"sleep"}`, "Sandbox.Timedout", "RequestId: request-1 Error: Task timed out after 1.25 seconds")
	logHas(t, r, "Z request-1 Task timed out after 1.25 seconds\n", "END", "Status: timeout")
	if err := syscall.Kill(pid, 0); err == nil {
		t.Errorf("process %d is alive although its invocation has ended", pid)
	}
	succeed(t, inv, `{"do":"echo","value":1}`, `1`)
	if s := inv.Status(); s.Timeouts != 1 || s.Restarts != 1 || s.Errors != 1 || s.Invokes != 3 {
		t.Errorf("status: %+v", s)
	}
}

func TestNode(t *testing.T) {
	inv := open(t, node(t, "app.handler"))
	root, err := filepath.Abs("testdata/node")
	if err != nil {
		t.Fatal(err)
	}
	r, err := inv.Invoke(t.Context(), &Request{ID: "r", Payload: []byte(`{"do":"context"}`), ClientContext: `{"custom":{"a":1}}`, TraceID: "Root=1"})
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(r.Payload, &got); err != nil {
		t.Fatalf("%v: %s %s", err, r.Payload, r.Log)
	}
	want := map[string]any{
		"id": "r", "arn": "arn:aws:lambda:us-east-1:000000000000:function:js", "name": "js", "version": "$LATEST", "memory": "128",
		"group": "/aws/lambda/js", "remaining": true, "custom": map[string]any{"a": 1.0}, "cwd": root, "trace": "Root=1",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	succeed(t, inv, `{"do":"echo","value":{"ü":[1,null,"🚚"]}}`, `{"ü":[1,null,"🚚"]}`)
	succeed(t, inv, `{}`, `null`)
	succeed(t, inv, `{"do":"never"}`, `null`)
	large := `"` + strings.Repeat("é", 1<<20) + `"`
	succeed(t, inv, `{"do":"echo","value":`+large+`}`, large)
	_, doc := failing(t, inv, `{"do":"raise"}`, "TypeError", "boom ü")
	if !strings.Contains(fmt.Sprint(doc["trace"]), "app.js") {
		t.Errorf("document %v", doc)
	}
	r = succeed(t, inv, `{"do":"print"}`, `null`)
	logHas(t, r, "START", "Z\trequest-1\tINFO\tto stdout: grüße\n", "\tERROR\tto stderr\n", "no newline", "END", "REPORT")
	failing(t, inv, `{"do":"huge"}`, "Function.ResponseSizeTooLarge", "6291556 bytes")
	failing(t, inv, `{"do":"circular"}`, "Runtime.MarshalError", "Unable to stringify response body")
	if s := inv.Status(); s.ColdStarts != 1 {
		t.Errorf("something has ended the process: %+v", s)
	}
	failing(t, inv, `{"do":"loose"}`, "RangeError", "loose")
	failing(t, inv, `{"do":"rejected"}`, "Runtime.UnhandledPromiseRejection", "RangeError: unheard")
	failing(t, inv, `{"do":"exit","status":4}`, "Runtime.ExitError", "exit status 4")
	succeed(t, inv, `{}`, `null`)

	inv = open(t, node(t, "app.callback"))
	succeed(t, inv, `{}`, `{"later":true}`) // it waits for the event loop
	succeed(t, inv, `{"do":"impatient"}`, `{"later":false}`)
	succeed(t, inv, `{"do":"nothing"}`, `null`)
	failing(t, inv, `{"do":"fail"}`, "Error", "called back")
	succeed(t, open(t, node(t, "app.nested.deep")), `{}`, `"deep"`)
	succeed(t, open(t, node(t, "esm.handler")), `{"a":1}`, `{"base":"esm.mjs","event":{"a":1}}`)
}

func TestNodeStart(t *testing.T) {
	f := func(handler, kind, message string) {
		t.Helper()
		failing(t, open(t, node(t, handler)), `{}`, kind, message)
	}
	f("broken.handler", "Error", "no luck at the start")
	f("syntax.handler", "Runtime.UserCodeSyntaxError", "SyntaxError: ")
	f("app.missing", "Runtime.HandlerNotFound", "app.missing is undefined or not exported")
}

func TestEnvironment(t *testing.T) {
	t.Setenv("MILEPOST_SECRET", "must stay here")
	c := python(t, "app.handler")
	c.Environment = map[string]string{"TABLE": "trips", "TZ": "Europe/Berlin", "AWS_REGION": "eu-central-1"}
	c.Credentials = Credentials{"id", "secret", "session"}
	var got map[string]string
	r := invoke(t, open(t, c), `{"do":"environment"}`)
	if err := json.Unmarshal(r.Payload, &got); err != nil {
		t.Fatal(err)
	}
	root, _ := filepath.Abs("testdata/python")
	want := map[string]string{
		"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "session", "AWS_DEFAULT_REGION": "us-east-1",
		"AWS_EXECUTION_ENV": "AWS_Lambda_python3", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128", "AWS_LAMBDA_FUNCTION_NAME": "py",
		"AWS_LAMBDA_FUNCTION_VERSION": "$LATEST", "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand", "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/py",
		"AWS_REGION": "eu-central-1", "LAMBDA_TASK_ROOT": root, "LANG": "en_US.UTF-8", "TZ": "Europe/Berlin", "TABLE": "trips",
		"_HANDLER": "app.handler", "PATH": os.Getenv("PATH"),
	}
	for k, v := range want {
		if got[k] != v && k != "PATH" { // which python's launcher may have added to
			t.Errorf("%s = %q, want %q", k, got[k], v)
		}
	}
	if !strings.HasSuffix(got["PATH"], want["PATH"]) {
		t.Errorf("PATH = %s", got["PATH"])
	}
	if got["MILEPOST_SECRET"] != "" {
		t.Error("the function sees the environment of Milepost")
	}
	if !strings.HasPrefix(got["AWS_LAMBDA_RUNTIME_API"], "127.0.0.1:") || len(got["AWS_LAMBDA_LOG_STREAM_NAME"]) != len("2006/01/02/[$LATEST]")+32 {
		t.Errorf("%s, %s", got["AWS_LAMBDA_RUNTIME_API"], got["AWS_LAMBDA_LOG_STREAM_NAME"])
	}
}
