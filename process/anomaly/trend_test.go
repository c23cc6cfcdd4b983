package anomaly

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/milepost/milepost/telemetry"
)

func TestTheilSenIsTheMedianOfAllSlopes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	var scratch []float64
	for range 300 {
		n := 2 + rng.IntN(40)
		r, at := make([]float64, n), make([]int64, n)
		bucket := int64(0)
		for i := range r {
			bucket += 1 + rng.Int64N(3)
			r[i], at[i] = math.Round(rng.NormFloat64()*4), bucket // with ties
		}
		var all []float64
		for i := range r {
			for j := range i {
				all = append(all, (r[i]-r[j])/(float64(at[i]-at[j])*0.5))
			}
		}
		slices.Sort(all)
		var got float64
		if got, scratch = theilSen(r, at, 0.5, scratch); got != all[len(all)/2] {
			t.Fatalf("%v at %v: got %v, want %v", r, at, got, all[len(all)/2])
		}
	}
}

// story drives one truck: a reading each 10 s, its temperature by f of the minute, and returns the minutes at which alerts begin and
// end, with what they say.
func story(t *testing.T, minutes int, f func(minute float64) (temp, rpm float64)) (lines []string, at []int) {
	t.Helper()
	cat := telemetry.NewCatalog()
	w := NewWatch(mustCompile(t, Shipped()[:1], cat), "truck-1")
	start := time.Date(2026, 6, 1, 8, 0, 0, 0, time.UTC).UnixMilli()
	rng := rand.New(rand.NewPCG(2, 2))
	for i := range minutes * 6 {
		temp, rpm := f(float64(i) / 6)
		rd := telemetry.Reading{Vehicle: "truck-1", Time: start + int64(i)*10_000, Arrival: start + int64(i)*10_000, Signals: []telemetry.Signal{
			{ID: telemetry.EngineTemp, Value: temp + rng.NormFloat64()*0.5}, {ID: telemetry.Speed, Value: 70}, {ID: telemetry.RPM, Value: rpm},
		}}
		found, _, err := w.Observe(&rd, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range found {
			lines, at = append(lines, x.Transition.To.String()+" "+x.Summary), append(at, i/6)
		}
	}
	return lines, at
}

func TestTrend(t *testing.T) {
	// A leak of 0.5 °C a minute is seen early, once, and ends when the engine has cooled.
	lines, at := story(t, 300, func(m float64) (float64, float64) {
		switch {
		case m < 200:
			return 88, 1200
		case m < 230:
			return 88 + (m-200)*0.5, 1200
		}
		return 88, 1200
	})
	if len(lines) != 2 || at[0] < 203 || at[0] > 215 || !strings.HasPrefix(lines[0], "firing truck-1: engine_temp ") ||
		!strings.Contains(lines[0], "above its normal and rises") || !strings.Contains(lines[0], "105 °C in about") || !strings.HasPrefix(lines[1], "resolved") {
		t.Errorf("leak: %q at minutes %v", lines, at)
	}
	for name, f := range map[string]func(m float64) (float64, float64){
		"healthy": func(float64) (float64, float64) { return 88, 1200 },
		"cold starts": func(m float64) (float64, float64) {
			if math.Mod(m, 60) < 20 {
				return 60, 0
			}
			return 88 - 28*math.Exp(-(math.Mod(m, 60)-20)/4), 1200
		},
		"a glitch a minute": func(m float64) (float64, float64) {
			if math.Mod(m, 1) < 0.01 {
				return 104, 1200
			}
			return 88, 1200
		},
		"warm days":     func(m float64) (float64, float64) { return 88 + 3*math.Sin(m/60), 1200 },
		"known to none": func(m float64) (float64, float64) { return 88 + m, 1200 }, // nothing is normal yet
	} {
		minutes := 400
		if name == "known to none" {
			minutes = 15
		}
		if lines, at := story(t, minutes, f); len(lines) != 0 {
			t.Errorf("%s: %q at minutes %v", name, lines, at)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	for want, d := range map[string]Detector{
		"kind":      {Name: "x", Kind: "magic"},
		"votes":     {Name: "x", Kind: Trend, Votes: 4, Of: 3},
		"glob":      {Name: "x", Kind: Trend, Vehicles: "[a"},
		"timeDecay": {Name: "x", Kind: RCF, TimeDecay: 7},
		"about":     {Name: "x", Kind: RCF, About: []string{"oil"}},
		"window":    {Name: "x", Kind: Trend, Window: 10 * time.Hour},
		"name":      {Name: "no name", Kind: Trend},
	} {
		if _, err := Compile([]Detector{d}, 0, telemetry.NewCatalog()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v, want an error about %s", d, err, want)
		}
	}
}
