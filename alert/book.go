package alert

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/milepost/milepost/state"
)

// Errors that callers branch on.
var (
	// ErrNotFound: there is no such alert, or retention has removed it.
	ErrNotFound = errors.New("no such alert")
	// ErrResolved: an alert that is over cannot be acknowledged.
	ErrResolved = errors.New("alert is resolved already")
)

// MaxList is the most alerts that one List returns.
const MaxList = 1000

// A Book is the alerts as people see them: it reads what lanes wrote and adds who acknowledged. It is safe for concurrent use.
type Book struct {
	store state.Store

	mu   sync.Mutex // guards subs
	subs map[chan struct{}]bool
}

// NewBook returns the book of a store.
func NewBook(store state.Store) *Book {
	return &Book{store: store, subs: map[chan struct{}]bool{}}
}

// A Filter selects alerts. Zero fields select all.
type Filter struct {
	State    State
	Vehicle  string
	Rule     string
	Severity string
	Since    int64  // first event time at or after, Unix ms
	Until    int64  // first event time before, Unix ms
	After    string // ID of the last alert of the page before
	Limit    int    // default 100, at most MaxList
}

func (f *Filter) match(a *Alert) bool {
	return (f.State == "" || f.State == a.State) && (f.Vehicle == "" || f.Vehicle == a.Vehicle) && (f.Rule == "" || f.Rule == a.Rule) &&
		(f.Severity == "" || f.Severity == a.Severity) && (f.Since == 0 || a.Since >= f.Since) && (f.Until == 0 || a.Since < f.Until)
}

// List returns alerts, newest first by the event time at which they began.
func (b *Book) List(ctx context.Context, f Filter) ([]Alert, error) {
	if f.Limit <= 0 {
		f.Limit = 100
	}
	f.Limit = min(f.Limit, MaxList)
	out := []Alert{}
	err := b.store.View(ctx, func(r state.Reader) error {
		var after *Alert
		if f.After != "" {
			a, ok, err := load(r, f.After)
			if err != nil {
				return err
			}
			if !ok {
				return fmt.Errorf("%w: after %s: begin again with the first page", ErrNotFound, f.After)
			}
			after = &a
		}
		var err error
		if f.State == Firing {
			out, err = listOpen(r, f, after)
			return err
		}
		out, err = listHistory(ctx, r, f, after)
		return err
	})
	return out, err
}

// listOpen reads the open index: few alerts are open, however long the history.
func listOpen(r state.Reader, f Filter, after *Alert) ([]Alert, error) {
	out := []Alert{}
	from := []byte(openPrefix)
	if f.Vehicle != "" {
		from = appendVehicle(from, f.Vehicle)
	}
	err := r.Scan(from, state.PrefixEnd(from), func(_, id []byte) error {
		a, ok, err := loadAcked(r, string(id))
		if err == nil && ok && f.match(&a) && (after == nil || newer(after, &a) < 0) {
			out = append(out, a)
		}
		return err
	})
	slices.SortFunc(out, func(a, b Alert) int { return newer(&a, &b) })
	return out[:min(len(out), f.Limit)], err
}

// newer orders alerts as history keys do.
func newer(a, b *Alert) int {
	return slices.Compare(timeKey(a.Since, a.ID), timeKey(b.Since, b.ID))
}

func listHistory(ctx context.Context, r state.Reader, f Filter, after *Alert) ([]Alert, error) {
	out := []Alert{}
	prefix := []byte(timePrefix)
	if f.Vehicle != "" {
		prefix = appendVehicle([]byte(vehiclePrefix), f.Vehicle)
	}
	from, to := prefix, state.PrefixEnd(prefix)
	if f.Until != 0 {
		from = appendWhen(slices.Clone(prefix), f.Until-1)
	}
	if f.Since != 0 {
		to = appendWhen(slices.Clone(prefix), f.Since-1)
	}
	if after != nil {
		key := append(appendWhen(slices.Clone(prefix), after.Since), after.ID...)
		if slices.Compare(key, from) >= 0 {
			from = append(key, 0)
		}
	}
	n := 0
	err := r.Scan(from, to, func(k, _ []byte) error {
		if n++; n%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		a, ok, err := loadAcked(r, string(k[len(prefix)+8:]))
		if err != nil {
			return err
		}
		if ok && f.match(&a) {
			out = append(out, a)
		}
		if len(out) == f.Limit {
			return state.ErrStop
		}
		return nil
	})
	return out, err
}

