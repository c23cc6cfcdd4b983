package lambda

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/milepost/milepost/ingest/kinesisapi/sequence"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/lambda/runtime"
	"github.com/milepost/milepost/stream"
)

// What LastProcessingResult says.
const (
	resultNone   = "No records processed"
	resultOK     = "OK"
	resultFailed = "PROBLEM: Function call failed"
)

// A running is a mapping at work, as its definition was when it began: the process.Handler that calls the function.
type running struct {
	r           *Registry
	fn          *function
	def         *definition
	log         stream.Log
	ctx         context.Context // ends with the registry, for what has no context of its own
	result      *atomic.Pointer[string]
	src         source
	functionARN string
	streamARN   string
	reading     reading
	events      sync.Pool

	mu     sync.Mutex // guards shards
	shards map[stream.ShardID]shardName
}

func (r *Registry) newRunning(d *definition, result *atomic.Pointer[string]) (*running, error) {
	fn := r.functions[d.Function]
	if fn == nil {
		return nil, fmt.Errorf("function %s is not configured: add it to functions, or delete the mapping", d.Function)
	}
	log, err := r.cfg.Stream(d.Stream)
	if err != nil {
		return nil, fmt.Errorf("open stream %s: %w", d.Stream, err)
	}
	h := &running{
		r: r, fn: fn, def: d, log: log, ctx: r.ctx, result: result, src: newSource(r.sourceARN(d), r.cfg.Region, r.role(d.Function)),
		functionARN: r.functionARN(d.Function), streamARN: r.streamARN(d.Stream),
		reading: reading{report: d.Report, window: d.Tumbling > 0, output: d.Output != ""}, shards: map[stream.ShardID]shardName{},
	}
	h.events.New = func() any { return &event{} }
	return h, nil
}

// options adds to the definition's what needs the running mapping.
func (h *running) options() (process.Options, error) {
	o := h.def.options()
	filter, err := newFilter(h.def.Filters, &h.src, h.r.cfg.Region, h.r.role(h.def.Function), func(id stream.ShardID) (shardName, error) { return h.shard(h.ctx, id) })
	if err != nil {
		return o, fmt.Errorf("filters: %w", err)
	}
	o.Filter = filter
	o.Payload = func(r *stream.Record) int { return h.src.overhead() + len(r.Key) + (len(r.Data)+2)/3*4 }
	if h.def.OnFailure != "" {
		o.OnFailure = h.effect
	}
	return o, nil
}

// shard returns what the sequence numbers of a shard are made of.
func (h *running) shard(ctx context.Context, id stream.ShardID) (shardName, error) {
	h.mu.Lock()
	s, ok := h.shards[id]
	h.mu.Unlock()
	if ok {
		return s, nil
	}
	list, err := h.log.Shards(ctx)
	if err != nil {
		return s, fmt.Errorf("list shards of %s: %w", h.def.Stream, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range list {
		n, _ := sequence.ParseShard(string(l.ID))
		h.shards[l.ID] = shardName{l.ID, n, l.Created.Unix()}
	}
	if s, ok = h.shards[id]; !ok {
		return s, fmt.Errorf("shard %s of %s: %w", id, h.def.Stream, stream.ErrNoShard)
	}
	return s, nil
}

// Name implements process.Handler.
func (h *running) Name() string { return h.def.Handler }

// Handle implements process.Handler.
func (h *running) Handle(ctx context.Context, in *process.Invocation) (process.Result, error) {
	shard, err := h.shard(ctx, in.Shard)
	if err != nil {
		return process.Result{}, &process.NotRunError{Err: err}
	}
	e, _ := h.events.Get().(*event)
	defer h.keep(e)
	e.build(&h.src, shard, in.Records, in.Window)
	id := requestID(in.ID)
	resp, err := h.fn.invoke(ctx, &runtime.Request{ID: id, Payload: e.doc})
	if err != nil {
		if ctx.Err() == nil { // throttled, or out of reach; not stopped
			h.note(resultFailed)
		}
		return process.Result{}, err
	}
	if resp.FunctionError != "" {
		h.note(resultFailed)
		return process.Result{}, &CallError{RequestID: id, Function: resp.FunctionError, Message: functionError(resp.Payload)}
	}
	a, err := h.reading.read(resp.Payload, e)
	if err != nil {
		h.note(resultFailed)
		return process.Result{}, &CallError{RequestID: id, Message: err.Error()}
	}
	res := a.result(in.Records)
	if res.Failed != "" {
		h.note(resultFailed)
		res.Reason = fmt.Sprintf("function reports record %s as failed", e.number(a.failed))
	} else {
		h.note(resultOK)
	}
	return res, nil
}

const keepEvent = 16 << 20 // a larger one is left to the garbage collector

func (h *running) keep(e *event) {
	if cap(e.doc) <= keepEvent {
		h.events.Put(e)
	}
}

func (h *running) note(result string) {
	if p := h.result.Load(); p == nil || *p != result {
		h.result.Store(&result)
	}
}

// A function is one that is configured, with what runs it.
type function struct {
	name    string
	cfg     FunctionConfig
	invoker runtime.Invoker
	changed time.Time // when this run began to know it
	logs    tails
}

// invoke calls the function. An error is a *process.NotRunError.
func (f *function) invoke(ctx context.Context, req *runtime.Request) (*runtime.Response, error) {
	began := time.Now()
	resp, err := f.invoker.Invoke(ctx, req)
	if err != nil {
		no := &process.NotRunError{Err: err}
		if throttled, ok := errors.AsType[*runtime.ThrottledError](err); ok {
			no.After = throttled.After
		}
		return nil, no
	}
	f.logs.add(req.ID, began, resp)
	return resp, nil
}

// A Tail is the end of what a function wrote during one invocation.
type Tail struct {
	RequestID string    `json:"request_id"`
	At        time.Time `json:"at"` // when it began
	Took      float64   `json:"seconds"`
	Error     string    `json:"error,omitempty"`
	Log       string    `json:"log"`
}

const tailsKept = 64

// tails are those of the last invocations that wrote something or failed.
type tails struct {
	mu   sync.Mutex // guards the two below
	ring [tailsKept]Tail
	n    int // how many there have ever been
}

func (t *tails) add(id string, began time.Time, resp *runtime.Response) {
	if len(resp.Log) == 0 && resp.FunctionError == "" {
		return
	}
	tail := Tail{RequestID: id, At: began.UTC(), Took: resp.Duration.Seconds(), Log: string(resp.Log)}
	if resp.FunctionError != "" {
		tail.Error = functionError(resp.Payload)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ring[t.n%tailsKept] = tail
	t.n++
}

// list returns them, oldest first.
func (t *tails) list() []Tail {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := []Tail{}
	for i := max(0, t.n-tailsKept); i < t.n; i++ {
		out = append(out, t.ring[i%tailsKept])
	}
	return out
}
