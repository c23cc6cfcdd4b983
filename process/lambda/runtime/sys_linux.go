package runtime

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

// own makes a process the leader of a group of its own, and mortal: the kernel ends it with the thread that started it, which
// process.run therefore keeps until the process has ended.
func own() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// awaitExit returns when a child has ended, but leaves it a zombie: as long as it is, nobody else can have its number, and its
// group can be signalled without hitting a stranger.
func awaitExit(pid int) {
	const pPID = 1
	var info [128]byte // siginfo_t
	for {
		_, _, e := syscall.Syscall6(syscall.SYS_WAITID, pPID, uintptr(pid), uintptr(unsafe.Pointer(&info)), //nolint:gosec // waitid has no wrapper
			syscall.WEXITED|syscall.WNOWAIT, 0, 0)
		if !errors.Is(e, syscall.EINTR) {
			return
		}
	}
}

// peakMemory is the most that a process has used, in bytes; 0 if that is not known.
func peakMemory(pid int) int64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0
	}
	_, b, ok := bytes.Cut(b, []byte("VmHWM:"))
	if f := bytes.Fields(b); ok && len(f) > 0 {
		kb, _ := strconv.ParseInt(string(f[0]), 10, 64) // 0 is right for what is not understood
		return kb << 10
	}
	return 0
}
