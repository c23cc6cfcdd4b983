package kinesisapi

import (
	"context"
	"slices"
	"time"

	"github.com/milepost/milepost/ingest/kinesisapi/sequence"
	"github.com/milepost/milepost/stream"
)

// On-demand streams follow their load. Each sample compares a shard's rate with what a shard takes at AWS, so that a stream that
// moves there later needs the shards it has here: one that uses more than hotShare for hotSamples samples in a row is split in the
// middle, and two neighbours that together use less than coldShare for coldSamples are merged. The distance between the two
// thresholds keeps what was just split from being merged again.
const (
	hotShare    = 0.7
	coldShare   = 0.2
	hotSamples  = 2
	coldSamples = 40
	minOnDemand = 4
	maxOnDemand = 200
)

// scaler remembers the samples of one stream.
type scaler struct {
	at     time.Time
	shards map[stream.ShardID]*loadState
}

type loadState struct {
	bytes, records uint64  // counters at the last sample
	share          float64 // of a shard's throughput, in the last sample
	hot, cold      int     // samples in a row
	known          bool
}

// A load is what a shard has taken since the process began.
type load struct {
	shard          stream.Shard
	bytes, records uint64
}

// A move is what the scaler wants done: split one shard, or merge two.
type move struct {
	split        stream.ShardID
	at           stream.Hash
	merge, other stream.ShardID
}

// sample takes one measurement of the open shards, in the order of the ring, and returns what is to be done.
func (s *scaler) sample(now time.Time, loads []load, least int) (m move, want bool) {
	elapsed := now.Sub(s.at).Seconds()
	if s.shards == nil {
		s.shards = map[stream.ShardID]*loadState{}
	}
	s.at = now
	seen := make(map[stream.ShardID]bool, len(loads))
	for _, l := range loads {
		seen[l.shard.ID] = true
		st := s.shards[l.shard.ID]
		if st == nil {
			st = &loadState{}
			s.shards[l.shard.ID] = st
		}
		if st.known && elapsed > 0 {
			st.share = max(float64(l.bytes-st.bytes)/putBytesRate, float64(l.records-st.records)/putRecordsRate) / elapsed
			st.hot, st.cold = st.hot+1, st.cold+1
			if st.share <= hotShare {
				st.hot = 0
			}
			if st.share >= coldShare {
				st.cold = 0
			}
		}
		st.bytes, st.records, st.known = l.bytes, l.records, true
	}
	for id := range s.shards {
		if !seen[id] {
			delete(s.shards, id)
		}
	}
	return s.decide(loads, least)
}

func (s *scaler) decide(loads []load, least int) (m move, want bool) {
	best := -1
	for i, l := range loads {
		st := s.shards[l.shard.ID]
		if st.hot >= hotSamples && splittable(l.shard) && (best < 0 || st.share > s.shards[loads[best].shard.ID].share) {
			best = i
		}
	}
	if best >= 0 && len(loads) < maxOnDemand {
		return move{split: loads[best].shard.ID, at: middle(loads[best].shard)}, true
	}
	if best >= 0 || len(loads) <= least {
		return m, false
	}
	for i := 1; i < len(loads); i++ {
		a, b := s.shards[loads[i-1].shard.ID], s.shards[loads[i].shard.ID]
		if a.cold >= coldSamples && b.cold >= coldSamples && a.share+b.share < coldShare {
			return move{merge: loads[i-1].shard.ID, other: loads[i].shard.ID}, true
		}
	}
	return m, false
}

// splittable tells whether both halves would hold a hash at least.
func splittable(s stream.Shard) bool { return s.From.Less(s.To) }

// middle returns the first point of the upper half.
func middle(s stream.Shard) stream.Hash {
	// From + (To-From)/2 + 1, without the carry that From+To would need.
	hi, lo := s.To.Hi-s.From.Hi, s.To.Lo-s.From.Lo
	if s.To.Lo < s.From.Lo {
		hi--
	}
	lo, hi = lo>>1|hi<<63, hi>>1
	h := stream.Hash{Hi: s.From.Hi + hi, Lo: s.From.Lo + lo}
	if h.Lo < lo {
		h.Hi++
	}
	return h.Next()
}

// scale samples an on-demand stream when that is due, and begins what the scaler wants.
func (d *Door) scale(m *streamMeta, now time.Time, wait *time.Duration) error {
	if d.scaleEvery <= 0 {
		return nil
	}
	l := m.live
	l.mu.Lock()
	left := l.scaler.at.Add(d.scaleEvery).Sub(now)
	l.mu.Unlock()
	if left > 0 {
		*wait = min(*wait, left)
		return nil
	}
	*wait = min(*wait, d.scaleEvery)
	shards, err := l.log.Shards(d.ctx)
	if err != nil {
		return err
	}
	var loads []load
	for _, s := range openShards(shards) {
		n, _ := sequence.ParseShard(string(s.ID))
		st, err := l.shard(d.ctx, n)
		if err != nil || st == nil {
			return err
		}
		loads = append(loads, load{s, st.inBytes.Load(), st.inRecords.Load()})
	}
	least := max(minOnDemand, int(m.WarmMiB))
	l.mu.Lock()
	mv, want := l.scaler.sample(now, loads, least)
	l.mu.Unlock()
	if !want {
		return nil
	}
	ctx := context.WithoutCancel(d.ctx) // as in reshardStep
	if mv.split != "" {
		_, err = l.log.Split(ctx, mv.split, mv.at)
	} else {
		_, err = l.log.Merge(ctx, mv.merge, mv.other)
	}
	if err != nil {
		return err
	}
	d.cfg.Log.Info("on-demand stream was resharded", "stream", m.Name, "split", mv.split, "merged", mv.merge, "with", mv.other, "shards", len(loads))
	if err := l.refresh(ctx); err != nil {
		return err
	}
	return d.change(func(c *catalog) error {
		if now := c.Streams[m.Name]; now != nil && now.Status == active {
			d.during(c.edit(m.Name), updating, time.Now())
		}
		return nil
	})
}

// within returns the times of the last day.
func within(times []int64, now time.Time) []int64 {
	from := now.Add(-24 * time.Hour).UnixMilli()
	return slices.DeleteFunc(slices.Clone(times), func(t int64) bool { return t < from })
}
