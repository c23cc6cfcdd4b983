package runtime

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// The Runtime API, for one process.

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

// serve answers a request. nil: it is one for the next event.
func (p *process) serve(r *http.Request) *reply {
	path, ok := strings.CutPrefix(r.URL.Path, apiRoot)
	if !ok {
		return notFound()
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
		return notFound()
	case r.Method != want:
		return &reply{status: http.StatusMethodNotAllowed, allow: want}
	case path == "/ping":
		return &reply{status: http.StatusOK, kind: "text/plain; charset=utf-8", body: "pong"}
	case path == "/runtime/invocation/next":
		return nil
	case path == "/runtime/restore/next": // nothing here is ever frozen: it is restored at once
		return answer(http.StatusOK, "")
	case isCall && verb == "response":
		return p.serveResponse(r, id)
	case isCall:
		return p.serveError(r, id)
	default:
		return p.serveInitError(r)
	}
}

func answer(status int, body string) *reply {
	return &reply{status: status, kind: "application/json", body: body}
}

func notFound() *reply {
	return &reply{status: http.StatusNotFound, kind: "text/plain; charset=utf-8", body: "404 page not found\n"}
}

func accepted() *reply { return answer(http.StatusAccepted, `{"status":"OK"}`+"\n") }

func refuse(status int, kind, message string) *reply {
	return answer(status, string(document{ErrorMessage: message, ErrorType: kind}.json())+"\n")
}

func refuseState(from processState, to string) *reply {
	return refuse(http.StatusForbidden, "InvalidStateTransition",
		"State transition from "+from.String()+" to "+to+" failed for runtime. Error: State transition is not allowed")
}

// next asks for an event. The process that asks has finished what it had. It returns when the event has been written or when the
// request waits for one.
func (l *link) next() {
	p, pool, me := l.p, l.p.pool, &l.me
	l.waits = true
	var c *call
	var displaced *waiter
	pool.mu.Lock()
	switch {
	case p.over: // what asks is a child that it has left behind: its connection is about to end
	case p.state == starting:
		pool.coming--
		pool.failures, pool.pause = 0, time.Time{}
		p.init = time.Since(p.begun)
		c = p.become(me)
	case p.state == answered:
		pool.coming--
		c = p.become(me)
	case p.state == running: // the event was lost on its way, with its connection perhaps: here it is again
		c = p.call
		c.reading.Add(1)
	case p.state == ready: // the newest request counts: a client that asks again has given up the last
		displaced, p.waiter = p.waiter, me
	}
	pool.mu.Unlock()
	if displaced != nil {
		displaced.link.refuseNext()
	}
	if c != nil {
		p.deliver(me, c)
	}
}

// refuseNext answers a request for an event that somebody else gets.
func (l *link) refuseNext() {
	_ = l.write(refuseState(ready, "Ready")) // whoever it was is not interested
	l.answered <- struct{}{}
}

// become makes a process ready, and takes what waits: the caller delivers it. The pool's lock is held.
func (p *process) become(me *waiter) *call {
	p.timer.Stop()
	p.state, p.call, p.waiter, p.until = ready, nil, me, time.Time{}
	switch {
	case p.reason != unasked: // it is being ended
	case len(p.pool.pending) > 0:
		c := p.pool.pending[0]
		p.pool.pending = p.pool.pending[1:]
		p.assign(c) // to me
		return c
	default:
		p.pool.rest(p)
	}
	return nil
}

// leave is for a connection that ended in /next. An event that has just been given to it waits for the next one.
func (p *process) leave(me *waiter) {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	if p.waiter == me {
		p.waiter = nil // p stays idle: an event given to it is kept until it asks
	}
}

