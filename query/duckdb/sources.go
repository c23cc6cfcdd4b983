//go:build cgo

package duckdb

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/milepost/milepost/archive"
	"github.com/milepost/milepost/query"
	"github.com/milepost/milepost/telemetry"
)

// A tailScan offers the live tail of a snapshot. DuckDB's threads take its parts one after the other.
type tailScan struct {
	a       *archive.Archive
	parts   []archive.Rows
	rows    uint64
	threads int
	cols    []query.Column
}

func newTailScan(a *archive.Archive, s *archive.Snapshot, threads int) *tailScan {
	t := &tailScan{a: a, parts: s.Tail, rows: uint64(s.TailRows()), threads: threads} //nolint:gosec // positive
	t.cols = Readings(a.Columns())
	return t
}

// Readings are the columns of the table readings, by the archive's names for those of an object.
func Readings(names []string) []query.Column {
	cols := make([]query.Column, 0, len(names)+1)
	for i, name := range names {
		typ := query.Double
		switch {
		case i == tailVehicle || name == "status":
			typ = query.Varchar
		case i == tailEvent || i == tailArrival:
			typ = query.Timestamp
		case name == "flags":
			typ = query.Integer
		case name == "signals":
			typ = query.Map
		}
		cols = append(cols, query.Column{Name: name, Type: typ})
	}
	return append(cols, query.Column{Name: "date", Type: query.Date})
}

// Places of columns, as the archive orders them.
const (
	tailVehicle = iota
	tailEvent
	tailArrival
	tailLat
	tailLon
	tailSignal
	tailStatus  = tailSignal + telemetry.WellKnown
	tailFlags   = tailStatus + 1
	tailSignals = tailStatus + 2
	tailDate    = tailStatus + 3
)

func (t *tailScan) columns() []query.Column { return t.cols }
func (t *tailScan) cardinality() uint64     { return t.rows }
func (t *tailScan) close()                  {}

func (t *tailScan) open(cols []int) (scan, int, error) {
	return &tailRun{t: t, cols: cols}, min(t.threads, len(t.parts)), nil
}

type tailRun struct {
	t    *tailScan
	cols []int
	next atomic.Int64
}

func (r *tailRun) scanner() scanner { return &tailScanner{r: r} }

type tailScanner struct {
	r    *tailRun
	part *archive.Rows
	at   int
	n    nested
}

func (s *tailScanner) fill(v []vector) (int, error) {
	for s.part == nil || s.at >= s.part.Len() {
		i := int(s.r.next.Add(1)) - 1
		if i >= len(s.r.t.parts) {
			s.part = nil
			return 0, nil
		}
		s.part, s.at = &s.r.t.parts[i], 0
	}
	n := min(vectorSize, s.part.Len()-s.at)
	for i, c := range s.r.cols {
		s.column(&v[i], c, s.at, s.at+n)
	}
	s.at += n
	return n, nil
}

func (s *tailScanner) column(v *vector, c, lo, hi int) {
	p := s.part
	switch {
	case c == tailVehicle:
		for i, id := range p.Vehicle[lo:hi] {
			v.text(i, p.Names[id])
		}
	case c == tailEvent || c == tailArrival:
		ms := p.Event
		if c == tailArrival {
			ms = p.Arrival
		}
		out := slice[int64](v, hi-lo)
		for i, t := range ms[lo:hi] {
			out[i] = t * 1000
		}
	case c == tailLat || c == tailLon:
		col := p.Lat
		if c == tailLon {
			col = p.Lon
		}
		copy(slice[float64](v, hi-lo), col[lo:hi])
		for i, f := range p.Flags[lo:hi] {
			if f&telemetry.FlagNoPosition != 0 {
				v.null(i)
			}
		}
	case c < tailStatus:
		bit := uint32(1) << (c - tailSignal)
		if col := p.Signal[c-tailSignal]; col != nil {
			copy(slice[float64](v, hi-lo), col[lo:hi])
		}
		for i, has := range p.Has[lo:hi] {
			if has&bit == 0 {
				v.null(i)
			}
		}
	case c == tailStatus:
		for i, id := range p.Status[lo:hi] {
			if id == 0 {
				v.null(i)
			} else {
				v.text(i, p.Names[id])
			}
		}
	case c == tailFlags:
		out := slice[int32](v, hi-lo)
		for i, f := range p.Flags[lo:hi] {
			out[i] = int32(f) //nolint:gosec // 7 bits
		}
	case c == tailSignals:
		s.signals(v, lo, hi)
	case c == tailDate:
		out := slice[int32](v, hi-lo)
		for i, t := range p.Event[lo:hi] {
			out[i] = archive.Day(t)
		}
	}
}

