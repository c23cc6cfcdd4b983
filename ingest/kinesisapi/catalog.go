package kinesisapi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/milepost/milepost/ingest/kinesisapi/policy"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/stream/seglog"
)

// Statuses of streams and consumers.
const (
	creating = "CREATING"
	active   = "ACTIVE"
	updating = "UPDATING"
	deleting = "DELETING"
)

const (
	provisioned = "PROVISIONED"
	onDemand    = "ON_DEMAND"
	kms         = "KMS"
	none        = "NONE"
)

// A streamMeta is what the door knows of a stream beyond the log. It is never changed once published: a change publishes a copy.
// Times are in ms.
type streamMeta struct {
	Name          string
	Created       int64
	Status        string
	Until         int64             `json:",omitempty"` // when the status ends
	BuiltIn       bool              `json:",omitempty"` // the platform's own: neither created nor deleted here
	Mode          string            //
	Shards        int               `json:",omitempty"` // at creation, while CREATING
	MaxRecordKiB  int64             `json:",omitempty"` // at creation, while CREATING
	Target        int               `json:",omitempty"` // how many shards resharding in progress leads to
	Tags          map[string]string `json:",omitempty"`
	Key           string            `json:",omitempty"` // encrypted with
	Metrics       []string          `json:",omitempty"` // shard-level ones that are switched on
	WarmMiB       int64             `json:",omitempty"`
	Distribution  string            `json:",omitempty"`
	Policy        string            `json:",omitempty"`
	CountChanges  []int64           `json:",omitempty"` // UpdateShardCount in the last 24 h
	ModeChanges   []int64           `json:",omitempty"` // UpdateStreamMode in the last 24 h
	Consumers     []consumerMeta    `json:",omitempty"`
	live          *live             // of this process; nil while the log is not there
	parsedPolicy  *policy.Policy
	parsedCPolicy map[string]*policy.Policy
}

// A consumerMeta is an enhanced fan-out consumer.
type consumerMeta struct {
	Name    string
	Created int64
	Status  string
	Until   int64             `json:",omitempty"`
	Tags    map[string]string `json:",omitempty"`
	Policy  string            `json:",omitempty"`
}

// A catalog is all metadata at one moment. It is never changed once published.
type catalog struct {
	Streams    map[string]*streamMeta
	Commitment commitment
}

// commitment is the account's minimum throughput billing commitment.
type commitment struct {
	Status  string `json:",omitempty"`
	Started int64  `json:",omitempty"`
	Ended   int64  `json:",omitempty"`
}

func (c *catalog) clone() *catalog {
	return &catalog{Streams: maps.Clone(c.Streams), Commitment: c.Commitment}
}

// edit returns a copy of a stream's metadata that the caller may change, already in its place.
func (c *catalog) edit(name string) *streamMeta {
	m := *c.Streams[name]
	m.Tags = maps.Clone(m.Tags)
	m.Metrics = slices.Clone(m.Metrics)
	m.Consumers = slices.Clone(m.Consumers)
	c.Streams[name] = &m
	return &m
}

// change makes one change of the metadata: f edits a copy, which is written and then published. Nothing is changed if f fails or
// the disk does. changeMu is held across the write on purpose: changes are few, and readers never wait for it.
func (d *Door) change(f func(*catalog) error) error {
	d.changeMu.Lock()
	defer d.changeMu.Unlock()
	c := d.catalog.Load().clone()
	if err := f(c); err != nil {
		return err
	}
	return d.publish(c)
}

func (d *Door) publish(c *catalog) error {
	for _, m := range c.Streams {
		if err := m.parsePolicies(d.cfg.Account); err != nil {
			return fmt.Errorf("stream %s: %w", m.Name, err)
		}
	}
	b, err := encodeMeta(c)
	if err != nil {
		return err
	}
	if err := writeFile(d.cfg.FS, d.cfg.Dir, metaFile, b); err != nil {
		return err
	}
	d.catalog.Store(c)
	d.wake()
	return nil
}

func (m *streamMeta) parsePolicies(account string) error {
	m.parsedPolicy, m.parsedCPolicy = nil, nil
	if m.Policy != "" {
		p, err := policy.Parse([]byte(m.Policy), account)
		if err != nil {
			return err
		}
		m.parsedPolicy = p
	}
	for i := range m.Consumers {
		if m.Consumers[i].Policy == "" {
			continue
		}
		p, err := policy.Parse([]byte(m.Consumers[i].Policy), account)
		if err != nil {
			return err
		}
		if m.parsedCPolicy == nil {
			m.parsedCPolicy = map[string]*policy.Policy{}
		}
		m.parsedCPolicy[m.Consumers[i].Name] = p
	}
	return nil
}

