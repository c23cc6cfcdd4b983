package process

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// A Target is where Reset moves a function.
type Target struct {
	Start Start           // Oldest, Latest or AtTime, in every shard
	Time  time.Time       // for AtTime
	Shard stream.ShardID  // if set, this shard alone goes to Pos, and Start is not looked at
	Pos   stream.Position // the last record that counts as processed; "" precedes all
}

// Reset moves the checkpoints of a function that does not run: of cfg it uses Log and Store. What the function keeps there beside
// them, open windows and overflow that was put off, is dropped, as the records come again or are passed over on purpose. A
// function that runs after all is fenced: it stops on the shards that were moved. Reset may be repeated after an error.
func Reset(ctx context.Context, cfg Config, name string, to Target) error {
	if err := reset(ctx, cfg, name, to); err != nil {
		return fmt.Errorf("reset function %s: %w", name, err)
	}
	return nil
}

func reset(ctx context.Context, cfg Config, name string, to Target) error {
	if name == "" || cfg.Log == nil || cfg.Store == nil {
		return errors.New("it needs a name, a log and a store")
	}
	switch {
	case to.Shard != "":
	case to.Start == AtTime && to.Time.IsZero():
		return fmt.Errorf("start %s needs a time", AtTime)
	case to.Start != Oldest && to.Start != Latest && to.Start != AtTime:
		return fmt.Errorf("start %q: use %s, %s or %s", to.Start, Oldest, Latest, AtTime)
	}
	shards, err := cfg.Log.Shards(ctx)
	if err != nil {
		return fmt.Errorf("list shards: %w", err)
	}
	k := keeper{cfg.Store, name}
	seen := false
	for _, s := range shards {
		if to.Shard != "" && s.ID != to.Shard {
			continue
		}
		seen = true
		var at stream.Position
		switch {
		case to.Shard != "":
			at = to.Pos
		case to.Start == Latest:
			at, err = tipOf(ctx, cfg.Log, s.ID)
		case to.Start == AtTime:
			at, err = cfg.Log.Seek(ctx, s.ID, to.Time)
		}
		if err != nil {
			return fmt.Errorf("find position in %s: %w", s.ID, err)
		}
		if err := k.move(ctx, s.ID, at); err != nil {
			return fmt.Errorf("move %s: %w", s.ID, err)
		}
	}
	if !seen && to.Shard != "" {
		return fmt.Errorf("%s: %w", to.Shard, stream.ErrNoShard)
	}
	if to.Shard != "" {
		return nil // as far as the other shards go, it may never have run
	}
	return cfg.Store.Update(ctx, func(tx state.Tx) error { return tx.Set(k.startedKey(), []byte("1")) })
}

// Forget deletes what a function that does not run has in the store, so that one of its name begins as if there had been none: of
// cfg it uses Store. Dead letters and output that it has asked for are carried out all the same. Forget may be repeated after an error.
func Forget(ctx context.Context, cfg Config, name string) error {
	if name == "" || cfg.Store == nil {
		return fmt.Errorf("forget function %q: it needs a name and a store", name)
	}
	k := keeper{cfg.Store, name}
	shards, err := k.shards(ctx)
	for _, id := range shards {
		if err == nil {
			err = k.move(ctx, id, "")
		}
	}
	if err == nil {
		err = cfg.Store.Update(ctx, func(tx state.Tx) error {
			prefix := k.lanesKey("")
			return errors.Join(tx.Delete(k.startedKey()), tx.DeleteRange(prefix, state.PrefixEnd(prefix)))
		})
	}
	if err != nil {
		return fmt.Errorf("forget function %s: %w", name, err)
	}
	return nil
}

// A keeper knows where a function's own things are in the store.
//
//	startedKey            "1" once it has its first checkpoints
//	lanesKey              with how many lanes a shard is being processed
//	lanesKey 0 window …   the open tumbling window of a lane
//	lanesKey 0 batch …    what the next invocation of a lane must hold, with Options.StableBatches
//	lanesKey 0 spill      what overflow has put off
type keeper struct {
	store state.Store
	name  string
}

func (k keeper) startedKey() []byte { return []byte(ownKeys + k.name) }

func (k keeper) lanesKey(id stream.ShardID) []byte {
	return []byte(ownKeys + k.name + "\x00" + string(id))
}

func (k keeper) shardKey(id stream.ShardID, what string, slot int) []byte {
	return []byte(ownKeys + k.name + "\x00" + string(id) + "\x00" + what + "\x00" + strconv.Itoa(slot))
}

// shards returns the shards that the function has something of.
func (k keeper) shards(ctx context.Context) (ids []stream.ShardID, err error) {
	prefix := k.lanesKey("")
	err = k.store.View(ctx, func(r state.Reader) error {
		return r.Scan(prefix, state.PrefixEnd(prefix), func(key, _ []byte) error {
			id, _, _ := strings.Cut(string(key[len(prefix):]), "\x00")
			if n := len(ids); n == 0 || ids[n-1] != stream.ShardID(id) {
				ids = append(ids, stream.ShardID(id))
			}
			return nil
		})
	})
	return ids, err
}

// move moves all lanes of a shard to a position and drops what is kept beside their checkpoints.
func (k keeper) move(ctx context.Context, id stream.ShardID, at stream.Position) error {
	lanes := 1
	err := k.store.View(ctx, func(r state.Reader) error {
		v, err := r.Get(k.lanesKey(id))
		if err == nil && len(v) > 0 {
			lanes, err = strconv.Atoi(string(v))
		}
		return err
	})
	if err != nil {
		return err
	}
	beside := append(k.lanesKey(id), 0)
	slots := []int{spillSlot} // first, so that nothing is put off twice when it is repeated
	for n := range lanes {
		slots = append(slots, n)
	}
	for _, slot := range slots {
		was, err := k.store.Checkpoint(ctx, k.name, id, slot)
		if err != nil {
			return err
		}
		step := state.Step{Func: k.name, Shard: id, Lane: slot, From: was, To: at}
		if slot == spillSlot {
			step.To = ""
		}
		if err := k.store.Advance(ctx, step, func(tx state.Tx) error {
			tx.Sync()
			if slot == spillSlot {
				return tx.DeleteRange(beside, state.PrefixEnd(beside))
			}
			return tx.Set(k.lanesKey(id), []byte(strconv.Itoa(lanes)))
		}); err != nil {
			return err
		}
	}
	return nil
}
