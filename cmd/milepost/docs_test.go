package main

import (
	"bytes"
	"context"
	"flag"
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
	"github.com/milepost/milepost/query"
)

//nolint:gochecknoglobals // flags of a test
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
	cfg.Data, cfg.HTTP.Listen, cfg.MQTT.Listen = t.TempDir(), "127.0.0.1:0", "127.0.0.1:0"
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

// TestDocCommands runs every block that is marked <!-- run -->, page by page, in one directory for each page and with the built
// program as milepost. What the pages write as the demo's address is this server's.
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
	// The test binary is the program with MILEPOST_MAIN=1: see TestMain.
	if err := os.Symlink(self, filepath.Join(bin, "milepost")); err != nil {
		t.Fatal(err)
	}
	s := docServer(t)
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dirs := map[string]string{}
	for _, b := range markedBlocks(t, "run") {
		if dirs[b.page] == "" {
			dirs[b.page] = t.TempDir()
		}
		text := strings.NewReplacer(
			"127.0.0.1:8080", s.listener.Addr().String(), "localhost:8080", s.listener.Addr().String(), "go run ./cmd/milepost", "milepost",
		).Replace(b.text)
		// A block that succeeds says so by its last command too: -e and pipefail end it at the first failure.
		cmd := exec.CommandContext(t.Context(), sh, "-euo", "pipefail", "-c", text)
		cmd.Dir = dirs[b.page]
		cmd.Env = append(os.Environ(), "MILEPOST_MAIN=1", "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"), "MILEPOST_SOURCE="+root,
			"MILEPOST_DATA="+s.cfg.Data, "MILEPOST_ADDR=http://"+s.listener.Addr().String())
		if out, err := cmd.CombinedOutput(); err != nil {
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
