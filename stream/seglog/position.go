package seglog

import (
	"fmt"
	"strconv"
	"unsafe"

	"github.com/milepost/milepost/stream"
)

// A position is the record's sequence in its shard, from 1, as 16 lower-case hex digits: fixed width, so that positions order
// as strings do.
const positionLen = 16

const hexDigits = "0123456789abcdef"

func putPosition(b []byte, seq uint64) {
	_ = b[15]
	for i := 15; i >= 0; i-- {
		b[i] = hexDigits[seq&15]
		seq >>= 4
	}
}

func formatPosition(seq uint64) stream.Position {
	if seq == 0 {
		return ""
	}
	var b [positionLen]byte
	putPosition(b[:], seq)
	return stream.Position(b[:])
}

// parsePosition returns the sequence of a position; 0 for "".
func parsePosition(pos stream.Position) (uint64, error) {
	if pos == "" {
		return 0, nil
	}
	if len(pos) == positionLen {
		if seq, err := strconv.ParseUint(string(pos), 16, 64); err == nil {
			return seq, nil
		}
	}
	return 0, fmt.Errorf("position %q is not one of this log: use one that it returned, or \"\" for the oldest", string(pos))
}

// positions makes the positions of many records with an allocation for every arenaRecords of them. A position that is kept
// keeps its arena of 4 KiB. Its owner may keep it for many calls: what it hands out is never written again.
type positions struct {
	arena []byte // what is left of it is the capacity behind its length
	seq   uint64 // of the position that was made last
	last  []byte
}

const arenaRecords = 256

func (p *positions) next(seq uint64) stream.Position {
	n := len(p.arena)
	if n == cap(p.arena) {
		p.arena, n = make([]byte, 0, positionLen*arenaRecords), 0
	}
	p.arena = p.arena[:n+positionLen]
	b := p.arena[n:]
	if seq == p.seq+1 && seq&15 != 0 && p.last != nil {
		copy(b, p.last) // only the last digit differs from the one before
		b[positionLen-1] = hexDigits[seq&15]
	} else {
		putPosition(b, seq)
	}
	p.seq, p.last = seq, b
	return stream.Position(unsafe.String(&b[0], positionLen))
}
