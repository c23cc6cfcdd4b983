// Package fleet is what Milepost knows of each vehicle: its latest state, its daily figures, and which of its readings have
// been seen. It holds the built-in function that folds readings into them.
package fleet

// Connectivity is whether a vehicle is heard from, judged by arrival time.
type Connectivity string

// The connectivities.
const (
	Online  Connectivity = "online"
	Stale   Connectivity = "stale"   // silent for longer than usual; shown, not alerted
	Offline Connectivity = "offline" // silent for so long that someone should look
)

// A Vehicle is a snapshot of a vehicle's latest state, safe to keep. Times are Unix ms UTC.
type Vehicle struct {
	ID           string        `json:"vehicle_id"`
	Connectivity Connectivity  `json:"connectivity"`
	EventTime    int64         `json:"event_time"`   // of its newest reading
	ArrivalTime  int64         `json:"arrival_time"` // of the last message heard, late ones included
	HasPlace     bool          `json:"has_place"`
	Lat          float64       `json:"lat,omitempty"`
	Lon          float64       `json:"lon,omitempty"`
	PlaceTime    int64         `json:"place_time,omitempty"`
	Status       string        `json:"status,omitempty"`
	Signals      []SignalValue `json:"signals"`
	Readings     uint64        `json:"readings"`           // distinct readings ever folded
	Severity     string        `json:"severity,omitempty"` // of its worst firing alert
	Firing       []string      `json:"firing,omitempty"`   // rules now firing
}

// A SignalValue is a signal's newest value, with its own time: devices that send on change leave the others standing.
type SignalValue struct {
	Name  string  `json:"name"`
	Unit  string  `json:"unit,omitempty"`
	Value float64 `json:"value"`
	Time  int64   `json:"time"`
}
