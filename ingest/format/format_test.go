package format

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/MobilityData/gtfs-realtime-bindings/golang/gtfs"
	"github.com/google/go-cmp/cmp"
	"github.com/teslamotors/fleet-telemetry/protos"
	"golang.org/x/crypto/nacl/secretbox"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/milepost/milepost/telemetry"
)

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

type want struct {
	lines   string // with ' for "
	ignored int
	bad     int
	err     string
	reply   string
}

func check(t *testing.T, c Converter, in Input, w want) {
	t.Helper()
	in.Now = now
	out := NewOutput(telemetry.NewCatalog())
	err := c.Convert(&in, out)
	switch {
	case w.err == "" && err != nil:
		t.Fatalf("%s: %v", in.Data, err)
	case w.err != "" && (err == nil || !strings.Contains(err.Error(), w.err)):
		t.Fatalf("%s: got error %v, want %q", in.Data, err, w.err)
	case w.err != "":
		return
	}
	if d := cmp.Diff(strings.ReplaceAll(w.lines, "'", `"`), strings.TrimSuffix(string(out.Lines), "\n")); d != "" {
		t.Errorf("%s%s %s: (-want +got)\n%s", in.Topic, in.Query.Encode(), in.Data, d)
	}
	if len(out.Bad) != w.bad || out.Ignored != w.ignored {
		t.Errorf("%s: %d bad and %d ignored, want %d and %d: %+v", in.Data, len(out.Bad), out.Ignored, w.bad, w.ignored, out.Bad)
	}
	if w.reply != "" && string(out.Reply) != w.reply {
		t.Errorf("%s: reply %q, want %q", in.Data, out.Reply, w.reply)
	}
	decodes(t, out)
}

// decodes checks that what was written are readings.
func decodes(t *testing.T, out *Output) {
	t.Helper()
	d := telemetry.NewDecoder(telemetry.NewCatalog())
	n := 0
	for line := range strings.Lines(string(out.Lines)) {
		r := telemetry.Reading{Arrival: now.UnixMilli()}
		n++
		if err := d.JSON([]byte(strings.TrimSpace(line)), &r); err != nil && !strings.Contains(err.Error(), "clock") && !strings.Contains(err.Error(), "2010") {
			t.Errorf("%s: %v", line, err)
		}
	}
	if n != out.Readings {
		t.Errorf("%d lines, but it counts %d readings", n, out.Readings)
	}
}

var parseQuery = url.ParseQuery

func query(s string) url.Values {
	v, err := parseQuery(s)
	if err != nil {
		panic(err)
	}
	return v
}

