// Package sim is a fleet that does not exist: trucks, refrigerated trucks, vans and buses that drive along highways and
// through towns of North America and Europe, burn fuel, warm up, stop, and get into trouble. The same seed is the same
// fleet, reading for reading: it reads no clock. Run sends what it says to a door, at the pace of the real clock.
//
// In trouble are always a few: a coolant leak that ends stranded, a failing reefer, speeding, a fuel pump, a tunnel after
// which the backlog comes with its original times, a dead zone so long that the device counts as offline, and a GPS fix far
// away. All come within the first minute and come back for ever, on other vehicles.
package sim

import (
	"fmt"
	"math"
	"time"

	"github.com/milepost/milepost/telemetry"
)

// Config describes a fleet. Its zero value is 100 vehicles that report each second.
type Config struct {
	Vehicles int           // 100 by default
	Seed     uint64        // fleets of different seeds drive differently
	Start    time.Time     // of the first reading
	Interval time.Duration // between a vehicle's readings; 1 s by default
	Calm     bool          // nobody gets into trouble
}

// A Fleet makes readings. It is for one goroutine.
type Fleet struct {
	cfg      Config
	models   [4]model
	net      *network
	vehicles []vehicle
	lanes    []lane
	rng      random
	start    int64   // Unix ms
	interval float64 // s

	index       int   // of the vehicle that reports next
	tick        int64 // how often it has
	nextTrouble float64
	out         []telemetry.Reading
}

// New builds a fleet. Most of it is on its way already.
func New(cfg Config) *Fleet {
	if cfg.Vehicles <= 0 {
		cfg.Vehicles = 100
	}
	if cfg.Interval <= 0 {
		cfg.Interval = time.Second
	}
	cfg.Interval = max(cfg.Interval, time.Millisecond) // which times are stored in
	f := &Fleet{
		cfg: cfg, models: models(), net: newNetwork(), vehicles: make([]vehicle, cfg.Vehicles),
		start: cfg.Start.UnixMilli(), interval: cfg.Interval.Seconds(), nextTrouble: math.Inf(1),
		rng: random(cfg.Seed*0x9e3779b97f4a7c15 + 1), out: make([]telemetry.Reading, 1),
	}
	towns := map[int][]*path{}
	for i := range f.vehicles {
		f.put(i, towns)
	}
	if !cfg.Calm {
		f.lanes, f.nextTrouble = incidentLanes(cfg.Vehicles), 0
	}
	return f
}

// put sets a vehicle on its way.
func (f *Fleet) put(i int, towns map[int][]*path) {
	kinds := [...]kind{truck, reefer, van, truck, bus, van, truck, reefer, truck, van}
	c := &f.vehicles[i]
	k := kinds[i%len(kinds)]
	m := &f.models[k]
	*c = vehicle{kind: k, lane: -1, engine: true, id: fmt.Sprintf("%s-%04d", m.name, i+1)}
	c.rng = random(f.rng.next())
	if m.highway {
		c.path = f.net.paths[c.rng.below(len(f.net.paths))]
		c.s = c.rng.between(0, c.path.length*0.9)
		c.back = c.rng.below(2) == 0
	} else {
		// A town has a few rounds, which its vehicles share.
		at := c.rng.below(len(f.net.places))
		if round := c.rng.below(4); round < len(towns[at]) {
			c.path = towns[at][round]
		} else {
			c.path = f.net.town(at, &c.rng)
			towns[at] = append(towns[at], c.path)
		}
		c.s = c.rng.between(0, c.path.length)
	}
	c.cruise = c.rng.between(m.slow, m.fast)
	c.odometer = math.Round(c.rng.between(2e7, 6e8))
	c.fuel = c.rng.between(30, 96)
	c.ambient = 28 - math.Abs(f.net.places[c.path.from].lat)/3 + c.rng.between(-4, 4)
	c.setPoint = c.rng.between(3.2, 4.8)
	c.cargo = c.setPoint + c.rng.between(-0.4, 0.4)
	c.temp, c.pressure, c.v = c.rng.between(86, 92), 44, c.cruise
	f.plan(c, m)
	if c.rng.below(8) == 0 { // at rest, some of them since last night
		f.stop(c, m)
		c.temp = max(c.ambient, c.temp-c.rng.between(0, 80))
		if c.engine = false; c.until < 60 {
			c.until += c.rng.between(60, 600)
		}
	}
}

// Next returns the next moment at which a vehicle reports, and what it sends then: one reading, none while it is out of
// reach, or the backlog and the reading when it is in reach again, oldest first. Moments never go back, and a vehicle's
// readings are Interval apart. The readings are valid until the next call; their Arrival is the moment.
func (f *Fleet) Next() (time.Time, []telemetry.Reading) {
	n := len(f.vehicles)
	c := &f.vehicles[f.index]
	// Phases are spread evenly, in whole milliseconds, which is what times are stored in.
	interval := f.cfg.Interval.Milliseconds()
	elapsed := f.tick*interval + int64(f.index)*interval/int64(n)
	if f.index++; f.index == n {
		f.index, f.tick = 0, f.tick+1
	}
	ms, now := f.start+elapsed, float64(elapsed)/1000
	if now >= f.nextTrouble {
		f.trouble(now)
	}
	f.advance(c, now)
	if c.lane >= 0 {
		f.suffer(c)
	}
	r := &f.out[0]
	f.read(c, r)
	r.Time, r.Arrival = ms, ms
	at := time.UnixMilli(ms)
	switch {
	case c.silent():
		c.hold(r)
		return at, nil
	case len(c.held) > 0:
		c.hold(r)
		backlog := c.held
		c.held = nil
		for i := range backlog {
			backlog[i].Arrival = ms
		}
		return at, backlog
	}
	return at, f.out[:1]
}

// Len returns how many vehicles there are.
func (f *Fleet) Len() int { return len(f.vehicles) }

// Vehicle returns a vehicle's id, for 0 ≤ i < Len.
func (f *Fleet) Vehicle(i int) string { return f.vehicles[i].id }
