//go:build cgo

package duckdb

/*
#include <stdlib.h>
#include <stdint.h>

void milepost_rows_bind(void *);
void milepost_rows_init(void *);
void milepost_rows_local(void *);
void milepost_rows_fill(void *, void *);
void milepost_rows_free(void *);
typedef void (*milepost_one)(void *);
typedef void (*milepost_two)(void *, void *);
*/
import "C"

import (
	"errors"
	"fmt"
	"runtime/cgo"
	"sync"
	"unsafe"

	bindings "github.com/duckdb/duckdb-go-bindings"

	"github.com/milepost/milepost/query"
)

// rowsFunction is the table function behind every table of ours: its argument names a source of the query that is running.
const rowsFunction = "milepost_rows"

// A source is rows offered to DuckDB for one query. The same source may be scanned several times, even at once.
type source interface {
	columns() []query.Column
	cardinality() uint64
	// open begins a scan of some columns; threads is how many scanners may run at once.
	open(cols []int) (s scan, threads int, err error)
	// close ends what is left of its scans, and waits for them.
	close()
}

// A scan hands out scanners, one for each of DuckDB's threads.
type scan interface{ scanner() scanner }

// A scanner fills one chunk at a time; 0 rows end it.
type scanner interface {
	fill(v []vector) (rows int, err error)
}

// scans are the sources of the queries that run.
type scans struct {
	mu   sync.Mutex
	next int64
	live map[int64]source
}

func newScans() *scans { return &scans{live: map[int64]source{}} }

// number returns a number for the sources of one table on one connection.
func (s *scans) number() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	return s.next
}

func (s *scans) set(id int64, src source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live[id] = src
}

func (s *scans) get(id int64) source {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[id]
}

func (s *scans) remove(id int64) {
	s.mu.Lock()
	src := s.live[id]
	delete(s.live, id)
	s.mu.Unlock()
	if src != nil {
		src.close()
	}
}

// DuckDB keeps a C cell with the handle of our Go value, and gives it back to be freed.
func keep(v any) unsafe.Pointer {
	p := C.malloc(C.size_t(unsafe.Sizeof(cgo.Handle(0))))
	*(*cgo.Handle)(p) = cgo.NewHandle(v)
	return p
}

func kept[T any](p unsafe.Pointer) T { return (*(*cgo.Handle)(p)).Value().(T) } //nolint:errcheck,forcetypeassert // what keep was given

func freePtr() unsafe.Pointer { return unsafe.Pointer(C.milepost_one(C.milepost_rows_free)) }

//export milepost_rows_free
func milepost_rows_free(p unsafe.Pointer) {
	(*(*cgo.Handle)(p)).Delete()
	C.free(p)
}

func registerRows(c bindings.Connection, s *scans) error {
	f := bindings.CreateTableFunction()
	defer bindings.DestroyTableFunction(&f)
	bindings.TableFunctionSetName(f, rowsFunction)
	id := bindings.CreateLogicalType(bindings.TypeBigInt)
	bindings.TableFunctionAddParameter(f, id)
	bindings.DestroyLogicalType(&id)
	bindings.TableFunctionSetExtraInfo(f, keep(s), freePtr())
	bindings.TableFunctionSupportsProjectionPushdown(f, true)
	bindings.TableFunctionSetBind(f, unsafe.Pointer(C.milepost_one(C.milepost_rows_bind)))
	bindings.TableFunctionSetInit(f, unsafe.Pointer(C.milepost_one(C.milepost_rows_init)))
	bindings.TableFunctionSetLocalInit(f, unsafe.Pointer(C.milepost_one(C.milepost_rows_local)))
	bindings.TableFunctionSetFunction(f, unsafe.Pointer(C.milepost_two(C.milepost_rows_fill)))
	if bindings.RegisterTableFunction(c, f) == bindings.StateError {
		return errors.New("register table function")
	}
	return nil
}

//export milepost_rows_bind
func milepost_rows_bind(p unsafe.Pointer) {
	info := bindings.BindInfo{Ptr: p}
	arg := bindings.BindGetParameter(info, 0)
	id := bindings.GetInt64(arg)
	bindings.DestroyValue(&arg)
	src := kept[*scans](bindings.BindGetExtraInfo(info)).get(id)
	if src == nil {
		bindings.BindSetError(info, "there is no such source")
		return
	}
	for _, c := range src.columns() {
		lt, err := logicalType(c.Type)
		if err != nil {
			bindings.BindSetError(info, err.Error())
			return
		}
		bindings.BindAddResultColumn(info, c.Name, lt)
		bindings.DestroyLogicalType(&lt)
	}
	bindings.BindSetCardinality(info, bindings.IdxT(src.cardinality()), false)
	bindings.BindSetBindData(info, keep(src), freePtr())
}

// A begun scan knows which of DuckDB's columns are ours.
type begun struct {
	scan scan
	at   []int // index in DuckDB's chunk of each column
}

//export milepost_rows_init
func milepost_rows_init(p unsafe.Pointer) {
	info := bindings.InitInfo{Ptr: p}
	src := kept[source](bindings.InitGetBindData(info))
	n := len(src.columns())
	b := &begun{}
	var cols []int
	for i := range int(bindings.InitGetColumnCount(info)) { //nolint:gosec // small
		// A count needs no column; DuckDB then asks for a row number, which nobody reads.
		if c := bindings.InitGetColumnIndex(info, bindings.IdxT(i)); c < bindings.IdxT(n) { //nolint:gosec // small
			cols = append(cols, int(c)) //nolint:gosec // < n
			b.at = append(b.at, i)
		}
	}
	s, threads, err := src.open(cols)
	if err != nil {
		bindings.InitSetError(info, err.Error())
		return
	}
	b.scan = s
	bindings.InitSetMaxThreads(info, bindings.IdxT(max(threads, 1))) //nolint:gosec // small
	bindings.InitSetInitData(info, keep(b), freePtr())
}

