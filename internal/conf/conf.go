// Package conf reads one strict YAML file into a struct. A key that the struct does not have is an error that names the line and
// the nearest key; every mistake is reported, not just the first. Defaults and explanations stand in the struct's tags, so that
// the reference page is made of what the program really does:
//
//	Listen string `yaml:"listen" default:"127.0.0.1:8080" doc:"address of the HTTP door"`
package conf

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/milepost/milepost/internal/nearest"
)

// A Duration is written as Go does ("90s", "1h30m"), or in days ("30d").
type Duration time.Duration

// UnmarshalYAML reads a duration.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := parseDuration(n.Value)
	if err != nil {
		return fmt.Errorf("%q is no duration: write 90s, 10m, 24h or 30d", n.Value)
	}
	*d = Duration(v)
	return nil
}

// MarshalYAML writes a duration.
func (d Duration) MarshalYAML() (any, error) { return d.String(), nil }

// String writes a duration as UnmarshalYAML reads it.
func (d Duration) String() string {
	const day = 24 * time.Hour
	if v := time.Duration(d); v > day && v%day == 0 {
		return strconv.Itoa(int(v/day)) + "d"
	}
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseFloat(days, 64)
		if err == nil && n >= 0 && n < 100_000 {
			return time.Duration(n * 24 * float64(time.Hour)), nil
		}
	}
	return time.ParseDuration(s)
}

// Bytes is a size, written as a number or with a unit: 500, 64KiB, 1MiB, 2GiB (or KB, MB, GB of 1,000).
type Bytes int64

// UnmarshalYAML reads a size.
func (b *Bytes) UnmarshalYAML(n *yaml.Node) error {
	v, err := parseBytes(n.Value)
	if err != nil {
		return fmt.Errorf("%q is no size: write a number of bytes, or 64KiB, 1MiB, 2GiB", n.Value)
	}
	*b = Bytes(v)
	return nil
}

// MarshalYAML writes a size.
func (b Bytes) MarshalYAML() (any, error) { return b.String(), nil }

// String writes a size with the largest unit that divides it.
func (b Bytes) String() string {
	units := []string{"", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for ; i < len(units)-1 && b != 0 && b%1024 == 0; i++ {
		b /= 1024
	}
	return strconv.FormatInt(int64(b), 10) + units[i]
}

func parseBytes(s string) (int64, error) {
	units := []struct {
		suffix string
		factor float64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1}, {"", 1}}
	for _, u := range units {
		if num, ok := strings.CutSuffix(s, u.suffix); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
			if err != nil || n < 0 || n*u.factor > 1<<60 {
				return 0, errors.New("out of range")
			}
			return int64(n * u.factor), nil
		}
	}
	return 0, errors.New("unreachable")
}

// A Validator checks what types cannot say. Its errors say what to write instead.
type Validator interface{ Validate() error }

// Load fills into, a pointer to a struct, with its defaults and then with what data says. The error joins everything that is wrong,
// one line each. Structs that are Validators are asked at the end.
func Load(data []byte, into any) error {
	v := reflect.ValueOf(into).Elem()
	if err := setDefaults(v); err != nil {
		return err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("not YAML: %w", err)
	}
	var errs []error
	if len(doc.Content) > 0 {
		errs = fill(doc.Content[0], v, "", errs)
	}
	if len(errs) == 0 {
		errs = validate(v, "", errs)
	}
	return errors.Join(errs...)
}

