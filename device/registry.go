package device

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/milepost/milepost/state"
)

// Keys in the state store.
//
//	device/d/ id                  the device, JSON
//	device/t/ token               an enrolment token, JSON; token is the hex SHA-256 of the secret
//	device/i/ token key           what was issued to a key (hex SHA-256 of its public part) for a token, DER: repeated to who asks again
//	device/j/ id                  what the doors saw of it, JSON
const (
	devicePrefix  = "device/d/"
	tokenPrefix   = "device/t/"
	issuedPrefix  = "device/i/"
	journalPrefix = "device/j/"
)

// Errors that callers branch on.
var (
	// ErrNotFound: there is no such device.
	ErrNotFound = errors.New("no such device")
	// ErrExists: the device is enrolled already.
	ErrExists = errors.New("the device is enrolled already: rotate its certificate, or give it a one-time token")
	// ErrInvalid: what was asked for cannot be.
	ErrInvalid = errors.New("not possible")
)

// A Status is what the operator decided about a device.
type Status string

// The statuses.
const (
	Active   Status = "active"
	Disabled Status = "disabled" // not let in for now; its certificates are not revoked
	Barred   Status = "revoked"
)

// A Fingerprint is the SHA-256 of a certificate.
type Fingerprint [sha256.Size]byte

// FingerprintOf returns the fingerprint of a certificate.
func FingerprintOf(c *x509.Certificate) Fingerprint { return sha256.Sum256(c.Raw) }

func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// MarshalText writes it in hex.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads hex.
func (f *Fingerprint) UnmarshalText(b []byte) error {
	if n, err := hex.Decode(f[:], b); err != nil || n != len(f) || len(b) != 2*len(f) {
		return fmt.Errorf("fingerprint %q: write 64 hex digits", b)
	}
	return nil
}

// A Certificate is what is known of one of a device's certificates.
type Certificate struct {
	Fingerprint Fingerprint `json:"fingerprint"`
	Serial      string      `json:"serial"` // hex
	Subject     string      `json:"subject"`
	Issuer      string      `json:"issuer"`
	Authority   string      `json:"authority,omitempty"` // own, or the trusted one's name; empty: registered by itself
	NotBefore   time.Time   `json:"not_before"`
	NotAfter    time.Time   `json:"not_after"`
	Added       time.Time   `json:"added"`
	Retires     time.Time   `json:"retires,omitzero"` // replaced by a newer one, it is let in until then
	Revoked     time.Time   `json:"revoked,omitzero"`
	Reason      int         `json:"reason,omitempty"` // of the revocation, as RFC 5280 numbers them
}

// ends returns when the certificate is let in no more.
func (c *Certificate) ends() time.Time {
	if !c.Retires.IsZero() && c.Retires.Before(c.NotAfter) {
		return c.Retires
	}
	return c.NotAfter
}

// A Device is one that may connect.
type Device struct {
	ID           string        `json:"id"`
	Vehicle      string        `json:"vehicle"` // the vehicle it reports for
	Policy       string        `json:"policy"`
	Status       Status        `json:"status"`
	Created      time.Time     `json:"created"`
	Origin       string        `json:"origin"` // how it came to be here: "api", "token …", "just in time: NAME"
	Certificates []Certificate `json:"certificates"`
	Password     string        `json:"password,omitempty"` // argon2id, PHC string; never leaves the package
	Raised       Fingerprint   `json:"raised,omitzero"`    // the certificate about whose end people were told
}

// Newest returns the device's certificate that lasts longest of those let in, or nil.
func (d *Device) Newest(now time.Time) *Certificate {
	var best *Certificate
	for i := range d.Certificates {
		c := &d.Certificates[i]
		if c.Revoked.IsZero() && c.ends().After(now) && (best == nil || c.ends().After(best.ends())) {
			best = c
		}
	}
	return best
}

