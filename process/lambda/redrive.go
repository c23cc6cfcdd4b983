package lambda

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/milepost/milepost/ingest/kinesisapi/sequence"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// A RedriveReport says what came of records that were given up once and invoked again.
type RedriveReport struct {
	Documents int      `json:"documents"` // failure documents and dead letters that were read
	Records   int      `json:"records"`   // processed
	Failed    int      `json:"failed"`    // that failed again; their documents stay where they are
	Missing   int      `json:"missing"`   // that retention has removed
	Errors    []string `json:"errors,omitempty"`
}

const maxRedriveErrors = 10

func (p *RedriveReport) fail(n int, err error) {
	p.Failed += n
	if len(p.Errors) < maxRedriveErrors {
		p.Errors = append(p.Errors, err.Error())
	}
}

// Redrive invokes a mapping's function again with what it gave up: the records of doc, or without one, of every document that is at
// the mapping's destination and, for a mapping without a destination, of its dead letters. What succeeded is not redriven a second
// time: objects move below redriven/, and of a stream the place is kept. What fails again is tried once, and again by the next redrive.
func (r *Registry) Redrive(ctx context.Context, uuid string, doc *FailureDocument) (RedriveReport, error) {
	var report RedriveReport
	m := r.mapping(uuid)
	if m == nil {
		return report, fmt.Errorf("redrive: there is no mapping %s: see the list of functions", uuid)
	}
	d := m.view().def
	h, err := r.newRunning(d, &m.result)
	if err != nil {
		return report, fmt.Errorf("redrive: %w", err)
	}
	h.reading.window = false // its windows are closed
	v := &redrive{h: h, report: &report}
	if doc != nil {
		_, err := v.document(ctx, doc)
		return report, err
	}
	if d.OnFailure == "" {
		if r.cfg.DeadLetters == nil {
			return report, errors.New("redrive: the mapping has no destination, and there is no stream of dead letters")
		}
		return report, v.fromStream(ctx, "dead letters", r.cfg.DeadLetters, v.letter)
	}
	t, err := parseTarget(d.OnFailure, true)
	if err != nil {
		return report, fmt.Errorf("redrive: %w", err)
	}
	switch t.kind {
	case toStream:
		log, err := r.cfg.Stream(t.name)
		if err != nil {
			return report, fmt.Errorf("redrive: open stream %s: %w", t.name, err)
		}
		return report, v.fromStream(ctx, t.name, log, v.parcel)
	case toBucket:
		return report, v.fromDir(ctx, r.cfg.FS.PathJoin(r.cfg.Buckets, t.name))
	case toDir:
		return report, v.fromDir(ctx, t.name)
	case toHTTP:
	}
	return report, errors.New("redrive: documents that were posted are not kept here: send the document with the request")
}

// A redrive is one call of Redrive.
type redrive struct {
	h      *running
	report *RedriveReport
}

// document invokes the records of a failure document; true: all succeeded.
func (v *redrive) document(ctx context.Context, doc *FailureDocument) (bool, error) {
	v.report.Documents++
	first, ok1 := sequence.Parse(doc.Batch.First)
	last, ok2 := sequence.Parse(doc.Batch.Last)
	if !ok1 || !ok2 || first.Number > last.Number || first.Number == 0 {
		return false, fmt.Errorf("redrive: %q to %q are not sequence numbers of one shard", doc.Batch.First, doc.Batch.Last)
	}
	if doc.Batch.StreamARN != v.h.streamARN {
		return false, fmt.Errorf("redrive: the document is of %s, the mapping reads %s", doc.Batch.StreamARN, v.h.streamARN)
	}
	recs, err := v.read(ctx, doc.Batch.Shard, first.Number, last.Number)
	if err != nil {
		return false, err
	}
	// Between the first and the last there may be records of other lanes, which were none of this document's.
	if n := v.h.def.Parallel; n > 1 && len(recs) > doc.Batch.Records {
		lane := process.LaneOf(recs[0].Key, n)
		own := slices.DeleteFunc(slices.Clone(recs), func(r stream.Record) bool { return process.LaneOf(r.Key, n) != lane })
		if len(own) == doc.Batch.Records {
			recs = own
		} // or else the factor has changed since: rather too many than too few
	}
	v.report.Missing += max(0, doc.Batch.Records-len(recs))
	return v.invoke(ctx, doc.Batch.Shard, recs)
}

