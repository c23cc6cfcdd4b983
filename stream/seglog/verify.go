package seglog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
)

// A Report says what Verify or Salvage found.
type Report struct {
	Streams []StreamReport // by name
}

// Damaged tells whether anything was found.
func (r *Report) Damaged() bool {
	return slices.ContainsFunc(r.Streams, func(s StreamReport) bool { return len(s.Damage) > 0 })
}

// StreamReport is about one stream.
type StreamReport struct {
	Name     string
	Segments int
	Bytes    int64  // valid ones
	Records  uint64 // readable ones
	Torn     int64  // bytes of a torn write at the end, of which nothing was acknowledged; not damage
	Damage   []*stream.DamageError
	Missing  []Missing // what cannot be read because of the damage
	Aside    []string  // Salvage: where it moved the damaged files
}

// Missing is a range of records of one shard.
type Missing struct {
	Shard    stream.ShardID
	From, To stream.Position // first and last one
}

// Verify reads everything in a store that no process has open, and changes nothing. The error is about what kept it from
// looking, not about what it found.
func Verify(ctx context.Context, cfg Config) (*Report, error) { return inspect(ctx, cfg, false) }

// Salvage makes a damaged store usable again: it moves each damaged file into quarantine and writes what is readable of it in its
// place. Records keep their positions, so consumers go on; what is missing is in the report. Nothing is deleted.
func Salvage(ctx context.Context, cfg Config) (*Report, error) { return inspect(ctx, cfg, true) }

