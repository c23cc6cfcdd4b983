package wire

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A Plan binds bodies to one struct type and checks its constraints. Fields are named as the members of the API are. Their types
// are *string, *int64, *bool, *time.Time, []byte, []string, map[string]string, and structs, pointers to and slices of structs.
//
// The tag v lists constraints: required; min and max of a number's value or of anything else's length (strings count characters);
// pattern and enum by name, from the Rules; keymin, keymax, itemmin and itemmax for the lengths of a map's keys and of the
// strings in a map or list; itempattern for those of a list.
type Plan struct {
	typ    reflect.Type
	fields []field
	byName map[string]int
}

// Rules are the patterns and enumerations that tags name.
type Rules struct {
	Patterns map[string]string
	Enums    map[string][]string
}

type field struct {
	name     string // StreamName
	path     string // streamName
	index    int
	kind     fieldKind
	sub      *Plan // of a struct or of a list's structs
	required bool
	min, max int64 // max 0: none
	hasMin   bool
	pattern  *regexp.Regexp
	text     string // the pattern as AWS prints it
	enum     []string
	keyMin   int64
	keyMax   int64
	itemMin  int64
	itemMax  int64
	items    *regexp.Regexp
	itemText string
}

type fieldKind uint8

const (
	isString fieldKind = iota
	isInt
	isBool
	isTime
	isBlob
	isStrings
	isTags
	isStruct
	isStructs
)

// NewPlan compiles the plan of a struct type. It panics on a type or tag that it does not know, which is our own bug.
func NewPlan(typ reflect.Type, rules Rules) *Plan {
	p := &Plan{typ: typ, byName: map[string]int{}}
	for i := range typ.NumField() {
		sf := typ.Field(i)
		if sf.Anonymous {
			sub := NewPlan(sf.Type, rules)
			for _, f := range sub.fields {
				panicIf(f.index >= 100, "wire: bug: embedding in embedding in "+typ.Name())
				f.index += 100 * (i + 1)
				p.add(f)
			}
			continue
		}
		f := field{name: sf.Name, path: strings.ToLower(sf.Name[:1]) + sf.Name[1:], index: i}
		t := sf.Type
		switch {
		case t == reflect.TypeFor[*string]():
			f.kind = isString
		case t == reflect.TypeFor[*int64]():
			f.kind = isInt
		case t == reflect.TypeFor[*bool]():
			f.kind = isBool
		case t == reflect.TypeFor[*time.Time]():
			f.kind = isTime
		case t == reflect.TypeFor[[]byte]():
			f.kind = isBlob
		case t == reflect.TypeFor[[]string]():
			f.kind = isStrings
		case t == reflect.TypeFor[map[string]string]():
			f.kind = isTags
		case t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct:
			f.kind, f.sub = isStruct, NewPlan(t.Elem(), rules)
		case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
			f.kind, f.sub = isStructs, NewPlan(t.Elem(), rules)
		default:
			panic("wire: bug: no way to bind " + t.String())
		}
		f.constrain(sf.Tag.Get("v"), rules)
		p.add(f)
	}
	return p
}

func panicIf(bad bool, why string) {
	if bad {
		panic(why)
	}
}

func (p *Plan) add(f field) {
	p.byName[f.name] = len(p.fields)
	p.fields = append(p.fields, f)
}

func (f *field) constrain(tag string, rules Rules) {
	for c := range strings.SplitSeq(tag, ",") {
		name, arg, _ := strings.Cut(c, "=")
		n, _ := strconv.ParseInt(arg, 10, 64)
		switch name {
		case "":
		case "required":
			f.required = true
		case "min":
			f.min, f.hasMin = n, true
		case "max":
			f.max = n
		case "keymin":
			f.keyMin = n
		case "keymax":
			f.keyMax = n
		case "itemmin":
			f.itemMin = n
		case "itemmax":
			f.itemMax = n
		case "pattern":
			f.text = rules.Patterns[arg]
			panicIf(f.text == "", "wire: bug: no pattern "+arg)
			f.pattern = regexp.MustCompile("^(?:" + f.text + ")$")
		case "itempattern":
			f.itemText = rules.Patterns[arg]
			panicIf(f.itemText == "", "wire: bug: no pattern "+arg)
			f.items = regexp.MustCompile("^(?:" + f.itemText + ")$")
		case "enum":
			f.enum = rules.Enums[arg]
			panicIf(f.enum == nil, "wire: bug: no enum "+arg)
		default:
			panic("wire: bug: unknown constraint " + name)
		}
	}
}

func (p *Plan) value(v reflect.Value, f *field) reflect.Value {
	if f.index >= 100 {
		return v.Field(f.index/100 - 1).Field(f.index % 100)
	}
	return v.Field(f.index)
}

// Bind reads one map into a new value of the plan's type and returns a pointer to it. Members that the plan does not know are
// passed over, nulls are absent members.
func (p *Plan) Bind(r Reader) (any, error) {
	v := reflect.New(p.typ)
	if r.Kind() != Map {
		return nil, fmt.Errorf("%w: expected a map", ErrSyntax)
	}
	if err := p.bind(r, v.Elem()); err != nil {
		return nil, err
	}
	return v.Interface(), r.End()
}

