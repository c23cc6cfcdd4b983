package mqtt_test

import (
	"strings"
	"testing"
	"time"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/mqtt"
	"github.com/milepost/milepost/ingest/mqtt/broker"
	"github.com/milepost/milepost/ingest/mqtt/packet"
)

// lasting is a change to a CONNECT: the session outlives its connection, and is resumed if there is one.
func lasting(seconds uint32) func(*packet.Connect) {
	return func(c *packet.Connect) {
		c.Clean = false
		if c.Version >= packet.V5 {
			c.Properties.Has |= packet.SetOf(packet.SessionExpiry)
			c.Properties.SessionExpiry = seconds
		}
	}
}

// takes is a change to a CONNECT: the largest packet that the client takes.
func takes(bytes uint32) func(*packet.Connect) {
	return func(c *packet.Connect) {
		c.Properties.Has |= packet.SetOf(packet.MaximumPacketSize)
		c.Properties.MaximumPacketSize = bytes
	}
}

// goodbye says DISCONNECT.
func (p *peer) goodbye() {
	p.t.Helper()
	p.send([]byte{0xE0, 0})
	p.wantEnd()
}

// answer wants a packet of a type and returns its body as it came.
func (p *peer) answer(t packet.Type) string {
	p.t.Helper()
	first, body := p.read()
	for t == packet.SUBACK && packet.Type(first>>4) == packet.PUBLISH { // 3.8.4: what matches may come before the SUBACK
		p.early = append(p.early, frame{first, body})
		first, body = p.read()
	}
	if packet.Type(first>>4) != t {
		p.t.Fatalf("want %s, got %x %x", t, first, body)
	}
	return string(body)
}

func TestSpecClientIdentifiers(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	// MQTT-3.1.3-5: all that it must allow.
	const allowed = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	for _, id := range []string{allowed[:23], allowed[23:46], allowed[46:], "Z"} {
		for _, version := range []byte{packet.V311, packet.V5} {
			w.joined(version, id).goodbye()
		}
	}
	// MQTT-3.1.3-2: the identifier is what a session is found by, byte for byte.
	for _, id := range []string{"one", "One"} {
		p := w.peer(packet.V5)
		if a := p.hello(id, lasting(100)); a.Code != 0 || a.Present {
			t.Errorf("%s: %+v", id, a)
		}
		p.goodbye()
	}
	p := w.peer(packet.V5)
	if a := p.hello("one", lasting(100)); !a.Present {
		t.Error("no session for the same identifier")
	}
	p.goodbye()
	// MQTT-3.1.3-6, -7, 3.2.2-16: each client without one gets one of its own, which is as good as one that it brings.
	seen := map[string]bool{}
	for range 3 {
		p := w.peer(packet.V5)
		a := p.hello("", lasting(100))
		id := string(a.Properties.AssignedClientID)
		if a.Code != 0 || a.Present || len(id) < 10 || seen[id] {
			t.Errorf("assigned %q: %+v", id, a)
		}
		seen[id] = true
		p.goodbye()
		p = w.peer(packet.V5)
		if a := p.hello(id, lasting(100)); !a.Present || a.Properties.Has.Has(packet.AssignedClientID) {
			t.Errorf("%q brought back: %+v", id, a)
		}
		p.goodbye()
	}
	if a := w.peer(packet.V311).hello(""); a.Code != 0 { // MQTT-3.1.3-6 of 3.1.1, with clean session
		t.Errorf("3.1.1: %+v", a)
	}
	// MQTT-3.1.3-8, and 3.1.3-9 of 3.1.1: one that is refused.
	for version, code := range map[byte]byte{packet.V311: packet.RefusedClientID, packet.V5: packet.ClientIDNotValid} {
		p := w.peer(version)
		if a := p.hello(strings.Repeat("x", 300)); a.Code != code {
			t.Errorf("version %d: %+v", version, a)
		}
		p.wantEnd()
	}
}

