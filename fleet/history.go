package fleet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/milepost/milepost/ingest/kinesisapi/kpl"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// EachDaily calls fn with the committed figures of every vehicle and day in [from, to) days since 1970, oldest day first, until
// it returns false. They lag behind the log by at most a commit interval.
func (f *Fleet) EachDaily(ctx context.Context, from, to int32, fn func(Daily) bool) error {
	return f.cfg.Store.View(ctx, func(r state.Reader) error {
		return r.Scan(kpiKey(nil, from, ""), kpiKey(nil, to, ""), func(k, b []byte) error {
			d, err := decodeDaily(b)
			if err != nil {
				return fmt.Errorf("daily figures %q: %w", k, err)
			}
			k = k[len(kpiPrefix):]
			day := int32(binary.BigEndian.Uint32(k) ^ 1<<31) //nolint:gosec // orderedDay's inverse
			if !fn(d.publish(day, string(k[4:]))) {
				return state.ErrStop
			}
			return nil
		})
	})
}

// Expire forgets sightings that were written more than seenDays before now, and returns how many chunks went.
func (f *Fleet) Expire(ctx context.Context, now time.Time) (int, error) {
	const perTx = 10_000
	total := 0
	for {
		n := 0
		err := f.cfg.Store.Update(ctx, func(tx state.Tx) error {
			n = 0
			from := []byte(expiryPrefix)
			to := binary.BigEndian.AppendUint32([]byte(expiryPrefix), orderedDay(dayOf(now.UnixMilli())-seenDays))
			var keys [][]byte
			err := tx.Scan(from, to, func(k, _ []byte) error {
				keys = append(keys, append([]byte(nil), k...))
				if len(keys) == perTx {
					return state.ErrStop
				}
				return nil
			})
			if err != nil {
				return err
			}
			for _, k := range keys {
				if err := tx.Delete(k); err != nil {
					return err
				}
				if err := tx.Delete(append([]byte(seenPrefix), k[len(expiryPrefix)+4:]...)); err != nil {
					return err
				}
			}
			n = len(keys)
			return nil
		})
		total += n
		if err != nil || n < perTx {
			return total, err
		}
	}
}

// Rebuild gives Rows what a crash took from memory: the accepted readings of one shard after the archive's position and up to
// the fleet's checkpoint. The fold does not see them again, and whether one was a duplicate cannot be told any more (it has
// been seen: by itself), so each step left the positions that it did not accept. It returns how many rows came back.
func (f *Fleet) Rebuild(ctx context.Context, shard stream.ShardID, after stream.Position) (int, error) {
	upTo, err := f.cfg.Store.Checkpoint(ctx, FuncName, shard, 0)
	if err != nil || upTo <= after {
		return 0, err
	}
	if o, ok := f.cfg.Source.(interface {
		Oldest(ctx context.Context, shard stream.ShardID) (stream.Position, error)
	}); ok {
		oldest, err := o.Oldest(ctx, shard)
		if err != nil {
			return 0, err
		}
		if oldest > after {
			f.cfg.Log.ErrorContext(ctx, "readings left the log before they were archived: lengthen stream.retention", "shard", string(shard), "after", string(after), "oldest", string(oldest))
		}
		if oldest >= upTo {
			return 0, nil
		}
	}
	dropped, err := f.droppedBetween(ctx, shard, after, upTo)
	if err != nil {
		return 0, err
	}
	rd, err := f.cfg.Source.Read(ctx, shard, after)
	if err != nil {
		return 0, err
	}
	defer rd.Close() //nolint:errcheck // a reader writes nothing
	to, err := f.cfg.Rows(ctx, shard)
	if err != nil {
		return 0, err
	}
	d := telemetry.NewDecoder(f.cfg.Catalog)
	n := 0
	for last := after; last < upTo; {
		recs, err := rd.Next(ctx, 4096)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return n, fmt.Errorf("rebuild live tail of %s: %w", shard, err)
		}
		for i := range recs {
			last = clonePos(recs[i].Pos)
			if last > upTo {
				break
			}
			added, err := f.rebuildRecord(ctx, d, &recs[i], to, dropped)
			n += added
			if err != nil {
				return n, fmt.Errorf("rebuild live tail of %s at %s: %w", shard, last, err)
			}
		}
		to.Advance(min(last, upTo)) // lets a large rebuild flush on the way
	}
	to.Advance(upTo)
	return n, nil
}

// rebuildRecord adds what a record holds, less what was not accepted.
func (f *Fleet) rebuildRecord(ctx context.Context, d *telemetry.Decoder, rec *stream.Record, to Rows, dropped map[stream.Position]struct{}) (int, error) {
	var r telemetry.Reading
	n := 0
	add := func(rec *stream.Record, at stream.Position) error {
		if _, no := dropped[at]; no {
			return nil
		}
		if err := decode(d, rec, &r); err != nil {
			return fmt.Errorf("fleet: bug: accepted once and refused now: %w", err)
		}
		n++
		return to.Add(ctx, rec.Pos, &r)
	}
	subs, whole := kpl.Split(nil, rec.Data)
	if !whole {
		err := add(rec, rec.Pos)
		return n, err
	}
	for i := range subs {
		sub := stream.Record{Key: subs[i].Key, Data: subs[i].Data, Pos: rec.Pos, Time: rec.Time}
		if err := add(&sub, subPosition(rec.Pos, i)); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (f *Fleet) droppedBetween(ctx context.Context, shard stream.ShardID, after, upTo stream.Position) (map[stream.Position]struct{}, error) {
	dropped := map[stream.Position]struct{}{}
	err := f.cfg.Store.View(ctx, func(r state.Reader) error {
		from := droppedKey(nil, shard, after)
		to := append(droppedKey(nil, shard, upTo), 0xff)
		return r.Scan(from, to, func(_, v []byte) error {
			return decodeDropped(v, func(p stream.Position) {
				if p > after {
					dropped[p] = struct{}{}
				}
			})
		})
	})
	return dropped, err
}

// ForgetDropped removes what Rebuild needs up to a position, in the step that moves the archive's checkpoint there.
func ForgetDropped(tx state.Tx, shard stream.ShardID, upTo stream.Position) error {
	return tx.DeleteRange(droppedKey(nil, shard, ""), append(droppedKey(nil, shard, upTo), 0))
}
