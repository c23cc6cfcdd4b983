package process

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// behind says by what a lane exceeds its bounds; "": it does not. Once the policy is at work half of them are meant.
func (m *mapping) behind(s segment) (string, error) {
	l, v := m.l, &m.o.Overflow
	age, lag := v.MaxAge, v.MaxLag
	if m.over || m.spared {
		age, lag = age/2, lag/2
	}
	if a := time.Since(s.recs[0].Time); v.MaxAge > 0 && a > age {
		return fmt.Sprintf("the next record is %s old", a.Round(time.Second)), nil
	}
	if v.MaxLag > 0 {
		tip, err := l.r.tipper.Tip(l.r.read, l.shard)
		if err != nil {
			return "", err
		}
		if n := int64(tip.Seq) - int64(l.r.tipper.Count(l.shard, l.checkpoint)); n > lag {
			return fmt.Sprintf("%d records wait", n), nil
		}
	}
	return "", nil
}

// exceeded tells whether the policy is to be at work, and shows that it is. A lane that runs towards an end of its own, or catches
// up, has no overflow.
func (m *mapping) exceeded(s segment) (bool, error) {
	l := m.l
	if l.slot == spillSlot || l.until != "" {
		return false, nil
	}
	why, err := m.behind(s)
	if err != nil {
		if l.r.read.Err() != nil {
			return false, errStopping
		}
		l.failed(fmt.Errorf("look for overflow: %w", err))
		return false, nil
	}
	if why == "" {
		m.spared = false
	}
	over := why != "" && !m.spared
	if over != m.over {
		m.over = over
		log := l.r.cfg.Logger.With("function", l.f.name, "shard", l.shard, "lane", l.n, "policy", m.o.Overflow.Policy)
		if over {
			log.Warn("overflow policy is at work", "reason", why)
		} else {
			log.Info("overflow has ended")
		}
		l.mu.Lock()
		l.stat.Overflow = ""
		if over {
			l.stat.Overflow = string(m.o.Overflow.Policy) + ": " + why
		}
		l.mu.Unlock()
	}
	return over, nil
}

// sample leaves records out of a batch when the policy is to.
func (m *mapping) sample(s segment) (segment, error) {
	l, v := m.l, &m.o.Overflow
	if v.Policy != OverflowSample {
		return s, nil
	}
	over, err := m.exceeded(s)
	if err != nil || !over {
		return s, err
	}
	m.kept = m.kept[:0]
	for i := range s.recs {
		// By hash, so that a repetition keeps the same ones. A shift, as the rest of the same hash chooses the lane.
		h := hashOf(s.recs[i].Key)
		if !v.WholeKeys {
			h = hashMore(h, string(s.recs[i].Pos))
		}
		if (h>>20)%uint64(v.OneIn) == 0 {
			m.kept = append(m.kept, s.recs[i])
		}
	}
	left := len(s.recs) - len(m.kept)
	if len(m.kept) == 0 {
		if err := l.pass(s.to, nil); err != nil {
			return s, err
		}
	}
	l.mu.Lock()
	l.stat.Sampled += uint64(left)
	l.mu.Unlock()
	return segment{m.kept, s.to}, nil
}

// overflow pauses the lane, or puts off what it has not processed, when the policy is to.
func (m *mapping) overflow(s segment) error {
	l, v := m.l, &m.o.Overflow
	if v.Policy != OverflowPause && v.Policy != OverflowSpill {
		return nil
	}
	over, err := m.exceeded(s)
	if err != nil || !over {
		return err
	}
	if v.Policy == OverflowSpill {
		return m.putOff(s)
	}
	l.f.mu.Lock()
	resume := l.f.resume
	l.f.mu.Unlock()
	l.setState(StatePaused)
	select {
	case <-resume:
	case <-l.r.read.Done():
		return errStopping
	}
	m.spared = true
	l.setState(StateRunning)
	_, err = m.exceeded(s)
	return err
}

func (l *lane) setState(st State) {
	l.mu.Lock()
	l.stat.State = st
	l.mu.Unlock()
}

// A spillRange is what a lane has put off: its records in (From, To].
type spillRange struct {
	From    stream.Position `json:"from"`
	To      stream.Position `json:"to"`
	Lane    int             `json:"lane"`
	Lanes   int             `json:"lanes"`
	Records int64           `json:"records"` // other lanes' included; -1: the log cannot tell
}

// name orders ranges by where they end, which is by age.
func (r *spillRange) name() string { return fmt.Sprintf("%s\x00%d\x00%d", r.To, r.Lanes, r.Lane) }

