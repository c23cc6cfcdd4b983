package process

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/stream"
)

// A State is what a function is doing on a shard.
type State string

// The states.
const (
	StateRunning  State = "running"
	StateRetrying State = "retrying"            // something failed; it tries again
	StateWaiting  State = "waiting for parents" // the shards that this one came from are not read out yet
	StateFinished State = "finished"            // the shard is closed and read out
	StateStopped  State = "stopped"             // by Stop, or for good: another owner has the lane
)

// Counters count since the start of the process.
type Counters struct {
	Records     uint64 `json:"records"`      // processed, repetitions included
	Batches     uint64 `json:"batches"`      // for a folder: calls of Fold
	Errors      uint64 `json:"errors"`       // failed attempts and commits
	Retries     uint64 `json:"retries"`      // pauses before another attempt
	DeadLetters uint64 `json:"dead_letters"` // records given up
	Missed      uint64 `json:"missed"`       // records that retention removed before they were read
}

// A LaneStatus is the state of one lane of one shard.
type LaneStatus struct {
	Lane          int             `json:"lane"`
	State         State           `json:"state"`
	Checkpoint    stream.Position `json:"checkpoint"`
	Lag           int64           `json:"lag"`             // records behind the shard's end, others' included; -1: the log cannot tell
	IteratorAgeMS int64           `json:"iterator_age_ms"` // age of the last processed record; 0 when nothing is left to read
	Counters
	LastError     string    `json:"last_error,omitempty"`
	LastErrorTime time.Time `json:"last_error_time,omitzero"`
}

// A ShardStatus is a function's state on one shard.
type ShardStatus struct {
	Shard stream.ShardID `json:"shard"`
	State State          `json:"state"` // the worst of its lanes
	Lanes []LaneStatus   `json:"lanes,omitempty"`
	Error string         `json:"error,omitempty"` // why it cannot begin
}

// A FunctionStatus is the state of one function.
type FunctionStatus struct {
	Name   string        `json:"name"`
	Folder bool          `json:"folder"`
	Shards []ShardStatus `json:"shards"`
	Error  string        `json:"error,omitempty"` // why it cannot begin, or learn of new shards
}

// Status tells what every function is doing, in the order they were added.
func (r *Runner) Status(ctx context.Context) []FunctionStatus {
	tips := map[stream.ShardID]stream.Tip{}
	out := make([]FunctionStatus, 0, len(r.funcs))
	for _, f := range r.funcs {
		f.mu.Lock()
		fs := FunctionStatus{Name: f.name, Folder: f.folder != nil, Shards: []ShardStatus{}, Error: text(f.err)}
		shards := append([]*shardRun{}, f.order...)
		f.mu.Unlock()
		for _, s := range shards {
			fs.Shards = append(fs.Shards, s.status(ctx, tips))
		}
		out = append(out, fs)
	}
	return out
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (s *shardRun) status(ctx context.Context, tips map[stream.ShardID]stream.Tip) ShardStatus {
	r := s.f.r
	s.mu.Lock()
	st := ShardStatus{Shard: s.info.ID, Error: text(s.err)}
	phase, lanes := s.phase, s.lanes
	s.mu.Unlock()
	switch phase {
	case waiting:
		st.State = StateWaiting
		return st
	case begun:
		st.State = StateRunning
		if st.Error != "" {
			st.State = StateRetrying
		}
	case finished:
		st.State = StateFinished
	}
	tip, known := tips[st.Shard]
	if !known && r.tipper != nil {
		if t, err := r.tipper.Tip(ctx, st.Shard); err == nil {
			tip, known = t, true
			tips[st.Shard] = t
		}
	}
	for _, l := range lanes {
		ls := l.status()
		ls.Lag = -1
		if known {
			ls.Lag = max(0, int64(tip.Seq)-int64(r.tipper.Count(st.Shard, ls.Checkpoint)))
			if ls.Checkpoint >= tip.Pos {
				ls.IteratorAgeMS = 0
			}
		}
		if phase == begun && (ls.State == StateRetrying && st.State == StateRunning || ls.State == StateStopped) {
			st.State = ls.State
		}
		st.Lanes = append(st.Lanes, ls)
	}
	return st
}

func (l *lane) status() LaneStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.stat
	if !l.idle && !l.last.IsZero() && st.State != StateFinished {
		st.IteratorAgeMS = max(0, time.Since(l.last).Milliseconds())
	}
	return st
}

