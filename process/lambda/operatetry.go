package lambda

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/milepost/milepost/process/lambda/runtime"
)

// A LogLine is one line that a function wrote, or that tells of one of its invocations.
type LogLine struct {
	Number    uint64    `json:"number"` // counts from 1
	At        time.Time `json:"at"`
	RequestID string    `json:"request_id,omitempty"`
	Text      string    `json:"text"`
}

const mostLines = 2000

// Lines returns up to most of the last lines of a function that came after the line with number since, oldest first. Of functions
// that are no processes, what they write is not known: their lines are the failures of their last invocations.
func (r *Registry) Lines(function string, since uint64, most int) ([]LogLine, error) {
	f := r.functions[function]
	if f == nil {
		return nil, fmt.Errorf("there is no function %s", function)
	}
	out := []LogLine{}
	if l, ok := f.invoker.(runtime.Logged); ok {
		for _, line := range l.Logs(since, most) {
			out = append(out, LogLine{line.Number, line.At.UTC(), line.RequestID, line.Text})
		}
		return out, nil
	}
	for _, line := range f.logs.lines() {
		if line.Number > since {
			out = append(out, line)
		}
	}
	return out[max(0, len(out)-most):], nil
}

// lines are the tails as lines.
func (t *tails) lines() []LogLine {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := []LogLine{}
	for i := max(0, t.n-tailsKept); i < t.n; i++ {
		tail := &t.ring[i%tailsKept]
		text := strings.TrimRight(tail.Log, "\n")
		if tail.Error != "" {
			text = strings.TrimLeft(text+"\n"+tail.Error, "\n")
		}
		out = append(out, LogLine{uint64(i) + 1, tail.At, tail.RequestID, text}) //nolint:gosec // counts from 0
	}
	return out
}

func (r *Registry) serveLines(w http.ResponseWriter, req *http.Request) {
	q := req.URL.Query()
	since, most := uint64(0), mostLines
	var err error
	if s := q.Get("since"); s != "" {
		if since, err = strconv.ParseUint(s, 10, 64); err != nil {
			refuse(w, http.StatusBadRequest, fmt.Errorf("since: %q is not the number of a line", s))
			return
		}
	}
	if s := q.Get("limit"); s != "" {
		if most, err = strconv.Atoi(s); err != nil || most < 1 || most > mostLines {
			refuse(w, http.StatusBadRequest, fmt.Errorf("limit: %q: use 1 to %d", s, mostLines))
			return
		}
	}
	lines, err := r.Lines(req.PathValue("name"), since, most)
	if err != nil {
		refuse(w, http.StatusNotFound, err)
		return
	}
	reply(w, http.StatusOK, map[string]any{"lines": lines})
}

// A Trial is what came of an invocation by hand.
type Trial struct {
	RequestID string          `json:"request_id"`
	Payload   json.RawMessage `json:"payload"`
	Error     string          `json:"function_error,omitempty"` // as Lambda's X-Amz-Function-Error
	Log       string          `json:"log,omitempty"`            // the last 4 KiB that it wrote
	Took      float64         `json:"seconds"`
	Init      float64         `json:"init_seconds,omitempty"` // of a cold start
}

// try invokes a function by hand, with the body as its event.
func (r *Registry) try(w http.ResponseWriter, req *http.Request) {
	f := r.functions[req.PathValue("name")]
	if f == nil {
		refuse(w, http.StatusNotFound, fmt.Errorf("there is no function %s", req.PathValue("name")))
		return
	}
	if err := isJSON(req); err != nil {
		refuse(w, http.StatusUnsupportedMediaType, err)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxPayload))
	switch {
	case err != nil:
		refuse(w, http.StatusBadRequest, fmt.Errorf("body: %w", err))
		return
	case len(body) == 0:
		body = []byte("{}")
	case !json.Valid(body):
		refuse(w, http.StatusBadRequest, errors.New("body: the event is not JSON"))
		return
	}
	id := newUUID()
	resp, err := f.invoke(req.Context(), &runtime.Request{ID: id, Payload: body})
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	t := Trial{RequestID: id, Payload: resp.Payload, Error: resp.FunctionError, Log: string(resp.Log), Took: resp.Duration.Seconds(), Init: resp.Init.Seconds()}
	switch {
	case len(t.Payload) == 0:
		t.Payload = []byte("null")
	case !json.Valid(t.Payload): // functions may answer anything
		t.Payload = appendQuoted(nil, string(resp.Payload))
	}
	reply(w, http.StatusOK, t)
}

// isJSON refuses what a page of another site can send: it can send a form but not this type, so that it cannot operate functions
// through somebody's browser.
func isJSON(req *http.Request) error {
	if kind, _, _ := strings.Cut(req.Header.Get("Content-Type"), ";"); strings.TrimSpace(kind) != "application/json" {
		return errors.New("send JSON, with Content-Type: application/json")
	}
	return nil
}
