package alert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// A scriptSink answers each attempt as its script says; then it takes everything.
type scriptSink struct {
	name   string
	answer func(id string, attempt int) error

	mu  sync.Mutex // guards got
	got []string   // "id@seconds since the start"
	n   map[string]int
	t0  time.Time
}

func newScriptSink(name string, answer func(id string, attempt int) error) *scriptSink {
	return &scriptSink{name: name, answer: answer, n: map[string]int{}, t0: time.Now()}
}

func (s *scriptSink) Name() string { return s.name }

func (s *scriptSink) Send(_ context.Context, n Notification) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n[n.ID]++
	s.got = append(s.got, fmt.Sprintf("%s@%d", n.ID, int(time.Since(s.t0).Seconds())))
	if s.answer == nil {
		return nil
	}
	return s.answer(n.ID, s.n[n.ID])
}

func (s *scriptSink) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

func (s *scriptSink) attempts(id string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n[id]
}

// A deadLog keeps what is dead-lettered.
type deadLog struct {
	stream.Log // nil: nothing else is called
	mu         sync.Mutex
	letters    []stream.DeadLetter
	fail       int // so many appends fail first
}

func (d *deadLog) all() []stream.DeadLetter {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.letters)
}

func (d *deadLog) Append(_ context.Context, recs []stream.Record) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail > 0 {
		d.fail--
		return stream.ErrFull
	}
	for _, r := range recs {
		var l stream.DeadLetter
		if err := json.Unmarshal(r.Data, &l); err != nil {
			return err
		}
		d.letters = append(d.letters, l)
	}
	return nil
}

