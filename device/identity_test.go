package device

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/state/local"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A logBuffer collects what is logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func openStore(t testing.TB, fs vfs.FS) state.Store {
	t.Helper()
	s, err := local.Open(local.Config{Dir: "state", FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // closed twice by tests that crash
	return s
}

// newIdentity returns an identity with an authority, and what it logs and counts.
func newIdentity(t testing.TB, change func(*Config)) (*Identity, *logBuffer, *prometheus.Registry) {
	t.Helper()
	logged, reg := new(logBuffer), prometheus.NewRegistry()
	cfg := Config{Dir: filepath.Join(t.TempDir(), "ca"), Log: slog.New(slog.NewTextHandler(logged, nil)), Metrics: reg}
	if change != nil {
		change(&cfg)
	}
	if cfg.Store == nil {
		cfg.Store = openStore(t, vfs.NewCrashable())
	}
	if _, err := InitAuthority(cfg.Dir, Info{Hosts: []string{"127.0.0.1", "localhost"}, URL: "https://milepost.test:8443"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	i, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return i, logged, reg
}

// pair is a key with its certificates.
type pair struct {
	key   crypto.Signer
	chain []*x509.Certificate
}

func (p pair) tls() []tls.Certificate {
	c := tls.Certificate{PrivateKey: p.key}
	for _, x := range p.chain {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return []tls.Certificate{c}
}

func enroll(t testing.TB, i *Identity, id string) pair {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	_, chain, err := i.Devices.Enroll(t.Context(), Enrolment{ID: id, Key: key.Public(), Origin: "test"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return pair{key, chain}
}

// A strangerCA is an authority that the server knows nothing of until it is told.
type strangerCA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newStranger(t testing.TB, name string) *strangerCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c, err := caCertificate(pkix.Name{CommonName: name}, 0, time.Now().AddDate(-5, 0, 0), time.Now().AddDate(5, 0, 0), key.Public(), nil, key)
	if err != nil {
		t.Fatal(err)
	}
	return &strangerCA{c, key}
}

func (s *strangerCA) issue(t testing.TB, cn string, from, to time.Time, usage ...x509.ExtKeyUsage) pair {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	serial, err := newSerial()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: cn}, NotBefore: from, NotAfter: to, ExtKeyUsage: usage, KeyUsage: x509.KeyUsageDigitalSignature,
	}, s.cert, key.Public(), s.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return pair{key, []*x509.Certificate{c}}
}

func request(t testing.TB, key crypto.Signer, cn string) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func csr(t testing.TB, key crypto.Signer, cn string) *x509.CertificateRequest {
	t.Helper()
	q, err := ParseRequest(request(t, key, cn))
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// with are the credentials that a connection with this certificate has after the handshake.
func with(p pair, clientID string) *Credentials {
	c := &Credentials{ClientID: clientID, TLS: &tls.ConnectionState{}, Remote: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 50000}}
	c.TLS.PeerCertificates = p.chain
	return c
}

func class(t testing.TB, err error) string {
	t.Helper()
	if err == nil {
		return "in"
	}
	r, isRefusal := errors.AsType[*Refusal](err)
	if !isRefusal {
		t.Fatalf("%v is no refusal", err)
	}
	return r.Class
}

func count(t testing.TB, reg *prometheus.Registry, metric, label, value string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == metric && l.GetName() == label && l.GetValue() == value {
					return m.GetCounter().GetValue() + m.GetGauge().GetValue()
				}
			}
		}
	}
	return 0
}
