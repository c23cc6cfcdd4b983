package pattern

import (
	"errors"
	"fmt"
	"strconv"
	"time"
)

// MaxFilters is how many filters a mapping may have; AWS allows 5 and by request 10.
const MaxFilters = 10

// Meta is what a filter can ask of a record of a stream beside its data, under the names that the event has.
type Meta struct {
	PartitionKey                string
	SequenceNumber              string
	ApproximateArrivalTimestamp time.Time // as the event has it: a number of seconds with milliseconds
	KinesisSchemaVersion        string
	EncryptionType              string // empty: absent
	EventID                     string
	EventName                   string
	EventSource                 string
	EventSourceARN              string
	EventVersion                string
	AWSRegion                   string
	InvokeIdentityARN           string
}

// Any is a mapping's filters: a record passes if any of them matches it. Without any filter each record passes.
//
// A filter is an object with the key data and, beyond what Lambda has for Kinesis, keys of Meta. What stands under data decides:
// an object is asked of data that is JSON, a list of values of data that is plain text, and if the two do not go together the
// record does not match. Data is JSON if it is a valid object or array, and text otherwise. Without the key, data is not looked at.
type Any struct{ filters []*object }

// CompileAny compiles filters. An error says which filter it is about.
func CompileAny(patterns ...string) (*Any, error) {
	if len(patterns) > MaxFilters {
		return nil, fmt.Errorf("%d filters; at most %d are allowed", len(patterns), MaxFilters)
	}
	a := &Any{}
	for i, p := range patterns {
		root, err := read([]byte(p))
		var o *object
		if err == nil {
			o, err = compileObject(root, "$")
		}
		if err == nil {
			err = o.ofRecord()
		}
		if err != nil {
			return nil, fmt.Errorf("filter %d: %w", i+1, err)
		}
		a.filters = append(a.filters, o)
	}
	return a, nil
}

// ofRecord refuses keys that no record has: on AWS such a filter silently drops everything.
func (o *object) ofRecord() error {
	for i := range o.keys {
		name := o.keys[i].name
		if name == "data" {
			continue
		}
		if _, ok := (&Meta{}).text(name); !ok && name != arrival {
			if name == "kinesis" {
				return errors.New("$.kinesis: name data, partitionKey and the others at the top, without kinesis around them")
			}
			return fmt.Errorf("$.%s: a record has no such key; what is in the data goes under data: {\"data\": {%q: [...]}}", name, name)
		}
		for _, c := range o.keys[i].conds {
			if o.conds[c].nested != nil {
				return fmt.Errorf("$.%s: must be a list of values, not an object", name)
			}
		}
	}
	return nil
}

const arrival = "approximateArrivalTimestamp"

func (m *Meta) text(key string) (string, bool) {
	switch key {
	case "partitionKey":
		return m.PartitionKey, true
	case "sequenceNumber":
		return m.SequenceNumber, true
	case "kinesisSchemaVersion":
		return m.KinesisSchemaVersion, true
	case "encryptionType":
		return m.EncryptionType, true
	case "eventID":
		return m.EventID, true
	case "eventName":
		return m.EventName, true
	case "eventSource":
		return m.EventSource, true
	case "eventSourceARN":
		return m.EventSourceARN, true
	case "eventVersion":
		return m.EventVersion, true
	case "awsRegion":
		return m.AWSRegion, true
	case "invokeIdentityArn":
		return m.InvokeIdentityARN, true
	}
	return "", false
}

// MatchRecord reports whether a record passes. It keeps neither argument.
func (a *Any) MatchRecord(meta *Meta, data []byte) bool {
	if len(a.filters) == 0 {
		return true
	}
	for _, f := range a.filters {
		if f.matchRecord(meta, data) {
			return true
		}
	}
	return false
}

func (o *object) matchRecord(meta *Meta, data []byte) bool {
	var held mask
	for i := range o.keys {
		name := o.keys[i].name
		for _, c := range o.keys[i].conds {
			cond, ok := &o.conds[c], false
			switch name {
			case "data":
				ok = cond.matchData(data)
			case arrival:
				var buf [32]byte
				ok = cond.leaf.matchNumber(strconv.AppendFloat(buf[:0], float64(meta.ApproximateArrivalTimestamp.UnixMilli())/1000, 'f', -1, 64))
			default:
				s, _ := meta.text(name)
				if s == "" && name == "encryptionType" {
					ok = cond.leaf.absent
				} else {
					ok = matchText(cond.leaf, s)
				}
			}
			held.set(c, ok)
		}
	}
	return o.expr.holds(&held)
}

func (c *cond) matchData(data []byte) bool {
	i := space(data, 0)
	shaped := i < len(data) && (data[i] == '{' || data[i] == '[')
	if c.nested != nil {
		if !shaped {
			return false
		}
		end, ok := c.match(data, i, 0)
		return end >= 0 && ok && space(data, end) == len(data)
	}
	if shaped {
		if end := skip(data, i, 0); end >= 0 && space(data, end) == len(data) {
			return false
		}
	}
	return matchText(c.leaf, data)
}