// metrics are the runner's own collector: what Status counts is what Prometheus sees, and nothing is looked up for a record.
type metrics struct {
	r          *Runner
	reg        prometheus.Registerer
	seconds    *prometheus.HistogramVec
	posted     prometheus.Counter
	registered atomic.Bool
	counters   []counter
	age        *prometheus.Desc
	lag        *prometheus.Desc
}

type counter struct {
	desc *prometheus.Desc
	of   func(*Counters) uint64
}

func newMetrics(r *Runner, reg prometheus.Registerer) (*metrics, error) {
	labels := []string{"function", "shard"}
	m := &metrics{
		r: r, reg: reg,
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "milepost_process_batch_seconds",
			Help:    "Time to process a batch: for a function with its commit, for a folder without.",
			Buckets: prometheus.ExponentialBuckets(100e-6, 2.5, 14),
		}, labels),
		posted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "milepost_process_dead_letters_appended_total",
			Help: "Dead letters appended to their stream, repetitions included.",
		}),
		age: prometheus.NewDesc("milepost_process_iterator_age_seconds",
			"Age of the last record processed, the oldest of the lanes; 0 when nothing is left to read.", labels, nil),
		lag: prometheus.NewDesc("milepost_process_lag_records",
			"Records between the checkpoint and the end of the shard, the most of the lanes.", labels, nil),
	}
	for _, c := range []struct {
		name, help string
		of         func(*Counters) uint64
	}{
		{"records", "Records processed, repetitions included.", func(c *Counters) uint64 { return c.Records }},
		{"batches", "Batches processed.", func(c *Counters) uint64 { return c.Batches }},
		{"errors", "Failed attempts and commits.", func(c *Counters) uint64 { return c.Errors }},
		{"retries", "Pauses before another attempt.", func(c *Counters) uint64 { return c.Retries }},
		{"dead_letters", "Records given up and dead-lettered.", func(c *Counters) uint64 { return c.DeadLetters }},
		{"missed", "Records that retention removed before they were processed.", func(c *Counters) uint64 { return c.Missed }},
	} {
		m.counters = append(m.counters, counter{prometheus.NewDesc("milepost_process_"+c.name+"_total", c.help, labels, nil), c.of})
	}
	if reg == nil {
		return m, nil
	}
	all := []prometheus.Collector{m, m.seconds, m.posted}
	for i, c := range all {
		if err := reg.Register(c); err != nil {
			for _, c := range all[:i] {
				reg.Unregister(c)
			}
			return nil, fmt.Errorf("register metrics of functions: %w", err)
		}
	}
	m.registered.Store(true)
	return m, nil
}

func (m *metrics) unregister() {
	if !m.registered.Swap(false) {
		return
	}
	for _, c := range []prometheus.Collector{m, m.seconds, m.posted} {
		m.reg.Unregister(c)
	}
}

// totals returns what a lane has counted before it was made anew, or nil.
func (m *metrics) totals(fn string, id stream.ShardID, n int) *Counters {
	for _, f := range m.r.funcs {
		if f.name != fn {
			continue
		}
		f.mu.Lock()
		s := f.shards[id]
		f.mu.Unlock()
		if s == nil {
			return nil
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if n < len(s.lanes) {
			c := s.lanes[n].status().Counters
			return &c
		}
	}
	return nil
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.counters {
		ch <- c.desc
	}
	ch <- m.age
	ch <- m.lag
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, f := range m.r.Status(ctx) {
		for _, s := range f.Shards {
			var sum Counters
			var age, lag int64
			known := len(s.Lanes) > 0
			for _, l := range s.Lanes {
				sum.Records += l.Records
				sum.Batches += l.Batches
				sum.Errors += l.Errors
				sum.Retries += l.Retries
				sum.DeadLetters += l.DeadLetters
				sum.Missed += l.Missed
				age, lag = max(age, l.IteratorAgeMS), max(lag, l.Lag)
				known = known && l.Lag >= 0
			}
			for _, c := range m.counters {
				ch <- prometheus.MustNewConstMetric(c.desc, prometheus.CounterValue, float64(c.of(&sum)), f.Name, string(s.Shard))
			}
			ch <- prometheus.MustNewConstMetric(m.age, prometheus.GaugeValue, float64(age)/1e3, f.Name, string(s.Shard))
			if known {
				ch <- prometheus.MustNewConstMetric(m.lag, prometheus.GaugeValue, float64(lag), f.Name, string(s.Shard))
			}
		}
	}
}