func TestOwnTracks(t *testing.T) {
	f := OwnTracks{Key: func(v string) string { return map[string]string{"fleet-t7": "s3cret"}[v] }}
	topic := Input{Topic: "owntracks/fleet/t7"}
	with := func(in Input, data string) Input {
		in.Data = []byte(strings.ReplaceAll(data, "'", `"`))
		return in
	}
	location := "{'_type':'location','lat':38.72,'lon':-9.13,'tst':1795262400,'vel':54,'cog':181,'acc':8,'alt':120,'batt':77,'tid':'t7','t':'u'}"
	reading := "{'vehicle_id':'fleet-t7','ts':'2026-11-21T12:00:00.000Z','lat':38.72,'lon':-9.13,'speed':54,'heading':181,'accuracy':8,'altitude':120,'phone_battery':77}"
	check(t, f, with(topic, location), want{lines: reading})
	check(t, f, with(Input{Topic: topic.Topic, Device: "truck-7"}, location), want{lines: strings.Replace(reading, "fleet-t7", "truck-7", 1)})
	header := http.Header{"X-Limit-U": {"fleet"}, "X-Limit-D": {"t7"}}
	check(t, f, with(Input{Header: header.Get}, location), want{lines: reading, reply: "[]"})
	check(t, f, with(Input{Query: query("u=fleet&d=t7")}, location), want{lines: reading})
	check(t, f, with(Input{}, strings.Replace(location, "'tid'", "'topic':'owntracks/fleet/t7','tid'", 1)), want{lines: reading})
	check(t, f, with(Input{}, location), want{lines: strings.Replace(reading, "fleet-t7", "t7", 1)})
	check(t, f, with(topic, "{'_type':'location','lat':1,'lon':2,'tst':1795262400,'odometer':12.5,'uext':27.6,'ign':true,'temp_c-1':-18.5,'t':'I'}"),
		want{lines: "{'vehicle_id':'fleet-t7','ts':'2026-11-21T12:00:00.000Z','lat':1,'lon':2,'odometer':12500,'battery':27.6,'temp_1':-18.5,'ignition':1,'status':'ignition on'}"})
	check(t, f, with(topic, "{'_type':'lwt','tst':1795000000}"),
		want{lines: "{'vehicle_id':'fleet-t7','ts':'2026-11-21T12:00:00.000Z','status':'connection lost'}"})
	check(t, f, with(topic, "{'_type':'transition','event':'enter','tst':1}"), want{ignored: 1})
	check(t, f, with(topic, ""), want{ignored: 1})
	check(t, f, with(topic, "{'_type':'location','lat':1}"), want{err: "needs lat, lon and tst"})
	check(t, f, with(topic, "{'lat':1}"), want{err: "not OwnTracks"})
	check(t, f, with(topic, "["), want{err: "read OwnTracks JSON"})

	var key [32]byte
	copy(key[:], "s3cret")
	nonce := [24]byte{1, 2, 3}
	box := secretbox.Seal(nonce[:], []byte(strings.ReplaceAll(location, "'", `"`)), &nonce, &key)
	sealed := "{'_type':'encrypted','data':'" + base64.StdEncoding.EncodeToString(box) + "'}"
	check(t, f, with(topic, sealed), want{lines: reading})
	check(t, f, with(Input{Topic: "owntracks/fleet/other"}, sealed), want{err: "no key for fleet-other"})
	check(t, OwnTracks{Key: func(string) string { return "wrong" }}, with(topic, sealed), want{err: "does not open"})
}

func TestOsmAnd(t *testing.T) {
	f := OsmAnd{}
	get := func(q string, w want) { t.Helper(); check(t, f, Input{Query: query(q)}, w) }
	get("id=123456&lat=38.72&lon=-9.13&timestamp=1795262400&hdop=0.9&altitude=120&speed=10&bearing=90&batt=55&ignition=true&engineTemp=96&fuelLevel=40",
		want{lines: "{'vehicle_id':'123456','ts':'2026-11-21T12:00:00.000Z','lat':38.72,'lon':-9.13,'altitude':120,'phone_battery':55,'heading':90,'engine_temp':96,'fuel':40,'hdop':0.9,'ignition':1,'speed':18.52}"})
	get("deviceid=a&location=1.5,2.5&timestamp=1795262400123", want{lines: "{'vehicle_id':'a','ts':'2026-11-21T12:00:00.123Z','lat':1.5,'lon':2.5}"})
	get("id=a&lat=1&lon=2&timestamp=2026-11-21%2012:00:00", want{lines: "{'vehicle_id':'a','ts':'2026-11-21T12:00:00.000Z','lat':1,'lon':2}"})
	get("id=a&lat=1&lon=2&timestamp=2026-11-21T13:00:00+01:00", want{lines: "{'vehicle_id':'a','ts':'2026-11-21T12:00:00.000Z','lat':1,'lon':2}"})
	get("id=a&batt=5", want{lines: "{'vehicle_id':'a','phone_battery':5}"})
	get("id=a&lat=1&lon=2&time_zone=3&lng=4&status=parked", want{lines: "{'vehicle_id':'a','lat':1,'lon':2,'lng_':4,'time_zone':3,'status':'parked'}"})
	get("lat=1&lon=2", want{err: "no id"})
	get("id=a&lat=1&lon=x", want{err: "not a pair of numbers"})
	get("id=a&timestamp=yesterday", want{err: "timestamp"})
	get("id=a/b&lat=1&lon=2", want{bad: 1})
	check(t, f, Input{Data: []byte("id=a&lat=1&lon=2")}, want{lines: "{'vehicle_id':'a','lat':1,'lon':2}"})

	app := `{"device_id":"48241179","location":{"timestamp":"2026-11-21T12:00:00.862Z","coords":{"latitude":38.72,"longitude":-9.13,"accuracy":5,"speed":10,"heading":-1,"altitude":5},` +
		`"is_moving":true,"odometer":1200,"event":"motionchange","battery":{"level":0.5,"is_charging":false},"activity":{"type":"still"},"mock":true,"alarm":"sos","extras":{"rpm":900,"note":"x"}}}`
	check(t, f, Input{Data: []byte(app)}, want{lines: "{'vehicle_id':'48241179','ts':'2026-11-21T12:00:00.862Z','lat':38.72,'lon':-9.13,'speed':36,'accuracy':5,'altitude':5,'odometer':1200,'motion':1,'phone_battery':50,'phone_charging':0,'mock_position':1,'rpm':900,'status':'sos'}"})
	check(t, f, Input{Data: []byte(`{"device_id":7,"location":{"battery":{"level":-1}}}`)}, want{lines: "{'vehicle_id':'7'}"})
	check(t, f, Input{Data: []byte(`{"location":{}}`)}, want{err: "no device_id"})
	check(t, f, Input{Data: []byte(`{"device_id":7}`)}, want{err: "no location"})
}

