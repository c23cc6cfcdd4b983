package telemetry

import (
	"math"
	"strconv"
)

// MaxReadingSignals is how many signals one reading may carry. Further ones are left out and FlagSignalsDropped says so.
const MaxReadingSignals = 64

// A DecodeError tells where a payload is wrong, what is wrong and how to mend it.
type DecodeError struct {
	Offset int    // byte of the input at which it was noticed
	Field  string // "" if no field is to blame
	Msg    string
}

func (e *DecodeError) Error() string {
	s := "byte " + strconv.Itoa(e.Offset) + ": "
	if e.Field != "" {
		s += e.Field + ": "
	}
	return s + e.Msg
}

// ErrNoVehicle says that neither the payload nor its channel names a vehicle.
var ErrNoVehicle error = &DecodeError{Field: "vehicle_id", Msg: "the payload names no vehicle: send vehicle_id, or publish to a topic that names one"}

// A Decoder decodes readings. It may be used again and again, by one goroutine at a time.
type Decoder struct {
	cat *Catalog
}

// NewDecoder returns a decoder that looks signals up in cat, and teaches it new ones.
func NewDecoder(cat *Catalog) *Decoder { return &Decoder{cat: cat} }

// A field is what the decoder does with a key.
type field uint8

const (
	fieldOther   field = iota // a signal that only the catalog may know
	fieldSignal               // a well-known signal
	fieldVehicle              // the reserved fields follow
	fieldTime
	fieldSeconds
	fieldLat
	fieldLon
	fieldStatus
)

// Reserved tells whether no signal can have the name, because the JSON format means something else by it.
func Reserved(name string) bool {
	f, _ := fieldOf(name)
	return f >= fieldVehicle
}

// fieldOf tells what a key means. No signal can have a reserved field's name.
func fieldOf(key string) (field, SignalID) {
	switch key {
	case "truck_id", "vehicle_id":
		return fieldVehicle, 0
	case "ts", "time", "timestamp":
		return fieldTime, 0
	case "ts_s":
		return fieldSeconds, 0
	case "lat", "latitude":
		return fieldLat, 0
	case "long", "lon", "lng", "longitude":
		return fieldLon, 0
	case "status":
		return fieldStatus, 0
	case "speed":
		return fieldSignal, Speed
	case "heading":
		return fieldSignal, Heading
	case "fuel":
		return fieldSignal, Fuel
	case "engine_temp":
		return fieldSignal, EngineTemp
	case "fuel_pressure":
		return fieldSignal, FuelPressure
	case "cargo_temp":
		return fieldSignal, CargoTemp
	case "rpm":
		return fieldSignal, RPM
	case "odometer":
		return fieldSignal, Odometer
	case "battery":
		return fieldSignal, Battery
	case "altitude":
		return fieldSignal, Altitude
	case "accuracy":
		return fieldSignal, Accuracy
	}
	return fieldOther, 0
}

