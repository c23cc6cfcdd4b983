package device

import (
	"bytes"
	"fmt"
	"strings"
)

// names are what the variables of a filter stand for.
type names struct{ device, vehicle string }

// A filter is a topic filter taken apart. Beside the wildcards of MQTT a level can have the names of a device in it, or be a set of
// globs: the vehicles of a gateway. One filter serves all devices of a policy, so that a connection costs no memory for it.
type filter struct {
	prefix string // the text before the first level that is not plain, with its slash; everything if all are plain
	probe  int    // every topic of the filter's has this byte there; -1: not known
	is     byte
	ends   byte // every topic of the filter's ends with it; 0: not known
	rest   []level
	levels []level
}

type levelKind byte

const (
	plain levelKind = iota
	one             // "+"
	named           // plain, once the device is known
	some            // one level that a glob matches
	all             // "#"
)

type level struct {
	kind  levelKind
	text  string
	globs []string
	parts []part
}

// A part of a level is text or a variable.
type part struct {
	text     string
	variable byte // 'd': the device, 'v': its vehicle, 0: text
}

// parseFilter takes a filter apart. A level that is {vehicle} becomes the globs, if there are any.
func parseFilter(s string, globs []string) (filter, error) { return parse(s, globs, true) }

// parseAsked takes apart what a client asks for, in which braces mean nothing.
func parseAsked(s string) (filter, error) { return parse(s, nil, false) }

func parse(s string, globs []string, variables bool) (filter, error) {
	if s == "" || len(s) > 65535 || strings.IndexByte(s, 0) >= 0 {
		return filter{}, fmt.Errorf("topic filter %q: write 1 to 65535 bytes without a zero byte", s)
	}
	f := filter{levels: make([]level, 0, 8)}
	for rest, more := s, true; more; {
		var text string
		text, rest, more = strings.Cut(rest, "/")
		l := level{text: text}
		switch {
		case text == "+":
			l.kind = one
		case text == "#":
			if more {
				return filter{}, fmt.Errorf("topic filter %q: # must be the last level", s)
			}
			l.kind = all
		case variables && len(globs) > 0 && text == vehicleVariable:
			l.kind, l.globs = some, globs
		case strings.ContainsAny(text, "+#"):
			return filter{}, fmt.Errorf("topic filter %q: level %q: + and # stand alone between slashes", s, text)
		case variables && strings.Contains(text, "{"):
			l.kind, l.parts = named, splitParts(text)
		}
		f.levels = append(f.levels, l)
	}
	n := 0
	for n < len(f.levels) && f.levels[n].kind == plain {
		if n > 0 {
			f.prefix += "/"
		}
		f.prefix += f.levels[n].text
		n++
	}
	if f.rest = f.levels[n:]; n > 0 && len(f.rest) > 0 {
		f.prefix += "/"
	}
	f.probe = len(f.prefix) - 1
	if len(f.rest) > 0 && f.rest[0].kind == all {
		f.probe-- // the parent's topic has no slash behind it
	}
	if f.probe >= 0 {
		f.is = f.prefix[f.probe]
	}
	if l := &f.levels[len(f.levels)-1]; l.kind == plain && l.text != "" {
		f.ends = l.text[len(l.text)-1]
	}
	return f, nil
}

func splitParts(s string) []part {
	var out []part
	for s != "" {
		i, variable, length := len(s), byte(0), 0
		if j := strings.Index(s, deviceVariable); j >= 0 {
			i, variable, length = j, 'd', len(deviceVariable)
		}
		if j := strings.Index(s, vehicleVariable); j >= 0 && j < i {
			i, variable, length = j, 'v', len(vehicleVariable)
		}
		if i > 0 {
			out = append(out, part{text: s[:i]})
		}
		if variable != 0 {
			out = append(out, part{variable: variable})
		}
		s = s[i+length:]
	}
	return out
}

