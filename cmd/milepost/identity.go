package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/milepost/milepost/alert"
	"github.com/milepost/milepost/device"
	"github.com/milepost/milepost/ingest/httpapi"
	"github.com/milepost/milepost/ingest/mqtt"
	"github.com/milepost/milepost/internal/conf"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process/rule"
	"github.com/milepost/milepost/state"
)

// DevicesConfig is who devices are.
type DevicesConfig struct {
	Valid          conf.Duration       `yaml:"valid" default:"365d" doc:"how long a device's certificate lasts"`
	Overlap        conf.Duration       `yaml:"overlap" default:"7d" doc:"how long a certificate is let in after a newer one replaced it"`
	Warn           conf.Duration       `yaml:"warn" default:"30d" doc:"how long before a certificate's end people are told"`
	JustInTime     JustInTimeConfig    `yaml:"just_in_time" doc:"enrol devices at their first connection by a certificate of an authority that 'milepost ca import' trusts"`
	Passwords      bool                `yaml:"passwords" doc:"take user name and password from devices without a certificate"`
	PlainPasswords bool                `yaml:"plain_passwords" doc:"take passwords without TLS from other machines too, where everybody on the way can read them"`
	Policies       []device.PolicySpec `yaml:"policies" doc:"what devices may publish and subscribe; without one a device reaches its own topics only"`
}

// JustInTimeConfig is just-in-time registration.
type JustInTimeConfig struct {
	Enabled     bool                           `yaml:"enabled" doc:"switch it on"`
	ID          string                         `yaml:"id" default:"cn" doc:"where a certificate has the device's id: cn, dns, uri or serial"`
	Authorities map[string]JustInTimeAuthority `yaml:"authorities" doc:"what the devices of an authority are, by the name under which it was imported"`
}

// JustInTimeAuthority is what the devices of one authority are.
type JustInTimeAuthority struct {
	Prefix string `yaml:"prefix" doc:"ids must begin with it"`
	Policy string `yaml:"policy" doc:"their policy; empty: own"`
}

// check tells what is wrong with what devices are.
func (c *DevicesConfig) check() error {
	var errs []error
	if _, err := device.NewPolicies(c.Policies); err != nil {
		errs = append(errs, fmt.Errorf("devices.policies: %w", err))
	}
	if id := c.JustInTime.ID; !slices.Contains([]string{"cn", "dns", "uri", "serial"}, id) {
		errs = append(errs, fmt.Errorf("devices.just_in_time.id is %q: write cn, dns, uri or serial", id))
	}
	if c.Valid < conf.Duration(time.Hour) {
		errs = append(errs, fmt.Errorf("devices.valid is %s: write at least 1h", c.Valid))
	}
	return errors.Join(errs...)
}

// room returns the room's configuration, without what a running server adds.
func (c *DevicesConfig) room(data string, store state.Store, log *slog.Logger) device.Config {
	cfg := device.Config{
		Dir: filepath.Join(data, "ca"), Store: store, Log: log, Valid: time.Duration(c.Valid), Overlap: time.Duration(c.Overlap), Warn: time.Duration(c.Warn),
		Passwords: c.Passwords, PlainPasswords: c.PlainPasswords, Policies: c.Policies,
	}
	if c.JustInTime.Enabled {
		cfg.JustInTime = &device.JustInTime{ID: c.JustInTime.ID, Prefixes: map[string]string{}, Policies: map[string]string{}}
		for name, a := range c.JustInTime.Authorities {
			cfg.JustInTime.Prefixes[name] = a.Prefix
			if a.Policy != "" {
				cfg.JustInTime.Policies[name] = a.Policy
			}
		}
	}
	return cfg
}

// identity is the room of devices in a running server.
type identity struct {
	*device.Identity
	log  *slog.Logger
	stop context.CancelFunc
	run  sync.WaitGroup // Run; and the HTTPS server
	web  *http.Server   // over TLS; nil: none
	addr net.Addr
}

