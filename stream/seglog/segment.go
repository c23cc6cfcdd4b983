package seglog

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
)

const (
	segmentSuffix = ".log"
	indexSuffix   = ".idx"
)

// A segment is one file of groups. Its fields do not change once it is sealed, but for mem.
type segment struct {
	id          uint64
	path        string
	size        int64 // valid length; what lies behind it is a forgotten torn tail
	first, last int64 // ms; times of its first and last group, 0 if it has none

	mem atomic.Pointer[memIndex] // of a sealed segment, until its index file is written; nil: ask the file
}

// memIndex is a sealed segment's whole index, by shard.
type memIndex map[uint32]shardIndex

// shardIndex is what an index says about one shard.
type shardIndex struct {
	start, next uint64 // sequence of the next record at the segment's start and at its end
	last        int64  // ms; time of the record before next
	blocks      []block
}

func segmentName(id uint64) string { return fmt.Sprintf("%016x%s", id, segmentSuffix) }

func indexName(id uint64) string { return fmt.Sprintf("%016x%s", id, indexSuffix) }

// parseName returns the segment that a file name belongs to.
func parseName(name, suffix string) (uint64, bool) {
	hex, ok := strings.CutSuffix(name, suffix)
	if !ok || len(hex) != 16 {
		return 0, false
	}
	id, err := strconv.ParseUint(hex, 16, 64)
	return id, err == nil
}

// damageHint is how an operator mends damaged segments.
const damageHint = "stop Milepost, copy the data directory, then run `milepost log salvage`, which keeps what is readable"

func damaged(path string, off int64, format string, args ...any) *stream.DamageError {
	return &stream.DamageError{Path: path, Offset: off, Why: fmt.Sprintf(format, args...), Hint: damageHint}
}

// fileSize returns an open file's size.
func fileSize(f vfs.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// readSegmentHeader reads the header of a segment. A header that cannot be believed is a *stream.DamageError.
func readSegmentHeader(f vfs.File, path string, id, salt uint64) (segmentHeader, int64, error) {
	size := segmentFixed
	for {
		b := make([]byte, size)
		n, err := f.ReadAt(b, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return segmentHeader{}, 0, fmt.Errorf("read %s: %w", path, err)
		}
		h, need, err := decodeSegmentHeader(b[:n], id, salt)
		switch {
		case err == nil:
			return h, int64(need), nil
		case errors.Is(err, errShort) && n == size && need > size:
			size = need
		default:
			return h, 0, damaged(path, 0, "segment header: %v", err)
		}
	}
}

// A scanner walks the groups of a segment.
type scanner struct {
	f    io.ReaderAt
	path string
	seed seed
	size int64 // of the file, or where to stop

	buf    []byte
	bufOff int64
	blocks []tableBlock
}

const scanWindow = 1 << 20

// window returns up to n bytes at off, fewer at the file's end. They are valid until the next call.
func (s *scanner) window(off int64, n int) ([]byte, error) {
	n = int(min(int64(n), s.size-off))
	if off >= s.bufOff && off+int64(n) <= s.bufOff+int64(len(s.buf)) {
		return s.buf[off-s.bufOff:][:n], nil
	}
	want := int(min(int64(max(n, scanWindow)), s.size-off))
	if cap(s.buf) < want {
		s.buf = make([]byte, want)
	}
	s.buf = s.buf[:want]
	got, err := s.f.ReadAt(s.buf, off)
	s.buf, s.bufOff = s.buf[:got], off
	if err != nil && !errors.Is(err, io.EOF) {
		s.buf = s.buf[:0]
		return nil, fmt.Errorf("read %s at %d: %w", s.path, off, err)
	}
	return s.buf[:min(n, got)], nil
}

// A group is one that the scanner found. It is valid until the scanner goes on.
type group struct {
	off    int64
	bytes  []byte
	time   int64
	blocks []tableBlock
	bad    []int // blocks whose payload fails its checksum
}

func (g *group) payload(i int) []byte {
	rel := int64(g.blocks[i].off) - g.off
	return g.bytes[rel : rel+int64(g.blocks[i].size)]
}

// head reads the header and table at off; why says why there is no group.
func (s *scanner) head(off int64) (h groupHeader, why string, err error) {
	b, err := s.window(off, groupFixed)
	if err != nil {
		return h, "", err
	}
	h, ok := parseGroupFixed(b)
	if !ok {
		return h, "no group begins here", nil
	}
	if b, err = s.window(off, groupHead(h.blocks)); err != nil {
		return h, "", err
	}
	if s.blocks, ok = parseGroupTable(b, s.seed, off, h, s.blocks[:0]); !ok {
		return h, "the checksum of the group header does not match", nil
	}
	return h, "", nil
}

// group reads the group at off. why says what is wrong with it; g.bad is filled if only payloads are.
func (s *scanner) group(off int64) (g group, why string, err error) {
	h, why, err := s.head(off)
	if why != "" || err != nil {
		return g, why, err
	}
	b, err := s.window(off, h.size)
	if err != nil {
		return g, "", err
	}
	if len(b) < h.size {
		return g, "the file ends within the group", nil
	}
	g = group{off: off, bytes: b, time: h.time, blocks: s.blocks}
	for i := range g.blocks {
		t := &g.blocks[i]
		if p := g.payload(i); s.seed.sum(int64(t.off), p) != t.crc || !wellFormed(p, t.count) {
			g.bad = append(g.bad, i)
		}
	}
	if len(g.bad) > 0 {
		why = "the checksum of a block does not match"
	}
	return g, why, nil
}

// wellFormed tells whether a payload is count records. With a matching checksum it always is, unless we wrote nonsense.
func wellFormed(p []byte, count uint32) bool {
	for ; count > 0; count-- {
		_, _, n := cutRecord(p)
		if n == 0 {
			return false
		}
		p = p[n:]
	}
	return len(p) == 0
}

// find returns the offset of the next group header that can be believed at or after off.
func (s *scanner) find(off int64) (int64, bool, error) {
	for off = int64(padded(int(off))); off+groupFixed <= s.size; off += align {
		b, err := s.window(off, 4)
		if err != nil {
			return 0, false, err
		}
		if len(b) < 4 || b[0] != byte(groupMagic&0xff) || b[1] != 'P' || b[2] != 'g' || b[3] != 'r' {
			continue
		}
		_, why, err := s.head(off)
		if err != nil {
			return 0, false, err
		}
		if why == "" {
			return off, true, nil
		}
	}
	return 0, false, nil
}
