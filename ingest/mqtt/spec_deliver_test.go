package mqtt_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/mqtt"
	"github.com/milepost/milepost/ingest/mqtt/packet"
)

// acknowledge answers a message of QoS 1 or 2.
func (p *peer) acknowledge(t packet.Type, id uint16) {
	p.t.Helper()
	a := packet.Ack{Type: t, ID: id}
	p.send(a.Append(nil, p.version))
}

// Topic aliases of a client: all up to the maximum work (MQTT-3.3.2-12), they may be set anew, and they end with the connection
// (MQTT-3.3.2-7).
func TestSpecTopicAliases(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	sub := w.joined(packet.V5, "sub", func(c *packet.Connect) { // MQTT-3.1.2-26, 3.3.2-11: the server sends none, whatever a client takes
		c.Properties.Has, c.Properties.TopicAliasMaximum = packet.SetOf(packet.TopicAliasMaximum), 5
	})
	bare := w.joined(packet.V5, "bare") // MQTT-3.1.2-27
	sub.subscribe(1, packet.Filter{Filter: []byte("t/+")})
	bare.subscribe(1, packet.Filter{Filter: []byte("t/+")})
	p := w.peer(packet.V5)
	most := p.hello("pub").Properties.TopicAliasMaximum
	if most == 0 {
		t.Fatal("no topic aliases")
	}
	with := func(alias uint16, topic string) {
		p.publish5(packet.Publish{Topic: []byte(topic), Properties: packet.Properties{Has: packet.SetOf(packet.TopicAlias), TopicAlias: alias}})
	}
	wants := func(topic string) {
		t.Helper()
		for _, s := range []*peer{sub, bare} {
			if m := s.message(); string(m.Topic) != topic || m.Properties.Has != 0 {
				t.Errorf("got %+v, want %s", m, topic)
			}
		}
	}
	for alias := range most {
		with(alias+1, fmt.Sprint("t/", alias+1))
		wants(fmt.Sprint("t/", alias+1))
	}
	for alias := range most {
		with(alias+1, "")
		wants(fmt.Sprint("t/", alias+1))
	}
	with(1, "t/new")
	wants("t/new")
	with(1, "")
	wants("t/new")
	p.goodbye()
	p = w.joined(packet.V5, "pub", lasting(100))
	with(1, "")
	p.wantDisconnect(packet.ProtocolError)
}

