package broker

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Why a message did not reach a session.
const (
	dropQueue    = iota // its queue is full
	dropDisk            // all queues together are
	dropMemory          // too much is in memory
	dropJournal         // the disk does not keep up
	dropQoS0            // QoS 0, and the client is slow
	dropOffline         // QoS 0, and there is no connection
	dropExpired         // too late
	dropTooLarge        // for the client
	dropRetained        // no room to retain it
	dropDamaged         // cannot be read from disk
	dropShared          // its session ended, and no other member of the shared subscription takes it
	dropReasons
)

type metrics struct {
	published  prometheus.Counter
	delivered  prometheus.Counter
	acked      prometheus.Counter
	takenOver  prometheus.Counter
	wills      prometheus.Counter
	dropped    [dropReasons]prometheus.Counter
	registered []prometheus.Collector
}

func newMetrics(b *Broker, reg prometheus.Registerer) (metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "milepost_broker_" + name, Help: help})
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "milepost_broker_" + name, Help: help}, f)
	}
	m := metrics{
		published: counter("matched_messages_total", "Messages that matched a subscription."),
		delivered: counter("deliveries_total", "Messages put into queues of sessions."),
		acked:     counter("acknowledged_total", "Deliveries of QoS 1 and 2 that their client has acknowledged."),
		takenOver: counter("taken_over_total", "Connections ended because their client id connected again."),
		wills:     counter("wills_total", "Wills published."),
	}
	drops := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "milepost_broker_dropped_total", Help: "Messages that did not reach a session, by reason.",
	}, []string{"reason"})
	for i, name := range [dropReasons]string{
		"queue_full", "disk_bound", "memory_bound", "disk_slow", "qos0_full", "qos0_offline", "expired", "too_large", "retained_bound", "damaged", "share_ended",
	} {
		m.dropped[i] = drops.WithLabelValues(name)
	}
	if reg == nil {
		return m, nil
	}
	all := []prometheus.Collector{
		m.published, m.delivered, m.acked, m.takenOver, m.wills, drops,
		gauge("sessions", "Sessions, connected or not.", func() float64 { return float64(b.sessions()) }),
		gauge("connected_sessions", "Sessions with a connection.", func() float64 { return float64(b.connected.Load()) }),
		gauge("subscriptions", "Subscriptions of all sessions.", func() float64 { return float64(b.trie.size.Load()) }),
		gauge("queued_bytes", "Bytes of messages on disk for persistent sessions.", func() float64 { return float64(b.queued.Load()) }),
		gauge("memory_bytes", "Bytes of messages in memory for sessions.", func() float64 { return float64(b.memory.Load()) }),
		gauge("journal_bytes", "Bytes that wait to be written.", func() float64 { return float64(b.journal.size.Load()) }),
		gauge("retained_messages", "Retained messages.", func() float64 { n, _ := b.retained.sizes(); return float64(n) }),
		gauge("retained_bytes", "Bytes of retained messages.", func() float64 { _, n := b.retained.sizes(); return float64(n) }),
	}
	for _, c := range all {
		if err := reg.Register(c); err != nil {
			for _, r := range m.registered {
				reg.Unregister(r)
			}
			return m, fmt.Errorf("register broker metrics: %w", err)
		}
		m.registered = append(m.registered, c)
	}
	return m, nil
}
