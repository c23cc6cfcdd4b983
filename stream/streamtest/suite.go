// Package streamtest is what every engine of stream.Log must pass.
//
// An engine's test is a constructor and a call of Run. What an engine cannot do it leaves out of its Harness; everything else
// is the contract, word by word: durability is for the engine's own crash tests, order, completeness and waiting are here.
package streamtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/milepost/milepost/stream"
)

// Harness is an engine under test: one empty stream with at least three shards.
type Harness struct {
	Log stream.Log
	// Reopen closes the log and opens it again. nil: the engine's data does not outlive it.
	Reopen func() stream.Log
	// Split and Merge reshard. nil: the engine cannot.
	Split func(ctx context.Context, shard stream.ShardID, at stream.Hash) error
	Merge func(ctx context.Context, a, b stream.ShardID) error
	// MaxRecord is the size of key and data above which a record is refused. 0: unknown.
	MaxRecord int
}

// patience bounds every wait of the suite; nothing that works comes near it.
const patience = time.Minute

// Run tests an engine. open is called for each subtest; what it opens it closes in t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(*env)
	}{
		{"AppendRead", appendRead},
		{"AppendNothing", appendNothing},
		{"Routing", routing},
		{"BorrowedData", borrowedData},
		{"TooLarge", tooLarge},
		{"ReadAfterEach", readAfterEach},
		{"ReadAtMost", readAtMost},
		{"BadPosition", badPosition},
		{"UnknownShard", unknownShard},
		{"ConcurrentProducers", concurrentProducers},
		{"FollowTail", followTail},
		{"CancelledWait", cancelledWait},
		{"CancelledAppend", cancelledAppend},
		{"Seek", seek},
		{"Tip", tip},
		{"Reopen", reopen},
		{"Split", split},
		{"Merge", merge},
		{"SplitUnderLoad", splitUnderLoad},
		{"Close", closeLog},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			c.test(&env{T: t, ctx: ctx, h: open(t)})
		})
	}
}

// env is one subtest.
type env struct {
	*testing.T
	ctx context.Context //nolint:containedctx // of the subtest, which env is
	h   Harness
}

// append stores records and checks what Append says about them.
func (e *env) append(recs ...stream.Record) []stream.Record {
	e.Helper()
	if err := e.h.Log.Append(e.ctx, recs); err != nil {
		e.Fatalf("append: %v", err)
	}
	for i, r := range recs {
		if r.Pos == "" || r.Shard == "" || r.Time.IsZero() {
			e.Fatalf("record %d after Append: position %q, shard %q, time %v; want all of them set", i, r.Pos, r.Shard, r.Time)
		}
		if r.Time.Nanosecond()%1e6 != 0 {
			e.Fatalf("record %d: time %v has more than milliseconds", i, r.Time)
		}
	}
	return recs
}

// entry is a record that outlives the reader's buffer.
type entry struct {
	Key, Data string
	Shard     stream.ShardID
	Pos       stream.Position
	Time      int64
}

func entryOf(r *stream.Record) entry {
	return entry{string([]byte(r.Key)), string(r.Data), r.Shard, stream.Position([]byte(r.Pos)), r.Time.UnixMilli()}
}

func entries(recs []stream.Record) []entry {
	out := make([]entry, len(recs))
	for i := range recs {
		out[i] = entryOf(&recs[i])
	}
	return out
}

// read reads n records of a shard.
func (e *env) read(shard stream.ShardID, after stream.Position, n int) []entry {
	e.Helper()
	r, err := e.h.Log.Read(e.ctx, shard, after)
	if err != nil {
		e.Fatalf("read %s after %q: %v", shard, after, err)
	}
	defer e.close(r)
	var out []entry
	for len(out) < n {
		recs, err := r.Next(e.ctx, n-len(out))
		if err != nil {
			e.Fatalf("next of %s after %d of %d records: %v", shard, len(out), n, err)
		}
		if len(recs) == 0 || len(recs) > n-len(out) {
			e.Fatalf("next returned %d records, want 1 to %d", len(recs), n-len(out))
		}
		out = append(out, entries(recs)...)
	}
	return out
}

