package main

import (
	"strings"
	"testing"
	"time"
)

// Devices over TLS with persistent sessions lose their server to kill -9, come back all at once, and send their backlog: benchStorm fails
// if one of them does not get through or an acknowledged message is not in SQL exactly once. It is the bench itself, with fewer devices.
func TestStormAfterKill(t *testing.T) {
	if testing.Short() {
		t.Skip("kills processes for a while: run without -short")
	}
	requireSQL(t)
	b := &benchRun{progress: t.Output(), dir: t.TempDir(), current: "mqtt"}
	const devices = 300
	if err := benchStorm(t.Context(), b, devices); err != nil {
		t.Fatal(err)
	}
	for _, f := range b.figures {
		switch {
		case strings.HasPrefix(f.Name, "attempts"):
			if f.Value < 1 {
				t.Errorf("%v %s: they were not cut off", f.Value, f.Name)
			}
		case strings.Contains(f.Name, "all acknowledged after") && f.Value > stormMost.Seconds():
			t.Errorf("%s %s", f.Name, time.Duration(f.Value*float64(time.Second)))
		}
	}
}

// Idle connections are opened from processes of their own, and measured.
func TestBenchIdle(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers: run without -short")
	}
	b := &benchRun{progress: t.Output(), dir: t.TempDir(), current: "mqtt"}
	for _, secure := range []bool{false, true} {
		if err := benchIdle(t.Context(), b, 200, secure); err != nil {
			t.Fatal(err)
		}
	}
	if len(b.figures) != 4 {
		t.Errorf("figures: %v", b.figures)
	}
}