// deliver writes an event to a connection that has asked for one, unless the process has ended. c.reading was added to.
func (p *process) deliver(to *waiter, c *call) {
	defer c.reading.Done()
	p.pool.mu.Lock()
	over, current := p.over, p.call == c && p.state == running
	p.delivered = p.delivered || current && !over
	p.pool.mu.Unlock()
	switch {
	case over: // c is exited's
		return
	case !current: // another connection was faster
		to.link.refuseNext()
		return
	}
	p.out.begin(c.id)
	to.link.writeEvent(c)
	to.link.answered <- struct{}{} // its goroutine takes it, or has gone
}

// take takes the invocation out of the process's hands: from now on the caller of take ends it, and nobody else.
func (p *process) take(id, to string) (*call, *reply) {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	switch {
	case p.state != running:
		return nil, refuseState(p.state, to)
	case p.reason != unasked: // too late: exited is about to end it
		return nil, refuse(http.StatusForbidden, "InvalidStateTransition", "The invocation has ended")
	case p.call.id != id:
		return nil, refuse(http.StatusBadRequest, "InvalidRequestID", "Invalid request ID")
	default:
		c := p.call
		p.state = answered
		p.pool.coming++
		return c, nil
	}
}

// expects refuses what is not an answer to what the process works on, before it is read.
func (p *process) expects(id, to string) *reply {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	switch {
	case p.state != running:
		return refuseState(p.state, to)
	case p.call.id != id:
		return refuse(http.StatusBadRequest, "InvalidRequestID", "Invalid request ID")
	default:
		return nil
	}
}

func (p *process) serveResponse(r *http.Request, id string) *reply {
	const to = "InvocationResponse"
	if mode := r.Header.Get(headerResponseMode); mode != "" && !strings.EqualFold(mode, "streaming") && !strings.EqualFold(mode, "buffered") {
		return refuse(http.StatusBadRequest, "InvalidFunctionResponseMode", "Invalid function response mode")
	}
	if a := p.expects(id, to); a != nil {
		return a
	}
	body, err := readBody(r)
	resp := &Response{Payload: body}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		resp = &Response{FunctionError: unhandled, Payload: tooLargeDocument()}
	case err != nil:
		return truncated()
	default:
		if kind := r.Trailer.Get(headerErrorType); kind != "" { // it failed while it was streaming
			resp.FunctionError = unhandled
			if resp.Payload, err = base64.StdEncoding.DecodeString(r.Trailer.Get(headerErrorBody)); err != nil || len(resp.Payload) == 0 {
				resp.Payload = document{ErrorType: kind, ErrorMessage: "the function failed while it wrote its response"}.json()
			}
		}
	}
	c, a := p.take(id, to)
	if a != nil {
		return a
	}
	p.finish(c, resp)
	if large != nil {
		return tooMuch()
	}
	return accepted()
}

func (p *process) serveError(r *http.Request, id string) *reply {
	const to = "InvocationErrorResponse"
	if a := p.expects(id, to); a != nil {
		return a
	}
	doc, a := errorBody(r)
	if a != nil {
		return a
	}
	c, a := p.take(id, to)
	if a != nil {
		return a
	}
	p.finish(c, &Response{FunctionError: unhandled, Payload: doc})
	return accepted()
}

// serveInitError also serves /restore/error: nothing is frozen here, so that both are failures to start.
func (p *process) serveInitError(r *http.Request) *reply {
	doc, a := errorBody(r)
	if a != nil {
		return a
	}
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	if p.state != starting {
		return refuseState(p.state, "InitError")
	}
	p.initErr = doc
	p.timer.Reset(time.Second) // by then it has gone, or is made to
	return accepted()
}

func truncated() *reply {
	return refuse(http.StatusBadRequest, "TruncatedHTTPRequest", "HTTP request detected as truncated")
}

func tooMuch() *reply {
	return refuse(http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", fmt.Sprintf("Exceeded maximum allowed payload size (%d bytes).", maxPayload))
}

// errorBody returns the document of an error, or what to answer.
func errorBody(r *http.Request) (doc []byte, no *reply) {
	body, err := readBody(r)
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, tooMuch()
	case err != nil:
		return nil, truncated()
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
	return body, nil
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
