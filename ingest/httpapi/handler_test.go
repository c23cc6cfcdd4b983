package httpapi_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/format"
	"github.com/milepost/milepost/ingest/httpapi"
	"github.com/milepost/milepost/ingest/internal/memlog"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

func TestMain(m *testing.M) {
	// net/http lingers half a second on a connection whose request it has not read to the end.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

const seed = `{"truck_id":"T100","ts":"2026-11-21T02:15:03.120Z","lat":40.7128,"long":-74.0060,"speed":63.2,"heading":181,` +
	`"fuel":55.1,"engine_temp":92.4,"fuel_pressure":44.0,"cargo_temp":3.8,"status":"moving"}`

type world struct {
	log, dead memlog.Log
	admit     *ingest.Admitter
	server    *http.Server
	url       string
	client    *http.Client
}

// newWorld serves the door as a program would.
func newWorld(t testing.TB, limits ingest.Limits, cfg httpapi.Config) *world {
	t.Helper()
	w := &world{}
	var err error
	w.admit, err = ingest.New(ingest.Config{Log: &w.log, DeadLetters: &w.dead, Catalog: telemetry.NewCatalog(), Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	h, err := httpapi.New(cfg, w.admit)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	h.Register(mux)
	if err := h.Foreign(mux, format.New(format.Config{})); err != nil {
		t.Fatal(err)
	}
	w.server = httpapi.Server(mux, httpapi.ServerConfig{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = w.server.Serve(l)
	}()
	w.url = "http://" + l.Addr().String()
	w.client = &http.Client{Transport: &http.Transport{}}
	t.Cleanup(func() {
		w.client.CloseIdleConnections()
		w.log.Release()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := w.server.Shutdown(ctx); err != nil { // waits for the handlers, as Close does not
			t.Error(err)
		}
		<-served
		if n := w.admit.InFlight(); n != 0 {
			t.Errorf("%d bytes are still in flight at the end", n)
		}
	})
	return w
}

type answer struct {
	status int
	header http.Header
	doc    struct {
		Type, Title, Detail string
		Status              int
		Accepted            int
		Refused             []struct {
			Line      int
			Reason    string
			Retryable bool
		}
		RefusedTotal int    `json:"refused_total"`
		Lost         string `json:"dead_letters_lost"`
	}
}

func (w *world) do(t testing.TB, method, path string, header http.Header, body io.Reader) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, w.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(req.Header, header)
	resp, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	if err := json.NewDecoder(resp.Body).Decode(&a.doc); err != nil {
		t.Fatalf("%s %s: answer %d is no JSON: %v", method, path, resp.StatusCode, err)
	}
	want := "application/problem+json"
	if a.status == 200 {
		want = "application/json"
	} else if a.doc.Status != a.status || a.doc.Title == "" || a.doc.Detail == "" || a.doc.Type == "" {
		t.Errorf("%s %s: problem document %+v of answer %d", method, path, a.doc, a.status)
	}
	if got := resp.Header.Get("Content-Type"); got != want {
		t.Errorf("%s %s: content type %q, want %q", method, path, got, want)
	}
	return a
}

func (w *world) post(t testing.TB, path, body string, header ...string) answer {
	t.Helper()
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return w.do(t, http.MethodPost, path, h, strings.NewReader(body))
}

func (w *world) stored() []string {
	var out []string
	for _, r := range w.log.Records() {
		out = append(out, r.Key+" "+string(r.Data))
	}
	return out
}

func (w *world) letters(t testing.TB) []string {
	t.Helper()
	var out []string
	for _, r := range w.dead.Records() {
		var d stream.DeadLetter
		if err := json.Unmarshal(r.Data, &d); err != nil {
			t.Fatal(err)
		}
		if d.Source != "http" || !strings.HasPrefix(d.From, "127.0.0.1:") {
			t.Errorf("dead letter %+v", d)
		}
		out = append(out, string(d.Data))
	}
	return out
}

func gzipped(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write([]byte(s))
	_ = z.Close()
	return b.String()
}

func zstded(t testing.TB, s string, known bool) string {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	if known { // the frame says how large it is
		return string(z.EncodeAll([]byte(s), nil))
	}
	for part := s; part != ""; part = part[min(len(part), 100_000):] {
		_, _ = z.Write([]byte(part[:min(len(part), 100_000)]))
	}
	_ = z.Close()
	return b.String()
}

func TestBodiesOfEveryKind(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, httpapi.Config{})
	var want []string
	f := func(path, body string, n int, header ...string) {
		t.Helper()
		for range n {
			want = append(want, "T100 "+seed)
		}
		a := w.post(t, path, body, header...)
		if a.status != 200 || a.doc.Accepted != n || a.doc.RefusedTotal != 0 || a.doc.Refused == nil {
			t.Errorf("%s %v: %d %+v, want 200 and %d accepted", path, header, a.status, a.doc, n)
		}
	}
	f("/v1/readings", seed, 1)
	f("/v1/readings", seed, 1, "Content-Type", "application/x-www-form-urlencoded") // what curl -d says
	f("/v1/readings", "["+seed+","+seed+"]", 2, "Content-Type", "application/json")
	f("/v1/readings", seed+"\n"+seed+"\n", 2, "Content-Type", "application/x-ndjson")
	f("/v1/vehicles/T100/readings", seed, 1)
	lines := strings.Repeat(seed+"\n", 5000) // a megabyte: larger than the first buffers
	f("/v1/readings", lines, 5000)
	f("/v1/readings", gzipped(lines), 5000, "Content-Encoding", "gzip")
	f("/v1/readings", gzipped(seed)+gzipped("\n"+seed), 2, "Content-Encoding", "GZIP")
	f("/v1/readings", zstded(t, lines, true), 5000, "Content-Encoding", "zstd")
	f("/v1/readings", zstded(t, lines, false), 5000, "Content-Encoding", "zstd")
	if d := cmp.Diff(want, w.stored()); d != "" {
		t.Errorf("stored (-want +got):\n%s", d)
	}
}

func TestThePathNamesTheVehicle(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, httpapi.Config{})
	if a := w.post(t, "/v1/vehicles/bus%207/readings", `{"speed":1}`); a.status != 200 {
		t.Errorf("%d %+v", a.status, a.doc)
	}
	a := w.post(t, "/v1/vehicles/a/readings", "{\"speed\":1}\n{\"truck_id\":\"b\"}")
	if a.status != 200 || a.doc.Accepted != 1 || len(a.doc.Refused) != 1 || a.doc.Refused[0].Line != 2 {
		t.Errorf("%d %+v", a.status, a.doc)
	}
	if a := w.post(t, "/v1/vehicles/a%2Fb/readings", `{"speed":1}`); a.status != 400 {
		t.Errorf("a slash in the id: %d %+v", a.status, a.doc)
	}
	if d := cmp.Diff([]string{`bus 7 {"speed":1}`, `a {"speed":1}`}, w.stored()); d != "" {
		t.Errorf("stored (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{`{"truck_id":"b"}`}, w.letters(t)); d != "" {
		t.Errorf("dead letters (-want +got):\n%s", d)
	}
}

func TestRefusalsAreListed(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, httpapi.Config{})
	a := w.post(t, "/v1/readings", seed+"\nnonsense\n"+seed)
	if a.status != 200 || a.doc.Accepted != 2 || a.doc.RefusedTotal != 1 || a.doc.Refused[0].Line != 2 || a.doc.Refused[0].Retryable {
		t.Errorf("%d %+v", a.status, a.doc)
	}
	a = w.post(t, "/v1/readings", strings.Repeat("nonsense\n", 1000))
	if a.status != 400 || a.doc.Accepted != 0 || a.doc.RefusedTotal != 1000 || len(a.doc.Refused) != ingest.MaxProblems {
		t.Errorf("%d, %d of %d listed", a.status, len(a.doc.Refused), a.doc.RefusedTotal)
	}
	if a = w.post(t, "/v1/readings", ""); a.status != 400 || a.doc.RefusedTotal != 1 {
		t.Errorf("empty: %d %+v", a.status, a.doc)
	}
	w.dead.Fail(stream.ErrFull, 0)
	if a = w.post(t, "/v1/readings", seed+"\nnonsense"); a.status != 200 || !strings.Contains(a.doc.Lost, "full") {
		t.Errorf("full dead-letter stream: %d %+v", a.status, a.doc)
	}
}

// 200 is not said before the append has returned.
func TestAnswerWaitsForTheLog(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, httpapi.Config{})
	waiting := w.log.Hold()
	answered := make(chan answer)
	go func() { answered <- w.post(t, "/v1/readings", seed) }()
	<-waiting
	select {
	case a := <-answered:
		t.Errorf("answered %d before it was stored", a.status)
	default:
	}
	if w.admit.InFlight() == 0 {
		t.Error("the body in flight is not accounted for")
	}
	w.log.Release()
	if a := <-answered; a.status != 200 || len(w.log.Records()) != 1 {
		t.Errorf("%d, %d stored", a.status, len(w.log.Records()))
	}
}

