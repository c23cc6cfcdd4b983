//go:build cgo

package duckdb

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
	"unsafe"

	bindings "github.com/duckdb/duckdb-go-bindings"

	"github.com/milepost/milepost/query"
)

// A column reads one column of a chunk straight from DuckDB's memory.
type column struct {
	name   string
	typ    bindings.Type
	phys   bindings.Type // of a decimal or an enum
	width  int           // of a decimal
	scale  int
	enum   []string
	fixed  int      // length of an ARRAY
	childs []column // LIST, ARRAY: 1; MAP: key and value; STRUCT: fields

	data  unsafe.Pointer
	valid []uint64 // nil: no row is NULL
}

func newColumn(name string, lt bindings.LogicalType) column {
	c := column{name: name, typ: bindings.GetTypeId(lt)}
	child := func(name string, lt bindings.LogicalType) {
		c.childs = append(c.childs, newColumn(name, lt))
		bindings.DestroyLogicalType(&lt)
	}
	switch c.typ {
	case bindings.TypeDecimal:
		c.phys = bindings.DecimalInternalType(lt)
		c.width, c.scale = int(bindings.DecimalWidth(lt)), int(bindings.DecimalScale(lt))
	case bindings.TypeEnum:
		c.phys = bindings.EnumInternalType(lt)
		for i := range bindings.EnumDictionarySize(lt) {
			c.enum = append(c.enum, bindings.EnumDictionaryValue(lt, bindings.IdxT(i)))
		}
	case bindings.TypeList:
		child("", bindings.ListTypeChildType(lt))
	case bindings.TypeArray:
		c.fixed = int(bindings.ArrayTypeArraySize(lt)) //nolint:gosec // small
		child("", bindings.ArrayTypeChildType(lt))
	case bindings.TypeMap:
		child("key", bindings.MapTypeKeyType(lt))
		child("value", bindings.MapTypeValueType(lt))
	case bindings.TypeStruct:
		for i := range bindings.StructTypeChildCount(lt) {
			child(bindings.StructTypeChildName(lt, i), bindings.StructTypeChildType(lt, i))
		}
	}
	return c
}

func (c *column) supported() error {
	if _, ok := typeNames[c.typ]; !ok {
		return &query.UserError{Msg: fmt.Sprintf("column %s has a type that results cannot carry: cast it, as in CAST(… AS VARCHAR)", c.name)}
	}
	for i := range c.childs {
		if err := c.childs[i].supported(); err != nil {
			return &query.UserError{Msg: fmt.Sprintf("column %s has a part that results cannot carry: cast it to VARCHAR", c.name)}
		}
	}
	return nil
}

//nolint:gochecknoglobals // a table, never written
var typeNames = map[bindings.Type]string{
	bindings.TypeBoolean: "BOOLEAN", bindings.TypeTinyInt: "TINYINT", bindings.TypeSmallInt: "SMALLINT",
	bindings.TypeInteger: "INTEGER", bindings.TypeBigInt: "BIGINT", bindings.TypeUTinyInt: "UTINYINT",
	bindings.TypeUSmallInt: "USMALLINT", bindings.TypeUInteger: "UINTEGER", bindings.TypeUBigInt: "UBIGINT",
	bindings.TypeFloat: "FLOAT", bindings.TypeDouble: "DOUBLE", bindings.TypeTimestamp: "TIMESTAMP",
	bindings.TypeDate: "DATE", bindings.TypeTime: "TIME", bindings.TypeInterval: "INTERVAL",
	bindings.TypeHugeInt: "HUGEINT", bindings.TypeUHugeInt: "UHUGEINT", bindings.TypeVarchar: "VARCHAR",
	bindings.TypeBlob: "BLOB", bindings.TypeDecimal: "DECIMAL", bindings.TypeTimestampS: "TIMESTAMP_S",
	bindings.TypeTimestampMS: "TIMESTAMP_MS", bindings.TypeTimestampNS: "TIMESTAMP_NS", bindings.TypeEnum: "ENUM",
	bindings.TypeList: "LIST", bindings.TypeStruct: "STRUCT", bindings.TypeMap: "MAP", bindings.TypeArray: "ARRAY",
	bindings.TypeUUID: "UUID", bindings.TypeTimestampTZ: query.Timestamp, bindings.TypeSQLNull: "NULL",
}

