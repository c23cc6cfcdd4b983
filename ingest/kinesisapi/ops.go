package kinesisapi

import (
	"context"
	"reflect"

	"github.com/milepost/milepost/ingest/kinesisapi/wire"
)

// operations returns the table of all operations. Channels, which deliver to S3, are not among them: they get an
// UnknownOperationException.
func operations() map[string]*operation {
	list := []*operation{
		control("AddTagsToStream", 5, (*Door).addTags),
		control("CreateStream", 5, (*Door).createStream).perAccount(),
		control("DecreaseStreamRetentionPeriod", 5, (*Door).decreaseRetention),
		control("DeleteResourcePolicy", 5, (*Door).deletePolicy),
		control("DeleteStream", 5, (*Door).deleteStream),
		control("DeregisterStreamConsumer", 5, (*Door).deregisterConsumer),
		control("DescribeAccountSettings", 5, (*Door).describeAccount).perAccount(),
		control("DescribeLimits", 1, (*Door).describeLimits).perAccount(),
		control("DescribeStream", 10, (*Door).describeStream).perAccount(),
		control("DescribeStreamConsumer", 20, (*Door).describeConsumer),
		control("DescribeStreamSummary", 20, (*Door).describeSummary).perAccount(),
		control("DisableEnhancedMonitoring", 5, (*Door).disableMonitoring),
		control("EnableEnhancedMonitoring", 5, (*Door).enableMonitoring),
		control("GetResourcePolicy", 5, (*Door).getPolicy),
		control("GetShardIterator", 0, (*Door).getShardIterator), // five a second for each shard: GetRecords has that
		control("IncreaseStreamRetentionPeriod", 5, (*Door).increaseRetention),
		control("ListShards", 1000, (*Door).listShards),
		control("ListStreamConsumers", 5, (*Door).listConsumers),
		control("ListStreams", 5, (*Door).listStreams).perAccount(),
		control("ListTagsForResource", 5, (*Door).listResourceTags),
		control("ListTagsForStream", 5, (*Door).listTags),
		control("MergeShards", 5, (*Door).mergeShards),
		control("PutResourcePolicy", 5, (*Door).putPolicy),
		control("RegisterStreamConsumer", 5, (*Door).registerConsumer),
		control("RemoveTagsFromStream", 5, (*Door).removeTags),
		control("SplitShard", 5, (*Door).splitShard),
		control("StartStreamEncryption", 5, (*Door).startEncryption),
		control("StopStreamEncryption", 5, (*Door).stopEncryption),
		control("TagResource", 5, (*Door).tagResource),
		control("UntagResource", 5, (*Door).untagResource),
		control("UpdateAccountSettings", 5, (*Door).updateAccount).perAccount(),
		control("UpdateMaxRecordSize", 5, (*Door).updateMaxRecordSize),
		control("UpdateShardCount", 10, (*Door).updateShardCount),
		control("UpdateStreamMode", 5, (*Door).updateMode),
		control("UpdateStreamRecordDistributionStrategy", 5, (*Door).updateDistribution),
		control("UpdateStreamWarmThroughput", 5, (*Door).updateWarm),
		answered("GetRecords", (*Door).getRecords),
		answered("SubscribeToShard", (*Door).subscribeToShard),
		{name: "PutRecord", maxBody: putBody, raw: func(ctx context.Context, d *Door, c *call) error { return d.put(ctx, c, false) }},
		{name: "PutRecords", maxBody: putBody, raw: func(ctx context.Context, d *Door, c *call) error { return d.put(ctx, c, true) }},
	}
	ops := make(map[string]*operation, len(list))
	for _, o := range list {
		ops[o.name] = o
	}
	return ops
}

func (o *operation) perAccount() *operation {
	o.account = true
	return o
}

// bind returns the decoder of an operation's input.
func bind[In any]() func(c *call) (*In, error) {
	plan := wire.NewPlan(reflect.TypeFor[In](), rules)
	return func(c *call) (*In, error) {
		v, err := plan.Bind(c.enc.NewReader(c.body))
		if err != nil {
			return nil, err
		}
		if complaint := plan.Check(v); complaint != "" {
			return nil, faultf(typeValidation, "%s", complaint)
		}
		in, _ := v.(*In)
		return in, nil
	}
}

// control is an operation whose answer is a struct.
func control[In any](name string, rate float64, f func(*Door, context.Context, *call, *In) (any, error)) *operation {
	read := bind[In]()
	return &operation{name: name, maxBody: controlBody, rate: rate, typed: func(ctx context.Context, d *Door, c *call) (any, error) {
		in, err := read(c)
		if err != nil {
			return nil, err
		}
		return f(d, ctx, c, in)
	}}
}

// answered is an operation that writes its answer by itself.
func answered[In any](name string, f func(*Door, context.Context, *call, *In) error) *operation {
	read := bind[In]()
	return &operation{name: name, maxBody: controlBody, raw: func(ctx context.Context, d *Door, c *call) error {
		in, err := read(c)
		if err != nil {
			return err
		}
		return f(d, ctx, c, in)
	}}
}

// nameOf returns the stream that a request means, whether it exists or not.
func (d *Door) nameOf(name, arn *string) (string, error) {
	if arn == nil {
		if name == nil {
			return "", invalidf("Must specify either StreamName or StreamARN.")
		}
		return *name, nil
	}
	n, consumer, _, ok := d.parseARN(*arn)
	if !ok || consumer != "" {
		return "", faultf(typeNotFound, "Stream arn %s not found.", *arn)
	}
	if name != nil && *name != n {
		return "", invalidf("StreamName %s and StreamARN %s do not name the same stream.", *name, *arn)
	}
	return n, nil
}

// stream finds the stream that a request means, in any status, after asking whether the caller may do this to it.
func (d *Door) stream(c *call, ref streamRef) (*streamMeta, error) {
	name, err := d.nameOf(ref.StreamName, ref.StreamARN)
	if err != nil {
		return nil, err
	}
	return d.streamNamed(c, name)
}

func (d *Door) streamNamed(c *call, name string) (*streamMeta, error) {
	if err := d.access(c, d.streamARN(name)); err != nil {
		return nil, err
	}
	m, err := d.find(name)
	if err != nil {
		return nil, err
	}
	return m, d.allow(c, m.live)
}

func (d *Door) streamByARN(c *call, arn *string) (*streamMeta, error) {
	return d.stream(c, streamRef{StreamARN: arn})
}

// changeStream makes a change of an ACTIVE stream's metadata.
func (d *Door) changeStream(name string, f func(*streamMeta) error) error {
	return d.change(func(c *catalog) error {
		m := c.Streams[name]
		if m == nil {
			return d.noStream(name)
		}
		if err := d.mustBeActive(m); err != nil {
			return err
		}
		return f(c.edit(name))
	})
}

func value[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}

// dryRun is what an operation answers when all its checks passed and it was asked to stop there.
func dryRun(asked *bool) error {
	if value(asked, false) {
		return faultf("DryRunOperationException", "Request would have succeeded, but DryRun flag is set.")
	}
	return nil
}
