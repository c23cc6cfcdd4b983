package process

import (
	"encoding/json"
	"errors"
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

const letterBatch = 100

// postDeadLetters appends dead letters to their stream, at least once each, until no lane will emit any more and none is left.
func (r *Runner) postDeadLetters() {
	log := r.cfg.Logger
	lo, hi := 100*time.Millisecond, time.Minute
	failing := 0
	drained := false
	for {
		n, changed, err := r.postSome()
		switch {
		case r.work.Err() != nil:
			return
		case err != nil:
			if failing == 0 {
				log.Warn("dead letters wait", "error", err)
			}
			if drained {
				log.Warn("dead letters are left for the next start", "error", err)
				return
			}
			t := time.NewTimer(backoff(lo, hi, failing))
			failing++
			select {
			case <-t.C:
			case <-r.drained:
				drained = true
			}
			t.Stop()
			continue
		case n > 0:
			failing = 0
			continue
		case drained:
			return
		}
		failing = 0
		select {
		case <-changed:
		case <-r.drained:
			drained = true
		}
	}
}

// postSome appends up to letterBatch letters and returns how many are done with.
func (r *Runner) postSome() (done int, changed <-chan struct{}, err error) {
	effects, changed, err := r.cfg.Store.Pending(r.work, DeadLetterKind, letterBatch)
	if err != nil || len(effects) == 0 {
		return 0, changed, err
	}
	recs := make([]stream.Record, len(effects))
	for i, e := range effects {
		var d stream.DeadLetter
		if err := json.Unmarshal(e.Data, &d); err != nil {
			// Not ours to judge: it goes out as it is, under its ID.
			recs[i] = stream.Record{Key: e.ID, Data: e.Data}
			continue
		}
		if d.ID == "" {
			d.ID = e.ID
		}
		if recs[i], err = d.Record(); err != nil {
			return 0, changed, fmt.Errorf("write dead letter %s: %w", e.ID, err)
		}
	}
	err = r.cfg.DeadLetters.Append(r.work, recs)
	var partial *stream.PartialError
	if err != nil && !errors.As(err, &partial) {
		return 0, changed, fmt.Errorf("append dead letters: %w", err)
	}
	var ids []string
	for i := range recs {
		if recs[i].Pos != "" {
			ids = append(ids, effects[i].ID)
		}
	}
	if len(ids) > 0 {
		if err := r.cfg.Store.Done(r.work, DeadLetterKind, ids...); err != nil {
			return 0, changed, fmt.Errorf("mark dead letters done: %w", err)
		}
		r.metrics.posted.Add(float64(len(ids)))
	}
	return len(ids), changed, err
}
