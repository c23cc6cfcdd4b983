// Package window aggregates events over event time: tumbling, hopping, sliding and session windows by key.
//
// It is pure: no clock, no I/O, no state store. A Def is a checked definition. A Key is what is known of one key of one window; its
// owner hands in rows and moments, asks it for the results that are due, and stores what it encodes.
//
// Time is event time. The watermark of a key is its newest event time less the allowed lateness; a window closes when the
// watermark reaches its end. So the same rows, shuffled by no more than the lateness, give the same results, bit for bit: sums
// are exact, first and last have an order for rows of the same time, sketches hold what the numbers say and not how they came.
//
// A row that comes after its window has closed is late. Within Spec.Retain the window is computed again and told again,
// marked late, under the same ID and a higher revision: results are to be upserted. Beyond, the row is counted and left out.
package window

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/milepost/milepost/internal/nearest"
	"github.com/milepost/milepost/telemetry"
)

// A Type is how windows follow each other.
type Type string

// The types.
const (
	Tumbling Type = "tumbling" // one after the other
	Hopping  Type = "hopping"  // of Size, a new one every Every
	Sliding  Type = "sliding"  // of Size, ending at every event; or every Every, which is Hopping
	Session  Type = "session"  // ends with a pause of Gap
)

// Keys of a window that are not columns.
const (
	ByVehicle = "vehicle" // the vehicle that a reading names
	ByFleet   = "fleet"   // everything together
	ByKey     = "key"     // the record's partition key
)

// Readings is the stream that windows read unless they say otherwise.
const Readings = "readings"

// Defaults of Spec's zero fields.
const (
	DefaultLateness    = 30 * time.Second
	DefaultRetain      = time.Hour
	DefaultEventRetain = 5 * time.Minute // sliding by event, which keeps every row
	DefaultIdle        = time.Minute
	DefaultKeep        = 7 * 24 * time.Hour
	DefaultMaxKeys     = 1_000_000
)

// Limits of what Compile accepts and a Key holds.
const (
	MaxAggregates = 32
	MaxPanes      = 1440   // of one window: size over every
	MaxOpen       = 10_000 // panes, sessions or rows that one key holds in memory
	MaxSize       = 31 * 24 * time.Hour
	MinSize       = 100 * time.Millisecond
	maxText       = 4096
)

// A Spec is a window as people write it.
type Spec struct {
	Name       string        `yaml:"name,omitempty" doc:"letters, digits and _; keys the window's state, so renaming forgets it"`
	Stream     string        `yaml:"stream,omitempty" doc:"the stream to read; default readings"`
	Key        string        `yaml:"key,omitempty" doc:"vehicle, fleet (everything together, the default), key (the record's partition key), or a signal or JSON path"`
	Type       Type          `yaml:"type,omitempty" doc:"tumbling, hopping, sliding or session; default by the keys given"`
	Size       time.Duration `yaml:"size,omitempty" doc:"length of the window"`
	Every      time.Duration `yaml:"every,omitempty" doc:"hopping, sliding: a new window this often; must divide size. Sliding without it: at every event"`
	Gap        time.Duration `yaml:"gap,omitempty" doc:"session: a pause this long ends it"`
	Aggregates []string      `yaml:"aggregates,omitempty" doc:"count, count(x), sum(x), avg(x), min(x), max(x), first(x), last(x), distinct(x), p50(x), p90(x), p95(x), p99(x), each with 'as name' if you like; default count"`
	Where      string        `yaml:"where,omitempty" doc:"condition in CEL that a row must meet: speed > 5"`
	Time       string        `yaml:"time,omitempty" doc:"streams other than readings: JSON path of the event time (RFC 3339, or Unix ms); default: arrival"`
	Unique     string        `yaml:"unique,omitempty" doc:"streams other than readings: JSON path of an ID; rows of one key and time with the same ID count once. Readings are always counted once"`
	Lateness   time.Duration `yaml:"lateness,omitempty" doc:"how far out of order rows may come before a window closes; default 30s, negative: none"`
	Retain     time.Duration `yaml:"retain,omitempty" doc:"how long after the watermark late rows still correct a window; default 1h (sliding by event 5m), negative: not at all"`
	Idle       time.Duration `yaml:"idle,omitempty" doc:"a key silent for this long has its windows closed by the clock; default 1m, negative: never"`
	Early      time.Duration `yaml:"early,omitempty" doc:"tell unfinished windows this often too, if they changed; default: on close only"`
	Keep       time.Duration `yaml:"keep,omitempty" doc:"how long results stay in the SQL table windows; default 7d"`
	Output     string        `yaml:"output,omitempty" doc:"stream that results are appended to; default: none, they are in SQL"`
	MaxKeys    int           `yaml:"max_keys,omitempty" doc:"keys with an open window, in each shard; rows of further ones are left out and counted; default 1000000"`
}

