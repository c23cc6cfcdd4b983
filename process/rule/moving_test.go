package rule

import (
	"bytes"
	"strings"
	"testing"

	"github.com/milepost/milepost/telemetry"
)

func TestWindowMistakes(t *testing.T) {
	f := func(when, want string) {
		t.Helper()
		_, err := Compile([]Spec{{Name: "r", When: when}}, telemetry.NewCatalog())
		got := "ok"
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%s\n got %s\nwant %s", when, got, want)
		}
	}
	f(`avg(engine_temp, "5m") > 100`, "ok")
	f(`avg(engine_temp, "5m") > 100 && speed > 5 || min(speed, "10s") * 2 > 7`, "ok")
	f(`avg(engine_temp, "5m") > avg(engine_temp, "1h") + 5`, "ok")
	f(`avgg(engine_temp, "5m") > 100`, "column 5: there is no window function avgg; did you mean avg?")
	f(`mean(engine_temp, "5m") > 100`, "there are avg, sum, min, max, count")
	f(`p95(speed, "5m") > 100`, "there is no window function p95")
	f(`avg(engine_tmp, "5m") > 100`, "column 5: no signal is called engine_tmp; did you mean engine_temp?")
	f(`avg(engine_temp) > 100`, `avg takes a signal and a duration: avg(speed, "5m")`)
	f(`avg(engine_temp, 5) > 100`, "the second argument is a duration in quotes")
	f(`avg(engine_temp, "5 min") > 100`, "the second argument is a duration in quotes")
	f(`avg(engine_temp, "25h") > 100`, "from 1s to 24h")
	f(`avg(speed + 1, "5m") > 100`, "no signal is called")
	f(`avg(engine_temp, "5m")`, "not true or false")
	f(`avg(engine_temp, "5m") == "hot"`, "numbers compare with numbers")
}

func TestFilters(t *testing.T) {
	cat := telemetry.NewCatalog()
	f, err := CompileFilter(`speed > 50 || status == "alarm"`, cat)
	if err != nil {
		t.Fatal(err)
	}
	v := &Values{V: make([]float64, cat.Len()), T: make([]int64, cat.Len()), StatusT: 1}
	check := func(want bool) {
		t.Helper()
		if got := f.Reading(v); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	check(false)
	v.V[telemetry.Speed], v.T[telemetry.Speed] = 51, 1
	check(true)
	v.T[telemetry.Speed] = 0
	v.Status = "alarm"
	check(true)
	if _, err = CompileFilter(`avg(speed, "5m") > 3`, cat); err == nil || !strings.Contains(err.Error(), "windows are for rules") {
		t.Errorf("got %v", err)
	}

	g, err := CompileFieldFilter(`type == "click" && item.price > 10 || vip`)
	if err != nil {
		t.Fatal(err)
	}
	fields := func(want bool, m map[string]any) {
		t.Helper()
		if got := g.Fields(func(p string) any { return m[p] }); got != want {
			t.Errorf("%v: got %v, want %v", m, got, want)
		}
	}
	fields(true, map[string]any{"type": "click", "item.price": 11.0})
	fields(false, map[string]any{"type": "view", "item.price": 11.0})
	fields(false, map[string]any{"type": "click"})
	fields(false, map[string]any{"type": 3.0})
	fields(true, map[string]any{"vip": true})
	fields(false, map[string]any{"type": "click", "item.price": "much", "vip": false})
	if g.Faults() == 0 {
		t.Error("a text compared with a number is a fault")
	}
}

// Windows that a later set no longer has, or newly has, do not disturb the others.
func TestWindowsComeAndGo(t *testing.T) {
	cat := telemetry.NewCatalog()
	compile := func(when ...string) *Set {
		var specs []Spec
		for i, w := range when {
			specs = append(specs, Spec{Name: string(rune('a' + i)), When: w})
		}
		s, err := Compile(specs, cat)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	old := compile(`avg(speed, "1m") > 1000`, `max(fuel, "2m") > 1000`)
	v := &Values{V: make([]float64, cat.Len()), T: make([]int64, cat.Len())}
	in := Input{Time: scenarioStart(), Changed: []telemetry.Signal{{ID: telemetry.Speed, Value: 10}, {ID: telemetry.Fuel, Value: 20}}}
	old.Bind("v").Eval(make([]State, 2), v, in, nil)
	stored := old.AppendWindows(nil, v)
	now := compile(`sum(fuel, "2m") > 1000`, `avg(rpm, "1m") > 1000`)
	w := &Values{}
	rest, err := now.DecodeWindows(append(bytes.Clone(stored), "rest"...), w)
	if err != nil || string(rest) != "rest" {
		t.Fatalf("rest %q, %v", rest, err)
	}
	now.observe(w, &Input{Time: in.Time})
	if x, ok := w.figure(movingBase, in.Time); !ok || x != 20 {
		t.Errorf("fuel %v %v, want 20", x, ok)
	}
	if _, ok := w.figure(movingBase+1, in.Time); ok {
		t.Error("rpm is known from nowhere")
	}
}

func FuzzDecodeWindows(f *testing.F) {
	cat := telemetry.NewCatalog()
	set, err := Compile([]Spec{{Name: "a", When: `avg(speed, "1m") > 1000`}}, cat)
	if err != nil {
		f.Fatal(err)
	}
	v := &Values{V: make([]float64, cat.Len()), T: make([]int64, cat.Len())}
	for i := range int64(100) {
		set.observe(v, &Input{Time: scenarioStart() + i*1000, Changed: []telemetry.Signal{{ID: telemetry.Speed, Value: float64(i) / 3}}})
	}
	f.Add(set.AppendWindows(nil, v))
	f.Fuzz(func(t *testing.T, b []byte) {
		v := &Values{}
		if _, err := set.DecodeWindows(b, v); err != nil {
			return
		}
		once := set.AppendWindows(nil, v)
		if _, err := set.DecodeWindows(once, v); err != nil {
			t.Fatal(err)
		}
		if twice := set.AppendWindows(nil, v); !bytes.Equal(once, twice) {
			t.Errorf("%x, then %x", once, twice)
		}
	})
}

func BenchmarkEvalWindow(b *testing.B) {
	benchEval(b, append(Shipped(), Spec{Name: "warm", When: `avg(engine_temp, "5m") > 100`}))
}
