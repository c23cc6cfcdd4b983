package broker_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/ingest/mqtt/broker"
)

const group = "$share/g/x"

// gets acknowledges what comes until it is so many messages, and describes them in the order of their payloads.
func (p *peer) gets(n int) string {
	p.w.t.Helper()
	var got []string
	late := time.After(10 * time.Second)
	for {
		for m := range strings.SplitSeq(p.take(), "; ") {
			if m != "" {
				got = append(got, m)
			}
		}
		if len(got) >= n {
			slices.Sort(got)
			return strings.Join(got, "; ")
		}
		select {
		case <-p.wakes:
		case <-late:
			p.w.t.Fatalf("%d of %d messages came: %.300q", len(got), n, got)
		}
	}
}

// lost ends the connection as the network would.
func (p *peer) lost() { p.s.Disconnect(broker.Unspecified, true) }

// What a member of a shared subscription leaves behind (MQTT-4.8.2-4, -5, -6 and the rules between them).
func TestSharedMembersLeave(t *testing.T) {
	for _, c := range []struct {
		story string
		test  func(*testing.T, *world)
	}{
		{"MQTT-4.8.2-5 a session without a queue on disk: QoS 1 goes to another member, QoS 2 that was sent does not", func(t *testing.T, w *world) {
			a, _ := w.connect(broker.Connect{ClientID: "a", Clean: true, ReceiveMaximum: 3})
			a.sub(2, group, "own")
			for _, m := range []string{"x 1 acknowledged", "x 1 in-flight", "x 2 sent", "x 1 queued", "x 2 queued-too", "own 1 own", "x 0 zero"} {
				w.send(m)
			}
			ds := a.pull()
			want(t, "a", describe(ds), "x=zero q0; x=acknowledged q1; x=in-flight q1; x=sent q2")
			b := w.clean("b")
			b.sub(2, group)
			a.s.Puback(ds[1].PacketID, 0)
			a.lost()
			want(t, "b", b.gets(3), "x=in-flight q1; x=queued q1; x=queued-too q2")
			w.send("x 1 next")
			want(t, "b", b.gets(1), "x=next q1")
		}},
		{"a session with a queue on disk, ended by its client, by a clean start and by the server", func(t *testing.T, w *world) {
			b := w.lasting("b")
			for _, end := range []func(a *peer){
				func(a *peer) { a.s.SetExpiry(0); a.leave() },
				func(a *peer) { a.leave(); w.clean("a").leave() },
				func(*peer) { w.b.Kick("a", 0x98, true) },
			} {
				a, _ := w.connect(broker.Connect{ClientID: "a", Expiry: 3600, ReceiveMaximum: 2})
				a.sub(2, group, "own")
				for _, m := range []string{"x 1 in-flight", "x 2 sent", "x 1 queued", "x 2 queued-too", "own 1 own"} {
					w.send(m)
				}
				want(t, "a", describe(a.pull()), "x=in-flight q1; x=sent q2")
				b.sub(2, group)
				end(a)
				want(t, "b", b.gets(3), "x=in-flight q1; x=queued q1; x=queued-too q2")
				b.s.Unsubscribe([]string{group}, nil)
			}
		}},
		{"more than fits into memory, to members of other QoS", func(t *testing.T, w *world) {
			a, b := w.lasting("a"), w.clean("b")
			a.sub(2, group)
			var all []string
			for i := range 900 {
				if _, err := w.b.Publish(&broker.Message{Topic: []byte("x"), QoS: byte(1 + i%2), Payload: fmt.Appendf(nil, "m%03d", i)}); err != nil {
					t.Fatal(err)
				}
				all = append(all, fmt.Sprintf("x=m%03d q1", i))
			}
			b.sub(1, group)
			a.s.SetExpiry(0)
			a.leave()
			want(t, "b", b.gets(900), strings.Join(all, "; "))
		}},
		{"MQTT-3.10.4-3 who unsubscribes keeps what it has, until its session ends", func(t *testing.T, w *world) {
			a, b := w.lasting("a"), w.clean("b")
			a.sub(2, group)
			for _, m := range []string{"x 1 one", "x 2 two", "x 1 three"} {
				w.send(m)
			}
			b.sub(2, group)
			a.s.Unsubscribe([]string{group}, nil)
			w.send("x 1 four")
			want(t, "b", b.gets(1), "x=four q1")
			want(t, "a", describe(a.pull()), "x=one q1; x=two q2; x=three q1")
			a.lost()
			a = w.lasting("a")
			ds := a.pull()
			want(t, "a, again", describe(ds), "x=one q1 dup; x=two q2 dup; x=three q1 dup")
			a.ack(ds[:1])
			a.s.SetExpiry(0)
			a.leave()
			want(t, "b", b.gets(1), "x=three q1")
			want(t, "b", b.take(), "")
		}},
		{"MQTT-4.8.2-4 who comes back gets the rest of its deliveries, after a restart too", func(t *testing.T, w *world) {
			a, b := w.lasting("a"), w.lasting("b")
			a.sub(2, group)
			w.send("x 2 two")
			w.send("x 1 one")
			want(t, "a", describe(a.pull()), "x=two q2; x=one q1")
			b.sub(2, group)
			a.lost()
			w.restart()
			b = w.lasting("b")
			want(t, "b", b.take(), "")
			a = w.lasting("a")
			ds := a.pull()
			want(t, "a", describe(ds), "x=two q2 dup; x=one q1 dup")
			a.ack(ds)
			want(t, "a", describe(a.pull()), "pubrel 1")
		}},
		{"MQTT-4.8.2-6 what a member refused goes to nobody", func(t *testing.T, w *world) {
			a, b := w.lasting("a"), w.clean("b")
			a.sub(2, group)
			w.send("x 1 one")
			w.send("x 2 two")
			ds := a.pull()
			b.sub(2, group)
			a.s.Puback(ds[0].PacketID, broker.QuotaExceeded)
			a.s.Pubrec(ds[1].PacketID, broker.QuotaExceeded)
			a.s.SetExpiry(0)
			a.leave()
			w.send("x 1 marker")
			want(t, "b", b.gets(1), "x=marker q1")
		}},
		{"only members of the same group inherit", func(t *testing.T, w *world) {
			a, b := w.clean("a"), w.clean("b")
			a.sub(1, "$share/g/x/#", "$share/g/+", "$share/g/y")
			w.send("x/y 1 hash")
			w.send("z 1 plus")
			w.send("y 1 exact")
			b.sub(1, "$share/h/x/#", "$share/g/x/+", "$share/g/#", "x/#")
			a.lost()
			want(t, "b", b.take(), "")
			if n := w.dropped("share_ended"); n != 4 { // y matches two of a's
				t.Errorf("%v counted, want 4", n)
			}
		}},
		{"a server that closes hands what would be lost to members that keep a queue", func(t *testing.T, w *world) {
			a := w.clean("a")
			a.sub(1, group)
			w.send("x 1 one")
			b := w.lasting("b")
			b.sub(1, group)
			b.leave()
			w.restart()
			want(t, "b", w.lasting("b").gets(1), "x=one q1")
		}},
	} {
		t.Run(c.story, func(t *testing.T) {
			w := newWorld(t, broker.Limits{})
			w.close()
			w.registry = prometheus.NewRegistry()
			w.open()
			c.test(t, w)
		})
	}
}