// JSON decodes one reading, a JSON object, into r. Set r.Arrival before the call, and r.Vehicle to the vehicle that the
// channel names (an MQTT topic, a record's key) or to "". Everything else in r is overwritten. After an error r is useless.
//
// The strings of r are views of data. Only strings with escapes are copied, and only those, errors and names that the
// catalog does not know allocate.
//
// What counts as what:
//
//   - vehicle_id or truck_id: a string (see CheckVehicle) or a non-negative integer. All names given, the channel's
//     included, must be equal, and there must be one.
//   - ts, time or timestamp: RFC 3339 with Z or an offset, or a number, which always means Unix milliseconds; ts_s: Unix
//     seconds, fractions allowed. Without any, Time is Arrival and FlagTimeMissing is set.
//   - lat or latitude; long, lon, lng or longitude: numbers, both or neither. Out of range or within 1e-4 degrees of 0,0:
//     kept, and FlagPositionInvalid is set.
//   - status: a string.
//   - every other number, true (1) and false (0) is a signal in its catalog unit.
//
// null is as good as absent. Other values of other fields are passed over and FlagFieldsIgnored is set. Of fields that
// appear twice the last usable one counts. An event time more than MaxAhead after arrival or before MinEventTime, malformed
// JSON, invalid UTF-8, numbers beyond float64 and more than 32 levels are refused with a *DecodeError.
func (d *Decoder) JSON(data []byte, r *Reading) error {
	p := object{cat: d.cat, view: d.cat.cur.Load(), data: data, r: r}
	if cap(r.Signals) == 0 {
		r.Signals = make([]Signal, 0, 16)
	}
	r.Signals, r.Status, r.Flags = r.Signals[:0], "", 0

	i := skipSpace(data, 0)
	if i >= len(data) || data[i] != '{' {
		return &DecodeError{Offset: i, Msg: "a reading is one JSON object: want '{'"}
	}
	if i = skipSpace(data, i+1); i < len(data) && data[i] == '}' {
		i++
	} else {
		next, err := p.members(i)
		if err != nil {
			return err
		}
		i = next
	}
	if i < len(data) {
		if i = skipSpace(data, i); i < len(data) {
			return &DecodeError{Offset: i, Msg: "something follows the reading: send several as an array or one a line"}
		}
	}
	return p.finish()
}

// An object is one JSON object being decoded.
type object struct {
	cat      *Catalog
	view     *catalogView
	data     []byte
	r        *Reading
	vehicle  string // as the payload names it
	time     int64
	timeAt   int    // offset of the time's value
	timeHint string // how it was written
	lat, lon float64
	latAt    int
	has      has
	seen     uint64 // signals below 64 that r.Signals has
}

// has tells which reserved fields a payload has.
type has uint8

const (
	hasTime has = 1 << iota
	hasLat
	hasLon
)

// members decodes the fields from i on and returns the index after the closing brace.
func (p *object) members(i int) (int, error) {
	data := p.data
	for {
		next, err := p.member(i)
		if err != nil {
			return 0, err
		}
		if i = next; i < len(data) && data[i] <= ' ' {
			i = skipSpace(data, i)
		}
		if i >= len(data) {
			return 0, &DecodeError{Offset: i, Msg: "the message is cut short: want ',' or '}'"}
		}
		switch data[i] {
		case ',':
			i = skipSpace(data, i+1)
		case '}':
			return i + 1, nil
		default:
			return 0, &DecodeError{Offset: i, Msg: "want ',' or '}' after a field"}
		}
	}
}

// member decodes the field at i and returns the index after it.
func (p *object) member(i int) (int, error) {
	data := p.data
	if i >= len(data) || data[i] != '"' {
		return 0, &DecodeError{Offset: i, Msg: "want a field name in double quotes"}
	}
	var key string
	start := i + 1
	if end := plainString(data, start); end >= 0 {
		key, i = view(data[start:end]), end+1
	} else {
		s, next, err := scanString(data, start)
		if err != nil {
			return 0, err
		}
		key, i = s, next
	}
	if i >= len(data) || data[i] != ':' {
		if i = skipSpace(data, i); i >= len(data) || data[i] != ':' {
			return 0, &DecodeError{Offset: i, Msg: "want ':' after a field name"}
		}
	}
	if i++; i < len(data) && data[i] <= ' ' {
		i = skipSpace(data, i)
	}
	if i >= len(data) {
		return 0, badLiteral(data, i)
	}
	kind, id := fieldOf(key)
	switch c := data[i]; {
	case c-'0' <= 9 || c == '-':
		v, next, err := scanNumber(data, i)
		if err != nil {
			return 0, in(err, key)
		}
		if kind == fieldSignal {
			p.set(id, v)
			return next, nil
		}
		return next, p.number(kind, key, v, i, next)
	case c == '"':
		s, next, err := scanString(data, i+1)
		if err != nil {
			return 0, in(err, key)
		}
		return next, p.text(kind, key, s, i)
	case c == 'n':
		next, err := scanLiteral(data, i, "null")
		return next, in(err, key)
	case c == 't':
		next, err := scanLiteral(data, i, "true")
		if err != nil {
			return 0, in(err, key)
		}
		return next, p.boolean(kind, id, key, 1, i)
	case c == 'f':
		next, err := scanLiteral(data, i, "false")
		if err != nil {
			return 0, in(err, key)
		}
		return next, p.boolean(kind, id, key, 0, i)
	}
	next, err := skipValue(data, i, 1)
	if err != nil {
		return 0, in(err, key)
	}
	return next, p.ignore(kind, key, i)
}

