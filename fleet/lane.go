package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/milepost/milepost/alert"
	"github.com/milepost/milepost/ingest/kinesisapi/kpl"
	"github.com/milepost/milepost/internal/binenc"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/rule"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// A lane folds one shard. Its goroutine is the only one that writes its vehicles; mu lets others read them between batches.
type lane struct {
	f       *Fleet
	shard   stream.ShardID
	ours    stream.Shard // its hash range
	decoder *telemetry.Decoder
	reading telemetry.Reading

	rows Rows // the archive's entrance; opened by the first Fold

	mu       sync.RWMutex // guards vehicles and everything they hold
	vehicles map[string]*vehicle

	dirty   []*vehicle
	live    []*vehicle // changed since the live feed last drained; guarded by mu
	seen    *seenCache
	sealed  []sealedChunk
	dropped []stream.Position // of records that this step did not accept, in order
	rejects []stream.DeadLetter
	found   []finding
	trans   []rule.Transition
	subs    []kpl.Record
	last    stream.Position // of the newest record folded
	key     []byte
	buf     []byte
	told    bool   // the last step changed alerts
	counts  counts // since the last flush
}

// A finding is a transition with what the alert needs to know of its vehicle at that moment.
type finding struct {
	tr   rule.Transition
	info alert.Info
}

type counts struct{ readings, duplicates, late, rejected int }

var _ process.Fold = (*lane)(nil)

