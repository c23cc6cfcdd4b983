// Package webtest is a made-up fleet behind every interface of package web, for its tests and for working on the dashboard
// (devserver). Vehicles drive between cities at plausible speeds; some are silent, hot or hostile. The same seed and the same
// calls of Advance give the same fleet.
package webtest

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/milepost/milepost/alert"
	"github.com/milepost/milepost/fleet"
	"github.com/milepost/milepost/web"
)

// Hostile is the id, status and rule of the first vehicle: what a device could send to attack whoever looks at it.
const Hostile = `<img src=x onerror="window.pwned=1">`

// A Fleet is safe for concurrent use.
type Fleet struct {
	mu       sync.Mutex
	rng      *rand.Rand
	now      time.Time
	cars     []*car
	byID     map[string]*car
	version  uint64 // of points: Live's cursor
	alerts   []alert.Alert
	alertsV  uint64
	letters  []web.StoredLetter
	accepted uint64
	started  time.Time
}

type car struct {
	point        web.Point
	changed      uint64
	from, to     int // cities
	done, length float64
	cruise       float64 // km/h
	speed        float64
	status       string
	fuel, engine float64
	cargo        float64
	arrival      time.Time
	readings     uint64
	silentFrom   time.Time // no word after it; zero: talks
}

type city struct {
	name     string
	lat, lon float64
}

//nolint:gochecknoglobals // a table
var cities = []city{
	{"New York", 40.713, -74.006},
	{"Philadelphia", 39.953, -75.165},
	{"Boston", 42.360, -71.058},
	{"Buffalo", 42.886, -78.878},
	{"Pittsburgh", 40.441, -79.996},
	{"Cleveland", 41.499, -81.694},
	{"Detroit", 42.331, -83.046},
	{"Columbus", 39.961, -82.999},
	{"Indianapolis", 39.768, -86.158},
	{"Chicago", 41.878, -87.630},
	{"Minneapolis", 44.978, -93.265},
	{"St. Louis", 38.627, -90.199},
	{"Kansas City", 39.100, -94.579},
	{"Omaha", 41.257, -95.935},
	{"Denver", 39.739, -104.990},
	{"Salt Lake City", 40.761, -111.891},
	{"Boise", 43.615, -116.202},
	{"Portland", 45.515, -122.678},
	{"Seattle", 47.606, -122.332},
	{"Sacramento", 38.582, -121.494},
	{"Fresno", 36.738, -119.785},
	{"Los Angeles", 34.052, -118.244},
	{"Las Vegas", 36.170, -115.140},
	{"Phoenix", 33.448, -112.074},
	{"Albuquerque", 35.084, -106.650},
	{"El Paso", 31.762, -106.485},
	{"San Antonio", 29.424, -98.494},
	{"Austin", 30.267, -97.743},
	{"Dallas", 32.777, -96.797},
	{"Houston", 29.760, -95.370},
	{"Oklahoma City", 35.468, -97.516},
	{"Memphis", 35.150, -90.049},
	{"Nashville", 36.163, -86.781},
	{"Atlanta", 33.749, -84.388},
	{"Charlotte", 35.227, -80.843},
	{"Richmond", 37.541, -77.436},
	{"Jacksonville", 30.332, -81.656},
	{"Orlando", 28.538, -81.379},
	{"New Orleans", 29.951, -90.072},
	{"Birmingham", 33.519, -86.810},
	{"Louisville", 38.253, -85.759},
	{"Cincinnati", 39.103, -84.512},
	{"Billings", 45.783, -108.501},
	{"Spokane", 47.659, -117.426},
	{"Tucson", 32.222, -110.975},
	{"Wichita", 37.687, -97.330},
	{"Des Moines", 41.587, -93.625},
	{"Milwaukee", 43.039, -87.906},
}

