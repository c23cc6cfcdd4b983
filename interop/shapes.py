"""Every answer of Lambda's and Kinesis' API against AWS' own service models: see model.py for what is checked.

Also every member that the model lets a client give to Create- and UpdateEventSourceMapping: it is in the answer as it was given, or it is
refused by name; none is passed over. And every operation of the model: it was checked here, or it is refused as unknown.

Needs a server whose configuration has the functions "double" and "shapes" (interop.sh has them). The endpoint is in MILEPOST_KINESIS.
"""

import base64
import json
import os
import sys
import threading
import time
import uuid

from model import Service, Wrong

endpoint = os.environ["MILEPOST_KINESIS"]
lam = Service("lambda", "2015-03-31", endpoint)
# AWS shows a stream without enhanced monitoring as {"ShardLevelMetrics": []}, and no failures as {"FailedRecordCount": 0}; the model has one of each.
kin = Service("kinesis", "2013-12-02", endpoint, unbounded=["MetricsNameList", "PositiveIntegerObject"])
prefix = "interop-shapes-" + uuid.uuid4().hex[:8]
wrong = []
checks = 0


def story(f):
    """Runs one part; what is wrong in it does not keep the others from being looked at."""
    try:
        f()
    except Wrong as e:
        wrong.append(f"{f.__name__}: {e}")


def attempt(f, *args, **kwargs):
    global checks
    checks += 1
    try:
        return f(*args, **kwargs)
    except Wrong as e:
        wrong.append(str(e))
    return None


def expect(condition, what):
    if not condition:
        raise Wrong(what)


def until(what, condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"{what} did not come true within {seconds} s")
        time.sleep(0.05)


# ---- Lambda

# What AWS gives of every mapping of a Kinesis stream, whatever was asked.
ALWAYS = {
    "UUID", "StartingPosition", "BatchSize", "MaximumBatchingWindowInSeconds", "ParallelizationFactor", "EventSourceArn", "FunctionArn",
    "LastModified", "LastProcessingResult", "State", "StateTransitionReason", "DestinationConfig", "MaximumRecordAgeInSeconds",
    "BisectBatchOnFunctionError", "MaximumRetryAttempts", "TumblingWindowInSeconds", "FunctionResponseTypes", "EventSourceMappingArn",
}
STATES = {"Creating", "Enabling", "Enabled", "Disabling", "Disabled", "Updating", "Deleting"}
FUNCTION = {
    "FunctionName", "FunctionArn", "Role", "CodeSize", "Description", "Timeout", "MemorySize", "LastModified", "CodeSha256", "Version",
    "TracingConfig", "RevisionId", "State", "LastUpdateStatus", "PackageType", "Architectures",
}


def mapping(doc, state=None):
    expect(ALWAYS <= set(doc), f"a mapping lacks {ALWAYS - set(doc)}")
    expect(doc["State"] in STATES and (state is None or doc["State"] == state), f"state {doc['State']}, not {state}")
    return doc


