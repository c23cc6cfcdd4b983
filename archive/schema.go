package archive

import (
	"fmt"
	"slices"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"
	"github.com/parquet-go/parquet-go/encoding"

	"github.com/milepost/milepost/telemetry"
)

// SchemaVersion is stored with every object. A later version may add columns; it never renames or removes one (P6).
const SchemaVersion = 1

// The columns, in file order. Those of the well-known signals stand between colSignal and colStatus; the map has two leaves.
const (
	colVehicle = iota
	colEvent
	colArrival
	colLat
	colLon
	colSignal
	colStatus = colSignal + telemetry.WellKnown
	colFlags  = colStatus + 1
	colKey    = colStatus + 2
	colValue  = colStatus + 3
	columns   = colStatus + 4
)

// Levels of the leaves of signals: OPTIONAL MAP of a REPEATED group of two REQUIRED leaves.
const (
	mapNull    = 0
	mapPresent = 2
)

type schema struct {
	parquet *parquet.Schema
	names   []string // of the columns that people see, the map counted once
}

func newSchema(cat *telemetry.Catalog) (*schema, error) {
	double := func() parquet.Node {
		return parquet.Optional(parquet.Encoded(parquet.Leaf(parquet.DoubleType), &parquet.RLEDictionary))
	}
	text := func() parquet.Node { return parquet.Encoded(parquet.String(), &parquet.RLEDictionary) }
	stamp := func() parquet.Node {
		return parquet.Encoded(parquet.Timestamp(parquet.Millisecond), &parquet.DeltaBinaryPacked)
	}
	// Places hardly repeat: a dictionary would be built only to be thrown away.
	place := func() parquet.Node {
		return parquet.Optional(parquet.Encoded(parquet.Leaf(parquet.DoubleType), encodingPlain()))
	}
	g := orderedGroup{Group: parquet.Group{}}
	g.add("vehicle_id", text())
	g.add("event_time", stamp())
	g.add("arrival_time", stamp())
	g.add("lat", place())
	g.add("lon", place())
	for id := range telemetry.SignalID(telemetry.WellKnown) {
		g.add(cat.Def(id).Name, double())
	}
	g.add("status", parquet.Optional(text()))
	g.add("flags", parquet.Encoded(parquet.Int(32), &parquet.RLEDictionary))
	g.add("signals", parquet.Optional(parquet.Map(text(), parquet.Encoded(parquet.Leaf(parquet.DoubleType), encodingPlain()))))
	if len(g.Group) != len(g.names) {
		return nil, fmt.Errorf("catalog names a well-known signal as another column of %v", g.names)
	}
	return &schema{parquet: parquet.NewSchema("readings", g), names: g.names}, nil
}

func encodingPlain() encoding.Encoding { return &parquet.Plain }

// options of every writer. Version 1 pages and zstd are read by every engine in use; so are dictionaries and the delta
// encoding of integers.
func (s *schema) options() []parquet.WriterOption {
	return []parquet.WriterOption{
		s.parquet,
		parquet.Compression(&zstd.Codec{Level: zstd.SpeedFastest}),
		parquet.DataPageVersion(1),
		parquet.PageBufferSize(pageBytes),
		parquet.DictionaryMaxBytes(256 << 10),
		parquet.DataPageStatistics(true),
		parquet.CreatedBy("milepost", "1", "archive"),
		parquet.SortingWriterConfig(parquet.SortingColumns(sorting()...)),
	}
}

func sorting() []parquet.SortingColumn {
	return []parquet.SortingColumn{parquet.Ascending("vehicle_id"), parquet.Ascending("event_time")}
}

const (
	pageBytes    = 128 << 10
	rowGroupRows = 128 << 10 // close to DuckDB's own, and one vehicle's day is a few of them at most
)

// orderedGroup is a group whose fields keep the order in which they were added: a parquet.Group sorts them by name.
type orderedGroup struct {
	parquet.Group
	names []string
}

func (g *orderedGroup) add(name string, n parquet.Node) {
	g.Group[name] = n
	g.names = append(g.names, name)
}

// Fields implements parquet.Node.
func (g orderedGroup) Fields() []parquet.Field {
	fields := g.Group.Fields()
	slices.SortFunc(fields, func(a, b parquet.Field) int {
		return slices.Index(g.names, a.Name()) - slices.Index(g.names, b.Name())
	})
	return fields
}

// Columns names the columns of an object under a catalog, without an archive.
func Columns(cat *telemetry.Catalog) ([]string, error) {
	s, err := newSchema(cat)
	if err != nil {
		return nil, err
	}
	return s.names, nil
}

// Columns names the columns of an object in order, the well-known signals by their catalog names.
func (a *Archive) Columns() []string { return a.schema.names }