// QoS 1 and 2 from a client, with repetitions of every kind. Answers have the message's identifier and codes of their own (MQTT-2.2.1-5,
// 3.7.2-1); what is delivered comes without DUP (MQTT-4.3.2-2, 4.3.3-2).
func TestSpecRepetitions(t *testing.T) {
	for _, version := range []byte{packet.V311, packet.V5} {
		w := newWorld(t, ingest.Limits{}, mqtt.Config{})
		sub := w.joined(version, "sub")
		sub.subscribe(1, packet.Filter{Filter: []byte("plain"), QoS: 2})
		heard := func(want string) { // MQTT-3.3.1-3: the publisher's DUP is not passed on
			t.Helper()
			m := sub.message()
			if string(m.Payload) != want || m.Dup || m.ID == 0 {
				t.Errorf("version %d: got %+v, want %s", version, m, want)
			}
			if m.QoS == 1 {
				sub.acknowledge(packet.PUBACK, m.ID)
				return
			}
			sub.acknowledge(packet.PUBREC, m.ID)
			sub.wantAnswer(packet.PUBREL, m.ID, 0) // MQTT-4.3.3-4
			sub.acknowledge(packet.PUBCOMP, m.ID)
		}
		p := w.joined(version, "pub", lasting(1000))
		// MQTT-4.3.2-5: after PUBACK the identifier is a new message's, DUP or not.
		for i := range 3 {
			p.publish5(packet.Publish{Topic: []byte("plain"), QoS: 1, ID: 4, Dup: i > 0, Payload: fmt.Append(nil, i)})
			p.wantAnswer(packet.PUBACK, 4, 0)
			heard(fmt.Sprint(i))
		}
		// MQTT-4.3.3-8 to -12: a log record, a plain message and one of Basic Ingest are stored and delivered once each, through a new
		// connection and a server that was stopped.
		topics := []string{"fleet/v1/telemetry", "plain", "$aws/rules/r/fleet/v2/telemetry"}
		for range 2 { // the second time with the same identifiers, after PUBCOMP
			for i, topic := range topics {
				m := reading(topic, 2, uint16(10+i))
				p.publish5(m)
				p.wantAnswer(packet.PUBREC, m.ID, 0)
			}
			heard(`{"speed":1}`)
			for range 2 {
				_ = p.conn.Close()
				p = w.peer(version)
				if a := p.hello("pub", lasting(1000)); !a.Present {
					t.Fatal("the session is gone")
				}
				for i, topic := range topics {
					m := reading(topic, 2, uint16(10+i))
					m.Dup = true
					p.publish5(m)
					p.wantAnswer(packet.PUBREC, m.ID, 0)
				}
				w.restart() // the second round is behind it
			}
			p = w.joined(version, "pub", lasting(1000))
			for i := range topics {
				p.acknowledge(packet.PUBREL, uint16(10+i))
				p.wantAnswer(packet.PUBCOMP, uint16(10+i), 0)
			}
			sub = w.joined(version, "sub") // the restart has ended its session
			sub.subscribe(1, packet.Filter{Filter: []byte("plain"), QoS: 2})
		}
		want := []string{`v1 {"speed":1}`, `v1 {"speed":1}`, `v2 {"speed":1}`, `v2 {"speed":1}`}
		got := w.stored()
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("version %d: stored (-want +got):\n%s", version, diff)
		}
		// MQTT-4.3.3-13: a message that has expired on arrival goes through all the same.
		late := packet.Publish{Topic: []byte("plain"), QoS: 2, ID: 20, Payload: []byte("late"), Properties: packet.Properties{Has: packet.SetOf(packet.MessageExpiry)}}
		p.publish5(late)
		p.wantAnswer(packet.PUBREC, 20, 0)
		p.acknowledge(packet.PUBREL, 20)
		p.wantAnswer(packet.PUBCOMP, 20, 0)
		if version == packet.V311 { // which has no expiry
			heard("late")
			continue
		}
		// MQTT-4.3.3-9: a PUBREC that refuses ends it, and the identifier is a new message's.
		for range 2 {
			m := reading("fleet/v3/telemetry", 2, 30)
			m.Payload = []byte("nonsense")
			p.publish5(m)
			p.wantAnswer(packet.PUBREC, 30, packet.PayloadFormatInvalid)
		}
		p.acknowledge(packet.PUBREL, 30)
		p.wantAnswer(packet.PUBCOMP, 30, packet.PacketIDNotFound)
		if n := len(w.letters()); n != 2 {
			t.Errorf("%d dead letters, want 2", n)
		}
		sub.ping() // nothing has come that was not expected
	}
}

// A connection that ends while its QoS 2 message is being stored: the repetition is acknowledged, and subscribers get it once
// (MQTT-4.3.3-10).
func TestSpecTakenOverWhileStoring(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	sub := w.joined(packet.V5, "sub")
	sub.subscribe(1, packet.Filter{Filter: []byte("fleet/v1/telemetry"), QoS: 2})
	old := w.joined(packet.V5, "pub", lasting(1000))
	waiting := w.log.Hold()
	old.publish5(reading("fleet/v1/telemetry", 2, 5))
	<-waiting
	p := w.joined(packet.V5, "pub", lasting(1000))
	old.wantDisconnect(packet.SessionTakenOver)
	m := reading("fleet/v1/telemetry", 2, 5)
	m.Dup = true
	p.publish5(m)
	w.log.Release()
	p.wantAnswer(packet.PUBREC, 5, 0)
	p.acknowledge(packet.PUBREL, 5)
	p.wantAnswer(packet.PUBCOMP, 5, 0)
	p.publish5(packet.Publish{Topic: []byte("fleet/v1/telemetry"), QoS: 1, ID: 6, Payload: []byte(`{"speed":2}`)})
	p.wantAnswer(packet.PUBACK, 6, 0)
	got := []string{string(sub.message().Payload), string(sub.message().Payload)}
	if diff := cmp.Diff([]string{`{"speed":1}`, `{"speed":2}`}, got); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
	// The repetition comes when the first is stored: it is not stored again.
	waiting = w.log.Hold()
	m = reading("fleet/v1/telemetry", 2, 7)
	p.publish5(m)
	<-waiting
	again := w.joined(packet.V5, "pub", lasting(1000))
	p.wantDisconnect(packet.SessionTakenOver)
	w.log.Release()
	if got := sub.message(); string(got.Payload) != `{"speed":1}` {
		t.Errorf("%+v", got)
	}
	before := len(w.stored())
	m.Dup = true
	again.publish5(m)
	again.wantAnswer(packet.PUBREC, 7, 0)
	if n := len(w.stored()); n != before {
		t.Errorf("%d stored, %d before the repetition", n, before)
	}
	sub.ping()
}