func inspect(ctx context.Context, cfg Config, mend bool) (_ *Report, err error) {
	cfg.Metrics = nil
	s, err := openDir(cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	names, err := s.cfg.FS.List(s.streamDir(""))
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	r := &Report{}
	for _, name := range names {
		if checkName(name) != nil {
			continue
		}
		sr, err := s.inspectStream(ctx, name, mend)
		if err != nil {
			return r, fmt.Errorf("stream %s: %w", name, err)
		}
		r.Streams = append(r.Streams, *sr)
	}
	return r, nil
}

// An inspection reads one stream from its oldest segment to the newest.
type inspection struct {
	l    *Log
	mend bool
	StreamReport
	next map[uint32]uint64 // by shard: the sequence that should come next
	last map[uint32]int64  // ms; by shard: its newest time up to the segment before
}

func (s *Store) inspectStream(ctx context.Context, name string, mend bool) (*StreamReport, error) {
	in := &inspection{mend: mend, StreamReport: StreamReport{Name: name}, next: map[uint32]uint64{}, last: map[uint32]int64{}}
	m, err := readMetadata(s.cfg.FS, s.streamDir(name))
	if d, ok := errors.AsType[*stream.DamageError](err); ok {
		in.Damage = append(in.Damage, d)
		return &in.StreamReport, nil // without the salt in it no segment can be told from garbage
	}
	if err != nil {
		return nil, err
	}
	in.l = s.newLog(name, m)
	ids, err := in.segments()
	if err != nil {
		return nil, err
	}
	if len(ids) == 0 {
		in.Damage = append(in.Damage, damaged(in.l.dir, 0, "it has no segment"))
		return &in.StreamReport, nil
	}
	for id := ids[0]; id <= ids[len(ids)-1]; id++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := in.segment(id, id == ids[len(ids)-1]); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(in.Missing, func(a, b Missing) int { return cmp.Or(cmp.Compare(a.Shard, b.Shard), cmp.Compare(a.From, b.From)) })
	return &in.StreamReport, nil
}

func (in *inspection) segments() (ids []uint64, err error) {
	names, err := in.l.fs.List(in.l.dir)
	for _, name := range names {
		if id, ok := parseName(name, segmentSuffix); ok && id >= in.l.meta.First {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, err
}

// A survey is what one segment turned out to hold.
type survey struct {
	path   string
	id     uint64
	newest bool
	header segmentHeader
	whole  bool // the header is good
	found  bool // there is a file
	size   int64
	end    int64 // of the last good group
	kept   []keptGroup
	tally  *tally
	damage []*stream.DamageError
	torn   int64
}

// keptGroup is what is readable of a group.
type keptGroup struct {
	off    int64
	places []int // of the readable blocks in the group's table
	blocks []tableBlock
}

func (in *inspection) segment(id uint64, newest bool) error {
	l := in.l
	sv := &survey{path: l.fs.PathJoin(l.dir, segmentName(id)), id: id, newest: newest}
	f, err := l.fs.Open(sv.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		sv.damage = append(sv.damage, damaged(sv.path, 0, "the file is missing"))
		sv.tally = in.continued()
	case err != nil:
		return err
	default:
		err := in.survey(sv, f)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	if newest && !sv.whole && len(sv.kept) == 0 && in.Segments > 0 {
		in.Torn += sv.size // its creation was interrupted, or nothing tells that from what it is; the next start sets it aside
		return nil
	}
	in.Segments++
	in.Bytes += sv.end
	in.Torn += sv.torn
	in.Damage = append(in.Damage, sv.damage...)
	switch {
	case len(sv.damage) == 0:
		err = in.checkIndex(sv)
	case in.mend:
		err = in.salvage(sv)
	default:
		err = nil
	}
	for num, s := range sv.tally.mem {
		in.last[num] = max(in.last[num], s.last)
	}
	return err
}

// continued is the tally of a segment whose header is lost: it begins where the one before ended.
func (in *inspection) continued() *tally {
	t := newTally(&segmentHeader{flags: flagSalvaged}, nil)
	for num, n := range in.next {
		t.mem[num] = shardIndex{start: n, next: n, last: in.last[num]}
	}
	return t
}

// reached notes that a shard goes on at seq.
func (in *inspection) reached(num uint32, seq uint64) {
	was, ok := in.next[num]
	if !ok {
		was = 1
		if in.Segments == 0 {
			was = seq // what came before is gone by retention
		}
	}
	if was < seq {
		in.Missing = append(in.Missing, Missing{shardID(num), formatPosition(was), formatPosition(seq - 1)})
	}
	in.next[num] = max(was, seq)
}

// survey reads a segment from its first byte to its last.
func (in *inspection) survey(sv *survey, f vfs.File) error {
	var err error
	if sv.size, err = fileSize(f); err != nil {
		return err
	}
	sv.found = true
	h, off, err := readSegmentHeader(f, sv.path, sv.id, in.l.salt)
	d, ok := errors.AsType[*stream.DamageError](err)
	if err != nil && !ok {
		return err
	}
	sv.header, sv.whole = h, err == nil
	limit, sure := in.limits(sv)
	if limit > sv.size {
		sv.damage = append(sv.damage, damaged(sv.path, sv.size, "the file ends here, %d bytes too early", limit-sv.size))
		limit = sv.size
	}
	sc := &scanner{f: f, path: sv.path, seed: newSeed(in.l.salt, sv.id), size: limit}
	if sv.whole {
		for _, s := range h.shards {
			in.reached(s.num, s.next)
		}
		sv.tally = newTally(&h, nil)
		sv.tally.gaps, sv.end = true, off
		return in.groups(sv, sc, off, sure)
	}
	sv.damage = append(sv.damage, d)
	sv.tally = in.continued()
	off, found, err := sc.find(0)
	if err != nil || !found {
		return err
	}
	return in.groups(sv, sc, off, sure)
}

// groups reads the groups from off on. What lies before sure was durable for certain.
func (in *inspection) groups(sv *survey, sc *scanner, off, sure int64) error {
	for off < sc.size {
		g, why, err := sc.group(off)
		if err != nil {
			return err
		}
		if why == "" {
			in.keep(sv, &g)
			off += int64(len(g.bytes))
			continue
		}
		next, found, err := sc.find(off + align)
		if err != nil {
			return err
		}
		if !found && sv.newest && off >= sure {
			sv.torn = sc.size - off
			return nil
		}
		if len(g.bytes) == 0 {
			sv.damage = append(sv.damage, damaged(sv.path, off, "%s", why))
		} else { // its table is good
			if g, why, err = sc.group(off); err != nil || why == "" {
				return fmt.Errorf("%s changes while it is read: %w", sv.path, errors.Join(err, errChecksum))
			}
			in.keep(sv, &g)
			next, found = off+int64(len(g.bytes)), true
		}
		if !found {
			return nil
		}
		off = next
	}
	return nil
}

// keep takes what is readable of a group.
func (in *inspection) keep(sv *survey, g *group) {
	k := keptGroup{off: g.off}
	for i := range g.blocks {
		b := &g.blocks[i]
		if slices.Contains(g.bad, i) {
			sv.damage = append(sv.damage, damaged(sv.path, int64(b.off), "the checksum of %d records of %s does not match", b.count, shardID(b.shard)))
			continue
		}
		if why := sv.tally.add(&group{time: g.time, blocks: g.blocks[i : i+1]}); why != "" {
			sv.damage = append(sv.damage, damaged(sv.path, int64(b.off), "%s", why))
			continue
		}
		in.reached(b.shard, b.seq)
		in.next[b.shard] = b.end()
		in.Records += uint64(b.count)
		k.places, k.blocks = append(k.places, i), append(k.blocks, *b)
	}
	if len(k.places) > 0 {
		sv.kept = append(sv.kept, k)
		sv.end = g.off + int64(len(g.bytes))
	}
}

// limits returns where a segment ends, and up to where it was durable for certain.
func (in *inspection) limits(sv *survey) (limit, sure int64) {
	if sv.whole && sv.header.length != 0 {
		return sv.header.length, sv.header.length
	}
	h, err := in.l.indexHead(sv.id)
	if sv.newest {
		if err != nil {
			return sv.size, 0
		}
		return max(sv.size, h.size), h.size
	}
	path := in.l.fs.PathJoin(in.l.dir, segmentName(sv.id+1))
	if f, ferr := in.l.fs.Open(path); ferr == nil {
		defer f.Close() //nolint:errcheck // opened for reading
		if next, _, herr := readSegmentHeader(f, path, sv.id+1, in.l.salt); herr == nil {
			return next.prev, next.prev
		}
	}
	if err == nil {
		return h.size, h.size
	}
	return sv.size, sv.size
}

// checkIndex compares a good segment with its index file. An index that is missing or old is no damage: it is rebuilt.
func (in *inspection) checkIndex(sv *survey) error {
	l := in.l
	path := l.fs.PathJoin(l.dir, indexName(sv.id))
	f, err := l.fs.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	h, mem, err := loadIndex(f, sv.id, l.salt)
	if cerr := f.Close(); cerr != nil {
		return cerr
	}
	if err == nil && h.size == sv.end {
		same := func(a, b shardIndex) bool { return a.next == b.next && slices.Equal(a.blocks, b.blocks) }
		for num, s := range sv.tally.mem {
			if got, ok := mem[num]; len(s.blocks) > 0 && (!ok || !same(got, s)) {
				err = fmt.Errorf("it does not describe %s as the segment does", shardID(num))
			}
		}
	}
	if err == nil {
		return nil
	}
	d := damaged(path, 0, "%v", err)
	d.Hint = "stop Milepost and remove this file: the next start rebuilds it"
	in.Damage = append(in.Damage, d)
	if !in.mend {
		return nil
	}
	aside, err := l.quarantine(path)
	in.Aside = append(in.Aside, aside)
	return err
}
