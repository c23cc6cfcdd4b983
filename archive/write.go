package archive

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"unsafe"

	"github.com/parquet-go/parquet-go"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/telemetry"
)

// A flat is a batch of rows as one: a row is a number, and a look-up is one step. Rows of one vehicle lie far apart in a tail,
// so a write jumps through memory; two steps for each value of each row cost more than the encoding.
type flat struct {
	rows    []Rows
	base    []int // number of each part's first row
	n       int
	event   []int64
	vehicle []uint32 // rank among vehicles
	status  []uint32 // index of statuses; 0: none
	flags   []telemetry.Flags
	has     []uint32

	vehicles []string // sorted
	statuses []string
}

func flatten(rows []Rows) *flat {
	f := &flat{rows: rows, statuses: []string{""}}
	for i := range rows {
		f.base = append(f.base, f.n)
		f.n += rows[i].Len()
	}
	f.event = concat(f.n, rows, func(r *Rows) []int64 { return r.Event })
	f.flags = concat(f.n, rows, func(r *Rows) []telemetry.Flags { return r.Flags })
	f.has = concat(f.n, rows, func(r *Rows) []uint32 { return r.Has })
	f.vehicle = f.number(&f.vehicles, func(r *Rows) []uint32 { return r.Vehicle })
	f.status = f.number(&f.statuses, func(r *Rows) []uint32 { return r.Status })

	// Vehicles by name, so that their rank sorts.
	order := make([]uint32, len(f.vehicles))
	for i := range order {
		order[i] = uint32(i) //nolint:gosec // bounded by memory
	}
	slices.SortFunc(order, func(a, b uint32) int { return strings.Compare(f.vehicles[a], f.vehicles[b]) })
	rank := make([]uint32, len(order))
	sorted := make([]string, len(order))
	for i, id := range order {
		rank[id], sorted[i] = uint32(i), f.vehicles[id] //nolint:gosec // bounded by memory
	}
	f.vehicles = sorted
	for i, id := range f.vehicle {
		f.vehicle[i] = rank[id]
	}
	return f
}

func concat[T any](n int, rows []Rows, of func(*Rows) []T) []T {
	out := make([]T, 0, n)
	for i := range rows {
		out = append(out, of(&rows[i])...)
	}
	return out
}

// number gives the texts of a column numbers that hold for the whole batch: parts may have different dictionaries.
func (f *flat) number(texts *[]string, of func(*Rows) []uint32) []uint32 {
	const unseen = math.MaxUint32
	out := make([]uint32, 0, f.n)
	all := map[string]uint32{}
	for i, t := range *texts {
		all[t] = uint32(i) //nolint:gosec // one at most
	}
	var local []uint32
	for p := range f.rows {
		names := f.rows[p].Names
		if p == 0 || !sameNames(names, f.rows[p-1].Names) {
			local = local[:0]
		}
		for len(local) < len(names) {
			local = append(local, unseen)
		}
		for _, id := range of(&f.rows[p]) {
			n := local[id]
			if n == unseen {
				var ok bool
				if n, ok = all[names[id]]; !ok {
					n = uint32(len(*texts)) //nolint:gosec // bounded by memory
					all[names[id]] = n
					*texts = append(*texts, names[id])
				}
				local[id] = n
			}
			out = append(out, n)
		}
	}
	return out
}

// sameNames tells whether one list is the other, longer by then: the parts of a lane mostly share a dictionary.
func sameNames(a, b []string) bool {
	n := min(len(a), len(b))
	return n > 0 && &a[n-1] == &b[n-1] || n > 1 && slices.Equal(a[:n], b[:n])
}

// A dayRows is what a batch holds of one event day, sorted by vehicle and event time.
type dayRows struct {
	day  int32
	rows []uint32
}

