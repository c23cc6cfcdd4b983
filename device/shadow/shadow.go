// Package shadow keeps device shadows as AWS IoT Core does: a JSON document for each thing with what is desired of it and what it
// reports, so that a device that is away learns what it missed. Classic shadows and named ones.
//
// Devices publish on $aws/things/<thing>/shadow[/name/<name>]/update, /get and /delete, and hear on /accepted, /rejected, /delta and
// /documents below these; programs use HTTP (Handler). Versions, timestamps in metadata, client tokens, delta, the bound of 8 KB, the
// messages and codes of errors are AWS's. An accepted update is on disk before anybody hears of it.
package shadow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/state"
)

// Limits bound what is kept. Zero means the default.
type Limits struct {
	Bytes int // of a shadow's desired and reported state together. Default 8192, as AWS
	Named int // shadows with a name of one thing. Default 10
	Total int // shadows of all things. Default 500 000
}

// Config says what shadows work with. Store is required.
type Config struct {
	Store state.Store // keys below "shadow\x00" are the package's
	// Publish sends a message to whoever listens; nil: nobody does. Messages of one shadow come in order.
	Publish func(topic string, payload []byte)
	// Reported, if not nil, gets what a thing's update has reported, to make a reading of it; an error is logged.
	Reported func(ctx context.Context, thing, name string, reported json.RawMessage, at time.Time) error
	Limits   Limits
	Log      *slog.Logger          // default: discards
	Metrics  prometheus.Registerer // nil: no metrics
}

const (
	prefixThings = "$aws/things/"
	maxThing     = 128 // bytes
	maxName      = 64
	stripes      = 256

	// Below these: thing 0 name → the document as JSON.
	keyShadow = "shadow\x00d"
)

// A Keeper keeps shadows. It starts no goroutines.
type Keeper struct {
	cfg     Config
	metrics metrics
	seed    maphash.Seed
	total   atomic.Int64
	// Who changes a shadow holds the stripe of its thing, through the write and the messages, so that these keep their order.
	locks [stripes]sync.Mutex
}

type metrics struct {
	requests   *prometheus.CounterVec
	accepted   map[string]prometheus.Counter
	rejected   map[string]prometheus.Counter
	registered []prometheus.Collector
}

// Open counts what is kept.
func Open(ctx context.Context, cfg Config) (*Keeper, error) {
	if cfg.Store == nil {
		return nil, errors.New("open shadows: no state store given")
	}
	if cfg.Publish == nil {
		cfg.Publish = func(string, []byte) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	for _, v := range []struct {
		p *int
		d int
	}{{&cfg.Limits.Bytes, 8192}, {&cfg.Limits.Named, 10}, {&cfg.Limits.Total, 500_000}} {
		if *v.p <= 0 {
			*v.p = v.d
		}
	}
	k := &Keeper{cfg: cfg, seed: maphash.MakeSeed()}
	err := cfg.Store.View(ctx, func(r state.Reader) error {
		return r.Scan([]byte(keyShadow), state.PrefixEnd([]byte(keyShadow)), func(_, _ []byte) error {
			k.total.Add(1)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read shadows: %w", err)
	}
	if err := k.observe(cfg.Metrics); err != nil {
		return nil, err
	}
	return k, nil
}

func (k *Keeper) observe(reg prometheus.Registerer) error {
	m := &k.metrics
	m.requests = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "milepost_shadow_requests_total", Help: "Requests to shadows, by operation and outcome.",
	}, []string{"operation", "outcome"})
	m.accepted, m.rejected = map[string]prometheus.Counter{}, map[string]prometheus.Counter{}
	for _, op := range []string{"update", "get", "delete"} {
		m.accepted[op] = m.requests.WithLabelValues(op, "accepted")
		m.rejected[op] = m.requests.WithLabelValues(op, "rejected")
	}
	if reg == nil {
		return nil
	}
	kept := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "milepost_shadow_documents", Help: "Shadows kept, the versions of deleted ones included.",
	}, func() float64 { return float64(k.total.Load()) })
	for _, c := range []prometheus.Collector{m.requests, kept} {
		if err := reg.Register(c); err != nil {
			k.Close()
			return fmt.Errorf("register shadow metrics: %w", err)
		}
		m.registered = append(m.registered, c)
	}
	return nil
}

