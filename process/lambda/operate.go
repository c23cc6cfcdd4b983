package lambda

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/milepost/milepost/ingest/kinesisapi/sequence"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/stream"
)

// A FunctionStatus is a function as operators see it.
type FunctionStatus struct {
	Name     string          `json:"name"`
	Runtime  string          `json:"runtime"`
	Timeout  float64         `json:"timeout_seconds"`
	Pool     PoolStatus      `json:"pool"`
	Mappings []MappingStatus `json:"mappings"`
}

// A PoolStatus is what runs a function.
type PoolStatus struct {
	Processes  int       `json:"processes"`
	Busy       int       `json:"busy"`
	Limit      int       `json:"limit"`
	Invokes    uint64    `json:"invokes"`
	Errors     uint64    `json:"errors"`
	Throttles  uint64    `json:"throttles"`
	Timeouts   uint64    `json:"timeouts"`
	Restarts   uint64    `json:"restarts"`
	ColdStarts uint64    `json:"cold_starts"`
	Last       time.Time `json:"last,omitzero"`
	LastError  string    `json:"last_error,omitempty"`
}

// A MappingStatus is a mapping as operators see it. Numbers count since it was last started.
type MappingStatus struct {
	UUID           string                 `json:"uuid"`
	Function       string                 `json:"function"`
	Stream         string                 `json:"stream"`
	Consumer       string                 `json:"consumer,omitempty"`
	Configured     bool                   `json:"configured"` // by the file, as opposed to the API
	State          string                 `json:"state"`
	LastResult     string                 `json:"last_result"`
	Lag            int64                  `json:"lag"`             // records, of the lane that is furthest behind in each shard, of a paused mapping too; -1: not known
	IteratorAgeMS  int64                  `json:"iterator_age_ms"` // of the lane that is furthest behind; of a paused mapping: of the first record that waits
	LastInvocation time.Time              `json:"last_invocation,omitzero"`
	LastError      string                 `json:"last_error,omitempty"`
	LastErrorTime  time.Time              `json:"last_error_time,omitzero"`
	Owed           int                    `json:"owed"` // failure documents on their way to the destination, up to 1,000
	OnFailure      string                 `json:"on_failure,omitempty"`
	Total          process.Counters       `json:"total"`
	Shards         []process.ShardStatus  `json:"shards"`
	Breaker        *process.BreakerStatus `json:"breaker,omitempty"`
	Overflow       string                 `json:"overflow,omitempty"` // why the overflow policy is at work
}

// List tells how every function is doing.
func (r *Registry) List(ctx context.Context) []FunctionStatus {
	out := make([]FunctionStatus, 0, len(r.names))
	mappings := r.list()
	for _, name := range r.names {
		out = append(out, r.status(ctx, r.functions[name], mappings))
	}
	return out
}

// Function tells how one function is doing; false if there is none of the name.
func (r *Registry) Function(ctx context.Context, name string) (FunctionStatus, bool) {
	f := r.functions[name]
	if f == nil {
		return FunctionStatus{}, false
	}
	return r.status(ctx, f, r.list()), true
}

func (r *Registry) status(ctx context.Context, f *function, all []*mapping) FunctionStatus {
	s := FunctionStatus{Name: f.name, Runtime: f.cfg.Runtime, Timeout: f.cfg.Timeout.Seconds(), Pool: PoolStatus(f.invoker.Status()), Mappings: []MappingStatus{}}
	for _, m := range all {
		if v := m.view(); v.def.Function == f.name {
			s.Mappings = append(s.Mappings, r.mappingStatus(ctx, v))
		}
	}
	return s
}

const owedShown = 1000

func (r *Registry) mappingStatus(ctx context.Context, v view) MappingStatus {
	d := v.def
	s := MappingStatus{
		UUID: d.UUID, Function: d.Function, Stream: d.Stream, Consumer: d.Consumer, Configured: d.Configured, State: v.state, LastResult: v.result,
		OnFailure: d.OnFailure, Shards: []process.ShardStatus{},
	}
	if owed, _, err := r.cfg.Store.Pending(ctx, failureKind(d.UUID), owedShown); err == nil {
		s.Owed = len(owed)
	}
	if v.runner == nil {
		waiting, err := r.idle(ctx, d)
		if err != nil {
			s.Lag = -1 // a stream that is not there, say: the result has it
			return s
		}
		s.Shards = waiting
	} else {
		for _, f := range v.runner.Status(ctx) {
			s.Shards, s.Breaker = f.Shards, f.Breaker
			if f.Error != "" {
				s.LastError = f.Error
			}
		}
	}
	for _, sh := range s.Shards {
		worst := int64(0)
		for _, l := range sh.Lanes {
			c := l.Counters
			s.Total.Add(&c)
			if l.Lag < 0 {
				worst = -1
			} else if worst >= 0 {
				worst = max(worst, l.Lag)
			}
			s.IteratorAgeMS = max(s.IteratorAgeMS, l.IteratorAgeMS)
			if l.LastInvocation.After(s.LastInvocation) {
				s.LastInvocation = l.LastInvocation
			}
			if l.LastError != "" && l.LastErrorTime.After(s.LastErrorTime) {
				s.LastError, s.LastErrorTime = l.LastError, l.LastErrorTime
			}
			if l.Overflow != "" {
				s.Overflow = l.Overflow
			}
		}
		switch {
		case worst < 0:
			s.Lag = -1
		case s.Lag >= 0:
			s.Lag += worst
		}
	}
	return s
}

