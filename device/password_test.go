package device

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/argon2"
)

// quickHash is a hash that costs next to nothing.
func quickHash(password string) string {
	salt := []byte("0123456789abcdef")
	enc := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=8,t=1,p=1$%s$%s", argon2.Version, enc(salt), enc(argon2.IDKey([]byte(password), salt, 1, 8, 1, 32)))
}

// line returns how many wait, and how many of them for one device.
func (p *passwords) line(device string) (all, of int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waiting, p.of[device]
}

// A fleet comes back and nobody is remembered: as many wait as can be served in their time, the others are told at once that the server is
// busy, and when they come again they get in.
func TestPasswordStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := newPasswords(false, nil)
		ok(t, err)
		slots := cap(p.slots)
		p.pace = 100 * time.Millisecond
		const devices, patience = 500, 2 * time.Second
		room := int(patience/p.pace) * slots // can be served in that time
		for range slots {
			p.slots <- struct{}{} // all hashing something long
		}
		hash := quickHash("correct horse")
		check := func(n int, d time.Duration) error {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			return p.check(ctx, fmt.Sprintf("phone-%d", n), hash, []byte("correct horse"))
		}
		var mu sync.Mutex
		var in, out []int
		var wg sync.WaitGroup
		began := time.Now()
		for n := range devices {
			wg.Go(func() {
				err := check(n, patience)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					in = append(in, n)
					return
				}
				if refusal, is := errors.AsType[*Refusal](err); !is || refusal.Class != Busy {
					t.Errorf("phone-%d: %v", n, err)
				}
				if time.Since(began) > 0 {
					t.Errorf("phone-%d was told after %s", n, time.Since(began))
				}
				out = append(out, n)
			})
		}
		synctest.Wait()
		mu.Lock()
		told := len(out)
		mu.Unlock()
		if waiting, _ := p.line(""); waiting != room || told != devices-room {
			t.Errorf("%d wait and %d were told to come again, want %d and %d", waiting, told, room, devices-room)
		}
		for range slots {
			<-p.slots
		}
		wg.Wait()
		if len(in) != room {
			t.Errorf("%d got in, want %d", len(in), room)
		}
		for _, n := range out {
			if err := check(n, patience); err != nil {
				t.Errorf("phone-%d, the second time: %v", n, err)
			}
		}
		if waiting, _ := p.line(""); waiting != 0 || len(p.of) != 0 {
			t.Errorf("%d still wait: %v", waiting, p.of)
		}
	})
}

// A device that comes again and again, or somebody in its name, waits twice and no more; another gets in. A connection whose time is over
// while it waits is told so.
func TestPasswordOfOneDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := newPasswords(false, nil)
		ok(t, err)
		for range cap(p.slots) {
			p.slots <- struct{}{}
		}
		hash := quickHash("correct horse")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		results := make(chan string, 10)
		for n := range 10 {
			go func() { results <- class(t, p.check(ctx, "phone-1", hash, fmt.Appendf(nil, "guess %d", n))) }() // received below
		}
		synctest.Wait()
		if _, of := p.line("phone-1"); of != waitingOfOne {
			t.Errorf("%d wait, want %d", of, waitingOfOne)
		}
		for range 10 - waitingOfOne {
			if got := <-results; got != Busy {
				t.Errorf("got %s", got)
			}
		}
		time.Sleep(time.Minute)
		for range waitingOfOne {
			if got := <-results; got != Busy {
				t.Errorf("got %s after its time", got)
			}
		}
		<-p.slots
		if err := p.check(t.Context(), "phone-2", hash, []byte("correct horse")); err != nil {
			t.Errorf("another device: %v", err)
		}
	})
}

// One hash on one core: its inverse times the cores is how many devices with passwords get in a second after a restart.
func BenchmarkPasswordHash(b *testing.B) {
	hash, err := hashPassword([]byte("correct horse battery"))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if right, err := verifyPassword(hash, []byte("correct horse battery")); err != nil || !right {
			b.Fatal(right, err)
		}
	}
}
