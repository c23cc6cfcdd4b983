package seglog

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/internal/vfs"
)

// Config says where the log lives and how much it may use. Only Dir is required.
type Config struct {
	Dir     string                // the store's own directory; made if missing
	FS      vfs.FS                // nil: vfs.Disk
	Log     *slog.Logger          // nil: silent
	Metrics prometheus.Registerer // nil: not registered

	SegmentBytes int64         // a segment is sealed at this size. 0: 256 MiB; at most 1 GiB
	SyncDelay    time.Duration // how long a group waits for company before it is written. 0: not at all
	ReserveBytes int64         // free space kept on the disk; below it appends get ErrFull. 0: 64 MiB; negative: none
	QueueBytes   int64         // encoded records of one stream that wait for the disk; more wait for room. 0: 64 MiB
	CacheBytes   int64         // block indexes of sealed segments kept in memory. 0: 32 MiB
	TrimEvery    time.Duration // how often retention is applied. 0: a minute; negative: only by Trim
}

// StreamConfig describes a stream. The zero value is a stream of one shard that keeps a day.
type StreamConfig struct {
	Shards         int           // at creation; afterwards Split and Merge change it. 0: 1
	Retention      time.Duration // records older than this are removed. 0: 24 h; from 1 h to 365 days
	RetentionBytes int64         // the oldest segments are removed beyond this size. 0: no limit
	MaxRecordBytes int           // key and data of one record. 0: 1 MiB; at most 10 MiB
}

// ErrExists: Create found a stream of that name.
var ErrExists = errors.New("stream exists already")

// A Store is a directory of streams, open in one process. It is safe for concurrent use.
type Store struct{ cfg Config }

var errUnbuilt = errors.New("seglog: not built yet")

// Open opens the store in cfg.Dir, recovers every stream and starts retention.
func Open(cfg Config) (*Store, error) { return &Store{cfg: cfg}, errUnbuilt }

// Create makes a stream; ErrExists if there is one of that name.
func (s *Store) Create(ctx context.Context, name string, cfg StreamConfig) (*Log, error) {
	return nil, errUnbuilt
}

// Ensure returns the stream of that name as it is, or makes it.
func (s *Store) Ensure(ctx context.Context, name string, cfg StreamConfig) (*Log, error) {
	return nil, errUnbuilt
}

// Stream returns an existing stream; stream.ErrNoStream if there is none. All callers share the *Log.
func (s *Store) Stream(name string) (*Log, error) { return nil, errUnbuilt }

// Streams returns the names of all streams, sorted.
func (s *Store) Streams() []string { return nil }

// Update changes what may change of a stream: its retention and its record limit.
func (s *Store) Update(ctx context.Context, name string, change func(*StreamConfig)) error {
	return errUnbuilt
}

// Delete removes a stream and its records. Its readers and producers get stream.ErrClosed.
func (s *Store) Delete(ctx context.Context, name string) error { return errUnbuilt }

// Trim applies retention to every stream as of now.
func (s *Store) Trim(ctx context.Context, now time.Time) error { return errUnbuilt }

// Close stores what waits, closes every stream and ends all goroutines.
func (s *Store) Close() error { return nil }
