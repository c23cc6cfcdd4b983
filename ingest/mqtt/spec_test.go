package mqtt_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/mqtt"
	"github.com/milepost/milepost/ingest/mqtt/packet"
)

// A peer is a client of either version that sends what it is told, good or bad.
type peer struct {
	*device
	version byte
	early   []frame // messages that came before a SUBACK
}

// A frame is a packet as it came.
type frame struct {
	first byte
	body  []byte
}

func (w *world) peer(version byte) *peer {
	w.t.Helper()
	return &peer{device: dial(w.t, w.server.Addr()), version: version}
}

// hello connects and returns the CONNACK.
func (p *peer) hello(id string, change ...func(*packet.Connect)) packet.Connack {
	p.t.Helper()
	c := packet.Connect{Version: p.version, Clean: true, KeepAlive: 60, ClientID: []byte(id)}
	for _, f := range change {
		f(&c)
	}
	p.send(c.Append(nil))
	first, body := p.read()
	var a packet.Connack
	if packet.Type(first>>4) != packet.CONNACK {
		p.t.Fatalf("want CONNACK, got %x %x", first, body)
	}
	if err := a.Decode(first&15, body, p.version); err != nil {
		p.t.Fatal(err)
	}
	return a
}

// joined is a peer that is connected.
func (w *world) joined(version byte, id string, change ...func(*packet.Connect)) *peer {
	w.t.Helper()
	p := w.peer(version)
	if a := p.hello(id, change...); a.Code != 0 {
		w.t.Fatalf("%s: CONNACK %x", id, a.Code)
	}
	return p
}

func (p *peer) publish5(m packet.Publish) { p.t.Helper(); p.send(m.Append(nil, p.version)) }

// wantDisconnect wants DISCONNECT with a code, or for MQTT 3.1.1 nothing, and then the end.
func (p *peer) wantDisconnect(code byte) {
	p.t.Helper()
	if p.version >= packet.V5 {
		first, body := p.read()
		var e packet.End
		if packet.Type(first>>4) != packet.DISCONNECT || e.Decode(packet.DISCONNECT, first&15, body, p.version) != nil || e.Code != code {
			p.t.Fatalf("want DISCONNECT %x, got %x %x", code, first, body)
		}
	}
	p.wantEnd()
}

func (p *peer) wantAnswer(t packet.Type, id uint16, code byte) {
	p.t.Helper()
	first, body := p.read()
	var a packet.Ack
	if packet.Type(first>>4) != t {
		p.t.Fatalf("want %s, got %x %x", t, first, body)
	}
	if err := a.Decode(t, first&15, body, p.version); err != nil || a.ID != id || a.Code != code {
		p.t.Fatalf("want %s of %d with %x, got %x %x %v", t, id, code, first, body, err)
	}
}

func (p *peer) subscribe(id uint16, filters ...packet.Filter) []byte {
	p.t.Helper()
	s := packet.Subscribe{ID: id, Filters: filters}
	p.send(s.Append(nil, packet.SUBSCRIBE, p.version))
	first, body := p.read()
	for packet.Type(first>>4) == packet.PUBLISH { // 3.8.4: what matches may come before the SUBACK
		p.early = append(p.early, frame{first, body})
		first, body = p.read()
	}
	var a packet.Suback
	if packet.Type(first>>4) != packet.SUBACK || a.Decode(packet.SUBACK, first&15, body, p.version) != nil || a.ID != id {
		p.t.Fatalf("want SUBACK of %d, got %x %x", id, first, body)
	}
	return a.Codes
}

func (p *peer) message() packet.Publish {
	p.t.Helper()
	var first byte
	var body []byte
	if len(p.early) > 0 {
		first, body, p.early = p.early[0].first, p.early[0].body, p.early[1:]
	} else {
		first, body = p.read()
	}
	var m packet.Publish
	if packet.Type(first>>4) != packet.PUBLISH {
		p.t.Fatalf("want PUBLISH, got %x %x", first, body)
	}
	if err := m.Decode(first&15, body, p.version); err != nil {
		p.t.Fatal(err)
	}
	return m
}

