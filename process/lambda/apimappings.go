package lambda

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/milepost/milepost/process/pattern"
	"github.com/milepost/milepost/stream"
)

// A mappingInput is what Create and Update take. nil: not given.
type mappingInput struct {
	FunctionName                   *string
	EventSourceArn                 *string
	Enabled                        *bool
	BatchSize                      *int
	MaximumBatchingWindowInSeconds *int
	ParallelizationFactor          *int
	StartingPosition               *string
	StartingPositionTimestamp      *float64
	MaximumRecordAgeInSeconds      *int
	MaximumRetryAttempts           *int
	BisectBatchOnFunctionError     *bool
	TumblingWindowInSeconds        *int
	FunctionResponseTypes          *[]string
	FilterCriteria                 *filterCriteria
	DestinationConfig              *destinationConfig
	Tags                           map[string]string

	// Of other sources, or of what is not here. Given empty they are let pass, as tools do.
	AmazonManagedKafkaEventSourceConfig, DocumentDBEventSourceConfig, ProvisionedPollerConfig, Queues, ScalingConfig,
	SelfManagedEventSource, SelfManagedKafkaEventSourceConfig, SourceAccessConfigurations, Topics, KMSKeyArn, LoggingConfig json.RawMessage

	MetricsConfig *metricsConfig // metrics are always there: what was asked for is told again
}

type (
	filterCriteria struct{ Filters []filterPattern }
	filterPattern  struct{ Pattern string }

	destinationConfig struct {
		OnFailure *destination `json:",omitempty"`
		OnSuccess *destination `json:",omitempty"`
	}
	destination struct {
		Destination string `json:",omitempty"`
	}

	metricsConfig struct {
		Metrics []string `json:",omitempty"`
	}
)

// A mappingOutput is a mapping as the API shows it.
type mappingOutput struct {
	UUID                           string
	StartingPosition               string
	StartingPositionTimestamp      *jsonSeconds `json:",omitempty"`
	BatchSize                      int
	MaximumBatchingWindowInSeconds int
	ParallelizationFactor          int
	EventSourceArn                 string
	FilterCriteria                 *filterCriteria `json:",omitempty"`
	MetricsConfig                  *metricsConfig  `json:",omitempty"`
	FunctionArn                    string
	LastModified                   jsonSeconds
	LastProcessingResult           string
	State                          string
	StateTransitionReason          string
	DestinationConfig              destinationConfig
	MaximumRecordAgeInSeconds      int
	BisectBatchOnFunctionError     bool
	MaximumRetryAttempts           int
	TumblingWindowInSeconds        int
	FunctionResponseTypes          []string
	EventSourceMappingArn          string
}

const reportItems = "ReportBatchItemFailures"

func (r *Registry) output(v view) mappingOutput {
	d := v.def
	o := mappingOutput{
		UUID: d.UUID, StartingPosition: d.Start, BatchSize: d.BatchSize, MaximumBatchingWindowInSeconds: d.Window,
		ParallelizationFactor: d.Parallel, EventSourceArn: r.sourceARN(d), FunctionArn: r.functionARN(d.Function), LastModified: epoch(d.Modified),
		LastProcessingResult: v.result, State: v.state, StateTransitionReason: reasonUser,
		DestinationConfig:         destinationConfig{OnFailure: &destination{r.destinationARN(d.OnFailure)}},
		MaximumRecordAgeInSeconds: d.MaxAge, BisectBatchOnFunctionError: d.Bisect, MaximumRetryAttempts: d.MaxRetries,
		TumblingWindowInSeconds: d.Tumbling, FunctionResponseTypes: []string{}, EventSourceMappingArn: r.mappingARN(d.UUID),
	}
	if d.Start == startAt {
		t := epoch(d.StartTime)
		o.StartingPositionTimestamp = &t
	}
	if len(d.Metrics) > 0 {
		o.MetricsConfig = &metricsConfig{d.Metrics}
	}
	if d.Report {
		o.FunctionResponseTypes = []string{reportItems}
	}
	if len(d.Filters) > 0 {
		o.FilterCriteria = &filterCriteria{}
		for _, f := range d.Filters {
			o.FilterCriteria.Filters = append(o.FilterCriteria.Filters, filterPattern{f})
		}
	}
	return o
}

// destinationARN writes what the file may call stream:NAME or s3://NAME as the API does. What is posted or written to a directory has no
// ARN and is told as it is.
func (r *Registry) destinationARN(s string) string {
	if t, err := parseTarget(s, true); err == nil && !strings.HasPrefix(s, "arn:") {
		switch t.kind {
		case toStream:
			return r.streamARN(t.name)
		case toBucket:
			return "arn:aws:s3:::" + t.name
		case toDir, toHTTP:
		}
	}
	return s
}

