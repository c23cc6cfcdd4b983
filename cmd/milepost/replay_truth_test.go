package main

import (
	"compress/gzip"
	"encoding/csv"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// This file computes from recorded tables, with encoding/csv and arithmetic alone, what Milepost must say after a replay. It uses
// nothing of the program: what it takes for granted is written out here.
//
//   - A duplicate is a row with the same vehicle, the same moment and the same payload as one before, the payload being position,
//     status and the mapped signals. What is not mapped (route, trip, head sign) is not part of it, so one fix that is listed under
//     two trips is one reading. None of the tables has a status.
//   - A row at 0,0 or outside of the globe is a reading with a speed and without a place.
//   - A speed outside of 0 to 400 km/h is kept and takes part in no figure.
//   - A day is a UTC day.

// A truthRow is one distinct reading. What a table does not have is 0.
type truthRow struct {
	vehicle       string
	ms            int64
	lat, lon      float64
	speed         float64 // km/h
	soc, altitude float64
}

func (r *truthRow) hasPlace() bool {
	null := math.Abs(r.lat) < 1e-4 && math.Abs(r.lon) < 1e-4
	return !null && math.Abs(r.lat) <= 90 && math.Abs(r.lon) <= 180
}

type vehicleDay struct {
	vehicle string
	day     string // 2006-01-02
}

type dayTruth struct {
	readings    int
	sum, max    float64
	speeds      int
	first, last int64
}

type vehicleTruth struct {
	readings  int
	newest    int64
	speed     float64
	placeTime int64
	lat, lon  float64
}

// A truth is what the tables say.
type truth struct {
	read     int // rows, duplicates and bad ones included
	bad      int // rows whose date is none
	rows     map[truthRow]bool
	order    []truthRow // every row as it came, duplicates too
	days     map[vehicleDay]*dayTruth
	vehicles map[string]*vehicleTruth
}

func newTruth() *truth {
	return &truth{rows: map[truthRow]bool{}, days: map[vehicleDay]*dayTruth{}, vehicles: map[string]*vehicleTruth{}}
}

func (w *truth) duplicates() int { return w.read - w.bad - len(w.rows) }

func (w *truth) add(r truthRow) {
	w.read++
	w.order = append(w.order, r)
	if w.rows[r] {
		return
	}
	w.rows[r] = true
	k := vehicleDay{r.vehicle, time.UnixMilli(r.ms).UTC().Format(time.DateOnly)}
	d := w.days[k]
	if d == nil {
		d = &dayTruth{first: r.ms, last: r.ms, max: math.Inf(-1)}
		w.days[k] = d
	}
	d.readings++
	d.first, d.last = min(d.first, r.ms), max(d.last, r.ms)
	if r.speed >= 0 && r.speed <= 400 {
		d.sum += r.speed
		d.max = max(d.max, r.speed)
		d.speeds++
	}
	v := w.vehicles[r.vehicle]
	if v == nil {
		v = &vehicleTruth{}
		w.vehicles[r.vehicle] = v
	}
	v.readings++
	if r.ms >= v.newest {
		v.newest, v.speed = r.ms, r.speed
	}
	if r.hasPlace() && r.ms >= v.placeTime {
		v.placeTime, v.lat, v.lon = r.ms, r.lat, r.lon
	}
}

// table calls each for every row of a packed table, with a look-up by column name.
func table(t *testing.T, file string, each func(cell func(string) string)) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(z).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows[1:] {
		each(func(name string) string { return row[slices.Index(rows[0], name)] })
	}
}

func cellNumber(t *testing.T, s string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// addBuses adds a file of capmetro-austin. Its speeds are miles an hour in 2015 and metres a second from 2016 on.
func (w *truth) addBuses(t *testing.T, file string) {
	t.Helper()
	factor := busUnit(file).factor
	table(t, file, func(cell func(string) string) {
		at, err := time.Parse(time.RFC3339, cell("timestamp"))
		if err != nil {
			t.Fatal(err)
		}
		w.add(truthRow{
			vehicle: cell("vehicle_id"), ms: at.UnixMilli(), lat: cellNumber(t, cell("latitude")), lon: cellNumber(t, cell("longitude")),
			speed: cellNumber(t, cell("speed")) * factor,
		})
	})
}

type speedUnit struct {
	name   string
	factor float64 // to km/h
}

func busUnit(file string) speedUnit {
	if strings.HasPrefix(filepath.Base(file), "2015") {
		return speedUnit{"mph", 1.609344}
	}
	return speedUnit{"mps", 3.6}
}

// addTwizy adds a file of rsk-twizy-ev, whose one car has no id. Its clock is Morocco's: an hour ahead of UTC, but for Ramadan.
func (w *truth) addTwizy(t *testing.T, file string) {
	t.Helper()
	// From 11 April to 16 May 2021 the clocks stood at UTC.
	ramadan := func(at time.Time) bool {
		return !at.Before(time.Date(2021, 4, 11, 3, 0, 0, 0, time.UTC)) && at.Before(time.Date(2021, 5, 16, 2, 0, 0, 0, time.UTC))
	}
	table(t, file, func(cell func(string) string) {
		at, err := time.Parse("1/2/2006 15:04:05", cell("Date")+" "+cell("Time"))
		if err != nil {
			w.read++
			w.bad++
			return
		}
		if !ramadan(at) {
			at = at.Add(-time.Hour)
		}
		w.add(truthRow{
			vehicle: "twizy", ms: at.UnixMilli(), lat: cellNumber(t, cell("LAT")), lon: cellNumber(t, cell("LON")), speed: cellNumber(t, cell("Speed")),
			soc: cellNumber(t, cell("Soc")), altitude: cellNumber(t, cell("ALT")),
		})
	})
}

// recorded returns the tables of a data set that is shared beside the repository, or skips the test.
func recorded(t *testing.T, set string) []string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for at := dir; ; at = filepath.Dir(at) {
		files, err := filepath.Glob(filepath.Join(at, "shared", "data", set, "*.csv.gz"))
		if err != nil {
			t.Fatal(err)
		}
		if len(files) > 0 {
			slices.Sort(files)
			return files
		}
		if at == filepath.Dir(at) {
			t.Skipf("no shared/data/%s in or above %s: the recorded data are not part of the repository", set, dir)
		}
	}
}
