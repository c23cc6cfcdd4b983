package basemap

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"testing"
)

func TestWorld(t *testing.T) {
	tiles, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	have := 0
	for z := range MaxZoom + 1 {
		for x := range 1 << z {
			for y := range 1 << z {
				packed, ok := tiles.Tile(z, x, y)
				if !ok {
					t.Fatalf("tile %d/%d/%d is not in the world", z, x, y)
				}
				if packed == nil {
					continue
				}
				have++
				r, err := gzip.NewReader(bytes.NewReader(packed))
				if err != nil {
					t.Fatalf("tile %d/%d/%d: %v", z, x, y, err)
				}
				if _, err := io.Copy(io.Discard, r); err != nil {
					t.Fatalf("tile %d/%d/%d: %v", z, x, y, err)
				}
			}
		}
	}
	if have < 2000 {
		t.Errorf("%d tiles hold something, want land on about half of 5461", have)
	}
	var o struct{ Land, Borders, States [][]int }
	if err := json.Unmarshal(Outline(), &o); err != nil || len(o.Land) < 50 || len(o.Borders) < 50 || len(o.States) < 20 {
		t.Errorf("outline: %d land, %d borders, %d states: %v", len(o.Land), len(o.Borders), len(o.States), err)
	}
}

// A damaged archive is refused, or answers within its bounds.
func FuzzOpen(f *testing.F) {
	f.Add(world[:200])
	f.Add([]byte("MPT1\x01\x00\x00\x00\x00\x00\x00\x00\x14\x00\x00\x00\x02\x00\x00\x00ab"))
	f.Add([]byte("MPT1\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		tiles, err := open(data)
		if err != nil {
			return
		}
		for z := range 3 {
			for x := range 1 << z {
				tiles.Tile(z, x, 0)
			}
		}
	})
}

func TestTileBounds(t *testing.T) {
	tiles, err := open([]byte("MPT1\x01\x00\x00\x00\x00\x00\x00\x00\x14\x00\x00\x00\x02\x00\x00\x00ab"))
	if err != nil {
		t.Fatal(err)
	}
	f := func(z, x, y int, want string, ok bool) {
		t.Helper()
		got, gotOK := tiles.Tile(z, x, y)
		if string(got) != want || gotOK != ok {
			t.Errorf("%d/%d/%d: %q %t, want %q %t", z, x, y, got, gotOK, want, ok)
		}
	}
	f(0, 0, 0, "ab", true)
	f(1, 1, 1, "", true)
	f(0, 1, 0, "", false)
	f(-1, 0, 0, "", false)
	f(MaxZoom+1, 0, 0, "", false)
	f(3, 0, 8, "", false)
}
