package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/lambda"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/stream/seglog"
	"github.com/milepost/milepost/telemetry"
)

// benchFunctions measures users' functions over the whole path: a durable stream, the mapping, the event, the function, its answer,
// the checkpoint. The generator runs in this process and is included.
func benchFunctions(ctx context.Context, b *benchRun) error {
	for _, f := range []struct{ handler, label, goal string }{
		{benchHandlerScan, "bootstrap, a handler that scans the raw event", "200,000"},
		{benchHandlerEvents, "bootstrap, events.KinesisEvent and " + benchJSON(), ""},
	} {
		if err := b.bootstrap(ctx, f.handler, f.label, f.goal); err != nil {
			return fmt.Errorf("%s: %w", f.label, err)
		}
	}
	if err := b.builtIn(ctx, "built-in process.Handler", func(r *process.Runner, f *benchFunction) error {
		return r.AddHandler(f, process.Options{BatchSize: 1000})
	}); err != nil {
		return err
	}
	if err := b.builtIn(ctx, "built-in process.Function", func(r *process.Runner, f *benchFunction) error {
		return r.Add(f, process.Options{BatchSize: 1000})
	}); err != nil {
		return err
	}
	return b.added(ctx)
}

// benchJSON names the encoding/json that this program, and so its bootstrap, is built with.
func benchJSON() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "GOEXPERIMENT" && slices.Contains(strings.Split(s.Value, ","), "jsonv2") {
				return "encoding/json of GOEXPERIMENT=jsonv2"
			}
		}
	}
	return "encoding/json"
}

// A functionBench is a stream and a store for functions, on disk as a server has them.
type functionBench struct {
	logs  *seglog.Store
	state *local.Store
	log   *seglog.Log
}

const (
	functionStream = "readings"
	functionShards = 4
	functionBatch  = 1000
	functionAhead  = 40 * functionBatch // records that the generator may be ahead: a full batch waits in each shard, and little more
)

func (b *benchRun) openFunctions(ctx context.Context, name string) (*functionBench, error) {
	dir := filepath.Join(b.dir, "functions-"+name)
	f := &functionBench{}
	var err error
	if f.logs, err = seglog.Open(seglog.Config{Dir: filepath.Join(dir, "log")}); err != nil {
		return nil, err
	}
	if f.log, err = f.logs.Create(ctx, functionStream, seglog.StreamConfig{Shards: functionShards}); err != nil {
		return nil, errors.Join(err, f.logs.Close())
	}
	if f.state, err = local.Open(local.Config{Dir: filepath.Join(dir, "state")}); err != nil {
		return nil, errors.Join(err, f.logs.Close())
	}
	return f, nil
}

func (f *functionBench) close() error { return errors.Join(f.state.Close(), f.logs.Close()) }

// A functionLoad is what came of generating records and having them processed.
type functionLoad struct {
	records uint64
	elapsed time.Duration // from the first append until the last record was processed and checkpointed
	cpu     time.Duration // of this process
}

