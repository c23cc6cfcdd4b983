package lambda

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/internal/conf"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/state/local"
)

type file struct {
	Functions Functions `yaml:"functions"`
}

func load(t *testing.T, text string) (Functions, error) {
	t.Helper()
	var f file
	if err := conf.Load([]byte(text), &f); err != nil {
		return nil, err
	}
	return f.Functions, f.Functions.Validate()
}

func TestConfig(t *testing.T) {
	f, err := load(t, `
functions:
  score:
    url: https://example.com/score
    secret: 0123456789abcdef
    timeout: 30s
    on:
      - stream: readings
      - stream: payments
        consumer: fraud
        enabled: false
        batch_size: 500
        batch_window: 5s
        start: AT_TIMESTAMP
        start_time: 2026-01-02T15:04:05Z
        max_retries: 3
        max_age: 1h
        bisect: true
        report_item_failures: true
        filters: ['{"data":{"amount":[{"numeric":[">",100]}]}}']
        tumbling_window: 1m
        on_failure: s3://failed
        output: scores
        priority: 2
        overflow: {policy: sample, max_age: 10m}
        breaker: {failures: 5}
`)
	if err != nil {
		t.Fatal(err)
	}
	c := f["score"]
	if c.Timeout != 30*time.Second || c.Concurrency != 10 || c.Memory != 128 || len(c.On) != 2 {
		t.Errorf("%+v", c)
	}
	now := time.Unix(1.8e9, 0)
	first, second := c.On[0].define("score", "", now), c.On[1].define("score", "arn", now)
	want := &definition{
		UUID: first.UUID, Handler: "score@readings", Function: "score", Stream: "readings", Configured: true, FileSays: true, Enabled: true, Modified: now,
		BatchSize: 100, Parallel: 1, Start: startOldest, MaxRetries: -1, MaxAge: -1,
		Overflow: OverflowConfig{OneIn: 10, Interval: time.Second}, Breaker: BreakerConfig{Pause: 30 * time.Second},
	}
	if d := cmp.Diff(want, first); d != "" {
		t.Error(d)
	}
	o := second.options()
	if o.MaxAttempts != 4 || o.MaxAge != time.Hour || o.Start != process.AtTime || o.StartTime.IsZero() || o.BatchWindow != 5*time.Second ||
		o.Tumbling != time.Minute || o.Output != "scores" || o.Priority != 2 || o.Overflow.Policy != process.OverflowSample || o.Overflow.OneIn != 10 ||
		o.Breaker.Failures != 5 || o.Breaker.Pause != 30*time.Second || !o.Bisect || second.UUID == first.UUID || second.Consumer != "arn" {
		t.Errorf("%+v", o)
	}
	if again := c.On[1].define("score", "arn", now.Add(time.Hour)); again.UUID != second.UUID {
		t.Error("a configured mapping has another UUID at the next start")
	}
}