func reading(topic string, qos byte, id uint16) packet.Publish {
	return packet.Publish{Topic: []byte(topic), QoS: qos, ID: id, Payload: []byte(`{"speed":1}`)}
}

// What ends a connection, by statement of MQTT 5: what the client sends after CONNECT, and the code it is told (MQTT-4.13.1-1, 4.13.2-1).
// Nothing comes behind the DISCONNECT but the end (MQTT-3.14.4-1, -2).
func TestSpecEndings(t *testing.T) {
	w := newWorld(t, ingest.Limits{MaxMessage: 10_000}, mqtt.Config{ReceiveMaximum: 5})
	connect := packet.Connect{Version: 5, ClientID: []byte("x")}
	for _, c := range []struct {
		statement string
		version   byte
		send      []byte
		code      byte
	}{
		{"1.5.4-1 ill-formed UTF-8", 5, []byte{0x30, 4, 0, 1, 0xff, 0}, packet.MalformedPacket},
		{"2.1.3-1 reserved flags", 5, []byte{0xC1, 0}, packet.MalformedPacket},
		{"2.1.3-1 reserved flags", 4, []byte{0xC1, 0}, 0},
		{"2.2.1-3 packet identifier 0", 5, []byte{0x32, 6, 0, 1, 'a', 0, 0, 0}, packet.ProtocolError},
		{"3.1.0-2, 3.2.0-2 second CONNECT", 5, connect.Append(nil), packet.ProtocolError},
		{"3.1.0-2 second CONNECT", 4, connect.Append(nil), 0},
		{"3.3.1-4 QoS 3", 5, []byte{0x36, 6, 0, 1, 'a', 0, 1, 0}, packet.MalformedPacket},
		{"3.3.2-2 wildcard in a topic", 5, []byte{0x30, 4, 0, 1, '#', 0}, packet.TopicNameInvalid},
		{"3.3.2-8 topic alias 0", 5, []byte{0x30, 7, 0, 1, 'a', 3, 0x23, 0, 0}, packet.TopicAliasInvalid},
		{"3.3.2-9, 3.2.2-17 topic alias too large", 5, []byte{0x30, 7, 0, 1, 'a', 3, 0x23, 0, 17}, packet.TopicAliasInvalid},
		{"3.3.2.3.4 topic alias never set", 5, []byte{0x30, 6, 0, 0, 3, 0x23, 0, 1}, packet.ProtocolError},
		{"3.3.4-6 subscription identifier", 5, []byte{0x30, 6, 0, 1, 'a', 2, 0x0b, 1}, packet.ProtocolError},
		{"3.8.1-1 flags of SUBSCRIBE", 5, []byte{0x80, 7, 0, 1, 0, 0, 1, 'a', 0}, packet.MalformedPacket},
		{"3.8.3-2 no filter", 5, []byte{0x82, 3, 0, 1, 0}, packet.ProtocolError},
		{"3.8.3-4 shared with no local", 5, append([]byte{0x82, 17, 0, 1, 0, 0, 11}, "$share/g/ab\x04"...), packet.ProtocolError},
		{"3.8.3-5 reserved options", 5, []byte{0x82, 7, 0, 1, 0, 0, 1, 'a', 0x80}, packet.MalformedPacket},
		{"3.10.3-2 no filter", 5, []byte{0xA2, 3, 0, 1, 0}, packet.ProtocolError},
		{"3.14.1-1 flags of DISCONNECT", 5, []byte{0xE1, 0}, packet.MalformedPacket},
		{"3.14.2.2.2 expiry for a session without", 5, []byte{0xE0, 7, 0, 5, 0x11, 0, 0, 0, 9}, packet.ProtocolError},
		{"4.12.0-7 AUTH out of the blue", 5, []byte{0xF0, 0}, packet.ProtocolError},
		{"4.13 SUBACK from a client", 5, []byte{0x90, 4, 0, 1, 0, 0}, packet.ProtocolError},
		{"4.13 packet type 0", 5, []byte{0x00, 0}, packet.ProtocolError},
		{"3.14.1-1 of 3.1.1", 4, []byte{0xE1, 0}, 0},
		{"1.5.3-1 of 3.1.1: ill-formed UTF-8", 4, []byte{0x30, 4, 0, 1, 0xff, 0}, 0},
		{"1.5.3-2 of 3.1.1: a zero character", 4, []byte{0x82, 6, 0, 1, 0, 1, 0, 0}, 0},
		{"3.8.3-4 of 3.1.1: QoS 3", 4, []byte{0x82, 6, 0, 1, 0, 1, 'a', 3}, 0},
		{"3.15.1-1 flags of AUTH", 5, []byte{0xF1, 0}, packet.MalformedPacket},
		{"3.6.1-1 flags of PUBREL", 5, []byte{0x60, 2, 0, 1}, packet.MalformedPacket},
		{"3.10.1-1 flags of UNSUBSCRIBE", 5, []byte{0xA0, 6, 0, 1, 0, 0, 1, 'a'}, packet.MalformedPacket},
		{"3.2.2-15 packet too large", 5, []byte{0x30, 0xff, 0xff, 0x03}, packet.PacketTooLarge},
		{"2.1.4 remaining length of five bytes", 5, []byte{0x30, 0xff, 0xff, 0xff, 0xff, 0x01}, packet.MalformedPacket},
	} {
		p := w.joined(c.version, "spec")
		p.send(c.send)
		t.Log(c.statement)
		p.wantDisconnect(c.code)
	}
	// 3.3.4-7: more than the receive maximum.
	p := w.joined(packet.V5, "greedy")
	waiting := w.log.Hold()
	var all []byte
	for id := uint16(1); id <= 6; id++ {
		m := reading("fleet/v1/telemetry", 1, id)
		all = m.Append(all, 5)
	}
	p.send(all)
	<-waiting
	w.log.Release()
	codes := 0
	for {
		first, body, err := p.tryRead()
		if err != nil {
			break
		}
		if packet.Type(first>>4) == packet.DISCONNECT && body[0] == packet.ReceiveMaximumExceeded {
			codes++
		}
	}
	if codes != 1 {
		t.Error("3.3.4-7: no DISCONNECT with receive maximum exceeded")
	}
}

