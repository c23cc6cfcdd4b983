package format

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/influxdata/line-protocol/v2/lineprotocol"

	"github.com/milepost/milepost/telemetry"
)

// Influx reads InfluxDB's line protocol, over HTTP (/api/v2/write and /write) and MQTT: Telegraf, and the TSBS fleet benchmark.
//
// The vehicle is the first of the tags VehicleTags that a line has. Fields are signals in their catalog units; those of
// TSBS are known: latitude, longitude, elevation m, velocity km/h, fuel_state a fraction. Other fields are signals named
// <measurement>_<field>, or as they stand for the measurements of a vehicle (see ofVehicle). Text is left out, except status.
type Influx struct {
	// VehicleTags are the tags that may name the vehicle, in order of precedence. Default DefaultVehicleTags.
	VehicleTags []string
}

// DefaultVehicleTags returns the tags that senders use.
func DefaultVehicleTags() []string {
	return []string{"vehicle_id", "vehicle", "truck_id", "truck", "name", "device_id", "device", "host"}
}

// Convert implements Converter. Lines that cannot be read are in out.Bad; the others count.
func (f Influx) Convert(in *Input, out *Output) error {
	precision, err := influxPrecision(in.Query.Get("precision"))
	if err != nil {
		return err
	}
	out.Status = 204
	tags := f.VehicleTags
	if tags == nil {
		tags = DefaultVehicleTags()
	}
	n := 0
	for line := range bytes.Lines(in.Data) {
		n++
		line = bytes.TrimRight(line, "\r\n")
		if t := bytes.TrimSpace(line); len(t) == 0 || t[0] == '#' {
			continue
		}
		// A line at a time, so that an error of one says nothing about the next.
		if err := f.line(in, out, line, n, precision, tags); err != nil {
			out.refuse(n, line, err.Error())
		}
	}
	if n == 0 {
		return errors.New("the body is empty: send lines like readings,name=truck_0 speed=63.2 1451606400000000000")
	}
	return nil
}

func (Influx) line(in *Input, out *Output, line []byte, n int, precision time.Duration, tags []string) error {
	d := lineprotocol.NewDecoderWithBytes(line)
	if !d.Next() {
		return errors.New("the line is empty")
	}
	measurement, err := d.Measurement()
	if err != nil {
		return lineError(err)
	}
	prefix := string(measurement) + "_"
	if ofVehicle(string(measurement)) {
		prefix = ""
	}
	vehicle, rank := in.Device, -1
	for {
		key, value, err := d.NextTag()
		if err != nil {
			return lineError(err)
		}
		if key == nil {
			break
		}
		for i, t := range tags {
			if in.Device == "" && t == string(key) && (rank < 0 || i < rank) {
				vehicle, rank = string(value), i
			}
		}
	}
	out.begin(vehicle, time.Time{})
	var lat, lon float64
	placed := 0
	for {
		key, value, err := d.NextField()
		if err != nil {
			return lineError(err)
		}
		if key == nil {
			break
		}
		v, number := influxNumber(value)
		if !number {
			if s, ok := value.Interface().(string); ok && (string(key) == "status" || string(key) == "state") {
				out.r.Status = s
			}
			continue
		}
		switch string(key) {
		case "latitude", "lat":
			lat = v
			placed |= 1
		case "longitude", "lon", "lng":
			lon = v
			placed |= 2
		case "elevation":
			out.set(telemetry.Altitude, v)
		case "velocity":
			out.set(telemetry.Speed, v)
		case "fuel_state":
			out.set(telemetry.Fuel, v*100)
		case "status":
			out.named(prefix+"status_code", v)
		default:
			out.named(prefix+string(key), v)
		}
	}
	at, err := d.Time(lineprotocol.Nanosecond, time.Time{})
	if err != nil {
		return lineError(err)
	}
	if !at.IsZero() {
		ns := at.UnixNano()
		const most = int64(1) << 62
		if precision > 1 && (ns > most/int64(precision) || ns < 0) {
			return fmt.Errorf("timestamp %d does not fit the precision %s", ns, precision)
		}
		out.r.Flags &^= telemetry.FlagTimeMissing
		out.r.Time = time.Unix(0, ns*int64(precision)).UnixMilli()
	}
	if vehicle == "" {
		return fmt.Errorf("no vehicle: the line has none of the tags %s", strings.Join(tags, ", "))
	}
	if placed == 3 {
		out.place(lat, lon)
	}
	out.emit(n, line)
	return nil
}

func lineError(err error) error { return fmt.Errorf("read line protocol: %w", err) }

// ofVehicle tells whether a measurement's fields need no prefix: they are the vehicle's own.
func ofVehicle(measurement string) bool {
	switch measurement {
	case "readings", "diagnostics", "telemetry", "vehicle", "fleet", "gps", "tracker", "obd":
		return true
	}
	return false
}

func influxNumber(v lineprotocol.Value) (float64, bool) {
	switch x := v.Interface().(type) {
	case float64:
		return x, true
	case int64:
		return float64(x), true
	case uint64:
		return float64(x), true
	case bool:
		if x {
			return 1, true
		}
		return 0, true
	}
	return 0, false
}

// influxPrecision returns the unit of time stamps: v2's names and those of v1.
func influxPrecision(s string) (time.Duration, error) {
	switch s {
	case "", "ns", "n":
		return 1, nil
	case "us", "u", "µ", "µs":
		return time.Microsecond, nil
	case "ms":
		return time.Millisecond, nil
	case "s":
		return time.Second, nil
	case "m":
		return time.Minute, nil
	case "h":
		return time.Hour, nil
	}
	return 0, fmt.Errorf("precision %q: use ns, us, ms or s", clip(s))
}
