package process

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// Idle tells what waits for a function that does not run: of cfg it uses Log and Store, of o where a function begins that has never run.
// The age is that of the first record that waits, lag as in Runner.Status. It reads at most one record of each shard.
func Idle(ctx context.Context, cfg Config, name string, o Options) ([]ShardStatus, error) {
	if name == "" || cfg.Log == nil || cfg.Store == nil {
		return nil, errors.New("it needs a name, a log and a store")
	}
	shards, err := cfg.Log.Shards(ctx)
	if err != nil {
		return nil, fmt.Errorf("list shards: %w", err)
	}
	k := keeper{cfg.Store, name}
	out := make([]ShardStatus, 0, len(shards))
	for _, s := range shards {
		at, err := k.places(ctx, cfg.Log, s.ID, o)
		if err != nil {
			return nil, fmt.Errorf("find the place of %s in %s: %w", name, s.ID, err)
		}
		st := ShardStatus{Shard: s.ID, State: StateStopped}
		for n, p := range at {
			st.Lanes = append(st.Lanes, LaneStatus{Lane: n, State: StateStopped, Checkpoint: p, Lag: -1})
		}
		if err := st.wait(ctx, cfg.Log); err != nil {
			return nil, fmt.Errorf("see what waits in %s: %w", s.ID, err)
		}
		out = append(out, st)
	}
	return out, nil
}

// places returns where the lanes of a shard will go on.
func (k keeper) places(ctx context.Context, log stream.Log, id stream.ShardID, o Options) ([]stream.Position, error) {
	lanes, started := 0, false
	err := k.store.View(ctx, func(r state.Reader) error {
		v, err := r.Get(k.lanesKey(id))
		if err == nil && len(v) > 0 {
			lanes, err = strconv.Atoi(string(v))
		}
		if err != nil {
			return err
		}
		v, err = r.Get(k.startedKey())
		started = len(v) > 0
		return err
	})
	if err != nil {
		return nil, err
	}
	if lanes == 0 {
		at := stream.Position("") // a shard that has come since it began, or one of those that it begins at the start of
		switch {
		case started:
		case o.Start == Latest:
			at, err = tipOf(ctx, log, id)
		case o.Start == AtTime:
			at, err = log.Seek(ctx, id, o.StartTime)
		}
		return []stream.Position{at}, err
	}
	at := make([]stream.Position, lanes)
	for n := range at {
		if at[n], err = k.store.Checkpoint(ctx, k.name, id, n); err != nil {
			return nil, err
		}
	}
	return at, nil
}

// wait fills in how far the lanes are behind.
func (st *ShardStatus) wait(ctx context.Context, log stream.Log) error {
	tipper, ok := log.(stream.Tipper)
	if !ok {
		return nil
	}
	tip, err := tipper.Tip(ctx, st.Shard)
	if err != nil {
		return err
	}
	first := tip.Pos
	for i := range st.Lanes {
		first = min(first, st.Lanes[i].Checkpoint)
	}
	// Retention may have passed the checkpoint, or everything.
	oldest, err := log.Seek(ctx, st.Shard, time.Unix(0, 0))
	if err != nil {
		return err
	}
	if first = max(first, oldest); first >= tip.Pos {
		for i := range st.Lanes {
			st.Lanes[i].Lag = 0
		}
		return nil
	}
	r, err := log.Read(ctx, st.Shard, first)
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // only read
	recs, err := r.Next(ctx, 1)
	if err != nil {
		return err
	}
	before := tipper.Count(st.Shard, recs[0].Pos) - 1
	for i := range st.Lanes {
		l := &st.Lanes[i]
		l.Lag = max(0, int64(tip.Seq)-int64(max(before, tipper.Count(st.Shard, l.Checkpoint)))) //nolint:gosec // counts of records
		if l.Lag > 0 {
			l.IteratorAgeMS = max(0, time.Since(recs[0].Time).Milliseconds())
		}
	}
	return nil
}
