package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"strings"
	"sync"
	"time"
)

// A Func is a function in this process. It must obey ctx, which ends at the function's timeout: nothing can kill it, so Invoke and
// Close wait for it. The request is borrowed until it returns.
type Func func(ctx context.Context, req *Request) ([]byte, error)

type inProcess struct {
	fn      Func
	timeout time.Duration
	slots
	*stats
}

// NewFunc makes an invoker of a Go func, for programs that embed Milepost and for tests. Of the configuration it takes Name,
// Timeout and Concurrency.
func NewFunc(c Config, fn Func, d Deps) (Invoker, error) {
	c.Runtime = "func"
	if err := c.fill(); err != nil {
		return nil, fmt.Errorf("function %s: %w", c.Name, err)
	}
	return &inProcess{fn: fn, timeout: time.Duration(c.Timeout), slots: newSlots(c.Concurrency), stats: newStats(d.Metrics, c.Name)}, nil
}

// Invoke calls the func.
func (f *inProcess) Invoke(ctx context.Context, req *Request) (*Response, error) {
	id, err := req.check()
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := f.enter(); err != nil {
		if errors.Is(err, ErrThrottled) {
			f.throttled()
		}
		return nil, err
	}
	defer f.leave()
	given := *req
	given.ID = id
	began := time.Now()
	limited, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	payload, doc := f.call(limited, &given)
	r := &Response{Payload: payload, Duration: time.Since(began)}
	switch {
	case doc == nil:
	case ctx.Err() != nil:
		return nil, fmt.Errorf("function was stopped, its caller has gone: %w", ctx.Err())
	case limited.Err() != nil:
		f.timedOut()
		r.FunctionError, r.Payload = unhandled, failure(id, typeTimeout, timeoutText(f.timeout))
	default:
		r.FunctionError, r.Payload = unhandled, doc
	}
	f.ended(r)
	return r, nil
}

// call returns the answer, or the document of an error or a panic.
func (f *inProcess) call(ctx context.Context, req *Request) (payload, doc []byte) {
	defer func() {
		if v := recover(); v != nil {
			trace := strings.Split(strings.TrimSpace(string(debug.Stack())), "\n")
			doc = document{ErrorType: fmt.Sprintf("%T", v), ErrorMessage: fmt.Sprint(v), StackTrace: trace}.json()
		}
	}()
	payload, err := f.fn(ctx, req)
	if err != nil {
		return nil, document{ErrorType: typeName(err), ErrorMessage: err.Error()}.json()
	}
	if len(payload) > maxPayload {
		return nil, tooLargeDocument()
	}
	if len(payload) == 0 {
		payload = []byte("null")
	}
	if !json.Valid(payload) {
		return nil, document{ErrorType: "Runtime.MarshalError", ErrorMessage: "the function's answer is no JSON"}.json()
	}
	return payload, nil
}

// typeName is an error's type as aws-lambda-go gives it.
func typeName(err error) string {
	t := reflect.TypeOf(err)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Name()
}

// Status counts the calls.
func (f *inProcess) Status() Status {
	s := f.status()
	s.Limit, s.Busy = f.limit, f.busy()
	return s
}

// Close waits for the calls under way.
func (f *inProcess) Close(ctx context.Context) error { return f.close(ctx) }

// slots limit the invocations of functions that have no processes.
type slots struct {
	limit int
	state *slotState
}

type slotState struct {
	mu      sync.Mutex // guards all
	used    int
	closed  bool
	drained chan struct{}
}

func newSlots(limit int) slots {
	return slots{limit: limit, state: &slotState{drained: make(chan struct{})}}
}

func (s slots) enter() error {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	switch {
	case s.state.closed:
		return ErrClosed
	case s.state.used >= s.limit:
		return ErrThrottled
	}
	s.state.used++
	return nil
}

func (s slots) leave() {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	if s.state.used--; s.state.used == 0 && s.state.closed {
		close(s.state.drained)
	}
}

func (s slots) busy() int {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	return s.state.used
}

func (s slots) close(ctx context.Context) error {
	s.state.mu.Lock()
	if !s.state.closed {
		s.state.closed = true
		if s.state.used == 0 {
			close(s.state.drained)
		}
	}
	s.state.mu.Unlock()
	select {
	case <-s.state.drained:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close a function with invocations under way: %w", ctx.Err())
	}
}