// CheckID tells whether id can name a device: 1 to 128 letters, digits and . _ : @ -, as AWS IoT things are named and a bit more.
func CheckID(id string) error {
	ok := len(id) >= 1 && len(id) <= 128
	for i := 0; ok && i < len(id); i++ {
		c := id[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("._:@-", c) >= 0
	}
	if !ok {
		return fmt.Errorf("%w: device id %q: write 1 to 128 letters, digits and . _ : @ -", ErrInvalid, id)
	}
	if id == "enroll" || id == "expiring" || id == "." || id == ".." {
		return fmt.Errorf("%w: device id %q is a path of the API", ErrInvalid, id)
	}
	return nil
}

func checkVehicle(v string) error {
	if len(v) == 0 || len(v) > 128 || !utf8.ValidString(v) || strings.ContainsAny(v, "/+#*?{}$\x00") {
		return fmt.Errorf("%w: vehicle id %q: write 1 to 128 bytes of text without / + # * ? { } $", ErrInvalid, v)
	}
	return nil
}

// maxCertificates is how many of one device are kept: the present one, those in overlap, and what the list of revoked needs.
const maxCertificates = 16

// A Registry is the devices and their certificates, durable in the state store and complete in memory: a connect looks nothing up
// on disk. One Registry owns the keys that begin with "device/". It is safe for concurrent use.
type Registry struct {
	store    state.Store
	ca       *Authority
	policies *Policies
	valid    time.Duration // of certificates
	overlap  time.Duration // how long a replaced one is let in
	metrics  *metrics

	writing sync.Mutex // held by who changes the store: transactions do not see each other's writes

	mu       sync.RWMutex // guards the rest; never held across the store
	devices  map[string]*Device
	certs    map[Fingerprint]string // → device
	serials  map[string]Fingerprint // of certificates that we issued, hex
	onRevoke []func(match func(*Principal) bool)
	changes  int64 // of what the revocation list says
}

// openRegistry reads all devices.
func openRegistry(ctx context.Context, cfg *Config, ca *Authority, policies *Policies, m *metrics) (*Registry, error) {
	r := &Registry{
		store: cfg.Store, ca: ca, policies: policies, valid: cfg.Valid, overlap: cfg.Overlap, metrics: m,
		devices: map[string]*Device{}, certs: map[Fingerprint]string{}, serials: map[string]Fingerprint{},
	}
	err := cfg.Store.View(ctx, func(v state.Reader) error {
		return v.Scan([]byte(devicePrefix), state.PrefixEnd([]byte(devicePrefix)), func(k, b []byte) error {
			d := new(Device)
			if err := json.Unmarshal(b, d); err != nil {
				return fmt.Errorf("stored device %s: %w", k[len(devicePrefix):], err)
			}
			r.install(d)
			return nil
		})
	})
	return r, err
}

// install makes a device the one that memory knows. The caller holds mu, or is alone.
func (r *Registry) install(d *Device) {
	if old := r.devices[d.ID]; old != nil {
		for i := range old.Certificates {
			delete(r.certs, old.Certificates[i].Fingerprint)
			delete(r.serials, old.Certificates[i].Serial)
		}
	}
	r.devices[d.ID] = d
	for i := range d.Certificates {
		c := &d.Certificates[i]
		r.certs[c.Fingerprint] = d.ID
		if c.Authority == OwnCA {
			r.serials[c.Serial] = c.Fingerprint
		}
	}
}

// Device returns a device. It must not be changed.
func (r *Registry) Device(id string) (*Device, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	d, ok := r.devices[id]
	return d, ok
}

// byFingerprint returns the device of a certificate, and the certificate.
func (r *Registry) byFingerprint(f Fingerprint) (*Device, *Certificate) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	d := r.devices[r.certs[f]]
	if d == nil {
		return nil, nil
	}
	for i := range d.Certificates {
		if d.Certificates[i].Fingerprint == f {
			return d, &d.Certificates[i]
		}
	}
	return nil, nil
}

// List returns up to limit devices whose id comes after a given one and begins with prefix, by id; status "" is any.
func (r *Registry) List(prefix, after string, status Status, limit int) []*Device {
	r.mu.RLock()
	out := make([]*Device, 0, 64)
	for id, d := range r.devices {
		if strings.HasPrefix(id, prefix) && id > after && (status == "" || d.Status == status) {
			out = append(out, d)
		}
	}
	r.mu.RUnlock()
	slices.SortFunc(out, func(a, b *Device) int { return strings.Compare(a.ID, b.ID) })
	return out[:min(limit, len(out))]
}

// Count returns how many devices there are by status.
func (r *Registry) Count() map[Status]int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	n := map[Status]int{}
	for _, d := range r.devices {
		n[d.Status]++
	}
	return n
}

