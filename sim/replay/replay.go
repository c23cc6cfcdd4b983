// Package replay sends recorded data through a door, as if the vehicles were driving now: tables (CSV) and JSON lines, plain
// or compressed, in the order of their times, with the gaps between them at a speed-up or as fast as the door acknowledges.
package replay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/milepost/milepost/sim/sender"
	"github.com/milepost/milepost/telemetry"
)

// Config says what to replay and where.
type Config struct {
	// Files are tables (.csv, .tsv) and JSON (.json, .jsonl, .ndjson), each also as .gz or .zst; a file of another name is
	// JSON if it begins with '{' or '['.
	Files []string
	// CSV says how to read the tables.
	CSV telemetry.CSVConfig
	// Speedup is how many times faster than recorded; 0 is as fast as the door acknowledges, one file after the other. With
	// a speed-up all files are one recording, merged by time, and are held in memory; without, one file at a time is.
	// Recordings are often grouped by vehicle or trip: either way a file is sorted by time first, equal times as they stood.
	Speedup float64
	// Shift makes the times those of today; otherwise they are sent as recorded. With a speed-up each reading takes the moment
	// at which it is sent, so that gaps shrink with it; without, all move by as much as makes the newest one now. A shifted
	// reading is sent in canonical form: fields of JSON lines that are not part of a reading are left out.
	Shift bool
	// Sender is the door; its Address is required. Its Refused is called besides counting.
	Sender sender.Config
	// Drain is how long the replay waits for the last acknowledgements when ctx is done before the end; 5 s by default.
	Drain time.Duration
	// Progress is told how it goes each Every, 10 s by default.
	Progress func(Stats)
	Every    time.Duration
	// Log gets changes of state. Discarded by default.
	Log *slog.Logger
}

// MaxProblems is how many problems a Summary lists; all are counted.
const MaxProblems = 100

// Stats is how a replay goes.
type Stats struct {
	sender.Stats
	Files   int   // read so far
	Read    int64 // rows read so far, the bad ones included
	Bad     int64 // rows that are no reading: never sent
	Now     int64 // time of the reading sent last, as recorded, Unix ms
	Elapsed time.Duration
}

// A Problem is a row that did not get through.
type Problem struct {
	File   string // "" if the door refused it
	Line   int    // of the file, from 1
	Reason string
}

func (p Problem) String() string {
	if p.File == "" {
		return "refused by the door: " + p.Reason
	}
	return p.File + ", " + p.Reason
}

// A Summary is what a replay came to.
type Summary struct {
	Stats
	First, Last int64     // times of the oldest and the newest reading, as recorded, Unix ms
	Vehicles    int       // that said something
	Problems    []Problem // the first MaxProblems
}

// A row is one recorded reading.
type row struct {
	time int64
	r    telemetry.Reading
	raw  []byte // as recorded, if it was JSON
}

// player is one replay.
type player struct {
	cfg      Config
	cat      *telemetry.Catalog
	out      *sender.Sender
	begin    time.Time
	files    atomic.Int64
	read     atomic.Int64
	bad      atomic.Int64
	now      atomic.Int64
	vehicles map[string]bool
	first    int64
	last     int64

	mu       sync.Mutex // guards problems: the door's come from the sender
	problems []Problem
}

