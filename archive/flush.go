package archive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/milepost/milepost/state"
)

// waitRoom waits until a flush has freed memory.
func (a *Archive) waitRoom(ctx context.Context) error {
	a.mu.Lock()
	room := a.room
	a.mu.Unlock()
	// Looked at again after room was taken: a flush in between has closed the one before.
	if a.tailBytes.Load() < a.cfg.MaxTailBytes {
		return nil
	}
	signal(a.kick)
	began := time.Now()
	defer func() { a.met.blocked.Add(time.Since(began).Seconds()) }()
	select {
	case <-room:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-a.ctx.Done():
		return ErrClosed
	}
}

// flusher writes lanes that are due until Close. A flush that failed is repeated with growing pauses: the rows wait in their
// tails, which are bounded, and readers of the log go on until those are full.
func (a *Archive) flusher() {
	const pauseMin, pauseMax = 250 * time.Millisecond, 30 * time.Second
	tick := time.NewTicker(min(a.cfg.FlushAge/4+time.Millisecond, time.Second))
	defer tick.Stop()
	pause := time.Duration(0)
	for {
		select {
		case <-a.ctx.Done():
			return
		case <-tick.C:
		case <-a.kick:
		}
		for l := a.due(); l != nil; l = a.due() {
			if err := a.flushLane(a.ctx, l); err != nil {
				if a.ctx.Err() != nil {
					return
				}
				a.met.flushFailed.Inc()
				pause = min(max(2*pause, pauseMin), pauseMax)
				a.cfg.Log.Error("archive flush failed; readings wait in memory and will be tried again",
					"shard", l.shard, "err", err, "pause", pause)
				select {
				case <-a.ctx.Done():
					return
				case <-time.After(pause):
				}
				continue
			}
			if pause > 0 {
				a.cfg.Log.Info("archive flush works again", "shard", l.shard)
				pause = 0
			}
		}
	}
}

// due returns the lane to flush now: one whose oldest row has waited for too long, else the largest one if it is large
// enough or memory is short.
func (a *Archive) due() *Lane {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	short := a.tailBytes.Load() > a.cfg.MaxTailBytes/2
	var most *Lane
	mostRows := 0
	for _, l := range a.lanes {
		rows, oldest := l.waiting()
		if rows > mostRows {
			most, mostRows = l, rows
		}
		if rows > 0 && now.Sub(oldest) >= a.cfg.FlushAge {
			return l
		}
	}
	if most != nil && (mostRows >= a.cfg.FlushRows || short) {
		return most
	}
	return nil
}

// Flush writes every tail now, whatever its age.
func (a *Archive) Flush(ctx context.Context) error {
	a.mu.Lock()
	lanes := make([]*Lane, 0, len(a.lanes))
	for _, l := range a.lanes {
		lanes = append(lanes, l)
	}
	a.mu.Unlock()
	for _, l := range lanes {
		if err := a.flushLane(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// A commit is a step whose outcome is not known yet, or that has been decided and waits for the rest.
type commit struct {
	b     batch
	files []*File
}

func (a *Archive) flushLane(ctx context.Context, l *Lane) error {
	a.flushing.Lock()
	defer a.flushing.Unlock()
	if l.unsure != nil {
		if err := a.decide(ctx, l); err != nil {
			return err
		}
	}
	b := l.take()
	if b.from == b.to {
		return nil
	}
	began := time.Now()
	files, err := a.writeBatch(ctx, l, b)
	if err != nil {
		a.discard(files)
		return fmt.Errorf("write readings of %s: %w", l.shard, err)
	}
	step := state.Step{Func: Func, Shard: l.shard, From: b.from, To: b.to}
	err = a.cfg.Store.Advance(ctx, step, func(tx state.Tx) error {
		for _, f := range files {
			if err := setFile(tx, f); err != nil {
				return err
			}
		}
		if len(files) > 0 {
			tx.Sync()
		}
		if a.cfg.OnFlush != nil {
			return a.cfg.OnFlush(tx, l.shard, b.to)
		}
		return nil
	})
	if err != nil {
		// The answer may have been lost after the commit: where the checkpoint is decides, here or before the next flush.
		l.unsure = &commit{b, files}
		if derr := a.decide(context.WithoutCancel(ctx), l); derr != nil {
			return errors.Join(fmt.Errorf("commit readings of %s up to %s: %w", l.shard, b.to, err), derr)
		}
		if l.checkpoint() != b.to {
			return fmt.Errorf("commit readings of %s up to %s: %w", l.shard, b.to, err)
		}
	} else {
		a.complete(l, b, files)
	}
	a.met.flushSeconds.Observe(time.Since(began).Seconds())
	return nil
}

// decide finds out whether the unsure commit of a lane happened, and completes or undoes it.
func (a *Archive) decide(ctx context.Context, l *Lane) error {
	at, err := a.Checkpoint(ctx, l.shard)
	if err != nil {
		return fmt.Errorf("checkpoint of %s: %w", l.shard, err)
	}
	c := l.unsure
	switch at {
	case c.b.to:
		a.complete(l, c.b, c.files)
	case c.b.from:
		a.discard(c.files)
	default:
		// Another owner writes this shard: its rows and ours cannot both be right, and only the log knows.
		return fmt.Errorf("checkpoint of %s is at %s, not at %s: %w; stop the other process that archives this shard, then restart",
			l.shard, at, c.b.from, state.ErrMoved)
	}
	l.unsure = nil
	return nil
}

// complete gives committed files their names and takes their rows out of the tail.
func (a *Archive) complete(l *Lane, b batch, files []*File) {
	a.settle(files)

	a.mu.Lock()
	l.drop(b)
	if len(files) > 0 {
		a.files = slices.Concat(a.files, files)
		slices.SortFunc(a.files, byDayAndName)
	}
	close(a.room)
	a.room = make(chan struct{})
	a.lastFlush = time.Now()
	a.mu.Unlock()

	a.met.flushedRows.Add(float64(b.n))
	a.met.flushes.Inc()
	for _, f := range files {
		a.met.writtenBytes.Add(float64(f.Bytes))
	}
	signal(a.wake)
}

// writeBatch writes the objects of a batch under temporary names, synced. With an error it returns those it began.
func (a *Archive) writeBatch(ctx context.Context, l *Lane, b batch) (files []*File, err error) {
	if b.n == 0 {
		return nil, nil
	}
	w := a.writer
	dirs := map[string]bool{}
	flat := flatten(b.rows)
	for _, day := range flat.byDay() {
		f := flat.object(day)
		dir, err := a.dayDir(f.Date)
		if err != nil {
			return files, err
		}
		f.Name = objectName(f.Date, l.shard, b.from, b.to)
		f.Shard, f.From, f.To, f.Written = l.shard, b.from, b.to, time.Now().UnixMilli()
		files = append(files, f)
		if f.Bytes, err = w.write(ctx, a.cfg.FS, a.temporary(f.Name), flat, day); err != nil {
			return files, fmt.Errorf("object %s: %w", f.Name, err)
		}
		dirs[dir] = true
	}
	for dir := range dirs {
		if err := a.syncDirs(dir); err != nil {
			return files, err
		}
	}
	return files, nil
}
