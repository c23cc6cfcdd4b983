package telemetry

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The reading of DOMAIN.md, and a moment shortly after it.
const (
	seed        = `{"truck_id":"T100","ts":"2026-11-21T02:15:03.120Z","lat":40.7128,"long":-74.0060,"speed":63.2,"heading":181,"fuel":55.1,"engine_temp":92.4,"fuel_pressure":44.0,"cargo_temp":3.8,"status":"moving"}`
	seedTime    = 1795227303120
	seedArrival = seedTime + 250
)

// show writes a reading in one line.
func show(cat *Catalog, r *Reading) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", r.Vehicle, AppendTime(nil, r.Time))
	if r.Flags&FlagNoPosition == 0 {
		fmt.Fprintf(&b, " at %v,%v", r.Lat, r.Lon)
	}
	for _, s := range r.Signals {
		fmt.Fprintf(&b, " %s=%v", cat.Def(s.ID).Name, s.Value)
	}
	if r.Status != "" {
		fmt.Fprintf(&b, " status=%q", r.Status)
	}
	for _, f := range []struct {
		flag Flags
		name string
	}{
		{FlagNoPosition, "no position"},
		{FlagPositionInvalid, "position invalid"},
		{FlagTimeMissing, "time missing"},
		{FlagLate, "late"},
		{FlagImplausible, "implausible"},
		{FlagSignalsDropped, "signals dropped"},
		{FlagFieldsIgnored, "fields ignored"},
	} {
		if r.Flags&f.flag != 0 {
			fmt.Fprintf(&b, " (%s)", f.name)
		}
	}
	return b.String()
}

