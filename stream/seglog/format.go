package seglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"unsafe"
)

// The bytes of segments; FORMAT.md has the tables. All integers are little-endian, all checksums CRC-32C.
const (
	formatVersion = 1

	segmentMagic = "MPSEGLG" // the eighth byte is the version
	indexMagic   = "MPINDEX"
	groupMagic   = 0x7267504d // "MPgr"

	segmentFixed   = 56 // segment header before its shard table
	segmentEntry   = 24
	segmentTrailer = 8

	groupFixed = 32 // group header before its block table
	groupEntry = 24
	align      = 8 // groups begin at multiples of it

	maxKey       = 1 << 10  // bytes; Kinesis allows 256 characters
	maxRecord    = 10 << 20 // the largest MaxRecordBytes
	maxGroupSize = 1 << 30  // anything larger in a header is damage
)

//nolint:gochecknoglobals // a table
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Update(0, castagnoli, b) }

func updateChecksum(sum uint32, b []byte) uint32 { return crc32.Update(sum, castagnoli, b) }

func padded(n int) int { return (n + align - 1) &^ (align - 1) }

// segmentHeader begins every segment. The shard table carries each shard's place across the removal of all older segments.
type segmentHeader struct {
	id      uint64
	salt    uint64 // the stream's
	created int64  // ms
	prev    int64  // valid length of the segment before; 0 for the first. Bytes beyond it are a forgotten torn tail
	length  int64  // of this segment if it was written whole (by Salvage), else 0
	flags   uint32
	shards  []shardStart
}

const flagSalvaged = 1 // sequences may have gaps

type shardStart struct {
	num     uint32
	skipped uint32 // so many sequences before next hold no record: Salvage gives none out twice
	next    uint64 // sequence of the next record at the segment's start
	last    int64  // ms; time of the newest record before
}

func segmentHeaderSize(shards int) int { return segmentFixed + shards*segmentEntry + segmentTrailer }

func (h *segmentHeader) encode() []byte {
	b := make([]byte, segmentHeaderSize(len(h.shards)))
	copy(b, segmentMagic)
	b[7] = formatVersion
	le := binary.LittleEndian
	le.PutUint64(b[8:], h.id)
	le.PutUint64(b[16:], h.salt)
	le.PutUint64(b[24:], uint64(h.created))
	le.PutUint64(b[32:], uint64(h.prev))
	le.PutUint64(b[40:], uint64(h.length))
	le.PutUint32(b[48:], uint32(len(h.shards)))
	le.PutUint32(b[52:], h.flags)
	p := segmentFixed
	for _, s := range h.shards {
		le.PutUint32(b[p:], s.num)
		le.PutUint32(b[p+4:], s.skipped)
		le.PutUint64(b[p+8:], s.next)
		le.PutUint64(b[p+16:], uint64(s.last))
		p += segmentEntry
	}
	le.PutUint32(b[p:], checksum(b[:p]))
	return b
}

var (
	errShort    = errors.New("it ends too early")
	errMagic    = errors.New("the magic number is wrong")
	errChecksum = errors.New("the checksum does not match")
)

// decodeSegmentHeader reads a header from the start of b and returns its size. errShort: b must be longer.
func decodeSegmentHeader(b []byte, id, salt uint64) (h segmentHeader, size int, err error) {
	if len(b) < segmentFixed {
		return h, segmentFixed, errShort
	}
	if string(b[:7]) != segmentMagic {
		return h, 0, errMagic
	}
	le := binary.LittleEndian
	n := int(le.Uint32(b[48:]))
	if n > 1<<24 {
		return h, 0, errChecksum
	}
	size = segmentHeaderSize(n)
	if len(b) < size {
		return h, size, errShort
	}
	p := size - segmentTrailer
	if checksum(b[:p]) != le.Uint32(b[p:]) {
		return h, 0, errChecksum
	}
	if b[7] != formatVersion {
		return h, 0, fmt.Errorf("its version is %d, this program knows %d: use a newer one", b[7], formatVersion)
	}
	h = segmentHeader{
		id: le.Uint64(b[8:]), salt: le.Uint64(b[16:]), created: int64(le.Uint64(b[24:])),
		prev: int64(le.Uint64(b[32:])), length: int64(le.Uint64(b[40:])), flags: le.Uint32(b[52:]),
		shards: make([]shardStart, n),
	}
	if h.id != id || h.salt != salt {
		return h, 0, fmt.Errorf("it belongs elsewhere: segment %d of stream salt %016x", h.id, h.salt)
	}
	for i := range h.shards {
		e := b[segmentFixed+i*segmentEntry:]
		h.shards[i] = shardStart{num: le.Uint32(e), skipped: le.Uint32(e[4:]), next: le.Uint64(e[8:]), last: int64(le.Uint64(e[16:]))}
	}
	return h, size, nil
}

// A block is the records of one shard in one group, as the index knows them.
type block struct {
	seq   uint64 // of its first record
	time  int64  // ms, of all its records
	off   uint32 // of its payload in the segment
	size  uint32
	count uint32
	crc   uint32 // seeded by segment and offset
}

func (b *block) end() uint64 { return b.seq + uint64(b.count) }

// A seed is the checksum state that a segment's bytes start from, so that bytes of another life, segment, or place never match.
type seed uint32

