package lane

import (
	"bytes"
	"fmt"
	"time"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// Keys and sources that have been silent for as long as results are kept are forgotten, or a fleet that changes would fill the
// store. A lane looks through its records a few at each tick, and forgets in the step that follows.

const (
	sweepMost  = 200       // records looked at in one tick, of each kind
	sweepEvery = time.Hour // from the end of one pass to the beginning of the next
)

// A sweep is a pass over the records under a prefix.
type sweep struct {
	next  []byte // where to go on; nil: at the beginning
	again time.Time
}

// A forgotten record goes with everything that lies under the prefix beside it.
type forgotten struct {
	table *table // nil: it is a source
	name  string
	key   []byte
	under []byte
}

// pass looks at the next records under prefix.
func (s *sweep) pass(r state.Reader, prefix []byte, now time.Time, each func(name, v []byte) error) error {
	if now.Before(s.again) {
		return nil
	}
	from := prefix
	if s.next != nil {
		from = s.next
	}
	n := 0
	s.next = nil
	err := r.Scan(from, state.PrefixEnd(prefix), func(k, v []byte) error {
		if n == sweepMost {
			s.next = bytes.Clone(k)
			return state.ErrStop
		}
		n++
		return each(k[len(prefix):], v)
	})
	if s.next == nil {
		s.again = now.Add(sweepEvery)
	}
	return err
}

// sweep notes what is to be forgotten.
func (l *lane) sweep(r state.Reader, now time.Time) error {
	keep := int64(0)
	for _, t := range l.tables {
		keep = max(keep, t.Keep())
		limit := now.UnixMilli() - t.Keep()
		prefix := t.keyKey(nil, t.shard(), "")
		err := t.sweep.pass(r, prefix, now, func(name, v []byte) error {
			if _, hot := t.keys[string(name)]; hot || (t.Local() && !l.ours.Contains(stream.KeyHash(string(name)))) {
				return nil
			}
			k, err := t.DecodeKey(v)
			if err != nil {
				return fmt.Errorf("window %s, key %q: %w", t.Spec.Name, name, err)
			}
			if k.Heard() >= limit || t.Open(&k) {
				return nil
			}
			f := forgotten{table: t, name: string(name), key: append(bytes.Clone(prefix), name...)}
			if t.Local() { // Run deletes the panes of the others
				f.under = t.paneKey(nil, string(name), 0, "")
				f.under = f.under[:len(f.under)-8]
			}
			l.forgotten = append(l.forgotten, f)
			return nil
		})
		if err != nil {
			return err
		}
	}
	if !l.w.dedups {
		return nil
	}
	prefix := sourceKey(nil, l.w.cfg.Stream, "")
	return l.swept.pass(r, prefix, now, func(name, v []byte) error {
		id := string(name)
		if _, hot := l.sources[id]; hot || !l.ours.Contains(stream.KeyHash(id)) {
			return nil
		}
		s, err := decodeSource(id, v)
		if err != nil {
			return err
		}
		if s.heard < now.UnixMilli()-keep {
			under := seenKey(nil, l.w.cfg.Stream, id, 0)
			l.forgotten = append(l.forgotten, forgotten{nil, id, append(bytes.Clone(prefix), name...), under[:len(under)-8]})
		}
		return nil
	})
}

// forget deletes what sweep noted, unless rows have come for it since.
func (l *lane) forget(tx state.Tx) error {
	for _, f := range l.forgotten {
		back := false
		if f.table == nil {
			_, back = l.sources[f.name]
		} else {
			_, back = f.table.keys[f.name]
		}
		if back {
			continue
		}
		if err := tx.Delete(f.key); err != nil {
			return err
		}
		if f.under != nil {
			if err := tx.DeleteRange(f.under, state.PrefixEnd(f.under)); err != nil {
				return err
			}
		}
	}
	l.forgotten = nil
	return nil
}
