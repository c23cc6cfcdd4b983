package device

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func words(rng *rand.Rand, wild bool) []string {
	plainWords, wildWords := []string{"a", "b", "", "$s", "bus-1", "ab", "dev"}, []string{"a", "b", "", "$s", "bus-1", "ab", "+", "+", "#", vehicleVariable, "{device}", "a{device}"}
	n := 1 + rng.IntN(4)
	var out []string
	for range n {
		if !wild {
			out = append(out, plainWords[rng.IntN(len(plainWords))])
			continue
		}
		w := wildWords[rng.IntN(len(wildWords))]
		out = append(out, w)
		if w == "#" {
			break
		}
	}
	return out
}

// naive is the matching as the specification has it, level by level: what the fast one is held to.
func naive(filter, topic []string, globs []string) bool {
	for i, f := range filter {
		wild := f == "+" || f == "#" || f == vehicleVariable && len(globs) > 0
		if i == 0 && wild && strings.HasPrefix(topic[0], "$") {
			return false
		}
		if f == "#" {
			return true
		}
		if i >= len(topic) {
			return false
		}
		f = strings.ReplaceAll(f, deviceVariable, "b")
		if f != "+" && f != topic[i] && (f != vehicleVariable || !slices.ContainsFunc(globs, func(g string) bool { return matchGlob(g, topic[i]) })) {
			return false
		}
	}
	return len(filter) == len(topic)
}

// What may be subscribed to is within what is allowed, and nothing denied comes through it: for all filters and topics.
func TestFiltersProperty(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	globs := []string{"bus-*", "b"}
	who := &names{"b", "b"}
	var topics [][]string
	for range 3000 {
		topics = append(topics, words(rng, false))
	}
	contained, met := 0, 0
	for range 20000 {
		fw, gw := words(rng, true), words(rng, true)
		for i, w := range gw { // a client's braces mean nothing
			if strings.Contains(w, "{") {
				gw[i] = "a"
			}
		}
		f, err := parseFilter(strings.Join(fw, "/"), globs)
		if strings.Join(fw, "/") == "" || strings.Join(gw, "/") == "" {
			continue
		}
		ok(t, err)
		g, err := parseAsked(strings.Join(gw, "/"))
		ok(t, err)
		contains, meets := f.contains(&g, who), f.meets(&g, who)
		if contains {
			contained++
		}
		for range 40 {
			topic := topics[rng.IntN(len(topics))]
			text := []byte(strings.Join(topic, "/"))
			inF, inG := f.likely(text) && f.match(text, who), g.likely(text) && g.match(text, who)
			if want := naive(fw, topic, globs); inF != want {
				t.Fatalf("seed %d: filter %v, topic %q: %v", seed, fw, text, inF)
			}
			if contains && inG && !inF {
				t.Fatalf("seed %d: %v is said to lie within %v, but %q does not", seed, gw, fw, text)
			}
			if inF && inG {
				met++
				if !meets {
					t.Fatalf("seed %d: %q is in %v and %v, which are said not to meet", seed, text, fw, gw)
				}
			}
		}
	}
	if contained < 100 || met < 100 {
		t.Errorf("only %d contained and %d met: the test looks at nothing", contained, met)
	}
}

// contains says yes where one filter does lie within another.
func TestContains(t *testing.T) {
	f := func(outer, inner string, want bool) {
		t.Helper()
		a, err := parseFilter(outer, []string{"bus-*"})
		ok(t, err)
		b, err := parseAsked(inner)
		ok(t, err)
		if got := a.contains(&b, &names{"dev", "veh"}); got != want {
			t.Errorf("%s contains %s: %v", outer, inner, got)
		}
	}
	f("#", "a/+/#", true)
	f("#", "$SYS/a", false)
	f("+/a", "$SYS/a", false)
	f("a/#", "a", true)
	f("a/#", "a/#", true)
	f("a/#", "a/+/b", true)
	f("a/+", "a/b", true)
	f("a/+", "a/#", false)
	f("a/+", "a", false)
	f("a/+/#", "a/#", false)
	f("a/+/#", "a/b", true)
	f("a/b", "a/+", false)
	f("a", "a/#", false)
	f("{vehicle}/x", "bus-7/x", true)
	f("{vehicle}/x", "+/x", false)
	f("{vehicle}/#", "bus-7", true)
	f("a/{device}/#", "a/dev/+", true)
	f("a/{device}/#", "a/dex/+", false)
	f("a/{device}/#", "a/+/x", false)
	f("a/x-{device}-y", "a/x-dev-y", true)
	f("a/x-{device}-y", "a/x-dev-", false)
}

