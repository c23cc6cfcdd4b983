package lambda

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/milepost/milepost/internal/conf"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/lambda/runtime"
	"github.com/milepost/milepost/process/pattern"
)

// Functions is the section functions: of the configuration.
type Functions map[string]FunctionConfig

// A FunctionConfig is one function: what runs it, and on which streams.
type FunctionConfig struct {
	Runtime     string            `yaml:"runtime" doc:"provided (a bootstrap, as Go functions are), python3 or nodejs, with or without a version"`
	Handler     string            `yaml:"handler" doc:"for python and nodejs: module.function, as on Lambda"`
	Code        string            `yaml:"code" doc:"directory of the function's files, which is its working directory"`
	Command     []string          `yaml:"command" doc:"instead of runtime: a program that speaks the Lambda Runtime API, with its arguments"`
	URL         string            `yaml:"url" doc:"instead of runtime: events are posted here"`
	Secret      string            `yaml:"secret" doc:"for url: signs requests, as webhooks of alerts are signed"`
	SecretFile  string            `yaml:"secret_file" doc:"for url, instead: a file that holds it"`
	Token       string            `yaml:"token" doc:"for url: sent as Authorization: Bearer"`
	TokenFile   string            `yaml:"token_file" doc:"for url, instead: a file that holds it"`
	CAFile      string            `yaml:"ca_file" doc:"for url: PEM of the authority that signed the receiver's certificate; empty: the system's"`
	Headers     map[string]string `yaml:"headers" doc:"for url: further headers"`
	Environment map[string]string `yaml:"environment" doc:"further variables of its processes"`
	Timeout     time.Duration     `yaml:"timeout" default:"3s" doc:"of one invocation, up to 15m"`
	InitTimeout time.Duration     `yaml:"init_timeout" default:"10s" doc:"of a process' start"`
	IdleTimeout time.Duration     `yaml:"idle_timeout" default:"5m" doc:"processes that had nothing to do for this long are ended"`
	Memory      int               `yaml:"memory" default:"128" doc:"MB that the function is told it has; nothing limits it"`
	Concurrency int               `yaml:"concurrency" default:"10" doc:"invocations at once, up to 1000; more are throttled and tried again"`
	LogLines    int               `yaml:"log_lines" default:"200" doc:"lines a second of its output that go to Milepost's log, five seconds' worth at once; more are counted, and in milepost functions logs all the same"`
	On          []MappingConfig   `yaml:"on" doc:"streams that it runs on"`

	Func runtime.Func `yaml:"-" json:"-"` // for programs that embed Milepost: instead of runtime, command and url
}

// runtime is the part that says how the function is run.
func (c *FunctionConfig) runtime(name string) runtime.Config {
	return runtime.Config{
		Name: name, Runtime: c.Runtime, Handler: c.Handler, Code: c.Code, Command: c.Command, URL: c.URL, Secret: c.Secret, SecretFile: c.SecretFile,
		Token: c.Token, TokenFile: c.TokenFile, CAFile: c.CAFile, Headers: c.Headers, Environment: c.Environment, Timeout: conf.Duration(c.Timeout),
		InitTimeout: conf.Duration(c.InitTimeout), IdleTimeout: conf.Duration(c.IdleTimeout), MemorySize: c.Memory, Concurrency: c.Concurrency, LogLines: c.LogLines,
	}
}

