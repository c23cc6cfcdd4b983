// Package bridge takes readings from an MQTT broker that exists already, instead of serving devices itself: it subscribes, as one of
// a group of equal consumers (a shared subscription), and admits what comes.
//
// A message of QoS 1 or 2 is acknowledged to the broker when it is durable in the log, or, where it is no reading, as a dead letter
// (P1, P7). When the log cannot take data the bridge stops acknowledging and tries again: the broker keeps what it has not seen
// acknowledged, and its receive maximum bounds what is in flight. After a lost connection the broker sends the rest again; readings
// that come twice change nothing downstream.
package bridge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/ingest"
)

// A Message is what came by a topic, mapped to readings.
type Message struct {
	Vehicle string          // that the topic names; "": the payload does
	Data    []byte          // readings as the HTTP door takes them
	Unread  []ingest.Unread // parts that could not be read
}

// Config says which broker and which topics. URL, Topics, Map and Admit are required.
type Config struct {
	Name     string      // in logs and dead letters
	URL      string      // mqtt://host:1883 or tls://host:8883
	TLS      *tls.Config // for tls://; nil: the system's authorities
	ClientID string      // "": milepost
	User     string
	Password string
	Topics   []string // filters to subscribe to
	Group    string   // of the shared subscription; "": milepost. "-": none, this is the only consumer
	QoS      byte     // 0 or 1
	InFlight uint16   // messages not acknowledged at one time; 0: 1,000
	// Map turns a message into readings; false: no mapping has its topic. What it returns may be a view of payload.
	Map     func(topic string, payload []byte) (m Message, ok bool, err error)
	Admit   *ingest.Admitter
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// A Bridge runs until its Run returns.
type Bridge struct {
	cfg       Config
	url       *url.URL
	door      *ingest.Door
	connected prometheus.Gauge
	messages  prometheus.Counter
	pending   chan *paho.PublishReceived
}

// New checks the configuration.
func New(cfg Config) (*Bridge, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.ClientID == "" {
		cfg.ClientID = "milepost"
	}
	if cfg.Group == "" {
		cfg.Group = "milepost"
	}
	if cfg.InFlight == 0 {
		cfg.InFlight = 1000
	}
	u, err := url.Parse(cfg.URL)
	switch {
	case err != nil || u.Host == "" || !slices.Contains([]string{"mqtt", "tcp", "mqtts", "tls", "ssl", "ws", "wss"}, u.Scheme):
		return nil, fmt.Errorf("bridge %s: url %q: write mqtt://host:1883 or tls://host:8883", cfg.Name, cfg.URL)
	case len(cfg.Topics) == 0:
		return nil, fmt.Errorf("bridge %s: no topics: name what to subscribe to, such as fleet/+/telemetry", cfg.Name)
	case cfg.QoS > 1:
		return nil, fmt.Errorf("bridge %s: qos %d: use 0 or 1", cfg.Name, cfg.QoS)
	case strings.ContainsAny(cfg.Group, "/+#"):
		return nil, fmt.Errorf("bridge %s: group %q: use a word without /, + and #", cfg.Name, cfg.Group)
	case cfg.Map == nil || cfg.Admit == nil:
		return nil, errors.New("bridge: no mapping of topics, or nothing that admits")
	}
	b := &Bridge{
		cfg: cfg, url: u, door: cfg.Admit.Door("bridge"), pending: make(chan *paho.PublishReceived, cfg.InFlight),
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "milepost_ingest_bridge_connected", Help: "Whether the bridge has a connection to its broker.", ConstLabels: prometheus.Labels{"bridge": cfg.Name},
		}),
		messages: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "milepost_ingest_bridge_messages_total", Help: "Messages that came from the broker.", ConstLabels: prometheus.Labels{"bridge": cfg.Name},
		}),
	}
	if cfg.Metrics != nil {
		if err := errors.Join(cfg.Metrics.Register(b.connected), cfg.Metrics.Register(b.messages)); err != nil {
			return nil, fmt.Errorf("register metrics of bridge %s: %w", cfg.Name, err)
		}
	}
	return b, nil
}

