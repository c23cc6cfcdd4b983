package seglog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
)

func mustTrim(t *testing.T, st *Store, now time.Time) {
	t.Helper()
	if err := st.Trim(t.Context(), now); err != nil {
		t.Fatal(err)
	}
}

// TestRetentionByAge lets days pass: what is older than the retention goes, an idle stream's too, and within a 24th of it.
func TestRetentionByAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := vfs.NewCrashable()
		cfg := Config{Dir: "log", FS: mem} // with the background retention
		st := mustOpen(t, cfg)
		l := mustCreate(t, st, StreamConfig{Shards: 2, Retention: 24 * time.Hour})
		id := mustAppend(t, l, map[stream.ShardID][]kept{}, "k", "old")[0].Shard
		slow, err := l.Read(t.Context(), id, "") // a reader that has read nothing when its place is removed
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(23 * time.Hour)
		if n := len(contents(t, l)[id]); n != 1 {
			t.Fatalf("after 23 hours %d records are left, want 1", n)
		}
		time.Sleep(3 * time.Hour)
		if n, st := len(contents(t, l)[id]), l.Stats(); n != 0 || st.Segments != 1 || !st.Oldest.IsZero() {
			t.Fatalf("after 26 hours %d records are left; %+v", n, st)
		}
		want := map[stream.ShardID][]kept{}
		rec := mustAppend(t, l, want, "k", "new")[0]
		if rec.Pos != formatPosition(2) {
			t.Fatalf("the next record is at %s, want 2", rec.Pos)
		}
		if recs, err := slow.Next(t.Context(), 10); err != nil || len(recs) != 1 || recs[0].Pos != rec.Pos {
			t.Fatalf("a reader of what is gone: %v, %v; want to continue at %s", recs, err, rec.Pos)
		}
		mustClose(t, slow)
		pos, err := l.Seek(t.Context(), id, time.Now().Add(-48*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := readShard(t.Context(), l, id, pos); err != nil || !slices.Equal(got, want[id]) {
			t.Fatalf("from %q: %v, %v", pos, got, err)
		}
		mustClose(t, st)
		st = mustOpen(t, cfg)
		mustHold(t, mustStream(t, st), want)
		time.Sleep(48 * time.Hour)
		if tip, err := mustStream(t, st).Tip(t.Context(), id); err != nil || tip.Pos != rec.Pos || !tip.Time.Equal(rec.Time) {
			t.Fatalf("the tip of an emptied shard: %+v, %v; want %s at %v", tip, err, rec.Pos, rec.Time)
		}
		mustClose(t, st)
		st = mustOpen(t, cfg)
		if tip, err := mustStream(t, st).Tip(t.Context(), id); err != nil || tip.Pos != rec.Pos || !tip.Time.Equal(rec.Time) {
			t.Fatalf("the tip of an emptied shard after a restart: %+v, %v; want %s at %v", tip, err, rec.Pos, rec.Time)
		}
		mustClose(t, st)
	})
}

// TestRetentionBySize keeps the newest segments.
func TestRetentionBySize(t *testing.T) {
	mem := vfs.NewCrashable()
	cfg := Config{Dir: "log", FS: mem, SegmentBytes: 2000, TrimEvery: -1}
	st := mustOpen(t, cfg)
	l := mustCreate(t, st, StreamConfig{RetentionBytes: 10_000})
	want := map[stream.ShardID][]kept{}
	for i := range 100 {
		mustAppend(t, l, want, "k", fmt.Sprint(i, strings.Repeat("x", 300)))
		mustTrim(t, st, time.Now())
	}
	s := l.Stats()
	if s.Bytes > 12_000 || s.Bytes < 6_000 || s.Records != 100 {
		t.Fatalf("%+v, want about 10,000 bytes", s)
	}
	id := shardID(0)
	check := func() {
		t.Helper()
		for _, after := range []stream.Position{"", formatPosition(1), formatPosition(50)} {
			got, err := readShard(t.Context(), l, id, after)
			if err != nil || len(got) < 15 || !slices.Equal(got, want[id][100-len(got):]) {
				t.Fatalf("after %q: %v, %s", after, err, differ(got, want[id]))
			}
		}
	}
	check()
	names, _ := mem.List("log/streams/test")
	if len(names) > 2*s.Segments+1 {
		t.Fatalf("%d segments, but the files %v", s.Segments, names)
	}
	mustClose(t, st)
	st = mustOpen(t, cfg)
	l = mustStream(t, st)
	check()
	if err := st.Update(t.Context(), "test", func(c *StreamConfig) { c.RetentionBytes = 3000 }); err != nil {
		t.Fatal(err)
	}
	mustTrim(t, st, time.Now())
	if s := l.Stats(); s.Bytes > 4500 || l.Config().RetentionBytes != 3000 {
		t.Fatalf("%+v after the retention was shortened", s)
	}
	mustClose(t, st)
}

