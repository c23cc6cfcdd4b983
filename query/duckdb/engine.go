//go:build cgo

package duckdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	bindings "github.com/duckdb/duckdb-go-bindings"

	"github.com/milepost/milepost/archive"
	"github.com/milepost/milepost/query"
)

// An Engine answers queries. It is safe for concurrent use.
type Engine struct {
	cfg    Config
	src    Sources
	root   string // the archive's directory, absolute
	db     bindings.Database
	conns  chan *conn   // idle connections
	places atomic.Int64 // of queries that run or wait
	tables map[string]query.Table
	denied map[string]bool // names of DuckDB's own views: no alias may hide them
	met    *metrics
	scans  *scans

	mu     sync.RWMutex // held for reading by every query, for writing by Close
	closed bool
}

// A conn is one connection. Its views name sources by numbers that stay, so that a view is made anew only when the list of
// objects has changed: planning a year of objects costs more than most queries.
type conn struct {
	c     bindings.Connection
	ids   map[string]int64 // the source of each table
	files []*archive.File  // that the view readings names; nil: there is no view
	made  map[string]bool  // views that exist
}

var _ query.Engine = (*Engine)(nil)

// Open starts an engine.
func Open(cfg Config, src Sources) (*Engine, error) {
	cfg.defaults()
	e := &Engine{cfg: cfg, src: src, conns: make(chan *conn, cfg.MaxConcurrent), tables: map[string]query.Table{}, scans: newScans()}
	for name, t := range src.Tables {
		if !identifier.MatchString(name) || name == readings && src.Archive != nil {
			return nil, fmt.Errorf("open sql engine: %q cannot be the name of a table", name)
		}
		e.tables[name] = t
	}
	if src.Archive != nil {
		root, err := filepath.Abs(src.Archive.Root())
		if err != nil {
			return nil, fmt.Errorf("open sql engine: %w", err)
		}
		e.root = root
	}
	var err error
	if e.met, err = newMetrics(cfg.Metrics); err != nil {
		return nil, fmt.Errorf("open sql engine: %w", err)
	}
	if err := e.start(); err != nil {
		e.shut()
		return nil, fmt.Errorf("open sql engine: %w", err)
	}
	return e, nil
}

