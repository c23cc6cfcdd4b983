package lambda

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/stream"
)

// A CallError says that a function ran and failed: it crashed, timed out, reported an error, or answered what cannot be used.
type CallError struct {
	RequestID string
	Function  string // what Lambda calls functionError: "Unhandled"; "" when the answer itself reported failed items
	Message   string
}

func (e *CallError) Error() string { return e.Message }

// functionError describes an error document {errorMessage, errorType, stackTrace} in a line.
func functionError(payload []byte) string {
	var d struct {
		Type    string `json:"errorType"`
		Message string `json:"errorMessage"`
	}
	if json.Unmarshal(payload, &d) != nil || d.Message == "" && d.Type == "" {
		return fmt.Sprintf("function failed: %.500q", payload)
	}
	if d.Type == "" {
		return fmt.Sprintf("function failed: %.500s", d.Message)
	}
	return fmt.Sprintf("function failed: %.100s: %.500s", d.Type, d.Message)
}

// What a mapping makes of an answer.
type reading struct {
	report bool // ReportBatchItemFailures
	window bool // TumblingWindowInSeconds
	output bool // records for an output stream
}

// An answer is what a function said, as far as a mapping listens.
type answer struct {
	// failed is the index of the first record that was not processed; len(records): all were.
	failed int
	state  []byte
	output []stream.Record
}

// read reads a function's answer to an event. An error means that none of its records counts as processed.
//
// Lambda's rules for ReportBatchItemFailures: complete success is {}, null, "", an empty list and a null list; complete failure is an
// identifier that is empty, null or not of this batch, an item without one, or a list that is none. Of several identifiers the lowest
// counts, in whatever order. An answer that is not an object reports nothing.
func (rd reading) read(payload []byte, e *event) (answer, error) {
	a := answer{failed: len(e.numbers)}
	payload = bytes.TrimSpace(payload)
	if !rd.report && !rd.window && !rd.output {
		return a, nil
	}
	var doc struct {
		Failures json.RawMessage `json:"batchItemFailures"`
		State    json.RawMessage `json:"state"`
		Output   json.RawMessage `json:"output"`
	}
	if len(payload) > 0 && payload[0] == '{' {
		if err := json.Unmarshal(payload, &doc); err != nil {
			return a, fmt.Errorf("answer is not JSON: %w", err)
		}
	}
	if rd.report {
		failed, err := firstFailed(doc.Failures, e)
		if err != nil {
			return a, err
		}
		a.failed = failed
	}
	if rd.window {
		if doc.State == nil {
			return a, errors.New("answer has no \"state\", which a mapping with a tumbling window needs: return {\"state\": {…}}")
		}
		a.state = doc.State
	}
	if rd.output {
		var err error
		if a.output, err = readOutput(doc.Output); err != nil {
			return a, err
		}
	}
	return a, nil
}

func isNull(m json.RawMessage) bool { return m == nil || string(m) == "null" }

// firstFailed returns the index of the first record of a batchItemFailures list, or the number of records for an empty one.
func firstFailed(list json.RawMessage, e *event) (int, error) {
	first := len(e.numbers)
	if isNull(list) {
		return first, nil
	}
	var items []map[string]json.RawMessage
	if err := json.Unmarshal(list, &items); err != nil {
		return 0, errors.New("batchItemFailures is not a list of objects: write [{\"itemIdentifier\": \"SEQUENCE NUMBER\"}]")
	}
	for _, it := range items {
		raw, ok := it["itemIdentifier"]
		if !ok {
			return 0, errors.New("an item of batchItemFailures has no itemIdentifier")
		}
		var id string
		if err := json.Unmarshal(raw, &id); err != nil || id == "" {
			return 0, fmt.Errorf("itemIdentifier %.100s is not a sequence number", raw)
		}
		i, ok := e.find(id)
		if !ok {
			return 0, fmt.Errorf("itemIdentifier %.100q is not one of this batch", id)
		}
		first = min(first, i)
	}
	return first, nil
}

// maxOutputKey is Kinesis' limit of a partition key.
const maxOutputKey = 256

// readOutput reads the records that a function emits: [{"key": "…", "data": "BASE64"}], or "json" with any value instead of data.
func readOutput(list json.RawMessage) ([]stream.Record, error) {
	if isNull(list) {
		return nil, nil
	}
	var items []struct {
		Key  string          `json:"key"`
		Data *[]byte         `json:"data"`
		JSON json.RawMessage `json:"json"`
	}
	if err := json.Unmarshal(list, &items); err != nil {
		return nil, fmt.Errorf("output is not a list of {\"key\": \"…\", \"data\": \"BASE64\"} or {\"key\": \"…\", \"json\": …}: %w", err)
	}
	out := make([]stream.Record, len(items))
	for i, it := range items {
		switch {
		case it.Key == "" || len(it.Key) > maxOutputKey:
			return nil, fmt.Errorf("output[%d].key has %d bytes: give 1 to %d", i, len(it.Key), maxOutputKey)
		case (it.Data == nil) == (it.JSON == nil):
			return nil, fmt.Errorf("output[%d]: give data (base64) or json", i)
		case it.Data != nil:
			out[i] = stream.Record{Key: it.Key, Data: *it.Data}
		default:
			out[i] = stream.Record{Key: it.Key, Data: it.JSON}
		}
	}
	return out, nil
}

// result turns an answer into what the runner wants.
func (a answer) result(recs []stream.Record) process.Result {
	r := process.Result{State: a.state, Output: a.output}
	if a.failed < len(recs) {
		r.Failed = recs[a.failed].Pos
	}
	return r
}
