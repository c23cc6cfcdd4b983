package mqtt_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// The numbers of all normative statements of MQTT 5 (OASIS Standard, 7 March 2019): section, first and last.
var mqtt5Statements = []struct {
	section     string
	first, last int
}{
	{"1.5.4", 1, 3},
	{"1.5.5", 1, 1},
	{"1.5.7", 1, 1},
	{"2.1.3", 1, 1},
	{"2.2.1", 2, 6},
	{"2.2.2", 1, 1},
	{"3.1.0", 1, 2},
	{"3.1.2", 1, 30},
	{"3.1.3", 1, 12},
	{"3.1.4", 1, 6},
	{"3.2.0", 1, 2},
	{"3.2.2", 1, 22},
	{"3.3.1", 1, 13},
	{"3.3.2", 1, 20},
	{"3.3.4", 1, 10},
	{"3.4.2", 1, 3},
	{"3.5.2", 1, 3},
	{"3.6.1", 1, 1},
	{"3.6.2", 1, 3},
	{"3.7.2", 1, 3},
	{"3.8.1", 1, 1},
	{"3.8.3", 1, 5},
	{"3.8.4", 1, 8},
	{"3.9.2", 1, 2},
	{"3.9.3", 1, 2},
	{"3.10.1", 1, 1},
	{"3.10.3", 1, 2},
	{"3.10.4", 1, 6},
	{"3.11.2", 1, 2},
	{"3.11.3", 1, 2},
	{"3.12.4", 1, 1},
	{"3.14.0", 1, 1},
	{"3.14.1", 1, 1},
	{"3.14.2", 1, 4},
	{"3.14.4", 1, 3},
	{"3.15.1", 1, 1},
	{"3.15.2", 1, 3},
	{"4.1.0", 1, 2},
	{"4.2.0", 1, 1},
	{"4.3.1", 1, 1},
	{"4.3.2", 1, 5},
	{"4.3.3", 1, 13},
	{"4.4.0", 1, 2},
	{"4.5.0", 1, 2},
	{"4.6.0", 1, 6},
	{"4.7.0", 1, 1},
	{"4.7.1", 1, 2},
	{"4.7.2", 1, 1},
	{"4.7.3", 1, 4},
	{"4.8.2", 1, 6},
	{"4.9.0", 1, 3},
	{"4.12.0", 1, 7},
	{"4.12.1", 1, 2},
	{"4.13.1", 1, 1},
	{"4.13.2", 1, 1},
	{"6.0.0", 1, 4},
}

var (
	numbers = regexp.MustCompile(`(\d+\.\d+\.\d+)-(\d+)((?:(?:, | to )-\d+)*)`)
	further = regexp.MustCompile(`(, | to )-(\d+)`)
	named   = regexp.MustCompile("`(Test\\w+)`")
)

// statementsIn lists the statements that a text names: "3.1.2-4, -5" and "4.3.3-8 to -12" are two and five.
func statementsIn(text string) (all []string) {
	for _, m := range numbers.FindAllStringSubmatch(text, -1) {
		last, _ := strconv.Atoi(m[2])
		all = append(all, m[1]+"-"+m[2])
		for _, f := range further.FindAllStringSubmatch(m[3], -1) {
			n, _ := strconv.Atoi(f[2])
			from := n
			if f[1] == " to " {
				from = last + 1
			}
			for ; from <= n; from++ {
				all = append(all, fmt.Sprintf("%s-%d", m[1], from))
			}
			last = n
		}
	}
	return all
}

// testsOf returns the statements that each test of a directory names.
func testsOf(t *testing.T, dir string) map[string]map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no tests in %s: %v", dir, err)
	}
	out := map[string]map[string]bool{}
	for _, name := range files {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, name, src, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Test") {
				continue
			}
			from := f.Pos()
			if f.Doc != nil {
				from = f.Doc.Pos()
			}
			held := map[string]bool{}
			for _, s := range statementsIn(string(src[set.Position(from).Offset:set.Position(f.End()).Offset])) {
				held[s] = true
			}
			out[f.Name.Name] = held
		}
	}
	return out
}

// docs/mqtt-conformance.md has every statement once, and each of the tests that it gives for one is there and names it.
func TestEveryStatementIsHeld(t *testing.T) {
	page, err := os.ReadFile("../../docs/mqtt-conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	packages := map[string]map[string]map[string]bool{"mqtt": testsOf(t, "."), "broker": testsOf(t, "broker"), "packet": testsOf(t, "packet")}
	rows := func(section string, each func(statement string)) {
		for line := range strings.Lines(section) {
			cells := strings.Split(line, "|")
			if len(cells) != 5 || !numbers.MatchString(cells[1]) {
				continue
			}
			statement := strings.TrimSpace(cells[1])
			each(statement)
			tests := 0
			for part := range strings.SplitSeq(cells[3], ";") {
				pkg, list, _ := strings.Cut(strings.TrimSpace(part), " ")
				for _, m := range named.FindAllStringSubmatch(list, -1) {
					tests++
					if held, ok := packages[pkg][m[1]]; !ok {
						t.Errorf("%s: there is no %s in %q", statement, m[1], pkg)
					} else if !held[statement] {
						t.Errorf("%s: %s %s does not name it", statement, pkg, m[1])
					}
				}
			}
			if tests == 0 {
				t.Errorf("%s: no test", statement)
			}
		}
	}
	seen := map[string]int{}
	sections := strings.Split(string(page), "\n## ")
	found := 0
	for _, s := range sections {
		title, body, _ := strings.Cut(s, "\n")
		switch title {
		case "Held by tests":
			found++
			rows(body, func(s string) { seen[s]++ })
		case "Of a client alone", "Of what this server does not do":
			found++
			for _, s := range statementsIn(body) {
				seen[s]++
			}
		case "MQTT 3.1.1":
			found++
			old := map[string]int{}
			rows(body, func(s string) { old[s]++ })
			for s, n := range old {
				if n != 1 {
					t.Errorf("3.1.1 %s is there %d times", s, n)
				}
			}
			if len(old) < 20 {
				t.Errorf("only %d statements of 3.1.1 were read", len(old))
			}
		}
	}
	if found != 4 {
		t.Errorf("%d of 4 sections found", found)
	}
	for _, s := range mqtt5Statements {
		for n := s.first; n <= s.last; n++ {
			id := fmt.Sprintf("%s-%d", s.section, n)
			if seen[id] != 1 {
				t.Errorf("%s is there %d times", id, seen[id])
			}
			delete(seen, id)
		}
	}
	for s := range seen {
		t.Errorf("%s is no statement of MQTT 5", s)
	}
}
