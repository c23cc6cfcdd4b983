package local

import (
	"context"
	"errors"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/milepost/milepost/state"
)

// An outbox numbers effects and knows which of them are not durable yet.
//
// Pebble shows a batch to readers before it is synced. An effect must not be carried out before the step that asked for it is
// durable, so what is being committed is hidden from Pending until its commit has returned.
type outbox struct {
	mu      sync.Mutex // guards all below
	last    uint64     // the highest sequence number given out
	flights map[effectName]*flight
	changed map[string]chan struct{} // by kind; closed and forgotten when an effect is added
}

type effectName struct{ kind, id string }

// A flight is an effect that is being committed, by several steps at once if it is a repetition.
type flight struct {
	seq   uint64
	steps int
}

// begin finds the highest sequence number in use. The stored one may be lower by what concurrent commits wrote in another
// order, but never lower than the last effect that is still there.
func (o *outbox) begin(s *Store) error {
	o.flights, o.changed = map[effectName]*flight{}, map[string]chan struct{}{}
	seq, _, err := s.getSequence([]byte(metaSequence))
	if err != nil {
		return err
	}
	o.last = seq
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{kindEffect}, UpperBound: []byte{kindEffect + 1}})
	if err != nil {
		return err
	}
	for ok := it.First(); ok; {
		kind := kindOf(it.Key())
		if it.SeekLT(effectEnd(kind)) {
			seq, _, _, err := parseEffect(kind, it.Key(), it.Value())
			if err != nil {
				return errors.Join(err, it.Close())
			}
			o.last = max(o.last, seq)
		}
		ok = it.SeekGE(effectEnd(kind))
	}
	return errors.Join(it.Error(), it.Close())
}

func kindOf(key []byte) string {
	for i, c := range key {
		if c == 0 {
			return string(key[1:i])
		}
	}
	return string(key[1:])
}

// place adds t's effects to its batch: at their old places if they are there already, else at the end.
func (o *outbox) place(s *Store, t *tx) ([]effectName, error) {
	if len(t.effects) == 0 {
		return nil, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	sent := make([]effectName, 0, len(t.effects))
	undo := func(err error) error {
		o.landLocked(sent)
		return err
	}
	added := false
	for _, e := range t.effects {
		n := effectName{e.Kind, e.ID}
		fl := o.flights[n]
		if fl == nil {
			seq, ok, err := s.getSequence(effectIDKey(e.Kind, e.ID))
			if err != nil {
				return nil, undo(err)
			}
			if !ok {
				o.last++
				seq, added = o.last, true
			}
			fl = &flight{seq: seq}
			o.flights[n] = fl
		}
		fl.steps++
		sent = append(sent, n)
		if err := t.b.Set(effectKey(e.Kind, fl.seq), effectValue(e.ID, e.Data), nil); err != nil {
			return nil, undo(err)
		}
		if err := t.b.Set(effectIDKey(e.Kind, e.ID), sequenceValue(fl.seq), nil); err != nil {
			return nil, undo(err)
		}
	}
	if added {
		if err := t.b.Set([]byte(metaSequence), sequenceValue(o.last), nil); err != nil {
			return nil, undo(err)
		}
	}
	return sent, nil
}

// settle shows effects whose commit has ended.
func (o *outbox) settle(sent []effectName, err error) {
	if len(sent) == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil {
		return // fenced: whether they are durable is not known, so they stay hidden until the store is opened again
	}
	o.landLocked(sent)
	for _, n := range sent {
		if ch := o.changed[n.kind]; ch != nil {
			close(ch)
			delete(o.changed, n.kind)
		}
	}
}

func (o *outbox) landLocked(sent []effectName) {
	for _, n := range sent {
		fl := o.flights[n]
		if fl.steps--; fl.steps == 0 {
			delete(o.flights, n)
		}
	}
}

// watch returns the channel for a kind.
func (o *outbox) watch(kind string) <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	ch := o.changed[kind]
	if ch == nil {
		ch = make(chan struct{})
		o.changed[kind] = ch
	}
	return ch
}

// hidden returns the places of a kind that are being committed.
func (o *outbox) hidden(kind string) map[uint64]bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	var h map[uint64]bool
	for n, fl := range o.flights {
		if n.kind == kind {
			if h == nil {
				h = map[uint64]bool{}
			}
			h[fl.seq] = true
		}
	}
	return h
}

// Pending implements state.Store.
func (s *Store) Pending(_ context.Context, kind string, most int) ([]state.Effect, <-chan struct{}, error) {
	if err := checkKind(kind); err != nil {
		return nil, nil, err
	}
	if err := s.enter(); err != nil {
		return nil, nil, err
	}
	defer s.leave()
	changed := s.outbox.watch(kind) // before the look, so that nothing falls between
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: effectPrefix(kind), UpperBound: effectEnd(kind)})
	if err != nil {
		return nil, nil, err
	}
	hidden := s.outbox.hidden(kind) // after the look: what it saw was durable, or is in here
	var out []state.Effect
	for ok := it.First(); ok && len(out) < most; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, nil, errors.Join(err, it.Close())
		}
		seq, id, data, err := parseEffect(kind, it.Key(), v)
		if err != nil {
			return nil, nil, errors.Join(err, it.Close())
		}
		if !hidden[seq] {
			out = append(out, state.Effect{ID: string(id), Kind: kind, Data: append([]byte{}, data...)})
		}
	}
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		return nil, nil, err
	}
	return out, changed, nil
}

// Done implements state.Store. It is not synced: after a crash an effect may be pending again, and is carried out at least once.
func (s *Store) Done(_ context.Context, kind string, ids ...string) error {
	if err := checkKind(kind); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if err := s.guard.fenceError(); err != nil {
		return err
	}
	t := newTx(s)
	for _, id := range ids {
		k := effectIDKey(kind, id)
		seq, ok, err := s.getSequence(k)
		if err == nil && ok {
			err = errors.Join(t.b.Delete(k, nil), t.b.Delete(effectKey(kind, seq), nil))
		}
		if err != nil {
			t.discard()
			return err
		}
	}
	return s.commit(t, false, func(error) {})
}
