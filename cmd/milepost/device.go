package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/base32"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/milepost/milepost/device"
	"github.com/milepost/milepost/state/local"
)

const deviceUsage = `write one of
  milepost device enroll ID [--vehicle ID] [--policy NAME] [--out DIR] [--password P12-PASSWORD] [--csr FILE | --certificate FILE | --qr]
  milepost device list [--prefix P] [--status active|disabled|revoked]
  milepost device show|doctor ID
  milepost device set ID [--vehicle ID] [--policy NAME]
  milepost device enable|disable ID
  milepost device revoke ID [--serial HEX] [--reason key_compromise|superseded|cessation]
  milepost device rotate ID [--out DIR] [--csr FILE]
  milepost device password ID [--remove]
  milepost device token create [--device ID | --prefix P --uses N] [--expires 24h] [--policy NAME] [--qr]
  milepost device token list
  milepost device token revoke TOKEN-ID
each with --url http://HOST:PORT (a running server) or --data DIR or --config FILE (a stopped one)`

// deviceCall is one call of 'milepost device'.
type deviceCall struct {
	e   *env
	api *deviceAPI

	vehicle, policy, out, password, csr, certificate, prefix, status, serial, reason, device string
	public                                                                                   string
	qr, legacy, remove, json                                                                 bool
	uses                                                                                     int
	expires                                                                                  time.Duration
}

func runDevice(ctx context.Context, e *env, args []string) error {
	fs := flags(e, "device")
	c := &deviceCall{e: e}
	open := apiFlags(fs)
	fs.StringVar(&c.vehicle, "vehicle", "", "vehicle that the device reports for; default: its id")
	fs.StringVar(&c.policy, "policy", "", "policy; default: own")
	fs.StringVar(&c.out, "out", ".", "enroll, rotate: directory for key and certificate; token, --qr: for the image")
	fs.StringVar(&c.password, "password", "", "enroll, rotate: password of the PKCS#12 file; default: one is made and printed")
	fs.BoolVar(&c.legacy, "legacy-p12", false, "enroll, rotate: write PKCS#12 so that Android before 14 and macOS before 14 read it")
	fs.StringVar(&c.csr, "csr", "", "enroll, rotate: certificate signing request of the device, whose key stays where it is")
	fs.StringVar(&c.certificate, "certificate", "", "enroll: certificate that the device has already, from whomever")
	fs.BoolVar(&c.qr, "qr", false, "enroll, token create: make a one-time token and show its QR code for a phone")
	fs.StringVar(&c.public, "public-url", "", "address in the QR code; default: the authority's (milepost ca init --url)")
	fs.StringVar(&c.prefix, "prefix", "", "list: ids that begin with it; token create: ids that may enrol with it")
	fs.StringVar(&c.status, "status", "", "list: active, disabled or revoked")
	fs.StringVar(&c.serial, "serial", "", "revoke: only the certificate with this serial number")
	fs.StringVar(&c.reason, "reason", "", "revoke: key_compromise, superseded or cessation")
	fs.BoolVar(&c.remove, "remove", false, "password: take it away")
	fs.StringVar(&c.device, "device", "", "token create: the only device that it is for")
	fs.IntVar(&c.uses, "uses", 0, "token create: how many devices may enrol with it; default 1")
	fs.DurationVar(&c.expires, "expires", 24*time.Hour, "token create: how long it can be used")
	fs.BoolVar(&c.json, "json", false, "print the API's answer")
	rest, err := parse(fs, args)
	if err != nil {
		return err
	}
	verb, rest := first(rest)
	if verb == "token" {
		var sub string
		sub, rest = first(rest)
		verb += " " + sub
	}
	run, wants, ok := c.verb(verb)
	if !ok {
		return usagef("%s", deviceUsage)
	}
	if len(rest) != wants {
		return usagef("%s takes %s; %s", verb, plural(wants, "name"), deviceUsage)
	}
	id := ""
	if wants == 1 {
		id = rest[0]
	}
	if c.api, err = open(ctx); err != nil {
		return err
	}
	return errors.Join(run(ctx, id), c.api.close())
}