// A MappingConfig is an event source mapping: a function on a stream.
type MappingConfig struct {
	Stream         string         `yaml:"stream" doc:"name of the stream"`
	Consumer       string         `yaml:"consumer" doc:"enhanced fan-out consumer to read as, which the events then name; empty: none"`
	Enabled        bool           `yaml:"enabled" default:"true" doc:"false: it waits, and keeps its place. Pausing by hand holds until this key changes"`
	BatchSize      int            `yaml:"batch_size" default:"100" doc:"most records of an invocation, 1 to 10000; their event has at most 6 MiB"`
	BatchWindow    time.Duration  `yaml:"batch_window" default:"0s" doc:"how long to wait for a batch to fill, up to 5m"`
	Parallel       int            `yaml:"parallelization_factor" default:"1" doc:"batches of one shard at once, 1 to 10; each key keeps its order"`
	Start          string         `yaml:"start" default:"TRIM_HORIZON" doc:"where it begins when it has never run: TRIM_HORIZON, LATEST or AT_TIMESTAMP"`
	StartTime      string         `yaml:"start_time" doc:"for AT_TIMESTAMP: 2026-01-02T15:04:05Z"`
	MaxRetries     int            `yaml:"max_retries" default:"-1" doc:"how often a failed batch is tried again, 0 to 10000; -1: until it works or is too old"`
	MaxAge         time.Duration  `yaml:"max_age" default:"0s" doc:"older records are given up, 1m to 7d; 0s: never"`
	Bisect         bool           `yaml:"bisect" doc:"split a batch that fails and try the halves, which costs no retry"`
	ReportFailures bool           `yaml:"report_item_failures" doc:"listen to batchItemFailures in the answer"`
	Filters        []string       `yaml:"filters" doc:"EventBridge patterns in JSON such as {\"data\":{\"type\":[\"crash\"]}}, up to 10; a record passes if one matches"`
	Tumbling       time.Duration  `yaml:"tumbling_window" default:"0s" doc:"windows by arrival time whose state goes from one invocation to the next, up to 15m; 0s: none"`
	OnFailure      string         `yaml:"on_failure" doc:"where it is written what was given up: stream:NAME, s3://BUCKET, file:///DIRECTORY or https://…; empty: the records become dead letters"`
	Output         string         `yaml:"output" doc:"stream that the records in the answer's output list go to, together with the checkpoint"`
	Priority       int            `yaml:"priority" default:"0" doc:"who goes first when all functions together are at their limit: the higher"`
	Overflow       OverflowConfig `yaml:"overflow" doc:"what becomes of a function that cannot keep up; nothing given: it falls behind and delays only itself"`
	Breaker        BreakerConfig  `yaml:"breaker" doc:"stop calling a function that fails again and again"`
}

// An OverflowConfig says what becomes of a function that cannot keep up.
type OverflowConfig struct {
	Policy    string        `yaml:"policy" doc:"spill: go on at the newest and catch up later; sample: pass over some; pause: stop until resumed; empty: none"`
	MaxAge    time.Duration `yaml:"max_age" default:"0s" doc:"sets it off when the next record is older; 0s: no bound"`
	MaxLag    int64         `yaml:"max_lag" default:"0" doc:"sets it off when more records wait in a shard; 0: no bound"`
	OneIn     int           `yaml:"one_in" default:"10" doc:"for sample: keep one record in so many"`
	WholeKeys bool          `yaml:"whole_keys" doc:"for sample: keep all records of one key in so many"`
	Interval  time.Duration `yaml:"interval" default:"1s" doc:"for spill: catch up with a batch this often while new records come"`
}

// A BreakerConfig is a circuit breaker.
type BreakerConfig struct {
	Failures int           `yaml:"failures" default:"0" doc:"failed invocations in a row that open it; 0: never"`
	Pause    time.Duration `yaml:"pause" default:"30s" doc:"then one invocation tries whether the function works again"`
}

// Limits of Lambda.
const (
	maxBatch       = 10_000
	maxWindow      = 300
	maxParallel    = 10
	maxRetries     = 10_000
	minAge, maxAge = 60, 604_800
	maxTumbling    = 900
	maxDestination = 350
	maxPayload     = 6 << 20 // of a synchronous invocation's request and answer
	maxAsync       = 256 << 10
)

const nameLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"

func isFunctionName(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, nameLetters) == ""
}

