package kinesisapi

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/milepost/milepost/stream"
)

// The keeper is the goroutine that ends transitions, reshards, and scales on-demand streams. It sleeps until the next of those is
// due or a change wakes it.

// wake makes the keeper look again.
func (d *Door) wake() {
	select {
	case d.woken <- struct{}{}:
	default: // it will look anyway
	}
}

func (d *Door) keep(ctx context.Context) {
	for {
		wait := d.tend(ctx, time.Now())
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-d.woken:
		case <-t.C:
		}
		t.Stop()
	}
}

const (
	idleWait  = time.Hour
	retryWait = 5 * time.Second // after an error
)

// tend does what is due now and returns when to look again. Whatever it does is written down before or can be done twice, so a
// crash anywhere leaves the work to the next start.
func (d *Door) tend(ctx context.Context, now time.Time) time.Duration {
	wait := idleWait
	for name, m := range d.catalog.Load().Streams {
		err := d.tendStream(ctx, m, now, &wait)
		if err != nil && ctx.Err() == nil {
			d.cfg.Log.ErrorContext(ctx, "stream transition failed and will be tried again", "stream", name, "status", m.Status, "error", err)
			wait = min(wait, retryWait)
		}
	}
	return wait
}

func (d *Door) tendStream(ctx context.Context, m *streamMeta, now time.Time, wait *time.Duration) error {
	due := func(until int64) bool {
		left := time.UnixMilli(until).Sub(now)
		if left > 0 {
			*wait = min(*wait, left)
		}
		return left <= 0
	}
	switch {
	case m.Status == deleting:
		if due(m.Until) {
			return d.finishDelete(ctx, m)
		}
		return nil
	case m.Status == updating && m.Target > 0:
		done, err := d.reshardStep(ctx, m)
		if err != nil {
			return err
		}
		if !done {
			*wait = 0
			return nil
		}
		if due(m.Until) {
			return d.finishStatus(ctx, m)
		}
	case m.Status == creating || m.Status == updating:
		if due(m.Until) {
			return d.finishStatus(ctx, m)
		}
	case m.Status == active && m.Mode == onDemand:
		if err := d.scale(m, now, wait); err != nil {
			return err
		}
	}
	for i := range m.Consumers {
		if c := &m.Consumers[i]; c.Status != active && due(c.Until) {
			return d.finishConsumer(m.Name, c)
		}
	}
	return nil
}

// finishStatus makes a stream ACTIVE. One whose log could not be written down when it was made has it found now.
func (d *Door) finishStatus(ctx context.Context, m *streamMeta) error {
	found := *m
	if m.live == nil {
		if err := d.attach(ctx, &found); err != nil {
			return err
		}
	}
	return d.change(func(c *catalog) error {
		if now := c.Streams[m.Name]; now == nil || now.Status != m.Status || now.Until != m.Until {
			return nil // it changed meanwhile
		}
		e := c.edit(m.Name)
		e.live, e.Status, e.Until, e.Target = found.live, active, 0, 0
		return nil
	})
}

func (d *Door) finishConsumer(name string, was *consumerMeta) error {
	return d.change(func(c *catalog) error {
		if c.Streams[name] == nil {
			return nil
		}
		e := c.edit(name)
		i := slices.IndexFunc(e.Consumers, func(c consumerMeta) bool { return c.Name == was.Name && c.Created == was.Created })
		switch {
		case i < 0 || e.Consumers[i].Status != was.Status:
		case was.Status == deleting:
			e.Consumers = slices.Delete(e.Consumers, i, i+1)
		default:
			e.Consumers[i].Status, e.Consumers[i].Until = active, 0
		}
		return nil
	})
}

// finishDelete removes the log and then its metadata: a crash between them leaves metadata of a stream that is DELETING, and load
// forgets it.
func (d *Door) finishDelete(ctx context.Context, m *streamMeta) error {
	if err := d.cfg.Store.Delete(ctx, m.Name); err != nil && !errors.Is(err, stream.ErrNoStream) {
		return err
	}
	return d.change(func(c *catalog) error {
		delete(c.Streams, m.Name)
		return nil
	})
}

// reshardStep makes one split or merge towards m.Target equal parts; done if there is none left to make. First it splits until
// each bound of the parts is a bound of shards, then it merges away the bounds that are none of the parts.
func (d *Door) reshardStep(ctx context.Context, m *streamMeta) (done bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	ctx = context.WithoutCancel(ctx) // a step is short, and half of one is worse than waiting for it in Close
	shards, err := m.live.log.Shards(ctx)
	if err != nil {
		return false, err
	}
	open := openShards(shards)
	bounds := make([]stream.Hash, m.Target)
	for i := range bounds {
		bounds[i] = slice(i, m.Target)
	}
	compare := func(s stream.Shard, h stream.Hash) int { return compareHash(s.From, h) }
	for _, h := range bounds {
		if i, found := slices.BinarySearchFunc(open, h, compare); !found {
			_, err := m.live.log.Split(ctx, open[i-1].ID, h)
			return false, errors.Join(err, m.live.refresh(ctx))
		}
	}
	for i := 1; i < len(open); i++ {
		if _, found := slices.BinarySearchFunc(bounds, open[i].From, compareHash); !found {
			_, err := m.live.log.Merge(ctx, open[i-1].ID, open[i].ID)
			return false, errors.Join(err, m.live.refresh(ctx))
		}
	}
	return true, nil
}

func compareHash(a, b stream.Hash) int {
	switch {
	case a.Less(b):
		return -1
	case b.Less(a):
		return 1
	}
	return 0
}

// openShards returns the open ones in the order of the ring.
func openShards(shards []stream.Shard) []stream.Shard {
	open := slices.DeleteFunc(slices.Clone(shards), func(s stream.Shard) bool { return s.Closed })
	slices.SortFunc(open, func(a, b stream.Shard) int { return compareHash(a.From, b.From) })
	return open
}
