package device

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"time"
)

// publicKeyBits returns the bits of a public key, of which OCSP takes the hash.
func publicKeyBits(raw []byte) ([]byte, error) {
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		PublicKey asn1.BitString
	}
	if _, err := asn1.Unmarshal(raw, &spki); err != nil {
		return nil, fmt.Errorf("the issuer's public key: %w", err)
	}
	return spki.PublicKey.RightAlign(), nil
}

// postEnroll takes a token and a certificate signing request: as JSON, as a form, or as PEM with the token as bearer. From the form
// of getEnroll it makes the key too, for a phone that cannot.
func (i *Identity) postEnroll(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		Token  string `json:"token"`
		Device string `json:"device"`
		CSR    string `json:"csr"`
	}
	t, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	if t == "application/x-www-form-urlencoded" {
		if err := r.ParseForm(); err != nil {
			return fmt.Errorf("%w: form: %w", ErrInvalid, err)
		}
		if r.Form.Get("format") == "p12" {
			return i.postPhone(w, r)
		}
		q.Token, q.Device, q.CSR = r.Form.Get("token"), r.Form.Get("device"), r.Form.Get("csr")
	} else if err := requestBody(r, &q.CSR, &q); err != nil {
		return err
	}
	if q.Token == "" {
		if scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " "); strings.EqualFold(scheme, "Bearer") {
			q.Token = strings.TrimSpace(given)
		} else {
			q.Token = r.URL.Query().Get("token")
		}
	}
	if q.Device == "" {
		q.Device = r.URL.Query().Get("device")
	}
	if q.Token == "" {
		return fmt.Errorf("%w: send it as \"token\", or as Authorization: Bearer", ErrToken)
	}
	csr, err := ParseRequest([]byte(q.CSR))
	if err != nil {
		return fmt.Errorf("%w: csr: %w", ErrInvalid, err)
	}
	d, chain, err := i.Devices.Claim(r.Context(), q.Token, q.Device, csr, time.Now())
	if err != nil {
		i.enrolmentRefused(r, q.Device, csr.Subject.CommonName, err)
		return err
	}
	i.cfg.Log.InfoContext(r.Context(), "device enrolled", "device", d.ID, "origin", d.Origin, "remote", r.RemoteAddr)
	return i.sendIssued(w, r, d, chain, nil)
}

// enrolmentRefused lets the doctor know that somebody tried.
func (i *Identity) enrolmentRefused(r *http.Request, device, cn string, err error) {
	if !errors.Is(err, ErrToken) && !errors.Is(err, ErrExists) {
		return
	}
	if device == "" {
		device = cn
	}
	i.metrics.refused(NotEnrolled)
	i.Journal.Refused(&Credentials{ClientID: device, Remote: remoteAddr(r)}, &Refusal{NotEnrolled, "enrolment: " + err.Error()})
}

// postPhone makes a key here and hands it out once, as PKCS#12.
func (i *Identity) postPhone(w http.ResponseWriter, r *http.Request) error {
	password := r.PostForm.Get("password")
	if len(password) < 6 {
		return fmt.Errorf("%w: choose a password of at least 6 characters: the phone asks for it once, when the certificate is installed", ErrInvalid)
	}
	token, err := i.Devices.Token(r.Context(), r.PostForm.Get("token"), time.Now())
	if err != nil {
		return err
	}
	id := token.Device
	if id == "" {
		if id = r.PostForm.Get("device"); id == "" {
			return fmt.Errorf("%w: which device: this token is for several", ErrInvalid)
		}
	}
	key, err := NewKey()
	if err != nil {
		return err
	}
	csr := &x509.CertificateRequest{Subject: pkix.Name{CommonName: id}, PublicKey: key.Public()}
	if csr.RawSubjectPublicKeyInfo, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
		return err
	}
	d, chain, err := i.Devices.Claim(r.Context(), r.PostForm.Get("token"), id, csr, time.Now())
	if err != nil {
		i.enrolmentRefused(r, id, "", err)
		return err
	}
	file, err := PKCS12(key, chain, i.CA.Roots(), password, r.PostForm.Get("legacy") != "")
	if err != nil {
		return err
	}
	i.cfg.Log.InfoContext(r.Context(), "device enrolled", "device", d.ID, "origin", d.Origin, "remote", r.RemoteAddr)
	w.Header().Set("Content-Type", "application/x-pkcs12")
	w.Header().Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", d.ID+".p12"))
	_, _ = w.Write(file)
	return nil
}

