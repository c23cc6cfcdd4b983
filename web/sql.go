package web

import (
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/milepost/milepost/query"
	"github.com/milepost/milepost/telemetry"
	"github.com/milepost/milepost/web/history"
)

const (
	sqlMost       = 1 << 20         // bytes of one statement
	queueFor      = 5 * time.Second // how long a query waits for its turn
	historyTime   = 15 * time.Second
	historyPoints = 300
	historyMost   = 2000
	trailPoints   = 1000
	trailMost     = 5000
	spanDefault   = 6 * time.Hour
	spanMost      = 366 * 24 * time.Hour
)

// turn waits for one of the places that queries may take.
func (s *Server) turn(ctx context.Context) (done func(), err error) {
	select {
	case s.queries <- struct{}{}:
		return func() { <-s.queries }, nil
	default:
	}
	t := time.NewTimer(queueFor)
	defer t.Stop()
	select {
	case s.queries <- struct{}{}:
		return func() { <-s.queries }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.C:
		p := problemf(http.StatusTooManyRequests, "busy", "all %d places for queries are taken; try again", cap(s.queries))
		p.retry = queueFor
		return nil, p
	}
}

// runSQL runs one SELECT: {"sql": "…"} as JSON, or the bare statement as text/plain.
func (s *Server) runSQL(w http.ResponseWriter, r *http.Request) error {
	if s.cfg.SQL == nil {
		return query.ErrNotBuilt
	}
	sql, err := readSQL(w, r)
	if err != nil {
		return err
	}
	f, kind, err := formatOf(r)
	if err != nil {
		return err
	}
	done, err := s.turn(r.Context())
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.SQLLimits.Timeout+time.Second) // the engine's own limit comes first
	defer cancel()
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.cfg.SQLLimits.Timeout + s.cfg.WriteTimeout))
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	out := &lateHeader{w: w, kind: kind}
	if f == query.CSV {
		out.name = "milepost.csv"
	}
	h.Set("Trailer", "Milepost-Truncated") // CSV and Arrow have no place to say it
	res, err := s.cfg.SQL.Query(ctx, sql, f, s.cfg.SQLLimits, out)
	if err != nil {
		if !out.begun {
			h.Del("Trailer")
		}
		return err
	}
	out.begin()
	if res.Truncated {
		h.Set("Milepost-Truncated", "true")
	} else {
		h.Set("Milepost-Truncated", "false")
	}
	return nil
}

func readSQL(w http.ResponseWriter, r *http.Request) (string, error) {
	var sql string
	switch t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); {
	case err == nil && t == "application/json":
		var body struct {
			SQL string `json:"sql"`
		}
		if err := readJSON(w, r, sqlMost, &body); err != nil {
			return "", err
		}
		sql = body.SQL
	case err == nil && (t == "text/plain" || t == "application/sql"):
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, sqlMost))
		if err != nil {
			return "", err
		}
		sql = string(b)
	default:
		return "", problemf(http.StatusUnsupportedMediaType, "content-type", `send {"sql":"…"} as application/json, or the statement as text/plain`)
	}
	if strings.TrimSpace(sql) == "" {
		return "", problemf(http.StatusBadRequest, "bad-query", "there is no statement")
	}
	return sql, nil
}

// formatOf reads ?format=, then Accept.
func formatOf(r *http.Request) (query.Format, string, error) {
	name, accept := r.URL.Query().Get("format"), r.Header.Get("Accept")
	switch {
	case name == "" && strings.Contains(accept, "text/csv"):
		name = "csv"
	case name == "" && strings.Contains(accept, "vnd.apache.arrow"):
		name = "arrow"
	}
	switch query.Format(name) {
	case "", query.JSON:
		return query.JSON, "application/json", nil
	case query.CSV:
		return query.CSV, "text/csv; charset=utf-8; header=present", nil
	case query.Arrow:
		return query.Arrow, "application/vnd.apache.arrow.stream", nil
	default:
		return "", "", problemf(http.StatusBadRequest, "bad-parameter", "format=%q: want json, csv or arrow", name)
	}
}

