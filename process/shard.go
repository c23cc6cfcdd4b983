package process

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// A shardRun is one function's work on one shard.
type shardRun struct {
	f    *function
	info stream.Shard // as it was when first listed

	mu    sync.Mutex // guards the four below
	phase phase
	lanes []*lane
	spill *spill // nil: its overflow is not put off
	err   error  // why it cannot start for now
}

type phase int

const (
	waiting phase = iota // for its parents
	begun
	finished // read out and committed, or so old that nothing is left of it
)

// errStopping ends a lane because the runner stops.
var errStopping = errors.New("runner is stopping")

// Keys of the runner's own in the store. No function's key begins with a zero byte followed by this word.
const ownKeys = "\x00process\x00"

func (f *function) keeper() keeper { return keeper{f.r.cfg.Store, f.name} }

func (f *function) startedKey() []byte { return f.keeper().startedKey() }

// lanesKey holds with how many lanes a shard is being processed. Every step reads it, so that an owner that still has another
// number is fenced.
func (f *function) lanesKey(id stream.ShardID) []byte { return f.keeper().lanesKey(id) }

// supervise starts shards when their parents are finished. It ends when the runner stops, after all it has started.
func (f *function) supervise() {
	var running sync.WaitGroup
	defer running.Wait()
	if !f.retry("begin", f.begin) {
		return
	}
	if f.opts.Output != "" && !f.retry("begin output", func(ctx context.Context) (err error) {
		f.output, err = f.r.outbox.open(ctx, f.opts.Output)
		return err
	}) {
		return
	}
	ended := make(chan struct{}, 1)
	for {
		recheck := false
		if !f.retry("list shards", func(ctx context.Context) error {
			shards, err := f.r.cfg.Log.Shards(ctx)
			if err == nil {
				recheck = f.update(shards, func(s *shardRun) {
					running.Go(func() { // supervise waits
						s.run()
						select {
						case ended <- struct{}{}:
						default:
						}
					})
				})
			}
			return err
		}) {
			return
		}
		// A finished shard has children, and the log lists them when it says that the shard is closed. Should an engine be late
		// with that, look again.
		var again <-chan time.Time
		if recheck {
			again = time.After(time.Second)
		}
		select {
		case <-ended:
		case <-again:
		case <-f.r.read.Done():
			return
		}
	}
}

// update takes a list of shards, starts what can be started, and tells whether a finished shard has no child yet.
func (f *function) update(list []stream.Shard, start func(*shardRun)) (recheck bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	listed, parents := map[stream.ShardID]bool{}, map[stream.ShardID]bool{}
	for _, info := range list {
		listed[info.ID] = true
		for _, p := range info.Parents {
			parents[p] = true
		}
		s := f.shards[info.ID]
		if s == nil {
			s = &shardRun{f: f, info: info}
			f.shards[info.ID] = s
			f.order = append(f.order, s)
		}
	}
	kept := f.order[:0]
	for _, s := range f.order {
		if !listed[s.info.ID] && s.at() != begun {
			delete(f.shards, s.info.ID) // retention has passed it
			continue
		}
		kept = append(kept, s)
	}
	clear(f.order[len(kept):])
	f.order = kept
	for _, s := range f.order {
		switch s.at() {
		case waiting:
			if f.parentsFinishedLocked(s) {
				s.set(begun)
				start(s)
			}
		case finished:
			recheck = recheck || !parents[s.info.ID]
		case begun:
		}
	}
	return recheck
}

// parentsFinishedLocked tells whether all parents are finished. One that the log no longer lists is.
func (f *function) parentsFinishedLocked(s *shardRun) bool {
	for _, id := range s.info.Parents {
		if p := f.shards[id]; p != nil && p.at() != finished {
			return false
		}
	}
	return true
}

func (s *shardRun) at() phase {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase
}

func (s *shardRun) set(p phase) {
	s.mu.Lock()
	s.phase = p
	s.mu.Unlock()
	s.f.r.progress()
}

// begin gives a function that has never run its first checkpoints.
func (f *function) begin(ctx context.Context) error {
	if f.handler != nil {
		if err := f.dropLost(ctx); err != nil {
			return err
		}
	}
	if v, err := f.read(ctx, f.startedKey()); err != nil || v != "" {
		return err
	}
	if f.opts.Start != Oldest {
		shards, err := f.r.cfg.Log.Shards(ctx)
		if err != nil {
			return err
		}
		for _, s := range shards {
			if err := f.beginShard(ctx, s.ID); err != nil {
				return err
			}
		}
	}
	return f.write(ctx, f.startedKey(), "1")
}

