package seglog

import (
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/milepost/milepost/stream"
)

// routes tells which open shard takes a hash. It never changes; a split or merge publishes another.
type routes struct {
	shards []*shard // by From; they tile the ring
	from   []stream.Hash
}

func newRoutes(open []*shard) *routes {
	r := &routes{shards: slices.Clone(open)}
	slices.SortFunc(r.shards, func(a, b *shard) int {
		if a.from.Less(b.from) {
			return -1
		}
		return 1
	})
	for _, s := range r.shards {
		r.from = append(r.from, s.from)
	}
	return r
}

// tiles tells whether the shards cover each point of the ring once.
func (r *routes) tiles() bool {
	at := stream.Hash{}
	for i, s := range r.shards {
		if s.from != at || s.to.Less(s.from) || (s.to == stream.MaxHash) != (i == len(r.shards)-1) {
			return false
		}
		at = s.to.Next()
	}
	return len(r.shards) > 0
}

// slot returns the index of the shard that takes h.
func (r *routes) slot(h stream.Hash) int {
	lo, hi := 0, len(r.from) // the shard is in [lo, hi)
	for hi-lo > 1 {
		m := int(uint(lo+hi) >> 1)
		if h.Less(r.from[m]) {
			hi = m
		} else {
			lo = m
		}
	}
	return lo
}

// keyCache remembers the MD5 of keys: a fleet's keys are few and come again and again, and a hit costs a tenth of the hash.
// It is a table of fixed size without locks: a slot holds an immutable entry, or another key's, which is a miss.
type keyCache struct {
	seed  maphash.Seed
	slots []atomic.Pointer[keyEntry]
}

type keyEntry struct {
	key  string
	hash stream.Hash
}

const (
	keyCacheSlots = 1 << 17 // 1 MiB of pointers, and what entries take
	keyCacheMax   = 128     // longer keys are not cached, which bounds the memory to some 25 MiB
)

func newKeyCache() *keyCache {
	return &keyCache{seed: maphash.MakeSeed(), slots: make([]atomic.Pointer[keyEntry], keyCacheSlots)}
}

func (c *keyCache) hash(key string) stream.Hash {
	if len(key) > keyCacheMax {
		return stream.KeyHash(key)
	}
	slot := &c.slots[maphash.String(c.seed, key)&(keyCacheSlots-1)]
	e := slot.Load()
	if e != nil && e.key == key {
		return e.hash
	}
	h := stream.KeyHash(key)
	// Keys that share a slot must not evict each other at every record, for each entry is an allocation.
	if e == nil || rand.Uint32()&15 == 0 {
		slot.Store(&keyEntry{key: strings.Clone(key), hash: h})
	}
	return h
}
