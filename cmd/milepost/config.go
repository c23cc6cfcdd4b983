package main

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/milepost/milepost/alert"
	"github.com/milepost/milepost/internal/conf"
	"github.com/milepost/milepost/internal/nearest"
	"github.com/milepost/milepost/process/lambda"
	"github.com/milepost/milepost/process/rule"
	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/process/window/lane"
	"github.com/milepost/milepost/query/continuous"
	"github.com/milepost/milepost/telemetry"
)

// Config is milepost.yaml. Every key's default and reason stand beside it; docs/configuration.md is generated from here.
type Config struct {
	Data      string                     `yaml:"data" doc:"directory of everything durable: log, state, Parquet. Default: the user's cache directory"`
	HTTP      HTTPConfig                 `yaml:"http" doc:"the HTTP door, the API and the dashboard"`
	MQTT      MQTTConfig                 `yaml:"mqtt" doc:"the MQTT door"`
	Devices   DevicesConfig              `yaml:"devices" doc:"who devices are; see docs/devices.md"`
	Kinesis   KinesisConfig              `yaml:"kinesis" doc:"the Amazon Kinesis API; see docs/kinesis.md"`
	Formats   FormatsConfig              `yaml:"formats" doc:"senders that speak another format; see docs/formats.md"`
	Bridges   map[string]BridgeConfig    `yaml:"bridges" doc:"MQTT brokers elsewhere that readings are taken from, by name"`
	Feeds     map[string]FeedConfig      `yaml:"feeds" doc:"feeds that are fetched, by name: GTFS-realtime"`
	Limits    LimitsConfig               `yaml:"limits" doc:"what one device, one message and all together may take; beyond it they are asked to wait"`
	Stream    StreamConfig               `yaml:"stream" doc:"the log of readings"`
	Streams   map[string]UserStream      `yaml:"streams" doc:"further streams, by name, made at the start if they are not there; the Kinesis API makes others"`
	Functions lambda.Functions           `yaml:"functions" doc:"your own code, run on streams; see docs/functions.md"`
	Windows   map[string]window.Spec     `yaml:"windows" doc:"aggregates over event time, by name, as keys or on one line such as 'avg(engine_temp) by vehicle per 5m'; see docs/windows.md"`
	Queries   map[string]continuous.Spec `yaml:"queries" doc:"continuous SQL: a SELECT for each window that closes, by name; see docs/windows.md"`
	Anomaly   AnomalyConfig              `yaml:"anomaly" doc:"detectors of what is unusual; see docs/anomaly.md"`
	Lambda    LambdaConfig               `yaml:"lambda" doc:"what all functions share"`
	Archive   ArchiveConfig              `yaml:"archive" doc:"Parquet"`
	SQL       SQLConfig                  `yaml:"sql" doc:"limits of one query"`
	Fleet     FleetConfig                `yaml:"fleet" doc:"live state"`
	Signals   map[string]SignalConfig    `yaml:"signals" doc:"further signals by name, or a well-known one redefined"`
	Rules     RulesConfig                `yaml:"rules" doc:"when to alert; see docs/alerts.md"`
	Alerts    alert.Config               `yaml:"alerts" doc:"whom to tell"`
	Map       MapConfig                  `yaml:"map" doc:"the dashboard's base map"`
	Log       LogConfig                  `yaml:"log" doc:"what the program says of itself"`

	dir string // of the file, which relative paths of functions start from
}

// HTTPConfig is the HTTP door.
type HTTPConfig struct {
	Listen string        `yaml:"listen" default:"127.0.0.1:8080" doc:"address; loopback until you say otherwise, because there is no log-in yet: put a proxy with authentication before it"`
	Token  string        `yaml:"token" doc:"bearer token that publishers must send to POST /v1/readings; empty: none needed"`
	Pprof  bool          `yaml:"pprof" doc:"serve Go profiles at /debug/pprof/"`
	TLS    HTTPTLSConfig `yaml:"tls" doc:"the same over TLS, with the certificate of 'milepost ca': devices enrol and rotate here"`
}

// HTTPTLSConfig is the HTTP door over TLS.
type HTTPTLSConfig struct {
	Listen string `yaml:"listen" doc:"address, for instance 0.0.0.0:8443; empty: none"`
}

