package broker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/ingest/mqtt/broker"
	"github.com/milepost/milepost/state"
)

// Every bound: what it refuses is the newest, and it is counted.
func TestBounds(t *testing.T) {
	big := strings.Repeat("b", 1000)
	for _, c := range []struct {
		name   string
		limits broker.Limits
		reason string
		test   func(*testing.T, *world)
	}{
		{"count of a queue on disk", broker.Limits{QueueCount: 2}, "queue_full", func(t *testing.T, w *world) {
			a := w.lasting("a")
			a.sub(1, "x")
			a.leave()
			w.send("x 1 one")
			w.send("x 1 two")
			if r := w.send("x 1 three"); r.Matched != 1 || r.Refused != 1 {
				t.Errorf("%+v", r)
			}
			w.restart()
			a = w.lasting("a")
			want(t, "kept", a.take(), "x=one q1; x=two q1")
			w.send("x 1 four")
			want(t, "room again", a.take(), "x=four q1")
		}},
		{"bytes of a queue in memory", broker.Limits{QueueBytes: 2500}, "queue_full", func(t *testing.T, w *world) {
			a := w.clean("a")
			a.sub(1, "x")
			for range 3 {
				w.send("x 1 " + big)
			}
			if ds := a.pull(); len(ds) != 2 {
				t.Errorf("%d deliveries", len(ds))
			}
		}},
		{"bytes on disk for all", broker.Limits{TotalBytes: 1500}, "disk_bound", func(t *testing.T, w *world) {
			for _, id := range []string{"a", "b"} {
				w.lasting(id).sub(1, "x")
			}
			if r := w.send("x 1 " + big); r.Refused != 1 {
				t.Errorf("%+v", r)
			}
			for _, id := range []string{"a", "b"} {
				w.lasting(id).take()
			}
			w.connect(broker.Connect{ClientID: "b", Clean: true})
			if r := w.send("x 1 " + big); r.Refused != 0 {
				t.Errorf("there is room again: %+v", r)
			}
		}},
		{"bytes in memory for all", broker.Limits{MemoryBytes: 1500}, "memory_bound", func(t *testing.T, w *world) {
			a, b := w.clean("a"), w.lasting("b")
			a.sub(1, "x")
			b.sub(1, "x")
			w.send("x 1 " + big)
			if r := w.send("x 1 " + big); r.Refused != 1 {
				t.Errorf("%+v", r)
			}
			if got := b.take(); strings.Count(got, "x=") != 2 {
				t.Errorf("the persistent session reads from disk: %.100s", got)
			}
			a.take()
			if r := w.send("x 1 " + big); r.Refused != 0 {
				t.Errorf("there is room again: %+v", r)
			}
		}},
		{"QoS 0 of a slow client", broker.Limits{QoS0Count: 2}, "qos0_full", func(t *testing.T, w *world) {
			a := w.clean("a")
			a.sub(0, "x")
			for _, m := range []string{"one", "two", "three"} {
				w.send("x 0 " + m)
			}
			want(t, "kept", a.take(), "x=one q0; x=two q0")
		}},
		{"retained messages", broker.Limits{Retained: 3}, "retained_bound", func(t *testing.T, w *world) { // one is the barrier's
			w.send("$barrier 1 x retain")
			w.send("x/1 1 one retain")
			w.send("x/2 1 two retain")
			if r := w.send("x/3 1 three retain"); !r.NotRetained {
				t.Errorf("%+v", r)
			}
			if r := w.send("x/2 1 new retain"); r.NotRetained {
				t.Errorf("a topic that has one: %+v", r)
			}
			w.send("x/1 1 - retain")
			if r := w.send("x/3 1 three retain"); r.NotRetained {
				t.Errorf("there is room again: %+v", r)
			}
		}},
		{"bytes of retained messages", broker.Limits{RetainedBytes: 2500}, "retained_bound", func(t *testing.T, w *world) {
			w.send("x/1 1 " + big + " retain")
			w.send("x/1 1 " + big + " retain") // in its own place
			w.send("x/2 1 " + big + " retain")
			if r := w.send("x/3 1 " + big + " retain"); !r.NotRetained {
				t.Errorf("%+v", r)
			}
		}},
		{"shared subscriptions go past who is full", broker.Limits{QueueCount: 1}, "", func(t *testing.T, w *world) {
			a, b := w.clean("a"), w.clean("b")
			a.sub(1, "$share/g/x")
			b.sub(1, "$share/g/x")
			w.send("x 1 one")
			w.send("x 1 two")
			want(t, "a", a.take(), "x=one q1")
			w.send("x 1 three")
			if r := w.send("x 1 four"); r.Refused != 1 {
				t.Errorf("both are full: %+v", r)
			}
			want(t, "a", a.take(), "x=three q1")
			want(t, "b", b.take(), "x=two q1")
		}},
		{"shared subscriptions prefer who is connected, then who keeps a queue", broker.Limits{}, "", func(t *testing.T, w *world) {
			a, b := w.lasting("a"), w.lasting("b")
			a.sub(1, "$share/g/x")
			b.sub(1, "$share/g/x")
			a.leave()
			w.send("x 1 one")
			w.send("x 1 two")
			want(t, "b", b.take(), "x=one q1; x=two q1")
			b.leave()
			w.send("x 1 three")
			w.send("x 1 four")
			want(t, "a", w.lasting("a").take(), "x=three q1")
			want(t, "b", w.lasting("b").take(), "x=four q1")
		}},
		{"sessions", broker.Limits{Sessions: 1}, "", func(t *testing.T, w *world) {
			a := w.clean("a")
			if _, _, err := w.b.Connect(broker.Connect{ClientID: "b"}, nobody{}); !errors.Is(err, broker.ErrBusy) {
				t.Errorf("got %v", err)
			}
			a.leave()
			w.clean("b")
		}},
		{"subscriptions", broker.Limits{Subscriptions: 1}, "", func(t *testing.T, w *world) {
			a := w.clean("a")
			codes := a.subscribe(broker.Subscription{Filter: "x"}, broker.Subscription{Filter: "y"}, broker.Subscription{Filter: "x", QoS: 1}, broker.Subscription{Filter: "x#"})
			if string(codes) != string([]byte{0, broker.QuotaExceeded, 1, broker.FilterInvalid}) {
				t.Errorf("%#x", codes)
			}
		}},
		{"another device's session", broker.Limits{}, "", func(t *testing.T, w *world) {
			w.connect(broker.Connect{ClientID: "a", Device: "truck-1", Expiry: 60})
			w.restart()
			for _, clean := range []bool{false, true} {
				if _, _, err := w.b.Connect(broker.Connect{ClientID: "a", Device: "truck-2", Clean: clean}, nobody{}); !errors.Is(err, broker.ErrOwner) {
					t.Errorf("got %v", err)
				}
			}
		}},
		{"kick", broker.Limits{}, "", func(t *testing.T, w *world) {
			a := w.lasting("a")
			a.sub(1, "x")
			if !w.b.Kick("a", 0x98, false) || string(a.kicked()) != "\x98" {
				t.Error("not kicked")
			}
			if r := w.send("x 1 one"); r.Matched != 1 {
				t.Error("its session is gone")
			}
			w.lasting("a")
			w.b.Kick("a", 0x98, true)
			if r := w.send("x 1 two"); r.Matched != 0 || w.b.Kick("a", 0x98, true) {
				t.Error("its session is still there")
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.limits)
			w.close()
			w.registry = prometheus.NewRegistry()
			w.open()
			c.test(t, w)
			if c.reason == "" {
				return
			}
			families, err := w.registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			counted := 0.0
			for _, f := range families {
				for _, m := range f.GetMetric() {
					for _, l := range m.GetLabel() {
						if l.GetValue() == c.reason {
							counted += m.GetCounter().GetValue()
						}
					}
				}
			}
			if counted == 0 && c.name != "count of a queue on disk" { // its restart began to count anew
				t.Error("not counted as " + c.reason)
			}
		})
	}
}

