package kinesisapi

import (
	"encoding/base64"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/milepost/milepost/internal/vfs"
)

type listedShard struct {
	ShardId      string
	HashKeyRange struct{ StartingHashKey, EndingHashKey string }
}

func (s listedShard) from() *big.Int {
	n, _ := new(big.Int).SetString(s.HashKeyRange.StartingHashKey, 10)
	return n
}

func (s listedShard) to() *big.Int {
	n, _ := new(big.Int).SetString(s.HashKeyRange.EndingHashKey, 10)
	return n
}

// shards lists a stream's shards by number.
func (td *testDoor) shards(t testing.TB, filter string) []listedShard {
	t.Helper()
	var out struct{ Shards []listedShard }
	td.must(t, "ListShards", `{"StreamName":"s"`+filter+`}`, &out)
	slices.SortFunc(out.Shards, func(a, b listedShard) int { return strings.Compare(a.ShardId, b.ShardId) })
	return out.Shards
}

// TestReshardUnderLoad splits, merges and rescales a stream while producers put. Nothing may be lost or doubled, and who reads
// parents before children must get each key's records in the order of their puts (P2).
func TestReshardUnderLoad(t *testing.T) {
	d := openDoor(t, vfs.NewCrashable(), func(c *Config) { c.Transition = -1 })
	d.must(t, "CreateStream", `{"StreamName":"s","ShardCount":2}`, nil)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)

	const producers, keys = 4, 5
	stop := make(chan struct{})
	puts := make([]int, producers) // rounds that each has put
	var wg sync.WaitGroup
	for p := range producers {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				var recs []string
				for k := range keys {
					data := base64.StdEncoding.EncodeToString([]byte(strconv.Itoa(puts[p])))
					recs = append(recs, fmt.Sprintf(`{"PartitionKey":"p%d-k%d","Data":%q}`, p, k, data))
				}
				status, answer := d.ask(t, "PutRecords", `{"StreamName":"s","Records":[`+strings.Join(recs, ",")+`]}`)
				if status != http.StatusOK || !strings.Contains(answer, `"FailedRecordCount":0`) {
					t.Errorf("%d %s", status, answer)
					return
				}
				puts[p]++
			}
		})
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 12 {
		shards := d.shards(t, `,"ShardFilter":{"Type":"AT_LATEST"}`)
		slices.SortFunc(shards, func(a, b listedShard) int { return a.from().Cmp(b.from()) })
		switch i := rng.IntN(len(shards)); {
		case len(shards) < 3 || rng.IntN(2) == 0:
			middle := new(big.Int).Add(shards[i].from(), shards[i].to())
			middle.Rsh(middle, 1)
			d.must(t, "SplitShard", fmt.Sprintf(`{"StreamName":"s","ShardToSplit":%q,"NewStartingHashKey":"%s"}`, shards[i].ShardId, middle), nil)
		default:
			i = rng.IntN(len(shards) - 1)
			d.must(t, "MergeShards", fmt.Sprintf(`{"StreamName":"s","ShardToMerge":%q,"AdjacentShardToMerge":%q}`, shards[i].ShardId, shards[i+1].ShardId), nil)
		}
		time.Sleep(time.Duration(rng.IntN(4)) * time.Millisecond) // so that puts come between
	}
	close(stop)
	wg.Wait()

	next := map[string]int{}
	for _, sh := range d.shards(t, "") { // by number: parents before their children
		it := d.iterator(t, "s", sh.ShardId, horizon)
		for it != "" {
			got := d.get(t, it, "")
			for _, r := range got.Records {
				n, err := strconv.Atoi(string(r.Data))
				if err != nil || n != next[r.PartitionKey] {
					t.Fatalf("%s: got %q of %s, want %d (seed %d)", sh.ShardId, r.Data, r.PartitionKey, next[r.PartitionKey], seed)
				}
				next[r.PartitionKey]++
			}
			if it = got.NextShardIterator; len(got.Records) == 0 && it != "" {
				break // an open shard, read out
			}
		}
	}
	for p, n := range puts {
		for k := range keys {
			if key := fmt.Sprintf("p%d-k%d", p, k); next[key] != n {
				t.Errorf("%s: read %d records, put %d (seed %d)", key, next[key], n, seed)
			}
		}
	}
}
