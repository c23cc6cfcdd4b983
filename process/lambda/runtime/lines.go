package runtime

import (
	"log/slog"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	loggedBytes = 4 << 10 // of a line in Milepost's log
	lineBurst   = 5       // seconds' worth of lines that may come at once
	tellEvery   = time.Second
)

// lines bounds what one function's processes write to Milepost's log. What is above the bound is counted, told once a second in one
// line, and still in the ring, so `milepost functions logs` has it.
type lines struct {
	log      *slog.Logger
	function string
	rate     float64 // lines a second
	dropped  prometheus.Counter

	mu     sync.Mutex // guards the rest
	left   float64    // lines that may be written now
	at     time.Time  // when left was right
	untold int        // dropped since it was last told
	teller *time.Timer
	closed bool
}

func newLines(log *slog.Logger, function string, rate int, dropped prometheus.Counter) *lines {
	return &lines{log: log, function: function, rate: float64(rate), dropped: dropped, left: float64(rate) * lineBurst, at: time.Now()}
}

// write logs a line, or counts it.
func (l *lines) write(id, line string) {
	if !l.take(time.Now()) {
		l.dropped.Inc()
		return
	}
	if len(line) > loggedBytes {
		n := loggedBytes
		for n > 0 && !utf8.RuneStart(line[n]) {
			n--
		}
		l.log.Info("function output", "function", l.function, "request_id", id, "line", line[:n], "cut_bytes", len(line)-n)
		return
	}
	l.log.Info("function output", "function", l.function, "request_id", id, "line", line)
}

func (l *lines) take(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = min(l.rate*lineBurst, l.left+l.rate*now.Sub(l.at).Seconds())
	l.at = now
	if l.left >= 1 {
		l.left--
		return true
	}
	l.untold++
	if l.teller == nil && !l.closed {
		l.teller = time.AfterFunc(tellEvery, l.tell)
	}
	return false
}

// tell says how many lines were dropped since it last did.
func (l *lines) tell() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.untold > 0 {
		l.log.Warn("function output is dropped from the log: it writes more lines than log_lines", "function", l.function, "lines", l.untold)
	}
	l.untold, l.teller = 0, nil
}

// close tells the rest. It comes after the last write.
func (l *lines) close() {
	l.mu.Lock()
	l.closed = true
	if l.teller != nil {
		l.teller.Stop()
	}
	l.mu.Unlock()
	l.tell()
}
