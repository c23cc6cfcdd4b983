package format

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// VSS reads JSON whose names are those of the COVESA Vehicle Signal Specification, flat ("Vehicle.Speed": 63.2) or nested, as
// bare values or as objects with value and timestamp.
//
// Units are the specification's (version 6): Vehicle.Speed km/h, TraveledDistance m, temperatures °C, FuelSystem.RelativeLevel %.
// Signals without a counterpart in the catalog keep their path in snake case. For what the specification lacks, cargo
// temperatures, Vehicle.Cargo.Zone<n>.Temperature is taken; zone 1 is cargo_temp.
// The vehicle is the sender's if known, else Vehicle.VehicleIdentification.VIN.
type VSS struct{}

const maxVSSDepth = 16

// Convert implements Converter.
func (VSS) Convert(in *Input, out *Output) error {
	var root map[string]any
	if err := json.Unmarshal(in.Data, &root); err != nil {
		return fmt.Errorf("read VSS JSON: %w", err)
	}
	flat := map[string]any{}
	var newest string
	if err := flatten(flat, &newest, "", root, 0); err != nil {
		return err
	}
	found := false
	vehicle := in.Device
	stamp := newest
	for path, v := range flat {
		found = found || strings.HasPrefix(path, "Vehicle.")
		if s, ok := v.(string); ok {
			switch path {
			case "Vehicle.VehicleIdentification.VIN":
				vehicle = vehicleOf(vehicle, s)
			case "Vehicle.CurrentLocation.Timestamp":
				stamp = s
			}
		}
	}
	if !found {
		return errors.New("no name begins with Vehicle.: this is not VSS")
	}
	for _, key := range []string{"vehicle_id", "truck_id", "vin"} {
		if s, ok := root[key].(string); ok {
			vehicle = vehicleOf(vehicle, s)
		}
	}
	for _, key := range []string{"ts", "timestamp", "time"} {
		if s, ok := root[key].(string); ok && stamp == "" {
			stamp = s
		}
	}
	at, err := osmAndTime(stamp)
	if err != nil {
		return err
	}
	if vehicle == "" {
		return errors.New("no vehicle: send Vehicle.VehicleIdentification.VIN, or publish under a topic that names the vehicle")
	}
	out.begin(vehicle, at)
	lat, okLat := flat["Vehicle.CurrentLocation.Latitude"].(float64)
	lon, okLon := flat["Vehicle.CurrentLocation.Longitude"].(float64)
	if okLat && okLon {
		out.place(lat, lon)
	}
	for _, path := range slices.Sorted(maps.Keys(flat)) {
		name, ok := vssSignal(path)
		if !ok {
			continue
		}
		switch v := flat[path].(type) {
		case float64:
			out.named(name, v)
		case bool:
			out.truth(name, v)
		}
	}
	out.emit(1, in.Data)
	return nil
}

// flatten writes a tree as paths. newest is the latest timestamp of values that have their own.
func flatten(flat map[string]any, newest *string, path string, v map[string]any, depth int) error {
	if depth > maxVSSDepth {
		return fmt.Errorf("the tree is deeper than %d at %s", maxVSSDepth, clip(path))
	}
	for k, x := range v {
		at := k
		if path != "" {
			at = path + "." + k
		}
		m, ok := x.(map[string]any)
		if !ok {
			flat[at] = x
			continue
		}
		if value, leaf := m["value"]; leaf {
			flat[at] = value
			if s, ok := m["timestamp"].(string); ok && later(s, *newest) {
				*newest = s
			}
			continue
		}
		if err := flatten(flat, newest, at, m, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func later(a, b string) bool {
	x, err1 := time.Parse(time.RFC3339Nano, a)
	y, err2 := time.Parse(time.RFC3339Nano, b)
	return err1 == nil && (err2 != nil || x.After(y))
}

// vssSignal is the signal of a path; false: it is none (the place, text).
func vssSignal(path string) (string, bool) {
	rest, ok := strings.CutPrefix(path, "Vehicle.")
	if !ok {
		return "", false
	}
	switch rest {
	case "Speed":
		return "speed", true
	case "CurrentLocation.Heading":
		return "heading", true
	case "CurrentLocation.HorizontalAccuracy":
		return "accuracy", true
	case "CurrentLocation.Altitude":
		return "altitude", true
	case "CurrentLocation.Latitude", "CurrentLocation.Longitude", "CurrentLocation.Timestamp", "VehicleIdentification.VIN":
		return "", false
	case "TraveledDistance":
		return "odometer", true
	case "IsMoving":
		return "motion", true
	case "Exterior.AirTemperature":
		return "ambient_temp", true
	case "Powertrain.CombustionEngine.Speed":
		return "rpm", true
	case "Powertrain.CombustionEngine.EngineCoolant.Temperature", "Powertrain.CombustionEngine.ECT":
		return "engine_temp", true
	case "Powertrain.CombustionEngine.EngineOil.Temperature", "Powertrain.CombustionEngine.EOT":
		return "oil_temp", true
	case "Powertrain.CombustionEngine.EngineHours":
		return "engine_hours", true
	case "Powertrain.CombustionEngine.IdleHours":
		return "idle_hours", true
	case "Powertrain.CombustionEngine.IsRunning":
		return "ignition", true
	case "Powertrain.FuelSystem.RelativeLevel", "Powertrain.FuelSystem.Level":
		return "fuel", true
	case "Powertrain.FuelSystem.AbsoluteLevel":
		return "fuel_volume", true
	case "Powertrain.FuelSystem.TankCapacity":
		return "tank_capacity", true
	case "LowVoltageBattery.CurrentVoltage":
		return "battery", true
	case "Cargo.Zone1.Temperature":
		return "cargo_temp", true
	}
	if zone, ok := strings.CutPrefix(rest, "Cargo.Zone"); ok {
		if n, ok := strings.CutSuffix(zone, ".Temperature"); ok {
			return "cargo_temp_" + snake(n), true
		}
	}
	return snake(rest), true
}