func TestUnavailableLog(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, httpapi.Config{})
	for _, err := range []error{stream.ErrFull, stream.ErrFenced, stream.ErrClosed, io.ErrUnexpectedEOF} {
		w.log.Fail(err, 1)
		a := w.post(t, "/v1/readings", seed+"\n"+seed)
		if a.status != 503 || a.header.Get("Retry-After") == "" || a.doc.Accepted != 1 || a.doc.RefusedTotal != 1 ||
			a.doc.Refused[0].Line != 2 || !a.doc.Refused[0].Retryable {
			t.Errorf("%v: %d %+v", err, a.status, a.doc)
		}
	}
}

func TestDeviceRate(t *testing.T) {
	w := newWorld(t, ingest.Limits{RatePerDevice: 0.001, BurstPerDevice: 1}, httpapi.Config{})
	a := w.post(t, "/v1/readings", seed+"\n"+seed)
	if a.status != 200 || a.doc.Accepted != 1 || !a.doc.Refused[0].Retryable || a.header.Get("Retry-After") == "" {
		t.Errorf("one of two: %d %+v", a.status, a.doc)
	}
	a = w.post(t, "/v1/readings", seed)
	if a.status != 429 || a.header.Get("Retry-After") != "1000" || a.doc.Accepted != 0 {
		t.Errorf("all: %d %v %+v", a.status, a.header, a.doc)
	}
}