// What a CONNECT is answered.
func TestSpecConnect(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{MaxKeepAlive: 100 * time.Second})
	t.Run("3.1.0-1 first packet is not CONNECT", func(t *testing.T) {
		d := dial(t, w.server.Addr())
		d.send([]byte{0xC0, 0})
		d.wantEnd()
	})
	t.Run("3.1.2-2 version", func(t *testing.T) {
		d := dial(t, w.server.Addr())
		d.send(packet0x10("\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01a"))
		if first, body := d.read(); first != 0x20 || body[1] != packet.RefusedVersion {
			t.Errorf("%x %x", first, body)
		}
		d.wantEnd()
	})
	t.Run("3.1.3-6, 3.2.2-16 assigned client identifier", func(t *testing.T) {
		a := w.peer(packet.V5).hello("")
		if a.Code != 0 || len(a.Properties.AssignedClientID) < 10 {
			t.Errorf("%+v", a)
		}
	})
	t.Run("3.1.3-8 of 3.1.1: no client identifier and no clean session", func(t *testing.T) {
		p := w.peer(packet.V311)
		if a := p.hello("", func(c *packet.Connect) { c.Clean = false }); a.Code != packet.RefusedClientID {
			t.Errorf("%+v", a)
		}
		p.wantEnd()
	})
	t.Run("3.2.2-22 server keep alive", func(t *testing.T) {
		a := w.peer(packet.V5).hello("k", func(c *packet.Connect) { c.KeepAlive = 0 })
		if a.Properties.ServerKeepAlive != 100 {
			t.Errorf("%+v", a)
		}
		if a := w.peer(packet.V5).hello("k", func(c *packet.Connect) { c.KeepAlive = 50 }); a.Properties.Has.Has(packet.ServerKeepAlive) {
			t.Errorf("%+v", a)
		}
	})
	t.Run("3.1.2-4, -5, 3.1.4-4, 3.2.2-2, -3 session present", func(t *testing.T) {
		f := func(clean, present bool) {
			t.Helper()
			p := w.peer(packet.V5)
			a := p.hello("s", func(c *packet.Connect) {
				c.Clean = clean
				c.Properties.Has, c.Properties.SessionExpiry = packet.SetOf(packet.SessionExpiry), 100
			})
			if a.Present != present {
				t.Errorf("clean %v: session present %v", clean, a.Present)
			}
			p.send([]byte{0xE0, 0})
			p.wantEnd()
		}
		f(true, false)
		f(false, true)
		f(true, false)
	})
	t.Run("3.1.4-3 take-over", func(t *testing.T) {
		old := w.joined(packet.V5, "twice")
		w.joined(packet.V5, "twice")
		old.wantDisconnect(packet.SessionTakenOver)
		old = w.joined(packet.V311, "twice4")
		w.joined(packet.V311, "twice4")
		old.wantDisconnect(0)
	})
	t.Run("4.12.0-1 authentication method", func(t *testing.T) {
		p := w.peer(packet.V5)
		a := p.hello("m", func(c *packet.Connect) {
			c.Properties.Has, c.Properties.AuthMethod = packet.SetOf(packet.AuthMethod), []byte("SCRAM")
		})
		if a.Code != packet.BadAuthMethod {
			t.Errorf("%+v", a)
		}
		p.wantEnd()
	})
	t.Run("3.1.2-22, 3.2.2-22 keep alive", func(t *testing.T) {
		p := w.joined(packet.V5, "silent", func(c *packet.Connect) { c.KeepAlive = 1 })
		begin := time.Now()
		p.wantDisconnect(packet.KeepAliveTimeout)
		if took := time.Since(begin); took < 1200*time.Millisecond {
			t.Errorf("ended after %s", took)
		}
		p = w.joined(packet.V5, "chatty", func(c *packet.Connect) { c.KeepAlive = 1 })
		for range 8 {
			time.Sleep(300 * time.Millisecond)
			p.ping()
		}
	})
	t.Run("3.1.2-8 will, 3.14.4-3 no will after DISCONNECT", func(t *testing.T) {
		sub := w.joined(packet.V5, "watcher")
		sub.subscribe(1, packet.Filter{Filter: []byte("wills/#"), QoS: 1})
		with := func(c *packet.Connect) {
			c.HasWill, c.Will = true, packet.Will{Topic: []byte("wills/" + string(c.ClientID)), Payload: []byte("gone"), QoS: 1}
		}
		p := w.joined(packet.V5, "polite", with)
		p.send([]byte{0xE0, 0})
		p.wantEnd()
		p = w.joined(packet.V5, "asks", with)
		p.send([]byte{0xE0, 1, packet.DisconnectWithWill})
		p.wantEnd()
		if m := sub.message(); string(m.Topic) != "wills/asks" || string(m.Payload) != "gone" || m.QoS != 1 {
			t.Errorf("%+v", m)
		}
		p = w.joined(packet.V5, "lost", with)
		_ = p.conn.Close()
		if m := sub.message(); string(m.Topic) != "wills/lost" {
			t.Errorf("%+v", m)
		}
	})
}

