package conf

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Reference returns a Markdown table of every key of a struct: key, default, meaning.
func Reference(of any) string {
	var b strings.Builder
	b.WriteString("| key | default | meaning |\n|---|---|---|\n")
	reference(&b, reflect.TypeOf(of), "")
	return b.String()
}

func reference(b *strings.Builder, t reflect.Type, path string) {
	t = deref(t)
	for i := range t.NumField() {
		f := t.Field(i)
		name := yamlName(f)
		if name == "" {
			continue
		}
		key := join(path, name)
		ft := deref(f.Type)
		switch {
		case isSection(ft):
			if d := f.Tag.Get("doc"); d != "" {
				fmt.Fprintf(b, "| **`%s`** | | %s |\n", key, d)
			}
			reference(b, ft, key)
			continue
		case ft.Kind() == reflect.Slice && isSection(deref(ft.Elem())):
			fmt.Fprintf(b, "| **`%s[]`** | %s | %s |\n", key, code(f.Tag.Get("default")), f.Tag.Get("doc"))
			reference(b, ft.Elem(), key+"[]")
			continue
		case ft.Kind() == reflect.Map && isSection(deref(ft.Elem())):
			fmt.Fprintf(b, "| **`%s.NAME`** | %s | %s |\n", key, code(f.Tag.Get("default")), f.Tag.Get("doc"))
			reference(b, ft.Elem(), key+".NAME")
			continue
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", key, code(f.Tag.Get("default")), f.Tag.Get("doc"))
	}
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

// Effective returns a struct as the YAML that would produce it.
func Effective(v any) (string, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(v); err != nil {
		return "", err
	}
	return b.String(), e.Close()
}
