package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/stream/seglog"
	"github.com/milepost/milepost/web"
)

// Status implements web.Pipeline: the whole flow at one moment. Counters are read back from the metrics, so that the page and
// Prometheus cannot disagree.
func (s *server) Status(ctx context.Context) (web.PipelineStatus, error) {
	m, err := s.gather()
	if err != nil {
		return web.PipelineStatus{}, err
	}
	st := web.PipelineStatus{Time: time.Now(), Started: s.started, Dead: s.letters.Total()}
	st.Doors = append(st.Doors, m.door("http", s.cfg.HTTP.Listen))
	if s.mqtt != nil {
		d := m.door("mqtt", orNone(s.cfg.MQTT.Listen))
		d.Connections = int(m.value("milepost_ingest_mqtt_connections"))
		st.Doors = append(st.Doors, d)
	}
	if s.kinesis != nil {
		st.Doors = append(st.Doors, m.kinesisDoor(orNone(s.cfg.Kinesis.Listen)))
	}
	for _, name := range s.logs.Streams() {
		l, err := s.logs.Stream(name)
		if err != nil {
			continue // deleted meanwhile
		}
		x, err := s.streamStatus(ctx, l, m)
		if err != nil {
			return st, err
		}
		st.Streams = append(st.Streams, x)
	}
	for _, f := range s.runner.Status(ctx) {
		st.Functions = append(st.Functions, functionStatus(readingsStream, f))
	}
	for _, b := range s.beside {
		for _, f := range b.runner.Status(ctx) {
			st.Functions = append(st.Functions, functionStatus(b.stream, f))
		}
	}
	st.Functions = append(st.Functions, m.kinesisReaders()...)
	a := s.archive.Status()
	st.Archive = &web.ArchiveStatus{
		Files: uint64(a.Files), Rows: uint64(a.Rows), Bytes: uint64(a.Bytes), TailRows: uint64(a.TailRows), Newest: a.LastFlush, //nolint:gosec // counts
	}
	for _, name := range s.sinkNames() {
		st.Sinks = append(st.Sinks, web.SinkStatus{
			Name:    name,
			Sent:    uint64(m.value("milepost_alert_notifications_total", "sink", name, "outcome", "sent")),
			Failed:  uint64(m.value("milepost_alert_notifications_total", "sink", name, "outcome", "failed")),
			Pending: int(m.value("milepost_alert_notifications_waiting", "sink", name)),
		})
	}
	return st, nil
}

func (s *server) sinkNames() []string {
	names := []string{}
	for _, sev := range []string{"critical"} { // every sink hears of the worst
		names = append(names, s.cfg.Alerts.Route(sev)...)
	}
	return names
}

func (s *server) streamStatus(ctx context.Context, l *seglog.Log, m samples) (web.StreamStatus, error) {
	stats := l.Stats()
	st := web.StreamStatus{
		Name:    l.Name(),
		Records: uint64(m.value("milepost_stream_records_total", "stream", l.Name())),
		Bytes:   uint64(m.value("milepost_stream_written_bytes_total", "stream", l.Name())),
		Stored:  uint64(stats.Bytes), //nolint:gosec // not negative
	}
	if stats.Fenced != nil {
		st.Fenced = stats.Fenced.Error()
	} else if stats.Full {
		st.Fenced = "the disk is full"
	}
	shards, err := l.Shards(ctx)
	if err != nil {
		return st, err
	}
	for _, sh := range shards {
		tip, err := l.Tip(ctx, sh.ID)
		if err != nil {
			return st, err
		}
		st.Shards = append(st.Shards, web.ShardStatus{ID: sh.ID, Closed: sh.Closed, Records: tip.Seq, Tip: tip.Time, Oldest: stats.Oldest})
	}
	return st, nil
}

// samples are the values of every metric at one moment, by name and labels.
type samples map[string][]sample

type sample struct {
	labels map[string]string
	value  float64
}

func (s *server) gather() (samples, error) {
	families, err := s.reg.Gather()
	if err != nil {
		return nil, err
	}
	out := samples{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			x := sample{labels: map[string]string{}}
			for _, l := range m.GetLabel() {
				x.labels[l.GetName()] = l.GetValue()
			}
			switch {
			case m.GetCounter() != nil:
				x.value = m.GetCounter().GetValue()
			case m.GetGauge() != nil:
				x.value = m.GetGauge().GetValue()
			default:
				continue
			}
			out[f.GetName()] = append(out[f.GetName()], x)
		}
	}
	return out, nil
}

