// Package webhook is what the HTTP requests have in common that Milepost makes to its users' receivers: alerts to webhooks, and events to
// functions behind URLs. One receiver can check both.
package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Headers of a request.
const (
	SignatureHeader   = "Milepost-Signature" // t=UNIX_SECONDS,v1=HEX of HMAC-SHA256(secret, t "." body)
	IdempotencyHeader = "Idempotency-Key"    // the same in every repetition
)

// RetryAfter reads the header Retry-After: seconds or an HTTP date; 0 if there is neither.
func RetryAfter(s string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second //nolint:gosec // 31 bits
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}

// Sign returns the value of SignatureHeader for a body sent at a moment.
func Sign(body, secret []byte, at time.Time) string {
	t := strconv.FormatInt(at.Unix(), 10)
	return "t=" + t + ",v1=" + hex.EncodeToString(mac(body, secret, t))
}

func mac(body, secret []byte, t string) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(t))
	h.Write([]byte{'.'})
	h.Write(body)
	return h.Sum(nil)
}

// Tolerance is the usual age at which receivers stop believing a signature, against replay.
const Tolerance = 5 * time.Minute

// Verify is for receivers of webhooks: it checks that body was signed with secret, not longer than tolerance before or after
// now. header is the request's SignatureHeader, body its bytes as they came, before any JSON decoding.
func Verify(header string, body, secret []byte, tolerance time.Duration, now time.Time) error {
	var t string
	var sigs []string
	for part := range strings.SplitSeq(header, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch k {
		case "t":
			t = v
		case "v1":
			sigs = append(sigs, v)
		}
	}
	sec, err := strconv.ParseInt(t, 10, 64)
	if err != nil || len(sigs) == 0 || len(secret) == 0 {
		return errors.New("signature: want t=SECONDS,v1=HEX and a secret")
	}
	if d := now.Sub(time.Unix(sec, 0)); d > tolerance || d < -tolerance {
		return fmt.Errorf("signature: %v old: refused as a possible replay; check the clocks", d.Round(time.Second))
	}
	want := mac(body, secret, t)
	for _, s := range sigs {
		if got, err := hex.DecodeString(s); err == nil && hmac.Equal(got, want) {
			return nil
		}
	}
	return errors.New("signature: does not match body and secret")
}
