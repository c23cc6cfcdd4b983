package seglog

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
)

// written makes a store with some groups, closes it, and returns its file system and what it holds.
func written(t testing.TB, cfg Config, groups int) map[stream.ShardID][]kept {
	t.Helper()
	st := mustOpen(t, cfg)
	l := mustCreate(t, st, StreamConfig{Shards: 2})
	want := map[stream.ShardID][]kept{}
	for i := range groups {
		mustAppend(t, l, want, fmt.Sprint("key-", i%5), fmt.Sprint(i), fmt.Sprint("x", i), fmt.Sprintf("%0*d", i*13%97, i))
	}
	mustClose(t, st)
	return want
}

func segmentPath(id uint64) string { return "log/streams/test/" + segmentName(id) }
func indexPath(id uint64) string   { return "log/streams/test/" + indexName(id) }

func bytesOf(t testing.TB, fsys vfs.FS, path string) []byte {
	t.Helper()
	b, err := readFile(fsys, path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t testing.TB, fsys vfs.FS, path string, b []byte) {
	t.Helper()
	if err := writeFile(fsys, path, bytes.Clone(b)); err != nil {
		t.Fatal(err)
	}
	if err := syncDir(fsys, fsys.PathDir(path)); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, fsys vfs.FS, path string) {
	t.Helper()
	if err := errors.Join(fsys.Remove(path), syncDir(fsys, fsys.PathDir(path))); err != nil {
		t.Fatal(err)
	}
}

// groupOffsets returns the offset of each group of a segment.
func groupOffsets(t testing.TB, fsys vfs.FS, path string, id uint64) []int64 {
	t.Helper()
	m, err := readMetadata(fsys, fsys.PathDir(path))
	if err != nil {
		t.Fatal(err)
	}
	f, err := fsys.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, off, err := readSegmentHeader(f, path, id, m.salt)
	if err != nil {
		t.Fatal(err)
	}
	size, _ := fileSize(f)
	sc := &scanner{f: f, path: path, seed: newSeed(m.salt, id), size: size}
	var offs []int64
	for off < size {
		g, why, err := sc.group(off)
		if err != nil || why != "" {
			t.Fatal(why, err)
		}
		offs = append(offs, off)
		off += int64(len(g.bytes))
	}
	return append(offs, size)
}

// without returns what is left of want when the last group, which held three records of one shard, is gone.
func without(want map[stream.ShardID][]kept, lost []kept) map[stream.ShardID][]kept {
	out := map[stream.ShardID][]kept{}
	for id, w := range want {
		out[id] = slices.DeleteFunc(slices.Clone(w), func(k kept) bool { return slices.Contains(lost, k) })
	}
	return out
}

func lastThree(want map[stream.ShardID][]kept, key, first string) []kept {
	for _, w := range want {
		if i := slices.IndexFunc(w, func(k kept) bool { return k.Key == key && k.Data == first }); i >= 0 {
			return slices.Clone(w[i : i+3])
		}
	}
	return nil
}

// TestTornTail cuts the last group at every byte, with nothing or with garbage behind the cut: it is forgotten, the rest is there,
// and the log goes on.
func TestTornTail(t *testing.T) {
	mem := vfs.NewCrashable()
	cfg := Config{Dir: "log", FS: mem, TrimEvery: -1}
	want := written(t, cfg, 12)
	left := without(want, lastThree(want, "key-1", "11"))
	whole := bytesOf(t, mem, segmentPath(1))
	offs := groupOffsets(t, mem, segmentPath(1), 1)
	last := int(offs[len(offs)-2])
	remove(t, mem, indexPath(1))
	r := rng(t)
	garbage := make([]byte, len(whole)-last)
	for i := range garbage {
		garbage[i] = byte(r.Uint32())
	}
	for _, tail := range [][]byte{nil, make([]byte, len(garbage)), garbage} {
		for cut := last; cut < len(whole); cut++ {
			b := slices.Clone(whole[:cut])
			if tail != nil {
				b = append(b, tail[:len(whole)-cut]...)
				if bytes.Equal(b[:endOfData(whole)], whole[:endOfData(whole)]) {
					continue // only padding is gone: the group is whole
				}
			}
			disk := mem.CrashClone(vfs.CrashCloneCfg{})
			put(t, disk, segmentPath(1), b)
			tornRound(t, Config{Dir: "log", FS: disk, TrimEvery: -1}, left, cut)
		}
	}
}

func endOfData(whole []byte) int { return len(bytes.TrimRight(whole, "\x00")) }

func tornRound(t *testing.T, cfg Config, left map[stream.ShardID][]kept, cut int) {
	t.Helper()
	rep, err := Verify(t.Context(), cfg)
	if err != nil || rep.Damaged() {
		t.Fatalf("cut at %d: verify %+v, %v; want no damage", cut, rep, err)
	}
	st := mustOpen(t, cfg)
	l := mustStream(t, st)
	mustHold(t, l, left)
	want := without(left, nil)
	mustAppend(t, l, want, "key-1", "goes on")
	mustHold(t, l, want)
	mustClose(t, st)
	st = mustOpen(t, cfg)
	mustHold(t, mustStream(t, st), want)
	mustClose(t, st)
}

// TestFlippedBits flips bits all over the log but its last group. Either nobody is told anything else than what was stored, or
// it is refused as damage; Salvage then brings back all but what was hit, under the same positions.
func TestFlippedBits(t *testing.T) {
	mem := vfs.NewCrashable()
	cfg := Config{Dir: "log", FS: mem, TrimEvery: -1}
	want := written(t, cfg, 10)
	whole := bytesOf(t, mem, segmentPath(1))
	for _, index := range []bool{true, false} {
		end := len(whole)
		if !index {
			// Without the index of a clean close the last group cannot be told from a torn write.
			remove(t, mem, indexPath(1))
			offs := groupOffsets(t, mem, segmentPath(1), 1)
			end = int(offs[len(offs)-2])
		}
		for at := rng(t).IntN(4); at < end; at += 4 { // another quarter each time
			disk := mem.CrashClone(vfs.CrashCloneCfg{})
			b := slices.Clone(whole)
			b[at] ^= 1 << (at % 8)
			put(t, disk, segmentPath(1), b)
			flipRound(t, Config{Dir: "log", FS: disk, TrimEvery: -1}, want, at)
		}
	}
}

func flipRound(t *testing.T, cfg Config, want map[stream.ShardID][]kept, at int) {
	t.Helper()
	st, err := Open(cfg)
	if err != nil {
		d, ok := errors.AsType[*stream.DamageError](err)
		if !ok || d.Path != segmentPath(1) || d.Hint == "" {
			t.Fatalf("bit flipped at %d: open: %v, want a DamageError of the segment", at, err)
		}
	} else {
		l := mustStream(t, st)
		noticed := false
		for id, w := range want {
			got, err := readShard(t.Context(), l, id, "")
			d, ok := errors.AsType[*stream.DamageError](err)
			if err != nil && !ok || len(got) > len(w) || !slices.Equal(got, w[:len(got)]) || err == nil && len(got) != len(w) {
				t.Fatalf("bit flipped at %d: %s: %v, %s", at, id, err, differ(got, w))
			}
			if ok {
				noticed = true
				if d.Offset > int64(at) {
					t.Fatalf("bit flipped at %d: %v", at, d)
				}
			}
		}
		mustAppend(t, l, map[stream.ShardID][]kept{}, "key-0", "appends go on")
		mustClose(t, st)
		if !noticed {
			return // padding
		}
	}
	rep, err := Verify(t.Context(), cfg)
	if err != nil || !rep.Damaged() {
		t.Fatalf("bit flipped at %d: verify finds nothing: %+v, %v", at, rep, err)
	}
	rep, err = Salvage(t.Context(), cfg)
	if err != nil || !rep.Damaged() || len(rep.Streams[0].Aside) != 1 {
		t.Fatalf("bit flipped at %d: salvage: %+v, %v", at, rep, err)
	}
	if again, err := Verify(t.Context(), cfg); err != nil || again.Damaged() {
		t.Fatalf("bit flipped at %d: verify after salvage: %+v, %v", at, again, err)
	}
	st = mustOpen(t, cfg)
	defer mustClose(t, st)
	l := mustStream(t, st)
	missing := rep.Streams[0].Missing
	for id, w := range want {
		left := slices.DeleteFunc(slices.Clone(w), func(k kept) bool {
			return slices.ContainsFunc(missing, func(m Missing) bool { return m.Shard == id && m.From <= k.Pos && k.Pos <= m.To })
		})
		got, err := readShard(t.Context(), l, id, "")
		got = slices.DeleteFunc(got, func(k kept) bool { return k.Data == "appends go on" })
		// At the end of the log nobody knows what is missing, so it is not in the report.
		if err != nil || len(got) > len(left) || !slices.Equal(got, left[:len(got)]) || len(left)-len(got) > 3 {
			t.Fatalf("bit flipped at %d: %s after salvage: %v, missing %v, %s", at, id, err, missing, differ(got, left))
		}
		if len(w) > 0 { // no position is given out twice
			recs := []stream.Record{{Key: w[0].Key}}
			if err := l.Append(t.Context(), recs); err != nil {
				t.Fatal(err)
			}
			if recs[0].Pos <= w[len(w)-1].Pos {
				t.Fatalf("bit flipped at %d: %s goes on at %s, %s was given out before", at, id, recs[0].Pos, w[len(w)-1].Pos)
			}
		}
	}
}

// TestDamageWhileReading: a block goes bad under an open log. Its readers are told, each time; other shards and appends go on.
func TestDamageWhileReading(t *testing.T) {
	mem := vfs.NewCrashable()
	cfg := Config{Dir: "log", FS: mem, SegmentBytes: 1000, TrimEvery: -1}
	want := written(t, cfg, 60)
	st := mustOpen(t, cfg)
	defer mustClose(t, st)
	l := mustStream(t, st)
	b := bytesOf(t, mem, segmentPath(1))
	i := bytes.Index(b, []byte("x1"))
	f, err := mem.OpenReadWrite(segmentPath(1), vfs.Category)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("y"), int64(i)); err != nil {
		t.Fatal(err)
	}
	mustClose(t, f)
	hit := 0
	for id, w := range want {
		got, err := readShard(t.Context(), l, id, "")
		if err == nil {
			if !slices.Equal(got, w) {
				t.Fatalf("%s: %s", id, differ(got, w))
			}
			continue
		}
		hit++
		after := stream.Position("")
		if len(got) > 0 {
			after = got[len(got)-1].Pos
		}
		r, err := l.Read(t.Context(), id, after)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := r.Next(t.Context(), 1); !isDamage(err) {
				t.Fatalf("%s: %v, want a DamageError", id, err)
			}
		}
		mustClose(t, r)
		mustAppend(t, l, want, w[0].Key, "appends go on")
	}
	if hit != 1 {
		t.Fatalf("%d shards are hit, want 1", hit)
	}
}

