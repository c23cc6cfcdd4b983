package archive

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state"
)

func TestPick(t *testing.T) {
	c := Compaction{Settle: time.Minute, FanIn: 3, MaxRows: 1000}
	noon, next := time.Date(2024, 10, 4, 12, 0, 0, 0, time.UTC), time.Date(2024, 10, 5, 1, 0, 0, 0, time.UTC)
	f := func(name string, now time.Time, want string, rows ...int64) {
		t.Helper()
		var day []*File
		for i, n := range rows {
			// Negative: part of the day's run.
			file := &File{Name: fmt.Sprint(i), Date: "2024-10-04", Rows: n, Written: noon.UnixMilli()}
			if n < 0 {
				file.Rows, file.Run = -n, true
			}
			day = append(day, file)
		}
		got := ""
		for _, p := range c.pick(day, now) {
			got += p.Name
		}
		if got != want {
			t.Errorf("%s: picked %q, want %q", name, got, want)
		}
	}
	f("one file", next, "", 10)
	f("open day, few files", noon, "", 10, 11)
	f("open day, three of a size", noon, "031", 10, 11, 100, 10)
	f("open day, different sizes", noon, "", 4, 20, 100, 500)
	f("finished day becomes one run", next, "0123", 4, 100, 20, 500)
	f("finished run is left", next, "", -900, -900, -300)
	f("a late row or two wait", next, "", -900, -900, 2)
	f("many late rows do not", next, "012", -900, -900, 400)
	f("more than fit at once", next, "012345", 1, 2, 3, 4, 5, 6, 700)
}

func TestCompactionOfFinishedDay(t *testing.T) {
	a, _ := openTest(t, vfs.NewCrashable(), func(c *Config) { c.Compaction.FanIn = 3; c.Compaction.MaxRows = 3000 })
	defer closeTest(t, a)
	l := lane(t, a, "s")
	const n = 10_000
	for at := 0; at < n; at += 500 {
		add(t, l, at, at+500)
		if err := a.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	used := a.Snapshot()
	now := time.Now().Add(time.Hour)
	for {
		merged, err := a.Compact(t.Context(), now)
		if err != nil {
			t.Fatal(err)
		}
		if merged == 0 {
			break
		}
		wantOnce(t, a, n)
	}
	files := a.Files()
	if len(files) != 4 {
		t.Fatalf("%d files, want 4", len(files))
	}
	for i, f := range files {
		if !f.Run || i > 0 && f.MinVehicle < files[i-1].MaxVehicle {
			t.Errorf("not one run: %+v", f)
		}
	}
	for _, f := range files {
		rows := readObject(t, a, f)
		if !slices.IsSortedFunc(rows, func(x, y plain) int {
			if c := strings.Compare(x.Vehicle, y.Vehicle); c != 0 {
				return c
			}
			return int(x.Event - y.Event)
		}) {
			t.Errorf("%s is not sorted", f.Name)
		}
		if f.Rows > 3000 || f.MinVehicle != rows[0].Vehicle || f.MaxVehicle != rows[len(rows)-1].Vehicle {
			t.Errorf("manifest = %+v", f)
		}
	}
	// A query that began before still finds its files.
	if got := odometers(t, a, used); len(got) != n {
		t.Errorf("the old snapshot has %d rows, want %d", len(got), n)
	}
	used.Release()
	if err := a.removeObsolete(t.Context()); err != nil {
		t.Fatal(err)
	}
	left, err := a.cfg.FS.List(a.cfg.FS.PathDir(files[0].Path()))
	if err != nil || len(left) != 4 {
		t.Errorf("%d objects on disk (%v), want 4", len(left), err)
	}
}

func TestRetention(t *testing.T) {
	a, _ := openTest(t, vfs.NewCrashable(), func(c *Config) { c.Retention = 48 * time.Hour })
	defer closeTest(t, a)
	l := lane(t, a, "s")
	for d := range 5 {
		r := reading(0, d)
		r.Time = testDay + int64(d)*dayMillis
		if err := l.Add(t.Context(), pos(d+1), r); err != nil {
			t.Fatal(err)
		}
	}
	l.Advance(pos(5))
	if err := a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.expire(t.Context(), time.UnixMilli(testDay+4*dayMillis+dayMillis/2)); err != nil {
		t.Fatal(err)
	}
	if err := a.removeObsolete(t.Context()); err != nil {
		t.Fatal(err)
	}
	dirs, err := a.cfg.FS.List(a.Root())
	slices.Sort(dirs)
	if d := cmp.Diff([]string{"date=2024-10-06", "date=2024-10-07", "date=2024-10-08"}, dirs); err != nil || d != "" {
		t.Errorf("days (-want +got): %s %v", d, err)
	}

	f := func(size int64, want int) {
		t.Helper()
		var files []*File
		for d := range 4 {
			for range 2 {
				files = append(files, &File{Date: fmt.Sprint("2024-10-0", d+1), Bytes: 10})
			}
		}
		if got := len(expired(files, time.Now(), 0, size)); got != want {
			t.Errorf("limit %d: %d files expire, want %d", size, got, want)
		}
	}
	f(0, 0)
	f(80, 0)
	f(79, 2)
	f(41, 4)
	f(1, 6) // the newest day stays
}

// TestMergeOnFullDisk: a merge that can be seen, but waits for room on the disk, removes nothing. A power cut then finds the old objects.
func TestMergeOnFullDisk(t *testing.T) {
	fs := vfs.NewCrashable()
	if err := vfs.MakeDir(fs, "data"); err != nil {
		t.Fatal(err)
	}
	config := func(c *Config) { c.Compaction.FanIn = 3 }
	a, store := openTest(t, fs, config)
	l := lane(t, a, "s")
	const n = 3000
	for at := 0; at < n; at += 500 {
		add(t, l, at, at+500)
		if err := a.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var clone *vfs.MemFS
	store.mu.Lock()
	store.full, store.refused = 3, func() { clone = fs.CrashClone(vfs.CrashCloneCfg{}) }
	store.mu.Unlock()
	if _, err := a.Compact(t.Context(), time.Now().Add(time.Hour)); err != nil && !errors.Is(err, state.ErrFull) {
		t.Fatal(err)
	}
	wantOnce(t, a, n)
	closeTest(t, a)
	a, _ = openTest(t, clone, config)
	wantOnce(t, a, n)
	if problems, err := a.Verify(t.Context()); err != nil || len(problems) > 0 {
		t.Errorf("after a power cut: %v, %v", problems, err)
	}
	closeTest(t, a)
}
