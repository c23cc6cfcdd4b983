// Package web is Milepost's face: the HTTP API under /v1, the live feed by server-sent events, and the dashboard, a single
// page with its map in the binary.
//
// It knows the rest of the program only through the small interfaces of sources.go, any of which may be missing: the parts
// of the API that need it then answer 501 and the dashboard says so. It holds no state of its own but the live hub's copy of
// the vehicles' points. docs/api.md lists the routes.
package web

import (
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/query"
	"github.com/milepost/milepost/telemetry"
	"github.com/milepost/milepost/web/basemap"
)

// A Config says what the server shows and where it gets it from. The zero value serves an empty dashboard.
type Config struct {
	Vehicles    Vehicles           // latest states; nil: /v1/vehicles answers 501
	Live        Live               // the feed's source; nil: the feed carries no vehicles
	Alerts      Alerts             // nil: /v1/alerts answers 501
	SQL         query.Engine       // nil: SQL, charts and trails answer 501
	Pipeline    Pipeline           // nil: /v1/pipeline answers 501
	DeadLetters DeadLetters        // nil: /v1/deadletters answers 501
	Catalog     *telemetry.Catalog // units and plausible ranges for charts; nil: the well-known signals

	Title   string // shown in the page's head; default "Milepost"
	TileURL string // an optional raster or vector tile template over the base map: https://…/{z}/{x}/{y}.png (or .pbf, .mvt)
	PMTiles string // or the URL of a PMTiles archive
	TileBy  string // who must be credited for them, plain text

	LiveInterval  time.Duration // how often the feed sends what moved; default 1 s: devices rarely report more often
	StatsInterval time.Duration // how often it sends rates; default 2 s
	WriteTimeout  time.Duration // a browser that takes nothing for so long is dropped and reconnects; default 30 s
	MaxClients    int           // feeds at once, further ones are told to come back; default 1000
	SQLLimits     query.Limits  // ceilings for /v1/sql; zero fields: 30 s, 10,000 rows
	MaxQueries    int           // queries of this server at once, charts included; default 4, more would starve ingest

	Log      *slog.Logger          // default: discard
	Registry prometheus.Registerer // nil: no metrics are registered
}

// The defaults of Config.
const (
	defaultTitle         = "Milepost"
	defaultLiveInterval  = time.Second
	defaultStatsInterval = 2 * time.Second
	defaultWriteTimeout  = 30 * time.Second
	defaultMaxClients    = 1000
	defaultSQLTimeout    = 30 * time.Second
	defaultSQLRows       = 10_000
	defaultMaxQueries    = 4
)

func (c *Config) fill() {
	set(&c.Title, defaultTitle)
	set(&c.LiveInterval, defaultLiveInterval)
	set(&c.StatsInterval, defaultStatsInterval)
	set(&c.WriteTimeout, defaultWriteTimeout)
	set(&c.MaxClients, defaultMaxClients)
	set(&c.SQLLimits.Timeout, defaultSQLTimeout)
	set(&c.SQLLimits.Rows, defaultSQLRows)
	set(&c.MaxQueries, defaultMaxQueries)
	if c.Catalog == nil {
		c.Catalog = telemetry.NewCatalog()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

func set[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// A Server answers HTTP. Close it before shutting the http.Server down: open feeds end then.
type Server struct {
	cfg          Config
	handler      http.Handler
	hub          *hub
	outlineAsset *asset
	assets       *assets
	tiles        *basemap.Tiles
	metrics      *metrics
	queries      chan struct{} // one token per running query
}

// New returns the server. Its only goroutine feeds the live hub and ends in Close.
func New(cfg Config) (*Server, error) {
	cfg.fill()
	for _, u := range []string{cfg.TileURL, cfg.PMTiles} {
		if _, err := originOf(u); err != nil {
			return nil, err
		}
	}
	tiles, err := basemap.Open()
	if err != nil {
		return nil, err
	}
	assets, err := newAssets()
	if err != nil {
		return nil, err
	}
	assets.index = assets.page(cfg.Title)
	s := &Server{
		cfg: cfg, assets: assets, tiles: tiles,
		metrics:      newMetrics(cfg.Registry),
		outlineAsset: newOutline(),
		queries:      make(chan struct{}, cfg.MaxQueries),
	}
	s.hub = newHub(&s.cfg, s.metrics)
	s.handler = s.secure(s.routes())
	return s, nil
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Close ends every live feed and returns when the hub's goroutine has ended. Other requests still work.
func (s *Server) Close() error {
	s.hub.close()
	return nil
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h func(http.ResponseWriter, *http.Request) error) {
		mux.Handle(pattern, s.route(pattern, h))
	}
	handle("GET /v1/vehicles", s.listVehicles)
	handle("GET /v1/vehicles/{id}", s.getVehicle)
	handle("GET /v1/vehicles/{id}/history", s.getHistory)
	handle("GET /v1/vehicles/{id}/trail", s.getTrail)
	handle("GET /v1/alerts", s.listAlerts)
	handle("GET /v1/alerts/{id}", s.getAlert)
	handle("POST /v1/alerts/{id}/ack", s.ackAlert)
	handle("GET /v1/live", s.live)
	handle("POST /v1/sql", s.runSQL)
	handle("GET /v1/pipeline", s.getPipeline)
	handle("GET /v1/deadletters", s.listDeadLetters)
	handle("GET /v1/deadletters/{id}", s.getDeadLetter)
	handle("GET /v1/ui-config", s.uiConfig)
	handle("GET /v1/qr", s.getQR)
	handle("/v1/", func(_ http.ResponseWriter, r *http.Request) error {
		return problemf(http.StatusNotFound, "no-such-route", "no such route: %s %s; docs/api.md lists them", r.Method, r.URL.Path)
	})
	handle("GET /basemap/{z}/{x}/{y}", s.tile)
	handle("GET /basemap/outline.json", s.outline)
	handle("/", s.page)
	return mux
}

// secure sets the headers every answer carries and refuses state-changing requests from other sites.
func (s *Server) secure(next http.Handler) http.Handler {
	csp := s.contentSecurityPolicy()
	cross := http.NewCrossOriginProtection()
	cross.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, problemf(http.StatusForbidden, "cross-origin", "requests from another site's page may not change anything here"))
	}))
	next = cross.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", csp)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		next.ServeHTTP(w, r)
	})
}

