package device

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Files of an authority's directory. Keys are readable by their owner only.
//
//	ca.json          name, public address, the names of the server's certificate
//	root.crt         the root: what devices and browsers must trust
//	root.key         its key. Needed only to make another issuer: it can be kept elsewhere
//	issuer.crt       the certificate that signs devices', and those above it
//	issuer.key       its key
//	server.pem       the certificate of our own listeners with its key; made again before it ends
//	trusted/NAME.crt         other authorities whose devices are let in
//	retired/SERIAL.{crt,key} issuers that were replaced, and SERIAL-root.key
const (
	infoFile   = "ca.json"
	rootCert   = "root.crt"
	rootKey    = "root.key"
	issuerCert = "issuer.crt"
	issuerKey  = "issuer.key"
	serverPair = "server.pem" // in one file, so that no crash leaves a pair that does not match
	trustedDir = "trusted"
	retiredDir = "retired"
)

// OwnCA is the name of Milepost's own authority, beside those that are trusted by name.
const OwnCA = "own"

const (
	caYears     = 10
	serverValid = 395 * 24 * time.Hour
	serverRenew = 30 * 24 * time.Hour // before its end
	backdate    = time.Hour           // certificates begin earlier than now: device clocks are late
)

// Info describes an authority.
type Info struct {
	Name  string   `json:"name"`
	URL   string   `json:"url,omitempty"`   // public HTTPS address, for the CRL and OCSP pointers in certificates and for QR codes
	Hosts []string `json:"hosts,omitempty"` // DNS names and addresses of the server's certificate
}

// An Authority is the certificates we issue by and trust. It is safe for concurrent use.
type Authority struct {
	dir string
	mu  sync.Mutex // guards the files, and who replaces state
	now atomic.Pointer[authorityState]
}

// authorityState is what the files say. It does not change.
type authorityState struct {
	info     Info
	issuer   []*x509.Certificate // the issuing certificate and those above it, root last
	key      crypto.Signer       // nil: nothing can be issued
	trusted  map[string][]*x509.Certificate
	roots    *x509.CertPool
	anchors  map[string]string // raw certificate → name of its authority
	between  []*x509.Certificate
	server   *tls.Certificate
	marks    string // of the files, to see whether they changed
	ownRoots []*x509.Certificate
}

// ErrNoAuthority tells that the directory has no certificate authority.
var ErrNoAuthority = errors.New("there is no certificate authority yet: make one with 'milepost ca init'")

// OpenAuthority reads a directory. One without files gives an authority that issues and trusts nothing, until there are.
func OpenAuthority(dir string) (*Authority, error) {
	a := &Authority{dir: dir}
	st, err := readAuthority(dir)
	if err != nil {
		return nil, err
	}
	a.now.Store(st)
	return a, nil
}

// Reload reads the directory again if its files changed, and tells whether they did.
func (a *Authority) Reload() (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reloadLocked()
}

func (a *Authority) reloadLocked() (bool, error) {
	marks, err := markFiles(a.dir)
	if err != nil || marks == a.now.Load().marks {
		return false, err
	}
	st, err := readAuthority(a.dir)
	if err != nil {
		return false, err
	}
	a.now.Store(st)
	return true, nil
}

// InitAuthority makes a root and an issuer in a directory that has none.
func InitAuthority(dir string, info Info, now time.Time) (*Authority, error) {
	if info.Name == "" {
		info.Name = "Milepost"
	}
	if err := info.check(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, issuerCert)); err == nil {
		return nil, fmt.Errorf("%s has a certificate authority already; its devices depend on it. Use another --data, or move that directory away", dir)
	}
	rk, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ik, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	from, to := now.Add(-backdate), now.AddDate(caYears, 0, 0)
	root, err := caCertificate(pkix.Name{CommonName: info.Name + " root"}, 1, from, to, rk.Public(), nil, rk)
	if err != nil {
		return nil, err
	}
	issuer, err := caCertificate(pkix.Name{CommonName: info.Name + " device issuer"}, 0, from, to, ik.Public(), root, rk)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(
		writeKey(filepath.Join(dir, rootKey), rk), writeCerts(filepath.Join(dir, rootCert), root),
		writeKey(filepath.Join(dir, issuerKey), ik), writeInfo(dir, info),
		writeCerts(filepath.Join(dir, issuerCert), issuer, root), // last: it is what says that there is an authority
	); err != nil {
		return nil, err
	}
	a, err := OpenAuthority(dir)
	if err != nil {
		return nil, err
	}
	return a, a.RenewServer(now)
}

