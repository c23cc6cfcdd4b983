package rule

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"cel.dev/cel-go/cel"
	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/milepost/milepost/telemetry"
)

func compile(t testing.TB, specs ...Spec) *Set {
	t.Helper()
	s, err := Compile(specs, telemetry.NewCatalog())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCompileErrorsNameRulePlaceAndMend(t *testing.T) {
	f := func(s Spec, want string) {
		t.Helper()
		if s.Name == "" {
			s.Name = "r"
		}
		_, err := Compile([]Spec{s}, telemetry.NewCatalog())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q clear %q:\n got %v\nwant an error with %q", s.When, s.Clear, err, want)
		}
	}
	when := func(w, want string) { t.Helper(); f(Spec{When: w}, want) }
	when("sped > 80", "rule r: when, column 1: nothing is called sped; did you mean speed?")
	when("speed > 80 && enginetemp > 90", "column 15: nothing is called enginetemp; did you mean engine_temp?")
	when("speed > 80 &&\n  fule < 3", "line 2 column 3: nothing is called fule; did you mean fuel?")
	when("speed > xyzzyquux", "declare it as a signal or a parameter")
	when("speed = 80", "compare with ==")
	when("speed > 80 and fuel < 3", "write && for and")
	when("speed > 80 or fuel < 3", "write || for or")
	when("speed > 80 &&", "something is missing at the end")
	when("speed", "it yields double, not true or false")
	when("speed > 80 && fuel", "column 15: expected type 'bool' but found 'double'; && and || join comparisons")
	when(`status > 80`, "numbers compare with numbers, status with text in quotes")
	when(`speed == "fast"`, "numbers compare with numbers")
	when("[1, 2].exists(x, speed > x)", "nothing is called x")
	when("{1: 2}[1] > speed", "no maps")
	when("nosuch(speed)", "conditions know no functions of that name")
	when("engine.temp > 3", "nothing is called engine.temp")
	when("speed > "+strings.Repeat("(", 100)+"1"+strings.Repeat(")", 100), "when")
	when(strings.Repeat("speed > 1 && ", 400)+"speed > 1", "split the rule")
	when("", "when is missing")
	f(Spec{When: "speed > 80", Clear: "sped < 3"}, "clear, column 1: nothing is called sped")
	f(Spec{When: `status == "off"`, Clear: "below 3"}, "needs a signal in when")
	f(Spec{When: "speed > limt", Params: map[string]float64{"limit": 1}}, "nothing is called limt; did you mean limit?")
	f(Spec{When: "speed > 80", Params: map[string]float64{"limit": 1}}, "limit is used neither in when nor in clear")
	f(Spec{When: "speed > a", Params: map[string]float64{"a": math.NaN()}}, "not a number")
	f(Spec{When: "speed > 1 / a", Params: map[string]float64{"a": 0}}, "a threshold becomes +Inf")
	f(Spec{When: "speed > fuel", Params: map[string]float64{"fuel": 1}}, "fuel is a signal")
	f(Spec{When: "speed > 80", Params: map[string]float64{"a-b": 1}}, "cannot be used in a condition")
	f(Spec{When: "speed > 80", Severity: "fatal"}, "use info, warning or critical")
	f(Spec{When: "speed > 80", Kind: "sometimes"}, "use condition or offline")
	f(Spec{When: "speed > 80", Kind: Offline}, "kind offline takes silence only")
	f(Spec{When: "speed > 80", Silence: time.Minute}, "silence is for kind offline")
	f(Spec{When: "speed > 80", For: -1}, "for: -1ns is out of range")
	f(Spec{When: "speed > 80", Summary: "{vehicl} is fast"}, "no field {vehicl}; did you mean vehicle?")
	f(Spec{When: "speed > 80", Summary: "{vehicle is fast"}, "{ without }")
	f(Spec{When: "speed > 80", Name: "a b"}, "letters, digits, _ and -")
	f(Spec{When: "speed > a", Params: map[string]float64{"a": 1}, Overrides: []Override{{Vehicle: "x", Params: map[string]float64{"b": 1}}}}, "override of x: the rule has no parameter b")
	f(Spec{When: "speed > 1 / a", Params: map[string]float64{"a": 1}, Overrides: []Override{{Vehicle: "x", Params: map[string]float64{"a": 0}}}}, "override of x: a threshold becomes +Inf")
	f(Spec{When: "speed > 80", Overrides: []Override{{}}}, "override 1: vehicle is missing")
	f(Spec{When: "speed > 80", Overrides: []Override{{Vehicle: "[a"}}}, "not a glob")

	_, err := Compile([]Spec{{When: "speed > 1"}, {Name: "a", When: "x > 1"}, {Name: "b", When: "speed > 1"}, {Name: "b", When: "speed > 2"}}, telemetry.NewCatalog())
	for _, want := range []string{"rule (without a name): name is missing", "rule a: when", "rule b: its name is taken"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want all errors, also %q", err, want)
		}
	}
}

