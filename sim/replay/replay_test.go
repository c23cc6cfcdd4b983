package replay

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/csv"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/milepost/milepost/sim/sender"
	"github.com/milepost/milepost/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// door takes readings and remembers them, or their sum.
type door struct {
	t      *testing.T
	mu     sync.Mutex // guards what follows
	keep   bool
	lines  []string
	times  map[string]int64 // of each vehicle's last reading
	total  int
	sum    uint64
	refuse int // the lines of this many requests are refused for now
	calls  int
}

func startDoor(t *testing.T, d *door) sender.Config {
	d.t, d.times = t, map[string]int64{}
	server := httptest.NewServer(d)
	t.Cleanup(server.Close)
	return sender.Config{Address: server.URL, Linger: time.Millisecond}
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.calls++; d.calls <= d.refuse {
		w.Header().Set("Retry-After", "0")
		w.WriteHeader([]int{http.StatusTooManyRequests, http.StatusServiceUnavailable}[d.calls%2])
		return
	}
	dec := telemetry.NewDecoder(telemetry.NewCatalog())
	reading := telemetry.Reading{}
	for in := bufio.NewScanner(r.Body); in.Scan(); {
		reading.Vehicle, reading.Arrival = "", time.Now().UnixMilli()
		if err := dec.JSON(in.Bytes(), &reading); err != nil {
			d.t.Errorf("%s: %v", in.Bytes(), err)
			continue
		}
		if last := d.times[reading.Vehicle]; reading.Time < last {
			d.t.Errorf("%s: %d came after %d", reading.Vehicle, reading.Time, last)
		}
		d.times[strings.Clone(reading.Vehicle)] = reading.Time
		d.total++
		speed, _ := reading.Signal(telemetry.Speed)
		d.sum += fingerprint(reading.Vehicle, reading.Time, reading.Lat, reading.Lon, speed)
		if d.keep {
			d.lines = append(d.lines, in.Text())
		}
	}
	_, _ = io.WriteString(w, `{"accepted":1,"refused":[],"refused_total":0}`)
}