func (c *deviceCall) verb(name string) (run func(context.Context, string) error, wants int, ok bool) {
	switch name {
	case "enroll":
		return c.enroll, 1, true
	case "list":
		return c.list, 0, true
	case "show":
		return c.show, 1, true
	case "doctor":
		return func(ctx context.Context, id string) error { return doctor(ctx, c.e, c.api, id, c.json) }, 1, true
	case "set":
		return c.set, 1, true
	case "enable":
		return c.setStatus(device.Active), 1, true
	case "disable":
		return c.setStatus(device.Disabled), 1, true
	case "revoke":
		return c.revoke, 1, true
	case "rotate":
		return c.rotate, 1, true
	case "password":
		return c.setPassword, 1, true
	case "token create":
		return func(ctx context.Context, _ string) error { return c.createToken(ctx, c.device) }, 0, true
	case "token list":
		return c.tokens, 0, true
	case "token revoke":
		return c.revokeToken, 1, true
	}
	return nil, 0, false
}

// shownDevice is a device as the API shows it.
type shownDevice struct {
	ID           string               `json:"id"`
	Vehicle      string               `json:"vehicle"`
	Policy       string               `json:"policy"`
	Status       string               `json:"status"`
	Origin       string               `json:"origin"`
	Created      time.Time            `json:"created"`
	Certificates []device.Certificate `json:"certificates"`
	Password     bool                 `json:"password"`
	Connections  int                  `json:"connections"`
	LastConnect  time.Time            `json:"last_connect"`
	LastMessage  time.Time            `json:"last_message"`
	Disconnect   string               `json:"last_disconnect_reason"`
	Ends         time.Time            `json:"certificate_ends"`
	LastRefusal  *device.Attempt      `json:"last_refusal"`
}

// shownIssue is what brings a certificate.
type shownIssue struct {
	Device      shownDevice `json:"device"`
	Certificate string      `json:"certificate"`
	Root        string      `json:"root"`
}

func (c *deviceCall) enroll(ctx context.Context, id string) error {
	if c.qr {
		return c.createToken(ctx, id)
	}
	q := map[string]string{"id": id, "vehicle": c.vehicle, "policy": c.policy}
	if c.certificate != "" {
		b, err := os.ReadFile(c.certificate)
		if err != nil {
			return err
		}
		certs, err := device.ParseCertificates(b)
		if err != nil {
			return fmt.Errorf("%s: %w", c.certificate, err)
		}
		q["certificate"] = string(device.EncodeCertificates(certs...))
		var out shownIssue
		if err := c.api.call(ctx, http.MethodPost, "/v1/devices", q, &out); err != nil {
			return err
		}
		fmt.Fprintf(c.e.stdout, "%s is enrolled with the certificate that it has, serial %s, until %s.\n", id, out.Device.Certificates[0].Serial, out.Device.Ends.Format(time.DateOnly))
		return nil
	}
	return c.issue(ctx, id, http.MethodPost, "/v1/devices", q)
}

func (c *deviceCall) rotate(ctx context.Context, id string) error {
	return c.issue(ctx, id, http.MethodPost, "/v1/devices/"+url.PathEscape(id)+"/rotate", map[string]string{})
}

// issue asks for a certificate and writes it to files. Without --csr the key is made here and does not pass through the server.
func (c *deviceCall) issue(ctx context.Context, id, method, path string, q map[string]string) error {
	var key crypto.Signer
	if c.csr != "" {
		b, err := os.ReadFile(c.csr)
		if err != nil {
			return err
		}
		q["csr"] = string(b)
	} else {
		if err := device.CheckID(id); err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(c.out, id+".key")); err == nil && path == "/v1/devices" {
			return fmt.Errorf("%s is there already: move it away, or choose another directory with --out", filepath.Join(c.out, id+".key"))
		}
		var err error
		if key, err = device.NewKey(); err != nil {
			return err
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			return err
		}
		q["csr"] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	}
	var out shownIssue
	if err := c.api.call(ctx, method, path, q, &out); err != nil {
		return err
	}
	if err := os.MkdirAll(c.out, 0o755); err != nil { //nolint:gosec // the key in it is 0600
		return err
	}
	name := func(ext string) string { return filepath.Join(c.out, id+ext) }
	write := func(file string, b []byte, mode fs.FileMode) error {
		if err := os.WriteFile(file, b, mode); err != nil {
			return err
		}
		fmt.Fprintln(c.e.stdout, "wrote", file)
		return nil
	}
	if err := errors.Join(write(name(".crt"), []byte(out.Certificate), 0o644), write(filepath.Join(c.out, "root.crt"), []byte(out.Root), 0o644)); err != nil {
		return err
	}
	if key != nil {
		if err := c.writeKey(key, &out, name, write); err != nil {
			return err
		}
	}
	fmt.Fprintf(c.e.stdout, "%s reports for vehicle %s with policy %s; its certificate ends on %s.\n", id, out.Device.Vehicle, out.Device.Policy, out.Device.Ends.Format(time.DateOnly))
	return nil
}