func isDamage(err error) bool {
	_, ok := errors.AsType[*stream.DamageError](err)
	return ok
}

// TestDamagedFiles loses or spoils whole files.
func TestDamagedFiles(t *testing.T) {
	mem := vfs.NewCrashable()
	cfg := Config{Dir: "log", FS: mem, SegmentBytes: 800, TrimEvery: -1}
	want := written(t, cfg, 60)
	names, err := mem.List("log/streams/test")
	if err != nil {
		t.Fatal(err)
	}
	f := func(path string, spoil func([]byte) []byte, refused bool) {
		t.Helper()
		disk := mem.CrashClone(vfs.CrashCloneCfg{})
		cfg.FS = disk
		if b := spoil(bytesOf(t, disk, path)); b != nil {
			put(t, disk, path, b)
		} else {
			remove(t, disk, path)
		}
		st, err := Open(cfg)
		if refused {
			if !isDamage(err) {
				t.Errorf("%s spoilt: %v, want a DamageError", path, err)
			}
			return
		}
		if err != nil {
			t.Errorf("%s spoilt: %v", path, err)
			return
		}
		mustHold(t, mustStream(t, st), want)
		mustClose(t, st)
	}
	gone := func([]byte) []byte { return nil }
	half := func(b []byte) []byte { return b[:len(b)/2] }
	flip := func(b []byte) []byte { b[len(b)/2] ^= 4; return b }
	for _, spoil := range []func([]byte) []byte{gone, half, flip} {
		for id := uint64(1); id < 5; id++ {
			f(indexPath(id), spoil, false) // rebuilt
		}
	}
	f(segmentPath(3), gone, true)
	f(segmentPath(3), half, true)
	f("log/streams/test/"+metaFile, flip, true)
	f("log/streams/test/"+metaFile, half, true)
	if len(names) < 10 {
		t.Fatalf("only %v", names)
	}

	// A missing segment is salvaged too: everything else is there, and the report names what is not.
	disk := mem.CrashClone(vfs.CrashCloneCfg{})
	cfg.FS = disk
	remove(t, disk, segmentPath(3))
	rep, err := Salvage(t.Context(), cfg)
	if err != nil || len(rep.Streams[0].Missing) == 0 {
		t.Fatalf("salvage without segment 3: %+v, %v", rep, err)
	}
	st := mustOpen(t, cfg)
	defer mustClose(t, st)
	for id, w := range want {
		left := slices.DeleteFunc(slices.Clone(w), func(k kept) bool {
			return slices.ContainsFunc(rep.Streams[0].Missing, func(m Missing) bool { return m.Shard == id && m.From <= k.Pos && k.Pos <= m.To })
		})
		if got, err := readShard(t.Context(), mustStream(t, st), id, ""); err != nil || !slices.Equal(got, left) || len(left) == len(w) {
			t.Fatalf("%s: %v, %s", id, err, differ(got, left))
		}
	}
}

