package telemetry

import (
	"maps"
	"sync"
	"sync/atomic"
)

// A SignalID names a signal inside one process. IDs of the well-known signals below are constants; the others are handed
// out as names appear and differ from run to run, so only names are ever stored.
type SignalID uint16

// The well-known signals, in catalog order.
const (
	Speed SignalID = iota
	Heading
	Fuel
	EngineTemp
	FuelPressure
	CargoTemp
	RPM
	Odometer
	Battery
	Altitude
	Accuracy
	wellKnown // how many there are
)

// WellKnown is the number of well-known signals: IDs below it are constants with a column of their own in the archive.
const WellKnown = int(wellKnown)

// MaxSignals bounds the names one process learns, so that a device inventing names cannot fill memory.
const MaxSignals = 4096

// MaxSignalName is the longest accepted signal name in bytes.
const MaxSignalName = 64

// A Def is a signal's entry in the Catalog.
type Def struct {
	Name string
	Unit string  // as shown to people: "km/h", "°C", "kPa", "%", "m", "rpm", "V", "deg"; "" if unknown
	Min  float64 // plausible range, inclusive; Min == Max == 0 means any value
	Max  float64
	Hash uint64 // of Name; stable across processes, for payload hashes
}

// Plausible tells whether v lies in the signal's plausible range.
func (d *Def) Plausible(v float64) bool {
	return (d.Min == 0 && d.Max == 0) || (v >= d.Min && v <= d.Max)
}

// A Catalog maps signal names to IDs and definitions. It is safe for concurrent use; look-ups take no lock.
type Catalog struct {
	mu  sync.Mutex // serializes writers
	cur atomic.Pointer[catalogView]
}

type catalogView struct {
	ids  map[string]SignalID
	defs []Def
}

// NewCatalog returns a catalog of the well-known signals and the given further ones. A further definition with a well-known
// name replaces its unit and range.
func NewCatalog(more ...Def) *Catalog {
	v := &catalogView{ids: map[string]SignalID{}}
	for _, d := range wellKnownDefs() {
		v.add(d)
	}
	for _, d := range more {
		if id, ok := v.ids[d.Name]; ok {
			d.Hash = v.defs[id].Hash
			v.defs[id] = d
			continue
		}
		v.add(d)
	}
	c := &Catalog{}
	c.cur.Store(v)
	return c
}

func wellKnownDefs() []Def {
	return []Def{
		Speed:        {Name: "speed", Unit: "km/h", Min: 0, Max: 400},
		Heading:      {Name: "heading", Unit: "deg", Min: 0, Max: 360},
		Fuel:         {Name: "fuel", Unit: "%", Min: 0, Max: 100},
		EngineTemp:   {Name: "engine_temp", Unit: "°C", Min: -60, Max: 250},
		FuelPressure: {Name: "fuel_pressure", Unit: "kPa", Min: 0, Max: 300_000},
		CargoTemp:    {Name: "cargo_temp", Unit: "°C", Min: -100, Max: 80},
		RPM:          {Name: "rpm", Unit: "rpm", Min: 0, Max: 20_000},
		Odometer:     {Name: "odometer", Unit: "m", Min: 0, Max: 1e11},
		Battery:      {Name: "battery", Unit: "V", Min: 0, Max: 1500},
		Altitude:     {Name: "altitude", Unit: "m", Min: -500, Max: 20_000},
		Accuracy:     {Name: "accuracy", Unit: "m", Min: 0, Max: 1e6},
	}
}

// Lookup returns the ID of a name that the catalog knows. It allocates nothing.
func (c *Catalog) Lookup(name []byte) (SignalID, bool) {
	id, ok := c.cur.Load().ids[string(name)]
	return id, ok
}

// Intern returns the ID of a name and learns it if it is new. False: the catalog is full, or the name is empty, too long or
// not printable.
func (c *Catalog) Intern(name string) (SignalID, bool) {
	v := c.cur.Load()
	if id, ok := v.ids[name]; ok {
		return id, true
	}
	// A full catalog answers without the lock, or a device that goes on inventing names would make the others wait (P8).
	if len(v.defs) >= MaxSignals || name == "" || len(name) > MaxSignalName || !printable(name) {
		return 0, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.cur.Load()
	if id, ok := old.ids[name]; ok {
		return id, true
	}
	if len(old.defs) >= MaxSignals {
		return 0, false
	}
	v = &catalogView{ids: maps.Clone(old.ids), defs: append([]Def(nil), old.defs...)}
	id := v.add(Def{Name: string([]byte(name))})
	c.cur.Store(v)
	return id, true
}

// Def returns a signal's definition; id must come from this catalog. The result is shared: do not write to it.
func (c *Catalog) Def(id SignalID) *Def { return &c.cur.Load().defs[id] }

// Len returns how many signals the catalog knows; IDs are 0 ≤ id < Len.
func (c *Catalog) Len() int { return len(c.cur.Load().defs) }

func (v *catalogView) add(d Def) SignalID {
	id := SignalID(len(v.defs)) //nolint:gosec // bounded by MaxSignals
	d.Hash = HashName(d.Name)
	v.ids[d.Name] = id
	v.defs = append(v.defs, d)
	return id
}

// HashName is 64-bit FNV-1a: stable for ever, because payload hashes and keys of rule state made of it are stored (P6).
func HashName(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}