// dropped returns how many messages were dropped for a reason.
func (w *world) dropped(reason string) float64 {
	w.t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	n := 0.0
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == "milepost_broker_dropped_total" && l.GetValue() == reason {
					n += m.GetCounter().GetValue()
				}
			}
		}
	}
	return n
}

// A member that never comes back: its messages go to another when its session expires, also when that happens after a restart.
func TestSharedMemberExpires(t *testing.T) {
	for _, restart := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newTimeless(t, broker.Limits{})
			defer w.close()
			a, _ := w.connect(broker.Connect{ClientID: "a", Expiry: 10})
			a.sub(2, group)
			w.publish(broker.Message{Topic: []byte("x"), QoS: 1, Payload: []byte("expires"), Expires: true, Expiry: 5})
			w.publish(broker.Message{Topic: []byte("x"), QoS: 1, Payload: []byte("waits"), Expires: true, Expiry: 100})
			w.send("x 1 in-flight")
			b, _ := w.connect(broker.Connect{ClientID: "b", Expiry: 3600})
			b.sub(2, group)
			a.lost()
			time.Sleep(9 * time.Second)
			want(t, "before", b.take(), "")
			if restart {
				b.leave()
				w.restart()
				b, _ = w.connect(broker.Connect{ClientID: "b", Expiry: 3600})
			}
			time.Sleep(2 * time.Second)
			want(t, "after", b.gets(2), "x=in-flight q1; x=waits q1 expiry=89")
			time.Sleep(time.Second)
			if n, subs := w.memory.keys(), w.b.Subscriptions("a"); subs != nil || n != 4 { // format, session and filter of b, barrier
				t.Errorf("restart %v: %d keys are left, subscriptions %v: %q", restart, n, subs, w.memory.kv)
			}
		})
	}
}

