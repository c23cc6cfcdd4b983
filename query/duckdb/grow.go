//go:build cgo

package duckdb

import "regexp"

// DuckDB's memory limit counts what sorts, joins and groups hold, not what one expression makes: len(range(200000000)) takes 10 GB,
// cannot be interrupted, and would take the doors down with it. So what makes much out of little is refused before it runs.

// maxPad is the longest text that padding or a width may make.
const maxPad = 10_000

// growing tells functions that make something as large as a number says, or multiply lists, and what serves instead.
//
//nolint:gochecknoglobals // a table, never written
var growing = map[string]string{
	"repeat": "bar() draws bars", "bitstring": "", "list_resize": "", "array_resize": "",
	"range": rowsInstead, "generate_series": rowsInstead,
	"list_transform": listInstead, "list_apply": listInstead, "array_transform": listInstead, "array_apply": listInstead, "apply": listInstead,
	"list_reduce": listInstead, "array_reduce": listInstead, "reduce": listInstead,
}

const (
	rowsInstead = "write it in FROM, where it makes rows: FROM generate_series(1, 10)"
	listInstead = "use unnest and an aggregate"
)

// wide finds a width or precision beyond maxPad, and one taken from an argument.
var wide = regexp.MustCompile(`\d{5,}|%[^a-zA-Z%]*\*|\{[^}]*\{`)

// grows refuses a call that could make far more than it reads. Functions in FROM stream rows and are not asked.
func (k *checker) grows(name string, args []any) {
	if instead, ok := growing[name]; ok {
		if instead != "" {
			instead = "; " + instead
		}
		k.refuse("function %s is not allowed outside of FROM: it can take any amount of memory%s", name, instead)
		return
	}
	switch name {
	case "lpad", "rpad":
		if len(args) < 2 {
			return
		}
		if n, ok := constant(args[1]).(float64); !ok || n > maxPad {
			k.refuse("%s takes a number up to %d as its length here", name, maxPad)
		}
	case "printf", "format":
		if len(args) == 0 {
			return
		}
		if s, ok := constant(args[0]).(string); !ok || wide.MatchString(s) {
			k.refuse("%s takes a plain text without large widths as its format here", name)
		}
	}
}

// constant returns the value of a literal: float64, string, or nil for anything else.
func constant(v any) any {
	n, _ := v.(map[string]any)
	if class, _ := n["class"].(string); class != "CONSTANT" {
		return nil
	}
	value, _ := n["value"].(map[string]any)
	return value["value"]
}