func TestDecodeJSON(t *testing.T) {
	f := func(in, want string) {
		t.Helper()
		cat := NewCatalog()
		r := Reading{Arrival: seedArrival}
		got := ""
		if err := NewDecoder(cat).JSON([]byte(in), &r); err != nil {
			got = err.Error()
		} else {
			got = show(cat, &r)
		}
		if got != want {
			t.Errorf("%s\n got %s\nwant %s", in, got, want)
		}
	}
	at := `,"ts":"2026-11-21T02:15:03Z"`

	f(seed, `T100 2026-11-21T02:15:03.120Z at 40.7128,-74.006 speed=63.2 heading=181 fuel=55.1 engine_temp=92.4 fuel_pressure=44 cargo_temp=3.8 status="moving"`)
	f(" {\n\t\"vehicle_id\" : \"a b\" , \"ts_s\" : 1795227303.12 ,\r\n \"lat\" : -1e1, \"lon\" : 0.5E+1 } \n", "a b 2026-11-21T02:15:03.120Z at -10,5")
	f(`{"vehicle_id":2010,"ts":1795227303120.9,"latitude":1,"longitude":2}`, "2010 2026-11-21T02:15:03.120Z at 1,2")
	f(`{"vehicle_id":"é","ts":"2026-11-21T07:45:03.1299+05:30","lat":1,"lng":2}`, "é 2026-11-21T02:15:03.129Z at 1,2")

	// What is missing or doubtful is flagged.
	f(`{"vehicle_id":"a"}`, "a 2026-11-21T02:15:03.370Z (no position) (time missing)")
	f(`{"vehicle_id":"a","ts":null,"lat":null,"lon":null,"speed":null,"status":null}`, "a 2026-11-21T02:15:03.370Z (no position) (time missing)")
	f(`{"vehicle_id":"a"`+at+`,"lat":90.5,"lon":2}`, "a 2026-11-21T02:15:03.000Z at 90.5,2 (position invalid)")
	f(`{"vehicle_id":"a"`+at+`,"lat":0.00009,"lon":-0.00009}`, "a 2026-11-21T02:15:03.000Z at 9e-05,-9e-05 (position invalid)")
	f(`{"vehicle_id":"a"`+at+`,"lat":0.0001,"lon":0}`, "a 2026-11-21T02:15:03.000Z at 0.0001,0")
	f(`{"vehicle_id":"a"`+at+`,"lat":1,"lon":2,"speed":401}`, "a 2026-11-21T02:15:03.000Z at 1,2 speed=401 (implausible)")
	f(`{"vehicle_id":"a"`+at+`,"lat":1,"lon":2,"driver":"x","door":{"rear":[true]},"status":7}`, "a 2026-11-21T02:15:03.000Z at 1,2 (fields ignored)")

	// Signals: any name, booleans as numbers, the last usable value wins in the first one's place.
	f(`{"vehicle_id":"a"`+at+`,"lat":1,"lon":2,"tyre.1":7,"ignition":true,"speed":1,"pto":false,"speed":2,"speed":null,"tyre\u002e1":8,"speed":"x"}`,
		"a 2026-11-21T02:15:03.000Z at 1,2 tyre.1=8 ignition=1 speed=2 pto=0 (fields ignored)")
	f(`{"vehicle_id":"a"`+at+`,"lat":1,"lon":2,"":1,"\u0007":2,"`+strings.Repeat("x", 65)+`":3}`, "a 2026-11-21T02:15:03.000Z at 1,2 (signals dropped)")
	f(`{"vehicle_id":"a"`+at+`,"lat":1,"lon":2,"status":"a\"\\\/\b\f\n\r\t\u00e9\ud83d\ude9a"}`, `a 2026-11-21T02:15:03.000Z at 1,2 status="a\"\\/\b\f\n\r\té🚚"`)

	// Who it is must be beyond doubt.
	f(`{}`, "byte 0: vehicle_id: the payload names no vehicle: send vehicle_id, or publish to a topic that names one")
	f(`{"vehicle_id":""}`, "byte 14: vehicle_id: vehicle id must have 1 to 128 bytes")
	f(`{"vehicle_id":"`+strings.Repeat("x", 129)+`"}`, "byte 14: vehicle_id: vehicle id must have 1 to 128 bytes")
	f(`{"vehicle_id":"a/b"}`, "byte 14: vehicle_id: vehicle id must be printable text without '/', '+' and '#', which have a meaning in topics")
	f(`{"vehicle_id":"é#"}`, "byte 14: vehicle_id: vehicle id must be printable text without '/', '+' and '#', which have a meaning in topics")
	f(`{"vehicle_id":"a\u0000"}`, "byte 14: vehicle_id: vehicle id must be printable text without '/', '+' and '#', which have a meaning in topics")
	f(`{"vehicle_id":1.5}`, "byte 14: vehicle_id: a vehicle id that is a number must be a non-negative integer: send it as a string")
	f(`{"vehicle_id":"a","truck_id":"b"}`, `byte 29: truck_id: the payload names two vehicles, "a" and "b": send one`)
	f(`{"vehicle_id":["a"]}`, "byte 14: vehicle_id: has a value of the wrong kind: want a number or a string as documented")

	// So must be when and where.
	f(`{"vehicle_id":"a","ts":"2026-11-21T02:20:04Z"}`, "byte 23: ts: the clock is ahead by 5m1s (2026-11-21T02:20:04Z, arrived 2026-11-21T02:15:03Z): set the device's clock")
	f(`{"vehicle_id":"a","ts":"2009-12-31T23:59:59Z"}`, "byte 23: ts: time 2009-12-31T23:59:59Z is before 2010: the device has lost its date")
	f(`{"vehicle_id":"a","ts":1795227303}`, "byte 23: ts: time 1970-01-21T18:40:27Z is before 2010: the device has lost its date, or send seconds as ts_s (a number is read as Unix milliseconds)")
	f(`{"vehicle_id":"a","ts_s":1795227303120}`, "byte 25: ts: the clock is ahead by 20757315 days (1795227303120000 ms, arrived 2026-11-21T02:15:03Z): set the device's clock, or send milliseconds as ts (ts_s is read as Unix seconds)")
	f(`{"vehicle_id":"a","ts":"2026-11-21T02:15:03"}`, "byte 23: ts: not a time: want RFC 3339 with Z or an offset such as 2026-11-21T02:15:03.120Z, or a number of Unix milliseconds")
	f(`{"vehicle_id":"a","lat":1}`, "byte 24: lat: latitude without longitude: send both or neither")
	f(`{"vehicle_id":"a","lon":1,"lat":null}`, "byte 24: lon: longitude without latitude: send both or neither")
	f(`{"vehicle_id":"a","lat":"1","lon":2}`, "byte 24: lat: is a string: send a number without quotes")

	// JSON is taken by the letter.
	f(``, "byte 0: a reading is one JSON object: want '{'")
	f(`[]`, "byte 0: a reading is one JSON object: want '{'")
	f(`{"vehicle_id":"a"} {}`, "byte 19: something follows the reading: send several as an array or one a line")
	f(`{"vehicle_id":"a",}`, "byte 18: want a field name in double quotes")
	f(`{"vehicle_id":"a" "b":1}`, "byte 18: want ',' or '}' after a field")
	f(`{"vehicle_id":"a"`, "byte 17: the message is cut short: want ',' or '}'")
	f(`{"vehicle_id"`, "byte 13: want ':' after a field name")
	f(`{"vehicle_id":`, "byte 14: the message is cut short: a value is missing")
	f(`{"vehicle_id":"a`, "byte 15: vehicle_id: string without an end: the message is cut short or a quote is not escaped")
	f(`{"speed":NaN}`, "byte 9: speed: not a JSON value: for NaN and infinity leave the field out or send null")
	f(`{"speed":-Infinity}`, "byte 9: speed: not a JSON value: for NaN and infinity leave the field out or send null")
	f(`{"speed":1e999}`, "byte 9: speed: number too large: a value must fit a 64-bit float")
	f(`{"speed":01}`, "byte 9: speed: malformed number: JSON numbers look like -12.5 or 3e8, without leading zeros")
	f(`{"speed":.5}`, "byte 9: speed: not a JSON value: want a string, number, true, false, null, object or array")
	f(`{"speed":1.}`, "byte 9: speed: malformed number: JSON numbers look like -12.5 or 3e8, without leading zeros")
	f(`{"speed":1e}`, "byte 9: speed: malformed number: JSON numbers look like -12.5 or 3e8, without leading zeros")
	f(`{"speed":tru}`, "byte 9: speed: not a JSON value: want a string, number, true, false, null, object or array")
	f("{\"x\":\"\xff\"}", "byte 6: x: invalid UTF-8: send text as UTF-8")
	f("{\"x\":\"a\nb\"}", "byte 7: x: control character in a string: escape it as \\u00XX")
	f(`{"x":"\ud83d"}`, "byte 6: x: half a surrogate pair: escape the character as both halves or send it as UTF-8")
	f(`{"x":"\u00g0"}`, "byte 6: x: bad escape: \\u takes four hexadecimal digits")
	f(`{"x":"\a"}`, `byte 6: x: bad escape: JSON knows \" \\ \/ \b \f \n \r \t \uXXXX`)
	f(`{"x":`+strings.Repeat("[", 32)+strings.Repeat("]", 32)+`}`, "byte 36: x: nested too deeply: 32 levels are the limit")
	f(`{"vehicle_id":"a","x":`+strings.Repeat("[", 31)+strings.Repeat("]", 31)+`}`, "a 2026-11-21T02:15:03.370Z (no position) (time missing) (fields ignored)")
}