// byDay splits a batch into event days and sorts each by (vehicle, event time, place in the log).
//
// Sorting is counting: rows are dealt to their vehicle in the order of the log, and within a vehicle that is nearly always
// the order of time already.
func (f *flat) byDay() []dayRows {
	rows := map[int32][]uint32{}
	for i := 0; i < f.n; {
		day := Day(f.event[i])
		list := rows[day]
		for ; i < f.n && Day(f.event[i]) == day; i++ {
			list = append(list, uint32(i)) //nolint:gosec // bounded by memory
		}
		rows[day] = list
	}
	out := make([]dayRows, 0, len(rows))
	starts := make([]int, len(f.vehicles)+1)
	for _, day := range slices.Sorted(maps.Keys(rows)) {
		list := rows[day]
		clear(starts)
		for _, i := range list {
			starts[f.vehicle[i]+1]++
		}
		for v := range f.vehicles {
			starts[v+1] += starts[v]
		}
		sorted := make([]uint32, len(list))
		next := slices.Clone(starts)
		for _, i := range list {
			v := f.vehicle[i]
			sorted[next[v]] = i
			next[v]++
		}
		byTime := func(a, b uint32) int { return cmp.Compare(f.event[a], f.event[b]) }
		for v := range f.vehicles {
			if one := sorted[starts[v]:starts[v+1]]; !slices.IsSortedFunc(one, byTime) {
				slices.SortStableFunc(one, byTime)
			}
		}
		out = append(out, dayRows{day: day, rows: sorted})
	}
	return out
}

// object is the manifest row of one day, but for its name and size.
func (f *flat) object(d dayRows) *File {
	first, last := d.rows[0], d.rows[len(d.rows)-1]
	o := &File{
		Date: dateOf(d.day), Rows: int64(len(d.rows)), Schema: SchemaVersion,
		MinVehicle: f.vehicles[f.vehicle[first]], MaxVehicle: f.vehicles[f.vehicle[last]],
		MinTime: f.event[first], MaxTime: f.event[first],
	}
	for _, i := range d.rows {
		o.MinTime, o.MaxTime = min(o.MinTime, f.event[i]), max(o.MaxTime, f.event[i])
	}
	return o
}

