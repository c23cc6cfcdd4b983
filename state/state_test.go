package state_test

import (
	"bytes"
	"testing"

	"github.com/milepost/milepost/state"
)

func TestPrefixEnd(t *testing.T) {
	f := func(prefix, want string) {
		t.Helper()
		if got := state.PrefixEnd([]byte(prefix)); !bytes.Equal(got, []byte(want)) || (want == "") != (got == nil) {
			t.Errorf("%q: got %q, want %q", prefix, got, want)
		}
	}
	f("fleet/v/", "fleet/v0")
	f("a\xff", "b")
	f("a\xff\xff", "b")
	f("\xff\xff", "")
	f("", "")
}
