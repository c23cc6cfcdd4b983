package process

import (
	"fmt"
	"time"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// letter makes the effect that dead-letters a record. The same record has the same ID always (P4).
func (l *lane) letter(rec *stream.Record, reason string) (state.Effect, error) {
	id := fmt.Sprintf("%s/%s/%s", l.f.name, l.shard, rec.Pos)
	d := stream.DeadLetter{
		ID: id, Reason: reason, Source: "function " + l.f.name, Key: rec.Key,
		Stream: l.r.cfg.StreamName, Shard: l.shard, Position: rec.Pos, At: time.Now().UTC(), Data: rec.Data,
	}
	r, err := d.Record()
	if err != nil {
		return state.Effect{}, fmt.Errorf("write dead letter %s: %w", id, err)
	}
	return state.Effect{ID: id, Kind: DeadLetterKind, Data: r.Data}, nil
}

func (l *lane) lettered(n int, last time.Time) {
	l.mu.Lock()
	l.stat.DeadLetters += uint64(n)
	l.last = last
	l.mu.Unlock()
}
