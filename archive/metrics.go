package archive

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	flushedRows  prometheus.Counter
	flushes      prometheus.Counter
	flushFailed  prometheus.Counter
	flushSeconds prometheus.Histogram
	writtenBytes prometheus.Counter
	blocked      prometheus.Counter
	mergedRows   prometheus.Counter
	mergedFiles  prometheus.Counter
	mergeFailed  prometheus.Counter
	mergeSeconds prometheus.Counter
	expired      prometheus.Counter
}

func newMetrics(a *Archive, reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "milepost", Subsystem: "archive", Name: name, Help: help})
	}
	gauge := func(name, help string, f func(Status) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "milepost", Subsystem: "archive", Name: name, Help: help},
			func() float64 { return f(a.Status()) })
	}
	m := &metrics{
		flushedRows: counter("flushed_rows_total", "Rows written from live tails to Parquet."),
		flushes:     counter("flushes_total", "Flushes that were committed."),
		flushFailed: counter("flush_failures_total", "Flushes that failed and are tried again."),
		flushSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "milepost", Subsystem: "archive", Name: "flush_seconds", Help: "Time of a committed flush.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 12),
		}),
		writtenBytes: counter("written_bytes_total", "Bytes of Parquet written by flushes."),
		blocked:      counter("blocked_seconds_total", "Time that readers of the log waited because the live tail was full."),
		mergedRows:   counter("merged_rows_total", "Rows rewritten by compaction."),
		mergedFiles:  counter("merged_objects_total", "Objects replaced by compaction."),
		mergeFailed:  counter("merge_failures_total", "Compactions that failed and are tried again."),
		mergeSeconds: counter("merge_seconds_total", "Time spent compacting."),
		expired:      counter("expired_objects_total", "Objects removed by retention."),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.flushedRows, m.flushes, m.flushFailed, m.flushSeconds, m.writtenBytes, m.blocked, m.mergedRows, m.mergedFiles,
		m.mergeFailed, m.mergeSeconds, m.expired,
		gauge("tail_rows", "Rows that are not yet in Parquet.", func(s Status) float64 { return float64(s.TailRows) }),
		gauge("tail_bytes", "Memory of the live tails.", func(s Status) float64 { return float64(s.TailBytes) }),
		gauge("objects", "Committed Parquet objects.", func(s Status) float64 { return float64(s.Files) }),
		gauge("rows", "Rows in committed objects.", func(s Status) float64 { return float64(s.Rows) }),
		gauge("bytes", "Bytes of committed objects.", func(s Status) float64 { return float64(s.Bytes) }),
		gauge("missing_objects", "Objects of the manifest that were not found at the start.",
			func(s Status) float64 { return float64(s.Missing) }),
	} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}
