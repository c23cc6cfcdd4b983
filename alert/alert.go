// Package alert turns what rules find into alerts that people trust: one open alert per rule and vehicle, acknowledged,
// resolved, reopened, and notified once per transition, never for late data (P9).
package alert

// A State is where an alert is in its life.
type State string

// The states. An alert that is only pending has not been shown to anyone.
const (
	Pending  State = "pending"
	Firing   State = "firing"
	Resolved State = "resolved"
)

// An Alert is one incident of one rule on one vehicle. Times are Unix ms UTC; zero: not yet.
type Alert struct {
	ID         string  `json:"id"`   // stable: the same cause makes the same ID (P4)
	Rule       string  `json:"rule"` // the rule's name
	Vehicle    string  `json:"vehicle_id"`
	Severity   string  `json:"severity"` // info, warning, critical
	State      State   `json:"state"`
	Summary    string  `json:"summary"`        // a sentence for people, with value, threshold and unit
	Value      float64 `json:"value"`          // of the rule's first signal when it fired
	Unit       string  `json:"unit,omitempty"` // of value and peak
	Peak       float64 `json:"peak"`           // the worst value while it was firing
	Condition  string  `json:"condition"`      // the rule as it was applied, overrides included
	Since      int64   `json:"since"`          // event time at which the condition became true
	FiredAt    int64   `json:"fired_at"`       // event time at which it had held for long enough
	ResolvedAt int64   `json:"resolved_at,omitempty"`
	AckedAt    int64   `json:"acked_at,omitempty"`
	AckedBy    string  `json:"acked_by,omitempty"`
	Late       bool    `json:"late,omitempty"` // found in data that came too late to page anyone
	Reopened   int     `json:"reopened,omitempty"`
	Lat        float64 `json:"lat,omitempty"` // where the vehicle was when it fired
	Lon        float64 `json:"lon,omitempty"`
	HasPlace   bool    `json:"has_place,omitempty"`
}
