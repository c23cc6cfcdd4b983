package sim

import (
	"math"

	"github.com/milepost/milepost/telemetry"
)

// kind is what a vehicle is.
type kind uint8

const (
	truck kind = iota
	reefer
	van
	bus
)

// A model is what vehicles of a kind have in common. Speeds are m/s, times s, fuel % of the tank.
type model struct {
	name         string
	highway      bool
	slow, fast   float64 // cruising speeds, of which each vehicle has one
	accelerate   float64 // m/s²
	brake        float64
	burn         float64 // fuel per metre
	idle         float64 // fuel per second of a standing engine
	volts        float64 // with the engine off
	charging     float64 // volts more with the engine on
	rpm, rpmFast float64 // standing, and at the fastest
	near, far    float64 // metres between stops in town
	short, long  float64 // seconds of a stop in town
}

const kmh = 1 / 3.6

// models is indexed by kind. Nobody cruises so fast that 80 km/h is reached by chance.
func models() [4]model {
	return [4]model{
		truck:  {name: "truck", highway: true, slow: 70 * kmh, fast: 75 * kmh, accelerate: 0.5, brake: 0.9, burn: 5e-5, idle: 1.2e-4, volts: 25.1, charging: 2.7, rpm: 600, rpmFast: 1350},
		reefer: {name: "reefer", highway: true, slow: 70 * kmh, fast: 75 * kmh, accelerate: 0.5, brake: 0.9, burn: 6e-5, idle: 2.2e-4, volts: 25.1, charging: 2.7, rpm: 620, rpmFast: 1350},
		van:    {name: "van", slow: 34 * kmh, fast: 46 * kmh, accelerate: 1.4, brake: 1.8, burn: 1.3e-4, idle: 2.8e-4, volts: 12.5, charging: 1.5, rpm: 780, rpmFast: 2300, near: 500, far: 1900, short: 25, long: 110},
		bus:    {name: "bus", slow: 30 * kmh, fast: 40 * kmh, accelerate: 0.9, brake: 1.1, burn: 1.4e-4, idle: 2.4e-4, volts: 25.0, charging: 2.6, rpm: 560, rpmFast: 1600, near: 350, far: 800, short: 12, long: 35},
	}
}

// A vehicle is one vehicle's state. Times are seconds since the fleet's start.
type vehicle struct {
	id     string
	rng    random
	kind   kind
	engine bool // runs
	back   bool // drives the path from its end to its beginning
	hint   int32
	lane   int32 // the incident lane that has it; -1: none

	path   *path
	s      float64 // metres driven on the path
	stopAt float64 // where on the path it stops next; beyond its end: nowhere
	until  float64 // it stands until then; 0: it drives
	refuel bool
	stops  int

	now      float64 // what the state is of
	v        float64 // m/s
	cruise   float64
	mood     float64 // what the driver adds to it now
	moodEnds float64
	odometer float64 // m
	fuel     float64
	temp     float64 // of the engine
	ambient  float64
	pressure float64 // of the fuel
	cargo    float64
	setPoint float64

	incident incident
	held     []telemetry.Reading // in a tunnel
}

// advance moves a vehicle to a moment, in steps of a second or less.
func (f *Fleet) advance(c *vehicle, now float64) {
	for c.now < now {
		dt := min(1, now-c.now)
		f.step(c, dt)
		c.now += dt
	}
}

func (f *Fleet) step(c *vehicle, dt float64) {
	m := &f.models[c.kind]
	if c.until > 0 {
		f.stand(c, m, dt)
	} else {
		f.drive(c, m, dt)
	}
	f.heat(c, dt)
	if c.kind == reefer && c.incident.kind != failingReefer {
		c.cargo += (c.setPoint - c.cargo) * min(1, dt/400)
	}
	want := 0.0
	if c.engine {
		want = 44 + 3*c.v/22
		if c.incident.kind == fuelPump {
			want = c.incident.value
		}
	}
	c.pressure += (want - c.pressure) * min(1, dt/3)
}

func (f *Fleet) stand(c *vehicle, m *model, dt float64) {
	c.v = 0
	if c.engine {
		c.fuel = max(2, c.fuel-m.idle*dt)
	}
	if c.refuel {
		if c.fuel = c.fuel + 0.22*dt; c.fuel > 96 {
			c.refuel = false
		}
	}
	if c.now < c.until || c.refuel {
		return
	}
	c.until, c.engine = 0, true
	if c.s >= c.path.length-1 {
		f.turn(c)
	}
	f.plan(c, m)
}

// drive follows the path, towards the speed that driver, place and incident ask for.
func (f *Fleet) drive(c *vehicle, m *model, dt float64) {
	if c.now >= c.moodEnds {
		c.mood, c.moodEnds = c.rng.between(-4, 1)*kmh, c.now+c.rng.between(10, 50)
		if m.highway && c.rng.below(40) == 0 { // roadworks
			c.mood, c.moodEnds = c.rng.between(-45, -25)*kmh, c.now+c.rng.between(40, 180)
		}
	}
	want := c.cruise + c.mood
	if c.incident.kind == speeding {
		want = c.incident.value
	}
	left := c.stopAt - c.s
	if left < 400 {
		want = min(want, max(1, math.Sqrt(1.2*m.brake*max(0, left-c.v*dt)))) // gently, and the last metres at a walk
	} else if end := c.path.length - c.s; end < 400 && !c.path.round { // through a junction
		want = min(want, 45*kmh)
	}
	if c.v < want {
		c.v = min(want, c.v+m.accelerate*dt)
	} else {
		c.v = max(want, c.v-2*m.brake*dt)
	}
	moved := c.v * dt
	c.s += moved
	c.odometer += moved
	c.fuel = max(2, c.fuel-m.burn*moved-m.idle*dt*0.3)
	switch {
	case left <= 1.5 || c.s >= c.stopAt:
		f.stop(c, m)
	case c.s >= c.path.length:
		f.turn(c)
		f.plan(c, m)
	}
}