func (e *Engine) start() error {
	var config bindings.Config
	if bindings.CreateConfig(&config) == bindings.StateError {
		return errors.New("no configuration")
	}
	defer bindings.DestroyConfig(&config)
	options := [][2]string{
		{"threads", strconv.Itoa(e.cfg.Threads)},
		{"memory_limit", e.cfg.MemoryLimit},
		{"autoinstall_known_extensions", "false"},
		{"autoload_known_extensions", "false"},
		{"allow_community_extensions", "false"},
		{"preserve_insertion_order", "false"},
	}
	if e.cfg.TempDir != "" {
		if err := os.MkdirAll(e.cfg.TempDir, 0o700); err != nil {
			return err
		}
	}
	options = append(options, [2]string{"temp_directory", e.cfg.TempDir}, [2]string{"max_temp_directory_size", e.cfg.TempLimit})
	for _, o := range options {
		if bindings.SetConfig(config, o[0], o[1]) == bindings.StateError {
			return fmt.Errorf("option %s = %q is not accepted", o[0], o[1])
		}
	}
	var msg string
	if bindings.OpenExt("", &e.db, config, &msg) == bindings.StateError {
		return errors.New(msg)
	}
	for range e.cfg.MaxConcurrent {
		c := &conn{ids: map[string]int64{}, made: map[string]bool{}}
		if bindings.Connect(e.db, &c.c) == bindings.StateError {
			return errors.New("no connection")
		}
		e.conns <- c
	}
	c := <-e.conns
	defer func() { e.conns <- c }()
	if err := registerRows(c.c, e.scans); err != nil {
		return err
	}
	if err := e.ownNames(c); err != nil {
		return err
	}
	setup := []string{"SET GLOBAL TimeZone = 'UTC'", "SET GLOBAL parquet_metadata_cache = true"}
	if e.root != "" {
		setup = append(setup, "SET GLOBAL allowed_directories = ["+quote(e.root+string(filepath.Separator))+"]")
	}
	setup = append(setup, "SET GLOBAL enable_external_access = false", "SET GLOBAL lock_configuration = true")
	for _, s := range setup {
		if err := c.exec(s); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

// ownNames learns what DuckDB itself calls its views, so that no query can reach them through the scope of an alias.
func (e *Engine) ownNames(c *conn) error {
	e.denied = map[string]bool{}
	return c.each(context.Background(), "SELECT DISTINCT view_name FROM duckdb_views()", nil, func(r *result) error {
		return r.rows(func(row int) error {
			e.denied[strings.ToLower(r.cols[0].text(row))] = true
			return nil
		})
	})
}

// Close waits for the queries that run, and ends the engine.
func (e *Engine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.closed = true
		e.shut()
	}
	return nil
}

func (e *Engine) shut() {
	close(e.conns)
	for c := range e.conns {
		bindings.Disconnect(&c.c)
	}
	if e.db.Ptr != nil {
		bindings.Close(&e.db)
	}
}

const readings = "readings"

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// A run is one query on its connection.
type run struct {
	e      *Engine
	c      *conn
	ctx    context.Context //nolint:containedctx // lives as long as one call
	cancel context.CancelFunc
	snap   *archive.Snapshot
	ids    []int64 // of its scans
	rows   int
	began  time.Time
	caller context.Context //nolint:containedctx // as above; tells a caller's cancellation from our time limit
	limit  time.Duration
}

var errClosed = errors.New("sql engine is closed")

// begin waits for a connection and checks and prepares what the statement reads.
func (e *Engine) begin(ctx context.Context, sql string, lim query.Limits) (r *run, err error) {
	began := time.Now()
	limit := e.cfg.Timeout
	if lim.Timeout > 0 {
		limit = min(limit, lim.Timeout)
	}
	rows := e.cfg.Rows
	if lim.Rows > 0 {
		rows = min(lim.Rows, e.cfg.MaxRows)
	}
	if e.places.Add(1) > int64(e.cfg.MaxConcurrent+e.cfg.MaxWaiting) {
		e.places.Add(-1)
		e.met.busy.Inc()
		return nil, query.ErrBusy
	}
	e.mu.RLock()
	if e.closed {
		e.mu.RUnlock()
		e.places.Add(-1)
		return nil, errClosed
	}
	qctx, cancel := context.WithTimeout(ctx, limit)
	r = &run{e: e, ctx: qctx, cancel: cancel, rows: rows, began: began, caller: ctx, limit: limit}
	defer func() {
		if err != nil {
			r.end()
		}
	}()
	select {
	case r.c = <-e.conns:
	case <-qctx.Done():
		if ctx.Err() == nil {
			e.met.busy.Inc()
			return r, query.ErrBusy
		}
		return r, ctx.Err()
	}
	names, err := e.check(qctx, r.c, sql)
	if err != nil {
		return r, r.explain(err)
	}
	return r, r.explain(r.views(names))
}

// end gives everything back. The statement has been destroyed before, so no scan runs.
func (r *run) end() {
	r.cancel()
	for _, id := range r.ids {
		r.e.scans.remove(id)
	}
	if r.snap != nil {
		r.snap.Release()
	}
	if r.c != nil {
		r.e.conns <- r.c
	}
	r.e.mu.RUnlock()
	r.e.places.Add(-1)
	r.e.met.seconds.Observe(time.Since(r.began).Seconds())
}

// views gives the tables that a query names their rows of this moment.
func (r *run) views(names []string) error {
	for _, name := range names {
		stale := !r.c.made[name]
		if name == readings && r.e.src.Archive != nil {
			r.snap = r.e.src.Archive.Snapshot()
			r.source(name, newTailScan(r.e.src.Archive, r.snap, r.e.cfg.Threads))
			stale = stale || !sameFiles(r.c.files, r.snap.Files)
		} else {
			r.source(name, newTableScan(r.ctx, r.e.tables[name]))
		}
		if !stale {
			continue
		}
		body := "SELECT * FROM " + r.c.rows(name)
		if r.snap != nil && name == readings {
			body = r.readings()
			r.c.files = r.snap.Files
		}
		r.c.made[name] = false
		if err := r.c.exec("CREATE OR REPLACE TEMP VIEW " + ident(name) + " AS " + body); err != nil {
			return err
		}
		r.c.made[name] = true
	}
	return nil
}

// sameFiles tells whether two lists are one: the archive never writes to a list, it makes another.
func sameFiles(a, b []*archive.File) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// source makes rows of ours what a table's view finds.
func (r *run) source(name string, s source) {
	id, ok := r.c.ids[name]
	if !ok {
		id = r.e.scans.number()
		r.c.ids[name] = id
	}
	r.e.scans.set(id, s)
	r.ids = append(r.ids, id)
}

func (c *conn) rows(name string) string { return fmt.Sprintf("%s(%d)", rowsFunction, c.ids[name]) }

// readings is the union of objects and tail. The list of objects is exact: DuckDB looks for none by itself.
func (r *run) readings() string {
	var b strings.Builder
	cols := make([]string, 0, 32)
	for _, c := range r.e.src.Archive.Columns() {
		cols = append(cols, ident(c))
	}
	list := strings.Join(append(cols, "date"), ", ")
	b.WriteString("SELECT " + list + " FROM " + r.c.rows(readings))
	if len(r.snap.Files) == 0 {
		return b.String()
	}
	b.WriteString(" UNION ALL SELECT " + list + " FROM read_parquet([")
	for i, f := range r.snap.Files {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(quote(r.e.absolute(f.Path())))
	}
	b.WriteString("], hive_partitioning = true, hive_types = {'date': DATE})")
	return b.String()
}

func (e *Engine) absolute(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	if p, err := filepath.Abs(path); err == nil {
		return p
	}
	return path
}

// Query implements query.Engine.
func (e *Engine) Query(ctx context.Context, sql string, f query.Format, lim query.Limits, w io.Writer) (query.Result, error) {
	out, err := newOutput(f, w)
	if err != nil {
		return query.Result{}, err
	}
	r, err := e.begin(ctx, sql, lim)
	if err != nil {
		e.met.count(err)
		return query.Result{}, err
	}
	defer r.end()
	res := query.Result{}
	err = r.c.each(r.ctx, sql, nil, func(q *result) error {
		res.Columns = q.columns()
		if err := out.head(q); err != nil {
			return err
		}
		n := q.size
		if n > r.rows-res.Rows {
			n, res.Truncated = r.rows-res.Rows, true
		}
		if n > 0 {
			if err := out.chunk(q, n); err != nil {
				return err
			}
		}
		res.Rows += n
		if res.Truncated {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	res.Elapsed = time.Since(r.began)
	if err == nil {
		err = out.end(&res)
	}
	err = r.explain(err)
	e.met.count(err)
	return res, err
}

// Rows implements query.Engine. Values are nil, bool, int64, float64, string, time.Time, []any, map[string]any; integers beyond
// 64 bits, decimals, intervals, UUIDs and enums are strings.
func (e *Engine) Rows(ctx context.Context, lim query.Limits, each func(vals []any) error, sql string, args ...any) error {
	r, err := e.begin(ctx, sql, lim)
	if err != nil {
		e.met.count(err)
		return err
	}
	defer r.end()
	n := 0
	var vals []any
	err = r.c.each(r.ctx, sql, args, func(q *result) error {
		vals = slices.Grow(vals[:0], len(q.cols))[:len(q.cols)]
		return q.rows(func(row int) error {
			if n++; n > r.rows {
				return &query.UserError{Msg: fmt.Sprintf("more than %d rows: add a LIMIT", r.rows)}
			}
			for i := range q.cols {
				vals[i] = q.cols[i].value(row)
			}
			return each(vals)
		})
	})
	err = r.explain(err)
	e.met.count(err)
	return err
}

// errEnough ends a result that reached its limit.
var errEnough = errors.New("enough rows")

// explain turns DuckDB's errors into ones for people: what is wrong and how to mend it, and nothing about our directories.
func (r *run) explain(err error) error {
	var d *duckError
	switch {
	case err == nil:
		return nil
	case r.caller.Err() != nil && r.ctx.Err() != nil:
		return r.caller.Err()
	case r.ctx.Err() != nil:
		return &query.UserError{Msg: fmt.Sprintf("the query took longer than %v: ask for fewer days or vehicles", r.limit)}
	case !errors.As(err, &d):
		return err
	}
	msg := d.msg
	if strings.HasPrefix(msg, "Out of Memory Error") {
		return &query.UserError{Msg: "the query needs more memory than " + r.e.cfg.MemoryLimit + ": ask for fewer rows, days or groups"}
	}
	if strings.HasPrefix(msg, "INTERNAL Error") || strings.HasPrefix(msg, "IO Error") || strings.HasPrefix(msg, "FATAL") {
		r.e.cfg.Log.Error("sql engine failed", "err", msg)
		return errors.New("the sql engine failed; the log says why")
	}
	return &query.UserError{Msg: r.e.clean(msg)}
}

var (
	ownCall = regexp.MustCompile(rowsFunction + `\(\d*\)?`)
	pathish = regexp.MustCompile(`(?:/[\w.=~%-]+){2,}`)
)

func (e *Engine) clean(msg string) string {
	if e.root != "" {
		msg = strings.ReplaceAll(msg, e.root, readings)
	}
	msg = ownCall.ReplaceAllString(msg, "table")
	msg = pathish.ReplaceAllString(msg, "…")
	msg, _, _ = strings.Cut(msg, "\nStack Trace")
	return strings.TrimSpace(msg)
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
func ident(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
