package rule

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/milepost/milepost/internal/nearest"
	"github.com/milepost/milepost/telemetry"
)

// split cuts a line into words. Double quotes keep blanks together; # outside them begins a comment.
func split(line string) ([]string, error) {
	var out []string
	var word strings.Builder
	in, quoted := false, false
	for _, c := range stripComment(line) {
		switch {
		case c == '"':
			quoted, in = !quoted, true
		case !quoted && (c == ' ' || c == '\t' || c == '\r'):
			if in {
				out = append(out, word.String())
				word.Reset()
				in = false
			}
		default:
			word.WriteRune(c)
			in = true
		}
	}
	if quoted {
		return nil, fmt.Errorf("a quote is not closed")
	}
	if in {
		out = append(out, word.String())
	}
	return out, nil
}

func stripComment(line string) string {
	quoted := false
	for i := range len(line) {
		switch line[i] {
		case '"':
			quoted = !quoted
		case '#':
			if !quoted {
				return line[:i]
			}
		}
	}
	return line
}

func isTime(s string) bool {
	return s != "" && s[0] >= '0' && s[0] <= '9' && strings.Contains(s, ":")
}

// when reads MM:SS or HH:MM:SS. Minutes without hours may exceed 59.
func (s *scenario) when(word string) (int64, error) {
	parts := strings.Split(word, ":")
	if len(parts) != 2 && len(parts) != 3 {
		return 0, fmt.Errorf("%q is no time: write MM:SS or HH:MM:SS", word)
	}
	total := int64(0)
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || (i > 0 && n > 59) {
			return 0, fmt.Errorf("%q is no time: write MM:SS or HH:MM:SS", word)
		}
		total = total*60 + int64(n) //nolint:gosec // 16 bits
	}
	return s.start + total*1000, nil
}

func (s *scenario) clock(t int64) string {
	sec := (t - s.start) / 1000
	if sec < 3600 {
		return fmt.Sprintf("%02d:%02d", sec/60, sec%60)
	}
	return fmt.Sprintf("%02d:%02d:%02d", sec/3600, sec/60%60, sec%60)
}

func (s *scenario) use(words []string) error {
	if len(words) == 0 {
		return fmt.Errorf("use what? write use shipped or use config")
	}
	from := s.env.Specs
	switch words[0] {
	case "shipped":
		from = Shipped()
	case "config":
	default:
		return fmt.Errorf("use %s: write use shipped or use config", words[0])
	}
	var names []string
	for _, spec := range from {
		names = append(names, spec.Name)
	}
	for _, n := range words[1:] {
		if !slices.Contains(names, n) {
			return fmt.Errorf("use %s: no rule %s%s", words[0], n, nearest.Hint(n, names))
		}
	}
	for _, spec := range from {
		if len(words) == 1 || slices.Contains(words[1:], spec.Name) {
			s.put(spec)
		}
	}
	return s.compile()
}

func (s *scenario) override(words []string) error {
	if len(words) < 3 {
		return fmt.Errorf("an override is: override VEHICLE RULE limit=100, or disabled")
	}
	i, err := s.ruleNamed(words[1])
	if err != nil {
		return err
	}
	o := Override{Vehicle: words[0], Params: map[string]float64{}}
	for _, w := range words[2:] {
		k, v, _ := strings.Cut(w, "=")
		switch k {
		case "disabled", "enabled":
			off := k == "disabled"
			o.Disabled = &off
		case "for", "silence":
			d, err := parseDuration(v)
			if err != nil {
				return err
			}
			if k == "for" {
				o.For = &d
			} else {
				o.Silence = &d
			}
		default:
			x, err := strconv.ParseFloat(v, 64)
			if err != nil {
				return fmt.Errorf("%q is not NAME=NUMBER", w)
			}
			o.Params[k] = x
		}
	}
	s.specs[i].Overrides = append(slices.Clone(s.specs[i].Overrides), o)
	return s.compile()
}

func (s *scenario) ruleNamed(n string) (int, error) {
	var names []string
	for i, spec := range s.specs {
		if spec.Name == n {
			return i, nil
		}
		names = append(names, spec.Name)
	}
	return 0, fmt.Errorf("no rule %s%s", n, nearest.Hint(n, names))
}

func (s *scenario) signal(words []string) error {
	if len(words) == 0 || len(words) > 2 || len(words[0]) > telemetry.MaxSignalName || words[0] == "" {
		return fmt.Errorf("a signal is: signal NAME UNIT")
	}
	d := telemetry.Def{Name: words[0]}
	if len(words) == 2 {
		d.Unit = words[1]
	}
	if s.cat.Len() >= telemetry.MaxSignals {
		return fmt.Errorf("more than %d signals", telemetry.MaxSignals)
	}
	defs := make([]telemetry.Def, 0, s.cat.Len()+1)
	for i := range s.cat.Len() {
		defs = append(defs, *s.cat.Def(telemetry.SignalID(i))) //nolint:gosec // bounded by MaxSignals
	}
	s.cat = telemetry.NewCatalog(append(defs, d)...) // IDs stay: the order does
	return nil
}

