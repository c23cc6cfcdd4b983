package device

import (
	"bufio"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// A door is the least of a server over TLS: it reads one line, the client id, and answers "in" or the refusal, as CONNACK would.
func door(t *testing.T, i *Identity) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", i.TLSConfig())
	ok(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serveOne(t, i, c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

func serveOne(t *testing.T, i *Identity, c net.Conn) {
	defer c.Close()
	conn, isTLS := c.(*tls.Conn)
	if !isTLS {
		t.Error("no TLS")
		return
	}
	if err := conn.HandshakeContext(context.Background()); err != nil {
		i.Journal.HandshakeFailed(conn.RemoteAddr(), err)
		return
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return
	}
	st := conn.ConnectionState()
	cred := &Credentials{ClientID: strings.TrimSpace(line), TLS: &st, Remote: conn.RemoteAddr()}
	p, err := i.Gate.Authenticate(context.Background(), cred)
	if refusal, is := errors.AsType[*Refusal](err); is {
		i.Journal.Refused(cred, refusal)
		_, _ = fmt.Fprintln(conn, refusal.Class)
		return
	}
	i.Journal.Connected(cred, p)
	_, _ = fmt.Fprintln(conn, "in", p.Device())
}

func knock(t *testing.T, i *Identity, addr, clientID string, p pair) string {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(i.CA.Roots()[0])
	d := &tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}}
	if p.key != nil {
		d.Config.Certificates = p.tls()
	}
	c, err := d.DialContext(t.Context(), "tcp", addr)
	ok(t, err)
	defer c.Close()
	_, err = fmt.Fprintln(c, clientID)
	ok(t, err)
	b, err := io.ReadAll(c)
	ok(t, err)
	return strings.TrimSpace(string(b))
}

// Nobody gets in who should not, over real TLS, and everybody who is refused is named in log, metrics and journal.
func TestNobodyGetsIn(t *testing.T) {
	i, logged, reg := newIdentity(t, nil)
	addr := door(t, i)
	now := time.Now()
	mine, other := enroll(t, i, "truck-17"), enroll(t, i, "truck-18")
	stranger := newStranger(t, "Other Corp CA")

	if got := knock(t, i, addr, "truck-17", mine); got != "in truck-17" {
		t.Fatalf("the device itself: %s", got)
	}

	expiredKey, err := NewKey()
	ok(t, err)
	_, expiredChain, err := i.Devices.Enroll(t.Context(), Enrolment{ID: "old", Key: expiredKey.Public()}, now.AddDate(-2, 0, 0))
	ok(t, err)
	futureKey, err := NewKey()
	ok(t, err)
	_, futureChain, err := i.Devices.Enroll(t.Context(), Enrolment{ID: "early", Key: futureKey.Public()}, now.AddDate(0, 0, 2))
	ok(t, err)
	revoked := enroll(t, i, "stolen")
	_, err = i.Devices.Revoke(t.Context(), "stolen", "", ReasonKeyCompromise, now)
	ok(t, err)
	off := enroll(t, i, "parked")
	disabled := Disabled
	_, err = i.Devices.Amend(t.Context(), "parked", Change{Status: &disabled})
	ok(t, err)
	ghostKey, err := NewKey()
	ok(t, err)
	ghost, err := i.CA.issue("ghost", ghostKey.Public(), time.Hour, now)
	ok(t, err)
	server := i.CA.now.Load().server
	serverPair := pair{chain: []*x509.Certificate{server.Leaf}}
	serverPair.key, _ = server.PrivateKey.(crypto.Signer)

	for _, tc := range []struct {
		name, clientID string
		who            pair
		want, says     string
	}{
		{"no certificate", "truck-17", pair{}, NoCertificate, "no certificate was shown"},
		{"another CA", "truck-17", stranger.issue(t, "truck-17", now.Add(-time.Hour), now.Add(time.Hour)), UnknownCA, "Other Corp CA"},
		{"another CA, expired", "truck-17", stranger.issue(t, "truck-17", now.Add(-2*time.Hour), now.Add(-time.Hour)), UnknownCA, "Other Corp CA"},
		{"expired", "old", pair{expiredKey, expiredChain}, Expired, "ended on"},
		{"not yet valid", "early", pair{futureKey, futureChain}, NotYetValid, "clock"},
		{"revoked", "stolen", revoked, Revoked, "was revoked on"},
		{"disabled", "parked", off, Suspended, "is disabled"},
		{"another vehicle's id", "truck-17", other, WrongClientID, "not truck-18's to use"},
		{"an id that begins with its own", "truck-18-b", other, WrongClientID, "not truck-18's to use"},
		{"issued here but not registered", "ghost", pair{ghostKey, []*x509.Certificate{ghost}}, NotEnrolled, "not in its registry"},
		{"the server's own certificate", "127.0.0.1", serverPair, UnknownCA, "not for clients"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := count(t, reg, "milepost_device_refusals_total", "class", tc.want)
			if got := knock(t, i, addr, tc.clientID, tc.who); got != tc.want {
				t.Fatalf("got %q, want %q", got, tc.want)
			}
			if n := count(t, reg, "milepost_device_refusals_total", "class", tc.want) - before; n != 1 {
				t.Errorf("counted %v times", n)
			}
			_, seen := i.Journal.Device(tc.clientID)
			last := lastAttempt(seen)
			if last == nil || last.Class != tc.want || !strings.Contains(last.Text, tc.says) {
				t.Errorf("journal has %+v, want %q", last, tc.says)
			}
			if tc.who.key != nil && (last.Serial == "" || last.NotAfter.IsZero()) {
				t.Errorf("journal does not name the certificate: %+v", last)
			}
			if !strings.Contains(logged.String(), tc.says) || !strings.Contains(logged.String(), "class="+tc.want) {
				t.Errorf("the log does not say %q", tc.says)
			}
		})
	}

	// A client that does not trust us is told apart from one that we do not trust.
	c, err := (&tls.Dialer{Config: &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "127.0.0.1"}}).DialContext(t.Context(), "tcp", addr)
	if err == nil {
		_ = c.Close()
		t.Fatal("trusted by a client without roots")
	}
	for range 100 { // the server hears of it a moment later
		if len(i.Journal.From("127.0.0.1:1").Attempts) > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if a := lastAttempt(i.Journal.From("127.0.0.1:1")); a == nil || a.Class != NoHandshake || !strings.Contains(a.Text, "ca export") && !strings.Contains(a.Text, "root may be missing") {
		t.Errorf("the failed handshake: %+v", a)
	}
}

