package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"

	"github.com/milepost/milepost/alert"
	"github.com/milepost/milepost/fleet"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// A readingKey is one reading of a test that gives every reading of a vehicle a time of its own.
type readingKey struct {
	vehicle string
	time    int64
}

// check compares the machine, whose vehicles have all finished, with what was sent.
func (c *crashTest) check(s *server, when string, letters bool) {
	t := c.t
	t.Helper()
	if err := s.runner.WaitCaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c.checkLog(s, when)
	c.checkFleet(s, when)
	c.checkArchive(s, when)
	c.checkAlerts(s, when)
	c.checkFunctions(s, when)
	if letters {
		c.checkLetters(s, when)
	}
	t.Logf("%s: %d vehicles checked in %s", when, len(c.vehicles), time.Since(began).Round(time.Millisecond))
}

// checkLog: every reading and every acknowledged foreign record is in the log, the latter once, and nothing else is.
func (c *crashTest) checkLog(s *server, when string) {
	t := c.t
	t.Helper()
	have := map[string]int{}
	for _, r := range readLog(t, s.readings) {
		have[string(r.Data)]++
	}
	n := 0
	for _, v := range c.vehicles {
		for i := range scriptReadings {
			if have[v.reading(i)] == 0 {
				t.Errorf("%s: reading %d of %s was acknowledged and is not in the log", when, i, v.id)
			}
			n++
		}
		for once := range v.sent {
			if v.isForeign(once) {
				if have[once] > 1 || (v.answer[once] && have[once] == 0) {
					t.Errorf("%s: %q is in the log %d times; acknowledged: %v", when, once, have[once], v.answer[once])
				}
				if have[once] > 0 {
					n++
				}
			}
		}
	}
	if n != len(have) {
		t.Errorf("%s: the log has %d distinct records, want %d", when, len(have), n)
	}
}

func (v *crashVehicle) isForeign(payload string) bool {
	for i := range v.acts {
		if v.acts[i].foreign == payload {
			return true
		}
	}
	return false
}

// A tippedLog is a log that knows where it ends.
type tippedLog interface {
	stream.Log
	stream.Tipper
}