// sqlType is the type as SQL writes it.
func (c *column) sqlType() string {
	switch c.typ {
	case bindings.TypeDecimal:
		return fmt.Sprintf("DECIMAL(%d,%d)", c.width, c.scale)
	case bindings.TypeList:
		return c.childs[0].sqlType() + "[]"
	case bindings.TypeArray:
		return fmt.Sprintf("%s[%d]", c.childs[0].sqlType(), c.fixed)
	case bindings.TypeMap:
		return "MAP(" + c.childs[0].sqlType() + ", " + c.childs[1].sqlType() + ")"
	case bindings.TypeStruct:
		parts := make([]string, len(c.childs))
		for i := range c.childs {
			parts[i] = ident(c.childs[i].name) + " " + c.childs[i].sqlType()
		}
		return "STRUCT(" + strings.Join(parts, ", ") + ")"
	}
	return typeNames[c.typ]
}

// load points the column at a vector.
func (c *column) load(v bindings.Vector) {
	c.data = bindings.VectorGetData(v)
	c.valid = nil
	if p := bindings.VectorGetValidity(v); p != nil {
		// Its length is the vector's; nothing reads behind the rows that exist.
		c.valid = unsafe.Slice((*uint64)(p), math.MaxInt32)
	}
	switch c.typ {
	case bindings.TypeList:
		c.childs[0].load(bindings.ListVectorGetChild(v))
	case bindings.TypeArray:
		c.childs[0].load(bindings.ArrayVectorGetChild(v))
	case bindings.TypeMap:
		pair := bindings.ListVectorGetChild(v)
		c.childs[0].load(bindings.StructVectorGetChild(pair, 0))
		c.childs[1].load(bindings.StructVectorGetChild(pair, 1))
	case bindings.TypeStruct:
		for i := range c.childs {
			c.childs[i].load(bindings.StructVectorGetChild(v, bindings.IdxT(i))) //nolint:gosec // small
		}
	}
}

func (c *column) null(row int) bool {
	return c.typ == bindings.TypeSQLNull || c.valid != nil && c.valid[row>>6]&(1<<(row&63)) == 0
}

func get[T any](c *column, row int) T {
	return *(*T)(unsafe.Add(c.data, uintptr(row)*unsafe.Sizeof(*new(T)))) //nolint:gosec // row ≥ 0
}

// bytes returns a text or blob, valid as long as the chunk. DuckDB keeps up to 12 bytes in place.
func (c *column) bytes(row int) []byte {
	p := unsafe.Add(c.data, row*16)
	n := *(*uint32)(p)
	if n <= 12 {
		return unsafe.Slice((*byte)(unsafe.Add(p, 4)), n)
	}
	return unsafe.Slice(*(**byte)(unsafe.Add(p, 8)), n)
}

func (c *column) text(row int) string { return string(c.bytes(row)) }

type entry struct{ offset, length uint64 }

// span returns where the elements of a list, array or map stand in its children.
func (c *column) span(row int) (from, to int) {
	if c.typ == bindings.TypeArray {
		return row * c.fixed, (row + 1) * c.fixed
	}
	e := get[entry](c, row)
	return int(e.offset), int(e.offset + e.length) //nolint:gosec // bounded by memory
}

// integer returns the value of any integer type of up to 64 bits but UBIGINT.
func (c *column) integer(row int) int64 {
	switch c.typ {
	case bindings.TypeTinyInt:
		return int64(get[int8](c, row))
	case bindings.TypeSmallInt:
		return int64(get[int16](c, row))
	case bindings.TypeInteger, bindings.TypeDate:
		return int64(get[int32](c, row))
	case bindings.TypeUTinyInt:
		return int64(get[uint8](c, row))
	case bindings.TypeUSmallInt:
		return int64(get[uint16](c, row))
	case bindings.TypeUInteger:
		return int64(get[uint32](c, row))
	}
	return get[int64](c, row)
}

