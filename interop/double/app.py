"""Doubles numbers: the function that interop.sh maps and invokes."""

import base64
import json


def handler(event, context):
    output = []
    for record in event["Records"]:
        n = json.loads(base64.b64decode(record["kinesis"]["data"]))["n"]
        output.append({"key": record["kinesis"]["partitionKey"], "json": {"n": 2 * n}})
    return {"output": output}
