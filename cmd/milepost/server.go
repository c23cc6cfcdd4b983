package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/pprof"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/milepost/milepost/alert"
	"github.com/milepost/milepost/archive"
	"github.com/milepost/milepost/device/command"
	"github.com/milepost/milepost/device/shadow"
	"github.com/milepost/milepost/fleet"
	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/format"
	"github.com/milepost/milepost/ingest/httpapi"
	"github.com/milepost/milepost/ingest/kinesisapi"
	"github.com/milepost/milepost/ingest/mqtt"
	"github.com/milepost/milepost/ingest/mqtt/broker"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/anomaly"
	"github.com/milepost/milepost/process/lambda"
	"github.com/milepost/milepost/process/rule"
	"github.com/milepost/milepost/query"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/stream/seglog"
	"github.com/milepost/milepost/telemetry"
	"github.com/milepost/milepost/web"
)

// The built-in streams.
const (
	readingsStream = "readings"
	deadStream     = "dead-letters"
)

// deadRetention is how long refused data can be mended and sent again.
const deadRetention = 30 * 24 * time.Hour

// drainFor is how long stopping may take: past it, what is not finished comes back from the log at the next start.
const drainFor = 30 * time.Second

// A server is every room, wired. open starts them in flow order; drain stops them in flow order, source first, so that each
// drains into the next before its own turn comes.
type server struct {
	cfg     *Config
	log     *slog.Logger
	reg     *prometheus.Registry
	started time.Time

	catalog   *telemetry.Catalog
	logs      *seglog.Store
	readings  *seglog.Log
	dead      *seglog.Log
	state     *local.Store
	archive   *archive.Archive
	rules     *rule.Set
	fleet     *fleet.Fleet
	meter     *process.Meter
	outbox    *process.Outbox
	runner    *process.Runner
	beside    []beside      // runners of windows and detectors
	plan      *anomaly.Plan // of detectors; nil: there are none
	functions *lambda.Registry
	book      *alert.Book
	route     func(severity string) []string // whom an alert is told
	notifier  *alert.Notifier
	sql       query.Engine
	admit     *ingest.Admitter
	formats   *format.Set
	broker    *broker.Broker
	desk      *command.Desk // of commands; nil: there is no MQTT
	shadows   *shadow.Keeper
	mqtt      *mqtt.Server
	kinesis   *kinesisapi.Door
	devices   *identity
	web       *web.Server
	http      *http.Server
	listener  net.Listener
	letters   *letterBox

	notifying    context.CancelFunc // ends the notifier
	fetched      context.Context    //nolint:containedctx // of the feeds and bridges; fetching ends it
	fetching     context.CancelFunc // nil: there are none
	background   context.CancelFunc // ends housekeeping
	workers      sync.WaitGroup     // the notifier and housekeeping; drain waits
	doors        sync.WaitGroup     // the Kinesis listeners and the feeds; drain waits
	serving      chan error         // what http.Serve returned
	closeQueries func() error       // nil: there are none
	closers      []func() error     // of what was opened, in order, for an open that fails half way
}

func newServer(cfg *Config, log *slog.Logger) *server {
	return &server{cfg: cfg, log: log, reg: prometheus.NewRegistry(), started: time.Now(), serving: make(chan error, 1)}
}

// openServer opens everything on a file system and returns with the doors open. The caller calls drain.
func openServer(ctx context.Context, cfg *Config, fs vfs.FS, log *slog.Logger) (*server, error) {
	s := newServer(cfg, log)
	s.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := s.open(ctx, fs, append(s.rooms(), s.openSQL, s.openQueries, s.openDevices, s.openDoors)...); err != nil {
		return nil, err
	}
	return s, nil
}

// rooms are the steps that need nothing but a file system; closeRooms is their reverse.
func (s *server) rooms() []func(context.Context, vfs.FS) error {
	return []func(context.Context, vfs.FS) error{s.openLog, s.openState, s.openFleet, s.openProcess, s.openAlerts, s.openWindows, s.openAnomaly, s.openFunctions, s.openAdmit}
}

