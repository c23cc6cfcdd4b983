package lane

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// Urgent says that many results wait.
func (l *lane) Urgent() bool { return l.urgent }

// Flush writes what changed, results included.
func (l *lane) Flush(tx state.Tx) error {
	if err := l.forget(tx); err != nil { // before what has come since is written
		return err
	}
	for _, t := range l.tables {
		t.tx = tx
		err := t.flush()
		t.tx = nil
		if err != nil {
			return fmt.Errorf("window %s: %w", t.Spec.Name, err)
		}
	}
	for _, s := range l.unsaved {
		var err error
		if l.key, l.buf, err = s.store(tx, l.w.cfg.Stream, l.w.horizon, l.key, l.buf); err != nil {
			return err
		}
	}
	l.unsaved = l.unsaved[:0]
	for _, d := range l.rejects {
		data, err := json.Marshal(d)
		if err != nil {
			return err
		}
		if err := tx.Emit(state.Effect{ID: d.ID, Kind: process.DeadLetterKind, Data: data}); err != nil {
			return err
		}
	}
	l.rejects = nil
	if l.w.spread && l.marked {
		m := mark{l.newest, l.mark, l.heard, l.seq}
		if err := tx.Set(shardKey(nil, markPrefix, l.w.cfg.Stream, l.shard), m.append(nil)); err != nil {
			return err
		}
		l.marked = false
	}
	l.urgent = false
	l.count()
	return nil
}

func (t *table) flush() error {
	if !t.Local() && t.l.marked {
		// The mark of this step says that the lane is so far: its notices go with it, or Run would tell without this part.
		for _, s := range t.keys {
			if s.open {
				if t.Advance(&s.k, t.l.newest); s.k.Due() > 0 {
					t.touch(s)
				}
			}
		}
	}
	for _, s := range t.dirty {
		t.now = s
		if !t.Local() {
			if err := t.PutOpen(&s.k, t); err != nil {
				return err
			}
		}
		if err := t.Flush(&s.k, t); err != nil {
			return fmt.Errorf("key %q: %w", s.name, err)
		}
		s.dirty = false
		t.l.key = t.keyKey(t.l.key, t.shard(), s.name)
		t.l.buf = t.AppendKey(t.l.buf[:0], &s.k)
		if err := t.tx.Set(t.l.key, t.l.buf); err != nil {
			return err
		}
	}
	t.dirty = t.dirty[:0]
	return nil
}

// SetPane implements window.Sink.
func (t *table) SetPane(start int64, data []byte) error {
	t.l.key = t.paneKey(t.l.key, t.now.name, start, t.shard())
	return t.tx.Set(t.l.key, data)
}

// DeletePanes implements window.Sink. The panes of a spread key wait for the other shards: Run deletes them.
func (t *table) DeletePanes(from, to, step int64) error {
	if !t.Local() {
		return nil
	}
	var err error
	t.l.key, err = deleteSteps(t.tx, from+step, to+step, step, t.l.key, func(buf []byte, at int64) []byte {
		return t.paneKey(buf, t.now.name, at, "")
	})
	return err
}

// Emit implements window.Sink: a result of a local key is told; a spread key's is a part, of which Run is given notice.
func (t *table) Emit(r *window.Result) error {
	r.Key = t.now.name
	if t.Local() {
		t.counts.results++
		if r.Late {
			t.counts.revised++
		}
		return t.l.w.tell(t.tx, r)
	}
	t.l.seq++
	t.l.marked = true // seq goes with it
	t.l.key = binary.BigEndian.AppendUint64(append(shardKey(t.l.key, noticePrefix, t.l.w.cfg.Stream, t.l.shard), 0), t.l.seq)
	n := notice{name: t.Spec.Name, fingerprint: t.Fingerprint(), start: r.Start, early: !r.Final, key: r.Key}
	return t.tx.Set(t.l.key, n.append(nil))
}

// tell writes a result, and the effect that appends it to a stream.
func (w *Windows) tell(tx state.Tx, r *window.Result) error {
	at := resultKey(r.Def.Spec.Name, r.At(), r.Key)
	b, err := tx.Get(at)
	if err != nil {
		return err
	}
	if b != nil {
		was, err := window.DecodeStored(b)
		if err != nil {
			return fmt.Errorf("result %s: %w", r.ID(), err)
		}
		r.Revision = was.Revision
		if was.Final {
			r.Revision++
			r.Late = true // whatever told it again: it has been told
		}
		r.Late = r.Late || was.Late
	}
	if r.Withdrawn {
		if b == nil {
			return nil
		}
		err = tx.Delete(at)
	} else {
		err = tx.Set(at, r.AppendStored(nil))
	}
	if err != nil || r.Def.Spec.Output == "" {
		return err
	}
	rec := stream.Record{Key: r.Key, Data: r.AppendJSON(nil)}
	if rec.Key == "" {
		rec.Key = r.Def.Spec.Name
	}
	return tx.Emit(w.cfg.Output(r.Def.Spec.Output, r.Effect(), []stream.Record{rec}))
}

// count hands what was counted since the last Flush to the metrics.
func (l *lane) count() {
	m, c := &l.w.metrics, &l.counts
	m.rows.Add(float64(c.rows))
	m.duplicates.Add(float64(c.duplicates))
	m.rejected.Add(float64(c.rejected))
	m.misplaced.Add(float64(c.misplaced))
	c.rows, c.duplicates, c.rejected, c.misplaced = 0, 0, 0, 0
	for _, t := range l.tables {
		m, c := &t.bound.counts, &t.counts
		m.late.Add(float64(c.late))
		m.tooLate.Add(float64(c.tooLate))
		m.crowded.Add(float64(c.crowded))
		m.full.Add(float64(c.full))
		m.unkeyed.Add(float64(c.unkeyed))
		m.results.Add(float64(c.results))
		m.revised.Add(float64(c.revised))
		c.late, c.tooLate, c.crowded, c.full, c.unkeyed, c.results, c.revised = 0, 0, 0, 0, 0, 0, 0
	}
}