// beginShard may be repeated: a crash in its middle has left some lanes at the position that the start meant then.
func (f *function) beginShard(ctx context.Context, id stream.ShardID) error {
	if v, err := f.read(ctx, f.lanesKey(id)); err != nil || v != "" {
		return err
	}
	var at stream.Position
	var err error
	if f.opts.Start == Latest {
		at, err = f.r.tip(ctx, id)
	} else {
		at, err = f.r.cfg.Log.Seek(ctx, id, f.opts.StartTime)
	}
	if err != nil {
		return err
	}
	if err := f.moveAll(ctx, id, 0, f.opts.Lanes, at); err != nil {
		return err
	}
	return f.write(ctx, f.lanesKey(id), strconv.Itoa(f.opts.Lanes))
}

// moveAll moves the lanes from ≤ n < to of a shard to a position, durably.
func (f *function) moveAll(ctx context.Context, id stream.ShardID, from, to int, at stream.Position) error {
	for n := from; n < to; n++ {
		was, err := f.r.cfg.Store.Checkpoint(ctx, f.name, id, n)
		if err != nil {
			return err
		}
		if was == at {
			continue
		}
		err = f.r.cfg.Store.Advance(ctx, state.Step{Func: f.name, Shard: id, Lane: n, From: was, To: at}, func(tx state.Tx) error {
			tx.Sync()
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *function) read(ctx context.Context, key []byte) (string, error) {
	var out string
	err := f.r.cfg.Store.View(ctx, func(r state.Reader) error {
		v, err := r.Get(key)
		out = string(v)
		return err
	})
	return out, err
}

func (f *function) write(ctx context.Context, key []byte, v string) error {
	return f.r.cfg.Store.Update(ctx, func(tx state.Tx) error { return tx.Set(key, []byte(v)) })
}

// retry calls do until it succeeds; false: the runner stops.
func (f *function) retry(what string, do func(context.Context) error) bool {
	return f.r.retry(f.opts, func(err error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if err != nil {
			err = fmt.Errorf("%s: %w", what, err)
			if f.err == nil {
				f.r.cfg.Logger.Warn("function waits", "function", f.name, "error", err)
			}
		}
		f.err = err
	}, do)
}

func (r *Runner) retry(o Options, note func(error), do func(context.Context) error) bool {
	for n := 0; ; n++ {
		if r.read.Err() != nil {
			return false
		}
		err := do(r.read)
		if r.read.Err() != nil {
			return false
		}
		note(err)
		if err == nil {
			return true
		}
		if !r.sleep(backoff(o.MinBackoff, o.MaxBackoff, n)) {
			return false
		}
	}
}

// run processes the shard to its end, or until the runner stops.
func (s *shardRun) run() {
	f := s.f
	o := f.opts
	note := func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err != nil && s.err == nil {
			f.r.cfg.Logger.Warn("shard waits", "function", f.name, "shard", s.info.ID, "error", err)
		}
		s.err = err
	}
	var had int
	var at []stream.Position
	if !f.r.retry(o, note, func(ctx context.Context) (err error) {
		had, at, err = s.layout(ctx)
		return err
	}) {
		return
	}
	if f.handler != nil {
		sp := newSpill(s)
		if !f.r.retry(o, note, func(ctx context.Context) error { return f.r.cfg.Store.View(ctx, sp.load) }) {
			return
		}
		if o.Overflow.Policy == OverflowSpill || len(sp.ranges) > 0 {
			s.mu.Lock()
			s.spill = sp
			s.mu.Unlock()
			f.r.lanes.Go(sp.run) // Stop waits
		}
	}
	if had != o.Lanes {
		// Finish with the old lanes up to the furthest of them: from there on any number of lanes is right.
		// A batch that is noted is finished too, or it would come again in other parts, under other names.
		end := at[0]
		if !f.r.retry(o, note, func(ctx context.Context) error {
			for n, p := range at {
				noted, err := f.noted(ctx, s.info.ID, n, p)
				if err != nil {
					return err
				}
				end = max(end, p, noted)
			}
			return nil
		}) {
			return
		}
		if end != "" && !s.runLanes(had, at, end) { // "" would mean the shard's end; and they have done nothing
			return
		}
		if !f.r.retry(o, note, func(ctx context.Context) error {
			if err := f.moveAll(ctx, s.info.ID, had, o.Lanes, end); err != nil {
				return err
			}
			return f.write(ctx, f.lanesKey(s.info.ID), strconv.Itoa(o.Lanes))
		}) {
			return
		}
		f.r.cfg.Logger.Info("number of lanes changed", "function", f.name, "shard", s.info.ID, "was", had, "lanes", o.Lanes)
		at = make([]stream.Position, o.Lanes)
		for i := range at {
			at[i] = end
		}
	}
	if s.runLanes(o.Lanes, at, "") {
		s.set(finished)
		if s.spill != nil {
			s.spill.poke() // nothing more will be put off
		}
	}
}

// noted returns where the batch ends that a lane had begun at its checkpoint; "": none.
func (f *function) noted(ctx context.Context, id stream.ShardID, lane int, at stream.Position) (stream.Position, error) {
	if !f.opts.StableBatches {
		return "", nil
	}
	v, err := f.read(ctx, f.keeper().shardKey(id, "batch", lane))
	if from, to, ok := strings.Cut(v, "\x00"); ok && stream.Position(from) == at {
		return stream.Position(to), err
	}
	return "", err
}

// layout returns the number of lanes that the shard was last processed with, and their checkpoints.
func (s *shardRun) layout(ctx context.Context) (int, []stream.Position, error) {
	f, id := s.f, s.info.ID
	v, err := f.read(ctx, f.lanesKey(id))
	if err != nil {
		return 0, nil, err
	}
	n := f.opts.Lanes
	if v == "" {
		if err := f.write(ctx, f.lanesKey(id), strconv.Itoa(n)); err != nil {
			return 0, nil, err
		}
	} else if n, err = strconv.Atoi(v); err != nil || n < 1 {
		return 0, nil, fmt.Errorf("stored number of lanes %q makes no sense: %w", v, err)
	}
	at := make([]stream.Position, n)
	for i := range at {
		if at[i], err = f.r.cfg.Store.Checkpoint(ctx, f.name, id, i); err != nil {
			return 0, nil, err
		}
	}
	return n, at, nil
}

// runLanes runs n lanes from their checkpoints to a position ("": the shard's end) and tells whether all reached it.
func (s *shardRun) runLanes(n int, at []stream.Position, until stream.Position) bool {
	lanes := make([]*lane, n)
	for i := range lanes {
		lanes[i] = newLane(s, i, n, at[i], until)
	}
	s.mu.Lock()
	s.lanes = lanes
	s.mu.Unlock()
	s.f.r.progress() // they may be where someone waits for already
	var wg sync.WaitGroup
	for _, l := range lanes {
		wg.Go(l.run) // the next line waits
	}
	wg.Wait()
	for _, l := range lanes {
		if !l.reached {
			return false
		}
	}
	return true
}

// behind says what has not reached tip: a lane, or what lanes have put off.
func (s *shardRun) behind(tip stream.Position) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, err := s.lanesBehind(tip); b != "" || err != nil {
		return b, err
	}
	// Only now: a lane may have got there by putting off the rest.
	if s.spill != nil {
		if n := s.spill.left(); n > 0 {
			return fmt.Sprintf("%s on %s has %d ranges to catch up with", s.f.name, s.info.ID, n), nil
		}
	}
	return "", nil
}

// lanesBehind says which lane has not reached tip. The caller holds s.mu.
func (s *shardRun) lanesBehind(tip stream.Position) (string, error) {
	if s.phase == finished || tip == "" {
		return "", nil
	}
	if len(s.lanes) < s.f.opts.Lanes {
		return fmt.Sprintf("%s has not begun with %s", s.f.name, s.info.ID), nil
	}
	for _, l := range s.lanes {
		l.mu.Lock()
		at, st, why := l.stat.Checkpoint, l.stat.State, l.stat.LastError
		l.mu.Unlock()
		if at >= tip {
			continue
		}
		if st == StateStopped && s.f.r.read.Err() == nil {
			return "", fmt.Errorf("%s on %s has stopped: %s", s.f.name, s.info.ID, why)
		}
		return fmt.Sprintf("%s on %s is at %q of %q", s.f.name, s.info.ID, at, tip), nil
	}
	return "", nil
}
