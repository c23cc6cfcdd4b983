package format

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/MobilityData/gtfs-realtime-bindings/golang/gtfs"
	"google.golang.org/protobuf/proto"

	"github.com/milepost/milepost/telemetry"
)

// GTFSRealtime reads vehicle positions of a GTFS-realtime feed (gtfs.org/documentation/realtime).
//
// Units: speed m/s, bearing degrees, odometer m, occupancy_percentage %. A feed is a snapshot: a vehicle whose time stamp has
// not moved since it was last seen is left out. The vehicle is the descriptor's id, else the entity's.
type GTFSRealtime struct {
	mu   sync.Mutex // guards seen
	seen map[string]uint64
}

// maxGTFSVehicles bounds what is remembered; past it everything is forgotten, and each vehicle counts once more.
const maxGTFSVehicles = 200_000

// Convert implements Converter.
func (f *GTFSRealtime) Convert(in *Input, out *Output) error {
	var feed gtfs.FeedMessage
	if err := proto.Unmarshal(in.Data, &feed); err != nil {
		return fmt.Errorf("read GTFS-realtime feed: %w", err)
	}
	if feed.GetHeader().GetGtfsRealtimeVersion() == "" {
		return errors.New("no gtfs_realtime_version: this is not a GTFS-realtime feed")
	}
	var news []string
	out.Undo = func() { f.forget(news) }
	for i, e := range feed.GetEntity() {
		v := e.GetVehicle()
		if v == nil || e.GetIsDeleted() {
			out.Ignored++
			continue
		}
		vehicle := vehicleOf(v.GetVehicle().GetId(), e.GetId())
		stamp := v.GetTimestamp()
		if stamp == 0 {
			stamp = feed.GetHeader().GetTimestamp()
		}
		key := in.Topic + in.Query.Get("feed") + "\x00" + vehicle
		if !f.moved(key, stamp) {
			out.Ignored++
			continue
		}
		news = append(news, key)
		var at time.Time
		if stamp > 0 && stamp < 1<<40 {
			at = time.Unix(int64(stamp), 0) //nolint:gosec // bounded
		}
		out.begin(vehicle, at)
		if p := v.GetPosition(); p != nil {
			out.place(widen(p.GetLatitude()), widen(p.GetLongitude()))
			if p.Speed != nil {
				out.set(telemetry.Speed, widen(p.GetSpeed())*mps)
			}
			if p.Bearing != nil {
				out.set(telemetry.Heading, widen(p.GetBearing()))
			}
			if p.Odometer != nil {
				out.set(telemetry.Odometer, p.GetOdometer())
			}
		}
		if v.OccupancyPercentage != nil {
			out.named("occupancy", float64(v.GetOccupancyPercentage()))
		}
		if v.CurrentStopSequence != nil {
			out.named("stop_sequence", float64(v.GetCurrentStopSequence()))
		}
		if v.CurrentStatus != nil {
			out.r.Status = v.GetCurrentStatus().String()
		}
		data, err := proto.Marshal(e)
		if err != nil {
			data = nil // the reason alone is kept
		}
		out.emit(i+1, data)
	}
	return nil
}

// moved tells whether a vehicle's time stamp is news, and remembers it.
func (f *GTFSRealtime) moved(vehicle string, stamp uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if was, ok := f.seen[vehicle]; ok && stamp <= was && stamp != 0 {
		return false
	}
	if f.seen == nil || len(f.seen) >= maxGTFSVehicles {
		f.seen = map[string]uint64{}
	}
	f.seen[vehicle] = stamp
	return true
}

func (f *GTFSRealtime) forget(keys []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range keys {
		delete(f.seen, k)
	}
}

// widen is the float64 that is written as the float32 is: 30.2672, not 30.26720046997070.
func widen(v float32) float64 {
	w, err := strconv.ParseFloat(strconv.FormatFloat(float64(v), 'g', -1, 32), 64)
	if err != nil {
		return float64(v) // not a number
	}
	return w
}
