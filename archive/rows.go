package archive

import (
	"math"

	"github.com/milepost/milepost/telemetry"
)

// Rows are some readings in columns of equal length, shared with the tail: do not write to them. They stay valid for ever.
type Rows struct {
	Names   []string // what Vehicle and Status index; Status 0: none
	Vehicle []uint32
	Status  []uint32
	Event   []int64 // Unix ms UTC
	Arrival []int64
	Lat     []float64 // meaningful where Flags say so
	Lon     []float64
	Flags   []telemetry.Flags
	Has     []uint32                       // bit s: Signal[s] holds a value of the row
	Signal  [telemetry.WellKnown][]float64 // nil: no row has it

	lo       int
	otherEnd []uint32
	other    []telemetry.Signal
}

// Len is how many rows there are.
func (r *Rows) Len() int { return len(r.Event) }

// Others returns the signals of row i that have no column of their own.
func (r *Rows) Others(i int) []telemetry.Signal {
	if r.otherEnd == nil {
		return nil
	}
	from := uint32(0)
	if r.lo+i > 0 {
		from = r.otherEnd[r.lo+i-1]
	}
	return r.other[from:r.otherEnd[r.lo+i]]
}

// HasOthers tells whether any row may have such signals.
func (r *Rows) HasOthers() bool { return r.otherEnd != nil }

func (c *chunk) view(lo, hi int) Rows {
	r := Rows{
		Names: c.names, Vehicle: c.vehicle[lo:hi], Status: c.status[lo:hi],
		Event: c.event[lo:hi], Arrival: c.arrival[lo:hi], Lat: c.lat[lo:hi], Lon: c.lon[lo:hi],
		Flags: c.flags[lo:hi], Has: c.has[lo:hi],
		lo: lo, otherEnd: c.otherEnd, other: c.pubOther,
	}
	for s, col := range c.signal {
		if col != nil {
			r.Signal[s] = col[lo:hi]
		}
	}
	return r
}

const dayMillis = 24 * 60 * 60 * 1000

// Day returns the event day of a time, in days since 1970-01-01 UTC.
func Day(ms int64) int32 {
	d := ms / dayMillis
	if ms%dayMillis < 0 {
		d--
	}
	return int32(max(min(d, math.MaxInt32), math.MinInt32)) //nolint:gosec // clamped
}