// fingerprint is a number for a reading, so that the sum over readings tells two multisets of them apart.
func fingerprint(vehicle string, ms int64, lat, lon, speed float64) uint64 {
	var buf [128]byte
	b := append(append(buf[:0], vehicle...), '|')
	for _, v := range []uint64{uint64(ms), math.Float64bits(lat), math.Float64bits(lon), math.Float64bits(speed)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	h := fnv.New64a()
	_, _ = h.Write(b)
	return h.Sum64()
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var out io.WriteCloser = file
	switch filepath.Ext(name) {
	case ".gz":
		out = gzip.NewWriter(file)
	case ".zst":
		if out, err = zstd.NewWriter(file); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(out, content); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if out != io.WriteCloser(file) {
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

const table = `vehicle_id,ts,lat,lon,speed
b,2020-01-01T00:00:02Z,1,2,20
a,2020-01-01T00:00:01Z,1,2,10
a,2020-01-01T00:00:01Z,1,2,11
a/b,2020-01-01T00:00:01Z,1,2,11
a,2020-01-01T00:00:03Z,1,2,fast
`

// All kinds of file are read, sorted and merged by time; bad rows are listed.
func TestReplayFiles(t *testing.T) {
	lines := `{"vehicle_id":"c","ts":"2020-01-01T00:00:01.500Z","speed":5,"driver":"kept as it is"}` + "\nnonsense\n" +
		`{"vehicle_id":"c","ts":"2020-01-01T00:00:00Z","speed":4}` + "\n"
	wantTable := []string{
		`{"vehicle_id":"a","ts":"2020-01-01T00:00:01.000Z","lat":1,"lon":2,"speed":10}`,
		`{"vehicle_id":"a","ts":"2020-01-01T00:00:01.000Z","lat":1,"lon":2,"speed":11}`,
		`{"vehicle_id":"b","ts":"2020-01-01T00:00:02.000Z","lat":1,"lon":2,"speed":20}`,
	}
	wantLines := []string{
		`{"vehicle_id":"c","ts":"2020-01-01T00:00:00Z","speed":4}`,
		`{"vehicle_id":"c","ts":"2020-01-01T00:00:01.500Z","speed":5,"driver":"kept as it is"}`,
	}
	f := func(names []string, contents []string, speedup float64, want []string, problems []string) {
		t.Helper()
		var files []string
		for i := range names {
			files = append(files, write(t, names[i], contents[i]))
		}
		d := &door{keep: true, refuse: len(names)}
		cfg := startDoor(t, d)
		cfg.Connections = 1 // so that the order among vehicles shows too
		s, err := Run(t.Context(), Config{Files: files, Sender: cfg, Speedup: speedup})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(d.lines, want) {
			t.Errorf("%v\n got %q\nwant %q", names, d.lines, want)
		}
		var got []string
		for _, p := range s.Problems {
			got = append(got, filepath.Base(p.File)+strings.TrimPrefix(p.String(), p.File))
		}
		if !slices.Equal(got, problems) {
			t.Errorf("%v\n got %q\nwant %q", names, got, problems)
		}
		if s.Read != int64(len(want)+len(problems)) || s.Bad != int64(len(problems)) || s.Acked != int64(len(want)) || s.Files != len(files) || s.Open() != 0 {
			t.Errorf("%v: %+v", names, s)
		}
	}
	problems := func(name string) []string {
		return []string{
			name + ", line 5, column vehicle_id: vehicle id must be printable text without '/', '+' and '#', which have a meaning in topics",
			name + `, line 6, column speed: "fast" is not a number`,
		}
	}
	for _, name := range []string{"x.csv", "x.csv.gz", "x.csv.zst", "x.gz", "x"} {
		f([]string{name}, []string{table}, 0, wantTable, problems(name))
	}
	f([]string{"x.tsv"}, []string{strings.ReplaceAll(table, ",", "\t")}, 0, wantTable, problems("x.tsv"))
	for _, name := range []string{"y.ndjson", "y.jsonl.gz", "y.zst", "y"} {
		f([]string{name}, []string{lines}, 0, wantLines, []string{name + ", line 2: byte 0: a reading is one JSON object: want '{'"})
	}
	bad := append(problems("x.csv"), "y.json, line 2: byte 0: a reading is one JSON object: want '{'")
	f([]string{"x.csv", "y.json"}, []string{table, lines}, 0, append(slices.Clone(wantTable), wantLines...), bad)
	f([]string{"x.csv", "y.json"}, []string{table, lines}, 1000, []string{wantLines[0], wantTable[0], wantTable[1], wantLines[1], wantTable[2]}, bad)
}

// With a shift the recording happens today: without a speed-up the newest reading is now, with one each is sent at its moment.
func TestReplayShifts(t *testing.T) {
	f := func(speedup float64, wantGap int64) {
		t.Helper()
		d := &door{}
		before := time.Now().UnixMilli()
		if _, err := Run(t.Context(), Config{Files: []string{write(t, "x.csv", table)}, Sender: startDoor(t, d), Shift: true, Speedup: speedup}); err != nil {
			t.Fatal(err)
		}
		if d.times["b"] < before || d.times["b"] > time.Now().UnixMilli() || d.times["b"]-d.times["a"] != wantGap {
			t.Errorf("speed-up %v: a at %d, b at %d, begun at %d", speedup, d.times["a"], d.times["b"], before)
		}
	}
	f(0, 1000)
	f(10, 100)
}

func TestReplayRefusals(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, `{"accepted":2,"refused":[{"line":2,"reason":"not today"}],"refused_total":1}`)
	}))
	defer server.Close()
	s, err := Run(t.Context(), Config{Files: []string{write(t, "x.csv", table)}, Sender: sender.Config{Address: server.URL, Connections: 1}})
	if err != nil {
		t.Fatal(err)
	}
	last := s.Problems[len(s.Problems)-1].String()
	if s.Acked != 2 || s.Refused != 1 || !strings.HasPrefix(last, `refused by the door: not today: {"vehicle_id":"a"`) {
		t.Errorf("%+v", s)
	}
}

func TestReplayErrors(t *testing.T) {
	f := func(want string, cfg Config) {
		t.Helper()
		if _, err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	to := startDoor(t, &door{})
	f("no files", Config{Sender: to})
	f("speed-up -1", Config{Files: []string{"x"}, Speedup: -1, Sender: to})
	f("no such file", Config{Files: []string{"/nowhere/x.csv"}, Sender: to})
	f("scheme", Config{Files: []string{"x"}, Sender: sender.Config{Address: "ftp://x"}})
	f("x.csv: no column for time", Config{Files: []string{write(t, "x.csv", "vehicle_id\n")}, Sender: to})
	f("gzip: invalid header", Config{Files: []string{write(t, "x.csv", table), rename(t, write(t, "x.csv", table), "x.gz")}, Sender: to})
}

func rename(t *testing.T, path, name string) string {
	t.Helper()
	to := filepath.Join(filepath.Dir(path), name)
	if err := os.Rename(path, to); err != nil {
		t.Fatal(err)
	}
	return to
}

// A replay that is told to stop says how far it came.
func TestReplayStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	d := &door{}
	to := startDoor(t, d)
	var rows strings.Builder
	rows.WriteString("vehicle_id,ts\n")
	for i := range 3600 {
		fmt.Fprintf(&rows, "a,2020-01-01T%02d:%02d:%02dZ\n", i/3600, i/60%60, i%60)
	}
	s, err := Run(ctx, Config{Files: []string{write(t, "x.csv", rows.String())}, Sender: to, Speedup: 100, Every: time.Millisecond, Progress: func(s Stats) {
		if s.Acked > 0 {
			cancel()
		}
	}})
	if err != nil || s.Acked == 0 || s.Acked == 3600 || s.Open() != 0 {
		t.Errorf("%+v, %v", s.Stats, err)
	}
}

