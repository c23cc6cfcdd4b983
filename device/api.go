package device

import (
	"crypto"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/milepost/milepost/internal/bearer"
	"github.com/milepost/milepost/state"
)

// maxBody bounds a request: a chain of certificates and a request have room in it.
const maxBody = 64 << 10

// Register adds the API to a mux. What administers needs the bearer token, if one is configured; enrolment is protected by its own
// tokens, rotation by the device's certificate as well, and what a certificate points to (root, CRL, OCSP) is public.
func (i *Identity) Register(mux *http.ServeMux) {
	cross := http.NewCrossOriginProtection() // pages of other sites cannot administer through an operator's browser
	admin := func(pattern string, h func(http.ResponseWriter, *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := cross.Check(r); err != nil {
				problem(w, http.StatusForbidden, err.Error())
				return
			}
			if !i.token.Allows(r) {
				bearer.Ask(w)
				problem(w, http.StatusUnauthorized, "this needs the bearer token of the API (http.token)")
				return
			}
			i.answer(w, r, h)
		})
	}
	public := func(pattern string, h func(http.ResponseWriter, *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { i.answer(w, r, h) })
	}
	admin("GET /v1/devices", i.getDevices)
	admin("POST /v1/devices", i.postDevice)
	admin("GET /v1/devices/expiring", i.getExpiring)
	admin("GET /v1/devices/{id}", i.getDevice)
	admin("PATCH /v1/devices/{id}", i.patchDevice)
	admin("GET /v1/devices/{id}/doctor", i.getDoctor)
	admin("GET /v1/devices/{id}/journal", i.getJournal)
	admin("POST /v1/devices/{id}/revoke", i.postRevoke)
	admin("PUT /v1/devices/{id}/password", i.putPassword)
	admin("DELETE /v1/devices/{id}/password", i.deletePassword)
	admin("GET /v1/device-tokens", i.getTokens)
	admin("POST /v1/device-tokens", i.postToken)
	admin("DELETE /v1/device-tokens/{token}", i.deleteToken)
	admin("GET /v1/ca", i.getCA)
	public("POST /v1/devices/{id}/rotate", i.postRotate)
	public("GET /v1/devices/enroll", i.getEnroll)
	public("POST /v1/devices/enroll", i.postEnroll)
	public("GET /v1/ca/root.crt", i.getRoot)
	public("GET /v1/ca/crl", i.getCRL)
	public("POST /v1/ca/ocsp", i.ocsp)
	public("GET /v1/ca/ocsp/{request...}", i.ocsp)
}

// answer runs a handler and turns its error into a problem.
func (i *Identity) answer(w http.ResponseWriter, r *http.Request, h func(http.ResponseWriter, *http.Request) error) {
	w.Header().Set("Cache-Control", "no-store")
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	err := h(w, r)
	if err == nil {
		return
	}
	status := http.StatusInternalServerError
	big, isBig := errors.AsType[*http.MaxBytesError](err)
	refusal, isRefusal := errors.AsType[*Refusal](err)
	switch {
	case isBig:
		status, err = http.StatusRequestEntityTooLarge, fmt.Errorf("the body is larger than %d bytes", big.Limit)
	case isRefusal:
		status, err = http.StatusForbidden, refusal
	case errors.Is(err, ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, ErrExists):
		status = http.StatusConflict
	case errors.Is(err, ErrToken):
		status = http.StatusForbidden
	case errors.Is(err, ErrInvalid):
		status = http.StatusBadRequest
	case errors.Is(err, ErrNoAuthority), errors.Is(err, state.ErrFull), errors.Is(err, state.ErrFenced), errors.Is(err, state.ErrClosed):
		status = http.StatusServiceUnavailable
	}
	if status >= 500 {
		i.cfg.Log.ErrorContext(r.Context(), "devices API", "path", r.URL.Path, "error", err)
	}
	problem(w, status, err.Error())
}

// problem answers as RFC 9457 writes it.
func problem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"title": http.StatusText(status), "status": status, "detail": detail})
}

func reply(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone, if anything
	return nil
}

// body reads JSON strictly; an empty body is an empty object.
func body(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if _, big := errors.AsType[*http.MaxBytesError](err); err != nil && !big {
		return fmt.Errorf("%w: body: %w", ErrInvalid, err)
	}
	return err
}

