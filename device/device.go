// Package device is the identity of devices: who may connect, as what, and for how long.
//
// It promises: a device is let in by a certificate that this server issued or was told of, or that an authority it trusts issued, or
// by a password if those are switched on, and by nothing else. What is decided about a device is on disk when the call returns, and
// holds for connections that are open: revoking cuts them. A private key that a device brings a request for never leaves the device;
// one that is made here is handed out once and not kept. Every refusal has a class and a sentence that says how to mend it, in the
// log, in the metrics and in the journal that Diagnose reads.
//
// An Authority is the certificates, in files. A Registry is the devices, tokens and passwords, in the state store (keys below
// "device/"). A Gate judges credentials and a Journal remembers what the doors saw. An Identity is all four, with the HTTP API.
//
// The package does not know the MQTT door: a Gate, a Principal and a Journal are shaped as that door wants them.
package device

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/internal/bearer"
	"github.com/milepost/milepost/state"
)

// Config says how devices are known. Dir and Store are required.
type Config struct {
	Dir            string        // of the authority's files
	Store          state.Store   // keeps devices, tokens and the journal
	Valid          time.Duration // of certificates. Default 365 days
	Overlap        time.Duration // how long a replaced certificate is let in. Default 7 days
	Warn           time.Duration // before a certificate's end people are told. Default 30 days
	JustInTime     *JustInTime   // nil: off
	Passwords      bool          // take user name and password from devices without a certificate
	PlainPasswords bool          // take them without TLS from other machines too
	Policies       []PolicySpec  // besides own
	Token          string        // bearer token of the API; empty: none needed
	// LastReading returns when the newest reading of a vehicle was measured and when it came. nil: not known.
	LastReading func(vehicle string) (measured, arrived time.Time, ok bool)
	// OnExpiring is told that a certificate will end soon, and that it was replaced or revoked after all. It is told once, and
	// again until it returns nil. nil: only the log and the metrics say so.
	OnExpiring func(ctx context.Context, e Expiring, raised bool) error
	Log        *slog.Logger          // default: discards
	Metrics    prometheus.Registerer // nil: none
}