// New returns a fleet of n vehicles as it is at a moment.
func New(n int, seed uint64, now time.Time) *Fleet {
	f := &Fleet{
		rng: rand.New(rand.NewPCG(seed, 7)), byID: map[string]*car{}, version: 1, alertsV: 1, started: now, //nolint:gosec // a simulation
	}
	for i := range n {
		c := &car{cruise: 60 + 45*f.rng.Float64(), fuel: 15 + 80*f.rng.Float64(), engine: 86 + 8*f.rng.Float64(), status: "moving"}
		c.cargo = 3 + f.rng.Float64()*2
		c.point = web.Point{Index: uint32(i), ID: fmt.Sprintf("T%04d", 100+i), HasPlace: true} //nolint:gosec // small
		switch {
		case i == 0:
			c.point.ID, c.status = Hostile, Hostile
		case i%29 == 5:
			c.silentFrom = now.Add(-time.Duration(2+f.rng.IntN(8)) * time.Minute)
		case i%41 == 7:
			c.silentFrom = now.Add(-time.Duration(1+f.rng.IntN(70)) * time.Hour)
		case i%13 == 3:
			c.cruise, c.status = 0, "parked"
		}
		c.from = f.rng.IntN(len(cities))
		f.leave(c)
		c.done = c.length * f.rng.Float64()
		c.arrival = now
		if !c.silentFrom.IsZero() {
			c.arrival = c.silentFrom
		}
		c.readings = uint64(f.rng.IntN(100_000)) //nolint:gosec // positive
		f.cars = append(f.cars, c)
		f.byID[c.point.ID] = c
		f.move(c, 0)
	}
	f.now = now
	f.seedAlerts()
	f.seedLetters()
	return f
}

// leave sets off for one of the nearest cities.
func (f *Fleet) leave(c *car) {
	type near struct {
		i int
		d float64
	}
	var list []near
	for i := range cities {
		if i != c.from {
			list = append(list, near{i, distance(cities[c.from], cities[i])})
		}
	}
	slices.SortFunc(list, func(a, b near) int { return int(a.d - b.d) })
	pick := list[f.rng.IntN(5)]
	c.to, c.length, c.done = pick.i, pick.d, 0
}

// Advance lets time pass: every vehicle that talks moves on and reports.
func (f *Fleet) Advance(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	dt := now.Sub(f.now).Seconds()
	f.now = now
	f.version++
	for _, c := range f.cars {
		if c.silentFrom.IsZero() || c.silentFrom.After(now) {
			c.arrival = now
			c.readings++
			f.accepted++
			f.move(c, dt)
		}
	}
}

func (f *Fleet) move(c *car, dt float64) {
	if c.cruise > 0 {
		c.speed = max(0, c.cruise+6*f.rng.NormFloat64())
		c.done += c.speed / 3.6 * dt
		for c.done >= c.length {
			c.from = c.to
			f.leave(c)
		}
		c.fuel = max(4, c.fuel-0.001*dt)
	}
	a, b := cities[c.from], cities[c.to]
	share := c.done / c.length
	// A road is no straight line: bend it, more in the middle.
	bend := 0.18 * math.Sin(share*math.Pi) * math.Sin(share*9+float64(c.from))
	p := &c.point
	lat, lon := a.lat+(b.lat-a.lat)*share+bend*(b.lon-a.lon)*0.5, a.lon+(b.lon-a.lon)*share-bend*(b.lat-a.lat)*0.5
	if dt > 0 && (lat != p.Lat || lon != p.Lon) {
		p.Heading = float32(math.Mod(math.Atan2((lon-p.Lon)*math.Cos(lat*math.Pi/180), lat-p.Lat)*180/math.Pi+360, 360))
	} else if dt == 0 {
		p.Heading = float32(math.Mod(math.Atan2((b.lon-a.lon)*math.Cos(lat*math.Pi/180), b.lat-a.lat)*180/math.Pi+360, 360))
	}
	p.Lat, p.Lon, p.Speed, p.Time = lat, lon, float32(c.speed), c.arrival.UnixMilli()
	c.changed = f.version
	p.State = f.state(c)
}

func (f *Fleet) state(c *car) web.State {
	if c.silentFrom.IsZero() {
		return web.StateOnline
	}
	if f.started.Sub(c.silentFrom) > 15*time.Minute {
		return web.StateOffline
	}
	return web.StateStale
}

