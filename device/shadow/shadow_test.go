package shadow_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/milepost/milepost/device/shadow"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state/local"
)

var update = flag.Bool("update", false, "write what is heard into testdata")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type world struct {
	t        testing.TB
	fs       *vfs.MemFS
	store    *local.Store
	k        *shadow.Keeper
	limits   shadow.Limits
	mu       sync.Mutex
	heard    []string
	reported []string
}

func newWorld(t testing.TB, l shadow.Limits) *world {
	w := &world{t: t, fs: vfs.NewCrashable(), limits: l}
	w.open()
	t.Cleanup(func() { w.k.Close(); _ = w.store.Close() })
	return w
}

func (w *world) open() {
	var err error
	if w.store, err = local.Open(local.Config{FS: w.fs, Dir: "state", MemBytes: 1 << 20, CacheBytes: 1 << 20}); err != nil {
		w.t.Fatal(err)
	}
	w.k, err = shadow.Open(context.Background(), shadow.Config{
		Store: w.store, Limits: w.limits,
		Publish: func(topic string, payload []byte) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.heard = append(w.heard, topic+" "+string(payload))
		},
		Reported: func(_ context.Context, thing, name string, reported json.RawMessage, _ time.Time) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.reported = append(w.reported, fmt.Sprintf("%s %q %s", thing, name, reported))
			return errors.New("logged only")
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) crash() {
	after := w.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(1, 1))})
	w.k.Close()
	if err := w.store.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.fs = after
	w.open()
}

func (w *world) send(topic, payload string) []string {
	w.t.Helper()
	if !w.k.Handle(w.t.Context(), "thing", topic, []byte(payload)) {
		w.t.Fatalf("%s is not handled", topic)
	}
	defer func() { w.heard = nil }()
	return w.heard
}

