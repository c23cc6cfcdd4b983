package bearer_test

import (
	"net/http/httptest"
	"testing"

	"github.com/milepost/milepost/internal/bearer"
)

func TestAllows(t *testing.T) {
	for _, c := range []struct {
		token, header string
		want          bool
	}{
		{"", "", true},
		{"", "Bearer x", true},
		{"s3cret", "Bearer s3cret", true},
		{"s3cret", "bearer  s3cret ", true},
		{"s3cret", "", false},
		{"s3cret", "Bearer", false},
		{"s3cret", "Bearer ", false},
		{"s3cret", "s3cret", false},
		{"s3cret", "Basic s3cret", false},
		{"s3cret", "Bearer s3cre", false},
		{"s3cret", "Bearer s3crets", false},
		{"s3cret", "Bearer s3cret x", false},
	} {
		token := bearer.New(c.token)
		r := httptest.NewRequest("POST", "/", nil)
		if c.header != "" {
			r.Header.Set("Authorization", c.header)
		}
		if got := token.Allows(r); got != c.want {
			t.Errorf("token %q, header %q: %v", c.token, c.header, got)
		}
		if token.Asked() != (c.token != "") {
			t.Errorf("token %q: asked %v", c.token, token.Asked())
		}
	}
}