func TestWhatIsNotARequest(t *testing.T) {
	w := newWorld(t, ingest.Limits{MaxBody: 1000}, httpapi.Config{Token: "s3cret"})
	ok := http.Header{"Authorization": {"Bearer s3cret"}}
	f := func(status int, method, path string, header http.Header, body io.Reader) answer {
		t.Helper()
		h := ok.Clone()
		maps.Copy(h, header)
		a := w.do(t, method, path, h, body)
		if a.status != status {
			t.Errorf("%s %s %v: %d %+v, want %d", method, path, header, a.status, a.doc, status)
		}
		return a
	}
	f(200, "POST", "/v1/readings", nil, strings.NewReader(seed))
	f(200, "POST", "/v1/readings", http.Header{"Authorization": {"bearer s3cret"}}, strings.NewReader(seed))
	if a := f(405, "GET", "/v1/readings", nil, nil); a.header.Get("Allow") != "POST" {
		t.Errorf("405 allows %q", a.header.Get("Allow"))
	}
	for _, auth := range []string{"", "Bearer", "Bearer wrong", "Basic s3cret", "s3cret"} {
		if a := f(401, "POST", "/v1/readings", http.Header{"Authorization": {auth}}, nil); a.header.Get("WWW-Authenticate") == "" {
			t.Error("401 without a challenge")
		}
	}
	if a := f(413, "POST", "/v1/readings", nil, strings.NewReader(strings.Repeat(" ", 1001))); !strings.Contains(fmt.Sprint(a.doc), "limits.body") {
		t.Errorf("413 names no key of the configuration: %+v", a.doc)
	}
	f(413, "POST", "/v1/readings", nil, io.MultiReader(strings.NewReader(strings.Repeat(" ", 1001)))) // chunked
	f(413, "POST", "/v1/readings", http.Header{"Content-Encoding": {"gzip"}}, strings.NewReader(gzipped(strings.Repeat(" ", 1001))))
	f(413, "POST", "/v1/readings", http.Header{"Content-Encoding": {"zstd"}}, strings.NewReader(zstded(t, strings.Repeat(" ", 1001), true)))
	f(200, "POST", "/v1/readings", nil, strings.NewReader(seed+strings.Repeat(" ", 1000-len(seed))))
	f(415, "POST", "/v1/readings", http.Header{"Content-Encoding": {"br"}}, strings.NewReader(seed))
	f(415, "POST", "/v1/readings", http.Header{"Content-Encoding": {"gzip, gzip"}}, strings.NewReader(seed))
	f(400, "POST", "/v1/readings", http.Header{"Content-Encoding": {"gzip"}}, strings.NewReader(seed))
	f(400, "POST", "/v1/readings", http.Header{"Content-Encoding": {"gzip"}}, strings.NewReader(gzipped(seed)[:50]))
	f(400, "POST", "/v1/readings", http.Header{"Content-Encoding": {"zstd"}}, strings.NewReader(seed))
	f(400, "POST", "/v1/readings?map=vehicle=x", nil, strings.NewReader(seed))
	if d := len(w.dead.Records()); d != 0 {
		t.Errorf("%d dead letters of what was never a body", d)
	}
}