// OnRevoke has f called at each revocation with what tells whether a connection's principal is meant, before Revoke returns. It is
// for whoever holds connections; f must not block for long.
func (r *Registry) OnRevoke(f func(match func(*Principal) bool)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.onRevoke = append(r.onRevoke, f)
}

func (r *Registry) kick(match func(*Principal) bool) {
	r.mu.RLock()
	hooks := slices.Clone(r.onRevoke)
	r.mu.RUnlock()
	for _, f := range hooks {
		f(match)
	}
}

// change is the only way to write devices: f gets a copy of the device, or a new one if there is none, and the transaction. What
// f leaves is durable when change returns.
func (r *Registry) change(ctx context.Context, id string, f func(tx state.Tx, d *Device, found bool) error) (*Device, error) {
	r.writing.Lock()
	defer r.writing.Unlock()
	return r.changeLocked(ctx, id, f)
}

func (r *Registry) changeLocked(ctx context.Context, id string, f func(tx state.Tx, d *Device, found bool) error) (*Device, error) {
	d := &Device{ID: id, Status: Active}
	old, found := r.Device(id)
	if found {
		*d = *old
		d.Certificates = slices.Clone(old.Certificates)
	}
	err := r.store.Update(ctx, func(tx state.Tx) error {
		if err := f(tx, d, found); err != nil {
			return err
		}
		b, err := json.Marshal(d)
		if err != nil {
			return err
		}
		return tx.Set([]byte(devicePrefix+id), b)
	})
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.install(d)
	return d, nil
}

// Enrolment is what a new device is.
type Enrolment struct {
	ID      string
	Vehicle string // default: the id
	Policy  string // default: own
	Origin  string
	// Key is the public key to certify; or Certificate is one that the device has already, from whomever. Neither: it gets a
	// password later.
	Key         crypto.PublicKey
	Certificate *x509.Certificate
}

func (e *Enrolment) check(p *Policies) error {
	if e.Vehicle == "" {
		e.Vehicle = e.ID
	}
	if err := errors.Join(CheckID(e.ID), checkVehicle(e.Vehicle)); err != nil {
		return err
	}
	if e.Policy = orOwn(e.Policy); !p.Has(e.Policy) {
		return fmt.Errorf("%w: there is no policy %q; there are %s", ErrInvalid, e.Policy, strings.Join(p.Names(), ", "))
	}
	return nil
}

// Enroll adds a device and returns its certificate with those above it, root excluded. ErrExists if it is there already.
func (r *Registry) Enroll(ctx context.Context, e Enrolment, now time.Time) (*Device, []*x509.Certificate, error) {
	if err := e.check(r.policies); err != nil {
		return nil, nil, err
	}
	leaf, authority, err := r.certify(&e, now)
	if err != nil {
		return nil, nil, err
	}
	d, err := r.change(ctx, e.ID, func(_ state.Tx, d *Device, found bool) error {
		if found && d.Status != Barred {
			return fmt.Errorf("%w: %s", ErrExists, e.ID)
		}
		e.fill(d, now)
		return r.add(d, leaf, authority, now)
	})
	if err != nil {
		return nil, nil, err
	}
	r.metrics.enrolled("api")
	return d, r.chainOf(leaf, authority), nil
}

func (e *Enrolment) fill(d *Device, now time.Time) {
	if d.Created.IsZero() {
		d.Created = now.UTC()
	}
	d.Vehicle, d.Policy, d.Origin, d.Status = e.Vehicle, e.Policy, e.Origin, Active
}

