package lane

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// Combining the parts of spread keys. Each lane stores its panes, notes how far its event time has come (a mark), and gives notice of
// each window that it has news of. A notice waits until every shard that still has rows to come is past the window's end; then
// the panes of all shards are merged, and result, effect and the notices' end are one transaction. A lane's step and this one
// never write the same key: notices are numbered, and a lane only ever adds.

// A mark is how far a lane has come.
type mark struct {
	newest int64 // event time of its newest row
	mark   int64 // the same, or further while the shard is silent
	heard  int64
	seq    uint64 // of its last notice
}

func (m *mark) append(b []byte) []byte {
	b = appendTime(appendTime(appendTime(append(b, 1), m.newest), m.mark), m.heard)
	return binary.BigEndian.AppendUint64(b, m.seq)
}

func decodeMark(b []byte) (mark, error) {
	if len(b) != 33 || b[0] != 1 {
		return mark{}, errCorrupt
	}
	return mark{readTime(b[1:]), readTime(b[9:]), readTime(b[17:]), binary.BigEndian.Uint64(b[25:])}, nil
}

// A notice says that a lane has news of a window.
type notice struct {
	name        string
	fingerprint uint64
	start       int64
	early       bool
	key         string
}

func (n *notice) append(b []byte) []byte {
	b = append(b, 1)
	b = binary.BigEndian.AppendUint64(b, n.fingerprint)
	b = appendTime(b, n.start)
	if n.early {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	return append(append(append(b, n.name...), 0), n.key...)
}

func decodeNotice(b []byte) (notice, error) {
	if len(b) < 19 || b[0] != 1 {
		return notice{}, errCorrupt
	}
	name, key, ok := bytes.Cut(b[18:], []byte{0})
	if !ok {
		return notice{}, errCorrupt
	}
	return notice{fingerprint: binary.BigEndian.Uint64(b[1:]), start: readTime(b[9:]), early: b[17] != 0, name: string(name), key: string(key)}, nil
}

// A due is a window to be put together.
type due struct {
	bound *bound
	start int64
	key   string
}

const (
	combineEvery = 200 * time.Millisecond
	combineMost  = 10_000 // notices looked at in one transaction
	expireEvery  = 10 * time.Minute
)

// Run combines the parts of spread keys and forgets results that are too old, until ctx ends. There is one Run of a store.
func (w *Windows) Run(ctx context.Context) error {
	every := time.NewTicker(combineEvery)
	defer every.Stop()
	var expired time.Time
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-every.C:
			_, err := w.Combine(ctx)
			if err == nil && now.Sub(expired) >= expireEvery {
				expired = now
				err = w.Expire(ctx, now)
			}
			switch {
			case errors.Is(err, state.ErrClosed) || errors.Is(err, state.ErrFenced):
				return fmt.Errorf("windows of %s: %w", w.cfg.Stream, err)
			case err != nil && ctx.Err() == nil && !failing:
				failing = true
				w.cfg.Log.WarnContext(ctx, "windows over several shards wait", "stream", w.cfg.Stream, "error", err)
			case err == nil && failing:
				failing = false
				w.cfg.Log.InfoContext(ctx, "windows over several shards go on", "stream", w.cfg.Stream)
			}
		}
	}
}

// Combine tells the results of spread keys that are due, and returns how many.
func (w *Windows) Combine(ctx context.Context) (int, error) {
	if !w.spread {
		return 0, nil
	}
	total := 0
	for {
		n, more, err := w.combineSome(ctx)
		total += n
		if err != nil || !more {
			return total, err
		}
	}
}

