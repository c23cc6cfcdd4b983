package runtime

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
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
	// A child of a function's process, whose server is dead.
	child := exec.CommandContext(t.Context(), "sleep", "600")
	child.Env = []string{"A=b", runtimeDirVariable + "=" + left}
	other := exec.CommandContext(t.Context(), "sleep", "600")
	other.Env = []string{"A=b", runtimeDirVariable + "=" + left + "4", "X" + runtimeDirVariable + "=" + left}
	for _, c := range []*exec.Cmd{child, other} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		_ = errors.Join(child.Process.Kill(), other.Process.Kill()) // ended already, perhaps
		_ = errors.Join(child.Wait(), other.Wait())                 // killed
	})
	sweepDirs()
	if goruntime.GOOS == "linux" {
		eventually(t, "the dead server's process ends", func() bool { return gone(child.Process.Pid) })
		if gone(other.Process.Pid) {
			t.Error("a process of another server was ended")
		}
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", left, err)
	}
	if _, err := os.Stat(parent); err != nil {
		t.Error(err)
	}
}
