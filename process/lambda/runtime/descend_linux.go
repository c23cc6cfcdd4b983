package runtime

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
)

const descendPasses = 10

// endDescendants kills every process that was started with a variable of a function's environment, NAME=value, whose value is this
// process's alone: its children, theirs, and those that have left its group with setsid and its family with a double fork. One that
// starts others meanwhile is met again in the next pass. What has emptied its environment, or runs as another user, is out of reach.
func endDescendants(variable string) {
	want := append([]byte{0}, variable...)
	want = append(want, 0)
	for range descendPasses {
		found := false
		dirs, err := filepath.Glob("/proc/[0-9]*")
		if err != nil {
			return
		}
		for _, dir := range dirs {
			pid, err := strconv.Atoi(filepath.Base(dir))
			if err != nil || pid == os.Getpid() {
				continue
			}
			p, err := os.FindProcess(pid) // holds on to the process before it is looked at, so that no other of its number is hit
			if err != nil {
				continue
			}
			if env, err := os.ReadFile(dir + "/environ"); err == nil && bytes.Contains(append([]byte{0}, env...), want) {
				found = p.Kill() == nil || found
			}
			_ = p.Release()
		}
		if !found {
			return
		}
	}
}
