"""Two steps of a pipeline. The first knows nothing of partial failures: it raises, and Milepost bisects until the one bad
record is alone."""

import base64
import json


def records(event):
    for record in event["Records"]:
        yield json.loads(base64.b64decode(record["kinesis"]["data"]))


def check(event, context):
    output = []
    for m in records(event):
        celsius = m["celsius"] if "celsius" in m else (m["fahrenheit"] - 32) * 5 / 9
        clean = {"machine": m["machine"], "celsius": round(celsius, 1), "vibration": m.get("vibration", 0)}
        output.append({"key": m["machine"], "json": clean})
    return {"output": output}


def alarm(event, context):
    output = []
    for m in records(event):
        why = "overheated" if m["celsius"] > 90 else "vibrates"
        output.append({"key": m["machine"], "json": {"machine": m["machine"], "alarm": why}})
        print(f"CRITICAL {m['machine']} {why}")
    return {"output": output}
