"""boto3 against a Kinesis endpoint: create, put, read, fan-out, split, merge, and every error as the exception boto3 knows.

Then telemetry into the built-in stream `readings`, plain and aggregated as the Producer Library does it: the vehicles' latest state
and SQL have each reading exactly once.

The endpoint is in MILEPOST_KINESIS, the HTTP API in MILEPOST_HTTP, the program in MILEPOST; credentials and region come from the
environment.
"""

import datetime
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid

import aws_kinesis_agg.aggregator
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

# Telemetry: 40 readings of each vehicle, a second apart, under its id as the partition key. Half of them
# name no vehicle: they are of the key's.
READINGS = 40
began = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0) - datetime.timedelta(minutes=2)
vehicles = {kind: f"{name}-{kind}" for kind in ("single", "batch", "aggregated")}


def reading(vehicle, i):
    at = (began + datetime.timedelta(seconds=i)).isoformat()
    named = {"vehicle_id": vehicle} if i % 2 else {}
    return json.dumps(named | {"ts": at, "lat": 52.5 + i / 1000, "lon": 13.4, "speed": i, "status": "moving"})


def put_fleet():
    for i in range(READINGS):
        client.put_record(StreamName="readings", Data=reading(vehicles["single"], i), PartitionKey=vehicles["single"])
    batch = [{"Data": reading(vehicles["batch"], i), "PartitionKey": vehicles["batch"]} for i in range(READINGS)]
    put = client.put_records(StreamName="readings", Records=batch)
    assert put["FailedRecordCount"] == 0, put
    aggregator = aws_kinesis_agg.aggregator.RecordAggregator()
    for i in range(READINGS):
        assert aggregator.add_user_record(vehicles["aggregated"], reading(vehicles["aggregated"], i)) is None  # it fits into one
    key, _, data = aggregator.clear_and_get().get_contents()
    client.put_record(StreamName="readings", Data=data, PartitionKey=key)


def latest(vehicle):
    """What the API says of a vehicle, or nothing."""
    try:
        with urllib.request.urlopen(os.environ["MILEPOST_HTTP"] + "/v1/vehicles/" + vehicle, timeout=10) as r:
            return json.load(r)
    except urllib.error.HTTPError as e:
        if e.code == 404:
            return {}
        raise


def sql(query):
    out = subprocess.run(
        [os.environ["MILEPOST"], "sql", "--addr", os.environ["MILEPOST_HTTP"], "--format", "csv", query],
        check=True, capture_output=True, text=True,
    )
    return out.stdout.splitlines()[1:]


def has_last(vehicle):
    state = latest(vehicle)
    return any(s["name"] == "speed" and s["value"] == READINGS - 1 for s in state.get("signals", []))


def counts():
    return sql(
        f"SELECT vehicle_id, count(*), count(DISTINCT event_time), max(speed)::INT FROM readings "
        f"WHERE vehicle_id LIKE '{name}-%' GROUP BY 1 ORDER BY 1"
    )


expected = [f"{v},{READINGS},{READINGS},{READINGS - 1}" for v in sorted(vehicles.values())]
put_fleet()
for vehicle in vehicles.values():
    until(f"{vehicle} in GET /v1/vehicles", lambda: has_last(vehicle))
until("every reading in SQL", lambda: counts() == expected)
put_fleet()  # as a client that did not hear the answer would; a reading behind them shows that they have been through
for vehicle in vehicles.values():
    client.put_record(StreamName="readings", Data=reading(vehicle, READINGS), PartitionKey=vehicle)
READINGS += 1
expected = [f"{v},{READINGS},{READINGS},{READINGS - 1}" for v in sorted(vehicles.values())]
for vehicle in vehicles.values():
    until(f"{vehicle}'s reading behind the repeated ones", lambda: has_last(vehicle))
until("every reading once in SQL after they came twice", lambda: counts() == expected)
print("boto3", boto3.__version__, "ok")
