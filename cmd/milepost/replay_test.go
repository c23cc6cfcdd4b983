package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/milepost/milepost/internal/conf"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/sim/replay"
	"github.com/milepost/milepost/sim/sender"
	"github.com/milepost/milepost/telemetry"
)

// hall is a server in this process, with real files and a real HTTP door.
type hall struct {
	*server
	t    *testing.T
	dir  string
	http string
}

// openHall opens a server on a directory. flushRows decides how much of a replay becomes Parquet on the way.
func openHall(t *testing.T, dir string, flushRows int) *hall {
	t.Helper()
	requireSQL(t)
	var cfg Config
	if err := conf.Load(nil, &cfg); err != nil {
		t.Fatal(err)
	}
	cfg.Data = dir
	cfg.HTTP.Listen, cfg.MQTT.Listen, cfg.Kinesis.Listen = "127.0.0.1:0", "", ""
	cfg.Limits.Rate = 0 // a recorded day comes at once
	cfg.Archive.FlushRows, cfg.Archive.FlushAge = flushRows, conf.Duration(time.Hour)
	cfg.SQL.Rows = 10_000_000
	s, err := openServer(t.Context(), &cfg, vfs.Disk, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return &hall{server: s, t: t, dir: dir, http: "http://" + s.listener.Addr().String()}
}

// reopen drains the server and starts it again on what is on disk.
func (h *hall) reopen() *hall {
	h.t.Helper()
	h.close()
	return openHall(h.t, h.dir, 1<<20)
}

func (h *hall) close() {
	h.t.Helper()
	if err := h.drain(context.Background()); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hall) caughtUp() {
	h.t.Helper()
	if err := h.runner.WaitCaughtUp(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
}

// replayBuses sends files of capmetro-austin through the HTTP door.
func (h *hall) replayBuses(files ...string) {
	h.t.Helper()
	for _, file := range files {
		sum, err := replay.Run(h.t.Context(), replay.Config{
			Files: []string{file}, Sender: sender.Config{Address: h.http},
			CSV: telemetry.CSVConfig{
				Map:   map[string]string{"vehicle": "vehicle_id", "time": "timestamp", "lat": "latitude", "lon": "longitude", "speed": "speed"},
				Units: map[string]string{"speed": busUnit(file).name},
			},
		})
		if err != nil || sum.Acked != sum.Read || sum.Read == 0 || len(sum.Problems) > 0 {
			h.t.Fatalf("replay %s: %+v, %v", file, sum, err)
		}
	}
	h.caughtUp()
}

// ask runs a query through the API and returns its rows as text, "" for NULL.
func (h *hall) ask(sql string) [][]string {
	h.t.Helper()
	body, err := json.Marshal(map[string]string{"sql": sql})
	if err != nil {
		h.t.Fatal(err)
	}
	resp, err := http.Post(h.http+"/v1/sql?format=csv", "application/json", strings.NewReader(string(body)))
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		h.t.Fatalf("%s: %s %s", sql, resp.Status, b)
	}
	rows, err := csv.NewReader(resp.Body).ReadAll()
	if err != nil {
		h.t.Fatalf("%s: %v", sql, err)
	}
	return rows[1:]
}

// counter reads one of the program's own counters.
func (h *hall) counter(name string) int {
	h.t.Helper()
	families, err := h.reg.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return int(f.GetMetric()[0].GetCounter().GetValue())
		}
	}
	h.t.Fatalf("no counter %s", name)
	return 0
}

// complaints collects differences and shows the first few of each kind.
type complaints struct {
	t    *testing.T
	when string
	n    map[string]int
}

func (c *complaints) add(kind, format string, args ...any) {
	c.t.Helper()
	if c.n[kind]++; c.n[kind] <= 3 {
		c.t.Errorf("%s: %s: %s", c.when, kind, fmt.Sprintf(format, args...))
	} else if c.n[kind] == 4 {
		c.t.Errorf("%s: %s: and more", c.when, kind)
	}
}

// compare asks SQL, state, daily figures and files, and compares each with the truth.
func (h *hall) compare(w *truth, when string) {
	h.t.Helper()
	began := time.Now()
	c := &complaints{h.t, when, map[string]int{}}
	h.compareReadings(w, c)
	h.compareDays(w, c)
	h.compareVehicles(w, c)
	st := h.archive.Status()
	if got := st.Rows + st.TailRows; got != int64(len(w.rows)) {
		c.add("archive", "%d rows, want %d", got, len(w.rows))
	}
	h.t.Logf("%s: compared %d readings (%d in Parquet) of %d vehicles and %d vehicle days in %s", when, len(w.rows), st.Rows, len(w.vehicles),
		len(w.days), time.Since(began).Round(time.Millisecond))
}