// MQTTConfig is the MQTT door.
type MQTTConfig struct {
	Listen         string            `yaml:"listen" default:"127.0.0.1:1883" doc:"address of plain MQTT; empty: none"`
	WebSocket      string            `yaml:"websocket" doc:"address of MQTT over WebSocket; empty: none"`
	TLS            MQTTTLS           `yaml:"tls" doc:"MQTT over TLS, when a certificate is given"`
	Topics         []string          `yaml:"topics" default:"[\"fleet/{vehicle}/telemetry\"]" doc:"topics that carry readings; {vehicle} stands for the vehicle id"`
	Formats        map[string]string `yaml:"formats" default:"{\"owntracks/#\": owntracks, \"spBv1.0/#\": sparkplug, \"telegraf/#\": influx}" doc:"topics that carry another format, by pattern; see docs/formats.md"`
	Users          map[string]string `yaml:"users" doc:"user names and passwords; empty: only publishers on this machine are let in"`
	MaxConnections int               `yaml:"max_connections" default:"50000" doc:"connections at one time"`
}

// MQTTTLS is where MQTT is served with a certificate.
type MQTTTLS struct {
	Listen    string `yaml:"listen" default:"127.0.0.1:8883" doc:"address; used only with a certificate"`
	WebSocket string `yaml:"websocket" doc:"address of MQTT over WebSocket over TLS; empty: none; used only with a certificate"`
	Cert      string `yaml:"cert" doc:"PEM file with the certificate chain"`
	Key       string `yaml:"key" doc:"PEM file with the private key"`
}

// KinesisConfig is the Kinesis door.
type KinesisConfig struct {
	Listen     string        `yaml:"listen" default:"127.0.0.1:4567" doc:"address; empty: none. Without access keys only loopback is served"`
	TLS        KinesisTLS    `yaml:"tls" doc:"the same over TLS and HTTP/2, when a certificate is given"`
	Region     string        `yaml:"region" default:"us-east-1" doc:"region in ARNs; any region of a signature is taken"`
	Account    string        `yaml:"account" default:"\"000000000000\"" doc:"account in ARNs, twelve digits"`
	AccessKeys []KinesisKey  `yaml:"access_keys" doc:"keys whose signatures are taken; none: requests need no signature"`
	Throttle   string        `yaml:"throttle" default:"\"off\"" doc:"off, or aws: refuse what AWS would refuse, to rehearse its limits"`
	Transition conf.Duration `yaml:"transition" default:"500ms" doc:"how long CREATING, UPDATING and DELETING last; 0s: no time"`
	Consumers  int           `yaml:"consumers_per_stream" default:"20" doc:"enhanced fan-out consumers of one stream, up to 50"`
}

// KinesisTLS is the Kinesis door's listener with a certificate.
type KinesisTLS struct {
	Listen string `yaml:"listen" default:"127.0.0.1:4568" doc:"address; used only with a certificate"`
	Cert   string `yaml:"cert" doc:"PEM file with the certificate chain"`
	Key    string `yaml:"key" doc:"PEM file with the private key"`
}

// KinesisKey is an access key and what it may do.
type KinesisKey struct {
	ID     string `yaml:"id" doc:"access key id"`
	Secret string `yaml:"secret" doc:"secret access key"`
	Policy string `yaml:"policy" doc:"IAM policy document in JSON, or @FILE with one; empty: everything is allowed"`
}

// LimitsConfig bounds admission.
type LimitsConfig struct {
	Message  conf.Bytes `yaml:"message" default:"256KiB" doc:"one reading"`
	Body     conf.Bytes `yaml:"body" default:"10MiB" doc:"one HTTP body, unpacked"`
	Rate     float64    `yaml:"rate_per_device" default:"200" doc:"readings a second of one vehicle, lasting; 0: no limit"`
	Burst    int        `yaml:"burst_per_device" default:"20000" doc:"readings at once of one vehicle: a backlog after a tunnel is let in"`
	Bytes    conf.Bytes `yaml:"bytes_per_device" default:"0" doc:"bytes of readings a second of one vehicle, lasting, and a minute's worth at once; 0: no limit"`
	InFlight conf.Bytes `yaml:"in_flight" default:"64MiB" doc:"bytes being stored at one time, all doors together"`
}

// StreamConfig is the log of readings.
type StreamConfig struct {
	Shards         int           `yaml:"shards" default:"4" doc:"shards at creation; later the Kinesis API changes them, and this key nothing"`
	Retention      conf.Duration `yaml:"retention" default:"24h" doc:"how long readings can be replayed: 1h to 365d. The archive keeps them longer"`
	RetentionBytes conf.Bytes    `yaml:"retention_bytes" default:"0" doc:"most bytes of log kept; 0: by age only"`
	Segment        conf.Bytes    `yaml:"segment" default:"256MiB" doc:"size of one file of the log: the unit of retention"`
	Reserve        conf.Bytes    `yaml:"reserve" default:"256MiB" doc:"free disk space below which publishing is refused, so that state and archive can still finish"`
}