func TestTraccarForward(t *testing.T) {
	f := TraccarForward{}
	position := `{"position":{"id":0,"attributes":{"ignition":true,"motion":false,"fuel":80.5,"fuelLevel":40,"coolantTemp":91,"hours":7200000,"power":27.9,"battery":4.1,"temp1":-18,"alarm":"powerCut","odometer":123456,"nested":{"a":1}},` +
		`"deviceId":1,"protocol":"teltonika","serverTime":"2026-11-21T12:00:02.000+00:00","deviceTime":"2026-11-21T12:00:01.000+00:00","fixTime":"2026-11-21T12:00:00.000+00:00","valid":true,"latitude":38.72,"longitude":-9.13,"altitude":12,"speed":10,"course":270,"accuracy":0},` +
		`"device":{"id":1,"uniqueId":"356307042441013","name":"Truck 7"}}`
	check(t, f, Input{Data: []byte(position)}, want{lines: "{'vehicle_id':'356307042441013','ts':'2026-11-21T12:00:00.000Z','lat':38.72,'lon':-9.13,'speed':18.52,'heading':270,'altitude':12,'device_voltage':4.1,'engine_temp':91,'fuel_volume':80.5,'fuel':40,'engine_hours':2,'ignition':1,'motion':0,'odometer':123456,'battery':27.9,'temp1':-18,'status':'powerCut'}"})
	check(t, f, Input{Data: []byte(`{"event":{"type":"deviceOffline","eventTime":"2026-11-21T12:00:00Z"},"device":{"uniqueId":"a"}}`)},
		want{lines: "{'vehicle_id':'a','ts':'2026-11-21T12:00:00.000Z','status':'deviceOffline'}"})
	check(t, f, Input{Data: []byte(`{"position":{}}`)}, want{err: "uniqueId"})
	check(t, f, Input{Data: []byte(`{"device":{"uniqueId":"a"}}`)}, want{err: "neither position nor event"})
}

func TestOverland(t *testing.T) {
	f := Overland{}
	good := `{"type":"Feature","geometry":{"type":"Point","coordinates":[-9.13,38.72]},"properties":{"timestamp":"2026-11-21T12:00:00Z","altitude":12,"speed":10,"course":-1,"horizontal_accuracy":5,"vertical_accuracy":-1,"motion":["driving"],"battery_state":"unplugged","battery_level":0.8,"wifi":"","device_id":"van-1"}}`
	reading := "{'vehicle_id':'van-1','ts':'2026-11-21T12:00:00.000Z','lat':38.72,'lon':-9.13,'speed':36,'altitude':12,'accuracy':5,'phone_battery':80,'phone_charging':0}"
	check(t, f, Input{Data: []byte(`{"locations":[` + good + `]}`)}, want{lines: reading, reply: `{"result":"ok"}`})
	check(t, f, Input{Data: []byte(`{"locations":[` + good + `,{"properties":{"timestamp":"nonsense","device_id":"a"}},{"type":"Feature"},5]}`)},
		want{lines: reading, bad: 3, reply: `{"result":"ok"}`})
	check(t, f, Input{Data: []byte(`{"locations":[]}`)}, want{reply: `{"result":"ok"}`})
	check(t, f, Input{Data: []byte(`{}`)}, want{err: "no locations"})
}

