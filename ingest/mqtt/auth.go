package mqtt

import (
	"context"
	"crypto/tls"
	"net"
	"time"
)

// An Authenticator tells who connects. It is safe for concurrent use.
type Authenticator interface {
	// Authenticate judges a CONNECT. A *Refusal says why not, in words for the operator and a class for metrics.
	Authenticate(ctx context.Context, c *Credentials) (Principal, error)
}

// Credentials are what a client brings. A verified chain is in TLS.VerifiedChains; a certificate from a CA that is not known
// is in TLS.PeerCertificates only, so that the refusal can name it.
type Credentials struct {
	ClientID string
	User     string
	Password []byte
	TLS      *tls.ConnectionState // nil on plain connections
	Remote   net.Addr
}

// A Principal is who a connection belongs to. Its methods are called for each message and allocate nothing.
type Principal interface {
	Device() string  // its name in logs and metrics; for a vehicle its id
	Vehicle() string // the only vehicle it may publish for; "": any, a gateway
	MayPublish(topic []byte) bool
	MaySubscribe(filter string) bool
	Expires() time.Time // when the connection must end, as of its certificate; zero: never
}

// A Refusal is why a client may not connect.
type Refusal struct {
	Class string // for metrics: "no_certificate", "unknown_ca", "expired", "revoked", "password", "client_id", "not_enrolled", "busy", "unavailable"
	Text  string // what, and how to mend it
}

func (r *Refusal) Error() string { return r.Text }

// A Journal hears what the door sees of each device, for people who ask why one cannot get in. It must not block.
type Journal interface {
	Connected(c *Credentials, p Principal)
	Disconnected(p Principal, clientID, why string)
	Refused(c *Credentials, r *Refusal)
	// Rejected is a message that was refused: why is the reason's label as metrics have it.
	Rejected(p Principal, topic, why, text string)
}

// What a Principal and a Journal may have besides.
type (
	// A gateway reports for several vehicles, and not for any.
	gateway interface{ MayReport(vehicle string) bool }
	// A listened principal is told when something came from it, about to the half second.
	listened interface{ Heard(at time.Time) }
	// handshakes hears of clients that did not get as far as to say who they are.
	handshakes interface {
		HandshakeFailed(remote net.Addr, err error)
	}
)
