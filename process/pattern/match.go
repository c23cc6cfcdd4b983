package pattern

import (
	"net/netip"
	"slices"
	"strconv"
	"unicode/utf8"
)

// match reads the object that begins at doc[i] and returns the index behind it, -1 if it is not valid JSON, and whether it
// matches.
func (o *object) match(doc []byte, i, depth int) (int, bool) {
	if depth >= maxDepth {
		return -1, false
	}
	held := o.absent
	i = space(doc, i+1)
	if i < len(doc) && doc[i] == '}' {
		return i + 1, o.none
	}
	for {
		if i >= len(doc) || doc[i] != '"' {
			return -1, false
		}
		from := i + 1
		end, plain := text(doc, i)
		if end < 0 {
			return -1, false
		}
		k := o.find(doc[from:end-1], plain)
		i = space(doc, end)
		if i >= len(doc) || doc[i] != ':' {
			return -1, false
		}
		i = space(doc, i+1)
		if k < 0 {
			i = skip(doc, i, depth+1)
		} else {
			start := i
			for _, c := range o.keys[k].conds {
				var ok bool
				if i, ok = o.conds[c].match(doc, start, depth+1); i < 0 {
					return -1, false
				}
				held.set(c, ok)
			}
		}
		if i < 0 {
			return -1, false
		}
		i = space(doc, i)
		if i >= len(doc) {
			return -1, false
		}
		if doc[i] == '}' {
			return i + 1, o.expr.holds(&held)
		}
		if doc[i] != ',' {
			return -1, false
		}
		i = space(doc, i+1)
	}
}

// find returns which key a name is, or -1.
func (o *object) find(raw []byte, plain bool) int {
	if !plain {
		var buf [128]byte
		return o.named(unescape(buf[:0], raw))
	}
	return o.named(raw)
}

func (o *object) named(name []byte) int {
	if o.byName != nil {
		if k, ok := o.byName[string(name)]; ok {
			return k
		}
		return -1
	}
	for k := range o.keys {
		if o.keys[k].name == string(name) {
			return k
		}
	}
	return -1
}

func (c *cond) match(doc []byte, i, depth int) (int, bool) {
	if c.nested != nil {
		end, matched, seen := c.nested.within(doc, i, depth)
		return end, matched || !seen && c.nested.none
	}
	end, matched, seen := c.leaf.within(doc, i, depth)
	return end, matched || !seen && c.leaf.absent
}

// within asks the value at doc[i], or if it is an array each of its elements. It says whether one matched and whether there was an
// object at all.
func (o *object) within(doc []byte, i, depth int) (end int, matched, seen bool) {
	if i >= len(doc) {
		return -1, false, false
	}
	switch doc[i] {
	case '{':
		end, matched = o.match(doc, i, depth)
		return end, matched, true
	case '[':
		return elements(doc, i, depth, o)
	}
	return skip(doc, i, depth), false, false
}

func (l *leaf) within(doc []byte, i, depth int) (end int, matched, seen bool) {
	if i >= len(doc) {
		return -1, false, false
	}
	switch c := doc[i]; c {
	case '{':
		return skip(doc, i, depth), false, false
	case '[':
		return elements(doc, i, depth, l)
	case '"':
		end, plain := text(doc, i)
		if end < 0 {
			return -1, false, false
		}
		if raw := doc[i+1 : end-1]; plain {
			matched = matchText(l, raw)
		} else {
			var buf [128]byte
			matched = matchText(l, unescape(buf[:0], raw))
		}
		return end, matched, true
	case 't', 'f', 'n':
		return literal(doc, i), l.matchLiteral(c), true
	}
	if end = digits(doc, i); end < 0 {
		return -1, false, false
	}
	return end, l.matchNumber(doc[i:end]), true
}

// A matcher is what a value or an array's elements are asked.
type matcher interface{ *object | *leaf }

func elements[M matcher](doc []byte, i, depth int, m M) (end int, matched, seen bool) {
	if depth >= maxDepth {
		return -1, false, false
	}
	i = space(doc, i+1)
	if i < len(doc) && doc[i] == ']' {
		return i + 1, false, false
	}
	for {
		var hit, there bool
		switch m := any(m).(type) {
		case *object:
			i, hit, there = m.within(doc, i, depth+1)
		case *leaf:
			i, hit, there = m.within(doc, i, depth+1)
		}
		if i < 0 {
			return -1, false, false
		}
		matched, seen = matched || hit, seen || there
		i = space(doc, i)
		if i >= len(doc) {
			return -1, false, false
		}
		if doc[i] == ']' {
			return i + 1, matched, seen
		}
		if doc[i] != ',' {
			return -1, false, false
		}
		i = space(doc, i+1)
	}
}