// Power is lost around the end of a member's session: no message of QoS 1 is lost to the group, and none of QoS 2 comes twice
// (MQTT-4.8.2-5).
func TestSharedMembersSurviveCrashes(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 7))
		w := newWorld(t, broker.Limits{})
		b := w.lasting("b")
		a, _ := w.connect(broker.Connect{ClientID: "a", Expiry: 3600, ReceiveMaximum: 40})
		a.sub(2, group)
		const n = 600 // three pieces
		var last broker.Ticket
		for i := range n {
			r, err := w.b.Publish(&broker.Message{Topic: []byte("x"), QoS: byte(1 + i%2), Payload: fmt.Appendf(nil, "m%03d", i)})
			if err != nil {
				t.Fatal(err)
			}
			last = r.Ticket
		}
		b.sub(2, group)
		w.wait(last)
		seen := map[string]int{}
		note := func(ds []broker.Delivery) {
			for _, d := range ds {
				if !d.Release {
					seen[string(d.Payload)]++
				}
			}
		}
		note(a.pull()) // sent and never acknowledged
		sent := len(seen)
		a.s.SetExpiry(0)
		a.leave()
		switch rng.IntN(3) {
		case 0:
			time.Sleep(time.Duration(rng.IntN(2000)) * time.Microsecond)
		case 1:
			w.wait(w.send("y 1 barrier").Ticket)
		}
		w.crash(seed)
		b = w.lasting("b")
		if a, present := w.connect(broker.Connect{ClientID: "a", Expiry: 3600}); present { // the crash took its end back
			a.s.SetExpiry(0)
			a.leave()
		}
		missing := func() (out []string) {
			for i := range n {
				p := fmt.Sprintf("m%03d", i)
				if seen[p] == 0 || i%2 == 0 && i < sent && seen[p] < 2 {
					out = append(out, p)
				}
			}
			return out
		}
		late := time.After(10 * time.Second)
		for len(missing()) > 0 {
			ds := b.pull()
			note(ds)
			b.ack(ds)
			if len(ds) > 0 {
				continue
			}
			select {
			case <-b.wakes:
			case <-late:
				t.Fatalf("seed %d: lost %v", seed, missing())
			}
		}
		for i := 1; i < n; i += 2 {
			if p := fmt.Sprintf("m%03d", i); seen[p] > 1 {
				t.Errorf("seed %d: %s of QoS 2 came %d times", seed, p, seen[p])
			}
		}
	}
}