func distance(a, b city) float64 {
	dy, dx := (a.lat-b.lat)*111_195, (a.lon-b.lon)*111_195*math.Cos((a.lat+b.lat)/2*math.Pi/180)
	return math.Hypot(dx, dy)
}

// Drain implements web.Live.
func (f *Fleet) Drain(cursor uint64, buf []web.Point) ([]web.Point, uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.cars {
		if c.changed > cursor {
			buf = append(buf, c.point)
		}
	}
	return buf, f.version
}

// Add puts one more vehicle on the road.
func (f *Fleet) Add(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version++
	c := &car{cruise: 80, fuel: 50, engine: 90, cargo: 4, status: "moving", arrival: f.now}
	c.point = web.Point{Index: uint32(len(f.cars)), ID: id, HasPlace: true} //nolint:gosec // small
	f.leave(c)
	f.cars = append(f.cars, c)
	f.byID[id] = c
	f.move(c, 0)
}

// Vehicle implements web.Vehicles.
func (f *Fleet) Vehicle(id string) (fleet.Vehicle, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, ok := f.byID[id]
	if !ok {
		return fleet.Vehicle{}, false
	}
	return f.vehicle(c), true
}

// Vehicles implements web.Vehicles.
func (f *Fleet) Vehicles(each func(*fleet.Vehicle) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.cars {
		v := f.vehicle(c)
		if !each(&v) {
			return
		}
	}
}

func (f *Fleet) vehicle(c *car) fleet.Vehicle {
	ms := c.arrival.UnixMilli()
	v := fleet.Vehicle{
		ID: c.point.ID, Connectivity: []fleet.Connectivity{fleet.Online, fleet.Stale, fleet.Offline}[c.point.State],
		EventTime: ms - 400, ArrivalTime: ms, HasPlace: true, Lat: c.point.Lat, Lon: c.point.Lon, PlaceTime: ms - 400,
		Status: c.status, Readings: c.readings,
		Signals: []fleet.SignalValue{
			{Name: "fuel_pressure", Unit: "kPa", Value: 310 + 6*math.Sin(float64(ms)/9e3), Time: ms - 400},
			{Name: "speed", Unit: "km/h", Value: math.Round(c.speed*10) / 10, Time: ms - 400},
			{Name: "fuel", Unit: "%", Value: c.fuel, Time: ms - 400},
			{Name: "engine_temp", Unit: "°C", Value: c.engine + 2*math.Sin(float64(ms)/30e3), Time: ms - 400},
			{Name: "cargo_temp", Unit: "°C", Value: c.cargo, Time: ms - 400},
			{Name: "odometer", Unit: "m", Value: 1e6*float64(1+c.point.Index%400) + math.Floor(c.done), Time: ms - 400},
			{Name: "heading", Unit: "deg", Value: float64(c.point.Heading), Time: ms - 400},
			{Name: "tyre_pressure_fl", Value: 8.2, Time: ms - 240_000},
		},
	}
	for i := range f.alerts {
		if a := &f.alerts[i]; a.Vehicle == v.ID && a.State == alert.Firing {
			v.Firing = append(v.Firing, a.Rule)
			if web.SeverityOf(a.Severity) > web.SeverityOf(v.Severity) {
				v.Severity = a.Severity
			}
		}
	}
	return v
}

