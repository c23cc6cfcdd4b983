package broker_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/milepost/milepost/ingest/mqtt/broker"
)

// MQTT-2.2.1-4, 4.3.2-1, 4.3.3-1: packet identifiers are never 0 and never in use, also when they have all been used.
func TestPacketIdentifiersAreFree(t *testing.T) {
	w := newWorld(t, broker.Limits{})
	a := w.clean("a")
	a.sub(2, "x")
	var kept []uint16 // never acknowledged
	inUse := map[uint16]bool{}
	publish := func(qos byte) broker.Delivery {
		t.Helper()
		if _, err := w.b.Publish(&broker.Message{Topic: []byte("x"), QoS: qos}); err != nil {
			t.Fatal(err)
		}
		ds := a.s.Pull(nil, 2)
		if len(ds) != 1 || ds[0].PacketID == 0 || inUse[ds[0].PacketID] || ds[0].Dup {
			t.Fatalf("%s of identifier %d, in use: %v", describe(ds), ds[0].PacketID, kept)
		}
		return ds[0]
	}
	for i := range 66_000 {
		d := publish(1)
		if i%7000 == 0 {
			kept = append(kept, d.PacketID)
			inUse[d.PacketID] = true
			continue
		}
		a.s.Puback(d.PacketID, 0)
	}
	d := publish(2)
	a.s.Pubrec(d.PacketID, 0)
	a.s.Pull(nil, 2) // its PUBREL
	if inUse[d.PacketID] = true; publish(1).PacketID == d.PacketID {
		t.Error("an identifier that waits for PUBCOMP was used")
	}
}

// MQTT-3.8.4-4: a subscription that takes another's place loses nothing of what is published meanwhile.
func TestResubscribingLosesNothing(t *testing.T) {
	w := newWorld(t, broker.Limits{})
	a := w.clean("a")
	a.sub(1, "x/+")
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() { // waited for below
		defer close(ended)
		for qos := byte(0); ; qos ^= 1 {
			select {
			case <-stop:
				return
			default:
				a.s.Subscribe([]broker.Subscription{{Filter: "x/+", QoS: 1 + qos, RetainHandling: 2}}, nil)
			}
		}
	}()
	for i := range 5000 {
		r, err := w.b.Publish(&broker.Message{Topic: []byte("x/y"), QoS: 1})
		if err != nil || r.Matched != 1 || r.Refused != 0 {
			t.Errorf("message %d: %+v, %v", i, r, err)
			break
		}
	}
	close(stop)
	<-ended
}

// MQTT-3.10.4-3: what was begun when its subscription ended is completed, over connections too.
func TestUnsubscribedWhileInFlight(t *testing.T) {
	w := newWorld(t, broker.Limits{})
	a := w.lasting("a")
	a.sub(2, "x")
	w.send("x 1 one")
	w.send("x 2 two")
	want(t, "first", describe(a.pull()), "x=one q1; x=two q2")
	a.s.Unsubscribe([]string{"x"}, nil)
	a.s.Disconnect(broker.Unspecified, true)
	w.restart()
	a = w.lasting("a")
	ds := a.pull()
	want(t, "again", describe(ds), "x=one q1 dup; x=two q2 dup")
	a.ack(ds)
	want(t, "release", describe(a.pull()), "pubrel 2")
}

// MQTT-4.4.0-1: nothing is sent again on the same connection.
func TestNothingAgainOnTheSameConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTimeless(t, broker.Limits{})
		defer w.close()
		a := w.lasting("a")
		a.sub(2, "x")
		w.send("x 1 one")
		w.send("x 2 two")
		w.send("x 2 three")
		ds := a.pull()
		a.s.Pubrec(ds[1].PacketID, 0)
		want(t, "release", a.got(), "pubrel 2")
		time.Sleep(24 * time.Hour)
		want(t, "a day later", a.got(), "")
	})
}

// MQTT-3.1.2-24, -25 of a client that comes back and takes less: what it was sent and did not acknowledge is done with.
func TestTooLargeForTheNextConnection(t *testing.T) {
	w := newWorld(t, broker.Limits{})
	a := w.lasting("a")
	a.sub(2, "x")
	big := strings.Repeat("b", 100)
	for _, m := range []string{"x 1 " + big, "x 2 " + big, "x 1 small"} {
		w.send(m)
	}
	want(t, "first", a.got(), fmt.Sprintf("x=%s q1; x=%s q2; x=small q1", big, big))
	a, _ = w.connect(broker.Connect{ClientID: "a", Expiry: 3600, MaxPacket: 50, ReceiveMaximum: 1})
	ds := a.pull()
	want(t, "smaller", describe(ds), "x=small q1 dup")
	a.ack(ds)
	want(t, "then", w.lasting("a").got(), "")
}