// A quota that is used up holds back messages of QoS 1 and 2 and nothing else, in both directions (MQTT-3.3.4-9, -10, 4.9.0-1, -2, -3).
func TestSpecQuota(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{ReceiveMaximum: 2})
	sub := w.joined(packet.V5, "sub", func(c *packet.Connect) {
		c.Properties.Has, c.Properties.ReceiveMaximum = packet.SetOf(packet.ReceiveMaximum), 1
	})
	sub.subscribe(1, packet.Filter{Filter: []byte("q/#"), QoS: 2})
	pub := w.joined(packet.V5, "pub")
	for id := uint16(1); id <= 3; id++ {
		pub.publish5(packet.Publish{Topic: []byte("q/x"), QoS: 1, ID: id, Payload: fmt.Append(nil, id)})
		pub.wantAnswer(packet.PUBACK, id, 0)
	}
	first := sub.message()
	sub.ping()
	sub.subscribe(2, packet.Filter{Filter: []byte("other"), QoS: 1})
	pub.publish5(packet.Publish{Topic: []byte("q/x"), Payload: []byte("zero")})
	if m := sub.message(); string(m.Payload) != "zero" {
		t.Errorf("got %+v, want the message of QoS 0", m)
	}
	sub.publish5(packet.Publish{Topic: []byte("nobody"), QoS: 1, ID: 9}) // its own are acknowledged
	sub.wantAnswer(packet.PUBACK, 9, packet.NoMatchingSubscribers)
	sub.acknowledge(packet.PUBACK, first.ID)
	if m := sub.message(); string(first.Payload) != "1" || string(m.Payload) != "2" || m.Dup {
		t.Errorf("got %q, then %+v", first.Payload, m)
	}
	// A client that has used up the server's: pings and subscriptions go through.
	waiting := w.log.Hold()
	for id := uint16(4); id <= 5; id++ {
		pub.publish5(reading("fleet/v1/telemetry", 1, id))
	}
	<-waiting
	pub.ping()
	pub.subscribe(6, packet.Filter{Filter: []byte("z")})
	w.log.Release()
	pub.wantAnswer(packet.PUBACK, 4, 0)
	pub.wantAnswer(packet.PUBACK, 5, 0)
}

// Strings arrive as they were sent: a byte order mark is a character like any other (MQTT-1.5.4-3), and 65,535 bytes are not too many
// (MQTT-4.7.3-3).
func TestSpecStrings(t *testing.T) {
	w := newWorld(t, ingest.Limits{MaxMessage: 300_000}, mqtt.Config{})
	for _, version := range []byte{packet.V311, packet.V5} {
		sub, pub := w.joined(version, "sub"), w.joined(version, "pub")
		longest := "s/" + strings.Repeat("ü", 32766) + "x"
		for i, topic := range []string{"s/\ufeffx", "s/x\ufeff", "s/x", longest, strings.Repeat("/", 65535)} {
			id := uint16(i + 1)
			filter := topic
			if i == 4 {
				filter = "/#" // filters have at most 128 levels
			}
			if codes := sub.subscribe(id, packet.Filter{Filter: []byte(filter)}); codes[0] != 0 {
				t.Fatalf("%.20q: SUBACK %x", topic, codes)
			}
			m := packet.Publish{Topic: []byte(topic), QoS: 1, ID: id, Payload: []byte("p")}
			if version == packet.V5 {
				m.Properties = packet.Properties{
					Has: packet.SetOf(packet.UserProperty, packet.ResponseTopic, packet.CorrelationData), ResponseTopic: []byte("\ufeffr"),
					CorrelationData: make([]byte, 65535), User: []packet.Pair{{Name: []byte("\ufeff"), Value: []byte(longest)}},
				}
			}
			pub.publish5(m)
			pub.wantAnswer(packet.PUBACK, id, 0)
			got := sub.message()
			want := m
			want.QoS, want.ID = 0, 0
			if a, b := want.Append(nil, version), got.Append(nil, version); !bytes.Equal(a, b) { // cmp.Diff takes seconds for strings like these
				t.Errorf("%.20q: got %.200q, want %.200q", topic, b, a)
			}
			sub.ping() // one subscription, one message: the mark is not skipped
		}
	}
}