func (f *Fleet) seedAlerts() {
	kinds := []struct{ rule, severity, summary, cond string }{
		{"overspeed", "warning", "speed is 94.1 km/h, above 80 km/h for 30 s", "speed > 80 for 30s"},
		{"engine-hot", "critical", "engine temperature is 112.4 °C, above 105 °C for 1 min", "engine_temp > 105 for 1m"},
		{"cargo-temperature", "critical", "cargo is 9.3 °C, outside 2 to 8 °C for 10 min", "cargo_temp < 2 || cargo_temp > 8 for 10m"},
		{"fuel-pressure-low", "warning", "fuel pressure is 118 kPa, below 200 kPa for 20 s", "fuel_pressure < 200 for 20s"},
		{"device-offline", "info", "nothing heard for 25 min", "silent for 15m"},
	}
	for i := range min(60, len(f.cars)) {
		k := kinds[i%len(kinds)]
		c := f.cars[(i*37)%len(f.cars)]
		at := f.now.Add(-time.Duration(i*i+1) * 20 * time.Second)
		a := alert.Alert{
			ID: "al-" + strconv.Itoa(1000+i), Rule: k.rule, Vehicle: c.point.ID, Severity: k.severity, State: alert.Firing, Summary: k.summary,
			Condition: k.cond, Value: 94.1, Peak: 101.7, Since: at.Add(-30 * time.Second).UnixMilli(), FiredAt: at.UnixMilli(),
			Lat: c.point.Lat, Lon: c.point.Lon, HasPlace: true,
		}
		if c.point.Index == 0 {
			a.Rule, a.Summary, a.Condition = Hostile, Hostile, Hostile
		}
		switch {
		case i%3 == 2:
			a.State, a.ResolvedAt = alert.Resolved, at.Add(7*time.Minute).UnixMilli()
		case i%5 == 4:
			a.AckedAt, a.AckedBy = at.Add(time.Minute).UnixMilli(), "Maria"
		}
		if a.State == alert.Firing {
			c.point.Severity = max(c.point.Severity, web.SeverityOf(a.Severity))
			switch k.rule {
			case "engine-hot":
				c.engine = 112
			case "cargo-temperature":
				c.cargo = 9.3
			}
		}
		f.alerts = append(f.alerts, a)
	}
}

// Fire raises an alert on a vehicle.
func (f *Fleet) Fire(id, vehicle, rule, severity string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.byID[vehicle]
	ms := f.now.UnixMilli()
	f.alerts = append([]alert.Alert{{
		ID: id, Rule: rule, Vehicle: vehicle, Severity: severity, State: alert.Firing, Summary: rule + " on " + vehicle,
		Condition: "test", Since: ms, FiredAt: ms, Lat: c.point.Lat, Lon: c.point.Lon, HasPlace: true,
	}}, f.alerts...)
	f.alertsV++
	f.version++
	c.point.Severity = max(c.point.Severity, web.SeverityOf(severity))
	c.changed = f.version
}

// Alerts implements web.Alerts.
func (f *Fleet) Alerts(_ context.Context, q web.AlertQuery) ([]alert.Alert, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []alert.Alert
	started := q.Before == ""
	for i := range f.alerts {
		a := &f.alerts[i]
		if !started {
			started = a.ID == q.Before
			continue
		}
		if (q.State == "" || a.State == q.State) && (q.Vehicle == "" || a.Vehicle == q.Vehicle) && (q.Rule == "" || a.Rule == q.Rule) {
			out = append(out, *a)
		}
		if q.Limit > 0 && len(out) == q.Limit {
			break
		}
	}
	return out, nil
}

// Alert implements web.Alerts.
func (f *Fleet) Alert(_ context.Context, id string) (alert.Alert, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.alerts {
		if f.alerts[i].ID == id {
			return f.alerts[i], nil
		}
	}
	return alert.Alert{}, web.ErrNotFound
}

// Ack implements web.Alerts.
func (f *Fleet) Ack(_ context.Context, id, by string) (alert.Alert, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.alerts {
		if a := &f.alerts[i]; a.ID == id {
			if a.AckedAt == 0 {
				a.AckedAt, a.AckedBy = f.now.UnixMilli(), by
				f.alertsV++
			}
			return *a, nil
		}
	}
	return alert.Alert{}, web.ErrNotFound
}

// Counts implements web.Alerts.
func (f *Fleet) Counts() web.AlertCounts {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := web.AlertCounts{Version: f.alertsV}
	for i := range f.alerts {
		a := &f.alerts[i]
		if a.State != alert.Firing {
			continue
		}
		switch web.SeverityOf(a.Severity) {
		case web.SeverityCritical:
			c.Critical++
		case web.SeverityWarning:
			c.Warning++
		default:
			c.Info++
		}
		if a.AckedAt == 0 {
			c.Unacked++
		}
	}
	return c
}

// Now is the moment the fleet is at.
func (f *Fleet) Now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}