func TestShippedCompileAndSurviveYAML(t *testing.T) {
	text, err := yaml.Marshal(Shipped())
	if err != nil {
		t.Fatal(err)
	}
	var back []Spec
	if err := yaml.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Shipped(), back); d != "" {
		t.Errorf("through YAML (-want +got):\n%s", d)
	}
	set := compile(t, back...)
	for i := range set.Len() {
		for _, c := range []condition{set.rules[i].when, set.rules[i].clear} {
			if c.prog != nil {
				t.Errorf("%s needs cel-go: the shipped rules are meant to be fast", set.Spec(i).Name)
			}
		}
	}
}

func TestExtend(t *testing.T) {
	var own []Spec
	if err := yaml.Unmarshal([]byte(`
- {name: overspeed, params: {limit: 90}, overrides: [{vehicle: bus-1, params: {limit: 60}}]}
- {name: device_offline, silence: 30m}
- {name: engine_temperature, when: engine_temp > 99}
- {name: low_fuel, when: fuel < 10, for: 1m}
`), &own); err != nil {
		t.Fatal(err)
	}
	set := compile(t, Extend(Shipped(), own)...)
	f := func(rule, vehicle, want string) {
		t.Helper()
		i, ok := set.Find(rule)
		if !ok {
			t.Errorf("no rule %s", rule)
			return
		}
		if got := set.Bind(vehicle).Condition(i); got != want {
			t.Errorf("%s of %s: got %q, want %q", rule, vehicle, got, want)
		}
	}
	f("overspeed", "t", "speed > limit for 30s (limit 90)")
	f("overspeed", "bus-1", "speed > limit for 30s (limit 60)")
	f("device_offline", "t", "no data for 30m")
	f("engine_temperature", "t", "engine_temp > 99 for 1m")
	f("low_fuel", "t", "fuel < 10 for 1m")
	f("cargo_temperature", "t", "cargo_temp < low || cargo_temp > high for 2m (high 8, low 2)")
	if s := Shipped(); s[0].Params["limit"] != 80 {
		t.Error("Extend wrote to its argument")
	}
}

