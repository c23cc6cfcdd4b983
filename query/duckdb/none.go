//go:build !cgo

package duckdb

import "github.com/milepost/milepost/query"

// Engine is the engine of a build without cgo: there is none.
type Engine struct{ query.None }

// Readings are no columns.
func Readings([]string) []query.Column { return nil }

// Open returns query.ErrNotBuilt.
func Open(Config, Sources) (*Engine, error) { return nil, query.ErrNotBuilt }
