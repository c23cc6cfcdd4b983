package fleet

import (
	"encoding/binary"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/milepost/milepost/internal/binenc"
	"github.com/milepost/milepost/process/rule"
	"github.com/milepost/milepost/telemetry"
)

// A vehicle is the hot state of one vehicle. The lane that owns its key writes it, under the lane's lock.
type vehicle struct {
	id    string
	index uint32               // in the live feed; stable in this process only
	lane  atomic.Pointer[lane] // who writes it; nil: nobody. Set under the directory's cold lock, cleared under the lane's

	newest    int64 // event time of its newest reading; 0 before the first
	arrival   int64 // of the last message, late and duplicate ones included
	interval  int64 // between messages, ms, smoothed; 0 unknown
	lat, lon  float64
	placeTime int64 // 0: never had a place
	status    string
	statusAt  int64
	readings  uint64
	values    rule.Values // current signals, each with its own time

	open    []sighting // accepted and not yet sealed, in arrival order
	sealSeq uint32

	day  int32 // of today
	kpi  *daily
	more map[int32]*daily // other days that late readings touched since the last flush

	rules  []rule.State
	bound  *rule.Bound
	firing []string // names of firing rules
	worst  string   // severity of the worst of them

	orphans   bool         // alerts of rules that are no longer there are open
	lastConn  Connectivity // as the live feed was last told
	dirty     bool         // differs from the store
	liveDirty bool         // differs from what the live feed has seen
}

// Version 2 has the windows of rules before the rule state; it is written only when a rule has one.
const (
	vehicleVersion     = 1
	vehicleWithWindows = 2
)

// encode writes everything of a vehicle that the log alone does not bring back cheaply. Layout: version, times, place, status,
// counters, signals by name, open sightings, rule state. Signals go by name because IDs live only as long as a process.
func (v *vehicle) encode(buf []byte, cat *telemetry.Catalog, set *rule.Set) []byte {
	version := byte(vehicleVersion)
	if set.HasWindows() {
		version = vehicleWithWindows
	}
	buf = append(buf[:0], version)
	buf = binary.AppendVarint(buf, v.newest)
	buf = binary.AppendVarint(buf, v.arrival)
	buf = binary.AppendVarint(buf, v.interval)
	buf = binary.AppendVarint(buf, v.placeTime)
	buf = binenc.AppendFloat(buf, v.lat)
	buf = binenc.AppendFloat(buf, v.lon)
	buf = binary.AppendVarint(buf, v.statusAt)
	buf = binenc.AppendText(buf, v.status)
	buf = binary.AppendUvarint(buf, v.readings)
	buf = binary.AppendUvarint(buf, uint64(v.sealSeq))
	n := 0
	for _, t := range v.values.T {
		if t != 0 {
			n++
		}
	}
	buf = binary.AppendUvarint(buf, uint64(n))
	for id, t := range v.values.T {
		if t == 0 {
			continue
		}
		buf = binenc.AppendText(buf, cat.Def(telemetry.SignalID(id)).Name) //nolint:gosec // bounded by MaxSignals
		buf = binary.AppendVarint(buf, v.newest-t)
		buf = binenc.AppendFloat(buf, v.values.V[id])
	}
	buf = appendSightings(buf, v.open)
	if version == vehicleWithWindows {
		buf = set.AppendWindows(buf, &v.values)
	}
	return set.AppendState(buf, v.rules)
}

// decodeVehicle is encode's inverse. Signals whose names no longer fit the catalog are left out.
func decodeVehicle(id string, b []byte, cat *telemetry.Catalog, set *rule.Set) (*vehicle, error) {
	r := reader(b)
	version := r.Byte()
	if version != vehicleVersion && version != vehicleWithWindows {
		return nil, errCorrupt
	}
	v := &vehicle{id: strings.Clone(id)}
	v.newest = r.Varint()
	v.arrival = r.Varint()
	v.interval = r.Varint()
	v.placeTime = r.Varint()
	v.lat = r.Float()
	v.lon = r.Float()
	v.statusAt = r.Varint()
	v.status = string(r.Bytes())
	v.readings = r.Uvarint()
	v.sealSeq = uint32(r.Uvarint()) //nolint:gosec // written from a uint32
	for range r.Uvarint() {
		name := r.Bytes()
		at, value := v.newest-r.Varint(), r.Float()
		if r.Err != nil {
			return nil, r.Err
		}
		if id, ok := cat.Intern(string(name)); ok {
			v.set(id, value, at)
		}
	}
	v.open = readSightings(&r, make([]sighting, 0, openMax))
	if r.Err != nil {
		return nil, r.Err
	}
	if version == vehicleWithWindows {
		var err error
		if r.B, err = set.DecodeWindows(r.B, &v.values); err != nil {
			return nil, err
		}
	}
	v.bound = set.Bind(v.id)
	v.rules = make([]rule.State, set.Len())
	orphans, err := set.DecodeState(r.B, v.rules)
	if err != nil {
		return nil, err
	}
	v.orphans = orphans > 0
	v.firing, v.worst = set.AppendFiring(v.firing[:0], v.rules)
	return v, nil
}

// set stores a signal's value if it is not older than the one it has.
func (v *vehicle) set(id telemetry.SignalID, value float64, at int64) {
	for int(id) >= len(v.values.T) {
		v.values.T = append(v.values.T, 0)
		v.values.V = append(v.values.V, 0)
	}
	if at >= v.values.T[id] {
		v.values.T[id], v.values.V[id] = at, value
	}
}

// publish returns a snapshot that the caller may keep.
func (v *vehicle) publish(cat *telemetry.Catalog, conn Connectivity) Vehicle {
	p := Vehicle{
		ID: v.id, Connectivity: conn, EventTime: v.newest, ArrivalTime: v.arrival,
		HasPlace: v.placeTime != 0, Lat: v.lat, Lon: v.lon, PlaceTime: v.placeTime,
		Status: v.status, Readings: v.readings, Severity: v.worst,
		Firing: append([]string(nil), v.firing...),
	}
	for id, t := range v.values.T {
		if t == 0 {
			continue
		}
		d := cat.Def(telemetry.SignalID(id)) //nolint:gosec // bounded by MaxSignals
		p.Signals = append(p.Signals, SignalValue{Name: d.Name, Unit: d.Unit, Value: v.values.V[id], Time: t})
	}
	// Well-known signals in catalog order, the others by name: their IDs differ from run to run.
	known := 0
	for known < len(p.Signals) && known < telemetry.WellKnown && isWellKnown(cat, p.Signals[known].Name) {
		known++
	}
	slices.SortFunc(p.Signals[known:], func(a, b SignalValue) int { return strings.Compare(a.Name, b.Name) })
	return p
}

func isWellKnown(cat *telemetry.Catalog, name string) bool {
	id, ok := cat.Lookup([]byte(name))
	return ok && int(id) < telemetry.WellKnown
}
