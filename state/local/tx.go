package local

import (
	"bytes"
	"errors"

	"github.com/cockroachdb/pebble/v2"

	"github.com/milepost/milepost/state"
)

var errEnded = errors.New("transaction has ended")

// A tx collects writes in a plain batch, which costs least. The first read that could see one of them turns it into an indexed
// batch; functions that read first and write afterwards never pay for that.
type tx struct {
	s       *Store
	b       *pebble.Batch
	indexed bool
	sync    bool
	ended   bool
	effects []state.Effect
	places  map[effectName]int // where in effects
	buf     []byte             // for keys
	vals    arena
}

var _ state.Tx = (*tx)(nil)

func newTx(s *Store) *tx { return &tx{s: s, b: s.db.NewBatch()} }

// discard releases the batch; a second call does nothing.
func (t *tx) discard() {
	if t.b != nil {
		_ = t.b.Close() // only returns the buffer
		t.b = nil
	}
}

func (t *tx) reader() (pebble.Reader, error) {
	if t.b.Empty() {
		return t.s.db, nil
	}
	if !t.indexed {
		ib := t.s.db.NewIndexedBatch()
		if err := ib.Apply(t.b, nil); err != nil {
			return nil, errors.Join(err, ib.Close())
		}
		t.discard()
		t.b, t.indexed = ib, true
	}
	return t.b, nil
}

// Get sees the transaction's own writes. The value holds until the transaction ends.
func (t *tx) Get(key []byte) ([]byte, error) {
	if t.ended {
		return nil, errEnded
	}
	r, err := t.reader()
	if err != nil {
		return nil, err
	}
	t.buf = append(append(t.buf[:0], kindUser), key...)
	return t.vals.get(r, t.buf)
}

// Scan sees the transaction's own writes up to its beginning.
func (t *tx) Scan(from, to []byte, f func(k, v []byte) error) error {
	if t.ended {
		return errEnded
	}
	r, err := t.reader()
	if err != nil {
		return err
	}
	return scan(r, from, to, f)
}

// Set copies key and value straight into the batch.
func (t *tx) Set(key, value []byte) error {
	if t.ended {
		return errEnded
	}
	op := t.b.SetDeferred(1+len(key), len(value))
	op.Key[0] = kindUser
	copy(op.Key[1:], key)
	copy(op.Value, value)
	return op.Finish()
}

// Delete writes a tombstone, whether there is something to delete or not.
func (t *tx) Delete(key []byte) error {
	if t.ended {
		return errEnded
	}
	op := t.b.DeleteDeferred(1 + len(key))
	op.Key[0] = kindUser
	copy(op.Key[1:], key)
	return op.Finish()
}

// DeleteRange costs one tombstone however much it deletes.
func (t *tx) DeleteRange(from, to []byte) error {
	if t.ended {
		return errEnded
	}
	lo, hi := bounds(from, to)
	if bytes.Compare(lo, hi) >= 0 {
		return nil
	}
	return t.b.DeleteRange(lo, hi, nil)
}

// Emit keeps the last of several effects with one kind and ID, at the first one's place.
func (t *tx) Emit(e state.Effect) error {
	if t.ended {
		return errEnded
	}
	if err := checkKind(e.Kind); err != nil {
		return err
	}
	e.Data = bytes.Clone(e.Data)
	n := effectName{e.Kind, e.ID}
	if i, ok := t.places[n]; ok {
		t.effects[i] = e
		return nil
	}
	if t.places == nil {
		t.places = map[effectName]int{}
	}
	t.places[n] = len(t.effects)
	t.effects = append(t.effects, e)
	return nil
}

// Sync asks for the step to be on disk when Advance returns.
func (t *tx) Sync() { t.sync = true }

// A view reads one snapshot, taken at its first read.
type view struct {
	s    *Store
	snap *pebble.Snapshot
	done bool
	buf  []byte
	vals arena
}

func (v *view) reader() (pebble.Reader, error) {
	if v.done {
		return nil, errEnded
	}
	if v.snap == nil {
		v.snap = v.s.db.NewSnapshot()
	}
	return v.snap, nil
}

// Get returns a value that holds until the view ends.
func (v *view) Get(key []byte) ([]byte, error) {
	r, err := v.reader()
	if err != nil {
		return nil, err
	}
	v.buf = append(append(v.buf[:0], kindUser), key...)
	return v.vals.get(r, v.buf)
}

// Scan sees the same snapshot as every other read of the view.
func (v *view) Scan(from, to []byte, f func(k, v []byte) error) error {
	r, err := v.reader()
	if err != nil {
		return err
	}
	return scan(r, from, to, f)
}

func (v *view) close() {
	v.done = true
	if v.snap != nil {
		_ = v.snap.Close() // never fails on an open store
	}
}

// bounds turns a range of users' keys into one of Pebble's. A nil end is open.
func bounds(from, to []byte) (lo, hi []byte) {
	lo = append([]byte{kindUser}, from...)
	if to == nil {
		return lo, []byte{kindUser + 1}
	}
	return lo, append([]byte{kindUser}, to...)
}

func scan(r pebble.Reader, from, to []byte, f func(k, v []byte) error) error {
	lo, hi := bounds(from, to)
	if bytes.Compare(lo, hi) >= 0 {
		return nil
	}
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err == nil {
			err = f(it.Key()[1:], v)
		}
		if errors.Is(err, state.ErrStop) {
			return it.Close()
		}
		if err != nil {
			return errors.Join(err, it.Close())
		}
	}
	return errors.Join(it.Error(), it.Close())
}

// An arena holds the values that a transaction has read until it ends.
type arena struct{ free []byte }

const (
	arenaFirst = 256
	arenaBlock = 32 << 10
)

func (a *arena) get(r pebble.Reader, key []byte) ([]byte, error) {
	v, c, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(v) > cap(a.free)-len(a.free) {
		a.free = make([]byte, 0, max(arenaFirst, min(arenaBlock, 4*cap(a.free)), len(v)))
	}
	n := len(a.free)
	a.free = append(a.free, v...)
	return a.free[n:len(a.free):len(a.free)], c.Close()
}