func (c *deviceCall) writeKey(key crypto.Signer, out *shownIssue, name func(string) string, write func(string, []byte, fs.FileMode) error) error {
	b, err := device.EncodeKey(key)
	if err != nil {
		return err
	}
	chain, err := device.ParseCertificates([]byte(out.Certificate))
	if err != nil {
		return err
	}
	roots, err := device.ParseCertificates([]byte(out.Root))
	if err != nil {
		return err
	}
	password := c.password
	if password == "" {
		var r [10]byte
		if _, err := rand.Read(r[:]); err != nil {
			return err
		}
		password = strings.ToLower(base32.StdEncoding.EncodeToString(r[:]))
	}
	p12, err := device.PKCS12(key, chain, roots, password, c.legacy)
	if err != nil {
		return err
	}
	if err := errors.Join(write(name(".key"), b, 0o600), write(name(".p12"), p12, 0o600)); err != nil {
		return err
	}
	if c.password == "" {
		fmt.Fprintf(c.e.stdout, "password of %s: %s\n", name(".p12"), password)
	}
	return nil
}

func (c *deviceCall) list(ctx context.Context, _ string) error {
	t := tabwriter.NewWriter(c.e.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "DEVICE\tVEHICLE\tPOLICY\tSTATUS\tCERTIFICATE ENDS\tLAST CONNECT")
	after, n := "", 0
	for {
		var page struct {
			Devices []shownDevice `json:"devices"`
			Next    string        `json:"next"`
		}
		q := url.Values{"prefix": {c.prefix}, "status": {c.status}, "after": {after}, "limit": {"1000"}}
		if err := c.api.call(ctx, http.MethodGet, "/v1/devices?"+q.Encode(), nil, &page); err != nil {
			return err
		}
		for _, d := range page.Devices {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", d.ID, d.Vehicle, d.Policy, d.Status, date(d.Ends), moment(d.LastConnect))
		}
		n += len(page.Devices)
		if after = page.Next; after == "" {
			break
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(c.e.stdout, "(%s)\n", plural(n, "device"))
	return nil
}

func date(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Format(time.DateOnly)
}

func moment(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

func (c *deviceCall) show(ctx context.Context, id string) error {
	return c.printed(ctx, http.MethodGet, id, "", nil)
}

// printed calls the API and prints the device that it answers.
func (c *deviceCall) printed(ctx context.Context, method, id, path string, q any) error {
	var raw json.RawMessage
	if err := c.api.call(ctx, method, "/v1/devices/"+url.PathEscape(id)+path, q, &raw); err != nil {
		return err
	}
	if c.json {
		_, err := fmt.Fprintln(c.e.stdout, string(bytes.TrimSpace(raw)))
		return err
	}
	var d shownDevice
	if err := json.Unmarshal(raw, &d); err != nil {
		return err
	}
	t := tabwriter.NewWriter(c.e.stdout, 0, 8, 2, ' ', 0)
	row := func(k, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", k, cell(fmt.Sprintf(format, args...))) }
	row("device", "%s", d.ID)
	row("vehicle", "%s", d.Vehicle)
	row("policy", "%s", d.Policy)
	row("status", "%s", d.Status)
	row("enrolled", "%s (%s)", moment(d.Created), d.Origin)
	if d.Password {
		row("password", "set")
	}
	for _, x := range d.Certificates {
		note := ""
		switch {
		case !x.Revoked.IsZero():
			note = ", revoked " + moment(x.Revoked)
		case !x.Retires.IsZero():
			note = ", replaced; let in until " + moment(x.Retires)
		}
		row("certificate", "serial %s, until %s%s, issued by %s", x.Serial, date(x.NotAfter), note, x.Issuer)
	}
	row("connections", "%d now, last %s", d.Connections, moment(d.LastConnect))
	row("last message", "%s", moment(d.LastMessage))
	if d.Disconnect != "" {
		row("last disconnect", "%s", d.Disconnect)
	}
	if a := d.LastRefusal; a != nil {
		row("last refusal", "%s: %s: %s", moment(a.At), a.Class, a.Text)
	}
	return t.Flush()
}

func (c *deviceCall) set(ctx context.Context, id string) error {
	q := map[string]string{}
	if c.vehicle != "" {
		q["vehicle"] = c.vehicle
	}
	if c.policy != "" {
		q["policy"] = c.policy
	}
	if len(q) == 0 {
		return usagef("set what? --vehicle or --policy")
	}
	return c.printed(ctx, http.MethodPatch, id, "", q)
}

func (c *deviceCall) setStatus(s device.Status) func(context.Context, string) error {
	return func(ctx context.Context, id string) error {
		return c.printed(ctx, http.MethodPatch, id, "", map[string]device.Status{"status": s})
	}
}

func (c *deviceCall) revoke(ctx context.Context, id string) error {
	return c.printed(ctx, http.MethodPost, id, "/revoke", map[string]string{"serial": c.serial, "reason": c.reason})
}

func (c *deviceCall) setPassword(ctx context.Context, id string) error {
	path := "/v1/devices/" + url.PathEscape(id) + "/password"
	if c.remove {
		return c.api.call(ctx, http.MethodDelete, path, nil, nil)
	}
	var out struct {
		Password string `json:"password"`
		On       bool   `json:"passwords_on"`
	}
	if err := c.api.call(ctx, http.MethodPut, path, map[string]string{"password": c.password}, &out); err != nil {
		return err
	}
	if out.Password != "" {
		fmt.Fprintf(c.e.stdout, "user %s, password %s\n", id, out.Password)
	}
	if !out.On {
		fmt.Fprintln(c.e.stdout, "Passwords are switched off: set devices.passwords: true in the configuration, and restart.")
	}
	return nil
}

func (c *deviceCall) createToken(ctx context.Context, id string) error {
	q := map[string]any{"device": id, "vehicle": c.vehicle, "prefix": c.prefix, "policy": c.policy, "uses": c.uses, "expires_in": c.expires.String()}
	var out struct {
		Token  device.Token `json:"token"`
		Secret string       `json:"secret"`
		URL    string       `json:"url"`
	}
	if err := c.api.call(ctx, http.MethodPost, "/v1/device-tokens", q, &out); err != nil {
		return err
	}
	w := c.e.stdout
	fmt.Fprintf(w, "token %s\n", out.Secret)
	whom := "device " + out.Token.Device
	if out.Token.Device == "" {
		whom = plural(out.Token.Uses, "new device") + " of any id"
		if out.Token.Prefix != "" {
			whom = fmt.Sprintf("%s whose id begins with %q", plural(out.Token.Uses, "new device"), out.Token.Prefix)
		}
	}
	fmt.Fprintf(w, "for %s, until %s; id %s. It is not shown again.\n", whom, moment(out.Token.Expires), out.Token.ID)
	if c.public != "" {
		out.URL = device.EnrolmentURL(c.public, out.Token.Device, out.Secret)
	}
	if out.URL != "" {
		fmt.Fprintf(w, "page for a phone: %s\n", out.URL)
	}
	if !c.qr {
		return nil
	}
	if out.URL == "" {
		return errors.New("a QR code needs this server's public address: milepost ca server --url https://HOST:PORT, or --public-url")
	}
	code, err := device.NewQRCode(out.URL)
	if err != nil {
		return err
	}
	name := id
	if name == "" {
		name = out.Token.ID
	}
	file := filepath.Join(c.out, name+"-enrol.png")
	if err := os.WriteFile(file, code.PNG(), 0o600); err != nil { // it is the token
		return err
	}
	fmt.Fprintf(w, "wrote %s\n%s", file, code.Terminal())
	return nil
}

func (c *deviceCall) tokens(ctx context.Context, _ string) error {
	var out struct {
		Tokens []device.Token `json:"tokens"`
	}
	if err := c.api.call(ctx, http.MethodGet, "/v1/device-tokens", nil, &out); err != nil {
		return err
	}
	t := tabwriter.NewWriter(c.e.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "TOKEN\tFOR\tPOLICY\tUSES LEFT\tUSED\tENDS")
	for _, k := range out.Tokens {
		whom := "device " + k.Device
		if k.Device == "" {
			whom = "new devices " + k.Prefix + "*"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%s\n", k.ID, whom, k.Policy, k.Uses, k.Used, moment(k.Expires))
	}
	return t.Flush()
}

func (c *deviceCall) revokeToken(ctx context.Context, id string) error {
	return c.api.call(ctx, http.MethodDelete, "/v1/device-tokens/"+url.PathEscape(id), nil, nil)
}

// deviceAPI calls the devices API: of a running server, or of one that is opened here on the data directory of a stopped one. So
// every command does the same either way.
type deviceAPI struct {
	client http.Client
	base   string
	token  string
	close  func() error
}

// apiFlags adds the flags that say which, and returns what opens it.
func apiFlags(fs *flagSet) func(context.Context) (*deviceAPI, error) {
	config := dataFlags(fs)
	addr := fs.String("url", "", "address of the running server, for instance http://127.0.0.1:8080")
	token := fs.String("token", os.Getenv("MILEPOST_TOKEN"), "the server's bearer token (http.token); default: $MILEPOST_TOKEN")
	return func(ctx context.Context) (*deviceAPI, error) {
		if *addr != "" {
			return &deviceAPI{base: strings.TrimSuffix(*addr, "/"), token: *token, close: func() error { return nil }}, nil
		}
		cfg, err := config()
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(cfg.Data); err != nil {
			return nil, fmt.Errorf("data directory: %w; name it with --data, or the running server with --url", err)
		}
		return offlineAPI(ctx, cfg)
	}
}

// offlineAPI serves the API to this process alone.
func offlineAPI(ctx context.Context, cfg *Config) (*deviceAPI, error) {
	log := slog.New(slog.DiscardHandler)
	store, err := local.Open(local.Config{Dir: filepath.Join(cfg.Data, "state"), Log: log})
	if err != nil {
		return nil, fmt.Errorf("%w\nIf a server runs on this directory, ask it: --url http://127.0.0.1:8080", err)
	}
	id, err := device.Open(ctx, cfg.Devices.room(cfg.Data, store, log))
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	mux := http.NewServeMux()
	id.Register(mux)
	return &deviceAPI{client: http.Client{Transport: inProcess{mux}}, base: "http://offline", close: store.Close}, nil
}

// call sends q as JSON, if there is one, and reads the answer into out, unless it is nil.
func (a *deviceAPI) call(ctx context.Context, method, path string, q, out any) error {
	var body io.Reader = http.NoBody
	if q != nil {
		b, err := json.Marshal(q)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, body)
	if err != nil {
		return usagef("--url: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	if a.token != "" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return fmt.Errorf("no server answers at %s; start one with 'milepost serve', or work on its data directory with --data (%w)", a.base, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end or given up
	if resp.StatusCode >= 300 {
		return problem(resp)
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

// inProcess is an http.RoundTripper without a network.
type inProcess struct{ handler http.Handler }

// RoundTrip implements http.RoundTripper.
func (t inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	w := &answer{header: http.Header{}, status: http.StatusOK}
	t.handler.ServeHTTP(w, r)
	return &http.Response{
		StatusCode: w.status, Status: http.StatusText(w.status), Header: w.header, Body: io.NopCloser(&w.body), Request: r,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, ContentLength: int64(w.body.Len()),
	}, nil
}

type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(b []byte) (int, error) { return a.body.Write(b) }
