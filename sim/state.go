package sim

import (
	"bytes"
	"encoding/gob"
	"fmt"
)

// savedFleet is what Save writes. Fields may be added, never changed (P6). Times are seconds after the save.
type savedFleet struct {
	Seed     uint64
	Random   uint64
	Vehicles []savedVehicle
}

type savedVehicle struct {
	Random                        uint64
	Path                          int // index of the highway; -1: the vehicle's own round
	Engine, Back, Refuel          bool
	Stops                         int
	S, StopAt, Until              float64
	V, Cruise, Mood, MoodEnds     float64
	Odometer, Fuel, Temp, Ambient float64
	Pressure, Cargo, SetPoint     float64
}

// Save returns where every vehicle is and how it does, so that a later fleet can go on from there. Troubles are not saved:
// vehicles get over them, and new ones come.
func (f *Fleet) Save() ([]byte, error) {
	index := make(map[*path]int, len(f.net.paths))
	for i, p := range f.net.paths {
		index[p] = i
	}
	saved := savedFleet{Seed: f.cfg.Seed, Random: uint64(f.rng)}
	for i := range f.vehicles {
		c := &f.vehicles[i]
		at, ok := index[c.path]
		if !ok {
			at = -1
		}
		until := 0.0
		if c.until > 0 {
			until = max(0.001, c.until-c.now) // 0 would mean that it drives
		}
		saved.Vehicles = append(saved.Vehicles, savedVehicle{
			Random: uint64(c.rng), Path: at, Engine: c.engine, Back: c.back, Refuel: c.refuel, Stops: c.stops,
			S: c.s, StopAt: c.stopAt, Until: until, V: c.v, Cruise: c.cruise, Mood: c.mood, MoodEnds: c.moodEnds - c.now,
			Odometer: c.odometer, Fuel: c.fuel, Temp: c.temp, Ambient: c.ambient, Pressure: c.pressure, Cargo: c.cargo, SetPoint: c.setPoint,
		})
	}
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(&saved); err != nil {
		return nil, fmt.Errorf("save fleet: %w", err)
	}
	return b.Bytes(), nil
}

// Restore puts a fleet that has not set off yet where another one of the same seed and size was when it was saved. After an
// error the fleet is as it was.
func (f *Fleet) Restore(state []byte) error {
	var saved savedFleet
	if err := gob.NewDecoder(bytes.NewReader(state)).Decode(&saved); err != nil {
		return fmt.Errorf("restore fleet: %w", err)
	}
	if saved.Seed != f.cfg.Seed || len(saved.Vehicles) != len(f.vehicles) {
		return fmt.Errorf("restore fleet: saved were %d vehicles of seed %d, this fleet has %d of seed %d", len(saved.Vehicles), saved.Seed, len(f.vehicles), f.cfg.Seed)
	}
	for i := range saved.Vehicles {
		if s := &saved.Vehicles[i]; s.Path >= len(f.net.paths) || (s.Path < 0) != f.vehicles[i].path.round {
			return fmt.Errorf("restore fleet: %s is on a road that is no more", f.vehicles[i].id)
		}
	}
	f.rng = random(saved.Random)
	for i := range saved.Vehicles {
		c, s := &f.vehicles[i], &saved.Vehicles[i]
		if s.Path >= 0 {
			c.path = f.net.paths[s.Path]
		}
		c.rng, c.engine, c.back, c.refuel, c.stops = random(s.Random), s.Engine, s.Back, s.Refuel, s.Stops
		c.s, c.stopAt, c.until, c.hint = min(s.S, c.path.length), s.StopAt, s.Until, 0
		c.v, c.cruise, c.mood, c.moodEnds = s.V, s.Cruise, s.Mood, s.MoodEnds
		c.odometer, c.fuel, c.temp, c.ambient = s.Odometer, s.Fuel, s.Temp, s.Ambient
		c.pressure, c.cargo, c.setPoint = s.Pressure, s.Cargo, s.SetPoint
	}
	return nil
}