// A deviceView is a device as the API shows it: without the password's hash, with what the doors saw.
type deviceView struct {
	*Device
	Password      bool      `json:"password"`
	Raised        *struct{} `json:"raised,omitempty"` // hides the embedded one
	Connections   int       `json:"connections"`
	FirstConnect  time.Time `json:"first_connect,omitzero"`
	LastConnect   time.Time `json:"last_connect,omitzero"`
	LastMessage   time.Time `json:"last_message,omitzero"`
	LastRemote    string    `json:"last_remote,omitempty"`
	Disconnected  time.Time `json:"last_disconnect,omitzero"`
	Disconnect    string    `json:"last_disconnect_reason,omitempty"`
	Expires       time.Time `json:"certificate_ends,omitzero"`
	LastRefusal   *Attempt  `json:"last_refusal,omitempty"`
	LastRejection string    `json:"last_rejection,omitempty"`
}

func (i *Identity) view(d *Device) deviceView {
	seen, refused := i.Journal.Device(d.ID)
	v := deviceView{
		Device: d, Password: d.Password != "", Connections: seen.Connections, FirstConnect: seen.FirstConnect, LastConnect: seen.LastConnect,
		LastMessage: seen.LastMessage, LastRemote: seen.Remote, LastRefusal: lastAttempt(refused),
	}
	if n := len(seen.Departures); n > 0 {
		v.Disconnected, v.Disconnect = seen.Departures[n-1].At, seen.Departures[n-1].Why
	}
	if n := len(seen.Rejections); n > 0 {
		v.LastRejection = seen.Rejections[n-1].Text
	}
	if c := d.lastCertificate(); c != nil {
		v.Expires = c.NotAfter
	}
	return v
}

func (i *Identity) getDevices(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	limit := 100
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > 1000 {
			return fmt.Errorf("%w: limit %q: write 1 to 1000", ErrInvalid, s)
		}
		limit = n
	}
	most := limit + 1
	part, within := strings.ToLower(q.Get("q")), time.Duration(0)
	if s := q.Get("ends_within"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > 36500 {
			return fmt.Errorf("%w: ends_within %q: write a number of days", ErrInvalid, s)
		}
		within = time.Duration(n) * 24 * time.Hour
	}
	if part != "" || within > 0 {
		most = 1<<31 - 1 // which are meant is seen only now
	}
	ds, now := i.Devices.List(q.Get("prefix"), q.Get("after"), Status(q.Get("status")), most), time.Now()
	ds = slices.DeleteFunc(ds, func(d *Device) bool {
		c := d.lastCertificate()
		return part != "" && !strings.Contains(strings.ToLower(d.ID), part) && !strings.Contains(strings.ToLower(d.Vehicle), part) ||
			within > 0 && (c == nil || c.NotAfter.Sub(now) >= within)
	})
	more := len(ds) > limit
	ds = ds[:min(limit, len(ds))]
	out := struct {
		Devices []deviceView `json:"devices"`
		Next    string       `json:"next,omitempty"` // after, for the next page
	}{Devices: make([]deviceView, 0, len(ds))}
	for _, d := range ds {
		out.Devices = append(out.Devices, i.view(d))
	}
	if more {
		out.Next = ds[limit-1].ID
	}
	return reply(w, http.StatusOK, out)
}

func (i *Identity) getDevice(w http.ResponseWriter, r *http.Request) error {
	d, ok := i.Devices.Device(r.PathValue("id"))
	if !ok {
		return fmt.Errorf("%w: %s", ErrNotFound, r.PathValue("id"))
	}
	return reply(w, http.StatusOK, i.view(d))
}

// issuance is the answer that brings a certificate.
type issuance struct {
	Device      deviceView `json:"device"`
	Certificate string     `json:"certificate,omitempty"` // PEM: the device's, then those above it
	Root        string     `json:"root,omitempty"`        // PEM: what the device must trust
	Key         string     `json:"key,omitempty"`         // PEM; only if it was made here
}

