package broker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/milepost/milepost/state"
)

// A journal writes what everybody changes, in order, many changes to one transaction. Callers go on at once and hear by ticket when
// their change is on disk.
//
// Writes are idempotent, so a batch that the full disk refused, and that may yet have happened, is simply written again.
type journal struct {
	store state.Store
	log   *slog.Logger
	limit int64

	done   atomic.Uint64         // every ticket up to here is durable
	failed atomic.Pointer[error] // why nothing will be written any more
	size   atomic.Int64          // bytes that wait, those being written included
	wake   chan struct{}
	stop   chan struct{}
	ended  chan struct{} // closed when run has returned

	// cut is held shared by whoever needs several changes in one batch, and by run when it ends a batch.
	cut sync.RWMutex

	mu      sync.Mutex // guards all below; taken after cut
	buf     []byte     // operations of the open batch
	open    Ticket     // its ticket
	hurry   bool       // somebody waits for it
	waiters []waiter
}

type waiter struct {
	t Ticket
	f func(error)
}

const (
	opSet = iota
	opDelete
	opDeletePrefix
)

const (
	lazyEvery = 100 * time.Millisecond // what nobody waits for is written this often
	fullRetry = 200 * time.Millisecond
)

func newJournal(store state.Store, limit int64, log *slog.Logger) *journal {
	j := &journal{
		store: store, log: log, limit: limit, open: 1,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{}),
	}
	go j.run() // close waits
	return j
}

// full tells that the disk is too far behind for more.
func (j *journal) full() bool { return j.size.Load() > j.limit }

func (j *journal) err() error {
	if p := j.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// set and remove return the ticket of the change. Unless it is lazy, it is written without delay.
func (j *journal) set(key, value []byte, lazy bool) Ticket { return j.put(opSet, key, value, lazy) }
func (j *journal) remove(key []byte, lazy bool) Ticket     { return j.put(opDelete, key, nil, lazy) }

// removePrefix is always lazy: what it removes is no longer looked at.
func (j *journal) removePrefix(key []byte) { j.put(opDeletePrefix, key, nil, true) }

func (j *journal) put(op byte, key, value []byte, lazy bool) Ticket {
	j.mu.Lock()
	if j.failed.Load() != nil { // nobody will ever write it
		t := j.open
		j.mu.Unlock()
		return t
	}
	n := len(j.buf)
	j.buf = append(j.buf, op)
	j.buf = binary.AppendUvarint(j.buf, uint64(len(key)))
	j.buf = append(j.buf, key...)
	j.buf = binary.AppendUvarint(j.buf, uint64(len(value)))
	j.buf = append(j.buf, value...)
	j.size.Add(int64(len(j.buf) - n))
	t := j.open
	rouse := !lazy && !j.hurry
	j.hurry = j.hurry || !lazy
	j.mu.Unlock()
	if rouse {
		j.rouse()
	}
	return t
}

func (j *journal) rouse() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

func (j *journal) durable(t Ticket) bool { return uint64(t) <= j.done.Load() }

// after calls f when t is durable or never will be.
func (j *journal) after(t Ticket, f func(error)) {
	if j.durable(t) {
		f(nil)
		return
	}
	j.mu.Lock()
	err := j.err()
	if err == nil && !j.durable(t) {
		j.waiters = append(j.waiters, waiter{t, f})
		j.hurry = true
		j.mu.Unlock()
		j.rouse()
		return
	}
	j.mu.Unlock()
	if j.durable(t) {
		err = nil
	}
	f(err)
}

func (j *journal) run() {
	defer close(j.ended)
	tick := time.NewTicker(lazyEvery)
	defer tick.Stop()
	var spare []byte
	for last := false; !last; {
		select {
		case <-j.wake:
		case <-tick.C:
		case <-j.stop:
			last = true
		}
		batch, t, some := j.take(spare)
		if !some {
			continue
		}
		err := j.write(batch)
		j.size.Add(-int64(len(batch)))
		if spare = batch; cap(spare) > 1<<20 {
			spare = nil
		}
		j.settle(t, err)
		if err != nil {
			return
		}
	}
}

// take ends the open batch and begins another in spare.
func (j *journal) take(spare []byte) (batch []byte, t Ticket, some bool) {
	j.cut.Lock()
	defer j.cut.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.hurry = false
	if len(j.buf) == 0 && len(j.waiters) == 0 {
		return nil, 0, false
	}
	batch, t = j.buf, j.open
	j.buf, j.open = spare[:0], t+1
	return batch, t, true
}

// settle tells everybody who waits for t or an earlier ticket, or, after an error, everybody.
func (j *journal) settle(t Ticket, err error) {
	j.mu.Lock()
	if err == nil {
		j.done.Store(uint64(t))
	} else {
		j.failed.Store(&err)
	}
	var told []waiter
	kept := j.waiters[:0]
	for _, w := range j.waiters {
		if err != nil || w.t <= t {
			told = append(told, w)
		} else {
			kept = append(kept, w)
		}
	}
	clear(j.waiters[len(kept):])
	j.waiters = kept
	j.mu.Unlock()
	for _, w := range told {
		w.f(err)
	}
}

func (j *journal) write(batch []byte) error {
	if len(batch) == 0 {
		return nil
	}
	for said := false; ; {
		err := j.store.Update(context.Background(), func(tx state.Tx) error { return replay(batch, tx) })
		if !errors.Is(err, state.ErrFull) {
			if err != nil {
				j.log.Error("mqtt sessions are not stored any more", "error", err)
				return fmt.Errorf("store mqtt sessions: %w", err)
			}
			if said {
				j.log.Info("mqtt sessions are stored again")
			}
			return nil
		}
		if !said {
			said = true
			j.log.Warn("mqtt sessions wait for room on the disk", "error", err)
		}
		select {
		case <-time.After(fullRetry):
		case <-j.stop:
			return fmt.Errorf("store mqtt sessions: %w", err)
		}
	}
}

func replay(batch []byte, tx state.Tx) error {
	next := func() []byte {
		n, w := binary.Uvarint(batch)
		v := batch[w : w+int(n)]
		batch = batch[w+int(n):]
		return v
	}
	for len(batch) > 0 {
		op := batch[0]
		batch = batch[1:]
		key := next()
		value := next()
		var err error
		switch op {
		case opSet:
			err = tx.Set(key, value)
		case opDelete:
			err = tx.Delete(key)
		case opDeletePrefix:
			err = tx.DeleteRange(key, state.PrefixEnd(key))
		default:
			panic("broker: bug: unknown operation in the journal")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// close writes what waits and ends run. Nothing may be put any more.
func (j *journal) close() error {
	close(j.stop)
	<-j.ended
	err := j.err()
	j.settle(0, ErrClosed)
	return err
}
