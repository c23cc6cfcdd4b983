package alert

import (
	"errors"
	"fmt"
	"log/slog"
	"net/mail"
	"net/url"
	"slices"
	"strings"

	"github.com/milepost/milepost/process/rule"
)

// A Config says who is told. The zero Config tells the log.
type Config struct {
	Webhooks []Webhook `yaml:"webhooks,omitempty" doc:"HTTP endpoints that each alert is posted to"`
	Email    []Email   `yaml:"email,omitempty" doc:"mail servers and whom they tell"`
	Log      Log       `yaml:"log,omitempty" doc:"the program's own log, which is told unless switched off"`
	Retry    Retry     `yaml:"retry,omitempty" doc:"how often a sink that fails is tried again"`
}

// A Log is the sink that writes to the program's log.
type Log struct {
	Off         bool   `yaml:"off,omitempty" doc:"do not write alerts to the log"`
	MinSeverity string `yaml:"min_severity,omitempty" doc:"milder alerts are not logged; default info: all"`
}

// Validate reports everything that is wrong, each with its field and how to mend it.
func (c *Config) Validate() error {
	var errs []error
	names := map[string]bool{"log": true}
	check := func(kind string, i int, name string, err error) {
		where := fmt.Sprintf("%s[%d]", kind, i)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s.%w", where, err))
		}
		switch {
		case !isSinkName(name):
			errs = append(errs, fmt.Errorf("%s.name: %q: use at most 64 letters, digits, _ and -", where, name))
		case names[name]:
			errs = append(errs, fmt.Errorf("%s.name: %s is taken: give each sink a name of its own", where, name))
		}
		names[name] = true
	}
	for i, w := range c.Webhooks {
		check("webhooks", i, w.name(), w.validate())
	}
	for i, e := range c.Email {
		check("email", i, e.name(), e.validate())
	}
	if err := checkSeverity(c.Log.MinSeverity); err != nil {
		errs = append(errs, fmt.Errorf("log.%w", err))
	}
	r := c.Retry
	if r.Timeout < 0 || r.MinBackoff < 0 || r.MaxBackoff < 0 || r.MaxAge < 0 || r.MaxAttempts < 0 {
		errs = append(errs, errors.New("retry: negative values make no sense: remove them for the defaults"))
	}
	if d := r.withDefaults(); d.MinBackoff > d.MaxBackoff {
		errs = append(errs, fmt.Errorf("retry.min_backoff: %v is more than max_backoff, %v: swap them", d.MinBackoff, d.MaxBackoff))
	}
	return errors.Join(errs...)
}

func isSinkName(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == ""
}

func (w *Webhook) name() string {
	if w.Name == "" {
		return "webhook"
	}
	return w.Name
}

func (e *Email) name() string {
	if e.Name == "" {
		return "email"
	}
	return e.Name
}

func (w *Webhook) validate() error {
	u, err := url.Parse(w.URL)
	switch {
	case w.URL == "":
		return errors.New("url: missing: write https://…")
	case err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http"):
		return errors.New("url: not an address: write https://host/path")
	case w.Secret != "" && w.SecretFile != "":
		return errors.New("secret_file: secret is given too: keep one")
	case w.Secret != "" && len(w.Secret) < 16:
		return errors.New("secret: shorter than 16 bytes: use a longer one, such as openssl rand -hex 32 makes")
	case w.CAFile != "" && u.Scheme == "http":
		return errors.New("ca_file: the url is http: use https")
	}
	for k, v := range w.Headers {
		if k == "" || strings.ContainsAny(k, " :\r\n\t") || strings.ContainsAny(v, "\r\n") {
			return fmt.Errorf("headers: %q is not a header", k)
		}
		if strings.EqualFold(k, SignatureHeader) || strings.EqualFold(k, IdempotencyHeader) || strings.EqualFold(k, "Content-Type") {
			return fmt.Errorf("headers: %s is set by Milepost: remove it", k)
		}
	}
	return checkSeverity(w.MinSeverity)
}

func (e *Email) validate() error {
	switch {
	case e.Host == "":
		return errors.New("host: missing: write smtp.example.com")
	case strings.ContainsAny(e.Host, ":/ "):
		return errors.New("host: a name without port: the port has its own field")
	case e.Port < 0 || e.Port > 65535:
		return fmt.Errorf("port: %d: use 1 to 65535, or nothing for the default", e.Port)
	case !slices.Contains([]string{"", tlsStart, tlsOpportunistic, tlsImplicit, tlsNone}, e.TLS):
		return fmt.Errorf("tls: %q is not known: use starttls, opportunistic, implicit or none", e.TLS)
	case e.Password != "" && e.PasswordFile != "":
		return errors.New("password_file: password is given too: keep one")
	case e.Username == "" && (e.Password != "" || e.PasswordFile != ""):
		return errors.New("username: missing, though there is a password: give both or neither")
	case e.Username != "" && e.TLS == tlsNone:
		return errors.New("tls: none would send the password readable: use starttls or implicit")
	case e.CAFile != "" && e.TLS == tlsNone:
		return errors.New("ca_file: there is no TLS to check: remove it, or tls: none")
	case e.From == "":
		return errors.New("from: missing: write Milepost <alerts@example.com>")
	case len(e.To) == 0:
		return errors.New("to: missing: list at least one address")
	}
	if _, err := mail.ParseAddress(e.From); err != nil {
		return fmt.Errorf("from: %q is not an address: write Milepost <alerts@example.com>", e.From)
	}
	for i, t := range e.To {
		if _, err := mail.ParseAddress(t); err != nil {
			return fmt.Errorf("to[%d]: %q is not an address: write ops@example.com", i, t)
		}
	}
	if u, err := url.Parse(e.URL); e.URL != "" && (err != nil || u.Host == "") {
		return errors.New("url: not an address: write https://milepost.example.com")
	}
	return checkSeverity(e.MinSeverity)
}

func checkSeverity(s string) error {
	if s != "" && rule.Rank(s) < 0 {
		return fmt.Errorf("min_severity: %q is not known: use info, warning or critical", s)
	}
	return nil
}

// Sinks makes the sinks, reading the files that the configuration names.
func (c *Config) Sinks(log *slog.Logger) ([]Sink, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	var out []Sink
	for i, w := range c.Webhooks {
		w.Name = w.name()
		s, err := newWebhook(w)
		if err != nil {
			return nil, fmt.Errorf("webhooks[%d].%w", i, err)
		}
		out = append(out, s)
	}
	for i, e := range c.Email {
		e.Name = e.name()
		s, err := newEmail(e)
		if err != nil {
			return nil, fmt.Errorf("email[%d].%w", i, err)
		}
		out = append(out, s)
	}
	if !c.Log.Off {
		out = append(out, &logSink{log: log})
	}
	return out, nil
}

// Route returns the names of the sinks that are told of alerts of a severity: Info.Sinks. Compute it once per severity.
func (c *Config) Route(severity string) []string {
	var out []string
	add := func(name, min string) {
		if rule.Rank(severity) >= rule.Rank(min) {
			out = append(out, name)
		}
	}
	for _, w := range c.Webhooks {
		add(w.name(), w.MinSeverity)
	}
	for _, e := range c.Email {
		add(e.name(), e.MinSeverity)
	}
	if !c.Log.Off {
		add("log", c.Log.MinSeverity)
	}
	return out
}