// A CONNECT that is refused: its code is one that CONNACK has, no session is told of, the connection ends, and nothing that came behind
// it counts (MQTT-3.1.4-1, -2, -6, 3.2.2-6, -7, -8, 4.12.0-1, 4.13.2-1; of 3.1.1: 3.2.2-4, -5, -6).
func TestSpecConnectRefused(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{Users: []mqtt.User{{Name: "u", Password: "p", Vehicle: "v1"}}})
	user := func(c *packet.Connect) {
		c.HasUser, c.User, c.HasPassword, c.Password = true, []byte("u"), true, []byte("p")
	}
	w.joined(packet.V5, "there", user, lasting(100)).goodbye()
	const nothing = 0xff // MQTT-3.1.4-1 and 3.2.2-6 of 3.1.1
	behind := reading("fleet/v1/telemetry", 0, 0)
	for _, c := range []struct {
		name      string
		change    func(*packet.Connect)
		code, old byte
	}{
		{"no user", func(*packet.Connect) {}, packet.NotAuthorized, packet.RefusedNotAuthorized},
		{"wrong password", func(c *packet.Connect) { user(c); c.Password = []byte("x") }, packet.BadUserOrPassword, packet.RefusedNotAuthorized},
		{"authentication method", func(c *packet.Connect) {
			c.Properties.Has, c.Properties.AuthMethod = packet.SetOf(packet.AuthMethod), []byte("m")
		}, packet.BadAuthMethod, packet.RefusedNotAuthorized},
		{"will on another's topic", func(c *packet.Connect) {
			user(c)
			c.HasWill, c.Will.Topic = true, []byte("fleet/v2/telemetry")
		}, packet.NotAuthorized, packet.RefusedNotAuthorized},
		{"will topic with a wildcard", func(c *packet.Connect) {
			user(c)
			c.HasWill, c.Will.Topic = true, []byte("fleet/+")
		}, packet.TopicNameInvalid, nothing},
		{"will of QoS 3", func(c *packet.Connect) {
			user(c)
			c.HasWill, c.Will.Topic, c.Will.QoS = true, []byte("fleet/v1/x"), 3
		}, packet.MalformedPacket, nothing},
		{"client identifier that is no UTF-8", func(c *packet.Connect) { user(c); c.ClientID = []byte{0xff} }, packet.MalformedPacket, nothing},
		{"3.1.2-2 version 6", func(c *packet.Connect) { c.Version = 6 }, packet.UnsupportedVersion, packet.RefusedVersion},
	} {
		for version, want := range map[byte]byte{packet.V5: c.code, packet.V311: c.old} {
			p := w.peer(version)
			connect := packet.Connect{Version: version, ClientID: []byte("there"), KeepAlive: 60}
			c.change(&connect)
			if version == packet.V311 && (connect.Version == 6 || connect.Properties.Has != 0) {
				continue
			}
			p.send(behind.Append(connect.Append(nil), version))
			if want == nothing {
				p.wantEnd()
				continue
			}
			body := p.answer(packet.CONNACK)
			if body[0] != 0 || body[1] != want {
				t.Errorf("%s, version %d: CONNACK %x, want code %x", c.name, version, body, want)
			}
			p.wantEnd()
		}
	}
	// What does not even look like MQTT is closed without a word (MQTT-3.1.2-1, 3.14.0-1).
	d := dial(t, w.server.Addr())
	d.send(packet0x10("\x00\x04MQTX\x05\x02\x00\x3c\x00\x00\x01a"))
	d.wantEnd()
	// A server that cannot take sessions any more (MQTT-3.2.2-8: CONNACK has no code for shutting down).
	if err := w.broker.Close(); err != nil {
		t.Fatal(err)
	}
	p := w.peer(packet.V5)
	if a := p.hello("late", user); a.Code != packet.ServerUnavailable {
		t.Errorf("%+v", a)
	}
	p.wantEnd()
	w.close()
	if n := len(w.stored()) + len(w.letters()); n != 0 {
		t.Errorf("%d messages behind a refused CONNECT were processed", n)
	}
}

// CONNACK says what it must and nothing else: no response information that was not asked for or that there is none of (MQTT-3.1.2-28),
// no authentication method (MQTT-4.12.0-6), no keep alive that the client has itself (MQTT-3.2.2-22).
func TestSpecConnack(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	for ask := range byte(2) {
		a := w.peer(packet.V5).hello("a", func(c *packet.Connect) {
			c.Properties.Has, c.Properties.RequestResponseInfo = packet.SetOf(packet.RequestResponseInfo), ask
		})
		if want := packet.SetOf(packet.ReceiveMaximum, packet.MaximumPacketSize, packet.TopicAliasMaximum); a.Properties.Has != want {
			t.Errorf("properties %#x, want %#x", a.Properties.Has, want)
		}
	}
	// MQTT-3.1.2-6, 3.1.4-5, 3.2.2-3: no session, and none is asked to be forgotten; the body is exact (MQTT-3.2.2-1).
	p := w.peer(packet.V311)
	c := packet.Connect{Version: packet.V311, ClientID: []byte("new"), KeepAlive: 60}
	p.send(c.Append(nil))
	if body := p.answer(packet.CONNACK); body != "\x00\x00" {
		t.Errorf("CONNACK %x", body)
	}
	p.goodbye()
	p = w.peer(packet.V311)
	p.send(c.Append(nil))
	if body := p.answer(packet.CONNACK); body != "\x01\x00" {
		t.Errorf("CONNACK %x", body)
	}
}