func (i *Identity) issuance(d *Device, chain []*x509.Certificate, key crypto.Signer) (*issuance, error) {
	out := &issuance{Device: i.view(d), Certificate: string(EncodeCertificates(chain...)), Root: string(EncodeCertificates(i.CA.Roots()...))}
	if key != nil {
		b, err := EncodeKey(key)
		if err != nil {
			return nil, err
		}
		out.Key = string(b)
	}
	return out, nil
}

// keyOf returns the public key of a request in PEM, or makes a key.
func keyOf(csr, id string) (crypto.PublicKey, crypto.Signer, error) {
	if csr == "" {
		key, err := NewKey()
		if err != nil {
			return nil, nil, err
		}
		return key.Public(), key, nil
	}
	q, err := ParseRequest([]byte(csr))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if cn := q.Subject.CommonName; cn != "" && cn != id {
		return nil, nil, fmt.Errorf("%w: the request is for CN=%s, and the device is %s: make them the same", ErrInvalid, cn, id)
	}
	return q.PublicKey, nil, nil
}

func (i *Identity) postDevice(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		ID          string `json:"id"`
		Vehicle     string `json:"vehicle"`
		Policy      string `json:"policy"`
		CSR         string `json:"csr"`
		Certificate string `json:"certificate"`
	}
	if err := body(r, &q); err != nil {
		return err
	}
	e := Enrolment{ID: q.ID, Vehicle: q.Vehicle, Policy: q.Policy, Origin: "api"}
	var key crypto.Signer
	if q.Certificate != "" {
		certs, err := ParseCertificates([]byte(q.Certificate))
		if err != nil {
			return fmt.Errorf("%w: certificate: %w", ErrInvalid, err)
		}
		e.Certificate = certs[0]
	} else {
		var err error
		if e.Key, key, err = keyOf(q.CSR, q.ID); err != nil {
			return err
		}
	}
	d, chain, err := i.Devices.Enroll(r.Context(), e, time.Now())
	if err != nil {
		return err
	}
	out, err := i.issuance(d, chain, key)
	if err != nil {
		return err
	}
	return reply(w, http.StatusCreated, out)
}

func (i *Identity) patchDevice(w http.ResponseWriter, r *http.Request) error {
	var ch Change
	if err := body(r, &ch); err != nil {
		return err
	}
	d, err := i.Devices.Amend(r.Context(), r.PathValue("id"), ch)
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, i.view(d))
}

func (i *Identity) postRevoke(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		Serial string `json:"serial"`
		Reason string `json:"reason"`
	}
	if err := body(r, &q); err != nil {
		return err
	}
	reason, ok := map[string]int{"": ReasonUnspecified, "unspecified": ReasonUnspecified, "key_compromise": ReasonKeyCompromise, "superseded": ReasonSuperseded, "cessation": ReasonCessation}[q.Reason]
	if !ok {
		return fmt.Errorf("%w: reason %q: write key_compromise, superseded, cessation or nothing", ErrInvalid, q.Reason)
	}
	d, err := i.Devices.Revoke(r.Context(), r.PathValue("id"), q.Serial, reason, time.Now())
	if err != nil {
		return err
	}
	i.cfg.Log.InfoContext(r.Context(), "device revoked", "device", d.ID, "serial", q.Serial, "remote", r.RemoteAddr)
	return reply(w, http.StatusOK, i.view(d))
}

// postRotate is for whoever administers, and for the device itself with the certificate that it has.
func (i *Identity) postRotate(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("id")
	byDevice := r.TLS != nil && len(r.TLS.PeerCertificates) > 0
	if byDevice {
		c := &Credentials{TLS: r.TLS, Remote: remoteAddr(r)}
		p, err := i.Gate.Authenticate(r.Context(), c)
		if err == nil && p.device != id {
			i.metrics.refused(WrongClientID)
			err = refuse(WrongClientID, "the certificate is %s's: it cannot rotate that of %s", p.device, id)
		}
		if refusal, ok := errors.AsType[*Refusal](err); ok {
			i.Journal.Refused(c, refusal)
			return refusal
		}
		if err != nil {
			return err
		}
	} else if !i.token.Allows(r) {
		bearer.Ask(w)
		problem(w, http.StatusUnauthorized, "this needs the device's present certificate (HTTPS), or the bearer token of the API (http.token)")
		return nil
	}
	var q struct {
		CSR string `json:"csr"`
	}
	if err := requestBody(r, &q.CSR, &q); err != nil {
		return err
	}
	if byDevice && q.CSR == "" {
		return fmt.Errorf("%w: send a certificate signing request: the device's key does not leave it", ErrInvalid)
	}
	pub, key, err := keyOf(q.CSR, id)
	if err != nil {
		return err
	}
	d, chain, err := i.Devices.Rotate(r.Context(), id, pub, time.Now())
	if err != nil {
		return err
	}
	return i.sendIssued(w, r, d, chain, key)
}

