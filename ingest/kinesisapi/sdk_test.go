package kinesisapi

import (
	"bytes"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"

	"github.com/milepost/milepost/internal/vfs"
)

func existsWaiter(c *kinesis.Client) *kinesis.StreamExistsWaiter {
	return kinesis.NewStreamExistsWaiter(c, func(o *kinesis.StreamExistsWaiterOptions) {
		o.MinDelay, o.MaxDelay = 5*time.Millisecond, 50*time.Millisecond
	})
}

func createFour(t testing.TB, c *kinesis.Client) error {
	_, err := c.CreateStream(t.Context(), &kinesis.CreateStreamInput{StreamName: aws.String("bench"), ShardCount: aws.Int32(4)})
	return err
}

func TestSDKPutAndRead(t *testing.T) {
	d := openDoor(t, vfs.NewCrashable(), nil)
	c := sdk(t, d.listen(t), "id", "secret")
	ctx := testContext(t)
	name := aws.String("trucks")
	if _, err := c.CreateStream(ctx, &kinesis.CreateStreamInput{StreamName: name, ShardCount: aws.Int32(2)}); err != nil {
		t.Fatal(err)
	}
	if err := existsWaiter(c).Wait(ctx, &kinesis.DescribeStreamInput{StreamName: name}, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	var entries []types.PutRecordsRequestEntry
	for i := range 100 {
		entries = append(entries, types.PutRecordsRequestEntry{
			PartitionKey: aws.String(fmt.Sprintf("vehicle-%d-é", i%7)), Data: fmt.Appendf(nil, "reading %d", i),
		})
	}
	put, err := c.PutRecords(ctx, &kinesis.PutRecordsInput{StreamName: name, Records: entries})
	if err != nil || *put.FailedRecordCount != 0 || len(put.Records) != len(entries) {
		t.Fatal(put, err)
	}
	one, err := c.PutRecord(ctx, &kinesis.PutRecordInput{StreamName: name, Data: []byte{}, PartitionKey: aws.String("x"), ExplicitHashKey: aws.String("0")})
	if err != nil || *one.ShardId != "shardId-000000000000" {
		t.Fatal(one, err)
	}
	shards, err := c.ListShards(ctx, &kinesis.ListShardsInput{StreamName: name})
	if err != nil || len(shards.Shards) != 2 {
		t.Fatal(shards, err)
	}
	got := map[string]types.Record{}
	for _, s := range shards.Shards {
		it, err := c.GetShardIterator(ctx, &kinesis.GetShardIteratorInput{StreamName: name, ShardId: s.ShardId, ShardIteratorType: types.ShardIteratorTypeTrimHorizon})
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.GetRecords(ctx, &kinesis.GetRecordsInput{ShardIterator: it.ShardIterator})
		if err != nil || *out.MillisBehindLatest != 0 || out.NextShardIterator == nil {
			t.Fatal(out, err)
		}
		last := new(big.Int)
		for _, r := range out.Records {
			n, ok := new(big.Int).SetString(*r.SequenceNumber, 10)
			if !ok || n.Cmp(last) <= 0 {
				t.Errorf("sequence number %s does not follow %s", *r.SequenceNumber, last)
			}
			if age := time.Since(*r.ApproximateArrivalTimestamp); age < 0 || age > time.Minute {
				t.Errorf("record arrived %s", *r.ApproximateArrivalTimestamp)
			}
			last = n
			got[*r.SequenceNumber] = r
		}
	}
	if len(got) != len(entries)+1 {
		t.Errorf("read %d records, put %d", len(got), len(entries)+1)
	}
	for i, r := range put.Records {
		g := got[*r.SequenceNumber]
		if !bytes.Equal(g.Data, entries[i].Data) || aws.ToString(g.PartitionKey) != *entries[i].PartitionKey {
			t.Errorf("record %d: got %q %q", i, g.Data, aws.ToString(g.PartitionKey))
		}
	}
}

// TestSDKEveryOperation calls what the other tests do not, so that each answer is decoded by a real client.
func TestSDKEveryOperation(t *testing.T) {
	d := openDoor(t, vfs.NewCrashable(), nil)
	c := sdk(t, d.listen(t), "id", "secret")
	ctx := testContext(t)
	name := aws.String("s")
	ok := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	_, err := c.CreateStream(ctx, &kinesis.CreateStreamInput{StreamName: name, ShardCount: aws.Int32(2), Tags: map[string]string{"a": "1"}})
	ok("CreateStream", err)
	sum, err := c.DescribeStreamSummary(ctx, &kinesis.DescribeStreamSummaryInput{StreamName: name})
	ok("DescribeStreamSummary", err)
	arn := sum.StreamDescriptionSummary.StreamARN
	if *sum.StreamDescriptionSummary.OpenShardCount != 2 || *arn != "arn:aws:kinesis:us-east-1:000000000000:stream/s" {
		t.Errorf("summary: %+v", sum.StreamDescriptionSummary)
	}
	_, err = c.AddTagsToStream(ctx, &kinesis.AddTagsToStreamInput{StreamARN: arn, Tags: map[string]string{"b": ""}})
	ok("AddTagsToStream", err)
	_, err = c.TagResource(ctx, &kinesis.TagResourceInput{ResourceARN: arn, Tags: map[string]string{"c": "3"}})
	ok("TagResource", err)
	_, err = c.RemoveTagsFromStream(ctx, &kinesis.RemoveTagsFromStreamInput{StreamName: name, TagKeys: []string{"a"}})
	ok("RemoveTagsFromStream", err)
	_, err = c.UntagResource(ctx, &kinesis.UntagResourceInput{ResourceARN: arn, TagKeys: []string{"c"}})
	ok("UntagResource", err)
	tags, err := c.ListTagsForStream(ctx, &kinesis.ListTagsForStreamInput{StreamName: name})
	ok("ListTagsForStream", err)
	if len(tags.Tags) != 1 || *tags.Tags[0].Key != "b" || aws.ToString(tags.Tags[0].Value) != "" {
		t.Errorf("tags: %+v", tags.Tags)
	}
	rtags, err := c.ListTagsForResource(ctx, &kinesis.ListTagsForResourceInput{ResourceARN: arn})
	ok("ListTagsForResource", err)
	if len(rtags.Tags) != 1 {
		t.Errorf("tags: %+v", rtags.Tags)
	}
	_, err = c.IncreaseStreamRetentionPeriod(ctx, &kinesis.IncreaseStreamRetentionPeriodInput{StreamName: name, RetentionPeriodHours: aws.Int32(48)})
	ok("IncreaseStreamRetentionPeriod", err)
	_, err = c.DecreaseStreamRetentionPeriod(ctx, &kinesis.DecreaseStreamRetentionPeriodInput{StreamName: name, RetentionPeriodHours: aws.Int32(30)})
	ok("DecreaseStreamRetentionPeriod", err)
	_, err = c.StartStreamEncryption(ctx, &kinesis.StartStreamEncryptionInput{StreamName: name, EncryptionType: types.EncryptionTypeKms, KeyId: aws.String("alias/aws/kinesis")})
	ok("StartStreamEncryption", err)
	p, err := c.PutRecord(ctx, &kinesis.PutRecordInput{StreamARN: arn, StreamName: name, Data: []byte("x"), PartitionKey: aws.String("k")})
	ok("PutRecord", err)
	if p.EncryptionType != types.EncryptionTypeKms {
		t.Errorf("encryption type %q", p.EncryptionType)
	}
	_, err = c.StopStreamEncryption(ctx, &kinesis.StopStreamEncryptionInput{StreamName: name, EncryptionType: types.EncryptionTypeKms, KeyId: aws.String("alias/aws/kinesis")})
	ok("StopStreamEncryption", err)
	on, err := c.EnableEnhancedMonitoring(ctx, &kinesis.EnableEnhancedMonitoringInput{StreamName: name, ShardLevelMetrics: []types.MetricsName{types.MetricsNameAll}})
	ok("EnableEnhancedMonitoring", err)
	if len(on.DesiredShardLevelMetrics) != 7 {
		t.Errorf("metrics: %v", on.DesiredShardLevelMetrics)
	}
	off, err := c.DisableEnhancedMonitoring(ctx, &kinesis.DisableEnhancedMonitoringInput{StreamName: name, ShardLevelMetrics: []types.MetricsName{"IncomingBytes"}})
	ok("DisableEnhancedMonitoring", err)
	if len(off.DesiredShardLevelMetrics) != 6 {
		t.Errorf("metrics: %v", off.DesiredShardLevelMetrics)
	}
	doc := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"kinesis:GetRecords","Resource":"` + *arn + `"}]}`
	unset, err := c.GetResourcePolicy(ctx, &kinesis.GetResourcePolicyInput{ResourceARN: arn})
	ok("GetResourcePolicy", err)
	if *unset.Policy != "{}" {
		t.Errorf("policy %q", *unset.Policy)
	}
	_, err = c.PutResourcePolicy(ctx, &kinesis.PutResourcePolicyInput{ResourceARN: arn, Policy: aws.String(doc)})
	ok("PutResourcePolicy", err)
	pol, err := c.GetResourcePolicy(ctx, &kinesis.GetResourcePolicyInput{ResourceARN: arn})
	ok("GetResourcePolicy", err)
	if *pol.Policy != doc {
		t.Errorf("policy %q", *pol.Policy)
	}
	_, err = c.DeleteResourcePolicy(ctx, &kinesis.DeleteResourcePolicyInput{ResourceARN: arn})
	ok("DeleteResourcePolicy", err)
	_, err = c.UpdateMaxRecordSize(ctx, &kinesis.UpdateMaxRecordSizeInput{StreamARN: arn, MaxRecordSizeInKiB: aws.Int32(10240)})
	ok("UpdateMaxRecordSize", err)
	_, err = c.PutRecord(ctx, &kinesis.PutRecordInput{StreamName: name, Data: make([]byte, 9<<20), PartitionKey: aws.String("k")})
	ok("PutRecord of 9 MiB", err)
	cons, err := c.RegisterStreamConsumer(ctx, &kinesis.RegisterStreamConsumerInput{StreamARN: arn, ConsumerName: aws.String("app"), Tags: map[string]string{"t": "u"}})
	ok("RegisterStreamConsumer", err)
	dc, err := c.DescribeStreamConsumer(ctx, &kinesis.DescribeStreamConsumerInput{ConsumerARN: cons.Consumer.ConsumerARN})
	ok("DescribeStreamConsumer", err)
	if dc.ConsumerDescription.ConsumerStatus != types.ConsumerStatusActive || *dc.ConsumerDescription.StreamARN != *arn {
		t.Errorf("consumer: %+v", dc.ConsumerDescription)
	}
	lc, err := c.ListStreamConsumers(ctx, &kinesis.ListStreamConsumersInput{StreamARN: arn})
	ok("ListStreamConsumers", err)
	if len(lc.Consumers) != 1 {
		t.Errorf("consumers: %+v", lc.Consumers)
	}
	ctags, err := c.ListTagsForResource(ctx, &kinesis.ListTagsForResourceInput{ResourceARN: cons.Consumer.ConsumerARN})
	ok("ListTagsForResource of a consumer", err)
	if len(ctags.Tags) != 1 {
		t.Errorf("consumer's tags: %+v", ctags.Tags)
	}
	var inUse *types.ResourceInUseException
	if _, err = c.DeleteStream(ctx, &kinesis.DeleteStreamInput{StreamName: name}); !errors.As(err, &inUse) {
		t.Errorf("delete with consumers: %v", err)
	}
	_, err = c.DeregisterStreamConsumer(ctx, &kinesis.DeregisterStreamConsumerInput{StreamARN: arn, ConsumerName: aws.String("app")})
	ok("DeregisterStreamConsumer", err)
	_, err = c.UpdateStreamMode(ctx, &kinesis.UpdateStreamModeInput{StreamARN: arn, StreamModeDetails: &types.StreamModeDetails{StreamMode: types.StreamModeOnDemand}})
	ok("UpdateStreamMode", err)
	_, err = c.UpdateStreamRecordDistributionStrategy(ctx, &kinesis.UpdateStreamRecordDistributionStrategyInput{StreamARN: arn, RecordDistributionStrategy: types.RecordDistributionStrategyAuto})
	ok("UpdateStreamRecordDistributionStrategy", err)
	warm, err := c.UpdateStreamWarmThroughput(ctx, &kinesis.UpdateStreamWarmThroughputInput{StreamARN: arn, WarmThroughputMiBps: aws.Int32(6)})
	ok("UpdateStreamWarmThroughput", err)
	if *warm.WarmThroughput.TargetMiBps != 6 {
		t.Errorf("warm: %+v", warm.WarmThroughput)
	}
	ok("wait", existsWaiter(c).Wait(ctx, &kinesis.DescribeStreamInput{StreamName: name}, 10*time.Second))
	limits, err := c.DescribeLimits(ctx, &kinesis.DescribeLimitsInput{})
	ok("DescribeLimits", err)
	if *limits.OnDemandStreamCount != 1 {
		t.Errorf("limits: %+v", limits)
	}
	_, err = c.UpdateAccountSettings(ctx, &kinesis.UpdateAccountSettingsInput{MinimumThroughputBillingCommitment: &types.MinimumThroughputBillingCommitmentInput{Status: types.MinimumThroughputBillingCommitmentInputStatusEnabled}})
	ok("UpdateAccountSettings", err)
	acc, err := c.DescribeAccountSettings(ctx, &kinesis.DescribeAccountSettingsInput{})
	ok("DescribeAccountSettings", err)
	if acc.MinimumThroughputBillingCommitment.Status != types.MinimumThroughputBillingCommitmentOutputStatusEnabled {
		t.Errorf("account: %+v", acc.MinimumThroughputBillingCommitment)
	}
	var apiErr interface {
		error
		ErrorCode() string
	}
	if _, err = c.ListChannels(ctx, &kinesis.ListChannelsInput{}); !errors.As(err, &apiErr) || apiErr.ErrorCode() != "UnknownOperationException" {
		t.Errorf("ListChannels: %v", err)
	}
	ls, err := c.ListStreams(ctx, &kinesis.ListStreamsInput{})
	ok("ListStreams", err)
	if len(ls.StreamNames) != 1 || len(ls.StreamSummaries) != 1 {
		t.Errorf("streams: %+v", ls)
	}
	_, err = c.DeleteStream(ctx, &kinesis.DeleteStreamInput{StreamName: name})
	ok("DeleteStream", err)
	ok("wait", kinesis.NewStreamNotExistsWaiter(c).Wait(ctx, &kinesis.DescribeStreamInput{StreamName: name}, 10*time.Second))
	var notFound *types.ResourceNotFoundException
	if _, err := c.DescribeStream(ctx, &kinesis.DescribeStreamInput{StreamName: name}); !errors.As(err, &notFound) {
		t.Errorf("describe a deleted stream: %v", err)
	}
}

func TestSDKReshard(t *testing.T) {
	d := openDoor(t, vfs.NewCrashable(), nil)
	c := sdk(t, d.listen(t), "id", "secret")
	ctx := testContext(t)
	name := aws.String("s")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := c.CreateStream(ctx, &kinesis.CreateStreamInput{StreamName: name, ShardCount: aws.Int32(1)})
	must(err)
	put := func(n int) {
		_, err := c.PutRecord(ctx, &kinesis.PutRecordInput{StreamName: name, Data: fmt.Appendf(nil, "%d", n), PartitionKey: aws.String("k")})
		must(err)
	}
	put(0)
	_, err = c.SplitShard(ctx, &kinesis.SplitShardInput{StreamName: name, ShardToSplit: aws.String("shardId-000000000000"), NewStartingHashKey: aws.String("170141183460469231731687303715884105728")})
	must(err)
	put(1)
	_, err = c.MergeShards(ctx, &kinesis.MergeShardsInput{StreamName: name, ShardToMerge: aws.String("shardId-000000000001"), AdjacentShardToMerge: aws.String("shardId-000000000002")})
	must(err)
	put(2)
	_, err = c.UpdateShardCount(ctx, &kinesis.UpdateShardCountInput{StreamName: name, TargetShardCount: aws.Int32(2), ScalingType: types.ScalingTypeUniformScaling})
	must(err)
	must(existsWaiter(c).Wait(ctx, &kinesis.DescribeStreamInput{StreamName: name}, 10*time.Second))
	put(3)
	// Follow the key from the first shard to the last, children after parents, and find the order kept.
	shards := []string{"shardId-000000000000"}
	next := 0
	for len(shards) > 0 {
		it, err := c.GetShardIterator(ctx, &kinesis.GetShardIteratorInput{StreamName: name, ShardId: aws.String(shards[0]), ShardIteratorType: types.ShardIteratorTypeTrimHorizon})
		must(err)
		out, err := c.GetRecords(ctx, &kinesis.GetRecordsInput{ShardIterator: it.ShardIterator})
		must(err)
		for _, r := range out.Records {
			if string(r.Data) != fmt.Sprint(next) {
				t.Errorf("in %s: got record %s, want %d", shards[0], r.Data, next)
			}
			next++
		}
		shards = shards[1:]
		if out.NextShardIterator == nil {
			for _, ch := range out.ChildShards {
				if ch.HashKeyRange == nil || len(ch.ParentShards) == 0 {
					t.Errorf("child: %+v", ch)
				}
				if !slices.Contains(shards, *ch.ShardId) { // a merged shard is the child of two
					shards = append(shards, *ch.ShardId)
				}
			}
		}
	}
	if next != 4 {
		t.Errorf("read %d records of 4", next)
	}
	list, err := c.ListShards(ctx, &kinesis.ListShardsInput{StreamName: name, ShardFilter: &types.ShardFilter{Type: types.ShardFilterTypeAtLatest}})
	must(err)
	if len(list.Shards) != 2 || *list.Shards[1].HashKeyRange.StartingHashKey != "170141183460469231731687303715884105728" {
		t.Errorf("open shards: %+v", list.Shards)
	}
	all, err := c.ListShards(ctx, &kinesis.ListShardsInput{StreamName: name})
	must(err)
	for _, s := range all.Shards {
		closed := s.SequenceNumberRange.EndingSequenceNumber != nil
		if want := *s.ShardId < *list.Shards[0].ShardId; closed != want {
			t.Errorf("shard %s closed: %v", *s.ShardId, closed)
		}
	}
}

func TestSDKSubscribe(t *testing.T) {
	d := openDoor(t, vfs.NewCrashable(), nil)
	c := sdk(t, d.listen(t), "id", "secret")
	ctx := testContext(t)
	d.must(t, "CreateStream", `{"StreamName":"s","ShardCount":1}`, nil)
	arn := "arn:aws:kinesis:us-east-1:000000000000:stream/s"
	reg, err := c.RegisterStreamConsumer(ctx, &kinesis.RegisterStreamConsumerInput{StreamARN: &arn, ConsumerName: aws.String("app")})
	if err != nil {
		t.Fatal(err)
	}
	in := &kinesis.SubscribeToShardInput{
		ConsumerARN: reg.Consumer.ConsumerARN, ShardId: aws.String("shardId-000000000000"),
		StartingPosition: &types.StartingPosition{Type: types.ShardIteratorTypeTrimHorizon},
	}
	sub, err := c.SubscribeToShard(ctx, in)
	if err != nil {
		t.Fatal(err)
	}
	events := sub.GetStream()
	defer events.Close()
	var inUse *types.ResourceInUseException
	// By another client: calls of one client share a buffer with the events that it is decoding.
	if _, err := sdk(t, d.url, "id", "secret").SubscribeToShard(ctx, in); !errors.As(err, &inUse) {
		t.Errorf("second subscription within 5 s: %v", err)
	}
	for i := range 3 {
		d.must(t, "PutRecord", fmt.Sprintf(`{"StreamName":"s","PartitionKey":"k","Data":"%s"}`, "AAA="), nil)
		e, ok := <-events.Events()
		if !ok {
			t.Fatal("stream ended:", events.Err())
		}
		v := shardEvent(t, e)
		if len(v.Records) != 1 || *v.ContinuationSequenceNumber != *v.Records[0].SequenceNumber {
			t.Errorf("event %d: %+v", i, v)
		}
	}
	d.must(t, "SplitShard", `{"StreamName":"s","ShardToSplit":"shardId-000000000000","NewStartingHashKey":"1000"}`, nil)
	e := <-events.Events()
	v := shardEvent(t, e)
	if len(v.ChildShards) != 2 || v.ContinuationSequenceNumber != nil {
		t.Errorf("last event: %+v", v)
	}
	if _, more := <-events.Events(); more || events.Err() != nil {
		t.Errorf("after the last event: %v %v", more, events.Err())
	}
}

func shardEvent(t *testing.T, e types.SubscribeToShardEventStream) types.SubscribeToShardEvent {
	t.Helper()
	m, ok := e.(*types.SubscribeToShardEventStreamMemberSubscribeToShardEvent)
	if !ok {
		t.Fatalf("event %T, want records", e)
	}
	return m.Value
}