func TestPolicyOfPrincipal(t *testing.T) {
	i, _, _ := newIdentity(t, nil)
	p, err := i.Gate.Authenticate(t.Context(), with(enroll(t, i, "truck-17"), "truck-17"))
	ok(t, err)
	if p.Device() != "truck-17" || p.Vehicle() != "truck-17" || p.Expires().Before(time.Now().AddDate(0, 11, 0)) {
		t.Errorf("%s %s %s", p.Device(), p.Vehicle(), p.Expires())
	}
	for topic, want := range map[string]bool{
		"fleet/truck-17/telemetry": true, "fleet/truck-18/telemetry": false, "fleet/truck-17/commands": false, "fleet/truck-17/commands/7/ack": true,
		"$aws/things/truck-17/shadow/update": true, "$aws/things/truck-18/shadow/update": false, "$aws/rules/any/fleet/truck-17/x": true,
		"$aws/rules/any/fleet/truck-18/x": false, "fleet": false, "$SYS/broker": false, "fleet/truck-170/telemetry": false,
	} {
		if got := p.MayPublish([]byte(topic)); got != want {
			t.Errorf("publish %s: %v", topic, got)
		}
	}
	for filter, want := range map[string]bool{
		"fleet/truck-17/#": true, "fleet/truck-17/commands": true, "fleet/+/commands": false, "#": false, "fleet/#": false, "$aws/#": false,
		"$share/g/fleet/truck-17/commands": true, "$share/g/fleet/truck-18/commands": false, "$share/g": false, "$aws/things/truck-17/shadow/+/accepted": true,
		"fleet/truck-17/#/x": false, "": false,
	} {
		if got := p.MaySubscribe(filter); got != want {
			t.Errorf("subscribe %s: %v", filter, got)
		}
	}
}

func TestGateway(t *testing.T) {
	i, _, _ := newIdentity(t, func(c *Config) {
		c.Policies = []PolicySpec{{Name: "depot", Publish: []string{"fleet/{vehicle}/#"}, Subscribe: []string{"fleet/{vehicle}/commands"}, DenyPublish: []string{"fleet/bus-9/#"}, Vehicles: []string{"bus-*"}}}
	})
	key, err := NewKey()
	ok(t, err)
	_, chain, err := i.Devices.Enroll(t.Context(), Enrolment{ID: "gw", Policy: "depot", Key: key.Public()}, time.Now())
	ok(t, err)
	p, err := i.Gate.Authenticate(t.Context(), with(pair{key, chain}, "gw"))
	ok(t, err)
	if p.Vehicle() != "" || !p.MayReport("bus-1") || p.MayReport("truck-1") {
		t.Error("a gateway reports for the vehicles of its globs, and no others")
	}
	for topic, want := range map[string]bool{"fleet/bus-1/telemetry": true, "fleet/bus-9/telemetry": false, "fleet/truck-1/telemetry": false, "fleet/bus-1": true} {
		if got := p.MayPublish([]byte(topic)); got != want {
			t.Errorf("publish %s: %v", topic, got)
		}
	}
	if p.MaySubscribe("fleet/+/commands") || !p.MaySubscribe("fleet/bus-1/commands") {
		t.Error("+ reaches more than the globs do")
	}
}

