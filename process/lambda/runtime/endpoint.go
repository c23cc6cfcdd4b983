package runtime

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/milepost/milepost/internal/webhook"
)

// Headers of a request to a function's URL. The first two are those of an alert's webhook, so that one receiver can check both
// (alert.Verify does).
const (
	SignatureHeader   = webhook.SignatureHeader   // t=UNIX_SECONDS,v1=HEX of HMAC-SHA256(secret, t "." body)
	IdempotencyHeader = webhook.IdempotencyHeader // Request.ID: the same in every repetition
	FunctionHeader    = "Milepost-Function"       // Config.Name
)

// An endpoint is a function behind a URL.
type endpoint struct {
	cfg           Config
	secret        []byte
	authorization string
	client        *http.Client
	stop          context.Context //nolint:containedctx // ended by Close, for every request
	cancel        context.CancelFunc
	slots
	*stats
}

func newEndpoint(c Config, d Deps) (*endpoint, error) {
	e := &endpoint{cfg: c, slots: newSlots(c.Concurrency)}
	secret, err := secretOf("secret", c.Secret, c.SecretFile)
	if err != nil {
		return nil, err
	}
	token, err := secretOf("token", c.Token, c.TokenFile)
	if err != nil {
		return nil, err
	}
	if e.secret = secret; len(token) > 0 {
		e.authorization = "Bearer " + string(token)
	}
	var roots *x509.CertPool
	if c.CAFile != "" {
		b, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		if roots = x509.NewCertPool(); !roots.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("ca_file: %s holds no PEM certificate", c.CAFile)
		}
	}
	e.client = &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			MaxIdleConnsPerHost: c.Concurrency, IdleConnTimeout: 90 * time.Second, ForceAttemptHTTP2: true,
		},
		// A redirect would repeat the event, signature and all, to someone who was not configured.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	e.stop, e.cancel = context.WithCancel(context.Background())
	e.stats = newStats(d.Metrics, c.Name)
	return e, nil
}

func secretOf(what, value, file string) ([]byte, error) {
	switch {
	case file == "":
		return []byte(value), nil
	case value != "":
		return nil, fmt.Errorf("set %s or %[1]s_file, not both", what)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s_file: %w", what, err)
	}
	if b = bytes.TrimSpace(b); len(b) == 0 {
		return nil, fmt.Errorf("%s_file: %s is empty: put the %[1]s into it", what, file)
	}
	return b, nil
}

// Invoke posts the event.
func (e *endpoint) Invoke(ctx context.Context, req *Request) (*Response, error) {
	id, err := req.check()
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := e.enter(); err != nil {
		if errors.Is(err, ErrThrottled) {
			e.throttled()
		}
		return nil, err
	}
	defer e.leave()
	timeout := time.Duration(e.cfg.Timeout)
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer context.AfterFunc(e.stop, cancel)()
	began := time.Now()
	r, err := e.post(limited, id, req, began)
	if err != nil {
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("function was stopped, its caller has gone: %w", ctx.Err())
		case e.stop.Err() != nil:
			return nil, fmt.Errorf("%w in mid-invocation: what it did is unknown", ErrClosed)
		case limited.Err() != nil:
			e.timedOut()
			r = &Response{FunctionError: unhandled, Payload: failure(id, typeTimeout, timeoutText(timeout))}
		case errors.Is(err, ErrThrottled):
			e.throttled()
			return nil, err
		case errors.Is(err, ErrUnreachable):
			return nil, err
		default: // it may have run
			r = &Response{FunctionError: unhandled, Payload: document{ErrorType: "Endpoint.Failed", ErrorMessage: err.Error()}.json()}
		}
	}
	r.Duration = time.Since(began)
	e.ended(r)
	return r, nil
}

func (e *endpoint) post(ctx context.Context, id string, in *Request, now time.Time) (*Response, error) {
	// The transport may read a body after it has answered; the payload is borrowed, so it gets a copy.
	body := bytes.Clone(in.Payload)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.cfg.URL, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	h := req.Header
	h.Set("User-Agent", "Milepost")
	for k, v := range e.cfg.Headers {
		h.Set(k, v)
	}
	h.Set("Content-Type", "application/json")
	h.Set(IdempotencyHeader, id)
	h.Set(FunctionHeader, e.cfg.Name)
	if e.authorization != "" {
		h.Set("Authorization", e.authorization)
	}
	if in.TraceID != "" {
		h.Set("X-Amzn-Trace-Id", in.TraceID)
	}
	if in.ClientContext != "" {
		h.Set("X-Amz-Client-Context", in.ClientContext)
	}
	if len(e.secret) > 0 {
		h.Set(SignatureHeader, webhook.Sign(body, e.secret, now))
	}
	resp, err := e.client.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // a URL may hold a secret
		}
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
			return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		return nil, fmt.Errorf("post: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxPayload+1))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	switch code := resp.StatusCode; {
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable:
		return nil, &ThrottledError{Reason: "the endpoint answered " + resp.Status, After: webhook.RetryAfter(resp.Header.Get("Retry-After"), now)}
	case code >= 300 && code < 400:
		return nil, fmt.Errorf("endpoint answered %s: redirects are not followed: configure %q itself", resp.Status, resp.Header.Get("Location"))
	case code < 200 || code > 299:
		return nil, fmt.Errorf("endpoint answered %s: %.500q", resp.Status, bytes.TrimSpace(answer))
	case len(answer) > maxPayload:
		return &Response{FunctionError: unhandled, Payload: tooLargeDocument()}, nil
	}
	return &Response{Payload: answer}, nil
}

// Status counts the requests.
func (e *endpoint) Status() Status {
	s := e.status()
	s.Limit, s.Busy = e.limit, e.busy()
	return s
}

// Close lets requests under way finish until ctx ends, then breaks them off.
func (e *endpoint) Close(ctx context.Context) error {
	err := e.close(ctx)
	e.cancel()
	<-e.state.drained
	e.client.CloseIdleConnections()
	return err
}
