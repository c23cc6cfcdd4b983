package telemetry

import (
	"fmt"
	"strings"
)

// A unit is a unit that senders use beside the catalog's: a value v in it is (v+Add)·Mul/Div in Canonical. The factors are
// exact in decimal, so one rounding or two is all the conversion costs.
type unit struct {
	Names         []string // the first one is shown
	Canonical     string   // as in Def.Unit
	Add, Mul, Div float64
}

// units lists the units that columns can be declared in.
//
// Sources: the international yard and pound agreement of 1959 (1 ft = 0.3048 m, 1 mi = 5280 ft, 1 lb = 0.45359237 kg), the
// international nautical mile of 1929 (1852 m), the definitions of the bar (100 kPa) and of the degree Fahrenheit, and
// standard gravity (9.80665 m/s², 3rd CGPM 1901) for the pound-force: 1 psi = 0.45359237 · 9.80665 / 0.0254² Pa.
func units() []unit {
	return []unit{
		{[]string{"kmh", "km/h", "kph"}, "km/h", 0, 1, 1},
		{[]string{"mph", "mi/h"}, "km/h", 0, 1.609344, 1},
		{[]string{"mps", "m/s"}, "km/h", 0, 3.6, 1},
		{[]string{"knots", "kn", "kt"}, "km/h", 0, 1.852, 1},
		{[]string{"c", "°C", "celsius"}, "°C", 0, 1, 1},
		{[]string{"f", "°F", "fahrenheit"}, "°C", -32, 5, 9},
		{[]string{"k", "kelvin"}, "°C", -273.15, 1, 1},
		{[]string{"m", "meters", "metres"}, "m", 0, 1, 1},
		{[]string{"km"}, "m", 0, 1000, 1},
		{[]string{"mi", "miles"}, "m", 0, 1609.344, 1},
		{[]string{"ft", "feet"}, "m", 0, 0.3048, 1},
		{[]string{"kpa", "kPa"}, "kPa", 0, 1, 1},
		{[]string{"psi"}, "kPa", 0, 0.45359237 * 9.80665, 0.0254 * 0.0254 * 1000},
		{[]string{"bar"}, "kPa", 0, 100, 1},
		{[]string{"percent", "%"}, "%", 0, 1, 1},
		{[]string{"fraction"}, "%", 0, 100, 1},
		{[]string{"v", "V", "volts"}, "V", 0, 1, 1},
		{[]string{"mv", "mV"}, "V", 0, 1, 1000},
		{[]string{"deg", "°"}, "deg", 0, 1, 1},
		{[]string{"rpm"}, "rpm", 0, 1, 1},
	}
}

// A Unit converts values into the unit of the catalog. The zero Unit changes nothing.
type Unit struct{ u unit }

// ParseUnit finds a unit by name and checks that it measures what def does.
func ParseUnit(name string, def *Def) (Unit, error) {
	var fitting []string
	for _, u := range units() {
		fits := def.Unit == "" || u.Canonical == def.Unit
		if fits {
			fitting = append(fitting, u.Names[0])
		}
		for _, n := range u.Names {
			switch {
			case n != name:
			case !fits:
				return Unit{}, fmt.Errorf("unit %s does not measure %s, which is in %s", name, def.Name, def.Unit)
			default:
				return Unit{u}, nil
			}
		}
	}
	return Unit{}, fmt.Errorf("unknown unit %q for %s: want one of %s", name, def.Name, strings.Join(fitting, ", "))
}

// Convert returns v, which is in the unit, in the catalog's unit.
func (u Unit) Convert(v float64) float64 {
	if u.u.Div == 0 {
		return v
	}
	return (v + u.u.Add) * u.u.Mul / u.u.Div
}