// drain reads a closed shard to its end.
func (e *env) drain(shard stream.ShardID, after stream.Position) []entry {
	e.Helper()
	r, err := e.h.Log.Read(e.ctx, shard, after)
	if err != nil {
		e.Fatalf("read %s after %q: %v", shard, after, err)
	}
	defer e.close(r)
	var out []entry
	for {
		recs, err := r.Next(e.ctx, 100)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			e.Fatalf("next of %s: %v", shard, err)
		}
		out = append(out, entries(recs)...)
	}
}

func (e *env) close(c io.Closer) {
	e.Helper()
	if err := c.Close(); err != nil {
		e.Errorf("close: %v", err)
	}
}

func (e *env) shards() []stream.Shard {
	e.Helper()
	s, err := e.h.Log.Shards(e.ctx)
	if err != nil {
		e.Fatalf("shards: %v", err)
	}
	return s
}

func (e *env) open() []stream.Shard {
	e.Helper()
	return slices.DeleteFunc(e.shards(), func(s stream.Shard) bool { return s.Closed })
}

// check compares what each shard holds with what was appended, in order.
func (e *env) check(want map[stream.ShardID][]entry) {
	e.Helper()
	for _, s := range e.shards() {
		w := want[s.ID]
		var got []entry
		if s.Closed {
			got = e.drain(s.ID, "")
		} else {
			got = e.read(s.ID, "", len(w))
		}
		if !slices.Equal(got, w) {
			e.Fatalf("%s holds %d records, want %d:%s", s.ID, len(got), len(w), difference(got, w))
		}
	}
}

func difference(got, want []entry) string {
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			return fmt.Sprintf("\n%d: got nothing, want %v", i, want[i])
		case i >= len(want):
			return fmt.Sprintf("\n%d: got %v, want nothing", i, got[i])
		case got[i] != want[i]:
			return fmt.Sprintf("\n%d: got  %v\n%d: want %v", i, got[i], i, want[i])
		}
	}
	return ""
}

func record(key string, data any) stream.Record {
	return stream.Record{Key: key, Data: fmt.Append(nil, data)}
}

func appendRead(e *env) {
	want := map[stream.ShardID][]entry{}
	n := 0
	for call := range 20 {
		var recs []stream.Record
		for i := range call*3 + 1 {
			recs = append(recs, record(fmt.Sprint("vehicle-", i%17), n))
			n++
		}
		recs = append(recs, stream.Record{Key: "empty"}, stream.Record{})
		for _, r := range e.append(recs...) {
			want[r.Shard] = append(want[r.Shard], entryOf(&r))
		}
	}
	if len(want) < 2 {
		e.Fatalf("all records are in one shard of %d", len(e.shards()))
	}
	for id, list := range want {
		for i := 1; i < len(list); i++ {
			if list[i].Pos <= list[i-1].Pos || list[i].Time < list[i-1].Time {
				e.Fatalf("%s: %v follows %v: position must grow and time must not fall", id, list[i], list[i-1])
			}
		}
	}
	e.check(want)
}

func appendNothing(e *env) {
	if err := e.h.Log.Append(e.ctx, nil); err != nil {
		e.Fatalf("append of no records: %v", err)
	}
}

func routing(e *env) {
	shards := e.shards()
	find := func(h stream.Hash) stream.ShardID {
		for _, s := range shards {
			if s.Contains(h) {
				return s.ID
			}
		}
		e.Fatalf("no shard contains %v", h)
		return ""
	}
	for i := range 100 {
		key := fmt.Sprint("key-", i)
		r := e.append(record(key, i))[0]
		if want := find(stream.KeyHash(key)); r.Shard != want {
			e.Fatalf("key %s is in %s, its hash in the range of %s", key, r.Shard, want)
		}
	}
	for _, s := range shards {
		for _, h := range []stream.Hash{s.From, s.To} {
			r := record("the same key", "")
			r.Hash = &h
			if got := e.append(r)[0].Shard; got != s.ID {
				e.Fatalf("hash %v is in %s, want %s", h, got, s.ID)
			}
		}
	}
}