// in names the field in an error of the scanner.
func in(err error, key string) error {
	if e, ok := err.(*DecodeError); ok && e.Field == "" { //nolint:errorlint // the scanner never wraps
		e.Field = clip(key)
	}
	return err
}

// clip copies a field's name for an error that outlives the payload.
func clip(key string) string {
	if len(key) > MaxSignalName {
		return string([]byte(key[:MaxSignalName])) + "…"
	}
	return string([]byte(key))
}

// number takes a number that is no well-known signal; its text is data[i:end].
func (p *object) number(kind field, key string, v float64, i, end int) error {
	switch kind {
	case fieldVehicle:
		text := p.data[i:end]
		for _, c := range text {
			if c-'0' > 9 {
				return &DecodeError{Offset: i, Field: clip(key), Msg: "a vehicle id that is a number must be a non-negative integer: send it as a string"}
			}
		}
		return p.name(view(text), key, i)
	case fieldTime:
		p.time, p.timeAt, p.timeHint = clampTime(math.Floor(v)), i, ", or send seconds as ts_s (a number is read as Unix milliseconds)"
		p.has |= hasTime
	case fieldSeconds:
		p.time, p.timeAt, p.timeHint = clampTime(math.Round(v*1000)), i, ", or send milliseconds as ts (ts_s is read as Unix seconds)"
		p.has |= hasTime
	case fieldLat:
		p.lat, p.latAt = v, i
		p.has |= hasLat
	case fieldLon:
		p.lon, p.latAt = v, i
		p.has |= hasLon
	case fieldStatus:
		p.r.Flags |= FlagFieldsIgnored
	case fieldSignal, fieldOther:
		p.other(key, v)
	}
	return nil
}

// clampTime keeps a time within what int64 holds; what it clamps is refused later.
func clampTime(ms float64) int64 {
	return int64(min(max(ms, -1e18), 1e18))
}

func (p *object) text(kind field, key, s string, i int) error {
	switch kind {
	case fieldVehicle:
		return p.name(s, key, i)
	case fieldTime:
		ms, ok := parseTime(s)
		if !ok {
			return &DecodeError{Offset: i, Field: clip(key), Msg: "not a time: want RFC 3339 with Z or an offset such as 2026-11-21T02:15:03.120Z, or a number of Unix milliseconds"}
		}
		p.time, p.timeAt, p.timeHint = ms, i, ""
		p.has |= hasTime
	case fieldStatus:
		p.r.Status = s
	case fieldSeconds, fieldLat, fieldLon:
		return &DecodeError{Offset: i, Field: clip(key), Msg: "is a string: send a number without quotes"}
	case fieldSignal, fieldOther:
		p.r.Flags |= FlagFieldsIgnored
	}
	return nil
}

func (p *object) boolean(kind field, id SignalID, key string, v float64, i int) error {
	switch kind {
	case fieldSignal:
		p.set(id, v)
		return nil
	case fieldOther:
		p.other(key, v)
		return nil
	default:
		return p.ignore(kind, key, i)
	}
}

// ignore passes over a value of a kind that its field cannot have, unless the field is one that must not be lost.
func (p *object) ignore(kind field, key string, i int) error {
	switch kind {
	case fieldVehicle, fieldTime, fieldSeconds, fieldLat, fieldLon:
		return &DecodeError{Offset: i, Field: clip(key), Msg: "has a value of the wrong kind: want a number or a string as documented"}
	default:
		p.r.Flags |= FlagFieldsIgnored
		return nil
	}
}