const maxItems = 10_000 // of a list or map; more than any constraint allows, so that the constraint gets to say so

func (p *Plan) bind(r Reader, v reflect.Value) error {
	if err := r.Open(); err != nil {
		return err
	}
	for {
		more, err := r.More()
		if err != nil || !more {
			return err
		}
		key, err := r.Key()
		if err != nil {
			return err
		}
		i, known := p.byName[string(key)]
		if !known || r.Kind() == Null {
			if err := r.Skip(); err != nil {
				return err
			}
			continue
		}
		f := &p.fields[i]
		if err := f.set(r, p.value(v, f)); err != nil {
			return err
		}
	}
}

// wrong is AWS' complaint about a value of another kind than the member's.
func (f *field) wrong(k Kind) error {
	want := [...]string{"String", "Integer", "Boolean", "Timestamp", "Blob", "", "", "", ""}[f.kind]
	switch f.kind {
	case isStrings, isStructs:
		if k == Map {
			return &TypeError{"Start of structure or map found where not expected."}
		}
		return &TypeError{"Expected list or null"}
	case isTags:
		if k == List {
			return &TypeError{"Start of list found where not expected"}
		}
		return &TypeError{"Expected map or null"}
	case isStruct:
		if k == List {
			return &TypeError{"Start of list found where not expected"}
		}
		return &TypeError{"Expected null"}
	case isString, isInt, isBool, isTime, isBlob: // below, by what was there
	}
	article := "an"
	if f.kind == isBlob {
		article = "a"
	}
	switch k {
	case List:
		return &TypeError{"Start of list found where not expected"}
	case Map:
		return &TypeError{"Start of structure or map found where not expected."}
	case Bool:
		return &TypeError{"class java.lang.Boolean can not be converted to " + article + " " + want}
	case Number:
		return &TypeError{"class java.math.BigDecimal can not be converted to " + article + " " + want}
	case String:
		return &TypeError{"class java.lang.String can not be converted to " + article + " " + want}
	case Bytes:
		return &TypeError{"class java.nio.ByteBuffer can not be converted to " + article + " " + want}
	default: // Null, which fields take, and Invalid
		return fmt.Errorf("%w: expected a value", ErrSyntax)
	}
}

func (f *field) set(r Reader, v reflect.Value) error {
	k := r.Kind()
	if k == Invalid {
		return fmt.Errorf("%w: expected a value", ErrSyntax)
	}
	want := [...]Kind{String, Number, Bool, Number, String, List, Map, Map, List}[f.kind]
	if k != want && !(f.kind == isBlob && k == Bytes) {
		return f.wrong(k)
	}
	switch f.kind {
	case isString:
		s, err := r.Text()
		if err != nil {
			return err
		}
		t := string(s)
		v.Set(reflect.ValueOf(&t))
	case isInt:
		n, err := r.Int()
		if err != nil {
			return err
		}
		v.Set(reflect.ValueOf(&n))
	case isBool:
		b, err := r.Bool()
		if err != nil {
			return err
		}
		v.Set(reflect.ValueOf(&b))
	case isTime:
		t, err := r.Time()
		if err != nil {
			return err
		}
		v.Set(reflect.ValueOf(&t))
	case isBlob:
		b, err := r.Blob()
		if err != nil {
			return err
		}
		v.SetBytes(append([]byte{}, b...))
	case isStruct:
		s := reflect.New(f.sub.typ)
		if err := f.sub.bind(r, s.Elem()); err != nil {
			return err
		}
		v.Set(s)
	default:
		return f.setMany(r, v)
	}
	return nil
}

func (f *field) setMany(r Reader, v reflect.Value) error {
	if err := r.Open(); err != nil {
		return err
	}
	v.Set(reflect.Zero(v.Type()))
	switch f.kind {
	case isTags:
		v.Set(reflect.MakeMap(v.Type()))
	default:
		v.Set(reflect.MakeSlice(v.Type(), 0, 4))
	}
	for n := 0; ; n++ {
		more, err := r.More()
		if err != nil || !more {
			return err
		}
		if n >= maxItems {
			return &TypeError{"Too many items in '" + f.path + "'"}
		}
		switch f.kind {
		case isTags:
			key, err := r.Key()
			if err != nil {
				return err
			}
			name := string(key)
			s, err := f.item(r)
			if err != nil {
				return err
			}
			v.SetMapIndex(reflect.ValueOf(name), reflect.ValueOf(s))
		case isStrings:
			s, err := f.item(r)
			if err != nil {
				return err
			}
			v.Set(reflect.Append(v, reflect.ValueOf(s)))
		default:
			if r.Kind() != Map {
				return (&field{kind: isStruct}).wrong(r.Kind())
			}
			s := reflect.New(f.sub.typ).Elem()
			if err := f.sub.bind(r, s); err != nil {
				return err
			}
			v.Set(reflect.Append(v, s))
		}
	}
}