// contentSecurityPolicy lets the page load its own files only, and the configured tiles.
func (s *Server) contentSecurityPolicy() string {
	tiles := ""
	for _, u := range []string{s.cfg.TileURL, s.cfg.PMTiles} {
		if o, _ := originOf(u); o != "" { // New has checked it
			tiles += " " + o
		}
	}
	return strings.Join([]string{
		"default-src 'none'",
		"script-src 'self'",
		"worker-src 'self'", // the map's worker is a file of its own: no blob: needed
		"style-src 'self'",
		"img-src 'self' data: blob:" + tiles,
		"font-src 'self'",
		"connect-src 'self'" + tiles,
		"manifest-src 'self'",
		"base-uri 'none'",
		"form-action 'none'",
		"frame-ancestors 'none'",
	}, "; ")
}

// originOf returns the origin that a tile URL needs in the policy; "" for one on this server.
func originOf(raw string) (string, error) {
	if raw == "" {
		return "", nil
	}
	// Templates hold {z}, {x} and {y}, also {s} in a host, where a policy wants a star.
	u, err := url.Parse(strings.NewReplacer("{s}.", "*.", "{z}", "0", "{x}", "0", "{y}", "0").Replace(raw))
	switch {
	case err != nil:
		return "", errors.New("tile URL " + raw + ": " + err.Error())
	case u.Host == "" && strings.HasPrefix(u.Path, "/"):
		return "", nil
	case u.Scheme != "https" && u.Scheme != "http", u.Host == "", strings.ContainsAny(u.Host, " ;,'\""):
		return "", errors.New("tile URL " + raw + ": want https://host/… or a path on this server")
	}
	return u.Scheme + "://" + u.Host, nil
}

// uiConfig tells the page what this server has.
func (s *Server) uiConfig(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Cache-Control", "no-cache")
	return writeJSON(w, map[string]any{
		"title":       s.cfg.Title,
		"tile_url":    s.cfg.TileURL,
		"pmtiles_url": s.cfg.PMTiles,
		"tile_by":     s.cfg.TileBy,
		"basemap": map[string]any{
			"version":     s.tiles.Version(),
			"max_zoom":    basemap.MaxZoom,
			"attribution": basemap.Attribution,
		},
		"live_ms": s.cfg.LiveInterval.Milliseconds(),
		"has": map[string]bool{
			"vehicles": s.cfg.Vehicles != nil, "alerts": s.cfg.Alerts != nil, "sql": s.cfg.SQL != nil,
			"pipeline": s.cfg.Pipeline != nil, "deadletters": s.cfg.DeadLetters != nil,
		},
		"sql_limits": map[string]any{
			"rows": s.cfg.SQLLimits.Rows, "timeout_ms": s.cfg.SQLLimits.Timeout.Milliseconds(),
		},
	})
}
