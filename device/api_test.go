package device

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"software.sslmate.com/src/go-pkcs12"
)

// An apiServer is the API over TLS, as devices and people reach it.
type apiServer struct {
	t     *testing.T
	base  string
	roots *x509.CertPool
}

func newAPI(t *testing.T, i *Identity) *apiServer {
	mux := http.NewServeMux()
	i.Register(mux)
	s := httptest.NewUnstartedServer(mux)
	s.Listener = tls.NewListener(s.Listener, i.TLSConfig()) // not StartTLS, which serves a certificate of its own
	s.Start()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(i.CA.Roots()[0])
	return &apiServer{t, "https://" + s.Listener.Addr().String(), roots}
}

func (a *apiServer) do(method, path, body string, who *pair, headers ...string) (int, string) {
	a.t.Helper()
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.roots}}
	defer tr.CloseIdleConnections()
	if who != nil {
		tr.TLSClientConfig.Certificates = who.tls()
	}
	r, err := http.NewRequestWithContext(a.t.Context(), method, a.base+path, strings.NewReader(body))
	ok(a.t, err)
	for n := 0; n < len(headers); n += 2 {
		r.Header.Set(headers[n], headers[n+1])
	}
	resp, err := (&http.Client{Transport: tr}).Do(r)
	ok(a.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	ok(a.t, err)
	return resp.StatusCode, string(b)
}

func quote(t *testing.T, s string) string {
	b, err := json.Marshal(s)
	ok(t, err)
	return string(b)
}

// A device's life over HTTPS: a token, a request, a certificate, rotation by it, revocation; its key is never sent.
func TestLifeOverHTTPS(t *testing.T) {
	i, _, _ := newIdentity(t, func(c *Config) { c.Token = "sesame" })
	api := newAPI(t, i)
	admin := []string{"Authorization", "Bearer sesame"}
	status, body := api.do("POST", "/v1/device-tokens", `{"device":"truck-17"}`, nil, admin...)
	var tok struct{ Secret, URL string }
	ok(t, json.Unmarshal([]byte(body), &tok))
	if status != 201 || !strings.HasPrefix(tok.URL, "https://milepost.test:8443/v1/devices/enroll?device=truck-17&token=mpt_") {
		t.Fatalf("%d %s", status, body)
	}
	key, err := NewKey()
	ok(t, err)
	status, body = api.do("POST", "/v1/devices/enroll", fmt.Sprintf(`{"token":%q,"csr":%s}`, tok.Secret, quote(t, string(request(t, key, "truck-17")))), nil)
	var issued struct{ Certificate, Key, Root string }
	ok(t, json.Unmarshal([]byte(body), &issued))
	if status != 201 || issued.Key != "" {
		t.Fatalf("%d %s", status, body)
	}
	chain, err := ParseCertificates([]byte(issued.Certificate))
	ok(t, err)
	me := &pair{key, chain}

	next, err := NewKey()
	ok(t, err)
	status, body = api.do("POST", "/v1/devices/truck-17/rotate", string(request(t, next, "truck-17")), me, "Content-Type", "application/pkcs10", "Accept", "application/pem-certificate-chain")
	if status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	chain, err = ParseCertificates([]byte(body))
	ok(t, err)
	for _, p := range []pair{*me, {next, chain}} { // both are let in
		if _, err := i.Gate.Authenticate(t.Context(), with(p, "truck-17")); err != nil {
			t.Error(err)
		}
	}
	enroll(t, i, "truck-18")
	if status, body = api.do("POST", "/v1/devices/truck-18/rotate", string(request(t, next, "truck-18")), me, "Content-Type", "application/pkcs10"); status != 403 {
		t.Errorf("another device's rotation: %d %s", status, body)
	}
	if status, body = api.do("POST", "/v1/devices/truck-17/rotate", `{}`, nil); status != 401 {
		t.Errorf("rotation by nobody: %d %s", status, body)
	}
	if status, body = api.do("POST", "/v1/devices/truck-17/rotate", `{}`, me); status != 400 {
		t.Errorf("a device that brings no request: %d %s", status, body)
	}
	if status, body = api.do("POST", "/v1/devices/truck-17/revoke", `{"reason":"key_compromise"}`, nil, admin...); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	if status, body = api.do("POST", "/v1/devices/truck-17/rotate", string(request(t, next, "truck-17")), &pair{next, chain}, "Content-Type", "application/pkcs10"); status != 403 || !strings.Contains(body, "revoked") {
		t.Errorf("rotation after the revocation: %d %s", status, body)
	}
	status, body = api.do("GET", "/v1/devices/truck-17/doctor", "", nil, admin...)
	if status != 200 || !strings.Contains(body, `"verdict":"revoked"`) {
		t.Errorf("%d %s", status, body)
	}
	_, body = api.do("GET", "/v1/devices/truck-17", "", nil, admin...)
	if strings.Contains(body, "argon2") || !strings.Contains(body, `"status":"revoked"`) || !strings.Contains(body, "last_refusal") {
		t.Errorf("%s", body)
	}
}

