// Package kinesisapi is the door that speaks Amazon Kinesis Data Streams' API over the log, so that every client of Kinesis works
// against Milepost: SDKs, the CLI, the producer and consumer libraries, connectors.
//
// What it promises: a record that PutRecord or PutRecords reported with a sequence number is on disk (P1). Sequence numbers have
// AWS' shape and grow within a shard; each leads back to its place even after retention has passed it. Shard iterators and
// pagination tokens are sealed with a key from the data directory, so they outlive a restart and cannot be forged. Records are
// passed on byte for byte; aggregates of the producer library are not looked into.
//
// Who owns what: records, shards and retention are the log's. What else the API knows of a stream (mode, tags, consumers, status)
// is in one metadata file of the door, kinesis.json, which every change replaces before it is published. Requests read an immutable
// catalog without a lock. One goroutine, the keeper, ends transitions, reshards and scales; everything it does is written down
// first or can be done twice.
//
// Everything is bounded: the bytes of bodies in hand, the time a body may take, headers, nesting, streams of a connection.
package kinesisapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/ingest/kinesisapi/policy"
	"github.com/milepost/milepost/ingest/kinesisapi/sigv4"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream/seglog"
)

// Config says what the door serves. Only Store and Dir are required.
type Config struct {
	Store   *seglog.Store         // the log
	Dir     string                // for kinesis.json and kinesis.key; made if missing
	FS      vfs.FS                // nil: vfs.Disk
	Log     *slog.Logger          // nil: silent
	Metrics prometheus.Registerer // nil: not registered

	Region  string // "": us-east-1. In ARNs; any region of a signature is taken
	Account string // "": 000000000000. Twelve digits, in ARNs
	// AccessKeys are the keys whose signatures are taken, each with what it may do. None: requests need no signature, and Serve
	// refuses listeners beyond loopback.
	AccessKeys []AccessKey
	Reserved   []string // the platform's own streams, which are visible here and cannot be deleted here. They must exist

	Throttle           Throttle      // "": off
	Transition         time.Duration // how long CREATING, UPDATING and DELETING last. 0: 500 ms; negative: no time
	ConsumersPerStream int           // enhanced fan-out consumers. 0: 20, as at AWS; 50 there with the Advantage pricing
	ScaleEvery         time.Duration // how often on-demand streams are measured. 0: 15 s; negative: never
	ShardLimit         int           // open shards of all streams together. 0: 10,000

	BodyBytes     int64         // bodies in hand at once, of all requests; beyond it requests get 503. 0: 256 MiB
	BodyTimeout   time.Duration // a request's body must be here within this. 0: 30 s
	WriteTimeout  time.Duration // a client must take an answer, or an event of a subscription, within this. 0: 60 s
	SubscribeFor  time.Duration // how long a SubscribeToShard lasts. 0: 5 minutes, as at AWS
	HeartbeatEach time.Duration // an idle subscription gets an empty event this often. 0: 4 s; AWS sends one within 5 s
}

// An AccessKey is a key pair and an IAM policy document that says what it may do.
type AccessKey struct {
	ID     string
	Secret string
	Policy string // JSON; "": everything
}

// Throttle says whether the door limits as AWS does.
type Throttle string

// The throttles. AWS: a shard takes 1 MiB and 1,000 records a second and gives 2 MiB in 5 GetRecords a second, and operations on
// streams have rates of their own.
const (
	ThrottleOff Throttle = "off"
	ThrottleAWS Throttle = "aws"
)

func (c *Config) setDefaults() error {
	set(&c.Log, slog.New(slog.DiscardHandler))
	if c.FS == nil {
		c.FS = vfs.Disk
	}
	set(&c.Region, "us-east-1")
	set(&c.Account, "000000000000")
	set(&c.Throttle, ThrottleOff)
	set(&c.Transition, 500*time.Millisecond)
	set(&c.ConsumersPerStream, 20)
	set(&c.ScaleEvery, 15*time.Second)
	set(&c.ShardLimit, 10_000)
	set(&c.BodyBytes, 256<<20)
	set(&c.BodyTimeout, 30*time.Second)
	set(&c.WriteTimeout, time.Minute)
	set(&c.SubscribeFor, 5*time.Minute)
	set(&c.HeartbeatEach, 4*time.Second)
	switch {
	case c.Store == nil || c.Dir == "":
		return errors.New("no log or no directory is given")
	case !regexp.MustCompile(`^\d{12}$`).MatchString(c.Account):
		return fmt.Errorf("account %q: use twelve digits", c.Account)
	case c.Throttle != ThrottleOff && c.Throttle != ThrottleAWS:
		return fmt.Errorf("throttle %q: use off or aws", c.Throttle)
	}
	return nil
}

func set[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// A Door serves the API. It is an http.Handler; Serve adds listeners with limits.
type Door struct {
	cfg        Config
	beside     http.Handler // nil: none
	transition time.Duration
	scaleEvery time.Duration
	ops        map[string]*operation
	verifier   *sigv4.Verifier // nil: no keys
	policies   map[string]*policy.Policy
	tokens     *tokens
	metrics    *metrics
	bodies     atomic.Int64 // bytes of bodies in hand

	catalog  atomic.Pointer[catalog]
	changeMu sync.Mutex // one change of the catalog at a time

	ctx       context.Context // of the keeper and of subscriptions; ends in Close
	cancel    context.CancelFunc
	woken     chan struct{}
	running   sync.WaitGroup // the keeper
	closeOnce sync.Once
	gate      sync.RWMutex // requests hold it for reading; Close takes it and never gives it back

	serving servers
	buffers buffers

	accountMu    sync.Mutex
	accountCalls map[string]*bucket // by operation, for Throttle
}

// New opens the door's metadata and starts its keeper. Listeners come with Serve.
func New(cfg Config) (*Door, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, fmt.Errorf("kinesis door: %w", err)
	}
	d := &Door{cfg: cfg, transition: max(cfg.Transition, 0), scaleEvery: max(cfg.ScaleEvery, 0), woken: make(chan struct{}, 1)}
	d.accountCalls = map[string]*bucket{}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	if err := d.open(); err != nil {
		d.cancel()
		return nil, fmt.Errorf("kinesis door: %w", err)
	}
	d.running.Go(func() { d.keep(d.ctx) }) // waited for by Close
	return d, nil
}

