package mqtt

import (
	"errors"
	"log/slog"
	"net"
	"time"
)

// Between two attempts to accept after one that failed.
const (
	acceptPause     = 5 * time.Millisecond
	acceptPauseMost = time.Second
	acceptTellAgain = time.Minute // a door at its limit accepts one for each that leaves, and says so no more often
)

// An acceptor is a listener whose Accept fails only when it is closed. What else goes wrong mends itself or is mended by an operator,
// out of file descriptors most likely: then it waits, or the loop would take a core for itself, counts, and says so once.
// Connections meanwhile wait in the kernel's queue.
type acceptor struct {
	net.Listener
	server *Server
	since  time.Time // when it began to fail, and that was logged; zero: it does not fail, or has just been logged
	told   time.Time // when it was logged last
	missed int       // attempts since then
}

// Accept implements net.Listener. One goroutine calls it.
func (a *acceptor) Accept() (net.Conn, error) {
	pause := acceptPause
	for {
		nc, err := a.Listener.Accept()
		logger := a.server.logger
		if err == nil {
			if !a.since.IsZero() {
				logger.Info("mqtt accepts connections again", slog.String("address", a.Addr().String()),
					slog.Duration("after", time.Since(a.since)), slog.Int("attempts", a.missed))
				a.since, a.missed = time.Time{}, 0
			}
			return nc, nil
		}
		if errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		a.server.met.acceptFailed.Inc()
		a.missed++
		if now := time.Now(); a.since.IsZero() && now.Sub(a.told) >= acceptTellAgain {
			a.since, a.told = now, now
			logger.Warn("mqtt cannot accept connections: they wait until files are closed, or raise the limit of open files",
				slog.String("address", a.Addr().String()), slog.Any("error", err))
		}
		select {
		case <-time.After(pause):
		case <-a.server.reading.Done():
			return nil, net.ErrClosed
		}
		pause = min(2*pause, acceptPauseMost)
	}
}
