//nolint:errcheck // a pattern that compiles has the types that the reference asserts
package pattern_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"testing"

	"github.com/milepost/milepost/process/pattern"
)

// reference matches by the words of the documentation over encoding/json's maps.
func reference(pat, doc []byte) bool {
	if !json.Valid(doc) {
		return false
	}
	return refObject(decode(pat), decode(doc))
}

func decode(b []byte) any {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return nil
	}
	return v
}

func refObject(pat, doc any) bool {
	m, ok := doc.(map[string]any)
	return ok && refKeys(pat.(map[string]any), m)
}

func refKeys(pat, m map[string]any) bool {
	for key, want := range pat {
		if alts, ok := want.([]any); ok && key == "$or" {
			one := false
			for _, alt := range alts {
				one = one || refKeys(alt.(map[string]any), m)
			}
			if !one {
				return false
			}
			continue
		}
		var leaves []any
		if v, ok := m[key]; ok {
			leaves = flatten(v)
		}
		matched := false
		switch want := want.(type) {
		case map[string]any:
			seen := false
			for _, v := range leaves {
				if o, ok := v.(map[string]any); ok {
					seen = true
					matched = matched || refKeys(want, o)
				}
			}
			if !seen {
				matched = refKeys(want, nil)
			}
		case []any:
			seen := false
			for _, v := range leaves {
				if _, ok := v.(map[string]any); !ok {
					seen = true
					for _, w := range want {
						matched = matched || refLeaf(w, v)
					}
				}
			}
			for _, w := range want {
				if c, ok := w.(map[string]any); ok && c["exists"] == false && !seen {
					matched = true
				}
			}
		}
		if !matched {
			return false
		}
	}
	return true
}

func flatten(v any) []any {
	list, ok := v.([]any)
	if !ok {
		return []any{v}
	}
	var out []any
	for _, e := range list {
		out = append(out, flatten(e)...)
	}
	return out
}

func refEqual(a, b any) bool {
	x, ok1 := a.(json.Number)
	y, ok2 := b.(json.Number)
	if !ok1 || !ok2 {
		return a == b
	}
	if i, j := x.String(), y.String(); !strings.ContainsAny(i+j, ".eE") && i != "-0" && j != "-0" {
		return i == j
	}
	return number(x) == number(y)
}

func number(n json.Number) float64 {
	f, _ := strconv.ParseFloat(n.String(), 64)
	return f
}

func refLeaf(want, v any) bool {
	c, ok := want.(map[string]any)
	if !ok {
		return refEqual(want, v)
	}
	s, isText := v.(string)
	for name, arg := range c {
		switch name {
		case "exists":
			return arg == true
		case "prefix", "suffix", "equals-ignore-case", "wildcard":
			return isText && refText(name, arg, s)
		case "cidr":
			a, err := netip.ParseAddr(s)
			return isText && err == nil && netip.MustParsePrefix(arg.(string)).Contains(a)
		case "numeric":
			n, ok := v.(json.Number)
			list := arg.([]any)
			for i := 0; ok && i < len(list); i += 2 {
				x, y := number(n), number(list[i+1].(json.Number))
				ok = map[any]bool{"=": x == y, "<": x < y, "<=": x <= y, ">": x > y, ">=": x >= y}[list[i]]
			}
			return ok
		case "anything-but":
			if o, ok := arg.(map[string]any); ok {
				for name, arg := range o {
					for _, a := range flatten(arg) {
						if isText && refText(name, a, s) {
							return false
						}
					}
				}
				return true
			}
			for _, a := range flatten(arg) {
				if refEqual(a, v) {
					return false
				}
			}
			return true
		}
	}
	return false
}

func refText(name string, arg any, s string) bool {
	if o, ok := arg.(map[string]any); ok {
		want := o["equals-ignore-case"].(string)
		for cut := range len(s) + 1 {
			part := s[:cut]
			if name == "suffix" {
				part = s[cut:]
			}
			if strings.EqualFold(part, want) {
				return true
			}
		}
		return false
	}
	want := arg.(string)
	switch name {
	case "prefix":
		return strings.HasPrefix(s, want)
	case "suffix":
		return strings.HasSuffix(s, want)
	case "equals-ignore-case":
		return strings.EqualFold(s, want)
	}
	// path.Match knows classes and single characters and stops at slashes: hide all of these.
	hide := strings.NewReplacer("/", "\x01", "[", "\x02", "?", "\x03", "]", "\x04")
	ok, err := path.Match(hide.Replace(want), strings.ReplaceAll(hide.Replace(s), "\x00", "\x05"))
	return ok && err == nil
}

