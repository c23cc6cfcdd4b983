package alert

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process/rule"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func openStore(t testing.TB, fs vfs.FS) *local.Store {
	t.Helper()
	s, err := local.Open(local.Config{Dir: "state", FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// base is 00:00 of these tests.
var base = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func at(d time.Duration) int64 { return base.Add(d).UnixMilli() }

// A lane runs readings through rules and alerts, each in a step of its own, as the fleet's function does.
type lane struct {
	t     testing.TB
	store state.Store
	set   *rule.Set
	vecs  map[string]*rule.Values
	sts   map[string][]rule.State
	pos   stream.Position
	n     int
	sinks []string
}

func newLane(t testing.TB, store state.Store, specs []rule.Spec, sinks ...string) *lane {
	t.Helper()
	set, err := rule.Compile(specs, telemetry.NewCatalog())
	if err != nil {
		t.Fatal(err)
	}
	return &lane{t: t, store: store, set: set, vecs: map[string]*rule.Values{}, sts: map[string][]rule.State{}, sinks: sinks}
}

func fast() []rule.Spec {
	return []rule.Spec{{Name: "overspeed", When: "speed > limit", Clear: "speed < limit - 5", Params: map[string]float64{"limit": 80}}}
}

// speed is one reading. late is how long after its event time it arrived.
func (l *lane) speed(vehicle string, when time.Duration, kmh float64, late time.Duration) []Alert {
	l.t.Helper()
	v := l.vecs[vehicle]
	if v == nil {
		v = &rule.Values{V: make([]float64, telemetry.WellKnown), T: make([]int64, telemetry.WellKnown)}
		l.vecs[vehicle], l.sts[vehicle] = v, make([]rule.State, l.set.Len())
	}
	v.V[telemetry.Speed], v.T[telemetry.Speed] = kmh, at(when)
	bound := l.set.Bind(vehicle)
	trs := bound.Eval(l.sts[vehicle], v, rule.Input{
		Time: at(when), Arrival: at(when + late), Changed: []telemetry.Signal{{ID: telemetry.Speed, Value: kmh}},
	}, nil)
	return l.apply(trs, Info{Vehicle: vehicle, Bound: bound, Lat: 40.5, Lon: -74, HasPlace: true, Sinks: l.sinks})
}

func (l *lane) apply(trs []rule.Transition, info Info) []Alert {
	l.t.Helper()
	var out []Alert
	l.n++
	next := stream.Position(fmt.Sprintf("%08d", l.n))
	err := l.store.Advance(l.t.Context(), state.Step{Func: "fleet", Shard: "s", From: l.pos, To: next}, func(tx state.Tx) error {
		out = nil
		for _, tr := range trs {
			a, err := Apply(tx, tr, info)
			if err != nil {
				return err
			}
			out = append(out, a)
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.pos = next
	return out
}

// effects lists the IDs waiting for a sink.
func effects(t testing.TB, s state.Store, sink string) []string {
	t.Helper()
	es, _, err := s.Pending(t.Context(), Kind(sink), 100)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, e := range es {
		out = append(out, e.ID)
	}
	return out
}

func TestFiringAndResolvedAreToldOnceToEachSink(t *testing.T) {
	store := openStore(t, vfs.NewCrashable())
	l := newLane(t, store, fast(), "hook", "mail")
	a := l.speed("truck-7", 0, 92, time.Second)
	if len(a) != 1 {
		t.Fatalf("got %d alerts, want 1", len(a))
	}
	id := rule.IncidentID("overspeed", "truck-7", at(0))
	want := Alert{
		ID: id, Rule: "overspeed", Vehicle: "truck-7", Severity: "warning", State: Firing, Summary: "truck-7: speed 92 km/h, limit 80 km/h",
		Value: 92, Peak: 92, Unit: "km/h", Condition: "speed > limit (limit 80)", Since: at(0), FiredAt: at(0), Lat: 40.5, Lon: -74, HasPlace: true,
	}
	if d := cmp.Diff(want, a[0]); d != "" {
		t.Errorf("alert (-want +got):\n%s", d)
	}
	l.speed("truck-7", 10*time.Second, 99, 0)
	got := l.speed("truck-7", 20*time.Second, 60, 0)[0]
	want.State, want.Peak, want.ResolvedAt = Resolved, 99, at(20*time.Second)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("resolved alert (-want +got):\n%s", d)
	}
	for _, sink := range l.sinks {
		if d := cmp.Diff([]string{id + "/firing", id + "/resolved"}, effects(t, store, sink)); d != "" {
			t.Errorf("%s is told (-want +got):\n%s", sink, d)
		}
	}
	stored, err := NewBook(store).Get(t.Context(), id)
	if d := cmp.Diff(want, stored); err != nil || d != "" {
		t.Errorf("stored alert, %v (-want +got):\n%s", err, d)
	}
}

func TestLateDataTellsNobody(t *testing.T) { // P9
	store := openStore(t, vfs.NewCrashable())
	l := newLane(t, store, fast(), "hook")
	l.speed("a", 0, 90, 16*time.Minute)
	got := l.speed("a", time.Minute, 60, 16*time.Minute)[0]
	if !got.Late || got.State != Resolved {
		t.Errorf("got late %v %s, want a late resolved alert", got.Late, got.State)
	}
	if e := effects(t, store, "hook"); len(e) != 0 {
		t.Errorf("told %v of late data, want nothing", e)
	}

	// Late at first, still true in timely data: told once.
	l.speed("b", 0, 90, time.Hour)
	if got := l.speed("b", time.Minute, 91, time.Second)[0]; got.Late || got.State != Firing || got.FiredAt != at(0) {
		t.Errorf("got %+v, want a firing alert, no longer late, fired at its first moment", got)
	}
	id := rule.IncidentID("overspeed", "b", at(0))
	if d := cmp.Diff([]string{id + "/firing"}, effects(t, store, "hook")); d != "" {
		t.Errorf("told (-want +got):\n%s", d)
	}
	// Its end is found in late data: who was told that it began is told that it ended.
	l.speed("b", 2*time.Minute, 10, time.Hour)
	if d := cmp.Diff([]string{id + "/firing", id + "/resolved"}, effects(t, store, "hook")); d != "" {
		t.Errorf("told (-want +got):\n%s", d)
	}
}

func TestReopenedIncidentKeepsItsIDAndTellsAgain(t *testing.T) {
	store := openStore(t, vfs.NewCrashable())
	book := NewBook(store)
	l := newLane(t, store, fast(), "hook")
	id := l.speed("a", 0, 90, 0)[0].ID
	if _, err := book.Ack(t.Context(), id, "anna", base); err != nil {
		t.Fatal(err)
	}
	l.speed("a", time.Minute, 60, 0)
	got := l.speed("a", 5*time.Minute, 95, 0)[0]
	if got.ID != id || got.Reopened != 1 || got.Since != at(0) || got.FiredAt != at(5*time.Minute) || got.ResolvedAt != 0 {
		t.Errorf("got %+v, want %s reopened", got, id)
	}
	if d := cmp.Diff([]string{id + "/firing", id + "/resolved", id + "/firing-1"}, effects(t, store, "hook")); d != "" {
		t.Errorf("told (-want +got):\n%s", d)
	}
	if a, _ := book.Get(t.Context(), id); a.AckedBy != "" {
		t.Errorf("reopened alert is acknowledged by %s, want by nobody", a.AckedBy)
	}
	if _, err := book.Ack(t.Context(), id, "ben", base); err != nil {
		t.Error(err)
	}
	if a, _ := book.Get(t.Context(), id); a.AckedBy != "ben" {
		t.Errorf("acknowledged by %q, want ben", a.AckedBy)
	}
}

func TestOneOpenAlertPerRuleAndVehicle(t *testing.T) {
	store := openStore(t, vfs.NewCrashable())
	l := newLane(t, store, fast(), "hook")
	first := l.speed("a", 0, 90, 0)[0].ID
	clear(l.sts) // the rule's memory is lost, as after a rebuild that began in the middle
	clear(l.vecs)
	second := l.speed("a", time.Hour, 90, 0)[0].ID
	open, err := NewBook(store).List(t.Context(), Filter{State: Firing})
	if err != nil || len(open) != 1 || open[0].ID != second {
		t.Errorf("open: %v %v, want only %s", open, err, second)
	}
	if a, _ := NewBook(store).Get(t.Context(), first); a.State != Resolved || a.ResolvedAt != at(time.Hour) {
		t.Errorf("the older alert is %s until %d, want it to end where the newer begins", a.State, a.ResolvedAt)
	}
}

func TestAcknowledge(t *testing.T) {
	store := openStore(t, vfs.NewCrashable())
	book := NewBook(store)
	changed, cancel := book.Subscribe()
	defer cancel()
	l := newLane(t, store, fast(), "hook")
	id := l.speed("a", 0, 90, 0)[0].ID

	if _, err := book.Ack(t.Context(), "nobody", "anna", base); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown alert: got %v, want ErrNotFound", err)
	}
	if _, err := book.Ack(t.Context(), id, "", base); err == nil {
		t.Error("an acknowledgement by nobody was taken")
	}
	a, err := book.Ack(t.Context(), id, "anna", base.Add(time.Minute))
	if err != nil || a.AckedBy != "anna" || a.AckedAt != at(time.Minute) {
		t.Fatalf("got %+v, %v", a, err)
	}
	select {
	case <-changed:
	default:
		t.Error("subscribers were not told of the acknowledgement")
	}
	if a, err = book.Ack(t.Context(), id, "ben", base.Add(time.Hour)); err != nil || a.AckedBy != "anna" {
		t.Errorf("a second acknowledgement gave %q, %v; want the first to stay", a.AckedBy, err)
	}
	// The lane writes its part afterwards and does not undo what people did.
	l.speed("a", time.Minute, 10, 0)
	if a, err = book.Get(t.Context(), id); err != nil || a.State != Resolved || a.AckedBy != "anna" {
		t.Errorf("got %+v, %v; want resolved and acknowledged", a, err)
	}
	if _, err := book.Ack(t.Context(), id, "ben", base); !errors.Is(err, ErrResolved) {
		t.Errorf("resolved alert: got %v, want ErrResolved", err)
	}
	if e := effects(t, store, "hook"); len(e) != 2 {
		t.Errorf("told %v, want firing and resolved only", e)
	}
}

func TestListFiltersAndPages(t *testing.T) {
	store := openStore(t, vfs.NewCrashable())
	book := NewBook(store)
	l := newLane(t, store, fast(), "hook")
	for i := range 5 {
		l.speed(fmt.Sprintf("v%d", i), time.Duration(i)*time.Hour, 90, 0)
	}
	l.speed("v1", 10*time.Hour, 10, 0)
	l.speed("v1", 20*time.Hour, 90, 0)

	list := func(f Filter) []string {
		t.Helper()
		as, err := book.List(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		out := []string{}
		for _, a := range as {
			out = append(out, fmt.Sprintf("%s@%v", a.Vehicle, time.UnixMilli(a.Since).Sub(base)))
		}
		return out
	}
	f := func(f Filter, want ...string) {
		t.Helper()
		if got := list(f); !slices.Equal(got, want) {
			t.Errorf("%+v: got %v, want %v", f, got, want)
		}
	}
	f(Filter{}, "v1@20h0m0s", "v4@4h0m0s", "v3@3h0m0s", "v2@2h0m0s", "v1@1h0m0s", "v0@0s")
	f(Filter{State: Firing}, "v1@20h0m0s", "v4@4h0m0s", "v3@3h0m0s", "v2@2h0m0s", "v0@0s")
	f(Filter{State: Firing, Vehicle: "v1"}, "v1@20h0m0s")
	f(Filter{State: Resolved}, "v1@1h0m0s")
	f(Filter{Vehicle: "v1"}, "v1@20h0m0s", "v1@1h0m0s")
	f(Filter{Since: at(2 * time.Hour), Until: at(4 * time.Hour)}, "v3@3h0m0s", "v2@2h0m0s")
	f(Filter{Rule: "overspeed", Limit: 1}, "v1@20h0m0s")
	f(Filter{Rule: "other"})
	f(Filter{Severity: "critical"})

	for _, state := range []State{"", Firing} { // pages join to the whole list
		all := list(Filter{State: state})
		var paged []string
		after := ""
		for {
			as, err := book.List(t.Context(), Filter{State: state, Limit: 2, After: after})
			if err != nil {
				t.Fatal(err)
			}
			if len(as) == 0 {
				break
			}
			for _, a := range as {
				paged = append(paged, fmt.Sprintf("%s@%v", a.Vehicle, time.UnixMilli(a.Since).Sub(base)))
			}
			after = as[len(as)-1].ID
		}
		if !slices.Equal(all, paged) {
			t.Errorf("state %q: pages give %v, want %v", state, paged, all)
		}
	}

	c, err := book.Counts(t.Context())
	if d := cmp.Diff(Counts{Firing: 5, Severity: map[string]int{"warning": 5}}, c); err != nil || d != "" {
		t.Errorf("counts, %v (-want +got):\n%s", err, d)
	}
}

func TestPruneKeepsWhatIsOpenOrYoung(t *testing.T) {
	store := openStore(t, vfs.NewCrashable())
	book := NewBook(store)
	l := newLane(t, store, fast())
	for i := range 3 {
		l.speed("old", time.Duration(i)*time.Hour, 90, 0)
		l.speed("old", time.Duration(i)*time.Hour+time.Minute, 10, 0)
	}
	l.speed("open", 0, 90, 0)
	l.speed("young", 0, 90, 0)
	l.speed("young", 48*time.Hour, 10, 0)
	before := base.Add(24 * time.Hour)
	if n, err := book.Prune(t.Context(), before, 2); n != 2 || err != nil {
		t.Errorf("first call removed %d, %v; want 2", n, err)
	}
	if n, err := book.Prune(t.Context(), before, 100); n != 1 || err != nil {
		t.Errorf("second call removed %d, %v; want 1", n, err)
	}
	left, err := book.List(t.Context(), Filter{})
	if err != nil || len(left) != 2 {
		t.Errorf("left %v, %v; want the open and the young one", left, err)
	}
	if n, err := book.Prune(t.Context(), before, 100); n != 0 || err != nil {
		t.Errorf("third call removed %d, %v; want 0", n, err)
	}
}

func TestRetireEndsAlertsOfRulesThatAreGone(t *testing.T) {
	store := openStore(t, vfs.NewCrashable())
	l := newLane(t, store, append(fast(), rule.Spec{Name: "hurry", When: "speed > 50"}), "hook")
	l.speed("a", 0, 90, 0)
	l.speed("a2", 0, 90, 0) // a longer name with the same beginning
	err := store.Update(t.Context(), func(tx state.Tx) error {
		n, err := Retire(tx, "a", func(r string) bool { return r == "overspeed" }, at(time.Hour), l.sinks)
		if n != 1 {
			t.Errorf("retired %d, want 1", n)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	open, err := NewBook(store).List(t.Context(), Filter{State: Firing})
	var got []string
	for _, a := range open {
		got = append(got, a.Vehicle+" "+a.Rule)
	}
	slices.Sort(got)
	if d := cmp.Diff([]string{"a overspeed", "a2 hurry", "a2 overspeed"}, got); err != nil || d != "" {
		t.Errorf("still open, %v (-want +got):\n%s", err, d)
	}
}

// TestCrashKeepsAlertAndEffectTogether: what a step did is on the disk whole, and running it again is refused (P3).
func TestCrashKeepsAlertAndEffectTogether(t *testing.T) {
	fs := vfs.NewCrashable()
	store := openStore(t, fs)
	l := newLane(t, store, fast(), "hook")
	id := l.speed("a", 0, 90, 0)[0].ID

	store = openStore(t, fs.CrashClone(vfs.CrashCloneCfg{}))
	if d := cmp.Diff([]string{id + "/firing"}, effects(t, store, "hook")); d != "" {
		t.Errorf("after the crash told (-want +got):\n%s", d)
	}
	if a, err := NewBook(store).Get(t.Context(), id); err != nil || a.State != Firing {
		t.Errorf("after the crash: %+v, %v", a, err)
	}
	err := store.Advance(t.Context(), state.Step{Func: "fleet", Shard: "s", From: "", To: "00000001"}, func(state.Tx) error { return nil })
	if !errors.Is(err, state.ErrMoved) {
		t.Errorf("the step ran again: %v", err)
	}
}

func TestSubscriptionsCoalesce(t *testing.T) {
	b := NewBook(nil)
	c, cancel := b.Subscribe()
	for range 10 {
		b.Touch()
	}
	<-c
	select {
	case <-c:
		t.Error("ten changes made more than one signal")
	default:
	}
	cancel()
	b.Touch()
	select {
	case <-c:
		t.Error("a signal after the end of the subscription")
	default:
	}
}

func BenchmarkApply(b *testing.B) {
	store := openStore(b, vfs.NewCrashable())
	l := newLane(b, store, fast())
	n := 0
	b.ReportAllocs()
	for b.Loop() { // a firing and a resolved alert, each in a step of its own, with its rows
		n++
		id := "v" + string(rune('a'+n%26))
		l.speed(id, time.Duration(2*n)*time.Second, 90, 0)
		l.speed(id, time.Duration(2*n+1)*time.Second, 10, 0)
	}
}