func (h *hall) num(s string) float64 {
	h.t.Helper()
	if s == "" {
		return math.NaN()
	}
	return cellNumber(h.t, s)
}

func (h *hall) whole(s string) int64 {
	h.t.Helper()
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		h.t.Fatal(err)
	}
	return v
}

// same compares numbers bit for bit, but that NaN is itself.
func same(a, b float64) bool { return a == b || (a != a && b != b) }

func (h *hall) compareReadings(w *truth, c *complaints) {
	h.t.Helper()
	seen := make(map[truthRow]bool, len(w.rows))
	for _, r := range h.ask("SELECT vehicle_id, epoch_ms(event_time), lat, lon, speed, coalesce(signals['soc'], 0), coalesce(altitude, 0), flags FROM readings") {
		got := truthRow{
			vehicle: r[0], ms: h.whole(r[1]), lat: h.num(r[2]), lon: h.num(r[3]), speed: h.num(r[4]), soc: h.num(r[5]), altitude: h.num(r[6]),
		}
		switch {
		case !w.rows[got]:
			c.add("readings", "SQL has %+v, which is not in the table", got)
		case seen[got]:
			c.add("readings", "SQL has %+v twice", got)
		case (h.whole(r[7])&3 == 0) != got.hasPlace():
			c.add("readings", "flags of %+v are %s", got, r[7])
		}
		seen[got] = true
	}
	for r := range w.rows {
		if !seen[r] {
			c.add("readings", "SQL does not have %+v", r)
		}
	}
}

func (h *hall) compareDays(w *truth, c *complaints) {
	h.t.Helper()
	for source, sql := range map[string]string{
		"daily_kpis": "SELECT date, vehicle_id, readings, avg_speed, max_speed, epoch_ms(first_time), epoch_ms(last_time), avg_fuel FROM daily_kpis",
		"readings by day": `SELECT date, vehicle_id, count(*), avg(speed) FILTER (speed BETWEEN 0 AND 400), max(speed) FILTER (speed BETWEEN 0 AND 400),
			epoch_ms(min(event_time)), epoch_ms(max(event_time)), avg(fuel) FROM readings GROUP BY ALL`,
	} {
		rows := h.ask(sql)
		if len(rows) != len(w.days) {
			c.add(source, "%d vehicle days, want %d", len(rows), len(w.days))
		}
		for _, r := range rows {
			k := vehicleDay{r[1], r[0]}
			d := w.days[k]
			if d == nil {
				c.add(source, "%v is not in the table", r)
				continue
			}
			avg, most := d.sum/float64(d.speeds), d.max
			if d.speeds == 0 {
				avg, most = math.NaN(), math.NaN()
			}
			if h.whole(r[2]) != int64(d.readings) || !(near(h.num(r[3]), avg) || same(h.num(r[3]), avg)) || !same(h.num(r[4]), most) ||
				h.whole(r[5]) != d.first || h.whole(r[6]) != d.last || r[7] != "" {
				c.add(source, "%v, want %v with %+v, average %v", r, k, *d, avg)
			}
		}
	}
}

func (h *hall) compareVehicles(w *truth, c *complaints) {
	h.t.Helper()
	rows := h.ask("SELECT vehicle_id, readings, epoch_ms(event_time), speed, lat, lon, epoch_ms(place_time) FROM vehicles")
	if len(rows) != len(w.vehicles) {
		c.add("vehicles", "%d, want %d", len(rows), len(w.vehicles))
	}
	for _, r := range rows {
		v := w.vehicles[r[0]]
		if v == nil {
			c.add("vehicles", "%v is not in the table", r)
			continue
		}
		if h.whole(r[1]) != int64(v.readings) || h.whole(r[2]) != v.newest || h.num(r[3]) != v.speed {
			c.add("vehicles", "SQL has %v, want %+v", r, *v)
		}
		if v.placeTime == 0 {
			if r[4]+r[5]+r[6] != "" {
				c.add("vehicles", "SQL has %v, want no place", r)
			}
		} else if h.num(r[4]) != v.lat || h.num(r[5]) != v.lon || h.whole(r[6]) != v.placeTime {
			c.add("vehicles", "SQL has %v, want %+v", r, *v)
		}
		got, ok := h.fleet.Vehicle(r[0])
		if !ok || int(got.Readings) != v.readings || got.EventTime != v.newest || got.HasPlace != (v.placeTime != 0) ||
			(got.HasPlace && (got.PlaceTime != v.placeTime || got.Lat != v.lat || got.Lon != v.lon)) {
			c.add("state", "%+v, want %+v", got, *v)
		}
	}
}

