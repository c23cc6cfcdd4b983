package archive

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"slices"
	"unsafe"

	"github.com/parquet-go/parquet-go"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/telemetry"
)

// A place of one row in a batch.
type rowRef struct{ part, row uint32 }

// A dayRows is what a batch holds of one event day, sorted by vehicle and event time.
type dayRows struct {
	day  int32
	rows []rowRef
}

// byDay splits a batch into event days and sorts each by (vehicle, event time, arrival in the log).
//
// Sorting is counting: names get ranks once a batch, rows are dealt to their vehicle in the order of the log, and within a
// vehicle that order is nearly always the order of time already.
func byDay(rows []Rows) []dayRows {
	var days []int32
	count := map[int32]int{}
	last, n := int32(0), 0
	for p := range rows {
		for _, ms := range rows[p].Event {
			if d := Day(ms); d != last || n == 0 {
				if n > 0 {
					count[last] += n
				}
				last, n = d, 0
			}
			n++
		}
	}
	if n > 0 {
		count[last] += n
	}
	for d := range count {
		days = append(days, d)
	}
	slices.Sort(days)

	rank, vehicles := rankVehicles(rows)
	out := make([]dayRows, 0, len(days))
	starts := make([]int, vehicles+1)
	for _, day := range days {
		clear(starts)
		lo, hi := int64(day)*dayMillis, int64(day)*dayMillis+dayMillis-1
		each := func(f func(p, i int, rank uint32)) {
			for p := range rows {
				ids, ranks := rows[p].Vehicle, rank[p]
				for i, ms := range rows[p].Event {
					if ms >= lo && ms <= hi {
						f(p, i, ranks[ids[i]])
					}
				}
			}
		}
		each(func(_, _ int, r uint32) { starts[r+1]++ })
		for i := range vehicles {
			starts[i+1] += starts[i]
		}
		refs := make([]rowRef, count[day])
		next := slices.Clone(starts[:vehicles])
		each(func(p, i int, r uint32) {
			refs[next[r]] = rowRef{uint32(p), uint32(i)} //nolint:gosec // bounded by memory
			next[r]++
		})
		event := func(r rowRef) int64 { return rows[r.part].Event[r.row] }
		for v := range vehicles {
			one := refs[starts[v]:starts[v+1]]
			byTime := func(a, b rowRef) int { return cmp.Compare(event(a), event(b)) }
			if !slices.IsSortedFunc(one, byTime) {
				slices.SortStableFunc(one, byTime)
			}
		}
		out = append(out, dayRows{day: day, rows: refs})
	}
	return out
}

