package seglog

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
)

// openLog recovers a stream and starts it.
func (s *Store) openLog(name string) (*Log, error) {
	m, err := readMetadata(s.cfg.FS, s.streamDir(name))
	if err != nil {
		return nil, err
	}
	l := s.newLog(name, m)
	c, err := l.recover()
	if err != nil {
		return nil, err
	}
	l.met.segments.Set(float64(len(l.segments) + 1))
	l.met.stored.Set(float64(l.Stats().Bytes))
	l.start(c)
	return l, nil
}

func (s *Store) newLog(name string, m metadata) *Log {
	l := &Log{
		store: s, name: name, dir: s.streamDir(name), salt: m.salt, fs: s.cfg.FS, log: s.cfg.Log, met: s.met.of(name), meta: m,
		room: semaphore.NewWeighted(s.cfg.QueueBytes), ops: make(chan *op), stop: make(chan struct{}), sealed: make(chan struct{}, 1),
	}
	l.queue.ready = make(chan struct{}, 1)
	l.maxRecord.Store(int64(m.MaxRecordBytes))
	return l
}

// recover reads what the directory holds:
//
//  1. Remove what an interrupted step left: temporary files, and segments that the metadata disowns.
//  2. If the last segment has no valid header and no group, its creation was interrupted: set it aside.
//  3. Learn each sealed segment's length from its index file, or rebuild that.
//  4. Read the last segment to its end, from where its index says it was closed cleanly if it was. What follows the last valid
//     group is a torn tail, unless another group follows: the committer never writes a group before the one in front is
//     durable, so then something in between is damaged, and the log refuses to open.
func (l *Log) recover() (*committer, error) {
	if l.meta.Name != l.name {
		return nil, damaged(l.fs.PathJoin(l.dir, metaFile), 0, "it describes stream %q", l.meta.Name)
	}
	ids, err := l.tidyDir()
	if err != nil {
		return nil, err
	}
	if ids, err = l.setAsideUnborn(ids); err != nil {
		return nil, err
	}
	for i, id := range ids[:len(ids)-1] {
		seg, err := l.openSealed(id, ids[i+1])
		if err != nil {
			return nil, err
		}
		l.segments = append(l.segments, seg)
	}
	return l.openLast(ids[len(ids)-1])
}

// tidyDir removes what no longer counts and returns the segments that do, oldest first.
func (l *Log) tidyDir() ([]uint64, error) {
	names, err := l.fs.List(l.dir)
	if err != nil {
		return nil, err
	}
	var ids []uint64
	indexes := map[uint64]string{}
	for _, name := range names {
		path := l.fs.PathJoin(l.dir, name)
		if id, ok := parseName(name, segmentSuffix); ok && id >= l.meta.First {
			ids = append(ids, id)
		} else if ok || strings.HasSuffix(name, tmpSuffix) {
			if err := removeFile(l.fs, path); err != nil {
				return nil, err
			}
		}
		if id, ok := parseName(name, indexSuffix); ok {
			indexes[id] = path
		}
	}
	slices.Sort(ids)
	for id, path := range indexes {
		if _, ok := slices.BinarySearch(ids, id); !ok {
			if err := removeFile(l.fs, path); err != nil {
				return nil, err
			}
		}
	}
	if len(ids) == 0 {
		return nil, &stream.DamageError{Path: l.dir, Why: "it has no segment", Hint: "restore its files from a backup, or remove the directory to give the stream up"}
	}
	for i := 1; i < len(ids); i++ {
		if ids[i] != ids[i-1]+1 {
			return nil, damaged(l.fs.PathJoin(l.dir, segmentName(ids[i-1]+1)), 0, "the file is missing")
		}
	}
	if ids[0] > l.meta.First {
		l.log.Warn("the oldest segments are gone: somebody removed their files", "stream", l.name, "expected", l.meta.First, "found", ids[0])
	}
	return ids, nil
}

// setAsideUnborn moves the last segment to quarantine if a crash interrupted its creation. The one before is the last then.
func (l *Log) setAsideUnborn(ids []uint64) ([]uint64, error) {
	id := ids[len(ids)-1]
	path := l.fs.PathJoin(l.dir, segmentName(id))
	f, err := l.fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	_, _, err = readSegmentHeader(f, path, id, l.salt)
	bad, ok := errors.AsType[*stream.DamageError](err)
	if !ok {
		return ids, err
	}
	size, err := fileSize(f)
	if err != nil {
		return nil, err
	}
	sc := scanner{f: f, path: path, seed: newSeed(l.salt, id), size: size}
	if _, found, err := sc.find(0); err != nil || found || len(ids) == 1 {
		return nil, errors.Join(err, bad)
	}
	aside, err := l.quarantine(path)
	if err != nil {
		return nil, err
	}
	l.log.Warn("a crash interrupted the creation of a segment, which held nothing: it is set aside", "stream", l.name, "path", aside)
	return ids[:len(ids)-1], nil
}

