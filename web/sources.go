package web

import (
	"context"
	"errors"
	"time"

	"github.com/milepost/milepost/alert"
	"github.com/milepost/milepost/fleet"
	"github.com/milepost/milepost/stream"
)

// Vehicles are the latest states. Safe for concurrent use.
type Vehicles interface {
	// Vehicle returns a copy of one vehicle's state.
	Vehicle(id string) (fleet.Vehicle, bool)
	// Vehicles calls f for every vehicle, in any order, until it returns false. *Vehicle, its slices included, is valid until
	// f returns. It holds no lock while f runs that would stall ingest.
	Vehicles(f func(*fleet.Vehicle) bool)
}

// Live is what moved. Only the hub calls it, from one goroutine, as often as Config.LiveInterval while anybody watches: its
// cost does not depend on how many browsers do.
type Live interface {
	// Drain appends to buf the newest point of each vehicle that changed after cursor, once each and in any order, and returns
	// the cursor to pass next time. Cursor 0 asks for every vehicle. A change is a new place, speed or heading, a new
	// connectivity, or a new severity.
	Drain(cursor uint64, buf []Point) ([]Point, uint64)
}

// A Point is a vehicle on the map.
type Point struct {
	Index    uint32 // stable for this process, dense from 0: the feed names a vehicle by it after the first time
	ID       string
	Lat, Lon float64 // meaningful if HasPlace
	HasPlace bool
	Speed    float32 // km/h; negative: unknown
	Heading  float32 // degrees clockwise from north; negative: unknown
	State    State
	Severity Severity // of its worst firing alert
	Time     int64    // arrival of its newest reading, Unix ms: what its age is counted from
}

// A State is fleet.Connectivity in two bits.
type State uint8

// The states.
const (
	StateOnline State = iota
	StateStale
	StateOffline
	StateGone // forgotten by retention: browsers remove it
)

// StateOf returns the state of a connectivity.
func StateOf(c fleet.Connectivity) State {
	switch c {
	case fleet.Online:
		return StateOnline
	case fleet.Stale:
		return StateStale
	default:
		return StateOffline
	}
}

// A Severity is an alert's severity as a number, so that the worst is the largest.
type Severity uint8

// The severities.
const (
	SeverityNone Severity = iota
	SeverityInfo
	SeverityWarning
	SeverityCritical
)

// SeverityOf returns the number of a severity's name; an unknown one is SeverityNone.
func SeverityOf(name string) Severity {
	switch name {
	case "info":
		return SeverityInfo
	case "warning":
		return SeverityWarning
	case "critical":
		return SeverityCritical
	default:
		return SeverityNone
	}
}

// Alerts are the incidents. Safe for concurrent use.
type Alerts interface {
	// Alerts returns what matches q, newest first by FiredAt, then by ID.
	Alerts(ctx context.Context, q AlertQuery) ([]alert.Alert, error)
	// Alert returns one; ErrNotFound if there is none.
	Alert(ctx context.Context, id string) (alert.Alert, error)
	// Ack acknowledges one for a person and returns it; again: nothing changes. It is durable when it returns. ErrNotFound.
	Ack(ctx context.Context, id, by string) (alert.Alert, error)
	// Counts is cheap: it is asked at each tick of the feed.
	Counts() AlertCounts
}

// An AlertQuery selects alerts; zero fields select all. Pending alerts are never shown.
type AlertQuery struct {
	State   alert.State // Firing or Resolved
	Vehicle string
	Rule    string
	Before  string // the ID of the last alert of the page before
	Limit   int
}

// AlertCounts are the alerts now firing.
type AlertCounts struct {
	Version  uint64 `json:"-"` // differs after any alert fired, resolved or was acknowledged
	Critical int    `json:"critical"`
	Warning  int    `json:"warning"`
	Info     int    `json:"info"`
	Unacked  int    `json:"unacked"`
}

// ErrNotFound: the source has no such thing.
var ErrNotFound = errors.New("not found")

// An UnavailableError is a source that cannot do it now and will later. Reason is told to the client: why, and what mends it.
type UnavailableError struct{ Reason string }

func (e *UnavailableError) Error() string { return e.Reason }