// open takes steps in order. If one fails, those before it are undone.
func (s *server) open(ctx context.Context, fs vfs.FS, steps ...func(context.Context, vfs.FS) error) error {
	for _, step := range steps {
		err := step(ctx, fs)
		if err == nil {
			continue
		}
		for i := len(s.closers) - 1; i >= 0; i-- {
			if e := s.closers[i](); e != nil {
				s.log.WarnContext(ctx, "close after a failed start", "error", e)
			}
		}
		return err
	}
	return nil
}

func (s *server) onFailure(f func() error) { s.closers = append(s.closers, f) }

func (s *server) openLog(ctx context.Context, fs vfs.FS) error {
	s.catalog = s.cfg.catalog()
	reserve := int64(s.cfg.Stream.Reserve)
	if reserve == 0 {
		reserve = -1 // seglog's zero is its own default
	}
	var err error
	s.logs, err = seglog.Open(seglog.Config{
		Dir: filepath.Join(s.cfg.Data, "log"), FS: fs, Log: s.log, Metrics: s.reg,
		SegmentBytes: int64(s.cfg.Stream.Segment), ReserveBytes: reserve,
	})
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	s.onFailure(s.logs.Close)
	want := seglog.StreamConfig{
		Shards: s.cfg.Stream.Shards, Retention: time.Duration(s.cfg.Stream.Retention), RetentionBytes: int64(s.cfg.Stream.RetentionBytes),
	}
	if s.readings, err = s.logs.Ensure(ctx, readingsStream, want); err != nil {
		return err
	}
	if err := s.logs.Update(ctx, readingsStream, func(c *seglog.StreamConfig) { c.Retention, c.RetentionBytes = want.Retention, want.RetentionBytes }); err != nil {
		return err
	}
	if s.dead, err = s.logs.Ensure(ctx, deadStream, seglog.StreamConfig{Shards: 1, Retention: deadRetention, RetentionBytes: 1 << 30}); err != nil {
		return err
	}
	return s.openStreams(ctx)
}

// openStreams makes the configured streams that are not there yet.
func (s *server) openStreams(ctx context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(s.cfg.Streams)) {
		want := seglog.StreamConfig{Shards: s.cfg.Streams[name].Shards, Retention: time.Duration(s.cfg.Streams[name].Retention)}
		if _, err := s.logs.Ensure(ctx, name, want); err != nil {
			return fmt.Errorf("streams.%s: %w", name, err)
		}
		if err := s.logs.Update(ctx, name, func(c *seglog.StreamConfig) { c.Retention = want.Retention }); err != nil {
			return fmt.Errorf("streams.%s: %w", name, err)
		}
	}
	return nil
}

func (s *server) openState(_ context.Context, fs vfs.FS) error {
	var err error
	s.state, err = local.Open(local.Config{Dir: filepath.Join(s.cfg.Data, "state"), FS: fs, Log: s.log, Metrics: s.reg})
	if err != nil {
		return fmt.Errorf("open state: %w", err)
	}
	s.onFailure(s.state.Close)
	return nil
}