func (c *Config) defaults() {
	if c.Valid <= 0 {
		c.Valid = 365 * 24 * time.Hour
	}
	if c.Overlap <= 0 {
		c.Overlap = 7 * 24 * time.Hour
	}
	if c.Warn <= 0 {
		c.Warn = 30 * 24 * time.Hour
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// An Identity is everything about who devices are. It is safe for concurrent use.
type Identity struct {
	CA      *Authority
	Devices *Registry
	Gate    *Gate
	Journal *Journal

	cfg     Config
	token   bearer.Token
	metrics *metrics
	staple  stapler                         // of the goroutine that keeps house, or of Open before it
	serving atomic.Pointer[tls.Certificate] // what listeners show
	list    atomic.Pointer[revocationList]
}

// Open reads the authority and all devices. It starts nothing: Run does.
func Open(ctx context.Context, cfg Config) (*Identity, error) {
	cfg.defaults()
	policies, err := NewPolicies(cfg.Policies)
	if err != nil {
		return nil, err
	}
	if cfg.JustInTime != nil {
		if err := cfg.JustInTime.check(); err != nil {
			return nil, err
		}
		for ca, p := range cfg.JustInTime.Policies {
			if !policies.Has(p) {
				return nil, fmt.Errorf("just-in-time registration of authority %s: there is no policy %q", ca, p)
			}
		}
	}
	i := &Identity{cfg: cfg, token: bearer.New(cfg.Token), metrics: newMetrics(cfg.Metrics)}
	if i.CA, err = OpenAuthority(cfg.Dir); err != nil {
		return nil, fmt.Errorf("open the certificate authority: %w", err)
	}
	i.staple.a = i.CA
	if i.Devices, err = openRegistry(ctx, &cfg, i.CA, policies, i.metrics); err != nil {
		return nil, fmt.Errorf("open the device registry: %w", err)
	}
	if i.Journal, err = openJournal(ctx, cfg.Store, cfg.Log, i.metrics); err != nil {
		return nil, fmt.Errorf("open the device journal: %w", err)
	}
	i.Gate = &Gate{devices: i.Devices, ca: i.CA, jit: cfg.JustInTime, journal: i.Journal, metrics: i.metrics}
	if cfg.Passwords {
		if i.Gate.passwords, err = newPasswords(cfg.PlainPasswords, i.metrics); err != nil {
			return nil, err
		}
	}
	i.keepCertificate(ctx, time.Now())
	i.count(time.Now())
	return i, nil
}

// keepCertificate renews our listeners' certificate when it is near its end, and its staple.
func (i *Identity) keepCertificate(ctx context.Context, now time.Time) {
	changed, err := i.CA.Reload()
	if err != nil {
		i.cfg.Log.WarnContext(ctx, "read the certificate authority again", "error", err)
	}
	if changed {
		i.cfg.Log.InfoContext(ctx, "certificate authority changed")
		i.list.Store(nil)
	}
	if err := i.CA.RenewServer(now); err != nil {
		i.cfg.Log.ErrorContext(ctx, "renew the server's certificate", "error", err)
	}
	switch c, err := i.staple.refresh(now); {
	case err == nil:
		i.serving.Store(c)
	case !errors.Is(err, ErrNoAuthority):
		i.cfg.Log.ErrorContext(ctx, "staple the server's certificate", "error", err)
	}
}

// How often Run looks after things.
const (
	reloadEvery  = 15 * time.Second
	journalEvery = time.Minute
	expiryEvery  = time.Hour
)

// Run keeps house until ctx ends: it reads the authority's files again when they changed, renews our certificate, writes the journal,
// tells of certificates that end soon, and forgets what has ended. It returns when the journal is written.
func (i *Identity) Run(ctx context.Context) {
	reload, journal, expiry := time.NewTicker(reloadEvery), time.NewTicker(journalEvery), time.NewTicker(expiryEvery)
	defer reload.Stop()
	defer journal.Stop()
	defer expiry.Stop()
	warn := func(what string, err error) {
		if err != nil && ctx.Err() == nil {
			i.cfg.Log.WarnContext(ctx, "keep devices in order", "task", what, "error", err)
		}
	}
	warn("certificates that end", i.watch(ctx, time.Now()))
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			if err := i.Flush(last); err != nil {
				i.cfg.Log.WarnContext(last, "write the device journal", "error", err)
			}
			return
		case now := <-reload.C:
			i.keepCertificate(ctx, now)
			i.count(now)
		case <-journal.C:
			warn("journal", i.Journal.flush(ctx, journalFlush))
		case now := <-expiry.C:
			warn("certificates that end", i.watch(ctx, now))
			warn("tokens", i.Devices.expireTokens(ctx, now))
			warn("devices that are gone", i.Devices.forgotten(ctx, now))
		}
	}
}

// Flush writes the whole journal.
func (i *Identity) Flush(ctx context.Context) error { return i.Journal.flush(ctx, journalDevices) }

// An Expiring is a device whose newest certificate ends soon.
type Expiring struct {
	ID      string    `json:"id"` // stable: the same certificate always has the same (P4)
	Device  string    `json:"device"`
	Vehicle string    `json:"vehicle"`
	Serial  string    `json:"serial"`
	Ends    time.Time `json:"ends"`
	Days    int       `json:"days"` // left, rounded down; negative: it has ended
}

// Expiring returns the devices whose newest certificate ends within a time, or has ended, soonest first.
func (i *Identity) Expiring(now time.Time, within time.Duration) []Expiring {
	var out []Expiring
	for _, d := range i.Devices.List("", "", Active, 1<<31-1) {
		if c := d.lastCertificate(); c != nil && c.NotAfter.Sub(now) < within {
			out = append(out, expiringOf(d, c, now))
		}
	}
	slices.SortFunc(out, func(a, b Expiring) int { return a.Ends.Compare(b.Ends) })
	return out
}

func expiringOf(d *Device, c *Certificate, now time.Time) Expiring {
	return Expiring{
		ID: expiringID(d.ID, c.Fingerprint), Device: d.ID, Vehicle: d.Vehicle, Serial: c.Serial, Ends: c.NotAfter,
		Days: int(c.NotAfter.Sub(now).Hours() / 24),
	}
}

func expiringID(device string, f Fingerprint) string {
	return "certificate/" + device + "/" + f.String()[:16]
}

// lastCertificate returns the certificate that a device is meant to use, ended or not; nil if all are revoked.
func (d *Device) lastCertificate() *Certificate {
	var last *Certificate
	for i := range d.Certificates {
		c := &d.Certificates[i]
		if c.Revoked.IsZero() && c.Retires.IsZero() && (last == nil || c.NotAfter.After(last.NotAfter)) {
			last = c
		}
	}
	return last
}