// UserStream is a stream of the user's own.
type UserStream struct {
	Shards    int           `yaml:"shards" default:"1" doc:"shards at creation; later the Kinesis API changes them, and this key nothing"`
	Retention conf.Duration `yaml:"retention" default:"24h" doc:"how long records can be read: 1h to 365d"`
}

// ArchiveConfig is the Parquet archive.
type ArchiveConfig struct {
	FlushRows int           `yaml:"flush_rows" default:"262144" doc:"rows of one shard in memory before they become a file"`
	FlushAge  conf.Duration `yaml:"flush_age" default:"1m" doc:"longest that a row stays in memory only (the log has it)"`
	Retention conf.Duration `yaml:"retention" default:"0s" doc:"how long whole event days are kept; 0: for ever"`
	Compact   bool          `yaml:"compact" default:"true" doc:"merge small files into files sorted by vehicle and time"`
}

// SQLConfig bounds queries.
type SQLConfig struct {
	Threads    int           `yaml:"threads" default:"0" doc:"cores of all queries together; 0: half of them"`
	Memory     conf.Bytes    `yaml:"memory" default:"512MiB" doc:"memory of all queries together"`
	Timeout    conf.Duration `yaml:"timeout" default:"30s" doc:"longest one query may run"`
	Rows       int           `yaml:"rows" default:"100000" doc:"most rows of one result; a longer one is cut and says so"`
	Concurrent int           `yaml:"concurrent" default:"4" doc:"queries at one time; others wait, then are told to come back"`
}

// FleetConfig is live state.
type FleetConfig struct {
	OfflineAfter conf.Duration `yaml:"offline_after" default:"10m" doc:"silence after which the dashboard shows a vehicle as offline"`
	Commit       conf.Duration `yaml:"commit" default:"100ms" doc:"state is written this often; an alert writes it at once"`
}

// SignalConfig describes a signal.
type SignalConfig struct {
	Unit string   `yaml:"unit" doc:"as shown to people, for instance °C"`
	Min  *float64 `yaml:"min" doc:"smallest plausible value; a smaller one is archived but judges nothing"`
	Max  *float64 `yaml:"max" doc:"largest plausible value"`
}

// RulesConfig is which rules run.
type RulesConfig struct {
	Shipped bool                  `yaml:"shipped" default:"true" doc:"run the rules that come with Milepost"`
	Change  map[string]RuleChange `yaml:"change" doc:"changes to shipped rules, by name"`
	Custom  []rule.Spec           `yaml:"custom" doc:"your own rules"`
}

// RuleChange changes a shipped rule.
type RuleChange struct {
	Disabled  bool               `yaml:"disabled" doc:"switch it off for everyone that no override switches on"`
	Severity  string             `yaml:"severity" doc:"info, warning or critical"`
	For       *conf.Duration     `yaml:"for" doc:"how long the condition must hold"`
	Params    map[string]float64 `yaml:"params" doc:"thresholds, by name"`
	Overrides []rule.Override    `yaml:"overrides" doc:"thresholds of some vehicles"`
}

// specs returns the rules that run.
func (c *RulesConfig) specs() ([]rule.Spec, error) {
	var specs []rule.Spec
	var names []string
	if c.Shipped {
		specs = rule.Shipped()
	}
	for i := range specs {
		s := &specs[i]
		names = append(names, s.Name)
		ch, ok := c.Change[s.Name]
		if !ok {
			continue
		}
		s.Disabled = ch.Disabled
		if ch.Severity != "" {
			s.Severity = ch.Severity
		}
		if ch.For != nil {
			s.For = time.Duration(*ch.For)
		}
		s.Params = maps.Clone(s.Params)
		for k, v := range ch.Params {
			if _, ok := s.Params[k]; !ok {
				return nil, fmt.Errorf("rules.change.%s.params.%s: the rule has no such threshold; it has %s", s.Name, k, strings.Join(slices.Sorted(maps.Keys(s.Params)), ", "))
			}
			s.Params[k] = v
		}
		s.Overrides = append(s.Overrides, ch.Overrides...)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Change)) {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("rules.change.%s: there is no such shipped rule%s", name, nearest.Hint(name, names))
		}
	}
	return append(specs, c.Custom...), nil
}

