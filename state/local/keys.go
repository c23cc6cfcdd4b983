package local

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/milepost/milepost/stream"
)

// Every Pebble key begins with one of these bytes. FORMAT.md is the same table with the values beside it.
const (
	kindCheckpoint = 'c' // 'c' function 0 shard 0 lane(4, big endian) → position
	kindEffect     = 'e' // 'e' kind 0 sequence(8, big endian)         → uvarint length of ID, ID, data
	kindEffectID   = 'i' // 'i' kind 0 ID                              → sequence(8, big endian)
	kindMeta       = 'm' // 'm' name                                   → see FORMAT.md
	kindUser       = 'u' // 'u' key                                    → value
)

const (
	metaFormat   = "mformat"
	metaSequence = "msequence"
)

// errShort tells of a stored value that ends too early.
var errShort = errors.New("value is cut short")

type laneID struct {
	fn    string
	shard stream.ShardID
	lane  int
}

func (l laneID) check() error {
	if l.fn == "" || strings.IndexByte(l.fn, 0) >= 0 || strings.IndexByte(string(l.shard), 0) >= 0 {
		return fmt.Errorf("function %q on shard %q: a function needs a name, and neither may hold a zero byte", l.fn, l.shard)
	}
	if l.lane < 0 {
		return fmt.Errorf("function %s on shard %s: lane %d is negative", l.fn, l.shard, l.lane)
	}
	return nil
}

func checkpointKey(l laneID) []byte {
	k := make([]byte, 0, 1+len(l.fn)+1+len(l.shard)+1+4)
	k = append(k, kindCheckpoint)
	k = append(k, l.fn...)
	k = append(k, 0)
	k = append(k, l.shard...)
	k = append(k, 0)
	return binary.BigEndian.AppendUint32(k, uint32(l.lane))
}

func checkKind(kind string) error {
	if kind == "" || strings.IndexByte(kind, 0) >= 0 {
		return fmt.Errorf("effect kind %q: it may be neither empty nor hold a zero byte", kind)
	}
	return nil
}

// effectPrefix is where the effects of a kind begin; effectEnd is where they end.
func effectPrefix(kind string) []byte {
	k := make([]byte, 0, 1+len(kind)+1+8)
	k = append(k, kindEffect)
	k = append(k, kind...)
	return append(k, 0)
}

func effectEnd(kind string) []byte {
	k := effectPrefix(kind)
	k[len(k)-1] = 1
	return k
}

func effectKey(kind string, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(effectPrefix(kind), seq)
}

func effectIDKey(kind, id string) []byte {
	k := make([]byte, 0, 1+len(kind)+1+len(id))
	k = append(k, kindEffectID)
	k = append(k, kind...)
	k = append(k, 0)
	return append(k, id...)
}

func effectValue(id string, data []byte) []byte {
	v := make([]byte, 0, binary.MaxVarintLen64+len(id)+len(data))
	v = binary.AppendUvarint(v, uint64(len(id)))
	v = append(v, id...)
	return append(v, data...)
}

// parseEffect reads what effectKey and effectValue wrote. Its results borrow from v.
func parseEffect(kind string, k, v []byte) (seq uint64, id, data []byte, err error) {
	p := 1 + len(kind) + 1
	if len(k) != p+8 {
		return 0, nil, nil, fmt.Errorf("effect key %q: %w", k, errShort)
	}
	n, w := binary.Uvarint(v)
	if w <= 0 || n > uint64(len(v)-w) {
		return 0, nil, nil, fmt.Errorf("effect %q: %w", k, errShort)
	}
	return binary.BigEndian.Uint64(k[p:]), v[w : w+int(n)], v[w+int(n):], nil
}

func parseSequence(v []byte) (uint64, error) {
	if len(v) != 8 {
		return 0, fmt.Errorf("sequence of %d bytes: %w", len(v), errShort)
	}
	return binary.BigEndian.Uint64(v), nil
}
