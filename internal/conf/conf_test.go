package conf

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type door struct {
	Listen string `yaml:"listen" default:"127.0.0.1:80" doc:"where"`
	Size   Bytes  `yaml:"max_size" default:"1MiB" doc:"most"`
}

type file struct {
	HTTP  door             `yaml:"http" doc:"the door"`
	Wait  Duration         `yaml:"wait" default:"24h" doc:"how long"`
	Rules []door           `yaml:"rules"`
	Named map[string]*door `yaml:"named"`
	On    *bool            `yaml:"on"`
	N     int              `yaml:"n"`
}

func TestLoad(t *testing.T) {
	var got file
	err := Load([]byte("http:\n  listen: :8080\nwait: 30d\nrules:\n- listen: a\n- max_size: 2GiB\nnamed:\n  x:\n    listen: b\non: false\n"), &got)
	if err != nil {
		t.Fatal(err)
	}
	off := false
	want := file{
		HTTP: door{":8080", 1 << 20}, Wait: Duration(30 * 24 * time.Hour),
		Rules: []door{{"a", 1 << 20}, {"127.0.0.1:80", 2 << 30}}, Named: map[string]*door{"x": {"b", 1 << 20}}, On: &off,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// A oneLine is a section that may be written on one line.
type oneLine struct {
	Size int `yaml:"size"`
}

func (o *oneLine) UnmarshalText(b []byte) error {
	_, err := fmt.Sscanf(string(b), "size of %d", &o.Size)
	return err
}

func TestOneLine(t *testing.T) {
	var got struct {
		Named map[string]oneLine `yaml:"named"`
	}
	if err := Load([]byte("named:\n  a: size of 5\n  b: {size: 6}\n"), &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]oneLine{"a": {5}, "b": {6}}, got.Named); d != "" {
		t.Error(d)
	}
	err := Load([]byte("named:\n  a: large\n"), &got)
	if err == nil || !strings.Contains(err.Error(), "line 2: named.a:") {
		t.Errorf("got %v", err)
	}
}

func TestLoadMistakes(t *testing.T) {
	f := func(in string, want ...string) {
		t.Helper()
		var c file
		err := Load([]byte(in), &c)
		if err == nil {
			t.Fatalf("%q: no error, want %q", in, want)
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q: got %q, want %q in it", in, err, w)
			}
		}
	}
	f("htpp:\n  listen: x\n", "line 1: unknown key htpp; did you mean http?")
	f("http:\n  lisent: x\n", "line 2: unknown key http.lisent; did you mean http.listen?")
	f("http:\n  zzz: x\n", "known here: listen, max_size")
	f("rules:\n- listen: a\n- maxsize: 1\n", "line 3: unknown key rules[1].maxsize; did you mean rules[1].max_size?")
	f("named:\n  x:\n    lsten: 1\n", "did you mean named.x.listen?")
	f("http: 7\n", "http is a section")
	f("rules: 7\n", "rules is a list")
	f("wait: soon\n", "line 1", "no duration", "24h")
	f("http:\n  max_size: -1\n", "line 2", "no size")
	f("n: seven\n", "line 1: n", "whole number")
	f("named:\n  x: {listen: a}\n  x: {listen: b}\n", "line 3: named.x is given twice (first in line 2)")
	f("n: 1\nn: 2\n", "line 2: n is given twice (first in line 1)")
	f("a b: [", "not YAML")
	f("htpp: 1\nwiat: 2\n", "http?", "wait?") // every mistake, not just the first
}

func TestUnitsRoundTrip(t *testing.T) {
	for _, s := range []string{"10m", "24h", "30d", "1h30m", "100ms", "0s", "1m30s", "10s"} {
		d, err := parseDuration(s)
		if err != nil || Duration(d).String() != s {
			t.Errorf("%s: got %s, %v", s, Duration(d), err)
		}
	}
	for _, s := range []string{"500", "64KiB", "1MiB", "2GiB", "0"} {
		n, err := parseBytes(s)
		if err != nil || Bytes(n).String() != s {
			t.Errorf("%s: got %s, %v", s, Bytes(n), err)
		}
	}
}

func TestReference(t *testing.T) {
	got := Reference(file{})
	for _, w := range []string{"| `http.listen` | `127.0.0.1:80` | where |", "| `rules[].max_size` | `1MiB` | most |", "| **`named.NAME`** |"} {
		if !strings.Contains(got, w) {
			t.Errorf("got\n%s\nwant %q in it", got, w)
		}
	}
}