func packet0x10(body string) []byte { return append([]byte{0x10, byte(len(body))}, body...) }

// Acknowledgements of every QoS, in order.
func TestSpecAcknowledgements(t *testing.T) {
	for _, version := range []byte{packet.V311, packet.V5} {
		w := newWorld(t, ingest.Limits{}, mqtt.Config{})
		p := w.joined(version, "d")
		// 4.6.0-2: PUBACKs in order, refused ones among them. 4.3.2-4, 2.2.1-5: with the same packet identifier.
		var all []byte
		for id := uint16(1); id <= 300; id++ {
			m := reading("fleet/v1/telemetry", 1, id)
			if id%3 == 0 {
				m.Payload = []byte("nonsense")
			}
			all = m.Append(all, version)
		}
		p.send(all)
		for id := uint16(1); id <= 300; id++ {
			code := byte(0)
			if id%3 == 0 && version == packet.V5 {
				code = packet.PayloadFormatInvalid
			}
			p.wantAnswer(packet.PUBACK, id, code)
		}
		if len(w.stored()) != 200 || len(w.letters()) != 100 {
			t.Errorf("%d stored, %d dead letters", len(w.stored()), len(w.letters()))
		}
		// 4.3.3-8 to -12: QoS 2. A repetition is acknowledged and not stored again until PUBREL.
		for range 3 {
			p.publish5(reading("fleet/v2/telemetry", 2, 9))
			p.wantAnswer(packet.PUBREC, 9, 0)
		}
		p.send([]byte{0x62, 2, 0, 9})
		p.wantAnswer(packet.PUBCOMP, 9, 0)
		unknown := byte(0)
		if version == packet.V5 {
			unknown = packet.PacketIDNotFound
		}
		p.send([]byte{0x62, 2, 0, 9}) // 3.7.2: not known any more
		p.wantAnswer(packet.PUBCOMP, 9, unknown)
		p.publish5(reading("fleet/v2/telemetry", 2, 9))
		p.wantAnswer(packet.PUBREC, 9, 0)
		if got := strings.Count(strings.Join(w.stored(), "\n"), "v2 "); got != 2 {
			t.Errorf("version %d: %d stored of QoS 2, want 2", version, got)
		}
		// 4.6.0-3: PUBRECs in order.
		all = all[:0]
		for id := uint16(20); id < 40; id++ {
			m := reading("fleet/v3/telemetry", 2, id)
			all = m.Append(all, version)
		}
		p.send(all)
		for id := uint16(20); id < 40; id++ {
			p.wantAnswer(packet.PUBREC, id, 0)
		}
		// 3.12.4-1: PINGRESP. 3.3.4-1: QoS 0 has no answer before it.
		p.publish5(reading("fleet/v4/telemetry", 0, 0))
		p.ping()
	}
}

