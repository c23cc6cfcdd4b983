package anomaly

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/alert"
	"github.com/milepost/milepost/ingest/kinesisapi/kpl"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/rule"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// FuncName keys the folder's checkpoints and never changes.
const FuncName = "anomaly"

// Config is what a Folder uses.
type Config struct {
	Plan *Plan
	// Source is the stream that is read. It says which vehicles are a shard's: a reading whose partition key brought it to another
	// shard is passed over, as the fleet refuses it. nil: every reading counts, which is right for one shard.
	Source  stream.Log
	Catalog *telemetry.Catalog
	Sinks   func(severity string) []string // who is told of an alert; nil: nobody
	Alerted func()                         // called when alerts have changed or are about to; must not block
	Log     *slog.Logger
	Metrics prometheus.Registerer

	// MaxForests bounds the forests in memory, each about 0.6 MB; 1,000 by default. A vehicle for which none is left is not scored
	// by rcf detectors, which is counted; trend detectors, a kilobyte each, watch all.
	MaxForests int
	// ScoreKind is the kind of effect that each score is emitted as, a Score in JSON: who carries it out appends it to a stream. "":
	// scores are not emitted.
	ScoreKind string
}

// A Folder watches the vehicles of a stream of readings. Run it with process.Runner.AddFolder and one lane per shard.
type Folder struct {
	cfg     Config
	forests atomic.Int64
	metrics metrics
}

type metrics struct {
	readings, late, rejected, misplaced, alerts, unwatched, relearnt prometheus.Counter
}

// New returns a folder.
func New(cfg Config) *Folder {
	if cfg.MaxForests == 0 {
		cfg.MaxForests = 1000
	}
	if cfg.Sinks == nil {
		cfg.Sinks = func(string) []string { return nil }
	}
	if cfg.Alerted == nil {
		cfg.Alerted = func() {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	f := &Folder{cfg: cfg}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "milepost_anomaly_" + name, Help: help})
		if cfg.Metrics != nil {
			cfg.Metrics.MustRegister(c)
		}
		return c
	}
	f.metrics = metrics{
		readings:  counter("readings_total", "Readings judged by detectors."),
		late:      counter("late_readings_total", "Readings passed over, because they were not newer than their vehicle's last."),
		rejected:  counter("rejected_total", "Log records that are no readings; the fleet dead-letters them."),
		misplaced: counter("misplaced_total", "Readings whose partition key lies in another shard than their vehicle; the fleet dead-letters them."),
		alerts:    counter("transitions_total", "Alerts of detectors begun or ended."),
		unwatched: counter("unwatched_total", "Evaluations left out because MaxForests forests are in memory."),
		relearnt:  counter("relearnt_total", "Vehicles that are learnt anew, because detectors were changed or their state was damaged."),
	}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "milepost_anomaly_forests", Help: "Random cut forests in memory.",
		}, func() float64 { return float64(f.forests.Load()) }))
	}
	return f
}

// Name keys the folder's checkpoints.
func (f *Folder) Name() string { return FuncName }

// Lane returns the fold of one lane of one shard.
func (f *Folder) Lane(shard stream.ShardID, _ int) process.Fold {
	l := &lane{f: f, ours: stream.Shard{ID: shard, To: stream.MaxHash}, decoder: telemetry.NewDecoder(f.cfg.Catalog), watches: map[string]*watched{}}
	if f.cfg.Source == nil {
		return l
	}
	shards, err := f.cfg.Source.Shards(context.Background())
	if err != nil {
		panic(fmt.Sprintf("list shards: %v", err)) // the runner calls Lane again
	}
	if i := slices.IndexFunc(shards, func(s stream.Shard) bool { return s.ID == shard }); i >= 0 {
		l.ours = shards[i]
	}
	return l
}

type watched struct {
	*Watch
	dirty  bool
	retire []string // names of detectors whose alerts are open and that nobody will end
}

// A lane folds one shard. Its goroutine is the only one that has its vehicles.
type lane struct {
	f       *Folder
	ours    stream.Shard // its hash range
	decoder *telemetry.Decoder
	reading telemetry.Reading
	watches map[string]*watched
	dirty   []*watched
	found   []found
	scores  []Score
	trans   []Finding
	subs    []kpl.Record
	forests int64 // of this lane
	buf     []byte
	counts  struct{ readings, late, rejected, misplaced, alerts, unwatched, relearnt int }
}

