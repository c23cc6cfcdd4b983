package telemetry

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A CSVConfig says how to read a table of readings. Its zero value reads columns that are named as the fields of a JSON
// reading are, in catalog units.
type CSVConfig struct {
	// Map names the column of "vehicle", "time", "lat", "lon", "status" and of any signal. What it does not name is looked
	// for under its own name (for the first four, under the names that JSON takes too); columns that nobody names are
	// passed over, see Others. "A+B" joins two columns with a blank, for a date and a time apart. vehicle "@X" is the
	// vehicle X for every row, and time "@arrival" the time of arrival.
	Map map[string]string
	// Units gives the unit of a signal's column where it is not the catalog's: kmh, mph, mps, knots; c, f, k; m, km, mi, ft;
	// kpa, psi, bar; percent, fraction; v, mv.
	Units map[string]string
	// Time is how times are written: "rfc3339" (the default), "unix_s", "unix_ms", or a layout of Go's time package. In a
	// layout without a numeric offset, times are in Zone; of the two that a change of the clocks can mean, one is taken.
	Time string
	// Zone is required with such a layout: a zone is never guessed.
	Zone *time.Location
	// Others takes every further column as a signal of the column's name.
	Others bool
	// Comma separates the fields; ',' by default.
	Comma rune
}

// ParseCSVMap reads a column mapping as the command line gives it: "vehicle=vehicle_id,time=Date+Time".
func ParseCSVMap(s string) (map[string]string, error) {
	m := map[string]string{}
	for pair := range strings.SplitSeq(s, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		name, column, ok := strings.Cut(pair, "=")
		if !ok || name == "" || column == "" {
			return nil, fmt.Errorf("mapping %q: want field=column", pair)
		}
		if old, ok := m[name]; ok {
			return nil, fmt.Errorf("mapping gives %s twice, as %s and %s", name, old, column)
		}
		m[name] = column
	}
	return m, nil
}

// A RowError tells what is wrong with one row. The rows after it can be read.
type RowError struct {
	Line   int    // from 1, the header included
	Column string // "" if the row as a whole is wrong
	Msg    string
}

func (e *RowError) Error() string {
	if e.Column == "" {
		return "line " + strconv.Itoa(e.Line) + ": " + e.Msg
	}
	return "line " + strconv.Itoa(e.Line) + ", column " + e.Column + ": " + e.Msg
}

// A CSV reads readings from a table with a header.
type CSV struct {
	cat     *Catalog
	in      *csv.Reader
	header  []string
	vehicle string // of every row, if not ""
	id      int    // the columns; -1: none
	times   []int
	lat     int
	lon     int
	status  int
	signals []csvSignal
	kind    csvTime
	layout  string
	zone    *time.Location
	offset  bool   // the layout says how far a time is from UTC
	joined  []byte // scratch
	line    int
}

type csvSignal struct {
	id     SignalID
	column int
	unit   Unit
	other  bool // taken because of Others: what is no number is passed over
}

type csvTime int

const (
	csvRFC3339 csvTime = iota
	csvSeconds
	csvMilliseconds
	csvLayout
	csvArrival
)

// NewCSV reads the header of src and finds the columns that cfg speaks of.
func NewCSV(cat *Catalog, cfg CSVConfig, src io.Reader) (*CSV, error) {
	c := &CSV{cat: cat, in: csv.NewReader(src), id: -1, zone: cfg.Zone}
	c.in.ReuseRecord = true
	if cfg.Comma != 0 {
		c.in.Comma = cfg.Comma
	}
	header, err := c.in.Read()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("read header: the table is empty: its first line must name the columns")
		}
		return nil, fmt.Errorf("read header: %w", err)
	}
	c.header = slices.Clone(header)
	c.header[0] = strings.TrimPrefix(c.header[0], "\ufeff")
	for i := range c.header {
		c.header[i] = strings.TrimSpace(c.header[i])
	}
	if err := c.place(cfg); err != nil {
		return nil, err
	}
	if err := c.when(cfg); err != nil {
		return nil, err
	}
	return c, c.measure(cfg)
}

