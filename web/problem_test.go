package web

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
)

// A source that cannot do it now tells the client why; what a source did not mean for clients stays in the log.
func TestProblemOf(t *testing.T) {
	f := func(err error, status int, detail string) {
		t.Helper()
		if p := problemOf(err); p.Status != status || p.Detail != detail {
			t.Errorf("%v: got %d %q, want %d %q", err, p.Status, p.Detail, status, detail)
		}
	}
	f(fmt.Errorf("ack: %w", &UnavailableError{"the disk is full: free space"}), http.StatusServiceUnavailable, "the disk is full: free space")
	f(errors.New("open /secret/path: denied"), http.StatusInternalServerError, "something went wrong here; the server's log says what")
}
