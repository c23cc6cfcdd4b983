package broker_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/milepost/milepost/ingest/mqtt/broker"
)

func BenchmarkPublish(b *testing.B) {
	topic, payload := []byte("fleet/truck-17/readings"), make([]byte, 200)
	for _, c := range []struct {
		name    string
		qos     byte
		setup   func(*world) []*peer
		matched int
	}{
		{"no subscription at all", 1, func(*world) []*peer { return nil }, 0},
		{"none that matches of 10000", 1, func(w *world) []*peer {
			for i := range 10000 {
				w.clean(fmt.Sprint(i)).s.Subscribe([]broker.Subscription{{Filter: fmt.Sprintf("fleet/truck-%d/commands", i), QoS: 1}}, nil)
			}
			return nil
		}, 0},
		{"1 subscriber, QoS 0", 0, func(w *world) []*peer { return subscribers(w, 1) }, 1},
		{"1 subscriber, QoS 1", 1, func(w *world) []*peer { return subscribers(w, 1) }, 1},
		{"1000 subscribers, QoS 0", 0, func(w *world) []*peer { return subscribers(w, 1000) }, 1000},
		{"1000 subscribers, QoS 1", 1, func(w *world) []*peer { return subscribers(w, 1000) }, 1000},
		{"1 persistent subscriber, QoS 1", 1, func(w *world) []*peer {
			p, _ := w.connect(broker.Connect{ClientID: "p", Expiry: 3600})
			p.sub(1, "fleet/+/readings")
			return []*peer{p}
		}, 1},
	} {
		b.Run(c.name, func(b *testing.B) {
			w := newWorld(b, broker.Limits{})
			peers := c.setup(w)
			m := broker.Message{Topic: topic, Payload: payload, QoS: c.qos}
			var ds []broker.Delivery
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				r, err := w.b.Publish(&m)
				if err != nil || r.Matched != c.matched || r.Refused != 0 {
					b.Fatalf("%+v, %v", r, err)
				}
				if n++; n%100 != 0 {
					continue
				}
				for _, p := range peers { // as its connection would: send, and hear of it
					for {
						if ds = p.s.Pull(ds[:0], 100); len(ds) == 0 {
							break
						}
						p.ack(ds)
					}
				}
			}
		})
	}
}

func subscribers(w *world, n int) []*peer {
	var all []*peer
	for i := range n {
		p := w.clean(fmt.Sprint("s", i))
		p.sub(1, "fleet/+/readings")
		all = append(all, p)
	}
	return all
}

// BenchmarkIdleSession tells the memory of a session that is connected or not, with one subscription of its own.
func BenchmarkIdleSession(b *testing.B) {
	for _, connected := range []bool{true, false} {
		b.Run(map[bool]string{true: "connected", false: "away"}[connected], func(b *testing.B) {
			const sessions = 50_000
			for b.Loop() {
				w := newTimeless(b, broker.Limits{})
				w.memory.forgetful = true
				before := heap()
				keep := make([]*broker.Session, 0, sessions)
				for i := range sessions {
					id := fmt.Sprintf("truck-%d", i)
					s, _, err := w.b.Connect(broker.Connect{ClientID: id, Device: id, Version: 5, Expiry: 3600}, nobody{})
					if err != nil {
						b.Fatal(err)
					}
					_, t := s.Subscribe([]broker.Subscription{{Filter: "fleet/" + id + "/commands", QoS: 1}}, nil)
					if s.Pull(nil, 10); connected {
						keep = append(keep, s)
					} else {
						s.Disconnect(0, false)
					}
					if i == sessions-1 {
						w.wait(t)
					}
				}
				b.ReportMetric(float64(heap()-before-8*sessions)/sessions, "bytes/session")
				runtime.KeepAlive(keep)
				w.close()
			}
		})
	}
}

type nobody struct{}

func (nobody) Wake()     {}
func (nobody) Kick(byte) {}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkOpen tells how long a start takes with 50,000 sessions, each with a subscription and a queued message.
func BenchmarkOpen(b *testing.B) {
	const sessions = 50_000
	w := newWorld(b, broker.Limits{})
	var last broker.Ticket
	for i := range sessions {
		id := fmt.Sprintf("truck-%d", i)
		s, _, err := w.b.Connect(broker.Connect{ClientID: id, Device: id, Version: 5, Expiry: 3600}, nobody{})
		if err != nil {
			b.Fatal(err)
		}
		s.Subscribe([]broker.Subscription{{Filter: "fleet/" + id + "/commands", QoS: 1}}, nil)
		s.Disconnect(0, false)
		r, err := w.b.Publish(&broker.Message{Topic: []byte("fleet/" + id + "/commands"), QoS: 1, Payload: make([]byte, 200)})
		if err != nil {
			b.Fatal(err)
		}
		last = r.Ticket
	}
	w.wait(last)
	for b.Loop() {
		if err := w.b.Close(); err != nil {
			b.Fatal(err)
		}
		var err error
		if w.b, err = broker.Open(b.Context(), broker.Config{Store: w.store}); err != nil {
			b.Fatal(err)
		}
	}
}