// What administers needs the token; what is public does not; a page of another site gets nowhere.
func TestAPIIsProtected(t *testing.T) {
	i, _, _ := newIdentity(t, func(c *Config) { c.Token = "sesame" })
	enroll(t, i, "truck-17")
	api := newAPI(t, i)
	for _, r := range []string{
		"GET /v1/devices", "POST /v1/devices", "GET /v1/devices/expiring", "GET /v1/devices/truck-17", "PATCH /v1/devices/truck-17", "GET /v1/devices/truck-17/doctor",
		"POST /v1/devices/truck-17/revoke", "POST /v1/devices/truck-17/rotate", "PUT /v1/devices/truck-17/password", "DELETE /v1/devices/truck-17/password",
		"GET /v1/device-tokens", "POST /v1/device-tokens", "DELETE /v1/device-tokens/x", "GET /v1/ca",
	} {
		method, path, _ := strings.Cut(r, " ")
		for _, h := range [][]string{nil, {"Authorization", "Bearer wrong"}, {"Authorization", "sesame"}} {
			if status, body := api.do(method, path, "", nil, h...); status != 401 {
				t.Errorf("%s with %v: %d %s", r, h, status, body)
			}
		}
	}
	for _, path := range []string{"/v1/ca/root.crt", "/v1/ca/crl"} {
		if status, _ := api.do("GET", path, "", nil); status != 200 {
			t.Errorf("%s: %d", path, status)
		}
	}
	open, _, _ := newIdentity(t, nil)
	if status, _ := newAPI(t, open).do("POST", "/v1/devices", `{"id":"x"}`, nil, "Sec-Fetch-Site", "cross-site", "Origin", "https://evil.example"); status != 403 {
		t.Errorf("from another site's page: %d", status)
	}
	if status, _ := newAPI(t, open).do("POST", "/v1/devices", `{"id":"x"}`, nil); status != 201 {
		t.Errorf("without a token configured: %d", status)
	}
}

func TestAPIMistakes(t *testing.T) {
	i, _, _ := newIdentity(t, nil)
	enroll(t, i, "truck-17")
	api := newAPI(t, i)
	for _, tc := range []struct {
		request, body string
		status        int
		says          string
	}{
		{"GET /v1/devices/none", "", 404, "no such device"},
		{"POST /v1/devices", `{"id":"truck-17"}`, 409, "enrolled already"},
		{"POST /v1/devices", `{"id":"a/b"}`, 400, "write 1 to 128"},
		{"POST /v1/devices", `{"id":"enroll"}`, 400, "path of the API"},
		{"POST /v1/devices", `{"id":"x","policy":"none"}`, 400, "there are own"},
		{"POST /v1/devices", `{"id":"x","csr":"nonsense"}`, 400, "PKCS#10"},
		{"POST /v1/devices", `{"idd":"x"}`, 400, "unknown field"},
		{"POST /v1/devices", `{"id":"` + strings.Repeat("x", maxBody) + `"}`, 413, "larger than"},
		{"POST /v1/devices/enroll", `{"csr":"x"}`, 403, "token"},
		{"POST /v1/devices/truck-17/revoke", `{"reason":"whim"}`, 400, "key_compromise"},
		{"POST /v1/devices/truck-17/revoke", `{"serial":"77"}`, 400, "no certificate with serial 77"},
		{"PATCH /v1/devices/truck-17", `{"status":"revoked"}`, 400, "active or disabled"},
		{"PUT /v1/devices/truck-17/password", `{"password":"short"}`, 400, "12 to 256"},
		{"GET /v1/devices?limit=0", "", 400, "1 to 1000"},
		{"GET /v1/devices/enroll?token=x", "", 403, "not known"},
		{"POST /v1/device-tokens", `{"expires_in":"soon"}`, 400, "24h"},
		{"DELETE /v1/device-tokens/x", "", 404, "token x"},
	} {
		method, path, _ := strings.Cut(tc.request, " ")
		status, body := api.do(method, path, tc.body, nil)
		if status != tc.status || !strings.Contains(body, tc.says) {
			t.Errorf("%s %.60s: %d %s", tc.request, tc.body, status, body)
		}
	}
}

