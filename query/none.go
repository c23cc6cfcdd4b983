package query

import (
	"context"
	"errors"
	"io"
)

// ErrBusy says that too many queries run and wait already.
var ErrBusy = errors.New("too many queries at once: try again in a moment")

// None is the Engine of a build without one: every query returns ErrNotBuilt.
type None struct{}

// Query implements Engine.
func (None) Query(context.Context, string, Format, Limits, io.Writer) (Result, error) {
	return Result{}, ErrNotBuilt
}

// Rows implements Engine.
func (None) Rows(context.Context, Limits, func([]any) error, string, ...any) error {
	return ErrNotBuilt
}

// Close implements Engine.
func (None) Close() error { return nil }