func TestDenyBeatsAllow(t *testing.T) {
	p, err := NewPolicies([]PolicySpec{{Name: "p", Publish: []string{"a/#"}, DenyPublish: []string{"a/+/secret"}, Subscribe: []string{"a/#"}, DenySubscribe: []string{"a/{device}/secret"}}})
	ok(t, err)
	r := &Principal{names: names{"d1", "v1"}, rights: p.of("p")}
	if !r.MayPublish([]byte("a/x/y")) || r.MayPublish([]byte("a/x/secret")) {
		t.Error("publish")
	}
	for f, want := range map[string]bool{"a/x/y": true, "a/d1/secret": false, "a/#": false, "a/+/secret": false, "a/d2/secret": true, "a/+/open": true} {
		if r.MaySubscribe(f) != want {
			t.Errorf("subscribe %s: %v", f, !want)
		}
	}
	if gone := (&Principal{names: names{"d1", "v1"}, rights: p.of("removed")}); gone.MayPublish([]byte("fleet/v1/telemetry")) || gone.MaySubscribe("fleet/v1/#") {
		t.Error("a policy that is gone allows something")
	}
}

func TestPolicyMistakes(t *testing.T) {
	for _, s := range []PolicySpec{
		{Name: ""},
		{Name: "a", Publish: []string{"a/#/b"}},
		{Name: "a", Publish: []string{"a+"}},
		{Name: "a", Publish: []string{"a/{devise}"}},
		{Name: "a", Publish: []string{"x-{vehicle}"}, Vehicles: []string{"bus-*"}},
		{Name: "a", Vehicles: []string{"a/b"}},
		{Name: "a", Subscribe: []string{""}},
	} {
		if _, err := NewPolicies([]PolicySpec{s}); err == nil {
			t.Errorf("%+v is taken", s)
		}
	}
	if _, err := NewPolicies([]PolicySpec{{Name: "a"}, {Name: "a"}}); err == nil {
		t.Error("one name twice is taken")
	}
	if _, err := NewPolicies([]PolicySpec{{Name: "aws", Publish: []string{"dt/${iot:Connection.Thing.ThingName}/x-{device}"}}}); err != nil {
		t.Error(err)
	}
}

func FuzzMaySubscribe(f *testing.F) {
	for _, s := range []string{"fleet/v1/#", "$share/g/fleet/v1/commands", "#", "+/+", "fleet/+/x", "$share//x", "fleet/v1\x00"} {
		f.Add(s, "fleet/v1/telemetry")
	}
	p, err := NewPolicies(nil)
	if err != nil {
		f.Fatal(err)
	}
	who := &names{"v1", "v1"}
	r := p.of("")
	f.Fuzz(func(t *testing.T, filter, topic string) {
		if !r.maySubscribe(filter, who) || topic == "" || strings.ContainsAny(topic, "+#") {
			return
		}
		if s, shared := strings.CutPrefix(filter, "$share/"); shared {
			_, filter, _ = strings.Cut(s, "/")
		}
		if naive(strings.Split(filter, "/"), strings.Split(topic, "/"), nil) && !slices.ContainsFunc(r.subscribe, func(f filterAlias) bool { return f.match([]byte(topic), who) }) {
			t.Errorf("subscribing %q would bring %q", filter, topic)
		}
	})
}

type filterAlias = filter

func BenchmarkMayPublish(b *testing.B) {
	p, err := NewPolicies(nil)
	if err != nil {
		b.Fatal(err)
	}
	r := &Principal{names: names{"truck-17", "truck-17"}, rights: p.of("")}
	for _, topic := range []string{"fleet/truck-17/telemetry", "$aws/rules/speed/fleet/truck-17/telemetry", "$aws/things/truck-17/shadow/update", "fleet/truck-18/telemetry"} {
		t := []byte(topic)
		b.Run(fmt.Sprint(strings.ReplaceAll(topic, "/", "_")), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r.MayPublish(t)
			}
		})
	}
}