// catalog returns the signals that are known from the start.
func (c *Config) catalog() *telemetry.Catalog {
	known := telemetry.NewCatalog()
	var more []telemetry.Def
	for _, name := range slices.Sorted(maps.Keys(c.Signals)) {
		s := c.Signals[name]
		d := telemetry.Def{Name: name}
		if id, ok := known.Lookup([]byte(name)); ok {
			d = *known.Def(id)
		}
		if s.Unit != "" {
			d.Unit = s.Unit
		}
		if s.Min != nil || s.Max != nil {
			if d.Min == 0 && d.Max == 0 {
				d.Min, d.Max = math.Inf(-1), math.Inf(1)
			}
			if s.Min != nil {
				d.Min = *s.Min
			}
			if s.Max != nil {
				d.Max = *s.Max
			}
		}
		more = append(more, d)
	}
	return telemetry.NewCatalog(more...)
}

// MapConfig is the dashboard's map.
type MapConfig struct {
	Tiles       string `yaml:"tiles" doc:"URL of raster tiles with {z}/{x}/{y}, or of a .pmtiles file; empty: the map in the binary"`
	Attribution string `yaml:"attribution" doc:"whom the tiles credit"`
}

// LogConfig is the program's own log.
type LogConfig struct {
	Level  string `yaml:"level" default:"info" doc:"debug, info, warn or error"`
	Format string `yaml:"format" default:"text" doc:"text or json"`
}

