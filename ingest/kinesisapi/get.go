package kinesisapi

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/milepost/milepost/ingest/kinesisapi/sequence"
	"github.com/milepost/milepost/ingest/kinesisapi/wire"
	"github.com/milepost/milepost/stream"
)

const (
	maxGetRecords = 10_000
	maxGetBytes   = 10 << 20
	readAtOnce    = 1000
	// A read begins only when the log has records after the place; if retention takes them meanwhile, it ends after this.
	readPatience = 500 * time.Millisecond
)

type iteratorOut struct{ ShardIterator string }

func (d *Door) getShardIterator(ctx context.Context, c *call, in *getShardIteratorInput) (any, error) {
	name, err := d.nameOf(in.StreamName, in.StreamARN)
	if err != nil {
		return nil, err
	}
	if err := d.access(c, d.streamARN(name)); err != nil {
		return nil, err
	}
	n, ok := sequence.ParseShard(*in.ShardId)
	if !ok {
		return nil, faultf(typeNotFound, "Could not find shard %s in stream %s under account %s.", *in.ShardId, name, d.cfg.Account)
	}
	m, err := d.usable(name)
	if err != nil {
		return nil, d.noShard(name, n)
	}
	s, err := d.listedShard(ctx, m, n)
	if err != nil {
		return nil, err
	}
	after, err := d.start(ctx, m, s, "GetShardIterator", *in.ShardIteratorType, in.StartingSequenceNumber, in.Timestamp, c.now)
	if err != nil {
		return nil, err
	}
	if err := dryRun(in.DryRun); err != nil {
		return nil, err
	}
	it := iterator{stream: name, created: m.Created, shard: n, after: after, at: c.now.UnixMilli()}
	return iteratorOut{string(d.tokens.iterator(nil, it))}, nil
}

func (d *Door) noShard(name string, n uint32) error {
	return faultf(typeNotFound, "Shard %s in stream %s under account %s does not exist", sequence.ShardName(n), name, d.cfg.Account)
}

// listedShard returns a shard that the log still lists.
func (d *Door) listedShard(ctx context.Context, m *streamMeta, n uint32) (*shardState, error) {
	s, err := m.live.shard(ctx, n)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, d.noShard(m.Name, n)
	}
	return s, nil
}

// start returns the number of the record after which a starting position begins.
func (d *Door) start(ctx context.Context, m *streamMeta, s *shardState, op, kind string, seq *string, at *time.Time, now time.Time) (uint64, error) {
	log := m.live.log
	bySequence := kind == "AT_SEQUENCE_NUMBER" || kind == "AFTER_SEQUENCE_NUMBER"
	if bySequence != (seq != nil) && kind != "AT_TIMESTAMP" {
		has := "no"
		if seq != nil {
			has = "also a"
		}
		return 0, invalidf("Must either specify (1) AT_SEQUENCE_NUMBER or AFTER_SEQUENCE_NUMBER and StartingSequenceNumber or (2) TRIM_HORIZON or LATEST and no StartingSequenceNumber. Request specified %s and %s StartingSequenceNumber.", kind, has)
	}
	tip, err := log.Tip(ctx, s.id)
	if err != nil {
		return 0, d.shardError(m, s, err)
	}
	switch kind {
	case "TRIM_HORIZON":
		return 0, nil
	case "LATEST":
		return tip.Seq, nil
	case "AT_TIMESTAMP":
		switch {
		case at == nil:
			return 0, invalidf("Must specify timestampInMillis parameter for iterator of type AT_TIMESTAMP. Current request has no timestamp parameter.")
		case at.After(now):
			return 0, future(*at, now)
		}
		pos, err := log.Seek(ctx, s.id, *at)
		return sequence.Of(pos), err
	}
	q, ok := sequence.Parse(*seq)
	switch {
	case !ok:
		return 0, invalidf("StartingSequenceNumber %s used in %s on shard %s in stream %s under account %s is invalid.", *seq, op, s.id, m.Name, d.cfg.Account)
	case q.Shard != s.number:
		return 0, invalidf("Invalid StartingSequenceNumber. It encodes %s, while it was used in a call to a shard with %s", sequence.ShardName(q.Shard), s.id)
	case q.Created != s.created:
		return 0, invalidf("StartingSequenceNumber %s used in %s on shard %s in stream %s under account %s is invalid because it did not come from this stream.", *seq, op, s.id, m.Name, d.cfg.Account)
	}
	if kind == "AT_SEQUENCE_NUMBER" && q.Number > 0 {
		q.Number--
	}
	return min(q.Number, tip.Seq), nil
}

