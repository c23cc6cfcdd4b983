package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/milepost/milepost/device"
	"github.com/milepost/milepost/device/command"
	"github.com/milepost/milepost/device/shadow"
	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/bridge"
	"github.com/milepost/milepost/ingest/format"
	"github.com/milepost/milepost/ingest/mqtt"
	"github.com/milepost/milepost/ingest/mqtt/broker"
	"github.com/milepost/milepost/ingest/mqtt/packet"
)

// BridgeConfig is an MQTT broker elsewhere that readings are taken from.
type BridgeConfig struct {
	URL      string            `yaml:"url" doc:"mqtt://host:1883 or tls://host:8883"`
	User     string            `yaml:"user" doc:"user name; empty: none"`
	Password string            `yaml:"password" doc:"password"`
	CA       string            `yaml:"ca" doc:"PEM file of the authorities that the broker's certificate may be of; empty: the system's"`
	Cert     string            `yaml:"cert" doc:"PEM file with a client certificate"`
	Key      string            `yaml:"key" doc:"PEM file with its key"`
	ClientID string            `yaml:"client_id" default:"milepost" doc:"client id; each Milepost of a group needs its own"`
	Topics   []string          `yaml:"topics" default:"[\"fleet/{vehicle}/telemetry\"]" doc:"topics that carry readings, as mqtt.topics"`
	Formats  map[string]string `yaml:"formats" doc:"topics that carry another format, as mqtt.formats"`
	Group    string            `yaml:"group" default:"milepost" doc:"of the shared subscription, which the broker divides among its members; -: no shared subscription"`
	QoS      int               `yaml:"qos" default:"1" doc:"0 or 1"`
	InFlight int               `yaml:"in_flight" default:"1000" doc:"messages not acknowledged at one time"`
}

// topics returns the mappings of a door: its own JSON, and other formats. send answers a sender of a format that wants one.
func topics(own []string, foreign map[string]string, formats *format.Set, admit *ingest.Admitter, send func(format.Message)) ([]mqtt.Topic, error) {
	var out []mqtt.Topic
	for _, t := range own {
		out = append(out, mqtt.Topic{Pattern: t})
	}
	for _, t := range slices.Sorted(maps.Keys(foreign)) {
		c, err := formats.Converter(foreign[t])
		if err != nil {
			return nil, fmt.Errorf("formats.%s: %w", t, err)
		}
		out = append(out, mqtt.Topic{Pattern: t, Convert: converting(c, admit, send)})
	}
	return out, nil
}

// converting reads messages with c.
func converting(
	c format.Converter, admit *ingest.Admitter, send func(format.Message),
) func(dst []byte, topic, device string, data []byte) ([]byte, []ingest.Unread, error) {
	outputs := sync.Pool{New: func() any { return format.NewOutput(admit.Catalog()) }}
	return func(dst []byte, topic, device string, data []byte) ([]byte, []ingest.Unread, error) {
		o := outputs.Get().(*format.Output) //nolint:errcheck,forcetypeassert // nothing else is in it
		defer outputs.Put(o)
		o.Reset()
		o.Lines = dst
		// The topic is a view of the connection's buffer, and converters keep names.
		if err := c.Convert(&format.Input{Topic: strings.Clone(topic), Device: strings.Clone(device), Data: data, Now: time.Now()}, o); err != nil {
			o.Lines = nil
			return dst, nil, err
		}
		if o.Undo != nil {
			// Whether this is stored is known only when it is gathered with what others sent. If it is not, it comes again, and must not
			// be taken for what was seen already.
			o.Undo()
		}
		for _, m := range o.Send {
			send(m)
		}
		var unread []ingest.Unread
		for _, b := range o.Bad {
			unread = append(unread, ingest.Unread{Line: b.Element, Data: b.Data, Reason: b.Reason})
		}
		lines := o.Lines
		o.Lines = nil // they are the caller's
		return lines, unread, nil
	}
}

