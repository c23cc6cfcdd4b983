package rule

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/milepost/milepost/internal/nearest"
	"github.com/milepost/milepost/telemetry"
)

// A scenario is a story about vehicles that says what the rules must make of it; docs/alerts.md teaches the language.
//
//	rule NAME: …                         a rule (see ParseLine); a later line with the same name replaces it
//	use shipped [NAME …]                 the shipped rules, or some; "use config": Env.Specs
//	override VEHICLE RULE p=N … [for=D] [silence=D] [disabled|enabled]
//	signal NAME [UNIT]                   a signal that the catalog does not know
//	TIME VEHICLE sig=val … [status=text] [late=D]     a reading; TIME is MM:SS or HH:MM:SS
//	tick TIME                            time passes until then: silence is noticed
//	ack RULE VEHICLE [by WHO]            someone acknowledges a firing alert
//	checkpoint                           what a crash goes back to; every tick is one too, as is the beginning
//	crash                                forget what is in memory, read the last checkpoint, run again from there
//	expect nothing                       no alert fired or was resolved since the last expect
//	expect firing RULE VEHICLE [since TIME] [value N] [peak N] [late] [reopened]
//	expect resolved RULE VEHICLE [at TIME] [peak N] [late] [withdrawn]
//	expect pending|idle|still firing|acked|not acked RULE VEHICLE [since TIME]     how it stands, not what happened
//
// # begins a comment. What happened and nobody expected is a failure.

// An Env is what a scenario may refer to.
type Env struct {
	Catalog *telemetry.Catalog // nil: the well-known signals
	Specs   []Spec             // brought in by "use config"
}

// A Failure is a line of a scenario that cannot be understood, or at which the rules did something else.
type Failure struct {
	Line      int
	Got, Want string
	Err       error // instead of Got and Want
}

func (f Failure) String() string {
	if f.Err != nil {
		return fmt.Sprintf("line %d: %v", f.Line, f.Err)
	}
	return fmt.Sprintf("line %d: got %s, want %s", f.Line, f.Got, f.Want)
}

// RunScenario runs a scenario and returns what went wrong; nothing is success. It goes on after a failed expectation and
// stops at a line that it does not understand.
func RunScenario(r io.Reader, env Env) []Failure {
	if env.Catalog == nil {
		env.Catalog = telemetry.NewCatalog()
	}
	s := &scenario{env: env, cat: copyCatalog(env.Catalog), start: scenarioStart(), acked: map[string]string{}, seen: map[string]bool{}}
	in := bufio.NewScanner(r)
	in.Buffer(nil, 64<<10)
	for in.Scan() {
		s.line++
		words, err := split(in.Text())
		if err == nil && len(words) > 0 {
			err = s.do(words, in.Text())
		}
		if err != nil {
			return append(s.failures, Failure{Line: s.line, Err: err})
		}
	}
	s.line++
	if err := in.Err(); err != nil {
		return append(s.failures, Failure{Line: s.line, Err: err})
	}
	s.leftovers()
	return s.failures
}

// scenarioStart is 00:00: any real moment, so that 0 still means never.
func scenarioStart() int64 { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli() }

func copyCatalog(c *telemetry.Catalog) *telemetry.Catalog {
	defs := make([]telemetry.Def, c.Len())
	for i := range defs {
		defs[i] = *c.Def(telemetry.SignalID(i)) //nolint:gosec // bounded by MaxSignals
	}
	return telemetry.NewCatalog(defs...)
}

type scenario struct {
	env       Env
	cat       *telemetry.Catalog
	specs     []Spec
	set       *Set // nil: specs changed
	world     *world
	saved     *world    // what a crash goes back to; its rule state went through AppendState
	since     []reading // the readings after saved
	events    []event   // not yet expected
	acked     map[string]string
	seen      map[string]bool // incident/transition: what would have been sent (P4)
	start     int64
	listening int64 // since when this process listens
	now       int64
	line      int
	expecting bool // the last line was an expectation
	failures  []Failure
}

type reading struct {
	vehicle string
	at      int64
	arrival int64
	signals []telemetry.Signal
	status  string
}

// A world is all vehicles' state.
type world struct{ vehicles map[string]*vehicle }

type vehicle struct {
	bound  *Bound
	st     []State
	values Values
	heard  int64
}

type event struct {
	Transition
	vehicle, rule string
}

func (s *scenario) do(words []string, text string) error {
	if s.expecting && words[0] != "expect" {
		s.leftovers()
	}
	s.expecting = words[0] == "expect"
	switch words[0] {
	case "rule":
		_, rest, _ := strings.Cut(stripComment(text), "rule")
		spec, err := ParseLine(rest)
		if err != nil {
			return err
		}
		s.put(spec)
		return s.compile()
	case "use":
		return s.use(words[1:])
	case "override":
		return s.override(words[1:])
	case "signal":
		return s.signal(words[1:])
	}
	if s.set == nil {
		if err := s.compile(); err != nil {
			return err
		}
	}
	switch words[0] {
	case "tick":
		return s.tick(words[1:])
	case "ack":
		return s.ack(words[1:])
	case "checkpoint":
		s.checkpoint()
		return nil
	case "crash":
		return s.crash()
	case "expect":
		return s.expect(words[1:])
	}
	if isTime(words[0]) {
		return s.read(words)
	}
	known := []string{"rule", "use", "override", "signal", "tick", "ack", "checkpoint", "crash", "expect"}
	return fmt.Errorf("%q begins no line of a scenario%s", words[0], nearest.Hint(words[0], known))
}

