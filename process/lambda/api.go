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
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/milepost/milepost/ingest/kinesisapi/policy"
)

// A call is one request of Lambda's API on its way.
type call struct {
	r      *Registry
	key    string // ID of the access key that signed it; "" without keys
	req    *http.Request
	header http.Header // of the answer
	body   []byte
	arg    string // the part of the path that names a function, a mapping or a resource
	op     *operation
}

// An operation is one of the API.
type operation struct {
	name   string
	method string
	path   string // with one * for the argument
	body   int64
	status int
	do     func(context.Context, *call) (any, error) // a []byte is an answer as it is; nil: none
}

const controlBody = 1 << 20

// operations lists what is served. The dates are versions that AWS has given to single paths.
func operations() []operation {
	return []operation{
		{"CreateEventSourceMapping", http.MethodPost, "/2015-03-31/event-source-mappings", controlBody, http.StatusAccepted, createMapping},
		{"ListEventSourceMappings", http.MethodGet, "/2015-03-31/event-source-mappings", 0, http.StatusOK, listMappings},
		{"GetEventSourceMapping", http.MethodGet, "/2015-03-31/event-source-mappings/*", 0, http.StatusOK, readMapping},
		{"UpdateEventSourceMapping", http.MethodPut, "/2015-03-31/event-source-mappings/*", controlBody, http.StatusAccepted, updateMapping},
		{"DeleteEventSourceMapping", http.MethodDelete, "/2015-03-31/event-source-mappings/*", 0, http.StatusAccepted, deleteMapping},
		{"InvokeFunction", http.MethodPost, "/2015-03-31/functions/*/invocations", maxPayload, http.StatusOK, invoke},
		{"InvokeAsync", http.MethodPost, "/2014-11-13/functions/*/invoke-async", maxAsync, http.StatusAccepted, invokeAsync},
		{"ListFunctions", http.MethodGet, "/2015-03-31/functions", 0, http.StatusOK, listFunctions},
		{"GetFunction", http.MethodGet, "/2015-03-31/functions/*", 0, http.StatusOK, readFunction},
		{"GetFunctionConfiguration", http.MethodGet, "/2015-03-31/functions/*/configuration", 0, http.StatusOK, readConfiguration},
		{"GetFunctionConcurrency", http.MethodGet, "/2019-09-30/functions/*/concurrency", 0, http.StatusOK, readConcurrency},
		{"PutFunctionConcurrency", http.MethodPut, "/2017-10-31/functions/*/concurrency", controlBody, http.StatusOK, fileOwns},
		{"DeleteFunctionConcurrency", http.MethodDelete, "/2017-10-31/functions/*/concurrency", 0, http.StatusNoContent, fileOwns},
		{"CreateFunction", http.MethodPost, "/2015-03-31/functions", 128 << 20, http.StatusCreated, fileOwns},
		{"DeleteFunction", http.MethodDelete, "/2015-03-31/functions/*", 0, http.StatusNoContent, fileOwns},
		{"UpdateFunctionConfiguration", http.MethodPut, "/2015-03-31/functions/*/configuration", controlBody, http.StatusOK, fileOwns},
		{"UpdateFunctionCode", http.MethodPut, "/2015-03-31/functions/*/code", 128 << 20, http.StatusOK, fileOwns},
		{"ListTags", http.MethodGet, "/2017-03-31/tags/*", 0, http.StatusOK, listTags},
		{"TagResource", http.MethodPost, "/2017-03-31/tags/*", controlBody, http.StatusNoContent, tagResource},
		{"UntagResource", http.MethodDelete, "/2017-03-31/tags/*", 0, http.StatusNoContent, untagResource},
	}
}

// fileOwns refuses what the configuration file decides.
func fileOwns(_ context.Context, c *call) (any, error) {
	return nil, invalidf("%s is not possible: functions are made and changed in the section functions of Milepost's configuration file; restart it afterwards.", c.op.name)
}

