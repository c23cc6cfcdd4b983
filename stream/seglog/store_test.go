package seglog

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
)

func TestStreams(t *testing.T) {
	cfg := Config{Dir: "log", FS: vfs.NewCrashable(), TrimEvery: -1}
	st := mustOpen(t, cfg)
	for _, name := range []string{"", ".", "..", ".hidden", "a/b", "a b", "ü", strings.Repeat("x", 129)} {
		if _, err := st.Create(t.Context(), name, StreamConfig{}); err == nil {
			t.Errorf("stream %q was created", name)
		}
	}
	for _, c := range []StreamConfig{
		{Shards: -1}, {Shards: 10_001}, {Retention: time.Minute}, {Retention: 366 * 24 * time.Hour}, {RetentionBytes: -1}, {MaxRecordBytes: 11 << 20},
	} {
		if _, err := st.Create(t.Context(), "x", c); err == nil {
			t.Errorf("a stream of %+v was created", c)
		}
	}
	names := []string{"A", "a", "fleet.telemetry-1_x", strings.Repeat("x", 128)}
	for _, name := range names {
		if _, err := st.Create(t.Context(), name, StreamConfig{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := st.Create(t.Context(), "a", StreamConfig{}); !errors.Is(err, ErrExists) {
		t.Errorf("second create: %v, want ErrExists", err)
	}
	a, _ := st.Stream("a")
	if l, err := st.Ensure(t.Context(), "a", StreamConfig{Shards: 7}); err != nil || l != a {
		t.Errorf("ensure of an existing stream: %v", err)
	}
	if _, err := st.Stream("b"); !errors.Is(err, stream.ErrNoStream) {
		t.Errorf("an unknown stream: %v, want ErrNoStream", err)
	}
	if err := st.Update(t.Context(), "a", func(c *StreamConfig) { c.Shards = 2 }); err == nil {
		t.Error("update changed the number of shards")
	}
	if err := st.Update(t.Context(), "a", func(c *StreamConfig) { c.Retention, c.MaxRecordBytes = 7*24*time.Hour, 100 }); err != nil {
		t.Error(err)
	}
	if err := a.Append(t.Context(), []stream.Record{{Data: make([]byte, 101)}}); !errors.Is(err, stream.ErrTooLarge) {
		t.Errorf("append of 101 bytes where 100 are allowed: %v", err)
	}
	r, err := a.Read(t.Context(), shardID(0), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Delete(t.Context(), "A"); err != nil {
		t.Fatal(err)
	}
	mustClose(t, st)
	if _, err := r.Next(t.Context(), 1); !errors.Is(err, stream.ErrClosed) {
		t.Errorf("next after the store closed: %v", err)
	}
	mustClose(t, r)
	if _, err := st.Stream("a"); !errors.Is(err, stream.ErrClosed) {
		t.Errorf("stream of a closed store: %v", err)
	}
	st = mustOpen(t, cfg)
	defer mustClose(t, st)
	if diff := cmp.Diff(names[1:], st.Streams()); diff != "" {
		t.Error(diff)
	}
	a, _ = st.Stream("a")
	if diff := cmp.Diff(StreamConfig{Shards: 1, Retention: 7 * 24 * time.Hour, MaxRecordBytes: 100}, a.Config()); diff != "" {
		t.Error(diff)
	}
	if _, err := st.Create(t.Context(), "A", StreamConfig{Shards: 3}); err != nil {
		t.Errorf("create under a deleted stream's name: %v", err)
	}
}

// TestLargeAppend: a call beyond the size of a request is stored in several steps, in order; a record of the largest size too.
func TestLargeAppend(t *testing.T) {
	st := mustOpen(t, Config{Dir: t.TempDir(), SegmentBytes: 3 << 20, QueueBytes: 1 << 20, TrimEvery: -1})
	defer mustClose(t, st)
	l := mustCreate(t, st, StreamConfig{Shards: 3, MaxRecordBytes: 10 << 20})
	recs := make([]stream.Record, 0, 3001)
	for i := range 3000 {
		recs = append(recs, stream.Record{Key: fmt.Sprint(i % 7), Data: fmt.Appendf(nil, "%d%0*d", i, 3000, 0)})
	}
	recs = append(recs, stream.Record{Key: "huge", Data: make([]byte, 10<<20-4)})
	if err := l.Append(t.Context(), recs); err != nil {
		t.Fatal(err)
	}
	want := map[stream.ShardID][]kept{}
	for i := range recs {
		want[recs[i].Shard] = append(want[recs[i].Shard], keep(&recs[i]))
	}
	for _, w := range want {
		if !slices.IsSortedFunc(w, func(a, b kept) int { return strings.Compare(string(a.Pos), string(b.Pos)) }) {
			t.Fatal("positions do not grow in the order of the call")
		}
	}
	mustHold(t, l, want)
}

// TestPositionBeyondEnd: a checkpoint from a log that had more is refused instead of skipping what comes.
func TestPositionBeyondEnd(t *testing.T) {
	st := mustOpen(t, Config{Dir: "log", FS: vfs.NewCrashable(), TrimEvery: -1})
	defer mustClose(t, st)
	l := mustCreate(t, st, StreamConfig{})
	mustAppend(t, l, map[stream.ShardID][]kept{}, "k", "a")
	if _, err := l.Read(t.Context(), shardID(0), formatPosition(2)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Fatalf("read beyond the end: %v, want an error that says how to mend it", err)
	}
}

func TestAppendDoesNotAllocatePerRecord(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	st := mustOpen(t, Config{Dir: t.TempDir(), TrimEvery: -1})
	defer mustClose(t, st)
	l := mustCreate(t, st, StreamConfig{Shards: 16})
	recs := benchRecords(500, 0, 100)
	if n := testing.AllocsPerRun(50, func() {
		if err := l.Append(t.Context(), recs); err != nil {
			t.Fatal(err)
		}
	}); n > 10 {
		t.Errorf("append of 500 records: %v allocations, want a few", n)
	}
	r, err := l.Read(t.Context(), recs[0].Shard, "")
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, r)
	if n := testing.AllocsPerRun(3, func() {
		for left := 500; left > 0; {
			recs, err := r.Next(t.Context(), left)
			if err != nil {
				t.Fatal(err)
			}
			left -= len(recs)
		}
	}); n > 20 {
		t.Errorf("read of 500 records: %v allocations, want a few", n)
	}
}

var golden = flag.Bool("golden", false, "write testdata/v1 anew; only ever for a new version of the format, under a new name")

// TestGolden opens a data directory that the first version of the format wrote (P6): with a split, a merge, three segments, one index.
func TestGolden(t *testing.T) {
	const fixture = "testdata/v1"
	if *golden {
		writeGolden(t, fixture)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(fixture)); err != nil {
		t.Fatal(err)
	}
	rep, err := Verify(t.Context(), Config{Dir: dir})
	if err != nil || rep.Damaged() || rep.Streams[0].Records != 90 || rep.Streams[0].Segments < 3 {
		t.Fatalf("verify: %+v, %v", rep, err)
	}
	st := mustOpen(t, Config{Dir: dir, TrimEvery: -1})
	defer mustClose(t, st)
	l := mustStream(t, st)
	var b strings.Builder
	shards, err := l.Shards(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range shards {
		fmt.Fprintf(&b, "%s %v %s %s closed=%v end=%s\n", s.ID, s.Parents, formatHash(s.From), formatHash(s.To), s.Closed, s.End)
		list, err := readShard(t.Context(), l, s.ID, "")
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		for _, r := range list {
			fmt.Fprintf(&b, "  %s %d %s %s\n", r.Pos, r.Time, r.Key, r.Data)
		}
	}
	path := filepath.Join(fixture, "contents.txt")
	if *golden {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Error(diff)
	}
	mustAppend(t, l, map[stream.ShardID][]kept{}, "k", "goes on")
}

func writeGolden(t *testing.T, dir string) {
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	st := mustOpen(t, Config{Dir: dir, SegmentBytes: 1500, TrimEvery: -1})
	l := mustCreate(t, st, StreamConfig{Shards: 2, Retention: 365 * 24 * time.Hour})
	put := func() {
		for i := range 30 {
			mustAppend(t, l, map[stream.ShardID][]kept{}, fmt.Sprint("truck-", i%7), fmt.Sprintf(`{"n":%d}`, i))
		}
	}
	put()
	if _, err := l.Split(t.Context(), shardID(0), stream.Hash{Hi: 1 << 61}); err != nil {
		t.Fatal(err)
	}
	put()
	if _, err := l.Merge(t.Context(), shardID(3), shardID(1)); err != nil {
		t.Fatal(err)
	}
	put()
	mustClose(t, st)
	// One segment goes without its index, as after a crash.
	if err := os.Remove(filepath.Join(dir, "streams", "test", indexName(2))); err != nil {
		t.Fatal(err)
	}
}
