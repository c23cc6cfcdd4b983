package ingest

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	messages    *prometheus.CounterVec
	readings    *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	refused     *prometheus.CounterVec
	deadLetters *prometheus.CounterVec
	deadLost    *prometheus.CounterVec
	ack         *prometheus.HistogramVec
}

// doorMetrics are one door's children, looked up once because a label look-up costs as much as decoding a reading.
type doorMetrics struct {
	messages    prometheus.Counter
	readings    prometheus.Counter
	bytes       prometheus.Counter
	refused     [reasons]prometheus.Counter
	deadLetters prometheus.Counter
	deadLost    prometheus.Counter
	ack         prometheus.Observer
}

func newMetrics(reg prometheus.Registerer, held func() float64) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "milepost_ingest_" + name, Help: help}, labels)
	}
	m := &metrics{
		messages:    counter("messages_total", "Requests or messages admitted to decoding.", "door"),
		readings:    counter("readings_total", "Readings stored in the log.", "door"),
		bytes:       counter("received_bytes_total", "Bytes of payload admitted to decoding.", "door"),
		refused:     counter("refused_total", "Readings or messages not stored, by reason.", "door", "reason"),
		deadLetters: counter("dead_letters_total", "Records written to the dead-letter stream.", "door"),
		deadLost:    counter("dead_letters_lost_total", "Records the dead-letter stream did not take; kept nowhere.", "door"),
		ack: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "milepost_ingest_ack_seconds",
			Help:    "From a message's arrival in full to its readings being durable.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"door"}),
	}
	if reg == nil {
		return m, nil
	}
	inFlight := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "milepost_ingest_in_flight_bytes",
		Help: "Memory held for what was received and not yet answered.",
	}, held)
	for _, c := range []prometheus.Collector{
		m.messages, m.readings, m.bytes, m.refused, m.deadLetters, m.deadLost, m.ack, inFlight,
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register ingest metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) door(name string) doorMetrics {
	d := doorMetrics{
		messages:    m.messages.WithLabelValues(name),
		readings:    m.readings.WithLabelValues(name),
		bytes:       m.bytes.WithLabelValues(name),
		deadLetters: m.deadLetters.WithLabelValues(name),
		deadLost:    m.deadLost.WithLabelValues(name),
		ack:         m.ack.WithLabelValues(name),
	}
	for r := range reasons {
		d.refused[r] = m.refused.WithLabelValues(name, r.String())
	}
	return d
}