// foreign refuses what belongs to other kinds of sources.
func (in *mappingInput) foreign() error {
	for _, f := range []struct {
		name  string
		value json.RawMessage
	}{
		{"AmazonManagedKafkaEventSourceConfig", in.AmazonManagedKafkaEventSourceConfig},
		{"DocumentDBEventSourceConfig", in.DocumentDBEventSourceConfig},
		{"ProvisionedPollerConfig", in.ProvisionedPollerConfig},
		{"Queues", in.Queues},
		{"ScalingConfig", in.ScalingConfig},
		{"SelfManagedEventSource", in.SelfManagedEventSource},
		{"SelfManagedKafkaEventSourceConfig", in.SelfManagedKafkaEventSourceConfig},
		{"SourceAccessConfigurations", in.SourceAccessConfigurations},
		{"Topics", in.Topics},
		{"KMSKeyArn", in.KMSKeyArn},
		{"LoggingConfig", in.LoggingConfig},
	} {
		switch string(f.value) {
		case "", "null", "{}", "[]", `""`:
		default:
			return invalidf("%s is not supported for Kinesis event sources here.", f.name)
		}
	}
	return nil
}

// apply puts what is given into a definition.
func (in *mappingInput) apply(r *Registry, d *definition) error {
	if err := in.foreign(); err != nil {
		return err
	}
	for _, n := range []struct {
		name   string
		v      *int
		lo, hi int
		to     *int
	}{
		{"batchSize", in.BatchSize, 1, maxBatch, &d.BatchSize},
		{"maximumBatchingWindowInSeconds", in.MaximumBatchingWindowInSeconds, 0, maxWindow, &d.Window},
		{"parallelizationFactor", in.ParallelizationFactor, 1, maxParallel, &d.Parallel},
		{"maximumRecordAgeInSeconds", in.MaximumRecordAgeInSeconds, -1, maxAge, &d.MaxAge},
		{"maximumRetryAttempts", in.MaximumRetryAttempts, -1, maxRetries, &d.MaxRetries},
		{"tumblingWindowInSeconds", in.TumblingWindowInSeconds, 0, maxTumbling, &d.Tumbling},
	} {
		switch {
		case n.v == nil:
			continue
		case *n.v < n.lo:
			return constraint(*n.v, n.name, fmt.Sprintf("Member must have value greater than or equal to %d", n.lo))
		case *n.v > n.hi:
			return constraint(*n.v, n.name, fmt.Sprintf("Member must have value less than or equal to %d", n.hi))
		}
		*n.to = *n.v
	}
	if d.MaxAge != -1 && d.MaxAge < minAge {
		return invalidf("MaximumRecordAgeInSeconds must be -1, or between %d and %d.", minAge, maxAge)
	}
	if d.Tumbling > 0 && d.Parallel > 1 {
		return invalidf("TumblingWindowInSeconds requires a ParallelizationFactor of 1.")
	}
	if in.BisectBatchOnFunctionError != nil {
		d.Bisect = *in.BisectBatchOnFunctionError
	}
	if in.Enabled != nil {
		d.Enabled = *in.Enabled
	}
	if in.FunctionResponseTypes != nil {
		d.Report = false
		if n := len(*in.FunctionResponseTypes); n > 1 {
			return constraint(*in.FunctionResponseTypes, "functionResponseTypes", "Member must have length less than or equal to 1")
		}
		for _, t := range *in.FunctionResponseTypes {
			if t != reportItems {
				return constraint("["+t+"]", "functionResponseTypes", "Member must satisfy constraint: [Member must satisfy enum value set: [ReportBatchItemFailures]]")
			}
			d.Report = true
		}
	}
	if in.MetricsConfig != nil {
		if err := in.MetricsConfig.check(); err != nil {
			return err
		}
		d.Metrics = in.MetricsConfig.Metrics
	}
	if in.FilterCriteria != nil {
		d.Filters = nil
		for _, f := range in.FilterCriteria.Filters {
			if utf8.RuneCountInString(f.Pattern) > pattern.MaxLength {
				return constraint(f.Pattern, "filterCriteria.filters", fmt.Sprintf("Member must satisfy constraint: [Member must have length less than or equal to %d]", pattern.MaxLength))
			}
			d.Filters = append(d.Filters, f.Pattern)
		}
		if len(d.Filters) > pattern.MaxFilters {
			return constraint(len(d.Filters), "filterCriteria.filters", fmt.Sprintf("Member must have length less than or equal to %d", pattern.MaxFilters))
		}
		if _, err := pattern.CompileAny(d.Filters...); err != nil {
			return invalidf("Invalid filter pattern definition. %v", err)
		}
	}
	if c := in.DestinationConfig; c != nil {
		if c.OnSuccess != nil && c.OnSuccess.Destination != "" {
			return invalidf("Destinations for successful invocations are not supported for stream event sources. Use only OnFailure.")
		}
		d.OnFailure = ""
		if c.OnFailure != nil && c.OnFailure.Destination != "" {
			if err := r.checkDestination(c.OnFailure.Destination); err != nil {
				return err
			}
			d.OnFailure = c.OnFailure.Destination
		}
	}
	if in.FunctionName != nil {
		name, qualifier, ok := r.functionName(*in.FunctionName)
		if !ok {
			return noFunctionName(*in.FunctionName)
		}
		if r.functions[name] == nil || (qualifier != "" && qualifier != version) {
			return invalidf("Function does not exist")
		}
		d.Function = name
	}
	return nil
}

