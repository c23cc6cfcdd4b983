package local

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	reg     prometheus.Registerer
	all     []prometheus.Collector
	seconds [2]prometheus.Observer // by sync
	errors  prometheus.Counter
	closed  atomic.Bool
}

func newMetrics(s *Store, reg prometheus.Registerer) (*metrics, error) {
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "milepost_state_commit_seconds",
		Help:    "Time to commit a transaction, by whether it waited for the disk.",
		Buckets: prometheus.ExponentialBuckets(50e-6, 2, 16),
	}, []string{"sync"})
	m := &metrics{
		reg:     reg,
		seconds: [2]prometheus.Observer{seconds.WithLabelValues("false"), seconds.WithLabelValues("true")},
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "milepost_state_commit_errors_total",
			Help: "Commits that failed; the store is then fenced.",
		}),
	}
	flag := func(name, help string, on func() bool) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			if on() {
				return 1
			}
			return 0
		})
	}
	m.all = []prometheus.Collector{
		seconds, m.errors,
		flag("milepost_state_fenced", "1 after a failed write: restart after mending the disk.", func() bool {
			return s.guard.fenceError() != nil
		}),
		flag("milepost_state_disk_full", "1 while the disk has no room for state.", s.guard.isFull.Load),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "milepost_state_disk_bytes",
			Help: "Disk space that state uses.",
		}, func() float64 {
			if s.enter() != nil {
				return 0
			}
			defer s.leave()
			return float64(s.db.Metrics().DiskSpaceUsage())
		}),
	}
	if reg == nil {
		return m, nil
	}
	for i, c := range m.all {
		if err := reg.Register(c); err != nil {
			for _, c := range m.all[:i] {
				reg.Unregister(c)
			}
			return nil, fmt.Errorf("register state metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) committed(d time.Duration, sync bool, err error) {
	i := 0
	if sync {
		i = 1
	}
	m.seconds[i].Observe(d.Seconds())
	if err != nil {
		m.errors.Inc()
	}
}

func (m *metrics) unregister() {
	if m.reg == nil || m.closed.Swap(true) {
		return
	}
	for _, c := range m.all {
		m.reg.Unregister(c)
	}
}
