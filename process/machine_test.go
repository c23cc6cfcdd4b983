package process_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sort"
	"testing"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/stream/seglog"
)

// The whole machine loses power, log and state at one moment, again and again while records come in. What was acknowledged is in
// the log, and what is in the log has had its effect once.
func TestMachineCrash(t *testing.T) {
	seeds := 4
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { machineCrash(t, uint64(seed)) })
	}
}

func machineCrash(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 3)) //nolint:gosec // reproducible
	fs := vfs.NewCrashable()
	ctx := context.Background()
	var acked []string
	n := 0
	const rounds = 8
	for round := range rounds + 1 {
		logs, err := seglog.Open(seglog.Config{Dir: "log", FS: fs})
		if err != nil {
			t.Fatal(err)
		}
		log, err := logs.Ensure(ctx, "readings", seglog.StreamConfig{Shards: 2})
		if err != nil {
			t.Fatal(err)
		}
		store, err := local.Open(local.Config{Dir: "state", FS: fs, MemBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		r, err := process.New(process.Config{Log: log, StreamName: "readings", Store: store})
		if err == nil {
			err = errors.Join(r.AddFolder(&journalFolder{name: "journal"}, process.Options{Lanes: 1 + round%3}), r.Start())
		}
		if err != nil {
			t.Fatal(err)
		}
		if round < rounds {
			for range 5 + rng.IntN(40) {
				recs := make([]stream.Record, 1+rng.IntN(20))
				for i := range recs {
					recs[i] = stream.Record{Key: fmt.Sprintf("vehicle-%02d", rng.IntN(20)), Data: fmt.Appendf(nil, "%d,", n)}
					n++
				}
				if rng.IntN(10) == 0 {
					recs[0].Data = fmt.Appendf(nil, "%d,!", n) // urgent
					n++
				}
				if err := log.Append(ctx, recs); err != nil {
					t.Fatal(err)
				}
				for i := range recs {
					acked = append(acked, string(recs[i].Data))
				}
			}
			if rng.IntN(2) == 0 {
				if err := r.WaitCaughtUp(ctx); err != nil {
					t.Fatal(err)
				}
			}
			//nolint:gosec // reproducible
			clone := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rand.New(rand.NewPCG(seed, uint64(round)))})
			if err := errors.Join(r.Stop(ctx), store.Close(), logs.Close()); err != nil {
				t.Fatal(err)
			}
			fs = clone
			continue
		}
		if err := r.WaitCaughtUp(ctx); err != nil {
			t.Fatal(err)
		}
		if err := r.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		logged, all := readAll(t, log)
		b := &bench{t: t, store: store}
		want(t, b.values(), logged...)
		for _, a := range acked {
			if !all[a] {
				t.Errorf("acknowledged record %s is not in the log", a)
			}
		}
		if err := errors.Join(store.Close(), logs.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func readAll(t *testing.T, log *seglog.Log) (journal []string, all map[string]bool) {
	t.Helper()
	shards, err := log.Shards(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all = map[string]bool{}
	values := map[string]string{}
	for _, s := range shards {
		tip, err := log.Tip(t.Context(), s.ID)
		if err != nil {
			t.Fatal(err)
		}
		r, err := log.Read(t.Context(), s.ID, "")
		if err != nil {
			t.Fatal(err)
		}
		for at := stream.Position(""); at < tip.Pos; {
			recs, err := r.Next(t.Context(), 100)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, rec := range recs {
				values[string([]byte(rec.Key))] += string(rec.Data)
				all[string(rec.Data)] = true
			}
			at = stream.Position([]byte(recs[len(recs)-1].Pos))
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for k, v := range values {
		journal = append(journal, k+"="+v)
	}
	sort.Strings(journal)
	return journal, all
}
