package wire

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type inner struct {
	A *string `v:"required,max=3"`
}

type embedded struct {
	StreamName *string `v:"min=1,max=5,pattern=name"`
}

type everything struct {
	embedded
	N     *int64 `v:"min=1,max=10"`
	B     *bool
	T     *time.Time
	Data  []byte            `v:"max=4"`
	List  []string          `v:"min=1,max=2,itemmin=1,itemmax=3"`
	Tags  map[string]string `v:"max=2,keymin=1,keymax=3,itemmin=0,itemmax=3"`
	Sub   *inner
	Subs  []inner
	Mode  *string `v:"enum=mode"`
	Index *string `w:"keep"`
}

var testRules = Rules{Patterns: map[string]string{"name": `[a-z]+`}, Enums: map[string][]string{"mode": {"X", "Y"}}}

func plan() *Plan { return NewPlan(reflect.TypeFor[everything](), testRules) }

func sample() *everything {
	return &everything{
		embedded: embedded{new("abc")}, N: new(int64(7)), B: new(true), T: new(time.UnixMilli(1607497475123)), Data: []byte{0, 255}, List: []string{"é\"\n"},
		Tags: map[string]string{"k": ""}, Sub: &inner{new("x")}, Subs: []inner{{new("y")}, {}}, Mode: new("X"), Index: new(""),
	}
}

func TestRoundTrip(t *testing.T) {
	for _, e := range []Encoding{JSON, CBOR} {
		b := e.Marshal(nil, sample())
		got, err := plan().Bind(e.NewReader(b))
		if err != nil {
			t.Fatalf("%s: %v in %q", e.ContentType(), err, b)
		}
		if diff := cmp.Diff(sample(), got, cmp.AllowUnexported(everything{})); diff != "" {
			t.Errorf("%s: %s", e.ContentType(), diff)
		}
	}
	if b := JSON.Marshal(nil, sample()); !json.Valid(b) || !bytes.Contains(b, []byte(`"T":1607497475.123`)) {
		t.Errorf("got %s", b)
	}
	if b := CBOR.Marshal(nil, struct{ T time.Time }{time.UnixMilli(1607497475123)}); !bytes.Contains(b, []byte{0xc1, 0x1b}) {
		t.Errorf("a timestamp must be tag 1 with an integer: %x", b)
	}
}

func TestBindCBOR(t *testing.T) {
	f := func(text string, want *everything) {
		t.Helper()
		b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		got, err := plan().Bind(CBOR.NewReader(b))
		if want == nil {
			if err == nil {
				t.Errorf("%s: got %+v, want an error", text, got)
			}
			return
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(everything{})); err != nil || diff != "" {
			t.Errorf("%s: %v %s", text, err, diff)
		}
	}
	f("bf 61 4e 07 ff", &everything{N: new(int64(7))})                                              // {_ "N": 7}
	f("a1 61 4e f9 4700", &everything{N: new(int64(7))})                                            // a half-precision 7.0
	f("a1 64 44617461 5f 41 01 42 0203 ff", &everything{Data: []byte{1, 2, 3}})                     // chunks
	f("a1 61 54 c1 1b 00000176 4718 1f73", &everything{T: new(time.UnixMilli(0x0000017647181f73))}) // tag 1, ms
	f("a1 61 54 c1 fb 41d7f41dd0c7ced9", &everything{T: new(time.UnixMilli(1607497539122))})        // tag 1, seconds as a float
	f("a2 61 4e f6 63 787878 9f 01 a1 01 02 ff", nil)                                               // a key that is no text
	f("a2 61 4e f6 63 787878 9f 01 80 ff", &everything{})                                           // null, and a member nobody knows
	f("a1 61 4e", nil)
	f("a1 61 4e 07 00", nil) // something follows
	f("bf 61 4e 07", nil)
	f("1b ffffffffffffffff", nil)
	f("bb ffffffffffffff00", nil) // a map that promises more than there is
}

func TestSerializationComplaints(t *testing.T) {
	f := func(body, want string) {
		t.Helper()
		_, err := plan().Bind(JSON.NewReader([]byte(body)))
		var e *TypeError
		if !errors.As(err, &e) || e.Message != want {
			t.Errorf("%s: got %v, want %s", body, err, want)
		}
	}
	f(`{"StreamName":1}`, "class java.math.BigDecimal can not be converted to an String")
	f(`{"StreamName":true}`, "class java.lang.Boolean can not be converted to an String")
	f(`{"StreamName":[]}`, "Start of list found where not expected")
	f(`{"StreamName":{}}`, "Start of structure or map found where not expected.")
	f(`{"N":"1"}`, "class java.lang.String can not be converted to an Integer")
	f(`{"List":{}}`, "Start of structure or map found where not expected.")
	f(`{"List":"x"}`, "Expected list or null")
	f(`{"Tags":[]}`, "Start of list found where not expected")
	f(`{"Tags":1}`, "Expected map or null")
	f(`{"Sub":1}`, "Expected null")
	f(`{"Data":"abc"}`, "'abc' can not be converted to a Blob: Base64 encoded length is expected a multiple of 4 bytes but found: 3")
	f(`{"Data":"=+/="}`, "'=+/=' can not be converted to a Blob: Invalid Base64 character: '='")
	f(`{"Data":"+/+="}`, "'+/+=' can not be converted to a Blob: Invalid last non-pad Base64 character dectected")
}