// quarantine moves a file out of the stream's directory and returns where it is.
func (l *Log) quarantine(path string) (string, error) {
	dir := l.fs.PathJoin(l.store.cfg.Dir, quarantineDir, l.name)
	if err := makeDir(l.fs, dir); err != nil {
		return "", err
	}
	to := l.fs.PathJoin(dir, fmt.Sprintf("%s.%d", l.fs.PathBase(path), time.Now().UnixNano()))
	if err := l.fs.Rename(path, to); err != nil {
		return "", fmt.Errorf("set %s aside: %w", path, err)
	}
	return to, errors.Join(syncDir(l.fs, dir), syncDir(l.fs, l.dir))
}

// openSealed learns about a sealed segment, from its index file if there is a good one.
func (l *Log) openSealed(id, next uint64) (*segment, error) {
	seg := &segment{id: id, path: l.fs.PathJoin(l.dir, segmentName(id))}
	st, err := l.fs.Stat(seg.path)
	if err != nil {
		return nil, err
	}
	h, err := l.indexHead(id)
	if err == nil {
		seg.size, seg.first, seg.last = h.size, h.first, h.last
		if st.Size() < seg.size {
			return nil, damaged(seg.path, st.Size(), "the file ends here, %d bytes too early", seg.size-st.Size())
		}
		// A segment that was closed cleanly and then written on has an index that knows its first part only.
		if length, err := l.lengthOf(id, next); err != nil || length == seg.size {
			return seg, err
		}
	}
	length, err := l.lengthOf(id, next)
	if err != nil {
		return nil, err
	}
	if st.Size() < length {
		return nil, damaged(seg.path, st.Size(), "the file ends here, %d bytes too early", length-st.Size())
	}
	seg.size = length
	f, err := l.fs.Open(seg.path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	mem, err := l.rebuildIndex(f, seg)
	if err != nil {
		return nil, err
	}
	seg.mem.Store(&mem) // the keeper writes it
	return seg, nil
}

func (l *Log) indexHead(id uint64) (indexHeader, error) {
	f, err := l.fs.Open(l.fs.PathJoin(l.dir, indexName(id)))
	if err != nil {
		return indexHeader{}, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	h, _, err := readIndex(f, id, l.salt)
	return h, err
}

// lengthOf returns the valid length of a sealed segment, which the header of the next one knows.
func (l *Log) lengthOf(id, next uint64) (int64, error) {
	for _, i := range []uint64{id, next} {
		path := l.fs.PathJoin(l.dir, segmentName(i))
		f, err := l.fs.Open(path)
		if err != nil {
			return 0, err
		}
		h, _, err := readSegmentHeader(f, path, i, l.salt)
		if err = errors.Join(err, f.Close()); err != nil {
			return 0, err
		}
		if i == id && h.length != 0 {
			return h.length, nil // it was written whole, by Salvage
		}
		if i == next {
			return h.prev, nil
		}
	}
	panic("seglog: bug: no next segment")
}

// rebuildIndex makes the index of a sealed segment by reading it, and sets its times.
func (l *Log) rebuildIndex(f vfs.File, seg *segment) (memIndex, error) {
	h, off, err := readSegmentHeader(f, seg.path, seg.id, l.salt)
	if err != nil {
		return nil, err
	}
	t := newTally(&h, nil)
	end, why, err := t.read(&scanner{f: f, path: seg.path, seed: newSeed(l.salt, seg.id), size: seg.size}, off)
	if err != nil {
		return nil, err
	}
	if why != "" || end != seg.size {
		return nil, damaged(seg.path, end, "%s", why)
	}
	seg.first, seg.last = t.first, t.last
	return t.mem, nil
}

// A tally adds up the groups of a segment.
type tally struct {
	mem         memIndex
	first, last int64 // ms
	blocks      int
	gaps        bool // sequences may jump forward
}

// newTally begins with a segment's header, or with an index of its first part.
func newTally(h *segmentHeader, known memIndex) *tally {
	t := &tally{mem: memIndex{}, gaps: h.flags&flagSalvaged != 0}
	for _, s := range h.shards {
		t.mem[s.num] = shardIndex{start: s.next, next: s.next, last: s.last}
		t.last = max(t.last, s.last)
	}
	for n, s := range known {
		t.mem[n] = s
		t.blocks += len(s.blocks)
		t.last = max(t.last, s.last)
	}
	return t
}

// read adds all groups from off on and returns where they end; why says what is there instead, if anything is.
func (t *tally) read(sc *scanner, off int64) (end int64, why string, err error) {
	for off < sc.size {
		g, why, err := sc.group(off)
		if err != nil || why != "" {
			return off, why, err
		}
		if why := t.add(&g); why != "" {
			return off, why, nil
		}
		off += int64(len(g.bytes))
	}
	return off, "", nil
}

// add adds a group; why says what is impossible about it.
func (t *tally) add(g *group) (why string) {
	for i := range g.blocks {
		b := &g.blocks[i]
		s, ok := t.mem[b.shard]
		if !ok {
			s = shardIndex{start: 1, next: 1}
		}
		if b.seq < s.next || b.seq > s.next && !t.gaps {
			return fmt.Sprintf("%s continues at %d instead of %d", shardID(b.shard), b.seq, s.next)
		}
		s.blocks = append(s.blocks, b.block)
		s.next, s.last = b.end(), g.time
		t.mem[b.shard] = s
	}
	t.blocks += len(g.blocks)
	if t.first == 0 {
		t.first = g.time
	}
	t.last = max(t.last, g.time)
	return ""
}

// openLast recovers the segment that was being written and makes it the active one.
func (l *Log) openLast(id uint64) (_ *committer, err error) {
	seg := &segment{id: id, path: l.fs.PathJoin(l.dir, segmentName(id))}
	f, err := l.fs.OpenReadWrite(seg.path, vfs.Category)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	h, head, err := readSegmentHeader(f, seg.path, id, l.salt)
	if err != nil {
		return nil, err
	}
	size, err := fileSize(f)
	if err != nil {
		return nil, err
	}
	whole := h.length != 0 // Salvage wrote it, and a crash kept it from beginning the next segment
	if whole {
		size = h.length
	}
	from, known, first := head, memIndex(nil), int64(0)
	if ih, mem, err := l.wholeIndex(id); err == nil {
		if ih.size > size {
			return nil, damaged(seg.path, size, "the file ends here, %d bytes too early", ih.size-size)
		}
		from, known, first = ih.size, mem, ih.first
	}
	t := newTally(&h, known)
	t.first = first
	sc := &scanner{f: f, path: seg.path, seed: newSeed(l.salt, id), size: size}
	end, why, err := t.read(sc, from)
	if err != nil {
		return nil, err
	}
	if why != "" {
		if _, found, err := sc.find(end + align); err != nil || found {
			return nil, errors.Join(err, damaged(seg.path, end, "%s, but more groups follow", why))
		}
		l.log.Warn("the log ends in a torn write, of which nothing was acknowledged: it is forgotten", "stream", l.name, "path", seg.path,
			"offset", end, "bytes", size-end, "reason", why)
	}
	// What was read may be in the page cache alone, if only the process died. It must not be shown to anyone before it is on
	// disk, or power loss could take back what a reader has seen (P1).
	if err := f.Sync(); err != nil {
		return nil, fmt.Errorf("sync %s: %w", seg.path, err)
	}
	if err := syncDir(l.fs, l.dir); err != nil {
		return nil, err
	}
	if err := l.raise(seg, t, h.shards); err != nil {
		return nil, err
	}
	c := &committer{
		l: l, file: f, seg: seg, seed: sc.seed, off: end, room: end, held: t.blocks, torn: why != "" || whole, first: t.first,
		last: max(t.last, l.meta.Created),
	}
	l.activeSize.Store(end)
	l.activeFirst.Store(t.first)
	l.newest.Store(t.last)
	return c, nil
}

func (l *Log) wholeIndex(id uint64) (indexHeader, memIndex, error) {
	f, err := l.fs.Open(l.fs.PathJoin(l.dir, indexName(id)))
	if err != nil {
		return indexHeader{}, nil, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	return loadIndex(f, id, l.salt)
}

func byNumber(s shardStart, num uint32) int { return cmp.Compare(s.num, num) }

// raise makes the shards from the metadata and the last segment.
func (l *Log) raise(seg *segment, t *tally, starts []shardStart) error {
	var open []*shard
	for i := range l.meta.Shards {
		m := &l.meta.Shards[i]
		s, err := newShard(m, seg)
		if err != nil {
			return damaged(l.fs.PathJoin(l.dir, metaFile), 0, "%s: %v", shardID(m.Num), err)
		}
		if x, ok := t.mem[m.Num]; ok {
			s.start, s.blocks, s.last = x.start, x.blocks, x.last
			s.next = max(s.next, x.next)
			if s.newest == 0 {
				s.newest = s.next - 1
				if i, ok := slices.BinarySearchFunc(starts, m.Num, byNumber); ok && len(x.blocks) == 0 {
					s.newest -= uint64(starts[i].skipped)
				}
			}
		}
		if !s.closed {
			open = append(open, s)
		}
		l.shards = append(l.shards, s)
	}
	for num := range t.mem {
		if num >= l.meta.NextShard {
			return damaged(seg.path, 0, "it holds %s, which the stream has never had", shardID(num))
		}
	}
	l.active = seg
	r := newRoutes(open)
	if !r.tiles() {
		return damaged(l.fs.PathJoin(l.dir, metaFile), 0, "its open shards do not cover the ring of hashes once")
	}
	l.routes.Store(r)
	return nil
}
