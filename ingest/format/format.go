// Package format turns what other senders send into readings in Milepost's own JSON: phones with OwnTracks, Traccar Client,
// Overland or Torque Pro, a Traccar server, GTFS-realtime feeds, Influx line protocol, Tesla's fleet telemetry, VSS names,
// Sparkplug B.
//
// Units are bound to the format and never guessed from a number's size: each converter's comment names the units its senders
// use and where that is written. What a converter cannot read is handed back whole, piece by piece, with the reason (P7).
//
// A converter keeps no reference to its input. Those that must remember something between messages (Sparkplug's aliases, the
// time stamps of a GTFS feed, Torque's units) bound it, say so, and are safe for concurrent use, as all are.
package format

import (
	"fmt"
	"math"
	"net/url"
	"strings"
	"time"

	"github.com/milepost/milepost/telemetry"
)

// An Input is one message or request.
type Input struct {
	Topic  string                   // MQTT topic; "" over HTTP
	Device string                   // who sent it, where that is known: then it is the vehicle, whatever the payload says; else ""
	Query  url.Values               // HTTP query and form fields; nil over MQTT
	Header func(name string) string // HTTP header; nil over MQTT
	Data   []byte                   // payload or body, borrowed until Convert returns
	Now    time.Time                // arrival
}

func (in *Input) header(name string) string {
	if in.Header == nil {
		return ""
	}
	return in.Header(name)
}

// A Converter reads one format. It is safe for concurrent use.
type Converter interface {
	// Convert adds the input's readings to out. An error means that nothing could be read at all; parts that could not be read
	// are in out.Bad.
	Convert(in *Input, out *Output) error
}

// Bad is a part of an input that could not be read.
type Bad struct {
	Element int    // of the input, from 1
	Data    []byte // as it came; a part of the input, or a copy
	Reason  string
}

// A Message is something to tell the sender's side over MQTT.
type Message struct {
	Topic   string
	Payload []byte
}

// An Output collects what a converter makes of an input. Its owner may reuse it after Reset.
type Output struct {
	Lines    []byte // readings in Milepost's JSON, each with a line end
	Readings int
	Ignored  int // messages that are well formed and carry no reading: a waypoint, a heartbeat without a place
	Bad      []Bad
	Reply    []byte // of an HTTP answer, where the format wants a certain one
	Type     string // its content type
	Status   int    // its status on success; 0: 200
	Send     []Message
	Undo     func() // to be called if the readings were not stored and the same input will come again; nil: nothing to undo

	catalog *telemetry.Catalog
	r       telemetry.Reading
}

// NewOutput returns an Output whose signal names are those of catalog.
func NewOutput(catalog *telemetry.Catalog) *Output { return &Output{catalog: catalog} }

// Reset makes the output empty, keeping its memory.
func (o *Output) Reset() {
	clear(o.Bad)
	clear(o.Send)
	*o = Output{
		Lines: o.Lines[:0], Bad: o.Bad[:0], Send: o.Send[:0], catalog: o.catalog,
		r: telemetry.Reading{Signals: o.r.Signals[:0]},
	}
}

// begin starts a reading. A zero time means that the sender gave none.
func (o *Output) begin(vehicle string, at time.Time) {
	o.r = telemetry.Reading{Vehicle: vehicle, Signals: o.r.Signals[:0], Flags: telemetry.FlagNoPosition}
	if at.IsZero() {
		o.r.Flags |= telemetry.FlagTimeMissing
		return
	}
	o.r.Time = at.UnixMilli()
}

func (o *Output) place(lat, lon float64) {
	if finite(lat) && finite(lon) {
		o.r.Lat, o.r.Lon = lat, lon
		o.r.Flags &^= telemetry.FlagNoPosition
	}
}

func (o *Output) set(id telemetry.SignalID, v float64) {
	if !finite(v) {
		return
	}
	for i := range o.r.Signals {
		if o.r.Signals[i].ID == id {
			o.r.Signals[i].Value = v
			return
		}
	}
	o.r.Signals = append(o.r.Signals, telemetry.Signal{ID: id, Value: v})
}

// named sets a signal by name. Names that have another meaning in a reading get an underscore; a name that the catalog does
// not take any more is left out, as it would be in Milepost's own format.
func (o *Output) named(name string, v float64) {
	if telemetry.Reserved(name) {
		name += "_"
	}
	if id, ok := o.catalog.Intern(name); ok {
		o.set(id, v)
	}
}

func (o *Output) truth(name string, v bool) {
	n := 0.0
	if v {
		n = 1
	}
	o.named(name, n)
}

// emit ends a reading. It refuses one whose vehicle cannot be named, and one whose time cannot be written.
func (o *Output) emit(element int, data []byte) {
	if err := telemetry.CheckVehicle(o.r.Vehicle); err != nil {
		o.refuse(element, data, fmt.Sprintf("vehicle %q: %v", clip(o.r.Vehicle), err))
		return
	}
	const year9999 = 253_402_300_799_999
	if o.r.Flags&telemetry.FlagTimeMissing == 0 && (o.r.Time < 0 || o.r.Time > year9999) {
		o.refuse(element, data, fmt.Sprintf("time %d ms is no time: set the sender's clock", o.r.Time))
		return
	}
	o.Lines = append(telemetry.AppendJSON(o.Lines, o.catalog, &o.r), '\n')
	o.Readings++
}

func (o *Output) refuse(element int, data []byte, reason string) {
	o.Bad = append(o.Bad, Bad{element, data, reason})
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

func clip(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "…"
	}
	return s
}

// snake writes a foreign name the way signals are written: "engineTemp", "Engine/Temperature" and "Engine Temperature" become
// engine_temp and engine_temperature.
func snake(name string) string {
	b := make([]byte, 0, len(name)+4)
	lower := false // the last byte was a lower-case letter or a digit
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'A' && c <= 'Z':
			next := i+1 < len(name) && name[i+1] >= 'a' && name[i+1] <= 'z'
			if len(b) > 0 && b[len(b)-1] != '_' && (lower || next) {
				b = append(b, '_')
			}
			b = append(b, c+'a'-'A')
			lower = false
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c >= 0x80:
			b = append(b, c)
			lower = true
		default:
			if len(b) > 0 && b[len(b)-1] != '_' {
				b = append(b, '_')
			}
			lower = false
		}
	}
	return strings.TrimRight(string(b), "_")
}

// Factors into the catalog's units, exact by definition (telemetry.units has the sources).
const (
	knots = 1.852    // km/h
	mps   = 3.6      // km/h
	mph   = 1.609344 // km/h
	mile  = 1609.344 // m
)

// unixTime reads epoch seconds, or milliseconds from 2^31 on: until 2038 no count of seconds is that large.
func unixTime(v float64) time.Time {
	if !finite(v) || v <= 0 || v > 1e15 {
		return time.Time{}
	}
	if v >= 1<<31 {
		return time.UnixMilli(int64(v))
	}
	return time.UnixMilli(int64(v * 1000))
}

// vehicleOf returns the first name that is there.
func vehicleOf(names ...string) string {
	for _, n := range names {
		if n != "" {
			return n
		}
	}
	return ""
}
