//go:build !unix

package runtime

import (
	"errors"
	"os"
	"syscall"
)

const canRun = false

func own() *syscall.SysProcAttr { return nil }
func awaitExit(int)             {}
func endDescendants(string)     {}
func peakMemory(int) int64      { return 0 }
func signalGroup(int, bool)     {}
func ended(int) bool            { return false }
func pump(*os.File, *capture)   {}

func outputPipe() (r, w *os.File, err error) {
	return nil, nil, errors.New("functions run in processes on Linux and macOS only")
}
