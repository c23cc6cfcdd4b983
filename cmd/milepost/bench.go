package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/milepost/milepost/internal/conf"
)

// A figure is one measured number.
type figure struct {
	Bench string  `json:"bench"`
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Goal  string  `json:"goal,omitempty"`
}

// A bench measures one thing against a server in another process and adds its figures.
type bench struct {
	name, help string
	run        func(ctx context.Context, b *benchRun) error
}

func benches() []bench {
	return []bench{
		{"log", "the log alone: records/s appended and read", benchLog},
		{"batch", "HTTP batches end to end: durable, decoded, judged, in state, in Parquet", benchBatch},
		{"mqtt", "MQTT: one and 20 packets a write, QoS 1 and 0, beside mosquitto; with -idle or -storm, that instead", benchMQTT},
		{"kinesis", "the Kinesis API: signed puts, reads, fan-out", benchKinesis},
		{"latency", "publish to visible at a fixed rate", benchLatency},
		{"recovery", "time to be ready after kill -9", benchRecovery},
		{"functions", "users' functions: a Go bootstrap, built-in ones, and what the mapping adds", benchFunctions},
		{"queries", "SQL over a generated lake", benchQueries},
	}
}

// benchRun is what one run of the benches shares.
type benchRun struct {
	progress io.Writer
	dir      string
	seconds  time.Duration
	vehicles int
	conns    int
	rate     int
	rows     int
	idle     int
	storm    int
	figures  []figure
	current  string
}

func (b *benchRun) add(name string, value float64, unit, goal string) {
	b.figures = append(b.figures, figure{b.current, name, value, unit, goal})
	fmt.Fprintf(b.progress, "  %-44s %14s %s\n", name, number(value), unit)
}

func number(v float64) string {
	switch {
	case v >= 1000:
		s := fmt.Sprintf("%.0f", v)
		for i := len(s) - 3; i > 0; i -= 3 {
			s = s[:i] + "," + s[i:]
		}
		return s
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

func runBench(ctx context.Context, e *env, args []string) error {
	fs := flags(e, "bench")
	b := &benchRun{progress: e.stderr}
	fs.DurationVar(&b.seconds, "time", 10*time.Second, "how long each load lasts")
	fs.IntVar(&b.vehicles, "vehicles", 1000, "vehicles that publish")
	fs.IntVar(&b.conns, "connections", 8, "HTTP connections; MQTT uses 200")
	fs.IntVar(&b.rate, "rate", 50_000, "readings a second of the latency bench")
	fs.IntVar(&b.rows, "rows", 5_000_000, "rows of the query bench's lake")
	fs.IntVar(&b.idle, "idle", 0, "idle MQTT connections whose memory the mqtt bench measures, plain and over TLS; as many as the limit of open files allows")
	fs.IntVar(&b.storm, "storm", 0, "devices that the mqtt bench connects over TLS, cuts off by kill -9, and lets come back at once with a backlog")
	fs.StringVar(&b.dir, "dir", "", "where to put data (default: a temporary directory; use the disk that you mean to measure)")
	jsonTo := fs.String("json", "", "also write the figures as JSON to this file, - for standard output instead of the table")
	names, err := parse(fs, args)
	if err != nil {
		return err
	}
	if b.dir == "" {
		if b.dir, err = os.MkdirTemp("", "milepost-bench-"); err != nil {
			return err
		}
		defer os.RemoveAll(b.dir) //nolint:errcheck // temporary
	}
	known := make([]string, 0, 8)
	for _, x := range benches() {
		known = append(known, x.name)
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return usagef("no bench %q; there are %s", n, strings.Join(known, ", "))
		}
	}
	for _, x := range benches() {
		if len(names) > 0 && !slices.Contains(names, x.name) {
			continue
		}
		fmt.Fprintf(b.progress, "%s: %s\n", x.name, x.help)
		b.current = x.name
		if err := x.run(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", x.name, err)
		}
	}
	report := struct {
		Time    time.Time `json:"time"`
		Go      string    `json:"go"`
		CPUs    int       `json:"cpus"`
		CPU     string    `json:"cpu"`
		Figures []figure  `json:"figures"`
	}{time.Now().UTC(), runtime.Version(), runtime.NumCPU(), cpuName(), b.figures}
	js, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	switch *jsonTo {
	case "-":
		_, err = fmt.Fprintf(e.stdout, "%s\n", js)
		return err
	case "":
	default:
		if err := os.WriteFile(*jsonTo, append(js, '\n'), 0o644); err != nil { //nolint:gosec // figures are no secret
			return err
		}
	}
	fmt.Fprintf(e.stdout, "%s, %d CPUs, %s, load generator on the same machine\n\n", report.Go, report.CPUs, report.CPU)
	t := tabwriter.NewWriter(e.stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "bench\tfigure\tvalue\tunit\tgoal\t")
	for _, f := range b.figures {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t\n", f.Bench, f.Name, number(f.Value), f.Unit, f.Goal)
	}
	return t.Flush()
}

func cpuName() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(b)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, " \t:"))
		}
	}
	return runtime.GOARCH
}

// benchConfig writes a configuration for a server under test. It differs from the defaults only where waiting would measure
// a timer: rows are archived after a second rather than a minute; and in limits, which would measure themselves.
func (b *benchRun) benchConfig(name string, change ...func(*Config)) (path, httpAddr, mqttAddr string, err error) {
	dir := filepath.Join(b.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // a data directory
		return "", "", "", err
	}
	if httpAddr, err = freeLoopback(); err != nil {
		return "", "", "", err
	}
	if mqttAddr, err = freeLoopback(); err != nil {
		return "", "", "", err
	}
	var c Config
	if err := conf.Load(nil, &c); err != nil {
		return "", "", "", err
	}
	c.Data = filepath.Join(dir, "data")
	c.HTTP.Listen, c.MQTT.Listen, c.Kinesis.Listen, c.HTTP.Pprof = httpAddr, mqttAddr, "", true
	c.Archive.FlushAge = conf.Duration(time.Second)
	c.Limits.Rate = 0
	c.Anomaly.Shipped = false // beside the path that is measured, at about 1.2 µs a reading: BenchmarkFold of process/anomaly
	c.Log.Level = "warn"
	for _, f := range change {
		f(&c)
	}
	text, err := conf.Effective(&c)
	if err != nil {
		return "", "", "", err
	}
	path = filepath.Join(dir, "milepost.yaml")
	return path, httpAddr, mqttAddr, os.WriteFile(path, []byte(text), 0o600)
}