// A Pipeline tells how data flows. Safe for concurrent use.
type Pipeline interface {
	// Status is asked every few seconds while anybody looks, and at most once at a time by the feed.
	Status(ctx context.Context) (PipelineStatus, error)
}

// A PipelineStatus is the whole flow at one moment. Totals count since the process started; whoever shows rates divides
// differences. A negative number of records or seconds: unknown.
type PipelineStatus struct {
	Time      time.Time        `json:"time"`
	Started   time.Time        `json:"started"`
	Version   string           `json:"version,omitempty"`
	Doors     []DoorStatus     `json:"doors"`
	Streams   []StreamStatus   `json:"streams"`
	Functions []FunctionStatus `json:"functions"`
	Archive   *ArchiveStatus   `json:"archive,omitempty"`
	Sinks     []SinkStatus     `json:"sinks"`
	Dead      uint64           `json:"dead_letters"` // ever written to the dead-letter stream
}

// A DoorStatus is one way in.
type DoorStatus struct {
	Name        string            `json:"name"` // "mqtt", "http"
	Address     string            `json:"address,omitempty"`
	Connections int               `json:"connections"`
	Accepted    uint64            `json:"accepted"` // readings acknowledged
	Bytes       uint64            `json:"bytes"`
	Refused     map[string]uint64 `json:"refused"` // by reason
}

// A StreamStatus is one stream of the log.
type StreamStatus struct {
	Name    string        `json:"name"`
	Records uint64        `json:"records"` // appended
	Bytes   uint64        `json:"bytes"`   // appended
	Stored  uint64        `json:"stored_bytes"`
	Fenced  string        `json:"fenced,omitempty"` // why it takes nothing
	Shards  []ShardStatus `json:"shards"`
}

// A ShardStatus is one shard.
type ShardStatus struct {
	ID      stream.ShardID `json:"id"`
	Closed  bool           `json:"closed,omitempty"`
	Records uint64         `json:"records"`
	Tip     time.Time      `json:"tip,omitzero"`    // arrival of the newest record
	Oldest  time.Time      `json:"oldest,omitzero"` // arrival of the oldest that retention has left
}

// A FunctionStatus is one consumer of a stream.
type FunctionStatus struct {
	Name      string        `json:"name"`
	Stream    string        `json:"stream"`
	Processed uint64        `json:"processed"`
	Errors    uint64        `json:"errors"` // retried
	Dead      uint64        `json:"dead_letters"`
	LastError string        `json:"last_error,omitempty"`
	Shards    []FunctionLag `json:"shards"`
}

// A FunctionLag is how far a function is behind on one shard.
type FunctionLag struct {
	Shard   stream.ShardID `json:"shard"`
	Lag     int64          `json:"lag"`         // records not yet processed
	Seconds float64        `json:"lag_seconds"` // iterator age: how long the oldest of them has waited
}

// An ArchiveStatus is the Parquet lake.
type ArchiveStatus struct {
	Files    uint64    `json:"files"`
	Rows     uint64    `json:"rows"`
	Bytes    uint64    `json:"bytes"`
	TailRows uint64    `json:"tail_rows"` // visible to SQL, not yet in a file
	Newest   time.Time `json:"newest,omitzero"`
	Error    string    `json:"error,omitempty"`
}

// A SinkStatus is one way out for alerts.
type SinkStatus struct {
	Name    string `json:"name"`
	Sent    uint64 `json:"sent"`
	Failed  uint64 `json:"failed"`
	Pending int    `json:"pending"`
	Error   string `json:"error,omitempty"`
}

// DeadLetters are what could not be used. Safe for concurrent use.
type DeadLetters interface {
	// DeadLetters returns up to limit letters, newest first, older than the one that before names ("" : from the newest).
	DeadLetters(ctx context.Context, limit int, before string) ([]StoredLetter, error)
	// DeadLetter returns one; ErrNotFound if there is none, or none any more.
	DeadLetter(ctx context.Context, ref string) (StoredLetter, error)
}

// A StoredLetter is a dead letter and what names it.
type StoredLetter struct {
	Ref string `json:"ref"` // opaque, usable in a URL's path
	stream.DeadLetter
}
