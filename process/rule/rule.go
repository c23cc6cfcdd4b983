// Package rule judges readings: conditions over a vehicle's signals that must hold for a while before they fire, and must
// clear before they are over.
//
// It is pure. No clock, no I/O, no state store: a lane keeps a []State and a Values per vehicle, hands in each reading, and
// gets transitions back. The same readings in the same order give the same transitions and the same incident IDs (P4), which
// is what makes replay and recovery safe.
//
// A condition is three-valued. A signal that the vehicle never sent, or not for longer than the rule's MaxAge, is unknown; a
// condition that depends on it is unknown, and an unknown condition changes nothing: it neither fires nor resolves, and the
// reading does not count. "cargo_temp < 2 || speed > 80" is true at 90 km/h even for a truck without a cargo sensor.
//
// Time is event time. A rule sees the readings that carry a signal it mentions, in order; one that is older than the last it
// judged is left out, because what happened between them has been judged already. The offline kind is the exception: it
// is about silence, so it counts arrival time.
package rule

import (
	"time"

	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/telemetry"
)

// A Kind is what a rule watches.
type Kind string

// The kinds.
const (
	Condition Kind = "condition" // a condition over signals; the default
	Offline   Kind = "offline"   // no data for Silence, by arrival time
)

// The severities, mildest first.
const (
	Info     = "info"
	Warning  = "warning"
	Critical = "critical"
)

// Defaults of Spec's zero fields.
const (
	DefaultGap     = 60 * time.Second
	DefaultMaxAge  = 15 * time.Minute
	DefaultReopen  = 10 * time.Minute
	DefaultSilence = 10 * time.Minute
)

// LateAfter is how old a reading may be on arrival for what it triggers to still reach people (P9).
const LateAfter = 15 * time.Minute

// A Spec is a rule as people write it.
type Spec struct {
	Name     string `yaml:"name" doc:"letters, digits, _ and -; keys the rule's state, so renaming forgets it"`
	Kind     Kind   `yaml:"kind,omitempty" doc:"condition (default) or offline"`
	Severity string `yaml:"severity,omitempty" doc:"info, warning or critical; default warning"`
	Summary  string `yaml:"summary,omitempty" doc:"the sentence people read, with {vehicle} {rule} {signal} {value} {peak} {limit} {unit} {for}; default: made of the condition"`
	Unit     string `yaml:"unit,omitempty" doc:"unit of value and limit in the summary; default the first signal's"`

	When string        `yaml:"when,omitempty" doc:"condition in CEL over signals, status and params: speed > limit"`
	For  time.Duration `yaml:"for,omitempty" doc:"how long the condition must hold; 0 fires at the first reading"`

	// Clear ends the alert: a condition, or "below N" or "above N" of the first signal. Default: When is false. Keep some
	// distance to When, or a value at the threshold flaps.
	Clear    string        `yaml:"clear,omitempty" doc:"ends the alert: a condition, or \"below N\", \"above N\" of the first signal; default: when is false"`
	ClearFor time.Duration `yaml:"clear_for,omitempty" doc:"how long clear must hold; default 0"`

	Params    map[string]float64 `yaml:"params,omitempty" doc:"named thresholds for when and clear"`
	Overrides []Override         `yaml:"overrides,omitempty" doc:"per vehicle; of several that match, globs first, each in order"`
	Disabled  bool               `yaml:"disabled,omitempty" doc:"off for every vehicle that no override enables"`

	Silence time.Duration `yaml:"silence,omitempty" doc:"kind offline: how long without data; default 10m"`

	// Gap is the longest pause between two readings over which the condition is believed to have held. Default 60s, or half
	// of For if that is more, so that a rule over minutes works with devices that send every few minutes.
	Gap    time.Duration `yaml:"gap,omitempty" doc:"longest pause between two readings over which the condition is believed to have held; default 60s, or half of for if that is more"`
	MaxAge time.Duration `yaml:"max_age,omitempty" doc:"after this a signal's value is unknown; default 15m"`
	Reopen time.Duration `yaml:"reopen,omitempty" doc:"true again so soon after the end: the same incident; default 10m, negative never"`
}

// An Override changes a rule for some vehicles.
type Override struct {
	Vehicle  string             `yaml:"vehicle" doc:"an exact ID, or a glob: reefer-*"`
	Params   map[string]float64 `yaml:"params,omitempty" doc:"replace the rule's, name by name"`
	Disabled *bool              `yaml:"disabled,omitempty" doc:"false enables again what a wider override disabled"`
	For      *time.Duration     `yaml:"for,omitempty" doc:"replaces for"`
	Silence  *time.Duration     `yaml:"silence,omitempty" doc:"replaces silence"`
}

// A Phase is where one rule is with one vehicle.
type Phase uint8

// The phases.
const (
	Idle     Phase = iota
	Pending        // true, not yet for long enough; shown to nobody
	Firing         //
	Resolved       // idle, and remembers its incident in case it reopens
)

func (p Phase) String() string {
	switch p {
	case Idle:
		return "idle"
	case Pending:
		return "pending"
	case Firing:
		return "firing"
	case Resolved:
		return "resolved"
	}
	return "invalid"
}

// A State is one rule's memory of one vehicle. The zero State is that of a vehicle never seen. Times are Unix ms; zero: none.
// Kind condition uses event time, kind offline arrival time.
type State struct {
	Last       int64   // the newest reading judged
	Since      int64   // the first reading of this episode at which the condition was true
	FiredAt    int64   // when it had held for long enough
	ClearSince int64   // firing: since when Clear has held
	ResolvedAt int64   // when the last episode ended
	Incident   int64   // Since of the incident's first episode: what its ID is made of
	Value      float64 // of the first signal, when the episode began or fired
	Peak       float64 // its worst value in the episode
	Reopened   uint32  // how often the incident has reopened
	Phase      Phase   //
	Readings   uint8   // that were true in a row while pending, counted to 2
	Late       bool    // it fired in data that came too late to tell anyone
}

// Values is a vehicle's newest value of each signal, indexed by telemetry.SignalID. V and T have equal lengths; a signal
// beyond them is unknown.
type Values struct {
	V       []float64
	T       []int64 // event time in ms; 0: never sent
	Status  string  // "": unknown
	StatusT int64

	// Windows that rules mention; Eval and DecodeWindows keep them.
	moving  []window.Moving
	figures *figures
	now     int64 // of the reading that is judged
}

// An Input is one reading, after its values went into Values.
type Input struct {
	Time    int64              // event time, ms
	Arrival int64              // ms
	Changed []telemetry.Signal // the signals the reading carries, changed or not
	Status  bool               // it carries a status
}

// A Transition is a step of an alert's life that others should know. A rule that becomes or ceases to be pending makes none.
type Transition struct {
	Rule      int     // index in the Set
	From      Phase   //
	To        Phase   // Firing or Resolved. Firing→Firing: an alert found in late data still holds in timely data
	Incident  int64   // what IncidentID wants
	Since     int64   // when the condition became true
	At        int64   // when it fired or was resolved: event time, or arrival time of kind offline
	Arrival   int64   // of the reading that did it; the tick's time for kind offline
	Value     float64 // of the first signal now; minutes of silence for kind offline
	Peak      float64 // the worst value of the episode so far
	Limit     float64 // what Value was compared with
	HasValue  bool    //
	HasLimit  bool    //
	Late      bool    // the reading arrived more than LateAfter after its event time: correct history, tell nobody
	Reopened  int     // how often this incident has reopened
	Withdrawn bool    // resolved because the rule was disabled for this vehicle, not because of data
}
