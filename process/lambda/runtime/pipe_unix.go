//go:build unix

package runtime

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

const canRun = true

// outputPipe returns a pipe whose reading end polls and whose writing end blocks, as programs expect of their standard output.
// (os.Pipe's both poll, and that they do would be the child's to suffer.)
func outputPipe() (r, w *os.File, err error) {
	var fd [2]int
	syscall.ForkLock.RLock()
	if err = syscall.Pipe(fd[:]); err == nil {
		syscall.CloseOnExec(fd[0])
		syscall.CloseOnExec(fd[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, fmt.Errorf("pipe for a function's output: %w", err)
	}
	if err = syscall.SetNonblock(fd[0], true); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("pipe for a function's output: %w", err), syscall.Close(fd[0]), syscall.Close(fd[1]))
	}
	return os.NewFile(uintptr(fd[0]), "function output"), os.NewFile(uintptr(fd[1]), "function output"), nil
}

// pump gives what comes through the pipe to c until it ends or is closed.
func pump(r *os.File, c *capture) {
	raw, err := r.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 32<<10)
	ended := false
	take := func(fd uintptr, to func([]byte)) {
		for !ended {
			n, err := syscall.Read(int(fd), buf)
			switch {
			case n > 0:
				to(buf[:n])
			case errors.Is(err, syscall.EINTR):
			case errors.Is(err, syscall.EAGAIN):
				return
			default:
				ended = true
			}
		}
	}
	c.mu.Lock()
	// Control, not Read: the latter would wait for this goroutine, which is in Read nearly always.
	c.drained = func(to func([]byte)) { _ = raw.Control(func(fd uintptr) { take(fd, to) }) } // closed: nothing comes any more
	c.mu.Unlock()
	_ = raw.Read(func(fd uintptr) bool { // it ends when the pipe does
		c.mu.Lock()
		defer c.mu.Unlock()
		take(fd, c.write)
		return ended
	})
}

func signalGroup(pid int, kill bool) {
	s := syscall.SIGTERM
	if kill {
		s = syscall.SIGKILL
	}
	_ = syscall.Kill(-pid, s) // gone already: as well
}

// ended tells whether there is no process of that id.
func ended(pid int) bool { return syscall.Kill(pid, 0) == syscall.ESRCH }
