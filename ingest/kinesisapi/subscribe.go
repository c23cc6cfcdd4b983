package kinesisapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/milepost/milepost/ingest/kinesisapi/eventstream"
	"github.com/milepost/milepost/ingest/kinesisapi/sequence"
	"github.com/milepost/milepost/ingest/kinesisapi/wire"
	"github.com/milepost/milepost/stream"
)

// SubscribeToShard pushes: each subscription is its request's goroutine with a reader of its own, which the log wakes at a commit. A
// client that does not take what it is sent holds up its own goroutine only, and after WriteTimeout loses it.

type subKey struct {
	consumer string // ARN
	shard    stream.ShardID
}

type subscription struct {
	key    subKey
	began  time.Time
	end    context.CancelCauseFunc
	done   atomic.Bool
	behind atomic.Int64 // ms; of the last event
}

func (s *subscription) over() bool { return s.done.Load() }

const (
	// A call this soon after a successful one is refused; a later one takes over.
	subscribeAgain = 5 * time.Second
	maxEventBytes  = 1 << 20 // of data and keys; a larger record is an event of its own
	maxEventCount  = 2000
	settle         = 20 * time.Millisecond // before the answer begins
	fanOutRate     = 2 << 20               // bytes a second for each consumer and shard, with Throttle
)

// subscribe makes a subscription, in place of an older one if there is any.
func (l *live) subscribe(key subKey, now time.Time, end context.CancelCauseFunc) (*subscription, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if old := l.subs[key]; old != nil {
		if now.Sub(old.began) < subscribeAgain {
			return nil, faultf(typeInUse, "Another active subscription exists for this consumer: %s, shard: %s", key.consumer, key.shard)
		}
		old.end(faultf(typeInUse, "Another subscription was made for this consumer: %s, shard: %s", key.consumer, key.shard))
	}
	s := &subscription{key: key, began: now, end: end}
	l.subs[key] = s
	// Those that ended long ago are of no more use.
	for k, old := range l.subs {
		if old.over() && now.Sub(old.began) > subscribeAgain {
			delete(l.subs, k)
		}
	}
	return s, nil
}

// endSubscriptions ends those of one consumer, or all.
func (l *live) endSubscriptions(consumer *string, why error) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, s := range l.subs {
		if consumer == nil || k.consumer == *consumer {
			s.end(why)
		}
	}
}

func (d *Door) subscribeToShard(ctx context.Context, c *call, in *subscribeInput) error {
	m, k, err := d.findConsumer(c, nil, nil, in.ConsumerARN)
	if err != nil {
		return err
	}
	if k.Status != active {
		return faultf(typeInUse, "Consumer %s is not ACTIVE, instead in state %s", *in.ConsumerARN, k.Status)
	}
	if m, err = d.usable(m.Name); err != nil {
		return err
	}
	n, ok := sequence.ParseShard(*in.ShardId)
	if !ok {
		return d.noShard(m.Name, 0)
	}
	s, err := d.listedShard(ctx, m, n)
	if err != nil {
		return err
	}
	p := in.StartingPosition
	after, err := d.start(ctx, m, s, "SubscribeToShard", *p.Type, p.SequenceNumber, p.Timestamp, c.now)
	if err != nil {
		return err
	}
	if err := dryRun(in.DryRun); err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	stop := context.AfterFunc(d.ctx, func() { end(nil) })
	defer stop()
	sub, err := m.live.subscribe(subKey{*in.ConsumerARN, s.id}, c.now, end)
	if err != nil {
		return err
	}
	defer sub.done.Store(true)
	r, err := m.live.log.Read(ctx, s.id, sequence.Position(after))
	if err != nil {
		return d.shardError(m, s, err)
	}
	defer func() { _ = r.Close() }() // a read handle
	pusher := &pusher{
		d: d, c: c, m: m, sub: sub, r: r, rc: http.NewResponseController(c.w),
		getter: getter{enc: c.enc, shard: s, key: m.Key, after: after}, until: c.now.Add(d.cfg.SubscribeFor),
	}
	pusher.run(ctx)
	return nil
}

// A pusher sends the events of one subscription.
type pusher struct {
	d     *Door
	c     *call
	m     *streamMeta
	sub   *subscription
	r     stream.Reader
	rc    *http.ResponseController
	until time.Time
	buf   []byte
	rate  bucket
	getter
}

// run sends events until the subscription's time is over, the shard is read out, or somebody ends it. Once the first frame is out,
// errors are frames as well.
func (p *pusher) run(ctx context.Context) {
	// The SDK for Go closes the request's body as soon as it has the answer's headers. When they come within microseconds its
	// transport is still looking whether the body is at its end, finds it closed, and drops the connection.
	select {
	case <-time.After(settle):
	case <-ctx.Done():
	}
	h := p.c.w.Header()
	h.Set("Content-Type", "application/vnd.amazon.eventstream")
	p.c.w.WriteHeader(http.StatusOK)
	enc := p.c.enc
	first := eventstream.Append(nil, []eventstream.Header{
		{Name: ":message-type", Value: "event"}, {Name: ":event-type", Value: "initial-response"}, {Name: ":content-type", Value: enc.ContentType()},
	}, enc.CloseMap(enc.OpenMap(nil)))
	if !p.send(first) {
		return
	}
	for {
		left := time.Until(p.until)
		if left <= 0 {
			return
		}
		wait, cancel := context.WithTimeout(ctx, min(p.d.cfg.HeartbeatEach, left))
		recs, err := p.r.Next(wait, maxEventCount)
		late := wait.Err() != nil
		cancel()
		switch {
		case err == nil:
			if !p.events(ctx, recs) {
				return
			}
		case ctx.Err() != nil:
			if f, ok := errors.AsType[*fault](context.Cause(ctx)); ok {
				p.exception(f)
			}
			return
		case errors.Is(err, io.EOF):
			p.lastEvent(ctx)
			return
		case late:
			if !p.event(nil) {
				return
			}
		default:
			f := asFault(p.d.shardError(p.m, p.shard, err))
			if ours(f) {
				p.d.cfg.Log.ErrorContext(ctx, "subscription failed", "stream", p.m.Name, "shard", p.shard.id, "error", err)
			}
			p.exception(f)
			return
		}
	}
}

