package runtime

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// What a killed server left is removed by the next one; what a living one uses is not.
func TestSweepDirs(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	dead := exec.CommandContext(t.Context(), "true")
	if err := dead.Run(); err != nil {
		t.Skip(err)
	}
	dir := func(pid int) string {
		d := filepath.Join(os.TempDir(), dirPrefix+strconv.Itoa(pid)+"-123")
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		return d
	}
	left, parent := dir(dead.Process.Pid), dir(os.Getppid())
	sweepDirs()
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", left, err)
	}
	if _, err := os.Stat(parent); err != nil {
		t.Error(err)
	}
}
