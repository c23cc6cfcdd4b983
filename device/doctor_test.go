package device

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/milepost/milepost/internal/vfs"
)

// Every branch of the decision, each with what it must say and tell people to do.
func TestDiagnose(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	good := func() *Device {
		return &Device{ID: "truck-17", Vehicle: "truck-17", Policy: "own", Status: Active, Certificates: []Certificate{
			{Serial: "a1", NotBefore: now.AddDate(0, -1, 0), NotAfter: now.AddDate(0, 11, 0)},
		}}
	}
	with := func(change func(*Device)) *Device {
		d := good()
		change(d)
		return d
	}
	policies, err := NewPolicies(nil)
	ok(t, err)
	who := &names{"truck-17", "truck-17"}
	refusedAs := func(class string) Record {
		return Record{Attempts: []Attempt{{At: now.Add(-time.Minute), Class: class, Text: "why " + class, Remote: "192.0.2.7:5", ClientID: "x", Subject: "CN=other", Serial: "7", Issuer: "CN=Corp"}}}
	}
	connected := Record{FirstConnect: now.Add(-time.Hour), LastConnect: now.Add(-time.Hour), Connections: 1, LastMessage: now.Add(-time.Second)}
	gone := func(whys ...string) Record {
		r := Record{LastConnect: now.Add(-time.Hour)}
		for i, w := range whys {
			r.Departures = append(r.Departures, Departure{now.Add(time.Duration(i-len(whys)) * time.Minute), w})
		}
		return r
	}
	plus := func(r Record, m ...Rejection) Record {
		r.Rejections = m
		return r
	}
	for _, tc := range []struct {
		name    string
		facts   Facts
		verdict string
		good    bool
		says    string // in the summary
		mend    string // in what to do
	}{
		{"unknown, no trace", Facts{}, NeverSeen, false, "not enrolled", "device enroll truck-17"},
		{"unknown, refused", Facts{Refused: refusedAs(UnknownCA)}, UnknownCA, false, "why unknown_ca", "ca import"},
		{"revoked", Facts{Device: with(func(d *Device) { d.Status = Barred })}, Revoked, false, "revoked", "enrol it anew"},
		{"disabled", Facts{Device: with(func(d *Device) { d.Status = Disabled })}, Suspended, false, "disabled", "device enable"},
		{"expired", Facts{Device: with(func(d *Device) { d.Certificates[0].NotAfter = now.AddDate(0, 0, -3) })}, Expired, false, "ended on 2026-04-28", "device rotate"},
		{"all revoked", Facts{Device: with(func(d *Device) { d.Certificates[0].Revoked = now })}, Revoked, false, "revoked on", "device rotate"},
		{"tries an old certificate", Facts{Device: good(), Refused: refusedAs(Expired)}, Expired, false, "why expired", "serial a1"},
		{"certificate of the future", Facts{Device: good(), Refused: refusedAs(NotYetValid)}, NotYetValid, false, "why not_yet_valid", "clock"},
		{"wrong CA", Facts{Device: good(), Refused: refusedAs(UnknownCA)}, UnknownCA, false, "why unknown_ca", "CN=Corp"},
		{"replaced certificate", Facts{Device: good(), Refused: refusedAs(Revoked)}, Revoked, false, "why revoked", "install the present one"},
		{"no certificate", Facts{Device: good(), Refused: refusedAs(NoCertificate)}, NoCertificate, false, "why no_certificate", "-cert truck-17.crt"},
		{"client id", Facts{Device: good(), Refused: refusedAs(WrongClientID)}, WrongClientID, false, "why client_id", "set the client id to truck-17"},
		{"password", Facts{Device: good(), Refused: refusedAs(WrongPassword)}, WrongPassword, false, "why password", "device password truck-17"},
		{"not registered", Facts{Device: good(), Refused: refusedAs(NotEnrolled)}, NotEnrolled, false, "why not_enrolled", "--certificate FILE"},
		{"busy", Facts{Device: good(), Refused: refusedAs(Busy)}, Busy, false, "why busy", "by itself"},
		{"enrolled, never came", Facts{Device: good(), Nameless: []Attempt{{At: now, Remote: "192.0.2.9:1", Text: "TLS handshake: x"}}}, NeverSeen, false, "never reached", "firewall"},
		{"two clients", Facts{Device: good(), Seen: gone("taken over", "taken over by another connection", "session taken over")}, TwoClients, false, "two clients", "copied certificate"},
		{"offline", Facts{Device: good(), Seen: gone("keep-alive timeout")}, Offline, false, "keep-alive timeout", "power and network"},
		{"offline, a refusal before", Facts{Device: good(), Seen: Record{LastConnect: now}, Refused: refusedAs(Expired)}, Offline, false, "not connected", "power"},
		{"topic", Facts{Device: good(), Seen: plus(connected, Rejection{At: now, Topic: "fleet/truck-18/telemetry", Why: "topic"})}, TopicNotAllowed, false, "fleet/truck-18/telemetry", "fleet/truck-17/#"},
		{"payload", Facts{Device: good(), Seen: plus(connected, Rejection{At: now, Topic: "fleet/truck-17/telemetry", Why: "malformed", Text: "line 1: no number"})}, PayloadRefused, false, "line 1: no number", "dead-letters"},
		{"payload, long ago", Facts{Device: good(), Seen: plus(connected, Rejection{At: now.Add(-time.Minute), Topic: "fleet/truck-17/telemetry"})}, Fine, true, "messages arrive", ""},
		{"silent", Facts{Device: good(), Seen: Record{LastConnect: now.Add(-time.Hour), Connections: 1}}, Silent, false, "nothing yet", "publishes"},
		{"silent for long", Facts{Device: good(), Seen: Record{LastConnect: now.Add(-3 * time.Hour), Connections: 1, LastMessage: now.Add(-2 * time.Hour)}}, Silent, false, "for 2 h", "publishes"},
		{"just connected", Facts{Device: good(), Seen: Record{LastConnect: now.Add(-time.Second), Connections: 1}}, Silent, true, "nothing yet", ""},
		{"clock ahead", Facts{Device: good(), Seen: connected, Arrived: now, Measured: now.Add(time.Hour)}, ClockWrong, false, "ahead", "NTP"},
		{"clock late", Facts{Device: good(), Seen: connected, Arrived: now, Measured: now.Add(-2 * time.Hour)}, ClockWrong, false, "2 h old", "UTC"},
		{"fine", Facts{Device: good(), Seen: connected, Arrived: now, Measured: now.Add(-time.Second)}, Fine, true, "messages arrive", ""},
		{"fine after a refusal", Facts{Device: good(), Seen: connected, Refused: refusedAs(UnknownCA)}, Fine, true, "messages arrive", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := tc.facts
			f.ID, f.Now, f.Policy = "truck-17", now, policies.of("").shown(who)
			f.MayPublish = func(topic string) bool { return policies.of("").mayPublish([]byte(topic), who) }
			d := Diagnose(f)
			if d.Verdict != tc.verdict || d.OK != tc.good || !strings.Contains(d.Summary, tc.says) {
				t.Errorf("%s (ok %v): %s", d.Verdict, d.OK, d.Summary)
			}
			if tc.mend != "" && !strings.Contains(strings.Join(d.Mend, "\n"), tc.mend) {
				t.Errorf("mend %q lacks %q", d.Mend, tc.mend)
			}
		})
	}
	soon := Diagnose(Facts{ID: "truck-17", Now: now, Device: with(func(d *Device) { d.Certificates[0].NotAfter = now.AddDate(0, 0, 9) }), Seen: connected})
	if len(soon.Notes) == 0 || !strings.Contains(soon.Notes[0], "9 days") {
		t.Errorf("notes %q", soon.Notes)
	}
}

