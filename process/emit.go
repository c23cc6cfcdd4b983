package process

import (
	"context"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// An Output is a stream that a Fold, or a transaction without a checkpoint, puts records out to: the effect that it emits is carried out
// by the outbox, once.
type Output struct{ u *output }

// Output returns the output to a stream. The outbox runs already.
func (o *Outbox) Output(ctx context.Context, name string) (*Output, error) {
	u, err := o.open(ctx, name)
	if err != nil {
		return nil, err
	}
	return &Output{u}, nil
}

// Effect makes the effect that appends records, whose Key and Data count. It is emitted in the transaction at hand, at once: it
// counts as waiting from now on. The same cause has the same id.
func (o *Output) Effect(id string, recs []stream.Record) state.Effect {
	e := o.u.emit(id, recs)
	o.u.added(len(e.Data))
	return e
}

// Wait waits until there is room for more: 64 MiB may be committed and not yet appended.
func (o *Output) Wait(ctx context.Context) error { return o.u.admit(ctx) }