type found struct {
	Finding
	info alert.Info
}

var _ process.Fold = (*lane)(nil)

// Fold lets the vehicles' watches see a batch of records.
func (l *lane) Fold(_ context.Context, r state.Reader, recs []stream.Record) error {
	for i := range recs {
		rec := &recs[i]
		subs, whole := kpl.Split(l.subs[:0], rec.Data)
		if !whole {
			if err := l.fold(r, rec.Key, rec.Data, rec.Time); err != nil {
				return err
			}
			continue
		}
		l.subs = subs
		for k := range subs {
			if err := l.fold(r, subs[k].Key, subs[k].Data, rec.Time); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lane) fold(r state.Reader, key string, data []byte, at time.Time) error {
	rd := &l.reading
	rd.Vehicle, rd.Arrival = "", at.UnixMilli()
	err := l.decoder.JSON(data, rd)
	if errors.Is(err, telemetry.ErrNoVehicle) {
		rd.Vehicle, rd.Arrival = key, at.UnixMilli()
		err = l.decoder.JSON(data, rd)
	}
	if err != nil {
		l.counts.rejected++
		return nil //nolint:nilerr // the fleet dead-letters it
	}
	if rd.Vehicle != key && !l.ours.Contains(stream.KeyHash(rd.Vehicle)) {
		l.counts.misplaced++ // two lanes would write one vehicle
		return nil
	}
	w, err := l.watch(r, rd.Vehicle)
	if err != nil || w.Watch == nil {
		return err
	}
	var fresh bool
	if l.trans, fresh, err = w.Observe(rd, l.trans[:0]); err != nil {
		return err
	}
	if !fresh {
		l.counts.late++
		return nil
	}
	l.counts.readings++
	if !w.dirty {
		w.dirty = true
		l.dirty = append(l.dirty, w)
	}
	for _, t := range l.trans {
		spec := l.f.cfg.Plan.set.Spec(t.Transition.Rule)
		l.found = append(l.found, found{t, alert.Info{
			Vehicle: w.vehicle, Bound: w.bound, Lat: w.lat, Lon: w.lon, HasPlace: w.placed, Sinks: l.f.cfg.Sinks(spec.Severity), Summary: t.Summary,
		}})
		l.counts.alerts++
	}
	return nil
}

// watch returns a vehicle's watch, from memory, from the store or new. Its Watch is nil if no detector is interested.
func (l *lane) watch(r state.Reader, vehicle string) (*watched, error) {
	if w, ok := l.watches[vehicle]; ok {
		return w, nil
	}
	vehicle = strings.Clone(vehicle)
	w := &watched{Watch: NewWatch(l.f.cfg.Plan, vehicle)}
	if !w.watched() {
		w.Watch = nil
		l.watches[vehicle] = w
		return w, nil
	}
	b, err := r.Get([]byte(watchPrefix + vehicle))
	if err != nil {
		return nil, err
	}
	if b != nil {
		fresh, firing, err := w.decode(b)
		if err == nil && !fresh {
			err = l.restore(r, w.Watch)
		}
		if err != nil && !errors.Is(err, errCorrupt) {
			return nil, err
		}
		if err != nil || fresh {
			if err != nil {
				l.f.cfg.Log.Warn("anomaly state is damaged, the vehicle is learnt anew", "vehicle", vehicle, "error", err)
			}
			l.counts.relearnt++
			l.release(w.Watch)
			w.Watch, w.retire = NewWatch(l.f.cfg.Plan, vehicle), firing
		}
	}
	w.Forests = l.room
	if l.f.cfg.ScoreKind != "" {
		w.Scored = func(s Score) { l.scores = append(l.scores, s) }
	}
	l.watches[vehicle] = w
	return w, nil
}

// room takes room for one more forest, if there is any.
func (l *lane) room() bool {
	if l.f.forests.Add(1) > int64(l.f.cfg.MaxForests) {
		l.f.forests.Add(-1)
		l.counts.unwatched++
		return false
	}
	l.forests++
	return true
}

func (l *lane) release(w *Watch) {
	for i := range w.each {
		if r := w.each[i].rcf; r != nil && r.f != nil {
			l.f.forests.Add(-1)
			l.forests--
			r.f = nil
		}
	}
}

// restore brings a watch's forests back. They count, and come back even if there is less room than before: what is learnt is kept.
func (l *lane) restore(r state.Reader, w *Watch) error {
	for i := range w.each {
		d, m := &w.plan.detectors[i], w.each[i].rcf
		if m == nil || !m.has {
			continue
		}
		stored, err := r.Get(detectorKey(forestPrefix, w.vehicle, d.Name))
		if err != nil {
			return err
		}
		tail, err := r.Get(detectorKey(tailPrefix, w.vehicle, d.Name))
		if err != nil {
			return err
		}
		if err := m.restore(d, w.vehicle, stored, tail); err != nil {
			return err
		}
		l.f.forests.Add(1)
		l.forests++
	}
	return nil
}

// Tick does nothing: detectors know event time only, and silence is the offline rule's.
func (l *lane) Tick(context.Context, state.Reader, time.Time, time.Time) error { return nil }

// Urgent says that an alert waits to be sent.
func (l *lane) Urgent() bool { return len(l.found) > 0 }

// Flush writes what changed since the last step.
func (l *lane) Flush(tx state.Tx) error {
	for _, w := range l.dirty {
		w.dirty = false
		if len(w.retire) > 0 {
			keep := func(name string) bool { return !slices.Contains(w.retire, name) }
			if _, err := alert.Retire(tx, w.vehicle, keep, w.last, l.f.cfg.Sinks(rule.Info)); err != nil {
				return err
			}
			w.retire = nil
		}
		l.buf = w.encode(l.buf[:0])
		if err := tx.Set([]byte(watchPrefix+w.vehicle), l.buf); err != nil {
			return err
		}
		if err := l.flushForests(tx, w.Watch); err != nil {
			return err
		}
	}
	for _, x := range l.found {
		if _, err := alert.Apply(tx, x.Transition, x.info); err != nil {
			return err
		}
	}
	for _, s := range l.scores {
		data, err := json.Marshal(s)
		if err != nil {
			return err
		}
		id := fmt.Sprintf("%s/%s/%d", s.Detector, s.Vehicle, s.Time)
		if err := tx.Emit(state.Effect{ID: id, Kind: l.f.cfg.ScoreKind, Data: data}); err != nil {
			return err
		}
	}
	if len(l.found) > 0 {
		l.f.cfg.Alerted()
	}
	m, c := &l.f.metrics, &l.counts
	m.readings.Add(float64(c.readings))
	m.late.Add(float64(c.late))
	m.rejected.Add(float64(c.rejected))
	m.misplaced.Add(float64(c.misplaced))
	m.alerts.Add(float64(c.alerts))
	m.unwatched.Add(float64(c.unwatched))
	m.relearnt.Add(float64(c.relearnt))
	*c = struct{ readings, late, rejected, misplaced, alerts, unwatched, relearnt int }{}
	l.dirty, l.found, l.scores = l.dirty[:0], l.found[:0], l.scores[:0]
	return nil
}

func (l *lane) flushForests(tx state.Tx, w *Watch) error {
	for i := range w.each {
		r := w.each[i].rcf
		if r == nil || !r.grown {
			continue
		}
		r.grown = false
		name := w.plan.detectors[i].Name
		if r.begun {
			r.begun = false
			if err := tx.Delete(detectorKey(forestPrefix, w.vehicle, name)); err != nil {
				return err
			}
		}
		if r.added >= tailMost {
			l.buf = r.f.Encode(l.buf[:0])
			if err := tx.Set(detectorKey(forestPrefix, w.vehicle, name), l.buf); err != nil {
				return err
			}
			r.tail, r.added = r.tail[:0], 0
		}
		if err := tx.Set(detectorKey(tailPrefix, w.vehicle, name), r.tail); err != nil {
			return err
		}
	}
	return nil
}

// Reset forgets what is not committed: vehicles are read again from the store as records ask for them.
func (l *lane) Reset() {
	l.f.forests.Add(-l.forests)
	l.forests = 0
	clear(l.watches)
	l.dirty, l.found, l.scores = nil, nil, nil
	l.counts = struct{ readings, late, rejected, misplaced, alerts, unwatched, relearnt int }{}
}

// Close gives the memory back: the children of this shard, if it has any, read their vehicles from the store.
func (l *lane) Close() { l.Reset() }