// value sums the samples of a name that have the labels, given as name, value, name, value.
func (m samples) value(name string, labels ...string) float64 {
	sum := 0.0
next:
	for _, x := range m[name] {
		for i := 0; i+1 < len(labels); i += 2 {
			if x.labels[labels[i]] != labels[i+1] {
				continue next
			}
		}
		sum += x.value
	}
	return sum
}

func (m samples) door(name, address string) web.DoorStatus {
	d := web.DoorStatus{
		Name: name, Address: address, Refused: map[string]uint64{},
		Accepted: uint64(m.value("milepost_ingest_readings_total", "door", name)),
		Bytes:    uint64(m.value("milepost_ingest_received_bytes_total", "door", name)),
	}
	for _, x := range m["milepost_ingest_refused_total"] {
		if x.labels["door"] == name && x.value > 0 {
			d.Refused[x.labels["reason"]] = uint64(x.value)
		}
	}
	return d
}

// kinesisDoor is the Kinesis door, with what it refused under the names that people alert on.
func (m samples) kinesisDoor(address string) web.DoorStatus {
	d := web.DoorStatus{
		Name: "kinesis", Address: address, Refused: map[string]uint64{},
		Connections: int(m.value("milepost_kinesis_subscriptions")),
		Accepted:    uint64(m.value("milepost_kinesis_incoming_records_total")),
		Bytes:       uint64(m.value("milepost_kinesis_incoming_bytes_total")),
	}
	for reason, name := range map[string]string{
		"WriteProvisionedThroughputExceeded": "milepost_kinesis_write_provisioned_throughput_exceeded_total",
		"ReadProvisionedThroughputExceeded":  "milepost_kinesis_read_provisioned_throughput_exceeded_total",
		"not read":                           "milepost_kinesis_refused_total",
	} {
		if n := m.value(name); n > 0 {
			d.Refused[reason] = uint64(n)
		}
	}
	return d
}

// kinesisReaders are the consumers that read over the Kinesis API: each fan-out consumer, and GetRecords of each stream.
func (m samples) kinesisReaders() []web.FunctionStatus {
	by := map[string]*web.FunctionStatus{}
	add := func(name string, x sample) {
		key := x.labels["stream"] + " " + name
		f := by[key]
		if f == nil {
			f = &web.FunctionStatus{Name: name, Stream: x.labels["stream"]}
			by[key] = f
		}
		f.Shards = append(f.Shards, web.FunctionLag{Shard: stream.ShardID(x.labels["shard"]), Lag: -1, Seconds: x.value / 1000})
	}
	for _, x := range m["milepost_kinesis_subscribe_to_shard_event_millis_behind_latest"] {
		add("fan-out "+x.labels["consumer"], x)
	}
	for _, x := range m["milepost_kinesis_get_records_iterator_age_milliseconds"] {
		if m.value("milepost_kinesis_outgoing_records_total", "stream", x.labels["stream"]) > 0 {
			add("GetRecords", x)
		}
	}
	out := make([]web.FunctionStatus, 0, len(by))
	for _, key := range slices.Sorted(maps.Keys(by)) {
		f := by[key]
		f.Processed = uint64(m.value("milepost_kinesis_outgoing_records_total", "stream", f.Stream)) // of all the stream's readers
		slices.SortFunc(f.Shards, func(a, b web.FunctionLag) int { return strings.Compare(string(a.Shard), string(b.Shard)) })
		out = append(out, *f)
	}
	return out
}

func functionStatus(name string, f process.FunctionStatus) web.FunctionStatus {
	out := web.FunctionStatus{Name: f.Name, Stream: name, LastError: f.Error}
	var newest time.Time
	for _, sh := range f.Shards {
		lag := web.FunctionLag{Shard: sh.Shard}
		for _, l := range sh.Lanes {
			out.Processed += l.Records
			out.Errors += l.Errors
			out.Dead += l.DeadLetters
			// Every lane reads the whole shard, so its lag is the one that is furthest behind.
			lag.Lag = max(lag.Lag, l.Lag)
			lag.Seconds = max(lag.Seconds, float64(l.IteratorAgeMS)/1000)
			if l.LastErrorTime.After(newest) {
				newest, out.LastError = l.LastErrorTime, l.LastError
			}
		}
		out.Shards = append(out.Shards, lag)
	}
	return out
}
