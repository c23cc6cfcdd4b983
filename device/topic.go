package device

import (
	"fmt"
	"strings"
)

// A filter is a topic filter taken apart. Beside the wildcards of MQTT a level can be a set of globs: the vehicles of a gateway.
type filter struct {
	levels []level
	prefix string // the text before the first level that is not plain, with its slash; everything if all are plain
	rest   []level
}

type levelKind byte

const (
	plain levelKind = iota
	one             // "+"
	some            // one level that a glob matches
	all             // "#"
)

type level struct {
	kind  levelKind
	text  string
	globs []string
}

// parseFilter takes a filter apart. A level that is {vehicle} becomes the globs, if there are any.
func parseFilter(s string, globs []string) (filter, error) {
	if s == "" || len(s) > 65535 || strings.IndexByte(s, 0) >= 0 {
		return filter{}, fmt.Errorf("topic filter %q: write 1 to 65535 bytes without a zero byte", s)
	}
	var f filter
	texts := strings.Split(s, "/")
	for i, text := range texts {
		l := level{text: text}
		switch {
		case text == "+":
			l.kind = one
		case text == "#":
			if i != len(texts)-1 {
				return filter{}, fmt.Errorf("topic filter %q: # must be the last level", s)
			}
			l.kind = all
		case len(globs) > 0 && text == vehicleVariable:
			l.kind, l.globs = some, globs
		case strings.ContainsAny(text, "+#"):
			return filter{}, fmt.Errorf("topic filter %q: level %q: + and # stand alone between slashes", s, text)
		}
		f.levels = append(f.levels, l)
	}
	n := 0
	for n < len(f.levels) && f.levels[n].kind == plain {
		n++
	}
	f.prefix, f.rest = strings.Join(texts[:n], "/"), f.levels[n:]
	if n > 0 && len(f.rest) > 0 {
		f.prefix += "/"
	}
	return f, nil
}

// match tells whether a topic is one of the filter's. It allocates nothing.
func (f *filter) match(topic []byte) bool {
	if len(f.rest) == 0 {
		return string(topic) == f.prefix
	}
	n := len(f.prefix)
	if len(topic) < n || string(topic[:n]) != f.prefix {
		// "a/#" is also the parent's: "a".
		return f.rest[0].kind == all && n > 0 && len(topic) == n-1 && string(topic) == f.prefix[:n-1]
	}
	if n == 0 && len(topic) > 0 && topic[0] == '$' {
		return false // a wildcard in front does not reach the topics of the server
	}
	topic = topic[n:]
	for i := range f.rest {
		l := &f.rest[i]
		if l.kind == all {
			return true
		}
		end := 0
		for end < len(topic) && topic[end] != '/' {
			end++
		}
		switch l.kind {
		case plain:
			if string(topic[:end]) != l.text {
				return false
			}
		case some:
			if !matchAny(l.globs, topic[:end]) {
				return false
			}
		case one, all:
		}
		last := i == len(f.rest)-1
		if end == len(topic) {
			return last || i == len(f.rest)-2 && f.rest[i+1].kind == all
		}
		if last {
			return false
		}
		topic = topic[end+1:]
	}
	return false
}

// contains tells whether every topic that g matches is one that f matches. It never says yes wrongly; it may say no where only
// several filters together would do.
func (f *filter) contains(g *filter) bool {
	for i := range f.levels {
		a := &f.levels[i]
		if i == 0 && a.kind != plain && g.levels[0].kind == plain && strings.HasPrefix(g.levels[0].text, "$") {
			return false
		}
		if a.kind == all {
			return true
		}
		if i >= len(g.levels) {
			return false
		}
		switch b := &g.levels[i]; {
		case b.kind == all:
			return false
		case a.kind == one:
		case b.kind == one:
			return false
		case a.kind == some:
			if b.kind == some || !matchAny(a.globs, []byte(b.text)) {
				return false
			}
		case b.kind == some || a.text != b.text:
			return false
		}
		if i == len(f.levels)-2 && f.levels[i+1].kind == all && i == len(g.levels)-1 {
			return true // "a/#" is also the parent's
		}
	}
	return len(f.levels) == len(g.levels)
}

// meets tells whether some topic may match both. It never says no wrongly.
func (f *filter) meets(g *filter) bool {
	a, b := f.levels, g.levels
	if serverTopics(a[0]) && b[0].kind != plain || serverTopics(b[0]) && a[0].kind != plain {
		return false
	}
	for i := 0; ; i++ {
		switch {
		case i < len(a) && a[i].kind == all, i < len(b) && b[i].kind == all:
			return true
		case i == len(a) || i == len(b):
			return len(a) == len(b)
		}
		x, y := &a[i], &b[i]
		switch {
		case x.kind == plain && y.kind == plain:
			if x.text != y.text {
				return false
			}
		case x.kind == plain && y.kind == some:
			if !matchAny(y.globs, []byte(x.text)) {
				return false
			}
		case x.kind == some && y.kind == plain:
			if !matchAny(x.globs, []byte(y.text)) {
				return false
			}
		}
	}
}

func serverTopics(l level) bool { return l.kind == plain && strings.HasPrefix(l.text, "$") }

func matchAny(globs []string, s []byte) bool {
	for _, g := range globs {
		if matchGlob(g, s) {
			return true
		}
	}
	return false
}

// matchGlob knows * (any bytes, none too) and ? (one byte). It goes back to the last star only, so it takes at most the
// product of the lengths.
func matchGlob[T string | []byte](glob string, s T) bool {
	i, j, star, mark := 0, 0, -1, 0
	for j < len(s) {
		switch {
		case i < len(glob) && glob[i] == '*':
			star, mark = i, j
			i++
		case i < len(glob) && (glob[i] == '?' || glob[i] == s[j]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(glob) && glob[i] == '*' {
		i++
	}
	return i == len(glob)
}
