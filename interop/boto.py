"""boto3 against a Kinesis endpoint: create, put, read, fan-out, split, merge, and every error as the exception boto3 knows.

The endpoint is in MILEPOST_KINESIS; credentials and region come from the environment.
"""

import os
import sys
import threading
import time
import uuid

import boto3
from botocore.config import Config

client = boto3.client(
    "kinesis",
    endpoint_url=os.environ["MILEPOST_KINESIS"],
    region_name=os.environ.get("AWS_REGION", "us-east-1"),
    config=Config(retries={"max_attempts": 1}),
)
name = "interop-boto-" + uuid.uuid4().hex[:8]


def until(what, condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"{what} did not come true within {seconds} s")
        time.sleep(0.1)


def active():
    return client.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE"


def read_all(shard):
    """Every record of a shard, and its children if it is closed."""
    it = client.get_shard_iterator(StreamName=name, ShardId=shard, ShardIteratorType="TRIM_HORIZON")["ShardIterator"]
    records = []
    while it:
        out = client.get_records(ShardIterator=it)
        records += out["Records"]
        it = out.get("NextShardIterator")
        if not out["Records"] and out["MillisBehindLatest"] == 0:
            break
    return records


def read_stream():
    records = []
    for page in client.get_paginator("list_shards").paginate(StreamName=name):
        for shard in page["Shards"]:
            records += read_all(shard["ShardId"])
    return records


client.create_stream(StreamName=name, ShardCount=2)
client.get_waiter("stream_exists").wait(StreamName=name, WaiterConfig={"Delay": 1})
arn = client.describe_stream(StreamName=name)["StreamDescription"]["StreamARN"]

put = client.put_records(
    StreamName=name, Records=[{"Data": b"reading %d" % i, "PartitionKey": f"truck-{i % 5}"} for i in range(500)]
)
assert put["FailedRecordCount"] == 0 and len(put["Records"]) == 500, put
client.put_record(StreamARN=arn, Data=b"one", PartitionKey="Lastwagen-ü", ExplicitHashKey="0")
records = read_stream()
assert len(records) == 501, len(records)
assert {r["SequenceNumber"] for r in put["Records"]} < {r["SequenceNumber"] for r in records}
assert any(r["PartitionKey"] == "Lastwagen-ü" and r["Data"] == b"one" for r in records)

# Enhanced fan-out, pushed while it runs.
consumer = client.register_stream_consumer(StreamARN=arn, ConsumerName="app")["Consumer"]["ConsumerARN"]
until("consumer ACTIVE", lambda: client.describe_stream_consumer(ConsumerARN=consumer)["ConsumerDescription"]["ConsumerStatus"] == "ACTIVE")
got = []
subscription = client.subscribe_to_shard(
    ConsumerARN=consumer, ShardId="shardId-000000000000", StartingPosition={"Type": "LATEST"}
)["EventStream"]


def follow():
    for event in subscription:
        got.extend(event["SubscribeToShardEvent"]["Records"])
        if len(got) >= 3:
            return


t = threading.Thread(target=follow, daemon=True)
t.start()
for i in range(3):
    client.put_record(StreamName=name, Data=b"pushed %d" % i, PartitionKey="k", ExplicitHashKey="0")
t.join(20)
assert [r["Data"] for r in got] == [b"pushed 0", b"pushed 1", b"pushed 2"], got

# Resharding keeps every record.
client.split_shard(StreamName=name, ShardToSplit="shardId-000000000000", NewStartingHashKey="1000000")
until("ACTIVE after the split", active)
client.put_record(StreamName=name, Data=b"after the split", PartitionKey="k", ExplicitHashKey="0")
client.merge_shards(StreamName=name, ShardToMerge="shardId-000000000002", AdjacentShardToMerge="shardId-000000000003")
until("ACTIVE after the merge", active)
client.put_record(StreamName=name, Data=b"after the merge", PartitionKey="k", ExplicitHashKey="0")
client.update_shard_count(StreamName=name, TargetShardCount=4, ScalingType="UNIFORM_SCALING")
until("ACTIVE after the update", active)
assert len(read_stream()) == 506
assert client.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]["OpenShardCount"] == 4

# Errors.
for what, error, call in [
    ("missing stream", "ResourceNotFoundException", lambda: client.describe_stream(StreamName="no-such-stream")),
    ("stream exists", "ResourceInUseException", lambda: client.create_stream(StreamName=name, ShardCount=1)),
    ("bad iterator", "InvalidArgumentException", lambda: client.get_records(ShardIterator="AAAA")),
    ("consumers", "ResourceInUseException", lambda: client.delete_stream(StreamName=name)),
]:
    try:
        call()
    except client.exceptions.ClientError as e:
        assert e.response["Error"]["Code"] == error, (what, e.response)
    else:
        sys.exit(f"{what}: no error")

client.delete_stream(StreamName=name, EnforceConsumerDeletion=True)
client.get_waiter("stream_not_exists").wait(StreamName=name, WaiterConfig={"Delay": 1})
print("boto3", boto3.__version__, "ok")
