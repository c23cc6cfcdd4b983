//go:build unix && !linux

package runtime

import "syscall"

// own makes a process the leader of a group of its own. Only Linux ends it with Milepost's sudden death; here it sees the end of
// its connection.
func own() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func awaitExit(int) {}

// endDescendants needs /proc: here what leaves the group stays.
func endDescendants(string) {}

func peakMemory(int) int64 { return 0 }