// is tells whether a level with names in it is this text.
func (l *level) is(who *names, s []byte) bool {
	if len(l.parts) == 1 { // nearly always: a variable alone
		if l.parts[0].variable == 'd' {
			return string(s) == who.device
		}
		return string(s) == who.vehicle
	}
	for i := range l.parts {
		want := l.parts[i].text
		switch l.parts[i].variable {
		case 'd':
			want = who.device
		case 'v':
			want = who.vehicle
		}
		if len(s) < len(want) || string(s[:len(want)]) != want {
			return false
		}
		s = s[len(want):]
	}
	return len(s) == 0
}

// likely is a quick no for most topics that are not the filter's.
func (f *filter) likely(topic []byte) bool {
	return (f.probe < 0 || f.probe < len(topic) && topic[f.probe] == f.is) && (f.ends == 0 || len(topic) > 0 && topic[len(topic)-1] == f.ends)
}

// match tells whether a topic is one of the filter's. It allocates nothing.
func (f *filter) match(topic []byte, who *names) bool {
	if len(f.rest) == 0 {
		return string(topic) == f.prefix
	}
	n := len(f.prefix)
	if len(topic) < n || string(topic[:n]) != f.prefix {
		// "a/#" is also the parent's: "a".
		return f.rest[0].kind == all && n > 0 && len(topic) == n-1 && string(topic) == f.prefix[:n-1]
	}
	if n == 0 && len(topic) > 0 && topic[0] == '$' && f.rest[0].kind != named {
		return false // a wildcard in front does not reach the topics of the server
	}
	topic = topic[n:]
	for i := range f.rest {
		l := &f.rest[i]
		if l.kind == all {
			return true
		}
		var end int
		if l.kind == named && len(l.parts) == 1 {
			// Nearly always. It is compared where it must stand, rather than looked for its end: the hot path.
			want := who.vehicle
			if l.parts[0].variable == 'd' {
				want = who.device
			}
			if end = len(want); len(topic) < end || string(topic[:end]) != want || len(topic) > end && topic[end] != '/' {
				return false
			}
		} else if end = bytes.IndexByte(topic, '/'); end < 0 {
			end = len(topic)
		}
		switch l.kind {
		case plain:
			if string(topic[:end]) != l.text {
				return false
			}
		case named:
			if len(l.parts) > 1 && !l.is(who, topic[:end]) {
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

// contains tells whether every topic that g matches is one that f matches; g is what a client asks for. It never says yes
// wrongly; it may say no where only several filters together would do.
func (f *filter) contains(g *filter, who *names) bool {
	for i := range f.levels {
		a := &f.levels[i]
		if i == 0 && a.kind != plain && a.kind != named && serverTopics(g.levels[0]) {
			return false
		}
		if a.kind == all {
			return true
		}
		if i >= len(g.levels) {
			return false
		}
		b := &g.levels[i]
		switch {
		case b.kind == all:
			return false
		case a.kind == one:
		case b.kind != plain:
			return false
		case !a.has(who, b.text):
			return false
		}
		if i == len(f.levels)-2 && f.levels[i+1].kind == all && i == len(g.levels)-1 {
			return true // "a/#" is also the parent's
		}
	}
	return len(f.levels) == len(g.levels)
}

// has tells whether a level that is no wildcard of MQTT takes this text.
func (l *level) has(who *names, text string) bool {
	switch l.kind {
	case plain:
		return l.text == text
	case named:
		return l.is(who, []byte(text))
	case some:
		return matchAny(l.globs, []byte(text))
	case one, all:
	}
	return true
}

// meets tells whether some topic may match both; g is what a client asks for. It never says no wrongly.
func (f *filter) meets(g *filter, who *names) bool {
	a, b := f.levels, g.levels
	if serverTopics(a[0]) && b[0].kind != plain || serverTopics(b[0]) && a[0].kind != plain && a[0].kind != named {
		return false
	}
	for i := 0; ; i++ {
		switch {
		case i < len(a) && a[i].kind == all, i < len(b) && b[i].kind == all:
			return true
		case i == len(a) || i == len(b):
			return len(a) == len(b)
		case b[i].kind == plain && !a[i].has(who, b[i].text):
			return false
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
