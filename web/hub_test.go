package web

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A stillLive is a source whose changes the test makes.
type stillLive struct {
	points  []Point
	changed []uint64
	version uint64
}

func (s *stillLive) set(p Point) {
	s.version++
	for int(p.Index) >= len(s.points) {
		s.points, s.changed = append(s.points, Point{}), append(s.changed, 0)
	}
	s.points[p.Index], s.changed[p.Index] = p, s.version
}

func (s *stillLive) Drain(cursor uint64, buf []Point) ([]Point, uint64) {
	for i := range s.points {
		if s.changed[i] > cursor {
			buf = append(buf, s.points[i])
		}
	}
	return buf, s.version
}

// still returns a hub whose ticks the test makes, by hubWork.once.
func still(live Live) (*hub, *hubWork) {
	cfg := Config{Live: live}
	cfg.fill()
	h := &hub{cfg: &cfg, metrics: newMetrics(nil), epoch: "e", tick: make(chan struct{}), wake: make(chan struct{}, 1)}
	return h, &hubWork{h: h}
}

// A heard is what a browser makes of one "vehicles" event.
type heard struct {
	Whole  bool
	Names  map[string]string
	Places map[uint32][2]float64
	States map[uint32]State
}

func decode(t testing.TB, frame []byte) heard {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(string(frame), "\n\n"), "\n")
	if len(lines) != 3 || lines[0] != "event: vehicles" || !strings.HasPrefix(lines[1], "id: ") {
		t.Fatalf("not one vehicles event: %q", lines)
	}
	var m struct {
		Whole  bool              `json:"whole"`
		N      int               `json:"n"`
		Names  map[string]string `json:"names"`
		Points string            `json:"points"`
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(lines[2], "data: ")), &m); err != nil {
		t.Fatalf("event data: %v", err)
	}
	b, err := base64.StdEncoding.DecodeString(m.Points)
	if err != nil || len(b) != m.N*pointSize {
		t.Fatalf("%d bytes of points for %d: %v", len(b), m.N, err)
	}
	out := heard{Whole: m.Whole, Names: m.Names, Places: map[uint32][2]float64{}, States: map[uint32]State{}}
	for ; len(b) > 0; b = b[pointSize:] {
		i := binary.LittleEndian.Uint32(b)
		if _, twice := out.Places[i]; twice {
			t.Errorf("vehicle %d is in the event twice", i)
		}
		out.Places[i] = [2]float64{float64(int32(binary.LittleEndian.Uint32(b[4:]))) / 1e7, float64(int32(binary.LittleEndian.Uint32(b[8:]))) / 1e7}
		out.States[i] = State(b[19] & 3)
	}
	return out
}

func at(i uint32, lat float64) Point {
	return Point{Index: i, ID: fmt.Sprintf("T%d", i), Lat: lat, Lon: -74, HasPlace: true, Speed: 50, Heading: 90, Time: 1000}
}

func vehiclesOf(out [][]byte) [][]byte {
	var v [][]byte
	for _, f := range out {
		if bytes.HasPrefix(f, []byte("event: vehicles")) {
			v = append(v, f)
		}
	}
	return v
}

func TestFeedsShareOneFrame(t *testing.T) {
	src := &stillLive{}
	src.set(at(0, 40))
	h, w := still(src)
	w.once(t.Context())
	a, b := &feed{h: h}, &feed{h: h}
	first, _ := a.next(nil)
	second, _ := b.next(nil)
	if &vehiclesOf(first)[0][0] != &vehiclesOf(second)[0][0] {
		t.Error("two browsers that came within a tick got two snapshots, want one made once")
	}
	src.set(at(0, 41))
	w.once(t.Context())
	first, _ = a.next(nil)
	second, _ = b.next(nil)
	if &vehiclesOf(first)[0][0] != &vehiclesOf(second)[0][0] {
		t.Error("two browsers got two deltas, want one encoded once")
	}
	if d := cmp.Diff(map[uint32][2]float64{0: {41, -74}}, decode(t, vehiclesOf(first)[0]).Places); d != "" {
		t.Errorf("delta (-want +got):\n%s", d)
	}
}

// A browser that slept through many ticks gets each changed vehicle once, at its newest place, and the names it missed.
func TestSlowFeedCoalesces(t *testing.T) {
	src := &stillLive{}
	src.set(at(0, 40))
	src.set(at(1, 50))
	h, w := still(src)
	w.once(t.Context())
	f := &feed{h: h}
	out, _ := f.next(nil)
	if got := decode(t, vehiclesOf(out)[0]); !got.Whole || len(got.Places) != 2 {
		t.Fatalf("first event: %+v, want both vehicles, whole", got)
	}
	for i := range 100 {
		src.set(at(0, 40+float64(i)/100))
		if i == 50 {
			src.set(at(2, 60))
		}
		w.once(t.Context())
	}
	out, _ = f.next(nil)
	if n := len(vehiclesOf(out)); n != 1 {
		t.Fatalf("%d events after sleeping, want one", n)
	}
	want := heard{
		Names:  map[string]string{"2": "T2"},
		Places: map[uint32][2]float64{0: {40.99, -74}, 2: {60, -74}},
		States: map[uint32]State{0: StateOnline, 2: StateOnline},
	}
	if d := cmp.Diff(want, decode(t, vehiclesOf(out)[0])); d != "" {
		t.Errorf("merged event (-want +got):\n%s", d)
	}
	if out, _ = f.next(nil); len(vehiclesOf(out)) != 0 {
		t.Error("the same changes were sent again")
	}
}