func setDefaults(v reflect.Value) error {
	t := v.Type()
	for i := range t.NumField() {
		f := v.Field(i)
		if d, ok := t.Field(i).Tag.Lookup("default"); ok && f.IsZero() {
			var n yaml.Node
			if err := yaml.Unmarshal([]byte(d), &n); err != nil {
				return fmt.Errorf("conf: bug: default of %s: %w", t.Field(i).Name, err)
			}
			if err := n.Decode(f.Addr().Interface()); err != nil {
				return fmt.Errorf("conf: bug: default of %s: %w", t.Field(i).Name, err)
			}
		}
		if f.Kind() == reflect.Struct && isSection(f.Type()) {
			if err := setDefaults(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// isSection tells structs with keys from structs that read themselves.
func isSection(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && !reflect.PointerTo(t).Implements(reflect.TypeFor[yaml.Unmarshaler]())
}

func fill(n *yaml.Node, v reflect.Value, path string, errs []error) []error {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	fail := func(format string, args ...any) []error {
		return append(errs, fmt.Errorf("line %d: %s", n.Line, fmt.Sprintf(format, args...)))
	}
	if n.Tag == "!!null" {
		return errs
	}
	switch {
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		if isSection(v.Type().Elem()) {
			if err := setDefaults(v.Elem()); err != nil {
				return append(errs, err)
			}
		}
		return fill(n, v.Elem(), path, errs)
	case isSection(v.Type()) && n.Kind == yaml.ScalarNode && v.CanAddr() && reflect.PointerTo(v.Type()).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
		// A section that can be written on one line too.
		if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(n.Value)); err != nil { //nolint:errcheck,forcetypeassert // just asked
			return fail("%s: %v", path, err)
		}
		return errs
	case isSection(v.Type()):
		if n.Kind != yaml.MappingNode {
			return fail("%s is a section: write keys below it (%s)", orTop(path), strings.Join(keys(v.Type()), ", "))
		}
		return fillStruct(n, v, path, errs)
	case v.Kind() == reflect.Slice && isSection(deref(v.Type().Elem())):
		if n.Kind != yaml.SequenceNode {
			return fail("%s is a list: begin each item with '- '", path)
		}
		s := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, c := range n.Content {
			if isSection(s.Index(i).Type()) {
				if err := setDefaults(s.Index(i)); err != nil {
					return append(errs, err)
				}
			}
			errs = fill(c, s.Index(i), fmt.Sprintf("%s[%d]", path, i), errs)
		}
		v.Set(s)
		return errs
	case v.Kind() == reflect.Map && isSection(deref(v.Type().Elem())):
		if n.Kind != yaml.MappingNode {
			return fail("%s is a section: write 'name:' and its keys below", path)
		}
		m := reflect.MakeMap(v.Type())
		seen := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if key := n.Content[i]; seen[key.Value] > 0 {
				errs = append(errs, givenTwice(key, path, seen[key.Value]))
				continue
			}
			seen[n.Content[i].Value] = n.Content[i].Line
			e := reflect.New(v.Type().Elem()).Elem()
			if isSection(e.Type()) {
				if err := setDefaults(e); err != nil {
					return append(errs, err)
				}
			}
			errs = fill(n.Content[i+1], e, path+"."+n.Content[i].Value, errs)
			m.SetMapIndex(reflect.ValueOf(n.Content[i].Value), e)
		}
		v.Set(m)
		return errs
	}
	if v.Type() == reflect.TypeFor[time.Duration]() { // of packages that do not know this one; days and the advice apply to them too
		v = v.Addr().Convert(reflect.TypeFor[*Duration]()).Elem()
	}
	if err := n.Decode(v.Addr().Interface()); err != nil {
		msg := err.Error()
		if te, ok := errors.AsType[*yaml.TypeError](err); ok && len(te.Errors) > 0 {
			msg = fmt.Sprintf("%q does not fit: it takes a %s", n.Value, kindName(v.Type()))
		}
		return fail("%s: %s", path, msg)
	}
	return errs
}

func givenTwice(key *yaml.Node, path string, first int) error {
	return fmt.Errorf("line %d: %s is given twice (first in line %d)", key.Line, join(path, key.Value), first)
}

func fillStruct(n *yaml.Node, v reflect.Value, path string, errs []error) []error {
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if line, twice := seen[key.Value]; twice {
			errs = append(errs, givenTwice(key, path, line))
			continue
		}
		seen[key.Value] = key.Line
		f, ok := field(v, key.Value)
		if !ok {
			msg := fmt.Sprintf("line %d: unknown key %s", key.Line, join(path, key.Value))
			if near := nearest.Word(key.Value, keys(v.Type())); near != "" {
				msg += fmt.Sprintf("; did you mean %s?", join(path, near))
			} else {
				msg += "; known here: " + strings.Join(keys(v.Type()), ", ")
			}
			errs = append(errs, errors.New(msg))
			continue
		}
		errs = fill(n.Content[i+1], f, join(path, key.Value), errs)
	}
	return errs
}

func validate(v reflect.Value, path string, errs []error) []error {
	switch v.Kind() { //nolint:exhaustive // the others hold no structs
	case reflect.Pointer:
		if !v.IsNil() {
			return validate(v.Elem(), path, errs)
		}
	case reflect.Slice:
		for i := range v.Len() {
			errs = validate(v.Index(i), fmt.Sprintf("%s[%d]", path, i), errs)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if name := yamlName(v.Type().Field(i)); name != "" {
				errs = validate(v.Field(i), join(path, name), errs)
			}
		}
		if v.CanAddr() {
			if c, ok := v.Addr().Interface().(Validator); ok {
				if err := c.Validate(); err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", orTop(path), err))
				}
			}
		}
	}
	return errs
}

func field(v reflect.Value, key string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if yamlName(v.Type().Field(i)) == key {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

func keys(t reflect.Type) []string {
	var ks []string
	for i := range t.NumField() {
		if n := yamlName(t.Field(i)); n != "" {
			ks = append(ks, n)
		}
	}
	return ks
}

func yamlName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	if name == "-" || !f.IsExported() {
		return ""
	}
	return name
}

func deref(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Pointer {
		return t.Elem()
	}
	return t
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func orTop(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}

func kindName(t reflect.Type) string {
	switch t.Kind() { //nolint:exhaustive // the rest name themselves
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64, reflect.Uint32, reflect.Uint16:
		return "whole number"
	case reflect.Float64:
		return "number"
	case reflect.Slice:
		return "list"
	case reflect.Map:
		return "section"
	}
	return t.Kind().String()
}
