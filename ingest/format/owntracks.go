package format

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/nacl/secretbox"

	"github.com/milepost/milepost/telemetry"
)

// OwnTracks reads the JSON of the OwnTracks apps, over MQTT (owntracks/<user>/<device>) and HTTP.
//
// Units (owntracks.org/booklet/tech/json): vel km/h, cog degrees, acc, alt and vac m, batt %, p kPa, tst epoch seconds;
// of the trackers' extension: odometer km, ubatt and uext V, fcon l/100 km, flvl %, temp_c °C. An app sends acc, alt, cog, vac
// and vel only when they are not zero.
//
// The vehicle is <user>-<device> of the topic or of X-Limit-U and X-Limit-D (u and d in the query), unless the sender is known.
type OwnTracks struct {
	// Key returns the passphrase of an encrypted sender, by vehicle; nil or "": none.
	Key func(vehicle string) string
}

type ownTracks struct {
	Type    string   `json:"_type"`
	Data    string   `json:"data"`
	Topic   string   `json:"topic"`
	TID     string   `json:"tid"`
	Lat     *float64 `json:"lat"`
	Lon     *float64 `json:"lon"`
	Time    float64  `json:"tst"`
	Acc     *float64 `json:"acc"`
	Alt     *float64 `json:"alt"`
	VAcc    *float64 `json:"vac"`
	Vel     *float64 `json:"vel"`
	Course  *float64 `json:"cog"`
	Battery *float64 `json:"batt"`
	Press   *float64 `json:"p"`
	Odo     *float64 `json:"odometer"`
	UBatt   *float64 `json:"ubatt"`
	UExt    *float64 `json:"uext"`
	RPM     *float64 `json:"rpm"`
	FCon    *float64 `json:"fcon"`
	FLevel  *float64 `json:"flvl"`
	Ign     *bool    `json:"ign"`
	Motion  *bool    `json:"motion"`
	Trigger string   `json:"t"`
}

// Convert implements Converter.
func (f OwnTracks) Convert(in *Input, out *Output) error {
	out.Reply, out.Type = []byte("[]"), "application/json"
	if len(in.Data) == 0 { // a friend is deleted
		out.Ignored++
		return nil
	}
	var m ownTracks
	if err := json.Unmarshal(in.Data, &m); err != nil {
		return fmt.Errorf("read OwnTracks JSON: %w", err)
	}
	vehicle := in.Device
	if vehicle == "" {
		vehicle = ownTracksDevice(in, &m)
	}
	if m.Type == "encrypted" {
		plain, err := f.open(vehicle, m.Data)
		if err != nil {
			return err
		}
		m = ownTracks{}
		if err := json.Unmarshal(plain, &m); err != nil {
			return fmt.Errorf("read OwnTracks JSON after decryption: %w", err)
		}
	}
	switch m.Type {
	case "location":
	case "lwt":
		out.begin(vehicle, in.Now) // its tst is when the phone connected, not when it was lost
		out.r.Status = "connection lost"
		out.emit(1, in.Data)
		return nil
	case "transition", "waypoint", "waypoints", "status", "dump", "steps", "step", "beacon", "card", "cmd", "configuration", "request":
		out.Ignored++
		return nil
	case "":
		return errors.New("no _type: this is not OwnTracks JSON")
	default:
		return fmt.Errorf("OwnTracks _type %q is unknown", clip(m.Type))
	}
	if m.Lat == nil || m.Lon == nil || m.Time == 0 {
		return errors.New("an OwnTracks location needs lat, lon and tst")
	}
	out.begin(vehicle, unixTime(m.Time))
	out.place(*m.Lat, *m.Lon)
	set := func(id telemetry.SignalID, v *float64, factor float64) {
		if v != nil {
			out.set(id, *v*factor)
		}
	}
	named := func(name string, v *float64) {
		if v != nil {
			out.named(name, *v)
		}
	}
	set(telemetry.Speed, m.Vel, 1)
	set(telemetry.Heading, m.Course, 1)
	set(telemetry.Accuracy, m.Acc, 1)
	set(telemetry.Altitude, m.Alt, 1)
	set(telemetry.RPM, m.RPM, 1)
	set(telemetry.Fuel, m.FLevel, 1)
	set(telemetry.Odometer, m.Odo, 1000)
	set(telemetry.Battery, m.UExt, 1)
	named("vertical_accuracy", m.VAcc)
	named("phone_battery", m.Battery)
	named("air_pressure", m.Press)
	named("device_voltage", m.UBatt)
	named("fuel_consumption", m.FCon)
	var all map[string]json.RawMessage
	if strings.Contains(string(in.Data), `"temp_c-`) && json.Unmarshal(in.Data, &all) == nil {
		for name, raw := range all {
			var v float64
			if n, ok := strings.CutPrefix(name, "temp_c-"); ok && json.Unmarshal(raw, &v) == nil {
				out.named("temp_"+snake(n), v)
			}
		}
	}
	if m.Ign != nil {
		out.truth("ignition", *m.Ign)
	}
	if m.Motion != nil {
		out.truth("motion", *m.Motion)
	}
	out.r.Status = ownTracksTrigger(m.Trigger)
	out.emit(1, in.Data)
	return nil
}

// ownTracksDevice is who a message is from, by the topic it came by, the headers, the query, or the topic it names.
func ownTracksDevice(in *Input, m *ownTracks) string {
	user, device := "", ""
	topic := in.Topic
	if topic == "" {
		user = vehicleOf(in.header("X-Limit-U"), in.Query.Get("u"))
		device = vehicleOf(in.header("X-Limit-D"), in.Query.Get("d"))
		topic = m.Topic
	}
	if parts := strings.Split(topic, "/"); user == "" && device == "" && len(parts) >= 3 {
		user, device = parts[1], parts[2]
	}
	switch {
	case user != "" && device != "" && user != device:
		return user + "-" + device
	default:
		return vehicleOf(device, user, m.TID)
	}
}

// ownTracksTrigger says what a device of the trackers' extension reports; phones' triggers say nothing about the vehicle.
func ownTracksTrigger(t string) string {
	switch t {
	case "i":
		return "ignition off"
	case "I":
		return "ignition on"
	case "h":
		return "harsh driving"
	case "!":
		return "tow"
	case "e":
		return "power off"
	case "E":
		return "power on"
	case "9":
		return "low battery"
	}
	return ""
}

// open decrypts libsodium's secretbox: base64 of a nonce of 24 bytes and the box, the key padded with zero bytes to 32.
func (f OwnTracks) open(vehicle, data string) ([]byte, error) {
	var pass string
	if f.Key != nil {
		pass = f.Key(vehicle)
	}
	if pass == "" {
		return nil, fmt.Errorf("the payload is encrypted and there is no key for %s: add one under formats.owntracks_keys, or switch encryption off in the app", clip(vehicle))
	}
	box, err := base64.StdEncoding.DecodeString(data)
	if err != nil || len(box) < 24+secretbox.Overhead {
		return nil, errors.New("encrypted payload is not base64 of a secretbox")
	}
	var key [32]byte
	copy(key[:], pass)
	var nonce [24]byte
	copy(nonce[:], box)
	plain, ok := secretbox.Open(nil, box[24:], &nonce, &key)
	if !ok {
		return nil, fmt.Errorf("encrypted payload does not open with the key of %s: compare the app's encryption key with formats.owntracks_keys", clip(vehicle))
	}
	return plain, nil
}
