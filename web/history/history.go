// Package history answers what a vehicle did: its signals over a span of time and the trail it drove, thinned to as many
// points as a chart can show. It asks SQL over the table readings and holds nothing.
package history

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/milepost/milepost/query"
	"github.com/milepost/milepost/telemetry"
)

// A Span is what is asked: [From, To) of one vehicle in at most Points points.
type Span struct {
	Vehicle  string
	From, To time.Time
	Points   int
}

// Series are the signals of a span. Bucket i covers [Start + Step·i, Start + Step·(i+1)).
type Series struct {
	From    int64    `json:"from"` // Unix ms
	To      int64    `json:"to"`
	Start   int64    `json:"start"`
	Step    int64    `json:"step"` // ms
	Signals []Signal `json:"signals"`
}

// A Signal is one signal's buckets that hold a value, in order: the others are gaps.
type Signal struct {
	Name   string   `json:"name"`
	Unit   string   `json:"unit"`
	Points []Bucket `json:"points"`
}

// A Bucket is bucket index, smallest, mean and largest value, and how many there were: an array in JSON, for there are many.
type Bucket [5]float64

// A Trail is where a vehicle drove.
type Trail struct {
	From   int64   `json:"from"`
	To     int64   `json:"to"`
	Step   int64   `json:"step"`
	Points []Place `json:"points"`
}

// A Place is Unix ms, latitude, longitude and speed (-1: unknown).
type Place [4]float64

// MaxSignals bounds the signals of one question.
const MaxSignals = 24

// ReadSeries reads the named signals. Values outside a signal's plausible range are left out, as they are in rules.
func ReadSeries(ctx context.Context, e query.Engine, lim query.Limits, cat *telemetry.Catalog, s Span, signals []string) (*Series, error) {
	start, step := s.buckets()
	out := &Series{From: s.From.UnixMilli(), To: s.To.UnixMilli(), Start: start, Step: step, Signals: make([]Signal, len(signals))}
	sql, args := seriesSQL(cat, s, start, step, signals)
	for i, name := range signals {
		out.Signals[i] = Signal{Name: name, Points: []Bucket{}}
		if id, ok := cat.Lookup([]byte(name)); ok {
			out.Signals[i].Unit = cat.Def(id).Unit
		}
	}
	if len(signals) == 0 {
		return out, nil
	}
	lim.Rows = s.Points + 2
	err := e.Rows(ctx, lim, func(vals []any) error {
		at, ok := number(vals[0])
		if !ok {
			return fmt.Errorf("history: bucket is %T", vals[0])
		}
		for i := range signals {
			n, _ := number(vals[1+4*i])
			if n == 0 {
				continue
			}
			b := Bucket{at, 0, 0, 0, n}
			for j := range 3 {
				b[1+j], ok = number(vals[2+4*i+j])
				if !ok {
					return fmt.Errorf("history: value of %s is %T", signals[i], vals[2+4*i+j])
				}
			}
			out.Signals[i].Points = append(out.Signals[i].Points, b)
		}
		return nil
	}, sql, args...)
	return out, err
}

// ReadTrail reads the first usable place of each bucket.
func ReadTrail(ctx context.Context, e query.Engine, lim query.Limits, s Span) (*Trail, error) {
	start, step := s.buckets()
	out := &Trail{From: s.From.UnixMilli(), To: s.To.UnixMilli(), Step: step, Points: []Place{}}
	lim.Rows = s.Points + 2
	err := e.Rows(ctx, lim, func(vals []any) error {
		var p Place
		for i := range p {
			v, ok := number(vals[i])
			if !ok && i < 3 {
				return fmt.Errorf("history: column %d of the trail is %T", i, vals[i])
			}
			if !ok {
				v = -1
			}
			p[i] = v
		}
		out.Points = append(out.Points, p)
		return nil
	}, trailSQL, s.Vehicle, s.From.UTC(), s.To.UTC(), start, step)
	return out, err
}

// trailSQL takes whole rows by arg_min, so that latitude and longitude are of the same reading.
const trailSQL = `SELECT first, place.lat, place.lon, place.speed FROM (
	SELECT (epoch_ms(event_time) - $4::BIGINT) // $5::BIGINT AS bucket, min(epoch_ms(event_time)) AS first,
		arg_min({'lat': lat, 'lon': lon, 'speed': speed}, event_time) AS place
	FROM readings
	WHERE vehicle_id = $1 AND event_time >= $2 AND event_time < $3
		AND lat IS NOT NULL AND lon IS NOT NULL AND flags & 3 = 0
	GROUP BY bucket
) ORDER BY first`

// seriesSQL builds one query for all signals. Column names come from the catalog's well-known signals; every other name is a
// parameter, never text.
func seriesSQL(cat *telemetry.Catalog, s Span, start, step int64, signals []string) (string, []any) {
	var inner, outer strings.Builder
	args := []any{s.Vehicle, s.From.UTC(), s.To.UTC(), start, step}
	for i, name := range signals {
		expr := ""
		if id, ok := cat.Lookup([]byte(name)); ok {
			d := cat.Def(id)
			if int(id) < telemetry.WellKnown {
				expr = d.Name
			}
			if d.Min != 0 || d.Max != 0 {
				if expr == "" {
					args = append(args, name)
					expr = fmt.Sprintf("signals[$%d]", len(args))
				}
				args = append(args, d.Min, d.Max)
				expr = fmt.Sprintf("CASE WHEN %s BETWEEN $%d AND $%d THEN %s END", expr, len(args)-1, len(args), expr)
			}
		}
		if expr == "" {
			args = append(args, name)
			expr = fmt.Sprintf("signals[$%d]", len(args))
		}
		fmt.Fprintf(&inner, ", %s AS s%d", expr, i)
		fmt.Fprintf(&outer, ", count(s%d), min(s%d), avg(s%d), max(s%d)", i, i, i, i)
	}
	return "SELECT bucket" + outer.String() + " FROM (SELECT (epoch_ms(event_time) - $4::BIGINT) // $5::BIGINT AS bucket" +
		inner.String() + " FROM readings WHERE vehicle_id = $1 AND event_time >= $2 AND event_time < $3)" +
		" GROUP BY bucket ORDER BY bucket", args
}

// buckets returns a round step, and the start aligned to it: a chart that moves on by a second keeps its buckets.
func (s *Span) buckets() (start, step int64) {
	from, to := s.From.UnixMilli(), s.To.UnixMilli()
	n := int64(max(s.Points-1, 1)) // the aligned start adds a bucket
	want := (to - from + n - 1) / n
	step = 1
	for _, round := range roundSteps {
		if step = round.Milliseconds(); step >= want {
			break
		}
	}
	if step < want { // longer than the table: whole days
		day := (24 * time.Hour).Milliseconds()
		step = (want + day - 1) / day * day
	}
	return from - ((from%step)+step)%step, step
}

//nolint:gochecknoglobals // a table
var roundSteps = []time.Duration{
	time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 15 * time.Second, 30 * time.Second,
	time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour,
}

// number reads what drivers return for numeric columns; false for NULL and everything else.
func number(v any) (float64, bool) {
	switch n := v.(type) {
	case float64:
		return n, true
	case float32:
		return float64(n), true
	case int64:
		return float64(n), true
	case int32:
		return float64(n), true
	case int:
		return float64(n), true
	case uint64:
		return float64(n), true
	default:
		return 0, false
	}
}
