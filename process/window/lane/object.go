package lane

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// An object is a record of a stream other than readings: a JSON object.
type object struct{ fields map[string]any }

// field returns what lies at a path: a number, text, a truth value, or nil. Fields with dots in their names and nested objects
// are both written with dots.
func (o *object) field(path string) any {
	if v, ok := o.fields[path]; ok {
		return v
	}
	var v any = o.fields
	for {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		i := 0
		for i < len(path) && path[i] != '.' {
			i++
		}
		if v = m[path[:i]]; i == len(path) {
			return v
		}
		path = path[i+1:]
	}
}

func valueOf(v any) window.Value {
	switch v := v.(type) {
	case float64:
		return window.Value{Kind: window.Number, Num: v}
	case string:
		return window.Value{Kind: window.Text, Text: v}
	case bool:
		if v {
			return window.Value{Kind: window.Number, Num: 1}
		}
		return window.Value{Kind: window.Number}
	}
	return window.Value{}
}

// keyText is a key made of a value.
func keyText(v *window.Value) (string, bool) {
	switch v.Kind {
	case window.Text:
		return v.Text, v.Text != "" && len(v.Text) <= maxKey
	case window.Number:
		return strconv.FormatFloat(v.Num, 'f', -1, 64), math.Abs(v.Num) < 1e30
	default:
		return "", false
	}
}

func (l *lane) foldObject(rec *stream.Record, sub int) error {
	l.object.fields = nil
	if err := json.Unmarshal(rec.Data, &l.object.fields); err != nil || l.object.fields == nil {
		l.reject(rec, sub, errors.New("windows read JSON objects, and this record is none"))
		return nil //nolint:nilerr // dead-lettered
	}
	arrival := rec.Time.UnixMilli()
	at, err := l.timeOf(arrival)
	if err != nil {
		l.reject(rec, sub, err)
		return nil
	}
	l.row.Time, l.row.Hash = at, telemetry.HashName(string(rec.Data))
	if l.w.unique != "" {
		id := valueOf(l.object.field(l.w.unique))
		hash := l.row.Hash
		if text, ok := keyText(&id); ok {
			hash = telemetry.HashName(text)
		}
		if isNew, err := l.isNew(rec.Key, at, hash, arrival); err != nil || !isNew {
			return err
		}
	} else {
		l.counts.rows++
	}
	l.passed(at)
	for _, t := range l.tables {
		if t.filter != nil && !t.filter.Fields(l.object.field) {
			continue
		}
		key, ok := t.keyOfObject(rec, &l.object)
		if !ok {
			t.counts.unkeyed++
			continue
		}
		l.row.Values = l.row.Values[:0]
		for i := range t.columns {
			l.row.Values = append(l.row.Values, valueOf(l.object.field(t.columns[i].name)))
		}
		if err := t.add(key, arrival); err != nil {
			return err
		}
	}
	return nil
}

// reject dead-letters a record that windows cannot read.
func (l *lane) reject(rec *stream.Record, sub int, err error) {
	l.counts.rejected++
	id := l.w.Name() + "/" + string(l.shard) + "/" + string(rec.Pos)
	if sub >= 0 {
		id += "/" + strconv.Itoa(sub)
	}
	l.rejects = append(l.rejects, stream.DeadLetter{
		ID: id, Reason: err.Error(), Source: "function " + l.w.Name(), Key: strings.Clone(rec.Key), Stream: l.w.cfg.Stream,
		Shard: l.shard, Position: stream.Position(strings.Clone(string(rec.Pos))), At: rec.Time, Data: slices.Clone(rec.Data),
	})
}

func (t *table) keyOfObject(rec *stream.Record, o *object) (string, bool) {
	switch t.key.kind {
	case colFleet:
		return window.ByFleet, true
	case colKey:
		return rec.Key, len(rec.Key) <= 4*maxKey
	default:
		v := valueOf(o.field(t.key.name))
		return keyText(&v)
	}
}

// timeOf is the object's event time.
func (l *lane) timeOf(arrival int64) (int64, error) {
	path := l.w.time
	if path == "" {
		return arrival, nil
	}
	at := int64(0)
	switch v := l.object.field(path).(type) {
	case float64:
		at = int64(max(min(v, 1e17), -1e17))
	case string:
		t, err := time.Parse(time.RFC3339Nano, v)
		if err != nil {
			return 0, fmt.Errorf("%s is no time: want RFC 3339 such as 2026-11-21T02:15:03Z, or Unix milliseconds", path)
		}
		at = t.UnixMilli()
	default:
		return 0, fmt.Errorf("%s is missing or no time: windows take the event time from it", path)
	}
	// A moment far in the future would close every window there is.
	if at > arrival+telemetry.MaxAhead || at < telemetry.MinEventTime {
		return 0, fmt.Errorf("%s is more than 5 minutes ahead of arrival, or before 2010: set the sender's clock", path)
	}
	return at, nil
}