// Subscription options and identifiers, as they come over the wire.
func TestSpecSubscriptions(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	p, pub := w.joined(packet.V5, "p"), w.joined(packet.V5, "pub")
	post := func(from *peer, topic, payload string, retain bool) {
		t.Helper()
		from.publish5(packet.Publish{Topic: []byte(topic), Payload: []byte(payload), Retain: retain})
		from.ping()
	}
	add := func(id uint16, number uint32, f ...packet.Filter) []byte {
		t.Helper()
		s := packet.Subscribe{ID: id, Filters: f}
		if number > 0 {
			s.Properties = packet.Properties{Has: packet.SetOf(packet.SubscriptionID), SubscriptionIDs: []uint32{number}}
		}
		p.send(s.Append(nil, packet.SUBSCRIBE, packet.V5))
		return []byte(p.answer(packet.SUBACK))
	}
	got := func() string {
		t.Helper()
		m := p.message()
		ids := slices.Sorted(slices.Values(m.Properties.SubscriptionIDs))
		return fmt.Sprintf("%s %s retain=%v %v", m.Topic, m.Payload, m.Retain, ids)
	}
	want := func(what, want string) {
		t.Helper()
		if g := got(); g != want {
			t.Errorf("%s: got %s, want %s", what, g, want)
		}
	}
	// MQTT-3.3.4-3, -4: all identifiers of what overlaps, in one message. MQTT-3.3.1-12, -13: retain as any of them wants it.
	add(1, 7, packet.Filter{Filter: []byte("o/#")})
	add(2, 268435455, packet.Filter{Filter: []byte("o/+"), RetainAsPublished: true})
	add(3, 0, packet.Filter{Filter: []byte("o/a")})
	post(pub, "o/a", "one", false)
	want("overlap", "o/a one retain=false [7 268435455]")
	post(pub, "o/b/c", "two", true)
	want("not as published", "o/b/c two retain=false [7]")
	post(pub, "o/a", "three", true)
	want("as published", "o/a three retain=true [7 268435455]")
	// MQTT-3.8.3-3: no local.
	add(4, 0, packet.Filter{Filter: []byte("l"), NoLocal: true})
	post(p, "l", "mine", false)
	post(pub, "l", "yours", false)
	want("no local", "l yours retain=false []")
	// MQTT-3.3.1-9, -10, -11, 3.8.4-3, -4: retain handling, and a subscription that takes another's place.
	post(pub, "r", "kept", true)
	add(5, 0, packet.Filter{Filter: []byte("r"), RetainHandling: 2})
	add(6, 0, packet.Filter{Filter: []byte("r"), RetainHandling: 1})
	p.ping() // nothing came
	add(7, 9, packet.Filter{Filter: []byte("r")})
	want("handling 0, again", "r kept retain=true [9]")
	post(pub, "r", "live", false)
	want("one subscription", "r live retain=false [9]")
	// MQTT-3.8.4-2, -5, -6, 2.2.1-6, 3.9.3-1: one SUBACK for several filters, which count one after the other.
	if body := add(8, 0, packet.Filter{Filter: []byte("m"), QoS: 2}, packet.Filter{Filter: []byte("m"), QoS: 1}, packet.Filter{Filter: []byte("#/m")}); string(body) != "\x00\x08\x00\x02\x01\x8f" {
		t.Errorf("SUBACK %x", body)
	}
	pub.publish5(packet.Publish{Topic: []byte("m"), QoS: 2, ID: 1, Payload: []byte("x")})
	pub.wantAnswer(packet.PUBREC, 1, 0)
	if m := p.message(); m.QoS != 1 {
		t.Errorf("QoS %d of the later of two subscriptions to m", m.QoS)
	}
	// MQTT-3.10.4-5, -6, 2.2.1-6, 3.11.3-1, -2: the same for UNSUBSCRIBE, which compares filters and not what they match (MQTT-3.10.4-1).
	un := packet.Subscribe{ID: 9, Filters: []packet.Filter{{Filter: []byte("m")}, {Filter: []byte("m")}, {Filter: []byte("#")}, {Filter: []byte("o/#")}}}
	p.send(un.Append(nil, packet.UNSUBSCRIBE, packet.V5))
	if body := p.answer(packet.UNSUBACK); body != "\x00\x09\x00\x00\x11\x11\x00" {
		t.Errorf("UNSUBACK %x", body)
	}
	post(pub, "o/b/c", "gone", false)
	p.ping()
}
