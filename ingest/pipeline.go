package ingest

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/milepost/milepost/stream"
)

// A Pipeline stores what many connections bring without any of them waiting for the disk: a connection judges what one read has
// brought with an Intake and submits it; one Append stores what all of them have submitted meanwhile; then each is told, in the
// order in which it submitted (P1: never before everything is durable).
//
// While the log is full the Pipeline keeps what it has and tries again; nobody is told anything, InFlightBytes fill up, and Submit
// waits: that is how a door stops reading. A log that cannot take data for another reason fails what was submitted.
//
// What is promised nothing (QoS 0) has a quarter of InFlightBytes; past it Intake.Add waits for a second at most and then drops,
// counted, until the log moves again.
type Pipeline struct {
	door   *Door
	also   func(ctx context.Context, ticket uint64) error
	ctx    context.Context //nolint:containedctx // the Pipeline's own; ends waiting for the log
	cancel context.CancelFunc
	work   sync.WaitGroup // storing, answering, burying
	done   chan *round    // stored; closed at the end
	bury   chan *round    // with dead letters to store
	intake sync.Pool

	least0 int64        // bytes that QoS 0 may hold
	held0  atomic.Int64 // bytes that it holds

	mu     sync.Mutex // guards what follows; held to copy what one read brought
	rounds []*round   // submitted, oldest first
	spare  []*round
	closed bool
	room0  chan struct{} // closed when QoS 0 may have room again; nil: nobody waits
	stuck0 bool          // a second has passed since it last had
	wake   chan struct{} // capacity 1: rounds is not empty
}

const (
	roundRecords = 1 << 15 // a round takes no further submissions beyond this many records or
	roundBytes   = 4 << 20 // this many bytes
	chunkBytes   = 256 << 10
	spareRounds  = 4
	perRecord    = 128         // bytes that a record costs besides its payload
	patience0    = time.Second // how long Add waits for room
)

// An Owner hears what became of what it submitted. Settled is called on one goroutine for all owners, so it must not block.
type Owner interface {
	Settled(s *Settlement)
}

// A Settlement is what became of one submission.
type Settlement struct {
	Messages int    // how many it had
	Bytes    int64  // what it held, as Submit returned it
	Err      error  // nil: all of it is durable. Otherwise nothing may be acknowledged
	Late     []Late // messages that only the log found wrong; they are dead letters
}

// Late is a message whose refusal was not known when it was judged.
type Late struct {
	Message int // of the submission, from 0
	Reason  Reason
	Text    string
}

// round is what one Append stores.
type round struct {
	recs    []stream.Record
	letters []stream.Record
	spans   []span
	of      []int32  // by record: its message within the span
	chunks  [][]byte // of chunkBytes; recs point into them
	chunk   int      // the one that is being filled
	bytes   int64    // taken from InFlightBytes
	bytes0  int64    // of them QoS 0's
	ticket  uint64
	alsoErr error
	logErr  error
	deadErr error
	late    []lateRecord
	buried  chan struct{} // capacity 1
}

// span is one submission within a round.
type span struct {
	owner       Owner
	arrived     time.Time
	rec, recs   int // which records
	letter, end int // which letters
	messages    int
	bytes       int64
	ticket      uint64
}

type lateRecord struct {
	rec  int
	text string
}