func (i *Info) check() error {
	if i.URL != "" {
		u, err := url.Parse(i.URL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
			return fmt.Errorf("public address %q: write one like https://milepost.example.com:8443", i.URL)
		}
		i.URL = strings.TrimSuffix(i.URL, "/")
	}
	if len(i.Hosts) == 0 {
		i.Hosts = []string{"localhost", "127.0.0.1", "::1"}
		if h, err := os.Hostname(); err == nil && h != "localhost" {
			i.Hosts = append(i.Hosts, h)
		}
	}
	for _, h := range i.Hosts {
		if h == "" || strings.ContainsAny(h, " /") {
			return fmt.Errorf("host %q: write a DNS name or an IP address", h)
		}
	}
	return nil
}

// caCertificate makes a certificate of an authority; parent nil: signed by itself.
func caCertificate(name pkix.Name, path int, from, to time.Time, pub crypto.PublicKey, parent *x509.Certificate, key crypto.Signer) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: name, NotBefore: from, NotAfter: to, BasicConstraintsValid: true, IsCA: true,
		MaxPathLen: path, MaxPathLenZero: path == 0,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature, // the last for OCSP
	}
	if parent == nil {
		parent = t
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", name.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 159)) // 20 octets, positive: RFC 5280, 4.1.2.2
	if err != nil {
		return nil, err
	}
	return n.Add(n, big.NewInt(1)), nil
}

