package web

import (
	"cmp"
	"net/http"
	"slices"
	"strings"

	"github.com/milepost/milepost/fleet"
)

const (
	vehiclesPage = 100
	vehiclesMost = 1000
)

type vehicleList struct {
	Vehicles []fleet.Vehicle `json:"vehicles"`
	Total    int             `json:"total"`          // that match, on all pages
	Next     string          `json:"next,omitempty"` // pass as after
}

// listVehicles pages through the fleet by id. It walks all of it and keeps one page: a heap is not worth its lines before
// the fleet has 100,000 vehicles, and the dashboard lists from the live feed instead.
func (s *Server) listVehicles(w http.ResponseWriter, r *http.Request) error {
	if s.cfg.Vehicles == nil {
		return notBuilt("the list of vehicles")
	}
	limit, err := intParam(r, "limit", vehiclesPage, vehiclesMost)
	if err != nil {
		return err
	}
	query := r.URL.Query()
	q, state, after := strings.ToLower(query.Get("q")), query.Get("state"), query.Get("after")
	switch fleet.Connectivity(state) {
	case "", fleet.Online, fleet.Stale, fleet.Offline:
	default:
		return problemf(http.StatusBadRequest, "bad-parameter", "state=%q: want online, stale or offline", state)
	}
	var ids []string
	list := vehicleList{Vehicles: []fleet.Vehicle{}}
	s.cfg.Vehicles.Vehicles(func(v *fleet.Vehicle) bool {
		if (state != "" && string(v.Connectivity) != state) || (q != "" && !vehicleMatches(v, q)) {
			return true
		}
		list.Total++
		if v.ID > after {
			ids = append(ids, strings.Clone(v.ID))
		}
		return true
	})
	slices.Sort(ids)
	if len(ids) > limit {
		ids = ids[:limit]
		list.Next = ids[limit-1]
	}
	for _, id := range ids {
		if v, ok := s.cfg.Vehicles.Vehicle(id); ok {
			list.Vehicles = append(list.Vehicles, tidy(v))
		}
	}
	return writeJSON(w, list)
}

func vehicleMatches(v *fleet.Vehicle, lower string) bool {
	return strings.Contains(strings.ToLower(v.ID), lower) || strings.Contains(strings.ToLower(v.Status), lower)
}

func (s *Server) getVehicle(w http.ResponseWriter, r *http.Request) error {
	if s.cfg.Vehicles == nil {
		return notBuilt("the state of vehicles")
	}
	v, ok := s.cfg.Vehicles.Vehicle(r.PathValue("id"))
	if !ok {
		return problemf(http.StatusNotFound, "no-such-vehicle", "no reading of a vehicle with this id has arrived: %q", r.PathValue("id"))
	}
	return writeJSON(w, tidy(v))
}

// tidy makes a vehicle's JSON regular: never null, in the order people look for signals.
func tidy(v fleet.Vehicle) fleet.Vehicle {
	v.Signals = slices.Clone(v.Signals)
	if v.Signals == nil {
		v.Signals = []fleet.SignalValue{}
	}
	slices.SortFunc(v.Signals, func(a, b fleet.SignalValue) int {
		return cmp.Or(cmp.Compare(signalOrder(a.Name), signalOrder(b.Name)), cmp.Compare(a.Name, b.Name))
	})
	return v
}

func signalOrder(name string) int {
	order := []string{"speed", "heading", "fuel", "engine_temp", "cargo_temp", "fuel_pressure", "rpm", "battery", "odometer"}
	if i := slices.Index(order, name); i >= 0 {
		return i
	}
	return len(order)
}
