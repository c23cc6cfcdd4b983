package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestExamples runs every example as its page says, with this program.
func TestExamples(t *testing.T) {
	if testing.Short() {
		t.Skip("runs programs in Python, Node and Go")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	scripts, err := filepath.Glob("../../examples/*/run.sh")
	if err != nil {
		t.Fatal(err)
	}
	if len(scripts) < 10 {
		t.Errorf("%d examples, want at least 10", len(scripts))
	}
	for _, script := range scripts {
		dir := filepath.Dir(script)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			for _, tool := range needs(t, dir) {
				if _, err := exec.LookPath(tool); err != nil {
					missing(t, tool)
				}
			}
			if _, err := os.Stat(filepath.Join(dir, "README.md")); err != nil {
				t.Error(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, "sh", script)
			cmd.WaitDelay = time.Second
			cmd.Env = append(os.Environ(), "MILEPOST=env MILEPOST_MAIN=1 "+self)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%s: %v\n%s", script, err, out)
			}
		})
	}
}

// needs tells which programs an example's configuration and script run.
func needs(t *testing.T, dir string) []string {
	t.Helper()
	var all strings.Builder
	for _, name := range []string{"milepost.yaml", "run.sh"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	var out []string
	for word, tool := range map[string]string{"runtime: python": "python3", "python3 ": "python3", "[python3": "python3", "runtime: nodejs": "node", "go build": "go"} {
		if strings.Contains(all.String(), word) {
			out = append(out, tool)
		}
	}
	return out
}

// missing skips a test for want of a program; in CI, which installs them all, that is a failure.
func missing(t *testing.T, tool string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("no %s, which CI has to install before", tool)
	}
	t.Skipf("no %s", tool)
}
