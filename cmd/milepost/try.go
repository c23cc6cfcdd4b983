package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/milepost/milepost/internal/nearest"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
)

// runTry runs a configuration over a file of records, with everything as it is in a server but the doors, and prints what came out.
// It is how to test functions and windows without a server, and how the examples are run.
func runTry(ctx context.Context, e *env, args []string) error {
	fs := flags(e, "try")
	config := fs.String("config", "milepost.yaml", "configuration, in DIR")
	records := fs.String("records", "records.ndjson", `records to put, in DIR, one a line: {"stream":"s","key":"k","data":…}`)
	expect := fs.String("expect", "", "what must come out, in DIR, one a line as it is printed; then it ends as soon as it has, and fails if it does not")
	quiet := fs.Duration("quiet", 2*time.Second, "without --expect: ends when nothing has come out for so long")
	patience := fs.Duration("timeout", time.Minute, "longest it may take")
	verbose := fs.Bool("v", false, "show the log, and with it what functions print")
	rest, err := parse(fs, args)
	if err != nil {
		return err
	}
	if len(rest) > 1 {
		return usagef("try takes one directory, got %q", rest)
	}
	dir := "."
	if len(rest) == 1 {
		dir = rest[0]
	}
	within := func(name string) string {
		if filepath.IsAbs(name) {
			return name
		}
		return filepath.Join(dir, name)
	}
	cfg, err := loadConfig(within(*config))
	if err != nil {
		return &usageError{err}
	}
	in, err := readTrial(within(*records))
	if err != nil {
		return &usageError{fmt.Errorf("--records: %w", err)}
	}
	var want []map[string]any
	if *expect != "" {
		if want, err = readObjects(within(*expect)); err != nil {
			return &usageError{fmt.Errorf("--expect: %w", err)}
		}
	}
	if cfg.Data, err = os.MkdirTemp("", "milepost-try-"); err != nil {
		return err
	}
	defer os.RemoveAll(cfg.Data) //nolint:errcheck // a directory for temporary files, swept by others
	cfg.MQTT.Listen, cfg.MQTT.TLS.Cert, cfg.Kinesis.Listen, cfg.Kinesis.TLS.Cert, cfg.HTTP.Listen = "", "", "", "", "127.0.0.1:0"
	cfg.Feeds = nil
	log := slog.New(slog.DiscardHandler)
	if *verbose {
		log = slog.New(slog.NewTextHandler(e.stderr, nil))
	}
	s, err := openServer(ctx, cfg, vfs.Disk, log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *patience)
	defer cancel()
	t := trial{s: s, file: within(*records), in: in, want: want, exact: *expect != "", quiet: *quiet, stderr: e.stderr}
	err = t.run(ctx, e.stdout)
	return errors.Join(err, s.drain(context.WithoutCancel(ctx)))
}

// A trialRecord is a line of the records file.
type trialRecord struct {
	Stream string
	line   int
	stream.Record
}

func readTrial(path string) ([]trialRecord, error) {
	var out []trialRecord
	err := eachLine(path, func(n int, line []byte) error {
		var r struct {
			Stream, Key string
			Data        json.RawMessage
			Base64      []byte
		}
		const shape = `write {"stream":"s","key":"k","data":{…}} on one line, or base64 instead of data`
		if !json.Valid(line) {
			return fmt.Errorf("not one whole JSON object: %.60s: %s", line, shape)
		}
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&r); err != nil {
			return fmt.Errorf("%s: %s", strings.TrimPrefix(err.Error(), "json: "), shape)
		}
		if r.Stream == "" || r.Key == "" || (r.Data == nil) == (r.Base64 == nil) {
			return fmt.Errorf("a record needs stream, key and data: %s", shape)
		}
		rec := trialRecord{r.Stream, n, stream.Record{Key: r.Key, Data: r.Data}}
		var text string
		if r.Base64 != nil {
			rec.Data = r.Base64
		} else if json.Unmarshal(r.Data, &text) == nil {
			rec.Data = []byte(text)
		}
		out = append(out, rec)
		return nil
	})
	return out, err
}

