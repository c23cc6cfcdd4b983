package continuous

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// An sqlText is a SELECT cut at $start and $end.
type sqlText struct{ parts []string } // text, "$start" or "$end", text, …

// parseSQL finds $start and $end outside of strings, quoted names and comments. Whether the rest is one SELECT that may read
// what it reads is the engine's to judge.
func parseSQL(sql string) (sqlText, error) {
	var t sqlText
	if strings.TrimSpace(sql) == "" {
		return t, errors.New("sql is missing: write one SELECT with $start and $end")
	}
	if len(sql) > maxSQL {
		return t, fmt.Errorf("sql: longer than %d bytes", maxSQL)
	}
	from := 0
	has := map[string]bool{}
	for i := 0; i < len(sql); {
		switch c := sql[i]; {
		case c == '\'' || c == '"':
			j := strings.IndexByte(sql[i+1:], c)
			if j < 0 {
				return t, fmt.Errorf("sql, byte %d: the %c is not closed", i, c)
			}
			i += j + 2 // a doubled quote is two strings side by side: the same here
		case strings.HasPrefix(sql[i:], "--"):
			if j := strings.IndexByte(sql[i:], '\n'); j >= 0 {
				i += j
			} else {
				i = len(sql)
			}
		case strings.HasPrefix(sql[i:], "/*"):
			j := strings.Index(sql[i+2:], "*/")
			if j < 0 {
				return t, fmt.Errorf("sql, byte %d: the comment is not closed", i)
			}
			i += j + 4
		case c == '$':
			j := i + 1
			for j < len(sql) && wordByte(sql[j]) {
				j++
			}
			name := sql[i:j]
			if name != "$start" && name != "$end" {
				return t, fmt.Errorf("sql, byte %d: there is no %s: a window has $start and $end", i, name)
			}
			t.parts = append(t.parts, sql[from:i], name)
			has[name] = true
			i, from = j, j
		case wordByte(c): // a name may hold a $: it is not ours
			for i < len(sql) && (wordByte(sql[i]) || sql[i] == '$') {
				i++
			}
		default:
			i++
		}
	}
	t.parts = append(t.parts, sql[from:])
	if !has["$start"] || !has["$end"] {
		return t, errors.New("sql: it must use $start and $end, or every window would read everything: WHERE event_time >= $start AND event_time < $end")
	}
	return t, nil
}

func wordByte(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// fill puts a window's bounds in.
func (t *sqlText) fill(start, end time.Time) string {
	var sb strings.Builder
	for _, p := range t.parts {
		switch p {
		case "$start":
			p = literal(start)
		case "$end":
			p = literal(end)
		}
		sb.WriteString(p)
	}
	return sb.String()
}

func literal(t time.Time) string {
	return "(TIMESTAMPTZ '" + t.UTC().Format("2006-01-02 15:04:05.000") + "+00')"
}
