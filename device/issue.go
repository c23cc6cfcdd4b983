package device

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"
)

// Reasons of a revocation that are used here, as RFC 5280 numbers them.
const (
	ReasonUnspecified   = 0
	ReasonKeyCompromise = 1
	ReasonSuperseded    = 4
	ReasonCessation     = 5
)

// NewKey makes a device's private key.
func NewKey() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

var errNotCSR = errors.New("no certificate signing request: send PKCS#10, as PEM or DER, such as 'openssl req -new' makes")

// ParseRequest reads a certificate signing request in PEM or DER and checks its signature and its key.
func ParseRequest(b []byte) (*x509.CertificateRequest, error) {
	if block, _ := pem.Decode(b); block != nil {
		if block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
			return nil, fmt.Errorf("the PEM holds a %s: send a CERTIFICATE REQUEST", block.Type)
		}
		b = block.Bytes
	}
	csr, err := x509.ParseCertificateRequest(b)
	if err != nil {
		return nil, errNotCSR // what ASN.1 says of it helps nobody
	}
	if err := checkKey(csr.PublicKey); err != nil { // first: checking a signature of an enormous key is dear
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the request is not signed by its own key: %w", err)
	}
	return csr, nil
}

func checkKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize < 256 {
			return fmt.Errorf("the key is on %s: use P-256, P-384 or P-521", k.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 4096 {
			return fmt.Errorf("the RSA key has %d bits: use 2048 to 4096, or an elliptic curve", n)
		}
	default:
		return fmt.Errorf("keys of type %T are not taken: use ECDSA, Ed25519 or RSA", pub)
	}
	return nil
}

// issue signs a device's certificate.
func (a *Authority) issue(id string, pub crypto.PublicKey, valid time.Duration, now time.Time) (*x509.Certificate, error) {
	st := a.now.Load()
	t := &x509.Certificate{
		Subject: pkix.Name{CommonName: id}, NotBefore: now.Add(-backdate), NotAfter: now.Add(valid),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if u := st.info.URL; u != "" {
		t.CRLDistributionPoints, t.OCSPServer = []string{u + "/v1/ca/crl"}, []string{u + "/v1/ca/ocsp"}
	}
	return st.sign(t, pub)
}

func (st *authorityState) sign(t *x509.Certificate, pub crypto.PublicKey) (*x509.Certificate, error) {
	if len(st.issuer) == 0 {
		return nil, ErrNoAuthority
	}
	if st.key == nil {
		return nil, errors.New("the issuer's key is not here (ca/" + issuerKey + "): certificates are issued where it is")
	}
	var err error
	if t.SerialNumber, err = newSerial(); err != nil {
		return nil, err
	}
	if t.NotAfter.After(st.issuer[0].NotAfter) {
		t.NotAfter = st.issuer[0].NotAfter // nobody would trust it longer
	}
	t.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, t, st.issuer[0], pub, st.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %s: %w", t.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

// chain returns what a device shows: its certificate and those up to the root, without it.
func (st *authorityState) chain(leaf *x509.Certificate) []*x509.Certificate {
	out := []*x509.Certificate{leaf}
	for _, c := range st.issuer {
		if !selfSigned(c) {
			out = append(out, c)
		}
	}
	return out
}

func selfSigned(c *x509.Certificate) bool { return string(c.RawIssuer) == string(c.RawSubject) }

// SetServer changes the names of our listeners' certificate, and its public address unless url is "", and makes it again.
func (a *Authority) SetServer(hosts []string, url string, now time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	info := a.now.Load().info
	if len(hosts) > 0 {
		info.Hosts = hosts
	}
	if url != "" {
		info.URL = url
	}
	if err := info.check(); err != nil {
		return err
	}
	if err := writeInfo(a.dir, info); err != nil {
		return err
	}
	if _, err := a.reloadLocked(); err != nil {
		return err
	}
	return a.issueServerLocked(now)
}

// RenewServer makes the certificate of our listeners if there is none, or if it ends within 30 days.
func (a *Authority) RenewServer(now time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.renewServerLocked(now)
}

func (a *Authority) renewServerLocked(now time.Time) error {
	st := a.now.Load()
	if len(st.issuer) == 0 || st.key == nil || st.server != nil && now.Before(st.server.Leaf.NotAfter.Add(-serverRenew)) {
		return nil
	}
	return a.issueServerLocked(now)
}

func (a *Authority) issueServerLocked(now time.Time) error {
	st := a.now.Load()
	key, err := NewKey()
	if err != nil {
		return err
	}
	t := &x509.Certificate{
		Subject: pkix.Name{CommonName: st.info.Hosts[0]}, NotBefore: now.Add(-backdate), NotAfter: now.Add(serverValid),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range st.info.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	if u := st.info.URL; u != "" {
		t.CRLDistributionPoints, t.OCSPServer = []string{u + "/v1/ca/crl"}, []string{u + "/v1/ca/ocsp"}
	}
	leaf, err := st.sign(t, key.Public())
	if err != nil {
		return err
	}
	pem, err := EncodeKey(key)
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(a.dir, serverPair), append(EncodeCertificates(st.chain(leaf)...), pem...)); err != nil {
		return err
	}
	_, err = a.reloadLocked()
	return err
}

// A RevokedCertificate is one that ended before its time.
type RevokedCertificate struct {
	Serial *big.Int
	At     time.Time
	Reason int
}

// crlValid is how long a list may be used. It is made anew at each revocation; who has an older one asks again after this.
const crlValid = 24 * time.Hour

// List signs a certificate revocation list.
func (a *Authority) List(revoked []RevokedCertificate, number int64, now time.Time) ([]byte, error) {
	st := a.now.Load()
	if len(st.issuer) == 0 || st.key == nil {
		return nil, ErrNoAuthority
	}
	t := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(crlValid)}
	for _, r := range revoked {
		t.RevokedCertificateEntries = append(t.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: r.Serial, RevocationTime: r.At, ReasonCode: r.Reason})
	}
	return x509.CreateRevocationList(rand.Reader, t, st.issuer[0], st.key)
}

