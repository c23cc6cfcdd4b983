package webhook_test

import (
	"strings"
	"testing"
	"time"

	"github.com/milepost/milepost/internal/webhook"
)

func TestVerify(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	body, key := []byte(`{"id":"a"}`), []byte("0123456789abcdef0123456789abcdef")
	good := webhook.Sign(body, key, now)
	f := func(name, header string, body, key []byte, at time.Time, ok bool) {
		t.Helper()
		if err := webhook.Verify(header, body, key, webhook.Tolerance, at); (err == nil) != ok {
			t.Errorf("%s: got %v, want accepted %v", name, err, ok)
		}
	}
	f("good", good, body, key, now, true)
	f("what openssl makes", "t=1800000000,v1=bb1a031606bbb4abe0d08366dd3b72c6bd6b219011da6e4052d87231d5bca466", body, key, now, true)
	f("five minutes old", good, body, key, now.Add(webhook.Tolerance), true)
	f("replayed", good, body, key, now.Add(webhook.Tolerance+time.Second), false)
	f("from the future", good, body, key, now.Add(-webhook.Tolerance-time.Second), false)
	f("other body", good, []byte(`{"id":"b"}`), key, now, false)
	f("other secret", good, body, []byte("other"), now, false)
	f("no secret", webhook.Sign(body, nil, now), body, nil, now, false)
	f("other time", strings.Replace(good, "t=1800000000", "t=1800000001", 1), body, key, now, false)
	f("two signatures, while a secret changes", good+",v1=00ff", body, key, now, true)
	f("empty", "", body, key, now, false)
	f("no time", good[strings.IndexByte(good, ',')+1:], body, key, now, false)
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"120": 2 * time.Minute, "0": 0, "": 0, "-5": 0, "soon": 0, "99999999999": 0,
		"Sat, 21 Nov 2026 12:10:00 GMT": 10 * time.Minute, "Sat, 21 Nov 2026 11:00:00 GMT": 0,
	} {
		if got := webhook.RetryAfter(s, now); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}