// read reads the records of a shard from one number to another that the mapping's filter lets pass.
func (v *redrive) read(ctx context.Context, shard stream.ShardID, first, last uint64) ([]stream.Record, error) {
	o, err := v.h.options()
	if err != nil {
		return nil, fmt.Errorf("redrive: %w", err)
	}
	rd, err := v.h.log.Read(ctx, shard, sequence.Position(first-1))
	if errors.Is(err, stream.ErrNoShard) {
		return nil, nil // retention has removed it
	}
	if err != nil {
		return nil, fmt.Errorf("redrive: read %s: %w", shard, err)
	}
	defer rd.Close() //nolint:errcheck // a reader writes nothing
	var out []stream.Record
	tip, known := uint64(0), false
	if t, ok := v.h.log.(stream.Tipper); ok {
		at, err := t.Tip(ctx, shard)
		if err != nil {
			return nil, fmt.Errorf("redrive: end of %s: %w", shard, err)
		}
		tip, known = sequence.Of(at.Pos), true
	}
	if known && tip < first {
		return nil, nil
	}
	for {
		recs, err := rd.Next(ctx, 1000)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("redrive: read %s: %w", shard, err)
		}
		for i := range recs {
			n := sequence.Of(recs[i].Pos)
			if n > last {
				return out, nil
			}
			if o.Filter == nil || o.Filter(&recs[i]) {
				out = append(out, kept(&recs[i]))
			}
		}
		if n := sequence.Of(recs[len(recs)-1].Pos); n >= last || known && n >= tip {
			return out, nil
		}
	}
}

// kept is a copy of a borrowed record.
func kept(r *stream.Record) stream.Record {
	return stream.Record{Key: strings.Clone(r.Key), Data: slices.Clone(r.Data), Shard: r.Shard, Pos: stream.Position(strings.Clone(string(r.Pos))), Time: r.Time}
}

// redriveTries is how often a throttled invocation is tried again, each after a second or what the function asks for.
const redriveTries = 30

// invoke runs the function on records of one shard, a batch at a time; true: all succeeded.
func (v *redrive) invoke(ctx context.Context, shard stream.ShardID, recs []stream.Record) (bool, error) {
	all := true
	d := v.h.def
	for len(recs) > 0 {
		n, bytes := 0, 0
		for n < len(recs) && n < d.BatchSize {
			bytes += v.h.src.overhead() + len(recs[n].Key) + len(recs[n].Data)/3*4
			if n > 0 && bytes > maxPayload {
				break
			}
			n++
		}
		batch := recs[:n]
		recs = recs[n:]
		in := &process.Invocation{
			ID: "redrive/" + d.Handler + "/" + string(shard) + "/" + string(batch[0].Pos) + "-" + string(batch[n-1].Pos), Attempt: 1, Shard: shard, Records: batch,
		}
		res, err := v.h.Handle(ctx, in)
		var no *process.NotRunError
		for try := 0; errors.As(err, &no) && try < redriveTries; try++ {
			if !sleep(ctx, max(no.After, time.Second)) {
				return false, ctx.Err()
			}
			res, err = v.h.Handle(ctx, in)
		}
		if errors.As(err, &no) {
			return false, fmt.Errorf("redrive: %w", err)
		}
		if err == nil {
			err = v.emit(ctx, res.Output)
		}
		if err != nil {
			all = false
			v.report.fail(n, err)
			continue
		}
		done := n
		if res.Failed != "" {
			done = slices.IndexFunc(batch, func(r stream.Record) bool { return r.Pos == res.Failed })
			all = false
			v.report.fail(n-done, errors.New(res.Reason))
		}
		v.report.Records += done
	}
	return all, nil
}

func (v *redrive) emit(ctx context.Context, out []stream.Record) error {
	if len(out) == 0 {
		return nil
	}
	log, err := v.h.r.cfg.Stream(v.h.def.Output)
	if err != nil {
		return fmt.Errorf("open stream %s: %w", v.h.def.Output, err)
	}
	if err := log.Append(ctx, out); err != nil {
		return fmt.Errorf("append output to %s: %w", v.h.def.Output, err)
	}
	return nil
}

