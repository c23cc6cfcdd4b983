package format

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/milepost/milepost/telemetry"
)

// Sparkplug reads Sparkplug B (Eclipse Sparkplug 3.0): spBv1.0/<group>/<type>/<edge node>[/<device>].
//
// The vehicle is the device, else the edge node. Metrics are signals: their names in snake case ("Engine/Temperature" is
// engine_temperature), in the catalog's unit unless a property engUnit names another that Milepost knows. Births tell the names
// of aliases; when data comes for an edge node whose birth was not seen, or a sequence number is missing, the edge node is asked
// to be born again ("Node Control/Rebirth") and what cannot be named is handed back. A death is a reading with the status offline.
type Sparkplug struct {
	mu    sync.Mutex // guards nodes
	nodes map[string]*sparkplugNode
}

type sparkplugNode struct {
	mu     sync.Mutex // guards the rest: messages of one edge node come in order, by one connection
	born   bool
	seq    uint64
	births map[string]sparkplugBirth // by device; "" is the edge node itself
	asked  time.Time                 // when it was last asked for a birth
}

// A sparkplugBirth is what a birth said: the metrics by alias, and by name those whose unit it told.
type sparkplugBirth struct {
	aliases map[uint64]sparkplugMetric
	units   map[string]sparkplugMetric
}

// A sparkplugMetric is what a birth says of a metric.
type sparkplugMetric struct {
	name string
	unit telemetry.Unit
	skip bool // its unit is not known: a wrong number is worse than none
}

const (
	maxSparkplugNodes   = 50_000
	maxSparkplugAliases = 4096 // of one device
	maxSparkplugDevices = 1024 // of one edge node
	rebirthEvery        = 10 * time.Second
)

type sparkplugValue struct {
	name     string
	alias    uint64
	hasAlias bool
	time     uint64
	value    float64
	number   bool
	unit     string
}

// Convert implements Converter.
func (s *Sparkplug) Convert(in *Input, out *Output) error {
	parts := strings.Split(in.Topic, "/")
	if len(parts) < 4 || parts[0] != "spBv1.0" || len(parts) > 5 {
		if len(parts) >= 2 && parts[0] == "spBv1.0" && parts[1] == "STATE" {
			out.Ignored++
			return nil
		}
		return fmt.Errorf("topic %q: Sparkplug B has spBv1.0/<group>/<type>/<edge node>[/<device>]", clip(in.Topic))
	}
	group, kind, edge := parts[1], parts[2], parts[3]
	device := ""
	if len(parts) == 5 {
		device = parts[4]
	}
	vehicle := vehicleOf(in.Device, device, edge)
	switch kind {
	case "NCMD", "DCMD", "STATE":
		out.Ignored++ // for the edge node, not from it
		return nil
	case "NBIRTH", "NDATA", "NDEATH", "DBIRTH", "DDATA", "DDEATH":
	default:
		return fmt.Errorf("topic %q: %q is no type of Sparkplug B", clip(in.Topic), clip(kind))
	}
	if (kind[0] == 'D') != (device != "") {
		return fmt.Errorf("topic %q: a message of type %s names %s device", clip(in.Topic), kind, map[bool]string{true: "a", false: "no"}[kind[0] == 'D'])
	}
	stamp, seq, metrics, err := sparkplugPayload(in.Data)
	if err != nil {
		return fmt.Errorf("read Sparkplug payload: %w", err)
	}
	node := s.node(group + "/" + edge)
	node.mu.Lock()
	defer node.mu.Unlock()
	rebirth := func() {
		if in.Now.Sub(node.asked) >= rebirthEvery {
			node.asked = in.Now
			out.Send = append(out.Send, Message{"spBv1.0/" + group + "/NCMD/" + edge, rebirthCommand(in.Now)})
		}
	}
	switch kind {
	case "NDEATH", "DDEATH":
		if kind == "NDEATH" {
			node.born = false
		}
		out.begin(vehicle, in.Now) // the payload's time is that of the birth, when the will was written
		out.r.Status = "offline"
		out.emit(1, in.Data)
		return nil
	case "NBIRTH":
		node.born, node.births = true, map[string]sparkplugBirth{}
		node.seq = seq
		node.learn(out.catalog, "", metrics)
	default:
		if !node.born || seq != (node.seq+1)&0xff {
			rebirth()
		}
		if node.seq = seq; kind == "DBIRTH" {
			node.learn(out.catalog, device, metrics)
		}
	}
	node.emit(in, out, vehicle, device, stamp, metrics, rebirth)
	return nil
}

