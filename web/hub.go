package web

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/milepost/milepost/alert"
)

// hub makes the live feed. One goroutine drains the source at each tick, keeps the newest point of each vehicle with the
// tick at which it changed, and encodes the tick's delta once. Feeds have no queue: each knows the tick it has sent. One
// that is a tick behind sends the shared frame; one further behind, or new, gets the newest point of everything that changed
// since, made from the table by its own goroutine. So a slow browser costs itself detail and nobody else anything.
type hub struct {
	cfg     *Config
	metrics *metrics
	epoch   string // of this process: indexes and ticks of another mean nothing

	stop   context.CancelFunc
	done   chan struct{} // closed when run has ended
	closed <-chan struct{}

	mu       sync.Mutex
	tick     chan struct{} // closed and replaced when there is something new
	clients  int
	wake     chan struct{} // buffered 1: the first client has come
	frame    []byte        // the delta from seq-1 to seq
	seq      uint64
	alerts   versioned
	stats    versioned
	snapshot versioned // cached for several browsers at once; its version is seq

	table sync.RWMutex // guards rows: the hub writes, feeds that need a merged delta read
	rows  []row
}

type versioned struct {
	version uint64
	frame   []byte
}

type row struct {
	point   Point
	named   uint64 // seq at which its ID was first sent; 0: no such vehicle yet
	changed uint64
}

func newHub(cfg *Config, m *metrics) *hub {
	ctx, stop := context.WithCancel(context.Background())
	h := &hub{
		cfg: cfg, metrics: m, epoch: newEpoch(), stop: stop, done: make(chan struct{}), closed: ctx.Done(),
		tick: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	go h.run(ctx) // close waits for it
	return h
}

func newEpoch() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails: package crypto/rand
	return hex.EncodeToString(b[:])
}

func (h *hub) close() {
	h.stop()
	<-h.done
}

// run sleeps while nobody watches: the cursor makes up for it afterwards.
func (h *hub) run(ctx context.Context) {
	defer close(h.done)
	moves := time.NewTicker(h.cfg.LiveInterval)
	defer moves.Stop()
	w := &hubWork{h: h}
	for {
		if h.watchers() == 0 {
			select {
			case <-h.wake:
			case <-ctx.Done():
				return
			}
			moves.Reset(h.cfg.LiveInterval)
		}
		w.once(ctx)
		select {
		case <-moves.C:
		case <-ctx.Done():
			return
		}
	}
}

func (h *hub) watchers() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.clients
}

// hubWork is what only the hub's goroutine touches.
type hubWork struct {
	h       *hub
	cursor  uint64
	buf     []Point
	build   frameBuilder
	counts  [4]int // by State
	alertsV uint64
	alerted bool
	statsAt time.Time
	last    PipelineStatus
	tick    uint64
	failing string // what was last complained of
}

// once takes in what is new and publishes it.
func (w *hubWork) once(ctx context.Context) {
	h, began := w.h, time.Now()
	w.tick++
	frame, seq := w.vehicles(began)
	alerts := w.alerts(ctx)
	var stats []byte
	if began.Sub(w.statsAt) >= h.cfg.StatsInterval-h.cfg.LiveInterval/2 {
		stats = w.stats(ctx, began)
	}
	h.mu.Lock()
	if frame != nil {
		h.frame, h.seq = frame, seq
	}
	if alerts != nil {
		h.alerts = versioned{w.tick, alerts}
	}
	if stats != nil {
		h.stats = versioned{w.tick, stats}
	}
	if frame != nil || alerts != nil || stats != nil {
		close(h.tick)
		h.tick = make(chan struct{})
	}
	h.mu.Unlock()
	h.metrics.encode.Observe(time.Since(began).Seconds())
}

