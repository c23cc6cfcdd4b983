package lane

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/state"
)

// Each calls fn with every stored result of every window of the store, by window and time, until it returns false. A name limits it to
// one window; from and to (Unix ms, [from, to); both 0: all) limit it to windows that begin there.
func Each(ctx context.Context, store state.Store, name string, from, to int64, fn func(*window.Stored) bool) error {
	return store.View(ctx, func(r state.Reader) error {
		lo := []byte(resultPrefix)
		hi := state.PrefixEnd(lo)
		if name != "" {
			if from == 0 && to == 0 {
				from, to = math.MinInt64, math.MaxInt64
			}
			lo, hi = resultKey(name, from, ""), resultKey(name, to, "")
		}
		return r.Scan(lo, hi, func(k, v []byte) error {
			name, _, key, err := cutResult(k)
			if err != nil {
				return err
			}
			s, err := window.DecodeStored(v)
			if err != nil {
				return fmt.Errorf("result of window %s: %w", name, err)
			}
			s.Window, s.Key = name, key
			if !fn(&s) {
				return state.ErrStop
			}
			return nil
		})
	})
}

// Expire forgets the results of windows that began longer than Keep before now. Lanes forget silent keys (sweep.go).
func (w *Windows) Expire(ctx context.Context, now time.Time) error {
	for _, b := range w.defs {
		limit := now.UnixMilli() - b.Keep()
		err := w.cfg.Store.Update(ctx, func(tx state.Tx) error {
			return tx.DeleteRange(resultKey(b.Spec.Name, math.MinInt64, ""), resultKey(b.Spec.Name, limit, ""))
		})
		if err != nil {
			return fmt.Errorf("expire results of window %s: %w", b.Spec.Name, err)
		}
	}
	return nil
}