// TestClosedShards stay listed until retention has passed what they hold, and then go.
func TestClosedShards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := Config{Dir: "log", FS: vfs.NewCrashable(), TrimEvery: -1}
		st := mustOpen(t, cfg)
		l := mustCreate(t, st, StreamConfig{Retention: 2 * time.Hour})
		want := map[stream.ShardID][]kept{}
		mustAppend(t, l, want, "k", "a")
		kids, err := l.Split(t.Context(), shardID(0), stream.Hash{Hi: 1 << 63})
		if err != nil {
			t.Fatal(err)
		}
		empty, err := l.Split(t.Context(), kids[1].ID, stream.Hash{Hi: 3 << 62}) // shard 2 never held a record
		if err != nil {
			t.Fatal(err)
		}
		late, err := l.Read(t.Context(), shardID(0), "")
		if err != nil {
			t.Fatal(err)
		}
		ids := func() (ids []stream.ShardID) {
			shards, err := l.Shards(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range shards {
				ids = append(ids, s.ID)
			}
			return ids
		}
		time.Sleep(time.Hour)
		mustTrim(t, st, time.Now())
		if got := ids(); len(got) != 5 {
			t.Fatalf("after an hour: %v, want all five shards", got)
		}
		mustHold(t, l, want)
		time.Sleep(2 * time.Hour)
		mustTrim(t, st, time.Now())
		for range 2 {
			if got, want := ids(), []stream.ShardID{kids[0].ID, empty[0].ID, empty[1].ID}; !slices.Equal(got, want) {
				t.Fatalf("after three hours: %v, want %v", got, want)
			}
			if _, err := l.Read(t.Context(), shardID(0), ""); !errors.Is(err, stream.ErrNoShard) {
				t.Fatalf("read of a shard that is gone: %v", err)
			}
			if late != nil {
				if recs, err := late.Next(t.Context(), 1); !errors.Is(err, io.EOF) {
					t.Fatalf("a reader of a shard that is gone: %v, %v; want EOF", recs, err)
				}
				mustClose(t, late)
				late = nil
			}
			mustClose(t, st)
			st = mustOpen(t, cfg)
			l = mustStream(t, st)
		}
		mustAppend(t, l, map[stream.ShardID][]kept{}, "k", "goes on")
		mustClose(t, st)
	})
}

// TestTrimWhileReading: readers run through a log whose front is being removed; they skip what is gone, and nothing else.
func TestTrimWhileReading(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), SegmentBytes: 500, CacheBytes: 1, TrimEvery: -1}
	st := mustOpen(t, cfg)
	defer mustClose(t, st)
	l := mustCreate(t, st, StreamConfig{RetentionBytes: 3000})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 4)
	for range cap(done) {
		go func() { // waited for by done
			done <- func() error {
				r, err := l.Read(ctx, shardID(0), "")
				if err != nil {
					return err
				}
				defer r.Close()
				last := stream.Position("")
				for {
					recs, err := r.Next(ctx, 3)
					if errors.Is(err, context.Canceled) {
						return nil
					}
					if err != nil {
						return err
					}
					for _, rec := range recs {
						if seq, _ := parsePosition(rec.Pos); rec.Pos <= last || string(rec.Data[:16]) != fmt.Sprintf("%016x", seq) {
							return fmt.Errorf("%s with %.20s follows %s", rec.Pos, rec.Data, last)
						}
						last = rec.Pos
					}
					if last == formatPosition(600) {
						return nil
					}
				}
			}()
		}()
	}
	for i := range 600 {
		if err := l.Append(t.Context(), []stream.Record{{Data: fmt.Appendf(nil, "%016x%0*d", i+1, i%100, 0)}}); err != nil {
			t.Fatal(err)
		}
		mustTrim(t, st, time.Now())
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	cancel()
}

// TestTrimOnFullDisk: when not even the metadata can be written, removing the oldest segment makes room.
func TestTrimOnFullDisk(t *testing.T) {
	st, l, inj, cfg := faulty(t, Config{SegmentBytes: 500})
	if err := st.Update(t.Context(), "test", func(c *StreamConfig) { c.RetentionBytes = 1000 }); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		mustAppend(t, l, map[stream.ShardID][]kept{}, "k", fmt.Sprint(i, strings.Repeat("x", 300)))
	}
	before := l.Stats().Segments
	inj.set(on(errorfs.OpFileWrite, metaFile+tmpSuffix, syscall.ENOSPC))
	for range 3 {
		mustTrim(t, st, time.Now())
	}
	if got := l.Stats(); got.Segments != before-3 || got.Fenced != nil {
		t.Fatalf("%+v, want %d segments", got, before-3)
	}
	inj.clear()
	mustClose(t, st)
	st = mustOpen(t, cfg)
	mustAppend(t, mustStream(t, st), map[stream.ShardID][]kept{}, "k", "goes on")
	mustTrim(t, st, time.Now())
	if s := mustStream(t, st).Stats(); s.Bytes > 1600 {
		t.Fatalf("%+v", s)
	}
	mustClose(t, st)
}
