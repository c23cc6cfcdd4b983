// Package lambda runs users' functions on streams with the semantics of Lambda's event source mappings, and serves the part of
// Lambda's API that manages and tries them.
//
// What it promises. A record reaches the function at least once, in order within its key, under a request id that stays the same
// for the same records (P4). What a mapping knows - its definition, its place in each shard, the state of a window, what it owes to a
// destination - is on disk before anybody is told, so mappings made through the API survive a restart and go on where they were.
// Records that are given up are written to the mapping's destination, or become dead letters (P7). A function delays only itself (P8).
//
// Who owns what. The configuration file owns functions, and the mappings that it has below them: through the API those can only be
// paused, resumed and moved. process owns lanes, batches, retries, bisecting, windows and checkpoints; runtime owns the processes.
// A mapping has one goroutine, its conductor, which alone starts and stops its runner; requests change the definition and wake it.
//
// In the state store: "lambda/mapping/UUID" is a definition in JSON, effects of kind "lambda-failure/UUID" are failure documents on
// their way, and effects of kind "lambda-event/FUNCTION" asynchronous invocations.
package lambda

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/ingest/kinesisapi/policy"
	"github.com/milepost/milepost/ingest/kinesisapi/sigv4"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/lambda/runtime"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// Config says what functions there are and what they work with. Store and Stream are required.
type Config struct {
	Store     state.Store
	Functions Functions
	// Stream finds a stream by its name; stream.ErrNoStream if there is none.
	Stream func(name string) (stream.Log, error)
	// Consumer finds an enhanced fan-out consumer of a stream by its name or ARN and returns its ARN. nil: there are none.
	Consumer func(stream, consumer string) (arn string, err error)
	// Open makes what runs a function. Close closes it. nil: runtime does.
	Open        func(name string, c FunctionConfig) (runtime.Invoker, error)
	Credentials runtime.Credentials // that SDKs in functions find in their environment

	DeadLetters stream.Log      // nil: what cannot be delivered waits
	Outbox      *process.Outbox // shared with other runners over Store; nil: one of its own
	Meter       *process.Meter  // shared; nil: one of its own
	Gate        *process.Gate   // shared; nil: none
	Buckets     string          // directory in which each on-failure bucket is one; "": there are none
	FS          vfs.FS          // nil: vfs.Disk

	Region     string      // "": us-east-1. In ARNs
	Account    string      // "": 000000000000
	AccessKeys []AccessKey // whose signatures the API takes. None: unsigned requests, so serve it on loopback alone

	Log     *slog.Logger          // nil: silent
	Metrics prometheus.Registerer // nil: not registered
}

// An AccessKey is a key pair and an IAM policy document that says what it may do.
type AccessKey struct {
	ID     string
	Secret string
	Policy string // JSON; "": everything
}

// A Registry is the functions and mappings of one program.
type Registry struct {
	cfg       Config
	functions map[string]*function // never changed after Open
	names     []string             // sorted
	metrics   *metrics
	outbox    *process.Outbox // nil: shared
	meter     *process.Meter  // nil: shared
	client    *http.Client
	verifier  *sigv4.Verifier // nil: no keys
	policies  map[string]*policy.Policy

	ctx    context.Context // ends when Close begins
	cancel context.CancelFunc
	hard   context.Context // ends when Close has run out of patience
	harden context.CancelFunc
	work   sync.WaitGroup // conductors and couriers

	mu       sync.Mutex // guards the rest. It is held across the write of a definition: changes are few
	mappings map[string]*mapping
	closed   bool
}

const mappingPrefix = "lambda/mapping/"

func set[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Open opens every function, reads the mappings that were made, and starts those that are enabled. Config.Outbox must run already.
func Open(cfg Config) (_ *Registry, err error) {
	set(&cfg.Log, slog.New(slog.DiscardHandler))
	set(&cfg.Region, "us-east-1")
	set(&cfg.Account, "000000000000")
	if cfg.FS == nil {
		cfg.FS = vfs.Disk
	}
	switch {
	case cfg.Store == nil || cfg.Stream == nil:
		return nil, errors.New("open functions: no state store or no streams are given")
	case !regexp.MustCompile(`^\d{12}$`).MatchString(cfg.Account):
		return nil, fmt.Errorf("open functions: account %q: use twelve digits", cfg.Account)
	}
	if err := cfg.Functions.Validate(); err != nil {
		return nil, fmt.Errorf("open functions: %w", err)
	}
	r := &Registry{cfg: cfg, functions: map[string]*function{}, mappings: map[string]*mapping{}}
	r.client = &http.Client{
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 1, IdleConnTimeout: 90 * time.Second, ForceAttemptHTTP2: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.hard, r.harden = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			r.harden()
			err = errors.Join(fmt.Errorf("open functions: %w", err), r.Close(r.hard))
		}
	}()
	if err := r.openKeys(); err != nil {
		return nil, err
	}
	if r.metrics, err = newMetrics(cfg.Metrics); err != nil {
		return nil, err
	}
	if err := r.openShared(); err != nil {
		return nil, err
	}
	open := cfg.Open
	if open == nil {
		m, err := runtime.NewMetrics(cfg.Metrics)
		if err != nil {
			return nil, err
		}
		open = func(name string, c FunctionConfig) (runtime.Invoker, error) { return r.open(name, c, m) }
	}
	for name, c := range cfg.Functions {
		inv, err := open(name, c)
		if err != nil {
			return nil, fmt.Errorf("function %s: %w", name, err)
		}
		r.functions[name] = &function{name: name, cfg: c, invoker: inv, changed: time.Now()}
		r.names = append(r.names, name)
	}
	slices.Sort(r.names)
	return r, r.openMappings()
}