func TestConfigErrors(t *testing.T) {
	for change, want := range map[string]string{
		"batch_size: 0":                                    "functions.f: on[0].batch_size: 0: use 1 to 10000",
		"batch_window: 301s":                               "on[0].batch_window: 5m1s: use whole seconds up to 5m0s",
		"batch_window: 1500ms":                             "on[0].batch_window: 1.5s: use whole seconds",
		"parallelization_factor: 11":                       "on[0].parallelization_factor: 11: use 1 to 10",
		"start: FIRST":                                     `on[0].start: "FIRST" is not known: use TRIM_HORIZON, LATEST or AT_TIMESTAMP`,
		"start: AT_TIMESTAMP":                              `on[0].start_time: "" is not a time`,
		"start_time: 2026-01-02T15:04:05Z":                 "on[0].start_time: it goes with start: AT_TIMESTAMP",
		"max_retries: -2":                                  "on[0].max_retries: -2: use -1 to 10000",
		"max_age: 30s":                                     "on[0].max_age: 30s: use 1m to 7d",
		"tumbling_window: 16m":                             "on[0].tumbling_window: 16m0s: use whole seconds up to 15m0s",
		`filters: ["{"]`:                                   "on[0].filters[0]: filter 1:",
		"on_failure: nowhere":                              `on[0].on_failure: "nowhere" is not a destination: write stream:NAME`,
		"on_failure: s3://../x":                            "is not a destination",
		"overflow: {policy: sample}":                       "on[0].overflow: policy sample needs a bound",
		"overflow: {policy: drop, max_lag: 1}":             `on[0].overflow.policy: "drop" is not known`,
		"batch_sise: 5":                                    "did you mean functions.f.on[0].batch_size?",
		"{tumbling_window: 1m, parallelization_factor: 2}": "on[0].parallelization_factor: 2: a tumbling window needs 1",
	} {
		text := "functions:\n  f:\n    url: http://x/\n    on:\n      - stream: readings\n        " + change + "\n"
		if strings.HasPrefix(change, "{") {
			text = "functions:\n  f:\n    url: http://x/\n    on:\n      - {stream: readings, " + strings.Trim(change, "{}") + "}\n"
		}
		if _, err := load(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot  %v\nwant %s", change, err, want)
		}
	}
	for text, want := range map[string]string{
		"functions: {f: {}}":                                                 "set one of runtime, command and url",
		"functions: {f: {url: 'x'}}":                                         "functions.f: ",
		"functions: {'a b': {url: 'http://x/'}}":                             "functions.a b: a function's name has at most 64 letters",
		"functions: {f: {url: 'http://x/', on: [{stream: a}, {stream: a}]}}": "on[1].stream: a is mapped already",
	} {
		if _, err := load(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot  %v\nwant %s", text, err, want)
		}
	}
}

func TestTargets(t *testing.T) {
	for s, want := range map[string]target{
		"arn:aws:s3:::my-bucket":                            {toBucket, "my-bucket"},
		"arn:aws:kinesis:us-east-1:000000000000:stream/a.b": {toStream, "a.b"},
		"arn:aws:sqs:us-east-1:000000000000:dlq":            {toStream, "dlq"},
		"arn:aws:sns:us-east-1:000000000000:topic":          {toStream, "topic"},
		"stream:dlq":                {toStream, "dlq"},
		"s3://my-bucket":            {toBucket, "my-bucket"},
		"file:///var/lib/failed":    {toDir, "/var/lib/failed"},
		"https://example.com/x?y=z": {toHTTP, "https://example.com/x?y=z"},
	} {
		if got, err := parseTarget(s, true); err != nil || got != want {
			t.Errorf("%s: %+v %v", s, got, err)
		}
	}
	for _, s := range []string{"", "dlq", "arn:aws:s3:::../../etc", "arn:aws:s3:::a/b", "s3://my-bucket/x", "s3://..", "file://host/x", "file:x", "stream:a/b", "ftp://x/", "arn:aws:lambda:us-east-1:000000000000:function:f", "arn:aws:sqs:us-east-1:000000000000:a/b"} {
		if got, err := parseTarget(s, true); err == nil {
			t.Errorf("%q is taken for %+v", s, got)
		}
	}
	if _, err := parseTarget("file:///etc", false); err == nil {
		t.Error("the API may name a directory")
	}
}

// TestCreatedMappingSurvivesCrash: what the API has answered is on disk.
func TestCreatedMappingSurvivesCrash(t *testing.T) {
	h := &handler{}
	b := newBench(t, Functions{"f": h.config()})
	got := b.ask("POST", "/2015-03-31/event-source-mappings", `{"FunctionName":"f","EventSourceArn":"`+vehiclesARN+`","StartingPosition":"LATEST","Enabled":false}`)
	uuid := anyUUID.FindString(got)
	after := b.fs.CrashClone(vfs.CrashCloneCfg{})
	store, err := local.Open(local.Config{Dir: "state", FS: after, MemBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close() //nolint:errcheck // of a test
	cfg := b.cfg
	cfg.Store, cfg.FS = store, after
	r, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close(context.Background()) //nolint:errcheck // of a test
	if m := r.mapping(uuid); m == nil || m.view().def.Start != startLatest {
		t.Errorf("%s is gone: %s", uuid, got)
	}
}