// vehicles drains the source into the table and encodes what changed; nil if nothing did.
func (w *hubWork) vehicles(now time.Time) ([]byte, uint64) {
	h := w.h
	if h.cfg.Live == nil {
		return nil, 0
	}
	w.buf, w.cursor = h.cfg.Live.Drain(w.cursor, w.buf[:0])
	if len(w.buf) == 0 {
		return nil, 0
	}
	w.build.reset()
	h.mu.Lock()
	seq := h.seq + 1
	h.mu.Unlock()
	h.table.Lock()
	for i := range w.buf {
		p := &w.buf[i]
		if n := int(p.Index) + 1; n > len(h.rows) {
			h.rows = append(h.rows, make([]row, n-len(h.rows))...)
		}
		r := &h.rows[p.Index]
		if r.named == 0 {
			r.named = seq
			p.ID = strings.Clone(p.ID) // the source may reuse its memory
		} else {
			w.counts[r.point.State&3]--
			if r.point.ID != p.ID { // an index given anew after its vehicle was forgotten
				r.named = seq
				p.ID = strings.Clone(p.ID)
			} else {
				p.ID = r.point.ID
			}
		}
		w.counts[p.State&3]++
		r.point, r.changed = *p, seq
		w.build.add(p, r.named == seq)
	}
	h.table.Unlock()
	h.metrics.frames.Inc()
	return w.build.event(h.epoch, seq, now.UnixMilli(), false), seq
}

// alertsEvent is the feed's word on alerts: how many fire, and the worst of them.
type alertsEvent struct {
	AlertCounts
	Firing []alert.Alert `json:"firing"`
}

// alertsShown bounds how many alerts an event carries; the alerts page asks for all of them.
const alertsShown = 50

func (w *hubWork) alerts(ctx context.Context) []byte {
	src := w.h.cfg.Alerts
	if src == nil {
		return nil
	}
	c := src.Counts()
	if w.alerted && c.Version == w.alertsV {
		return nil
	}
	firing, err := src.Alerts(ctx, AlertQuery{State: alert.Firing, Limit: alertsShown})
	if err != nil {
		w.complain(ctx, "list alerts for the live feed", err)
		return nil
	}
	if firing == nil {
		firing = []alert.Alert{}
	}
	b, err := jsonEvent("alerts", alertsEvent{AlertCounts: c, Firing: firing})
	if err != nil {
		w.complain(ctx, "encode alerts for the live feed", err)
		return nil
	}
	w.alerted, w.alertsV = true, c.Version
	return b
}

// statsEvent is the fleet and the flow in a few numbers.
type statsEvent struct {
	Time     int64          `json:"t"`
	Vehicles map[string]int `json:"vehicles"`
	Flow     *flow          `json:"flow,omitempty"`
}

type flow struct {
	Accepted float64 `json:"accepted_per_second"`
	Refused  float64 `json:"refused_per_second"`
	Lag      float64 `json:"lag_seconds"` // of the function that is furthest behind
	Dead     uint64  `json:"dead_letters"`
}

func (w *hubWork) stats(ctx context.Context, now time.Time) []byte {
	w.statsAt = now
	e := statsEvent{Time: now.UnixMilli(), Vehicles: map[string]int{
		"online": w.counts[StateOnline], "stale": w.counts[StateStale], "offline": w.counts[StateOffline],
		"total": w.counts[StateOnline] + w.counts[StateStale] + w.counts[StateOffline],
	}}
	if src := w.h.cfg.Pipeline; src != nil {
		st, err := src.Status(ctx)
		if err != nil {
			w.complain(ctx, "ask the pipeline for the live feed", err)
		} else {
			e.Flow = flowOf(&w.last, &st)
			w.last = st
		}
	}
	b, err := jsonEvent("stats", e)
	if err != nil {
		w.complain(ctx, "encode stats for the live feed", err)
		return nil
	}
	return b
}

// flowOf boils two looks at the pipeline down to rates.
func flowOf(before, now *PipelineStatus) *flow {
	sum := func(s *PipelineStatus) (accepted, refused uint64) {
		for i := range s.Doors {
			accepted += s.Doors[i].Accepted
			for _, n := range s.Doors[i].Refused {
				refused += n
			}
		}
		return accepted, refused
	}
	f := &flow{Dead: now.Dead}
	for i := range now.Functions {
		for j := range now.Functions[i].Shards {
			f.Lag = max(f.Lag, now.Functions[i].Shards[j].Seconds)
		}
	}
	if secs := now.Time.Sub(before.Time).Seconds(); !before.Time.IsZero() && secs > 0 {
		a0, r0 := sum(before)
		a1, r1 := sum(now)
		if a1 >= a0 && r1 >= r0 {
			f.Accepted, f.Refused = float64(a1-a0)/secs, float64(r1-r0)/secs
		}
	}
	return f
}

