package archive

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// A Lake describes made-up history for benchmarks: the same description gives the same rows.
type Lake struct {
	From     time.Time     // first moment
	Days     int           // 0: 1
	Vehicles int           // 0: 1000
	Every    time.Duration // between readings of a vehicle; 0: 30 s
	Shards   int           // 0: 4
	Seed     uint64
}

// Generate fills an archive with a lake, through its lanes as the flow does, and flushes it. It returns how many rows.
func Generate(ctx context.Context, a *Archive, lake Lake) (int64, error) {
	setDefault(&lake.Days, 1)
	setDefault(&lake.Vehicles, 1000)
	setDefault(&lake.Every, 30*time.Second)
	setDefault(&lake.Shards, 4)
	lanes := make([]*Lane, lake.Shards)
	for i := range lanes {
		var err error
		if lanes[i], err = a.Lane(ctx, stream.ShardID(fmt.Sprintf("lake-%012d", i))); err != nil {
			return 0, err
		}
	}
	rng := rand.New(rand.NewPCG(lake.Seed, 0)) //nolint:gosec // made-up data
	fleet := make([]madeUp, lake.Vehicles)
	for i := range fleet {
		fleet[i] = newMadeUp(i, rng)
	}
	start, step := lake.From.UnixMilli(), lake.Every.Milliseconds()
	steps := int64(lake.Days) * dayMillis / step
	seq := 0
	rows := int64(0)
	for at := range steps {
		ms := start + at*step
		seq++
		p := stream.Position(fmt.Sprintf("%016d", seq))
		for i := range fleet {
			r := fleet[i].drive(ms+int64(i)*step/int64(len(fleet)), rng)
			if err := lanes[i%len(lanes)].Add(ctx, p, r); err != nil {
				return rows, err
			}
			rows++
		}
		for _, l := range lanes {
			l.Advance(p)
		}
	}
	return rows, a.Flush(ctx)
}

// madeUp is a vehicle of a lake. Its values have the resolution of real sensors, because that decides how they compress.
type madeUp struct {
	r                          telemetry.Reading
	speed, heading, fuel, temp float64
	signals                    [6]telemetry.Signal
}

func newMadeUp(i int, rng *rand.Rand) madeUp {
	return madeUp{
		r: telemetry.Reading{
			Vehicle: fmt.Sprintf("truck-%05d", i), Lat: 30 + 15*rng.Float64(), Lon: -120 + 40*rng.Float64(),
		},
		heading: 360 * rng.Float64(), fuel: 20 + 80*rng.Float64(), temp: 88,
	}
}

func (v *madeUp) drive(ms int64, rng *rand.Rand) *telemetry.Reading {
	v.speed = max(0, min(110, v.speed+8*rng.NormFloat64()+(60-v.speed)/30))
	v.heading = math.Mod(v.heading+5*rng.NormFloat64()+360, 360)
	if v.fuel -= v.speed / 4e4; v.fuel < 10 {
		v.fuel = 95
	}
	v.temp += (90+v.speed/20-v.temp)/20 + 0.2*rng.NormFloat64()
	metres := v.speed / 3.6 * 10
	v.r.Lat = round(v.r.Lat+metres*math.Cos(v.heading*math.Pi/180)/111_000, 1e5)
	v.r.Lon = round(v.r.Lon+metres*math.Sin(v.heading*math.Pi/180)/80_000, 1e5)
	v.r.Time, v.r.Arrival = ms, ms+int64(20+rng.IntN(200))
	v.r.Status = "moving"
	if v.speed < 3 {
		v.r.Status = "idle"
	}
	v.signals = [6]telemetry.Signal{
		{ID: telemetry.Speed, Value: round(v.speed, 10)},
		{ID: telemetry.Heading, Value: math.Round(v.heading)},
		{ID: telemetry.Fuel, Value: round(v.fuel, 10)},
		{ID: telemetry.EngineTemp, Value: round(v.temp, 10)},
		{ID: telemetry.FuelPressure, Value: math.Round(44 + rng.NormFloat64())},
		{ID: telemetry.CargoTemp, Value: round(4+rng.NormFloat64()/4, 10)},
	}
	v.r.Signals = v.signals[:]
	return &v.r
}

func round(v, steps float64) float64 { return math.Round(v*steps) / steps }
