// Package basemap is the offline base map: vector tiles of land, water, borders and places to zoom 6, and an outline for
// browsers that cannot draw them. gen/ makes both from Natural Earth, US Census and GeoNames data; gen/tiles.mjs states the
// archive's bytes.
package basemap

import (
	"crypto/sha256"
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"sort"
)

//go:embed world.tiles
var world []byte

//go:embed outline.json
var outline []byte

// MaxZoom is the last zoom that has tiles of its own.
const MaxZoom = 6

// Attribution names the sources, as plain text.
const Attribution = "Natural Earth · US Census Bureau · GeoNames (CC BY 4.0)"

// Tiles is an opened archive. It is safe for concurrent use.
type Tiles struct {
	data    []byte
	entries []byte // count × entrySize, sorted by id
	version string
}

const (
	magic     = "MPT1"
	headSize  = 8
	entrySize = 12
)

// Open returns the embedded archive.
func Open() (*Tiles, error) { return open(world) }

// Outline returns the embedded outline, JSON; do not write to it.
func Outline() []byte { return outline }

func open(data []byte) (*Tiles, error) {
	if len(data) < headSize || string(data[:4]) != magic {
		return nil, errors.New("base map is not a tile archive: run the generator in web/basemap/gen")
	}
	n := int64(binary.LittleEndian.Uint32(data[4:]))
	end := headSize + n*entrySize
	if end > int64(len(data)) {
		return nil, errors.New("base map is cut short: run the generator in web/basemap/gen")
	}
	t := &Tiles{data: data, entries: data[headSize:end]}
	for i := range int(n) {
		id, off, length := t.entry(i)
		if int64(off) < end || int64(off)+int64(length) > int64(len(data)) {
			return nil, fmt.Errorf("base map tile %#x lies outside the archive: run the generator in web/basemap/gen", id)
		}
		if i > 0 {
			if before, _, _ := t.entry(i - 1); before >= id {
				return nil, fmt.Errorf("base map tile %#x is out of order: run the generator in web/basemap/gen", id)
			}
		}
	}
	sum := sha256.Sum256(data)
	t.version = hex.EncodeToString(sum[:6])
	return t, nil
}

func (t *Tiles) entry(i int) (id, off, length uint32) {
	e := t.entries[i*entrySize:]
	return binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:]), binary.LittleEndian.Uint32(e[8:])
}

// Version changes whenever any tile does.
func (t *Tiles) Version() string { return t.version }

// Tile returns one tile, gzipped; nil if it is empty. Do not write to it. False: there is no such zoom or place.
func (t *Tiles) Tile(z, x, y int) ([]byte, bool) {
	if z < 0 || z > MaxZoom || x < 0 || y < 0 || x >= 1<<z || y >= 1<<z {
		return nil, false
	}
	want := uint32(z<<24 | x<<12 | y) //nolint:gosec // bounded above
	n := len(t.entries) / entrySize
	i := sort.Search(n, func(i int) bool { id, _, _ := t.entry(i); return id >= want })
	if i == n {
		return nil, true
	}
	id, off, length := t.entry(i)
	if id != want {
		return nil, true
	}
	return t.data[off : off+length : off+length], true
}
