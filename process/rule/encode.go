package rule

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Stored state, version 1 (P6):
//
//	version byte = 1
//	per rule that is not zero:
//	  hash of the rule's name    8 bytes, little-endian
//	  header                     uvarint: phase 2 bits | readings 2 bits | late 1 bit | fields present, one bit each
//	  each field present         varint; times but Last as the difference to Last; floats as 8 bytes, little-endian
//
// Keyed by name, so that rules may come and go between two runs and the others keep their state.
const stateVersion = 1

const (
	hasLast = 1 << (5 + iota)
	hasSince
	hasFiredAt
	hasClearSince
	hasResolvedAt
	hasIncident
	hasReopened
	hasValue
	hasPeak
	headerEnd
)

// ErrState says that stored rule state makes no sense.
var ErrState = errors.New("stored rule state is damaged: rebuild it by reading the log again")

// AppendState appends a vehicle's rule state to dst.
func (s *Set) AppendState(dst []byte, st []State) []byte {
	dst = append(dst, stateVersion)
	for i := range st {
		if st[i] != (State{}) {
			dst = binary.LittleEndian.AppendUint64(dst, s.rules[i].hash)
			dst = st[i].append(dst)
		}
	}
	return dst
}

func (st *State) append(dst []byte) []byte {
	h := uint64(st.Phase&3) | uint64(st.Readings&3)<<2
	if st.Late {
		h |= 1 << 4
	}
	for i, x := range st.times() {
		if *x != 0 {
			h |= hasLast << i
		}
	}
	if st.Reopened != 0 {
		h |= hasReopened
	}
	if st.Value != 0 {
		h |= hasValue
	}
	if st.Peak != 0 {
		h |= hasPeak
	}
	dst = binary.AppendUvarint(dst, h)
	for i, x := range st.times() {
		switch {
		case *x == 0:
		case i == 0:
			dst = binary.AppendVarint(dst, *x)
		default:
			dst = binary.AppendVarint(dst, *x-st.Last)
		}
	}
	if st.Reopened != 0 {
		dst = binary.AppendUvarint(dst, uint64(st.Reopened))
	}
	if st.Value != 0 {
		dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(st.Value))
	}
	if st.Peak != 0 {
		dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(st.Peak))
	}
	return dst
}

// times lists the times in the order of their header bits; Last is first.
func (st *State) times() [6]*int64 {
	return [6]*int64{&st.Last, &st.Since, &st.FiredAt, &st.ClearSince, &st.ResolvedAt, &st.Incident}
}

// DecodeState reads what AppendState wrote, in this run or by a program with other rules, into st, which has Len elements
// and is overwritten. orphans counts the rules that were firing and are no longer in the set: alert.Retire ends their alerts.
// An empty b is a vehicle without state.
func (s *Set) DecodeState(b []byte, st []State) (orphans int, err error) {
	clear(st)
	if len(b) == 0 {
		return 0, nil
	}
	if b[0] != stateVersion {
		return 0, fmt.Errorf("stored rule state has version %d, this program reads %d: run a newer one", b[0], stateVersion)
	}
	b = b[1:]
	for len(b) > 0 {
		if len(b) < 8 {
			return 0, ErrState
		}
		hash := binary.LittleEndian.Uint64(b)
		var one State
		if b, err = one.decode(b[8:]); err != nil {
			return 0, err
		}
		if i, ok := s.byHash[hash]; ok {
			st[i] = one
		} else if one.Phase == Firing {
			orphans++
		}
	}
	return orphans, nil
}

func (st *State) decode(b []byte) ([]byte, error) {
	h, n := binary.Uvarint(b)
	if n <= 0 || h >= headerEnd || h>>2&3 == 3 {
		return nil, ErrState
	}
	b = b[n:]
	st.Phase, st.Readings, st.Late = Phase(h&3), uint8(h>>2&3), h&(1<<4) != 0
	for i, x := range st.times() {
		if h&(hasLast<<i) == 0 {
			continue
		}
		if *x, n = binary.Varint(b); n <= 0 {
			return nil, ErrState
		}
		if i > 0 {
			*x += st.Last
		}
		b = b[n:]
	}
	if h&hasReopened != 0 {
		r, n := binary.Uvarint(b)
		if n <= 0 || r > math.MaxUint32 {
			return nil, ErrState
		}
		st.Reopened, b = uint32(r), b[n:]
	}
	for i, x := range []*float64{&st.Value, &st.Peak} {
		if h&(hasValue<<i) == 0 {
			continue
		}
		if len(b) < 8 {
			return nil, ErrState
		}
		*x = math.Float64frombits(binary.LittleEndian.Uint64(b))
		b = b[8:]
	}
	return b, nil
}