// ImportIssuer makes an existing authority the one that issues: certs begins with its certificate. One that is there already
// is retired if replace is set: its devices stay valid.
func (a *Authority) ImportIssuer(certs []*x509.Certificate, key crypto.Signer, info Info, replace bool, now time.Time) error {
	if err := info.check(); err != nil {
		return err
	}
	if len(certs) == 0 {
		return errors.New("the file holds no certificate")
	}
	if err := checkCA(certs[0], now); err != nil {
		return err
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(certs[0].PublicKey) {
		return fmt.Errorf("the key does not belong to the certificate of %s", certs[0].Subject)
	}
	for i := 1; i < len(certs); i++ {
		if err := certs[i-1].CheckSignatureFrom(certs[i]); err != nil {
			return fmt.Errorf("certificate %d of the file, %s, does not sign the one before it: put the issuing certificate first and the root last (%w)", i+1, certs[i].Subject, err)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	st := a.now.Load()
	if len(st.issuer) > 0 {
		if !replace {
			return errors.New("there is an issuing authority already: --replace retires it (its devices stay valid)")
		}
		name := st.issuer[0].SerialNumber.Text(16)
		for _, f := range []string{issuerCert, issuerKey, rootKey} {
			to := filepath.Join(a.dir, retiredDir, name+filepath.Ext(f))
			if f == rootKey {
				to = filepath.Join(a.dir, retiredDir, name+"-root.key")
			}
			if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
				return err
			}
			if err := os.Rename(filepath.Join(a.dir, f), to); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := os.Remove(filepath.Join(a.dir, serverPair)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err // made again below, by the new issuer
		}
	}
	if err := errors.Join(
		writeKey(filepath.Join(a.dir, issuerKey), key), writeInfo(a.dir, info),
		writeCerts(filepath.Join(a.dir, rootCert), certs[len(certs)-1]), writeCerts(filepath.Join(a.dir, issuerCert), certs...),
	); err != nil {
		return err
	}
	if _, err := a.reloadLocked(); err != nil {
		return err
	}
	return a.renewServerLocked(now)
}

// Trust lets in devices of another authority: certs are its certificates, of which the first must be an authority's.
func (a *Authority) Trust(name string, certs []*x509.Certificate, now time.Time) error {
	if name == OwnCA || CheckID(name) != nil {
		return fmt.Errorf("authority name %q: write letters, digits, '.', '_' and '-', and not %q", name, OwnCA)
	}
	if len(certs) == 0 {
		return errors.New("the file holds no certificate")
	}
	for _, c := range certs {
		if err := checkCA(c, now); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := writeCerts(filepath.Join(a.dir, trustedDir, name+".crt"), certs...); err != nil {
		return err
	}
	_, err := a.reloadLocked()
	return err
}

// Distrust ends the trust in an authority. Its devices are refused from then on.
func (a *Authority) Distrust(name string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.now.Load().trusted[name]; !ok {
		return fmt.Errorf("no authority %q is trusted", name)
	}
	if err := os.Remove(filepath.Join(a.dir, trustedDir, name+".crt")); err != nil {
		return err
	}
	_, err := a.reloadLocked()
	return err
}

func checkCA(c *x509.Certificate, now time.Time) error {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return fmt.Errorf("the certificate of %s is not an authority's (no CA:TRUE): give the one that signed the devices', or register a device's own with 'milepost device enroll ID --certificate FILE'", c.Subject)
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("the certificate of %s may not sign certificates (key usage)", c.Subject)
	case now.After(c.NotAfter):
		return fmt.Errorf("the certificate of %s ended on %s", c.Subject, c.NotAfter.Format(time.DateOnly))
	}
	return nil
}

// Info returns what describes the authority.
func (a *Authority) Info() Info { return a.now.Load().info }

// Issuer returns the issuing certificate and those above it; empty if there is none.
func (a *Authority) Issuer() []*x509.Certificate { return a.now.Load().issuer }

// Roots returns the certificates that a device must trust to know this server.
func (a *Authority) Roots() []*x509.Certificate { return a.now.Load().ownRoots }

// Trusted returns the other authorities by name.
func (a *Authority) Trusted() map[string][]*x509.Certificate { return a.now.Load().trusted }

// Server returns the certificate of our listeners, or nil.
func (a *Authority) Server() *x509.Certificate {
	if s := a.now.Load().server; s != nil {
		return s.Leaf
	}
	return nil
}

func (st *authorityState) knows(ca string) bool {
	if ca == OwnCA {
		return len(st.issuer) > 0
	}
	_, ok := st.trusted[ca]
	return ok
}

func readAuthority(dir string) (*authorityState, error) {
	st := &authorityState{trusted: map[string][]*x509.Certificate{}, roots: x509.NewCertPool(), anchors: map[string]string{}}
	var err error
	if st.marks, err = markFiles(dir); err != nil {
		return nil, err
	}
	if b, err := os.ReadFile(filepath.Join(dir, infoFile)); err == nil {
		if err := json.Unmarshal(b, &st.info); err != nil {
			return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, infoFile), err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	st.issuer, err = readCerts(filepath.Join(dir, issuerCert))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if st.key, err = ReadKey(filepath.Join(dir, issuerKey)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		st.ownRoots = st.issuer[len(st.issuer)-1:]
		st.trust(OwnCA, st.issuer)
	}
	retired, err := filepath.Glob(filepath.Join(dir, retiredDir, "*.crt"))
	if err != nil {
		return nil, err
	}
	for _, f := range retired {
		certs, err := readCerts(f)
		if err != nil {
			return nil, err
		}
		st.trust(OwnCA, certs)
		st.ownRoots = append(slices.Clip(st.ownRoots), certs[len(certs)-1])
	}
	others, err := filepath.Glob(filepath.Join(dir, trustedDir, "*.crt"))
	if err != nil {
		return nil, err
	}
	for _, f := range others {
		certs, err := readCerts(f)
		if err != nil {
			return nil, err
		}
		name := strings.TrimSuffix(filepath.Base(f), ".crt")
		st.trusted[name] = certs
		st.trust(name, certs)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, serverPair), filepath.Join(dir, serverPair))
	if err == nil {
		st.server = &pair
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the server's certificate: %w; remove %s and it is made again", err, filepath.Join(dir, serverPair))
	}
	return st, nil
}

func (st *authorityState) trust(name string, certs []*x509.Certificate) {
	for _, c := range certs {
		if _, ok := st.anchors[string(c.Raw)]; !ok { // our own goes first
			st.anchors[string(c.Raw)] = name
		}
		st.roots.AddCert(c)
	}
	st.between = append(st.between, certs...)
}

// markFiles returns text that changes when the files do.
func markFiles(dir string) (string, error) {
	var b bytes.Buffer
	for _, pattern := range []string{"*", trustedDir + "/*", retiredDir + "/*"} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return "", err
		}
		for _, n := range names {
			fi, err := os.Stat(n)
			if err != nil || fi.IsDir() || strings.Contains(n, ".tmp") {
				continue
			}
			fmt.Fprintf(&b, "%s %d %d\n", n, fi.Size(), fi.ModTime().UnixNano())
		}
	}
	return b.String(), nil
}

func readCerts(name string) ([]*x509.Certificate, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	certs, err := ParseCertificates(b)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return certs, nil
}

// ParseCertificates reads the certificates of a PEM file, or one in DER.
func ParseCertificates(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	if !bytes.Contains(b, []byte("-----BEGIN")) {
		c, err := x509.ParseCertificate(b)
		if err != nil {
			return nil, fmt.Errorf("neither PEM nor a certificate in DER: %w", err)
		}
		return []*x509.Certificate{c}, nil
	}
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(out)+1, err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("no certificate in PEM (-----BEGIN CERTIFICATE-----)")
	}
	return out, nil
}