// MQTT-4.3.3-7 and 3.3.2-5: a message that has expired goes on if its delivery has begun, and is dropped if it has not.
func TestExpiryAndDeliveriesThatHaveBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTimeless(t, broker.Limits{})
		defer w.close()
		a, _ := w.connect(broker.Connect{ClientID: "a", Expiry: 3600, ReceiveMaximum: 2})
		a.sub(2, "x")
		for i := range 3 {
			w.publish(broker.Message{Topic: []byte("x"), QoS: byte(2 - i%2), Payload: fmt.Append(nil, i), Expires: true, Expiry: 10})
		}
		want(t, "first", a.got(), "x=0 q2 expiry=10; x=1 q1 expiry=10")
		time.Sleep(time.Minute)
		a = w.lasting("a")
		ds := a.pull()
		want(t, "again", describe(ds), "x=0 q2 dup expiry=0; x=1 q1 dup expiry=0")
		a.ack(ds)
		want(t, "release", a.got(), "pubrel 1")
	})
}

// MQTT-4.3.3-10: of two connections that have received the same message, the later publishes it; the earlier does nothing any more.
func TestReceivedByTwoConnections(t *testing.T) {
	w := newWorld(t, broker.Limits{})
	sub := w.lasting("sub")
	sub.sub(2, "x")
	for _, late := range []bool{false, true} {
		old := w.lasting("pub")
		m := broker.Message{Topic: []byte("x"), Payload: fmt.Append(nil, late), QoS: 2, PacketID: 5}
		received := func(p *peer, dup bool) {
			t.Helper()
			if got, ticket := p.s.Received(5); got != dup {
				t.Errorf("late %v: received before: %v", late, got)
			} else {
				w.wait(ticket)
			}
		}
		publish := func(p *peer, matched int) {
			t.Helper()
			if m.From = p.s; w.publish(m).Matched != matched {
				t.Errorf("late %v: published as if it were another connection's", late)
			}
		}
		received(old, false)
		p := w.lasting("pub")
		if late { // the earlier publishes before the later receives
			publish(old, 1)
			received(p, true)
		} else {
			received(p, false)
			publish(old, 0)
			publish(p, 1)
			publish(old, 0)
		}
		received(p, true)
		want(t, "delivered", sub.take(), fmt.Sprintf("x=%v q2", late))
		w.crash(1)
		sub = w.lasting("sub")
		p = w.lasting("pub")
		received(p, true)
		known, ticket := p.s.Released(5)
		w.wait(ticket)
		if !known {
			t.Error("not known")
		}
	}
	// What is not for the broker is noted all the same.
	p := w.lasting("pub")
	if dup, _ := p.s.Received(6); dup {
		t.Error("received before")
	}
	w.wait(p.s.Note(6))
	w.crash(2)
	if dup, _ := w.lasting("pub").s.Received(6); !dup {
		t.Error("forgotten")
	}
}

// A retained message counts with the levels of its topic, which cost memory however short they are.
func TestDeepTopicsCount(t *testing.T) {
	w := newWorld(t, broker.Limits{RetainedBytes: 1 << 20})
	taken := 0
	for i := range 10 {
		topic := fmt.Sprint(i) + strings.Repeat("/", 5000)
		if r := w.publish(broker.Message{Topic: []byte(topic), QoS: 1, Retain: true, Payload: []byte("x")}); !r.NotRetained {
			taken++
		}
	}
	if taken != 3 {
		t.Errorf("%d topics of 5000 levels in a MiB", taken)
	}
	for i := range 10 { // and gives back what it counted
		w.publish(broker.Message{Topic: []byte(fmt.Sprint(i) + strings.Repeat("/", 5000)), QoS: 1, Retain: true})
	}
	if r := w.publish(broker.Message{Topic: []byte(strings.Repeat("/", 10_000)), QoS: 1, Retain: true, Payload: []byte("x")}); r.NotRetained {
		t.Error("there is room again")
	}
}
