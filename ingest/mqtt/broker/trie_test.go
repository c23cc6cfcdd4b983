package broker_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/ingest/mqtt/broker"
)

// naive is section 4.7 read aloud.
func naive(filter, topic string) bool {
	f, t := strings.Split(filter, "/"), strings.Split(topic, "/")
	if strings.HasPrefix(topic, "$") && (f[0] == "+" || f[0] == "#") {
		return false
	}
	for i, level := range f {
		switch {
		case level == "#":
			return true
		case i >= len(t) || level != "+" && level != t[i]:
			return false
		}
	}
	return len(f) == len(t)
}

// Topic filters and names: MQTT-4.7.0-1, 4.7.1-1, -2, 4.7.3-1, -2, -3, and shared filters: 4.8.2-1, -2.
func TestCheckFilter(t *testing.T) {
	long := strings.Repeat("x", 65536)
	for filter, valid := range map[string]bool{
		"a": true, "/": true, "a/b": true, "//": true, "+": true, "#": true, "+/+": true, "a/#": true, "/+": true, "+/a/#": true, "$SYS/#": true,
		"$share/g/a": true, "$share/g/#": true, "$share/g//": true, "$shared/a": true, " ": true,
		"": false, "a#": false, "#/a": false, "a/#/b": false, "a+": false, "+a/b": false, "a/b+": false, "\x00": false, "##": false, long: false,
		"$share": false, "$share/": false, "$share/g": false, "$share/g/": false, "$share//a": false, "$share/+/a": false, "$share/g#/a": false,
		"$share/g/a#": false, strings.Repeat("a/", 128): false, strings.Repeat("a/", 127): true,
	} {
		if _, _, err := broker.CheckFilter(filter); (err == nil) != valid {
			t.Errorf("%.80q: %v", filter, err)
		}
	}
	for topic, valid := range map[string]bool{"a": true, "/": true, "$SYS/a b": true, "": false, "a/+": false, "#": false, "a\x00": false, long: false} {
		if err := broker.CheckTopic([]byte(topic)); (err == nil) != valid {
			t.Errorf("%.80q: %v", topic, err)
		}
	}
}

// Random filters come and go, and random topics find what the naive matcher says; live messages and retained ones (MQTT-3.3.2-3,
// 4.7.2-1).
func TestTrieAgainstNaiveMatcher(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	levels := []string{"a", "b", "c", "", "$d", "+", "+", "#"}
	random := func(filter bool) string {
		for {
			var f []string
			for range 1 + rng.IntN(5) {
				f = append(f, levels[rng.IntN(len(levels))])
			}
			s := strings.Join(f, "/")
			if _, _, err := broker.CheckFilter(s); filter && err == nil || !filter && broker.CheckTopic([]byte(s)) == nil {
				return s
			}
		}
	}
	w := newTimeless(t, broker.Limits{})
	defer w.close()
	peers := make([]*peer, 12)
	subs := make([]map[string]bool, len(peers))
	for i := range peers {
		peers[i], subs[i] = w.clean(fmt.Sprint(i)), map[string]bool{}
	}
	retained := map[string]bool{}
	for step := range 6000 {
		i := rng.IntN(len(peers))
		switch p := peers[i]; rng.IntN(6) {
		case 0, 1:
			f := random(true)
			p.s.Subscribe([]broker.Subscription{{Filter: f, QoS: 0, RetainHandling: 0}}, nil)
			subs[i][f] = true
			var expect, got []string
			for topic := range retained {
				if naive(f, topic) {
					expect = append(expect, topic)
				}
			}
			for _, d := range p.s.Pull(nil, 1<<20) {
				got = append(got, string(d.Topic))
			}
			slices.Sort(expect)
			slices.Sort(got)
			if diff := cmp.Diff(expect, got); diff != "" {
				t.Fatalf("step %d: retained for %q (-want +got):\n%s", step, f, diff)
			}
		case 2:
			for f := range subs[i] {
				if codes, _ := p.s.Unsubscribe([]string{f}, nil); codes[0] != 0 {
					t.Fatalf("step %d: unsubscribe %q: %#x", step, f, codes)
				}
				delete(subs[i], f)
				break
			}
		case 3:
			topic := random(false)
			m := broker.Message{Topic: []byte(topic), Retain: true}
			if rng.IntN(2) == 0 {
				m.Payload = []byte("m")
			}
			if retained[topic] = m.Payload != nil; !retained[topic] {
				delete(retained, topic)
			}
			if _, err := w.b.Publish(&m); err != nil {
				t.Fatal(err)
			}
			for _, p := range peers {
				p.s.Pull(nil, 100)
			}
		default:
			topic := random(false)
			if _, err := w.b.Publish(&broker.Message{Topic: []byte(topic)}); err != nil {
				t.Fatal(err)
			}
			for i, p := range peers {
				expect := 0
				for f := range subs[i] {
					if naive(f, topic) {
						expect = 1
					}
				}
				if got := len(p.s.Pull(nil, 100)); got != expect {
					t.Fatalf("step %d: %q reached %d %d times, want %d; it has %v", step, topic, i, got, expect, subs[i])
				}
			}
		}
		if step%1000 == 999 { // everything can go, and leaves nothing
			for _, p := range peers {
				p.leave()
			}
			if r, _ := w.b.Publish(&broker.Message{Topic: []byte("a")}); r.Matched != 0 {
				t.Fatalf("step %d: %+v", step, r)
			}
			for i := range peers {
				peers[i], subs[i] = w.clean(fmt.Sprint(i)), map[string]bool{}
			}
		}
	}
}

func FuzzFilter(f *testing.F) {
	for _, s := range []string{"a/b", "+/#", "$share/g/a/+", "$SYS/#", "/", "#"} {
		f.Add(s, "a/b")
	}
	f.Fuzz(func(t *testing.T, filter, topic string) {
		group, rest, err := broker.CheckFilter(filter)
		if err != nil || broker.CheckTopic([]byte(topic)) != nil {
			return
		}
		w := newTimeless(t, broker.Limits{})
		defer w.close()
		p := w.clean("a")
		p.sub(0, filter)
		want := 0
		if naive(rest, topic) {
			want = 1
		}
		if r := w.send2(topic); r.Matched != want {
			t.Errorf("filter %q (group %q) and topic %q: matched %d, want %d", filter, group, topic, r.Matched, want)
		}
		p.s.Unsubscribe([]string{filter}, nil)
		if r := w.send2(topic); r.Matched != 0 {
			t.Errorf("filter %q is still there", filter)
		}
	})
}

func (w *world) send2(topic string) broker.Receipt {
	return w.publish(broker.Message{Topic: []byte(topic)})
}