// check refuses other sources' metrics.
func (m *metricsConfig) check() error {
	if len(m.Metrics) > 3 {
		return constraint(m.Metrics, "metricsConfig.metrics", "Member must have length less than or equal to 3")
	}
	for _, name := range m.Metrics {
		switch name {
		case "EventCount":
		case "ErrorCount", "KafkaMetrics":
			return invalidf("MetricsConfig: %s is not supported for Kinesis event sources, EventCount is.", name)
		default:
			return constraint("["+name+"]", "metricsConfig.metrics", "Member must satisfy constraint: [Member must satisfy enum value set: [EventCount, ErrorCount, KafkaMetrics]]")
		}
	}
	return nil
}

func (r *Registry) checkDestination(s string) error {
	if len(s) > maxDestination {
		return constraint(s, "destinationConfig.onFailure.destination", fmt.Sprintf("Member must have length less than or equal to %d", maxDestination))
	}
	t, err := parseTarget(s, false)
	if err != nil {
		return invalidf("Invalid destination: %v.", err)
	}
	if t.kind == toStream {
		if _, err := r.cfg.Stream(t.name); errors.Is(err, stream.ErrNoStream) {
			return invalidf("Invalid destination: there is no stream %s: create it first.", t.name)
		} else if err != nil {
			return err
		}
	}
	if t.kind == toBucket && r.cfg.Buckets == "" {
		return invalidf("Invalid destination: there are no buckets here: use a stream.")
	}
	return nil
}

// sourceOf reads an event source ARN: a stream's or a consumer's.
func (r *Registry) sourceOf(arn string) (streamName, consumer string, err error) {
	rest, isARN := strings.CutPrefix(arn, "arn:")
	parts := strings.SplitN(rest, ":", 5)
	if !isARN || len(parts) != 5 || parts[1] == "" {
		return "", "", constraint(arn, "eventSourceArn", `Member must satisfy regular expression pattern: arn:(aws[a-zA-Z0-9-]*):([a-zA-Z0-9\-])+:((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1})?:(\d{12})?:(.*)`)
	}
	if parts[1] != "kinesis" {
		return "", "", invalidf("Unrecognized event source, must be kinesis.")
	}
	name, isStream := strings.CutPrefix(parts[4], "stream/")
	name, rest, hasConsumer := strings.Cut(name, "/")
	missing := invalidf("Stream not found: %s", arn)
	if !isStream || !isStreamName(name) || parts[2] != r.cfg.Region || parts[3] != r.cfg.Account {
		return "", "", missing
	}
	if _, err := r.cfg.Stream(name); errors.Is(err, stream.ErrNoStream) {
		return "", "", missing
	} else if err != nil {
		return "", "", err
	}
	if !hasConsumer {
		return name, "", nil
	}
	if !strings.HasPrefix(rest, "consumer/") {
		return "", "", missing
	}
	if _, err := r.consumer(name, arn); err != nil {
		return "", "", invalidf("Consumer not found: %s", arn)
	}
	return name, arn, nil
}