// compareFiles reads the Parquet files of a stopped server as another program would.
func compareFiles(t *testing.T, dir string, w *truth) {
	t.Helper()
	began := time.Now()
	c := &complaints{t, "files", map[string]int{}}
	seen := make(map[truthRow]bool, len(w.rows))
	files := 0
	err := filepath.WalkDir(filepath.Join(dir, "archive", "readings"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(d.Name(), "_") {
			return err
		}
		files++
		date := strings.TrimPrefix(filepath.Base(filepath.Dir(path)), "date=")
		for _, r := range readParquet(t, vfs.Disk, path) {
			got := truthRow{vehicle: r.Vehicle, ms: r.Event, lat: *r.Lat, lon: *r.Lon, speed: *r.Speed, soc: r.Signals["soc"]}
			if r.Altitude != nil {
				got.altitude = *r.Altitude
			}
			switch {
			case !w.rows[got]:
				c.add("files", "%s has %+v, which is not in the table", path, got)
			case seen[got]:
				c.add("files", "%s has %+v again", path, got)
			case time.UnixMilli(got.ms).UTC().Format(time.DateOnly) != date:
				c.add("files", "%s has %+v, which is of another day", path, got)
			}
			seen[got] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(seen) != len(w.rows) {
		c.add("files", "%d distinct rows, want %d", len(seen), len(w.rows))
	}
	t.Logf("%d files compared in %s", files, time.Since(began).Round(time.Millisecond))
}

func pick(t *testing.T, files []string, days ...string) []string {
	t.Helper()
	var out []string
	for _, d := range days {
		i := slices.IndexFunc(files, func(f string) bool { return strings.HasPrefix(filepath.Base(f), d) })
		if i < 0 {
			t.Fatalf("no file of %s", d)
		}
		out = append(out, files[i])
	}
	return out
}

// TestReplayDays replays three recorded days: the one of the change of clocks, one with buses at 0,0, and one whose rows repeat
// each other under several trips. The live tail must say what the tables say; and after a restart the Parquet files alone must.
func TestReplayDays(t *testing.T) {
	files := pick(t, recorded(t, "capmetro-austin"), "2015-03-08", "2015-03-18", "2016-03-22")
	w := newTruth()
	for _, f := range files {
		w.addBuses(t, f)
	}
	dir := t.TempDir()
	h := openHall(t, dir, 1<<20)
	h.replayBuses(files...)
	if got := h.counter("milepost_fleet_duplicates_total"); got != w.duplicates() {
		t.Errorf("%d duplicates counted, want %d", got, w.duplicates())
	}
	if st := h.archive.Status(); st.Rows > 0 {
		t.Errorf("%d rows are in Parquet already: this was to prove the live tail", st.Rows)
	}
	h.compare(w, "live tail")
	h = h.reopen()
	if st := h.archive.Status(); st.TailRows > 0 {
		t.Errorf("%d rows in the tail after draining", st.TailRows)
	}
	h.compare(w, "after a restart")
	h.close()
	compareFiles(t, dir, w)
}

// TestReplayAll replays all 437,621 recorded rows, then again, when nothing may change; and, into another server, in random order.
func TestReplayAll(t *testing.T) {
	files := recorded(t, "capmetro-austin")
	if testing.Short() {
		t.Skip("replays 1.3 million rows: run without -short")
	}
	w := newTruth()
	for _, f := range files {
		w.addBuses(t, f)
	}
	const figures = "SELECT * FROM daily_kpis ORDER BY ALL"
	var first [][]string
	t.Run("in order, twice", func(t *testing.T) {
		dir := t.TempDir()
		h := openHall(t, dir, 20_000)
		began := time.Now()
		h.replayBuses(files...)
		t.Logf("%d rows in %s", w.read, time.Since(began).Round(time.Millisecond))
		if got := h.counter("milepost_fleet_duplicates_total"); got != w.duplicates() {
			t.Errorf("%d duplicates counted, want %d", got, w.duplicates())
		}
		h.compare(w, "once")
		first = h.ask(figures)
		h.replayBuses(files...)
		if got := h.counter("milepost_fleet_duplicates_total"); got != w.duplicates()+w.read {
			t.Errorf("%d duplicates counted after the second time, want %d", got, w.duplicates()+w.read)
		}
		h.compare(w, "twice")
		h = h.reopen()
		h.compare(w, "after a restart")
		h.close()
		compareFiles(t, dir, w)
	})
	t.Run("shuffled", func(t *testing.T) {
		dir := t.TempDir()
		h := openHall(t, dir, 20_000)
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		rows := slices.Clone(w.order)
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
		began := time.Now()
		out, err := sender.Open(sender.Config{Address: h.http})
		if err != nil {
			t.Fatal(err)
		}
		for i := range rows {
			if err := out.Send(t.Context(), rows[i].vehicle, rows[i].payload()); err != nil {
				t.Fatal(err)
			}
		}
		if err := out.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if st := out.Stats(); st.Acked != int64(len(rows)) {
			t.Fatalf("%+v", st)
		}
		if err := out.Close(); err != nil {
			t.Fatal(err)
		}
		h.caughtUp()
		t.Logf("%d rows in %s", len(rows), time.Since(began).Round(time.Millisecond))
		if got := h.counter("milepost_fleet_duplicates_total"); got != w.duplicates() {
			t.Errorf("%d duplicates counted, want %d", got, w.duplicates())
		}
		h.compare(w, "shuffled")
		if first != nil && !slices.EqualFunc(first, h.ask(figures), slices.Equal) {
			t.Error("daily figures differ from those of the rows in order, bit for bit")
		}
		h.close()
		compareFiles(t, dir, w)
	})
}

// payload writes a row as a device would.
func (r *truthRow) payload() []byte {
	num := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	return fmt.Appendf(nil, `{"vehicle_id":%q,"ts":%q,"lat":%s,"lon":%s,"speed":%s}`, r.vehicle,
		time.UnixMilli(r.ms).UTC().Format(time.RFC3339Nano), num(r.lat), num(r.lon), num(r.speed))
}

// TestReplayTwizy replays the log of one car. 170 of its rows have no date that exists: replay reports them as bad rows and never
// sends them, so the door sees, refuses and dead-letters nothing.
func TestReplayTwizy(t *testing.T) {
	files := recorded(t, "rsk-twizy-ev")
	w := newTruth()
	for _, f := range files {
		w.addTwizy(t, f)
	}
	zone, err := time.LoadLocation("Africa/Casablanca")
	if err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	h := openHall(t, dir, 1<<20)
	sum, err := replay.Run(t.Context(), replay.Config{
		Files: files, Sender: sender.Config{Address: h.http},
		CSV: telemetry.CSVConfig{
			Map:  map[string]string{"vehicle": "@twizy", "time": "Date+Time", "lat": "LAT", "lon": "LON", "speed": "Speed", "soc": "Soc", "altitude": "ALT"},
			Time: "1/2/2006 15:04:05", Zone: zone,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.caughtUp()
	if w.bad != 170 || sum.Bad != 170 || sum.Refused != 0 || sum.Read != 55_645 || sum.Acked != 55_645-170 || len(sum.Problems) != replay.MaxProblems {
		t.Errorf("replayed %+v with %d problems; the tables have %d rows, %d of them without a date", sum.Stats, len(sum.Problems), w.read, w.bad)
	}
	for _, p := range sum.Problems {
		if p.File == "" || p.Line < 2 || !strings.Contains(p.Reason, "is not a time: want") {
			t.Errorf("problem %+v", p)
		}
	}
	if got := len(readLog(t, h.dead)); got != 0 {
		t.Errorf("%d dead letters, want none", got)
	}
	h.compare(w, "twizy")
	low := math.Inf(1)
	for r := range w.rows {
		low = min(low, r.soc)
	}
	if got := h.num(h.ask("SELECT min(signals['soc']) FROM readings")[0][0]); got != low {
		t.Errorf("lowest charge is %v, want %v", got, low)
	}
	h.close()
	compareFiles(t, dir, w)
}