func (w *Windows) combineSome(ctx context.Context) (told int, more bool, err error) {
	if err := w.finish(ctx); err != nil {
		return 0, false, err
	}
	low, err := w.lowest(ctx)
	if err != nil {
		return 0, false, err
	}
	if idle, err := w.nothing(ctx, low); err != nil || idle {
		return 0, false, err
	}
	counts := map[*bound][2]int{}
	err = w.cfg.Store.Update(ctx, func(tx state.Tx) error {
		told, more = 0, false
		clear(counts)
		from := namePrefix(noticePrefix, w.cfg.Stream)
		final := map[due]bool{}
		var order []due
		var done [][]byte
		seen := 0
		err := tx.Scan(from, state.PrefixEnd(from), func(k, v []byte) error {
			n, err := decodeNotice(v)
			if err != nil {
				return err
			}
			b := w.find(n.name, n.fingerprint)
			if b != nil && !n.early && low-b.Lateness() < n.start+b.Spec.Size.Milliseconds() {
				return nil // some shard is not that far
			}
			done = append(done, bytes.Clone(k))
			if b == nil {
				return nil // the definition is another now
			}
			d := due{b, n.start, n.key}
			if _, ok := final[d]; !ok {
				order = append(order, d)
			}
			final[d] = final[d] || !n.early
			if seen++; seen == combineMost {
				more = true
				return state.ErrStop
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, d := range order {
			r, err := w.merge(tx, d.bound, d.key, d.start)
			if err != nil {
				return fmt.Errorf("window %s, key %q: %w", d.bound.Spec.Name, d.key, err)
			}
			if r == nil {
				continue
			}
			if err := tx.Set(append(appendTime(bytes.Clone(d.bound.expiry), d.start), d.key...), nil); err != nil {
				return err
			}
			r.Final = final[d] || low-d.bound.Lateness() >= r.End
			if err := w.tell(tx, r); err != nil {
				return err
			}
			told++
			c := counts[d.bound]
			c[0]++
			if r.Late {
				c[1]++
			}
			counts[d.bound] = c
		}
		for _, k := range done {
			if err := tx.Delete(k); err != nil {
				return err
			}
		}
		for _, b := range w.defs {
			if err := b.expire(tx, low); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, false, err
	}
	for b, c := range counts {
		b.counts.results.Add(float64(c[0]))
		b.counts.revised.Add(float64(c[1]))
	}
	return told, more, nil
}

// nothing tells whether neither notices nor panes wait that are due: an Update is synced, even an empty one.
func (w *Windows) nothing(ctx context.Context, low int64) (bool, error) {
	idle := true
	err := w.cfg.Store.View(ctx, func(r state.Reader) error {
		from := namePrefix(noticePrefix, w.cfg.Stream)
		err := r.Scan(from, state.PrefixEnd(from), func(_, v []byte) error {
			n, err := decodeNotice(v)
			if err != nil {
				return err
			}
			if b := w.find(n.name, n.fingerprint); b == nil || n.early || low-b.Lateness() >= n.start+b.Spec.Size.Milliseconds() {
				idle = false
				return state.ErrStop
			}
			return nil
		})
		for _, b := range w.defs {
			if err != nil || !idle || b.Local() || low <= math.MinInt64/2 {
				continue
			}
			err = r.Scan(b.expiry, appendTime(bytes.Clone(b.expiry), low-b.Horizon()), func(_, _ []byte) error {
				idle = false
				return state.ErrStop
			})
		}
		return err
	})
	return idle, err
}

// expire deletes the panes of spread keys that no row can change any more: every lane is so far that it would leave it out.
func (b *bound) expire(tx state.Tx, low int64) error {
	if b.Local() || low <= math.MinInt64/2 {
		return nil
	}
	var old [][]byte
	err := tx.Scan(b.expiry, appendTime(bytes.Clone(b.expiry), low-b.Horizon()), func(k, _ []byte) error {
		if old = append(old, bytes.Clone(k)); len(old) == combineMost {
			return state.ErrStop
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, k := range old {
		if len(k) < len(b.expiry)+8 {
			return errCorrupt
		}
		start, key := readTime(k[len(b.expiry):]), string(k[len(b.expiry)+8:])
		from := b.paneKey(nil, key, start, "")
		var panes [][]byte
		err := tx.Scan(from, state.PrefixEnd(from), func(k, _ []byte) error {
			panes = append(panes, bytes.Clone(k))
			return nil
		})
		if err != nil {
			return err
		}
		for _, k := range append(panes, k) {
			if err := tx.Delete(k); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *Windows) find(name string, fingerprint uint64) *bound {
	for _, b := range w.defs {
		if b.Spec.Name == name && b.Fingerprint() == fingerprint {
			return b
		}
	}
	return nil
}

// merge puts the parts of one window together.
func (w *Windows) merge(tx state.Tx, b *bound, key string, start int64) (*window.Result, error) {
	base := b.paneKey(nil, key, 0, "")
	base = base[:len(base)-8]
	r, err := b.Combine(start, func(part func(int64, []byte) error) error {
		end := start + b.Spec.Size.Milliseconds()
		return tx.Scan(b.paneKey(nil, key, start, ""), b.paneKey(nil, key, end, ""), func(k, v []byte) error {
			if len(k) < len(base)+8 {
				return errCorrupt
			}
			return part(readTime(k[len(base):]), v)
		})
	})
	if r != nil {
		r.Key = key
	}
	return r, err
}

// lowest is the event time that every shard has passed which still has rows to come.
func (w *Windows) lowest(ctx context.Context) (int64, error) {
	shards, err := w.cfg.Source.Shards(ctx)
	if err != nil {
		return 0, fmt.Errorf("list shards: %w", err)
	}
	low, any := int64(math.MaxInt64), false
	tipper, _ := w.cfg.Source.(stream.Tipper)
	for i := range shards {
		s := &shards[i]
		done, at, err := w.finished(ctx, s)
		if err != nil {
			return 0, err
		}
		if done {
			continue
		}
		var m *mark
		err = w.cfg.Store.View(ctx, func(r state.Reader) error {
			b, err := r.Get(shardKey(nil, markPrefix, w.cfg.Stream, s.ID))
			if err != nil || b == nil {
				return err
			}
			x, err := decodeMark(b)
			m = &x
			return err
		})
		if err != nil {
			return 0, err
		}
		switch {
		case m != nil:
			low, any = min(low, m.mark), true
		case tipper != nil:
			tip, err := tipper.Tip(ctx, s.ID)
			if err != nil && !errors.Is(err, stream.ErrNoShard) {
				return 0, fmt.Errorf("end of %s: %w", s.ID, err)
			}
			if tip.Pos > at {
				return math.MinInt64 / 2, nil // it has rows, and nobody has looked yet
			}
		}
	}
	if !any {
		return math.MinInt64 / 2, nil
	}
	return low, nil
}

// finished tells whether a shard is closed and read out, and where its lane is.
func (w *Windows) finished(ctx context.Context, s *stream.Shard) (bool, stream.Position, error) {
	at, err := w.cfg.Store.Checkpoint(ctx, w.Name(), s.ID, 0)
	if err != nil {
		return false, "", err
	}
	return s.Closed && at >= s.End, at, nil
}

// finish gives notice of the windows that were open when their shard ended: its lane is no longer there to do it.
func (w *Windows) finish(ctx context.Context) error {
	shards, err := w.cfg.Source.Shards(ctx)
	if err != nil {
		return fmt.Errorf("list shards: %w", err)
	}
	open := map[stream.ShardID]bool{}
	for i := range shards {
		done, _, err := w.finished(ctx, &shards[i])
		if err != nil {
			return err
		}
		open[shards[i].ID] = !done
	}
	var ended []stream.ShardID
	prefix := namePrefix(markPrefix, w.cfg.Stream)
	err = w.cfg.Store.View(ctx, func(r state.Reader) error {
		return r.Scan(prefix, state.PrefixEnd(prefix), func(k, _ []byte) error {
			if id := stream.ShardID(k[len(prefix):]); !open[id] {
				ended = append(ended, id)
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	for _, id := range ended {
		if err := w.cfg.Store.Update(ctx, func(tx state.Tx) error { return w.finishShard(tx, id) }); err != nil {
			return err
		}
	}
	return nil
}

func (w *Windows) finishShard(tx state.Tx, id stream.ShardID) error {
	key := shardKey(nil, markPrefix, w.cfg.Stream, id)
	b, err := tx.Get(key)
	if err != nil || b == nil {
		return err
	}
	m, err := decodeMark(b)
	if err != nil {
		return err
	}
	l := &lane{w: w, shard: id, seq: m.seq}
	for _, b := range w.defs {
		if b.Local() {
			continue
		}
		t := &table{bound: b, l: l, tx: tx}
		from := b.keyKey(nil, id, "")
		var open []*keyed
		err := tx.Scan(from, state.PrefixEnd(from), func(k, v []byte) error {
			s, err := b.DecodeKey(v)
			if err == nil && b.Open(&s) {
				open = append(open, &keyed{name: string(k[len(from):]), k: s})
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, s := range open {
			t.now = s
			b.Finish(&s.k)
			if err := b.Flush(&s.k, t); err != nil {
				return err
			}
		}
		if err := tx.DeleteRange(from, state.PrefixEnd(from)); err != nil {
			return err
		}
	}
	return tx.Delete(key)
}
