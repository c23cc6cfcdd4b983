package main

import "testing"

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
