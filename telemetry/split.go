package telemetry

import (
	"bytes"
	"strconv"
)

// Split finds the readings of a body and calls f for each, until f returns false. What f gets is a view of body, without
// blanks around it; whether it is a good reading is for the decoder to say. Nothing is allocated but an error.
//
// A body is one of three, told apart by its beginning:
//
//   - an array, when it begins with '[': index counts its elements from 0;
//   - one object, however many lines it takes, when it is that and nothing more: index is 0;
//   - else lines (NDJSON): index is the line, from 0. Blank lines are passed over but counted.
//
// A damaged line harms only itself. A damaged element of an array harms only itself as long as its brackets and quotes
// match; if they do not, where it ends is anyone's guess, and guessing could make readings of what lay inside it. Then, as
// when the array itself is malformed, Split returns a *DecodeError for that element and everything after it.
func Split(body []byte, f func(elem []byte, index int) bool) error {
	if bytes.HasPrefix(body, []byte("\xef\xbb\xbf")) { // a byte order mark, which some systems put before UTF-8
		body = body[3:]
	}
	i := skipSpace(body, 0)
	switch {
	case i >= len(body):
		return nil
	case body[i] == '[':
		return splitArray(body, i+1, f)
	case body[i] == '{' && oneObject(body[i:]):
		f(trim(body), 0)
		return nil
	}
	for index := 0; len(body) > 0; index++ {
		line := body
		if end := bytes.IndexByte(body, '\n'); end >= 0 {
			line, body = body[:end], body[end+1:]
		} else {
			body = nil
		}
		if line = trim(line); len(line) > 0 && !f(line, index) {
			return nil
		}
	}
	return nil
}

// trim cuts JSON white space off both ends.
func trim(b []byte) []byte {
	b = b[skipSpace(b, 0):]
	for len(b) > 0 {
		if c := b[len(b)-1]; c != ' ' && c != '\n' && c != '\t' && c != '\r' {
			break
		}
		b = b[:len(b)-1]
	}
	return b
}

// oneObject tells whether body, which begins with '{', is one object rather than lines of them.
func oneObject(body []byte) bool {
	end := bytes.IndexByte(body, '\n')
	if end < 0 {
		return true
	}
	next := skipSpace(body, end)
	if next == len(body) {
		return true
	}
	// A closing brace, a line end and an opening brace follow each other nowhere inside an object: lines are told apart
	// from an object without reading it.
	if body[next] == '{' && bytes.HasSuffix(trim(body[:end]), []byte("}")) {
		return false
	}
	after := valueEnd(body, 0)
	return after >= 0 && skipSpace(body, after) == len(body)
}

// splitArray calls f for the elements of the array whose content begins at i.
func splitArray(body []byte, i int, f func(elem []byte, index int) bool) error {
	i = skipSpace(body, i)
	if i < len(body) && body[i] == ']' {
		return arrayEnd(body, i+1)
	}
	for index := 0; ; index++ {
		end := valueEnd(body, i)
		if end < 0 {
			return arrayError(i, index, "it is damaged so that its end cannot be told, or the message is cut short")
		}
		next := skipSpace(body, end)
		if next < len(body) && body[next] != ',' && body[next] != ']' {
			return arrayError(i, index, "it is not followed by ',' or ']'")
		}
		if !f(trim(body[i:end]), index) {
			return nil
		}
		switch {
		case next >= len(body):
			return arrayError(next, index+1, "the array has no end: the message is cut short")
		case body[next] == ']':
			return arrayEnd(body, next+1)
		}
		i = skipSpace(body, next+1)
	}
}

func arrayEnd(body []byte, i int) error {
	if i = skipSpace(body, i); i < len(body) {
		return &DecodeError{Offset: i, Msg: "something follows the array and is refused: send one array a message"}
	}
	return nil
}

func arrayError(offset, index int, msg string) error {
	return &DecodeError{Offset: offset, Msg: "element " + strconv.Itoa(index) + " of the array: " + msg +
		"; it and all after it are refused: send one reading a line to have each judged by itself"}
}

// valueEnd returns the index after the value at i by matching quotes and brackets alone; -1 if they do not match.
func valueEnd(body []byte, i int) int {
	start := i
	var kinds uint64 // one bit for each open bracket: 1 if it is '{'
	depth := 0
	for i < len(body) {
		switch c := body[i]; c {
		case '"':
			if i = stringEnd(body, i+1); i < 0 {
				return -1
			}
			if depth == 0 {
				return i
			}
			continue
		case '{', '[':
			if depth == 64 {
				return -1
			}
			kinds <<= 1
			if c == '{' {
				kinds |= 1
			}
			depth++
		case '}', ']':
			if depth == 0 { // the enclosing array's
				if i == start {
					return -1
				}
				return i
			}
			if (c == '}') != (kinds&1 == 1) {
				return -1
			}
			kinds >>= 1
			if depth--; depth == 0 {
				return i + 1
			}
		case ',':
			if depth == 0 {
				if i == start {
					return -1
				}
				return i
			}
		}
		i++
	}
	if depth > 0 || i == start {
		return -1
	}
	return i
}

// stringEnd returns the index after the string whose content begins at i, or -1. A raw line end is never inside a string, so
// a lost quote is noticed by the end of its line.
func stringEnd(body []byte, i int) int {
	if end := plainString(body, i); end >= 0 {
		return end + 1
	}
	for ; i < len(body); i++ {
		switch body[i] {
		case '"':
			return i + 1
		case '\\':
			i++
		case '\n', '\r':
			return -1
		}
	}
	return -1
}