// watch tells of certificates that begin to end, and of those that no longer do. That people were told is on disk afterwards: told
// twice, if power fails between, never not at all.
func (i *Identity) watch(ctx context.Context, now time.Time) error {
	if i.cfg.OnExpiring == nil {
		return nil
	}
	var errs []error
	for _, d := range i.Devices.List("", "", "", 1<<31-1) {
		var due Fingerprint
		c := d.lastCertificate()
		if c != nil && d.Status == Active && c.NotAfter.Sub(now) < i.cfg.Warn {
			due = c.Fingerprint
		}
		if due == d.Raised {
			continue
		}
		if err := i.tell(ctx, d, c, due, now); err != nil {
			errs = append(errs, fmt.Errorf("device %s: %w", d.ID, err))
			if ctx.Err() != nil || len(errs) >= 10 {
				break // the next round has the others
			}
		}
	}
	return errors.Join(errs...)
}

func (i *Identity) tell(ctx context.Context, d *Device, c *Certificate, due Fingerprint, now time.Time) error {
	if d.Raised != (Fingerprint{}) {
		k := slices.IndexFunc(d.Certificates, func(c Certificate) bool { return c.Fingerprint == d.Raised })
		e := Expiring{ID: expiringID(d.ID, d.Raised), Device: d.ID, Vehicle: d.Vehicle} // it may be long gone
		if k >= 0 {
			e = expiringOf(d, &d.Certificates[k], now)
		}
		if err := i.cfg.OnExpiring(ctx, e, false); err != nil {
			return err
		}
	}
	if due != (Fingerprint{}) {
		if err := i.cfg.OnExpiring(ctx, expiringOf(d, c, now), true); err != nil {
			return err
		}
	}
	_, err := i.Devices.change(ctx, d.ID, func(_ state.Tx, d *Device, found bool) error {
		if !found {
			return ErrNotFound
		}
		d.Raised = due
		return nil
	})
	return err
}

func (i *Identity) count(now time.Time) {
	if i.metrics == nil {
		return
	}
	n := i.Devices.Count()
	for _, s := range []Status{Active, Disabled, Barred} {
		i.metrics.devices.WithLabelValues(string(s)).Set(float64(n[s]))
	}
	i.metrics.expiring.Set(float64(len(i.Expiring(now, i.cfg.Warn))))
	if s := i.CA.Server(); s != nil {
		i.metrics.serverEnds.Set(float64(s.NotAfter.Unix()))
	}
}

// Doctor says why a device cannot get in, or why nothing is seen of it.
func (i *Identity) Doctor(id string, now time.Time) Diagnosis {
	f := Facts{ID: id, Now: now, Nameless: i.Journal.Nameless(3)}
	f.Seen, f.Refused = i.Journal.Device(id)
	if d, ok := i.Devices.Device(id); ok {
		f.Device = d
		r, who := i.Devices.policies.of(d.Policy), &names{d.ID, d.Vehicle}
		f.Policy, f.MayPublish = r.shown(who), func(topic string) bool { return r.mayPublish([]byte(topic), who) }
		if i.cfg.LastReading != nil && len(r.spec.Vehicles) == 0 {
			if measured, arrived, ok := i.cfg.LastReading(d.Vehicle); ok {
				f.Measured, f.Arrived = measured, arrived
			}
		}
	}
	return Diagnose(f)
}

// A revocationList is the present CRL.
type revocationList struct {
	der     []byte
	changes int64
	till    time.Time
}

// listFresh is how long a list is handed out although nothing was revoked since: certificates also end their overlap.
const listFresh = 10 * time.Minute

// RevocationList returns the CRL in DER. Its number is the time in milliseconds, so that it grows over restarts too.
func (i *Identity) RevocationList(now time.Time) ([]byte, error) {
	i.Devices.mu.RLock()
	changes := i.Devices.changes
	i.Devices.mu.RUnlock()
	if l := i.list.Load(); l != nil && l.changes == changes && now.Before(l.till) {
		return l.der, nil
	}
	der, err := i.CA.List(i.Devices.revoked(now), now.UnixMilli(), now)
	if err != nil {
		return nil, err
	}
	i.list.Store(&revocationList{der, changes, now.Add(listFresh)})
	return der, nil
}