// Validate checks what types cannot say.
func (c *Config) Validate() error {
	c.resolve()
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	hour := conf.Duration(time.Hour)
	check(c.Stream.Retention >= hour && c.Stream.Retention <= 365*24*hour, "stream.retention is %s: write 1h to 365d", c.Stream.Retention)
	check(c.Stream.Shards >= 1 && c.Stream.Shards <= 1024, "stream.shards is %d: write 1 to 1024", c.Stream.Shards)
	for _, name := range slices.Sorted(maps.Keys(c.Streams)) {
		u := c.Streams[name]
		check(name != readingsStream && name != deadStream, "streams.%s: it is there already: give another name", name)
		check(isStreamName(name), "streams.%s: a stream's name has 1 to 128 letters, digits, _, - and .", name)
		check(u.Retention >= hour && u.Retention <= 365*24*hour, "streams.%s.retention is %s: write 1h to 365d", name, u.Retention)
		check(u.Shards >= 1 && u.Shards <= 1024, "streams.%s.shards is %d: write 1 to 1024", name, u.Shards)
	}
	check(c.Stream.Segment >= 1<<20, "stream.segment is %s: write at least 1MiB", c.Stream.Segment)
	check(c.Archive.FlushRows >= 1000, "archive.flush_rows is %d: write at least 1000", c.Archive.FlushRows)
	check(c.Archive.FlushAge >= conf.Duration(time.Second), "archive.flush_age is %s: write at least 1s", c.Archive.FlushAge)
	check(c.Limits.Message >= 1024, "limits.message is %s: write at least 1KiB", c.Limits.Message)
	check(c.Limits.Body >= c.Limits.Message, "limits.body is smaller than limits.message")
	check(c.Limits.InFlight >= c.Limits.Body, "limits.in_flight is smaller than limits.body, so that a full body could never be stored")
	check((c.MQTT.TLS.Cert == "") == (c.MQTT.TLS.Key == ""), "mqtt.tls needs both cert and key")
	for _, a := range []struct{ key, addr string }{{"http.listen", c.HTTP.Listen}, {"http.tls.listen", c.HTTP.TLS.Listen}, {"mqtt.listen", c.MQTT.Listen}, {"mqtt.tls.listen", c.MQTT.TLS.Listen}, {"kinesis.listen", c.Kinesis.Listen}, {"kinesis.tls.listen", c.Kinesis.TLS.Listen}} {
		if a.addr != "" {
			_, port, err := net.SplitHostPort(a.addr)
			if err == nil {
				_, err = strconv.ParseUint(port, 10, 16)
			}
			check(err == nil, "%s is %q: write host:port, for instance 127.0.0.1:8080", a.key, a.addr)
		}
	}
	check(c.HTTP.Listen != "", "http.listen is empty: write host:port, for instance 127.0.0.1:8080")
	for _, n := range []struct {
		key   string
		value float64
	}{
		{"mqtt.max_connections", float64(c.MQTT.MaxConnections)},
		{"limits.rate_per_device", c.Limits.Rate},
		{"limits.bytes_per_device", float64(c.Limits.Bytes)},
		{"limits.burst_per_device", float64(c.Limits.Burst)},
		{"archive.retention", time.Duration(c.Archive.Retention).Seconds()},
		{"sql.threads", float64(c.SQL.Threads)},
		{"sql.rows", float64(c.SQL.Rows)},
		{"sql.concurrent", float64(c.SQL.Concurrent)},
		{"sql.timeout", time.Duration(c.SQL.Timeout).Seconds()},
		{"fleet.offline_after", time.Duration(c.Fleet.OfflineAfter).Seconds()},
		{"fleet.commit", time.Duration(c.Fleet.Commit).Seconds()},
	} {
		check(n.value >= 0, "%s is negative", n.key) // 0 has a meaning: the default, or no limit
	}
	for _, name := range slices.Sorted(maps.Keys(c.Signals)) {
		s := c.Signals[name]
		check(s.Min == nil || s.Max == nil || *s.Min <= *s.Max, "signals.%s: min is larger than max", name)
	}
	for _, t := range c.MQTT.Topics {
		check(strings.Count(t, "{vehicle}") == 1, "mqtt.topics: %q needs {vehicle} once", t)
	}
	switch c.Log.Level {
	case "debug", "info", "warn", "error":
	default:
		check(false, "log.level is %q: write debug, info, warn or error", c.Log.Level)
	}
	check((c.Kinesis.TLS.Cert == "") == (c.Kinesis.TLS.Key == ""), "kinesis.tls needs both cert and key")
	check(c.Kinesis.Throttle == "off" || c.Kinesis.Throttle == "aws", "kinesis.throttle is %q: write off or aws", c.Kinesis.Throttle)
	check(len(c.Kinesis.Account) == 12 && strings.Trim(c.Kinesis.Account, "0123456789") == "", "kinesis.account is %q: write twelve digits, in quotes", c.Kinesis.Account)
	check(c.Kinesis.Consumers >= 1 && c.Kinesis.Consumers <= 50, "kinesis.consumers_per_stream is %d: write 1 to 50", c.Kinesis.Consumers)
	for i, k := range c.Kinesis.AccessKeys {
		check(k.ID != "" && k.Secret != "", "kinesis.access_keys[%d] needs id and secret", i)
	}
	for _, key := range c.secretsHidden() {
		check(false, "%s is %q, which check prints in place of a secret: write the secret", key, hidden)
	}
	if specs, err := c.Rules.specs(); err != nil {
		errs = append(errs, err)
	} else if _, err := rule.Compile(specs, c.catalog()); err != nil {
		errs = append(errs, err)
	}
	if err := c.Functions.Validate(); err != nil {
		errs = append(errs, err)
	}
	if err := c.checkAnomaly(); err != nil {
		errs = append(errs, err)
	}
	if _, err := c.queries(); err != nil {
		errs = append(errs, err)
	}
	if defs, err := c.windowDefs(); err != nil {
		errs = append(errs, err)
	} else {
		for _, name := range slices.Sorted(maps.Keys(defs)) {
			if err := lane.Check(name, defs[name], c.catalog()); err != nil {
				errs = append(errs, err)
			}
		}
	}
	if err := c.Devices.check(); err != nil {
		errs = append(errs, err)
	}
	check(c.Lambda.Concurrency >= 1, "lambda.concurrency is %d: write at least 1", c.Lambda.Concurrency)
	if err := c.checkBridges(); err != nil {
		errs = append(errs, err)
	}
	if _, err := c.feeds(c.formats()); err != nil {
		errs = append(errs, err)
	}
	check(c.Log.Format == "text" || c.Log.Format == "json", "log.format is %q: write text or json", c.Log.Format)
	return errors.Join(errs...)
}

func isStreamName(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
	return s != "" && len(s) <= 128 && strings.Trim(s, letters) == ""
}

// loadConfig reads a file, or only defaults when path is "".
func loadConfig(path string) (*Config, error) {
	var data []byte
	if path != "" {
		var err error
		if data, err = os.ReadFile(path); err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
	}
	return parseConfig(path, data)
}

// parseConfig is loadConfig for what the file contains.
func parseConfig(path string, data []byte) (*Config, error) {
	c := Config{dir: filepath.Dir(path)}
	if err := conf.Load(data, &c); err != nil {
		return nil, fmt.Errorf("%s:\n%w", path, err)
	}
	if c.Data == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("no data directory: set data: in the configuration (%w)", err)
		}
		c.Data = filepath.Join(dir, "milepost")
	}
	return &c, nil
}
