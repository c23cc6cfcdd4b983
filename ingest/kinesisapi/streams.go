package kinesisapi

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/milepost/milepost/ingest/kinesisapi/sequence"
	"github.com/milepost/milepost/stream"
)

const (
	maxCreating       = 5
	maxTags           = 50
	minRetentionHours = 24
	maxRetentionHours = 8760
	maxShardsCreated  = 10_000
)

type (
	hashRange     struct{ StartingHashKey, EndingHashKey string }
	sequenceRange struct{ StartingSequenceNumber, EndingSequenceNumber string }
	shardOut      struct {
		ShardId               string
		ParentShardId         string
		AdjacentParentShardId string
		HashKeyRange          hashRange
		SequenceNumberRange   sequenceRange
	}
	modeOut     struct{ StreamMode string }
	enhancedOut struct {
		ShardLevelMetrics []string
	}
	describeStreamOut struct {
		StreamDescription streamDescription
	}
	streamDescription struct {
		StreamName              string
		StreamARN               string
		StreamStatus            string
		StreamModeDetails       modeOut
		Shards                  []shardOut
		HasMoreShards           bool
		RetentionPeriodHours    int64
		StreamCreationTimestamp time.Time
		EnhancedMonitoring      []enhancedOut
		EncryptionType          string
		KeyId                   string
	}
	describeSummaryOut struct {
		StreamDescriptionSummary streamSummary
	}
	warmOut       struct{ TargetMiBps, CurrentMiBps int64 }
	streamSummary struct {
		StreamName                 string
		StreamARN                  string
		StreamStatus               string
		StreamModeDetails          modeOut
		RetentionPeriodHours       int64
		StreamCreationTimestamp    time.Time
		EnhancedMonitoring         []enhancedOut
		EncryptionType             string
		KeyId                      string
		OpenShardCount             int64
		ConsumerCount              int64
		ChannelCount               *int64
		WarmThroughput             *warmOut
		MaxRecordSizeInKiB         int64
		RecordDistributionStrategy string
	}
	listStreamsOut struct {
		StreamNames     []string
		HasMoreStreams  bool
		NextToken       string
		StreamSummaries []listedStream
	}
	listedStream struct {
		StreamName              string
		StreamARN               string
		StreamStatus            string
		StreamModeDetails       modeOut
		StreamCreationTimestamp time.Time
	}
)

func (d *Door) createStream(ctx context.Context, c *call, in *createStreamInput) (any, error) {
	name := *in.StreamName
	if err := d.access(c, d.streamARN(name)); err != nil {
		return nil, err
	}
	if err := d.allow(c, nil); err != nil {
		return nil, err
	}
	if name[0] == '.' {
		return nil, invalidf("StreamName %s begins with a dot, which this service does not store.", name)
	}
	if err := checkTags(name, d.cfg.Account, nil, in.Tags); err != nil {
		return nil, err
	}
	m := &streamMeta{
		Name: name, Created: c.now.UnixMilli(), Mode: provisioned, Tags: maps.Clone(in.Tags), WarmMiB: value(in.WarmThroughputMiBps, 0),
		MaxRecordKiB: value(in.MaxRecordSizeInKiB, 1024), Distribution: value(in.RecordDistributionStrategy, ""),
	}
	if in.StreamModeDetails != nil {
		m.Mode = *in.StreamModeDetails.StreamMode
	}
	switch {
	case m.Mode == onDemand && in.ShardCount != nil:
		return nil, invalidf("ShardCount cannot be specified when StreamMode is %s.", onDemand)
	case m.Mode == onDemand:
		m.Shards = max(minOnDemand, int(m.WarmMiB))
	case in.WarmThroughputMiBps != nil:
		return nil, invalidf("WarmThroughputMiBps can be specified for streams with StreamMode %s only.", onDemand)
	case in.RecordDistributionStrategy != nil:
		return nil, invalidf("RecordDistributionStrategy can be specified for streams with StreamMode %s only.", onDemand)
	case in.ShardCount == nil && in.StreamModeDetails == nil:
		m.Shards = minOnDemand // AWS makes four shards of a request that says nothing
	case in.ShardCount == nil:
		return nil, invalidf("ShardCount must be specified when StreamMode is %s.", provisioned)
	default:
		m.Shards = int(min(*in.ShardCount, maxShardsCreated+1))
	}
	if err := d.roomForShards(m.Shards); err != nil {
		return nil, err
	}
	if _, err := d.cfg.Store.Stream(name); err == nil {
		return nil, faultf(typeInUse, "Stream %s under account %s already exists.", name, d.cfg.Account)
	}
	// The metadata first: a crash before the log is made leaves a stream that is CREATING, and the next start makes its log.
	err := d.change(func(cat *catalog) error {
		busy := 0
		for _, s := range cat.Streams {
			if s.Status == creating {
				busy++
			}
		}
		switch {
		case cat.Streams[name] != nil:
			return faultf(typeInUse, "Stream %s under account %s already exists.", name, d.cfg.Account)
		case busy >= maxCreating:
			return faultf(typeLimit, "No more than %d streams can be in the CREATING state at once under account %s.", maxCreating, d.cfg.Account)
		}
		m.Status, m.Until = creating, c.now.Add(time.Hour).UnixMilli() // until the log is there
		cat.Streams[name] = m
		return nil
	})
	if err != nil {
		return nil, err
	}
	l, err := d.makeLog(context.WithoutCancel(ctx), m)
	if err != nil {
		return nil, errors.Join(err, d.change(func(cat *catalog) error {
			delete(cat.Streams, name)
			return nil
		}))
	}
	return nil, d.change(func(cat *catalog) error {
		e := cat.edit(name)
		e.live = l
		d.during(e, creating, time.Now())
		return nil
	})
}

