// Package telemetry holds the nouns of the fleet: a Reading and its Signals, their units, and the decoders of payload
// formats. It imports only the standard library, reads no clock and does no I/O.
//
// Units are those that fleets read and rules are written in, fixed per signal by the Catalog: speed km/h, heading and
// coordinates degrees, distance m, temperature °C, pressure kPa, fuel % of the tank, time Unix milliseconds UTC. Decoders of
// formats with other units convert on the way in; nothing guesses a unit from a number's size.
package telemetry

// A Reading is what one vehicle said at one moment.
//
// Decoders fill a Reading that the caller reuses. Its strings may be views of the decoder's input (each decoder says so):
// they are valid until that input or the Reading is reused; strings.Clone what must live longer.
type Reading struct {
	Vehicle string   // the vehicle's id; never empty after a successful decode
	Time    int64    // event time, Unix ms UTC
	Arrival int64    // arrival time, Unix ms UTC; set by the caller before or after decoding
	Lat     float64  // degrees north, WGS84; meaningful only without FlagNoPosition
	Lon     float64  // degrees east
	Status  string   // free text of the device, "" if it sent none
	Signals []Signal // every numeric signal, speed and heading included, each ID at most once, in input order
	Flags   Flags    // what is doubtful about it
}

// A Signal is one numeric value in the unit its Catalog entry names.
type Signal struct {
	ID    SignalID
	Value float64
}

// Signal returns the value of one signal and whether the reading has it.
func (r *Reading) Signal(id SignalID) (float64, bool) {
	for i := range r.Signals {
		if r.Signals[i].ID == id {
			return r.Signals[i].Value, true
		}
	}
	return 0, false
}

// HasPosition tells whether Lat and Lon hold a usable place.
func (r *Reading) HasPosition() bool { return r.Flags&(FlagNoPosition|FlagPositionInvalid) == 0 }

// Flags say what is doubtful about a reading. They are stored with it: their values never change.
type Flags uint32

// The flags, per DOMAIN 2.0 and 2.1.
const (
	FlagNoPosition      Flags = 1 << iota // it carries no coordinates
	FlagPositionInvalid                   // coordinates out of range or at null island: kept, never used
	FlagTimeMissing                       // it carried no time; Time is its arrival
	FlagLate                              // older than the vehicle's newest reading when it arrived
	FlagImplausible                       // a signal lies outside its catalog range: archived, kept from state and rules
	FlagSignalsDropped                    // more signals, or more names, than the limits allow
	FlagFieldsIgnored                     // fields that are neither numeric signals nor known text
)
