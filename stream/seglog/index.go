package seglog

import (
	"container/list"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"sync"

	"github.com/milepost/milepost/internal/vfs"
)

// An index file says where a sealed segment's blocks are, by shard. It can always be rebuilt from the segment.
const (
	indexFixed   = 64
	indexEntry   = 48
	indexBlock   = 32
	indexMaxSize = 1 << 28
)

// indexHeader is the fixed part of an index file.
type indexHeader struct {
	size        int64 // valid length of the segment
	first, last int64 // ms
}

// dirEntry is one shard in the directory of an index file.
type dirEntry struct {
	num         uint32
	count       uint32 // blocks
	start, next uint64
	last        int64
	off         int64 // of its blocks in the file
	crc         uint32
}

// encodeIndex returns the index file of a segment.
func encodeIndex(seg *segment, salt uint64, mem memIndex) []byte {
	nums := make([]uint32, 0, len(mem))
	blocks := 0
	for n, s := range mem {
		nums = append(nums, n)
		blocks += len(s.blocks)
	}
	slices.Sort(nums)
	at := indexFixed + len(nums)*indexEntry
	b := make([]byte, at+blocks*indexBlock)
	le := binary.LittleEndian
	copy(b, indexMagic)
	b[7] = formatVersion
	le.PutUint64(b[8:], seg.id)
	le.PutUint64(b[16:], salt)
	le.PutUint64(b[24:], uint64(seg.size))
	le.PutUint64(b[32:], uint64(seg.first))
	le.PutUint64(b[40:], uint64(seg.last))
	le.PutUint32(b[48:], uint32(len(nums)))
	p := indexFixed
	for _, n := range nums {
		s := mem[n]
		begin := at
		for i := range s.blocks {
			k := &s.blocks[i]
			le.PutUint64(b[at:], k.seq)
			le.PutUint64(b[at+8:], uint64(k.time))
			le.PutUint32(b[at+16:], k.off)
			le.PutUint32(b[at+20:], k.size)
			le.PutUint32(b[at+24:], k.count)
			le.PutUint32(b[at+28:], k.crc)
			at += indexBlock
		}
		le.PutUint32(b[p:], n)
		le.PutUint32(b[p+4:], uint32(len(s.blocks)))
		le.PutUint64(b[p+8:], s.start)
		le.PutUint64(b[p+16:], s.next)
		le.PutUint64(b[p+24:], uint64(s.last))
		le.PutUint64(b[p+32:], uint64(begin))
		le.PutUint32(b[p+40:], checksum(b[begin:at]))
		p += indexEntry
	}
	// The checksum covers the header (but itself) and the directory, which has the checksums of the rest.
	le.PutUint32(b[52:], indexSum(b[:p]))
	return b
}

func indexSum(head []byte) uint32 {
	var zero [4]byte
	sum := checksum(head[:52])
	for _, part := range [][]byte{zero[:], head[56:]} {
		sum = updateChecksum(sum, part)
	}
	return sum
}

// readIndex reads the header and directory of an index file. Any error means: rebuild it.
func readIndex(f io.ReaderAt, id, salt uint64) (indexHeader, []dirEntry, error) {
	b := make([]byte, indexFixed)
	if _, err := f.ReadAt(b, 0); err != nil {
		return indexHeader{}, nil, fmt.Errorf("index header: %w", err)
	}
	le := binary.LittleEndian
	n := int(le.Uint32(b[48:]))
	if string(b[:7]) != indexMagic || b[7] != formatVersion || n > indexMaxSize/indexEntry {
		return indexHeader{}, nil, errMagic
	}
	sum := le.Uint32(b[52:])
	b = append(b, make([]byte, n*indexEntry)...)
	if _, err := f.ReadAt(b[indexFixed:], indexFixed); err != nil && n > 0 {
		return indexHeader{}, nil, fmt.Errorf("index directory: %w", err)
	}
	if indexSum(b) != sum {
		return indexHeader{}, nil, errChecksum
	}
	if le.Uint64(b[8:]) != id || le.Uint64(b[16:]) != salt {
		return indexHeader{}, nil, errors.New("index of another segment")
	}
	h := indexHeader{size: int64(le.Uint64(b[24:])), first: int64(le.Uint64(b[32:])), last: int64(le.Uint64(b[40:]))}
	dir := make([]dirEntry, n)
	for i := range dir {
		e := b[indexFixed+i*indexEntry:]
		dir[i] = dirEntry{
			num: le.Uint32(e), count: le.Uint32(e[4:]), start: le.Uint64(e[8:]), next: le.Uint64(e[16:]), last: int64(le.Uint64(e[24:])),
			off: int64(le.Uint64(e[32:])), crc: le.Uint32(e[40:]),
		}
	}
	return h, dir, nil
}

// readIndexBlocks reads the blocks of one shard.
func readIndexBlocks(f io.ReaderAt, e *dirEntry) ([]block, error) {
	if e.count == 0 {
		return nil, nil
	}
	b := make([]byte, int(e.count)*indexBlock)
	if _, err := f.ReadAt(b, e.off); err != nil {
		return nil, fmt.Errorf("index blocks: %w", err)
	}
	if checksum(b) != e.crc {
		return nil, errChecksum
	}
	le := binary.LittleEndian
	blocks := make([]block, e.count)
	for i := range blocks {
		p := b[i*indexBlock:]
		blocks[i] = block{
			seq: le.Uint64(p), time: int64(le.Uint64(p[8:])), off: le.Uint32(p[16:]), size: le.Uint32(p[20:]), count: le.Uint32(p[24:]),
			crc: le.Uint32(p[28:]),
		}
	}
	return blocks, nil
}

