package fleet

import (
	"encoding/binary"
	"errors"
	"math"

	"github.com/milepost/milepost/internal/binenc"
)

// A daily holds the figures of one vehicle on one UTC day. Sums are kept in whole millionths, so that the same readings give
// the same figures in whatever order they come: floating-point addition would not.
type daily struct {
	readings uint64
	nSpeed   uint64
	sumSpeed int64 // 1e-6 km/h
	maxSpeed float64
	nFuel    uint64
	sumFuel  int64 // 1e-6 %
	first    int64 // event time of the first and the last reading, Unix ms
	last     int64
	dirty    bool
}

const micro = 1e6

func (d *daily) add(at int64) {
	if d.readings == 0 || at < d.first {
		d.first = at
	}
	if d.readings == 0 || at > d.last {
		d.last = at
	}
	d.readings++
	d.dirty = true
}

func (d *daily) addSpeed(kmh float64) {
	if d.nSpeed == 0 || kmh > d.maxSpeed {
		d.maxSpeed = kmh
	}
	d.nSpeed++
	d.sumSpeed += int64(math.Round(kmh * micro))
}

func (d *daily) addFuel(percent float64) {
	d.nFuel++
	d.sumFuel += int64(math.Round(percent * micro))
}

const dailyVersion = 1

func (d *daily) encode(buf []byte) []byte {
	buf = append(buf[:0], dailyVersion)
	buf = binary.AppendUvarint(buf, d.readings)
	buf = binary.AppendUvarint(buf, d.nSpeed)
	buf = binary.AppendVarint(buf, d.sumSpeed)
	buf = binenc.AppendFloat(buf, d.maxSpeed)
	buf = binary.AppendUvarint(buf, d.nFuel)
	buf = binary.AppendVarint(buf, d.sumFuel)
	buf = binary.AppendVarint(buf, d.first)
	return binary.AppendVarint(buf, d.last-d.first)
}

var errCorrupt = errors.New("corrupt fleet state")

// reader reads what the encoders of this package wrote.
func reader(b []byte) binenc.Reader { return binenc.Reader{B: b, Damaged: errCorrupt} }

func decodeDaily(b []byte) (daily, error) {
	r := reader(b)
	if v := r.Byte(); v != dailyVersion {
		return daily{}, errCorrupt
	}
	var d daily
	d.readings = r.Uvarint()
	d.nSpeed = r.Uvarint()
	d.sumSpeed = r.Varint()
	d.maxSpeed = r.Float()
	d.nFuel = r.Uvarint()
	d.sumFuel = r.Varint()
	d.first = r.Varint()
	d.last = d.first + r.Varint()
	return d, r.Err
}

// A Daily is the published form of one vehicle's day. Averages are NaN when no reading carried the signal.
type Daily struct {
	Day                         int32 // days since 1970-01-01, UTC
	Vehicle                     string
	Readings                    uint64
	AvgSpeed, MaxSpeed, AvgFuel float64
	First, Last                 int64 // event times, Unix ms
}

func (d *daily) publish(day int32, vehicle string) Daily {
	p := Daily{
		Day: day, Vehicle: vehicle, Readings: d.readings, First: d.first, Last: d.last,
		AvgSpeed: math.NaN(), MaxSpeed: math.NaN(), AvgFuel: math.NaN(),
	}
	if d.nSpeed > 0 {
		p.AvgSpeed, p.MaxSpeed = float64(d.sumSpeed)/float64(d.nSpeed)/micro, d.maxSpeed
	}
	if d.nFuel > 0 {
		p.AvgFuel = float64(d.sumFuel) / float64(d.nFuel) / micro
	}
	return p
}