// Fold applies a batch of records: decode once, drop what was seen, then state, daily figures, rules and archive in turn.
func (l *lane) Fold(ctx context.Context, r state.Reader, recs []stream.Record) error {
	if l.rows == nil {
		rows, err := l.f.cfg.Rows(ctx, l.shard)
		if err != nil {
			return err
		}
		l.rows = rows
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range recs {
		if err := l.fold(ctx, r, &recs[i]); err != nil {
			l.rows.Rewind()
			return err
		}
	}
	l.last = clonePos(recs[len(recs)-1].Pos)
	l.rows.Advance(l.last)
	return nil
}

// fold folds a record, which is one reading, or several that the Kinesis Producer Library has put together.
func (l *lane) fold(ctx context.Context, r state.Reader, rec *stream.Record) error {
	subs, whole := kpl.Split(l.subs[:0], rec.Data)
	if !whole {
		return l.foldOne(ctx, r, rec, -1)
	}
	l.subs = subs
	for i := range subs {
		sub := stream.Record{Key: subs[i].Key, Data: subs[i].Data, Pos: rec.Pos, Time: rec.Time}
		if err := l.foldOne(ctx, r, &sub, i); err != nil {
			return err
		}
	}
	return nil
}

// subPosition names a reading inside a record: it orders after the record's position and before the next record's.
func subPosition(pos stream.Position, i int) stream.Position {
	return stream.Position(fmt.Sprintf("%s/%06d", pos, i))
}

// drop notes that a reading was not accepted, and returns what names it. sub is its place inside the record, or -1.
func (l *lane) drop(rec *stream.Record, sub int) stream.Position {
	at := rec.Pos
	if sub >= 0 {
		at = subPosition(at, sub)
	}
	at = clonePos(at)
	l.dropped = append(l.dropped, at)
	return at
}

// foldOne folds one reading: a record, or the sub-th inside one.
func (l *lane) foldOne(ctx context.Context, r state.Reader, rec *stream.Record, sub int) error {
	rd := &l.reading
	if err := decode(l.decoder, rec, rd); err != nil {
		l.reject(rec, sub, err)
		return nil
	}
	if rd.Vehicle != rec.Key && !l.ours.Contains(stream.KeyHash(rd.Vehicle)) {
		// Two lanes would write one vehicle. The doors key by vehicle; whoever appends to the stream himself must too.
		l.reject(rec, sub, fmt.Errorf("vehicle %q came with partition key %q, which lies in another shard: use the vehicle id as the partition key", rd.Vehicle, rec.Key))
		return nil
	}
	v, err := l.vehicle(r, rd.Vehicle)
	if err != nil {
		return err
	}
	l.touch(v)
	v.heard(rd.Arrival)

	s := sighting{rd.Time, uint32(telemetry.PayloadHash(l.f.cfg.Catalog, rd))} //nolint:gosec // the low half is enough
	dup, err := l.isDuplicate(r, v, s)
	if err != nil {
		return err
	}
	if dup {
		l.counts.duplicates++
		l.drop(rec, sub)
		l.judge(v, rule.Input{Time: rd.Time, Arrival: rd.Arrival}) // it says nothing new, but the vehicle is heard from
		return nil
	}
	l.sight(v, s)
	v.readings++
	l.counts.readings++
	if rd.Time < v.newest {
		l.counts.late++
		rd.Flags |= telemetry.FlagLate
	}
	if err := l.figures(r, v, rd); err != nil {
		return err
	}
	l.apply(v, rd)
	l.judge(v, rule.Input{Time: rd.Time, Arrival: rd.Arrival, Changed: rd.Signals, Status: rd.Status != ""})
	return l.rows.Add(ctx, rec.Pos, rd)
}

// decode turns a record into a reading. The record's key stands in for a vehicle id that the payload leaves out: the door put
// it there.
func decode(d *telemetry.Decoder, rec *stream.Record, rd *telemetry.Reading) error {
	rd.Vehicle, rd.Arrival = "", rec.Time.UnixMilli()
	err := d.JSON(rec.Data, rd)
	if err != nil && errors.Is(err, telemetry.ErrNoVehicle) {
		rd.Vehicle, rd.Arrival = rec.Key, rec.Time.UnixMilli()
		err = d.JSON(rec.Data, rd)
	}
	return err
}

// reject dead-letters a record that is no reading. The doors refuse such payloads at once; one can still come through a
// door that takes any bytes.
func (l *lane) reject(rec *stream.Record, sub int, err error) {
	l.counts.rejected++
	pos := l.drop(rec, sub)
	l.rejects = append(l.rejects, stream.DeadLetter{
		ID: "fleet/" + string(l.shard) + "/" + string(pos), Reason: err.Error(), Source: "function fleet",
		Key: strings.Clone(rec.Key), Stream: l.f.cfg.Stream, Shard: l.shard, Position: pos, At: rec.Time,
		Data: slices.Clone(rec.Data),
	})
}

// vehicle returns the hot state of a vehicle, from memory, from the store, or new.
func (l *lane) vehicle(r state.Reader, id string) (*vehicle, error) {
	if v, ok := l.vehicles[id]; ok {
		return v, nil
	}
	id = strings.Clone(id)
	l.key = vehicleKey(l.key, id)
	b, err := r.Get(l.key)
	if err != nil {
		return nil, err
	}
	var v *vehicle
	if b != nil {
		if v, err = decodeVehicle(id, b, l.f.cfg.Catalog, l.f.cfg.Rules); err != nil {
			return nil, err
		}
	} else {
		v = &vehicle{id: id, bound: l.f.cfg.Rules.Bind(id), rules: make([]rule.State, l.f.cfg.Rules.Len())}
	}
	l.own(v)
	return v, nil
}

// own makes a vehicle this lane's.
func (l *lane) own(v *vehicle) {
	if v.orphans {
		l.touch(v)
	}
	l.vehicles[v.id] = v
	l.f.directory.hand(v, l)
}

func (l *lane) touch(v *vehicle) {
	if !v.dirty {
		v.dirty = true
		l.dirty = append(l.dirty, v)
	}
	if !v.liveDirty {
		v.liveDirty = true
		l.live = append(l.live, v)
	}
}

// heard notes an arrival. The interval is smoothed over about eight messages, and a burst (a backlog) does not shorten it to
// nothing: messages of the same second count as one.
func (v *vehicle) heard(arrival int64) {
	if gap := arrival - v.arrival; v.arrival != 0 && gap >= 1000 {
		if v.interval == 0 {
			v.interval = gap
		} else {
			v.interval += (gap - v.interval) / 8
		}
	}
	v.arrival = max(v.arrival, arrival)
}

func (l *lane) isDuplicate(r state.Reader, v *vehicle, s sighting) (bool, error) {
	if s.at > v.newest || v.readings == 0 {
		return false, nil
	}
	// What comes twice usually comes again soon, so look from the end.
	for i := len(v.open) - 1; i >= 0; i-- {
		if v.open[i] == s {
			return true, nil
		}
	}
	if v.sealSeq == 0 {
		return false, nil // nothing was ever sealed
	}
	hour := hourOf(s.at)
	set := l.seen.cached(v.id, hour)
	if set == nil {
		var err error
		if set, err = l.seen.hour(r, v.id, hour); err != nil {
			return false, err
		}
		for _, c := range l.sealed { // sealed in this step, so not in r yet
			if c.vehicle == v.id && c.hour == hour {
				chunk, err := decodeChunk(nil, c.data)
				if err != nil {
					return false, err
				}
				for _, x := range chunk {
					set.add(x)
				}
			}
		}
	}
	return set.has(s), nil
}

// sight records an accepted reading and seals the open list when it is full.
func (l *lane) sight(v *vehicle, s sighting) {
	v.open = append(v.open, s)
	if len(v.open) < openMax {
		return
	}
	slices.SortFunc(v.open, compareSightings)
	day := dayOf(v.arrival)
	for rest := v.open; len(rest) > 0; {
		hour := hourOf(rest[0].at)
		n := 1
		for n < len(rest) && hourOf(rest[n].at) == hour {
			n++
		}
		v.sealSeq++
		l.sealed = append(l.sealed, sealedChunk{v.id, hour, v.sealSeq, day, appendChunk(nil, rest[:n])})
		if set := l.seen.cached(v.id, hour); set != nil {
			for _, x := range rest[:n] {
				set.add(x)
			}
			l.seen.grew(n)
		}
		rest = rest[n:]
	}
	v.open = v.open[:0]
}

// figures adds a reading to its own event day, today's or an earlier one (P9: late data corrects history).
func (l *lane) figures(r state.Reader, v *vehicle, rd *telemetry.Reading) error {
	day := dayOf(rd.Time)
	k := v.kpi
	if k == nil || v.day != day {
		var err error
		if k, err = l.figuresOf(r, v, day); err != nil {
			return err
		}
	}
	k.add(rd.Time)
	if s, ok := l.usable(rd, telemetry.Speed); ok {
		k.addSpeed(s)
	}
	if f, ok := l.usable(rd, telemetry.Fuel); ok {
		k.addFuel(f)
	}
	return nil
}

// figuresOf finds the figures of a day that is not the vehicle's current one, which it becomes if it is newer.
func (l *lane) figuresOf(r state.Reader, v *vehicle, day int32) (*daily, error) {
	k, ok := v.more[day]
	if !ok {
		l.key = kpiKey(l.key, day, v.id)
		b, err := r.Get(l.key)
		if err != nil {
			return nil, err
		}
		k = &daily{}
		if b != nil {
			if *k, err = decodeDaily(b); err != nil {
				return nil, err
			}
		}
	}
	if v.more == nil {
		v.more = map[int32]*daily{}
	}
	if v.kpi == nil || day > v.day {
		if v.kpi != nil {
			v.more[v.day] = v.kpi
		}
		delete(v.more, day)
		v.day, v.kpi = day, k
	} else {
		v.more[day] = k
	}
	return k, nil
}

// usable returns a signal's value unless it is implausible: such values are archived but judge and average nothing.
func (l *lane) usable(rd *telemetry.Reading, id telemetry.SignalID) (float64, bool) {
	x, ok := rd.Signal(id)
	if ok && rd.Flags&telemetry.FlagImplausible != 0 && !l.f.cfg.Catalog.Def(id).Plausible(x) {
		return 0, false
	}
	return x, ok
}

// apply moves the latest state: each signal has its own time, and an older reading overwrites nothing newer.
func (l *lane) apply(v *vehicle, rd *telemetry.Reading) {
	for _, s := range rd.Signals {
		if rd.Flags&telemetry.FlagImplausible != 0 && !l.f.cfg.Catalog.Def(s.ID).Plausible(s.Value) {
			continue
		}
		v.set(s.ID, s.Value, rd.Time)
	}
	if rd.HasPosition() && rd.Time >= v.placeTime {
		v.lat, v.lon, v.placeTime = rd.Lat, rd.Lon, rd.Time
	}
	if rd.Status != "" && rd.Time >= v.statusAt {
		if v.status != rd.Status {
			v.status = strings.Clone(rd.Status)
		}
		v.statusAt = rd.Time
	}
	v.newest = max(v.newest, rd.Time)
}

// judge lets the rules see a reading. They leave out by themselves what is older than what they have judged (P9).
func (l *lane) judge(v *vehicle, in rule.Input) {
	v.values.Status, v.values.StatusT = v.status, v.statusAt
	l.trans = v.bound.Eval(v.rules, &v.values, in, l.trans[:0])
	if len(l.trans) > 0 {
		l.collect(v)
	}
}

func (l *lane) collect(v *vehicle) {
	for _, t := range l.trans {
		l.found = append(l.found, finding{t, alert.Info{
			Vehicle: v.id, Bound: v.bound, Lat: v.lat, Lon: v.lon, HasPlace: v.placeTime != 0,
			Sinks: l.f.cfg.Sinks(l.f.cfg.Rules.Spec(t.Rule).Severity),
		}})
	}
	v.firing, v.worst = l.f.cfg.Rules.AppendFiring(v.firing[:0], v.rules)
}

// Tick judges silence. A vehicle that no record has touched since the start is judged too: Lane adopted it.
func (l *lane) Tick(_ context.Context, _ state.Reader, now, since time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.told { // Flush comes before the commit: whoever looked then saw too little
		l.told = false
		l.f.cfg.Alerted()
	}
	nowMS, sinceMS := now.UnixMilli(), since.UnixMilli()
	for _, v := range l.vehicles {
		l.trans = v.bound.Tick(v.rules, v.arrival, nowMS, sinceMS, l.trans[:0])
		if len(l.trans) > 0 {
			l.touch(v)
			l.collect(v)
			continue
		}
		if c := l.f.connectivity(v, nowMS); c != v.lastConn {
			v.lastConn = c // the live feed shows it; the store need not know
			if !v.liveDirty {
				v.liveDirty = true
				l.live = append(l.live, v)
			}
		}
	}
	return nil
}

// Urgent says that an alert waits to be sent.
func (l *lane) Urgent() bool { return len(l.found) > 0 }

// Flush writes what changed since the last step.
func (l *lane) Flush(tx state.Tx) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, v := range l.dirty {
		if err := l.flushVehicle(tx, v); err != nil {
			return err
		}
	}
	for i := range l.sealed {
		c := &l.sealed[i]
		l.key = seenKey(l.key, c.vehicle, c.hour, c.seq)
		if err := tx.Set(l.key, c.data); err != nil {
			return err
		}
		l.key = expiryKey(l.key, c.day, c.vehicle, c.hour, c.seq)
		if err := tx.Set(l.key, nil); err != nil {
			return err
		}
	}
	if len(l.dropped) > 0 {
		l.key = droppedKey(l.key, l.shard, l.last)
		l.buf = appendDropped(l.buf[:0], l.dropped)
		if err := tx.Set(l.key, l.buf); err != nil {
			return err
		}
	}
	for _, d := range l.rejects {
		data, err := json.Marshal(d)
		if err != nil {
			return err
		}
		if err := tx.Emit(state.Effect{ID: d.ID, Kind: process.DeadLetterKind, Data: data}); err != nil {
			return err
		}
	}
	for _, x := range l.found {
		if _, err := alert.Apply(tx, x.tr, x.info); err != nil {
			return err
		}
	}
	l.flushed()
	return nil
}