// big returns the value of a 128-bit integer.
func (c *column) big(row int) *big.Int {
	lo, hi := get[[2]uint64](c, row)[0], get[[2]uint64](c, row)[1]
	v := new(big.Int)
	if c.typ == bindings.TypeUHugeInt {
		v.SetUint64(hi)
	} else {
		v.SetInt64(int64(hi)) //nolint:gosec // the sign is meant
	}
	return v.Lsh(v, 64).Add(v, new(big.Int).SetUint64(lo))
}

func (c *column) unscaled(row int) *big.Int {
	switch c.phys {
	case bindings.TypeSmallInt:
		return big.NewInt(int64(get[int16](c, row)))
	case bindings.TypeInteger:
		return big.NewInt(int64(get[int32](c, row)))
	case bindings.TypeBigInt:
		return big.NewInt(get[int64](c, row))
	}
	return c.big(row)
}

func appendDecimal(dst []byte, v *big.Int, scale int) []byte {
	if v.Sign() < 0 {
		dst = append(dst, '-')
	}
	s := new(big.Int).Abs(v).String()
	for len(s) <= scale {
		s = "0" + s
	}
	dst = append(dst, s[:len(s)-scale]...)
	if scale > 0 {
		dst = append(append(dst, '.'), s[len(s)-scale:]...)
	}
	return dst
}

// micros returns any timestamp in microseconds and whether it is finite.
func (c *column) micros(row int) (int64, bool) {
	v := get[int64](c, row)
	if v == math.MaxInt64 || v == -math.MaxInt64 {
		return v, false
	}
	switch c.typ {
	case bindings.TypeTimestampS:
		return v * 1e6, true
	case bindings.TypeTimestampMS:
		return v * 1e3, true
	case bindings.TypeTimestampNS:
		return v / 1e3, true
	}
	return v, true
}

type interval struct {
	months, days int32
	micros       int64
}

// appendPlain writes a value that is neither nested nor NULL as text without quotes.
func (c *column) appendPlain(dst []byte, row int) []byte {
	switch c.typ {
	case bindings.TypeBoolean:
		return strconv.AppendBool(dst, get[uint8](c, row) != 0)
	case bindings.TypeUBigInt:
		return strconv.AppendUint(dst, get[uint64](c, row), 10)
	case bindings.TypeHugeInt, bindings.TypeUHugeInt:
		return c.big(row).Append(dst, 10)
	case bindings.TypeFloat:
		return appendFloat(dst, float64(get[float32](c, row)), 32)
	case bindings.TypeDouble:
		return appendFloat(dst, get[float64](c, row), 64)
	case bindings.TypeDecimal:
		return appendDecimal(dst, c.unscaled(row), c.scale)
	case bindings.TypeVarchar:
		return append(dst, c.bytes(row)...)
	case bindings.TypeBlob:
		return base64.StdEncoding.AppendEncode(dst, c.bytes(row))
	case bindings.TypeEnum:
		return append(dst, c.member(row)...)
	case bindings.TypeUUID:
		return appendUUID(dst, get[[2]uint64](c, row))
	case bindings.TypeDate:
		days := get[int32](c, row)
		if days == math.MaxInt32 || days == -math.MaxInt32 {
			return appendFloat(dst, math.Copysign(math.Inf(1), float64(days)), 64)
		}
		return time.Unix(int64(days)*86400, 0).UTC().AppendFormat(dst, time.DateOnly)
	case bindings.TypeTime:
		return time.UnixMicro(get[int64](c, row)).UTC().AppendFormat(dst, "15:04:05.999999")
	case bindings.TypeInterval:
		return appendInterval(dst, get[interval](c, row))
	case bindings.TypeTimestamp, bindings.TypeTimestampS, bindings.TypeTimestampMS, bindings.TypeTimestampNS, bindings.TypeTimestampTZ:
		us, finite := c.micros(row)
		if !finite {
			return appendFloat(dst, math.Copysign(math.Inf(1), float64(us)), 64)
		}
		layout := "2006-01-02T15:04:05.999999"
		if c.typ == bindings.TypeTimestampTZ {
			layout = "2006-01-02T15:04:05.999999Z"
		}
		return time.UnixMicro(us).UTC().AppendFormat(dst, layout)
	}
	return strconv.AppendInt(dst, c.integer(row), 10)
}