// UnmarshalText reads a window written on one line.
func (s *Spec) UnmarshalText(text []byte) error {
	p, err := ParseLine(string(text))
	if err == nil {
		*s = p
	}
	return err
}

// A Def is a checked Spec. It never changes and is safe for concurrent use.
type Def struct {
	Spec       Spec // with defaults filled in
	Aggregates []Aggregate
	Columns    []string // that aggregates need, each once; Row.Values has one for each

	plan                         *plan
	column                       []int // of each aggregate; -1: none
	size, every, gap             int64 // ms, as the following
	lateness, retain, idle, keep int64
	perEvent                     bool // sliding by event
}

// Compile checks a window and prepares it. The error says what is wrong, where, and how to mend it.
func Compile(spec Spec) (*Def, error) {
	d := &Def{Spec: spec}
	s := &d.Spec
	if err := d.compile(); err != nil {
		return nil, fmt.Errorf("window %s: %w", orUnnamed(s.Name), err)
	}
	return d, nil
}

func orUnnamed(s string) string {
	if s == "" {
		return "(without a name)"
	}
	return s
}

func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

func (d *Def) compile() error {
	s := &d.Spec
	if !isName(s.Name) {
		return errors.New("name: use 1 to 64 letters, digits and _, not beginning with a digit")
	}
	def(&s.Stream, Readings)
	def(&s.Key, ByFleet)
	if s.Stream == Readings {
		if s.Time != "" || s.Unique != "" {
			return errors.New("time and unique are for streams other than readings, which have both: remove them")
		}
		if s.Key == ByKey {
			s.Key = ByVehicle // the doors key by vehicle
		}
	} else if s.Key == ByVehicle {
		return fmt.Errorf("key: vehicle is known of readings only, and this reads %s: use key (the partition key) or a JSON path such as vehicle_id", s.Stream)
	}
	if len(s.Key) > 256 || len(s.Where) > maxText {
		return fmt.Errorf("key or where is too long: at most 256 and %d bytes", maxText)
	}
	if err := d.times(); err != nil {
		return err
	}
	if s.MaxKeys == 0 {
		s.MaxKeys = DefaultMaxKeys
	}
	if s.MaxKeys < 0 {
		return fmt.Errorf("max_keys %d: must be positive", s.MaxKeys)
	}
	return d.aggregates()
}

func def[T comparable](dst *T, v T) {
	var zero T
	if *dst == zero {
		*dst = v
	}
}

// Local tells whether all rows of a key are in one shard, so that its lane alone sees them all.
func (d *Def) Local() bool { return d.Spec.Key == ByVehicle || d.Spec.Key == ByKey }

func (d *Def) times() error {
	s := &d.Spec
	if s.Type == "" {
		switch {
		case s.Gap != 0:
			s.Type = Session
		case s.Every != 0 && s.Every != s.Size:
			s.Type = Hopping
		default:
			s.Type = Tumbling
		}
	}
	types := []string{string(Tumbling), string(Hopping), string(Sliding), string(Session)}
	if !slices.Contains(types, string(s.Type)) {
		return fmt.Errorf("type: %q is not known%s: use %s", s.Type, nearest.Hint(string(s.Type), types), strings.Join(types, ", "))
	}
	if s.Type == Session {
		if s.Size != 0 || s.Every != 0 {
			return errors.New("a session has a gap, no size or every: remove them")
		}
		if err := between("gap", s.Gap, MinSize, MaxSize); err != nil {
			return err
		}
	} else {
		if s.Gap != 0 {
			return fmt.Errorf("gap is for sessions, and this is %s: remove one", s.Type)
		}
		if err := between("size", s.Size, MinSize, MaxSize); err != nil {
			return err
		}
	}
	switch s.Type {
	case Tumbling:
		if s.Every != 0 && s.Every != s.Size {
			return errors.New("a tumbling window begins when the last one ends: remove every, or use type hopping")
		}
		s.Every = s.Size
	case Hopping, Sliding:
		d.perEvent = s.Type == Sliding && s.Every == 0
		if d.perEvent {
			break
		}
		if s.Every <= 0 {
			return errors.New("every is missing: say how often a window begins, such as every: 1m")
		}
		if err := between("every", s.Every, MinSize, s.Size); err != nil {
			return err
		}
		if s.Size%s.Every != 0 {
			return fmt.Errorf("every: %v does not divide %v: choose one that does", s.Every, s.Size)
		}
		if s.Size/s.Every > MaxPanes {
			return fmt.Errorf("every: %v goes more than %d times into %v: choose a longer one", s.Every, MaxPanes, s.Size)
		}
	case Session:
	}
	if !d.Local() && (s.Type == Session || d.perEvent) {
		return fmt.Errorf("key: the rows of %s come from all shards, and a %s window needs them in one: use key vehicle (or key, on other streams), or tumbling or hopping windows", s.Key, s.Type)
	}
	return d.bounds()
}

