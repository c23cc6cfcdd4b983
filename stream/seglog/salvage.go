package seglog

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/milepost/milepost/internal/vfs"
)

// salvage writes what is readable of a segment in its place, and moves the damaged file aside.
func (in *inspection) salvage(sv *survey) error {
	l := in.l
	tmp := sv.path + tmpSuffix
	h, err := in.rewrite(sv, tmp)
	if err != nil {
		return errors.Join(fmt.Errorf("salvage %s: %w", sv.path, err), removeFile(l.fs, tmp))
	}
	if sv.found {
		dir := l.fs.PathJoin(l.store.cfg.Dir, quarantineDir, l.name)
		if err := makeDir(l.fs, dir); err != nil {
			return err
		}
		// A second name first, so that the damaged file is under one name or the other whatever happens.
		aside := l.fs.PathJoin(dir, fmt.Sprintf("%s.%d", l.fs.PathBase(sv.path), time.Now().UnixNano()))
		if err := vfs.LinkOrCopy(l.fs, sv.path, aside); err != nil {
			return fmt.Errorf("set %s aside: %w", sv.path, err)
		}
		if err := syncDir(l.fs, dir); err != nil {
			return err
		}
		in.Aside = append(in.Aside, aside)
	}
	if err := l.fs.Rename(tmp, sv.path); err != nil {
		return fmt.Errorf("replace %s: %w", sv.path, err)
	}
	if err := errors.Join(removeFile(l.fs, l.fs.PathJoin(l.dir, indexName(sv.id))), syncDir(l.fs, l.dir)); err != nil {
		return err
	}
	if sv.newest {
		return in.follow(sv, h)
	}
	return nil
}

// rewrite writes the readable groups to a new file, each at its new offset and therefore with new checksums.
func (in *inspection) rewrite(sv *survey, path string) (h segmentHeader, err error) {
	l := in.l
	h = segmentHeader{id: sv.id, salt: l.salt, created: sv.header.created, prev: sv.header.prev, flags: flagSalvaged}
	if !sv.whole {
		// The length of the segment before is known from its index, or it is all of its file.
		if prev, err := l.indexHead(sv.id - 1); err == nil {
			h.prev = prev.size
		} else if st, err := l.fs.Stat(l.fs.PathJoin(l.dir, segmentName(sv.id-1))); err == nil {
			h.prev = st.Size()
		}
	}
	for num, s := range sv.tally.mem {
		h.shards = append(h.shards, shardStart{num: num, next: s.start, last: in.last[num]})
	}
	slices.SortFunc(h.shards, byStart)
	h.length = int64(segmentHeaderSize(len(h.shards)))
	for _, k := range sv.kept {
		h.length += int64(k.size())
	}
	out, err := l.fs.Create(path, vfs.Category)
	if err != nil {
		return h, err
	}
	defer func() {
		if err == nil {
			err = out.Sync()
		}
		err = errors.Join(err, out.Close())
	}()
	if _, err := out.Write(h.encode()); err != nil || len(sv.kept) == 0 {
		return h, err
	}
	f, err := l.fs.Open(sv.path)
	if err != nil {
		return h, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	sd := newSeed(l.salt, sv.id)
	sc := &scanner{f: f, path: sv.path, seed: sd, size: sv.size}
	at := int64(segmentHeaderSize(len(h.shards)))
	for _, k := range sv.kept {
		g, _, err := sc.group(k.off)
		if err != nil {
			return h, err
		}
		if len(g.blocks) <= k.places[len(k.places)-1] {
			return h, fmt.Errorf("%s changes while it is read", sv.path)
		}
		b := make([]byte, k.size())
		p := groupHead(len(k.blocks))
		for i, place := range k.places {
			k.blocks[i].off = uint32(at) + uint32(p)
			p += copy(b[p:], g.payload(place))
		}
		putGroup(b, sd, at, g.time, k.blocks)
		if _, err := out.Write(b); err != nil {
			return h, err
		}
		at += int64(len(b))
	}
	return h, nil
}

func byStart(a, b shardStart) int { return cmp.Compare(a.num, b.num) }

func (k *keptGroup) size() int {
	n := groupHead(len(k.blocks))
	for i := range k.blocks {
		n += int(k.blocks[i].size)
	}
	return padded(n)
}

// follow begins a new segment behind a salvaged newest one. How many records were lost at its end nobody knows, but each took two
// bytes or more: every shard goes on behind that many, so that no position a consumer has seen is given out again.
func (in *inspection) follow(sv *survey, h segmentHeader) error {
	l := in.l
	lost := min(uint64(max(sv.size-h.length, 0))/2+1, math.MaxUint32)
	next := &segment{id: sv.id + 1, path: l.fs.PathJoin(l.dir, segmentName(sv.id+1))}
	nh := segmentHeader{id: next.id, salt: l.salt, created: time.Now().UnixMilli(), prev: h.length}
	for num, s := range sv.tally.mem {
		nh.shards = append(nh.shards, shardStart{num: num, skipped: uint32(lost), next: s.next + lost, last: s.last})
	}
	slices.SortFunc(nh.shards, byStart)
	f, _, err := l.createSegment(next, &nh)
	if err != nil {
		return err
	}
	return f.Close()
}
