package broker_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/milepost/milepost/ingest/mqtt/broker"
)

// The normative statements of MQTT 5.0 that a broker without a network can hold, each with its story. docs/mqtt-conformance.md lists them.
func TestSpecification(t *testing.T) {
	for _, c := range []struct {
		ids  string
		test func(*testing.T, *world)
	}{
		{"MQTT-3.1.2-4 clean start discards the session", func(t *testing.T, w *world) {
			a := w.lasting("a")
			a.sub(1, "x")
			a.leave()
			w.send("x 1 queued")
			b, present := w.connect(broker.Connect{ClientID: "a", Clean: true, Expiry: 60})
			want(t, "delivered", b.take(), "")
			if r := w.send("x 1 new"); present || r.Matched != 0 {
				t.Errorf("present %v, %+v", present, r)
			}
		}},
		{"MQTT-3.1.2-5 MQTT-3.1.2-23 MQTT-4.5.0-1 the session is resumed with what came meanwhile", func(t *testing.T, w *world) {
			a := w.lasting("a")
			a.sub(2, "x")
			a.leave()
			w.send("x 1 one")
			w.send("x 2 two")
			w.send("x 0 zero") // not queued: QoS 0
			b, present := w.connect(broker.Connect{ClientID: "a", Expiry: 60})
			if !present {
				t.Error("no session present")
			}
			want(t, "delivered", b.take(), "x=one q1; x=two q2")
		}},
		{"MQTT-3.1.2-6 no session: a new one", func(t *testing.T, w *world) {
			if _, present := w.connect(broker.Connect{ClientID: "a", Expiry: 60}); present {
				t.Error("present")
			}
		}},
		{"MQTT-3.1.2-7 MQTT-3.1.2-8 MQTT-3.1.2-14 MQTT-3.1.2-15 a will is published and retained", func(t *testing.T, w *world) {
			for _, retain := range []bool{false, true} {
				obs := w.clean("observer")
				obs.sub(1, "will")
				a, _ := w.connect(broker.Connect{ClientID: "a", Clean: true, Will: &broker.Will{
					Message: broker.Message{Topic: []byte("will"), Payload: []byte("gone"), QoS: 1, Retain: retain},
				}})
				a.s.Disconnect(broker.Unspecified, true)
				want(t, "live", obs.take(), "will=gone q1")
				late := w.clean("late")
				late.sub(1, "will")
				want(t, "retained", late.take(), map[bool]string{true: "will=gone q1 retain"}[retain])
			}
		}},
		{"MQTT-3.1.2-10 MQTT-3.14.4-3 DISCONNECT with reason 0 removes the will", func(t *testing.T, w *world) {
			obs := w.clean("observer")
			obs.sub(1, "will")
			a, _ := w.connect(broker.Connect{ClientID: "a", Expiry: 60, Will: &broker.Will{Message: broker.Message{Topic: []byte("will")}}})
			a.s.Disconnect(0, false)
			a, _ = w.connect(broker.Connect{ClientID: "a", Expiry: 60})
			a.s.Disconnect(broker.Unspecified, true)
			want(t, "live", obs.take(), "")
		}},
		{"MQTT-3.1.2-24 MQTT-3.1.2-25 what is too large for the client is dropped as if it were sent", func(t *testing.T, w *world) {
			a, _ := w.connect(broker.Connect{ClientID: "a", Expiry: 60, MaxPacket: 20, ReceiveMaximum: 1})
			a.sub(1, "x")
			w.send("x 1 " + strings.Repeat("l", 12)) // 1+1+2+1+2+1+12 = 20
			w.send("x 1 " + strings.Repeat("L", 13))
			w.send("x 0 " + strings.Repeat("L", 15))
			w.send("x 1 short")
			want(t, "delivered", a.take(), "x="+strings.Repeat("l", 12)+" q1; x=short q1")
		}},
		{"MQTT-3.1.4-3 the older connection of a client id is ended", func(t *testing.T, w *world) {
			a := w.lasting("a")
			a.sub(1, "x")
			w.send("x 1 one")
			b := w.lasting("a")
			if k := a.kicked(); string(k) != string([]byte{broker.TakenOver}) {
				t.Errorf("kicked %#x", k)
			}
			want(t, "older", a.take(), "")
			a.s.Disconnect(broker.Unspecified, true) // its end comes late and ends nothing
			want(t, "newer", b.take(), "x=one q1")
		}},
		{"MQTT-3.1.4-3 take-over and wills (3.1.4)", func(t *testing.T, w *world) {
			for _, c := range []struct {
				clean bool
				delay uint32
				want  string
			}{
				{false, 0, "will=gone q0"},
				{false, 9, ""},
				{true, 0, "will=gone q0"},
				{true, 9, "will=gone q0"},
			} {
				obs := w.clean("observer")
				obs.sub(0, "will")
				w.connect(broker.Connect{ClientID: "a", Clean: true, Expiry: 60, Will: &broker.Will{
					Delay: c.delay, Message: broker.Message{Topic: []byte("will"), Payload: []byte("gone")},
				}})
				w.connect(broker.Connect{ClientID: "a", Clean: c.clean, Expiry: 60})
				want(t, "will", obs.take(), c.want)
			}
		}},
		{"MQTT-3.3.1-1 MQTT-4.3.2-2 MQTT-4.3.2-3 MQTT-4.3.3-2 MQTT-4.3.3-3 MQTT-4.4.0-1 MQTT-4.6.0-1 what was not acknowledged comes again, in order, same identifiers", func(t *testing.T, w *world) {
			a := w.lasting("a")
			a.sub(2, "x")
			for _, m := range []string{"x 1 one", "x 2 two", "x 1 three", "x 2 four"} {
				w.send(m)
			}
			ds := a.pull()
			want(t, "first", describe(ds), "x=one q1; x=two q2; x=three q1; x=four q2")
			a.s.Puback(ds[0].PacketID, 0)
			a.s.Pubrec(ds[1].PacketID, 0)
			a.s.Disconnect(broker.Unspecified, true)
			b := w.lasting("a")
			again := b.pull()
			want(t, "again", describe(again), "pubrel 2; x=three q1 dup; x=four q2 dup")
			if again[1].PacketID != ds[2].PacketID || again[2].PacketID != ds[3].PacketID {
				t.Errorf("identifiers %d and %d, were %d and %d", again[1].PacketID, again[2].PacketID, ds[2].PacketID, ds[3].PacketID)
			}
		}},
		{"MQTT-3.3.1-2 MQTT-4.3.1-1 QoS 0 comes once and without DUP", func(t *testing.T, w *world) {
			a := w.lasting("a")
			a.sub(2, "x")
			w.send("x 0 one")
			want(t, "first", a.got(), "x=one q0")
			want(t, "second", w.lasting("a").got(), "")
		}},
		{"MQTT-3.3.1-5 MQTT-3.3.1-8 a retained message replaces, another does not", func(t *testing.T, w *world) {
			w.send("x 1 one retain")
			w.send("x 0 two retain")
			w.send("x 1 three")
			w.send("x 1 -")
			a := w.clean("a")
			a.sub(1, "x")
			want(t, "retained", a.take(), "x=two q0 retain")
		}},
		{"MQTT-3.3.1-6 MQTT-3.3.1-7 an empty payload removes, and is passed on", func(t *testing.T, w *world) {
			w.send("x 1 one retain")
			a := w.clean("a")
			a.sub(1, "x")
			w.send("x 1 - retain")
			want(t, "live", a.take(), "x=one q1 retain; x= q1")
			b := w.clean("b")
			b.sub(1, "x")
			want(t, "retained", b.take(), "")
		}},
		{"MQTT-3.3.1-9 MQTT-3.3.1-10 MQTT-3.3.1-11 MQTT-3.8.4-3 MQTT-3.8.4-4 retain handling", func(t *testing.T, w *world) {
			w.send("x 1 one retain")
			a := w.clean("a")
			for i, c := range []struct {
				handling byte
				want     string
			}{{2, ""}, {1, ""}, {0, "x=one q1 retain"}, {0, "x=one q1 retain"}} {
				a.subscribe(broker.Subscription{Filter: "x", QoS: 1, RetainHandling: c.handling})
				if got := a.take(); got != c.want {
					t.Errorf("%d: got %q, want %q", i, got, c.want)
				}
			}
			a.s.Unsubscribe([]string{"x"}, nil)
			a.subscribe(broker.Subscription{Filter: "x", QoS: 1, RetainHandling: 1})
			want(t, "new again", a.take(), "x=one q1 retain")
			if r := w.send("x 1 live"); r.Matched != 1 {
				t.Errorf("%+v: one subscription, however often it was made", r)
			}
		}},
		{"MQTT-3.3.1-12 MQTT-3.3.1-13 retain as published", func(t *testing.T, w *world) {
			a, b := w.clean("a"), w.clean("b")
			a.sub(1, "x")
			b.subscribe(broker.Subscription{Filter: "x", QoS: 1, RetainAsPublished: true})
			w.send("x 1 one retain")
			w.send("x 1 two")
			want(t, "not as published", a.take(), "x=one q1; x=two q1")
			want(t, "as published", b.take(), "x=one q1 retain; x=two q1")
		}},
		{"MQTT-3.3.2-4 MQTT-3.3.2-15 MQTT-3.3.2-16 MQTT-3.3.2-17 MQTT-3.3.2-18 MQTT-3.3.2-20 properties are passed on unaltered", func(t *testing.T, w *world) {
			a, b := w.clean("a"), w.lasting("b")
			a.sub(1, "x")
			b.sub(1, "x")
			b.leave()
			props := []byte{0x01, 1, 0x26, 0, 1, 'k', 0, 1, 'v', 0x26, 0, 1, 'k', 0, 1, 'u'}
			w.publish(broker.Message{Topic: []byte("x"), QoS: 1, Properties: props})
			want(t, "memory", a.take(), "x= q1 props=01012600016b0001762600016b000175")
			want(t, "disk", w.lasting("b").take(), "x= q1 props=01012600016b0001762600016b000175")
		}},
		{"MQTT-3.3.4-2 MQTT-3.3.4-3 MQTT-3.3.4-4 3.3.5-1 of 3.1.1: overlapping subscriptions: one copy, highest QoS, all identifiers", func(t *testing.T, w *world) {
			a, b := w.clean("a"), w.clean("b")
			a.subscribe(
				broker.Subscription{Filter: "x/#", ID: 7, QoS: 0}, broker.Subscription{Filter: "x/+", ID: 8, QoS: 2},
				broker.Subscription{Filter: "x/y", QoS: 1}, broker.Subscription{Filter: "z", ID: 9, QoS: 1},
			)
			b.sub(1, "#", "x/y")
			w.send("x/y 1 one")
			w.send("x/y 2 two")
			want(t, "a", a.take(), "x/y=one q1 ids=[7 8]; x/y=two q2 ids=[7 8]")
			want(t, "b", b.take(), "x/y=one q1; x/y=two q1")
		}},
		{"MQTT-3.3.4-9 MQTT-4.9.0-1 the receive maximum holds, also for what comes again", func(t *testing.T, w *world) {
			a, _ := w.connect(broker.Connect{ClientID: "a", Expiry: 60, ReceiveMaximum: 2})
			a.sub(2, "x")
			for _, m := range []string{"x 1 one", "x 2 two", "x 1 three", "x 0 zero", "x 1 four"} {
				w.send(m)
			}
			ds := a.pull()
			want(t, "first", describe(ds), "x=zero q0; x=one q1; x=two q2")
			a.ack(ds[2:])
			rel := a.pull()
			want(t, "PUBREC frees nothing", describe(rel), "pubrel 2")
			a.ack(rel)
			want(t, "PUBCOMP does", a.got(), "x=three q1")
			b, _ := w.connect(broker.Connect{ClientID: "a", Expiry: 60, ReceiveMaximum: 1})
			ds = b.pull()
			want(t, "again", describe(ds), "x=one q1 dup")
			b.ack(ds)
			want(t, "rest", b.take(), "x=three q1 dup; x=four q1")
		}},
		{"MQTT-3.8.3-3 no local", func(t *testing.T, w *world) {
			a, b := w.clean("a"), w.clean("b")
			a.subscribe(broker.Subscription{Filter: "x", NoLocal: true})
			for _, p := range []*peer{a, b} {
				w.publish(broker.Message{Topic: []byte("x"), Payload: []byte(p.s.ClientID()), From: p.s})
			}
			want(t, "a", a.take(), "x=b q0")
		}},
		{"MQTT-3.8.4-8 the QoS is the lower of both", func(t *testing.T, w *world) {
			for qos, wanted := range []string{"x=m q0; x=m q0; x=m q0", "x=m q0; x=m q1; x=m q1", "x=m q0; x=m q1; x=m q2"} {
				a := w.clean("a")
				a.sub(byte(qos), "x")
				var got []string
				for _, m := range []string{"x 0 m", "x 1 m", "x 2 m"} {
					w.send(m)
					got = append(got, a.take())
				}
				want(t, "delivered", strings.Join(got, "; "), wanted)
			}
		}},
		{"MQTT-3.10.4-1 MQTT-3.10.4-2 MQTT-3.10.4-3 unsubscribe: nothing new, what was begun goes on", func(t *testing.T, w *world) {
			a := w.clean("a")
			a.sub(1, "x/+", "x/y")
			w.send("x/y 1 one")
			codes, _ := a.s.Unsubscribe([]string{"x/+", "x/z", "x/y"}, nil)
			if string(codes) != string([]byte{broker.Success, broker.NoSubscription, broker.Success}) {
				t.Errorf("codes %#x", codes)
			}
			w.send("x/y 1 two")
			want(t, "delivered", a.take(), "x/y=one q1")
		}},
		{"MQTT-4.4.0-2 a refusal by the client ends the delivery", func(t *testing.T, w *world) {
			a := w.lasting("a")
			a.sub(2, "x")
			w.send("x 1 one")
			w.send("x 2 two")
			ds := a.pull()
			a.s.Puback(ds[0].PacketID, broker.QuotaExceeded)
			a.s.Pubrec(ds[1].PacketID, broker.QuotaExceeded)
			want(t, "now", a.got(), "")
			want(t, "later", w.lasting("a").got(), "")
		}},
		{"MQTT-4.3.3-4 MQTT-4.3.3-5 MQTT-4.3.3-6 PUBREL follows PUBREC until PUBCOMP", func(t *testing.T, w *world) {
			a := w.lasting("a")
			a.sub(2, "x")
			w.send("x 2 one")
			a.ack(a.pull())
			want(t, "first", a.got(), "pubrel 1")
			a = w.lasting("a")
			want(t, "again", a.got(), "pubrel 1")
			if !a.s.Pubcomp(1, 0) || a.s.Pubcomp(1, 0) {
				t.Error("PUBCOMP")
			}
			want(t, "then", w.lasting("a").got(), "")
		}},
		{"MQTT-3.6.2-1 PUBREC of an unknown identifier", func(t *testing.T, w *world) {
			a := w.lasting("a")
			a.s.Pubrec(77, 0)
			want(t, "answer", a.got(), "pubrel 77 reason=0x92")
			if a.s.Puback(77, 0) {
				t.Error("PUBACK of an unknown identifier")
			}
		}},
		{"MQTT-4.3.3-10 MQTT-4.3.3-12 an inbound QoS 2 identifier is new until it is received and after it is released", func(t *testing.T, w *world) {
			a := w.lasting("a")
			received := func() bool { dup, _ := a.s.Received(5); return dup }
			if received() || !received() {
				t.Error("received")
			}
			w.publish(broker.Message{Topic: []byte("x"), QoS: 2, From: a.s, PacketID: 5})
			w.restart()
			a = w.lasting("a")
			if !received() {
				t.Error("the restart forgot it")
			}
			known, ticket := a.s.Released(5)
			w.wait(ticket)
			if again, _ := a.s.Released(5); !known || again {
				t.Error("released")
			}
			w.crash(1)
			if a = w.lasting("a"); received() {
				t.Error("released and still there")
			}
		}},
		{"MQTT-4.6.0-4 PUBRELs in the order of the PUBRECs", func(t *testing.T, w *world) {
			a := w.lasting("a")
			a.sub(2, "x")
			for range 3 {
				w.send("x 2 m")
			}
			a.pull()
			for _, id := range []uint16{3, 1, 2} {
				a.s.Pubrec(id, 0)
			}
			want(t, "releases", a.got(), "pubrel 3; pubrel 1; pubrel 2")
		}},
		{"MQTT-4.6.0-5 MQTT-4.6.0-6 the order of a topic", func(t *testing.T, w *world) {
			a, b := w.clean("a"), w.lasting("b")
			var all []string
			a.sub(1, "x")
			b.sub(1, "x")
			for i := range 700 { // more than a session has in memory
				m := "n" + strings.Repeat("i", i%7) + string(rune('a'+i%26))
				if _, err := w.b.Publish(&broker.Message{Topic: []byte("x"), QoS: 1, Payload: []byte(m)}); err != nil {
					t.Fatal(err)
				}
				all = append(all, "x="+m+" q1")
			}
			want(t, "memory", a.take(), strings.Join(all, "; "))
			want(t, "disk", b.take(), strings.Join(all, "; "))
		}},
		{"MQTT-4.7.2-1 wildcards do not match topics that begin with $", func(t *testing.T, w *world) {
			w.send("$SYS/x 1 one retain")
			a := w.clean("a")
			a.sub(1, "#", "+/x", "+/#")
			w.send("$SYS/x 1 two")
			want(t, "wild", a.take(), "")
			a.sub(1, "$SYS/#")
			want(t, "named", a.take(), "$SYS/x=one q1 retain")
		}},
		{"MQTT-4.7.3-4 topics are compared byte by byte", func(t *testing.T, w *world) {
			a := w.clean("a")
			a.sub(0, "/x", "X", "x/")
			w.send("x 0 no")
			w.send("/x 0 one")
			w.send("x/ 0 two")
			want(t, "delivered", a.take(), "/x=one q0; x/=two q0")
		}},
		{"MQTT-4.8.2-3 MQTT-3.3.4-5 a shared subscription has its own QoS, and one member gets the message", func(t *testing.T, w *world) {
			a, b := w.clean("a"), w.clean("b")
			a.subscribe(broker.Subscription{Filter: "$share/g/x", QoS: 0, ID: 3}, broker.Subscription{Filter: "x", QoS: 1})
			b.subscribe(broker.Subscription{Filter: "$share/g/x", QoS: 1})
			w.send("x 1 one")
			w.send("x 1 two")
			ga, gb := a.take(), b.take()
			want(t, "b", gb, "x=two q1")
			want(t, "a: its shared copy is apart from its own", ga, "x=one q0 ids=[3]; x=one q1; x=two q1")
		}},
		{"MQTT-4.8.2-4 MQTT-4.8.2-5 MQTT-4.8.2-6 what was sent to one member goes to no other", func(t *testing.T, w *world) {
			a, b := w.lasting("a"), w.clean("b")
			a.sub(2, "$share/g/x")
			w.send("x 2 one")
			w.send("x 1 two")
			ds := a.pull()
			a.s.Puback(ds[1].PacketID, broker.QuotaExceeded)
			a.s.Disconnect(broker.Unspecified, true)
			b.sub(2, "$share/g/x")
			w.connect(broker.Connect{ClientID: "a", Clean: true})
			want(t, "b", b.take(), "")
		}},
		{"4.8.2 shared subscriptions get no retained messages", func(t *testing.T, w *world) {
			w.send("x 1 one retain")
			a := w.clean("a")
			a.sub(1, "$share/g/x")
			want(t, "retained", a.take(), "")
		}},
	} {
		t.Run(c.ids, func(t *testing.T) { c.test(t, newWorld(t, broker.Limits{})) })
	}
}

