//go:build cgo

package duckdb

import (
	"context"
	"fmt"
	"time"

	bindings "github.com/duckdb/duckdb-go-bindings"

	"github.com/milepost/milepost/query"
)

// A duckError is what DuckDB says; explain decides who gets to see it.
type duckError struct{ msg string }

func (e *duckError) Error() string { return e.msg }

// A result is one chunk of rows at a time.
type result struct {
	cols []column
	size int // rows of the chunk; 0 at the first call, which tells the columns
}

func (r *result) rows(f func(row int) error) error {
	for i := range r.size {
		if err := f(i); err != nil {
			return err
		}
	}
	return nil
}

func (r *result) columns() []query.Column {
	out := make([]query.Column, len(r.cols))
	for i := range r.cols {
		out[i] = query.Column{Name: r.cols[i].name, Type: r.cols[i].sqlType()}
	}
	return out
}

// exec runs a statement of ours.
func (c *conn) exec(sql string) error {
	var res bindings.Result
	state := bindings.Query(c.c, sql, &res)
	defer bindings.DestroyResult(&res)
	if state == bindings.StateError {
		return &duckError{bindings.ResultError(&res)}
	}
	return nil
}

// each runs a statement and calls f first without rows, then for each chunk, which is valid until f returns. The result is
// streamed: DuckDB makes no more rows than f takes.
func (c *conn) each(ctx context.Context, sql string, args []any, f func(*result) error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	stop := c.interruptAfter(ctx)
	defer stop()

	var stmt bindings.PreparedStatement
	state := bindings.Prepare(c.c, sql, &stmt)
	defer bindings.DestroyPrepare(&stmt)
	if state == bindings.StateError {
		return &duckError{bindings.PrepareError(stmt)}
	}
	if err := bind(stmt, args); err != nil {
		return err
	}
	var pending bindings.PendingResult
	// Deprecated by DuckDB, which has no other way to stream a result.
	state = bindings.PendingPreparedStreaming(stmt, &pending)
	defer bindings.DestroyPending(&pending)
	if state == bindings.StateError {
		return &duckError{bindings.PendingError(pending)}
	}
	var res bindings.Result
	state = bindings.ExecutePending(pending, &res)
	defer bindings.DestroyResult(&res)
	if state == bindings.StateError {
		return &duckError{bindings.ResultError(&res)}
	}
	r := &result{cols: make([]column, bindings.ColumnCount(&res))}
	for i := range r.cols {
		lt := bindings.ColumnLogicalType(&res, bindings.IdxT(i)) //nolint:gosec // small
		r.cols[i] = newColumn(bindings.ColumnName(&res, bindings.IdxT(i)), lt)
		bindings.DestroyLogicalType(&lt)
	}
	for i := range r.cols {
		if err := r.cols[i].supported(); err != nil {
			return err
		}
	}
	if err := f(r); err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		chunk := bindings.FetchChunk(res)
		if chunk.Ptr == nil {
			if msg := bindings.ResultError(&res); msg != "" {
				return &duckError{msg}
			}
			return ctx.Err()
		}
		r.size = int(bindings.DataChunkGetSize(chunk)) //nolint:gosec // at most a vector
		for i := range r.cols {
			r.cols[i].load(bindings.DataChunkGetVector(chunk, bindings.IdxT(i))) //nolint:gosec // small
		}
		if r.size > 0 {
			err = f(r)
		}
		bindings.DestroyDataChunk(&chunk)
		if err != nil {
			return err
		}
	}
}

// interruptAfter interrupts the connection when ctx ends, again and again: DuckDB forgets an interrupt that comes between its
// phases. stop waits for the goroutine, so that no interrupt hits the next query.
func (c *conn) interruptAfter(ctx context.Context) (stop func()) {
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-over:
			return
		case <-ctx.Done():
		}
		again := time.NewTicker(10 * time.Millisecond)
		defer again.Stop()
		for {
			bindings.Interrupt(c.c)
			select {
			case <-over:
				return
			case <-again.C:
			}
		}
	}()
	return func() {
		close(over)
		<-done
	}
}

func bind(stmt bindings.PreparedStatement, args []any) error {
	if n := int(bindings.NParams(stmt)); n != len(args) { //nolint:gosec // small
		return &query.UserError{Msg: fmt.Sprintf("the statement has %d parameters, %d values were given", n, len(args))}
	}
	for i, a := range args {
		at := bindings.IdxT(i + 1) //nolint:gosec // small
		var state bindings.State
		switch v := a.(type) {
		case nil:
			state = bindings.BindNull(stmt, at)
		case string:
			state = bindings.BindVarcharLength(stmt, at, v, bindings.IdxT(len(v)))
		case bool:
			state = bindings.BindBoolean(stmt, at, v)
		case int:
			state = bindings.BindInt64(stmt, at, int64(v))
		case int64:
			state = bindings.BindInt64(stmt, at, v)
		case float64:
			state = bindings.BindDouble(stmt, at, v)
		case time.Time:
			state = bindings.BindTimestampTZ(stmt, at, bindings.NewTimestamp(v.UnixMicro()))
		default:
			return fmt.Errorf("duckdb: bug: parameter of type %T", a)
		}
		if state == bindings.StateError {
			return &duckError{bindings.PrepareError(stmt)}
		}
	}
	return nil
}
