package kinesisapi

import (
	"context"
	"time"

	"github.com/milepost/milepost/ingest/kinesisapi/sequence"
	"github.com/milepost/milepost/stream"
)

const (
	listShardsLimit  = 1000
	maxCountChanges  = 10 // UpdateShardCount in 24 h
	maxShardsUpdated = 10_000
)

type listShardsOut struct {
	Shards    []shardOut
	NextToken string
}

func (d *Door) listShards(ctx context.Context, c *call, in *listShardsInput) (any, error) {
	after, filter := value(in.ExclusiveStartShardId, ""), in.ShardFilter
	var m *streamMeta
	var err error
	if in.NextToken != nil {
		if in.StreamName != nil || in.StreamARN != nil || in.ExclusiveStartShardId != nil || in.StreamCreationTimestamp != nil {
			return nil, invalidf("NextToken and StreamName cannot be provided together.")
		}
		p, err := d.tokens.readPage(*in.NextToken, "ListShards", c.now)
		if err != nil {
			return nil, err
		}
		after, filter = p.After, p.Filter
		if m, err = d.streamNamed(c, p.Stream); err != nil {
			return nil, err
		}
		if m.Created != p.Created {
			return nil, invalidf("NextToken is of a stream that was deleted.")
		}
	} else if m, err = d.stream(c, in.streamRef); err != nil {
		return nil, err
	}
	if t := in.StreamCreationTimestamp; t != nil && t.Unix() != m.Created/1000 {
		return nil, faultf(typeNotFound, "Stream %s under account %s with creation timestamp %s not found.", m.Name, d.cfg.Account, amazonTime(*t))
	}
	if m, err = d.usable(m.Name); err != nil {
		return nil, err
	}
	shards, err := m.live.list(ctx)
	if err != nil {
		return nil, err
	}
	all := describeShards(shards)
	if filter != nil {
		keep, err := filtered(shards, filter, c.now)
		if err != nil {
			return nil, err
		}
		n := 0
		for i := range all {
			if keep[i] {
				all[n] = all[i]
				n++
			}
		}
		all = all[:n]
	}
	if after != "" {
		all = shardsAfter(all, after)
	}
	out := listShardsOut{Shards: append([]shardOut{}, all...)}
	if limit := int(min(value(in.MaxResults, listShardsLimit), maxShardsUpdated)); len(all) > limit {
		out.Shards = out.Shards[:limit]
		out.NextToken = d.tokens.page(page{
			Op: "ListShards", Stream: m.Name, Created: m.Created, After: all[limit-1].ShardId, Filter: filter, At: c.now.UnixMilli(),
		})
	}
	return out, nil
}

// filtered tells which shards a filter keeps. Shards that retention has removed count as if they had never been: their children
// were there from the beginning.
func filtered(shards []stream.Shard, f *shardFilter, now time.Time) ([]bool, error) {
	listed := map[stream.ShardID]bool{}
	closed := map[stream.ShardID]time.Time{}
	for _, s := range shards {
		listed[s.ID] = true
		for _, p := range s.Parents {
			closed[p] = s.Created
		}
	}
	eldest := func(s stream.Shard) bool {
		for _, p := range s.Parents {
			if listed[p] {
				return false
			}
		}
		return true
	}
	kind := *f.Type
	switch {
	case (kind == "AT_TIMESTAMP" || kind == "FROM_TIMESTAMP") == (f.Timestamp == nil):
		return nil, invalidf("Timestamp must be specified for ShardFilter types AT_TIMESTAMP and FROM_TIMESTAMP, and for them only.")
	case (kind == "AFTER_SHARD_ID") == (f.ShardId == nil):
		return nil, invalidf("ShardId must be specified for ShardFilter type AFTER_SHARD_ID, and for it only.")
	case f.Timestamp != nil && f.Timestamp.After(now):
		return nil, future(*f.Timestamp, now)
	}
	keep := make([]bool, len(shards))
	for i, s := range shards {
		switch kind {
		case "AFTER_SHARD_ID":
			keep[i] = string(s.ID) > *f.ShardId
		case "AT_TRIM_HORIZON":
			keep[i] = eldest(s)
		case "FROM_TRIM_HORIZON":
			keep[i] = true
		case "AT_LATEST":
			keep[i] = !s.Closed
		case "AT_TIMESTAMP":
			keep[i] = (eldest(s) || !s.Created.After(*f.Timestamp)) && (!s.Closed || closed[s.ID].After(*f.Timestamp))
		case "FROM_TIMESTAMP":
			keep[i] = !s.Closed || !closed[s.ID].Before(*f.Timestamp)
		}
	}
	return keep, nil
}

// future refuses a timestamp that is yet to come.
func future(t, now time.Time) error {
	return invalidf("The timestampInMillis parameter cannot be greater than the currentTimestampInMillis. timestampInMillis: %d, currentTimestampInMillis: %d", t.UnixMilli(), now.UnixMilli())
}

// findShard returns a shard that may be split or merged.
func (d *Door) findShard(m *streamMeta, shards []stream.Shard, name string) (*stream.Shard, error) {
	if n, ok := sequence.ParseShard(name); ok {
		name = string(sequence.ShardName(n))
	}
	for i := range shards {
		if string(shards[i].ID) == name {
			return &shards[i], nil
		}
	}
	return nil, faultf(typeNotFound, "Could not find shard %s in stream %s under account %s.", name, m.Name, d.cfg.Account)
}