func remoteAddr(r *http.Request) net.Addr {
	if a, err := net.ResolveTCPAddr("tcp", r.RemoteAddr); err == nil { // an address, not a name: nothing is asked of DNS
		return a
	}
	return nil
}

// requestBody reads JSON into v, or a body in PEM into csr.
func requestBody(r *http.Request, csr *string, v any) error {
	t, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	switch t {
	case "application/pkcs10", "application/x-pem-file", "text/plain":
		b, err := io.ReadAll(r.Body)
		*csr = string(b)
		return err
	}
	return body(r, v)
}

// sendIssued answers in JSON, or with the chain alone to who asks for PEM.
func (i *Identity) sendIssued(w http.ResponseWriter, r *http.Request, d *Device, chain []*x509.Certificate, key crypto.Signer) error {
	if a := r.Header.Get("Accept"); key == nil && (strings.Contains(a, "application/x-pem-file") || strings.Contains(a, "application/pem-certificate-chain")) {
		w.Header().Set("Content-Type", "application/pem-certificate-chain")
		_, _ = w.Write(EncodeCertificates(chain...))
		return nil
	}
	out, err := i.issuance(d, chain, key)
	if err != nil {
		return err
	}
	return reply(w, http.StatusCreated, out)
}

func (i *Identity) putPassword(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		Password string `json:"password"`
	}
	if err := body(r, &q); err != nil {
		return err
	}
	made := q.Password == ""
	if made {
		b, err := newSerial()
		if err != nil {
			return err
		}
		q.Password = b.Text(62)
	}
	d, err := i.Devices.SetPassword(r.Context(), r.PathValue("id"), q.Password, time.Now())
	if err != nil {
		return err
	}
	out := map[string]any{"device": i.view(d), "passwords_on": i.Gate.passwords != nil}
	if made {
		out["password"] = q.Password
	}
	return reply(w, http.StatusOK, out)
}

func (i *Identity) deletePassword(w http.ResponseWriter, r *http.Request) error {
	d, err := i.Devices.SetPassword(r.Context(), r.PathValue("id"), "", time.Now())
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, i.view(d))
}

func (i *Identity) getDoctor(w http.ResponseWriter, r *http.Request) error {
	return reply(w, http.StatusOK, i.Doctor(r.PathValue("id"), time.Now()))
}

// getJournal answers with all that the doors saw of a device, and with what was refused under its name. The name need not be enrolled.
func (i *Identity) getJournal(w http.ResponseWriter, r *http.Request) error {
	seen, refused := i.Journal.Device(r.PathValue("id"))
	return reply(w, http.StatusOK, map[string]any{
		"departures": listed(seen.Departures), "refusals": listed(refused.Attempts), "rejections": listed(seen.Rejections),
	})
}

