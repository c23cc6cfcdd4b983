package broker_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/milepost/milepost/ingest/mqtt/broker"
)

// Publishers, connections with a writer each, take-overs, subscriptions that come and go, kicks: all at once. Every message of QoS 1
// reaches every persistent session that was there, in the order of its publisher.
func TestCrowd(t *testing.T) {
	const publishers, sessions, messages = 4, 6, 400
	w := newWorld(t, broker.Limits{InFlight: 20})
	var published atomic.Int64
	var wg, writers sync.WaitGroup
	type inbox struct {
		mu   sync.Mutex
		last [publishers]int // the newest in order
		seen map[string]bool
	}
	boxes := make([]*inbox, sessions)
	done := make(chan struct{})
	for i := range sessions {
		boxes[i] = &inbox{seen: map[string]bool{}}
		first := w.lasting(fmt.Sprint("s", i))
		first.sub(1, "m/#")
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 9))
			box := boxes[i]
			for p := first; ; {
				finished := false
				select {
				case <-done:
					finished = true
				case <-p.wakes:
				}
				for {
					ds := p.s.Pull(nil, 1+rng.IntN(50))
					if len(ds) == 0 {
						break
					}
					box.mu.Lock()
					for _, d := range ds {
						if d.QoS == 0 {
							continue
						}
						var from, n int
						if _, err := fmt.Sscanf(string(d.Payload), "%d %d", &from, &n); err != nil {
							t.Error(err)
						}
						if !box.seen[string(d.Payload)] {
							if n != box.last[from]+1 {
								t.Errorf("s%d got %d of publisher %d after %d", i, n, from, box.last[from])
							}
							box.last[from] = n
						}
						box.seen[string(d.Payload)] = true
					}
					box.mu.Unlock()
					p.ack(ds)
				}
				box.mu.Lock()
				all := len(box.seen) == publishers*messages
				box.mu.Unlock()
				if finished && all {
					return
				}
				switch rng.IntN(30) {
				case 0:
					p.s.Disconnect(broker.Unspecified, true)
					fallthrough
				case 1: // or take over
					p = w.lasting(fmt.Sprint("s", i))
					p.Wake() // the front pulls once after CONNACK
				case 2:
					p.s.Subscribe([]broker.Subscription{{Filter: "m/+", QoS: 1, ID: 7, RetainHandling: 2}, {Filter: "$share/g/m/0", QoS: 0}}, nil)
				case 3:
					p.s.Unsubscribe([]string{"m/+", "$share/g/m/0"}, nil)
				}
				if finished {
					p.Wake()
				}
			}
		})
	}
	for from := range publishers {
		wg.Go(func() {
			var last broker.Ticket
			for n := range messages {
				r, err := w.b.Publish(&broker.Message{
					Topic: fmt.Appendf(nil, "m/%d", from), QoS: 1, Payload: fmt.Appendf(nil, "%d %d", from, n+1), Retain: n%50 == 49,
				})
				if err != nil || r.Matched < sessions {
					t.Errorf("%+v, %v", r, err)
				}
				last = r.Ticket
				published.Add(1)
			}
			w.wait(last)
		})
	}
	stop := make(chan struct{})
	var kicker sync.WaitGroup
	kicker.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			c := w.clean(fmt.Sprint("c", i%3))
			c.s.Subscribe([]broker.Subscription{{Filter: "#", QoS: 1}}, nil)
			c.s.Pull(nil, 10)
			w.b.Kick(fmt.Sprint("c", (i+1)%3), broker.Unspecified, true)
		}
	})
	wg.Wait()
	close(stop)
	kicker.Wait()
	close(done)
	writers.Wait()
	if n := published.Load(); n != publishers*messages {
		t.Errorf("%d published", n)
	}
}
