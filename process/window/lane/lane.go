package lane

import (
	"context"
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
		return nil
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