func TestTorque(t *testing.T) {
	f := &Torque{}
	get := func(q string, w want) { t.Helper(); check(t, f, Input{Query: query(q)}, w) }
	get("eml=a@b.c&v=9&session=1&id=car-1&time=1795262400000&kff1005=-9.13&kff1006=38.72&kff1001=54&kff1007=181&k5=91&kc=1800&k2f=62.5&kd=53&k46=20&k1234=7&kff1223=-",
		want{lines: "{'vehicle_id':'car-1','ts':'2026-11-21T12:00:00.000Z','lat':38.72,'lon':-9.13,'pid_1234':7,'fuel':62.5,'ambient_temp':20,'engine_temp':91,'rpm':1800,'obd_speed':53,'speed':54,'heading':181}", reply: "OK!"})
	get("session=1&id=car-1&time=1795262400000&kd=53", want{lines: "{'vehicle_id':'car-1','ts':'2026-11-21T12:00:00.000Z','obd_speed':53,'speed':53}"})
	get("session=2&id=car-1&defaultUnit05=°C&defaultUnit5=°F&defaultUnitd=mph", want{ignored: 1, reply: "OK!"})
	get("session=2&id=car-1&time=1795262400000&k5=212&kd=100", want{lines: "{'vehicle_id':'car-1','ts':'2026-11-21T12:00:00.000Z','engine_temp':100,'obd_speed':160.9344,'speed':160.9344}"})
	get("session=1&id=car-1&time=1795262400000&k5=90", want{lines: "{'vehicle_id':'car-1','ts':'2026-11-21T12:00:00.000Z','engine_temp':90}"})
	get("k5=90", want{err: "no id"})
}

func TestInflux(t *testing.T) {
	f := Influx{}
	body := "readings,name=truck_0,fleet=South,driver=Trish,model=H-2,device_version=v2.3 load_capacity=1500,latitude=52.31854,longitude=4.72037,elevation=124,velocity=0,heading=221,grade=0,fuel_consumption=25 1795262400000000000\n" +
		"diagnostics,name=truck_0,fleet=South fuel_state=1,current_load=0,status=0i 1795262400000000000\n"
	check(t, f, Input{Data: []byte(body)}, want{lines: "{'vehicle_id':'truck_0','ts':'2026-11-21T12:00:00.000Z','lat':52.31854,'lon':4.72037,'load_capacity':1500,'altitude':124,'speed':0,'heading':221,'grade':0,'fuel_consumption':25}\n" +
		"{'vehicle_id':'truck_0','ts':'2026-11-21T12:00:00.000Z','fuel':100,'current_load':0,'status_code':0}"})
	check(t, f, Input{Data: []byte("cpu,host=gw-1,cpu=cpu0 usage_idle=98.5,up=true,n=3u,name=\"x\" 1795262400"), Query: query("precision=s")},
		want{lines: "{'vehicle_id':'gw-1','ts':'2026-11-21T12:00:00.000Z','cpu_usage_idle':98.5,'cpu_up':1,'cpu_n':3}"})
	check(t, f, Input{Data: []byte("# comment\n\nreadings,fleet=South velocity=5 1\ngps,vehicle_id=a,name=b speed=7\nreadings,name=c velocity\ngps,name=d speed=1 2 3\n")},
		want{lines: "{'vehicle_id':'a','speed':7}", bad: 3})
	check(t, f, Input{Data: []byte("gps,name=a speed=1 9223372036854775807"), Query: query("precision=s")}, want{bad: 1})
	check(t, f, Input{Data: []byte("gps,name=a speed=1"), Query: query("precision=d")}, want{err: "precision"})
	check(t, f, Input{}, want{err: "empty"})
	check(t, Influx{VehicleTags: []string{"plate"}}, Input{Data: []byte(`gps,plate=AB\ 12,name=x speed=1`)}, want{lines: "{'vehicle_id':'AB 12','speed':1}"})
}