// match compares a path, still escaped, with a pattern and returns the argument.
func (o *operation) match(path string) (arg string, ok bool) {
	before, after, has := strings.Cut(o.path, "*")
	if !has {
		return "", path == o.path
	}
	rest, ok := strings.CutPrefix(path, before)
	if !ok {
		return "", false
	}
	if rest, ok = strings.CutSuffix(rest, after); !ok || rest == "" || strings.Contains(rest, "/") {
		return "", false
	}
	arg, err := url.PathUnescape(rest)
	return arg, err == nil
}

// API returns the handler of Lambda's API. Its server bounds the time of the header; the body has 30 s.
func (r *Registry) API() http.Handler {
	ops := operations()
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		c := &call{r: r, req: req, header: w.Header()}
		c.header.Set("X-Amzn-Requestid", newUUID())
		path := strings.TrimSuffix(req.URL.EscapedPath(), "/")
		for i := range ops {
			arg, ok := ops[i].match(path)
			if ok && ops[i].method == req.Method {
				c.op, c.arg = &ops[i], arg
				break
			}
		}
		status, err := c.serve(w)
		name := "unknown"
		if c.op != nil {
			name = c.op.name
		}
		if err != nil {
			f := asFault(err)
			status = f.status
			if status == http.StatusInternalServerError && !cutShort(err) {
				r.cfg.Log.ErrorContext(req.Context(), "lambda request failed", "operation", name, "error", err)
			}
			f.write(w)
		}
		r.metrics.requests.WithLabelValues(name, strconv.Itoa(status)).Inc()
	})
}

func (c *call) serve(w http.ResponseWriter) (int, error) {
	if c.op == nil {
		return 0, &fault{http.StatusNotFound, typeUnknown, fmt.Sprintf("%s %s is not an operation that Milepost has. It has event source mappings, Invoke, and reading functions; see docs/functions.md.", c.req.Method, c.req.URL.Path)}
	}
	if err := c.read(w); err != nil {
		return 0, err
	}
	if c.r.verifier != nil {
		key, err := c.r.verifier.Verify(c.req, c.body, time.Now())
		if err != nil {
			return 0, err
		}
		c.key = key
	}
	out, err := c.op.do(c.req.Context(), c)
	if err != nil {
		return 0, err
	}
	status := c.op.status
	if s, ok := out.(statusOnly); ok {
		status, out = int(s), nil
	}
	if out == nil {
		w.WriteHeader(status)
		return status, nil
	}
	body, ok := out.([]byte)
	if !ok {
		if body, err = encode(out); err != nil {
			return 0, err
		}
	}
	c.header.Set("Content-Type", "application/json")
	c.header.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone
	return status, nil
}

// encode writes JSON as AWS does, with <, > and & as they are.
func encode(v any) ([]byte, error) {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("write answer: %w", err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// statusOnly is an answer without a body.
type statusOnly int

// bodyTimeout is how long a request may take to arrive.
const bodyTimeout = 30 * time.Second

// read reads the body within the operation's size and bodyTimeout.
func (c *call) read(w http.ResponseWriter) error {
	if c.op.body == 0 {
		return nil
	}
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // a writer without deadlines is a test's
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }()
	var buf bytes.Buffer
	if n := c.req.ContentLength; n > 0 && n <= c.op.body {
		buf.Grow(int(n) + bytes.MinRead)
	}
	_, err := buf.ReadFrom(io.LimitReader(c.req.Body, c.op.body+1))
	c.body = buf.Bytes()
	if int64(len(c.body)) > c.op.body {
		return &fault{http.StatusRequestEntityTooLarge, typeTooLarge, fmt.Sprintf("Request must be smaller than %d bytes for the %s operation", c.op.body, c.op.name)}
	}
	if err != nil {
		return &fault{http.StatusBadRequest, typeContent, "Could not read the request: " + err.Error()}
	}
	return nil
}

// decode reads the body as JSON. Keys that the API has and Milepost does not are refused where they are looked at.
func (c *call) decode(into any) error {
	if len(bytes.TrimSpace(c.body)) == 0 {
		return nil
	}
	if err := json.Unmarshal(c.body, into); err != nil {
		if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return &fault{http.StatusBadRequest, typeSerial, fmt.Sprintf("%s can not be converted to a %s", wrong.Value, wanted(wrong.Type))}
		}
		return &fault{http.StatusBadRequest, typeContent, "Could not parse request body into json: " + err.Error()}
	}
	return nil
}

