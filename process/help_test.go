package process_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/processtest"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/stream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A bench is a log, a store and a dead-letter log, over which runners come and go.
type bench struct {
	t     testing.TB
	fs    *vfs.MemFS
	log   *processtest.Log
	dead  *processtest.Log
	store state.Store
	logs  *logBuffer
}

func newBench(t testing.TB, shards int) *bench {
	b := &bench{t: t, fs: vfs.NewCrashable(), log: processtest.NewLog(shards), dead: processtest.NewLog(1), logs: &logBuffer{}}
	b.log.Strict = true
	b.open()
	t.Cleanup(func() { _ = b.store.Close() })
	return b
}

func (b *bench) open() {
	b.t.Helper()
	s, err := local.Open(local.Config{Dir: "state", FS: b.fs, MemBytes: 1 << 20})
	if err != nil {
		b.t.Fatal(err)
	}
	b.store = s
}

func (b *bench) config() process.Config {
	return process.Config{
		Log: b.log, StreamName: "readings", Store: b.store, DeadLetters: b.dead,
		Logger: slog.New(slog.NewTextHandler(b.logs, nil)),
	}
}

// start starts a runner with what add adds.
func (b *bench) start(add func(*process.Runner) error) *process.Runner {
	b.t.Helper()
	r, err := process.New(b.config())
	if err == nil {
		err = add(r)
	}
	if err == nil {
		err = r.Start()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func (b *bench) stop(r *process.Runner) {
	b.t.Helper()
	if err := r.Stop(context.Background()); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) caughtUp(r *process.Runner) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // models take half a minute under the race detector on a busy machine
	defer cancel()
	if err := r.WaitCaughtUp(ctx); err != nil {
		b.t.Fatalf("%v\n%s\n%s", err, show(r.Status(ctx)), b.logs)
	}
}

func show(v any) string {
	b, _ := json.MarshalIndent(v, "", " ")
	return string(b)
}

// values returns the users' part of the state as key=value.
func (b *bench) values() []string {
	b.t.Helper()
	out := []string{}
	err := b.store.View(context.Background(), func(r state.Reader) error {
		return r.Scan([]byte{1}, nil, func(k, v []byte) error {
			out = append(out, string(k)+"="+string(v))
			return nil
		})
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// letters returns the dead letters by ID; a repetition is fine, two different ones with one ID are not.
func (b *bench) letters() map[string]stream.DeadLetter {
	b.t.Helper()
	out := map[string]stream.DeadLetter{}
	for _, r := range b.dead.All() {
		var d stream.DeadLetter
		if err := json.Unmarshal(r.Data, &d); err != nil {
			b.t.Fatal(err)
		}
		if was, ok := out[d.ID]; ok && string(was.Data) != string(d.Data) {
			b.t.Errorf("letter %s: %q and %q", d.ID, was.Data, d.Data)
		}
		out[d.ID] = d
	}
	return out
}

func deadData(letters map[string]stream.DeadLetter) []string {
	out := []string{}
	for _, d := range letters {
		out = append(out, string(d.Data))
	}
	sort.Strings(out)
	return out
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A function made of a func.
type function struct {
	name string
	f    func(ctx context.Context, tx state.Tx, recs []stream.Record) error
}

func (f function) Name() string { return f.name }
func (f function) Process(ctx context.Context, tx state.Tx, recs []stream.Record) error {
	return f.f(ctx, tx, recs)
}

// journal appends each record's data to the value of its key, so that the state tells what happened to each key, in which order
// and how often.
func journal(tx state.Tx, recs []stream.Record) error {
	for _, r := range recs {
		v, err := tx.Get([]byte(r.Key))
		if err != nil {
			return err
		}
		if err := tx.Set([]byte(r.Key), append(append([]byte{}, v...), r.Data...)); err != nil {
			return err
		}
	}
	return nil
}

// A journalFolder is journal as a Folder.
type journalFolder struct {
	name   string
	before func(recs []stream.Record) error // fails, rejects or panics
	tick   func(now, since time.Time)
	flush  func() error
	mu     sync.Mutex
	open   int
}

func (j *journalFolder) Name() string { return j.name }
func (j *journalFolder) Lane(stream.ShardID, int) process.Fold {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.open++
	return &journalFold{j: j, values: map[string][]byte{}, changed: map[string]bool{}}
}

type journalFold struct {
	j       *journalFolder
	values  map[string][]byte
	changed map[string]bool
	urgent  bool
}

func (f *journalFold) Fold(_ context.Context, r state.Reader, recs []stream.Record) error {
	var reject error
	if f.j.before != nil {
		if err := f.j.before(recs); err != nil {
			e, ok := errors.AsType[*process.RejectError](err)
			if !ok {
				// Memory is spoilt on purpose: Reset must follow.
				for k := range f.values {
					f.values[k] = []byte("spoilt")
				}
				return err
			}
			for i := range recs {
				if recs[i].Pos == e.Pos {
					recs = recs[:i]
					break
				}
			}
			reject = err
		}
	}
	for _, rec := range recs {
		k := strings.Clone(rec.Key)
		v, ok := f.values[k]
		if !ok {
			stored, err := r.Get([]byte(k))
			if err != nil {
				return err
			}
			v = append([]byte{}, stored...)
		}
		f.values[k] = append(v, rec.Data...)
		f.changed[k] = true
		if strings.HasSuffix(string(rec.Data), "!") {
			f.urgent = true
		}
	}
	return reject
}

func (f *journalFold) Tick(_ context.Context, _ state.Reader, now, since time.Time) error {
	if f.j.tick != nil {
		f.j.tick(now, since)
	}
	return nil
}
func (f *journalFold) Urgent() bool { return f.urgent }
func (f *journalFold) Flush(tx state.Tx) error {
	f.urgent = false
	for k := range f.changed {
		if err := tx.Set([]byte(k), f.values[k]); err != nil {
			return err
		}
	}
	clear(f.changed)
	if f.j.flush != nil {
		return f.j.flush()
	}
	return nil
}
func (f *journalFold) Reset() { clear(f.values); clear(f.changed); f.urgent = false }
func (f *journalFold) Close() {
	f.j.mu.Lock()
	defer f.j.mu.Unlock()
	f.j.open--
}

// journalOf is what the journal of a log must be: the data of each key's records in order. Records for which skip is true are
// left out.
func journalOf(log *processtest.Log, skip func(stream.Record) bool) []string {
	all := map[string]string{}
	for _, r := range log.All() { // parents come before children
		if skip == nil || !skip(r) {
			all[r.Key] += string(r.Data)
		}
	}
	out := []string{}
	for k, v := range all {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return out
}

func put(log *processtest.Log, n int, key, data func(i int) string) {
	for i := range n {
		log.Put(key(i), data(i))
	}
}

func key(i int) string  { return fmt.Sprintf("vehicle-%02d", i%17) }
func data(i int) string { return fmt.Sprintf("%d,", i) }

// crash takes the power: what runs on is not seen any more. All that was synced is there again.
func (b *bench) crash(r *process.Runner, more ...interface{ Stop(context.Context) error }) {
	b.t.Helper()
	clone := b.fs.CrashClone(vfs.CrashCloneCfg{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = r.Stop(ctx) // interrupted on purpose
	for _, m := range more {
		_ = m.Stop(ctx)
	}
	if err := b.store.Close(); err != nil {
		b.t.Fatal(err)
	}
	b.fs = clone
	b.open()
}
