package process_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/stream"
)

// When a crash and another number of lanes come together, what was under way comes again under the same IDs first.
func TestLanesChangeKeepsBatches(t *testing.T) {
	b := newBench(t, 1)
	var mu sync.Mutex
	seen := map[string]string{} // ID → records
	by := map[string][]string{} // record → IDs
	begun, calm := 0, false
	h := &handler{name: "f", f: func(ctx context.Context, in *process.Invocation) (process.Result, error) {
		mu.Lock()
		w := strings.Clone(words(in.Records))
		if was, ok := seen[in.ID]; ok && was != w {
			t.Errorf("%s was %q and is %q", in.ID, was, w)
		}
		if _, ok := seen[in.ID]; !ok {
			for word := range strings.FieldsSeq(w) {
				by[word] = append(by[word], in.ID)
			}
		}
		seen[in.ID] = w
		begun++
		wait := !calm
		mu.Unlock()
		if wait {
			<-ctx.Done()
		}
		return process.Result{}, ctx.Err()
	}}
	o := process.Options{Lanes: 2, BatchSize: 50, StableBatches: true}
	var recs []stream.Record
	for i := range 40 {
		recs = append(recs, stream.Record{Key: fmt.Sprint("key-", i%7), Data: fmt.Append(nil, "r", i)})
	}
	if err := b.log.Append(t.Context(), recs); err != nil {
		t.Fatal(err)
	}
	r := b.start(func(r *process.Runner) error { return r.AddHandler(h, o) })
	for {
		mu.Lock()
		n := begun
		mu.Unlock()
		if n == 2 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	b.crash(r)
	mu.Lock()
	calm = true
	mu.Unlock()
	o.Lanes, o.BatchSize = 3, 9
	b.handle(h, o)
	if len(by) != 40 {
		t.Errorf("%d records seen, want 40", len(by))
	}
	for rec, ids := range by {
		if len(ids) != 1 {
			t.Errorf("%s came under %d IDs", rec, len(ids))
		}
	}
}
