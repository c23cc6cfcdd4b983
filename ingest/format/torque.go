package format

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/milepost/milepost/telemetry"
)

// Torque reads the requests of Torque Pro, an Android app beside an OBD-II dongle: GET with k<PID> parameters.
//
// Units: the app sends metric values unless its preferences say otherwise, and then tells so in messages of their own
// (defaultUnit<PID>=°F), which are remembered by session: the last maxTorque of them. The answer must be "OK!".
type Torque struct {
	mu    sync.Mutex // guards the rest
	units map[string]map[string]string
	order []string
}

const maxTorque = 10_000

// torquePIDs are the parameters that mean a signal; ff… are the phone's own sensors. Sources: SAE J1979 mode 01 and the
// app's published list of its extended sensors.
func torquePID(pid string) (name, unit string) {
	switch strings.TrimLeft(pid, "0") {
	case "4":
		return "engine_load", "%"
	case "5":
		return "engine_temp", "°C"
	case "b":
		return "intake_pressure", "kPa"
	case "c":
		return "rpm", "rpm"
	case "d":
		return "obd_speed", "km/h"
	case "f":
		return "intake_temp", "°C"
	case "10":
		return "air_flow", ""
	case "11":
		return "throttle", "%"
	case "1f":
		return "run_time", ""
	case "21":
		return "distance_with_fault", "km"
	case "2f":
		return "fuel", "%"
	case "31":
		return "distance_since_clear", "km"
	case "33":
		return "air_pressure", "kPa"
	case "42":
		return "battery", "V"
	case "46":
		return "ambient_temp", "°C"
	case "5c":
		return "oil_temp", "°C"
	case "ff1001":
		return "speed", "km/h"
	case "ff1007":
		return "heading", "deg"
	case "ff1010":
		return "altitude", "m"
	case "ff1239":
		return "accuracy", "m"
	case "ff1238":
		return "device_voltage", "V"
	}
	return "", ""
}

// Convert implements Converter.
func (t *Torque) Convert(in *Input, out *Output) error {
	out.Reply, out.Type = []byte("OK!"), "text/plain; charset=utf-8"
	q := in.Query
	vehicle := vehicleOf(in.Device, q.Get("vehicle"), q.Get("id"), q.Get("eml"))
	if vehicle == "" {
		return errors.New("no id: this is not what Torque Pro sends")
	}
	session := vehicle + "\x00" + q.Get("session")
	units := t.learn(session, q)
	values := 0
	at, err := osmAndTime(q.Get("time"))
	if err != nil {
		return err
	}
	out.begin(vehicle, at)
	var lat, lon float64
	var placed int
	for _, key := range slices.Sorted(maps.Keys(q)) {
		pid, ok := strings.CutPrefix(key, "k")
		if !ok || pid == "ey" {
			continue
		}
		v, err := strconv.ParseFloat(q.Get(key), 64)
		if err != nil || !finite(v) {
			continue // the app writes names and "-" for sensors that are silent
		}
		values++
		switch pid {
		case "ff1005":
			lon = v
			placed++
			continue
		case "ff1006":
			lat = v
			placed++
			continue
		}
		name, unit := torquePID(pid)
		if name == "" {
			out.named("pid_"+pid, v)
			continue
		}
		if unit != "" && units[pid] != "" {
			conv, err := telemetry.ParseUnit(torqueUnit(units[pid]), &telemetry.Def{Name: name, Unit: unit})
			if err != nil {
				continue // a unit that we do not know: not this value, rather than a wrong one
			}
			v = conv.Convert(v)
		}
		out.named(name, v)
	}
	if values == 0 { // a message of names or units
		out.Ignored++
		return nil
	}
	if placed == 2 {
		out.place(lat, lon)
	}
	id, _ := out.catalog.Lookup([]byte("obd_speed"))
	if _, gps := out.r.Signal(telemetry.Speed); !gps {
		if v, ok := out.r.Signal(id); ok {
			out.set(telemetry.Speed, v)
		}
	}
	out.emit(1, in.Data)
	return nil
}

func torqueUnit(u string) string {
	switch strings.ToLower(strings.TrimSpace(u)) {
	case "km":
		return "km"
	case "°c", "c", "℃":
		return "c"
	case "°f", "f", "℉":
		return "f"
	case "km/h", "kph":
		return "kmh"
	}
	return strings.TrimSpace(u)
}

// learn takes the units that a message tells and returns those of the session.
func (t *Torque) learn(session string, q map[string][]string) map[string]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.units[session]
	var told map[string]string
	for key, values := range q {
		pid, ok := strings.CutPrefix(key, "defaultUnit")
		if !ok || len(values) == 0 {
			continue
		}
		if told == nil {
			told = maps.Clone(known) // the old one may be in use
			if told == nil {
				told = map[string]string{}
			}
		}
		if len(told) < 256 {
			told[pid] = clip(values[0])
		}
	}
	if told == nil {
		return known
	}
	if t.units == nil {
		t.units = map[string]map[string]string{}
	}
	if known == nil {
		if len(t.order) == maxTorque {
			delete(t.units, t.order[0])
			t.order = append(t.order[:0], t.order[1:]...)
		}
		t.order = append(t.order, session)
	}
	t.units[session] = told
	return told
}