func (l *lane) flushVehicle(tx state.Tx, v *vehicle) error {
	v.dirty = false
	if v.orphans {
		v.orphans = false
		keep := func(name string) bool {
			_, ok := l.f.cfg.Rules.Find(name)
			return ok || l.f.cfg.OtherRule(name)
		}
		if _, err := alert.Retire(tx, v.id, keep, v.arrival, l.f.cfg.Sinks(rule.Info)); err != nil {
			return err
		}
		l.told = true
	}
	l.key = vehicleKey(l.key, v.id)
	l.buf = v.encode(l.buf, l.f.cfg.Catalog, l.f.cfg.Rules)
	if err := tx.Set(l.key, l.buf); err != nil {
		return err
	}
	if v.kpi != nil && v.kpi.dirty {
		if err := l.flushDaily(tx, v.id, v.day, v.kpi); err != nil {
			return err
		}
	}
	for day, k := range v.more {
		if err := l.flushDaily(tx, v.id, day, k); err != nil {
			return err
		}
	}
	clear(v.more) // read back when another late reading asks for it
	return nil
}

func (l *lane) flushDaily(tx state.Tx, id string, day int32, k *daily) error {
	k.dirty = false
	l.key = kpiKey(l.key, day, id)
	l.buf = k.encode(l.buf)
	return tx.Set(l.key, l.buf)
}