// emit makes readings of metrics, one for each time that they name.
func (n *sparkplugNode) emit(in *Input, out *Output, vehicle, device string, stamp uint64, metrics []sparkplugValue, rebirth func()) {
	known := n.births[device]
	unknown := 0
	var open uint64
	begun, some := false, false
	flush := func() {
		if some {
			out.emit(1, in.Data)
		}
		begun, some = false, false
	}
	var lat, lon float64
	placed := 0
	for _, m := range metrics {
		meaning := sparkplugMetric{name: m.name}
		if m.hasAlias {
			var ok bool
			if meaning, ok = known.aliases[m.alias]; !ok {
				unknown++
				continue
			}
		} else if told, ok := known.units[m.name]; ok {
			meaning = told
		} else if m.unit != "" {
			meaning = describe(out.catalog, m)
		}
		if meaning.name == "" || meaning.skip || !m.number || sparkplugControl(meaning.name) {
			continue
		}
		at := m.time
		if at == 0 {
			at = stamp
		}
		if !begun || at != open {
			flush()
			var when time.Time
			if at > 0 && at < 1<<50 {
				when = time.UnixMilli(int64(at)) //nolint:gosec // bounded
			}
			out.begin(vehicle, when)
			begun, open, placed = true, at, 0
		}
		some = true
		switch name := snake(meaning.name); last(name) {
		case "latitude", "lat":
			lat = m.value
			placed |= 1
		case "longitude", "lon", "lng":
			lon = m.value
			placed |= 2
		default:
			out.named(name, meaning.unit.Convert(m.value))
		}
		if placed == 3 {
			out.place(lat, lon)
		}
	}
	flush()
	if unknown > 0 {
		rebirth()
		out.refuse(1, in.Data, fmt.Sprintf("%d metrics have aliases whose birth was not seen; the edge node is asked to be born again", unknown))
	}
}

// last is what a name says in the end: position_latitude is a latitude.
func last(name string) string {
	if i := strings.LastIndexByte(name, '_'); i >= 0 {
		return name[i+1:]
	}
	return name
}

func sparkplugControl(name string) bool {
	return name == "bdSeq" || strings.HasPrefix(name, "Node Control/") || strings.HasPrefix(name, "Device Control/") ||
		strings.HasPrefix(name, "Properties/") || strings.HasPrefix(name, "Node Info/")
}

func (s *Sparkplug) node(key string) *sparkplugNode {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.nodes[key]; n != nil {
		return n
	}
	if s.nodes == nil || len(s.nodes) >= maxSparkplugNodes {
		s.nodes = map[string]*sparkplugNode{} // all will be asked to be born again
	}
	n := &sparkplugNode{}
	s.nodes[key] = n
	return n
}

func (n *sparkplugNode) learn(cat *telemetry.Catalog, device string, metrics []sparkplugValue) {
	if n.births == nil || len(n.births) >= maxSparkplugDevices {
		n.births = map[string]sparkplugBirth{}
	}
	b := sparkplugBirth{map[uint64]sparkplugMetric{}, map[string]sparkplugMetric{}}
	for i, m := range metrics {
		if m.name == "" || i >= maxSparkplugAliases {
			continue
		}
		d := describe(cat, m)
		if m.hasAlias {
			b.aliases[m.alias] = d
		}
		if m.unit != "" {
			b.units[d.name] = d
		}
	}
	n.births[device] = b
}

func describe(cat *telemetry.Catalog, m sparkplugValue) sparkplugMetric {
	d := sparkplugMetric{name: m.name}
	def := telemetry.Def{Name: snake(m.name)}
	if id, ok := cat.Lookup([]byte(def.Name)); ok {
		def = *cat.Def(id)
	}
	if m.unit == "" || def.Unit == "" {
		return d // a signal of its own is in the unit that its sender uses
	}
	unit, err := telemetry.ParseUnit(m.unit, &def)
	d.unit, d.skip = unit, err != nil
	return d
}

// rebirthCommand is the payload {timestamp, metrics: [{name: "Node Control/Rebirth", datatype: Boolean, value: true}]}.
func rebirthCommand(now time.Time) []byte {
	var m []byte
	m = protowire.AppendTag(m, 1, protowire.BytesType)
	m = protowire.AppendString(m, "Node Control/Rebirth")
	m = protowire.AppendTag(m, 4, protowire.VarintType)
	m = protowire.AppendVarint(m, 11) // Boolean
	m = protowire.AppendTag(m, 14, protowire.VarintType)
	m = protowire.AppendVarint(m, 1)
	var b []byte
	b = protowire.AppendTag(b, 1, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(now.UnixMilli())) //nolint:gosec // now is after 1970
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	return protowire.AppendBytes(b, m)
}