func (c *column) member(row int) string {
	i := 0
	switch c.phys {
	case bindings.TypeUTinyInt:
		i = int(get[uint8](c, row))
	case bindings.TypeUSmallInt:
		i = int(get[uint16](c, row))
	default:
		i = int(get[uint32](c, row))
	}
	return c.enum[i]
}

func appendFloat(dst []byte, f float64, bits int) []byte {
	switch {
	case math.IsNaN(f):
		return append(dst, "NaN"...)
	case math.IsInf(f, 1):
		return append(dst, "Infinity"...)
	case math.IsInf(f, -1):
		return append(dst, "-Infinity"...)
	}
	format := byte('f')
	if a := math.Abs(f); a != 0 && (a < 1e-6 || a >= 1e21) {
		format = 'e'
	}
	return strconv.AppendFloat(dst, f, format, -1, bits)
}

// appendUUID: DuckDB stores it as a signed 128-bit number with the top bit flipped, so that it sorts.
func appendUUID(dst []byte, v [2]uint64) []byte {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], v[1]^1<<63)
	binary.BigEndian.PutUint64(b[8:], v[0])
	return fmt.Appendf(dst, "%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// appendInterval writes ISO 8601: P1M2DT3.5S.
func appendInterval(dst []byte, v interval) []byte {
	n := len(dst)
	dst = append(dst, 'P')
	if v.months != 0 {
		dst = append(strconv.AppendInt(dst, int64(v.months), 10), 'M')
	}
	if v.days != 0 {
		dst = append(strconv.AppendInt(dst, int64(v.days), 10), 'D')
	}
	if v.micros != 0 || len(dst) == n+1 {
		dst = append(dst, 'T')
		us := v.micros
		if h := us / 3_600_000_000; h != 0 {
			dst = append(strconv.AppendInt(dst, h, 10), 'H')
			us -= h * 3_600_000_000
		}
		if m := us / 60_000_000; m != 0 {
			dst = append(strconv.AppendInt(dst, m, 10), 'M')
			us -= m * 60_000_000
		}
		if us != 0 || dst[len(dst)-1] == 'T' {
			dst = append(strconv.AppendFloat(dst, float64(us)/1e6, 'f', -1, 64), 'S')
		}
	}
	return dst
}

// maxExact is how large an integer may be for every JSON reader to keep it exactly; larger ones are strings.
const maxExact = 1 << 53

// appendJSON writes a value as JSON. NaN and infinities are strings, as are integers that a float64 would round.
func (c *column) appendJSON(dst []byte, row int) []byte {
	if c.null(row) {
		return append(dst, "null"...)
	}
	switch c.typ {
	case bindings.TypeBoolean, bindings.TypeTinyInt, bindings.TypeSmallInt, bindings.TypeInteger, bindings.TypeUTinyInt,
		bindings.TypeUSmallInt, bindings.TypeUInteger, bindings.TypeDecimal:
		return c.appendPlain(dst, row)
	case bindings.TypeBigInt, bindings.TypeUBigInt, bindings.TypeHugeInt, bindings.TypeUHugeInt:
		n := len(dst)
		dst = c.appendPlain(dst, row)
		if v, err := strconv.ParseInt(string(dst[n:]), 10, 64); err != nil || v > maxExact || v < -maxExact {
			dst = append(dst, `""`...)
			copy(dst[n+1:], dst[n:len(dst)-2])
			dst[n] = '"'
			dst[len(dst)-1] = '"'
		}
		return dst
	case bindings.TypeFloat, bindings.TypeDouble:
		f := 0.0
		if c.typ == bindings.TypeFloat {
			f = float64(get[float32](c, row))
		} else {
			f = get[float64](c, row)
		}
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return append(c.appendPlain(append(dst, '"'), row), '"')
		}
		return c.appendPlain(dst, row)
	case bindings.TypeVarchar:
		return appendJSONString(dst, c.bytes(row))
	case bindings.TypeEnum:
		return appendJSONString(dst, []byte(c.member(row)))
	case bindings.TypeList, bindings.TypeArray:
		dst = append(dst, '[')
		from, to := c.span(row)
		for i := from; i < to; i++ {
			if i > from {
				dst = append(dst, ',')
			}
			dst = c.childs[0].appendJSON(dst, i)
		}
		return append(dst, ']')
	case bindings.TypeMap:
		dst = append(dst, '{')
		from, to := c.span(row)
		for i := from; i < to; i++ {
			if i > from {
				dst = append(dst, ',')
			}
			dst = c.childs[0].appendKey(dst, i)
			dst = append(dst, ':')
			dst = c.childs[1].appendJSON(dst, i)
		}
		return append(dst, '}')
	case bindings.TypeStruct:
		dst = append(dst, '{')
		for i := range c.childs {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendJSONString(dst, []byte(c.childs[i].name))
			dst = append(dst, ':')
			dst = c.childs[i].appendJSON(dst, row)
		}
		return append(dst, '}')
	}
	return append(c.appendPlain(append(dst, '"'), row), '"')
}