// loadIndex reads an index file whole.
func loadIndex(f io.ReaderAt, id, salt uint64) (indexHeader, memIndex, error) {
	h, dir, err := readIndex(f, id, salt)
	if err != nil {
		return h, nil, err
	}
	mem := make(memIndex, len(dir))
	for i := range dir {
		blocks, err := readIndexBlocks(f, &dir[i])
		if err != nil {
			return h, nil, err
		}
		mem[dir[i].num] = shardIndex{start: dir[i].start, next: dir[i].next, last: dir[i].last, blocks: blocks}
	}
	return h, mem, nil
}

// writeIndex puts a segment's index file in place. Its directory entry need not be durable: a lost index is rebuilt.
func writeIndex(fsys vfs.FS, dir string, seg *segment, salt uint64, mem memIndex) error {
	path := fsys.PathJoin(dir, indexName(seg.id))
	if err := writeFile(fsys, path+tmpSuffix, encodeIndex(seg, salt, mem)); err != nil {
		return errors.Join(err, removeFile(fsys, path+tmpSuffix))
	}
	if err := fsys.Rename(path+tmpSuffix, path); err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return nil
}

// indexCache keeps what was read of index files, least recently used out first.
type indexCache struct {
	mu    sync.Mutex // guards the following; files are read outside of it
	max   int64
	size  int64
	order *list.List // of *cached, most recent first
	byKey map[cacheKey]*list.Element
}

type cacheKey struct {
	seg   *segment
	shard int64 // -1: the directory
}

type cached struct {
	key    cacheKey
	size   int64
	dir    []dirEntry
	blocks []block
}

func newIndexCache(max int64) *indexCache {
	return &indexCache{max: max, order: list.New(), byKey: map[cacheKey]*list.Element{}}
}

func (c *indexCache) get(k cacheKey) *cached {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byKey[k]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	v, _ := e.Value.(*cached)
	return v
}

func (c *indexCache) put(v *cached) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byKey[v.key] != nil {
		return // another reader was faster
	}
	c.byKey[v.key] = c.order.PushFront(v)
	c.size += v.size
	for c.size > c.max && c.order.Len() > 1 {
		e := c.order.Back()
		old, _ := c.order.Remove(e).(*cached)
		delete(c.byKey, old.key)
		c.size -= old.size
	}
}

// bounds returns what a sealed segment's index says about a shard, without its blocks; ok is false if the shard is younger.
func (l *Log) bounds(seg *segment, num uint32) (e dirEntry, ok bool, err error) {
	if mem := seg.mem.Load(); mem != nil {
		s, ok := (*mem)[num]
		return dirEntry{num: num, count: uint32(len(s.blocks)), start: s.start, next: s.next, last: s.last}, ok, nil
	}
	key := cacheKey{seg, -1}
	v := l.store.cache.get(key)
	if v == nil {
		v = &cached{key: key}
		err := l.withIndex(seg, func(f vfs.File) error {
			_, dir, err := readIndex(f, seg.id, l.salt)
			v.dir, v.size = dir, int64(len(dir))*indexEntry
			return err
		})
		if err != nil {
			return e, false, err
		}
		l.store.cache.put(v)
	}
	i := sort.Search(len(v.dir), func(i int) bool { return v.dir[i].num >= num })
	if i == len(v.dir) || v.dir[i].num != num {
		return e, false, nil
	}
	return v.dir[i], true, nil
}

// blocksOf returns a shard's blocks in a sealed segment. They are shared: do not write to them.
func (l *Log) blocksOf(seg *segment, num uint32) ([]block, error) {
	if mem := seg.mem.Load(); mem != nil {
		return (*mem)[num].blocks, nil
	}
	key := cacheKey{seg, int64(num)}
	if v := l.store.cache.get(key); v != nil {
		return v.blocks, nil
	}
	e, ok, err := l.bounds(seg, num)
	if err != nil || !ok || e.count == 0 {
		return nil, err
	}
	v := &cached{key: key, size: int64(e.count) * indexBlock}
	err = l.withIndex(seg, func(f vfs.File) error {
		var err error
		v.blocks, err = readIndexBlocks(f, &e)
		return err
	})
	if err != nil {
		return nil, err
	}
	l.store.cache.put(v)
	return v.blocks, nil
}

// withIndex runs f on a segment's index file. If the file is missing or damaged it is rebuilt from the segment first, once.
func (l *Log) withIndex(seg *segment, f func(vfs.File) error) error {
	path := l.fs.PathJoin(l.dir, indexName(seg.id))
	try := func() error {
		file, err := l.fs.Open(path)
		if err != nil {
			return err
		}
		defer file.Close() //nolint:errcheck // opened for reading
		return f(file)
	}
	err := try()
	if err == nil {
		return nil
	}
	l.rebuildMu.Lock()
	defer l.rebuildMu.Unlock()
	if try() == nil {
		return nil // another reader was faster
	}
	file, ferr := l.fs.Open(seg.path)
	if ferr != nil {
		return fmt.Errorf("open %s: %w", seg.path, ferr)
	}
	defer file.Close() //nolint:errcheck // opened for reading
	l.log.Warn("index is rebuilt from its segment", "stream", l.name, "path", path, "error", err)
	mem, err := l.rebuildIndex(file, seg)
	if err != nil {
		return err
	}
	if err := writeIndex(l.fs, l.dir, seg, l.salt, mem); err != nil {
		// No room, perhaps. Reading goes on: the index stays in memory until the keeper can write it.
		l.log.Warn("index cannot be written and is kept in memory", "stream", l.name, "error", err)
		seg.mem.Store(&mem)
		return nil
	}
	return try()
}
