package sim

import (
	"github.com/milepost/milepost/telemetry"
)

// incidentKind is a kind of trouble.
type incidentKind uint8

const (
	none          incidentKind = iota
	coolantLeak                // the engine grows hotter until the vehicle is stranded
	failingReefer              // the cargo grows warmer until somebody mends the cooling
	speeding                   // on a highway, for a minute or two
	tunnel                     // silence, then the backlog
	deadZone                   // silence for so long that the device counts as offline, then the backlog
	gpsJump                    // one or two fixes far away
	fuelPump                   // the fuel pressure drops
)

// An incident is what happens to a vehicle now.
type incident struct {
	kind  incidentKind
	value float64 // its measure: °C a minute, m/s, degrees, kPa
	ends  float64 // at the latest, seconds since the start
	fixes int     // of a GPS jump, still to come
}

// A lane brings incidents of one kind, one after the other, for ever: when one vehicle is over it, the next is chosen after a
// gap. A fleet has more lanes the larger it is.
type lane struct {
	kind   incidentKind
	starts float64 // the next one; infinite while one is going on
	count  int
}

// incidentLanes says what there is for each share of the fleet, and when the first of each begins: all within the first
// minute, so that a demonstration shows something, and not all at once.
func incidentLanes(vehicles int) []lane {
	var lanes []lane
	for i := range min(1+vehicles/400, 25) {
		later := float64(i) * 13
		lanes = append(lanes,
			lane{kind: failingReefer, starts: 3 + later},
			lane{kind: coolantLeak, starts: 5 + later},
			lane{kind: speeding, starts: 7 + later},
			lane{kind: tunnel, starts: 15 + later},
			lane{kind: gpsJump, starts: 20 + later},
			lane{kind: fuelPump, starts: 25 + later},
			lane{kind: deadZone, starts: 30 + later},
			lane{kind: coolantLeak, starts: 40 + later, count: 1}, // the slow one
		)
	}
	return lanes
}

// trouble starts the incidents that are due at now.
func (f *Fleet) trouble(now float64) {
	next := now + 3600
	for i := range f.lanes {
		l := &f.lanes[i]
		if l.starts <= now {
			c := f.victim(l.kind)
			if c == nil {
				l.starts = now + 5 // all are at rest or in trouble: later
			} else {
				f.strike(c, l, int32(i), now) //nolint:gosec // at most 200 lanes
			}
		}
		next = min(next, l.starts)
	}
	f.nextTrouble = next
}

// victim picks a vehicle to which it can happen now.
func (f *Fleet) victim(k incidentKind) *vehicle {
	for range 64 {
		c := &f.vehicles[f.rng.below(len(f.vehicles))]
		m := &f.models[c.kind]
		if c.lane >= 0 || c.until > 0 || c.v < 5 {
			continue
		}
		switch k {
		case failingReefer:
			if c.kind != reefer {
				continue
			}
		case coolantLeak:
			if !m.highway || c.temp < 80 {
				continue
			}
		case fuelPump: // which counts on the move only
			if !m.highway || c.v < 15 || min(c.path.length, c.stopAt)-c.s < 2000 {
				continue
			}
		case speeding: // for as long as it lasts the road has to
			if !m.highway || c.v < 18 || min(c.path.length, c.stopAt)-c.s < 6000 {
				continue
			}
		default:
		}
		return c
	}
	return nil
}

// strike begins an incident.
func (f *Fleet) strike(c *vehicle, l *lane, index int32, now float64) {
	first := l.count == 0
	l.count++
	l.starts = now + 1e9 // until it is over
	c.lane = index
	c.incident = incident{kind: l.kind}
	if f.models[c.kind].highway {
		f.plan(c, &f.models[c.kind])
	}
	in := &c.incident
	switch l.kind {
	case coolantLeak:
		// The first of a lane is found late, so that it is seen soon. The second lane of each pair leaks slowly, from a
		// temperature that says nothing yet: the one to detect early.
		switch {
		case first:
			in.value, c.temp = 2, 104.5
		case index%8 == 7:
			in.value = f.rng.between(0.3, 0.8)
		default:
			in.value, c.temp = f.rng.between(0.8, 2), max(c.temp, f.rng.between(94, 100))
		}
		in.ends = now + 3*3600
	case failingReefer:
		in.value, in.ends = f.rng.between(0.5, 1.5), now+f.rng.between(500, 1100)
		if first {
			in.value, c.cargo = 1.5, 8.4
		}
	case speeding:
		in.value, in.ends = f.rng.between(85, 94)*kmh, now+f.rng.between(75, 160)
	case tunnel:
		in.ends = now + f.rng.between(25, 75)
	case deadZone:
		in.ends = now + f.rng.between(660, 840)
	case gpsJump:
		in.value, in.fixes, in.ends = f.rng.between(0.15, 0.6), 1+f.rng.below(2), now+600
		if f.rng.below(2) == 0 {
			in.value = -in.value
		}
	case fuelPump:
		in.value, in.ends = f.rng.between(8, 22), now+f.rng.between(90, 240)
	case none:
	}
}

// suffer moves a vehicle's incident on, and ends it when it is over.
func (f *Fleet) suffer(c *vehicle) {
	in := &c.incident
	over := c.now >= in.ends
	switch in.kind {
	case coolantLeak:
		if c.temp >= 118 && c.until == 0 { // stranded; the mechanic takes a while
			c.v, c.engine = 0, false
			c.until = c.now + f.rng.between(300, 600)
			in.ends = c.until
		}
	case failingReefer:
		over = over || c.cargo > 17
		if !over {
			c.cargo += in.value / 60 * f.interval
		}
	case speeding: // the road ends before the hurry does
		over = over || min(c.path.length, c.stopAt)-c.s < 1000
	case gpsJump:
		in.fixes--
		over = over || in.fixes < 0
	default:
	}
	if !over {
		return
	}
	gaps := [...]struct{ least, most float64 }{
		coolantLeak: {60, 150}, failingReefer: {40, 120}, speeding: {20, 60}, tunnel: {15, 45}, deadZone: {120, 240}, gpsJump: {20, 60}, fuelPump: {45, 120},
	}
	gap := gaps[in.kind]
	f.lanes[c.lane].starts = c.now + f.rng.between(gap.least, gap.most)
	f.nextTrouble = min(f.nextTrouble, f.lanes[c.lane].starts)
	c.lane, c.incident = -1, incident{}
}

// silent tells whether a vehicle can say nothing now.
func (c *vehicle) silent() bool {
	return c.incident.kind == tunnel || c.incident.kind == deadZone
}

// hold keeps a reading that a vehicle cannot send now.
func (c *vehicle) hold(r *telemetry.Reading) {
	held := *r
	held.Signals = append([]telemetry.Signal(nil), r.Signals...)
	c.held = append(c.held, held)
}
