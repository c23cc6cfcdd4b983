package seglog

import (
	"slices"
	"sync"
	"time"

	"github.com/milepost/milepost/stream"
)

// A shard is the memory of one shard: where it ends, and the block index of the active segment.
//
// The committer alone changes it, under mu where others look; so the committer reads without the lock. Readers copy blocks
// under mu and then use their copy freely: the committer only appends behind its length.
type shard struct {
	num      uint32
	id       stream.ShardID
	from, to stream.Hash

	mu      sync.Mutex // guards the following; nothing blocks under it
	next    uint64     // sequence of the next record; all before it are durable
	newest  uint64     // sequence of the newest record: next-1, unless Salvage has skipped some
	last    int64      // ms; time of the newest record
	closed  bool       // takes no more records
	seg     *segment   // the active segment, which blocks describes
	start   uint64     // next when seg began
	blocks  []block
	waiters []chan struct{} // readers at the tail, each with a channel of capacity 1

	pend []pendingPiece // the committer's, between gathering and writing
}

type pendingPiece struct {
	r *request
	i int
}

func newShard(m *shardMeta, seg *segment) (*shard, error) {
	s := &shard{num: m.Num, id: shardID(m.Num), next: 1, start: 1, seg: seg, closed: m.ClosedMS != 0}
	if s.closed {
		s.next, s.newest = m.End+1, m.End
		s.start = s.next
	}
	var err error
	if s.from, err = parseHash(m.From); err != nil {
		return nil, err
	}
	s.to, err = parseHash(m.To)
	return s, err
}

// wake lets the waiting readers look again. mu is held.
func (s *shard) wake() {
	for i, w := range s.waiters {
		select {
		case w <- struct{}{}:
		default:
		}
		s.waiters[i] = nil
	}
	s.waiters = s.waiters[:0]
}

// forget removes a reader that no longer waits.
func (s *shard) forget(w chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.waiters, w); i >= 0 {
		s.waiters = slices.Delete(s.waiters, i, i+1)
	}
}

// tip returns the shard's end.
func (s *shard) tip() stream.Tip {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := stream.Tip{Pos: formatPosition(s.newest), Seq: s.newest}
	if s.last != 0 {
		t.Time = time.UnixMilli(s.last)
	}
	return t
}

func (m *shardMeta) public() (stream.Shard, error) {
	s := stream.Shard{ID: shardID(m.Num), Created: time.UnixMilli(m.Created), Closed: m.ClosedMS != 0}
	for _, p := range m.Parents {
		s.Parents = append(s.Parents, shardID(p))
	}
	if s.Closed {
		s.End = formatPosition(m.End)
	}
	var err error
	if s.From, err = parseHash(m.From); err != nil {
		return s, err
	}
	s.To, err = parseHash(m.To)
	return s, err
}
