package fleet

import (
	"cmp"
	"container/list"
	"encoding/binary"
	"slices"

	"github.com/milepost/milepost/internal/binenc"
	"github.com/milepost/milepost/state"
)

// Which readings have been seen. A reading is a duplicate when its vehicle has sent the same event time with the same payload
// hash before; the same time with another payload is an amendment (devices that send on change split one moment over several
// messages) and counts as a reading of its own.
//
// A reading newer than all before needs no look-up. The others are looked up by event hour. What a vehicle has sent lately is
// in its own record (at most openMax entries, so that a commit writes little); a full list is sealed into one chunk a touched
// hour. Hours that late readings ask for are read back into a cache that the lane bounds.

// A sighting is one reading that was accepted.
type sighting struct {
	at   int64 // event time, Unix ms
	hash uint32
}

func compareSightings(a, b sighting) int {
	if c := cmp.Compare(a.at, b.at); c != 0 {
		return c
	}
	return cmp.Compare(a.hash, b.hash)
}

// openMax is how many sightings a vehicle's record carries before they are sealed. 64 × about 6 bytes: a commit writes
// at most that much more for a vehicle, and a sealed chunk costs its two keys once in 64 readings.
const openMax = 64

// seenDays is how long sightings are kept after they were written: what is sent again within it changes nothing.
const seenDays = 7

type hourKey struct {
	vehicle string
	hour    int32
}

// hourSet is every sealed sighting of one vehicle in one event hour, sorted.
type hourSet struct {
	key hourKey
	all []sighting
}

func (h *hourSet) has(s sighting) bool {
	_, ok := slices.BinarySearchFunc(h.all, s, compareSightings)
	return ok
}

func (h *hourSet) add(s sighting) {
	i, ok := slices.BinarySearchFunc(h.all, s, compareSightings)
	if !ok {
		h.all = slices.Insert(h.all, i, s)
	}
}

// seenCache keeps the hours that late readings asked for, the least recently used going first. A lane owns it.
type seenCache struct {
	max  int // sightings
	size int
	sets map[hourKey]*list.Element // of *hourSet
	lru  *list.List                // front: most recent
}

// hourCost counts an hour set's own weight in sightings, so that many empty hours are bounded too.
const hourCost = 8

func newSeenCache(maxSightings int) *seenCache {
	return &seenCache{max: maxSightings, sets: map[hourKey]*list.Element{}, lru: list.New()}
}

// hour returns the sealed sightings of one hour, reading them from r the first time.
func (c *seenCache) hour(r state.Reader, vehicle string, hour int32) (*hourSet, error) {
	k := hourKey{vehicle, hour}
	if e, ok := c.sets[k]; ok {
		c.lru.MoveToFront(e)
		return e.Value.(*hourSet), nil //nolint:errcheck,forcetypeassert // only this type goes in
	}
	h := &hourSet{key: k}
	from := seenHourKey(nil, vehicle, hour)
	err := r.Scan(from, state.PrefixEnd(from), func(_, v []byte) error {
		var err error
		h.all, err = decodeChunk(h.all, v)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(h.all, compareSightings)
	c.sets[k] = c.lru.PushFront(h)
	c.grew(len(h.all) + hourCost)
	return h, nil
}

// cached returns an hour only if it is in memory: what is sealed must be added there too.
func (c *seenCache) cached(vehicle string, hour int32) *hourSet {
	if e, ok := c.sets[hourKey{vehicle, hour}]; ok {
		return e.Value.(*hourSet) //nolint:errcheck,forcetypeassert // only this type goes in
	}
	return nil
}

func (c *seenCache) grew(n int) {
	c.size += n
	for c.size > c.max && c.lru.Len() > 1 {
		e := c.lru.Back()
		h := e.Value.(*hourSet) //nolint:errcheck,forcetypeassert // only this type goes in
		c.lru.Remove(e)
		delete(c.sets, h.key)
		c.size -= len(h.all) + hourCost
	}
}

func (c *seenCache) reset() {
	c.size = 0
	clear(c.sets)
	c.lru.Init()
}

// A sealed chunk is waiting for the next commit.
type sealedChunk struct {
	vehicle string
	hour    int32
	seq     uint32
	day     int32 // arrival day, for expiry
	data    []byte
}

const chunkVersion = 1

// appendChunk encodes sightings: version, count, then for each the time's delta (zigzag varint) and 4 bytes of hash.
func appendChunk(buf []byte, s []sighting) []byte {
	buf = append(buf, chunkVersion)
	return appendSightings(buf, s)
}

func appendSightings(buf []byte, s []sighting) []byte {
	buf = binary.AppendUvarint(buf, uint64(len(s)))
	prev := int64(0)
	for _, x := range s {
		buf = binary.AppendVarint(buf, x.at-prev)
		buf = binary.LittleEndian.AppendUint32(buf, x.hash)
		prev = x.at
	}
	return buf
}

func readSightings(r *binenc.Reader, to []sighting) []sighting {
	n := r.Uvarint()
	if n > uint64(len(r.B)) { // each takes at least five bytes
		r.Fail()
		return to
	}
	prev := int64(0)
	for range n {
		at := prev + r.Varint()
		to = append(to, sighting{at, r.Fixed32()})
		prev = at
	}
	return to
}

func decodeChunk(to []sighting, b []byte) ([]sighting, error) {
	r := reader(b)
	if r.Byte() != chunkVersion {
		return to, errCorrupt
	}
	to = readSightings(&r, to)
	return to, r.Err
}
