//go:build !cgo

package main

// sqlBuilt tells whether this build has an SQL engine.
func sqlBuilt() bool { return false }
