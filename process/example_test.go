package process_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/stream/seglog"
)

// A mailer is a handler: what it does is outside the store, so a batch may come again, under the same Invocation.ID.
type mailer struct{ answers map[string]process.Result }

func (*mailer) Name() string { return "mailer" } // keys its checkpoints: it never changes

func (m *mailer) Handle(_ context.Context, in *process.Invocation) (process.Result, error) {
	if res, again := m.answers[in.ID]; again { // a real one keeps them in the transaction that does the work
		return res, nil
	}
	var res process.Result
	for i := range in.Records {
		r := &in.Records[i]
		if string(r.Data) == "broken" {
			res.Failed = r.Pos // what precedes it is processed; the rest comes again
			return res, nil
		}
		res.Output = append(res.Output, stream.Record{Key: r.Key, Data: []byte("mail to " + string(r.Data))})
	}
	m.answers[in.ID] = res
	return res, nil
}

// A tally is a function: it changes state in the store, in the step that moves its checkpoint, so each record counts once.
type tally struct{}

func (tally) Name() string { return "tally" }

func (tally) Process(_ context.Context, tx state.Tx, recs []stream.Record) error {
	for i := range recs {
		key := []byte("count/" + recs[i].Key)
		v, err := tx.Get(key)
		if err != nil {
			return err
		}
		n := uint64(1)
		if len(v) == 8 {
			n += binary.BigEndian.Uint64(v)
		}
		if err := tx.Set(key, binary.BigEndian.AppendUint64(nil, n)); err != nil {
			return err
		}
	}
	return nil
}

// Example runs two functions of one's own over a stream, in one's own program.
func Example() {
	if err := embed(context.Background()); err != nil {
		fmt.Println(err)
	}
	// Output:
	// ana: mail to ana@example.com
	// rui: mail to rui@example.com
	// dead letter: broken
	// ana counts 2
}

func embed(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "embed-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	logs, err := seglog.Open(seglog.Config{Dir: dir + "/log"})
	if err != nil {
		return err
	}
	defer logs.Close()
	store, err := local.Open(local.Config{Dir: dir + "/state"})
	if err != nil {
		return err
	}
	defer store.Close()
	for _, name := range []string{"orders", "mails", "dead-letters"} {
		if _, err := logs.Create(ctx, name, seglog.StreamConfig{Shards: 1}); err != nil {
			return err
		}
	}
	orders, err := logs.Stream("orders")
	if err != nil {
		return err
	}
	dead, err := logs.Stream("dead-letters")
	if err != nil {
		return err
	}

	r, err := process.New(process.Config{
		Log: orders, StreamName: "orders", Store: store, DeadLetters: dead,
		Streams: func(name string) (stream.Log, error) { return logs.Stream(name) },
	})
	if err != nil {
		return err
	}
	err = r.AddHandler(&mailer{answers: map[string]process.Result{}}, process.Options{
		BatchSize: 100, MaxAttempts: 2, Bisect: true, MinBackoff: time.Millisecond, Output: "mails", StableBatches: true,
	})
	if err != nil {
		return err
	}
	if err := r.Add(tally{}, process.Options{}); err != nil {
		return err
	}
	if err := r.Start(); err != nil { // or Run(ctx)
		return err
	}
	defer r.Stop(ctx) //nolint:errcheck // its error is that of ctx

	if err := orders.Append(ctx, []stream.Record{
		{Key: "ana", Data: []byte("ana@example.com")}, {Key: "ana", Data: []byte("broken")}, {Key: "rui", Data: []byte("rui@example.com")},
	}); err != nil {
		return err
	}
	if err := r.WaitCaughtUp(ctx); err != nil {
		return err
	}
	return printResults(ctx, logs, store)
}

func printResults(ctx context.Context, logs *seglog.Store, store state.Store) error {
	mails, err := firstRecords(ctx, logs, "mails", 2)
	if err != nil {
		return err
	}
	for _, m := range mails {
		fmt.Printf("%s: %s\n", m.Key, m.Data)
	}
	letters, err := firstRecords(ctx, logs, "dead-letters", 1)
	if err != nil {
		return err
	}
	for _, l := range letters {
		var d stream.DeadLetter
		if err := json.Unmarshal(l.Data, &d); err != nil {
			return err
		}
		fmt.Printf("dead letter: %s\n", d.Data)
	}
	return store.View(ctx, func(r state.Reader) error {
		v, err := r.Get([]byte("count/ana"))
		if err == nil {
			fmt.Println("ana counts", binary.BigEndian.Uint64(v))
		}
		return err
	})
}

// firstRecords returns the first n records of a stream of one shard.
func firstRecords(ctx context.Context, logs *seglog.Store, name string, n int) ([]stream.Record, error) {
	l, err := logs.Stream(name)
	if err != nil {
		return nil, err
	}
	shards, err := l.Shards(ctx)
	if err != nil {
		return nil, err
	}
	rd, err := l.Read(ctx, shards[0].ID, "")
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	var out []stream.Record
	for len(out) < n {
		recs, err := rd.Next(ctx, n-len(out))
		if err != nil {
			return nil, err
		}
		for _, r := range recs { // they are borrowed until the next call
			out = append(out, stream.Record{Key: strings.Clone(r.Key), Data: bytes.Clone(r.Data)})
		}
	}
	return out, nil
}