// fields calls f for each field of a protobuf message.
func fields(b []byte, f func(n protowire.Number, t protowire.Type, v uint64, data []byte) error) error {
	for len(b) > 0 {
		n, t, size := protowire.ConsumeTag(b)
		if size < 0 {
			return protowire.ParseError(size)
		}
		b = b[size:]
		var v uint64
		var data []byte
		switch t {
		case protowire.VarintType:
			v, size = protowire.ConsumeVarint(b)
		case protowire.Fixed32Type:
			var x uint32
			x, size = protowire.ConsumeFixed32(b)
			v = uint64(x)
		case protowire.Fixed64Type:
			v, size = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			data, size = protowire.ConsumeBytes(b)
		case protowire.StartGroupType, protowire.EndGroupType:
			return errors.New("a group, which Sparkplug does not have")
		default:
			return errors.New("a field of no known type")
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		b = b[size:]
		if err := f(n, t, v, data); err != nil {
			return err
		}
	}
	return nil
}

// sparkplugPayload reads message Payload of sparkplug_b.proto: timestamp 1, metrics 2, seq 3.
func sparkplugPayload(b []byte) (stamp, seq uint64, metrics []sparkplugValue, err error) {
	err = fields(b, func(n protowire.Number, t protowire.Type, v uint64, data []byte) error {
		switch {
		case n == 1 && t == protowire.VarintType:
			stamp = v
		case n == 3 && t == protowire.VarintType:
			seq = v
		case n == 2 && t == protowire.BytesType:
			m, err := sparkplugMetricOf(data)
			if err != nil {
				return fmt.Errorf("metric %d: %w", len(metrics)+1, err)
			}
			metrics = append(metrics, m)
		}
		return nil
	})
	return stamp, seq, metrics, err
}

// sparkplugMetricOf reads message Metric: name 1, alias 2, timestamp 3, datatype 4, is_null 7, properties 9, and the value in 10
// to 16. Signed integers are stored as their two's complement of the datatype's width.
func sparkplugMetricOf(b []byte) (m sparkplugValue, err error) {
	var kind, raw uint64
	var field protowire.Number
	null := false
	err = fields(b, func(n protowire.Number, t protowire.Type, v uint64, data []byte) error {
		switch {
		case n == 1 && t == protowire.BytesType:
			m.name = string(data)
		case n == 2 && t == protowire.VarintType:
			m.alias, m.hasAlias = v, true
		case n == 3 && t == protowire.VarintType:
			m.time = v
		case n == 4 && t == protowire.VarintType:
			kind = v
		case n == 7 && t == protowire.VarintType:
			null = v != 0
		case n == 9 && t == protowire.BytesType:
			return sparkplugUnit(data, &m.unit)
		case n >= 10 && n <= 14:
			field, raw = n, v
		}
		return nil
	})
	if err != nil || null {
		return m, err
	}
	switch int(field) {
	case 10: // int_value, 32 bits
		m.value, m.number = float64(uint32(raw)), true //nolint:gosec // its width
		switch kind {
		case 1:
			m.value = float64(int8(raw)) //nolint:gosec // two's complement
		case 2:
			m.value = float64(int16(raw)) //nolint:gosec // two's complement
		case 3:
			m.value = float64(int32(raw)) //nolint:gosec // two's complement
		}
	case 11: // long_value
		m.value, m.number = float64(raw), kind != 13 // a DateTime is no signal
		if kind == 4 {
			m.value = float64(int64(raw)) //nolint:gosec // two's complement
		}
	case 12:
		m.value, m.number = widen(math.Float32frombits(uint32(raw))), true //nolint:gosec // its width
	case 13:
		m.value, m.number = math.Float64frombits(raw), true
	case 14:
		m.number = true
		if raw != 0 {
			m.value = 1
		}
	}
	return m, nil
}

// sparkplugUnit finds engUnit in a PropertySet: keys 1, values 2, each with type 1 and string_value 8.
func sparkplugUnit(b []byte, unit *string) error {
	var keys []string
	var values [][]byte
	err := fields(b, func(n protowire.Number, t protowire.Type, _ uint64, data []byte) error {
		switch {
		case n == 1 && t == protowire.BytesType:
			keys = append(keys, string(data))
		case n == 2 && t == protowire.BytesType:
			values = append(values, data)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, k := range keys {
		if !strings.EqualFold(k, "engUnit") || i >= len(values) {
			continue
		}
		return fields(values[i], func(n protowire.Number, t protowire.Type, _ uint64, data []byte) error {
			if n == 8 && t == protowire.BytesType {
				*unit = string(data)
			}
			return nil
		})
	}
	return nil
}