const idleTimeout = 5 * time.Second

// idle tells what waits for a mapping that does not run.
func (r *Registry) idle(ctx context.Context, d *definition) ([]process.ShardStatus, error) {
	log, err := r.cfg.Stream(d.Stream)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, idleTimeout)
	defer cancel()
	return process.Idle(ctx, process.Config{Log: log, Store: r.cfg.Store}, d.Handler, d.options())
}

// Find returns the UUIDs of a function's mappings: all, or those that which names, a UUID or a stream.
func (r *Registry) Find(function, which string) ([]string, error) {
	if r.functions[function] == nil {
		return nil, fmt.Errorf("there is no function %s", function)
	}
	var out []string
	for _, m := range r.list() {
		d := m.view().def
		if d.Function == function && (which == "" || which == d.UUID || which == d.Stream) {
			out = append(out, d.UUID)
		}
	}
	if len(out) == 0 {
		if which == "" {
			return nil, fmt.Errorf("function %s is on no stream", function)
		}
		return nil, fmt.Errorf("function %s has no mapping %s: give the UUID or the stream of one", function, which)
	}
	return out, nil
}

func (r *Registry) find(uuid string) (*mapping, error) {
	if m := r.mapping(uuid); m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("there is no mapping %s: see the list of functions", uuid)
}

// Pause disables a mapping: it keeps its place. It is on disk when Pause returns; invocations under way still finish.
func (r *Registry) Pause(ctx context.Context, uuid string) error { return r.enable(ctx, uuid, false) }

// Resume enables a mapping, and ends a pause that its overflow policy has made.
func (r *Registry) Resume(ctx context.Context, uuid string) error { return r.enable(ctx, uuid, true) }

func (r *Registry) enable(ctx context.Context, uuid string, on bool) error {
	m, err := r.find(uuid)
	if err != nil {
		return err
	}
	v := m.view()
	if v.def.Deleting {
		return fmt.Errorf("mapping %s is being deleted", uuid)
	}
	if v.def.Enabled == on {
		if on && v.runner != nil {
			return v.runner.Resume(v.def.Handler)
		}
		return nil
	}
	_, err = m.change(ctx, stateUpdating, func(d *definition) error {
		d.Enabled = on
		return nil
	})
	return err
}