// sharedData returns a folder of recorded data that lies beside the project, in shared/data of some directory above.
func sharedData(t *testing.T, name string) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		path := filepath.Join(dir, "shared", "data", name)
		if _, err := os.Stat(path); err == nil {
			return path
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Skipf("skipped: the recorded data %s is not beside the project", name)
		}
		dir = parent
	}
}

// independently reads a table with nothing but the standard library and calls f for each row.
func independently(t *testing.T, path string, f func(row map[string]string)) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	z, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	in := csv.NewReader(z)
	header, err := in.Read()
	if err != nil {
		t.Fatal(err)
	}
	row := map[string]string{}
	for {
		fields, err := in.Read()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		for i, name := range header {
			row[name] = fields[i]
		}
		f(row)
	}
}

func float(t *testing.T, s string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Every row of the recorded bus fleet goes out once, in the right unit, and each vehicle's in order of time.
func TestReplayBusFleet(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(sharedData(t, "capmetro-austin"), "*.csv.gz"))
	if err != nil || len(files) != 14 {
		t.Fatal(len(files), err)
	}
	if testing.Short() {
		files = files[:2]
	}
	total := 0
	for _, unit := range []struct {
		name   string
		factor float64
	}{{"mph", 1.609344}, {"mps", 3.6}} {
		var mine []string
		rows, sum, vehicles := 0, uint64(0), map[string]bool{}
		for _, path := range files {
			if (filepath.Base(path) < "2015-12") != (unit.name == "mph") {
				continue
			}
			mine = append(mine, path)
			independently(t, path, func(row map[string]string) {
				at, err := time.Parse(time.RFC3339, row["timestamp"])
				if err != nil {
					t.Fatal(err)
				}
				rows++
				vehicles[row["vehicle_id"]] = true
				sum += fingerprint(row["vehicle_id"], at.UnixMilli(), float(t, row["latitude"]), float(t, row["longitude"]), float(t, row["speed"])*unit.factor)
			})
		}
		if len(mine) == 0 {
			continue
		}
		d := &door{}
		s, err := Run(t.Context(), Config{
			Files: mine, Sender: startDoor(t, d),
			CSV: telemetry.CSVConfig{Map: map[string]string{"vehicle": "vehicle_id", "time": "timestamp"}, Units: map[string]string{"speed": unit.name}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if d.total != rows || d.sum != sum || s.Acked != int64(rows) || s.Bad != 0 || s.Vehicles != len(vehicles) {
			t.Errorf("%s: the door got %d of %d rows, sums %x and %x; %+v", unit.name, d.total, rows, d.sum, sum, s.Stats)
		}
		total += d.total
	}
	if !testing.Short() && total != 437_621 {
		t.Errorf("%d rows, want 437621", total)
	}
}

// The electric vehicle's seventeen trips, merged by time at a speed-up; its garbled rows are listed with their reasons.
func TestReplayElectricVehicle(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(sharedData(t, "rsk-twizy-ev"), "T3_*.csv.gz"))
	if err != nil || len(files) != 10 {
		t.Fatal(len(files), err)
	}
	files = append(files, filepath.Join(filepath.Dir(files[0]), "T1_03_29_2021.csv.gz"))
	zone, err := time.LoadLocation("Africa/Casablanca")
	if err != nil {
		t.Skip("no time zone database: ", err)
	}
	rows, bad, sum := 0, 0, uint64(0)
	for _, path := range files {
		independently(t, path, func(row map[string]string) {
			at, err := time.ParseInLocation("1/2/2006 15:04:05", row["Date"]+" "+row["Time"], zone)
			if err != nil {
				bad++
				return
			}
			rows++
			sum += fingerprint("twizy-1", at.UnixMilli(), float(t, row["LAT"]), float(t, row["LON"]), float(t, row["Speed"]))
		})
	}
	d := &door{}
	s, err := Run(t.Context(), Config{
		Files: files, Sender: startDoor(t, d), Speedup: 1e8, // three months in a tenth of a second
		CSV: telemetry.CSVConfig{
			Map:  map[string]string{"vehicle": "@twizy-1", "time": "Date+Time", "lat": "LAT", "lon": "LON", "speed": "Speed", "soc": "Soc", "altitude": "ALT"},
			Time: "1/2/2006 15:04:05", Zone: zone,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if d.total != rows || d.sum != sum || s.Bad != int64(bad) || bad != 10 || len(s.Problems) != 10 || s.Vehicles != 1 {
		t.Errorf("the door got %d of %d rows, sums %x and %x, %d bad; %+v", d.total, rows, d.sum, sum, bad, s.Stats)
	}
	if len(s.Problems) > 0 && !strings.Contains(s.Problems[0].String(), `is not a time: want "1/2/2006 15:04:05"`) {
		t.Errorf("%v", s.Problems[0])
	}
}
