package process

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/stream"
)

// A Meter shows the functions of several runners as metrics, labelled with function and shard. It is a collector of its own: what
// Status counts is what Prometheus sees, and nothing is looked up for a record.
type Meter struct {
	reg      prometheus.Registerer
	seconds  *prometheus.HistogramVec
	records  *prometheus.HistogramVec
	counters []counter
	age      *prometheus.Desc
	lag      *prometheus.Desc
	overflow *prometheus.Desc
	spilled  *prometheus.Desc
	breaker  *prometheus.Desc
	opened   *prometheus.Desc

	mu      sync.Mutex // guards runners
	runners []*Runner
}

type counter struct {
	desc *prometheus.Desc
	of   func(*Counters) uint64
}

// NewMeter returns a meter that is registered with reg, unless that is nil.
func NewMeter(reg prometheus.Registerer) (*Meter, error) {
	labels := []string{"function", "shard"}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("milepost_process_"+name, help, labels, nil)
	}
	m := &Meter{
		reg: reg,
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "milepost_process_batch_seconds",
			Help:    "Time to process a batch: for a function with its commit, for a folder without, for a handler each invocation.",
			Buckets: prometheus.ExponentialBuckets(100e-6, 2.5, 14),
		}, labels),
		records: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "milepost_process_batch_records",
			Help:    "Records in a batch that was processed.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 8),
		}, labels),
		age:      desc("iterator_age_seconds", "Age of the last record processed, the oldest of the lanes; 0 when nothing is left to read.", labels...),
		lag:      desc("lag_records", "Records between the checkpoint and the end of the shard, the most of the lanes.", labels...),
		overflow: desc("overflow", "1 while the overflow policy samples or pauses.", labels...),
		spilled:  desc("spilled_ranges", "Ranges that the overflow policy has put off and that are not caught up with.", labels...),
		breaker:  desc("breaker_state", "Circuit breaker of a handler: 0 closed, 1 half-open, 2 open.", "function"),
		opened:   desc("breaker_opened_total", "How often the circuit breaker of a handler has opened.", "function"),
	}
	for _, c := range []struct {
		name, help string
		of         func(*Counters) uint64
	}{
		{"records", "Records processed, repetitions included.", func(c *Counters) uint64 { return c.Records }},
		{"batches", "Batches processed.", func(c *Counters) uint64 { return c.Batches }},
		{"errors", "Failed attempts and commits.", func(c *Counters) uint64 { return c.Errors }},
		{"retries", "Pauses before another attempt.", func(c *Counters) uint64 { return c.Retries }},
		{"dead_letters", "Records given up.", func(c *Counters) uint64 { return c.DeadLetters }},
		{"missed", "Records that retention removed before they were processed.", func(c *Counters) uint64 { return c.Missed }},
		{"filtered", "Records that a filter passed over.", func(c *Counters) uint64 { return c.Filtered }},
		{"invocations", "Calls of a handler that ran, failed ones included.", func(c *Counters) uint64 { return c.Invocations }},
		{"throttles", "Calls of a handler that did not run.", func(c *Counters) uint64 { return c.Throttles }},
		{"sampled", "Records that the overflow policy passed over.", func(c *Counters) uint64 { return c.Sampled }},
		{"spilled", "Records that the overflow policy put off.", func(c *Counters) uint64 { return c.Spilled }},
		{"caught_up", "Records that were put off and are processed now.", func(c *Counters) uint64 { return c.CaughtUp }},
	} {
		m.counters = append(m.counters, counter{desc(c.name+"_total", c.help, labels...), c.of})
	}
	if reg == nil {
		return m, nil
	}
	all := m.collectors()
	for i, c := range all {
		if err := reg.Register(c); err != nil {
			for _, c := range all[:i] {
				reg.Unregister(c)
			}
			return nil, fmt.Errorf("register metrics of functions: %w", err)
		}
	}
	return m, nil
}

func (m *Meter) collectors() []prometheus.Collector {
	return []prometheus.Collector{m, m.seconds, m.records}
}

// Close takes the meter off its registry.
func (m *Meter) Close() {
	if m.reg == nil {
		return
	}
	for _, c := range m.collectors() {
		m.reg.Unregister(c)
	}
}

// attach shows a runner. Two functions of one name cannot be told apart.
func (m *Meter) attach(r *Runner) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, o := range m.runners {
		for _, f := range o.funcs {
			for _, g := range r.funcs {
				if f.name == g.name {
					return fmt.Errorf("function %s runs already", f.name)
				}
			}
		}
	}
	m.runners = append(m.runners, r)
	return nil
}

func (m *Meter) detach(r *Runner) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.runners = slices.DeleteFunc(m.runners, func(o *Runner) bool { return o == r })
	for _, f := range r.funcs {
		m.seconds.DeletePartialMatch(prometheus.Labels{"function": f.name})
		m.records.DeletePartialMatch(prometheus.Labels{"function": f.name})
	}
}

// totals returns what a lane has counted before it was made anew, or nil.
func (f *function) totals(id stream.ShardID, n int) *Counters {
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
	return nil
}

// Describe implements prometheus.Collector.
func (m *Meter) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.counters {
		ch <- c.desc
	}
	for _, d := range []*prometheus.Desc{m.age, m.lag, m.overflow, m.spilled, m.breaker, m.opened} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Meter) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	m.mu.Lock()
	runners := slices.Clone(m.runners)
	m.mu.Unlock()
	for _, r := range runners {
		for _, f := range r.Status(ctx) {
			m.collect(ch, &f)
		}
	}
}

func (m *Meter) collect(ch chan<- prometheus.Metric, f *FunctionStatus) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, s := range f.Shards {
		var sum Counters
		var age, lag int64
		over := 0.0
		known := len(s.Lanes) > 0
		for _, l := range s.Lanes {
			sum.add(&l.Counters)
			age, lag = max(age, l.IteratorAgeMS), max(lag, l.Lag)
			known = known && l.Lag >= 0
			if l.Overflow != "" {
				over = 1
			}
		}
		if s.Spill != nil {
			sum.add(&s.Spill.Lane.Counters)
			gauge(m.spilled, float64(s.Spill.Ranges), f.Name, string(s.Shard))
		}
		for _, c := range m.counters {
			ch <- prometheus.MustNewConstMetric(c.desc, prometheus.CounterValue, float64(c.of(&sum)), f.Name, string(s.Shard))
		}
		gauge(m.age, float64(age)/1e3, f.Name, string(s.Shard))
		if known {
			gauge(m.lag, float64(lag), f.Name, string(s.Shard))
		}
		if f.Overflow != OverflowNone {
			gauge(m.overflow, over, f.Name, string(s.Shard))
		}
	}
	if f.Breaker != nil {
		gauge(m.breaker, map[BreakerState]float64{BreakerClosed: 0, BreakerHalfOpen: 1, BreakerOpen: 2}[f.Breaker.State], f.Name)
		ch <- prometheus.MustNewConstMetric(m.opened, prometheus.CounterValue, float64(f.Breaker.Opened), f.Name)
	}
}