// Close takes the metrics away. There is nothing else to close.
func (k *Keeper) Close() {
	for _, c := range k.metrics.registered {
		k.cfg.Metrics.Unregister(c)
	}
	k.metrics.registered = nil
}

// Handle takes a message of a device, after the front has checked that the device may publish it. handled is false if the topic is not a
// request to a shadow; what is wrong with a request is told on its topic, /rejected. The answer is on its way when Handle returns.
func (k *Keeper) Handle(ctx context.Context, device, topic string, payload []byte) (handled bool) {
	thing, name, op, ok := ParseTopic(topic)
	if !ok {
		return false
	}
	base := topic // …/update, …/get or …/delete
	var f *Fault
	var token string
	switch op {
	case "update":
		_, token, f = k.Update(ctx, thing, name, payload)
	case "get":
		var answer []byte
		if answer, token, f = k.Get(ctx, thing, name, payload); f == nil {
			k.cfg.Publish(base+"/accepted", answer)
		}
	case "delete":
		_, token, f = k.Delete(ctx, thing, name, payload)
	}
	if f != nil {
		if f.Code >= 500 {
			k.cfg.Log.ErrorContext(ctx, "shadow request failed", "device", device, "topic", topic, "error", f.Message)
		}
		doc := map[string]any{"code": f.Code, "message": f.Message, "timestamp": time.Now().Unix()}
		if token != "" {
			doc["clientToken"] = token
		}
		k.cfg.Publish(base+"/rejected", encode(doc))
	}
	return true
}

// ParseTopic takes the topic of a request apart; name is empty for the classic shadow.
func ParseTopic(topic string) (thing, name, op string, ok bool) {
	rest, ok := strings.CutPrefix(topic, prefixThings)
	if !ok {
		return "", "", "", false
	}
	thing, rest, ok = strings.Cut(rest, "/shadow/")
	if !ok || strings.Contains(thing, "/") {
		return "", "", "", false
	}
	if named, is := strings.CutPrefix(rest, "name/"); is {
		if name, rest, ok = strings.Cut(named, "/"); !ok || name == "" {
			return "", "", "", false
		}
	}
	return thing, name, rest, rest == "update" || rest == "get" || rest == "delete"
}

// base is the topic of a shadow.
func base(thing, name string) string {
	if name == "" {
		return prefixThings + thing + "/shadow"
	}
	return prefixThings + thing + "/shadow/name/" + name
}

func check(thing, name string) *Fault {
	valid := func(s string, most int) bool {
		for _, c := range []byte(s) {
			switch {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-', c == ':':
			default:
				return false
			}
		}
		return len(s) <= most
	}
	if thing == "" || !valid(thing, maxThing) {
		return fault(400, "Invalid thing name: write at most 128 of a-z A-Z 0-9 _ - :")
	}
	if !valid(name, maxName) || strings.HasPrefix(name, "$") {
		return fault(400, "Invalid shadow name: write at most 64 of a-z A-Z 0-9 _ - :")
	}
	return nil
}

func key(thing, name string) []byte { return []byte(keyShadow + thing + "\x00" + name) }

func (k *Keeper) lock(thing string) *sync.Mutex {
	m := &k.locks[maphash.String(k.seed, thing)%stripes]
	m.Lock()
	return m
}

// load returns nil if there has never been such a shadow.
func (k *Keeper) load(ctx context.Context, thing, name string) (*document, *Fault) {
	var d *document
	err := k.cfg.Store.View(ctx, func(r state.Reader) error {
		v, err := r.Get(key(thing, name))
		if err != nil || v == nil {
			return err
		}
		d = new(document)
		return decode(v, d)
	})
	if err != nil {
		k.cfg.Log.ErrorContext(ctx, "shadow cannot be read", "thing", thing, "shadow", name, "error", err)
		return nil, fault(500, "Internal service failure")
	}
	return d, nil
}

func (k *Keeper) count(op string, f *Fault) {
	if f == nil {
		k.metrics.accepted[op].Inc()
	} else {
		k.metrics.rejected[op].Inc()
	}
}

