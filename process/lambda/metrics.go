package lambda

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are of functions; what belongs to a mapping and shard (iterator age, lag, retries, dead letters) process shows.
type metrics struct {
	reg      prometheus.Registerer
	calls    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	records  *prometheus.HistogramVec
	failures *prometheus.CounterVec
	events   *prometheus.CounterVec
	requests *prometheus.CounterVec
}

type functionMetrics struct {
	ok, errors, throttles, notRun prometheus.Counter
	seconds, records              prometheus.Observer
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		reg: reg,
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "milepost_lambda_invocations_total", Help: "Invocations by function and outcome: ok, error, throttled, not_run.",
		}, []string{"function", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "milepost_lambda_invocation_seconds", Help: "Duration of invocations that ran.", Buckets: prometheus.ExponentialBuckets(100e-6, 2.5, 16),
		}, []string{"function"}),
		records: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "milepost_lambda_batch_records", Help: "Records of an invocation by a mapping.", Buckets: prometheus.ExponentialBuckets(1, 4, 8),
		}, []string{"function"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "milepost_lambda_failure_deliveries_total", Help: "Attempts to bring a failure document to its destination, by outcome: ok, failed.",
		}, []string{"outcome"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "milepost_lambda_async_invocations_total", Help: "Attempts to run an asynchronous invocation, by outcome: ok, failed.",
		}, []string{"outcome"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "milepost_lambda_requests_total", Help: "Requests to the Lambda API, by operation and status.",
		}, []string{"operation", "status"}),
	}
	if reg == nil {
		return m, nil
	}
	all := m.all()
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

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.calls, m.seconds, m.records, m.failures, m.events, m.requests}
}

func (m *metrics) close() {
	if m.reg == nil {
		return
	}
	for _, c := range m.all() {
		m.reg.Unregister(c)
	}
}

func (m *metrics) of(function string) functionMetrics {
	return functionMetrics{
		ok: m.calls.WithLabelValues(function, "ok"), errors: m.calls.WithLabelValues(function, "error"),
		throttles: m.calls.WithLabelValues(function, "throttled"), notRun: m.calls.WithLabelValues(function, "not_run"),
		seconds: m.seconds.WithLabelValues(function), records: m.records.WithLabelValues(function),
	}
}

func outcomeOf(v *prometheus.CounterVec) func(error) {
	ok, failed := v.WithLabelValues("ok"), v.WithLabelValues("failed")
	return func(err error) {
		if err != nil {
			failed.Inc()
			return
		}
		ok.Inc()
	}
}
