package mqtt

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/telemetry"
)

// A Topic maps topics to readings.
type Topic struct {
	// Pattern's levels are plain text, + for any one level, {vehicle} for the vehicle's id, or # as the last for any that follow.
	// Without {vehicle} the payload has to name the vehicle, or the client's identity does.
	Pattern string
	// Convert turns a message into readings: JSON as the HTTP door takes it, appended to dst. Device is the vehicle of the topic or of
	// the client's identity, "" if neither names one. What could not be read of data comes back as unread; an error refuses all of it.
	// nil: data is such JSON already. Topic, device and data are borrowed.
	Convert func(dst []byte, topic, device string, data []byte) (out []byte, unread []ingest.Unread, err error)
}

// vehicleLevel stands for the vehicle's id in a pattern.
const vehicleLevel = "{vehicle}"

// A mapping is a Topic taken apart.
type mapping struct {
	levels  []string
	convert func(dst []byte, topic, device string, data []byte) ([]byte, []ingest.Unread, error)
}

func parseMapping(t Topic) (mapping, error) {
	s := t.Pattern
	if s == "" {
		return mapping{}, fmt.Errorf("mqtt topic mapping is empty: write one like %q", DefaultTopic)
	}
	m := mapping{levels: strings.Split(s, "/"), convert: t.Convert}
	vehicles := 0
	for i, level := range m.levels {
		switch {
		case level == vehicleLevel:
			vehicles++
		case level == "+", level == "#" && i == len(m.levels)-1 && i > 0:
		case strings.ContainsAny(level, "+#{}"):
			return mapping{}, fmt.Errorf("mqtt topic mapping %q: level %q: use %s, +, # as the last, or plain text", s, level, vehicleLevel)
		}
	}
	if vehicles > 1 {
		return mapping{}, fmt.Errorf("mqtt topic mapping %q names the vehicle twice", s)
	}
	if strings.HasPrefix(m.levels[0], "$") {
		return mapping{}, fmt.Errorf("mqtt topic mapping %q: topics that begin with $ belong to the broker", s)
	}
	return m, nil
}

// match tells whether the topic is the mapping's, and which part of it names the vehicle; none if from equals to.
func (m *mapping) match(topic string) (from, to int, ok bool) {
	at := 0
	for i, want := range m.levels {
		if want == "#" {
			return from, to, true
		}
		level, rest, more := strings.Cut(topic[at:], "/")
		if last := i == len(m.levels)-1; more == last && (last || m.levels[i+1] != "#") {
			return 0, 0, false // more levels than the mapping, or fewer
		}
		switch want {
		case vehicleLevel:
			if level == "" {
				return 0, 0, false
			}
			from, to = at, at+len(level)
		case "+":
		default:
			if level != want {
				return 0, 0, false
			}
		}
		at = len(topic) - len(rest)
	}
	return from, to, true
}

// owns tells whether filter lies below the part of the mapping that ends with this vehicle's id.
func (m *mapping) owns(filter, vehicle string) bool {
	for _, want := range m.levels {
		level, rest, more := strings.Cut(filter, "/")
		if want == vehicleLevel {
			return level == vehicle && more
		}
		if level != want || !more {
			return false
		}
		filter = rest
	}
	return false
}

type mappings []mapping

func parseMappings(topics []Topic) (mappings, error) {
	var ms mappings
	for _, t := range topics {
		m, err := parseMapping(t)
		if err != nil {
			return nil, err
		}
		ms = append(ms, m)
	}
	return ms, nil
}

// find returns the mapping of a topic, nil if there is none, and which part of the topic names the vehicle.
func (ms mappings) find(topic string) (m *mapping, from, to int) {
	for i := range ms {
		if from, to, ok := ms[i].match(topic); ok {
			return &ms[i], from, to
		}
	}
	return nil, 0, 0
}

func (ms mappings) owns(filter, vehicle string) bool {
	if telemetry.CheckVehicle(vehicle) != nil { // or a client id with wildcards would own more than one
		return false
	}
	for i := range ms {
		if ms[i].owns(filter, vehicle) {
			return true
		}
	}
	return false
}

// Prefixes of AWS IoT.
const (
	awsPrefix   = "$aws/"
	basicIngest = "$aws/rules/" // $aws/rules/<name>/<topic>: a message for the rules alone
)

// stripBasicIngest returns the topic that a Basic Ingest topic carries.
func stripBasicIngest(topic []byte) ([]byte, bool) {
	if rest, ok := bytes.CutPrefix(topic, []byte(basicIngest)); ok {
		if _, inner, ok := bytes.Cut(rest, []byte("/")); ok && len(inner) > 0 && inner[0] != '$' {
			return inner, true
		}
	}
	return topic, false
}

// view is b as a string, good as long as b.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// A Mapping is a list of Topics for those who get messages from elsewhere than the door.
type Mapping struct{ all mappings }

// NewMapping checks topics.
func NewMapping(topics []Topic) (*Mapping, error) {
	all, err := parseMappings(topics)
	if err != nil {
		return nil, err
	}
	return &Mapping{all}, nil
}

// Filters returns the MQTT filters that match the mapping's topics.
func (m *Mapping) Filters() []string {
	out := make([]string, len(m.all))
	for i := range m.all {
		levels := slices.Clone(m.all[i].levels)
		for j, l := range levels {
			if l == vehicleLevel {
				levels[j] = "+"
			}
		}
		out[i] = strings.Join(levels, "/")
	}
	return out
}

// Readings turns a message into readings; false: no Topic matches. The vehicle is that of the topic, "" if it names none.
func (m *Mapping) Readings(topic string, payload []byte) (vehicle string, data []byte, unread []ingest.Unread, ok bool, err error) {
	found, from, to := m.all.find(topic)
	if found == nil {
		return "", nil, nil, false, nil
	}
	vehicle = topic[from:to]
	if found.convert == nil {
		return vehicle, payload, nil, true, nil
	}
	data, unread, err = found.convert(nil, topic, vehicle, payload)
	return vehicle, data, unread, true, err
}