// makeLog makes the log of a new stream, or leaves none: one without metadata would keep the name taken by a stream nobody sees.
func (d *Door) makeLog(ctx context.Context, m *streamMeta) (*live, error) {
	log, err := d.cfg.Store.Create(ctx, m.Name, m.logConfig())
	if err != nil {
		return nil, err
	}
	l := d.newLive(m.Name, log)
	if err := l.refresh(ctx); err != nil {
		return nil, errors.Join(err, d.cfg.Store.Delete(ctx, m.Name))
	}
	return l, nil
}

// roomForShards refuses what would exceed the account's shards.
func (d *Door) roomForShards(more int) error {
	have := d.openShardCount()
	if have+more <= d.cfg.ShardLimit {
		return nil
	}
	return faultf(typeLimit, "This request would exceed the shard limit for the account %s in %s. Current shard count for the account: %d. Limit: %d. Number of additional shards that would have resulted from this request: %d. Refer to the AWS Service Limits page (http://docs.aws.amazon.com/general/latest/gr/aws_service_limits.html) for current limits and how to request higher limits.",
		d.cfg.Account, d.cfg.Region, have, d.cfg.ShardLimit, more)
}

func (d *Door) openShardCount() int {
	n := 0
	for _, m := range d.catalog.Load().Streams {
		if m.live != nil {
			n += m.live.log.Config().Shards
		}
	}
	return n
}

func (d *Door) deleteStream(ctx context.Context, c *call, in *deleteStreamInput) (any, error) {
	m, err := d.stream(c, in.streamRef)
	if err != nil {
		return nil, err
	}
	if m.BuiltIn {
		return nil, faultf(typeInUse, "Stream %s under account %s is the platform's own and cannot be deleted here.", m.Name, d.cfg.Account)
	}
	err = d.change(func(cat *catalog) error {
		m := cat.Streams[m.Name]
		switch {
		case m == nil:
			return d.noStream(*in.StreamName)
		case m.Status == deleting:
			return nil
		case m.Status == creating:
			return d.mustBeActive(m)
		case len(m.Consumers) > 0 && !value(in.EnforceConsumerDeletion, false):
			return faultf(typeInUse, "Stream %s under account %s has consumers registered: set EnforceConsumerDeletion, or deregister them first.", m.Name, d.cfg.Account)
		}
		e := cat.edit(m.Name)
		e.Target, e.Consumers = 0, nil
		d.during(e, deleting, c.now)
		return nil
	})
	if err != nil {
		return nil, err
	}
	m.live.endSubscriptions(nil, faultf(typeNotFound, "Stream %s under account %s not found.", m.Name, d.cfg.Account))
	if d.transition == 0 {
		return nil, d.finishDelete(context.WithoutCancel(ctx), m)
	}
	return nil, nil
}

func (d *Door) retentionHours(m *streamMeta) int64 {
	if m.live == nil {
		return minRetentionHours
	}
	r := m.live.log.Config().Retention
	return int64((r + time.Hour - 1) / time.Hour)
}

func (d *Door) maxRecord(m *streamMeta) int64 {
	if m.live == nil {
		return m.MaxRecordKiB << 10
	}
	return int64(m.live.log.Config().MaxRecordBytes)
}

func (m *streamMeta) enhanced() []enhancedOut {
	list := m.Metrics
	if list == nil {
		list = []string{}
	}
	return []enhancedOut{{list}}
}

func (m *streamMeta) encryption() string {
	if m.Key != "" {
		return kms
	}
	return none
}

const describeLimit = 100

func (d *Door) describeStream(ctx context.Context, c *call, in *describeStreamInput) (any, error) {
	m, err := d.stream(c, in.streamRef)
	if err != nil {
		return nil, err
	}
	out := describeStreamOut{streamDescription{
		StreamName: m.Name, StreamARN: d.streamARN(m.Name), StreamStatus: m.Status, StreamModeDetails: modeOut{m.Mode}, Shards: []shardOut{},
		RetentionPeriodHours: d.retentionHours(m), StreamCreationTimestamp: time.UnixMilli(m.Created), EnhancedMonitoring: m.enhanced(),
		EncryptionType: m.encryption(), KeyId: m.Key,
	}}
	if m.Status == creating || m.Status == deleting {
		return out, nil
	}
	shards, err := m.live.list(ctx)
	if err != nil {
		return nil, err
	}
	all := describeShards(shards)
	if in.ExclusiveStartShardId != nil {
		all = shardsAfter(all, *in.ExclusiveStartShardId)
	}
	if limit := int(value(in.Limit, describeLimit)); len(all) > limit {
		all, out.StreamDescription.HasMoreShards = all[:limit], true
	}
	out.StreamDescription.Shards = append(out.StreamDescription.Shards, all...)
	return out, nil
}