func readObjects(path string) ([]map[string]any, error) {
	var out []map[string]any
	err := eachLine(path, func(_ int, line []byte) error {
		var o map[string]any
		if err := json.Unmarshal(line, &o); err != nil {
			return fmt.Errorf("not one whole JSON object: %.60s: write what is expected as try prints it", line)
		}
		out = append(out, o)
		return nil
	})
	return out, err
}

func eachLine(path string, do func(n int, line []byte) error) error {
	b, err := os.ReadFile(path) //nolint:gosec // the user names it
	if err != nil {
		return err
	}
	n := 0
	for line := range bytes.Lines(b) {
		n++
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		if err := do(n, line); err != nil {
			return fmt.Errorf("%s line %d: %w", path, n, err)
		}
	}
	return nil
}

// A trial is one run of records through a server.
type trial struct {
	s      *server
	file   string // of the records
	in     []trialRecord
	want   []map[string]any
	exact  bool // want counts
	quiet  time.Duration
	stderr io.Writer
	told   map[string]bool // what was said of functions that fail
}

// run puts the records and watches every other stream, until what is expected has come, or all is done and nothing comes any more.
func (t *trial) run(ctx context.Context, w io.Writer) error {
	watched, err := t.put(ctx)
	if err != nil {
		return err
	}
	s := t.s
	var got []map[string]any
	var waits string
	changed := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for done := false; !done; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			done = true
		}
		now, err := s.came(context.WithoutCancel(ctx), watched)
		if err != nil {
			return err
		}
		if waits = t.waits(context.WithoutCancel(ctx)); len(now) != len(got) || waits != "" {
			got, changed = now, time.Now()
		}
		if t.exact {
			done = done || differs(t.want, got) == ""
		} else {
			done = done || time.Since(changed) > t.quiet
		}
	}
	out := bufio.NewWriter(w)
	for _, o := range got {
		b, err := json.Marshal(o)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s\n", b)
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if t.exact {
		if d := differs(t.want, got); d != "" {
			if waits != "" {
				d += "; " + waits
			}
			return errors.New(d)
		}
		return nil
	}
	if waits != "" {
		return fmt.Errorf("it took too long: %s; give it longer with --timeout, or give records up with max_retries", waits)
	}
	return nil
}

// put appends the records, and returns the streams that results may come to.
func (t *trial) put(ctx context.Context) (watched []string, err error) {
	s := t.s
	for _, name := range slices.Sorted(maps.Keys(s.cfg.Functions)) {
		for i, on := range s.cfg.Functions[name].On {
			for key, to := range map[string]string{"stream": on.Stream, "output": on.Output} {
				if to == "" {
					continue
				}
				if _, err := s.logs.Stream(to); err != nil { // a server would wait for someone to make it
					return nil, &usageError{fmt.Errorf("functions.%s.on[%d].%s: %w%s", name, i, key, err, t.known(to))}
				}
			}
		}
	}
	given := map[string]bool{readingsStream: true}
	for i := range t.in {
		r := &t.in[i]
		given[r.Stream] = true
		l, err := s.logs.Stream(r.Stream)
		if err != nil {
			return nil, &usageError{fmt.Errorf("%s line %d: %w%s", t.file, r.line, err, t.known(r.Stream))}
		}
		recs := []stream.Record{r.Record}
		if err := l.Append(ctx, recs); err != nil {
			return nil, fmt.Errorf("put %s line %d into %s: %w", t.file, r.line, r.Stream, err)
		}
	}
	for _, name := range append(slices.Sorted(maps.Keys(s.cfg.Streams)), deadStream) {
		if !given[name] {
			watched = append(watched, name)
		}
	}
	return watched, nil
}

// known says which streams there are.
func (t *trial) known(name string) string {
	names := append(slices.Sorted(maps.Keys(t.s.cfg.Streams)), readingsStream, deadStream)
	if hint := nearest.Hint(name, names); hint != "" {
		return hint
	}
	return ": name it under streams:; there are " + strings.Join(names, ", ")
}

