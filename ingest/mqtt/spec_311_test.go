package mqtt_test

import (
	"fmt"
	"testing"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/mqtt"
	"github.com/milepost/milepost/ingest/mqtt/packet"
)

// What MQTT 3.1.1 has of its own, or says in another way than MQTT 5. Numbers are 3.1.1's.
func TestSpec311(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{Users: []mqtt.User{
		{Name: "u", Password: "p", Vehicle: "v1"}, {Name: "gateway", Password: "p"},
	}})
	with := func(user string, clean bool) func(*packet.Connect) {
		return func(c *packet.Connect) {
			c.Clean, c.HasUser, c.User, c.HasPassword, c.Password = clean, true, []byte(user), true, []byte("p")
		}
	}
	join := func(id string, clean, present bool, change ...func(*packet.Connect)) *peer {
		t.Helper()
		p := w.peer(packet.V311)
		if a := p.hello(id, append(change, with("gateway", clean))...); a.Code != packet.Accepted || a.Present != present {
			t.Fatalf("%s: %+v", id, a)
		}
		return p
	}
	pub := join("pub", true, false)
	post := func(topic, payload string, retain bool) {
		t.Helper()
		pub.publish5(packet.Publish{Topic: []byte(topic), QoS: 1, ID: 1, Retain: retain, Payload: []byte(payload)})
		pub.wantAnswer(packet.PUBACK, 1, 0)
	}

	// 3.1.2-4, -5, -6, 3.2.2-1, -2, -3: a session without clean session stays; one with is new, and is gone with its connection.
	p := join("s", false, false)
	p.subscribe(1, packet.Filter{Filter: []byte("fleet/v1/a"), QoS: 1})
	p.goodbye()
	post("fleet/v1/a", "one", false)
	p = join("s", false, true)
	if m := p.message(); string(m.Payload) != "one" || m.QoS != 1 {
		t.Errorf("%+v", m)
	}
	p.goodbye()
	p = join("s", true, false)
	p.subscribe(1, packet.Filter{Filter: []byte("fleet/v1/a"), QoS: 1})
	p.goodbye()
	post("fleet/v1/a", "two", false)
	p = join("s", false, false)
	p.ping()

	// 3.3.1-8, -9, -12: retained for a new subscription, and not for one that is there. 3.1.2-7: it belongs to no session.
	post("fleet/v1/r", "kept", true)
	p.subscribe(2, packet.Filter{Filter: []byte("fleet/v1/r")})
	if m := p.message(); !m.Retain || string(m.Payload) != "kept" {
		t.Errorf("%+v", m)
	}
	post("fleet/v1/r", "live", true)
	if m := p.message(); m.Retain || string(m.Payload) != "live" {
		t.Errorf("%+v", m)
	}
	p.subscribe(3, packet.Filter{Filter: []byte("fleet/v1/r")}) // 3.8.4-3: again for one that is made again
	if m := p.message(); !m.Retain || string(m.Payload) != "live" {
		t.Errorf("%+v", m)
	}

	// 3.10.4-4, -5: UNSUBACK has no codes, whatever there was.
	for i, f := range []string{"fleet/v1/r", "never"} {
		un := packet.Subscribe{ID: uint16(10 + i), Filters: []packet.Filter{{Filter: []byte(f)}}}
		p.send(un.Append(nil, packet.UNSUBSCRIBE, packet.V311))
		if body := p.answer(packet.UNSUBACK); body != fmt.Sprintf("\x00%c", 10+i) {
			t.Errorf("UNSUBACK %x", body)
		}
	}

	// 3.3.5-2: what a client may not publish is acknowledged; it is a dead letter.
	own := w.joined(packet.V311, "own", with("u", true))
	own.publish5(packet.Publish{Topic: []byte("fleet/v2/a"), QoS: 1, ID: 1})
	own.wantAnswer(packet.PUBACK, 1, 0)
	own.publish5(packet.Publish{Topic: []byte("fleet/v2/a"), QoS: 2, ID: 2})
	own.wantAnswer(packet.PUBREC, 2, 0)
	if n := len(w.letters()); n != 2 {
		t.Errorf("%d dead letters, want 2", n)
	}
	// 3.8.4-5, 3.9.3-2: the one code of failure.
	if codes := own.subscribe(3, packet.Filter{Filter: []byte("fleet/v2/#")}, packet.Filter{Filter: []byte("a#")}, packet.Filter{Filter: []byte("fleet/v1/#"), QoS: 2}); string(codes) != "\x80\x80\x02" {
		t.Errorf("SUBACK %x", codes)
	}

	// 3.1.2-8, 3.14.4-3: a will for who is lost, none for who says DISCONNECT.
	p.subscribe(4, packet.Filter{Filter: []byte("fleet/v1/will")})
	will := func(c *packet.Connect) {
		c.HasWill, c.Will = true, packet.Will{Topic: []byte("fleet/v1/will"), Payload: append([]byte("of "), c.ClientID...)}
	}
	join("polite", true, false, will).goodbye()
	_ = join("lost", true, false, will).conn.Close()
	if m := p.message(); string(m.Payload) != "of lost" {
		t.Errorf("%+v", m)
	}
	p.ping()
}
