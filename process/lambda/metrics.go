package lambda

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are of what is not seen elsewhere: process shows mappings by shard (iterator age, lag, retries, dead letters, batch size), runtime
// functions (invocations, errors, throttles, duration).
type metrics struct {
	reg      prometheus.Registerer
	failures *prometheus.CounterVec
	events   *prometheus.CounterVec
	requests *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		reg: reg,
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
	return []prometheus.Collector{m.failures, m.events, m.requests}
}

func (m *metrics) close() {
	if m.reg == nil {
		return
	}
	for _, c := range m.all() {
		m.reg.Unregister(c)
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