// Validate reports everything that is wrong, each with its key and how to mend it.
func (f Functions) Validate() error {
	var errs []error
	names := make([]string, 0, len(f))
	for name := range f {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		c := f[name]
		if !isFunctionName(name) {
			errs = append(errs, fmt.Errorf("functions.%s: a function's name has at most 64 letters, digits, _ and -", name))
		}
		for _, err := range c.check(name) {
			errs = append(errs, fmt.Errorf("functions.%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func (c *FunctionConfig) check(name string) (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Func == nil {
		if err := runtime.Check(c.runtime(name)); err != nil {
			errs = append(errs, err)
		}
	}
	if c.Timeout < time.Millisecond {
		fail("timeout: %s: use 1s to 15m", c.Timeout)
	}
	if c.Concurrency < 1 {
		fail("concurrency: %d: use 1 to 1000", c.Concurrency)
	}
	sources := map[string]bool{}
	for i := range c.On {
		m := &c.On[i]
		for _, err := range m.check() {
			fail("on[%d].%w", i, err)
		}
		if key := m.Stream + "/" + m.Consumer; sources[key] {
			fail("on[%d].stream: %s is mapped already: one mapping for each stream and consumer", i, m.Stream)
		} else {
			sources[key] = true
		}
	}
	return errs
}

func (c *MappingConfig) check() (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	between := func(key string, v, lo, hi int) {
		if v < lo || v > hi {
			fail("%s: %d: use %d to %d", key, v, lo, hi)
		}
	}
	seconds := func(key string, d time.Duration, most int) {
		if d < 0 || d%time.Second != 0 || d > time.Duration(most)*time.Second {
			fail("%s: %s: use whole seconds up to %s", key, d, time.Duration(most)*time.Second)
		}
	}
	if c.Stream == "" {
		fail("stream: missing: name the stream")
	}
	between("batch_size", c.BatchSize, 1, maxBatch)
	seconds("batch_window", c.BatchWindow, maxWindow)
	between("parallelization_factor", c.Parallel, 1, maxParallel)
	between("max_retries", c.MaxRetries, -1, maxRetries)
	seconds("max_age", c.MaxAge, maxAge)
	if c.MaxAge > 0 && c.MaxAge < minAge*time.Second {
		fail("max_age: %s: use 1m to 7d, or 0s for none", c.MaxAge)
	}
	seconds("tumbling_window", c.Tumbling, maxTumbling)
	if c.Tumbling > 0 && c.Parallel > 1 {
		fail("parallelization_factor: %d: a tumbling window needs 1", c.Parallel)
	}
	if c.Tumbling > 0 && c.Overflow.Policy == string(process.OverflowSpill) {
		fail("overflow.policy: spill would bring records to a tumbling window too late: use sample or pause")
	}
	if _, err := c.startTime(); err != nil {
		errs = append(errs, err)
	}
	if len(c.Filters) > pattern.MaxFilters {
		fail("filters: %d: use up to %d", len(c.Filters), pattern.MaxFilters)
	}
	for i, f := range c.Filters {
		if err := checkPattern(f); err != nil {
			fail("filters[%d]: %w", i, err)
		}
	}
	if c.OnFailure != "" {
		if _, err := parseTarget(c.OnFailure, true); err != nil {
			fail("on_failure: %w", err)
		}
	}
	switch p := process.OverflowPolicy(c.Overflow.Policy); p {
	case process.OverflowNone:
	case process.OverflowSample, process.OverflowSpill, process.OverflowPause:
		if c.Overflow.MaxAge <= 0 && c.Overflow.MaxLag <= 0 {
			fail("overflow: policy %s needs a bound: give max_age or max_lag", p)
		}
		if p == process.OverflowSample && c.Overflow.OneIn < 2 {
			fail("overflow.one_in: %d: use 2 or more", c.Overflow.OneIn)
		}
	default:
		fail("overflow.policy: %q is not known: use spill, sample or pause", p)
	}
	if c.Breaker.Failures < 0 || c.Breaker.Pause < 0 {
		fail("breaker: negative values make no sense: remove them for the defaults")
	}
	return errs
}

func (c *MappingConfig) startTime() (time.Time, error) {
	switch c.Start {
	case startOldest, startLatest:
		if c.StartTime != "" {
			return time.Time{}, fmt.Errorf("start_time: it goes with start: AT_TIMESTAMP, and start is %s", c.Start)
		}
		return time.Time{}, nil
	case startAt:
		t, err := time.Parse(time.RFC3339, c.StartTime)
		if err != nil {
			return t, fmt.Errorf("start_time: %q is not a time: write 2026-01-02T15:04:05Z", c.StartTime)
		}
		return t, nil
	}
	return time.Time{}, fmt.Errorf("start: %q is not known: use TRIM_HORIZON, LATEST or AT_TIMESTAMP", c.Start)
}

// checkPattern tells what is wrong with a filter pattern.
func checkPattern(p string) error {
	_, err := pattern.CompileAny(p)
	return err
}