func (r *Registry) open(name string, c FunctionConfig, m *runtime.Metrics) (runtime.Invoker, error) {
	rc := c.runtime(name)
	rc.Region, rc.Account, rc.Credentials = r.cfg.Region, r.cfg.Account, r.cfg.Credentials
	deps := runtime.Deps{Log: r.cfg.Log, Metrics: m}
	if c.Func != nil {
		return runtime.NewFunc(rc, c.Func, deps)
	}
	return runtime.New(rc, deps)
}

func (r *Registry) openKeys() error {
	secrets := map[string]string{}
	r.policies = map[string]*policy.Policy{}
	for _, k := range r.cfg.AccessKeys {
		if k.ID == "" || k.Secret == "" || secrets[k.ID] != "" {
			return fmt.Errorf("access key %q: give each key an ID of its own and a secret", k.ID)
		}
		secrets[k.ID] = k.Secret
		doc := k.Policy
		if doc == "" {
			doc = `{"Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`
		}
		p, err := policy.Parse([]byte(doc), r.cfg.Account)
		if err != nil {
			return fmt.Errorf("access key %s: %w", k.ID, err)
		}
		r.policies[k.ID] = p
	}
	if len(secrets) > 0 {
		r.verifier = sigv4.New("lambda", secrets)
	}
	return nil
}

// openShared makes what the runners share, if nobody shares it with us.
func (r *Registry) openShared() error {
	if r.cfg.Meter == nil {
		m, err := process.NewMeter(r.cfg.Metrics)
		if err != nil {
			return err
		}
		r.meter, r.cfg.Meter = m, m
	}
	if r.cfg.Outbox == nil {
		o, err := process.NewOutbox(process.OutboxConfig{
			Store: r.cfg.Store, DeadLetters: r.cfg.DeadLetters, Streams: r.cfg.Stream, Logger: r.cfg.Log, Metrics: r.cfg.Metrics,
		})
		if err != nil {
			return err
		}
		if err := o.Start(); err != nil {
			return err
		}
		r.outbox, r.cfg.Outbox = o, o
	}
	return nil
}

// openMappings reads what was kept, makes it agree with the configuration, and starts the conductors.
func (r *Registry) openMappings() error {
	kept := map[string]*definition{}
	err := r.cfg.Store.View(r.ctx, func(rd state.Reader) error {
		return rd.Scan([]byte(mappingPrefix), state.PrefixEnd([]byte(mappingPrefix)), func(k, v []byte) error {
			d := &definition{}
			if err := json.Unmarshal(v, d); err != nil {
				return fmt.Errorf("stored mapping %s makes no sense: %w", k, err)
			}
			kept[d.UUID] = d
			return nil
		})
	})
	if err != nil {
		return err
	}
	now := time.Now()
	var defs []*definition
	for _, name := range r.names {
		for i, c := range r.functions[name].cfg.On {
			arn := ""
			if c.Consumer != "" {
				if arn, err = r.consumer(c.Stream, c.Consumer); err != nil {
					return fmt.Errorf("functions.%s.on[%d].consumer: %w", name, i, err)
				}
			}
			d := c.define(name, arn, now)
			if was := kept[d.UUID]; was != nil {
				d.keep(was)
			}
			defs = append(defs, d)
			if err := r.save(r.ctx, d); err != nil {
				return err
			}
			delete(kept, d.UUID)
		}
	}
	for _, d := range kept {
		// A mapping that the file no longer has sleeps: if it comes back, it goes on where it was.
		if !d.Configured {
			defs = append(defs, d)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range defs {
		r.beginLocked(d)
	}
	for _, name := range r.names {
		fn := r.functions[name]
		r.work.Go(func() { r.events(fn).run(r.ctx, nil) }) // Close waits
	}
	return nil
}

func (r *Registry) consumer(streamName, consumer string) (string, error) {
	if r.cfg.Consumer == nil {
		return "", fmt.Errorf("stream %s has no consumer %s: there is no Kinesis door", streamName, consumer)
	}
	return r.cfg.Consumer(streamName, consumer)
}

// save writes a definition; it is on disk when it returns.
func (r *Registry) save(ctx context.Context, d *definition) error {
	b, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("write mapping %s: %w", d.UUID, err)
	}
	err = r.cfg.Store.Update(ctx, func(tx state.Tx) error { return tx.Set([]byte(mappingPrefix+d.UUID), b) })
	if err != nil {
		return fmt.Errorf("write mapping %s: %w", d.UUID, err)
	}
	return nil
}

// list returns the mappings in the order of their UUIDs.
func (r *Registry) list() []*mapping {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*mapping, 0, len(r.mappings))
	for _, m := range r.mappings {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *mapping) int { return strings.Compare(a.uuid, b.uuid) })
	return out
}

func (r *Registry) mapping(uuid string) *mapping {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mappings[uuid]
}

// Close lets invocations under way finish until ctx ends, stops the runners, and closes the functions.
func (r *Registry) Close(ctx context.Context) error {
	defer context.AfterFunc(ctx, r.harden)()
	r.mu.Lock()
	again := r.closed
	r.closed = true
	r.mu.Unlock()
	if again {
		return nil
	}
	r.cancel()
	r.work.Wait()
	var errs []error
	if r.outbox != nil {
		errs = append(errs, r.outbox.Stop(ctx))
	}
	for _, name := range r.names {
		errs = append(errs, r.functions[name].invoker.Close(ctx))
	}
	if r.meter != nil {
		r.meter.Close()
	}
	if r.metrics != nil {
		r.metrics.close()
	}
	r.client.CloseIdleConnections()
	r.harden()
	return errors.Join(errs...)
}
