package statetest

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"testing"

	"github.com/milepost/milepost/state"
)

func crashSynced(t *testing.T, h Harness) {
	if h.Crash == nil {
		t.Skip("the engine has no crash to test")
	}
	ctx, s := t.Context(), h.Store
	ok(t, s.Advance(ctx, step(0, "", "1"), func(tx state.Tx) error {
		tx.Sync()
		return tx.Set([]byte("a"), []byte("1"))
	}))
	s = h.Crash()
	wantCheckpoint(t, s, 0, "1")
	wantAll(t, s, "a=1")
	ok(t, s.Advance(ctx, step(0, "1", "2"), set("b", "1")))      // not synced itself,
	ok(t, s.Advance(ctx, step(0, "2", "3"), emit("k", "e", ""))) // but this is
	s = h.Crash()
	wantCheckpoint(t, s, 0, "3")
	wantAll(t, s, "a=1", "b=1")
	wantPending(t, s, "k", 10, "e=")
	ok(t, s.Update(ctx, set("c", "1")))
	s = h.Crash()
	wantAll(t, s, "a=1", "b=1", "c=1")
	wantPending(t, s, "k", 10, "e=")
}

// Step i of this test sets the checkpoint to i, key "i" and key "last"; some are synced. After a crash the store must be as after
// some step, not before the last synced one.
func crashSuffix(t *testing.T, h Harness) {
	if h.Crash == nil {
		t.Skip("the engine has no crash to test")
	}
	s := h.Store
	at, synced := 0, 0
	pos := func(i int) string {
		if i == 0 {
			return ""
		}
		return fmt.Sprintf("%06d", i)
	}
	value := bytes.Repeat([]byte("v"), 3000) // a few steps to each block of the log
	for round := range 12 {
		for i := range 20 + round*7 {
			next := at + 1
			sync := (i+round)%9 == 4
			ok(t, s.Advance(context.Background(), step(0, pos(at), pos(next)), func(tx state.Tx) error {
				ok(t, tx.Set([]byte(pos(next)), value))
				ok(t, tx.Set([]byte("last"), []byte(pos(next))))
				if sync {
					return tx.Emit(state.Effect{Kind: "k", ID: pos(next)})
				}
				return nil
			}))
			if at = next; sync {
				synced = at
			}
		}
		s = h.Crash()
		got, err := s.Checkpoint(t.Context(), "f", "s", 0)
		ok(t, err)
		n := 0
		if got != "" {
			n, err = strconv.Atoi(string(got))
			ok(t, err)
		}
		if n < synced || n > at {
			t.Fatalf("round %d: checkpoint %d after the crash; step %d was synced, %d the last", round, n, synced, at)
		}
		ok(t, s.View(t.Context(), func(r state.Reader) error {
			for i := 1; i <= at; i++ {
				v, err := r.Get([]byte(pos(i)))
				ok(t, err)
				if (v != nil) != (i <= n) {
					t.Fatalf("round %d: checkpoint is %d, and step %d's key is there: %v", round, n, i, v != nil)
				}
			}
			v, err := r.Get([]byte("last"))
			ok(t, err)
			if string(v) != pos(n) {
				t.Fatalf("round %d: checkpoint is %d, last is %q", round, n, v)
			}
			return nil
		}))
		at = n
		synced = min(synced, at)
	}
}