func (s *scenario) read(words []string) error {
	at, err := s.when(words[0])
	if err != nil {
		return err
	}
	if len(words) < 2 {
		return fmt.Errorf("a reading is: %s VEHICLE speed=80", words[0])
	}
	if strings.Contains(words[1], "=") {
		return fmt.Errorf("the vehicle is missing: write %s truck-7 %s", words[0], words[1])
	}
	r := reading{vehicle: words[1], at: at, arrival: at}
	for _, w := range words[2:] {
		k, v, ok := strings.Cut(w, "=")
		switch {
		case !ok:
			return fmt.Errorf("%q is not signal=value", w)
		case k == statusName:
			r.status = v
		case k == "late":
			d, err := parseDuration(v)
			if err != nil {
				return err
			}
			r.arrival = at + d.Milliseconds()
		default:
			id, ok := s.cat.Lookup([]byte(k))
			x, err := strconv.ParseFloat(v, 64)
			if !ok {
				return fmt.Errorf("no signal is called %s%s; or declare it: signal %s UNIT", k, nearest.Hint(k, s.signalNames()), k)
			}
			if err != nil || x-x != 0 {
				return fmt.Errorf("%s: %q is not a number", k, v)
			}
			for _, have := range r.signals {
				if have.ID == id {
					return fmt.Errorf("%s is on the line twice", k)
				}
			}
			r.signals = append(r.signals, telemetry.Signal{ID: id, Value: x})
		}
	}
	s.now = max(s.now, r.arrival)
	s.happened(s.judge(r))
	s.since = append(s.since, r)
	return nil
}

func (s *scenario) signalNames() []string {
	out := []string{statusName, "late"}
	for i := range s.cat.Len() {
		out = append(out, s.cat.Def(telemetry.SignalID(i)).Name) //nolint:gosec // bounded by MaxSignals
	}
	return out
}

func (s *scenario) tick(words []string) error {
	if len(words) != 1 {
		return fmt.Errorf("a tick is: tick 10:00")
	}
	at, err := s.when(words[0])
	if err != nil {
		return err
	}
	if at < s.now {
		return fmt.Errorf("it is %s already: time does not go back", s.clock(s.now))
	}
	s.now = at
	for _, id := range slices.Sorted(maps.Keys(s.world.vehicles)) {
		v := s.world.vehicles[id]
		s.happened(s.named(id, v.bound.Tick(v.st, v.heard, at, s.listening, nil)))
	}
	s.checkpoint() // ticks are not in the log: what they did is committed with an effect
	return nil
}

func (s *scenario) state(rule, vehicle string) (*State, error) {
	if _, err := s.ruleNamed(rule); err != nil {
		return nil, err
	}
	v := s.world.vehicles[vehicle]
	if v == nil {
		return nil, fmt.Errorf("no reading of %s%s so far", vehicle, nearest.Hint(vehicle, slices.Sorted(maps.Keys(s.world.vehicles))))
	}
	i, _ := s.set.Find(rule)
	return &v.st[i], nil
}

func (s *scenario) ack(words []string) error {
	if len(words) != 2 && (len(words) != 4 || words[2] != "by") {
		return fmt.Errorf("an acknowledgement is: ack RULE VEHICLE by WHO")
	}
	st, err := s.state(words[0], words[1])
	if err != nil {
		return err
	}
	if st.Phase != Firing {
		return fmt.Errorf("%s %s is %s: only a firing alert can be acknowledged", words[0], words[1], st.Phase)
	}
	who := "someone"
	if len(words) == 4 {
		who = words[3]
	}
	s.acked[words[0]+" "+words[1]] = who
	return nil
}

// An expectation is an expect line, read.
type expectation struct {
	what, rule, vehicle       string
	since, at                 int64
	value, peak               *float64
	late, reopened, withdrawn bool
}