func (s *server) openDevices(ctx context.Context, _ vfs.FS) error {
	cfg := s.cfg.Devices.room(s.cfg.Data, s.state, s.log)
	cfg.Token, cfg.Metrics = s.cfg.HTTP.Token, s.reg
	cfg.LastReading = func(vehicle string) (measured, arrived time.Time, ok bool) {
		v, ok := s.fleet.Vehicle(vehicle)
		return time.UnixMilli(v.EventTime), time.UnixMilli(v.ArrivalTime), ok && v.ArrivalTime > 0
	}
	cfg.OnExpiring = s.tellExpiring
	i, err := device.Open(ctx, cfg)
	if err != nil {
		return fmt.Errorf("devices: %w", err)
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx)) // it ends in drain, in its turn
	s.devices = &identity{Identity: i, log: s.log, stop: stop}
	s.devices.run.Go(func() { i.Run(running) })
	s.onFailure(func() error { return s.devices.close(ctx) })
	return nil
}

// tellExpiring raises an alert for a certificate that ends soon, and settles it.
func (s *server) tellExpiring(ctx context.Context, e device.Expiring, raised bool) error {
	sinks := s.cfg.Alerts.Route(rule.Warning)
	now := time.Now().UnixMilli()
	err := s.state.Update(ctx, func(tx state.Tx) error {
		if !raised {
			return alert.Settle(tx, e.ID, now, sinks)
		}
		return alert.Raise(tx, alert.Alert{
			ID: e.ID, Rule: "device/certificate", Vehicle: e.Vehicle, Severity: rule.Warning, Since: now,
			Summary:   fmt.Sprintf("The certificate of device %s ends on %s: rotate it.", e.Device, e.Ends.UTC().Format(time.DateOnly)),
			Condition: "certificate ends within " + s.cfg.Devices.Warn.String(),
		}, now, sinks)
	})
	if err == nil {
		s.book.Touch()
	}
	return err
}

// serve opens the HTTPS door.
func (i *identity) serve(ctx context.Context, addr string, handler http.Handler) error {
	if addr == "" {
		return nil
	}
	if i.CA.Server() == nil {
		return errors.New("http.tls.listen needs a certificate authority: make one with 'milepost ca init'")
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("http.tls.listen: %w", err)
	}
	i.addr = l.Addr()
	i.web = httpapi.Server(handler, httpapi.ServerConfig{Logger: i.log})
	i.web.TLSConfig = i.TLSConfig()
	i.run.Go(func() {
		if err := i.web.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			i.log.ErrorContext(ctx, "serve HTTPS", "error", err)
		}
	})
	return nil
}

// close ends the HTTPS door and writes the journal.
func (i *identity) close(ctx context.Context) error {
	var err error
	if i.web != nil {
		err = i.web.Shutdown(ctx)
	}
	i.stop()
	i.run.Wait()
	return err
}

// A gatekeeper makes the identity of devices what the MQTT door asks: the same, with that package's types.
type gatekeeper struct{ *device.Identity }

var (
	_ mqtt.Authenticator = gatekeeper{}
	_ mqtt.Journal       = gatekeeper{}
)

// Authenticate implements mqtt.Authenticator.
func (g gatekeeper) Authenticate(ctx context.Context, c *mqtt.Credentials) (mqtt.Principal, error) {
	p, err := g.Gate.Authenticate(ctx, (*device.Credentials)(c))
	if refusal, ok := errors.AsType[*device.Refusal](err); ok {
		return nil, (*mqtt.Refusal)(refusal)
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Connected implements mqtt.Journal.
func (g gatekeeper) Connected(c *mqtt.Credentials, p mqtt.Principal) {
	if p, ok := p.(*device.Principal); ok {
		g.Journal.Connected((*device.Credentials)(c), p)
	}
}

// Disconnected implements mqtt.Journal.
func (g gatekeeper) Disconnected(p mqtt.Principal, clientID, why string) {
	if p, ok := p.(*device.Principal); ok {
		g.Journal.Disconnected(p, clientID, why)
	}
}

// Refused implements mqtt.Journal.
func (g gatekeeper) Refused(c *mqtt.Credentials, r *mqtt.Refusal) {
	g.Journal.Refused((*device.Credentials)(c), (*device.Refusal)(r))
}

// Rejected implements mqtt.Journal.
func (g gatekeeper) Rejected(p mqtt.Principal, topic, why, text string) {
	if p, ok := p.(*device.Principal); ok {
		g.Journal.Rejected(p, topic, why, text)
	}
}

// HandshakeFailed tells of a client that TLS turned away.
func (g gatekeeper) HandshakeFailed(remote net.Addr, err error) {
	g.Journal.HandshakeFailed(remote, err)
}