// Run replays. A done ctx ends it early, without an error: the summary tells how far it came. Bad rows are counted, listed
// and passed over; a file that cannot be read, or a door that refuses us, ends it with an error.
func Run(ctx context.Context, cfg Config) (Summary, error) {
	if len(cfg.Files) == 0 {
		return Summary{}, errors.New("replay: no files: name some")
	}
	if cfg.Speedup < 0 {
		return Summary{}, fmt.Errorf("replay: speed-up %v: want 0 for as fast as acknowledged, 1 for as recorded, or more", cfg.Speedup)
	}
	if cfg.Drain <= 0 {
		cfg.Drain = 5 * time.Second
	}
	if cfg.Every <= 0 {
		cfg.Every = 10 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Sender.Log == nil {
		cfg.Sender.Log = cfg.Log
	}
	p := &player{cfg: cfg, cat: telemetry.NewCatalog(), begin: time.Now(), vehicles: map[string]bool{}}
	told := cfg.Sender.Refused
	cfg.Sender.Refused = func(payload []byte, reason string) {
		p.problem(Problem{Reason: reason + ": " + clip(payload)})
		if told != nil {
			told(payload, reason)
		}
	}
	out, err := sender.Open(cfg.Sender)
	if err != nil {
		return Summary{}, err
	}
	defer out.Close() //nolint:errcheck // it has no error to tell; what is under way is in Stats.Open
	p.out = out
	if cfg.Progress != nil {
		reporting, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { sender.Every(reporting, cfg.Every, func() { cfg.Progress(p.stats()) }) })
		defer wg.Wait()
		defer stop()
	}
	err = p.play(ctx)
	if err == nil {
		err = out.Flush(ctx)
	}
	if err != nil { // what is on its way may still arrive
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.Drain)
		defer cancel()
		_ = out.Flush(drain) // Stats.Open tells what did not
	}
	if ctx.Err() != nil {
		err = nil // told to stop
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return Summary{Stats: p.stats(), First: p.first, Last: p.last, Vehicles: len(p.vehicles), Problems: p.problems}, err
}

func clip(payload []byte) string {
	if len(payload) > 200 {
		return string(payload[:200]) + "…"
	}
	return string(payload)
}

func (p *player) stats() Stats {
	return Stats{
		Stats: p.out.Stats(), Files: int(p.files.Load()), Read: p.read.Load(), Bad: p.bad.Load(), Now: p.now.Load(),
		Elapsed: time.Since(p.begin),
	}
}

func (p *player) problem(problem Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.problems) < MaxProblems {
		p.problems = append(p.problems, problem)
	}
}

// play reads and sends, all files at once or one by one.
func (p *player) play(ctx context.Context) error {
	if p.cfg.Speedup > 0 || p.cfg.Shift {
		var all []row
		for _, name := range p.cfg.Files {
			rows, err := p.load(ctx, name)
			if err != nil {
				return err
			}
			all = append(all, rows...)
		}
		// Each file is in order already; a stable sort of their sequence is their merge.
		sortRows(all)
		return p.send(ctx, all)
	}
	for _, name := range p.cfg.Files {
		rows, err := p.load(ctx, name)
		if err != nil {
			return err
		}
		if err := p.send(ctx, rows); err != nil {
			return err
		}
	}
	return nil
}

func sortRows(rows []row) {
	slices.SortStableFunc(rows, func(a, b row) int { return cmp.Compare(a.time, b.time) })
}

// send sends rows, at their moments if there is a speed-up.
func (p *player) send(ctx context.Context, rows []row) error {
	if len(rows) == 0 {
		return nil
	}
	var pacer sender.Pacer
	var buf []byte
	begin := time.Now()
	oldest, newest := rows[0].time, rows[len(rows)-1].time
	for i := range rows {
		row := &rows[i]
		shifted := begin.UnixMilli() - newest + row.time
		if p.cfg.Speedup > 0 {
			at := begin.Add(time.Duration(float64(row.time-oldest) / p.cfg.Speedup * float64(time.Millisecond)))
			if err := pacer.Wait(ctx, at); err != nil {
				return err
			}
			shifted = at.UnixMilli()
		}
		payload := row.raw
		if payload == nil || p.cfg.Shift {
			if p.cfg.Shift {
				row.r.Time = shifted
			}
			buf = telemetry.AppendJSON(buf[:0], p.cat, &row.r)
			payload = buf
		}
		if err := p.out.Send(ctx, row.r.Vehicle, payload); err != nil {
			return err
		}
		p.now.Store(row.time)
		p.vehicles[row.r.Vehicle] = true
		if p.first == 0 || row.time < p.first {
			p.first = row.time
		}
		p.last = max(p.last, row.time)
	}
	return nil
}