// enrolPage is what a phone shows that scanned the code of 'milepost device enroll --qr'. Looking at it uses up nothing.
//
//nolint:gochecknoglobals // a table
var enrolPage = template.Must(template.New("enroll").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1"><meta name="referrer" content="no-referrer">
<title>Enrol {{.Device}}</title>
<style>body{font:1rem/1.5 system-ui,sans-serif;max-width:32rem;margin:2rem auto;padding:0 1rem}input,button{font:inherit;padding:.5rem;width:100%;box-sizing:border-box;margin:.3rem 0 1rem}label input{width:auto}</style>
<h1>Enrol {{if .Device}}{{.Device}}{{else}}a device{{end}}</h1>
<p>This makes a certificate and hands it to you once, in a file that your phone installs. The code can be used {{if eq .Uses 1}}one more time{{else}}{{.Uses}} more times{{end}}, until {{.Until}}.</p>
<form method="post" action="/v1/devices/enroll"><input type="hidden" name="token" value="{{.Token}}"><input type="hidden" name="format" value="p12">
{{if .Device}}<input type="hidden" name="device" value="{{.Device}}">{{else}}<label for="d">Device id{{if .Prefix}}, beginning with {{.Prefix}}{{end}}</label><input id="d" name="device" required>{{end}}
<label for="p">A password for the file (the phone asks for it when you install it)</label><input id="p" type="password" name="password" minlength="6" autocomplete="new-password" required>
<p><label><input type="checkbox" name="legacy" value="1"> older phone (Android before 14)</label></p>
<button>Make the certificate</button></form>
<p><a href="/v1/ca/root.crt">The server's root certificate</a></p></html>
`))

func (i *Identity) getEnroll(w http.ResponseWriter, r *http.Request) error {
	secret := r.URL.Query().Get("token")
	t, err := i.Devices.Token(r.Context(), secret, time.Now())
	if err != nil {
		return err
	}
	if t.Uses <= 0 {
		return fmt.Errorf("%w: it was used already: ask for a new one", ErrToken)
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	_ = enrolPage.Execute(w, map[string]any{"Device": t.Device, "Prefix": t.Prefix, "Uses": t.Uses, "Until": day(t.Expires), "Token": secret})
	return nil
}

func (i *Identity) getTokens(w http.ResponseWriter, r *http.Request) error {
	ts, err := i.Devices.Tokens(r.Context())
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, map[string]any{"tokens": ts})
}

func (i *Identity) postToken(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		Device  string `json:"device"`
		Vehicle string `json:"vehicle"`
		Prefix  string `json:"prefix"`
		Policy  string `json:"policy"`
		Uses    int    `json:"uses"`
		Expires string `json:"expires_in"` // as Go writes durations: 24h
	}
	if err := body(r, &q); err != nil {
		return err
	}
	var life time.Duration
	if q.Expires != "" {
		var err error
		if life, err = time.ParseDuration(q.Expires); err != nil || life <= 0 {
			return fmt.Errorf("%w: expires_in %q: write a duration like 24h", ErrInvalid, q.Expires)
		}
	}
	secret, t, err := i.Devices.CreateToken(r.Context(), TokenRequest{Device: q.Device, Vehicle: q.Vehicle, Prefix: q.Prefix, Policy: q.Policy, Uses: q.Uses, Life: life}, time.Now())
	if err != nil {
		return err
	}
	out := map[string]any{"token": t, "secret": secret}
	if u := i.CA.Info().URL; u != "" {
		out["url"] = EnrolmentURL(u, t.Device, secret)
	}
	return reply(w, http.StatusCreated, out)
}

func (i *Identity) deleteToken(w http.ResponseWriter, r *http.Request) error {
	if err := i.Devices.DropToken(r.Context(), r.PathValue("token")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
