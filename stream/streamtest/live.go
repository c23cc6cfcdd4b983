package streamtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/milepost/milepost/stream"
)

// produce appends n records for each of its keys, in small batches, and counts upward within a key.
func (e *env) produce(ctx context.Context, keys []string, n int) error {
	for i := 0; i < n; {
		var recs []stream.Record
		for range min(3, n-i) {
			for _, k := range keys {
				recs = append(recs, record(k, i))
			}
			i++
		}
		if err := e.h.Log.Append(ctx, recs); err != nil {
			return err
		}
	}
	return nil
}

// counted checks that each key's records count upward from zero to n, none missing, none twice.
func (e *env) counted(list []entry, keys, n int) {
	e.Helper()
	next := map[string]int{}
	for _, r := range list {
		if got, err := strconv.Atoi(r.Data); err != nil || got != next[r.Key] {
			e.Fatalf("key %s continues with %s, want %d", r.Key, r.Data, next[r.Key])
		}
		next[r.Key]++
	}
	if len(next) != keys {
		e.Fatalf("got records of %d keys, want %d", len(next), keys)
	}
	for k, got := range next {
		if got != n {
			e.Fatalf("key %s has %d records, want %d", k, got, n)
		}
	}
}

func producerKeys(p int) []string {
	return []string{fmt.Sprint("a-", p), fmt.Sprint("b-", p), fmt.Sprint("c-", p)}
}