// item reads a string in a list or map; null is the empty one.
func (f *field) item(r Reader) (string, error) {
	switch k := r.Kind(); k {
	case String:
		s, err := r.Text()
		return string(s), err
	case Null:
		return "", r.Skip()
	default:
		return "", (&field{kind: isString}).wrong(k)
	}
}

// maxComplaints is how many AWS reports at once.
const maxComplaints = 10

// Check tests a bound value's constraints. It returns "" or AWS' description of what is wrong.
func (p *Plan) Check(bound any) string {
	var c complaints
	p.check(reflect.ValueOf(bound).Elem(), "", &c)
	switch len(c) {
	case 0:
		return ""
	case 1:
		return "1 validation error detected: " + c[0]
	}
	return fmt.Sprintf("%d validation errors detected: %s", len(c), strings.Join(c, "; "))
}

type complaints []string

func (c *complaints) add(value, path, constraint string) {
	if len(*c) < maxComplaints {
		*c = append(*c, "Value "+value+" at '"+path+"' failed to satisfy constraint: "+constraint)
	}
}

func (p *Plan) check(v reflect.Value, parent string, c *complaints) {
	for i := range p.fields {
		f := &p.fields[i]
		f.check(p.value(v, f), parent+f.path, c)
	}
}

func (f *field) check(v reflect.Value, path string, c *complaints) {
	if v.IsZero() {
		if f.required {
			c.add("null", path, "Member must not be null")
		}
		return
	}
	switch f.kind {
	case isBool, isTime:
	case isString:
		s := v.Elem().String()
		f.size(int64(utf8.RuneCountInString(s)), "length", func() string { return quote(s) }, path, c)
		if f.pattern != nil && !f.pattern.MatchString(s) {
			c.add(quote(s), path, "Member must satisfy regular expression pattern: "+f.text)
		}
		if f.enum != nil && !slices.Contains(f.enum, s) {
			c.add(quote(s), path, "Member must satisfy enum value set: ["+strings.Join(f.enum, ", ")+"]")
		}
	case isInt:
		n := v.Elem().Int()
		f.size(n, "value", func() string { return quote(strconv.FormatInt(n, 10)) }, path, c)
	case isBlob:
		n := v.Len()
		f.size(int64(n), "length", func() string {
			return fmt.Sprintf("'java.nio.HeapByteBuffer[pos=0 lim=%d cap=%d]'", n, n)
		}, path, c)
	case isStruct:
		f.sub.check(v.Elem(), path+".", c)
	case isStructs:
		f.size(int64(v.Len()), "length", func() string {
			return "'[" + strings.TrimSuffix(strings.Repeat(f.sub.typ.Name()+", ", min(v.Len(), 600)), ", ") + "]'"
		}, path, c)
		for i := range v.Len() {
			f.sub.check(v.Index(i), path+"."+strconv.Itoa(i+1)+".member.", c)
		}
	case isStrings, isTags:
		f.checkItems(v, path, c)
	}
}

func (f *field) checkItems(v reflect.Value, path string, c *complaints) {
	var shown string
	var items []string
	if f.kind == isTags {
		m, _ := v.Interface().(map[string]string)
		keys := make([]string, 0, len(m))
		pairs := make([]string, 0, len(m))
		for k, s := range m {
			keys, items, pairs = append(keys, k), append(items, s), append(pairs, k+"="+s)
		}
		slices.Sort(pairs)
		shown = "'{" + clip([]byte(strings.Join(pairs, ", "))) + "}'"
		f.lengths(keys, f.keyMin, f.keyMax, "Map keys must satisfy constraint: ", shown, path, c)
		f.lengths(items, f.itemMin, f.itemMax, "Map value must satisfy constraint: ", shown, path, c)
	} else {
		items, _ = v.Interface().([]string)
		shown = "'[" + clip([]byte(strings.Join(items, ", "))) + "]'"
		f.lengths(items, f.itemMin, f.itemMax, "Member must satisfy constraint: ", shown, path, c)
	}
	f.size(int64(v.Len()), "length", func() string { return shown }, path, c)
	if f.items != nil && !slices.ContainsFunc(items, func(s string) bool { return !f.items.MatchString(s) }) {
		return
	}
	if f.items != nil {
		c.add(shown, path, "Member must satisfy constraint: [Member must satisfy regular expression pattern: "+f.itemText+"]")
	}
}

func (f *field) lengths(items []string, least, most int64, what, shown, path string, c *complaints) {
	if most == 0 {
		return
	}
	for _, s := range items {
		if n := int64(utf8.RuneCountInString(s)); n < least || n > most {
			c.add(shown, path, fmt.Sprintf("%s[Member must have length less than or equal to %d, Member must have length greater than or equal to %d]", what, most, least))
			return
		}
	}
}

func (f *field) size(n int64, what string, show func() string, path string, c *complaints) {
	if f.hasMin && n < f.min {
		c.add(show(), path, fmt.Sprintf("Member must have %s greater than or equal to %d", what, f.min))
	}
	if f.max != 0 && n > f.max {
		c.add(show(), path, fmt.Sprintf("Member must have %s less than or equal to %d", what, f.max))
	}
}

func quote(s string) string { return "'" + clip([]byte(s)) + "'" }