func TestJournalIsBounded(t *testing.T) {
	i, _, _ := newIdentity(t, nil)
	j := i.Journal
	p, err := i.Gate.Authenticate(t.Context(), with(enroll(t, i, "truck-17"), "truck-17"))
	ok(t, err)
	long := strings.Repeat("x", 70_000)
	for n := range journalStrangers + 500 {
		j.Refused(&Credentials{ClientID: fmt.Sprint("c", n)}, &Refusal{UnknownCA, long})
	}
	for n := range 100 {
		j.Rejected(p, fmt.Sprint("topic/", n), "topic", long)
		j.Refused(&Credentials{ClientID: "c"}, &Refusal{UnknownCA, fmt.Sprint(n)})
		j.Disconnected(p, "truck-17", fmt.Sprint(n))
	}
	if len(j.strangers) != journalStrangers || j.strange.Len() != journalStrangers {
		t.Errorf("%d strangers", len(j.strangers))
	}
	seen, _ := j.Device("truck-17")
	_, refused := j.Device("c")
	if len(seen.Rejections) != journalRing || len(seen.Departures) != journalRing || len(refused.Attempts) != journalRing {
		t.Errorf("%d %d %d entries", len(seen.Rejections), len(seen.Departures), len(refused.Attempts))
	}
	if len(seen.Rejections[0].Text) > maxJournalText+8 || refused.Attempts[journalRing-1].Text != "99" {
		t.Error("an entry is too long, or the newest is not kept")
	}
	// The same again and again is one entry.
	for range 50 {
		j.Refused(&Credentials{ClientID: "same"}, &Refusal{Expired, "old"})
	}
	if _, same := j.Device("same"); len(same.Attempts) != 1 || same.Attempts[0].Times != 50 {
		t.Errorf("%+v", same.Attempts)
	}
}