func createMapping(ctx context.Context, c *call) (any, error) {
	var in mappingInput
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	if err := c.access("*"); err != nil {
		return nil, err
	}
	switch {
	case in.FunctionName == nil:
		return nil, constraint(nil, "functionName", "Member must not be null")
	case in.EventSourceArn == nil:
		return nil, invalidf("Unrecognized event source, must be kinesis.")
	}
	r := c.r
	d := &definition{
		UUID: newUUID(), Enabled: true, BatchSize: 100, Parallel: 1, MaxRetries: -1, MaxAge: -1,
		Modified: time.Now().Truncate(time.Millisecond), Tags: maps.Clone(in.Tags), Version: 1,
	}
	if err := checkTags(d.Tags); err != nil {
		return nil, err
	}
	var err error
	if err := in.apply(r, d); err != nil {
		return nil, err
	}
	if d.Stream, d.Consumer, err = r.sourceOf(*in.EventSourceArn); err != nil {
		return nil, err
	}
	if err := in.start(d, time.Now()); err != nil {
		return nil, err
	}
	d.Handler = d.Function + "@" + d.Stream + "#" + d.UUID[:8]
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, errClosed
	}
	if err := r.uniqueLocked(d); err != nil {
		return nil, err
	}
	if err := r.save(ctx, d); err != nil {
		return nil, err
	}
	v := view{def: d, state: stateCreating, result: resultNone}
	r.beginLocked(d)
	return r.output(v), nil
}

// start reads where the mapping begins.
func (in *mappingInput) start(d *definition, now time.Time) error {
	if in.StartingPosition == nil {
		return invalidf("1 validation error detected: Value null at 'startingPosition' failed to satisfy constraint: Member must not be null.")
	}
	d.Start = *in.StartingPosition
	if d.Start != startOldest && d.Start != startLatest && d.Start != startAt {
		return constraint(d.Start, "startingPosition", "Member must satisfy enum value set: [LATEST, AT_TIMESTAMP, TRIM_HORIZON]")
	}
	switch at := in.StartingPositionTimestamp; {
	case (d.Start == startAt) != (at != nil):
		return invalidf("StartingPositionTimestamp must be given with StartingPosition AT_TIMESTAMP, and with it only.")
	case at == nil:
	case *at < 0 || *at > float64(math.MaxInt32)*2:
		return invalidf("StartingPositionTimestamp is not a time.")
	default:
		d.StartTime = time.UnixMilli(int64(math.Round(*at * 1000))).UTC()
		if d.StartTime.After(now) {
			return invalidf("The StartingPositionTimestamp cannot be in the future.")
		}
	}
	return nil
}

// uniqueLocked refuses a second mapping of one function on one source.
func (r *Registry) uniqueLocked(d *definition) error {
	for _, m := range r.mappings {
		m.mu.Lock()
		o := m.def
		m.mu.Unlock()
		if o.UUID != d.UUID && o.Function == d.Function && o.Stream == d.Stream && o.Consumer == d.Consumer && !o.Deleting {
			return &fault{http.StatusConflict, typeConflict, fmt.Sprintf(
				"The event source arn (\" %s \") and function (\" %s \") provided mapping already exists. Please update or delete the existing mapping with UUID %s",
				r.sourceARN(d), d.Function, o.UUID)}
		}
	}
	return nil
}

// mapping finds the mapping of the request's path and checks access to it.
func (c *call) mapping() (*mapping, error) {
	if err := c.access(c.r.mappingARN(c.arg)); err != nil {
		return nil, err
	}
	m := c.r.mapping(c.arg)
	if m == nil {
		return nil, noMapping()
	}
	return m, nil
}

func readMapping(_ context.Context, c *call) (any, error) {
	m, err := c.mapping()
	if err != nil {
		return nil, err
	}
	return c.r.output(m.view()), nil
}

func listMappings(_ context.Context, c *call) (any, error) {
	if err := c.access("*"); err != nil {
		return nil, err
	}
	q := c.req.URL.Query()
	function, arn := "", q.Get("EventSourceArn")
	if s := q.Get("FunctionName"); s != "" {
		name, _, ok := c.r.functionName(s)
		if !ok {
			return nil, noFunctionName(s)
		}
		function = name
	}
	out := struct {
		NextMarker          string `json:",omitempty"`
		EventSourceMappings []mappingOutput
	}{EventSourceMappings: []mappingOutput{}}
	for _, m := range c.r.list() {
		v := m.view()
		if (function == "" || v.def.Function == function) && (arn == "" || c.r.sourceARN(v.def) == arn) {
			out.EventSourceMappings = append(out.EventSourceMappings, c.r.output(v))
		}
	}
	from, to, next, err := c.page(len(out.EventSourceMappings), 100)
	if err != nil {
		return nil, err
	}
	out.EventSourceMappings, out.NextMarker = out.EventSourceMappings[from:to], next
	return out, nil
}

// inUse refuses to change a mapping that is on its way to another state.
func (m *mapping) inUse() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != stateEnabled && m.state != stateDisabled {
		return &fault{http.StatusBadRequest, typeInUse, "Cannot update the event source mapping because it is in use."}
	}
	return nil
}