// place finds the columns that are no signals.
func (c *CSV) place(cfg CSVConfig) error {
	var err error
	if name := cfg.Map["vehicle"]; strings.HasPrefix(name, "@") {
		c.vehicle = name[1:]
		if err := CheckVehicle(c.vehicle); err != nil {
			return fmt.Errorf("vehicle %q: %w", c.vehicle, err)
		}
	} else if c.id, err = c.find(cfg.Map, "vehicle", "vehicle_id", "truck_id", "vehicle"); err != nil {
		return err
	} else if c.id < 0 {
		return c.missing("vehicle", "vehicle=COLUMN, or vehicle=@ID if the table is of one vehicle")
	}
	if c.lat, err = c.find(cfg.Map, "lat", "lat", "latitude"); err != nil {
		return err
	}
	if c.lon, err = c.find(cfg.Map, "lon", "lon", "long", "lng", "longitude"); err != nil {
		return err
	}
	if (c.lat < 0) != (c.lon < 0) {
		return c.missing("lat and lon", "both, lat=COLUMN,lon=COLUMN, or neither")
	}
	c.status, err = c.find(cfg.Map, "status", "status")
	return err
}

// when finds the columns of the time and how to read them.
func (c *CSV) when(cfg CSVConfig) error {
	if cfg.Map["time"] == "@arrival" {
		c.kind = csvArrival
		return nil
	}
	one, err := c.find(cfg.Map, "time", "ts", "time", "timestamp")
	switch {
	case err == nil && one >= 0:
		c.times = []int{one}
	case err == nil:
		return c.missing("time", "time=COLUMN, time=DATE+TIME for two, or time=@arrival")
	case !strings.Contains(cfg.Map["time"], "+"):
		return err
	default:
		for name := range strings.SplitSeq(cfg.Map["time"], "+") {
			i, err := c.column(name)
			if err != nil {
				return fmt.Errorf("time: %w", err)
			}
			c.times = append(c.times, i)
		}
	}
	switch cfg.Time {
	case "", "rfc3339":
		c.kind = csvRFC3339
	case "unix_s":
		c.kind = csvSeconds
	case "unix_ms":
		c.kind = csvMilliseconds
	default:
		c.kind, c.layout = csvLayout, cfg.Time
		// A layout that prints something else for another moment is a layout; and one without a zone needs one.
		a := time.Date(2021, 3, 4, 5, 6, 7, 0, time.UTC)
		if a.Format(cfg.Time) == time.Date(2019, 12, 28, 21, 43, 58, 0, time.UTC).Format(cfg.Time) {
			return fmt.Errorf("time format %q: want rfc3339, unix_s, unix_ms or a layout such as \"2006-01-02 15:04:05\"", cfg.Time)
		}
		c.offset = a.Format(cfg.Time) != time.Date(2021, 3, 4, 5, 6, 7, 0, time.FixedZone("UTC", 3600)).Format(cfg.Time)
		if !c.offset && cfg.Zone == nil {
			return fmt.Errorf("time format %q has no offset: name the zone, such as UTC or Africa/Casablanca", cfg.Time)
		}
		if c.zone == nil {
			c.zone = time.UTC
		}
	}
	return nil
}

