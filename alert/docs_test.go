package alert

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/milepost/milepost/process/rule"
	"github.com/milepost/milepost/telemetry"
)

// TestDocs holds docs/alerts.md to what the program does.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../docs/alerts.md")
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for i, block := range strings.Split(string(text), "\n```") {
		if i%2 == 0 {
			continue
		}
		kind, body, _ := strings.Cut(block, "\n")
		count[kind]++
		switch kind {
		case "yaml":
			checkConfig(t, body)
		case "scenario":
			for _, f := range rule.RunScenario(strings.NewReader(body), rule.Env{}) {
				t.Errorf("%s\n%s", f, body)
			}
		case "json":
			d := json.NewDecoder(strings.NewReader(body))
			d.DisallowUnknownFields()
			var n Notification
			if err := d.Decode(&n); err != nil || n.ID != rule.IncidentID(n.Alert.Rule, n.Alert.Vehicle, n.Alert.Since)+"/firing" {
				t.Errorf("%v: %+v", err, n)
			}
		case "":
			for cond := range strings.SplitSeq(body, "\n") {
				spec := rule.Spec{Name: "r", When: cond}
				if strings.Contains(cond, "limit") {
					spec.Params = map[string]float64{"limit": 1}
				}
				if _, err := rule.Compile([]rule.Spec{spec}, telemetry.NewCatalog()); err != nil {
					t.Error(err)
				}
			}
		}
	}
	if count["yaml"] < 3 || count["scenario"] < 2 || count["json"] != 1 || count[""] != 1 {
		t.Errorf("blocks %v: the test no longer tests", count)
	}
	for _, s := range rule.Shipped() {
		if !bytes.Contains(text, []byte("| `"+s.Name+"` |")) {
			t.Errorf("shipped rule %s is not in the table", s.Name)
		}
	}
}

func checkConfig(t *testing.T, body string) {
	t.Helper()
	var c struct {
		Rules struct {
			Change map[string]rule.Spec `yaml:"change"`
			Custom []rule.Spec          `yaml:"custom"`
		} `yaml:"rules"`
		Alerts Config `yaml:"alerts"`
	}
	d := yaml.NewDecoder(strings.NewReader(body))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil {
		t.Fatal(err)
	}
	own := c.Rules.Custom
	for name, change := range c.Rules.Change {
		if !slices.ContainsFunc(rule.Shipped(), func(s rule.Spec) bool { return s.Name == name }) {
			t.Errorf("rules.change.%s: no such shipped rule", name)
		}
		change.Name = name
		own = append(own, change)
	}
	if _, err := rule.Compile(rule.Extend(rule.Shipped(), own), telemetry.NewCatalog()); err != nil {
		t.Error(err)
	}
	if err := c.Alerts.Validate(); err != nil {
		t.Error(err)
	}
}
