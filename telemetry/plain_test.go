package telemetry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// plainJSON is the decoder as one would write it without caring for speed: the judge of the fast one.
func plainJSON(cat *Catalog, data []byte, r *Reading) error {
	if !utf8.Valid(data) {
		return errors.New("invalid UTF-8")
	}
	if loneSurrogate(data) {
		return errors.New("lone surrogate")
	}
	if !json.Valid(data) {
		return errors.New("invalid JSON")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return errors.New("not an object")
	}
	preset := r.Vehicle
	*r = Reading{Vehicle: preset, Arrival: r.Arrival}
	var vehicle string
	var haveTime, haveLat, haveLon bool
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return err
		}
		key, ok := tok.(string)
		if !ok {
			return fmt.Errorf("key %v", tok)
		}
		value, err := plainValue(dec, 1)
		if err != nil {
			return err
		}
		if value == nil {
			continue
		}
		num, isNum := value.(json.Number)
		v := 0.0
		if isNum {
			if v, err = num.Float64(); err != nil {
				return err
			}
		}
		text, isText := value.(string)
		switch key {
		case "vehicle_id", "truck_id":
			id := text
			if isNum && regexp.MustCompile(`^[0-9]+$`).MatchString(num.String()) {
				id = num.String()
			} else if !isText {
				return errors.New("bad vehicle id")
			}
			if err := plainVehicle(id); err != nil {
				return err
			}
			if vehicle != "" && vehicle != id {
				return errors.New("two vehicles")
			}
			vehicle = id
		case "ts", "time", "timestamp":
			switch {
			case isNum:
				r.Time = plainMilliseconds(math.Floor(v))
			case isText:
				if r.Time, err = plainTime(text); err != nil {
					return err
				}
			default:
				return errors.New("bad time")
			}
			haveTime = true
		case "ts_s":
			if !isNum {
				return errors.New("bad time")
			}
			r.Time, haveTime = plainMilliseconds(math.Round(v*1000)), true
		case "lat", "latitude":
			if !isNum {
				return errors.New("bad lat")
			}
			r.Lat, haveLat = v, true
		case "lon", "long", "lng", "longitude":
			if !isNum {
				return errors.New("bad lon")
			}
			r.Lon, haveLon = v, true
		case "status":
			if isText {
				r.Status = text
			} else {
				r.Flags |= FlagFieldsIgnored
			}
		default:
			if b, isBool := value.(bool); isBool {
				isNum = true
				if b {
					v = 1
				}
			}
			if !isNum {
				r.Flags |= FlagFieldsIgnored
				continue
			}
			plainSignal(cat, r, key, v)
		}
	}
	switch {
	case vehicle == "" && preset == "":
		return errors.New("no vehicle")
	case vehicle == "":
		if err := plainVehicle(preset); err != nil {
			return err
		}
	case preset == "":
		r.Vehicle = vehicle
	case vehicle != preset:
		return errors.New("another vehicle")
	}
	if !haveTime {
		r.Time = r.Arrival
		r.Flags |= FlagTimeMissing
	} else if r.Time > r.Arrival+300_000 || r.Time < time.Date(2010, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli() {
		return errors.New("impossible time")
	}
	if haveLat != haveLon {
		return errors.New("half a position")
	}
	if !haveLat {
		r.Flags |= FlagNoPosition
	} else if r.Lat < -90 || r.Lat > 90 || r.Lon < -180 || r.Lon > 180 || (math.Abs(r.Lat) < 1e-4 && math.Abs(r.Lon) < 1e-4) {
		r.Flags |= FlagPositionInvalid
	}
	for _, s := range r.Signals {
		if !cat.Def(s.ID).Plausible(s.Value) {
			r.Flags |= FlagImplausible
		}
	}
	return nil
}

func plainSignal(cat *Catalog, r *Reading, name string, v float64) {
	id, known := cat.Lookup([]byte(name))
	if known {
		for i := range r.Signals {
			if r.Signals[i].ID == id {
				r.Signals[i].Value = v
				return
			}
		}
	}
	if len(r.Signals) == 64 {
		r.Flags |= FlagSignalsDropped
		return
	}
	if !known {
		if id, known = cat.Intern(name); !known {
			r.Flags |= FlagSignalsDropped
			return
		}
	}
	r.Signals = append(r.Signals, Signal{id, v})
}

func plainMilliseconds(v float64) int64 {
	return int64(math.Max(-1e18, math.Min(1e18, v)))
}

// plainValue reads one value; objects and arrays come back as an empty struct once their inside has been checked.
func plainValue(dec *json.Decoder, depth int) (any, error) {
	tok, err := dec.Token()
	if err != nil {
		return nil, err
	}
	if n, ok := tok.(json.Number); ok {
		if _, err := n.Float64(); err != nil {
			return nil, err
		}
	}
	open, ok := tok.(json.Delim)
	if !ok {
		return tok, nil
	}
	if depth++; depth > 32 {
		return nil, errors.New("too deep")
	}
	for dec.More() {
		if open == '{' {
			if _, err := dec.Token(); err != nil {
				return nil, err
			}
		}
		if _, err := plainValue(dec, depth); err != nil {
			return nil, err
		}
	}
	_, err = dec.Token()
	return struct{}{}, err
}

func plainVehicle(id string) error {
	if len(id) < 1 || len(id) > 128 || !utf8.ValidString(id) || strings.ContainsAny(id, "/+#") {
		return errors.New("bad vehicle id")
	}
	if strings.ContainsFunc(id, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return errors.New("unprintable vehicle id")
	}
	return nil
}

// plainTime is time.Parse, which is laxer than RFC 3339 here and stricter there.
func plainTime(s string) (int64, error) {
	if !regexp.MustCompile(`^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)$`).MatchString(s) {
		return 0, errors.New("not RFC 3339")
	}
	t, err := time.Parse(time.RFC3339Nano, s[:10]+"T"+strings.ToUpper(s[11:]))
	return t.UnixMilli(), err
}

// loneSurrogate tells whether text that is JSON otherwise escapes half a surrogate pair, which encoding/json lets pass.
func loneSurrogate(data []byte) bool {
	unit := func(i int) int {
		if i+6 > len(data) || data[i] != '\\' || data[i+1] != 'u' {
			return -1
		}
		n, err := strconv.ParseUint(string(data[i+2:i+6]), 16, 16)
		if err != nil {
			return -1
		}
		return int(n)
	}
	for i := 0; i < len(data); i++ {
		if data[i] != '\\' {
			continue
		}
		u := unit(i)
		switch {
		case u >= 0xdc00 && u <= 0xdfff:
			return true
		case u >= 0xd800 && u <= 0xdbff:
			if low := unit(i + 6); low < 0xdc00 || low > 0xdfff {
				return true
			}
			i += 11
		default:
			i++ // whatever is escaped is no backslash of its own
		}
	}
	return false
}
