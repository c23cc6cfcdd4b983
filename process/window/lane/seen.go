package lane

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/milepost/milepost/state"
)

// Which rows have been seen. A source is what sends again: a vehicle, or a partition key. A row is a duplicate when its source has
// sent the same event time with the same content (or the same unique ID) before.
//
// A source's rows are kept by minute of event time, until they are so old that a row of that time is left out by every window
// anyway. The newest minute is part of the source's own record; an older one is read back when a row of that minute comes.
const minute = 60_000

// A sighting is one row of a minute.
type sighting struct {
	at   uint32 // ms into the minute
	hash uint32
}

func compareSightings(a, b sighting) int {
	if c := cmp.Compare(a.at, b.at); c != 0 {
		return c
	}
	return cmp.Compare(a.hash, b.hash)
}

// A bucket is what a source sent in one minute, sorted.
type bucket struct {
	start int64
	rows  []sighting
}

func (b *bucket) add(s sighting) (isNew bool) {
	n := len(b.rows)
	if n == 0 || compareSightings(b.rows[n-1], s) < 0 { // most rows
		b.rows = append(b.rows, s)
		return true
	}
	i, found := slices.BinarySearchFunc(b.rows, s, compareSightings)
	if !found {
		b.rows = slices.Insert(b.rows, i, s)
	}
	return !found
}

// A source is hot: what is known of a sender's newest rows.
type source struct {
	id     string
	newest bucket // the newest minute
	oldest int64  // the first minute that may be stored
	heard  int64
	older  []bucket // minutes before, that rows came for since the last flush
	dirty  bool
}

func floorMinute(t int64) int64 {
	q := t / minute
	if t%minute < 0 {
		q--
	}
	return q * minute
}

// sighted notes a row and tells whether it is new. horizon is how long rows matter.
func (s *source) sighted(r state.Reader, stream string, t int64, hash uint64, horizon int64, buf *[]byte) (bool, error) {
	start := floorMinute(t)
	x := sighting{uint32(t - start), uint32(hash ^ hash>>32)} //nolint:gosec // within a minute; half a hash
	switch {
	case start == s.newest.start && s.newest.rows != nil:
		return s.newest.add(x), nil
	case s.newest.rows == nil:
		s.newest = bucket{start: start, rows: append(make([]sighting, 0, 4), x)}
		s.oldest = start
		return true, nil
	case start > s.newest.start:
		s.older = append(s.older, s.newest)
		s.newest = bucket{start: start, rows: append(make([]sighting, 0, 4), x)}
		return true, nil
	case start < s.newest.start-horizon:
		return true, nil // windows leave it out
	}
	i := slices.IndexFunc(s.older, func(b bucket) bool { return b.start == start })
	if i < 0 {
		*buf = seenKey(*buf, stream, s.id, start)
		v, err := r.Get(*buf)
		if err != nil {
			return false, err
		}
		b := bucket{start: start}
		if b.rows, err = decodeSightings(v); err != nil {
			return false, err
		}
		s.older = append(s.older, b)
		i = len(s.older) - 1
		s.oldest = min(s.oldest, start)
	}
	return s.older[i].add(x), nil
}

func seenKey(buf []byte, stream, id string, start int64) []byte {
	buf = append(append(append(buf[:0], seenPrefix...), stream...), 0)
	buf = append(append(binary.AppendUvarint(buf, uint64(len(id))), id...), 0)
	return appendTime(buf, start)
}

func sourceKey(buf []byte, stream, id string) []byte {
	buf = append(append(append(buf[:0], sourcePrefix...), stream...), 0)
	return append(buf, id...)
}

const seenVersion = 1

func appendSightings(buf []byte, rows []sighting) []byte {
	buf = append(buf, seenVersion)
	buf = binary.AppendUvarint(buf, uint64(len(rows)))
	prev := uint32(0)
	for _, x := range rows {
		buf = binary.AppendUvarint(buf, uint64(x.at-prev))
		buf = binary.LittleEndian.AppendUint32(buf, x.hash)
		prev = x.at
	}
	return buf
}

// decodeSightings reads a minute; nil is an empty one.
func decodeSightings(b []byte) ([]sighting, error) {
	if b == nil {
		return nil, nil
	}
	if len(b) < 2 || b[0] != seenVersion {
		return nil, errCorrupt
	}
	n, w := binary.Uvarint(b[1:])
	if w <= 0 || n > uint64(len(b)/5) {
		return nil, errCorrupt
	}
	b = b[1+w:]
	rows := make([]sighting, 0, n)
	at := uint64(0)
	for range n {
		d, w := binary.Uvarint(b)
		if w <= 0 || len(b) < w+4 || d >= minute || at+d >= minute {
			return nil, errCorrupt
		}
		at += d
		x := sighting{uint32(at), binary.LittleEndian.Uint32(b[w:])} //nolint:gosec // below a minute
		if len(rows) > 0 && compareSightings(rows[len(rows)-1], x) >= 0 {
			return nil, errCorrupt
		}
		rows = append(rows, x)
		b = b[w+4:]
	}
	if len(b) > 0 {
		return nil, errCorrupt
	}
	return rows, nil
}

// store writes what changed, and deletes what has become too old.
func (s *source) store(tx state.Tx, stream string, horizon int64, key, buf []byte) ([]byte, []byte, error) {
	for i := range s.older {
		key = seenKey(key, stream, s.id, s.older[i].start)
		buf = appendSightings(buf[:0], s.older[i].rows)
		if err := tx.Set(key, buf); err != nil {
			return key, buf, err
		}
		s.oldest = min(s.oldest, s.older[i].start)
	}
	s.older = nil
	if limit := floorMinute(s.newest.start - horizon); limit > s.oldest {
		var err error
		if key, err = deleteSteps(tx, s.oldest, limit, minute, key, func(buf []byte, t int64) []byte { return seenKey(buf, stream, s.id, t) }); err != nil {
			return key, buf, err
		}
		s.oldest = limit
	}
	key = sourceKey(key, stream, s.id)
	buf = appendTime(appendTime(appendTime(buf[:0], s.newest.start), s.oldest), s.heard)
	buf = appendSightings(buf, s.newest.rows)
	s.dirty = false
	return key, buf, tx.Set(key, buf)
}

// deleteSteps deletes the keys of times in [from, to): one by one if they are few, as a range leaves a mark that reads must look at.
func deleteSteps(tx state.Tx, from, to, step int64, buf []byte, key func(buf []byte, t int64) []byte) ([]byte, error) {
	if (to-from)/step > 16 {
		return buf, tx.DeleteRange(key(nil, from), key(nil, to))
	}
	for t := from; t < to; t += step {
		buf = key(buf, t)
		if err := tx.Delete(buf); err != nil {
			return buf, err
		}
	}
	return buf, nil
}

func decodeSource(id string, b []byte) (*source, error) {
	if len(b) < 24 {
		return nil, errCorrupt
	}
	s := &source{id: id, oldest: readTime(b[8:]), heard: readTime(b[16:])}
	s.newest.start = readTime(b)
	var err error
	s.newest.rows, err = decodeSightings(b[24:])
	return s, err
}