def stream(name, shards=1):
    kin.call("CreateStream", StreamName=name, ShardCount=shards)
    until(name, lambda: kin.call("DescribeStreamSummary", StreamName=name)["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE")
    return kin.call("DescribeStreamSummary", StreamName=name)["StreamDescriptionSummary"]["StreamARN"]


def settled(id):
    until("mapping settled", lambda: lam.call("GetEventSourceMapping", UUID=id)["State"] in ("Enabled", "Disabled"))


def gone(id):
    def is_gone():
        status, _, _ = lam.send("GET", "/2015-03-31/event-source-mappings/" + id, {}, None)
        return status == 404

    until("mapping gone", is_gone)


def create(**params):
    return mapping(lam.call("CreateEventSourceMapping", **({"FunctionName": "shapes", "StartingPosition": "LATEST"} | params)).document, "Creating")


def delete(id):
    settled(id)
    mapping(lam.call("DeleteEventSourceMapping", UUID=id).document, "Deleting")
    gone(id)


ARN = stream(prefix)
FAILED = stream(prefix + "-failed")
nobody = str(uuid.uuid4())


def mappings():
    made = create(EventSourceArn=ARN)
    id = made["UUID"]
    for member, default in {
        "BatchSize": 100, "MaximumBatchingWindowInSeconds": 0, "ParallelizationFactor": 1, "MaximumRecordAgeInSeconds": -1, "MaximumRetryAttempts": -1,
        "BisectBatchOnFunctionError": False, "TumblingWindowInSeconds": 0, "FunctionResponseTypes": [], "DestinationConfig": {"OnFailure": {}},
        "StateTransitionReason": "User action", "LastProcessingResult": "No records processed",
    }.items():
        expect(made[member] == default, f"{member} is {made[member]} by default, not {default}")
    lam.call("CreateEventSourceMapping", "ResourceConflictException", FunctionName="shapes", EventSourceArn=ARN, StartingPosition="LATEST")
    settled(id)
    mapping(lam.call("GetEventSourceMapping", UUID=id).document, "Enabled")
    mapping(lam.call("UpdateEventSourceMapping", UUID=id, Enabled=False).document, "Disabling")
    settled(id)
    mapping(lam.call("UpdateEventSourceMapping", UUID=id, Enabled=True, BatchSize=7).document, "Enabling")
    lam.call("GetEventSourceMapping", "ResourceNotFoundException", UUID=nobody)
    lam.call("UpdateEventSourceMapping", "ResourceNotFoundException", UUID=nobody)
    lam.call("DeleteEventSourceMapping", "ResourceNotFoundException", UUID=nobody)
    lam.call("CreateEventSourceMapping", "SerializationException", _raw=b'{"BatchSize":"ten"}')
    lam.call("CreateEventSourceMapping", "InvalidParameterValueException", FunctionName="none", EventSourceArn=ARN, StartingPosition="LATEST")
    lam.call("CreateEventSourceMapping", "InvalidParameterValueException", FunctionName="shapes", EventSourceArn=ARN + "-none", StartingPosition="LATEST")
    lam.call("CreateEventSourceMapping", "ValidationException", EventSourceArn=ARN, StartingPosition="LATEST")
    arn = made["EventSourceMappingArn"]
    lam.call("TagResource", Resource=arn, Tags={"team": "fleet", "Größe": "a b"})
    expect(lam.call("ListTags", Resource=arn)["Tags"] == {"team": "fleet", "Größe": "a b"}, "the tags are others")
    lam.call("UntagResource", Resource=arn, TagKeys=["team", "none"])
    expect(lam.call("ListTags", Resource=arn)["Tags"] == {"Größe": "a b"}, "the tag is still there")
    lam.call("TagResource", "InvalidParameterValueException", Resource=arn, Tags={str(i): "" for i in range(51)})
    lam.call("TagResource", "ValidationException", Resource=arn)
    lam.call("UntagResource", "ValidationException", Resource=arn)
    for op, more in ("ListTags", {}), ("TagResource", {"Tags": {"a": "b"}}), ("UntagResource", {"TagKeys": ["a"]}):
        lam.call(op, "ResourceNotFoundException", Resource=arn.replace(id, nobody), **more)
    delete(id)


def pages():
    ids = set()
    streams = [stream(f"{prefix}-page-{i}") for i in range(5)]
    for arn in streams:
        ids.add(create(EventSourceArn=arn, Enabled=False)["UUID"])
    got, marker, rounds = [], {}, 0
    while True:
        page = lam.call("ListEventSourceMappings", FunctionName="shapes", MaxItems=2, **marker)
        for m in page["EventSourceMappings"]:
            got.append(mapping(m)["UUID"])
        expect(len(page["EventSourceMappings"]) <= 2, "more than MaxItems")
        rounds += 1
        if "NextMarker" not in page.document:
            break
        marker = {"Marker": page["NextMarker"]}
    expect(rounds == 3 and len(got) == 5 and set(got) == ids, f"{rounds} pages with {got}, not {ids}")
    one = lam.call("ListEventSourceMappings", EventSourceArn=streams[0])["EventSourceMappings"]
    expect(len(one) == 1 and one[0]["EventSourceArn"] == streams[0], "the source does not choose")
    expect(lam.call("ListEventSourceMappings", FunctionName="shapes", EventSourceArn=ARN)["EventSourceMappings"] == [], "not an empty list")
    first = lam.call("ListFunctions", MaxItems=1)
    second = lam.call("ListFunctions", MaxItems=1, Marker=first["NextMarker"])
    expect([f["FunctionName"] for f in first["Functions"] + second["Functions"]] == ["double", "shapes"], "functions are not paged")
    for op in "ListFunctions", "ListEventSourceMappings":
        lam.call(op, "InvalidParameterValueException", Marker="no marker")
        for n in 0, 10001:
            lam.call(op, "ValidationException", MaxItems=n)
        lam.call(op, MaxItems=10000)
    for id in ids:
        delete(id)


def functions():
    listed = {f["FunctionName"]: f for f in lam.call("ListFunctions")["Functions"]}
    got = lam.call("GetFunction", FunctionName="shapes")
    for f in *listed.values(), got["Configuration"], lam.call("GetFunctionConfiguration", FunctionName="shapes", Qualifier="$LATEST").document:
        expect(FUNCTION <= set(f), f"a function lacks {FUNCTION - set(f)}")
    expect({"RepositoryType", "Location"} <= set(got["Code"]) and got["Concurrency"] == {"ReservedConcurrentExecutions": 1}, "code or concurrency are others")
    expect(lam.call("GetFunctionConcurrency", FunctionName="shapes").document == {"ReservedConcurrentExecutions": 1}, "concurrency is another")
    arn = got["Configuration"]["FunctionArn"]
    expect(lam.call("ListTags", Resource=arn)["Tags"] == {}, "a function has tags")
    for name in arn, arn + ":$LATEST", "shapes:$LATEST", arn.split(":")[4] + ":function:shapes", "function:shapes":
        lam.call("GetFunctionConfiguration", FunctionName=name)
    for op in "GetFunction", "GetFunctionConfiguration", "GetFunctionConcurrency", "Invoke":
        lam.call(op, "ResourceNotFoundException", FunctionName="none")
        attempt(lam.call, op, "ValidationException", FunctionName="not a name")
        attempt(lam.call, op, "ValidationException", FunctionName="n" * 257)
    lam.call("ListFunctions", FunctionVersion="ALL")
    lam.call("ListFunctions", "ValidationException", FunctionVersion="1")
    lam.call("ListFunctions", "InvalidParameterValueException", MasterRegion="us-east-1")
    lam.call("GetFunction", "ResourceNotFoundException", FunctionName="shapes", Qualifier="7")
    for op, more in {
        "CreateFunction": {}, "UpdateFunctionCode": {}, "UpdateFunctionConfiguration": {}, "DeleteFunction": {},
        "PutFunctionConcurrency": {"ReservedConcurrentExecutions": 3}, "DeleteFunctionConcurrency": {},
    }.items():
        lam.call(op, "InvalidParameterValueException", FunctionName="shapes", **more)


def invoking():
    def invoke(event, **params):
        return lam.call("Invoke", FunctionName="shapes", Payload=json.dumps(event).encode(), **params)

    a = invoke({"print": "looking", "n": [1, "ü"]}, LogType="Tail")
    expect((a.status, json.loads(a.body)) == (200, {"print": "looking", "n": [1, "ü"]}), f"answer {a.status} {a.body}")
    expect(a.headers["X-Amz-Executed-Version"] == "$LATEST" and "X-Amz-Function-Error" not in a.headers, "headers are others")
    tail = base64.b64decode(a.headers["X-Amz-Log-Result"], validate=True).decode()
    for part in "START RequestId: " + a.headers["x-amzn-RequestId"], "looking", "END RequestId: ", "REPORT RequestId: ", "Billed Duration: ", "Memory Size: ", "Max Memory Used: ":
        expect(part in tail, f"the log's tail lacks {part!r}: {tail}")
    invoke({"print": "x" * 10000}, LogType="Tail")
    expect("X-Amz-Log-Result" not in invoke({}, LogType="None").headers, "a log that was not asked for")
    expect(lam.call("Invoke", FunctionName="shapes", Payload=b"").body == b"{}", "no payload is not an empty event")
    expect(invoke("text").body == b'"text"', "text is not JSON")
    a = invoke({"raise": "broken"})
    doc = json.loads(a.body)
    expect(a.status == 200 and a.headers["X-Amz-Function-Error"] == "Unhandled", "an error is not told")
    expect((doc["errorMessage"], doc["errorType"]) == ("broken", "ValueError") and isinstance(doc["stackTrace"], list), f"the error is {doc}")
    a = invoke({"sleep": 3})  # its timeout is 2 s
    expect(a.headers["X-Amz-Function-Error"] == "Unhandled" and "Task timed out after 2.00 seconds" in json.loads(a.body)["errorMessage"], f"timeout: {a.body}")
    a = invoke({"size": 7 << 20})
    expect(a.status == 200 and a.headers.get("X-Amz-Function-Error") == "Unhandled", f"too large an answer: {a.status}")
    expect(json.loads(a.body)["errorType"] == "Function.ResponseSizeTooLarge", f"too large an answer: {a.body[:200]}")
    a = invoke({}, InvocationType="DryRun")
    expect((a.status, a.body) == (204, b""), f"dry run: {a.status} {a.body}")
    a = invoke({}, InvocationType="Event")
    expect((a.status, a.body) == (202, b""), f"event: {a.status} {a.body}")
    a = lam.call("InvokeAsync", FunctionName="shapes", InvokeArgs=b"{}")
    expect((a.status, a.body) == (202, b""), f"async: {a.status} {a.body}")
    for bad in {"InvocationType": "Never"}, {"LogType": "All"}:
        lam.call("Invoke", "ValidationException", FunctionName="shapes", **bad)
    for there_is_none in {"TenantId": "t"}, {"DurableExecutionName": "n"}:
        lam.call("Invoke", "InvalidParameterValueException", FunctionName="shapes", **there_is_none)
    lam.call("Invoke", "InvalidRequestContentException", FunctionName="shapes", Payload=b"{")
    lam.call("InvokeAsync", "InvalidRequestContentException", FunctionName="shapes", InvokeArgs=b"{")
    lam.call("Invoke", "RequestTooLargeException", FunctionName="shapes", Payload=b'"' + b"x" * (6 << 20) + b'"')
    lam.call("Invoke", "RequestTooLargeException", FunctionName="shapes", InvocationType="Event", Payload=b'"' + b"x" * (1 << 20) + b'"')
    time.sleep(0.5)  # the events above
    busy = threading.Thread(target=invoke, args=({"sleep": 1.5},))
    busy.start()
    time.sleep(0.5)
    a = lam.call("Invoke", "TooManyRequestsException", FunctionName="shapes", Payload=b"{}")
    expect(a["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded", f"the reason is {a['Reason']}")
    busy.join()


# Every member that the model lets a client give, with a value that is no default: None is for what a Kinesis source refuses.
FAILURE = {"OnFailure": {"Destination": FAILED}}
GIVEN = {
    "BatchSize": 321,
    "MaximumBatchingWindowInSeconds": 7,
    "ParallelizationFactor": 3,
    "MaximumRecordAgeInSeconds": 600,
    "MaximumRetryAttempts": 4,
    "BisectBatchOnFunctionError": True,
    "TumblingWindowInSeconds": 30,
    "FunctionResponseTypes": ["ReportBatchItemFailures"],
    "FilterCriteria": {"Filters": [{"Pattern": '{"data":{"a":[1]}}'}, {"Pattern": '{"data":{"b":["<x>"]}}'}]},
    "DestinationConfig": FAILURE,
    "MetricsConfig": {"Metrics": ["EventCount"]},
}
REFUSED = {
    "KMSKeyArn": "arn:aws:kms:us-east-1:000000000000:key/1",
    "LoggingConfig": {"SystemLogLevel": "DEBUG"},
    "ScalingConfig": {"MaximumConcurrency": 5},
    "SourceAccessConfigurations": [{"Type": "BASIC_AUTH", "URI": "arn:aws:secretsmanager:x"}],
    "AmazonManagedKafkaEventSourceConfig": {"ConsumerGroupId": "group"},
    "SelfManagedKafkaEventSourceConfig": {"ConsumerGroupId": "group"},
    "SelfManagedEventSource": {"Endpoints": {"KAFKA_BOOTSTRAP_SERVERS": ["a:1"]}},
    "DocumentDBEventSourceConfig": {"DatabaseName": "d"},
    "ProvisionedPollerConfig": {"MinimumPollers": 2},
    "Topics": ["topic"],
    "Queues": ["queue"],
}
ELSEWHERE = {"FunctionName", "EventSourceArn", "StartingPosition", "StartingPositionTimestamp", "Enabled", "Tags", "UUID"}
# A value of another kind of source, for members that a Kinesis source has.
NOT_HERE = {"MetricsConfig": {"Metrics": ["KafkaMetrics"]}, "DestinationConfig": {"OnSuccess": {"Destination": FAILED}}}


def inputs():
    base = {"FunctionName": "shapes", "EventSourceArn": ARN, "StartingPosition": "LATEST"}
    at = 1767225600.25
    made = create(EventSourceArn=ARN, StartingPosition="AT_TIMESTAMP", StartingPositionTimestamp=at, Tags={"a": "b"}, Enabled=False, FunctionName="double")
    expect((made["StartingPosition"], made["StartingPositionTimestamp"]) == ("AT_TIMESTAMP", at), "the position is another")
    expect(lam.call("ListTags", Resource=made["EventSourceMappingArn"])["Tags"] == {"a": "b"}, "the tags are others")
    settled(made["UUID"])
    expect(lam.call("GetEventSourceMapping", UUID=made["UUID"])["State"] == "Disabled", "it is enabled")
    changed = lam.call("UpdateEventSourceMapping", UUID=made["UUID"], FunctionName="shapes")
    expect(changed["FunctionArn"].endswith(":shapes"), "another function was not taken")
    id = made["UUID"]
    settled(id)
    for operation, request in ("CreateEventSourceMapping", base), ("UpdateEventSourceMapping", {"UUID": id}):
        members = lam.shapes[lam.operations[operation]["input"]["shape"]]["members"]
        for member in members:
            if member in ELSEWHERE:
                continue
            expect((member in GIVEN) != (member in REFUSED), f"{operation}: the model has {member}, and this check does not know it")
            if member in REFUSED:
                attempt(refused, operation, request, member, REFUSED[member])
                continue
            attempt(taken, operation, request, member, GIVEN[member])
            if member in NOT_HERE:
                attempt(refused, operation, request, member, NOT_HERE[member])
            attempt(bounds, operation, request, member, members[member]["shape"])
    wild = "arn:aws:kinesis:us-east-1:000000000000:stream/" + "x" * 400
    for operation, request in ("CreateEventSourceMapping", base), ("UpdateEventSourceMapping", {"UUID": id}):
        for bad in (
            {"FunctionName": "not a name"}, {"FunctionName": "n" * 257}, {"FunctionName": ""}, {"FunctionResponseTypes": ["ReportBatchItemFailures"] * 2},
            {"FunctionResponseTypes": ["Other"]}, {"FilterCriteria": {"Filters": [{"Pattern": '{"data":{"a":["' + "x" * 4096 + '"]}}'}]}},
            {"DestinationConfig": {"OnFailure": {"Destination": wild}}}, {"MetricsConfig": {"Metrics": ["Other"]}},
            {"MetricsConfig": {"Metrics": ["EventCount"] * 4}},
        ):
            attempt(lam.call, operation, "ValidationException", **(request | bad))
    for bad in {"StartingPosition": "MIDDLE"}, {"EventSourceArn": "not an arn"}:
        attempt(lam.call, "CreateEventSourceMapping", "ValidationException", **(base | bad))
    for bad in (
        {"StartingPosition": "AT_TIMESTAMP"}, {"StartingPosition": "AT_TIMESTAMP", "StartingPositionTimestamp": 4000000000},
        {"MaximumRecordAgeInSeconds": 59}, {"MaximumRecordAgeInSeconds": 0}, {"TumblingWindowInSeconds": 5, "ParallelizationFactor": 2},
        {"FilterCriteria": {"Filters": [{"Pattern": "{"}]}}, {"Tags": {"aws:x": "y"}}, {"EventSourceArn": "arn:aws:sqs:us-east-1:000000000000:queue"},
    ):
        attempt(lam.call, "CreateEventSourceMapping", "InvalidParameterValueException", **(base | bad))
    delete(id)


def drop(operation, request):
    """Leaves nothing behind of a mapping that was made, and everything but the default of one that was changed."""
    if operation == "UpdateEventSourceMapping":
        settled(request["UUID"])
        lam.call(operation, UUID=request["UUID"], BatchSize=100, MaximumBatchingWindowInSeconds=0, ParallelizationFactor=1, TumblingWindowInSeconds=0,
                 MaximumRecordAgeInSeconds=-1, MaximumRetryAttempts=-1)
        settled(request["UUID"])


def attempted(operation, request, **given):
    """Creates or changes a mapping; one that was created for it is deleted again."""
    if operation == "CreateEventSourceMapping":
        given = {"FunctionName": "double", "Enabled": False} | given
    got = mapping(lam.call(operation, **(request | given)).document)
    settled(got["UUID"])
    if operation == "CreateEventSourceMapping":
        now = mapping(lam.call("GetEventSourceMapping", UUID=got["UUID"]).document)
        delete(got["UUID"])
    else:
        now = mapping(lam.call("GetEventSourceMapping", UUID=got["UUID"]).document)
    return got, now


def taken(operation, request, member, value):
    got, now = attempted(operation, request, **{member: value})
    drop(operation, request)
    for doc in got, now:
        expect(doc.get(member) == value, f"{operation}: {member} {value} was given, and {doc.get(member)} is told")


def refused(operation, request, member, value):
    a = lam.call(operation, "InvalidParameterValueException", **(request | {member: value}))
    known = member in a.message or member == "DestinationConfig" and "successful" in a.message
    expect(known, f"{operation}: {member} is refused without its name: {a.message}")


def bounds(operation, request, member, shape):
    s = lam.shapes[shape]
    if s["type"] != "integer":
        return
    for value in s["min"], s["max"]:
        taken(operation, request, member, value)
    for value in s["min"] - 1, s["max"] + 1:
        a = lam.call(operation, "ValidationException", **(request | {member: value}))
        expect(member[0].lower() + member[1:] in a.message, f"{operation}: {member} out of range is refused without its name: {a.message}")


def others():
    """What was not called above is not there: an operation that is served and not checked would show here."""
    for name in lam.others():
        op = lam.operations[name]
        shape = lam.shapes[op["input"]["shape"]] if "input" in op else {"members": {}}
        params = {k: "x" for k, m in shape["members"].items() if m.get("location") == "uri"}
        lam.call(name, "UnknownOperationException", **params)


# ---- Kinesis

def active(name):
    until(f"{name} is active", lambda: kin.call("DescribeStreamSummary", StreamName=name)["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE")


def streams():
    name = prefix + "-kinesis"
    arn = stream(name, shards=2)
    described = kin.call("DescribeStream", StreamName=name)["StreamDescription"]
    expect([s["ShardId"] for s in described["Shards"]] == ["shardId-000000000000", "shardId-000000000001"], f"the shards are {described['Shards']}")
    kin.call("DescribeStream", StreamARN=arn, Limit=1)
    kin.call("DescribeLimits")
    kin.call("DescribeAccountSettings")
    page = kin.call("ListStreams", Limit=1)
    expect(page["HasMoreStreams"] and len(page["StreamNames"]) == len(page["StreamSummaries"]) == 1, "streams are not paged")
    kin.call("ListStreams", NextToken=page["NextToken"])
    page = kin.call("ListShards", StreamName=name, MaxResults=1)
    kin.call("ListShards", NextToken=page["NextToken"])
    kin.call("ListShards", StreamName=name, ShardFilter={"Type": "AT_TIMESTAMP", "Timestamp": time.time()})

    data = base64.b64encode(b"reading").decode()
    first = kin.call("PutRecord", StreamName=name, PartitionKey="k", Data=data, ExplicitHashKey="0")
    many = kin.call("PutRecords", StreamName=name, Records=[{"PartitionKey": f"k{i}", "Data": data} for i in range(10)])
    expect(many["FailedRecordCount"] == 0 and all(set(r) == {"SequenceNumber", "ShardId"} for r in many["Records"]), f"put {many.document}")
    for position in (
        {"ShardIteratorType": "TRIM_HORIZON"}, {"ShardIteratorType": "LATEST"}, {"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": time.time() - 60},
        {"ShardIteratorType": "AT_SEQUENCE_NUMBER", "StartingSequenceNumber": first["SequenceNumber"]},
        {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": first["SequenceNumber"]},
    ):
        it = kin.call("GetShardIterator", StreamName=name, ShardId=first["ShardId"], **position)["ShardIterator"]
        got = kin.call("GetRecords", ShardIterator=it, Limit=100)
        expect({"Records", "NextShardIterator", "MillisBehindLatest"} <= set(got.document), f"records: {set(got.document)}")
        for r in got["Records"]:
            expect({"SequenceNumber", "ApproximateArrivalTimestamp", "Data", "PartitionKey"} <= set(r), f"a record: {set(r)}")

    consumer = kin.call("RegisterStreamConsumer", StreamARN=arn, ConsumerName="fast")["Consumer"]["ConsumerARN"]
    until("consumer", lambda: kin.call("DescribeStreamConsumer", ConsumerARN=consumer)["ConsumerDescription"]["ConsumerStatus"] == "ACTIVE")
    kin.call("ListStreamConsumers", StreamARN=arn)
    kin.call("RegisterStreamConsumer", "ResourceInUseException", StreamARN=arn, ConsumerName="fast")
    kin.call("DeregisterStreamConsumer", ConsumerARN=consumer)
    kin.call("DescribeStreamConsumer", "ResourceNotFoundException", ConsumerARN=arn + "/consumer/none:1")

    kin.call("AddTagsToStream", StreamName=name, Tags={"a": "b"})
    kin.call("ListTagsForStream", StreamName=name)
    kin.call("RemoveTagsFromStream", StreamName=name, TagKeys=["a"])
    kin.call("TagResource", ResourceARN=arn, Tags={"c": "d"})
    kin.call("ListTagsForResource", ResourceARN=arn)
    kin.call("UntagResource", ResourceARN=arn, TagKeys=["c"])
    kin.call("IncreaseStreamRetentionPeriod", StreamName=name, RetentionPeriodHours=48)
    active(name)
    kin.call("DecreaseStreamRetentionPeriod", StreamName=name, RetentionPeriodHours=24)
    active(name)
    kin.call("EnableEnhancedMonitoring", StreamName=name, ShardLevelMetrics=["ALL"])
    active(name)
    kin.call("DisableEnhancedMonitoring", StreamName=name, ShardLevelMetrics=["ALL"])
    active(name)
    kin.call("StartStreamEncryption", StreamName=name, EncryptionType="KMS", KeyId="alias/aws/kinesis")
    active(name)
    kin.call("DescribeStream", StreamName=name)
    kin.call("GetRecords", ShardIterator=kin.call("GetShardIterator", StreamName=name, ShardId=first["ShardId"], ShardIteratorType="TRIM_HORIZON")["ShardIterator"])
    kin.call("StopStreamEncryption", StreamName=name, EncryptionType="KMS", KeyId="alias/aws/kinesis")
    active(name)
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::000000000000:root"},
              "Action": "kinesis:GetRecords", "Resource": arn}]}
    kin.call("PutResourcePolicy", ResourceARN=arn, Policy=json.dumps(policy))
    kin.call("GetResourcePolicy", ResourceARN=arn)
    kin.call("DeleteResourcePolicy", ResourceARN=arn)
    kin.call("SplitShard", StreamName=name, ShardToSplit="shardId-000000000000", NewStartingHashKey="1000000")
    active(name)
    kin.call("MergeShards", StreamName=name, ShardToMerge="shardId-000000000002", AdjacentShardToMerge="shardId-000000000003")
    active(name)
    kin.call("UpdateShardCount", StreamName=name, TargetShardCount=4, ScalingType="UNIFORM_SCALING")
    active(name)
    it = kin.call("GetShardIterator", StreamName=name, ShardId="shardId-000000000000", ShardIteratorType="TRIM_HORIZON")["ShardIterator"]
    end = kin.call("GetRecords", ShardIterator=it)
    while "NextShardIterator" in end.document:
        end = kin.call("GetRecords", ShardIterator=end["NextShardIterator"])
    expect(end["ChildShards"], "the end of a shard does not name its children")
    kin.call("UpdateStreamMode", StreamARN=arn, StreamModeDetails={"StreamMode": "ON_DEMAND"})
    active(name)
    kin.call("UpdateMaxRecordSize", StreamARN=arn, MaxRecordSizeInKiB=2048)
    active(name)
    for op in "DescribeStream", "DescribeStreamSummary", "ListTagsForStream", "DeleteStream":
        kin.call(op, "ResourceNotFoundException", StreamName="none")
    kin.call("CreateStream", "ResourceInUseException", StreamName=name, ShardCount=1)
    kin.call("GetRecords", "InvalidArgumentException", ShardIterator="AAAA")
    kin.call("PutRecord", "ValidationException", StreamName=name, Data=data)
    kin.call("DescribeStream", "SerializationException", _raw=b"{")
    kin.call("DeleteStream", StreamName=name, EnforceConsumerDeletion=True)


for part in mappings, pages, functions, invoking, inputs, streams:
    story(part)
exercised = {name for name, outcomes in lam.seen.items() if outcomes}
story(others)
if wrong:
    sys.exit("\n".join(["answers that AWS' models do not have:", *wrong]))
for service, names in ("lambda", exercised), ("kinesis", set(kin.seen)):
    seen = (lam if service == "lambda" else kin).seen
    print(f"{service}: {len(names)} operations, {sum(len(seen[n]) for n in names)} kinds of answers as the model has them")
