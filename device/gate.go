package device

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/milepost/milepost/state"
)

// Credentials are what a client brings. Its fields are those of the MQTT door's type of the same name, so that one converts to the
// other. Only TLS.PeerCertificates is looked at: the chain is verified here.
type Credentials struct {
	ClientID string
	User     string
	Password []byte
	TLS      *tls.ConnectionState // nil on plain connections
	Remote   net.Addr
}

// certificate returns what the client showed, or nil. That it has the key, the handshake has proved.
func (c *Credentials) certificate() *x509.Certificate {
	if c.TLS == nil || len(c.TLS.PeerCertificates) == 0 {
		return nil
	}
	return c.TLS.PeerCertificates[0]
}

// A Refusal is why a device may not connect.
type Refusal struct {
	Class string // one of the constants below
	Text  string // what, and how to mend it
}

func (r *Refusal) Error() string { return r.Text }

// Classes of refusals, as metrics and the journal have them.
const (
	NoCertificate = "no_certificate"
	UnknownCA     = "unknown_ca"
	Expired       = "expired"
	NotYetValid   = "not_yet_valid"
	Revoked       = "revoked"
	Suspended     = "disabled"
	NotEnrolled   = "not_enrolled"
	WrongPassword = "password"
	WrongClientID = "client_id"
	Busy          = "busy"
	NoHandshake   = "handshake" // TLS failed before it was known who it is
	NotReady      = "unavailable"
)

func refuse(class, format string, args ...any) error {
	return &Refusal{class, fmt.Sprintf(format, args...)}
}

// JustInTime enrols devices at their first connection by a certificate of an authority that is trusted.
type JustInTime struct {
	// ID says where the certificate has the device's id: "cn", "dns" (first DNS name), "uri" (what follows the last : or / of the
	// first URI) or "serial". Default cn.
	ID string
	// Prefixes that ids must begin with, by authority; "" or none: any.
	Prefixes map[string]string
	// Policies by authority; none: own.
	Policies map[string]string
}

// A Gate tells who connects. It is safe for concurrent use.
type Gate struct {
	devices   *Registry
	ca        *Authority
	jit       *JustInTime // nil: off
	passwords *passwords  // nil: off
	journal   *Journal
	metrics   *metrics
}

// Authenticate judges a client. An error is a *Refusal.
func (g *Gate) Authenticate(ctx context.Context, c *Credentials) (*Principal, error) {
	p, err := g.judge(ctx, c, time.Now())
	if err == nil {
		p.trace = g.journal.traceOf(p.device)
		return p, nil
	}
	refusal, ok := errors.AsType[*Refusal](err)
	if !ok { // the state store's: not the device's fault, it may come again
		refusal = &Refusal{NotReady, "the server cannot look the device up now: " + err.Error()}
	}
	g.metrics.refused(refusal.Class)
	return nil, refusal
}

func (g *Gate) judge(ctx context.Context, c *Credentials, now time.Time) (*Principal, error) {
	var d *Device
	var cert *Certificate
	var err error
	if leaf := c.certificate(); leaf != nil {
		d, cert, err = g.judgeCertificate(ctx, c.TLS.PeerCertificates, now)
	} else {
		d, err = g.judgePassword(ctx, c, now)
	}
	if err != nil {
		return nil, err
	}
	p := &Principal{names: names{d.ID, d.Vehicle}, rights: g.devices.policies.of(d.Policy)}
	if cert != nil {
		p.fingerprint, p.expires = cert.Fingerprint, cert.ends()
	}
	if !p.rights.mayUse(c.ClientID, &p.names) {
		return nil, refuse(WrongClientID, "client id %q is not %s's to use, which is one of: %s", c.ClientID, d.ID, strings.Join(p.rights.shown(&p.names).ClientIDs, ", "))
	}
	return p, nil
}