// shardError tells clients that retention or a deletion has taken a shard.
func (d *Door) shardError(m *streamMeta, s *shardState, err error) error {
	if errors.Is(err, stream.ErrNoShard) {
		return d.noShard(m.Name, s.number)
	}
	if errors.Is(err, stream.ErrClosed) && d.ctx.Err() == nil {
		return d.noStream(m.Name)
	}
	return err
}

func (d *Door) getRecords(ctx context.Context, c *call, in *getRecordsInput) error {
	it, ok := d.tokens.readIterator(*in.ShardIterator)
	if !ok {
		return invalidf("Invalid ShardIterator.")
	}
	if err := d.access(c, d.streamARN(it.stream)); err != nil {
		return err
	}
	if made := time.UnixMilli(it.at); c.now.Sub(made) > tokenLife {
		return faultf("ExpiredIteratorException", "Iterator expired. The iterator was created at time %s while right now it is %s which is further in the future than the tolerated delay of %d milliseconds.",
			amazonTime(made), amazonTime(c.now), tokenLife.Milliseconds())
	}
	m, err := d.usable(it.stream)
	if err != nil || m.Created != it.created {
		return d.noShard(it.stream, it.shard)
	}
	if in.StreamARN != nil && *in.StreamARN != d.streamARN(it.stream) {
		return invalidf("StreamARN %s does not name the stream of the ShardIterator.", *in.StreamARN)
	}
	s, err := d.listedShard(ctx, m, it.shard)
	if err != nil {
		return err
	}
	if err := dryRun(in.DryRun); err != nil {
		return err
	}
	if d.cfg.Throttle == ThrottleAWS && !s.admitGet(c.now) {
		s.outRefused.Add(1)
		return faultf(typeThroughput, "Rate exceeded for Shard - %s/%s/%s", d.cfg.Account, m.Name, s.id)
	}
	buf := d.buffers.get()
	defer d.buffers.done(buf)
	e := c.enc
	b := e.OpenList(e.AppendKey(e.OpenMap((*buf)[:0]), "Records"))
	g := getter{enc: e, shard: s, key: m.Key, after: it.after}
	b, err = g.read(ctx, m.live, int(value(in.Limit, maxGetRecords)), b)
	*buf = b
	if err != nil {
		return d.shardError(m, s, err)
	}
	if d.cfg.Throttle == ThrottleAWS {
		s.spendGet(g.bytes)
	}
	s.outRecords.Add(uint64(g.records))
	s.outBytes.Add(uint64(g.bytes))
	behind := g.behind(c.now)
	s.iteratorAge.Store(behind)
	b = e.AppendInt(e.AppendKey(e.CloseList(b), "MillisBehindLatest"), behind)
	children, drained, err := m.live.children(ctx, s, g.after)
	if err != nil {
		return d.shardError(m, s, err)
	}
	if drained {
		b = e.Marshal(e.AppendKey(b, "ChildShards"), children)
	} else {
		it.after, it.at = g.after, c.now.UnixMilli()
		var text [512]byte
		b = e.AppendString(e.AppendKey(b, "NextShardIterator"), alias(d.tokens.iterator(text[:0], it)))
	}
	*buf = e.CloseMap(b)
	d.answer(c, http.StatusOK, *buf)
	return nil
}

// A getter reads records of a shard into an answer.
type getter struct {
	enc     wire.Encoding
	shard   *shardState
	key     string // the stream's encryption key; "" if it has none
	after   uint64 // number of the last record passed on
	records int
	bytes   int       // data and keys
	last    time.Time // of the last record
	tip     stream.Tip
}