// name takes the vehicle's id.
func (p *object) name(id, key string, i int) error {
	if err := CheckVehicle(id); err != nil {
		return &DecodeError{Offset: i, Field: clip(key), Msg: err.Error()}
	}
	if p.vehicle != "" && p.vehicle != id {
		return &DecodeError{Offset: i, Field: clip(key), Msg: "the payload names two vehicles, " + strconv.Quote(p.vehicle) + " and " + strconv.Quote(id) + ": send one"}
	}
	p.vehicle = id
	return nil
}

// other takes a signal that is not well known.
func (p *object) other(key string, v float64) {
	id, ok := p.view.ids[key]
	if !ok {
		if len(p.r.Signals) < MaxReadingSignals {
			id, ok = p.cat.Intern(key)
		}
		if !ok {
			p.r.Flags |= FlagSignalsDropped
			return
		}
		p.view = p.cat.cur.Load()
	}
	p.set(id, v)
}

// set sets a signal. Well-known ones are looked for in a bit set, so that a plain payload never searches.
func (p *object) set(id SignalID, v float64) {
	signals := p.r.Signals
	bit := uint64(1) << (id & 63)
	if id >= 64 || p.seen&bit != 0 {
		for i := range signals {
			if signals[i].ID == id {
				signals[i].Value = v
				return
			}
		}
	}
	if len(signals) >= MaxReadingSignals {
		p.r.Flags |= FlagSignalsDropped
		return
	}
	if id < 64 {
		p.seen |= bit
	}
	p.r.Signals = append(signals, Signal{ID: id, Value: v})
}

// finish checks the reading as a whole.
func (p *object) finish() error {
	r := p.r
	switch {
	case r.Vehicle == "" && p.vehicle == "":
		return ErrNoVehicle
	case r.Vehicle == "":
		r.Vehicle = p.vehicle
	case p.vehicle == "":
		if err := CheckVehicle(r.Vehicle); err != nil {
			return &DecodeError{Field: "vehicle_id", Msg: err.Error()}
		}
	case r.Vehicle != p.vehicle:
		return &DecodeError{Field: "vehicle_id", Msg: "the payload names vehicle " + strconv.Quote(p.vehicle) + " but was sent as " + strconv.Quote(r.Vehicle) + ": send it under its own name"}
	}
	if p.has&hasTime == 0 {
		r.Time = r.Arrival
		r.Flags |= FlagTimeMissing
	} else {
		r.Time = p.time
		if r.Time > r.Arrival+MaxAhead || r.Time < MinEventTime {
			return &DecodeError{Offset: p.timeAt, Field: "ts", Msg: checkTime(r.Time, r.Arrival, p.timeHint)}
		}
	}
	switch p.has & (hasLat | hasLon) {
	case hasLat:
		return &DecodeError{Offset: p.latAt, Field: "lat", Msg: "latitude without longitude: send both or neither"}
	case hasLon:
		return &DecodeError{Offset: p.latAt, Field: "lon", Msg: "longitude without latitude: send both or neither"}
	default: // both or neither
	}
	r.Lat, r.Lon = p.lat, p.lon
	if p.has&hasLat == 0 {
		r.Flags |= FlagNoPosition
	} else {
		r.Flags |= positionFlags(r.Lat, r.Lon)
	}
	r.Flags |= implausible(p.view.defs, r.Signals)
	return nil
}

// positionFlags judges coordinates (DOMAIN 2.1.1). Receivers without a fix like to say 0,0.
func positionFlags(lat, lon float64) Flags {
	if !(math.Abs(lat) <= 90 && math.Abs(lon) <= 180) || (math.Abs(lat) < 1e-4 && math.Abs(lon) < 1e-4) {
		return FlagPositionInvalid
	}
	return 0
}

// implausible judges signals by their definitions.
func implausible(defs []Def, signals []Signal) Flags {
	for i := range signals {
		if !defs[signals[i].ID].Plausible(signals[i].Value) {
			return FlagImplausible
		}
	}
	return 0
}