func TestSyntax(t *testing.T) {
	for _, body := range []string{
		``, `null`, `[]`, `1`, `{`, `{"a"`, `{"a":}`, `{"a":1,}`, `{,}`, `{"a":01}`, `{"a":1.}`, `{"a":tru}`, `{"a":"\x"}`, `{"a":"\u12"}`, "{\"a\":\"\n\"}",
		`{"a":1}x`, `{"a":[1,]}`, `{"a":[1 2]}`, "{\"a\":\"\xff\"}", `{"a":` + strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth) + `}`,
	} {
		if v, err := plan().Bind(JSON.NewReader([]byte(body))); !errors.Is(err, ErrSyntax) {
			t.Errorf("%s: got %v %v", body, v, err)
		}
	}
}

func TestCheck(t *testing.T) {
	f := func(body, want string) {
		t.Helper()
		v, err := plan().Bind(JSON.NewReader([]byte(body)))
		if err != nil {
			t.Fatal(err)
		}
		if got := plan().Check(v); got != want {
			t.Errorf("%s:\n got %s\nwant %s", body, got, want)
		}
	}
	f(`{}`, "")
	f(`{"StreamName":"éé"}`, "1 validation error detected: Value 'éé' at 'streamName' failed to satisfy constraint: Member must satisfy regular expression pattern: [a-z]+")
	f(`{"StreamName":"","N":11}`, "3 validation errors detected: Value '' at 'streamName' failed to satisfy constraint: Member must have length greater than or equal to 1; Value '' at 'streamName' failed to satisfy constraint: Member must satisfy regular expression pattern: [a-z]+; Value '11' at 'n' failed to satisfy constraint: Member must have value less than or equal to 10")
	f(`{"Data":"AAAAAAA="}`, "1 validation error detected: Value 'java.nio.HeapByteBuffer[pos=0 lim=5 cap=5]' at 'data' failed to satisfy constraint: Member must have length less than or equal to 4")
	f(`{"Sub":{}}`, "1 validation error detected: Value null at 'sub.a' failed to satisfy constraint: Member must not be null")
	f(`{"Subs":[{"A":"x"},{"A":"long"}]}`, "1 validation error detected: Value 'long' at 'subs.2.member.a' failed to satisfy constraint: Member must have length less than or equal to 3")
	f(`{"Mode":"Z"}`, "1 validation error detected: Value 'Z' at 'mode' failed to satisfy constraint: Member must satisfy enum value set: [X, Y]")
	f(`{"List":["toolong"]}`, "1 validation error detected: Value '[toolong]' at 'list' failed to satisfy constraint: Member must satisfy constraint: [Member must have length less than or equal to 3, Member must have length greater than or equal to 1]")
	f(`{"Tags":{"toolong":"x"}}`, "1 validation error detected: Value '{toolong=x}' at 'tags' failed to satisfy constraint: Map keys must satisfy constraint: [Member must have length less than or equal to 3, Member must have length greater than or equal to 1]")
}

// FuzzJSON holds the reader against the standard library's.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{`{"a":[1,{"b":null}],"c":"\ud83d\ude00\n"}`, `{"a":-0.5e+3}`, `{"a":"\ud800x"}`, ` { } `, `{"a":"é"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &JSONReader{b: b}
		err := r.Skip()
		if err == nil {
			err = r.End()
		}
		if errors.Is(err, ErrDeep) {
			return
		}
		if valid := json.Valid(b) && validUTF8Strings(b); (err == nil) != valid {
			t.Errorf("%q: got %v, the library says %v", b, err, valid)
		}
		text := &JSONReader{b: b}
		if text.Kind() != String {
			return
		}
		got, err := text.Text()
		if err != nil || text.End() != nil {
			return
		}
		var want string
		if json.Unmarshal(b, &want) != nil || want != string(got) {
			t.Errorf("%q: got %q, the library says %q", b, got, want)
		}
	})
}

// validUTF8Strings: the library lets bytes pass in strings that are not UTF-8, and we do not.
func validUTF8Strings(b []byte) bool { return bytes.Equal(b, bytes.ToValidUTF8(b, []byte("!"))) }

// FuzzBind binds anything in both encodings; what binds must bind again from what Marshal makes of it.
func FuzzBind(f *testing.F) {
	for _, e := range []Encoding{JSON, CBOR} {
		f.Add(e.Marshal(nil, sample()), e == CBOR)
	}
	p := plan()
	f.Fuzz(func(t *testing.T, b []byte, cbor bool) {
		e := JSON
		if cbor {
			e = CBOR
		}
		v, err := p.Bind(e.NewReader(b))
		if err != nil {
			return
		}
		p.Check(v)
		for _, e := range []Encoding{JSON, CBOR} {
			again, err := p.Bind(e.NewReader(e.Marshal(nil, v)))
			if diff := cmp.Diff(v, again, cmp.AllowUnexported(everything{})); err != nil || diff != "" {
				t.Fatalf("%s: %v %s", e.ContentType(), err, diff)
			}
		}
	})
}

// FuzzCBOR only has to end.
func FuzzCBOR(f *testing.F) {
	f.Add(CBOR.Marshal(nil, sample()))
	f.Add(bytes.Repeat([]byte{0x9f}, 100))
	f.Add(bytes.Repeat([]byte{0xc1}, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewCBORReader(b)
		if r.Skip() == nil && r.i > len(b) {
			t.Errorf("read %d of %d bytes", r.i, len(b))
		}
	})
}

func BenchmarkBind(b *testing.B) {
	p := plan()
	for _, e := range []Encoding{JSON, CBOR} {
		body := e.Marshal(nil, sample())
		b.Run(fmt.Sprint(e.ContentType()), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := p.Bind(e.NewReader(body)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
