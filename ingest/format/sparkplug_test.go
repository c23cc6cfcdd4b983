package format

import (
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/milepost/milepost/telemetry"
)

// A metric of a test's payload; what is zero is left out.
type metric struct {
	name  string
	alias uint64
	at    uint64
	kind  uint64
	field protowire.Number
	value uint64
	unit  string
	null  bool
}

func payload(stamp, seq uint64, metrics ...metric) []byte {
	b := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), stamp)
	for _, m := range metrics {
		var x []byte
		if m.name != "" {
			x = protowire.AppendString(protowire.AppendTag(x, 1, protowire.BytesType), m.name)
		}
		if m.alias != 0 {
			x = protowire.AppendVarint(protowire.AppendTag(x, 2, protowire.VarintType), m.alias)
		}
		if m.at != 0 {
			x = protowire.AppendVarint(protowire.AppendTag(x, 3, protowire.VarintType), m.at)
		}
		if m.kind != 0 {
			x = protowire.AppendVarint(protowire.AppendTag(x, 4, protowire.VarintType), m.kind)
		}
		if m.null {
			x = protowire.AppendVarint(protowire.AppendTag(x, 7, protowire.VarintType), 1)
		}
		if m.unit != "" {
			v := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 12)
			v = protowire.AppendString(protowire.AppendTag(v, 8, protowire.BytesType), m.unit)
			p := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "engUnit")
			p = protowire.AppendBytes(protowire.AppendTag(p, 2, protowire.BytesType), v)
			x = protowire.AppendBytes(protowire.AppendTag(x, 9, protowire.BytesType), p)
		}
		switch int(m.field) {
		case 10, 11, 14:
			x = protowire.AppendVarint(protowire.AppendTag(x, m.field, protowire.VarintType), m.value)
		case 12:
			x = protowire.AppendFixed32(protowire.AppendTag(x, 12, protowire.Fixed32Type), uint32(m.value))
		case 13:
			x = protowire.AppendFixed64(protowire.AppendTag(x, 13, protowire.Fixed64Type), m.value)
		}
		b = protowire.AppendBytes(protowire.AppendTag(b, 2, protowire.BytesType), x)
	}
	return protowire.AppendVarint(protowire.AppendTag(b, 3, protowire.VarintType), seq)
}

func double(v float64) uint64 { return math.Float64bits(v) }

func TestSparkplug(t *testing.T) {
	f := &Sparkplug{}
	at := uint64(now.UnixMilli())
	send := func(topic string, data []byte, w want) {
		t.Helper()
		check(t, f, Input{Topic: topic, Data: data}, w)
	}
	send("spBv1.0/fleet/NBIRTH/gw-1", payload(at, 0,
		metric{name: "bdSeq", kind: 4, field: 11, value: 1},
		metric{name: "Node Control/Rebirth", kind: 11, field: 14},
		metric{name: "Battery", alias: 1, kind: 10, field: 13, value: double(27500), unit: "mV"}),
		want{lines: "{'vehicle_id':'gw-1','ts':'2026-11-21T12:00:00.000Z','battery':27.5}"})
	send("spBv1.0/fleet/DBIRTH/gw-1/reefer-3", payload(at, 1,
		metric{name: "Engine/Temperature", alias: 1, kind: 10, field: 13, value: double(91.5)},
		metric{name: "cargo_temp", alias: 2, kind: 9, field: 12, value: uint64(math.Float32bits(50)), unit: "°F"},
		metric{name: "position/latitude", alias: 3, kind: 10, field: 13, value: double(38.72)},
		metric{name: "position/longitude", alias: 4, kind: 10, field: 13, value: double(-9.13)},
		metric{name: "speed", alias: 5, kind: 10, field: 13, value: double(5), unit: "furlongs"},
		metric{name: "Door Open", alias: 6, kind: 11, field: 14, value: 1},
		metric{name: "offset", alias: 7, kind: 3, field: 10, value: uint64(uint32(0xffffffff))},
		metric{name: "big", alias: 8, kind: 4, field: 11, value: ^uint64(0)},
		metric{name: "silent", alias: 9, kind: 10, null: true}),
		want{lines: "{'vehicle_id':'reefer-3','ts':'2026-11-21T12:00:00.000Z','lat':38.72,'lon':-9.13,'engine_temperature':91.5,'cargo_temp':10,'door_open':1,'offset':-1,'big':-1}"})
	send("spBv1.0/fleet/DDATA/gw-1/reefer-3", payload(at, 2,
		metric{alias: 2, at: at - 60_000, kind: 9, field: 12, value: uint64(math.Float32bits(32))},
		metric{alias: 2, at: at, kind: 9, field: 12, value: uint64(math.Float32bits(50))}),
		want{lines: "{'vehicle_id':'reefer-3','ts':'2026-11-21T11:59:00.000Z','cargo_temp':0}\n{'vehicle_id':'reefer-3','ts':'2026-11-21T12:00:00.000Z','cargo_temp':10}"})
	send("spBv1.0/fleet/DDATA/gw-1/reefer-3", payload(at, 3, metric{alias: 77, field: 13, value: double(1)}, metric{alias: 1, field: 13, value: double(92)}),
		want{lines: "{'vehicle_id':'reefer-3','ts':'2026-11-21T12:00:00.000Z','engine_temperature':92}", bad: 1})
	send("spBv1.0/fleet/DDEATH/gw-1/reefer-3", payload(at, 4), want{lines: "{'vehicle_id':'reefer-3','ts':'2026-11-21T12:00:00.000Z','status':'offline'}"})
	send("spBv1.0/fleet/NCMD/gw-1", payload(at, 4), want{ignored: 1})
	send("spBv1.0/STATE/host", []byte(`{"online":true}`), want{ignored: 1})
	send("spBv1.0/fleet/XDATA/gw-1", payload(at, 4), want{err: "no type"})
	send("spBv1.0/fleet/NDATA/gw-1/x", payload(at, 4), want{err: "names no device"})
	send("other/fleet", nil, want{err: "spBv1.0/<group>"})
	send("spBv1.0/fleet/NDATA/gw-1", []byte{0xff}, want{err: "read Sparkplug payload"})
}

