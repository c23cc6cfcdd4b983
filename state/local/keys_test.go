package local

import (
	"bytes"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
)

// FORMAT.md promises this number.
func TestPebbleFormat(t *testing.T) {
	if got := uint64(pebbleFormat); got != 21 {
		t.Errorf("Pebble format %d, FORMAT.md says 21: directories would need a later program", got)
	}
	if pebbleFormat > pebble.FormatNewest {
		t.Error("the format is experimental")
	}
}

func FuzzEffect(f *testing.F) {
	f.Add("dead-letter", "f/shard/1", []byte("data"), uint64(1), []byte{5, 'a'})
	f.Add("k", "", []byte{}, uint64(0), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, kind, id string, data []byte, seq uint64, damaged []byte) {
		if checkKind(kind) != nil {
			if kind != "" && !strings.Contains(kind, "\x00") {
				t.Fatalf("kind %q was refused", kind)
			}
			return
		}
		k := effectKey(kind, seq)
		gotSeq, gotID, gotData, err := parseEffect(kind, k, effectValue(id, data))
		if err != nil || gotSeq != seq || string(gotID) != id || !bytes.Equal(gotData, data) {
			t.Fatalf("got %d %q %q %v, want %d %q %q", gotSeq, gotID, gotData, err, seq, id, data)
		}
		if kindOf(k) != kind || bytes.Compare(effectPrefix(kind), k) > 0 || bytes.Compare(k, effectEnd(kind)) >= 0 {
			t.Fatalf("key %q is not within its kind's range", k)
		}
		_, _, _, _ = parseEffect(kind, k, damaged) // must not panic
		if _, _, _, err := parseEffect(kind, k[:len(k)-1], nil); err == nil {
			t.Fatal("a short key was taken")
		}
	})
}
