// The AWS SDK for JavaScript v3 against a Kinesis endpoint: put, read, fan-out, reshard. It speaks HTTP/2 by default.
import assert from "node:assert/strict";
import {
  KinesisClient, CreateStreamCommand, DeleteStreamCommand, DescribeStreamConsumerCommand, DescribeStreamSummaryCommand, GetRecordsCommand,
  GetShardIteratorCommand, ListShardsCommand, PutRecordCommand, PutRecordsCommand, RegisterStreamConsumerCommand, SplitShardCommand,
  SubscribeToShardCommand, waitUntilStreamExists,
} from "@aws-sdk/client-kinesis";

const client = new KinesisClient({ endpoint: process.env.MILEPOST_KINESIS, region: process.env.AWS_REGION ?? "us-east-1" });
const StreamName = "interop-js-" + process.pid;
const bytes = (s) => new TextEncoder().encode(s);
const text = (b) => new TextDecoder().decode(b);

await client.send(new CreateStreamCommand({ StreamName, ShardCount: 1 }));
await waitUntilStreamExists({ client, maxWaitTime: 20, minDelay: 1 }, { StreamName });
const put = await client.send(new PutRecordsCommand({
  StreamName, Records: Array.from({ length: 100 }, (_, i) => ({ Data: bytes("reading " + i), PartitionKey: "truck-" + (i % 5) })),
}));
assert.equal(put.FailedRecordCount, 0);
const { Shards } = await client.send(new ListShardsCommand({ StreamName }));
const ShardId = Shards[0].ShardId;
const { ShardIterator } = await client.send(new GetShardIteratorCommand({ StreamName, ShardId, ShardIteratorType: "TRIM_HORIZON" }));
const out = await client.send(new GetRecordsCommand({ ShardIterator }));
assert.deepEqual(out.Records.map((r) => text(r.Data)), Array.from({ length: 100 }, (_, i) => "reading " + i));
assert.ok(Math.abs(out.Records[0].ApproximateArrivalTimestamp - Date.now()) < 60_000);

const { StreamDescriptionSummary: { StreamARN } } = await client.send(new DescribeStreamSummaryCommand({ StreamName }));
const { Consumer: { ConsumerARN } } = await client.send(new RegisterStreamConsumerCommand({ StreamARN, ConsumerName: "app" }));
for (let status = ""; status !== "ACTIVE";) {
  status = (await client.send(new DescribeStreamConsumerCommand({ ConsumerARN }))).ConsumerDescription.ConsumerStatus;
}
const { EventStream } = await client.send(new SubscribeToShardCommand({ ConsumerARN, ShardId, StartingPosition: { Type: "LATEST" } }));
const pushed = [];
const following = (async () => {
  for await (const e of EventStream) {
    pushed.push(...e.SubscribeToShardEvent.Records.map((r) => text(r.Data)));
    if (e.SubscribeToShardEvent.ChildShards?.length) return e.SubscribeToShardEvent.ChildShards.length;
  }
})();
for (const d of ["a", "b", "c"]) await client.send(new PutRecordCommand({ StreamName, Data: bytes(d), PartitionKey: "k" }));
await client.send(new SplitShardCommand({ StreamName, ShardToSplit: ShardId, NewStartingHashKey: "1000000" }));
assert.equal(await following, 2);
assert.deepEqual(pushed, ["a", "b", "c"]);

// What is put behind the split is in the children.
let status;
do {
  status = (await client.send(new DescribeStreamSummaryCommand({ StreamName }))).StreamDescriptionSummary.StreamStatus;
} while (status !== "ACTIVE");
await client.send(new PutRecordsCommand({
  StreamName, Records: ["0", "1000000"].map((h) => ({ Data: bytes("at " + h), PartitionKey: "k", ExplicitHashKey: h })),
}));
const children = [];
for (const s of (await client.send(new ListShardsCommand({ StreamName }))).Shards.filter((s) => s.ParentShardId === ShardId)) {
  const i = await client.send(new GetShardIteratorCommand({ StreamName, ShardId: s.ShardId, ShardIteratorType: "TRIM_HORIZON" }));
  const { Records } = await client.send(new GetRecordsCommand({ ShardIterator: i.ShardIterator }));
  children.push(Records.map((r) => text(r.Data)));
}
assert.deepEqual(children, [["at 0"], ["at 1000000"]]);
await assert.rejects(client.send(new GetRecordsCommand({ ShardIterator: "AAAA" })), { name: "InvalidArgumentException" });
await client.send(new DeleteStreamCommand({ StreamName, EnforceConsumerDeletion: true }));
client.destroy();
console.log("AWS SDK for JavaScript ok");
