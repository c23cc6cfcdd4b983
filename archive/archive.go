// Package archive turns accepted readings into Parquet that any engine can read, and keeps the rows that are not yet in a
// committed file as a live tail, so that a snapshot sees every reading of the log exactly once (P5).
//
// Readings arrive through one Lane per shard. A flush writes the rows of one lane, one object per event day, under a
// temporary name; synced, they are named in the manifest by the same state step that moves the checkpoint (state function
// "archive", lane 0); only then do they take their final name and leave the tail. Whatever moment a crash picks, a row is
// either before the checkpoint and in a named object, or after it and read from the log again:
//
//	crash before the step commits    temporary files without a manifest row: removed at the next Open
//	crash after it, before a rename  a manifest row whose file has its temporary name: renamed at the next Open
//	crash while compacting           as above; replaced files have a "gone" row from the same transaction: removed
//
// A file that the archive neither wrote nor knows is moved to dir/quarantine, never deleted. FORMAT.md describes the
// objects for those who read them with other engines.
package archive

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// Func is the name under which the archive keeps its checkpoints.
const Func = "archive"

// Config says where the archive lives and how it behaves. Dir, Store and Catalog are required.
type Config struct {
	Dir     string             // its directory; objects are below Dir/readings
	FS      vfs.FS             // nil: the disk
	Store   state.Store        // manifest and checkpoints
	Catalog *telemetry.Catalog // names of signals
	Log     *slog.Logger       // nil: silent
	Metrics prometheus.Registerer

	// OnFlush, if not nil, writes to the step that moves a shard's checkpoint: what others kept only until then can go.
	OnFlush func(tx state.Tx, shard stream.ShardID, to stream.Position) error

	FlushRows int           // a shard's tail is flushed at so many rows; 0: 262,144
	FlushAge  time.Duration // and when its oldest row has waited for so long; 0: 60 s

	// MaxTailBytes bounds the memory of all tails; 0: 256 MiB. At half of it the largest tail is flushed early; at all of it
	// Add blocks until a flush has made room, and the log keeps what waits behind it.
	MaxTailBytes int64

	Retention      time.Duration // event days that ended longer ago are removed; 0: keep
	RetentionBytes int64         // the oldest days are removed while all objects are larger; 0: keep

	Compaction Compaction
}

// Compaction says how small files become large ones.
type Compaction struct {
	Off     bool          // leave every flushed object as it is
	Every   time.Duration // how often the keeper looks for work; 0: 30 s
	Settle  time.Duration // a day is finished when it is over and got no row for so long; 0: 10 min
	FanIn   int           // merge when so many files of one size exist, and at most twice as many at once; 0: 8
	MaxRows int64         // rows of a merged file; 0: 8,000,000
}