// openFleet opens what readings become: the archive, and the fleet with its rules. It rebuilds the live tail.
func (s *server) openFleet(ctx context.Context, fs vfs.FS) error {
	var err error
	a := s.cfg.Archive
	s.archive, err = archive.Open(ctx, archive.Config{
		Dir: filepath.Join(s.cfg.Data, "archive"), FS: fs, Store: s.state, Catalog: s.catalog, Log: s.log, Metrics: s.reg,
		FlushRows: a.FlushRows, FlushAge: time.Duration(a.FlushAge), Retention: time.Duration(a.Retention),
		Compaction: archive.Compaction{Off: !a.Compact}, OnFlush: fleet.ForgetDropped,
	})
	if err != nil {
		return fmt.Errorf("open archive: %w", err)
	}
	s.onFailure(func() error { return s.archive.Close(context.WithoutCancel(ctx)) })
	specs, err := s.cfg.Rules.specs()
	if err != nil {
		return err
	}
	if s.rules, err = rule.Compile(specs, s.catalog); err != nil {
		return err
	}
	s.book = alert.NewBook(s.state)
	if d := s.cfg.Anomaly.detectors(); len(d) > 0 {
		if s.plan, err = anomaly.Compile(d, time.Duration(s.cfg.Anomaly.Every), s.catalog); err != nil {
			return err
		}
	}
	routes := map[string][]string{}
	for _, sev := range []string{rule.Info, rule.Warning, rule.Critical} {
		routes[sev] = s.cfg.Alerts.Route(sev)
	}
	s.route = func(severity string) []string { return routes[severity] }
	s.fleet, err = fleet.Open(ctx, fleet.Config{
		Stream: readingsStream, Source: s.readings, Store: s.state, Catalog: s.catalog, Rules: s.rules,
		Rows:  func(ctx context.Context, shard stream.ShardID) (fleet.Rows, error) { return s.archive.Lane(ctx, shard) },
		Sinks: s.route, Alerted: s.book.Touch, OtherRule: s.otherRule,
		Log: s.log, Metrics: s.reg, OfflineAfter: time.Duration(s.cfg.Fleet.OfflineAfter),
	})
	if err != nil {
		return err
	}
	shards, err := s.readings.Shards(ctx)
	if err != nil {
		return err
	}
	hold := context.WithoutCancel(ctx)
	s.readings.Hold(func(shard stream.ShardID) (stream.Position, error) { return s.archive.Checkpoint(hold, shard) })
	for _, sh := range shards {
		at, err := s.archive.Checkpoint(ctx, sh.ID)
		if err != nil {
			return err
		}
		began := time.Now()
		n, err := s.fleet.Rebuild(ctx, sh.ID, at)
		if err != nil {
			return err
		}
		if n > 0 {
			s.log.InfoContext(ctx, "live tail rebuilt", "shard", string(sh.ID), "rows", n, "seconds", time.Since(began).Seconds())
		}
	}
	return nil
}

// otherRule tells whether an alert that is no rule's has somebody who will end it: a detector, or the watch of certificates.
func (s *server) otherRule(name string) bool {
	if s.plan != nil {
		if _, ok := s.plan.Rules().Find(name); ok {
			return true
		}
	}
	return strings.HasPrefix(name, "device/")
}

func (s *server) openProcess(ctx context.Context, _ vfs.FS) error {
	var err error
	if s.meter, err = process.NewMeter(s.reg); err != nil {
		return err
	}
	s.outbox, err = process.NewOutbox(process.OutboxConfig{Store: s.state, DeadLetters: s.dead, Streams: s.stream, Logger: s.log, Metrics: s.reg})
	if err != nil {
		return err
	}
	if err := s.outbox.Start(); err != nil {
		return err
	}
	s.onFailure(func() error { return s.outbox.Stop(context.WithoutCancel(ctx)) })
	s.runner, err = process.New(process.Config{
		Log: s.readings, StreamName: readingsStream, Store: s.state, Outbox: s.outbox, Meter: s.meter, Logger: s.log,
	})
	if err != nil {
		return err
	}
	if err := s.runner.AddFolder(s.fleet, process.Options{
		CommitInterval: time.Duration(s.cfg.Fleet.Commit), MaxAttempts: 5, // then it narrows down to the one record and dead-letters it
	}); err != nil {
		return err
	}
	if err := s.runner.Start(); err != nil {
		return err
	}
	s.onFailure(func() error { return s.runner.Stop(context.WithoutCancel(ctx)) })
	return nil
}

func (s *server) openAlerts(ctx context.Context, _ vfs.FS) error {
	sinks, err := s.cfg.Alerts.Sinks(s.log)
	if err != nil {
		return fmt.Errorf("alerts.%w", err)
	}
	s.notifier = alert.NewNotifier(s.state, sinks, s.cfg.Alerts.Retry, s.dead, s.log, s.reg)
	ctx = context.WithoutCancel(ctx) // they end in drain, in their turn
	notifying, stop := context.WithCancel(ctx)
	s.notifying = stop
	s.workers.Go(func() {
		if err := s.notifier.Run(notifying); err != nil {
			s.log.ErrorContext(notifying, "notify", "error", err)
		}
	})
	s.letters = &letterBox{log: s.dead, logger: s.log}
	background, stop := context.WithCancel(ctx)
	s.background = stop
	s.workers.Go(func() { s.letters.follow(background) })
	s.workers.Go(func() { s.keepHouse(background) })
	s.onFailure(func() error {
		s.notifying()
		s.background()
		s.workers.Wait()
		return nil
	})
	return nil
}

