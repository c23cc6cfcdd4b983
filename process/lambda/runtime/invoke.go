// Package runtime runs users' functions: processes that speak the Lambda Runtime API, and HTTP endpoints.
package runtime

import (
	"context"
	"errors"
	"time"
)

// An Invoker runs one function. It is safe for concurrent use.
type Invoker interface {
	// Invoke runs the function once. ctx bounds the wait for a free process too. An error means that the function did not run
	// or that its process is gone (see the errors below); what the function itself reports is in the Response.
	Invoke(ctx context.Context, req *Request) (*Response, error)
	// Status is what operators see.
	Status() Status
	// Close lets invocations under way finish until ctx ends, then ends the processes.
	Close(ctx context.Context) error
}

// A Request is one event.
type Request struct {
	ID            string // request id; stable for a batch of records, so that handlers can recognise a repetition
	Payload       []byte // the event in JSON; borrowed until Invoke returns
	ClientContext string // base64 JSON, as the Invoke API has it; "" none
	TraceID       string // X-Amzn-Trace-Id; "" none
}

// A Response is what came of it.
type Response struct {
	Payload []byte // the function's answer, or the error document {errorMessage, errorType, stackTrace}
	// FunctionError is "" for success, "Unhandled" for a crash, a timeout or an error that the handler reported.
	FunctionError string
	Log           []byte // the last 4 KiB that the function wrote during the invocation
	Duration      time.Duration
	Init          time.Duration // of a cold start; 0 for a warm one
}

// A Status is the state of a function's pool.
type Status struct {
	Processes int // alive
	Busy      int
	Limit     int // reserved concurrency
	Invokes   uint64
	Errors    uint64 // function errors
	Throttles uint64
	Timeouts  uint64
	Restarts  uint64
	Last      time.Time
	LastError string
}

// Errors that callers branch on.
var (
	// ErrThrottled: as many invocations as the reserved concurrency are under way.
	ErrThrottled = errors.New("function is throttled: its reserved concurrency is in use")
	// ErrClosed: the invoker is closed.
	ErrClosed = errors.New("function is closed")
)