// read appends the records after g.after that are there now.
func (g *getter) read(ctx context.Context, l *live, limit int, b []byte) ([]byte, error) {
	var err error
	if g.tip, err = l.log.Tip(ctx, g.shard.id); err != nil || g.after >= g.tip.Seq {
		return b, err
	}
	r, err := l.log.Read(ctx, g.shard.id, sequence.Position(g.after))
	if err != nil {
		return b, err
	}
	defer func() { _ = r.Close() }() // a read handle
	wait, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	for g.after < g.tip.Seq && g.records < limit {
		recs, err := r.Next(wait, min(limit-g.records, readAtOnce))
		if errors.Is(err, io.EOF) || (err != nil && wait.Err() != nil && ctx.Err() == nil) {
			break
		}
		if err != nil {
			return b, err
		}
		var all bool
		if b, all = g.append(b, recs, maxGetBytes); !all {
			break
		}
	}
	return b, nil
}

// append appends records until they are more than most bytes together; all tells whether there was room for all of them.
func (g *getter) append(b []byte, recs []stream.Record, most int) (out []byte, all bool) {
	e := g.enc
	var text [57]byte
	for i := range recs {
		r := &recs[i]
		size := len(r.Data) + len(r.Key)
		if g.records > 0 && g.bytes+size > most {
			return b, false
		}
		seq := g.shard.sequence(sequence.Of(r.Pos), r.Time)
		b = e.Separate(b)
		if e == wire.JSON {
			b = append(b, `{"SequenceNumber":"`...)
			b = seq.Append(b)
			b = append(b, `","ApproximateArrivalTimestamp":`...)
			b = e.AppendTime(b, r.Time)
			b = append(b, `,"Data":"`...)
			b = base64.StdEncoding.AppendEncode(b, r.Data)
			b = append(b, `","PartitionKey":`...)
		} else {
			b = e.AppendString(e.AppendKey(e.OpenMap(b), "SequenceNumber"), alias(seq.Append(text[:0])))
			b = e.AppendTime(e.AppendKey(b, "ApproximateArrivalTimestamp"), r.Time)
			b = e.AppendBlob(e.AppendKey(b, "Data"), r.Data)
			b = e.AppendKey(b, "PartitionKey")
		}
		b = e.AppendString(b, r.Key)
		if g.key != "" {
			b = e.AppendString(e.AppendKey(b, "EncryptionType"), kms)
		}
		b = e.CloseMap(b)
		g.records++
		g.bytes += size
		g.after, g.last = seq.Number, r.Time
	}
	return b, true
}

// behind is MillisBehindLatest: how far the last record is behind now, and nothing at the tip.
func (g *getter) behind(now time.Time) int64 {
	if g.after >= g.tip.Seq || g.last.IsZero() {
		return 0
	}
	return max(0, now.Sub(g.last).Milliseconds())
}

type childShard struct {
	ShardId      string
	ParentShards []string
	HashKeyRange hashRange
}

// children returns the children of a closed shard that was read to its end; drained tells whether it was. The order matters: a shard
// that is closed has its last tip, one that is not may get another record after we looked.
func (l *live) children(ctx context.Context, s *shardState, after uint64) (list []childShard, drained bool, err error) {
	if tip, err := l.log.Tip(ctx, s.id); err != nil || after < tip.Seq {
		return nil, false, err
	}
	shards, err := l.list(ctx)
	if err != nil {
		return nil, false, err
	}
	list = []childShard{}
	for _, sh := range shards {
		if sh.ID == s.id {
			drained = sh.Closed
		}
		for _, p := range sh.Parents {
			if p == s.id {
				child := childShard{ShardId: string(sh.ID), HashKeyRange: hashRange{formatHash(sh.From), formatHash(sh.To)}}
				for _, p := range sh.Parents {
					child.ParentShards = append(child.ParentShards, string(p))
				}
				list = append(list, child)
			}
		}
	}
	if !drained {
		return nil, false, nil
	}
	tip, err := l.log.Tip(ctx, s.id)
	return list, err == nil && after >= tip.Seq, err
}
