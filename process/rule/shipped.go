package rule

import (
	"maps"
	"slices"
	"time"
)

// Shipped returns the rules that come with Milepost. Every threshold is a parameter, so that a fleet changes it, or one
// vehicle's, without writing the condition again.
func Shipped() []Spec {
	return []Spec{
		{
			Name: "overspeed", Severity: Warning,
			Summary: "{vehicle} drives at {value} {unit}, limit {limit} {unit}",
			When:    "speed > limit", For: 30 * time.Second,
			Clear:  "speed < limit - 5", // hysteresis: 79–81 km/h is one episode, not ten
			Params: map[string]float64{"limit": 80},
		},
		{
			Name: "engine_temperature", Severity: Warning,
			Summary: "{vehicle}: engine at {value} {unit}, limit {limit} {unit}; plan a stop",
			When:    "engine_temp >= limit", For: 60 * time.Second,
			Clear: "engine_temp < limit - 5", ClearFor: 30 * time.Second,
			Params: map[string]float64{"limit": 105},
		},
		{
			Name: "engine_overheating", Severity: Critical,
			Summary: "{vehicle}: engine at {value} {unit}, limit {limit} {unit}; stop now",
			When:    "engine_temp >= limit", For: 20 * time.Second,
			Clear: "engine_temp < limit - 4", ClearFor: 30 * time.Second,
			Params: map[string]float64{"limit": 112},
		},
		{
			// Supply pressure differs by engine: 44 kPa is usual where this rule's default fits, a diesel's lift pump gives 300
			// and more. With the engine off the pressure falls to nothing and means nothing, so one sign of a running engine
			// must be known; which one depends on the device.
			Name: "fuel_pressure_low", Severity: Warning,
			Summary: "{vehicle}: fuel pressure {value} {unit}, should be above {limit} {unit}",
			When:    `fuel_pressure < limit && (rpm >= 300 || speed > 5 || status == "moving")`, For: 30 * time.Second,
			Clear: "fuel_pressure > limit + 5", ClearFor: 10 * time.Second,
			Params: map[string]float64{"limit": 30},
		},
		{
			// Chilled goods. DOMAIN practice warns after 15 min; two minutes let a demonstration be seen and a door be opened.
			// A vehicle without cargo_temp is unknown and never judged. Reefers send every few minutes: hence the wide gap.
			Name: "cargo_temperature", Severity: Warning,
			Summary: "{vehicle}: cargo at {value} {unit}, limit {limit} {unit}",
			When:    "cargo_temp < low || cargo_temp > high", For: 2 * time.Minute,
			Clear: "cargo_temp >= low + 0.5 && cargo_temp <= high - 0.5", ClearFor: time.Minute,
			Params: map[string]float64{"low": 2, "high": 8}, Gap: 10 * time.Minute,
		},
		{
			Name: "device_offline", Kind: Offline, Severity: Warning,
			Summary: "{vehicle}: no data for {value} {unit}",
			Silence: DefaultSilence,
		},
	}
}

// Extend lays own over base: a rule of a new name is added; one of a known name changes the fields it sets, parameters name
// by name, and adds its overrides. "name: overspeed, params: {limit: 90}" is the shipped rule at 90 km/h.
func Extend(base, own []Spec) []Spec {
	out := slices.Clone(base)
	for _, o := range own {
		i := slices.IndexFunc(out, func(s Spec) bool { return s.Name == o.Name })
		if i < 0 {
			out = append(out, o)
			continue
		}
		out[i] = out[i].extended(o)
	}
	return out
}

func (s Spec) extended(o Spec) Spec {
	set(&s.Kind, o.Kind)
	set(&s.Severity, o.Severity)
	set(&s.Summary, o.Summary)
	set(&s.Unit, o.Unit)
	if o.When != "" && o.When != s.When {
		// The old clear condition and parameters belonged to the old condition.
		s.When, s.Clear, s.ClearFor, s.Params = o.When, "", 0, nil
	}
	set(&s.For, o.For)
	set(&s.Clear, o.Clear)
	set(&s.ClearFor, o.ClearFor)
	set(&s.Silence, o.Silence)
	set(&s.Gap, o.Gap)
	set(&s.MaxAge, o.MaxAge)
	set(&s.Reopen, o.Reopen)
	s.Disabled = s.Disabled || o.Disabled
	if len(o.Params) > 0 {
		p := maps.Clone(s.Params)
		if p == nil {
			p = map[string]float64{}
		}
		maps.Copy(p, o.Params)
		s.Params = p
	}
	s.Overrides = slices.Concat(s.Overrides, o.Overrides)
	return s
}

func set[T comparable](dst *T, v T) {
	var zero T
	if v != zero {
		*dst = v
	}
}
