package runtime

import (
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// A function's process ends with Milepost, however Milepost ends. Here it is this test in a second process, which is killed.
func TestDeath(t *testing.T) {
	if goruntime.GOOS != "linux" {
		t.Skip("only Linux ends children with their parent")
	}
	if dir := os.Getenv("MILEPOST_TEST_DEATH"); dir != "" {
		inv, err := New(Config{Name: "f", Code: dir, Command: []string{"sh", "-c", "echo $$ > pid; exec sleep 600"}}, Deps{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = inv.Invoke(t.Context(), &Request{}) // never comes back
		t.Fatal(err)
	}
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pid")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDeath$")
	cmd.Env = append(os.Environ(), "MILEPOST_TEST_DEATH="+dir, "TMPDIR="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(pipe)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if gone(pid) {
		t.Fatal("the function's process is gone already")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	eventually(t, "the function's process ends", func() bool { return gone(pid) })
}

// What a function's process starts ends with it: also what sets itself apart, by a session of its own and a parent that is no more.
func TestDescendantsEnd(t *testing.T) {
	if goruntime.GOOS != "linux" {
		t.Skip("only on Linux are they found")
	}
	need(t, "setsid")
	dir := t.TempDir()
	script := `(setsid sh -c 'echo $$ > apart.tmp; mv apart.tmp apart; exec sleep 600' >/dev/null 2>&1 &)
		while [ ! -f apart ]; do sleep 0.01; done
		exit 3`
	inv := open(t, Config{Name: "f", Code: dir, Command: []string{"sh", "-c", script}})
	r, err := inv.Invoke(t.Context(), &Request{})
	if err != nil || r.FunctionError == "" {
		t.Fatalf("%+v, %v", r, err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "apart"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process that set itself apart ends", func() bool { return gone(pid) })
}