// openMQTT opens the device door, with what goes the other way: commands, and shadows.
func (s *server) openMQTT(ctx context.Context) error {
	m := s.cfg.MQTT
	cfg := mqtt.Config{
		Address: m.Listen, WebSocketAddress: m.WebSocket, MaxConnections: s.connections(), Logger: s.log, Metrics: s.reg,
		Journal: gatekeeper{s.devices.Identity},
	}
	if err := s.mqttTLS(&cfg); err != nil {
		return err
	}
	if cfg.Address == "" && cfg.TLSAddress == "" && cfg.WebSocketAddress == "" && cfg.WebSocketTLSAddress == "" {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(m.Users)) {
		cfg.Users = append(cfg.Users, mqtt.User{Name: name, Password: m.Users[name]})
	}
	if s.devices.inUse() {
		cfg.Authenticator, cfg.Guests = gatekeeper{s.devices.Identity}, true
	}
	var err error
	var desk *command.Desk
	s.broker, err = broker.Open(ctx, broker.Config{
		Store: s.state, Log: s.log, Metrics: s.reg,
		Listening: func(conn uint64, device, filter string) { desk.Listening(conn, device, filter) }, // nobody connects before it is there
	})
	if err != nil {
		return fmt.Errorf("open MQTT: %w", err)
	}
	s.onFailure(s.broker.Close)
	publish := func(topic string, payload []byte) {
		if _, err := s.broker.Publish(&broker.Message{Topic: []byte(topic), Payload: payload, QoS: 1}); err != nil {
			s.log.WarnContext(ctx, "message to devices is not sent", "topic", topic, "error", err)
		}
	}
	if desk, err = command.Open(ctx, command.Config{Store: s.state, Send: s.broker, Serves: s.devices.serves, Log: s.log, Metrics: s.reg}); err != nil {
		return fmt.Errorf("open commands: %w", err)
	}
	s.onFailure(desk.Close)
	shadows, err := shadow.Open(ctx, shadow.Config{Store: s.state, Publish: publish, Log: s.log, Metrics: s.reg})
	if err != nil {
		return fmt.Errorf("open shadows: %w", err)
	}
	s.desk, s.shadows = desk, shadows
	cfg.Broker = s.broker
	cfg.Topics, err = topics(m.Topics, m.Formats, s.formats, s.admit, func(a format.Message) { publish(a.Topic, a.Payload) })
	if err != nil {
		return fmt.Errorf("mqtt.%w", err)
	}
	working := context.WithoutCancel(ctx)
	cfg.Special = func(p mqtt.Principal, topic string, payload []byte) bool {
		if shadows.Handle(working, p.Device(), topic, payload) {
			return true
		}
		handled, err := desk.Handle(working, p.Device(), topic, payload)
		if err != nil {
			s.log.WarnContext(working, "answer to a command cannot be used", "device", p.Device(), "topic", topic, "error", err)
		}
		return handled
	}
	if s.mqtt, err = mqtt.Open(cfg, s.admit); err != nil {
		return fmt.Errorf("open MQTT: %w", err)
	}
	s.onFailure(func() error { return s.mqtt.Close(ctx) })
	s.devices.Devices.OnRevoke(func(match func(*device.Principal) bool) {
		s.mqtt.Kick(func(p mqtt.Principal) bool {
			d, ok := p.(*device.Principal)
			return ok && match(d)
		}, packet.NotAuthorized)
	})
	return nil
}

// mqttTLS gives the door a certificate: the configured one, or the authority's.
func (s *server) mqttTLS(cfg *mqtt.Config) error {
	c := s.cfg.MQTT.TLS
	switch {
	case c.Cert != "":
		cert, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return fmt.Errorf("mqtt.tls: %w", err)
		}
		cfg.TLS = s.devices.TLSConfig()
		cfg.TLS.GetCertificate, cfg.TLS.Certificates = nil, []tls.Certificate{cert}
	case s.devices.CA.Server() != nil:
		cfg.TLS = s.devices.TLSConfig()
	default:
		return nil
	}
	cfg.TLSAddress, cfg.WebSocketTLSAddress = c.Listen, c.WebSocket
	return nil
}

// inUse tells whether devices have an identity here: there is an authority, of ours or trusted, or a device.
func (i *identity) inUse() bool {
	return len(i.CA.Issuer()) > 0 || len(i.CA.Trusted()) > 0 || len(i.Devices.Count()) > 0
}

// serves tells whether a device is a vehicle's or its gateway.
func (i *identity) serves(name, vehicle string) bool {
	if name == vehicle {
		return true
	}
	d, ok := i.Devices.Device(name)
	return !ok || d.Vehicle == vehicle || d.Vehicle == ""
}

