package telemetry

import (
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

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

// readFile counts good and bad rows of a gzipped table.
func readFile(t *testing.T, path string, cfg CSVConfig, check func(r *Reading)) (good, bad int) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewCSV(NewCatalog(), cfg, unzipped)
	if err != nil {
		t.Fatal(path, err)
	}
	for r := (Reading{Arrival: seedArrival}); ; {
		switch err := c.Next(&r); {
		case err == nil:
			good++
			check(&r)
		case errors.Is(err, io.EOF):
			return good, bad
		default:
			if _, ok := errors.AsType[*RowError](err); !ok {
				t.Fatal(path, err)
			}
			bad++
		}
	}
}

// Every row of the bus fleet reads as it is, and the figures agree with the notes that came with the data.
func TestCSVReadsBusFleet(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(sharedData(t, "capmetro-austin"), "*.csv.gz"))
	if err != nil || len(files) != 14 {
		t.Fatal(len(files), err)
	}
	total, nullIsland, fastest := 0, 0, 0.0
	for _, path := range files {
		unit, day := "mps", filepath.Base(path)[:10]
		if day < "2015-12" {
			unit = "mph"
		}
		good, bad := readFile(t, path, CSVConfig{Units: map[string]string{"speed": unit}}, func(r *Reading) {
			if v, ok := r.Signal(Speed); ok && day == "2016-11-26" {
				fastest = max(fastest, v)
			}
			if r.Flags&FlagPositionInvalid != 0 {
				nullIsland++
			} else if !r.HasPosition() || r.Lat < 29 || r.Lat > 31.5 || r.Lon < -99 || r.Lon > -96 {
				t.Errorf("%s: vehicle %s at %v,%v is not in Austin", day, r.Vehicle, r.Lat, r.Lon)
			}
			local := time.UnixMilli(r.Time).In(time.FixedZone("CST", -6*3600)).Format(time.DateOnly)
			if next := time.UnixMilli(r.Time).In(time.FixedZone("CDT", -5*3600)).Format(time.DateOnly); local != day && next != day {
				t.Errorf("%s: a reading of %s", day, local)
			}
		})
		if bad != 0 {
			t.Errorf("%s: %d bad rows", day, bad)
		}
		if total += good; day == "2015-03-08" && good != 12_354 {
			t.Errorf("%s: %d rows, want 12354", day, good)
		}
	}
	if total != 437_621 {
		t.Errorf("%d rows, want 437621", total)
	}
	if nullIsland != 53 {
		t.Errorf("%d rows at 0,0, want 53", nullIsland)
	}
	if fastest < 80.9*3.6 || fastest > 81*3.6 {
		t.Errorf("fastest bus %v km/h, want 80.9 m/s", fastest)
	}
}

// The electric vehicle's table has no vehicle column, dates in the American order, and 170 garbled dates.
func TestCSVReadsElectricVehicle(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(sharedData(t, "rsk-twizy-ev"), "*.csv.gz"))
	if err != nil || len(files) != 17 {
		t.Fatal(len(files), err)
	}
	garbled := map[string]int{"T1_03_29_2021": 10, "T1_06_30_2021_1": 34, "T2_03_29_2021": 57, "T2_03_30_2021": 56, "T2_04_26_2021": 13}
	total := 0
	for _, path := range files {
		name := filepath.Base(path)
		name = name[:len(name)-len(".csv.gz")]
		good, bad := readFile(t, path, CSVConfig{
			Map:  map[string]string{"vehicle": "@twizy-1", "time": "Date+Time", "lat": "LAT", "lon": "LON", "altitude": "ALT", "speed": "Speed", "soc": "Soc"},
			Time: "1/2/2006 15:04:05",
			Zone: time.UTC,
		}, func(*Reading) {})
		if total += good + bad; bad != garbled[name] {
			t.Errorf("%s: %d bad rows, want %d", name, bad, garbled[name])
		}
	}
	if total != 55_645 {
		t.Errorf("%d rows, want 55645", total)
	}
}
