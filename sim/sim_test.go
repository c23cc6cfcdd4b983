package sim

import (
	"bufio"
	"bytes"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/milepost/milepost/telemetry"
)

// start is the moment at which the fleets of these tests set off.
func start() time.Time { return time.Date(2026, 11, 21, 2, 15, 0, 0, time.UTC) }

// play runs a fleet for a while and calls f for each reading, with the moment at which it was sent.
func play(fleet *Fleet, d time.Duration, f func(at time.Time, r *telemetry.Reading)) {
	for end := start().Add(d); ; {
		at, readings := fleet.Next()
		if !at.Before(end) {
			return
		}
		for i := range readings {
			f(at, &readings[i])
		}
	}
}

func metersBetween(lat1, lon1, lat2, lon2 float64) float64 {
	north, east := lat2-lat1, (lon2-lon1)*math.Cos((lat1+lat2)/2*math.Pi/180)
	return math.Hypot(north, east) * metersPerDegree
}

func TestSameSeedSameFleet(t *testing.T) {
	sum := func(seed uint64) uint64 {
		cat, h, buf := telemetry.NewCatalog(), fnv.New64a(), []byte(nil)
		play(New(Config{Vehicles: 50, Seed: seed, Start: start()}), 10*time.Minute, func(at time.Time, r *telemetry.Reading) {
			buf = telemetry.AppendJSON(buf[:0], cat, r)
			_, _ = h.Write(buf)
		})
		return h.Sum64()
	}
	if a, b := sum(1), sum(1); a != b {
		t.Error("the same seed drove differently")
	}
	if a, b := sum(1), sum(2); a == b {
		t.Error("another seed drove the same")
	}
}

// Times are what they should be: each vehicle each second, nobody at the same moment as all others, moments in order, and
// what was held back comes in order with its own time.
func TestTimes(t *testing.T) {
	fleet := New(Config{Vehicles: 40, Seed: 7, Start: start(), Interval: 2 * time.Second})
	last := map[string]int64{}
	previous := start()
	moments := map[int64]bool{}
	backlog := 0
	play(fleet, 5*time.Minute, func(at time.Time, r *telemetry.Reading) {
		if at.Before(previous) || r.Time > at.UnixMilli() || r.Arrival != at.UnixMilli() {
			t.Fatalf("%s sent at %v, after %v, is of %d and arrived %d", r.Vehicle, at, previous, r.Time, r.Arrival)
		}
		previous = at
		moments[at.UnixMilli()%2000] = true
		if before, ok := last[r.Vehicle]; ok && r.Time-before != 2000 {
			t.Fatalf("%s: %d ms between readings", r.Vehicle, r.Time-before)
		}
		last[r.Vehicle] = r.Time
		if r.Time < at.UnixMilli() {
			backlog++
		}
	})
	if len(moments) != 40 || len(last) != 40 || backlog == 0 {
		t.Errorf("%d moments, %d vehicles, %d readings from a backlog", len(moments), len(last), backlog)
	}
}