func TestResume(t *testing.T) {
	src := &stillLive{}
	src.set(at(0, 40))
	h, w := still(src)
	w.once(t.Context())
	src.set(at(1, 50))
	w.once(t.Context())
	f := func(last string, whole bool, vehicles int) {
		t.Helper()
		fd := &feed{h: h}
		fd.resume(last)
		out, _ := fd.next(nil)
		got := decode(t, vehiclesOf(out)[0])
		if got.Whole != whole || len(got.Places) != vehicles {
			t.Errorf("Last-Event-ID %q: whole %t with %d vehicles, want %t with %d", last, got.Whole, len(got.Places), whole, vehicles)
		}
	}
	f("", true, 2)
	f("e-1", false, 1)
	f("other-1", true, 2)  // of another process: its indexes mean nothing here
	f("e-99", true, 2)     // of the future
	f("e-x", true, 2)      // nonsense
	f("e-1-2", true, 2)    // nonsense
	f("e--1", true, 2)     // nonsense
	f("\x00-\n1", true, 2) // nonsense
}

func TestGoneAndReusedIndex(t *testing.T) {
	src := &stillLive{}
	src.set(at(0, 40))
	h, w := still(src)
	w.once(t.Context())
	f := &feed{h: h}
	f.next(nil)
	gone := at(0, 40)
	gone.State = StateGone
	src.set(gone)
	w.once(t.Context())
	out, _ := f.next(nil)
	if got := decode(t, vehiclesOf(out)[0]); got.States[0] != StateGone {
		t.Errorf("a watching browser was not told that the vehicle is gone: %+v", got)
	}
	late := &feed{h: h}
	out, _ = late.next(nil)
	if got := decode(t, vehiclesOf(out)[0]); len(got.Places) != 0 {
		t.Errorf("a new browser was told of a vehicle that is gone: %+v", got)
	}
	p := at(0, 10)
	p.ID = "another"
	src.set(p)
	w.once(t.Context())
	out, _ = f.next(nil)
	if got := decode(t, vehiclesOf(out)[0]); got.Names["0"] != "another" {
		t.Errorf("an index given to another vehicle was not named again: %+v", got.Names)
	}
}

func TestPointOnTheWire(t *testing.T) {
	f := func(p Point, speed uint16, heading, flags byte) {
		t.Helper()
		b := appendPoint(nil, &p)
		if len(b) != pointSize {
			t.Fatalf("%d bytes, want %d", len(b), pointSize)
		}
		if got := binary.LittleEndian.Uint16(b[16:]); got != speed || b[18] != heading || b[19] != flags {
			t.Errorf("%+v: speed %d heading %d flags %06b, want %d %d %06b", p, got, b[18], b[19], speed, heading, flags)
		}
	}
	nan := func() float64 { z := 0.0; return z / z }()
	f(Point{HasPlace: true, Speed: 63.2, Heading: 180, State: StateStale, Severity: SeverityCritical}, 632, 128, 1|3<<2|16|32)
	f(Point{Speed: -1, Heading: -1}, noSpeed, 0, 0)
	f(Point{HasPlace: true, Lat: nan, Speed: float32(nan), Heading: float32(nan)}, noSpeed, 0, 0)
	f(Point{HasPlace: true, Lat: 91, Speed: 1e9, Heading: 360}, noSpeed, 0, 32)
	f(Point{HasPlace: true, Time: 1 << 62, Heading: 359.9}, 0, 0, 16|32)
}

// An id is a device's word: whatever it is, the event stays one event and gives it back.
func FuzzEventNames(f *testing.F) {
	f.Add("T100")
	f.Add("a\nevent: alerts\ndata: {}\n\n")
	f.Add(`"}<script>`)
	f.Fuzz(func(t *testing.T, id string) {
		var b frameBuilder
		p := at(7, 1)
		p.ID = id
		b.add(&p, true)
		got := decode(t, b.event("e", 1, 0, true))
		if want := strings.ToValidUTF8(id, "\ufffd"); len(got.Names) != 1 || strings.ToValidUTF8(got.Names["7"], "\ufffd") == "" && want != "" {
			t.Fatalf("names %q, want %q", got.Names, want)
		}
		if len(got.Places) != 1 {
			t.Fatalf("places %v, want one", got.Places)
		}
	})
}

func benchHub(b *testing.B, n int) {
	src := &stillLive{}
	for i := range n {
		src.set(at(uint32(i), 40))
	}
	h, w := still(src)
	w.once(context.Background())
	b.ReportAllocs()
	var bytes int
	for b.Loop() {
		src.version++
		for i := range src.changed {
			src.changed[i] = src.version
		}
		w.once(context.Background())
		bytes = len(h.frame)
	}
	b.ReportMetric(float64(bytes), "B/tick")
}

// One tick in which every vehicle moved: what the hub costs each second, however many browsers watch.
func BenchmarkTick5000(b *testing.B)  { benchHub(b, 5000) }
func BenchmarkTick50000(b *testing.B) { benchHub(b, 50_000) }

// What a browser that fell behind costs, itself: a merged delta of 5,000.
func BenchmarkMerged5000(b *testing.B) {
	src := &stillLive{}
	for i := range 5000 {
		src.set(at(uint32(i), 40))
	}
	h, w := still(src)
	w.once(context.Background())
	f := &feed{h: h}
	b.ReportAllocs()
	for b.Loop() {
		f.since(0)
	}
}