// The stories in testdata: a line "> topic payload" is published, "sleep" lets a second go by, "crash" is one, and what is heard is
// written below it with T0, T1, … for timestamps. The first is AWS's own "Simulating Device Shadow service communications".
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 3 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			story, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			w := newWorld(t, shadow.Limits{})
			var got []string
			times, phase := map[string]string{}, 0
			for line := range strings.Lines(string(story)) {
				line = strings.TrimSuffix(line, "\n")
				switch {
				case line == "sleep":
					time.Sleep(2100 * time.Millisecond) // the second may change within a phase, which is the same phase still
					phase++
				case line == "crash":
					w.crash()
				case strings.HasPrefix(line, "> "):
					topic, payload, _ := strings.Cut(line[2:], " ")
					got = append(got, line)
					for _, h := range w.send("$aws/things/"+topic, payload) {
						h = regexp.MustCompile(`"timestamp":\d+`).ReplaceAllStringFunc(h, func(s string) string {
							if times[s] == "" {
								times[s] = fmt.Sprintf("T%d", phase)
							}
							return `"timestamp":` + times[s]
						})
						got = append(got, strings.TrimPrefix(h, "$aws/things/"))
					}
					continue
				case strings.HasPrefix(line, "#"), line == "":
				default:
					continue
				}
				got = append(got, line)
			}
			if *update {
				if err := os.WriteFile(f, []byte(strings.Join(got, "\n")+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(strings.TrimSpace(string(story)), strings.TrimSpace(strings.Join(got, "\n"))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestRejections(t *testing.T) {
	w := newWorld(t, shadow.Limits{Named: 2})
	const update = "$aws/things/lamp/shadow/update"
	w.send(update, `{"state":{"desired":{"a":1}}}`)
	deep := func(n int) string { return strings.Repeat(`{"d":`, n) + "1" + strings.Repeat("}", n) }
	for _, c := range []struct {
		topic, payload string
		code           int
		message, token string
	}{
		{update, "", 400, "Invalid JSON", ""},
		{update, "{", 400, "Invalid JSON", ""},
		{update, "{}{}", 400, "Invalid JSON", ""},
		{update, "[]", 400, "Invalid JSON", ""},
		{update, "null", 400, "Invalid JSON", ""},
		{update, `{"clientToken":"t"}`, 400, "Missing required node: state", "t"},
		{update, `{"state":1}`, 400, "State node must be an object", ""},
		{update, `{"state":null}`, 400, "State node must be an object", ""},
		{update, `{"state":{"desired":1}}`, 400, "Desired node must be an object", ""},
		{update, `{"state":{"reported":[]}}`, 400, "Reported node must be an object", ""},
		{update, `{"state":{"delta":{}}}`, 400, "State contains an invalid node: 'delta'", ""},
		{update, `{"state":{},"version":"1"}`, 400, "Invalid version", ""},
		{update, `{"state":{},"version":-1}`, 400, "Invalid version", ""},
		{update, `{"state":{},"version":1.5}`, 400, "Invalid version", ""},
		{update, `{"state":{},"clientToken":7}`, 400, "Invalid clientToken", ""},
		{update, `{"state":{},"clientToken":"` + strings.Repeat("t", 65) + `"}`, 400, "Invalid clientToken", ""},
		{update, `{"state":{"desired":` + deep(9) + `}}`, 400, "JSON contains too many levels of nesting; maximum is 8", ""},
		{update, `{"state":{},"version":7,"clientToken":"t"}`, 409, "Version conflict", "t"},
		{update, `{"state":{"desired":{"x":"` + strings.Repeat("x", 8200) + `"}},"clientToken":"t"}`, 413, "The payload exceeds the maximum size allowed", "t"},
		{update, strings.Repeat(" ", 30000), 413, "The payload exceeds the maximum size allowed", ""},
		{update, "{\"state\":{\"desired\":{\"x\":\"\xff\"}}}", 415, "Unsupported documented encoding; supported encoding is UTF-8", ""},
		{"$aws/things/none/shadow/get", `{"clientToken":"t"}`, 404, "No shadow exists with name: 'none'", "t"},
		{"$aws/things/none/shadow/delete", "", 404, "No shadow exists with name: 'none'", ""},
		{"$aws/things/lamp/shadow/name/n/get", "", 404, "No shadow exists with name: 'n'", ""},
		{"$aws/things/la mp/shadow/update", `{"state":{}}`, 400, "Invalid thing name: write at most 128 of a-z A-Z 0-9 _ - :", ""},
		{"$aws/things/lamp/shadow/name/$x/update", `{"state":{}}`, 400, "Invalid shadow name: write at most 64 of a-z A-Z 0-9 _ - :", ""},
	} {
		heard := w.send(c.topic, c.payload)
		var doc struct {
			Code        int
			Message     string
			ClientToken string
			Timestamp   int64
		}
		topic, payload := "", ""
		if len(heard) == 1 {
			topic, payload, _ = strings.Cut(heard[0], "/rejected ")
			if err := json.Unmarshal([]byte(payload), &doc); err != nil {
				t.Errorf("%s: %v", heard, err)
			}
		}
		if topic != c.topic || doc.Code != c.code || doc.Message != c.message || doc.ClientToken != c.token || doc.Timestamp == 0 {
			t.Errorf("%s %.60s:\n%s", c.topic, c.payload, heard)
		}
	}
	if heard := w.send(update, `{"state":{"desired":`+deep(8)+`},"version":1}`); len(heard) != 3 {
		t.Errorf("nothing was changed by what was rejected, and 8 levels are taken: %s", heard)
	}
	for _, name := range []string{"a", "b", "c"} {
		heard := w.send("$aws/things/lamp/shadow/name/"+name+"/update", `{"state":{"reported":{"x":1}}}`)
		if rejected := strings.Contains(heard[0], "429"); rejected != (name == "c") {
			t.Errorf("named shadow %s: %s", name, heard)
		}
	}
	for _, topic := range []string{
		"$aws/things/lamp/shadow", "$aws/things/lamp/shadow/", "$aws/things/lamp/shadow/update/accepted", "$aws/things/a/b/shadow/get",
		"$aws/things/lamp/shadow/name//get", "$aws/things/lamp/shadow/name/n", "$aws/rules/x", "fleet/x",
	} {
		if w.k.Handle(t.Context(), "lamp", topic, []byte("{}")) {
			t.Errorf("%s is no request", topic)
		}
	}
}

func TestReported(t *testing.T) {
	w := newWorld(t, shadow.Limits{})
	w.send("$aws/things/lamp/shadow/update", `{"state":{"desired":{"a":1}}}`)
	w.send("$aws/things/lamp/shadow/update", `{"state":{"reported":{"speed":63.20,"big":12345678901234567890}}}`)
	w.send("$aws/things/lamp/shadow/name/n/update", `{"state":{"reported":{"x":1}}}`)
	w.send("$aws/things/lamp/shadow/update", `{"state":{"reported":{}},"version":99}`)
	want := []string{`lamp "" {"big":12345678901234567890,"speed":63.20}`, `lamp "n" {"x":1}`}
	if diff := cmp.Diff(want, w.reported); diff != "" {
		t.Error(diff)
	}
}

// Many devices and programs update one shadow at once: each version is there once, and none is lost.
func TestConcurrentUpdates(t *testing.T) {
	w := newWorld(t, shadow.Limits{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 10 {
				if _, _, f := w.k.Update(t.Context(), "lamp", "", fmt.Appendf(nil, `{"state":{"reported":{"k%d":%d}}}`, i, j)); f != nil {
					t.Error(f)
				}
			}
		})
	}
	wg.Wait()
	last := int64(0)
	for _, h := range w.heard {
		topic, payload, _ := strings.Cut(h, " ")
		var doc struct{ Version int64 }
		if err := json.Unmarshal([]byte(payload), &doc); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(topic, "/accepted") {
			if doc.Version != last+1 {
				t.Fatalf("version %d after %d", doc.Version, last)
			}
			last = doc.Version
		}
	}
	w.crash()
	answer, _, f := w.k.Get(t.Context(), "lamp", "", nil)
	var doc struct {
		State   struct{ Reported map[string]int }
		Version int64
	}
	if f != nil || json.Unmarshal(answer, &doc) != nil || doc.Version != 80 || len(doc.State.Reported) != 8 {
		t.Errorf("%s, %v", answer, f)
	}
	for k, v := range doc.State.Reported {
		if v != 9 {
			t.Errorf("%s is %d", k, v)
		}
	}
}

func TestHTTP(t *testing.T) {
	w := newWorld(t, shadow.Limits{})
	mux := http.NewServeMux()
	shadow.NewHandler(w.k, "secret").Register(mux)
	do := func(method, path, body string) (int, string, string) {
		t.Helper()
		r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer secret")
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, r)
		return rec.Code, rec.Header().Get("X-Amzn-Errortype"), rec.Body.String()
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		kind, part         string
	}{
		{"GET", "/things/lamp/shadow", "", 404, "ResourceNotFoundException", "No shadow exists with name: 'lamp'"},
		{"POST", "/things/lamp/shadow", `{"state":{"desired":{"on":true}},"clientToken":"t"}`, 200, "", `"clientToken":"t"`},
		{"POST", "/things/lamp/shadow", `{"state":{"desired":{"on":true}},"version":5}`, 409, "ConflictException", "Version conflict"},
		{"POST", "/things/lamp/shadow", `nonsense`, 400, "InvalidRequestException", "Invalid JSON"},
		{"POST", "/things/lamp/shadow", strings.Repeat(" ", 100_000), 413, "RequestEntityTooLargeException", "maximum size"},
		{"GET", "/things/lamp/shadow", "", 200, "", `"delta":{"on":true}`},
		{"POST", "/things/lamp/shadow?name=b", `{"state":{"reported":{}}}`, 200, "", `"version":1`},
		{"POST", "/things/lamp/shadow?name=a", `{"state":{"reported":{}}}`, 200, "", `"version":1`},
		{"GET", "/api/things/shadow/ListNamedShadowsForThing/lamp", "", 200, "", `"results":["a","b"]`},
		{"DELETE", "/things/lamp/shadow?name=a", "", 200, "", `"version":1`},
		{"DELETE", "/things/lamp/shadow?name=a", "", 404, "ResourceNotFoundException", "No shadow exists with name: 'a'"},
		{"GET", "/api/things/shadow/ListNamedShadowsForThing/lamp", "", 200, "", `"results":["b"]`},
		{"DELETE", "/things/lamp/shadow", "", 200, "", `"version":1`},
	} {
		status, kind, body := do(c.method, c.path, c.body)
		if status != c.status || kind != c.kind || !strings.Contains(body, c.part) {
			t.Errorf("%s %s %.60s: %d %s %s", c.method, c.path, c.body, status, kind, body)
		}
	}
	if !slices.ContainsFunc(w.heard, func(h string) bool { return strings.HasPrefix(h, "$aws/things/lamp/shadow/update/delta ") }) {
		t.Error("an update over HTTP is heard by MQTT")
	}
	rec := httptest.NewRecorder()
	mux.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", "/things/lamp/shadow", nil))
	if rec.Code != 401 {
		t.Errorf("without the token: %d", rec.Code)
	}
}

// Whatever is sent, the answer is one of AWS's, and what was accepted can be read, and is no larger than it may be.
func FuzzUpdate(f *testing.F) {
	for _, s := range []string{
		`{"state":{"desired":{"a":{"b":[1,{"c":null}]}},"reported":{"a":null}},"clientToken":"t","version":1}`,
		`{"state":{"desired":null}}`, `{"state":{"reported":{"x":1e400}}}`, `{"state":{"desired":{"a":{}},"reported":{"a":{"b":2}}}}`,
	} {
		f.Add([]byte(s))
	}
	w := newWorld(f, shadow.Limits{Bytes: 300})
	f.Fuzz(func(t *testing.T, payload []byte) {
		answer, _, fault := w.k.Update(t.Context(), "lamp", "", payload)
		w.heard, w.reported = nil, nil
		if fault != nil {
			if fault.Code >= 500 || fault.Code < 400 {
				t.Error(fault)
			}
			return
		}
		if !json.Valid(answer) {
			t.Errorf("%s", answer)
		}
		got, _, fault := w.k.Get(t.Context(), "lamp", "", nil)
		if fault != nil || !json.Valid(got) {
			t.Errorf("%s, %v", got, fault)
		}
	})
}