// certify makes or takes the certificate of an enrolment.
func (r *Registry) certify(e *Enrolment, now time.Time) (leaf *x509.Certificate, authority string, err error) {
	switch {
	case e.Key != nil:
		leaf, err = r.ca.issue(e.ID, e.Key, r.valid, now)
		return leaf, OwnCA, err
	case e.Certificate != nil:
		c := e.Certificate
		if c.IsCA {
			return nil, "", fmt.Errorf("%w: the certificate of %s is an authority's: trust it with 'milepost ca import', or give the device's own", ErrInvalid, c.Subject)
		}
		if now.After(c.NotAfter) {
			return nil, "", fmt.Errorf("%w: the certificate of %s ended on %s", ErrInvalid, c.Subject, c.NotAfter.Format(time.DateOnly))
		}
		if err := checkKey(c.PublicKey); err != nil {
			return nil, "", fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return c, "", nil
	}
	return nil, "", nil
}

func (r *Registry) chainOf(leaf *x509.Certificate, authority string) []*x509.Certificate {
	switch {
	case leaf == nil:
		return nil
	case authority == OwnCA:
		return r.ca.now.Load().chain(leaf)
	}
	return []*x509.Certificate{leaf}
}

// add gives a device a certificate. Those before it are let in for the overlap.
func (r *Registry) add(d *Device, leaf *x509.Certificate, authority string, now time.Time) error {
	if leaf == nil {
		return nil
	}
	f := FingerprintOf(leaf)
	r.mu.RLock()
	owner, taken := r.certs[f]
	r.mu.RUnlock()
	if taken {
		return fmt.Errorf("%w: the certificate is registered for %s", ErrInvalid, owner)
	}
	for i := range d.Certificates {
		if c := &d.Certificates[i]; c.Revoked.IsZero() && c.Retires.IsZero() {
			c.Retires = now.Add(r.overlap).UTC()
		}
	}
	// What has ended is not needed: neither lists nor refusals name it except as expired.
	d.Certificates = slices.DeleteFunc(d.Certificates, func(c Certificate) bool { return c.NotAfter.Before(now.AddDate(0, 0, -30)) })
	if len(d.Certificates) >= maxCertificates {
		return fmt.Errorf("%w: device %s has %d certificates that have not ended: revoke it and enrol it anew when they have", ErrInvalid, d.ID, len(d.Certificates))
	}
	d.Certificates = append(d.Certificates, Certificate{
		Fingerprint: f, Serial: leaf.SerialNumber.Text(16), Subject: leaf.Subject.String(), Issuer: leaf.Issuer.String(),
		Authority: authority, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, Added: now.UTC(),
	})
	return nil
}

// Rotate gives a device another certificate, for a key that it brings. Those it has are let in for the overlap, so that a device
// that loses the answer can ask again.
func (r *Registry) Rotate(ctx context.Context, id string, key crypto.PublicKey, now time.Time) (*Device, []*x509.Certificate, error) {
	if _, ok := r.Device(id); !ok {
		return nil, nil, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	leaf, err := r.ca.issue(id, key, r.valid, now)
	if err != nil {
		return nil, nil, err
	}
	d, err := r.change(ctx, id, func(_ state.Tx, d *Device, _ bool) error {
		if d.Status != Active {
			return fmt.Errorf("%w: device %s is %s", ErrInvalid, id, d.Status)
		}
		if len(d.Certificates) >= maxCertificates { // one that rotates all the time: its older ones have long been replaced
			i := slices.IndexFunc(d.Certificates, func(c Certificate) bool { return c.Authority != OwnCA || !c.ends().After(now) })
			if i < 0 {
				return fmt.Errorf("%w: device %s rotates too often: %d certificates are in overlap", ErrInvalid, id, len(d.Certificates))
			}
			d.Certificates = slices.Delete(d.Certificates, i, i+1)
		}
		return r.add(d, leaf, OwnCA, now)
	})
	if err != nil {
		return nil, nil, err
	}
	r.metrics.enrolled("rotation")
	return d, r.chainOf(leaf, OwnCA), nil
}

// Revoke ends a device, or with serial (hex) one of its certificates, at once and for good: its connections are cut before Revoke
// returns, and tokens for it are void.
func (r *Registry) Revoke(ctx context.Context, id, serial string, reason int, now time.Time) (*Device, error) {
	serial = strings.TrimLeft(strings.ToLower(strings.ReplaceAll(serial, ":", "")), "0")
	r.writing.Lock()
	if _, ok := r.Device(id); !ok {
		r.writing.Unlock()
		return nil, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	ended := map[Fingerprint]bool{}
	d, err := r.changeLocked(ctx, id, func(tx state.Tx, d *Device, _ bool) error {
		for i := range d.Certificates {
			c := &d.Certificates[i]
			if serial != "" && c.Serial != serial {
				continue
			}
			if ended[c.Fingerprint] = true; c.Revoked.IsZero() {
				c.Revoked, c.Reason = now.UTC().Truncate(time.Second), reason
			}
		}
		if serial != "" {
			if len(ended) == 0 {
				return fmt.Errorf("%w: device %s has no certificate with serial %s", ErrInvalid, id, serial)
			}
			return nil
		}
		d.Status, d.Password = Barred, ""
		return voidTokens(tx, id)
	})
	r.writing.Unlock()
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.changes++
	r.mu.Unlock()
	r.kick(func(p *Principal) bool { return p.device == id && (serial == "" || ended[p.fingerprint]) })
	return d, nil
}

// Change is what Amend changes; nil stays as it is.
type Change struct {
	Vehicle *string `json:"vehicle"`
	Policy  *string `json:"policy"`
	Status  *Status `json:"status"` // active or disabled
}

// Amend changes a device. Its connections are cut, so that they come back as what it is now.
func (r *Registry) Amend(ctx context.Context, id string, ch Change) (*Device, error) {
	if _, ok := r.Device(id); !ok {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	d, err := r.change(ctx, id, func(_ state.Tx, d *Device, _ bool) error {
		if d.Status == Barred {
			return fmt.Errorf("%w: device %s is revoked, which is for good: enrol it anew", ErrInvalid, id)
		}
		e := Enrolment{ID: id, Vehicle: d.Vehicle, Policy: d.Policy}
		if ch.Vehicle != nil {
			e.Vehicle = *ch.Vehicle
		}
		if ch.Policy != nil {
			e.Policy = *ch.Policy
		}
		if ch.Status != nil {
			if *ch.Status != Active && *ch.Status != Disabled {
				return fmt.Errorf("%w: status %q: write active or disabled", ErrInvalid, *ch.Status)
			}
			d.Status = *ch.Status
		}
		if err := e.check(r.policies); err != nil {
			return err
		}
		d.Vehicle, d.Policy = e.Vehicle, e.Policy
		return nil
	})
	if err != nil {
		return nil, err
	}
	r.kick(func(p *Principal) bool { return p.device == id })
	return d, nil
}

// forgotten removes devices that are revoked and whose certificates have all ended: nobody needs to be told of them any more.
func (r *Registry) forgotten(ctx context.Context, now time.Time) error {
	var gone []string
	r.mu.RLock()
	for id, d := range r.devices {
		if d.Status == Barred && len(d.Certificates) > 0 && !slices.ContainsFunc(d.Certificates, func(c Certificate) bool { return c.NotAfter.After(now.AddDate(0, 0, -30)) }) {
			gone = append(gone, id)
		}
	}
	r.mu.RUnlock()
	if len(gone) == 0 {
		return nil
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	err := r.store.Update(ctx, func(tx state.Tx) error {
		for _, id := range gone {
			if err := errors.Join(tx.Delete([]byte(devicePrefix+id)), tx.Delete([]byte(journalPrefix+id))); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range gone {
		for _, c := range r.devices[id].Certificates {
			delete(r.certs, c.Fingerprint)
			delete(r.serials, c.Serial)
		}
		delete(r.devices, id)
	}
	return nil
}

// revoked returns what the list must say: our own certificates that were revoked, or replaced and past their overlap, and have
// not ended by themselves.
func (r *Registry) revoked(now time.Time) []RevokedCertificate {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []RevokedCertificate
	for _, f := range r.serials {
		for i := range r.devices[r.certs[f]].Certificates {
			c := &r.devices[r.certs[f]].Certificates[i]
			if c.Fingerprint != f || c.NotAfter.Before(now) {
				continue
			}
			if v, ok := c.revocation(now); ok {
				out = append(out, v)
			}
		}
	}
	slices.SortFunc(out, func(a, b RevokedCertificate) int { return bytes.Compare(a.Serial.Bytes(), b.Serial.Bytes()) })
	return out
}

func (c *Certificate) revocation(now time.Time) (RevokedCertificate, bool) {
	serial, ok := new(big.Int).SetString(c.Serial, 16)
	switch {
	case !ok:
		return RevokedCertificate{}, false
	case !c.Revoked.IsZero():
		return RevokedCertificate{serial, c.Revoked, c.Reason}, true
	case !c.Retires.IsZero() && !c.Retires.After(now):
		return RevokedCertificate{serial, c.Retires.Truncate(time.Second), ReasonSuperseded}, true
	}
	return RevokedCertificate{}, false
}