//export milepost_rows_local
func milepost_rows_local(p unsafe.Pointer) {
	info := bindings.InitInfo{Ptr: p}
	// DuckDB gives a local init no way to the scan's global data; the first fill finds it.
	bindings.InitSetInitData(info, keep(&worker{}), freePtr())
}

type worker struct {
	s scanner
	v []vector
}

//export milepost_rows_fill
func milepost_rows_fill(p, out unsafe.Pointer) {
	info := bindings.FunctionInfo{Ptr: p}
	chunk := bindings.DataChunk{Ptr: out}
	b := kept[*begun](bindings.FunctionGetInitData(info))
	l := kept[*worker](bindings.FunctionGetLocalInitData(info))
	if l.s == nil {
		l.s = b.scan.scanner()
		l.v = make([]vector, len(b.at))
	}
	for i, at := range b.at {
		l.v[i].reset(bindings.DataChunkGetVector(chunk, bindings.IdxT(at))) //nolint:gosec // small
	}
	n, err := l.s.fill(l.v)
	if err != nil {
		bindings.FunctionSetError(info, err.Error())
		n = 0
	}
	bindings.DataChunkSetSize(chunk, bindings.IdxT(n)) //nolint:gosec // at most a vector
}

func logicalType(name string) (bindings.LogicalType, error) {
	simple := map[string]bindings.Type{
		query.Varchar: bindings.TypeVarchar, query.Double: bindings.TypeDouble, query.BigInt: bindings.TypeBigInt,
		query.Integer: bindings.TypeInteger, query.Boolean: bindings.TypeBoolean, query.Timestamp: bindings.TypeTimestampTZ,
		query.Date: bindings.TypeDate,
	}
	if t, ok := simple[name]; ok {
		return bindings.CreateLogicalType(t), nil
	}
	text := bindings.CreateLogicalType(bindings.TypeVarchar)
	defer bindings.DestroyLogicalType(&text)
	switch name {
	case query.List:
		return bindings.CreateListType(text), nil
	case query.Map:
		number := bindings.CreateLogicalType(bindings.TypeDouble)
		defer bindings.DestroyLogicalType(&number)
		return bindings.CreateMapType(text, number), nil
	}
	return bindings.LogicalType{}, fmt.Errorf("column type %q is not one of package query", name)
}

// vectorSize is how many rows a chunk holds.
const vectorSize = 2048

// A vector writes one column of a chunk straight into DuckDB's memory.
type vector struct {
	v     bindings.Vector
	data  unsafe.Pointer
	valid []uint64 // nil until a NULL was written
}

func (v *vector) reset(d bindings.Vector) {
	v.v, v.valid = d, nil
	v.data = bindings.VectorGetData(d)
}

func put[T any](v *vector, row int, x T) {
	*(*T)(unsafe.Add(v.data, uintptr(row)*unsafe.Sizeof(x))) = x //nolint:gosec // row ≥ 0
}

func slice[T any](v *vector, n int) []T { return unsafe.Slice((*T)(v.data), n) }

func (v *vector) null(row int) {
	if v.valid == nil {
		bindings.VectorEnsureValidityWritable(v.v)
		v.valid = unsafe.Slice((*uint64)(bindings.VectorGetValidity(v.v)), vectorSize/64)
	}
	v.valid[row>>6] &^= 1 << (row & 63)
}

// text: DuckDB keeps up to 12 bytes in place; longer ones it copies.
func (v *vector) text(row int, s string) {
	putText(v.v, v.data, row, s)
}

func putText(vec bindings.Vector, data unsafe.Pointer, row int, s string) {
	if len(s) <= 12 {
		cell := (*[16]byte)(unsafe.Add(data, row*16))
		*cell = [16]byte{}
		cell[0] = byte(len(s))
		copy(cell[4:], s)
		return
	}
	bindings.VectorAssignStringElementLen(vec, bindings.IdxT(row), unsafe.Slice(unsafe.StringData(s), len(s))) //nolint:gosec // row ≥ 0
}

// A nested collects the elements of a map or list column of one chunk.
type nested struct {
	keys []string
	vals []float64
}

func (n *nested) reset() { n.keys, n.vals = n.keys[:0], n.vals[:0] }

// entry writes where a row's elements stand: those collected since from.
func (v *vector) entry(row, from int, n *nested) {
	put(v, row, entry{uint64(from), uint64(len(n.keys) - from)}) //nolint:gosec // positive
}

// pairs gives a map column its elements.
func (v *vector) pairs(n *nested) {
	bindings.ListVectorReserve(v.v, bindings.IdxT(len(n.keys)))
	bindings.ListVectorSetSize(v.v, bindings.IdxT(len(n.keys)))
	pair := bindings.ListVectorGetChild(v.v)
	key, val := bindings.StructVectorGetChild(pair, 0), bindings.StructVectorGetChild(pair, 1)
	data := bindings.VectorGetData(key)
	for i, k := range n.keys {
		putText(key, data, i, k)
	}
	if len(n.vals) > 0 {
		copy(unsafe.Slice((*float64)(bindings.VectorGetData(val)), len(n.vals)), n.vals)
	}
}

// texts gives a list column its elements.
func (v *vector) texts(n *nested) {
	bindings.ListVectorReserve(v.v, bindings.IdxT(len(n.keys)))
	bindings.ListVectorSetSize(v.v, bindings.IdxT(len(n.keys)))
	child := bindings.ListVectorGetChild(v.v)
	data := bindings.VectorGetData(child)
	for i, k := range n.keys {
		putText(child, data, i, k)
	}
}