// FuzzScan gives the scanner arbitrary bytes: it must neither panic nor take them for a group it did not write, nor read beyond them.
func FuzzScan(f *testing.F) {
	mem := vfs.NewCrashable()
	written(f, Config{Dir: "log", FS: mem, TrimEvery: -1}, 5)
	whole := bytesOf(f, mem, segmentPath(1))
	m, err := readMetadata(mem, "log/streams/test")
	if err != nil {
		f.Fatal(err)
	}
	offs := groupOffsets(f, mem, segmentPath(1), 1)
	f.Add(whole, uint16(0), byte(0))
	f.Add(whole[:len(whole)-7], uint16(100), byte(1))
	f.Add([]byte{}, uint16(0), byte(0))
	f.Fuzz(func(t *testing.T, b []byte, at uint16, flip byte) {
		b = slices.Clone(b)
		if len(b) > 0 {
			b[int(at)%len(b)] ^= flip
		}
		_, _, _ = decodeSegmentHeader(b, 1, m.salt)
		sc := &scanner{f: bytes.NewReader(b), path: "fuzz", seed: newSeed(m.salt, 1), size: int64(len(b))}
		tl := newTally(&segmentHeader{flags: flagSalvaged}, nil)
		for off := int64(0); off < sc.size; {
			next, found, err := sc.find(off)
			if err != nil {
				t.Fatal(err)
			}
			if !found {
				break
			}
			if _, why, err := sc.group(next); err != nil {
				t.Fatal(err)
			} else if why == "" && (!slices.Contains(offs, next) || !bytes.HasPrefix(b[next:], whole[next:next+groupFixed])) {
				t.Fatalf("a group at %d that nobody wrote", next)
			}
			if _, _, err := tl.read(sc, next); err != nil {
				t.Fatal(err)
			}
			off = next + align
		}
		_, _, _ = readIndex(bytes.NewReader(b), 1, m.salt)
		_, _ = decodeMetadata(b)
		for rest := b; ; {
			_, _, n := cutRecord(rest)
			if n == 0 || n > len(rest) {
				break
			}
			rest = rest[n:]
		}
	})
}

// FuzzRecord checks that what is encoded is read back, and that a cut-off record is none.
func FuzzRecord(f *testing.F) {
	f.Add("key", []byte("data"))
	f.Add("", []byte{})
	f.Add("k", make([]byte, 300))
	f.Fuzz(func(t *testing.T, key string, data []byte) {
		b := make([]byte, recordSize(key, data))
		if n := putRecord(b, key, data); n != len(b) {
			t.Fatalf("%d bytes written, %d announced", n, len(b))
		}
		k, d, n := cutRecord(b)
		if k != key || !bytes.Equal(d, data) || n != len(b) {
			t.Fatalf("read %q, %q, %d; want %q, %q, %d", k, d, n, key, data, len(b))
		}
		if cut := rand.IntN(len(b)); cut < len(b) {
			if _, _, n := cutRecord(b[:cut]); n != 0 {
				t.Fatalf("a record is read from %d of its %d bytes", cut, len(b))
			}
		}
	})
}
