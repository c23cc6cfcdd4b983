package ingest

import (
	"fmt"
	"log/slog"
	"unsafe"

	"github.com/milepost/milepost/stream"
)

const (
	// maxLetters and maxLetterBytes bound one Append of dead letters, and with it what refusals hold in memory.
	maxLetters     = 256
	maxLetterBytes = 4 << 20
)

// letter is one dead letter in the making: a reading that was refused, or a run of refused lines that follow one another in
// the payload. A body of a million bad lines so becomes some forty letters, not a million.
type letter struct {
	payload *Payload
	whole   []byte // the sender's body, or what of it is known
	data    []byte // a part of whole
	reason  string // of the first
	line    int    // of the first
	last    int    // line of the last
	lines   int
}

// refuse puts a part of the payload's data into the dead letters of this round.
func (b *batch) refuse(data []byte, line int, why Reason, reason string) {
	b.refuseIn(b.payload.Data, data, line, why, reason)
}

func (b *batch) refuseIn(whole, data []byte, line int, why Reason, reason string) {
	r := b.receipt
	if r.Refused == 0 {
		r.First = why
	}
	r.Readings++
	r.Refused++
	r.problem(line, reason, false)
	b.door.m.refused[why].Inc()
	if n := len(b.letters); n > 0 && b.letters[n-1].join(whole, data, line) {
		return
	}
	b.letters = append(b.letters, letter{
		payload: b.payload, whole: whole, data: data, reason: reason, line: line, last: line, lines: 1,
	})
	b.letterBytes += len(data)
	if !b.hold && (len(b.letters) >= maxLetters || b.letterBytes >= maxLetterBytes) {
		b.bury()
	}
}

// join adds the line after the letter's last one to it, if it is that and there is room.
func (l *letter) join(whole, data []byte, line int) bool {
	if line != l.last+1 || len(l.data) == 0 || len(data) == 0 || unsafe.SliceData(whole) != unsafe.SliceData(l.whole) {
		return false
	}
	from, to := offset(whole, l.data), offset(whole, data)+len(data)
	if from < 0 || to > len(whole) || to-from > stream.MaxDeadLetterData || to < from+len(l.data) {
		return false
	}
	l.data, l.last = whole[from:to], line
	l.lines++
	return true
}

// offset returns where part begins in whole, or a number outside it if it is no part of it.
func offset(whole, part []byte) int {
	return int(uintptr(unsafe.Pointer(unsafe.SliceData(part))) - uintptr(unsafe.Pointer(unsafe.SliceData(whole)))) //nolint:gosec // distance of two addresses, checked by the caller
}

// bury makes the refusals of this round durable.
func (b *batch) bury() {
	d := b.door
	recs := make([]stream.Record, 0, len(b.letters))
	var lost error
	for i := range b.letters {
		rec, err := b.letters[i].record(d.name, b)
		if err != nil { // a DeadLetter always marshals
			lost = err
			continue
		}
		recs = append(recs, rec)
	}
	clear(b.letters)
	b.letters, b.letterBytes = b.letters[:0], 0

	stored := len(recs)
	if err := d.dead.Append(b.ctx, recs); err != nil {
		lost = err
		stored = 0
		for i := range recs {
			if recs[i].Pos != "" {
				stored++
			}
		}
	}
	d.m.deadLetters.Add(float64(stored))
	if lost == nil {
		if d.deadBad.Load() && d.deadBad.CompareAndSwap(true, false) {
			d.logger.Info("dead-letter stream takes refused payloads again")
		}
		return
	}
	d.m.deadLost.Add(float64(len(recs) - stored))
	if b.receipt.DeadLetterErr == nil {
		b.receipt.DeadLetterErr = lost
	}
	if d.deadBad.CompareAndSwap(false, true) {
		d.logger.Error("dead-letter stream does not take refused payloads; they are counted and not kept", slog.Any("error", lost))
	}
}

func (l *letter) record(door string, b *batch) (stream.Record, error) {
	from := l.payload.From
	if l.payload.Topic != "" {
		from += " topic " + l.payload.Topic
	}
	reason := l.reason
	switch {
	case l.lines > 1:
		reason = fmt.Sprintf("line %d: %s (and the lines to %d, each refused)", l.line, reason, l.last)
	case l.line > 1:
		reason = fmt.Sprintf("line %d: %s", l.line, reason)
	}
	return stream.DeadLetter{
		Reason: reason, Source: door, From: from, Key: l.payload.Vehicle, At: b.now.UTC(), Data: l.data,
	}.Record()
}
