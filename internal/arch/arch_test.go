// Package arch holds the import rules of the tree (test only). Data flows down ARCHITECTURE.md's list of rooms and imports go up
// it; a new package needs a line here.
package arch

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/milepost/milepost/"

// rooms lists, for every package, the packages of this module that it may import in its non-test files. Leaves of internal/ may
// be imported by all. cmd/milepost wires everything and may import anything.
var rooms = map[string]string{
	"telemetry":         "",
	"stream":            "",
	"stream/seglog":     "stream",
	"stream/streamtest": "stream",
	"state":             "stream",
	"state/local":       "state stream",
	"state/statetest":   "state stream",
	"ingest":            "stream telemetry",
	"ingest/httpapi":    "ingest ingest/format stream telemetry",
	"ingest/bridge":     "ingest",
	"ingest/feed":       "ingest ingest/format",
	"ingest/mqtt":       "ingest ingest/mqtt/broker ingest/mqtt/packet stream telemetry",

	"ingest/kinesisapi":             "ingest/kinesisapi/eventstream ingest/kinesisapi/policy ingest/kinesisapi/sequence ingest/kinesisapi/sigv4 ingest/kinesisapi/wire stream stream/seglog",
	"ingest/kinesisapi/eventstream": "",
	"ingest/kinesisapi/kpl":         "",
	"ingest/kinesisapi/policy":      "",
	"ingest/kinesisapi/sequence":    "stream",
	"ingest/kinesisapi/sigv4":       "",
	"ingest/kinesisapi/wire":        "",

	"process":                "state stream",
	"process/lambda":         "process process/pattern process/lambda/runtime ingest/kinesisapi/policy ingest/kinesisapi/sequence ingest/kinesisapi/sigv4 state stream",
	"process/lambda/runtime": "",
	"process/pattern":        "",
	"process/window":         "telemetry",
	"process/window/lane":    "ingest/kinesisapi/kpl process process/rule process/window query state stream telemetry",
	"process/forest":         "",
	"process/anomaly":        "alert ingest/kinesisapi/kpl process process/forest process/rule state stream telemetry",
	"query/continuous":       "query state stream telemetry",
	"ingest/format":          "telemetry",
	"ingest/mqtt/packet":     "",
	"ingest/mqtt/broker":     "state",
	"device":                 "state",
	"examples/go-handler":    "",
	"device/command":         "state stream",
	"device/shadow":          "state stream",
	"process/rule":           "process/window telemetry",
	"alert":                  "process/rule state stream telemetry",
	"archive":                "state stream telemetry",
	"fleet":                  "alert ingest/kinesisapi/kpl process process/rule state stream telemetry",
	"query":                  "",
	"query/duckdb":           "archive query telemetry",
	"web":                    "alert fleet query stream telemetry web/basemap web/history",
	"web/basemap":            "",
	"web/history":            "query telemetry",
	"web/webtest":            "alert device fleet internal/vfs process process/lambda query state/local stream telemetry web",
	"web/webtest/devserver":  "web web/webtest",
	"sim":                    "sim/sender telemetry",
	"sim/replay":             "sim/sender telemetry",
	"sim/sender":             "",
	"ingest/internal/memlog": "stream",
	"process/processtest":    "stream",
	"internal/bearer":        "",
	"internal/binenc":        "",
	"internal/conf":          "",
	"internal/nearest":       "",
	"internal/vfs":           "",
	"internal/webhook":       "",
}

// heavy dependencies are confined to one room each.
var heavy = map[string]string{
	"github.com/cockroachdb/pebble/v2":               "state/local internal/vfs", // the latter its vfs alone
	"github.com/duckdb/duckdb-go/v2":                 "query/duckdb",
	"github.com/parquet-go/parquet-go":               "archive",
	"github.com/apache/arrow-go/v18":                 "query/duckdb",
	"cel.dev/cel-go":                                 "process/rule",
	"github.com/wneessen/go-mail":                    "alert",
	"github.com/MobilityData/gtfs-realtime-bindings": "ingest/format",
	"github.com/teslamotors/fleet-telemetry":         "ingest/format",
	"github.com/influxdata/line-protocol/v2":         "ingest/format",
	"go.yaml.in/yaml/v3":                             "internal/conf",
	"github.com/DataDog/sketches-go":                 "process/window",
	"software.sslmate.com/src/go-pkcs12":             "device",
	"github.com/sony/gobreaker/v2":                   "process/anomaly",
}

func TestImports(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); path != root && (strings.HasPrefix(n, ".") || n == "testdata" || n == "node_modules") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		seen++
		check(t, filepath.ToSlash(rel), path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 20 {
		t.Errorf("read %d files under %s: the walk is broken", seen, root)
	}
}

func check(t *testing.T, pkg, path string) {
	// The files are parsed here rather than by a shelled-out go list, whose inputs the test cache does not see.
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	if err != nil {
		t.Error(err)
		return
	}
	wires := pkg == "cmd" || strings.HasPrefix(pkg, "cmd/")
	allowed, known := rooms[pkg]
	if !known && !wires {
		t.Errorf("%s: package %s has no line in internal/arch", path, pkg)
		return
	}
	for _, imp := range file.Imports {
		p := strings.Trim(imp.Path.Value, `"`)
		if own, ok := strings.CutPrefix(p, module); ok {
			if !wires && !strings.HasPrefix(own, "internal/") && !slices.Contains(strings.Fields(allowed), own) {
				t.Errorf("%s: %s may not import %s", path, pkg, own)
			}
			continue
		}
		for dep, room := range heavy {
			if (p == dep || strings.HasPrefix(p, dep+"/")) && !slices.Contains(strings.Fields(room), pkg) {
				t.Errorf("%s: %s belongs in %s alone", path, p, room)
			}
		}
	}
}