func borrowedData(e *env) {
	data := []byte("first")
	r := e.append(stream.Record{Key: "k", Data: data})[0]
	copy(data, "XXXXX")
	if got := e.read(r.Shard, "", 1)[0].Data; got != "first" {
		e.Fatalf("the log holds %q after the caller reused its slice, want %q", got, "first")
	}
}

func tooLarge(e *env) {
	if e.h.MaxRecord == 0 {
		e.Skip("the engine does not say how large a record may be")
	}
	largest := stream.Record{Key: "k", Data: make([]byte, e.h.MaxRecord-1)}
	e.append(largest)
	recs := []stream.Record{record("a", 1), {Key: "k", Data: make([]byte, e.h.MaxRecord)}, record("b", 2)}
	err := e.h.Log.Append(e.ctx, recs)
	part, ok := errors.AsType[*stream.PartialError](err)
	if !ok || part.Failed != 1 || !errors.Is(err, stream.ErrTooLarge) {
		e.Fatalf("append with one record too large: %v, want a PartialError of 1 with ErrTooLarge", err)
	}
	for i, want := range []bool{true, false, true} {
		if stored := recs[i].Pos != ""; stored != want {
			e.Errorf("record %d stored: %v, want %v", i, stored, want)
		}
	}
	e.read(recs[0].Shard, "", 1)
	err = e.h.Log.Append(e.ctx, recs[1:2])
	if part, ok := errors.AsType[*stream.PartialError](err); !ok || part.Failed != 1 {
		e.Fatalf("append of nothing but a record that is too large: %v, want a PartialError of 1", err)
	}
}

func readAfterEach(e *env) {
	var list []entry
	for i := range 30 {
		r := e.append(record("one key", i))[0]
		list = append(list, entryOf(&r))
	}
	for i := range list {
		if got := e.read(list[0].Shard, list[i].Pos, len(list)-i-1); !slices.Equal(got, list[i+1:]) {
			e.Fatalf("after record %d:%s", i, difference(got, list[i+1:]))
		}
	}
}

func readAtMost(e *env) {
	var recs []stream.Record
	for i := range 50 {
		recs = append(recs, record("one key", i))
	}
	list := entries(e.append(recs...))
	for _, most := range []int{1, 2, 7, 50, 1000} {
		r, err := e.h.Log.Read(e.ctx, list[0].Shard, "")
		if err != nil {
			e.Fatal(err)
		}
		var got []entry
		for len(got) < len(list) {
			recs, err := r.Next(e.ctx, most)
			if err != nil || len(recs) < 1 || len(recs) > most {
				e.Fatalf("next(%d): %d records, %v", most, len(recs), err)
			}
			got = append(got, entries(recs)...)
		}
		e.close(r)
		if !slices.Equal(got, list) {
			e.Fatalf("next(%d):%s", most, difference(got, list))
		}
	}
}

func badPosition(e *env) {
	for _, pos := range []stream.Position{"x", "not a position", "🚚"} {
		if r, err := e.h.Log.Read(e.ctx, e.shards()[0].ID, pos); err == nil {
			e.close(r)
			e.Errorf("read after position %q succeeded", pos)
		}
	}
}

func unknownShard(e *env) {
	const id = "shardId-000000099999"
	if _, err := e.h.Log.Read(e.ctx, id, ""); !errors.Is(err, stream.ErrNoShard) {
		e.Errorf("read of %s: %v, want ErrNoShard", id, err)
	}
	if _, err := e.h.Log.Seek(e.ctx, id, time.Now()); !errors.Is(err, stream.ErrNoShard) {
		e.Errorf("seek in %s: %v, want ErrNoShard", id, err)
	}
}
