package archive

import (
	"context"
	"fmt"

	"github.com/parquet-go/parquet-go"
)

// A Problem is an object that is not what the manifest says.
type Problem struct {
	Object string `json:"object"`
	Why    string `json:"why"`
}

// Verify opens every object of the manifest and compares its size and rows.
func (a *Archive) Verify(ctx context.Context) ([]Problem, error) {
	s := a.Snapshot()
	defer s.Release()
	var out []Problem
	a.mu.Lock()
	for _, f := range a.missing {
		out = append(out, Problem{f.Name, "missing"})
	}
	a.mu.Unlock()
	for _, f := range s.Files {
		if err := ctx.Err(); err != nil {
			return out, err
		}
		if why := a.verify(f); why != "" {
			out = append(out, Problem{f.Name, why})
		}
	}
	return out, nil
}

func (a *Archive) verify(f *File) string {
	in, size, err := a.openObject(f)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = in.Close() }() // read only
	if size != f.Bytes {
		return fmt.Sprintf("%d bytes, the manifest says %d", size, f.Bytes)
	}
	pf, err := parquet.OpenFile(in, size, parquet.SkipBloomFilters(true), parquet.SkipPageIndex(true))
	if err != nil {
		return err.Error()
	}
	if pf.NumRows() != f.Rows {
		return fmt.Sprintf("%d rows, the manifest says %d", pf.NumRows(), f.Rows)
	}
	return ""
}