func TestJustInTime(t *testing.T) {
	i, _, reg := newIdentity(t, func(c *Config) {
		c.JustInTime = &JustInTime{Prefixes: map[string]string{"corp": "van-"}}
	})
	now := time.Now()
	corp := newStranger(t, "Corp CA")
	ok(t, i.CA.Trust("corp", []*x509.Certificate{corp.cert}, now))
	in := func(p pair, id string) string {
		_, err := i.Gate.Authenticate(t.Context(), with(p, id))
		return class(t, err)
	}
	from, to := now.Add(-time.Hour), now.Add(time.Hour)
	first := corp.issue(t, "van-1", from, to)
	if got := in(first, "van-1"); got != "in" {
		t.Fatalf("first connection: %s", got)
	}
	d, found := i.Devices.Device("van-1")
	if !found || d.Policy != OwnPolicy || d.Origin != "just in time: corp" || count(t, reg, "milepost_device_enrolments_total", "way", "just_in_time") != 1 {
		t.Fatalf("%+v", d)
	}
	if got := in(corp.issue(t, "van-1", from, to), "van-1"); got != "in" {
		t.Errorf("the authority's next certificate: %s", got)
	}
	if got := in(corp.issue(t, "bus-1", from, to), "bus-1"); got != NotEnrolled {
		t.Errorf("outside of the prefix: %s", got)
	}
	if got := in(corp.issue(t, "van-2", from, to, x509.ExtKeyUsageServerAuth), "van-2"); got != UnknownCA {
		t.Errorf("a server's certificate: %s", got)
	}
	if got := in(corp.issue(t, "van/2", from, to), ""); got != NotEnrolled {
		t.Errorf("no device id: %s", got)
	}
	// An authority does not speak for devices that came from elsewhere.
	enroll(t, i, "van-7")
	if got := in(corp.issue(t, "van-7", from, to), "van-7"); got != NotEnrolled {
		t.Errorf("somebody else's device: %s", got)
	}
	_, err := i.Devices.Revoke(t.Context(), "van-1", "", 0, now)
	ok(t, err)
	if got := in(corp.issue(t, "van-1", from, to), "van-1"); got != Revoked {
		t.Errorf("a revoked device with a new certificate: %s", got)
	}
	third := corp.issue(t, "van-3", from, to)
	if got := in(third, "van-3"); got != "in" {
		t.Fatal(got)
	}
	ok(t, i.CA.Distrust("corp"))
	if got := in(third, "van-3"); got != UnknownCA {
		t.Errorf("authority no longer trusted: %s", got)
	}
}

