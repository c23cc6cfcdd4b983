package format

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/milepost/milepost/telemetry"
)

// OsmAnd reads what Traccar calls the OsmAnd protocol: the query or form that OsmAnd, GPSLogger, Home Assistant and older
// Traccar Clients send, and the JSON of Traccar Client 9.
//
// Units: in the query speed is in knots (www.traccar.org/osmand), altitude and accuracy in m, batt in %; in the JSON speed is
// in m/s, battery.level a fraction, odometer in m, and -1 means unknown. A time without a zone is UTC.
// Any other parameter of the query is a signal of that name in its catalog unit.
type OsmAnd struct{}

// Convert implements Converter.
func (OsmAnd) Convert(in *Input, out *Output) error {
	if body := strings.TrimSpace(string(in.Data)); strings.HasPrefix(body, "{") {
		return traccarClient(in, out)
	}
	q := in.Query
	if len(in.Data) > 0 {
		form, err := url.ParseQuery(string(in.Data))
		if err != nil {
			return fmt.Errorf("read form: %w", err)
		}
		q = url.Values{}
		for _, from := range []url.Values{in.Query, form} {
			maps.Copy(q, from)
		}
	}
	vehicle := vehicleOf(in.Device, q.Get("id"), q.Get("deviceid"))
	if vehicle == "" {
		return errors.New("no id: set the device identifier in the app")
	}
	at, err := osmAndTime(q.Get("timestamp"))
	if err != nil {
		return err
	}
	out.begin(vehicle, at)
	lat, lon := q.Get("lat"), q.Get("lon")
	if where := q.Get("location"); where != "" {
		lat, lon, _ = strings.Cut(where, ",")
	}
	if lat != "" || lon != "" {
		y, err1 := strconv.ParseFloat(strings.TrimSpace(lat), 64)
		x, err2 := strconv.ParseFloat(strings.TrimSpace(lon), 64)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("place %q, %q is not a pair of numbers", clip(lat), clip(lon))
		}
		out.place(y, x)
	}
	names := make([]string, 0, len(q))
	for name := range q {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		value := q.Get(name)
		v, err := strconv.ParseFloat(value, 64)
		number := err == nil
		switch name {
		case "id", "deviceid", "lat", "lon", "location", "timestamp", "driverUniqueId", "cell", "wifi", "notificationToken", "token", "key":
		case "speed":
			if number && v >= 0 {
				out.set(telemetry.Speed, v*knots)
			}
		case "bearing", "heading":
			if number && v >= 0 {
				out.set(telemetry.Heading, v)
			}
		case "altitude":
			if number {
				out.set(telemetry.Altitude, v)
			}
		case "accuracy":
			if number {
				out.set(telemetry.Accuracy, v)
			}
		case "batt":
			if number {
				out.named("phone_battery", v)
			}
		case "alarm", "event", "status":
			out.r.Status = value
		default:
			osmAndAttribute(out, name, value, v, number)
		}
	}
	out.emit(1, in.Data)
	return nil
}

func osmAndAttribute(out *Output, name, value string, v float64, number bool) {
	name = traccarName(name)
	switch {
	case number:
		out.named(name, v)
	case value == "true" || value == "false":
		out.truth(name, value == "true")
	}
}

// traccarName is the signal that an attribute of Traccar's is, where the catalog has one in the same unit.
func traccarName(name string) string {
	switch name {
	case "engineTemp", "coolantTemp":
		return "engine_temp"
	case "fuelLevel":
		return "fuel"
	case "fuel": // litres at Traccar
		return "fuel_volume"
	case "batteryLevel":
		return "phone_battery"
	case "power":
		return "battery"
	case "battery": // of the tracker itself
		return "device_voltage"
	}
	return snake(name)
}