// shardsAfter returns those after a shard, which need not be listed any more.
func shardsAfter(all []shardOut, id string) []shardOut {
	if n, ok := sequence.ParseShard(id); ok {
		id = string(sequence.ShardName(n))
	}
	i, found := slices.BinarySearchFunc(all, id, func(s shardOut, id string) int { return strings.Compare(s.ShardId, id) })
	if found {
		i++
	}
	return all[i:]
}

// describeShards puts shards in the API's words. A closed one ends where its children begin.
func describeShards(shards []stream.Shard) []shardOut {
	ended := map[stream.ShardID]int64{}
	for _, s := range shards {
		for _, p := range s.Parents {
			ended[p] = s.Created.Unix()
		}
	}
	out := make([]shardOut, len(shards))
	for i, s := range shards {
		n, _ := sequence.ParseShard(string(s.ID))
		at := s.Created.Unix()
		o := &out[i]
		*o = shardOut{
			ShardId:             string(s.ID),
			HashKeyRange:        hashRange{formatHash(s.From), formatHash(s.To)},
			SequenceNumberRange: sequenceRange{StartingSequenceNumber: sequence.Number{Created: at, Arrived: at, Shard: n}.String()},
		}
		if len(s.Parents) > 0 {
			o.ParentShardId = string(s.Parents[0])
		}
		if len(s.Parents) > 1 {
			o.AdjacentParentShardId = string(s.Parents[1])
		}
		if s.Closed {
			o.SequenceNumberRange.EndingSequenceNumber = sequence.Number{Created: at, Number: sequence.Last, Arrived: max(at, ended[s.ID]), Shard: n}.String()
		}
	}
	return out
}

func (d *Door) describeSummary(_ context.Context, c *call, in *streamInput) (any, error) {
	m, err := d.stream(c, in.streamRef)
	if err != nil {
		return nil, err
	}
	out := streamSummary{
		StreamName: m.Name, StreamARN: d.streamARN(m.Name), StreamStatus: m.Status, StreamModeDetails: modeOut{m.Mode},
		RetentionPeriodHours: d.retentionHours(m), StreamCreationTimestamp: time.UnixMilli(m.Created), EnhancedMonitoring: m.enhanced(),
		EncryptionType: m.encryption(), KeyId: m.Key, ConsumerCount: int64(len(m.Consumers)), MaxRecordSizeInKiB: d.maxRecord(m) >> 10,
	}
	if m.live != nil && m.Status != creating {
		out.OpenShardCount = int64(m.live.log.Config().Shards)
	}
	// Of provisioned streams too: the producer library asks before it aggregates.
	if out.RecordDistributionStrategy = m.Distribution; out.RecordDistributionStrategy == "" {
		out.RecordDistributionStrategy = "USER_PARTITION_KEY"
	}
	if m.Mode == onDemand && m.WarmMiB > 0 {
		out.WarmThroughput = &warmOut{m.WarmMiB, max(m.WarmMiB, out.OpenShardCount)}
	}
	return describeSummaryOut{out}, nil
}

func (d *Door) listStreams(_ context.Context, c *call, in *listStreamsInput) (any, error) {
	if err := d.access(c, "*"); err != nil {
		return nil, err
	}
	if err := d.allow(c, nil); err != nil {
		return nil, err
	}
	after := value(in.ExclusiveStartStreamName, "")
	if in.NextToken != nil {
		p, err := d.tokens.readPage(*in.NextToken, "ListStreams", c.now)
		if err != nil {
			return nil, err
		}
		after = p.After
	}
	streams := d.catalog.Load().Streams
	names := slices.Sorted(maps.Keys(streams))
	i, found := slices.BinarySearch(names, after)
	if found {
		i++
	}
	names = names[i:]
	out := listStreamsOut{StreamNames: []string{}, StreamSummaries: []listedStream{}}
	if limit := int(value(in.Limit, describeLimit)); len(names) > limit {
		names, out.HasMoreStreams = names[:limit], true
		out.NextToken = d.tokens.page(page{Op: "ListStreams", After: names[limit-1], At: c.now.UnixMilli()})
	}
	for _, n := range names {
		m := streams[n]
		out.StreamNames = append(out.StreamNames, n)
		out.StreamSummaries = append(out.StreamSummaries, listedStream{n, d.streamARN(n), m.Status, modeOut{m.Mode}, time.UnixMilli(m.Created)})
	}
	return out, nil
}
