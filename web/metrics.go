package web

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	clients  prometheus.Gauge
	frames   prometheus.Counter
	merged   prometheus.Counter
	refused  prometheus.Counter
	dropped  prometheus.Counter
	bytes    prometheus.Counter
	encode   prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "milepost_web_requests_total", Help: "Requests answered, by route and status.",
		}, []string{"route", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "milepost_web_request_seconds", Help: "Time to answer a request, by route; live feeds are not counted.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 30},
		}, []string{"route"}),
		clients: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "milepost_web_live_clients", Help: "Live feeds now open.",
		}),
		frames:  counter("milepost_web_live_frames_total", "Deltas encoded, once for all feeds."),
		merged:  counter("milepost_web_live_merged_total", "Deltas merged for a feed that had fallen behind or just come."),
		refused: counter("milepost_web_live_refused_total", "Feeds refused because too many were open."),
		dropped: counter("milepost_web_live_dropped_total", "Feeds closed because the browser took nothing in time."),
		bytes:   counter("milepost_web_live_bytes_total", "Bytes written to live feeds."),
		encode: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "milepost_web_live_tick_seconds", Help: "Time the hub takes to drain and encode one delta.",
			Buckets: []float64{.0001, .0005, .001, .005, .02, .1, .5},
		}),
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.seconds, m.clients, m.frames, m.merged, m.refused, m.dropped, m.bytes, m.encode)
	}
	return m
}

// route returns the function that counts one route's answers.
func (m *metrics) route(pattern string) func(status int, took time.Duration) {
	live := pattern == "GET /v1/live"
	seconds := m.seconds.WithLabelValues(pattern)
	return func(status int, took time.Duration) {
		if status == 0 {
			status = 200 // nothing was written: net/http answers 200
		}
		m.requests.WithLabelValues(pattern, strconv.Itoa(status)).Inc()
		if !live {
			seconds.Observe(took.Seconds())
		}
	}
}