// Messages find their subscribers with what the specification has them keep.
func TestSpecForwarding(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	sub, pub := w.joined(packet.V5, "sub"), w.joined(packet.V5, "pub")
	// 3.8.4-1, -6, -7, 3.9.3-1: a code for each filter, in order. 4.7.1: bad filters. 4.8.2: bad shared ones.
	codes := sub.subscribe(1, packet.Filter{Filter: []byte("a/#"), QoS: 2}, packet.Filter{Filter: []byte("a/#/b")}, packet.Filter{Filter: []byte("b"), QoS: 1},
		packet.Filter{Filter: []byte("$share//b")}, packet.Filter{Filter: []byte("a+")}, packet.Filter{Filter: []byte("$SYS/#")}, packet.Filter{Filter: []byte("fleet/+/telemetry")})
	if diff := cmp.Diff([]byte{2, 0x8F, 1, 0x8F, 0x8F, 0x87, 0}, codes); diff != "" {
		t.Errorf("SUBACK (-want +got):\n%s", diff)
	}
	// 3.3.2-4, -15 to -18, -20: properties pass unaltered; user properties in order. 3.3.2-6: what remains of the expiry.
	m := packet.Publish{Topic: []byte("a/x"), QoS: 2, ID: 5, Payload: []byte("hello"), Properties: packet.Properties{
		Has:           packet.SetOf(packet.PayloadFormat, packet.MessageExpiry, packet.ContentType, packet.ResponseTopic, packet.CorrelationData, packet.UserProperty, packet.TopicAlias),
		PayloadFormat: 1, MessageExpiry: 100, ContentType: []byte("text"), ResponseTopic: []byte("r"), CorrelationData: []byte{0xff}, TopicAlias: 1,
		User: []packet.Pair{{Name: []byte("b"), Value: []byte("1")}, {Name: []byte("a"), Value: []byte("2")}},
	}}
	pub.publish5(m)
	got := sub.message()
	want := m
	want.ID, want.Properties.TopicAlias = got.ID, 0
	want.Properties.Has &^= packet.SetOf(packet.TopicAlias)
	want.Properties.MessageExpiry = got.Properties.MessageExpiry // 99 or 100
	if diff := cmp.Diff(want, got); diff != "" || got.Properties.MessageExpiry < 90 {
		t.Errorf("forwarded (-want +got):\n%s", diff)
	}
	a := packet.Ack{Type: packet.PUBREC, ID: got.ID}
	sub.send(a.Append(nil, 5))
	sub.wantAnswer(packet.PUBREL, got.ID, 0)
	a.Type = packet.PUBCOMP
	sub.send(a.Append(nil, 5))
	pub.wantAnswer(packet.PUBREC, 5, 0)
	// 3.3.4-1 and 3.8.4-8: the lower of the two QoS. Readings are forwarded too.
	pub.publish5(packet.Publish{Topic: []byte("b"), QoS: 1, ID: 6, Payload: []byte("x")})
	if got := sub.message(); got.QoS != 1 || string(got.Topic) != "b" {
		t.Errorf("%+v", got)
	}
	pub.wantAnswer(packet.PUBACK, 6, 0)
	pub.publish5(reading("fleet/v1/telemetry", 1, 7))
	if got := sub.message(); got.QoS != 0 || string(got.Payload) != `{"speed":1}` {
		t.Errorf("%+v", got)
	}
	pub.wantAnswer(packet.PUBACK, 7, 0)
	pub.publish5(packet.Publish{Topic: []byte("nobody"), QoS: 1, ID: 8})
	pub.wantAnswer(packet.PUBACK, 8, packet.NoMatchingSubscribers)
	// Retained, and 3.3.1-3.
	pub.publish5(packet.Publish{Topic: []byte("kept"), QoS: 1, ID: 9, Retain: true, Payload: []byte("k")})
	pub.wantAnswer(packet.PUBACK, 9, packet.NoMatchingSubscribers)
	sub.subscribe(2, packet.Filter{Filter: []byte("kept")})
	if got := sub.message(); !got.Retain || string(got.Payload) != "k" {
		t.Errorf("%+v", got)
	}
	// 3.10.4-4: UNSUBACK with codes; nothing more comes.
	un := packet.Subscribe{ID: 3, Filters: []packet.Filter{{Filter: []byte("b")}, {Filter: []byte("never")}}}
	sub.send(un.Append(nil, packet.UNSUBSCRIBE, 5))
	if first, body := sub.read(); first != 0xB0 || fmt.Sprintf("%x", body) != "0003000011" {
		t.Errorf("UNSUBACK %x %x", first, body)
	}
	pub.publish5(packet.Publish{Topic: []byte("b"), QoS: 1, ID: 10, Payload: []byte("x")})
	pub.wantAnswer(packet.PUBACK, 10, packet.NoMatchingSubscribers)
	sub.ping()
}

