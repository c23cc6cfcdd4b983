package pattern

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
)

// most is how many conditions one object can have: a pattern of 4,096 characters has no room for more.
const most = 512

// mask has one bit per condition of an object.
type mask [most / 64]uint64

func (m *mask) set(i int, on bool) {
	if on {
		m[i>>6] |= 1 << (i & 63)
	} else {
		m[i>>6] &^= 1 << (i & 63)
	}
}

func (m *mask) has(i int) bool { return m[i>>6]&(1<<(i&63)) != 0 }

// An object is the compiled form of a pattern object: the conditions that it and the alternatives of its "$or" put on keys, and
// how these combine.
type object struct {
	keys   []keyed
	byName map[string]int // index into keys, if they are many
	conds  []cond
	expr   expr
	absent mask // conditions that hold when their key is missing
	none   bool // whether the whole holds when there is no object
}

type keyed struct {
	name  string
	conds []int
}

// A cond is a condition on one key: a nested object or a list of values.
type cond struct {
	nested *object
	leaf   *leaf
}

// An expr holds if all its conditions hold and of each of its ors at least one.
type expr struct {
	all []int
	ors [][]expr
}

func (e *expr) holds(m *mask) bool {
	for _, i := range e.all {
		if !m.has(i) {
			return false
		}
	}
next:
	for _, or := range e.ors {
		for i := range or {
			if or[i].holds(m) {
				continue next
			}
		}
		return false
	}
	return true
}

// isOperator tells the names of conditions. In "$or" they tell a list of conditions from a list of alternatives.
func isOperator(name string) bool {
	switch name {
	case "prefix", "suffix", "equals-ignore-case", "anything-but", "numeric", "exists", "cidr", "wildcard":
		return true
	}
	return false
}

func compileObject(v value, path string) (*object, error) {
	o := &object{}
	e, err := o.add(v, path)
	if err != nil {
		return nil, err
	}
	o.expr = e
	for i := range o.conds {
		c := &o.conds[i]
		if c.nested != nil && c.nested.none || c.leaf != nil && c.leaf.absent {
			o.absent.set(i, true)
		}
	}
	o.none = o.expr.holds(&o.absent)
	if len(o.keys) > 8 {
		o.byName = make(map[string]int, len(o.keys))
		for i := range o.keys {
			o.byName[o.keys[i].name] = i
		}
	}
	return o, nil
}

// add adds a pattern object's conditions.
func (o *object) add(v value, path string) (expr, error) {
	if len(v.members) == 0 {
		return expr{}, fmt.Errorf("%s: an empty object matches nothing in particular; name at least one key", path)
	}
	var e expr
	for _, m := range v.members {
		at := path + "." + m.key
		if m.key == "$or" && alternatives(m.val) {
			if len(m.val.items) < 2 {
				return expr{}, fmt.Errorf("%s: needs at least two objects to choose from", at)
			}
			var or []expr
			for i, item := range m.val.items {
				at := fmt.Sprintf("%s[%d]", at, i)
				if item.kind != kindObject {
					return expr{}, fmt.Errorf("%s: must be an object like the other alternatives, not %s", at, item.kind)
				}
				alt, err := o.add(item, at)
				if err != nil {
					return expr{}, err
				}
				or = append(or, alt)
			}
			e.ors = append(e.ors, or)
			continue
		}
		var c cond
		var err error
		switch m.val.kind {
		case kindObject:
			c.nested, err = compileObject(m.val, at)
		case kindArray:
			c.leaf, err = compileLeaf(m.val, at)
		default:
			err = fmt.Errorf("%s: must be a list of allowed values, for example [%s], or an object, not %s", at, m.val, m.val.kind)
		}
		if err != nil {
			return expr{}, err
		}
		if len(o.conds) == most {
			return expr{}, fmt.Errorf("%s: more than %d conditions on one object", at, most)
		}
		e.all = append(e.all, len(o.conds))
		o.key(m.key, len(o.conds))
		o.conds = append(o.conds, c)
	}
	return e, nil
}

func (o *object) key(name string, i int) {
	for k := range o.keys {
		if o.keys[k].name == name {
			o.keys[k].conds = append(o.keys[k].conds, i)
			return
		}
	}
	o.keys = append(o.keys, keyed{name, []int{i}})
}

// alternatives tells "$or" from a key of that name.
func alternatives(v value) bool {
	if v.kind != kindArray {
		return false
	}
	for _, item := range v.items {
		if item.kind == kindObject && (len(item.members) == 0 || !isOperator(item.members[0].key)) {
			return true
		}
	}
	return false
}

func (v value) String() string {
	switch v.kind {
	case kindString:
		return strconv.Quote(v.text)
	case kindNumber:
		return v.text
	case kindBool:
		return strconv.FormatBool(v.yes)
	default:
		return string(v.kind)
	}
}

// A leaf is a list of allowed values and conditions, of which one must hold.
type leaf struct {
	texts         []string
	set           map[string]struct{} // texts, if they are many
	numbers       []number
	null, yes, no bool
	tests         []test
	numeric       bool // some condition needs the value of a number
	there         bool // {"exists": true}: any leaf will do
	absent        bool // {"exists": false}
}

