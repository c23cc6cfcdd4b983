package runtime

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The Runtime API, for one process. net/http serves it: see BenchmarkGo for what that costs.

const apiRoot = "/2018-06-01"

// Headers of the API, in the form in which net/http keeps them.
const (
	headerID            = "Lambda-Runtime-Aws-Request-Id"
	headerDeadline      = "Lambda-Runtime-Deadline-Ms"
	headerARN           = "Lambda-Runtime-Invoked-Function-Arn"
	headerTrace         = "Lambda-Runtime-Trace-Id"
	headerClientContext = "Lambda-Runtime-Client-Context"
	headerErrorType     = "Lambda-Runtime-Function-Error-Type"
	headerErrorBody     = "Lambda-Runtime-Function-Error-Body" // a trailer
	headerResponseMode  = "Lambda-Runtime-Function-Response-Mode"
)

func (p *process) serve(w http.ResponseWriter, r *http.Request) {
	path, ok := strings.CutPrefix(r.URL.Path, apiRoot)
	if !ok {
		http.NotFound(w, r)
		return
	}
	want := http.MethodPost
	if path == "/ping" || path == "/runtime/invocation/next" || path == "/runtime/restore/next" {
		want = http.MethodGet
	}
	id, verb, isCall := strings.Cut(strings.TrimPrefix(path, "/runtime/invocation/"), "/")
	isCall = isCall && strings.HasPrefix(path, "/runtime/invocation/") && (verb == "response" || verb == "error")
	known := isCall || want == http.MethodGet || path == "/runtime/init/error" || path == "/runtime/restore/error"
	switch {
	case !known:
		http.NotFound(w, r)
	case r.Method != want:
		w.Header().Set("Allow", want)
		w.WriteHeader(http.StatusMethodNotAllowed)
	case path == "/ping":
		_, _ = io.WriteString(w, "pong")
	case path == "/runtime/invocation/next":
		p.serveNext(w, r)
	case path == "/runtime/restore/next": // nothing here is ever frozen: it is restored at once
		w.Header().Set("Content-Type", "application/json")
	case isCall && verb == "response":
		p.serveResponse(w, r, id)
	case isCall:
		p.serveError(w, r, id)
	default:
		p.serveInitError(w, r)
	}
}

