package shadow

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"unicode/utf8"
)

// A document is a shadow. Objects are map[string]any and numbers json.Number, so that they come back as they went in.
type document struct {
	State struct {
		Desired  map[string]any `json:"desired,omitempty"`
		Reported map[string]any `json:"reported,omitempty"`
	} `json:"state"`
	Metadata struct {
		Desired  map[string]any `json:"desired,omitempty"`
		Reported map[string]any `json:"reported,omitempty"`
	} `json:"metadata"`
	Version   int64 `json:"version"`
	Timestamp int64 `json:"timestamp,omitempty"` // seconds since 1970, of the last change
	Deleted   bool  `json:"deleted,omitempty"`   // only the version is left, which goes on
}

// A request is an update, or the little that get and delete take.
type request struct {
	desired, reported       map[string]any
	hasDesired, hasReported bool // a section that is there and null is cleared
	token                   string
	version                 *int64
}

const (
	maxToken = 64 // bytes
	maxDepth = 8  // levels of a section
)

// A Fault is why a request was rejected, with AWS's code.
type Fault struct {
	Code    int
	Message string
}

func (f *Fault) Error() string { return fmt.Sprintf("%d: %s", f.Code, f.Message) }

func fault(code int, message string) *Fault { return &Fault{code, message} }

// decode reads one JSON value with its numbers as they are.
func decode(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value")
	}
	return nil
}

// parseRequest reads an update, or with stateless the body of get and delete, which may be empty.
func parseRequest(payload []byte, most int, stateless bool) (r request, f *Fault) {
	switch {
	case stateless && len(bytes.TrimSpace(payload)) == 0:
		return r, nil
	case len(payload) > 2*most+4096: // desired and reported, and what is around them
		return r, fault(413, "The payload exceeds the maximum size allowed")
	case !utf8.Valid(payload):
		return r, fault(415, "Unsupported documented encoding; supported encoding is UTF-8")
	}
	var doc map[string]any
	if err := decode(payload, &doc); err != nil || doc == nil {
		return r, fault(400, "Invalid JSON")
	}
	if v, ok := doc["clientToken"]; ok && v != nil {
		if r.token, ok = v.(string); !ok || len(r.token) > maxToken {
			r.token = ""
			return r, fault(400, "Invalid clientToken")
		}
	}
	if v, ok := doc["version"]; ok && v != nil {
		n, ok := v.(json.Number)
		if !ok {
			return r, fault(400, "Invalid version")
		}
		i, err := n.Int64()
		if err != nil || i < 0 {
			return r, fault(400, "Invalid version")
		}
		r.version = &i
	}
	if stateless {
		return r, nil
	}
	return r, r.state(doc)
}

func (r *request) state(doc map[string]any) *Fault {
	v, ok := doc["state"]
	if !ok {
		return fault(400, "Missing required node: state")
	}
	state, ok := v.(map[string]any)
	if !ok {
		return fault(400, "State node must be an object")
	}
	for name, v := range state {
		section, ok := v.(map[string]any)
		bad := v != nil && !ok
		switch name {
		case "desired":
			if bad {
				return fault(400, "Desired node must be an object")
			}
			r.desired, r.hasDesired = section, true
		case "reported":
			if bad {
				return fault(400, "Reported node must be an object")
			}
			r.reported, r.hasReported = section, true
		default:
			return fault(400, "State contains an invalid node: '"+name+"'")
		}
		if depth(section) > maxDepth {
			return fault(400, fmt.Sprintf("JSON contains too many levels of nesting; maximum is %d", maxDepth))
		}
	}
	return nil
}

func depth(v any) int {
	most := 0
	switch v := v.(type) {
	case map[string]any:
		for _, c := range v {
			most = max(most, depth(c))
		}
		return most + 1
	case []any:
		for _, c := range v {
			most = max(most, depth(c))
		}
		return most + 1
	}
	return 0
}

// merge applies a change to a section and its metadata: null removes, objects merge, everything else replaces.
func merge(state, meta, change map[string]any, now int64) (newState, newMeta map[string]any) {
	if state == nil {
		state, meta = map[string]any{}, map[string]any{}
	}
	for k, v := range change {
		if v == nil {
			delete(state, k)
			delete(meta, k)
			continue
		}
		object, ok := v.(map[string]any)
		if !ok {
			state[k], meta[k] = v, stamp(v, now)
			continue
		}
		was, _ := state[k].(map[string]any)
		wasMeta, _ := meta[k].(map[string]any)
		if was == nil {
			wasMeta = nil
		}
		is, isMeta := merge(was, wasMeta, object, now)
		if state[k], meta[k] = is, isMeta; len(object) > 0 && len(is) == 0 {
			delete(state, k) // nothing but nulls: as if each had been removed
			delete(meta, k)
		}
	}
	return state, meta
}

// stamp is the metadata of a value: its shape, with a timestamp for each leaf.
func stamp(v any, now int64) any {
	switch v := v.(type) {
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, c := range v {
			m[k] = stamp(c, now)
		}
		return m
	case []any:
		m := make([]any, len(v))
		for i, c := range v {
			m[i] = stamp(c, now)
		}
		return m
	}
	return map[string]any{"timestamp": now}
}

// stamped is the metadata of an accepted change: that of what it has set.
func stamped(change map[string]any, now int64) map[string]any {
	m := make(map[string]any, len(change))
	for k, v := range change {
		if object, ok := v.(map[string]any); ok {
			m[k] = stamped(object, now)
		} else if v != nil {
			m[k] = stamp(v, now)
		}
	}
	return m
}

// difference returns what is desired and reported otherwise or not at all, with its metadata. Arrays are values.
func difference(desired, meta, reported map[string]any) (delta, deltaMeta map[string]any) {
	for k, want := range desired {
		is, ok := reported[k]
		if ok && equal(want, is) {
			continue
		}
		d, m := want, meta[k]
		if w, deep := want.(map[string]any); deep {
			if i, deep := is.(map[string]any); deep {
				wm, _ := meta[k].(map[string]any)
				dd, mm := difference(w, wm, i)
				if dd == nil {
					continue // it reports more than is desired
				}
				d, m = dd, mm
			}
		}
		if delta == nil {
			delta, deltaMeta = map[string]any{}, map[string]any{}
		}
		delta[k], deltaMeta[k] = d, m
	}
	return delta, deltaMeta
}

// equal compares values; 1 and 1.0 are equal.
func equal(a, b any) bool {
	switch a := a.(type) {
	case json.Number:
		b, ok := b.(json.Number)
		if !ok {
			return false
		}
		if a == b {
			return true
		}
		x, err := a.Float64()
		y, err2 := b.Float64()
		return err == nil && err2 == nil && x == y
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range a {
			if !equal(a[i], b[i]) {
				return false
			}
		}
		return true
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for k := range a {
			if v, ok := b[k]; !ok || !equal(a[k], v) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(a, b)
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("shadow: bug: " + err.Error())
	}
	return b
}