// access decides whether the caller may do the operation on a resource. Without keys everyone may.
func (c *call) access(resource string) error {
	if c.r.verifier == nil {
		return nil
	}
	action := "lambda:" + c.op.name
	switch c.r.policies[c.key].Decide(action, resource) {
	case policy.Allow:
		return nil
	case policy.Deny:
		return &fault{http.StatusForbidden, typeAccessDenied, c.denied(action, resource) + "with an explicit deny in a policy"}
	case policy.None:
	}
	return &fault{http.StatusForbidden, typeAccessDenied, c.denied(action, resource) + "because no identity-based policy allows the " + action + " action"}
}

func (c *call) denied(action, resource string) string {
	return fmt.Sprintf("User: arn:aws:iam::%s:user/%s is not authorized to perform: %s on resource: %s ", c.r.cfg.Account, c.key, action, resource)
}

// functionName reads a function's name in the forms that the API takes: NAME, NAME:QUALIFIER, ACCOUNT:function:NAME, an ARN.
func (r *Registry) functionName(s string) (name, qualifier string, ok bool) {
	rest := s
	if r, isARN := strings.CutPrefix(s, "arn:"); isARN {
		parts := strings.SplitN(r, ":", 5) // aws:lambda:REGION:ACCOUNT:function:NAME
		if len(parts) != 5 || parts[1] != "lambda" {
			return "", "", false
		}
		rest = parts[4]
	} else if account, r, has := strings.Cut(s, ":function:"); has && len(account) == 12 {
		rest = "function:" + r
	}
	rest = strings.TrimPrefix(rest, "function:")
	name, qualifier, _ = strings.Cut(rest, ":")
	return name, qualifier, isFunctionName(name)
}

func noFunctionName(s string) *fault {
	return constraint(s, "functionName", `Member must satisfy regular expression pattern: (arn:(aws[a-zA-Z-]*)?:lambda:)?([a-z]{2}(-gov)?-[a-z]+-\d{1}:)?(\d{12}:)?(function:)?([a-zA-Z0-9-_]+)(:(\$LATEST|[a-zA-Z0-9-_]+))?`)
}

// function finds a function of the request's path and checks access to it.
func (c *call) function() (*function, error) {
	name, qualifier, ok := c.r.functionName(c.arg)
	if q := c.req.URL.Query().Get("Qualifier"); q != "" {
		qualifier = q
	}
	arn := c.r.functionARN(name)
	if !ok {
		return nil, noFunctionName(c.arg)
	}
	if err := c.access(arn); err != nil {
		return nil, err
	}
	if qualifier != "" && qualifier != version {
		return nil, &fault{http.StatusNotFound, typeNotFound, "Function not found: " + arn + ":" + qualifier}
	}
	fn := c.r.functions[name]
	if fn == nil {
		return nil, &fault{http.StatusNotFound, typeNotFound, "Function not found: " + arn}
	}
	return fn, nil
}

// page returns the part of n things that a list request asks for, and the marker of the next part.
func (c *call) page(n, limit int) (from, to int, next string, err error) {
	q := c.req.URL.Query()
	if s := q.Get("MaxItems"); s != "" {
		v, err := strconv.Atoi(s)
		if err != nil || v < 1 || v > 10_000 {
			return 0, 0, "", constraint(s, "maxItems", "Member must have value between 1 and 10000")
		}
		limit = min(limit, v)
	}
	if s := q.Get("Marker"); s != "" {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err == nil {
			from, err = strconv.Atoi(string(b))
		}
		if err != nil || from < 0 {
			return 0, 0, "", invalidf("Invalid Marker: use the NextMarker of the last answer.")
		}
	}
	from = min(from, n)
	to = min(n, from+limit)
	if to < n {
		next = base64.RawURLEncoding.EncodeToString([]byte(strconv.Itoa(to)))
	}
	return from, to, next, nil
}

// wanted names a type as people know it who write JSON.
func wanted(t reflect.Type) string {
	if t.Kind() == reflect.Struct {
		return "JSON object"
	}
	return t.String()
}
