package continuous

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/milepost/milepost/query"
)

// describe goes before a SELECT that is looked at and not run. On a line of its own it moves no column.
const describe = "DESCRIBE\n"

// Prepare has the engine parse and bind the SELECT, without running it, and tells what is wrong with it and where in the text: the syntax,
// a table, column or function that is not there, a type that does not go, a column that a result cannot have. What only shows in the data
// (a cast that fails for one row) shows when a window runs. Call it on a Spec that Check has passed.
func (s *Spec) Prepare(ctx context.Context, e query.Engine) error {
	t, err := parseSQL(s.SQL)
	if err != nil {
		return err
	}
	filled := t.fill(time.Unix(0, 0), time.Unix(0, 0))
	var out bounded
	_, err = e.Query(ctx, describe+filled, query.JSON, query.Limits{Timeout: s.Timeout}, &out)
	if own, ok := errors.AsType[*query.UserError](err); ok {
		if parserPlace.MatchString(own.Msg) {
			// DESCRIBE makes another sentence of what is no SELECT; after EXPLAIN the engine sees what it is. That does not run it either.
			_, err := e.Query(ctx, "EXPLAIN "+filled, query.JSON, query.Limits{Timeout: s.Timeout}, &bounded{})
			if plain, ok := errors.AsType[*query.UserError](err); ok && !parserPlace.MatchString(plain.Msg) {
				own = plain
			}
		}
		return fmt.Errorf("sql%s", t.place(filled, own.Msg))
	}
	if err != nil {
		return fmt.Errorf("look at sql: %w", err)
	}
	var res struct {
		Rows [][]any `json:"rows"` // name, type, …
	}
	if err := json.Unmarshal(out.b, &res); err != nil {
		return fmt.Errorf("look at sql: read result: %w", err)
	}
	names := make([]string, len(res.Rows))
	for i, row := range res.Rows {
		if len(row) == 0 {
			return errors.New("look at sql: a column without a name")
		}
		names[i], _ = row[0].(string)
	}
	if _, err := s.columns(names); err != nil {
		if !strings.HasPrefix(err.Error(), "key: ") {
			return fmt.Errorf("sql: %w", err)
		}
		return err
	}
	return nil
}

// columns checks the names of a result's columns and returns the place of the key; -1: there is none.
func (s *Spec) columns(names []string) (key int, err error) {
	key = -1
	seen := map[string]bool{"query": true, "start": true, "end": true}
	for i, name := range names {
		if seen[name] {
			return -1, &query.UserError{Msg: fmt.Sprintf("two fields of a result are called %s (query, start and end are there already): name one with AS", name)}
		}
		seen[name] = true
		if name == s.Key {
			key = i
		}
	}
	if s.Key != "" && key < 0 {
		return -1, &query.UserError{Msg: fmt.Sprintf("key: the SELECT has no column %s", s.Key)}
	}
	return key, nil
}

var (
	parserPlace = regexp.MustCompile(`(?s)^(.*) \(line (\d+), column (\d+)\)$`)
	binderPlace = regexp.MustCompile(`(?s)^(.*?)\s*\nLINE (\d+): (.*)\n( *)\^\s*$`)
	errorKind   = regexp.MustCompile(`^[A-Z][A-Za-z]+ Error: `)
)

// place turns the engine's complaint about the described text into ": what" or ", line 2, column 9: what", in the text as it was written.
func (t *sqlText) place(filled, msg string) string {
	what, line, col := msg, 0, 0
	if m := parserPlace.FindStringSubmatch(msg); m != nil {
		what = m[1]
		line, _ = strconv.Atoi(m[2])
		col, _ = strconv.Atoi(m[3])
	} else if m := binderPlace.FindStringSubmatch(msg); m != nil {
		what = m[1]
		line, _ = strconv.Atoi(m[2])
		// The caret stands below an excerpt of the line, which "..." may have cut on either side.
		caret := len(m[4]) - len("LINE : ") - len(m[2])
		excerpt := strings.TrimSuffix(m[3], "...")
		if cut, ok := strings.CutPrefix(excerpt, "..."); ok {
			excerpt, caret = cut, caret-len("...")
		}
		lines := strings.Split(describe+filled, "\n")
		if line >= 1 && line <= len(lines) {
			if at := strings.Index(lines[line-1], excerpt); at >= 0 && caret >= 0 {
				col = at + cells(excerpt, caret) + 1
			}
		}
	}
	what, _, _ = strings.Cut(what, "Candidate functions:") // dozens of lines
	what = errorKind.ReplaceAllString(strings.Join(strings.Fields(what), " "), "")
	line -= strings.Count(describe, "\n")
	if line < 1 || col < 1 {
		return ": " + what
	}
	line, col = t.written(filled, line, col)
	return fmt.Sprintf(", line %d, column %d: %s", line, col, what)
}

// cells returns where in a text its cell n begins: a letter has one, whatever its bytes are, and a tab has none.
func cells(s string, n int) int {
	for i, c := range s {
		if c == '\t' {
			continue
		}
		if n == 0 {
			return i
		}
		n--
	}
	return len(s)
}

// written turns a place in the text with bounds into the one in the text as it was written.
func (t *sqlText) written(filled string, line, col int) (int, int) {
	at := col - 1
	for rest := filled; line > 1; line-- {
		i := strings.IndexByte(rest, '\n') + 1
		at, rest = at+i, rest[i:]
	}
	text := strings.Join(t.parts, "")
	from, to := 0, 0 // where the part begins, in the filled text and in the written one
	for _, p := range t.parts {
		long := len(p)
		bound := p == "$start" || p == "$end"
		if bound {
			long = len(literal(time.Unix(0, 0)))
		}
		if at < from+long {
			if !bound {
				to += at - from
			}
			break
		}
		from, to = from+long, to+len(p)
	}
	text = text[:min(to, len(text))]
	return 1 + strings.Count(text, "\n"), len(text) - strings.LastIndexByte(text, '\n')
}
