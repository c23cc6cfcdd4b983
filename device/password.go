package device

import (
	"container/list"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/milepost/milepost/state"
)

// Parameters of new passwords: 19 MiB and two passes, a few hundredths of a second. Those of an old one stand beside it.
const (
	argonMemory  = 19 << 10 // KiB
	argonTime    = 2
	argonThreads = 1
	argonSalt    = 16
	argonKey     = 32

	minPassword = 12
	maxPassword = 256
)

// hashPassword returns an argon2id hash as a PHC string.
func hashPassword(password []byte) (string, error) {
	salt := make([]byte, argonSalt)
	if _, err := rand.Read(salt); err != nil {
		return "", err
	}
	key := argon2.IDKey(password, salt, argonTime, argonMemory, argonThreads, argonKey)
	enc := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonTime, argonThreads, enc.EncodeToString(salt), enc.EncodeToString(key)), nil
}

var errHash = errors.New("stored password is no argon2id hash: set it again")

// verifyPassword tells whether a password is the one of a hash.
func verifyPassword(hash string, password []byte) (bool, error) {
	parts := strings.Split(hash, "$")
	if len(parts) != 6 || parts[1] != "argon2id" {
		return false, errHash
	}
	var version int
	var memory, passes uint32
	var threads uint8
	if n, err := fmt.Sscanf(parts[2]+" "+parts[3], "v=%d m=%d,t=%d,p=%d", &version, &memory, &passes, &threads); err != nil || n != 4 ||
		version != argon2.Version || memory < 8 || memory > 1<<20 || passes < 1 || passes > 64 || threads < 1 {
		return false, errHash
	}
	salt, err1 := base64.RawStdEncoding.DecodeString(parts[4])
	want, err2 := base64.RawStdEncoding.DecodeString(parts[5])
	if err1 != nil || err2 != nil || len(want) < 16 || len(want) > 64 {
		return false, errHash
	}
	got := argon2.IDKey(password, salt, passes, memory, threads, uint32(len(want))) //nolint:gosec // at most 64
	return subtle.ConstantTimeCompare(got, want) == 1, nil
}

const (
	// rememberFor is how long a success spares the hash; a changed password is known at once, because its hash is part of the key.
	rememberFor   = time.Hour
	rememberWrong = time.Minute // a device with a wrong password asks all day
	rememberMost  = 65536       // the oldest goes first
	waitingMost   = 4096        // for a hash; the next is told to come again
)

// passwords checks passwords. Hashing is made to be slow, so no more run at one time than there are processors (each takes 19 MiB),
// and what was found a moment ago is remembered: as a keyed hash, which is of no use outside this process.
type passwords struct {
	plain   bool // take them without TLS too
	key     [32]byte
	slots   chan struct{}
	waiting atomic.Int32
	metrics *metrics

	mu    sync.Mutex // guards the two below
	known map[[32]byte]*list.Element
	order *list.List // of remembered, the newest in front
}

type remembered struct {
	key   [32]byte
	right bool
	till  time.Time
}

func newPasswords(plain bool, m *metrics) (*passwords, error) {
	p := &passwords{plain: plain, slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0))), metrics: m, known: map[[32]byte]*list.Element{}, order: list.New()}
	_, err := rand.Read(p.key[:])
	return p, err
}

func (p *passwords) check(ctx context.Context, user, hash string, password []byte) error {
	wrong := refuse(WrongPassword, "user name or password is wrong, or the device has no password: 'milepost device password ID' sets one")
	if len(password) == 0 || len(password) > maxPassword {
		return wrong
	}
	m := hmac.New(sha256.New, p.key[:])
	_, _ = fmt.Fprintf(m, "%d %s %d %s ", len(user), user, len(hash), hash)
	_, _ = m.Write(password)
	key := [32]byte(m.Sum(nil))
	right, ok := p.recall(key, time.Now())
	if p.metrics.hit(ok); !ok {
		if p.waiting.Add(1) > waitingMost {
			p.waiting.Add(-1)
			return refuse(Busy, "too many passwords are being checked: connect again in a minute")
		}
		defer p.waiting.Add(-1)
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			return refuse(Busy, "the connection ended while its password waited to be checked")
		}
		var err error
		right, err = verifyPassword(hash, password)
		<-p.slots
		if err != nil {
			return refuse(WrongPassword, "device %s: %v", user, err)
		}
		p.remember(key, right, time.Now())
	}
	if !right {
		return wrong
	}
	return nil
}

func (p *passwords) recall(key [32]byte, now time.Time) (right, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.known[key]
	if e == nil {
		return false, false
	}
	r, isOne := e.Value.(*remembered)
	if !isOne || now.After(r.till) {
		p.order.Remove(e)
		delete(p.known, key)
		return false, false
	}
	p.order.MoveToFront(e)
	return r.right, true
}

func (p *passwords) remember(key [32]byte, right bool, now time.Time) {
	till := now.Add(rememberFor)
	if !right {
		till = now.Add(rememberWrong)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known[key] != nil {
		return
	}
	p.known[key] = p.order.PushFront(&remembered{key, right, till})
	if p.order.Len() > rememberMost {
		e := p.order.Back()
		if r, ok := e.Value.(*remembered); ok {
			delete(p.known, r.key)
		}
		p.order.Remove(e)
	}
}

// SetPassword gives a device a password; an empty one takes it away. It is enrolled if it is not there.
func (r *Registry) SetPassword(ctx context.Context, id, password string, now time.Time) (*Device, error) {
	e := Enrolment{ID: id, Origin: "password"}
	if err := e.check(r.policies); err != nil {
		return nil, err
	}
	hash := ""
	if password != "" {
		if len(password) < minPassword || len(password) > maxPassword {
			return nil, fmt.Errorf("%w: a password has %d to %d bytes: leave it out and one is made", ErrInvalid, minPassword, maxPassword)
		}
		var err error
		if hash, err = hashPassword([]byte(password)); err != nil {
			return nil, err
		}
	}
	d, err := r.change(ctx, id, func(_ state.Tx, d *Device, found bool) error {
		switch {
		case !found && hash == "":
			return fmt.Errorf("%w: %s", ErrNotFound, id)
		case !found:
			e.fill(d, now)
		case d.Status == Barred:
			return fmt.Errorf("%w: device %s is revoked: enrol it anew", ErrInvalid, id)
		}
		d.Password = hash
		return nil
	})
	if err != nil {
		return nil, err
	}
	r.kick(func(p *Principal) bool { return p.device == id && p.fingerprint == Fingerprint{} })
	return d, nil
}
