package kinesisapi

import (
	"context"
	"errors"
	"net/http"

	"github.com/milepost/milepost/ingest/kinesisapi/sequence"
	"github.com/milepost/milepost/ingest/kinesisapi/wire"
	"github.com/milepost/milepost/stream"
)

// put serves PutRecord and PutRecords.
func (d *Door) put(ctx context.Context, c *call, many bool) error {
	p := d.buffers.put()
	defer d.buffers.donePut(p)
	if err := d.decodePut(c, p, many); err != nil {
		return err
	}
	var name, arn *string
	if p.name != "" {
		name = &p.name
	}
	if p.arn != "" {
		arn = &p.arn
	}
	streamName, err := d.nameOf(name, arn)
	if err != nil {
		return err
	}
	if d.verifier != nil {
		if err := d.access(c, d.streamARN(streamName)); err != nil {
			return err
		}
	}
	m, err := d.usable(streamName)
	if err != nil {
		return err
	}
	if err := d.checkPut(m, p, c); err != nil {
		return err
	}
	if p.dryRun {
		return dryRun(&p.dryRun)
	}
	refused, err := d.appendPut(ctx, m, p, c)
	if err != nil {
		return err
	}
	buf := d.buffers.get()
	defer d.buffers.done(buf)
	if many {
		*buf, err = d.answerMany(ctx, c, m, p, refused, (*buf)[:0])
	} else {
		*buf, err = d.answerOne(ctx, c, m, p, refused, (*buf)[:0])
	}
	if err != nil {
		return err
	}
	d.answer(c, http.StatusOK, *buf)
	return nil
}

// decodePut takes the fast path, and when that has doubts the careful one.
func (d *Door) decodePut(c *call, p *putRequest, many bool) error {
	fast := p.decodePutJSON
	if c.enc == wire.CBOR {
		fast = p.decodePutCBOR
	}
	if fast(c.body, many) && validName(p.name) {
		return nil
	}
	p.reset()
	if many {
		return p.decodeMany(c)
	}
	return p.decodeOne(c)
}

// validName tells whether a name is none or one that the careful path would take.
func validName(name string) bool {
	if len(name) > 128 {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '-') {
			return false
		}
	}
	return true
}

//nolint:gochecknoglobals // compiled plans
var (
	bindPutRecord  = bind[putRecordInput]()
	bindPutRecords = bind[putRecordsInput]()
)

func (p *putRequest) decodeMany(c *call) error {
	in, err := bindPutRecords(c)
	if err != nil {
		return err
	}
	p.name, p.arn, p.dryRun = value(in.StreamName, ""), value(in.StreamARN, ""), value(in.DryRun, false)
	for i := range in.Records {
		if err := p.careful(&in.Records[i]); err != nil {
			return err
		}
	}
	return nil
}

func (p *putRequest) decodeOne(c *call) error {
	in, err := bindPutRecord(c)
	if err != nil {
		return err
	}
	p.name, p.arn, p.dryRun = value(in.StreamName, ""), value(in.StreamARN, ""), value(in.DryRun, false)
	p.order = value(in.SequenceNumberForOrdering, "")
	return p.careful(&putEntry{in.Data, in.PartitionKey, in.ExplicitHashKey})
}

func (p *putRequest) careful(e *putEntry) error {
	var explicit []byte
	if e.ExplicitHashKey != nil {
		explicit = []byte(*e.ExplicitHashKey)
		if _, ok := parseHash(*e.ExplicitHashKey); !ok {
			return invalidf("Invalid ExplicitHashKey. ExplicitHashKey must be in the range: [0, 2^128-1]. Specified value was %s", *e.ExplicitHashKey)
		}
	}
	if !p.add([]byte(*e.PartitionKey), e.Data, explicit) {
		panic("kinesisapi: bug: a record that passed the checks is out of bounds")
	}
	return nil
}

// checkPut tests what depends on the stream.
func (d *Door) checkPut(m *streamMeta, p *putRequest, c *call) error {
	total, most := 0, int(d.maxRecord(m))
	for i := range p.recs {
		size := len(p.recs[i].Data) + len(p.recs[i].Key)
		if total += size; size > most {
			return faultf(typeValidation, "1 validation error detected: Value at 'records.%d.member.data' failed to satisfy constraint: Member must have length less than or equal to %d", i+1, most)
		}
	}
	if total > maxPutBytes {
		return invalidf("Records size exceeds 10 MB limit")
	}
	if p.order != "" {
		s, ok := sequence.Parse(p.order)
		if !ok || s.Arrived > c.now.Unix()+1 {
			return invalidf("ExclusiveMinimumSequenceNumber %s used in PutRecord on stream %s under account %s is invalid.", p.order, m.Name, d.cfg.Account)
		}
	}
	return nil
}

// refusals are the records of a put that the shards' limits refused: by index, the shard.
type refusals map[int]stream.ShardID

// appendPut stores the records that the limits admit. Records that were not stored keep no position. The error is for the case
// that none was, and no limit was the reason: clients then try the whole again.
func (d *Door) appendPut(ctx context.Context, m *streamMeta, p *putRequest, c *call) (refusals, error) {
	if d.cfg.Throttle == ThrottleAWS {
		return d.appendThrottled(ctx, m, p, c)
	}
	err := m.live.log.Append(ctx, p.recs)
	if partial, ok := errors.AsType[*stream.PartialError](err); ok && partial.Failed < len(p.recs) {
		d.cfg.Log.ErrorContext(ctx, "some records were not stored", "stream", m.Name, "failed", partial.Failed, "error", partial.Err)
		return nil, nil
	}
	return nil, err
}

