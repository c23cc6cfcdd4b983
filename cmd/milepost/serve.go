package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/milepost/milepost/internal/conf"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process/rule"
	"github.com/milepost/milepost/query"
)

func runServe(ctx context.Context, e *env, args []string) error {
	fs := flags(e, "serve")
	path := fs.String("config", "", "configuration file; without one, defaults")
	if rest, err := parse(fs, args); err != nil {
		return err
	} else if len(rest) > 0 {
		return usagef("unexpected %q", rest[0])
	}
	cfg, err := loadConfig(*path)
	if err != nil {
		return &usageError{err}
	}
	log := newLogger(e.stderr, cfg.Log)
	s, err := openServer(ctx, cfg, vfs.Disk, log)
	if err != nil {
		return err
	}
	log.InfoContext(ctx, "serving", "http", s.listener.Addr().String(), "mqtt", cfg.MQTT.Listen, "kinesis", cfg.Kinesis.Listen, "data", cfg.Data)
	return s.run(ctx)
}

func newLogger(w io.Writer, c LogConfig) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo // Validate has checked it
	}
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// runCheck validates everything that can be known without starting, and prints what would run.
func runCheck(ctx context.Context, e *env, args []string) error {
	fs := flags(e, "check")
	path := fs.String("config", "", "configuration file; without one, defaults")
	full := fs.Bool("full", false, "print the whole effective configuration too, as a configuration (secrets are left out)")
	rest, err := parse(fs, args)
	if err != nil {
		return err
	}
	if len(rest) == 1 && *path == "" {
		*path = rest[0]
	}
	cfg, err := loadConfig(*path)
	if err != nil {
		return &usageError{err}
	}
	specs, err := cfg.Rules.specs()
	if err != nil {
		return &usageError{err}
	}
	rules, err := rule.Compile(specs, cfg.catalog())
	if err != nil {
		return &usageError{err}
	}
	prepared := cfg.prepareQueries(ctx)
	if prepared != nil && !errors.Is(prepared, query.ErrNotBuilt) {
		return &usageError{prepared}
	}
	if _, err := cfg.Alerts.Sinks(slog.New(slog.DiscardHandler)); err != nil {
		return &usageError{fmt.Errorf("alerts.%w", err)}
	}
	for _, f := range []string{cfg.MQTT.TLS.Cert, cfg.MQTT.TLS.Key} {
		if f != "" {
			if _, err := os.Stat(f); err != nil {
				return &usageError{fmt.Errorf("mqtt.tls: %w", err)}
			}
		}
	}
	t := tabwriter.NewWriter(e.stdout, 0, 8, 2, ' ', 0)
	comment := ""
	if *full {
		comment = "# " // so that the whole output is a configuration
	}
	row := func(k, format string, args ...any) {
		fmt.Fprintf(t, "%s%s\t%s\n", comment, k, fmt.Sprintf(format, args...))
	}
	row("data", "%s", cfg.Data)
	row("http", "%s", cfg.HTTP.Listen)
	row("mqtt", "%s", orNone(cfg.MQTT.Listen))
	if cfg.MQTT.TLS.Cert != "" {
		row("mqtt over TLS", "%s", cfg.MQTT.TLS.Listen)
	}
	row("kinesis", "%s", orNone(cfg.Kinesis.Listen))
	if _, err := cfg.Kinesis.keys(); err != nil {
		return &usageError{err}
	}
	row("stream", "%d shards at creation, kept %s", cfg.Stream.Shards, cfg.Stream.Retention)
	kept := "for ever"
	if cfg.Archive.Retention > 0 {
		kept = cfg.Archive.Retention.String()
	}
	row("archive", "Parquet after %s or %d rows, kept %s", cfg.Archive.FlushAge, cfg.Archive.FlushRows, kept)
	sql := "yes"
	if !sqlBuilt() {
		sql = "not in this build (CGO_ENABLED=0)"
	}
	row("sql", "%s", sql)
	for i := range rules.Len() {
		s := rules.Spec(i) // with its defaults
		state := s.When
		if s.Kind == rule.Offline {
			state = "silent for " + conf.Duration(s.Silence).String()
		}
		if s.For > 0 {
			state += " for " + conf.Duration(s.For).String()
		}
		if s.Disabled {
			state += " (disabled)"
		}
		row("rule "+s.Name, "%s: %s", cmp.Or(s.Severity, rule.Warning), state)
	}
	for _, sev := range []string{rule.Info, rule.Warning, rule.Critical} {
		row("alerts "+sev, "to %s", orNone(strings.Join(cfg.Alerts.Route(sev), ", ")))
	}
	cfg.plan(row)
	if prepared != nil {
		row("note", "a server of this build does not start: %v", prepared)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if *full {
		text, err := conf.Effective(cfg.redacted())
		if err != nil {
			return err
		}
		fmt.Fprintf(e.stdout, "\n%s", text)
	}
	return nil
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// hidden is printed in place of a secret, and is refused as one: a printed configuration that is used as it is would set it.
const hidden = "(set)"

// redacted returns a copy whose secrets are replaced, to be printed.
func (c *Config) redacted() *Config {
	r := *c
	if r.HTTP.Token != "" {
		r.HTTP.Token = hidden
	}
	r.MQTT.Users = hideValues(c.MQTT.Users)
	r.Kinesis.AccessKeys = append(r.Kinesis.AccessKeys[:0:0], c.Kinesis.AccessKeys...)
	for i := range r.Kinesis.AccessKeys {
		r.Kinesis.AccessKeys[i].Secret = hidden
	}
	r.Alerts.Webhooks = append(r.Alerts.Webhooks[:0:0], c.Alerts.Webhooks...)
	for i := range r.Alerts.Webhooks {
		if r.Alerts.Webhooks[i].Secret != "" {
			r.Alerts.Webhooks[i].Secret = hidden
		}
		r.Alerts.Webhooks[i].Headers = hideValues(r.Alerts.Webhooks[i].Headers)
	}
	r.Alerts.Email = append(r.Alerts.Email[:0:0], c.Alerts.Email...)
	for i := range r.Alerts.Email {
		if r.Alerts.Email[i].Password != "" {
			r.Alerts.Email[i].Password = hidden
		}
	}
	r.Formats.OwnTracksKeys = hideValues(c.Formats.OwnTracksKeys)
	r.Functions = maps.Clone(c.Functions)
	for name, f := range r.Functions {
		f.Environment = hideValues(f.Environment)
		f.Headers = hideValues(f.Headers)
		for _, secret := range []*string{&f.Secret, &f.Token} {
			if *secret != "" {
				*secret = hidden
			}
		}
		r.Functions[name] = f
	}
	r.Bridges = maps.Clone(c.Bridges)
	for name, b := range r.Bridges {
		if b.Password != "" {
			b.Password = hidden
		}
		r.Bridges[name] = b
	}
	r.Feeds = maps.Clone(c.Feeds)
	for name, f := range r.Feeds {
		f.Headers = hideValues(f.Headers)
		r.Feeds[name] = f
	}
	return &r
}

// hideValues replaces every value: those of headers and keys are secrets more often than not.
func hideValues(m map[string]string) map[string]string {
	out := map[string]string{}
	for k := range m {
		out[k] = hidden
	}
	return out
}

// secretsHidden returns the keys whose secret is only its replacement.
func (c *Config) secretsHidden() []string {
	var keys []string
	look := func(secret, format string, args ...any) {
		if secret == hidden {
			keys = append(keys, fmt.Sprintf(format, args...))
		}
	}
	look(c.HTTP.Token, "http.token")
	for _, u := range slices.Sorted(maps.Keys(c.MQTT.Users)) {
		look(c.MQTT.Users[u], "mqtt.users.%s", u)
	}
	for i := range c.Alerts.Webhooks {
		w := &c.Alerts.Webhooks[i]
		look(w.Secret, "alerts.webhooks[%d].secret", i)
		for _, k := range slices.Sorted(maps.Keys(w.Headers)) {
			look(w.Headers[k], "alerts.webhooks[%d].headers.%s", i, k)
		}
	}
	for i := range c.Alerts.Email {
		look(c.Alerts.Email[i].Password, "alerts.email[%d].password", i)
	}
	for i := range c.Kinesis.AccessKeys {
		look(c.Kinesis.AccessKeys[i].Secret, "kinesis.access_keys[%d].secret", i)
	}
	for _, v := range slices.Sorted(maps.Keys(c.Formats.OwnTracksKeys)) {
		look(c.Formats.OwnTracksKeys[v], "formats.owntracks_keys.%s", v)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Functions)) {
		look(c.Functions[name].Secret, "functions.%s.secret", name)
		look(c.Functions[name].Token, "functions.%s.token", name)
		for _, k := range slices.Sorted(maps.Keys(c.Functions[name].Headers)) {
			look(c.Functions[name].Headers[k], "functions.%s.headers.%s", name, k)
		}
		for _, k := range slices.Sorted(maps.Keys(c.Functions[name].Environment)) {
			look(c.Functions[name].Environment[k], "functions.%s.environment.%s", name, k)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Bridges)) {
		look(c.Bridges[name].Password, "bridges.%s.password", name)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Feeds)) {
		for _, k := range slices.Sorted(maps.Keys(c.Feeds[name].Headers)) {
			look(c.Feeds[name].Headers[k], "feeds.%s.headers.%s", name, k)
		}
	}
	return keys
}
