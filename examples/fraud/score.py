"""Scores payments. One that cannot be read is reported alone: the others of its batch are not tried again."""

import base64
import json

COUNTRY_RISK = {"PT": 0, "ES": 0, "XX": 40}


def score(payment):
    points = min(50, payment["amount"] / 100)
    points += COUNTRY_RISK.get(payment.get("country"), 10)
    if payment.get("hour", 12) < 5:
        points += 20
    return round(points, 1)


def handler(event, context):
    output, failures = [], []
    for record in event["Records"]:
        try:
            payment = json.loads(base64.b64decode(record["kinesis"]["data"]))
            output.append({"key": payment["card"], "json": {"id": payment["id"], "score": score(payment)}})
        except (ValueError, KeyError):
            failures.append({"itemIdentifier": record["kinesis"]["sequenceNumber"]})
            break  # everything from here on is tried again, so that the order of a card's payments holds
    return {"output": output, "batchItemFailures": failures}
