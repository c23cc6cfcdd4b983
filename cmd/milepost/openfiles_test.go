package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestConnectionsWithin(t *testing.T) {
	for _, c := range []struct {
		limit      uint64
		want, most int
	}{
		{0, 50_000, 50_000}, // not known
		{1 << 62, 1e6, 1e6}, // unlimited
		{131_072, 50_000, 50_000},
		{20_000, 50_000, 19_000}, // what the rest of the server needs is kept free
		{20_000, 500, 500},
		{1024, 50_000, 512},
	} {
		if got := connectionsWithin(c.limit, c.want); got != c.most {
			t.Errorf("limit %d, %d wanted: %d, want %d", c.limit, c.want, got, c.most)
		}
	}
}

// A server that cannot have as many connections as it is configured for says so, with what to do.
func TestTellsOfTooFewFiles(t *testing.T) {
	limit := openFiles()
	if limit == 0 || limit > 1<<30 {
		t.Skip("no limit of open files")
	}
	var logged bytes.Buffer
	s := newServer(&Config{}, slog.New(slog.NewTextHandler(&logged, nil)))
	s.cfg.MQTT.MaxConnections = int(limit)                                                                //nolint:gosec // bounded above
	if most := s.connections(); most >= int(limit) || !strings.Contains(logged.String(), "LimitNOFILE") { //nolint:gosec // bounded above
		t.Errorf("%d connections of %d files, and the log says %q", most, limit, logged.String())
	}
	logged.Reset()
	s.cfg.MQTT.MaxConnections = 10
	if most := s.connections(); most != 10 || logged.Len() > 0 {
		t.Errorf("%d connections of 10, and the log says %q", most, logged.String())
	}
}
