package runtime

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are shared by all functions; each is a value of the label "function".
type Metrics struct {
	invocations, errors, throttles, timeouts, restarts, coldStarts, dropped *prometheus.CounterVec
	seconds                                                                 *prometheus.HistogramVec
	processes                                                               *prometheus.GaugeVec
}

// NewMetrics registers the metrics; reg may be nil.
func NewMetrics(reg prometheus.Registerer) (*Metrics, error) {
	by := []string{"function"}
	c := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "milepost_function_" + name + "_total", Help: help}, by)
	}
	m := &Metrics{
		invocations: c("invocations", "Invocations that ended, with errors or without."),
		errors:      c("errors", "Invocations that failed: what handlers report, crashes, timeouts."),
		throttles:   c("throttles", "Invocations refused because the concurrency was in use or the endpoint asked to be spared."),
		timeouts:    c("timeouts", "Invocations that did not end before their deadline."),
		restarts:    c("restarts", "Processes that ended without being told to, or were killed at a deadline."),
		coldStarts:  c("cold_starts", "Processes started."),
		dropped:     c("dropped_log_lines", "Lines of output that were left out of the log, because there were more than log_lines a second."),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "milepost_function_duration_seconds", Help: "Duration of invocations without the start of processes.",
			Buckets: prometheus.ExponentialBuckets(100e-6, 2.5, 16),
		}, by),
		processes: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "milepost_function_processes", Help: "Processes alive."}, by),
	}
	if reg == nil {
		return m, nil
	}
	all := []prometheus.Collector{m.invocations, m.errors, m.throttles, m.timeouts, m.restarts, m.coldStarts, m.dropped, m.seconds, m.processes}
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

// stats count one function, for Status and for Metrics.
type stats struct {
	invokes, errors, throttles, timeouts, restarts, colds atomic.Uint64

	mu        sync.Mutex // guards what follows
	last      time.Time
	lastError string

	m *Metrics
	// m's counters for this function, looked up once
	cInvokes, cErrors, cThrottles, cTimeouts, cRestarts, cColds, cDropped prometheus.Counter
	seconds                                                               prometheus.Observer
	processes                                                             prometheus.Gauge
}

func newStats(m *Metrics, function string) *stats {
	if m == nil {
		m, _ = NewMetrics(nil) // which cannot fail
	}
	return &stats{
		m: m, cInvokes: m.invocations.WithLabelValues(function), cErrors: m.errors.WithLabelValues(function),
		cThrottles: m.throttles.WithLabelValues(function), cTimeouts: m.timeouts.WithLabelValues(function),
		cRestarts: m.restarts.WithLabelValues(function), cColds: m.coldStarts.WithLabelValues(function), cDropped: m.dropped.WithLabelValues(function),
		seconds: m.seconds.WithLabelValues(function), processes: m.processes.WithLabelValues(function),
	}
}

func (s *stats) ended(r *Response) {
	s.invokes.Add(1)
	s.cInvokes.Inc()
	s.seconds.Observe(r.Duration.Seconds())
	now := time.Now()
	s.mu.Lock()
	s.last = now
	if r.FunctionError != "" {
		s.lastError = errorText(r.Payload)
	}
	s.mu.Unlock()
	if r.FunctionError != "" {
		s.errors.Add(1)
		s.cErrors.Inc()
	}
}

func (s *stats) throttled() { s.throttles.Add(1); s.cThrottles.Inc() }
func (s *stats) timedOut()  { s.timeouts.Add(1); s.cTimeouts.Inc() }
func (s *stats) restarted() { s.restarts.Add(1); s.cRestarts.Inc() }
func (s *stats) cold()      { s.colds.Add(1); s.cColds.Inc() }

func (s *stats) status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Status{
		Invokes: s.invokes.Load(), Errors: s.errors.Load(), Throttles: s.throttles.Load(), Timeouts: s.timeouts.Load(),
		Restarts: s.restarts.Load(), ColdStarts: s.colds.Load(), Last: s.last, LastError: s.lastError,
	}
}