// load appends readings of many vehicles, several generators with calls of 1,000 records each, as fast as done grows, for d; then it
// waits until done has all. done tells how many records have been checkpointed.
func (f *functionBench) load(ctx context.Context, d time.Duration, vehicles int, done func() (uint64, error)) (functionLoad, error) {
	const generators = 6
	already, err := done()
	if err != nil {
		return functionLoad{}, err
	}
	var appended, processed atomic.Uint64
	var failed error
	var mu sync.Mutex
	cpu0, began := ownCPU(), time.Now()
	end := began.Add(d)
	var wg sync.WaitGroup
	for g := range generators {
		wg.Go(func() {
			m := newBatchMaker(g*vehicles/generators, max(1, vehicles/generators), functionBatch, dayStart(time.Now()))
			keys := make([]string, vehicles+1)
			for i := range keys {
				keys[i] = fmt.Sprintf("T%05d", i)
			}
			recs := make([]stream.Record, functionBatch)
			var err error
			for time.Now().Before(end) && ctx.Err() == nil && err == nil {
				if appended.Load() > processed.Load()+functionAhead {
					time.Sleep(200 * time.Microsecond)
					continue
				}
				m.records(recs, keys)
				if err = f.log.Append(ctx, recs); err == nil {
					appended.Add(functionBatch)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			failed = errors.Join(failed, err)
		})
	}
	generated := make(chan struct{})
	go func() { // the loop below waits for it
		wg.Wait()
		close(generated)
	}()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	all, finished := uint64(0), false
	for err == nil {
		n, e := done()
		err = e
		processed.Store(n - already)
		if finished && n-already >= all {
			break
		}
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-generated:
			generated, finished, all = nil, true, appended.Load()
		case <-tick.C:
		}
		if time.Since(end) > time.Minute {
			err = fmt.Errorf("%d of %d records were processed a minute after the last was appended", n-already, appended.Load())
		}
	}
	took, cpu := time.Since(began), ownCPU()-cpu0
	if err != nil {
		end = began // for the generators: err ends them
	}
	wg.Wait()
	return functionLoad{all, took, cpu}, errors.Join(err, failed)
}

// records cuts the maker's next body into records. It is valid until the next call.
func (m *batchMaker) records(recs []stream.Record, keys []string) {
	body := m.make()
	for i := range recs {
		line := body[i*len(benchLine) : (i+1)*len(benchLine)-1]
		n := 0
		for _, c := range line[m.off.vehicle : m.off.vehicle+5] {
			n = n*10 + int(c-'0')
		}
		recs[i] = stream.Record{Key: keys[n], Data: line}
	}
}

// bootstrap measures a function in processes of its own: this program, as a bootstrap built on aws-lambda-go.
func (b *benchRun) bootstrap(ctx context.Context, handler, label, goal string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	f, err := b.openFunctions(ctx, handler)
	if err != nil {
		return err
	}
	const name = "bench"
	registry, err := lambda.Open(lambda.Config{
		Store: f.state, Stream: func(string) (stream.Log, error) { return f.log, nil },
		Functions: lambda.Functions{name: {
			Command: []string{exe}, Environment: map[string]string{benchHandlerVariable: handler, "MILEPOST_MAIN": "1"}, // the test binary needs to be told
			Timeout: time.Minute, InitTimeout: time.Minute, IdleTimeout: time.Hour, Memory: 128, Concurrency: functionShards,
			On: []lambda.MappingConfig{{Stream: functionStream, Enabled: true, BatchSize: functionBatch, Parallel: 1, Start: "TRIM_HORIZON", MaxRetries: 0}},
		}},
	})
	if err != nil {
		return errors.Join(err, f.close())
	}
	done := func() (uint64, error) {
		s, ok := registry.Function(ctx, name)
		if !ok || len(s.Mappings) != 1 {
			return 0, errors.New("the function has no mapping")
		}
		m := &s.Mappings[0]
		if m.Total.Errors > 0 || m.Total.DeadLetters > 0 {
			return 0, fmt.Errorf("the function failed: %s", m.LastError)
		}
		return m.Total.Records, nil
	}
	var its time.Duration
	l, err := f.load(ctx, 300*time.Millisecond, b.vehicles, done) // opens the mapping, and starts the processes
	if err == nil {
		before := childrenCPU()
		l, err = f.load(ctx, b.seconds, b.vehicles, done)
		its = childrenCPU() - before
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := errors.Join(err, registry.Close(closing), f.close()); err != nil {
		return err
	}
	b.add(label, float64(l.records)/l.elapsed.Seconds(), "/s", goal)
	b.perRecord("  its CPU per record, mapping and generator", l.cpu, l.records)
	b.perRecord("  its CPU per record, bootstraps", its, l.records)
	b.ceiling(l.cpu+its, l.records)
	return nil
}

func (b *benchRun) perRecord(name string, cpu time.Duration, records uint64) {
	b.add(name, float64(cpu.Nanoseconds())/float64(max(1, records))/1000, "µs", "")
}

// ceiling says what all cores would carry if nothing else ran on them: on a machine that others use the rate says less about the program
// than the CPU that a record takes.
func (b *benchRun) ceiling(cpu time.Duration, records uint64) {
	b.add(fmt.Sprintf("  its ceiling, %d cores at that CPU", runtime.NumCPU()), float64(runtime.NumCPU())*float64(records)/max(cpu.Seconds(), 1e-9), "/s", "")
}

// childrenCPU returns the CPU time that the living children of this process have used.
func childrenCPU() time.Duration {
	list, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0
	}
	own := strconv.Itoa(os.Getpid())
	var ticks int64
	for _, name := range list {
		stat, err := os.ReadFile(name) //nolint:gosec // of the list
		if err != nil {
			continue // it has ended
		}
		const parent, user, system = 1, 11, 12 // after the name
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(f) <= system || f[parent] != own {
			continue
		}
		for _, i := range []int{user, system} {
			n, _ := strconv.ParseInt(f[i], 10, 64) // it is a number
			ticks += n
		}
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ
}

// A benchFunction is a built-in function that decodes every reading. It is a process.Handler and a process.Function.
type benchFunction struct {
	decoders sync.Pool
}

func newBenchFunction() *benchFunction {
	catalog := telemetry.NewCatalog()
	return &benchFunction{decoders: sync.Pool{New: func() any { return &benchDecoder{decoder: telemetry.NewDecoder(catalog)} }}}
}

type benchDecoder struct {
	decoder *telemetry.Decoder
	reading telemetry.Reading
	data    []byte
}

func (f *benchFunction) Name() string { return "bench" }

// decode returns the sum of the speeds, so that there is something to keep.
func (f *benchFunction) decode(recs []stream.Record) (float64, error) {
	d, _ := f.decoders.Get().(*benchDecoder)
	defer f.decoders.Put(d)
	sum := 0.0
	for i := range recs {
		d.reading.Vehicle, d.reading.Arrival = "", recs[i].Time.UnixMilli()
		if err := d.decoder.JSON(recs[i].Data, &d.reading); err != nil {
			return 0, err
		}
		if v, ok := d.reading.Signal(telemetry.Speed); ok {
			sum += v
		}
	}
	return sum, nil
}

func (f *benchFunction) Handle(_ context.Context, in *process.Invocation) (process.Result, error) {
	_, err := f.decode(in.Records)
	return process.Result{}, err
}

func (f *benchFunction) Process(ctx context.Context, tx state.Tx, recs []stream.Record) error {
	sum, err := f.decode(recs)
	if err != nil {
		return err
	}
	key := []byte("bench/" + string(recs[0].Shard))
	before, err := tx.Get(key)
	if err != nil {
		return err
	}
	if len(before) == 8 {
		sum += math.Float64frombits(binary.BigEndian.Uint64(before))
	}
	return tx.Set(key, binary.BigEndian.AppendUint64(nil, math.Float64bits(sum)))
}

// builtIn measures a function in this process.
func (b *benchRun) builtIn(ctx context.Context, label string, add func(*process.Runner, *benchFunction) error) error {
	f, err := b.openFunctions(ctx, strings.ReplaceAll(label, " ", "-"))
	if err != nil {
		return err
	}
	l, err := f.builtIn(ctx, b.seconds, b.vehicles, add)
	if err := errors.Join(err, f.close()); err != nil {
		return fmt.Errorf("%s: %w", label, err)
	}
	b.add(label+" that decodes", float64(l.records)/l.elapsed.Seconds(), "/s", "700,000")
	b.perRecord("  its CPU per record, generator included", l.cpu, l.records)
	b.ceiling(l.cpu, l.records)
	return nil
}

func (f *functionBench) builtIn(ctx context.Context, d time.Duration, vehicles int, add func(*process.Runner, *benchFunction) error) (l functionLoad, err error) {
	runner, err := process.New(process.Config{Log: f.log, StreamName: functionStream, Store: f.state})
	if err != nil {
		return l, err
	}
	if err := add(runner, newBenchFunction()); err != nil {
		return l, err
	}
	if err := runner.Start(); err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, runner.Stop(context.WithoutCancel(ctx))) }()
	done := func() (uint64, error) { return processed(ctx, runner) }
	if _, err := f.load(ctx, 100*time.Millisecond, vehicles, done); err != nil {
		return l, err
	}
	return f.load(ctx, d, vehicles, done)
}

