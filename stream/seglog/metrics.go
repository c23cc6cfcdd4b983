package seglog

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the store's, by stream.
type metrics struct {
	records, bytes, groups, readBytes, damage *prometheus.CounterVec
	append, sync                              *prometheus.HistogramVec
	queue, stored, segments, full, fenced     *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	label := []string{"stream"}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "milepost_stream_" + name, Help: help}, label)
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "milepost_stream_" + name, Help: help}, label)
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "milepost_stream_" + name, Help: help, Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
		}, label)
	}
	m := &metrics{
		records:   counter("records_total", "Records made durable."),
		bytes:     counter("written_bytes_total", "Bytes written to segments."),
		groups:    counter("groups_total", "Group commits, each one write and one sync."),
		readBytes: counter("read_bytes_total", "Bytes read from segments by readers."),
		damage:    counter("damage_total", "Times that a reader met bytes which fail their checksum."),
		append:    histogram("append_seconds", "From the call of Append to its return."),
		sync:      histogram("sync_seconds", "Write and sync of a group."),
		queue:     gauge("queue_bytes", "Encoded records that wait for the disk."),
		stored:    gauge("stored_bytes", "Bytes in segments."),
		segments:  gauge("segments", "Segments, the active one included."),
		full:      gauge("full", "1 while appends are refused because the disk is full."),
		fenced:    gauge("fenced", "1 when appends are refused until a restart because a write or sync failed."),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range m.all() {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

type collector interface {
	prometheus.Collector
	DeleteLabelValues(lvs ...string) bool
}

func (m *metrics) all() []collector {
	return []collector{
		m.records, m.bytes, m.groups, m.readBytes, m.damage, m.append, m.sync, m.queue, m.stored, m.segments, m.full, m.fenced,
	}
}

// unregister gives the names back, so that the store can be opened again in the same process.
func (m *metrics) unregister(reg prometheus.Registerer) {
	if reg == nil {
		return
	}
	for _, c := range m.all() {
		reg.Unregister(c)
	}
}

// forget removes the series of a deleted stream.
func (m *metrics) forget(name string) {
	for _, c := range m.all() {
		c.DeleteLabelValues(name)
	}
}

// logMetrics are one stream's, looked up once.
type logMetrics struct {
	records, bytes, groups, readBytes, damage prometheus.Counter
	append, sync                              prometheus.Observer
	queue, stored, segments, full, fenced     prometheus.Gauge
}

func (m *metrics) of(name string) *logMetrics {
	return &logMetrics{
		records: m.records.WithLabelValues(name), bytes: m.bytes.WithLabelValues(name), groups: m.groups.WithLabelValues(name),
		readBytes: m.readBytes.WithLabelValues(name), damage: m.damage.WithLabelValues(name),
		append: m.append.WithLabelValues(name), sync: m.sync.WithLabelValues(name), queue: m.queue.WithLabelValues(name),
		stored: m.stored.WithLabelValues(name), segments: m.segments.WithLabelValues(name), full: m.full.WithLabelValues(name),
		fenced: m.fenced.WithLabelValues(name),
	}
}
