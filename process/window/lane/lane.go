package lane

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/milepost/milepost/ingest/kinesisapi/kpl"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/rule"
	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

const (
	maxKey   = 256   // bytes of a key
	urgentAt = 2_000 // results of one key that wait make the lane commit
)

// A lane folds one shard. Its goroutine owns everything in it.
type lane struct {
	w       *Windows
	shard   stream.ShardID
	ours    stream.Shard // its hash range
	decoder *telemetry.Decoder
	reading telemetry.Reading
	values  rule.Values // the reading's own, for filters
	object  object
	subs    []kpl.Record

	loaded  bool
	tables  []*table // by Windows.defs
	sources map[string]*source
	unsaved []*source
	newest  int64 // event time in this shard
	heard   int64 // arrival of its last record
	mark    int64 // newest, or further when the shard is silent
	marked  bool  // mark is to be written
	seq     uint64
	seqRead bool
	urgent  bool
	rejects []stream.DeadLetter

	swept     sweep // of sources
	forgotten []forgotten

	r      state.Reader
	row    window.Row
	key    []byte
	buf    []byte
	counts struct{ rows, duplicates, rejected, misplaced int }
}

// A table is one window's keys of this lane.
type table struct {
	*bound
	l      *lane
	keys   map[string]*keyed
	dirty  []*keyed
	open   int       // keys with an open window
	early  time.Time // when early results were last asked for
	now    *keyed    // whose panes are asked for
	tx     state.Tx  // during Flush
	sweep  sweep
	counts struct{ late, tooLate, crowded, full, unkeyed, results, revised int }
}

type keyed struct {
	name  string
	k     window.Key
	dirty bool
	open  bool
}

var _ process.Fold = (*lane)(nil)

func (l *lane) reset() {
	l.loaded, l.seqRead, l.urgent, l.marked = false, false, false, false
	l.sources, l.unsaved, l.rejects = map[string]*source{}, nil, nil
	l.swept, l.forgotten = sweep{}, nil
	l.newest, l.mark, l.heard, l.seq = math.MinInt64, math.MinInt64, 0, 0
	l.tables = l.tables[:0]
	for _, b := range l.w.defs {
		l.tables = append(l.tables, &table{bound: b, l: l, keys: map[string]*keyed{}})
	}
	l.counts = struct{ rows, duplicates, rejected, misplaced int }{}
}

// Reset forgets what is not committed, and what is: it is read again.
func (l *lane) Reset() { l.reset() }

// Close ends the lane. Its keys are in the store; the lanes of the shard's children read them there.
func (l *lane) Close() { l.reset() }