// The statements that are about time.
func TestSpecificationOverTime(t *testing.T) {
	for _, c := range []struct {
		ids  string
		test func(*testing.T, *world)
	}{
		{"MQTT-3.1.2-8 a will waits for its delay", func(t *testing.T, w *world) {
			obs := w.clean("observer")
			obs.sub(1, "will")
			will := &broker.Will{Delay: 10, Message: broker.Message{Topic: []byte("will"), Payload: []byte("gone"), QoS: 1}}
			a, _ := w.connect(broker.Connect{ClientID: "a", Expiry: 60, Will: will})
			a.s.Disconnect(broker.Unspecified, true)
			time.Sleep(9 * time.Second)
			want(t, "before", obs.take(), "")
			time.Sleep(2 * time.Second)
			want(t, "after", obs.take(), "will=gone q1")
		}},
		{"MQTT-3.1.2-8 the end of the session comes before the delay's", func(t *testing.T, w *world) {
			obs := w.clean("observer")
			obs.sub(1, "will")
			will := &broker.Will{Delay: 100, Message: broker.Message{Topic: []byte("will"), Payload: []byte("gone"), QoS: 1}}
			a, _ := w.connect(broker.Connect{ClientID: "a", Expiry: 10, Will: will})
			a.s.Disconnect(broker.Unspecified, true)
			time.Sleep(9 * time.Second)
			want(t, "before", obs.take(), "")
			time.Sleep(2 * time.Second)
			want(t, "after", obs.take(), "will=gone q1")
		}},
		{"MQTT-3.1.3-9 who comes back before the delay has no will published", func(t *testing.T, w *world) {
			obs := w.clean("observer")
			obs.sub(1, "will")
			will := &broker.Will{Delay: 10, Message: broker.Message{Topic: []byte("will")}}
			a, _ := w.connect(broker.Connect{ClientID: "a", Expiry: 60, Will: will})
			a.s.Disconnect(broker.Unspecified, true)
			time.Sleep(9 * time.Second)
			w.connect(broker.Connect{ClientID: "a", Expiry: 60})
			time.Sleep(time.Minute)
			want(t, "will", obs.take(), "")
		}},
		{"MQTT-3.1.3-9 unless it comes with clean start", func(t *testing.T, w *world) {
			obs := w.clean("observer")
			obs.sub(0, "will")
			will := &broker.Will{Delay: 10, Message: broker.Message{Topic: []byte("will"), Payload: []byte("gone")}}
			a, _ := w.connect(broker.Connect{ClientID: "a", Expiry: 60, Will: will})
			a.s.Disconnect(broker.Unspecified, true)
			w.clean("a")
			want(t, "will", obs.take(), "will=gone q0")
		}},
		{"MQTT-3.1.2-8 a restart: wills wait for the grace, and for who comes back", func(t *testing.T, w *world) {
			obs := w.lasting("observer")
			obs.sub(1, "will/+")
			for _, id := range []string{"a", "b", "c", "d"} {
				expiry := uint32(60)
				if id == "c" || id == "d" {
					expiry = 0
				}
				w.connect(broker.Connect{ClientID: id, Expiry: expiry, Will: &broker.Will{
					Message: broker.Message{Topic: []byte("will/" + id), Payload: []byte("gone"), QoS: 1},
				}})
			}
			time.Sleep(time.Second)
			w.restart()
			time.Sleep(20 * time.Second)
			obs = w.lasting("observer")
			w.lasting("a") // its session goes on
			want(t, "before", obs.take(), "")
			w.lasting("c") // had no session to go on with: its will comes before it
			want(t, "c", obs.take(), "will/c=gone q1")
			time.Sleep(20 * time.Second)
			got := obs.take()
			if got != "will/b=gone q1; will/d=gone q1" && got != "will/d=gone q1; will/b=gone q1" {
				t.Errorf("after: %s", got)
			}
			w.restart()
			time.Sleep(time.Minute)
			want(t, "once", w.lasting("observer").take(), "")
		}},
		{"MQTT-4.1.0-1 MQTT-4.1.0-2 MQTT-3.1.2-23 the session lives until its expiry", func(t *testing.T, w *world) {
			a, _ := w.connect(broker.Connect{ClientID: "a", Expiry: 10})
			a.sub(1, "x")
			time.Sleep(time.Minute)
			a.leave()
			time.Sleep(9 * time.Second)
			if r := w.send("x 1 m"); r.Matched != 1 {
				t.Errorf("before: %+v", r)
			}
			time.Sleep(2 * time.Second)
			if r := w.send("x 1 m"); r.Matched != 0 {
				t.Errorf("after: %+v", r)
			}
			time.Sleep(time.Second)
			if n := w.memory.keys(); n != 1 { // the format
				t.Errorf("%d keys are left", n)
			}
		}},
		{"MQTT-3.1.2-23 the expiry goes on through a restart", func(t *testing.T, w *world) {
			a, _ := w.connect(broker.Connect{ClientID: "a", Expiry: 10})
			a.sub(1, "x")
			a.leave()
			time.Sleep(6 * time.Second)
			w.restart()
			time.Sleep(5 * time.Second)
			if r := w.send("x 1 m"); r.Matched != 0 {
				t.Errorf("after: %+v", r)
			}
		}},
		{"3.14.2.2.2 DISCONNECT may change the expiry", func(t *testing.T, w *world) {
			a, _ := w.connect(broker.Connect{ClientID: "a", Expiry: 10})
			a.s.SetExpiry(0)
			a.leave()
			if _, present := w.connect(broker.Connect{ClientID: "a", Expiry: 10}); present {
				t.Error("present")
			}
		}},
		{"MQTT-3.3.2-5 MQTT-3.3.2-6 message expiry, in memory, on disk and retained", func(t *testing.T, w *world) {
			a, b := w.clean("a"), w.lasting("b")
			a.sub(1, "x")
			b.sub(1, "x")
			b.leave()
			for _, expiry := range []uint32{10, 100} {
				w.publish(broker.Message{Topic: []byte("x"), QoS: 1, Retain: true, Expires: true, Expiry: expiry})
			}
			w.publish(broker.Message{Topic: []byte("r"), QoS: 1, Retain: true, Payload: []byte("m"), Expires: true, Expiry: 10})
			w.publish(broker.Message{Topic: []byte("r/s"), QoS: 1, Retain: true, Payload: []byte("m"), Expires: true, Expiry: 100})
			time.Sleep(30 * time.Second)
			want(t, "memory", a.take(), "x= q1 expiry=70")
			want(t, "disk", w.lasting("b").take(), "x= q1 expiry=70")
			a.sub(1, "r/#")
			want(t, "retained", a.take(), "r/s=m q1 retain expiry=70")
			time.Sleep(2 * time.Minute) // swept
			w.restart()
			c := w.clean("c")
			c.sub(1, "r/#")
			want(t, "retained, after a restart", c.take(), "")
		}},
	} {
		t.Run(c.ids, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newTimeless(t, broker.Limits{})
				c.test(t, w)
				w.close()
			})
		})
	}
}
