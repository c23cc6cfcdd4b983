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

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process"
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
		return &usageError{err}
	}
	var want []map[string]any
	if *expect != "" {
		if want, err = readObjects(within(*expect)); err != nil {
			return &usageError{err}
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
	err = s.try(ctx, e.stdout, in, want, *expect != "", *quiet)
	stuck := s.tell(context.WithoutCancel(ctx), e.stderr)
	switch {
	case err == nil && *expect != "":
		fmt.Fprintln(e.stderr, "what came out is what was expected")
	case err == nil && stuck:
		err = errors.New("a function failed to the end: see above; -v shows what it printed")
	}
	return errors.Join(err, s.drain(context.WithoutCancel(ctx)))
}

// tell says in a line what became of each mapping; stuck: of one or more the last word was an error.
func (s *server) tell(ctx context.Context, w io.Writer) (stuck bool) {
	for _, f := range s.functions.List(ctx) {
		for i := range f.Mappings {
			m := &f.Mappings[i]
			fmt.Fprintf(w, "function %s on %s: %s processed, %s, %s given up\n",
				m.Function, m.Stream, plural(int(m.Total.Records), "record"), plural(int(m.Total.Invocations), "invocation"), plural(int(m.Total.DeadLetters), "record")) //nolint:gosec // of one file
			failing := slices.ContainsFunc(m.Shards, func(sh process.ShardStatus) bool { return sh.State == process.StateRetrying })
			if stuck = stuck || failing; m.LastError != "" && (failing || m.Total.DeadLetters > 0) {
				fmt.Fprintf(w, "  its last error: %s\n", m.LastError)
			}
		}
	}
	return stuck
}

// A trialRecord is a line of the records file.
type trialRecord struct {
	Stream string
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
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&r); err != nil {
			return err
		}
		if r.Stream == "" || r.Key == "" || (r.Data == nil) == (r.Base64 == nil) {
			return errors.New(`a record needs stream, key and data: {"stream":"s","key":"k","data":{…}}`)
		}
		rec := trialRecord{r.Stream, stream.Record{Key: r.Key, Data: r.Data}}
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
			return err
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

// try puts the records and watches every other stream.
func (s *server) try(ctx context.Context, w io.Writer, in []trialRecord, want []map[string]any, exact bool, quiet time.Duration) error {
	given := map[string]bool{readingsStream: true}
	for i := range in {
		r := &in[i]
		given[r.Stream] = true
		l, err := s.logs.Stream(r.Stream)
		if err != nil {
			return fmt.Errorf("stream %s: %w: name it in the section streams", r.Stream, err)
		}
		recs := []stream.Record{r.Record}
		if err := l.Append(ctx, recs); err != nil {
			return fmt.Errorf("put into %s: %w", r.Stream, err)
		}
	}
	var watched []string
	for _, name := range append(slices.Sorted(maps.Keys(s.cfg.Streams)), deadStream) {
		if !given[name] {
			watched = append(watched, name)
		}
	}
	var got []map[string]any
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
		if len(now) != len(got) {
			got, changed = now, time.Now()
		}
		if exact {
			done = done || differs(want, got) == ""
		} else {
			done = done || time.Since(changed) > quiet
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
	if exact {
		if d := differs(want, got); d != "" {
			return errors.New(d)
		}
	}
	return nil
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