// A writer writes objects, one at a time; it keeps its buffers between them.
type writer struct {
	s    *schema
	cat  *telemetry.Catalog
	w    *parquet.GenericWriter[any] // of columns: rows never pass through it
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
		w.w = parquet.NewGenericWriter[any](w.buf, w.s.options()...)
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
func (w *writer) write(ctx context.Context, fs vfs.FS, path string, f *flat, day dayRows) (size int64, err error) {
	file, err := w.create(fs, path)
	if err != nil {
		return 0, err
	}
	for rows := day.rows; len(rows) > 0; {
		n := min(len(rows), rowGroupRows)
		if err = w.rowGroup(ctx, f, rows[:n]); err != nil {
			break
		}
		rows = rows[n:]
	}
	if err != nil {
		_ = file.Close() // the write error is what matters; the file will be removed
		w.w = nil
		return 0, err
	}
	return w.finish(file)
}

const strip = 2048

// rowGroup writes column by column, in strips short enough to stay in the cache.
func (w *writer) rowGroup(ctx context.Context, f *flat, rows []uint32) error {
	cols := w.w.ColumnWriters()
	if w.vals == nil {
		w.vals = make([]parquet.Value, strip)
	}
	for c := range columns {
		if err := ctx.Err(); err != nil {
			return err
		}
		column := w.column(c, f)
		for at := 0; at < len(rows); at += strip {
			if _, err := cols[c].WriteRowValues(column(rows[at:min(at+strip, len(rows))])); err != nil {
				return fmt.Errorf("column %s: %w", w.s.names[min(c, len(w.s.names)-1)], err)
			}
		}
	}
	return w.w.Flush()
}

// column returns the function that makes the values of a column for up to a strip of rows; they are valid until its next call.
// Values need no levels but those of optional columns that are present: the others are zero.
func (w *writer) column(c int, f *flat) func(rows []uint32) []parquet.Value {
	switch {
	case c == colVehicle:
		return w.each(func(i uint32) parquet.Value { return textValue(f.vehicles[f.vehicle[i]]) })
	case c == colEvent:
		return w.each(func(i uint32) parquet.Value { return parquet.Int64Value(f.event[i]) })
	case c == colArrival:
		col := concat(f.n, f.rows, func(r *Rows) []int64 { return r.Arrival })
		return w.each(func(i uint32) parquet.Value { return parquet.Int64Value(col[i]) })
	case c == colLat:
		return w.place(f, func(r *Rows) []float64 { return r.Lat })
	case c == colLon:
		return w.place(f, func(r *Rows) []float64 { return r.Lon })
	case c < colStatus:
		return w.signal(f, c-colSignal)
	case c == colStatus:
		return w.each(func(i uint32) parquet.Value {
			if f.status[i] == 0 {
				return parquet.Value{}
			}
			return textValue(f.statuses[f.status[i]]).Level(0, 1, c)
		})
	case c == colFlags:
		return w.each(func(i uint32) parquet.Value { return parquet.Int32Value(int32(f.flags[i])) }) //nolint:gosec // 7 bits
	default:
		return w.others(f, c)
	}
}

func (w *writer) each(value func(uint32) parquet.Value) func([]uint32) []parquet.Value {
	return func(rows []uint32) []parquet.Value {
		vals := w.vals[:len(rows)]
		for k, i := range rows {
			vals[k] = value(i)
		}
		return vals
	}
}

func (w *writer) place(f *flat, of func(*Rows) []float64) func([]uint32) []parquet.Value {
	col := concat(f.n, f.rows, of)
	return func(rows []uint32) []parquet.Value {
		vals := w.vals[:len(rows)]
		for k, i := range rows {
			if f.flags[i]&telemetry.FlagNoPosition != 0 {
				vals[k] = parquet.Value{}
				continue
			}
			vals[k] = parquet.DoubleValue(col[i])
			vals[k].SetDefinitionLevel(1)
		}
		return vals
	}
}

func (w *writer) signal(f *flat, s int) func([]uint32) []parquet.Value {
	col, any := make([]float64, f.n), false
	for p := range f.rows {
		if f.rows[p].Signal[s] != nil {
			copy(col[f.base[p]:], f.rows[p].Signal[s])
			any = true
		}
	}
	if !any {
		clear(w.vals)
		return func(rows []uint32) []parquet.Value { return w.vals[:len(rows)] }
	}
	return func(rows []uint32) []parquet.Value {
		vals := w.vals[:len(rows)]
		for k, i := range rows {
			if f.has[i]&(1<<s) == 0 {
				vals[k] = parquet.Value{}
				continue
			}
			vals[k] = parquet.DoubleValue(col[i])
			vals[k].SetDefinitionLevel(1)
		}
		return vals
	}
}

func (w *writer) others(f *flat, c int) func([]uint32) []parquet.Value {
	if !slices.ContainsFunc(f.rows, func(r Rows) bool { return r.HasOthers() }) {
		clear(w.vals)
		return func(rows []uint32) []parquet.Value { return w.vals[:len(rows)] }
	}
	var vals []parquet.Value
	return func(rows []uint32) []parquet.Value {
		vals = vals[:0]
		for _, i := range rows {
			p, found := slices.BinarySearch(f.base, int(i))
			if !found {
				p--
			}
			others := f.rows[p].Others(int(i) - f.base[p])
			if len(others) == 0 {
				vals = append(vals, parquet.Value{}.Level(0, mapNull, c))
			}
			for k, o := range others {
				v := parquet.DoubleValue(o.Value)
				if c == colKey {
					v = textValue(strings.ToValidUTF8(w.cat.Def(o.ID).Name, "\uFFFD"))
				}
				vals = append(vals, v.Level(min(k, 1), mapPresent, c))
			}
		}
		return vals
	}
}

// textValue borrows s: column buffers copy what they are given.
func textValue(s string) parquet.Value {
	return parquet.ByteArrayValue(unsafe.Slice(unsafe.StringData(s), len(s)))
}