// No packet is larger than its client takes (MQTT-3.1.2-24): reason strings are left out (MQTT-3.2.2-19, 3.4.2-2, 3.5.2-2, 3.14.2-3), and
// what does not fit without is discarded as if it were sent (MQTT-3.1.2-25).
func TestSpecMaximumPacketSize(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	p := w.peer(packet.V5)
	c := packet.Connect{Version: packet.V5, Clean: true, ClientID: []byte("tiny")}
	takes(10)(&c)
	p.send(c.Append(nil))
	if body := p.answer(packet.CONNACK); body != "\x00\x95\x00" { // 3.2.2-19: no reason string
		t.Errorf("CONNACK %x", body)
	}
	p.wantEnd()
	p = w.peer(packet.V5)
	takes(4)(&c)
	p.send(c.Append(nil))
	p.wantEnd() // not even that fits
	p = w.peer(packet.V5)
	if a := p.hello(strings.Repeat("x", 300), takes(200)); a.Code != packet.ClientIDNotValid || len(a.Properties.ReasonString) == 0 {
		t.Errorf("a reason that fits is left out: %+v", a)
	}

	p = w.joined(packet.V5, "small", takes(25))
	p.publish5(packet.Publish{Topic: []byte("$SYS/x"), QoS: 1, ID: 7})
	if body := p.answer(packet.PUBACK); body != "\x00\x07\x90" { // 3.4.2-2
		t.Errorf("PUBACK %x", body)
	}
	p.publish5(packet.Publish{Topic: []byte("$SYS/x"), QoS: 2, ID: 8})
	if body := p.answer(packet.PUBREC); body != "\x00\x08\x90" { // 3.5.2-2
		t.Errorf("PUBREC %x", body)
	}
	many := make([]packet.Filter, 30)
	for i := range many {
		many[i].Filter = []byte("a")
	}
	s := packet.Subscribe{ID: 9, Filters: many}
	p.send(s.Append(nil, packet.SUBSCRIBE, packet.V5)) // a SUBACK of 35 bytes
	p.ping()
	p.send(s.Append(nil, packet.UNSUBSCRIBE, packet.V5))
	p.ping()
	p.subscribe(10, packet.Filter{Filter: []byte("t/#"), QoS: 1})
	pub := w.joined(packet.V5, "pub")
	for i, payload := range []string{strings.Repeat("f", 25-2-3-2-1), strings.Repeat("F", 25-2-3-2), "short"} {
		pub.publish5(packet.Publish{Topic: []byte("t"), QoS: 1, ID: uint16(i + 1), Payload: []byte(payload)})
		pub.wantAnswer(packet.PUBACK, uint16(i+1), 0)
	}
	for _, want := range []string{strings.Repeat("f", 17), "short"} {
		m := p.message()
		if string(m.Payload) != want {
			t.Errorf("got %q, want %q", m.Payload, want)
		}
		a := packet.Ack{Type: packet.PUBACK, ID: m.ID}
		p.send(a.Append(nil, 5))
	}
	p.ping()
	p.send([]byte{0x00, 0})                                  // packet type 0
	if body := p.answer(packet.DISCONNECT); body != "\x82" { // 3.14.2-3
		t.Errorf("DISCONNECT %x", body)
	}
	p.wantEnd()
}

// Who does not want problem information gets no reason strings (MQTT-3.1.2-29), and nobody gets user properties that are the server's
// own (MQTT-3.2.2-20, 3.4.2-3, 3.5.2-3, 3.14.2-4).
func TestSpecProblemInformation(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	for wanted := range byte(2) {
		p := w.joined(packet.V5, "p", func(c *packet.Connect) {
			c.Properties.Has, c.Properties.RequestProblemInfo = packet.SetOf(packet.RequestProblemInfo), wanted
		})
		for qos, kind := range map[byte]packet.Type{1: packet.PUBACK, 2: packet.PUBREC} {
			p.publish5(packet.Publish{Topic: []byte("$SYS/x"), QoS: qos, ID: 7})
			first, body := p.read()
			var a packet.Ack
			if err := a.Decode(kind, first&15, body, packet.V5); err != nil || packet.Type(first>>4) != kind {
				t.Fatalf("%x %x: %v", first, body, err)
			}
			if a.Code != packet.TopicNameInvalid || (len(a.Properties.ReasonString) > 0) != (wanted == 1) || len(a.Properties.User) > 0 {
				t.Errorf("wanted %d: %+v", wanted, a)
			}
		}
		if body := func() string {
			s := packet.Subscribe{ID: 3, Filters: []packet.Filter{{Filter: []byte("a/#/b")}}}
			p.send(s.Append(nil, packet.SUBSCRIBE, packet.V5))
			return p.answer(packet.SUBACK)
		}(); body != "\x00\x03\x00\x8f" { // 3.9.2-1, -2: no properties at all
			t.Errorf("SUBACK %x", body)
		}
		p.send([]byte{0x36, 6, 0, 1, 'a', 0, 1, 0})
		first, body := p.read()
		var e packet.End
		if err := e.Decode(packet.DISCONNECT, first&15, body, packet.V5); err != nil || len(e.Properties.User) > 0 || e.Properties.Has.Has(packet.SessionExpiry) {
			t.Errorf("%x %x: %v", first, body, err) // 3.14.2-2 among them
		}
	}
}

