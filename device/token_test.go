package device

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state"
)

func token(t *testing.T, i *Identity, q TokenRequest) string {
	t.Helper()
	secret, _, err := i.Devices.CreateToken(t.Context(), q, time.Now())
	ok(t, err)
	return secret
}

func TestOneTimeToken(t *testing.T) {
	i, _, _ := newIdentity(t, nil)
	now := time.Now()
	secret := token(t, i, TokenRequest{Device: "truck-17"})
	key, err := NewKey()
	ok(t, err)
	thief, err := NewKey()
	ok(t, err)
	if _, _, err := i.Devices.Claim(t.Context(), secret, "", csr(t, thief, "truck-18"), now); !errors.Is(err, ErrToken) {
		t.Errorf("for another device: %v", err)
	}
	_, first, err := i.Devices.Claim(t.Context(), secret, "", csr(t, key, "truck-17"), now)
	ok(t, err)
	// The answer was lost: the same key gets the same certificate.
	_, again, err := i.Devices.Claim(t.Context(), secret, "", csr(t, key, "truck-17"), now)
	ok(t, err)
	if !first[0].Equal(again[0]) {
		t.Error("another certificate at the second try")
	}
	if _, _, err := i.Devices.Claim(t.Context(), secret, "", csr(t, thief, "truck-17"), now); !errors.Is(err, ErrToken) {
		t.Errorf("used again with another key: %v", err)
	}
	_, err = i.Gate.Authenticate(t.Context(), with(pair{key, first}, "truck-17"))
	ok(t, err)
	late := token(t, i, TokenRequest{Device: "truck-19", Life: time.Hour})
	if _, _, err := i.Devices.Claim(t.Context(), late, "", csr(t, key, "truck-19"), now.Add(2*time.Hour)); !errors.Is(err, ErrToken) {
		t.Errorf("too late: %v", err)
	}
	// Revoking the device makes its tokens void.
	spare := token(t, i, TokenRequest{Device: "truck-17"})
	_, err = i.Devices.Revoke(t.Context(), "truck-17", "", 0, now)
	ok(t, err)
	for _, s := range []string{spare, secret} {
		if _, _, err := i.Devices.Claim(t.Context(), s, "", csr(t, key, "truck-17"), now); !errors.Is(err, ErrToken) {
			t.Errorf("after the revocation: %v", err)
		}
	}
	// A new one lets it in again.
	if _, _, err := i.Devices.Claim(t.Context(), token(t, i, TokenRequest{Device: "truck-17"}), "", csr(t, thief, ""), now); err != nil {
		t.Error(err)
	}
}