// maker writes random patterns and documents of few words, so that they meet.
type maker struct{ *rand.Rand }

func (m maker) pick(of ...string) string { return of[m.IntN(len(of))] }
func (m maker) word() string {
	return m.pick(`""`, `"x"`, `"xy"`, `"XY"`, `"yx"`, `"x/é"`, `"X/É"`, `"10.0.0.7"`, `"x*y"`, `"a\"b"`, `"\u0078y"`, `"\u017fk"`)
}

func (m maker) number() string {
	return m.pick("0", "-0", "1", "1.0", "10e-1", "2", "2.5", "-3", "9007199254740993", "9007199254740992", "1e3")
}
func (m maker) scalar() string { return m.pick(m.word(), m.number(), "true", "false", "null") }

func (m maker) condition() string {
	text := func() string { return m.pick(`"x"`, `"xy"`, `"X"`, `"É"`, `""`, `"SK"`) }
	glob := func() string { return m.pick(`"*"`, `"x*"`, `"*y"`, `"x*y*"`, `"*/*"`, `"x\\*y"`, `"*x*x"`) }
	switch m.IntN(10) {
	case 0:
		return `{"exists":` + m.pick("true", "false") + `}`
	case 1:
		return `{"` + m.pick("prefix", "suffix", "equals-ignore-case") + `":` + text() + `}`
	case 2:
		return `{"` + m.pick("prefix", "suffix") + `":{"equals-ignore-case":` + text() + `}}`
	case 3:
		return `{"wildcard":` + glob() + `}`
	case 4:
		return `{"cidr":"` + m.pick("10.0.0.0/24", "10.1.0.0/16", "::/0") + `"}`
	case 5:
		return `{"numeric":[` + m.pick(`">",0`, `"=",1`, `">=",1,"<",2.5`, `"<",0`, `"<=",9007199254740992`) + `]}`
	case 6:
		return `{"anything-but":` + m.pick(m.scalar(), `[`+m.scalar()+`,`+m.scalar()+`]`) + `}`
	case 7:
		return `{"anything-but":{"` + m.pick("prefix", "suffix", "equals-ignore-case") + `":` + m.pick(text(), `[`+text()+`,`+text()+`]`) + `}}`
	case 8:
		return `{"anything-but":{"wildcard":` + glob() + `}}`
	}
	return m.scalar()
}

func (m maker) pattern(depth int) string {
	var parts []string
	for _, k := range []string{"a", "b", "c", "é"} {
		if m.IntN(3) > 0 {
			continue
		}
		if depth > 0 && m.IntN(3) == 0 {
			parts = append(parts, fmt.Sprintf("%q:%s", k, m.pattern(depth-1)))
			continue
		}
		list := []string{m.condition()}
		for m.IntN(3) == 0 {
			list = append(list, m.condition())
		}
		parts = append(parts, fmt.Sprintf("%q:[%s]", k, strings.Join(list, ",")))
	}
	if depth > 0 && m.IntN(4) == 0 {
		parts = append(parts, `"$or":[`+m.pattern(depth-1)+`,`+m.pattern(depth-1)+`]`)
	}
	if len(parts) == 0 {
		return `{"a":[` + m.condition() + `]}`
	}
	return `{` + strings.Join(parts, ", ") + `}`
}

func (m maker) value(depth int) string {
	switch n := m.IntN(6); {
	case n == 0 && depth > 0:
		return m.object(depth - 1)
	case n == 1 && depth > 0:
		var list []string
		for m.IntN(3) > 0 {
			list = append(list, m.value(depth-1))
		}
		return `[` + strings.Join(list, " , ") + `]`
	}
	return m.scalar()
}

func (m maker) object(depth int) string {
	var parts []string
	for m.IntN(5) > 0 {
		parts = append(parts, fmt.Sprintf("%s : %s", m.pick(`"a"`, `"b"`, `"c"`, `"é"`, `"\u00e9"`, `"d"`), m.value(depth)))
	}
	return `{` + strings.Join(parts, ",") + `}`
}

