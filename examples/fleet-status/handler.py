"""Keeps the latest status of every truck in the table FleetRealTimeStatus, as the architecture paper's handler means to.

As the paper prints it, it stores nothing: json.loads makes floats, boto3 refuses floats for put_item, and the handler catches
that error and prints it. Here numbers are parsed as Decimal, nothing is swallowed, and an older reading does not replace a
newer one. With AWS_ENDPOINT_URL_DYNAMODB set (or on AWS) the table is DynamoDB's; otherwise it is a file of SQLite.
"""

import base64
import json
import os
import sqlite3
from decimal import Decimal

LOW_FUEL, HOT_ENGINE = Decimal(15), Decimal(105)


class DynamoTable:
    def __init__(self):
        import boto3  # only where DynamoDB is used

        self.table = boto3.resource("dynamodb").Table("FleetRealTimeStatus")

    def put(self, item):
        try:
            self.table.put_item(
                Item=item,
                ConditionExpression="attribute_not_exists(SK) OR SK < :sk",
                ExpressionAttributeValues={":sk": item["SK"]},
            )
        except self.table.meta.client.exceptions.ConditionalCheckFailedException:
            pass  # a newer reading is there already


class FileTable:
    def __init__(self, path):
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("CREATE TABLE IF NOT EXISTS FleetRealTimeStatus (PK TEXT PRIMARY KEY, SK INTEGER, item TEXT)")

    def put(self, item):
        self.db.execute(
            "INSERT INTO FleetRealTimeStatus VALUES (?, ?, ?) "
            "ON CONFLICT (PK) DO UPDATE SET SK = excluded.SK, item = excluded.item WHERE excluded.SK > SK",
            (item["PK"], int(item["SK"]), json.dumps(item, default=float)),
        )


def open_table():
    if os.environ.get("AWS_ENDPOINT_URL_DYNAMODB"):
        return DynamoTable()
    return FileTable(os.environ.get("TABLE_FILE", "/tmp/FleetRealTimeStatus.db"))


table = open_table()  # once for each process, not for each invocation


def status_of(reading):
    if reading.get("engine_temp", 0) >= HOT_ENGINE:
        return "ENGINE_HOT"
    if reading.get("fuel", 100) <= LOW_FUEL:
        return "LOW_FUEL"
    return "OK"


def lambda_handler(event, context):
    output = []
    for record in event["Records"]:
        reading = json.loads(base64.b64decode(record["kinesis"]["data"]), parse_float=Decimal, parse_int=Decimal)
        item = {
            "PK": "TRUCK#" + reading["vehicle_id"],
            "SK": reading["ts"],
            "status": status_of(reading),
            "speed": reading.get("speed", Decimal(0)),
            "fuel": reading.get("fuel"),
        }
        table.put({k: v for k, v in item.items() if v is not None})
        output.append({"key": item["PK"], "json": json.loads(json.dumps(item, default=float))})
    return {"output": output}