// A hundred devices race for a token: exactly as many get a certificate as it has uses.
func TestTokenRace(t *testing.T) {
	for _, uses := range []int{1, 7} {
		t.Run(fmt.Sprint(uses), func(t *testing.T) {
			i, _, _ := newIdentity(t, nil)
			secret := token(t, i, TokenRequest{Prefix: "van-", Uses: uses})
			var wg sync.WaitGroup
			var mu sync.Mutex
			in := 0
			for n := range 100 {
				key, err := NewKey()
				ok(t, err)
				q := csr(t, key, fmt.Sprintf("van-%d", n))
				wg.Go(func() {
					_, _, err := i.Devices.Claim(t.Context(), secret, "", q, time.Now())
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						in++
					case !errors.Is(err, ErrToken):
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if n := len(i.Devices.List("", "", Active, 1000)); in != uses || n != uses {
				t.Errorf("%d got in, %d are enrolled, want %d", in, n, uses)
			}
		})
	}
}

func TestClaimToken(t *testing.T) {
	i, _, _ := newIdentity(t, nil)
	secret := token(t, i, TokenRequest{Prefix: "van-", Uses: 5})
	key, err := NewKey()
	ok(t, err)
	enroll(t, i, "van-1")
	for cn, want := range map[string]error{"truck-1": ErrToken, "": ErrToken, "van-1": ErrExists, "van-/": ErrInvalid, "van-2": nil} {
		if _, _, err := i.Devices.Claim(t.Context(), secret, "", csr(t, key, cn), time.Now()); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", cn, err, want)
		}
	}
	for _, q := range []TokenRequest{{Device: "a", Uses: 2}, {Device: "a", Prefix: "b"}, {Vehicle: "v"}, {Life: 400 * 24 * time.Hour}, {Uses: -1}, {Device: "a/b"}, {Policy: "none"}, {Prefix: "a/"}} {
		if _, _, err := i.Devices.CreateToken(t.Context(), q, time.Now()); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", q, err)
		}
	}
}

// A crashing store loses power before or after the transaction it is told to.
type crashingStore struct {
	state.Store
	before, after func()
}

func (s *crashingStore) Update(ctx context.Context, f func(state.Tx) error) error {
	s.before()
	err := s.Store.Update(ctx, f)
	s.after()
	return err
}

// Power fails around the moment at which a token is used: either the token is whole and nobody is enrolled, or the device is
// enrolled and gets its certificate by asking again. Never is the token gone and the device without.
func TestCrashBetweenTokenAndCertificate(t *testing.T) {
	for _, when := range []string{"before", "after"} {
		t.Run(when, func(t *testing.T) {
			fs := vfs.NewCrashable()
			store := &crashingStore{Store: openStore(t, fs), before: func() {}, after: func() {}}
			i, _, _ := newIdentity(t, func(c *Config) { c.Store = store })
			secret := token(t, i, TokenRequest{Device: "truck-17"})
			key, err := NewKey()
			ok(t, err)
			q := csr(t, key, "truck-17")
			var crashed *vfs.MemFS
			crash := func() {
				crashed = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rand.IntN(101), RNG: rand.New(rand.NewPCG(1, 2))})
			}
			if when == "before" {
				store.before = crash
			} else {
				store.after = crash
			}
			_, lost, err := i.Devices.Claim(t.Context(), secret, "", q, time.Now())
			ok(t, err)

			again, err := Open(t.Context(), Config{Dir: filepath.Clean(i.CA.dir), Store: openStore(t, crashed)})
			ok(t, err)
			_, enrolled := again.Devices.Device("truck-17")
			if enrolled != (when == "after") {
				t.Fatalf("enrolled: %v", enrolled)
			}
			_, chain, err := again.Devices.Claim(t.Context(), secret, "", q, time.Now())
			ok(t, err)
			if enrolled && !chain[0].Equal(lost[0]) {
				t.Error("another certificate than the one that was issued")
			}
			if _, err := again.Gate.Authenticate(t.Context(), with(pair{key, chain}, "truck-17")); err != nil {
				t.Error(err)
			}
			thief, err := NewKey()
			ok(t, err)
			if _, _, err := again.Devices.Claim(t.Context(), secret, "", csr(t, thief, "truck-17"), time.Now()); !errors.Is(err, ErrToken) {
				t.Errorf("used twice: %v", err)
			}
		})
	}
}

// A revocation is on disk when Revoke returns.
func TestCrashAfterRevoke(t *testing.T) {
	fs := vfs.NewCrashable()
	i, _, _ := newIdentity(t, func(c *Config) { c.Store = openStore(t, fs) })
	p := enroll(t, i, "truck-17")
	_, err := i.Devices.Revoke(t.Context(), "truck-17", "", 0, time.Now())
	ok(t, err)
	again, err := Open(t.Context(), Config{Dir: i.CA.dir, Store: openStore(t, fs.CrashClone(vfs.CrashCloneCfg{}))})
	ok(t, err)
	if _, err := again.Gate.Authenticate(t.Context(), with(p, "truck-17")); class(t, err) != Revoked {
		t.Errorf("after the crash: %v", err)
	}
	list, err := again.RevocationList(time.Now())
	ok(t, err)
	if len(list) == 0 || len(again.Devices.revoked(time.Now())) != 1 {
		t.Error("the list has lost it")
	}
}