// flushed forgets what is in the transaction now. If its commit fails, the runner calls Reset and folds again, so nothing is lost.
func (l *lane) flushed() {
	m, c := &l.f.metrics, &l.counts
	m.readings.Add(float64(c.readings))
	m.duplicates.Add(float64(c.duplicates))
	m.late.Add(float64(c.late))
	m.rejected.Add(float64(c.rejected))
	*c = counts{}
	l.dirty, l.sealed, l.dropped, l.rejects = l.dirty[:0], l.sealed[:0], l.dropped[:0], l.rejects[:0]
	if len(l.found) > 0 {
		l.found = l.found[:0]
		l.told = true
		l.f.cfg.Alerted()
	}
}

// Reset forgets everything that is not committed: vehicles are read again from the store as records ask for them.
func (l *lane) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, v := range l.vehicles {
		v.lane.Store(nil)
	}
	clear(l.vehicles)
	clear(l.live)
	l.dirty, l.live, l.sealed, l.dropped, l.rejects, l.found = nil, nil, nil, nil, nil, nil
	l.counts, l.last = counts{}, ""
	l.seen.reset()
}

// Close gives the vehicles back: the children of this shard, if it has any, take them over.
func (l *lane) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.f.release(l)
}

// appendDropped encodes ordered positions, each as the number of bytes it shares with the one before, and the rest.
func appendDropped(buf []byte, ps []stream.Position) []byte {
	prev := ""
	for _, p := range ps {
		n := 0
		for n < len(prev) && n < len(p) && n < 255 && prev[n] == p[n] {
			n++
		}
		buf = append(buf, byte(n))
		buf = binenc.AppendText(buf, string(p[n:]))
		prev = string(p)
	}
	return buf
}

func decodeDropped(b []byte, f func(stream.Position)) error {
	r := reader(b)
	prev := ""
	for len(r.B) > 0 {
		n := int(r.Byte())
		if n > len(prev) {
			return errCorrupt
		}
		prev = prev[:n] + string(r.Bytes())
		if r.Err != nil {
			return r.Err
		}
		f(stream.Position(prev))
	}
	return nil
}

// clonePos copies a position out of the reader's memory.
func clonePos(p stream.Position) stream.Position { return stream.Position(strings.Clone(string(p))) }
