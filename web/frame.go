package web

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
	"strconv"
)

// A point on the wire, little endian, pointSize bytes. docs/api.md repeats this for other readers.
//
//	0  u32 index
//	4  i32 latitude  × 1e7
//	8  i32 longitude × 1e7
//	12 u32 arrival, Unix seconds
//	16 u16 speed × 10 km/h; 65535 unknown
//	18 u8  heading × 256/360; meaningless unless flag 32
//	19 u8  flags: 1–2 state, 4–8 severity, 16 has a place, 32 has a heading
const pointSize = 20

const (
	flagState    = 0 // shift
	flagSeverity = 2 // shift
	flagPlace    = 1 << 4
	flagHeading  = 1 << 5
	noSpeed      = math.MaxUint16
)

func appendPoint(b []byte, p *Point) []byte {
	var flags uint8
	flags = uint8(p.State)&3<<flagState | uint8(p.Severity)&3<<flagSeverity
	var lat, lon int32
	if p.HasPlace && math.Abs(p.Lat) <= 90 && math.Abs(p.Lon) <= 180 { // a NaN fails both
		flags |= flagPlace
		lat, lon = int32(math.Round(p.Lat*1e7)), int32(math.Round(p.Lon*1e7))
	}
	speed := uint16(noSpeed)
	if p.Speed >= 0 && p.Speed < 6500 {
		speed = uint16(p.Speed*10 + 0.5)
	}
	var heading uint8
	if p.Heading >= 0 && p.Heading <= 360 {
		flags |= flagHeading
		heading = uint8(int(p.Heading*(256.0/360)+0.5) & 255)
	}
	b = binary.LittleEndian.AppendUint32(b, p.Index)
	b = binary.LittleEndian.AppendUint32(b, uint32(lat))                                             //nolint:gosec // bits
	b = binary.LittleEndian.AppendUint32(b, uint32(lon))                                             //nolint:gosec // bits
	b = binary.LittleEndian.AppendUint32(b, uint32(min(max(p.Time/1000, 0), int64(math.MaxUint32)))) //nolint:gosec // bounded
	b = binary.LittleEndian.AppendUint16(b, speed)
	return append(b, heading, flags)
}

// A frameBuilder makes one "vehicles" event. Reuse it; the frame is a fresh slice each time, because it is shared.
type frameBuilder struct {
	points []byte
	names  []byte // JSON members: "index":"id",…
}

func (f *frameBuilder) reset() { f.points, f.names = f.points[:0], f.names[:0] }

func (f *frameBuilder) add(p *Point, named bool) {
	f.points = appendPoint(f.points, p)
	if !named {
		return
	}
	if len(f.names) > 0 {
		f.names = append(f.names, ',')
	}
	f.names = append(f.names, '"')
	f.names = strconv.AppendUint(f.names, uint64(p.Index), 10)
	f.names = append(f.names, '"', ':')
	f.names = appendJSONString(f.names, p.ID)
}

func (f *frameBuilder) len() int { return len(f.points) / pointSize }

// event writes the event: whole tells the browser to forget what it had.
func (f *frameBuilder) event(epoch string, seq uint64, now int64, whole bool) []byte {
	b := make([]byte, 0, 160+len(epoch)+len(f.names)+base64.StdEncoding.EncodedLen(len(f.points)))
	b = append(b, "event: vehicles\nid: "...)
	b = append(b, epoch...)
	b = append(b, '-')
	b = strconv.AppendUint(b, seq, 10)
	b = append(b, "\ndata: {\"t\":"...)
	b = strconv.AppendInt(b, now, 10)
	b = append(b, ",\"whole\":"...)
	b = strconv.AppendBool(b, whole)
	b = append(b, ",\"n\":"...)
	b = strconv.AppendInt(b, int64(f.len()), 10)
	b = append(b, ",\"names\":{"...)
	b = append(b, f.names...)
	b = append(b, "},\"points\":\""...)
	b = base64.StdEncoding.AppendEncode(b, f.points)
	return append(b, "\"}\n\n"...)
}

// appendJSONString quotes s. The common id needs no escape and no allocation.
func appendJSONString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			q, _ := json.Marshal(s) // a string always encodes
			return append(b, q...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// jsonEvent writes an event whose data is v as JSON.
func jsonEvent(name string, v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, len(data)+len(name)+20)
	b = append(b, "event: "...)
	b = append(b, name...)
	b = append(b, "\ndata: "...)
	b = append(b, data...) // JSON holds no newline
	return append(b, "\n\n"...), nil
}