func TestJournalSurvives(t *testing.T) {
	fs := vfs.NewCrashable()
	i, _, _ := newIdentity(t, func(c *Config) { c.Store = openStore(t, fs) })
	cred := with(enroll(t, i, "truck-17"), "truck-17")
	p, err := i.Gate.Authenticate(t.Context(), cred)
	ok(t, err)
	i.Journal.Connected(cred, p)
	p.Heard(time.UnixMilli(1_700_000_000_000))
	i.Journal.Disconnected(p, "truck-17", "keep-alive timeout")
	ok(t, i.Flush(t.Context()))
	again, err := Open(t.Context(), Config{Dir: i.CA.dir, Store: openStore(t, fs.CrashClone(vfs.CrashCloneCfg{}))})
	ok(t, err)
	seen, _ := again.Journal.Device("truck-17")
	if seen.LastConnect.IsZero() || seen.LastMessage.UnixMilli() != 1_700_000_000_000 || len(seen.Departures) != 1 || seen.Connections != 0 {
		t.Errorf("%+v", seen)
	}
	if d := again.Doctor("truck-17", time.Now()); d.Verdict != Offline || !strings.Contains(d.Summary, "keep-alive timeout") {
		t.Errorf("%+v", d)
	}
}

func TestHandshakeHints(t *testing.T) {
	for text, want := range map[string]string{
		"remote error: tls: unknown certificate authority":                   "ca export",
		"remote error: tls: expired certificate":                             "clock",
		"remote error: tls: bad certificate":                                 "host name",
		"tls: first record does not look like a TLS handshake":               "without TLS",
		"tls: client offered only unsupported versions: [301]":               "TLS 1.2",
		"tls: invalid signature by the client certificate: ECDSA verif fail": "key does not belong",
		"EOF": "",
	} {
		if got := handshakeHint(errors.New(text)); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: %q", text, got)
		}
	}
	if remoteName(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 1}) != "address 192.0.2.7" {
		t.Error("an address is remembered without its port")
	}
}

// People are told once that a certificate ends soon, and once that it was replaced; again if telling failed.
func TestExpiryIsToldOnce(t *testing.T) {
	var told []string
	fail := errors.New("the sink is full")
	i, _, _ := newIdentity(t, nil)
	i.cfg.OnExpiring = func(_ context.Context, e Expiring, raised bool) error {
		told = append(told, fmt.Sprintf("%s %v %d", e.Device, raised, e.Days))
		return fail
	}
	enroll(t, i, "truck-17")
	now := time.Now()
	check := func(at time.Time, want string) {
		t.Helper()
		told = nil
		err := i.watch(t.Context(), at)
		if (err != nil) != (fail != nil && want != "[]") || fmt.Sprint(told) != want {
			t.Errorf("told %v (%v), want %s", told, err, want)
		}
	}
	check(now, "[]")
	late := now.AddDate(0, 0, 345).Add(-time.Hour)
	check(late, "[truck-17 true 20]")
	fail = nil
	check(late, "[truck-17 true 20]")
	check(late, "[]")
	if got := i.Expiring(late, 30*24*time.Hour); len(got) != 1 || got[0].Device != "truck-17" {
		t.Errorf("%+v", got)
	}
	key, err := NewKey()
	ok(t, err)
	_, _, err = i.Devices.Rotate(t.Context(), "truck-17", key.Public(), late)
	ok(t, err)
	check(late, "[truck-17 false 20]")
	check(late, "[]")
}

// Run ends when it is told to, with the journal written.
func TestRunEnds(t *testing.T) {
	i, _, _ := newIdentity(t, nil)
	cred := with(enroll(t, i, "truck-17"), "truck-17")
	p, err := i.Gate.Authenticate(t.Context(), cred)
	ok(t, err)
	i.Journal.Connected(cred, p)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		i.Run(ctx)
	}()
	cancel()
	<-done
	if i.Journal.traceOf("truck-17").dirty {
		t.Error("the journal was not written")
	}
}

// A success spares the hash for an hour, a mistake for a minute.
func TestPasswordMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := newPasswords(false, nil)
		ok(t, err)
		key := [32]byte{1}
		p.remember(key, true, time.Now())
		p.remember([32]byte{2}, false, time.Now())
		time.Sleep(2 * time.Minute)
		if right, found := p.recall(key, time.Now()); !right || !found {
			t.Error("forgotten too soon")
		}
		if _, found := p.recall([32]byte{2}, time.Now()); found {
			t.Error("a mistake is held against the device for too long")
		}
		time.Sleep(time.Hour)
		if _, found := p.recall(key, time.Now()); found {
			t.Error("remembered for too long")
		}
		for n := range rememberMost + 10 {
			p.remember([32]byte{byte(n), byte(n >> 8), byte(n >> 16), 9}, true, time.Now())
		}
		if len(p.known) != rememberMost {
			t.Errorf("%d remembered", len(p.known))
		}
	})
}