func TestDecodeKeepsChannelVehicle(t *testing.T) {
	f := func(channel, payload, want string) {
		t.Helper()
		r := Reading{Arrival: seedArrival, Vehicle: channel}
		got := ""
		if err := NewDecoder(NewCatalog()).JSON([]byte(payload), &r); err != nil {
			got = "refused: " + err.Error()
		} else {
			got = r.Vehicle
		}
		if got != want {
			t.Errorf("%s sent as %q\n got %s\nwant %s", payload, channel, got, want)
		}
	}
	f("T100", `{"speed":1}`, "T100")
	f("T100", `{"truck_id":"T100"}`, "T100")
	f("", `{"truck_id":"T100"}`, "T100")
	f("T1", `{"truck_id":"T100"}`, `refused: byte 0: vehicle_id: the payload names vehicle "T100" but was sent as "T1": send it under its own name`)
	f("a+b", `{"speed":1}`, "refused: byte 0: vehicle_id: vehicle id must be printable text without '/', '+' and '#', which have a meaning in topics")
}

// A reading that is used again carries nothing over.
func TestDecodeReusesReading(t *testing.T) {
	cat := NewCatalog()
	d := NewDecoder(cat)
	r := Reading{Arrival: seedArrival}
	if err := d.JSON([]byte(`{"vehicle_id":"a","lat":99,"lon":99,"speed":900,"x":"y","status":"s"}`), &r); err != nil {
		t.Fatal(err)
	}
	r.Vehicle = ""
	if err := d.JSON([]byte(`{"vehicle_id":"b","ts":1795227303120}`), &r); err != nil {
		t.Fatal(err)
	}
	if got, want := show(cat, &r), "b 2026-11-21T02:15:03.120Z (no position)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestDecodeBoundsSignals(t *testing.T) {
	var b strings.Builder
	b.WriteString(`{"vehicle_id":"a"`)
	for i := range 100 {
		fmt.Fprintf(&b, `,"s%d":%d`, i, i)
	}
	b.WriteString(`,"s5":500}`)
	cat := NewCatalog()
	r := Reading{Arrival: seedArrival}
	if err := NewDecoder(cat).JSON([]byte(b.String()), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Signals) != MaxReadingSignals || r.Flags&FlagSignalsDropped == 0 {
		t.Errorf("got %d signals, flags %b", len(r.Signals), r.Flags)
	}
	if r.Signals[5].Value != 500 {
		t.Errorf("s5 = %v, want the last value, 500", r.Signals[5].Value)
	}
	if got, want := cat.Len(), WellKnown+MaxReadingSignals; got != want {
		t.Errorf("the catalog learnt names that were dropped: %d, want %d", got, want)
	}
}

