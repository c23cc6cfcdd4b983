// Package query is SQL over everything Milepost knows: the contract of the engine and the limits it keeps.
package query

import (
	"context"
	"errors"
	"io"
	"time"
)

// Limits bound one query. Zero fields take the engine's defaults.
type Limits struct {
	Timeout time.Duration
	Rows    int // more rows than this end the result with Truncated set, never silently
}

// A Column of a result.
type Column struct {
	Name string `json:"name"`
	Type string `json:"type"` // the engine's SQL type name
}

// A Format is how a result is written.
type Format string

// The formats.
const (
	JSON  Format = "json"  // {"columns":[…],"rows":[[…],…],"truncated":false,"elapsed_ms":…}
	CSV   Format = "csv"   // RFC 4180 with a header line
	Arrow Format = "arrow" // Arrow IPC stream
)

// A Result summarises a query that ran.
type Result struct {
	Columns   []Column
	Rows      int
	Truncated bool
	Elapsed   time.Duration
}

// An Engine answers read-only SQL over the tables readings, vehicles, alerts and daily_kpis. It is safe for concurrent use.
type Engine interface {
	// Query runs one SELECT and writes its result to w. A *UserError is the user's to mend; w may then hold nothing.
	Query(ctx context.Context, sql string, f Format, lim Limits, w io.Writer) (Result, error)
	// Rows runs one SELECT with positional parameters ($1 …) and calls each for every row; vals are valid until it returns.
	Rows(ctx context.Context, lim Limits, each func(vals []any) error, sql string, args ...any) error
	io.Closer
}

// A UserError is a mistake in the query: what is wrong, where, and how to mend it.
type UserError struct{ Msg string }

func (e *UserError) Error() string { return e.Msg }

// ErrNotBuilt says that this binary was built without an SQL engine.
var ErrNotBuilt = errors.New("SQL is not in this build: it needs cgo; build with CGO_ENABLED=1 and a C compiler")