// A lateHeader sends the header with the first byte, so that an error before it can still be a problem.
type lateHeader struct {
	w          http.ResponseWriter
	kind, name string
	begun      bool
}

func (l *lateHeader) begin() {
	if l.begun {
		return
	}
	l.begun = true
	l.w.Header().Set("Content-Type", l.kind)
	if l.name != "" {
		l.w.Header().Set("Content-Disposition", `attachment; filename="`+l.name+`"`)
	}
	l.w.WriteHeader(http.StatusOK)
}

func (l *lateHeader) Write(b []byte) (int, error) {
	l.begin()
	return l.w.Write(b)
}

// spanOf reads from, to and points.
func spanOf(r *http.Request, def, most int) (history.Span, error) {
	var sp history.Span
	points, err := intParam(r, "points", def, most)
	if err != nil {
		return sp, err
	}
	to, err := timeParam(r, "to", time.Now().UTC())
	if err != nil {
		return sp, err
	}
	from, err := timeParam(r, "from", to.Add(-spanDefault))
	if err != nil {
		return sp, err
	}
	if d := to.Sub(from); d <= 0 || d > spanMost {
		return sp, problemf(http.StatusBadRequest, "bad-parameter", "from and to: want a span of more than nothing and at most 366 days")
	}
	return history.Span{Vehicle: r.PathValue("id"), From: from, To: to, Points: max(points, 2)}, nil
}

func (s *Server) getHistory(w http.ResponseWriter, r *http.Request) error {
	if s.cfg.SQL == nil {
		return query.ErrNotBuilt
	}
	sp, err := spanOf(r, historyPoints, historyMost)
	if err != nil {
		return err
	}
	var signals []string
	for name := range strings.SplitSeq(r.URL.Query().Get("signals"), ",") {
		if name = strings.TrimSpace(name); name != "" {
			signals = append(signals, name)
		}
	}
	if len(signals) == 0 {
		signals = s.signalsOf(sp.Vehicle)
	}
	for _, name := range signals {
		if len(name) > telemetry.MaxSignalName {
			return problemf(http.StatusBadRequest, "bad-parameter", "signals: a name is longer than %d bytes", telemetry.MaxSignalName)
		}
	}
	if len(signals) > history.MaxSignals {
		return problemf(http.StatusBadRequest, "bad-parameter", "signals: at most %d at once", history.MaxSignals)
	}
	ctx, cancel := context.WithTimeout(r.Context(), historyTime)
	defer cancel()
	done, err := s.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	out, err := history.ReadSeries(ctx, s.cfg.SQL, query.Limits{Timeout: historyTime}, s.cfg.Catalog, sp, signals)
	if err != nil {
		return ours(err)
	}
	return writeJSON(w, out)
}

// signalsOf are the signals that a vehicle has sent, but for its heading, which nobody charts.
func (s *Server) signalsOf(id string) []string {
	if s.cfg.Vehicles == nil {
		return []string{"speed"}
	}
	v, _ := s.cfg.Vehicles.Vehicle(id)
	var names []string
	for _, sig := range tidy(v).Signals {
		if sig.Name != "heading" && len(names) < history.MaxSignals {
			names = append(names, sig.Name)
		}
	}
	return names
}

func (s *Server) getTrail(w http.ResponseWriter, r *http.Request) error {
	if s.cfg.SQL == nil {
		return query.ErrNotBuilt
	}
	sp, err := spanOf(r, trailPoints, trailMost)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), historyTime)
	defer cancel()
	done, err := s.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	out, err := history.ReadTrail(ctx, s.cfg.SQL, query.Limits{Timeout: historyTime}, sp)
	if err != nil {
		return ours(err)
	}
	return writeJSON(w, out)
}

// ours turns a "mistake in the query" into a fault of this server, whose query it was.
func ours(err error) error {
	if u, ok := errors.AsType[*query.UserError](err); ok {
		return errors.New("history query: " + u.Msg)
	}
	return err
}