// Reset moves a mapping to another place; what lies between is processed again, or not at all. It returns when that is done.
func (r *Registry) Reset(ctx context.Context, uuid string, to process.Target) error {
	m, err := r.find(uuid)
	if err != nil {
		return err
	}
	q := &reset{to: to, done: make(chan error, 1)}
	m.mu.Lock()
	if m.def.Deleting {
		m.mu.Unlock()
		return fmt.Errorf("mapping %s is being deleted", uuid)
	}
	m.resets = append(m.resets, q)
	m.mu.Unlock()
	m.wake()
	select {
	case err := <-q.done:
		return err
	case <-m.ended:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Logs returns what a function wrote during its last invocations, oldest first.
func (r *Registry) Logs(function string) ([]Tail, error) {
	f := r.functions[function]
	if f == nil {
		return nil, fmt.Errorf("there is no function %s", function)
	}
	return f.logs.list(), nil
}

// An order is the body of a request to operate a function.
type order struct {
	Mapping  string           `json:"mapping"`  // UUID or stream; "": all of the function's
	Confirm  string           `json:"confirm"`  // for reset: the function's name once more
	To       string           `json:"to"`       // for reset: TRIM_HORIZON, LATEST or AT_TIMESTAMP
	Time     time.Time        `json:"time"`     // for AT_TIMESTAMP
	Shard    string           `json:"shard"`    // for reset of one shard
	Sequence string           `json:"sequence"` // with shard: the first record to process
	Document *FailureDocument `json:"document"` // for redrive: this one alone
}

func (o *order) target(function string) (process.Target, error) {
	if o.Confirm != function {
		return process.Target{}, fmt.Errorf("reset makes records be processed again or not at all: confirm it with \"confirm\": %q", function)
	}
	if o.Shard != "" {
		n, ok := sequence.Parse(o.Sequence)
		if !ok {
			return process.Target{}, fmt.Errorf("sequence: %q is not a sequence number", o.Sequence)
		}
		if sequence.ShardName(n.Shard) != stream.ShardID(o.Shard) {
			return process.Target{}, fmt.Errorf("sequence: %s is of %s, not of %s", o.Sequence, sequence.ShardName(n.Shard), o.Shard)
		}
		return process.Target{Shard: stream.ShardID(o.Shard), Pos: sequence.Position(max(n.Number, 1) - 1)}, nil
	}
	switch strings.ToUpper(o.To) {
	case startOldest:
		return process.Target{Start: process.Oldest}, nil
	case startLatest:
		return process.Target{Start: process.Latest}, nil
	case startAt:
		if o.Time.IsZero() {
			return process.Target{}, errors.New("time: missing: AT_TIMESTAMP needs one")
		}
		if o.Time.After(time.Now()) {
			return process.Target{}, fmt.Errorf("time: %s is in the future: use LATEST", o.Time.Format(time.RFC3339))
		}
		return process.Target{Start: process.AtTime, Time: o.Time}, nil
	}
	return process.Target{}, fmt.Errorf("to: %q is not known: use TRIM_HORIZON, LATEST or AT_TIMESTAMP", o.To)
}

// Operations returns the handler of /v1/functions, for the command line and the pipeline page. Its caller authenticates.
func (r *Registry) Operations() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/functions", func(w http.ResponseWriter, req *http.Request) {
		reply(w, http.StatusOK, map[string]any{"functions": r.List(req.Context())})
	})
	mux.HandleFunc("GET /v1/functions/{name}", func(w http.ResponseWriter, req *http.Request) {
		s, ok := r.Function(req.Context(), req.PathValue("name"))
		if !ok {
			refuse(w, http.StatusNotFound, fmt.Errorf("there is no function %s", req.PathValue("name")))
			return
		}
		reply(w, http.StatusOK, s)
	})
	mux.HandleFunc("GET /v1/functions/{name}/logs", func(w http.ResponseWriter, req *http.Request) {
		tails, err := r.Logs(req.PathValue("name"))
		if err != nil {
			refuse(w, http.StatusNotFound, err)
			return
		}
		reply(w, http.StatusOK, map[string]any{"invocations": tails})
	})
	mux.HandleFunc("GET /v1/functions/{name}/lines", r.serveLines)
	mux.HandleFunc("POST /v1/functions/{name}/invoke", r.try)
	mux.HandleFunc("POST /v1/functions/{name}/{action}", r.operate)
	return mux
}

func (r *Registry) operate(w http.ResponseWriter, req *http.Request) {
	if err := isJSON(req); err != nil {
		refuse(w, http.StatusUnsupportedMediaType, err)
		return
	}
	var o order
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, controlBody))
	if err == nil && len(body) > 0 {
		d := json.NewDecoder(bytes.NewReader(body))
		d.DisallowUnknownFields() // a misspelt mapping would be all of them
		err = d.Decode(&o)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("body: %w", err))
		return
	}
	name, action := req.PathValue("name"), req.PathValue("action")
	uuids, err := r.Find(name, o.Mapping)
	if err != nil {
		refuse(w, http.StatusNotFound, err)
		return
	}
	ctx := req.Context()
	var each func(uuid string) (any, error)
	switch action {
	case "pause":
		each = func(uuid string) (any, error) { return nil, r.Pause(ctx, uuid) }
	case "resume":
		each = func(uuid string) (any, error) { return nil, r.Resume(ctx, uuid) }
	case "reset":
		to, err := o.target(name)
		if err != nil {
			refuse(w, http.StatusBadRequest, err)
			return
		}
		each = func(uuid string) (any, error) { return nil, r.Reset(ctx, uuid, to) }
	case "redrive":
		if o.Document != nil && len(uuids) > 1 {
			refuse(w, http.StatusBadRequest, errors.New("mapping: missing: a document is of one mapping"))
			return
		}
		each = func(uuid string) (any, error) { return r.Redrive(ctx, uuid, o.Document) }
	default:
		refuse(w, http.StatusNotFound, fmt.Errorf("%q is not known: use pause, resume, reset, redrive or invoke", action))
		return
	}
	type done struct {
		Mapping string `json:"mapping"`
		Report  any    `json:"report,omitempty"`
	}
	out := []done{}
	for _, uuid := range uuids {
		report, err := each(uuid)
		if err != nil {
			refuse(w, http.StatusConflict, fmt.Errorf("mapping %s: %w", uuid, err))
			return
		}
		out = append(out, done{uuid, report})
	}
	reply(w, http.StatusOK, map[string]any{"done": out})
}

func reply(w http.ResponseWriter, status int, v any) {
	b, err := encode(v)
	if err != nil {
		panic("lambda: bug: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b) // the client may be gone
}

func refuse(w http.ResponseWriter, status int, err error) {
	reply(w, status, map[string]string{"error": err.Error()})
}
