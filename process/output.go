package process

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// An output appends what functions put out to one stream, in the order in which it was committed.
//
// The steps of functions leave their output in the store's outbox, as effects: a step happens once (its checkpoint is compared
// and set), so each effect is there once. To append it once too, whatever crashes between:
//
//  1. A note is written, on disk before the next point: which effects are about to be appended, and where each shard of the
//     stream ends.
//  2. Their records are appended, which is durable when it returns.
//  3. The effects are marked done. That is not synced, but a store loses no write without losing all later ones: when the
//     note of the next effects is on disk, so is this.
//
// If some of the noted effects are still pending at a start, or an append failed in a way that leaves its outcome open, the
// stream is read from the noted ends, shards opened since from their beginning: what is found there of their records, key and data
// compared, has been appended, and the rest follows.
//
// Its limits: another producer that appends the very same key and data between the note and that look is taken for us, and a
// stream whose retention removes records between the two makes us repeat them. An append that is retried because one shard
// refused it may overtake records of other keys, not of the same.
type output struct {
	o    *Outbox
	name string
	kind string
	note []byte // key of the note
	log  stream.Log

	// The goroutine of the output owns these.
	began   bool
	most    int // effects to take at once
	batch   []state.Effect
	recs    []stream.Record // what is left to append of the batch
	effect  []int           // which effect of the batch each is of
	tips    map[stream.ShardID]stream.Position
	look    bool // how much of recs is in the log is not known
	single  bool // append them one by one, as one is too large
	noted   bool // a note is in the store
	sent    prometheus.Counter
	backlog prometheus.Gauge

	mu    sync.Mutex    // guards the two below
	bytes int           // committed, not yet appended
	room  chan struct{} // closed and replaced when bytes sinks
}

const (
	outputKind    = "output:" // effect kinds of outputs begin so; the stream's name follows
	outputNotes   = ownKeys + "\x00output\x00"
	outputBacklog = 64 << 20 // bytes that may wait; then functions do
	admitLook     = time.Second
	outputBytes   = 4 << 20 // to append at once, more or less
)

func (o *Outbox) known() (names []string, err error) {
	err = o.cfg.Store.View(context.Background(), func(r state.Reader) error {
		return r.Scan([]byte(outputNotes), state.PrefixEnd([]byte(outputNotes)), func(k, _ []byte) error {
			names = append(names, string(k[len(outputNotes):]))
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read which outputs there are: %w", err)
	}
	return names, nil
}

// open returns the output to a stream, which is known from then on, after a restart too.
func (o *Outbox) open(ctx context.Context, name string) (*output, error) {
	o.mu.Lock()
	u := o.outputs[name]
	o.mu.Unlock()
	if u != nil {
		return u, nil
	}
	key := []byte(outputNotes + name)
	if err := o.cfg.Store.Update(ctx, func(tx state.Tx) error {
		if v, err := tx.Get(key); err != nil || v != nil {
			return err
		}
		return tx.Set(key, []byte("{}"))
	}); err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.running || o.stopped {
		return nil, fmt.Errorf("output to stream %s: the outbox does not run: start it before the runner", name)
	}
	return o.beginLocked(name), nil
}

func (o *Outbox) beginLocked(name string) *output {
	u := o.outputs[name]
	if u == nil {
		u = &output{
			o: o, name: name, kind: outputKind + name, note: []byte(outputNotes + name), most: 16, room: make(chan struct{}),
			sent: o.sent.WithLabelValues(name), backlog: o.backlog.WithLabelValues(name),
		}
		o.outputs[name] = u
		o.posting.Go(func() { o.carry("output to "+name, u.some) }) // Stop waits
	}
	return u
}

// admit waits until there is room for more.
func (u *output) admit(ctx context.Context) error {
	for {
		u.mu.Lock()
		full, room := u.bytes >= outputBacklog, u.room
		u.mu.Unlock()
		if !full {
			return nil
		}
		look := time.NewTimer(admitLook)
		select {
		case <-room:
		case <-look.C:
			// A step that was given up has counted what never came, and if nothing else waits nothing will say so.
			if effects, _, err := u.o.cfg.Store.Pending(ctx, u.kind, 1); err == nil && len(effects) == 0 {
				u.empty()
			}
		case <-ctx.Done():
			look.Stop()
			return ctx.Err()
		}
		look.Stop()
	}
}

// added counts what lanes are about to commit, and less than nothing for what was appended. It need not be exact: empty sets it
// right.
func (u *output) added(n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.bytes = max(0, u.bytes+n)
	u.backlog.Set(float64(u.bytes))
	if n < 0 {
		close(u.room)
		u.room = make(chan struct{})
	}
}

func (u *output) empty() {
	u.mu.Lock()
	n := u.bytes
	u.mu.Unlock()
	if n > 0 {
		u.added(-n)
	}
}

// emit makes the effect that puts records out.
func (u *output) emit(id string, recs []stream.Record) state.Effect {
	n := binary.MaxVarintLen64
	for i := range recs {
		n += len(recs[i].Key) + len(recs[i].Data) + 2*binary.MaxVarintLen32
	}
	b := binary.AppendUvarint(make([]byte, 0, n), uint64(len(recs)))
	for i := range recs {
		b = binary.AppendUvarint(b, uint64(len(recs[i].Key)))
		b = append(b, recs[i].Key...)
		b = binary.AppendUvarint(b, uint64(len(recs[i].Data)))
		b = append(b, recs[i].Data...)
	}
	return state.Effect{ID: id, Kind: u.kind, Data: b}
}

var errOutputCut = errors.New("output in the outbox is cut short")

func readOutput(b []byte, to []stream.Record) ([]stream.Record, error) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)) {
		return to, errOutputCut
	}
	b = b[w:]
	field := func() ([]byte, bool) {
		n, w := binary.Uvarint(b)
		if w <= 0 || n > uint64(len(b)-w) {
			return nil, false
		}
		v := b[w : w+int(n) : w+int(n)]
		b = b[w+int(n):]
		return v, true
	}
	for range n {
		k, ok := field()
		d, ok2 := field()
		if !ok || !ok2 {
			return to, errOutputCut
		}
		to = append(to, stream.Record{Key: string(k), Data: d})
	}
	return to, nil
}