// A phone scans the code, looks at the page as often as it likes, and gets its file once.
func TestPhone(t *testing.T) {
	i, _, _ := newIdentity(t, nil)
	api := newAPI(t, i)
	secret := token(t, i, TokenRequest{Device: "phone-1"})
	u, err := url.Parse(EnrolmentURL(api.base, "phone-1", secret))
	ok(t, err)
	for range 2 {
		if status, body := api.do("GET", u.RequestURI(), "", nil); status != 200 || !strings.Contains(body, "Enrol phone-1") {
			t.Fatalf("%d %s", status, body)
		}
	}
	form := url.Values{"token": {secret}, "format": {"p12"}, "password": {"geheim"}}.Encode()
	status, body := api.do("POST", "/v1/devices/enroll", form, nil, "Content-Type", "application/x-www-form-urlencoded")
	if status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	_, leaf, above, err := pkcs12.DecodeChain([]byte(body), "geheim")
	ok(t, err)
	if len(above) != 2 {
		t.Errorf("%d certificates above", len(above))
	}
	_, err = i.Gate.Authenticate(t.Context(), with(pair{nil, []*x509.Certificate{leaf}}, "phone-1"))
	ok(t, err)
	if status, _ := api.do("POST", "/v1/devices/enroll", form, nil, "Content-Type", "application/x-www-form-urlencoded"); status != 403 {
		t.Errorf("a second time: %d", status)
	}
	if status, _ := api.do("GET", u.RequestURI(), "", nil); status != 403 {
		t.Errorf("the page afterwards: %d", status)
	}
	code, err := NewQRCode(u.String())
	ok(t, err)
	if !bytes.HasPrefix(code.PNG(), []byte("\x89PNG")) || strings.Count(code.Terminal(), "\n") < 15 {
		t.Error("no code")
	}
}

func TestPages(t *testing.T) {
	i, _, _ := newIdentity(t, nil)
	for n := range 25 {
		_, err := i.Devices.SetPassword(t.Context(), fmt.Sprintf("d-%02d", n), "", time.Now())
		if err == nil {
			t.Fatal("a password is taken away from nobody")
		}
		_, _, err = i.Devices.Enroll(t.Context(), Enrolment{ID: fmt.Sprintf("d-%02d", n)}, time.Now())
		ok(t, err)
	}
	api := newAPI(t, i)
	var all []string
	for after, n := "", 0; n < 10; n++ {
		_, body := api.do("GET", "/v1/devices?limit=10&prefix=d-&after="+after, "", nil)
		var page struct {
			Devices []struct{ ID string }
			Next    string
		}
		ok(t, json.Unmarshal([]byte(body), &page))
		for _, d := range page.Devices {
			all = append(all, d.ID)
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if len(all) != 25 || all[0] != "d-00" || all[24] != "d-24" {
		t.Errorf("%v", all)
	}
}

// A list is narrowed by part of a name and by when certificates end; the journal is whole, and there for names that nobody enrolled.
func TestFindAndJournal(t *testing.T) {
	i, _, _ := newIdentity(t, nil)
	now := time.Now()
	for _, d := range []struct {
		id, vehicle string
		at          time.Time
	}{{"truck-17", "", now}, {"tracker-2", "Truck-9", now.AddDate(0, 0, -350)}, {"van-1", "", now.AddDate(0, 0, -380)}} {
		key, err := NewKey()
		ok(t, err)
		_, _, err = i.Devices.Enroll(t.Context(), Enrolment{ID: d.id, Vehicle: d.vehicle, Key: key.Public()}, d.at)
		ok(t, err)
	}
	api := newAPI(t, i)
	for query, want := range map[string]string{
		"q=truck": "tracker-2 truck-17", "q=TRUCK&limit=1": "tracker-2 …", "q=17": "truck-17", "q=none": "", "ends_within=30": "tracker-2 van-1",
		"ends_within=30&q=van": "van-1", "q=truck&after=tracker-2": "truck-17",
	} {
		_, body := api.do("GET", "/v1/devices?"+query, "", nil)
		var page struct {
			Devices []struct{ ID string }
			Next    string
		}
		ok(t, json.Unmarshal([]byte(body), &page))
		var got []string
		for _, d := range page.Devices {
			got = append(got, d.ID)
		}
		if page.Next != "" {
			got = append(got, "…")
		}
		if g := strings.Join(got, " "); g != want {
			t.Errorf("%s: %q, want %q", query, g, want)
		}
	}
	if status, body := api.do("GET", "/v1/devices?ends_within=soon", "", nil); status != 400 {
		t.Errorf("ends_within=soon: %d %s", status, body)
	}
	i.Journal.Refused(&Credentials{ClientID: "nobody"}, &Refusal{NotEnrolled, "not enrolled"})
	_, body := api.do("GET", "/v1/devices/nobody/journal", "", nil)
	var j struct {
		Departures []Departure
		Refusals   []Attempt
		Rejections []Rejection
	}
	ok(t, json.Unmarshal([]byte(body), &j))
	if j.Departures == nil || j.Rejections == nil || len(j.Refusals) != 1 || j.Refusals[0].Class != NotEnrolled {
		t.Errorf("journal %s", body)
	}
}
