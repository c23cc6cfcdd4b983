package telemetry

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestSplit(t *testing.T) {
	f := func(body string, want ...string) {
		t.Helper()
		var got []string
		if err := Split([]byte(body), func(elem []byte, index int) bool {
			got = append(got, fmt.Sprintf("%d %s", index, elem))
			return true
		}); err != nil {
			got = append(got, err.Error())
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%q\n got %q\nwant %q", body, got, want)
		}
	}

	// One object.
	f("")
	f(" \r\n\t ")
	f(`{"a":1}`, `0 {"a":1}`)
	f("\xef\xbb\xbf {\n \"a\": {\n}\n}\n", "0 {\n \"a\": {\n}\n}")
	f("{\"a\":1}\n", `0 {"a":1}`)

	// Lines.
	f("{\"a\":1}\n{\"b\":2}", `0 {"a":1}`, `1 {"b":2}`)
	f("\n{\"a\":1} \r\n\r\n \n\t{\"b\":2}\n\n", `1 {"a":1}`, `4 {"b":2}`)
	f("{\"a\":1\n{\"b\":2}", `0 {"a":1`, `1 {"b":2}`)
	f("{\"a\n{\"b\":2}", `0 {"a`, `1 {"b":2}`)
	f("nonsense\n{\"b\":2}", `0 nonsense`, `1 {"b":2}`)
	f("{\"a\":1}\nnonsense\n{\"b\":2}", `0 {"a":1}`, `1 nonsense`, `2 {"b":2}`)
	f("{\"a\":1}}\n{\"b\":2}", `0 {"a":1}}`, `1 {"b":2}`)
	f("{\"a\":\"}\n{\"}\n{\"b\":2}", `0 {"a":"}`, `1 {"}`, `2 {"b":2}`)

	// An array.
	f("[]")
	f(" [ ] ")
	f(`[{"a":"]},[{\""},{"b":[{"c":[]}]}]`, `0 {"a":"]},[{\""}`, `1 {"b":[{"c":[]}]}`)
	f("[ {\"a\":1} ,\n {\"b\":2}\n]\n", `0 {"a":1}`, `1 {"b":2}`)
	f(`[1 , "x,]" ,{"a":nonsense},{"b":2}]`, `0 1`, `1 "x,]"`, `2 {"a":nonsense}`, `3 {"b":2}`)
	rest := "; it and all after it are refused: send one reading a line to have each judged by itself"
	f(`[{"a":1},{"b":2},`, `0 {"a":1}`, `1 {"b":2}`, "byte 17: element 2 of the array: it is damaged so that its end cannot be told, or the message is cut short"+rest)
	f(`[{"a":1},{"b":2}`, `0 {"a":1}`, `1 {"b":2}`, "byte 16: element 2 of the array: the array has no end: the message is cut short"+rest)
	f(`[{"a":1},]`, `0 {"a":1}`, "byte 9: element 1 of the array: it is damaged so that its end cannot be told, or the message is cut short"+rest)
	f(`[{"a":1},{"b:2},{"c":3}]`, `0 {"a":1}`, "byte 9: element 1 of the array: it is damaged so that its end cannot be told, or the message is cut short"+rest)
	f("[{\"a\":1},{\"b\n\":2},{\"c\":3}]", `0 {"a":1}`, "byte 9: element 1 of the array: it is damaged so that its end cannot be told, or the message is cut short"+rest)
	f(`[{"a":1},{"b":[2}],{"c":3}]`, `0 {"a":1}`, "byte 9: element 1 of the array: it is damaged so that its end cannot be told, or the message is cut short"+rest)
	f(`[{"a":1}{"b":2}]`, "byte 1: element 0 of the array: it is not followed by ',' or ']'"+rest)
	f(`[{"a":1}] {"b":2}`, `0 {"a":1}`, "byte 10: something follows the array and is refused: send one array a message")
}

func TestSplitStops(t *testing.T) {
	for _, body := range []string{"{\"a\":1}\n{\"b\":2}\n{\"c\":3}", `[{"a":1},{"b":2},broken"`} {
		n := 0
		if err := Split([]byte(body), func([]byte, int) bool { n++; return n < 2 }); n != 2 || err != nil {
			t.Errorf("%s: %d elements, %v", body, n, err)
		}
	}
}

// Whatever comes in, elements are views of the body in order, none is blank, and good readings survive damage beside them in
// lines.
func FuzzSplit(f *testing.F) {
	f.Add([]byte("{\"a\":1}\n{\"b\":2}\n"))
	f.Add([]byte(`[{"a":[1,"]"]},2]`))
	f.Add([]byte("{\n\"a\":\"\\\"\"}"))
	f.Fuzz(func(t *testing.T, body []byte) {
		last, lastIndex := 0, -1
		check := func(elem []byte, index int) bool {
			if len(elem) == 0 || len(bytes.Trim(elem, " \t\r\n")) != len(elem) {
				t.Fatalf("%q: blank around element", body)
			}
			at := cap(body) - cap(elem)
			if at < last || at+len(elem) > len(body) || index <= lastIndex {
				t.Fatalf("%q: element %d %q out of order", body, index, elem)
			}
			last, lastIndex = at+len(elem), index
			return true
		}
		if err := Split(body, check); err != nil {
			if e, ok := errors.AsType[*DecodeError](err); !ok || e.Offset < last || e.Offset > len(body) {
				// An element not followed by ',' is itself refused, so its offset may come before its end, never before the last.
				t.Fatalf("%q: %#v", body, err)
			}
		}
		if bytes.ContainsAny(body, "\r\n") {
			return
		}
		lines := append(append([]byte("{\"vehicle_id\":\"first\"}\n"), body...), "\n{\"vehicle_id\":\"last\"}"...)
		var got []string
		if err := Split(lines, func(elem []byte, _ int) bool { got = append(got, string(elem)); return true }); err != nil {
			t.Fatalf("%q: %v", lines, err)
		}
		if got[0] != `{"vehicle_id":"first"}` || got[len(got)-1] != `{"vehicle_id":"last"}` {
			t.Fatalf("%q harmed its neighbours: %q", body, got)
		}
	})
}
