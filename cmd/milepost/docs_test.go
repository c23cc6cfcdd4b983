package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/milepost/milepost/internal/conf"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/query"
	"github.com/milepost/milepost/query/continuous"
)

var updateDocs = flag.Bool("update", false, "write docs/configuration.md")

// TestReferencePage holds docs/configuration.md to Config. With -args -update it writes the page.
func TestReferencePage(t *testing.T) {
	const head = "# Configuration\n\n" +
		"One YAML file, given with `--config`. Every key has a default: an empty file, or none, runs. A key that is not known is an error that\n" +
		"names the line and the nearest key. `milepost check --config FILE` checks a file and prints what would run; `--full` prints every value.\n\n" +
		"Durations are written `90s`, `15m`, `24h`, `30d`; sizes `64KiB`, `256MiB`, `1GiB`. Keys below `[]` are of each entry of a list, keys below\n" +
		"`NAME` of each named entry. A key without a default is empty, or off, unless its meaning says otherwise.\n\n" +
		"This page is written by `make docs` from `cmd/milepost/config.go`. Change it there.\n\n"
	const page = "../../docs/configuration.md"
	want := head + conf.Reference(Config{})
	if *updateDocs {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil { //nolint:gosec // documentation
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/configuration.md is not what the code says: run make docs")
	}
	for line := range strings.Lines(want) {
		if strings.HasSuffix(strings.TrimSpace(line), "|  |") {
			t.Errorf("a key without a doc tag: %s", line)
		}
	}
}

// A docBlock is a fenced block of a page.
type docBlock struct {
	page string
	line int
	text string
}

// markedBlocks returns the blocks of README.md and docs/ that follow the comment <!-- mark -->, in order.
func markedBlocks(t *testing.T, mark string) []docBlock {
	t.Helper()
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	fence := regexp.MustCompile("(?ms)^<!-- " + mark + " -->\n```[a-z]*\n(.*?)^```$")
	var out []docBlock
	for _, page := range append([]string{"../../README.md"}, pages...) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		found := fence.FindAllSubmatchIndex(text, -1)
		if marks := bytes.Count(text, []byte("<!-- "+mark+" -->")); marks != len(found) {
			t.Errorf("%s has %d marks <!-- %s --> and %d blocks right after one", page, marks, mark, len(found))
		}
		for _, m := range found {
			out = append(out, docBlock{filepath.Base(page), 1 + bytes.Count(text[:m[2]], []byte{'\n'}), string(text[m[2]:m[3]])})
		}
	}
	if len(out) == 0 {
		t.Fatalf("no block is marked <!-- %s -->", mark)
	}
	return out
}

// docServer starts a server with a little data, as the demo would have it, and returns it. It stops with the test.
func docServer(t *testing.T) *server {
	t.Helper()
	cfg, err := loadConfig("")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Data, cfg.HTTP.Listen, cfg.MQTT.Listen, cfg.Kinesis.Listen = t.TempDir(), "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	cfg.Feeds = map[string]FeedConfig{"nobody": {URL: "http://127.0.0.1:1/", Format: "gtfs-rt"}} // its metrics are there although it is not
	cfg.Streams = map[string]UserStream{"per-minute": {Shards: 1, Retention: conf.Duration(time.Hour)}}
	cfg.Windows = map[string]window.Spec{"warm": {Aggregates: []string{"avg(engine_temp)"}, Key: "vehicle", Size: 5 * time.Minute}}
	if sqlBuilt() {
		cfg.Queries = map[string]continuous.Spec{"counts": {SQL: "SELECT count(*) AS n FROM readings WHERE event_time >= $start AND event_time < $end", Every: time.Minute, Output: "per-minute"}}
	}
	ctx := t.Context()
	s, err := openServer(ctx, cfg, vfs.Disk, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.drain(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	var out bytes.Buffer
	code := run(ctx, &env{strings.NewReader(""), &out, &out}, []string{
		"sim", "--to", "http://" + s.listener.Addr().String(), "--vehicles", "20", "--readings", "2000", "--since", "10m",
	})
	if code != exitOK {
		t.Fatalf("sim: %s", &out)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := s.runner.WaitCaughtUp(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestDocCommands runs every block that is marked <!-- run -->, page by page, in one directory for each page and with the program
// as milepost. The demo's address is this server's.
func TestDocCommands(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	sh, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash")
	}
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("no curl")
	}
	bin := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := docServer(t)
	addr := "http://" + s.listener.Addr().String()
	// The test binary is the program with MILEPOST_MAIN=1: see TestMain. Commands that default to the demo's address get this server's.
	script := fmt.Sprintf("#!/bin/sh\nMILEPOST_MAIN=1; export MILEPOST_MAIN\ncase $1 in\nsql) exec %[1]q \"$@\" --addr %[2]s ;;\n"+
		"sim|replay) exec %[1]q \"$@\" --to %[2]s ;;\nesac\nexec %[1]q \"$@\"\n", self, addr)
	if err := os.WriteFile(filepath.Join(bin, "milepost"), []byte(script), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	dirs := map[string]string{}
	for _, b := range markedBlocks(t, "run") {
		if dirs[b.page] == "" {
			dirs[b.page] = t.TempDir()
		}
		text := strings.ReplaceAll(b.text, "http://127.0.0.1:8080", addr)
		// -e and pipefail end a block at its first failure.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		cmd := exec.CommandContext(ctx, sh, "-euo", "pipefail", "-c", text)
		cmd.Dir, cmd.WaitDelay = dirs[b.page], time.Second
		cmd.Env = append(os.Environ(), "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		cancel()
		if err != nil {
			t.Errorf("%s:%d: %v\n%s\n%s", b.page, b.line, err, text, out)
		}
	}
}

// TestDocSQL runs every statement that is marked <!-- sql -->.
func TestDocSQL(t *testing.T) {
	if !sqlBuilt() {
		t.Skip("SQL is not in this build")
	}
	s := docServer(t)
	for _, b := range markedBlocks(t, "sql") {
		for statement := range strings.SplitSeq(b.text, ";\n") {
			if statement = strings.TrimSuffix(strings.TrimSpace(statement), ";"); statement == "" {
				continue
			}
			if _, err := s.sql.Query(t.Context(), statement, query.JSON, query.Limits{}, io.Discard); err != nil {
				t.Errorf("%s:%d: %v\n%s", b.page, b.line, err, statement)
			}
		}
	}
}

// TestDocMetrics checks that every metric which the pages name is one that the server has.
func TestDocMetrics(t *testing.T) {
	s := docServer(t)
	families, err := s.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, f := range families {
		known[f.GetName()] = true
	}
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	suffix := regexp.MustCompile(`_(bucket|sum|count)$`)
	for _, page := range append([]string{"../../README.md"}, pages...) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`milepost_[a-z0-9_]*[a-z0-9]\b`).FindAllString(string(text), -1) {
			if !sqlBuilt() && strings.HasPrefix(name, "milepost_query_") {
				continue // they come with the engine
			}
			if !known[name] && !known[suffix.ReplaceAllString(name, "")] {
				t.Errorf("%s names %s, which /metrics does not have", filepath.Base(page), name)
			}
		}
	}
}

// TestDocLinks checks that every relative link of the pages leads to a file.
func TestDocLinks(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)
	for _, page := range append(pages, "../../README.md", "../../ARCHITECTURE.md", "../../CONTRIBUTING.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s, which is not there", filepath.Base(page), m[1])
			}
		}
	}
}
