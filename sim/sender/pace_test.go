package sender

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// Nothing passes early, nothing more than a tick late, and thousands pass in one wait.
func TestPacer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pacer
		begin := time.Now()
		for i := range 20_000 {
			at := begin.Add(time.Duration(i) * 100 * time.Microsecond)
			if err := p.Wait(t.Context(), at); err != nil {
				t.Fatal(err)
			}
			if late := time.Since(at); late < 0 || late > Tick {
				t.Fatalf("moment %d passed %v late", i, late)
			}
		}
		late := time.Now().Add(-time.Minute)
		if err := p.Wait(t.Context(), late); err != nil || p.Behind(late) < time.Minute-Tick {
			t.Errorf("%v behind, %v", p.Behind(late), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		before := time.Now()
		if err := p.Wait(ctx, before.Add(time.Hour)); err == nil || time.Since(before) != time.Second {
			t.Errorf("%v after %v", err, time.Since(before))
		}
	})
}

func TestEvery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 35*time.Second)
		defer cancel()
		n := 0
		Every(ctx, 10*time.Second, func() { n++ })
		if n != 3 {
			t.Errorf("called %d times in 35 s, want 3", n)
		}
	})
}
