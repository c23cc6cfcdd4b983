package duckdb

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/query"
)

type metrics struct {
	seconds prometheus.Histogram
	ok      prometheus.Counter
	user    prometheus.Counter
	failed  prometheus.Counter
	busy    prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	queries := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "milepost", Subsystem: "query", Name: "queries_total", Help: "SQL queries by outcome.",
	}, []string{"outcome"})
	m := &metrics{
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "milepost", Subsystem: "query", Name: "seconds", Help: "Time of SQL queries, waiting included.",
			Buckets: prometheus.ExponentialBuckets(0.002, 2.5, 12),
		}),
		ok: queries.WithLabelValues("ok"), user: queries.WithLabelValues("user_error"), failed: queries.WithLabelValues("failed"),
		busy: queries.WithLabelValues("busy"),
	}
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(m.seconds), reg.Register(queries))
}

func (m *metrics) count(err error) {
	var u *query.UserError
	switch {
	case err == nil:
		m.ok.Inc()
	case errors.Is(err, query.ErrBusy): // counted where it was decided
	case errors.As(err, &u):
		m.user.Inc()
	default:
		m.failed.Inc()
	}
}