func TestTables(t *testing.T) {
	csv := http.Header{"Content-Type": {"text/csv; charset=utf-8"}}
	f := func(path, body string, want []string, lines ...int) *world {
		t.Helper()
		w := newWorld(t, ingest.Limits{}, httpapi.Config{})
		a := w.do(t, "POST", path, csv, strings.NewReader(body))
		if a.status != 200 || a.doc.Accepted != len(want) {
			t.Errorf("%s: %d %+v", path, a.status, a.doc)
		}
		var got []int
		for _, r := range a.doc.Refused {
			got = append(got, r.Line)
		}
		if d := cmp.Diff(lines, got); d != "" {
			t.Errorf("%s: refused lines (-want +got):\n%s", path, d)
		}
		if d := cmp.Diff(want, w.stored()); d != "" {
			t.Errorf("%s: stored (-want +got):\n%s", path, d)
		}
		return w
	}
	f("/v1/readings", "vehicle_id,ts,speed\na,2026-11-21T02:15:03Z,50\n", []string{
		`a {"vehicle_id":"a","ts":"2026-11-21T02:15:03.000Z","speed":50}`,
	})
	f("/v1/readings?map=vehicle=bus,time=at&time=unix_s&speed_unit=mps", "bus,at,speed\r\na,1700000000,10\r\nb,1700000001,5\r\n", []string{
		`a {"vehicle_id":"a","ts":"2023-11-14T22:13:20.000Z","speed":36}`,
		`b {"vehicle_id":"b","ts":"2023-11-14T22:13:21.000Z","speed":18}`,
	})
	f("/v1/vehicles/a/readings?map=time=@arrival&comma=%3B", "speed;fuel\n1;2", []string{`a {"vehicle_id":"a","speed":1,"fuel":2}`})
	w := f("/v1/readings", "vehicle_id,ts,note,speed\n"+
		"a,2026-11-21T02:15:03Z,\"two\nlines\",1\n"+ // lines 2 and 3
		"a,yesterday,x,1\n"+ // 4
		"\n"+
		"a,2026-11-21T02:15:04Z,x\n"+ // 6: a field short
		"a,2026-11-21T02:15:05Z,x,fast\n"+ // 7
		"a,2026-11-21T02:15:06Z,x,2\n"+
		"a,2026-11-21T02:15:07Z,\"no end,3\nand more\n", // 9
		[]string{
			`a {"vehicle_id":"a","ts":"2026-11-21T02:15:03.000Z","speed":1}`,
			`a {"vehicle_id":"a","ts":"2026-11-21T02:15:06.000Z","speed":2}`,
		}, 4, 6, 7, 9)
	want := []string{
		"a,yesterday,x,1", "a,2026-11-21T02:15:04Z,x\na,2026-11-21T02:15:05Z,x,fast",
		"a,2026-11-21T02:15:07Z,\"no end,3\nand more",
	}
	if d := cmp.Diff(want, w.letters(t)); d != "" {
		t.Errorf("dead letters (-want +got):\n%s", d)
	}
}

