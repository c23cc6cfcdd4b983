package ingest

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/milepost/milepost/stream"
)

// An Intake is the working memory of one goroutine that reads from a connection: Begin, Add for each message, Submit. What it is
// given is borrowed until Submit.
type Intake struct {
	p        *Pipeline
	b        *batch
	receipt  Receipt
	messages int
	of       []int32 // by record: its message
	dead     []stream.Record
	deadSize int
	bytes0   int64
	ticket   uint64
}

// A Judgement is what Add says of a message.
type Judgement struct {
	Readings int    // found in it
	Refused  int    // of them; kept as dead letters with the rest of the submission
	First    Reason // of the first refusal
	Line     int    // of the first refusal, from 1
	Text     string // what is wrong with it
	Dropped  bool   // promised nothing, and there was no room
	// Wait is how long the connection must rest, after Submit, because a vehicle is over its rate.
	Wait time.Duration
}

// Begin returns an Intake for what a read has brought.
func (p *Pipeline) Begin() *Intake {
	in, ok := p.intake.Get().(*Intake)
	if !ok {
		panic("ingest: bug: the pool holds something else")
	}
	in.b.now = time.Now()
	in.b.arrival = in.b.now.UnixMilli()
	return in
}

// Now returns when Begin was called.
func (in *Intake) Now() time.Time { return in.b.now }

// Add judges a message. With atMostOnce it may be dropped for want of room. What is refused is copied at once.
func (in *Intake) Add(m *Payload, atMostOnce bool) Judgement {
	if atMostOnce {
		n := int64(len(m.Data)) + perRecord
		if !in.p.take0(n) {
			in.p.door.m.refused[Overloaded].Inc()
			return Judgement{Dropped: true}
		}
		in.bytes0 += n
	}
	b, r := in.b, &in.receipt
	r.Readings, r.Refused = 0, 0
	b.wait = 0
	b.add(m)
	return in.judged()
}

// Refuse refuses a message as a whole, for a reason that the door knows.
func (in *Intake) Refuse(m *Payload, why Reason, text string) Judgement {
	r := &in.receipt
	r.Readings, r.Refused = 0, 0
	in.b.wait = 0
	in.b.payload = m
	in.b.refuse(m.Data, 1, why, text)
	return in.judged()
}

// Pass takes a message that the Pipeline has nothing to store of, but that is answered in its turn.
func (in *Intake) Pass() { in.messages++ }

// Await makes the submission wait for a ticket of the Pipeline's Also.
func (in *Intake) Await(ticket uint64) { in.ticket = max(in.ticket, ticket) }

// Messages returns how many there are so far.
func (in *Intake) Messages() int { return in.messages }

// Bytes returns how many bytes of payloads there are so far.
func (in *Intake) Bytes() int { return in.b.bytes + in.deadSize }

// Size returns how many of InFlightBytes Submit takes, with what of them is reserved.
func (in *Intake) Size(reserved int64) int64 {
	if reserved > 0 {
		return reserved // waiting for more while holding some could be for ever
	}
	// A submission larger than everything would wait for ever; it is let in alone.
	return min(int64(in.b.bytes+perRecord*len(in.b.recs)+in.deadSize), in.p.door.limits.InFlightBytes/2)
}

func (in *Intake) judged() Judgement {
	r := &in.receipt
	if len(in.b.letters) > 0 {
		in.bury()
	}
	for len(in.of) < len(in.b.recs) {
		in.of = append(in.of, int32(in.messages)) //nolint:gosec // bounded by the size of a read
	}
	in.messages++
	j := Judgement{Readings: r.Readings, Refused: r.Refused, Wait: in.b.wait}
	if r.Refused > 0 {
		j.First = r.First
		if len(r.Problems) > 0 {
			j.Text, j.Line = r.Problems[0].Reason, r.Problems[0].Line
		}
		clear(r.Problems)
		r.Problems = r.Problems[:0]
	}
	return j
}

// ErrClosed says that the Pipeline takes nothing more.
var ErrClosed = errors.New("ingest: the pipeline is closed")

// Submit hands over what was added; the owner hears of it once. It waits for room among InFlightBytes until ctx ends, of which
// reserved are the caller's already and become the Pipeline's; the error is ctx's or ErrClosed, and then nothing is stored, the
// owner hears nothing, and reserved are still the caller's. The Intake is given back either way.
func (in *Intake) Submit(ctx context.Context, owner Owner, reserved int64) error {
	p, b := in.p, in.b
	b.count()
	size := in.Size(reserved)
	if in.messages == 0 {
		in.drop()
		return nil
	}
	if n := size - reserved; n > 0 && !p.door.TryReserve(n) {
		if err := p.door.Reserve(ctx, n); err != nil {
			in.drop()
			return err
		}
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		p.door.Unreserve(size - reserved)
		in.drop()
		return ErrClosed
	}
	first := len(p.rounds) == 0
	r := p.last()
	s := span{
		owner: owner, arrived: b.now, rec: len(r.recs), recs: len(b.recs), letter: len(r.letters), end: len(r.letters) + len(in.dead),
		messages: in.messages, bytes: size, ticket: in.ticket,
	}
	for i := range b.recs {
		key, data := r.keep(b.recs[i].Key, b.recs[i].Data)
		r.recs = append(r.recs, stream.Record{Key: key, Data: data})
	}
	r.of = append(r.of, in.of...)
	r.letters = append(r.letters, in.dead...)
	r.spans = append(r.spans, s)
	r.bytes += size
	r.bytes0 += in.bytes0
	r.ticket = max(r.ticket, in.ticket)
	p.mu.Unlock()
	if first {
		p.signal()
	}
	in.bytes0 = 0
	in.drop()
	return nil
}

// bury makes dead letters of what was refused. They are copies: what they come from is borrowed.
func (in *Intake) bury() {
	b := in.b
	for i := range b.letters {
		rec, err := b.letters[i].record(in.p.door.name, b)
		if err != nil { // a DeadLetter always marshals
			panic("ingest: bug: " + err.Error())
		}
		rec.Key = strings.Clone(rec.Key)
		in.dead = append(in.dead, rec)
		in.deadSize += len(rec.Data) + perRecord
	}
	clear(b.letters)
	b.letters, b.letterBytes = b.letters[:0], 0
}

// drop forgets what was added and gives the Intake back.
func (in *Intake) drop() {
	b := in.b
	if in.bytes0 > 0 { // not submitted
		in.p.held0.Add(-in.bytes0)
	}
	clear(b.recs)
	clear(in.dead)
	b.recs, b.lines, in.dead = b.recs[:0], b.lines[:0], in.dead[:0]
	b.bytes, in.deadSize, b.payload, b.rest = 0, 0, nil, nil
	in.messages, in.of, in.bytes0, in.ticket = 0, in.of[:0], 0, 0
	in.p.intake.Put(in)
}