// load reads what must be in memory before time passes: the keys with open windows, and how far the shard has come.
func (l *lane) load(r state.Reader) error {
	if l.loaded {
		return nil
	}
	if l.w.spread {
		b, err := r.Get(shardKey(nil, markPrefix, l.w.cfg.Stream, l.shard))
		if err != nil {
			return err
		}
		if b != nil {
			m, err := decodeMark(b)
			if err != nil {
				return err
			}
			l.newest, l.mark, l.heard, l.seq = m.newest, m.mark, m.heard, m.seq
		}
	}
	for _, t := range l.tables {
		shard := l.shard
		if t.Local() {
			shard = ""
		}
		from := t.keyKey(nil, shard, "")
		err := r.Scan(from, state.PrefixEnd(from), func(k, v []byte) error {
			name := string(k[len(from):])
			if t.Local() && !l.ours.Contains(stream.KeyHash(name)) {
				return nil
			}
			s, err := t.DecodeKey(v)
			if err != nil {
				return fmt.Errorf("window %s, key %q: %w", t.Spec.Name, name, err)
			}
			if t.Open(&s) {
				t.keys[name] = &keyed{name: name, k: s, open: true}
				t.open++
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	l.loaded = true
	return nil
}

// Fold counts a batch of records.
func (l *lane) Fold(ctx context.Context, r state.Reader, recs []stream.Record) error {
	if l.w.cfg.Admit != nil {
		for _, o := range l.w.outputs {
			if err := l.w.cfg.Admit(ctx, o); err != nil {
				return err
			}
		}
	}
	if err := l.load(r); err != nil {
		return err
	}
	l.r = r
	defer func() { l.r = nil }()
	for i := range recs {
		rec := &recs[i]
		l.heard = max(l.heard, rec.Time.UnixMilli())
		subs, whole := kpl.Split(l.subs[:0], rec.Data)
		if !whole {
			if err := l.fold(rec, -1); err != nil {
				return err
			}
			continue
		}
		l.subs = subs
		for j := range subs {
			sub := stream.Record{Key: subs[j].Key, Data: subs[j].Data, Pos: rec.Pos, Time: rec.Time}
			if err := l.fold(&sub, j); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lane) fold(rec *stream.Record, sub int) error {
	if l.w.cfg.Stream == window.Readings {
		return l.foldReading(rec)
	}
	return l.foldObject(rec, sub)
}

func (l *lane) foldReading(rec *stream.Record) error {
	rd := &l.reading
	rd.Vehicle, rd.Arrival = "", rec.Time.UnixMilli()
	err := l.decoder.JSON(rec.Data, rd)
	if err != nil && errors.Is(err, telemetry.ErrNoVehicle) {
		rd.Vehicle, rd.Arrival = rec.Key, rec.Time.UnixMilli()
		err = l.decoder.JSON(rec.Data, rd)
	}
	if err != nil {
		l.counts.rejected++ // the fleet dead-letters it
		return nil          //nolint:nilerr // counted
	}
	placed := rd.Vehicle == rec.Key || l.ours.Contains(stream.KeyHash(rd.Vehicle))
	if !placed {
		l.counts.misplaced++ // likewise: nothing of Milepost counts it
		return nil
	}
	l.row.Time, l.row.Hash = rd.Time, telemetry.PayloadHash(l.w.cfg.Catalog, rd)
	if isNew, err := l.isNew(rd.Vehicle, rd.Time, l.row.Hash, rd.Arrival); err != nil || !isNew {
		return err
	}
	l.passed(rd.Time)
	l.lay(rd)
	defer l.unlay(rd)
	for _, t := range l.tables {
		if t.filter != nil && !t.filter.Reading(&l.values) {
			continue
		}
		key, ok := t.keyOf(rd)
		if !ok {
			t.counts.unkeyed++
			continue
		}
		l.row.Values = l.row.Values[:0]
		for i := range t.columns {
			l.row.Values = append(l.row.Values, t.columns[i].of(rd, &l.values))
		}
		if err := t.add(key, rd.Arrival); err != nil {
			return err
		}
	}
	return nil
}

// isNew tells whether a row is none that was seen.
func (l *lane) isNew(from string, at int64, hash uint64, arrival int64) (bool, error) {
	l.counts.rows++
	if !l.w.dedups {
		return true, nil
	}
	s := l.sources[from]
	if s == nil {
		id := strings.Clone(from)
		l.key = sourceKey(l.key, l.w.cfg.Stream, id)
		b, err := l.r.Get(l.key)
		if err != nil {
			return false, err
		}
		s = &source{id: id}
		if b != nil {
			if s, err = decodeSource(id, b); err != nil {
				return false, err
			}
		}
		l.sources[id] = s
	}
	s.heard = max(s.heard, arrival)
	if !s.dirty {
		s.dirty = true
		l.unsaved = append(l.unsaved, s)
	}
	isNew, err := s.sighted(l.r, l.w.cfg.Stream, at, hash, l.w.horizon, &l.key)
	if err == nil && !isNew {
		l.counts.duplicates++
	}
	return isNew, err
}

// passed moves the shard's event time.
func (l *lane) passed(t int64) {
	if t > l.newest {
		l.newest = t
		if t > l.mark {
			l.mark, l.marked = t, true
		}
	}
}

// lay puts a reading's usable signals where filters and columns find them; unlay takes them away.
func (l *lane) lay(rd *telemetry.Reading) {
	if n := l.w.cfg.Catalog.Len(); len(l.values.T) < n {
		l.values.V, l.values.T = make([]float64, n), make([]int64, n)
	}
	for _, s := range rd.Signals {
		if rd.Flags&telemetry.FlagImplausible != 0 && !l.w.cfg.Catalog.Def(s.ID).Plausible(s.Value) {
			continue // archived, but it averages nothing
		}
		l.values.V[s.ID], l.values.T[s.ID] = s.Value, 1
	}
	l.values.Status, l.values.StatusT = rd.Status, 1
}

func (l *lane) unlay(rd *telemetry.Reading) {
	for _, s := range rd.Signals {
		l.values.T[s.ID] = 0
	}
}

func (c *column) of(rd *telemetry.Reading, v *rule.Values) window.Value {
	switch c.kind {
	case colSignal:
		if v.T[c.sig] != 0 {
			return window.Value{Kind: window.Number, Num: v.V[c.sig]}
		}
	case colStatus:
		if rd.Status != "" {
			return window.Value{Kind: window.Text, Text: rd.Status}
		}
	case colVehicle:
		return window.Value{Kind: window.Text, Text: rd.Vehicle}
	case colLat, colLon:
		if rd.HasPosition() {
			x := rd.Lat
			if c.kind == colLon {
				x = rd.Lon
			}
			return window.Value{Kind: window.Number, Num: x}
		}
	default:
	}
	return window.Value{}
}

func (t *table) keyOf(rd *telemetry.Reading) (string, bool) {
	switch t.key.kind {
	case colFleet:
		return window.ByFleet, true
	case colVehicle:
		return rd.Vehicle, true
	default:
		v := t.key.of(rd, &t.l.values)
		return keyText(&v)
	}
}

// add counts the lane's row for a key.
func (t *table) add(key string, arrival int64) error {
	s := t.keys[key]
	if s == nil {
		var err error
		if s, err = t.find(key); err != nil {
			return err
		}
	}
	if !s.open && t.open >= t.Spec.MaxKeys {
		t.counts.full++
		return nil
	}
	t.now = s
	if !t.Local() {
		t.Advance(&s.k, t.l.newest)
	}
	out, err := t.Add(&s.k, &t.l.row, arrival, t)
	if err != nil {
		return fmt.Errorf("window %s, key %q: %w", t.Spec.Name, key, err)
	}
	switch out {
	case window.Late:
		t.counts.late++
	case window.TooLate:
		t.counts.tooLate++
	case window.Crowded:
		t.counts.crowded++
	case window.Counted:
	}
	if s.k.Due() > urgentAt {
		t.l.urgent = true
	}
	t.touch(s)
	return nil
}

func (t *table) touch(s *keyed) {
	if !s.dirty {
		s.dirty = true
		t.dirty = append(t.dirty, s)
	}
	if open := t.Open(&s.k); open != s.open {
		s.open = open
		if open {
			t.open++
		} else {
			t.open--
		}
	}
}

// find reads a key that is not in memory, or makes it.
func (t *table) find(key string) (*keyed, error) {
	key = strings.Clone(key)
	t.l.key = t.keyKey(t.l.key, t.shard(), key)
	b, err := t.l.r.Get(t.l.key)
	if err != nil {
		return nil, err
	}
	s := &keyed{name: key, k: t.NewKey()}
	if b != nil {
		if s.k, err = t.DecodeKey(b); err != nil {
			return nil, fmt.Errorf("window %s, key %q: %w", t.Spec.Name, key, err)
		}
		if s.open = t.Open(&s.k); s.open {
			t.open++
		}
	}
	t.keys[key] = s
	return s, nil
}

// shard names the lane in a spread window's records.
func (t *table) shard() stream.ShardID {
	if t.Local() {
		return ""
	}
	return t.l.shard
}

// Pane implements window.Panes for the key that is being counted or flushed.
func (t *table) Pane(start int64) ([]byte, error) {
	t.l.key = t.paneKey(t.l.key, t.now.name, start, t.shard())
	if t.tx != nil {
		return t.tx.Get(t.l.key)
	}
	return t.l.r.Get(t.l.key)
}

// Tick lets time close what is silent, asks for early results, and lets go of keys that nothing is open of.
func (l *lane) Tick(_ context.Context, r state.Reader, now, since time.Time) error {
	if err := l.load(r); err != nil {
		return err
	}
	nowMS, sinceMS := now.UnixMilli(), since.UnixMilli()
	silence := nowMS - max(l.heard, sinceMS)
	if l.w.idle >= 0 && l.newest > math.MinInt64 && silence >= l.w.idle {
		if m := l.newest + silence; m > l.mark {
			l.mark, l.marked = m, true
		}
	}
	for _, t := range l.tables {
		early := t.Spec.Early > 0 && now.Sub(t.early) >= t.Spec.Early
		if early {
			t.early = now
		}
		for name, s := range t.keys {
			if !s.open && !s.dirty {
				// It is in the store. The active ones come back from there once a window, which is cheap.
				if nowMS-s.k.Heard() > max(t.Idle(), minute) {
					delete(t.keys, name)
				}
				continue
			}
			if !t.Local() && l.newest > math.MinInt64 {
				t.Advance(&s.k, l.newest)
			}
			t.Tick(&s.k, nowMS, sinceMS)
			if early {
				t.Early(&s.k)
			}
			if s.k.Due() > 0 {
				t.touch(s)
			}
		}
	}
	for id, s := range l.sources {
		if !s.dirty && nowMS-s.heard > minute {
			delete(l.sources, id)
		}
	}
	l.forgotten = nil // a step came in between, or memory was reset: look again
	if sinceMS < nowMS-minute {
		return l.sweep(r, now) // not while there is a backlog: who is silent then may only be waiting in the log
	}
	return nil
}

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
	at := resultKey(nil, r.Def.Spec.Name, r.At(), r.Key)
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
