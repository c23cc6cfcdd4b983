package seglog

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
)

// TestHold: what a consumer has not read outlives its retention, and goes when it has been read (P7).
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := mustOpen(t, Config{Dir: "log", FS: vfs.NewCrashable()})
		l := mustCreate(t, st, StreamConfig{Shards: 2, Retention: 24 * time.Hour})
		var read atomic.Value // of stream.Position; the retention loop asks for it
		read.Store(stream.Position(""))
		l.Hold(func(stream.ShardID) (stream.Position, error) { return read.Load().(stream.Position), nil })
		rec := mustAppend(t, l, map[stream.ShardID][]kept{}, "k", "old")[0]
		time.Sleep(48 * time.Hour)
		if n := len(contents(t, l)[rec.Shard]); n != 1 {
			t.Fatalf("after two days %d records are left, want 1: nobody has read it", n)
		}
		read.Store(rec.Pos)
		time.Sleep(2 * time.Hour)
		if n := len(contents(t, l)[rec.Shard]); n != 0 {
			t.Fatalf("%d records are left though they have been read, want 0", n)
		}
		mustClose(t, st)
	})
}