// stop begins a stop: for a parcel, for passengers, for the night, for fuel.
func (f *Fleet) stop(c *vehicle, m *model) {
	c.s, c.v = min(c.s, c.path.length), 0
	c.stops++
	pause := c.rng.between(m.short, m.long)
	if m.highway || c.stops%14 == 0 {
		pause = c.rng.between(240, 1500)
	}
	c.refuel = c.fuel < 25
	c.engine = pause < 60 && !c.refuel
	c.until = c.now + pause
}

// turn takes the next highway, which is any but the one it came on unless that is the only one; or the next round.
func (f *Fleet) turn(c *vehicle) {
	if c.path.round {
		c.s = max(0, c.s-c.path.length)
		return
	}
	at := c.path.to
	if c.back {
		at = c.path.from
	}
	over := max(0, c.s-c.path.length)
	ways := f.net.ends[at]
	next := f.net.paths[ways[c.rng.below(len(ways))]]
	for next == c.path && len(ways) > 1 {
		next = f.net.paths[ways[c.rng.below(len(ways))]]
	}
	c.path, c.back, c.s = next, next.from != at, over
	c.hint = 0
	if c.back {
		c.hint = int32(len(next.points) - 2) //nolint:gosec // a path has some thousand points
	}
}

// plan says where it stops next.
func (f *Fleet) plan(c *vehicle, m *model) {
	c.stopAt = math.Inf(1)
	if !m.highway {
		c.stopAt = c.s + c.rng.between(m.near, m.far)
		if c.stopAt > c.path.length {
			c.stopAt = math.Inf(1) // the round begins anew first
		}
		return
	}
	left := c.path.length - c.s
	if c.incident.kind != none {
		return // in trouble nobody thinks of a rest, which would also cool the engine
	}
	if left > 3000 && (c.fuel < 25 || c.rng.below(3) == 0) {
		c.stopAt = c.s + c.rng.between(2000, left)
	}
}

// heat moves the engine's temperature towards what running, load and leaks make of it.
func (f *Fleet) heat(c *vehicle, dt float64) {
	switch {
	case !c.engine:
		pace := 2400.0
		if c.incident.kind == coolantLeak {
			pace = 700 // the coolant is out and the hood is open
		}
		c.temp += (c.ambient - c.temp) * dt / pace
	case c.incident.kind == coolantLeak:
		c.temp += c.incident.value / 60 * dt
	default:
		c.temp += (86 + 5*c.v/22 + c.ambient/10 - c.temp) * dt / 220
	}
}

// read writes what the vehicle says of itself.
func (f *Fleet) read(c *vehicle, r *telemetry.Reading) {
	s := c.s
	if c.back {
		s = c.path.length - s
	}
	lat, lon, heading := c.path.place(s, &c.hint)
	if c.back {
		heading = wrap(heading - 180)
	}
	noise := c.rng.next() // one draw serves all the small noises
	lat += shake(noise) * 2.5e-5
	lon += shake(noise>>8) * 2.5e-5
	if c.incident.kind == gpsJump {
		lat, lon = lat+c.incident.value, lon-c.incident.value
	}
	speed := 0.0
	if c.v > 0 {
		speed = max(0, c.v*3.6+shake(noise>>16)*0.6)
		if c.incident.kind != speeding {
			speed = min(speed, 78)
		}
	}
	r.Vehicle = c.id
	r.Lat, r.Lon, r.Flags = round(lat, 1e6), round(lon, 1e6), 0
	m := &f.models[c.kind]
	switch {
	case c.v > 0.5:
		r.Status = "moving"
	case c.engine:
		r.Status = "idle"
	default:
		r.Status = "stopped"
	}
	rpm, volts := 0.0, m.volts
	if c.engine {
		rpm = m.rpm + (m.rpmFast-m.rpm)*c.v/(78*kmh) + shake(noise>>24)*15
		volts += m.charging
	}
	sig := append(r.Signals[:0],
		telemetry.Signal{ID: telemetry.Speed, Value: round(speed, 10)},
		telemetry.Signal{ID: telemetry.Heading, Value: math.Mod(math.Round(heading), 360)},
		telemetry.Signal{ID: telemetry.Fuel, Value: round(min(100, max(0, c.fuel+shake(noise>>32)*0.15)), 10)},
		telemetry.Signal{ID: telemetry.EngineTemp, Value: round(c.temp+shake(noise>>40)*0.2, 10)},
	)
	if c.engine {
		sig = append(sig, telemetry.Signal{ID: telemetry.FuelPressure, Value: round(max(0, c.pressure+shake(noise>>48)*0.8), 10)})
	}
	if c.kind == reefer {
		sig = append(sig, telemetry.Signal{ID: telemetry.CargoTemp, Value: round(c.cargo+shake(noise>>56)*0.1, 10)})
	}
	r.Signals = append(sig,
		telemetry.Signal{ID: telemetry.RPM, Value: math.Round(max(0, rpm))},
		telemetry.Signal{ID: telemetry.Odometer, Value: math.Round(c.odometer)},
		telemetry.Signal{ID: telemetry.Battery, Value: round(volts+shake(noise>>20)*0.05, 100)},
	)
}

// shake makes a number in [-1, 1) of the low byte of some noise.
func shake(noise uint64) float64 { return float64(int8(noise)) / 128 } //nolint:gosec // the low byte is wanted

func round(v, scale float64) float64 { return math.Round(v*scale) / scale }
