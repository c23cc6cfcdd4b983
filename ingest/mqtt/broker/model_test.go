package broker_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/milepost/milepost/ingest/mqtt/broker"
)

// A device as the specification wants it: it keeps identifiers of QoS 2 over connections and crashes of the server, answers a PUBREL
// of one it does not know, and acknowledges late, or not before the connection is gone.
type device struct {
	id     string
	qos    byte
	p      *peer // nil: not connected
	owed   []broker.Delivery
	seen   map[uint16]bool // QoS 2 identifiers received and not released
	got    map[string]int  // payload → times it was handed to the application
	late   []string        // in the order of first arrival
	window uint16
}

func (d *device) pull() {
	for _, m := range d.p.s.Pull(nil, 7) {
		switch {
		case m.Release:
			delete(d.seen, m.PacketID)
		case m.QoS == 2:
			if !d.seen[m.PacketID] {
				d.hand(m)
			}
			d.seen[m.PacketID] = true
		case m.QoS == 1:
			d.hand(m)
		default:
			continue
		}
		d.owed = append(d.owed, m)
	}
}

func (d *device) hand(m broker.Delivery) {
	if d.got[string(m.Payload)]++; d.got[string(m.Payload)] == 1 {
		d.late = append(d.late, string(m.Payload))
	}
}

// answer acknowledges the oldest n: PUBREC in order, as it must.
func (d *device) answer(n int) {
	n = min(n, len(d.owed))
	d.p.ack(d.owed[:n])
	d.owed = d.owed[n:]
}

// No acknowledged message of QoS 1 or 2 is lost to a persistent session, none of QoS 2 comes twice, and the order of each
// publisher's messages holds, whatever connections, restarts and crashes happen.
func TestSessionsSurviveAnything(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { surviveAnything(t, seed) })
	}
}

func surviveAnything(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, broker.Limits{InFlight: 5 + rng.IntN(30)})
	devices := make([]*device, 4)
	for i := range devices {
		devices[i] = &device{id: fmt.Sprintf("d%d", i), qos: byte(1 + i%2), seen: map[uint16]bool{}, got: map[string]int{}}
	}
	join := func(d *device) {
		d.window = uint16(1 + rng.IntN(40))
		p, _ := w.connect(broker.Connect{ClientID: d.id, Expiry: 1 << 20, ReceiveMaximum: d.window})
		d.p, d.owed = p, nil
	}
	for _, d := range devices {
		join(d)
		d.p.sub(d.qos, "t/#")
	}
	type sent struct {
		payload string
		ticket  broker.Ticket
		acked   bool
	}
	const lost = 1 << 62
	var all []*sent
	ack := func() {
		for _, s := range all {
			s.acked = s.acked || s.ticket != lost && w.b.Durable(s.ticket)
		}
	}
	for step := range 1500 {
		d := devices[rng.IntN(len(devices))]
		switch n := rng.IntN(100); {
		case n < 50:
			s := &sent{payload: fmt.Sprintf("%d-%s", step, strings.Repeat("p", rng.IntN(200)))}
			r, err := w.b.Publish(&broker.Message{Topic: []byte("t/" + fmt.Sprint(step%3)), QoS: 2, Payload: []byte(s.payload)})
			if err != nil || r.Matched != len(devices) || r.Refused != 0 {
				t.Fatalf("step %d: %+v, %v", step, r, err)
			}
			s.ticket = r.Ticket
			all = append(all, s)
		case n < 80:
			if d.p != nil {
				d.pull()
				d.answer(rng.IntN(8))
			}
		case n < 86:
			if d.p != nil {
				d.p.s.Disconnect(broker.Unspecified, true)
				d.p = nil
			} else {
				join(d)
			}
		case n < 90:
			join(d) // takes over, if it is connected
		case n < 97:
			if len(all) > 0 && all[len(all)-1].ticket != lost {
				w.wait(all[len(all)-1].ticket)
			}
		case n < 98:
			w.restart()
			for _, s := range all {
				s.acked = s.acked || s.ticket != lost
				s.ticket = lost // of an earlier broker
			}
			for _, d := range devices {
				d.p = nil
			}
		case n < 99:
			ack()
			w.crash(seed*10000 + uint64(step))
			for _, s := range all {
				s.ticket = lost // what was not acknowledged may be lost
			}
			for _, d := range devices {
				d.p = nil
			}
		}
	}
	for _, s := range all {
		if s.ticket != lost {
			w.wait(s.ticket)
			s.acked = true
		}
	}
	for _, d := range devices {
		join(d)
		for idle := 0; idle < 3; {
			n := len(d.owed)
			d.pull()
			if len(d.owed) == n {
				idle++
				w.publish(broker.Message{Topic: []byte("$barrier"), Payload: []byte("x"), Retain: true, QoS: 1})
			} else {
				idle = 0
			}
			d.answer(100)
		}
		for _, s := range all {
			n := d.got[s.payload]
			if s.acked && n == 0 {
				t.Errorf("%s (QoS %d) never got the acknowledged %.12s", d.id, d.qos, s.payload)
			}
			if d.qos == 2 && n > 1 {
				t.Errorf("%s got %.12s %d times", d.id, s.payload, n)
			}
		}
		last := -1
		for _, m := range d.late {
			var step int
			if _, err := fmt.Sscanf(m, "%d-", &step); err != nil {
				t.Fatal(err)
			}
			if step < last {
				t.Errorf("%s got message %d after %d", d.id, step, last)
			}
			last = step
		}
		d.p.leave()
	}
	if t.Failed() {
		t.Logf("seed %d", seed)
	}
}

// A client repeats a QoS 2 message until it hears PUBREC. Whenever the server crashes, the subscriber has it once
// (MQTT-4.3.3-10).
func TestInboundExactlyOnceThroughCrashes(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	w := newWorld(t, broker.Limits{})
	sub := w.lasting("sub")
	sub.sub(2, "x")
	sub.leave()
	pub := w.lasting("pub")
	const messages = 60
	crashes := 0
	for i := range messages {
		id := uint16(1 + i%3)
		m := broker.Message{Topic: []byte("x"), QoS: 2, Payload: fmt.Appendf(nil, "m%d", i)}
		for acknowledged := false; !acknowledged; {
			if dup, ticket := pub.s.Received(id); dup {
				w.wait(ticket)
			} else {
				m.From, m.PacketID = pub.s, id
				r, err := w.b.Publish(&m)
				if err != nil {
					t.Fatal(err)
				}
				if rng.IntN(3) == 0 {
					crashes++
					w.crash(uint64(i))
					pub = w.lasting("pub")
					continue
				}
				w.wait(r.Ticket)
			}
			acknowledged = true
			if rng.IntN(3) == 0 {
				crashes++
				w.crash(uint64(i))
				pub = w.lasting("pub")
			}
		}
		_, ticket := pub.s.Released(id)
		w.wait(ticket)
	}
	var expect []string
	for i := range messages {
		expect = append(expect, fmt.Sprintf("x=m%d q2", i))
	}
	want(t, fmt.Sprintf("after %d crashes", crashes), w.lasting("sub").take(), strings.Join(expect, "; "))
}