func (s *tailScanner) signals(v *vector, lo, hi int) {
	s.n.reset()
	cat := s.r.t.a.Catalog()
	for i := lo; i < hi; i++ {
		from := len(s.n.keys)
		for _, o := range s.part.Others(i) {
			s.n.keys = append(s.n.keys, strings.ToValidUTF8(cat.Def(o.ID).Name, "\uFFFD"))
			s.n.vals = append(s.n.vals, o.Value)
		}
		v.entry(i-lo, from, &s.n)
		if len(s.n.keys) == from {
			v.null(i - lo)
		}
	}
	v.pairs(&s.n)
}

// A tableScan offers a Table. Each scan has a goroutine that the Table pushes its rows to; it ends with the query, and close
// waits for it.
type tableScan struct {
	t    query.Table
	cols []query.Column
	ctx  context.Context //nolint:containedctx // lives as long as one query
	stop context.CancelFunc
	wait sync.WaitGroup
}

func newTableScan(ctx context.Context, t query.Table) *tableScan {
	ctx, stop := context.WithCancel(ctx)
	return &tableScan{t: t, cols: t.Columns(), ctx: ctx, stop: stop}
}

func (t *tableScan) columns() []query.Column { return t.cols }
func (t *tableScan) cardinality() uint64     { return 10_000 }

func (t *tableScan) close() {
	t.stop()
	t.wait.Wait()
}

// A rowBatch is up to a chunk of rows, row after row.
type rowBatch struct {
	vals []query.Value
	rows int
}

type tableRun struct {
	t     *tableScan
	types []string
	full  chan *rowBatch // of two batches
	free  chan *rowBatch
	err   error // set before full is closed
}

func (t *tableScan) open(cols []int) (scan, int, error) {
	r := &tableRun{t: t, full: make(chan *rowBatch, 2), free: make(chan *rowBatch, 3)}
	for _, c := range cols {
		r.types = append(r.types, t.cols[c].Type)
	}
	for range 3 {
		r.free <- &rowBatch{}
	}
	t.wait.Go(func() { r.produce(slices.Clone(cols)) })
	return r, 1, nil
}

func (r *tableRun) produce(cols []int) {
	defer close(r.full)
	ctx := r.t.ctx
	var b *rowBatch
	take := func() error {
		select {
		case b = <-r.free:
			b.vals, b.rows = b.vals[:0], 0
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if r.err = take(); r.err != nil {
		return
	}
	err := r.t.t.Scan(ctx, cols, func(row []query.Value) error {
		if len(row) != len(cols) {
			return errors.New("a table gave a row of the wrong length")
		}
		for i := range row {
			b.vals = append(b.vals, own(&row[i]))
		}
		if b.rows++; b.rows < vectorSize {
			return nil
		}
		select {
		case r.full <- b:
		case <-ctx.Done():
			return ctx.Err()
		}
		return take()
	})
	if err != nil {
		r.err = err
		return
	}
	select {
	case r.full <- b:
	case <-ctx.Done():
		r.err = ctx.Err()
	}
}

// own copies what a value borrows.
func own(v *query.Value) query.Value {
	switch {
	case v.IsNull():
		return *v
	case v.Keys() != nil:
		keys := slices.Clone(v.Keys())
		for i := range keys {
			keys[i] = strings.Clone(keys[i])
		}
		if v.Floats() != nil {
			return query.Pairs(keys, slices.Clone(v.Floats()))
		}
		return query.Texts(keys)
	case v.Text() != "":
		return query.Text(strings.Clone(v.Text()))
	}
	return *v
}

func (r *tableRun) scanner() scanner { return r }

func (r *tableRun) fill(v []vector) (int, error) {
	b, ok := <-r.full
	if !ok {
		return 0, r.err
	}
	var n nested
	for i, typ := range r.types {
		n.reset()
		for row := range b.rows {
			x := &b.vals[row*len(r.types)+i]
			from := len(n.keys)
			if nest := typ == query.Map || typ == query.List; nest {
				n.keys, n.vals = append(n.keys, x.Keys()...), append(n.vals, x.Floats()...)
				v[i].entry(row, from, &n)
			}
			if x.IsNull() {
				v[i].null(row)
				continue
			}
			switch typ {
			case query.Varchar:
				v[i].text(row, x.Text())
			case query.Double:
				put(&v[i], row, x.Float())
			case query.BigInt:
				put(&v[i], row, x.Int())
			case query.Timestamp:
				put(&v[i], row, x.Int()*1000)
			case query.Integer, query.Date:
				put(&v[i], row, int32(x.Int())) //nolint:gosec // the table's promise
			case query.Boolean:
				put(&v[i], row, byte(x.Int())) //nolint:gosec // 0 or 1
			}
		}
		switch typ {
		case query.Map:
			v[i].pairs(&n)
		case query.List:
			v[i].texts(&n)
		}
	}
	rows := b.rows
	r.free <- b
	return rows, nil
}