// ReadKey reads a private key in PEM: PKCS#8, SEC 1 or PKCS#1, not encrypted.
func ReadKey(name string) (crypto.Signer, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return nil, fmt.Errorf("%s holds no private key in PEM", name)
		}
		if x509.IsEncryptedPEMBlock(block) || block.Type == "ENCRYPTED PRIVATE KEY" { //nolint:staticcheck // asked only to say so
			return nil, fmt.Errorf("the key in %s is encrypted: decrypt it with 'openssl pkey -in %s'", name, name)
		}
		if !strings.HasSuffix(block.Type, "PRIVATE KEY") {
			continue // "EC PARAMETERS" comes before the key
		}
		if k, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
			if s, ok := k.(crypto.Signer); ok {
				return s, nil
			}
		}
		if k, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
			return k, nil
		}
		k, err := x509.ParsePKCS1PrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: no private key of a kind that is known: %w", name, err)
		}
		return k, nil
	}
}

func writeInfo(dir string, info Info) error {
	b, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, infoFile), append(b, '\n'))
}

func writeCerts(name string, certs ...*x509.Certificate) error {
	return writeFile(name, EncodeCertificates(certs...))
}

// EncodeCertificates writes certificates in PEM.
func EncodeCertificates(certs ...*x509.Certificate) []byte {
	var b []byte
	for _, c := range certs {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return b
}

// EncodeKey writes a private key in PEM, as PKCS#8.
func EncodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func writeKey(name string, key crypto.Signer) error {
	b, err := EncodeKey(key)
	if err != nil {
		return err
	}
	return writeFile(name, b)
}

// writeFile replaces a file as a whole, durably. Its owner alone may read it: keys are among them, and nobody else needs the rest.
func writeFile(name string, b []byte) error {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, filepath.Base(name)+".tmp*") // made with 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", name, err), os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