func answer(w http.ResponseWriter, status int, body string) {
	w.Header()["Content-Type"] = []string{"application/json"}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

func accept(w http.ResponseWriter) { answer(w, http.StatusAccepted, `{"status":"OK"}`+"\n") }

func refuse(w http.ResponseWriter, status int, kind, message string) {
	answer(w, status, string(document{ErrorMessage: message, ErrorType: kind}.json())+"\n")
}

func refuseState(w http.ResponseWriter, from processState, to string) {
	refuse(w, http.StatusForbidden, "InvalidStateTransition",
		"State transition from "+from.String()+" to "+to+" failed for runtime. Error: State transition is not allowed")
}

// serveNext waits for an event. The process that asks has finished what it had.
func (p *process) serveNext(w http.ResponseWriter, r *http.Request) {
	pool := p.pool
	me := &waiter{calls: make(chan *call, 1)}
	pool.mu.Lock()
	switch p.state {
	case starting:
		pool.coming--
		pool.failures, pool.pause = 0, time.Time{}
		p.init = time.Since(p.begun)
		p.become(me)
	case answered:
		pool.coming--
		p.become(me)
	case running: // the event was lost on its way, with its connection perhaps: here it is again
		p.call.reading.Add(1)
		me.calls <- p.call
	case ready: // the newest request counts: a client that asks again has given up the last
		if p.waiter != nil {
			close(p.waiter.calls)
		}
		p.waiter = me
	}
	pool.mu.Unlock()

	var c *call
	select {
	case c = <-me.calls:
	case <-r.Context().Done():
		c = p.leave(me)
	case <-p.gone:
		c = p.leave(me)
	}
	if c == nil {
		refuseState(w, ready, "Ready")
		return
	}
	defer c.reading.Done()
	if r.Context().Err() == nil { // else the event waits for the next request
		p.deliver(w, c)
	}
}

// become makes a process ready, and takes what waits. The pool's lock is held.
func (p *process) become(me *waiter) {
	p.timer.Stop()
	p.state, p.call, p.waiter, p.until = ready, nil, me, time.Time{}
	switch {
	case p.reason != unasked: // it is being ended
	case len(p.pool.pending) > 0:
		c := p.pool.pending[0]
		p.pool.pending = p.pool.pending[1:]
		p.assign(c)
	default:
		p.pool.rest(p)
	}
}

// leave is for a connection that ended in /next. An event that has just been given to it waits for the next one.
func (p *process) leave(me *waiter) *call {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	if p.waiter == me {
		p.waiter = nil // p stays idle: an event given to it is kept until it asks
	}
	select {
	case c := <-me.calls:
		return c
	default:
		return nil
	}
}

func (p *process) deliver(w http.ResponseWriter, c *call) {
	p.pool.mu.Lock()
	p.delivered = true
	p.pool.mu.Unlock()
	p.out.begin(c.id)
	h := w.Header()
	h["Content-Type"] = []string{"application/json"}
	h[headerID] = []string{c.id}
	h[headerDeadline] = []string{strconv.FormatInt(c.deadline.UnixMilli(), 10)}
	h[headerARN] = []string{p.pool.arn}
	if c.req.TraceID != "" {
		h[headerTrace] = []string{c.req.TraceID}
	}
	if c.req.ClientContext != "" {
		h[headerClientContext] = []string{c.req.ClientContext}
	}
	h["Content-Length"] = []string{strconv.Itoa(len(c.req.Payload))}
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(c.req.Payload) // a broken connection: the process asks again, or ends
}

// take takes the invocation out of the process's hands: from now on the caller of take ends it, and nobody else.
func (p *process) take(w http.ResponseWriter, id, to string) *call {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	switch {
	case p.state != running:
		refuseState(w, p.state, to)
	case p.reason != unasked: // too late: exited is about to end it
		refuse(w, http.StatusForbidden, "InvalidStateTransition", "The invocation has ended")
	case p.call.id != id:
		refuse(w, http.StatusBadRequest, "InvalidRequestID", "Invalid request ID")
	default:
		c := p.call
		p.state = answered
		p.pool.coming++
		return c
	}
	return nil
}

// expects says whether id is what the process works on, before its answer is read.
func (p *process) expects(w http.ResponseWriter, id, to string) bool {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	switch {
	case p.state != running:
		refuseState(w, p.state, to)
	case p.call.id != id:
		refuse(w, http.StatusBadRequest, "InvalidRequestID", "Invalid request ID")
	default:
		return true
	}
	return false
}

func (p *process) serveResponse(w http.ResponseWriter, r *http.Request, id string) {
	const to = "InvocationResponse"
	if mode := r.Header.Get(headerResponseMode); mode != "" && !strings.EqualFold(mode, "streaming") && !strings.EqualFold(mode, "buffered") {
		refuse(w, http.StatusBadRequest, "InvalidFunctionResponseMode", "Invalid function response mode")
		return
	}
	if !p.expects(w, id, to) {
		return
	}
	body, err := readBody(r)
	resp := &Response{Payload: body}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		resp = &Response{FunctionError: unhandled, Payload: tooLargeDocument()}
	case err != nil:
		refuse(w, http.StatusBadRequest, "TruncatedHTTPRequest", "HTTP request detected as truncated")
		return
	default:
		if kind := r.Trailer.Get(headerErrorType); kind != "" { // it failed while it was streaming
			resp.FunctionError = unhandled
			if resp.Payload, err = base64.StdEncoding.DecodeString(r.Trailer.Get(headerErrorBody)); err != nil || len(resp.Payload) == 0 {
				resp.Payload = document{ErrorType: kind, ErrorMessage: "the function failed while it wrote its response"}.json()
			}
		}
	}
	c := p.take(w, id, to)
	if c == nil {
		return
	}
	p.finish(c, resp)
	if large != nil {
		refuse(w, http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", fmt.Sprintf("Exceeded maximum allowed payload size (%d bytes).", maxPayload))
		return
	}
	accept(w)
}

func (p *process) serveError(w http.ResponseWriter, r *http.Request, id string) {
	const to = "InvocationErrorResponse"
	if !p.expects(w, id, to) {
		return
	}
	doc, ok := errorBody(w, r)
	if !ok {
		return
	}
	if c := p.take(w, id, to); c != nil {
		p.finish(c, &Response{FunctionError: unhandled, Payload: doc})
		accept(w)
	}
}

// serveInitError also serves /restore/error: nothing is frozen here, so that both are failures to start.
func (p *process) serveInitError(w http.ResponseWriter, r *http.Request) {
	doc, ok := errorBody(w, r)
	if !ok {
		return
	}
	p.pool.mu.Lock()
	if p.state != starting {
		refuseState(w, p.state, "InitError")
		p.pool.mu.Unlock()
		return
	}
	p.initErr = doc
	p.timer.Reset(time.Second) // by then it has gone, or is made to
	p.pool.mu.Unlock()
	accept(w)
}

// errorBody returns the document of an error, or answers.
func errorBody(w http.ResponseWriter, r *http.Request) (doc []byte, ok bool) {
	body, err := readBody(r)
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		refuse(w, http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", fmt.Sprintf("Exceeded maximum allowed payload size (%d bytes).", maxPayload))
		return nil, false
	case err != nil:
		refuse(w, http.StatusBadRequest, "TruncatedHTTPRequest", "HTTP request detected as truncated")
		return nil, false
	}
	kind := r.Header.Get(headerErrorType)
	if r.Header.Get("Content-Type") == "application/vnd.aws.lambda.error.cause+json" { // with a cause for X-Ray, which is not the caller's
		var d document
		if json.Unmarshal(body, &d) == nil {
			body = d.json()
		}
	}
	if len(bytes.TrimSpace(body)) == 0 {
		if kind == "" {
			kind = "Runtime.Unknown"
		}
		body = document{ErrorType: kind, ErrorMessage: "the runtime gave no reason"}.json()
	}
	return body, true
}

// readBody reads a request's body, and of one that is too large all that comes, so that the runtime hears the answer.
func readBody(r *http.Request) ([]byte, error) {
	const drain = 256 << 20
	var buf []byte
	if n := r.ContentLength; n > 0 && n <= maxPayload {
		buf = make([]byte, n)
		if _, err := io.ReadFull(r.Body, buf); err != nil {
			return nil, fmt.Errorf("read body: %w", err)
		}
		return buf, nil
	}
	buf, err := io.ReadAll(io.LimitReader(r.Body, maxPayload+1))
	if err != nil {
		return nil, fmt.Errorf("read body: %w", err)
	}
	if len(buf) > maxPayload {
		_, _ = io.CopyN(io.Discard, r.Body, drain) // it ends sooner, as a rule
		return nil, &http.MaxBytesError{Limit: maxPayload}
	}
	return buf, nil
}

// finish ends an invocation that the process has answered.
func (p *process) finish(c *call, r *Response) {
	now := time.Now()
	r.Duration, r.Init = now.Sub(c.started), c.init
	pid := 0
	p.pool.mu.Lock()
	if now.Sub(p.sampled) >= time.Second { // reading it costs more than a small invocation
		p.sampled, pid = now, p.pid
	}
	p.pool.mu.Unlock()
	if pid != 0 {
		p.peak.Store(max(p.peak.Load(), peakMemory(pid)))
	}
	rep := report{duration: r.Duration, init: c.init, memory: p.pool.cfg.MemorySize, used: p.peak.Load()}
	if r.FunctionError != "" {
		rep.status = "error"
	}
	r.Log = p.out.end(c.id, rep)
	c.resp = r
	close(c.done)
}
