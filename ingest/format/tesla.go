package format

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/teslamotors/fleet-telemetry/protos"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/milepost/milepost/telemetry"
)

// Tesla reads what Tesla's fleet-telemetry server hands on: its vehicle data as protobuf (Payload) and the single fields that
// its MQTT dispatcher publishes (<base>/<VIN>/v/<field>).
//
// Units (the cars', which the server does not convert): VehicleSpeed mph, Odometer and the ranges miles, temperatures °C,
// tyre pressures bar, voltages V. Numbers may come as text. A car sends what has changed, so a reading is sparse.
// The vehicle is the VIN.
type Tesla struct{}

// Convert implements Converter.
func (Tesla) Convert(in *Input, out *Output) error {
	if in.Topic != "" {
		if vin, field, ok := teslaTopic(in.Topic); ok {
			return teslaField(in, out, vin, field)
		}
	}
	var m protos.Payload
	if err := proto.Unmarshal(in.Data, &m); err != nil {
		return fmt.Errorf("read Tesla payload: %w", err)
	}
	if m.GetVin() == "" {
		return errors.New("no vin: this is not Tesla vehicle data (Payload)")
	}
	var at time.Time
	if m.GetCreatedAt().IsValid() {
		at = m.GetCreatedAt().AsTime()
	}
	out.begin(vehicleOf(in.Device, m.GetVin()), at)
	for _, d := range m.GetData() {
		teslaDatum(out, d)
	}
	out.emit(1, in.Data)
	return nil
}

// teslaTopic takes <base>/<VIN>/v/<field> and the topics beside it apart. field is "" for those that carry no value.
func teslaTopic(topic string) (vin, field string, ok bool) {
	parts := strings.Split(topic, "/")
	for i := 1; i+1 < len(parts); i++ {
		switch parts[i+1] {
		case "v":
			if i+2 == len(parts)-1 {
				return parts[i], parts[i+2], true
			}
		case "alerts", "errors", "connectivity":
			return parts[i], "", true
		}
	}
	return "", "", false
}

func teslaField(in *Input, out *Output, vin, field string) error {
	if strings.HasSuffix(in.Topic, "/connectivity") {
		var c struct {
			Status    string `json:"Status"`
			CreatedAt string `json:"CreatedAt"`
		}
		if err := json.Unmarshal(in.Data, &c); err != nil {
			return fmt.Errorf("read Tesla connectivity: %w", err)
		}
		at, err := osmAndTime(c.CreatedAt)
		if err != nil {
			return err
		}
		out.begin(vehicleOf(in.Device, vin), at)
		out.r.Status = strings.ToLower(c.Status)
		out.emit(1, in.Data)
		return nil
	}
	if field == "" {
		out.Ignored++
		return nil
	}
	out.begin(vehicleOf(in.Device, vin), time.Time{})
	var v any
	if err := json.Unmarshal(in.Data, &v); err != nil {
		return fmt.Errorf("read Tesla field %s: %w", clip(field), err)
	}
	switch v := v.(type) {
	case nil:
		out.Ignored++
		return nil
	case float64:
		teslaNumber(out, field, v)
	case bool:
		out.truth(snake(field), v)
	case string:
		teslaText(out, field, v)
	case map[string]any:
		lat, ok1 := v["latitude"].(float64)
		lon, ok2 := v["longitude"].(float64)
		if !ok1 || !ok2 {
			out.Ignored++ // doors, a time of day
			return nil
		}
		if field == "Location" {
			out.place(lat, lon)
		}
	default:
		return fmt.Errorf("field %s of Tesla holds a list: use a number, text or a place", clip(field))
	}
	out.emit(1, in.Data)
	return nil
}

func teslaDatum(out *Output, d *protos.Datum) {
	field := d.GetKey().String()
	m := d.GetValue().ProtoReflect()
	if !m.IsValid() {
		return
	}
	which := m.WhichOneof(m.Descriptor().Oneofs().ByName("value"))
	if which == nil || which.Name() == "invalid" {
		return // the car does not know
	}
	v := m.Get(which)
	switch which.Kind() {
	case protoreflect.StringKind:
		teslaText(out, field, v.String())
	case protoreflect.BoolKind:
		out.truth(snake(field), v.Bool())
	case protoreflect.Int32Kind, protoreflect.Int64Kind:
		teslaNumber(out, field, float64(v.Int()))
	case protoreflect.FloatKind:
		teslaNumber(out, field, widen(float32(v.Float())))
	case protoreflect.DoubleKind:
		teslaNumber(out, field, v.Float())
	case protoreflect.EnumKind:
		if name := which.Enum().Values().ByNumber(v.Enum()); name != nil && field == "Gear" {
			teslaText(out, field, strings.TrimPrefix(string(name.Name()), "ShiftState"))
		}
	case protoreflect.MessageKind:
		if l := d.GetValue().GetLocationValue(); l != nil && field == "Location" {
			out.place(l.GetLatitude(), l.GetLongitude())
		}
	default:
	}
}

func teslaText(out *Output, field, s string) {
	if field == "Gear" {
		out.r.Status = "gear " + s
		return
	}
	if v, err := strconv.ParseFloat(s, 64); err == nil {
		teslaNumber(out, field, v)
	}
}

func teslaNumber(out *Output, field string, v float64) {
	switch {
	case field == "VehicleSpeed":
		out.set(telemetry.Speed, v*mph)
	case field == "GpsHeading":
		out.set(telemetry.Heading, v)
	case field == "Odometer":
		out.set(telemetry.Odometer, v*mile)
	case field == "OutsideTemp":
		out.named("ambient_temp", v)
	case field == "PackVoltage":
		out.set(telemetry.Battery, v)
	case strings.HasPrefix(field, "TpmsPressure"), strings.HasPrefix(field, "SemitruckTpmsPressure"):
		out.named(snake(field), v*100) // kPa, as every pressure
	case field == "RatedRange", field == "EstBatteryRange", field == "IdealBatteryRange", field == "MilesToArrival":
		out.named(snake(strings.Replace(field, "Miles", "Distance", 1)), v*mile)
	case field == "CruiseSetSpeed", field == "CurrentLimitMph":
		out.named(snake(strings.TrimSuffix(field, "Mph")), v*mph)
	default:
		out.named(snake(field), v)
	}
}