// Messages that expired while their session was away make room for newer ones.
func TestExpiredMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTimeless(t, broker.Limits{QueueCount: 3})
		defer w.close()
		a := w.lasting("a")
		a.sub(1, "x")
		a.leave()
		for range 3 {
			w.publish(broker.Message{Topic: []byte("x"), QoS: 1, Expires: true, Expiry: 5})
		}
		time.Sleep(10 * time.Second)
		if r := w.send("x 1 refused"); r.Refused != 1 {
			t.Errorf("%+v", r)
		}
		synctest.Wait()
		if r := w.send("x 1 one"); r.Refused != 0 {
			t.Errorf("%+v", r)
		}
		want(t, "delivered", w.lasting("a").take(), "x=one q1")
	})
}

// A full disk holds tickets back until there is room; a fenced store refuses for ever.
func TestDiskTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTimeless(t, broker.Limits{JournalBytes: 5000})
		a := w.lasting("a")
		a.sub(1, "x")
		w.memory.broken(state.ErrFull)
		r, err := w.b.Publish(&broker.Message{Topic: []byte("x"), QoS: 1, Payload: []byte("one")})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := w.b.Wait(ctx, r.Ticket); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		refused := 0
		for range 100 {
			r, err := w.b.Publish(&broker.Message{Topic: []byte("x"), QoS: 1, Payload: make([]byte, 200)})
			if err != nil {
				t.Fatal(err)
			}
			refused += r.Refused
		}
		if refused < 50 {
			t.Errorf("only %d refused while nothing could be written", refused)
		}
		if _, _, err := w.b.Connect(broker.Connect{ClientID: "b", Expiry: 60}, nobody{}); !errors.Is(err, broker.ErrBusy) {
			t.Errorf("connect: %v", err)
		}
		told := make(chan error, 1)
		w.b.After(r.Ticket, func(err error) { told <- err })
		w.memory.broken(nil)
		if err := <-told; err != nil || !w.b.Durable(r.Ticket) {
			t.Errorf("after: %v", err)
		}
		w.memory.broken(state.ErrFenced)
		r, err = w.b.Publish(&broker.Message{Topic: []byte("x"), QoS: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.b.Wait(t.Context(), r.Ticket); !errors.Is(err, state.ErrFenced) {
			t.Errorf("wait: %v", err)
		}
		if _, err = w.b.Publish(&broker.Message{Topic: []byte("x"), QoS: 1}); !errors.Is(err, state.ErrFenced) {
			t.Errorf("publish: %v", err)
		}
		if err := w.b.Close(); !errors.Is(err, state.ErrFenced) {
			t.Errorf("close: %v", err)
		}
		if err := w.b.Wait(t.Context(), r.Ticket+1); err == nil {
			t.Error("a ticket after close is durable")
		}
	})
}