func compare(t *testing.T, pat, doc []byte) (matched bool) {
	t.Helper()
	p, err := pattern.Compile(pat)
	if err != nil {
		t.Fatalf("compile %s: %v", pat, err)
	}
	got, want := p.Match(doc), reference(pat, doc)
	if got != want {
		t.Fatalf("pattern %s\ndocument %s\ngot %t, the reference says %t", pat, doc, got, want)
	}
	return got
}

func TestAgainstReference(t *testing.T) {
	matched := 0
	const n = 60_000
	for seed := range uint64(n) {
		m := maker{rand.New(rand.NewPCG(seed, 1))}
		if compare(t, []byte(m.pattern(2)), []byte(m.object(3))) {
			matched++
		}
	}
	if matched < n/50 || matched > n*49/50 {
		t.Errorf("%d of %d match: the comparison says little", matched, n)
	}
}

// FuzzMatch brings outside bytes as documents to patterns that a seed makes.
func FuzzMatch(f *testing.F) {
	f.Add(uint64(1), []byte(instance))
	f.Add(uint64(2), []byte(`{"a":[1,{"b":"\ud83d\ude00"}],"c":-1.5e+3}`))
	f.Add(uint64(3), []byte("{\"a\":\"\xff\\u12\"}"))
	f.Fuzz(func(t *testing.T, seed uint64, doc []byte) {
		compare(t, []byte(maker{rand.New(rand.NewPCG(seed, 2))}.pattern(2)), doc)
	})
}

// FuzzCompile brings outside bytes as patterns: no panic, and what compiles does not panic on a document.
func FuzzCompile(f *testing.F) {
	f.Add([]byte(`{"a":[{"anything-but":{"wildcard":["*x","y*"]}},{"numeric":[">",0,"<",5]}],"$or":[{"b":[1]},{"c":{"d":[{"cidr":"::/0"}]}}]}`))
	f.Fuzz(func(t *testing.T, pat []byte) {
		p, err := pattern.Compile(pat)
		if err != nil {
			return
		}
		if !json.Valid(pat) {
			t.Errorf("compiles, though it is not JSON: %s", pat)
		}
		p.Match([]byte(instance))
		if a, err := pattern.CompileAny(string(pat)); err == nil {
			a.MatchRecord(&pattern.Meta{PartitionKey: "k"}, []byte(instance))
		}
	})
}

func TestDepthIsThatOfEncodingJSON(t *testing.T) {
	p, err := pattern.Compile([]byte(`{"a": ["x"]}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"a", "b"} {
		for _, n := range []int{9998, 9999, 10000} {
			doc := []byte(`{"a":"x","` + key + `":` + strings.Repeat("[", n) + `"x"` + strings.Repeat("]", n) + `}`)
			if got, want := p.Match(doc), json.Valid(doc); got != want {
				t.Errorf("%d arrays under %s: got %t, want %t", n, key, got, want)
			}
		}
	}
}

func TestNoAllocation(t *testing.T) {
	a, err := pattern.CompileAny(filters...)
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if !a.MatchRecord(&benchMeta, benchReading) {
			t.Error("does not match")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

var (
	filters = []string{
		`{"data": {"signals": {"state": ["parked", "charging"]}}}`,
		`{"partitionKey": [{"prefix": "truck-"}], "data": {"signals": {"speed": [{"numeric": [">", 80]}], "state": [{"anything-but": "parked"}], "driver": [{"equals-ignore-case": "ANNA"}]}}}`,
	}
	benchMeta    = pattern.Meta{PartitionKey: "truck-0017"}
	benchReading = []byte(`{"vehicle_id":"truck-0017","timestamp":"2026-11-21T13:34:46Z","lat":52.520008,"lon":13.404954,` +
		`"signals":{"speed":84.2,"fuel_level":63.2,"engine_temp":91.5,"rpm":1850,"state":"moving","driver":"Anna","tags":["a","b"]}}`)
)

func BenchmarkMatch(b *testing.B) {
	for i, name := range []string{"one exact value", "key and three conditions"} {
		b.Run(name, func(b *testing.B) {
			a, err := pattern.CompileAny(filters[i])
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			b.SetBytes(int64(len(benchReading)))
			for b.Loop() {
				a.MatchRecord(&benchMeta, benchReading)
			}
		})
	}
	b.Run("reference on encoding/json", func(b *testing.B) {
		pat := []byte(`{"signals": {"speed": [{"numeric": [">", 80]}]}}`)
		b.ReportAllocs()
		b.SetBytes(int64(len(benchReading)))
		for b.Loop() {
			reference(pat, benchReading)
		}
	})
}
