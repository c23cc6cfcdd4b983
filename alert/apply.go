package alert

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"

	"github.com/milepost/milepost/process/rule"
	"github.com/milepost/milepost/state"
)

// An Info is what Apply must know beside the transition.
type Info struct {
	Vehicle  string
	Bound    *rule.Bound // the one that judged
	Lat, Lon float64
	HasPlace bool
	Sinks    []string // who is told: Config.Route of the rule's severity
}

// A Notification is the data of an effect, in JSON: what a sink gets.
type Notification struct {
	ID         string `json:"id"`         // stable (P4): receivers recognise a repetition by it
	Transition string `json:"transition"` // firing or resolved
	At         int64  `json:"at"`         // event time of the transition, Unix ms
	Text       string `json:"text"`       // one line for people; what chat services show
	Alert      Alert  `json:"alert"`
	Asked      int64  `json:"asked"` // arrival time of what caused it; its age decides when to give up
}

// Kind returns the kind of effect that a sink carries out.
func Kind(sink string) string { return "notify:" + sink }

// Apply records a transition in the lane's transaction and asks for one notification per sink. It depends only on its
// arguments and on what it reads from tx.
//
// Data that came too late tells nobody (P9): an alert that fired late is recorded, and stays silent until it fires in timely
// data. Whoever was told that an alert began is told that it ended, even if the end is found in late data.
func Apply(tx state.Tx, tr rule.Transition, info Info) (Alert, error) {
	spec := info.Bound.Set().Spec(tr.Rule)
	id := rule.IncidentID(spec.Name, info.Vehicle, tr.Incident)
	a, known, err := load(tx, id)
	if err != nil {
		return a, err
	}
	if !known {
		a = Alert{ID: id, Rule: spec.Name, Vehicle: info.Vehicle, Since: tr.Incident}
		if err := tx.Set(timeKey(a.Since, id), nil); err != nil {
			return a, err
		}
		if err := tx.Set(vehicleKey(a.Vehicle, a.Since, id), nil); err != nil {
			return a, err
		}
	}
	a.Severity, a.Unit, a.Reopened = spec.Severity, info.Bound.Set().Unit(tr.Rule), tr.Reopened
	a.Peak = finite(tr.Peak)
	tell := false
	switch tr.To {
	case rule.Firing:
		tell = !tr.Late
		a.State, a.Late, a.ResolvedAt = Firing, tr.Late, 0
		a.Summary, a.Condition, a.Value = info.Bound.Summary(&tr, info.Vehicle), info.Bound.Condition(tr.Rule), finite(tr.Value)
		if tr.From != rule.Firing || a.FiredAt == 0 {
			a.FiredAt = tr.At
		}
		a.Lat, a.Lon, a.HasPlace = info.Lat, info.Lon, info.HasPlace
		err = open(tx, &a)
	case rule.Resolved:
		tell = known && !a.Late
		err = closeAlert(tx, &a, tr.At)
	default:
		return a, fmt.Errorf("alert: bug: transition to %v", tr.To)
	}
	if err != nil || !tell {
		return a, err
	}
	return a, tellAll(tx, &a, tr.At, tr.Arrival, info.Sinks)
}

// finite keeps what JSON cannot say out of a row.
func finite(x float64) float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return 0
	}
	return x
}

// open writes a firing alert and makes it the only open one of its rule and vehicle.
func open(tx state.Tx, a *Alert) error {
	key := openKey(a.Vehicle, a.Rule)
	b, err := tx.Get(key)
	if err != nil {
		return err
	}
	if b != nil && string(b) != a.ID {
		// The rule's state was lost and the alert was not. One open alert: the older one ends where this one begins.
		old, ok, err := load(tx, string(b))
		if err != nil {
			return err
		}
		if ok {
			old.State, old.ResolvedAt = Resolved, a.FiredAt
			if err := save(tx, &old); err != nil {
				return err
			}
		}
	}
	if err := tx.Set(key, []byte(a.ID)); err != nil {
		return err
	}
	return save(tx, a)
}

func closeAlert(tx state.Tx, a *Alert, at int64) error {
	a.State, a.ResolvedAt = Resolved, at
	key := openKey(a.Vehicle, a.Rule)
	b, err := tx.Get(key)
	if err != nil {
		return err
	}
	if string(b) == a.ID {
		if err := tx.Delete(key); err != nil {
			return err
		}
	}
	return save(tx, a)
}

func tellAll(tx state.Tx, a *Alert, at, asked int64, sinks []string) error {
	n := Notification{Transition: string(a.State), At: at, Alert: *a, Asked: asked, Text: a.text()}
	n.ID = a.ID + "/" + n.Transition
	if a.Reopened > 0 {
		n.ID += "-" + strconv.Itoa(a.Reopened)
	}
	data, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("notification %s: %w", n.ID, err)
	}
	for _, s := range sinks {
		if err := tx.Emit(state.Effect{ID: n.ID, Kind: Kind(s), Data: data}); err != nil {
			return err
		}
	}
	return nil
}

func (a *Alert) text() string {
	if a.State == Resolved {
		return "Resolved: " + a.Summary
	}
	if a.Reopened > 0 {
		return "Again: " + a.Summary
	}
	return a.Summary
}

// Retire ends the open alerts of a vehicle whose rules are gone, which no reading will ever resolve: call it when
// rule.Set.DecodeState reports orphans. keep tells whether there still is a rule of that name; at is the event time to record.
func Retire(tx state.Tx, vehicle string, keep func(rule string) bool, at int64, sinks []string) (int, error) {
	prefix := appendVehicle([]byte(openPrefix), vehicle)
	var gone []string
	err := tx.Scan(prefix, state.PrefixEnd(prefix), func(k, v []byte) error {
		if name := string(k[len(prefix):]); !raised(name) && !keep(name) {
			gone = append(gone, string(v))
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	for _, id := range gone {
		a, ok, err := load(tx, id)
		if err != nil {
			return 0, err
		}
		if !ok {
			continue
		}
		if err := closeAlert(tx, &a, max(at, a.FiredAt)); err != nil {
			return 0, err
		}
		if a.Late {
			continue
		}
		if err := tellAll(tx, &a, a.ResolvedAt, a.ResolvedAt, sinks); err != nil {
			return 0, err
		}
	}
	return len(gone), nil
}
