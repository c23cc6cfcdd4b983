package web

import (
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/milepost/milepost/alert"
)

const (
	alertsPage = 100
	alertsMost = 1000
	nameMost   = 200 // bytes of a person's name
)

type alertList struct {
	Alerts []alert.Alert `json:"alerts"`
	Counts AlertCounts   `json:"counts"`
	Next   string        `json:"next,omitempty"` // pass as before
}

func (s *Server) listAlerts(w http.ResponseWriter, r *http.Request) error {
	if s.cfg.Alerts == nil {
		return notBuilt("the list of alerts")
	}
	limit, err := intParam(r, "limit", alertsPage, alertsMost)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	state := alert.State(q.Get("state"))
	if state != "" && state != alert.Firing && state != alert.Resolved {
		return problemf(http.StatusBadRequest, "bad-parameter", "state=%q: want firing or resolved", string(state))
	}
	found, err := s.cfg.Alerts.Alerts(r.Context(), AlertQuery{
		State: state, Vehicle: q.Get("vehicle"), Rule: q.Get("rule"), Before: q.Get("before"), Limit: limit + 1,
	})
	if err != nil {
		return err
	}
	list := alertList{Alerts: found, Counts: s.cfg.Alerts.Counts()}
	if list.Alerts == nil {
		list.Alerts = []alert.Alert{}
	}
	if len(found) > limit {
		list.Alerts = found[:limit]
		list.Next = found[limit-1].ID
	}
	return writeJSON(w, list)
}

func (s *Server) getAlert(w http.ResponseWriter, r *http.Request) error {
	if s.cfg.Alerts == nil {
		return notBuilt("the list of alerts")
	}
	a, err := s.cfg.Alerts.Alert(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, a)
}

func (s *Server) ackAlert(w http.ResponseWriter, r *http.Request) error {
	if s.cfg.Alerts == nil {
		return notBuilt("acknowledging")
	}
	var body struct {
		By string `json:"by"`
	}
	if err := readJSON(w, r, 4096, &body); err != nil {
		return err
	}
	by := strings.TrimSpace(body.By)
	if by == "" {
		by = "dashboard"
	}
	if len(by) > nameMost || !utf8.ValidString(by) {
		return problemf(http.StatusBadRequest, "bad-parameter", "by: want a name of at most %d bytes", nameMost)
	}
	a, err := s.cfg.Alerts.Ack(r.Context(), r.PathValue("id"), by)
	if err != nil {
		return err
	}
	return writeJSON(w, a)
}
