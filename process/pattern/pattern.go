// Package pattern is the event pattern language of Amazon EventBridge as filters of Lambda event source mappings use it: a JSON
// object whose shape is the event's and whose leaves are lists of allowed values and conditions.
//
//	{"data": {"speed": [{"numeric": [">", 80]}], "state": [{"anything-but": "parked"}]}}
//
// Keys of an object are joined by AND, a list's entries by OR, and "$or" joins objects. A pattern is compiled once to a tree and
// is safe for concurrent use; matching reads the document once, front to back, and typically allocates nothing.
//
// What the documentation leaves open is decided as AWS's open matcher does it where that is known:
//
//   - An event's array matches if any of its elements does, however deeply nested. All conditions on one array of objects must
//     hold for the same element.
//   - Only strings, numbers, true, false and null are leaves. An object, an empty array and a missing key are all "absent", so
//     {"exists": false} is true of them. Within an array of objects each element is asked by itself.
//   - Numbers are equal by value (300 and 3e2), integers exactly, all others as 64-bit floats.
//   - anything-but needs a leaf to be there, and any leaf that is not one of its values will do, of whatever type.
//   - A key that occurs twice in an event counts with its last value; twice in a pattern it is an error.
//
// A document that is not valid JSON matches nothing.
package pattern

import (
	"fmt"
	"unicode/utf8"
)

// MaxLength is the length of a pattern in characters that Lambda accepts.
const MaxLength = 4096

// A Pattern is a compiled event pattern.
type Pattern struct{ root *object }

// Compile reads a pattern. Errors name the path within the pattern.
func Compile(text []byte) (*Pattern, error) {
	root, err := read(text)
	if err != nil {
		return nil, err
	}
	o, err := compileObject(root, "$")
	if err != nil {
		return nil, err
	}
	return &Pattern{root: o}, nil
}

// Match reports whether a document, which must be a JSON object, matches.
func (p *Pattern) Match(doc []byte) bool {
	i := space(doc, 0)
	if i >= len(doc) || doc[i] != '{' {
		return false
	}
	end, ok := p.root.match(doc, i, 0)
	return ok && space(doc, end) == len(doc)
}

func read(text []byte) (value, error) {
	if n := utf8.RuneCount(text); n > MaxLength {
		return value{}, fmt.Errorf("pattern has %d characters; at most %d are allowed", n, MaxLength)
	}
	root, err := parse(text)
	if err != nil {
		return value{}, err
	}
	if root.kind != kindObject {
		return value{}, fmt.Errorf("pattern must be a JSON object, for example {\"data\": {\"state\": [\"moving\"]}}, not %s", root.kind)
	}
	return root, nil
}