// An outputNote is what is noted before an append.
type outputNote struct {
	IDs  []string                           `json:"ids,omitempty"`
	Tips map[stream.ShardID]stream.Position `json:"tips,omitempty"`
}

// some appends one batch, or goes on with the one that failed.
func (u *output) some() (done int, changed <-chan struct{}, err error) {
	ctx := u.o.work
	if u.o.cfg.Streams == nil {
		return 0, nil, fmt.Errorf("output to stream %s: the outbox was given no streams", u.name)
	}
	if !u.began {
		if err := u.begin(ctx); err != nil {
			return 0, nil, err
		}
	}
	if len(u.batch) == 0 {
		effects, changed, err := u.o.cfg.Store.Pending(ctx, u.kind, u.most)
		if err != nil {
			return 0, nil, err
		}
		if len(effects) == 0 {
			u.empty()
			return 0, changed, u.forget(ctx)
		}
		if err := u.take(effects); err != nil {
			return 0, nil, err
		}
		if err := u.write(ctx); err != nil {
			u.batch = nil
			return 0, nil, err
		}
	}
	if err := u.append(ctx); err != nil {
		return 0, nil, fmt.Errorf("append to stream %s: %w", u.name, err)
	}
	ids := make([]string, len(u.batch))
	size := 0
	for i, e := range u.batch {
		ids[i] = e.ID
		size += len(e.Data)
	}
	if err := u.o.cfg.Store.Done(ctx, u.kind, ids...); err != nil {
		return 0, nil, fmt.Errorf("mark output to %s done: %w", u.name, err)
	}
	switch {
	case size > outputBytes:
		u.most = max(1, u.most/2)
	case len(ids) == u.most && size < outputBytes/4:
		u.most = min(1024, 2*u.most)
	}
	u.added(-size)
	u.batch = nil
	return len(ids), nil, nil
}