func (c *Config) defaults() {
	if c.FS == nil {
		c.FS = vfs.Disk
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	setDefault(&c.FlushRows, 256<<10)
	setDefault(&c.FlushAge, 60*time.Second)
	setDefault(&c.MaxTailBytes, 256<<20)
	setDefault(&c.Compaction.Every, 30*time.Second)
	setDefault(&c.Compaction.Settle, 10*time.Minute)
	setDefault(&c.Compaction.FanIn, 8)
	setDefault(&c.Compaction.MaxRows, 8_000_000)
	c.Compaction.FanIn = max(c.Compaction.FanIn, 2)
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// ErrClosed says that the archive is closed.
var ErrClosed = errors.New("archive is closed")

// An Archive is safe for concurrent use, except that a Lane belongs to one goroutine.
type Archive struct {
	cfg    Config
	root   string // Dir/readings
	schema *schema
	met    *metrics

	tailBytes atomic.Int64  // memory of all tails
	kick      chan struct{} // capacity 1: a lane is due
	wake      chan struct{} // capacity 1: the keeper has work (a snapshot was released)
	stop      context.CancelFunc
	ctx       context.Context // ends with Close: the life of the two goroutines, and of an Add that waits
	done      sync.WaitGroup  // flusher and keeper; waited for by Close
	flushing  sync.Mutex      // one flush at a time: the flusher's, Flush's and Close's
	writer    *writer         // guarded by flushing
	durable   map[string]bool // days whose directory is known to be on disk; guarded by flushing
	keeping   sync.Mutex      // one compaction or removal at a time: the keeper's, Compact's

	mu    sync.Mutex // guards what follows; a lane's mu may be taken under it, never the reverse
	lanes map[stream.ShardID]*Lane
	// files is sorted by day and name and never written to: a change replaces it, so a snapshot is a slice header.
	files     []*File
	missing   []*File    // named by the manifest, not found at Open
	obsolete  []obsolete // replaced or expired, waiting for the snapshots that use them
	epoch     uint64     // counts removals from files
	live      map[*Snapshot]struct{}
	room      chan struct{} // closed and replaced when a flush frees memory
	lastFlush time.Time
	closed    bool
}

// Open reads the manifest, puts the directory in order, and starts flushing and compacting.
func Open(ctx context.Context, cfg Config) (*Archive, error) {
	cfg.defaults()
	if cfg.Dir == "" || cfg.Store == nil || cfg.Catalog == nil {
		return nil, errors.New("open archive: Dir, Store and Catalog are required")
	}
	sch, err := newSchema(cfg.Catalog)
	if err != nil {
		return nil, fmt.Errorf("open archive: %w", err)
	}
	a := &Archive{
		cfg:     cfg,
		root:    cfg.FS.PathJoin(cfg.Dir, "readings"),
		schema:  sch,
		kick:    make(chan struct{}, 1),
		wake:    make(chan struct{}, 1),
		room:    make(chan struct{}),
		durable: map[string]bool{},
		writer:  newWriter(sch, cfg.Catalog),
		lanes:   map[stream.ShardID]*Lane{},
		live:    map[*Snapshot]struct{}{},
	}
	if err := a.recover(ctx); err != nil {
		return nil, fmt.Errorf("open archive %s: %w", cfg.Dir, err)
	}
	if a.met, err = newMetrics(a, cfg.Metrics); err != nil {
		return nil, fmt.Errorf("open archive: %w", err)
	}
	a.ctx, a.stop = context.WithCancel(context.Background())
	a.done.Go(a.flusher)
	a.done.Go(a.keeper)
	return a, nil
}

// Checkpoint returns up to where the archive's objects hold a shard: whoever starts the flow reads the log again after it.
func (a *Archive) Checkpoint(ctx context.Context, shard stream.ShardID) (stream.Position, error) {
	return a.cfg.Store.Checkpoint(ctx, Func, shard, 0)
}

// Lane returns the entrance for one shard, always the same one. It belongs to the goroutine that folds the shard.
func (a *Archive) Lane(ctx context.Context, shard stream.ShardID) (*Lane, error) {
	a.mu.Lock()
	l := a.lanes[shard]
	a.mu.Unlock()
	if l != nil {
		return l, nil
	}
	at, err := a.Checkpoint(ctx, shard)
	if err != nil {
		return nil, fmt.Errorf("archive checkpoint of %s: %w", shard, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, ErrClosed
	}
	if l := a.lanes[shard]; l != nil {
		return l, nil
	}
	l = newLane(a, shard, at)
	a.lanes[shard] = l
	return l, nil
}

// Close flushes what the tails hold and waits for the goroutines. Lanes must not be used any more; snapshots may be. When the
// flush fails, or ctx ends, the rows stay in the log and come back at the next start.
func (a *Archive) Close(ctx context.Context) error {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil
	}
	a.closed = true
	a.mu.Unlock()
	a.stop()
	a.done.Wait()
	err := a.Flush(ctx)
	// A compaction that the end came upon has left what it replaced: others read the directory as it is, and would see rows twice.
	return errors.Join(err, a.removeObsolete(ctx))
}

// Root is the directory below which all objects are.
func (a *Archive) Root() string { return a.root }

// Catalog is the catalog whose names the columns have.
func (a *Archive) Catalog() *telemetry.Catalog { return a.cfg.Catalog }

// A Status is what people want to know of the archive.
type Status struct {
	Files        int       `json:"files"`
	Days         int       `json:"days"`
	Rows         int64     `json:"rows"`
	Bytes        int64     `json:"bytes"`
	Missing      int       `json:"missing"`  // objects of the manifest that were not found at the start
	Obsolete     int       `json:"obsolete"` // replaced objects that queries still use
	TailRows     int64     `json:"tail_rows"`
	TailBytes    int64     `json:"tail_bytes"`
	OldestInTail time.Time `json:"oldest_in_tail,omitzero"` // when the oldest row that is not in Parquet came in
	LastFlush    time.Time `json:"last_flush,omitzero"`
	FirstDay     string    `json:"first_day,omitempty"`
	LastDay      string    `json:"last_day,omitempty"`
}

// Status counts objects and rows.
func (a *Archive) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := Status{
		Files: len(a.files), Missing: len(a.missing), Obsolete: len(a.obsolete),
		TailBytes: a.tailBytes.Load(), LastFlush: a.lastFlush,
	}
	day := ""
	for _, f := range a.files {
		s.Rows += f.Rows
		s.Bytes += f.Bytes
		if f.Date != day {
			day = f.Date
			s.Days++
		}
	}
	if len(a.files) > 0 {
		s.FirstDay, s.LastDay = a.files[0].Date, a.files[len(a.files)-1].Date
	}
	for _, l := range a.lanes {
		rows, oldest := l.waiting()
		s.TailRows += int64(rows)
		if rows > 0 && (s.OldestInTail.IsZero() || oldest.Before(s.OldestInTail)) {
			s.OldestInTail = oldest
		}
	}
	return s
}

// Files returns the committed objects, by day and name. The slice and what it points to are shared: do not write to them.
func (a *Archive) Files() []*File {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.files
}
