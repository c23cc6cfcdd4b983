package alert

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/milepost/milepost/internal/webhook"
)

// Headers of a webhook request.
const (
	SignatureHeader   = webhook.SignatureHeader   // t=UNIX_SECONDS,v1=HEX of HMAC-SHA256(secret, t "." body)
	IdempotencyHeader = webhook.IdempotencyHeader // Notification.ID: the same in every repetition
)

// A Webhook posts each notification as JSON.
type Webhook struct {
	Name        string            `yaml:"name,omitempty" doc:"default webhook"`
	URL         string            `yaml:"url" doc:"https://… or http://…"`
	Secret      string            `yaml:"secret,omitempty" doc:"signs requests; without one they are not signed"`
	SecretFile  string            `yaml:"secret_file,omitempty" doc:"instead: a file that holds it"`
	CAFile      string            `yaml:"ca_file,omitempty" doc:"PEM of the authority that signed the receiver's certificate; default the system's"`
	Headers     map[string]string `yaml:"headers,omitempty" doc:"further headers, such as Authorization"`
	MinSeverity string            `yaml:"min_severity,omitempty" doc:"milder alerts are not sent; default info: all"`
}

type webhookSink struct {
	name, url string
	secret    []byte
	headers   map[string]string
	client    *http.Client
}

func newWebhook(c Webhook) (*webhookSink, error) {
	s := &webhookSink{name: c.Name, url: c.URL, headers: c.Headers, secret: []byte(c.Secret)}
	if c.SecretFile != "" {
		b, err := os.ReadFile(c.SecretFile)
		if err != nil {
			return nil, fmt.Errorf("secret_file: %w", err)
		}
		if s.secret = bytes.TrimSpace(b); len(s.secret) == 0 {
			return nil, fmt.Errorf("secret_file: %s is empty: put the secret into it", c.SecretFile)
		}
	}
	roots, err := readCA(c.CAFile)
	if err != nil {
		return nil, err
	}
	s.client = &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			MaxIdleConnsPerHost: 1, IdleConnTimeout: 90 * time.Second, ForceAttemptHTTP2: true,
		},
		// A redirect would repeat the request, signature and all, to someone who was not configured.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return s, nil
}

// readCA reads a PEM file; "" means the system's authorities.
func readCA(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil //nolint:nilnil // nil is what tls.Config wants for the system's
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("ca_file: %s holds no PEM certificate", file)
	}
	return pool, nil
}

// Name is the name that the configuration gives.
func (s *webhookSink) Name() string { return s.name }

// Send posts the notification as JSON, signed if there is a secret. Its ID lets the receiver recognize a second delivery.
func (s *webhookSink) Send(ctx context.Context, n Notification) error {
	body, err := json.Marshal(n)
	if err != nil {
		return &RefusedError{err}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return &RefusedError{err}
	}
	req.Header.Set("User-Agent", "Milepost")
	for k, v := range s.headers {
		req.Header.Set(k, v)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(IdempotencyHeader, n.ID)
	if len(s.secret) > 0 {
		req.Header.Set(SignatureHeader, Sign(body, s.secret, time.Now()))
	}
	resp, err := s.client.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // the URL of a chat service is a secret
		}
		return fmt.Errorf("post: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	// Only for the message, and so that the connection can be used again.
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	return judgeResponse(resp, answer, time.Now())
}

func judgeResponse(resp *http.Response, answer []byte, now time.Time) error {
	code := resp.StatusCode
	if code >= 200 && code < 300 {
		return nil
	}
	err := fmt.Errorf("receiver answered %s: %.200q", resp.Status, bytes.TrimSpace(answer))
	switch {
	case code >= 300 && code < 400:
		return &RefusedError{fmt.Errorf("receiver answered %s: redirects are not followed: configure %q itself", resp.Status, resp.Header.Get("Location"))}
	case code >= 500, code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code == http.StatusTooEarly:
		if after := webhook.RetryAfter(resp.Header.Get("Retry-After"), now); after > 0 {
			return &BusyError{After: after, Err: err}
		}
		return err
	}
	return &RefusedError{err}
}

// Sign returns the value of SignatureHeader for a body sent at a moment.
func Sign(body, secret []byte, at time.Time) string { return webhook.Sign(body, secret, at) }

// Tolerance is the usual age at which receivers stop believing a signature, against replay.
const Tolerance = webhook.Tolerance

// Verify is for receivers of webhooks: it checks that body was signed with secret, not longer than tolerance before or after
// now. header is the request's SignatureHeader, body its bytes as they came, before any JSON decoding.
func Verify(header string, body, secret []byte, tolerance time.Duration, now time.Time) error {
	return webhook.Verify(header, body, secret, tolerance, now)
}
