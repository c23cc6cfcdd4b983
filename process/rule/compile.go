package rule

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"cel.dev/cel-go/cel"

	"github.com/milepost/milepost/internal/nearest"
	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/telemetry"
)

// Limits of what Compile accepts, so that a configuration cannot make one reading expensive.
const (
	MaxRules      = 1024
	maxExpression = 4096 // bytes
)

// A Set is compiled rules. It never changes and is safe for concurrent use.
type Set struct {
	specs     []Spec // with defaults filled in
	rules     []compiled
	words     int      // length of a rule mask: one bit a rule
	bySignal  []uint64 // words per signal ID: the rules that mention it
	byStatus  []uint64
	offline   []int          // rules of kind offline
	byHash    map[uint64]int // rule by hash of its name
	overrides []override     // of all rules, globs before exact IDs
	base      *Bound         // for vehicles without overrides
	shared    *cache
	faults    *atomic.Uint64
	figures   figures
}

type compiled struct {
	params  []string // sorted
	when    condition
	clear   condition
	summary []piece
	first   telemetry.SignalID
	hasSig  bool   // first is set
	signal  string // first, as it is written
	unit    string
	hash    uint64
}

// A condition is compiled but not bound to parameters.
type condition struct {
	code    []instrSpec     // flat
	prog    cel.Program     // or slow
	negate  bool            // or, a clear condition that is When's negation
	limits  []limitSpec     // comparisons of the first signal
	uses    map[string]name // every name in it
	ordered []string        // its signals, in the order they appear
}

type instrSpec struct {
	instr
	fold *fold
}

// A limitSpec is a threshold of the first signal: above tells that exceeding it makes the condition true.
type limitSpec struct {
	fold  *fold
	above bool
}