// NewPipeline returns a running Pipeline. Also, if not nil, is waited for before a submission with a ticket is answered: the
// largest ticket of a round, once. Close it after its connections.
func (d *Door) NewPipeline(also func(ctx context.Context, ticket uint64) error) *Pipeline {
	p := &Pipeline{
		door: d, also: also, done: make(chan *round, 1), bury: make(chan *round), wake: make(chan struct{}, 1),
		least0: d.limits.InFlightBytes / 4,
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.intake.New = func() any {
		in := &Intake{p: p, b: newBatch(d.catalog)}
		in.b.hold, in.b.door, in.b.receipt = true, d, &in.receipt
		return in
	}
	p.work.Go(p.store)
	p.work.Go(p.buryAll)
	p.work.Go(p.answer)
	return p
}

// Wait returns when there is room for more, or ctx ends. A connection calls it before it takes memory to read into.
func (p *Pipeline) Wait(ctx context.Context) error {
	if p.door.held.Load() < p.door.limits.InFlightBytes*3/4 {
		return nil
	}
	// In line with all others who wait for room, as much as a small read takes.
	n := min(chunkBytes, p.door.limits.InFlightBytes/4)
	if err := p.door.Reserve(ctx, n); err != nil {
		return err
	}
	p.door.Unreserve(n)
	return nil
}

// Close stores and answers what was submitted, and returns. When ctx ends first, what is not stored yet fails.
func (p *Pipeline) Close(ctx context.Context) {
	p.mu.Lock()
	p.closed = true
	p.release0()
	p.mu.Unlock()
	p.signal()
	stop := context.AfterFunc(ctx, p.cancel)
	p.work.Wait()
	stop()
	p.cancel()
}

func (p *Pipeline) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// take0 takes room for a message that is promised nothing, or tells that there is none.
func (p *Pipeline) take0(n int64) bool {
	for {
		if p.held0.Add(n) <= p.least0 {
			return true
		}
		p.held0.Add(-n)
		p.mu.Lock()
		if p.closed || p.stuck0 || p.held0.Load() == 0 {
			p.mu.Unlock()
			return false
		}
		if p.room0 == nil {
			p.room0 = make(chan struct{})
		}
		room := p.room0
		p.mu.Unlock()
		t := time.NewTimer(patience0)
		select {
		case <-room:
			t.Stop()
		case <-t.C:
			p.mu.Lock()
			p.stuck0 = p.stuck0 || p.room0 == room
			p.mu.Unlock()
		}
	}
}

// release0 lets those who wait in take0 look again. The caller holds mu.
func (p *Pipeline) release0() {
	p.stuck0 = false
	if p.room0 != nil {
		close(p.room0)
		p.room0 = nil
	}
}

// store appends round after round. While one is being synced the next one gathers.
func (p *Pipeline) store() {
	defer close(p.done)
	defer close(p.bury)
	for {
		r, closed := p.take()
		if r == nil {
			if closed {
				return
			}
			<-p.wake
			continue
		}
		if len(r.letters) > 0 {
			p.bury <- r
		}
		if len(r.recs) > 0 {
			p.append(r)
		}
		if len(r.letters) > 0 {
			<-r.buried
		}
		if len(r.late) > 0 {
			p.buryLate(r)
		}
		p.done <- r
	}
}

func (p *Pipeline) take() (r *round, closed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.rounds) == 0 {
		return nil, p.closed
	}
	r = p.rounds[0]
	n := copy(p.rounds, p.rounds[1:])
	p.rounds[n] = nil
	p.rounds = p.rounds[:n]
	return r, false
}

// append stores a round's records; those that are not have no Pos afterwards, and logErr says why.
func (p *Pipeline) append(r *round) {
	d := p.door
	err := p.persist(d.log, r.recs, &d.refuses, "log does not take readings; devices wait", "log takes readings again")
	r.logErr = err
	if !errors.Is(err, stream.ErrTooLarge) {
		return
	}
	// Sending it again would not help, so such a record is refused like any other that is too large.
	r.logErr = nil
	for i := range r.recs {
		if r.recs[i].Pos == "" {
			r.late = append(r.late, lateRecord{i, err.Error()})
		}
	}
}

// persist appends records, again and again while the disk is full.
func (p *Pipeline) persist(log stream.Log, recs []stream.Record, refuses *atomic.Bool, bad, good string) error {
	pause := 20 * time.Millisecond
	for {
		err := log.Append(p.ctx, recs)
		switch {
		case err == nil:
			if refuses.Load() && refuses.CompareAndSwap(true, false) {
				p.door.logger.Info(good) //nolint:sloglint // one of two constants
			}
			return nil
		case errors.Is(err, stream.ErrTooLarge):
			return err
		case refuses.CompareAndSwap(false, true):
			p.door.logger.Error(bad, slog.Any("error", err)) //nolint:sloglint // one of two constants
		}
		if !errors.Is(err, stream.ErrFull) || !sleep(p.ctx, pause) {
			return err
		}
		pause = min(2*pause, time.Second)
		// Append forgets the positions of what it is given, so what is stored is not given again. An engine stores the first
		// records of a call, or those of some keys; either way equal keys keep their order.
		for len(recs) > 0 && recs[0].Pos != "" {
			recs = recs[1:]
		}
		if anyStored(recs) {
			return p.persistRest(log, recs, refuses, bad, good)
		}
	}
}

func anyStored(recs []stream.Record) bool {
	for i := range recs {
		if recs[i].Pos != "" {
			return true
		}
	}
	return false
}

// persistRest is persist for the records without position among recs.
func (p *Pipeline) persistRest(log stream.Log, recs []stream.Record, refuses *atomic.Bool, bad, good string) error {
	var rest []stream.Record
	var at []int
	for i := range recs {
		if recs[i].Pos == "" {
			rest, at = append(rest, recs[i]), append(at, i)
		}
	}
	err := p.persist(log, rest, refuses, bad, good)
	for i, j := range at {
		recs[j] = rest[i]
	}
	return err
}

func (p *Pipeline) buryAll() {
	for r := range p.bury {
		r.deadErr = p.buryRecords(r.letters)
		r.buried <- struct{}{}
	}
}

func (p *Pipeline) buryRecords(letters []stream.Record) error {
	d := p.door
	err := p.persist(d.dead, letters, &d.deadBad, "dead-letter stream does not take refused payloads; devices wait", "dead-letter stream takes refused payloads again")
	stored := 0
	for i := range letters {
		if letters[i].Pos != "" {
			stored++
		}
	}
	d.m.deadLetters.Add(float64(stored))
	d.m.deadLost.Add(float64(len(letters) - stored))
	return err
}

