package lambda

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	goruntime "runtime"
	"strconv"
	"time"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/lambda/runtime"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

type (
	functionOutput struct {
		FunctionName     string
		FunctionArn      string
		Runtime          string `json:",omitempty"`
		Role             string
		Handler          string `json:",omitempty"`
		CodeSize         int64
		Description      string
		Timeout          int
		MemorySize       int
		LastModified     string
		CodeSha256       string
		Version          string
		Environment      *environment `json:",omitempty"`
		TracingConfig    tracing
		RevisionId       string
		State            string
		LastUpdateStatus string
		PackageType      string
		Architectures    []string
	}
	environment struct{ Variables map[string]string }
	tracing     struct{ Mode string }

	functionAndCode struct {
		Configuration functionOutput
		Code          codeLocation
		Concurrency   *concurrency `json:",omitempty"`
	}
	codeLocation struct {
		RepositoryType string
		Location       string
	}
	concurrency struct{ ReservedConcurrentExecutions int }
)

// output describes a function. Variables are left out of lists of people who may not read a function: they may be secrets.
func (r *Registry) functionOutput(f *function, variables bool) functionOutput {
	c := f.cfg
	b, err := json.Marshal(c)
	if err != nil {
		panic("lambda: bug: " + err.Error())
	}
	sum := sha256.Sum256(b)
	o := functionOutput{
		FunctionName: f.name, FunctionArn: r.functionARN(f.name), Runtime: lambdaRuntime(c.Runtime), Role: r.role(f.name), Handler: c.Handler,
		Timeout: int((c.Timeout + time.Second - 1) / time.Second), MemorySize: max(c.Memory, 128), LastModified: f.changed.UTC().Format("2006-01-02T15:04:05.000-0700"),
		CodeSha256: base64.StdEncoding.EncodeToString(sum[:]), Version: version, TracingConfig: tracing{"PassThrough"},
		RevisionId: requestID(string(b)), State: "Active", LastUpdateStatus: "Successful", PackageType: "Zip", Architectures: []string{"x86_64"},
	}
	if goruntime.GOARCH == "arm64" {
		o.Architectures[0] = "arm64"
	}
	if variables && len(c.Environment) > 0 {
		o.Environment = &environment{c.Environment}
	}
	return o
}

// lambdaRuntime returns a runtime if it is one that Lambda has: python3 without a version, say, is ours alone and left out.
func lambdaRuntime(s string) string {
	if regexp.MustCompile(`^(provided(\.al2|\.al2023)?|python3\.\d+|nodejs(\d+\.x)?)$`).MatchString(s) {
		return s
	}
	return ""
}

func listFunctions(_ context.Context, c *call) (any, error) {
	if err := c.access("*"); err != nil {
		return nil, err
	}
	q := c.req.URL.Query()
	if v := q.Get("FunctionVersion"); v != "" && v != "ALL" {
		return nil, constraint(v, "functionVersion", "Member must satisfy enum value set: [ALL]")
	}
	if q.Get("MasterRegion") != "" {
		return nil, invalidf("MasterRegion is not supported: there are no functions at the edge.")
	}
	from, to, next, err := c.page(len(c.r.names), 50)
	if err != nil {
		return nil, err
	}
	out := struct {
		NextMarker string `json:",omitempty"`
		Functions  []functionOutput
	}{next, []functionOutput{}}
	for _, name := range c.r.names[from:to] {
		out.Functions = append(out.Functions, c.r.functionOutput(c.r.functions[name], false))
	}
	return out, nil
}

func readConfiguration(_ context.Context, c *call) (any, error) {
	f, err := c.function()
	if err != nil {
		return nil, err
	}
	return c.r.functionOutput(f, true), nil
}

func readFunction(_ context.Context, c *call) (any, error) {
	f, err := c.function()
	if err != nil {
		return nil, err
	}
	where := f.cfg.Code
	if f.cfg.URL != "" {
		where = f.cfg.URL
	}
	return functionAndCode{c.r.functionOutput(f, true), codeLocation{"Milepost", where}, &concurrency{f.cfg.Concurrency}}, nil
}

func readConcurrency(_ context.Context, c *call) (any, error) {
	f, err := c.function()
	if err != nil {
		return nil, err
	}
	return concurrency{f.cfg.Concurrency}, nil
}