// What waits for a session that is away comes when it is back (3.3.1-1, 4.4.0-1), behind the CONNACK (3.2.0-1); through restarts: the
// tests of broker.
func TestSpecSessionsKeepMessages(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	stay := func(c *packet.Connect) { c.Clean = false }
	sub := w.joined(packet.V311, "sub", stay)
	sub.subscribe(1, packet.Filter{Filter: []byte("fleet/v1/commands"), QoS: 1})
	_ = sub.conn.Close()
	for w.connections() != 0 { // else the message may be sent to the old connection, and again with DUP
		time.Sleep(time.Millisecond)
	}
	pub := w.joined(packet.V311, "pub")
	pub.publish5(packet.Publish{Topic: []byte("fleet/v1/commands"), QoS: 1, ID: 1, Payload: []byte("unlock")})
	pub.wantAnswer(packet.PUBACK, 1, 0)
	sub = w.peer(packet.V311)
	if a := sub.hello("sub", stay); !a.Present {
		t.Error("no session present")
	}
	m := sub.message()
	if string(m.Payload) != "unlock" || m.Dup {
		t.Errorf("%+v", m)
	}
	_ = sub.conn.Close() // without PUBACK
	sub = w.peer(packet.V311)
	sub.hello("sub", stay)
	if again := sub.message(); !again.Dup || again.ID != m.ID {
		t.Errorf("%+v", again)
	}
}

