// Package bearer checks the token that may be asked of a request (RFC 6750), in constant time.
package bearer

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strings"
)

// A Token is what requests must bring. Its zero value, and that of an empty token, asks for nothing.
type Token struct {
	sum   [sha256.Size]byte
	asked bool
}

// New returns the token.
func New(token string) Token {
	return Token{sum: sha256.Sum256([]byte(token)), asked: token != ""}
}

// Asked tells whether there is a token.
func (t *Token) Asked() bool { return t.asked }

// Is tells whether what was given is the token, or none is asked for.
func (t *Token) Is(given string) bool {
	if !t.asked {
		return true
	}
	sum := sha256.Sum256([]byte(given))
	return subtle.ConstantTimeCompare(sum[:], t.sum[:]) == 1
}

// Allows tells whether a request brings the token: "Authorization: Bearer <token>".
func (t *Token) Allows(r *http.Request) bool {
	if !t.asked {
		return true
	}
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return t.Is(strings.TrimSpace(given)) && strings.EqualFold(scheme, "Bearer")
}

// Ask says in an answer with status 401 what is missing.
func Ask(w http.ResponseWriter) {
	w.Header().Set("WWW-Authenticate", `Bearer realm="milepost"`)
}