// begin finds out what an earlier run has left: how much waits, and what it may have appended already.
func (u *output) begin(ctx context.Context) error {
	var note outputNote
	err := u.o.cfg.Store.View(ctx, func(r state.Reader) error {
		v, err := r.Get(u.note)
		if err != nil || len(v) == 0 {
			return err
		}
		return json.Unmarshal(v, &note)
	})
	if err != nil {
		return fmt.Errorf("read note of output to %s: %w", u.name, err)
	}
	// What waits is bounded by outputBacklog and the batches that lanes had in their hands.
	effects, _, err := u.o.cfg.Store.Pending(ctx, u.kind, 1<<30)
	if err != nil {
		return err
	}
	size := 0
	noted := map[string]bool{}
	for _, id := range note.IDs {
		noted[id] = true
	}
	var left []state.Effect
	for _, e := range effects {
		size += len(e.Data)
		if noted[e.ID] {
			left = append(left, e)
		}
	}
	u.noted = len(note.IDs) > 0
	if len(left) > 0 {
		if err := u.take(left); err != nil {
			return err
		}
		u.tips, u.look = note.Tips, true
	}
	u.added(size)
	u.began = true
	return nil
}

func (u *output) take(effects []state.Effect) error {
	u.batch, u.recs, u.effect, u.look, u.single = effects, nil, nil, false, false
	for i, e := range effects {
		var err error
		if u.recs, err = readOutput(e.Data, u.recs); err != nil {
			u.batch = nil
			return fmt.Errorf("read output %s: %w", e.ID, err)
		}
		for len(u.effect) < len(u.recs) {
			u.effect = append(u.effect, i)
		}
	}
	return nil
}

// write writes the note.
func (u *output) write(ctx context.Context) error {
	log, err := u.stream()
	if err != nil {
		return err
	}
	shards, err := log.Shards(ctx)
	if err != nil {
		return fmt.Errorf("list shards of stream %s: %w", u.name, err)
	}
	note := outputNote{Tips: map[stream.ShardID]stream.Position{}}
	for _, s := range shards {
		if note.Tips[s.ID], err = tipOf(ctx, log, s.ID); err != nil {
			return fmt.Errorf("end of %s of stream %s: %w", s.ID, u.name, err)
		}
	}
	for _, e := range u.batch {
		note.IDs = append(note.IDs, e.ID)
	}
	v, err := json.Marshal(note)
	if err != nil {
		return err
	}
	if err := u.o.cfg.Store.Update(ctx, func(tx state.Tx) error { return tx.Set(u.note, v) }); err != nil {
		return fmt.Errorf("write note of output to %s: %w", u.name, err)
	}
	u.tips, u.noted = note.Tips, true
	return nil
}

// forget empties the note when there is nothing to do, after the Done of what it names. The key stays: it names the stream.
func (u *output) forget(ctx context.Context) error {
	if !u.noted {
		return nil
	}
	if err := u.o.cfg.Store.Update(ctx, func(tx state.Tx) error { return tx.Set(u.note, []byte("{}")) }); err != nil {
		return err
	}
	u.noted = false
	return nil
}

func (u *output) stream() (stream.Log, error) {
	if u.log == nil {
		log, err := u.o.cfg.Streams(u.name)
		if err != nil {
			return nil, fmt.Errorf("output to stream %s: %w", u.name, err)
		}
		u.log = log
	}
	return u.log, nil
}

// append appends what is left of the batch.
func (u *output) append(ctx context.Context) error {
	log, err := u.stream()
	if err != nil {
		return err
	}
	if u.look {
		if err := u.find(ctx, log); err != nil {
			return err
		}
		u.look = false
	}
	for len(u.recs) > 0 {
		n := len(u.recs)
		if u.single {
			n = 1
		}
		// It is not interrupted: what would become of it could not be known.
		err := log.Append(context.WithoutCancel(ctx), u.recs[:n])
		var partial *stream.PartialError
		switch {
		case err == nil:
			u.sent.Add(float64(n))
			u.recs, u.effect = u.recs[n:], u.effect[n:]
			continue
		case errors.Is(err, stream.ErrTooLarge) && n == 1:
			if err := u.refuse(ctx, err); err != nil {
				return err
			}
			u.recs, u.effect = u.recs[1:], u.effect[1:]
			continue
		case errors.As(err, &partial):
			u.keep(func(i int) bool { return u.recs[i].Pos == "" })
			if errors.Is(err, stream.ErrTooLarge) {
				u.single = true
				continue
			}
		case errors.Is(err, stream.ErrTooLarge):
			u.look, u.single = true, true
			if err := u.find(ctx, log); err != nil {
				return err
			}
			u.look = false
			continue
		case errors.Is(err, stream.ErrFull):
		default:
			u.look, u.log = true, nil // it may have been opened anew
		}
		return err
	}
	return nil
}