// openBridges starts to take readings from brokers elsewhere. They are doors: closeDoors ends them.
func (s *server) openBridges(ctx context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(s.cfg.Bridges)) {
		c := s.cfg.Bridges[name]
		ts, err := topics(c.Topics, c.Formats, s.formats, s.admit, func(format.Message) {})
		if err != nil {
			return fmt.Errorf("bridges.%s.%w", name, err)
		}
		mapping, err := mqtt.NewMapping(ts)
		if err != nil {
			return fmt.Errorf("bridges.%s: %w", name, err)
		}
		secure, err := c.tls()
		if err != nil {
			return fmt.Errorf("bridges.%s: %w", name, err)
		}
		b, err := bridge.New(bridge.Config{
			Name: name, URL: c.URL, TLS: secure, ClientID: c.ClientID, User: c.User, Password: c.Password, Topics: mapping.Filters(),
			Group: c.Group, QoS: byte(c.QoS), InFlight: uint16(c.InFlight), Admit: s.admit, Log: s.log, Metrics: s.reg, //nolint:gosec // checked
			Map: func(topic string, payload []byte) (bridge.Message, bool, error) {
				vehicle, data, unread, ok, err := mapping.Readings(topic, payload)
				return bridge.Message{Vehicle: vehicle, Data: data, Unread: unread}, ok, err
			},
		})
		if err != nil {
			return err
		}
		if s.fetching == nil {
			s.fetched, s.fetching = context.WithCancel(context.WithoutCancel(ctx)) //nolint:fatcontext // once
			s.onFailure(s.closeFeeds)
		}
		s.doors.Go(func() { // closeDoors waits
			if err := b.Run(s.fetched); err != nil {
				s.log.ErrorContext(ctx, "bridge", "bridge", name, "error", err)
			}
		})
	}
	return nil
}

// registerDownlink puts the HTTP API of commands and shadows into mux.
func (s *server) registerDownlink(mux *http.ServeMux) {
	if s.desk == nil {
		return
	}
	// Another site's page could otherwise command vehicles through the browser of somebody who may.
	own := http.NewServeMux()
	command.NewHandler(s.desk, s.cfg.HTTP.Token).Register(own)
	shadow.NewHandler(s.shadows, s.cfg.HTTP.Token).Register(own)
	guarded := http.NewCrossOriginProtection().Handler(own)
	for _, path := range []string{
		"/v1/vehicles/{id}/commands", "/v1/vehicles/{id}/commands/{command}", "/things/{thing}/shadow", "/api/things/shadow/ListNamedShadowsForThing/{thing}",
	} {
		mux.Handle(path, guarded)
	}
}

// closeMQTT lets the door finish first, then what works behind it.
func (s *server) closeMQTT(ctx context.Context) error {
	err := s.mqtt.Close(ctx)
	err = errors.Join(err, s.desk.Close(), s.broker.Close())
	s.shadows.Close()
	return err
}

// tls returns what the bridge connects with.
func (c *BridgeConfig) tls() (*tls.Config, error) {
	if c.CA == "" && c.Cert == "" {
		return nil, nil //nolint:nilnil // the system's authorities
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca: %s holds no certificate in PEM", c.CA)
		}
	}
	if c.Cert != "" {
		cert, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, fmt.Errorf("cert: %w", err)
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return t, nil
}

// checkBridges tells what is wrong with bridges, and with the formats of the door.
func (c *Config) checkBridges() error {
	var errs []error
	formats := c.formats()
	if _, err := topics(c.MQTT.Topics, c.MQTT.Formats, formats, nil, nil); err != nil {
		errs = append(errs, fmt.Errorf("mqtt.%w", err))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Bridges)) {
		b := c.Bridges[name]
		ts, err := topics(b.Topics, b.Formats, formats, nil, nil)
		if err == nil {
			_, err = mqtt.NewMapping(ts)
		}
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("bridges.%s.%w", name, err))
		case b.URL == "":
			errs = append(errs, fmt.Errorf("bridges.%s.url is missing: write mqtt://host:1883 or tls://host:8883", name))
		case b.QoS < 0 || b.QoS > 1:
			errs = append(errs, fmt.Errorf("bridges.%s.qos is %d: write 0 or 1", name, b.QoS))
		case b.InFlight < 1 || b.InFlight > 65_535:
			errs = append(errs, fmt.Errorf("bridges.%s.in_flight is %d: write 1 to 65535", name, b.InFlight))
		case (b.Cert == "") != (b.Key == ""):
			errs = append(errs, fmt.Errorf("bridges.%s needs both cert and key", name))
		}
	}
	return errors.Join(errs...)
}