type number struct {
	whole bool   // written without a fraction or exponent
	text  string // of a whole number
	val   float64
}

type op uint8

const (
	opPrefix op = iota
	opSuffix
	opPrefixFold
	opSuffixFold
	opFold
	opWildcard
	opRange
	opCIDR
	opBut
)

type test struct {
	op        op
	text      string
	folded    []rune // of text, for the conditions that ignore case
	low, high float64
	lowIn     bool // low itself is within
	highIn    bool
	net       netip.Prefix
	glob      []glob
	but       *leaf
}

// A glob is one character of a wildcard pattern, or any number of them.
type glob struct {
	c   byte
	any bool
}

func compileLeaf(v value, path string) (*leaf, error) {
	if len(v.items) == 0 {
		return nil, fmt.Errorf("%s: the list is empty, which nothing could match", path)
	}
	l := &leaf{}
	for i, item := range v.items {
		if err := l.add(item, fmt.Sprintf("%s[%d]", path, i)); err != nil {
			return nil, err
		}
	}
	l.finish()
	return l, nil
}

func (l *leaf) finish() {
	if len(l.texts) > 8 {
		l.set = make(map[string]struct{}, len(l.texts))
		for _, t := range l.texts {
			l.set[t] = struct{}{}
		}
	}
	l.numeric = len(l.numbers) > 0
	for i := range l.tests {
		t := &l.tests[i]
		l.numeric = l.numeric || t.op == opRange || t.op == opBut && t.but.numeric
	}
}

func (l *leaf) add(v value, path string) error {
	switch v.kind {
	case kindString:
		l.texts = append(l.texts, v.text)
	case kindNumber:
		n, err := numberOf(v.text)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		l.numbers = append(l.numbers, n)
	case kindBool:
		l.yes, l.no = l.yes || v.yes, l.no || !v.yes
	case kindNull:
		l.null = true
	case kindArray:
		return fmt.Errorf("%s: a list within a list; an event's array matches if any of its elements does, so one list is enough", path)
	case kindObject:
		return l.condition(v, path)
	}
	return nil
}

func (l *leaf) condition(v value, path string) error {
	if len(v.members) != 1 {
		return fmt.Errorf("%s: a condition is an object with one key, the operator, and this has %d; to combine conditions use \"$or\" "+
			"or several entries of the list", path, len(v.members))
	}
	name, arg := v.members[0].key, v.members[0].val
	path += "." + name
	text := func() (string, error) {
		if arg.kind != kindString {
			return "", fmt.Errorf("%s: must be a string, not %s", path, arg.kind)
		}
		return arg.text, nil
	}
	switch name {
	case "exists":
		if arg.kind != kindBool {
			return fmt.Errorf("%s: must be true or false, not %s", path, arg.kind)
		}
		l.there, l.absent = l.there || arg.yes, l.absent || !arg.yes
		return nil
	case "numeric":
		t, err := numericTest(arg, path)
		if err != nil {
			return err
		}
		l.tests = append(l.tests, t)
		return nil
	case "cidr":
		s, err := text()
		if err != nil {
			return err
		}
		net, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("%s: %q is not a network such as 10.0.0.0/24 or 2001:db8::/32", path, s)
		}
		l.tests = append(l.tests, test{op: opCIDR, net: net.Masked()})
		return nil
	case "anything-but":
		but, err := compileBut(arg, path)
		if err != nil {
			return err
		}
		l.tests = append(l.tests, test{op: opBut, but: but})
		return nil
	case "prefix", "suffix":
		if arg.kind == kindObject {
			if len(arg.members) != 1 || arg.members[0].key != "equals-ignore-case" {
				return fmt.Errorf("%s: must be a string or {\"equals-ignore-case\": a string}", path)
			}
			path += ".equals-ignore-case"
			arg = arg.members[0].val
			s, err := text()
			if err != nil {
				return err
			}
			o := opPrefixFold
			if name == "suffix" {
				o = opSuffixFold
			}
			l.tests = append(l.tests, test{op: o, text: s, folded: foldAll(s)})
			return nil
		}
		fallthrough
	case "equals-ignore-case", "wildcard":
		s, err := text()
		if err != nil {
			return err
		}
		t, err := textTest(name, s, path)
		if err != nil {
			return err
		}
		l.tests = append(l.tests, t)
		return nil
	}
	return fmt.Errorf("%s: unknown operator; there are prefix, suffix, equals-ignore-case, anything-but, numeric, exists, cidr and wildcard", path)
}