// Get returns one alert.
func (b *Book) Get(ctx context.Context, id string) (Alert, error) {
	var a Alert
	err := b.store.View(ctx, func(r state.Reader) error {
		var ok bool
		var err error
		if a, ok, err = loadAcked(r, id); err == nil && !ok {
			err = ErrNotFound
		}
		return err
	})
	return a, err
}

// Ack records that someone looks after a firing alert. The first one stays; a repetition changes nothing. Nobody is notified:
// whoever acknowledges knows, and the others see it in the list. It is on disk when Ack returns.
func (b *Book) Ack(ctx context.Context, id, by string, at time.Time) (Alert, error) {
	if by == "" || len(by) > 256 {
		return Alert{}, errors.New("acknowledge: say who, in at most 256 bytes")
	}
	var a Alert
	err := b.store.Update(ctx, func(tx state.Tx) error {
		var ok bool
		var err error
		if a, ok, err = loadAcked(tx, id); err != nil {
			return err
		}
		switch {
		case !ok:
			return ErrNotFound
		case a.State != Firing:
			return ErrResolved
		case a.AckedAt != 0:
			return nil
		}
		a.AckedAt, a.AckedBy = at.UnixMilli(), by
		data, err := json.Marshal(ack{At: a.AckedAt, By: by, Reopened: a.Reopened})
		if err != nil {
			return err
		}
		return tx.Set(ackKey(id), data)
	})
	if err != nil {
		return Alert{}, err
	}
	b.Touch()
	return a, nil
}

// Counts are the open alerts.
type Counts struct {
	Firing   int            `json:"firing"`
	Acked    int            `json:"acked"`    // of those firing
	Late     int            `json:"late"`     // of those firing: found in late data, nobody was told
	Severity map[string]int `json:"severity"` // of those firing
}

// Counts counts the open alerts.
func (b *Book) Counts(ctx context.Context) (Counts, error) {
	c := Counts{Severity: map[string]int{}}
	err := b.store.View(ctx, func(r state.Reader) error {
		from := []byte(openPrefix)
		return r.Scan(from, state.PrefixEnd(from), func(_, id []byte) error {
			a, ok, err := loadAcked(r, string(id))
			if err != nil || !ok {
				return err
			}
			c.Firing++
			c.Severity[a.Severity]++
			if a.AckedAt != 0 {
				c.Acked++
			}
			if a.Late {
				c.Late++
			}
			return nil
		})
	})
	return c, err
}

// Prune removes alerts that were resolved before a moment, at most batch of them, and returns how many; call it until it
// returns 0. Open alerts stay however old they are. before must lie further back than every rule's Reopen: lanes still write
// younger rows.
func (b *Book) Prune(ctx context.Context, before time.Time, batch int) (int, error) {
	var gone []Alert
	limit := before.UnixMilli()
	err := b.store.View(ctx, func(r state.Reader) error {
		from := appendWhen([]byte(timePrefix), limit) // what began before cannot have ended earlier
		return r.Scan(from, state.PrefixEnd([]byte(timePrefix)), func(k, _ []byte) error {
			a, ok, err := load(r, string(k[len(timePrefix)+8:]))
			if err != nil {
				return err
			}
			if !ok {
				a = Alert{ID: string(k[len(timePrefix)+8:]), Since: whenOf(k[len(timePrefix):])}
			} else if a.State != Resolved || a.ResolvedAt >= limit {
				return nil
			}
			if gone = append(gone, a); len(gone) >= batch {
				return state.ErrStop
			}
			return nil
		})
	})
	if err != nil || len(gone) == 0 {
		return 0, err
	}
	err = b.store.Update(ctx, func(tx state.Tx) error {
		for i := range gone {
			a := &gone[i]
			for _, k := range [][]byte{rowKey(a.ID), ackKey(a.ID), timeKey(a.Since, a.ID), vehicleKey(a.Vehicle, a.Since, a.ID)} {
				if err := tx.Delete(k); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	b.Touch()
	return len(gone), nil
}

func whenOf(k []byte) int64 {
	return int64(^binary.BigEndian.Uint64(k) ^ 1<<63) //nolint:gosec // bits, not a quantity
}

// Subscribe returns a channel that receives after alerts changed, and a function that ends the subscription. Changes that
// come while the last is not yet received become one.
func (b *Book) Subscribe() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subs[c] = true
	return c, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.subs, c)
	}
}

// Touch tells subscribers that alerts changed: lanes call it after a commit that applied transitions. It never waits.
func (b *Book) Touch() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.subs {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}