// answerValid is how long an OCSP answer may be used.
const answerValid = 12 * time.Hour

// status answers an OCSP request about one of our own certificates.
func (a *Authority) status(serial *big.Int, revoked *RevokedCertificate, hash crypto.Hash, now time.Time) ([]byte, error) {
	st := a.now.Load()
	if len(st.issuer) == 0 || st.key == nil {
		return nil, ErrNoAuthority
	}
	t := ocsp.Response{Status: ocsp.Good, SerialNumber: serial, IssuerHash: hash, ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(answerValid)}
	if revoked != nil {
		t.Status, t.RevokedAt, t.RevocationReason = ocsp.Revoked, revoked.At, revoked.Reason
	}
	return ocsp.CreateResponse(st.issuer[0], st.issuer[0], t, st.key)
}

// A stapler hands out our listeners' certificate with an OCSP answer that says it is good.
type stapler struct {
	a    *Authority
	last stapled
}

type stapled struct {
	cert *tls.Certificate // as the authority has it
	with *tls.Certificate
	till time.Time
}

// Refresh is called by one goroutine; it returns the certificate to serve.
func (s *stapler) refresh(now time.Time) (*tls.Certificate, error) {
	st := s.a.now.Load()
	if st.server == nil {
		return nil, ErrNoAuthority
	}
	if s.last.cert == st.server && now.Before(s.last.till) {
		return s.last.with, nil
	}
	with := *st.server
	// A staple makes sense only where clients have an issuer to check it by and the certificate is the present issuer's.
	if st.key != nil && st.server.Leaf.CheckSignatureFrom(st.issuer[0]) == nil {
		answer, err := s.a.status(st.server.Leaf.SerialNumber, nil, crypto.SHA1, now)
		if err != nil {
			return nil, err
		}
		with.OCSPStaple = slices.Clip(answer)
	}
	s.last = stapled{st.server, &with, now.Add(answerValid / 2)}
	return &with, nil
}