func missing(thing, name string) *Fault {
	if name == "" {
		name = thing
	}
	return fault(404, "No shadow exists with name: '"+name+"'")
}

// Get returns the shadow's document, and the request's client token. The request may be empty.
func (k *Keeper) Get(ctx context.Context, thing, name string, payload []byte) (answer []byte, token string, f *Fault) {
	defer func() { k.count("get", f) }()
	r, f := parseRequest(payload, k.cfg.Limits.Bytes, true)
	if f == nil {
		f = check(thing, name)
	}
	if f != nil {
		return nil, r.token, f
	}
	d, f := k.load(ctx, thing, name)
	if f == nil && (d == nil || d.Deleted) {
		f = missing(thing, name)
	}
	if f != nil {
		return nil, r.token, f
	}
	states := map[string]any{}
	if d.State.Desired != nil {
		states["desired"] = d.State.Desired
	}
	if d.State.Reported != nil {
		states["reported"] = d.State.Reported
	}
	if delta, _ := difference(d.State.Desired, d.Metadata.Desired, d.State.Reported); delta != nil {
		states["delta"] = delta
	}
	doc := map[string]any{"state": states, "metadata": d.Metadata, "version": d.Version, "timestamp": time.Now().Unix()}
	if r.token != "" {
		doc["clientToken"] = r.token
	}
	return encode(doc), r.token, nil
}

// Update changes a shadow and publishes /update/accepted, /update/documents and, if what is desired is not reported, /update/delta. It
// returns the accepted document.
func (k *Keeper) Update(ctx context.Context, thing, name string, payload []byte) (answer []byte, token string, f *Fault) {
	defer func() { k.count("update", f) }()
	r, f := parseRequest(payload, k.cfg.Limits.Bytes, false)
	if f == nil {
		f = check(thing, name)
	}
	if f != nil {
		return nil, r.token, f
	}
	now := time.Now()
	answer, f = k.update(ctx, thing, name, &r, now)
	if f == nil && len(r.reported) > 0 && k.cfg.Reported != nil {
		if err := k.cfg.Reported(ctx, thing, name, encode(r.reported), now); err != nil {
			k.cfg.Log.WarnContext(ctx, "reported state of a shadow is no reading", "thing", thing, "shadow", name, "error", err)
		}
	}
	return answer, r.token, f
}

func (k *Keeper) update(ctx context.Context, thing, name string, r *request, at time.Time) ([]byte, *Fault) {
	defer k.lock(thing).Unlock()
	d, f := k.load(ctx, thing, name)
	if f != nil {
		return nil, f
	}
	fresh := d == nil
	if fresh {
		d = new(document)
		if f := k.roomFor(ctx, thing, name); f != nil {
			return nil, f
		}
	}
	if r.version != nil && *r.version != d.Version {
		return nil, fault(409, "Version conflict")
	}
	now := at.Unix()
	previous := encode(part(d)) // before merge changes it
	existed := !fresh && !d.Deleted
	states, meta := map[string]any{}, map[string]any{}
	apply := func(section string, has bool, change map[string]any, state, stamps *map[string]any) {
		switch {
		case !has:
			return
		case change == nil:
			*state, *stamps = nil, nil
			states[section] = nil
			return
		}
		*state, *stamps = merge(*state, *stamps, change, now)
		if len(*state) == 0 {
			*state, *stamps = nil, nil
		}
		states[section], meta[section] = change, stamped(change, now)
	}
	apply("desired", r.hasDesired, r.desired, &d.State.Desired, &d.Metadata.Desired)
	apply("reported", r.hasReported, r.reported, &d.State.Reported, &d.Metadata.Reported)
	if len(encode(d.State)) > k.cfg.Limits.Bytes {
		return nil, fault(413, "The payload exceeds the maximum size allowed")
	}
	d.Version++
	d.Timestamp, d.Deleted = now, false
	if f := k.store(ctx, thing, name, d); f != nil {
		return nil, f
	}
	if fresh {
		k.total.Add(1)
	}
	with := func(doc map[string]any) []byte {
		doc["timestamp"] = now
		if r.token != "" {
			doc["clientToken"] = r.token
		}
		return encode(doc)
	}
	topic := base(thing, name) + "/update"
	answer := with(map[string]any{"state": states, "metadata": meta, "version": d.Version})
	k.cfg.Publish(topic+"/accepted", answer)
	if delta, deltaMeta := difference(d.State.Desired, d.Metadata.Desired, d.State.Reported); delta != nil {
		k.cfg.Publish(topic+"/delta", with(map[string]any{"state": delta, "metadata": deltaMeta, "version": d.Version}))
	}
	both := map[string]any{"current": part(d)}
	if existed {
		both["previous"] = json.RawMessage(previous)
	}
	k.cfg.Publish(topic+"/documents", with(both))
	return answer, nil
}