// In hours of driving nothing happens that a real vehicle could not do, and every reading decodes without a flag.
func TestPlausible(t *testing.T) {
	cat := telemetry.NewCatalog()
	d := telemetry.NewDecoder(cat)
	type seen struct {
		r        telemetry.Reading
		lat, lon float64
	}
	before := map[string]*seen{}
	var buf []byte
	statuses := map[string]int{}
	moved := map[string]float64{}
	total := 0
	play(New(Config{Vehicles: 60, Seed: 3, Start: start(), Calm: true}), 2*time.Hour, func(at time.Time, r *telemetry.Reading) {
		total++
		buf = telemetry.AppendJSON(buf[:0], cat, r)
		got := telemetry.Reading{Arrival: at.UnixMilli()}
		if err := d.JSON(buf, &got); err != nil || got.Flags != 0 {
			t.Fatalf("%s: %v, flags %b", buf, err, got.Flags)
		}
		value := func(id telemetry.SignalID) float64 { v, _ := r.Signal(id); return v }
		speed := value(telemetry.Speed)
		_, hasCargo := r.Signal(telemetry.CargoTemp)
		_, hasPressure := r.Signal(telemetry.FuelPressure)
		statuses[r.Status]++
		switch {
		case speed > 78 || (r.Status == "moving") != (speed > 1.2) && speed != 0 && speed > 3:
			t.Fatalf("%s at %v km/h", buf, speed)
		case hasCargo != strings.HasPrefix(r.Vehicle, "reefer-"):
			t.Fatalf("%s: cargo %v", buf, hasCargo)
		case hasCargo && (value(telemetry.CargoTemp) < 2.5 || value(telemetry.CargoTemp) > 5.5):
			t.Fatalf("%s: the cargo of a calm fleet is cold", buf)
		case value(telemetry.EngineTemp) > 98 || value(telemetry.EngineTemp) < 0:
			t.Fatalf("%s: the engine of a calm fleet is neither hot nor frozen", buf)
		case hasPressure != (r.Status != "stopped"), hasPressure && r.Status == "moving" && speed > 30 && value(telemetry.FuelPressure) < 40:
			t.Fatalf("%s: fuel pressure", buf)
		}
		b := before[r.Vehicle]
		if b == nil {
			b = &seen{}
			before[r.Vehicle] = b
		} else {
			was := func(id telemetry.SignalID) float64 { v, _ := b.r.Signal(id); return v }
			gone := metersBetween(b.lat, b.lon, r.Lat, r.Lon)
			driven := value(telemetry.Odometer) - was(telemetry.Odometer)
			moved[r.Vehicle] += driven
			switch {
			case gone > 22+12: // 78 km/h and the noise of two fixes
				t.Fatalf("%s moved %.0f m in a second", r.Vehicle, gone)
			case driven < 0 || driven > 23:
				t.Fatalf("%s: odometer moved %v m in a second", r.Vehicle, driven)
			case math.Abs(speed-was(telemetry.Speed)) > 3.6*3.7+1.2:
				t.Fatalf("%s: from %v to %v km/h in a second", r.Vehicle, was(telemetry.Speed), speed)
			case value(telemetry.Fuel)-was(telemetry.Fuel) > 0.6 && speed > 0:
				t.Fatalf("%s: fuel rose while driving", r.Vehicle)
			case was(telemetry.Fuel)-value(telemetry.Fuel) > 0.5:
				t.Fatalf("%s: fuel fell by %v in a second", r.Vehicle, was(telemetry.Fuel)-value(telemetry.Fuel))
			}
		}
		b.lat, b.lon = r.Lat, r.Lon
		b.r.Signals = append(b.r.Signals[:0], r.Signals...)
	})
	if total != 60*7200 {
		t.Errorf("%d readings, want %d", total, 60*7200)
	}
	for _, s := range []string{"moving", "idle", "stopped"} {
		if share := float64(statuses[s]) / float64(total); share < 0.005 || share > 0.95 {
			t.Errorf("%.1f %% of the readings are %s", share*100, s)
		}
	}
	for v, m := range moved {
		if m < 1000 {
			t.Errorf("%s drove %.0f m in two hours", v, m)
		}
	}
}

// Headings point where the vehicle goes.
func TestHeadings(t *testing.T) {
	type fix struct{ lat, lon, heading float64 }
	before := map[string]fix{}
	off, n := 0, 0
	play(New(Config{Vehicles: 30, Seed: 9, Start: start(), Interval: 10 * time.Second, Calm: true}), time.Hour, func(_ time.Time, r *telemetry.Reading) {
		heading, _ := r.Signal(telemetry.Heading)
		b, ok := before[r.Vehicle]
		before[r.Vehicle] = fix{r.Lat, r.Lon, heading}
		if !ok || metersBetween(b.lat, b.lon, r.Lat, r.Lon) < 100 {
			return
		}
		course := math.Atan2((r.Lon-b.lon)*math.Cos(r.Lat*math.Pi/180), r.Lat-b.lat) * 180 / math.Pi
		mean := b.heading + math.Remainder(heading-b.heading, 360)/2
		if n++; math.Abs(math.Remainder(course-mean, 360)) > 15 {
			off++
		}
	})
	if n < 1000 || off*100 > n {
		t.Errorf("%d of %d headings are off by more than 15°", off, n) // at junctions some are
	}
}

