package telemetry

import (
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"
)

// readCSV returns the rows of a table, readings and errors in one text.
func readCSV(t testing.TB, cfg CSVConfig, table string) string {
	t.Helper()
	cat := NewCatalog()
	c, err := NewCSV(cat, cfg, strings.NewReader(table))
	if err != nil {
		return err.Error()
	}
	var rows []string
	r := Reading{Arrival: seedArrival}
	for {
		switch err := c.Next(&r); {
		case err == nil:
			rows = append(rows, show(cat, &r))
		case errors.Is(err, io.EOF):
			return strings.Join(rows, "\n")
		default:
			if _, ok := errors.AsType[*RowError](err); !ok {
				t.Fatalf("want a *RowError, got %v", err)
			}
			rows = append(rows, err.Error())
		}
	}
}

func TestCSV(t *testing.T) {
	f := func(cfg CSVConfig, table string, want ...string) {
		t.Helper()
		if got := readCSV(t, cfg, table); got != strings.Join(want, "\n") {
			t.Errorf("%q\n got %s\nwant %s", table, got, strings.Join(want, "\n"))
		}
	}
	mapped := func(s string) map[string]string {
		t.Helper()
		m, err := ParseCSVMap(s)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	casablanca, err := time.LoadLocation("Africa/Casablanca")
	if err != nil {
		t.Skip("no time zone database: ", err)
	}

	// Columns by their own names; further ones are passed over unless asked for.
	table := "\ufeffvehicle_id,timestamp,speed,route_id,latitude,longitude,note\n2010,2015-03-07T10:03:34-06:00,30.5,320,30.231535,-97.73347,x\n"
	f(CSVConfig{}, table, "2010 2015-03-07T16:03:34.000Z at 30.231535,-97.73347 speed=30.5")
	f(CSVConfig{Others: true}, table, "2010 2015-03-07T16:03:34.000Z at 30.231535,-97.73347 speed=30.5 route_id=320 (fields ignored)")
	f(CSVConfig{Map: mapped("status=note,line=route_id"), Units: map[string]string{"speed": "mph"}}, table,
		`2010 2015-03-07T16:03:34.000Z at 30.231535,-97.73347 speed=49.084992 line=320 status="x"`)

	// Date and time apart, in a zone, one vehicle; units; missing values; another separator.
	f(CSVConfig{
		Map:  mapped("vehicle=@twizy-1,time=Date+Time,lat=LAT,lon=LON,speed=GpsSpeed,engine_temp=T,soc=Soc"),
		Time: "1/2/2006 15:04:05", Zone: casablanca, Comma: ';', Units: map[string]string{"speed": "mps", "engine_temp": "f"},
	},
		"Date;Time;Soc;LAT;LON;GpsSpeed;T\n"+
			"7/1/2021;10:34:36;95.52;33.986156;-6.724958;10;212\n"+
			"90/02/2032;10:34:37;95.52;33.986156;-6.724958;10;212\n"+
			"07/01/2021;10:34:38;NaN;;null;;-40\n",
		"twizy-1 2021-07-01T09:34:36.000Z at 33.986156,-6.724958 soc=95.52 speed=36 engine_temp=100",
		`line 3, column Date: "90/02/2032 10:34:37" is not a time: want "1/2/2006 15:04:05"`,
		"twizy-1 2021-07-01T09:34:38.000Z engine_temp=-40 (no position)")
	f(CSVConfig{Time: "unix_s"}, "vehicle_id,ts\na,1795227303.12\na,1795227303120\na,x\n",
		"a 2026-11-21T02:15:03.120Z (no position)",
		"line 3, column ts: the clock is ahead by 20757315 days (1795227303120000 ms, arrived 2026-11-21T02:15:03Z): set the device's clock",
		`line 4, column ts: "x" is not a time: want Unix seconds`)
	f(CSVConfig{Time: "unix_ms"}, "vehicle_id,ts\na,1795227303120.7\n", "a 2026-11-21T02:15:03.120Z (no position)")
	f(CSVConfig{Map: mapped("time=@arrival")}, "vehicle_id\na\n", "a 2026-11-21T02:15:03.370Z (no position) (time missing)")
	f(CSVConfig{Time: "2006-01-02 15:04:05 MST", Zone: casablanca}, "vehicle_id,ts\na,2021-07-01 10:00:00 UTC\na,2021-07-01 10:00:00 CST\n",
		"a 2021-07-01T10:00:00.000Z (no position)",
		`line 3, column ts: "2021-07-01 10:00:00 CST" is not a time: want "2006-01-02 15:04:05 MST"`)

	// A bad row harms only itself and says where it is.
	f(CSVConfig{}, "vehicle_id,ts,lat,lon,speed,status\n"+
		"a,2026-11-21T02:15:03Z,1,2,3,ok\n"+
		"a,2026-11-21T02:15:03Z,1,2\n"+
		"a/b,2026-11-21T02:15:03Z,1,2,3,\n"+
		",2026-11-21T02:15:03Z,1,2,3,\n"+
		"a,,1,2,3,\n"+
		"a,21.11.2026,1,2,3,\n"+
		"a,2026-11-21T02:15:03Z,1,,3,\n"+
		"a,2026-11-21T02:15:03Z,x,2,3,\n"+
		"a,2026-11-21T02:15:03Z,1,2,\"40,5\",\n"+
		"a,2026-11-21T02:15:03Z,1,2,1e999,\n"+
		"a,2026-11-21T02:15:03Z,1,2,0x10,\n"+
		"a,2026-11-21T02:15:03Z,95,2,-1,\n"+
		"a,2026-11-21T02:15:03Z,1,2,\"3\" ,\n"+
		"a,2026-11-21T02:15:03Z,1,2,true,\n",
		`a 2026-11-21T02:15:03.000Z at 1,2 speed=3 status="ok"`,
		"line 3: 4 fields where the header has 6",
		"line 4, column vehicle_id: vehicle id must be printable text without '/', '+' and '#', which have a meaning in topics",
		"line 5, column vehicle_id: vehicle id must have 1 to 128 bytes",
		"line 6, column ts: has no time",
		`line 7, column ts: "21.11.2026" is not a time: want RFC 3339 with Z or an offset; name another format if it is one`,
		`line 8, column lon: "" is not a longitude`,
		`line 9, column lat: "x" is not a latitude`,
		`line 10, column speed: "40,5" is not a number`,
		`line 11, column speed: "1e999" is not a number`,
		`line 12, column speed: "0x10" is not a number`,
		"a 2026-11-21T02:15:03.000Z at 95,2 speed=-1 (position invalid) (implausible)",
		`line 14: extraneous or missing " in quoted-field`,
		"a 2026-11-21T02:15:03.000Z at 1,2 speed=1")

	// What cannot work is said before the first row.
	f(CSVConfig{}, "", "read header: the table is empty: its first line must name the columns")
	f(CSVConfig{}, "a,b\n", "no column for vehicle: map vehicle=COLUMN, or vehicle=@ID if the table is of one vehicle (the table has a, b)")
	f(CSVConfig{}, "vehicle_id,b\n", "no column for time: map time=COLUMN, time=DATE+TIME for two, or time=@arrival (the table has vehicle_id, b)")
	f(CSVConfig{}, "vehicle_id,ts,lat\n", "no column for lat and lon: map both, lat=COLUMN,lon=COLUMN, or neither (the table has vehicle_id, ts, lat)")
	f(CSVConfig{Map: mapped("time=when")}, "vehicle_id,ts\n", `time: no column "when": the table has vehicle_id, ts`)
	f(CSVConfig{Map: mapped("time=ts+when")}, "vehicle_id,ts\n", `time: no column "when": the table has vehicle_id, ts`)
	f(CSVConfig{Map: mapped("vehicle=@a/b")}, "vehicle_id,ts\n", `vehicle "a/b": vehicle id must be printable text without '/', '+' and '#', which have a meaning in topics`)
	f(CSVConfig{Map: mapped("speed=v")}, "vehicle_id,ts,v,v\n", `speed: two columns are called "v": rename one`)
	f(CSVConfig{Map: mapped("latitude=v")}, "vehicle_id,ts,v\n", "mapping latitude=v: latitude cannot be a signal: the fields are vehicle, time, lat, lon and status")
	f(CSVConfig{Units: map[string]string{"speed": "furlongs"}}, "vehicle_id,ts,speed\n", `unknown unit "furlongs" for speed: want one of kmh, mph, mps, knots`)
	f(CSVConfig{Units: map[string]string{"speed": "psi"}}, "vehicle_id,ts,speed\n", "unit psi does not measure speed, which is in km/h")
	f(CSVConfig{Units: map[string]string{"fuel": "fraction"}}, "vehicle_id,ts,speed\n", "unit fraction for fuel: the table has no such signal")
	f(CSVConfig{Time: "iso"}, "vehicle_id,ts\n", `time format "iso": want rfc3339, unix_s, unix_ms or a layout such as "2006-01-02 15:04:05"`)
	f(CSVConfig{Time: "2006-01-02 15:04:05"}, "vehicle_id,ts\n", `time format "2006-01-02 15:04:05" has no offset: name the zone, such as UTC or Africa/Casablanca`)
	f(CSVConfig{Time: "2006-01-02 15:04:05 -0700"}, "vehicle_id,ts\na,2026-11-21 02:15:03 +0200\n", "a 2026-11-21T00:15:03.000Z (no position)")
}

func TestParseCSVMap(t *testing.T) {
	f := func(in, want string) {
		t.Helper()
		m, err := ParseCSVMap(in)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			for _, k := range []string{"vehicle", "time", "speed"} {
				got += k + "=" + m[k] + ";"
			}
		}
		if got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
	f("vehicle=id, time=Date+Time,speed=v=1,", "vehicle=id;time=Date+Time;speed=v=1;")
	f("vehicle", `mapping "vehicle": want field=column`)
	f("speed=a,speed=b", "mapping gives speed twice, as a and b")
}

func TestUnits(t *testing.T) {
	cat := NewCatalog()
	f := func(id SignalID, name string, in, want float64) {
		t.Helper()
		u, err := ParseUnit(name, cat.Def(id))
		if err != nil {
			t.Fatal(err)
		}
		if got := u.Convert(in); math.Abs(got-want) > 1e-12*math.Max(1, math.Abs(want)) {
			t.Errorf("%v %s = %v %s, want %v", in, name, got, cat.Def(id).Unit, want)
		}
	}
	f(Speed, "kmh", 50, 50)
	f(Speed, "mph", 50, 80.4672)
	f(Speed, "mps", 10, 36)
	f(Speed, "knots", 100, 185.2)
	f(EngineTemp, "f", 32, 0)
	f(EngineTemp, "f", 212, 100)
	f(EngineTemp, "f", -40, -40)
	f(EngineTemp, "k", 273.15, 0)
	f(CargoTemp, "c", 3.5, 3.5)
	f(Odometer, "km", 1.5, 1500)
	f(Odometer, "mi", 1, 1609.344)
	f(Odometer, "ft", 1000, 304.8)
	f(FuelPressure, "psi", 1, 6.894757293168361)
	f(FuelPressure, "bar", 2.5, 250)
	f(Fuel, "fraction", 0.25, 25)
	f(Fuel, "percent", 25, 25)
	f(Battery, "mv", 12_600, 12.6)
	if got := (Unit{}).Convert(7); got != 7 {
		t.Errorf("the zero unit made 7 into %v", got)
	}
}

// Whatever a table holds, what comes out of it is sound and reads the same in canonical form.
func FuzzCSV(f *testing.F) {
	f.Add("vehicle_id,ts,lat,lon,speed\na,2026-11-21T02:15:03Z,1,2,3\n", "", false)
	f.Add("vehicle_id,ts,x y,\"q\"\"\"\n\"é\",1795227303.5,NaN,1e300\nb,1,2\n", "unix_s", true)
	f.Add("vehicle_id,time,status\na,2021-07-01 10:00:00,\"a\nb\"\n", "2006-01-02 15:04:05", false)
	f.Fuzz(func(t *testing.T, table, layout string, others bool) {
		cat := NewCatalog()
		c, err := NewCSV(cat, CSVConfig{Time: layout, Zone: time.UTC, Others: others}, strings.NewReader(table))
		if err != nil {
			return
		}
		r := Reading{Arrival: seedArrival}
		for {
			err := c.Next(&r)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				if e, ok := errors.AsType[*RowError](err); !ok || e.Line < 1 || e.Msg == "" {
					t.Fatalf("%q: %#v", table, err)
				}
				continue
			}
			again := Reading{Arrival: seedArrival}
			canonical := AppendJSON(nil, cat, &r)
			if err := NewDecoder(cat).JSON(canonical, &again); err != nil {
				t.Fatalf("%q: %s refused: %v", table, canonical, err)
			}
			r.Flags &^= FlagFieldsIgnored
			if a, b := show(cat, &r), show(cat, &again); a != b {
				t.Fatalf("%q reads as %s, its canonical form as %s", table, a, b)
			}
		}
	})
}

func BenchmarkCSV(b *testing.B) {
	table := "vehicle_id,timestamp,speed,route_id,trip_id,latitude,longitude,trip_headsign\n" +
		strings.Repeat("2010,2015-03-07T10:03:34-06:00,12.96416,320,1388007,30.231535,-97.73347,NORTHBOUND\n", 10_000)
	b.ReportAllocs()
	b.SetBytes(int64(len(table)))
	for b.Loop() {
		c, err := NewCSV(NewCatalog(), CSVConfig{Units: map[string]string{"speed": "mps"}}, strings.NewReader(table))
		if err != nil {
			b.Fatal(err)
		}
		r, n := Reading{Arrival: seedArrival}, 0
		for c.Next(&r) == nil {
			n++
		}
		if n != 10_000 {
			b.Fatal(n)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/10_000, "ns/reading")
}
