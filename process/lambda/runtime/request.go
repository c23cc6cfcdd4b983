package runtime

import (
	"fmt"
	"strings"
)

// maxPayload is Lambda's 6 MB, with the little that it allows on top.
const maxPayload = 6<<20 + 100

// check refuses what could not travel in a URL's path and in headers, and gives the request an id if it has none.
func (r *Request) check() (id string, err error) {
	id = r.ID
	if id == "" {
		id = newID()
	}
	if len(id) > 512 || strings.Trim(id, ".") == "" || strings.ContainsFunc(id, func(c rune) bool {
		return notName(c) && !strings.ContainsRune(".~:@!$&'()*+,;=", c)
	}) {
		return "", fmt.Errorf("request id %.80q: use up to 512 letters, digits and -._~:@!$&'()*+,;=", id)
	}
	for _, h := range []struct{ what, value string }{{"client context", r.ClientContext}, {"trace id", r.TraceID}} {
		if strings.ContainsFunc(h.value, func(c rune) bool { return c < ' ' || c > '~' }) {
			return "", fmt.Errorf("%s %.80q: use visible ASCII characters, base64 for example", h.what, h.value)
		}
		if len(h.value) > 64<<10 {
			return "", fmt.Errorf("%s: %d bytes are too many", h.what, len(h.value))
		}
	}
	if len(r.Payload) > maxPayload {
		return "", fmt.Errorf("request payload of %d bytes: the limit is %d", len(r.Payload), maxPayload)
	}
	return id, nil
}
