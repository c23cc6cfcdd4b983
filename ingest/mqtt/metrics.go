package mqtt

import (
	"fmt"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// transports by number, as metrics have them.
const (
	overTCP = iota
	overTLS
	overWebSocket
	overWebSocketTLS
	transportCount
)

func transportName(t int) string { return [...]string{"tcp", "tls", "ws", "wss"}[t] }

type metrics struct {
	open        [transportCount]atomic.Int64 // connections, CONNECT said or not
	versions    [2]atomic.Int64              // connected, by version: 3.1.1, 5
	inFlight    atomic.Int64                 // messages submitted and not settled
	handshaking atomic.Int64                 // connections whose handshake waits for its turn

	connects      [transportCount]prometheus.Counter
	refused       *prometheus.CounterVec
	disconnects   *prometheus.CounterVec
	messagesIn    [3]prometheus.Counter
	messagesOut   [3]prometheus.Counter
	bytesIn       prometheus.Counter
	bytesOut      prometheus.Counter
	acks          prometheus.Counter
	refusals      *prometheus.CounterVec
	slow          prometheus.Counter
	handshakes    prometheus.Counter
	overLimit     prometheus.Counter
	acceptFailed  prometheus.Counter
	subscriptions prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	const prefix = "milepost_ingest_mqtt_"
	var all []prometheus.Collector
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
		all = append(all, c)
		return c
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, []string{label})
		all = append(all, c)
		return c
	}
	m := &metrics{
		refused:       vec("connects_refused_total", "CONNECTs refused, by class of the reason.", "class"),
		disconnects:   vec("disconnects_total", "Connections that ended after CONNACK, by reason.", "reason"),
		bytesIn:       counter("received_bytes_total", "Bytes read from connections."),
		bytesOut:      counter("sent_bytes_total", "Bytes written to connections."),
		acks:          counter("acknowledgements_total", "PUBACK and PUBREC packets sent."),
		refusals:      vec("messages_refused_total", "Messages acknowledged with a refusal, by reason code.", "code"),
		slow:          counter("slow_readers_total", "Connections ended because they did not read what was sent to them."),
		handshakes:    counter("handshakes_failed_total", "TLS or WebSocket handshakes that failed."),
		overLimit:     counter("connections_over_limit_total", "Connections closed at once because there were as many as allowed."),
		acceptFailed:  counter("accept_failures_total", "Attempts to accept a connection that failed, for instance for want of file descriptors."),
		subscriptions: counter("subscribes_total", "Subscriptions granted."),
	}
	connects := vec("connects_total", "CONNECTs accepted, by transport.", "transport")
	in := vec("messages_received_total", "PUBLISH packets received, by QoS.", "qos")
	out := vec("messages_sent_total", "PUBLISH packets sent, by QoS.", "qos")
	for q := range 3 {
		m.messagesIn[q] = in.WithLabelValues(fmt.Sprint(q))
		m.messagesOut[q] = out.WithLabelValues(fmt.Sprint(q))
	}
	gauge := func(name, help string, labels prometheus.Labels, v *atomic.Int64) {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: prefix + name, Help: help, ConstLabels: labels},
			func() float64 { return float64(v.Load()) }))
	}
	for t := range transportCount {
		m.connects[t] = connects.WithLabelValues(transportName(t))
		gauge("connections", "Open connections, by transport.", prometheus.Labels{"transport": transportName(t)}, &m.open[t])
	}
	gauge("clients", "Connected clients, by version of the protocol.", prometheus.Labels{"version": "3.1.1"}, &m.versions[0])
	gauge("clients", "Connected clients, by version of the protocol.", prometheus.Labels{"version": "5"}, &m.versions[1])
	gauge("in_flight_messages", "Messages submitted to the log and not yet durable.", nil, &m.inFlight)
	gauge("handshakes_waiting", "TLS handshakes that wait for their turn: a storm of connections.", nil, &m.handshaking)
	if reg == nil {
		return m, nil
	}
	for i, c := range all {
		if err := reg.Register(c); err != nil {
			for _, d := range all[:i] {
				reg.Unregister(d)
			}
			return nil, fmt.Errorf("register mqtt metrics: %w", err)
		}
	}
	return m, nil
}