// ask emits notifications as Apply does, now.
func ask(t testing.TB, s state.Store, sink string, ids ...string) {
	t.Helper()
	err := s.Update(t.Context(), func(tx state.Tx) error {
		for _, id := range ids {
			data, err := json.Marshal(Notification{ID: id, Transition: "firing", Asked: time.Now().UnixMilli(), Alert: Alert{Vehicle: "truck-7"}})
			if err != nil {
				return err
			}
			if err := tx.Emit(state.Effect{ID: id, Kind: Kind(sink), Data: data}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// bubble runs f in virtual time with a store and a notifier that is stopped and waited for.
func bubble(t *testing.T, sinks func() []Sink, retry Retry, dead *deadLog, f func(t *testing.T, s state.Store)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		store := openStore(t, vfs.NewCrashable())
		var log stream.Log
		if dead != nil {
			log = dead
		}
		n := NewNotifier(store, sinks(), retry, log, quiet(), prometheus.NewRegistry())
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = n.Run(ctx) })
		f(t, store)
		cancel()
		wg.Wait()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestNotifierRetriesWithGrowingPauses(t *testing.T) {
	var sink *scriptSink
	bubble(t, func() []Sink {
		sink = newScriptSink("hook", func(_ string, attempt int) error {
			if attempt < 4 {
				return errors.New("down")
			}
			return nil
		})
		return []Sink{sink}
	}, Retry{MinBackoff: 8 * time.Second, MaxBackoff: time.Minute}, nil, func(t *testing.T, s state.Store) {
		ask(t, s, "hook", "a/firing")
		time.Sleep(2 * time.Minute)
		if sink.attempts("a/firing") != 4 {
			t.Fatalf("attempts %v, want 4", sink.all())
		}
		var gaps []int
		last := 0
		for i, g := range sink.all() {
			var sec int
			_, err := fmt.Sscanf(g[strings.IndexByte(g, '@')+1:], "%d", &sec)
			if err != nil {
				t.Fatal(err)
			}
			if i > 0 {
				gaps = append(gaps, sec-last)
			}
			last = sec
		}
		for i, want := range [][2]int{{4, 8}, {8, 16}, {16, 32}} { // half of each pause is chance; seconds are cut
			if gaps[i] < want[0]-1 || gaps[i] > want[1]+1 {
				t.Errorf("pause %d was %d s, want %d to %d", i+1, gaps[i], want[0], want[1])
			}
		}
		if e := effects(t, s, "hook"); len(e) != 0 {
			t.Errorf("left %v, want nothing", e)
		}
	})
}

func TestNotifierDeadLettersWhatIsRefused(t *testing.T) {
	dead := &deadLog{fail: 1} // the first append fails: nothing may be lost
	var sink *scriptSink
	bubble(t, func() []Sink {
		sink = newScriptSink("hook", func(id string, _ int) error {
			if id == "bad/firing" {
				return &RefusedError{errors.New("410 gone")}
			}
			return nil
		})
		return []Sink{sink}
	}, Retry{}, dead, func(t *testing.T, s state.Store) {
		ask(t, s, "hook", "bad/firing", "good/firing")
		time.Sleep(time.Minute)
		if len(dead.all()) != 1 {
			t.Fatalf("%d dead letters, want 1", len(dead.all()))
		}
		l := dead.all()[0]
		if l.ID != "notify:hook/bad/firing" || l.Source != "sink hook" || l.Key != "truck-7" || l.Reason != "410 gone" || !strings.Contains(string(l.Data), "bad/firing") {
			t.Errorf("dead letter %+v", l)
		}
		if e := effects(t, s, "hook"); len(e) != 0 {
			t.Errorf("left %v, want nothing", e)
		}
		if sink.attempts("good/firing") != 1 {
			t.Errorf("the other one was sent %d times, want once", sink.attempts("good/firing"))
		}
	})
}

// What waits for a sink that is taken out of the configuration is dead-lettered, not left lying for ever.
func TestNotifierDeadLettersForRemovedSinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, dead := openStore(t, vfs.NewCrashable()), &deadLog{}
		run := func(sinks ...Sink) {
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { _ = NewNotifier(store, sinks, Retry{}, dead, quiet(), nil).Run(ctx) })
			time.Sleep(time.Minute)
			cancel()
			wg.Wait()
		}
		ask(t, store, "hook", "a/firing")
		run(newScriptSink("hook", func(string, int) error { return errors.New("down") }), newScriptSink("log", nil))
		if len(dead.all()) != 0 || len(effects(t, store, "hook")) != 1 {
			t.Fatalf("while the sink is there: %d dead letters, %v left", len(dead.all()), effects(t, store, "hook"))
		}
		for range 2 { // and once
			run(newScriptSink("log", nil))
		}
		if l := dead.all(); len(l) != 1 || l[0].Source != "sink hook" || l[0].Reason != "the sink is no longer configured" {
			t.Errorf("dead letters %+v", l)
		}
		if left := effects(t, store, "hook"); len(left) != 0 {
			t.Errorf("left %v, want nothing", left)
		}
		ask(t, store, "hook", "b/firing")
		back := newScriptSink("hook", nil)
		run(back)
		if back.attempts("b/firing") != 1 || len(dead.all()) != 1 {
			t.Errorf("configured again: sent %d times, %d dead letters", back.attempts("b/firing"), len(dead.all()))
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestNotifierGivesUpAfterMaxAge(t *testing.T) {
	dead := &deadLog{}
	bubble(t, func() []Sink {
		return []Sink{newScriptSink("hook", func(string, int) error { return errors.New("down for ever") })}
	}, Retry{}, dead, func(t *testing.T, s state.Store) {
		ask(t, s, "hook", "a/firing")
		time.Sleep(23 * time.Hour)
		if len(dead.all()) != 0 {
			t.Fatal("given up before a day has passed")
		}
		time.Sleep(90 * time.Minute)
		if len(dead.all()) != 1 || !strings.Contains(dead.all()[0].Reason, "down for ever") {
			t.Errorf("dead letters %+v, want one with the last error", dead.all())
		}
	})
}

func TestNotifierGivesUpAfterMaxAttempts(t *testing.T) {
	dead := &deadLog{}
	var sink *scriptSink
	bubble(t, func() []Sink {
		sink = newScriptSink("hook", func(string, int) error { return errors.New("down") })
		return []Sink{sink}
	}, Retry{MaxAttempts: 3}, dead, func(t *testing.T, s state.Store) {
		ask(t, s, "hook", "a/firing")
		time.Sleep(time.Hour)
		if sink.attempts("a/firing") != 3 || len(dead.all()) != 1 {
			t.Errorf("%d attempts, %d dead letters; want 3 and 1", sink.attempts("a/firing"), len(dead.all()))
		}
	})
}

func TestOnePoisonedNotificationDelaysNoOther(t *testing.T) {
	var sink *scriptSink
	bubble(t, func() []Sink {
		sink = newScriptSink("hook", func(id string, _ int) error {
			if strings.HasPrefix(id, "poison") {
				return errors.New("500")
			}
			return nil
		})
		return []Sink{sink}
	}, Retry{}, nil, func(t *testing.T, s state.Store) {
		// More poison than one page holds, and what is well comes after all of it.
		var ids []string
		for i := range pageSize + 10 {
			ids = append(ids, fmt.Sprintf("poison%d", i))
		}
		ask(t, s, "hook", append(ids, "well")...)
		// While it has never seen a success it must believe that the sink is down, so this takes a while, not for ever.
		time.Sleep(6 * time.Hour)
		if sink.attempts("well") != 1 {
			t.Errorf("sent %d times, want once", sink.attempts("well"))
		}
	})
}

func TestAnEndIsNotToldBeforeItsBeginning(t *testing.T) {
	var sink *scriptSink
	bubble(t, func() []Sink {
		sink = newScriptSink("hook", func(id string, attempt int) error {
			if id == "a/firing" && attempt < 4 {
				return errors.New("500")
			}
			return nil
		})
		return []Sink{sink}
	}, Retry{}, nil, func(t *testing.T, s state.Store) {
		ask(t, s, "hook", "a/firing", "a/resolved", "b/firing")
		time.Sleep(10 * time.Minute)
		var order []string
		for _, g := range sink.all() {
			order = append(order, g[:strings.IndexByte(g, '@')])
		}
		if i, j := slices.Index(order, "a/resolved"), slices.Index(order, "b/firing"); i != len(order)-1 || j < 0 || j > 2 {
			t.Errorf("order %v, want a/resolved last and b/firing soon", order)
		}
	})
}

func TestRetryAfterIsHonoured(t *testing.T) {
	var sink *scriptSink
	bubble(t, func() []Sink {
		sink = newScriptSink("hook", func(_ string, attempt int) error {
			if attempt == 1 {
				return &BusyError{After: 90 * time.Second, Err: errors.New("429")}
			}
			return nil
		})
		return []Sink{sink}
	}, Retry{}, nil, func(t *testing.T, s state.Store) {
		ask(t, s, "hook", "a")
		time.Sleep(89 * time.Second)
		if sink.attempts("a") != 1 {
			t.Errorf("came back after less than 90 s: %v", sink.all())
		}
		time.Sleep(2 * time.Second)
		if sink.attempts("a") != 2 {
			t.Errorf("did not come back after 90 s: %v", sink.all())
		}
	})
}

func TestSlowSinkDelaysOnlyItself(t *testing.T) { // P8
	var fast *scriptSink
	bubble(t, func() []Sink {
		fast = newScriptSink("fast", nil)
		return []Sink{hangingSink{}, fast}
	}, Retry{}, nil, func(t *testing.T, s state.Store) {
		ask(t, s, "hanging", "a")
		ask(t, s, "fast", "a", "b")
		synctest.Wait()
		if fast.attempts("a") != 1 || fast.attempts("b") != 1 {
			t.Errorf("the fast sink got %v, want a and b at once", fast.all())
		}
		time.Sleep(15 * time.Second)
		ask(t, s, "fast", "c")
		synctest.Wait()
		if fast.attempts("c") != 1 {
			t.Error("the fast sink waits for the hanging one")
		}
		if e := effects(t, s, "hanging"); !slices.Equal(e, []string{"a"}) {
			t.Errorf("hanging sink has left %v, want a", e)
		}
	})
}

// A hangingSink never answers.
type hangingSink struct{}

func (hangingSink) Name() string { return "hanging" }

func (hangingSink) Send(ctx context.Context, _ Notification) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestCrashBetweenSendAndDone: at least once, with the same ID (P3, P4).
func TestCrashBetweenSendAndDone(t *testing.T) {
	fs := vfs.NewCrashable()
	store := openStore(t, fs)
	l := newLane(t, store, fast(), "hook")
	id := l.speed("a", 0, 90, 0)[0].ID + "/firing"

	var crashed *vfs.MemFS
	first := newScriptSink("hook", func(string, int) error {
		crashed = fs.CrashClone(vfs.CrashCloneCfg{}) // the receiver has it; power fails before anyone notes it
		return nil
	})
	runUntil(t, store, first, id)
	again := openStore(t, crashed)
	second := newScriptSink("hook", nil)
	runUntil(t, again, second, id)
	if first.attempts(id) != 1 || second.attempts(id) != 1 {
		t.Errorf("sent %v before and %v after the crash, want the same ID once each", first.all(), second.all())
	}
	for _, s := range []state.Store{store, again} {
		if e := effects(t, s, "hook"); len(e) != 0 {
			t.Errorf("left %v, want nothing", e)
		}
	}
}

// runUntil runs a notifier until an effect is carried out.
func runUntil(t *testing.T, s state.Store, sink *scriptSink, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	told := &doneStore{Store: s, id: id, done: cancel}
	if err := NewNotifier(told, []Sink{sink}, Retry{}, nil, quiet(), nil).Run(ctx); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(context.Cause(ctx), context.Canceled) {
		t.Fatal("the notification was never carried out")
	}
}

// A doneStore tells when an effect is done.
type doneStore struct {
	state.Store
	id   string
	done func()
}

func (s *doneStore) Done(ctx context.Context, kind string, ids ...string) error {
	err := s.Store.Done(ctx, kind, ids...)
	if slices.Contains(ids, s.id) {
		s.done()
	}
	return err
}

func TestStopLetsAnAttemptFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := openStore(t, vfs.NewCrashable())
		ctx, cancel := context.WithCancel(t.Context())
		sink := &slowSink{begun: make(chan struct{}), takes: time.Second}
		n := NewNotifier(store, []Sink{sink, hangingSink{}}, Retry{}, nil, quiet(), nil)
		var wg sync.WaitGroup
		wg.Go(func() { _ = n.Run(ctx) })
		ask(t, store, "slow", "a")
		ask(t, store, "hanging", "a")
		<-sink.begun
		begin := time.Now()
		cancel()
		wg.Wait()
		if d := time.Since(begin); d > grace {
			t.Errorf("stopping took %v, want at most %v", d, grace)
		}
		if e := effects(t, store, "slow"); len(e) != 0 {
			t.Errorf("the attempt under way was cut off: left %v", e)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
}

type slowSink struct {
	begun chan struct{}
	takes time.Duration
}

func (*slowSink) Name() string { return "slow" }

func (s *slowSink) Send(ctx context.Context, _ Notification) error {
	close(s.begun)
	select {
	case <-time.After(s.takes):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestMetricsAreRegistered(t *testing.T) {
	reg := prometheus.NewRegistry()
	store := openStore(t, vfs.NewCrashable())
	n := NewNotifier(store, []Sink{newScriptSink("hook", nil)}, Retry{}, nil, quiet(), reg)
	l := newLane(t, store, fast(), "hook")
	id := l.speed("a", 0, 90, 0)[0].ID + "/firing"
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	n.store = &doneStore{Store: store, id: id, done: cancel}
	if err := n.Run(ctx); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "milepost_alert_notifications_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetCounter().GetValue() == 1 && m.GetLabel()[0].GetValue() == "sent" {
				return
			}
		}
	}
	t.Errorf("no sent notification counted in %v", families)
}