// A connection is woken when there is something, and not while it has not looked.
func TestWake(t *testing.T) {
	w := newWorld(t, broker.Limits{})
	a, _ := w.connect(broker.Connect{ClientID: "a", Expiry: 60, ReceiveMaximum: 1})
	a.sub(2, "x")
	a.got()
	woken := func() bool {
		select {
		case <-a.wakes:
			return true
		case <-time.After(5 * time.Second):
			return false
		}
	}
	w.send("x 2 one")
	w.send("x 2 two")
	for _, step := range []string{"x=one q2", "pubrel 1", "x=two q2", "pubrel 2"} {
		var ds []broker.Delivery
		for len(ds) == 0 {
			if !woken() {
				t.Fatalf("not woken for %s", step)
			}
			ds = a.s.Pull(nil, 10)
		}
		want(t, "delivered", describe(ds), step)
		a.ack(ds)
	}
}

// What is sent to connections is on no disk, comes to no later connection, and is heard of.
func TestSend(t *testing.T) {
	w := newWorld(t, broker.Limits{})
	w.close()
	var heard []string
	say := func(format string, a ...any) { heard = append(heard, fmt.Sprintf(format, a...)) }
	told := func() string { defer func() { heard = nil }(); return strings.Join(heard, "; ") }
	w.listening = func(conn uint64, device, filter string) { say("%d %s listens to %s", conn, device, filter) }
	w.open()
	send := func(payload string, only uint64) {
		t.Helper()
		if err := w.b.Send("x", []byte(payload), time.Time{}, only,
			func(conn uint64, device string) { say("%d %s took %s", conn, device, payload) },
			func(conn uint64, device string, reason byte) {
				say("%d %s acknowledged %s %#x", conn, device, payload, reason)
			},
		); err != nil {
			t.Fatal(err)
		}
	}
	send("nobody", 0)
	want(t, "told", told(), "")
	a, _ := w.connect(broker.Connect{ClientID: "a", Device: "truck-a", Expiry: 60})
	a.sub(1, "x", "#")
	a.leave()
	send("away", 0)
	want(t, "told", told(), "1 truck-a listens to x; 1 truck-a listens to #")
	a, _ = w.connect(broker.Connect{ClientID: "a", Device: "truck-a", Expiry: 60, ReceiveMaximum: 1})
	b, _ := w.connect(broker.Connect{ClientID: "b", Device: "truck-b", Clean: true})
	b.sub(0, "x")
	w.send("x 1 queued")
	send("one", 0)
	send("two", 2)
	want(t, "told", told(), "2 truck-a listens to x; 2 truck-a listens to #; 3 truck-b listens to x; "+
		"2 truck-a took one; 3 truck-b took one; 3 truck-b acknowledged one 0x0; 2 truck-a took two")
	want(t, "b", b.take(), "x=queued q0; x=one q0")
	ds := a.pull()
	want(t, "a", describe(ds), "x=one q1")
	a.ack(ds)
	want(t, "told", told(), "2 truck-a acknowledged one 0x0")
	want(t, "a", a.got(), "x=two q1")
	a.s.Disconnect(broker.Unspecified, true)
	send("gone", 2)
	w.restart()
	want(t, "told", told(), "")
	a, _ = w.connect(broker.Connect{ClientID: "a", Device: "truck-a", Expiry: 60})
	want(t, "a, later", a.take(), "x=queued q1")
}