// MQTT over WebSocket, a transport as 4.2.0-1 asks for: packets need not be aligned with frames (6.0.0-2), text is refused (6.0.0-1), and
// the subprotocol is mqtt (6.0.0-4).
func TestWebSocket(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{WebSocketAddress: "127.0.0.1:0"})
	open := func(protocol string) (*device, string) {
		conn, err := net.Dial("tcp", w.server.WebSocketAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(patience))
		d := &device{t: t, conn: conn, in: bufio.NewReader(conn)}
		d.send([]byte("GET /mqtt HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: " + protocol + "\r\n\r\n"))
		head := ""
		for !strings.HasSuffix(head, "\r\n\r\n") {
			line, err := d.in.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			head += line
		}
		return d, head
	}
	frame := func(op byte, payload string) []byte {
		mask := [4]byte{1, 2, 3, 4}
		out := append([]byte{0x80 | op, 0x80 | byte(len(payload))}, mask[:]...)
		for i := range len(payload) {
			out = append(out, payload[i]^mask[i%4])
		}
		return out
	}
	d, head := open("mqttv3.1, mqtt")
	if !strings.HasPrefix(head, "HTTP/1.1 101") || !strings.Contains(head, "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n") || !strings.Contains(head, "Sec-WebSocket-Protocol: mqtt\r\n") {
		t.Fatal(head)
	}
	c := packet.Connect{Version: 4, Clean: true, ClientID: []byte("ws")}
	m := reading("fleet/v1/telemetry", 1, 3)
	all := string(m.Append(c.Append(nil), 4))
	for i := range all { // a byte a frame, with a ping between
		d.send(frame(2, all[i:i+1]))
	}
	d.send(frame(9, "hi"))
	var got []byte
	for len(got) < 8 {
		head := make([]byte, 2)
		for i := range head {
			head[i], _ = d.in.ReadByte()
		}
		payload := make([]byte, head[1])
		for i := range payload {
			payload[i], _ = d.in.ReadByte()
		}
		switch head[0] {
		case 0x82:
			got = append(got, payload...)
		case 0x8A:
			if string(payload) != "hi" {
				t.Errorf("pong %q", payload)
			}
		default:
			t.Fatalf("frame %x %x", head, payload)
		}
	}
	if fmt.Sprintf("%x", got) != "2002000040020003" {
		t.Errorf("got %x", got)
	}
	d, _ = open("mqtt")
	d.send(frame(1, "")) // 6.0.0-1; without bytes that would stay unread, and make the end a reset
	if b, err := d.in.Peek(4); err != nil || b[0] != 0x88 || b[2] != 3 || b[3] != 0xeb {
		t.Errorf("want close 1003, got %x, %v", b, err)
	}
	if _, err := io.Copy(io.Discard, d.in); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection stays open")
	}
	d, _ = open("mqtt")
	d.send(frame(2, all)) // 6.0.0-2: several packets in one
	for got = nil; len(got) < 8; {
		head := make([]byte, 2)
		if _, err := io.ReadFull(d.in, head); err != nil || head[0] != 0x82 || head[1] > 8 {
			t.Fatalf("frame %x, %v", head, err)
		}
		payload := make([]byte, head[1])
		if _, err := io.ReadFull(d.in, payload); err != nil {
			t.Fatal(err)
		}
		got = append(got, payload...)
	}
	if fmt.Sprintf("%x", got) != "2002000040020003" {
		t.Errorf("got %x", got)
	}
	if _, head := open("soap"); !strings.HasPrefix(head, "HTTP/1.1 400") { // 6.0.0-3
		t.Error(head)
	}
}

// A connection that says nothing, or half of a CONNECT, ends in time (3.1.4).
func TestConnectInTime(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{ConnectTimeout: 300 * time.Millisecond})
	silent, half := dial(t, w.server.Addr()), dial(t, w.server.Addr())
	half.send([]byte{0x10, 20, 0, 4})
	silent.wantEnd()
	half.wantEnd()
}