func (d *Door) splitShard(ctx context.Context, c *call, in *splitInput) (any, error) {
	m, err := d.stream(c, in.streamRef)
	if err != nil {
		return nil, err
	}
	if m, err = d.usable(m.Name); err != nil {
		return nil, err
	}
	shards, err := m.live.list(ctx)
	if err != nil {
		return nil, err
	}
	s, err := d.findShard(m, shards, *in.ShardToSplit)
	if err != nil {
		return nil, err
	}
	if err := d.roomForShards(1); err != nil {
		return nil, err
	}
	at, ok := parseHash(*in.NewStartingHashKey)
	if !ok || !s.From.Next().Less(at) || !at.Less(s.To) {
		return nil, invalidf("NewStartingHashKey %s used in SplitShard() on shard %s in stream %s under account %s is not both greater than one plus the shard's StartingHashKey %s and less than the shard's EndingHashKey %s.",
			*in.NewStartingHashKey, s.ID, m.Name, d.cfg.Account, formatHash(s.From), formatHash(s.To))
	}
	if s.Closed {
		return nil, invalidf("Shard %s in stream %s under account %s has already been split or merged, and thus is not eligible for splitting or merging", s.ID, m.Name, d.cfg.Account)
	}
	return nil, d.reshard(ctx, m, c.now, func(ctx context.Context) error {
		_, err := m.live.log.Split(ctx, s.ID, at)
		return err
	})
}

func (d *Door) mergeShards(ctx context.Context, c *call, in *mergeInput) (any, error) {
	m, err := d.stream(c, in.streamRef)
	if err != nil {
		return nil, err
	}
	if m, err = d.usable(m.Name); err != nil {
		return nil, err
	}
	shards, err := m.live.list(ctx)
	if err != nil {
		return nil, err
	}
	a, err := d.findShard(m, shards, *in.ShardToMerge)
	if err != nil {
		return nil, err
	}
	b, err := d.findShard(m, shards, *in.AdjacentShardToMerge)
	if err != nil {
		return nil, err
	}
	for _, s := range []*stream.Shard{a, b} {
		if s.Closed {
			return nil, invalidf("Shards %s and %s in stream %s under account %s have already been merged or split, and thus are not eligible for merging", a.ID, b.ID, m.Name, d.cfg.Account)
		}
	}
	adjacent := a.ID != b.ID && ((a.To != stream.MaxHash && a.To.Next() == b.From) || (b.To != stream.MaxHash && b.To.Next() == a.From))
	if !adjacent {
		return nil, invalidf("Shards %s and %s in stream %s under account %s are not an adjacent pair of shards eligible for merging", a.ID, b.ID, m.Name, d.cfg.Account)
	}
	return nil, d.reshard(ctx, m, c.now, func(ctx context.Context) error {
		_, err := m.live.log.Merge(ctx, a.ID, b.ID)
		return err
	})
}

// reshard takes an ACTIVE stream into UPDATING and does one split or merge at once: puts and reads go on meanwhile, and nothing is
// left to do after a crash but to end the status.
func (d *Door) reshard(ctx context.Context, m *streamMeta, now time.Time, f func(context.Context) error) error {
	err := d.changeStream(m.Name, func(e *streamMeta) error {
		d.during(e, updating, now)
		return nil
	})
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // the client going away must not leave the answer to chance
	if err := f(ctx); err != nil {
		return err
	}
	return m.live.refresh(ctx)
}

type updateCountOut struct {
	StreamName        string
	StreamARN         string
	CurrentShardCount int64
	TargetShardCount  int64
}

func (d *Door) updateShardCount(_ context.Context, c *call, in *updateCountInput) (any, error) {
	m, err := d.stream(c, in.streamRef)
	if err != nil {
		return nil, err
	}
	var have, want int64
	err = d.changeStream(m.Name, func(e *streamMeta) error {
		have, want = int64(e.live.log.Config().Shards), *in.TargetShardCount
		e.CountChanges = within(e.CountChanges, c.now)
		switch {
		case e.Mode == onDemand:
			return faultf(typeValidation, "UpdateShardCount is not supported for streams with StreamMode %s: stream %s under account %s.", onDemand, e.Name, d.cfg.Account)
		case want > 2*have:
			return invalidf("UpdateShardCount cannot scale up over double your current open shard count. Current open shard count: %d Target shard count: %d", have, want)
		case 2*want < have:
			return invalidf("UpdateShardCount cannot scale down below half your current open shard count. Current open shard count: %d Target shard count: %d", have, want)
		case want > maxShardsUpdated:
			return faultf(typeLimit, "UpdateShardCount cannot scale above %d shards.", maxShardsUpdated)
		case d.cfg.Throttle == ThrottleAWS && len(e.CountChanges) >= maxCountChanges:
			return faultf(typeLimit, "UpdateShardCount can be called %d times in a rolling 24-hour period: stream %s under account %s.", maxCountChanges, e.Name, d.cfg.Account)
		}
		if err := d.roomForShards(int(want - have)); err != nil {
			return err
		}
		e.CountChanges = append(e.CountChanges, c.now.UnixMilli())
		e.Target = int(want) // the keeper goes there
		d.during(e, updating, c.now)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return updateCountOut{m.Name, d.streamARN(m.Name), have, want}, nil
}