// putOff notes what is between the checkpoint and the shard's end as a range, and moves the checkpoint there, in one step.
func (m *mapping) putOff(s segment) error {
	l := m.l
	sp := l.spill
	tip, err := l.r.tip(l.r.read, l.shard)
	switch {
	case err != nil && l.r.read.Err() != nil:
		return errStopping
	case err != nil:
		l.failed(fmt.Errorf("look for overflow: %w", err))
		return nil
	case tip <= s.to || sp.left() >= maxRanges:
		return nil // no use to put off the last batch
	}
	r := spillRange{From: l.checkpoint, To: tip, Lane: l.n, Lanes: l.of, Records: -1}
	if t := l.r.tipper; t != nil {
		r.Records = int64(t.Count(l.shard, tip)) - int64(t.Count(l.shard, r.From))
	}
	v, err := json.Marshal(r)
	if err != nil {
		return err
	}
	sp.note(1)
	if err := l.pass(tip, func(tx state.Tx) error {
		tx.Sync()
		return tx.Set(sp.key(&r), v)
	}); err != nil {
		sp.note(-1)
		return err
	}
	l.at = l.checkpoint
	m.over = false
	l.mu.Lock()
	l.stat.Overflow = ""
	l.stat.Spilled += uint64(max(0, r.Records))
	l.mu.Unlock()
	l.recovered()
	sp.add(r)
	l.r.cfg.Logger.Warn("records are put off", "function", l.f.name, "shard", l.shard, "lane", l.n, "records", r.Records, "after", r.From, "until", r.To)
	return errSpilled
}

// A spill catches up with what the lanes of a shard have put off, one range after the other, with a checkpoint of its own.
//
// In the store a range is one key, written by its lane in the step that moves past it, and deleted here in the step that ends it.
// Another key says which range the checkpoint is about.
type spill struct {
	s    *shardRun
	wake chan struct{} // holds a token when there is something new

	mu     sync.Mutex // guards the four below
	ranges []spillRange
	noting int   // ranges that lanes are about to add: their checkpoints may have moved already
	lane   *lane // of the range that it is at, or was last
	total  Counters
}

const (
	spillSlot = 1000 // names the checkpoint; lanes have lower numbers
	maxRanges = 1000 // of a shard; then nothing more is put off
	spillLook = 20 * time.Millisecond
)

func newSpill(s *shardRun) *spill { return &spill{s: s, wake: make(chan struct{}, 1)} }

func (sp *spill) prefix() []byte { return append(sp.s.f.lanesKey(sp.s.info.ID), "\x00spill\x00"...) }

func (sp *spill) key(r *spillRange) []byte { return append(sp.prefix(), r.name()...) }

// activeKey holds the name of the range that the checkpoint is about.
func (sp *spill) activeKey() []byte {
	return sp.s.f.keeper().shardKey(sp.s.info.ID, "spilling", spillSlot)
}

// left counts the ranges, and those that are about to be one. A lane that has reached the shard's end by putting off what was left has
// been counted here before.
func (sp *spill) left() int {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	return len(sp.ranges) + sp.noting
}

func (sp *spill) note(n int) {
	sp.mu.Lock()
	sp.noting += n
	sp.mu.Unlock()
}

// add takes a range that was noted.
func (sp *spill) add(r spillRange) {
	sp.mu.Lock()
	sp.ranges = append(sp.ranges, r)
	sp.noting--
	sp.mu.Unlock()
	sp.poke()
}

func (sp *spill) poke() {
	select {
	case sp.wake <- struct{}{}:
	default:
	}
}

func (sp *spill) status() *SpillStatus {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	st := &SpillStatus{Ranges: len(sp.ranges)}
	for _, r := range sp.ranges {
		if r.Records < 0 {
			st.Records = -1
			break
		}
		st.Records += r.Records
	}
	if sp.lane != nil {
		st.Lane = sp.lane.status()
		st.Lane.Counters.add(&sp.total)
		st.Lane.Lag = -1
	}
	return st
}

// load reads which ranges there are. The one that the checkpoint is about comes first: begun anew, it would be processed twice.
func (sp *spill) load(r state.Reader) error {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	sp.ranges = nil
	active, err := r.Get(sp.activeKey())
	if err != nil {
		return err
	}
	active = bytes.Clone(active)
	return r.Scan(sp.prefix(), state.PrefixEnd(sp.prefix()), func(_, v []byte) error {
		var g spillRange
		if err := json.Unmarshal(v, &g); err != nil {
			return fmt.Errorf("read a range that was put off: %w", err)
		}
		if g.name() == string(active) {
			sp.ranges = slices.Insert(sp.ranges, 0, g)
		} else {
			sp.ranges = append(sp.ranges, g)
		}
		return nil
	})
}