func TestGTFSRealtime(t *testing.T) {
	f := &GTFSRealtime{}
	stamp := uint64(1795262400)
	entity := func(id, vehicle string, at uint64) *gtfs.FeedEntity {
		v := &gtfs.VehiclePosition{
			Position:  &gtfs.Position{Latitude: new(float32(30.2672)), Longitude: new(float32(-97.7431)), Speed: new(float32(10)), Bearing: new(float32(90))},
			Timestamp: new(at), CurrentStatus: gtfs.VehiclePosition_STOPPED_AT.Enum(),
		}
		if vehicle != "" {
			v.Vehicle = &gtfs.VehicleDescriptor{Id: new(vehicle)}
		}
		return &gtfs.FeedEntity{Id: new(id), Vehicle: v}
	}
	feed := func(es ...*gtfs.FeedEntity) Input {
		b, err := proto.Marshal(&gtfs.FeedMessage{Header: &gtfs.FeedHeader{GtfsRealtimeVersion: new("2.0"), Timestamp: new(stamp)}, Entity: es})
		if err != nil {
			t.Fatal(err)
		}
		return Input{Data: b}
	}
	reading := "{'vehicle_id':'2105','ts':'2026-11-21T12:00:00.000Z','lat':30.2672,'lon':-97.7431,'speed':36,'heading':90,'status':'STOPPED_AT'}"
	check(t, f, feed(entity("e1", "2105", stamp), &gtfs.FeedEntity{Id: new("e2")}), want{lines: reading, ignored: 1})
	check(t, f, feed(entity("e1", "2105", stamp)), want{ignored: 1}) // the same snapshot again
	check(t, f, feed(entity("e1", "2105", stamp+1), entity("2106", "", stamp), entity("e3", "a/b", stamp)), want{lines: strings.Replace(reading, "00.000Z", "01.000Z", 1) + "\n" + strings.Replace(reading, "2105", "2106", 1), bad: 1})
	check(t, f, Input{Data: []byte("<html>")}, want{err: "GTFS"})
}

func TestTesla(t *testing.T) {
	num := func(k protos.Field, s string) *protos.Datum {
		return &protos.Datum{Key: k, Value: &protos.Value{Value: &protos.Value_StringValue{StringValue: s}}}
	}
	p := &protos.Payload{Vin: "5YJ3E1EA7KF000316", CreatedAt: timestamppb.New(now), Data: []*protos.Datum{
		num(protos.Field_VehicleSpeed, "60"), num(protos.Field_Odometer, "1000"), num(protos.Field_Soc, "79.5"),
		{Key: protos.Field_Location, Value: &protos.Value{Value: &protos.Value_LocationValue{LocationValue: &protos.LocationValue{Latitude: 37.5, Longitude: -122.25}}}},
		{Key: protos.Field_Gear, Value: &protos.Value{Value: &protos.Value_ShiftStateValue{ShiftStateValue: protos.ShiftState_ShiftStateD}}},
		{Key: protos.Field_InsideTemp, Value: &protos.Value{Value: &protos.Value_FloatValue{FloatValue: 21.5}}},
		{Key: protos.Field_OutsideTemp, Value: &protos.Value{Value: &protos.Value_Invalid{Invalid: true}}},
		{Key: protos.Field_TpmsPressureFl, Value: &protos.Value{Value: &protos.Value_DoubleValue{DoubleValue: 2.9}}},
		{Key: protos.Field_Locked, Value: &protos.Value{Value: &protos.Value_BooleanValue{BooleanValue: true}}},
		{Key: protos.Field_GpsHeading},
	}}
	b, err := proto.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	f := Tesla{}
	check(t, f, Input{Data: b}, want{lines: "{'vehicle_id':'5YJ3E1EA7KF000316','ts':'2026-11-21T12:00:00.000Z','lat':37.5,'lon':-122.25,'speed':96.56064,'odometer':1609344,'soc':79.5,'inside_temp':21.5,'tpms_pressure_fl':290,'locked':1,'status':'gear D'}"})
	field := func(topic, data string, w want) { t.Helper(); check(t, f, Input{Topic: topic, Data: []byte(data)}, w) }
	field("telemetry/VIN1/v/VehicleSpeed", `"12.5"`, want{lines: "{'vehicle_id':'VIN1','speed':20.1168}"})
	field("telemetry/VIN1/v/VehicleSpeed", `12.5`, want{lines: "{'vehicle_id':'VIN1','speed':20.1168}"})
	field("telemetry/VIN1/v/Location", `{"latitude":1.5,"longitude":2.5}`, want{lines: "{'vehicle_id':'VIN1','lat':1.5,'lon':2.5}"})
	field("telemetry/VIN1/v/Gear", `"P"`, want{lines: "{'vehicle_id':'VIN1','status':'gear P'}"})
	field("telemetry/VIN1/v/Soc", `null`, want{ignored: 1})
	field("telemetry/VIN1/connectivity", `{"ConnectionId":"x","Status":"CONNECTED","CreatedAt":"2026-11-21T12:00:00Z"}`, want{lines: "{'vehicle_id':'VIN1','ts':'2026-11-21T12:00:00.000Z','status':'connected'}"})
	field("telemetry/VIN1/alerts/x/current", `{}`, want{ignored: 1})
	field("telemetry/VIN1/v/Soc", `[1]`, want{err: "holds a list"})
	field("telemetry/VIN1/v/Soc", `{`, want{err: "read Tesla field"})
	check(t, f, Input{Data: []byte{8, 1}}, want{err: "no vin"})
}

