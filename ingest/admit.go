package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

const (
	// maxRecords and maxRecordBytes bound one Append. A larger payload is stored in several, in order; what it holds in memory
	// besides itself is one round's records.
	maxRecords     = 2048
	maxRecordBytes = 4 << 20
)

// batch is the working memory of one Admit, reused.
type batch struct {
	dec     *telemetry.Decoder
	reading telemetry.Reading
	each    func(elem []byte, index int) bool // b.element, bound once

	// One Admit's.
	ctx     context.Context //nolint:containedctx // for the callback of Split; set and cleared by Admit
	door    *Door
	payload *Payload
	own     Payload // what payload points to, unless there are many
	receipt *Receipt
	now     time.Time
	arrival int64  // now in Unix ms
	line    int    // of the element at hand, from 1
	rest    []byte // the payload after that element
	stopped bool   // a round failed: the rest is not tried, or it would overtake what the sender sends again
	hold    bool   // an Intake's: rounds are the Pipeline's, and a device over its rate is told how long to wait

	messages, size int // admitted to decoding, and their bytes; counted at the end

	// One round's: what goes into one Append.
	recs        []stream.Record
	lines       []int
	bytes       int
	wait        time.Duration // until the slowest of the devices in recs may send
	letters     []letter
	letterBytes int
}

func newBatch(catalog *telemetry.Catalog) *batch {
	b := &batch{dec: telemetry.NewDecoder(catalog)}
	b.each = b.element
	return b
}

// Admit decodes and limits the payload's readings, stores those that pass and fills the receipt, which it resets first. It
// returns when everything reported as accepted or refused is durable.
//
// The context should not be the sender's connection: an append under way is stored whether or not anybody waits for it, and
// a sender that went away sends again.
func (d *Door) Admit(ctx context.Context, p Payload, r *Receipt) {
	r.Reset()
	b := d.begin(ctx, r)
	b.own = p // a pointer to the argument would be an allocation for each message
	b.add(&b.own)
	b.end()
}

// AdmitAll is Admit for many payloads that share their Appends. Lines in the receipt are each payload's own.
func (d *Door) AdmitAll(ctx context.Context, ps []Payload, r *Receipt) {
	r.Reset()
	b := d.begin(ctx, r)
	for i := range ps {
		b.add(&ps[i])
	}
	b.end()
}

// DeadLetter refuses a payload as a whole, for a reason that the door knows, and returns when it is durable as a dead letter.
func (d *Door) DeadLetter(ctx context.Context, p Payload, why Reason, text string, r *Receipt) {
	r.Reset()
	b := d.begin(ctx, r)
	b.own = p
	b.payload = &b.own
	b.refuse(p.Data, 1, why, text)
	b.end()
}

func (d *Door) begin(ctx context.Context, r *Receipt) *batch {
	b, ok := d.batches.Get().(*batch)
	if !ok {
		panic("ingest: bug: the pool holds something else")
	}
	b.ctx, b.door, b.receipt = ctx, d, r
	b.now = time.Now()
	b.arrival = b.now.UnixMilli()
	b.stopped, b.messages, b.size = false, 0, 0
	return b
}

func (b *batch) end() {
	b.flush()
	if len(b.receipt.Problems) > 1 { // failures are found out a round after refusals
		slices.SortFunc(b.receipt.Problems, func(x, y Problem) int { return x.Line - y.Line })
	}
	d := b.door
	b.count()
	d.m.readings.Add(float64(b.receipt.Accepted))
	d.m.ack.Observe(time.Since(b.now).Seconds())
	b.ctx, b.door, b.payload, b.receipt, b.rest = nil, nil, nil, nil, nil
	b.own = Payload{}
	d.batches.Put(b)
}

// count tells the metrics what was admitted to decoding.
func (b *batch) count() {
	b.door.m.messages.Add(float64(b.messages))
	b.door.m.bytes.Add(float64(b.size))
	b.messages, b.size = 0, 0
}

func (b *batch) add(p *Payload) {
	b.payload = p
	b.messages++
	b.size += len(p.Data)
	if p.Vehicle != "" {
		if err := telemetry.CheckVehicle(p.Vehicle); err != nil {
			b.refuse(p.Data, 1, Mismatch, "in the topic or path: "+err.Error())
			return
		}
	}
	for _, u := range p.Unread {
		b.refuseIn(p.Body, u.Data, u.Line, NotReading, u.Reason)
	}
	b.line, b.rest = 0, p.Data
	if err := telemetry.Split(p.Data, b.each); err != nil {
		b.refuse(b.rest, p.Line+b.line+1, NotReading, err.Error())
	} else if b.line == 0 && len(p.Unread) == 0 {
		b.refuse(p.Data, 1, NotReading, "the payload is empty: send a JSON object, an array of them, or one a line")
	}
}