func (d *Door) open() error {
	secrets := map[string]string{}
	d.policies = map[string]*policy.Policy{}
	for _, k := range d.cfg.AccessKeys {
		if k.ID == "" || k.Secret == "" || secrets[k.ID] != "" {
			return fmt.Errorf("access key %q: give each key an ID of its own and a secret", k.ID)
		}
		secrets[k.ID] = k.Secret
		doc := k.Policy
		if doc == "" {
			doc = `{"Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`
		}
		p, err := policy.Parse([]byte(doc), d.cfg.Account)
		if err != nil {
			return fmt.Errorf("access key %s: %w", k.ID, err)
		}
		d.policies[k.ID] = p
	}
	if len(secrets) > 0 {
		d.verifier = sigv4.New("kinesis", secrets)
	}
	if err := makeDir(d.cfg.FS, d.cfg.Dir); err != nil {
		return err
	}
	var err error
	if d.tokens, err = openTokens(d.cfg.FS, d.cfg.Dir); err != nil {
		return err
	}
	d.ops = operations()
	d.metrics = newMetrics(d)
	if err := d.load(d.ctx); err != nil {
		return err
	}
	if d.cfg.Metrics != nil {
		return d.cfg.Metrics.Register(d.metrics)
	}
	return nil
}

// access decides whether a key may do an action ("PutRecord") on a resource. Without keys everyone may do everything.
func (d *Door) access(c *call, resource string) error {
	if d.verifier == nil {
		return nil
	}
	action := "kinesis:" + c.op.name
	decision := d.policies[c.key].Decide(action, resource)
	user := "arn:aws:iam::" + d.cfg.Account + ":user/" + c.key
	if p := d.resourcePolicy(resource); p != nil && decision != policy.Deny {
		decision = max(decision, p.DecideFor(user, action, resource))
	}
	if decision == policy.Allow {
		return nil
	}
	because := "because no identity-based policy allows the " + action + " action"
	if decision == policy.Deny {
		because = "with an explicit deny in a policy"
	}
	return faultf(typeAccessDenied, "User: %s is not authorized to perform: %s on resource: %s %s", user, action, resource, because)
}

func (d *Door) resourcePolicy(resource string) *policy.Policy {
	name, consumer, _, ok := d.parseARN(resource)
	m := d.catalog.Load().Streams[name]
	switch {
	case !ok || m == nil:
		return nil
	case consumer != "":
		return m.parsedCPolicy[consumer]
	}
	return m.parsedPolicy
}

// parseARN takes apart the ARN of a stream or consumer of this door, in any partition. created is a consumer's, in seconds.
func (d *Door) parseARN(arn string) (name, consumer string, created int64, ok bool) {
	rest, isARN := strings.CutPrefix(arn, "arn:")
	_, rest, _ = strings.Cut(rest, ":")
	rest, here := strings.CutPrefix(rest, "kinesis:"+d.cfg.Region+":"+d.cfg.Account+":stream/")
	if !isARN || !here {
		return "", "", 0, false
	}
	name, rest, hasConsumer := strings.Cut(rest, "/")
	if !hasConsumer {
		return name, "", 0, name != ""
	}
	rest, isConsumer := strings.CutPrefix(rest, "consumer/")
	i := strings.LastIndexByte(rest, ':')
	if !isConsumer || i < 1 || name == "" {
		return "", "", 0, false
	}
	created, err := strconv.ParseInt(rest[i+1:], 10, 64)
	return name, rest[:i], created, err == nil
}

// buffers are reused between requests.
type buffers struct {
	puts  sync.Pool
	bytes sync.Pool
}

const keepBuffer = 16 << 20 // larger ones are left to the garbage collector; the largest GetRecords is as large

func (b *buffers) put() *putRequest {
	p, ok := b.puts.Get().(*putRequest)
	if !ok {
		p = &putRequest{}
	}
	p.reset()
	return p
}

func (b *buffers) donePut(p *putRequest) {
	if cap(p.data) <= keepBuffer {
		b.puts.Put(p)
	}
}

func (b *buffers) get() *[]byte {
	if p, ok := b.bytes.Get().(*[]byte); ok {
		return p
	}
	p := make([]byte, 0, 8<<10)
	return &p
}

func (b *buffers) done(p *[]byte) {
	if cap(*p) <= keepBuffer {
		*p = (*p)[:0]
		b.bytes.Put(p)
	}
}

const hexDigits = "0123456789abcdef"

// requestID returns a random UUID in text. It need not be hard to guess, only unlike others.
func requestID() string {
	var b [36]byte
	hi, lo := rand.Uint64(), rand.Uint64()
	for i := range b {
		switch i {
		case 8, 13, 18, 23:
			b[i] = '-'
			continue
		case 14:
			b[i] = '4'
			continue
		}
		if i < 18 {
			b[i] = hexDigits[hi&15]
			hi >>= 4
		} else {
			b[i] = hexDigits[lo&15]
			lo >>= 4
		}
	}
	b[19] = "89ab"[lo&3]
	return string(b[:])
}