// fromDir redrives the objects of the mapping below a directory.
func (v *redrive) fromDir(ctx context.Context, dir string) error {
	fs := v.h.r.cfg.FS
	prefix := "aws/lambda/" + v.h.def.UUID
	return walk(fs, fs.PathJoin(dir, "aws", "lambda", v.h.def.UUID), prefix, func(file, name string) error {
		if strings.HasSuffix(name, ".tmp") {
			return nil
		}
		b, err := readFile(fs, file)
		if err != nil {
			return fmt.Errorf("redrive: read %s: %w", file, err)
		}
		var doc FailureDocument
		if err := json.Unmarshal(b, &doc); err != nil {
			v.report.fail(0, fmt.Errorf("%s is not a failure document: %w", file, err))
			return nil
		}
		if ok, err := v.document(ctx, &doc); err != nil || !ok {
			if err != nil && ctx.Err() == nil {
				v.report.fail(doc.Batch.Records, err)
				return nil
			}
			return err
		}
		if err := writeObject(fs, dir, "redriven/"+name, b); err != nil {
			return err
		}
		return fs.Remove(file)
	})
}

// walk calls f for each file below a directory, in the order of names, which is that of time.
func walk(fs vfs.FS, dir, name string, f func(file, name string) error) error {
	list, err := fs.List(dir)
	if err != nil {
		if _, statErr := fs.Stat(dir); statErr != nil {
			return nil //nolint:nilerr // there is none
		}
		return fmt.Errorf("redrive: list %s: %w", dir, err)
	}
	slices.Sort(list)
	for _, n := range list {
		file := fs.PathJoin(dir, n)
		st, err := fs.Stat(file)
		if err != nil {
			return fmt.Errorf("redrive: %w", err)
		}
		if st.IsDir() {
			err = walk(fs, file, name+"/"+n, f)
		} else {
			err = f(file, name+"/"+n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func readFile(fs vfs.FS, name string) ([]byte, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	return b, errors.Join(err, f.Close())
}

// maxOwed is how many documents of a shard may have failed again; then a redrive goes no further until some succeed.
const maxOwed = 1000

// A place is how far a stream's shard was redriven: up to at, except for what failed again. It is kept as positions, a line each.
type place struct {
	at   stream.Position
	owed []stream.Position
}

func readPlace(b []byte) place {
	lines := strings.Split(string(b), "\n")
	p := place{at: stream.Position(lines[0])}
	for _, l := range lines[1:] {
		p.owed = append(p.owed, stream.Position(l))
	}
	return p
}

func (p place) append(b []byte) []byte {
	b = append(b, p.at...)
	for _, o := range p.owed {
		b = append(append(b, '\n'), o...)
	}
	return b
}

// fromStream redrives what failed the last time, and then what is in a stream since.
func (v *redrive) fromStream(ctx context.Context, name string, log stream.Log, each func(context.Context, []byte) (bool, error)) error {
	store := v.h.r.cfg.Store
	shards, err := log.Shards(ctx)
	if err != nil {
		return fmt.Errorf("redrive: list shards of %s: %w", name, err)
	}
	tipper, ok := log.(stream.Tipper)
	if !ok {
		return fmt.Errorf("redrive: the end of stream %s is not known", name)
	}
	for _, s := range shards {
		key := []byte("lambda/redriven/" + v.h.def.UUID + "/" + name + "/" + string(s.ID))
		var p place
		err := store.View(ctx, func(r state.Reader) error {
			b, err := r.Get(key)
			p = readPlace(b)
			return err
		})
		if err != nil {
			return fmt.Errorf("redrive: %w", err)
		}
		tip, err := tipper.Tip(ctx, s.ID)
		if err != nil {
			return fmt.Errorf("redrive: end of %s: %w", name, err)
		}
		save := func() error {
			// What was done is done, even if the caller has gone.
			err := store.Update(context.WithoutCancel(ctx), func(tx state.Tx) error { return tx.Set(key, p.append(nil)) })
			if err != nil {
				return fmt.Errorf("redrive: keep the place: %w", err)
			}
			return nil
		}
		if err := v.again(ctx, log, s.ID, &p, save, each); err != nil {
			return err
		}
		if err := v.onward(ctx, log, s.ID, &p, tip.Pos, save, each); err != nil {
			return err
		}
	}
	return nil
}

// again redrives what failed the last time.
func (v *redrive) again(ctx context.Context, log stream.Log, id stream.ShardID, p *place, save func() error, each func(context.Context, []byte) (bool, error)) error {
	for _, pos := range slices.Clone(p.owed) {
		data, found, err := recordAt(ctx, log, id, pos)
		if err != nil {
			return fmt.Errorf("redrive: read %s: %w", id, err)
		}
		ok := true
		if !found { // retention has removed the document
			v.report.Missing++
		} else if ok, err = each(ctx, data); err != nil {
			return err
		}
		if ok {
			p.owed = slices.DeleteFunc(p.owed, func(o stream.Position) bool { return o == pos })
			if err := save(); err != nil {
				return err
			}
		}
	}
	return nil
}

// recordAt reads one record.
func recordAt(ctx context.Context, log stream.Log, id stream.ShardID, pos stream.Position) ([]byte, bool, error) {
	rd, err := log.Read(ctx, id, sequence.Position(sequence.Of(pos)-1))
	if err != nil {
		return nil, false, err
	}
	defer rd.Close() //nolint:errcheck // a reader writes nothing
	recs, err := rd.Next(ctx, 1)
	if errors.Is(err, io.EOF) || err == nil && recs[0].Pos != pos {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return slices.Clone(recs[0].Data), true, nil
}

// onward redrives a shard from its place to tip.
func (v *redrive) onward(ctx context.Context, log stream.Log, id stream.ShardID, p *place, tip stream.Position, save func() error, each func(context.Context, []byte) (bool, error)) error {
	if p.at >= tip {
		return nil
	}
	rd, err := log.Read(ctx, id, p.at)
	if err != nil {
		return fmt.Errorf("redrive: read %s: %w", id, err)
	}
	defer rd.Close() //nolint:errcheck // a reader writes nothing
	for p.at < tip {
		recs, err := rd.Next(ctx, 100)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("redrive: read %s: %w", id, err)
		}
		for i := range recs {
			pos := stream.Position(strings.Clone(string(recs[i].Pos)))
			if pos > tip { // written meanwhile, perhaps by this redrive
				p.at = tip
				break
			}
			if len(p.owed) >= maxOwed {
				return errors.Join(fmt.Errorf("redrive: %d documents of %s failed again: mend the function, then redrive the rest", maxOwed, id), save())
			}
			ok, err := each(ctx, recs[i].Data)
			if err != nil {
				return errors.Join(err, save())
			}
			if p.at = pos; !ok {
				p.owed = append(p.owed, pos)
			}
		}
		if err := save(); err != nil {
			return err
		}
	}
	return nil
}

// parcel redrives a record of an on-failure stream, if it is of this mapping; false: it failed again.
func (v *redrive) parcel(ctx context.Context, data []byte) (bool, error) {
	var doc FailureDocument
	if json.Unmarshal(data, &doc) != nil || doc.RequestContext.FunctionARN != v.h.functionARN || doc.Batch.StreamARN != v.h.streamARN {
		return true, nil //nolint:nilerr // somebody else's
	}
	ok, err := v.document(ctx, &doc)
	if err != nil {
		if ctx.Err() != nil {
			return false, err
		}
		v.report.fail(doc.Batch.Records, err)
	}
	return ok, nil
}

// letter redrives a dead letter, if it is of this mapping; false: it failed again.
func (v *redrive) letter(ctx context.Context, data []byte) (bool, error) {
	var l stream.DeadLetter
	if json.Unmarshal(data, &l) != nil || l.Source != "function "+v.h.def.Handler {
		return true, nil //nolint:nilerr // somebody else's
	}
	if l.Position == "" {
		return v.parcel(ctx, l.Data)
	}
	v.report.Documents++
	n := sequence.Of(l.Position)
	recs, err := v.read(ctx, l.Shard, n, n)
	if err != nil {
		return false, err
	}
	if len(recs) == 0 && l.Cut == 0 { // retention has removed it, but the letter has it
		recs = []stream.Record{{Key: l.Key, Data: l.Data, Shard: l.Shard, Pos: l.Position, Time: l.At}}
	}
	if len(recs) == 0 {
		v.report.Missing++
		return true, nil
	}
	return v.invoke(ctx, l.Shard, recs)
}