func (s *scenario) expect(words []string) error {
	if len(words) > 0 && words[0] == "nothing" {
		if len(words) > 1 {
			return fmt.Errorf("expect nothing stands alone")
		}
		if len(s.events) > 0 {
			s.fail(s.describeAll(), "nothing")
			s.events = nil
		}
		return nil
	}
	x, err := s.parseExpect(words)
	if err != nil {
		return err
	}
	st, err := s.state(x.rule, x.vehicle)
	if err != nil {
		return err
	}
	want := strings.Join(words, " ")
	switch x.what {
	case "firing", "resolved":
		s.expectEvent(x, st, want)
		return nil
	case "acked", "not acked":
		if _, is := s.acked[x.rule+" "+x.vehicle]; is != (x.what == "acked") {
			s.fail(s.describeState(x, st), want)
		}
		return nil
	}
	ok := false
	switch x.what {
	case "pending":
		ok = st.Phase == Pending
	case "still firing":
		ok = st.Phase == Firing
	case "idle":
		ok = st.Phase == Idle || st.Phase == Resolved
	}
	if !ok || (x.since != 0 && x.since != st.Since) {
		s.fail(s.describeState(x, st), want)
	}
	return nil
}

func (s *scenario) parseExpect(words []string) (expectation, error) {
	var x expectation
	if len(words) > 1 && (words[0] == "still" && words[1] == "firing" || words[0] == "not" && words[1] == "acked") {
		words = append([]string{words[0] + " " + words[1]}, words[2:]...)
	}
	whats := []string{"nothing", "firing", "resolved", "pending", "idle", "acked", "still firing", "not acked"}
	if len(words) == 0 || !slices.Contains(whats, words[0]) {
		return x, fmt.Errorf("expect what? One of %s", strings.Join(whats, ", "))
	}
	if len(words) < 3 {
		return x, fmt.Errorf("expect %s RULE VEHICLE: %w", words[0], errShort)
	}
	x.what, x.rule, x.vehicle = words[0], words[1], words[2]
	for i := 3; i < len(words); i++ {
		var err error
		switch w := words[i]; w {
		case "late":
			x.late = true
		case "reopened":
			x.reopened = true
		case "withdrawn":
			x.withdrawn = true
		case "since", "at", "value", "peak":
			i++
			if i == len(words) {
				return x, fmt.Errorf("%s what?", w)
			}
			err = x.option(s, w, words[i])
		default:
			err = fmt.Errorf("%q says nothing about an alert%s", w, nearest.Hint(w, []string{"since", "at", "value", "peak", "late", "reopened", "withdrawn"}))
		}
		if err != nil {
			return x, err
		}
	}
	return x, nil
}

func (x *expectation) option(s *scenario, w, v string) (err error) {
	switch w {
	case "since":
		x.since, err = s.when(v)
		return err
	case "at":
		x.at, err = s.when(v)
		return err
	}
	n, err := strconv.ParseFloat(v, 64)
	if err != nil {
		return fmt.Errorf("%s: %q is not a number", w, v)
	}
	if w == "value" {
		x.value = &n
	} else {
		x.peak = &n
	}
	return nil
}

func (s *scenario) expectEvent(x expectation, st *State, want string) {
	for i, e := range s.events {
		if e.rule != x.rule || e.vehicle != x.vehicle || e.To.String() != x.what {
			continue
		}
		s.events = slices.Delete(s.events, i, i+1)
		if (x.since != 0 && x.since != e.Since) || (x.at != 0 && x.at != e.At) || (x.value != nil && *x.value != e.Value) ||
			(x.peak != nil && *x.peak != e.Peak) || x.late != e.Late || (x.reopened && e.Reopened == 0) || x.withdrawn != e.Withdrawn {
			s.fail(s.describe(e), want)
		}
		return
	}
	got := s.describeState(x, st)
	if len(s.events) > 0 {
		got = s.describeAll()
	} else if st.Phase == Firing && x.what == "firing" {
		got = "nothing new, " + got + " (write: expect still firing)"
	}
	s.fail(got, want)
}

func (s *scenario) describe(e event) string {
	var sb strings.Builder
	fmt.Fprintf(&sb, "%s %s %s since %s at %s", e.To, e.rule, e.vehicle, s.clock(e.Since), s.clock(e.At))
	if e.HasValue {
		fmt.Fprintf(&sb, " value %v peak %v", e.Value, e.Peak)
	}
	for _, f := range []struct {
		is   bool
		word string
	}{{e.Late, " late"}, {e.Reopened > 0, " reopened"}, {e.Withdrawn, " withdrawn"}} {
		if f.is {
			sb.WriteString(f.word)
		}
	}
	return sb.String()
}

func (s *scenario) describeAll() string {
	if len(s.events) == 0 {
		return "nothing"
	}
	out := make([]string, len(s.events))
	for i, e := range s.events {
		out[i] = s.describe(e)
	}
	return strings.Join(out, "; ")
}

func (s *scenario) describeState(x expectation, st *State) string {
	out := fmt.Sprintf("%s %s %s", st.Phase, x.rule, x.vehicle)
	if st.Phase == Pending || st.Phase == Firing {
		out += " since " + s.clock(st.Since)
	}
	if who, ok := s.acked[x.rule+" "+x.vehicle]; ok {
		out += " acked by " + who
	}
	return out
}
