package process

import (
	"context"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// Output opens the output to a stream for functions that are no handlers, and returns what makes the effect that appends records to
// it, once, after the step that emits it. The same id must stand for the same records (P4). The outbox runs already.
func (o *Outbox) Output(ctx context.Context, name string) (func(id string, recs []stream.Record) state.Effect, error) {
	u, err := o.open(ctx, name)
	if err != nil {
		return nil, err
	}
	return u.emit, nil
}
