package window

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/milepost/milepost/internal/nearest"
)

// ParseLine reads a window written on one line:
//
//	AGGREGATE [as NAME], … [from STREAM] [where CONDITION] [by KEY] LENGTH [late D] [retain D] [idle D] [early D] [keep D] [to STREAM]
//
// LENGTH is one of
//
//	per D                tumbling
//	per D every D        hopping
//	sliding D            at every event
//	sliding D every D
//	session D            ends with a pause of D
//
// "count per 1m" counts everything, minute by minute. Durations are Go's, and days: 90s, 5m, 1h30m, 7d.
func ParseLine(line string) (Spec, error) {
	var s Spec
	if len(line) > maxText {
		return s, fmt.Errorf("longer than %d bytes: write it as keys", maxText)
	}
	parts, err := clauses(line)
	if err != nil {
		return s, err
	}
	for a := range strings.SplitSeq(parts[0].text, ",") {
		if a = strings.TrimSpace(a); a == "" {
			return s, errors.New("an aggregate is missing: write count, or avg(speed), max(speed)")
		}
		if _, err := parseAggregate(a); err != nil {
			return s, err
		}
		s.Aggregates = append(s.Aggregates, a)
	}
	length := ""
	for _, p := range parts[1:] {
		if p.text == "" {
			return s, fmt.Errorf("something is missing after %s", p.word)
		}
		var to *time.Duration
		switch p.word {
		case "from":
			s.Stream = p.text
		case "where":
			s.Where = p.text
		case "by":
			s.Key = p.text
		case "to":
			s.Output = p.text
		case "per", "sliding", "session":
			if length != "" {
				return s, fmt.Errorf("both %s and %s: a window has one length", length, p.word)
			}
			length = p.word
			to = &s.Size
			switch p.word {
			case "session":
				to, s.Type = &s.Gap, Session
			case "sliding":
				s.Type = Sliding
			}
		case "every":
			to = &s.Every
		case "late":
			to = &s.Lateness
		case "retain":
			to = &s.Retain
		case "idle":
			to = &s.Idle
		case "early":
			to = &s.Early
		case "keep":
			to = &s.Keep
		}
		if to == nil {
			if p.word != "where" && strings.ContainsAny(p.text, " \t") {
				return s, fmt.Errorf("%s %s: one word belongs after %s%s", p.word, p.text, p.word, clauseHint(p.text))
			}
			continue
		}
		if *to, err = parseDuration(p.text); err != nil {
			return s, fmt.Errorf("%s: %w", p.word, err)
		}
		if *to == 0 && p.word != "per" && p.word != "sliding" && p.word != "session" {
			*to = -1 // none, where zero is the default
		}
	}
	if length == "" {
		return s, errors.New("how long is a window? Write per 1m, per 5m every 1m, sliding 5m or session 10m")
	}
	return s, nil
}

func clauseWords() []string {
	return []string{"from", "where", "by", "per", "every", "sliding", "session", "late", "retain", "idle", "early", "keep", "to"}
}

// clauseHint guesses which clause word a word should have been.
func clauseHint(text string) string {
	for _, w := range strings.Fields(text)[1:] {
		if h := nearest.Hint(w, clauseWords()); h != "" {
			return h
		}
	}
	return ""
}

type clause struct{ word, text string }

// clauses cuts at the clause words that stand alone, outside quotes and parentheses. The first clause has no word.
func clauses(s string) ([]clause, error) {
	out := []clause{{}}
	seen := map[string]bool{}
	start, depth := 0, 0
	var quote byte
	space := func(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote != 0:
			switch c {
			case '\\':
				i++
			case quote:
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
		if depth != 0 || space(c) || (i > 0 && !space(s[i-1])) {
			continue
		}
		j := i
		for j < len(s) && !space(s[j]) {
			j++
		}
		w := s[i:j]
		if !slices.Contains(clauseWords(), w) {
			continue
		}
		if strings.TrimSpace(s[start:i]) == "" && len(out) > 1 {
			continue // the first word after a clause word is its text: a column may be called by
		}
		if seen[w] {
			return nil, fmt.Errorf("%s is given twice", w)
		}
		seen[w] = true
		out[len(out)-1].text = strings.TrimSpace(s[start:i])
		out = append(out, clause{word: w})
		start, i = j, j-1
	}
	switch {
	case quote != 0:
		return nil, errors.New("a quote is not closed")
	case depth != 0:
		return nil, errors.New("parentheses do not match")
	}
	out[len(out)-1].text = strings.TrimSpace(s[start:])
	return out, nil
}

func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseFloat(days, 64); err == nil && n >= 0 && n < 10_000 {
			return time.Duration(n * 24 * float64(time.Hour)), nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		hint := ""
		if f := strings.Fields(s); len(f) > 1 {
			hint = nearest.Hint(f[1], clauseWords())
		}
		return 0, fmt.Errorf("%q is not a duration: write 30s, 5m, 2h or 7d%s", s, hint)
	}
	return d, nil
}

// parseAggregate reads "avg(engine_temp)", "count", "max(speed) as top".
func parseAggregate(text string) (Aggregate, error) {
	body, as, named := strings.Cut(text, " as ")
	body, as = strings.TrimSpace(body), strings.TrimSpace(as)
	if named && !isName(as) {
		return Aggregate{}, fmt.Errorf("%q: %q is no name: use letters, digits and _, not beginning with a digit", text, as)
	}
	fn, rest, call := strings.Cut(body, "(")
	fn = strings.TrimSpace(fn)
	column := ""
	if call {
		var closed bool
		if column, closed = strings.CutSuffix(strings.TrimSpace(rest), ")"); !closed {
			return Aggregate{}, fmt.Errorf("%q: want ')' at the end", text)
		}
		column = strings.TrimSpace(column)
	}
	known := []string{}
	for _, f := range Funcs() {
		known = append(known, string(f))
	}
	if !slices.Contains(known, fn) {
		return Aggregate{}, fmt.Errorf("%q: there is no aggregate %q%s; there are %s", text, fn, nearest.Hint(fn, known), strings.Join(known, ", "))
	}
	if column == "*" && fn == string(Count) {
		column = ""
	}
	if column == "" && fn != string(Count) {
		return Aggregate{}, fmt.Errorf("%q: of what? Write %s(speed)", text, fn)
	}
	if !isColumn(column) {
		return Aggregate{}, fmt.Errorf("%q: %q is no signal or JSON path: use letters, digits, _, - and dots between them", text, column)
	}
	if as == "" {
		as = fn
		if column != "" {
			as += "_" + strings.Map(func(c rune) rune {
				if c == '.' || c == '-' {
					return '_'
				}
				return c
			}, column)
		}
	}
	return Aggregate{Func: Func(fn), Column: column, As: as}, nil
}

func isColumn(s string) bool {
	if len(s) > 128 {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if part == "" && s != "" {
			return false
		}
		for i := range len(part) {
			c := part[i]
			if c != '_' && c != '-' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
				return false
			}
		}
	}
	return true
}