func textTest(name, s, path string) (test, error) {
	switch name {
	case "prefix":
		return test{op: opPrefix, text: s}, nil
	case "suffix":
		return test{op: opSuffix, text: s}, nil
	case "equals-ignore-case":
		return test{op: opFold, text: s, folded: foldAll(s)}, nil
	}
	t := test{op: opWildcard, text: s}
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '*':
			if i > 0 && t.glob[len(t.glob)-1].any {
				return t, fmt.Errorf("%s: %q has two wildcards in a row; one says the same", path, s)
			}
			t.glob = append(t.glob, glob{any: true})
		case '\\':
			if i+1 == len(s) || s[i+1] != '*' && s[i+1] != '\\' {
				return t, fmt.Errorf("%s: in %q a backslash may stand before * or another backslash only", path, s)
			}
			i++
			t.glob = append(t.glob, glob{c: s[i]})
		default:
			t.glob = append(t.glob, glob{c: s[i]})
		}
	}
	return t, nil
}

// compileBut compiles the values that anything-but excludes.
func compileBut(arg value, path string) (*leaf, error) {
	l := &leaf{}
	list := func(v value, path string, one func(value, string) error) error {
		if v.kind != kindArray {
			return one(v, path)
		}
		if len(v.items) == 0 {
			return fmt.Errorf("%s: the list is empty; use {\"exists\": true} to match anything", path)
		}
		for i, item := range v.items {
			if err := one(item, fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
		return nil
	}
	var err error
	if arg.kind == kindObject {
		if len(arg.members) != 1 {
			return nil, fmt.Errorf("%s: must have one key: prefix, suffix, equals-ignore-case or wildcard", path)
		}
		name := arg.members[0].key
		path += "." + name
		switch name {
		case "prefix", "suffix", "equals-ignore-case", "wildcard":
		default:
			return nil, fmt.Errorf("%s: anything-but takes values, prefix, suffix, equals-ignore-case or wildcard, not this", path)
		}
		err = list(arg.members[0].val, path, func(v value, path string) error {
			if v.kind != kindString {
				return fmt.Errorf("%s: must be a string, not %s", path, v.kind)
			}
			t, err := textTest(name, v.text, path)
			l.tests = append(l.tests, t)
			return err
		})
	} else {
		err = list(arg, path, func(v value, path string) error {
			if v.kind == kindObject || v.kind == kindArray {
				return fmt.Errorf("%s: must be a string, number, boolean or null, not %s", path, v.kind)
			}
			return l.add(v, path)
		})
	}
	l.finish()
	return l, err
}

func numericTest(arg value, path string) (test, error) {
	t := test{op: opRange, low: math.Inf(-1), high: math.Inf(1), lowIn: true, highIn: true}
	if arg.kind != kindArray || len(arg.items) != 2 && len(arg.items) != 4 {
		return t, fmt.Errorf("%s: must be a list like [\">\", 0] or [\">\", 0, \"<=\", 5]", path)
	}
	var low, high bool
	for i := 0; i < len(arg.items); i += 2 {
		at := fmt.Sprintf("%s[%d]", path, i)
		if arg.items[i+1].kind != kindNumber {
			return t, fmt.Errorf("%s[%d]: must be a number, not %s", path, i+1, arg.items[i+1].kind)
		}
		n, err := numberOf(arg.items[i+1].text)
		if err != nil {
			return t, fmt.Errorf("%s[%d]: %w", path, i+1, err)
		}
		sign := arg.items[i].text
		if arg.items[i].kind != kindString {
			sign = ""
		}
		switch sign {
		case "=":
			if len(arg.items) != 2 {
				return t, fmt.Errorf("%s: \"=\" stands alone", at)
			}
			t.low, t.high = n.val, n.val
		case ">", ">=":
			if low {
				return t, fmt.Errorf("%s: a second lower bound", at)
			}
			low, t.low, t.lowIn = true, n.val, sign == ">="
		case "<", "<=":
			if high {
				return t, fmt.Errorf("%s: a second upper bound", at)
			}
			high, t.high, t.highIn = true, n.val, sign == "<="
		default:
			return t, fmt.Errorf("%s: %s is not a comparison; there are =, <, <=, > and >=", at, arg.items[i])
		}
	}
	if t.low > t.high || t.low == t.high && !(t.lowIn && t.highIn) {
		return t, fmt.Errorf("%s: no number is within this range", path)
	}
	return t, nil
}

func numberOf(text string) (number, error) {
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return number{}, fmt.Errorf("%s is out of the range of numbers", text)
	}
	n := number{val: f, whole: whole(text)}
	if n.whole {
		n.text = strings.Clone(text)
	}
	return n, nil
}

// whole reports whether a JSON number is written as an integer. -0 is left to the floats.
func whole[T ~string | ~[]byte](s T) bool {
	for i := range len(s) {
		if s[i] == '.' || s[i] == 'e' || s[i] == 'E' {
			return false
		}
	}
	return !(len(s) == 2 && s[0] == '-' && s[1] == '0')
}

func foldAll(s string) []rune {
	var out []rune
	for _, r := range s {
		out = append(out, fold(r))
	}
	return out
}

// fold returns the same rune for all that are equal but for case.
func fold(r rune) rune {
	if r < 0x80 && r != 'k' && r != 'K' && r != 's' && r != 'S' { // those have kin outside of ASCII
		if 'a' <= r && r <= 'z' {
			r -= 'a' - 'A'
		}
		return r
	}
	least := r
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		least = min(least, f)
	}
	return least
}