// processed counts what a runner's only function has processed and checkpointed.
func processed(ctx context.Context, r *process.Runner) (uint64, error) {
	var total process.Counters
	for _, f := range r.Status(ctx) {
		for _, sh := range f.Shards {
			for _, lane := range sh.Lanes {
				if lane.LastError != "" {
					return 0, errors.New(lane.LastError)
				}
				total.Add(&lane.Counters)
			}
		}
	}
	return total.Records, nil
}

// added measures what the mapping adds at a steady pace: from the return of the append, when a record is durable, until the handler
// has it. A record that the handler has before that counts as zero.
func (b *benchRun) added(ctx context.Context) error {
	f, err := b.openFunctions(ctx, "latency")
	if err != nil {
		return err
	}
	err = b.measureAdded(ctx, f)
	return errors.Join(err, f.close())
}

const (
	addedRate  = 20_000
	addedEvery = 10 * time.Millisecond
	addedCall  = 50 // records of one append
)

// A pacedHandler notes when it is called.
type pacedHandler struct {
	began  time.Time
	called []atomic.Int64 // by record: nanoseconds since began
}

func (h *pacedHandler) Name() string { return "paced" }

func (h *pacedHandler) Handle(_ context.Context, in *process.Invocation) (process.Result, error) {
	now := time.Since(h.began)
	for i := range in.Records {
		h.called[binary.BigEndian.Uint64(in.Records[i].Data)].Store(int64(now))
	}
	return process.Result{}, nil
}