func TestTablesThatCannotBeRead(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, httpapi.Config{})
	for _, query := range []string{
		"", "?map=vehicle", "?map=vehicle=bus&map=time=at", "?zone=Nowhere", "?zone=Local", "?others=perhaps", "?comma=,,", "?comma=", "?nonsense=1",
		"?map=vehicle=none", "?map=vehicle=bus,time=at&speed_unit=parsec", "?%zz",
	} {
		a := w.post(t, "/v1/readings"+query, "bus,at,speed\na,2026-11-21T02:15:03Z,1\n", "Content-Type", "text/csv")
		if a.status != 400 {
			t.Errorf("%q: %d %+v", query, a.status, a.doc)
		}
	}
	if a := w.post(t, "/v1/readings", "", "Content-Type", "text/csv"); a.status != 400 {
		t.Errorf("empty table: %d", a.status)
	}
}

// A long table is stored in parts; lines and order hold across them, and after a failure nothing more is tried.
func TestLongTables(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, httpapi.Config{})
	var table strings.Builder
	table.WriteString("vehicle_id,ts,x\n")
	const n = 20_000
	for i := range n {
		if i%1000 == 999 {
			table.WriteString("a,bad,1\n")
			continue
		}
		fmt.Fprintf(&table, "a,2026-11-21T02:15:03Z,%d\n", i)
	}
	query := "/v1/readings?others=true"
	a := w.post(t, query, table.String(), "Content-Type", "text/csv")
	if a.status != 200 || a.doc.Accepted != n-n/1000 || a.doc.RefusedTotal != n/1000 || a.doc.Refused[3].Line != 4001 {
		t.Errorf("%d: %d accepted, %+v", a.status, a.doc.Accepted, a.doc.Refused)
	}
	at := 0
	for _, r := range w.log.Records() {
		if at%1000 == 999 {
			at++
		}
		if want := fmt.Sprintf(`"x":%d}`, at); !strings.HasSuffix(string(r.Data), want) {
			t.Fatalf("record %s, want …%s", r.Data, want)
		}
		at++
	}
	w.log.Fail(stream.ErrFull, 10)
	before := w.log.Appends()
	a = w.post(t, query, table.String(), "Content-Type", "text/csv")
	if a.status != 503 || a.doc.Accepted != 10 || a.doc.RefusedTotal != n-10 || w.log.Appends() != before+1 {
		t.Errorf("%d: accepted %d, refused %d in %d appends", a.status, a.doc.Accepted, a.doc.RefusedTotal, w.log.Appends()-before)
	}
}

func BenchmarkPost(b *testing.B) {
	var log, dead memlog.Log
	log.Null = true
	admit, err := ingest.New(ingest.Config{Log: &log, DeadLetters: &dead, Catalog: telemetry.NewCatalog()})
	if err != nil {
		b.Fatal(err)
	}
	h, err := httpapi.New(httpapi.Config{}, admit)
	if err != nil {
		b.Fatal(err)
	}
	lines := strings.Repeat(seed+"\n", 500)
	for _, bench := range []struct{ name, body, encoding string }{
		{"plain", lines, ""},
		{"gzip", gzipped(lines), "gzip"},
		{"zstd", zstded(b, lines, true), "zstd"},
		{"one", seed, ""},
	} {
		b.Run(bench.name, func(b *testing.B) {
			n := 500
			if bench.name == "one" {
				n = 1
			}
			body := strings.NewReader(bench.body)
			b.ReportAllocs()
			for b.Loop() {
				body.Reset(bench.body)
				r := httptest.NewRequestWithContext(b.Context(), http.MethodPost, "/v1/readings", body)
				if bench.encoding != "" {
					r.Header.Set("Content-Encoding", bench.encoding)
				}
				w := httptest.NewRecorder()
				if h.ServeHTTP(w, r); w.Code != 200 {
					b.Fatal(w.Body.String())
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/reading")
		})
	}
}