// buryLate makes dead letters of what only the log found wrong.
func (p *Pipeline) buryLate(r *round) {
	letters := make([]stream.Record, 0, len(r.late))
	for _, l := range r.late {
		rec := r.recs[l.rec]
		letter, err := stream.DeadLetter{Reason: l.text, Source: p.door.name, Key: rec.Key, At: time.Now().UTC(), Data: rec.Data}.Record()
		if err != nil { // a DeadLetter always marshals
			r.deadErr = err
			return
		}
		letters = append(letters, letter)
	}
	if err := p.buryRecords(letters); err != nil {
		r.logErr = err
		return
	}
	p.door.m.refused[TooLarge].Add(float64(len(letters)))
}

// answer tells the owners, round after round.
func (p *Pipeline) answer() {
	for r := range p.done {
		if r.ticket > 0 && p.also != nil {
			r.alsoErr = p.also(p.ctx, r.ticket)
		}
		now := time.Now()
		stored, late := 0, 0
		for i := range r.spans {
			s := &r.spans[i]
			out := Settlement{Messages: s.messages, Bytes: s.bytes}
			out.Err, out.Late, late = r.outcome(s, late)
			if out.Err == nil {
				stored += s.recs - len(out.Late)
			} else {
				p.door.m.refused[Unavailable].Add(float64(s.recs))
			}
			p.door.m.ack.Observe(now.Sub(s.arrived).Seconds())
			s.owner.Settled(&out)
		}
		p.door.m.readings.Add(float64(stored))
		bytes, bytes0 := r.bytes, r.bytes0
		p.recycle(r)
		p.door.Unreserve(bytes)
		if bytes0 > 0 {
			p.held0.Add(-bytes0)
		}
		p.mu.Lock()
		p.release0()
		p.mu.Unlock()
	}
}

// outcome tells what became of a span.
func (r *round) outcome(s *span, late int) (error, []Late, int) { //nolint:staticcheck // the error is a value here
	var found []Late
	for ; late < len(r.late) && r.late[late].rec < s.rec+s.recs; late++ {
		l := r.late[late]
		found = append(found, Late{Message: int(r.of[l.rec]), Reason: TooLarge, Text: l.text})
	}
	if s.ticket > 0 && r.alsoErr != nil {
		return r.alsoErr, nil, late
	}
	if r.logErr != nil {
		for i := s.rec; i < s.rec+s.recs; i++ {
			if r.recs[i].Pos == "" {
				return r.logErr, nil, late
			}
		}
	}
	if r.deadErr != nil {
		for i := s.letter; i < s.end; i++ {
			if r.letters[i].Pos == "" {
				return r.deadErr, nil, late
			}
		}
	}
	return nil, found, late
}

// recycle keeps a round's memory for the next.
func (p *Pipeline) recycle(r *round) {
	clear(r.recs)
	clear(r.letters)
	clear(r.spans)
	if most := roundBytes / chunkBytes; len(r.chunks) > most {
		clear(r.chunks[most:])
		r.chunks = r.chunks[:most]
	}
	for i := range r.chunks {
		r.chunks[i] = r.chunks[i][:0]
	}
	*r = round{recs: r.recs[:0], letters: r.letters[:0], spans: r.spans[:0], of: r.of[:0], chunks: r.chunks, buried: r.buried}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.spare) < spareRounds {
		p.spare = append(p.spare, r)
	}
}

// last returns the round that gathers. The caller holds mu.
func (p *Pipeline) last() *round {
	if n := len(p.rounds); n > 0 {
		if r := p.rounds[n-1]; len(r.recs)+len(r.letters) < roundRecords && r.bytes < roundBytes {
			return r
		}
	}
	var r *round
	if n := len(p.spare); n > 0 {
		r, p.spare[n-1] = p.spare[n-1], nil
		p.spare = p.spare[:n-1]
	} else {
		r = &round{buried: make(chan struct{}, 1)}
	}
	p.rounds = append(p.rounds, r)
	return r
}

// keep copies a key and data into the round's memory.
func (r *round) keep(key string, data []byte) (string, []byte) {
	n := len(key) + len(data)
	var c []byte
	if n > chunkBytes {
		c = make([]byte, 0, n)
		c = append(append(c, key...), data...)
	} else {
		for r.chunk < len(r.chunks) && chunkBytes-len(r.chunks[r.chunk]) < n {
			r.chunk++
		}
		if r.chunk == len(r.chunks) {
			r.chunks = append(r.chunks, make([]byte, 0, chunkBytes))
		}
		at := &r.chunks[r.chunk]
		from := len(*at)
		*at = append(append(*at, key...), data...)
		c = (*at)[from:]
	}
	return unsafe.String(unsafe.SliceData(c), len(key)), c[len(key):]
}
