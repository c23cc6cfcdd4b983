package seglog

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/stream/streamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestContract runs the suite on the real disk, on a crashable file system, and with segments so small that nearly each group
// begins a new one.
func TestContract(t *testing.T) {
	for name, cfg := range map[string]func(*testing.T) Config{
		"disk":   func(t *testing.T) Config { return Config{Dir: t.TempDir()} },
		"memory": func(*testing.T) Config { return Config{Dir: "log", FS: vfs.NewCrashable()} },
		"delayed": func(*testing.T) Config {
			return Config{Dir: "log", FS: vfs.NewCrashable(), SyncDelay: 50 * time.Microsecond}
		},
		"tiny segments": func(*testing.T) Config {
			return Config{Dir: "log", FS: vfs.NewCrashable(), SegmentBytes: 400, CacheBytes: 300}
		},
	} {
		t.Run(name, func(t *testing.T) {
			streamtest.Run(t, func(t *testing.T) streamtest.Harness { return harness(t, cfg(t)) })
		})
	}
}

func harness(t *testing.T, cfg Config) streamtest.Harness {
	const name, maxRecord = "contract", 64 << 10
	st := mustOpen(t, cfg)
	l, err := st.Create(t.Context(), name, StreamConfig{Shards: 4, MaxRecordBytes: maxRecord})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return streamtest.Harness{
		Log: l,
		Reopen: func() stream.Log {
			if err := st.Close(); err != nil {
				t.Fatal(err)
			}
			st = mustOpen(t, cfg)
			if l, err = st.Stream(name); err != nil {
				t.Fatal(err)
			}
			return l
		},
		Split: func(ctx context.Context, shard stream.ShardID, at stream.Hash) error {
			_, err := l.Split(ctx, shard, at)
			return err
		},
		Merge: func(ctx context.Context, a, b stream.ShardID) error {
			_, err := l.Merge(ctx, a, b)
			return err
		},
		MaxRecord: maxRecord,
	}
}

func mustOpen(t testing.TB, cfg Config) *Store {
	t.Helper()
	st, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return st
}
