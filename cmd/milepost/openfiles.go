package main

import (
	"log/slog"
	"syscall"
)

// filesBesides is how many files a server needs besides its MQTT connections: state, log and archive, and people at the HTTP door.
const filesBesides = 1000

// openFiles returns how many files this process may have open, 0 if the system does not say. Go has raised the soft limit to the hard one.
func openFiles() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return limit.Cur
}

// connectionsWithin returns how many of the wanted connections a limit of open files has room for. A door that took more would leave the
// log without a file to write to.
func connectionsWithin(limit uint64, want int) int {
	if limit == 0 || limit > 1<<30 { // none
		return want
	}
	room := int(limit) - int(min(filesBesides, limit/2)) //nolint:gosec // bounded
	return min(want, room)
}

// connections is how many connections the MQTT door takes.
func (s *server) connections() int {
	want := s.cfg.MQTT.MaxConnections
	limit := openFiles()
	most := connectionsWithin(limit, want)
	if most < want {
		s.log.Warn("the limit of open files allows fewer MQTT connections than mqtt.max_connections: raise it (ulimit -n, LimitNOFILE=), or lower the key",
			slog.Uint64("limit", limit), slog.Int("max_connections", want), slog.Int("allowed", most))
	}
	return most
}