func concurrentProducers(e *env) {
	const producers, each = 16, 100
	var wg sync.WaitGroup
	for p := range producers {
		wg.Go(func() {
			if err := e.produce(e.ctx, producerKeys(p), each); err != nil {
				e.Error(err)
			}
		})
	}
	// A reader of each shard follows while they produce.
	lists := make([][]entry, len(e.shards()))
	ctx, stop := context.WithCancel(e.ctx)
	var followers sync.WaitGroup
	var mu sync.Mutex
	left := producers * each * 3
	for i, s := range e.shards() {
		followers.Go(func() {
			r, err := e.h.Log.Read(ctx, s.ID, "")
			if err != nil {
				e.Error(err)
				return
			}
			defer e.close(r)
			for {
				recs, err := r.Next(ctx, 64)
				if err != nil {
					if !errors.Is(err, context.Canceled) {
						e.Error(err)
					}
					return
				}
				lists[i] = append(lists[i], entries(recs)...)
				mu.Lock()
				if left -= len(recs); left <= 0 {
					stop()
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	followers.Wait()
	stop()
	e.counted(slices.Concat(lists...), producers*3, each)
}

// followTail has a reader wait before each append.
func followTail(e *env) {
	h := stream.KeyHash("tail")
	id := e.open()[slices.IndexFunc(e.open(), func(s stream.Shard) bool { return s.Contains(h) })].ID
	r, err := e.h.Log.Read(e.ctx, id, "")
	if err != nil {
		e.Fatal(err)
	}
	defer e.close(r)
	type answer struct {
		list []entry
		err  error
	}
	for i := range 50 {
		got := make(chan answer, 1)
		go func() { // ends by its answer
			recs, err := r.Next(e.ctx, 10)
			got <- answer{entries(recs), err}
		}()
		want := e.append(record("tail", i))[0]
		a := <-got
		if a.err != nil || len(a.list) != 1 || a.list[0] != entryOf(&want) {
			e.Fatalf("next while waiting: %v, %v; want %v", a.list, a.err, entryOf(&want))
		}
	}
}

// cancelledWait ends a wait by its context; the reader must go on where it was.
func cancelledWait(e *env) {
	first := e.append(record("k", "first"))[0]
	r, err := e.h.Log.Read(e.ctx, first.Shard, first.Pos)
	if err != nil {
		e.Fatal(err)
	}
	defer e.close(r)
	for range 3 {
		ctx, cancel := context.WithCancel(e.ctx)
		done := make(chan error, 1)
		go func() { // ends by its answer
			_, err := r.Next(ctx, 1)
			done <- err
		}()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			e.Fatalf("next with a cancelled context: %v, want context.Canceled", err)
		}
	}
	want := e.append(record("k", "second"))[0]
	recs, err := r.Next(e.ctx, 1)
	if err != nil || entryOf(&recs[0]) != entryOf(&want) {
		e.Fatalf("next after cancelled waits: %v, %v; want %v", recs, err, want)
	}
}

func cancelledAppend(e *env) {
	ctx, cancel := context.WithCancel(e.ctx)
	cancel()
	recs := []stream.Record{record("k", "never")}
	if err := e.h.Log.Append(ctx, recs); !errors.Is(err, context.Canceled) || recs[0].Pos != "" {
		e.Fatalf("append with a cancelled context: %v, position %q; want context.Canceled and none", err, recs[0].Pos)
	}
}

// seek looks for each time that a record has, and for those around.
func seek(e *env) {
	if pos, err := e.h.Log.Seek(e.ctx, e.open()[0].ID, time.Now()); err != nil || pos != "" {
		e.Fatalf("seek in an empty shard: %q, %v; want \"\"", pos, err)
	}
	var list []entry
	for len(list) < 200 || list[0].Time == list[len(list)-1].Time {
		r := e.append(record("one key", len(list)))[0]
		list = append(list, entryOf(&r))
	}
	id := list[0].Shard
	after := func(t time.Time) stream.Position {
		pos, err := e.h.Log.Seek(e.ctx, id, t)
		if err != nil {
			e.Fatalf("seek %v: %v", t, err)
		}
		return pos
	}
	for i, r := range list {
		for _, t := range []time.Time{
			time.UnixMilli(r.Time), time.UnixMilli(r.Time - 1), time.UnixMilli(r.Time + 1), time.UnixMilli(r.Time).Add(time.Microsecond),
		} {
			first := slices.IndexFunc(list, func(x entry) bool { return !time.UnixMilli(x.Time).Before(t) })
			if first < 0 {
				first = len(list)
			}
			got := e.read(id, after(t), min(1, len(list)-first))
			if len(got) == 1 && got[0] != list[first] {
				e.Fatalf("seek %v (record %d): then comes %v, want %v", t, i, got[0], list[first])
			}
			if first == len(list) && after(t) != list[first-1].Pos {
				e.Fatalf("seek beyond the end: %q, want the last position %q", after(t), list[first-1].Pos)
			}
		}
	}
}

func tip(e *env) {
	t, ok := e.h.Log.(stream.Tipper)
	if !ok {
		e.Skip("the engine is no Tipper")
	}
	id := e.append(record("k", 0))[0].Shard
	for _, s := range e.open() {
		if s.ID == id {
			continue
		}
		if got, err := t.Tip(e.ctx, s.ID); err != nil || got.Pos != "" || got.Seq != 0 || !got.Time.IsZero() {
			e.Fatalf("tip of an empty shard: %+v, %v", got, err)
		}
	}
	for i := range 20 {
		r := e.append(record("k", i))[0]
		got, err := t.Tip(e.ctx, id)
		if err != nil || got.Pos != r.Pos || !got.Time.Equal(r.Time) || got.Seq != uint64(i)+2 || t.Count(id, r.Pos) != got.Seq {
			e.Fatalf("tip: %+v, %v, count %d; want %s, %v and %d", got, err, t.Count(id, r.Pos), r.Pos, r.Time, i+2)
		}
	}
	if n := t.Count(id, ""); n != 0 {
		e.Fatalf("%d records precede the first", n)
	}
	if _, err := t.Tip(e.ctx, "shardId-000000099999"); !errors.Is(err, stream.ErrNoShard) {
		e.Fatalf("tip of an unknown shard: %v", err)
	}
}

func reopen(e *env) {
	if e.h.Reopen == nil {
		e.Skip("the engine cannot be reopened")
	}
	want := map[stream.ShardID][]entry{}
	for round := range 4 {
		for i := range 25 {
			r := e.append(record(fmt.Sprint("key-", i), round))[0]
			want[r.Shard] = append(want[r.Shard], entryOf(&r))
		}
		before := e.shards()
		e.h.Log = e.h.Reopen()
		e.check(want)
		for i, s := range e.shards() {
			if s.ID != before[i].ID || s.From != before[i].From || s.To != before[i].To || !s.Created.Equal(before[i].Created) {
				e.Fatalf("shard after reopening: %+v, before: %+v", s, before[i])
			}
		}
	}
}

// middle is a hash that splits a shard.
func middle(s *stream.Shard) stream.Hash {
	return stream.Hash{Hi: s.From.Hi + (s.To.Hi-s.From.Hi)/2 + 1}
}

func split(e *env) {
	if e.h.Split == nil {
		e.Skip("the engine cannot split")
	}
	want := map[stream.ShardID][]entry{}
	put := func(round string) {
		for i := range 100 {
			r := e.append(record(fmt.Sprint("key-", i), round))[0]
			want[r.Shard] = append(want[r.Shard], entryOf(&r))
		}
	}
	put("before")
	parent := e.open()[1]
	for _, at := range []stream.Hash{parent.From, parent.To.Next()} {
		if err := e.h.Split(e.ctx, parent.ID, at); err == nil {
			e.Fatalf("split of %v to %v at %v succeeded", parent.From, parent.To, at)
		}
	}
	// A reader that waits at the parent's end finds out that there is no more.
	last := want[parent.ID][len(want[parent.ID])-1]
	r, err := e.h.Log.Read(e.ctx, parent.ID, last.Pos)
	if err != nil {
		e.Fatal(err)
	}
	defer e.close(r)
	done := make(chan error, 1)
	go func() { // ends by its answer
		_, err := r.Next(e.ctx, 1)
		done <- err
	}()
	if err := e.h.Split(e.ctx, parent.ID, middle(&parent)); err != nil {
		e.Fatalf("split: %v", err)
	}
	if err := <-done; !errors.Is(err, io.EOF) {
		e.Fatalf("next at the end of a split shard: %v, want EOF", err)
	}
	put("after")
	e.family(parent.ID, last.Pos, 2)
	e.check(want)
	if err := e.h.Split(e.ctx, parent.ID, middle(&parent)); err == nil {
		e.Fatal("a closed shard was split again")
	}
	if e.h.Reopen != nil {
		e.h.Log = e.h.Reopen()
		e.family(parent.ID, last.Pos, 2)
		e.check(want)
		put("later")
		e.check(want)
	}
}

// family checks a closed shard, and that its children cover its range.
func (e *env) family(parent stream.ShardID, end stream.Position, children int) {
	e.Helper()
	shards := e.shards()
	p := shards[slices.IndexFunc(shards, func(s stream.Shard) bool { return s.ID == parent })]
	if !p.Closed || p.End != end {
		e.Fatalf("parent %+v: want it closed, ending with %s", p, end)
	}
	n := 0
	for i, s := range shards {
		if !slices.Contains(s.Parents, parent) {
			continue
		}
		n++
		if s.Closed || slices.IndexFunc(shards, func(s stream.Shard) bool { return s.ID == parent }) > i {
			e.Fatalf("child %+v: want it open and behind its parent", s)
		}
	}
	if n != children {
		e.Fatalf("%s has %d children, want %d", parent, n, children)
	}
	at := stream.Hash{}
	open := e.open()
	slices.SortFunc(open, func(a, b stream.Shard) int {
		if a.From.Less(b.From) {
			return -1
		}
		return 1
	})
	for i, s := range open {
		if s.From != at || (s.To == stream.MaxHash) != (i == len(open)-1) {
			e.Fatalf("open shard %+v begins at %v, want %v: the ring must be covered once", s.ID, s.From, at)
		}
		at = s.To.Next()
	}
}

func merge(e *env) {
	if e.h.Merge == nil {
		e.Skip("the engine cannot merge")
	}
	want := map[stream.ShardID][]entry{}
	put := func(round string) {
		for i := range 100 {
			r := e.append(record(fmt.Sprint("key-", i), round))[0]
			want[r.Shard] = append(want[r.Shard], entryOf(&r))
		}
	}
	put("before")
	s := e.open()
	if err := e.h.Merge(e.ctx, s[0].ID, s[2].ID); err == nil {
		e.Fatal("shards that are no neighbours were merged")
	}
	if err := e.h.Merge(e.ctx, s[0].ID, s[0].ID); err == nil {
		e.Fatal("a shard was merged with itself")
	}
	if err := e.h.Merge(e.ctx, s[1].ID, s[0].ID); err != nil {
		e.Fatalf("merge: %v", err)
	}
	put("after")
	for _, p := range s[:2] {
		e.family(p.ID, want[p.ID][len(want[p.ID])-1].Pos, 1)
	}
	e.check(want)
	if e.h.Reopen != nil {
		e.h.Log = e.h.Reopen()
		put("later")
		e.check(want)
	}
}

// splitUnderLoad reshards while producers append. Reading parents before their children, each key's records are in order (P2).
func splitUnderLoad(e *env) {
	if e.h.Split == nil || e.h.Merge == nil {
		e.Skip("the engine cannot reshard")
	}
	const producers, each = 8, 200
	var wg sync.WaitGroup
	for p := range producers {
		wg.Go(func() {
			if err := e.produce(e.ctx, producerKeys(p), each); err != nil {
				e.Error(err)
			}
		})
	}
	for range 4 {
		s := e.open()[0]
		if err := e.h.Split(e.ctx, s.ID, middle(&s)); err != nil {
			e.Fatal(err)
		}
		open := e.open()
		if err := e.h.Merge(e.ctx, open[len(open)-2].ID, open[len(open)-1].ID); err != nil {
			e.Fatal(err)
		}
	}
	wg.Wait()
	var list []entry
	for _, s := range e.shards() { // parents first
		if s.Closed {
			list = append(list, e.drain(s.ID, "")...)
			continue
		}
		if t, ok := e.h.Log.(stream.Tipper); ok {
			end, err := t.Tip(e.ctx, s.ID)
			if err != nil {
				e.Fatal(err)
			}
			list = append(list, e.read(s.ID, "", int(end.Seq))...)
		}
	}
	if _, ok := e.h.Log.(stream.Tipper); ok {
		e.counted(list, producers*3, each)
	}
}

func closeLog(e *env) {
	rec := e.append(record("k", 1))[0]
	r, err := e.h.Log.Read(e.ctx, rec.Shard, rec.Pos)
	if err != nil {
		e.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { // ends by its answer
		_, err := r.Next(e.ctx, 1)
		done <- err
	}()
	for range 2 {
		if err := e.h.Log.Close(); err != nil {
			e.Fatalf("close: %v", err)
		}
	}
	if err := <-done; !errors.Is(err, stream.ErrClosed) {
		e.Errorf("next of a reader whose log was closed: %v, want ErrClosed", err)
	}
	e.close(r)
	recs := []stream.Record{record("k", 2)}
	if err := e.h.Log.Append(e.ctx, recs); !errors.Is(err, stream.ErrClosed) || recs[0].Pos != "" {
		e.Errorf("append to a closed log: %v, position %q; want ErrClosed and none", err, recs[0].Pos)
	}
	if r, err := e.h.Log.Read(e.ctx, rec.Shard, ""); err == nil {
		if _, err := r.Next(e.ctx, 1); !errors.Is(err, stream.ErrClosed) {
			e.Errorf("next of a reader of a closed log: %v, want ErrClosed", err)
		}
		e.close(r)
	}
}
