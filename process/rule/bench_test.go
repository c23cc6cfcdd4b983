package rule

import (
	"testing"

	"github.com/milepost/milepost/telemetry"
)

// benchReadings are a minute of a truck that is well, with the six signals of the seed reading.
func benchSetup(b *testing.B, specs []Spec) (*Set, *Values, Input) {
	b.Helper()
	cat := telemetry.NewCatalog()
	set, err := Compile(specs, cat)
	if err != nil {
		b.Fatal(err)
	}
	in := Input{Status: true, Changed: []telemetry.Signal{
		{ID: telemetry.Speed, Value: 63.2},
		{ID: telemetry.Heading, Value: 181},
		{ID: telemetry.Fuel, Value: 55.1},
		{ID: telemetry.EngineTemp, Value: 92.4},
		{ID: telemetry.FuelPressure, Value: 44},
		{ID: telemetry.CargoTemp, Value: 3.8},
	}}
	v := &Values{V: make([]float64, cat.Len()), T: make([]int64, cat.Len()), Status: "moving"}
	for _, s := range in.Changed {
		v.V[s.ID] = s.Value
	}
	return set, v, in
}

func benchEval(b *testing.B, specs []Spec) {
	set, v, in := benchSetup(b, specs)
	st := make([]State, set.Len())
	bound := set.Bind("T100")
	out := make([]Transition, 0, 8)
	now := scenarioStart()
	b.ReportAllocs()
	for b.Loop() {
		now += 1000
		in.Time, in.Arrival, v.StatusT = now, now, now
		for i := range in.Changed {
			v.T[in.Changed[i].ID] = now
		}
		out = bound.Eval(st, v, in, out[:0])
	}
	if len(out) != 0 {
		b.Fatal("the truck should be well")
	}
}

func BenchmarkEvalShipped(b *testing.B) { benchEval(b, Shipped()) }

func BenchmarkEvalOne(b *testing.B) { benchEval(b, Shipped()[:1]) }

func BenchmarkEvalCEL(b *testing.B) {
	benchEval(b, []Spec{{Name: "slow", When: "speed * 2.0 > 400.0"}})
}

func BenchmarkAppendState(b *testing.B) {
	set, _, _ := benchSetup(b, Shipped())
	st := make([]State, set.Len())
	for i := range st {
		st[i] = State{Last: scenarioStart() + int64(i)}
	}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = set.AppendState(buf[:0], st)
	}
	b.ReportMetric(float64(len(buf)), "bytes")
}

func BenchmarkDecodeState(b *testing.B) {
	set, _, _ := benchSetup(b, Shipped())
	st := make([]State, set.Len())
	for i := range st {
		st[i] = State{Last: scenarioStart() + int64(i)}
	}
	buf := set.AppendState(nil, st)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := set.DecodeState(buf, st); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTick(b *testing.B) {
	set, _, _ := benchSetup(b, Shipped())
	st := make([]State, set.Len())
	bound := set.Bind("T100")
	var out []Transition
	now := scenarioStart()
	b.ReportAllocs()
	for b.Loop() {
		out = bound.Tick(st, now, now+1000, now, out[:0])
	}
}