func (g *Gate) judgeCertificate(ctx context.Context, chain []*x509.Certificate, now time.Time) (*Device, *Certificate, error) {
	leaf := chain[0]
	d, c := g.devices.byFingerprint(FingerprintOf(leaf))
	if d == nil {
		// Not one that we know: it must come from an authority that we know.
		name, err := g.ca.now.Load().verify(chain, now)
		if err != nil {
			return nil, nil, err
		}
		if _, err = g.register(ctx, leaf, name, now); err != nil {
			return nil, nil, err
		}
		if d, c = g.devices.byFingerprint(FingerprintOf(leaf)); d == nil {
			return nil, nil, refuse(NotEnrolled, "the certificate of %s was removed while it connected", leaf.Subject)
		}
	}
	// Where the registry has this very certificate, its signature was looked at when it was registered: what is left to judge are
	// the dates, and what people decided since. That is also what makes a storm of reconnects cheap.
	switch {
	case !c.Revoked.IsZero():
		return nil, nil, refuse(Revoked, "the certificate of %s (serial %s) was revoked on %s: enrol the device anew", d.ID, c.Serial, day(c.Revoked))
	case d.Status == Barred:
		return nil, nil, refuse(Revoked, "device %s is revoked: enrol it anew", d.ID)
	case d.Status == Disabled:
		return nil, nil, refuse(Suspended, "device %s is disabled: 'milepost device enable %s' lets it in", d.ID, d.ID)
	case now.After(c.NotAfter):
		return nil, nil, refuse(Expired, "the certificate of %s (serial %s) ended on %s: rotate it", d.ID, c.Serial, day(c.NotAfter))
	case now.Before(c.NotBefore):
		return nil, nil, refuse(NotYetValid, "the certificate of %s (serial %s) begins at %s and it is %s here: the clock of whoever made it is ahead, or ours is late",
			d.ID, c.Serial, c.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case !c.Retires.IsZero() && !now.Before(c.Retires):
		return nil, nil, refuse(Revoked, "the certificate of %s (serial %s) was replaced and let in until %s: install the newer one on the device", d.ID, c.Serial, day(c.Retires))
	case c.Authority != "" && !g.ca.now.Load().knows(c.Authority):
		return nil, nil, refuse(UnknownCA, "the certificate of %s is from authority %q, which is trusted no more: import it again, or enrol the device anew", d.ID, c.Authority)
	}
	return d, c, nil
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// verify tells which authority a chain comes from. The error is a *Refusal.
func (st *authorityState) verify(chain []*x509.Certificate, now time.Time) (string, error) {
	leaf := chain[0]
	// Whether it is one of ours is asked at a moment when it was valid, so that "expired" is not said of a stranger's.
	at := now
	switch {
	case now.After(leaf.NotAfter):
		at = leaf.NotAfter
	case now.Before(leaf.NotBefore):
		at = leaf.NotBefore
	}
	between := x509.NewCertPool()
	for _, c := range st.between {
		between.AddCert(c)
	}
	for _, c := range chain[1:min(len(chain), 8)] {
		between.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: st.roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
		switch {
		case ok && invalid.Reason == x509.Expired:
			return "", refuse(Expired, "authority %s of the certificate of %s is not valid now (%s to %s): import its present certificate",
				invalid.Cert.Subject, leaf.Subject, day(invalid.Cert.NotBefore), day(invalid.Cert.NotAfter))
		case ok && invalid.Reason == x509.IncompatibleUsage:
			return "", refuse(UnknownCA, "the certificate of %s is not for clients (extended key usage): issue one with clientAuth", leaf.Subject)
		}
		return "", refuse(UnknownCA, "the certificate of %s is from %s, which is not trusted here: enrol the device, or import its authority with 'milepost ca import'", leaf.Subject, leaf.Issuer)
	}
	switch {
	case now.After(leaf.NotAfter):
		return "", refuse(Expired, "the certificate of %s (serial %s) ended on %s: rotate it", leaf.Subject, leaf.SerialNumber.Text(16), day(leaf.NotAfter))
	case now.Before(leaf.NotBefore):
		return "", refuse(NotYetValid, "the certificate of %s begins at %s and it is %s here: the clock of whoever made it is ahead, or ours is late",
			leaf.Subject, leaf.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	// The authority is the nearest one to the leaf that has a name here.
	for _, c := range chains[0][1:] {
		if name, ok := st.anchors[string(c.Raw)]; ok {
			return name, nil
		}
	}
	return "", refuse(UnknownCA, "the certificate of %s stands for itself: enrol the device", leaf.Subject)
}

// register enrols the holder of a certificate that a trusted authority issued.
func (g *Gate) register(ctx context.Context, leaf *x509.Certificate, authority string, now time.Time) (*Device, error) {
	if authority == OwnCA {
		return nil, refuse(NotEnrolled, "the certificate of %s (serial %s) is from this server's authority but not in its registry: enrol the device anew", leaf.Subject, leaf.SerialNumber.Text(16))
	}
	if g.jit == nil {
		return nil, refuse(NotEnrolled, "the certificate of %s is from %s, which is trusted, but the device is not enrolled and just-in-time registration is off: switch it on, or use 'milepost device enroll ID --certificate FILE'", leaf.Subject, authority)
	}
	id := g.jit.id(leaf)
	if err := CheckID(id); err != nil {
		return nil, refuse(NotEnrolled, "the certificate of %s names no device (just-in-time registration takes the id from its %s): %v", leaf.Subject, g.jit.where(), err)
	}
	if p := g.jit.Prefixes[authority]; !strings.HasPrefix(id, p) {
		return nil, refuse(NotEnrolled, "authority %s is trusted for devices whose id begins with %q, and the certificate is for %s", authority, p, id)
	}
	e := Enrolment{ID: id, Policy: g.jit.Policies[authority], Origin: "just in time: " + authority, Certificate: leaf}
	if err := e.check(g.devices.policies); err != nil {
		return nil, refuse(NotEnrolled, "%v", err)
	}
	if err := checkKey(leaf.PublicKey); err != nil {
		return nil, refuse(NotEnrolled, "the certificate of %s: %v", leaf.Subject, err)
	}
	d, err := g.devices.change(ctx, id, func(_ state.Tx, d *Device, found bool) error {
		if found {
			// Its next certificate may only come from where its others came from: an authority must not speak for another's devices.
			known := false
			for i := range d.Certificates {
				known = known || d.Certificates[i].Authority == authority
				if d.Certificates[i].Fingerprint == FingerprintOf(leaf) {
					return nil // two connections at once
				}
			}
			switch {
			case d.Status == Barred:
				return refuse(Revoked, "device %s is revoked: enrol it anew", id)
			case d.Status == Disabled:
				return refuse(Suspended, "device %s is disabled: 'milepost device enable %s' lets it in", id, id)
			case !known:
				return refuse(NotEnrolled, "device %s is enrolled with certificates of others than authority %s: add this one with 'milepost device enroll %s --certificate FILE', or revoke the device first", id, authority, id)
			}
		} else {
			e.fill(d, now)
		}
		if err := g.devices.add(d, leaf, authority, now); err != nil {
			return refuse(NotEnrolled, "%v", err)
		}
		return nil
	})
	if err == nil {
		g.metrics.enrolled("just_in_time")
	}
	return d, err
}

func (j *JustInTime) where() string {
	if j.ID == "" {
		return "cn"
	}
	return j.ID
}

func (j *JustInTime) check() error {
	switch j.where() {
	case "cn", "dns", "uri", "serial":
		return nil
	}
	return fmt.Errorf("just-in-time registration takes the id from %q: write cn, dns, uri or serial", j.ID)
}

func (j *JustInTime) id(c *x509.Certificate) string {
	switch j.where() {
	case "cn":
		return c.Subject.CommonName
	case "dns":
		if len(c.DNSNames) > 0 {
			return c.DNSNames[0]
		}
	case "uri":
		if len(c.URIs) > 0 {
			u := c.URIs[0].String()
			return u[strings.LastIndexAny(u, ":/")+1:]
		}
	case "serial":
		return c.SerialNumber.Text(16)
	}
	return ""
}

// judgePassword is for devices without a certificate.
func (g *Gate) judgePassword(ctx context.Context, c *Credentials, _ time.Time) (*Device, error) {
	switch {
	case c.User == "":
		return nil, refuse(NoCertificate, "no certificate was shown: connect to the TLS port with the device's certificate and key")
	case g.passwords == nil:
		return nil, refuse(NoCertificate, "no certificate was shown, and passwords are switched off (devices.passwords): connect with the device's certificate and key")
	case c.TLS == nil && !g.passwords.plain && !loopback(c.Remote):
		return nil, refuse(WrongPassword, "a password is taken only over TLS: connect to the TLS port")
	}
	d, ok := g.devices.Device(c.User)
	if !ok || d.Password == "" || d.Status == Barred {
		// Quick, and the same words as for a wrong password. That a device id exists is no secret: it is in its topics.
		return nil, refuse(WrongPassword, "user name or password is wrong, or the device has no password: 'milepost device password ID' sets one")
	}
	if err := g.passwords.check(ctx, d.ID, d.Password, c.Password); err != nil {
		return nil, err
	}
	if d.Status == Disabled {
		return nil, refuse(Suspended, "device %s is disabled: 'milepost device enable %s' lets it in", d.ID, d.ID)
	}
	return d, nil
}

func loopback(a net.Addr) bool {
	t, ok := a.(*net.TCPAddr)
	return ok && t.IP.IsLoopback()
}

// TLSConfig returns what our listeners use. A client's certificate is asked for, and its key proved, but not judged in the
// handshake: it is at CONNECT, or at the request, that it is refused, with a reason that both sides can read. In a handshake the
// device would see an alert and the log would not know who it was.
func (i *Identity) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		ClientAuth: tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if c := i.serving.Load(); c != nil {
				return c, nil
			}
			return nil, ErrNoAuthority
		},
	}
}
