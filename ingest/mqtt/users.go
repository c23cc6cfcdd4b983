package mqtt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"
)

// A User may connect with its name and password.
type User struct {
	Name     string
	Password string
	Vehicle  string // the only vehicle it may publish for; "" any: a gateway
}

type user struct {
	password [sha256.Size]byte
	vehicle  string
}

// users is the Authenticator of a door without identities: users with their password, clients with a certificate that TLS has
// verified, and, without users, clients of this machine.
type users struct {
	users     map[string]user
	anonymous bool
	topics    mappings
	logger    *slog.Logger
	turned    atomic.Bool // an anonymous client from elsewhere was turned away, and that was logged
}

func newUsers(cfg *Config, topics mappings) (*users, error) {
	u := &users{users: map[string]user{}, anonymous: cfg.Anonymous, topics: topics, logger: cfg.Logger}
	for _, w := range cfg.Users {
		if w.Name == "" || w.Password == "" {
			return nil, errors.New("mqtt user without name or password: give both")
		}
		if _, twice := u.users[w.Name]; twice {
			return nil, fmt.Errorf("mqtt user %q is listed twice", w.Name)
		}
		u.users[w.Name] = user{password: sha256.Sum256([]byte(w.Password)), vehicle: w.Vehicle}
	}
	return u, nil
}

// Authenticate implements Authenticator.
func (u *users) Authenticate(ctx context.Context, c *Credentials) (Principal, error) {
	if c.User != "" && len(u.users) > 0 {
		known, ok := u.users[c.User]
		sum := sha256.Sum256(c.Password)
		if subtle.ConstantTimeCompare(sum[:], known.password[:]) != 1 || !ok {
			return nil, &Refusal{Class: "password", Text: "user or password is wrong"}
		}
		return &guest{topics: u.topics, device: c.ClientID, vehicle: known.vehicle, trusted: known.vehicle == ""}, nil
	}
	verified := c.TLS != nil && len(c.TLS.VerifiedChains) > 0
	local := len(u.users) == 0 && loopback(c.Remote)
	if u.anonymous || local || verified {
		g := &guest{topics: u.topics, device: c.ClientID, trusted: local}
		if verified {
			g.expires = c.TLS.PeerCertificates[0].NotAfter
		}
		return g, nil
	}
	if len(u.users) == 0 && u.turned.CompareAndSwap(false, true) {
		u.logger.WarnContext(ctx, "mqtt client from another machine turned away: enroll devices, list users, or allow anonymous clients",
			slog.String("remote", c.Remote.String()))
	}
	return nil, &Refusal{Class: "password", Text: "user name and password are needed"}
}

func loopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// A guest is a Principal without an identity of its own. It publishes readings, of its vehicle if it has one, and subscribes and
// publishes below its own topics; a trusted one (a gateway's user, a program on this machine) anywhere.
type guest struct {
	topics  mappings
	device  string
	vehicle string
	trusted bool
	expires time.Time
}

// Device implements Principal.
func (g *guest) Device() string { return g.device }

// Vehicle implements Principal.
func (g *guest) Vehicle() string { return g.vehicle }

// Expires implements Principal.
func (g *guest) Expires() time.Time { return g.expires }

func (g *guest) own() string {
	if g.vehicle != "" {
		return g.vehicle
	}
	return g.device
}

// MayPublish implements Principal.
func (g *guest) MayPublish(topic []byte) bool {
	if g.trusted {
		return true
	}
	if m, from, to := g.topics.find(view(topic)); m != nil {
		return g.vehicle == "" || from == to || string(topic[from:to]) == g.vehicle
	}
	if bytes.HasPrefix(topic, []byte("$")) {
		return false
	}
	return g.topics.owns(view(topic), g.own())
}

// MaySubscribe implements Principal.
func (g *guest) MaySubscribe(filter string) bool {
	if g.trusted {
		return true
	}
	if rest, ok := strings.CutPrefix(filter, "$share/"); ok {
		_, filter, _ = strings.Cut(rest, "/")
	}
	return g.topics.owns(filter, g.own())
}

// hospitable lets guests in beside those whom the Authenticator knows.
type hospitable struct {
	members Authenticator
	guests  *users
}

// Authenticate implements Authenticator.
func (h *hospitable) Authenticate(ctx context.Context, c *Credentials) (Principal, error) {
	if c.TLS == nil {
		if p, err := h.guests.Authenticate(ctx, c); err == nil {
			return p, nil
		}
	}
	return h.members.Authenticate(ctx, c)
}