// osmAndTime reads epoch seconds or milliseconds, ISO 8601, or a date and a time, which is taken for UTC.
func osmAndTime(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if v, err := strconv.ParseFloat(s, 64); err == nil {
		if at := unixTime(v); !at.IsZero() {
			return at, nil
		}
		return time.Time{}, fmt.Errorf("timestamp %q is no time", clip(s))
	}
	if strings.Contains(s, "T") {
		s = strings.ReplaceAll(s, " ", "+") // that of an offset, not escaped in the query
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999Z0700", "2006-01-02T15:04:05.999999999", time.DateTime} {
		if at, err := time.Parse(layout, s); err == nil {
			return at, nil
		}
	}
	return time.Time{}, fmt.Errorf("timestamp %q: use epoch seconds or milliseconds, or ISO 8601", clip(s))
}

type traccarApp struct {
	Device   json.RawMessage `json:"device_id"`
	Location *struct {
		Timestamp json.RawMessage `json:"timestamp"`
		Coords    *struct {
			Latitude  *float64 `json:"latitude"`
			Longitude *float64 `json:"longitude"`
			Accuracy  *float64 `json:"accuracy"`
			Speed     *float64 `json:"speed"`
			Heading   *float64 `json:"heading"`
			Altitude  *float64 `json:"altitude"`
		} `json:"coords"`
		Moving   *bool    `json:"is_moving"`
		Odometer *float64 `json:"odometer"`
		Event    string   `json:"event"`
		Battery  *struct {
			Level    *float64 `json:"level"`
			Charging *bool    `json:"is_charging"`
		} `json:"battery"`
		Activity *struct {
			Type string `json:"type"`
		} `json:"activity"`
		Mock   bool            `json:"mock"`
		Alarm  string          `json:"alarm"`
		Extras json.RawMessage `json:"extras"`
	} `json:"location"`
}

func traccarClient(in *Input, out *Output) error {
	var m traccarApp
	if err := json.Unmarshal(in.Data, &m); err != nil {
		return fmt.Errorf("read Traccar Client JSON: %w", err)
	}
	vehicle := vehicleOf(in.Device, text(m.Device), in.Query.Get("id"))
	if vehicle == "" {
		return errors.New("no device_id: set the device identifier in the app")
	}
	if m.Location == nil {
		return errors.New("no location: this is not Traccar Client JSON")
	}
	l := m.Location
	at, err := osmAndTime(text(l.Timestamp))
	if err != nil {
		return err
	}
	out.begin(vehicle, at)
	known := func(id telemetry.SignalID, v *float64, factor float64) {
		if v != nil && *v >= 0 {
			out.set(id, *v*factor)
		}
	}
	if c := l.Coords; c != nil {
		if c.Latitude != nil && c.Longitude != nil {
			out.place(*c.Latitude, *c.Longitude)
		}
		known(telemetry.Speed, c.Speed, mps)
		known(telemetry.Heading, c.Heading, 1)
		known(telemetry.Accuracy, c.Accuracy, 1)
		if c.Altitude != nil {
			out.set(telemetry.Altitude, *c.Altitude)
		}
	}
	known(telemetry.Odometer, l.Odometer, 1)
	if l.Moving != nil {
		out.truth("motion", *l.Moving)
	}
	if b := l.Battery; b != nil {
		if b.Level != nil && *b.Level >= 0 {
			out.named("phone_battery", *b.Level*100)
		}
		if b.Charging != nil {
			out.truth("phone_charging", *b.Charging)
		}
	}
	if l.Mock {
		out.truth("mock_position", true)
	}
	out.r.Status = l.Alarm
	attributes(out, l.Extras)
	out.emit(1, in.Data)
	return nil
}

// text is a JSON string or number as a string; "" for anything else.
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	var n json.Number
	if json.Unmarshal(raw, &n) == nil {
		return n.String()
	}
	return ""
}

// attributes takes the numbers and truth values of an object as signals, in the order of their names.
func attributes(out *Output, raw json.RawMessage) {
	var all map[string]json.RawMessage
	if len(raw) == 0 || json.Unmarshal(raw, &all) != nil {
		return
	}
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		attribute(out, name, all[name])
	}
}