// load reads the metadata and makes it agree with the log: built-in streams appear, and what a crash interrupted goes on.
func (d *Door) load(ctx context.Context) error {
	c := &catalog{}
	if _, err := readMeta(d.cfg.FS, d.cfg.Dir, c); err != nil {
		return err
	}
	if c.Streams == nil {
		c.Streams = map[string]*streamMeta{}
	}
	for _, name := range d.cfg.Reserved {
		log, err := d.cfg.Store.Stream(name)
		if err != nil {
			return fmt.Errorf("built-in stream %s: %w", name, err)
		}
		if c.Streams[name] == nil {
			c.Streams[name] = &streamMeta{Name: name, Created: log.Created().UnixMilli(), Status: active, Mode: provisioned}
		}
		c.Streams[name].BuiltIn = true
	}
	for name, m := range c.Streams {
		m.Name = name
		if err := d.attach(ctx, m); err != nil {
			return err
		}
		if m.live == nil {
			d.cfg.Log.WarnContext(ctx, "a stream is in the metadata but not in the log, and is forgotten", "stream", name)
			delete(c.Streams, name)
		}
	}
	d.changeMu.Lock()
	defer d.changeMu.Unlock()
	return d.publish(c)
}

// attach finds a stream's log. Creating a stream writes the metadata first, so one that is CREATING may have no log yet.
func (d *Door) attach(ctx context.Context, m *streamMeta) error {
	log, err := d.cfg.Store.Stream(m.Name)
	switch {
	case errors.Is(err, stream.ErrNoStream) && m.Status == creating:
		log, err = d.cfg.Store.Ensure(ctx, m.Name, m.logConfig())
	case errors.Is(err, stream.ErrNoStream):
		return nil
	}
	if err != nil {
		return fmt.Errorf("stream %s: %w", m.Name, err)
	}
	m.live = d.newLive(m.Name, log)
	return m.live.refresh(ctx)
}

func (m *streamMeta) logConfig() seglog.StreamConfig {
	return seglog.StreamConfig{Shards: m.Shards, Retention: 24 * time.Hour, MaxRecordBytes: int(max(m.MaxRecordKiB, 1024) << 10)}
}

// find returns a stream that is known in any status.
func (d *Door) find(name string) (*streamMeta, error) {
	if m := d.catalog.Load().Streams[name]; m != nil {
		return m, nil
	}
	return nil, d.noStream(name)
}

func (d *Door) noStream(name string) error {
	return faultf(typeNotFound, "Stream %s under account %s not found.", name, d.cfg.Account)
}

// usable returns a stream whose records can be put and read: not one that is being created or deleted.
func (d *Door) usable(name string) (*streamMeta, error) {
	m := d.catalog.Load().Streams[name]
	if m == nil || m.Status == creating || m.Status == deleting {
		return nil, d.noStream(name)
	}
	return m, nil
}

// mustBe refuses what only an ACTIVE stream may do.
func (d *Door) mustBeActive(m *streamMeta) error {
	if m.Status == active {
		return nil
	}
	return faultf(typeInUse, "Stream %s under account %s not ACTIVE, instead in state %s", m.Name, d.cfg.Account, m.Status)
}

// during puts a stream in a status that ends after the transition's time, which may be none.
func (d *Door) during(m *streamMeta, status string, now time.Time) {
	m.Status, m.Until = status, now.Add(d.transition).UnixMilli()
	if d.transition == 0 && status != deleting && m.Target == 0 {
		m.Status, m.Until = active, 0
	}
}

func (m *streamMeta) consumer(name string) *consumerMeta {
	for i := range m.Consumers {
		if m.Consumers[i].Name == name {
			return &m.Consumers[i]
		}
	}
	return nil
}

func (d *Door) streamARN(name string) string {
	return "arn:aws:kinesis:" + d.cfg.Region + ":" + d.cfg.Account + ":stream/" + name
}

func (d *Door) consumerARN(streamName string, c *consumerMeta) string {
	return fmt.Sprintf("%s/consumer/%s:%d", d.streamARN(streamName), c.Name, c.Created/1000)
}