func updateMapping(ctx context.Context, c *call) (any, error) {
	m, err := c.mapping()
	if err != nil {
		return nil, err
	}
	var in mappingInput
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	if in.EventSourceArn != nil || in.StartingPosition != nil || in.StartingPositionTimestamp != nil {
		in.EventSourceArn, in.StartingPosition, in.StartingPositionTimestamp = nil, nil, nil // Update does not know them, and AWS passes over what it does not know
	}
	v, err := m.change(ctx, stateUpdating, func(d *definition) error {
		if err := m.inUse(); err != nil {
			return err
		}
		was := d.clone()
		if err := in.apply(c.r, d); err != nil {
			return err
		}
		if was.Configured {
			asked := d.clone()
			asked.Enabled = was.Enabled
			if !sameDefinition(was, asked) {
				return invalidf("This mapping belongs to Milepost's configuration file (functions.%s.on): change it there. Through the API it can be enabled and disabled.", was.Function)
			}
		}
		return c.r.uniqueLocked(d)
	})
	if err != nil {
		return nil, err
	}
	return c.r.output(v), nil
}

func sameDefinition(a, b *definition) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

func deleteMapping(ctx context.Context, c *call) (any, error) {
	m, err := c.mapping()
	if err != nil {
		return nil, err
	}
	v, err := m.change(ctx, stateDeleting, func(d *definition) error {
		if d.Configured {
			return invalidf("This mapping belongs to Milepost's configuration file (functions.%s.on): remove it there, or disable it.", d.Function)
		}
		if d.Deleting {
			return &fault{http.StatusBadRequest, typeInUse, "The event source mapping is being deleted."}
		}
		d.Deleting = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	return c.r.output(v), nil
}

const maxTags = 50

func checkTags(tags map[string]string) error {
	if len(tags) > maxTags {
		return invalidf("The number of tags exceeds the limit of %d.", maxTags)
	}
	for k, v := range tags {
		if k == "" || len(k) > 128 || len(v) > 256 || strings.HasPrefix(strings.ToLower(k), "aws:") {
			return invalidf("Tag %q is not valid: a key has 1 to 128 characters and does not begin with aws:, a value has up to 256.", k)
		}
	}
	return nil
}

// tagged finds the mapping of an ARN; nil for a function, which has no tags.
func (c *call) tagged() (*mapping, error) {
	if err := c.access(c.arg); err != nil {
		return nil, err
	}
	if uuid, ok := strings.CutPrefix(c.arg, c.r.mappingARN("")); ok {
		if m := c.r.mapping(uuid); m != nil {
			return m, nil
		}
	} else if name, ok := strings.CutPrefix(c.arg, c.r.functionARN("")); ok && c.r.functions[name] != nil {
		return nil, nil //nolint:nilnil // see above
	}
	return nil, noMapping()
}

func listTags(_ context.Context, c *call) (any, error) {
	m, err := c.tagged()
	if err != nil {
		return nil, err
	}
	out := struct{ Tags map[string]string }{map[string]string{}}
	if m != nil {
		maps.Copy(out.Tags, m.view().def.Tags)
	}
	return out, nil
}

// changeTags changes tags alone, which needs no transition.
func (c *call) changeTags(ctx context.Context, f func(map[string]string)) error {
	m, err := c.tagged()
	if err != nil {
		return err
	}
	if m == nil {
		return invalidf("Functions have no tags here.")
	}
	m.r.mu.Lock()
	defer m.r.mu.Unlock()
	m.mu.Lock()
	d := m.def.clone()
	m.mu.Unlock()
	if d.Tags == nil {
		d.Tags = map[string]string{}
	}
	f(d.Tags)
	if err := checkTags(d.Tags); err != nil {
		return err
	}
	if err := m.r.save(ctx, d); err != nil {
		return err
	}
	m.mu.Lock()
	m.def = d
	m.mu.Unlock()
	m.wake()
	return nil
}

func tagResource(ctx context.Context, c *call) (any, error) {
	var in struct{ Tags map[string]string }
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	if in.Tags == nil {
		return nil, constraint(nil, "tags", "Member must not be null")
	}
	return nil, c.changeTags(ctx, func(t map[string]string) { maps.Copy(t, in.Tags) })
}

func untagResource(ctx context.Context, c *call) (any, error) {
	keys := c.req.URL.Query()["tagKeys"]
	if len(keys) == 0 {
		return nil, constraint(nil, "tagKeys", "Member must not be null")
	}
	return nil, c.changeTags(ctx, func(t map[string]string) {
		maps.DeleteFunc(t, func(k, _ string) bool { return slices.Contains(keys, k) })
	})
}
