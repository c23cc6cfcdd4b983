//go:build cgo

package duckdb

import (
	"bufio"
	"math"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	bindings "github.com/duckdb/duckdb-go-bindings"

	"github.com/milepost/milepost/query"
)

// arrowOutput writes an Arrow IPC stream. The stream's end cannot say that it was cut; the Result does.
//
// Integers, floats, booleans, texts, dates, timestamps, lists of and maps from texts to those keep their types. HUGEINT
// becomes a double if every reader may expect one (sums of BIGINT are HUGEINT), decimals become doubles too, and what is left
// (intervals, UUIDs, structs) is text.
type arrowOutput struct {
	w      *bufio.Writer
	ipc    *ipc.Writer
	build  *array.RecordBuilder
	schema *arrow.Schema
}

func (o *arrowOutput) head(q *result) error {
	if o.ipc != nil {
		return nil
	}
	fields := make([]arrow.Field, len(q.cols))
	for i := range q.cols {
		fields[i] = arrow.Field{Name: q.cols[i].name, Type: q.cols[i].arrowType(), Nullable: true}
	}
	o.schema = arrow.NewSchema(fields, nil)
	o.ipc = ipc.NewWriter(o.w, ipc.WithSchema(o.schema))
	o.build = array.NewRecordBuilder(memory.DefaultAllocator, o.schema)
	return nil
}

func (o *arrowOutput) chunk(q *result, n int) error {
	for i := range q.cols {
		b := o.build.Field(i)
		b.Reserve(n)
		for row := range n {
			q.cols[i].appendArrow(b, row)
		}
	}
	rec := o.build.NewRecordBatch()
	defer rec.Release()
	return o.ipc.Write(rec)
}

func (o *arrowOutput) end(*query.Result) error {
	if o.ipc != nil {
		o.build.Release()
		if err := o.ipc.Close(); err != nil {
			return err
		}
	}
	return o.w.Flush()
}

func (c *column) arrowType() arrow.DataType {
	switch c.typ {
	case bindings.TypeBoolean:
		return arrow.FixedWidthTypes.Boolean
	case bindings.TypeTinyInt, bindings.TypeSmallInt, bindings.TypeInteger, bindings.TypeUTinyInt, bindings.TypeUSmallInt:
		return arrow.PrimitiveTypes.Int32
	case bindings.TypeBigInt, bindings.TypeUInteger:
		return arrow.PrimitiveTypes.Int64
	case bindings.TypeUBigInt:
		return arrow.PrimitiveTypes.Uint64
	case bindings.TypeFloat, bindings.TypeDouble, bindings.TypeDecimal, bindings.TypeHugeInt, bindings.TypeUHugeInt:
		return arrow.PrimitiveTypes.Float64
	case bindings.TypeDate:
		return arrow.FixedWidthTypes.Date32
	case bindings.TypeTimestampTZ:
		return arrow.FixedWidthTypes.Timestamp_us
	case bindings.TypeTimestamp, bindings.TypeTimestampS, bindings.TypeTimestampMS, bindings.TypeTimestampNS:
		return &arrow.TimestampType{Unit: arrow.Microsecond}
	case bindings.TypeBlob:
		return arrow.BinaryTypes.Binary
	case bindings.TypeList, bindings.TypeArray:
		return arrow.ListOf(c.childs[0].arrowType())
	case bindings.TypeMap:
		return arrow.MapOf(c.childs[0].arrowType(), c.childs[1].arrowType())
	case bindings.TypeSQLNull:
		return arrow.Null
	}
	return arrow.BinaryTypes.String
}

func (c *column) appendArrow(b array.Builder, row int) {
	if c.null(row) {
		b.AppendNull()
		return
	}
	switch b := b.(type) {
	case *array.BooleanBuilder:
		b.Append(get[uint8](c, row) != 0)
	case *array.Int32Builder:
		b.Append(int32(c.integer(row))) //nolint:gosec // of smaller types
	case *array.Int64Builder:
		b.Append(c.integer(row))
	case *array.Uint64Builder:
		b.Append(get[uint64](c, row))
	case *array.Float64Builder:
		b.Append(c.float(row))
	case *array.Date32Builder:
		b.Append(arrow.Date32(get[int32](c, row)))
	case *array.TimestampBuilder:
		us, _ := c.micros(row)
		b.Append(arrow.Timestamp(us))
	case *array.BinaryBuilder:
		b.Append(c.bytes(row))
	case *array.ListBuilder:
		b.Append(true)
		from, to := c.span(row)
		for i := from; i < to; i++ {
			c.childs[0].appendArrow(b.ValueBuilder(), i)
		}
	case *array.MapBuilder:
		b.Append(true)
		from, to := c.span(row)
		for i := from; i < to; i++ {
			c.childs[0].appendArrow(b.KeyBuilder(), i)
			c.childs[1].appendArrow(b.ItemBuilder(), i)
		}
	case *array.StringBuilder:
		if c.nested() {
			b.BinaryBuilder.Append(c.appendJSON(nil, row))
			return
		}
		b.BinaryBuilder.Append(c.appendPlain(nil, row))
	default:
		b.AppendNull()
	}
}

func (c *column) float(row int) float64 {
	switch c.typ {
	case bindings.TypeFloat:
		return float64(get[float32](c, row))
	case bindings.TypeDecimal:
		f, _ := c.unscaled(row).Float64()
		return f / math.Pow10(c.scale)
	case bindings.TypeHugeInt, bindings.TypeUHugeInt:
		f, _ := c.big(row).Float64()
		return f
	}
	return get[float64](c, row)
}
