package seglog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/milepost/milepost/stream"
)

// kept is a record that outlives its buffer.
type kept struct {
	Key, Data string
	Pos       stream.Position
	Time      int64
}

func keep(r *stream.Record) kept {
	return kept{string([]byte(r.Key)), string(r.Data), r.Pos, r.Time.UnixMilli()}
}

// contents reads everything that a log holds now, by shard.
func contents(t testing.TB, l *Log) map[stream.ShardID][]kept {
	t.Helper()
	shards, err := l.Shards(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := map[stream.ShardID][]kept{}
	for _, s := range shards {
		list, err := readShard(t.Context(), l, s.ID, "")
		if err != nil {
			t.Fatalf("read %s: %v", s.ID, err)
		}
		all[s.ID] = list
	}
	return all
}

// readShard reads a shard to its tip, or to the first error.
func readShard(ctx context.Context, l *Log, id stream.ShardID, after stream.Position) ([]kept, error) {
	tip, err := l.Tip(ctx, id)
	if err != nil {
		return nil, err
	}
	r, err := l.Read(ctx, id, after)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	oldest, err := l.Oldest(ctx, id)
	if err != nil {
		return nil, err
	}
	var list []kept
	for after = max(after, oldest); tip.Pos > after; {
		recs, err := r.Next(ctx, 100)
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		for i := range recs {
			list = append(list, keep(&recs[i]))
		}
		after = recs[len(recs)-1].Pos
	}
	return list, nil
}

func mustCreate(t testing.TB, st *Store, cfg StreamConfig) *Log {
	t.Helper()
	l, err := st.Create(t.Context(), "test", cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustStream(t testing.TB, st *Store) *Log {
	t.Helper()
	l, err := st.Stream("test")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustClose(t testing.TB, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// mustAppend stores one record for each datum and adds it to want.
func mustAppend(t testing.TB, l *Log, want map[stream.ShardID][]kept, key string, data ...string) []stream.Record {
	t.Helper()
	recs := make([]stream.Record, len(data))
	for i, d := range data {
		recs[i] = stream.Record{Key: key, Data: []byte(d)}
	}
	if err := l.Append(t.Context(), recs); err != nil {
		t.Fatal(err)
	}
	for i := range recs {
		want[recs[i].Shard] = append(want[recs[i].Shard], keep(&recs[i]))
	}
	return recs
}

// mustHold checks that a log holds exactly want.
func mustHold(t testing.TB, l *Log, want map[stream.ShardID][]kept) {
	t.Helper()
	got := contents(t, l)
	for id, w := range want {
		if !slices.Equal(got[id], w) {
			t.Fatalf("%s: %s", id, differ(got[id], w))
		}
	}
	for id, g := range got {
		if len(g) != len(want[id]) {
			t.Fatalf("%s: %s", id, differ(g, want[id]))
		}
	}
}

func differ(got, want []kept) string {
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			return fmt.Sprintf("%d records, want %d; from %d on got %.200v, want %.200v", len(got), len(want), i,
				fmt.Sprint(got[min(i, len(got)):]), fmt.Sprint(want[min(i, len(want)):]))
		}
	}
	return "equal"
}
