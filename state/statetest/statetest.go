// Package statetest is what every engine of state must pass.
package statetest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// A Harness is one empty store and what can happen to it. It closes what it opened when the test ends.
type Harness struct {
	Store state.Store
	// Reopen closes the store and opens it again.
	Reopen func() state.Store
	// Crash abandons the store as a power loss would, in the middle of whatever it does, and opens what is left. Nil if the
	// engine cannot do that in a test.
	Crash func() state.Store
}

// Run runs the suite. New is called once for every test.
func Run(t *testing.T, open func(*testing.T) Harness) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Harness)
	}{
		{"checkpoint moves by compare-and-set", compareAndSet},
		{"two owners of a lane: one wins every step", twoOwners},
		{"a step is all or nothing", atomic},
		{"a transaction reads its own writes", ownReads},
		{"scan keeps order and bounds and stops", scans},
		{"scan tells errors", scanErrors},
		{"a view is one moment", views},
		{"values are copied", copies},
		{"effects are ordered, replaced and removed", effects},
		{"effects wake who waits", changed},
		{"what was committed is there after reopening", reopen},
		{"order of effects survives reopening", effectsReopen},
		{"update", update},
		{"lanes advance side by side", lanes},
		{"use after close", closed},
		{"a crash keeps synced steps", crashSynced},
		{"a crash loses at most a suffix", crashSuffix},
		{"a time step", timeStep},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func step(lane int, from, to string) state.Step {
	return state.Step{Func: "f", Shard: "s", Lane: lane, From: stream.Position(from), To: stream.Position(to)}
}

func set(kv ...string) func(state.Tx) error {
	return func(tx state.Tx) error {
		for i := 0; i < len(kv); i += 2 {
			if err := tx.Set([]byte(kv[i]), []byte(kv[i+1])); err != nil {
				return err
			}
		}
		return nil
	}
}

// dump returns what a reader sees as key=value words.
func dump(t *testing.T, r state.Reader) []string {
	t.Helper()
	out := []string{}
	ok(t, r.Scan(nil, nil, func(k, v []byte) error {
		out = append(out, string(k)+"="+string(v))
		return nil
	}))
	return out
}

func all(t *testing.T, s state.Store) []string {
	t.Helper()
	var out []string
	ok(t, s.View(t.Context(), func(r state.Reader) error {
		out = dump(t, r)
		return nil
	}))
	return out
}

func wantAll(t *testing.T, s state.Store, want ...string) {
	t.Helper()
	if d := cmp.Diff(append([]string{}, want...), all(t, s)); d != "" {
		t.Fatalf("state (-want +got):\n%s", d)
	}
}

func wantCheckpoint(t *testing.T, s state.Store, lane int, want string) {
	t.Helper()
	got, err := s.Checkpoint(t.Context(), "f", "s", lane)
	ok(t, err)
	if string(got) != want {
		t.Fatalf("checkpoint of lane %d = %q, want %q", lane, got, want)
	}
}

func wantPending(t *testing.T, s state.Store, kind string, most int, want ...string) {
	t.Helper()
	es, _, err := s.Pending(t.Context(), kind, most)
	ok(t, err)
	got := []string{}
	for _, e := range es {
		if e.Kind != kind {
			t.Errorf("effect %s has kind %q, want %q", e.ID, e.Kind, kind)
		}
		got = append(got, e.ID+"="+string(e.Data))
	}
	if d := cmp.Diff(append([]string{}, want...), got); d != "" {
		t.Fatalf("pending %s (-want +got):\n%s", kind, d)
	}
}

func compareAndSet(t *testing.T, h Harness) {
	ctx, s := t.Context(), h.Store
	wantCheckpoint(t, s, 0, "")
	ok(t, s.Advance(ctx, step(0, "", "1"), set("a", "1")))
	wantCheckpoint(t, s, 0, "1")
	for _, from := range []string{"", "0", "2"} {
		ran := false
		err := s.Advance(ctx, step(0, from, "3"), func(tx state.Tx) error {
			ran = true
			return tx.Set([]byte("a"), []byte("wrong"))
		})
		if !errors.Is(err, state.ErrMoved) {
			t.Fatalf("Advance from %q = %v (f ran: %v), want ErrMoved", from, err, ran)
		}
	}
	wantCheckpoint(t, s, 0, "1")
	wantAll(t, s, "a=1")
	// Other lanes, shards and functions have their own checkpoints.
	wantCheckpoint(t, s, 1, "")
	ok(t, s.Advance(ctx, state.Step{Func: "g", Shard: "s", To: "7"}, set()))
	ok(t, s.Advance(ctx, state.Step{Func: "f", Shard: "s2", To: "8"}, set()))
	wantCheckpoint(t, s, 0, "1")
	for _, c := range []struct{ fn, shard, want string }{{"g", "s", "7"}, {"f", "s2", "8"}, {"fs", "", ""}} {
		got, err := s.Checkpoint(ctx, c.fn, stream.ShardID(c.shard), 0)
		ok(t, err)
		if string(got) != c.want {
			t.Errorf("checkpoint of %s on %s = %q, want %q", c.fn, c.shard, got, c.want)
		}
	}
}

// Two goroutines count up one lane, each believing that it owns it. Every number must be counted once.
func twoOwners(t *testing.T, h Harness) {
	ctx, s := t.Context(), h.Store
	const steps = 50
	var wg sync.WaitGroup
	wins := make([]int, 2)
	for owner := range wins {
		wg.Go(func() {
			for {
				at, err := s.Checkpoint(ctx, "f", "s", 0)
				if err != nil {
					t.Error(err)
					return
				}
				n := 0
				if at != "" {
					if n, err = strconv.Atoi(string(at)); err != nil {
						t.Error(err)
						return
					}
				}
				if n == steps {
					return
				}
				err = s.Advance(ctx, step(0, string(at), fmt.Sprintf("%03d", n+1)), func(tx state.Tx) error {
					v, err := tx.Get([]byte("count"))
					if err != nil {
						return err
					}
					return tx.Set([]byte("count"), append(bytes.Clone(v), '.'))
				})
				switch {
				case err == nil:
					wins[owner]++
				case !errors.Is(err, state.ErrMoved):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if wins[0]+wins[1] != steps {
		t.Errorf("%d + %d steps succeeded, want %d", wins[0], wins[1], steps)
	}
	wantAll(t, s, "count="+string(bytes.Repeat([]byte("."), steps)))
}

func atomic(t *testing.T, h Harness) {
	ctx, s := t.Context(), h.Store
	ok(t, s.Advance(ctx, step(0, "", "1"), set("a", "1", "b", "1")))
	boom := errors.New("boom")
	err := s.Advance(ctx, step(0, "1", "2"), func(tx state.Tx) error {
		ok(t, tx.Set([]byte("a"), []byte("2")))
		ok(t, tx.Delete([]byte("b")))
		ok(t, tx.DeleteRange([]byte("a"), []byte("z")))
		ok(t, tx.Emit(state.Effect{ID: "1", Kind: "k", Data: []byte("x")}))
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatalf("Advance = %v, want f's own error", err)
	}
	wantCheckpoint(t, s, 0, "1")
	wantAll(t, s, "a=1", "b=1")
	wantPending(t, s, "k", 10)

	func() {
		defer func() {
			if recover() == nil {
				t.Error("Advance swallowed f's panic")
			}
		}()
		_ = s.Advance(ctx, step(0, "1", "2"), func(tx state.Tx) error {
			ok(t, tx.Set([]byte("a"), []byte("3")))
			panic("boom")
		})
	}()
	wantCheckpoint(t, s, 0, "1")
	wantAll(t, s, "a=1", "b=1")
	ok(t, s.Advance(ctx, step(0, "1", "2"), set("a", "2"))) // the lane is not stuck
	wantAll(t, s, "a=2", "b=1")
}

func ownReads(t *testing.T, h Harness) {
	ctx, s := t.Context(), h.Store
	ok(t, s.Advance(ctx, step(0, "", "1"), set("a", "1", "b", "1", "c", "1", "d", "1")))
	ok(t, s.Advance(ctx, step(0, "1", "2"), func(tx state.Tx) error {
		get := func(k, want string) {
			t.Helper()
			v, err := tx.Get([]byte(k))
			ok(t, err)
			if (v == nil) != (want == "nil") || v != nil && string(v) != want {
				t.Errorf("Get(%s) = %q, want %s", k, v, want)
			}
		}
		get("a", "1")
		get("x", "nil")
		ok(t, tx.Set([]byte("a"), []byte("2")))
		get("a", "2")
		ok(t, tx.Set([]byte("a"), []byte("3")))
		get("a", "3")
		ok(t, tx.Delete([]byte("b")))
		get("b", "nil")
		ok(t, tx.Set([]byte("e"), []byte{}))
		get("e", "")
		ok(t, tx.DeleteRange([]byte("c"), []byte("d")))
		get("c", "nil")
		get("d", "1")
		ok(t, tx.Set([]byte("c"), []byte("back")))
		get("c", "back")
		if d := cmp.Diff([]string{"a=3", "c=back", "d=1", "e="}, dump(t, tx)); d != "" {
			t.Errorf("scan in the transaction (-want +got):\n%s", d)
		}
		ok(t, tx.DeleteRange([]byte("d"), nil))
		ok(t, tx.DeleteRange([]byte("z"), []byte("a"))) // an empty range
		if d := cmp.Diff([]string{"a=3", "c=back"}, dump(t, tx)); d != "" {
			t.Errorf("scan after DeleteRange (-want +got):\n%s", d)
		}
		return nil
	}))
	wantAll(t, s, "a=3", "c=back")
	ok(t, s.Advance(ctx, step(0, "2", "3"), func(tx state.Tx) error { // writes only, never read back
		ok(t, tx.DeleteRange(nil, nil))
		return tx.Set([]byte("n"), []byte("1"))
	}))
	wantAll(t, s, "n=1")
}

func scans(t *testing.T, h Harness) {
	ctx, s := t.Context(), h.Store
	keys := []string{"", "\x00", "a", "a\x00", "aa", "b", "b\xff", "c", "\xff", "\xff\xff"}
	ok(t, s.Advance(ctx, step(0, "", "1"), func(tx state.Tx) error {
		for _, k := range slices.Backward(keys) {
			ok(t, tx.Set([]byte(k), []byte(k)))
		}
		return nil
	}))
	check := func(r state.Reader, from, to []byte, want []string) {
		t.Helper()
		got := []string{}
		ok(t, r.Scan(from, to, func(k, v []byte) error {
			if !bytes.Equal(k, v) {
				t.Errorf("key %q has value %q", k, v)
			}
			got = append(got, string(k))
			return nil
		}))
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("scan [%q, %q) (-want +got):\n%s", from, to, d)
		}
	}
	ok(t, s.View(ctx, func(r state.Reader) error {
		check(r, nil, nil, keys)
		check(r, []byte{}, nil, keys)
		check(r, nil, []byte{}, []string{})
		check(r, []byte("a"), []byte("b"), []string{"a", "a\x00", "aa"})
		check(r, []byte("aa"), []byte("c"), []string{"aa", "b", "b\xff"})
		check(r, []byte("b"), []byte("b"), []string{})
		check(r, []byte("c"), []byte("b"), []string{})
		check(r, []byte("\xff"), nil, []string{"\xff", "\xff\xff"})
		check(r, []byte("x"), []byte("y"), []string{})
		n := 0
		ok(t, r.Scan(nil, nil, func(_, _ []byte) error {
			if n++; n == 3 {
				return fmt.Errorf("enough: %w", state.ErrStop)
			}
			return nil
		}))
		if n != 3 {
			t.Errorf("scan went on after ErrStop: %d calls", n)
		}
		return nil
	}))
}

func scanErrors(t *testing.T, h Harness) {
	ok(t, h.Store.Update(t.Context(), set("a", "1", "b", "1")))
	boom := errors.New("boom")
	ok(t, h.Store.View(t.Context(), func(r state.Reader) error {
		n := 0
		err := r.Scan(nil, nil, func(_, _ []byte) error { n++; return boom })
		if !errors.Is(err, boom) || n != 1 {
			t.Errorf("Scan = %v after %d calls, want f's error after 1", err, n)
		}
		return nil
	}))
	if err := h.Store.View(t.Context(), func(state.Reader) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("View = %v, want f's error", err)
	}
}

func views(t *testing.T, h Harness) {
	ctx, s := t.Context(), h.Store
	ok(t, s.Advance(ctx, step(0, "", "1"), set("a", "1")))
	ok(t, s.View(ctx, func(r state.Reader) error {
		v, err := r.Get([]byte("a"))
		ok(t, err)
		ok(t, s.Advance(ctx, step(0, "1", "2"), set("a", "2", "b", "2")))
		if string(v) != "1" {
			t.Errorf("value changed under the view: %q", v)
		}
		if d := cmp.Diff([]string{"a=1"}, dump(t, r)); d != "" {
			t.Errorf("view sees a later step (-want +got):\n%s", d)
		}
		if v, err := r.Get([]byte("nothing")); v != nil || err != nil {
			t.Errorf("Get of a missing key = %q, %v; want nil, nil", v, err)
		}
		return nil
	}))
	wantAll(t, s, "a=2", "b=2")
}

func copies(t *testing.T, h Harness) {
	ctx, s := t.Context(), h.Store
	k, v, d := []byte("key"), []byte("value"), []byte("data")
	ok(t, s.Advance(ctx, step(0, "", "1"), func(tx state.Tx) error {
		ok(t, tx.Set(k, v))
		ok(t, tx.Emit(state.Effect{ID: "1", Kind: "k", Data: d}))
		copy(k, "xxx")
		copy(v, "xxxxx")
		copy(d, "xxxx")
		return nil
	}))
	wantAll(t, s, "key=value")
	wantPending(t, s, "k", 1, "1=data")
	// Values stay valid while the transaction reads more.
	ok(t, s.Update(ctx, func(tx state.Tx) error {
		for i := range 1000 {
			ok(t, tx.Set(fmt.Appendf(nil, "n%04d", i), fmt.Appendf(nil, "v%d", i)))
		}
		return nil
	}))
	ok(t, s.View(ctx, func(r state.Reader) error {
		var vals [][]byte
		for i := range 1000 {
			v, err := r.Get(fmt.Appendf(nil, "n%04d", i))
			ok(t, err)
			vals = append(vals, v)
		}
		for i, v := range vals {
			if want := fmt.Sprintf("v%d", i); string(v) != want {
				t.Fatalf("value %d became %q, want %q", i, v, want)
			}
		}
		return nil
	}))
}

func emit(es ...string) func(state.Tx) error {
	return func(tx state.Tx) error {
		for i := 0; i < len(es); i += 3 {
			if err := tx.Emit(state.Effect{Kind: es[i], ID: es[i+1], Data: []byte(es[i+2])}); err != nil {
				return err
			}
		}
		return nil
	}
}

func effects(t *testing.T, h Harness) {
	ctx, s := t.Context(), h.Store
	wantPending(t, s, "k", 10)
	ok(t, s.Advance(ctx, step(0, "", "1"), emit("k", "c", "1", "k", "a", "1", "other", "a", "2", "kk", "x", "3")))
	ok(t, s.Advance(ctx, step(1, "", "1"), emit("k", "b", "1")))
	wantPending(t, s, "k", 10, "c=1", "a=1", "b=1")
	wantPending(t, s, "k", 2, "c=1", "a=1")
	wantPending(t, s, "other", 10, "a=2")
	wantPending(t, s, "kk", 10, "x=3")
	// The same cause again: new data, old place. Also twice within one step.
	ok(t, s.Advance(ctx, step(0, "1", "2"), emit("k", "a", "2", "k", "d", "1", "k", "a", "3", "k", "d", "2")))
	wantPending(t, s, "k", 10, "c=1", "a=3", "b=1", "d=2")
	ok(t, s.Done(ctx, "k", "a", "unknown"))
	ok(t, s.Done(ctx, "other", "c"))
	ok(t, s.Done(ctx, "k"))
	wantPending(t, s, "k", 10, "c=1", "b=1", "d=2")
	ok(t, s.Advance(ctx, step(0, "2", "3"), emit("k", "a", "4"))) // after Done it is new
	wantPending(t, s, "k", 10, "c=1", "b=1", "d=2", "a=4")
	ok(t, s.Done(ctx, "k", "a", "b", "c", "d"))
	wantPending(t, s, "k", 10)
	wantPending(t, s, "other", 10, "a=2")
	for _, kind := range []string{"", "a\x00b"} {
		if err := s.Advance(ctx, step(0, "3", "4"), emit(kind, "a", "")); err == nil {
			t.Errorf("effect of kind %q was taken", kind)
		}
	}
}

func changed(t *testing.T, h Harness) {
	ctx, s := t.Context(), h.Store
	_, ch, err := s.Pending(ctx, "k", 1)
	ok(t, err)
	ok(t, s.Advance(ctx, step(0, "", "1"), set("a", "1")))
	select {
	case <-ch:
		t.Error("a step without effects woke the waiter")
	default:
	}
	ok(t, s.Advance(ctx, step(0, "1", "2"), emit("k", "1", "x")))
	<-ch
	wantPending(t, s, "k", 10, "1=x")
	_, ch, err = s.Pending(ctx, "k", 1)
	ok(t, err)
	ok(t, s.Update(ctx, emit("k", "2", "y")))
	<-ch
	wantPending(t, s, "k", 10, "1=x", "2=y")
}

func reopen(t *testing.T, h Harness) {
	ctx, s := t.Context(), h.Store
	ok(t, s.Advance(ctx, step(0, "", "1"), set("a", "1", "b", "1")))
	ok(t, s.Advance(ctx, step(0, "1", "2"), func(tx state.Tx) error { return tx.Delete([]byte("b")) }))
	ok(t, s.Update(ctx, set("u", "1")))
	s = h.Reopen()
	wantCheckpoint(t, s, 0, "2")
	wantAll(t, s, "a=1", "u=1")
	if err := s.Advance(ctx, step(0, "1", "3"), set()); !errors.Is(err, state.ErrMoved) {
		t.Errorf("Advance from an old checkpoint after reopening = %v, want ErrMoved", err)
	}
	ok(t, s.Advance(ctx, step(0, "2", "3"), set("a", "3")))
	s = h.Reopen()
	wantCheckpoint(t, s, 0, "3")
	wantAll(t, s, "a=3", "u=1")
}

func effectsReopen(t *testing.T, h Harness) {
	ctx, s := t.Context(), h.Store
	ok(t, s.Advance(ctx, step(0, "", "1"), emit("k", "z", "1", "k", "y", "1")))
	s = h.Reopen()
	ok(t, s.Advance(ctx, step(0, "1", "2"), emit("k", "x", "1", "k", "z", "2")))
	wantPending(t, s, "k", 10, "z=2", "y=1", "x=1")
	ok(t, s.Done(ctx, "k", "z", "y", "x"))
	s = h.Reopen()
	wantPending(t, s, "k", 10)
	ok(t, s.Advance(ctx, step(0, "2", "3"), emit("k", "b", "1", "k", "a", "1")))
	wantPending(t, s, "k", 10, "b=1", "a=1")
}

func update(t *testing.T, h Harness) {
	ctx, s := t.Context(), h.Store
	ok(t, s.Update(ctx, set("a", "1")))
	boom := errors.New("boom")
	if err := s.Update(ctx, func(tx state.Tx) error {
		ok(t, tx.Set([]byte("a"), []byte("2")))
		return boom
	}); !errors.Is(err, boom) {
		t.Errorf("Update = %v, want f's error", err)
	}
	wantAll(t, s, "a=1")
	ok(t, s.Update(ctx, func(state.Tx) error { return nil }))
}

func lanes(t *testing.T, h Harness) {
	ctx, s := t.Context(), h.Store
	const n, steps = 8, 30
	var wg sync.WaitGroup
	for lane := range n {
		wg.Go(func() {
			from := ""
			for i := range steps {
				to := fmt.Sprintf("%04d", i+1)
				err := s.Advance(ctx, step(lane, from, to), func(tx state.Tx) error {
					if i%10 == 9 {
						if err := tx.Emit(state.Effect{Kind: "k", ID: fmt.Sprintf("%d/%d", lane, i)}); err != nil {
							return err
						}
					}
					return tx.Set(fmt.Appendf(nil, "lane%d", lane), []byte(to))
				})
				if err != nil {
					t.Error(err)
					return
				}
				from = to
			}
		})
	}
	wg.Wait()
	for lane := range n {
		wantCheckpoint(t, s, lane, fmt.Sprintf("%04d", steps))
	}
	if got := len(all(t, s)); got != n {
		t.Errorf("%d keys, want %d", got, n)
	}
	es, _, err := s.Pending(ctx, "k", 1000)
	ok(t, err)
	if len(es) != n*steps/10 {
		t.Errorf("%d effects, want %d", len(es), n*steps/10)
	}
}

func closed(t *testing.T, h Harness) {
	ctx, s := t.Context(), h.Store
	ok(t, s.Close())
	ok(t, s.Close())
	_, errC := s.Checkpoint(ctx, "f", "s", 0)
	_, _, errP := s.Pending(ctx, "k", 1)
	for what, err := range map[string]error{
		"Checkpoint": errC,
		"Pending":    errP,
		"Advance":    s.Advance(ctx, step(0, "", "1"), set()),
		"Update":     s.Update(ctx, set()),
		"View":       s.View(ctx, func(state.Reader) error { return nil }),
		"Done":       s.Done(ctx, "k", "1"),
	} {
		if !errors.Is(err, state.ErrClosed) {
			t.Errorf("%s after Close = %v, want ErrClosed", what, err)
		}
	}
}

// A step whose To equals its From may write, and does not move anything.
func timeStep(t *testing.T, h Harness) {
	ctx, s := t.Context(), h.Store
	ok(t, s.Advance(ctx, step(0, "", ""), set()))
	ok(t, s.Advance(ctx, step(0, "", ""), set("a", "1")))
	wantCheckpoint(t, s, 0, "")
	ok(t, s.Advance(ctx, step(0, "", "1"), set()))
	ok(t, s.Advance(ctx, step(0, "1", "1"), emit("k", "1", "x")))
	wantCheckpoint(t, s, 0, "1")
	if err := s.Advance(ctx, step(0, "", ""), set("a", "2")); !errors.Is(err, state.ErrMoved) {
		t.Errorf("a time step from an old checkpoint = %v, want ErrMoved", err)
	}
	wantAll(t, s, "a=1")
	wantPending(t, s, "k", 1, "1=x")
}
