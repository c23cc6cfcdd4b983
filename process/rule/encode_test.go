package rule

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func someStates(r *rand.Rand, n int) []State {
	out := make([]State, n)
	t := func() int64 {
		if r.IntN(3) == 0 {
			return 0
		}
		return scenarioStart() + r.Int64N(1e9)
	}
	for i := range out {
		if r.IntN(4) == 0 {
			continue
		}
		out[i] = State{
			Last: t(), Since: t(), FiredAt: t(), ClearSince: t(), ResolvedAt: t(), Incident: t(), Value: r.NormFloat64(), Peak: float64(r.IntN(2)),
			Reopened: r.Uint32N(3), Phase: Phase(r.UintN(4)), Readings: uint8(r.UintN(3)), Late: r.IntN(2) == 0,
		}
	}
	return out
}

func TestStateSurvivesStorage(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // reproducible
	set := compile(t, Shipped()...)
	for range 1000 {
		st := someStates(r, set.Len())
		got := someStates(r, set.Len()) // must be overwritten
		if n, err := set.DecodeState(set.AppendState(nil, st), got); n != 0 || err != nil {
			t.Fatalf("seed %d: %d orphans, %v", seed, n, err)
		}
		if d := cmp.Diff(st, got); d != "" {
			t.Fatalf("seed %d (-want +got):\n%s", seed, d)
		}
	}
	st := someStates(r, set.Len())
	if n, err := set.DecodeState(nil, st); n != 0 || err != nil || st[0] != (State{}) {
		t.Errorf("no state: %d, %v, %+v", n, err, st[0])
	}
}

func TestRulesComeAndGo(t *testing.T) {
	old := compile(t, Spec{Name: "a", When: "speed > 1"}, Spec{Name: "b", When: "speed > 2"}, Spec{Name: "c", When: "speed > 3"})
	st := []State{{Phase: Firing, Last: 5, Since: 1}, {Phase: Pending, Last: 6, Since: 2}, {Phase: Firing, Last: 7, Since: 3}}
	stored := old.AppendState(nil, st)
	now := compile(t, Spec{Name: "new", When: "fuel > 1"}, Spec{Name: "c", When: "speed > 30"}, Spec{Name: "b", When: "speed > 2"})
	got := make([]State, 3)
	orphans, err := now.DecodeState(stored, got)
	if err != nil || orphans != 1 {
		t.Errorf("%d orphans, %v; want one: a was firing", orphans, err)
	}
	if d := cmp.Diff([]State{{}, st[2], st[1]}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestDamagedStateIsRefused(t *testing.T) {
	set := compile(t, Shipped()...)
	st := make([]State, set.Len())
	st[0] = State{Phase: Firing, Last: scenarioStart(), Since: scenarioStart() - 5, Peak: 90, Value: 85, Reopened: 2}
	good := set.AppendState(nil, st)
	for n := 2; n < len(good); n++ {
		if _, err := set.DecodeState(good[:n], st); !errors.Is(err, ErrState) {
			t.Errorf("cut after %d of %d bytes: got %v, want ErrState", n, len(good), err)
		}
	}
	if _, err := set.DecodeState([]byte{2, 0}, st); err == nil {
		t.Error("a later version was read")
	}
}

// TestStoredStateStaysReadable holds the bytes of version 1 (P6).
func TestStoredStateStaysReadable(t *testing.T) {
	set := compile(t, Spec{Name: "overspeed", When: "speed > 80"})
	st := []State{{Phase: Firing, Readings: 2, Late: true, Last: 1000, Since: 400, FiredAt: 900, Incident: 400, Reopened: 1, Value: 2, Peak: 4}}
	want := "\x01" + "\x8a\x75\x69\x96\x7d\xb9\x36\xc5"
	b := set.AppendState(nil, st)
	if len(b) < 9 || string(b[:9]) != want {
		t.Errorf("beginning % x, want % x", b[:min(9, len(b))], want)
	}
	rest := "\xfa\x79" + "\xd0\x0f" + "\xaf\x09" + "\xc7\x01" + "\xaf\x09" + "\x01" + "\x00\x00\x00\x00\x00\x00\x00\x40" + "\x00\x00\x00\x00\x00\x00\x10\x40"
	if string(b[9:]) != rest {
		t.Errorf("entry % x, want % x", b[9:], rest)
	}
}

const goldenIncident = "enkkgor2wsjzf7mr"

func TestIncidentIDsAreStable(t *testing.T) {
	got := IncidentID("overspeed", "truck-7", 1_767_225_600_000)
	if len(got) != 16 {
		t.Errorf("%q is not 16 characters", got)
	}
	if got != goldenIncident {
		t.Errorf("got %s, want %s: stored alerts would lose their incidents (P6)", got, goldenIncident)
	}
	if IncidentID("ab", "c", 1) == IncidentID("a", "bc", 1) || IncidentID("a", "b", 1) == IncidentID("a", "b", 2) {
		t.Error("different causes have the same ID")
	}
}
