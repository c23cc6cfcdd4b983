package fleet

import (
	"encoding/binary"

	"github.com/milepost/milepost/stream"
)

// Keys in the state store. Every family has a prefix of its own that ends in '/'; vehicle ids hold no NUL, so a NUL ends them.
//
//	fleet/v/<vehicle>                          latest state (codec.go)
//	fleet/k/<day be32><vehicle>                daily figures (kpi.go)
//	fleet/s/<vehicle>\0<hour be32><seq be32>   readings seen: one sealed chunk (seen.go)
//	fleet/x/<day be32><vehicle>\0<hour><seq>   the same chunk by the day it was written, for expiry
//	fleet/d/<shard>\0<position>                positions that the step ending there did not accept (lane.go)
const (
	vehiclePrefix = "fleet/v/"
	kpiPrefix     = "fleet/k/"
	seenPrefix    = "fleet/s/"
	expiryPrefix  = "fleet/x/"
	droppedPrefix = "fleet/d/"
)

func vehicleKey(buf []byte, id string) []byte {
	return append(append(buf[:0], vehiclePrefix...), id...)
}

func kpiKey(buf []byte, day int32, id string) []byte {
	buf = append(buf[:0], kpiPrefix...)
	return append(binary.BigEndian.AppendUint32(buf, orderedDay(day)), id...)
}

func seenHourKey(buf []byte, id string, hour int32) []byte {
	buf = append(append(append(buf[:0], seenPrefix...), id...), 0)
	return binary.BigEndian.AppendUint32(buf, orderedDay(hour))
}

func seenKey(buf []byte, id string, hour int32, seq uint32) []byte {
	return binary.BigEndian.AppendUint32(seenHourKey(buf, id, hour), seq)
}

func expiryKey(buf []byte, writtenDay int32, id string, hour int32, seq uint32) []byte {
	buf = append(buf[:0], expiryPrefix...)
	buf = binary.BigEndian.AppendUint32(buf, orderedDay(writtenDay))
	buf = append(append(buf, id...), 0)
	buf = binary.BigEndian.AppendUint32(buf, orderedDay(hour))
	return binary.BigEndian.AppendUint32(buf, seq)
}

func droppedKey(buf []byte, shard stream.ShardID, pos stream.Position) []byte {
	buf = append(append(append(buf[:0], droppedPrefix...), shard...), 0)
	return append(buf, pos...)
}

// orderedDay maps a signed day or hour number to an unsigned one with the same order.
func orderedDay(n int32) uint32 { return uint32(n) ^ 1<<31 } //nolint:gosec // the bits are meant

func dayOf(ms int64) int32  { return int32(floorDiv(ms, 86_400_000)) } //nolint:gosec // event times are bounded
func hourOf(ms int64) int32 { return int32(floorDiv(ms, 3_600_000)) }  //nolint:gosec // likewise

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}