func attribute(out *Output, name string, raw json.RawMessage) {
	var v float64
	var b bool
	switch {
	case string(raw) == "null":
	case json.Unmarshal(raw, &v) == nil:
		switch name {
		case "hours": // milliseconds
			out.named("engine_hours", v/3.6e6)
		case "obdSpeed":
			out.named("obd_speed", v)
		default:
			out.named(traccarName(name), v)
		}
	case json.Unmarshal(raw, &b) == nil:
		out.truth(traccarName(name), b)
	}
}

// TraccarForward reads the JSON that a Traccar server forwards (forward.type=json, mqtt, …): one position, or an event with its
// position. With it every tracker that Traccar knows is one that Milepost knows.
//
// Units (org.traccar.model.Position): speed knots, altitude, accuracy and odometer m, fuelLevel %, fuel l, power and battery V,
// coolantTemp and engineTemp °C, hours ms. The vehicle is the device's uniqueId.
type TraccarForward struct{}

type traccarForward struct {
	Position *struct {
		FixTime    string          `json:"fixTime"`
		DeviceTime string          `json:"deviceTime"`
		Valid      *bool           `json:"valid"`
		Latitude   *float64        `json:"latitude"`
		Longitude  *float64        `json:"longitude"`
		Altitude   *float64        `json:"altitude"`
		Speed      *float64        `json:"speed"`
		Course     *float64        `json:"course"`
		Accuracy   *float64        `json:"accuracy"`
		Attributes json.RawMessage `json:"attributes"`
	} `json:"position"`
	Device *struct {
		UniqueID string `json:"uniqueId"`
		Name     string `json:"name"`
	} `json:"device"`
	Event *struct {
		Type      string `json:"type"`
		EventTime string `json:"eventTime"`
	} `json:"event"`
}

// Convert implements Converter.
func (TraccarForward) Convert(in *Input, out *Output) error {
	var m traccarForward
	if err := json.Unmarshal(in.Data, &m); err != nil {
		return fmt.Errorf("read Traccar forward JSON: %w", err)
	}
	if m.Device == nil || m.Device.UniqueID == "" {
		return errors.New("no device.uniqueId: this is not what a Traccar server forwards (forward.type=json)")
	}
	vehicle := vehicleOf(in.Device, m.Device.UniqueID)
	p := m.Position
	if p == nil {
		if m.Event == nil {
			return errors.New("neither position nor event: this is not what a Traccar server forwards")
		}
		at, err := osmAndTime(m.Event.EventTime)
		if err != nil {
			return err
		}
		out.begin(vehicle, at)
		out.r.Status = m.Event.Type
		out.emit(1, in.Data)
		return nil
	}
	at, err := osmAndTime(vehicleOf(p.FixTime, p.DeviceTime))
	if err != nil {
		return err
	}
	out.begin(vehicle, at)
	if p.Latitude != nil && p.Longitude != nil && (p.Valid == nil || *p.Valid) {
		out.place(*p.Latitude, *p.Longitude)
	}
	if p.Speed != nil {
		out.set(telemetry.Speed, *p.Speed*knots)
	}
	if p.Course != nil {
		out.set(telemetry.Heading, *p.Course)
	}
	if p.Altitude != nil {
		out.set(telemetry.Altitude, *p.Altitude)
	}
	if p.Accuracy != nil && *p.Accuracy > 0 {
		out.set(telemetry.Accuracy, *p.Accuracy)
	}
	attributes(out, p.Attributes)
	var said struct {
		Alarm string `json:"alarm"`
	}
	if len(p.Attributes) > 0 && json.Unmarshal(p.Attributes, &said) == nil {
		out.r.Status = said.Alarm
	}
	if m.Event != nil {
		out.r.Status = m.Event.Type
	}
	out.emit(1, in.Data)
	return nil
}
