package window

import (
	"os"
	"regexp"
	"testing"
)

// The lines that docs/windows.md shows are windows.
func TestDocs(t *testing.T) {
	page, err := os.ReadFile("../../docs/windows.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile(`(?m)^  ([a-z_]+): ((?:count|avg|p95)\b.*)$`).FindAllStringSubmatch(string(page), -1)
	if len(lines) < 7 {
		t.Fatalf("found %d windows in the page", len(lines))
	}
	for _, m := range lines {
		s, err := ParseLine(m[2])
		if err == nil {
			s.Name = m[1]
			_, err = Compile(s)
		}
		if err != nil {
			t.Errorf("%s: %v", m[0], err)
		}
	}
}