func TestSummary(t *testing.T) {
	f := func(spec Spec, tr Transition, want string) {
		t.Helper()
		spec.Name = "r"
		if got := compile(t, spec).Bind("truck-7").Summary(&tr, "truck-7"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	f(Spec{When: "speed > 80"}, Transition{Value: 86.449, Limit: 80}, "truck-7: speed 86.4 km/h, limit 80 km/h")
	f(Spec{When: "speed > 80", Unit: "kph", Summary: "{vehicle} {value} {unit} peak {peak} {severity} {rule} {for} {signal}", For: 90 * time.Second},
		Transition{Value: -0.01, Peak: 0.0312}, "truck-7 -0.01 kph peak 0.031 warning r 1m30s speed")
	f(Spec{When: `status == "sos"`}, Transition{}, "truck-7: r")
	f(Spec{When: "speed == 3"}, Transition{Value: 3}, "truck-7: r, speed 3 km/h")
	f(Spec{Kind: Offline}, Transition{Value: 10.5}, "truck-7: no data for 10m30s")
	f(Spec{Kind: Offline}, Transition{Value: 8.0 / 60}, "truck-7: no data for 8s")
	f(Spec{Kind: Offline}, Transition{Value: 26 * 60}, "truck-7: no data for 26h")
}

// TestFlatEqualsCEL runs random conditions over random values both ways.
func TestFlatEqualsCEL(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // reproducible
	signals := []string{"speed", "fuel", "engine_temp", "rpm"}
	ops := []string{"<", "<=", ">", ">=", "==", "!="}
	terms := []string{"10", "20.0", "a", "a + 5", "-b", "b * 2 - a", "(a + b) / 2", "30"}
	var gen func(depth int) string
	gen = func(depth int) string {
		pick := func(s []string) string { return s[r.IntN(len(s))] }
		if depth == 0 || r.IntN(4) == 0 {
			switch r.IntN(6) {
			case 0:
				return pick(terms) + " " + pick(ops) + " " + pick(signals)
			case 1:
				return `status ` + pick([]string{"==", "!="}) + ` "moving"`
			}
			return pick(signals) + " " + pick(ops) + " " + pick(terms)
		}
		switch r.IntN(3) {
		case 0:
			return "!(" + gen(depth-1) + ")"
		case 1:
			return "(" + gen(depth-1) + ") && (" + gen(depth-1) + ")"
		}
		return "(" + gen(depth-1) + ") || (" + gen(depth-1) + ")"
	}
	cat := telemetry.NewCatalog()
	params := map[string]float64{"a": 10, "b": -20}
	k, err := newChecker(cat)
	if err != nil {
		t.Fatal(err)
	}
	flat, outcomes := 0, map[truth]int{}
	for range 300 {
		text := gen(4)
		c, err := k.condition("when", text, []string{"a", "b"})
		if err != nil {
			t.Fatalf("seed %d: %s: %v", seed, text, err)
		}
		if c.prog != nil {
			continue
		}
		flat++
		s := &Set{}
		fast := c.bind(values([]string{"a", "b"}, params, nil), s)
		slowly := &slow{prog: slowProgram(t, k, c.uses, text), names: c.uses, params: []float64{10, -20}, faults: compile(t).faults}
		for range 50 {
			v := &Values{V: make([]float64, cat.Len()), T: make([]int64, cat.Len())}
			for i := range v.V {
				v.V[i] = float64(r.IntN(9)*5 - 10)
				v.T[i] = []int64{0, 50, 990, 1000}[r.IntN(4)]
			}
			v.Status, v.StatusT = []string{"", "moving", "off"}[r.IntN(3)], []int64{0, 50, 1000}[r.IntN(3)]
			got, want := fast.eval(v, 1000, 500), slowly.eval(v, 1000, 500)
			outcomes[got]++
			if got != want {
				t.Fatalf("seed %d: %s over %+v: flat %d, cel-go %d", seed, text, v, got, want)
			}
		}
	}
	if flat < 200 || outcomes[no] == 0 || outcomes[yes] == 0 || outcomes[unknown] == 0 {
		t.Errorf("seed %d: %d of 300 flat, outcomes %v: the test no longer tests", seed, flat, outcomes)
	}
}

// slowProgram compiles a condition for cel-go although it has a flat form.
func slowProgram(t testing.TB, k *checker, uses map[string]name, text string) cel.Program {
	t.Helper()
	var vars []cel.EnvOption
	for n, u := range uses {
		typ := cel.DoubleType
		if u.kind == nameStatus {
			typ = cel.StringType
		}
		vars = append(vars, cel.Variable(n, typ))
	}
	env, err := k.env.Extend(vars...)
	if err != nil {
		t.Fatal(err)
	}
	parsed, iss := env.Parse(text)
	if iss.Err() != nil {
		t.Fatal(iss.Err())
	}
	w := &walker{k: k, params: []string{"a", "b"}, info: parsed.NativeRep().SourceInfo(), uses: map[string]name{}}
	w.walk(parsed.NativeRep().Expr())
	checked, iss := env.Check(parsed)
	if iss.Err() != nil {
		t.Fatal(iss.Err())
	}
	p, err := env.Program(checked, cel.CostLimit(costLimit))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConditionsThatNeedCEL(t *testing.T) {
	f := func(when string, speed float64, status string, want truth) {
		t.Helper()
		set := compile(t, Spec{Name: "r", When: when})
		if set.rules[0].when.prog == nil {
			t.Errorf("%s: flat, so this tests nothing", when)
		}
		v := &Values{V: make([]float64, telemetry.WellKnown), T: make([]int64, telemetry.WellKnown), Status: status, StatusT: 1000}
		v.V[telemetry.Speed], v.T[telemetry.Speed] = speed, 1000
		if got := set.base.rules[0].when.eval(v, 1000, 900_000); got != want {
			t.Errorf("%s at %v %q: got %d, want %d", when, speed, status, got, want)
		}
		if n := set.Faults(); n != 0 {
			t.Errorf("%s: %d faults", when, n)
		}
	}
	f("speed * 3.6 > 100.0", 30, "", yes)
	f("speed / 2 > 100", 30, "", no)
	f(`status.startsWith("mov")`, 0, "moving", yes)
	f(`status.startsWith("mov")`, 0, "", unknown)
	f(`status.matches("^(a|b)$") || speed > 5`, 6, "", yes)
	f("speed - fuel > 5", 6, "", unknown)
	f("speed - fuel > 5 && speed > 10", 6, "", no)
	f("speed > 5 ? status == \"off\" : speed < 2", 6, "off", yes)
	f("speed > 5 ? status == \"off\" : fuel < 2", 1, "off", unknown)
	f("speed in [1, 2, 3]", 2, "", yes)
	f("1 < 2 && speed > 1", 2, "", yes)
	f("fuel > speed", 2, "", unknown)
}

func TestCostLimitMakesAConditionUnknown(t *testing.T) {
	when := `(` + strings.Repeat("status + ", 60) + `status).matches("(a*)*(b|a)*c")`
	set := compile(t, Spec{Name: "r", When: when})
	v := &Values{V: make([]float64, telemetry.WellKnown), T: make([]int64, telemetry.WellKnown), Status: strings.Repeat("a", 100_000), StatusT: 1000}
	if got := set.base.rules[0].when.eval(v, 1000, 900_000); got != unknown || set.Faults() != 1 {
		t.Errorf("got %d and %d faults, want unknown and one fault", got, set.Faults())
	}
}

func TestBindSharesWhatIsTheSame(t *testing.T) {
	off := true
	set := compile(t, Spec{Name: "r", When: "speed > limit", Params: map[string]float64{"limit": 80}, Overrides: []Override{
		{Vehicle: "bus-*", Params: map[string]float64{"limit": 100}}, {Vehicle: "x", Disabled: &off},
	}})
	if set.Bind("a") != set.Bind("b") || set.Bind("bus-1") != set.Bind("bus-2") {
		t.Error("vehicles with the same overrides do not share")
	}
	if set.Bind("a") == set.Bind("bus-1") || set.Bind("a") == set.Bind("x") {
		t.Error("vehicles with different overrides share")
	}
}

func TestPeakIsTheWorstNotTheLargest(t *testing.T) {
	f := func(when string, values []float64, want, limit float64) {
		t.Helper()
		set := compile(t, Spec{Name: "r", When: when})
		st, b := make([]State, 1), set.Bind("v")
		v := &Values{V: make([]float64, telemetry.WellKnown), T: make([]int64, telemetry.WellKnown)}
		var out []Transition
		for i, x := range values {
			now := int64(1000 * (i + 1))
			v.V[telemetry.CargoTemp], v.T[telemetry.CargoTemp] = x, now
			in := Input{Time: now, Arrival: now, Changed: []telemetry.Signal{{ID: telemetry.CargoTemp, Value: x}}}
			out = b.Eval(st, v, in, out)
		}
		last := out[len(out)-1]
		if last.To != Resolved || last.Peak != want || last.Limit != limit {
			t.Errorf("%s over %v: got %+v, want peak %v limit %v", when, values, last, want, limit)
		}
	}
	f("cargo_temp > 8", []float64{9, 12, 10, 5}, 12, 8)
	f("cargo_temp < 2", []float64{1, -3, 0, 5}, -3, 2)
	f("!(cargo_temp >= 2)", []float64{1, -3, 0, 5}, -3, 2)
	f("2 > cargo_temp", []float64{1, -3, 0, 5}, -3, 2)
	f("cargo_temp < 2 || cargo_temp > 8", []float64{9, 1.5, 12, -4, 5}, -4, 2)
	f("cargo_temp * 1.0 < 2.0 && cargo_temp < 3", []float64{1, -3, 0, 5}, -3, 3)
}

func TestManyRulesUseEveryWordOfTheMask(t *testing.T) {
	var specs []Spec
	for i := range 150 {
		specs = append(specs, Spec{Name: "r" + string(rune('a'+i/26)) + string(rune('a'+i%26)), When: "speed > limit", Params: map[string]float64{"limit": float64(i)}})
	}
	set := compile(t, specs...)
	st := make([]State, set.Len())
	v := &Values{V: []float64{99.5}, T: []int64{1000}}
	in := Input{Time: 1000, Arrival: 1000, Changed: []telemetry.Signal{{ID: telemetry.Speed, Value: 99.5}}}
	if out := set.Bind("v").Eval(st, v, in, nil); len(out) != 100 || out[99].Rule != 99 {
		t.Errorf("%d rules fired, want those with limits 0 to 99", len(out))
	}
	if _, err := Compile(make([]Spec, MaxRules+1), telemetry.NewCatalog()); err == nil {
		t.Error("too many rules were taken")
	}
}

func TestSignalsLearnedLaterAreIgnored(t *testing.T) {
	cat := telemetry.NewCatalog()
	set, err := Compile(Shipped(), cat)
	if err != nil {
		t.Fatal(err)
	}
	id, _ := cat.Intern("brand_new")
	in := Input{Time: 1000, Arrival: 1000, Changed: []telemetry.Signal{{ID: id, Value: 1}}}
	if out := set.Bind("v").Eval(make([]State, set.Len()), &Values{}, in, nil); len(out) != 0 {
		t.Errorf("got %v", out)
	}
}

func TestEvalAllocatesNothing(t *testing.T) {
	set := compile(t, Shipped()...)
	st, b := make([]State, set.Len()), set.Bind("v")
	v := &Values{V: make([]float64, telemetry.WellKnown), T: make([]int64, telemetry.WellKnown), Status: "moving"}
	in := Input{Status: true, Changed: []telemetry.Signal{{ID: telemetry.Speed}, {ID: telemetry.EngineTemp}, {ID: telemetry.FuelPressure}, {ID: telemetry.CargoTemp}}}
	out := make([]Transition, 0, 16)
	now := scenarioStart()
	n := testing.AllocsPerRun(1000, func() {
		now += 5000
		hot := float64(now / 5000 / 20 % 2)
		v.StatusT = now
		for i := range in.Changed {
			v.V[in.Changed[i].ID], v.T[in.Changed[i].ID] = 200*hot, now
		}
		in.Time, in.Arrival = now, now
		out = b.Eval(st, v, in, out[:0])
	})
	if n != 0 {
		t.Errorf("%v allocations per reading, want 0", n)
	}
}

func TestAppendFiring(t *testing.T) {
	set := compile(t, Shipped()...)
	st := make([]State, set.Len())
	if names, worst := set.AppendFiring(nil, st); len(names) != 0 || worst != "" {
		t.Errorf("nothing fires: got %v %q", names, worst)
	}
	st[0].Phase, st[2].Phase, st[3].Phase = Firing, Firing, Pending
	names, worst := set.AppendFiring(nil, st)
	if d := cmp.Diff([]string{"overspeed", "engine_overheating"}, names); d != "" || worst != Critical {
		t.Errorf("worst %q (-want +got):\n%s", worst, d)
	}
}