// listed is a list that JSON does not show as null.
func listed[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func (i *Identity) getExpiring(w http.ResponseWriter, r *http.Request) error {
	within := i.cfg.Warn
	if s := r.URL.Query().Get("days"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || n > 36500 {
			return fmt.Errorf("%w: days %q: write a number of days", ErrInvalid, s)
		}
		within = time.Duration(n) * 24 * time.Hour
	}
	out := i.Expiring(time.Now(), within)
	if out == nil {
		out = []Expiring{}
	}
	return reply(w, http.StatusOK, map[string]any{"expiring": out})
}

func (i *Identity) getCA(w http.ResponseWriter, _ *http.Request) error {
	type cert struct {
		Subject   string      `json:"subject"`
		Serial    string      `json:"serial"`
		NotBefore time.Time   `json:"not_before"`
		NotAfter  time.Time   `json:"not_after"`
		SHA256    Fingerprint `json:"sha256"`
	}
	show := func(cs []*x509.Certificate) []cert {
		out := []cert{}
		for _, c := range cs {
			out = append(out, cert{c.Subject.String(), c.SerialNumber.Text(16), c.NotBefore, c.NotAfter, FingerprintOf(c)})
		}
		return out
	}
	trusted := map[string][]cert{}
	for name, cs := range i.CA.Trusted() {
		trusted[name] = show(cs)
	}
	var server *cert
	if s := i.CA.Server(); s != nil {
		server = &show([]*x509.Certificate{s})[0]
	}
	return reply(w, http.StatusOK, map[string]any{
		"info": i.CA.Info(), "issuer": show(i.CA.Issuer()), "trusted": trusted, "server": server, "policies": i.Devices.policies.specs,
	})
}

func (i *Identity) getRoot(w http.ResponseWriter, _ *http.Request) error {
	roots := i.CA.Roots()
	if len(roots) == 0 {
		return ErrNoAuthority
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	_, _ = w.Write(EncodeCertificates(roots...))
	return nil
}

func (i *Identity) getCRL(w http.ResponseWriter, _ *http.Request) error {
	der, err := i.RevocationList(time.Now())
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/pkix-crl")
	w.Header().Set("Cache-Control", "max-age=60")
	_, _ = w.Write(der)
	return nil
}

// ocsp answers RFC 6960 requests about certificates that we issued. About others it says "unauthorized", unsigned, as
// section 2.3 has it for whom the responder does not know: signing for strangers would be work for nothing.
func (i *Identity) ocsp(w http.ResponseWriter, r *http.Request) error {
	var b []byte
	var err error
	if r.Method == http.MethodGet {
		b, err = base64.StdEncoding.DecodeString(r.PathValue("request"))
	} else {
		b, err = io.ReadAll(r.Body)
	}
	var q *ocsp.Request
	if err == nil {
		q, err = ocsp.ParseRequest(b)
	}
	w.Header().Set("Content-Type", "application/ocsp-response")
	if err != nil {
		_, err = w.Write(ocsp.MalformedRequestErrorResponse) // that is how RFC 6960 says it
		return err
	}
	answer, err := i.ocspAnswer(q, time.Now())
	if err != nil {
		i.cfg.Log.ErrorContext(r.Context(), "answer OCSP", "error", err)
		answer = ocsp.InternalErrorErrorResponse
	}
	_, _ = w.Write(answer)
	return nil
}

func (i *Identity) ocspAnswer(q *ocsp.Request, now time.Time) ([]byte, error) {
	issuer := i.CA.Issuer()
	if len(issuer) == 0 || !q.HashAlgorithm.Available() {
		return ocsp.UnauthorizedErrorResponse, nil
	}
	key, err := publicKeyBits(issuer[0].RawSubjectPublicKeyInfo)
	if err != nil {
		return nil, err
	}
	name, pub := q.HashAlgorithm.New(), q.HashAlgorithm.New()
	_, _ = name.Write(issuer[0].RawSubject)
	_, _ = pub.Write(key)
	if subtle.ConstantTimeCompare(name.Sum(nil), q.IssuerNameHash) != 1 || subtle.ConstantTimeCompare(pub.Sum(nil), q.IssuerKeyHash) != 1 {
		return ocsp.UnauthorizedErrorResponse, nil
	}
	if s := i.CA.Server(); s != nil && s.SerialNumber.Cmp(q.SerialNumber) == 0 {
		return i.CA.status(q.SerialNumber, nil, q.HashAlgorithm, now)
	}
	i.Devices.mu.RLock()
	f, ok := i.Devices.serials[q.SerialNumber.Text(16)]
	i.Devices.mu.RUnlock()
	_, c := i.Devices.byFingerprint(f)
	if !ok || c == nil {
		return ocsp.UnauthorizedErrorResponse, nil
	}
	var revoked *RevokedCertificate
	if v, is := c.revocation(now); is {
		revoked = &v
	}
	return i.CA.status(q.SerialNumber, revoked, q.HashAlgorithm, now)
}
