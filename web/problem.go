package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/milepost/milepost/query"
)

// A problem is an error as RFC 9457 writes it. Kind, in the type's place, is what programs branch on.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	retry  time.Duration
}

func (p *problem) Error() string { return p.Detail }

func problemf(status int, kind, format string, args ...any) *problem {
	return &problem{Type: "urn:milepost:" + kind, Title: http.StatusText(status), Status: status, Detail: fmt.Sprintf(format, args...)}
}

// notBuilt is the answer of a route whose source this server was not given.
func notBuilt(what string) *problem {
	return problemf(http.StatusNotImplemented, "not-available", "%s is not available in this server", what)
}

// problemOf turns any error of a handler into what the client is told. Only ours and the user's words are passed on.
func problemOf(err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	if u, ok := errors.AsType[*query.UserError](err); ok {
		return problemf(http.StatusBadRequest, "bad-query", "%s", u.Msg)
	}
	if u, ok := errors.AsType[*UnavailableError](err); ok {
		return problemf(http.StatusServiceUnavailable, "unavailable", "%s", u.Reason)
	}
	if m, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return problemf(http.StatusRequestEntityTooLarge, "too-large", "the request is larger than %d bytes", m.Limit)
	}
	switch {
	case errors.Is(err, query.ErrNotBuilt):
		return problemf(http.StatusNotImplemented, "sql-not-built", "%s", query.ErrNotBuilt)
	case errors.Is(err, ErrNotFound):
		return problemf(http.StatusNotFound, "not-found", "there is no such thing, or no longer")
	case errors.Is(err, context.DeadlineExceeded):
		return problemf(http.StatusGatewayTimeout, "timeout", "it took longer than this server allows: ask for less")
	default:
		return problemf(http.StatusInternalServerError, "internal", "something went wrong here; the server's log says what")
	}
}

func writeProblem(w http.ResponseWriter, p *problem) {
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	h.Del("Etag")
	h.Del("Content-Encoding")
	if p.retry > 0 {
		h.Set("Retry-After", strconv.Itoa(max(1, int(p.retry.Seconds()))))
	}
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client has gone
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-store")
	}
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // the client has gone
	return nil
}

// readJSON decodes a request's body, which must be declared as JSON: a form on another site cannot do that.
func readJSON(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return problemf(http.StatusUnsupportedMediaType, "content-type", "send Content-Type: application/json")
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if errors.Is(err, io.EOF) { // an empty body asks for the defaults
		return nil
	}
	if err == nil {
		if _, err = d.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		err = errors.New("there is something after the object")
	}
	if u, ok := errors.AsType[*UnavailableError](err); ok {
		return problemf(http.StatusServiceUnavailable, "unavailable", "%s", u.Reason)
	}
	if m, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return m
	}
	return problemf(http.StatusBadRequest, "bad-json", "the body is not the JSON that is wanted: %s", err)
}

// A route is a handler that returns its error, measured.
func (s *Server) route(pattern string, h func(http.ResponseWriter, *http.Request) error) http.Handler {
	seen := s.metrics.route(pattern)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		rec := &recorder{ResponseWriter: w}
		err := h(rec, r)
		if err != nil {
			p := problemOf(err)
			if p.Status >= http.StatusInternalServerError && p.Status != http.StatusNotImplemented && r.Context().Err() == nil {
				s.cfg.Log.Error("request failed", "route", pattern, "path", r.URL.Path, "err", err)
			}
			if rec.status != 0 {
				seen(http.StatusInternalServerError, time.Since(began))
				panic(http.ErrAbortHandler) // half an answer must not look whole
			}
			writeProblem(rec, p)
		}
		seen(rec.status, time.Since(began))
	})
}

// A recorder remembers whether, and with which status, an answer has begun.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// intParam reads a query parameter between 1 and most.
func intParam(r *http.Request, name string, def, most int) (int, error) {
	v := r.URL.Query().Get(name)
	if v == "" {
		return def, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > most {
		return 0, problemf(http.StatusBadRequest, "bad-parameter", "%s=%q: want a number from 1 to %d", name, v, most)
	}
	return n, nil
}

// timeParam reads a query parameter that is Unix milliseconds or RFC 3339.
func timeParam(r *http.Request, name string, def time.Time) (time.Time, error) {
	v := r.URL.Query().Get(name)
	if v == "" {
		return def, nil
	}
	if ms, err := strconv.ParseInt(v, 10, 64); err == nil && ms > 0 && ms < 1<<45 {
		return time.UnixMilli(ms).UTC(), nil
	}
	t, err := time.Parse(time.RFC3339, v)
	if err != nil {
		return time.Time{}, problemf(http.StatusBadRequest, "bad-parameter", "%s=%q: want Unix milliseconds or RFC 3339", name, v)
	}
	return t.UTC(), nil
}
