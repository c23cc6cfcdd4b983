package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/milepost/milepost/alert"
	"github.com/milepost/milepost/fleet"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/web"
)

// liveSource shows the fleet's movements to the feed.
type liveSource struct {
	fleet  *fleet.Fleet
	points []fleet.Point // the hub calls from one goroutine
}

// Drain implements web.Live. The fleet forgets what it has handed out, so every cursor but 0 means "since last time".
func (s *liveSource) Drain(cursor uint64, buf []web.Point) ([]web.Point, uint64) {
	if cursor == 0 {
		s.points = s.fleet.Points(s.fleet.Moved(s.points[:0])[:0])
	} else {
		s.points = s.fleet.Moved(s.points[:0])
	}
	for i := range s.points {
		p := &s.points[i]
		buf = append(buf, web.Point{
			Index: p.Index, ID: p.ID, Lat: p.Lat, Lon: p.Lon, HasPlace: p.HasPlace, Speed: orNegative(p.Speed), Heading: orNegative(p.Heading),
			State: web.StateOf(p.Conn), Severity: web.SeverityOf(p.Severity), Time: p.LastSignal,
		})
	}
	return buf, cursor + 1
}

func orNegative(f float32) float32 {
	if f != f { // NaN: unknown
		return -1
	}
	return f
}

// alertSource shows the book of alerts. Counts are kept, because the feed asks at each tick and nearly nothing changes.
type alertSource struct {
	book *alert.Book
	log  *slog.Logger

	mu      sync.Mutex // guards the rest
	counts  web.AlertCounts
	changed <-chan struct{}
}

func newAlertSource(book *alert.Book, log *slog.Logger) (*alertSource, func()) {
	changed, stop := book.Subscribe()
	s := &alertSource{book: book, log: log, changed: changed}
	s.recount()
	return s, stop
}

// Alerts implements web.Alerts.
func (s *alertSource) Alerts(ctx context.Context, q web.AlertQuery) ([]alert.Alert, error) {
	return s.book.List(ctx, alert.Filter{State: q.State, Vehicle: q.Vehicle, Rule: q.Rule, After: q.Before, Limit: q.Limit})
}

// Alert implements web.Alerts.
func (s *alertSource) Alert(ctx context.Context, id string) (alert.Alert, error) {
	a, err := s.book.Get(ctx, id)
	return a, notFound(err)
}

// Ack implements web.Alerts.
func (s *alertSource) Ack(ctx context.Context, id, by string) (alert.Alert, error) {
	a, err := s.book.Ack(ctx, id, by, time.Now())
	if errors.Is(err, state.ErrFull) || errors.Is(err, state.ErrFenced) {
		err = &web.UnavailableError{Reason: err.Error()}
	}
	return a, notFound(err)
}

func notFound(err error) error {
	if errors.Is(err, alert.ErrNotFound) {
		return web.ErrNotFound
	}
	return err
}

// Counts implements web.Alerts.
func (s *alertSource) Counts() web.AlertCounts {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.changed:
		s.recount()
	default:
	}
	return s.counts
}

// recount reads the open alerts; the caller holds mu or is alone.
func (s *alertSource) recount() {
	c, err := s.book.Counts(context.Background())
	if err != nil {
		s.log.Warn("count alerts", "error", err)
		return
	}
	s.counts = web.AlertCounts{
		Version: s.counts.Version + 1, Critical: c.Severity["critical"], Warning: c.Severity["warning"], Info: c.Severity["info"],
		Unacked: c.Firing - c.Acked,
	}
}
