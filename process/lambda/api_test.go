package lambda

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/ingest/kinesisapi/sequence"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/lambda/runtime"
	"github.com/milepost/milepost/stream"
)

const vehiclesARN = "arn:aws:kinesis:us-east-1:123456789012:stream/vehicles"

// ask sends a raw request and returns the answer as text: status, type of error, body.
func (b *bench) ask(method, path, body string, headers ...string) string {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, b.api.URL+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s", resp.StatusCode, resp.Header.Get("X-Amzn-Errortype")) + "\n" + string(got))
}

var (
	anyUUID = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`)
	anyTime = regexp.MustCompile(`"LastModified":\d+\.\d+`)
)

func still(s string) string {
	return anyTime.ReplaceAllString(anyUUID.ReplaceAllString(s, "UUID"), `"LastModified":0.0`)
}

// TestAPIGolden holds answers to their exact shape, item by item.
func TestAPIGolden(t *testing.T) {
	h := &handler{}
	b := newBench(t, Functions{"f": h.config(), "g": h.config()})
	var got bytes.Buffer
	ask := func(name, method, path, body string) string {
		answer := b.ask(method, path, body)
		fmt.Fprintf(&got, "== %s\n%s\n", name, still(answer))
		return answer
	}
	const at = "/2015-03-31/event-source-mappings"
	created := ask("create with defaults", http.MethodPost, at, `{"FunctionName":"f","EventSourceArn":"`+vehiclesARN+`","StartingPosition":"LATEST"}`)
	uuid := anyUUID.FindString(created)
	b.wait("enabled", func() bool { return b.reg.mapping(uuid).view().state == stateEnabled })
	ask("get", http.MethodGet, at+"/"+uuid, "")
	ask("create a second time", http.MethodPost, at+"/", `{"FunctionName":"`+b.reg.functionARN("f")+`","EventSourceArn":"`+vehiclesARN+`","StartingPosition":"LATEST"}`)
	full := ask("create with everything", http.MethodPost, at, `{"FunctionName":"g","EventSourceArn":"`+vehiclesARN+`/consumer/fast:1700000000","Enabled":false,"BatchSize":500,
		"MaximumBatchingWindowInSeconds":5,"ParallelizationFactor":1,"StartingPosition":"AT_TIMESTAMP","StartingPositionTimestamp":1700000000.5,
		"MaximumRecordAgeInSeconds":3600,"MaximumRetryAttempts":3,"BisectBatchOnFunctionError":true,"TumblingWindowInSeconds":60,
		"FunctionResponseTypes":["ReportBatchItemFailures"],"MetricsConfig":{"Metrics":["EventCount"]},"FilterCriteria":{"Filters":[{"Pattern":"{\"data\":{\"a\":[\"<b>\"]}}"}]},
		"DestinationConfig":{"OnFailure":{"Destination":"arn:aws:sqs:us-east-1:123456789012:failures"}},"Tags":{"team":"fleet"}}`)
	second := anyUUID.FindString(full)
	b.wait("disabled", func() bool { return b.reg.mapping(second).view().state == stateDisabled })
	ask("list one function", http.MethodGet, at+"?FunctionName=g", "")
	ask("list another source", http.MethodGet, at+"?EventSourceArn="+vehiclesARN+"x", "")
	ask("enable", http.MethodPut, at+"/"+second, `{"Enabled":true,"BatchSize":7}`)
	b.wait("enabled", func() bool { return b.reg.mapping(second).view().state == stateEnabled })
	ask("no tags to take away", http.MethodDelete, "/2017-03-31/tags/arn%3Aaws%3Alambda%3Aus-east-1%3A123456789012%3Aevent-source-mapping%3A"+second, "")
	ask("tags", http.MethodGet, "/2017-03-31/tags/arn%3Aaws%3Alambda%3Aus-east-1%3A123456789012%3Aevent-source-mapping%3A"+second, "")
	ask("disable", http.MethodPut, at+"/"+second, `{"Enabled":false}`)
	b.wait("disabled", func() bool { return b.reg.mapping(second).view().state == stateDisabled })
	ask("delete", http.MethodDelete, at+"/"+second, "")
	b.wait("deleted", func() bool { return b.reg.mapping(second) == nil })
	ask("get what is gone", http.MethodGet, at+"/"+second, "")
	ask("delete what is gone", http.MethodDelete, at+"/"+second, "")

	wrong := func(name, change string) {
		doc := map[string]any{"FunctionName": "g", "EventSourceArn": vehiclesARN, "StartingPosition": "LATEST"}
		var c map[string]any
		if err := json.Unmarshal([]byte(change), &c); err != nil {
			t.Fatal(err)
		}
		for k, v := range c {
			if v == nil {
				delete(doc, k)
			} else {
				doc[k] = v
			}
		}
		body, _ := json.Marshal(doc)
		ask(name, http.MethodPost, at, string(body))
	}
	wrong("no function", `{"FunctionName":null}`)
	wrong("unknown function", `{"FunctionName":"h"}`)
	wrong("no source", `{"EventSourceArn":null}`)
	wrong("missing stream", `{"EventSourceArn":"arn:aws:kinesis:us-east-1:123456789012:stream/none"}`)
	wrong("missing consumer", `{"EventSourceArn":"`+vehiclesARN+`/consumer/slow:1"}`)
	wrong("another source", `{"EventSourceArn":"arn:aws:dynamodb:us-east-1:123456789012:table/t/stream/s"}`)
	wrong("no position", `{"StartingPosition":null}`)
	wrong("unknown position", `{"StartingPosition":"MIDDLE"}`)
	wrong("future", `{"StartingPosition":"AT_TIMESTAMP","StartingPositionTimestamp":4000000000}`)
	wrong("no time", `{"StartingPosition":"AT_TIMESTAMP"}`)
	wrong("batch too large", `{"BatchSize":10001}`)
	wrong("batch too small", `{"BatchSize":0}`)
	wrong("window too long", `{"MaximumBatchingWindowInSeconds":301}`)
	wrong("factor too large", `{"ParallelizationFactor":11}`)
	wrong("age too short", `{"MaximumRecordAgeInSeconds":59}`)
	wrong("too many retries", `{"MaximumRetryAttempts":10001}`)
	wrong("tumbling too long", `{"TumblingWindowInSeconds":901}`)
	wrong("tumbling and factor", `{"TumblingWindowInSeconds":60,"ParallelizationFactor":2}`)
	wrong("response type", `{"FunctionResponseTypes":["Everything"]}`)
	wrong("filter", `{"FilterCriteria":{"Filters":[{"Pattern":"{\"body\":[1]}"}]}}`)
	wrong("on success", `{"DestinationConfig":{"OnSuccess":{"Destination":"arn:aws:sqs:us-east-1:123456789012:failures"}}}`)
	wrong("destination", `{"DestinationConfig":{"OnFailure":{"Destination":"arn:aws:kinesis:us-east-1:123456789012:stream/none"}}}`)
	wrong("directory", `{"DestinationConfig":{"OnFailure":{"Destination":"file:///etc"}}}`)
	wrong("kafka", `{"Topics":["t"]}`)
	wrong("logs of a poller", `{"LoggingConfig":{"SystemLogLevel":"DEBUG"}}`)
	wrong("metrics of Kafka", `{"MetricsConfig":{"Metrics":["KafkaMetrics"]}}`)
	wrong("unknown metrics", `{"MetricsConfig":{"Metrics":["Everything"]}}`)
	wrong("response type twice", `{"FunctionResponseTypes":["ReportBatchItemFailures","ReportBatchItemFailures"]}`)
	wrong("long destination", `{"DestinationConfig":{"OnFailure":{"Destination":"arn:aws:sqs:us-east-1:123456789012:`+strings.Repeat("x", 400)+`"}}}`)
	wrong("not a source", `{"EventSourceArn":"vehicles"}`)
	wrong("not a function", `{"FunctionName":"a b"}`)
	ask("not JSON", http.MethodPost, at, `{"FunctionName":`)
	ask("wrong type", http.MethodPost, at, `{"BatchSize":"ten"}`)
	ask("unknown operation", http.MethodGet, "/2018-10-31/layers", "")
	ask("create a function", http.MethodPost, "/2015-03-31/functions", `{}`)
	ask("function", http.MethodGet, "/2015-03-31/functions/h", "")
	golden(t, "api.txt", got.String())
}

// TestSDK works through the API with AWS' own client.
func TestSDK(t *testing.T) {
	h := &handler{}
	b := newBench(t, Functions{"f": h.config(), "g": h.config(on("wide"))})
	c, ctx := b.client(), t.Context()
	out, err := c.CreateEventSourceMapping(ctx, &sdk.CreateEventSourceMappingInput{
		FunctionName: aws.String("f"), EventSourceArn: aws.String(vehiclesARN), StartingPosition: types.EventSourcePositionTrimHorizon, BatchSize: aws.Int32(2),
		DestinationConfig: &types.DestinationConfig{OnFailure: &types.OnFailure{Destination: aws.String("arn:aws:s3:::failed")}},
		FilterCriteria:    &types.FilterCriteria{Filters: []types.Filter{{Pattern: aws.String(`{"data":[{"prefix":"x"}]}`)}}},
		Tags:              map[string]string{"a": "b"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if *out.State != "Creating" || *out.BatchSize != 2 || out.LastModified == nil || time.Since(*out.LastModified) > time.Minute || *out.DestinationConfig.OnFailure.Destination != "arn:aws:s3:::failed" {
		t.Errorf("%+v", out)
	}
	b.put("vehicles", "k=x1", "k=y", "k=x2", "k=x3")
	b.caughtUp()
	if d := cmp.Diff([]string{"x1", "x2", "x3"}, h.data()); d != "" {
		t.Error(d)
	}
	got, err := c.GetEventSourceMapping(ctx, &sdk.GetEventSourceMappingInput{UUID: out.UUID})
	if err != nil || *got.State != "Enabled" || *got.LastProcessingResult != "OK" {
		t.Errorf("%+v %v", got, err)
	}
	// An API-made mapping outlives a restart, and goes on where it was.
	b.close()
	b.put("vehicles", "k=x4")
	b.open()
	c = b.client()
	b.caughtUp()
	if d := cmp.Diff([]string{"x1", "x2", "x3", "x4"}, h.data()); d != "" {
		t.Error(d)
	}
	var uuids []string
	pages := sdk.NewListEventSourceMappingsPaginator(c, &sdk.ListEventSourceMappingsInput{MaxItems: aws.Int32(1)})
	for pages.HasMorePages() {
		p, err := pages.NextPage(ctx)
		if err != nil || len(p.EventSourceMappings) > 1 {
			t.Fatal(err, p)
		}
		for _, m := range p.EventSourceMappings {
			uuids = append(uuids, *m.UUID)
		}
	}
	if len(uuids) != 2 {
		t.Errorf("listed %v", uuids)
	}
	// Deleted and made again it begins anew.
	if _, err := c.DeleteEventSourceMapping(ctx, &sdk.DeleteEventSourceMappingInput{UUID: out.UUID}); err != nil {
		t.Fatal(err)
	}
	b.wait("deleted", func() bool {
		_, err := c.GetEventSourceMapping(ctx, &sdk.GetEventSourceMappingInput{UUID: out.UUID})
		var gone *types.ResourceNotFoundException
		return errors.As(err, &gone)
	})
	again, err := c.CreateEventSourceMapping(ctx, &sdk.CreateEventSourceMappingInput{FunctionName: aws.String("f"), EventSourceArn: aws.String(vehiclesARN), StartingPosition: types.EventSourcePositionTrimHorizon})
	if err != nil || *again.UUID == *out.UUID {
		t.Fatal(err)
	}
	b.caughtUp()
	if d := cmp.Diff([]string{"x1", "x2", "x3", "x4", "x1", "y", "x2", "x3", "x4"}, h.data()); d != "" {
		t.Error(d)
	}
	// Errors are of the types that the client knows.
	_, err = c.CreateEventSourceMapping(ctx, &sdk.CreateEventSourceMappingInput{FunctionName: aws.String("f"), EventSourceArn: aws.String(vehiclesARN), StartingPosition: types.EventSourcePositionLatest})
	var conflict *types.ResourceConflictException
	if !errors.As(err, &conflict) || !strings.Contains(conflict.ErrorMessage(), "Please update or delete the existing mapping with UUID "+*again.UUID) {
		t.Error(err)
	}
	_, err = c.CreateEventSourceMapping(ctx, &sdk.CreateEventSourceMappingInput{FunctionName: aws.String("f"), EventSourceArn: aws.String(vehiclesARN + "x"), StartingPosition: types.EventSourcePositionLatest})
	var invalid *types.InvalidParameterValueException
	if !errors.As(err, &invalid) || invalid.ErrorMessage() != "Stream not found: "+vehiclesARN+"x" {
		t.Error(err)
	}
	// The file's mapping can be disabled and nothing else.
	var ofFile string
	for _, m := range b.reg.list() {
		if m.view().def.Configured {
			ofFile = m.uuid
		}
	}
	_, err = c.UpdateEventSourceMapping(ctx, &sdk.UpdateEventSourceMappingInput{UUID: &ofFile, BatchSize: aws.Int32(1)})
	if !errors.As(err, &invalid) || !strings.Contains(invalid.ErrorMessage(), "functions.g.on") {
		t.Error(err)
	}
	if _, err = c.DeleteEventSourceMapping(ctx, &sdk.DeleteEventSourceMappingInput{UUID: &ofFile}); !errors.As(err, &invalid) {
		t.Error(err)
	}
	if u, err := c.UpdateEventSourceMapping(ctx, &sdk.UpdateEventSourceMappingInput{UUID: &ofFile, Enabled: aws.Bool(false)}); err != nil || *u.State != "Disabling" {
		t.Error(u, err)
	}
	b.wait("disabled", func() bool { return b.reg.mapping(ofFile).view().state == stateDisabled })
	tags, err := c.ListTags(ctx, &sdk.ListTagsInput{Resource: again.EventSourceMappingArn})
	if err != nil || len(tags.Tags) != 0 {
		t.Error(tags, err)
	}
	if _, err := c.TagResource(ctx, &sdk.TagResourceInput{Resource: again.EventSourceMappingArn, Tags: map[string]string{"x": "y", "z": ""}}); err != nil {
		t.Error(err)
	}
	if _, err := c.UntagResource(ctx, &sdk.UntagResourceInput{Resource: again.EventSourceMappingArn, TagKeys: []string{"z"}}); err != nil {
		t.Error(err)
	}
	if tags, err = c.ListTags(ctx, &sdk.ListTagsInput{Resource: again.EventSourceMappingArn}); err != nil || !cmp.Equal(tags.Tags, map[string]string{"x": "y"}) {
		t.Error(tags, err)
	}
}

func TestInvoke(t *testing.T) {
	h := &handler{answer: func(c callSeen) (string, error) {
		if strings.Contains(c.payload, "fail") {
			return "", errors.New("as you wish")
		}
		return `{"got":` + c.payload + `}`, nil
	}}
	b := newBench(t, Functions{"f": h.config()})
	c, ctx := b.client(), t.Context()
	out, err := c.Invoke(ctx, &sdk.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`{"a":1}`), LogType: types.LogTypeTail})
	if err != nil || string(out.Payload) != `{"got":{"a":1}}` || out.StatusCode != 200 || *out.ExecutedVersion != "$LATEST" || out.FunctionError != nil || out.LogResult == nil {
		t.Errorf("%+v %v", out, err)
	}
	if _, err := base64.StdEncoding.DecodeString(aws.ToString(out.LogResult)); err != nil {
		t.Error(err)
	}
	out, err = c.Invoke(ctx, &sdk.InvokeInput{FunctionName: aws.String(b.reg.functionARN("f")), Payload: []byte(`{"x":"fail"}`), Qualifier: aws.String("$LATEST")})
	if err != nil || aws.ToString(out.FunctionError) != "Unhandled" || out.StatusCode != 200 || !strings.Contains(string(out.Payload), "as you wish") {
		t.Errorf("%+v %v", out, err)
	}
	out, err = c.Invoke(ctx, &sdk.InvokeInput{FunctionName: aws.String("f"), InvocationType: types.InvocationTypeDryRun})
	if err != nil || out.StatusCode != 204 {
		t.Errorf("%+v %v", out, err)
	}
	before := len(h.seen())
	for _, headers := range [][]string{{"X-Amz-Log-Type", "All"}, {"X-Amz-Tenant-Id", "t"}, {"X-Amz-Durable-Execution-Name", "n"}, {"X-Amz-Invocation-Type", "Never"}} {
		if got := b.ask(http.MethodPost, "/2015-03-31/functions/f/invocations", "{}", headers...); !strings.HasPrefix(got, "400 ") || len(h.seen()) != before {
			t.Errorf("%s: %d invocations: %s", headers, len(h.seen())-before, got)
		}
	}
	if got := b.ask(http.MethodPost, "/2014-11-13/functions/f/invoke-async", "{}"); got != "202" {
		t.Errorf("InvokeAsync: %q", got)
	}
	b.wait("the old form of an event", func() bool { return len(h.seen()) == before+1 })
	before++
	out, err = c.Invoke(ctx, &sdk.InvokeInput{FunctionName: aws.String("f"), InvocationType: types.InvocationTypeEvent, Payload: []byte(`{"later":true}`)})
	if err != nil || out.StatusCode != 202 {
		t.Errorf("%+v %v", out, err)
	}
	b.wait("the event", func() bool { return len(h.seen()) == before+1 })
	var missing *types.ResourceNotFoundException
	if _, err = c.Invoke(ctx, &sdk.InvokeInput{FunctionName: aws.String("g")}); !errors.As(err, &missing) || missing.ErrorMessage() != "Function not found: arn:aws:lambda:us-east-1:123456789012:function:g" {
		t.Error(err)
	}
	if _, err = c.Invoke(ctx, &sdk.InvokeInput{FunctionName: aws.String("f"), Qualifier: aws.String("7")}); !errors.As(err, &missing) {
		t.Error(err)
	}
	var large *types.RequestTooLargeException
	if _, err = c.Invoke(ctx, &sdk.InvokeInput{FunctionName: aws.String("f"), Payload: bytes.Repeat([]byte(" "), maxPayload+1)}); !errors.As(err, &large) {
		t.Error(err)
	}
	if _, err = c.Invoke(ctx, &sdk.InvokeInput{FunctionName: aws.String("f"), InvocationType: types.InvocationTypeEvent, Payload: append(bytes.Repeat([]byte(" "), maxAsync), "{}"...)}); !errors.As(err, &large) {
		t.Error(err)
	}
	var content *types.InvalidRequestContentException
	if _, err = c.Invoke(ctx, &sdk.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`{`)}); !errors.As(err, &content) {
		t.Error(err)
	}
	list, err := c.ListFunctions(ctx, &sdk.ListFunctionsInput{})
	if err != nil || len(list.Functions) != 1 || *list.Functions[0].FunctionName != "f" || *list.Functions[0].Timeout != 10 {
		t.Errorf("%+v %v", list, err)
	}
	f, err := c.GetFunction(ctx, &sdk.GetFunctionInput{FunctionName: aws.String("f")})
	if err != nil || f.Configuration.State != types.StateActive || *f.Concurrency.ReservedConcurrentExecutions != 10 {
		t.Errorf("%+v %v", f, err)
	}
	if _, err := c.GetFunctionConfiguration(ctx, &sdk.GetFunctionConfigurationInput{FunctionName: aws.String("f")}); err != nil {
		t.Error(err)
	}
	if n, err := c.GetFunctionConcurrency(ctx, &sdk.GetFunctionConcurrencyInput{FunctionName: aws.String("f")}); err != nil || *n.ReservedConcurrentExecutions != 10 {
		t.Error(n, err)
	}
	tails, err := b.reg.Logs("f")
	if err != nil || len(tails) == 0 || !strings.Contains(tails[0].Error, "as you wish") {
		t.Errorf("%+v %v", tails, err)
	}
}

func TestThrottledInvoke(t *testing.T) {
	hold := make(chan struct{})
	began := make(chan struct{}, 1)
	h := &handler{answer: func(callSeen) (string, error) {
		began <- struct{}{}
		<-hold
		return "{}", nil
	}}
	cfg := h.config()
	cfg.Concurrency = 1
	b := newBench(t, Functions{"f": cfg})
	c := b.client()
	done := make(chan error, 1)
	go func() { // waited for below
		_, err := c.Invoke(t.Context(), &sdk.InvokeInput{FunctionName: aws.String("f")})
		done <- err
	}()
	<-began
	var busy *types.TooManyRequestsException
	if _, err := c.Invoke(t.Context(), &sdk.InvokeInput{FunctionName: aws.String("f")}); !errors.As(err, &busy) || busy.Reason != types.ThrottleReasonReservedFunctionConcurrentInvocationLimitExceeded {
		t.Error(err)
	}
	close(hold)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestKeys: with access keys a request must be signed by one, and may do what its policy says.
func TestKeys(t *testing.T) {
	h := &handler{}
	b := newBench(t, Functions{"f": h.config()})
	b.close()
	b.cfg.AccessKeys = []AccessKey{
		{ID: "AKID", Secret: "secret-of-sixteen"},
		{ID: "CALLER", Secret: "another-of-sixteen", Policy: `{"Statement":{"Effect":"Allow","Action":"lambda:InvokeFunction","Resource":"arn:aws:lambda:*:*:function:f"}}`},
	}
	b.open()
	if got := b.ask(http.MethodGet, "/2015-03-31/functions", ""); !strings.HasPrefix(got, "403 MissingAuthenticationTokenException") {
		t.Error(got)
	}
	if _, err := b.client().ListFunctions(t.Context(), &sdk.ListFunctionsInput{}); err != nil {
		t.Error(err)
	}
	if _, err := b.client().ListTags(t.Context(), &sdk.ListTagsInput{Resource: aws.String(b.reg.functionARN("f"))}); err != nil {
		t.Errorf("a path with escapes: %v", err)
	}
	as := func(id, secret string) *sdk.Client {
		return sdk.New(sdk.Options{Region: "us-east-1", BaseEndpoint: &b.api.URL, Credentials: credentials.NewStaticCredentialsProvider(id, secret, ""), RetryMaxAttempts: 1})
	}
	caller := as("CALLER", "another-of-sixteen")
	if _, err := caller.Invoke(t.Context(), &sdk.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`{}`)}); err != nil {
		t.Error(err)
	}
	if _, err := caller.ListFunctions(t.Context(), &sdk.ListFunctionsInput{}); err == nil || !strings.Contains(err.Error(), "AccessDeniedException: User: arn:aws:iam::123456789012:user/CALLER is not authorized to perform: lambda:ListFunctions") {
		t.Error(err)
	}
	if _, err := as("AKID", "wrong-of-sixteen!!").ListFunctions(t.Context(), &sdk.ListFunctionsInput{}); err == nil || !strings.Contains(err.Error(), "InvalidSignatureException") {
		t.Error(err)
	}
}

// deadlines notes the read deadlines that a handler sets.
type deadlines struct {
	http.ResponseWriter
	set []time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	d.set = append(d.set, t)
	return nil
}

// TestBodyHasATime: a client that sends its body a byte a minute is cut off, and the connection's next request is not.
func TestBodyHasATime(t *testing.T) {
	b := newBench(t, nil)
	w := &deadlines{ResponseWriter: httptest.NewRecorder()}
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/2015-03-31/event-source-mappings", strings.NewReader("{}"))
	b.reg.API().ServeHTTP(w, req)
	if len(w.set) != 2 || time.Until(w.set[0]) > bodyTimeout || w.set[0].IsZero() || !w.set[1].IsZero() {
		t.Errorf("deadlines: %v", w.set)
	}
}

func TestFailureDocumentGolden(t *testing.T) {
	shard := shardName{"shardId-000000000006", 6, 1573691000}
	recs := []stream.Record{
		{Key: "a", Data: []byte("one"), Pos: position(1), Time: at("2019-11-14T00:38:04.835Z")},
		{Key: "b", Data: []byte("two"), Pos: position(2), Time: at("2019-11-14T00:38:05.580Z")},
	}
	call := &CallError{RequestID: "c9b8fa9f-5a7f-xmpl-af9c-0c604cde93a5", Function: "Unhandled", Message: "x"}
	f := process.Failure{ID: "f@s/shardId-000000000006/0/1-2", Function: "f@s", Condition: process.AttemptsExhausted, Attempts: 2, Shard: shard.id, Records: recs, Err: fmt.Errorf("wrapped: %w", call), At: at("2019-11-14T00:38:06.021Z")}
	show := func() string {
		d := document(&f, "arn:aws:lambda:us-east-2:123456789012:function:myfunction", "arn:aws:kinesis:us-east-2:123456789012:stream/mystream", shard)
		b, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		return string(b) + "\n"
	}
	got := show()
	f.Err = &CallError{RequestID: call.RequestID, Message: "reported"}
	got += show()
	f.Condition, f.Err, f.Attempts = process.AgeExceeded, nil, 1
	got += show()
	golden(t, "failures.jsonl", got)
}

func TestOperations(t *testing.T) {
	h := &handler{}
	b := newBench(t, Functions{"f": h.config(on("vehicles"), on("wide"))})
	b.put("vehicles", "k=1", "k=2")
	b.caughtUp()
	b.api.Config.Handler = b.reg.Operations()
	const kind, js = "Content-Type", "application/json"
	uuids, err := b.reg.Find("f", "vehicles")
	if err != nil || len(uuids) != 1 {
		t.Fatal(uuids, err)
	}
	for _, c := range []struct{ method, path, body, want string }{
		{"GET", "/v1/functions", "", `200`},
		{"GET", "/v1/functions/f", "", `200`},
		{"GET", "/v1/functions/f/logs", "", "200 \n{\"invocations\":[]}"},
		{"GET", "/v1/functions/f/lines", "", "200 \n{\"lines\":[]}"},
		{"GET", "/v1/functions/g/lines", "", "404 \n{\"error\":\"there is no function g\"}"},
		{"GET", "/v1/functions/f/lines?since=-1", "", "400 \n{\"error\":\"since: \\\"-1\\\" is not the number of a line\"}"},
		{"GET", "/v1/functions/f/lines?limit=0", "", "400 \n{\"error\":\"limit: \\\"0\\\": use 1 to 2000\"}"},
		{"POST", "/v1/functions/g/invoke", "{}", "404 \n{\"error\":\"there is no function g\"}"},
		{"POST", "/v1/functions/f/invoke", "{", "400 \n{\"error\":\"body: the event is not JSON\"}"},
		{"GET", "/v1/functions/g", "", "404 \n{\"error\":\"there is no function g\"}"},
		{"POST", "/v1/functions/f/pause", `{"mapping":"vehicles"}`, "200 \n{\"done\":[{\"mapping\":\"" + uuids[0] + "\"}]}"},
		{"POST", "/v1/functions/f/resume", `{"mapping":"` + uuids[0] + `"}`, `200`},
		{"POST", "/v1/functions/f/reset", `{"mapping":"vehicles","to":"TRIM_HORIZON"}`, "400 \n{\"error\":\"reset makes records be processed again or not at all: confirm it with \\\"confirm\\\": \\\"f\\\"\"}"},
		{"POST", "/v1/functions/f/reset", `{"mapping":"vehicles","to":"START","confirm":"f"}`, "400 \n{\"error\":\"to: \\\"START\\\" is not known: use TRIM_HORIZON, LATEST or AT_TIMESTAMP\"}"},
		{"POST", "/v1/functions/f/reset", `{"mapping":"vehicles","to":"trim_horizon","confirm":"f"}`, `200`},
		{"POST", "/v1/functions/f/redrive", `{"mapping":"vehicles"}`, "200 \n{\"done\":[{\"mapping\":\"" + uuids[0] + "\",\"report\":{\"documents\":0,\"records\":0,\"failed\":0,\"missing\":0}}]}"},
		{"POST", "/v1/functions/f/dance", `{}`, "404 \n{\"error\":\"\\\"dance\\\" is not known: use pause, resume, reset, redrive or invoke\"}"},
		{"POST", "/v1/functions/f/pause", `{"maping":"vehicles"}`, "400 \n{\"error\":\"body: json: unknown field \\\"maping\\\"\"}"},
		{"POST", "/v1/functions/f/reset", `{"mapping":"vehicles","confirm":"f","to":"AT_TIMESTAMP","time":"2999-01-01T00:00:00Z"}`, "400 \n{\"error\":\"time: 2999-01-01T00:00:00Z is in the future: use LATEST\"}"},
		{"POST", "/v1/functions/f/reset", `{"mapping":"vehicles","confirm":"f","shard":"shardId-000000000001","sequence":"` + sequence.Number{Created: 1, Number: 1, Arrived: 2, Shard: 7}.String() + `"}`, "400 \n{\"error\":\"sequence: "},
		{"POST", "/v1/functions/f/pause", `{"mapping":"none"}`, "404 \n{\"error\":\"function f has no mapping none: give the UUID or the stream of one\"}"},
	} {
		if got := b.ask(c.method, c.path, c.body, kind, js); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s %s %s\ngot  %s\nwant %s", c.method, c.path, c.body, got, c.want)
		}
	}
	if got := b.ask("POST", "/v1/functions/f/pause", "mapping=vehicles", kind, "application/x-www-form-urlencoded"); !strings.HasPrefix(got, "415") {
		t.Error(got)
	}
	b.wait("the reset", func() bool { return cmp.Equal(h.data(), []string{"1", "2", "1", "2"}) })
}

func FuzzMappingInput(f *testing.F) {
	f.Add([]byte(`{"FunctionName":"f","BatchSize":3,"FilterCriteria":{"Filters":[{"Pattern":"{}"}]},"DestinationConfig":{"OnFailure":{"Destination":"arn:aws:s3:::b-b"}},"StartingPosition":"AT_TIMESTAMP","StartingPositionTimestamp":1e9}`))
	r := &Registry{functions: map[string]*function{"f": {name: "f", cfg: FunctionConfig{Func: func(_ context.Context, _ *runtime.Request) ([]byte, error) { return nil, nil }}}}}
	r.cfg.Stream = func(string) (stream.Log, error) { return nil, stream.ErrNoStream }
	f.Fuzz(func(t *testing.T, body []byte) {
		c := &call{r: r, body: body}
		var in mappingInput
		if c.decode(&in) != nil {
			return
		}
		d := &definition{BatchSize: 100, Parallel: 1, MaxRetries: -1, MaxAge: -1}
		if in.apply(r, d) != nil || in.start(d, time.Unix(1.8e9, 0)) != nil {
			return
		}
		if d.BatchSize < 1 || d.BatchSize > maxBatch || d.Parallel < 1 || d.Parallel > maxParallel || d.StartTime.Unix() > 1.8e9 {
			t.Errorf("%s is taken: %+v", body, d)
		}
	})
}
