package rule

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/milepost/milepost/internal/nearest"
)

// A piece of a summary: literal text, or a field to fill in.
type piece struct {
	text  string
	field string
}

func summaryFields() []string {
	return []string{"vehicle", "rule", "signal", "value", "peak", "limit", "unit", "for", "severity"}
}

func parseSummary(s string) ([]piece, error) {
	if len(s) > 1024 {
		return nil, fmt.Errorf("summary: longer than 1024 bytes: shorten it")
	}
	var out []piece
	for s != "" {
		i := strings.IndexByte(s, '{')
		if i < 0 {
			return append(out, piece{text: s}), nil
		}
		j := strings.IndexByte(s[i:], '}')
		if j < 0 {
			return nil, fmt.Errorf("summary: { without }: fields are {%s}", strings.Join(summaryFields(), "} {"))
		}
		f := s[i+1 : i+j]
		if !slices.Contains(summaryFields(), f) {
			return nil, fmt.Errorf("summary: no field {%s}%s; fields are {%s}", f, nearest.Hint(f, summaryFields()), strings.Join(summaryFields(), "} {"))
		}
		out = append(out, piece{text: s[:i]}, piece{field: f})
		s = s[i+j+1:]
	}
	return out, nil
}

func defaultSummary(spec *Spec, c *compiled) string {
	switch {
	case spec.Kind == Offline:
		return "{vehicle}: no data for {value} {unit}"
	case !c.hasSig:
		return "{vehicle}: {rule}"
	case len(c.when.limits) == 0:
		return "{vehicle}: {rule}, {signal} {value} {unit}"
	}
	return "{vehicle}: {signal} {value} {unit}, limit {limit} {unit}"
}

// Summary is a sentence for people about a transition.
func (b *Bound) Summary(t *Transition, vehicle string) string {
	c, spec, r := &b.set.rules[t.Rule], &b.set.specs[t.Rule], &b.rules[t.Rule]
	var sb strings.Builder
	for _, p := range c.summary {
		switch p.field {
		case "":
			sb.WriteString(p.text)
		case "vehicle":
			sb.WriteString(vehicle)
		case "rule":
			sb.WriteString(spec.Name)
		case "severity":
			sb.WriteString(spec.Severity)
		case "signal":
			sb.WriteString(c.signal)
		case "value":
			sb.WriteString(spec.number(t.Value))
		case "peak":
			sb.WriteString(spec.number(t.Peak))
		case "limit":
			sb.WriteString(spec.number(t.Limit))
		case "unit":
			if spec.Kind != Offline { // a duration has its own
				sb.WriteString(c.unit)
			}
		case "for":
			sb.WriteString(formatDuration(time.Duration(r.hold) * time.Millisecond))
		}
	}
	return strings.Join(strings.Fields(sb.String()), " ") // a signal without a unit leaves no double blank
}

// Condition is a rule as it applies to the vehicle, overrides included: "speed > limit for 30s (limit 80)".
func (b *Bound) Condition(i int) string {
	spec, c, r := &b.set.specs[i], &b.set.rules[i], &b.rules[i]
	if spec.Kind == Offline {
		return "no data for " + formatDuration(time.Duration(r.silence)*time.Millisecond)
	}
	s := spec.When
	if r.hold > 0 {
		s += " for " + formatDuration(time.Duration(r.hold)*time.Millisecond)
	}
	if len(c.params) == 0 {
		return s
	}
	ps := make([]string, len(c.params))
	for j, p := range c.params {
		ps[j] = p + " " + formatNumber(r.params[j])
	}
	return s + " (" + strings.Join(ps, ", ") + ")"
}

// Unit returns the unit of a rule's value and limit.
func (s *Set) Unit(i int) string { return s.rules[i].unit }

// number writes a value, peak or limit for people. Silence is counted in minutes, but nobody reads 0.133 min or 1560 min.
func (s *Spec) number(x float64) string {
	if s.Kind == Offline {
		return formatDuration(time.Duration(x * float64(time.Minute)).Round(time.Second))
	}
	return formatNumber(x)
}

// formatNumber writes at most one decimal, or three for what is small: nobody reads 86.4000015.
func formatNumber(x float64) string {
	switch a := math.Abs(x); {
	case a >= 1e15:
		return strconv.FormatFloat(x, 'g', 4, 64)
	case a < 1 && a != 0:
		return trimZeros(strconv.FormatFloat(x, 'f', 3, 64))
	}
	return trimZeros(strconv.FormatFloat(x, 'f', 1, 64))
}

func trimZeros(s string) string {
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	if s == "-0" {
		return "0"
	}
	return s
}

// formatDuration writes 30s, 2m, 1h30m: Duration.String without zero tails.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}
