package alert

import (
	"testing"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state"
)

// An alert that no rule found is told once, ends when it is settled, comes back as the same one, and outlives rules that are gone.
func TestRaiseAndSettle(t *testing.T) {
	store := openStore(t, vfs.NewCrashable())
	do := func(f func(tx state.Tx) error) {
		t.Helper()
		if err := store.Update(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	a := Alert{ID: "certificate/truck-17/a1", Rule: "device/certificate", Vehicle: "truck-17", Severity: "warning", Summary: "The certificate of truck-17 ends in 20 days.", Since: 1000}
	raise := func(tx state.Tx) error { return Raise(tx, a, 1000, []string{"ops"}) }
	look := func(want State, told int) {
		t.Helper()
		got, err := NewBook(store).Get(t.Context(), a.ID)
		if err != nil || got.State != want {
			t.Errorf("%+v %v, want %s", got, err, want)
		}
		effects, _, err := store.Pending(t.Context(), Kind("ops"), 10)
		if err != nil || len(effects) != told {
			t.Errorf("%d notifications, want %d (%v)", len(effects), told, err)
		}
	}
	do(raise)
	do(raise)
	look(Firing, 1)
	do(func(tx state.Tx) error {
		_, err := Retire(tx, "truck-17", func(string) bool { return false }, 1500, []string{"ops"})
		return err
	})
	look(Firing, 1)
	settle := func(tx state.Tx) error { return Settle(tx, a.ID, 2000, []string{"ops"}) }
	do(settle)
	do(settle)
	look(Resolved, 2)
	do(raise)
	look(Firing, 3)
}
