package alert

import (
	"strings"

	"github.com/milepost/milepost/state"
)

// Raise opens an alert that no rule found, about something other than readings: a certificate that ends. The caller gives ID (the
// same cause always the same, P4), Rule, Vehicle, Severity, Summary, Condition and Since. Rule must hold a slash, as no rule's name does,
// so that the lanes leave it alone. An alert that is firing already is left as it is and nobody is told again.
func Raise(tx state.Tx, a Alert, at int64, sinks []string) error {
	old, known, err := load(tx, a.ID)
	if err != nil || known && old.State == Firing {
		return err
	}
	if known {
		a.Reopened = old.Reopened + 1
	} else {
		if err := tx.Set(timeKey(a.Since, a.ID), nil); err != nil {
			return err
		}
		if err := tx.Set(vehicleKey(a.Vehicle, a.Since, a.ID), nil); err != nil {
			return err
		}
	}
	a.State, a.FiredAt, a.ResolvedAt = Firing, at, 0
	if err := open(tx, &a); err != nil {
		return err
	}
	return tellAll(tx, &a, at, at, sinks)
}

// Settle ends an alert that Raise opened. One that is not firing is left as it is.
func Settle(tx state.Tx, id string, at int64, sinks []string) error {
	a, known, err := load(tx, id)
	if err != nil || !known || a.State != Firing {
		return err
	}
	if err := closeAlert(tx, &a, at); err != nil {
		return err
	}
	return tellAll(tx, &a, at, at, sinks)
}

// raised tells whether an alert of this name is Raise's rather than a rule's.
func raised(rule string) bool { return strings.Contains(rule, "/") }