// measure finds the columns of the signals.
func (c *CSV) measure(cfg CSVConfig) error {
	names := map[string]string{}
	for id := range c.cat.Len() {
		name := c.cat.Def(SignalID(id)).Name //nolint:gosec // bounded by MaxSignals
		if slices.Contains(c.header, name) && !c.taken(name) {
			names[name] = name
		}
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Map)) {
		column := cfg.Map[name]
		switch name {
		case "vehicle", "time", "lat", "lon", "status":
			continue
		}
		if kind, _ := fieldOf(name); kind != fieldSignal && kind != fieldOther {
			return fmt.Errorf("mapping %s=%s: %s cannot be a signal: the fields are vehicle, time, lat, lon and status", name, column, name)
		}
		names[name] = column
	}
	others := map[string]bool{}
	if cfg.Others {
		for _, name := range c.header {
			if kind, _ := fieldOf(name); names[name] == "" && !c.taken(name) && !c.mapped(names, name) && (kind == fieldSignal || kind == fieldOther) {
				names[name], others[name] = name, true
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Units)) {
		if names[name] == "" {
			return fmt.Errorf("unit %s for %s: the table has no such signal", cfg.Units[name], name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		i, err := c.column(names[name])
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		id, ok := c.cat.Intern(name)
		if !ok {
			return fmt.Errorf("signal %q: want a printable name of 1 to %d bytes, and at most %d signals", name, MaxSignalName, MaxSignals)
		}
		s := csvSignal{id: id, column: i, other: others[name]}
		if u := cfg.Units[name]; u != "" {
			if s.unit, err = ParseUnit(u, c.cat.Def(id)); err != nil {
				return err
			}
		}
		c.signals = append(c.signals, s)
	}
	slices.SortFunc(c.signals, func(a, b csvSignal) int { return a.column - b.column })
	if len(c.signals) > MaxReadingSignals {
		return fmt.Errorf("%d signals: a reading has at most %d: map fewer columns", len(c.signals), MaxReadingSignals)
	}
	return nil
}

// taken tells whether a column is already something other than a signal.
func (c *CSV) taken(name string) bool {
	i := slices.Index(c.header, name)
	return i == c.id || i == c.lat || i == c.lon || i == c.status || slices.Contains(c.times, i)
}

func (c *CSV) mapped(names map[string]string, column string) bool {
	for _, other := range names {
		if other == column {
			return true
		}
	}
	return false
}

// find returns the column of a field: as mapped, or under one of its own names, or -1.
func (c *CSV) find(mapping map[string]string, field string, names ...string) (int, error) {
	if name, ok := mapping[field]; ok {
		i, err := c.column(name)
		if err != nil {
			return -1, fmt.Errorf("%s: %w", field, err)
		}
		return i, nil
	}
	for _, name := range names {
		if slices.Contains(c.header, name) {
			return c.column(name)
		}
	}
	return -1, nil
}

// column finds a column by name.
func (c *CSV) column(name string) (int, error) {
	i := slices.Index(c.header, name)
	if i < 0 {
		return -1, fmt.Errorf("no column %q: the table has %s", name, strings.Join(c.header, ", "))
	}
	if slices.Contains(c.header[i+1:], name) {
		return -1, fmt.Errorf("two columns are called %q: rename one", name)
	}
	return i, nil
}

func (c *CSV) missing(what, mend string) error {
	return fmt.Errorf("no column for %s: map %s (the table has %s)", what, mend, strings.Join(c.header, ", "))
}

// Line returns the line of the row that Next read last.
func (c *CSV) Line() int { return c.line }

// Next reads one row into r; set r.Arrival before, everything else is overwritten. io.EOF: there are no more rows. After a
// *RowError the next row can be read; after any other error nothing can. The strings of r stay valid.
func (c *CSV) Next(r *Reading) error {
	row, err := c.in.Read()
	if err != nil {
		if bad, ok := errors.AsType[*csv.ParseError](err); ok {
			c.line = bad.StartLine
			msg := bad.Err.Error()
			if errors.Is(err, csv.ErrFieldCount) {
				msg = strconv.Itoa(len(row)) + " fields where the header has " + strconv.Itoa(len(c.header))
			} else if bad.Line != bad.StartLine {
				msg += ": a quote opened here is not closed before line " + strconv.Itoa(bad.Line)
			}
			return &RowError{Line: c.line, Msg: msg}
		}
		return err
	}
	c.line, _ = c.in.FieldPos(0)
	*r = Reading{Arrival: r.Arrival, Signals: r.Signals[:0]}

	r.Vehicle = c.vehicle
	if c.id >= 0 {
		r.Vehicle = strings.TrimSpace(row[c.id])
		if err := CheckVehicle(r.Vehicle); err != nil {
			return c.wrong(c.id, err.Error())
		}
	}
	if err := c.time(row, r); err != nil {
		return err
	}
	if c.status >= 0 {
		if r.Status = strings.TrimSpace(row[c.status]); !utf8.ValidString(r.Status) {
			return c.wrong(c.status, "is not UTF-8: convert the table")
		}
	}
	if err := c.position(row, r); err != nil {
		return err
	}
	defs := c.cat.cur.Load().defs
	for i := range c.signals {
		s := &c.signals[i]
		v, is := cell(row[s.column])
		switch {
		case is == cellNumber:
			if v = s.unit.Convert(v); math.IsInf(v, 0) {
				return c.wrong(s.column, "number too large")
			}
			r.Signals = append(r.Signals, Signal{ID: s.id, Value: v})
		case is == cellEmpty:
		case s.other:
			r.Flags |= FlagFieldsIgnored
		default:
			return c.wrong(s.column, strconv.Quote(row[s.column])+" is not a number")
		}
	}
	r.Flags |= implausible(defs, r.Signals)
	return nil
}

func (c *CSV) wrong(column int, msg string) error {
	return &RowError{Line: c.line, Column: c.header[column], Msg: msg}
}

func (c *CSV) time(row []string, r *Reading) error {
	if c.kind == csvArrival {
		r.Time = r.Arrival
		r.Flags |= FlagTimeMissing
		return nil
	}
	text := strings.TrimSpace(row[c.times[0]])
	if len(c.times) > 1 {
		c.joined = append(c.joined[:0], text...)
		for _, i := range c.times[1:] {
			c.joined = append(c.joined, ' ')
			c.joined = append(c.joined, strings.TrimSpace(row[i])...)
		}
		text = view(c.joined)
	}
	if strings.TrimSpace(text) == "" {
		return c.wrong(c.times[0], "has no time")
	}
	ok := false
	switch c.kind {
	case csvRFC3339:
		r.Time, ok = parseTime(text)
	case csvSeconds, csvMilliseconds:
		v, is := cell(text)
		if ok = is == cellNumber; c.kind == csvSeconds {
			r.Time = clampTime(math.Round(v * 1000))
		} else {
			r.Time = clampTime(math.Floor(v))
		}
	case csvLayout:
		t, err := time.ParseInLocation(c.layout, text, c.zone)
		// An abbreviation that the zone does not know would be taken for UTC.
		known := c.offset || t.Location() == c.zone || t.Location() == time.UTC
		r.Time, ok = t.UnixMilli(), err == nil && known
	default: // csvArrival has no column and has returned above
	}
	if !ok {
		return c.wrong(c.times[0], strconv.Quote(text)+" is not a time: want "+c.want())
	}
	if msg := checkTime(r.Time, r.Arrival, ""); msg != "" {
		return c.wrong(c.times[0], msg)
	}
	return nil
}

func (c *CSV) want() string {
	switch c.kind {
	case csvSeconds:
		return "Unix seconds"
	case csvMilliseconds:
		return "Unix milliseconds"
	case csvLayout:
		return strconv.Quote(c.layout)
	default:
		return "RFC 3339 with Z or an offset; name another format if it is one"
	}
}

func (c *CSV) position(row []string, r *Reading) error {
	r.Flags |= FlagNoPosition
	if c.lat < 0 {
		return nil
	}
	lat, isLat := cell(row[c.lat])
	lon, isLon := cell(row[c.lon])
	switch {
	case isLat == cellEmpty && isLon == cellEmpty:
		return nil
	case isLat != cellNumber:
		return c.wrong(c.lat, strconv.Quote(row[c.lat])+" is not a latitude")
	case isLon != cellNumber:
		return c.wrong(c.lon, strconv.Quote(row[c.lon])+" is not a longitude")
	}
	r.Lat, r.Lon = lat, lon
	r.Flags = r.Flags&^FlagNoPosition | positionFlags(lat, lon)
	return nil
}

// content is what a cell holds.
type content int

const (
	cellEmpty content = iota
	cellNumber
	cellText
)

// cell reads a cell as a decimal number; true is 1 and false is 0, and the usual words for a missing value are nothing.
func cell(s string) (float64, content) {
	s = strings.TrimSpace(s)
	if s == "" {
		return 0, cellEmpty
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c-'0' <= 9 || c == '.' || c == '-' || c == '+' || c|0x20 == 'e':
			continue
		}
		switch strings.ToLower(s) {
		case "nan", "null", "none", "na", "n/a", "nil":
			return 0, cellEmpty
		case "true":
			return 1, cellNumber
		case "false":
			return 0, cellNumber
		}
		return 0, cellText
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		if s == "-" {
			return 0, cellEmpty
		}
		return 0, cellText
	}
	return v, cellNumber
}
