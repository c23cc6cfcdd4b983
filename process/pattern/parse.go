package pattern

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

type kind string

const (
	kindObject kind = "an object"
	kindArray  kind = "an array"
	kindString kind = "a string"
	kindNumber kind = "a number"
	kindBool   kind = "a boolean"
	kindNull   kind = "null"
)

// A value is JSON with its order and its numbers as written.
type value struct {
	kind    kind
	members []member
	items   []value
	text    string // of a string or number
	yes     bool
}

type member struct {
	key string
	val value
}

func parse(text []byte) (value, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	v, err := parseValue(d, "$")
	if err != nil {
		return value{}, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return value{}, fmt.Errorf("pattern goes on behind its end, at byte %d", d.InputOffset())
	}
	return v, nil
}

func parseValue(d *json.Decoder, path string) (value, error) {
	t, err := d.Token()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return value{}, fmt.Errorf("pattern is not valid JSON at %s, byte %d: %w", path, d.InputOffset(), err)
	}
	switch t := t.(type) {
	case string:
		return value{kind: kindString, text: t}, nil
	case json.Number:
		return value{kind: kindNumber, text: t.String()}, nil
	case bool:
		return value{kind: kindBool, yes: t}, nil
	case nil:
		return value{kind: kindNull}, nil
	}
	v := value{kind: kindArray}
	if t == json.Delim('{') {
		v.kind = kindObject
	}
	for d.More() {
		if v.kind == kindArray {
			item, err := parseValue(d, fmt.Sprintf("%s[%d]", path, len(v.items)))
			if err != nil {
				return value{}, err
			}
			v.items = append(v.items, item)
			continue
		}
		t, err := d.Token()
		if err != nil {
			return value{}, fmt.Errorf("pattern is not valid JSON at %s, byte %d: %w", path, d.InputOffset(), err)
		}
		key, _ := t.(string)
		for _, m := range v.members {
			if m.key == key {
				return value{}, fmt.Errorf("%s.%s: the key occurs twice; put all its values into one list, or use \"$or\"", path, key)
			}
		}
		val, err := parseValue(d, path+"."+key)
		if err != nil {
			return value{}, err
		}
		v.members = append(v.members, member{key, val})
	}
	if _, err := d.Token(); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return value{}, fmt.Errorf("pattern is not valid JSON at %s, byte %d: %w", path, d.InputOffset(), err)
	}
	return v, nil
}