// Run connects, and connects again, until ctx ends; then it stores what has come, acknowledges it, and returns.
func (b *Bridge) Run(ctx context.Context) error {
	c := &b.cfg
	storing, stored := context.WithCancel(context.WithoutCancel(ctx)) // ends after the last message
	defer stored()
	failing := false
	client := autopaho.ClientConfig{
		ServerUrls: []*url.URL{b.url}, TlsCfg: c.TLS, KeepAlive: 30, SessionExpiryInterval: 24 * 3600,
		ConnectUsername: c.User, ConnectPassword: []byte(c.Password),
		ReconnectBackoff: func(n int) time.Duration { return min(time.Minute, 100*time.Millisecond<<min(n, 12)) },
		ConnectPacketBuilder: func(p *paho.Connect, _ *url.URL) (*paho.Connect, error) {
			if p.Properties == nil {
				p.Properties = &paho.ConnectProperties{}
			}
			p.Properties.ReceiveMaximum = &c.InFlight
			return p, nil
		},
		OnConnectionUp: func(m *autopaho.ConnectionManager, _ *paho.Connack) {
			b.connected.Set(1)
			failing = false
			c.Log.InfoContext(ctx, "bridge connected", "bridge", c.Name, "broker", b.url.Host)
			if err := b.subscribe(ctx, m); err != nil {
				c.Log.ErrorContext(ctx, "bridge may not subscribe; check the broker's permissions", "bridge", c.Name, "error", err)
			}
		},
		OnConnectionDown: func() bool {
			b.connected.Set(0)
			return true
		},
		OnConnectError: func(err error) {
			b.connected.Set(0)
			if !failing {
				c.Log.WarnContext(ctx, "bridge cannot connect; it goes on trying", "bridge", c.Name, "broker", b.url.Host, "error", err)
			}
			failing = true
		},
		ClientConfig: paho.ClientConfig{
			ClientID: c.ClientID, EnableManualAcknowledgment: true,
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
				b.messages.Inc()
				select {
				case b.pending <- &p: // the broker's receive maximum keeps QoS 1 within it; QoS 0 waits in the connection
				case <-storing.Done():
				}
				return true, nil
			}},
		},
	}
	connecting, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	m, err := autopaho.NewConnection(connecting, client)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", c.Name, err)
	}
	b.store(ctx)
	leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_ = m.Disconnect(leave) // what was not acknowledged comes again
	b.connected.Set(0)
	stored()
	hangUp()
	<-m.Done()
	return nil
}

func (b *Bridge) subscribe(ctx context.Context, m *autopaho.ConnectionManager) error {
	s := &paho.Subscribe{}
	for _, t := range b.cfg.Topics {
		if b.cfg.Group != "-" {
			t = "$share/" + b.cfg.Group + "/" + t
		}
		s.Subscriptions = append(s.Subscriptions, paho.SubscribeOptions{Topic: t, QoS: b.cfg.QoS})
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err := m.Subscribe(ctx, s)
	return err
}

const batchMost = 500

// store admits what comes, in batches, until ctx ends and nothing waits.
func (b *Bridge) store(ctx context.Context) {
	var batch []*paho.PublishReceived
	for {
		batch = batch[:0]
		select {
		case p := <-b.pending:
			batch = append(batch, p)
		case <-ctx.Done():
			return
		}
	more:
		for len(batch) < batchMost {
			select {
			case p := <-b.pending:
				batch = append(batch, p)
			default:
				break more
			}
		}
		if !b.admit(ctx, batch) {
			return
		}
		for _, p := range batch {
			if p.Packet.QoS > 0 {
				_ = p.Client.Ack(p.Packet) // of a connection that is gone: it comes again
			}
		}
	}
}

// admit stores a batch, however often it has to try; false: ctx ended before.
func (b *Bridge) admit(ctx context.Context, batch []*paho.PublishReceived) bool {
	durable := context.WithoutCancel(ctx)
	var receipt ingest.Receipt
	var payloads []ingest.Payload
	for _, p := range batch {
		m, ok, err := b.cfg.Map(p.Packet.Topic, p.Packet.Payload)
		whole := ingest.Payload{Data: p.Packet.Payload, From: b.cfg.Name, Topic: p.Packet.Topic}
		switch {
		case !ok:
			if !b.refuse(ctx, whole, ingest.WrongTopic, "no mapping has the topic: add one to the bridge's topics or formats") {
				return false
			}
		case err != nil:
			if !b.refuse(ctx, whole, ingest.NotReading, err.Error()) {
				return false
			}
		case len(m.Data) > 0 || len(m.Unread) > 0:
			payloads = append(payloads, ingest.Payload{Data: m.Data, Vehicle: m.Vehicle, From: b.cfg.Name, Topic: p.Packet.Topic, Unread: m.Unread, Body: p.Packet.Payload})
		}
	}
	for n := 0; len(payloads) > 0; n++ {
		b.door.AdmitAll(durable, payloads, &receipt)
		if receipt.Failed == 0 && receipt.DeadLetterErr == nil && receipt.Throttled == 0 {
			return true
		}
		// What was stored of it is stored once more, which changes nothing downstream.
		if !pause(ctx, n) {
			return false
		}
	}
	return true
}

func (b *Bridge) refuse(ctx context.Context, p ingest.Payload, why ingest.Reason, text string) bool {
	var receipt ingest.Receipt
	for n := 0; ; n++ {
		b.door.DeadLetter(context.WithoutCancel(ctx), p, why, text, &receipt)
		if receipt.DeadLetterErr == nil {
			return true
		}
		if !pause(ctx, n) {
			return false
		}
	}
}

// pause waits before attempt n+2; false: ctx ended.
func pause(ctx context.Context, n int) bool {
	t := time.NewTimer(min(10*time.Second, 50*time.Millisecond<<min(n, 10)))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