// waits says which function has records before it; "" if none has. What makes one fail is told at once: it may be tried for ever.
func (t *trial) waits(ctx context.Context) string {
	if t.told == nil {
		t.told = map[string]bool{}
	}
	out := ""
	for _, f := range t.s.functions.List(ctx) {
		for _, m := range f.Mappings {
			if m.State == "Disabled" || m.Lag == 0 && m.Owed == 0 {
				continue
			}
			what := fmt.Sprintf("function %s on stream %s", f.Name, m.Stream)
			if m.LastError != "" && !t.told[what+m.LastError] && len(t.told) < 20 {
				t.told[what+m.LastError] = true
				fmt.Fprintf(t.stderr, "milepost try: %s: %s\n", what, m.LastError)
			}
			out = fmt.Sprintf("%s is not done with %d records", what, m.Lag)
			if m.LastError != "" {
				out += ", its last error: " + m.LastError
			}
		}
	}
	return out
}

// came returns what streams hold, as it is printed.
func (s *server) came(ctx context.Context, names []string) ([]map[string]any, error) {
	var out []map[string]any
	for _, name := range names {
		l, err := s.logs.Stream(name)
		if err != nil {
			return nil, err
		}
		shards, err := l.Shards(ctx)
		if err != nil {
			return nil, err
		}
		for _, sh := range shards {
			tip, err := l.Tip(ctx, sh.ID)
			if err != nil {
				return nil, err
			}
			if tip.Pos == "" {
				continue
			}
			recs, err := readTo(ctx, l, sh.ID, tip.Pos)
			if err != nil {
				return nil, err
			}
			for i := range recs {
				out = append(out, shown(name, &recs[i]))
			}
		}
	}
	return out, nil
}

// readTo reads a shard up to a position.
func readTo(ctx context.Context, l stream.Log, shard stream.ShardID, to stream.Position) ([]stream.Record, error) {
	r, err := l.Read(ctx, shard, "")
	if err != nil {
		return nil, err
	}
	defer r.Close() //nolint:errcheck // it was only read
	var out []stream.Record
	for {
		recs, err := r.Next(ctx, 1000)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		for _, rec := range recs {
			rec.Data, rec.Key = bytes.Clone(rec.Data), strings.Clone(rec.Key)
			out = append(out, rec)
		}
		if recs[len(recs)-1].Pos >= to {
			return out, nil
		}
	}
}

func shown(name string, r *stream.Record) map[string]any {
	var letter stream.DeadLetter
	if name == deadStream && json.Unmarshal(r.Data, &letter) == nil {
		return map[string]any{"stream": name, "source": letter.Source, "reason": letter.Reason, "key": letter.Key, "data": value(letter.Data)}
	}
	return map[string]any{"stream": name, "key": r.Key, "data": value(r.Data)}
}

// value is data as JSON, as text, or in base64.
func value(data []byte) any {
	var v any
	switch {
	case json.Unmarshal(data, &v) == nil:
		return v
	case utf8.Valid(data):
		return string(data)
	}
	return base64.StdEncoding.EncodeToString(data)
}

// differs says how what came is not what was wanted, in any order but that of a key; "" if it is. A wanted object names the fields that
// count; its reason is a part of the whole.
func differs(want, got []map[string]any) string {
	left := slices.Clone(got)
	last := map[string]int{} // by stream and key: where in left the last match was
	for _, w := range want {
		key := fmt.Sprint(w["stream"], "\x00", w["key"])
		at := -1
		for i := last[key]; i < len(left); i++ {
			if left[i] != nil && matches(w, left[i]) {
				at = i
				break
			}
		}
		if at < 0 {
			b, _ := json.Marshal(w) //nolint:errchkjson // it came from JSON
			return fmt.Sprintf("this did not come out, or not in its key's order: %s", b)
		}
		left[at], last[key] = nil, at
	}
	for _, g := range left {
		if g != nil {
			b, _ := json.Marshal(g) //nolint:errchkjson // maps of JSON's own types
			return fmt.Sprintf("this came out and was not expected: %s", b)
		}
	}
	return ""
}

func matches(want, got map[string]any) bool {
	for k, w := range want {
		g := got[k]
		if k == "reason" {
			ws, _ := w.(string)
			gs, _ := g.(string)
			if !strings.Contains(gs, ws) {
				return false
			}
			continue
		}
		if !reflect.DeepEqual(w, g) {
			return false
		}
	}
	return true
}