// run catches up until the runner stops, or the shard is finished and nothing is left.
func (sp *spill) run() {
	f := sp.s.f
	for {
		sp.mu.Lock()
		var next *spillRange
		if len(sp.ranges) > 0 {
			r := sp.ranges[0]
			next = &r
		}
		sp.mu.Unlock()
		if next == nil {
			if sp.s.at() == finished {
				return
			}
			select {
			case <-sp.wake:
			case <-f.r.read.Done():
				return
			}
			continue
		}
		if !sp.catchUp(next) {
			return
		}
	}
}

// catchUp processes one range to its end; false: it cannot go on.
func (sp *spill) catchUp(r *spillRange) bool {
	f, id := sp.s.f, sp.s.info.ID
	var at stream.Position
	if !f.r.retry(f.opts, func(error) {}, func(ctx context.Context) (err error) {
		var active string
		if at, err = f.r.cfg.Store.Checkpoint(ctx, f.name, id, spillSlot); err != nil {
			return err
		}
		if active, err = f.read(ctx, sp.activeKey()); err != nil || active == r.name() {
			return err
		}
		err = f.r.cfg.Store.Advance(ctx, state.Step{Func: f.name, Shard: id, Lane: spillSlot, From: at, To: r.From}, func(tx state.Tx) error {
			return tx.Set(sp.activeKey(), []byte(r.name()))
		})
		at = r.From
		return err
	}) {
		return false
	}
	l := newLane(sp.s, r.Lane, r.Lanes, at, r.To)
	l.slot = spillSlot
	l.stat.Counters = Counters{}
	sp.mu.Lock()
	if sp.lane != nil {
		was := sp.lane.status().Counters
		sp.total.add(&was)
	}
	sp.lane = l
	sp.mu.Unlock()
	l.runWith(func() error {
		if err := l.runMapping(sp); !errors.Is(err, io.EOF) {
			return err
		}
		if err := l.stay(func(tx state.Tx) error {
			return errors.Join(tx.Delete(sp.key(r)), tx.Delete(sp.activeKey()))
		}); err != nil {
			return err
		}
		return io.EOF
	})
	if !l.reached {
		return false
	}
	sp.mu.Lock()
	for i := range sp.ranges {
		if sp.ranges[i].name() == r.name() {
			sp.ranges = append(sp.ranges[:i], sp.ranges[i+1:]...)
			break
		}
	}
	sp.mu.Unlock()
	f.r.cfg.Logger.Info("caught up with records that were put off", "function", f.name, "shard", id, "after", r.From, "until", r.To)
	f.r.progress()
	return true
}

// pace waits until the lanes of the shard have nothing to do, or Overflow.Interval has passed; false: the runner stops.
func (sp *spill) pace() bool {
	r := sp.s.f.r
	for end := time.Now().Add(sp.s.f.opts.Overflow.Interval); time.Now().Before(end) && !sp.idle(); {
		if !r.sleep(min(spillLook, time.Until(end))) {
			return false
		}
	}
	return r.read.Err() == nil
}

func (sp *spill) idle() bool {
	sp.s.mu.Lock()
	lanes := sp.s.lanes
	sp.s.mu.Unlock()
	tip, err := sp.s.f.r.tip(sp.s.f.r.read, sp.s.info.ID)
	if err != nil {
		return false
	}
	for _, l := range lanes {
		l.mu.Lock()
		idle := l.idle || l.stat.Checkpoint >= tip || l.stat.State == StateFinished || l.stat.State == StateStopped
		l.mu.Unlock()
		if !idle {
			return false
		}
	}
	return true
}

// dropLost reports and drops what was put off on shards that the log no longer has.
func (f *function) dropLost(ctx context.Context) error {
	shards, err := f.r.cfg.Log.Shards(ctx)
	if err != nil {
		return err
	}
	prefix := f.lanesKey("")
	var gone [][]byte
	err = f.r.cfg.Store.View(ctx, func(r state.Reader) error {
		return r.Scan(prefix, state.PrefixEnd(prefix), func(k, v []byte) error {
			id, rest, _ := strings.Cut(string(k[len(prefix):]), "\x00")
			if !strings.HasPrefix(rest, "spill\x00") || slices.ContainsFunc(shards, func(s stream.Shard) bool { return s.ID == stream.ShardID(id) }) {
				return nil
			}
			gone = append(gone, append([]byte{}, k...))
			f.r.cfg.Logger.Error("retention removed records that were put off before they were processed: lengthen it",
				"function", f.name, "shard", id, "range", string(v))
			return nil
		})
	})
	if err != nil || len(gone) == 0 {
		return err
	}
	return f.r.cfg.Store.Update(ctx, func(tx state.Tx) error {
		for _, k := range gone {
			if err := tx.Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
}