// complain logs once for each source that stops answering, not at every tick.
func (w *hubWork) complain(ctx context.Context, what string, err error) {
	if ctx.Err() == nil && w.failing != what {
		w.failing = what
		w.h.cfg.Log.WarnContext(ctx, "live feed degraded", "what", what, "err", err)
	}
}

// join counts a feed in; false: there are too many.
func (h *hub) join() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.clients >= h.cfg.MaxClients {
		h.metrics.refused.Inc()
		return false
	}
	h.clients++
	h.metrics.clients.Inc()
	select {
	case h.wake <- struct{}{}:
	default: // awake already, or about to be
	}
	return true
}

func (h *hub) leave() {
	h.mu.Lock()
	h.clients--
	h.mu.Unlock()
	h.metrics.clients.Dec()
}

// A feed is one browser's place in the live feed. It belongs to its request's goroutine.
type feed struct {
	h             *hub
	seen          uint64 // the last tick of vehicles that was sent; 0: none
	alerts, stats uint64
	build         frameBuilder
}

// resume takes the Last-Event-ID of a feed that broke. Whatever it is not, it begins with a snapshot.
func (f *feed) resume(id string) {
	epoch, seq, ok := strings.Cut(id, "-")
	if n, err := strconv.ParseUint(seq, 10, 64); ok && err == nil && epoch == f.h.epoch {
		f.h.mu.Lock()
		if n <= f.h.seq {
			f.seen = n
		}
		f.h.mu.Unlock()
	}
}

// next appends the frames this feed has not sent yet to out, and returns the channel that tells of more.
func (f *feed) next(out [][]byte) ([][]byte, <-chan struct{}) {
	h := f.h
	h.mu.Lock()
	seq, frame, tick, alerts, stats := h.seq, h.frame, h.tick, h.alerts, h.stats
	h.mu.Unlock()
	switch {
	case f.seen >= seq: // nothing new; or merged already ahead of the frame
	case f.seen == 0:
		out = append(out, f.whole())
	case f.seen == seq-1:
		out, f.seen = append(out, frame), seq
	default:
		out = append(out, f.merged())
	}
	if alerts.version != f.alerts {
		out, f.alerts = append(out, alerts.frame), alerts.version
	}
	if stats.version != f.stats {
		out, f.stats = append(out, stats.frame), stats.version
	}
	return out, tick
}

// whole returns the snapshot, made once for all who come within a tick.
func (f *feed) whole() []byte {
	h := f.h
	h.mu.Lock()
	if s := h.snapshot; s.frame != nil && s.version == h.seq {
		h.mu.Unlock()
		f.seen = s.version
		return s.frame
	}
	h.mu.Unlock()
	b := f.since(0)
	h.mu.Lock()
	h.snapshot = versioned{f.seen, b}
	h.mu.Unlock()
	return b
}

func (f *feed) merged() []byte { return f.since(f.seen) }

// since encodes everything that changed after a tick. It may run a little ahead of hub.seq, whose frame is published after
// the table has changed: a point sent twice is the same point.
func (f *feed) since(seen uint64) []byte {
	h := f.h
	f.build.reset()
	newest := seen
	h.table.RLock()
	for i := range h.rows {
		r := &h.rows[i]
		if r.changed > seen {
			newest = max(newest, r.changed)
			if seen == 0 && r.point.State == StateGone {
				continue
			}
			f.build.add(&r.point, r.named > seen)
		}
	}
	h.table.RUnlock()
	f.seen = newest
	h.metrics.merged.Inc()
	return f.build.event(h.epoch, newest, time.Now().UnixMilli(), seen == 0)
}