// A gap, or data before a birth, asks the edge node to be born again, but not with every message.
func TestSparkplugRebirth(t *testing.T) {
	f := &Sparkplug{}
	ask := func(topic string, seq uint64, at time.Time) int {
		out := NewOutput(telemetry.NewCatalog())
		if err := f.Convert(&Input{Topic: topic, Now: at, Data: payload(uint64(now.UnixMilli()), seq)}, out); err != nil {
			t.Fatal(err)
		}
		for _, m := range out.Send {
			if m.Topic != "spBv1.0/fleet/NCMD/gw-1" {
				t.Errorf("asked at %s", m.Topic)
			}
			stamp, _, metrics, err := sparkplugPayload(m.Payload)
			if err != nil || len(metrics) != 1 || metrics[0].name != "Node Control/Rebirth" || metrics[0].value != 1 || stamp == 0 {
				t.Errorf("command %+v, %v", metrics, err)
			}
		}
		return len(out.Send)
	}
	for i, step := range []struct {
		kind string
		seq  uint64
		at   time.Duration
		want int
	}{
		{"NDATA", 5, 0, 1},
		{"NDATA", 6, time.Second, 0},
		{"NBIRTH", 0, 2 * time.Second, 0},
		{"NDATA", 1, 3 * time.Second, 0},
		{"NDATA", 3, 20 * time.Second, 1},
		{"NBIRTH", 0, 21 * time.Second, 0},
		{"NDATA", 1, 22 * time.Second, 0},
	} {
		if got := ask("spBv1.0/fleet/"+step.kind+"/gw-1", step.seq, now.Add(step.at)); got != step.want {
			t.Errorf("step %d: asked %d times, want %d", i, got, step.want)
		}
	}
	for seq := uint64(2); seq < 258; seq++ { // it wraps at 256
		if n := ask("spBv1.0/fleet/NDATA/gw-1", seq&0xff, now.Add(time.Hour)); n != 0 {
			t.Fatalf("sequence number %d asked for a birth", seq)
		}
	}
}

// FuzzConvert: whatever comes in, no format panics, and what it writes are readings.
func FuzzConvert(f *testing.F) {
	seeds := []struct{ topic, query, data string }{
		{"owntracks/u/d", "", `{"_type":"location","lat":1,"lon":2,"tst":1795262400,"vel":3}`},
		{"", "id=a&lat=1&lon=2&speed=3&timestamp=1795262400", ""},
		{"", "", `{"device_id":"a","location":{"coords":{"latitude":1,"longitude":2}}}`},
		{"", "", `{"position":{"latitude":1,"longitude":2,"attributes":{"fuel":1}},"device":{"uniqueId":"a"}}`},
		{"", "", `{"locations":[{"geometry":{"type":"Point","coordinates":[1,2]},"properties":{"timestamp":"2026-11-21T12:00:00Z","device_id":"a"}}]}`},
		{"", "id=a&kff1005=1&k5=90&time=1795262400000", ""},
		{"", "precision=s", "readings,name=a velocity=1,latitude=2,longitude=3 1795262400"},
		{"t/VIN/v/Soc", "", `"5"`},
		{"", "", `{"Vehicle.Speed":1,"Vehicle.VehicleIdentification.VIN":"a"}`},
		{"spBv1.0/g/NBIRTH/e", "", string(payload(1795262400000, 0, metric{name: "x", alias: 1, field: 13, value: double(1), unit: "mph"}))},
	}
	set := New(Config{})
	names := set.Names()
	for i := range names {
		for _, s := range seeds {
			f.Add(uint8(i), s.topic, s.query, []byte(s.data)) //nolint:gosec // ten formats
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, topic, q string, data []byte) {
		c, err := set.Converter(names[int(which)%len(names)])
		if err != nil {
			t.Fatal(err)
		}
		values, err := parseQuery(q)
		if err != nil {
			return
		}
		out := NewOutput(telemetry.NewCatalog())
		if err := c.Convert(&Input{Topic: topic, Query: values, Data: data, Now: now}, out); err != nil {
			return
		}
		for _, b := range out.Bad {
			if b.Reason == "" || b.Element < 1 {
				t.Errorf("bad part without a reason or place: %+v", b)
			}
		}
		for line := range strings.Lines(string(out.Lines)) {
			r := telemetry.Reading{Arrival: now.UnixMilli()}
			err := telemetry.NewDecoder(telemetry.NewCatalog()).JSON([]byte(strings.TrimSpace(line)), &r)
			if err != nil && !strings.Contains(err.Error(), "clock") && !strings.Contains(err.Error(), "2010") {
				t.Errorf("%s wrote %q: %v", names[int(which)%len(names)], line, err)
			}
		}
	})
}
