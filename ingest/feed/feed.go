// Package feed fetches what others publish at a URL, a GTFS-realtime feed or any other format that Milepost reads, and admits it.
//
// A feed that cannot be fetched or read is tried again at its next turn; the first failure in a row is logged and each is counted.
// A page that has not changed (ETag, Last-Modified) costs nothing.
package feed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/format"
)

// A Source is one feed.
type Source struct {
	Name    string
	URL     string
	Every   time.Duration     // default 15 s
	Headers map[string]string // an API key, for instance
	Format  format.Converter
}

// Config is what a Puller works with. Admit is required.
type Config struct {
	Sources []Source
	Admit   *ingest.Admitter
	Client  *http.Client // nil: one with a timeout of 30 s
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// A Puller fetches feeds until its Run returns.
type Puller struct {
	cfg     Config
	fetches *prometheus.CounterVec
}

// New checks the sources.
func New(cfg Config) (*Puller, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Client == nil {
		cfg.Client = &http.Client{Timeout: 30 * time.Second}
	}
	for i := range cfg.Sources {
		s := &cfg.Sources[i]
		u, err := url.Parse(s.URL)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return nil, fmt.Errorf("feed %s: url %q: write http://… or https://…", s.Name, s.URL)
		}
		if s.Format == nil {
			return nil, fmt.Errorf("feed %s has no format", s.Name)
		}
		if s.Every == 0 {
			s.Every = 15 * time.Second
		}
		if s.Every < time.Second {
			return nil, fmt.Errorf("feed %s: every %s is too often: use at least 1s", s.Name, s.Every)
		}
	}
	p := &Puller{cfg: cfg, fetches: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "milepost_ingest_feed_fetches_total", Help: "Fetches of feeds by outcome: ok, unchanged, error.",
	}, []string{"feed", "outcome"})}
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(p.fetches); err != nil {
			return nil, fmt.Errorf("register metrics of feeds: %w", err)
		}
	}
	return p, nil
}

// Run fetches until ctx ends.
func (p *Puller) Run(ctx context.Context) {
	done := make(chan struct{})
	for i := range p.cfg.Sources {
		go func() { // the loop below waits
			p.follow(ctx, &p.cfg.Sources[i])
			done <- struct{}{}
		}()
	}
	for range p.cfg.Sources {
		<-done
	}
}

func (p *Puller) follow(ctx context.Context, s *Source) {
	door := p.cfg.Admit.Door("feed")
	f := fetcher{p: p, s: s, door: door, out: format.NewOutput(p.cfg.Admit.Catalog())}
	tick := time.NewTicker(s.Every)
	defer tick.Stop()
	for _, outcome := range []string{"ok", "unchanged", "error"} {
		p.fetches.WithLabelValues(s.Name, outcome) // there from the start, so that a rate can be computed
	}
	failing := false
	for {
		outcome, err := f.fetch(ctx)
		if ctx.Err() != nil {
			return
		}
		p.fetches.WithLabelValues(s.Name, outcome).Inc()
		switch {
		case err != nil && !failing:
			p.cfg.Log.WarnContext(ctx, "feed cannot be used; it is tried again", "feed", s.Name, "url", redacted(s.URL), "error", err)
		case err == nil && failing:
			p.cfg.Log.InfoContext(ctx, "feed works again", "feed", s.Name)
		}
		failing = err != nil
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// redacted leaves the query out: it may hold a key.
func redacted(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return ""
	}
	u.RawQuery, u.User = "", nil
	return u.String()
}

type fetcher struct {
	p              *Puller
	s              *Source
	door           *ingest.Door
	out            *format.Output
	receipt        ingest.Receipt
	etag, modified string
}

func (f *fetcher) fetch(ctx context.Context) (outcome string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.s.URL, nil)
	if err != nil {
		return "error", err
	}
	for k, v := range f.s.Headers {
		req.Header.Set(k, v)
	}
	if f.etag != "" {
		req.Header.Set("If-None-Match", f.etag)
	}
	if f.modified != "" {
		req.Header.Set("If-Modified-Since", f.modified)
	}
	resp, err := f.p.cfg.Client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the URL and its key
		}
		return "error", err
	}
	defer func() { _ = resp.Body.Close() }() // it was only read
	switch resp.StatusCode {
	case http.StatusNotModified:
		return "unchanged", nil
	case http.StatusOK:
	default:
		return "error", fmt.Errorf("the server answers %s", resp.Status)
	}
	most := int64(f.p.cfg.Admit.Limits().MaxBody)
	data, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err != nil {
		return "error", fmt.Errorf("read feed: %w", err)
	}
	if int64(len(data)) > most {
		return "error", fmt.Errorf("the feed is larger than %d bytes: raise limits.body", most)
	}
	in := format.Input{Data: data, Now: time.Now(), Query: url.Values{"feed": {f.s.Name}}}
	f.out.Reset()
	if err := f.s.Format.Convert(&in, f.out); err != nil {
		return "error", err
	}
	p := ingest.Payload{Data: f.out.Lines, From: f.s.Name, Body: data}
	for _, b := range f.out.Bad {
		p.Unread = append(p.Unread, ingest.Unread{Line: b.Element, Data: b.Data, Reason: b.Reason})
	}
	if len(p.Data) > 0 || len(p.Unread) > 0 {
		f.door.Admit(context.WithoutCancel(ctx), p, &f.receipt)
		if err := notTaken(&f.receipt); err != nil {
			if f.out.Undo != nil {
				f.out.Undo()
			}
			return "error", err
		}
	}
	f.etag, f.modified = resp.Header.Get("ETag"), resp.Header.Get("Last-Modified")
	return "ok", nil
}

// notTaken tells why the same feed has to be fetched again; nil: it has not.
func notTaken(r *ingest.Receipt) error {
	switch {
	case r.Failed > 0:
		return fmt.Errorf("%d readings were not stored: %w", r.Failed, r.Err)
	case r.DeadLetterErr != nil:
		return fmt.Errorf("what could not be read was not kept: %w", r.DeadLetterErr)
	case r.Throttled > 0:
		return fmt.Errorf("%d readings were over their vehicle's rate: fetch less often, or raise limits.rate_per_device", r.Throttled)
	}
	return nil
}