// Every road and every round lies on land, with a margin.
func TestOnLand(t *testing.T) {
	file, err := os.Open("testdata/land.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	land := map[[2]int]bool{}
	row, column := 0, 0
	for in := bufio.NewScanner(file); in.Scan(); {
		line := in.Text()
		switch {
		case strings.HasPrefix(line, "# "):
		case strings.HasPrefix(line, "box "):
			if _, err := fmt.Sscanf(line, "box %d %d", &row, &column); err != nil {
				t.Fatal(err)
			}
		default:
			for i := range len(line) {
				if line[i] == '#' {
					land[[2]int{row, column + i}] = true
				}
			}
			row++
		}
	}
	check := func(n *network, p *path) {
		for _, q := range p.points {
			if !land[[2]int{int((q.lat + 90) / 0.2), int((q.lon + 180) / 0.2)}] {
				t.Errorf("%s to %s: %.3f,%.3f is not well inland", n.places[p.from].name, n.places[p.to].name, q.lat, q.lon)
				return
			}
		}
	}
	n := newNetwork()
	for _, p := range n.paths {
		check(n, p)
		if p.length < 15e3 || p.length > 400e3 {
			t.Errorf("%s to %s: %.0f km", n.places[p.from].name, n.places[p.to].name, p.length/1000)
		}
	}
	rng := random(1)
	for i := range n.places {
		if len(n.ends[i]) == 0 {
			t.Errorf("no road leads to %s", n.places[i].name)
		}
		for range 8 {
			check(n, n.town(i, &rng))
		}
	}
}

// Trouble of every kind shows soon enough for a demonstration, bad enough for the shipped rules, and again and again.
func TestTrouble(t *testing.T) {
	type run struct{ since, longest int64 }
	over := map[string]map[string]*run{} // by rule and vehicle: for how long without a break
	firing := map[string][]time.Duration{}
	lasts := map[string]int64{"overspeed": 30_000, "engine hot": 60_000, "cargo warm": 120_000, "fuel pressure": 30_000, "stranded": 0}
	judge := func(rule string, r *telemetry.Reading, bad bool) {
		if over[rule] == nil {
			over[rule] = map[string]*run{}
		}
		c := over[rule][r.Vehicle]
		if !bad {
			delete(over[rule], r.Vehicle)
			return
		}
		if c == nil {
			c = &run{since: r.Time}
			over[rule][r.Vehicle] = c
		}
		if d := r.Time - c.since; d >= lasts[rule] && c.longest < max(1, lasts[rule]) {
			firing[rule] = append(firing[rule], time.UnixMilli(r.Time).Sub(start()))
			c.longest = max(1, d)
		}
	}
	type fix struct {
		lat, lon float64
		sent     int64
	}
	before := map[string]fix{}
	var jumps, tunnels, dark []time.Duration
	play(New(Config{Vehicles: 150, Seed: 1, Start: start()}), 2*time.Hour, func(at time.Time, r *telemetry.Reading) {
		value := func(id telemetry.SignalID) float64 { v, _ := r.Signal(id); return v }
		speed, temp, cargo := value(telemetry.Speed), value(telemetry.EngineTemp), value(telemetry.CargoTemp)
		pressure, running := r.Signal(telemetry.FuelPressure)
		judge("overspeed", r, speed > 80)
		judge("engine hot", r, temp >= 105)
		judge("stranded", r, temp >= 112 && r.Status == "stopped")
		judge("cargo warm", r, cargo > 8)
		judge("fuel pressure", r, running && pressure < 30 && r.Status == "moving")
		b, ok := before[r.Vehicle]
		if ok && metersBetween(b.lat, b.lon, r.Lat, r.Lon) > 5000 {
			jumps = append(jumps, at.Sub(start()))
		}
		if gap := at.UnixMilli() - b.sent; ok && gap > 600_000 {
			dark = append(dark, at.Sub(start()))
		} else if ok && gap > 20_000 {
			tunnels = append(tunnels, at.Sub(start()))
		}
		before[r.Vehicle] = fix{r.Lat, r.Lon, at.UnixMilli()}
	})
	firing["jump"], firing["tunnel"], firing["dead zone"] = jumps, tunnels, dark
	f := func(what string, first time.Duration, least int) {
		t.Helper()
		times := firing[what]
		switch {
		case len(times) < least:
			t.Errorf("%s: %d times in two hours, want %d", what, len(times), least)
		case times[0] > first:
			t.Errorf("%s: first after %v, want %v", what, times[0], first)
		case times[len(times)-1] < 80*time.Minute:
			t.Errorf("%s: last after %v: it does not go on", what, times[len(times)-1])
		}
	}
	f("overspeed", time.Minute, 20)
	f("fuel pressure", 90*time.Second, 15)
	f("engine hot", 2*time.Minute, 4)
	f("cargo warm", 150*time.Second, 4)
	f("tunnel", 2*time.Minute, 25)
	f("jump", time.Minute, 50)
	f("dead zone", 15*time.Minute, 4)
	f("stranded", 15*time.Minute, 4)
}

// A restored fleet goes on from where it was: no vehicle jumps, and no odometer runs back.
func TestSaveRestore(t *testing.T) {
	last := map[string]telemetry.Reading{}
	remember := func(_ time.Time, r *telemetry.Reading) {
		kept := *r
		kept.Signals = append([]telemetry.Signal(nil), r.Signals...)
		last[r.Vehicle] = kept
	}
	cfg := Config{Vehicles: 200, Seed: 5, Start: start(), Calm: true}
	a := New(cfg)
	play(a, 20*time.Minute, remember)
	state, err := a.Save()
	if err != nil {
		t.Fatal(err)
	}
	b := New(cfg)
	if err := b.Restore(state); err != nil {
		t.Fatal(err)
	}
	play(b, time.Second, func(_ time.Time, r *telemetry.Reading) {
		before := last[r.Vehicle]
		was, _ := before.Signal(telemetry.Odometer)
		is, _ := r.Signal(telemetry.Odometer)
		if d := metersBetween(before.Lat, before.Lon, r.Lat, r.Lon); d > 60 || is < was || is > was+50 {
			t.Errorf("%s went on %.0f m away, from odometer %.0f at %.0f", r.Vehicle, d, was, is)
		}
	})
	f := func(fleet *Fleet, state []byte) {
		t.Helper()
		before, err := fleet.Save()
		if err != nil {
			t.Fatal(err)
		}
		if err := fleet.Restore(state); err == nil {
			t.Error("a state that does not fit was restored")
		}
		if after, err := fleet.Save(); err != nil || !bytes.Equal(before, after) {
			t.Errorf("a state that does not fit left its marks (%v)", err)
		}
	}
	f(New(Config{Vehicles: 201, Seed: 5}), state)
	f(New(Config{Vehicles: 200, Seed: 6}), state)
	f(New(cfg), state[:len(state)/2])
	f(New(cfg), []byte("nonsense"))
}

// A fleet too small for some troubles does without them.
func TestSmallFleets(t *testing.T) {
	for vehicles := 1; vehicles <= 5; vehicles++ {
		n := 0
		play(New(Config{Vehicles: vehicles, Start: start()}), time.Hour, func(time.Time, *telemetry.Reading) { n++ })
		if n < vehicles*3600*2/3 {
			t.Errorf("%d vehicles made %d readings in an hour", vehicles, n)
		}
	}
}

func BenchmarkNext(b *testing.B) {
	cat := telemetry.NewCatalog()
	b.Run("next", func(b *testing.B) {
		f := New(Config{Vehicles: 5000, Start: start()})
		b.ReportAllocs()
		for b.Loop() {
			f.Next()
		}
	})
	b.Run("next and encode", func(b *testing.B) {
		f := New(Config{Vehicles: 5000, Start: start()})
		b.ReportAllocs()
		var buf []byte
		for b.Loop() {
			_, rs := f.Next()
			for i := range rs {
				buf = telemetry.AppendJSON(buf[:0], cat, &rs[i])
			}
		}
	})
	b.Run("new 5000", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			New(Config{Vehicles: 5000, Start: start()})
		}
	})
}