// part is a shadow as /update/documents has it.
func part(d *document) map[string]any {
	return map[string]any{"state": d.State, "metadata": d.Metadata, "version": d.Version}
}

func (k *Keeper) roomFor(ctx context.Context, thing, name string) *Fault {
	if k.total.Load() >= int64(k.cfg.Limits.Total) {
		return fault(429, "The server keeps as many shadows as it may: delete things, or raise shadow.total")
	}
	if name == "" {
		return nil
	}
	names, f := k.names(ctx, thing, true)
	if f == nil && len(names) >= k.cfg.Limits.Named {
		f = fault(429, fmt.Sprintf("The thing has %d named shadows: delete one, or raise shadow.named", len(names)))
	}
	return f
}

func (k *Keeper) store(ctx context.Context, thing, name string, d *document) *Fault {
	v := encode(d)
	if err := k.cfg.Store.Update(ctx, func(tx state.Tx) error { return tx.Set(key(thing, name), v) }); err != nil {
		k.cfg.Log.ErrorContext(ctx, "shadow is not stored", "thing", thing, "shadow", name, "error", err)
		return fault(500, "Internal service failure")
	}
	return nil
}

// Delete removes a shadow and publishes /delete/accepted. Its version goes on if it is made again.
func (k *Keeper) Delete(ctx context.Context, thing, name string, payload []byte) (answer []byte, token string, f *Fault) {
	defer func() { k.count("delete", f) }()
	r, f := parseRequest(payload, k.cfg.Limits.Bytes, true)
	if f == nil {
		f = check(thing, name)
	}
	if f != nil {
		return nil, r.token, f
	}
	defer k.lock(thing).Unlock()
	d, f := k.load(ctx, thing, name)
	switch {
	case f != nil:
		return nil, r.token, f
	case d == nil || d.Deleted:
		return nil, r.token, missing(thing, name)
	case r.version != nil && *r.version != d.Version:
		return nil, r.token, fault(409, "Version conflict")
	}
	if f := k.store(ctx, thing, name, &document{Version: d.Version, Deleted: true}); f != nil {
		return nil, r.token, f
	}
	doc := map[string]any{"version": d.Version, "timestamp": time.Now().Unix()}
	if r.token != "" {
		doc["clientToken"] = r.token
	}
	answer = encode(doc)
	k.cfg.Publish(base(thing, name)+"/delete/accepted", answer)
	return answer, r.token, nil
}

// Names returns the names of a thing's named shadows, in order.
func (k *Keeper) Names(ctx context.Context, thing string) ([]string, *Fault) {
	if f := check(thing, ""); f != nil {
		return nil, f
	}
	return k.names(ctx, thing, false)
}

func (k *Keeper) names(ctx context.Context, thing string, deleted bool) ([]string, *Fault) {
	names := []string{}
	from := key(thing, "")
	err := k.cfg.Store.View(ctx, func(r state.Reader) error {
		return r.Scan(from, state.PrefixEnd(from), func(kk, v []byte) error {
			var d document
			if err := decode(v, &d); err != nil {
				return err
			}
			if name := string(kk[len(from):]); name != "" && (deleted || !d.Deleted) {
				names = append(names, name)
			}
			return nil
		})
	})
	if err != nil {
		k.cfg.Log.ErrorContext(ctx, "shadows cannot be read", "thing", thing, "error", err)
		return nil, fault(500, "Internal service failure")
	}
	return names, nil
}
