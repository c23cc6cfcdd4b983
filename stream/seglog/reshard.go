package seglog

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/milepost/milepost/stream"
)

// Split closes a shard and opens two in its place: the second begins at at. Records with equal keys stay in order (P2): the
// parent takes none once a child does, so whoever reads the parent to its end before the children sees them in order.
func (l *Log) Split(ctx context.Context, shard stream.ShardID, at stream.Hash) (children [2]stream.Shard, err error) {
	made, err := ask(ctx, l, func(c *committer) ([]stream.Shard, error) {
		parents, err := l.parents(shard)
		if err != nil {
			return nil, err
		}
		p := parents[0]
		if !p.from.Less(at) || p.to.Less(at) {
			return nil, fmt.Errorf("at %s: choose a hash above %s and up to %s", formatHash(at), formatHash(p.from), formatHash(p.to))
		}
		return c.replace(parents, []shardMeta{
			{From: formatHash(p.from), To: formatHash(at.Prev())},
			{From: formatHash(at), To: formatHash(p.to)},
		})
	})
	if err != nil {
		return children, fmt.Errorf("split %s of stream %s: %w", shard, l.name, err)
	}
	return [2]stream.Shard(made), nil
}

// Merge closes two neighbouring shards and opens one in their place.
func (l *Log) Merge(ctx context.Context, a, b stream.ShardID) (child stream.Shard, err error) {
	made, err := ask(ctx, l, func(c *committer) ([]stream.Shard, error) {
		parents, err := l.parents(a, b)
		if err != nil {
			return nil, err
		}
		lo, hi := parents[0], parents[1]
		if hi.from.Less(lo.from) {
			lo, hi = hi, lo
		}
		if lo == hi || lo.to == stream.MaxHash || lo.to.Next() != hi.from {
			return nil, fmt.Errorf("%s and %s are not neighbours: choose shards of which one begins where the other ends", a, b)
		}
		return c.replace(parents, []shardMeta{{From: formatHash(lo.from), To: formatHash(hi.to)}})
	})
	if err != nil {
		return child, fmt.Errorf("merge %s and %s of stream %s: %w", a, b, l.name, err)
	}
	return made[0], nil
}

// parents returns open shards by name.
func (l *Log) parents(ids ...stream.ShardID) ([]*shard, error) {
	out := make([]*shard, len(ids))
	for i, id := range ids {
		s, err := l.shard(id)
		if err != nil {
			return nil, err
		}
		if s.closed {
			return nil, fmt.Errorf("%w: %s is closed", stream.ErrNoShard, id)
		}
		out[i] = s
	}
	return out, nil
}

// replace closes parents and opens children in their place, between two groups: everything the parents hold is durable, and
// nothing has been routed to the children yet.
func (c *committer) replace(parents []*shard, children []shardMeta) ([]stream.Shard, error) {
	l := c.l
	if len(l.routes.Load().shards)-len(parents)+len(children) > maxShards {
		return nil, fmt.Errorf("a stream has at most %d open shards", maxShards)
	}
	now := max(time.Now().UnixMilli(), 1)
	m := l.meta.clone()
	var nums []uint32
	for _, p := range parents {
		i := slices.IndexFunc(m.Shards, func(s shardMeta) bool { return s.Num == p.num })
		m.Shards[i].ClosedMS, m.Shards[i].End = now, p.newest
		nums = append(nums, p.num)
	}
	made := make([]stream.Shard, len(children))
	fresh := make([]*shard, len(children))
	for i := range children {
		children[i].Num, children[i].Parents, children[i].Created = m.NextShard, nums, now
		m.NextShard++
		var err error
		if made[i], err = children[i].public(); err != nil {
			return nil, err
		}
		if fresh[i], err = newShard(&children[i], c.seg); err != nil {
			return nil, err
		}
	}
	m.Shards = append(m.Shards, children...)
	if err := c.writeMeta(&m); err != nil {
		return nil, err
	}
	open := slices.DeleteFunc(slices.Clone(l.routes.Load().shards), func(s *shard) bool { return slices.Contains(parents, s) })
	l.mu.Lock()
	l.meta = m
	l.shards = append(slices.Clone(l.shards), fresh...)
	l.routes.Store(newRoutes(append(open, fresh...)))
	l.mu.Unlock()
	for _, p := range parents {
		p.mu.Lock()
		p.closed = true
		p.wake() // its readers find the end
		p.mu.Unlock()
	}
	return made, nil
}

// writeMeta makes metadata durable. If it is unknown whether a restart would find it, the log is fenced: going on by the old
// one could put records where the new one has none.
func (c *committer) writeMeta(m *metadata) error {
	if err := c.l.fenced(); err != nil {
		return err
	}
	replaced, err := writeMetadata(c.l.fs, c.l.dir, m)
	if err != nil && replaced {
		return c.fence(err)
	}
	return err
}

// update changes the settings.
func (c *committer) update(change func(*StreamConfig)) error {
	l := c.l
	was := l.config()
	cfg := was
	change(&cfg)
	if cfg.Shards != was.Shards {
		return fmt.Errorf("%d shards: use Split and Merge to change their number", cfg.Shards)
	}
	if err := cfg.setDefaults(); err != nil {
		return err
	}
	if cfg == was {
		return nil // nothing to write down: a start on a full disk goes through here
	}
	m := l.meta.clone()
	m.RetentionMS, m.RetentionBytes, m.MaxRecordBytes = cfg.Retention.Milliseconds(), cfg.RetentionBytes, cfg.MaxRecordBytes
	if err := c.writeMeta(&m); err != nil {
		return err
	}
	l.mu.Lock()
	l.meta = m
	l.mu.Unlock()
	l.maxRecord.Store(int64(cfg.MaxRecordBytes))
	return nil
}