//nolint:gochecknoglobals // a table
var eventHeaders = [...][]eventstream.Header{
	{{Name: ":message-type", Value: "event"}, {Name: ":event-type", Value: "SubscribeToShardEvent"}, {Name: ":content-type", Value: wire.JSON.ContentType()}},
	{{Name: ":message-type", Value: "event"}, {Name: ":event-type", Value: "SubscribeToShardEvent"}, {Name: ":content-type", Value: wire.CBOR.ContentType()}},
}

// events sends records as one event or several; false if the client is gone.
func (p *pusher) events(ctx context.Context, recs []stream.Record) bool {
	for len(recs) > 0 {
		n, size := 0, 0
		for n < len(recs) {
			size += len(recs[n].Data) + len(recs[n].Key)
			if n > 0 && size > maxEventBytes {
				break
			}
			n++
		}
		if !p.pace(ctx, recs[:n]) || !p.event(recs[:n]) {
			return false
		}
		recs = recs[n:]
	}
	return true
}

// pace waits until the limits let the records go.
func (p *pusher) pace(ctx context.Context, recs []stream.Record) bool {
	if p.d.cfg.Throttle != ThrottleAWS {
		return true
	}
	size := 0
	for i := range recs {
		size += len(recs[i].Data) + len(recs[i].Key)
	}
	for !p.rate.take(float64(size), fanOutRate, fanOutRate, time.Now()) {
		lack := min(float64(size), fanOutRate) - p.rate.tokens
		t := time.NewTimer(time.Duration(lack / fanOutRate * float64(time.Second)))
		select {
		case <-ctx.Done():
			t.Stop()
			return false
		case <-t.C:
		}
	}
	return true
}

// event sends one event; without records it is a heartbeat.
func (p *pusher) event(recs []stream.Record) bool {
	b, start := eventstream.Begin(p.buf[:0], eventHeaders[p.enc])
	e := p.enc
	b = e.OpenList(e.AppendKey(e.OpenMap(b), "Records"))
	p.records, p.bytes = 0, 0
	b, _ = p.append(b, recs, 1<<62)
	b = e.CloseList(b)
	if tip, err := p.m.live.log.Tip(context.Background(), p.shard.id); err == nil {
		p.tip = tip
	}
	behind := p.behind(time.Now())
	p.sub.behind.Store(behind)
	b = e.AppendInt(e.AppendKey(b, "MillisBehindLatest"), behind)
	at := p.last
	if at.IsZero() {
		at = time.Unix(p.shard.created, 0)
	}
	var text [57]byte
	b = e.AppendString(e.AppendKey(b, "ContinuationSequenceNumber"), alias(p.shard.sequence(p.after, at).Append(text[:0])))
	p.shard.outRecords.Add(uint64(p.records))
	p.shard.outBytes.Add(uint64(p.bytes))
	p.buf = eventstream.End(e.CloseMap(b), start)
	ok := p.send(p.buf)
	if cap(p.buf) > keepBuffer {
		p.buf = nil
	}
	return ok
}

// lastEvent says that the shard is read out and which shards go on.
func (p *pusher) lastEvent(ctx context.Context) {
	children, _, err := p.m.live.children(ctx, p.shard, p.after)
	if err != nil {
		p.exception(asFault(p.d.shardError(p.m, p.shard, err)))
		return
	}
	e := p.enc
	b, start := eventstream.Begin(nil, eventHeaders[e])
	b = e.CloseList(e.OpenList(e.AppendKey(e.OpenMap(b), "Records")))
	b = e.AppendInt(e.AppendKey(b, "MillisBehindLatest"), 0)
	b = e.CloseMap(e.Marshal(e.AppendKey(b, "ChildShards"), children))
	p.sub.behind.Store(0)
	p.send(eventstream.End(b, start))
}

func (p *pusher) exception(f *fault) {
	e := p.enc
	body := e.AppendString(e.AppendKey(e.OpenMap(nil), "message"), f.message)
	p.send(eventstream.Append(nil, []eventstream.Header{
		{Name: ":message-type", Value: "exception"}, {Name: ":exception-type", Value: f.typ}, {Name: ":content-type", Value: e.ContentType()},
	}, e.CloseMap(body)))
}

// send writes and flushes; false if the client is gone or too slow.
func (p *pusher) send(b []byte) bool {
	_ = p.rc.SetWriteDeadline(time.Now().Add(p.d.cfg.WriteTimeout)) // a recorder in a test knows none
	if _, err := p.c.w.Write(b); err != nil {
		return false
	}
	return p.rc.Flush() == nil
}