func (d *Def) bounds() error {
	s := &d.Spec
	retain := DefaultRetain
	if d.perEvent {
		retain = DefaultEventRetain
	}
	for _, b := range []struct {
		name string
		v    *time.Duration
		def  time.Duration
		to   *int64
	}{
		{"lateness", &s.Lateness, DefaultLateness, &d.lateness},
		{"retain", &s.Retain, retain, &d.retain},
		{"idle", &s.Idle, DefaultIdle, &d.idle},
		{"keep", &s.Keep, DefaultKeep, &d.keep},
	} {
		def(b.v, b.def)
		if *b.v > 366*24*time.Hour {
			return fmt.Errorf("%s: %v is more than a year", b.name, *b.v)
		}
		*b.to = max(b.v.Milliseconds(), 0)
	}
	if s.Idle < 0 {
		d.idle = -1
	}
	if s.Keep < 0 {
		return errors.New("keep must be positive: say how long results stay in SQL")
	}
	if s.Early != 0 && d.perEvent {
		return errors.New("early: a window that ends at every event is told at every event: remove early, or give every")
	}
	if s.Early != 0 {
		if err := between("early", s.Early, time.Second, max(s.Size, s.Gap)); err != nil {
			return err
		}
	}
	d.size, d.every, d.gap = s.Size.Milliseconds(), s.Every.Milliseconds(), s.Gap.Milliseconds()
	if d.perEvent {
		d.every = 1
	}
	if s.Size%time.Millisecond != 0 || s.Every%time.Millisecond != 0 || s.Gap%time.Millisecond != 0 {
		return errors.New("size, every and gap are whole milliseconds")
	}
	// A key remembers what was emitted as long as it corrects it, and results as long as SQL shows them.
	if d.keep < d.retain+d.lateness+d.size+d.gap {
		return fmt.Errorf("keep: %v is shorter than size, lateness and retain together: results must stay as long as they may be corrected", s.Keep)
	}
	return nil
}

func between(name string, d, lo, hi time.Duration) error {
	switch {
	case d == 0:
		return fmt.Errorf("%s is missing: give a duration such as %s: 1m", name, name)
	case d < lo || d > hi:
		return fmt.Errorf("%s: %v is out of range: use %v to %v", name, d, lo, hi)
	}
	return nil
}

func (d *Def) aggregates() error {
	s := &d.Spec
	if len(s.Aggregates) == 0 {
		s.Aggregates = []string{string(Count)}
	}
	if len(s.Aggregates) > MaxAggregates {
		return fmt.Errorf("%d aggregates: at most %d; make two windows", len(s.Aggregates), MaxAggregates)
	}
	for _, text := range s.Aggregates {
		a, err := parseAggregate(text)
		if err != nil {
			return err
		}
		for _, b := range d.Aggregates {
			if b.As == a.As {
				return fmt.Errorf("aggregates: two are called %s: name one with 'as'", a.As)
			}
		}
		if slices.Contains(reserved(), a.As) {
			return fmt.Errorf("aggregates: %s is a field of every result: name this with 'as'", a.As)
		}
		c := -1
		if a.Column != "" {
			if c = slices.Index(d.Columns, a.Column); c < 0 {
				c = len(d.Columns)
				d.Columns = append(d.Columns, a.Column)
			}
		}
		d.Aggregates = append(d.Aggregates, a)
		d.column = append(d.column, c)
	}
	d.plan = newPlan(d.Aggregates, d.Columns)
	return nil
}

// Numeric tells whether all that is asked of a column makes sense of numbers only.
func (d *Def) Numeric(column string) bool {
	for _, a := range d.Aggregates {
		if a.Column == column && a.Func.takesText() {
			return false
		}
	}
	return true
}

// reserved are the fields of a result beside its figures.
func reserved() []string {
	return []string{"id", "window", "key", "start", "end", "rows", "final", "late", "revision", "withdrawn"}
}

// Fingerprint names what the window's state depends on. A window whose definition changes begins anew.
func (d *Def) Fingerprint() uint64 {
	s := &d.Spec
	return telemetry.HashName(fmt.Sprintf("%q %q %q %d %d %d %q %q %q %q", s.Stream, s.Key, s.Type, d.size, d.every, d.gap, s.Aggregates, s.Where, s.Time, s.Unique))
}

// Idle is how long a key may be silent, in ms; -1: for ever.
func (d *Def) Idle() int64 { return d.idle }

// Horizon is how long after a key's newest event time a row may still count, in ms: dedup must remember for as long.
func (d *Def) Horizon() int64 { return d.lateness + d.retain + d.size + d.gap }

// Lateness is how far out of order rows may come, in ms.
func (d *Def) Lateness() int64 { return d.lateness }

// Keep is how long results are kept, in ms.
func (d *Def) Keep() int64 { return d.keep }
