package lambda

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/milepost/milepost/process"
)

// Starting positions, in Lambda's words.
const (
	startOldest = "TRIM_HORIZON"
	startLatest = "LATEST"
	startAt     = "AT_TIMESTAMP"
)

// A definition is what a mapping is meant to be. It is kept in the state store as JSON, and never changed once published: a change
// publishes a copy.
type definition struct {
	UUID       string            `json:"uuid"`
	Handler    string            `json:"handler"` // keys its checkpoints; fixed at creation
	Function   string            `json:"function"`
	Stream     string            `json:"stream"`
	Consumer   string            `json:"consumer,omitempty"`   // ARN
	Configured bool              `json:"configured,omitempty"` // by the file, which owns all but Enabled
	FileSays   bool              `json:"file_says,omitempty"`  // enabled, when Enabled was last set
	Enabled    bool              `json:"enabled"`
	Deleting   bool              `json:"deleting,omitempty"`
	Modified   time.Time         `json:"modified"`
	Tags       map[string]string `json:"tags,omitempty"`
	Version    uint64            `json:"version"` // counts changes

	BatchSize  int            `json:"batch_size"`
	Window     int            `json:"batch_window,omitempty"` // seconds, as are all durations here
	Parallel   int            `json:"parallel"`
	Start      string         `json:"start"`
	StartTime  time.Time      `json:"start_time,omitzero"`
	MaxRetries int            `json:"max_retries"`
	MaxAge     int            `json:"max_age"` // -1: none
	Bisect     bool           `json:"bisect,omitempty"`
	Report     bool           `json:"report,omitempty"`
	Metrics    []string       `json:"metrics,omitempty"` // that the API was asked for
	Filters    []string       `json:"filters,omitempty"`
	Tumbling   int            `json:"tumbling,omitempty"`
	OnFailure  string         `json:"on_failure,omitempty"`
	Output     string         `json:"output,omitempty"`
	Priority   int            `json:"priority,omitempty"`
	Overflow   OverflowConfig `json:"overflow,omitzero"`
	Breaker    BreakerConfig  `json:"breaker,omitzero"`
}

func (d *definition) clone() *definition {
	c := *d
	c.Tags, c.Filters, c.Metrics = maps.Clone(d.Tags), slices.Clone(d.Filters), slices.Clone(d.Metrics)
	return &c
}

// newUUID returns a random one.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// define makes the definition of a mapping of the configuration. It has the same UUID in every run.
func (c *MappingConfig) define(function, consumerARN string, now time.Time) *definition {
	start, _ := c.startTime() // checked
	d := &definition{
		UUID: requestID("mapping/" + function + "/" + c.Stream + "/" + c.Consumer), Handler: function + "@" + c.Stream,
		Function: function, Stream: c.Stream, Consumer: consumerARN, Configured: true, FileSays: c.Enabled, Enabled: c.Enabled, Modified: now,
		BatchSize: c.BatchSize, Window: int(c.BatchWindow / time.Second), Parallel: c.Parallel, Start: c.Start, StartTime: start,
		MaxRetries: c.MaxRetries, MaxAge: int(c.MaxAge / time.Second), Bisect: c.Bisect, Report: c.ReportFailures, Filters: slices.Clone(c.Filters),
		Tumbling: int(c.Tumbling / time.Second), OnFailure: c.OnFailure, Output: c.Output, Priority: c.Priority, Overflow: c.Overflow, Breaker: c.Breaker,
	}
	if c.Consumer != "" {
		d.Handler += "/" + c.Consumer
	}
	if d.MaxAge == 0 {
		d.MaxAge = -1
	}
	return d
}

// keep takes over from what an earlier run has stored what the file does not own: pausing by hand, until the file says otherwise.
func (d *definition) keep(was *definition) {
	d.Tags, d.Version, d.Handler = was.Tags, was.Version, was.Handler
	if was.FileSays == d.FileSays {
		d.Enabled = was.Enabled
	}
}

// options are what the runner is told of a mapping, but for what needs the running mapping.
func (d *definition) options() process.Options {
	o := process.Options{
		StartTime: d.StartTime, Lanes: d.Parallel, MaxAttempts: -1, BatchSize: d.BatchSize, BatchBytes: maxPayload - 1024,
		BatchWindow: time.Duration(d.Window) * time.Second, Bisect: d.Bisect, Tumbling: time.Duration(d.Tumbling) * time.Second,
		Output: d.Output, StableBatches: true, Priority: d.Priority,
		Breaker: process.Breaker{Failures: d.Breaker.Failures, Pause: d.Breaker.Pause},
		Overflow: process.Overflow{
			Policy: process.OverflowPolicy(d.Overflow.Policy), MaxAge: d.Overflow.MaxAge, MaxLag: d.Overflow.MaxLag,
			OneIn: d.Overflow.OneIn, WholeKeys: d.Overflow.WholeKeys, Interval: d.Overflow.Interval,
		},
	}
	if d.MaxRetries >= 0 {
		o.MaxAttempts = d.MaxRetries + 1
	}
	if d.MaxAge > 0 {
		o.MaxAge = time.Duration(d.MaxAge) * time.Second
	}
	o.Start = process.Oldest
	switch d.Start {
	case startLatest:
		o.Start = process.Latest
	case startAt:
		o.Start = process.AtTime
	}
	return o
}

// source is the ARN that the mapping reads: the stream's or the consumer's.
func (r *Registry) sourceARN(d *definition) string {
	if d.Consumer != "" {
		return d.Consumer
	}
	return r.streamARN(d.Stream)
}

func (r *Registry) streamARN(name string) string {
	return "arn:aws:kinesis:" + r.cfg.Region + ":" + r.cfg.Account + ":stream/" + name
}

func (r *Registry) functionARN(name string) string {
	return "arn:aws:lambda:" + r.cfg.Region + ":" + r.cfg.Account + ":function:" + name
}

func (r *Registry) mappingARN(uuid string) string {
	return "arn:aws:lambda:" + r.cfg.Region + ":" + r.cfg.Account + ":event-source-mapping:" + uuid
}

func (r *Registry) role(function string) string {
	return "arn:aws:iam::" + r.cfg.Account + ":role/" + function
}

// epoch writes a time as Lambda's API does: a number of seconds.
func epoch(t time.Time) jsonSeconds {
	if t.IsZero() {
		return 0
	}
	return jsonSeconds(float64(t.UnixMilli()) / 1000)
}

type jsonSeconds float64

// MarshalJSON writes at most milliseconds.
func (s jsonSeconds) MarshalJSON() ([]byte, error) {
	ms := int64(math.Round(float64(s) * 1000))
	if ms%1000 == 0 {
		return fmt.Appendf(nil, "%d.0", ms/1000), nil
	}
	return fmt.Appendf(nil, "%d.%03d", ms/1000, ms%1000), nil
}