// readLog reads every record that a log holds.
func readLog(t *testing.T, log tippedLog) []stream.Record {
	t.Helper()
	shards, err := log.Shards(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var all []stream.Record
	for _, sh := range shards {
		tip, err := log.Tip(t.Context(), sh.ID)
		if err != nil {
			t.Fatal(err)
		}
		rd, err := log.Read(t.Context(), sh.ID, "")
		if err != nil {
			t.Fatal(err)
		}
		for last := stream.Position(""); last < tip.Pos; {
			recs, err := rd.Next(t.Context(), 4096)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range recs {
				r.Key, r.Data, r.Pos = string([]byte(r.Key)), bytes.Clone(r.Data), stream.Position([]byte(r.Pos))
				all = append(all, r)
				last = r.Pos
			}
		}
		if err := rd.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// checkFleet: each vehicle's state counts each reading once and is that of the newest; so do its daily figures.
func (c *crashTest) checkFleet(s *server, when string) {
	t := c.t
	t.Helper()
	days := map[string]map[int32]fleet.Daily{}
	err := s.fleet.EachDaily(t.Context(), math.MinInt32, math.MaxInt32, func(d fleet.Daily) bool {
		if days[d.Vehicle] == nil {
			days[d.Vehicle] = map[int32]fleet.Daily{}
		}
		days[d.Vehicle][d.Day] = d
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(days) != len(c.vehicles) || s.fleet.Len() != len(c.vehicles) {
		t.Errorf("%s: state knows %d vehicles, daily figures %d, want %d", when, s.fleet.Len(), len(days), len(c.vehicles))
	}
	for _, v := range c.vehicles {
		got, ok := s.fleet.Vehicle(v.id)
		if !ok || got.Readings != scriptReadings || got.EventTime != v.time(scriptReadings-1) ||
			got.PlaceTime != got.EventTime || math.Abs(got.Lat-(52+float64(scriptReadings-1)/1000)) > 1e-9 || len(got.Firing) > 0 {
			t.Errorf("%s: state of %s is %+v", when, v.id, got)
		}
		want := map[int32]fleet.Daily{}
		for i := range scriptReadings {
			var r struct{ Speed, Fuel float64 }
			if err := json.Unmarshal([]byte(v.reading(i)), &r); err != nil {
				t.Fatal(err)
			}
			day := int32(v.time(i) / 86_400_000)
			d := want[day]
			d.Readings++
			d.AvgSpeed += r.Speed
			d.AvgFuel += r.Fuel
			d.MaxSpeed = max(d.MaxSpeed, r.Speed)
			want[day] = d
		}
		if len(days[v.id]) != len(want) {
			t.Errorf("%s: %s has figures of %d days, want %d", when, v.id, len(days[v.id]), len(want))
		}
		for day, w := range want {
			g := days[v.id][day]
			n := float64(w.Readings)
			if g.Readings != w.Readings || g.MaxSpeed != w.MaxSpeed || !near(g.AvgSpeed, w.AvgSpeed/n) || !near(g.AvgFuel, w.AvgFuel/n) {
				t.Errorf("%s: figures of %s on day %d are %+v, want %+v", when, v.id, day, g, w)
			}
		}
	}
}

func near(a, b float64) bool { return math.Abs(a-b) <= 1e-6 }

// A parquetRow is what a foreign program reads of a row.
type parquetRow struct {
	Vehicle  string             `parquet:"vehicle_id"`
	Event    int64              `parquet:"event_time"`
	Lat      *float64           `parquet:"lat"`
	Lon      *float64           `parquet:"lon"`
	Speed    *float64           `parquet:"speed"`
	Altitude *float64           `parquet:"altitude"`
	Signals  map[string]float64 `parquet:"signals"`
	Flags    int32              `parquet:"flags"`
}

// checkArchive: files and tail together have each reading once, the right one.
func (c *crashTest) checkArchive(s *server, when string) {
	t := c.t
	t.Helper()
	snap := s.archive.Snapshot()
	defer snap.Release()
	have := map[readingKey]int{}
	speeds := map[readingKey]float64{}
	add := func(vehicle string, at int64, speed float64) {
		k := readingKey{vehicle, at}
		have[k]++
		speeds[k] = speed
	}
	for i := range snap.Tail {
		r := &snap.Tail[i]
		for j := range r.Len() {
			add(r.Names[r.Vehicle[j]], r.Event[j], r.Signal[telemetry.Speed][j])
		}
	}
	tail := len(have)
	for _, f := range snap.Files {
		rows := readParquet(t, c.disk, c.disk.PathJoin(s.archive.Root(), f.Name))
		if int64(len(rows)) != f.Rows {
			t.Errorf("%s: %s has %d rows, the manifest says %d", when, f.Name, len(rows), f.Rows)
		}
		for _, r := range rows {
			if r.Speed == nil {
				t.Errorf("%s: %s: %s at %d has no speed", when, f.Name, r.Vehicle, r.Event)
				continue
			}
			add(r.Vehicle, r.Event, *r.Speed)
		}
	}
	t.Logf("%s: archive has %d files and %d rows, %d of them in the tail", when, len(snap.Files), len(have), tail)
	wrong := 0
	for _, v := range c.vehicles {
		for i := range scriptReadings {
			var r struct{ Speed float64 }
			if err := json.Unmarshal([]byte(v.reading(i)), &r); err != nil {
				t.Fatal(err)
			}
			k := readingKey{v.id, v.time(i)}
			if have[k] != 1 || speeds[k] != r.Speed {
				if wrong++; wrong < 10 {
					t.Errorf("%s: archive has reading %d of %s %d times, with speed %v, want once with %v", when, i, v.id, have[k], speeds[k], r.Speed)
				}
			}
			delete(have, k)
		}
	}
	for k := range have {
		t.Errorf("%s: archive has a reading that nobody sent: %+v", when, k)
	}
	if problems, err := s.archive.Verify(t.Context()); err != nil || len(problems) > 0 {
		t.Errorf("%s: verify archive: %v, %v", when, problems, err)
	}
}

// readParquet reads one object with a Parquet library alone.
func readParquet(t *testing.T, fs vfs.FS, name string) []parquetRow {
	t.Helper()
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	rows, err := parquet.Read[parquetRow](bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return rows
}

// checkAlerts: each episode of each vehicle is one alert, and was told under one ID when it fired and one when it ended.
func (c *crashTest) checkAlerts(s *server, when string) {
	t := c.t
	t.Helper()
	ids := map[string]bool{}
	got := map[string]map[string]alert.Alert{}
	for after := ""; ; {
		page, err := s.book.List(t.Context(), alert.Filter{After: after, Limit: alert.MaxList})
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, a := range page {
			if got[a.Vehicle] == nil {
				got[a.Vehicle] = map[string]alert.Alert{}
			}
			if b, ok := got[a.Vehicle][a.Rule]; ok {
				t.Errorf("%s: %s has two alerts of %s: %+v and %+v", when, a.Vehicle, a.Rule, b, a)
			}
			got[a.Vehicle][a.Rule] = a
			ids[a.ID] = true
		}
		after = page[len(page)-1].ID
	}
	told := map[string]bool{}
	for _, v := range c.vehicles {
		if len(got[v.id]) != len(scriptAlerts()) {
			t.Errorf("%s: %s has alerts of %d rules, want %d: %+v", when, v.id, len(got[v.id]), len(scriptAlerts()), got[v.id])
		}
		for _, rule := range scriptAlerts() {
			a := got[v.id][rule]
			if a.State != alert.Resolved || a.Reopened != 0 || a.Late != v.late {
				t.Errorf("%s: %s of %s is %+v, want it resolved, never reopened, late %v", when, rule, v.id, a, v.late)
			}
			if !v.late {
				told[a.ID+"/firing"], told[a.ID+"/resolved"] = true, true
			}
		}
	}
	if t.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	defer context.AfterFunc(ctx, c.heard.Broadcast)()
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.told {
		if !told[id] {
			t.Errorf("%s: told %s, which is of no alert: %s", when, id, c.told[id])
		}
	}
	for id := range told {
		for c.told[id] == "" && !c.perhaps[id] && ctx.Err() == nil {
			c.heard.Wait()
		}
		if c.told[id] == "" && !c.perhaps[id] {
			t.Errorf("%s: nobody was told %s", when, id)
		}
	}
}

// checkLetters: each refused payload is one dead letter. The machine has been stopped in order before, so none waits.
func (c *crashTest) checkLetters(s *server, when string) {
	t := c.t
	t.Helper()
	waiting, _, err := s.state.Pending(t.Context(), process.DeadLetterKind, 10)
	if err != nil || len(waiting) > 0 {
		t.Errorf("%s: %d dead letters wait for their stream: %v", when, len(waiting), err)
	}
	doors, ids := map[string]int{}, map[string]map[string]bool{}
	for _, r := range readLog(t, s.dead) {
		var d stream.DeadLetter
		if err := json.Unmarshal(r.Data, &d); err != nil {
			t.Fatal(err)
		}
		switch {
		case d.Stream == eventsStream: // checkTally counts them
		case d.ID == "":
			doors[string(d.Data)]++
		case ids[string(d.Data)] == nil:
			ids[string(d.Data)] = map[string]bool{d.ID: true}
		default:
			ids[string(d.Data)][d.ID] = true // posted at least once, under one ID
		}
	}
	inLog := map[string]bool{}
	for _, r := range readLog(t, s.readings) {
		inLog[string(r.Data)] = true
	}
	known := 0
	for _, v := range c.vehicles {
		for once := range v.sent {
			got, want := doors[once], "at most 1"
			bad := got > 1
			switch {
			case v.isForeign(once) && inLog[once]:
				got, want = len(ids[once]), "1"
				bad = got != 1
			case v.isForeign(once):
				got, want = len(ids[once]), "0"
				bad = got != 0
			case v.answer[once]:
				want = "1"
				bad = got != 1
			}
			if bad {
				t.Errorf("%s: %q has %d dead letters, want %s", when, once, got, want)
			}
			if got > 0 {
				known++
			}
		}
	}
	if n := len(doors) + len(ids); n != known {
		t.Errorf("%s: %d payloads are dead letters, want %d", when, n, known)
	}
}