// element takes one reading of the payload.
func (b *batch) element(elem []byte, index int) bool {
	p, r := b.payload, b.receipt
	b.line = index + 1
	if end := offset(p.Data, elem) + len(elem); end >= 0 && end <= len(p.Data) {
		b.rest = p.Data[end:]
	}
	line := p.Line + b.line
	if b.stopped {
		r.Readings++
		b.fail(line)
		return true
	}
	if most := b.door.limits.MaxMessage; len(elem) > most {
		b.refuse(elem, line, TooLarge, fmt.Sprintf("reading of %d bytes: %d are the limit (limits.message)", len(elem), most))
		return true
	}
	b.reading.Vehicle, b.reading.Arrival = p.Vehicle, b.arrival
	if err := b.dec.JSON(elem, &b.reading); err != nil {
		b.refuse(elem, line, b.classify(elem), err.Error())
		return true
	}
	vehicle := b.reading.Vehicle
	if p.May != nil && !p.May(vehicle) {
		b.refuse(elem, line, Mismatch, fmt.Sprintf("the sender may not report for vehicle %q: see its policy", vehicle))
		return true
	}
	if b.door.rates != nil || b.door.volumes != nil {
		debt := p.Wait != nil || b.hold
		wait := b.door.wait(vehicle, len(elem), b.now.UnixNano(), debt)
		if wait > 0 && !debt {
			r.Readings++
			r.Throttled++
			r.RetryAfter = max(r.RetryAfter, wait)
			r.problem(line, "the vehicle is over its rate: send it again later", true)
			b.door.m.refused[OverRate].Inc()
			return true
		}
		b.wait = max(b.wait, wait)
	}
	r.Readings++
	b.recs = append(b.recs, stream.Record{Key: vehicle, Data: elem})
	b.lines = append(b.lines, line)
	if b.bytes += len(elem); !b.hold && (len(b.recs) >= maxRecords || b.bytes >= maxRecordBytes) {
		b.flush()
	}
	return true
}

// classify tells whether what the decoder refused is a good reading of another vehicle than the one it came for.
func (b *batch) classify(elem []byte) Reason {
	if b.payload.Vehicle == "" {
		return NotReading
	}
	b.reading.Vehicle = ""
	if b.dec.JSON(elem, &b.reading) == nil && b.reading.Vehicle != b.payload.Vehicle {
		return Mismatch
	}
	return NotReading
}

// flush ends a round: records first, then what was refused.
func (b *batch) flush() {
	if len(b.recs) > 0 {
		b.append()
		clear(b.recs)
		b.recs, b.lines, b.bytes, b.wait = b.recs[:0], b.lines[:0], 0, 0
	}
	if len(b.letters) > 0 {
		b.bury()
	}
}

func (b *batch) append() {
	d, r := b.door, b.receipt
	if b.wait > 0 && !sleep(b.payload.Wait, b.wait) {
		r.Err, b.stopped = b.payload.Wait.Err(), true
		for _, line := range b.lines {
			b.fail(line)
		}
		return
	}
	err := d.log.Append(b.ctx, b.recs)
	if err == nil {
		r.Accepted += len(b.recs)
		if d.refuses.Load() && d.refuses.CompareAndSwap(true, false) {
			d.logger.Info("log takes readings again")
		}
		return
	}
	tooLarge := errors.Is(err, stream.ErrTooLarge)
	for i := range b.recs {
		switch {
		case b.recs[i].Pos != "":
			r.Accepted++
		case tooLarge:
			// Sending it again would not help, so it is refused like any other that is too large.
			r.Readings-- // refuse counts it
			b.refuse(b.recs[i].Data, b.lines[i], TooLarge, err.Error())
		default:
			if r.Err == nil {
				r.Err = err
			}
			b.stopped = true
			b.fail(b.lines[i])
		}
	}
	if b.stopped && d.refuses.CompareAndSwap(false, true) {
		d.logger.Error("log does not take readings; senders are told to send again", slog.Any("error", err))
	}
}

// fail marks a reading as not stored.
func (b *batch) fail(line int) {
	b.receipt.Failed++
	b.receipt.problem(line, "not stored: send it again", true)
	b.door.m.refused[Unavailable].Inc()
}

// sleep waits for d and returns whether it passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
