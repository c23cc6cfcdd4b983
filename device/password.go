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
	waitingMost   = 4096        // for a hash, whatever they cost
	waitingOfOne  = 2           // for a hash of one device: its connection, and one that it has given up
)

// passwords checks passwords. Hashing is made to be slow, so no more run at one time than there are processors (each takes 19 MiB),
// and what was found a moment ago is remembered: as a keyed hash, which is of no use outside this process.
//
// Others wait in line, and only as many as can be served before their connections' time is over: who comes later is told so at once, rather
// than after having waited in vain. So when a fleet comes back to a server that remembers nothing, hashing goes on at the machine's
// pace, each hash is one that its device waits for, and memory is that of the hashes that run.
type passwords struct {
	plain   bool // take them without TLS too
	key     [32]byte
	slots   chan struct{}
	metrics *metrics

	mu      sync.Mutex // guards the rest
	known   map[[32]byte]*list.Element
	order   *list.List     // of remembered, the newest in front
	waiting int            // those that are being hashed included
	of      map[string]int // of it, by device
	pace    time.Duration  // what a hash takes, of late; 0: not known
}

type remembered struct {
	key   [32]byte
	right bool
	till  time.Time
}

func newPasswords(plain bool, m *metrics) (*passwords, error) {
	p := &passwords{
		plain: plain, slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0))), metrics: m,
		known: map[[32]byte]*list.Element{}, order: list.New(), of: map[string]int{},
	}
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
	if !ok {
		if err := p.enter(ctx, user); err != nil {
			return err
		}
		defer p.leave(user)
		select {
		case p.slots <- struct{}{}:
			defer func() { <-p.slots }()
		case <-ctx.Done():
			return refuse(Busy, "the connection's time was over while its password waited to be checked: connect again in a minute")
		}
		right, ok = p.recall(key, time.Now()) // a connection that the device has given up may have been served
	}
	if p.metrics.hit(ok); !ok {
		began := time.Now()
		var err error
		if right, err = verifyPassword(hash, password); err != nil {
			return refuse(WrongPassword, "device %s: %v", user, err)
		}
		p.learn(time.Since(began))
		p.remember(key, right, time.Now())
	}
	if !right {
		return wrong
	}
	return nil
}

// enter lets a connection into the line, if it can be served in its time.
func (p *passwords) enter(ctx context.Context, user string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	late := false
	if deadline, ok := ctx.Deadline(); ok {
		late = time.Until(deadline) < p.pace*time.Duration(p.waiting/cap(p.slots)+1)
	}
	switch {
	case late || p.waiting >= waitingMost:
		return refuse(Busy, "%d passwords are being checked, which takes longer than this connection has: connect again in a minute", p.waiting)
	case p.of[user] >= waitingOfOne:
		return refuse(Busy, "%d other connections of device %s wait for their password to be checked: connect again in a minute", p.of[user], user)
	}
	p.waiting++
	p.of[user]++
	p.metrics.queued(p.waiting)
	return nil
}

func (p *passwords) leave(user string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting--
	if p.of[user]--; p.of[user] == 0 {
		delete(p.of, user)
	}
	p.metrics.queued(p.waiting)
}

// learn notes what a hash took.
func (p *passwords) learn(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pace == 0 {
		p.pace = took
	}
	p.pace += (took - p.pace) / 8
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
