package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/rule"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// FuncName keys the fleet's checkpoints and never changes.
const FuncName = "fleet"

// Rows takes the accepted readings of one shard, in log order, on the goroutine of the shard's lane. The archive has them.
type Rows interface {
	// Add keeps a copy of a reading. Positions it already has are ignored: after a crash they come again. It may wait for room.
	Add(ctx context.Context, pos stream.Position, r *telemetry.Reading) error
	// Advance makes what was added visible: everything up to pos has been added or left out.
	Advance(pos stream.Position)
	// Rewind forgets what was added since the last Advance.
	Rewind()
}

// Config is what a Fleet uses.
type Config struct {
	Stream  string // the stream's name, for dead letters
	Source  stream.Log
	Store   state.Store
	Catalog *telemetry.Catalog
	Rules   *rule.Set
	Rows    func(ctx context.Context, shard stream.ShardID) (Rows, error)
	Sinks   func(severity string) []string // who is told of an alert; nil: nobody
	Alerted func()                         // called when alerts have changed or are about to; must not block
	// OtherRule tells whether a rule that is not among Rules still raises alerts: a detector's. nil: there are none.
	OtherRule func(name string) bool
	Log       *slog.Logger
	Metrics   prometheus.Registerer

	// OfflineAfter is how long a vehicle may be silent before it counts as offline. 10 min: three intervals of a slow sender.
	OfflineAfter time.Duration
	// SeenSightings bounds each lane's cache of hours that late readings asked for. 1M: about 16 MB.
	SeenSightings int
}

