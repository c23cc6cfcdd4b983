package format

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/milepost/milepost/telemetry"
)

// Overland reads the batches of the Overland apps: {"locations": [GeoJSON features]}.
//
// Units (github.com/aaronpk/Overland-iOS#api): speed m/s and course degrees, negative for unknown; altitude and accuracies
// m; battery_level a fraction. It sends a batch again for ever unless the answer is {"result":"ok"}, so that is the
// answer even to features that cannot be read: they are handed back and kept as dead letters.
type Overland struct{}

type overlandFeature struct {
	Geometry *struct {
		Type        string    `json:"type"`
		Coordinates []float64 `json:"coordinates"`
	} `json:"geometry"`
	Properties *struct {
		Timestamp  json.RawMessage `json:"timestamp"`
		Device     string          `json:"device_id"`
		Unique     string          `json:"unique_id"`
		Speed      *float64        `json:"speed"`
		Course     *float64        `json:"course"`
		Altitude   *float64        `json:"altitude"`
		Horizontal *float64        `json:"horizontal_accuracy"`
		Vertical   *float64        `json:"vertical_accuracy"`
		Battery    *float64        `json:"battery_level"`
		State      string          `json:"battery_state"`
		Action     string          `json:"action"`
	} `json:"properties"`
}

// Convert implements Converter.
func (Overland) Convert(in *Input, out *Output) error {
	var batch struct {
		Locations []json.RawMessage `json:"locations"`
	}
	if err := json.Unmarshal(in.Data, &batch); err != nil {
		return fmt.Errorf("read Overland JSON: %w", err)
	}
	if batch.Locations == nil {
		return errors.New("no locations: this is not what Overland sends")
	}
	out.Reply, out.Type = []byte(`{"result":"ok"}`), "application/json"
	for i, raw := range batch.Locations {
		if err := overland(in, out, raw, i+1); err != nil {
			out.refuse(i+1, raw, err.Error())
		}
	}
	return nil
}

func overland(in *Input, out *Output, raw json.RawMessage, element int) error {
	var f overlandFeature
	if err := json.Unmarshal(raw, &f); err != nil {
		return fmt.Errorf("read feature: %w", err)
	}
	p := f.Properties
	if p == nil {
		return errors.New("a feature needs properties")
	}
	vehicle := vehicleOf(in.Device, p.Device, p.Unique, in.Query.Get("device_id"))
	if vehicle == "" {
		return errors.New("no device_id: set the Device ID in the app")
	}
	at, err := osmAndTime(text(p.Timestamp))
	if err != nil {
		return err
	}
	if at.IsZero() {
		return errors.New("a feature needs a timestamp")
	}
	out.begin(vehicle, at)
	if g := f.Geometry; g != nil && g.Type == "Point" && len(g.Coordinates) >= 2 {
		out.place(g.Coordinates[1], g.Coordinates[0])
	}
	if p.Speed != nil && *p.Speed >= 0 {
		out.set(telemetry.Speed, *p.Speed*mps)
	}
	if p.Course != nil && *p.Course >= 0 {
		out.set(telemetry.Heading, *p.Course)
	}
	if p.Altitude != nil {
		out.set(telemetry.Altitude, *p.Altitude)
	}
	if p.Horizontal != nil && *p.Horizontal >= 0 {
		out.set(telemetry.Accuracy, *p.Horizontal)
	}
	if p.Vertical != nil && *p.Vertical >= 0 {
		out.named("vertical_accuracy", *p.Vertical)
	}
	if p.Battery != nil && *p.Battery >= 0 {
		out.named("phone_battery", *p.Battery*100)
	}
	switch p.State {
	case "charging", "full":
		out.truth("phone_charging", true)
	case "unplugged":
		out.truth("phone_charging", false)
	}
	out.r.Status = p.Action
	out.emit(element, raw)
	return nil
}