// keepHouse forgets what has been kept for long enough.
func (s *server) keepHouse(ctx context.Context) {
	const alertsKept = 400 * 24 * time.Hour // a year and a month: enough to compare with last year's
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if _, err := s.fleet.Expire(ctx, now); err != nil && ctx.Err() == nil {
				s.log.WarnContext(ctx, "expire sightings", "error", err)
			}
			for {
				n, err := s.book.Prune(ctx, now.Add(-alertsKept), 1000)
				if err != nil && ctx.Err() == nil {
					s.log.WarnContext(ctx, "prune alerts", "error", err)
				}
				if n == 0 || err != nil {
					break
				}
			}
		}
	}
}

func (s *server) openSQL(ctx context.Context, _ vfs.FS) error {
	engine, err := openSQL(s)
	if errors.Is(err, query.ErrNotBuilt) {
		s.log.WarnContext(ctx, "no SQL", "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("open SQL: %w", err)
	}
	s.sql = engine
	s.onFailure(engine.Close)
	return nil
}

// openAdmit opens what the doors share.
func (s *server) openAdmit(context.Context, vfs.FS) error {
	var err error
	l := s.cfg.Limits
	s.admit, err = ingest.New(ingest.Config{
		Log: s.readings, DeadLetters: s.dead, Catalog: s.catalog, Logger: s.log, Metrics: s.reg,
		Limits: ingest.Limits{
			MaxMessage: int(l.Message), MaxBody: int(l.Body), RatePerDevice: l.Rate, BurstPerDevice: float64(l.Burst), BytesPerDevice: float64(l.Bytes), InFlightBytes: int64(l.InFlight),
		},
	})
	return err
}

// openDoors comes last: when the first reading can come in, everything behind the doors is ready.
func (s *server) openDoors(ctx context.Context, _ vfs.FS) error {
	s.formats = s.cfg.formats()
	if err := s.openMQTT(ctx); err != nil {
		return err
	}
	if err := s.listenAWS(ctx); err != nil {
		return err
	}
	if err := s.openWeb(); err != nil {
		return err
	}
	var err error
	if s.listener, err = new(net.ListenConfig).Listen(ctx, "tcp", s.cfg.HTTP.Listen); err != nil {
		return fmt.Errorf("http.listen: %w", err)
	}
	go func() { s.serving <- s.http.Serve(s.listener) }() // run and drain receive it
	if err := s.openFeeds(ctx); err != nil {
		return err
	}
	if err := s.openBridges(ctx); err != nil {
		return err
	}
	return s.devices.serve(ctx, s.cfg.HTTP.TLS.Listen, s.http.Handler)
}

func (s *server) openWeb() error {
	door, err := httpapi.New(httpapi.Config{Token: s.cfg.HTTP.Token}, s.admit)
	if err != nil {
		return err
	}
	alerts, unsubscribe := newAlertSource(s.book, s.log)
	cfg := web.Config{
		Vehicles: s.fleet, Live: &liveSource{fleet: s.fleet}, Alerts: alerts, SQL: s.sql,
		Pipeline: s, DeadLetters: s.letters, Catalog: s.catalog, TileBy: s.cfg.Map.Attribution,
		SQLLimits:  query.Limits{Timeout: time.Duration(s.cfg.SQL.Timeout), Rows: s.cfg.SQL.Rows},
		MaxQueries: s.cfg.SQL.Concurrent, Log: s.log, Registry: s.reg,
	}
	if t := s.cfg.Map.Tiles; isPMTiles(t) {
		cfg.PMTiles = t
	} else {
		cfg.TileURL = t
	}
	if s.web, err = web.New(cfg); err != nil {
		unsubscribe()
		return err
	}
	s.onFailure(func() error {
		unsubscribe()
		return s.web.Close()
	})
	mux := http.NewServeMux()
	door.Register(mux)
	if err := door.Foreign(mux, s.formats); err != nil {
		return err
	}
	s.devices.Register(mux)
	s.registerDownlink(mux)
	operations := s.guarded(s.functions.Operations())
	mux.Handle("/v1/functions", operations)
	mux.Handle("/v1/functions/", operations)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.ready)
	if s.cfg.HTTP.Pprof {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	}
	mux.Handle("/", s.web)
	s.http = httpapi.Server(mux, httpapi.ServerConfig{Logger: s.log})
	return nil
}

