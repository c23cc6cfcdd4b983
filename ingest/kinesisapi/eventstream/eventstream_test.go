package eventstream

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAppendIsWhatClientsRead(t *testing.T) {
	// The empty message and the one of a payload alone are in AWS' published test vectors.
	f := func(payload, want string) {
		t.Helper()
		if got := hex.EncodeToString(Append(nil, nil, []byte(payload))); got != want {
			t.Errorf("payload %q:\n got %s\nwant %s", payload, got, want)
		}
	}
	f("", "000000100000000005c248eb7d98c8ff")
	f("{'foo':'bar'}", "0000001d00000000fd528c5a7b27666f6f273a27626172277dc3653936")
}

func TestRoundTrip(t *testing.T) {
	want := []Header{{":message-type", "event"}, {":event-type", "x"}, {"empty", ""}}
	b := Append([]byte("before"), want, []byte("one"))
	b = Append(b, nil, nil)
	headers, payload, rest, err := Decode(b[len("before"):])
	if err != nil || string(payload) != "one" || !cmp.Equal(headers, want) {
		t.Fatal(headers, payload, err)
	}
	if _, payload, rest, err = Decode(rest); err != nil || len(payload) != 0 || len(rest) != 0 {
		t.Fatal(payload, rest, err)
	}
}

func TestDamageIsNoticed(t *testing.T) {
	b := Append(nil, []Header{{"a", "b"}}, []byte("payload"))
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 4
		if _, _, _, err := Decode(bad); err == nil {
			t.Errorf("byte %d changed and nothing was noticed", i)
		}
		if _, _, _, err := Decode(b[:i]); !errors.Is(err, ErrShort) {
			t.Errorf("%d bytes: got %v", i, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Append(nil, []Header{{":message-type", "event"}}, []byte("{}")))
	f.Add([]byte{0, 0, 0, 16, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		headers, payload, rest, err := Decode(b)
		if err != nil {
			return
		}
		if again := Append(nil, headers, payload); !bytes.Equal(again, b[:len(b)-len(rest)]) {
			t.Errorf("%x decodes and encodes to %x", b, again)
		}
	})
}