func (l *leaf) matchLiteral(c byte) bool {
	if l.there || c == 't' && l.yes || c == 'f' && l.no || c == 'n' && l.null {
		return true
	}
	for i := range l.tests {
		if t := &l.tests[i]; t.op == opBut && !t.but.matchLiteral(c) {
			return true
		}
	}
	return false
}

func (l *leaf) matchNumber(raw []byte) bool {
	if l.there {
		return true
	}
	var val float64
	isWhole := false
	if l.numeric {
		val, _ = strconv.ParseFloat(string(raw), 64) // too large for a float is infinite, which compares as it should
		isWhole = whole(raw)
	}
	return l.matchValue(raw, val, isWhole)
}

func (l *leaf) matchValue(raw []byte, val float64, isWhole bool) bool {
	if l.there {
		return true
	}
	for i := range l.numbers {
		n := &l.numbers[i]
		if n.whole && isWhole {
			if n.text == string(raw) {
				return true
			}
		} else if n.val == val {
			return true
		}
	}
	for i := range l.tests {
		switch t := &l.tests[i]; t.op {
		case opRange:
			if (val > t.low || t.lowIn && val == t.low) && (val < t.high || t.highIn && val == t.high) {
				return true
			}
		case opBut:
			if !t.but.matchValue(raw, val, isWhole) {
				return true
			}
		default: // of strings
		}
	}
	return false
}

// matchText asks a string without its escapes.
func matchText[T ~string | ~[]byte](l *leaf, s T) bool {
	if l.there {
		return true
	}
	if l.set != nil {
		if _, ok := l.set[string(s)]; ok {
			return true
		}
	} else if slices.Contains(l.texts, string(s)) {
		return true
	}
	for i := range l.tests {
		if t := &l.tests[i]; t.op == opBut {
			if !matchText(t.but, s) {
				return true
			}
		} else if testText(t, s) {
			return true
		}
	}
	return false
}

func testText[T ~string | ~[]byte](t *test, s T) bool {
	switch t.op {
	case opPrefix:
		return len(s) >= len(t.text) && string(s[:len(t.text)]) == t.text
	case opSuffix:
		return len(s) >= len(t.text) && string(s[len(s)-len(t.text):]) == t.text
	case opFold:
		n := foldedPrefix(t.folded, s)
		return n == len(s)
	case opPrefixFold:
		return foldedPrefix(t.folded, s) >= 0
	case opSuffixFold:
		return foldedSuffix(t.folded, s)
	case opWildcard:
		return wild(t.glob, s)
	case opCIDR:
		if len(s) > 64 {
			return false
		}
		a, err := netip.ParseAddr(string(s))
		return err == nil && t.net.Contains(a)
	default: // opRange is of numbers, and opBut the caller's
		return false
	}
}

// foldedPrefix returns how long the beginning of s is that equals want but for case, or -1.
func foldedPrefix[T ~string | ~[]byte](want []rune, s T) int {
	i := 0
	for _, w := range want {
		if i >= len(s) {
			return -1
		}
		r, n := rune(s[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRuneInString(string(s[i:min(len(s), i+utf8.UTFMax)]))
		}
		if fold(r) != w {
			return -1
		}
		i += n
	}
	return i
}

func foldedSuffix[T ~string | ~[]byte](want []rune, s T) bool {
	i := len(s)
	for k := len(want) - 1; k >= 0; k-- {
		if i == 0 {
			return false
		}
		r, n := rune(s[i-1]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeLastRuneInString(string(s[max(0, i-utf8.UTFMax):i]))
		}
		if fold(r) != want[k] {
			return false
		}
		i -= n
	}
	return true
}

// wild matches by going back to the last wildcard only: what an earlier one took never matters.
func wild[T ~string | ~[]byte](g []glob, s T) bool {
	i, k, star, from := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case k < len(g) && g[k].any:
			star, from = k, i
			k++
		case k < len(g) && g[k].c == s[i]:
			i++
			k++
		case star >= 0:
			from++
			i, k = from, star+1
		default:
			return false
		}
	}
	for k < len(g) && g[k].any {
		k++
	}
	return k == len(g)
}
