package device

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

func TestAuthorityFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a, err := InitAuthority(dir, Info{Name: "Fleet", Hosts: []string{"mq.example.com", "10.0.0.1"}}, time.Now())
	ok(t, err)
	if _, err := InitAuthority(dir, Info{}, time.Now()); err == nil {
		t.Error("a second init replaces the authority")
	}
	ok(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		fi, err := d.Info()
		if err == nil && fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", path, fi.Mode().Perm())
		}
		return err
	}))
	roots := x509.NewCertPool()
	roots.AddCert(a.Roots()[0])
	between := x509.NewCertPool()
	between.AddCert(a.Issuer()[0])
	for _, host := range []string{"mq.example.com", "10.0.0.1"} {
		if _, err := a.Server().Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: host}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	// It is made again near its end, and not before.
	was := a.Server()
	ok(t, a.RenewServer(time.Now()))
	if !a.Server().Equal(was) {
		t.Error("renewed without need")
	}
	ok(t, a.RenewServer(was.NotAfter.Add(-serverRenew/2)))
	if a.Server().Equal(was) || !a.Server().NotAfter.After(was.NotAfter) {
		t.Error("not renewed near its end")
	}
	// Without the root's key everything goes on.
	ok(t, os.Remove(filepath.Join(dir, rootKey)))
	b, err := OpenAuthority(dir)
	ok(t, err)
	key, err := NewKey()
	ok(t, err)
	if _, err := b.issue("x", key.Public(), time.Hour, time.Now()); err != nil {
		t.Error(err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(fi)
	}
}

func TestImportIssuer(t *testing.T) {
	i, _, _ := newIdentity(t, nil)
	old := enroll(t, i, "truck-1")
	corp := newStranger(t, "Corp CA")
	now := time.Now()
	if err := i.CA.ImportIssuer([]*x509.Certificate{corp.cert}, corp.key, Info{}, false, now); err == nil {
		t.Error("replaced without being asked to")
	}
	wrong, err := NewKey()
	ok(t, err)
	if err := i.CA.ImportIssuer([]*x509.Certificate{corp.cert}, wrong, Info{}, true, now); err == nil || !strings.Contains(err.Error(), "key does not belong") {
		t.Errorf("a key of somebody else: %v", err)
	}
	ok(t, i.CA.ImportIssuer([]*x509.Certificate{corp.cert}, corp.key, Info{Hosts: []string{"localhost"}}, true, now))
	fresh := enroll(t, i, "truck-2")
	if err := fresh.chain[0].CheckSignatureFrom(corp.cert); err != nil {
		t.Error(err)
	}
	for id, p := range map[string]pair{"truck-1": old, "truck-2": fresh} {
		if _, err := i.Gate.Authenticate(t.Context(), with(p, id)); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	if err := i.CA.Trust("leaf", fresh.chain, now); err == nil {
		t.Error("a device's certificate is trusted as an authority's")
	}
	if len(i.CA.Roots()) != 2 || i.CA.Server().CheckSignatureFrom(corp.cert) != nil {
		t.Error("the listeners' certificate is not the new authority's, or the old root is forgotten")
	}
}

// The list and the responder, as a client written by others sees them.
func TestRevocationWithOpenSSL(t *testing.T) {
	bin, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl")
	}
	i, _, _ := newIdentity(t, nil)
	good, bad := enroll(t, i, "good"), enroll(t, i, "bad")
	_, err = i.Devices.Revoke(t.Context(), "bad", "", ReasonKeyCompromise, time.Now())
	ok(t, err)
	mux := http.NewServeMux()
	i.Register(mux)
	srv := httptest.NewServer(mux)
	defer srv.Close()
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		name = filepath.Join(dir, name)
		ok(t, os.WriteFile(name, b, 0o600))
		return name
	}
	openssl := func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), bin, args...).CombinedOutput()
		return string(out), err
	}
	root, issuer := write("root.pem", EncodeCertificates(i.CA.Roots()...)), write("issuer.pem", EncodeCertificates(i.CA.Issuer()[0]))
	goodFile, badFile := write("good.pem", EncodeCertificates(good.chain[0])), write("bad.pem", EncodeCertificates(bad.chain[0]))
	list, err := i.RevocationList(time.Now())
	ok(t, err)
	crl := write("crl.der", list)
	out, err := openssl("crl", "-inform", "DER", "-in", crl, "-CAfile", issuer, "-noout", "-text")
	if err != nil || !strings.Contains(out, "verify OK") || !strings.Contains(out, "Key Compromise") {
		t.Errorf("crl: %v\n%s", err, out)
	}
	pemCRL := filepath.Join(dir, "crl.pem")
	_, err = openssl("crl", "-inform", "DER", "-in", crl, "-out", pemCRL)
	ok(t, err)
	verify := func(file string) (string, error) {
		return openssl("verify", "-crl_check", "-CAfile", root, "-untrusted", issuer, "-CRLfile", pemCRL, file)
	}
	if out, err := verify(goodFile); err != nil {
		t.Errorf("good: %v\n%s", err, out)
	}
	if out, err := verify(badFile); err == nil || !strings.Contains(out, "certificate revoked") {
		t.Errorf("bad: %v\n%s", err, out)
	}
	for file, want := range map[string]string{goodFile: ": good", badFile: ": revoked"} {
		out, err := openssl("ocsp", "-issuer", issuer, "-cert", file, "-url", srv.URL+"/v1/ca/ocsp", "-CAfile", root, "-no_nonce")
		if err != nil || !strings.Contains(out, want) || !strings.Contains(out, "Response verify OK") {
			t.Errorf("ocsp %s: %v\n%s", file, err, out)
		}
	}
	// The private key stays on the device: a request made by openssl.
	_, err = openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", filepath.Join(dir, "k"), "-subj", "/CN=truck-9", "-out", filepath.Join(dir, "r"))
	ok(t, err)
	request, err := os.ReadFile(filepath.Join(dir, "r"))
	ok(t, err)
	if _, err := ParseRequest(request); err != nil {
		t.Error(err)
	}
}

func TestStaple(t *testing.T) {
	i, _, _ := newIdentity(t, nil)
	c, err := i.TLSConfig().GetCertificate(nil)
	ok(t, err)
	answer, err := ocsp.ParseResponseForCert(c.OCSPStaple, c.Leaf, i.CA.Issuer()[0])
	ok(t, err)
	if answer.Status != ocsp.Good || !answer.NextUpdate.After(time.Now().Add(time.Hour)) {
		t.Errorf("%+v", answer)
	}
	// A stranger's certificate gets no signed answer.
	stranger := newStranger(t, "Other")
	p := stranger.issue(t, "x", time.Now(), time.Now().Add(time.Hour))
	for _, issuer := range []*x509.Certificate{stranger.cert, i.CA.Issuer()[0]} {
		q, err := ocsp.CreateRequest(p.chain[0], issuer, &ocsp.RequestOptions{Hash: crypto.SHA256})
		ok(t, err)
		parsed, err := ocsp.ParseRequest(q)
		ok(t, err)
		b, err := i.ocspAnswer(parsed, time.Now())
		ok(t, err)
		if !bytes.Equal(b, ocsp.UnauthorizedErrorResponse) {
			t.Error("signed for a stranger")
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	key, err := NewKey()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(request(f, key, "truck-17"))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := ParseRequest(b)
		if (q == nil) != (err != nil) {
			t.Errorf("%v with %v", q, err)
		}
	})
}
