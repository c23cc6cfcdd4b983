package pattern

import (
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth is how deeply a document may be nested, encoding/json's own limit.
const maxDepth = 10000

func space(doc []byte, i int) int {
	for i < len(doc) && (doc[i] == ' ' || doc[i] == '\n' || doc[i] == '\t' || doc[i] == '\r') {
		i++
	}
	return i
}

// skip returns the index behind the value that begins at doc[i], -1 if there is no valid one.
func skip(doc []byte, i, depth int) int {
	if i >= len(doc) {
		return -1
	}
	switch doc[i] {
	case '"':
		end, _ := text(doc, i)
		return end
	case 't', 'f', 'n':
		return literal(doc, i)
	case '{', '[':
		if depth >= maxDepth {
			return -1
		}
	default:
		return digits(doc, i)
	}
	isObject, closing := doc[i] == '{', doc[i]+2 // '}' is '{'+2 and ']' is '['+2
	i = space(doc, i+1)
	if i < len(doc) && doc[i] == closing {
		return i + 1
	}
	for {
		if isObject {
			if i >= len(doc) || doc[i] != '"' {
				return -1
			}
			if i, _ = text(doc, i); i < 0 {
				return -1
			}
			if i = space(doc, i); i >= len(doc) || doc[i] != ':' {
				return -1
			}
			i = space(doc, i+1)
		}
		if i = skip(doc, i, depth+1); i < 0 {
			return -1
		}
		if i = space(doc, i); i >= len(doc) {
			return -1
		}
		if doc[i] == closing {
			return i + 1
		}
		if doc[i] != ',' {
			return -1
		}
		i = space(doc, i+1)
	}
}

// text returns the index behind the string that begins at doc[i], and whether its bytes are its value.
func text(doc []byte, i int) (end int, plain bool) {
	plain = true
	var high byte
	from := i + 1
	for i = from; i < len(doc); i++ {
		switch c := doc[i]; {
		case c == '"':
			if high >= utf8.RuneSelf && plain {
				plain = utf8.Valid(doc[from:i])
			}
			return i + 1, plain
		case c == '\\':
			plain = false
			i++
			if i >= len(doc) {
				return -1, false
			}
			switch doc[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				if unit(doc, i-1) < 0 {
					return -1, false
				}
				i += 4
			default:
				return -1, false
			}
		case c < ' ':
			return -1, false
		default:
			high |= c
		}
	}
	return -1, false
}

// unit returns the value of the \uXXXX at doc[i], or -1.
func unit(doc []byte, i int) rune {
	if i+6 > len(doc) || doc[i] != '\\' || doc[i+1] != 'u' {
		return -1
	}
	var r rune
	for _, c := range doc[i+2 : i+6] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

// unescape appends the value of a valid string. What is not UTF-8 becomes U+FFFD, as encoding/json has it.
func unescape(to, raw []byte) []byte {
	for i := 0; i < len(raw); {
		c := raw[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRune(raw[i:])
			to = utf8.AppendRune(to, r)
			i += n
			continue
		}
		if c != '\\' {
			to = append(to, c)
			i++
			continue
		}
		switch c = raw[i+1]; c {
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'u':
			r := unit(raw, i)
			i += 6
			if utf16.IsSurrogate(r) {
				if both := utf16.DecodeRune(r, unit(raw, i)); both != utf8.RuneError {
					r = both
					i += 6
				} else {
					r = utf8.RuneError
				}
			}
			to = utf8.AppendRune(to, r)
			continue
		}
		to = append(to, c)
		i += 2
	}
	return to
}

func literal(doc []byte, i int) int {
	for _, word := range [...]string{"true", "false", "null"} {
		if doc[i] == word[0] {
			if i+len(word) <= len(doc) && string(doc[i:i+len(word)]) == word {
				return i + len(word)
			}
			return -1
		}
	}
	return -1
}

// digits returns the index behind the number that begins at doc[i], or -1.
func digits(doc []byte, i int) int {
	if i < len(doc) && doc[i] == '-' {
		i++
	}
	run := func() bool {
		from := i
		for i < len(doc) && '0' <= doc[i] && doc[i] <= '9' {
			i++
		}
		return i > from
	}
	if i < len(doc) && doc[i] == '0' {
		i++
	} else if !run() {
		return -1
	}
	if i < len(doc) && doc[i] == '.' {
		i++
		if !run() {
			return -1
		}
	}
	if i < len(doc) && (doc[i] == 'e' || doc[i] == 'E') {
		i++
		if i < len(doc) && (doc[i] == '+' || doc[i] == '-') {
			i++
		}
		if !run() {
			return -1
		}
	}
	return i
}
