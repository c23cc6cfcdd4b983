package rule

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/milepost/milepost/telemetry"
)

func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/scenarios/*.txt")
	if err != nil || len(files) < 10 {
		t.Fatalf("scenarios: %d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for _, fail := range RunScenario(f, Env{}) {
				t.Errorf("%s: %s", file, fail)
			}
		})
	}
}

// TestScenarioFailures: what a scenario says when it fails.
func TestScenarioFailures(t *testing.T) {
	const rules = "rule fast: speed > 80 for 10s clear below 75\n"
	f := func(text string, want ...string) {
		t.Helper()
		var got []string
		for _, fail := range RunScenario(strings.NewReader(rules+text), Env{}) {
			got = append(got, fail.String())
		}
		if len(got) != len(want) {
			t.Errorf("%s\ngot  %q\nwant %q", text, got, want)
			return
		}
		for i := range want {
			if !strings.Contains(got[i], want[i]) {
				t.Errorf("%s\ngot  %q\nwant %q", text, got[i], want[i])
			}
		}
	}
	const fires = "00:00 t speed=90\n00:10 t speed=90\n"
	f(fires + "expect firing fast t since 00:00")
	f(fires+"expect nothing", "line 4: got firing fast t since 00:00 at 00:10 value 90 peak 90, want nothing")
	f(fires, "line 4: got firing fast t") // nobody expected it
	f(fires+"expect firing fast t since 00:05", "line 4: got firing fast t since 00:00 at 00:10 value 90 peak 90, want firing fast t since 00:05")
	f(fires+"expect firing fast t late", "want firing fast t late")
	f(fires+"expect firing fast t value 91", "want firing fast t value 91")
	f(fires+"expect resolved fast t", "line 4: got firing fast t", "line 5: got firing")
	f(fires+"expect firing fast t\nexpect firing fast t", "got nothing new, firing fast t since 00:00 (write: expect still firing)")
	f("00:00 t speed=90\nexpect firing fast t", "line 3: got pending fast t since 00:00, want firing fast t")
	f("00:00 t speed=90\nexpect idle fast t", "got pending fast t since 00:00, want idle")
	f("00:00 t speed=90\nexpect acked fast t", "want acked")
	f("00:00 t speed=90\nexpect pending fast u", "no reading of u")
	f("00:00 t speed=90\nexpect pending fsat t", "no rule fsat; did you mean fast?")
	f("00:00 t speed=90\nexpect panding fast t", "expect what?")
	f("00:00 t speed=90\nexpect firing fast", "something is missing")
	f("00:00 t speed=90\nexpect firing fast t sinc 00:00", `"sinc" says nothing about an alert; did you mean since?`)
	f("00:00 t sped=90", "line 2: no signal is called sped; did you mean speed?")
	f("00:00 t speed=fast", "is not a number")
	f("00:00 t speed=1 speed=2", "twice")
	f("00:00 speed=90", "the vehicle is missing")
	f("00:00", "a reading is")
	f("00:61 t speed=90", "is no time")
	f("1:2:3:4 t speed=90", "is no time")
	f("00:00 t speed=90 late=soon", "is not a duration")
	f("00:00 t status=\"open", "a quote is not closed")
	f("05:00 t speed=90\ntick 04:00", "time does not go back")
	f("tock 04:00", `"tock" begins no line of a scenario; did you mean tick?`)
	f("use shippd", "write use shipped")
	f("use shipped overspeeed", "did you mean overspeed?")
	f("rule r speed > 3", "a rule is NAME: CONDITION")
	f("rule r: sped > 3", "rule r: when, column 1: nothing is called sped")
	f("rule r: speed > 3 for ages", `"ages" is not a duration`)
	f("override t fast limit=3", "the rule has no parameter limit")
	f("override t fast limit=x", "is not NAME=NUMBER")
	f("override t", "an override is")
	f("ack fast t", "no reading of t")
	f("00:00 t speed=1\nack fast t", "only a firing alert can be acknowledged")
}

// TestCrashAnywhere: whatever happens and wherever it crashes, the same alerts come out.
func TestCrashAnywhere(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // reproducible
	fired := 0
	for range 30 {
		var b strings.Builder
		b.WriteString("use shipped\nrule warm: avg(engine_temp, \"5m\") > 108 && count(speed, \"2m\") > 1\noverride v1 overspeed limit=60\n")
		now := 0
		for range 200 {
			now += r.IntN(40)
			switch r.IntN(20) {
			case 0:
				b.WriteString("crash\n")
			case 1:
				b.WriteString("checkpoint\n")
			case 2:
				now += 700
				fmt.Fprintf(&b, "tick %02d:%02d\n", now/60, now%60)
			default:
				at, late := now, ""
				if r.IntN(5) == 0 {
					at = max(0, now-r.IntN(120))
					late = fmt.Sprintf(" late=%ds", now-at)
				}
				fmt.Fprintf(&b, "%02d:%02d v%d speed=%d engine_temp=%d cargo_temp=%d%s\n", at/60, at%60, r.IntN(3), 40+r.IntN(60), 95+r.IntN(25), r.IntN(12), late)
			}
		}
		b.WriteString("crash\n")
		for _, f := range RunScenario(strings.NewReader(b.String()), Env{}) {
			if f.Err != nil || strings.Contains(f.Got, "after the crash") {
				t.Fatalf("seed %d: %s\n%s", seed, f, b.String())
			}
			fired += strings.Count(f.Got, "firing") // nobody expected it, which shows that something happened
		}
	}
	if fired < 30 {
		t.Errorf("seed %d: %d alerts in all: the test no longer tests", seed, fired)
	}
}

// TestCrashFindsStateThatIsNotStored: the crash in a scenario is a real one.
func TestCrashFindsStateThatIsNotStored(t *testing.T) {
	s := &scenario{cat: telemetry.NewCatalog(), start: scenarioStart(), acked: map[string]string{}, seen: map[string]bool{}}
	for _, l := range []string{"rule fast: speed > 80 for 10s", "00:00 t speed=90"} {
		words, err := split(l)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.do(words, l); err != nil {
			t.Fatal(err)
		}
	}
	s.world.vehicles["t"].st[0].Since++ // as if it had been kept somewhere that a crash forgets
	if err := s.crash(); err != nil {
		t.Fatal(err)
	}
	if len(s.failures) != 1 {
		t.Errorf("failures %v, want one", s.failures)
	}
}
