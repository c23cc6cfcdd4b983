// Package runtime runs users' functions: in processes that speak the Lambda Runtime API (2018-06-01), behind an HTTP endpoint, or
// as a Go func. It promises:
//
//   - One process runs one invocation at a time; at most Config.Concurrency of them are alive. What is above that is refused
//     with ErrThrottled, never queued.
//   - When Invoke has returned, nobody works on the request any longer: a function that is too late, or whose caller has gone,
//     has lost its process. So a repetition never runs beside what it repeats. (Across HTTP this holds as far as the receiver lets go.)
//   - Processes end with Close, and with Milepost itself, however it ends.
//
// The pool owns its processes; each process has a listener of its own, which is how the Runtime API knows who is speaking.
package runtime

import (
	"context"
	"errors"
	"time"
)

// An Invoker runs one function. It is safe for concurrent use.
type Invoker interface {
	// Invoke runs the function once. ctx bounds the wait for a process too; when it ends in mid-invocation, the process is ended.
	// An error means that the function did not run (ErrThrottled, ErrClosed, ErrUnreachable, an error of the request) or that it
	// was stopped from outside (ctx's error, ErrClosed). What the function itself does, crashes and timeouts included, is in the
	// Response.
	Invoke(ctx context.Context, req *Request) (*Response, error)
	// Status is what operators see.
	Status() Status
	// Close lets invocations under way finish until ctx ends, then ends the processes.
	Close(ctx context.Context) error
}

// A Request is one event.
type Request struct {
	// ID is stable for a batch of records, so that handlers can recognise a repetition. It travels in a URL's path: letters, digits
	// and -._~:@!$&'()*+,;= only. "": one is made.
	ID            string
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
	Processes  int // alive
	Busy       int
	Limit      int // reserved concurrency
	Invokes    uint64
	Errors     uint64 // function errors
	Throttles  uint64
	Timeouts   uint64
	Restarts   uint64 // processes that ended unasked or were killed at a deadline
	ColdStarts uint64
	Last       time.Time
	LastError  string
}

// Errors that callers branch on.
var (
	// ErrThrottled: as many invocations as the reserved concurrency are under way, or the endpoint asks to be spared: then it
	// comes as a *ThrottledError.
	ErrThrottled = errors.New("function is throttled: its reserved concurrency is in use")
	// ErrClosed: the invoker is closed, or was closed in mid-invocation.
	ErrClosed = errors.New("function is closed")
	// ErrUnreachable: no connection to the URL could be made.
	ErrUnreachable = errors.New("function is unreachable")
)

// A ThrottledError is an ErrThrottled that says when to come again.
type ThrottledError struct {
	Reason string
	After  time.Duration // 0: it does not say
}

func (e *ThrottledError) Error() string { return "function is throttled: " + e.Reason }

// Is makes errors.Is(err, ErrThrottled) true.
func (e *ThrottledError) Is(target error) bool { return target == ErrThrottled }

// Logged is implemented by invokers that keep what the function writes.
type Logged interface {
	// Logs returns up to most lines that came after the line with number since, oldest first.
	Logs(since uint64, most int) []Line
}

// A Line is one line that a function wrote.
type Line struct {
	Number    uint64 // counts from 1
	At        time.Time
	RequestID string // "" while the process starts
	Text      string
}