// appendKey writes a value as the key of a JSON object.
func (c *column) appendKey(dst []byte, row int) []byte {
	n := len(dst)
	dst = c.appendJSON(dst, row)
	if dst[n] != '"' {
		dst = appendJSONString(dst[:n], []byte(string(dst[n:])))
	}
	return dst
}

func appendJSONString(dst, s []byte) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		switch b := s[i]; {
		case b == '"' || b == '\\':
			dst = append(dst, '\\', b)
			i++
		case b < ' ':
			dst = append(dst, '\\', 'u', '0', '0', hex[b>>4], hex[b&15])
			i++
		case b < utf8.RuneSelf:
			dst = append(dst, b)
			i++
		default:
			r, n := utf8.DecodeRune(s[i:])
			dst = utf8.AppendRune(dst, r) // what is not UTF-8 becomes U+FFFD
			i += n
		}
	}
	return append(dst, '"')
}

// nested tells whether text formats show the value as JSON.
func (c *column) nested() bool { return len(c.childs) > 0 }

// value returns a value for Rows.
func (c *column) value(row int) any {
	if c.null(row) {
		return nil
	}
	switch c.typ {
	case bindings.TypeBoolean:
		return get[uint8](c, row) != 0
	case bindings.TypeTinyInt, bindings.TypeSmallInt, bindings.TypeInteger, bindings.TypeBigInt, bindings.TypeUTinyInt,
		bindings.TypeUSmallInt, bindings.TypeUInteger:
		return c.integer(row)
	case bindings.TypeUBigInt, bindings.TypeHugeInt, bindings.TypeUHugeInt:
		text := string(c.appendPlain(nil, row))
		if v, err := strconv.ParseInt(text, 10, 64); err == nil {
			return v
		}
		return text
	case bindings.TypeFloat:
		return float64(get[float32](c, row))
	case bindings.TypeDouble:
		return get[float64](c, row)
	case bindings.TypeTimestamp, bindings.TypeTimestampS, bindings.TypeTimestampMS, bindings.TypeTimestampNS, bindings.TypeTimestampTZ:
		if us, finite := c.micros(row); finite {
			return time.UnixMicro(us).UTC()
		}
	case bindings.TypeDate:
		return time.Unix(int64(get[int32](c, row))*86400, 0).UTC()
	case bindings.TypeList, bindings.TypeArray:
		from, to := c.span(row)
		list := make([]any, 0, to-from)
		for i := from; i < to; i++ {
			list = append(list, c.childs[0].value(i))
		}
		return list
	case bindings.TypeMap:
		from, to := c.span(row)
		m := make(map[string]any, to-from)
		for i := from; i < to; i++ {
			m[string(c.childs[0].appendPlain(nil, i))] = c.childs[1].value(i)
		}
		return m
	case bindings.TypeStruct:
		m := make(map[string]any, len(c.childs))
		for i := range c.childs {
			m[c.childs[i].name] = c.childs[i].value(row)
		}
		return m
	}
	return string(c.appendPlain(nil, row))
}