func (s *scenario) put(spec Spec) {
	for i := range s.specs {
		if s.specs[i].Name == spec.Name {
			s.specs[i] = spec
			return
		}
	}
	s.specs = append(s.specs, spec)
}

// compile takes the rules as they are now into use. Vehicles keep the state of the rules that stay.
func (s *scenario) compile() error {
	set, err := Compile(s.specs, s.cat)
	if err != nil {
		return err
	}
	old := s.set
	s.set = set
	if s.world == nil {
		s.world = &world{vehicles: map[string]*vehicle{}}
		s.listening, s.now = s.start, s.start
	} else if old != nil {
		if s.world, err = s.world.through(old, set); err != nil {
			return err
		}
	}
	s.checkpoint()
	return nil
}

// through is the world after its rule state has been stored by one program and read by another.
func (w *world) through(from, to *Set) (*world, error) {
	out := &world{vehicles: map[string]*vehicle{}}
	for id, v := range w.vehicles {
		n := &vehicle{bound: to.Bind(id), st: make([]State, to.Len()), heard: v.heard, values: Values{
			V: slices.Clone(v.values.V), T: slices.Clone(v.values.T), Status: v.values.Status, StatusT: v.values.StatusT,
		}}
		if _, err := to.DecodeWindows(from.AppendWindows(nil, &v.values), &n.values); err != nil {
			return nil, fmt.Errorf("vehicle %s: %w", id, err)
		}
		if _, err := to.DecodeState(from.AppendState(nil, v.st), n.st); err != nil {
			return nil, fmt.Errorf("vehicle %s: %w", id, err)
		}
		out.vehicles[id] = n
	}
	return out, nil
}

func (s *scenario) checkpoint() {
	w, err := s.world.through(s.set, s.set)
	if err != nil {
		s.fail(err.Error(), "state that can be read again")
		return
	}
	s.saved, s.since = w, s.since[:0]
}

// crash runs the readings since the checkpoint again, from state that was stored, and compares.
func (s *scenario) crash() error {
	before := s.world
	w, err := s.saved.through(s.set, s.set)
	if err != nil {
		return err
	}
	s.world = w
	again := map[string]bool{}
	for _, r := range s.since {
		for _, e := range s.judge(r) {
			again[e.id()] = true
			if !s.seen[e.id()] {
				s.fail("after the crash "+s.describe(e), "no alert that was not there before")
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(before.vehicles)) {
		was, is := before.vehicles[id], s.world.vehicles[id]
		if is == nil || !bytes.Equal(s.set.AppendState(nil, was.st), s.set.AppendState(nil, is.st)) ||
			!bytes.Equal(s.set.AppendWindows(nil, &was.values), s.set.AppendWindows(nil, &is.values)) {
			s.fail("other state after the crash", "vehicle "+id+" as before")
		}
	}
	s.listening = s.now
	return nil
}

func (e *event) id() string {
	id := IncidentID(e.rule, e.vehicle, e.Incident) + "/" + e.To.String()
	if e.Reopened > 0 {
		id = fmt.Sprintf("%s-%d", id, e.Reopened)
	}
	if e.Late {
		id += "/late"
	}
	return id
}

// judge runs one reading through state and rules, as the fleet's function does.
func (s *scenario) judge(r reading) []event {
	v := s.world.vehicles[r.vehicle]
	if v == nil {
		v = &vehicle{bound: s.set.Bind(r.vehicle), st: make([]State, s.set.Len()), values: Values{
			V: make([]float64, s.cat.Len()), T: make([]int64, s.cat.Len()),
		}}
		s.world.vehicles[r.vehicle] = v
	}
	v.heard = max(v.heard, r.arrival)
	for _, x := range r.signals {
		for int(x.ID) >= len(v.values.V) { // a signal declared since
			v.values.V, v.values.T = append(v.values.V, 0), append(v.values.T, 0)
		}
		if r.at >= v.values.T[x.ID] {
			v.values.V[x.ID], v.values.T[x.ID] = x.Value, r.at
		}
	}
	if r.status != "" && r.at >= v.values.StatusT {
		v.values.Status, v.values.StatusT = r.status, r.at
	}
	in := Input{Time: r.at, Arrival: r.arrival, Changed: r.signals, Status: r.status != ""}
	return s.named(r.vehicle, v.bound.Eval(v.st, &v.values, in, nil))
}

func (s *scenario) named(vehicle string, ts []Transition) []event {
	out := make([]event, len(ts))
	for i, t := range ts {
		out[i] = event{Transition: t, vehicle: vehicle, rule: s.set.Spec(t.Rule).Name}
	}
	return out
}

func (s *scenario) happened(es []event) {
	for _, e := range es {
		s.seen[e.id()] = true
		if e.To == Firing && e.From != Firing {
			delete(s.acked, e.rule+" "+e.vehicle)
		}
	}
	s.events = append(s.events, es...)
}

func (s *scenario) fail(got, want string) {
	s.failures = append(s.failures, Failure{Line: s.line, Got: got, Want: want})
}

// leftovers are events that a group of expectations, or the whole file, did not mention.
func (s *scenario) leftovers() {
	if len(s.events) > 0 {
		s.fail(s.describeAll(), "an expect line for it")
		s.events = nil
	}
}

var errShort = errors.New("something is missing on this line")
