package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"
	"go.uber.org/goleak"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testDay = int64(20_000) * dayMillis // 2024-10-04

// quiet is a configuration in which nothing happens by itself.
func quiet(fs vfs.FS, store *journal) Config {
	return Config{
		Dir: "data/archive", FS: fs, Store: store, Catalog: telemetry.NewCatalog(),
		FlushAge: time.Hour, Compaction: Compaction{Every: time.Hour},
	}
}

func openTest(t *testing.T, fs vfs.FS, change func(*Config)) (*Archive, *journal) {
	t.Helper()
	if err := fs.MkdirAll("data", 0o755); err != nil {
		t.Fatal(err)
	}
	store, err := openJournal(fs, "data/state")
	if err != nil {
		t.Fatal(err)
	}
	cfg := quiet(fs, store)
	if change != nil {
		change(&cfg)
	}
	a, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a, store
}

func closeTest(t *testing.T, a *Archive) {
	t.Helper()
	if err := a.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

func pos(n int) stream.Position { return stream.Position(fmt.Sprintf("%010d", n)) }

// reading n of a shard: its identity is its odometer, which no other reading has.
func reading(shard, n int) *telemetry.Reading {
	return &telemetry.Reading{
		Vehicle: fmt.Sprintf("truck-%d-%02d", shard, n%7), Time: testDay + int64(n)*1000, Arrival: testDay + int64(n)*1000 + 20,
		Lat: 40 + float64(n)/1e4, Lon: -74, Status: []string{"moving", "", "idle"}[n%3],
		Signals: []telemetry.Signal{
			{ID: telemetry.Speed, Value: float64(n % 90)},
			{ID: telemetry.Odometer, Value: float64(shard)*1e6 + float64(n)},
		},
	}
}

func lane(t testing.TB, a *Archive, shard string) *Lane {
	t.Helper()
	l, err := a.Lane(t.Context(), stream.ShardID(shard))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func add(t testing.TB, l *Lane, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		if err := l.Add(t.Context(), pos(n+1), reading(0, n)); err != nil {
			t.Fatal(err)
		}
	}
	l.Advance(pos(to))
}

// A plain row of an object or of the tail, as a test compares it.
type plain struct {
	Vehicle    string
	Event      int64
	Arrival    int64
	Lat, Lon   any
	Status     any
	Flags      int64
	Well       map[string]float64
	Others     map[string]float64
	OthersNull bool
}

func readObject(t testing.TB, a *Archive, f *File) []plain {
	t.Helper()
	in, size, err := a.openObject(f)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	pf, err := parquet.OpenFile(in, size)
	if err != nil {
		t.Fatalf("%s: %v", f.Name, err)
	}
	var out []plain
	for _, g := range pf.RowGroups() {
		rows := g.Rows()
		buf := make([]parquet.Row, 100)
		for {
			n, err := rows.ReadRows(buf)
			for _, r := range buf[:n] {
				out = append(out, rowOf(a, r))
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := rows.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func rowOf(a *Archive, r parquet.Row) plain {
	f := plain{Well: map[string]float64{}, Others: map[string]float64{}}
	var keys []string
	for _, v := range r {
		c := v.Column()
		switch {
		case c == colVehicle:
			f.Vehicle = v.String()
		case c == colEvent:
			f.Event = v.Int64()
		case c == colArrival:
			f.Arrival = v.Int64()
		case c == colLat && !v.IsNull():
			f.Lat = v.Double()
		case c == colLon && !v.IsNull():
			f.Lon = v.Double()
		case c >= colSignal && c < colStatus && !v.IsNull():
			f.Well[a.schema.names[c]] = v.Double()
		case c == colStatus && !v.IsNull():
			f.Status = v.String()
		case c == colFlags:
			f.Flags = int64(v.Int32())
		case c == colKey && v.IsNull():
			f.OthersNull = true
		case c == colKey:
			keys = append(keys, v.String())
		case c == colValue && !v.IsNull():
			f.Others[keys[len(f.Others)]] = v.Double()
		}
	}
	return f
}

// odometers returns the identities of all rows of a snapshot with their counts.
func odometers(t testing.TB, a *Archive, s *Snapshot) map[float64]int {
	t.Helper()
	out := map[float64]int{}
	for _, f := range s.Files {
		for _, r := range readObject(t, a, f) {
			out[r.Well["odometer"]]++
		}
	}
	for i := range s.Tail {
		for _, v := range s.Tail[i].Signal[telemetry.Odometer] {
			out[v]++
		}
	}
	return out
}

// wantOnce checks that a snapshot holds readings [0, n) of shard 0, each once.
func wantOnce(t testing.TB, a *Archive, n int) {
	t.Helper()
	s := a.Snapshot()
	defer s.Release()
	got := odometers(t, a, s)
	want := map[float64]int{}
	for i := range n {
		want[float64(i)] = 1
	}
	if !maps.Equal(want, got) {
		once := 0
		for i := range want {
			if got[i] == 1 {
				once++
			}
		}
		t.Fatalf("%d of %d rows are there once, of %d; status %+v", once, n, len(got), a.Status())
	}
}

func TestRowsLookTheSameInTailAndParquet(t *testing.T) {
	a, _ := openTest(t, vfs.NewCrashable(), nil)
	defer closeTest(t, a)
	tyre, _ := a.cfg.Catalog.Intern("tyre_pressure")
	door, _ := a.cfg.Catalog.Intern("door")
	in := []*telemetry.Reading{
		{Vehicle: "b", Time: testDay + 5, Arrival: testDay + 6, Lat: 1, Lon: 2, Status: "moving", Signals: []telemetry.Signal{
			{ID: telemetry.Speed, Value: 63.2}, {ID: tyre, Value: 2.5}, {ID: door, Value: 0},
		}},
		{Vehicle: "a", Time: testDay + 9, Arrival: testDay + 10, Flags: telemetry.FlagNoPosition | telemetry.FlagLate},
		{Vehicle: "a", Time: testDay + 3, Arrival: testDay + 11, Lat: -90, Lon: 180, Signals: []telemetry.Signal{
			{ID: telemetry.Fuel, Value: math.Inf(1)}, {ID: telemetry.EngineTemp, Value: -0.5}, {ID: door, Value: math.MaxFloat64},
		}},
	}
	l := lane(t, a, "s")
	for i, r := range in {
		if err := l.Add(t.Context(), pos(i+1), r); err != nil {
			t.Fatal(err)
		}
	}
	l.Advance(pos(3))
	want := []plain{
		{
			Vehicle: "a", Event: testDay + 3, Arrival: testDay + 11, Lat: -90.0, Lon: 180.0,
			Well: map[string]float64{"fuel": math.Inf(1), "engine_temp": -0.5}, Others: map[string]float64{"door": math.MaxFloat64},
		},
		{
			Vehicle: "a", Event: testDay + 9, Arrival: testDay + 10, Flags: 9,
			Well: map[string]float64{}, Others: map[string]float64{}, OthersNull: true,
		},
		{
			Vehicle: "b", Event: testDay + 5, Arrival: testDay + 6, Lat: 1.0, Lon: 2.0, Status: "moving",
			Well: map[string]float64{"speed": 63.2}, Others: map[string]float64{"tyre_pressure": 2.5, "door": 0},
		},
	}
	if err := a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	files := a.Files()
	if len(files) != 1 || files[0].Name != "date=2024-10-04/s-0-0000000003.parquet" {
		t.Fatalf("files = %+v", files)
	}
	if d := cmp.Diff(want, readObject(t, a, files[0])); d != "" {
		t.Errorf("object (-want +got):\n%s", d)
	}
	if f := files[0]; f.Rows != 3 || f.MinTime != testDay+3 || f.MaxTime != testDay+9 || f.MinVehicle != "a" || f.MaxVehicle != "b" {
		t.Errorf("manifest = %+v", f)
	}
	if p, err := a.Verify(t.Context()); err != nil || len(p) > 0 {
		t.Errorf("Verify = %v, %v", p, err)
	}
}

func TestLateRowsGoToTheirOwnDay(t *testing.T) {
	a, _ := openTest(t, vfs.NewCrashable(), nil)
	defer closeTest(t, a)
	l := lane(t, a, "s")
	for i, ms := range []int64{testDay, testDay - 1, testDay - 3*dayMillis, testDay + dayMillis - 1, -1} {
		r := reading(0, i)
		r.Time = ms
		if err := l.Add(t.Context(), pos(i+1), r); err != nil {
			t.Fatal(err)
		}
	}
	l.Advance(pos(5))
	if err := a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, f := range a.Files() {
		got[f.Date] += f.Rows
	}
	want := map[string]int64{"1969-12-31": 1, "2024-10-01": 1, "2024-10-03": 1, "2024-10-04": 2}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("rows by day (-want +got):\n%s", d)
	}
	wantOnce(t, a, 5)
}

// Records that come again, after a restart of the fold or of the process, change nothing.
func TestReplayIsIgnored(t *testing.T) {
	fs := vfs.NewCrashable()
	a, store := openTest(t, fs, nil)
	l := lane(t, a, "s")
	add(t, l, 0, 5000)
	add(t, l, 0, 5000)
	// A batch that fails half-way is added again, over two chunks.
	for n := 5000; n < 9000; n++ {
		if err := l.Add(t.Context(), pos(n+1), reading(0, n)); err != nil {
			t.Fatal(err)
		}
	}
	l.Rewind()
	wantOnce(t, a, 5000)
	add(t, l, 4000, 9000)
	wantOnce(t, a, 9000)
	if err := a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n := 9000; n < 9100; n++ {
		if err := l.Add(t.Context(), pos(n+1), reading(0, n)); err != nil {
			t.Fatal(err)
		}
	}
	l.Rewind()
	add(t, l, 8000, 9500)
	wantOnce(t, a, 9500)
	closeTest(t, a)

	cfg := quiet(fs, store)
	a, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer closeTest(t, a)
	if at, err := a.Checkpoint(t.Context(), "s"); err != nil || at != pos(9500) {
		t.Fatalf("Checkpoint = %q, %v", at, err)
	}
	add(t, lane(t, a, "s"), 0, 10_000)
	wantOnce(t, a, 10_000)
	if got := a.tailBytes.Load(); got <= 0 {
		t.Errorf("tailBytes = %d", got)
	}
}

// Readings of one record share its position.
func TestRecordOfSeveralReadings(t *testing.T) {
	a, _ := openTest(t, vfs.NewCrashable(), nil)
	defer closeTest(t, a)
	l := lane(t, a, "s")
	for n := range 6 {
		if err := l.Add(t.Context(), pos(1+n/3), reading(0, n)); err != nil {
			t.Fatal(err)
		}
	}
	l.Advance(pos(2))
	wantOnce(t, a, 6)
}

// A name that devices invent does not stay once its rows are in Parquet.
func TestDictionaryIsReplaced(t *testing.T) {
	a, _ := openTest(t, vfs.NewCrashable(), nil)
	defer closeTest(t, a)
	l := lane(t, a, "s")
	n := dictNames + 3*chunkRows
	for i := range n {
		r := reading(0, i)
		r.Status = fmt.Sprint("status ", i)
		if err := l.Add(t.Context(), pos(i+1), r); err != nil {
			t.Fatal(err)
		}
	}
	l.Advance(pos(n))
	if got := len(l.cur.dict.names); got >= dictNames {
		t.Errorf("current dictionary has %d names", got)
	}
	if err := a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen := map[any]bool{}
	for _, f := range a.Files() {
		for _, r := range readObject(t, a, f) {
			if want := fmt.Sprint("status ", int(r.Well["odometer"])); r.Status != want {
				t.Fatalf("status %v, want %s", r.Status, want)
			}
			seen[r.Status] = true
		}
	}
	if len(seen) != n {
		t.Errorf("%d texts, want %d", len(seen), n)
	}
}

// TestExactlyOnceWhileEverythingMoves takes snapshots while four shards add, flush and compact.
func TestExactlyOnceWhileEverythingMoves(t *testing.T) {
	a, _ := openTest(t, vfs.NewCrashable(), func(c *Config) {
		c.FlushRows = 700
		c.FlushAge = time.Hour
		c.Compaction = Compaction{Every: time.Hour, FanIn: 3, Settle: time.Nanosecond}
	})
	defer closeTest(t, a)
	const shards, each = 4, 6000
	var wg, writers sync.WaitGroup
	lanes := make([]*Lane, shards)
	for s := range shards {
		lanes[s] = lane(t, a, fmt.Sprint("shard-", s))
	}
	for s, l := range lanes {
		writers.Go(func() {
			for n := 0; n < each; {
				k := min(each-n, 1+n%97)
				for i := range k {
					if err := l.Add(t.Context(), pos(n+i+1), reading(s, n+i)); err != nil {
						t.Error(err)
						return
					}
				}
				n += k
				l.Advance(pos(n))
			}
		})
	}
	var stop atomic.Bool
	wg.Go(func() {
		for !stop.Load() {
			if _, err := a.Compact(t.Context(), time.UnixMilli(testDay+3*dayMillis)); err != nil {
				t.Error(err)
				return
			}
			if err := a.removeObsolete(t.Context()); err != nil {
				t.Error(err)
				return
			}
		}
	})
	check := func() {
		s := a.Snapshot()
		defer s.Release()
		got := odometers(t, a, s)
		total := 0
		for i := range shards {
			done := 0
			if p := s.Pos[stream.ShardID(fmt.Sprint("shard-", i))]; p != "" {
				_, _ = fmt.Sscan(strings.TrimLeft(string(p), "0"), &done)
			}
			total += done
			for n := range done {
				if c := got[float64(i)*1e6+float64(n)]; c != 1 {
					t.Fatalf("shard %d reading %d of %d seen %d times", i, n, done, c)
				}
			}
		}
		if len(got) != total {
			t.Fatalf("%d rows, want %d", len(got), total)
		}
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		check()
	}
	stop.Store(true)
	wg.Wait()
	if err := a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	check()
	if p, err := a.Verify(t.Context()); err != nil || len(p) > 0 {
		t.Errorf("Verify = %v, %v", p, err)
	}
}

// A reader of the log waits when the tails are full, and goes on when a flush has made room.
func TestFullTailBlocksAndResumes(t *testing.T) {
	fs := vfs.NewCrashable()
	a, store := openTest(t, fs, func(c *Config) { c.MaxTailBytes = 3 * chunkBytes })
	defer closeTest(t, a)
	broken := errors.New("disk on fire")
	var failing atomic.Bool
	failing.Store(true)
	store.mu.Lock()
	store.fail = func() error {
		if failing.Load() {
			return broken
		}
		return nil
	}
	store.mu.Unlock()
	l := lane(t, a, "s")
	added := make(chan struct{})
	go func() {
		defer close(added)
		for n := 0; n < 10*chunkRows; n += 64 {
			add(t, l, n, n+64)
		}
	}()
	// While every commit fails the tail grows to its bound and no further.
	for a.tailBytes.Load() < a.cfg.MaxTailBytes {
		select {
		case <-added:
			t.Fatal("the tail is not bounded")
		case <-time.After(time.Millisecond):
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.waitRoom(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("waitRoom = %v", err)
	}
	failing.Store(false)
	<-added
	if got, most := a.tailBytes.Load(), a.cfg.MaxTailBytes+4*chunkBytes; got > most {
		t.Errorf("tail of %d bytes, want at most %d", got, most)
	}
	if err := a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantOnce(t, a, 10*chunkRows)
}

func TestUnknownAndMissingFiles(t *testing.T) {
	fs := vfs.NewCrashable()
	a, store := openTest(t, fs, nil)
	l := lane(t, a, "s")
	add(t, l, 0, 10)
	if err := a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	add(t, l, 10, 20)
	closeTest(t, a)
	files := a.Files()
	if err := fs.Remove(files[0].Path()); err != nil {
		t.Fatal(err)
	}
	stranger, err := fs.Create(a.Root()+"/date=2024-10-04/stranger.parquet", vfs.Category)
	if err != nil {
		t.Fatal(err)
	}
	_ = stranger.Close()

	a, err = Open(t.Context(), quiet(fs, store))
	if err != nil {
		t.Fatal(err)
	}
	defer closeTest(t, a)
	if s := a.Status(); s.Missing != 1 || s.Files != 1 || s.Rows != 10 {
		t.Errorf("Status = %+v", s)
	}
	if p, err := a.Verify(t.Context()); err != nil || len(p) != 1 || p[0].Object != files[0].Name {
		t.Errorf("Verify = %v, %v", p, err)
	}
	aside, err := fs.List("data/archive/quarantine")
	if err != nil || len(aside) != 1 || !strings.HasSuffix(aside[0], "stranger.parquet") {
		t.Errorf("quarantine = %v, %v", aside, err)
	}
}

func TestStatusAndMetricNames(t *testing.T) {
	a, _ := openTest(t, vfs.NewCrashable(), nil)
	defer closeTest(t, a)
	l := lane(t, a, "s")
	add(t, l, 0, 100)
	if s := a.Status(); s.TailRows != 100 || s.OldestInTail.IsZero() || s.Files != 0 {
		t.Errorf("Status = %+v", s)
	}
	if err := a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := a.Status(); s.TailRows != 0 || s.Rows != 100 || s.Days != 1 || s.FirstDay != "2024-10-04" || s.LastFlush.IsZero() {
		t.Errorf("Status = %+v", s)
	}
}

func TestFileSafe(t *testing.T) {
	f := func(in, want string) {
		t.Helper()
		if got := fileSafe(in); got != want {
			t.Errorf("fileSafe(%q) = %q, want %q", in, got, want)
		}
	}
	f("shardId-000000000000", "shardId-000000000000")
	f("../etc", "~2e.~2fetc")
	f("_hidden", "_hidden")
	f("a b~é", "a~20b~7e~c3~a9")
	names := map[string]bool{}
	for _, s := range []string{"a~2f", "a/", "a~", "a~2"} {
		names[fileSafe(s)] = true
	}
	if len(names) != 4 {
		t.Errorf("names collide: %v", slices.Sorted(maps.Keys(names)))
	}
}