func TestRegisteredCertificate(t *testing.T) {
	i, _, _ := newIdentity(t, nil)
	aws := newStranger(t, "Amazon Web Services")
	p := aws.issue(t, "AWS IoT Certificate", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	_, _, err := i.Devices.Enroll(t.Context(), Enrolment{ID: "thing-1", Certificate: p.chain[0]}, time.Now())
	ok(t, err)
	_, err = i.Gate.Authenticate(t.Context(), with(p, "thing-1"))
	ok(t, err)
	if _, err := i.Gate.Authenticate(t.Context(), with(aws.issue(t, "AWS IoT Certificate", time.Now().Add(-time.Hour), time.Now().Add(time.Hour)), "thing-1")); class(t, err) != UnknownCA {
		t.Errorf("the same name from the same authority: %v", err)
	}
	if _, _, err := i.Devices.Enroll(t.Context(), Enrolment{ID: "thing-2", Certificate: p.chain[0]}, time.Now()); err == nil {
		t.Error("one certificate for two devices")
	}
}

// Both certificates are let in while they overlap, then only the newer one; and connections of a revoked device are cut before
// Revoke returns.
func TestRotateAndRevoke(t *testing.T) {
	i, _, _ := newIdentity(t, nil)
	old := enroll(t, i, "truck-17")
	key, err := NewKey()
	ok(t, err)
	now := time.Now()
	_, chain, err := i.Devices.Rotate(t.Context(), "truck-17", key.Public(), now)
	ok(t, err)
	in := func(p pair, at time.Time) string {
		_, err := i.Gate.judge(t.Context(), with(p, "truck-17"), at)
		return class(t, err)
	}
	after := now.Add(8 * 24 * time.Hour)
	for _, tc := range []struct {
		p    pair
		at   time.Time
		want string
	}{{old, now, "in"}, {pair{key, chain}, now, "in"}, {old, after, Revoked}, {pair{key, chain}, after, "in"}} {
		if got := in(tc.p, tc.at); got != tc.want {
			t.Errorf("serial %s at %s: %s, want %s", tc.p.chain[0].SerialNumber.Text(16), tc.at, got, tc.want)
		}
	}
	p, err := i.Gate.judge(t.Context(), with(old, "truck-17"), now)
	ok(t, err)
	if got := p.Expires().Sub(now).Round(time.Hour); got != 7*24*time.Hour {
		t.Errorf("a connection with the replaced certificate ends after %s", got)
	}
	fresh, err := i.Gate.judge(t.Context(), with(pair{key, chain}, "truck-17"), now)
	ok(t, err)
	stranger, err := i.Gate.judge(t.Context(), with(enroll(t, i, "truck-18"), "truck-18"), now)
	ok(t, err)
	var cut []string
	i.Devices.OnRevoke(func(match func(*Principal) bool) {
		for name, p := range map[string]*Principal{"old": p, "fresh": fresh, "stranger": stranger} {
			if match(p) {
				cut = append(cut, name)
			}
		}
	})
	_, err = i.Devices.Revoke(t.Context(), "truck-17", old.chain[0].SerialNumber.Text(16), ReasonKeyCompromise, now)
	ok(t, err)
	if fmt.Sprint(cut) != "[old]" {
		t.Errorf("one certificate revoked: cut %v", cut)
	}
	cut = nil
	_, err = i.Devices.Revoke(t.Context(), "truck-17", "", 0, now)
	ok(t, err)
	if len(cut) != 2 {
		t.Errorf("the device revoked: cut %v", cut)
	}
	if in(pair{key, chain}, now) != Revoked {
		t.Error("still let in")
	}
}

func TestPasswords(t *testing.T) {
	i, _, reg := newIdentity(t, func(c *Config) { c.Passwords = true })
	_, err := i.Devices.SetPassword(t.Context(), "phone-1", "correct horse battery", time.Now())
	ok(t, err)
	in := func(user, password string, secure bool) string {
		c := &Credentials{ClientID: user, User: user, Password: []byte(password), Remote: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7)}}
		if secure {
			c.TLS = &tls.ConnectionState{}
		}
		_, err := i.Gate.Authenticate(t.Context(), c)
		return class(t, err)
	}
	for _, tc := range []struct {
		user, password string
		secure         bool
		want           string
	}{
		{"phone-1", "correct horse battery", true, "in"},
		{"phone-1", "correct horse battery", false, WrongPassword},
		{"phone-1", "wrong horse battery", true, WrongPassword},
		{"phone-1", "", true, WrongPassword},
		{"phone-2", "correct horse battery", true, WrongPassword},
		{"", "", true, NoCertificate},
	} {
		if got := in(tc.user, tc.password, tc.secure); got != tc.want {
			t.Errorf("%+v: %s", tc, got)
		}
	}
	hashed := count(t, reg, "milepost_device_password_checks_total", "how", "hashed")
	for range 1000 { // they all reconnect: nothing is hashed again
		if got := in("phone-1", "correct horse battery", true); got != "in" {
			t.Fatal(got)
		}
	}
	if n := count(t, reg, "milepost_device_password_checks_total", "how", "hashed"); n != hashed {
		t.Errorf("%v more hashes", n-hashed)
	}
	_, err = i.Devices.SetPassword(t.Context(), "phone-1", "another horse battery", time.Now())
	ok(t, err)
	if got := in("phone-1", "correct horse battery", true); got != WrongPassword {
		t.Errorf("the old password after a change: %s", got)
	}
	off, _, _ := newIdentity(t, nil)
	_, err = off.Devices.SetPassword(t.Context(), "phone-1", "correct horse battery", time.Now())
	ok(t, err)
	_, err = off.Gate.Authenticate(t.Context(), &Credentials{User: "phone-1", Password: []byte("correct horse battery"), TLS: &tls.ConnectionState{}})
	if class(t, err) != NoCertificate {
		t.Errorf("passwords are off by default: %v", err)
	}
}

func BenchmarkAuthenticate(b *testing.B) {
	i, _, _ := newIdentity(b, nil)
	c := with(enroll(b, i, "truck-17"), "truck-17")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := i.Gate.Authenticate(context.Background(), c); err != nil {
			b.Fatal(err)
		}
	}
}
