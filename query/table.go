package query

import "context"

// A Table is rows that live outside the SQL engine, offered to it: vehicles from memory, alerts and daily KPIs from state.
// It is safe for concurrent use.
type Table interface {
	// Columns are the table's columns, always the same ones. Types are those that a Value can hold.
	Columns() []Column
	// Scan calls emit for every row until it returns an error, which Scan returns. row has one Value for each of cols, which
	// are indexes of Columns; only those are needed. emit copies: row and what it refers to may be reused.
	Scan(ctx context.Context, cols []int, emit func(row []Value) error) error
}

// The column types of a Table.
const (
	Varchar   = "VARCHAR"
	Double    = "DOUBLE"
	BigInt    = "BIGINT"
	Integer   = "INTEGER"
	Boolean   = "BOOLEAN"
	Timestamp = "TIMESTAMP WITH TIME ZONE" // Unix milliseconds
	Date      = "DATE"                     // days since 1970-01-01
	Map       = "MAP(VARCHAR, DOUBLE)"
	List      = "VARCHAR[]"
)

// A Value is one value of a Table's row; the zero Value is NULL.
type Value struct {
	valid bool
	num   int64
	float float64
	text  string
	keys  []string
	vals  []float64
}

// Text is a value of a Varchar column.
func Text(s string) Value { return Value{valid: true, text: s} }

// Float is a value of a Double column.
func Float(f float64) Value { return Value{valid: true, float: f} }

// Int is a value of a BigInt, Integer, Timestamp (Unix ms) or Date (days) column.
func Int(i int64) Value { return Value{valid: true, num: i} }

// Bool is a value of a Boolean column.
func Bool(b bool) Value {
	if b {
		return Int(1)
	}
	return Int(0)
}

// Pairs is a value of a Map column: keys[i] → vals[i]; keys differ.
func Pairs(keys []string, vals []float64) Value { return Value{valid: true, keys: keys, vals: vals} }

// Texts is a value of a List column.
func Texts(s []string) Value { return Value{valid: true, keys: s} }

// IsNull tells whether v is NULL; the accessors below return what v was made of.
func (v *Value) IsNull() bool { return !v.valid }

// Text returns the text.
func (v *Value) Text() string { return v.text }

// Float returns the floating-point number.
func (v *Value) Float() float64 { return v.float }

// Int returns the integer, or 1 for true.
func (v *Value) Int() int64 { return v.num }

// Keys returns a map's keys or a list's elements.
func (v *Value) Keys() []string { return v.keys }

// Floats returns a map's values.
func (v *Value) Floats() []float64 { return v.vals }