func TestVSS(t *testing.T) {
	f := VSS{}
	check(t, f, Input{Device: "truck-7", Data: []byte(`{"ts":"2026-11-21T12:00:00Z","Vehicle.Speed":63.2,"Vehicle.CurrentLocation.Latitude":38.72,"Vehicle.CurrentLocation.Longitude":-9.13,"Vehicle.Powertrain.CombustionEngine.EngineCoolant.Temperature":92.5,"Vehicle.Cargo.Zone1.Temperature":4.5,"Vehicle.Cargo.Zone2.Temperature":-18,"Vehicle.Cabin.Door.Row1.DriverSide.IsOpen":true,"Vehicle.VehicleIdentification.VIN":"W1"}`)},
		want{lines: "{'vehicle_id':'truck-7','ts':'2026-11-21T12:00:00.000Z','lat':38.72,'lon':-9.13,'cabin_door_row1_driver_side_is_open':1,'cargo_temp':4.5,'cargo_temp_2':-18,'engine_temp':92.5,'speed':63.2}"})
	check(t, f, Input{Data: []byte(`{"Vehicle":{"VehicleIdentification":{"VIN":"W1"},"Speed":{"value":50,"timestamp":"2026-11-21T12:00:00Z"},"Powertrain":{"FuelSystem":{"RelativeLevel":{"value":40,"timestamp":"2026-11-21T11:59:00Z"}}}}}`)},
		want{lines: "{'vehicle_id':'W1','ts':'2026-11-21T12:00:00.000Z','fuel':40,'speed':50}"})
	check(t, f, Input{Data: []byte(`{"Vehicle.Speed":1}`)}, want{err: "no vehicle"})
	check(t, f, Input{Data: []byte(`{"speed":1}`)}, want{err: "not VSS"})
	check(t, f, Input{Data: []byte(strings.Repeat(`{"a":`, 20) + "1" + strings.Repeat("}", 20))}, want{err: "deeper"})
}

func TestSnake(t *testing.T) {
	for in, want := range map[string]string{
		"engineTemp": "engine_temp", "Engine/Temperature": "engine_temperature", "RPM": "rpm", "DiStatorTempREL": "di_stator_temp_rel",
		"Engine Temp (C)": "engine_temp_c", "temp1": "temp1", "already_snake": "already_snake", "PackVoltage": "pack_voltage", "": "", "HVACPower": "hvac_power",
	} {
		if got := snake(in); got != want {
			t.Errorf("snake(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestSet(t *testing.T) {
	s := New(Config{})
	for _, n := range s.Names() {
		if _, err := s.Converter(n); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Converter("owntrack"); err == nil || !strings.Contains(err.Error(), "owntracks") {
		t.Errorf("unknown format: %v", err)
	}
}