// invoke runs a function once, waits for it unless it is asynchronous, and answers what it answered.
func invoke(ctx context.Context, c *call) (any, error) {
	f, err := c.function()
	if err != nil {
		return nil, err
	}
	for _, h := range []string{"X-Amz-Tenant-Id", "X-Amz-Durable-Execution-Name"} {
		if c.req.Header.Get(h) != "" {
			return nil, invalidf("%s is not supported: functions here have neither tenants nor durable executions.", h)
		}
	}
	if len(c.body) > 0 && !json.Valid(c.body) {
		return nil, &fault{http.StatusBadRequest, typeContent, "Could not parse request body into json: it is not JSON."}
	}
	tail := c.req.Header.Get("X-Amz-Log-Type") // looked at before anything runs
	if tail != "" && tail != "None" && tail != "Tail" {
		return nil, constraint(tail, "logType", "Member must satisfy enum value set: [None, Tail]")
	}
	body := c.body
	if len(body) == 0 {
		body = []byte("{}")
	}
	c.header.Set("X-Amz-Executed-Version", version)
	switch kind := c.req.Header.Get("X-Amz-Invocation-Type"); kind {
	case "", "RequestResponse":
	case "DryRun":
		return statusOnly(http.StatusNoContent), nil
	case "Event":
		if err := c.r.later(ctx, f, body, c.req.Header.Get("X-Amz-Client-Context"), c.op); err != nil {
			return nil, err
		}
		return statusOnly(http.StatusAccepted), nil
	default:
		return nil, constraint(kind, "invocationType", "Member must satisfy enum value set: [Event, RequestResponse, DryRun]")
	}
	req := &runtime.Request{
		ID: c.header.Get("X-Amzn-Requestid"), Payload: body, ClientContext: c.req.Header.Get("X-Amz-Client-Context"), TraceID: c.req.Header.Get("X-Amzn-Trace-Id"),
	}
	resp, err := f.invoke(ctx, req)
	switch {
	case errors.Is(err, runtime.ErrThrottled):
		return nil, &fault{http.StatusTooManyRequests, typeThrottled, "Rate Exceeded."}
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, &fault{http.StatusInternalServerError, typeService, "The function did not run: " + err.Error()}
	}
	if resp.FunctionError != "" {
		c.header.Set("X-Amz-Function-Error", resp.FunctionError)
	}
	if tail == "Tail" {
		c.header.Set("X-Amz-Log-Result", base64.StdEncoding.EncodeToString(resp.Log))
	}
	if resp.Payload == nil {
		return []byte{}, nil
	}
	return resp.Payload, nil
}

// invokeAsync is the old form of an asynchronous invocation.
func invokeAsync(ctx context.Context, c *call) (any, error) {
	f, err := c.function()
	if err != nil {
		return nil, err
	}
	if !json.Valid(c.body) {
		return nil, &fault{http.StatusBadRequest, typeContent, "Could not parse request body into json: it is not JSON."}
	}
	if err := c.r.later(ctx, f, c.body, "", c.op); err != nil {
		return nil, err
	}
	return statusOnly(http.StatusAccepted), nil
}

// An asyncEvent is an asynchronous invocation that waits: the data of an effect.
type asyncEvent struct {
	At      time.Time `json:"at"`
	Context string    `json:"context,omitempty"`
	Payload []byte    `json:"payload"`
}

const (
	maxAsyncWaiting = 1000 // of one function
	asyncAge        = 6 * time.Hour
	asyncRetries    = 2
)

func eventKind(function string) string { return "lambda-event/" + function }

// later puts an event aside durably; the function's courier invokes it.
func (r *Registry) later(ctx context.Context, f *function, body []byte, clientContext string, op *operation) error {
	if len(body) > maxAsync {
		return &fault{http.StatusRequestEntityTooLarge, typeTooLarge, fmt.Sprintf("Request must be smaller than %d bytes for the %s operation", maxAsync, op.name)}
	}
	waiting, _, err := r.cfg.Store.Pending(ctx, eventKind(f.name), maxAsyncWaiting)
	if err != nil {
		return err
	}
	if len(waiting) >= maxAsyncWaiting {
		return &fault{http.StatusTooManyRequests, typeThrottled, strconv.Itoa(maxAsyncWaiting) + " asynchronous invocations of the function wait already."}
	}
	data, err := json.Marshal(asyncEvent{time.Now().UTC(), clientContext, body})
	if err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	return r.cfg.Store.Update(ctx, func(tx state.Tx) error {
		return tx.Emit(state.Effect{ID: newUUID(), Kind: eventKind(f.name), Data: data})
	})
}

// events is the courier of a function's asynchronous invocations: each is tried three times, after one minute and two; what is
// throttled waits up to six hours.
func (r *Registry) events(f *function) *courier {
	return &courier{
		store: r.cfg.Store, kind: eventKind(f.name), parallel: min(f.cfg.Concurrency, 8), log: r.cfg.Log, done: outcomeOf(r.metrics.events),
		patience: asyncAge, minBackoff: time.Second, maxBackoff: 5 * time.Minute,
		carry: func(ctx context.Context, e *state.Effect, tries int) error {
			var ev asyncEvent
			if err := json.Unmarshal(e.Data, &ev); err != nil {
				return &refusal{fmt.Errorf("not an event: %w", err)}
			}
			resp, err := f.invoke(ctx, &runtime.Request{ID: e.ID, Payload: ev.Payload, ClientContext: ev.Context})
			var no *process.NotRunError
			switch {
			case errors.As(err, &no):
				if time.Since(ev.At) > asyncAge {
					return &refusal{err}
				}
				return &laterError{err, max(no.After, time.Second)}
			case resp.FunctionError == "":
				return nil
			}
			failed := &CallError{RequestID: e.ID, Function: resp.FunctionError, Message: functionError(resp.Payload)}
			if tries >= asyncRetries {
				return &refusal{failed}
			}
			return &laterError{failed, time.Duration(tries+1) * time.Minute}
		},
		giveUp: func(ctx context.Context, e *state.Effect, why error) error {
			d := stream.DeadLetter{ID: e.ID, Reason: "asynchronous invocation: " + why.Error(), Source: "function " + f.name, At: time.Now().UTC(), Data: e.Data}
			var ev asyncEvent
			if json.Unmarshal(e.Data, &ev) == nil {
				d.Data = ev.Payload
			}
			return r.bury(ctx, d)
		},
	}
}
