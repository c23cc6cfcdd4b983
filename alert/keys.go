package alert

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/milepost/milepost/state"
)

// Keys of alerts in the state store. vehicle is two bytes of length, big-endian, and the ID; when is the bitwise complement
// of the incident's first event time, eight bytes big-endian, so that a scan meets the newest first.
//
//	alert/r/ id                    the alert, JSON; written by the lane that owns the vehicle
//	alert/a/ id                    who acknowledged it, JSON; written by people. A key of its own, so that they cannot conflict
//	alert/o/ vehicle rule          the open alert's id: at most one per rule and vehicle
//	alert/t/ when id               history, newest first
//	alert/v/ vehicle when id       the same, of one vehicle
const (
	rowPrefix     = "alert/r/"
	ackPrefix     = "alert/a/"
	openPrefix    = "alert/o/"
	timePrefix    = "alert/t/"
	vehiclePrefix = "alert/v/"
)

func rowKey(id string) []byte { return []byte(rowPrefix + id) }
func ackKey(id string) []byte { return []byte(ackPrefix + id) }

func appendVehicle(k []byte, vehicle string) []byte {
	k = binary.BigEndian.AppendUint16(k, uint16(len(vehicle))) //nolint:gosec // ingest admits far shorter IDs
	return append(k, vehicle...)
}

func openKey(vehicle, rule string) []byte {
	return append(appendVehicle([]byte(openPrefix), vehicle), rule...)
}

func appendWhen(k []byte, t int64) []byte {
	// The sign bit is flipped so that times before 1970 order too.
	return binary.BigEndian.AppendUint64(k, ^(uint64(t) ^ 1<<63)) //nolint:gosec // bits, not a quantity
}

func timeKey(t int64, id string) []byte {
	return append(appendWhen([]byte(timePrefix), t), id...)
}

func vehicleKey(vehicle string, t int64, id string) []byte {
	return append(appendWhen(appendVehicle([]byte(vehiclePrefix), vehicle), t), id...)
}

// An ack is what people know of an alert.
type ack struct {
	At       int64  `json:"at"`
	By       string `json:"by"`
	Reopened int    `json:"reopened"` // which episode they saw; a later one wants attention again
}

// load returns an alert as its lane wrote it, or false.
func load(r state.Reader, id string) (Alert, bool, error) {
	var a Alert
	b, err := r.Get(rowKey(id))
	if err != nil || b == nil {
		return a, false, err
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return a, false, fmt.Errorf("stored alert %s: %w", id, err)
	}
	return a, true, nil
}

// loadAcked is load with what people did.
func loadAcked(r state.Reader, id string) (Alert, bool, error) {
	a, ok, err := load(r, id)
	if err != nil || !ok {
		return a, ok, err
	}
	k, ok, err := loadAck(r, id)
	if ok && k.Reopened == a.Reopened {
		a.AckedAt, a.AckedBy = k.At, k.By
	}
	return a, true, err
}

func loadAck(r state.Reader, id string) (ack, bool, error) {
	var k ack
	b, err := r.Get(ackKey(id))
	if err != nil || b == nil {
		return k, false, err
	}
	if err := json.Unmarshal(b, &k); err != nil {
		return k, false, fmt.Errorf("stored acknowledgement of %s: %w", id, err)
	}
	return k, true, nil
}

// save writes the lane's part of an alert.
func save(tx state.Tx, a *Alert) error {
	b, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("alert %s: %w", a.ID, err)
	}
	return tx.Set(rowKey(a.ID), b)
}