// keep keeps of what is left to append the records that keep names.
func (u *output) keep(keep func(i int) bool) {
	n := 0
	for i := range u.recs {
		if keep(i) {
			u.recs[n], u.effect[n] = stream.Record{Key: u.recs[i].Key, Data: u.recs[i].Data}, u.effect[i]
			n++
		}
	}
	u.sent.Add(float64(len(u.recs) - n))
	u.recs, u.effect = u.recs[:n], u.effect[:n]
}

// refuse dead-letters the first record that is left, which the stream will never take.
func (u *output) refuse(ctx context.Context, why error) error {
	e, rec := u.batch[u.effect[0]], u.recs[0]
	n := 0
	for n < len(u.effect) && u.effect[n] == u.effect[0] {
		n++ // records from the end of the effect's: the same for the same record
	}
	id := fmt.Sprintf("output/%s/%s/%d", u.name, e.ID, n)
	letter := stream.DeadLetter{
		ID: id, Reason: fmt.Sprintf("output to stream %s: %v", u.name, why), Source: "output " + u.name, Key: rec.Key,
		Stream: u.name, At: time.Now().UTC(), Data: rec.Data,
	}
	r, err := letter.Record()
	if err != nil {
		return fmt.Errorf("write dead letter %s: %w", id, err)
	}
	return u.o.cfg.Store.Update(ctx, func(tx state.Tx) error {
		return tx.Emit(state.Effect{ID: id, Kind: DeadLetterKind, Data: r.Data})
	})
}

// find takes out of what is to be appended what the stream already has after the noted ends.
func (u *output) find(ctx context.Context, log stream.Log) error {
	where := map[string][]int{}
	var name bytes.Buffer
	for i := range u.recs {
		k := nameOf(&name, &u.recs[i])
		where[string(k)] = append(where[string(k)], i)
	}
	found := make([]bool, len(u.recs))
	shards, err := log.Shards(ctx)
	if err != nil {
		return fmt.Errorf("list shards: %w", err)
	}
	for _, s := range shards {
		tip, err := tipOf(ctx, log, s.ID)
		if err != nil {
			return fmt.Errorf("end of %s: %w", s.ID, err)
		}
		if err := each(ctx, log, s.ID, u.tips[s.ID], tip, func(r *stream.Record) {
			k := nameOf(&name, r)
			if at := where[string(k)]; len(at) > 0 {
				found[at[0]] = true
				where[string(k)] = at[1:]
			}
		}); err != nil {
			return fmt.Errorf("read %s: %w", s.ID, err)
		}
	}
	u.keep(func(i int) bool { return !found[i] })
	return nil
}

func nameOf(b *bytes.Buffer, r *stream.Record) []byte {
	b.Reset()
	b.Write(binary.AppendUvarint(b.AvailableBuffer(), uint64(len(r.Key))))
	b.WriteString(r.Key)
	b.Write(r.Data)
	return b.Bytes()
}

// each calls f for the records of a shard after one position, up to and including another.
func each(ctx context.Context, log stream.Log, id stream.ShardID, after, until stream.Position, f func(*stream.Record)) error {
	if until <= after {
		return nil
	}
	r, err := log.Read(ctx, id, after)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // nothing was written
	for {
		recs, err := r.Next(ctx, readMost)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for i := range recs {
			if recs[i].Pos > until {
				return nil
			}
			f(&recs[i])
		}
		if recs[len(recs)-1].Pos >= until {
			return nil
		}
	}
}

// tipOf returns the position of a shard's newest record.
func tipOf(ctx context.Context, log stream.Log, id stream.ShardID) (stream.Position, error) {
	if t, ok := log.(stream.Tipper); ok {
		tip, err := t.Tip(ctx, id)
		return tip.Pos, err
	}
	return log.Seek(ctx, id, time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC))
}