// rankVehicles returns, for each part, the rank of each of its names among all vehicles of the batch.
func rankVehicles(rows []Rows) (rank [][]uint32, n int) {
	rank = make([][]uint32, len(rows))
	all := map[string]uint32{}
	var names []string
	for p := range rows {
		seen := make([]bool, len(rows[p].Names))
		for _, id := range rows[p].Vehicle {
			seen[id] = true
		}
		for id, ok := range seen {
			name := rows[p].Names[id]
			if !ok {
				continue
			}
			if _, known := all[name]; !known {
				all[name] = 0
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	for i, name := range names {
		all[name] = uint32(i) //nolint:gosec // bounded by memory
	}
	for p := range rows {
		rank[p] = make([]uint32, len(rows[p].Names))
		for id, name := range rows[p].Names {
			rank[p][id] = all[name]
		}
	}
	return rank, len(names)
}

// A writer writes objects, one at a time; it keeps its buffers between them.
type writer struct {
	s    *schema
	cat  *telemetry.Catalog
	w    *parquet.Writer
	buf  *bufio.Writer
	vals []parquet.Value
}

func newWriter(s *schema, cat *telemetry.Catalog) *writer { return &writer{s: s, cat: cat} }

// create starts an object at path; the caller writes rows through w.w and calls finish.
func (w *writer) create(fs vfs.FS, path string) (vfs.File, error) {
	f, err := fs.Create(path, vfs.Category)
	if err != nil {
		return nil, err
	}
	if w.w == nil {
		w.buf = bufio.NewWriterSize(f, 256<<10)
		w.w = parquet.NewWriter(w.buf, w.s.options()...)
	} else {
		w.buf.Reset(f)
		w.w.Reset(w.buf)
	}
	return f, nil
}

// finish completes the object and puts it on disk. It returns its size.
func (w *writer) finish(f vfs.File) (int64, error) {
	err := w.w.Close()
	if err == nil {
		err = w.buf.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	var size int64
	if err == nil {
		st, serr := f.Stat()
		if err = serr; err == nil {
			size = st.Size()
		}
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		// Buffers of a file that failed half-way are not worth trusting.
		w.w = nil
	}
	return size, err
}

// write writes the rows of one day as an object at path, synced.
func (w *writer) write(ctx context.Context, fs vfs.FS, path string, rows []Rows, day dayRows) (size int64, err error) {
	f, err := w.create(fs, path)
	if err != nil {
		return 0, err
	}
	for refs := day.rows; len(refs) > 0; {
		n := min(len(refs), rowGroupRows)
		if err = w.rowGroup(ctx, rows, refs[:n]); err != nil {
			break
		}
		refs = refs[n:]
	}
	if err != nil {
		_ = f.Close() // the write error is what matters; the file will be removed
		w.w = nil
		return 0, err
	}
	return w.finish(f)
}

// rowGroup writes column by column, in strips short enough to stay in the cache.
func (w *writer) rowGroup(ctx context.Context, rows []Rows, refs []rowRef) error {
	const strip = 2048
	cols := w.w.ColumnWriters()
	for c := range columns {
		if err := ctx.Err(); err != nil {
			return err
		}
		for at := 0; at < len(refs); at += strip {
			w.column(c, rows, refs[at:min(at+strip, len(refs))])
			if _, err := cols[c].WriteRowValues(w.vals); err != nil {
				return fmt.Errorf("column %d: %w", c, err)
			}
		}
	}
	return w.w.Flush()
}

// column fills w.vals with one column of some rows.
func (w *writer) column(c int, rows []Rows, refs []rowRef) {
	vals := w.vals[:0]
	if cap(vals) < len(refs) {
		vals = make([]parquet.Value, 0, max(len(refs), 2048))
	}
	switch {
	case c == colVehicle:
		for _, r := range refs {
			p := &rows[r.part]
			vals = append(vals, textValue(p.Names[p.Vehicle[r.row]]).Level(0, 0, c))
		}
	case c == colEvent:
		for _, r := range refs {
			vals = append(vals, parquet.Int64Value(rows[r.part].Event[r.row]).Level(0, 0, c))
		}
	case c == colArrival:
		for _, r := range refs {
			vals = append(vals, parquet.Int64Value(rows[r.part].Arrival[r.row]).Level(0, 0, c))
		}
	case c == colLat || c == colLon:
		for _, r := range refs {
			p := &rows[r.part]
			v := p.Lat
			if c == colLon {
				v = p.Lon
			}
			if p.Flags[r.row]&telemetry.FlagNoPosition != 0 {
				vals = append(vals, parquet.NullValue().Level(0, 0, c))
			} else {
				vals = append(vals, parquet.DoubleValue(v[r.row]).Level(0, 1, c))
			}
		}
	case c < colStatus:
		s := c - colSignal
		for _, r := range refs {
			p := &rows[r.part]
			if p.Has[r.row]&(1<<s) != 0 {
				vals = append(vals, parquet.DoubleValue(p.Signal[s][r.row]).Level(0, 1, c))
			} else {
				vals = append(vals, parquet.NullValue().Level(0, 0, c))
			}
		}
	case c == colStatus:
		for _, r := range refs {
			p := &rows[r.part]
			if id := p.Status[r.row]; id != 0 {
				vals = append(vals, textValue(p.Names[id]).Level(0, 1, c))
			} else {
				vals = append(vals, parquet.NullValue().Level(0, 0, c))
			}
		}
	case c == colFlags:
		for _, r := range refs {
			vals = append(vals, parquet.Int32Value(int32(rows[r.part].Flags[r.row])).Level(0, 0, c)) //nolint:gosec // 7 bits
		}
	default:
		for _, r := range refs {
			others := rows[r.part].Others(int(r.row))
			if len(others) == 0 {
				vals = append(vals, parquet.NullValue().Level(0, mapNull, c))
			}
			for i, o := range others {
				v := parquet.DoubleValue(o.Value)
				if c == colKey {
					v = textValue(w.cat.Def(o.ID).Name)
				}
				vals = append(vals, v.Level(min(i, 1), mapPresent, c))
			}
		}
	}
	w.vals = vals
}

// textValue borrows s: column buffers copy what they are given.
func textValue(s string) parquet.Value {
	return parquet.ByteArrayValue(unsafe.Slice(unsafe.StringData(s), len(s)))
}