func (d *Door) appendThrottled(ctx context.Context, m *streamMeta, p *putRequest, c *call) (refusals, error) {
	shards, err := m.live.log.Shards(ctx)
	if err != nil {
		return nil, err
	}
	open := openShards(shards)
	refused := refusals{}
	admitted := make([]stream.Record, 0, len(p.recs))
	places := make([]int, 0, len(p.recs))
	for i := range p.recs {
		r := &p.recs[i]
		h := r.Hash
		if h == nil {
			k := stream.KeyHash(r.Key)
			h = &k
		}
		j := 0
		for j+1 < len(open) && !h.Less(open[j+1].From) {
			j++
		}
		n, _ := sequence.ParseShard(string(open[j].ID))
		s, err := m.live.shard(ctx, n)
		if err != nil {
			return nil, err
		}
		if s != nil && !s.admitPut(len(r.Data)+len(r.Key), c.now) {
			s.inRefused.Add(1)
			refused[i] = s.id
			continue
		}
		admitted, places = append(admitted, *r), append(places, i)
	}
	if len(admitted) == 0 {
		return refused, nil
	}
	err = m.live.log.Append(ctx, admitted)
	for i, at := range places {
		p.recs[at] = admitted[i]
	}
	if _, ok := errors.AsType[*stream.PartialError](err); ok && len(refused) > 0 {
		return refused, nil
	}
	return refused, err
}

// stateOf returns the state of the shard that a record went to, with a guess: neighbours often share it.
func (l *live) stateOf(ctx context.Context, id stream.ShardID, guess *shardState) (*shardState, error) {
	if guess != nil && guess.id == id {
		return guess, nil
	}
	n, _ := sequence.ParseShard(string(id))
	s, err := l.shard(ctx, n)
	if err == nil && s == nil {
		err = errNoState
	}
	return s, err
}

var errNoState = errors.New("a record went to a shard that the log does not list")

func tooFast(d *Door, m *streamMeta, id stream.ShardID) string {
	return "Rate exceeded for shard " + string(id) + " in stream " + m.Name + " under account " + d.cfg.Account + "."
}

func (d *Door) answerOne(ctx context.Context, c *call, m *streamMeta, p *putRequest, refused refusals, b []byte) ([]byte, error) {
	if id, is := refused[0]; is {
		return b, faultf(typeThroughput, "%s", tooFast(d, m, id))
	}
	r := &p.recs[0]
	s, err := m.live.stateOf(context.WithoutCancel(ctx), r.Shard, nil)
	if err != nil {
		return b, err
	}
	s.inBytes.Add(uint64(len(r.Data) + len(r.Key)))
	s.inRecords.Add(1)
	e := c.enc
	b = e.AppendString(e.AppendKey(e.OpenMap(b), "ShardId"), string(r.Shard))
	var text [57]byte
	b = e.AppendString(e.AppendKey(b, "SequenceNumber"), alias(s.sequence(sequence.Of(r.Pos), r.Time).Append(text[:0])))
	if m.Key != "" {
		b = e.AppendString(e.AppendKey(b, "EncryptionType"), kms)
	}
	return e.CloseMap(b), nil
}

func (d *Door) answerMany(ctx context.Context, c *call, m *streamMeta, p *putRequest, refused refusals, b []byte) ([]byte, error) {
	e := c.enc
	b = e.OpenList(e.AppendKey(e.OpenMap(b), "Records"))
	// The records are stored: whatever happens to the client, the answer is made from them.
	ctx = context.WithoutCancel(ctx)
	var s *shardState
	var err error
	var text [57]byte
	failed := 0
	bytes, records := uint64(0), uint64(0)
	for i := range p.recs {
		r := &p.recs[i]
		b = e.Separate(b)
		if r.Pos == "" {
			failed++
			typ, why := typeInternal, "Internal service failure."
			if id, is := refused[i]; is {
				typ, why = typeThroughput, tooFast(d, m, id)
			}
			b = e.AppendString(e.AppendKey(e.OpenMap(b), "ErrorCode"), typ)
			b = e.CloseMap(e.AppendString(e.AppendKey(b, "ErrorMessage"), why))
			continue
		}
		if s == nil || s.id != r.Shard {
			if s != nil {
				s.inBytes.Add(bytes)
				s.inRecords.Add(records)
				bytes, records = 0, 0
			}
			if s, err = m.live.stateOf(ctx, r.Shard, s); err != nil {
				return b, err
			}
		}
		bytes += uint64(len(r.Data) + len(r.Key))
		records++
		seq := s.sequence(sequence.Of(r.Pos), r.Time)
		if e == wire.JSON {
			b = append(b, `{"SequenceNumber":"`...)
			b = seq.Append(b)
			b = append(b, `","ShardId":"`...)
			b = append(b, r.Shard...)
			b = append(b, `"}`...)
			continue
		}
		b = e.AppendString(e.AppendKey(e.OpenMap(b), "SequenceNumber"), alias(seq.Append(text[:0])))
		b = e.CloseMap(e.AppendString(e.AppendKey(b, "ShardId"), string(r.Shard)))
	}
	if s != nil {
		s.inBytes.Add(bytes)
		s.inRecords.Add(records)
	}
	b = e.CloseList(b)
	b = e.AppendInt(e.AppendKey(b, "FailedRecordCount"), int64(failed))
	if m.Key != "" {
		b = e.AppendString(e.AppendKey(b, "EncryptionType"), kms)
	}
	return e.CloseMap(b), nil
}