// Compile checks rules and prepares them. The error lists everything that is wrong, each with its rule, place and mend.
func Compile(specs []Spec, cat *telemetry.Catalog) (*Set, error) {
	if len(specs) > MaxRules {
		return nil, fmt.Errorf("%d rules: at most %d; use overrides for what differs by vehicle", len(specs), MaxRules)
	}
	s := &Set{
		words: (len(specs) + 63) / 64, byHash: map[uint64]int{}, shared: &cache{}, faults: &atomic.Uint64{},
		bySignal: make([]uint64, cat.Len()*((len(specs)+63)/64)),
	}
	s.byStatus = make([]uint64, s.words)
	k, err := newChecker(cat)
	if err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	k.figures = &s.figures
	var errs []error
	for i, spec := range specs {
		c, err := k.compile(&spec)
		if err != nil {
			errs = append(errs, fmt.Errorf("rule %s: %w", orUnnamed(spec.Name), err))
			continue
		}
		if j, dup := s.byHash[c.hash]; dup {
			errs = append(errs, fmt.Errorf("rule %s: its name is taken by rule %d: rename one", spec.Name, j+1))
			continue
		}
		s.byHash[c.hash] = i
		s.specs = append(s.specs, spec)
		s.rules = append(s.rules, c)
		s.index(i, &c)
		if spec.Kind == Offline {
			s.offline = append(s.offline, i)
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	s.sortOverrides()
	s.base = s.bind(nil)
	return s, nil
}

func orUnnamed(n string) string {
	if n == "" {
		return "(without a name)"
	}
	return n
}

// index notes which signals a rule mentions.
func (s *Set) index(i int, c *compiled) {
	bit, w := uint64(1)<<(i%64), i/64
	for _, uses := range []map[string]name{c.when.uses, c.clear.uses} {
		for _, n := range uses {
			switch n.kind {
			case nameSignal:
				sig := n.sig
				if isFigure(sig) {
					sig = s.figures.moving[s.figures.all[sig-movingBase].moving].sig
				}
				s.bySignal[int(sig)*s.words+w] |= bit
			case nameStatus:
				s.byStatus[w] |= bit
			case nameParam:
			}
		}
	}
}

// Len returns the number of rules, which is the length of every vehicle's []State.
func (s *Set) Len() int { return len(s.specs) }

// Spec returns a rule with its defaults filled in. It is shared: do not write to it.
func (s *Set) Spec(i int) *Spec { return &s.specs[i] }

// Find returns the index of a rule by name.
func (s *Set) Find(name string) (int, bool) {
	i, ok := s.byHash[telemetry.HashName(name)]
	return i, ok && s.specs[i].Name == name
}

// Faults counts evaluations that ended in an error other than an unknown signal, such as a cost limit. They judged nothing.
func (s *Set) Faults() uint64 { return s.faults.Load() }

// compile fills in spec's defaults, checks it and prepares it.
func (k *checker) compile(spec *Spec) (compiled, error) {
	var c compiled
	if err := fillIn(spec); err != nil {
		return c, err
	}
	c.hash = telemetry.HashName(spec.Name)
	c.params = slices.Sorted(maps.Keys(spec.Params))
	if err := k.checkParams(spec, c.params); err != nil {
		return c, err
	}
	if spec.Kind == Offline {
		c.unit = "min"
	} else if err := k.conditions(spec, &c); err != nil {
		return c, err
	}
	if spec.Unit != "" {
		c.unit = spec.Unit
	}
	if spec.Summary == "" {
		spec.Summary = defaultSummary(spec, &c)
	}
	var err error
	c.summary, err = parseSummary(spec.Summary)
	return c, err
}

func (k *checker) conditions(spec *Spec, c *compiled) error {
	when, err := k.condition("when", spec.When, c.params)
	if err != nil {
		return err
	}
	c.when = when
	if len(when.ordered) > 0 {
		c.first, c.hasSig = when.uses[when.ordered[0]].sig, true
		c.signal = k.figures.shown(when.ordered[0])
		if isFigure(c.first) {
			if f := k.figures.all[c.first-movingBase]; f.fn != window.Count {
				c.unit = k.cat.Def(k.figures.moving[f.moving].sig).Unit
			}
		} else {
			c.unit = k.cat.Def(c.first).Unit
		}
	}
	clear, err := clearText(spec.Clear, c.signal)
	if err != nil {
		return err
	}
	if clear == "" {
		c.clear = condition{negate: true}
	} else if c.clear, err = k.condition("clear", clear, c.params); err != nil {
		return err
	}
	for _, p := range c.params {
		_, w := c.when.uses[p]
		_, x := c.clear.uses[p]
		if !w && !x {
			return fmt.Errorf("params: %s is used neither in when nor in clear: remove it or use it", p)
		}
	}
	return k.checkLimits(spec, c)
}

// checkLimits refuses parameters that make a threshold infinite or not a number: such a comparison would never be true.
func (k *checker) checkLimits(spec *Spec, c *compiled) error {
	try := func(over map[string]float64, whose string) error {
		p := values(c.params, spec.Params, over)
		for _, cond := range []*condition{&c.when, &c.clear} {
			for _, in := range cond.code {
				if in.fold == nil {
					continue
				}
				if x := in.fold.value(p); x-x != 0 {
					return fmt.Errorf("%s: a threshold becomes %v: check the division in the condition", whose, x)
				}
			}
		}
		return nil
	}
	if err := try(nil, "params"); err != nil {
		return err
	}
	for _, o := range spec.Overrides {
		if err := try(o.Params, "override of "+o.Vehicle); err != nil {
			return err
		}
	}
	return nil
}

func fillIn(s *Spec) error {
	if s.Name == "" {
		return errors.New("name is missing: give it one, such as overspeed")
	}
	if !isRuleName(s.Name) {
		return errors.New("name: use at most 64 letters, digits, _ and -")
	}
	for _, d := range []struct {
		name string
		v    time.Duration
	}{
		{"for", s.For}, {"clear_for", s.ClearFor}, {"silence", s.Silence}, {"gap", s.Gap}, {"max_age", s.MaxAge},
	} {
		if d.v < 0 || d.v > 366*24*time.Hour {
			return fmt.Errorf("%s: %v is out of range: use 0 to a year", d.name, d.v)
		}
	}
	switch s.Severity {
	case "":
		s.Severity = Warning
	case Info, Warning, Critical:
	default:
		return fmt.Errorf("severity: %q is not known: use info, warning or critical", s.Severity)
	}
	if s.MaxAge == 0 {
		s.MaxAge = DefaultMaxAge
	}
	if s.Reopen == 0 {
		s.Reopen = DefaultReopen
	}
	switch s.Kind {
	case "":
		s.Kind = Condition
		fallthrough
	case Condition:
		if s.When == "" {
			return errors.New("when is missing: write a condition such as speed > 80")
		}
		if s.Silence != 0 {
			return errors.New("silence is for kind offline: remove it, or set kind: offline")
		}
	case Offline:
		if s.When != "" || s.Clear != "" || s.For != 0 || s.ClearFor != 0 || len(s.Params) > 0 {
			return errors.New("kind offline takes silence only: remove when, for, clear, clear_for and params")
		}
		if s.Silence == 0 {
			s.Silence = DefaultSilence
		}
	default:
		return fmt.Errorf("kind: %q is not known: use condition or offline", s.Kind)
	}
	return nil
}

func isRuleName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

func (k *checker) checkParams(spec *Spec, params []string) error {
	for _, p := range params {
		if !isIdent(p) {
			return fmt.Errorf("params: %q cannot be used in a condition: use letters, digits and _, not beginning with a digit", p)
		}
		if _, ok := k.cat.Lookup([]byte(p)); ok || p == statusName {
			return fmt.Errorf("params: %s is a signal: choose another name", p)
		}
		if x := spec.Params[p]; x-x != 0 {
			return fmt.Errorf("params: %s is not a number: %v", p, x)
		}
	}
	for i := range spec.Overrides {
		o := &spec.Overrides[i]
		if o.Vehicle == "" {
			return fmt.Errorf("override %d: vehicle is missing: give an ID or a glob such as reefer-*", i+1)
		}
		if _, err := path.Match(o.Vehicle, ""); err != nil {
			return fmt.Errorf("override of %s: not a glob: close the bracket", o.Vehicle)
		}
		for p, x := range o.Params {
			if _, ok := spec.Params[p]; !ok {
				return fmt.Errorf("override of %s: the rule has no parameter %s%s", o.Vehicle, p, nearest.Hint(p, params))
			}
			if x-x != 0 {
				return fmt.Errorf("override of %s: %s is not a number: %v", o.Vehicle, p, x)
			}
		}
		if o.For != nil && (*o.For < 0 || spec.Kind == Offline) {
			return fmt.Errorf("override of %s: for must not be negative, nor given for kind offline", o.Vehicle)
		}
		if o.Silence != nil && (*o.Silence <= 0 || spec.Kind != Offline) {
			return fmt.Errorf("override of %s: silence must be positive and is for kind offline only", o.Vehicle)
		}
	}
	return nil
}

func isIdent(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// clearText turns "below N" and "above N" into a comparison of the rule's first signal.
func clearText(clear, signal string) (string, error) {
	for _, w := range []struct{ word, op string }{{"below ", " < "}, {"above ", " > "}} {
		rest, ok := strings.CutPrefix(clear, w.word)
		if !ok {
			continue
		}
		if signal == "" {
			return "", fmt.Errorf("clear: %q needs a signal in when: write a whole condition", clear)
		}
		return signal + w.op + "(" + rest + ")", nil
	}
	return clear, nil
}