// DISCONNECT may change how long the session stays (3.14.2.2.2).
func TestSpecDisconnectChangesExpiry(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	leave := func(p *peer, seconds byte) {
		p.send([]byte{0xE0, 7, 0, 5, 0x11, 0, 0, 0, seconds})
		p.wantEnd()
	}
	leave(w.joined(packet.V5, "a", lasting(100)), 0)
	p := w.peer(packet.V5)
	if a := p.hello("a", lasting(100)); a.Present {
		t.Error("its session was to end with the connection")
	}
	leave(p, 50)
	if a := w.peer(packet.V5).hello("a", lasting(100)); !a.Present {
		t.Error("its session was to stay")
	}
}

// Wills that a connection leaves behind, with all they have.
func TestSpecWills(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	sub := w.joined(packet.V5, "watcher", lasting(1000))
	sub.subscribe(1, packet.Filter{Filter: []byte("wills/+"), QoS: 2, RetainAsPublished: true})
	with := func(retain bool) func(*packet.Connect) {
		return func(c *packet.Connect) {
			c.HasWill, c.Will = true, packet.Will{
				Topic: []byte("wills/" + string(c.ClientID)), Payload: []byte("gone"), Retain: retain, QoS: 1,
				Properties: packet.Properties{
					Has:         packet.SetOf(packet.UserProperty, packet.ContentType, packet.WillDelay),
					ContentType: []byte("text"), User: []packet.Pair{{Name: []byte("b"), Value: []byte("1")}, {Name: []byte("a"), Value: []byte("2")}, {Name: []byte("b"), Value: nil}},
				},
			}
		}
	}
	wants := func(id string, retain bool) {
		t.Helper()
		m := sub.message()
		var user strings.Builder
		for _, u := range m.Properties.User {
			user.WriteString(string(u.Name) + string(u.Value) + " ")
		}
		// MQTT-3.1.3-10: user properties in order; the will's own, such as its delay, are not sent.
		if string(m.Topic) != "wills/"+id || string(m.Payload) != "gone" || m.Retain != retain || m.QoS != 1 || user.String() != "b1 a2 b " || string(m.Properties.ContentType) != "text" {
			t.Errorf("will of %s: %+v", id, m)
		}
		a := packet.Ack{Type: packet.PUBACK, ID: m.ID}
		sub.send(a.Append(nil, 5))
		sub.ping()
	}
	_ = w.joined(packet.V5, "plain", with(false)).conn.Close() // MQTT-3.1.2-7, -8, -14
	wants("plain", false)
	_ = w.joined(packet.V5, "kept", with(true)).conn.Close() // MQTT-3.1.2-15
	wants("kept", true)
	late := w.joined(packet.V5, "late")
	late.subscribe(1, packet.Filter{Filter: []byte("wills/#"), QoS: 1})
	if m := late.message(); string(m.Topic) != "wills/kept" || !m.Retain {
		t.Errorf("retained: %+v", m)
	}
	late.ping() // and nothing else: MQTT-3.1.2-14
	// MQTT-3.1.2-22: a keep alive that runs out is the network's failure.
	silent := w.joined(packet.V5, "silent", with(false), func(c *packet.Connect) { c.KeepAlive = 1 })
	wants("silent", false)
	silent.wantDisconnect(packet.KeepAliveTimeout)
	// A protocol error too.
	bad := w.joined(packet.V5, "bad", with(false))
	bad.send([]byte{0x00, 0})
	bad.wantDisconnect(packet.ProtocolError)
	wants("bad", false)
	// MQTT-3.1.2-8: what a server that shuts down has not published it publishes when it is back; MQTT-3.1.2-10: once.
	w.joined(packet.V5, "orphan", with(false))
	w.limits = broker.Limits{RestartGrace: time.Millisecond}
	w.restart()
	sub = w.joined(packet.V5, "watcher", lasting(1000))
	wants("orphan", false)
	w.restart()
	sub = w.joined(packet.V5, "watcher", lasting(1000))
	late = w.joined(packet.V5, "marker", with(false))
	_ = late.conn.Close()
	wants("marker", false)
}