// ready tells whether data is taken: 200 or 503 with the reason. With caught_up it waits, up to a second, until everything that
// the log held at the call is processed; with archived too, until it is Parquet.
func (s *server) ready(w http.ResponseWriter, r *http.Request) {
	stats := s.readings.Stats()
	if err := stats.Fenced; err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	if stats.Full {
		http.Error(w, stream.ErrFull.Error(), http.StatusServiceUnavailable)
		return
	}
	q := r.URL.Query()
	if q.Has("caught_up") {
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		if err := s.runner.WaitCaughtUp(ctx); err != nil {
			http.Error(w, "not caught up: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
	}
	if q.Has("archived") {
		if st := s.archive.Status(); st.TailRows > 0 {
			http.Error(w, fmt.Sprintf("%d rows are not in Parquet yet", st.TailRows), http.StatusServiceUnavailable)
			return
		}
	}
	fmt.Fprintln(w, "ready")
}

// run serves until ctx ends or the HTTP server fails, then drains.
func (s *server) run(ctx context.Context) error {
	var failed error
	select {
	case <-ctx.Done():
	case failed = <-s.serving:
		s.serving <- failed
	}
	return errors.Join(failed, s.drain(context.WithoutCancel(ctx)))
}

// drain stops everything in flow order. What it cannot finish in time is in the log and comes back at the next start.
func (s *server) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainFor)
	defer cancel()
	began := time.Now()
	s.log.InfoContext(ctx, "draining")
	err := errors.Join(s.closeDoors(ctx), s.closeRooms(ctx))
	s.log.InfoContext(ctx, "drained", "seconds", time.Since(began).Seconds())
	return err
}

// steps runs what must all run, and joins what went wrong.
type steps struct{ errs []error }

func (t *steps) do(what string, f func() error) {
	if err := f(); err != nil {
		t.errs = append(t.errs, fmt.Errorf("%s: %w", what, err))
	}
}

// closeDoors lets nothing new in and lets what is under way finish.
func (s *server) closeDoors(ctx context.Context) error {
	var t steps
	if s.fetching != nil {
		s.fetching()
	}
	if s.mqtt != nil {
		t.do("close MQTT", func() error { return s.closeMQTT(ctx) })
	}
	if s.kinesis != nil {
		t.do("close Kinesis", func() error { return s.kinesis.Close(ctx) })
	}
	s.doors.Wait()
	t.do("close live feeds", s.web.Close)
	t.do("stop HTTP", func() error {
		err := s.http.Shutdown(ctx)
		if e := <-s.serving; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
		return err
	})
	t.do("close devices", func() error { return s.devices.close(ctx) })
	return errors.Join(t.errs...)
}

// closeRooms drains each room into the next.
func (s *server) closeRooms(ctx context.Context) error {
	var t steps
	t.do("process what is in the log", func() error { return s.runner.WaitCaughtUp(ctx) })
	t.do("stop processing", func() error { return s.runner.Stop(ctx) })
	t.do("stop windows and detectors", func() error { return s.closeBeside(ctx) })
	if s.closeQueries != nil {
		t.do("stop continuous queries", s.closeQueries)
	}
	t.do("close functions", func() error { return s.functions.Close(ctx) })
	t.do("stop the outbox", func() error { return s.outbox.Stop(ctx) })
	s.meter.Close()
	s.notifying()
	s.background()
	s.workers.Wait()
	if s.sql != nil {
		t.do("close SQL", s.sql.Close)
	}
	if s.kinesis != nil { // its rooms may be open although its door never was
		t.do("close Kinesis", func() error { return s.kinesis.Close(ctx) })
	}
	t.do("close archive", func() error { return s.archive.Close(ctx) })
	t.do("close state", s.state.Close)
	t.do("close log", s.logs.Close)
	return errors.Join(t.errs...)
}

// isPMTiles tells a PMTiles archive from a tile template by its name.
func isPMTiles(url string) bool {
	path, _, _ := strings.Cut(url, "?")
	return strings.HasSuffix(strings.ToLower(path), ".pmtiles")
}