func TestDecodeAllocatesNothing(t *testing.T) {
	d, data, r := NewDecoder(NewCatalog(Def{Name: "oil"})), []byte(strings.Replace(seed, `"lat"`, `"oil":1.25,"lat"`, 1)), Reading{}
	if n := testing.AllocsPerRun(100, func() {
		r.Vehicle, r.Arrival = "", seedArrival
		if err := d.JSON(data, &r); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a plain reading", n)
	}
}

// differ decodes with both decoders and tells where they disagree.
func differ(data []byte, vehicle string) error {
	fastCat, plainCat := NewCatalog(), NewCatalog()
	fast, plain := Reading{Arrival: seedArrival, Vehicle: vehicle}, Reading{Arrival: seedArrival, Vehicle: vehicle}
	fastErr, plainErr := NewDecoder(fastCat).JSON(data, &fast), plainJSON(plainCat, data, &plain)
	switch {
	case fastErr == nil && plainErr != nil:
		return fmt.Errorf("fast takes what plain refuses: %w", plainErr)
	case fastErr != nil && plainErr == nil:
		return fmt.Errorf("fast refuses what plain takes: %w", fastErr)
	case fastErr != nil:
		if e, ok := errors.AsType[*DecodeError](fastErr); !ok || e.Msg == "" || e.Offset < 0 || e.Offset > len(data) {
			return fmt.Errorf("bad error %T: %w", fastErr, fastErr)
		}
		return nil
	}
	if diff := cmp.Diff(show(plainCat, &plain), show(fastCat, &fast)); diff != "" {
		return fmt.Errorf("plain and fast read differently:\n%s", diff)
	}
	for i := range fast.Signals {
		if a, b := math.Float64bits(fast.Signals[i].Value), math.Float64bits(plain.Signals[i].Value); a != b {
			return fmt.Errorf("signal %d: bits %x and %x", i, a, b)
		}
	}
	// The canonical form says the same again.
	again, canonical := Reading{Arrival: seedArrival}, AppendJSON(nil, fastCat, &fast)
	if !json.Valid(canonical) {
		return fmt.Errorf("canonical form is not JSON: %s", canonical)
	}
	if err := NewDecoder(fastCat).JSON(canonical, &again); err != nil {
		return fmt.Errorf("canonical form refused: %w\n%s", err, canonical)
	}
	fast.Flags &^= FlagSignalsDropped | FlagFieldsIgnored
	if diff := cmp.Diff(fast, again); diff != "" {
		return fmt.Errorf("canonical form reads differently: %s\n%s", diff, canonical)
	}
	if PayloadHash(fastCat, &fast) != PayloadHash(plainCat, &plain) {
		return fmt.Errorf("payload hashes differ")
	}
	return nil
}

func FuzzDecodeJSON(f *testing.F) {
	f.Add([]byte(seed), "")
	f.Add([]byte(`{"vehicle_id":2010,"ts":1795227303120.9,"latitude":-0,"longitude":1.7976931348623157e308,"a":[{"b":null}],"c":true}`), "2010")
	f.Add([]byte(`{"truck_id":"\ud83d\ude9a","ts_s":1795227303.5,"speed":12345678901234567890,"s\u0070eed":-1.5e-7,"status":"\\\""}`), "")
	f.Add([]byte(`{"ts":"2024-02-29t23:59:59.999999999+23:59","lat":1,"lon":2,"0":0.1234567890123456789}`), "é")
	f.Fuzz(func(t *testing.T, data []byte, vehicle string) {
		if err := differ(data, vehicle); err != nil {
			t.Errorf("%q: %v", data, err)
		}
	})
}
