package telemetry

import (
	"errors"
	"unicode"
	"unicode/utf8"
)

// MaxVehicle is the longest accepted vehicle id in bytes.
const MaxVehicle = 128

// Why a vehicle id is refused.
var (
	ErrVehicleLength = errors.New("vehicle id must have 1 to 128 bytes")
	ErrVehicleChars  = errors.New("vehicle id must be printable text without '/', '+' and '#', which have a meaning in topics")
)

// CheckVehicle tells whether id can name a vehicle: 1 to 128 bytes of printable UTF-8 without '/', '+' and '#'.
func CheckVehicle(id string) error {
	if len(id) == 0 || len(id) > MaxVehicle {
		return ErrVehicleLength
	}
	for i := range len(id) {
		switch c := id[i]; {
		case c >= utf8.RuneSelf:
			return checkVehicleText(id)
		case c < ' ' || c == 0x7f || c == '/' || c == '+' || c == '#':
			return ErrVehicleChars
		}
	}
	return nil
}

func checkVehicleText(id string) error {
	if !printable(id) {
		return ErrVehicleChars
	}
	for i := range len(id) {
		if c := id[i]; c == '/' || c == '+' || c == '#' {
			return ErrVehicleChars
		}
	}
	return nil
}

// printable tells whether s is UTF-8 that people can see: no control, formatting or private characters, no blanks but ' '.
func printable(s string) bool {
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return utf8.ValidString(s)
}