func (c *Config) defaults() {
	if c.OfflineAfter == 0 {
		c.OfflineAfter = 10 * time.Minute
	}
	if c.SeenSightings == 0 {
		c.SeenSightings = 1 << 20
	}
	if c.Sinks == nil {
		c.Sinks = func(string) []string { return nil }
	}
	if c.OtherRule == nil {
		c.OtherRule = func(string) bool { return false }
	}
	if c.Alerted == nil {
		c.Alerted = func() {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// A Fleet is the built-in function: it knows every vehicle's latest state, keeps daily figures, judges rules and hands accepted
// readings to the archive. It is safe for concurrent use.
type Fleet struct {
	cfg       Config
	directory directory
	metrics   metrics

	mu    sync.Mutex // guards the rest
	lanes map[*lane]struct{}
	left  []Point // of vehicles that had moved when their lane closed; Moved hands them out
}

type metrics struct{ readings, duplicates, late, rejected prometheus.Counter }

// Open reads every vehicle from the store, so that the fleet is complete before the first reading comes.
func Open(ctx context.Context, cfg Config) (*Fleet, error) {
	cfg.defaults()
	f := &Fleet{cfg: cfg, lanes: map[*lane]struct{}{}}
	f.directory.all = map[string]*vehicle{}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "milepost_fleet_" + name, Help: help})
		if cfg.Metrics != nil {
			cfg.Metrics.MustRegister(c)
		}
		return c
	}
	f.metrics = metrics{
		readings:   counter("readings_total", "Distinct readings folded into state."),
		duplicates: counter("duplicates_total", "Readings that had been seen before and changed nothing."),
		late:       counter("late_readings_total", "Readings older than their vehicle's newest."),
		rejected:   counter("rejected_total", "Log records that are no readings, dead-lettered."),
	}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(&vehicleGauge{f, prometheus.NewDesc("milepost_fleet_vehicles", "Vehicles by connectivity.", []string{"connectivity"}, nil)})
	}
	err := cfg.Store.View(ctx, func(r state.Reader) error {
		from := []byte(vehiclePrefix)
		return r.Scan(from, state.PrefixEnd(from), func(k, b []byte) error {
			v, err := decodeVehicle(string(k[len(vehiclePrefix):]), b, cfg.Catalog, cfg.Rules)
			if err != nil {
				return fmt.Errorf("vehicle %q: %w", k[len(vehiclePrefix):], err)
			}
			f.directory.put(v)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("load fleet: %w", err)
	}
	return f, nil
}

// Name keys the fleet's checkpoints.
func (f *Fleet) Name() string { return FuncName }

// Lane returns the fold of one shard. It adopts the vehicles of the shard that nobody owns, so that silence is judged for those
// that never send again.
func (f *Fleet) Lane(shard stream.ShardID, _ int) process.Fold {
	l := &lane{
		f: f, shard: shard, decoder: telemetry.NewDecoder(f.cfg.Catalog),
		vehicles: map[string]*vehicle{}, seen: newSeenCache(f.cfg.SeenSightings),
	}
	f.mu.Lock()
	f.lanes[l] = struct{}{}
	f.mu.Unlock()
	shards, err := f.cfg.Source.Shards(context.Background())
	if err != nil {
		f.cfg.Log.Warn("adopt vehicles", "shard", string(shard), "error", err)
		return l
	}
	for i := range shards {
		if shards[i].ID == shard {
			l.ours = shards[i]
			l.mu.Lock()
			for _, v := range f.directory.unowned(&shards[i]) {
				l.own(v)
			}
			l.mu.Unlock()
		}
	}
	return l
}

// release takes a closing lane's vehicles back; the caller holds l.mu.
func (f *Fleet) release(l *lane) {
	now := time.Now().UnixMilli()
	f.mu.Lock()
	delete(f.lanes, l)
	for _, v := range l.live { // its next lane begins a list of its own
		v.liveDirty = false
		f.left = append(f.left, f.point(v, now))
	}
	f.mu.Unlock()
	l.live = nil
	for _, v := range l.vehicles {
		v.lane.Store(nil)
	}
	f.directory.adopt(l.vehicles)
	l.vehicles = map[string]*vehicle{}
}

// connectivity judges by arrival. Stale means three usual intervals of silence, at least 30 s.
func (f *Fleet) connectivity(v *vehicle, now int64) Connectivity {
	silence := now - v.arrival
	offline := f.cfg.OfflineAfter.Milliseconds()
	switch {
	case silence >= offline:
		return Offline
	case silence >= min(max(3*v.interval, 30_000), offline):
		return Stale
	}
	return Online
}

// Vehicle returns one vehicle's latest state.
func (f *Fleet) Vehicle(id string) (Vehicle, bool) {
	now := time.Now().UnixMilli()
	var p Vehicle
	ok := f.directory.with(id, func(v *vehicle) { p = v.publish(f.cfg.Catalog, f.connectivity(v, now)) })
	return p, ok
}

// Vehicles calls fn with every vehicle, in no order, until it returns false. What it gets may be kept; no lock is held meanwhile.
func (f *Fleet) Vehicles(fn func(*Vehicle) bool) {
	now := time.Now().UnixMilli()
	for _, id := range f.directory.ids() {
		var p Vehicle
		if f.directory.with(id, func(v *vehicle) { p = v.publish(f.cfg.Catalog, f.connectivity(v, now)) }) && !fn(&p) {
			return
		}
	}
}

// Len is how many vehicles are known.
func (f *Fleet) Len() int { return f.directory.len() }

// Counts returns how many vehicles are online, stale and offline.
func (f *Fleet) Counts() map[Connectivity]int {
	now := time.Now().UnixMilli()
	n := map[Connectivity]int{}
	for _, id := range f.directory.ids() {
		f.directory.with(id, func(v *vehicle) { n[f.connectivity(v, now)]++ })
	}
	return n
}

// vehicleGauge counts the vehicles once a look, for all connectivities.
type vehicleGauge struct {
	fleet *Fleet
	desc  *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (g *vehicleGauge) Describe(ch chan<- *prometheus.Desc) { ch <- g.desc }

// Collect implements prometheus.Collector.
func (g *vehicleGauge) Collect(ch chan<- prometheus.Metric) {
	n := g.fleet.Counts()
	for _, c := range []Connectivity{Online, Stale, Offline} {
		ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, float64(n[c]), string(c))
	}
}

// A Point is what the map shows of a vehicle.
type Point struct {
	Index      uint32 // names the vehicle in this process
	ID         string
	Lat, Lon   float64
	HasPlace   bool
	Speed      float32 // km/h; NaN unknown
	Heading    float32 // degrees; NaN unknown
	Conn       Connectivity
	Severity   string // of the worst firing alert, "" none
	Time       int64  // event time of the place, Unix ms
	LastSignal int64  // arrival time, Unix ms
}

// Points appends every vehicle's point to buf.
func (f *Fleet) Points(buf []Point) []Point {
	now := time.Now().UnixMilli()
	for _, id := range f.directory.ids() {
		f.directory.with(id, func(v *vehicle) { buf = append(buf, f.point(v, now)) })
	}
	return buf
}

// Moved appends the points of the vehicles that changed since the last call, each once (twice, newest last, if its shard was split
// or merged), whatever happened in between. It has one caller, the live hub: the changes are gone after it.
func (f *Fleet) Moved(buf []Point) []Point {
	now := time.Now().UnixMilli()
	f.mu.Lock()
	lanes := make([]*lane, 0, len(f.lanes))
	for l := range f.lanes {
		lanes = append(lanes, l)
	}
	buf = append(buf, f.left...)
	f.left = nil
	f.mu.Unlock()
	for _, l := range lanes {
		l.mu.Lock()
		for _, v := range l.live {
			v.liveDirty = false
			buf = append(buf, f.point(v, now))
		}
		clear(l.live)
		l.live = l.live[:0]
		l.mu.Unlock()
	}
	return buf
}

func (f *Fleet) point(v *vehicle, now int64) Point {
	nan := float32(math.NaN())
	p := Point{
		Index: v.index, ID: v.id, Lat: v.lat, Lon: v.lon, HasPlace: v.placeTime != 0, Speed: nan, Heading: nan,
		Conn: f.connectivity(v, now), Severity: v.worst, Time: v.placeTime, LastSignal: v.arrival,
	}
	if t := v.values.T; len(t) > int(telemetry.Heading) {
		if t[telemetry.Speed] != 0 {
			p.Speed = float32(v.values.V[telemetry.Speed])
		}
		if t[telemetry.Heading] != 0 {
			p.Heading = float32(v.values.V[telemetry.Heading])
		}
	}
	return p
}