func newSeed(salt, segment uint64) seed {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], salt)
	binary.LittleEndian.PutUint64(b[8:], segment)
	return seed(checksum(b[:]))
}

// sum is the checksum of bytes that lie at an offset of the segment.
func (s seed) sum(off int64, b []byte) uint32 {
	// The offset is mixed into the starting state instead of being hashed: two offsets never share a state, at no cost.
	return crc32.Update(uint32(s)^uint32(off)^uint32(off>>32), castagnoli, b)
}

// tableBlock is an entry of a group's block table.
type tableBlock struct {
	shard uint32
	block
}

// groupSize is the size of a group's header and table.
func groupHead(blocks int) int { return groupFixed + blocks*groupEntry }

// putGroup fills the header and table of a group at off whose payloads already stand in b with b[groupHead:] and
// whose blocks have their offsets. b is the whole group, padded.
func putGroup(b []byte, s seed, off, ms int64, blocks []tableBlock) {
	le := binary.LittleEndian
	le.PutUint32(b, groupMagic)
	le.PutUint32(b[8:], uint32(len(b)))
	le.PutUint32(b[12:], uint32(len(blocks)))
	le.PutUint64(b[16:], uint64(ms))
	le.PutUint64(b[24:], 0)
	p := groupFixed
	for i := range blocks {
		t := &blocks[i]
		rel := int64(t.off) - off
		t.crc = s.sum(int64(t.off), b[rel:rel+int64(t.size)])
		t.time = ms
		le.PutUint32(b[p:], t.shard)
		le.PutUint32(b[p+4:], t.count)
		le.PutUint64(b[p+8:], t.seq)
		le.PutUint32(b[p+16:], t.size)
		le.PutUint32(b[p+20:], t.crc)
		p += groupEntry
	}
	le.PutUint32(b[4:], s.sum(off, b[8:p]))
}

// groupHeader is what the fixed part of a group says; nothing of it is to be believed before the checksum of the table.
type groupHeader struct {
	size   int
	blocks int
	time   int64
	crc    uint32
}

func parseGroupFixed(b []byte) (g groupHeader, ok bool) {
	le := binary.LittleEndian
	if len(b) < groupFixed || le.Uint32(b) != groupMagic {
		return g, false
	}
	g = groupHeader{size: int(le.Uint32(b[8:])), blocks: int(le.Uint32(b[12:])), time: int64(le.Uint64(b[16:])), crc: le.Uint32(b[4:])}
	ok = g.size <= maxGroupSize && g.size%align == 0 && g.blocks > 0 && g.blocks <= g.size/groupEntry && groupHead(g.blocks) <= g.size
	return g, ok
}

// parseGroupTable checks the header and table of the group at off, which b begins with, and appends its blocks.
func parseGroupTable(b []byte, s seed, off int64, g groupHeader, blocks []tableBlock) ([]tableBlock, bool) {
	head := groupHead(g.blocks)
	if len(b) < head || s.sum(off, b[8:head]) != g.crc {
		return blocks, false
	}
	le := binary.LittleEndian
	at, n := off+int64(head), len(blocks)
	for p := groupFixed; p < head; p += groupEntry {
		t := tableBlock{shard: le.Uint32(b[p:]), block: block{
			seq: le.Uint64(b[p+8:]), time: g.time, off: uint32(at), size: le.Uint32(b[p+16:]), count: le.Uint32(b[p+4:]), crc: le.Uint32(b[p+20:]),
		}}
		at += int64(t.size)
		blocks = append(blocks, t)
	}
	if padded(int(at-off)) != g.size {
		return blocks[:n], false // cannot happen with a matching checksum; believe nothing
	}
	return blocks, true
}

// recordSize is what a record takes in a block.
func recordSize(key string, data []byte) int {
	return uvarintLen(len(key)) + len(key) + uvarintLen(len(data)) + len(data)
}

func uvarintLen(n int) int {
	w := 1
	for ; n >= 0x80; n >>= 7 {
		w++
	}
	return w
}

// putRecord writes a record at the start of b, which has room, and returns its size.
func putRecord(b []byte, key string, data []byte) int {
	p := putUvarint(b, len(key))
	p += copy(b[p:], key)
	p += putUvarint(b[p:], len(data))
	return p + copy(b[p:], data)
}

func putUvarint(b []byte, n int) int {
	i := 0
	for ; n >= 0x80; n >>= 7 {
		b[i] = byte(n) | 0x80
		i++
	}
	b[i] = byte(n)
	return i + 1
}

// cutRecord reads the record at the start of b. Key and data alias b. size is 0 if b does not begin with a record.
func cutRecord(b []byte) (key string, data []byte, size int) {
	k, w := cutLen(b)
	if w == 0 || k > len(b)-w {
		return "", nil, 0
	}
	p := w + k
	d, v := cutLen(b[p:])
	if v == 0 || d > len(b)-p-v {
		return "", nil, 0
	}
	q := p + v
	if k > 0 {
		key = unsafe.String(&b[w], k)
	}
	return key, b[q : q+d : q+d], q + d
}

// cutLen reads a length; w is 0 if there is none that could be meant.
func cutLen(b []byte) (n, w int) {
	if len(b) > 0 && b[0] < 0x80 {
		return int(b[0]), 1
	}
	v, w := binary.Uvarint(b)
	if w <= 0 || v > maxGroupSize {
		return 0, 0
	}
	return int(v), w
}
