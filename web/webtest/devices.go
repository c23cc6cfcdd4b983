package webtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/milepost/milepost/device"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state/local"
)

// Devices is a real identity with devices of every kind: connected, refused, with a certificate that ends soon or has ended.
type Devices struct {
	Identity *device.Identity
	store    *local.Store
	chains   map[string][]*x509.Certificate
}

func newDevices(dir, token string, now time.Time) (*Devices, error) {
	store, err := local.Open(local.Config{Dir: "state", FS: vfs.NewCrashable()})
	if err != nil {
		return nil, err
	}
	d := &Devices{store: store, chains: map[string][]*x509.Certificate{}}
	if _, err = device.InitAuthority(dir, device.Info{Hosts: []string{"localhost"}, URL: "https://milepost.test:8443"}, now.AddDate(-2, 0, 0)); err == nil {
		d.Identity, err = device.Open(context.Background(), device.Config{
			Dir: dir, Store: store, Token: token,
			Policies: []device.PolicySpec{{Name: "gateway", Publish: []string{"fleet/{vehicle}/#"}, Vehicles: []string{"T*"}}},
		})
	}
	if err == nil {
		err = d.seed(now)
	}
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return d, nil
}

// Close ends the store.
func (d *Devices) Close() error { return d.store.Close() }

// Enroll adds a device that got its certificate at a moment.
func (d *Devices) Enroll(id, vehicle, policy string, at time.Time) error {
	key, err := device.NewKey()
	if err != nil {
		return err
	}
	_, chain, err := d.Identity.Devices.Enroll(context.Background(), device.Enrolment{ID: id, Vehicle: vehicle, Policy: policy, Key: key.Public(), Origin: "api"}, at)
	d.chains[id] = chain
	return err
}

// Connect lets a device in, as the MQTT door does.
func (d *Devices) Connect(id string) (*device.Principal, error) {
	c := &device.Credentials{
		ClientID: id, TLS: &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: d.chains[id]},
		Remote: &net.TCPAddr{IP: net.IPv4(10, 0, 4, 7), Port: 51230},
	}
	p, err := d.Identity.Gate.Authenticate(context.Background(), c)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", id, err)
	}
	d.Identity.Journal.Connected(c, p)
	return p, nil
}

// Refuse has the door turn somebody away.
func (d *Devices) Refuse(id, class, text string) {
	d.Identity.Journal.Refused(&device.Credentials{ClientID: id, User: Hostile, Remote: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 99), Port: 4711}},
		&device.Refusal{Class: class, Text: text})
}

func (d *Devices) seed(now time.Time) error {
	days := func(left int) time.Time { return now.AddDate(0, 0, left-365) }
	for _, e := range []struct {
		id, vehicle, policy string
		at                  time.Time
	}{
		{"truck-17", "T0137", "", days(200)},
		{"truck-18", "", "", days(12)},
		{"truck-19", "", "", days(-3)},
		{"truck-20", "", "", days(90)},
		{"gateway-1", "T0100", "gateway", days(3)},
		{"van-4", "", "", days(300)},
		{"van-5", "", "", days(300)},
	} {
		if err := d.Enroll(e.id, e.vehicle, e.policy, e.at); err != nil {
			return err
		}
	}
	for i := range 40 {
		if err := d.Enroll(fmt.Sprintf("unit-%03d", i), "", "", days(100+i)); err != nil {
			return err
		}
	}
	var p *device.Principal
	for _, id := range []string{"truck-17", "gateway-1", "truck-18", "unit-001", "unit-002"} {
		var err error
		if p, err = d.Connect(id); err != nil {
			return err
		}
		switch id {
		case "truck-18":
			d.Identity.Journal.Disconnected(p, id, "keep-alive timeout: nothing heard for 90 s")
		case "truck-17":
			d.Identity.Journal.Rejected(p, "fleet/T9999/telemetry", "topic", Hostile+": the topic is not among those its policy allows")
		}
	}
	d.Refuse("truck-19", device.Expired, "the certificate ended 3 days ago: rotate it")
	d.Refuse("truck-20", device.UnknownCA, "the certificate is of an authority that is not trusted: "+Hostile)
	d.Refuse("stranger", device.NotEnrolled, "not enrolled")
	ctx := context.Background()
	off := device.Disabled
	if _, err := d.Identity.Devices.Amend(ctx, "van-4", device.Change{Status: &off}); err != nil {
		return err
	}
	_, err := d.Identity.Devices.Revoke(ctx, "van-5", "", device.ReasonKeyCompromise, now)
	return err
}
