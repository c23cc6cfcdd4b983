package rule

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/telemetry"
)

func FuzzScenario(f *testing.F) {
	files, err := filepath.Glob("testdata/scenarios/*.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 4096 {
			return
		}
		for _, fail := range RunScenario(strings.NewReader(text), Env{}) {
			if fail.Line < 1 || fail.String() == "" {
				t.Errorf("failure without a line: %+v", fail)
			}
			// Whatever the rules and readings: a crash changes nothing.
			if strings.Contains(fail.String(), "after the crash") || strings.Contains(fail.Got, "after the crash") {
				t.Errorf("%s\n%s", fail, text)
			}
		}
	})
}

func FuzzCompile(f *testing.F) {
	for _, s := range Shipped() {
		f.Add(s.When, s.Clear, 80.0)
	}
	f.Add(`status in ["a", 'b'] && !(speed > -limit / 2)`, "below 3", 1.0)
	f.Add(`speed > 1 ? fuel < 2 : rpm == 3`, `status.matches("a*")`, 0.0)
	f.Add(`avg(speed, "5m") > limit && count(fuel, "1h") < 3`, "below 3", 0.0)
	cat := telemetry.NewCatalog()
	f.Fuzz(func(t *testing.T, when, clear string, limit float64) {
		spec := Spec{Name: "r", When: when, Clear: clear}
		if strings.Contains(when+clear, "limit") {
			spec.Params = map[string]float64{"limit": limit}
		}
		set, err := Compile([]Spec{spec}, cat)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "rule r: ") {
				t.Errorf("error does not name the rule: %v", err)
			}
			return
		}
		st := make([]State, 1)
		v := &Values{V: make([]float64, cat.Len()), T: make([]int64, cat.Len()), Status: "moving"}
		b := set.Bind("v")
		in := Input{Status: true}
		for id := range cat.Len() {
			in.Changed = append(in.Changed, telemetry.Signal{ID: telemetry.SignalID(id)})
		}
		for step := range int64(8) {
			in.Time = 1_767_225_600_000 + step*1000
			in.Arrival, v.StatusT = in.Time, in.Time
			for i := range v.V {
				v.V[i], v.T[i] = float64(step*37%11)*20, in.Time
			}
			for _, tr := range b.Eval(st, v, in, nil) {
				if tr.To != Firing && tr.To != Resolved || b.Summary(&tr, "v") == "" {
					t.Errorf("%q: %+v", when, tr)
				}
			}
		}
	})
}

func FuzzDecodeState(f *testing.F) {
	set, err := Compile(Shipped(), telemetry.NewCatalog())
	if err != nil {
		f.Fatal(err)
	}
	st := make([]State, set.Len())
	st[0] = State{Phase: Firing, Last: scenarioStart(), Since: 5, Peak: 90, Value: 85, Reopened: 2, Late: true}
	f.Add(set.AppendState(nil, st))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		one, two := make([]State, set.Len()), make([]State, set.Len())
		if _, err := set.DecodeState(b, one); err != nil {
			return
		}
		stored := set.AppendState(nil, one)
		if _, err := set.DecodeState(stored, two); err != nil {
			t.Fatalf("what was read cannot be written and read: %v", err)
		}
		// Through text, so that NaN equals NaN.
		if d := cmp.Diff(stored, set.AppendState(nil, two)); d != "" {
			t.Errorf("(-first +second):\n%s", d)
		}
	})
}
