package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// TestBenchFunctions runs the bench for a moment: it fails if a record is lost or refused on the way, and prints every figure with
// CPU.
func TestBenchFunctions(t *testing.T) {
	var out, progress bytes.Buffer
	if code := run(t.Context(), &env{strings.NewReader(""), &out, &progress}, []string{"bench", "functions", "-time", "100ms", "-json", "-", "-dir", t.TempDir()}); code != exitOK {
		t.Fatalf("code %d\n%s", code, &progress)
	}
	var report struct{ Figures []figure }
	if err := json.Unmarshal(out.Bytes(), &report); err != nil {
		t.Fatal(err)
	}
	goals := map[string]bool{}
	for _, f := range report.Figures {
		if f.Value <= 0 && f.Unit == "/s" { // CPU is counted in hundredths of a second, and latency may round to nothing
			t.Errorf("%s: %v", f.Name, f.Value)
		}
		goals[f.Goal] = true
	}
	for _, want := range []string{"200,000", "700,000", "20,000", "10"} {
		if !goals[want] {
			t.Errorf("no figure with the goal %s\n%s", want, &progress)
		}
	}
}
