package seglog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
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

func (c *Config) setDefaults() error {
	if c.Dir == "" {
		return errors.New("open log: no directory is given")
	}
	if c.FS == nil {
		c.FS = vfs.Disk
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.SegmentBytes = orDefault(c.SegmentBytes, 256<<20)
	if c.SegmentBytes < 0 || c.SegmentBytes > 1<<30 {
		return fmt.Errorf("open log: segment size %d is not between 1 and 1 GiB", c.SegmentBytes)
	}
	if c.ReserveBytes = orDefault(c.ReserveBytes, 64<<20); c.ReserveBytes < 0 {
		c.ReserveBytes = 0
	}
	c.QueueBytes = max(orDefault(c.QueueBytes, 64<<20), 1)
	c.CacheBytes = max(orDefault(c.CacheBytes, 32<<20), 1)
	c.TrimEvery = orDefault(c.TrimEvery, time.Minute)
	return nil
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// StreamConfig describes a stream. The zero value is a stream of one shard that keeps a day.
type StreamConfig struct {
	Shards         int           // at creation; afterwards Split and Merge change it. 0: 1; at most 10,000
	Retention      time.Duration // records older than this are removed. 0: 24 h; from 1 h to 365 days
	RetentionBytes int64         // the oldest segments are removed beyond this size. 0: no limit
	MaxRecordBytes int           // key and data of one record. 0: 1 MiB; at most 10 MiB
}

const (
	maxShards    = 10_000
	minRetention = time.Hour
	maxRetention = 365 * 24 * time.Hour
)

func (c *StreamConfig) setDefaults() error {
	c.Shards = orDefault(c.Shards, 1)
	c.Retention = orDefault(c.Retention, 24*time.Hour)
	c.MaxRecordBytes = orDefault(c.MaxRecordBytes, 1<<20)
	switch {
	case c.Shards < 1 || c.Shards > maxShards:
		return fmt.Errorf("%d shards: from 1 to %d are possible", c.Shards, maxShards)
	case c.Retention < minRetention || c.Retention > maxRetention:
		return fmt.Errorf("retention %v: from %v to %v is possible", c.Retention, minRetention, maxRetention)
	case c.RetentionBytes < 0:
		return fmt.Errorf("retention of %d bytes: it cannot be negative", c.RetentionBytes)
	case c.MaxRecordBytes < 1 || c.MaxRecordBytes > maxRecord:
		return fmt.Errorf("records of %d bytes: from 1 to %d is possible", c.MaxRecordBytes, maxRecord)
	}
	return nil
}

// ErrExists says that Create found a stream of that name.
var ErrExists = errors.New("stream exists already")

// A Store is a directory of streams, open in one process. It is safe for concurrent use.
type Store struct {
	cfg      Config
	met      *metrics
	lock     io.Closer
	cache    *indexCache
	keys     *keyCache
	requests requestPool

	stop    chan struct{}
	running sync.WaitGroup

	change sync.Mutex   // one Create, Delete or Close at a time; it is held across I/O
	mu     sync.RWMutex // guards the following; nothing blocks under it
	logs   map[string]*Log
	closed bool
}

const (
	lockFile      = "LOCK"
	streamsDir    = "streams"
	quarantineDir = "quarantine"
	newPrefix     = ".new-"     // a stream that is being created
	deletedPrefix = ".deleted-" // a stream that is being removed
)

// Open opens the store in cfg.Dir, recovers every stream and starts retention. A *stream.DamageError means that bytes in the
// middle of the log cannot be read: nothing is changed then.
func Open(cfg Config) (*Store, error) {
	s, err := openDir(cfg)
	if err != nil {
		return nil, err
	}
	s.keys = newKeyCache()
	if err := s.openLogs(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if s.cfg.TrimEvery > 0 {
		s.running.Go(s.retain) // waited for by Close
	}
	return s, nil
}

// openDir takes the directory for this process.
func openDir(cfg Config) (*Store, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, cache: newIndexCache(cfg.CacheBytes), stop: make(chan struct{}), logs: map[string]*Log{}}
	if err := vfs.MakeDir(cfg.FS, cfg.FS.PathJoin(cfg.Dir, streamsDir)); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	var err error
	if s.lock, err = cfg.FS.Lock(cfg.FS.PathJoin(cfg.Dir, lockFile)); err != nil {
		return nil, fmt.Errorf("open log: %s is in use by another process: stop that one, or choose another directory (%w)", cfg.Dir, err)
	}
	if s.met, err = newMetrics(cfg.Metrics); err != nil {
		return nil, errors.Join(fmt.Errorf("open log: %w", err), s.lock.Close())
	}
	return s, nil
}

func (s *Store) streamDir(name string) string { return s.cfg.FS.PathJoin(s.cfg.Dir, streamsDir, name) }

func (s *Store) openLogs() error {
	names, err := s.cfg.FS.List(s.streamDir(""))
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	slices.Sort(names)
	for _, name := range names {
		if strings.HasPrefix(name, newPrefix) || strings.HasPrefix(name, deletedPrefix) {
			// A crash came between two steps of Create or Delete. Nothing of it was ever acknowledged, or all of it was given up.
			if err := s.cfg.FS.RemoveAll(s.streamDir(name)); err != nil {
				return fmt.Errorf("open log: %w", err)
			}
			continue
		}
		if checkName(name) != nil {
			s.cfg.Log.Warn("not a stream: left alone", "path", s.streamDir(name))
			continue
		}
		l, err := s.openLog(name)
		if err != nil {
			return fmt.Errorf("open stream %s: %w", name, err)
		}
		s.logs[name] = l
	}
	return nil
}

// checkName admits the names that Kinesis does, but for a leading dot: 1 to 128 letters, digits, "_", "-" and ".".
func checkName(name string) error {
	ok := len(name) > 0 && len(name) <= 128 && name[0] != '.'
	for i := range len(name) {
		c := name[i]
		ok = ok && (c == '_' || c == '-' || c == '.' || '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z')
	}
	if !ok {
		return fmt.Errorf("stream name %q: use 1 to 128 letters, digits, \"_\", \"-\" or \".\", not beginning with a dot", name)
	}
	return nil
}

// Create makes a stream; ErrExists if there is one of that name. It is on disk when Create returns.
func (s *Store) Create(ctx context.Context, name string, cfg StreamConfig) (*Log, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.change.Lock()
	defer s.change.Unlock()
	return s.create(name, cfg)
}

func (s *Store) create(name string, cfg StreamConfig) (*Log, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := cfg.setDefaults(); err != nil {
		return nil, fmt.Errorf("create stream %s: %w", name, err)
	}
	switch _, err := s.Stream(name); {
	case err == nil:
		return nil, fmt.Errorf("create stream %s: %w", name, ErrExists)
	case !errors.Is(err, stream.ErrNoStream):
		return nil, err
	}
	fsys := s.cfg.FS
	tmp := s.streamDir(newPrefix + name)
	err := s.build(tmp, newMetadata(name, cfg, time.Now()))
	if err == nil {
		err = fsys.Rename(tmp, s.streamDir(name))
	}
	if err == nil {
		err = syncDir(fsys, s.streamDir(""))
	}
	if err != nil {
		return nil, fmt.Errorf("create stream %s: %w", name, err)
	}
	l, err := s.openLog(name)
	if err != nil {
		return nil, fmt.Errorf("create stream %s: %w", name, err)
	}
	s.mu.Lock()
	s.logs[name] = l
	s.mu.Unlock()
	return l, nil
}

// build makes the directory of a new stream, with its first segment.
func (s *Store) build(dir string, m metadata) error {
	fsys := s.cfg.FS
	if err := fsys.RemoveAll(dir); err != nil { // of an attempt that failed
		return err
	}
	if err := fsys.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if _, err := writeMetadata(fsys, dir, &m); err != nil {
		return err
	}
	h := segmentHeader{id: m.First, salt: m.salt, created: m.Created}
	for i := range m.Shards {
		h.shards = append(h.shards, shardStart{num: m.Shards[i].Num, next: 1})
	}
	if err := writeFile(fsys, fsys.PathJoin(dir, segmentName(h.id)), h.encode()); err != nil {
		return err
	}
	return syncDir(fsys, dir)
}

// Ensure returns the stream of that name as it is, or makes it.
func (s *Store) Ensure(ctx context.Context, name string, cfg StreamConfig) (*Log, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.change.Lock()
	defer s.change.Unlock()
	if l, err := s.Stream(name); !errors.Is(err, stream.ErrNoStream) {
		return l, err
	}
	return s.create(name, cfg)
}

// Stream returns an existing stream; stream.ErrNoStream if there is none. All callers share the *Log.
func (s *Store) Stream(name string) (*Log, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, stream.ErrClosed
	}
	if l := s.logs[name]; l != nil {
		return l, nil
	}
	return nil, fmt.Errorf("%w: %s", stream.ErrNoStream, name)
}

// Streams returns the names of all streams, sorted.
func (s *Store) Streams() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names := make([]string, 0, len(s.logs))
	for n := range s.logs {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Update changes what may change of a stream: its retention and its record limit. change gets the settings as they are.
func (s *Store) Update(ctx context.Context, name string, change func(*StreamConfig)) error {
	l, err := s.Stream(name)
	if err != nil {
		return err
	}
	err = l.do(ctx, func(c *committer) error { return c.update(change) })
	if err != nil {
		return fmt.Errorf("update stream %s: %w", name, err)
	}
	return nil
}

// Delete removes a stream and its records. Its readers and producers get stream.ErrClosed.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.change.Lock()
	defer s.change.Unlock()
	l, err := s.Stream(name)
	if err != nil {
		return err
	}
	fsys := s.cfg.FS
	gone := s.streamDir(deletedPrefix + fmt.Sprintf("%s-%016x", name, l.salt))
	if err := l.Close(); err != nil {
		s.cfg.Log.WarnContext(ctx, "a stream that is being deleted did not close well", "stream", name, "error", err)
	}
	if err := errors.Join(fsys.Rename(s.streamDir(name), gone), syncDir(fsys, s.streamDir(""))); err != nil {
		return fmt.Errorf("delete stream %s: %w", name, err)
	}
	s.mu.Lock()
	delete(s.logs, name)
	s.mu.Unlock()
	s.met.forget(name)
	if err := fsys.RemoveAll(gone); err != nil {
		return fmt.Errorf("delete stream %s: it is gone, but its files are not all removed; the next start removes them: %w", name, err)
	}
	return nil
}

// Close stores what waits, closes every stream and ends all goroutines.
func (s *Store) Close() error {
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	logs := s.logs
	s.mu.Unlock()
	close(s.stop)
	s.running.Wait()
	var errs []error
	for _, l := range logs {
		errs = append(errs, l.Close())
	}
	s.met.unregister(s.cfg.Metrics)
	return errors.Join(append(errs, s.lock.Close())...)
}
