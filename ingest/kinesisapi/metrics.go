package kinesisapi

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics collects the door's series. Those of shards are read from the shards' own counters when somebody asks, so that no hot
// path looks up a label.
type metrics struct {
	door     *Door
	requests map[string]*atomic.Uint64 // by operation
	errors   map[string]*atomic.Uint64 // by operation
	refused  atomic.Uint64             // connections and bodies that were too much

	descs struct {
		requests, errors, refused                *prometheus.Desc
		inBytes, inRecords, inRefused            *prometheus.Desc
		outBytes, outRecords, outRefused         *prometheus.Desc
		iteratorAge, behind, subscriptions, open *prometheus.Desc
	}
}

func newMetrics(d *Door) *metrics {
	m := &metrics{door: d, requests: map[string]*atomic.Uint64{}, errors: map[string]*atomic.Uint64{}}
	for name := range d.ops {
		m.requests[name], m.errors[name] = new(atomic.Uint64), new(atomic.Uint64)
	}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("milepost_kinesis_"+name, help, labels, nil)
	}
	m.descs.requests = desc("requests_total", "Requests by operation.", "operation")
	m.descs.errors = desc("request_errors_total", "Requests that got an error, by operation.", "operation")
	m.descs.refused = desc("refused_total", "Requests refused before they were read: too large, too slow, or no room.")
	m.descs.inBytes = desc("incoming_bytes_total", "IncomingBytes: bytes put, keys included.", "stream", "shard")
	m.descs.inRecords = desc("incoming_records_total", "IncomingRecords: records put.", "stream", "shard")
	m.descs.inRefused = desc("write_provisioned_throughput_exceeded_total", "WriteProvisionedThroughputExceeded: records refused by the shard's limit.", "stream", "shard")
	m.descs.outBytes = desc("outgoing_bytes_total", "OutgoingBytes: bytes read by GetRecords and SubscribeToShard.", "stream", "shard")
	m.descs.outRecords = desc("outgoing_records_total", "OutgoingRecords: records read by GetRecords and SubscribeToShard.", "stream", "shard")
	m.descs.outRefused = desc("read_provisioned_throughput_exceeded_total", "ReadProvisionedThroughputExceeded: GetRecords calls refused by the shard's limit.", "stream", "shard")
	m.descs.iteratorAge = desc("get_records_iterator_age_milliseconds", "GetRecords.IteratorAgeMilliseconds: age of the last record of the last GetRecords, 0 at the tip.", "stream", "shard")
	m.descs.behind = desc("subscribe_to_shard_event_millis_behind_latest", "SubscribeToShardEvent.MillisBehindLatest of the last event.", "stream", "shard", "consumer")
	m.descs.subscriptions = desc("subscriptions", "Open SubscribeToShard calls.", "stream")
	m.descs.open = desc("open_shards", "Shards that take records.", "stream")
	return m
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	d := &m.descs
	for _, x := range []*prometheus.Desc{
		d.requests, d.errors, d.refused, d.inBytes, d.inRecords, d.inRefused, d.outBytes, d.outRecords, d.outRefused,
		d.iteratorAge, d.behind, d.subscriptions, d.open,
	} {
		ch <- x
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	d := &m.descs
	emit := func(desc *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, kind, v, labels...)
	}
	for name, n := range m.requests {
		if n.Load() > 0 {
			emit(d.requests, prometheus.CounterValue, float64(n.Load()), name)
			emit(d.errors, prometheus.CounterValue, float64(m.errors[name].Load()), name)
		}
	}
	emit(d.refused, prometheus.CounterValue, float64(m.refused.Load()))
	for name, s := range m.door.catalog.Load().Streams {
		if s.live == nil {
			continue
		}
		for _, sh := range *s.live.shards.Load() {
			if sh == nil {
				continue
			}
			id := string(sh.id)
			emit(d.inBytes, prometheus.CounterValue, float64(sh.inBytes.Load()), name, id)
			emit(d.inRecords, prometheus.CounterValue, float64(sh.inRecords.Load()), name, id)
			emit(d.inRefused, prometheus.CounterValue, float64(sh.inRefused.Load()), name, id)
			emit(d.outBytes, prometheus.CounterValue, float64(sh.outBytes.Load()), name, id)
			emit(d.outRecords, prometheus.CounterValue, float64(sh.outRecords.Load()), name, id)
			emit(d.outRefused, prometheus.CounterValue, float64(sh.outRefused.Load()), name, id)
			emit(d.iteratorAge, prometheus.GaugeValue, float64(sh.iteratorAge.Load()), name, id)
		}
		emit(d.open, prometheus.GaugeValue, float64(s.live.log.Config().Shards), name)
		s.live.mu.Lock()
		subs := make([]*subscription, 0, len(s.live.subs))
		for _, sub := range s.live.subs {
			subs = append(subs, sub)
		}
		s.live.mu.Unlock()
		open := 0
		for _, sub := range subs {
			if !sub.over() {
				open++
			}
			emit(d.behind, prometheus.GaugeValue, float64(sub.behind.Load()), name, string(sub.key.shard), sub.key.consumer)
		}
		emit(d.subscriptions, prometheus.GaugeValue, float64(open), name)
	}
}