func (b *benchRun) measureAdded(ctx context.Context, f *functionBench) (err error) {
	const producers = addedRate * int(addedEvery) / int(time.Second) / addedCall
	rounds := max(1, int(b.seconds/addedEvery))
	n := producers * rounds * addedCall
	h := &pacedHandler{began: time.Now(), called: make([]atomic.Int64, n)}
	durable := make([]time.Duration, producers*rounds)
	runner, err := process.New(process.Config{Log: f.log, StreamName: functionStream, Store: f.state})
	if err != nil {
		return err
	}
	if err := runner.AddHandler(h, process.Options{BatchSize: 1000}); err != nil {
		return err
	}
	if err := runner.Start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, runner.Stop(context.WithoutCancel(ctx))) }()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	cpu0, began := ownCPU(), time.Now()
	for p := range producers {
		wg.Go(func() {
			recs := make([]stream.Record, addedCall)
			var err error
			for round := 0; round < rounds && err == nil; round++ {
				due := began.Add(time.Duration(round)*addedEvery + time.Duration(p)*addedEvery/time.Duration(producers))
				time.Sleep(time.Until(due))
				call := round*producers + p
				for i := range recs {
					id := call*addedCall + i
					data := make([]byte, 200)
					binary.BigEndian.PutUint64(data, uint64(id)) //nolint:gosec // counts from 0
					recs[i] = stream.Record{Key: fmt.Sprintf("T%05d", id%b.vehicles), Data: data}
				}
				if err = f.log.Append(ctx, recs); err == nil {
					durable[call] = time.Since(h.began)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			failed = errors.Join(failed, err)
		})
	}
	wg.Wait()
	elapsed, cpu := time.Since(began), ownCPU()-cpu0
	if failed != nil {
		return failed
	}
	if err := runner.WaitCaughtUp(ctx); err != nil {
		return err
	}
	took := make([]time.Duration, n)
	for i := range took {
		called := time.Duration(h.called[i].Load())
		if called == 0 {
			return fmt.Errorf("record %d was not processed", i)
		}
		took[i] = max(0, called-durable[i/addedCall])
	}
	b.add("load of the latency measurement", float64(n)/elapsed.Seconds(), "/s", number(addedRate))
	b.add("durable record to invocation p50", ms(percentile(took, 0.5)), "ms", "")
	b.add("durable record to invocation p99", ms(percentile(took, 0.99)), "ms", "10")
	b.add("durable record to invocation max", ms(percentile(took, 1)), "ms", "")
	b.perRecord("  its CPU per record, generator included", cpu, uint64(n)) //nolint:gosec // a count
	return nil
}
