package nearest_test

import (
	"strings"
	"testing"

	"github.com/milepost/milepost/internal/nearest"
)

func TestWord(t *testing.T) {
	known := []string{"listen", "token", "timeout", "by", strings.Repeat("long", 100)}
	for word, want := range map[string]string{
		"listen":                    "listen",
		"lisetn":                    "listen", // a swap is one edit
		"liste":                     "listen",
		"tokne":                     "token",
		"timeot":                    "timeout",
		"bt":                        "by",
		"":                          "by", // two edits
		"sausage":                   "",
		"xxxxxxxxxxxx":              "",
		strings.Repeat("long", 100): "",
	} {
		if got := nearest.Word(word, known); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
	if got := nearest.Hint("tokem", known); got != "; did you mean token?" {
		t.Error(got)
	}
	if got := nearest.Hint("sausage", known); got != "" {
		t.Error(got)
	}
}
