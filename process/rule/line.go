package rule

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ParseLine reads a rule written on one line, the form that scenarios use:
//
//	NAME: WHEN [for D] [clear CONDITION [for D]] [with P=N …] [severity S] [unit U] [gap D] [age D] [reopen D]
//	NAME: offline [for D] [severity S]
//
// CONDITION may be "below N" or "above N" of the first signal.
func ParseLine(line string) (Spec, error) {
	n, rest, ok := strings.Cut(line, ":")
	if !ok {
		return Spec{}, errors.New("a rule is NAME: CONDITION for DURATION clear CONDITION")
	}
	s := Spec{Name: strings.TrimSpace(n)}
	parts := clauses(rest)
	s.When = parts[0].text
	forWhat := &s.For
	if s.When == "offline" {
		s.Kind, s.When, forWhat = Offline, "", &s.Silence
	}
	for _, p := range parts[1:] {
		var err error
		switch p.word {
		case "for":
			*forWhat, err = parseDuration(p.text)
		case "clear":
			s.Clear, forWhat = p.text, &s.ClearFor
		case "with":
			s.Params, err = parseParams(p.text)
		case "severity":
			s.Severity = p.text
		case "unit":
			s.Unit = p.text
		case "gap":
			s.Gap, err = parseDuration(p.text)
		case "age":
			s.MaxAge, err = parseDuration(p.text)
		case "reopen":
			if s.Reopen, err = parseDuration(p.text); s.Reopen == 0 {
				s.Reopen = -1
			}
		}
		if err != nil {
			return s, fmt.Errorf("rule %s: %s: %w", s.Name, p.word, err)
		}
	}
	return s, nil
}

type clause struct{ word, text string }

func clauseWords() []string {
	return []string{"for", "clear", "with", "severity", "unit", "gap", "age", "reopen"}
}

// clauses cuts at the clause words that stand alone, outside quotes and parentheses. The first clause has no word.
func clauses(s string) []clause {
	out := []clause{{}}
	start, depth := 0, 0
	var quote byte
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
			continue
		case c == '"' || c == '\'':
			quote = c
			continue
		case c == '(' || c == '[':
			depth++
		case c == ')' || c == ']':
			depth--
		}
		if depth != 0 || !isLetter(c) || (i > 0 && s[i-1] != ' ' && s[i-1] != '\t') {
			continue
		}
		j := i
		for j < len(s) && s[j] != ' ' && s[j] != '\t' {
			j++
		}
		// The first word of a condition is a name, not a clause: a signal may be called age.
		if w := s[i:j]; slices.Contains(clauseWords(), w) && strings.TrimSpace(s[start:i]) != "" {
			out[len(out)-1].text = strings.TrimSpace(s[start:i])
			out = append(out, clause{word: w})
			start, i = j, j-1
		}
	}
	out[len(out)-1].text = strings.TrimSpace(s[start:])
	return out
}

func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration: write 30s, 5m or 2h", s)
	}
	return d, nil
}

func parseParams(s string) (map[string]float64, error) {
	out := map[string]float64{}
	for f := range strings.FieldsSeq(s) {
		k, v, ok := strings.Cut(f, "=")
		x, err := strconv.ParseFloat(v, 64)
		if !ok || err != nil {
			return nil, fmt.Errorf("%q is not NAME=NUMBER", f)
		}
		out[k] = x
	}
	return out, nil
}