// Retained messages go past the queue of a persistent session, and are as safe as what is in it once they are in flight.
func TestRetainedInFlight(t *testing.T) {
	w := newWorld(t, broker.Limits{})
	for _, m := range []string{"x/1 1 one retain", "x/2 2 two retain", "x/3 0 three retain"} {
		w.send(m)
	}
	a, _ := w.connect(broker.Connect{ClientID: "a", Expiry: 60, ReceiveMaximum: 1})
	a.sub(2, "x/#")
	w.send("x/9 1 live")
	first := a.pull() // in any order: they are of different topics
	a.s.Disconnect(broker.Unspecified, true)
	a = w.lasting("a") // the rest has waited
	second := a.pull()
	all := map[string]bool{}
	for _, d := range append(first, second...) {
		all[describe([]broker.Delivery{{Topic: d.Topic, Payload: d.Payload, QoS: d.QoS, Retain: d.Retain}})] = true
	}
	for _, m := range []string{"x/1=one q1 retain", "x/2=two q2 retain", "x/3=three q0 retain", "x/9=live q1"} {
		if !all[m] {
			t.Errorf("%s is missing in %v", m, all)
		}
	}
	w.restart()
	a = w.lasting("a")
	third := a.pull()
	if len(third) != 3 {
		t.Errorf("after a restart: %s", describe(third))
	}
	for _, d := range third {
		if !d.Dup || d.Retain == (string(d.Topic) == "x/9") {
			t.Errorf("%s", describe([]broker.Delivery{d}))
		}
	}
	a.ack(third)
	a.take()
	w.restart()
	want(t, "acknowledged", w.lasting("a").take(), "")
}

func TestBacklogIsBounded(t *testing.T) {
	w := newWorld(t, broker.Limits{Retained: 3})
	w.send("$barrier 1 x retain")
	w.send("x/1 0 one retain")
	w.send("x/2 0 two retain")
	a := w.clean("a")
	a.sub(0, "#", "+/#", "x/#", "+/+")
	if ds := a.pull(); len(ds) != 3 {
		t.Errorf("%d retained messages wait", len(ds))
	}
}
